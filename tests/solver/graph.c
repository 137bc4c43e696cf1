/* SPDX-License-Identifier: Apache-2.0 */

/*
 * graph and llb: definitions of the real BuildKit, and ones that nobody should make.
 *
 * tests/data/llb has definitions as `buildctl build` takes them; beside each, the names of its
 * vertices as BuildKit printed them ("digest name" lines).
 */

#include <dirent.h>
#include <fcntl.h>

#include "solver/solver-internal.h"
#include "tests/solver/proto.h"
#include "tests/test.h"

/* ------------------------------------------------------------------ real definitions */

static const char *data_dir(void)
{
	const char *dir = getenv("TEST_SOURCE");

	assert_non_null(dir);
	return dir;
}

static struct strbuf read_data(const char *name, const char *suffix)
{
	struct strbuf out = {0};
	scoped(free) char *path = str_printf("%s/data/llb/%s%s", data_dir(), name, suffix);

	if (read_file(AT_FDCWD, path, 64 << 20, &out) < 0)
		fail_msg("cannot read %s", path);
	return out;
}

static struct graph *load(const struct strbuf *def)
{
	struct graph *g = NULL;
	struct err err = {0};

	if (graph_load(&g, def->data, def->len, &err) < 0)
		fail_msg("%s", err.text);
	return g;
}

static struct graph *load_data(const char *name)
{
	struct strbuf def = read_data(name, ".pb");
	struct graph *g = load(&def);

	strbuf_free(&def);
	return g;
}

static void expect_name(struct graph *g, char *line, const char *where)
{
	char *space = strchr(line, ' ');
	struct vertex *v;
	struct err err = {0};

	assert_non_null(space);
	*space = 0;
	if (graph_find(g, line, &v, &err) < 0)
		fail_msg("%s: %s", where, err.text);
	if (strcmp(vertex_name(v), space + 1) != 0)
		fail_msg("%s: \"%s\" and not \"%s\"", where, vertex_name(v), space + 1);
}

static void expect_inputs_first(struct graph *g)
{
	for (size_t i = 0; i < graph_count(g); i++) {
		const struct vertex *v = graph_vertex(g, i);
		assert_int_equal(v->position, i);
		for (size_t k = 0; k < vertex_inputs(v); k++) {
			struct vertex *from;
			int index;
			vertex_input(v, k, &from, &index);
			assert_true(from->position < i);
			assert_ptr_equal(graph_vertex(g, from->position), from);
		}
	}
}

static void check_definition(const char *name)
{
	struct graph *g = load_data(name);
	struct strbuf names = read_data(name, ".names");

	expect_inputs_first(g);
	for (char *line = strtok(names.data, "\n"); line; line = strtok(NULL, "\n"))
		expect_name(g, line, name);
	strbuf_free(&names);
	graph_free(g);
}

static void real_definitions_have_buildkits_names(void **state)
{
	scoped(free) char *path = str_printf("%s/data/llb", data_dir());
	DIR *dir = opendir(path);
	size_t n = 0;

	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		if (!str_ends(e->d_name, ".pb"))
			continue;
		scoped(free) char *name = strndup(e->d_name, strlen(e->d_name) - 3);
		check_definition(name);
		n++;
	}
	closedir(dir);
	assert_true(n >= 20);
}

static void the_result_is_the_terminals_input(void **state)
{
	struct graph *g = load_data("merge-3");
	struct vertex *v;
	int index;

	graph_result(g, &v, &index);
	assert_string_equal(vertex_op(v), "merge");
	assert_int_equal(index, 0);
	assert_int_equal(vertex_inputs(v), 3);
	assert_int_equal(graph_count(g), 4);
	assert_int_equal(v->position, 3);
	graph_free(g);
}

