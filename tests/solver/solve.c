/* SPDX-License-Identifier: Apache-2.0 */

/* edge, solve, cache_db: what runs, what is found again, and by whom. */

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "solver/solver-internal.h"
#include "tests/solver/proto.h"
#include "tests/test.h"

struct fixture {
	char *dir, *root, *context;
	struct solver_layout local;
};

/* One process's view: a store and a solver. */
struct user {
	struct store *store;
	struct solver *solver;
};

static void file_write_in(const char *dir, const char *name, const char *text)
{
	scoped(free) char *path = str_printf("%s/%s", dir, name);
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->dir = test_dir();
	f->root = str_printf("%s/store", f->dir);
	f->context = str_printf("%s/context", f->dir);
	mkdir(f->context, 0755);
	f->local = (struct solver_layout){"ctx", f->context};
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	test_dir_remove(f->dir);
	free(f->root);
	free(f->context);
	free(f);
	return 0;
}

static void user_init(struct user *u, struct fixture *f)
{
	u->store = test_store(f->root, 0);
	struct solver_options options = {.store = u->store,
					 .platform = {"linux", "amd64", ""},
					 .locals = &f->local,
					 .n_locals = 1};
	assert_int_equal(solver_new(&u->solver, &options, NULL), 0);
}

static void user_deinit(struct user *u)
{
	solver_free(u->solver);
	store_close(u->store);
}

/* ------------------------------------------------------------------ definitions */

/* mkfile @path with @data over @below (NULL = scratch). */
static struct digest pb_mkfile(struct strbuf *def, const struct digest *below, const char *path,
			       const char *data)
{
	scoped(strbuf_free) struct strbuf op = {0}, mkfile = {0}, action = {0}, file = {0};

	if (below)
		pb_input(&op, below, 0);
	pb_text(&mkfile, 1, path);
	pb_int(&mkfile, 2, 0644);
	pb_text(&mkfile, 3, data);
	pb_int(&mkfile, 5, 1700000000);
	pb_int(&action, 1, below ? 0 : -1);
	pb_int(&action, 2, -1);
	pb_message(&action, 5, &mkfile);
	pb_message(&file, 2, &action);
	pb_message(&op, 4, &file);
	return pb_op(def, &op);
}

/* copy @from of @source to @to over @below (NULL = scratch). */
static struct digest pb_copy(struct strbuf *def, const struct digest *below,
			     const struct digest *source, const char *from, const char *to)
{
	scoped(strbuf_free) struct strbuf op = {0}, copy = {0}, action = {0}, file = {0};

	if (below)
		pb_input(&op, below, 0);
	pb_input(&op, source, 0);
	pb_text(&copy, 1, from);
	pb_text(&copy, 2, to);
	pb_int(&copy, 4, -1);
	pb_int(&copy, 11, -1);
	pb_int(&action, 1, below ? 0 : -1);
	pb_int(&action, 2, below ? 1 : 0);
	pb_message(&action, 4, &copy);
	pb_message(&file, 2, &action);
	pb_message(&op, 4, &file);
	return pb_op(def, &op);
}

static struct digest pb_merge_of(struct strbuf *def, const struct digest *from, size_t n)
{
	struct pb_merge_input inputs[16] = {0};

	for (size_t i = 0; i < n; i++)
		inputs[i].from = from[i];
	return pb_merge(def, inputs, n);
}

/* metadata of a vertex: ignore_cache. */
static void pb_ignore_cache(struct strbuf *def, const struct digest *vertex)
{
	scoped(strbuf_free) struct strbuf pair = {0}, metadata = {0};
	char text[DIGEST_TEXT_MAX];

	pb_int(&metadata, 1, 1);
	pb_text(&pair, 1, digest_text(vertex, text));
	pb_message(&pair, 2, &metadata);
	pb_message(def, 2, &pair);
}

/* ------------------------------------------------------------------ what happened */

#define EVENTS_MAX 64
struct log {
	struct {
		char name[64];
		enum solve_event_kind end;
	} ends[EVENTS_MAX];
	size_t n_ends, n_starts, n_open;
};

