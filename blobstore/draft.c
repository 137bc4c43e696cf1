/* SPDX-License-Identifier: Apache-2.0 */

/*
 * draft: a flat file of content that comes from outside, whose digest is known at its end.
 *
 * Bytes are written as they come and hashed when all are here, read back from the file: so a
 * transfer may begin again in the middle, the network thread has nothing to compute, and what is
 * hashed is what will be read. Room is taken in steps before bytes are written, under a name that
 * is random and leased; the row of a process that died is evicted like a file, which then is not
 * there.
 */

#include "blobstore/blob-internal.h"
#include "blobstore/net-internal.h"

#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

#define STEP (UINT64_C(16) << 20)
#define PIECE (256u << 10)

int draft_begin(struct draft *d, struct store *store, struct err *err)
{
	struct digest random;

	*d = (struct draft){.store = store, .file = {.fd = -1}};
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return err_errno(err, "getrandom");
	digest_hex(&random, d->name);
	int r = gc_lease(store->gc, d->name, err);
	return r < 0 ? r : store_file_begin(store, "content", d->name, &d->file, err);
}

int draft_expect(struct draft *d, uint64_t total, struct err *err)
{
	if (total <= d->reserved)
		return 0;
	int r = gc_reserve(d->store->gc, "content", d->name, total, err);
	if (r == 0)
		d->reserved = total;
	return r;
}

int draft_add(struct draft *d, const void *bytes, size_t n, struct err *err)
{
	int r = 0;

	if (d->size + n > d->reserved) /* nobody said how much it is */
		r = draft_expect(d, d->size + n + MAX(STEP, d->size / 8), err);
	if (r < 0)
		return r;
	r = pwrite_full(d->file.fd, bytes, n, d->size);
	if (r == -ENOSPC && gc_make_room(d->store->gc, n, err) == 0)
		r = pwrite_full(d->file.fd, bytes, n, d->size);
	if (r < 0)
		return err && err->code ? r : err_set(err, r, "content: %s", strerror(-r));
	d->size += n;
	return 0;
}

int draft_restart(struct draft *d, struct err *err)
{
	if (ftruncate(d->file.fd, 0) < 0)
		return err_errno(err, "content");
	d->size = 0;
	return 0;
}

static int draft_hash(struct draft *d, struct digest *out, struct err *err)
{
	scoped(hasher_free) struct hasher *h = hasher_new();
	scoped(free) uint8_t *piece = malloc(PIECE);

	if (!h || !piece)
		return err_set(err, -ENOMEM, "out of memory");
	for (uint64_t at = 0; at < d->size;) {
		size_t n = (size_t)MIN(d->size - at, (uint64_t)PIECE);
		int r = pread_full(d->file.fd, piece, n, at);
		if (r < 0)
			return err_set(err, r, "content: %s", strerror(-r));
		hasher_add(h, piece, n);
		at += n;
	}
	hasher_done(h, out);
	return 0;
}

int draft_commit(struct draft *d, const struct digest *wanted, struct digest *out, struct err *err)
{
	char hex[DIGEST_HEX_MAX], is[DIGEST_TEXT_MAX], want[DIGEST_TEXT_MAX];
	scoped(free) char *path = NULL;

	int r = draft_hash(d, out, err);
	if (r == 0 && wanted && !digest_equal(out, wanted))
		r = err_set(err, -EBADMSG, "the content is %s, but %s was wanted",
			    digest_text(out, is), digest_text(wanted, want));
	if (r == 0)
		r = gc_lease(d->store->gc, digest_hex(out, hex), err);
	if (r == 0)
		r = store_path(d->store, &path, "content/%s", hex);
	if (r < 0)
		return r;
	free(d->file.final_path);
	d->file.final_path = take(path);
	/* One file is charged once: under its own name from now on. */
	gc_settle(d->store->gc, "content", d->name, 0);
	d->reserved = 0;
	return store_file_commit(d->store, &d->file, err);
}

void draft_abort(struct draft *d)
{
	if (d->reserved)
		gc_settle(d->store->gc, "content", d->name, 0);
	d->reserved = 0;
	if (d->file.final_path)
		store_file_abort(d->store, &d->file);
}

/* ------------------------------------------------------------------ blobs */

struct fetch {
	struct transfer t;
	struct waiter w;
	struct draft *draft;
	struct err why; /* of the draft */
};

static int fetch_data(struct transfer *t, const void *bytes, size_t n)
{
	struct fetch *f = containerof(t, struct fetch, t);

	if (f->draft->size == 0 && t->blob_size != BLOB_SIZE_UNKNOWN) {
		int r = draft_expect(f->draft, t->blob_size, &f->why);
		if (r < 0)
			return r;
	}
	return draft_add(f->draft, bytes, n, &f->why);
}

static void fetch_done(struct transfer *t, int result, const struct err *err)
{
	waiter_wake(&containerof(t, struct fetch, t)->w, result, err);
}

/* Blocks; the bytes are in the draft after. */
static int fetch_into(struct draft *draft, struct remote *remote, const struct digest *digest,
		      uint64_t size, struct err *err)
{
	struct fetch f = {
		.t = {.digest = *digest,
		      .blob_size = size,
		      .len = size,
		      .is_stream = true,
		      .data = fetch_data,
		      .done = fetch_done},
		.w = {WAITER_INIT, .err = err},
		.draft = draft,
	};

	if (size == 0)
		return 0;
	remote->ops->start(remote, &f.t);
	int r = waiter_wait(&f.w);
	if (r < 0 && f.why.code && err)
		*err = f.why;
	return r;
}

int content_fetch(struct store *store, struct remote *remote, const struct digest *digest,
		  uint64_t *size, struct err *err)
{
	struct draft draft;
	struct digest is;
	char text[DIGEST_TEXT_MAX];

	int r = draft_begin(&draft, store, err);
	if (r == 0)
		r = fetch_into(&draft, remote, digest, *size, err);
	if (r == 0)
		*size = draft.size;
	if (r == 0)
		r = draft_commit(&draft, digest, &is, err);
	draft_abort(&draft);
	return r < 0 ? err_wrap(err, r, "blob %s", digest_text(digest, text)) : 0;
}
