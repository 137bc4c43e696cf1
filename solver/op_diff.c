/* SPDX-License-Identifier: Apache-2.0 */

/*
 * DiffOp: what turns one result into another, as layers that can be laid over something else.
 *
 * When the lower one is what the upper one began with, the difference is the layers that came after
 * it: no file is looked at, and the layers stay what they are. Both are taken apart into lists of
 * layers for that. A list may be long beyond reason (30 merges of a merge with itself); then, and
 * when the two are not related, their trees are compared, and the changes make a layer: what was
 * added or changed, with the folders on the way, and whiteouts.
 */

#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define LAYERS_MAX 65536

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ lists of layers */

/* One layer, or a part that cannot be taken apart; all borrowed. */
struct piece {
	struct ref *ref;
	size_t layer; /* of an image */
	const char *trim, *add;
};
struct pieces {
	vec(struct piece) items; /* lowest first */
	vec(struct piece) todo;	 /* a stack; the lowest on top */
};

static void pieces_deinit(struct pieces *p)
{
	vec_free(&p->items);
	vec_free(&p->todo);
}

static void pieces_deinit_scoped(struct pieces *p)
{
	pieces_deinit(p);
}

static int add_piece(struct pieces *p, struct piece piece)
{
	struct piece *slot = vec_push(&p->items);
	if (!slot)
		return -ENOMEM;
	*slot = piece;
	return 0;
}

static int add_pieces_of(struct pieces *p, const struct piece *of)
{
	const struct ref_layer *layers;
	const struct ref_part *parts;
	int r = 0;
	if (of->trim || of->add)
		return add_piece(p, *of);
	switch (ref_kind(of->ref)) {
	case REF_SCRATCH:
		return 0;
	case REF_IMAGE:
		for (size_t i = 0, n = ref_layers(of->ref, &layers); i < n && r == 0; i++)
			r = add_piece(p, (struct piece){.ref = of->ref, .layer = i});
		return r;
	case REF_MERGE:
		for (size_t i = ref_parts(of->ref, &parts); i-- > 0;) {
			struct piece *slot = vec_push(&p->todo);
			if (!slot)
				return -ENOMEM;
			*slot = (struct piece){
				.ref = parts[i].ref, .trim = parts[i].trim, .add = parts[i].add};
		}
		return 0;
	case REF_DIR:
	case REF_TREE:
		break;
	}
	return add_piece(p, *of);
}

/* 1, or 0 when there are too many. */
static int pieces_read(struct pieces *p, struct ref *ref)
{
	struct piece *first = vec_push(&p->todo);
	if (!first)
		return -ENOMEM;
	first->ref = ref;
	while (p->todo.n > 0) {
		struct piece now = p->todo.items[--p->todo.n];
		int r = add_pieces_of(p, &now);
		if (r < 0)
			return r;
		if (p->items.n + p->todo.n > LAYERS_MAX)
			return 0;
	}
	return 1;
}

static bool same_text(const char *a, const char *b)
{
	return strcmp(a ? a : "", b ? b : "") == 0;
}

static bool same_piece(const struct piece *a, const struct piece *b)
{
	const struct ref_layer *x, *y;
	if (!same_text(a->trim, b->trim) || !same_text(a->add, b->add))
		return false;
	bool is_layer = !a->trim && !a->add && ref_kind(a->ref) == REF_IMAGE;
	if (!is_layer || ref_kind(b->ref) != REF_IMAGE)
		return ref_is_same(a->ref, b->ref);
	ref_layers(a->ref, &x);
	ref_layers(b->ref, &y);
	return digest_equal(&x[a->layer].desc.digest, &y[b->layer].desc.digest);
}

/* Whether @lower is what @upper begins with. */
static bool is_prefix(const struct pieces *lower, const struct pieces *upper)
{
	if (lower->items.n > upper->items.n)
		return false;
	for (size_t i = 0; i < lower->items.n; i++)
		if (!same_piece(&lower->items.items[i], &upper->items.items[i]))
			return false;
	return true;
}

/* A ref of the pieces from @first on. */
static int merge_rest(struct ref **out, const struct pieces *pieces, size_t first, struct err *err)
{
	size_t n = pieces->items.n - first;
	scoped(free) struct ref_part *parts = calloc(n + 1, sizeof(*parts));
	int r = parts ? 0 : no_memory(err);
	for (size_t i = 0; i < n && r == 0; i++) {
		const struct piece *p = &pieces->items.items[first + i];
		parts[i] = (struct ref_part){.trim = (char *)p->trim, .add = (char *)p->add};
		if (!p->trim && !p->add && ref_kind(p->ref) == REF_IMAGE)
			r = ref_slice(&parts[i].ref, p->ref, p->layer, p->layer, err);
		else
			parts[i].ref = ref_ref(p->ref);
	}
	if (r == 0)
		r = ref_merge(out, parts, n, err);
	for (size_t i = 0; parts && i < n; i++)
		ref_unref(parts[i].ref);
	return r;
}

