/* SPDX-License-Identifier: Apache-2.0 */

/*
 * ops: the operations table.
 *
 * Decode a request, call the tree, reply. The kernel's node ids are the tree's ids, so there is no
 * table of inodes and nothing to do for FORGET; a request means the same whenever and by whatever
 * process it is answered.
 *
 * What does not change is given to the kernel for a day: entries, attributes, links, listings and
 * the fact that a name does not exist. What is live is given for no time at all.
 *
 * Errors leave here, in ops_fail, and nowhere else. An errno that says something of the name that
 * was asked for goes to the kernel as it is; all others (the network, damaged content, a missing
 * blob, whose own -ENOENT must not look like a missing file) become EIO, and the reason is kept
 * for `status` and logged once.
 *
 * Readdir offsets: 0 is the start, 1 is after ".", 2 after "..", and from there on the tree's own
 * (never 0) plus FIRST_ENTRY - 1.
 */

#include "fs/fs-internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define FIRST_ENTRY 3
#define BLOCK 4096u

/* ------------------------------------------------------------------ errors */

/* The message of a call, as it stands before the reason: "read 0x2000000f3 at 131072". */
static void describe(const struct call *call, char *out, size_t size)
{
	static const char *const names[] = {
		[CALL_LOOKUP] = "lookup",   [CALL_GETATTR] = "getattr",
		[CALL_READDIR] = "readdir", [CALL_OPEN] = "open",
		[CALL_READ] = "read",	    [CALL_LSEEK] = "lseek",
		[CALL_CREATE] = "create",   [CALL_REMOVE] = "remove",
		[CALL_RENAME] = "rename",   [CALL_LINK] = "link",
		[CALL_SETATTR] = "setattr", [CALL_SETXATTR] = "setxattr",
		[CALL_WRITE] = "write",	    [CALL_ALLOCATE] = "fallocate",
	};

	if (call->op == CALL_LOOKUP)
		snprintf(out, size, "lookup 0x%" PRIx64 " %.16s%s", call->id, call->name,
			 call->name_len > 16 ? "…" : "");
	else if (call->op == CALL_READ)
		snprintf(out, size, "read 0x%" PRIx64 " at %" PRIu64, call->id, call->off);
	else
		snprintf(out, size, "%s 0x%" PRIx64, names[call->op], call->id);
}

/* What the kernel may see of @code. */
static int kernel_errno(int code, bool names_a_file)
{
	switch (code) {
	case -ENOENT:
	case -ENOTDIR:
		return names_a_file ? -code : EIO;
	case -ENAMETOOLONG:
	case -ESTALE: /* of a live tree: the kernel looks the name up again */
	case -EINTR:
	case -ENOMEM:
	case -ENOSPC:
		return -code;
	default:
		return EIO;
	}
}

static void fail(struct session *s, fuse_req_t req, const char *what, int e, int code,
		 const struct err *err)
{
	if (e == EIO || e == ENOSPC || e == ENOMEM)
		session_record(s, -e, what, err_text(err, code));
	fuse_reply_err(req, e);
}

void ops_fail(struct session *s, const struct call *call, int code, const struct err *err)
{
	char what[sizeof(s->errors[0].what)];
	/* A live tree's file may vanish between its lookup and any other request. */
	bool names_a_file = call->op == CALL_LOOKUP || s->tree->is_live;

	int e = call->op >= CALL_CREATE ? change_errno(call->op, code)
					: kernel_errno(code, names_a_file);

	describe(call, what, sizeof(what));
	if (call->op == CALL_READ && e == EIO)
		read_failed(s, call);
	fail(s, call->req, what, e, code, err);
}

/* The same for a request that is never parked. */
static void fail_req(struct session *s, fuse_req_t req, const char *name, uint64_t id, int code,
		     const struct err *err)
{
	char what[sizeof(s->errors[0].what)];

	snprintf(what, sizeof(what), "%s 0x%" PRIx64, name, id);
	fail(s, req, what, kernel_errno(code, s->tree->is_live), code, err);
}

/* ------------------------------------------------------------------ attributes */

