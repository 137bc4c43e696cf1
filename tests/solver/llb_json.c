/* SPDX-License-Identifier: Apache-2.0 */

/*
 * llb_json: definitions as the real buildctl and docker print them, and ones that nobody prints.
 *
 * tests/data/llb has beside some definitions what `buildctl debug dump-llb` prints of them
 * (.jsonl), and what `docker buildx build --call=convertllb,format=json` prints of the same
 * Dockerfile (.json).
 */

#include <dirent.h>
#include <fcntl.h>

#include "solver/solver-internal.h"
#include "tests/solver/proto.h"
#include "tests/test.h"

static struct strbuf read_data(const char *name, const char *suffix)
{
	const char *dir = getenv("TEST_SOURCE");
	struct strbuf out = {0};

	assert_non_null(dir);
	scoped(free) char *path = str_printf("%s/data/llb/%s%s", dir, name, suffix);
	if (read_file(AT_FDCWD, path, 64 << 20, &out) < 0)
		fail_msg("cannot read %s", path);
	return out;
}

static struct graph *load(const struct strbuf *text, const char *what)
{
	struct graph *g = NULL;
	struct err err = {0};

	if (graph_load(&g, text->data, text->len, &err) < 0)
		fail_msg("%s: %s", what, err.text);
	return g;
}

static struct graph *load_data(const char *name, const char *suffix)
{
	struct strbuf text = read_data(name, suffix);
	struct graph *g = load(&text, name);

	strbuf_free(&text);
	return g;
}

/* ------------------------------------------------------------------ real ones */

static void expect_same_vertex(struct graph *other, const struct vertex *v)
{
	char text[DIGEST_TEXT_MAX];
	struct vertex *same;

	assert_int_equal(graph_find(other, digest_text(&v->digest, text), &same, NULL), 0);
	assert_int_equal(same->bytes.n, v->bytes.n);
	assert_memory_equal(same->bytes.bytes, v->bytes.bytes, v->bytes.n);
	assert_string_equal(same->name, v->name);
	const struct llb_metadata *a = &v->metadata, *b = &same->metadata;
	assert_int_equal(a->ignore_cache, b->ignore_cache);
	assert_int_equal(a->has_export_cache, b->has_export_cache);
	assert_int_equal(a->n_descriptions, b->n_descriptions);
	assert_int_equal(a->n_caps, b->n_caps);
	assert_int_equal(!a->group_id, !b->group_id);
	if (a->group_id)
		assert_string_equal(a->group_id, b->group_id);
}

static void check_dump(const char *name)
{
	struct graph *pb = load_data(name, ".pb"), *dump = load_data(name, ".jsonl");
	struct vertex *a, *b;
	int index_a, index_b;

	assert_int_equal(graph_count(pb), graph_count(dump));
	for (size_t i = 0; i < graph_count(pb); i++)
		expect_same_vertex(dump, graph_vertex(pb, i));
	graph_result(pb, &a, &index_a);
	graph_result(dump, &b, &index_b);
	assert_true(digest_equal(vertex_digest(a), vertex_digest(b)));
	assert_int_equal(index_a, index_b);
	graph_free(pb);
	graph_free(dump);
}

static void what_dump_llb_prints_is_the_definition(void **state)
{
	scoped(free) char *path = str_printf("%s/data/llb", getenv("TEST_SOURCE"));
	DIR *dir = opendir(path);
	size_t n = 0;

	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		if (!str_ends(e->d_name, ".jsonl") || strcmp(e->d_name, "file-symlink.jsonl") == 0)
			continue;
		scoped(free) char *name = strndup(e->d_name, strlen(e->d_name) - 6);
		check_dump(name);
		n++;
	}
	closedir(dir);
	assert_true(n >= 20);
}

/* Its local source has another session, so what is above it has another name, too. */
static void check_converted(const char *name, size_t n_same)
{
	struct graph *pb = load_data(name, ".pb"), *json = load_data(name, ".json");
	const struct source_location *at;
	char text[DIGEST_TEXT_MAX];
	struct vertex *v;
	size_t n = 0, n_located = 0;

	assert_int_equal(graph_count(pb), graph_count(json));
	for (size_t i = 0; i < graph_count(pb); i++)
		n += graph_find(json, digest_text(&graph_vertex(pb, i)->digest, text), &v, NULL) ==
		     0;
	assert_int_equal(n, n_same);
	for (size_t i = 0; i < graph_count(json); i++) {
		size_t n_at = vertex_locations(graph_vertex(json, i), &at);
		for (size_t k = 0; k < n_at; k++) {
			assert_string_equal(at[k].file, "Dockerfile");
			assert_true(at[k].n_ranges > 0 && at[k].ranges[0].line > 0);
		}
		n_located += n_at > 0;
	}
	assert_true(n_located >= 3);
	graph_free(pb);
	graph_free(json);
}

