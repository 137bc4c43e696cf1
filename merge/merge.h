/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * merge: trees.
 *
 * A tree is an immutable directory tree (a host folder is the exception: it is live). A layer is a
 * blob seen as a tree, through its index; a union is several trees as one, the last on top. Names
 * and metadata come from indexes; content is fetched when it is read.
 * Safe to use from any thread unless a call says otherwise.
 *
 * Trees may say "later": see struct tree_wait. That and blob_read are the only asynchronous seams.
 */

#include <time.h>

#include <sys/stat.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"

/* ------------------------------------------------------------------ trees */

enum node_type {
	NODE_NONE = 0,
	NODE_FILE,
	NODE_DIR,
	NODE_SYMLINK,
	NODE_CHAR,
	NODE_BLOCK,
	NODE_FIFO,
	NODE_SOCKET, /* only in host folders */
	NODE_WHITEOUT, /* in a layer and in a raw union: hides the name below */
};

/* Ids are inode numbers: unique in a tree, the same for all names of one inode, and the same each
 * time the tree is made from the same parts. The root's id is TREE_ROOT. A tree has n_leaves
 * consecutive blocks of 2^32 ids (a layer one, a union one plus those of its inputs), so that the
 * ids of parts embed into those of the whole without a table. */
#define TREE_ROOT UINT64_C(1)

struct attr {
	uint64_t id;
	uint8_t type; /* enum node_type */
	bool is_opaque; /* folder: hides what lower trees have in it (not set in a cooked union) */
	bool is_implicit; /* folder made up because something lies below it: a lower one's metadata wins */
	bool is_live; /* may change at any time: do not cache */
	uint32_t mode; /* 07777 bits only */
	uint32_t uid, gid, nlink;
	uint64_t size; /* symlinks: length of the target */
	uint64_t n_bytes_allocated; /* for st_blocks: size without holes */
	int64_t mtime_s;
	uint32_t mtime_ns;
	uint32_t dev_major, dev_minor;
};

/* A call that cannot be answered yet (a layer's index is not here) returns -EAGAIN and calls
 * ready once, later, from any thread: then call again. With a NULL wait the call blocks instead,
 * at most the store's deadline (-ETIMEDOUT). The wait stays borrowed until ready. ready must not
 * block and must not call the tree. */
struct tree_wait {
	void (*ready)(struct tree_wait *wait);
	struct tree_wait *next; /* the tree's own while it waits */
};

struct tree;
/* One entry of a folder. Return 0 to go on; anything else stops the listing and is returned by
 * tree_list. @next is what to pass as @from to go on after this entry. */
typedef int (*tree_list_fn)(void *arg, const char *name, size_t len, const struct attr *attr,
			    uint64_t next);
typedef int (*tree_xattr_fn)(void *arg, const char *name, const void *value, size_t len);

/* One of the three interfaces of the program; implementations embed struct tree first. Names are
 * bytes without NUL and '/', 1..255 long; "." and ".." never reach a tree. All may be called at
 * once from many threads. Contracts are those of the functions below. */
struct tree_ops {
	int (*getattr)(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
		       struct err *err);
	int (*lookup)(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		      struct tree_wait *wait, struct err *err);
	int (*list)(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		    struct tree_wait *wait, struct err *err);
	int (*parent)(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
		      struct err *err);
	int (*readlink)(struct tree *t, uint64_t id, struct strbuf *out, struct err *err);
	int (*xattrs)(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err);
	int64_t (*read)(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			blob_done done, void *arg, struct err *err);
	/* Optional (NULL: -ENODATA for all): the ranges of a file that are not holes. */
	int (*seek_data)(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end);
	/* Optional (NULL: -ENOENT). */
	int (*open_flat)(struct tree *t, uint64_t id, bool make, int *fd, struct err *err);
	int (*content_digest)(struct tree *t, uint64_t id, struct digest *out);
	int (*host_stat)(struct tree *t, uint64_t id, struct stat *out);
	void (*free)(struct tree *t);
};
struct tree {
	const struct tree_ops *ops;
	int n_refs; /* atomic; starts at 1 */
	uint32_t n_leaves; /* blocks of 2^32 ids, fixed when the tree is made */
	bool is_live; /* some of it may change at any time */
};
struct tree *tree_ref(struct tree *t);
struct tree *tree_unref(struct tree *t); /* returns NULL */
define_scoped(struct tree *, tree_unref);

