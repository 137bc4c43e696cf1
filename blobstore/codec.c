/* SPDX-License-Identifier: Apache-2.0 */

/*
 * codec: gzip and zstd, in two shapes. The only user of zlib, zstd and ISA-L.
 *
 * A codec_reader goes through a whole stream once and stops at every place from which decoding
 * could begin again: for gzip the start of a member (nothing else needed) or the end of a deflate
 * block (needs the unused bits of the last byte and up to 32 KiB of history, as zlib's own zran
 * example does it); for zstd the start of a frame, which is all that its public API allows.
 *
 * codec_decode decodes one span from such a place, entirely in memory. With ISA-L present, the
 * ordinary case of one member is inflated by it; whatever it does not finish is done by zlib.
 *
 * Plain tars go through the same calls, so that the pass over a layer has one shape.
 */

#include "blobstore/blobstore-internal.h"

#include <zlib.h>
#include <zstd.h>
#if HAVE_ISAL
#include <isa-l/igzip_lib.h>
#endif

/* Window of a zstd frame that is accepted: 128 MiB, zstd's own default. */
#define ZSTD_WINDOW_LOG_MAX 27

enum plain_format codec_detect(const void *bytes, size_t n)
{
	const uint8_t *b = bytes;

	if (n >= 2 && b[0] == 0x1f && b[1] == 0x8b)
		return PLAIN_GZIP;
	if (n >= 4 && (le32(b) == 0xfd2fb528 || (le32(b) & 0xfffffff0) == 0x184d2a50))
		return PLAIN_ZSTD;
	return PLAIN_TAR;
}

/* ------------------------------------------------------------------ a whole stream */

struct codec_reader {
	enum plain_format format;
	z_stream z;
	bool has_z;
	bool in_member; /* gzip: between a member's header and its trailer */
	bool is_done;	/* nothing after this is part of the stream */
	ZSTD_DStream *zstd;
	bool in_frame;	    /* zstd */
	uint64_t n_members; /* complete ones */
};

