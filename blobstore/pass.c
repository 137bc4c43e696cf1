/* SPDX-License-Identifier: Apache-2.0 */

/*
 * pass: one stream through a whole blob, from its first byte to its last.
 *
 * What has no table of contents must be read once before anything in it can be named. That one
 * pass verifies the blob against its digest, keeps it, hands out the plain bytes for the tar reader,
 * and notes every place from which decoding can begin again, so that it is never needed twice.
 *
 *	remote ── network thread ──► partial/HEX.stream ──► this thread: hash, decode, note points
 *
 * The network thread writes as fast as bytes come; the reader follows behind through the page
 * cache. A pass that was cut short leaves the stream file, and the next one fetches only the rest.
 * Nothing in it is verified before the end, neither what an earlier process left nor what came
 * now: when the digest does not match, everything is thrown away and the caller told to begin
 * again. Bytes that make no sense on the way are judged by the same digest (blob_pass_blame), or
 * else a stream file with wrong bytes would stay for ever.
 *
 * Spans are cut at the first restart point after a target size. Where restart points are too far
 * apart (a single zstd frame, one huge deflate block) the finished pass writes a re-framed copy,
 * zstd frames of 1 MiB, and the spans mean that.
 */

#include "blobstore/blob-internal.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define IN_CHUNK (256u << 10)
#define OUT_CHUNK (256u << 10)
/* Sizes in plain bytes. Windows cost 3 % of a gzip layer at 1 MiB; a raw span is read whole to be
 * verified, so it is smaller. */
#define TARGET_GZIP (1u << 20)
#define TARGET_ZSTD (1u << 20)
#define TARGET_RAW (256u << 10)
/* The start of a member needs no window: take it earlier. */
#define TARGET_MEMBER (256u << 10)
/* A longer piece without a restart point makes reading slow: re-frame. */
#define SPAN_LONG (16u << 20)
#define FRAME_SIZE (1u << 20)
#define FRAME_LEVEL 1

/* Where the stored bytes come from. */
struct source {
	int fd;
	uint64_t base;	    /* of the blob's first byte in fd */
	uint64_t n_resumed; /* bytes of an earlier process, not verified */
	/* a stream that is still coming */
	bool is_stream;
	struct inflight flight;
	pthread_mutex_t lock;
	pthread_cond_t more;
	uint64_t n_here; /* guarded by lock; monotonic */
	bool is_ended;	 /* guarded by lock: done was called */
	int result;	 /* guarded by lock */
	struct err err;	 /* guarded by lock */
};

/* Cuts the stream of plain bytes into spans. */
struct cutter {
	struct span_builder *builder;
	struct hasher *hasher;	  /* of the span under way */
	struct codec_point point; /* where it began */
	struct span span;
	uint64_t plain_off;
	bool has_span;
	bool is_long; /* some span is too long: re-frame */
};

struct blob_pass {
	struct blob *blob;
	struct source source;
	struct codec_reader *reader;
	enum plain_format format;
	struct hasher *stored_hash, *plain_hash;
	struct cutter cutter;
	uint64_t stored_off; /* taken from the source */
	uint8_t *in, *out;
	struct codec_io io;
	uint64_t position; /* atomic, for progress */
	bool is_at_end;
};

/* ------------------------------------------------------------------ the source */

