/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * blobstore: bytes.
 *
 * A blob is content named by its digest. Its bytes may be here, partly here, or only at a remote.
 * Reading makes them be here; every byte handed out has been verified against a digest.
 * Safe to use from any thread unless a call says otherwise.
 *
 * Three byte spaces meet here and never mix: stored_off (as in the registry), plain_off (after
 * decompression) and, above this folder, file_off. Only span.c converts.
 */

#include "blobstore/base.h"

/* ------------------------------------------------------------------ digests */

/* sha256 is the only algorithm that is in use; others are refused by name. */
struct digest {
	uint8_t bytes[32];
};
#define DIGEST_TEXT_MAX 72 /* "sha256:" + 64 hex digits + NUL */
#define DIGEST_HEX_MAX 65

/* "sha256:<64 lower-case hex digits>", exactly. Errors: -EINVAL (malformed), -ENOTSUP (other algorithm). */
int digest_parse(struct digest *out, const char *text, struct err *err);
char *digest_text(const struct digest *d, char buf[DIGEST_TEXT_MAX]); /* returns @buf */
char *digest_hex(const struct digest *d, char buf[DIGEST_HEX_MAX]);
bool digest_equal(const struct digest *a, const struct digest *b);
bool digest_is_zero(const struct digest *d); /* "not known" where a field allows it */
void digest_bytes(struct digest *out, const void *bytes, size_t n);

/* A running hash. */
struct hasher;
struct hasher *hasher_new(void); /* NULL = no memory */
void hasher_add(struct hasher *h, const void *bytes, size_t n);
void hasher_done(struct hasher *h, struct digest *out); /* resets @h for another use */
void hasher_free(struct hasher *h);
define_scoped(struct hasher *, hasher_free);

/* ------------------------------------------------------------------ descriptors */

struct annotation {
	char *key, *value;
};

/* What a manifest says of a blob. Owns its strings. */
struct desc {
	struct digest digest;
	uint64_t size; /* of the stored bytes */
	char *media_type; /* may be NULL: not known */
	struct annotation *annotations;
	size_t n_annotations;
};
int desc_copy(struct desc *out, const struct desc *in);
void desc_deinit(struct desc *desc);
/* NULL when @desc has no such annotation. */
const char *desc_annotation(const struct desc *desc, const char *key);
int desc_annotate(struct desc *desc, const char *key, const char *value);

/* ------------------------------------------------------------------ the network and remotes */

/* What the command line says of registries and patience; copied by whom it is given to. */
struct net_options {
	bool plain_http; /* http for every host, not only loopback */
	bool insecure; /* do not check TLS certificates */
	bool offline; /* every request fails at once with -ENETUNREACH */
	const char *ca; /* file of additional CA certificates, or NULL */
	uint64_t max_rate; /* bytes a second, all transfers together; 0 = no bound */
	uint64_t deadline_ms; /* a read that cannot be served within it fails; 0 = 60 s */
};

/* Counters of one process, for status and tests: everything that came over the network. */
struct net_stats {
	uint64_t requests; /* HTTP requests sent, of every kind, redirects and tokens too */
	uint64_t bytes; /* body bytes received */
};

/* The network thread: all HTTP of the process. */
struct net;
int net_new(struct net **out, const struct net_options *options, struct err *err);
/* Cancels what is under way, and refuses what comes: -ECANCELED. May be NULL. */
void net_stop(struct net *net);
void net_free(struct net *net); /* stops it, joins the thread */
uint64_t net_deadline_ms(const struct net *net);
void net_stats(struct net *net, struct net_stats *out);
define_scoped(struct net *, net_free);

#define BLOB_SIZE_UNKNOWN UINT64_MAX
/* One ranged read of one blob at a remote. The caller embeds it, fills the first part, and keeps
 * it until done has been called, exactly once. data and done come from the network thread (for
 * local remotes: from inside transfer_start) and must not block. */