int codec_reader_new(struct codec_reader **out, enum plain_format format)
{
	struct codec_reader *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->format = format;
	if (format == PLAIN_GZIP) {
		r->has_z = inflateInit2(&r->z, 15 + 16) == Z_OK;
		if (!r->has_z)
			goto no_memory;
	} else if (format == PLAIN_ZSTD) {
		r->zstd = ZSTD_createDStream();
		if (!r->zstd)
			goto no_memory;
		ZSTD_DCtx_setParameter(r->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
	}
	*out = r;
	return 0;
no_memory:
	codec_reader_free(r);
	return -ENOMEM;
}

void codec_reader_free(struct codec_reader *r)
{
	if (!r)
		return;
	if (r->has_z)
		inflateEnd(&r->z);
	ZSTD_freeDStream(r->zstd);
	free(r);
}

/* gzip tools pad with zeros or leave garbage behind; both end the stream, as gzip(1) has it. */
static int gzip_next_member(struct codec_reader *r, struct codec_io *io)
{
	if (!io->n_in)
		return CODEC_MORE;
	if (io->in[0] != 0x1f) {
		r->is_done = true;
		return CODEC_MORE;
	}
	inflateReset2(&r->z, 15 + 16);
	r->in_member = true;
	return CODEC_POINT;
}

static int gzip_step(struct codec_reader *r, struct codec_io *io, struct err *err)
{
	if (!r->in_member)
		return gzip_next_member(r, io);

	r->z.next_in = (Bytef *)io->in;
	r->z.avail_in = (uInt)MIN(io->n_in, (size_t)1 << 30);
	r->z.next_out = io->out;
	r->z.avail_out = (uInt)MIN(io->n_out, (size_t)1 << 30);
	int z = inflate(&r->z, Z_BLOCK);
	size_t used = (size_t)(r->z.next_in - io->in), made = (size_t)(r->z.next_out - io->out);
	io->in += used;
	io->n_in -= used;
	io->out += made;
	io->n_out -= made;

	if (z == Z_STREAM_END) {
		r->in_member = false;
		r->n_members++;
		return CODEC_MORE;
	}
	if (z != Z_OK && z != Z_BUF_ERROR) {
		if (r->n_members && z == Z_DATA_ERROR && r->z.total_out == 0) {
			/* Not a member after all: garbage that begins with 1f. */
			r->in_member = false;
			r->is_done = true;
			return CODEC_MORE;
		}
		return err_set(err, -EBADMSG, "gzip: %s", r->z.msg ? r->z.msg : "damaged");
	}
	/* Bit 7: at the end of a block or of the header; bit 6: that was the last block. */
	return (r->z.data_type & 0xc0) == 0x80 ? CODEC_POINT : CODEC_MORE;
}

static int zstd_step(struct codec_reader *r, struct codec_io *io, struct err *err)
{
	if (!r->in_frame) {
		if (!io->n_in)
			return CODEC_MORE;
		r->in_frame = true;
		return CODEC_POINT;
	}
	ZSTD_inBuffer in = {io->in, io->n_in, 0};
	ZSTD_outBuffer out = {io->out, io->n_out, 0};
	size_t left = ZSTD_decompressStream(r->zstd, &out, &in);
	io->in += in.pos;
	io->n_in -= in.pos;
	io->out += out.pos;
	io->n_out -= out.pos;
	if (ZSTD_isError(left))
		return err_set(err, -EBADMSG, "zstd: %s", ZSTD_getErrorName(left));
	if (left == 0) {
		r->in_frame = false;
		r->n_members++;
	}
	return CODEC_MORE;
}

int codec_reader_step(struct codec_reader *r, struct codec_io *io, struct err *err)
{
	if (r->is_done) {
		io->in += io->n_in;
		io->n_in = 0;
		return CODEC_MORE;
	}
	if (r->format == PLAIN_GZIP)
		return gzip_step(r, io, err);
	if (r->format == PLAIN_ZSTD)
		return zstd_step(r, io, err);

	size_t n = MIN(io->n_in, io->n_out);
	if (n)
		memcpy(io->out, io->in, n);
	io->in += n;
	io->n_in -= n;
	io->out += n;
	io->n_out -= n;
	return CODEC_POINT;
}

int codec_reader_end(const struct codec_reader *r, struct err *err)
{
	if (r->format == PLAIN_TAR || (!r->in_member && !r->in_frame && r->n_members))
		return 0;
	return err_set(err, -EBADMSG, "%s: the stream ends too early",
		       r->format == PLAIN_GZIP ? "gzip" : "zstd");
}

int codec_reader_point(struct codec_reader *r, struct codec_point *out)
{
	*out = (struct codec_point){.kind = SPAN_RAW};
	if (r->format == PLAIN_ZSTD)
		out->kind = SPAN_ZSTD;
	if (r->format != PLAIN_GZIP)
		return 0;
	/* Right at a member's start, before its header has been read. */
	if (r->z.total_in == 0) {
		out->kind = SPAN_GZIP;
		return 0;
	}
	uInt n = 0;
	if (inflateGetDictionary(&r->z, out->window, &n) != Z_OK)
		return -EINVAL;
	out->kind = SPAN_DEFLATE;
	out->bits = (uint8_t)(r->z.data_type & 7);
	out->window_len = n;
	return 0;
}

/* ------------------------------------------------------------------ a stream in the making */

struct codec_writer {
	enum plain_format format;
	z_stream z;
	bool has_z;
	ZSTD_CStream *zstd;
};

static int gzip_begin(struct codec_writer *w, int level)
{
	/* As Go's: no name, no time, and the system is not told. */
	static gz_header header = {.os = 255};

	w->has_z = deflateInit2(&w->z, level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK;
	return w->has_z && deflateSetHeader(&w->z, &header) == Z_OK ? 0 : -ENOMEM;
}

static int zstd_begin(struct codec_writer *w, int level)
{
	w->zstd = ZSTD_createCStream();
	if (!w->zstd)
		return -ENOMEM;
	ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, level);
	ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_checksumFlag, 1);
	return 0;
}

int codec_writer_new(struct codec_writer **out, enum plain_format format, int level)
{
	scoped(codec_writer_free) struct codec_writer *w = calloc(1, sizeof(*w));
	int r = w ? 0 : -ENOMEM;

	if (r == 0 && format == PLAIN_GZIP)
		r = gzip_begin(w, level);
	else if (r == 0 && format == PLAIN_ZSTD)
		r = zstd_begin(w, level);
	if (r < 0)
		return r;
	w->format = format;
	*out = take(w);
	return 0;
}

void codec_writer_free(struct codec_writer *w)
{
	if (!w)
		return;
	if (w->has_z)
		deflateEnd(&w->z);
	ZSTD_freeCStream(w->zstd);
	free(w);
}

static int gzip_write(struct codec_writer *w, struct codec_io *io, bool is_end)
{
	w->z.next_in = (Bytef *)io->in;
	w->z.avail_in = (uInt)MIN(io->n_in, (size_t)1 << 30);
	w->z.next_out = io->out;
	w->z.avail_out = (uInt)MIN(io->n_out, (size_t)1 << 30);
	int z = deflate(&w->z, is_end ? Z_FINISH : Z_NO_FLUSH);
	size_t used = (size_t)(w->z.next_in - io->in), made = (size_t)(w->z.next_out - io->out);
	io->in += used;
	io->n_in -= used;
	io->out += made;
	io->n_out -= made;
	return z == Z_STREAM_END ? 1 : z == Z_OK || z == Z_BUF_ERROR ? 0 : -EIO;
}

