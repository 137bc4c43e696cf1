/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The inside of a ref, which ref.c makes, and refdb.c and refdb_load.c put into the store and take
 * out of it.
 */

#include "solver/solver-internal.h"

struct ref {
	int n_refs; /* atomic */
	enum ref_kind kind;
	char *name;
	struct ref *next_dead; /* in ref_unref */
	pthread_mutex_t lock;	 /* held while a config is fetched, or a tree is read */
	pthread_mutex_t id_lock; /* a leaf: also taken with the catalogue's held */

	struct digest id;	   /* guarded by id_lock, as the next two */
	bool has_id;		   /* never taken back */
	const struct store *store; /* has it; NULL = not saved */

	/* REF_IMAGE */
	struct origin origin;
	struct ref_layer *layers;
	size_t n_layers;
	size_t first_layer; /* place of layers[0] in the image that the config describes */
	struct desc config;
	bool has_config, has_manifest, has_root, has_platform;
	struct digest manifest, root;
	struct platform platform;
	struct strbuf config_text; /* guarded by lock; empty until it was asked for */
	bool has_diff_ids;	   /* guarded by lock */

	/* REF_MERGE */
	struct ref_part *parts;
	size_t n_parts;
	size_t n_made; /* of refs with one made layer over them that lead here, one after the other */
	struct tree *skip;	/* guarded by lock: the last of these layers as one raw tree */
	struct ref *skip_below; /* guarded by lock: what it lies on; a part of a part of ... this */

	/* REF_DIR */
	char *dir;

	/* REF_TREE */
	struct tree *tree; /* guarded by lock; NULL = still in tree_store */
	struct store *tree_store;
	struct digest tree_digest; /* of its file; guarded by id_lock; zero = not known */
	struct treefile_layer *tree_layers;
	size_t n_tree_layers;
};

/* A REF_TREE that is read from the store when it is asked for. Takes *@layers. */
int ref_kept_tree(struct ref **out, const char *name, struct store *store,
		  const struct digest *digest, struct treefile_layer **layers, size_t n_layers,
		  struct err *err);

/* ------------------------------------------------------------------ ids (refdb.c) */

/* Computes it: parts must have theirs, and a tree its digest. */
int refdb_id(struct ref *ref, struct digest *out);
/* Notes that @store has @ref under @id. */
void refdb_set_kept(struct ref *ref, const struct store *store, const struct digest *id);

/* Digests as keys of a table; open addressing, at most half full. */
struct id_table {
	struct id_slot {
		struct digest key;
		bool is_used;
		void *value;
	} * slots;
	size_t n, size;
};
/* The value of @key, which is put in with NULL when it is new. NULL = no memory. Borrowed until the
 * next call. */
void **id_table_get(struct id_table *t, const struct digest *key, bool *is_new);
void id_table_deinit(struct id_table *t); /* not the values */

/* The annotations of a descriptor as one text: key NUL value NUL … */
void refdb_put_annotations(struct strbuf *s, const struct desc *desc);

/* ------------------------------------------------------------------ made trees (refdb.c) */

/* A tree of this size or less is a row of the catalogue: no file to sync for each of 1,000 small
 * changes. */
#define TREE_ROW_MAX (64u << 10)
/* Appends the file of a made tree, verified. Errors: -ENOENT, -EBADMSG. */
int refdb_read_tree(struct store *store, const struct digest *digest, struct strbuf *out,
		    struct err *err);
/* Whether the store has that file, which it keeps as long as this process lives. Errors: -ENOENT. */
int refdb_has_tree(struct store *store, const struct digest *digest, struct err *err);
