/* SPDX-License-Identifier: Apache-2.0 */

/*
 * toc_json: the table of contents of an eStargz layer, read into an index and a span table.
 *
 * An eStargz blob is a gzip of many members. It ends in a footer, an empty gzip member whose extra
 * field holds the offset of the table of contents:
 *
 *	eStargz    51 bytes: 10 header, u16 XLEN = 26, "SG", u16 22, 16 hex digits, "STARGZ", 13 more
 *	legacy     47 bytes: the same without "SG" and its length, XLEN = 22
 *	external   46 bytes: XLEN = 21, "SG", u16 17, "STARGZEXTERNALTOC"; the table is elsewhere
 *
 * The table is JSON in a tar in a gzip member:
 *
 *	{"version": 1, "entries": [{"name": …, "type": "reg", "size": …, "offset": …, …}, …]}
 *
 * A file of several chunks is a "reg" entry, which describes its first chunk, and "chunk" entries
 * that follow it. A chunk is (offset of its member in the blob, innerOffset in what the member
 * decodes to, chunkSize; 0 means: up to the end of the file). How long a member is stands nowhere:
 * it reaches to the next larger offset of any chunk, and the last one to the table.
 *
 * The table can be 150 MiB with half a million entries. As a tree of JSON values that would take
 * gigabytes, so only the outermost object and its array are walked here by hand, and each entry is
 * parsed by itself. Everything has been checked against the manifest's digest by then, which
 * makes it complete, not harmless: all numbers are still bounded.
 */

#include "merge/merge.h"

#include <jansson.h>
#include <stdio.h>
#include <time.h>

#include "merge/merge-internal.h"

/* A member is fetched and decoded whole. Chunks decode to at most 64 MiB; bytes that hardly compress
 * are a little longer when stored, and headers without content may follow. */
#define STORED_MAX (2ull * SPAN_PLAIN_MAX)

/* ------------------------------------------------------------------ the footer */

static int hex_u64(const uint8_t *digits, uint64_t *out)
{
	*out = 0;
	for (size_t i = 0; i < 16; i++) {
		uint8_t c = digits[i];
		unsigned d = c >= '0' && c <= '9'   ? c - '0' + 0u
			     : c >= 'a' && c <= 'f' ? c - 'a' + 10u
			     : c >= 'A' && c <= 'F' ? c - 'A' + 10u
						    : 16;
		if (d == 16)
			return -EINVAL;
		*out = *out << 4 | d;
	}
	return 0;
}

static bool is_footer_header(const uint8_t *f, unsigned xlen)
{
	return f[0] == 0x1f && f[1] == 0x8b && f[2] == 8 && f[3] & 4 && le16(f + 10) == xlen;
}

static bool is_subfield(const uint8_t *f, unsigned len)
{
	return f[12] == 'S' && f[13] == 'G' && le16(f + 14) == len;
}

enum toc_kind toc_footer(const void *tail, size_t n, uint64_t blob_size, uint64_t *toc_off)
{
	const uint8_t *end = (const uint8_t *)tail + n;
	const uint8_t *digits = NULL;
	enum toc_kind kind = TOC_NONE;
	uint64_t footer_len = 0;

	if (n >= 51 && is_footer_header(end - 51, 26) && is_subfield(end - 51, 22)) {
		footer_len = 51;
		digits = end - 51 + 16;
		kind = TOC_ESTARGZ;
	} else if (n >= 47 && is_footer_header(end - 47, 22)) {
		footer_len = 47;
		digits = end - 47 + 12;
		kind = TOC_LEGACY;
	} else if (n >= 46 && is_footer_header(end - 46, 21) && is_subfield(end - 46, 17) &&
		   memcmp(end - 46 + 16, "STARGZEXTERNALTOC", 17) == 0) {
		return TOC_EXTERNAL;
	}
	if (!digits || memcmp(digits + 16, "STARGZ", 6) != 0 || hex_u64(digits, toc_off) < 0 ||
	    *toc_off >= blob_size - footer_len)
		return TOC_NONE;
	return kind;
}

/* ------------------------------------------------------------------ values of an entry */

struct toc {
	struct index_builder *builder;
	uint64_t toc_off;
	uint64_t plain_end; /* of the plain space so far */
	uint64_t prefetch_bytes;
	/* the file whose chunks are being read */
	uint64_t file_size, file_end; /* file_end: how much of it the chunks cover */
	uint64_t n_chunks;	      /* of this file */
	bool has_digest;
	struct digest digest;
	/* all chunks so far; stored_len comes at the end */
	vec(struct span) chunks;
	vec(struct index_xattr) xattrs;
};

static int bad(struct err *err, const char *what)
{
	return err_set(err, -EBADMSG, "table of contents: %s", what);
}

