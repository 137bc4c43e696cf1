/* SPDX-License-Identifier: Apache-2.0 */

/*
 * content: flat files of plain content, "content/<digest of the content>".
 *
 * The kernel can read such a file itself (passthrough), and equal files of all layers share one.
 * They are made in the background out of spans that are here, verified as a whole, and appear by
 * rename. Downloads and single blobs are made in drafts (draft.c).
 */

#include "blobstore/blob-internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#define PIECE (1u << 20)

struct flat_job {
	struct store *store;
	struct blob *blob; /* holds a reference */
	uint64_t plain_off, size, done;
	struct digest digest;
	struct hasher *hasher;
	struct store_file file;
	int lock_fd;
	uint8_t *piece;
};

int content_open(struct store *store, const struct digest *digest, uint64_t size, int *fd)
{
	char hex[DIGEST_HEX_MAX];
	struct stat st;

	int r = store_file_open(store, "content", digest_hex(digest, hex), fd);
	if (r < 0)
		return r;
	if (fstat(*fd, &st) == 0 && (uint64_t)st.st_size == size)
		return 0;
	close_fd(*fd);
	*fd = -1;
	store_file_remove(store, "content", hex);
	return -ENOENT;
}

int content_keep(struct store *store, const struct digest *digest, uint64_t size, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	int fd;

	/* The lease first: what is here after that stays. */
	int r = gc_lease(store->gc, digest_hex(digest, hex), err);
	if (r == 0)
		r = content_open(store, digest, size, &fd);
	if (r == 0)
		close_fd(fd);
	return r;
}

static void flat_free(struct flat_job *job, int r, const struct err *err)
{
	if (r < 0)
		log_info("no flat copy of a file in layer %.12s: %s", job->blob->hex,
			 err_text(err, r));
	store_file_abort(job->store, &job->file);
	close_fd(job->lock_fd);
	hasher_free(job->hasher);
	blob_unref(job->blob);
	free(job->piece);
	free(job);
}

static void flat_piece_done(void *arg, int64_t result, const struct err *err);

/* One piece a time, each as a job of its own, so that reads of others come in between. */
static void flat_next(void *arg)
{
	struct flat_job *job = arg;
	struct err err = {0};
	size_t n = (size_t)MIN(job->size - job->done, (uint64_t)PIECE);

	if (store_is_closing(job->store)) {
		flat_free(job, -ECANCELED, NULL);
		return;
	}
	int64_t r = blob_read(job->blob, job->plain_off + job->done, job->piece, n, flat_piece_done,
			      job, &err);
	if (r != -EINPROGRESS)
		flat_piece_done(job, r, &err);
}

static void flat_finish(struct flat_job *job)
{
	struct digest have;
	struct err err = {0};
	int r = 0;

	hasher_done(job->hasher, &have);
	if (!digest_equal(&have, &job->digest))
		r = err_set(&err, -EBADMSG, "the file does not match its digest");
	if (r == 0)
		r = store_file_commit(job->store, &job->file, &err);
	flat_free(job, r, &err);
}

static void flat_piece_done(void *arg, int64_t result, const struct err *err)
{
	struct flat_job *job = arg;

	if (result >= 0) {
		hasher_add(job->hasher, job->piece, (size_t)result);
		int w = write_full(job->file.fd, job->piece, (size_t)result);
		if (w < 0)
			result = w;
		job->done += (uint64_t)MAX(result, (int64_t)0);
	}
	if (result < 0)
		flat_free(job, (int)result, err);
	else if (job->done == job->size)
		flat_finish(job);
	else if (store_submit(job->store, WORK_CPU, flat_next, job) < 0)
		flat_free(job, -ENOMEM, NULL);
}

static void flat_begin(void *arg)
{
	struct flat_job *job = arg;
	char hex[DIGEST_HEX_MAX];
	struct err err = {0};
	int fd = -1, r;
	char *name = str_printf("content-%s", digest_hex(&job->digest, hex));

	/* Held while it is being made, by this process or another: once is enough. */
	r = name ? store_lock(job->store, name, 0, &job->lock_fd, &err) : -ENOMEM;
	free(name);
	if (r == 0 && content_open(job->store, &job->digest, job->size, &fd) == 0) {
		close_fd(fd);
		flat_free(job, 0, NULL);
		return;
	}
	if (r == 0)
		r = gc_reserve(job->store->gc, "content", hex, job->size, &err);
	if (r == 0)
		r = store_file_begin(job->store, "content", hex, &job->file, &err);
	if (r < 0) {
		flat_free(job, r == -EAGAIN ? 0 : r, &err);
		return;
	}
	flat_next(job);
}

void content_make(struct store *store, struct blob *blob, uint64_t plain_off, uint64_t size,
		  const struct digest *digest)
{
	struct flat_job *job = calloc(1, sizeof(*job));

	if (!job)
		return;
	*job = (struct flat_job){
		.store = store,
		.blob = blob_ref(blob),
		.plain_off = plain_off,
		.size = size,
		.digest = *digest,
		.hasher = hasher_new(),
		.file = {.fd = -1},
		.lock_fd = -1,
		.piece = malloc(PIECE),
	};
	if (!job->hasher || !job->piece || size == 0 ||
	    store_submit(store, WORK_CPU, flat_begin, job) < 0)
		flat_free(job, 0, NULL);
}