/* Errors: -ENOENT no such id, -EAGAIN (see tree_wait), -EIO and others with a reason. All calls on
 * a live tree: -ESTALE when the file is not any more what it was when its id was given out. */
int tree_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
		 struct err *err);
/* -ENOENT, -ENOTDIR, -EAGAIN, … */
int tree_lookup(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		struct tree_wait *wait, struct err *err);
/* Entries sorted by name (byte order), without "." and ".."; @from 0 = the first. Returns 0 at the
 * end, or what @fn returned. */
int tree_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
	      struct tree_wait *wait, struct err *err);
/* The folder that holds @dir, and @dir's name in it; the root is its own parent. Folders only. */
int tree_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name, struct err *err);
int tree_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err);
/* Calls @fn for each xattr until it returns non-zero; returns that, or 0. overlayfs' own names
 * (*.overlay.*) are never given. */
int tree_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err);
/* The same as a list, sorted by name; freed also after an error. */
struct tree_xattr {
	char *name;
	void *value;
	size_t len;
};
struct xattr_list {
	vec(struct tree_xattr) items;
};
int tree_xattr_list(struct tree *t, uint64_t id, struct xattr_list *out, struct err *err);
void xattr_list_deinit(struct xattr_list *list);
/* Up to @len bytes of a file at @off: the count (short only at the end of the file), -EINPROGRESS
 * (then @done, as in blob_read), or an error. @done NULL: blocks, at most the deadline. */
int64_t tree_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len, blob_done done,
		  void *arg, struct err *err);
/* The first range of data at or after @off: [*data, *end). -ENODATA: none up to the file's end. */
int tree_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end);
/* A descriptor of a host file with exactly this file's bytes, for passthrough. -ENOENT when there
 * is none (yet); with @make, making one is begun where that costs no network. */
int tree_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err);
/* sha256 of a file's content where it is known without reading; else -ENOENT. */
int tree_content_digest(struct tree *t, uint64_t id, struct digest *out);
/* As it is now, the file of a host folder that content is read from; else -ENOENT. */
int tree_host_stat(struct tree *t, uint64_t id, struct stat *out);

/* --- paths --- */
/* Walks @path (absolute or not, cleaned first) from the root. @follow: also a symlink at the end;
 * symlinks on the way are always followed, inside the root, at most 40 (-ELOOP). Blocks. */
int tree_walk(struct tree *t, const char *path, bool follow, struct attr *out, struct err *err);
/* The same; also gives the real path that was reached (cleaned, absolute). */
int tree_walk_real(struct tree *t, const char *path, bool follow, struct attr *out,
		   struct strbuf *real, struct err *err);
/* Depth-first over everything below @dir, names in order, folder before its content; @path is
 * relative to @dir ("a/b"). A non-zero return stops; TREE_WALK_SKIP does not descend. No recursion. */
#define TREE_WALK_SKIP 1000
typedef int (*tree_walk_fn)(void *arg, const char *path, const char *name, const struct attr *attr);
int tree_walk_all(struct tree *t, uint64_t dir, tree_walk_fn fn, void *arg, struct err *err);

/* ------------------------------------------------------------------ kinds of trees */

/* An empty folder. */
int tree_empty(struct tree **out);

/* A tree in memory: the test double. Paths are made with their parents (0755 0:0, time 0); attr
 * gives type, mode, owner, times, device; id, nlink and size are set by the tree. @data is content
 * or link target. Type NODE_WHITEOUT and is_opaque make raw layers. Build before sharing. */
