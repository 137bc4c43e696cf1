/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * merge, inside: what the files of this folder share and nobody else sees.
 */

#include <pthread.h>
#include <sys/queue.h>

#include "merge/merge.h"

/* ------------------------------------------------------------------ trees (tree.c) */

/* Fills in the common part of a new tree, with one reference. */
void tree_init(struct tree *t, const struct tree_ops *ops, uint32_t n_leaves, bool is_live);

/* tree_walk that may say "later": with a @wait it returns -EAGAIN as lookups do, and is then
 * called again from the start. @real may be NULL. */
int tree_walk_wait(struct tree *t, const char *path, bool follow, struct attr *out,
		   struct strbuf *real, struct tree_wait *wait, struct err *err);

/* A folder's whole listing, copied. Names are NUL-terminated in one buffer. */
struct tree_entry {
	struct attr attr;
	size_t name_off;
	uint32_t name_len;
};
struct tree_listing {
	vec(struct tree_entry) entries;
	struct strbuf names;
};
/* Fills @out, whatever it held; empty after an error. */
int tree_listing_read(struct tree_listing *out, struct tree *t, uint64_t dir,
		      struct tree_wait *wait, struct err *err);
void tree_listing_deinit(struct tree_listing *l);
static inline const char *tree_entry_name(const struct tree_listing *l, const struct tree_entry *e)
{
	return l->names.data + e->name_off;
}

/* ------------------------------------------------------------------ host folders (dirtable.c) */

struct dir_node {
	uint64_t parent; /* id of the folder */
	char *name; /* "" for the root */
	uint64_t dev, ino;
	int64_t btime_ns;
	uint8_t type; /* S_IFMT >> 12 */
};
struct dir_table {
	pthread_mutex_t lock; /* guards all below */
	vec(struct dir_node) nodes; /* node i has the id i + 1 */
	uint32_t *slots; /* hash table of ids, 0 = free; n_slots is a power of 2 */
	size_t n_slots;
};
struct statx;
int dirtable_init(struct dir_table *t); /* to be deinitialised even after an error */
void dirtable_deinit(struct dir_table *t);
/* The id of what was just seen as @name in the folder @parent. */
int dirtable_intern(struct dir_table *t, uint64_t parent, const char *name, const struct statx *st,
		    uint64_t *id);
/* The path of @id below the root ("" for the root itself), and what it was when last seen (its name
 * is left out). */
int dirtable_path(struct dir_table *t, uint64_t id, struct strbuf *path, struct dir_node *was);
/* True when @st is of what @was was. */
bool dirtable_is_inode(const struct dir_node *was, const struct statx *st);
int dirtable_parent(struct dir_table *t, uint64_t dir, uint64_t *out, struct strbuf *name);

/* ------------------------------------------------------------------ unions: merged folders (folder.c)
 * What union.c has found out about a folder and keeps while there is room. All of it can be found
 * out again from the folder's id. A folder never changes once made; its list comes later. */

/* One input's part in a folder: a real folder of its tree, or a made-up parent on its add path. */
struct contributor {
	uint32_t input;
	uint32_t depth; /* made up: how many names of the add path lead here */
	uint64_t id; /* in the input's tree; 0 = made up */
};

/* An entry of a merged listing. The attr is the union's. */
struct folder_entry {
	struct attr attr;
	size_t name_off;
	uint32_t name_len;
	uint32_t n_contributors; /* of a folder */
	size_t first_contributor;
};
/* A merged listing, sorted by name; immutable. */
struct folder_list {
	int n_refs;
	uint64_t made_ns, cost_ns; /* CLOCK_MONOTONIC; how long it took */
	vec(struct folder_entry) entries;
	vec(struct contributor) contributors; /* of all folders among the entries */
	struct strbuf names;
};
struct folder_list *folder_list_new(void);
struct folder_list *folder_list_unref(struct folder_list *l);
define_scoped(struct folder_list *, folder_list_unref);
const struct folder_entry *folder_list_find(const struct folder_list *l, const char *name,
					    size_t len);