static void a_source_keeps_its_attributes_platform_and_caps(void **state)
{
	struct graph *g = load_data("src-image-layerlimit1");
	const struct vertex *v = graph_vertex(g, 0);
	char text[100];

	assert_string_equal(llb_source_attr(&v->op, "image.layerlimit"), "1");
	assert_null(llb_source_attr(&v->op, "image.checksum"));
	assert_true(v->op.has_platform);
	assert_string_equal(platform_text(&v->op.platform, text), "linux/amd64");
	assert_int_equal(v->metadata.n_caps, 2);
	assert_false(v->metadata.ignore_cache);
	graph_free(g);
}

static void vertices_keep_their_bytes(void **state)
{
	struct graph *g = load_data("dockerfile-multistage");

	for (size_t i = 0; i < graph_count(g); i++) {
		const struct vertex *v = graph_vertex(g, i);
		struct digest digest;
		digest_bytes(&digest, v->bytes.bytes, v->bytes.n);
		assert_true(digest_equal(&digest, vertex_digest(v)));
	}
	graph_free(g);
}

static void a_merge_is_written_as_buildkit_writes_it(void **state)
{
	/* merge-3 has partitions on no input, so its merge has the bytes that our encoder gives
	 * when no input has one; only constraints (an empty message) stand between. */
	struct graph *g = load_data("merge-3");
	const struct vertex *v = graph_vertex(g, 3);
	struct strbuf op = {0}, merge = {0}, input = {0};

	for (size_t i = 0; i < v->op.n_inputs; i++) {
		pb_input(&op, &v->op.inputs[i].digest, v->op.inputs[i].index);
		pb_int(&input, 1, (int64_t)v->op.merge.inputs[i].input);
		assert_null(v->op.merge.inputs[i].add);
		assert_null(v->op.merge.inputs[i].trim);
		pb_message(&merge, 1, &input);
	}
	pb_bytes(&op, 11, "", 0);
	pb_message(&op, 6, &merge);
	assert_int_equal(op.len, v->bytes.n);
	assert_memory_equal(op.data, v->bytes.bytes, op.len);
	strbuf_free(&op);
	strbuf_free(&merge);
	strbuf_free(&input);
	graph_free(g);
}

/* ------------------------------------------------------------------ made up ones */

static void partitions_are_fields_two_and_three(void **state)
{
	struct strbuf def = {0};
	struct digest a = pb_source(&def, "docker-image://a", NULL, NULL);
	struct digest b = pb_source(&def, "docker-image://b", NULL, NULL);
	const struct pb_merge_input inputs[] = {{a}, {b, "/opt", "/usr/share"}};
	struct digest m = pb_merge(&def, inputs, 2);

	pb_result(&def, &m, 0);
	struct graph *g = load(&def);
	const struct vertex *v = graph_vertex(g, 2);
	assert_null(v->op.merge.inputs[0].add);
	assert_null(v->op.merge.inputs[0].trim);
	assert_int_equal(v->op.merge.inputs[1].input, 1);
	assert_string_equal(v->op.merge.inputs[1].add, "/opt");
	assert_string_equal(v->op.merge.inputs[1].trim, "/usr/share");
	assert_string_equal(vertex_name(v), "merge (docker-image://a, docker-image://b)");
	graph_free(g);
	strbuf_free(&def);
}

static void equal_vertices_are_one_and_order_does_not_matter(void **state)
{
	struct strbuf sources = {0}, merges = {0}, def = {0};
	struct digest a = pb_source(&sources, "docker-image://a", NULL, NULL);
	const struct pb_merge_input inputs[] = {{a}, {a}};
	struct digest m = pb_merge(&merges, inputs, 2);

	strbuf_add(&def, merges.data, merges.len);
	strbuf_add(&def, sources.data, sources.len);
	strbuf_add(&def, sources.data, sources.len);
	strbuf_add(&def, merges.data, merges.len);
	pb_result(&def, &m, 0);
	struct graph *g = load(&def);
	assert_int_equal(graph_count(g), 2);
	expect_inputs_first(g);
	assert_string_equal(vertex_op(graph_vertex(g, 0)), "source");
	graph_free(g);
	strbuf_free(&sources);
	strbuf_free(&merges);
	strbuf_free(&def);
}