static void note(void *arg, const struct solve_event *event)
{
	struct log *log = arg;

	if (event->kind == SOLVE_STARTED) {
		log->n_starts++;
		log->n_open++;
		return;
	}
	if (event->kind > SOLVE_FAILED)
		return;
	log->n_open--;
	if (log->n_ends == EVENTS_MAX)
		return;
	snprintf(log->ends[log->n_ends].name, 64, "%.63s", vertex_name(event->vertex));
	log->ends[log->n_ends++].end = event->kind;
}

static int end_of(const struct log *log, const char *name)
{
	for (size_t i = 0; i < log->n_ends; i++)
		if (strcmp(log->ends[i].name, name) == 0)
			return (int)log->ends[i].end;
	return -1;
}

static size_t count_ends(const struct log *log, enum solve_event_kind kind)
{
	size_t n = 0;

	for (size_t i = 0; i < log->n_ends; i++)
		n += log->ends[i].end == kind;
	return n;
}

/* Solves @def from scratch as a process of its own would; the ref's file @path must hold @text. */
static int solve_as(struct user *u, const struct strbuf *def, bool no_cache, struct log *log,
		    const char *path, const char *text, struct err *err)
{
	scoped(graph_free) struct graph *g = NULL;
	scoped(ref_unref) struct ref *ref = NULL;
	scoped(tree_unref) struct tree *tree = NULL;
	const struct solve_options options = {.no_cache = no_cache, .event = note, .arg = log};
	struct vertex *v;
	struct attr attr;
	char bytes[256] = "";
	int index;

	*log = (struct log){0};
	assert_int_equal(graph_load(&g, def->data, def->len, err), 0);
	graph_result(g, &v, &index);
	int r = graph_solve(g, u->solver, v, index, &options, &ref, err);
	assert_int_equal(log->n_open, 0);
	if (r < 0)
		return r;
	if (ref_tree(&tree, ref, u->store, NULL, NULL, err) < 0 ||
	    tree_walk(tree, path, false, &attr, err) < 0 ||
	    tree_read(tree, attr.id, 0, bytes, sizeof(bytes) - 1, NULL, NULL, err) < 0)
		fail_msg("%s: %s", path, err->text);
	assert_string_equal(bytes, text);
	return 0;
}

static void solve(struct fixture *f, const struct strbuf *def, struct log *log, const char *path,
		  const char *text)
{
	struct user u;
	struct err err = {0};

	user_init(&u, f);
	if (solve_as(&u, def, false, log, path, text, &err) < 0)
		fail_msg("%s", err.text);
	user_deinit(&u);
}

/* ------------------------------------------------------------------ tests */

static void a_second_solve_runs_nothing(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = {0};
	struct log log;
	struct digest a = pb_mkfile(&def, NULL, "/a", "one");
	struct digest b = pb_mkfile(&def, &a, "/b", "two");
	struct digest c = pb_mkfile(&def, &b, "/c", "three");

	pb_result(&def, &c, 0);
	solve(f, &def, &log, "/a", "one");
	assert_int_equal(count_ends(&log, SOLVE_DONE), 3);
	solve(f, &def, &log, "/a", "one");
	assert_int_equal(count_ends(&log, SOLVE_CACHED), 3);
	assert_int_equal(log.n_ends, 3);
	strbuf_free(&def);
}

static void what_follows_a_change_runs_and_no_more(void **state)
{
	struct fixture *f = *state;
	struct log log;

	for (int i = 0; i < 2; i++) {
		struct strbuf def = {0};
		struct digest a = pb_mkfile(&def, NULL, "/a", "one");
		struct digest b = pb_mkfile(&def, &a, "/b", i ? "changed" : "two");
		struct digest c = pb_mkfile(&def, &b, "/c", "three");
		pb_result(&def, &c, 0);
		solve(f, &def, &log, "/b", i ? "changed" : "two");
		strbuf_free(&def);
	}
	assert_int_equal(end_of(&log, "mkfile /a"), SOLVE_CACHED);
	assert_int_equal(end_of(&log, "mkfile /b"), SOLVE_DONE);
	assert_int_equal(end_of(&log, "mkfile /c"), SOLVE_DONE);
}

