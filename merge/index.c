/* SPDX-License-Identifier: Apache-2.0 */

/*
 * index: the names and metadata of one layer, as one immutable file that is mapped.
 *
 * The file "index/<key>" is arrays as they lie in memory, in the byte order of the host (another
 * order reads as another version, and the index is made again). Each array is aligned to 8.
 *
 *	header   struct index_header: what the layer is, counts, where the arrays are
 *	entries  24 bytes a name. Breadth-first: the root is entry 0; the entries of a folder follow
 *	         each other, sorted by name bytes, so that a lookup is a binary search and a listing
 *	         is one run of memory
 *	inodes   64 bytes, one cache line: everything that stat shows. Numbered in the order of their
 *	         first names, so that a listing walks through them forwards, too
 *	digests  32 bytes each, sha256 of a file's content where known
 *	extents  24 bytes each, only for sparse files: content that is one run needs none
 *	names    bytes of names and symlink targets, without terminators
 *	xattrs   sets of xattrs; equal sets are kept once. A set is u32 n, then n times
 *	         u16 length of the name, u32 length of the value, name, value. The first is empty
 *
 * An entry's id in the tree is 1 + the first entry of its inode: hard links share it, the root's
 * is TREE_ROOT, and it stays the same as long as the layer does.
 *
 * A large layer is 100,000 files and its index is mapped at every mount: opening checks the header
 * (which carries a hash of itself) and that the arrays are inside the file. Everything else is
 * checked where it is used, so that a damaged index gives -EBADMSG and never a wild read. Walking
 * down always ends, as children come after their folder.
 */

#include "merge/merge.h"

#include <assert.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "merge/merge-internal.h"

struct index {
	const uint8_t *bytes;
	size_t len;
	bool is_mapped;
	struct index_header h;
	const struct index_entry *entries;
	const struct index_inode *inodes;
	const struct digest *digests;
	const struct index_extent *extents;
	const char *names;
	const uint8_t *xattrs;
};

static int damaged(struct err *err, const char *what)
{
	return err_set(err, -EBADMSG, "layer index: %s", what);
}

/* ------------------------------------------------------------------ opening */

static bool has_part(const struct index_part *p, size_t item, size_t len)
{
	return p->off <= len && p->off % 8 == 0 && p->n <= (len - p->off) / item;
}

void index_header_seal(struct index_header *h)
{
	struct digest d;

	digest_bytes(&d, h, offsetof(struct index_header, seal));
	memcpy(h->seal, d.bytes, sizeof(h->seal));
}

static bool is_sealed(const struct index_header *h)
{
	struct index_header copy = *h;

	index_header_seal(&copy);
	return memcmp(copy.seal, h->seal, sizeof(h->seal)) == 0;
}

int index_parse(struct index **out, const void *bytes, size_t n, struct err *err)
{
	struct index_header h;

	assert((uintptr_t)bytes % 8 == 0);
	if (n < sizeof(h))
		return damaged(err, "too short");
	memcpy(&h, bytes, sizeof(h));
	if (memcmp(h.magic, INDEX_MAGIC, sizeof(h.magic)) != 0 || h.version != INDEX_VERSION)
		return damaged(err, "not one of this version");
	if (!is_sealed(&h) || h.file_size != n)
		return damaged(err, "cut off or damaged");
	if (!has_part(&h.entries, sizeof(struct index_entry), n) ||
	    !has_part(&h.inodes, sizeof(struct index_inode), n) ||
	    !has_part(&h.digests, sizeof(struct digest), n) ||
	    !has_part(&h.extents, sizeof(struct index_extent), n) || !has_part(&h.names, 1, n) ||
	    !has_part(&h.xattrs, 1, n) || h.entries.n == 0 || h.entries.n >= INDEX_NONE)
		return damaged(err, "parts outside the file");

	struct index *x = malloc(sizeof(*x));
	if (!x)
		return err_set(err, -ENOMEM, "layer index: no memory");
	const uint8_t *b = bytes;
	*x = (struct index){
		.bytes = b,
		.len = n,
		.h = h,
		.entries = (const void *)(b + h.entries.off),
		.inodes = (const void *)(b + h.inodes.off),
		.digests = (const void *)(b + h.digests.off),
		.extents = (const void *)(b + h.extents.off),
		.names = (const void *)(b + h.names.off),
		.xattrs = b + h.xattrs.off,
	};
	*out = x;
	return 0;
}

int index_map(struct index **out, int fd, struct err *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return err_errno(err, "layer index");
	if (st.st_size <= 0)
		return damaged(err, "empty");
	size_t len = (size_t)st.st_size;
	void *map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return err_errno(err, "layer index: mmap");
	int r = index_parse(out, map, len, err);
	if (r < 0)
		munmap(map, len);
	else
		(*out)->is_mapped = true;
	return r;
}

