/* SPDX-License-Identifier: Apache-2.0 */

/* cacheconfig: what is taken, and every way to be malformed. */

#include "solver/cache-internal.h"
#include "tests/test.h"

#define D "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define R "{\"digest\":\"" D "\""

static void takes_what_go_writes(void **state)
{
	static const char text[] =
		"{\"layers\":[{\"blob\":\"" D "\",\"parent\":-1},{\"blob\":\"" D "\"},{}],"
		"\"unknown\":7,\"records\":["
		"{\"layers\":[{\"layer\":1,\"createdAt\":\"1970-01-01T00:00:01.5Z\"},"
		"{\"layer\":0,\"createdAt\":\"1970-01-01T01:00:00.000000007+01:00\"}],"
		"\"chains\":[{\"layers\":[1,0,0],\"createdAt\":\"0001-01-01T00:00:00Z\"},"
		"{\"layers\":null},{\"createdAt\":\"9999-12-31T23:59:59Z\"}],\"digest\":\"" D "\","
		"\"inputs\":[[{\"selector\":\"" D "\",\"link\":1},{\"link\":2,\"selector\":\"\"}],"
		"[{\"link\":1}]]}," R ",\"inputs\":null},{\"digest\":\"" D "\"}]}";
	struct cacheconfig c;
	struct err err = {0};
	/* Layer 2 lies on layer 0, since missing is 0. */
	assert_int_equal(cacheconfig_parse(&c, text, strlen(text), &err), 0);
	assert_int_equal(c.n_layers, 3);
	assert_true(c.layers[0].has_blob && !c.layers[2].has_blob);
	assert_int_equal(c.layers[0].parent, -1);
	assert_int_equal(c.layers[1].parent, 0);
	assert_int_equal(c.n_records, 3);
	const struct cacheconfig_record *r = &c.records[0];
	assert_int_equal(r->n_inputs, 2);
	assert_int_equal(r->n_links, 3);
	assert_true(r->links[0].has_selector && !r->links[1].has_selector);
	assert_int_equal(r->links[1].from, 2);
	assert_int_equal(r->links[2].input, 1);
	assert_int_equal(r->n_results, 5);
	assert_int_equal(r->results[0].top, 1);
	assert_int_equal(r->results[0].created_ns, 1500000000);
	assert_int_equal(r->results[1].created_ns, 7);
	assert_int_equal(r->results[2].top, -1);
	assert_int_equal(r->results[2].n_chain, 3);
	assert_int_equal(r->results[2].chain[0], 1);
	assert_true(r->results[2].created_ns == INT64_MIN);
	assert_int_equal(r->results[3].n_chain, 0);
	assert_true(r->results[3].created_ns == INT64_MIN);
	assert_true(r->results[4].created_ns == INT64_MAX);
	cacheconfig_deinit(&c);
}

static void takes_nothing(void **state)
{
	struct cacheconfig c;
	assert_int_equal(cacheconfig_parse(&c, "{}", 2, NULL), 0);
	assert_int_equal(c.n_records + c.n_layers, 0);
	cacheconfig_deinit(&c);
}

static void refuses_what_is_malformed(void **state)
{
	static const struct {
		const char *text, *reason;
	} cases[] = {
		{"", "JSON"},
		{"[]", "no object"},
		{"{\"layers\":{}}", "\"layers\" is no list"},
		{"{\"records\":1}", "\"records\" is no list"},
		{"{\"layers\":[3]}", "layer 0: no object"},
		{"{\"layers\":[{\"blob\":\"x\",\"parent\":-1}]}", "layer 0: \"blob\""},
		{"{\"layers\":[{\"blob\":7,\"parent\":-1}]}", "layer 0: \"blob\" is no text"},
		{"{\"layers\":[{\"parent\":-2}]}", "layer 0: \"parent\" is -2"},
		{"{\"layers\":[{\"parent\":1}]}", "layer 0: \"parent\" is 1"},
		{"{\"layers\":[{\"parent\":\"0\"}]}", "layer 0: \"parent\" is no number"},
		{"{\"layers\":[{}]}", "layer 0 lies on itself"},
		{"{\"layers\":[{\"parent\":1},{\"parent\":2},{\"parent\":0}]}", "lies on itself"},
		{"{\"records\":[7]}", "record 0: no object"},
		{"{\"records\":[{}]}", "record 0: no digest"},
		{"{\"records\":[{\"digest\":\"\"}]}", "record 0: no digest"},
		{"{\"records\":[{\"digest\":\"md5:12\"}]}", "record 0: \"digest\""},
		{"{\"records\":[" R ",\"inputs\":7}]}", "record 0: \"inputs\" is no list"},
		{"{\"records\":[" R ",\"inputs\":[[]]}]}", "input 0: no way leads there"},
		{"{\"records\":[" R ",\"inputs\":[null]}]}", "input 0: no way leads there"},
		{"{\"records\":[" R ",\"inputs\":[[7]]}]}", "input 0: a link is no object"},
		{"{\"records\":[" R ",\"inputs\":[[{\"link\":1}]]}]}", "\"link\" is 1"},
		{"{\"records\":[" R ",\"inputs\":[[{\"link\":-1}]]}]}", "\"link\" is -1"},
		{"{\"records\":[" R ",\"inputs\":[[{\"link\":1.5}]]}]}", "\"link\" is no number"},
		{"{\"records\":[" R ",\"inputs\":[[{\"link\":0}]]}]}", "record 0 leads to itself"},
		{"{\"records\":[" R ",\"inputs\":[[{\"link\":1}]]}," R
		 ",\"inputs\":[[{\"link\":2}]]}," R ",\"inputs\":[[{\"link\":0}]]}]}",
		 "leads to itself"},
		{"{\"records\":[" R "}," R ",\"inputs\":[[{\"link\":0,\"selector\":\"/\"}]]}]}",
		 "\"selector\""},
		{"{\"records\":[" R ",\"layers\":[{\"layer\":0}]}]}", "\"layer\" is 0"},
		{"{\"records\":[" R ",\"layers\":[7]}]}", "a result is no object"},
		{"{\"records\":[" R ",\"chains\":[{\"layers\":[0]}]}]}", "\"layers\" is 0"},
		{"{\"records\":[" R ",\"chains\":[{\"layers\":7}]}]}", "\"layers\" is no list"},
		{"{\"records\":[" R ",\"chains\":[{\"createdAt\":7}]}]}", "is no time"},
		{"{\"records\":[" R ",\"chains\":[{\"createdAt\":\"\"}]}]}", "is no time"},
		{"{\"records\":[" R ",\"chains\":[{\"createdAt\":\"2024-01-02 03:04:05Z\"}]}]}",
		 "is no time"},
		{"{\"records\":[" R ",\"chains\":[{\"createdAt\":\"2024-13-02T03:04:05Z\"}]}]}",
		 "is no time"},
		{"{\"records\":[" R ",\"chains\":[{\"createdAt\":\"2024-01-02T03:04:05\"}]}]}",
		 "is no time"},
		{"{\"records\":[" R ",\"chains\":[{\"createdAt\":\"2024-01-02T03:04:05.Z\"}]}]}",
		 "is no time"},
	};

	for (size_t i = 0; i < countof(cases); i++) {
		struct cacheconfig c;
		struct err err = {0};
		int r = cacheconfig_parse(&c, cases[i].text, strlen(cases[i].text), &err);
		if (r != -EBADMSG || !strstr(err.text, cases[i].reason))
			fail_msg("%s: %d %s", cases[i].text, r, err.text);
	}
}

