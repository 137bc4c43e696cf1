/* SPDX-License-Identifier: Apache-2.0 */

/*
 * union: against a model, and where a model does not reach.
 *
 * The model keeps a tree as a table of paths and puts one over another from the bottom up, by the
 * words of the rules: a whiteout removes what is there, an opaque folder empties it. The union
 * searches from the top down. Both are given the same random stacks.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

/* ------------------------------------------------------------------ the model */

struct row {
	char path[64]; /* "" = the root */
	struct attr attr;
};
struct model {
	struct row rows[400]; /* by path, in the order of tree_walk_all */
	size_t n;
};

/* Paths compare name by name, as '/' sorts before all else that the tests use. */
static int compare_rows(const void *a, const void *b)
{
	return strcmp(((const struct row *)a)->path, ((const struct row *)b)->path);
}

static struct row *model_get(struct model *m, const char *path)
{
	for (size_t i = 0; i < m->n; i++) {
		if (strcmp(m->rows[i].path, path) == 0)
			return &m->rows[i];
	}
	return NULL;
}

static bool is_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	return len == 0 ? *path != '\0' : strncmp(path, dir, len) == 0 && path[len] == '/';
}

static void model_remove_below(struct model *m, const char *path)
{
	size_t n = 0;

	for (size_t i = 0; i < m->n; i++) {
		if (!is_below(m->rows[i].path, path))
			m->rows[n++] = m->rows[i];
	}
	m->n = n;
}

static void model_set(struct model *m, const char *path, const struct attr *attr)
{
	struct row *row = model_get(m, path);

	if (!row) {
		assert_true(m->n < countof(m->rows));
		row = &m->rows[m->n++];
		snprintf(row->path, sizeof(row->path), "%s", path);
	}
	row->attr = *attr;
}

static int model_visit(void *arg, const char *path, const char *name, const struct attr *attr)
{
	model_set(arg, path, attr);
	return 0;
}

static void model_sort(struct model *m)
{
	qsort(m->rows, m->n, sizeof(*m->rows), compare_rows);
}

static void model_of(struct model *m, struct tree *t)
{
	struct attr root;

	m->n = 0;
	assert_int_equal(tree_getattr(t, TREE_ROOT, &root, NULL, NULL), 0);
	model_set(m, "", &root);
	assert_int_equal(tree_walk_all(t, TREE_ROOT, model_visit, m, NULL), 0);
}

static void model_put_dir(struct model *m, const struct row *row)
{
	struct attr attr = row->attr;
	struct row *old = model_get(m, row->path);

	if (attr.is_opaque)
		model_remove_below(m, row->path);
	if (old && old->attr.type != NODE_DIR)
		attr.is_opaque = true;
	if (old && old->attr.type == NODE_DIR) {
		bool is_opaque = attr.is_opaque || old->attr.is_opaque;

		if (attr.is_implicit && !row->attr.is_opaque && !old->attr.is_implicit)
			attr = old->attr;
		attr.is_opaque = is_opaque;
	}
	model_set(m, row->path, &attr);
}

/* Puts @high over @m. */
static void model_put(struct model *m, const struct model *high)
{
	for (size_t i = 0; i < high->n; i++) {
		const struct row *row = &high->rows[i];

		if (row->attr.type == NODE_DIR) {
			model_put_dir(m, row);
		} else {
			model_remove_below(m, row->path);
			model_set(m, row->path, &row->attr);
		}
	}
	model_sort(m);
}

/* The input that shows only what lies below @trim, below @add. */
static int model_move(struct model *m, const char *trim, const char *add)
{
	const struct attr made = {.type = NODE_DIR, .mode = 0755, .is_implicit = true};
	static struct model out;
	const struct row *top = model_get(m, trim);
	char path[64];

	if (!top || top->attr.type == NODE_WHITEOUT)
		return -ENOENT;
	if (top->attr.type != NODE_DIR)
		return -ENOTDIR;
	out.n = 0;
	model_set(&out, "", &made);
	for (const char *p = add; (p = strchr(p, '/')); p++) {
		snprintf(path, sizeof(path), "%.*s", (int)(p - add), add);
		model_set(&out, path, &made);
	}
	model_set(&out, add, &top->attr);
	for (size_t i = 0; i < m->n; i++) {
		if (!is_below(m->rows[i].path, trim))
			continue;
		const char *rest = m->rows[i].path + strlen(trim) + (*trim != '\0');
		snprintf(path, sizeof(path), "%s%s%s", add, *add ? "/" : "", rest);
		model_set(&out, path, &m->rows[i].attr);
	}
	*m = out;
	model_sort(m);
	return 0;
}

