/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of solver share: documents of images (image.c), texts that name a ref (name.c),
 * the insides of a ref (ref.c), where refs come from (source*.c), and the decoded definition
 * (llb.c), its graph (graph.c) and the operations of its vertices (op_*.c, source_image.c).
 */

#include <pthread.h>
#include <time.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/solver.h"

/* ------------------------------------------------------------------ platforms (platform.c) */

/* The one spelling of a platform, as containerd has it: "x86_64" is amd64, arm64's v8 is "". */
void platform_normalize(struct platform *p);
bool platform_equal(const struct platform *a, const struct platform *b);
/* How well an image for @have serves who wants @want: 0 = exactly; larger = worse; -1 = not. Both
 * normalized. */
int platform_rank(const struct platform *want, const struct platform *have);

/* ------------------------------------------------------------------ documents (image.c) */

enum manifest_kind { MANIFEST_INDEX, MANIFEST_IMAGE };

struct index_entry {
	struct desc desc;
	struct platform platform; /* normalized */
	bool has_platform;
	bool is_attestation; /* says something about an image and is none */
};

/* An index (manifest list) or the manifest of one image. */
struct manifest {
	enum manifest_kind kind;
	struct index_entry *entries; /* MANIFEST_INDEX */
	size_t n_entries;
	struct desc config;  /* MANIFEST_IMAGE */
	struct desc *layers; /* bottom first; media types are checked to be those of layers */
	size_t n_layers;
};
/* @media_type is what the giver said of it, used where the document itself is silent; may be NULL.
 * Errors: -EBADMSG malformed, -ENOTSUP something else than an image (schema 1, an artifact). */
int manifest_parse(struct manifest *out, const void *bytes, size_t n, const char *media_type,
		   struct err *err);
void manifest_deinit(struct manifest *m);
static inline void manifest_deinit_scoped(struct manifest *m)
{
	manifest_deinit(m);
}
/* The best of @entries for @want. Errors: -ENOENT, with the platforms that there are. */
int manifest_choose(const struct index_entry *entries, size_t n, const struct platform *want,
		    const struct index_entry **out, struct err *err);

/* Is it that of a layer of files? */
bool image_layer_type_known(const char *media_type);

struct image_config {
	struct platform platform; /* normalized */
	bool has_platform;
	struct digest *diff_ids; /* bottom first */
	size_t n_diff_ids;
};
int image_config_parse(struct image_config *out, const void *bytes, size_t n, struct err *err);
void image_config_deinit(struct image_config *config);
static inline void image_config_deinit_scoped(struct image_config *config)
{
	image_config_deinit(config);
}

/* manifest.json of `docker save`: one item an image. */
struct saved_image {
	char *config; /* path in the archive */
	char **tags;
	size_t n_tags;
	char **layers; /* paths in the archive, bottom first */
	size_t n_layers;
};
int saved_images_parse(struct saved_image **out, size_t *n_out, const void *bytes, size_t n,
		       struct err *err);
void saved_images_free(struct saved_image *images, size_t n);

/* A JSON list of strings, as attributes of sources hold them. */
int texts_parse(char ***out, size_t *n_out, const char *json, const char *what, struct err *err);
void texts_free(char **texts, size_t n);

/* ------------------------------------------------------------------ texts (name.c) */

enum ref_form {
	FORM_IMAGE,
	FORM_OCI_LAYOUT,
	FORM_OCI_ARCHIVE,
	FORM_DOCKER_ARCHIVE,
	FORM_DIR,
	FORM_LLB,
	FORM_REF,
	FORM_OTHER, /* a kind of the grammar that cannot be resolved: name has its scheme */
};

/* A REF of the command line, taken apart without a look at the world. */
struct ref_text {
	enum ref_form form;
	char *name;   /* image name, folder, file, ID; "-" for standard input */
	char *tag;    /* layout, archives; NULL when not given */
	char *digest; /* layout */
	char *vertex; /* llb: digest or prefix; NULL = the result */
	int index;    /* llb: output of @vertex */
};
/* Errors: -EINVAL. */
int ref_text_parse(struct ref_text *out, const char *text, struct err *err);
void ref_text_deinit(struct ref_text *t);
static inline void ref_text_deinit_scoped(struct ref_text *t)
{
	ref_text_deinit(t);
}

