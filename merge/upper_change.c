/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_change: names and metadata.
 *
 * Every operation is: find out, under the lock, what there is; put what will be into one record;
 * commit it. Where the tree below must be asked the lock is let go, and what was found before is
 * looked at again. An operation that is told "later" by the tree below has changed nothing, and is
 * called again from its start.
 *
 * The kernel has checked permissions, and that a folder is not moved into itself.
 */

#include "merge/upper-internal.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------ statements */

void upper_put_inode(struct upper *u, const struct upper_node *n, const struct upper_inode *i)
{
	upper_item_put(&u->record,
		       &(struct upper_item){.kind = UPPER_INODE,
					    .ino = n->ino,
					    .inode = *i,
					    .name = n->target ? n->target : "",
					    .name_len = n->target ? strlen(n->target) : 0});
}

static void put_entry(struct upper *u, uint64_t dir, const char *name, size_t len, uint64_t child,
		      bool is_hiding)
{
	upper_item_put(&u->record, &(struct upper_item){.kind = UPPER_ENTRY,
							.ino = dir,
							.child = child,
							.is_hiding = is_hiding,
							.name = name,
							.name_len = len});
}

/* @name is not there any more. */
static void put_gone(struct upper *u, uint64_t dir, const char *name, size_t len, bool is_hiding)
{
	if (is_hiding)
		put_entry(u, dir, name, len, 0, true);
	else
		upper_item_put(&u->record, &(struct upper_item){.kind = UPPER_UNENTRY,
								.ino = dir,
								.name = name,
								.name_len = len});
}

static void put_time(struct upper *u, enum upper_kind kind, uint64_t ino, struct timespec now)
{
	upper_item_put(&u->record, &(struct upper_item){.kind = kind, .ino = ino, .time = now});
}

void upper_put_xattr(struct upper *u, uint64_t ino, const char *name, const void *value, size_t n)
{
	upper_item_put(&u->record, &(struct upper_item){.kind = value ? UPPER_XATTR : UPPER_UNXATTR,
							.ino = ino,
							.name = name,
							.name_len = strlen(name),
							.value = value,
							.value_len = n});
}

/* ------------------------------------------------------------------ a name */

struct spot {
	struct upper_node *dir;
	bool exists, is_hiding;
	struct attr attr; /* of what exists */
};

static void spot_attr(struct upper *u, struct spot *s)
{
	struct upper_node *n = upper_by_id(u, s->attr.id);

	if (n)
		upper_attr(u, n, &s->attr);
}

/* With the lock: what memory says of the name. False: the tree below must be asked. */
static bool spot_here(struct upper *u, struct spot *s, const char *name, size_t len)
{
	const struct upper_entry *e = upper_dir_find(s->dir, name, len);

	if (!e)
		return !s->dir->below;
	struct upper_node *child = e->child ? upper_by_ino(u, e->child) : NULL;
	s->is_hiding = e->is_hiding;
	s->exists = child != NULL;
	if (child)
		upper_attr(u, child, &s->attr);
	return true;
}

/* Looks at @name; 0: the lock is held. */
static int spot_find(struct upper *u, uint64_t dir, const char *name, size_t len, struct spot *s,
		     struct tree_wait *wait, struct err *err)
{
	*s = (struct spot){0};
	int r = upper_hold(u, dir, &s->dir, wait, err);
	if (r < 0)
		return r;
	if (len > 255)
		r = -ENAMETOOLONG;
	else if (s->dir->i.type != NODE_DIR)
		r = -ENOTDIR;
	else if (s->dir->is_orphan)
		r = -ENOENT;
	if (r == 0 && !spot_here(u, s, name, len)) {
		uint64_t below = s->dir->below;
		pthread_mutex_unlock(&u->lock);
		r = tree_lookup(u->below, below, name, len, &s->attr, wait, err);
		if (r < 0 && r != -ENOENT)
			return r;
		s->exists = s->is_hiding = r == 0;
		pthread_mutex_lock(&u->lock);
		spot_attr(u, s);
		r = 0;
		/* Somebody was faster: what there is now counts. */
		if (upper_dir_find(s->dir, name, len))
			spot_here(u, s, name, len);
	}
	if (r < 0)
		pthread_mutex_unlock(&u->lock);
	return r;
}

