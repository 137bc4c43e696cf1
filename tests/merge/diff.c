/* SPDX-License-Identifier: Apache-2.0 */

/* diff: every kind of change, and what is read to find it. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

static struct tree *new_memtree(void)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	return t;
}

static void add(struct tree *t, const char *path, const struct attr *attr, const char *data)
{
	assert_int_equal(memtree_add(t, path, attr, data, strlen(data)), 0);
}

static const struct attr file = {.type = NODE_FILE, .mode = 0644, .mtime_s = 7, .mtime_ns = 8};
static const struct attr dir = {.type = NODE_DIR, .mode = 0755};
static const struct attr link_attr = {.type = NODE_SYMLINK, .mode = 0777};

static int change_to_text(void *arg, const struct change *c)
{
	assert_true((c->old != NULL) == (c->kind != 'A'));
	assert_true((c->new != NULL) == (c->kind != 'D'));
	strbuf_printf(arg, "%c %s|", c->kind, c->path);
	return 0;
}

/* Compares, and releases both. */
static void expect_diff(struct tree *a, struct tree *b, const char *want)
{
	scoped(strbuf_free) struct strbuf text = {0};
	struct err err = {0};

	strbuf_puts(&text, "");
	if (tree_diff(a, b, change_to_text, &text, &err) < 0)
		fail_msg("%s", err.text);
	assert_string_equal(text.data, want);
	tree_unref(a);
	tree_unref(b);
}

static void equal_trees_do_not_differ(void **state)
{
	struct tree *t[2];

	for (int i = 0; i < 2; i++) {
		t[i] = new_memtree();
		add(t[i], "/d/f", &file, "same");
		add(t[i], "/d/l", &link_attr, "f");
		assert_int_equal(memtree_xattr(t[i], "/d", i ? "user.a" : "user.b", "1", 1), 0);
		assert_int_equal(memtree_xattr(t[i], "/d", i ? "user.b" : "user.a", "1", 1), 0);
	}
	expect_diff(tree_ref(t[0]), tree_ref(t[0]), "");
	expect_diff(t[0], t[1], "");
}

static void folders_are_deleted_as_one_and_added_with_what_is_in_them(void **state)
{
	struct tree *a = new_memtree(), *b = new_memtree();

	add(a, "/gone/x/y", &file, "");
	add(a, "/keep/a", &file, "");
	add(a, "/was-dir/x", &file, "");
	add(a, "/was-file", &file, "");
	add(b, "/keep/b", &file, "");
	add(b, "/new/x/y", &file, "");
	add(b, "/was-dir", &file, "");
	add(b, "/was-file/x", &file, "");
	expect_diff(a, b,
		    "D /gone|D /keep/a|A /keep/b|A /new|A /new/x|A /new/x/y|M /was-dir|"
		    "M /was-file|A /was-file/x|");
}

static void changes_come_in_the_order_of_a_walk(void **state)
{
	struct tree *a = new_memtree(), *b = new_memtree();

	add(a, "/a/z", &file, "");
	add(b, "/a/y", &file, "");
	add(b, "/a-b", &file, "");
	add(a, "/a.b", &file, "");
	expect_diff(a, b, "A /a/y|D /a/z|A /a-b|D /a.b|");
}