struct folder {
	int n_refs;
	uint64_t id, parent;
	bool is_live; /* what it consists of may change */
	bool is_opaque; /* some contributor ended the search below it */
	uint64_t made_ns;
	struct contributor *contributors; /* top first */
	size_t n_contributors;
	size_t n_answered; /* atomic: so many of them do not say "later" any more */
	struct folder_list *list; /* guarded by the cache's lock, as all below */
	struct folder *next_in_bucket;
	TAILQ_ENTRY(folder) lru, list_lru;
	bool is_cached;
	size_t name_len;
	char name[]; /* in its parent */
};
/* Copies everything. NULL = no memory. */
struct folder *folder_new(const struct folder *from, const char *name, size_t len);
struct folder *folder_unref(struct folder *f);
define_scoped(struct folder *, folder_unref);

/* The least recently used folders, then lists, go first. */
struct folder_cache {
	pthread_mutex_t lock;
	size_t max_folders, max_list_bytes;
	struct folder **buckets;
	size_t n_buckets, n_folders, list_bytes;
	TAILQ_HEAD(folder_lru, folder) lru, lists; /* most recent first; those with a list */
};
void folder_cache_init(struct folder_cache *c);
void folder_cache_deinit(struct folder_cache *c);
void folder_cache_limit(struct folder_cache *c, size_t max_folders, size_t max_list_bytes);
/* A new reference, or NULL. */
struct folder *folder_cache_get(struct folder_cache *c, uint64_t id);
/* Keeps @f instead of what had its id. */
void folder_cache_put(struct folder_cache *c, struct folder *f);
/* The list of @f: a new reference, or NULL. */
struct folder_list *folder_cache_list(struct folder_cache *c, struct folder *f);
/* Takes its own reference on @list. */
void folder_cache_set_list(struct folder_cache *c, struct folder *f, struct folder_list *list);

/* ------------------------------------------------------------------ unions: searching (union_find.c)
 * The numbers, and what all this is about, are at the head of union.c. */

/* One name of an input's add path. */
struct add_step {
	uint32_t off, len; /* in the path */
	uint64_t id; /* of the made-up parent so named; 0 for the last, the input's root */
};
enum root_opaque { ROOT_OPAQUE_UNKNOWN = 0, ROOT_OPAQUE_NO, ROOT_OPAQUE_YES };
struct input {
	struct tree *tree;
	uint64_t base; /* its first leaf */
	char *trim; /* NULL = all */
	char *add; /* without a slash at the start; "" = the root */
	struct add_step *steps;
	uint32_t n_steps;
	uint64_t root; /* atomic: its folder that is shown; 0 = the trim path was not walked yet */
	uint8_t root_opaque; /* atomic: enum root_opaque */
};
struct prefix {
	const char *path;
	uint32_t len;
};
struct union_tree {
	struct tree tree;
	bool is_raw;
	size_t many; /* a folder with so many contributors is listed and then searched */
	bool has_root; /* root and root_input are known; set by union_keep, constant from then on */
	struct attr root;
	struct input *root_input;
	struct input *inputs;
	size_t n_inputs;
	struct prefix *made_up; /* sorted; number i has the id MADE_UP_FIRST + i */
	size_t n_made_up;
	struct folder_cache cache;
};
#define MADE_UP_FIRST (TREE_ROOT + 1)

/* Makes an input's attr the union's. Keeps is_opaque, which cooked unions must clear in the end. */
void union_attr(const struct input *in, struct attr *attr);
void union_made_up_attr(struct attr *out, uint64_t id);
/* The input that @id belongs to and its id there; NULL for the union's own. */
struct input *union_input_of(const struct union_tree *u, uint64_t id, uint64_t *inner);
/* The folder of the input that is shown. Walks the trim path when that was not done yet. */
int union_input_root(struct input *in, uint64_t *out, struct tree_wait *wait, struct err *err);

