/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * solver: refs.
 *
 * A ref is a result that is lazy until looked at: a stack of layers (descriptors and the remote
 * that has their blobs), a merge of other refs, a host folder, or a layer of changes in memory. Refs come from names (images,
 * layouts, archives, folders) and from LLB definitions, whose graph of vertices is solved into
 * them. Making a ref moves no layer bytes.
 */

#include <time.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"

/* ------------------------------------------------------------------ refs */

struct platform {
	char os[32], arch[32], variant[32];
};
/* "linux/amd64", "linux/arm/v7", "arm64"; aliases as containerd's. Errors: -EINVAL. */
int platform_parse(struct platform *out, const char *text, struct err *err);
void platform_host(struct platform *out);
char *platform_text(const struct platform *p, char buf[100]);

struct solver;
enum ref_kind { REF_IMAGE, REF_MERGE, REF_DIR, REF_SCRATCH, REF_TREE };

struct ref_layer {
	struct desc desc;
	struct digest diff_id; /* zero when not known (the config was not needed) */
	struct remote *remote; /* holds a reference; NULL = only the store */
};
struct ref_part {
	struct ref *ref; /* holds a reference */
	char *trim, *add; /* NULL = none */
};

/* Immutable once made, apart from what is computed on demand (tree, config). */
struct ref;
struct ref *ref_ref(struct ref *ref);
struct ref *ref_unref(struct ref *ref);
define_scoped(struct ref *, ref_unref);
enum ref_kind ref_kind(const struct ref *ref);
const char *ref_name(const struct ref *ref); /* as the user or the definition wrote it */
size_t ref_layers(const struct ref *ref, const struct ref_layer **out); /* REF_IMAGE; bottom first */
size_t ref_parts(const struct ref *ref, const struct ref_part **out); /* REF_MERGE; lowest first */
const char *ref_dir(const struct ref *ref); /* REF_DIR */
/* Digest of the manifest of a REF_IMAGE; NULL when it has none (a docker archive). */
const struct digest *ref_manifest(const struct ref *ref);
/* Digest of what the name of the image led to: an index, where there is one above the manifest. Also
 * of a ref that has only some of its layers. NULL when there is none. */
const struct digest *ref_root(const struct ref *ref);
const struct platform *ref_platform(const struct ref *ref); /* NULL when not known */
/* The image config's JSON; fetched now if need be. -ENOENT for what has none. */
int ref_config(struct ref *ref, struct strbuf *out, struct err *err);
/* Its descriptor in the manifest; NULL when there is none. */
const struct desc *ref_config_desc(const struct ref *ref);
/* The manifest of a REF_IMAGE, byte for byte; verified. -ENOENT: it has none, or it is gone. */
int ref_manifest_bytes(struct ref *ref, struct strbuf *out, struct err *err);
/* Fills the layers' diff_ids from the config (fetches it). */
int ref_need_diff_ids(struct ref *ref, struct err *err);

/* A merge: parts in order, the last wins; takes its own references. One part without partition is
 * that part; none is scratch. Errors: -EINVAL for a bad trim or add. */
int ref_merge(struct ref **out, const struct ref_part *parts, size_t n, struct err *err);
/* Only some layers of an image: @first..@last, 0-based, bottom first. */
int ref_slice(struct ref **out, struct ref *ref, size_t first, size_t last, struct err *err);

/* The files of a ref: a cooked union over all its layers, flattened. Touches no network. The
 * layers' trees, lowest first and each once, are given for status (each with a reference, free
 * with ref_tree_layers_free; layer and dir are borrowed from @ref); @layers may be NULL. */
struct ref_tree_layer {
	struct tree *tree;
	const struct ref_layer *layer; /* NULL for a host folder */
	const char *dir; /* host folder, else NULL */
};
int ref_tree(struct tree **out, struct ref *ref, struct store *store,
	     struct ref_tree_layer **layers, size_t *n_layers, struct err *err);
void ref_tree_layers_free(struct ref_tree_layer *layers, size_t n);

