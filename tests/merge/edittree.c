/* SPDX-License-Identifier: Apache-2.0 */

/* edittree: changes over a tree, and the layer that they make. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "merge/merge.h"

static const struct attr file_attr = {.type = NODE_FILE, .mode = 0644, .mtime_s = 9};
static const struct attr dir_attr = {.type = NODE_DIR, .mode = 0700, .mtime_s = 9};
static const struct attr link_attr = {.type = NODE_SYMLINK, .mode = 0777};
static const struct timespec now = {.tv_sec = 77};

/* /d/one /d/two /d/sub/deep /link -> d /out -> ../../d/one /abs -> /d/one */
static struct tree *make_below(void)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	assert_int_equal(memtree_add(t, "/d", &dir_attr, NULL, 0), 0);
	assert_int_equal(memtree_add(t, "/d/one", &file_attr, "1", 1), 0);
	assert_int_equal(memtree_add(t, "/d/two", &file_attr, "22", 2), 0);
	assert_int_equal(memtree_add(t, "/d/sub", &dir_attr, NULL, 0), 0);
	assert_int_equal(memtree_add(t, "/d/sub/deep", &file_attr, "3", 1), 0);
	assert_int_equal(memtree_add(t, "/link", &link_attr, "d", 1), 0);
	assert_int_equal(memtree_add(t, "/out", &link_attr, "../../d/one", 11), 0);
	assert_int_equal(memtree_add(t, "/abs", &link_attr, "/d/one", 6), 0);
	return t;
}

static uint64_t walk(struct edit *e, const char *path, enum edit_follow follow)
{
	uint64_t node;

	assert_int_equal(edit_walk(e, path, follow, &node, NULL, NULL), 0);
	return node;
}

static uint64_t put(struct edit *e, const char *dir, const char *name, const struct attr *attr,
		    const char *data)
{
	const struct edit_what what = {.attr = attr, .data = data, .len = strlen(data)};
	uint64_t node;

	assert_int_equal(
		edit_make(e, walk(e, dir, EDIT_FOLLOW), name, strlen(name), &what, &node, NULL), 0);
	return node;
}

static void cut(struct edit *e, const char *dir, const char *name)
{
	uint64_t at = walk(e, dir, EDIT_FOLLOW), node;

	assert_int_equal(edit_child(e, at, name, strlen(name), &node, NULL), 0);
	assert_int_not_equal(node, 0);
	edit_remove(e, at, name, strlen(name));
}

static int one_name(void *arg, const char *path, const char *name, const struct attr *attr)
{
	strbuf_printf(arg, "%s%s ", path,
		      attr->type == NODE_WHITEOUT ? "!"
		      : attr->is_opaque		  ? "*"
		      : attr->type == NODE_DIR	  ? "/"
						  : "");
	return 0;
}

static void expect_names(struct tree *t, const char *names)
{
	scoped(strbuf_free) struct strbuf all = {0};

	strbuf_puts(&all, "");
	assert_int_equal(tree_walk_all(t, TREE_ROOT, one_name, &all, NULL), 0);
	assert_string_equal(all.data, names);
}

static void expect_text(struct tree *t, const char *path, const char *text)
{
	char buf[64];
	struct attr attr;

	assert_int_equal(tree_walk(t, path, true, &attr, NULL), 0);
	assert_int_equal(attr.size, strlen(text));
	assert_int_equal(tree_read(t, attr.id, 0, buf, sizeof(buf), NULL, NULL, NULL),
			 strlen(text));
	assert_memory_equal(buf, text, strlen(text));
}

static struct tree *seal(struct edit *e)
{
	struct tree *t;

	assert_int_equal(edit_seal(&t, &e, NULL), 0);
	assert_null(e);
	return t;
}

static struct tree *over(struct tree *below, struct tree *layer)
{
	const struct union_input inputs[] = {{.tree = below}, {.tree = layer}};
	struct tree *t;

	assert_int_equal(union_new(&t, inputs, 2, false, NULL), 0);
	return t;
}

static void a_layer_has_only_what_changed(void **state)
{
	struct tree *below = make_below();
	struct edit *e;
	struct attr attr;

	assert_int_equal(edit_new(&e, below, &now), 0);
	assert_int_not_equal(walk(e, "/d/sub/deep", EDIT_FOLLOW), 0);
	assert_true(edit_is_empty(e));
	put(e, "/d", "new", &file_attr, "n");
	cut(e, "/d", "two");
	put(e, "/", "gone", &file_attr, "");
	cut(e, "/", "gone");
	assert_false(edit_is_empty(e));
	struct tree *layer = seal(e);
	expect_names(layer, "d/ d/new d/two! ");
	assert_int_equal(tree_walk(layer, "/d", false, &attr, NULL), 0);
	assert_int_equal(attr.mode, 0700);
	assert_int_equal(attr.mtime_s, 77);
	struct tree *all = over(below, layer);
	expect_names(all, "abs d/ d/new d/one d/sub/ d/sub/deep link out ");
	expect_text(all, "/d/new", "n");
	tree_unref(all);
	tree_unref(layer);
	tree_unref(below);
}