/* ------------------------------------------------------------------ refs (ref.c) */

/* Where the documents of an image come from, kept for those that are asked for later. */
struct origin {
	struct store *store; /* borrowed, outlives every ref; keeps what came from a registry */
	struct registry *registry; /* holds a reference; NULL: not from a registry */
	struct remote *remote;	   /* holds a reference; NULL: only what the store has */
};
void origin_copy(struct origin *out, const struct origin *in);
void origin_deinit(struct origin *o);
static inline void origin_deinit_scoped(struct origin *o)
{
	origin_deinit(o);
}
/* Appends a document that the store has. Errors: -ENOENT, without a reason in @err. */
int origin_recall(const struct origin *o, const struct digest *digest, struct strbuf *body,
		  struct err *err);
/* Appends the document that @desc names, verified. Errors: as registry_get_manifest. */
int origin_read(const struct origin *o, const struct desc *desc, bool is_manifest,
		struct strbuf *body, struct err *err);

/* The same for one that may be larger than any of an image: of a build cache. */
int origin_read_large(const struct origin *o, const struct desc *desc, struct strbuf *body,
		      struct err *err);

/* Puts a document that came from a registry into the store. */
void origin_keep(const struct origin *o, const void *bytes, size_t n);

/* What makes an image ref; everything is copied. */
struct ref_image {
	const char *name;
	const struct origin *origin;
	const struct desc *layers;
	const struct digest *diff_ids; /* as many as layers; NULL = not known yet */
	size_t n_layers;
	const struct desc *config;	 /* NULL when there is none */
	const struct digest *manifest;	 /* NULL when there is none */
	const struct digest *root;	 /* NULL when there is none */
	const struct platform *platform; /* NULL when not known */
	size_t first_layer;		 /* place of the first layer in what the config describes */
	struct remote *const *remotes;	 /* of the layers, each may be NULL; NULL = origin's */
};
int ref_image(struct ref **out, const struct ref_image *image, struct err *err);
/* @dir must be absolute. */
int ref_folder(struct ref **out, const char *name, const char *dir, struct err *err);
int ref_scratch(struct ref **out, struct err *err);
/* A layer that is here: @tree is raw and referenced. */
int ref_made(struct ref **out, const char *name, struct tree *tree, struct err *err);
/* Borrowed; read from the store the first time, where the ref comes from there. Errors: -ENOENT it
 * is gone, -EBADMSG it was damaged. */
int ref_made_tree(struct ref *ref, struct tree **out, struct err *err);
/* True when both are one, or are known to be equal. */
bool ref_is_same(struct ref *a, struct ref *b);
/* A text that only this ref has, or those that are known to equal it. Returns @key. */
char *ref_key(struct ref *ref, char key[DIGEST_HEX_MAX]);
/* Where many made layers lie on each other: some of the uppermost of @ref as one raw tree (referenced)
 * and the ref that they lie on (borrowed). 1, or 0 when there is no such tree for @ref. */
int ref_skip(struct ref *ref, struct tree **out, struct ref **below, struct err *err);

/* As ref_tree, but whiteouts and opaque marks stay: what @ref changes in what it is laid over. */
int ref_tree_raw(struct tree **out, struct ref *ref, struct store *store, struct err *err);
/* Appends the layers of @ref to @out, which has none (ref_layers.c). */
int ref_layers_make(struct image *out, struct ref *ref, struct solver *solver,
		    const struct image_options *options, struct err *err);
/* Fills config and manifest of an image that has its layers (image_make.c). */
int image_documents(struct image *image, const struct solver *solver,
		    const struct image_options *options, struct err *err);

/* ------------------------------------------------------------------ sources (source*.c) */

/* What --secret has under @id. Errors: -ENOENT. */
int solver_secret(struct solver *solver, const char *id, struct strbuf *out, struct err *err);