static mode_t type_bits(uint8_t type)
{
	switch ((enum node_type)type) {
	case NODE_FILE:
		return S_IFREG;
	case NODE_DIR:
		return S_IFDIR;
	case NODE_SYMLINK:
		return S_IFLNK;
	case NODE_CHAR:
	case NODE_WHITEOUT: /* only raw trees show them: as overlayfs keeps them, 0:0 */
		return S_IFCHR;
	case NODE_BLOCK:
		return S_IFBLK;
	case NODE_FIFO:
		return S_IFIFO;
	case NODE_SOCKET:
		return S_IFSOCK;
	case NODE_NONE:
		break;
	}
	return 0;
}

void ops_to_stat(const struct session *s, const struct attr *a, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = a->id;
	st->st_mode = type_bits(a->type) | (a->mode & 07777);
	st->st_nlink = MAX(a->nlink, 1u);
	st->st_uid = s->options.has_uid ? s->options.uid : a->uid;
	st->st_gid = s->options.has_gid ? s->options.gid : a->gid;
	st->st_rdev = makedev(a->dev_major, a->dev_minor);
	st->st_size = (off_t)a->size;
	st->st_blksize = BLOCK;
	st->st_blocks = (blkcnt_t)(a->n_bytes_allocated / 512 + (a->n_bytes_allocated % 512 > 0));
	st->st_mtim.tv_sec = a->mtime_s;
	st->st_mtim.tv_nsec = a->mtime_ns;
	/* Layers record one time; atime is never touched in a mount without writes. */
	st->st_atim = st->st_ctim = st->st_mtim;
	if (s->options.upper)
		change_stat(s, a, st);
}

static double timeout_of(const struct attr *a)
{
	return a->is_live ? 0 : FOREVER_S;
}

void ops_to_entry(const struct session *s, const struct attr *a, struct fuse_entry_param *e)
{
	memset(e, 0, sizeof(*e));
	e->ino = a->id;
	e->attr_timeout = e->entry_timeout = timeout_of(a);
	ops_to_stat(s, a, &e->attr);
}

/* ------------------------------------------------------------------ lookup and getattr */

static int parent_of(struct session *s, uint64_t dir, uint64_t *out, struct err *err)
{
	scoped(strbuf_free) struct strbuf name = {0};

	return tree_parent(s->tree, dir, out, &name, err);
}

/* "." and ".." come only to bring a file handle (open_by_handle_at, NFS) back to life. */
static int find(struct session *s, struct parked *p, struct attr *a, struct err *err)
{
	const struct call *c = &p->call;
	uint64_t id = c->id;

	if (c->name[0] != '.' || (strcmp(c->name, ".") != 0 && strcmp(c->name, "..") != 0))
		return tree_lookup(s->tree, id, c->name, c->name_len, a, &p->wait, err);
	if (c->name[1] == '.') {
		int r = parent_of(s, id, &id, err);
		if (r < 0)
			return r;
	}
	return tree_getattr(s->tree, id, a, &p->wait, err);
}

static int lookup_attempt(struct session *s, struct parked *p, struct err *err)
{
	struct fuse_entry_param e;
	struct attr a;

	int r = find(s, p, &a, err);
	if (r == -ENOENT && !s->tree->is_live) {
		/* An entry without a node: the kernel remembers that there is nothing. */
		memset(&e, 0, sizeof(e));
		e.entry_timeout = FOREVER_S;
	} else if (r < 0) {
		return r;
	} else {
		ops_to_entry(s, &a, &e);
		change_seen(s, a.id, p->call.id, p->call.name, p->call.name_len);
	}
	if (fuse_reply_entry(p->call.req, &e) == -ENOENT && r == 0)
		change_unseen(s, a.id, 1);
	return 0;
}

static int getattr_attempt(struct session *s, struct parked *p, struct err *err)
{
	struct stat st;
	struct attr a;

	int r = tree_getattr(s->tree, p->call.id, &a, &p->wait, err);
	if (r < 0)
		return r;
	ops_to_stat(s, &a, &st);
	fuse_reply_attr(p->call.req, &st, timeout_of(&a));
	if (p->call.id == TREE_ROOT)
		session_root_answered(s);
	return 0;
}

static void lookup_op(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct call call = {.op = CALL_LOOKUP, .req = req, .id = parent};

	call.name_len = strlen(name);
	if (call.name_len > NAME_MAX) {
		ops_count(fuse_req_userdata(req));
		fuse_reply_err(req, ENAMETOOLONG);
		return;
	}
	memcpy(call.name, name, call.name_len + 1);
	ops_start(&call);
}

