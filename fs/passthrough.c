/* SPDX-License-Identifier: Apache-2.0 */

/*
 * passthrough: what the answer to OPEN is, and files that the kernel reads by itself.
 *
 * There are two fast ways to a file's bytes and a mount can have only one of them:
 *	no-open		OPEN is answered ENOSYS, once; from then on the kernel opens and closes
 *			files of this mount without a word and keeps their pages. Fastest for
 *			small files.
 *	passthrough	each OPEN of a large file that is all here hands the kernel a descriptor
 *			of its flat copy, and READs no longer exist: as fast as the file below,
 *			mmap too. But each open and release of any file is then a request.
 * DATA_AUTO is decided at the first OPEN, by the caller's wants_passthrough and by trying whether
 * the kernel takes a backing file from this process (it asks for CAP_SYS_ADMIN in the initial user
 * namespace). Where it does not, no-open is what is left, and data_reason says so.
 *
 * The kernel requires that all opens of an inode that are alive at once use the same way and the
 * same backing file, or the open fails with EIO. So while an inode is open it is in a small table
 * with its count of opens and its backing id (0: by READ): a file that becomes complete while it is
 * open stays with READ until its last release. Files under PASSTHROUGH_MIN never pass and need no
 * entry; fh of an OPEN tells RELEASE which of the two it was.
 *
 * libfuse before 3.17 knows nothing of this: init.c agrees on it with the kernel, the ioctls go to
 * the session's descriptor, and the answer to OPEN, whose last word is the backing id, is made by
 * hand.
 */

#include "fs/fs-internal.h"

#include <inttypes.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* From protocol 7.40; headers of Debian 12 end at 7.38. */
#ifndef FOPEN_PASSTHROUGH
#define FOPEN_PASSTHROUGH (1 << 7)
struct fuse_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
#endif
/* fuse_open_out as of 7.40. */
struct open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};
_Static_assert(sizeof(struct open_out) == sizeof(struct fuse_open_out), "the kernel's layout");

/* fh of an OPEN */
enum { FH_PLAIN = 0, FH_IN_TABLE = 1 };

struct open_inode {
	LIST_ENTRY(open_inode) link;
	uint64_t id;
	uint64_t n_opens;
	int32_t backing_id; /* 0: by READ */
};

void passthrough_init(struct passthrough *pt)
{
	pthread_mutex_init(&pt->lock, NULL);
	for (size_t i = 0; i < OPEN_BUCKETS; i++)
		LIST_INIT(&pt->table[i]);
}

void passthrough_deinit(struct passthrough *pt)
{
	for (size_t i = 0; i < OPEN_BUCKETS; i++) {
		struct open_inode *o;
		while ((o = LIST_FIRST(&pt->table[i]))) {
			LIST_REMOVE(o, link);
			free(o);
		}
	}
	pthread_mutex_destroy(&pt->lock);
}

/* ------------------------------------------------------------------ backing files */

/* A backing id (> 0) or a negative errno. */
static int32_t backing_open(const struct session *s, int fd)
{
	struct fuse_backing_map map = {.fd = fd};
	int id = ioctl(s->fd, FUSE_DEV_IOC_BACKING_OPEN, &map);

	return id < 0 ? -errno : id;
}

static void backing_close(const struct session *s, int32_t id)
{
	uint32_t backing_id = (uint32_t)id;

	if (id > 0)
		ioctl(s->fd, FUSE_DEV_IOC_BACKING_CLOSE, &backing_id);
}

/* True when this process may give the kernel backing files; else says why not. */
static bool probe(struct session *s, struct err *err)
{
	if (!s->init.has_passthrough) {
		err_set(err, -ENOTSUP, "the kernel has no FUSE passthrough (it came with 6.9)");
		return false;
	}
	scoped(close_fd) int fd = memfd_create("passthrough", MFD_CLOEXEC);
	if (fd < 0) {
		err_errno(err, "memfd_create");
		return false;
	}
	int32_t id = backing_open(s, fd);
	if (id == -EPERM)
		err_set(err, id,
			"the kernel takes backing files only from a process with "
			"CAP_SYS_ADMIN in the first user namespace");
	else if (id < 0)
		err_set(err, id, "the kernel takes no backing file: %s", strerror(-id));
	backing_close(s, id);
	return id > 0;
}

/* Gives the kernel the flat copy of @id. 0: there is none, or it would not take it. */
static int32_t try_backing(struct session *s, uint64_t id)
{
	struct passthrough *pt = &s->passthrough;
	scoped(close_fd) int fd = -1;

	if (atomic_load(&pt->is_broken) || tree_open_flat(s->tree, id, true, &fd, NULL) < 0)
		return 0;
	int32_t backing_id = backing_open(s, fd);
	if (backing_id > 0)
		return backing_id;
	if (backing_id != -ENOMEM && backing_id != -ENFILE && backing_id != -EMFILE &&
	    !atomic_exchange(&pt->is_broken, true)) {
		/* Will be so for all files of the store, e.g. ELOOP where it lies on overlayfs. */
		char why[100];
		snprintf(why, sizeof(why), "read by READ: the kernel refused the store's files: %s",
			 strerror(-backing_id));
		session_set_data(s, DATA_PASSTHROUGH, why);
	}
	return 0;
}

/* ------------------------------------------------------------------ the table of open inodes */

