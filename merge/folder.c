/* SPDX-License-Identifier: Apache-2.0 */

/*
 * folder: the merged folders that a union keeps.
 *
 * A union answers from its inputs; what it keeps here only saves it from asking them again: which
 * input folders a folder consists of, and once it has been listed, the merged listing. Everything
 * may be dropped at any time, so the bounds are soft and the rule is simple: the least recently
 * used goes first. Users hold references; what is dropped under them lives until they are done.
 *
 * One lock guards the table and the order of use. It is never held across a call into a tree, and
 * nothing under it takes longer than a few pointer moves, so that one is enough. Making the lists
 * is done outside: two threads may both make one, and the later wins; they are equal.
 */

#include <assert.h>
#include <stdlib.h>

#include "merge/merge-internal.h"

/* All folders of a large image (8,000) with room; 16 MiB when every one has some contributors. */
#define MAX_FOLDERS 65536
/* The lists of an image of 100,000 files take about a fifth of it. */
#define MAX_LIST_BYTES (64u << 20)

/* ------------------------------------------------------------------ lists */

struct folder_list *folder_list_new(void)
{
	struct folder_list *l = calloc(1, sizeof(*l));

	if (l)
		l->n_refs = 1;
	return l;
}

static struct folder_list *folder_list_ref(struct folder_list *l)
{
	if (l)
		__atomic_add_fetch(&l->n_refs, 1, __ATOMIC_RELAXED);
	return l;
}

struct folder_list *folder_list_unref(struct folder_list *l)
{
	if (l && __atomic_sub_fetch(&l->n_refs, 1, __ATOMIC_ACQ_REL) == 0) {
		vec_free(&l->entries);
		vec_free(&l->contributors);
		strbuf_free(&l->names);
		free(l);
	}
	return NULL;
}

static size_t list_bytes(const struct folder_list *l)
{
	return sizeof(*l) + l->entries.cap * sizeof(*l->entries.items) +
	       l->contributors.cap * sizeof(*l->contributors.items) + l->names.cap;
}

