/* SPDX-License-Identifier: Apache-2.0 */

/* ref and ref_tree: merges, slices, and the one tree that becomes of them. */

#include "solver/solver-internal.h"
#include "tests/solver/layout.h"
#include "tests/test.h"

static char *root; /* of the folders of a test */
static char slash_a[] = "/a";

static int make_root(void **state)
{
	root = test_dir();
	return 0;
}

static int remove_root(void **state)
{
	test_dir_remove(root);
	return 0;
}

/* A ref to the folder @name, which is made with one file in it. */
static struct ref *folder(const char *name, const char *file, const char *text)
{
	scoped(free) char *dir = str_printf("%s/%s", root, name);
	struct ref *ref;

	file_write(dir, file, text, strlen(text));
	assert_int_equal(ref_folder(&ref, name, dir, NULL), 0);
	return ref;
}

/* Merges and drops the parts' references. */
static struct ref *merge(struct ref_part *parts, size_t n)
{
	struct ref *ref;
	struct err err = {0};

	if (ref_merge(&ref, parts, n, &err) < 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < n; i++) {
		bool is_again = false;
		for (size_t k = 0; k < i; k++)
			is_again = is_again || parts[k].ref == parts[i].ref;
		if (!is_again)
			ref_unref(parts[i].ref);
	}
	return ref;
}

static struct tree *tree_of(struct ref *ref)
{
	struct tree *tree;
	struct err err = {0};

	if (ref_tree(&tree, ref, NULL, NULL, NULL, &err) < 0)
		fail_msg("%s", err.text);
	return tree;
}

static void expect_text(struct tree *t, const char *path, const char *text)
{
	struct attr attr;
	struct err err = {0};
	char bytes[100] = {0};

	if (tree_walk(t, path, false, &attr, &err) < 0)
		fail_msg("%s: %s", path, err.text);
	int64_t n = tree_read(t, attr.id, 0, bytes, sizeof(bytes) - 1, NULL, NULL, &err);
	if (n < 0)
		fail_msg("%s: %s", path, err.text);
	assert_string_equal(bytes, text);
}

static void expect_none(struct tree *t, const char *path)
{
	struct attr attr;

	assert_int_equal(tree_walk(t, path, false, &attr, NULL), -ENOENT);
}

static void a_merge_of_one_is_it_and_of_none_is_scratch(void **state)
{
	struct ref *a = folder("a", "f", "a"), *scratch, *m;

	assert_int_equal(ref_merge(&m, &(struct ref_part){a}, 1, NULL), 0);
	assert_ptr_equal(m, a);
	ref_unref(m);
	assert_int_equal(ref_merge(&m, NULL, 0, NULL), 0);
	assert_int_equal(ref_kind(m), REF_SCRATCH);
	ref_unref(m);
	assert_int_equal(ref_scratch(&scratch, NULL), 0);
	struct ref_part parts[] = {
		{scratch}, {a, .trim = (char[]){"//."}}, {scratch, .add = (char[]){"/"}}};
	assert_int_equal(ref_merge(&m, parts, 3, NULL), 0);
	assert_ptr_equal(m, a);
	ref_unref(m);
	assert_int_equal(ref_merge(&m, &(struct ref_part){a, .add = (char[]){"/x"}}, 1, NULL), 0);
	assert_int_equal(ref_kind(m), REF_MERGE);
	ref_unref(m);
	ref_unref(scratch);
	ref_unref(a);
}

static void partitions_are_clean_absolute_and_stay_inside(void **state)
{
	struct ref *a = folder("a", "f", "a"), *m;
	struct err err = {0};
	static const char *const bad[] = {"..", "/..", "/a/../b", "/a/..", "a", "./a", "../a"};

	for (size_t i = 0; i < countof(bad); i++) {
		assert_int_equal(
			ref_merge(&m, &(struct ref_part){a, .trim = (char *)bad[i]}, 1, &err),
			-EINVAL);
		assert_int_equal(
			ref_merge(&m, &(struct ref_part){a, .add = (char *)bad[i]}, 1, &err),
			-EINVAL);
		assert_non_null(strstr(err.text, "add="));
	}
	struct ref_part part = {a, .trim = (char[]){"//x/./y/"}, .add = (char[]){"/..b/c"}};
	const struct ref_part *parts;
	assert_int_equal(ref_merge(&m, &part, 1, NULL), 0);
	assert_int_equal(ref_parts(m, &parts), 1);
	assert_string_equal(parts[0].trim, "/x/y");
	assert_string_equal(parts[0].add, "/..b/c");
	assert_string_equal(ref_name(m), "merge (a)");
	ref_unref(m);
	ref_unref(a);
}