static int stream_data(struct transfer *t, const void *bytes, size_t n)
{
	struct source *s = containerof(t, struct source, flight.transfer);
	struct blob_pass *pass = containerof(s, struct blob_pass, source);
	uint64_t at = s->n_here; /* only this thread changes it */

	int r = pwrite_full(s->fd, bytes, n, at);
	if (r == -ENOSPC && gc_make_room(pass->blob->store->gc, n, NULL) == 0)
		r = pwrite_full(s->fd, bytes, n, at);
	if (r < 0)
		return r;
	__atomic_fetch_add(&pass->blob->fetched, n, __ATOMIC_RELAXED);
	pthread_mutex_lock(&s->lock);
	s->n_here += n;
	pthread_cond_signal(&s->more);
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static void stream_done(struct transfer *t, int result, const struct err *err)
{
	struct source *s = containerof(t, struct source, flight.transfer);
	struct blob_pass *pass = containerof(s, struct blob_pass, source);

	inflight_end(pass->blob->store, &s->flight);
	pthread_mutex_lock(&s->lock);
	s->result = result;
	if (err)
		s->err = *err;
	s->is_ended = true;
	pthread_cond_signal(&s->more);
	pthread_mutex_unlock(&s->lock);
}

static int stream_open(struct blob_pass *pass, struct err *err)
{
	struct blob *blob = pass->blob;
	struct source *s = &pass->source;
	scoped(free) char *path = NULL;
	struct stat st;

	int r = store_path(blob->store, &path, "partial/%s.stream", blob->hex);
	if (r == 0)
		r = gc_lease(blob->store->gc, blob->hex, err);
	if (r == 0)
		r = gc_reserve(blob->store->gc, "blobs", blob->hex, blob->desc.size, err);
	if (r < 0)
		return r;
	s->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (s->fd < 0 || fstat(s->fd, &st) < 0)
		return err_errno(err, "%s", path);
	if ((uint64_t)st.st_size > blob->desc.size) {
		if (ftruncate(s->fd, 0) < 0)
			return err_errno(err, "%s", path);
		st.st_size = 0;
	}
	s->is_stream = true;
	s->n_here = s->n_resumed = (uint64_t)st.st_size;
	s->is_ended = s->n_here == blob->desc.size;
	if (s->is_ended)
		return 0;
	s->flight.remote = blob->remote;
	s->flight.transfer = (struct transfer){
		.digest = blob->desc.digest,
		.blob_size = blob->desc.size,
		.off = s->n_here,
		.len = blob->desc.size - s->n_here,
		.is_stream = true,
		.data = stream_data,
		.done = stream_done,
	};
	r = inflight_start(blob->store, &s->flight);
	if (r < 0) {
		s->is_ended = true;
		s->result = r;
	}
	return r;
}

static int source_open(struct blob_pass *pass, struct err *err)
{
	struct blob *blob = pass->blob;
	struct source *s = &pass->source;

	if (blob_find_full(blob)) {
		s->fd = fcntl(blob->full_fd, F_DUPFD_CLOEXEC, 0);
		s->base = blob->full_off;
		s->n_here = blob->desc.size;
		s->is_ended = true;
		return s->fd < 0 ? err_errno(err, "blob sha256:%s", blob->hex) : 0;
	}
	if (!blob->remote)
		return err_set(err, -ENOENT, "layer sha256:%s is not here and no remote has it",
			       blob->hex);
	return stream_open(pass, err);
}

/* Waits until there are bytes beyond @off: their number, 0 at the end. */
static int64_t source_wait(struct blob_pass *pass, uint64_t off, struct err *err)
{
	struct source *s = &pass->source;

	pthread_mutex_lock(&s->lock);
	/* Ends: the transfer has a limit on stalls, and closing the store cancels it. */
	while (s->n_here == off && !s->is_ended)
		pthread_cond_wait(&s->more, &s->lock);
	int64_t n = (int64_t)(s->n_here - off);
	int result = s->result;
	if (n == 0 && result < 0 && err)
		*err = s->err;
	pthread_mutex_unlock(&s->lock);
	if (n == 0 && result < 0)
		return err_wrap(err, result, "layer sha256:%.12s", pass->blob->hex);
	return n;
}

static void source_close(struct blob_pass *pass)
{
	struct source *s = &pass->source;

	pthread_mutex_lock(&s->lock);
	if (!s->is_ended)
		s->flight.remote->ops->cancel(s->flight.remote, &s->flight.transfer);
	while (!s->is_ended)
		pthread_cond_wait(&s->more, &s->lock);
	pthread_mutex_unlock(&s->lock);
	close_fd(s->fd);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->more);
}