static void vertices_are_found_by_a_unique_prefix(void **state)
{
	struct graph *g = load_data("graph-doubling-30");
	const struct vertex *v = graph_vertex(g, 7);
	char hex[DIGEST_HEX_MAX], text[DIGEST_TEXT_MAX];
	struct vertex *found;

	digest_hex(vertex_digest(v), hex);
	assert_int_equal(graph_find(g, digest_text(vertex_digest(v), text), &found, NULL), 0);
	assert_ptr_equal(found, v);
	hex[6] = 0;
	assert_int_equal(graph_find(g, hex, &found, NULL), 0);
	assert_ptr_equal(found, v);
	hex[5] = 0;
	assert_int_equal(graph_find(g, hex, &found, NULL), -EINVAL);
	assert_int_equal(graph_find(g, "", &found, NULL), -EINVAL);
	assert_int_equal(graph_find(g, "ABCDEF", &found, NULL), -EINVAL);
	assert_int_equal(graph_find(g, "000000000000", &found, NULL), -ENOENT);
	graph_free(g);
}

static void names_of_merges_of_merges_stay_short(void **state)
{
	struct strbuf def = {0};
	struct digest d = pb_source(&def, "docker-image://a", NULL, NULL);

	for (int i = 0; i < 40; i++) {
		const struct pb_merge_input inputs[] = {{d}, {d}};
		d = pb_merge(&def, inputs, 2);
	}
	pb_result(&def, &d, 0);
	struct graph *g = load(&def);
	assert_int_equal(graph_count(g), 41);
	size_t total = 0;
	for (size_t i = 0; i < graph_count(g); i++)
		total += strlen(vertex_name(graph_vertex(g, i)));
	assert_true(total < 16 << 20);
	assert_string_equal(vertex_name(graph_vertex(g, 1)),
			    "merge (docker-image://a, docker-image://a)");
	graph_free(g);
	strbuf_free(&def);
}

static void a_chain_of_100000_vertices_is_ordinary(void **state)
{
	const int n = 100000;
	struct strbuf def = {0};
	struct digest a = pb_source(&def, "docker-image://a", NULL, NULL), d = a;

	for (int i = 0; i < n; i++) {
		const struct pb_merge_input inputs[] = {{d}, {a}};
		d = pb_merge(&def, inputs, 2);
	}
	pb_result(&def, &d, 0);
	uint64_t start = now_ns();
	struct graph *g = load(&def);
	assert_int_equal(graph_count(g), n + 1);
	expect_inputs_first(g);
	graph_free(g);
	print_message("# %d vertices in %d ms\n", n, (int)((now_ns() - start) / NS_PER_MS));
	strbuf_free(&def);
}

/* ------------------------------------------------------------------ wrong ones */

static void expect_error(const struct strbuf *def, int code, const char *says)
{
	struct graph *g = NULL;
	struct err err = {0};
	int r = graph_load(&g, def->data, def->len, &err);

	if (r != code || !strstr(err.text, says))
		fail_msg("%d \"%s\", not %d \"%s\"", r, err.text, code, says);
}

static void refuses_what_is_no_definition(void **state)
{
	struct strbuf def = {0};

	expect_error(&def, -EBADMSG, "empty");
	strbuf_puts(&def, "no protobuf");
	expect_error(&def, -EBADMSG, "malformed");
	strbuf_clear(&def);
	strbuf_puts(&def, " \n{\"Op\":{}}");
	expect_error(&def, -EBADMSG, "vertex 1: want an object with Op and Digest");
	strbuf_clear(&def);
	pb_source(&def, "docker-image://a", NULL, NULL);
	expect_error(&def, -EBADMSG, "empty");
	pb_source(&def, "docker-image://b", NULL, NULL);
	expect_error(&def, -EBADMSG, "terminal");
	strbuf_free(&def);
}