static void model_cook(struct model *m)
{
	size_t n = 0;

	for (size_t i = 0; i < m->n; i++) {
		m->rows[i].attr.is_opaque = false;
		if (m->rows[i].attr.type != NODE_WHITEOUT)
			m->rows[n++] = m->rows[i];
	}
	m->n = n;
}

static void expect_model(struct tree *t, struct model *want)
{
	static struct model got;

	model_of(&got, t);
	model_sort(&got);
	for (size_t i = 0; i < MIN(got.n, want->n); i++) {
		const struct row *g = &got.rows[i], *w = &want->rows[i];

		assert_string_equal(g->path, w->path);
		assert_int_equal(g->attr.type, w->attr.type);
		assert_int_equal(g->attr.uid, w->attr.uid);
		assert_int_equal(g->attr.mode, w->attr.mode);
		assert_int_equal(g->attr.is_opaque, w->attr.is_opaque);
		assert_int_equal(g->attr.is_implicit, w->attr.is_implicit);
	}
	assert_int_equal(got.n, want->n);
}

/* ------------------------------------------------------------------ random stacks */

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
	random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (uint32_t)(random_state >> 33) % n;
}

static void random_path(char *path, uint32_t max_depth)
{
	uint32_t depth = 1 + random_below(max_depth);
	char *p = path;

	for (uint32_t i = 0; i < depth; i++) {
		*p++ = '/';
		*p++ = (char)('a' + random_below(3));
	}
	*p = '\0';
}

static struct tree *random_layer(void)
{
	static uint32_t serial;
	struct tree *t;
	char path[64];

	assert_int_equal(memtree_new(&t), 0);
	for (uint32_t i = 1 + random_below(8); i > 0; i--) {
		static const uint8_t types[] = {NODE_FILE, NODE_FILE, NODE_DIR, NODE_DIR,
						NODE_WHITEOUT};
		struct attr a = {
			.type = types[random_below(countof(types))],
			.uid = ++serial,
			.mode = 0700,
		};
		char text[16];

		a.is_opaque = a.type == NODE_DIR && random_below(4) == 0;
		snprintf(text, sizeof(text), "%u", a.uid);
		random_path(path, 3);
		if (random_below(20) == 0 && a.type == NODE_DIR)
			strcpy(path, "/");
		memtree_add(t, path, &a, text, a.type == NODE_FILE ? strlen(text) : 0);
	}
	return t;
}

static struct tree *make_union(struct union_input *inputs, size_t n, bool is_raw)
{
	struct tree *t;
	struct err err = {0};

	if (union_new(&t, inputs, n, is_raw, &err) < 0)
		fail_msg("union_new: %s", err.text);
	return t;
}

/* A random stack of inputs, some of them raw unions, some moved; its model in @m. */
static size_t random_stack(struct union_input *inputs, size_t max, uint32_t depth, struct model *m,
			   char (*paths)[2][64])
{
	size_t n = 1 + random_below((uint32_t)max);

	for (size_t i = 0; i < n; i++) {
		struct model *own = calloc(1, sizeof(*own));

		inputs[i] = (struct union_input){0};
		if (depth > 0 && random_below(3) == 0) {
			struct union_input parts[4];
			char part_paths[4][2][64];
			size_t k = random_stack(parts, countof(parts), depth - 1, own, part_paths);

			inputs[i].tree = make_union(parts, k, true);
			while (k > 0)
				tree_unref(parts[--k].tree);
		} else {
			inputs[i].tree = random_layer();
			model_of(own, inputs[i].tree);
			model_sort(own);
		}
		const char *trim = "/", *add = "/";
		if (random_below(3) == 0) {
			random_path(paths[i][0], 2);
			trim = inputs[i].trim = paths[i][0];
		}
		if (random_below(3) == 0) {
			random_path(paths[i][1], 3);
			add = inputs[i].add = paths[i][1];
		}
		if (model_move(own, trim + 1, add + 1) < 0) {
			inputs[i].trim = NULL;
			assert_int_equal(model_move(own, "", add + 1), 0);
		}
		model_put(m, own);
		free(own);
	}
	return n;
}

static void model_begin(struct model *m)
{
	const struct attr root = {.type = NODE_DIR, .mode = 0755, .is_implicit = true};

	m->n = 0;
	model_set(m, "", &root);
}

