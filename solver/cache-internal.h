/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Caches of results, as the solver asks them (cache_db.c has the store's own).
 *
 * A cache is a graph of keys. A key of a vertex without inputs is found by its record's digest; any
 * other one by links: from a key of an input, by (number of the input, record digest of the vertex,
 * selector). A vertex has the keys that all of its inputs lead to. A key may have results.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* Keys of one cache, each once, in no order. */
struct cache_keys {
	int64_t *items;
	size_t n, cap;
};
int cache_keys_add(struct cache_keys *keys, int64_t key);
/* Leaves in @keys what is also in @with. */
void cache_keys_intersect(struct cache_keys *keys, const struct cache_keys *with);
void cache_keys_deinit(struct cache_keys *keys);
static inline void cache_keys_deinit_scoped(struct cache_keys *keys)
{
	cache_keys_deinit(keys);
}

struct cache_result {
	int64_t key;
	int64_t created_ns; /* since the epoch */
	struct digest ref;  /* the result's id in its cache */
};

struct cache;
/* Calls may come from several threads. They add to what @out has. Errors: those of the store. */
struct cache_ops {
	/* The key of a vertex without inputs, or of some content: nothing or one. */
	int (*root)(struct cache *c, const struct digest *record, struct cache_keys *out,
		    struct err *err);
	/* @selector may be NULL. */
	int (*links)(struct cache *c, int64_t from, size_t input, const struct digest *record,
		     const struct digest *selector, struct cache_keys *out, struct err *err);
	/* Is there any key of that record, whatever leads to it? 1 or 0. */
	int (*knows)(struct cache *c, const struct digest *record, struct err *err);
	/* The newest result of a key that is not among @bad: 1, or 0 when there is none. */
	int (*result)(struct cache *c, int64_t key, const struct digest *bad, size_t n_bad,
		      struct cache_result *out, struct err *err);
	/* -ENOENT: it, or something that it needs, is gone. */
	int (*load)(struct cache *c, struct solver *solver, const struct cache_result *result,
		    struct ref **out, struct err *err);
	void (*free)(struct cache *c);
};
struct cache {
	const struct cache_ops *ops;
	int priority; /* of results that are equally old, that of the lowest is taken */
};

/* ------------------------------------------------------------------ the store's own (cache_db.c) */

int cache_db_new(struct cache **out, struct store *store, struct err *err);

/* What a result is kept under. */
struct cache_commit {
	/* A vertex without inputs: all its records. Else one. */
	const struct digest *records;
	size_t n_records;
	struct cache_commit_input {
		const struct cache_keys *keys; /* of the definition; may be empty */
		const struct digest *selector; /* NULL = none */
		const struct digest *content;  /* record of the content; NULL = not known */
	} * inputs;
	size_t n_inputs;
	const struct cache_ingredient *ingredients;
	size_t n_ingredients;
	const struct digest *ref; /* NULL: only the links */
};
/* Keeps a result and the ways to it, in one transaction. Adds its keys to @out. An input without any
 * key makes a result that cannot be found again: nothing is kept, 0 is returned. */
int cache_db_commit(struct cache *c, const struct cache_commit *commit, struct cache_keys *out,
		    struct err *err);
/* Forgets a result that could not be loaded. */
int cache_db_forget(struct cache *c, const struct cache_result *result, struct err *err);

/* What is known of a ref's content: the digest of what @what (a digest of selectors) takes of it. */
int cache_db_content(struct cache *c, const struct digest *ref, const struct digest *what,
		     struct digest *out, struct err *err); /* 1, or 0 = not known */
int cache_db_keep_content(struct cache *c, const struct digest *ref, const struct digest *what,
			  const struct digest *content, const struct cache_ingredient *ingredient,
			  struct err *err);

/* Digests of host files: struct treehash_known. put gathers, and flush keeps what was gathered. */
struct cache_file {
	struct digest key, digest;
};
struct cache_files {
	struct cache *cache;
	vec(struct cache_file) puts;
};
bool cache_files_get(void *arg, const struct digest *key, struct digest *out);
void cache_files_put(void *arg, const struct digest *key, const struct digest *digest);
/* Frees what was gathered, too. That it cannot be kept costs only time. */
void cache_files_flush(struct cache_files *files);

/* ------------------------------------------------------------------ what was exported (cacheconfig.c) */

/* A cacheconfig document: all indexes are checked, and nothing runs in circles. */
struct cacheconfig {
	struct cacheconfig_layer {
		bool has_blob;
		struct digest blob;
		ssize_t parent; /* -1 = none */
	} * layers;
	size_t n_layers;
	struct cacheconfig_record {
		struct digest digest;
		size_t n_inputs; /* each has links */
		struct cacheconfig_link {
			size_t input, from; /* from: a record */
			bool has_selector;
			struct digest selector;
		} * links;
		size_t n_links;
		struct cacheconfig_result {
			int64_t created_ns; /* INT64_MIN: nobody knows */
			ssize_t top;	    /* a layer, with its ancestors; -1 = the chain */
			size_t *chain;	    /* layers, lowest first; may be none */
			size_t n_chain;
		} * results;
		size_t n_results;
	} * records;
	size_t n_records;
};
/* Errors: -EBADMSG. */
int cacheconfig_parse(struct cacheconfig *out, const void *bytes, size_t n, struct err *err);
/* What the config of an image has inline; @layers are the image's. Errors: -ENOENT it has none,
 * -EBADMSG. */
int cacheconfig_parse_image(struct cacheconfig *out, const void *bytes, size_t n,
			    const struct desc *layers, size_t n_layers, struct err *err);
void cacheconfig_deinit(struct cacheconfig *config);
static inline void cacheconfig_deinit_scoped(struct cacheconfig *config)
{
	cacheconfig_deinit(config);
}

/* A cache of such documents (cache_import.c): add them, then say done, then ask. Results are called
 * @name and have their blobs from the remote of @origin. */
int cache_import_new(struct cache **out, const char *name, const struct origin *origin,
		     struct err *err);
/* @descs: of the layers' blobs, in any order. @diff_ids: as many; NULL = as annotations say. */
int cache_import_add(struct cache *c, const struct cacheconfig *config, const struct desc *descs,
		     const struct digest *diff_ids, size_t n, struct err *err);
int cache_import_done(struct cache *c, struct err *err);
size_t cache_import_count(const struct cache *c); /* of records */

/* The caches that the options name (import.c). */
#define IMPORTS_MAX 15
struct cache_imports;
/* Errors: -EINVAL. */
int cache_imports_new(struct cache_imports **out, const char *const *texts, size_t n,
		      struct err *err);
void cache_imports_free(struct cache_imports *imports);
/* Fetches them, when this is the first call; adds at most IMPORTS_MAX, borrowed, to @caches. One that
 * cannot be had is a warning. Blocks for the network. */
void cache_imports_get(struct solver *solver, struct cache **caches, size_t *n_caches);
