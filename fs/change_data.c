/* SPDX-License-Identifier: Apache-2.0 */

/*
 * change_data: requests that change content, of mounts with an upper.
 *
 * The kernel writes through: each write(2) comes here before it returns, and a page that a program
 * has mapped comes when it is written back. With the writeback cache of FUSE it would be the kernel
 * who knows a file's size and time, and this server who is told later; a journal that says what was
 * there when the server was killed, and passthrough, both need it the other way round.
 *
 * What a WRITE brings lies in the session's buffer until the next request. Only a write that must
 * wait for bytes of the tree below copies it.
 */

#include "fs/fs-internal.h"

#include <sys/stat.h>

#define UPPER(s) ((s)->options.upper)

/* ------------------------------------------------------------------ writing */

static int write_attempt(struct session *s, struct parked *p, struct err *err)
{
	struct call *c = &p->call;

	int64_t n = upper_write(UPPER(s), c->id, c->off, c->w.value, c->size, c->w.kills_suid,
				&p->wait, err);
	if (n == -EAGAIN && c->w.value != p->buf) {
		memcpy(p->buf, c->w.value, c->size);
		c->w.value = p->buf;
	}
	if (n < 0)
		return (int)n;
	fuse_reply_write(c->req, (size_t)n);
	return 0;
}

static void write_op(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t off,
		     struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);
	struct call call = {.op = CALL_WRITE, .req = req, .id = ino, .off = (uint64_t)off};

	call.size = MIN(size, (size_t)REPLY_MAX);
	call.w.kills_suid = s->init.kills_suid;
	call.w.value = bytes;
	change_start(&call, NULL, NULL, 0);
}

static int allocate_attempt(struct session *s, struct parked *p, struct err *err)
{
	const struct call *c = &p->call;

	int r = upper_allocate(UPPER(s), c->id, c->w.flags, c->off, c->w.to, &p->wait, err);
	if (r == 0)
		fuse_reply_err(c->req, 0);
	return r;
}

static void fallocate_op(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
			 struct fuse_file_info *fi)
{
	struct call call = {.op = CALL_ALLOCATE, .req = req, .id = ino, .off = (uint64_t)off};

	call.w.flags = mode;
	call.w.to = (uint64_t)len;
	change_start(&call, NULL, NULL, 0);
}

int change_data_attempt(struct session *s, struct parked *p, struct err *err)
{
	return p->call.op == CALL_WRITE ? write_attempt(s, p, err) : allocate_attempt(s, p, err);
}

/* Where both files are whole in the upper; else the kernel reads and writes by itself. */
static void copy_file_range_op(fuse_req_t req, fuse_ino_t from, off_t from_off,
			       struct fuse_file_info *from_fi, fuse_ino_t to, off_t to_off,
			       struct fuse_file_info *to_fi, size_t len, int flags)
{
	struct session *s = fuse_req_userdata(req);
	struct err err = {0};

	ops_count(s);
	int64_t n = upper_copy_range(UPPER(s), from, (uint64_t)from_off, to, (uint64_t)to_off, len,
				     &err);
	if (n < 0)
		fuse_reply_err(req, change_errno(CALL_WRITE, (int)n));
	else
		fuse_reply_write(req, (size_t)n);
}

/* ------------------------------------------------------------------ syncing */

static void fsync_op(fuse_req_t req, fuse_ino_t ino, int is_datasync, struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);

	ops_count(s);
	syncer_add(s->syncer, req, ino);
}

void change_add_data_ops(struct fuse_lowlevel_ops *ops)
{
	ops->write = write_op;
	ops->fallocate = fallocate_op;
	ops->copy_file_range = copy_file_range_op;
	ops->fsync = fsync_op;
	ops->fsyncdir = fsync_op;
}
