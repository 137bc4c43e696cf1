/* SPDX-License-Identifier: Apache-2.0 */

/*
 * memtree: a tree in memory.
 *
 * What tests put in the place of a layer: it has everything a layer can have (whiteouts, opaque
 * and implicit folders, hard links, xattrs, devices), is built by a few calls and then shared, and
 * never changes after that, so that it needs no lock. An empty one is tree_empty.
 *
 * Nodes lie in one array and are never moved out of it: node i has the id i + 1, so the root is
 * TREE_ROOT and ids follow the order of building. A folder keeps its entries sorted by name.
 */

#include "merge/merge.h"

#include <assert.h>

#include "merge/merge-internal.h"

struct mem_entry {
	char *name;
	size_t len;
	uint64_t id;
};

struct mem_xattr {
	char *name;
	void *value;
	size_t len;
};

struct mem_node {
	struct attr attr;
	char *data;		       /* content or link target; attr.size bytes and a NUL */
	vec(struct mem_entry) entries; /* folder: sorted */
	vec(struct mem_xattr) xattrs;
	uint64_t parent; /* folder */
	char *name;	 /* folder: borrowed from the parent's entry; NULL for the root */
};

struct memtree {
	struct tree tree;
	vec(struct mem_node) nodes;
};

static struct mem_node *mem_node(struct tree *t, uint64_t id)
{
	struct memtree *m = containerof(t, struct memtree, tree);

	return id >= 1 && id <= m->nodes.n ? &m->nodes.items[id - 1] : NULL;
}

static int compare_names(const char *a, size_t a_len, const char *b, size_t b_len)
{
	int c = memcmp(a, b, MIN(a_len, b_len));

	return c != 0 ? c : (a_len > b_len) - (a_len < b_len);
}

/* The place of @name among the sorted entries, whether it is there or not. */
static size_t mem_find(const struct mem_node *dir, const char *name, size_t len, bool *found)
{
	size_t low = 0, high = dir->entries.n;

	*found = false;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct mem_entry *e = &dir->entries.items[mid];
		int c = compare_names(e->name, e->len, name, len);

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

/* ------------------------------------------------------------------ a tree's calls */

static int mem_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
		       struct err *err)
{
	const struct mem_node *n = mem_node(t, id);

	if (!n)
		return -ENOENT;
	*out = n->attr;
	return 0;
}

static int mem_dir(struct tree *t, uint64_t id, struct mem_node **out)
{
	*out = mem_node(t, id);
	if (!*out)
		return -ENOENT;
	return (*out)->attr.type == NODE_DIR ? 0 : -ENOTDIR;
}

static int mem_lookup(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		      struct tree_wait *wait, struct err *err)
{
	struct mem_node *d;
	bool found;

	int r = mem_dir(t, dir, &d);
	if (r < 0)
		return r;
	size_t i = mem_find(d, name, len, &found);
	return found ? mem_getattr(t, d->entries.items[i].id, out, wait, err) : -ENOENT;
}

static int mem_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		    struct tree_wait *wait, struct err *err)
{
	struct mem_node *d;

	int r = mem_dir(t, dir, &d);
	for (uint64_t i = from; r == 0 && i < d->entries.n; i++) {
		const struct mem_entry *e = &d->entries.items[i];

		r = fn(arg, e->name, e->len, &mem_node(t, e->id)->attr, i + 1);
	}
	return r;
}

static int mem_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
		      struct err *err)
{
	struct mem_node *d;

	int r = mem_dir(t, dir, &d);
	if (r < 0)
		return r;
	*out = d->parent;
	if (d->name)
		strbuf_puts(name, d->name);
	return name->failed ? -ENOMEM : 0;
}

static int mem_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	const struct mem_node *n = mem_node(t, id);

	if (!n)
		return -ENOENT;
	if (n->attr.type != NODE_SYMLINK)
		return -EINVAL;
	strbuf_add(out, n->data, n->attr.size);
	return out->failed ? -ENOMEM : 0;
}