/* Gets the folder @id; -ENOENT when no such folder shows. */
int union_folder(struct union_tree *u, uint64_t id, struct folder **out, struct tree_wait *wait,
		 struct err *err);
/* Looks @name up in @f. With @child, a folder found is given as such, else *child is NULL. */
int union_find(struct union_tree *u, struct folder *f, const char *name, size_t len,
	       struct attr *out, struct folder **child, struct tree_wait *wait, struct err *err);
int union_find_all(struct union_tree *u, struct folder *f, uint64_t from, tree_list_fn fn,
		   void *arg, struct tree_wait *wait, struct err *err);
/* One step up from a folder that need not be in the cache; appends its name. (union.c) */
int union_up(struct union_tree *u, uint64_t id, uint64_t *up, struct strbuf *name,
	     struct tree_wait *wait, struct err *err);

/* While @t is a union and the node is an input's: that input, and the node's id there. Borrowed. */
void union_origin(struct tree **t, uint64_t *id);
/* For tests: how much a union may keep. */
void union_limit_cache(struct tree *t, size_t max_folders, size_t max_list_bytes);

/* ------------------------------------------------------------------ content hashes (treehash.c) */

struct treehash_memo {
	uint64_t id; /* 0 = free */
	struct digest digest;
};
/* One call of treehash. */
struct treehash {
	struct tree *t;
	const struct treehash_ask *ask;
	struct hasher *hasher; /* of leaves */
	char *buf; /* for content */
	struct treehash_memo *memos; /* a hash table by id; n_memo_slots is 0 or a power of two */
	size_t n_memos, n_memo_slots;
	struct err *err; /* not NULL */
};
/* Of a folder: its header. */
int treehash_leaf(struct treehash *h, const struct attr *attr, struct digest *out);
/* The digest of what @path leads to. -ENOENT, -ELOOP, … */
int treehash_path(struct treehash *h, const char *path, bool follow, struct digest *out);
/* What @path, a key, leads to. -ENOENT: nothing is there, and no reason is set. */
int treehash_find(struct treehash *h, const char *path, bool follow, struct attr *out);
/* The path as it is a key: clean, absolute, and "" for the root. NULL = no memory. */
char *treehash_key(const char *path);
/* Adds a digest as text. */
void treehash_add(struct hasher *hasher, const struct digest *digest);
/* With a wildcard or patterns. (treehash_list.c) */
int treehash_list(struct treehash *h, struct digest *out);

/* ------------------------------------------------------------------ layers: the index (index.c)
 * Built by index_builder.c and index_write.c, from entries that tar.c or toc_json.c reads; the file
 * format is at the head of index.c. */

#define INDEX_NONE UINT32_MAX

/* A run of a sparse file that is not a hole. */
struct index_extent {
	uint64_t file_off, len, plain_off;
};

/* What a layer's index says of the layer as a whole. */
struct index_about {
	struct digest digest;
	struct digest diff_id; /* zero = not known: the index comes from a table of contents */
	enum layer_format format;
	uint64_t n_entries, n_files;
	uint64_t file_bytes; /* content of all files */
	uint64_t large_bytes; /* of that, in files of 1 MiB and more */
	uint64_t prefetch_bytes; /* plain bytes before the eStargz prefetch landmark */
};

/* An index, mapped or borrowed; immutable. Entries are numbered breadth-first: 0 is the root, and
 * those of one folder follow each other, sorted by name. Every call checks what it takes out of the
 * bytes: -EBADMSG means a damaged file. */
