/* SPDX-License-Identifier: Apache-2.0 */

/*
 * leaves: where the content of files is that a made tree points to, once that tree has come out of
 * the store (treefile.c).
 *
 * A leaf is a file of a layer or plain content of the store. Layers are opened when the first byte
 * of one of their files is read, so that looking at names costs nothing. A layer's numbers are those
 * of its index, and an index may have been made anew since; so what the number leads to must have
 * the size and the digest that were noted, else the read fails. Plain content is hashed before it is
 * first read. Both are done once; after that a read is handed on as it is.
 *
 * Reads come from threads that must not wait: when a layer has no index yet, the read goes on
 * (leaf_go_on) when the layer says that it has, and large content is hashed by a worker.
 */

#include "merge/merge.h"

#include <unistd.h>

#include "merge/edit-internal.h"
#include "merge/merge-internal.h"

/* Content of this size is hashed at once, in the time of a disk's seek. */
#define HASH_AT_ONCE (1u << 20)

static const struct tree_ops leaves_ops;

static struct leaves *leaves_of(struct tree *t)
{
	return containerof(t, struct leaves, tree);
}

static struct leaf *leaf_of(struct leaves *l, uint64_t id)
{
	return id >= 1 && id <= l->leaves.n ? &l->leaves.items[id - 1] : NULL;
}

static bool is_checked(const struct leaf *leaf)
{
	return __atomic_load_n(&leaf->is_checked, __ATOMIC_ACQUIRE);
}

static void set_checked(struct leaf *leaf)
{
	__atomic_store_n(&leaf->is_checked, true, __ATOMIC_RELEASE);
}

/* ------------------------------------------------------------------ layers */

/* Borrowed: it stays as long as @l. */
static int open_layer(struct leaves *l, const struct leaf *leaf, struct tree **out, struct err *err)
{
	struct leaf_layer *layer = &l->layers.items[leaf->layer];
	struct tree *opened = NULL;

	pthread_mutex_lock(&l->lock);
	*out = layer->tree;
	pthread_mutex_unlock(&l->lock);
	if (*out)
		return 0;
	int r = layer_open(&opened, l->store, &layer->desc, layer->remote, NULL, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&l->lock);
	if (!layer->tree)
		layer->tree = take(opened);
	*out = layer->tree;
	pthread_mutex_unlock(&l->lock);
	tree_unref(opened);
	return 0;
}

/* Sees to it that the leaf's number means in @layer what it meant. -EAGAIN: @wait is called. */
static int check_in_layer(struct leaf *leaf, struct tree *layer, struct tree_wait *wait,
			  struct err *err)
{
	struct attr attr;
	struct digest digest;

	if (is_checked(leaf))
		return 0;
	int r = tree_getattr(layer, leaf->id, &attr, wait, err);
	if (r == -EAGAIN || (r < 0 && r != -ENOENT))
		return r;
	bool is_same = r == 0 && attr.type == NODE_FILE && attr.size == leaf->size;
	if (is_same && !digest_is_zero(&leaf->digest))
		is_same = tree_content_digest(layer, leaf->id, &digest) == 0 &&
			  digest_equal(&digest, &leaf->digest);
	if (!is_same)
		return err_set(err, -EBADMSG,
			       "a layer's index is not the one that the file was copied by");
	set_checked(leaf);
	return 0;
}

/* ------------------------------------------------------------------ plain content */

static int64_t read_content(struct leaves *l, const struct leaf *leaf, uint64_t off, void *dst,
			    size_t len, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	int opened;

	if (off >= leaf->size)
		return 0;
	len = (size_t)MIN((uint64_t)len, leaf->size - off);
	int r = content_open(l->store, &leaf->digest, leaf->size, &opened);
	if (r < 0)
		return err_set(err, r, "content %s is not in the store any more",
			       digest_text(&leaf->digest, text));
	scoped(close_fd) int fd = opened;
	r = pread_full(fd, dst, len, off);
	return r < 0 ? err_set(err, r, "content %s: %s", digest_text(&leaf->digest, text),
			       strerror(-r))
		     : (int64_t)len;
}