struct solver_image {
	char *key;
	struct ref *ref;
};
struct solver_registry {
	char *host, *repository;
	struct registry *registry;
};
#define SESSION_MAX 33
struct solver {
	struct solver_options options;
	char session
		[SESSION_MAX]; /* names this solver in keys that must not be equal to another's */
	struct timespec now; /* the time of what a definition makes without one */
	struct cache *cache; /* the store's own, of results */
	struct cache_imports *imports; /* others, as the options have them */
	_Atomic bool is_ending;
	_Atomic unsigned n_builds; /* definitions solved for build ops */
	struct graph *busy_graphs; /* freed while jobs of them ran; guarded by lock */
	pthread_mutex_t lock;
	/* guarded by lock: what was asked once is not asked again, so that one command has one
	 * answer for a tag, and one set of credentials for a repository */
	vec(struct solver_image) images;
	vec(struct solver_registry) registries;
	struct git_state *git; /* answers and checkouts (git_clone.c); NULL = none yet */
	vec(const char *) entered;
	pthread_cond_t left;
};
/* Between these two is one thread of a solver at a time for each @what, so that the second one finds
 * the answer of the first. @what is borrowed until solver_leave. Errors: -ENOMEM. */
int solver_enter(struct solver *solver, const char *what);
void solver_leave(struct solver *solver, const char *what);

struct ref_text;
/* ref://ID (refdb_load.c). */
int refdb_resolve(struct solver *solver, const char *text, const struct ref_text *what,
		  struct ref **out, struct err *err);
/* A new reference to the registry of @name, which is made once; NULL without network. */
int source_image_registry(struct solver *solver, const struct image_name *name,
			  struct registry **out, struct err *err);

struct image_root;
/* What a definition may ask of an image beyond its name. */
struct image_request {
	const struct platform *platform;
	bool prefer_store;	       /* what the tag meant last will do */
	const struct digest *checksum; /* what the name must mean; NULL = anything */
};
/* What a name leads to in its registry, now; @origin is where. */
int source_image_document(struct solver *solver, const struct image_name *name,
			  struct origin *origin, struct image_root *root, struct err *err);
/* An image by its name, in a registry. */
int source_image_resolve(struct solver *solver, const char *text,
			 const struct image_request *request, struct ref **out, struct err *err);
/* An image in a layout folder, by @digest, else by @tag, else the only one or "latest". */
int source_layout_resolve(struct solver *solver, const char *name, const char *dir, const char *tag,
			  const char *digest, const struct image_request *request, struct ref **out,
			  struct err *err);
/* An image in an archive file that holds a layout, or what `docker save` writes. */
int source_archive_resolve(struct solver *solver, const char *text, const struct ref_text *what,
			   struct ref **out, struct err *err);

/* --- texts of HTTP (httptext.c) --- */

/* What a download is called: what was @said, else as @disposition (a Content-Disposition), else as
 * the URL ends. Both may be NULL. Caller frees; NULL = no memory. */
char *httptext_filename(const char *said, const char *disposition, const char *url);
/* A date of a header, in any of its three forms, as Unix time. Errors: -EINVAL. */
int httptext_date(int64_t *out, const char *text);
#define HTTPTEXT_DATE_MAX 64
char *httptext_date_text(int64_t t, char buf[HTTPTEXT_DATE_MAX]); /* returns @buf */

/* --- sources of one file (source_file.c) --- */

/* What was fetched under a name, by any process; texts may be NULL. */
struct fetched {
	struct digest digest; /* of content of the store */
	uint64_t size;
	char *etag, *last_modified, *disposition;
};
void fetched_deinit(struct fetched *f);
static inline void fetched_deinit_scoped(struct fetched *f)
{
	fetched_deinit(f);
}
/* Its content is here, and stays until the process ends. -ENOENT: it was not fetched, or is lost. */
int fetched_recall(struct solver *solver, const struct digest *key, struct fetched *out,
		   struct err *err);
int fetched_keep(struct solver *solver, const struct digest *key, const struct fetched *f,
		 struct err *err);