const struct folder_entry *folder_list_find(const struct folder_list *l, const char *name,
					    size_t len)
{
	size_t low = 0, high = l->entries.n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct folder_entry *e = &l->entries.items[mid];
		int c = memcmp(l->names.data + e->name_off, name, MIN(len, e->name_len));

		if (c == 0)
			c = (e->name_len > len) - (e->name_len < len);
		if (c == 0)
			return e;
		if (c < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

/* ------------------------------------------------------------------ folders */

struct folder *folder_new(const struct folder *from, const char *name, size_t len)
{
	struct folder *f = calloc(1, sizeof(*f) + len + 1);
	size_t bytes = from->n_contributors * sizeof(*from->contributors);
	struct contributor *copy = malloc(bytes + 1);

	if (!f || !copy) {
		free(f);
		free(copy);
		return NULL;
	}
	if (bytes > 0)
		memcpy(copy, from->contributors, bytes);
	if (len > 0)
		memcpy(f->name, name, len);
	f->n_refs = 1;
	f->id = from->id;
	f->parent = from->parent;
	f->is_live = from->is_live;
	f->is_opaque = from->is_opaque;
	f->made_ns = now_ns();
	f->contributors = copy;
	f->n_contributors = from->n_contributors;
	f->name_len = len;
	return f;
}

struct folder *folder_unref(struct folder *f)
{
	if (f && __atomic_sub_fetch(&f->n_refs, 1, __ATOMIC_ACQ_REL) == 0) {
		assert(!f->is_cached);
		free(f->contributors);
		free(f);
	}
	return NULL;
}

static struct folder *folder_ref(struct folder *f)
{
	__atomic_add_fetch(&f->n_refs, 1, __ATOMIC_RELAXED);
	return f;
}

/* ------------------------------------------------------------------ the cache */

void folder_cache_init(struct folder_cache *c)
{
	*c = (struct folder_cache){
		.max_folders = MAX_FOLDERS,
		.max_list_bytes = MAX_LIST_BYTES,
	};
	pthread_mutex_init(&c->lock, NULL);
	TAILQ_INIT(&c->lru);
	TAILQ_INIT(&c->lists);
}

static struct folder **bucket_of(struct folder_cache *c, uint64_t id)
{
	return &c->buckets[hash_bytes(&id, sizeof(id)) & (c->n_buckets - 1)];
}

static void drop_list(struct folder_cache *c, struct folder *f)
{
	if (f->list) {
		c->list_bytes -= list_bytes(f->list);
		TAILQ_REMOVE(&c->lists, f, list_lru);
		f->list = folder_list_unref(f->list);
	}
}

/* Forgets @f; the cache's reference goes with it. */
static void drop_folder(struct folder_cache *c, struct folder *f)
{
	struct folder **p = bucket_of(c, f->id);

	while (*p != f)
		p = &(*p)->next_in_bucket;
	*p = f->next_in_bucket;
	TAILQ_REMOVE(&c->lru, f, lru);
	c->n_folders--;
	drop_list(c, f);
	f->is_cached = false;
	folder_unref(f);
}

static void shrink(struct folder_cache *c)
{
	while (c->n_folders > c->max_folders)
		drop_folder(c, TAILQ_LAST(&c->lru, folder_lru));
	/* The list used last stays, however large. */
	while (c->list_bytes > c->max_list_bytes &&
	       TAILQ_LAST(&c->lists, folder_lru) != TAILQ_FIRST(&c->lists))
		drop_list(c, TAILQ_LAST(&c->lists, folder_lru));
}

void folder_cache_limit(struct folder_cache *c, size_t max_folders, size_t max_list_bytes)
{
	pthread_mutex_lock(&c->lock);
	c->max_folders = max_folders;
	c->max_list_bytes = max_list_bytes;
	shrink(c);
	pthread_mutex_unlock(&c->lock);
}

void folder_cache_deinit(struct folder_cache *c)
{
	while (!TAILQ_EMPTY(&c->lru))
		drop_folder(c, TAILQ_FIRST(&c->lru));
	free(c->buckets);
	pthread_mutex_destroy(&c->lock);
}

/* Twice the buckets; without memory the chains just get longer. */
static void grow(struct folder_cache *c)
{
	size_t n = c->n_buckets ? 2 * c->n_buckets : 64;
	struct folder **buckets = calloc(n, sizeof(struct folder *));
	struct folder *f;

	if (!buckets)
		return;
	free(c->buckets);
	c->buckets = buckets;
	c->n_buckets = n;
	TAILQ_FOREACH (f, &c->lru, lru) {
		struct folder **p = bucket_of(c, f->id);
		f->next_in_bucket = *p;
		*p = f;
	}
}

static struct folder *find(struct folder_cache *c, uint64_t id)
{
	struct folder *f = c->n_buckets ? *bucket_of(c, id) : NULL;

	while (f && f->id != id)
		f = f->next_in_bucket;
	return f;
}

struct folder *folder_cache_get(struct folder_cache *c, uint64_t id)
{
	pthread_mutex_lock(&c->lock);
	struct folder *f = find(c, id);
	if (f) {
		folder_ref(f);
		TAILQ_REMOVE(&c->lru, f, lru);
		TAILQ_INSERT_HEAD(&c->lru, f, lru);
	}
	pthread_mutex_unlock(&c->lock);
	return f;
}

void folder_cache_put(struct folder_cache *c, struct folder *f)
{
	pthread_mutex_lock(&c->lock);
	struct folder *old = find(c, f->id);
	if (old)
		drop_folder(c, old);
	if (c->n_folders >= c->n_buckets)
		grow(c);
	if (c->n_buckets > 0) {
		struct folder **p = bucket_of(c, f->id);

		f->next_in_bucket = *p;
		*p = folder_ref(f);
		f->is_cached = true;
		TAILQ_INSERT_HEAD(&c->lru, f, lru);
		c->n_folders++;
		shrink(c);
	}
	pthread_mutex_unlock(&c->lock);
}

struct folder_list *folder_cache_list(struct folder_cache *c, struct folder *f)
{
	pthread_mutex_lock(&c->lock);
	struct folder_list *l = folder_list_ref(f->list);
	if (l) {
		TAILQ_REMOVE(&c->lists, f, list_lru);
		TAILQ_INSERT_HEAD(&c->lists, f, list_lru);
	}
	pthread_mutex_unlock(&c->lock);
	return l;
}

void folder_cache_set_list(struct folder_cache *c, struct folder *f, struct folder_list *list)
{
	pthread_mutex_lock(&c->lock);
	if (f->is_cached) {
		drop_list(c, f);
		f->list = folder_list_ref(list);
		c->list_bytes += list_bytes(list);
		TAILQ_INSERT_HEAD(&c->lists, f, list_lru);
		shrink(c);
	}
	pthread_mutex_unlock(&c->lock);
}