static int check_content(struct leaves *l, struct leaf *leaf, struct err *err)
{
	int r = is_checked(leaf) ? 0 : content_check(l->store, &leaf->digest, leaf->size, err);

	if (r == 0)
		set_checked(leaf);
	return r;
}

/* ------------------------------------------------------------------ reads that go on later */

struct leaf_read {
	struct tree_wait wait;
	struct leaves *leaves; /* a reference */
	struct leaf *leaf;
	uint64_t off;
	void *dst;
	size_t len;
	blob_done done;
	void *arg;
};

static void leaf_go_on(void *arg);

static void leaf_done(struct leaf_read *r, int64_t result, const struct err *err)
{
	if (result != -EINPROGRESS)
		r->done(r->arg, result, result < 0 ? err : NULL);
	tree_unref(&r->leaves->tree);
	free(r);
}

static void leaf_submit(struct leaf_read *r)
{
	struct err err = {0};

	if (store_submit(r->leaves->store, WORK_CPU, leaf_go_on, r) < 0)
		leaf_done(r, err_set(&err, -ENOMEM, "no thread for a read"), &err);
}

static void leaf_ready(struct tree_wait *wait)
{
	leaf_submit(containerof(wait, struct leaf_read, wait));
}

static void leaf_go_on(void *arg)
{
	struct leaf_read *r = arg;
	struct err err = {0};
	struct tree *layer = NULL;
	int64_t n;

	if (r->leaf->kind == LEAF_CONTENT) {
		n = check_content(r->leaves, r->leaf, &err);
		if (n == 0)
			n = read_content(r->leaves, r->leaf, r->off, r->dst, r->len, &err);
	} else {
		n = open_layer(r->leaves, r->leaf, &layer, &err);
		if (n == 0)
			n = check_in_layer(r->leaf, layer, &r->wait, &err);
		if (n == -EAGAIN)
			return; /* until the layer says so again */
		if (n == 0)
			n = tree_read(layer, r->leaf->id, r->off, r->dst, r->len, r->done, r->arg,
				      &err);
	}
	leaf_done(r, n, &err);
}

static struct leaf_read *leaf_read_new(struct leaves *l, struct leaf *leaf, uint64_t off, void *dst,
				       size_t len, blob_done done, void *arg)
{
	struct leaf_read *r = malloc(sizeof(*r));

	if (!r)
		return NULL;
	*r = (struct leaf_read){.wait.ready = leaf_ready,
				.leaves = l,
				.leaf = leaf,
				.off = off,
				.dst = dst,
				.len = len,
				.done = done,
				.arg = arg};
	tree_ref(&l->tree);
	return r;
}

static int64_t read_layer_leaf(struct leaves *l, struct leaf *leaf, uint64_t off, void *dst,
			       size_t len, blob_done done, void *arg, struct err *err)
{
	struct tree *layer;
	int r = open_layer(l, leaf, &layer, err);

	if (r < 0)
		return r;
	if (is_checked(leaf))
		return tree_read(layer, leaf->id, off, dst, len, done, arg, err);
	struct leaf_read *later = leaf_read_new(l, leaf, off, dst, len, done, arg);
	if (!later)
		return err_set(err, -ENOMEM, "no memory");
	r = check_in_layer(leaf, layer, &later->wait, err);
	if (r == -EAGAIN)
		return -EINPROGRESS;
	tree_unref(&l->tree);
	free(later);
	return r < 0 ? r : tree_read(layer, leaf->id, off, dst, len, done, arg, err);
}

static int64_t leaves_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			   blob_done done, void *arg, struct err *err)
{
	struct leaves *l = leaves_of(t);
	struct leaf *leaf = leaf_of(l, id);

	if (!leaf)
		return -ENOENT;
	if (leaf->kind == LEAF_LAYER)
		return read_layer_leaf(l, leaf, off, dst, len, done, arg, err);
	if (!is_checked(leaf) && leaf->size > HASH_AT_ONCE) {
		struct leaf_read *later = leaf_read_new(l, leaf, off, dst, len, done, arg);
		if (!later)
			return err_set(err, -ENOMEM, "no memory");
		leaf_submit(later);
		return -EINPROGRESS;
	}
	int r = check_content(l, leaf, err);
	return r < 0 ? r : read_content(l, leaf, off, dst, len, err);
}