struct index;
/* The parser alone, for tests and fuzzing: @bytes stay borrowed, aligned to 8. */
int index_parse(struct index **out, const void *bytes, size_t n, struct err *err);
/* Maps the file; @fd may be closed afterwards. */
int index_map(struct index **out, int fd, struct err *err);
void index_free(struct index *x);
define_scoped(struct index *, index_free);
void index_about(const struct index *x, struct index_about *out);
uint32_t index_count(const struct index *x); /* of entries */
int index_attr(const struct index *x, uint32_t entry, struct attr *out);
/* -ENOENT, -ENOTDIR. */
int index_find(const struct index *x, uint32_t dir, const char *name, size_t len, uint32_t *entry);
/* The entries of a folder are [*first, *first + *n). -ENOTDIR. */
int index_children(const struct index *x, uint32_t dir, uint32_t *first, uint32_t *n);
int index_name(const struct index *x, uint32_t entry, const char **name, size_t *len);
int index_parent(const struct index *x, uint32_t entry, uint32_t *parent);
/* -EINVAL: not a symlink. */
int index_target(const struct index *x, uint32_t entry, const char **target, size_t *len);
/* Calls @fn for each xattr, sorted by name, until it returns non-zero; returns that. */
int index_xattrs(const struct index *x, uint32_t entry, tree_xattr_fn fn, void *arg);
/* Where a file's content lies in the layer's plain space. -EINVAL: not a file. A file that is not
 * sparse is one extent, which is put into @whole. */
struct index_content {
	uint64_t size;
	bool is_sparse;
	const struct index_extent *extents; /* not checked: see index_extent_at */
	uint32_t n_extents;
	struct index_extent whole;
};
int index_content(const struct index *x, uint32_t entry, struct index_content *out);
/* The @i-th extent, checked to lie in the file and after the one before. */
int index_extent_at(const struct index_content *c, uint32_t i, struct index_extent *out);
/* The first extent that ends after @file_off; n_extents when there is none. */
uint32_t index_extent_find(const struct index_content *c, uint64_t file_off);
/* -ENOENT: not known. */
int index_digest(const struct index *x, uint32_t entry, struct digest *out);

/* --- building one --- */
struct index_xattr {
	const char *name;
	const void *value;
	size_t len;
};
/* One entry as it stands in a tar or a table of contents; everything stays borrowed. */
struct index_item {
	uint8_t type; /* enum node_type; NODE_NONE = a hard link to @link */
	const char *path, *link; /* as written; link: target of a hard or symbolic link */
	uint32_t mode, uid, gid;
	int64_t mtime_s;
	uint32_t mtime_ns;
	uint64_t dev_major, dev_minor;
	uint64_t size, plain_off;
	bool is_sparse; /* then extents say where the content is, and not plain_off */
	const struct index_extent *extents;
	size_t n_extents;
	const struct digest *digest; /* of a file's content, or NULL */
	const struct index_xattr *xattrs;
	size_t n_xattrs;
};
struct index_builder;
/* @links_late: hard links mean names as they are at the end (tables of contents), not inodes as
 * they are at that moment (tar), and bring no metadata of their own. */
struct index_builder *index_builder_new(bool links_late);
void index_builder_free(struct index_builder *b);
define_scoped(struct index_builder *, index_builder_free);
/* Adds the next entry, by the rules of layers: see index_builder.c. What no file system can show
 * is left out with a warning. Errors: -EBADMSG the layer makes no sense, -ENOMEM. */
int index_builder_add(struct index_builder *b, const struct index_item *item, struct err *err);
/* The finished file's bytes; caller frees. Of @about digest, diff_id, format and prefetch_bytes are
 * given, the rest is counted. @hide_toc: the entries that eStargz adds to the root are left out.
 * To be called once. */
int index_builder_finish(struct index_builder *b, const struct index_about *about, bool hide_toc,
			 void **bytes, size_t *n, struct err *err);

/* --- the bytes of the file, for the files that touch them: index.c, which reads and explains them,
 * and index_write.c --- */
#define INDEX_MAGIC "llbfsidx"
#define INDEX_VERSION UINT32_C(1)
#define XATTR_NAME_LEN_MAX 255

struct index_part {
	uint64_t off, n; /* n items, bytes for names and xattrs */
};