static void random_stacks_show_what_the_model_says(void **state)
{
	static struct model m;

	for (uint64_t seed = 1; seed <= 3000; seed++) {
		struct union_input inputs[6];
		char paths[6][2][64];
		bool is_raw = seed % 2;

		random_state = seed;
		model_begin(&m);
		size_t n = random_stack(inputs, countof(inputs), 2, &m, paths);
		if (!is_raw)
			model_cook(&m);
		struct tree *t = make_union(inputs, n, is_raw);
		expect_model(t, &m);
		expect_model(t, &m); /* from what it kept */
		tree_unref(t);
		while (n > 0)
			tree_unref(inputs[--n].tree);
	}
}

static int same_list(void *arg, const char *name, size_t len, const struct attr *attr,
		     uint64_t next)
{
	strbuf_printf(arg, "%s=%llx/%u ", name, (unsigned long long)attr->id, attr->uid);
	return 0;
}

/* A tree that was just made, asked about a number that another one gave out. */
static void expect_same_folder(struct union_input *inputs, size_t n, bool is_raw, struct tree *old,
			       uint64_t id, size_t max_folders)
{
	scoped(strbuf_free) struct strbuf a = {0}, b = {0}, name_a = {0}, name_b = {0};
	struct tree *t = make_union(inputs, n, is_raw);
	uint64_t up_a, up_b;
	struct attr attr_a, attr_b;

	union_limit_cache(t, max_folders, 0);
	assert_int_equal(tree_list(old, id, 0, same_list, &a, NULL, NULL), 0);
	assert_int_equal(tree_list(t, id, 0, same_list, &b, NULL, NULL), 0);
	strbuf_puts(&a, ".");
	strbuf_puts(&b, ".");
	assert_string_equal(a.data, b.data);
	assert_int_equal(tree_parent(old, id, &up_a, &name_a, NULL), 0);
	assert_int_equal(tree_parent(t, id, &up_b, &name_b, NULL), 0);
	assert_int_equal(up_a, up_b);
	strbuf_puts(&name_a, ".");
	strbuf_puts(&name_b, ".");
	assert_string_equal(name_a.data, name_b.data);
	if (id != TREE_ROOT) {
		assert_int_equal(
			tree_lookup(t, up_b, name_b.data, name_b.len - 1, &attr_a, NULL, NULL), 0);
		assert_int_equal(attr_a.id, id);
	} else {
		assert_int_equal(up_b, TREE_ROOT);
		assert_int_equal(tree_getattr(old, id, &attr_a, NULL, NULL), 0);
	}
	assert_int_equal(tree_getattr(t, id, &attr_b, NULL, NULL), 0);
	assert_int_equal(attr_a.uid, attr_b.uid);
	assert_int_equal(attr_a.is_opaque, attr_b.is_opaque);
	tree_unref(t);
}

static void numbers_are_unique_and_mean_the_same_to_a_new_server(void **state)
{
	static struct model m, got;

	for (uint64_t seed = 10001; seed <= 10400; seed++) {
		struct union_input inputs[6];
		char paths[6][2][64];

		random_state = seed;
		model_begin(&m);
		size_t n = random_stack(inputs, countof(inputs), 2, &m, paths);
		struct tree *t = make_union(inputs, n, seed % 2);
		model_of(&got, t);
		for (size_t i = 0; i < got.n; i++) {
			const struct row *r = &got.rows[i];

			for (size_t k = 0; k < i; k++)
				assert_true(got.rows[k].attr.id != r->attr.id);
			assert_true(r->attr.id >> 32 < t->n_leaves);
			if (r->attr.type == NODE_DIR)
				expect_same_folder(inputs, n, seed % 2, t, r->attr.id, seed % 3);
		}
		tree_unref(t);
		while (n > 0)
			tree_unref(inputs[--n].tree);
	}
}

/* ------------------------------------------------------------------ single cases */

static void add(struct tree *t, const char *path, uint8_t type, const char *data, uint32_t uid)
{
	const struct attr a = {.type = type, .mode = 0711, .uid = uid};

	assert_int_equal(memtree_add(t, path, &a, data, strlen(data)), 0);
}

static struct tree *new_memtree(void)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	return t;
}

static struct attr at(struct tree *t, const char *path)
{
	struct err err = {0};
	struct attr a;

	if (tree_walk(t, path, false, &a, &err) < 0)
		fail_msg("%s", err.text);
	return a;
}

