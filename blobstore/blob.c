/* SPDX-License-Identifier: Apache-2.0 */

/*
 * blob: one blob's bytes: in memory, here on disk, or fetched and verified when they are read.
 *
 * A read goes through these places, the first that has the bytes wins:
 *
 *	memory		decoded spans (cache.c)
 *	the whole blob	blobs/sha256/HEX, a file of a local remote, or the re-framed copy
 *	partial		partial/KEY.data, a sparse file; a span's bit in KEY.map says it is there
 *	the remote	in windows: spans wanted, and their neighbours when that has been paying off
 *
 * Spans that share their stored bytes (small files in one eStargz member) are one *group*, decoded
 * once (here.c). A group being decoded or fetched is a *load*; reads that want it wait in it, so
 * nothing is fetched twice at once. This file has the reads and the loads; window.c fetches.
 */

#include "blobstore/blob-internal.h"

#include <assert.h>
#include <sys/mman.h>

/* A span up to this size that is here is decoded by the reading thread: cheaper than a wake-up. */
#define INLINE_PLAIN_MAX (160u << 10)

/* ------------------------------------------------------------------ the table of open blobs */

int blob_table_new(struct blob_table **out)
{
	struct blob_table *table = calloc(1, sizeof(*table));

	if (!table)
		return -ENOMEM;
	pthread_mutex_init(&table->lock, NULL);
	pthread_cond_init(&table->idle, NULL);
	prefetch_queue_init(&table->prefetch);
	*out = table;
	return 0;
}

void blob_table_free(struct blob_table *table)
{
	if (!table)
		return;
	prefetch_queue_deinit(&table->prefetch);
	pthread_cond_destroy(&table->idle);
	pthread_mutex_destroy(&table->lock);
	free(table);
}

static bool same_source(const struct blob *blob, const struct desc *desc, struct remote *remote)
{
	if (!digest_equal(&blob->desc.digest, &desc->digest) || blob->desc.size != desc->size ||
	    blob->desc.n_annotations != desc->n_annotations)
		return false;
	if (!blob->remote != !remote ||
	    (remote && remote != blob->remote && strcmp(remote->name, blob->remote->name) != 0))
		return false;
	/* The annotations choose the table of contents, hence the spans. */
	for (size_t i = 0; i < desc->n_annotations; i++) {
		const char *value = desc_annotation(&blob->desc, desc->annotations[i].key);
		if (!value || strcmp(value, desc->annotations[i].value) != 0)
			return false;
	}
	return true;
}

static void blob_free(struct blob *blob)
{
	assert(LIST_EMPTY(&blob->loads));
	cache_drop_blob(blob->store->cache, blob->id);
	if (blob->map)
		munmap(blob->map, blob->map_len);
	close_fd(blob->data_fd);
	close_fd(blob->full_fd);
	close_fd(blob->frames_fd);
	span_table_unref(blob->spans);
	remote_unref(blob->remote);
	desc_deinit(&blob->desc);
	free(blob->key);
	pthread_mutex_destroy(&blob->lock);
	pthread_mutex_destroy(&blob->keep_lock);
	free(blob);
}

static struct blob *blob_new(struct store *store, const struct desc *desc, struct remote *remote)
{
	struct blob *blob = calloc(1, sizeof(*blob));

	if (!blob)
		return NULL;
	if (desc_copy(&blob->desc, desc) < 0) {
		free(blob);
		return NULL;
	}
	blob->n_refs = 1;
	blob->store = store;
	blob->remote = remote ? remote_ref(remote) : NULL;
	blob->full_fd = blob->data_fd = blob->frames_fd = -1;
	digest_hex(&desc->digest, blob->hex);
	LIST_INIT(&blob->loads);
	pthread_mutex_init(&blob->lock, NULL);
	pthread_mutex_init(&blob->keep_lock, NULL);
	return blob;
}

int blob_open(struct blob **out, struct store *store, const struct desc *desc,
	      struct remote *remote, struct err *err)
{
	struct blob_table *table = store->blobs;
	struct blob_list *bucket = &table->buckets[le32(desc->digest.bytes) % BLOB_BUCKETS];
	struct blob *blob;

	if (desc->size > INT64_MAX / 2)
		return err_set(err, -EBADMSG, "a blob of %llu bytes cannot be",
			       (unsigned long long)desc->size);
	pthread_mutex_lock(&table->lock);
	LIST_FOREACH (blob, bucket, link)
		if (same_source(blob, desc, remote))
			break;
	if (blob) {
		blob_ref(blob);
	} else {
		blob = blob_new(store, desc, remote);
		if (blob) {
			blob->id = ++table->last_id;
			LIST_INSERT_HEAD(bucket, blob, link);
		}
	}
	pthread_mutex_unlock(&table->lock);
	*out = blob;
	return blob ? 0 : -ENOMEM;
}