/* The ref of a folder with the one file @name, as the attributes http.perm, uid and gid want it. */
int source_file(struct ref **out, const struct vertex *v, struct solver *solver, const char *name,
		const struct fetched *content, int64_t mtime_s, struct err *err);
/* A number as Go reads it with any base. A missing one is 0. */
int source_number(int64_t *out, const struct vertex *v, const char *key, struct err *err);
/* What comes after the scheme. */
const char *source_rest(const struct vertex *v);

/* What asking found out of a download: v->asked. */
struct http_asked {
	struct fetched content;
	bool has_time;
	int64_t mtime_s; /* Last-Modified; 0 = not known */
};

/* The folder that the command line gave for attribute oci.store. Errors: -EBADMSG, -ENOENT. */
int source_layout_dir(const char **out, const struct vertex *v, const struct solver *solver,
		      struct err *err);

/* The document that a name leads to: an index or a manifest. */
struct image_root {
	struct desc desc; /* the media type may be NULL */
	struct strbuf body;
	bool is_new; /* came from a registry just now */
	bool has_platform;
	struct platform platform; /* what the index above says of it */
};
void image_root_deinit(struct image_root *root);
static inline void image_root_deinit_scoped(struct image_root *root)
{
	image_root_deinit(root);
}
/* From a root to the ref of one image: follows indexes, chooses by platform. */
int image_from_root(struct ref **out, const char *name, const struct origin *origin,
		    const struct image_root *root, const struct platform *platform,
		    struct err *err);
/* index.json of a layout. */
int layout_index_parse(struct manifest *out, const struct strbuf *json, struct err *err);
/* Fills the descriptor and platform of @out from the entry that @index has for @tag, NULL = none
 * was given. Errors: -ENOENT, with the tags that there are. */
int layout_choose(struct image_root *out, const struct manifest *index, const char *tag,
		  const struct platform *platform, struct err *err);
/* ------------------------------------------------------------------ definitions (llb.c) */

enum op_kind {
	OP_UNKNOWN, /* newer than this program */
	OP_EXEC,
	OP_SOURCE,
	OP_FILE,
	OP_BUILD,
	OP_MERGE,
	OP_DIFF,
	OP_PASSTHROUGH,
};

struct llb_bytes {
	const uint8_t *bytes;
	size_t n;
};

/* A definition, split into its ops; all bytes are borrowed from what was decoded. */
struct llb_definition {
	struct llb_bytes *ops;
	size_t n_ops;
	struct llb_metadata_entry {
		struct digest digest;
		struct llb_bytes metadata;
	} * metadata;
	size_t n_metadata;
	struct llb_bytes source; /* its source map */
	void *impl;
};
int llb_definition_decode(struct llb_definition *out, const void *bytes, size_t n, struct err *err);
void llb_definition_deinit(struct llb_definition *d);
static inline void llb_definition_deinit_scoped(struct llb_definition *d)
{
	llb_definition_deinit(d);
}

/* A source map (llb_source.c). */
struct llb_source {
	char **files;
	size_t n_files;
	struct llb_source_vertex {
		struct digest digest;
		struct source_location *locations;
		size_t n_locations;
	} * vertices;
	size_t n_vertices;
	struct source_location *locations; /* of all vertices */
	struct source_range *ranges;	   /* of all locations */
};
int llb_source_decode(struct llb_source *out, const struct llb_bytes *bytes, struct err *err);
void llb_source_deinit(struct llb_source *source);

/* Appends the protobuf of a definition that is JSON in one of its two forms (llb_json.c).
 * Errors: -EBADMSG, with the vertex; -EFBIG. */
int llb_json_encode(struct strbuf *out, const void *bytes, size_t n, struct err *err);

struct llb_pair {
	char *key, *value;
};
struct llb_input {
	struct digest digest;
	int index;
};
struct llb_merge_input {
	size_t input;	  /* checked to be one of the op's */
	char *add, *trim; /* NULL = none */
};

