/* SPDX-License-Identifier: Apache-2.0 */

/*
 * sealed: the layer that an edit makes, an immutable raw tree in memory.
 *
 * Only what has a name is in it, numbered breadth-first, the names of each folder in their order, so
 * that equal layers have equal numbers, however they were made. Whiteouts are one node. Files that
 * were copied point to their source; see edittree.c.
 */

#include "merge/merge.h"

#include "merge/edit-internal.h"
#include "merge/merge-internal.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ nodes */

void edit_xattrs_free(struct edit_node *n)
{
	for (size_t i = 0; i < n->xattrs.n; i++) {
		free(n->xattrs.items[i].name);
		free(n->xattrs.items[i].value);
	}
	vec_free(&n->xattrs);
}

void edit_nodes_free(struct edit_node *nodes, size_t n_nodes)
{
	for (size_t i = 0; i < n_nodes; i++) {
		struct edit_node *n = &nodes[i];

		for (size_t k = 0; k < n->entries.n; k++)
			free(n->entries.items[k].name);
		vec_free(&n->entries);
		edit_xattrs_free(n);
		free(n->data);
		tree_unref(n->source);
	}
	free(nodes);
}

size_t edit_entry_place(const struct edit_node *dir, const char *name, size_t len, bool *found)
{
	size_t low = 0, high = dir->entries.n;

	*found = false;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct edit_entry *e = &dir->entries.items[mid];
		int c = memcmp(e->name, name, MIN(e->len, len));

		if (c == 0)
			c = (e->len > len) - (e->len < len);
		*found = c == 0;
		if (c == 0)
			return mid;
		if (c < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* ------------------------------------------------------------------ the tree */

static const struct edit_node *tree_node(struct tree *t, uint64_t id)
{
	const struct sealed *s = containerof(t, struct sealed, tree);

	return id >= 1 && id <= s->n_nodes ? &s->nodes[id - 1] : NULL;
}

static int sealed_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			  struct err *err)
{
	const struct edit_node *n = tree_node(t, id);

	if (!n)
		return -ENOENT;
	*out = n->attr;
	return 0;
}

static int sealed_dir(struct tree *t, uint64_t id, const struct edit_node **out)
{
	*out = tree_node(t, id);
	if (!*out)
		return -ENOENT;
	return (*out)->attr.type == NODE_DIR ? 0 : -ENOTDIR;
}

static void entry_attr(struct tree *t, const struct edit_entry *entry, struct attr *out)
{
	*out = tree_node(t, entry->node)->attr;
}

static int sealed_lookup(struct tree *t, uint64_t dir, const char *name, size_t len,
			 struct attr *out, struct tree_wait *wait, struct err *err)
{
	const struct edit_node *d;
	bool found;

	int r = sealed_dir(t, dir, &d);
	if (r < 0)
		return r;
	size_t i = edit_entry_place(d, name, len, &found);
	if (!found)
		return -ENOENT;
	entry_attr(t, &d->entries.items[i], out);
	return 0;
}

static int sealed_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		       struct tree_wait *wait, struct err *err)
{
	const struct edit_node *d;

	int r = sealed_dir(t, dir, &d);
	for (uint64_t i = from; r == 0 && i < d->entries.n; i++) {
		const struct edit_entry *entry = &d->entries.items[i];
		struct attr attr;

		entry_attr(t, entry, &attr);
		r = fn(arg, entry->name, entry->len, &attr, i + 1);
	}
	return r;
}

static int sealed_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
			 struct err *err)
{
	const struct edit_node *d;

	int r = sealed_dir(t, dir, &d);
	if (r < 0)
		return r;
	*out = d->parent;
	strbuf_puts(name, d->name);
	return name->failed ? -ENOMEM : 0;
}

static int sealed_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	const struct edit_node *n = tree_node(t, id);

	if (!n)
		return -ENOENT;
	if (n->attr.type != NODE_SYMLINK)
		return -EINVAL;
	strbuf_add(out, n->data, n->attr.size);
	return out->failed ? -ENOMEM : 0;
}

static int sealed_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	const struct edit_node *n = tree_node(t, id);
	int r = n ? 0 : -ENOENT;

	for (size_t i = 0; r == 0 && i < n->xattrs.n; i++) {
		const struct edit_xattr *x = &n->xattrs.items[i];

		r = fn(arg, x->name, x->value, x->len);
	}
	return r;
}

/* A file of a host folder must still be what it was when it was copied. */
static int check_source(const struct edit_node *n, struct err *err)
{
	struct attr now;

	if (!n->source->is_live)
		return 0;
	int r = tree_getattr(n->source, n->source_id, &now, NULL, err);
	if (r == 0 && (now.type != NODE_FILE || now.size != n->attr.size ||
		       now.mtime_s != n->source_mtime_s || now.mtime_ns != n->source_mtime_ns))
		r = err_set(err, -ESTALE, "the file was changed in its host folder");
	return r;
}

static int64_t sealed_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			   blob_done done, void *arg, struct err *err)
{
	const struct edit_node *n = tree_node(t, id);

	if (!n)
		return -ENOENT;
	if (n->attr.type != NODE_FILE)
		return n->attr.type == NODE_DIR ? -EISDIR : -EINVAL;
	if (n->source) {
		int64_t got = tree_read(n->source, n->source_id, off, dst, len, done, arg, err);
		int r = got < 0 ? 0 : check_source(n, err);
		return r < 0 ? r : got;
	}
	if (off >= n->attr.size)
		return 0;
	size_t count = MIN(len, n->attr.size - off);
	memcpy(dst, n->data + off, count);
	return (int64_t)count;
}