struct transfer {
	struct digest digest; /* which blob */
	uint64_t blob_size; /* of a registry, for a whole blob, also BLOB_SIZE_UNKNOWN: set on the way */
	uint64_t off, len; /* stored range; len > 0, inside the blob */
	uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0 = now + the net's deadline. For a streamed
				 transfer it bounds the wait for the next byte instead. */
	bool is_stream; /* a whole layer: no overall deadline, only stalls count */
	/* The next @n bytes in order, never more than len in all. A negative return ends it with that.
	 * TRANSFER_HOLD, where the remote has resume: not taken; they come again after it, and the
	 * wait for that counts for no deadline. */
#define TRANSFER_HOLD 1
	int (*data)(struct transfer *t, const void *bytes, size_t n);
	/* @result 0: all len bytes were given. Errors: -ETIMEDOUT, -ECANCELED, -ENETUNREACH and
	 * other network errors, -EACCES (401/403), -ENOENT (404), -EBADMSG (the remote answered
	 * what it must not), or what data returned. */
	void (*done)(struct transfer *t, int result, const struct err *err);
	void *impl; /* the remote's own, NULL at start */
	bool is_cancelled; /* the remote's own, false at start */
	bool is_unranged; /* set by the remote: it sends a blob from its first byte, whatever is asked */
};

/* A place outside where blobs live: a registry repository, a layout folder, an archive, memory.
 * One of the three interfaces of the program. Implementations embed struct remote first. */
struct remote;
struct remote_ops {
	/* Starts @t; never blocks on the network. Errors come through done. */
	void (*start)(struct remote *r, struct transfer *t);
	/* Asks that @t end soon with -ECANCELED; it may still succeed. done is called anyway. */
	void (*cancel)(struct remote *r, struct transfer *t);
	/* Goes on after TRANSFER_HOLD; nothing when @t is not held. NULL when it takes no hold. */
	void (*resume)(struct remote *r, struct transfer *t);
	/* For a remote whose blobs are files of this host: a new descriptor in @fd and the offset of
	 * the blob's first byte in it, after checking that blob_size bytes can be there (which only a
	 * layout can find without knowing: BLOB_SIZE_UNKNOWN). NULL when the remote is never local. Errors: -ENOENT no such blob, -EBADMSG size differs. */
	int (*open_local)(struct remote *r, const struct digest *digest, uint64_t blob_size, int *fd,
			  uint64_t *off, struct err *err);
	/* See remote_place. NULL when no other process could find the remote. */
	int (*place)(struct remote *r, const struct digest *digest, struct strbuf *out);
	void (*free)(struct remote *r);
};
struct remote {
	const struct remote_ops *ops;
	int n_refs; /* atomic; starts at 1 */
	char *name; /* for messages: "127.0.0.1:5000/app", "oci-layout:///dir" */
};
struct remote *remote_ref(struct remote *r);
struct remote *remote_unref(struct remote *r); /* returns NULL */
define_scoped(struct remote *, remote_unref);

/* A layout's blobs/sha256 folder, read in place. @dir is the layout folder. */
int remote_layout_new(struct remote **out, const char *dir, struct err *err);
/* Blobs that lie inside one file (an archive): add each before the remote is shared. Takes @fd. */
int remote_archive_new(struct remote **out, int fd, const char *name, struct err *err);
int remote_archive_add(struct remote *r, const struct digest *digest, uint64_t off, uint64_t size);
/* One blob that is a range of the file @path, which is opened when the blob is read. */
int remote_file_new(struct remote **out, const char *path, const struct digest *digest, uint64_t off);
/* Appends where @r has the blob, in words that mean the same to other processes:
 * "registry HOST REPOSITORY" or "file OFFSET PATH". -ENOENT: there are none. */
int remote_place(struct remote *r, const struct digest *digest, struct strbuf *out);
/* The test double: blobs in memory, with faults on demand. */
struct remote_memory_fault {
	/* Called before each transfer is answered; return 0 to go on, a negative errno to fail it.
	 * May change *bytes (an own copy of the range) to play a wrong answer. */
	int (*hook)(void *arg, struct transfer *t, uint8_t *bytes);
	void *arg;
	unsigned delay_ms; /* answer from another thread after this long; 0 = at once */
};
int remote_memory_new(struct remote **out, const struct remote_memory_fault *fault);
int remote_memory_add(struct remote *r, const void *bytes, size_t n, struct digest *out);

/* ------------------------------------------------------------------ registries */

/* One repository of one registry; also a remote for its blobs. Credentials are looked up by host
 * in docker's and containers' files when the registry first asks for them. */
struct registry;
/* @host as in an image name ("docker.io", "127.0.0.1:5000"), @repository without tag. */
int registry_new(struct registry **out, struct net *net, const char *host, const char *repository,
		 struct err *err);