static void what_convertllb_prints_is_a_definition(void **state)
{
	check_converted("dockerfile-copyfancy", 4);
	check_converted("dockerfile-go", 2);
}

/* ------------------------------------------------------------------ spellings */

static void put_line(struct strbuf *text, const char *op, const struct digest *digest)
{
	char name[DIGEST_TEXT_MAX];

	strbuf_printf(text, "{\"Op\":%s,\"Digest\":\"%s\"}\n", op, digest_text(digest, name));
}

static void put_terminal(struct strbuf *text, const struct digest *from)
{
	struct strbuf def = {0}, op = {0};
	char name[DIGEST_TEXT_MAX];

	pb_input(&op, from, 0);
	struct digest digest = pb_op(&def, &op);
	scoped(free) char *json =
		str_printf("{\"inputs\":[{\"digest\":\"%s\"}]}", digest_text(from, name));
	put_line(text, json, &digest);
	strbuf_free(&def);
	strbuf_free(&op);
}

/* The JSON of an op without inputs encodes to @op; clears it. */
static void expect_op(const char *json, struct strbuf *op)
{
	struct strbuf text = {0};
	struct digest digest;

	digest_bytes(&digest, op->data, op->len);
	put_line(&text, json, &digest);
	put_terminal(&text, &digest);
	graph_free(load(&text, json));
	strbuf_free(&text);
	strbuf_clear(op);
}

static void maps_are_sorted_and_keep_what_is_empty(void **state)
{
	struct strbuf op = {0}, source = {0};

	pb_text(&source, 1, "local://x");
	pb_attr(&source, 2, "", "1");
	pb_attr(&source, 2, "B", "");
	pb_attr(&source, 2, "a", "\xc3\xa4");
	pb_message(&op, 3, &source);
	expect_op("{\"Op\":{\"source\":{\"attrs\":{\"a\":\"\\u00e4\",\"B\":\"\",\"\":\"1\"},"
		  "\"identifier\":\"local://x\"}}}",
		  &op);
	strbuf_free(&op);
	strbuf_free(&source);
}

static void put_mkfile(struct strbuf *op, int owner)
{
	struct strbuf file = {0}, action = {0}, mkfile = {0}, chown = {0}, user = {0};

	pb_text(&mkfile, 1, "/f");
	pb_int(&mkfile, 2, 0644);
	pb_bytes(&mkfile, 3, "a\0b", 3);
	if (owner >= 0) {
		const uint8_t by_id[] = {0x10, (uint8_t)owner};
		strbuf_add(&user, by_id, sizeof(by_id));
		pb_message(&chown, 1, &user);
		pb_message(&mkfile, 4, &chown);
	}
	pb_int(&mkfile, 5, -1);
	pb_int(&action, 1, -1);
	pb_int(&action, 2, -1);
	pb_message(&action, 5, &mkfile);
	pb_message(&file, 2, &action);
	pb_bytes(op, 11, "", 0); /* before the op, whose number is smaller */
	pb_message(op, 4, &file);
	strbuf_free(&file);
	strbuf_free(&action);
	strbuf_free(&mkfile);
	strbuf_free(&chown);
	strbuf_free(&user);
}

