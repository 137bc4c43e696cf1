/* SPDX-License-Identifier: Apache-2.0 */

/*
 * change: requests that change names and attributes, of mounts with an upper.
 *
 * They go the same way as those that look: decode, call the upper, reply, and where the tree below
 * says "later", be parked and tried again. What a request brings beside its first name is copied
 * into its buffer, which no reply here needs.
 *
 * The kernel is the only one who changes the mount, so what it was told stays good: it knows itself
 * what its requests mean for its caches. It checks permissions (default_permissions), strips
 * setgid where that is a matter of groups, and keeps locks (flock, fcntl) by itself. With
 * KILLPRIV_V2 it says when a write or a truncation has to take setuid and capabilities away; a
 * change of owner always does, and comes as a SETATTR without any attribute where the owner stays.
 *
 * An unnamed file (O_TMPFILE) is a CREATE of the name "/": see init.c.
 */

#include "fs/fs-internal.h"

#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define UPPER(s) ((s)->options.upper)

/* ------------------------------------------------------------------ what ops.c asks for */

void change_stat(const struct session *s, const struct attr *a, struct stat *st)
{
	struct upper_times times;

	if (!upper_times(UPPER(s), a->id, &times))
		return;
	st->st_nlink = a->nlink;
	st->st_atim = times.atime;
	st->st_mtim = times.mtime;
	st->st_ctim = times.ctime;
}

void change_seen(struct session *s, uint64_t id, uint64_t dir, const char *name, size_t len)
{
	bool is_dots = len && name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.'));

	if (UPPER(s))
		upper_seen(UPPER(s), id, dir, name, is_dots ? 0 : len);
}

void change_unseen(struct session *s, uint64_t id, uint64_t n)
{
	if (UPPER(s))
		upper_forget(UPPER(s), id, n);
}

int change_errno(enum call_op op, int code)
{
	switch (code) {
	case -ENOENT: /* of content it is a blob that is missing */
		return op == CALL_WRITE || op == CALL_ALLOCATE ? EIO : ENOENT;
	case -EEXIST:
	case -ENOTDIR:
	case -EISDIR:
	case -ENOTEMPTY:
	case -EINVAL:
	case -EPERM:
	case -EACCES:
	case -ENODATA:
	case -EFBIG:
	case -ENOSPC:
	case -EDQUOT:
	case -EMLINK:
	case -EOPNOTSUPP:
	case -ERANGE:
	case -E2BIG:
	case -ENAMETOOLONG:
	case -ESTALE:
	case -EINTR:
	case -ENOMEM:
		return -code;
	default:
		return EIO;
	}
}

void change_start(const struct call *call, const char *text, const void *value, size_t n)
{
	size_t text_len = text ? strlen(text) + 1 : 0;

	if (n > REPLY_MAX - text_len) {
		ops_count(fuse_req_userdata(call->req));
		fuse_reply_err(call->req, E2BIG);
		return;
	}
	struct parked *p = ops_take(call);
	if (!p)
		return;
	p->call.w = call->w;
	if (text) {
		memcpy(p->buf, text, text_len);
		p->call.w.text = p->buf;
	}
	if (value) {
		memcpy(p->buf + text_len, value, n);
		p->call.w.value = p->buf + text_len;
		p->call.size = n;
	}
	ops_go(p);
}

/* False when the name is too long, which is answered. */
static bool set_name(struct call *call, const char *name)
{
	call->name_len = strlen(name);
	if (call->name_len > NAME_MAX) {
		ops_count(fuse_req_userdata(call->req));
		fuse_reply_err(call->req, ENAMETOOLONG);
		return false;
	}
	memcpy(call->name, name, call->name_len + 1);
	return true;
}

/* ------------------------------------------------------------------ making */

static void reply_entry(struct session *s, const struct call *c, const struct attr *a, uint64_t dir,
			const char *name)
{
	struct fuse_file_info fi = {.keep_cache = 1};
	struct fuse_entry_param e;

	ops_to_entry(s, a, &e);
	change_seen(s, a->id, dir, name, strlen(name));
	int r = c->op == CALL_CREATE && c->w.opens ? fuse_reply_create(c->req, &e, &fi)
						   : fuse_reply_entry(c->req, &e);
	if (r == -ENOENT) /* interrupted: the kernel does not know it */
		change_unseen(s, a->id, 1);
}

