/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_record: the bytes of an upper's journal.
 *
 * The journal is 8 bytes of magic and then records, which are only ever appended:
 *	u32 length, u32 checksum, then so many bytes: statements one after another
 * All numbers are little endian. A record is what one operation changed, and counts as a whole or
 * not at all: one that is cut off or does not fit its checksum ends the journal. A statement is a
 * byte that says what it is, then its fields in a fixed order; bytes of any length (names, paths,
 * values) are a u32 and that many bytes. Statements say what is, not how to get there, so that
 * applying one twice is applying it once.
 *
 * The parser believes nothing: what it hands out lies inside the record, and names are names.
 */

#include "merge/upper-internal.h"

/* ------------------------------------------------------------------ writing */

static void put_u64(struct strbuf *to, uint64_t v)
{
	uint8_t b[8];

	for (size_t i = 0; i < sizeof(b); i++)
		b[i] = (uint8_t)(v >> (8 * i));
	strbuf_add(to, b, sizeof(b));
}

static void put_u32(struct strbuf *to, uint32_t v)
{
	uint8_t b[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};

	strbuf_add(to, b, sizeof(b));
}

static void put_bytes(struct strbuf *to, const void *bytes, size_t n)
{
	put_u32(to, (uint32_t)n);
	strbuf_add(to, bytes, n);
}

static void put_time(struct strbuf *to, struct timespec t)
{
	put_u64(to, (uint64_t)t.tv_sec);
	put_u32(to, (uint32_t)t.tv_nsec);
}

static void put_inode(struct strbuf *to, const struct upper_item *item)
{
	const struct upper_inode *i = &item->inode;

	strbuf_putc(to, (char)i->type);
	strbuf_putc(to, (char)i->content);
	strbuf_putc(to, (char)i->has_xattrs);
	put_u32(to, i->mode);
	put_u32(to, i->uid);
	put_u32(to, i->gid);
	put_u32(to, i->nlink);
	put_u32(to, i->dev_major);
	put_u32(to, i->dev_minor);
	put_u64(to, i->limit);
	put_u64(to, i->size);
	put_time(to, i->atime);
	put_time(to, i->mtime);
	put_time(to, i->ctime);
	put_bytes(to, item->name, item->name_len);
}

void upper_item_put(struct strbuf *to, const struct upper_item *item)
{
	strbuf_putc(to, (char)item->kind);
	if (item->kind == UPPER_BELOW) {
		put_bytes(to, item->name, item->name_len);
		return;
	}
	put_u64(to, item->ino);
	switch (item->kind) {
	case UPPER_BIND:
		put_u64(to, item->below);
		put_u64(to, item->below_dir);
		put_bytes(to, item->name, item->name_len);
		break;
	case UPPER_INODE:
		put_inode(to, item);
		break;
	case UPPER_XATTR:
		put_bytes(to, item->name, item->name_len);
		put_bytes(to, item->value, item->value_len);
		break;
	case UPPER_ENTRY:
		put_u64(to, item->child);
		strbuf_putc(to, (char)item->is_hiding);
		put_bytes(to, item->name, item->name_len);
		break;
	case UPPER_UNXATTR:
	case UPPER_UNENTRY:
		put_bytes(to, item->name, item->name_len);
		break;
	case UPPER_TOUCH:
	case UPPER_CTIME:
		put_time(to, item->time);
		break;
	case UPPER_DATA:
		put_u64(to, item->first);
		put_u64(to, item->n);
		break;
	case UPPER_BELOW:
	case UPPER_NEXT:
	case UPPER_FREE:
		break;
	}
}

/* Of a record's bytes; what hash_bytes gives never changes for the same bytes. */
static uint32_t checksum(const void *bytes, size_t n)
{
	uint64_t h = hash_bytes(bytes, n);

	return (uint32_t)(h ^ h >> 32);
}

size_t upper_record_begin(struct strbuf *to)
{
	size_t start = to->len;

	strbuf_add(to, "\0\0\0\0\0\0\0", UPPER_FRAME);
	return start;
}

void upper_record_end(struct strbuf *to, size_t start)
{
	struct strbuf frame = {0};

	if (to->failed)
		return;
	put_u32(&frame, (uint32_t)(to->len - start - UPPER_FRAME));
	put_u32(&frame, checksum(to->data + start + UPPER_FRAME, to->len - start - UPPER_FRAME));
	if (frame.failed)
		to->failed = true;
	else
		memcpy(to->data + start, frame.data, UPPER_FRAME);
	strbuf_free(&frame);
}

/* ------------------------------------------------------------------ reading */

/* What is left of a record; taking too much is sticky. */
struct reader {
	const uint8_t *p;
	size_t left;
	bool is_bad;
};

static const uint8_t *get(struct reader *r, size_t n)
{
	static const uint8_t nothing[8];
	const uint8_t *p = r->p;

	if (r->is_bad || n > r->left) {
		r->is_bad = true;
		return nothing;
	}
	r->p += n;
	r->left -= n;
	return p;
}

static uint64_t get_u64(struct reader *r)
{
	return le64(get(r, 8));
}