/* With the lock. */
static struct open_inode *table_find(struct passthrough *pt, uint64_t id)
{
	struct open_inode *o;

	LIST_FOREACH (o, &pt->table[id % OPEN_BUCKETS], link)
		if (o->id == id)
			return o;
	return NULL;
}

/* True and the backing id when @id is open already; counts one more open. */
static bool table_join(struct session *s, uint64_t id, int32_t *backing_id)
{
	struct passthrough *pt = &s->passthrough;
	pthread_mutex_lock(&pt->lock);
	struct open_inode *o = table_find(pt, id);
	if (o) {
		o->n_opens++;
		*backing_id = o->backing_id;
	}
	pthread_mutex_unlock(&pt->lock);
	return o != NULL;
}

/* Counts an open of @id with *backing_id; where somebody was faster, with theirs. */
static int table_open(struct session *s, uint64_t id, int32_t *backing_id)
{
	struct passthrough *pt = &s->passthrough;
	int32_t surplus = 0;
	struct open_inode *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	pthread_mutex_lock(&pt->lock);
	struct open_inode *old = table_find(pt, id);
	if (old) {
		old->n_opens++;
		surplus = *backing_id;
		*backing_id = old->backing_id;
	} else {
		o->id = id;
		o->n_opens = 1;
		o->backing_id = *backing_id;
		LIST_INSERT_HEAD(&pt->table[id % OPEN_BUCKETS], o, link);
	}
	pthread_mutex_unlock(&pt->lock);
	if (old)
		free(o);
	backing_close(s, surplus);
	return 0;
}

static void table_release(struct session *s, uint64_t id)
{
	struct passthrough *pt = &s->passthrough;
	pthread_mutex_lock(&pt->lock);
	struct open_inode *o = table_find(pt, id);
	bool is_last = o && --o->n_opens == 0;
	if (is_last)
		LIST_REMOVE(o, link);
	pthread_mutex_unlock(&pt->lock);
	if (!is_last)
		return;
	backing_close(s, o->backing_id);
	free(o);
}

/* ------------------------------------------------------------------ OPEN and RELEASE */

/* Only the reading thread comes here, so that there is one first time. */
static enum data_mode decide(struct session *s)
{
	enum data_mode data = atomic_load_explicit(&s->data, memory_order_relaxed);
	struct err err;

	if (data != DATA_AUTO)
		return data;
	bool is_asked = s->options.data == DATA_PASSTHROUGH;
	if (!is_asked &&
	    !(s->options.wants_passthrough && s->options.wants_passthrough(s->options.arg))) {
		session_set_data(s, DATA_NOOPEN, "chosen for what the tree holds");
		return DATA_NOOPEN;
	}
	if (probe(s, &err)) {
		session_set_data(s, DATA_PASSTHROUGH,
				 is_asked ? "asked for" : "chosen for what the tree holds");
		return DATA_PASSTHROUGH;
	}
	session_set_data(s, DATA_NOOPEN, err.text);
	return DATA_NOOPEN;
}

static void reply_open(fuse_req_t req, bool keeps_cache)
{
	struct fuse_file_info fi = {.fh = FH_PLAIN, .keep_cache = keeps_cache};

	fuse_reply_open(req, &fi);
}

/* A large file of a passthrough mount. */
static int reply_open_large(struct session *s, fuse_req_t req, uint64_t id)
{
	struct open_out out = {.fh = FH_IN_TABLE};

	if (!table_join(s, id, &out.backing_id)) {
		out.backing_id = try_backing(s, id);
		int r = table_open(s, id, &out.backing_id);
		if (r < 0) {
			backing_close(s, out.backing_id);
			return r;
		}
	}
	out.open_flags = out.backing_id ? FOPEN_PASSTHROUGH : FOPEN_KEEP_CACHE;
	if (out.backing_id)
		atomic_fetch_add_explicit(&s->n_passthrough, 1, memory_order_relaxed);
	if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) == -ENOENT)
		table_release(s, id); /* interrupted: no RELEASE will come */
	return 0;
}

int open_attempt(struct session *s, struct parked *p, struct err *err)
{
	struct attr a;

	int r = tree_getattr(s->tree, p->call.id, &a, &p->wait, err);
	if (r < 0)
		return r;
	enum data_mode data = atomic_load_explicit(&s->data, memory_order_relaxed);
	if (data == DATA_PASSTHROUGH && !a.is_live && a.size >= PASSTHROUGH_MIN)
		return reply_open_large(s, p->call.req, p->call.id);
	reply_open(p->call.req, !a.is_live);
	return 0;
}

void open_op(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);
	enum data_mode data = decide(s);

	if (data == DATA_NOOPEN) {
		ops_count(s);
		fuse_reply_err(req, ENOSYS);
	} else if (data == DATA_OPEN && !s->tree->is_live) {
		ops_count(s);
		reply_open(req, true);
	} else {
		ops_start(&(struct call){.op = CALL_OPEN, .req = req, .id = ino});
	}
}

void release_op(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);

	ops_count(s);
	if (fi->fh == FH_IN_TABLE)
		table_release(s, ino);
	fuse_reply_err(req, 0);
}

/* Folders have no two ways: where nothing changes, the kernel keeps listings and never asks again. */
void opendir_op(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);

	ops_count(s);
	if (s->tree->is_live)
		reply_open(req, false);
	else
		fuse_reply_err(req, ENOSYS);
}