static void the_last_part_wins(void **state)
{
	struct ref *a = folder("a", "f", "a"), *b = folder("b", "f", "b");
	ref_unref(folder("b", "d/only", "b"));
	struct ref *m = merge((struct ref_part[]){{a}, {b}}, 2);
	struct tree *t = tree_of(m);

	expect_text(t, "/f", "b");
	expect_text(t, "/d/only", "b");
	tree_unref(t);
	ref_unref(m);
}

static void a_part_is_trimmed_then_added(void **state)
{
	struct ref *a = folder("a", "usr/share/doc/x", "a"), *b = folder("b", "opt/y", "b");
	ref_unref(folder("a", "hidden", "a"));
	struct ref *m = merge(
		(struct ref_part[]){{b},
				    {a, .trim = (char[]){"/usr/share"}, .add = (char[]){"/opt"}}},
		2);
	struct tree *t = tree_of(m);

	expect_text(t, "/opt/doc/x", "a");
	expect_text(t, "/opt/y", "b");
	expect_none(t, "/usr");
	expect_none(t, "/hidden");
	tree_unref(t);
	ref_unref(m);
}

static void adds_of_nested_merges_join(void **state)
{
	struct ref *inner =
		merge((struct ref_part[]){{folder("a", "f", "a"), .add = (char[]){"/p"}},
					  {folder("b", "g", "b")}},
		      2);
	struct ref *m = merge(
		(struct ref_part[]){{inner, .add = (char[]){"/q"}}, {folder("c", "h", "c")}}, 2);
	struct tree *t = tree_of(m);

	expect_text(t, "/q/p/f", "a");
	expect_text(t, "/q/g", "b");
	expect_text(t, "/h", "c");
	tree_unref(t);
	ref_unref(m);
}

static void a_merge_is_trimmed_as_a_whole(void **state)
{
	struct ref *inner = merge(
		(struct ref_part[]){{folder("a", "usr/one", "a")}, {folder("b", "usr/two", "b")}},
		2);
	struct ref *m = merge((struct ref_part[]){{inner, .trim = (char[]){"/usr"}}}, 1);
	struct ref_tree_layer *rows;
	size_t n;
	struct tree *t;

	assert_int_equal(ref_tree(&t, m, NULL, &rows, &n, NULL), 0);
	expect_text(t, "/one", "a");
	expect_text(t, "/two", "b");
	expect_none(t, "/usr");
	assert_int_equal(n, 2);
	assert_true(str_ends(rows[0].dir, "/a"));
	assert_true(str_ends(rows[1].dir, "/b"));
	ref_tree_layers_free(rows, n);
	tree_unref(t);
	ref_unref(m);
}

