/* SPDX-License-Identifier: Apache-2.0 */

/*
 * flattree: a tree of one file, whose bytes are a flat file of the store.
 *
 * What an edit points to when a file came from outside as a whole: a download, a blob. The name,
 * the owner and the rest are the edit's; here are only the bytes. The file was verified when it was
 * made, and is kept by a lease of whoever made the tree, so no descriptor is held while nobody
 * reads: 10,000 of them are fine.
 */

#include "merge/merge.h"

#include <unistd.h>

#include "merge/merge-internal.h"

struct flattree {
	struct tree tree;
	struct store *store;
	struct digest digest;
	struct attr file;
};

static struct flattree *flat_of(struct tree *t)
{
	return containerof(t, struct flattree, tree);
}

static int flat_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			struct err *err)
{
	if (id == TREE_ROOT)
		*out = (struct attr){.id = TREE_ROOT,
				     .type = NODE_DIR,
				     .mode = 0755,
				     .nlink = 2,
				     .is_implicit = true};
	else
		*out = flat_of(t)->file;
	return id == TREE_ROOT || id == FLATTREE_FILE ? 0 : -ENOENT;
}

static int check_dir(uint64_t dir)
{
	return dir == TREE_ROOT ? 0 : dir == FLATTREE_FILE ? -ENOTDIR : -ENOENT;
}

static int flat_lookup(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		       struct tree_wait *wait, struct err *err)
{
	int r = check_dir(dir);

	if (r == 0 && (len != 7 || memcmp(name, "content", 7) != 0))
		r = -ENOENT;
	if (r == 0)
		*out = flat_of(t)->file;
	return r;
}

static int flat_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		     struct tree_wait *wait, struct err *err)
{
	int r = check_dir(dir);

	return r < 0 || from > 0 ? r : fn(arg, "content", 7, &flat_of(t)->file, 1);
}

static int flat_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
		       struct err *err)
{
	*out = TREE_ROOT;
	return check_dir(dir);
}

static int flat_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	return -EINVAL;
}

static int flat_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	return 0;
}

static int64_t flat_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			 blob_done done, void *arg, struct err *err)
{
	struct flattree *f = flat_of(t);
	char text[DIGEST_TEXT_MAX];
	int opened = -1;

	if (id != FLATTREE_FILE)
		return id == TREE_ROOT ? -EISDIR : -ENOENT;
	if (off >= f->file.size)
		return 0;
	int r = content_open(f->store, &f->digest, f->file.size, &opened);
	scoped(close_fd) int fd = opened;
	len = (size_t)MIN((uint64_t)len, f->file.size - off);
	if (r == 0)
		r = pread_full(fd, dst, len, off);
	if (r < 0)
		return err_set(err, r, "content %s: %s", digest_text(&f->digest, text),
			       r == -ENOENT ? "no longer in the store" : strerror(-r));
	return (int64_t)len;
}

static int flat_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	*data = off;
	*end = flat_of(t)->file.size;
	return off < *end ? 0 : -ENODATA;
}

static int flat_open(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	struct flattree *f = flat_of(t);

	return id == FLATTREE_FILE ? content_open(f->store, &f->digest, f->file.size, fd) : -ENOENT;
}

static int flat_digest(struct tree *t, uint64_t id, struct digest *out)
{
	*out = flat_of(t)->digest;
	return id == FLATTREE_FILE ? 0 : -ENOENT;
}

static void flat_free(struct tree *t)
{
	free(flat_of(t));
}

static const struct tree_ops flat_ops = {
	.getattr = flat_getattr,
	.lookup = flat_lookup,
	.list = flat_list,
	.parent = flat_parent,
	.readlink = flat_readlink,
	.xattrs = flat_xattrs,
	.read = flat_read,
	.seek_data = flat_seek_data,
	.open_flat = flat_open,
	.content_digest = flat_digest,
	.free = flat_free,
};

int flattree_new(struct tree **out, struct store *store, const struct digest *digest, uint64_t size)
{
	struct flattree *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	tree_init(&f->tree, &flat_ops, 1, false);
	f->store = store;
	f->digest = *digest;
	f->file = (struct attr){.id = FLATTREE_FILE,
				.type = NODE_FILE,
				.mode = 0600,
				.nlink = 1,
				.size = size,
				.n_bytes_allocated = size};
	*out = &f->tree;
	return 0;
}