static void numbers_and_oneofs_have_two_spellings(void **state)
{
	struct strbuf op = {0};

	put_mkfile(&op, -1);
	expect_op("{\"file\":{\"actions\":[{\"input\":\"-1\",\"secondaryInput\":-1,\"mkfile\":"
		  "{\"path\":\"/f\",\"mode\":420,\"data\":\"YQBi\",\"timestamp\":\"-1\"}}]},"
		  "\"constraints\":{},\"platform\":null}",
		  &op);
	put_mkfile(&op, 0);
	expect_op("{\"constraints\":{},\"Op\":{\"file\":{\"actions\":[{\"input\":-1,\"output\":0,"
		  "\"secondary_input\":\"-1\",\"Action\":{\"mkfile\":{\"path\":\"/f\",\"mode\":420,"
		  "\"owner\":{\"user\":{\"User\":{}}},\"data\":\"YQBi\",\"timestamp\":-1}}}]}}}",
		  &op);
	put_mkfile(&op, 7);
	expect_op("{\"constraints\":{},\"Op\":{\"file\":{\"actions\":[{\"input\":-1,"
		  "\"secondaryInput\":-1,\"Action\":{\"mkfile\":{\"path\":\"/f\",\"mode\":\"420\","
		  "\"owner\":{\"user\":{\"byID\":7}},\"data\":\"YQBi\",\"timestamp\":-1}}}]}}}",
		  &op);
	strbuf_free(&op);
}

static void enums_have_names_and_lists_of_numbers_are_packed(void **state)
{
	struct strbuf op = {0}, exec = {0}, meta = {0}, mount = {0}, cache = {0};

	for (int i = 0; i < 2; i++) {
		pb_text(&meta, 1, "true");
		pb_bytes(&meta, 12, "\0\7", 2);
		pb_message(&exec, 1, &meta);
		pb_int(&mount, 1, -1);
		pb_text(&mount, 3, "/c");
		pb_int(&mount, 4, -1);
		pb_int(&mount, 6, 3);
		pb_int(&cache, 2, 2);
		pb_message(&mount, 20, &cache);
		pb_int(&mount, 24, 2);
		pb_message(&exec, 2, &mount);
		pb_int(&exec, 3, 1);
		pb_int(&exec, 4, 1);
		pb_message(&op, 2, &exec);
		expect_op(i ? "{\"exec\":{\"meta\":{\"args\":[\"true\"],\"validExitCodes\":[0,7]},"
			      "\"mounts\":[{\"input\":\"-1\",\"dest\":\"/c\",\"output\":\"-1\","
			      "\"mountType\":\"CACHE\",\"cacheOpt\":{\"sharing\":\"LOCKED\"},"
			      "\"contentCache\":\"OFF\"}],"
			      "\"network\":\"HOST\",\"security\":\"INSECURE\"}}"
			    : "{\"Op\":{\"exec\":{\"meta\":{\"args\":[\"true\"],\"validExitCodes\":"
			      "[0,7]},"
			      "\"mounts\":[{\"input\":-1,\"dest\":\"/"
			      "c\",\"output\":-1,\"mountType\":3,"
			      "\"cacheOpt\":{\"sharing\":2},\"contentCache\":2}],"
			      "\"network\":1,\"security\":1}}}",
			  &op);
	}
	strbuf_free(&op);
	strbuf_free(&exec);
	strbuf_free(&meta);
	strbuf_free(&mount);
	strbuf_free(&cache);
}

static void a_build_op_keeps_its_definition(void **state)
{
	struct strbuf op = {0}, build = {0}, def = {0}, entry = {0}, meta = {0}, input = {0};

	pb_bytes(&def, 1, "\1\2\3", 3);
	pb_text(&entry, 1, "sha256:00");
	pb_int(&meta, 1, 1);
	pb_message(&entry, 2, &meta);
	pb_message(&def, 2, &entry);
	struct strbuf info = {0}, source = {0};
	pb_bytes(&info, 3, "", 0);
	pb_text(&info, 4, "D");
	pb_message(&source, 2, &info);
	pb_message(&def, 3, &source);
	strbuf_free(&info);
	strbuf_free(&source);
	pb_int(&build, 1, -1);
	pb_text(&input, 1, "in");
	pb_bytes(&input, 2, "", 0);
	pb_message(&build, 2, &input);
	pb_message(&build, 3, &def);
	pb_message(&op, 5, &build);
	/* its input names none: the encoding is right, and the graph says what is wrong */
	struct strbuf text = {0}, out = {0};
	struct digest digest;
	digest_bytes(&digest, op.data, op.len);
	put_line(&text,
		 "{\"Op\":{\"build\":{\"builder\":-1,\"inputs\":{\"in\":{}},\"def\":{\"def\":["
		 "\"AQID\"],"
		 "\"metadata\":{\"sha256:00\":{\"ignore_cache\":true}},\"Source\":{\"infos\":[{"
		 "\"language\":\"D\",\"definition\":{}}]}}}}}",
		 &digest);
	struct err err = {0};
	if (llb_json_encode(&out, text.data, text.len, &err) < 0)
		fail_msg("%s", err.text);
	strbuf_free(&text);
	strbuf_free(&out);
	strbuf_free(&op);
	strbuf_free(&build);
	strbuf_free(&def);
	strbuf_free(&entry);
	strbuf_free(&meta);
	strbuf_free(&input);
}