static void expect_names(struct tree *t, const char *path, const char *names)
{
	scoped(strbuf_free) struct strbuf text = {0};
	struct tree_listing l;

	assert_int_equal(tree_listing_read(&l, t, at(t, path).id, NULL, NULL), 0);
	strbuf_puts(&text, "");
	for (size_t i = 0; i < l.entries.n; i++)
		strbuf_printf(&text, "%s%s", i ? " " : "",
			      tree_entry_name(&l, &l.entries.items[i]));
	assert_string_equal(text.data, names);
	tree_listing_deinit(&l);
}

static void content_links_and_xattrs_come_from_their_layer(void **state)
{
	scoped(strbuf_free) struct strbuf text = {0};
	struct union_input in[2] = {{.tree = new_memtree()}, {.tree = new_memtree()}};
	char buf[8] = {0};
	uint64_t data, end;

	add(in[0].tree, "/d/f", NODE_FILE, "low", 1);
	add(in[0].tree, "/d/l", NODE_SYMLINK, "f", 1);
	assert_int_equal(memtree_link(in[0].tree, "/d/g", "/d/f"), 0);
	assert_int_equal(memtree_xattr(in[0].tree, "/d", "user.low", "1", 1), 0);
	add(in[1].tree, "/d/h", NODE_FILE, "high", 2);
	assert_int_equal(memtree_xattr(in[1].tree, "/d", "user.implicit", "1", 1), 0);
	struct tree *t = make_union(in, 2, false);
	expect_names(t, "/d", "f g h l");
	assert_int_equal(at(t, "/d/f").id, at(t, "/d/g").id);
	assert_int_equal(at(t, "/d/f").nlink, 2);
	assert_int_equal(at(t, "/d").nlink, 1);
	assert_int_equal(tree_read(t, at(t, "/d/h").id, 1, buf, 8, NULL, NULL, NULL), 3);
	assert_string_equal(buf, "igh");
	assert_int_equal(tree_seek_data(t, at(t, "/d/f").id, 0, &data, &end), 0);
	assert_int_equal(end, 3);
	assert_int_equal(tree_readlink(t, at(t, "/d/l").id, &text, NULL), 0);
	assert_string_equal(text.data, "f");
	assert_int_equal(tree_readlink(t, TREE_ROOT, &text, NULL), -EINVAL);
	assert_int_equal(tree_read(t, TREE_ROOT, 0, buf, 1, NULL, NULL, NULL), -EISDIR);
	assert_int_equal(tree_getattr(t, UINT64_C(99) << 32, &(struct attr){0}, NULL, NULL),
			 -ENOENT);
	assert_int_equal(tree_getattr(t, 2, &(struct attr){0}, NULL, NULL), -ENOENT);
	tree_unref(t);
	tree_unref(in[0].tree);
	tree_unref(in[1].tree);
}

static int take_name(void *arg, const char *name, const void *value, size_t len)
{
	strbuf_puts(arg, name);
	return 0;
}

static void the_root_is_what_an_input_says_else_plain(void **state)
{
	scoped(strbuf_free) struct strbuf text = {0};
	struct union_input in[2] = {{.tree = new_memtree()}, {.tree = new_memtree()}};
	const struct attr root = {.type = NODE_DIR, .mode = 01777, .uid = 5, .mtime_s = 9};

	struct tree *t = make_union(in, 2, false);
	struct attr a = at(t, "/");
	assert_int_equal(a.mode, 0755);
	assert_int_equal(a.uid, 0);
	assert_int_equal(a.mtime_s, 0);
	assert_int_equal(a.id, TREE_ROOT);
	assert_int_equal(memtree_add(in[0].tree, "/", &root, NULL, 0), 0);
	assert_int_equal(memtree_xattr(in[0].tree, "/", "user.root", "1", 1), 0);
	a = at(t, "/");
	assert_int_equal(a.mode, 01777);
	assert_int_equal(a.id, TREE_ROOT);
	assert_int_equal(tree_xattrs(t, TREE_ROOT, take_name, &text, NULL), 0);
	assert_string_equal(text.data, "user.root");
	tree_unref(t);
	in[0].add = "/below";
	t = make_union(in, 2, false);
	assert_int_equal(at(t, "/").mode, 0755);
	assert_int_equal(at(t, "/below").mode, 01777);
	tree_unref(t);
	tree_unref(in[0].tree);
	tree_unref(in[1].tree);
	t = make_union(NULL, 0, false);
	expect_names(t, "/", "");
	tree_unref(t);
}