void index_free(struct index *x)
{
	if (!x)
		return;
	if (x->is_mapped)
		munmap((void *)x->bytes, x->len);
	free(x);
}

void index_about(const struct index *x, struct index_about *out)
{
	*out = (struct index_about){
		.format =
			x->h.format < LAYER_LOCAL ? (enum layer_format)x->h.format : LAYER_UNKNOWN,
		.n_entries = x->h.entries.n,
		.n_files = x->h.n_files,
		.file_bytes = x->h.file_bytes,
		.large_bytes = x->h.large_bytes,
		.prefetch_bytes = x->h.prefetch_bytes,
	};
	memcpy(out->digest.bytes, x->h.digest, sizeof(out->digest.bytes));
	memcpy(out->diff_id.bytes, x->h.diff_id, sizeof(out->diff_id.bytes));
}

uint32_t index_count(const struct index *x)
{
	return (uint32_t)x->h.entries.n;
}

/* ------------------------------------------------------------------ entries */

static const struct index_entry *entry_at(const struct index *x, uint32_t i)
{
	return i < x->h.entries.n ? &x->entries[i] : NULL;
}

static const struct index_inode *inode_of(const struct index *x, uint32_t entry)
{
	const struct index_entry *e = entry_at(x, entry);

	return e && e->inode < x->h.inodes.n ? &x->inodes[e->inode] : NULL;
}

static bool has_name(const struct index *x, const struct index_entry *e)
{
	return e->name <= x->h.names.n && e->name_len <= x->h.names.n - e->name;
}

int index_attr(const struct index *x, uint32_t entry, struct attr *out)
{
	const struct index_inode *ino = inode_of(x, entry);

	if (!ino || ino->entry >= x->h.entries.n)
		return -EBADMSG;
	const struct index_entry *e = &x->entries[entry];
	*out = (struct attr){
		.id = TREE_ROOT + ino->entry,
		.type = e->type,
		.is_opaque = e->flags & INDEX_OPAQUE,
		.is_implicit = e->flags & INDEX_IMPLICIT,
		.mode = ino->mode & 07777,
		.uid = ino->uid,
		.gid = ino->gid,
		.nlink = ino->nlink,
		.size = ino->size,
		.mtime_s = ino->mtime_s,
		.mtime_ns = ino->mtime_ns,
	};
	switch (e->type) {
	case NODE_FILE:
		out->n_bytes_allocated = ino->extents == INDEX_NONE ? ino->size : ino->allocated;
		return 0;
	case NODE_CHAR:
	case NODE_BLOCK:
		out->dev_major = (uint32_t)(ino->where >> 32);
		out->dev_minor = (uint32_t)ino->where;
		return 0;
	case NODE_DIR:
	case NODE_SYMLINK:
	case NODE_FIFO:
	case NODE_WHITEOUT:
		return 0;
	default:
		return -EBADMSG;
	}
}

int index_children(const struct index *x, uint32_t dir, uint32_t *first, uint32_t *n)
{
	const struct index_entry *e = entry_at(x, dir);

	if (!e)
		return -EBADMSG;
	if (e->type != NODE_DIR)
		return -ENOTDIR;
	*first = e->first_child;
	*n = e->n_children;
	bool is_sane =
		e->n_children == 0 || (e->first_child > dir && e->first_child < x->h.entries.n &&
				       e->n_children <= x->h.entries.n - e->first_child);
	return is_sane ? 0 : -EBADMSG;
}

int index_find(const struct index *x, uint32_t dir, const char *name, size_t len, uint32_t *entry)
{
	uint32_t lo, n;
	int r = index_children(x, dir, &lo, &n);

	if (r < 0)
		return r;
	uint32_t hi = lo + n;
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		const struct index_entry *e = &x->entries[mid];
		if (!has_name(x, e))
			return -EBADMSG;
		int c = memcmp(name, x->names + e->name, MIN(len, (size_t)e->name_len));
		if (c == 0 && len == e->name_len) {
			*entry = mid;
			return e->parent == dir ? 0 : -EBADMSG;
		}
		if (c > 0 || (c == 0 && len > e->name_len))
			lo = mid + 1;
		else
			hi = mid;
	}
	return -ENOENT;
}

int index_name(const struct index *x, uint32_t entry, const char **name, size_t *len)
{
	const struct index_entry *e = entry_at(x, entry);

	if (!e || !has_name(x, e) || (entry != 0 && e->name_len == 0))
		return -EBADMSG;
	*name = x->names + e->name;
	*len = e->name_len;
	return 0;
}