/* --- refs that stay: kept in the store, found again by any process --- */

/* Keeps @ref with all that it is made of. *id names it: equal refs have equal ids. What it has of host
 * folders is copied into the store. Blocks. Errors: -ENOSPC, -ESTALE a host file was changed since it
 * was looked at, -EINVAL a live folder. */
int ref_save(struct ref *ref, struct solver *solver, struct digest *id, struct err *err);
/* Touches no network. Errors: -ENOENT it is not in the store, or something that it was made of is
 * gone; -EBADMSG the catalogue is damaged. */
int ref_load(struct solver *solver, const struct digest *id, struct ref **out, struct err *err);
/* Its id, once it was saved or when it was loaded; false before. */
bool ref_id(struct ref *ref, struct digest *out);
/* By a unique prefix of at least 6 hex digits. -ENOENT, -EEXIST ambiguous, -EINVAL. */
int ref_find(struct solver *solver, const char *text, struct digest *id, struct err *err);

/* ------------------------------------------------------------------ refs as images */

struct image_options {
	enum plain_format compression; /* of layers that are made now */
	int level;		       /* BLOB_LEVEL_DEFAULT, or as the compression has it */
	bool force_compression;	       /* of all layers */
	bool docker_types;	       /* media types; else OCI's */
	bool has_epoch;		       /* SOURCE_DATE_EPOCH */
	int64_t epoch;
	bool rewrite_timestamp; /* in layers, too */
	const struct annotation *annotations; /* of the manifest, sorted by key */
	size_t n_annotations;
};
struct image_layer {
	struct desc desc; /* as in the manifest */
	struct digest diff_id;
	struct remote *remote; /* has the blob; NULL = the store */
	char *created_by;
	int64_t created; /* seconds */
};
/* An image that nobody has yet: its documents, and where its layers are. */
struct image {
	struct image_layer *layers; /* bottom first; equal ones may be there several times */
	size_t n_layers;
	struct strbuf config, manifest;
	struct desc config_desc, manifest_desc;
	struct platform platform;
	int64_t created; /* seconds; of its last layer, or the epoch */
};
/* The layers of images are taken as they are and not looked at; what was made here, and parts with
 * a partition, become layers in the store, once. Equal for equal refs and options. Saves @ref.
 * Blocks. Errors: -EINVAL a live folder, -E2BIG more layers than an image can have, those of
 * reading what has to be read, -ENOSPC. */
int image_make(struct image *out, struct ref *ref, struct solver *solver,
	       const struct image_options *options, struct err *err);
void image_deinit(struct image *image);
/* Gives all bytes of a layer's blob in order, verified at the end. Errors: those of
 * blob_copy_stored. */
int image_layer_copy(const struct image_layer *layer, struct store *store, blob_sink sink,
		     void *arg, struct err *err);

/* ------------------------------------------------------------------ from names to refs */

/* What a command has: given once, borrowed by every call. */
struct solver_options {
	struct store *store;
	struct net *net; /* NULL: no registries */
	bool offline; /* names are answered from the store */
	bool trust_index; /* indexes that the manifest does not vouch for may be used */
	struct platform platform; /* wanted */
	const char *cwd; /* for relative folders in definitions */
	/* --oci-layout NAME=DIR: where the oci-layout sources of definitions are. */
	const struct solver_layout {
		const char *name, *dir;
	} *layouts;
	size_t n_layouts;
	/* --local NAME=DIR: where their local sources are. */
	const struct solver_layout *locals;
	size_t n_locals;
	/* --secret: tokens of sources. */
	const struct solver_secret {
		const char *id;
		const char *file, *env; /* one of them is set */
	} *secrets;
	size_t n_secrets;
	/* --import-cache, as they were typed: caches that definitions are solved with, fetched when
	 * the first one is. */
	const char *const *import_caches;
	size_t n_import_caches;
};
int solver_new(struct solver **out, const struct solver_options *options, struct err *err);
void solver_free(struct solver *solver);
define_scoped(struct solver *, solver_free);