static int parse_image(struct cacheconfig *out, const char *text, struct err *err)
{
	struct desc layers[2] = {{.size = 1}, {.size = 2}};
	return cacheconfig_parse_image(out, text, strlen(text), layers, 2, err);
}

static void takes_records_of_an_image(void **state)
{
	struct cacheconfig c;
	/* [{"layers":[{"layer":1}],"digest":"sha256:aa…"}] */
	assert_int_equal(
		parse_image(&c,
			    "{\"moby.buildkit.cache.v0\":"
			    "\"W3sibGF5ZXJzIjpbeyJsYXllciI6MX1dLCJkaWdlc3QiOiJzaGEyNTY6YWFh"
			    "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh"
			    "YWFhYWFhYWFhYWFhYWFhYSJ9XQ==\"}",
			    NULL),
		0);
	assert_int_equal(c.n_layers, 2);
	assert_int_equal(c.layers[0].parent, -1);
	assert_int_equal(c.layers[1].parent, 0);
	assert_int_equal(c.records[0].results[0].top, 1);
	cacheconfig_deinit(&c);
}

static void tells_an_image_without_any(void **state)
{
	static const struct {
		const char *text;
		int r;
	} cases[] = {
		{"{}", -ENOENT},
		{"{\"moby.buildkit.cache.v0\":null}", -ENOENT},
		{"{\"moby.buildkit.cache.v0\":\"\"}", -ENOENT},
		{"", -EBADMSG},
		{"{\"moby.buildkit.cache.v0\":7}", -EBADMSG},
		{"{\"moby.buildkit.cache.v0\":\"!\"}", -EBADMSG},
		{"{\"moby.buildkit.cache.v0\":\"e30=\"}", -EBADMSG},	 /* {} */
		{"{\"moby.buildkit.cache.v0\":\"W3t9XQ==\"}", -EBADMSG}, /* [{}] */
	};

	for (size_t i = 0; i < countof(cases); i++) {
		struct cacheconfig c;
		assert_int_equal(parse_image(&c, cases[i].text, NULL), cases[i].r);
	}
}

/* A chain of records, each on the one before: neither depth nor length is a matter. */
static void takes_a_long_chain(void **state)
{
	enum { N = 50000 };
	struct strbuf text = {0};
	struct cacheconfig c;

	strbuf_puts(&text, "{\"layers\":[{\"parent\":-1}");
	for (int i = 1; i < N; i++)
		strbuf_printf(&text, ",{\"parent\":%d}", i - 1);
	strbuf_puts(&text, "],\"records\":[");
	for (int i = 0; i < N - 1; i++)
		strbuf_printf(&text, R ",\"inputs\":[[{\"link\":%d}]]},", i + 1);
	strbuf_puts(&text, R "}]}");
	assert_false(text.failed);
	assert_int_equal(cacheconfig_parse(&c, text.data, text.len, NULL), 0);
	assert_int_equal(c.n_records, N);
	cacheconfig_deinit(&c);
	strbuf_free(&text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(takes_what_go_writes),
		cmocka_unit_test(takes_nothing),
		cmocka_unit_test(refuses_what_is_malformed),
		cmocka_unit_test(takes_records_of_an_image),
		cmocka_unit_test(tells_an_image_without_any),
		cmocka_unit_test(takes_a_long_chain),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