/* ------------------------------------------------------------------ cutting into spans */

static uint32_t cut_target(const struct cutter *c, const struct codec_point *next)
{
	switch (next->kind) {
	case SPAN_DEFLATE:
		return TARGET_GZIP;
	case SPAN_GZIP:
		return TARGET_MEMBER;
	case SPAN_ZSTD:
		return TARGET_ZSTD;
	case SPAN_RAW:
	case SPAN_ZERO:
		break;
	}
	return TARGET_RAW;
}

/* Ends the span under way at @stored_end, the first byte that only the next one needs. */
static int cut_end(struct cutter *c, uint64_t stored_end)
{
	struct span *s = &c->span;
	uint64_t plain_len = c->plain_off - s->plain_off, stored_len = stored_end - s->stored_off;

	c->has_span = false;
	hasher_done(c->hasher, &s->digest);
	if (plain_len == 0)
		return 0;
	if (plain_len > SPAN_LONG || stored_len > SPAN_LONG)
		c->is_long = true;
	if (c->is_long)
		return 0; /* this table will not be used */
	s->plain_len = (uint32_t)plain_len;
	s->stored_len = (uint32_t)stored_len;
	return span_builder_add(c->builder, s, c->point.window);
}

/* At a restart point with @stored_off the next whole byte. */
static int cut_point(struct cutter *c, struct codec_reader *reader, uint64_t stored_off)
{
	struct codec_point next;
	uint64_t plain_len = c->plain_off - c->span.plain_off;

	/* Asking for the point copies 32 KiB: not at each of a thousand blocks. */
	if (c->has_span && plain_len < TARGET_MEMBER)
		return 0;
	int r = codec_reader_point(reader, &next);
	if (r < 0)
		return r;
	if (c->has_span && plain_len < cut_target(c, &next))
		return 0;
	if (c->has_span)
		r = cut_end(c, stored_off);
	c->point = next;
	c->span = (struct span){
		.stored_off = stored_off - (next.bits != 0),
		.plain_off = c->plain_off,
		.kind = (uint8_t)next.kind,
		.check = SPAN_CHECK_PLAIN,
		.bits = next.bits,
		.window_len = next.window_len,
	};
	c->has_span = true;
	return r;
}

/* ------------------------------------------------------------------ the pass */

static int pass_prepare(struct blob_pass *pass, struct err *err)
{
	uint8_t magic[4] = {0};
	int64_t n = source_wait(pass, 0, err);

	/* The format shows in four bytes; a stream may begin with fewer. */
	while (n > 0 && n < 4 && (uint64_t)n < pass->blob->desc.size) {
		int64_t more = source_wait(pass, (uint64_t)n, err);
		n = more <= 0 ? more : n + more;
	}
	if (n < 0)
		return (int)n;
	int r = pread_full(pass->source.fd, magic, (size_t)MIN(n, (int64_t)4), pass->source.base);
	if (r < 0)
		return err_set(err, r, "layer sha256:%s: %s", pass->blob->hex, strerror(-r));
	pass->format = codec_detect(magic, (size_t)MIN(n, (int64_t)4));
	return codec_reader_new(&pass->reader, pass->format);
}

