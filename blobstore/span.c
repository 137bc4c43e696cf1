/* SPDX-License-Identifier: Apache-2.0 */

/*
 * span: tables of spans, the one place where plain and stored offsets meet.
 *
 * The file "spans/<key>" is the table as it lies in memory, for mmap (little-endian):
 *
 *	0	magic "llbspan1"
 *	8	u64 number of spans
 *	16	u64 plain size
 *	24	u64 offset of the window area, u64 its length
 *	40	u32 flags (1 = stored offsets mean the re-framed copy "frames/<key>"), u32 zero
 *	48	u64 zero, u64 zero
 *	64	the spans, 80 bytes each (struct span)
 *	...	the window area: history of deflate checkpoints, each one zstd frame
 *
 * A table of a large layer has 100,000 spans and is mapped at every mount, so nothing is checked
 * as a whole when it is opened: each span is checked when it is taken out. A damaged table can
 * make a read fail, never give a wrong byte: what is decoded is checked against the digest.
 */

#include "blobstore/blobstore-internal.h"

#include <assert.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define SPAN_MAGIC "llbspan1"
#define SPAN_REFRAMED 1u

struct span_header {
	char magic[8];
	uint64_t n, plain_size;
	uint64_t window_off, window_len;
	uint32_t flags, zero;
	uint64_t zeros[2];
};
static_assert(sizeof(struct span_header) == 64, "the file format");
static_assert(sizeof(struct span) == 80, "the file format");

struct span_table {
	int n_refs;
	const uint8_t *bytes;
	size_t len;
	bool is_mapped; /* else borrowed */
	struct span_header header;
};

struct span_table *span_table_ref(struct span_table *t)
{
	__atomic_fetch_add(&t->n_refs, 1, __ATOMIC_RELAXED);
	return t;
}

struct span_table *span_table_unref(struct span_table *t)
{
	if (t && __atomic_sub_fetch(&t->n_refs, 1, __ATOMIC_ACQ_REL) == 0) {
		if (t->is_mapped)
			munmap((void *)t->bytes, t->len);
		free(t);
	}
	return NULL;
}

int span_table_parse(struct span_table **out, const void *bytes, size_t n, struct err *err)
{
	struct span_header h;

	if (n < sizeof(h))
		return err_set(err, -EBADMSG, "span table: too short");
	memcpy(&h, bytes, sizeof(h));
	if (memcmp(h.magic, SPAN_MAGIC, 8) != 0)
		return err_set(err, -EBADMSG, "span table: not one of this version");
	if (h.n > (n - sizeof(h)) / sizeof(struct span) || h.window_off > n ||
	    h.window_len > n - h.window_off)
		return err_set(err, -EBADMSG, "span table: cut off");
	struct span_table *t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	*t = (struct span_table){.n_refs = 1, .bytes = bytes, .len = n, .header = h};
	*out = t;
	return 0;
}

int span_table_open(struct span_table **out, struct store *store, const char *key, struct err *err)
{
	int opened = -1;
	int r = store_file_open(store, "spans", key, &opened);
	if (r < 0)
		return err_set(err, r, "span table %s: %s", key, strerror(-r));
	scoped(close_fd) int fd = opened;
	struct stat st;
	if (fstat(fd, &st) < 0)
		return err_errno(err, "span table %s", key);
	void *map = MAP_FAILED;
	if (st.st_size > 0)
		map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	r = map == MAP_FAILED ? -EBADMSG : span_table_parse(out, map, (size_t)st.st_size, err);
	if (r < 0) {
		if (map != MAP_FAILED)
			munmap(map, (size_t)st.st_size);
		if (r == -EBADMSG)
			store_file_remove(store, "spans", key);
		return err_wrap(err, r, "span table %s", key);
	}
	(*out)->is_mapped = true;
	return 0;
}

size_t span_table_count(const struct span_table *t)
{
	return t->header.n;
}

uint64_t span_table_plain_size(const struct span_table *t)
{
	return t->header.plain_size;
}

bool span_table_is_reframed(const struct span_table *t)
{
	return t->header.flags & SPAN_REFRAMED;
}

static const struct span *span_at(const struct span_table *t, size_t i)
{
	return (const struct span *)(t->bytes + sizeof(struct span_header)) + i;
}