int memtree_new(struct tree **out);
int memtree_add(struct tree *t, const char *path, const struct attr *attr, const void *data,
		size_t len);
int memtree_link(struct tree *t, const char *path, const char *target);
int memtree_xattr(struct tree *t, const char *path, const char *name, const void *value, size_t len);

/* A flat file of the store (see content_fetch) as the file FLATTREE_FILE, "content", in the root. */
#define FLATTREE_FILE (TREE_ROOT + 1)
int flattree_new(struct tree **out, struct store *store, const struct digest *digest,
		 uint64_t size);

/* A host folder, live, read safely beneath its root. overlayfs' whiteouts and opaque marks become
 * flags when @is_layer. Holds no descriptor while idle, so that 10,000 of them are fine. */
int dirtree_new(struct tree **out, const char *path, bool is_layer, struct err *err);

/* --- edits: changes on top of a tree, which become a layer --- */

/* Used by one thread until it is sealed. Nodes are ids of the edit: TREE_ROOT, or what these calls
 * give; 0 = there is none. */
struct edit;
/* @below may be NULL (nothing) and is referenced. @now: the time of folders in which names change;
 * NULL = they keep theirs.
 * Errors: -ENOMEM. */
int edit_new(struct edit **out, struct tree *below, const struct timespec *now);
void edit_free(struct edit *e);
define_scoped(struct edit *, edit_free);
/* What is called @name in the folder @dir, below or changed; *node is 0 when nothing is. */
int edit_child(struct edit *e, uint64_t dir, const char *name, size_t len, uint64_t *node,
	       struct err *err);
/* Both borrowed until the next call; the target is that of a symlink. */
const struct attr *edit_attr(struct edit *e, uint64_t node);
const char *edit_target(struct edit *e, uint64_t node);
/* Walks @path from the root, inside the root, with links on the way followed. A path that is not
 * there gives node 0. @real (may be NULL) gets the path without links, of what is not there, too.
 * EDIT_FOLLOW_RELATIVE: at the end, a link to an absolute path leads to nothing.
 * Errors: -ENOTDIR, -ELOOP. */
enum edit_follow { EDIT_NO_FOLLOW, EDIT_FOLLOW, EDIT_FOLLOW_RELATIVE };
int edit_walk(struct edit *e, const char *path, enum edit_follow follow, uint64_t *node,
	      struct strbuf *real, struct err *err);
/* Something new. */
struct edit_what {
	const struct attr *attr; /* type, mode, owner, time, device; of a copied file also the size */
	struct tree *from; /* content, target and xattrs of this node; NULL = @data and none */
	uint64_t from_id;
	const struct attr *was; /* of @from_id, when it was looked at */
	const void *data;
	size_t len;
};
/* @name must not be in @dir. A copied file stays where it is and is read from there. */
int edit_make(struct edit *e, uint64_t dir, const char *name, size_t len,
	      const struct edit_what *what, uint64_t *node, struct err *err);
/* One more name of a node that was made here. */
int edit_link(struct edit *e, uint64_t dir, const char *name, size_t len, uint64_t node,
	      struct err *err);
/* Removes @name, which edit_child has found, and all below it. */
void edit_remove(struct edit *e, uint64_t dir, const char *name, size_t len);
/* A whiteout where the edit knows of nothing: of a layer that is made without the tree below. */
int edit_whiteout(struct edit *e, uint64_t dir, const char *name, size_t len, struct err *err);
/* Mode, owner and time of a folder, or of what was made here. */
void edit_set(struct edit *e, uint64_t node, const struct attr *attr);
/* Gives @node the xattrs of another one, instead of its own. */
int edit_set_xattrs(struct edit *e, uint64_t node, struct tree *from, uint64_t from_id,
		    struct err *err);
int edit_add_xattr(struct edit *e, uint64_t node, const char *name, const void *value, size_t len,
		   struct err *err);