static void every_cut_of_a_definition_is_an_error_or_smaller(void **state)
{
	struct strbuf def = read_data("merge-image-image", ".pb");
	struct graph *g;

	for (size_t n = 0; n < def.len; n++) {
		scoped(free) void *cut = malloc(n ? n : 1);
		memcpy(cut, def.data, n);
		g = NULL;
		if (graph_load(&g, cut, n, NULL) == 0)
			graph_free(g);
	}
	strbuf_free(&def);
}

static void refuses_missing_inputs_and_results(void **state)
{
	struct strbuf def = {0};
	struct digest nowhere = {{1, 2, 3}};
	const struct pb_merge_input inputs[] = {{nowhere}};
	struct digest m = pb_merge(&def, inputs, 1);

	pb_result(&def, &m, 0);
	expect_error(&def, -EBADMSG, "(merge): input 0, sha256:0102030000");
	strbuf_clear(&def);
	pb_source(&def, "docker-image://a", NULL, NULL);
	pb_result(&def, &nowhere, 0);
	expect_error(&def, -EBADMSG, "the result, sha256:0102030000");
	strbuf_free(&def);
}

static void refuses_indexes_out_of_range(void **state)
{
	static const int64_t bad[] = {-1, INT64_MIN, INT64_MAX, (int64_t)1 << 31};
	struct strbuf def = {0}, op = {0}, merge = {0}, input = {0};

	for (size_t i = 0; i < countof(bad); i++) {
		struct digest a = pb_source(&def, "docker-image://a", NULL, NULL);
		pb_result(&def, &a, bad[i]);
		expect_error(&def, -EBADMSG, "no output has the index");
		strbuf_clear(&def);

		a = pb_source(&def, "docker-image://a", NULL, NULL);
		pb_input(&op, &a, 0);
		pb_int(&input, 1, bad[i]);
		pb_message(&merge, 1, &input);
		pb_message(&op, 6, &merge);
		struct digest m = pb_op(&def, &op);
		pb_result(&def, &m, 0);
		expect_error(&def, -EBADMSG, "merge input 0: there is no input");
		strbuf_clear(&def);
	}
	strbuf_free(&def);
	strbuf_free(&op);
	strbuf_free(&merge);
	strbuf_free(&input);
}

static void refuses_text_that_is_none(void **state)
{
	static const char *const bad[] = {"docker-image://a\0b", "docker-image://\xff\xfe."};
	struct strbuf def = {0}, op = {0}, source = {0};

	for (size_t i = 0; i < countof(bad); i++) {
		pb_bytes(&source, 1, bad[i], 18);
		pb_message(&op, 3, &source);
		struct digest d = pb_op(&def, &op);
		pb_result(&def, &d, 0);
		expect_error(&def, -EBADMSG, "identifier is not valid UTF-8");
		strbuf_clear(&def);
	}
	struct digest d = pb_source(&def, "local://x", "local.\xc0\xaf", "y");
	pb_result(&def, &d, 0);
	expect_error(&def, -EBADMSG, "not valid UTF-8");
	strbuf_free(&def);
	strbuf_free(&op);
	strbuf_free(&source);
}

static void refuses_digests_of_other_kinds(void **state)
{
	static const char *const bad[] = {"", "sha256:", "sha256:zz", "nonsense", "sha512:00"};
	struct strbuf def = {0}, op = {0}, input = {0};
	struct graph *g;

	for (size_t i = 0; i < countof(bad); i++) {
		pb_source(&def, "docker-image://a", NULL, NULL);
		pb_text(&input, 1, bad[i]);
		pb_message(&op, 1, &input);
		pb_op(&def, &op);
		int r = graph_load(&g, def.data, def.len, NULL);
		assert_true(r == -EBADMSG || r == -ENOTSUP);
		strbuf_clear(&def);
	}
	strbuf_free(&def);
	strbuf_free(&op);
	strbuf_free(&input);
}

#define N_BAD_TEXTS 39