static int take_u64(const json_t *o, const char *key, uint64_t max, uint64_t *out, struct err *err)
{
	const json_t *v = json_object_get(o, key);

	*out = 0;
	if (!v || json_is_null(v))
		return 0;
	json_int_t n = json_is_integer(v) ? json_integer_value(v) : -1;
	if (n < 0 || (uint64_t)n > max)
		return err_set(err, -EBADMSG, "table of contents: %s out of range", key);
	*out = (uint64_t)n;
	return 0;
}

static int take_u32(const json_t *o, const char *key, uint32_t *out, struct err *err)
{
	uint64_t n;
	int r = take_u64(o, key, UINT32_MAX, &n, err);

	*out = (uint32_t)n;
	return r;
}

/* "" when it is missing. */
static int take_text(const json_t *o, const char *key, const char **out, struct err *err)
{
	const json_t *v = json_object_get(o, key);

	*out = "";
	if (!v || json_is_null(v))
		return 0;
	*out = json_string_value(v);
	return *out ? 0 : err_set(err, -EBADMSG, "table of contents: %s is no text", key);
}

static int take_digest(const json_t *o, const char *key, struct digest *out, bool *has,
		       struct err *err)
{
	const char *text;
	int r = take_text(o, key, &text, err);

	*has = r == 0 && *text;
	return *has ? digest_parse(out, text, err) : r;
}

/* A fraction of a second: "." and digits, moved over. */
static const char *take_fraction(const char *p, uint32_t *ns)
{
	uint32_t scale = (uint32_t)NS_PER_S / 10;

	*ns = 0;
	if (*p != '.')
		return p;
	for (p++; *p >= '0' && *p <= '9'; p++, scale /= 10)
		*ns += (uint32_t)(*p - '0') * scale;
	return p;
}

/* RFC 3339; nothing at all is time 0. */
static int take_time(const char *text, int64_t *s, uint32_t *ns, struct err *err)
{
	struct tm tm = {0};
	int n = 0, hours, minutes;
	char sign;

	*s = 0;
	*ns = 0;
	if (!*text)
		return 0;
	if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
		   &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &n) != 6)
		return bad(err, "a time that is none");
	const char *p = take_fraction(text + n, ns);
	int64_t offset = 0;
	if (sscanf(p, "%c%2d:%2d", &sign, &hours, &minutes) == 3 && (sign == '+' || sign == '-'))
		offset = (hours * 60 + minutes) * (sign == '-' ? -60 : 60);
	else if (strcmp(p, "Z") != 0)
		return bad(err, "a time without its zone");
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	*s = timegm(&tm) - offset;
	return 0;
}

static void free_xattrs(struct toc *t)
{
	for (size_t i = 0; i < t->xattrs.n; i++)
		free((void *)t->xattrs.items[i].value);
	t->xattrs.n = 0;
}

static int take_xattrs(struct toc *t, json_t *o, struct index_item *item, struct err *err)
{
	json_t *all = json_object_get(o, "xattrs"), *v;
	const char *name;

	free_xattrs(t);
	if (!all || json_is_null(all))
		return 0;
	if (!json_is_object(all))
		return bad(err, "xattrs are no object");
	json_object_foreach(all, name, v)
	{
		uint8_t *value = NULL;
		size_t len = 0;
		const char *text = json_is_null(v) ? "" : json_string_value(v);
		if (!text || base64_decode(text, strlen(text), &value, &len) < 0)
			return bad(err, "an xattr is not base64");
		struct index_xattr *x = vec_push(&t->xattrs);
		if (!x) {
			free(value);
			return err_set(err, -ENOMEM, "table of contents: no memory");
		}
		*x = (struct index_xattr){.name = name, .value = value, .len = len};
	}
	item->xattrs = t->xattrs.items;
	item->n_xattrs = t->xattrs.n;
	return 0;
}

/* ------------------------------------------------------------------ chunks */

/* The file before must be complete when another entry begins. */
static int end_file(struct toc *t, struct err *err)
{
	return t->file_end == t->file_size ? 0 : bad(err, "the chunks of a file do not cover it");
}

/* Where a chunk's bytes are; what they must be is in @digest. */
static int add_chunk(struct toc *t, const json_t *o, uint64_t len, const struct digest *digest,
		     struct err *err)
{
	uint64_t off, inner;
	int r = take_u64(o, "offset", INT64_MAX, &off, err);