int index_parent(const struct index *x, uint32_t entry, uint32_t *parent)
{
	const struct index_entry *e = entry_at(x, entry);

	if (!e || (entry != 0 && e->parent >= entry) || (entry == 0 && e->parent != 0))
		return -EBADMSG;
	*parent = e->parent;
	return 0;
}

int index_target(const struct index *x, uint32_t entry, const char **target, size_t *len)
{
	const struct index_inode *ino = inode_of(x, entry);

	if (!ino)
		return -EBADMSG;
	if (x->entries[entry].type != NODE_SYMLINK)
		return -EINVAL;
	if (ino->where > x->h.names.n || ino->size > x->h.names.n - ino->where)
		return -EBADMSG;
	*target = x->names + ino->where;
	*len = (size_t)ino->size;
	return 0;
}

/* ------------------------------------------------------------------ xattrs */

int index_xattr_next(const uint8_t **p, size_t *left, struct index_xattr_ref *out)
{
	if (*left < 6)
		return -EBADMSG;
	out->name_len = le16(*p);
	out->value_len = le32(*p + 2);
	*p += 6;
	*left -= 6;
	if (out->name_len > XATTR_NAME_LEN_MAX || out->name_len > *left ||
	    out->value_len > *left - out->name_len)
		return -EBADMSG;
	out->name = (const char *)*p;
	out->value = *p + out->name_len;
	*p += out->name_len + out->value_len;
	*left -= out->name_len + out->value_len;
	return 0;
}

int index_xattrs(const struct index *x, uint32_t entry, tree_xattr_fn fn, void *arg)
{
	const struct index_inode *ino = inode_of(x, entry);

	if (!ino || ino->xattrs > x->h.xattrs.n || x->h.xattrs.n - ino->xattrs < 4)
		return -EBADMSG;
	const uint8_t *p = x->xattrs + ino->xattrs;
	size_t left = x->h.xattrs.n - ino->xattrs - 4;
	uint32_t n = le32(p);
	p += 4;
	for (uint32_t i = 0; i < n; i++) {
		struct index_xattr_ref ref;
		char name[XATTR_NAME_LEN_MAX + 1];
		if (index_xattr_next(&p, &left, &ref) < 0)
			return -EBADMSG;
		memcpy(name, ref.name, ref.name_len);
		name[ref.name_len] = '\0';
		int r = fn(arg, name, ref.value, ref.value_len);
		if (r != 0)
			return r;
	}
	return 0;
}

/* ------------------------------------------------------------------ content */

int index_content(const struct index *x, uint32_t entry, struct index_content *out)
{
	const struct index_inode *ino = inode_of(x, entry);

	if (!ino)
		return -EBADMSG;
	if (x->entries[entry].type != NODE_FILE)
		return -EINVAL;
	if (ino->size > INT64_MAX || ino->where > INT64_MAX)
		return -EBADMSG;
	*out = (struct index_content){.size = ino->size};
	if (ino->extents == INDEX_NONE) {
		out->whole = (struct index_extent){.len = ino->size, .plain_off = ino->where};
		out->n_extents = ino->size ? 1 : 0;
		return 0;
	}
	if (ino->extents > x->h.extents.n || ino->n_extents > x->h.extents.n - ino->extents)
		return -EBADMSG;
	out->is_sparse = true;
	out->extents = x->extents + ino->extents;
	out->n_extents = ino->n_extents;
	return 0;
}

int index_extent_at(const struct index_content *c, uint32_t i, struct index_extent *out)
{
	if (i >= c->n_extents)
		return -EBADMSG;
	if (!c->is_sparse) {
		*out = c->whole;
		return 0;
	}
	*out = c->extents[i];
	if (out->len > c->size || out->file_off > c->size - out->len || out->plain_off > INT64_MAX)
		return -EBADMSG;
	if (i > 0) {
		const struct index_extent *before = &c->extents[i - 1];
		if (before->file_off > out->file_off ||
		    before->len > out->file_off - before->file_off)
			return -EBADMSG;
	}
	return 0;
}

uint32_t index_extent_find(const struct index_content *c, uint64_t file_off)
{
	uint32_t lo = 0, hi = c->n_extents;

	if (!c->is_sparse)
		return file_off < c->size ? 0 : hi;
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		if (c->extents[mid].file_off + c->extents[mid].len <= file_off)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

int index_digest(const struct index *x, uint32_t entry, struct digest *out)
{
	const struct index_inode *ino = inode_of(x, entry);

	if (!ino)
		return -EBADMSG;
	if (x->entries[entry].type != NODE_FILE || ino->digest == INDEX_NONE)
		return -ENOENT;
	if (ino->digest >= x->h.digests.n)
		return -EBADMSG;
	*out = x->digests[ino->digest];
	return 0;
}