/* ------------------------------------------------------------------ making */

/* The folder's default ACL for something new: *acl becomes its own, caller frees. */
static int inherit(const struct upper_node *dir, const struct upper_make *what,
		   struct upper_inode *i, void **acl, size_t *n, bool *keeps_default)
{
	const struct upper_xattr *x = upper_xattr_find(dir, ACL_DEFAULT);

	*acl = NULL;
	*keeps_default = false;
	if (what->type == NODE_SYMLINK)
		return 0;
	if (!x) {
		i->mode &= ~(what->umask & 0777);
		return 0;
	}
	*acl = malloc(MAX(x->len, (size_t)1));
	if (!*acl)
		return -ENOMEM;
	memcpy(*acl, x->value, x->len);
	*n = x->len;
	*keeps_default = what->type == NODE_DIR;
	int r = upper_acl_create(*acl, *n, &i->mode);
	if (r != 0) { /* 1: the mode says it all */
		free(*acl);
		*acl = NULL;
	}
	return MIN(r, 0);
}

static void new_inode(const struct upper_node *dir, const struct upper_make *what,
		      struct timespec now, struct upper_inode *out)
{
	*out = (struct upper_inode){
		.type = what->type,
		.content = CONTENT_HERE,
		.has_xattrs = true,
		.mode = what->type == NODE_SYMLINK ? 0777 : what->mode & 07777,
		.uid = what->uid,
		.gid = dir->i.mode & S_ISGID ? dir->i.gid : what->gid,
		.nlink = 1,
		.dev_major = what->dev_major,
		.dev_minor = what->dev_minor,
		.size = what->type == NODE_SYMLINK ? strlen(what->target)
			: what->type == NODE_DIR   ? 4096
						   : 0,
		.atime = now,
		.mtime = now,
		.ctime = now,
	};
	if (what->type == NODE_DIR && (dir->i.mode & S_ISGID))
		out->mode |= S_ISGID;
}

/* With the lock: puts what makes a new inode in @dir into the record. Returns its number. */
static int64_t put_new(struct upper *u, const struct upper_node *dir, const struct upper_make *what,
		       struct timespec now)
{
	struct upper_item item = {.kind = UPPER_INODE, .ino = u->next_ino};
	scoped(free) void *acl = NULL;
	bool keeps_default;
	size_t n = 0;

	if (what->type == NODE_SYMLINK) {
		item.name = what->target;
		item.name_len = strlen(what->target);
	} else {
		item.name = "";
	}
	new_inode(dir, what, now, &item.inode);
	int r = inherit(dir, what, &item.inode, &acl, &n, &keeps_default);
	if (r < 0)
		return r;
	upper_item_put(&u->record, &item);
	if (acl)
		upper_put_xattr(u, item.ino, ACL_ACCESS, acl, n);
	if (keeps_default) {
		const struct upper_xattr *x = upper_xattr_find(dir, ACL_DEFAULT);
		upper_put_xattr(u, item.ino, ACL_DEFAULT, x->value, x->len);
	}
	return (int64_t)item.ino;
}

void upper_unrecord(struct upper *u)
{
	strbuf_clear(&u->record);
	upper_record_begin(&u->record);
}

int upper_create(struct upper *u, uint64_t dir, const char *name, size_t len,
		 const struct upper_make *what, struct attr *out, struct tree_wait *wait,
		 struct err *err)
{
	struct timespec now = upper_now();
	struct spot s;
	int64_t ino = 0;

	int r = upper_own_default_acl(u, dir, wait, err);
	if (r == 0)
		r = spot_find(u, dir, name, len, &s, wait, err);
	if (r < 0)
		return r;
	if (s.exists)
		r = -EEXIST;
	if (r == 0) {
		ino = put_new(u, s.dir, what, now);
		r = (int)MIN(ino, (int64_t)0);
	}
	if (r == 0) {
		put_entry(u, s.dir->ino, name, len, (uint64_t)ino, s.is_hiding);
		put_time(u, UPPER_TOUCH, s.dir->ino, now);
		r = upper_commit(u, true, err);
	} else {
		upper_unrecord(u);
	}
	if (r == 0)
		upper_attr(u, upper_by_ino(u, (uint64_t)ino), out);
	pthread_mutex_unlock(&u->lock);
	return r;
}

