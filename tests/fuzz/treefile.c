/* SPDX-License-Identifier: Apache-2.0 */

/* The file of a made tree as it may lie damaged in the store: it makes no sense, or everything can
 * be asked of it, the walk ends, and it is written again as it was read. */

#include "merge/merge.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int ask_xattr(void *arg, const char *name, const void *value, size_t len)
{
	*(uint64_t *)arg ^= hash_bytes(name, strlen(name)) ^ hash_bytes(value, len);
	return 0;
}

static int ask_node(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct tree *t = arg;
	scoped(strbuf_free) struct strbuf text = {0};
	struct digest digest;
	uint64_t sum = 0, parent, data, end;

	if (tree_xattrs(t, attr->id, ask_xattr, &sum, NULL) < 0)
		abort();
	if (attr->type == NODE_SYMLINK && tree_readlink(t, attr->id, &text, NULL) < 0)
		abort();
	if (attr->type == NODE_DIR && tree_parent(t, attr->id, &parent, &text, NULL) < 0)
		abort();
	if (attr->type == NODE_FILE) {
		tree_content_digest(t, attr->id, &digest);
		if (tree_seek_data(t, attr->id, 0, &data, &end) == 0 && end > attr->size)
			abort();
	}
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(tree_unref) struct tree *t = NULL;
	scoped(treefile_deinit) struct treefile file = {0};

	if (treefile_parse(&t, NULL, data, size, NULL, 0, NULL) < 0)
		return 0;
	if (tree_walk_all(t, TREE_ROOT, ask_node, t, NULL) < 0)
		abort();
	if (treefile_write(&file, t, NULL, NULL) < 0)
		abort();
	/* But for texts that are not needed, and layers that no file is in. */
	if (file.bytes.len > size + 64)
		abort();
	return 0;
}
