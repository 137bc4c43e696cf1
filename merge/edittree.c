/* SPDX-License-Identifier: Apache-2.0 */

/*
 * edittree: changes on top of a tree, gathered in memory, and the layer that they make.
 *
 * An edit is what the upper folder of an overlay is: the names that were made, whiteouts for those
 * that were removed, and the folders on the way to them with their metadata. While it is made
 * (struct edit), it shows the tree below with the changes in it; a folder or file of that tree is
 * looked up when somebody asks for its name, and stands in the edit from then on. Sealing drops
 * what was only looked at, and the tree below: what is left is a raw layer, immutable, which goes
 * into a union as layers do. So 1,000 edits on top of each other are one flat union.
 *
 * A copied file is a pointer to its source: no byte is moved. The pointer leads to where the bytes
 * are, through unions and through other edits, so that a copy of a copy of a copy is as fast as the
 * first. Links' targets and xattrs are copied. Of a live source (a host folder) the names are those
 * of the time of the copy; when a file was changed since, reading it fails with -ESTALE, as bytes
 * that do not belong to the size and the time shown would be worse.
 *
 * Nodes are inodes: they lie in one array, number i has the id i + 1, and names refer to them, so
 * that hard links are two names of one node. A folder keeps its names sorted. The layer (sealed.c)
 * has only the nodes that it shows, numbered in an order that depends on nothing but the layer.
 */

#include "merge/merge.h"

#include <assert.h>

#include "merge/edit-internal.h"
#include "merge/merge-internal.h"

struct edit {
	struct tree *below;
	bool has_now;
	struct timespec now;
	vec(struct edit_node) nodes;
};

static struct edit_node *node_of(struct edit *e, uint64_t id)
{
	assert(id >= 1 && id <= e->nodes.n);
	return &e->nodes.items[id - 1];
}

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ making and freeing */

int edit_new(struct edit **out, struct tree *below, const struct timespec *now)
{
	struct edit *e = calloc(1, sizeof(*e));
	struct edit_node *root = e ? vec_push(&e->nodes) : NULL;

	if (!root) {
		free(e);
		return -ENOMEM;
	}
	root->attr = (struct attr){
		.id = TREE_ROOT, .type = NODE_DIR, .mode = 0755, .nlink = 2, .is_implicit = true};
	root->parent = TREE_ROOT;
	root->name = "";
	root->below = below ? TREE_ROOT : 0;
	e->below = tree_ref(below);
	e->has_now = now != NULL;
	if (now)
		e->now = *now;
	*out = e;
	return 0;
}

void edit_free(struct edit *e)
{
	if (!e)
		return;
	edit_nodes_free(e->nodes.items, e->nodes.n);
	tree_unref(e->below);
	free(e);
}

/* ------------------------------------------------------------------ names */

/* Puts a name into a folder; the one that is there, which says "removed", is taken. */
static int entry_put(struct edit *e, uint64_t dir, const char *name, size_t len, uint64_t node,
		     bool is_hiding)
{
	struct edit_node *d = node_of(e, dir);
	bool found;
	size_t i = edit_entry_place(d, name, len, &found);

	if (!found) {
		scoped(free) char *copy = strndup(name, len);
		if (!copy || !vec_push(&d->entries))
			return -ENOMEM;
		memmove(&d->entries.items[i + 1], &d->entries.items[i],
			(d->entries.n - 1 - i) * sizeof(*d->entries.items));
		d->entries.items[i] = (struct edit_entry){
			.name = take(copy), .len = (uint32_t)len, .is_hiding = is_hiding};
	}
	d->entries.items[i].node = node;
	struct edit_node *n = node_of(e, node);
	if (n->attr.type == NODE_DIR) {
		n->parent = dir;
		n->name = d->entries.items[i].name;
	}
	return 0;
}