static void a_folder_made_anew_hides_the_old_one(void **state)
{
	struct tree *below = make_below();
	struct edit *e;

	assert_int_equal(edit_new(&e, below, &now), 0);
	cut(e, "/", "d");
	assert_int_equal(walk(e, "/d/one", EDIT_FOLLOW), 0);
	put(e, "/", "d", &dir_attr, "");
	assert_int_equal(walk(e, "/d/one", EDIT_FOLLOW), 0);
	struct tree *layer = seal(e), *all = over(below, layer);
	expect_names(layer, "d* ");
	expect_names(all, "abs d/ link out ");
	tree_unref(all);
	tree_unref(layer);
	tree_unref(below);
}

static void paths_stay_below_the_root(void **state)
{
	struct tree *below = make_below();
	scoped(strbuf_free) struct strbuf real = {0};
	struct edit *e;
	uint64_t node;

	assert_int_equal(edit_new(&e, below, &now), 0);
	uint64_t one = walk(e, "/d/one", EDIT_NO_FOLLOW);
	assert_int_equal(walk(e, "../../link/one", EDIT_FOLLOW), one);
	assert_int_equal(walk(e, "/out", EDIT_FOLLOW), one);
	assert_int_equal(walk(e, "/abs", EDIT_FOLLOW), one);
	assert_int_equal(walk(e, "/out", EDIT_FOLLOW_RELATIVE), one);
	assert_int_equal(walk(e, "/abs", EDIT_FOLLOW_RELATIVE), 0);
	assert_int_not_equal(walk(e, "/abs", EDIT_NO_FOLLOW), one);
	assert_int_equal(edit_walk(e, "/link/no/such", EDIT_FOLLOW, &node, &real, NULL), 0);
	assert_int_equal(node, 0);
	assert_string_equal(real.data, "/d/no/such");
	assert_int_equal(edit_walk(e, "/d/one/x", EDIT_FOLLOW, &node, NULL, NULL), -ENOTDIR);
	put(e, "/", "self", &link_attr, "self");
	assert_int_equal(edit_walk(e, "/self", EDIT_FOLLOW, &node, NULL, NULL), -ELOOP);
	edit_free(e);
	tree_unref(below);
}

static void writing_keeps_metadata_and_other_names(void **state)
{
	struct tree *below = make_below();
	struct edit *e;
	struct attr attr;

	assert_int_equal(memtree_xattr(below, "/d/one", "user.a", "v", 1), 0);
	assert_int_equal(edit_new(&e, below, &now), 0);
	uint64_t dir = walk(e, "/d", EDIT_FOLLOW), one = walk(e, "/d/one", EDIT_FOLLOW);
	assert_int_equal(edit_write(e, dir, "one", 3, &one, "new", 3, NULL), 0);
	assert_int_equal(edit_link(e, dir, "name", 4, one, NULL), 0);
	assert_int_equal(edit_write(e, dir, "name", 4, &one, "newer", 5, NULL), 0);
	struct tree *layer = seal(e);
	expect_names(layer, "d/ d/name d/one ");
	expect_text(layer, "/d/one", "newer");
	assert_int_equal(tree_walk(layer, "/d/one", false, &attr, NULL), 0);
	assert_int_equal(attr.mode, 0644);
	assert_int_equal(attr.nlink, 2);
	tree_unref(layer);
	tree_unref(below);
}

/* A copy of a copy leads to the bytes themselves, whatever happened to what was in between. */
static void copies_of_copies_do_not_nest(void **state)
{
	struct tree *at = make_below();

	for (int i = 0; i < 2000; i++) {
		struct edit *e;
		struct attr attr;
		uint64_t node;
		assert_int_equal(tree_walk(at, "/d/two", false, &attr, NULL), 0);
		const struct edit_what what = {
			.attr = &attr, .from = at, .from_id = attr.id, .was = &attr};
		assert_int_equal(edit_new(&e, NULL, &now), 0);
		put(e, "/", "d", &dir_attr, "");
		assert_int_equal(
			edit_make(e, walk(e, "/d", EDIT_FOLLOW), "two", 3, &what, &node, NULL), 0);
		tree_unref(at);
		at = seal(e);
	}
	expect_text(at, "/d/two", "22");
	expect_names(at, "d/ d/two ");
	tree_unref(at);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_layer_has_only_what_changed),
		cmocka_unit_test(a_folder_made_anew_hides_the_old_one),
		cmocka_unit_test(paths_stay_below_the_root),
		cmocka_unit_test(writing_keeps_metadata_and_other_names),
		cmocka_unit_test(copies_of_copies_do_not_nest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