/* ExecOp. Numbers of enums are the wire's. */
enum { LLB_MOUNT_BIND, LLB_MOUNT_SECRET, LLB_MOUNT_SSH, LLB_MOUNT_CACHE, LLB_MOUNT_TMPFS };
enum { LLB_CONTENT_DEFAULT, LLB_CONTENT_ON, LLB_CONTENT_OFF };
enum { LLB_CACHE_SHARED, LLB_CACHE_PRIVATE, LLB_CACHE_LOCKED };
struct llb_secret_opt { /* of secrets and of ssh agents */
	char *id;
	uint32_t uid, gid, mode;
	bool optional;
};
struct llb_mount {
	int64_t input; /* -1 = none, else checked to be one of the op's */
	char *selector, *dest;
	char *path;	/* of the input: the selector made absolute and cleaned */
	int64_t output; /* -1 = none */
	bool readonly;
	int type, content_cache;
	bool has_tmpfs, has_cache, has_secret, has_ssh;
	int64_t tmpfs_size;
	char *cache_id;
	int cache_sharing;
	struct llb_secret_opt secret, ssh;
	char *result_id;
};
struct llb_exec {
	bool has_meta;
	char **args, **env;
	size_t n_args, n_env;
	char *cwd, *user, *hostname, *cgroup_parent;
	struct llb_pair *proxies; /* http_proxy, …; those that are set */
	size_t n_proxies;
	struct llb_pair *hosts; /* name, address */
	size_t n_hosts;
	struct llb_ulimit {
		char *name;
		int64_t soft, hard;
	} * ulimits;
	size_t n_ulimits;
	bool remove_mount_stubs_recursive;
	int32_t *exit_codes; /* valid ones */
	size_t n_exit_codes;
	struct llb_mount *mounts;
	size_t n_mounts;
	int network, security;
	struct llb_secret_env {
		char *id, *name;
		bool optional;
	} * secret_envs;
	size_t n_secret_envs;
	struct llb_device {
		char *name;
		bool optional;
	} * devices;
	size_t n_devices;
};

/* FileOp */
struct llb_owner { /* of one of user and group */
	bool is_set;
	char *name;    /* NULL = by id */
	int64_t input; /* whose /etc/passwd, /etc/group knows the name */
	uint32_t id;
};
enum llb_action_kind {
	ACTION_UNKNOWN,
	ACTION_COPY,
	ACTION_MKFILE,
	ACTION_MKDIR,
	ACTION_RM,
	ACTION_SYMLINK,
};
/* The fields that a kind does not have are 0. */
struct llb_action {
	enum llb_action_kind kind;
	/* -1 = none; the op's inputs come first, then the results of its actions */
	int64_t input, secondary_input;
	int64_t output; /* -1 = none */
	char *path;	/* copy: the destination; symlink: where the link is */
	char *from;	/* copy: the source; symlink: what the link says */
	bool has_owner;
	struct llb_owner user, group;
	int32_t mode;	   /* copy: -1 = the source's */
	char *mode_text;   /* copy: symbolic, overrides mode; "" = none */
	int64_t timestamp; /* ns; -1 = the source's, or now */
	bool follow_symlink, dir_copy_contents, attempt_unpack, create_dest_path, allow_wildcard;
	bool allow_empty_wildcard, always_replace, make_parents, allow_not_found;
	char **include, **exclude, **required;
	size_t n_include, n_exclude, n_required;
	uint8_t *data; /* mkfile */
	size_t n_data;
};
struct llb_file {
	struct llb_action *actions;
	size_t n_actions;
	size_t n_outputs; /* checked: each of 0..n_outputs - 1 once */
};

/* BuildOp */
struct llb_build {
	int64_t builder; /* -1 = LLB */
	struct llb_build_input {
		char *name;
		int64_t input;
	} * inputs;
	size_t n_inputs;
	bool has_definition; /* one of its own, which nothing writes */
	struct llb_pair *attrs;
	size_t n_attrs;
};

struct llb_passthrough {
	char *id;
	int64_t *outputs; /* output i is input outputs[i] */
	size_t n_outputs;
};