static void inputs_of_a_merge_are_independent(void **state)
{
	struct fixture *f = *state;
	struct log log;

	for (int i = 0; i < 2; i++) {
		struct strbuf def = {0};
		struct digest parts[3] = {pb_mkfile(&def, NULL, "/base", i ? "new" : "old"),
					  pb_mkfile(&def, NULL, "/b", "two"),
					  pb_mkfile(&def, NULL, "/c", "three")};
		struct digest m = pb_merge_of(&def, parts, 3);
		pb_result(&def, &m, 0);
		solve(f, &def, &log, "/base", i ? "new" : "old");
		strbuf_free(&def);
	}
	assert_int_equal(end_of(&log, "mkfile /base"), SOLVE_DONE);
	assert_int_equal(end_of(&log, "mkfile /b"), SOLVE_CACHED);
	assert_int_equal(end_of(&log, "mkfile /c"), SOLVE_CACHED);
	assert_int_equal(count_ends(&log, SOLVE_DONE), 2);
}

/* What is below /src of the context becomes /dst; then a file on top. */
static struct strbuf copying(void)
{
	struct strbuf def = {0};
	struct digest ctx = pb_source(&def, "local://ctx", NULL, NULL);
	struct digest base = pb_mkfile(&def, NULL, "/base", "base");
	struct digest c = pb_copy(&def, &base, &ctx, "/src", "/dst");
	struct digest top = pb_mkfile(&def, &c, "/top", "top");

	pb_result(&def, &top, 0);
	return def;
}

static void content_decides_where_a_definition_cannot(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = copying();
	struct timespec old[2] = {{1000000000, 0}, {1000000000, 0}};
	struct log log;

	file_write_in(f->context, "src", "content");
	file_write_in(f->context, "other", "x");
	solve(f, &def, &log, "/dst", "content");
	assert_int_equal(end_of(&log, "copy /src /dst"), SOLVE_DONE);
	/* Another file, and the time of this one, are no part of the key. */
	file_write_in(f->context, "other", "y");
	scoped(free) char *path = str_printf("%s/src", f->context);
	assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
	solve(f, &def, &log, "/dst", "content");
	assert_int_equal(end_of(&log, "copy /src /dst"), SOLVE_CACHED);
	assert_int_equal(end_of(&log, "mkfile /top"), SOLVE_CACHED);
	assert_int_equal(end_of(&log, "mkfile /base"), SOLVE_CACHED);
	file_write_in(f->context, "src", "CONTENT");
	solve(f, &def, &log, "/dst", "CONTENT");
	assert_int_equal(end_of(&log, "copy /src /dst"), SOLVE_DONE);
	assert_int_equal(end_of(&log, "mkfile /top"), SOLVE_DONE);
	/* And back: what was made first is still there. */
	file_write_in(f->context, "src", "content");
	solve(f, &def, &log, "/dst", "content");
	assert_int_equal(end_of(&log, "mkfile /top"), SOLVE_CACHED);
	strbuf_free(&def);
}

static void equal_content_of_another_definition_is_found(void **state)
{
	struct fixture *f = *state;
	struct log log;

	for (int i = 0; i < 3; i++) {
		struct strbuf def = {0};
		struct digest first = pb_mkfile(&def, NULL, i ? "/unused" : "/else", "x");
		struct digest from = pb_mkfile(&def, &first, "/src", "same");
		struct digest c = pb_copy(&def, NULL, &from, "/src", "/dst");
		pb_result(&def, &c, 0);
		solve(f, &def, &log, "/dst", "same");
		strbuf_free(&def);
		/* The second time its input is made to look at it; the third time there is a link. */
		static const int copy_ends[] = {SOLVE_DONE, SOLVE_CACHED, SOLVE_CACHED};
		static const int from_ends[] = {SOLVE_DONE, SOLVE_DONE, SOLVE_CACHED};
		assert_int_equal(end_of(&log, "copy /src /dst"), copy_ends[i]);
		assert_int_equal(end_of(&log, "mkfile /src"), from_ends[i]);
	}
}