static void a_missing_trim_path_is_an_error_of_every_call(void **state)
{
	struct ref *m =
		merge((struct ref_part[]){{folder("a", "f", "a")},
					  {folder("b", "g", "b"), .trim = (char[]){"/nowhere"}}},
		      2);
	struct tree *t = tree_of(m);
	struct attr attr;
	struct err err = {0};

	assert_int_equal(tree_walk(t, "/f", false, &attr, NULL), -ENOENT);
	assert_int_equal(tree_getattr(t, TREE_ROOT, &attr, NULL, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nowhere"));
	tree_unref(t);
	ref_unref(m);
}

static void nothing_somewhere_is_an_empty_folder(void **state)
{
	struct ref *scratch;
	assert_int_equal(ref_scratch(&scratch, NULL), 0);
	struct tree *t = tree_of(scratch);
	struct attr attr;

	expect_none(t, "/x");
	tree_unref(t);
	struct ref *m = merge((struct ref_part[]){{scratch, .add = (char[]){"/x/y"}}}, 1);
	t = tree_of(m);
	assert_int_equal(tree_walk(t, "/x/y", false, &attr, NULL), 0);
	assert_int_equal(attr.type, NODE_DIR);
	tree_unref(t);
	ref_unref(m);
}

static void what_lies_above_too_is_left_out(void **state)
{
	struct ref *a = folder("a", "f", "a"), *b = folder("b", "f", "b");
	struct ref *m = merge((struct ref_part[]){{ref_ref(a)}, {b}, {a}, {NULL}}, 3);
	ref_unref(a);
	struct ref_tree_layer *rows;
	size_t n;
	struct tree *t;

	assert_int_equal(ref_tree(&t, m, NULL, &rows, &n, NULL), 0);
	expect_text(t, "/f", "a");
	assert_int_equal(n, 2);
	assert_true(str_ends(rows[0].dir, "/b"));
	assert_true(str_ends(rows[1].dir, "/a"));
	ref_tree_layers_free(rows, n);
	tree_unref(t);
	ref_unref(m);
}

static void merges_of_a_merge_with_itself_are_no_work(void **state)
{
	struct ref *m = folder("a", "f", "a");

	for (int i = 0; i < 60; i++) {
		char add[8];
		snprintf(add, sizeof(add), "/%d", i);
		struct ref_part parts[] = {{m}, {m}, {m, .add = i % 20 ? NULL : add}};
		m = merge(parts, 3);
	}
	struct tree *t = tree_of(m);
	expect_text(t, "/f", "a");
	expect_text(t, "/40/20/0/f", "a");
	tree_unref(t);
	ref_unref(m);
}

static void a_chain_of_100000_merges_is_walked_and_freed(void **state)
{
	struct ref *b = folder("b", "g", "b"), *m = folder("a", "f", "a");
	uint64_t start = now_ns();

	for (int i = 0; i < 100000; i++) {
		struct ref *next;
		assert_int_equal(ref_merge(&next, (struct ref_part[]){{m}, {b}}, 2, NULL), 0);
		ref_unref(m);
		m = next;
	}
	struct tree *t = tree_of(m);
	expect_text(t, "/f", "a");
	expect_text(t, "/g", "b");
	tree_unref(t);
	ref_unref(m);
	ref_unref(b);
	print_message("# %d ms\n", (int)((now_ns() - start) / NS_PER_MS));
}

static void trimmed_parts_nest_only_so_deep(void **state)
{
	struct ref *m = folder("a", "a/a/a/a/f", "a");
	struct tree *t;
	struct err err = {0};

	for (int i = 0; i < 4; i++)
		m = merge((struct ref_part[]){{m, .trim = slash_a}}, 1);
	t = tree_of(m);
	expect_text(t, "/f", "a");
	tree_unref(t);
	for (int i = 0; i < 20; i++)
		m = merge((struct ref_part[]){{m, .trim = slash_a}}, 1);
	assert_int_equal(ref_tree(&t, m, NULL, NULL, NULL, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "deeper than 16"));
	ref_unref(m);
}

static void trimmed_parts_that_are_met_again_count_as_deep(void **state)
{
	/* Each of these is first met beside the others, where it is not deep at all. */
	struct ref_part parts[24] = {{folder("a", "a/f", "a"), .trim = slash_a}};
	struct ref *m;
	struct tree *t;
	struct err err = {0};

	for (int i = 1; i < 24; i++) {
		assert_int_equal(ref_merge(&parts[i].ref, &parts[i - 1], 1, NULL), 0);
		parts[i].trim = slash_a;
	}
	for (int i = 0; i < 12; i++) { /* the innermost last: it is looked at first */
		struct ref_part swap = parts[i];
		parts[i] = parts[23 - i];
		parts[23 - i] = swap;
	}
	m = merge(parts, 24);
	assert_int_equal(ref_tree(&t, m, NULL, NULL, NULL, &err), -ENOTSUP);
	ref_unref(m);
}

static void ten_thousand_folders_are_one_tree(void **state)
{
	const size_t n = 10000;
	struct ref_part *parts = calloc(n, sizeof(*parts));
	char name[32];

	for (size_t i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "d%zu", i);
		parts[i].ref = folder(name, name, name);
	}
	uint64_t start = now_ns();
	struct ref *m;
	assert_int_equal(ref_merge(&m, parts, n, NULL), 0);
	struct tree *t = tree_of(m);
	print_message("# %d ms\n", (int)((now_ns() - start) / NS_PER_MS));
	expect_text(t, "/d0", "d0");
	expect_text(t, "/d9999", "d9999");
	tree_unref(t);
	ref_unref(m);
	for (size_t i = 0; i < n; i++)
		ref_unref(parts[i].ref);
	free(parts);
}

static void only_images_have_layers(void **state)
{
	struct ref *a = folder("a", "f", "a"), *slice;
	struct strbuf text = {0};

	assert_int_equal(ref_slice(&slice, a, 0, 0, NULL), -EINVAL);
	assert_int_equal(ref_config(a, &text, NULL), -ENOENT);
	assert_int_equal(ref_need_diff_ids(a, NULL), 0);
	assert_null(ref_manifest(a));
	assert_null(ref_platform(a));
	ref_unref(a);
}

#define test_in_root(fn) cmocka_unit_test_setup_teardown(fn, make_root, remove_root)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test_in_root(a_merge_of_one_is_it_and_of_none_is_scratch),
		test_in_root(partitions_are_clean_absolute_and_stay_inside),
		test_in_root(the_last_part_wins),
		test_in_root(a_part_is_trimmed_then_added),
		test_in_root(adds_of_nested_merges_join),
		test_in_root(a_merge_is_trimmed_as_a_whole),
		test_in_root(a_missing_trim_path_is_an_error_of_every_call),
		test_in_root(nothing_somewhere_is_an_empty_folder),
		test_in_root(what_lies_above_too_is_left_out),
		test_in_root(merges_of_a_merge_with_itself_are_no_work),
		test_in_root(a_chain_of_100000_merges_is_walked_and_freed),
		test_in_root(trimmed_parts_nest_only_so_deep),
		test_in_root(trimmed_parts_that_are_met_again_count_as_deep),
		test_in_root(ten_thousand_folders_are_one_tree),
		test_in_root(only_images_have_layers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