static int create_attempt(struct session *s, struct parked *p, struct err *err)
{
	struct call *c = &p->call;
	struct attr a;
	int r;

	c->w.make.target = c->w.text;
	if (strcmp(c->name, "/") == 0)
		r = upper_create_tmp(UPPER(s), c->id, &c->w.make, &a, &p->wait, err);
	else
		r = upper_create(UPPER(s), c->id, c->name, c->name_len, &c->w.make, &a, &p->wait,
				 err);
	if (r == 0)
		reply_entry(s, c, &a, c->id, strcmp(c->name, "/") == 0 ? "" : c->name);
	return r;
}

static void start_create(fuse_req_t req, fuse_ino_t dir, const char *name, uint8_t type,
			 mode_t mode, dev_t dev, const char *target, bool opens)
{
	const struct fuse_ctx *who = fuse_req_ctx(req);
	struct call call = {.op = CALL_CREATE, .req = req, .id = dir};

	call.w.opens = opens;
	call.w.make = (struct upper_make){.type = type,
					  .mode = mode & 07777,
					  .uid = who->uid,
					  .gid = who->gid,
					  .umask = who->umask,
					  .dev_major = major(dev),
					  .dev_minor = minor(dev)};
	if (set_name(&call, name))
		change_start(&call, target, NULL, 0);
}

static uint8_t node_type(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFCHR:
		return NODE_CHAR;
	case S_IFBLK:
		return NODE_BLOCK;
	case S_IFIFO:
		return NODE_FIFO;
	case S_IFSOCK:
		return NODE_SOCKET;
	default:
		return NODE_FILE;
	}
}

static void mknod_op(fuse_req_t req, fuse_ino_t dir, const char *name, mode_t mode, dev_t dev)
{
	start_create(req, dir, name, node_type(mode), mode, dev, NULL, false);
}

static void mkdir_op(fuse_req_t req, fuse_ino_t dir, const char *name, mode_t mode)
{
	start_create(req, dir, name, NODE_DIR, mode, 0, NULL, false);
}

static void symlink_op(fuse_req_t req, const char *target, fuse_ino_t dir, const char *name)
{
	start_create(req, dir, name, NODE_SYMLINK, 0777, 0, target, false);
}

static void create_op(fuse_req_t req, fuse_ino_t dir, const char *name, mode_t mode,
		      struct fuse_file_info *fi)
{
	start_create(req, dir, name, NODE_FILE, mode, 0, NULL, true);
}

static int link_attempt(struct session *s, struct parked *p, struct err *err)
{
	const struct call *c = &p->call;
	struct attr a;

	int r = upper_link(UPPER(s), c->id, c->w.to, c->name, c->name_len, &a, &p->wait, err);
	if (r == 0)
		reply_entry(s, c, &a, c->w.to, c->name);
	return r;
}

static void link_op(fuse_req_t req, fuse_ino_t ino, fuse_ino_t dir, const char *name)
{
	struct call call = {.op = CALL_LINK, .req = req, .id = ino};

	call.w.to = dir;
	if (set_name(&call, name))
		change_start(&call, NULL, NULL, 0);
}

/* ------------------------------------------------------------------ removing and renaming */

static int remove_attempt(struct session *s, struct parked *p, struct err *err)
{
	const struct call *c = &p->call;

	int r = upper_remove(UPPER(s), c->id, c->name, c->name_len, c->w.is_dir, &p->wait, err);
	if (r == 0)
		fuse_reply_err(c->req, 0);
	return r;
}

static void start_remove(fuse_req_t req, fuse_ino_t dir, const char *name, bool is_dir)
{
	struct call call = {.op = CALL_REMOVE, .req = req, .id = dir};

	call.w.is_dir = is_dir;
	if (set_name(&call, name))
		change_start(&call, NULL, NULL, 0);
}

static void unlink_op(fuse_req_t req, fuse_ino_t dir, const char *name)
{
	start_remove(req, dir, name, false);
}

static void rmdir_op(fuse_req_t req, fuse_ino_t dir, const char *name)
{
	start_remove(req, dir, name, true);
}

static int rename_attempt(struct session *s, struct parked *p, struct err *err)
{
	const struct call *c = &p->call;
	const struct upper_name from = {c->id, c->name, c->name_len};
	const struct upper_name to = {c->w.to, c->w.text, strlen(c->w.text)};

	int r = upper_rename(UPPER(s), &from, &to, (unsigned)c->w.flags, &p->wait, err);
	if (r == 0)
		fuse_reply_err(c->req, 0);
	return r;
}