struct blob *blob_ref(struct blob *blob)
{
	__atomic_fetch_add(&blob->n_refs, 1, __ATOMIC_RELAXED);
	return blob;
}

struct blob *blob_unref(struct blob *blob)
{
	if (!blob)
		return NULL;
	struct blob_table *table = blob->store->blobs;

	/* Under the table's lock, so that blob_open cannot find one that is going. */
	pthread_mutex_lock(&table->lock);
	bool is_last = __atomic_sub_fetch(&blob->n_refs, 1, __ATOMIC_ACQ_REL) == 0;
	if (is_last)
		LIST_REMOVE(blob, link);
	pthread_mutex_unlock(&table->lock);
	if (is_last)
		blob_free(blob);
	return NULL;
}

const struct desc *blob_desc(const struct blob *blob)
{
	return &blob->desc;
}

int blob_set_spans(struct blob *blob, struct span_table *table, const char *key, struct err *err)
{
	int frames_fd = -1, r = 0;

	if (span_table_is_reframed(table)) {
		r = store_file_open(blob->store, "frames", key, &frames_fd);
		if (r < 0)
			return err_set(err, r, "frames/%s: %s", key, strerror(-r));
	}
	char *copy = strdup(key);
	if (!copy) {
		close_fd(frames_fd);
		return -ENOMEM;
	}
	pthread_mutex_lock(&blob->lock);
	if (blob->spans) {
		r = strcmp(blob->key, key) == 0 ? 0 : -EEXIST;
	} else {
		blob->key = take(copy);
		blob->frames_fd = frames_fd;
		frames_fd = -1;
		blob->n_bits = span_table_count(table);
		__atomic_store_n(&blob->spans, span_table_ref(table), __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&blob->lock);
	free(copy);
	close_fd(frames_fd);
	if (r < 0)
		return err_set(err, r, "layer %.12s has another table already", blob->hex);
	r = gc_lease(blob->store->gc, blob->hex, err);
	blob_find_partial(blob);
	return r;
}

/* ------------------------------------------------------------------ loads and those who wait */

/* One part of a read that waits for one span. */
struct slice {
	struct slice *next;
	struct read_op *op;
	uint8_t *dst;
	uint32_t from, len; /* in the decoded group */
};

struct read_op {
	int n_pending; /* atomic: slices that wait, and one for the call that makes them */
	pthread_mutex_t lock;
	int result;	/* guarded by lock; the first failure */
	struct err err; /* guarded by lock */
	int64_t len;
	blob_done done;
	void *arg;
	size_t n_slices;
	struct slice slices[];
};

static void op_fail(struct read_op *op, int code, const struct err *err)
{
	pthread_mutex_lock(&op->lock);
	if (op->result == 0) {
		op->result = code;
		if (err)
			op->err = *err;
	}
	pthread_mutex_unlock(&op->lock);
}

static void op_free(struct read_op *op)
{
	pthread_mutex_destroy(&op->lock);
	free(op);
}

/* True when this was the last part. */
static bool op_drop(struct read_op *op)
{
	return __atomic_sub_fetch(&op->n_pending, 1, __ATOMIC_ACQ_REL) == 0;
}

static void op_part_done(struct read_op *op)
{
	if (!op_drop(op))
		return;
	if (op->result < 0)
		op->done(op->arg, op->result, &op->err);
	else
		op->done(op->arg, op->len, NULL);
	op_free(op);
}

struct load *blob_find_load(struct blob *blob, size_t first)
{
	struct load *load;

	LIST_FOREACH (load, &blob->loads, link)
		if (load->group.first == first)
			return load;
	return NULL;
}

/* Called with the blob's lock held. */
struct load *blob_new_load(struct blob *blob, const struct group *g, enum load_kind kind)
{
	struct load *load = calloc(1, sizeof(*load));

	if (!load)
		return NULL;
	load->blob = blob_ref(blob);
	load->group = *g;
	load->kind = kind;
	load->deadline_ns = now_ns() + blob->store->deadline_ms * NS_PER_MS;
	LIST_INSERT_HEAD(&blob->loads, load, link);
	return load;
}

/* Ends a load: gives its bytes, or the failure, to all who wait. */
void blob_end_load(struct load *load, struct plain *plain, int result, const struct err *err)
{
	struct blob *blob = load->blob;

	/* Before the load is gone, so that a reader finds the one or the other. */
	if (plain) {
		pthread_mutex_lock(&blob->lock);
		enum load_kind kind = load->kind;
		pthread_mutex_unlock(&blob->lock);
		plain->is_ahead = kind == LOAD_AHEAD;
		if (kind != LOAD_PREFETCH)
			cache_put(blob->store->cache, blob->id, load->group.first, plain);
	}
	pthread_mutex_lock(&blob->lock);
	LIST_REMOVE(load, link);
	struct slice *slice = load->waiters;
	pthread_mutex_unlock(&blob->lock);
	while (slice) {
		struct slice *next = slice->next;
		if (plain)
			memcpy(slice->dst, plain->bytes + slice->from, slice->len);
		else
			op_fail(slice->op, result, err);
		op_part_done(slice->op);
		slice = next;
	}
	free(load);
	blob_unref(blob);
}

static void load_here_job(void *arg)
{
	struct load *load = arg;
	struct err err = {0};
	struct plain *plain = NULL;

	int r = blob_load_here(load->blob, &load->group, &plain, &err);
	if (r == -EAGAIN) {
		blob_fetch(load->blob, &load, 1);
		return;
	}
	blob_end_load(load, plain, r, &err);
	plain_unref(plain);
}

/* ------------------------------------------------------------------ reading */

struct range {
	uint64_t off, end;
};

/* The part of @want that lies in @s: how far into the destination and into the decoded group. */
static void overlap(const struct span *s, struct range want, size_t *dst_off, uint32_t *from,
		    uint32_t *len)
{
	uint64_t lo = MAX(s->plain_off, want.off);
	uint64_t hi = MIN(s->plain_off + s->plain_len, want.end);

	*dst_off = lo - want.off;
	*from = (uint32_t)(s->inner_off + (lo - s->plain_off));
	*len = (uint32_t)(hi - lo);
}

/* One span without waiting: 1 = copied, 0 = it must be waited for. */
static int read_now(struct blob *blob, const struct span *s, const struct group *g,
		    struct range want, uint8_t *dst, struct err *err)
{
	size_t dst_off;
	uint32_t from, len;

	overlap(s, want, &dst_off, &from, &len);
	if (s->kind == SPAN_ZERO) {
		memset(dst + dst_off, 0, len);
		return 1;
	}
	struct plain *plain = cache_get(blob->store->cache, blob->id, g->first);
	if (!plain && g->decoded_len <= INLINE_PLAIN_MAX && blob_group_is_here(blob, g)) {
		int r = blob_load_here(blob, g, &plain, err);
		if (r < 0)
			return r == -EAGAIN ? 0 : r;
		cache_put(blob->store->cache, blob->id, g->first, plain);
	}
	if (!plain)
		return 0;
	if (__atomic_exchange_n(&plain->is_ahead, false, __ATOMIC_RELAXED))
		blob_ahead_hit(blob, g);
	memcpy(dst + dst_off, plain->bytes + from, len);
	plain_unref(plain);
	return 1;
}

/* Puts a slice into the load of its group, making that if there is none: 1 = made. */
static int join_load(struct blob *blob, const struct group *g, struct slice *slice,
		     struct load **made)
{
	int r = 0;

	pthread_mutex_lock(&blob->lock);
	struct load *load = blob_find_load(blob, g->first);
	if (!load) {
		load = blob_new_load(blob, g, LOAD_WANTED);
		*made = load;
		r = load ? 1 : -ENOMEM;
	}
	if (load) {
		load->kind = LOAD_WANTED;
		slice->next = load->waiters;
		load->waiters = slice;
		__atomic_fetch_add(&slice->op->n_pending, 1, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&blob->lock);
	return r;
}

struct missing {
	vec(struct load *) fetch;
	int code;
	struct err err;
};

static void start_load(struct blob *blob, struct load *load, struct missing *m)
{
	if (blob_group_is_here(blob, &load->group)) {
		int r = pool_submit(blob->store->cpu, load_here_job, load);
		if (r < 0)
			blob_end_load(load, NULL, r, NULL);
		return;
	}
	struct load **slot = vec_push(&m->fetch);
	if (slot)
		*slot = load;
	else
		blob_end_load(load, NULL, -ENOMEM, NULL);
}

/* The slow half of a read: one slice a span that is not at hand. */
static int64_t read_later(struct blob *blob, size_t first, size_t last, struct range want,
			  uint8_t *dst, blob_done done, void *arg, struct err *err)
{
	struct read_op *op = calloc(1, sizeof(*op) + (last - first + 1) * sizeof(struct slice));
	struct missing m = {0};

	if (!op)
		return -ENOMEM;
	pthread_mutex_init(&op->lock, NULL);
	op->n_pending = 1;
	op->len = (int64_t)(want.end - want.off);
	op->done = done;
	op->arg = arg;
	for (size_t i = first; i <= last; i++) {
		struct span s;
		struct group g;
		struct load *made = NULL;
		struct err why = {0};
		int r = span_table_get(blob->spans, i, &s);
		if (r == 0)
			r = blob_group(blob, i, &g);
		if (r == 0)
			r = read_now(blob, &s, &g, want, dst, &why);
		if (r == 0) {
			struct slice *slice = &op->slices[op->n_slices++];
			size_t dst_off;
			overlap(&s, want, &dst_off, &slice->from, &slice->len);
			slice->op = op;
			slice->dst = dst + dst_off;
			r = join_load(blob, &g, slice, &made);
			if (r == 1)
				start_load(blob, made, &m);
		}
		if (r < 0) {
			op_fail(op, r, &why);
			break;
		}
	}
	if (m.fetch.n)
		blob_fetch(blob, m.fetch.items, m.fetch.n);
	vec_free(&m.fetch);
	if (!op_drop(op))
		return -EINPROGRESS;
	int64_t result = op->result < 0 ? op->result : op->len;
	if (result < 0 && err)
		*err = op->err;
	op_free(op);
	return result;
}

/* The spans that cover @want follow each other without gaps: else bytes would be left out. */
static int check_range(const struct blob *blob, size_t first, struct range want, size_t *last,
		       struct err *err)
{
	uint64_t at = want.off;
	struct span s;

	for (size_t i = first; at < want.end; i++) {
		if (span_table_get(blob->spans, i, &s) < 0 || s.plain_off > at ||
		    (i > first && s.plain_off != at) || s.plain_off + s.plain_len < at)
			return err_set(err, -EBADMSG, "layer sha256:%s: damaged span table",
				       blob->hex);
		at = s.plain_off + s.plain_len;
		*last = i;
	}
	return 0;
}

int64_t blob_read(struct blob *blob, uint64_t plain_off, void *dst, size_t len, blob_done done,
		  void *arg, struct err *err)
{
	struct span_table *spans = __atomic_load_n(&blob->spans, __ATOMIC_ACQUIRE);
	struct range want = {plain_off, plain_off + len};

	if (!spans)
		return err_set(err, -EINVAL, "layer sha256:%s: no span table yet", blob->hex);
	uint64_t size = span_table_plain_size(spans);
	if (plain_off > size || len > size - plain_off)
		return err_set(err, -EINVAL, "layer sha256:%s: read beyond its end", blob->hex);
	if (len == 0)
		return 0;
	size_t first = span_table_find(spans, plain_off), last = first;
	int r = check_range(blob, first, want, &last, err);
	if (r < 0)
		return r;
	for (; first <= last; first++) {
		struct span s;
		struct group g;
		r = span_table_get(spans, first, &s);
		if (r == 0)
			r = blob_group(blob, first, &g);
		if (r == 0)
			r = read_now(blob, &s, &g, want, dst, err);
		if (r < 0)
			return r;
		if (r == 0)
			break;
	}
	/* What was copied stays; the rest waits. */
	if (first > last)
		return (int64_t)len;
	return read_later(blob, first, last, want, dst, done, arg, err);
}

bool blob_is_here(struct blob *blob, uint64_t plain_off, uint64_t len)
{
	struct span_table *spans = __atomic_load_n(&blob->spans, __ATOMIC_ACQUIRE);
	uint64_t end = plain_off + len;

	if (!spans || end < len || end > span_table_plain_size(spans))
		return false;
	if (blob->frames_fd >= 0 || blob_find_full(blob))
		return true;
	for (size_t i = span_table_find(spans, plain_off); len; i++) {
		struct span s;
		if (span_table_get(spans, i, &s) < 0)
			return false;
		if (s.kind != SPAN_ZERO && !blob_bit(blob, i))
			return false;
		if (s.plain_off + s.plain_len >= end)
			break;
	}
	return true;
}

void blob_usage(struct blob *blob, struct blob_usage *out)
{
	struct span_table *spans = __atomic_load_n(&blob->spans, __ATOMIC_ACQUIRE);

	*out = (struct blob_usage){
		.fetched = __atomic_load_n(&blob->fetched, __ATOMIC_RELAXED),
		.read = __atomic_load_n(&blob->read, __ATOMIC_RELAXED),
	};
	out->is_complete = blob_find_full(blob);
	if (out->is_complete) {
		out->here = blob->desc.size;
		return;
	}
	for (size_t i = 0; spans && i < blob->n_bits;) {
		struct group g;
		if (blob_group(blob, i, &g) < 0)
			break;
		if (g.span.kind != SPAN_ZERO && blob_bit(blob, i))
			out->here += g.span.stored_len;
		i = g.last + 1;
	}
}