static int sealed_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data,
			    uint64_t *end)
{
	const struct edit_node *n = tree_node(t, id);

	if (!n)
		return -ENOENT;
	if (n->source && n->source->ops->seek_data)
		return tree_seek_data(n->source, n->source_id, off, data, end);
	if (off >= n->attr.size)
		return -ENODATA;
	*data = off;
	*end = n->attr.size;
	return 0;
}

static int sealed_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	const struct edit_node *n = tree_node(t, id);

	/* Of a live file the bytes cannot be checked once the kernel has it. */
	if (!n || !n->source || n->source->is_live)
		return -ENOENT;
	return tree_open_flat(n->source, n->source_id, make, fd, err);
}

static int sealed_host_stat(struct tree *t, uint64_t id, struct stat *out)
{
	const struct edit_node *n = tree_node(t, id);

	return n && n->source ? tree_host_stat(n->source, n->source_id, out) : -ENOENT;
}

static int sealed_content_digest(struct tree *t, uint64_t id, struct digest *out)
{
	const struct edit_node *n = tree_node(t, id);

	if (!n || n->attr.type != NODE_FILE)
		return -ENOENT;
	if (n->source)
		return tree_content_digest(n->source, n->source_id, out);
	digest_bytes(out, n->data, n->attr.size);
	return 0;
}

static void sealed_free(struct tree *t)
{
	struct sealed *s = containerof(t, struct sealed, tree);

	edit_nodes_free(s->nodes, s->n_nodes);
	free(s);
}

static const struct tree_ops sealed_ops = {
	.getattr = sealed_getattr,
	.lookup = sealed_lookup,
	.list = sealed_list,
	.parent = sealed_parent,
	.readlink = sealed_readlink,
	.xattrs = sealed_xattrs,
	.read = sealed_read,
	.seek_data = sealed_seek_data,
	.open_flat = sealed_open_flat,
	.host_stat = sealed_host_stat,
	.content_digest = sealed_content_digest,
	.free = sealed_free,
};

const struct sealed *sealed_of(struct tree *t)
{
	return t->ops == &sealed_ops ? containerof(t, struct sealed, tree) : NULL;
}

const struct edit_node *sealed_node(struct tree *t, uint64_t id)
{
	return t->ops == &sealed_ops ? tree_node(t, id) : NULL;
}

struct tree *sealed_take(struct edit_node *nodes, size_t n)
{
	struct sealed *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	tree_init(&s->tree, &sealed_ops, 1, false);
	s->nodes = nodes;
	s->n_nodes = n;
	return &s->tree;
}

/* ------------------------------------------------------------------ numbers */

struct numbering {
	struct edit_node *from;
	uint64_t *new; /* by old number; 0 = none yet */
	uint64_t *old; /* by new number, in order */
	size_t n;
	uint64_t whiteout; /* the new id of all of them; 0 = none yet */
};

static uint64_t number(struct numbering *m, uint64_t id)
{
	bool is_whiteout = m->from[id - 1].attr.type == NODE_WHITEOUT;
	uint64_t *known = is_whiteout ? &m->whiteout : &m->new[id - 1];

	if (!*known) {
		m->old[m->n++] = id;
		*known = m->n;
	}
	return *known;
}

/* Few, and mostly in order already. */
static void sort_xattrs(struct edit_node *n)
{
	for (size_t i = 1; i < n->xattrs.n; i++) {
		struct edit_xattr now = n->xattrs.items[i];
		size_t k = i;
		for (; k > 0 && strcmp(n->xattrs.items[k - 1].name, now.name) > 0; k--)
			n->xattrs.items[k] = n->xattrs.items[k - 1];
		n->xattrs.items[k] = now;
	}
}

/* Moves node number @i of the new order, and numbers what its names mean. */
static void number_node(struct numbering *m, struct edit_node *to, size_t i)
{
	struct edit_node *from = &m->from[m->old[i] - 1];

	to[i] = *from;
	*from = (struct edit_node){.attr.type = from->attr.type};
	to[i].attr.id = i + 1;
	sort_xattrs(&to[i]);
	for (size_t k = 0; k < to[i].entries.n; k++)
		to[i].entries.items[k].node = number(m, to[i].entries.items[k].node);
	if (i > 0 && to[i].attr.type == NODE_DIR)
		to[i].parent = m->new[to[i].parent - 1];
}

int sealed_new(struct tree **out, struct edit_node *nodes, size_t n, struct err *err)
{
	scoped(free) uint64_t *new = calloc(n, sizeof(*new)), *old = calloc(n, sizeof(*old));
	struct edit_node *to = calloc(n, sizeof(*to));
	struct tree *t = to ? sealed_take(to, 0) : NULL;

	if (!new || !old || !t) {
		if (t)
			tree_unref(t);
		else
			free(to);
		return no_memory(err);
	}
	struct numbering m = {.from = nodes, .new = new, .old = old};
	number(&m, TREE_ROOT);
	for (size_t i = 0; i < m.n; i++)
		number_node(&m, to, i);
	struct sealed *s = containerof(t, struct sealed, tree);
	struct edit_node *fitting = realloc(to, m.n * sizeof(*to));
	s->nodes = fitting ? fitting : to;
	s->n_nodes = m.n;
	*out = t;
	return 0;
}