static int mem_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	const struct mem_node *n = mem_node(t, id);
	int r = n ? 0 : -ENOENT;

	for (size_t i = 0; r == 0 && i < n->xattrs.n; i++) {
		const struct mem_xattr *x = &n->xattrs.items[i];

		r = fn(arg, x->name, x->value, x->len);
	}
	return r;
}

static int64_t mem_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			blob_done done, void *arg, struct err *err)
{
	const struct mem_node *n = mem_node(t, id);

	if (!n)
		return -ENOENT;
	if (n->attr.type != NODE_FILE)
		return n->attr.type == NODE_DIR ? -EISDIR : -EINVAL;
	if (off >= n->attr.size)
		return 0;
	size_t count = MIN(len, n->attr.size - off);
	memcpy(dst, n->data + off, count);
	return (int64_t)count;
}

static int mem_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	const struct mem_node *n = mem_node(t, id);

	if (!n)
		return -ENOENT;
	if (off >= n->attr.size)
		return -ENODATA;
	*data = off;
	*end = n->attr.size;
	return 0;
}

static void mem_free(struct tree *t)
{
	struct memtree *m = containerof(t, struct memtree, tree);

	for (size_t i = 0; i < m->nodes.n; i++) {
		struct mem_node *n = &m->nodes.items[i];

		for (size_t k = 0; k < n->entries.n; k++)
			free(n->entries.items[k].name);
		for (size_t k = 0; k < n->xattrs.n; k++) {
			free(n->xattrs.items[k].name);
			free(n->xattrs.items[k].value);
		}
		vec_free(&n->entries);
		vec_free(&n->xattrs);
		free(n->data);
	}
	vec_free(&m->nodes);
	free(m);
}

static const struct tree_ops mem_ops = {
	.getattr = mem_getattr,
	.lookup = mem_lookup,
	.list = mem_list,
	.parent = mem_parent,
	.readlink = mem_readlink,
	.xattrs = mem_xattrs,
	.read = mem_read,
	.seek_data = mem_seek_data,
	.free = mem_free,
};

/* ------------------------------------------------------------------ building one */

int memtree_new(struct tree **out)
{
	struct memtree *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	tree_init(&m->tree, &mem_ops, 1, false);
	struct mem_node *root = vec_push(&m->nodes);
	if (!root) {
		free(m);
		return -ENOMEM;
	}
	root->attr = (struct attr){
		.id = TREE_ROOT, .type = NODE_DIR, .mode = 0755, .nlink = 2, .is_implicit = true};
	root->parent = TREE_ROOT;
	*out = &m->tree;
	return 0;
}

int tree_empty(struct tree **out)
{
	return memtree_new(out);
}

/* Adds the name, which must not be there, for node @id. */
static int mem_enter(struct tree *t, uint64_t dir, const char *name, size_t len, uint64_t id)
{
	struct mem_node *d = mem_node(t, dir);
	scoped(free) char *copy = strndup(name, len);
	bool found;

	size_t i = mem_find(d, name, len, &found);
	assert(!found);
	if (!copy || !vec_push(&d->entries))
		return -ENOMEM;
	memmove(&d->entries.items[i + 1], &d->entries.items[i],
		(d->entries.n - 1 - i) * sizeof(*d->entries.items));

	struct mem_node *n = mem_node(t, id);
	if (n->attr.type == NODE_DIR) {
		d->attr.nlink++;
		n->parent = dir;
		n->name = copy;
	}
	d->entries.items[i] = (struct mem_entry){.name = take(copy), .len = len, .id = id};
	return 0;
}

static int mem_make(struct tree *t, uint64_t dir, const char *name, size_t len,
		    const struct attr *attr, const void *data, size_t data_len, uint64_t *id)
{
	struct memtree *m = containerof(t, struct memtree, tree);
	scoped(free) char *copy = malloc(data_len + 1);

	if (!copy || !vec_push(&m->nodes))
		return -ENOMEM;
	if (data_len > 0)
		memcpy(copy, data, data_len);
	copy[data_len] = '\0';
	*id = m->nodes.n;
	struct mem_node *n = mem_node(t, *id);
	n->attr = *attr;
	n->attr.id = *id;
	n->attr.nlink = attr->type == NODE_DIR ? 2 : 1;
	n->attr.size = n->attr.n_bytes_allocated = data_len;
	n->data = take(copy);
	return mem_enter(t, dir, name, len, *id);
}