int blob_pass_begin(struct blob_pass **out, struct blob *blob, struct err *err)
{
	scoped(blob_pass_free) struct blob_pass *pass = calloc(1, sizeof(*pass));

	if (!pass)
		return -ENOMEM;
	pass->blob = blob_ref(blob);
	pass->source.fd = -1;
	pass->source.is_ended = true;
	pthread_mutex_init(&pass->source.lock, NULL);
	pthread_cond_init(&pass->source.more, NULL);
	pass->in = malloc(IN_CHUNK);
	pass->out = malloc(OUT_CHUNK);
	pass->stored_hash = hasher_new();
	pass->plain_hash = hasher_new();
	pass->cutter.hasher = hasher_new();
	pass->cutter.builder = span_builder_new();
	if (!pass->in || !pass->out || !pass->stored_hash || !pass->plain_hash ||
	    !pass->cutter.hasher || !pass->cutter.builder)
		return -ENOMEM;
	pass->source.is_ended = false;
	int r = source_open(pass, err);
	if (r < 0)
		pass->source.is_ended = true;
	if (r == 0)
		r = pass_prepare(pass, err);
	if (r < 0)
		return r;
	*out = take(pass);
	return 0;
}

void blob_pass_free(struct blob_pass *pass)
{
	if (!pass)
		return;
	source_close(pass);
	codec_reader_free(pass->reader);
	hasher_free(pass->stored_hash);
	hasher_free(pass->plain_hash);
	hasher_free(pass->cutter.hasher);
	span_builder_free(pass->cutter.builder);
	blob_unref(pass->blob);
	free(pass->in);
	free(pass->out);
	free(pass);
}

uint64_t blob_pass_position(const struct blob_pass *pass)
{
	return __atomic_load_n(&pass->position, __ATOMIC_RELAXED);
}

/* More stored bytes into io: 1, or 0 at the end. */
static int pass_refill(struct blob_pass *pass, struct err *err)
{
	int64_t n = source_wait(pass, pass->stored_off, err);

	if (n <= 0)
		return (int)n;
	n = MIN(n, (int64_t)IN_CHUNK);
	int r = pread_full(pass->source.fd, pass->in, (size_t)n,
			   pass->source.base + pass->stored_off);
	if (r < 0)
		return err_set(err, r, "layer sha256:%s: %s", pass->blob->hex, strerror(-r));
	__atomic_fetch_add(&pass->blob->read, (uint64_t)n, __ATOMIC_RELAXED);
	hasher_add(pass->stored_hash, pass->in, (size_t)n);
	pass->stored_off += (uint64_t)n;
	__atomic_store_n(&pass->position, pass->stored_off, __ATOMIC_RELAXED);
	pass->io.in = pass->in;
	pass->io.n_in = (size_t)n;
	return 1;
}

/* One step of the decoder: what it made is hashed, and a point noted. */
static int pass_step(struct blob_pass *pass, struct err *err)
{
	struct cutter *c = &pass->cutter;
	uint8_t *made = pass->io.out;

	/* A raw tar can be cut anywhere: step by spans, so that they all have the same size. */
	size_t n_out = pass->io.n_out;
	if (pass->format == PLAIN_TAR && c->has_span) {
		uint64_t have = c->plain_off - c->span.plain_off;
		uint64_t left = have < TARGET_RAW ? TARGET_RAW - have : 1;
		pass->io.n_out = MIN((size_t)left, n_out);
	}
	size_t given = pass->io.n_out;
	int r = codec_reader_step(pass->reader, &pass->io, err);
	size_t n = (size_t)(pass->io.out - made);
	pass->io.n_out += n_out - given;
	if (r < 0)
		return err_wrap(err, r, "layer sha256:%s", pass->blob->hex);
	hasher_add(pass->plain_hash, made, n);
	hasher_add(c->hasher, made, n);
	c->plain_off += n;
	if (r == CODEC_POINT) {
		r = cut_point(c, pass->reader, pass->stored_off - pass->io.n_in);
		if (r < 0)
			return err_set(err, r, "layer sha256:%s: span table", pass->blob->hex);
	}
	return 0;
}