/* Any REF of the command line (cli.md 1). Blocks for the network where a name must be resolved.
 * Errors: -EINVAL bad grammar, -ENOENT, -EACCES, -EBADMSG, -ENOTSUP a kind that is not there yet,
 * network errors. */
int solver_resolve(struct solver *solver, const char *text, struct ref **out, struct err *err);

/* --- image names: docker's own grammar and defaults --- */
struct image_name {
	char *host; /* "docker.io" */
	char *repository; /* "library/alpine" */
	char *tag; /* "latest" by default; NULL when only a digest was given */
	char *digest; /* "sha256:…" or NULL */
};
int image_name_parse(struct image_name *out, const char *text, struct err *err);
void image_name_deinit(struct image_name *name);
static inline void image_name_deinit_scoped(struct image_name *name)
{
	image_name_deinit(name);
}
char *image_name_text(const struct image_name *name); /* canonical; caller frees */

/* ------------------------------------------------------------------ definitions */

/* An LLB definition (pb.Definition), loaded: vertices and edges, digests checked. */
struct graph;
struct vertex;
/* Appends the bytes of the file @name, "-" = standard input. */
int definition_read(struct strbuf *out, const char *name, struct err *err);
/* @bytes are the protobuf, or one of the JSON forms: the lines of `buildctl debug dump-llb`, the
 * object of `docker buildx build --call=convertllb,format=json`. Errors: -EBADMSG with the vertex
 * that is wrong, -ENOTSUP a required capability that is not known, -EFBIG. An op that cannot be
 * solved yet is found only when it is solved. */
int graph_load(struct graph **out, const void *bytes, size_t n, struct err *err);
/* Does not wait for what a failed solve had begun: solver_free does. */
void graph_free(struct graph *g);
define_scoped(struct graph *, graph_free);
size_t graph_count(const struct graph *g);
struct vertex *graph_vertex(struct graph *g, size_t i); /* inputs before their users */
/* By digest text or a unique prefix of at least 6 hex digits. -ENOENT, -EEXIST ambiguous, -EINVAL. */
int graph_find(struct graph *g, const char *text, struct vertex **out, struct err *err);
/* The result edge of the definition. */
void graph_result(struct graph *g, struct vertex **vertex, int *index);

const struct digest *vertex_digest(const struct vertex *v);
const char *vertex_name(const struct vertex *v); /* display name */
const char *vertex_op(const struct vertex *v); /* "source", "merge", "exec", … */
size_t vertex_inputs(const struct vertex *v);
void vertex_input(const struct vertex *v, size_t i, struct vertex **from, int *index);

/* Where in the files that a definition was made from a vertex comes from. Numbers are as the
 * definition has them: lines from 1, columns 0 where it does not tell. */
struct source_location {
	const char *file;
	const struct source_range {
		int line, column, end_line, end_column;
	} * ranges;
	size_t n_ranges;
};
size_t vertex_locations(const struct vertex *v, const struct source_location **out); /* borrowed */

/* What happens to the vertices of a solve; all calls come from the thread that solves. A vertex is
 * STARTED once, when it is known to be needed, and ends as CACHED, DONE or FAILED, with any number of
 * STATUS and LOG between. Everything is borrowed for the call. */
enum solve_event_kind {
	SOLVE_STARTED,
	SOLVE_CACHED, /* its result was in a cache; nothing was done */
	SOLVE_DONE,
	SOLVE_FAILED,
	SOLVE_STATUS,
	SOLVE_LOG,
};
struct solve_event {
	enum solve_event_kind kind;
	const struct vertex *vertex;
	struct timespec when; /* CLOCK_REALTIME */
	const char *error;    /* SOLVE_FAILED */
	/* SOLVE_STATUS: a part of the work; total 0 = not known */
	const char *id;
	uint64_t current, total;
	/* SOLVE_LOG: what a command wrote */
	int fd;
	const void *bytes;
	size_t n;
};
struct solve_options {
	bool no_cache; /* nothing is looked up; results are kept all the same */
	void (*event)(void *arg, const struct solve_event *event); /* NULL = nobody listens */
	void *arg;
};
/* Solves one edge into a ref; only what it needs. @options may be NULL. */
int graph_solve(struct graph *g, struct solver *solver, struct vertex *vertex, int index,
		const struct solve_options *options, struct ref **out, struct err *err);