/* A new node; its index in the array is its id. */
static struct edit_node *node_new(struct edit *e, const struct attr *attr)
{
	struct edit_node *n = vec_push(&e->nodes);

	if (!n)
		return NULL;
	n->attr = *attr;
	n->attr.id = e->nodes.n;
	n->attr.nlink = attr->type == NODE_DIR ? 2 : 1;
	n->attr.is_opaque = n->attr.is_implicit = n->attr.is_live = false;
	return n;
}

static int collect_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct edit_node *n = arg;
	struct edit_xattr *x = vec_push(&n->xattrs);

	if (!x)
		return -ENOMEM;
	x->name = strdup(name);
	x->value = malloc(len + 1);
	x->len = len;
	if (!x->name || !x->value)
		return -ENOMEM;
	memcpy(x->value, value, len);
	return 0;
}

/* Makes @n point to the bytes of a file of another tree. */
static void node_point(struct edit_node *n, const struct attr *was, struct tree *source,
		       uint64_t id)
{
	n->source_mtime_s = was->mtime_s;
	n->source_mtime_ns = was->mtime_ns;
	for (;;) {
		union_origin(&source, &id);
		const struct edit_node *there = sealed_node(source, id);
		if (!there || !there->source)
			break;
		source = there->source;
		id = there->source_id;
		n->source_mtime_s = there->source_mtime_s;
		n->source_mtime_ns = there->source_mtime_ns;
	}
	n->source = tree_ref(source);
	n->source_id = id;
}

/* Gives @n content, target and xattrs of a node of another tree. */
static int node_copy(struct edit_node *n, struct tree *from, uint64_t id, const struct attr *was,
		     struct err *err)
{
	if (n->attr.type == NODE_FILE) {
		node_point(n, was, from, id);
		return tree_xattrs(from, id, collect_xattr, n, err);
	}
	if (n->attr.type == NODE_SYMLINK) {
		scoped(strbuf_free) struct strbuf target = {0};
		int r = tree_readlink(from, id, &target, err);
		if (r < 0)
			return r;
		n->attr.size = target.len;
		n->data = strbuf_finish(&target);
		if (!n->data)
			return no_memory(err);
	}
	return tree_xattrs(from, id, collect_xattr, n, err);
}

int edit_child(struct edit *e, uint64_t dir, const char *name, size_t len, uint64_t *node,
	       struct err *err)
{
	struct edit_node *d = node_of(e, dir);
	struct attr attr;
	bool found;

	*node = 0;
	if (d->attr.type != NODE_DIR)
		return err_set(err, -ENOTDIR, "not a folder");
	size_t i = edit_entry_place(d, name, len, &found);
	if (found) {
		*node = d->entries.items[i].node;
		return 0;
	}
	if (!d->below)
		return len > 255 ? err_set(err, -ENAMETOOLONG, "a name of %zu bytes", len) : 0;
	int r = tree_lookup(e->below, d->below, name, len, &attr, NULL, err);
	if (r == -ENOENT) {
		if (err)
			*err = (struct err){0};
		return 0;
	}
	if (r < 0)
		return r;
	struct edit_node *n = node_new(e, &attr);
	if (!n)
		return no_memory(err);
	uint64_t id = n->attr.id;
	if (attr.type == NODE_DIR)
		n->below = attr.id;
	r = node_copy(n, e->below, attr.id, &attr, err);
	if (r == 0 && entry_put(e, dir, name, len, id, true) < 0)
		r = no_memory(err);
	if (r == 0)
		*node = id;
	return r;
}

const struct attr *edit_attr(struct edit *e, uint64_t node)
{
	return &node_of(e, node)->attr;
}

const char *edit_target(struct edit *e, uint64_t node)
{
	struct edit_node *n = node_of(e, node);

	assert(n->attr.type == NODE_SYMLINK);
	return n->data;
}

/* ------------------------------------------------------------------ paths */

