/* SPDX-License-Identifier: Apache-2.0 */

/*
 * content: flat files of plain content, "content/<digest of the content>".
 *
 * The kernel can read such a file itself (passthrough), and equal files of all layers share one.
 * They are made in the background out of spans that are here, verified as a whole, and appear by
 * rename. Downloads and single blobs are made in drafts (draft.c).
 *
 * What results have of host folders is put here, too, as nothing else will have it tomorrow. Nobody
 * could fetch that again, so it is hashed once more before its first use (content_check), while flat
 * copies of what layers have are only a faster way to the same bytes.
 */

#include "blobstore/blob-internal.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* ------------------------------------------------------------------ content that somebody gives */

struct put {
	struct store *store;
	const struct content_source *source;
	struct hasher *hasher;
	uint8_t *piece;
	size_t n_piece; /* of the source, where all of it is one piece; it is read once then */
	struct err *err;
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "no memory");
}

/* Nothing but zeros, which a file need not hold. */
static bool is_hole(const uint8_t *piece, size_t n)
{
	return n == PIECE && piece[0] == 0 && memcmp(piece, piece + 1, n - 1) == 0;
}

/* Reads the source to its end; writes it to @fd unless that is negative. */
static int put_read(struct put *p, int fd, struct digest *out)
{
	for (uint64_t at = 0; at < p->source->size;) {
		size_t n = (size_t)MIN(p->source->size - at, (uint64_t)PIECE);
		int r = 0;
		if (p->n_piece == 0)
			r = p->source->read(p->source->arg, at, p->piece, n, p->err);
		if (r < 0)
			return r;
		hasher_add(p->hasher, p->piece, n);
		if (fd >= 0 && !is_hole(p->piece, n))
			r = pwrite_full(fd, p->piece, n, at);
		if (r < 0)
			return err_set(p->err, r, "content: %s", strerror(-r));
		at += n;
	}
	if (p->source->size <= PIECE)
		p->n_piece = (size_t)p->source->size;
	hasher_done(p->hasher, out);
	return 0;
}

/* The digest of what @fd has. */
static int hash_file(int fd, uint64_t size, uint8_t *piece, struct hasher *hasher,
		     struct digest *out, struct err *err)
{
	for (uint64_t at = 0; at < size;) {
		size_t n = (size_t)MIN(size - at, (uint64_t)PIECE);
		int r = pread_full(fd, piece, n, at);
		if (r < 0)
			return err_set(err, r, "content: %s", strerror(-r));
		hasher_add(hasher, piece, n);
		at += n;
	}
	hasher_done(hasher, out);
	return 0;
}

/* Shares the blocks of the host's file, which may be another one by now: what came is hashed. */
static int put_clone(struct put *p, int fd, struct digest *out)
{
	struct stat st;

	if (p->source->fd < 0 || ioctl(fd, FICLONE, p->source->fd) < 0)
		return -EOPNOTSUPP;
	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != p->source->size)
		return err_set(p->err, -ESTALE, "the file was changed while it was copied");
	return hash_file(fd, p->source->size, p->piece, p->hasher, out, p->err);
}

static int put_fill(struct put *p, struct store_file *file, const struct digest *want, bool sync)
{
	struct digest have;
	int r = put_clone(p, file->fd, &have);

	if (r == -EOPNOTSUPP) {
		r = put_read(p, file->fd, &have);
		if (r == 0 && ftruncate(file->fd, (off_t)p->source->size) < 0)
			r = err_errno(p->err, "content");
	}
	if (r == 0 && !digest_equal(&have, want))
		r = err_set(p->err, -ESTALE, "the file was changed while it was copied");
	if (r == 0 && ((sync && fsync(file->fd) < 0) || rename(file->tmp_path, file->final_path)))
		r = err_errno(p->err, "%s", file->final_path);
	if (r == 0)
		free(take(file->tmp_path));
	return r;
}

/* With the lock on the name held. */
static int put_locked(struct put *p, const char *hex, const struct digest *want, bool sync)
{
	struct gc *gc = p->store->gc;
	struct store_file file;
	int r = gc_reserve(gc, "content", hex, p->source->size, p->err);

	if (r < 0)
		return r;
	r = store_file_begin(p->store, "content", hex, &file, p->err);
	if (r == 0) {
		r = put_fill(p, &file, want, sync);
		store_file_abort(p->store, &file);
	}
	if (r < 0)
		gc_settle(gc, "content", hex, 0);
	return r;
}

static bool is_there(struct put *p, const struct digest *digest)
{
	int fd;

	if (content_open(p->store, digest, p->source->size, &fd) < 0)
		return false;
	close_fd(fd);
	return true;
}

int content_put(struct store *store, const struct content_source *source, bool sync,
		struct digest *out, struct err *err)
{
	scoped(hasher_free) struct hasher *hasher = hasher_new();
	scoped(free) uint8_t *piece = malloc(PIECE);
	scoped(close_fd) int lock_fd = -1;
	struct put p = {
		.store = store, .source = source, .hasher = hasher, .piece = piece, .err = err};
	char hex[DIGEST_HEX_MAX], name[sizeof("content-") + DIGEST_HEX_MAX];

	if (!hasher || !piece)
		return no_memory(err);
	int r = put_read(&p, -1, out);
	if (r == 0)
		r = store_lease(store, out, 1, err);
	if (r < 0 || is_there(&p, out))
		return r;
	snprintf(name, sizeof(name), "content-%s", digest_hex(out, hex));
	r = store_lock(store, name, store->deadline_ms, &lock_fd, err);
	if (r < 0 || is_there(&p, out))
		return r;
	r = put_locked(&p, hex, out, sync);
	return r < 0 ? r : 1;
}

int content_sync(struct store *store, struct err *err)
{
	scoped(close_fd) int fd = open(store->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || syncfs(fd) < 0)
		return err_errno(err, "%s", store->root);
	return 0;
}

int content_check(struct store *store, const struct digest *digest, uint64_t size, struct err *err)
{
	scoped(hasher_free) struct hasher *hasher = hasher_new();
	scoped(free) uint8_t *piece = malloc(PIECE);
	struct digest have;
	char hex[DIGEST_HEX_MAX];
	int opened = -1;

	digest_hex(digest, hex);
	if (!hasher || !piece)
		return no_memory(err);
	int r = content_open(store, digest, size, &opened);
	scoped(close_fd) int fd = r == 0 ? opened : -1;
	if (r < 0)
		return err_set(err, r, "content sha256:%s is not in the store any more", hex);
	r = hash_file(fd, size, piece, hasher, &have, err);
	if (r == 0 && !digest_equal(&have, digest)) {
		store_file_remove(store, "content", hex);
		r = err_set(err, -EBADMSG, "content sha256:%s in the store was damaged: removed",
			    hex);
	}
	return r;
}