static void a_trim_path_is_followed_inside_its_input(void **state)
{
	struct tree *low = new_memtree(), *high = new_memtree();
	struct union_input parts[2] = {{.tree = low}, {.tree = high}};
	struct union_input in = {.trim = "/link/x", .add = "opt//./tool/"};

	add(low, "/usr/real/x/f", NODE_FILE, "found", 7);
	add(high, "/link", NODE_SYMLINK, "/usr/../usr/real", 0);
	in.tree = make_union(parts, 2, true);
	struct tree *t = make_union(&in, 1, false);
	expect_names(t, "/", "opt");
	expect_names(t, "/opt/tool", "f");
	assert_int_equal(at(t, "/opt/tool/f").uid, 7);
	assert_int_equal(at(t, "/opt").mode, 0755);
	tree_unref(t);
	tree_unref(in.tree);
	tree_unref(low);
	tree_unref(high);
}

static void a_bad_trim_or_add_path_is_said(void **state)
{
	struct tree *mem = new_memtree(), *t;
	struct union_input in = {.tree = mem};
	struct err err = {0};
	struct attr a;

	add(mem, "/file", NODE_FILE, "", 0);
	in.trim = "/a/../b";
	assert_int_equal(union_new(&t, &in, 1, false, &err), -EINVAL);
	in = (struct union_input){.tree = mem, .add = ".."};
	assert_int_equal(union_new(&t, &in, 1, false, &err), -EINVAL);
	assert_true(strstr(err.text, "add path"));
	in = (struct union_input){.tree = mem, .add = "..a/b.."};
	assert_int_equal(union_new(&t, &in, 1, false, &err), 0);
	tree_unref(t);

	in = (struct union_input){.tree = mem, .trim = "/none"};
	t = make_union(&in, 1, false);
	assert_int_equal(tree_getattr(t, TREE_ROOT, &a, NULL, &err), -ENOENT);
	assert_string_equal(err.text, "trim path: /none: no such file or folder");
	assert_int_equal(tree_lookup(t, TREE_ROOT, "x", 1, &a, NULL, &err), -ENOENT);
	assert_true(strstr(err.text, "trim path"));
	tree_unref(t);
	in.trim = "/file";
	t = make_union(&in, 1, false);
	assert_int_equal(tree_getattr(t, TREE_ROOT, &a, NULL, &err), -ENOTDIR);
	assert_string_equal(err.text, "trim path: /file: not a folder");
	tree_unref(t);
	tree_unref(mem);
}

/* ------------------------------------------------------------------ trees that say "later" */

/* A tree in memory that answers only once it is released; of its root, getattr always does. */
struct late_tree {
	struct tree tree;
	struct tree *mem;
	int n_lists;
	bool is_ready;
	struct tree_wait *waiting;
};

static struct late_tree *late(struct tree *t)
{
	return containerof(t, struct late_tree, tree);
}

static int late_check(struct late_tree *l, struct tree_wait *wait)
{
	if (l->is_ready)
		return 0;
	assert_non_null(wait);
	wait->next = l->waiting;
	l->waiting = wait;
	return -EAGAIN;
}

static int late_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			struct err *err)
{
	int r = id == TREE_ROOT ? 0 : late_check(late(t), wait);

	if (r == 0)
		r = tree_getattr(late(t)->mem, id, out, wait, err);
	if (!late(t)->is_ready)
		out->is_opaque = false;
	return r;
}

static int late_lookup(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		       struct tree_wait *wait, struct err *err)
{
	int r = late_check(late(t), wait);

	return r < 0 ? r : tree_lookup(late(t)->mem, dir, name, len, out, wait, err);
}

static int late_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		     struct tree_wait *wait, struct err *err)
{
	int r = late_check(late(t), wait);

	late(t)->n_lists++;
	return r < 0 ? r : tree_list(late(t)->mem, dir, from, fn, arg, wait, err);
}

static int late_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
		       struct err *err)
{
	assert_true(late(t)->is_ready);
	return tree_parent(late(t)->mem, dir, out, name, err);
}

static void late_free(struct tree *t)
{
	tree_unref(late(t)->mem);
}

static const struct tree_ops late_ops = {
	.getattr = late_getattr,
	.lookup = late_lookup,
	.list = late_list,
	.parent = late_parent,
	.free = late_free,
};

static void late_init(struct late_tree *l)
{
	*l = (struct late_tree){.mem = new_memtree()};
	tree_init(&l->tree, &late_ops, 1, false);
}

static void late_release(struct late_tree *l)
{
	l->is_ready = true;
	for (struct tree_wait *w = l->waiting, *next; w; w = next) {
		next = w->next;
		w->ready(w);
	}
	l->waiting = NULL;
}