int upper_create_tmp(struct upper *u, uint64_t dir, const struct upper_make *what, struct attr *out,
		     struct tree_wait *wait, struct err *err)
{
	struct upper_node *d;

	int r = upper_own_default_acl(u, dir, wait, err);
	if (r == 0)
		r = upper_hold(u, dir, &d, wait, err);
	if (r < 0)
		return r;
	int64_t ino = d->is_orphan ? -ENOENT : put_new(u, d, what, upper_now());
	if (ino < 0) {
		r = (int)ino;
		upper_unrecord(u);
	} else {
		r = upper_commit(u, false, err);
	}
	if (r == 0) {
		struct upper_node *n = upper_by_ino(u, (uint64_t)ino);
		n->is_orphan = true;
		n->i.nlink = 0;
		upper_attr(u, n, out);
	}
	pthread_mutex_unlock(&u->lock);
	return r;
}

/* With the lock: one more name for @n, which may have none. */
static int add_name(struct upper *u, struct upper_node *n, const struct spot *s, const char *name,
		    size_t len, struct err *err)
{
	struct timespec now = upper_now();
	struct upper_inode i = n->i;

	i.nlink++;
	i.ctime = now;
	if (n->is_orphan) /* no record knows it yet */
		upper_node_put(u, n, &u->record);
	upper_put_inode(u, n, &i);
	put_entry(u, s->dir->ino, name, len, n->ino, s->is_hiding);
	put_time(u, UPPER_TOUCH, s->dir->ino, now);
	int r = upper_commit(u, true, err);
	if (r == 0)
		n->is_orphan = false;
	return r;
}

int upper_link(struct upper *u, uint64_t id, uint64_t dir, const char *name, size_t len,
	       struct attr *out, struct tree_wait *wait, struct err *err)
{
	struct upper_node *n;
	struct spot s;

	int r = upper_hold(u, id, &n, wait, err);
	if (r < 0)
		return r;
	pthread_mutex_unlock(&u->lock);
	r = spot_find(u, dir, name, len, &s, wait, err);
	if (r < 0)
		return r;
	n = upper_by_id(u, id);
	if (!n)
		r = -ESTALE;
	else if (s.exists)
		r = -EEXIST;
	else if (n->i.type == NODE_DIR)
		r = -EPERM;
	else
		r = add_name(u, n, &s, name, len, err);
	if (r == 0)
		upper_attr(u, n, out);
	pthread_mutex_unlock(&u->lock);
	return r;
}

/* ------------------------------------------------------------------ removing */

struct emptiness {
	struct upper *u;
	uint64_t dir;
};

static int find_one_below(void *arg, const char *name, size_t len, const struct attr *attr,
			  uint64_t next)
{
	struct emptiness *e = arg;

	pthread_mutex_lock(&e->u->lock);
	const struct upper_node *n = upper_by_id(e->u, e->dir);
	bool is_hidden = n && upper_dir_find(n, name, len);
	pthread_mutex_unlock(&e->u->lock);
	return is_hidden ? 0 : 1;
}

/* Without the lock: 0 or -ENOTEMPTY. */
static int check_empty(struct upper *u, uint64_t dir, struct tree_wait *wait, struct err *err)
{
	struct emptiness e = {u, dir};
	uint64_t below = dir;
	bool is_empty = true;

	pthread_mutex_lock(&u->lock);
	const struct upper_node *n = upper_by_id(u, dir);
	const struct upper_entry *x = n ? upper_dir_after(n, 0) : NULL;
	for (; x && is_empty; x = upper_dir_after(n, x->seq + 1))
		is_empty = x->child == 0;
	if (n)
		below = n->below;
	pthread_mutex_unlock(&u->lock);
	if (!is_empty)
		return -ENOTEMPTY;
	int r = below ? tree_list(u->below, below, 0, find_one_below, &e, wait, err) : 0;
	return r > 0 ? -ENOTEMPTY : r;
}

/* Before what @attr describes loses a name: it gets a node where one is needed to remember that it
 * is still open, or that it has other names. Without the lock. */
static int prepare_victim(struct upper *u, const struct attr *attr, struct tree_wait *wait,
			  struct err *err)
{
	struct upper_node *n;
	int r = 0;