/* Every kind of text in an op, and @bad in each of them in turn. */
static void put_bad_text(struct strbuf *op, int i, const char *bad, size_t n)
{
	static const struct {
		unsigned path[4]; /* fields, from the op's inwards; the last is the text */
	} texts[] = {
		{{10, 1}},	 {{10, 2}},	  {{10, 5}},	   {{11, 1}},	   {{2, 1, 1}},
		{{2, 1, 2}},	 {{2, 1, 3}},	  {{2, 1, 4}},	   {{2, 1, 7}},	   {{2, 1, 10}},
		{{2, 1, 5, 1}},	 {{2, 1, 6, 2}},  {{2, 1, 9, 1}},  {{2, 2, 2}},	   {{2, 2, 3}},
		{{2, 2, 20, 1}}, {{2, 2, 21, 1}}, {{2, 2, 22, 1}}, {{2, 2, 23}},   {{2, 5, 1}},
		{{2, 5, 2}},	 {{2, 6, 1}},	  {{4, 2, 4, 1}},  {{4, 2, 4, 2}}, {{4, 2, 4, 12}},
		{{4, 2, 4, 13}}, {{4, 2, 4, 15}}, {{4, 2, 4, 16}}, {{4, 2, 5, 1}}, {{4, 2, 6, 1}},
		{{4, 2, 7, 1}},	 {{4, 2, 8, 1}},  {{4, 2, 8, 2}},  {{5, 4, 1}},	   {{5, 4, 2}},
		{{3, 1}},	 {{3, 2, 1}},	  {{3, 2, 2}},	   {{8, 1}},
	};
	assert_int_equal(countof(texts), N_BAD_TEXTS);
	const unsigned *path = texts[i].path;
	struct strbuf message = {0}, outer = {0};
	size_t depth = 0;

	while (depth < 4 && path[depth])
		depth++;
	if (path[0] == 10 && path[1] != 1)
		pb_text(&message, 1, "amd64");
	pb_bytes(&message, path[depth - 1], bad, n);
	while (--depth > 0) {
		pb_message(&outer, path[depth - 1], &message);
		strbuf_add(&message, outer.data, outer.len);
		strbuf_clear(&outer);
	}
	strbuf_add(op, message.data, message.len);
	strbuf_free(&message);
	strbuf_free(&outer);
}

static void refuses_bad_text_wherever_it_is(void **state)
{
	static const char *const bad[] = {"a\0b", "a\xff"
						  "b"};
	struct strbuf def = {0}, op = {0};

	for (int i = 0; i < N_BAD_TEXTS * 2; i++) {
		struct digest a = pb_source(&def, "docker-image://a", NULL, NULL);
		pb_input(&op, &a, 0);
		put_bad_text(&op, i / 2, bad[i % 2], 3);
		struct digest d = pb_op(&def, &op);
		pb_result(&def, &d, 0);
		expect_error(&def, -EBADMSG, "not valid UTF-8");
		strbuf_clear(&def);
	}
	strbuf_free(&def);
	strbuf_free(&op);
}

/* What is said beside the ops, too. @field is of the definition, @path inwards. */
static void expect_bad_aside(unsigned field, const char *says, const unsigned *path, size_t depth)
{
	struct strbuf def = {0}, entry = {0}, message = {0}, outer = {0};
	struct digest d = pb_source(&def, "docker-image://a", NULL, NULL);
	char text[DIGEST_TEXT_MAX];

	pb_bytes(&message, path[--depth], "a\0b", 3);
	for (; depth > 0; depth--) {
		pb_message(&outer, path[depth - 1], &message);
		strbuf_add(&message, outer.data, outer.len);
		strbuf_clear(&outer);
	}
	if (field == 2) {
		pb_text(&entry, 1, digest_text(&d, text));
		pb_message(&entry, 2, &message);
		pb_message(&def, 2, &entry);
	} else {
		pb_message(&def, field, &message);
	}
	pb_result(&def, &d, 0);
	expect_error(&def, -EBADMSG, says);
	strbuf_free(&def);
	strbuf_free(&entry);
	strbuf_free(&message);
	strbuf_free(&outer);
}