static void each_kind_of_metadata_is_a_change(void **state)
{
	struct attr variants[] = {file, file, file, file, file};
	struct attr device = {.type = NODE_CHAR, .dev_major = 1, .dev_minor = 2};
	struct tree *a, *b;

	variants[0].mode = 0600;
	variants[1].uid = 1;
	variants[2].gid = 1;
	variants[3].mtime_s++;
	variants[4].mtime_ns++;
	for (size_t i = 0; i < countof(variants); i++) {
		add(a = new_memtree(), "/f", &file, "x");
		add(b = new_memtree(), "/f", &variants[i], "x");
		expect_diff(a, b, "M /f|");
	}
	add(a = new_memtree(), "/c", &device, "");
	device.dev_minor++;
	add(b = new_memtree(), "/c", &device, "");
	expect_diff(a, b, "M /c|");
	add(a = new_memtree(), "/l", &link_attr, "to");
	add(b = new_memtree(), "/l", &link_attr, "tp");
	expect_diff(a, b, "M /l|");
	add(a = new_memtree(), "/d", &dir, "");
	add(b = new_memtree(), "/d", &dir, "");
	assert_int_equal(memtree_xattr(a, "/d", "user.a", "1", 1), 0);
	assert_int_equal(memtree_xattr(b, "/d", "user.a", "2", 1), 0);
	expect_diff(a, b, "M /d|");
	add(a = new_memtree(), "/d", &dir, "");
	add(b = new_memtree(), "/d", &dir, "");
	assert_int_equal(memtree_xattr(b, "/d", "user.a", "", 0), 0);
	expect_diff(a, b, "M /d|");
}

static void content_is_compared_to_its_end(void **state)
{
	size_t size = (1 << 20) + 5;
	char *text = calloc(1, size + 1);
	struct tree *a, *b;

	memset(text, 't', size);
	add(a = new_memtree(), "/f", &file, text);
	add(b = new_memtree(), "/f", &file, text);
	expect_diff(a, b, "");
	add(a = new_memtree(), "/f", &file, text);
	text[size - 1] = 'u';
	add(b = new_memtree(), "/f", &file, text);
	expect_diff(a, b, "M /f|");
	add(a = new_memtree(), "/f", &file, text);
	text[size - 1] = '\0';
	add(b = new_memtree(), "/f", &file, text);
	expect_diff(a, b, "M /f|");
	free(text);
}

static void the_roots_own_metadata_is_left_out(void **state)
{
	const struct attr root = {.type = NODE_DIR, .mode = 01777, .uid = 9};
	struct tree *a = new_memtree(), *b = new_memtree();

	add(b, "/", &root, "");
	expect_diff(a, b, "");
}

/* ------------------------------------------------------------------ what is read */

/* A memtree with digests, that counts reads; a negative result fails them. */
struct counting_tree {
	struct tree tree;
	struct tree *mem;
	bool has_digests;
	int n_reads, error;
};

static struct counting_tree *counting(struct tree *t)
{
	return containerof(t, struct counting_tree, tree);
}

static int counting_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			    struct err *err)
{
	return tree_getattr(counting(t)->mem, id, out, wait, err);
}

static int counting_lookup(struct tree *t, uint64_t dir_id, const char *name, size_t len,
			   struct attr *out, struct tree_wait *wait, struct err *err)
{
	return tree_lookup(counting(t)->mem, dir_id, name, len, out, wait, err);
}

static int counting_list(struct tree *t, uint64_t dir_id, uint64_t from, tree_list_fn fn, void *arg,
			 struct tree_wait *wait, struct err *err)
{
	return tree_list(counting(t)->mem, dir_id, from, fn, arg, wait, err);
}

static int counting_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg,
			   struct err *err)
{
	return tree_xattrs(counting(t)->mem, id, fn, arg, err);
}

static int64_t counting_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			     blob_done done, void *arg, struct err *err)
{
	struct counting_tree *c = counting(t);

	c->n_reads++;
	if (c->error)
		return err_set(err, c->error, "no bytes");
	return tree_read(c->mem, id, off, dst, len, done, arg, err);
}

static int counting_digest(struct tree *t, uint64_t id, struct digest *out)
{
	char text[64];

	if (!counting(t)->has_digests)
		return -ENOENT;
	int64_t n = tree_read(counting(t)->mem, id, 0, text, sizeof(text), NULL, NULL, NULL);
	digest_bytes(out, text, (size_t)n);
	return 0;
}

static void counting_free(struct tree *t)
{
	tree_unref(counting(t)->mem);
}

