/* SPDX-License-Identifier: Apache-2.0 */

/* tree: what is made once for all trees: paths, the walk, filtered xattrs, blocking reads. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

static void add(struct tree *t, const char *path, uint8_t type, const char *data)
{
	const struct attr a = {.type = type, .mode = 0755};

	assert_int_equal(memtree_add(t, path, &a, data, strlen(data)), 0);
}

static struct tree *sample(void)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	add(t, "/usr/lib/x.so", NODE_FILE, "x");
	add(t, "/usr/lib/sub", NODE_DIR, "");
	add(t, "/usr/bin/tool", NODE_FILE, "t");
	add(t, "/lib", NODE_SYMLINK, "usr/lib");
	add(t, "/abs", NODE_SYMLINK, "/lib/sub");
	add(t, "/usr/lib/sub/up", NODE_SYMLINK, "../../bin");
	add(t, "/out", NODE_SYMLINK, "../../../../usr//./bin/");
	add(t, "/loop1", NODE_SYMLINK, "loop2");
	add(t, "/loop2", NODE_SYMLINK, "/loop1");
	add(t, "/empty", NODE_SYMLINK, "");
	add(t, "/dangling", NODE_SYMLINK, "nowhere");
	add(t, "/gone", NODE_WHITEOUT, "");
	return t;
}

static void expect_real(struct tree *t, const char *path, bool follow, const char *real)
{
	scoped(strbuf_free) struct strbuf text = {0};
	struct attr a;

	assert_int_equal(tree_walk_real(t, path, follow, &a, &text, NULL), 0);
	assert_string_equal(text.data, real);
}

static void links_are_followed_inside_the_root(void **state)
{
	struct tree *t = sample();

	expect_real(t, "/", true, "/");
	expect_real(t, "", true, "/");
	expect_real(t, "usr//bin/../lib/./x.so", true, "/usr/lib/x.so");
	expect_real(t, "/lib/x.so", false, "/usr/lib/x.so");
	expect_real(t, "/lib", false, "/lib");
	expect_real(t, "/lib", true, "/usr/lib");
	expect_real(t, "/abs/up/tool", false, "/usr/bin/tool");
	expect_real(t, "/out/tool", true, "/usr/bin/tool");
	expect_real(t, "/out", true, "/usr/bin");
	expect_real(t, "/dangling", false, "/dangling");
	expect_real(t, "/loop1", false, "/loop1");
	tree_unref(t);
}

static void a_walk_says_why_it_ended(void **state)
{
	struct tree *t = sample();
	struct attr a;
	struct err err = {0};

	assert_int_equal(tree_walk(t, "/usr/none", true, &a, &err), -ENOENT);
	assert_string_equal(err.text, "/usr/none: no such file or folder");
	assert_int_equal(tree_walk(t, "/loop1", true, &a, &err), -ELOOP);
	assert_int_equal(tree_walk(t, "/loop1/x", false, &a, &err), -ELOOP);
	assert_int_equal(tree_walk(t, "/usr/bin/tool/x", true, &a, &err), -ENOTDIR);
	assert_int_equal(tree_walk(t, "/dangling", true, &a, &err), -ENOENT);
	assert_int_equal(tree_walk(t, "/empty", true, &a, &err), -ENOENT);
	assert_int_equal(tree_walk(t, "/gone", false, &a, &err), -ENOENT);
	tree_unref(t);
}

static void a_chain_of_forty_links_is_walked_and_of_forty_one_not(void **state)
{
	struct tree *t;
	struct attr a;

	assert_int_equal(memtree_new(&t), 0);
	add(t, "/0", NODE_FILE, "end");
	for (int i = 1; i <= 41; i++) {
		char path[16], target[16];

		snprintf(path, sizeof(path), "/%d", i);
		snprintf(target, sizeof(target), "%d", i - 1);
		add(t, path, NODE_SYMLINK, target);
	}
	assert_int_equal(tree_walk(t, "/40", true, &a, NULL), 0);
	assert_int_equal(a.type, NODE_FILE);
	assert_int_equal(tree_walk(t, "/41", true, &a, NULL), -ELOOP);
	tree_unref(t);
}

static void too_long_a_name_is_refused(void **state)
{
	struct tree *t = sample();
	struct attr a;
	char name[300];

	memset(name, 'n', sizeof(name));
	assert_int_equal(tree_lookup(t, TREE_ROOT, name, 256, &a, NULL, NULL), -ENAMETOOLONG);
	assert_int_equal(tree_lookup(t, TREE_ROOT, name, 255, &a, NULL, NULL), -ENOENT);
	tree_unref(t);
}

struct visit {
	struct strbuf text;
	const char *skip, *stop;
};

static int visit(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct visit *v = arg;

	assert_true(str_ends(path, name));
	strbuf_printf(&v->text, "%s ", path);
	if (v->stop && strcmp(path, v->stop) == 0)
		return 77;
	return v->skip && strcmp(path, v->skip) == 0 ? TREE_WALK_SKIP : 0;
}

static void the_walk_visits_folders_before_their_content(void **state)
{
	struct visit v = {0};
	struct tree *t;
	struct attr a;

	assert_int_equal(memtree_new(&t), 0);
	add(t, "/a/b/c", NODE_FILE, "");
	add(t, "/a/b/d", NODE_FILE, "");
	add(t, "/a/e", NODE_DIR, "");
	add(t, "/a.x", NODE_FILE, "");
	add(t, "/z", NODE_FILE, "");
	assert_int_equal(tree_walk_all(t, TREE_ROOT, visit, &v, NULL), 0);
	assert_string_equal(v.text.data, "a a/b a/b/c a/b/d a/e a.x z ");

	strbuf_clear(&v.text);
	v.skip = "a/b";
	assert_int_equal(tree_walk_all(t, TREE_ROOT, visit, &v, NULL), 0);
	assert_string_equal(v.text.data, "a a/b a/e a.x z ");

	strbuf_clear(&v.text);
	v = (struct visit){.text = v.text, .stop = "a/b/c"};
	assert_int_equal(tree_walk_all(t, TREE_ROOT, visit, &v, NULL), 77);
	assert_string_equal(v.text.data, "a a/b a/b/c ");

	strbuf_clear(&v.text);
	v.stop = NULL;
	assert_int_equal(tree_walk(t, "/a", true, &a, NULL), 0);
	assert_int_equal(tree_walk_all(t, a.id, visit, &v, NULL), 0);
	assert_string_equal(v.text.data, "b b/c b/d e ");
	assert_int_equal(tree_walk(t, "/z", true, &a, NULL), 0);
	assert_int_equal(tree_walk_all(t, a.id, visit, &v, NULL), -ENOTDIR);
	strbuf_free(&v.text);
	tree_unref(t);
}

static int count_visit(void *arg, const char *path, const char *name, const struct attr *attr)
{
	++*(int *)arg;
	return 0;
}

static void the_walk_goes_as_deep_as_there_are_folders(void **state)
{
	scoped(strbuf_free) struct strbuf path = {0};
	struct tree *t;
	int n = 0;

	assert_int_equal(memtree_new(&t), 0);
	for (int i = 0; i < 5000; i++)
		strbuf_puts(&path, "/d");
	add(t, path.data, NODE_DIR, "");
	assert_int_equal(tree_walk_all(t, TREE_ROOT, count_visit, &n, NULL), 0);
	assert_int_equal(n, 5000);
	tree_unref(t);
}

static int xattr_to_text(void *arg, const char *name, const void *value, size_t len)
{
	strbuf_printf(arg, "%s=%.*s ", name, (int)len, (const char *)value);
	return 0;
}

static void xattrs_of_overlays_are_not_given(void **state)
{
	scoped(strbuf_free) struct strbuf text = {0};
	struct tree *t = sample();
	struct attr a;

	for (const char *const *p =
		     (const char *const[]){"trusted.overlay.opaque", "user.overlay.redirect",
					   "user.overlays", "user.x.overlay.y",
					   "security.capability", NULL};
	     *p; p++)
		assert_int_equal(memtree_xattr(t, "/usr", *p, "v", 1), 0);
	assert_int_equal(tree_walk(t, "/usr", true, &a, NULL), 0);
	assert_int_equal(tree_xattrs(t, a.id, xattr_to_text, &text, NULL), 0);
	assert_string_equal(text.data, "user.overlays=v user.x.overlay.y=v security.capability=v ");
	tree_unref(t);
}

/* A tree whose reads are answered by another thread, with @result. */
struct late_tree {
	struct tree tree;
	int64_t result;
	pthread_t thread;
	blob_done done;
	void *arg;
	char *dst;
};