static void refuses_bad_text_beside_the_ops(void **state)
{
	expect_bad_aside(2, "metadata of vertex", (const unsigned[]){2, 1}, 2);
	expect_bad_aside(2, "metadata of vertex", (const unsigned[]){2, 2}, 2);
	expect_bad_aside(2, "capability is not valid UTF-8", (const unsigned[]){5, 1}, 2);
	expect_bad_aside(2, "progress group is not valid", (const unsigned[]){6, 1}, 2);
	expect_bad_aside(3, "source map: file 0", (const unsigned[]){2, 1}, 2);
}

/* 300 kB of messages in messages: as a BuildOp's definition, in a source map and its files'
 * definitions, in metadata, and where no field is known. */
static void nested_messages_cost_no_stack(void **state)
{
	struct strbuf def = {0}, op = {0}, nested = {0}, build = {0}, entry = {0};
	char text[DIGEST_TEXT_MAX];

	/* An open message says how long the rest is: five bytes each are enough. */
	const int n = 60000;
	for (int i = 0; i < n; i++) {
		uint32_t rest = (uint32_t)(n - i - 1) * 5;
		const uint8_t head[5] = {0x1a, (uint8_t)(rest | 0x80), (uint8_t)(rest >> 7 | 0x80),
					 (uint8_t)(rest >> 14 | 0x80), (uint8_t)(rest >> 21)};
		strbuf_add(&nested, head, sizeof(head));
	}
	pb_bytes(&build, 3, nested.data, nested.len);
	pb_message(&op, 5, &build);
	struct digest d = pb_op(&def, &op);
	pb_bytes(&op, 15, nested.data, nested.len);
	pb_text(&build, 1, "local://x");
	pb_message(&op, 3, &build);
	pb_op(&def, &op);
	pb_bytes(&op, 3, nested.data, nested.len);
	for (unsigned field = 2; field <= 5; field++) {
		pb_text(&build, 1, "file");
		pb_bytes(&build, field, nested.data, nested.len);
		pb_message(&op, 2, &build);
	}
	pb_message(&def, 3, &op);
	pb_text(&entry, 1, digest_text(&d, text));
	pb_bytes(&entry, 2, nested.data, nested.len);
	pb_message(&def, 2, &entry);
	pb_result(&def, &d, 0);
	struct graph *g = load(&def);
	assert_int_equal(graph_count(g), 2);
	assert_string_equal(vertex_op(graph_vertex(g, 0)), "build");
	graph_free(g);
	pb_bytes(&def, 3, "", 0);
	pb_bytes(&def, 3, "\x0a\x7f", 2);
	expect_error(&def, -EBADMSG, "source map: malformed");
	scoped(free) void *zeros = calloc(1, 17 << 20);
	assert_non_null(zeros);
	pb_bytes(&def, 3, zeros, 17 << 20);
	expect_error(&def, -EFBIG, "source map: larger than");
	strbuf_free(&def);
	strbuf_free(&op);
	strbuf_free(&nested);
	strbuf_free(&build);
	strbuf_free(&entry);
}

