/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The files of a ref: one cooked union over everything that it is made of.
 *
 * Trees of a merge associate, so nested merges become one flat list of inputs, each with the path
 * that the addPrefixes on the way to it make up. Only what has a trimPrefix cannot dissolve: its
 * path is resolved in the part as a whole, so the part becomes a raw union, which is one input.
 *
 * The list is made from the top down, and what has been met before at the same place is left out:
 * an input changes nothing when it lies above, too. Proof: whatever the lower one shows at a path
 * and nothing in between hides, the upper one shows at that path and less lies over it; whatever
 * the lower one hides, the upper one hides. So a base image under every part of a merge is one set
 * of layers, and thirty merges of a merge with itself are thirty steps, not 2^30.
 *
 * Merges nest as deep as a definition is long: the walk keeps a stack of its own. Trimmed parts are
 * walked by recursion, but a chain of those is as deep as every lookup in it will be, so it is
 * bounded (TRIM_DEPTH_MAX).
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define TRIM_DEPTH_MAX 16
/* A place in a tree that no path of a system call reaches needs no mount. */
#define ADD_MAX 4096

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ trees by key */

/* key -> tree, or a set of keys where trees are NULL. Open addressing, at most half full. */
struct treemap {
	struct treemap_slot {
		char *key;
		struct tree *tree; /* holds a reference */
		unsigned height;   /* of trimmed parts in it */
	} * slots;
	size_t n, size;
};

static struct treemap_slot *treemap_find(const struct treemap *m, const char *key)
{
	size_t i = (size_t)hash_bytes(key, strlen(key)) & (m->size - 1);
	while (m->slots[i].key && strcmp(m->slots[i].key, key) != 0)
		i = (i + 1) & (m->size - 1);
	return &m->slots[i];
}