int blob_pass_next(struct blob_pass *pass, const void **bytes, size_t *n, struct err *err)
{
	pass->io.out = pass->out;
	pass->io.n_out = OUT_CHUNK;
	/* A raw tar begins with a point that no step has met yet. */
	if (!pass->cutter.has_span && pass->format == PLAIN_TAR) {
		int r = cut_point(&pass->cutter, pass->reader, 0);
		if (r < 0)
			return err_set(err, r, "layer sha256:%s", pass->blob->hex);
	}
	while (pass->io.n_out && !pass->is_at_end) {
		size_t in_before = pass->io.n_in, out_before = pass->io.n_out;
		int r = pass_step(pass, err);
		if (r < 0)
			return r;
		if (pass->io.n_in || in_before != pass->io.n_in || out_before != pass->io.n_out)
			continue;
		r = pass_refill(pass, err);
		if (r < 0)
			return r;
		pass->is_at_end = r == 0;
	}
	*bytes = pass->out;
	*n = OUT_CHUNK - pass->io.n_out;
	return *n > 0;
}

/* ------------------------------------------------------------------ finishing */

static int publish_blob(struct blob_pass *pass, struct err *err)
{
	struct blob *blob = pass->blob;
	scoped(free) char *from = NULL;
	scoped(free) char *to = NULL;

	if (!pass->source.is_stream)
		return 0;
	int r = store_path(blob->store, &from, "partial/%s.stream", blob->hex);
	if (r == 0)
		r = store_path(blob->store, &to, "blobs/sha256/%s", blob->hex);
	if (r < 0)
		return r;
	if (fsync(pass->source.fd) < 0 || rename(from, to) < 0)
		return err_errno(err, "%s", to);
	blob_find_full(blob);
	return 0;
}

/* The digest is wrong. What came, now or earlier, is thrown away, and worth another try. */
static int refuse_blob(struct blob_pass *pass, const struct digest *have, struct err *err)
{
	struct blob *blob = pass->blob;
	char text[DIGEST_TEXT_MAX];
	scoped(free) char *path = NULL;

	if (pass->source.is_stream) {
		if (store_path(blob->store, &path, "partial/%s.stream", blob->hex) == 0)
			unlink(path);
		gc_settle(blob->store->gc, "blobs", blob->hex, 0);
	} else if (blob->is_full_store) {
		store_file_remove(blob->store, "blobs/sha256", blob->hex);
		gc_settle(blob->store->gc, "blobs", blob->hex, 0);
		pthread_mutex_lock(&blob->lock);
		blob->is_full_damaged = true;
		pthread_mutex_unlock(&blob->lock);
	}
	return err_set(err, pass->source.is_stream ? -EAGAIN : -EBADMSG,
		       "layer sha256:%s: the content is %s%s%s", blob->hex, digest_text(have, text),
		       blob->remote ? ", from " : "", blob->remote ? blob->remote->name : "");
}

int blob_pass_blame(struct blob_pass *pass, int result, struct err *err)
{
	struct digest have;
	struct err why = {0};
	int r;

	do
		r = pass_refill(pass, &why);
	while (r > 0);
	if (r < 0) {
		if (err)
			*err = why;
		return r;
	}
	hasher_done(pass->stored_hash, &have);
	return digest_equal(&have, &pass->blob->desc.digest) ? result
							     : refuse_blob(pass, &have, err);
}

/* Writes one frame of the re-framed copy and its span. */
static int add_frame(struct span_builder *b, int fd, const uint8_t *plain, size_t n,
		     uint8_t *packed, uint64_t *stored_off, uint64_t *plain_off)
{
	int64_t len = codec_pack(plain, n, packed, codec_pack_bound(FRAME_SIZE), FRAME_LEVEL);
	int r = len < 0 ? (int)len : write_full(fd, packed, (size_t)len);

	if (r < 0)
		return r;
	struct span span = {
		.stored_off = *stored_off,
		.plain_off = *plain_off,
		.stored_len = (uint32_t)len,
		.plain_len = (uint32_t)n,
		.kind = SPAN_ZSTD,
		.check = SPAN_CHECK_PLAIN,
	};
	digest_bytes(&span.digest, plain, n);
	*stored_off += (uint64_t)len;
	*plain_off += n;
	return span_builder_add(b, &span, NULL);
}