/* Finds the folder for the last name of @path, which is cleaned; makes those that are missing. */
static int mem_parents(struct tree *t, const char *path, uint64_t *dir, const char **name)
{
	const struct attr made = {.type = NODE_DIR, .mode = 0755, .is_implicit = true};
	uint64_t at = TREE_ROOT;
	const char *p = path + 1, *slash;

	for (; (slash = strchr(p, '/')); p = slash + 1) {
		size_t len = (size_t)(slash - p);
		struct attr found;
		int r = mem_lookup(t, at, p, len, &found, NULL, NULL);

		if (r == -ENOENT)
			r = mem_make(t, at, p, len, &made, NULL, 0, &found.id);
		else if (r == 0 && found.type != NODE_DIR)
			r = -ENOTDIR;
		if (r < 0)
			return r;
		at = found.id;
	}
	*dir = at;
	*name = p;
	return 0;
}

/* A folder added again takes the new metadata and keeps what is in it. */
static int mem_replace_dir(struct mem_node *n, const struct attr *attr)
{
	if (n->attr.type != NODE_DIR || attr->type != NODE_DIR)
		return -EEXIST;
	uint64_t id = n->attr.id;
	uint32_t nlink = n->attr.nlink;
	n->attr = *attr;
	n->attr.id = id;
	n->attr.nlink = nlink;
	n->attr.size = n->attr.n_bytes_allocated = 0;
	return 0;
}

int memtree_add(struct tree *t, const char *path, const struct attr *attr, const void *data,
		size_t len)
{
	scoped(free) char *clean = path_clean(path, strlen(path));
	const char *name;
	uint64_t dir, id;
	struct attr old;

	if (!clean)
		return -ENOMEM;
	if (strcmp(clean, "/") == 0)
		return mem_replace_dir(mem_node(t, TREE_ROOT), attr);
	int r = mem_parents(t, clean, &dir, &name);
	if (r < 0)
		return r;
	if (mem_lookup(t, dir, name, strlen(name), &old, NULL, NULL) == 0)
		return mem_replace_dir(mem_node(t, old.id), attr);
	return mem_make(t, dir, name, strlen(name), attr, data, len, &id);
}

/* The node at @path exactly, no links followed. */
static struct mem_node *mem_at(struct tree *t, const char *path)
{
	struct attr attr;

	return tree_walk(t, path, false, &attr, NULL) == 0 ? mem_node(t, attr.id) : NULL;
}

int memtree_link(struct tree *t, const char *path, const char *target)
{
	scoped(free) char *clean = path_clean(path, strlen(path));
	const struct mem_node *n = mem_at(t, target);
	const char *name;
	struct attr old;
	uint64_t dir;

	if (!clean)
		return -ENOMEM;
	if (!n)
		return -ENOENT;
	if (n->attr.type == NODE_DIR)
		return -EPERM;
	uint64_t id = n->attr.id;
	int r = mem_parents(t, clean, &dir, &name);
	if (r < 0)
		return r;
	if (mem_lookup(t, dir, name, strlen(name), &old, NULL, NULL) == 0)
		return -EEXIST;
	r = mem_enter(t, dir, name, strlen(name), id);
	if (r == 0)
		mem_node(t, id)->attr.nlink++;
	return r;
}

int memtree_xattr(struct tree *t, const char *path, const char *name, const void *value, size_t len)
{
	struct mem_node *n = mem_at(t, path);
	scoped(free) char *name_copy = strdup(name);
	scoped(free) char *value_copy = malloc(len + 1);

	if (!n)
		return -ENOENT;
	struct mem_xattr *x = name_copy && value_copy ? vec_push(&n->xattrs) : NULL;
	if (!x)
		return -ENOMEM;
	if (len > 0)
		memcpy(value_copy, value, len);
	*x = (struct mem_xattr){.name = take(name_copy), .value = take(value_copy), .len = len};
	return 0;
}