int span_table_get(const struct span_table *t, size_t i, struct span *out)
{
	if (i >= t->header.n)
		return -EBADMSG;
	*out = *span_at(t, i);
	bool is_sane = out->kind <= SPAN_ZERO && out->check <= SPAN_CHECK_STORED && out->bits < 8 &&
		       out->plain_len <= SPAN_PLAIN_MAX && out->inner_off <= SPAN_PLAIN_MAX &&
		       out->plain_off <= t->header.plain_size &&
		       out->plain_len <= t->header.plain_size - out->plain_off &&
		       out->stored_off <= (uint64_t)INT64_MAX - out->stored_len && out->window_len <= 32768 &&
		       out->window_off <= t->header.window_len &&
		       out->window_packed <= t->header.window_len - out->window_off;
	return is_sane ? 0 : -EBADMSG;
}

size_t span_table_find(const struct span_table *t, uint64_t plain_off)
{
	size_t lo = 0, hi = t->header.n;

	if (plain_off >= t->header.plain_size)
		return hi;
	/* The last span that begins at or before plain_off. Empty spans share their successor's
	 * offset and are passed over. */
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (span_at(t, mid)->plain_off <= plain_off)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo ? lo - 1 : t->header.n;
}

int span_table_window(const struct span_table *t, const struct span *span, void *window)
{
	if (!span->window_len)
		return 0;
	return codec_unpack(t->bytes + t->header.window_off + span->window_off, span->window_packed,
			    window, span->window_len);
}

/* ------------------------------------------------------------------ building */

struct span_builder {
	vec(struct span) spans;
	struct strbuf windows;
	uint64_t plain_size;
	uint32_t flags;
};

struct span_builder *span_builder_new(void)
{
	return calloc(1, sizeof(struct span_builder));
}

void span_builder_free(struct span_builder *b)
{
	if (!b)
		return;
	vec_free(&b->spans);
	strbuf_free(&b->windows);
	free(b);
}

void span_builder_set_reframed(struct span_builder *b)
{
	b->flags |= SPAN_REFRAMED;
}

static int pack_window(struct span_builder *b, struct span *span, const void *window)
{
	char packed[33000 + 512];
	assert(codec_pack_bound(32768) <= sizeof(packed));

	int64_t n = codec_pack(window, span->window_len, packed, sizeof(packed), 3);
	if (n < 0)
		return (int)n;
	span->window_off = b->windows.len;
	span->window_packed = (uint32_t)n;
	strbuf_add(&b->windows, packed, (size_t)n);
	return b->windows.failed ? -ENOMEM : 0;
}

int span_builder_add(struct span_builder *b, const struct span *span, const void *window)
{
	assert(span->plain_off == b->plain_size && span->plain_len <= SPAN_PLAIN_MAX);
	assert(!span->window_len || window);

	struct span *slot = vec_push(&b->spans);
	if (!slot)
		return -ENOMEM;
	*slot = *span;
	slot->reserved = 0;
	slot->window_off = slot->window_packed = 0;
	b->plain_size += span->plain_len;
	return span->window_len ? pack_window(b, slot, window) : 0;
}

int span_builder_commit(struct span_builder *b, struct store *store, const char *key,
			struct span_table **out, struct err *err)
{
	struct store_file file;
	int r = store_file_begin(store, "spans", key, &file, err);
	if (r < 0)
		return r;

	size_t n_spans = b->spans.n * sizeof(struct span);
	struct span_header h = {
		.n = b->spans.n,
		.plain_size = b->plain_size,
		.window_off = sizeof(h) + n_spans,
		.window_len = b->windows.len,
		.flags = b->flags,
	};
	memcpy(h.magic, SPAN_MAGIC, 8);
	r = write_full(file.fd, &h, sizeof(h));
	if (r == 0)
		r = write_full(file.fd, b->spans.items, n_spans);
	if (r == 0)
		r = write_full(file.fd, b->windows.data, b->windows.len);
	if (r < 0) {
		store_file_abort(store, &file);
		return err_set(err, r, "span table %s: %s", key, strerror(-r));
	}
	r = store_file_commit(store, &file, err);
	return r < 0 ? r : span_table_open(out, store, key, err);
}
