/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of blobstore share: decoders, worker threads, the parts of a store.
 */

#include "blobstore/blobstore.h"

#include <pthread.h>

/* ------------------------------------------------------------------ pool */

struct pool;
int pool_new(struct pool **out, unsigned n_threads, const char *name);
/* Lets what is queued finish, then joins. */
void pool_free(struct pool *pool);
/* Runs @fn(@arg) on a thread of the pool, in order of submission. Threads start when first needed. */
int pool_submit(struct pool *pool, void (*fn)(void *arg), void *arg);

/* ------------------------------------------------------------------ codec */

/* Told by the first bytes; anything unknown is a plain tar. */
enum plain_format codec_detect(const void *bytes, size_t n);

/* A stream decoded once from its start. Each step takes from in and gives to out, both advanced. */
struct codec_io {
	const uint8_t *in;
	size_t n_in;
	uint8_t *out;
	size_t n_out;
};
enum { CODEC_MORE = 0, CODEC_POINT = 1 };
struct codec_reader;
int codec_reader_new(struct codec_reader **out, enum plain_format format);
void codec_reader_free(struct codec_reader *r);
define_scoped(struct codec_reader *, codec_reader_free);
/* CODEC_POINT: decoding could begin again exactly here. No input left and no output: give more.
 * Errors: -EBADMSG. */
int codec_reader_step(struct codec_reader *r, struct codec_io *io, struct err *err);
/* Whether the stream may end here. */
int codec_reader_end(const struct codec_reader *r, struct err *err);

/* What decoding needs to begin at the point that the last step stopped at. */
struct codec_point {
	enum span_kind kind;
	uint8_t bits; /* then the byte before the point is needed, too */
	uint32_t window_len;
	uint8_t window[32768];
};
int codec_reader_point(struct codec_reader *r, struct codec_point *out);

/* Decodes @len bytes after dropping @from, out of the span's stored bytes (all of them). Its window,
 * unpacked, where it has one. Errors: -EBADMSG, -ENOMEM. */
int codec_decode(const struct span *span, const void *stored, const void *window, size_t from,
		 void *dst, size_t len, struct err *err);

/* The other way: a stream of one gzip member or one zstd frame, the same bytes for the same input. */
struct codec_writer;
int codec_writer_new(struct codec_writer **out, enum plain_format format, int level);
void codec_writer_free(struct codec_writer *w);
define_scoped(struct codec_writer *, codec_writer_free);
/* Takes from in and gives to out. With @is_end: 1 = all of it is out, 0 = more room is needed.
 * Errors: -EIO. */
int codec_writer_step(struct codec_writer *w, struct codec_io *io, bool is_end);

/* zstd for windows and re-framed copies: one frame, content size known. */
size_t codec_pack_bound(size_t n);
int64_t codec_pack(const void *in, size_t n, void *out, size_t max, int level);
int codec_unpack(const void *in, size_t n, void *out, size_t len);

/* ------------------------------------------------------------------ db */

int db_open(struct db **out, const char *path, struct err *err);
void db_close(struct db *db);

/* ------------------------------------------------------------------ span */

/* Unpacks a span's history into @window (32768 bytes). Errors: -EBADMSG. */
int span_table_window(const struct span_table *t, const struct span *span, void *window);

/* ------------------------------------------------------------------ cache */

/* Decoded bytes kept in memory, least recently used first out. Shared by reference count. */
struct plain {
	int n_refs;
	uint32_t len;
	bool is_ahead; /* atomic; decoded because its neighbour was read, not read itself yet */
	uint8_t bytes[];
};
struct plain *plain_new(uint32_t len); /* one reference; NULL = no memory */
struct plain *plain_ref(struct plain *p);
void plain_unref(struct plain *p);
define_scoped(struct plain *, plain_unref);

struct cache;
int cache_new(struct cache **out, size_t max_bytes);
void cache_free(struct cache *cache);
/* A new reference, or NULL. */
struct plain *cache_get(struct cache *cache, uint64_t blob_id, uint64_t item);
/* Takes its own reference; what is larger than a quarter of the cache is not kept. */
void cache_put(struct cache *cache, uint64_t blob_id, uint64_t item, struct plain *p);
void cache_drop_blob(struct cache *cache, uint64_t blob_id);

/* ------------------------------------------------------------------ store and gc */

struct blob_table; /* blob.c: the open blobs of a store */

struct store {
	char *root;
	struct net *net;
	struct db *db;
	struct pool *cpu, *wait;
	struct cache *cache;
	struct blob_table *blobs;
	struct gc *gc;
	uint64_t deadline_ms;
};

int store_path(const struct store *store, char **out, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Space, as rows of the catalogue: (kind, name) → bytes. Kinds are folders of the store:
 * "blobs", "partial", "frames", "content", "index", "spans", "learned", "trees". */
struct gc;
int gc_new(struct gc **out, struct store *store, uint64_t max_bytes, struct err *err);
void gc_free(struct gc *gc);
/* Before bytes are written: from now on (kind, name) may take @total bytes. Makes room by evicting
 * what nobody leases. Errors: -ENOSPC, with what would help. */
int gc_reserve(struct gc *gc, const char *kind, const char *name, uint64_t total, struct err *err);
/* It takes exactly @bytes now; 0 = it is gone. */
void gc_settle(struct gc *gc, const char *kind, const char *name, uint64_t bytes);
/* After a write failed with ENOSPC all the same: frees at least @bytes. -ENOSPC when it cannot. */
int gc_make_room(struct gc *gc, uint64_t bytes, struct err *err);
/* From now until the process ends nothing named after this blob is evicted. */
int gc_lease(struct gc *gc, const char *hex, struct err *err);
void gc_usage(struct gc *gc, uint64_t *used, uint64_t *bound);

/* ------------------------------------------------------------------ content: content.c */

/* A flat file that is being written, and is named when its digest is known. */
struct draft {
	struct store *store;
	struct store_file file;
	char name[DIGEST_HEX_MAX]; /* of its row in the catalogue until then */
	uint64_t size, reserved;
};
int draft_begin(struct draft *d, struct store *store, struct err *err);
/* So large will it be: room is made at once. */
int draft_expect(struct draft *d, uint64_t total, struct err *err);
int draft_add(struct draft *d, const void *bytes, size_t n, struct err *err);
int draft_restart(struct draft *d, struct err *err); /* empty again */
/* Hashes it and gives it its place. Errors: -EBADMSG it is not @wanted (may be NULL). */
int draft_commit(struct draft *d, const struct digest *wanted, struct digest *out,
		 struct err *err);
void draft_abort(struct draft *d); /* NULL-safe; nothing after a commit */

/* blob.c */
int blob_table_new(struct blob_table **out);
void blob_table_stop(struct blob_table *table);
void blob_table_free(struct blob_table *table);
