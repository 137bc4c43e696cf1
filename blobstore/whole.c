/* SPDX-License-Identifier: Apache-2.0 */

/*
 * whole: blobs from their first byte to their last, on their way out of the program, and new ones
 * on their way into the store.
 *
 * What goes out is read in large pieces, hashed, and kept nowhere: to write an image somewhere must
 * not push out of the store what mounts use. So its bytes are with the taker before anybody knows
 * that they were right, and the taker throws them away when they were not.
 *
 * What comes in is hashed twice on the way: the plain bytes (the diff ID of a layer) and the
 * compressed ones (the name). Room is taken in steps under a random name that is leased, as for
 * content (draft.c); the row of a process that died is evicted like a file, which then is not
 * there.
 */

#include "blobstore/blob-internal.h"

#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE (4u << 20)
#define OUT_SIZE (256u << 10)
#define STEP (UINT64_C(16) << 20)
#define GZIP_LEVEL 6
#define ZSTD_LEVEL 3

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ out */

int blob_copy_stored(struct blob *blob, blob_sink sink, void *arg, struct err *err)
{
	const struct desc *desc = blob_desc(blob);
	scoped(hasher_free) struct hasher *h = hasher_new();
	scoped(free) void *piece = malloc(MIN(desc->size, (uint64_t)PIECE) + 1);
	struct digest is;

	if (!h || !piece)
		return no_memory(err);
	for (uint64_t at = 0; at < desc->size;) {
		size_t n = (size_t)MIN(desc->size - at, (uint64_t)PIECE);
		int r = blob_read_stored(blob, at, piece, n, err);
		if (r < 0)
			return r;
		hasher_add(h, piece, n);
		r = sink(arg, piece, n);
		if (r != 0)
			return r;
		at += n;
	}
	hasher_done(h, &is);
	return digest_equal(&is, &desc->digest)
		       ? 0
		       : err_set(err, -EBADMSG, "blob sha256:%s: its content is something else",
				 blob->hex);
}

struct decoding {
	struct codec_reader *reader;
	blob_sink sink;
	void *arg;
	uint8_t *out;
	struct err *err;
};

static int decode_some(void *arg, const void *bytes, size_t n)
{
	struct decoding *d = arg;
	struct codec_io io = {.in = bytes, .n_in = n};

	if (!d->reader) {
		int r = codec_reader_new(&d->reader, codec_detect(bytes, n));
		if (r < 0)
			return no_memory(d->err);
	}
	for (;;) {
		io.out = d->out;
		io.n_out = OUT_SIZE;
		int r = codec_reader_step(d->reader, &io, d->err);
		if (r < 0)
			return r;
		size_t made = OUT_SIZE - io.n_out;
		if (made == 0 && io.n_in == 0)
			return 0;
		r = made > 0 ? d->sink(d->arg, d->out, made) : 0;
		if (r != 0)
			return r;
	}
}

int blob_copy_plain(struct blob *blob, blob_sink sink, void *arg, struct err *err)
{
	struct decoding d = {.sink = sink, .arg = arg, .err = err, .out = malloc(OUT_SIZE)};

	int r = d.out ? blob_copy_stored(blob, decode_some, &d, err) : no_memory(err);
	if (r == 0 && d.reader)
		r = codec_reader_end(d.reader, err);
	codec_reader_free(d.reader);
	free(d.out);
	return r < 0 ? err_wrap(err, r, "blob sha256:%.12s", blob->hex) : r;
}

/* ------------------------------------------------------------------ in */

struct blob_draft {
	struct store *store;
	struct store_file file;
	char name[DIGEST_HEX_MAX]; /* of its row in the catalogue until it has its own */
	struct codec_writer *writer;
	struct hasher *stored, *plain;
	uint8_t *out;
	uint64_t size, reserved;
};

static int draft_parts(struct blob_draft *d, enum plain_format format, int level)
{
	if (level == BLOB_LEVEL_DEFAULT)
		level = format == PLAIN_ZSTD ? ZSTD_LEVEL : GZIP_LEVEL;
	d->stored = hasher_new();
	d->plain = hasher_new();
	d->out = malloc(OUT_SIZE);
	if (!d->stored || !d->plain || !d->out)
		return -ENOMEM;
	return codec_writer_new(&d->writer, format, level);
}

