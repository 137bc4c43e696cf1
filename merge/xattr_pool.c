/* SPDX-License-Identifier: Apache-2.0 */

/*
 * xattr_pool: the sets of xattrs of a layer's inodes, equal ones kept once. The bytes of a set are
 * described at the head of index.c; a set's number is its offset.
 */

#include "merge/merge.h"

#include <assert.h>

#include "merge/merge-internal.h"

#define XATTR_SIZE_MAX 65536 /* the kernel's */

int xattr_pool_init(struct xattr_pool *pool)
{
	static const uint8_t empty_set[4];

	*pool = (struct xattr_pool){0};
	strbuf_add(&pool->bytes, empty_set, sizeof(empty_set));
	return pool->bytes.failed ? -ENOMEM : 0;
}

void xattr_pool_deinit(struct xattr_pool *pool)
{
	strbuf_free(&pool->bytes);
	free(pool->slots);
}

struct xattr {
	struct index_xattr_ref ref;
	size_t rank; /* of equal names the one with the lowest is kept */
};
typedef vec(struct xattr) xattr_vec;

static int compare_names(const struct xattr *x, const struct xattr *y)
{
	int c = memcmp(x->ref.name, y->ref.name, MIN(x->ref.name_len, y->ref.name_len));

	return c ? c : (x->ref.name_len > y->ref.name_len) - (x->ref.name_len < y->ref.name_len);
}

static int compare_xattrs(const void *a, const void *b)
{
	const struct xattr *x = a, *y = b;
	int c = compare_names(x, y);

	return c ? c : (x->rank > y->rank) - (x->rank < y->rank);
}

static bool is_kept(const struct index_xattr *x)
{
	size_t len = strlen(x->name);
	const char *dot = strchr(x->name, '.');

	return len > 0 && len <= XATTR_NAME_LEN_MAX && x->len <= XATTR_SIZE_MAX &&
	       !str_starts(x->name, "trusted.") && !(dot && str_starts(dot, ".overlay."));
}

/* Puts a packed set into the pool, once. */
static int keep_set(struct xattr_pool *pool, const struct strbuf *set, uint32_t *off)
{
	if (pool->n_sets >= pool->n_slots / 2) {
		size_t n = pool->n_slots ? pool->n_slots * 2 : 64;
		uint32_t *slots = calloc(n, sizeof(*slots));
		if (!slots)
			return -ENOMEM;
		/* Old places are forgotten: a set is then kept once more, a few times in all. */
		free(pool->slots);
		pool->slots = slots;
		pool->n_slots = n;
		pool->n_sets = 0;
	}
	for (size_t i = hash_bytes(set->data, set->len);; i++) {
		uint32_t *slot = &pool->slots[i & (pool->n_slots - 1)];
		if (!*slot) {
			if (pool->bytes.len > UINT32_MAX - set->len)
				return -ENOMEM;
			*slot = (uint32_t)pool->bytes.len;
			pool->n_sets++;
			strbuf_add(&pool->bytes, set->data, set->len);
			*off = *slot;
			return pool->bytes.failed ? -ENOMEM : 0;
		}
		if (pool->bytes.len - *slot >= set->len &&
		    memcmp(pool->bytes.data + *slot, set->data, set->len) == 0) {
			*off = *slot;
			return 0;
		}
	}
}

static void pack_le(struct strbuf *s, uint32_t value, size_t n)
{
	for (size_t i = 0; i < n; i++)
		strbuf_putc(s, (char)(value >> 8 * i));
}

/* Sorts, drops what is named twice, and packs: see index.c. */
static void pack_set(struct strbuf *out, struct xattr *xattrs, size_t n)
{
	uint32_t n_kept = 0;

	qsort(xattrs, n, sizeof(*xattrs), compare_xattrs);
	for (size_t i = 0; i < n; i++) {
		if (n_kept == 0 || compare_names(&xattrs[n_kept - 1], &xattrs[i]) != 0)
			xattrs[n_kept++] = xattrs[i];
	}
	pack_le(out, n_kept, 4);
	for (size_t i = 0; i < n_kept; i++) {
		const struct index_xattr_ref *ref = &xattrs[i].ref;
		pack_le(out, ref->name_len, 2);
		pack_le(out, ref->value_len, 4);
		strbuf_add(out, ref->name, ref->name_len);
		strbuf_add(out, ref->value, ref->value_len);
	}
}

static int gather(const struct xattr_pool *pool, const struct index_xattr *items, size_t n,
		  uint32_t old_set, xattr_vec *out)
{
	for (size_t i = 0; i < n; i++) {
		if (!is_kept(&items[i]))
			continue;
		struct xattr *to = vec_push(out);
		if (!to)
			return -ENOMEM;
		*to = (struct xattr){.rank = i,
				     .ref = {.name = items[i].name,
					     .name_len = (uint32_t)strlen(items[i].name),
					     .value = items[i].value,
					     .value_len = (uint32_t)items[i].len}};
	}
	if (!out->n)
		return 0; /* the old set stays as it is */
	const uint8_t *p = (const uint8_t *)pool->bytes.data + old_set;
	size_t left = pool->bytes.len - old_set - 4;
	size_t n_old = le32(p);
	p += 4;
	for (size_t i = 0; i < n_old; i++) {
		struct xattr *to = vec_push(out);
		if (!to)
			return -ENOMEM;
		to->rank = n + i;
		int r = index_xattr_next(&p, &left, &to->ref);
		assert(r == 0);
	}
	return 0;
}

int xattr_pool_merge(struct xattr_pool *pool, const struct index_xattr *items, size_t n,
		     uint32_t *set)
{
	xattr_vec all = {0};
	scoped(strbuf_free) struct strbuf packed = {0};
	int r = gather(pool, items, n, *set, &all);

	if (r == 0 && all.n) {
		pack_set(&packed, all.items, all.n);
		r = packed.failed ? -ENOMEM : keep_set(pool, &packed, set);
	}
	vec_free(&all);
	return r;
}