	if (r == 0)
		r = take_u64(o, "innerOffset", INT64_MAX, &inner, err);
	if (r < 0)
		return r;
	if (off >= t->toc_off)
		return bad(err, "a chunk lies behind the table");
	if (len > SPAN_PLAIN_MAX || inner > SPAN_PLAIN_MAX - len)
		return err_set(err, -ENOTSUP, "table of contents: a chunk of more than 64 MiB");
	if (t->plain_end > INT64_MAX - len)
		return bad(err, "more bytes than there can be");
	struct span *s = vec_push(&t->chunks);
	if (!s)
		return err_set(err, -ENOMEM, "table of contents: no memory");
	*s = (struct span){.stored_off = off,
			   .plain_off = t->plain_end,
			   .plain_len = (uint32_t)len,
			   .inner_off = (uint32_t)inner,
			   .kind = SPAN_GZIP,
			   .check = SPAN_CHECK_PLAIN,
			   .digest = *digest};
	t->plain_end += len;
	t->file_end += len;
	t->n_chunks++;
	return 0;
}

/* A "chunk" entry, or the part of a "reg" entry that is one. */
static int take_chunk(struct toc *t, const json_t *o, struct err *err)
{
	uint64_t off, len;
	struct digest digest;
	bool has_digest = false;
	int r = take_u64(o, "chunkOffset", INT64_MAX, &off, err);

	if (r == 0)
		r = take_u64(o, "chunkSize", INT64_MAX, &len, err);
	if (r == 0)
		r = take_digest(o, "chunkDigest", &digest, &has_digest, err);
	if (r < 0)
		return r;
	uint64_t left = t->file_size - t->file_end;
	if (len == 0)
		len = left;
	if (off != t->file_end || len == 0 || len > left)
		return bad(err, "chunks out of order");
	if (!has_digest) {
		if (len != t->file_size || !t->has_digest)
			return err_set(err, -ENOTSUP, "table of contents: a chunk without digest");
		digest = t->digest;
	}
	return add_chunk(t, o, len, &digest, err);
}

/* ------------------------------------------------------------------ entries */

static int take_type(const char *type)
{
	static const struct {
		const char *name;
		enum node_type type;
	} types[] = {
		{"reg", NODE_FILE},	 {"dir", NODE_DIR},   {"symlink", NODE_SYMLINK},
		{"hardlink", NODE_NONE}, {"char", NODE_CHAR}, {"block", NODE_BLOCK},
		{"fifo", NODE_FIFO},
	};

	for (size_t i = 0; i < countof(types); i++) {
		if (strcmp(type, types[i].name) == 0)
			return types[i].type;
	}
	return -EBADMSG;
}

static int take_metadata(struct toc *t, json_t *o, struct index_item *item, struct err *err)
{
	const char *time;
	uint64_t mode;
	int r = take_text(o, "name", &item->path, err);

	if (r == 0)
		r = take_text(o, "linkName", &item->link, err);
	if (r == 0)
		r = take_text(o, "modtime", &time, err);
	if (r == 0)
		r = take_time(time, &item->mtime_s, &item->mtime_ns, err);
	if (r == 0)
		r = take_u64(o, "mode", INT64_MAX, &mode, err);
	if (r == 0)
		r = take_u32(o, "uid", &item->uid, err);
	if (r == 0)
		r = take_u32(o, "gid", &item->gid, err);
	if (r == 0)
		r = take_u64(o, "devMajor", INT64_MAX, &item->dev_major, err);
	if (r == 0)
		r = take_u64(o, "devMinor", INT64_MAX, &item->dev_minor, err);
	if (r == 0)
		r = take_xattrs(t, o, item, err);
	if (r == 0)
		item->mode = (uint32_t)(mode & 07777);
	return r;
}

static int take_file(struct toc *t, json_t *o, struct index_item *item, struct err *err)
{
	int r = take_u64(o, "size", INT64_MAX, &item->size, err);

	if (r == 0)
		r = take_digest(o, "digest", &t->digest, &t->has_digest, err);
	if (r < 0)
		return r;
	item->plain_off = t->plain_end;
	item->digest = t->has_digest ? &t->digest : NULL;
	t->file_size = item->size;
	t->file_end = t->n_chunks = 0;
	if (item->size == 0)
		return 0;
	if (strcmp(item->path, ".prefetch.landmark") == 0)
		t->prefetch_bytes = t->plain_end;
	return take_chunk(t, o, err);
}

static int take_entry(struct toc *t, json_t *o, struct err *err)
{
	struct index_item item = {0};
	const char *type;
	int r = json_is_object(o) ? take_text(o, "type", &type, err) : bad(err, "no entry");

	if (r < 0)
		return r;
	if (strcmp(type, "chunk") == 0)
		return take_chunk(t, o, err);
	r = end_file(t, err);
	if (r < 0)
		return r;
	t->file_size = t->file_end = 0;
	r = take_type(type);
	if (r < 0)
		return bad(err, "an entry of unknown type");
	item.type = (uint8_t)r;
	r = take_metadata(t, o, &item, err);
	if (r == 0 && item.type == NODE_FILE)
		r = take_file(t, o, &item, err);
	return r < 0 ? r : index_builder_add(t->builder, &item, err);
}

/* ------------------------------------------------------------------ the outermost JSON */

struct cursor {
	const char *json;
	size_t n, pos;
};