static void unknown_capabilities_are_refused(void **state)
{
	static const struct {
		const char *cap;
		int code;
	} caps[] = {
		{"file.base", 0},
		{"soruce.http.uidgid", 0},
		{"exec.meta.base", 0},
		{"source.policy.session", 0},
		{"", -ENOTSUP},
		{"file.basf", -ENOTSUP},
		{"file.base.new", -ENOTSUP},
	};
	struct strbuf def = {0}, entry = {0}, meta = {0}, cap = {0};
	char text[DIGEST_TEXT_MAX];

	for (size_t i = 0; i < countof(caps) * 2; i++) {
		struct graph *g = NULL;
		struct err err = {0};
		struct digest d = pb_source(&def, "docker-image://a", NULL, NULL);
		pb_text(&cap, 1, caps[i / 2].cap);
		pb_int(&cap, 2, i % 2); /* BuildKit looks at the name alone */
		pb_message(&meta, 5, &cap);
		pb_text(&entry, 1, digest_text(&d, text));
		pb_message(&entry, 2, &meta);
		pb_message(&def, 2, &entry);
		pb_result(&def, &d, 0);
		assert_int_equal(graph_load(&g, def.data, def.len, &err), caps[i / 2].code);
		if (caps[i / 2].code) {
			scoped(free) char *says =
				str_printf("vertex %s (source) requires the capability \"%s\"",
					   text, caps[i / 2].cap);
			assert_non_null(strstr(err.text, says));
		}
		graph_free(g);
		strbuf_clear(&def);
	}
	strbuf_free(&def);
	strbuf_free(&entry);
	strbuf_free(&meta);
	strbuf_free(&cap);
}

static void a_vertex_knows_its_lines(void **state)
{
	struct graph *g = load_data("graph-location");
	const struct source_location *at;

	assert_int_equal(vertex_locations(graph_vertex(g, 0), &at), 1);
	assert_string_equal(at->file, "Foofile");
	assert_int_equal(at->n_ranges, 1);
	assert_int_equal(at->ranges[0].line, 1);
	assert_int_equal(at->ranges[0].column, 0);
	assert_int_equal(at->ranges[0].end_line, 2);
	assert_int_equal(at->ranges[0].end_column, 3);
	graph_free(g);
	g = load_data("merge-3");
	assert_int_equal(vertex_locations(graph_vertex(g, 0), &at), 0);
	graph_free(g);
}

static void put_position(struct strbuf *range, unsigned field, int line)
{
	struct strbuf position = {0};

	pb_int(&position, 1, line);
	pb_message(range, field, &position);
	strbuf_free(&position);
}

static void put_location(struct strbuf *locations, int index, int line)
{
	struct strbuf location = {0}, range = {0};

	pb_int(&location, 1, index);
	put_position(&range, 1, line);
	put_position(&range, 2, line + 1);
	pb_message(&location, 2, &range);
	pb_message(locations, 1, &location);
	strbuf_free(&location);
	strbuf_free(&range);
}

/* Files and vertices that are not there, lines below zero; and an error that has the line. */
static void locations_that_lead_nowhere_are_left_out(void **state)
{
	struct strbuf def = {0}, op = {0}, source = {0}, entry = {0}, locations = {0};
	static const int indexes[] = {-1, 1, INT32_MAX, INT32_MIN, 0, 0};
	const struct source_location *at;
	char text[DIGEST_TEXT_MAX];

	pb_bytes(&op, 9, "new", 3);
	struct digest d = pb_op(&def, &op);
	pb_text(&entry, 1, "Dockerfile");
	pb_message(&source, 2, &entry);
	for (size_t i = 0; i < countof(indexes); i++)
		put_location(&locations, indexes[i], i == 4 ? -7 : 12);
	pb_text(&entry, 1, digest_text(&d, text));
	pb_message(&entry, 2, &locations);
	pb_message(&source, 1, &entry);
	put_location(&locations, 0, 1);
	pb_text(&entry, 1, "sha256:nonsense");
	pb_message(&entry, 2, &locations);
	pb_message(&source, 1, &entry);
	pb_text(&entry, 1, "alone");
	pb_message(&source, 1, &entry);
	pb_message(&def, 3, &source);
	pb_result(&def, &d, 0);
	struct graph *g = load(&def);
	assert_int_equal(vertex_locations(graph_vertex(g, 0), &at), 2);
	assert_int_equal(at[0].n_ranges, 0);
	assert_int_equal(at[1].n_ranges, 1);
	struct ref *ref = NULL;
	struct err err = {0};
	assert_int_equal(graph_solve(g, NULL, graph_vertex(g, 0), 0, NULL, &ref, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, " (unknown, Dockerfile:12): "));
	graph_free(g);
	strbuf_free(&def);
	strbuf_free(&op);
	strbuf_free(&source);
	strbuf_free(&entry);
	strbuf_free(&locations);
}