	if (attr->type != NODE_DIR && attr->nlink > 1) {
		r = upper_hold(u, attr->id, &n, wait, err);
	} else {
		pthread_mutex_lock(&u->lock);
		if (!upper_by_id(u, attr->id) && upper_known_find(u, attr->id))
			r = upper_bind_attr(u, attr, 0, "", 0, false, err);
		if (r < 0)
			pthread_mutex_unlock(&u->lock);
	}
	if (r == 0)
		pthread_mutex_unlock(&u->lock);
	return r;
}

/* With the lock: what losing one name means for an inode. Returns its node, if it has one. */
static struct upper_node *put_victim(struct upper *u, uint64_t id, struct timespec now)
{
	struct upper_node *n = upper_by_id(u, id);

	if (!n)
		return NULL;
	if (n->i.type == NODE_DIR || n->i.nlink <= 1) {
		upper_item_put(&u->record, &(struct upper_item){.kind = UPPER_FREE, .ino = n->ino});
		return n;
	}
	struct upper_inode i = n->i;
	i.nlink--;
	i.ctime = now;
	upper_put_inode(u, n, &i);
	return n;
}

/* After the commit. */
static void victim_end(struct upper *u, struct upper_node *n, struct timespec now)
{
	if (!n || !n->is_orphan)
		return;
	n->i.nlink = 0;
	n->i.ctime = now;
	if (upper_known_find(u, n->id) || n->fill)
		return;
	if (n->i.content != CONTENT_BELOW && n->i.type == NODE_FILE)
		upper_content_remove(u, n->ino);
	upper_node_drop(u, n);
}

static int check_type(const struct spot *s, bool is_dir)
{
	if (!s->exists)
		return -ENOENT;
	if (is_dir && s->attr.type != NODE_DIR)
		return -ENOTDIR;
	return !is_dir && s->attr.type == NODE_DIR ? -EISDIR : 0;
}

int upper_remove(struct upper *u, uint64_t dir, const char *name, size_t len, bool is_dir,
		 struct tree_wait *wait, struct err *err)
{
	struct timespec now = upper_now();
	struct spot s;

	int r = spot_find(u, dir, name, len, &s, wait, err);
	if (r < 0)
		return r;
	r = check_type(&s, is_dir);
	pthread_mutex_unlock(&u->lock);
	if (r == 0 && is_dir)
		r = check_empty(u, s.attr.id, wait, err);
	if (r == 0)
		r = prepare_victim(u, &s.attr, wait, err);
	uint64_t id = s.attr.id;
	if (r == 0)
		r = spot_find(u, dir, name, len, &s, wait, err);
	if (r < 0)
		return r;
	r = check_type(&s, is_dir);
	if (r == 0 && s.attr.id != id)
		r = -ESTALE;
	if (r == 0) {
		put_gone(u, s.dir->ino, name, len, s.is_hiding);
		put_time(u, UPPER_TOUCH, s.dir->ino, now);
		struct upper_node *victim = put_victim(u, id, now);
		r = upper_commit(u, true, err);
		if (r == 0)
			victim_end(u, victim, now);
	}
	pthread_mutex_unlock(&u->lock);
	return r;
}

/* ------------------------------------------------------------------ renaming */

static int check_rename(const struct spot *from, const struct spot *to, unsigned flags)
{
	if (!from->exists)
		return -ENOENT;
	if (flags & RENAME_EXCHANGE)
		return to->exists ? 0 : -ENOENT;
	if (!to->exists)
		return 0;
	if (flags & RENAME_NOREPLACE)
		return -EEXIST;
	if (from->attr.type == NODE_DIR && to->attr.type != NODE_DIR)
		return -ENOTDIR;
	return from->attr.type != NODE_DIR && to->attr.type == NODE_DIR ? -EISDIR : 0;
}

/* Finds both; 0: the lock is held. */
static int find_both(struct upper *u, const struct upper_name *from, const struct upper_name *to,
		     struct spot *a, struct spot *b, struct tree_wait *wait, struct err *err)
{
	int r = spot_find(u, to->dir, to->name, to->len, b, wait, err);