/* One op. What is not decoded is still in the bytes of its vertex. */
struct llb_op {
	enum op_kind kind;
	struct llb_input *inputs;
	size_t n_inputs;
	struct platform platform; /* normalized */
	bool has_platform;
	char *os_version;   /* NULL = none */
	char **os_features; /* sorted, each once */
	size_t n_os_features;
	char **constraints; /* filters of workers: here is one, and as in BuildKit it takes all */
	size_t n_constraints;
	char *label; /* display name; NULL where it is made of the inputs' (merge, diff) */
	union {
		struct {
			char *identifier;
			struct llb_pair *attrs;
			size_t n_attrs;
		} source;
		struct {
			struct llb_merge_input *inputs;
			size_t n_inputs;
		} merge;
		struct {
			ssize_t lower, upper; /* -1 = scratch */
		} diff;
		struct llb_exec exec;
		struct llb_file file;
		struct llb_build build;
		struct llb_passthrough passthrough;
	};
};
/* Makes the label of an op that is decoded (llb_op.c). */
int llb_op_label(struct llb_op *op, struct err *err);
int llb_op_decode(struct llb_op *out, const struct llb_bytes *bytes, struct err *err);
void llb_op_deinit(struct llb_op *op);
const char *op_kind_name(enum op_kind kind);
/* NULL when the source has no such attribute. */
const char *llb_source_attr(const struct llb_op *op, const char *key);

/* What a definition says beside the graph of a vertex; no part of its identity. */
struct llb_metadata {
	bool ignore_cache;
	bool has_export_cache, export_cache;
	struct llb_pair *descriptions;
	size_t n_descriptions;
	char **caps; /* required capabilities, known or not */
	size_t n_caps;
	char *group_id, *group_name; /* progress group; NULL = none */
	bool group_weak;
};
int llb_metadata_decode(struct llb_metadata *out, const struct llb_bytes *bytes, struct err *err);
void llb_metadata_deinit(struct llb_metadata *m);
/* Whether this program knows what capability @name means (llb_caps.c). */
bool llb_cap_is_known(const char *name);

/* ------------------------------------------------------------------ the graph (graph.c) */

/* An operation: one of the three interfaces of the program; sources are operations. The row of a
 * vertex is chosen by op_ops_find when the graph is loaded. */
struct op_ops {
	/* Makes the results of @v. @inputs has one borrowed ref for each input edge, in order;
	 * new references go to @outputs, v->n_outputs of them. Called at most once a vertex.
	 * Errors: anything; the caller names the vertex. */
	int (*run)(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
		   struct ref **outputs, struct err *err);
	/* Optional, for sources whose key the definition alone does not tell: finds out what there is
	 * (a commit, a file's digest) and keeps it in v->asked, for the key and for run. Blocks for
	 * the network. Called at most once a vertex, before both. */
	int (*ask)(struct vertex *v, struct solver *solver, struct err *err);
	void (*asked_free)(void *asked);
	/* Sources: what @v is in a cache, after ask if that was allowed (cachekey_source.c).
	 * Errors: -ENODATA the definition alone does not tell. */
	int (*keys)(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
		    struct err *err);
};
extern const struct op_ops op_merge;
extern const struct op_ops op_diff;
extern const struct op_ops op_file;
extern const struct op_ops op_passthrough;
extern const struct op_ops op_build;
extern const struct op_ops source_local_op;
extern const struct op_ops source_git_op;
extern const struct op_ops source_image_op;
extern const struct op_ops source_layout_op;
extern const struct op_ops source_http_op;
extern const struct op_ops source_image_blob_op;
extern const struct op_ops source_layout_blob_op;
/* What @v wants images to be for. */
const struct platform *vertex_platform(const struct vertex *v, const struct solver *solver);
/* @ref, or as many of its first layers as attribute @key says. New reference. */
int image_limit(struct ref **out, struct ref *ref, const struct vertex *v, const char *key,
		struct err *err);