static const struct tree_ops counting_ops = {
	.getattr = counting_getattr,
	.lookup = counting_lookup,
	.list = counting_list,
	.xattrs = counting_xattrs,
	.read = counting_read,
	.content_digest = counting_digest,
	.free = counting_free,
};

static struct tree *counting_init(struct counting_tree *c, const char *text, bool has_digests)
{
	*c = (struct counting_tree){.mem = new_memtree(), .has_digests = has_digests};
	tree_init(&c->tree, &counting_ops, 1, false);
	add(c->mem, "/f", &file, text);
	return &c->tree;
}

static void known_digests_save_reading(void **state)
{
	struct counting_tree a, b;

	expect_diff(counting_init(&a, "1", true), counting_init(&b, "1", true), "");
	assert_int_equal(a.n_reads + b.n_reads, 0);
	expect_diff(counting_init(&a, "1", true), counting_init(&b, "2", true), "M /f|");
	assert_int_equal(a.n_reads + b.n_reads, 0);
	expect_diff(counting_init(&a, "1", true), counting_init(&b, "1", false), "");
	assert_int_equal(a.n_reads, 0);
	assert_true(b.n_reads > 0);
	expect_diff(counting_init(&a, "1", false), counting_init(&b, "2", true), "M /f|");
	assert_int_equal(b.n_reads, 0);
	expect_diff(counting_init(&a, "1", true), counting_init(&b, "22", false), "M /f|");
	assert_int_equal(a.n_reads + b.n_reads, 0);
}

static void files_of_a_shared_layer_are_not_read(void **state)
{
	struct counting_tree base;
	struct tree *top = new_memtree(), *low, *high;

	struct union_input in[2] = {{.tree = counting_init(&base, "1", false)}, {.tree = top}};
	add(top, "/g", &file, "");
	assert_int_equal(union_new(&low, in, 1, false, NULL), 0);
	assert_int_equal(union_new(&high, in, 2, false, NULL), 0);
	expect_diff(low, high, "A /g|");
	assert_int_equal(base.n_reads, 0);
	tree_unref(top);
	tree_unref(&base.tree);
}

static void a_file_that_cannot_be_read_ends_it_with_the_reason(void **state)
{
	struct counting_tree a, b;
	struct err err = {0};

	counting_init(&a, "1", false);
	counting_init(&b, "1", false);
	b.error = -EBADMSG;
	scoped(strbuf_free) struct strbuf text = {0};
	assert_int_equal(tree_diff(&a.tree, &b.tree, change_to_text, &text, &err), -EBADMSG);
	assert_string_equal(err.text, "no bytes");
	b.has_digests = true;
	a.error = -EIO;
	assert_int_equal(tree_diff(&a.tree, &b.tree, change_to_text, &text, &err), -EIO);
	tree_unref(&a.tree);
	tree_unref(&b.tree);
}

static int stop_at_once(void *arg, const struct change *c)
{
	++*(int *)arg;
	return 42;
}

static void the_caller_can_stop_it(void **state)
{
	struct tree *a = new_memtree(), *b = new_memtree();
	int n = 0;

	add(b, "/a/b", &file, "");
	add(b, "/c", &file, "");
	assert_int_equal(tree_diff(a, b, stop_at_once, &n, NULL), 42);
	assert_int_equal(n, 1);
	tree_unref(a);
	tree_unref(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(equal_trees_do_not_differ),
		cmocka_unit_test(folders_are_deleted_as_one_and_added_with_what_is_in_them),
		cmocka_unit_test(changes_come_in_the_order_of_a_walk),
		cmocka_unit_test(each_kind_of_metadata_is_a_change),
		cmocka_unit_test(content_is_compared_to_its_end),
		cmocka_unit_test(the_roots_own_metadata_is_left_out),
		cmocka_unit_test(known_digests_save_reading),
		cmocka_unit_test(files_of_a_shared_layer_are_not_read),
		cmocka_unit_test(a_file_that_cannot_be_read_ends_it_with_the_reason),
		cmocka_unit_test(the_caller_can_stop_it),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
