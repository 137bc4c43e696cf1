/* SPDX-License-Identifier: Apache-2.0 */

/*
 * cache: decoded bytes in memory, bounded, least recently used first out.
 *
 * The kernel's page cache keeps what was read; this keeps what was decoded beside it, so that the
 * neighbours in the same span need no second decode.
 */

#include "blobstore/blobstore-internal.h"

#include <sys/queue.h>

#define N_BUCKETS 4096

struct slot {
	TAILQ_ENTRY(slot) used; /* most recent first */
	LIST_ENTRY(slot) bucket;
	uint64_t blob_id, item;
	struct plain *plain;
};

struct cache {
	pthread_mutex_t lock;
	TAILQ_HEAD(used_list, slot) used;	    /* guarded by lock */
	LIST_HEAD(bucket, slot) buckets[N_BUCKETS]; /* guarded by lock */
	size_t bytes;				    /* guarded by lock */
	size_t max_bytes;
};

struct plain *plain_new(uint32_t len)
{
	struct plain *p = malloc(sizeof(*p) + len);

	if (p)
		*p = (struct plain){.n_refs = 1, .len = len};
	return p;
}

struct plain *plain_ref(struct plain *p)
{
	__atomic_fetch_add(&p->n_refs, 1, __ATOMIC_RELAXED);
	return p;
}

void plain_unref(struct plain *p)
{
	if (p && __atomic_sub_fetch(&p->n_refs, 1, __ATOMIC_ACQ_REL) == 0)
		free(p);
}

int cache_new(struct cache **out, size_t max_bytes)
{
	struct cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return -ENOMEM;
	pthread_mutex_init(&cache->lock, NULL);
	TAILQ_INIT(&cache->used);
	cache->max_bytes = max_bytes;
	*out = cache;
	return 0;
}

static struct bucket *bucket_of(struct cache *cache, uint64_t blob_id, uint64_t item)
{
	uint64_t h =
		(blob_id * UINT64_C(0x9e3779b97f4a7c15)) ^ (item * UINT64_C(0xc2b2ae3d27d4eb4f));

	return &cache->buckets[(h >> 40) % N_BUCKETS];
}

static void slot_drop(struct cache *cache, struct slot *slot)
{
	TAILQ_REMOVE(&cache->used, slot, used);
	LIST_REMOVE(slot, bucket);
	cache->bytes -= slot->plain->len;
	plain_unref(slot->plain);
	free(slot);
}

void cache_free(struct cache *cache)
{
	if (!cache)
		return;
	while (!TAILQ_EMPTY(&cache->used))
		slot_drop(cache, TAILQ_FIRST(&cache->used));
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

static struct slot *slot_find(struct cache *cache, uint64_t blob_id, uint64_t item)
{
	struct slot *slot;

	LIST_FOREACH (slot, bucket_of(cache, blob_id, item), bucket)
		if (slot->blob_id == blob_id && slot->item == item)
			return slot;
	return NULL;
}

struct plain *cache_get(struct cache *cache, uint64_t blob_id, uint64_t item)
{
	struct plain *p = NULL;

	pthread_mutex_lock(&cache->lock);
	struct slot *slot = slot_find(cache, blob_id, item);
	if (slot) {
		TAILQ_REMOVE(&cache->used, slot, used);
		TAILQ_INSERT_HEAD(&cache->used, slot, used);
		p = plain_ref(slot->plain);
	}
	pthread_mutex_unlock(&cache->lock);
	return p;
}

void cache_put(struct cache *cache, uint64_t blob_id, uint64_t item, struct plain *p)
{
	if (p->len > cache->max_bytes / 4)
		return;
	struct slot *slot = malloc(sizeof(*slot));
	if (!slot)
		return;
	*slot = (struct slot){.blob_id = blob_id, .item = item, .plain = p};

	pthread_mutex_lock(&cache->lock);
	if (slot_find(cache, blob_id, item)) {
		pthread_mutex_unlock(&cache->lock);
		free(slot);
		return;
	}
	plain_ref(p);
	TAILQ_INSERT_HEAD(&cache->used, slot, used);
	LIST_INSERT_HEAD(bucket_of(cache, blob_id, item), slot, bucket);
	cache->bytes += p->len;
	while (cache->bytes > cache->max_bytes)
		slot_drop(cache, TAILQ_LAST(&cache->used, used_list));
	pthread_mutex_unlock(&cache->lock);
}

void cache_drop_blob(struct cache *cache, uint64_t blob_id)
{
	pthread_mutex_lock(&cache->lock);
	struct slot *slot = TAILQ_FIRST(&cache->used), *next;
	for (; slot; slot = next) {
		next = TAILQ_NEXT(slot, used);
		if (slot->blob_id == blob_id)
			slot_drop(cache, slot);
	}
	pthread_mutex_unlock(&cache->lock);
}