static void an_unknown_op_is_loaded_and_not_solved(void **state)
{
	struct strbuf def = {0}, op = {0};

	pb_bytes(&op, 9, "new", 3);
	struct digest d = pb_op(&def, &op);
	pb_result(&def, &d, 0);
	struct graph *g = load(&def);
	assert_string_equal(vertex_op(graph_vertex(g, 0)), "unknown");
	struct ref *ref = NULL;
	struct err err = {0};
	assert_int_equal(graph_solve(g, NULL, graph_vertex(g, 0), 0, NULL, &ref, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "unknown operations cannot be solved yet"));
	graph_free(g);
	strbuf_free(&def);
	strbuf_free(&op);
}

static void metadata_is_kept_by_vertex(void **state)
{
	struct strbuf def = {0}, meta = {0}, entry = {0}, inner = {0};
	struct digest d = pb_source(&def, "docker-image://a", NULL, NULL);
	char text[DIGEST_TEXT_MAX];

	pb_int(&meta, 1, 1);
	pb_attr(&meta, 2, "llb.customname", "the base");
	pb_bytes(&meta, 4, "", 0);
	pb_text(&inner, 1, "id");
	pb_text(&inner, 2, "group");
	pb_int(&inner, 3, 1);
	pb_message(&meta, 6, &inner);
	pb_text(&entry, 1, digest_text(&d, text));
	pb_message(&entry, 2, &meta);
	pb_message(&def, 2, &entry);
	pb_result(&def, &d, 0);
	struct graph *g = load(&def);
	const struct vertex *v = graph_vertex(g, 0);
	assert_string_equal(vertex_name(v), "the base");
	assert_true(v->metadata.ignore_cache);
	assert_true(v->metadata.has_export_cache);
	assert_false(v->metadata.export_cache);
	assert_string_equal(v->metadata.group_id, "id");
	assert_string_equal(v->metadata.group_name, "group");
	assert_true(v->metadata.group_weak);
	graph_free(g);
	strbuf_free(&def);
	strbuf_free(&meta);
	strbuf_free(&entry);
	strbuf_free(&inner);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(real_definitions_have_buildkits_names),
		cmocka_unit_test(the_result_is_the_terminals_input),
		cmocka_unit_test(a_source_keeps_its_attributes_platform_and_caps),
		cmocka_unit_test(vertices_keep_their_bytes),
		cmocka_unit_test(a_merge_is_written_as_buildkit_writes_it),
		cmocka_unit_test(partitions_are_fields_two_and_three),
		cmocka_unit_test(equal_vertices_are_one_and_order_does_not_matter),
		cmocka_unit_test(vertices_are_found_by_a_unique_prefix),
		cmocka_unit_test(names_of_merges_of_merges_stay_short),
		cmocka_unit_test(a_chain_of_100000_vertices_is_ordinary),
		cmocka_unit_test(refuses_what_is_no_definition),
		cmocka_unit_test(every_cut_of_a_definition_is_an_error_or_smaller),
		cmocka_unit_test(refuses_missing_inputs_and_results),
		cmocka_unit_test(refuses_indexes_out_of_range),
		cmocka_unit_test(refuses_text_that_is_none),
		cmocka_unit_test(refuses_digests_of_other_kinds),
		cmocka_unit_test(refuses_bad_text_wherever_it_is),
		cmocka_unit_test(refuses_bad_text_beside_the_ops),
		cmocka_unit_test(nested_messages_cost_no_stack),
		cmocka_unit_test(unknown_capabilities_are_refused),
		cmocka_unit_test(a_vertex_knows_its_lines),
		cmocka_unit_test(locations_that_lead_nowhere_are_left_out),
		cmocka_unit_test(an_unknown_op_is_loaded_and_not_solved),
		cmocka_unit_test(metadata_is_kept_by_vertex),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