struct remote *registry_remote(struct registry *r); /* borrowed; lives as long as one of both is held */
struct registry *registry_ref(struct registry *r);
struct registry *registry_unref(struct registry *r);
define_scoped(struct registry *, registry_unref);

#define MANIFEST_MAX (4u << 20) /* the distribution specification's bound on manifests */
/* Gets a manifest or index by tag or digest text; blocks until it is here or the deadline passes.
 * The body is appended to @body; when @reference is a digest it has been verified against it.
 * Errors: -ENOENT (404), -EACCES (401, 403), -EBADMSG (wrong content), network errors, -ETIMEDOUT. */
int registry_get_manifest(struct registry *r, const char *reference, struct strbuf *body,
			  char **media_type, struct err *err);
/* Gets a whole small blob (a config); verified. Same errors. */
int registry_get_blob(struct registry *r, const struct desc *desc, struct strbuf *body,
		      struct err *err);

/* ------------------------------------------------------------------ writing */

struct store;

/* Where the bytes of a blob come from: read in order, maybe again from the start, or from where a
 * cut upload is to go on. */
struct blob_source {
	uint64_t size;
	/* Up to @len bytes from @off on, of which there is at least one; may block. */
	int (*read)(void *arg, uint64_t off, void *dst, size_t len, size_t *got, struct err *err);
	void *arg;
	const char *from_repository; /* of the same registry, for a cross mount; NULL = none */
};
/* The stored bytes of a blob: from the store (may be NULL) where it has all of it, else from @remote
 * (may be NULL), streamed through about a megabyte of memory as they are read. Touches no network
 * before the first read. For one thread. Errors: -ENOENT nobody has it, -EBADMSG. */
int blob_source_open(struct blob_source *out, struct store *store, struct remote *remote,
		     const struct desc *desc, struct err *err);
void blob_source_close(struct blob_source *source); /* only what blob_source_open made */
static inline void blob_source_close_scoped(struct blob_source *source)
{
	blob_source_close(source);
}

/* A place that takes blobs and manifests: a repository of a registry, or an OCI layout folder. */
struct target;
int target_registry(struct target **out, struct net *net, const char *host, const char *repository,
		    struct err *err);
/* Makes it; its index.json is kept under index.json.lock. */
int target_layout(struct target **out, const char *dir, struct err *err);
struct target *target_ref(struct target *t);
struct target *target_unref(struct target *t); /* returns NULL */
define_scoped(struct target *, target_unref);
/* Blocks, as long as there is progress. 1 = it was there already (or was mounted from elsewhere), and
 * @from was not read; 0 = it was sent, once. What does not have the digest is not left there.
 * Errors: -EBADMSG the bytes are not those of @desc, or no sound answer; -EACCES, -ENOENT no such
 * repository, -ENOSPC, -ETIMEDOUT, those of @from, network errors. */
int target_put_blob(struct target *t, const struct desc *desc, const struct blob_source *from,
		    struct err *err);
/* @bytes are desc->size bytes of desc->media_type. Under @tag; NULL = by digest only, which in a layout
 * means: not in its index. There the annotations of @desc are those of the entry. Errors: as above. */
int target_put_manifest(struct target *t, const struct desc *desc, const void *bytes,
			const char *tag, struct err *err);

/* ------------------------------------------------------------------ the store */

struct store_options {
	const char *root; /* created when missing */
	struct net *net; /* borrowed, outlives the store; NULL = nothing but local remotes */
	uint64_t max_bytes; /* bound on content; 0 = the bound kept in the store, by default half
			       of its file system */
	size_t memory_bytes; /* decoded spans kept in memory; 0 = 64 MiB */
};

struct store;
/* Opens or makes a store. Errors: -EPROTO when a newer program wrote it; -EACCES, -EROFS. */
int store_open(struct store **out, const struct store_options *options, struct err *err);
void store_close(struct store *store); /* all blobs of it must be released */
define_scoped(struct store *, store_close);
const char *store_root(const struct store *store);
struct net *store_net(const struct store *store); /* may be NULL */
uint64_t store_deadline_ms(const struct store *store);
/* The catalogue. Its tables beyond the store's own belong to the callers; see db below. */
struct db;
struct db *store_db(struct store *store);

/* A file of the store that is derived from a blob (a layer's index): <root>/<kind>/<name>.
 * store_file_begin gives a new file to fill; store_file_commit fsyncs it and renames it into place
 * (one that is already there wins, and is equally good); NULL-safe store_file_abort discards it.
 * Files of kind "index" are charged to the store's bound like content. */