/* Drops all xattrs but this one. */
void edit_keep_xattr(struct edit *e, uint64_t node, const char *name);
/* New content for the file @name, whose node is @node; it may get another one. */
int edit_write(struct edit *e, uint64_t dir, const char *name, size_t len, uint64_t *node,
	       const void *data, size_t n_data, struct err *err);
bool edit_is_empty(struct edit *e); /* nothing has changed */
/* The changes as a raw tree, which takes *edit. The tree below is not part of it. */
int edit_seal(struct tree **out, struct edit **edit, struct err *err);

/* --- trees of edits that stay --- */

/* One that files of the tree point into. */
struct treefile_layer {
	struct digest digest;
	struct remote *remote; /* has its blob; NULL = only the store */
};
/* The same bytes for equal trees. */
struct treefile {
	struct strbuf bytes;
	vec(struct treefile_layer) layers; /* each once, with a reference */
};
/* @t must come from edit_seal or treefile_load. What files have in host folders or in memory goes
 * into the store. Blocks. Errors: -ESTALE a host file was changed since it was copied, -ENOSPC. */
int treefile_write(struct treefile *out, struct tree *t, struct store *store, struct err *err);
void treefile_deinit(struct treefile *file);
static inline void treefile_deinit_scoped(struct treefile *file)
{
	treefile_deinit(file);
}
/* The tree again, with the same ids; @bytes must have been verified. @layers say where blobs are.
 * Touches no network. Errors: -EBADMSG, -ENOENT content is not in the store any more. */
int treefile_load(struct tree **out, struct store *store, const void *bytes, size_t n,
		  const struct treefile_layer *layers, size_t n_layers, struct err *err);
/* The parser alone, for tests and fuzzing: the store is not looked at before a file is read. */
int treefile_parse(struct tree **out, struct store *store, const void *bytes, size_t n,
		   const struct treefile_layer *layers, size_t n_layers, struct err *err);

/* --- layers --- */
enum layer_format {
	LAYER_UNKNOWN = 0, /* not looked at yet */
	LAYER_TAR,
	LAYER_GZIP,
	LAYER_ZSTD,
	LAYER_ESTARGZ,
	LAYER_ZSTDCHUNKED,
	LAYER_SOCI,
	LAYER_LOCAL,
};
const char *layer_format_name(enum layer_format f); /* "tar", "gzip", … "" for unknown */

/* A layer's tree, raw: whiteouts are entries, opaque folders are marked. Returns at once: the
 * index is mapped from the store, or made in the background (from the TOC, or by one pass) while
 * the tree says "later". A failure is kept and given to every call. @diff_id may be NULL; when
 * given, a pass checks it and a difference is an error.
 * Equal blobs share one index. */
int layer_open(struct tree **out, struct store *store, const struct desc *desc,
	       struct remote *remote, const struct digest *diff_id, struct err *err);

struct layer_status {
	const struct desc *desc; /* borrowed from the layer */
	enum layer_format format;
	bool is_ready; /* the index is here */
	bool is_lazy; /* content is fetched as it is read */
	char reason[160]; /* when not lazy: why; when failed: the error; else seldom a remark */
	int error; /* negative errno when the layer failed */
	uint64_t pass_position; /* stored bytes of the pass under way, else 0 */
	struct blob_usage usage;
	uint64_t n_entries, n_files;
	uint64_t plain_bytes; /* content of all files */
	uint64_t large_bytes; /* of that, in files of 1 MiB and more */
};
/* @t must come from layer_open. */
void layer_status(struct tree *t, struct layer_status *out);
/* Blocks until the index is here; returns the layer's error. */
int layer_wait(struct tree *t, struct err *err);
/* Everything read of the layer so far in this process, for learned prefetch: what an earlier mount
 * read is kept in the store by layer_learn and fetched again by layer_prefetch_learned. */
void layer_learn(struct tree *t);
void layer_prefetch_learned(struct tree *t);
void layer_prefetch_all(struct tree *t);