struct index_header {
	char magic[8];
	uint32_t version;
	uint32_t format; /* enum layer_format */
	uint8_t digest[32], diff_id[32];
	uint64_t file_size;
	uint64_t n_files, file_bytes, large_bytes, prefetch_bytes;
	struct index_part entries, inodes, digests, extents, names, xattrs;
	uint8_t seal[16]; /* of all before it */
};
_Static_assert(sizeof(struct index_header) == 232, "the file format");

enum { INDEX_OPAQUE = 1, INDEX_IMPLICIT = 2 };

struct index_entry {
	uint32_t name; /* offset in names */
	uint8_t name_len;
	uint8_t type; /* enum node_type */
	uint16_t flags;
	uint32_t inode;
	uint32_t first_child, n_children;
	uint32_t parent;
};
_Static_assert(sizeof(struct index_entry) == 24, "the file format");

struct index_inode {
	uint64_t size;
	union {
		uint64_t where; /* file: plain offset; symlink: offset in names; device: major, minor */
		uint64_t allocated; /* sparse file */
	};
	int64_t mtime_s;
	uint32_t mtime_ns;
	uint32_t mode, uid, gid;
	uint32_t nlink;
	uint32_t entry; /* the first with this inode */
	uint32_t xattrs; /* offset; 0 = none */
	uint32_t digest; /* INDEX_NONE = not known */
	uint32_t extents; /* first; INDEX_NONE = the content is one run */
	uint32_t n_extents;
};
_Static_assert(sizeof(struct index_inode) == 64, "the file format");

void index_header_seal(struct index_header *h);

/* One xattr of a set that lies at *p; both are moved on. -EBADMSG. */
struct index_xattr_ref {
	const char *name;
	const uint8_t *value;
	uint32_t name_len, value_len;
};
int index_xattr_next(const uint8_t **p, size_t *left, struct index_xattr_ref *out);

/* --- a builder's inside: index_builder.c applies the rules, index_write.c writes the file --- */
struct xattr_pool {
	struct strbuf bytes;
	uint32_t *slots; /* offsets of sets, by hash; 0 = free */
	size_t n_slots, n_sets;
};
int xattr_pool_init(struct xattr_pool *pool);
void xattr_pool_deinit(struct xattr_pool *pool);
/* *set becomes the set of @items and of those of *set that they do not name; what a layer must not
 * bring is dropped. Of equal names the first counts. */
int xattr_pool_merge(struct xattr_pool *pool, const struct index_xattr *items, size_t n,
		     uint32_t *set);

#define INDEX_ROOT 0u
enum {
	IS_GONE = 1, /* replaced; at the end also: below something that was */
	IS_OPAQUE = 2,
	IS_IMPLICIT = 4,
	IS_WHITED_OUT = 8, /* a whiteout of this name was seen */
};

struct index_node {
	uint32_t parent;
	uint32_t name; /* offset in names */
	uint32_t inode;
	uint32_t hash;
	uint8_t name_len;
	uint8_t flags;
};

/* type NODE_NONE: a late hard link, whose target's text is names[where], size bytes. */
struct index_made {
	struct index_inode rec;
	uint8_t type;
};

struct index_builder {
	bool links_late;
	vec(struct index_node) nodes;
	vec(struct index_made) inodes;
	vec(struct digest) digests;
	vec(struct index_extent) extents;
	struct strbuf names;
	struct xattr_pool xattrs;
	uint32_t *table; /* node + 1; 0 = free */
	size_t n_slots;	 /* a power of two */
	uint64_t seed;
	/* the folder of the entry before, as entries come folder by folder */
	char *last_dir;
	uint32_t last_node;
	size_t n_late_links, n_warnings;
};
/* Gives late hard links their inodes. */
int index_builder_bind_links(struct index_builder *b, struct err *err);
static inline struct index_made *index_node_inode(const struct index_builder *b, uint32_t node)
{
	return &b->inodes.items[b->nodes.items[node].inode];
}

/* ------------------------------------------------------------------ layers: tar in (tar.c) */