struct count_wait {
	struct tree_wait wait;
	int n;
};

static void count_ready(struct tree_wait *wait)
{
	containerof(wait, struct count_wait, wait)->n++;
}

static void names_decided_above_do_not_wait(void **state)
{
	struct late_tree low;
	struct tree *high = new_memtree();
	struct count_wait w = {.wait.ready = count_ready};
	struct attr a;

	late_init(&low);
	add(low.mem, "/d/low", NODE_FILE, "", 1);
	add(high, "/file", NODE_FILE, "", 2);
	add(high, "/gone", NODE_WHITEOUT, "", 2);
	add(high, "/d/high", NODE_FILE, "", 2);
	struct union_input in[2] = {{.tree = &low.tree}, {.tree = high}};
	struct tree *t = make_union(in, 2, false);

	assert_int_equal(tree_getattr(t, TREE_ROOT, &a, &w.wait, NULL), 0);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "file", 4, &a, &w.wait, NULL), 0);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "gone", 4, &a, &w.wait, NULL), -ENOENT);
	assert_null(low.waiting);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "d", 1, &a, &w.wait, NULL), -EAGAIN);
	assert_ptr_equal(low.waiting, &w.wait);
	assert_int_equal(w.n, 0);
	late_release(&low);
	assert_int_equal(w.n, 1);
	expect_names(t, "/d", "high low");
	tree_unref(t);
	tree_unref(high);
	tree_unref(&low.tree);
}

static void an_opaque_root_is_seen_once_its_layer_is_here(void **state)
{
	const struct attr opaque = {
		.type = NODE_DIR, .mode = 0755, .is_opaque = true, .is_implicit = true};
	struct late_tree high;
	struct tree *low = new_memtree();
	struct count_wait w = {.wait.ready = count_ready};
	struct attr a;

	late_init(&high);
	assert_int_equal(memtree_add(high.mem, "/", &opaque, NULL, 0), 0);
	add(high.mem, "/new", NODE_FILE, "", 1);
	add(low, "/old", NODE_FILE, "", 1);
	struct union_input parts[2] = {{.tree = low}, {.tree = &high.tree, .add = "/x"}};
	struct union_input in[2] = {{.tree = low, .add = "/x"}};
	parts[1].add = NULL;
	struct tree *plain = make_union(parts, 2, false);
	parts[1].add = "/x";
	struct tree *raw = make_union(&parts[1], 1, true);
	in[1].tree = raw;
	struct tree *nested = make_union(in, 2, false);

	assert_int_equal(tree_getattr(plain, TREE_ROOT, &a, &w.wait, NULL), 0);
	assert_int_equal(tree_lookup(plain, TREE_ROOT, "old", 3, &a, &w.wait, NULL), -EAGAIN);
	assert_int_equal(tree_lookup(nested, TREE_ROOT, "x", 1, &a,
				     &(struct tree_wait){.ready = count_ready}, NULL),
			 -EAGAIN);
	high.waiting = NULL;
	high.is_ready = true;
	expect_names(plain, "/", "new");
	assert_int_equal(tree_lookup(plain, TREE_ROOT, "old", 3, &a, NULL, NULL), -ENOENT);
	expect_names(nested, "/x", "new");
	tree_unref(nested);
	tree_unref(raw);
	tree_unref(plain);
	tree_unref(low);
	tree_unref(&high.tree);
}

static void a_number_of_an_earlier_server_may_have_to_wait(void **state)
{
	struct late_tree layer;
	struct count_wait w = {.wait.ready = count_ready};
	struct attr a;

	late_init(&layer);
	add(layer.mem, "/a/b/f", NODE_FILE, "", 1);
	struct union_input in = {.tree = &layer.tree};
	struct tree *t = make_union(&in, 1, false);
	uint64_t id = (UINT64_C(1) << 32) + 3; /* /a/b */
	assert_int_equal(tree_lookup(t, id, "f", 1, &a, &w.wait, NULL), -EAGAIN);
	late_release(&layer);
	assert_int_equal(w.n, 1);
	assert_int_equal(tree_lookup(t, id, "f", 1, &a, &w.wait, NULL), 0);
	assert_int_equal(at(t, "/a/b").id, id);
	assert_int_equal(tree_lookup(t, a.id, "f", 1, &a, NULL, NULL), -ENOTDIR);
	tree_unref(t);
	tree_unref(&layer.tree);
}

/* ------------------------------------------------------------------ many, and live */

