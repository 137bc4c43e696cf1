/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The file .fsutil-metadata, which a local source has instead of the content that a definition does
 * not want (local.metadatatransfer): one record an entry, in the order in which clients send them,
 * a folder before what is in it. A record is its length (32 bits, little-endian) and a protobuf
 * message:
 *
 *	1 path	2 mode	3 uid	4 gid	5 size	6 time, ns	7 target of a link; of a file that
 *	has an earlier name, that name	8, 9 device	10 xattrs: {1 name, 2 value}
 *
 * Fields that are 0 are left out. The mode is Go's: types and special bits have places of their own.
 * Xattrs are in the order of their names; BuildKit's have none.
 */

#include <sys/stat.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"

struct stats {
	struct strbuf *out;
	struct tree *tree, *folder;
	struct copy_links links; /* the place in first of an inode, + 1 */
	vec(char *) first;	 /* first names of those with several */
	struct err *err;
};

static void put_varint(struct strbuf *out, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		strbuf_putc(out, (char)(value | 0x80));
	strbuf_putc(out, (char)value);
}

static void put_number(struct strbuf *out, uint32_t field, uint64_t value)
{
	if (!value)
		return;
	put_varint(out, field << 3);
	put_varint(out, value);
}

static void put_bytes(struct strbuf *out, uint32_t field, const void *bytes, size_t n)
{
	put_varint(out, field << 3 | 2);
	put_varint(out, n);
	strbuf_add(out, bytes, n);
}

/* fs.FileMode */
static uint32_t go_mode(const struct attr *attr)
{
	static const uint32_t types[] = {
		[NODE_DIR] = 1u << 31,
		[NODE_SYMLINK] = 1u << 27,
		[NODE_CHAR] = 1u << 26 | 1u << 21,
		[NODE_BLOCK] = 1u << 26,
		[NODE_FIFO] = 1u << 25,
		[NODE_SOCKET] = 1u << 24,
		[NODE_WHITEOUT] = 0,
	};
	uint32_t mode = (attr->mode & 0777) | types[attr->type];
	mode |= attr->mode & S_ISUID ? 1u << 23 : 0;
	mode |= attr->mode & S_ISGID ? 1u << 22 : 0;
	mode |= attr->mode & S_ISVTX ? 1u << 20 : 0;
	return mode;
}

/* ------------------------------------------------------------------ xattrs */

/* Those of the folder itself: more than a local source keeps. */
static int put_xattrs(struct stats *s, struct strbuf *out, const char *path)
{
	struct attr attr;
	struct xattr_list xattrs = {0};
	int r = tree_walk(s->folder, path, false, &attr, s->err);
	if (r == 0)
		r = tree_xattr_list(s->folder, attr.id, &xattrs, s->err);
	for (size_t i = 0; i < xattrs.items.n && r == 0; i++) {
		const struct tree_xattr *x = &xattrs.items.items[i];
		scoped(strbuf_free) struct strbuf pair = {0};
		put_bytes(&pair, 1, x->name, strlen(x->name));
		put_bytes(&pair, 2, x->value, x->len);
		put_bytes(out, 10, pair.data, pair.len);
		r = pair.failed ? -ENOMEM : 0;
	}
	xattr_list_deinit(&xattrs);
	return r;
}

/* ------------------------------------------------------------------ entries */

/* The target of a symlink, or an earlier name of a file. */
static int put_link(struct stats *s, struct strbuf *out, const char *path, const struct attr *attr)
{
	scoped(strbuf_free) struct strbuf target = {0};
	if (attr->type == NODE_SYMLINK) {
		int r = tree_readlink(s->tree, attr->id, &target, s->err);
		if (r == 0)
			put_bytes(out, 7, target.data, target.len);
		return r;
	}
	if (attr->type == NODE_DIR || attr->nlink < 2)
		return 0;
	uint64_t place = copy_links_find(&s->links, attr->id);
	if (place) {
		const char *first = s->first.items[place - 1];
		put_bytes(out, 7, first, strlen(first));
		return 0;
	}
	char **slot = vec_push(&s->first);
	if (!slot || !(*slot = strdup(path)))
		return -ENOMEM;
	return copy_links_add(&s->links, attr->id, s->first.n);
}

static int put_entry(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct stats *s = arg;
	scoped(strbuf_free) struct strbuf record = {0};
	uint8_t length[4];
	if (strcmp(path, LOCAL_STATS_NAME) == 0)
		return 0;
	put_bytes(&record, 1, path, strlen(path));
	put_number(&record, 2, go_mode(attr));
	put_number(&record, 3, attr->uid);
	put_number(&record, 4, attr->gid);
	put_number(&record, 5, attr->type == NODE_DIR ? 0 : attr->size);
	put_number(&record, 6,
		   (uint64_t)attr->mtime_s * UINT64_C(1000000000) + (uint64_t)attr->mtime_ns);
	int r = put_link(s, &record, path, attr);
	put_number(&record, 8, attr->dev_major);
	put_number(&record, 9, attr->dev_minor);
	if (r == 0)
		r = put_xattrs(s, &record, path);
	if (r == 0 && (record.failed || record.len > UINT32_MAX))
		r = -ENOMEM;
	if (r < 0)
		return r;
	for (int i = 0; i < 4; i++)
		length[i] = (uint8_t)(record.len >> 8 * i);
	strbuf_add(s->out, length, sizeof(length));
	strbuf_add(s->out, record.data, record.len);
	return s->out->failed ? -ENOMEM : 0;
}

int local_stats(struct strbuf *out, struct tree *tree, struct tree *folder, struct err *err)
{
	struct stats s = {.out = out, .tree = tree, .folder = folder, .err = err};
	int r = tree_walk_all(tree, TREE_ROOT, put_entry, &s, err);
	for (size_t i = 0; i < s.first.n; i++)
		free(s.first.items[i]);
	vec_free(&s.first);
	copy_links_clear(&s.links);
	return r == -ENOMEM ? err_set(err, r, "out of memory") : r;
}