/* The next bytes of a stream, borrowed until the next call: 1 = *bytes, *n; 0 = the end. */
typedef int (*tar_next_fn)(void *arg, const void **bytes, size_t *n, struct err *err);
/* Reads a tar to the end of its stream into @b, hashing each file's content. */
int tar_index(struct index_builder *b, tar_next_fn next, void *arg, struct err *err);
/* Finds a file in a tar in memory; the content is borrowed from it. -ENOENT. */
int tar_find(const void *bytes, size_t n, const char *name, const void **content, size_t *size,
	     struct err *err);

/* ------------------------------------------------------------------ layers: eStargz (toc_json.c) */

enum toc_kind { TOC_NONE, TOC_ESTARGZ, TOC_LEGACY, TOC_EXTERNAL };
#define TOC_FOOTER_MAX 51
/* What the last @n bytes of a blob of @blob_size say of its table of contents. *toc_off is nothing
 * but a claim until the table's digest has been checked. */
enum toc_kind toc_footer(const void *tail, size_t n, uint64_t blob_size, uint64_t *toc_off);
/* The table's JSON, gunzipped, into entries of @b and spans of @spans; @toc_off ends the last span.
 * The plain space is the chunks of all files one after another, in order. @prefetch_bytes: as in
 * struct index_about. Errors: -EBADMSG, -ENOTSUP a table that does not allow lazy reading. */
int toc_json(struct index_builder *b, struct span_builder *spans, const char *json, size_t n,
	     uint64_t toc_off, uint64_t *prefetch_bytes, struct err *err);

/* ------------------------------------------------------------------ layers: learned.c */

/* Which parts of a layer's plain space were read, for learned prefetch. */
struct learned;
struct learned *learned_new(uint64_t plain_size); /* NULL = no memory */
void learned_free(struct learned *l);
define_scoped(struct learned *, learned_free);
/* From any thread, without a lock. */
void learned_add(struct learned *l, uint64_t plain_off, uint64_t len);
/* Puts what was read into the store as "learned/<key>", with what is there already. */
void learned_save(const struct learned *l, struct store *store, const char *key);
/* Calls blob_prefetch for what the store knows; false when it knows nothing. */
bool learned_prefetch(struct blob *blob, uint64_t plain_size, struct store *store, const char *key);

/* ------------------------------------------------------------------ layers: layer_make.c */

/* Where an index comes from decides its name: "<hex>" was made by a pass over the whole blob,
 * "<hex>-<16 digits>" from a table of contents with that digest. Index, spans and what was learned
 * go by this key. */
#define LAYER_KEY_MAX (64 + 1 + 16 + 1)
#define LAYER_REASON_MAX 160

/* What is known of a layer from the start. */
struct layer_source {
	struct store *store;
	struct blob *blob;
	struct digest diff_id; /* zero = not known */
};
/* What finding or making an index gives; the source's blob has its spans then. */
struct layer_made {
	struct index *index;
	uint64_t plain_size;
	char key[LAYER_KEY_MAX];
	const char *note; /* what a person should know although all is well; "" mostly */
};
/* Told and asked while an index is being made, from that thread. */
struct layer_progress {
	/* The layer cannot be read lazily before it was read as a whole, and why. */
	void (*tell)(void *arg, const char *reason);
	/* @position: stored bytes so far. Called often, also while only waiting. A negative return
	 * ends the work with it. */
	int (*go_on)(void *arg, uint64_t position);
	void *arg;
};
/* What the manifest says a layer is, and why it must be read as a whole first; "" = it need not. */
enum layer_format layer_guess(const struct desc *desc, char reason[LAYER_REASON_MAX]);
/* Looks in the store only. -ENOENT when there is nothing usable. */
int layer_find(const struct layer_source *s, struct layer_made *out, struct err *err);
/* Makes the index, from the table of contents or by a pass. Blocks for the network. */
int layer_make(const struct layer_source *s, const struct layer_progress *p, struct layer_made *out,
	       struct err *err);