static void ten_thousand_inputs_are_listed_and_searched(void **state)
{
	enum { N = 10000 };
	struct union_input *in = calloc(N, sizeof(*in));
	struct tree_listing l;
	struct attr a;
	char name[32];

	for (int i = 0; i < N; i++) {
		in[i].tree = new_memtree();
		snprintf(name, sizeof(name), "/d%d/f", i);
		add(in[i].tree, name, NODE_FILE, "x", (uint32_t)i);
		add(in[i].tree, "/same", NODE_FILE, name, (uint32_t)i);
		snprintf(name, sizeof(name), "/all/%d", i);
		add(in[i].tree, name, NODE_FILE, name, (uint32_t)i);
		if (i == N / 2)
			add(in[i].tree, "/d7", NODE_WHITEOUT, "", 0);
	}
	struct tree *t = make_union(in, N, false);
	assert_int_equal(at(t, "/same").uid, N - 1);
	assert_int_equal(at(t, "/d1234/f").uid, 1234);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "none", 4, &a, NULL, NULL), -ENOENT);
	assert_int_equal(tree_listing_read(&l, t, TREE_ROOT, NULL, NULL), 0);
	assert_int_equal(l.entries.n, N + 2 - 1);
	tree_listing_deinit(&l);
	assert_int_equal(tree_listing_read(&l, t, at(t, "/all").id, NULL, NULL), 0);
	assert_int_equal(l.entries.n, N);
	tree_listing_deinit(&l);
	tree_unref(t);
	for (int i = 0; i < N; i++)
		tree_unref(in[i].tree);
	free(in);
}

static void with_many_inputs_a_decided_name_does_not_wait_either(void **state)
{
	enum { N = 300 };
	struct union_input in[N] = {{.add = "/x"}};
	struct late_tree low;
	struct count_wait w = {.wait.ready = count_ready};
	struct attr a;

	late_init(&low);
	in[0] = (struct union_input){.tree = &low.tree};
	for (int i = 1; i < N; i++)
		in[i].tree = new_memtree();
	add(in[N - 1].tree, "/file", NODE_FILE, "", 2);
	struct tree *t = make_union(in, N, false);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "file", 4, &a, &w.wait, NULL), 0);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "other", 5, &a, &w.wait, NULL), -EAGAIN);
	late_release(&low);
	assert_int_equal(w.n, 1);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "other", 5, &a, &w.wait, NULL), -ENOENT);
	tree_unref(t);
	for (int i = 0; i < N; i++)
		tree_unref(in[i].tree);
}

static void many_layers_that_come_one_by_one_are_listed_a_few_times_each(void **state)
{
	enum { N = 500 };
	static struct late_tree layers[N];
	struct union_input in[N] = {{0}};
	struct count_wait w = {.wait.ready = count_ready};
	struct tree_listing l;
	int n_lists = 0;

	for (int i = 0; i < N; i++) {
		late_init(&layers[i]);
		add(layers[i].mem, "/f", NODE_FILE, "", (uint32_t)i);
		in[i].tree = &layers[i].tree;
	}
	struct tree *t = make_union(in, N, false);
	for (int i = N - 1; i >= 0; i--) {
		assert_int_equal(tree_listing_read(&l, t, TREE_ROOT, &w.wait, NULL), -EAGAIN);
		assert_ptr_equal(layers[i].waiting, &w.wait);
		late_release(&layers[i]);
	}
	assert_int_equal(tree_listing_read(&l, t, TREE_ROOT, &w.wait, NULL), 0);
	assert_int_equal(l.entries.n, 1);
	assert_int_equal(l.entries.items[0].attr.uid, N - 1);
	tree_listing_deinit(&l);
	tree_unref(t);
	for (int i = 0; i < N; i++) {
		n_lists += layers[i].n_lists;
		tree_unref(&layers[i].tree);
	}
	assert_true(n_lists < 5 * N);
}

static void a_host_folder_shows_its_changes_at_once(void **state)
{
	char dir[] = "/tmp/llbfs-union-XXXXXX", path[64];
	struct union_input in[2] = {{.tree = new_memtree()}};
	struct attr a;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(dirtree_new(&in[1].tree, dir, false, NULL), 0);
	add(in[0].tree, "/d/low", NODE_FILE, "", 1);
	struct tree *t = make_union(in, 2, false);
	assert_true(t->is_live);
	expect_names(t, "/", "d");
	assert_true(at(t, "/d").is_live);
	snprintf(path, sizeof(path), "%s/new", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	expect_names(t, "/", "d new");
	assert_int_equal(at(t, "/new").mode, 0700);
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "new", 3, &a, NULL, NULL), -ENOENT);
	expect_names(t, "/", "d");
	tree_unref(t);
	tree_unref(in[0].tree);
	tree_unref(in[1].tree);
	assert_int_equal(rmdir(dir), 0);
}

