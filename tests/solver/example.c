/* SPDX-License-Identifier: Apache-2.0 */

/* The worked example of docs/sources.md does what the page says that a source does. */

#include "tests/solver/example_source.c"
#include "tests/solver/proto.h"
#include "tests/test.h"

struct fixture {
	char *dir, *path;
	struct store *store;
	struct solver *solver;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->dir = test_dir();
	f->path = str_printf("%s/hello.txt", f->dir);
	scoped(free) char *root = str_printf("%s/store", f->dir);
	f->store = test_store(root, 0);
	const struct solver_options options = {.store = f->store,
					       .platform = {"linux", "amd64", ""}};
	assert_int_equal(solver_new(&f->solver, &options, NULL), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	solver_free(f->solver);
	store_close(f->store);
	free(f->path);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

static void put_text(struct fixture *f, const char *text)
{
	FILE *file = fopen(f->path, "w");
	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

/* A definition of the one source. The vertex is given the row that graph.c would give it. */
static struct graph *load(struct fixture *f)
{
	scoped(free) char *identifier = str_printf("host-file://%s", f->path);
	struct strbuf source = {0}, op = {0}, terminal = {0}, def = {0};
	struct digest digest;
	struct graph *g = NULL;
	struct err err = {0};

	pb_text(&source, 1, identifier);
	pb_message(&op, 3, &source);
	digest_bytes(&digest, op.data, op.len);
	pb_input(&terminal, &digest, 0);
	pb_message(&def, 1, &op);
	pb_message(&def, 1, &terminal);
	if (graph_load(&g, def.data, def.len, &err) < 0)
		fail_msg("%s", err.text);
	strbuf_free(&source);
	strbuf_free(&op);
	strbuf_free(&terminal);
	strbuf_free(&def);
	graph_vertex(g, 0)->ops = &source_example_op;
	return g;
}

static struct digest key_of(struct fixture *f, struct graph *g)
{
	scoped(vertex_keys_deinit) struct vertex_keys k = {0};
	struct err err = {0};
	if (vertex_keys(&k, graph_vertex(g, 0), f->solver, true, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(k.n_maps, 1);
	assert_true(k.is_whole);
	return k.maps[0].digest;
}

static void its_result_is_the_file(void **state)
{
	struct fixture *f = *state;
	scoped(graph_free) struct graph *g = NULL;
	scoped(ref_unref) struct ref *ref = NULL;
	scoped(tree_unref) struct tree *t = NULL;
	struct attr attr;
	char text[16] = "";

	put_text(f, "hello");
	g = load(f);
	assert_int_equal(graph_solve(g, f->solver, graph_vertex(g, 0), 0, NULL, &ref, NULL), 0);
	assert_int_equal(ref_tree(&t, ref, f->store, NULL, NULL, NULL), 0);
	assert_int_equal(tree_walk(t, "/hello.txt", false, &attr, NULL), 0);
	assert_int_equal(tree_read(t, attr.id, 0, text, sizeof(text), NULL, NULL, NULL), 5);
	assert_string_equal(text, "hello");
}

static void its_key_is_that_of_what_was_found(void **state)
{
	struct fixture *f = *state;
	put_text(f, "one");
	scoped(graph_free) struct graph *first = load(f), *again = load(f);
	struct digest one = key_of(f, first), same = key_of(f, again);
	assert_true(digest_equal(&one, &same));

	put_text(f, "two");
	same = key_of(f, first); /* asked once: within a solve the answer stays */
	assert_true(digest_equal(&one, &same));
	scoped(graph_free) struct graph *later = load(f);
	struct digest two = key_of(f, later);
	assert_false(digest_equal(&one, &two));
}

static void it_is_not_known_without_asking(void **state)
{
	struct fixture *f = *state;
	scoped(graph_free) struct graph *g = load(f);
	scoped(vertex_keys_deinit) struct vertex_keys k = {0};
	struct err err = {0};
	assert_int_equal(vertex_keys(&k, graph_vertex(g, 0), f->solver, false, NULL), -ENODATA);
	assert_int_equal(vertex_keys(&k, graph_vertex(g, 0), f->solver, true, &err), -ENOENT);
	assert_non_null(strstr(err.text, f->path));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(its_result_is_the_file, set_up, tear_down),
		cmocka_unit_test_setup_teardown(its_key_is_that_of_what_was_found, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(it_is_not_known_without_asking, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