static int zstd_write(struct codec_writer *w, struct codec_io *io, bool is_end)
{
	ZSTD_inBuffer in = {io->in, io->n_in, 0};
	ZSTD_outBuffer out = {io->out, io->n_out, 0};
	size_t left =
		ZSTD_compressStream2(w->zstd, &out, &in, is_end ? ZSTD_e_end : ZSTD_e_continue);

	io->in += in.pos;
	io->n_in -= in.pos;
	io->out += out.pos;
	io->n_out -= out.pos;
	return ZSTD_isError(left) ? -EIO : is_end && left == 0;
}

int codec_writer_step(struct codec_writer *w, struct codec_io *io, bool is_end)
{
	if (w->format == PLAIN_GZIP)
		return gzip_write(w, io, is_end);
	if (w->format == PLAIN_ZSTD)
		return zstd_write(w, io, is_end);
	size_t n = MIN(io->n_in, io->n_out);
	if (n)
		memcpy(io->out, io->in, n);
	io->in += n;
	io->n_in -= n;
	io->out += n;
	io->n_out -= n;
	return is_end && io->n_in == 0;
}

/* ------------------------------------------------------------------ one span */

/* Where decoded bytes go: @skip of them are dropped first, then @len are kept. */
struct sink {
	uint8_t *dst;
	size_t skip, len, done;
};

/* Inflates into @s, through scrap space while bytes are to be dropped. */
static int inflate_some(z_stream *z, struct sink *s)
{
	uint8_t scrap[16384];
	int r;

	if (s->skip) {
		z->next_out = scrap;
		z->avail_out = (uInt)MIN(s->skip, sizeof(scrap));
		uInt before = z->avail_out;
		r = inflate(z, Z_NO_FLUSH);
		s->skip -= before - z->avail_out;
		return r;
	}
	z->next_out = s->dst + s->done;
	z->avail_out = (uInt)(s->len - s->done);
	uInt before = z->avail_out;
	r = inflate(z, Z_NO_FLUSH);
	s->done += before - z->avail_out;
	return r;
}

/* After a member's end: over the trailer, which raw mode leaves unread, to the next header. */
static bool next_member(z_stream *z, bool *is_raw)
{
	if (*is_raw) {
		if (z->avail_in < 8)
			return false;
		z->next_in += 8;
		z->avail_in -= 8;
		*is_raw = false;
		inflateReset2(z, 15 + 16);
	} else {
		inflateReset(z);
	}
	return z->avail_in > 0;
}

static int zlib_decode(const struct span *span, const uint8_t *stored, const void *window,
		       struct sink *s)
{
	bool is_raw = span->kind == SPAN_DEFLATE;
	z_stream z = {0};
	int result = -EBADMSG;

	if (inflateInit2(&z, is_raw ? -15 : 15 + 16) != Z_OK)
		return -ENOMEM;
	z.next_in = (Bytef *)stored;
	z.avail_in = span->stored_len;
	if (is_raw && span->bits) {
		if (!z.avail_in ||
		    inflatePrime(&z, span->bits, stored[0] >> (8 - span->bits)) != Z_OK)
			goto end;
		z.next_in++;
		z.avail_in--;
	}
	if (is_raw && span->window_len &&
	    inflateSetDictionary(&z, window, span->window_len) != Z_OK)
		goto end;
	while (s->done < s->len) {
		uInt in_before = z.avail_in;
		size_t out_before = s->done, skip_before = s->skip;
		int r = inflate_some(&z, s);
		if (r == Z_STREAM_END) {
			if (s->done < s->len && !next_member(&z, &is_raw))
				goto end;
			continue;
		}
		if (r != Z_OK && r != Z_BUF_ERROR)
			goto end;
		if (z.avail_in == in_before && s->done == out_before && s->skip == skip_before)
			goto end; /* no progress: the stored bytes end too early */
	}
	result = 0;
end:
	inflateEnd(&z);
	return result;
}

#if HAVE_ISAL
/* True when all of it was decoded; anything unusual (several members, damage) is left to zlib. */
static bool isal_decode(const struct span *span, const uint8_t *stored, const void *window,
			uint8_t *dst, size_t len)
{
	struct inflate_state *z = malloc(sizeof(*z));
	bool is_whole = false;

	if (!z)
		return false;
	isal_inflate_init(z);
	z->next_in = (uint8_t *)stored;
	z->avail_in = span->stored_len;
	z->next_out = dst;
	z->avail_out = (uint32_t)len;
	if (span->kind == SPAN_GZIP) {
		z->crc_flag = ISAL_GZIP;
	} else {
		z->crc_flag = ISAL_DEFLATE;
		if (span->bits) {
			z->read_in = stored[0] >> (8 - span->bits);
			z->read_in_length = span->bits;
			z->next_in++;
			z->avail_in--;
		}
		if (span->window_len &&
		    isal_inflate_set_dict(z, (uint8_t *)window, span->window_len) != COMP_OK)
			goto end;
	}
	int r = isal_inflate(z);
	is_whole = (r == ISAL_DECOMP_OK || r == ISAL_OUT_OVERFLOW) && z->avail_out == 0;
end:
	free(z);
	return is_whole;
}
#endif