static void a_document_has_its_result_anywhere_and_a_source_map(void **state)
{
	struct strbuf def = {0}, op = {0}, text = {0};
	struct digest a = pb_source(&def, "docker-image://a", NULL, NULL);
	char name[DIGEST_TEXT_MAX], last[DIGEST_TEXT_MAX];
	const struct source_location *at;
	struct vertex *v;
	int index;

	digest_text(&a, name);
	pb_input(&op, &a, 0);
	struct digest terminal = pb_op(&def, &op);
	digest_text(&terminal, last);
	strbuf_printf(&text,
		      "\n{\"metadata\":{\"%s\":{\"description\":{\"llb.customname\":\"base\"}}},"
		      "\"def\":{\"%s\":{\"inputs\":[{\"digest\":\"%s\"}]},"
		      "\"%s\":{\"source\":{\"identifier\":\"docker-image://a\"}}},"
		      "\"source\":{\"infos\":[{\"filename\":\"F\",\"data\":\"YQ==\","
		      "\"definition\":{\"def\":[\"\"]}}],\"locations\":{\"%s\":{\"locations\":["
		      "{\"sourceIndex\":7,\"ranges\":[{}]},{\"ranges\":[{\"start\":{\"line\":3},"
		      "\"end\":{\"line\":4,\"character\":9}},{\"start\":{\"line\":-1}}]}]}}}}\n ",
		      name, last, name, name, name);
	struct graph *g = load(&text, "document");
	graph_result(g, &v, &index);
	assert_string_equal(vertex_name(v), "base");
	assert_int_equal(vertex_locations(v, &at), 1);
	assert_string_equal(at->file, "F");
	assert_int_equal(at->n_ranges, 1);
	assert_int_equal(at->ranges[0].line, 3);
	assert_int_equal(at->ranges[0].end_line, 4);
	assert_int_equal(at->ranges[0].end_column, 9);
	graph_free(g);
	strbuf_free(&def);
	strbuf_free(&op);
	strbuf_free(&text);
}

/* ------------------------------------------------------------------ wrong ones */

static void expect_error(const struct strbuf *text, const char *says)
{
	struct graph *g = NULL;
	struct err err = {0};
	int r = graph_load(&g, text->data, text->len, &err);

	if (r != -EBADMSG || !strstr(err.text, says))
		fail_msg("%d \"%s\", not \"%s\"", r, err.text, says);
}

static void lost_and_changed_ops_are_told_by_their_vertex(void **state)
{
	struct strbuf text = read_data("file-symlink", ".jsonl");

	expect_error(&text, "vertex sha256:ba684148c11363a77ec1144c835afc995402d5f6eb6d6b58dc2b8e2d"
			    "ade3aaf6: its op does not hash to its name");
	expect_error(&text, "leaves out what symlink actions say");
	strbuf_free(&text);
	text = read_data("merge-3", ".jsonl");
	*strstr(text.data, "/d/a") = '!';
	expect_error(&text, "does not hash to its name but to sha256:");
	strbuf_free(&text);
	text = read_data("dockerfile-go", ".json");
	strstr(text.data, "\"cwd\"")[1] = 'C'; /* the same to us */
	graph_free(load(&text, "dockerfile-go"));
	strstr(text.data, "\"Cwd\"")[2] = 'x';
	expect_error(&text, "\"Cxd\" is not known here");
	strbuf_free(&text);
}