static void rename_op(fuse_req_t req, fuse_ino_t dir, const char *name, fuse_ino_t to,
		      const char *to_name, unsigned flags)
{
	struct call call = {.op = CALL_RENAME, .req = req, .id = dir};

	call.w.to = to;
	call.w.flags = (int)flags;
	if (set_name(&call, name))
		change_start(&call, to_name, NULL, 0);
}

/* ------------------------------------------------------------------ attributes */

static int setattr_attempt(struct session *s, struct parked *p, struct err *err)
{
	const struct call *c = &p->call;
	struct stat st;
	struct attr a;

	int r = upper_set(UPPER(s), c->id, &c->w.set, &a, &p->wait, err);
	if (r < 0)
		return r;
	ops_to_stat(s, &a, &st);
	fuse_reply_attr(c->req, &st, a.is_live ? 0 : FOREVER_S);
	return 0;
}

static void setattr_op(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		       struct fuse_file_info *fi)
{
	static const struct {
		int fuse;
		unsigned upper;
	} map[] = {
		{FUSE_SET_ATTR_MODE, UPPER_MODE},	{FUSE_SET_ATTR_UID, UPPER_UID},
		{FUSE_SET_ATTR_GID, UPPER_GID},		{FUSE_SET_ATTR_SIZE, UPPER_SIZE},
		{FUSE_SET_ATTR_ATIME, UPPER_ATIME},	{FUSE_SET_ATTR_MTIME, UPPER_MTIME},
		{FUSE_SET_ATTR_ATIME_NOW, UPPER_ATIME}, {FUSE_SET_ATTR_MTIME_NOW, UPPER_MTIME},
	};
	struct session *s = fuse_req_userdata(req);
	struct call call = {.op = CALL_SETATTR, .req = req, .id = ino};
	struct upper_set *set = &call.w.set;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	*set = (struct upper_set){.mode = attr->st_mode & 07777,
				  .uid = attr->st_uid,
				  .gid = attr->st_gid,
				  .size = (uint64_t)attr->st_size};
	for (size_t i = 0; i < countof(map); i++)
		if (to_set & map[i].fuse)
			set->what |= map[i].upper;
	set->atime = to_set & FUSE_SET_ATTR_ATIME_NOW ? now : attr->st_atim;
	set->mtime = to_set & FUSE_SET_ATTR_MTIME_NOW ? now : attr->st_mtim;
	if (!set->what || (set->what & (UPPER_UID | UPPER_GID)) || s->init.kills_suid)
		set->what |= UPPER_KILL;
	change_start(&call, NULL, NULL, 0);
}

static int setxattr_attempt(struct session *s, struct parked *p, struct err *err)
{
	const struct call *c = &p->call;

	int r = upper_set_xattr(UPPER(s), c->id, c->w.text, c->w.value, c->size, c->w.flags,
				&p->wait, err);
	if (r == 0)
		fuse_reply_err(c->req, 0);
	return r;
}

static void setxattr_op(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
			size_t size, int flags)
{
	struct call call = {.op = CALL_SETXATTR, .req = req, .id = ino};

	call.w.flags = flags;
	change_start(&call, name, value, size);
}

static void removexattr_op(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	change_start(&(struct call){.op = CALL_SETXATTR, .req = req, .id = ino}, name, NULL, 0);
}

int change_attempt(struct session *s, struct parked *p, struct err *err)
{
	static int (*const attempts[])(struct session * s, struct parked * p, struct err * err) = {
		[CALL_CREATE] = create_attempt,	  [CALL_REMOVE] = remove_attempt,
		[CALL_RENAME] = rename_attempt,	  [CALL_LINK] = link_attempt,
		[CALL_SETATTR] = setattr_attempt, [CALL_SETXATTR] = setxattr_attempt,
	};

	return attempts[p->call.op](s, p, err);
}

void change_add_ops(struct fuse_lowlevel_ops *ops)
{
	ops->mknod = mknod_op;
	ops->mkdir = mkdir_op;
	ops->symlink = symlink_op;
	ops->create = create_op;
	ops->link = link_op;
	ops->unlink = unlink_op;
	ops->rmdir = rmdir_op;
	ops->rename = rename_op;
	ops->setattr = setattr_op;
	ops->setxattr = setxattr_op;
	ops->removexattr = removexattr_op;
	change_add_data_ops(ops);
}