static void *late_answer(void *arg)
{
	struct late_tree *l = arg;
	struct err err = {.code = -EBADMSG, .text = "wrong bytes"};

	usleep(1000);
	if (l->result > 0)
		memset(l->dst, 'y', (size_t)l->result);
	l->done(l->arg, l->result, &err);
	return NULL;
}

static int64_t late_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			 blob_done done, void *arg, struct err *err)
{
	struct late_tree *l = containerof(t, struct late_tree, tree);

	l->done = done;
	l->arg = arg;
	l->dst = dst;
	assert_int_equal(pthread_create(&l->thread, NULL, late_answer, l), 0);
	return -EINPROGRESS;
}

static void a_read_without_done_waits_for_its_answer(void **state)
{
	static const struct tree_ops ops = {.read = late_read};
	struct late_tree l = {.tree = {.ops = &ops, .n_refs = 1}, .result = 3};
	struct err err = {0};
	char buf[4] = "xxx";

	assert_int_equal(tree_read(&l.tree, 1, 0, buf, 3, NULL, NULL, &err), 3);
	assert_string_equal(buf, "yyy");
	pthread_join(l.thread, NULL);
	l.result = -EBADMSG;
	assert_int_equal(tree_read(&l.tree, 1, 0, buf, 3, NULL, NULL, &err), -EBADMSG);
	assert_string_equal(err.text, "wrong bytes");
	pthread_join(l.thread, NULL);
}

static void an_empty_tree_has_a_root_and_nothing_else(void **state)
{
	struct tree *t;
	int n = 0;

	assert_int_equal(tree_empty(&t), 0);
	assert_int_equal(tree_walk_all(t, TREE_ROOT, count_visit, &n, NULL), 0);
	assert_int_equal(n, 0);
	assert_null(tree_unref(t));
	assert_null(tree_unref(NULL));
	assert_null(tree_ref(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(links_are_followed_inside_the_root),
		cmocka_unit_test(a_walk_says_why_it_ended),
		cmocka_unit_test(a_chain_of_forty_links_is_walked_and_of_forty_one_not),
		cmocka_unit_test(too_long_a_name_is_refused),
		cmocka_unit_test(the_walk_visits_folders_before_their_content),
		cmocka_unit_test(the_walk_goes_as_deep_as_there_are_folders),
		cmocka_unit_test(xattrs_of_overlays_are_not_given),
		cmocka_unit_test(a_read_without_done_waits_for_its_answer),
		cmocka_unit_test(an_empty_tree_has_a_root_and_nothing_else),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
