/* SPDX-License-Identifier: Apache-2.0 */

/*
 * stored: a range of a blob's stored bytes, as they come, for who checks them himself: footers and
 * tables of contents, whose own digest the manifest gives. The one place that blocks for a transfer.
 */

#include "blobstore/blob-internal.h"

struct stored_read {
	struct inflight flight;
	struct store *store;
	uint8_t *dst;
	size_t have;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool is_done;	/* guarded by lock */
	int result;	/* guarded by lock */
	struct err err; /* guarded by lock */
};

static int stored_data(struct transfer *t, const void *bytes, size_t n)
{
	struct stored_read *s = containerof(t, struct stored_read, flight.transfer);

	if (n > t->len - s->have)
		return -EBADMSG;
	memcpy(s->dst + s->have, bytes, n);
	s->have += n;
	return 0;
}

static void stored_done(struct transfer *t, int result, const struct err *err)
{
	struct stored_read *s = containerof(t, struct stored_read, flight.transfer);

	inflight_end(s->store, &s->flight);
	pthread_mutex_lock(&s->lock);
	s->result = result;
	if (err)
		s->err = *err;
	s->is_done = true;
	pthread_cond_signal(&s->cond);
	pthread_mutex_unlock(&s->lock);
}

static int fetch_stored(struct blob *blob, uint64_t off, void *dst, size_t len, struct err *err)
{
	struct stored_read s = {
		.store = blob->store,
		.dst = dst,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.cond = PTHREAD_COND_INITIALIZER,
		.flight = {.remote = blob->remote,
			   .transfer = {.digest = blob->desc.digest,
					.blob_size = blob->desc.size,
					.off = off,
					.len = len,
					.deadline_ns =
						now_ns() + blob->store->deadline_ms * NS_PER_MS,
					.data = stored_data,
					.done = stored_done}},
	};

	int r = inflight_start(blob->store, &s.flight);
	if (r < 0)
		return err_set(err, r, "%s", strerror(-r));
	/* Ends: the transfer has a deadline. */
	pthread_mutex_lock(&s.lock);
	while (!s.is_done)
		pthread_cond_wait(&s.cond, &s.lock);
	pthread_mutex_unlock(&s.lock);
	__atomic_fetch_add(&blob->fetched, s.have, __ATOMIC_RELAXED);
	if (s.flight.transfer.is_unranged)
		__atomic_store_n(&blob->is_unranged, true, __ATOMIC_RELAXED);
	if (s.result < 0 && err)
		*err = s.err;
	return s.result;
}

bool blob_is_unranged(struct blob *blob)
{
	return __atomic_load_n(&blob->is_unranged, __ATOMIC_RELAXED);
}

int blob_read_stored(struct blob *blob, uint64_t stored_off, void *dst, size_t len, struct err *err)
{
	int r;

	if (stored_off > blob->desc.size || len > blob->desc.size - stored_off)
		return err_set(err, -EINVAL, "layer sha256:%s: read beyond its end", blob->hex);
	if (len == 0)
		return 0;
	if (blob_find_full(blob)) {
		r = pread_full(blob->full_fd, dst, len, blob->full_off + stored_off);
		if (r < 0)
			err_set(err, r, "%s", strerror(-r));
		else
			__atomic_fetch_add(&blob->read, len, __ATOMIC_RELAXED);
	} else if (blob->remote) {
		r = fetch_stored(blob, stored_off, dst, len, err);
	} else {
		r = err_set(err, -ENOENT, "it is not here and no remote has it");
	}
	return r < 0 ? err_wrap(err, r, "layer sha256:%.12s", blob->hex) : 0;
}