/* Decodes the blob, which is here now, once more and packs it into frames. */
static int write_frames(struct blob_pass *pass, struct span_builder *b, int fd, struct err *err)
{
	scoped(codec_reader_free) struct codec_reader *reader = NULL;
	scoped(free) uint8_t *plain = malloc(FRAME_SIZE);
	scoped(free) uint8_t *packed = malloc(codec_pack_bound(FRAME_SIZE));
	struct codec_io io = {.out = plain, .n_out = FRAME_SIZE};
	uint64_t off = 0, stored_off = 0, plain_off = 0, size = pass->blob->desc.size;
	int r = codec_reader_new(&reader, pass->format);

	if (!plain || !packed)
		r = -ENOMEM;
	while (r == 0) {
		size_t in_before = io.n_in, out_before = io.n_out;
		r = codec_reader_step(reader, &io, err);
		if (r < 0)
			break;
		r = 0;
		bool is_stuck = !io.n_in && in_before == io.n_in && out_before == io.n_out;
		if (io.n_out == 0 || (is_stuck && off == size && io.n_out < FRAME_SIZE)) {
			r = add_frame(b, fd, plain, FRAME_SIZE - io.n_out, packed, &stored_off,
				      &plain_off);
			io.out = plain;
			io.n_out = FRAME_SIZE;
		} else if (is_stuck && off == size) {
			break;
		} else if (is_stuck) {
			size_t n = (size_t)MIN(size - off, (uint64_t)IN_CHUNK);
			r = pread_full(pass->source.fd, pass->in, n, pass->source.base + off);
			off += n;
			io.in = pass->in;
			io.n_in = n;
		}
	}
	if (r == 0 && plain_off != pass->cutter.plain_off)
		r = -EBADMSG;
	return r < 0 ? err_wrap(err, r, "re-framing layer sha256:%s", pass->blob->hex) : 0;
}

static int reframe(struct blob_pass *pass, const char *key, struct span_table **out,
		   struct err *err)
{
	scoped(span_builder_free) struct span_builder *b = span_builder_new();
	struct store *store = pass->blob->store;
	struct store_file file;

	if (!b)
		return -ENOMEM;
	span_builder_set_reframed(b);
	int r = store_file_begin(store, "frames", key, &file, err);
	if (r < 0)
		return r;
	r = write_frames(pass, b, file.fd, err);
	if (r < 0) {
		store_file_abort(store, &file);
		return r;
	}
	r = store_file_commit(store, &file, err);
	return r < 0 ? r : span_builder_commit(b, store, key, out, err);
}

int blob_pass_finish(struct blob_pass *pass, const char *key, struct pass_result *out,
		     struct err *err)
{
	scoped(span_table_unref) struct span_table *table = NULL;
	struct blob *blob = pass->blob;
	struct digest have;

	assert(pass->is_at_end);
	hasher_done(pass->stored_hash, &have);
	if (!digest_equal(&have, &blob->desc.digest) || pass->stored_off != blob->desc.size)
		return refuse_blob(pass, &have, err);
	int r = codec_reader_end(pass->reader, err);
	if (r < 0)
		return err_wrap(err, r, "layer sha256:%s", blob->hex);
	if (pass->cutter.has_span)
		r = cut_end(&pass->cutter, pass->stored_off);
	if (r == 0)
		r = publish_blob(pass, err);
	if (r < 0)
		return r;
	hasher_done(pass->plain_hash, &out->diff_id);
	out->plain_size = pass->cutter.plain_off;
	out->format = pass->format;
	r = pass->cutter.is_long
		    ? reframe(pass, key, &table, err)
		    : span_builder_commit(pass->cutter.builder, blob->store, key, &table, err);
	return r < 0 ? r : blob_set_spans(blob, table, key, err);
}
