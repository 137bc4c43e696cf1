/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Inside a blob: what blob.c (reads that wait), here.c (places on disk), window.c (fetching), pass.c (the whole stream)
 * and content.c (flat copies) share.
 */

#include "blobstore/blobstore-internal.h"

#include <sys/queue.h>

#define BLOB_BUCKETS 1024

/* Spans with the same stored bytes: decoded at once. */
struct group {
	size_t first, last; /* span indexes */
	struct span span; /* one of them: its place and kind hold for all */
	uint32_t decoded_len; /* plain bytes to decode from the group's start */
};

enum load_kind {
	LOAD_WANTED, /* a read waits for it */
	LOAD_AHEAD, /* fetched along, likely to be read soon */
	LOAD_PREFETCH, /* fetched in the background: kept on disk only */
};

/* A group on its way into memory, with the reads that wait for it. */
struct load {
	LIST_ENTRY(load) link; /* guarded by the blob's lock */
	struct blob *blob; /* holds a reference */
	struct group group;
	struct slice *waiters; /* guarded by the blob's lock */
	enum load_kind kind; /* guarded by the blob's lock */
	int n_tries;
	uint64_t deadline_ns;
};

LIST_HEAD(load_list, load);
LIST_HEAD(blob_list, blob);

/* How far beyond what was asked a fetch goes; see window.c. Guarded by the blob's lock. */
struct readahead {
	uint64_t block; /* windows are aligned blocks of this many stored bytes; 0 = only what is asked */
	uint64_t last_end; /* stored end of the last demanded window */
	uint64_t ahead_end; /* stored end of what was fetched ahead */
	uint64_t ahead, used; /* bytes fetched ahead, and of those read since */
	unsigned n_next; /* misses in a row that began where the last ended */
};

struct blob {
	int n_refs; /* atomic */
	LIST_ENTRY(blob) link; /* guarded by the table's lock */
	struct store *store;
	struct desc desc;
	struct remote *remote; /* may be NULL */
	uint64_t id;
	char hex[DIGEST_HEX_MAX];

	pthread_mutex_t lock;
	/* set once under the lock, then constant */
	char *key;
	struct span_table *spans;
	size_t n_bits;
	int frames_fd; /* >= 0: the spans mean this file */
	uint8_t *map; /* NULL: nothing was fetched yet */
	size_t map_len;
	int data_fd;
	int full_fd; /* the whole blob, from full_off on */
	uint64_t full_off;
	bool is_full_store;
	/* guarded by lock */
	bool is_full_damaged;
	struct load_list loads;
	struct readahead readahead;

	pthread_mutex_t keep_lock; /* before lock; held while the sparse file is made or room is sought */
	uint64_t written, reserved; /* its bytes, and what the catalogue grants; guarded by keep_lock */

	uint64_t fetched, read; /* atomic, as in struct blob_usage */
	bool is_unranged; /* atomic: the remote ignores ranges */
};

/* Ranges to be fetched in the background, a few windows at a time. */
struct prefetch_queue {
	pthread_mutex_t lock;
	STAILQ_HEAD(, prefetch) ranges; /* guarded by lock */
	unsigned n_active; /* windows; guarded by lock */
};
void prefetch_queue_init(struct prefetch_queue *q);
void prefetch_queue_deinit(struct prefetch_queue *q);

struct blob_table {
	pthread_mutex_t lock;
	struct blob_list buckets[BLOB_BUCKETS]; /* guarded by lock */
	uint64_t last_id; /* guarded by lock */
	LIST_HEAD(, inflight) inflight; /* guarded by lock */
	unsigned n_leaving; /* ends of transfers that are not done with the store; guarded by lock */
	pthread_cond_t idle; /* nothing is in flight or leaving any more */
	bool is_closing; /* guarded by lock */
	struct prefetch_queue prefetch;
};

/* here.c */
bool blob_find_full(struct blob *blob);
/* What earlier processes fetched; nothing there is no error. */
void blob_find_partial(struct blob *blob);
bool blob_bit(const struct blob *blob, size_t i);
int blob_group(const struct blob *blob, size_t i, struct group *out);
bool blob_group_is_here(struct blob *blob, const struct group *g);
int blob_decode_group(struct blob *blob, const struct group *g, const void *stored,
		      struct plain **out, struct err *err);
int blob_load_here(struct blob *blob, const struct group *g, struct plain **out, struct err *err);
int blob_keep_group(struct blob *blob, const struct group *g, const void *stored, struct err *err);

/* blob.c */
struct load *blob_find_load(struct blob *blob, size_t first); /* with the lock held */
struct load *blob_new_load(struct blob *blob, const struct group *g,
			   enum load_kind kind); /* with the lock held */
void blob_end_load(struct load *load, struct plain *plain, int result, const struct err *err);

/* window.c: fetches the groups of @loads and ends each load. */
void blob_fetch(struct blob *blob, struct load **loads, size_t n);
/* A group that was fetched ahead is read for the first time. */
void blob_ahead_hit(struct blob *blob, const struct group *g);

/* A transfer of the store under way, so that closing can cancel it. Embedded by its owner. */
struct inflight {
	LIST_ENTRY(inflight) link;
	struct remote *remote;
	struct transfer transfer;
};
/* -ECANCELED when the store is closing. Between add and remove the transfer may be cancelled. */
int inflight_start(struct store *store, struct inflight *f);
/* In done, before the transfer's memory goes. The store may be closed from now on. */
void inflight_end(struct store *store, struct inflight *f);
/* The same in two steps: between them @f's memory may go, and the store is still there. */
void inflight_leave(struct store *store, struct inflight *f);
void inflight_left(struct store *store);
bool store_is_closing(struct store *store);
/* Cancels all transfers, drops what is queued, and waits for those under way. */
void blob_table_stop(struct blob_table *table);
