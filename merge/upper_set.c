/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_set: attributes and xattrs.
 *
 * An inode of the tree below shows its xattrs there until one of them changes; then it gets all of
 * them, as they are, and from then on those count. What taking setuid away means also concerns
 * capabilities, which are an xattr.
 */

#include "merge/upper-internal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define CAPS "security.capability"

/* ------------------------------------------------------------------ attributes */

static bool kills(struct upper_inode *i)
{
	uint32_t old = i->mode;

	i->mode &= ~(uint32_t)S_ISUID;
	if (i->mode & S_IXGRP)
		i->mode &= ~(uint32_t)S_ISGID;
	return i->mode != old;
}

struct xattr_span {
	size_t name, value, len;
};
struct xattr_copy {
	struct strbuf names, values;
	vec(struct xattr_span) items;
};

static void xattr_copy_deinit(struct xattr_copy *c)
{
	strbuf_free(&c->names);
	strbuf_free(&c->values);
	vec_free(&c->items);
}

static int xattr_copy_one(void *arg, const char *name, const void *value, size_t len)
{
	struct xattr_copy *c = arg;
	struct xattr_span *s = vec_push(&c->items);

	if (!s)
		return -ENOMEM;
	*s = (struct xattr_span){c->names.len, c->values.len, len};
	strbuf_add(&c->names, name, strlen(name) + 1);
	strbuf_add(&c->values, value, len);
	return c->names.failed || c->values.failed ? -ENOMEM : 0;
}

/* Gives an inode xattrs of its own: those of the tree below, as they are. Called without the lock;
 * 0: it is held. */
static int hold_xattrs(struct upper *u, uint64_t id, struct upper_node **out,
		       struct tree_wait *wait, struct err *err)
{
	struct xattr_copy c = {0};

	int r = upper_hold(u, id, out, wait, err);
	if (r < 0 || (*out)->i.has_xattrs)
		return r;
	uint64_t below = (*out)->below;
	pthread_mutex_unlock(&u->lock);
	if (below)
		r = tree_xattrs(u->below, below, xattr_copy_one, &c, err);
	if (r == 0)
		r = upper_hold(u, id, out, wait, err);
	if (r == 0 && !(*out)->i.has_xattrs) {
		struct upper_inode i = (*out)->i;
		i.has_xattrs = true;
		upper_put_inode(u, *out, &i);
		for (size_t k = 0; k < c.items.n; k++)
			upper_put_xattr(u, (*out)->ino, c.names.data + c.items.items[k].name,
					c.values.data ? c.values.data + c.items.items[k].value : "",
					c.items.items[k].len);
		r = upper_commit(u, !(*out)->is_orphan, err);
		if (r < 0)
			pthread_mutex_unlock(&u->lock);
	}
	xattr_copy_deinit(&c);
	return r;
}

static int has_name(void *arg, const char *name, const void *value, size_t len)
{
	return strcmp(name, arg) == 0 ? 1 : 0;
}

/* 1 when the inode has capabilities, or an ACL, be it here or below. */
static int has_xattr(struct upper *u, uint64_t id, const char *name, struct err *err)
{
	pthread_mutex_lock(&u->lock);
	const struct upper_node *n = upper_by_id(u, id);
	uint64_t below = n ? n->below : upper_is_new(u, id) ? 0 : id;
	bool is_own = n && n->i.has_xattrs;
	int r = is_own && upper_xattr_find(n, name) ? 1 : 0;
	pthread_mutex_unlock(&u->lock);
	if (is_own || !below)
		return r;
	return tree_xattrs(u->below, below, has_name, (void *)name, err);
}

int upper_own_default_acl(struct upper *u, uint64_t dir, struct tree_wait *wait, struct err *err)
{
	struct upper_node *n;

	int r = has_xattr(u, dir, ACL_DEFAULT, err);
	if (r <= 0)
		return r;
	r = hold_xattrs(u, dir, &n, wait, err);
	if (r == 0)
		pthread_mutex_unlock(&u->lock);
	return r;
}

/* Puts an ACL that follows the new mode into the record. */
static int put_chmod_acl(struct upper *u, const struct upper_node *n, uint32_t mode)
{
	const struct upper_xattr *x = upper_xattr_find(n, ACL_ACCESS);
	scoped(free) void *acl = x ? malloc(MAX(x->len, (size_t)1)) : NULL;

	if (!x)
		return 0;
	if (!acl)
		return -ENOMEM;
	memcpy(acl, x->value, x->len);
	int r = upper_acl_chmod(acl, x->len, mode);
	if (r == 0)
		upper_put_xattr(u, n->ino, ACL_ACCESS, acl, x->len);
	return r;
}