struct store_file {
	int fd;
	char *tmp_path, *final_path;
};
int store_file_begin(struct store *store, const char *kind, const char *name, struct store_file *out,
		     struct err *err);
int store_file_commit(struct store *store, struct store_file *file, struct err *err);
void store_file_abort(struct store *store, struct store_file *file);
/* -ENOENT when it is not there. The caller closes the descriptor. */
int store_file_open(struct store *store, const char *kind, const char *name, int *fd);
int store_file_remove(struct store *store, const char *kind, const char *name);

/* flock() on <root>/locks/<name>: waits at most @wait_ms (0 = do not wait). Errors: -EAGAIN.
 * The lock goes when the descriptor is closed, or with the process. */
int store_lock(struct store *store, const char *name, uint64_t wait_ms, int *fd, struct err *err);
/* One of 2^62 locks in one file, by the upper bits of @key: for what is too many for files. */
int store_lock_key(struct store *store, const char *name, uint64_t key, uint64_t wait_ms, int *fd,
		   struct err *err);

/* Whole small blobs (manifests, configs), kept in blobs/sha256. put verifies nothing: it computes. */
int store_put_blob(struct store *store, const void *bytes, size_t n, struct digest *out,
		   struct err *err);
/* Appends to @body; verified. -ENOENT when it is not (completely) here. */
int store_get_blob(struct store *store, const struct digest *digest, size_t max, struct strbuf *body,
		   struct err *err);

/* What a name last meant (the descriptor of a manifest), so that a mount comes up with the registry
 * gone. Such names are listed in index.json, for others who read the store as an OCI layout. */
int store_remember_name(struct store *store, const char *name, const struct desc *manifest,
			struct err *err);
int store_recall_name(struct store *store, const char *name, struct digest *out); /* -ENOENT */

/* From now until the process ends no file named by one of these digests is evicted: what is there
 * when this has returned stays. */
int store_lease(struct store *store, const struct digest *names, size_t n, struct err *err);

/* Bytes that content of the store takes on disk, and its bound. */
void store_usage(struct store *store, uint64_t *used, uint64_t *bound);

/* ------------------------------------------------------------------ spans */

/* A span is a run of stored bytes that decodes on its own to known plain bytes: a gzip checkpoint
 * interval, a zstd frame, an eStargz member, a SOCI span, a block of a plain tar. */
enum span_kind {
	SPAN_RAW = 0, /* stored bytes are the plain bytes */
	SPAN_GZIP = 1, /* one or more gzip members from their headers on */
	SPAN_DEFLATE = 2, /* raw deflate from a checkpoint: bits and window apply; may run over members */
	SPAN_ZSTD = 3, /* one or more zstd frames */
	SPAN_ZERO = 4, /* a hole: no stored bytes, plain_len zeros */
};
enum span_check {
	SPAN_CHECK_PLAIN = 0, /* digest is over the plain bytes of the span */
	SPAN_CHECK_STORED = 1, /* digest is over its stored bytes */
};

struct span {
	uint64_t stored_off;
	uint64_t plain_off;
	uint32_t stored_len;
	uint32_t plain_len; /* <= SPAN_PLAIN_MAX */
	uint32_t inner_off; /* plain bytes to drop after decoding from stored_off (eStargz innerOffset) */
	uint8_t kind, check;
	uint8_t bits; /* SPAN_DEFLATE: unused bits of the byte before; that byte is stored_off's */
	uint8_t reserved;
	uint32_t window_len; /* SPAN_DEFLATE: bytes of history, 0..32768 */
	uint32_t window_packed; /* their length in the table's window area, zstd-compressed */
	uint64_t window_off; /* their place in it */
	struct digest digest;
};
/* Larger pieces are re-framed (our own passes) or refused for lazy reading (foreign tables), so
 * that a span is always decoded in memory. */
#define SPAN_PLAIN_MAX (64u << 20)

/* A table of spans, sorted by plain_off, without gaps from 0 to plain_size; immutable; mapped from
 * a file of the store or built in memory. For a TOC the plain space is our own: the chunks of all
 * files one after another in TOC order. */