/* The first vertex whose result, as far as it was solved, has the layer; NULL = none. */
struct vertex *graph_layer_vertex(struct graph *g, const struct digest *layer);
/* Whether all that the definition uses of a vertex is in a cache under the keys that definitions give:
 * into @cached, one for each vertex. Runs nothing; sources are asked for what their keys are made of,
 * unless the solver is offline. To be called before the first solve, which keeps more results. */
int graph_probe(struct graph *g, struct solver *solver, bool *cached, struct err *err);
/* The digest of what @v takes of the content of an input, which is solved for that.
 * Errors: -ENODATA only the definition of that input counts; those of graph_solve. */
int vertex_content_key(struct graph *g, struct solver *solver, struct vertex *v, size_t input,
		       struct digest *out, struct err *err);

/* ------------------------------------------------------------------ cache keys */

/* BuildKit's keys, byte for byte (cachekey.c has the essay). */

/* "sha256:…", or "random:…" for what must never equal anything of another session. */
struct cache_digest {
	struct digest digest;
	bool is_random;
};
char *cache_digest_text(const struct cache_digest *d, char buf[DIGEST_TEXT_MAX]); /* returns @buf */

/* One thing of an input that is hashed where the content of the input may stand for the input. Texts
 * are borrowed from the vertex, or constant. */
struct content_selector {
	const char *path; /* as the definition has it: to be made absolute */
	bool wildcard, follow;
	char *const *include, *const *exclude, *const *required;
	size_t n_include, n_exclude, n_required;
};
enum content_kind {
	CONTENT_NONE,  /* only the definition of the input counts */
	CONTENT_PATHS, /* what an exec mounts */
	CONTENT_FILES, /* what a file op copies, and the files that know its owners' names */
};
struct cache_input {
	bool has_selector;
	struct digest selector;
	enum content_kind content;
	struct content_selector *selectors; /* in the order in which their digests are joined */
	size_t n_selectors;
};
/* What was hashed: @digest is that of the bytes. */
struct cache_ingredient {
	struct digest digest;
	char *bytes;
	size_t n;
};
struct cache_record {
	int output;
	struct cache_digest digest; /* of map and output, "sha256:…@0" */
};

/* SHA(@digest "@" @output): the record of a map, or with output -1 of content. */
void cache_record_digest(struct digest *out, const struct digest *digest, int output);

/* What a vertex is in a cache, apart from what its inputs are. */
struct vertex_keys {
	struct cache_digest maps[2]; /* images have two: of the name's digest, of the layers */
	size_t n_maps;
	bool is_whole; /* there is no other map that is not known */
	struct cache_input *inputs;
	size_t n_inputs; /* as many as inputs, or fewer: a diff does not count scratch */
	struct cache_record *records; /* those of maps[0] first, by output */
	size_t n_records;
	struct cache_ingredient *ingredients; /* of all digests above, and of digests in them */
	size_t n_ingredients;
};
/* @may_ask: an image is resolved and its config read, which blocks for the network; else what the
 * definition says must do. Errors: -ENODATA the key cannot be known so, -EBADMSG or -EINVAL
 * BuildKit would refuse the op, -ENOTSUP an op that is newer than this program; with @may_ask also
 * those of graph_solve. */
int vertex_keys(struct vertex_keys *out, struct vertex *v, struct solver *solver, bool may_ask,
		struct err *err);
void vertex_keys_deinit(struct vertex_keys *keys);
static inline void vertex_keys_deinit_scoped(struct vertex_keys *keys)
{
	vertex_keys_deinit(keys);
}