static void caches_can_be_ignored(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = {0};
	struct user u;
	struct log log;
	struct err err = {0};
	struct digest a = pb_mkfile(&def, NULL, "/a", "one");
	struct digest b = pb_mkfile(&def, &a, "/b", "two");
	struct digest c = pb_mkfile(&def, &b, "/c", "three");

	pb_result(&def, &c, 0);
	solve(f, &def, &log, "/a", "one");
	user_init(&u, f);
	assert_int_equal(solve_as(&u, &def, true, &log, "/a", "one", &err), 0);
	assert_int_equal(count_ends(&log, SOLVE_DONE), 3);
	user_deinit(&u);
	pb_ignore_cache(&def, &b);
	for (int i = 0; i < 2; i++) { /* each time */
		solve(f, &def, &log, "/a", "one");
		assert_int_equal(end_of(&log, "mkfile /a"), SOLVE_CACHED);
		assert_int_equal(end_of(&log, "mkfile /b"), SOLVE_DONE);
		assert_int_equal(end_of(&log, "mkfile /c"), SOLVE_DONE);
	}
	strbuf_free(&def);
}

/* The same op with other constraints is another vertex with the same key. */
static void equal_keys_run_once(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = {0}, again = {0};
	struct log log;
	struct digest parts[2] = {pb_mkfile(&def, NULL, "/a", "one")};
	scoped(strbuf_free) struct strbuf op = {0}, constraints = {0};

	/* The first op once more, with a field of Op that is no part of its key. */
	pb_mkfile(&again, NULL, "/a", "one");
	size_t head = (uint8_t)again.data[1] < 128 ? 2 : 3;
	strbuf_add(&op, again.data + head, again.len - head);
	pb_message(&op, 11, &constraints);
	parts[1] = pb_op(&def, &op);
	assert_false(digest_equal(&parts[0], &parts[1]));
	struct digest m = pb_merge_of(&def, parts, 2);
	pb_result(&def, &m, 0);
	solve(f, &def, &log, "/a", "one");
	assert_int_equal(log.n_ends, 3);
	assert_int_equal(count_ends(&log, SOLVE_DONE), 2);
	assert_int_equal(count_ends(&log, SOLVE_CACHED), 1);
	strbuf_free(&again);
	strbuf_free(&def);
}

static void a_failure_names_its_vertex_and_ends_the_solve(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = {0};
	struct user u;
	struct log log;
	struct err err = {0};
	struct digest a = pb_mkfile(&def, NULL, "/a", "one");
	struct digest bad = pb_copy(&def, NULL, &a, "/missing", "/b");
	struct digest top = pb_mkfile(&def, &bad, "/c", "three");

	pb_result(&def, &top, 0);
	user_init(&u, f);
	for (int i = 0; i < 2; i++) {
		err = (struct err){0};
		assert_int_equal(solve_as(&u, &def, false, &log, "/", "", &err), -ENOENT);
		assert_non_null(strstr(err.text, "(copy /missing /b)"));
		assert_null(strstr(err.text, "mkfile /c"));
		assert_int_equal(end_of(&log, "copy /missing /b"), SOLVE_FAILED);
		assert_int_equal(end_of(&log, "mkfile /c"), -1);
	}
	user_deinit(&u);
	strbuf_free(&def);
}

static void a_lost_result_is_made_again(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = {0};
	struct user u;
	struct log log;
	struct err err = {0};
	struct digest a = pb_mkfile(&def, NULL, "/a", "one");
	struct digest b = pb_mkfile(&def, &a, "/b", "two");

	pb_result(&def, &b, 0);
	solve(f, &def, &log, "/a", "one");
	user_init(&u, f);
	db_lock(store_db(u.store));
	assert_int_equal(db_exec(store_db(u.store), "UPDATE cache_results SET ref = zeroblob(32)",
				 &err),
			 0);
	db_unlock(store_db(u.store));
	user_deinit(&u);
	solve(f, &def, &log, "/a", "one");
	assert_int_equal(count_ends(&log, SOLVE_DONE), 2);
	solve(f, &def, &log, "/a", "one");
	assert_int_equal(count_ends(&log, SOLVE_CACHED), 2);
	strbuf_free(&def);
}

