/* SPDX-License-Identifier: Apache-2.0 */

/*
 * window: fetches groups of spans from the remote, several in one request, and keeps them.
 *
 * A window is one ranged request over neighbouring groups. As soon as a group's last byte is here
 * it is decoded, checked, written to the store and given to those who wait, while the rest is
 * still coming.
 *
 * How much beyond what was asked for? The first miss in a blob fetches nothing more. When misses
 * come near each other, windows grow to aligned blocks of 64 KiB, 128 KiB … 4 MiB: aligned, so that
 * any order of reading within them is served by one request. What was fetched ahead and never read
 * is counted, and when that is most of it the blocks shrink again. Once blocks are large, the next
 * one is fetched when the first bytes of the last are read, so that a reader who goes through the
 * whole blob never waits for a round trip.
 */

#include "blobstore/blob-internal.h"

#include <assert.h>
#include <stdio.h>

#define WINDOW_MAX (8u << 20)
/* Bytes of no span between two: they cost themselves, a second request a round trip; at 50 MB/s and
 * 1 ms this is a tie. */
#define GAP_MAX (32u << 10)
#define BLOCK_MIN (64u << 10)
#define BLOCK_MAX (4u << 20)
#define BLOCK_PIPELINED (1u << 20)
/* Misses closer than this to the last one are neighbours. */
#define NEAR (256u << 10)
#define PREFETCH_WINDOW (2u << 20)
#define PREFETCH_PARALLEL 3

struct window {
	struct inflight flight;
	struct blob *blob;
	int n_refs; /* atomic: the transfer, and each group being decoded */
	bool is_prefetch;
	uint64_t off;
	size_t len, have; /* have, next: only the transfer's thread */
	size_t n, next;
	uint8_t *buf;
	struct load *loads[]; /* by stored offset */
};

typedef vec(struct load *) load_vec;

static uint64_t load_off(const struct load *load)
{
	return load->group.span.stored_off;
}

static uint64_t load_end(const struct load *load)
{
	return load->group.span.stored_off + load->group.span.stored_len;
}

/* ------------------------------------------------------------------ transfers of a store */

int inflight_start(struct store *store, struct inflight *f)
{
	struct blob_table *table = store->blobs;

	pthread_mutex_lock(&table->lock);
	bool is_closing = table->is_closing;
	if (!is_closing)
		LIST_INSERT_HEAD(&table->inflight, f, link);
	pthread_mutex_unlock(&table->lock);
	if (is_closing)
		return -ECANCELED;
	f->remote->ops->start(f->remote, &f->transfer);
	return 0;
}

void inflight_leave(struct store *store, struct inflight *f)
{
	struct blob_table *table = store->blobs;

	pthread_mutex_lock(&table->lock);
	LIST_REMOVE(f, link);
	table->n_leaving++;
	pthread_mutex_unlock(&table->lock);
}

void inflight_left(struct store *store)
{
	struct blob_table *table = store->blobs;

	pthread_mutex_lock(&table->lock);
	table->n_leaving--;
	if (LIST_EMPTY(&table->inflight) && !table->n_leaving)
		pthread_cond_broadcast(&table->idle);
	pthread_mutex_unlock(&table->lock);
}

void inflight_end(struct store *store, struct inflight *f)
{
	inflight_leave(store, f);
	inflight_left(store);
}

bool store_is_closing(struct store *store)
{
	pthread_mutex_lock(&store->blobs->lock);
	bool is_closing = store->blobs->is_closing;
	pthread_mutex_unlock(&store->blobs->lock);
	return is_closing;
}

/* ------------------------------------------------------------------ one window */

