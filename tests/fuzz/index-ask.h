/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Asks an index for everything about every entry. One that was just made must answer all of it;
 * one made of foreign bytes may say -EBADMSG, but must not crash, and a walk down must end.
 */

#include <assert.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

static int index_ask_xattr(void *arg, const char *name, const void *value, size_t len)
{
	/* every byte is there to be read */
	(void)(hash_bytes(name, strlen(name)) ^ hash_bytes(value, len));
	return 0;
}

static void index_ask_content(const struct index *x, uint32_t i, bool is_sound)
{
	struct index_content c;
	struct index_extent e;

	if (index_content(x, i, &c) < 0)
		return;
	uint32_t found = index_extent_find(&c, c.size / 2);
	assert(found <= c.n_extents);
	for (uint32_t k = 0; k < c.n_extents; k++) {
		int r = index_extent_at(&c, k, &e);
		assert(!is_sound || r == 0);
		assert(r < 0 || (e.file_off <= c.size && e.len <= c.size - e.file_off));
	}
}

static void index_ask_names(const struct index *x, uint32_t dir, uint32_t first, uint32_t n,
			    bool is_sound)
{
	for (uint32_t i = first; i < first + n; i++) {
		const char *name;
		uint32_t found, parent;
		size_t len;
		int r = index_name(x, i, &name, &len);
		if (r == 0)
			r = index_find(x, dir, name, len, &found);
		if (!is_sound)
			continue;
		assert(r == 0 && found == i && len >= 1 && len <= 255);
		assert(!memchr(name, '/', len) && index_parent(x, i, &parent) == 0 &&
		       parent == dir);
	}
}

static void index_ask(const void *bytes, size_t n, bool is_sound)
{
	scoped(index_free) struct index *x = NULL;

	if (index_parse(&x, bytes, n, NULL) < 0) {
		assert(!is_sound);
		return;
	}
	for (uint32_t i = 0; i < index_count(x); i++) {
		struct attr a;
		struct digest d;
		const char *text;
		uint32_t first, n_children;
		size_t len;
		int r = index_attr(x, i, &a);
		assert(!is_sound || (r == 0 && a.nlink > 0 && a.id <= i + TREE_ROOT));
		r = index_xattrs(x, i, index_ask_xattr, NULL);
		assert(!is_sound || r == 0);
		index_digest(x, i, &d);
		if (index_target(x, i, &text, &len) == 0)
			hash_bytes(text, len);
		index_ask_content(x, i, is_sound);
		if (index_children(x, i, &first, &n_children) == 0)
			index_ask_names(x, i, first, n_children, is_sound);
	}
}