static void refuses_what_is_no_definition(void **state)
{
	static const char zeros[] = "sha256:0000000000000000000000000000000000000000000000000000000"
				    "000000000";
	static const struct {
		const char *op, *says;
	} ops[] = {
		{"{\"Op\":{\"file\":{\"actions\":[{\"input\":1e999}]}}}", "real number overflow"},
		{"{\"Op\":{\"file\":{\"actions\":[{\"input\":1.5}]}}}", "\"input\": want a number"},
		{"{\"Op\":{\"file\":{\"actions\":[{\"input\":9223372036854775808}]}}}", "too big"},
		{"{\"file\":{\"actions\":[{\"input\":\"9223372036854775808\"}]}}", "a number in"},
		{"{\"file\":{\"actions\":[{\"input\":\"-9223372036854775809\"}]}}", "a number in"},
		{"{\"file\":{\"actions\":[{\"input\":\"1\\u0000\"}]}}", "a number in range"},
		{"{\"file\":{\"actions\":[{\"input\":\"--1\"}]}}", "a number in range"},
		{"{\"file\":{\"actions\":[{\"input\":true}]}}", "a number in range"},
		{"{\"file\":{\"actions\":[null]}}", "FileAction: want an object"},
		{"{\"file\":{\"actions\":{}}}", "\"actions\": want a list"},
		{"{\"file\":{\"actions\":[{\"rm\":{},\"copy\":{}}]}}", "one of its kind"},
		{"{\"file\":{\"actions\":[{\"rm\":{\"path\":\"a\",\"PATH\":\"b\"}}]}}",
		 "one of its"},
		{"{\"file\":{\"actions\":[{\"rm\":{\"path\":7}}]}}", "\"path\": want a text"},
		{"{\"file\":{\"actions\":[{\"mkfile\":{\"data\":\"a$\"}}]}}", "want base64"},
		{"{\"file\":{\"actions\":[{\"mkfile\":{\"mode\":2147483648}}]}}", "a number in"},
		{"{\"file\":{\"actions\":[{\"rm\":{\"allowWildcard\":1}}]}}", "true or false"},
		{"{\"exec\":{\"network\":\"SOME\"}}", "one of its names"},
		{"{\"exec\":{\"network\":4294967296}}", "a number in range"},
		{"{\"source\":{\"attrs\":[]}}", "\"attrs\": want an object"},
		{"{\"source\":{\"attrs\":{\"a\":null}}}", "want a text"},
		{"[]", "want an object with Op and Digest"},
		{"{\"source\":{\"identifier\":\"\xff\xfe\"}}", "unable to decode byte"},
		{"{\"source\":{\"attrs\":{\"a\\u0000b\":\"\"}}}", "NUL byte in object key"},
		{"{\"source\":{\"identifier\":\"\\ud800\"}}", "Unicode"},
		{"{\"Op\":{\"Op\":{\"Op\":{}}}}", "\"Op\" is not known here"},
	};
	static const char *const texts[][2] = {
		{"{", "JSON, value 1, line 1"},
		{"{}", "want an object with Op and Digest"},
		{"{\"def\":{}}", "no terminal"},
		{"{\"def\":[]}", "\"def\": want an object"},
		{"{\"def\":{}} {}", "more behind the definition"},
		{"{\"def\":{\"x\":{}}}", "\"def\""},
	};
	struct strbuf text = {0};

	for (size_t i = 0; i < countof(ops); i++) {
		strbuf_printf(&text, "{\"Op\":%s,\"Digest\":\"%s\"}", ops[i].op, zeros);
		expect_error(&text, ops[i].says);
		strbuf_clear(&text);
	}
	for (size_t i = 0; i < countof(texts); i++) {
		strbuf_puts(&text, texts[i][0]);
		expect_error(&text, texts[i][1]);
		strbuf_clear(&text);
	}
	strbuf_free(&text);
}

/* What JSON can say and a text must not hold: the encoding is right, the op is not. */
static void refuses_nuls_in_texts(void **state)
{
	struct strbuf text = {0}, op = {0}, source = {0};
	struct digest digest;

	pb_bytes(&source, 1, "local://a\0b", 11);
	pb_message(&op, 3, &source);
	digest_bytes(&digest, op.data, op.len);
	put_line(&text, "{\"source\":{\"identifier\":\"local://a\\u0000b\"}}", &digest);
	put_terminal(&text, &digest);
	expect_error(&text, "identifier is not valid UTF-8 text");
	strbuf_free(&text);
	strbuf_free(&op);
	strbuf_free(&source);
}

