/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What is left of a local source of which only metadata is wanted (local.metadatatransfer): the files
 * that are excepted, and one file, /.fsutil-metadata, that tells of all, for a program that reads it.
 *
 * That file has a record for each entry, in the order of a walk: the length (32 bits, little
 * endian) of a protobuf message, and the message, which is fsutil's Stat: 1 path, 2 mode as Go's
 * os.FileMode, 5 size, 6 time in ns, 7 target of a link, 8 and 9 device, 10 xattrs. A further name of
 * a file has its first name as the target.
 */

#include "blobstore/base.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define METADATA_NAME ".fsutil-metadata"

enum {
	STAT_PATH = 1,
	STAT_MODE,
	STAT_SIZE = 5,
	STAT_TIME,
	STAT_LINK,
	STAT_MAJOR,
	STAT_MINOR,
	STAT_XATTR
};

struct metadata {
	struct tree *tree;
	struct strbuf all, one;
	struct copy_links links; /* inode -> offset of its first name in names, + 1 */
	struct strbuf names;
	struct err *err;
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static void put_varint(struct strbuf *s, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		strbuf_putc(s, (char)(v | 0x80));
	strbuf_putc(s, (char)v);
}

static void put_number(struct strbuf *s, unsigned field, uint64_t v)
{
	if (v == 0)
		return;
	put_varint(s, field << 3);
	put_varint(s, v);
}

static void put_bytes(struct strbuf *s, unsigned field, const void *bytes, size_t n)
{
	put_varint(s, field << 3 | 2);
	put_varint(s, n);
	strbuf_add(s, bytes, n);
}

/* os.FileMode */
static uint64_t go_mode(const struct attr *attr)
{
	static const uint64_t types[] = {
		[NODE_DIR] = 1u << 31,	 [NODE_SYMLINK] = 1u << 27,
		[NODE_BLOCK] = 1u << 26, [NODE_CHAR] = 1u << 26 | 1u << 21,
		[NODE_FIFO] = 1u << 25,	 [NODE_SOCKET] = 1u << 24,
	};
	uint64_t mode = attr->mode & 0777;
	mode |= attr->mode & 04000 ? 1u << 23 : 0;
	mode |= attr->mode & 02000 ? 1u << 22 : 0;
	mode |= attr->mode & 01000 ? 1u << 20 : 0;
	return mode | ((size_t)attr->type < countof(types) ? types[attr->type] : 0);
}

static int put_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct metadata *m = arg;
	scoped(strbuf_free) struct strbuf pair = {0};
	put_bytes(&pair, 1, name, strlen(name));
	put_bytes(&pair, 2, value, len);
	put_bytes(&m->one, STAT_XATTR, pair.data, pair.len);
	return pair.failed ? -ENOMEM : 0;
}

/* The target of a link, or the first name of a file that has several. */
static int put_link(struct metadata *m, const char *path, const struct attr *attr)
{
	scoped(strbuf_free) struct strbuf target = {0};
	if (attr->type == NODE_SYMLINK) {
		int r = tree_readlink(m->tree, attr->id, &target, m->err);
		if (r == 0)
			put_bytes(&m->one, STAT_LINK, target.data, target.len);
		return r;
	}
	if (attr->type == NODE_DIR || attr->nlink < 2)
		return 0;
	uint64_t first = copy_links_find(&m->links, attr->id);
	if (first) {
		const char *name = m->names.data + first - 1;
		put_bytes(&m->one, STAT_LINK, name, strlen(name));
		return 0;
	}
	first = m->names.len + 1;
	strbuf_add(&m->names, path, strlen(path) + 1);
	return copy_links_add(&m->links, attr->id, first);
}

static int put_entry(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct metadata *m = arg;
	strbuf_clear(&m->one);
	put_bytes(&m->one, STAT_PATH, path, strlen(path));
	put_number(&m->one, STAT_MODE, go_mode(attr));
	if (attr->type != NODE_DIR)
		put_number(&m->one, STAT_SIZE, attr->size);
	/* may be any number on the host's disk: wraps, as Go's does */
	put_number(&m->one, STAT_TIME, (uint64_t)attr->mtime_s * NS_PER_S + attr->mtime_ns);
	int r = put_link(m, path, attr);
	put_number(&m->one, STAT_MAJOR, attr->dev_major);
	put_number(&m->one, STAT_MINOR, attr->dev_minor);
	if (r == 0)
		r = tree_xattrs(m->tree, attr->id, put_xattr, m, m->err);
	for (unsigned i = 0; i < 4; i++)
		strbuf_putc(&m->all, (char)(m->one.len >> 8 * i));
	strbuf_add(&m->all, m->one.data, m->one.len);
	return r == 0 && (m->one.failed || m->all.failed || m->names.failed) ? -ENOMEM : r;
}

static int make_file(struct edit *edit, const struct strbuf *data, const struct timespec *now,
		     struct err *err)
{
	const size_t len = strlen(METADATA_NAME);
	const struct attr attr = {.type = NODE_FILE,
				  .mode = 0644,
				  .mtime_s = now->tv_sec,
				  .mtime_ns = (uint32_t)now->tv_nsec};
	const struct edit_what what = {.attr = &attr, .data = data->data, .len = data->len};
	uint64_t node;
	int r = edit_child(edit, TREE_ROOT, METADATA_NAME, len, &node, err);
	if (r == 0 && node)
		edit_remove(edit, TREE_ROOT, METADATA_NAME, len);
	return r < 0 ? r : edit_make(edit, TREE_ROOT, METADATA_NAME, len, &what, &node, err);
}

static int copy_exceptions(struct edit *edit, struct tree *all, const char *const *exceptions,
			   size_t n, struct err *err)
{
	scoped(match_patterns_free) struct match_patterns *wanted = NULL;
	struct attr root;
	int r = match_patterns_new(&wanted, exceptions, n, err);
	if (r == 0)
		r = tree_getattr(all, TREE_ROOT, &root, NULL, err);
	if (r < 0)
		return r;
	struct file_env env = {.edit = edit, .source = all};
	struct copy copy = {.env = &env, .include = wanted, .time_ns = -1, .prefix = ""};
	r = copy_run(&copy, &root, TREE_ROOT, "", err);
	copy_deinit(&copy);
	return r;
}

int local_metadata(struct tree **out, struct tree *all, const char *const *exceptions, size_t n,
		   const struct timespec *now, struct err *err)
{
	scoped(edit_free) struct edit *edit = NULL;
	struct metadata m = {.tree = all, .err = err};
	int r = tree_walk_all(all, TREE_ROOT, put_entry, &m, err);
	if (r == -ENOMEM || edit_new(&edit, NULL, now) < 0)
		r = no_memory(err);
	if (r == 0 && n > 0)
		r = copy_exceptions(edit, all, exceptions, n, err);
	if (r == 0)
		r = make_file(edit, &m.all, now, err);
	if (r == 0)
		r = edit_seal(out, &edit, err);
	strbuf_free(&m.all);
	strbuf_free(&m.one);
	strbuf_free(&m.names);
	copy_links_clear(&m.links);
	return r;
}