struct span_table;
struct span_table *span_table_ref(struct span_table *t);
struct span_table *span_table_unref(struct span_table *t);
define_scoped(struct span_table *, span_table_unref);
size_t span_table_count(const struct span_table *t);
uint64_t span_table_plain_size(const struct span_table *t);
int span_table_get(const struct span_table *t, size_t i, struct span *out); /* -EBADMSG: damaged file */
/* Index of the span that holds @plain_off; n when beyond the end. */
size_t span_table_find(const struct span_table *t, uint64_t plain_off);
/* True when the stored offsets mean the re-framed copy "frames/<key>" and not the blob. */
bool span_table_is_reframed(const struct span_table *t);

struct span_builder;
struct span_builder *span_builder_new(void);
void span_builder_free(struct span_builder *b);
define_scoped(struct span_builder *, span_builder_free);
/* Appends; plain_off must be the end of the one before. @window may be NULL. */
int span_builder_add(struct span_builder *b, const struct span *span, const void *window);
void span_builder_set_reframed(struct span_builder *b);
/* Stores the table as "spans/<key>" and opens it. */
int span_builder_commit(struct span_builder *b, struct store *store, const char *key,
			struct span_table **out, struct err *err);
/* -ENOENT when there is none; -EBADMSG when damaged (and then it is removed). */
int span_table_open(struct span_table **out, struct store *store, const char *key, struct err *err);
/* The parser alone, for tests and fuzzing: @bytes stay borrowed. */
int span_table_parse(struct span_table **out, const void *bytes, size_t n, struct err *err);

/* ------------------------------------------------------------------ blobs */

struct blob;
/* Returns a new reference in @out; equal (digest, key) share one object. Touches no network.
 * @remote may be NULL: then only what the store holds can be read. */
int blob_open(struct blob **out, struct store *store, const struct desc *desc, struct remote *remote,
	      struct err *err);
struct blob *blob_ref(struct blob *blob);
struct blob *blob_unref(struct blob *blob);
define_scoped(struct blob *, blob_unref);
const struct desc *blob_desc(const struct blob *blob);

/* Called once when a read that was pending ends: @result >= 0 bytes, or a negative errno with its
 * reason. Comes from a pool thread or the network thread; must not block. */
typedef void (*blob_done)(void *arg, int64_t result, const struct err *err);

/* Stored bytes, straight from the remote or the store, NOT verified: for footers and tables of
 * contents, which the caller checks against their own digest. Blocks at most the deadline. */
int blob_read_stored(struct blob *blob, uint64_t stored_off, void *dst, size_t len, struct err *err);

/* True once the remote has shown that it sends only whole blobs: reading here and there costs a
 * stream each time. */
bool blob_is_unranged(struct blob *blob);

/* Gives the blob its spans; needed before blob_read. @key names the table, so that what was
 * verified by one table is never taken for verified by another. Idempotent. */
int blob_set_spans(struct blob *blob, struct span_table *table, const char *key, struct err *err);

/* Reads @len plain bytes at @plain_off into @dst.
 * Returns @len when they could be had at once (memory, or a small decode of bytes that are here);
 * -EINPROGRESS when @done will be called later, with @dst borrowed until then; or another negative
 * errno at once. Reading past the plain size is -EINVAL.
 * Errors: -EBADMSG content does not match its digest, -ETIMEDOUT, -ENOSPC (no room in the store),
 * -ENOENT (nobody has the blob), network errors. */
int64_t blob_read(struct blob *blob, uint64_t plain_off, void *dst, size_t len, blob_done done,
		  void *arg, struct err *err);
/* Makes the range be here in the background; errors are dropped. */
void blob_prefetch(struct blob *blob, uint64_t plain_off, uint64_t len);
/* True when every span of the range is here (so that a flat copy can be made without network). */
bool blob_is_here(struct blob *blob, uint64_t plain_off, uint64_t len);

struct blob_usage {
	uint64_t fetched; /* stored bytes that came over the network for this blob, this process */
	uint64_t read; /* stored bytes that were read from files of this host, this process */
	uint64_t here; /* stored bytes that are in the store or at a local remote */
	bool is_complete; /* the whole blob is in the store or at a local remote */
};
void blob_usage(struct blob *blob, struct blob_usage *out);

/* ------------------------------------------------------------------ the one pass over a plain blob */

enum plain_format { PLAIN_TAR, PLAIN_GZIP, PLAIN_ZSTD };