struct edit_walk {
	vec(uint64_t) nodes; /* of the path's names, the root first; 0 = not there */
	vec(size_t) lens;    /* of the real path up to each */
	struct strbuf real, rest;
	size_t pos;
	int n_links;
};

static int walk_push(struct edit_walk *w, uint64_t node)
{
	uint64_t *slot = vec_push(&w->nodes);
	size_t *len = vec_push(&w->lens);

	if (!slot || !len)
		return -ENOMEM;
	*slot = node;
	*len = w->real.len;
	return 0;
}

static void walk_cut(struct edit_walk *w, size_t n)
{
	w->nodes.n = w->lens.n = n;
	w->real.len = w->lens.items[n - 1];
	if (w->real.data)
		w->real.data[w->real.len] = '\0';
}

static int walk_link(struct edit_walk *w, const char *target, const char *path, struct err *err)
{
	scoped(strbuf_free) struct strbuf text = {0};

	if (++w->n_links > 255)
		return err_set(err, -ELOOP, "%s: too many symbolic links", path);
	if (target[0] == '/')
		walk_cut(w, 1);
	strbuf_puts(&text, target);
	strbuf_putc(&text, '/');
	strbuf_add(&text, w->rest.data + w->pos, w->rest.len - w->pos);
	strbuf_clear(&w->rest);
	strbuf_add(&w->rest, text.data, text.len);
	w->pos = 0;
	return text.failed || w->rest.failed ? no_memory(err) : 0;
}

static int walk_name(struct edit *e, struct edit_walk *w, const char *name, size_t len,
		     enum edit_follow follow, const char *path, struct err *err)
{
	uint64_t at = w->nodes.items[w->nodes.n - 1], node = 0;
	bool is_last = strspn(w->rest.data + w->pos, "/") == w->rest.len - w->pos;

	if (len == 1 && name[0] == '.')
		return 0;
	if (len == 2 && name[0] == '.' && name[1] == '.') {
		if (w->nodes.n > 1)
			walk_cut(w, w->nodes.n - 1);
		return 0;
	}
	int r = at ? edit_child(e, at, name, len, &node, err) : 0;
	if (r < 0)
		return err_wrap(err, r, "%s", path);
	if (node && edit_attr(e, node)->type == NODE_SYMLINK &&
	    (!is_last || follow != EDIT_NO_FOLLOW)) {
		const char *target = edit_target(e, node);
		if (target[0] == '/' && is_last && follow == EDIT_FOLLOW_RELATIVE)
			node = 0;
		else
			return walk_link(w, target, path, err);
	}
	strbuf_putc(&w->real, '/');
	strbuf_add(&w->real, name, len);
	return w->real.failed || walk_push(w, node) < 0 ? no_memory(err) : 0;
}

int edit_walk(struct edit *e, const char *path, enum edit_follow follow, uint64_t *node,
	      struct strbuf *real, struct err *err)
{
	struct edit_walk w = {0};
	scoped(free) char *clean = path_clean(path, strlen(path));
	int r = clean ? walk_push(&w, TREE_ROOT) : -ENOMEM;

	strbuf_puts(&w.rest, clean ? clean : "");
	if (r < 0 || w.rest.failed)
		r = no_memory(err);
	while (r == 0) {
		w.pos += strspn(w.rest.data + w.pos, "/");
		size_t len = strcspn(w.rest.data + w.pos, "/");
		if (len == 0)
			break;
		scoped(free) char *name = strndup(w.rest.data + w.pos, len);
		w.pos += len;
		r = name ? walk_name(e, &w, name, len, follow, path, err) : no_memory(err);
	}
	if (r == 0) {
		*node = w.nodes.items[w.nodes.n - 1];
		if (real && w.real.len == 0)
			strbuf_putc(real, '/');
		else if (real)
			strbuf_add(real, w.real.data, w.real.len);
		if (real && real->failed)
			r = no_memory(err);
	}
	vec_free(&w.nodes);
	vec_free(&w.lens);
	strbuf_free(&w.real);
	strbuf_free(&w.rest);
	return r;
}