static void a_host_folder_below_an_add_path_is_live_and_the_rest_is_not(void **state)
{
	char dir[] = "/tmp/llbfs-union-XXXXXX";
	struct union_input in[2] = {{.tree = new_memtree()}, {.add = "/src"}};
	struct attr a;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(dirtree_new(&in[1].tree, dir, false, NULL), 0);
	add(in[0].tree, "/etc/f", NODE_FILE, "", 1);
	struct tree *t = make_union(in, 2, false);
	for (mode_t mode = 0700; mode < 0703; mode++) {
		struct tree_listing l;

		assert_int_equal(chmod(dir, mode), 0);
		assert_int_equal(tree_listing_read(&l, t, TREE_ROOT, NULL, NULL), 0);
		assert_int_equal(l.entries.n, 2);
		assert_int_equal(l.entries.items[1].attr.mode, mode);
		assert_true(l.entries.items[1].attr.is_live);
		assert_false(l.entries.items[0].attr.is_live);
		tree_listing_deinit(&l);
		assert_int_equal(tree_lookup(t, TREE_ROOT, "src", 3, &a, NULL, NULL), 0);
		assert_int_equal(a.mode, mode);
		assert_int_equal(at(t, "/src").mode, mode);
	}
	assert_false(at(t, "/").is_live);
	assert_false(at(t, "/etc").is_live);
	assert_int_equal(rmdir(dir), 0);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "src", 3, &a, NULL, NULL), -ENOENT);
	expect_names(t, "/", "etc");
	tree_unref(t);
	tree_unref(in[0].tree);
	tree_unref(in[1].tree);
}

struct hammer {
	struct tree *tree;
	const struct model *want;
	int n_wrong;
};

static void *hammer_run(void *arg)
{
	struct hammer *h = arg;

	for (int round = 0; round < 30; round++) {
		for (size_t i = 0; i < h->want->n; i++) {
			const struct row *r = &h->want->rows[i];
			struct attr a;

			if (tree_walk(h->tree, r->path, false, &a, NULL) < 0 ||
			    a.uid != r->attr.uid)
				h->n_wrong++;
		}
	}
	return NULL;
}

static void threads_agree_while_folders_come_and_go(void **state)
{
	static struct model m;
	struct union_input inputs[6];
	char paths[6][2][64];

	random_state = 424242;
	model_begin(&m);
	size_t n = random_stack(inputs, countof(inputs), 2, &m, paths);
	model_cook(&m);
	struct tree *t = make_union(inputs, n, false);
	struct hammer hammers[4];
	pthread_t threads[4];
	union_limit_cache(t, 2, 1000);
	for (size_t i = 0; i < countof(threads); i++) {
		hammers[i] = (struct hammer){.tree = t, .want = &m};
		assert_int_equal(pthread_create(&threads[i], NULL, hammer_run, &hammers[i]), 0);
	}
	expect_model(t, &m);
	for (size_t i = 0; i < countof(threads); i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(hammers[i].n_wrong, 0);
	}
	tree_unref(t);
	while (n > 0)
		tree_unref(inputs[--n].tree);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_stacks_show_what_the_model_says),
		cmocka_unit_test(numbers_are_unique_and_mean_the_same_to_a_new_server),
		cmocka_unit_test(content_links_and_xattrs_come_from_their_layer),
		cmocka_unit_test(the_root_is_what_an_input_says_else_plain),
		cmocka_unit_test(a_trim_path_is_followed_inside_its_input),
		cmocka_unit_test(a_bad_trim_or_add_path_is_said),
		cmocka_unit_test(names_decided_above_do_not_wait),
		cmocka_unit_test(an_opaque_root_is_seen_once_its_layer_is_here),
		cmocka_unit_test(a_number_of_an_earlier_server_may_have_to_wait),
		cmocka_unit_test(ten_thousand_inputs_are_listed_and_searched),
		cmocka_unit_test(with_many_inputs_a_decided_name_does_not_wait_either),
		cmocka_unit_test(many_layers_that_come_one_by_one_are_listed_a_few_times_each),
		cmocka_unit_test(a_host_folder_shows_its_changes_at_once),
		cmocka_unit_test(a_host_folder_below_an_add_path_is_live_and_the_rest_is_not),
		cmocka_unit_test(threads_agree_while_folders_come_and_go),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
