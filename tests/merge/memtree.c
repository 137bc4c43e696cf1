/* SPDX-License-Identifier: Apache-2.0 */

/* memtree: the tree that other tests stand on. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "merge/merge.h"

static const struct attr file_attr = {.type = NODE_FILE, .mode = 0644, .uid = 7, .mtime_s = 99};
static const struct attr dir_attr = {.type = NODE_DIR, .mode = 0700, .gid = 5};

static int make(void **state)
{
	return memtree_new((struct tree **)state);
}

static int drop(void **state)
{
	*state = tree_unref(*state);
	return 0;
}

static void add_file(struct tree *t, const char *path, const char *text)
{
	assert_int_equal(memtree_add(t, path, &file_attr, text, strlen(text)), 0);
}

static int name_to_text(void *arg, const char *name, size_t len, const struct attr *attr,
			uint64_t next)
{
	struct strbuf *out = arg;

	assert_int_equal(strlen(name), len);
	strbuf_printf(out, "%s@%d ", name, (int)next);
	return 0;
}

static void the_root_is_a_made_up_folder(void **state)
{
	struct attr a;

	assert_int_equal(tree_getattr(*state, TREE_ROOT, &a, NULL, NULL), 0);
	assert_int_equal(a.type, NODE_DIR);
	assert_int_equal(a.mode, 0755);
	assert_true(a.is_implicit);
	assert_int_equal(tree_getattr(*state, 2, &a, NULL, NULL), -ENOENT);
	assert_int_equal(tree_getattr(*state, 0, &a, NULL, NULL), -ENOENT);
}

static void parents_are_made_and_told_apart_from_given_ones(void **state)
{
	struct tree *t = *state;
	struct attr a;

	add_file(t, "/a/b/f", "x");
	assert_int_equal(tree_walk(t, "/a/b", false, &a, NULL), 0);
	assert_true(a.is_implicit);
	assert_int_equal(memtree_add(t, "a/b", &dir_attr, NULL, 0), 0);
	assert_int_equal(tree_walk(t, "/a/b", false, &a, NULL), 0);
	assert_false(a.is_implicit);
	assert_int_equal(a.mode, 0700);
	assert_int_equal(a.nlink, 2);
	assert_int_equal(tree_walk(t, "/a/b/f", false, &a, NULL), 0);
}

static void entries_are_listed_by_name_and_from_any_cookie(void **state)
{
	scoped(strbuf_free) struct strbuf all = {0}, rest = {0};
	struct tree *t = *state;

	for (const char *const *p = (const char *const[]){"b", "a.x", "a", "B", "a-x", "ab", NULL};
	     *p; p++)
		add_file(t, *p, *p);
	assert_int_equal(tree_list(t, TREE_ROOT, 0, name_to_text, &all, NULL, NULL), 0);
	assert_string_equal(all.data, "B@1 a@2 a-x@3 a.x@4 ab@5 b@6 ");
	assert_int_equal(tree_list(t, TREE_ROOT, 4, name_to_text, &rest, NULL, NULL), 0);
	assert_string_equal(rest.data, "ab@5 b@6 ");
	assert_int_equal(tree_list(t, TREE_ROOT, 6, name_to_text, &rest, NULL, NULL), 0);
	assert_int_equal(tree_list(t, TREE_ROOT, UINT64_MAX, name_to_text, &rest, NULL, NULL), 0);
	assert_string_equal(rest.data, "ab@5 b@6 ");
}

static void hard_links_share_an_id_and_count(void **state)
{
	struct tree *t = *state;
	struct attr a, b;

	add_file(t, "/f", "text");
	assert_int_equal(memtree_link(t, "/d/g", "/f"), 0);
	assert_int_equal(memtree_link(t, "/d/g", "/f"), -EEXIST);
	assert_int_equal(memtree_link(t, "/h", "/nothing"), -ENOENT);
	assert_int_equal(memtree_link(t, "/h", "/d"), -EPERM);
	assert_int_equal(tree_walk(t, "/f", false, &a, NULL), 0);
	assert_int_equal(tree_walk(t, "/d/g", false, &b, NULL), 0);
	assert_int_equal(a.id, b.id);
	assert_int_equal(a.nlink, 2);
}

static void a_file_is_never_replaced_or_entered(void **state)
{
	struct tree *t = *state;

	add_file(t, "/f", "text");
	assert_int_equal(memtree_add(t, "/f", &file_attr, "x", 1), -EEXIST);
	assert_int_equal(memtree_add(t, "/f", &dir_attr, NULL, 0), -EEXIST);
	assert_int_equal(memtree_add(t, "/f/g", &file_attr, "x", 1), -ENOTDIR);
}

static void reads_end_where_the_file_ends(void **state)
{
	struct tree *t = *state;
	struct attr a;
	char buf[16] = {0};
	uint64_t data, end;

	add_file(t, "/f", "0123456789");
	assert_int_equal(tree_walk(t, "/f", false, &a, NULL), 0);
	assert_int_equal(a.size, 10);
	assert_int_equal(tree_read(t, a.id, 7, buf, sizeof(buf), NULL, NULL, NULL), 3);
	assert_string_equal(buf, "789");
	assert_int_equal(tree_read(t, a.id, 10, buf, 1, NULL, NULL, NULL), 0);
	assert_int_equal(tree_read(t, a.id, UINT64_MAX, buf, 1, NULL, NULL, NULL), 0);
	assert_int_equal(tree_read(t, TREE_ROOT, 0, buf, 1, NULL, NULL, NULL), -EISDIR);
	assert_int_equal(tree_seek_data(t, a.id, 4, &data, &end), 0);
	assert_int_equal(data, 4);
	assert_int_equal(end, 10);
	assert_int_equal(tree_seek_data(t, a.id, 10, &data, &end), -ENODATA);
}

static void a_folder_knows_its_parent_and_its_name(void **state)
{
	scoped(strbuf_free) struct strbuf name = {0};
	struct tree *t = *state;
	struct attr a, b;
	uint64_t up;

	add_file(t, "/a/b/f", "x");
	assert_int_equal(tree_walk(t, "/a", false, &a, NULL), 0);
	assert_int_equal(tree_walk(t, "/a/b", false, &b, NULL), 0);
	assert_int_equal(tree_parent(t, b.id, &up, &name, NULL), 0);
	assert_int_equal(up, a.id);
	assert_string_equal(name.data, "b");
	assert_int_equal(tree_parent(t, TREE_ROOT, &up, &name, NULL), 0);
	assert_int_equal(up, TREE_ROOT);
	assert_int_equal(tree_walk(t, "/a/b/f", false, &b, NULL), 0);
	assert_int_equal(tree_parent(t, b.id, &up, &name, NULL), -ENOTDIR);
}

int main(void)
{
#define test(name) cmocka_unit_test_setup_teardown(name, make, drop)
	const struct CMUnitTest tests[] = {
		test(the_root_is_a_made_up_folder),
		test(parents_are_made_and_told_apart_from_given_ones),
		test(entries_are_listed_by_name_and_from_any_cookie),
		test(hard_links_share_an_id_and_count),
		test(a_file_is_never_replaced_or_entered),
		test(reads_end_where_the_file_ends),
		test(a_folder_knows_its_parent_and_its_name),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