struct edge {
	struct vertex *vertex;
	int index; /* which of its outputs */
};
struct vertex {
	size_t position;	/* in its graph; inputs have smaller ones */
	struct digest digest;	/* over bytes */
	struct llb_bytes bytes; /* the op as it came, unknown fields too; borrowed from the graph */
	struct llb_op op;
	struct llb_metadata metadata;
	struct edge *inputs; /* op.n_inputs */
	const struct source_location *locations; /* borrowed from the graph */
	size_t n_locations;
	char *name;
	const struct op_ops *ops; /* NULL: cannot be solved */
	size_t n_outputs;
	unsigned depth;	      /* how many build ops it is inside of */
	void *asked;	      /* what op_ops.ask found out; NULL = not asked */
	struct ref **outputs; /* once solved; n_outputs */
};
/* Makes the outputs of @v, whose inputs have theirs. */
int vertex_run(struct vertex *v, struct solver *solver, struct err *err);
/* Why @v, which has no ops, cannot be run. */
int vertex_cannot_run(const struct vertex *v, struct err *err);
/* The last vertex, of @v and all that it needs, that cannot be run; NULL when there is none. */
int graph_blocked(struct graph *g, const struct vertex *v, const struct vertex **out,
		  struct err *err);
int vertex_has_no_output(int index, struct err *err);
/* Puts "vertex sha256:… (name)" before @err. */
int vertex_error(const struct vertex *v, int r, struct err *err);
/* The solve of a graph, which lasts as long as the graph (solve.c). */
struct solve;
void solve_free(struct solve *s);
struct solve **graph_solve_slot(struct graph *g);
/* Waits for the jobs of graphs that were freed too early for it, and frees them. */
void graph_free_busy(struct solver *solver);

/* ------------------------------------------------------------------ keys (cachekey*.c) */

/* The digest of what is taken of @ref, the result of @from, by an input; blocks for its content
 * (content_key.c). Errors: -ENOENT and others of paths that are not there. */
int content_key(struct solver *solver, const struct cache_input *input, struct ref *ref,
		const struct edge *from, struct digest *out, struct err *err);

/* 1 when it is remembered of a kept ref with this id, or 0. */
int content_key_known(struct solver *solver, const struct cache_input *input,
		      const struct digest *ref, struct digest *out, struct err *err);

/* A digest of @preimage, which becomes an ingredient; clears @preimage. */
int keys_hash(struct vertex_keys *keys, struct strbuf *preimage, struct digest *out,
	      struct err *err);
/* The digest of @preimage is a map. */
int keys_add_map(struct vertex_keys *keys, struct strbuf *preimage, bool is_random,
		 struct err *err);
int keys_add_inputs(struct vertex_keys *keys, size_t n, struct err *err);
/* The selector of an input is SHA(paths joined by NUL). */
int keys_set_selector(struct vertex_keys *keys, size_t input, const char *const *paths, size_t n,
		      struct err *err);
/* Some of "*?[" in it is not behind a backslash. */
bool keys_is_wildcard(const char *path);
/* Moves what is left of @paths (borrowed texts) when those under others are gone to the front, in
 * order; returns how many. Texts: nothing is cleaned. */
size_t keys_dedupe_paths(const char **paths, size_t n);
/* The members OS, Arch, Variant, OSVersion, OSFeatures of what @v is for. */
void keys_platform(struct strbuf *json, const struct vertex *v, const struct solver *solver);

int keys_exec(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	      struct err *err);
int keys_file(struct vertex_keys *keys, const struct vertex *v, struct err *err);
/* What the key of a git source says, appended to @key (source_git.c). Errors: as keys_source. */
int git_key(struct strbuf *key, const struct vertex *v, struct err *err);
/* Errors: -ENODATA not known from the definition alone. */
int keys_source(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
		struct err *err);
/* op_ops.keys of sources */
int keys_image(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	       struct err *err);
int keys_layout(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
		struct err *err);
int keys_local(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	       struct err *err);
int keys_blob(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	      struct err *err);
int keys_git(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	     struct err *err);
int keys_http(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	      struct err *err);
/* The map of a source whose key is @key, which is cleared: the last part of an op_ops.keys. */
int keys_add_source(struct vertex_keys *keys, struct strbuf *key, struct err *err);
