/* SPDX-License-Identifier: Apache-2.0 */

/*
 * merge and diff: what holds of any trees, on random ones.
 *
 *	merge(a, merge(b, c)) == merge(merge(a, b), c)
 *	merge(a, diff(a, b)) == b, but for the root's own metadata
 *	diff(a, a) is nothing, and diff(a, merge(a, x)) is x, not a copy of it
 *	a part that is put somewhere, or cut out, may be taken apart before or after
 *
 * Layers have files, folders, links and devices that are in each other's way, whiteouts of what is
 * there and of what is not, and opaque folders. The seeds are fixed.
 */

#include "solver/solver-internal.h"
#include "tests/test.h"

#define ROUNDS 400
#define NAMES "abcd"

static unsigned roll(uint64_t *seed, unsigned sides)
{
	*seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (unsigned)(*seed >> 33) % sides;
}

/* ------------------------------------------------------------------ random layers */

static void add_folder(struct tree *t, const char *path, bool is_layer, uint64_t *seed, int depth);

static void add_entry(struct tree *t, const char *path, bool is_layer, uint64_t *seed, int depth)
{
	static const uint8_t types[] = {NODE_FILE, NODE_FILE, NODE_SYMLINK, NODE_CHAR,
					NODE_WHITEOUT};
	unsigned kind = roll(seed, is_layer ? 8 : 7);
	if (depth > 0 && kind >= 4 && kind < 7) {
		add_folder(t, path, is_layer, seed, depth);
		return;
	}
	struct attr attr = {.type = types[kind == 7 ? 4 : kind % 4],
			    .mode = roll(seed, 2) ? 0644 : 0600,
			    .uid = roll(seed, 2),
			    .mtime_s = roll(seed, 3),
			    .mtime_ns = roll(seed, 2)};
	char data[8];
	snprintf(data, sizeof(data), "%u", roll(seed, 3));
	if (attr.type == NODE_CHAR)
		attr.dev_major = 1, attr.dev_minor = roll(seed, 2) + 3;
	if (attr.type == NODE_WHITEOUT)
		attr = (struct attr){.type = NODE_WHITEOUT};
	bool has_data = attr.type == NODE_FILE || attr.type == NODE_SYMLINK;
	assert_int_equal(memtree_add(t, path, &attr, data, has_data ? strlen(data) : 0), 0);
	if (attr.type == NODE_FILE && roll(seed, 4) == 0)
		assert_int_equal(memtree_xattr(t, path, "user.x", data, 1), 0);
}

static void add_folder(struct tree *t, const char *path, bool is_layer, uint64_t *seed, int depth)
{
	struct attr attr = {.type = NODE_DIR,
			    .mode = roll(seed, 2) ? 0755 : 0700,
			    .gid = roll(seed, 2),
			    .mtime_s = roll(seed, 3),
			    .is_opaque = is_layer && *path && roll(seed, 5) == 0};
	if (*path)
		assert_int_equal(memtree_add(t, path, &attr, NULL, 0), 0);
	for (const char *name = NAMES; *name; name++) {
		char child[32];
		snprintf(child, sizeof(child), "%s/%c", path, *name);
		if (roll(seed, 5) < 3)
			add_entry(t, child, is_layer, seed, depth - 1);
	}
}

static struct ref *random_ref_of(bool is_layer, uint64_t *seed, int depth)
{
	struct tree *t = NULL;
	struct ref *ref = NULL;
	assert_int_equal(memtree_new(&t), 0);
	add_folder(t, "", is_layer, seed, depth);
	assert_int_equal(ref_made(&ref, "random", t, NULL), 0);
	tree_unref(t);
	return ref;
}

static struct ref *random_ref(bool is_layer, uint64_t *seed)
{
	return random_ref_of(is_layer, seed, 3);
}

/* ------------------------------------------------------------------ what is in a tree */

struct listing {
	struct tree *tree;
	struct strbuf text;
};