static void getattr_op(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	ops_start(&(struct call){.op = CALL_GETATTR, .req = req, .id = ino});
}

/* ------------------------------------------------------------------ readdir */

struct listing {
	struct session *s;
	struct parked *p;
	size_t size, used;
};

/* Returns false when it does not fit. */
static bool add_entry(struct listing *l, const char *name, const struct fuse_entry_param *e,
		      uint64_t next)
{
	size_t n = fuse_add_direntry_plus(l->p->call.req, l->p->buf + l->used, l->size - l->used,
					  name, e, (off_t)next);

	if (n > l->size - l->used)
		return false;
	l->used += n;
	return true;
}

static int list_one(void *arg, const char *name, size_t len, const struct attr *attr, uint64_t next)
{
	struct listing *l = arg;
	struct fuse_entry_param e;
	char text[NAME_MAX + 1];

	if (len > NAME_MAX)
		return -ENAMETOOLONG;
	memcpy(text, name, len);
	text[len] = '\0';
	ops_to_entry(l->s, attr, &e);
	if (!add_entry(l, text, &e, next + FIRST_ENTRY - 1))
		return 1;
	change_seen(l->s, attr->id, l->p->call.id, name, len);
	return 0;
}

/* No node id: these two are not looked up, only named. */
static bool add_dot(struct listing *l, const char *name, uint64_t id, uint64_t next)
{
	struct fuse_entry_param e = {0};

	e.attr.st_ino = id;
	e.attr.st_mode = S_IFDIR;
	return add_entry(l, name, &e, next);
}

static int readdir_attempt(struct session *s, struct parked *p, struct err *err)
{
	struct listing l = {.s = s, .p = p, .size = MIN(p->call.size, (size_t)REPLY_MAX)};
	uint64_t off = p->call.off;
	uint64_t parent;
	int r = 0;

	if (off == 0 && add_dot(&l, ".", p->call.id, 1))
		off = 1;
	if (off == 1) {
		r = parent_of(s, p->call.id, &parent, err);
		if (r < 0)
			return r;
		if (add_dot(&l, "..", parent, 2))
			off = 2;
	}
	if (off >= 2) {
		uint64_t from = off < FIRST_ENTRY ? 0 : off - (FIRST_ENTRY - 1);
		r = tree_list(s->tree, p->call.id, from, list_one, &l, &p->wait, err);
	}
	if (r < 0)
		return r;
	fuse_reply_buf(p->call.req, p->buf, l.used);
	return 0;
}

static void readdirplus_op(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			   struct fuse_file_info *fi)
{
	ops_start(&(struct call){
		.op = CALL_READDIR, .req = req, .id = ino, .off = (uint64_t)off, .size = size});
}

/* ------------------------------------------------------------------ what never waits */

static void readlink_op(fuse_req_t req, fuse_ino_t ino)
{
	struct session *s = fuse_req_userdata(req);
	scoped(strbuf_free) struct strbuf target = {0};
	struct err err = {0};

	ops_count(s);
	int r = tree_readlink(s->tree, ino, &target, &err);
	if (r == 0 && target.failed)
		r = -ENOMEM;
	if (r < 0)
		fail_req(s, req, "readlink", ino, r, &err);
	else
		fuse_reply_readlink(req, target.data ? target.data : "");
}

struct xattr_query {
	const char *name; /* NULL: names are gathered */
	struct strbuf found;
	bool is_found;
};

static int xattr_one(void *arg, const char *name, const void *value, size_t len)
{
	struct xattr_query *q = arg;

	if (!q->name) {
		strbuf_add(&q->found, name, strlen(name) + 1);
		return 0;
	}
	if (strcmp(name, q->name) != 0)
		return 0;
	strbuf_add(&q->found, value, len);
	q->is_found = true;
	return 1;
}

/* Both xattr calls answer alike: size 0 asks how much there is. */
static void reply_xattr(struct session *s, fuse_req_t req, fuse_ino_t ino, const char *name,
			size_t size)
{
	struct xattr_query q = {.name = name};
	struct err err = {0};

	ops_count(s);
	int r = tree_xattrs(s->tree, ino, xattr_one, &q, &err);
	if (r >= 0 && q.found.failed)
		r = -ENOMEM;
	if (r < 0)
		fail_req(s, req, name ? "getxattr" : "listxattr", ino, r, &err);
	else if (name && !q.is_found)
		fuse_reply_err(req, ENODATA);
	else if (size == 0)
		fuse_reply_xattr(req, q.found.len);
	else if (q.found.len > size)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, q.found.data, q.found.len);
	strbuf_free(&q.found);
}

