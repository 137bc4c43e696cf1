/* SPDX-License-Identifier: Apache-2.0 */

/*
 * diff: what turns one tree into another.
 *
 * Both trees are walked together, folder by folder, each pair of folders as a merge of two sorted
 * listings. A stack of such pairs takes the place of recursion; where only the new tree has a
 * folder, its frame has one side, and everything in it is an addition. What only the old tree has
 * is one deletion and is not entered.
 *
 * Metadata is cheap, content is not: it may have to come over a network. So it is compared last,
 * and only for files that are equal in all else, by the first way that decides:
 *   1. both are the same file of the same tree, perhaps by way of two unions: equal;
 *   2. both digests are known: compare them;
 *   3. one is known: read the other one and hash it;
 *   4. read both side by side, until the first difference.
 */

#include "merge/merge.h"

#include "merge/merge-internal.h"

#define COMPARE_BLOCK (1u << 20)

struct diff_side {
	struct tree_listing listing;
	size_t next;
};

struct diff_frame {
	struct diff_side old, new; /* an absent side has an empty listing */
	size_t path_len;	   /* of the folder's own path */
};

struct diff {
	struct tree *old, *new;
	vec(struct diff_frame) frames;
	struct strbuf path;
	change_fn fn;
	void *arg;
	char *buf; /* two blocks, made when first needed */
};

/* ------------------------------------------------------------------ two nodes */

/* 1 = equal, 0 = not, or an error; as all of these. */
static int same_xattrs(struct diff *d, uint64_t old, uint64_t new, struct err *err)
{
	struct xattr_list a = {0}, b = {0};

	int r = tree_xattr_list(d->old, old, &a, err);
	if (r == 0)
		r = tree_xattr_list(d->new, new, &b, err);
	if (r == 0) {
		r = a.items.n == b.items.n;
		for (size_t i = 0; r && i < a.items.n; i++) {
			const struct tree_xattr *x = &a.items.items[i], *y = &b.items.items[i];

			r = strcmp(x->name, y->name) == 0 && x->len == y->len &&
			    memcmp(x->value, y->value, x->len) == 0;
		}
	}
	xattr_list_deinit(&a);
	xattr_list_deinit(&b);
	return r;
}