static int list_xattr(void *arg, const char *name, const void *value, size_t len)
{
	strbuf_printf(arg, " %s=%.*s", name, (int)len, (const char *)value);
	return 0;
}

static int list_entry(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct listing *l = arg;
	char data[64];
	strbuf_printf(&l->text, "%s %d %o %u:%u %lld.%u %u:%u", path, attr->type, attr->mode,
		      attr->uid, attr->gid, (long long)attr->mtime_s, attr->mtime_ns,
		      attr->dev_major, attr->dev_minor);
	if (attr->type == NODE_SYMLINK) {
		scoped(strbuf_free) struct strbuf target = {0};
		assert_int_equal(tree_readlink(l->tree, attr->id, &target, NULL), 0);
		strbuf_printf(&l->text, " -> %s", target.data);
	} else if (attr->type == NODE_FILE) {
		int64_t n = tree_read(l->tree, attr->id, 0, data, sizeof(data), NULL, NULL, NULL);
		assert_int_equal(n, attr->size);
		strbuf_printf(&l->text, " \"%.*s\"", (int)n, data);
	}
	assert_int_equal(tree_xattrs(l->tree, attr->id, list_xattr, &l->text, NULL), 0);
	strbuf_puts(&l->text, "\n");
	return 0;
}

/* All but the root's metadata; to be freed. */
static char *list(struct ref *ref)
{
	struct listing l = {0};
	struct err err = {0};
	if (ref_tree(&l.tree, ref, NULL, NULL, NULL, &err) < 0)
		fail_msg("%s", err.text);
	strbuf_puts(&l.text, "");
	assert_int_equal(tree_walk_all(l.tree, TREE_ROOT, list_entry, &l, &err), 0);
	tree_unref(l.tree);
	return strbuf_finish(&l.text);
}

static void expect_equal(struct ref *a, struct ref *b, unsigned round)
{
	scoped(free) char *x = list(a), *y = list(b);
	if (strcmp(x, y) != 0)
		fail_msg("round %u:\n%s----\n%s", round, x, y);
}

/* ------------------------------------------------------------------ operations */

/* Takes the references of all parts. */
static struct ref *merge_parts(struct ref_part *parts, size_t n)
{
	struct ref *out = NULL;
	struct err err = {0};
	if (ref_merge(&out, parts, n, &err) < 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < n; i++)
		ref_unref(parts[i].ref);
	return out;
}

static struct ref *merge2(struct ref *a, struct ref *b)
{
	return merge_parts((struct ref_part[]){{.ref = ref_ref(a)}, {.ref = ref_ref(b)}}, 2);
}

static struct ref *diff2(struct ref *a, struct ref *b)
{
	char name[] = "diff";
	struct vertex v = {.name = name, .n_outputs = 1};
	struct solver solver = {0};
	struct ref *inputs[] = {a, b}, *out = NULL;
	struct err err = {0};
	v.op.diff.upper = 1;
	if (op_diff.run(&v, &solver, inputs, &out, &err) < 0)
		fail_msg("%s", err.text);
	return out;
}

/* ------------------------------------------------------------------ what holds */

static void merges_associate(void **state)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t seed = round;
		scoped(ref_unref) struct ref *a = random_ref(true, &seed);
		scoped(ref_unref) struct ref *b = random_ref(true, &seed);
		scoped(ref_unref) struct ref *c = random_ref(true, &seed);
		scoped(ref_unref) struct ref *ab = merge2(a, b), *bc = merge2(b, c);
		scoped(ref_unref) struct ref *left = merge2(ab, c), *right = merge2(a, bc);
		expect_equal(left, right, round);
	}
}