/* What a finished pass leaves. */
struct pass_result {
	struct digest diff_id; /* digest of all plain bytes */
	uint64_t plain_size;
	enum plain_format format;
};

/* Streams a blob from its first byte to its last, once: verifies it against its digest, stores it
 * (unless its remote is local), decodes it, and builds the span table (gzip checkpoints, zstd
 * frames, blocks), re-framing what has no restart points. The format is told by the first bytes,
 * not by the media type. The caller parses the plain bytes as they come but must not publish
 * anything before blob_pass_finish has said that they are what the digest says.
 * One pass of a blob runs at a time, over all processes: the caller holds the store_lock
 * "layer-<hex>". Blocks for the network, so never on a FUSE or network thread. */
struct blob_pass;
int blob_pass_begin(struct blob_pass **out, struct blob *blob, struct err *err);
/* The next plain bytes, borrowed until the next call: 1 = *bytes, *n; 0 = the end. */
int blob_pass_next(struct blob_pass *pass, const void **bytes, size_t *n, struct err *err);
/* After the end: checks the digest, publishes blob and spans under @key, sets them on the blob.
 * Errors: -EAGAIN what was fetched is not what the digest says, and has been thrown away. */
int blob_pass_finish(struct blob_pass *pass, const char *key, struct pass_result *out,
		     struct err *err);
/* The plain bytes, or the stored ones, made no sense: @result, @err. Reads the rest to see whose
 * fault it is. Returns @result when the content is what the digest says; else as blob_pass_finish. */
int blob_pass_blame(struct blob_pass *pass, int result, struct err *err);
void blob_pass_free(struct blob_pass *pass); /* unfinished: what was fetched is kept for a resume */
define_scoped(struct blob_pass *, blob_pass_free);
/* How far it is, in stored bytes, for progress. */
uint64_t blob_pass_position(const struct blob_pass *pass);

/* ------------------------------------------------------------------ whole blobs, out and in */

/* A non-zero return ends it and is returned. */
typedef int (*blob_sink)(void *arg, const void *bytes, size_t n);
/* All stored bytes in order, from the store or as they come from the remote; nothing of them is kept.
 * They are verified at the end: only 0 says that they were right.
 * Errors: -EBADMSG, -ENOENT nobody has it, network errors. */
int blob_copy_stored(struct blob *blob, blob_sink sink, void *arg, struct err *err);
/* The same, decoded. */
int blob_copy_plain(struct blob *blob, blob_sink sink, void *arg, struct err *err);

/* A new blob: plain bytes, compressed on the way into the store, under a name that is known at the
 * end. It is leased. */
struct blob_draft;
#define BLOB_LEVEL_DEFAULT INT32_MIN
int blob_draft_begin(struct blob_draft **out, struct store *store, enum plain_format format,
		     int level, struct err *err);
int blob_draft_write(struct blob_draft *d, const void *bytes, size_t n, struct err *err);
int blob_draft_commit(struct blob_draft *d, struct digest *digest, uint64_t *size,
		      struct digest *diff_id, struct err *err);
void blob_draft_free(struct blob_draft *d);
define_scoped(struct blob_draft *, blob_draft_free);
/* Whether the store has all of it, which it then keeps as long as this process lives. */
bool blob_is_kept(struct store *store, const struct digest *digest, uint64_t size);

/* ------------------------------------------------------------------ flat copies */

/* Flat files of plain content, "content/<hex>": what passthrough needs, shared by all layers.
 * @digest is of the file's content. Opening gives a descriptor; -ENOENT when not there. */
int content_open(struct store *store, const struct digest *digest, uint64_t size, int *fd);
/* Makes one out of @size plain bytes of @blob from @plain_off, verified against @digest, on the
 * pool; nothing is told: ask content_open again later. Joined with an equal one under way. */
void content_make(struct store *store, struct blob *blob, uint64_t plain_off, uint64_t size,
		  const struct digest *digest);

/* Plain content that somebody gives. */
struct content_source {
	uint64_t size;
	/* Reads exactly @len bytes; -ESTALE when they are not there any more. */
	int (*read)(void *arg, uint64_t off, void *dst, size_t len, struct err *err);
	void *arg;
	int fd; /* of a host file that should have the same bytes, to share its blocks; -1 = none */
};
/* Makes sure that the store has it, and leases it. It may be read twice. With @sync it is on the
 * disk afterwards; else content_sync is to be called before something that stays relies on it.
 * 1 = it is new, 0 = it was there. Errors: -ESTALE it was changed meanwhile, -ENOSPC, those of read. */