static int treemap_grow(struct treemap *m)
{
	struct treemap bigger = {.size = m->size ? m->size * 2 : 64, .n = m->n};
	bigger.slots = calloc(bigger.size, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (size_t i = 0; i < m->size; i++)
		if (m->slots[i].key)
			*treemap_find(&bigger, m->slots[i].key) = m->slots[i];
	free(m->slots);
	*m = bigger;
	return 0;
}

/* The slot of @key, which is copied when it is new (*is_new). NULL = no memory. */
static struct treemap_slot *treemap_add(struct treemap *m, const char *key, bool *is_new)
{
	if (m->n * 2 >= m->size && treemap_grow(m) < 0)
		return NULL;
	struct treemap_slot *slot = treemap_find(m, key);
	*is_new = !slot->key;
	if (*is_new) {
		if (!(slot->key = strdup(key)))
			return NULL;
		m->n++;
	}
	return slot;
}

static void treemap_deinit(struct treemap *m)
{
	for (size_t i = 0; i < m->size; i++) {
		free(m->slots[i].key);
		tree_unref(m->slots[i].tree);
	}
	free(m->slots);
	*m = (struct treemap){0};
}

/* ------------------------------------------------------------------ the walk */

struct builder {
	struct store *store;
	struct treemap leaves; /* layers by digest, folders by path: each is opened once */
	struct treemap wholes; /* parts that were trimmed, by ref */
	vec(struct ref_tree_layer) rows; /* top first */
};

/* Something that is still to be looked at. */
struct todo {
	struct ref *ref;
	const char *trim; /* borrowed from its part */
	char *add;	  /* owned; NULL = the root */
};

/* One flat list in the making. */
struct flat {
	struct builder *b;
	unsigned depth;	       /* of trimmed parts that this lies in */
	unsigned height;       /* of trimmed parts that lie in this */
	vec(struct todo) todo; /* a stack */
	struct treemap seen;
	struct copy_links seen_plain;	/* refs without add and trim, which are many */
	vec(struct union_input) inputs; /* top first; trees are referenced, adds owned */
};

static int build_whole(struct builder *b, struct ref *ref, unsigned depth, struct treemap_slot *out,
		       struct err *err);

static void flat_deinit(struct flat *f)
{
	for (size_t i = 0; i < f->todo.n; i++)
		free(f->todo.items[i].add);
	vec_free(&f->todo);
	for (size_t i = 0; i < f->inputs.n; i++) {
		tree_unref(f->inputs.items[i].tree);
		free((char *)f->inputs.items[i].add);
	}
	vec_free(&f->inputs);
	treemap_deinit(&f->seen);
	copy_links_clear(&f->seen_plain);
}

static void flat_deinit_scoped(struct flat *f)
{
	flat_deinit(f);
}

/* True the first time that @what is met at @add. Errors: -ENOMEM. */
static int is_first(struct flat *f, const char *what, const char *add, const char *trim)
{
	/* With their lengths before them, no two triples are written alike. */
	scoped(free) char *key =
		str_printf("%zu %s %zu %s %s", strlen(what), what, add ? strlen(add) : 0,
			   add ? add : "", trim ? trim : "");
	bool is_new = false;
	if (!key || !treemap_add(&f->seen, key, &is_new))
		return -ENOMEM;
	return is_new;
}

/* The same for a ref. */
static int is_first_ref(struct flat *f, const struct todo *todo)
{
	uint64_t plain = (uintptr_t)todo->ref;
	char key[DIGEST_HEX_MAX];
	if (!todo->add && !todo->trim)
		return copy_links_find(&f->seen_plain, plain)		  ? 0
		       : copy_links_add(&f->seen_plain, plain, plain) < 0 ? -ENOMEM
									  : 1;
	return is_first(f, ref_key(todo->ref, key), todo->add, todo->trim);
}

static int add_input(struct flat *f, struct tree *tree, const char *add, const char *trim,
		     struct err *err)
{
	struct union_input *input = vec_push(&f->inputs);
	if (!input)
		return no_memory(err);
	input->tree = tree_ref(tree);
	input->trim = trim;
	if (add && !(input->add = strdup(add)))
		return no_memory(err);
	return 0;
}

/* The tree of a layer (@layer) or a host folder (@dir), opened once whatever its places. */
static int leaf_tree(struct builder *b, const char *key, const struct ref_layer *layer,
		     const char *dir, struct tree **out, struct err *err)
{
	bool is_new;
	struct treemap_slot *slot = treemap_add(&b->leaves, key, &is_new);
	if (!slot)
		return no_memory(err);
	*out = slot->tree;
	if (slot->tree)
		return 0;
	int r;
	if (dir) {
		r = dirtree_new(&slot->tree, dir, false, err);
	} else {
		bool is_known = !digest_is_zero(&layer->diff_id);
		r = layer_open(&slot->tree, b->store, &layer->desc, layer->remote,
			       is_known ? &layer->diff_id : NULL, err);
	}
	if (r < 0)
		return r;
	struct ref_tree_layer *row = vec_push(&b->rows);
	if (!row)
		return no_memory(err);
	*row = (struct ref_tree_layer){tree_ref(slot->tree), layer, dir};
	*out = slot->tree;
	return 0;
}

static int add_leaf(struct flat *f, const struct ref_layer *layer, const char *dir, const char *add,
		    struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	const char *key = dir ? dir : digest_text(&layer->desc.digest, text);
	int r = is_first(f, key, add, NULL);
	if (r <= 0)
		return r < 0 ? no_memory(err) : 0;
	struct tree *tree;
	r = leaf_tree(f->b, key, layer, dir, &tree, err);
	return r < 0 ? r : add_input(f, tree, add, NULL, err);
}

static int add_layers(struct flat *f, struct ref *ref, const char *add, struct err *err)
{
	const struct ref_layer *layers;
	for (size_t i = ref_layers(ref, &layers); i-- > 0;) {
		int r = add_leaf(f, &layers[i], NULL, add, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* An empty folder at @add: all that nothing, put somewhere, makes. */
static int add_nothing(struct flat *f, const char *add, struct err *err)
{
	scoped(tree_unref) struct tree *tree = NULL;
	if (!add)
		return 0;
	return tree_empty(&tree) < 0 ? no_memory(err) : add_input(f, tree, add, NULL, err);
}

static int too_deep(struct err *err)
{
	return err_set(err, -ENOTSUP, "trimmed parts in trimmed parts, deeper than %d",
		       TRIM_DEPTH_MAX);
}

/* A part of which only what lies under @trim is wanted. */
static int add_trimmed(struct flat *f, struct ref *ref, const char *add, const char *trim,
		       struct err *err)
{
	char key[DIGEST_HEX_MAX];
	ref_key(ref, key);
	struct treemap *wholes = &f->b->wholes;
	bool is_new;
	struct treemap_slot *slot = treemap_add(wholes, key, &is_new);
	if (!slot)
		return no_memory(err);
	if (!slot->tree) {
		struct treemap_slot whole = {0};
		int r = build_whole(f->b, ref, f->depth + 1, &whole, err);
		if (r < 0)
			return r;
		slot = treemap_find(wholes, key); /* building others may have moved it */
		slot->tree = whole.tree;
		slot->height = whole.height;
	}
	f->height = MAX(f->height, slot->height + 1);
	return f->height > TRIM_DEPTH_MAX ? too_deep(err)
					  : add_input(f, slot->tree, add, trim, err);
}

/* The path of a part below @outer, which lies below what holds it. */
static int join_add(char **out, const char *outer, const char *inner, struct err *err)
{
	*out = NULL;
	if (!outer && !inner)
		return 0;
	if (!(*out = str_printf("%s%s", outer ? outer : "", inner ? inner : "")))
		return no_memory(err);
	if (strlen(*out) >= ADD_MAX)
		return err_set(err, -ENAMETOOLONG,
			       "addPrefixes of nested parts make a path of %zu "
			       "bytes",
			       strlen(*out));
	return 0;
}

/* The parts of a merge go on the stack, the last on top. */
static int add_parts(struct flat *f, struct ref *ref, const char *add, struct err *err)
{
	const struct ref_part *parts;
	size_t n = ref_parts(ref, &parts);
	for (size_t i = 0; i < n; i++) {
		struct todo *todo = vec_push(&f->todo);
		if (!todo)
			return no_memory(err);
		todo->ref = parts[i].ref;
		todo->trim = parts[i].trim;
		int r = join_add(&todo->add, add, parts[i].add, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The parts of a merge; of one that is put nowhere, many layers at once. */
static int add_merge(struct flat *f, struct ref *ref, const char *add, struct err *err)
{
	scoped(tree_unref) struct tree *skip = NULL;
	struct ref *below;
	int r = add ? 0 : ref_skip(ref, &skip, &below, err);
	if (r == 0)
		return add_parts(f, ref, add, err);
	if (r > 0)
		r = add_input(f, skip, NULL, NULL, err);
	struct todo *todo = r < 0 ? NULL : vec_push(&f->todo);
	if (!todo)
		return r < 0 ? r : no_memory(err);
	todo->ref = below;
	return 0;
}

static int look_at(struct flat *f, const struct todo *todo, struct err *err)
{
	struct tree *made;
	int r = is_first_ref(f, todo);
	if (r <= 0)
		return r < 0 ? no_memory(err) : 0;
	if (todo->trim)
		return add_trimmed(f, todo->ref, todo->add, todo->trim, err);
	switch (ref_kind(todo->ref)) {
	case REF_IMAGE:
		return add_layers(f, todo->ref, todo->add, err);
	case REF_DIR:
		return add_leaf(f, NULL, ref_dir(todo->ref), todo->add, err);
	case REF_TREE:
		r = ref_made_tree(todo->ref, &made, err);
		return r < 0 ? r : add_input(f, made, todo->add, NULL, err);
	case REF_MERGE:
		return add_merge(f, todo->ref, todo->add, err);
	case REF_SCRATCH:
		break;
	}
	return add_nothing(f, todo->add, err);
}

static int flatten(struct flat *f, struct ref *ref, struct err *err)
{
	struct todo *first = vec_push(&f->todo);
	if (!first)
		return no_memory(err);
	first->ref = ref;
	while (f->todo.n > 0) {
		struct todo now = f->todo.items[--f->todo.n];
		int r = look_at(f, &now, err);
		free(now.add);
		if (r < 0)
			return r;
	}
	/* Unions take the lowest first. */
	for (size_t i = 0, k = f->inputs.n; k > i + 1; i++) {
		struct union_input swap = f->inputs.items[i];
		f->inputs.items[i] = f->inputs.items[--k];
		f->inputs.items[k] = swap;
	}
	return 0;
}

static int build(struct flat *f, struct ref *ref, bool is_raw, struct tree **out, struct err *err)
{
	int r = flatten(f, ref, err);
	if (r < 0)
		return r;
	if (f->inputs.n == 0)
		return tree_empty(out) < 0 ? no_memory(err) : 0;
	/* One raw input is what a raw union of it would be; and so is one host folder, which has
	 * nothing to cook. */
	const struct union_input *only = &f->inputs.items[0];
	if (f->inputs.n == 1 && !only->add && !only->trim && (is_raw || ref_kind(ref) == REF_DIR)) {
		*out = tree_ref(only->tree);
		return 0;
	}
	return union_new(out, f->inputs.items, f->inputs.n, is_raw, err);
}

/* The raw union of a part that gets trimmed. The depth bounds this recursion; the height bounds
 * that of every lookup in what was made, where wholes are used in several places. */
static int build_whole(struct builder *b, struct ref *ref, unsigned depth, struct treemap_slot *out,
		       struct err *err)
{
	if (depth > TRIM_DEPTH_MAX)
		return too_deep(err);
	scoped(flat_deinit) struct flat f = {.b = b, .depth = depth};
	int r = build(&f, ref, true, &out->tree, err);
	out->height = f.height;
	return r;
}

/* ------------------------------------------------------------------ the door */

static int make_tree(struct tree **out, struct ref *ref, struct store *store, bool is_raw,
		     struct ref_tree_layer **layers, size_t *n_layers, struct err *err)
{
	struct builder b = {.store = store};
	struct flat f = {.b = &b};
	int r = build(&f, ref, is_raw, out, err);
	flat_deinit(&f);
	for (size_t i = 0, k = b.rows.n; k > i + 1; i++) {
		struct ref_tree_layer swap = b.rows.items[i];
		b.rows.items[i] = b.rows.items[--k];
		b.rows.items[k] = swap;
	}
	if (r == 0 && layers) {
		*layers = take(b.rows.items);
		*n_layers = b.rows.n;
	} else {
		ref_tree_layers_free(b.rows.items, b.rows.n);
	}
	treemap_deinit(&b.leaves);
	treemap_deinit(&b.wholes);
	return r < 0 ? err_wrap(err, r, "%s", ref_name(ref)) : 0;
}

int ref_tree(struct tree **out, struct ref *ref, struct store *store,
	     struct ref_tree_layer **layers, size_t *n_layers, struct err *err)
{
	return make_tree(out, ref, store, false, layers, n_layers, err);
}

int ref_tree_raw(struct tree **out, struct ref *ref, struct store *store, struct err *err)
{
	return make_tree(out, ref, store, true, NULL, NULL, err);
}

void ref_tree_layers_free(struct ref_tree_layer *layers, size_t n)
{
	for (size_t i = 0; i < n; i++)
		tree_unref(layers[i].tree);
	free(layers);
}