/* The same where the trees really are merged in two steps: raw unions as inputs. */
static void raw_unions_associate(void **state)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t seed = round + 7777;
		struct union_input in[3] = {0};
		scoped(tree_unref) struct tree *low = NULL, *high = NULL;
		scoped(ref_unref) struct ref *l = NULL, *h = NULL, *flat = NULL, *left = NULL,
					     *right = NULL;
		struct ref *part[3];
		for (size_t i = 0; i < 3; i++) {
			part[i] = random_ref(true, &seed);
			assert_int_equal(ref_made_tree(part[i], &in[i].tree, NULL), 0);
		}
		assert_int_equal(union_new(&low, in, 2, true, NULL), 0);
		assert_int_equal(union_new(&high, in + 1, 2, true, NULL), 0);
		assert_int_equal(ref_made(&l, "low", low, NULL), 0);
		assert_int_equal(ref_made(&h, "high", high, NULL), 0);
		left = merge2(l, part[2]);
		right = merge2(part[0], h);
		struct ref_part parts[3] = {{.ref = part[0]}, {.ref = part[1]}, {.ref = part[2]}};
		flat = merge_parts(parts, 3);
		expect_equal(left, flat, round);
		expect_equal(right, flat, round);
	}
}

static void merge_undoes_diff(void **state)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t seed = round + 1000000;
		scoped(ref_unref) struct ref *a = random_ref(false, &seed);
		scoped(ref_unref) struct ref *b = random_ref(false, &seed);
		scoped(ref_unref) struct ref *change = diff2(a, b);
		scoped(ref_unref) struct ref *whole = merge2(a, change);
		expect_equal(whole, b, round);
	}
}

/* Of merges, whose trees have to be compared as they are not each other's beginning. */
static void merge_undoes_diffs_of_merges(void **state)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t seed = round + 2000000;
		scoped(ref_unref) struct ref *a = random_ref(false, &seed);
		scoped(ref_unref) struct ref *x = random_ref(true, &seed);
		scoped(ref_unref) struct ref *y = random_ref(true, &seed);
		scoped(ref_unref) struct ref *ax = merge2(a, x), *ay = merge2(a, y);
		scoped(ref_unref) struct ref *change = diff2(ax, ay);
		scoped(ref_unref) struct ref *whole = merge2(ax, change);
		expect_equal(whole, ay, round);
	}
}

static void equal_trees_do_not_differ(void **state)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t seed = round + 3000000, again = seed;
		scoped(ref_unref) struct ref *a = random_ref(false, &seed);
		scoped(ref_unref) struct ref *copy = random_ref(false, &again);
		scoped(ref_unref) struct ref *same = diff2(a, a), *equal = diff2(a, copy);
		assert_int_equal(ref_kind(same), REF_SCRATCH);
		assert_int_equal(ref_kind(equal), REF_SCRATCH);
	}
}

static void a_diff_with_an_ancestor_is_the_layers_between(void **state)
{
	for (unsigned round = 0; round < 20; round++) {
		uint64_t seed = round + 4000000;
		scoped(ref_unref) struct ref *a = random_ref(false, &seed);
		scoped(ref_unref) struct ref *x = random_ref(true, &seed);
		scoped(ref_unref) struct ref *y = random_ref(true, &seed);
		scoped(ref_unref) struct ref *ax = merge2(a, x), *axy = merge2(ax, y);
		scoped(ref_unref) struct ref *one = diff2(ax, axy), *two = diff2(a, axy);
		scoped(ref_unref) struct ref *xy = merge2(x, y), *back = merge2(a, two);
		const struct ref_part *parts;
		assert_ptr_equal(one, y);
		assert_int_equal(ref_parts(two, &parts), 2);
		assert_ptr_equal(parts[0].ref, x);
		assert_ptr_equal(parts[1].ref, y);
		expect_equal(two, xy, round);
		expect_equal(back, axy, round);
	}
}