/* ------------------------------------------------------------------ the rest of a tree */

static int leaves_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			  struct err *err)
{
	const struct leaf *leaf = leaf_of(leaves_of(t), id);

	if (!leaf)
		return -ENOENT;
	*out = (struct attr){.id = id, .type = NODE_FILE, .nlink = 1, .size = leaf->size};
	return 0;
}

static int leaves_lookup(struct tree *t, uint64_t dir, const char *name, size_t len,
			 struct attr *out, struct tree_wait *wait, struct err *err)
{
	return -ENOTDIR;
}

static int leaves_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		       struct tree_wait *wait, struct err *err)
{
	return -ENOTDIR;
}

static int leaves_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
			 struct err *err)
{
	return -ENOTDIR;
}

static int leaves_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	return -EINVAL;
}

static int leaves_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	return 0;
}

/* The layer's tree once it was read from; NULL before. */
static struct tree *known_layer(struct leaves *l, const struct leaf *leaf)
{
	if (leaf->kind != LEAF_LAYER || !is_checked(leaf))
		return NULL;
	pthread_mutex_lock(&l->lock);
	struct tree *layer = l->layers.items[leaf->layer].tree;
	pthread_mutex_unlock(&l->lock);
	return layer;
}

static int leaves_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data,
			    uint64_t *end)
{
	const struct leaf *leaf = leaf_of(leaves_of(t), id);
	struct tree *layer = leaf ? known_layer(leaves_of(t), leaf) : NULL;

	if (layer)
		return tree_seek_data(layer, leaf->id, off, data, end);
	if (!leaf || off >= leaf->size)
		return -ENODATA;
	*data = off; /* as far as is known */
	*end = leaf->size;
	return 0;
}

static int leaves_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	struct leaves *l = leaves_of(t);
	const struct leaf *leaf = leaf_of(l, id);

	if (!leaf || !is_checked(leaf))
		return -ENOENT;
	if (leaf->kind == LEAF_CONTENT)
		return content_open(l->store, &leaf->digest, leaf->size, fd);
	struct tree *layer = known_layer(l, leaf);
	return layer ? tree_open_flat(layer, leaf->id, make, fd, err) : -ENOENT;
}

static int leaves_content_digest(struct tree *t, uint64_t id, struct digest *out)
{
	const struct leaf *leaf = leaf_of(leaves_of(t), id);

	if (!leaf || digest_is_zero(&leaf->digest))
		return -ENOENT;
	*out = leaf->digest;
	return 0;
}

static void leaves_free(struct tree *t)
{
	struct leaves *l = leaves_of(t);

	for (size_t i = 0; i < l->layers.n; i++) {
		desc_deinit(&l->layers.items[i].desc);
		remote_unref(l->layers.items[i].remote);
		tree_unref(l->layers.items[i].tree);
	}
	vec_free(&l->layers);
	vec_free(&l->leaves);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static const struct tree_ops leaves_ops = {
	.getattr = leaves_getattr,
	.lookup = leaves_lookup,
	.list = leaves_list,
	.parent = leaves_parent,
	.readlink = leaves_readlink,
	.xattrs = leaves_xattrs,
	.read = leaves_read,
	.seek_data = leaves_seek_data,
	.open_flat = leaves_open_flat,
	.content_digest = leaves_content_digest,
	.free = leaves_free,
};

struct leaves *leaves_new(struct store *store)
{
	struct leaves *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	tree_init(&l->tree, &leaves_ops, 1, false);
	l->store = store;
	pthread_mutex_init(&l->lock, NULL);
	return l;
}

struct store *leaves_store(struct tree *t)
{
	return leaves_of(t)->store;
}

const struct leaf *leaves_find(struct tree *t, uint64_t id, const struct leaf_layer **layer)
{
	const struct leaf *leaf = t->ops == &leaves_ops ? leaf_of(leaves_of(t), id) : NULL;

	if (leaf)
		*layer = leaf->kind == LEAF_LAYER ? &leaves_of(t)->layers.items[leaf->layer] : NULL;
	return leaf;
}
