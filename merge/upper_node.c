/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_node: what an upper knows, in memory.
 *
 * Nodes are inodes that were made or changed here, found by their own number (ino) and, where they
 * are of the tree below, by their id there. A folder's node has the names that differ from those
 * below, in a hash table for lookups and in the order in which they came for listings: a listing
 * goes on after a number that no other name of the folder ever has.
 *
 * Memory is changed by upper_apply and nowhere else, be it that an operation is carried out or that
 * a journal is read again. So what comes back after a crash is what was there.
 */

#include "merge/upper-internal.h"

#define FIRST_BUCKETS 16

/* ------------------------------------------------------------------ tables */

static uint64_t node_key(const struct upper_node *n, bool by_below)
{
	return by_below ? n->below : n->ino;
}

static struct upper_node **node_next(struct upper_node *n, bool by_below)
{
	return by_below ? &n->next_below : &n->next_ino;
}

static int table_grow(struct upper_table *t, bool by_below)
{
	size_t n = MAX(t->n_buckets * 2, (size_t)FIRST_BUCKETS);
	struct upper_node **buckets;

	if (t->n < t->n_buckets)
		return 0;
	buckets = calloc(n, sizeof(*buckets));
	if (!buckets)
		return -ENOMEM;
	for (size_t i = 0; i < t->n_buckets; i++) {
		for (struct upper_node *node = t->buckets[i], *next; node; node = next) {
			struct upper_node **to =
				&buckets[upper_bucket(node_key(node, by_below), n)];

			next = *node_next(node, by_below);
			*node_next(node, by_below) = *to;
			*to = node;
		}
	}
	free(t->buckets);
	t->buckets = buckets;
	t->n_buckets = n;
	return 0;
}

static void table_insert(struct upper_table *t, struct upper_node *n, bool by_below)
{
	struct upper_node **to = &t->buckets[upper_bucket(node_key(n, by_below), t->n_buckets)];

	*node_next(n, by_below) = *to;
	*to = n;
	t->n++;
}

static void table_remove(struct upper_table *t, struct upper_node *n, bool by_below)
{
	struct upper_node **at = &t->buckets[upper_bucket(node_key(n, by_below), t->n_buckets)];

	while (*at != n)
		at = node_next(*at, by_below);
	*at = *node_next(n, by_below);
	t->n--;
}

static struct upper_node *table_find(const struct upper_table *t, uint64_t key, bool by_below)
{
	if (!t->n_buckets)
		return NULL;
	struct upper_node *n = t->buckets[upper_bucket(key, t->n_buckets)];
	while (n && node_key(n, by_below) != key)
		n = *node_next(n, by_below);
	return n;
}

struct upper_node *upper_by_ino(const struct upper *u, uint64_t ino)
{
	return table_find(&u->by_ino, ino, false);
}

struct upper_node *upper_by_id(const struct upper *u, uint64_t id)
{
	return upper_is_new(u, id) ? upper_by_ino(u, id - u->base)
				   : table_find(&u->by_below, id, true);
}

/* ------------------------------------------------------------------ nodes */

int upper_node_add(struct upper *u, uint64_t ino, struct upper_node **out)
{
	int r = table_grow(&u->by_ino, false);
	struct upper_node *n = r == 0 ? calloc(1, sizeof(*n)) : NULL;

	if (!n)
		return -ENOMEM;
	n->ino = ino;
	n->id = u->base + ino;
	n->fd = -1;
	table_insert(&u->by_ino, n, false);
	u->next_ino = MAX(u->next_ino, ino + 1);
	*out = n;
	return 0;
}

int upper_node_bind(struct upper *u, struct upper_node *n, uint64_t below, uint64_t below_dir,
		    const char *path, size_t len)
{
	scoped(free) char *copy = strndup(path, len);
	int r = table_grow(&u->by_below, true);

	if (!copy || r < 0)
		return -ENOMEM;
	upper_node_unbind(u, n);
	n->below = n->id = below;
	n->below_dir = below_dir;
	free(n->path);
	n->path = take(copy);
	table_insert(&u->by_below, n, true);
	return 0;
}

void upper_node_unbind(struct upper *u, struct upper_node *n)
{
	if (n->below)
		table_remove(&u->by_below, n, true);
	n->below = 0;
	n->id = u->base + n->ino;
}

static void xattrs_free(struct upper_node *n)
{
	for (size_t i = 0; i < n->xattrs.n; i++) {
		free(n->xattrs.items[i].name);
		free(n->xattrs.items[i].value);
	}
	vec_free(&n->xattrs);
}

static void dir_free(struct upper_dir *d)
{
	if (!d)
		return;
	for (size_t i = 0; i < d->order.n; i++)
		free(d->order.items[i].entry);
	vec_free(&d->order);
	free(d->buckets);
	free(d);
}