/* 1 when the difference is layers. */
static int diff_layers(struct ref **out, struct ref *lower, struct ref *upper, struct err *err)
{
	scoped(pieces_deinit) struct pieces below = {0}, all = {0};
	if (lower == upper)
		return ref_scratch(out, err) < 0 ? -ENOMEM : 1;
	int r = pieces_read(&below, lower);
	if (r == 1)
		r = pieces_read(&all, upper);
	if (r < 0)
		return no_memory(err);
	if (r == 0 || !is_prefix(&below, &all))
		return 0;
	r = merge_rest(out, &all, below.items.n, err);
	return r < 0 ? r : 1;
}

/* ------------------------------------------------------------------ trees */

struct changes {
	struct tree *upper;
	struct edit *edit;
	struct copy_links links;
	struct err *err;
};

static int make_change(struct changes *c, uint64_t dir, const char *name, const struct attr *new)
{
	const struct edit_what what = {
		.attr = new, .from = c->upper, .from_id = new->id, .was = new};
	uint64_t node;
	bool has_names = new->nlink > 1 && new->type != NODE_DIR;
	uint64_t same = has_names ? copy_links_find(&c->links, new->id) : 0;
	if (same)
		return edit_link(c->edit, dir, name, strlen(name), same, c->err);
	int r = edit_make(c->edit, dir, name, strlen(name), &what, &node, c->err);
	if (r == 0 && has_names && copy_links_add(&c->links, new->id, node) < 0)
		return no_memory(c->err);
	return r;
}

/* The folder of a change, made with those above it as the upper tree has them. */
static int change_dir(struct changes *c, const char *path, uint64_t *dir, const char **name)
{
	uint64_t at = TREE_ROOT, node;
	int r = 0;
	for (const char *p = path + 1;; p++) {
		size_t len = strcspn(p, "/");
		if (!p[len]) {
			*name = p;
			*dir = at;
			return 0;
		}
		scoped(free) char *part = strndup(p, len);
		scoped(free) char *whole = strndup(path, (size_t)(p + len - path));
		struct attr attr;
		if (!part || !whole)
			return no_memory(c->err);
		r = edit_child(c->edit, at, part, len, &node, c->err);
		if (r == 0 && !node)
			r = tree_walk(c->upper, whole, false, &attr, c->err);
		if (r == 0 && !node) {
			r = make_change(c, at, part, &attr);
			if (r == 0)
				r = edit_child(c->edit, at, part, len, &node, c->err);
		}
		if (r < 0)
			return r;
		at = node;
		p += len;
	}
}

static int on_change(void *arg, const struct change *change)
{
	struct changes *c = arg;
	const char *name = NULL;
	uint64_t dir = 0, node;
	int r = change_dir(c, change->path, &dir, &name);
	if (r < 0)
		return r;
	if (change->kind == 'D')
		return edit_whiteout(c->edit, dir, name, strlen(name), c->err);
	r = edit_child(c->edit, dir, name, strlen(name), &node, c->err);
	return r < 0 || node ? r : make_change(c, dir, name, change->new);
}

static int diff_trees(struct ref **out, const struct vertex *v, struct tree *lower,
		      struct tree *upper, struct err *err)
{
	scoped(tree_unref) struct tree *layer = NULL;
	scoped(edit_free) struct edit *edit = NULL;
	if (edit_new(&edit, NULL, NULL) < 0)
		return no_memory(err);
	struct changes c = {.upper = upper, .edit = edit, .err = err};
	int r = tree_diff(lower, upper, on_change, &c, err);
	copy_links_clear(&c.links);
	if (r < 0)
		return r;
	if (edit_is_empty(edit))
		return ref_scratch(out, err);
	r = edit_seal(&layer, &edit, err);
	return r < 0 ? r : ref_made(out, v->name, layer, err);
}

/* ------------------------------------------------------------------ the operation */

static int side(struct ref **out, ssize_t input, struct ref *const *inputs, struct err *err)
{
	if (input < 0)
		return ref_scratch(out, err);
	*out = ref_ref(inputs[input]);
	return 0;
}

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	scoped(ref_unref) struct ref *lower = NULL, *upper = NULL;
	scoped(tree_unref) struct tree *old = NULL, *new = NULL;
	struct store *store = solver->options.store;
	int r = side(&lower, v->op.diff.lower, inputs, err);
	if (r == 0)
		r = side(&upper, v->op.diff.upper, inputs, err);
	if (r == 0)
		r = diff_layers(&outputs[0], lower, upper, err);
	if (r != 0)
		return MIN(r, 0);
	r = ref_tree(&old, lower, store, NULL, NULL, err);
	if (r == 0)
		r = ref_tree(&new, upper, store, NULL, NULL, err);
	return r < 0 ? r : diff_trees(&outputs[0], v, old, new, err);
}

const struct op_ops op_diff = {.run = run};