int content_put(struct store *store, const struct content_source *source, bool sync,
		struct digest *out, struct err *err);
int content_sync(struct store *store, struct err *err);
/* Reads all of it: -ENOENT not there, -EBADMSG not what its name says (and then it is removed). */
int content_check(struct store *store, const struct digest *digest, uint64_t size, struct err *err);
/* From now until the process ends it is not evicted. -ENOENT when it is not here. */
int content_keep(struct store *store, const struct digest *digest, uint64_t size, struct err *err);
/* Makes one out of a whole blob of @remote, as it is stored; verified, and kept as by content_keep.
 * @size may be BLOB_SIZE_UNKNOWN for a registry, and is set. Blocks while bytes come.
 * Errors: -EBADMSG, -ENOSPC, those of transfers. */
int content_fetch(struct store *store, struct remote *remote, const struct digest *digest,
		  uint64_t *size, struct err *err);

/* One GET of a URL, whose body becomes a flat file. */
struct download {
	/* given; borrowed */
	const char *url;			       /* http: or https: */
	const char *accept, *user_agent, *authorization; /* headers; NULL = the usual, or none */
	const char *etag, *modified; /* of what is here already; NULL = nothing is */
	const struct digest *wanted; /* what it must be; NULL = anything */
	/* the answer */
	bool is_unchanged;					  /* what is here already is right */
	char *new_etag, *last_modified, *content_disposition; /* headers; NULL = not said */
	struct digest digest; /* of the content, kept as by content_keep */
	uint64_t size;
};
/* Follows redirects, retries, goes on after a cut where the server vouches that it is the same file.
 * Blocks while bytes come, at most the net's deadline for the next one.
 * Errors: -EBADMSG it is not @wanted, or no sound answer; -ENOENT, -EACCES, -ENOSPC, -ETIMEDOUT,
 * -EINVAL a header that cannot be sent, network errors. */
int content_download(struct store *store, struct download *d, struct err *err);
void download_deinit(struct download *d);
static inline void download_deinit_scoped(struct download *d)
{
	download_deinit(d);
}

/* Inflates one gzip member, whose start @in is, at most @max bytes; appends to @out.
 * Errors: -EBADMSG, -EFBIG. */
int codec_gunzip_member(const void *in, size_t n, size_t max, struct strbuf *out, struct err *err);

/* ------------------------------------------------------------------ work in the background */

/* Two kinds of threads: WORK_CPU (as many as cores) must not wait for the network; WORK_WAIT (a
 * few more) may, and runs whole-layer passes and the fetching of tables of contents. */
enum work_kind { WORK_CPU, WORK_WAIT };
int store_submit(struct store *store, enum work_kind kind, void (*fn)(void *arg), void *arg);

/* ------------------------------------------------------------------ the database */

/* The little of sqlite that is used. Statements are kept; one thread uses the handle at a time:
 * bracket with db_lock/db_unlock. */
struct db_stmt;
void db_lock(struct db *db);
void db_unlock(struct db *db);
int db_exec(struct db *db, const char *sql, struct err *err);
/* A run of many reads, by one thread, which costs one lock instead of one for each; also holds
 * db_lock. May be nested, and db_begin may come in between. */
void db_read_begin(struct db *db);
void db_read_end(struct db *db);
/* A transaction that may write: db_end commits when @r is 0, else rolls back and returns @r. */
int db_begin(struct db *db, struct err *err);
int db_end(struct db *db, int r, struct err *err);
/* @sql must be a string literal (statements are cached by its address). */
int db_prepare(struct db *db, const char *sql, struct db_stmt **out, struct err *err);
void db_bind_text(struct db_stmt *s, int i, const char *text);
void db_bind_blob(struct db_stmt *s, int i, const void *bytes, size_t n);
void db_bind_i64(struct db_stmt *s, int i, int64_t value);
/* 1 = a row, 0 = the end (and the statement is reset), < 0 = error. */
int db_step(struct db_stmt *s, struct err *err);
void db_reset(struct db_stmt *s);
const char *db_text(struct db_stmt *s, int col); /* borrowed until the next step; "" for NULL */
const void *db_blob(struct db_stmt *s, int col, size_t *n);
int64_t db_i64(struct db_stmt *s, int col);
