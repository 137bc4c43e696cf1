/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_tree: an upper as a tree, which is how it is looked at.
 *
 * An inode of the tree below that was not changed has no node and is answered by that tree alone.
 * A folder's listing is first what the tree below lists, but for names that have an entry here, and
 * then the entries made here in the order in which they came. What goes on after a name is that
 * tree's own number, or UPPER_NAMES plus the entry's: both stay right while names come and go, so
 * no listing has to be kept.
 */

#include "merge/upper-internal.h"

/* Added to the numbers of entries made here; the trees below count from 1 and never get there. */
#define UPPER_NAMES (UINT64_C(1) << 62)

/* With the lock: the attr of @child, if there is such a thing. */
static bool child_attr(struct upper *u, uint64_t child, struct attr *out)
{
	struct upper_node *n = child ? upper_by_ino(u, child) : NULL;

	if (n)
		upper_attr(u, n, out);
	return n != NULL;
}

/* What the tree below says of an inode, unless it was changed. */
static void overlay_attr(struct upper *u, struct attr *attr)
{
	pthread_mutex_lock(&u->lock);
	struct upper_node *n = upper_by_id(u, attr->id);
	if (n)
		upper_attr(u, n, attr);
	pthread_mutex_unlock(&u->lock);
}

static int get_attr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
		    struct err *err)
{
	struct upper *u = upper_of(t);

	pthread_mutex_lock(&u->lock);
	struct upper_node *n = upper_by_id(u, id);
	if (n)
		upper_attr(u, n, out);
	pthread_mutex_unlock(&u->lock);
	if (n)
		return 0;
	return upper_is_new(u, id) ? -ENOENT : tree_getattr(u->below, id, out, wait, err);
}

/* The folder below that shows in @dir; 0 = none does. With the lock. */
static int below_of(struct upper *u, uint64_t dir, struct upper_node **n, uint64_t *below)
{
	*n = upper_by_id(u, dir);
	if (!*n && upper_is_new(u, dir))
		return -ENOENT;
	*below = *n ? (*n)->below : dir;
	if (*n && (*n)->i.type != NODE_DIR)
		return -ENOTDIR;
	if (*n && (*n)->is_orphan)
		*below = 0;
	return 0;
}

static int look_up(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		   struct tree_wait *wait, struct err *err)
{
	struct upper *u = upper_of(t);
	struct upper_node *n;
	uint64_t below;

	pthread_mutex_lock(&u->lock);
	int r = below_of(u, dir, &n, &below);
	const struct upper_entry *e = r == 0 && n ? upper_dir_find(n, name, len) : NULL;
	if (r == 0 && e)
		r = child_attr(u, e->child, out) ? 0 : -ENOENT;
	else if (r == 0 && !below)
		r = -ENOENT;
	pthread_mutex_unlock(&u->lock);
	if (r < 0 || e)
		return r;
	r = tree_lookup(u->below, below, name, len, out, wait, err);
	if (r == 0)
		overlay_attr(u, out);
	return r;
}

/* ------------------------------------------------------------------ listing */

struct listing {
	struct upper *u;
	uint64_t dir;
	tree_list_fn fn;
	void *arg;
	bool is_stopped;
};

static int list_below_one(void *arg, const char *name, size_t len, const struct attr *attr,
			  uint64_t next)
{
	struct listing *l = arg;
	struct upper *u = l->u;
	struct attr a = *attr;

	pthread_mutex_lock(&u->lock);
	const struct upper_node *dir = upper_by_id(u, l->dir);
	bool is_hidden = dir && upper_dir_find(dir, name, len);
	struct upper_node *n = is_hidden ? NULL : upper_by_id(u, attr->id);
	if (n)
		upper_attr(u, n, &a);
	pthread_mutex_unlock(&u->lock);
	if (is_hidden)
		return 0;
	int r = l->fn(l->arg, name, len, &a, next);
	l->is_stopped = r != 0;
	return r;
}

static int list_here(struct listing *l, uint64_t seq)
{
	struct upper *u = l->u;
	struct attr attr;
	char name[256];

	for (;;) {
		pthread_mutex_lock(&u->lock);
		const struct upper_node *dir = upper_by_id(u, l->dir);
		const struct upper_entry *e = dir ? upper_dir_after(dir, seq) : NULL;
		while (e && !child_attr(u, e->child, &attr))
			e = upper_dir_after(dir, e->seq + 1);
		size_t len = e ? e->len : 0;
		if (e) {
			memcpy(name, e->name, len + 1);
			seq = e->seq + 1;
		}
		pthread_mutex_unlock(&u->lock);
		if (!len)
			return 0;
		int r = l->fn(l->arg, name, len, &attr, UPPER_NAMES + seq);
		if (r != 0)
			return r;
	}
}

static int list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		struct tree_wait *wait, struct err *err)
{
	struct upper *u = upper_of(t);
	struct listing l = {.u = u, .dir = dir, .fn = fn, .arg = arg};
	struct upper_node *n;
	uint64_t below;

	pthread_mutex_lock(&u->lock);
	int r = below_of(u, dir, &n, &below);
	bool has_names = n != NULL;
	pthread_mutex_unlock(&u->lock);
	if (r < 0)
		return r;
	if (from < UPPER_NAMES && below)
		r = tree_list(u->below, below, from, list_below_one, &l, wait, err);
	if (r != 0 || l.is_stopped || !has_names)
		return r;
	return list_here(&l, from < UPPER_NAMES ? 0 : from - UPPER_NAMES);
}

/* ------------------------------------------------------------------ the rest */