	if (r < 0)
		return r;
	pthread_mutex_unlock(&u->lock);
	r = spot_find(u, from->dir, from->name, from->len, a, wait, err);
	if (r == 0 && upper_dir_find(b->dir, to->name, to->len))
		spot_here(u, b, to->name, to->len);
	return r;
}

/* Without the lock: everything that is to be moved or replaced gets the node it needs. */
static int prepare_rename(struct upper *u, const struct spot *a, const struct spot *b,
			  unsigned flags, struct tree_wait *wait, struct err *err)
{
	struct upper_node *n;
	int r = upper_hold(u, a->attr.id, &n, wait, err);

	if (r < 0)
		return r;
	pthread_mutex_unlock(&u->lock);
	if (!b->exists)
		return 0;
	if (flags & RENAME_EXCHANGE) {
		r = upper_hold(u, b->attr.id, &n, wait, err);
		if (r == 0)
			pthread_mutex_unlock(&u->lock);
		return r;
	}
	if (b->attr.type == NODE_DIR)
		r = check_empty(u, b->attr.id, wait, err);
	return r < 0 ? r : prepare_victim(u, &b->attr, wait, err);
}

static int put_whiteout_device(struct upper *u, const struct spot *a, const struct upper_name *from,
			       struct timespec now)
{
	const struct upper_make what = {.type = NODE_CHAR};
	int64_t ino = put_new(u, a->dir, &what, now);

	if (ino >= 0)
		put_entry(u, a->dir->ino, from->name, from->len, (uint64_t)ino, a->is_hiding);
	return (int)MIN(ino, (int64_t)0);
}

/* With the lock. */
static int rename_held(struct upper *u, const struct spot *a, const struct spot *b,
		       const struct upper_name *from, const struct upper_name *to, unsigned flags,
		       struct err *err)
{
	struct timespec now = upper_now();
	const struct upper_node *moved = upper_by_id(u, a->attr.id);
	const struct upper_node *other =
		flags & RENAME_EXCHANGE ? upper_by_id(u, b->attr.id) : NULL;
	struct upper_node *victim = NULL;
	int r = 0;

	if (!moved || (!other && (flags & RENAME_EXCHANGE)))
		return -ESTALE;
	put_entry(u, b->dir->ino, to->name, to->len, moved->ino, b->is_hiding);
	put_time(u, UPPER_CTIME, moved->ino, now);
	if (other) {
		put_entry(u, a->dir->ino, from->name, from->len, other->ino, a->is_hiding);
		put_time(u, UPPER_CTIME, other->ino, now);
	} else if (flags & RENAME_WHITEOUT) {
		r = put_whiteout_device(u, a, from, now);
	} else {
		put_gone(u, a->dir->ino, from->name, from->len, a->is_hiding);
	}
	put_time(u, UPPER_TOUCH, a->dir->ino, now);
	put_time(u, UPPER_TOUCH, b->dir->ino, now);
	if (b->exists && !other)
		victim = put_victim(u, b->attr.id, now);
	if (r < 0)
		upper_unrecord(u);
	else
		r = upper_commit(u, true, err);
	if (r == 0)
		victim_end(u, victim, now);
	return r;
}

int upper_rename(struct upper *u, const struct upper_name *from, const struct upper_name *to,
		 unsigned flags, struct tree_wait *wait, struct err *err)
{
	struct spot a, b;

	if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT))
		return -EINVAL;
	int r = find_both(u, from, to, &a, &b, wait, err);
	if (r < 0)
		return r;
	r = check_rename(&a, &b, flags);
	bool is_same = r == 0 && b.exists && a.attr.id == b.attr.id;
	pthread_mutex_unlock(&u->lock);
	if (r < 0 || is_same)
		return r;
	r = prepare_rename(u, &a, &b, flags, wait, err);
	uint64_t a_id = a.attr.id, b_id = b.attr.id;
	if (r == 0)
		r = find_both(u, from, to, &a, &b, wait, err);
	if (r < 0)
		return r;
	r = check_rename(&a, &b, flags);
	if (r == 0 && (a.attr.id != a_id || (b.exists && b.attr.id != b_id)))
		r = -ESTALE;
	if (r == 0)
		r = rename_held(u, &a, &b, from, to, flags, err);
	pthread_mutex_unlock(&u->lock);
	return r;
}