/* --- unions --- */
struct union_input {
	struct tree *tree; /* raw; borrowed, the union takes its own reference */
	const char *trim; /* only what lies under this folder, moved to the root; NULL or "/" = all.
			     Resolved inside the tree, symlinks too, when first needed */
	const char *add; /* placed below this folder; NULL or "/" = the root */
};
/* Later inputs lie over earlier ones. Cooked (!is_raw): what a mount shows, no whiteouts. Raw:
 * what is left of whiteouts and opaque marks shows, so that the union can be an input again.
 * Folders are merged when first looked at. The root of a cooked union is 0755 0:0 unless an
 * input's root says otherwise (layers' do not; host folders' and merged roots do).
 * A trim path that is missing or no folder: every call fails with -ENOENT or -ENOTDIR and says so.
 * Errors: -EINVAL a trim or add path with "..". */
int union_new(struct tree **out, const struct union_input *inputs, size_t n, bool is_raw,
	      struct err *err);

/* Says, before @t is used, that it will be looked into often, from many unions: its folders are listed
 * once and then searched. @t must come from union_new, and have inputs that answer at once. */
void union_keep(struct tree *t);
/* ------------------------------------------------------------------ uppers */

/*
 * Changes over a tree that are kept in a host folder: a tree that can be written. How and why
 * stands at the head of upper.c.
 *
 * The tree of an upper has the ids of the tree below; what is new has ids of its own. Its listings
 * are not sorted, and what comes next stays right while names come and go. Calls about names and
 * content may say "later" as those of trees do, when they need something of the tree below.
 *
 * Errors of all: -EAGAIN (see tree_wait), those of file systems (-EEXIST, -ENOTEMPTY, -ENOSPC, …),
 * those of the tree below, -EIO the upper could not keep a change and takes no more.
 */
struct upper;

struct upper_options {
	const char *dir; /* made when it is not there */
	/* Nothing survives: no records, no sync; a folder of its own in @dir that goes in the end, and
	 * with it those whose servers were killed. */
	bool is_scratch;
	/* Names the tree below. While it is the same, ids of that tree are believed to be the same,
	 * else (or NULL, or a live tree) what was changed is found again by its path. */
	const char *below_key;
};
/* Errors: -EBUSY somebody serves this upper, -EBADMSG, -ENOTSUP no upper of this program. */
int upper_open(struct upper **out, struct tree *below, const struct upper_options *options,
	       struct err *err);
/* Syncs, lets the folder go (a scratch one is removed) and drops the caller's reference to the
 * tree. All calls must have returned. NULL is fine. */
int upper_close(struct upper *u, struct err *err);
struct tree *upper_tree(struct upper *u); /* borrowed */

/* What the kernel knows: an inode that has no name any more lives until the kernel forgets it. Each
 * entry given to the kernel is told here before, with its name. */
void upper_seen(struct upper *u, uint64_t id, uint64_t dir, const char *name, size_t len);
void upper_forget(struct upper *u, uint64_t id, uint64_t n);

struct upper_times {
	struct timespec atime, mtime, ctime;
};
/* False when nothing is known beyond the attr. */
bool upper_times(struct upper *u, uint64_t id, struct upper_times *out);

struct upper_make {
	uint8_t type; /* enum node_type */
	uint32_t mode, uid, gid;
	uint32_t umask; /* applied unless the folder has a default ACL */
	uint32_t dev_major, dev_minor;
	const char *target; /* of a symlink */
};
int upper_create(struct upper *u, uint64_t dir, const char *name, size_t len,
		 const struct upper_make *what, struct attr *out, struct tree_wait *wait,
		 struct err *err);
/* A file without a name; upper_link may give it one. */
int upper_create_tmp(struct upper *u, uint64_t dir, const struct upper_make *what, struct attr *out,
		     struct tree_wait *wait, struct err *err);
int upper_link(struct upper *u, uint64_t id, uint64_t dir, const char *name, size_t len,
	       struct attr *out, struct tree_wait *wait, struct err *err);
