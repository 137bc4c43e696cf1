/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What edits (edittree.c), the layers that they make (sealed.c), the file that such a layer can be
 * (treefile.c) and the places that files of such a file point to (leaves.c) share.
 */

#include "merge/merge-internal.h"

/* ------------------------------------------------------------------ nodes (sealed.c) */

struct edit_entry {
	char *name;
	uint32_t len;
	bool is_hiding; /* edit: the tree below has this name, too */
	uint64_t node;	/* edit: 0 = removed */
};

struct edit_xattr {
	char *name;
	void *value;
	size_t len;
};

struct edit_node {
	struct attr attr;
	bool is_changed; /* edit: else it was only looked at */
	uint64_t below;	 /* edit, folder: the one of the tree below that it shows, too; 0 = none */
	uint64_t parent; /* folder */
	const char *name;
	vec(struct edit_entry) entries;
	vec(struct edit_xattr) xattrs;
	char *data;	     /* content or link target, attr.size bytes, unless there is a source */
	struct tree *source; /* file: has the content; a reference */
	uint64_t source_id;
	int64_t source_mtime_s; /* the source's when it was copied */
	uint32_t source_mtime_ns;
};

void edit_xattrs_free(struct edit_node *n);
/* What @n nodes own, and the array. */
void edit_nodes_free(struct edit_node *nodes, size_t n);
/* The place of @name among the sorted entries, whether it is there or not. */
size_t edit_entry_place(const struct edit_node *dir, const char *name, size_t len, bool *found);

/* A layer of nodes; number i has the id i + 1. */
struct sealed {
	struct tree tree;
	struct edit_node *nodes;
	size_t n_nodes;
};
/* Takes what the named ones of @nodes own; number i has the id i + 1 among them. */
int sealed_new(struct tree **out, struct edit_node *nodes, size_t n, struct err *err);
/* Takes the array, whose order is already that of sealed_new. NULL = no memory. */
struct tree *sealed_take(struct edit_node *nodes, size_t n);
/* NULL when @t is no such layer. */
const struct sealed *sealed_of(struct tree *t);
/* NULL when @t is no such layer or has no such node. */
const struct edit_node *sealed_node(struct tree *t, uint64_t id);

/* ------------------------------------------------------------------ places (leaves.c) */

enum leaf_kind { LEAF_LAYER = 1, LEAF_CONTENT = 2 };

/* Where the content of a file is that was made in another process: a file of a layer, or plain
 * content of the store. */
struct leaf {
	uint8_t kind;
	bool is_checked; /* atomic: it is what it was */
	uint32_t layer;
	uint64_t id; /* in the layer's tree */
	uint64_t size;
	struct digest digest; /* of the content; zero = not known */
};
struct leaf_layer {
	struct desc desc;
	struct remote *remote; /* a reference, or NULL */
	struct tree *tree;     /* guarded by the leaves' lock; NULL = not opened yet */
};
/* A tree that has only files, without names; number i has the id i + 1. Filled before it is shared. */
struct leaves {
	struct tree tree;
	struct store *store;
	pthread_mutex_t lock;
	vec(struct leaf_layer) layers;
	vec(struct leaf) leaves;
};
struct leaves *leaves_new(struct store *store); /* NULL = no memory */
/* NULL when @t is none, or has no such file. */
const struct leaf *leaves_find(struct tree *t, uint64_t id, const struct leaf_layer **layer);

struct store *leaves_store(struct tree *t); /* @t is one */

/* True when @t is a layer; what it is of is borrowed (layer.c). */
bool layer_origin(struct tree *t, const struct desc **desc, struct remote **remote);