static void node_free(struct upper *u, struct upper_node *n)
{
	upper_content_close(u, n);
	xattrs_free(n);
	dir_free(n->dir);
	free(n->marks);
	free(n->target);
	free(n->path);
	free(n);
}

void upper_node_drop(struct upper *u, struct upper_node *n)
{
	if (n->below)
		table_remove(&u->by_below, n, true);
	table_remove(&u->by_ino, n, false);
	node_free(u, n);
}

void upper_nodes_deinit(struct upper *u)
{
	for (size_t i = 0; i < u->by_ino.n_buckets; i++) {
		for (struct upper_node *n = u->by_ino.buckets[i], *next; n; n = next) {
			next = n->next_ino;
			node_free(u, n);
		}
	}
	free(u->by_ino.buckets);
	free(u->by_below.buckets);
}

bool upper_is_marked(const struct upper_node *n, uint64_t granule)
{
	return granule < n->n_marks && (n->marks[granule / 8] >> (granule % 8) & 1);
}

/* ------------------------------------------------------------------ names */

static size_t name_bucket(const struct upper_dir *d, const char *name, size_t len)
{
	return (size_t)hash_bytes(name, len) & (d->n_buckets - 1);
}

struct upper_entry *upper_dir_find(const struct upper_node *dir, const char *name, size_t len)
{
	const struct upper_dir *d = dir->dir;

	if (!d || !d->n_buckets)
		return NULL;
	struct upper_entry *e = d->buckets[name_bucket(d, name, len)];
	while (e && (e->len != len || memcmp(e->name, name, len) != 0))
		e = e->next;
	return e;
}