/* @is_dir: an empty folder, else anything but one. */
int upper_remove(struct upper *u, uint64_t dir, const char *name, size_t len, bool is_dir,
		 struct tree_wait *wait, struct err *err);
/* @flags: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT. */
struct upper_name {
	uint64_t dir;
	const char *name;
	size_t len;
};
int upper_rename(struct upper *u, const struct upper_name *from, const struct upper_name *to,
		 unsigned flags, struct tree_wait *wait, struct err *err);

enum upper_set_what {
	UPPER_MODE = 1,
	UPPER_UID = 2,
	UPPER_GID = 4,
	UPPER_SIZE = 8,
	UPPER_ATIME = 16,
	UPPER_MTIME = 32,
	UPPER_KILL = 64, /* take setuid, setgid and capabilities away, as writing does */
};
struct upper_set {
	unsigned what;
	uint32_t mode, uid, gid;
	uint64_t size;
	struct timespec atime, mtime;
};
int upper_set(struct upper *u, uint64_t id, const struct upper_set *set, struct attr *out,
	      struct tree_wait *wait, struct err *err);
/* @flags: XATTR_CREATE, XATTR_REPLACE; @value NULL removes. Errors: -EEXIST, -ENODATA. */
int upper_set_xattr(struct upper *u, uint64_t id, const char *name, const void *value, size_t len,
		    int flags, struct tree_wait *wait, struct err *err);

int64_t upper_write(struct upper *u, uint64_t id, uint64_t off, const void *bytes, size_t len,
		    bool kills_suid, struct tree_wait *wait, struct err *err);
/* @mode as in fallocate(2): keep size, punch a hole, zero a range. */
int upper_allocate(struct upper *u, uint64_t id, int mode, uint64_t off, uint64_t len,
		   struct tree_wait *wait, struct err *err);
/* -EOPNOTSUPP: not by the host alone; read and write. */
int64_t upper_copy_range(struct upper *u, uint64_t from, uint64_t from_off, uint64_t to,
			 uint64_t to_off, size_t len, struct err *err);
/* Blocks for the disk. Afterwards names, attributes and, if @id is a file, its content survive. */
int upper_sync(struct upper *u, uint64_t id, struct err *err);
struct statvfs;
int upper_statfs(struct upper *u, struct statvfs *out);

/* What differs from the tree below, without a walk: sorted by path. */
struct upper_change {
	char kind; /* 'A', 'M', 'D' */
	const char *path; /* "/a/b" */
	struct attr attr; /* of 'A' and 'M' */
	/* 'A': a folder of the tree below that was renamed, and comes with what it holds there */
	bool is_moved;
};
int upper_changes(struct upper *u, int (*fn)(void *arg, const struct upper_change *change),
		  void *arg, struct err *err);

/* ------------------------------------------------------------------ differences and tar */

struct change {
	char kind; /* 'A', 'M', 'D' */
	const char *path; /* "/a/b" */
	const struct attr *old, *new; /* NULL where not there */
};
typedef int (*change_fn)(void *arg, const struct change *change);
/* What turns @a into @b, sorted as tree_walk_all walks: names, types, modes, owners, times (ns),
 * link targets, devices, xattrs, and content (by digest where known, else read). A deleted folder
 * is one change. A non-zero return of @fn stops and is returned. Roots' own metadata is left out. */
int tree_diff(struct tree *a, struct tree *b, change_fn fn, void *arg, struct err *err);

/* Writes @dir and all below it as a tar with Go archive/tar's header bytes (USTAR where it fits,
 * else PAX), hard links as links, xattrs as SCHILY.xattr records, to @write. @prefix is put before
 * each name ("" or "a/b"). */
typedef int (*tar_write_fn)(void *arg, const void *bytes, size_t n);
int tar_write_tree(struct tree *t, uint64_t dir, const char *prefix, tar_write_fn write, void *arg,
		   struct err *err);