/* ------------------------------------------------------------------ changes */

/* A node that stays, with all folders above it. */
static void mark_changed(struct edit *e, uint64_t id)
{
	for (struct edit_node *n = node_of(e, id); !n->is_changed; n = node_of(e, n->parent))
		n->is_changed = true;
}

/* Names came or went in it. */
static void touch(struct edit *e, uint64_t dir)
{
	struct edit_node *d = node_of(e, dir);

	mark_changed(e, dir);
	if (e->has_now) {
		d->attr.mtime_s = e->now.tv_sec;
		d->attr.mtime_ns = (uint32_t)e->now.tv_nsec;
	}
}

int edit_make(struct edit *e, uint64_t dir, const char *name, size_t len,
	      const struct edit_what *what, uint64_t *node, struct err *err)
{
	struct edit_node *n = node_new(e, what->attr);
	int r = 0;
	bool found;

	if (!n)
		return no_memory(err);
	uint64_t id = n->attr.id;
	n->is_changed = true;
	if (what->from) {
		r = node_copy(n, what->from, what->from_id, what->was, err);
	} else {
		n->attr.size = n->attr.n_bytes_allocated = what->len;
		n->data = malloc(what->len + 1);
		if (!n->data)
			return no_memory(err);
		if (what->len > 0)
			memcpy(n->data, what->data, what->len);
		n->data[what->len] = '\0';
	}
	if (r < 0)
		return r;
	/* What stands there says "removed" and whether something lower is to stay hidden. */
	struct edit_node *d = node_of(e, dir);
	size_t i = edit_entry_place(d, name, len, &found);
	assert(!found || d->entries.items[i].node == 0);
	n = node_of(e, id);
	n->attr.is_opaque = n->attr.type == NODE_DIR && found && d->entries.items[i].is_hiding;
	if (entry_put(e, dir, name, len, id, false) < 0)
		return no_memory(err);
	touch(e, dir);
	*node = id;
	return 0;
}

int edit_link(struct edit *e, uint64_t dir, const char *name, size_t len, uint64_t node,
	      struct err *err)
{
	if (entry_put(e, dir, name, len, node, false) < 0)
		return no_memory(err);
	node_of(e, node)->attr.nlink++;
	node_of(e, node)->is_changed = true;
	touch(e, dir);
	return 0;
}

void edit_remove(struct edit *e, uint64_t dir, const char *name, size_t len)
{
	struct edit_node *d = node_of(e, dir);
	bool found;
	size_t i = edit_entry_place(d, name, len, &found);
	struct edit_entry *entry = &d->entries.items[i];

	assert(found && entry->node);
	struct edit_node *n = node_of(e, entry->node);
	if (n->attr.type != NODE_DIR && n->is_changed)
		n->attr.nlink--;
	entry->node = 0;
	touch(e, dir);
}

int edit_whiteout(struct edit *e, uint64_t dir, const char *name, size_t len, struct err *err)
{
	const struct attr attr = {.type = NODE_WHITEOUT};
	struct edit_node *n = node_new(e, &attr);

	if (!n)
		return no_memory(err);
	n->is_changed = true;
	if (entry_put(e, dir, name, len, n->attr.id, false) < 0)
		return no_memory(err);
	mark_changed(e, dir);
	return 0;
}

void edit_set(struct edit *e, uint64_t node, const struct attr *attr)
{
	struct edit_node *n = node_of(e, node);

	/* A file's folder is known by name only; its names were touched when it was made. */
	if (n->attr.type == NODE_DIR)
		mark_changed(e, node);
	assert(n->is_changed);
	n->attr.mode = attr->mode;
	n->attr.uid = attr->uid;
	n->attr.gid = attr->gid;
	n->attr.mtime_s = attr->mtime_s;
	n->attr.mtime_ns = attr->mtime_ns;
}