static void window_unref(struct window *w)
{
	if (__atomic_sub_fetch(&w->n_refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	blob_unref(w->blob);
	free(w->buf);
	free(w);
}

struct decode_job {
	struct window *window;
	struct load *load;
};

/* Wrong bytes may come from a cache on the way: ask once more before believing it. */
static bool try_again(struct load *load, int r)
{
	if (r != -EBADMSG || load->n_tries > 0 || now_ns() > load->deadline_ns)
		return false;
	load->n_tries++;
	log_warn("layer sha256:%.12s: wrong bytes at %llu from %s: asking again", load->blob->hex,
		 (unsigned long long)load_off(load), load->blob->remote->name);
	blob_fetch(load->blob, &load, 1);
	return true;
}

static void decode_job(void *arg)
{
	struct decode_job *job = arg;
	struct window *w = job->window;
	struct load *load = job->load;
	struct plain *plain = NULL;
	struct err err = {0};
	const uint8_t *stored = w->buf + (load_off(load) - w->off);

	int r = blob_decode_group(w->blob, &load->group, stored, &plain, &err);
	if (r == -EBADMSG)
		err_wrap(&err, r, "%s", w->blob->remote->name);
	if (r == 0)
		r = blob_keep_group(w->blob, &load->group, stored, &err);
	if (r < 0) {
		plain_unref(plain);
		plain = NULL;
	}
	if (r == 0 || !try_again(load, r))
		blob_end_load(load, plain, r, &err);
	plain_unref(plain);
	window_unref(w);
	free(job);
}

static void submit_decode(struct window *w, struct load *load)
{
	struct decode_job *job = malloc(sizeof(*job));

	if (job) {
		*job = (struct decode_job){w, load};
		__atomic_fetch_add(&w->n_refs, 1, __ATOMIC_RELAXED);
		if (pool_submit(w->blob->store->cpu, decode_job, job) == 0)
			return;
		__atomic_fetch_sub(&w->n_refs, 1, __ATOMIC_RELAXED);
		free(job);
	}
	blob_end_load(load, NULL, -ENOMEM, NULL);
}

static int window_data(struct transfer *t, const void *bytes, size_t n)
{
	struct window *w = containerof(t, struct window, flight.transfer);

	if (n > w->len - w->have)
		return -EBADMSG;
	memcpy(w->buf + w->have, bytes, n);
	w->have += n;
	__atomic_fetch_add(&w->blob->fetched, n, __ATOMIC_RELAXED);
	while (w->next < w->n && load_end(w->loads[w->next]) <= w->off + w->have)
		submit_decode(w, w->loads[w->next++]);
	return 0;
}

static void prefetch_ended(struct store *store);

static void window_done(struct transfer *t, int result, const struct err *err)
{
	struct window *w = containerof(t, struct window, flight.transfer);
	struct store *store = w->blob->store;
	struct err why = {0};

	if (err)
		why = *err;
	if (result == 0 && w->next < w->n)
		result = err_set(&why, -EBADMSG, "%s: the answer is too short",
				 w->blob->remote->name);
	if (result < 0)
		err_wrap(&why, result, "layer sha256:%.12s", w->blob->hex);
	while (w->next < w->n)
		blob_end_load(w->loads[w->next++], NULL, result, &why);
	if (w->is_prefetch)
		prefetch_ended(store);
	inflight_leave(store, &w->flight);
	window_unref(w); /* may let go of the blob, for which the store must still be there */
	inflight_left(store);
}

/* Takes the loads: whatever happens, each of them ends. */
static void window_start(struct blob *blob, struct load **loads, size_t n, bool is_prefetch)
{
	struct window *w = calloc(1, sizeof(*w) + n * sizeof(w->loads[0]));
	uint64_t end = 0, deadline = loads[0]->deadline_ns;

	for (size_t i = 0; i < n; i++) {
		end = MAX(end, load_end(loads[i]));
		deadline = MIN(deadline, loads[i]->deadline_ns);
	}
	size_t len = end - load_off(loads[0]);
	uint8_t *buf = w ? malloc(len) : NULL;
	int r = buf ? 0 : -ENOMEM;
	struct err err = {0};
	if (r == 0 && (!blob->remote || end > blob->desc.size))
		r = err_set(&err, blob->remote ? -EBADMSG : -ENOENT,
			    "layer sha256:%s: bytes at %llu are not here and no remote has them",
			    blob->hex, (unsigned long long)load_off(loads[0]));
	if (r == 0) {
		*w = (struct window){
			.blob = blob_ref(blob),
			.n_refs = 1,
			.is_prefetch = is_prefetch,
			.off = load_off(loads[0]),
			.len = len,
			.n = n,
			.buf = buf,
			.flight = {.remote = blob->remote,
				   .transfer = {.digest = blob->desc.digest,
						.blob_size = blob->desc.size,
						.off = load_off(loads[0]),
						.len = len,
						.deadline_ns = deadline,
						.data = window_data,
						.done = window_done}},
		};
		memcpy(w->loads, loads, n * sizeof(w->loads[0]));
		r = inflight_start(blob->store, &w->flight);
		if (r == 0)
			return;
		window_unref(w);
		w = NULL;
		buf = NULL;
	}
	free(buf);
	free(w);
	for (size_t i = 0; i < n; i++)
		blob_end_load(loads[i], NULL, r, &err);
	if (is_prefetch)
		prefetch_ended(blob->store);
}

/* ------------------------------------------------------------------ what to fetch along */

/* Adds the group of span @i as a load when it is missing. Called with the blob's lock held.
 * 1 = added, 0 = there is nothing to fetch. */
static int add_missing(struct blob *blob, const struct group *g, enum load_kind kind, load_vec *out)
{
	bool is_bit = true;

	for (size_t i = g->first; i <= g->last; i++)
		is_bit = is_bit && blob_bit(blob, i);
	if (is_bit || g->span.kind == SPAN_ZERO || blob_find_load(blob, g->first))
		return 0;
	struct load **slot = vec_push(out);
	struct load *load = slot ? blob_new_load(blob, g, kind) : NULL;
	if (!load) {
		out->n -= slot != NULL;
		return 0;
	}
	*slot = load;
	return 1;
}

/* All missing groups from @first on whose stored bytes lie in [from, to). Locked. */
static void add_forward(struct blob *blob, size_t first, uint64_t to, enum load_kind kind,
			load_vec *out)
{
	uint64_t at = 0;

	for (size_t i = first; i < blob->n_bits;) {
		struct group g;
		if (blob_group(blob, i, &g) < 0)
			break;
		i = g.last + 1;
		if (g.span.kind == SPAN_ZERO)
			continue;
		/* Tables that do not follow the stored order are not guessed at. */
		if (g.span.stored_off < at || g.span.stored_off + g.span.stored_len > to)
			break;
		at = g.span.stored_off;
		if (add_missing(blob, &g, kind, out) && kind == LOAD_AHEAD)
			blob->readahead.ahead += g.span.stored_len;
	}
}

static void add_backward(struct blob *blob, size_t first, uint64_t from, uint64_t at, load_vec *out)
{
	while (first > 0) {
		struct group g;
		if (blob_group(blob, first - 1, &g) < 0)
			break;
		first = g.first;
		if (g.span.kind == SPAN_ZERO)
			continue;
		if (g.span.stored_off < from || g.span.stored_off >= at)
			break;
		at = g.span.stored_off;
		if (add_missing(blob, &g, LOAD_AHEAD, out))
			blob->readahead.ahead += g.span.stored_len;
	}
}

/* The block size for a miss at [off, end). Locked. Growth needs evidence: most of what was fetched
 * ahead was read, or misses follow each other without gaps. */
static uint64_t choose_block(struct readahead *ra, uint64_t off, uint64_t end)
{
	bool is_near = ra->last_end && off + NEAR >= ra->last_end && off <= ra->last_end + NEAR;
	bool is_next = ra->last_end && off >= ra->last_end && off <= ra->last_end + GAP_MAX;

	ra->n_next = is_next ? ra->n_next + 1 : 0;
	if (ra->n_next >= 2 || (ra->ahead && ra->used >= ra->ahead / 2))
		ra->block = ra->block ? MIN(ra->block * 2, (uint64_t)BLOCK_MAX) : BLOCK_MIN;
	else if (ra->used < ra->ahead / 4)
		ra->block = ra->block > BLOCK_MIN ? ra->block / 2 : 0;
	else if (is_near && !ra->block)
		ra->block = BLOCK_MIN;
	ra->last_end = end;
	/* Old habits count half. */
	if (ra->ahead > 4 * MAX(ra->block, (uint64_t)NEAR)) {
		ra->ahead /= 2;
		ra->used /= 2;
	}
	return ra->block;
}

static int by_offset(const void *a, const void *b)
{
	const struct load *const *x = a, *const *y = b;

	return load_off(*x) < load_off(*y) ? -1 : load_off(*x) > load_off(*y);
}

/* True when nothing but holes and what belongs to no span (tar headers) lies between two loads: a
 * request over both fetches nothing that is here, or on its way already. */
static bool follows(const struct blob *blob, const struct load *load, const struct load *next)
{
	size_t i = load->group.last + 1;
	struct span s;

	if (next->group.first < i || load_off(next) > load_end(load) + GAP_MAX)
		return false;
	while (i < next->group.first && span_table_get(blob->spans, i, &s) == 0 &&
	       s.kind == SPAN_ZERO)
		i++;
	return i == next->group.first;
}

/* Sorts the loads and cuts them into windows. */
static void start_windows(struct blob *blob, load_vec *loads)
{
	qsort(loads->items, loads->n, sizeof(loads->items[0]), by_offset);
	for (size_t i = 0; i < loads->n;) {
		uint64_t begin = load_off(loads->items[i]), end = load_end(loads->items[i]);
		size_t n = 1;
		for (; i + n < loads->n; n++) {
			const struct load *next = loads->items[i + n];
			if (!follows(blob, loads->items[i + n - 1], next) ||
			    load_end(next) - begin > WINDOW_MAX)
				break;
			end = MAX(end, load_end(next));
		}
		window_start(blob, loads->items + i, n, false);
		i += n;
	}
}

void blob_fetch(struct blob *blob, struct load **loads, size_t n)
{
	load_vec all = {0};
	uint64_t off = UINT64_MAX, end = 0;
	size_t first = SIZE_MAX, last = 0;

	for (size_t i = 0; i < n; i++) {
		struct load **slot = vec_push(&all);
		if (!slot) {
			blob_end_load(loads[i], NULL, -ENOMEM, NULL);
			continue;
		}
		*slot = loads[i];
		off = MIN(off, load_off(loads[i]));
		end = MAX(end, load_end(loads[i]));
		first = MIN(first, loads[i]->group.first);
		last = MAX(last, loads[i]->group.last);
	}
	if (all.n && loads[0]->n_tries == 0 && blob->remote) {
		pthread_mutex_lock(&blob->lock);
		struct readahead *ra = &blob->readahead;
		uint64_t block = choose_block(ra, off, end);
		if (block) {
			uint64_t to = (end + block - 1) / block * block;
			add_backward(blob, first, off / block * block, off, &all);
			add_forward(blob, last + 1, to, LOAD_AHEAD, &all);
			ra->ahead_end = MAX(end, to);
		}
		pthread_mutex_unlock(&blob->lock);
	}
	if (all.n)
		start_windows(blob, &all);
	vec_free(&all);
}

void blob_ahead_hit(struct blob *blob, const struct group *g)
{
	load_vec next = {0};
	struct readahead *ra = &blob->readahead;

	pthread_mutex_lock(&blob->lock);
	ra->used += g->span.stored_len;
	/* The reader has arrived in the block fetched last: fetch the one after it. */
	if (ra->block >= BLOCK_PIPELINED && g->span.stored_off < ra->ahead_end &&
	    g->span.stored_off + ra->block >= ra->ahead_end && ra->used * 2 > ra->ahead) {
		ra->ahead_end += ra->block;
		ra->last_end = ra->ahead_end;
		add_forward(blob, g->last + 1, ra->ahead_end, LOAD_AHEAD, &next);
	}
	pthread_mutex_unlock(&blob->lock);
	if (next.n)
		start_windows(blob, &next);
	vec_free(&next);
}

/* ------------------------------------------------------------------ in the background */

struct prefetch {
	STAILQ_ENTRY(prefetch) link;
	struct blob *blob; /* holds a reference */
	size_t next, end;  /* span indexes */
};

void prefetch_queue_init(struct prefetch_queue *q)
{
	pthread_mutex_init(&q->lock, NULL);
	STAILQ_INIT(&q->ranges);
}

static void prefetch_clear(struct prefetch_queue *q)
{
	struct prefetch *p;

	for (;;) {
		pthread_mutex_lock(&q->lock);
		p = STAILQ_FIRST(&q->ranges);
		if (p)
			STAILQ_REMOVE_HEAD(&q->ranges, link);
		pthread_mutex_unlock(&q->lock);
		if (!p)
			return;
		blob_unref(p->blob);
		free(p);
	}
}

void prefetch_queue_deinit(struct prefetch_queue *q)
{
	prefetch_clear(q);
	pthread_mutex_destroy(&q->lock);
}

/* The next window's worth of missing groups of @p, made into loads. */
static void prefetch_take(struct prefetch *p, load_vec *out)
{
	struct blob *blob = p->blob;

	pthread_mutex_lock(&blob->lock);
	while (p->next < p->end) {
		struct group g;
		if (blob_group(blob, p->next, &g) < 0) {
			p->next = p->end;
			break;
		}
		uint64_t end = g.span.stored_off + g.span.stored_len;
		if (out->n && (g.span.stored_off < load_off(out->items[0]) ||
			       g.span.stored_off > load_end(out->items[out->n - 1]) + GAP_MAX ||
			       end - load_off(out->items[0]) > PREFETCH_WINDOW))
			break;
		p->next = g.last + 1;
		if (!add_missing(blob, &g, LOAD_PREFETCH, out) && g.span.kind != SPAN_ZERO &&
		    out->n)
			break; /* what is here is not fetched again */
	}
	pthread_mutex_unlock(&blob->lock);
}

/* Starts windows while there are ranges and places for them. */
static void prefetch_pump(void *arg)
{
	struct store *store = arg;
	struct prefetch_queue *q = &store->blobs->prefetch;

	for (;;) {
		load_vec loads = {0};
		pthread_mutex_lock(&q->lock);
		struct prefetch *p =
			q->n_active < PREFETCH_PARALLEL ? STAILQ_FIRST(&q->ranges) : NULL;
		if (p)
			STAILQ_REMOVE_HEAD(&q->ranges, link);
		pthread_mutex_unlock(&q->lock);
		if (!p)
			return;
		if (!blob_find_full(p->blob) && p->blob->frames_fd < 0)
			prefetch_take(p, &loads);
		else
			p->next = p->end;
		struct blob *blob = blob_ref(p->blob);
		pthread_mutex_lock(&q->lock);
		if (p->next < p->end) {
			STAILQ_INSERT_HEAD(&q->ranges, p, link);
			p = NULL;
		}
		q->n_active += loads.n > 0;
		pthread_mutex_unlock(&q->lock);
		if (p) {
			blob_unref(p->blob);
			free(p);
		}
		if (loads.n)
			window_start(blob, loads.items, loads.n, true);
		blob_unref(blob);
		vec_free(&loads);
	}
}

static void prefetch_ended(struct store *store)
{
	struct prefetch_queue *q = &store->blobs->prefetch;

	pthread_mutex_lock(&q->lock);
	q->n_active--;
	pthread_mutex_unlock(&q->lock);
	pool_submit(store->cpu, prefetch_pump, store);
}

void blob_prefetch(struct blob *blob, uint64_t plain_off, uint64_t len)
{
	struct span_table *spans = __atomic_load_n(&blob->spans, __ATOMIC_ACQUIRE);
	struct prefetch_queue *q = &blob->store->blobs->prefetch;
	uint64_t end = plain_off + len;

	if (!spans || !len || end < len || !blob->remote || store_is_closing(blob->store))
		return;
	struct prefetch *p = calloc(1, sizeof(*p));
	if (!p)
		return;
	*p = (struct prefetch){.blob = blob_ref(blob),
			       .next = span_table_find(spans, plain_off),
			       .end = MIN(span_table_find(spans, end - 1), blob->n_bits - 1) + 1};
	pthread_mutex_lock(&q->lock);
	STAILQ_INSERT_TAIL(&q->ranges, p, link);
	pthread_mutex_unlock(&q->lock);
	pool_submit(blob->store->cpu, prefetch_pump, blob->store);
}

void blob_table_stop(struct blob_table *table)
{
	struct inflight *f;

	pthread_mutex_lock(&table->lock);
	table->is_closing = true;
	pthread_mutex_unlock(&table->lock);
	prefetch_clear(&table->prefetch);
	pthread_mutex_lock(&table->lock);
	LIST_FOREACH (f, &table->inflight, link)
		f->remote->ops->cancel(f->remote, &f->transfer);
	while (!LIST_EMPTY(&table->inflight) || table->n_leaving)
		pthread_cond_wait(&table->idle, &table->lock);
	pthread_mutex_unlock(&table->lock);
}