/* The next character that is not white space, not moved over; 0 at the end. */
static char peek(struct cursor *c)
{
	while (c->pos < c->n && strchr(" \t\r\n", c->json[c->pos]) && c->json[c->pos])
		c->pos++;
	return c->pos < c->n ? c->json[c->pos] : '\0';
}

static bool take_char(struct cursor *c, char wanted)
{
	if (peek(c) != wanted)
		return false;
	c->pos++;
	return true;
}

static int take_value(struct cursor *c, json_t **out, struct err *err)
{
	json_error_t e;

	if (!peek(c))
		return bad(err, "cut off");
	*out = json_loadb(c->json + c->pos, c->n - c->pos, JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK,
			  &e);
	if (!*out)
		return err_set(err, -EBADMSG, "table of contents: %s", e.text);
	c->pos += (size_t)e.position;
	return 0;
}

static int take_entries(struct toc *t, struct cursor *c, struct err *err)
{
	if (!take_char(c, '['))
		return bad(err, "entries are no array");
	if (take_char(c, ']'))
		return 0;
	do {
		json_t *entry;
		int r = take_value(c, &entry, err);
		if (r < 0)
			return r;
		r = take_entry(t, entry, err);
		json_decref(entry);
		if (r < 0)
			return r;
	} while (take_char(c, ','));
	return take_char(c, ']') ? end_file(t, err) : bad(err, "entries do not end");
}

/* A member other than the entries. */
static int take_other(struct cursor *c, const char *key, struct err *err)
{
	json_t *value;
	int r = take_value(c, &value, err);

	if (r < 0)
		return r;
	bool is_known = strcmp(key, "version") != 0 || json_integer_value(value) == 1;
	json_decref(value);
	return is_known ? 0 : err_set(err, -ENOTSUP, "table of contents: not version 1");
}

static int take_top(struct toc *t, struct cursor *c, struct err *err)
{
	bool has_entries = false;

	if (!take_char(c, '{'))
		return bad(err, "no JSON object");
	if (take_char(c, '}'))
		return bad(err, "no entries");
	do {
		json_t *key = NULL;
		int r = peek(c) == '"' ? take_value(c, &key, err) : bad(err, "no key");
		if (r == 0 && !take_char(c, ':'))
			r = bad(err, "no value");
		if (r == 0 && strcmp(json_string_value(key), "entries") == 0) {
			r = has_entries ? bad(err, "entries twice") : take_entries(t, c, err);
			has_entries = true;
		} else if (r == 0) {
			r = take_other(c, json_string_value(key), err);
		}
		json_decref(key);
		if (r < 0)
			return r;
	} while (take_char(c, ','));
	if (!take_char(c, '}'))
		return bad(err, "does not end");
	return has_entries ? 0 : bad(err, "no entries");
}

/* ------------------------------------------------------------------ spans */

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The smallest of the sorted @offsets that is larger than @off. */
static uint64_t next_offset(const uint64_t *offsets, size_t n, uint64_t off, uint64_t end)
{
	size_t lo = 0, hi = n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (offsets[mid] <= off)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < n ? offsets[lo] : end;
}

static int add_spans(const struct toc *t, struct span_builder *spans, struct err *err)
{
	scoped(free) uint64_t *offsets = malloc((t->chunks.n + 1) * sizeof(*offsets));

	if (!offsets)
		return err_set(err, -ENOMEM, "table of contents: no memory");
	for (size_t i = 0; i < t->chunks.n; i++)
		offsets[i] = t->chunks.items[i].stored_off;
	qsort(offsets, t->chunks.n, sizeof(*offsets), compare_u64);
	for (size_t i = 0; i < t->chunks.n; i++) {
		struct span *s = &t->chunks.items[i];
		uint64_t end = next_offset(offsets, t->chunks.n, s->stored_off, t->toc_off);
		if (end - s->stored_off > STORED_MAX)
			return err_set(err, -ENOTSUP,
				       "table of contents: a member of more than 128 MiB");
		s->stored_len = (uint32_t)(end - s->stored_off);
		int r = span_builder_add(spans, s, NULL);
		if (r < 0)
			return err_set(err, r, "table of contents: no memory");
	}
	return 0;
}

int toc_json(struct index_builder *b, struct span_builder *spans, const char *json, size_t n,
	     uint64_t toc_off, uint64_t *prefetch_bytes, struct err *err)
{
	struct toc t = {.builder = b, .toc_off = toc_off};
	struct cursor c = {.json = json, .n = n};
	int r = take_top(&t, &c, err);

	if (r == 0)
		r = add_spans(&t, spans, err);
	if (r == 0)
		*prefetch_bytes = t.prefetch_bytes;
	free_xattrs(&t);
	vec_free(&t.xattrs);
	vec_free(&t.chunks);
	return r;
}
