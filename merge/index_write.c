/* SPDX-License-Identifier: Apache-2.0 */

/*
 * index_write: what a builder has gathered becomes the bytes of an index.
 *
 * Breadth-first order with each folder sorted needs no tree of pointers: the living nodes are put
 * into groups by parent (counting sort), each group is sorted by name, and the queue of a
 * breadth-first walk over the groups is the order of the entries. The pools (names, xattrs,
 * digests, extents) are written as they are, with what replaced entries left in them.
 */

#include "merge/merge.h"

#include <assert.h>

#include "merge/merge-internal.h"

#define LARGE_FILE (1u << 20)

/* Arrays by node or by entry; all freed together. */
struct order {
	const struct index_builder *b;
	uint32_t n_live;
	uint32_t *first;   /* by node: where its children begin in grouped; one more for the end */
	uint32_t *grouped; /* living nodes, except the root, by parent */
	uint32_t *queue;   /* by entry: its node */
	uint32_t *parent;  /* by entry: its folder's entry */
	uint32_t *inode_number; /* by builder's inode: the number in the file */
};

static void order_deinit(struct order *o)
{
	free(o->first);
	free(o->grouped);
	free(o->queue);
	free(o->parent);
	free(o->inode_number);
}

/* ------------------------------------------------------------------ who is left */

static bool is_toc_name(const struct index_builder *b, const struct index_node *n)
{
	static const char *const names[] = {"stargz.index.json", ".prefetch.landmark",
					    ".no.prefetch.landmark"};

	for (size_t i = 0; i < countof(names); i++) {
		if (n->name_len == strlen(names[i]) &&
		    memcmp(b->names.data + n->name, names[i], n->name_len) == 0)
			return true;
	}
	return false;
}

static void bury_the_dead(struct index_builder *b, bool hide_toc)
{
	for (size_t i = 1; i < b->nodes.n; i++) {
		struct index_node *n = &b->nodes.items[i];
		if (b->nodes.items[n->parent].flags & IS_GONE)
			n->flags |= IS_GONE;
		else if (hide_toc && n->parent == INDEX_ROOT && is_toc_name(b, n) &&
			 index_node_inode(b, (uint32_t)i)->type == NODE_FILE)
			n->flags |= IS_GONE;
	}
}

/* ------------------------------------------------------------------ order */

static int compare_nodes(const void *x, const void *y, void *arg)
{
	const struct index_builder *b = arg;
	const struct index_node *m = &b->nodes.items[*(const uint32_t *)x];
	const struct index_node *n = &b->nodes.items[*(const uint32_t *)y];
	int c = memcmp(b->names.data + m->name, b->names.data + n->name,
		       MIN(m->name_len, n->name_len));

	return c ? c : (int)m->name_len - (int)n->name_len;
}

static int group_by_parent(struct order *o)
{
	const struct index_builder *b = o->b;
	size_t n = b->nodes.n;

	o->first = calloc(n + 2, sizeof(*o->first));
	o->grouped = calloc(n, sizeof(*o->grouped));
	if (!o->first || !o->grouped)
		return -ENOMEM;
	/* Counts two places up, so that filling leaves first[i] at the group's begin. */
	o->n_live = 1;
	for (size_t i = 1; i < n; i++) {
		if (b->nodes.items[i].flags & IS_GONE)
			continue;
		o->first[b->nodes.items[i].parent + 2]++;
		o->n_live++;
	}
	for (size_t i = 1; i < n + 2; i++)
		o->first[i] += o->first[i - 1];
	for (size_t i = 1; i < n; i++) {
		if (!(b->nodes.items[i].flags & IS_GONE))
			o->grouped[o->first[b->nodes.items[i].parent + 1]++] = (uint32_t)i;
	}
	return 0;
}

static int walk_breadth_first(struct order *o)
{
	const struct index_builder *b = o->b;
	uint32_t n_queued = 1;

	o->queue = calloc(o->n_live, sizeof(*o->queue));
	o->parent = calloc(o->n_live, sizeof(*o->parent));
	if (!o->queue || !o->parent)
		return -ENOMEM;
	o->queue[0] = INDEX_ROOT;
	for (uint32_t i = 0; i < n_queued; i++) {
		uint32_t begin = o->first[o->queue[i]], end = o->first[o->queue[i] + 1];
		if (begin == end)
			continue;
		qsort_r(o->grouped + begin, end - begin, sizeof(*o->grouped), compare_nodes,
			(void *)b);
		for (uint32_t k = begin; k < end; k++) {
			o->parent[n_queued] = i;
			o->queue[n_queued++] = o->grouped[k];
		}
	}
	assert(n_queued == o->n_live);
	return 0;
}

/* Numbers inodes by their first names; returns how many. */
static int number_inodes(struct order *o, uint32_t *n_inodes)
{
	const struct index_builder *b = o->b;

	o->inode_number = malloc(b->inodes.n * sizeof(*o->inode_number));
	if (!o->inode_number)
		return -ENOMEM;
	memset(o->inode_number, 0xff, b->inodes.n * sizeof(*o->inode_number));
	*n_inodes = 0;
	for (uint32_t i = 0; i < o->n_live; i++) {
		uint32_t *number = &o->inode_number[b->nodes.items[o->queue[i]].inode];
		if (*number == INDEX_NONE)
			*number = (*n_inodes)++;
	}
	return 0;
}