int edit_set_xattrs(struct edit *e, uint64_t node, struct tree *from, uint64_t from_id,
		    struct err *err)
{
	edit_xattrs_free(node_of(e, node));
	return tree_xattrs(from, from_id, collect_xattr, node_of(e, node), err);
}

int edit_add_xattr(struct edit *e, uint64_t node, const char *name, const void *value, size_t len,
		   struct err *err)
{
	return collect_xattr(node_of(e, node), name, value, len) < 0 ? no_memory(err) : 0;
}

void edit_keep_xattr(struct edit *e, uint64_t node, const char *name)
{
	struct edit_node *n = node_of(e, node);
	size_t kept = 0;

	for (size_t i = 0; i < n->xattrs.n; i++) {
		struct edit_xattr *x = &n->xattrs.items[i];
		if (strcmp(x->name, name) == 0) {
			n->xattrs.items[kept++] = *x;
		} else {
			free(x->name);
			free(x->value);
		}
	}
	n->xattrs.n = kept;
}

int edit_write(struct edit *e, uint64_t dir, const char *name, size_t len, uint64_t *node,
	       const void *data, size_t n_data, struct err *err)
{
	struct attr attr = *edit_attr(e, *node);
	struct edit_node *old = node_of(e, *node);

	assert(attr.type == NODE_FILE);
	if (old->is_changed) { /* made here: all its names see it */
		char *copy = malloc(n_data + 1);
		if (!copy)
			return no_memory(err);
		if (n_data > 0)
			memcpy(copy, data, n_data);
		free(old->data);
		old->data = copy;
		old->source = tree_unref(old->source);
		old->attr.size = old->attr.n_bytes_allocated = n_data;
		return 0;
	}
	const struct edit_what what = {.attr = &attr, .data = data, .len = n_data};
	struct attr parent = *edit_attr(e, dir);
	uint64_t was = *node;
	edit_remove(e, dir, name, len);
	int r = edit_make(e, dir, name, len, &what, node, err);
	if (r < 0)
		return r;
	edit_set(e, dir, &parent); /* writing is no change of the folder */
	struct edit_node *old_one = node_of(e, was), *new_one = node_of(e, *node);
	memcpy(&new_one->xattrs, &old_one->xattrs, sizeof(new_one->xattrs));
	memset(&old_one->xattrs, 0, sizeof(old_one->xattrs));
	return 0;
}

bool edit_is_empty(struct edit *e)
{
	return !node_of(e, TREE_ROOT)->is_changed;
}

/* ------------------------------------------------------------------ the layer */

/* Leaves in a folder what the layer shows: changes, and whiteouts (node @whiteout). */
static void seal_folder(struct edit *e, struct edit_node *d, uint64_t whiteout)
{
	size_t kept = 0;

	for (size_t i = 0; i < d->entries.n; i++) {
		struct edit_entry *entry = &d->entries.items[i];

		if (!entry->node && entry->is_hiding)
			entry->node = whiteout;
		if (entry->node && node_of(e, entry->node)->is_changed)
			d->entries.items[kept++] = *entry;
		else
			free(entry->name);
	}
	d->entries.n = kept;
}

int edit_seal(struct tree **out, struct edit **edit, struct err *err)
{
	const struct attr attr = {.type = NODE_WHITEOUT};
	struct edit *e = *edit;
	struct edit_node *whiteout = node_new(e, &attr);

	if (!whiteout)
		return no_memory(err);
	whiteout->is_changed = true;
	uint64_t id = whiteout->attr.id;
	for (size_t i = 0; i < e->nodes.n; i++)
		seal_folder(e, &e->nodes.items[i], id);
	int r = sealed_new(out, e->nodes.items, e->nodes.n, err);
	if (r == 0)
		edit_free(take(*edit));
	return r;
}