int blob_draft_begin(struct blob_draft **out, struct store *store, enum plain_format format,
		     int level, struct err *err)
{
	scoped(blob_draft_free) struct blob_draft *d = calloc(1, sizeof(*d));
	struct digest random;

	if (!d)
		return no_memory(err);
	d->store = store;
	d->file.fd = -1;
	if (draft_parts(d, format, level) < 0)
		return no_memory(err);
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return err_errno(err, "getrandom");
	digest_hex(&random, d->name);
	int r = gc_lease(store->gc, d->name, err);
	if (r == 0)
		r = store_file_begin(store, "blobs/sha256", d->name, &d->file, err);
	if (r < 0)
		return r;
	*out = take(d);
	return 0;
}

static int draft_put(struct blob_draft *d, size_t n, struct err *err)
{
	struct gc *gc = d->store->gc;
	int r = 0;

	if (d->size + n > d->reserved) {
		uint64_t total = d->size + n + MAX(STEP, d->size / 8);
		r = gc_reserve(gc, "blobs", d->name, total, err);
		if (r < 0)
			return r;
		d->reserved = total;
	}
	r = pwrite_full(d->file.fd, d->out, n, d->size);
	if (r == -ENOSPC && gc_make_room(gc, n, err) == 0)
		r = pwrite_full(d->file.fd, d->out, n, d->size);
	if (r < 0)
		return err_set(err, r, "store: %s", strerror(-r));
	hasher_add(d->stored, d->out, n);
	d->size += n;
	return 0;
}

static int draft_step(struct blob_draft *d, struct codec_io *io, bool is_end, struct err *err)
{
	io->out = d->out;
	io->n_out = OUT_SIZE;
	int done = codec_writer_step(d->writer, io, is_end);
	if (done < 0)
		return err_set(err, done, "a layer does not compress");
	int r = OUT_SIZE > io->n_out ? draft_put(d, OUT_SIZE - io->n_out, err) : 0;
	return r < 0 ? r : done;
}

int blob_draft_write(struct blob_draft *d, const void *bytes, size_t n, struct err *err)
{
	struct codec_io io = {.in = bytes, .n_in = n};
	int r = 0;

	hasher_add(d->plain, bytes, n);
	while (r >= 0 && io.n_in > 0)
		r = draft_step(d, &io, false, err);
	return MIN(r, 0);
}

int blob_draft_commit(struct blob_draft *d, struct digest *digest, uint64_t *size,
		      struct digest *diff_id, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path = NULL;
	struct codec_io io = {.in = d->out}; /* nothing more */
	int r = 0;

	while (r == 0)
		r = draft_step(d, &io, true, err);
	if (r < 0)
		return r;
	hasher_done(d->stored, digest);
	hasher_done(d->plain, diff_id);
	*size = d->size;
	r = gc_lease(d->store->gc, digest_hex(digest, hex), err);
	if (r == 0 && store_path(d->store, &path, "blobs/sha256/%s", hex) < 0)
		r = no_memory(err);
	if (r < 0)
		return r;
	free(d->file.final_path);
	d->file.final_path = take(path);
	/* One file is charged once: under its own name from now on. */
	gc_settle(d->store->gc, "blobs", d->name, 0);
	d->reserved = 0;
	return store_file_commit(d->store, &d->file, err);
}

void blob_draft_free(struct blob_draft *d)
{
	if (!d)
		return;
	if (d->reserved)
		gc_settle(d->store->gc, "blobs", d->name, 0);
	if (d->file.final_path)
		store_file_abort(d->store, &d->file);
	codec_writer_free(d->writer);
	hasher_free(d->stored);
	hasher_free(d->plain);
	free(d->out);
	free(d);
}

bool blob_is_kept(struct store *store, const struct digest *digest, uint64_t size)
{
	char hex[DIGEST_HEX_MAX];
	scoped(close_fd) int fd = -1;
	struct stat st;

	/* First the lease: what is there afterwards stays. */
	return store_lease(store, digest, 1, NULL) == 0 &&
	       store_file_open(store, "blobs/sha256", digest_hex(digest, hex), &fd) == 0 &&
	       fstat(fd, &st) == 0 && (uint64_t)st.st_size == size;
}