static int make_order(struct order *o, uint32_t *n_inodes)
{
	int r = group_by_parent(o);

	if (r == 0)
		r = walk_breadth_first(o);
	return r ? r : number_inodes(o, n_inodes);
}

/* ------------------------------------------------------------------ bytes */

static struct index_part place(uint64_t *end, uint64_t n, size_t item)
{
	struct index_part part = {.off = *end, .n = n};

	*end = (*end + n * item + 7) & ~UINT64_C(7);
	return part;
}

static void write_entries(const struct order *o, struct index_entry *entries)
{
	const struct index_builder *b = o->b;
	uint32_t n_before = 1;

	for (uint32_t i = 0; i < o->n_live; i++) {
		uint32_t node = o->queue[i];
		const struct index_node *n = &b->nodes.items[node];
		uint32_t n_children = o->first[node + 1] - o->first[node];
		struct index_entry *e = &entries[i];
		*e = (struct index_entry){
			.name = n->name,
			.name_len = n->name_len,
			.type = index_node_inode(b, node)->type,
			.inode = o->inode_number[n->inode],
			.first_child = n_children ? n_before : 0,
			.n_children = n_children,
			.parent = o->parent[i],
		};
		n_before += n_children;
		if (e->type != NODE_DIR)
			continue;
		/* A whiteout leaves nothing below that could lend its metadata. */
		if (n->flags & (IS_OPAQUE | IS_WHITED_OUT))
			e->flags |= INDEX_OPAQUE;
		if (n->flags & IS_IMPLICIT && !(n->flags & IS_WHITED_OUT))
			e->flags |= INDEX_IMPLICIT;
	}
}

static void write_inodes(const struct order *o, const struct index_entry *entries,
			 struct index_inode *inodes, struct index_header *h)
{
	uint32_t n_seen = 0;

	for (uint32_t i = 0; i < o->n_live; i++) {
		struct index_inode *ino = &inodes[entries[i].inode];
		if (entries[i].inode == n_seen) {
			n_seen++;
			*ino = index_node_inode(o->b, o->queue[i])->rec;
			ino->entry = i;
			if (entries[i].type == NODE_FILE) {
				h->n_files++;
				h->file_bytes += ino->size;
				h->large_bytes += ino->size >= LARGE_FILE ? ino->size : 0;
			}
		}
		ino->nlink++;
		if (entries[i].type == NODE_DIR) {
			ino->nlink++; /* its own "." */
			if (i > 0)
				inodes[entries[entries[i].parent].inode].nlink++; /* ".." */
		}
	}
}

static void copy_part(uint8_t *file, const struct index_part *p, const void *items, size_t item)
{
	if (p->n)
		memcpy(file + p->off, items, (size_t)p->n * item);
}

static int write_file(const struct order *o, uint32_t n_inodes, const struct index_about *about,
		      void **bytes, size_t *n)
{
	const struct index_builder *b = o->b;
	struct index_header h = {
		.version = INDEX_VERSION,
		.format = (uint32_t)about->format,
		.prefetch_bytes = about->prefetch_bytes,
	};
	uint64_t end = sizeof(h);

	memcpy(h.magic, INDEX_MAGIC, sizeof(h.magic));
	memcpy(h.digest, about->digest.bytes, sizeof(h.digest));
	memcpy(h.diff_id, about->diff_id.bytes, sizeof(h.diff_id));
	h.entries = place(&end, o->n_live, sizeof(struct index_entry));
	h.inodes = place(&end, n_inodes, sizeof(struct index_inode));
	h.digests = place(&end, b->digests.n, sizeof(struct digest));
	h.extents = place(&end, b->extents.n, sizeof(struct index_extent));
	h.names = place(&end, b->names.len, 1);
	h.xattrs = place(&end, b->xattrs.bytes.len, 1);
	h.file_size = end;

	uint8_t *file = calloc(1, end);
	if (!file)
		return -ENOMEM;
	struct index_entry *entries = (void *)(file + h.entries.off);
	write_entries(o, entries);
	write_inodes(o, entries, (void *)(file + h.inodes.off), &h);
	copy_part(file, &h.digests, b->digests.items, sizeof(struct digest));
	copy_part(file, &h.extents, b->extents.items, sizeof(struct index_extent));
	copy_part(file, &h.names, b->names.data, 1);
	copy_part(file, &h.xattrs, b->xattrs.bytes.data, 1);
	index_header_seal(&h);
	memcpy(file, &h, sizeof(h));
	*bytes = file;
	*n = end;
	return 0;
}

int index_builder_finish(struct index_builder *b, const struct index_about *about, bool hide_toc,
			 void **bytes, size_t *n, struct err *err)
{
	struct order o = {.b = b};
	uint32_t n_inodes = 0;

	bury_the_dead(b, hide_toc);
	int r = index_builder_bind_links(b, err);
	if (r < 0)
		return r;
	r = make_order(&o, &n_inodes);
	if (r == 0)
		r = write_file(&o, n_inodes, about, bytes, n);
	order_deinit(&o);
	return r < 0 ? err_set(err, r, "layer index: no memory") : 0;
}