/* Times of content that is here are the host's. */
static int set_host_times(struct upper *u, struct upper_node *n, const struct upper_set *set)
{
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, set->mtime};

	if (!(set->what & UPPER_MTIME) || n->i.type != NODE_FILE || n->i.content == CONTENT_BELOW)
		return 0;
	int fd = upper_content_open(u, n, false);
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	n->is_fresh = false;
	return futimens(fd, times) < 0 ? -errno : 0;
}

/* With the lock, and with xattrs of its own where @drops_caps or there is an ACL. */
static int set_held(struct upper *u, struct upper_node *n, const struct upper_set *set,
		    bool drops_caps, struct err *err)
{
	struct upper_inode i;
	int r = 0;

	if (set->what & UPPER_SIZE) {
		if (n->i.type != NODE_FILE)
			return n->i.type == NODE_DIR ? -EISDIR : -EINVAL;
		r = upper_resize(u, n, set->size, err);
	}
	i = n->i;
	i.ctime = upper_now();
	if (set->what & UPPER_MODE)
		i.mode = set->mode & 07777;
	if (set->what & UPPER_UID)
		i.uid = set->uid;
	if (set->what & UPPER_GID)
		i.gid = set->gid;
	if (set->what & UPPER_ATIME)
		i.atime = set->atime;
	if (set->what & UPPER_MTIME)
		i.mtime = set->mtime;
	else if (set->what & UPPER_SIZE)
		i.mtime = i.ctime;
	if ((set->what & UPPER_KILL) && i.type != NODE_DIR)
		kills(&i);
	upper_put_inode(u, n, &i);
	if (drops_caps)
		upper_put_xattr(u, n->ino, CAPS, NULL, 0);
	if (r == 0 && (set->what & UPPER_MODE))
		r = put_chmod_acl(u, n, i.mode);
	if (r == 0)
		r = set_host_times(u, n, set);
	if (r < 0) {
		upper_unrecord(u);
		return r;
	}
	n->is_fresh = false; /* what was never written has the times that are recorded */
	return upper_commit(u, !n->is_orphan, err);
}

int upper_set(struct upper *u, uint64_t id, const struct upper_set *set, struct attr *out,
	      struct tree_wait *wait, struct err *err)
{
	struct upper_node *n;
	int caps = 0, acl = 0;

	if (set->what & UPPER_KILL)
		caps = has_xattr(u, id, CAPS, err);
	if (caps >= 0 && (set->what & UPPER_MODE))
		acl = has_xattr(u, id, ACL_ACCESS, err);
	if (caps < 0 || acl < 0)
		return MIN(caps, acl);
	int r = caps || acl ? hold_xattrs(u, id, &n, wait, err) : upper_hold(u, id, &n, wait, err);
	if (r < 0)
		return r;
	struct upper_inode i = n->i;
	if (set->what != UPPER_KILL || caps || kills(&i))
		r = set_held(u, n, set, caps, err);
	if (r == 0 && out)
		upper_attr(u, n, out);
	pthread_mutex_unlock(&u->lock);
	return r;
}

/* ------------------------------------------------------------------ xattrs */

/* What an ACL means for the mode. *drops: the mode says all of it. */
static int take_acl(struct upper_node *n, const char *name, const void *value, size_t len,
		    struct upper_inode *i, bool *drops)
{
	bool is_mode = false;
	uint32_t mode = i->mode;

	*drops = false;
	if (!value || (strcmp(name, ACL_ACCESS) != 0 && strcmp(name, ACL_DEFAULT) != 0))
		return 0;
	int r = upper_acl_mode(value, len, &mode, &is_mode);
	if (r == 0 && strcmp(name, ACL_DEFAULT) == 0)
		return n->i.type == NODE_DIR ? 0 : -EACCES;
	i->mode = mode;
	*drops = is_mode;
	return r;
}

static int set_xattr_held(struct upper *u, struct upper_node *n, const char *name,
			  const void *value, size_t len, int flags, struct err *err)
{
	bool exists = upper_xattr_find(n, name) != NULL, drops = false;
	struct upper_inode i = n->i;

	if (exists && (flags & XATTR_CREATE))
		return -EEXIST;
	if (!exists && (!value || (flags & XATTR_REPLACE)))
		return -ENODATA;
	int r = take_acl(n, name, value, len, &i, &drops);
	if (r < 0)
		return r;
	i.ctime = upper_now();
	upper_put_inode(u, n, &i);
	upper_put_xattr(u, n->ino, name, drops ? NULL : value, len);
	return upper_commit(u, !n->is_orphan, err);
}

int upper_set_xattr(struct upper *u, uint64_t id, const char *name, const void *value, size_t len,
		    int flags, struct tree_wait *wait, struct err *err)
{
	struct upper_node *n;

	if (strlen(name) > 255)
		return -ERANGE;
	if (len > 65536)
		return -E2BIG;
	int r = hold_xattrs(u, id, &n, wait, err);
	if (r < 0)
		return r;
	r = set_xattr_held(u, n, name, value, len, flags, err);
	pthread_mutex_unlock(&u->lock);
	return r;
}