static void a_part_is_put_somewhere_before_or_after(void **state)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t seed = round + 5000000;
		scoped(ref_unref) struct ref *a = random_ref(true, &seed);
		scoped(ref_unref) struct ref *b = random_ref(true, &seed);
		scoped(ref_unref) struct ref *c = random_ref(true, &seed);
		scoped(ref_unref) struct ref *bc = merge2(b, c);
		char add[] = "/a/b";
		struct ref_part after[] = {{.ref = ref_ref(a)}, {.ref = ref_ref(bc), .add = add}};
		struct ref_part before[] = {{.ref = ref_ref(a)},
					    {.ref = ref_ref(b), .add = add},
					    {.ref = ref_ref(c), .add = add}};
		scoped(ref_unref) struct ref *left = merge_parts(after, 2);
		scoped(ref_unref) struct ref *right = merge_parts(before, 3);
		expect_equal(left, right, round);
	}
}

/* A folder put below /t and cut out again; folders that are not in every input cannot be. */
static void a_part_is_cut_out_before_or_after(void **state)
{
	char path[] = "/t/u";
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t seed = round + 6000000;
		scoped(ref_unref) struct ref *a = random_ref(true, &seed);
		scoped(ref_unref) struct ref *b = random_ref(true, &seed);
		scoped(ref_unref) struct ref *c = random_ref(true, &seed);
		struct ref_part below_b[] = {{.ref = ref_ref(b), .add = path}};
		struct ref_part below_c[] = {{.ref = ref_ref(c), .add = path}};
		scoped(ref_unref) struct ref *tb = merge_parts(below_b, 1);
		scoped(ref_unref) struct ref *tc = merge_parts(below_c, 1);
		scoped(ref_unref) struct ref *both = merge2(tb, tc);
		struct ref_part after[] = {{.ref = ref_ref(a)},
					   {.ref = ref_ref(both), .trim = path}};
		struct ref_part before[] = {{.ref = ref_ref(a)},
					    {.ref = ref_ref(tb), .trim = path},
					    {.ref = ref_ref(tc), .trim = path}};
		scoped(ref_unref) struct ref *left = merge_parts(after, 2);
		scoped(ref_unref) struct ref *right = merge_parts(before, 3);
		scoped(ref_unref) struct ref *bc = merge2(b, c), *plain = merge2(a, bc);
		expect_equal(left, right, round);
		expect_equal(left, plain, round);
	}
}

/* A chain, of which many layers are looked at as one, and the same layers side by side. Each is looked
 * at on the way, as file ops do. */
static void check_chain(size_t n, uint64_t seed, int depth)
{
	struct ref_part *parts = calloc(n, sizeof(*parts));
	scoped(ref_unref) struct ref *chain = NULL;
	assert_non_null(parts);
	for (size_t i = 0; i < n; i++) {
		parts[i].ref = random_ref_of(true, &seed, depth);
		struct ref *next = i ? merge2(chain, parts[i].ref) : ref_ref(parts[0].ref);
		ref_unref(chain);
		chain = next;
		struct tree *tree = NULL;
		struct attr attr;
		assert_int_equal(ref_tree(&tree, chain, NULL, NULL, NULL, NULL), 0);
		int r = tree_walk(tree, "/a/b", false, &attr, NULL);
		assert_true(r == 0 || r == -ENOENT || r == -ENOTDIR || r == -ELOOP);
		tree_unref(tree);
	}
	scoped(ref_unref) struct ref *flat = merge_parts(parts, n);
	expect_equal(chain, flat, (unsigned)n);
	free(parts);
}

static void a_chain_is_its_layers(void **state)
{
	for (unsigned round = 0; round < 20; round++)
		check_chain(60 + round * 8, round + 8000000, 3);
	check_chain(4096 + 64 + 5, 9000000, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(merges_associate),
		cmocka_unit_test(raw_unions_associate),
		cmocka_unit_test(merge_undoes_diff),
		cmocka_unit_test(merge_undoes_diffs_of_merges),
		cmocka_unit_test(equal_trees_do_not_differ),
		cmocka_unit_test(a_diff_with_an_ancestor_is_the_layers_between),
		cmocka_unit_test(a_part_is_put_somewhere_before_or_after),
		cmocka_unit_test(a_part_is_cut_out_before_or_after),
		cmocka_unit_test(a_chain_is_its_layers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