/* The first place in the order with at least @seq. */
static size_t order_find(const struct upper_dir *d, uint64_t seq)
{
	size_t low = 0, high = d->order.n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (d->order.items[mid].seq < seq)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

struct upper_entry *upper_dir_after(const struct upper_node *dir, uint64_t seq)
{
	const struct upper_dir *d = dir->dir;

	if (!d)
		return NULL;
	for (size_t i = order_find(d, seq); i < d->order.n; i++)
		if (d->order.items[i].entry)
			return d->order.items[i].entry;
	return NULL;
}

static int dir_grow(struct upper_dir *d)
{
	size_t n = MAX(d->n_buckets * 2, (size_t)8);
	struct upper_entry **buckets;

	if (d->n_entries < d->n_buckets)
		return 0;
	buckets = calloc(n, sizeof(*buckets));
	if (!buckets)
		return -ENOMEM;
	free(d->buckets);
	d->buckets = buckets;
	d->n_buckets = n;
	for (size_t i = 0; i < d->order.n; i++) {
		struct upper_entry *e = d->order.items[i].entry;
		if (!e)
			continue;
		struct upper_entry **to = &buckets[name_bucket(d, e->name, e->len)];
		e->next = *to;
		*to = e;
	}
	return 0;
}

static struct upper_entry *entry_new(struct upper_dir *d, const char *name, size_t len)
{
	if (dir_grow(d) < 0)
		return NULL;
	struct upper_entry *e = calloc(1, sizeof(*e) + len + 1);
	struct upper_place *slot = e ? vec_push(&d->order) : NULL;
	if (!slot) {
		free(e);
		return NULL;
	}
	e->seq = ++d->next_seq;
	*slot = (struct upper_place){e->seq, e};
	e->len = (uint8_t)len;
	memcpy(e->name, name, len);
	struct upper_entry **to = &d->buckets[name_bucket(d, name, len)];
	e->next = *to;
	*to = e;
	d->n_entries++;
	return e;
}

static void order_close_holes(struct upper_dir *d)
{
	size_t n = 0;

	for (size_t i = 0; i < d->order.n; i++)
		if (d->order.items[i].entry)
			d->order.items[n++] = d->order.items[i];
	d->order.n = n;
}

static void entry_remove(struct upper_dir *d, struct upper_entry *e)
{
	struct upper_entry **at = &d->buckets[name_bucket(d, e->name, e->len)];

	while (*at != e)
		at = &(*at)->next;
	*at = e->next;
	d->order.items[order_find(d, e->seq)].entry = NULL;
	d->n_entries--;
	free(e);
	while (d->order.n && !d->order.items[d->order.n - 1].entry)
		d->order.n--;
	if (d->order.n > 64 && d->n_entries < d->order.n / 2)
		order_close_holes(d);
}

static struct upper_dir *dir_of(struct upper_node *n)
{
	if (!n->dir)
		n->dir = calloc(1, sizeof(*n->dir));
	return n->dir;
}

/* An entry of @dir that leads to @child begins (or ceases) to. */
static void count_subdir(struct upper *u, struct upper_node *dir, uint64_t child, int by)
{
	struct upper_node *c = child ? upper_by_ino(u, child) : NULL;

	if (c && c->i.type == NODE_DIR)
		dir->dir->n_subdirs += (uint64_t)(int64_t)by;
}

/* ------------------------------------------------------------------ statements */

static int apply_entry(struct upper *u, const struct upper_item *item)
{
	struct upper_node *dir = upper_by_ino(u, item->ino);
	struct upper_node *child = item->child ? upper_by_ino(u, item->child) : NULL;

	if (!dir || dir->i.type != NODE_DIR || (item->child && !child))
		return -EBADMSG;
	if (!dir_of(dir) || (child && child->i.type == NODE_DIR && !dir_of(child)))
		return -ENOMEM;
	struct upper_entry *e = upper_dir_find(dir, item->name, item->name_len);
	if (e) {
		struct upper_node *old = e->child ? upper_by_ino(u, e->child) : NULL;
		count_subdir(u, dir, e->child, -1);
		if (old && old->dir && old->dir->entry == e)
			old->dir->entry = NULL;
	} else {
		e = entry_new(dir->dir, item->name, item->name_len);
		if (!e)
			return -ENOMEM;
	}
	e->child = item->child;
	e->is_hiding = item->is_hiding;
	count_subdir(u, dir, e->child, 1);
	if (child && child->i.type == NODE_DIR) {
		child->dir->parent = dir->ino;
		child->dir->entry = e;
	}
	return 0;
}

static int apply_unentry(struct upper *u, const struct upper_item *item)
{
	struct upper_node *dir = upper_by_ino(u, item->ino);
	struct upper_entry *e = dir ? upper_dir_find(dir, item->name, item->name_len) : NULL;

	if (!dir)
		return -EBADMSG;
	if (!e)
		return 0;
	struct upper_node *child = e->child ? upper_by_ino(u, e->child) : NULL;
	count_subdir(u, dir, e->child, -1);
	if (child && child->dir && child->dir->entry == e)
		child->dir->entry = NULL;
	entry_remove(dir->dir, e);
	return 0;
}

static int apply_inode(struct upper *u, const struct upper_item *item)
{
	struct upper_node *n = upper_by_ino(u, item->ino);
	scoped(free) char *target = NULL;

	if (item->inode.type == NODE_SYMLINK) {
		target = strndup(item->name, item->name_len);
		if (!target)
			return -ENOMEM;
	}
	if (!n) {
		int r = upper_node_add(u, item->ino, &n);
		if (r < 0)
			return r;
	} else if (n->i.type && n->i.type != item->inode.type) {
		return -EBADMSG;
	}
	if (!item->inode.has_xattrs)
		xattrs_free(n);
	if (item->inode.content != CONTENT_PART) {
		free(n->marks);
		n->marks = NULL;
		n->n_marks = 0;
		n->first_below = 0;
	}
	n->i = item->inode;
	free(n->target);
	n->target = take(target);
	return 0;
}

static int apply_data(struct upper *u, const struct upper_item *item)
{
	struct upper_node *n = upper_by_ino(u, item->ino);
	uint64_t end = item->first + item->n;

	if (!n || n->i.type != NODE_FILE)
		return -EBADMSG;
	if (n->i.content != CONTENT_PART)
		return 0;
	/* What lies beyond the limit counts as here without a mark. */
	if (end > (n->i.limit + GRANULE - 1) / GRANULE)
		return -EBADMSG;
	if (end > n->n_marks) {
		size_t old = (n->n_marks + 7) / 8, bytes = (size_t)(end + 7) / 8;
		uint8_t *marks = realloc(n->marks, bytes);
		if (!marks)
			return -ENOMEM;
		memset(marks + old, 0, bytes - old);
		n->marks = marks;
		n->n_marks = (size_t)end;
	}
	for (uint64_t g = item->first; g < end; g++)
		n->marks[g / 8] |= (uint8_t)(1u << (g % 8));
	return 0;
}

static struct upper_xattr *find_xattr(struct upper_node *n, const char *name, size_t len)
{
	for (size_t i = 0; i < n->xattrs.n; i++)
		if (strlen(n->xattrs.items[i].name) == len &&
		    memcmp(n->xattrs.items[i].name, name, len) == 0)
			return &n->xattrs.items[i];
	return NULL;
}

const struct upper_xattr *upper_xattr_find(const struct upper_node *n, const char *name)
{
	return find_xattr((struct upper_node *)n, name, strlen(name));
}

static int apply_xattr(struct upper *u, const struct upper_item *item)
{
	struct upper_node *n = upper_by_ino(u, item->ino);
	scoped(free) void *value = malloc(MAX(item->value_len, (size_t)1));

	if (!n)
		return -EBADMSG;
	if (!value)
		return -ENOMEM;
	memcpy(value, item->value, item->value_len);
	struct upper_xattr *x = find_xattr(n, item->name, item->name_len);
	if (!x) {
		scoped(free) char *name = strndup(item->name, item->name_len);
		x = name ? vec_push(&n->xattrs) : NULL;
		if (!x)
			return -ENOMEM;
		x->name = take(name);
	}
	free(x->value);
	x->value = take(value);
	x->len = item->value_len;
	return 0;
}

static int apply_unxattr(struct upper *u, const struct upper_item *item)
{
	struct upper_node *n = upper_by_ino(u, item->ino);

	if (!n)
		return -EBADMSG;
	struct upper_xattr *x = find_xattr(n, item->name, item->name_len);
	if (!x)
		return 0;
	free(x->name);
	free(x->value);
	*x = n->xattrs.items[--n->xattrs.n];
	return 0;
}

/* While ops are carried out an inode outlives its last name, until the kernel forgets it. */
static int apply_free(struct upper *u, const struct upper_item *item)
{
	struct upper_node *n = upper_by_ino(u, item->ino);

	if (!n)
		return 0;
	if (n->dir && n->dir->entry)
		return -EBADMSG;
	if (u->is_replaying)
		upper_node_drop(u, n);
	else
		n->is_orphan = true;
	return 0;
}

static int apply_bind(struct upper *u, const struct upper_item *item)
{
	struct upper_node *n = upper_by_ino(u, item->ino);

	if (!n) {
		int r = upper_node_add(u, item->ino, &n);
		if (r < 0)
			return r;
	}
	struct upper_node *other = table_find(&u->by_below, item->below, true);
	if (other && other != n)
		return -EBADMSG;
	return upper_node_bind(u, n, item->below, item->below_dir, item->name, item->name_len);
}

static int apply_time(struct upper *u, const struct upper_item *item)
{
	struct upper_node *n = upper_by_ino(u, item->ino);

	if (!n)
		return -EBADMSG;
	n->i.ctime = item->time;
	if (item->kind == UPPER_TOUCH)
		n->i.mtime = item->time;
	return 0;
}

int upper_apply(struct upper *u, const struct upper_item *item)
{
	switch (item->kind) {
	case UPPER_NEXT:
		u->next_ino = MAX(u->next_ino, item->ino);
		return 0;
	case UPPER_BIND:
		return apply_bind(u, item);
	case UPPER_INODE:
		return apply_inode(u, item);
	case UPPER_XATTR:
		return apply_xattr(u, item);
	case UPPER_UNXATTR:
		return apply_unxattr(u, item);
	case UPPER_ENTRY:
		return apply_entry(u, item);
	case UPPER_UNENTRY:
		return apply_unentry(u, item);
	case UPPER_TOUCH:
	case UPPER_CTIME:
		return apply_time(u, item);
	case UPPER_DATA:
		return apply_data(u, item);
	case UPPER_FREE:
		return apply_free(u, item);
	case UPPER_BELOW:
		break;
	}
	return -EBADMSG;
}

/* The granules that are marked, a statement a run. */
static void put_marks(const struct upper_node *n, struct strbuf *to)
{
	uint64_t end = MIN((uint64_t)n->n_marks, (n->i.limit + GRANULE - 1) / GRANULE);

	for (uint64_t g = 0; g < end;) {
		uint64_t first = g;

		while (g < end && upper_is_marked(n, g))
			g++;
		if (g > first)
			upper_item_put(to, &(struct upper_item){.kind = UPPER_DATA,
								.ino = n->ino,
								.first = first,
								.n = g - first});
		else
			g++;
	}
}

void upper_node_put(struct upper *u, const struct upper_node *n, struct strbuf *to)
{
	if (n->below)
		upper_item_put(to, &(struct upper_item){.kind = UPPER_BIND,
							.ino = n->ino,
							.below = n->below,
							.below_dir = n->below_dir,
							.name = n->path,
							.name_len = strlen(n->path)});
	upper_item_put(to, &(struct upper_item){.kind = UPPER_INODE,
						.ino = n->ino,
						.inode = n->i,
						.name = n->target ? n->target : "",
						.name_len = n->target ? strlen(n->target) : 0});
	for (size_t i = 0; i < n->xattrs.n; i++)
		upper_item_put(to, &(struct upper_item){.kind = UPPER_XATTR,
							.ino = n->ino,
							.name = n->xattrs.items[i].name,
							.name_len = strlen(n->xattrs.items[i].name),
							.value = n->xattrs.items[i].value,
							.value_len = n->xattrs.items[i].len});
	put_marks(n, to);
}
