/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * merge, inside: what the files of this folder share and nobody else sees.
 */

#include "merge/merge.h"

/* ------------------------------------------------------------------ trees (tree.c) */

/* Fills in the common part of a new tree, with one reference. */
void tree_init(struct tree *t, const struct tree_ops *ops, uint32_t n_leaves, bool is_live);

/* tree_walk that may say "later": with a @wait it returns -EAGAIN as lookups do, and is then
 * called again from the start. @real may be NULL. */
int tree_walk_wait(struct tree *t, const char *path, bool follow, struct attr *out,
		   struct strbuf *real, struct tree_wait *wait, struct err *err);

/* A folder's whole listing, copied. Names are NUL-terminated in one buffer. */
struct tree_entry {
	struct attr attr;
	size_t name_off;
	uint32_t name_len;
};
struct tree_listing {
	vec(struct tree_entry) entries;
	struct strbuf names;
};
/* Fills @out, whatever it held; empty after an error. */
int tree_listing_read(struct tree_listing *out, struct tree *t, uint64_t dir,
		      struct tree_wait *wait, struct err *err);
void tree_listing_deinit(struct tree_listing *l);
static inline const char *tree_entry_name(const struct tree_listing *l, const struct tree_entry *e)
{
	return l->names.data + e->name_off;
}