static void every_cut_is_an_error(void **state)
{
	struct strbuf text = read_data("merge-3", ".jsonl");
	size_t last = text.len - 1;
	struct graph *g;

	while (text.data[last - 1] != '\n')
		last--;
	for (size_t n = 0; n < last; n++) {
		scoped(free) void *cut = malloc(n ? n : 1);
		memcpy(cut, text.data, n);
		assert_true(graph_load(&g, cut, n, NULL) < 0);
	}
	strbuf_free(&text);
}

/* ------------------------------------------------------------------ large ones */

static void put_times(struct strbuf *s, const char *text, size_t n)
{
	while (n-- > 0)
		strbuf_puts(s, text);
}

static void nested_values_cost_no_stack(void **state)
{
	static const char *const nested[][2] = {
		{"{\"Op\":", "maximum parsing depth"},
		{"{\"def\":{\"a\":", "maximum parsing depth"},
		{"{\"Op\":[", "maximum parsing depth"},
		{"{\"Op\":{\"build\":{\"def\":{\"metadata\":{\"x\":", "maximum parsing depth"},
	};
	struct strbuf text = {0};

	for (size_t i = 0; i < countof(nested); i++) {
		put_times(&text, nested[i][0], (300 << 10) / strlen(nested[i][0]));
		expect_error(&text, nested[i][1]);
		strbuf_clear(&text);
	}
	strbuf_puts(&text,
		    "{\"Digest\":\"sha256:0000000000000000000000000000000000000000000000000000"
		    "000000000000\",\"Op\":{\"build\":{\"def\":");
	put_times(&text, "{\"source\":{\"infos\":[{\"definition\":", 100);
	strbuf_puts(&text, "{}");
	put_times(&text, "}]}}", 100);
	strbuf_puts(&text, "}}}");
	expect_error(&text, "definitions nested deeper than 16");
	strbuf_free(&text);
}

static void a_chain_of_100000_lines_is_ordinary(void **state)
{
	const size_t n = 100000;
	struct strbuf text = {0}, def = {0};
	struct digest d = pb_source(&def, "docker-image://a", NULL, NULL);

	put_line(&text, "{\"Op\":{\"source\":{\"identifier\":\"docker-image://a\"}}}", &d);
	for (size_t i = 0; i < n; i++) {
		const struct pb_merge_input inputs[] = {{d}};
		char name[DIGEST_TEXT_MAX];
		scoped(free) char *op = str_printf("{\"inputs\":[{\"digest\":\"%s\"}],"
						   "\"Op\":{\"merge\":{\"inputs\":[{}]}}}",
						   digest_text(&d, name));
		d = pb_merge(&def, inputs, 1);
		strbuf_clear(&def);
		put_line(&text, op, &d);
	}
	put_terminal(&text, &d);
	uint64_t start = now_ns();
	struct graph *g = load(&text, "chain");
	assert_int_equal(graph_count(g), n + 1);
	graph_free(g);
	print_message("# %zu vertices in %d ms\n", n, (int)((now_ns() - start) / NS_PER_MS));
	strbuf_free(&text);
	strbuf_free(&def);
}

static void too_many_values_are_refused_before_they_are_parsed(void **state)
{
	struct strbuf text = {0}, out = {0};

	strbuf_puts(&text, "{\"def\":[");
	put_times(&text, "0,", (8 << 20) + 1);
	assert_int_equal(llb_json_encode(&out, text.data, text.len, NULL), -EFBIG);
	strbuf_free(&text);
	strbuf_free(&out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_dump_llb_prints_is_the_definition),
		cmocka_unit_test(what_convertllb_prints_is_a_definition),
		cmocka_unit_test(maps_are_sorted_and_keep_what_is_empty),
		cmocka_unit_test(numbers_and_oneofs_have_two_spellings),
		cmocka_unit_test(enums_have_names_and_lists_of_numbers_are_packed),
		cmocka_unit_test(a_build_op_keeps_its_definition),
		cmocka_unit_test(a_document_has_its_result_anywhere_and_a_source_map),
		cmocka_unit_test(lost_and_changed_ops_are_told_by_their_vertex),
		cmocka_unit_test(refuses_what_is_no_definition),
		cmocka_unit_test(refuses_nuls_in_texts),
		cmocka_unit_test(every_cut_is_an_error),
		cmocka_unit_test(nested_values_cost_no_stack),
		cmocka_unit_test(a_chain_of_100000_lines_is_ordinary),
		cmocka_unit_test(too_many_values_are_refused_before_they_are_parsed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