/* Writes a raw tree as the tar of a layer, byte for byte as BuildKit's containerd does: whiteouts as
 * .wh. files, times in whole seconds, security.capability the only xattr. */
struct tar_layer {
	bool has_epoch;
	int64_t epoch;	 /* later times become this one */
	bool all_xattrs; /* of a layer that had them */
};
int tar_write_layer(struct tree *t, const struct tar_layer *layer, tar_write_fn write, void *arg,
		    struct err *err);
/* Members of a tar file by offset (an oci-archive, a docker-archive), nothing unpacked.
 * @fn: name as in the tar (cleaned, no leading slash), offset of the data in the file; link targets
 * for links. */
struct tar_member {
	const char *name;
	const char *link; /* NULL unless a hard or symbolic link */
	uint64_t off, size;
	bool is_file;
};
int tar_scan(int fd, int (*fn)(void *arg, const struct tar_member *m), void *arg, struct err *err);

/* ------------------------------------------------------------------ patterns */

/* Go's filepath.Match: * and ? do not cross slashes, [a-z], [^a], \\ before what is meant as such.
 * 1 the whole @name matches, 0 it does not; -EINVAL a pattern that makes no sense. */
int match_wildcard(const char *pattern, const char *name);

/* A list of patterns as in .dockerignore: the last that matches decides, ! takes back, ** crosses
 * slashes; what lies below a match matches. Empty ones do not count. Immutable. Errors: -EINVAL. */
struct match_patterns;
int match_patterns_new(struct match_patterns **out, const char *const *texts, size_t n,
		       struct err *err);
void match_patterns_free(struct match_patterns *set);
define_scoped(struct match_patterns *, match_patterns_free);
size_t match_patterns_count(const struct match_patterns *set);
/* 1 or 0 for @path ("a/b"), or -ENOMEM. @matched gets a value for each pattern, to be given as
 * @parent for what lies in that folder; NULL: nothing is known of the folder, all are looked at. */
int match_patterns(const struct match_patterns *set, const char *path, const bool *parent,
		   bool *matched);

/* ------------------------------------------------------------------ content hashes */

/* Digests of files that need not be read again: a key stands for a host file as it is now (by device,
 * inode, size and times) and for the metadata that is hashed with its content. Only files that have
 * not been changed just now are put. */
struct treehash_known {
	bool (*get)(void *arg, const struct digest *key, struct digest *out);
	void (*put)(void *arg, const struct digest *key, const struct digest *digest);
	void *arg;
};
/* What a copy takes from a tree, as in LLB's copy. Everything is borrowed. */
struct treehash_ask {
	const char *path;
	bool follow;   /* a symlink at the end of the path; with patterns, those taken by themselves */
	bool wildcard; /* the path is a wildcard */
	const char *const *include, *const *exclude; /* patterns, relative to what the path names */
	size_t n_include, n_exclude;
	/* The tree is what a client sends of a host folder: owned by 0:0, its root not told of. */
	bool is_upload;
	const struct treehash_known *known; /* NULL = every file is read */
};
/* The digest by which BuildKit knows that content: over names, modes, owners, link targets, devices,
 * xattrs and bytes, but no times. Reads all files that are taken; blocks. A wildcard or patterns
 * may take nothing, which has a digest, too.
 * Errors: -ENOENT no such path, -ELOOP, -EINVAL a pattern, -ESTALE a file shrank while it was read. */
int treehash(struct tree *t, const struct treehash_ask *ask, struct digest *out, struct err *err);
/* Unpacks a file of a tree, if it is a tar, perhaps compressed (gzip, bzip2, xz, zstd): 1, or 0
 * when it is something else. */
struct tar_unpack_options {
	const char *into; /* a real path of the edit; made when it is not there */
	bool has_owner; /* everything belongs to uid:gid */
	uint32_t uid, gid;
	struct timespec now; /* the time of folders that the archive does not name */
};
int tar_unpack(struct edit *edit, struct tree *source, const struct attr *file,
	       const struct tar_unpack_options *options, struct err *err);
