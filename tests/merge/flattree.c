/* SPDX-License-Identifier: Apache-2.0 */

/* flattree: a flat file of the store as a tree, and what an edit that points to it reads. */

#include "merge/merge.h"
#include "tests/test.h"

static const char text[] = "0123456789";

struct fixture {
	char *dir;
	struct store *store;
	struct digest digest;
	struct tree *tree;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct remote *remote;
	uint64_t size = strlen(text);

	f->dir = test_dir();
	f->store = test_store(f->dir, 0);
	assert_int_equal(remote_memory_new(&remote, NULL), 0);
	assert_int_equal(remote_memory_add(remote, text, size, &f->digest), 0);
	assert_int_equal(content_fetch(f->store, remote, &f->digest, &size, NULL), 0);
	remote_unref(remote);
	assert_int_equal(flattree_new(&f->tree, f->store, &f->digest, size), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	tree_unref(f->tree);
	store_close(f->store);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

static void it_is_one_file(void **state)
{
	struct fixture *f = *state;
	struct attr attr, root;
	uint64_t data, end, parent;
	struct digest digest;
	struct strbuf name = {0};

	assert_int_equal(tree_walk(f->tree, "/content", false, &attr, NULL), 0);
	assert_int_equal(attr.id, FLATTREE_FILE);
	assert_int_equal(attr.size, 10);
	assert_int_equal(tree_getattr(f->tree, TREE_ROOT, &root, NULL, NULL), 0);
	assert_int_equal(root.type, NODE_DIR);
	assert_int_equal(tree_getattr(f->tree, 3, &root, NULL, NULL), -ENOENT);
	assert_int_equal(tree_walk(f->tree, "/other", false, &attr, NULL), -ENOENT);
	assert_int_equal(tree_walk(f->tree, "/content/x", false, &attr, NULL), -ENOTDIR);
	assert_int_equal(tree_content_digest(f->tree, FLATTREE_FILE, &digest), 0);
	assert_true(digest_equal(&digest, &f->digest));
	assert_int_equal(tree_seek_data(f->tree, FLATTREE_FILE, 3, &data, &end), 0);
	assert_int_equal(data, 3);
	assert_int_equal(end, 10);
	assert_int_equal(tree_seek_data(f->tree, FLATTREE_FILE, 10, &data, &end), -ENODATA);
	assert_int_equal(tree_parent(f->tree, TREE_ROOT, &parent, &name, NULL), 0);
	assert_int_equal(parent, TREE_ROOT);
	assert_int_equal(tree_parent(f->tree, FLATTREE_FILE, &parent, &name, NULL), -ENOTDIR);
	strbuf_free(&name);
}

static void it_is_read(void **state)
{
	struct fixture *f = *state;
	char got[16] = "";
	int fd;

	assert_int_equal(tree_read(f->tree, FLATTREE_FILE, 0, got, 16, NULL, NULL, NULL), 10);
	assert_string_equal(got, text);
	assert_int_equal(tree_read(f->tree, FLATTREE_FILE, 8, got, 1, NULL, NULL, NULL), 1);
	assert_int_equal(got[0], '8');
	assert_int_equal(tree_read(f->tree, FLATTREE_FILE, 10, got, 1, NULL, NULL, NULL), 0);
	assert_int_equal(tree_read(f->tree, TREE_ROOT, 0, got, 1, NULL, NULL, NULL), -EISDIR);
	assert_int_equal(tree_open_flat(f->tree, FLATTREE_FILE, false, &fd, NULL), 0);
	close_fd(fd);
}

static void an_edit_points_to_it(void **state)
{
	struct fixture *f = *state;
	scoped(edit_free) struct edit *edit = NULL;
	scoped(tree_unref) struct tree *layer = NULL;
	struct attr was, attr = {.type = NODE_FILE, .mode = 0640, .size = 10};
	struct edit_what what = {
		.attr = &attr, .from = f->tree, .from_id = FLATTREE_FILE, .was = &was};
	char got[16] = "";
	uint64_t node;

	assert_int_equal(tree_getattr(f->tree, FLATTREE_FILE, &was, NULL, NULL), 0);
	assert_int_equal(edit_new(&edit, NULL, NULL), 0);
	assert_int_equal(edit_make(edit, TREE_ROOT, "f", 1, &what, &node, NULL), 0);
	assert_int_equal(edit_seal(&layer, &edit, NULL), 0);
	assert_int_equal(tree_walk(layer, "/f", false, &attr, NULL), 0);
	assert_int_equal(attr.mode, 0640);
	assert_int_equal(tree_read(layer, attr.id, 0, got, 16, NULL, NULL, NULL), 10);
	assert_string_equal(got, text);
}

static void what_is_lost_is_an_error(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	char hex[DIGEST_HEX_MAX], got[16];

	assert_int_equal(store_file_remove(f->store, "content", digest_hex(&f->digest, hex)), 0);
	assert_int_equal(tree_read(f->tree, FLATTREE_FILE, 0, got, 16, NULL, NULL, &err), -ENOENT);
	assert_non_null(strstr(err.text, hex));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(it_is_one_file, set_up, tear_down),
		cmocka_unit_test_setup_teardown(it_is_read, set_up, tear_down),
		cmocka_unit_test_setup_teardown(an_edit_points_to_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_is_lost_is_an_error, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