static void getxattr_op(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	reply_xattr(fuse_req_userdata(req), req, ino, name, size);
}

static void listxattr_op(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	reply_xattr(fuse_req_userdata(req), req, ino, NULL, size);
}

/* How large a tree is would take a look at all of it, and df must work with the network gone. */
static void statfs_op(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st = {.f_bsize = BLOCK, .f_frsize = BLOCK, .f_namemax = NAME_MAX};
	struct session *s = fuse_req_userdata(req);

	ops_count(s);
	if (s->options.upper) /* what can be written is another matter */
		upper_statfs(s->options.upper, &st);
	fuse_reply_statfs(req, &st);
}

/* Ids are stateless: but for an upper's, nothing was remembered, so nothing is to be forgotten. */
static void forget_op(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	change_unseen(fuse_req_userdata(req), ino, nlookup);
	fuse_reply_none(req);
}

static void forget_multi_op(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		change_unseen(fuse_req_userdata(req), forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

/* ------------------------------------------------------------------ attempts */

void ops_count(struct session *s)
{
	atomic_fetch_add_explicit(&s->n_requests, 1, memory_order_relaxed);
}

static int attempt(struct session *s, struct parked *p, struct err *err)
{
	switch (p->call.op) {
	case CALL_LOOKUP:
		return lookup_attempt(s, p, err);
	case CALL_GETATTR:
		return getattr_attempt(s, p, err);
	case CALL_READDIR:
		return readdir_attempt(s, p, err);
	case CALL_OPEN:
		return open_attempt(s, p, err);
	case CALL_LSEEK:
		return lseek_attempt(s, p, err);
	case CALL_READ:
		return read_attempt(s, p, err);
	case CALL_CREATE:
	case CALL_REMOVE:
	case CALL_RENAME:
	case CALL_LINK:
	case CALL_SETATTR:
	case CALL_SETXATTR:
		return change_attempt(s, p, err);
	case CALL_WRITE:
	case CALL_ALLOCATE:
		return change_data_attempt(s, p, err);
	}
	return -ENOSYS;
}

bool ops_attempt(struct session *s, struct parked *p)
{
	struct err err;

	err.code = 0;
	err.text[0] = '\0';
	parked_lend(p);
	int r = attempt(s, p, &err);
	if (r == -EAGAIN || r == -EINPROGRESS) {
		parked_park(p);
		return true;
	}
	parked_unlend(p);
	if (r < 0 && p->call.op == CALL_GETATTR && p->call.id == TREE_ROOT &&
	    session_root_failed(s, r, &err))
		fuse_reply_err(p->call.req, EIO);
	else if (r < 0)
		ops_fail(s, &p->call, r, &err);
	return false;
}

struct parked *ops_take(const struct call *call)
{
	struct session *s = fuse_req_userdata(call->req);

	ops_count(s);
	if (!s->spare)
		s->spare = parked_get(s->lot);
	if (!s->spare)
		ops_fail(s, call, -ENOMEM, NULL);
	else /* The tail of the name is not worth copying. */
		memcpy(&s->spare->call, call, offsetof(struct call, name) + call->name_len + 1);
	return s->spare;
}

void ops_go(struct parked *p)
{
	struct session *s = fuse_req_userdata(p->call.req);

	if (ops_attempt(s, p))
		s->spare = NULL;
}

void ops_start(const struct call *call)
{
	struct parked *p = ops_take(call);

	if (p)
		ops_go(p);
}

const struct fuse_lowlevel_ops ops_table = {
	.init = init_op,
	.lookup = lookup_op,
	.forget = forget_op,
	.forget_multi = forget_multi_op,
	.getattr = getattr_op,
	.readlink = readlink_op,
	.open = open_op,
	.read = read_op,
	.release = release_op,
	.opendir = opendir_op,
	.readdirplus = readdirplus_op,
	.statfs = statfs_op,
	.getxattr = getxattr_op,
	.listxattr = listxattr_op,
	.lseek = lseek_op,
};