static uint32_t get_u32(struct reader *r)
{
	return le32(get(r, 4));
}

static uint8_t get_u8(struct reader *r)
{
	return *get(r, 1);
}

static bool get_bool(struct reader *r)
{
	uint8_t b = get_u8(r);

	r->is_bad |= b > 1;
	return b == 1;
}

static const void *get_bytes(struct reader *r, size_t *n)
{
	*n = get_u32(r);
	const void *p = get(r, *n);
	if (r->is_bad)
		*n = 0;
	return p;
}

static struct timespec get_time(struct reader *r)
{
	struct timespec t = {.tv_sec = (time_t)get_u64(r)};

	t.tv_nsec = get_u32(r);
	r->is_bad |= t.tv_nsec >= (long)NS_PER_S;
	return t;
}

/* No NUL in it, so that it can be handled as a string. */
static void get_text(struct reader *r, struct upper_item *out, size_t max)
{
	out->name = get_bytes(r, &out->name_len);
	r->is_bad |= out->name_len > max || memchr(out->name, 0, out->name_len) != NULL;
}

static void get_name(struct reader *r, struct upper_item *out)
{
	get_text(r, out, 255);
	r->is_bad |= out->name_len == 0 || memchr(out->name, '/', out->name_len) != NULL ||
		     (out->name[0] == '.' &&
		      (out->name_len == 1 || (out->name_len == 2 && out->name[1] == '.')));
}

static void get_xattr_name(struct reader *r, struct upper_item *out)
{
	get_text(r, out, 255);
	r->is_bad |= out->name_len == 0;
}

static void get_inode(struct reader *r, struct upper_item *out)
{
	struct upper_inode *i = &out->inode;

	i->type = get_u8(r);
	i->content = get_u8(r);
	i->has_xattrs = get_bool(r);
	i->mode = get_u32(r);
	i->uid = get_u32(r);
	i->gid = get_u32(r);
	i->nlink = get_u32(r);
	i->dev_major = get_u32(r);
	i->dev_minor = get_u32(r);
	i->limit = get_u64(r);
	i->size = get_u64(r);
	i->atime = get_time(r);
	i->mtime = get_time(r);
	i->ctime = get_time(r);
	get_text(r, out, 65535);
	r->is_bad |= i->type < NODE_FILE || i->type > NODE_SOCKET || i->content > CONTENT_HERE ||
		     i->mode > 07777 || i->limit > INT64_MAX || i->size > INT64_MAX ||
		     (i->type != NODE_SYMLINK && out->name_len > 0);
}

static void get_fields(struct reader *r, struct upper_item *out)
{
	switch (out->kind) {
	case UPPER_BIND:
		out->below = get_u64(r);
		out->below_dir = get_u64(r);
		get_text(r, out, 1u << 20);
		r->is_bad |= out->below == 0;
		break;
	case UPPER_INODE:
		get_inode(r, out);
		break;
	case UPPER_XATTR:
		get_xattr_name(r, out);
		out->value = get_bytes(r, &out->value_len);
		break;
	case UPPER_UNXATTR:
		get_xattr_name(r, out);
		break;
	case UPPER_ENTRY:
		out->child = get_u64(r);
		out->is_hiding = get_bool(r);
		get_name(r, out);
		break;
	case UPPER_UNENTRY:
		get_name(r, out);
		break;
	case UPPER_TOUCH:
	case UPPER_CTIME:
		out->time = get_time(r);
		break;
	case UPPER_DATA:
		out->first = get_u64(r);
		out->n = get_u64(r);
		r->is_bad |= out->first > INT64_MAX / GRANULE || out->n > INT64_MAX / GRANULE;
		break;
	case UPPER_NEXT:
	case UPPER_FREE:
		break;
	case UPPER_BELOW:
	default:
		r->is_bad = true;
	}
}

int upper_item_next(const uint8_t **p, size_t *left, struct upper_item *out)
{
	struct reader r = {*p, *left, false};

	if (*left == 0)
		return 0;
	memset(out, 0, sizeof(*out));
	out->kind = (enum upper_kind)get_u8(&r);
	if (out->kind == UPPER_BELOW) {
		get_text(&r, out, 1u << 20);
	} else {
		out->ino = get_u64(&r);
		r.is_bad |= out->ino == 0 || out->ino > INT64_MAX;
		get_fields(&r, out);
	}
	if (r.is_bad)
		return -EBADMSG;
	*p = r.p;
	*left = r.left;
	return 1;
}

int upper_record_next(const uint8_t **p, size_t *left, const uint8_t **record, size_t *n)
{
	if (*left < UPPER_FRAME)
		return 0;
	*n = le32(*p);
	if (*n == 0 || *n > UPPER_RECORD_MAX || *n > *left - UPPER_FRAME)
		return 0;
	*record = *p + UPPER_FRAME;
	if (checksum(*record, *n) != le32(*p + 4))
		return 0;
	*p += UPPER_FRAME + *n;
	*left -= UPPER_FRAME + *n;
	return 1;
}