/* Graph @i of many that overlap: a common chain, then one of its own. */
static struct strbuf overlapping(int i)
{
	struct strbuf def = {0};
	char path[32], data[32];
	struct digest d = pb_mkfile(&def, NULL, "/f0", "x");

	for (int k = 1; k < 12; k++) {
		snprintf(path, sizeof(path), "/f%d", k);
		snprintf(data, sizeof(data), "%d", k < 8 ? 0 : i % 3);
		d = pb_mkfile(&def, &d, path, data);
	}
	pb_result(&def, &d, 0);
	return def;
}

#define N_PROCESSES 16

static int build_one(struct fixture *f, int i, int out)
{
	struct strbuf def = overlapping(i);
	struct user u;
	struct log log;
	struct err err = {0};

	user_init(&u, f);
	int r = solve_as(&u, &def, false, &log, "/f0", "x", &err);
	user_deinit(&u);
	strbuf_free(&def);
	if (r < 0)
		fprintf(stderr, "# %s\n", err.text);
	uint8_t n_done = (uint8_t)count_ends(&log, SOLVE_DONE);
	return r < 0 || write(out, &n_done, 1) != 1;
}

static void processes_do_each_vertex_once(void **state)
{
	struct fixture *f = *state;
	int ends[2], status;
	size_t n_done = 0;
	uint8_t n;

	assert_int_equal(pipe(ends), 0);
	for (int i = 0; i < N_PROCESSES; i++) {
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			_exit(build_one(f, i, ends[1]));
	}
	for (int i = 0; i < N_PROCESSES; i++) {
		assert_true(wait(&status) > 0);
		assert_int_equal(status, 0);
	}
	close(ends[1]);
	while (read(ends[0], &n, 1) == 1)
		n_done += n;
	close(ends[0]);
	assert_int_equal(n_done, 8 + 3 * 4);
}

static void a_killed_builder_holds_nobody_up(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = overlapping(0);
	struct log log;

	for (int i = 0; i < 20; i++) {
		int ends[2];
		assert_int_equal(pipe(ends), 0);
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			_exit(build_one(f, i, ends[1]));
		usleep((useconds_t)(i * 1500)); /* somewhere on its way */
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, NULL, 0), pid);
		close(ends[0]);
		close(ends[1]);
	}
	solve(f, &def, &log, "/f11", "0");
	solve(f, &def, &log, "/f11", "0");
	assert_int_equal(count_ends(&log, SOLVE_CACHED), 12);
	strbuf_free(&def);
}

/* Long enough that recursion would not do; time is told, not tested. */
static void chains_are_linear(void **state)
{
	struct fixture *f = *state;
	static const int lengths[] = {100, 1000};

	for (size_t i = 0; i < countof(lengths); i++) {
		struct strbuf def = {0};
		struct log log;
		char path[32];
		struct digest d = pb_mkfile(&def, NULL, "/f", "x");
		for (int k = 1; k < lengths[i]; k++) {
			snprintf(path, sizeof(path), "/f%d", k % 100);
			d = pb_mkfile(&def, &d, path, "x");
		}
		pb_result(&def, &d, 0);
		for (int k = 0; k < 2; k++) {
			uint64_t begin = now_ns();
			solve(f, &def, &log, "/f", "x");
			print_message("# %d vertices %s in %.1f ms\n", lengths[i],
				      k ? "cached" : "new", (double)(now_ns() - begin) / 1e6);
		}
		strbuf_free(&def);
	}
}

#define in_folder(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		in_folder(a_second_solve_runs_nothing),
		in_folder(what_follows_a_change_runs_and_no_more),
		in_folder(inputs_of_a_merge_are_independent),
		in_folder(content_decides_where_a_definition_cannot),
		in_folder(equal_content_of_another_definition_is_found),
		in_folder(caches_can_be_ignored),
		in_folder(equal_keys_run_once),
		in_folder(a_failure_names_its_vertex_and_ends_the_solve),
		in_folder(a_lost_result_is_made_again),
		in_folder(processes_do_each_vertex_once),
		in_folder(a_killed_builder_holds_nobody_up),
		in_folder(chains_are_linear),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