static int same_target(struct diff *d, uint64_t old, uint64_t new, struct err *err)
{
	scoped(strbuf_free) struct strbuf a = {0}, b = {0};

	int r = tree_readlink(d->old, old, &a, err);
	if (r == 0)
		r = tree_readlink(d->new, new, &b, err);
	return r < 0 ? r : a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* Hashes a file whose size is @size. */
static int digest_file(struct diff *d, struct tree *t, uint64_t id, struct digest *out,
		       struct err *err)
{
	scoped(hasher_free) struct hasher *h = hasher_new();
	int64_t n;

	if (!h)
		return -ENOMEM;
	for (uint64_t off = 0;
	     (n = tree_read(t, id, off, d->buf, COMPARE_BLOCK, NULL, NULL, err)) > 0;
	     off += (uint64_t)n)
		hasher_add(h, d->buf, (size_t)n);
	hasher_done(h, out);
	return (int)n;
}

static int same_bytes(struct diff *d, uint64_t old, uint64_t new, struct err *err)
{
	char *a = d->buf, *b = d->buf + COMPARE_BLOCK;

	for (uint64_t off = 0;;) {
		int64_t n = tree_read(d->old, old, off, a, COMPARE_BLOCK, NULL, NULL, err);
		int64_t m =
			n < 0 ? n : tree_read(d->new, new, off, b, COMPARE_BLOCK, NULL, NULL, err);
		if (m < 0)
			return (int)m;
		if (n != m || memcmp(a, b, (size_t)n) != 0)
			return 0;
		if (n == 0)
			return 1;
		off += (uint64_t)n;
	}
}

static int same_content(struct diff *d, uint64_t old, uint64_t new, struct err *err)
{
	struct digest a, b;

	bool has_a = tree_content_digest(d->old, old, &a) == 0;
	bool has_b = tree_content_digest(d->new, new, &b) == 0;
	if (has_a && has_b)
		return digest_equal(&a, &b);
	if (!d->buf && !(d->buf = malloc(2 * (size_t)COMPARE_BLOCK)))
		return -ENOMEM;
	if (!has_a && !has_b)
		return same_bytes(d, old, new, err);
	int r = has_a ? digest_file(d, d->new, new, &b, err) : digest_file(d, d->old, old, &a, err);
	return r < 0 ? r : digest_equal(&a, &b);
}

static bool same_metadata(const struct attr *a, const struct attr *b)
{
	return a->type == b->type && a->mode == b->mode && a->uid == b->uid && a->gid == b->gid &&
	       a->mtime_s == b->mtime_s && a->mtime_ns == b->mtime_ns;
}

static bool same_origin(struct diff *d, const struct attr *old, const struct attr *new)
{
	struct tree *a = d->old, *b = d->new;
	uint64_t a_id = old->id, b_id = new->id;

	union_origin(&a, &a_id);
	union_origin(&b, &b_id);
	return a == b && a_id == b_id;
}

static int same_node(struct diff *d, const struct attr *old, const struct attr *new,
		     struct err *err)
{
	if (!same_metadata(old, new))
		return 0;
	/* A live file too is itself, whenever it is looked at. */
	if (same_origin(d, old, new))
		return 1;
	int r = same_xattrs(d, old->id, new->id, err);
	if (r <= 0)
		return r;
	switch ((enum node_type) new->type) {
	case NODE_FILE:
		if (old->size != new->size)
			return 0;
		return new->size == 0 ? 1 : same_content(d, old->id, new->id, err);
	case NODE_SYMLINK:
		return same_target(d, old->id, new->id, err);
	case NODE_CHAR:
	case NODE_BLOCK:
		return old->dev_major == new->dev_major && old->dev_minor == new->dev_minor;
	case NODE_NONE:
	case NODE_DIR:
	case NODE_FIFO:
	case NODE_SOCKET:
	case NODE_WHITEOUT:
		break;
	}
	return 1;
}

/* ------------------------------------------------------------------ two trees */

static int side_read(struct diff_side *side, struct tree *t, const struct attr *dir,
		     struct err *err)
{
	if (!dir)
		return 0;
	int r = tree_listing_read(&side->listing, t, dir->id, NULL, err);
	/* A live folder may have gone since its parent was listed. */
	if (dir->is_live && (r == -ENOENT || r == -ENOTDIR || r == -ESTALE))
		return 0;
	return r;
}

static void diff_pop(struct diff *d)
{
	struct diff_frame *f = &d->frames.items[--d->frames.n];

	tree_listing_deinit(&f->old.listing);
	tree_listing_deinit(&f->new.listing);
}

/* Goes into a folder that the new tree has, and the old one if @old is given. */
static int diff_push(struct diff *d, const struct attr *old, const struct attr *new,
		     struct err *err)
{
	if (old && d->old == d->new && old->id == new->id)
		return 0;
	struct diff_frame *f = vec_push(&d->frames);
	if (!f)
		return -ENOMEM;
	f->path_len = d->path.len;
	int r = side_read(&f->old, d->old, old, err);
	return r < 0 ? r : side_read(&f->new, d->new, new, err);
}

static const struct tree_entry *side_entry(const struct diff_side *s)
{
	return s->next < s->listing.entries.n ? &s->listing.entries.items[s->next] : NULL;
}

static int diff_say(struct diff *d, char kind, const struct attr *old, const struct attr *new)
{
	const struct change change = {.kind = kind, .path = d->path.data, .old = old, .new = new};

	return d->fn(d->arg, &change);
}

/* One name; either attr may be NULL. */
static int diff_name(struct diff *d, const struct attr *old, const struct attr *new,
		     struct err *err)
{
	int r;

	if (!new)
		return diff_say(d, 'D', old, NULL);
	if (!old) {
		r = diff_say(d, 'A', NULL, new);
	} else {
		r = same_node(d, old, new, err);
		if (r >= 0)
			r = r ? 0 : diff_say(d, 'M', old, new);
	}
	if (r != 0 || new->type != NODE_DIR)
		return r;
	return diff_push(d, old && old->type == NODE_DIR ? old : NULL, new, err);
}

/* The next name of the innermost pair of folders, or the end of that pair. */
static int diff_step(struct diff *d, struct err *err)
{
	struct diff_frame *f = &d->frames.items[d->frames.n - 1];
	const struct tree_entry *old = side_entry(&f->old), *new = side_entry(&f->new);

	if (!old && !new) {
		diff_pop(d);
		return 0;
	}
	int order = !old   ? 1
		    : !new ? -1
			   : strcmp(tree_entry_name(&f->old.listing, old),
				    tree_entry_name(&f->new.listing, new));
	const struct tree_entry *named = order <= 0 ? old : new;
	const struct diff_side *side = order <= 0 ? &f->old : &f->new;
	d->path.len = f->path_len;
	strbuf_putc(&d->path, '/');
	strbuf_add(&d->path, tree_entry_name(&side->listing, named), named->name_len);
	if (d->path.failed)
		return -ENOMEM;
	f->old.next += order <= 0;
	f->new.next += order >= 0;
	return diff_name(d, order <= 0 ? &old->attr : NULL, order >= 0 ? &new->attr : NULL, err);
}

int tree_diff(struct tree *a, struct tree *b, change_fn fn, void *arg, struct err *err)
{
	struct diff d = {.old = a, .new = b, .fn = fn, .arg = arg};
	const struct attr root = {.id = TREE_ROOT, .type = NODE_DIR};

	int r = diff_push(&d, &root, &root, err);
	while (r == 0 && d.frames.n > 0)
		r = diff_step(&d, err);
	while (d.frames.n > 0)
		diff_pop(&d);
	vec_free(&d.frames);
	strbuf_free(&d.path);
	free(d.buf);
	return r;
}