static int gzip_decode(const struct span *span, const uint8_t *stored, const void *window,
		       struct sink *s)
{
#if HAVE_ISAL
	if (span->stored_len > 1 && s->skip == 0 &&
	    isal_decode(span, stored, window, s->dst, s->len))
		return 0;
#endif
	return zlib_decode(span, stored, window, s);
}

static int zstd_decode(const struct span *span, const uint8_t *stored, struct sink *s)
{
	uint8_t scrap[16384];
	ZSTD_DStream *z = ZSTD_createDStream();
	ZSTD_inBuffer in = {stored, span->stored_len, 0};
	int result = -EBADMSG;

	if (!z)
		return -ENOMEM;
	ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
	while (s->done < s->len) {
		size_t in_before = in.pos;
		ZSTD_outBuffer out = {s->dst, s->len, s->done};
		if (s->skip)
			out = (ZSTD_outBuffer){scrap, MIN(s->skip, sizeof(scrap)), 0};
		size_t out_before = out.pos;
		size_t left = ZSTD_decompressStream(z, &out, &in);
		if (ZSTD_isError(left) || (in.pos == in_before && out.pos == out_before))
			goto end;
		if (s->skip)
			s->skip -= out.pos;
		else
			s->done = out.pos;
	}
	result = 0;
end:
	ZSTD_freeDStream(z);
	return result;
}

int codec_decode(const struct span *span, const void *stored, const void *window, size_t from,
		 void *dst, size_t len, struct err *err)
{
	struct sink s = {.dst = dst, .skip = from, .len = len};
	int r = -EBADMSG;

	switch ((enum span_kind)span->kind) {
	case SPAN_RAW:
		if (from + len <= span->stored_len) {
			memcpy(dst, (const uint8_t *)stored + from, len);
			r = 0;
		}
		break;
	case SPAN_GZIP:
	case SPAN_DEFLATE:
		r = gzip_decode(span, stored, window, &s);
		break;
	case SPAN_ZSTD:
		r = zstd_decode(span, stored, &s);
		break;
	case SPAN_ZERO:
		memset(dst, 0, len);
		r = 0;
		break;
	}
	return r < 0 ? err_set(err, r, "stored bytes at %llu do not decode",
			       (unsigned long long)span->stored_off)
		     : 0;
}

/* ------------------------------------------------------------------ small things */

int codec_gunzip_member(const void *in, size_t n, size_t max, struct strbuf *out, struct err *err)
{
	z_stream z = {0};
	int result = 0;

	if (n > UINT32_MAX)
		return err_set(err, -EFBIG, "gzip: %zu bytes are too many", n);
	if (inflateInit2(&z, 15 + 16) != Z_OK)
		return -ENOMEM;
	z.next_in = (Bytef *)in;
	z.avail_in = (uInt)n;
	for (int r = Z_OK; r != Z_STREAM_END;) {
		uint8_t buf[65536];
		z.next_out = buf;
		z.avail_out = sizeof(buf);
		r = inflate(&z, Z_NO_FLUSH);
		size_t made = sizeof(buf) - z.avail_out;
		if ((r != Z_OK && r != Z_STREAM_END) || (r == Z_OK && !made && !z.avail_in)) {
			result = err_set(err, -EBADMSG, "gzip: %s", z.msg ? z.msg : "damaged");
			break;
		}
		if (made > max - MIN(max, out->len)) {
			result = err_set(err, -EFBIG, "gzip: more than %zu bytes", max);
			break;
		}
		strbuf_add(out, buf, made);
	}
	inflateEnd(&z);
	return result ? result : out->failed ? -ENOMEM : 0;
}

size_t codec_pack_bound(size_t n)
{
	return ZSTD_compressBound(n);
}

int64_t codec_pack(const void *in, size_t n, void *out, size_t max, int level)
{
	size_t r = ZSTD_compress(out, max, in, n, level);

	return ZSTD_isError(r) ? -ENOMEM : (int64_t)r;
}

int codec_unpack(const void *in, size_t n, void *out, size_t len)
{
	size_t r = ZSTD_decompress(out, len, in, n);

	return ZSTD_isError(r) || r != len ? -EBADMSG : 0;
}
