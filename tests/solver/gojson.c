/* SPDX-License-Identifier: Apache-2.0 */

/* gojson: what it writes is what Go writes. */

#include "solver/gojson.h"
#include "tests/test.h"

static void expect(struct strbuf *s, const char *want)
{
	assert_false(s->failed);
	assert_string_equal(s->data, want);
	strbuf_free(s);
}

static void expect_text(const char *text, size_t n, const char *want)
{
	struct strbuf s = {0};

	gojson_text(&s, text, n);
	expect(&s, want);
}

static void text_is_escaped_as_go_does(void **state)
{
	expect_text("", 0, "\"\"");
	expect_text("a\"b\\c/d", 7, "\"a\\\"b\\\\c/d\"");
	expect_text("\b\f\n\r\t", 5, "\"\\b\\f\\n\\r\\t\"");
	expect_text("\x00\x01\x1f\x7f", 4, "\"\\u0000\\u0001\\u001f\x7f\"");
	expect_text("a && b < c > d", 14, "\"a \\u0026\\u0026 b \\u003c c \\u003e d\"");
	expect_text("\xe2\x80\xa7\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xaa", 12,
		    "\"\xe2\x80\xa7\\u2028\\u2029\xe2\x80\xaa\"");
	expect_text("gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80", 11,
		    "\"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80\"");
}

static void each_byte_that_is_no_utf8_is_replaced(void **state)
{
	expect_text("a\xff\xfe"
		    "b",
		    4, "\"a\\ufffd\\ufffdb\"");
	expect_text("\xc0\x80", 2, "\"\\ufffd\\ufffd\"");	     /* overlong */
	expect_text("\xed\xa0\x80", 3, "\"\\ufffd\\ufffd\\ufffd\""); /* a surrogate */
	expect_text("\xe2\x80", 2, "\"\\ufffd\\ufffd\"");	     /* cut off */
	expect_text("\xf4\x90\x80\x80", 4, "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");
}

static void bytes_are_base64(void **state)
{
	static const char *const want[] = {"\"\"", "\"+w==\"", "\"+/8=\"", "\"+/8/\"",
					   "\"+/8/QQ==\""};

	for (size_t n = 0; n < countof(want); n++) {
		struct strbuf s = {0};
		gojson_bytes(&s, "\xfb\xff\x3f\x41", n);
		expect(&s, want[n]);
	}
}

static void commas_stand_between_things(void **state)
{
	struct strbuf s = {0};
	char x[] = "x", y[] = "y";
	char *texts[] = {x, y};

	gojson_open(&s, '{');
	gojson_member(&s, "list");
	gojson_open(&s, '[');
	gojson_open(&s, '{');
	gojson_close(&s, '}');
	gojson_i64(&s, INT64_MIN);
	gojson_open(&s, '[');
	gojson_close(&s, ']');
	gojson_null(&s);
	gojson_close(&s, ']');
	gojson_member_text(&s, "open", "{");
	gojson_member_texts(&s, "texts", texts, 2);
	gojson_member_i64(&s, "n", 0);
	gojson_close(&s, '}');
	expect(&s, "{\"list\":[{},-9223372036854775808,[],null],\"open\":\"{\","
		   "\"texts\":[\"x\",\"y\"],\"n\":0}");
}

static void what_is_empty_is_left_out(void **state)
{
	struct strbuf s = {0};
	char x[] = "x";
	char *texts[] = {x};

	gojson_open(&s, '{');
	gojson_opt_text(&s, "a", NULL);
	gojson_opt_text(&s, "b", "");
	gojson_opt_i64(&s, "c", 0);
	gojson_opt_bool(&s, "d", false);
	gojson_opt_bytes(&s, "e", NULL, 0);
	gojson_opt_texts(&s, "f", NULL, 0);
	gojson_opt_text(&s, "g", "t");
	gojson_opt_i64(&s, "h", -1);
	gojson_opt_bool(&s, "i", true);
	gojson_opt_bytes(&s, "j", "A", 1);
	gojson_opt_texts(&s, "k", texts, 1);
	gojson_close(&s, '}');
	expect(&s, "{\"g\":\"t\",\"h\":-1,\"i\":true,\"j\":\"QQ==\",\"k\":[\"x\"]}");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_is_escaped_as_go_does),
		cmocka_unit_test(each_byte_that_is_no_utf8_is_replaced),
		cmocka_unit_test(bytes_are_base64),
		cmocka_unit_test(commas_stand_between_things),
		cmocka_unit_test(what_is_empty_is_left_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