static int parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name, struct err *err)
{
	struct upper *u = upper_of(t);
	uint64_t below = dir;
	int r = -EAGAIN; /* as below */

	pthread_mutex_lock(&u->lock);
	const struct upper_node *n = upper_by_id(u, dir);
	const struct upper_node *up =
		n && n->dir && n->dir->entry ? upper_by_ino(u, n->dir->parent) : NULL;
	if (n && n->i.type != NODE_DIR)
		r = -ENOTDIR;
	else if (up) {
		*out = up->id;
		strbuf_add(name, n->dir->entry->name, n->dir->entry->len);
		r = name->failed ? -ENOMEM : 0;
	} else if (n ? n->is_orphan || !n->below : upper_is_new(u, dir)) {
		r = -ENOENT;
	} else if (n) {
		below = n->below;
	}
	pthread_mutex_unlock(&u->lock);
	return r == -EAGAIN ? tree_parent(u->below, below, out, name, err) : r;
}

static int read_link(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	struct upper *u = upper_of(t);
	uint64_t below = id;
	int r = 0;

	pthread_mutex_lock(&u->lock);
	const struct upper_node *n = upper_by_id(u, id);
	if (n)
		below = n->below;
	if (n && n->i.type != NODE_SYMLINK)
		r = -EINVAL;
	else if (n && !below)
		strbuf_puts(out, n->target ? n->target : "");
	else if (!n && upper_is_new(u, id))
		r = -ENOENT;
	pthread_mutex_unlock(&u->lock);
	if (r == 0 && below)
		return tree_readlink(u->below, below, out, err);
	return r < 0 ? r : out->failed ? -ENOMEM : 0;
}

/* Names and values one after another: name NUL, u64 length, value. */
static void copy_xattrs(const struct upper_node *n, struct strbuf *out)
{
	for (size_t i = 0; i < n->xattrs.n; i++) {
		const struct upper_xattr *x = &n->xattrs.items[i];
		uint64_t len = x->len;

		strbuf_add(out, x->name, strlen(x->name) + 1);
		strbuf_add(out, &len, sizeof(len));
		strbuf_add(out, x->value, x->len);
	}
}

static int give_xattrs(const struct strbuf *copy, tree_xattr_fn fn, void *arg)
{
	const char *p = copy->data;
	int r = 0;

	while (r == 0 && p && p < copy->data + copy->len) {
		const char *name = p;
		uint64_t len;

		p += strlen(p) + 1;
		memcpy(&len, p, sizeof(len));
		p += sizeof(len);
		r = fn(arg, name, p, (size_t)len);
		p += len;
	}
	return r;
}

static int xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	struct upper *u = upper_of(t);
	scoped(strbuf_free) struct strbuf copy = {0};
	uint64_t below = id;

	pthread_mutex_lock(&u->lock);
	const struct upper_node *n = upper_by_id(u, id);
	bool is_own = n ? n->i.has_xattrs || !n->below : upper_is_new(u, id);
	if (is_own && n)
		copy_xattrs(n, &copy);
	if (n && !is_own)
		below = n->below;
	pthread_mutex_unlock(&u->lock);
	if (!is_own)
		return tree_xattrs(u->below, below, fn, arg, err);
	return copy.failed ? -ENOMEM : give_xattrs(&copy, fn, arg);
}

/* A file of the tree below that was not written. */
static bool is_all_below(struct upper *u, uint64_t id, uint64_t *below)
{
	pthread_mutex_lock(&u->lock);
	const struct upper_node *n = upper_by_id(u, id);
	bool is_below = n ? n->below && n->i.content == CONTENT_BELOW : !upper_is_new(u, id);
	*below = n ? n->below : id;
	pthread_mutex_unlock(&u->lock);
	return is_below;
}

static int content_digest(struct tree *t, uint64_t id, struct digest *out)
{
	uint64_t below;

	return is_all_below(upper_of(t), id, &below)
		       ? tree_content_digest(upper_of(t)->below, below, out)
		       : -ENOENT;
}

static void free_tree(struct tree *t)
{
	struct upper *u = upper_of(t);

	upper_reaper_stop(u);
	upper_nodes_deinit(u);
	upper_known_deinit(u);
	upper_journal_close(u);
	close_fd(u->data_fd);
	close_fd(u->dir_fd);
	close_fd(u->lock_fd);
	vec_free(&u->dead);
	strbuf_free(&u->record);
	tree_unref(u->below);
	pthread_cond_destroy(&u->wake);
	pthread_mutex_destroy(&u->lock);
	free(u->key);
	free(u->path);
	free(u);
}

const struct tree_ops upper_tree_ops = {
	.getattr = get_attr,
	.lookup = look_up,
	.list = list,
	.parent = parent,
	.readlink = read_link,
	.xattrs = xattrs,
	.read = upper_read,
	.seek_data = upper_seek_data,
	.content_digest = content_digest,
	.free = free_tree,
};

bool upper_times(struct upper *u, uint64_t id, struct upper_times *out)
{
	pthread_mutex_lock(&u->lock);
	struct upper_node *n = upper_by_id(u, id);
	if (n) {
		bool is_host = n->i.type == NODE_FILE && n->i.content != CONTENT_BELOW &&
			       upper_content_stat(u, n) == 0;
		const struct timespec *a = &n->i.ctime, *b = &n->host_ctime;
		bool is_later = is_host && (b->tv_sec > a->tv_sec ||
					    (b->tv_sec == a->tv_sec && b->tv_nsec > a->tv_nsec));
		*out = (struct upper_times){.atime = n->i.atime,
					    .mtime = is_host ? n->host_mtime : n->i.mtime,
					    .ctime = is_later ? *b : *a};
	}
	pthread_mutex_unlock(&u->lock);
	return n != NULL;
}
