/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/test.h"

static void paths_are_cleaned(void **state)
{
	static const char *const cases[][2] = {
		{"", "/"},
		{"/", "/"},
		{"a", "/a"},
		{"./a/", "/a"},
		{"a//b/./c", "/a/b/c"},
		{"../../x", "/x"},
		{"a/../b", "/b"},
		{"/a/b/../../..", "/"},
		{"a/..b/c..", "/a/..b/c.."},
	};

	for (size_t i = 0; i < countof(cases); i++) {
		char *p = path_clean(cases[i][0], strlen(cases[i][0]));
		assert_string_equal(p, cases[i][1]);
		free(p);
	}
}

static void base64_is_decoded_or_refused(void **state)
{
	static const char *const bad[] = {"a", "ab=c", "a===", "@@@@", "abcde", "YQ=", "YWI=="};
	uint8_t *out;
	size_t n;

	assert_int_equal(base64_decode("aGVsbG8=", 8, &out, &n), 0);
	assert_int_equal(n, 5);
	assert_memory_equal(out, "hello", 5);
	free(out);
	assert_int_equal(base64_decode("aGVsbG8", 7, &out, &n), 0);
	assert_int_equal(n, 5);
	free(out);
	assert_int_equal(base64_decode("", 0, &out, &n), 0);
	assert_int_equal(n, 0);
	free(out);
	for (size_t i = 0; i < countof(bad); i++)
		assert_int_equal(base64_decode(bad[i], strlen(bad[i]), &out, &n), -EBADMSG);
}

static void utf8_is_checked(void **state)
{
	assert_true(utf8_valid("gr\xc3\xbc\xc3\x9f \xf0\x9f\x8c\x8d", 11));
	assert_false(utf8_valid("a\0b", 3));
	assert_false(utf8_valid("\xc0\x80", 2));	 /* overlong */
	assert_false(utf8_valid("\xed\xa0\x80", 3));	 /* surrogate */
	assert_false(utf8_valid("\xf4\x90\x80\x80", 4)); /* beyond the last */
	assert_false(utf8_valid("\xe2\x82", 2));	 /* cut */
}

static void numbers_with_units_are_parsed(void **state)
{
	uint64_t v;

	assert_int_equal(parse_u64("18446744073709551615", &v), 0);
	assert_int_equal(v, UINT64_MAX);
	assert_int_equal(parse_u64("18446744073709551616", &v), -ERANGE);
	assert_int_equal(parse_u64("-1", &v), -EINVAL);
	assert_int_equal(parse_u64("", &v), -EINVAL);
	assert_int_equal(parse_duration_ms("1.5s", &v), 0);
	assert_int_equal(v, 1500);
	assert_int_equal(parse_duration_ms("250ms", &v), 0);
	assert_int_equal(v, 250);
	assert_int_equal(parse_duration_ms("10", &v), 0);
	assert_int_equal(v, 10000);
	assert_int_equal(parse_duration_ms("10x", &v), -EINVAL);
	assert_int_equal(parse_size("1GiB", &v), 0);
	assert_int_equal(v, 1073741824);
	assert_int_equal(parse_size("1.5MB", &v), 0);
	assert_int_equal(v, 1500000);
	assert_int_equal(parse_size("MB", &v), -EINVAL);
}

static void sizes_are_printed_as_docker_does(void **state)
{
	char buf[16];

	assert_string_equal(format_size(buf, 0), "0B");
	assert_string_equal(format_size(buf, 999), "999B");
	assert_string_equal(format_size(buf, 1500), "1.5kB");
	assert_string_equal(format_size(buf, 90200000), "90.2MB");
	assert_string_equal(format_size(buf, 999999999), "1.0GB");
}

static void an_error_keeps_its_cause_when_wrapped(void **state)
{
	struct err err = {0};
	char longer[600];

	assert_int_equal(err_set(&err, -EIO, "the\ncause"), -EIO);
	assert_string_equal(err.text, "the cause");
	assert_int_equal(err_wrap(&err, -EIO, "layer %d", 7), -EIO);
	assert_string_equal(err.text, "layer 7: the cause");
	err_wrap(&err, -EIO, "a\x1b[1m\nname\x7f");
	assert_string_equal(err.text, "a [1m name : layer 7: the cause");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	err_wrap(&err, -EIO, "%s", longer);
	assert_true(str_ends(err.text, "layer 7: the cause"));
	assert_string_equal(err_text(NULL, -ENOENT), "No such file or directory");
	assert_int_equal(err_wrap(NULL, -EIO, "nobody asks"), -EIO);
}

static void digests_are_exact(void **state)
{
	static const char good[] =
		"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
	struct digest d, e;
	char buf[DIGEST_TEXT_MAX], bad[100];

	assert_int_equal(digest_parse(&d, good, NULL), 0);
	digest_bytes(&e, "", 0);
	assert_true(digest_equal(&d, &e));
	assert_string_equal(digest_text(&d, buf), good);
	snprintf(bad, sizeof(bad), "%s0", good);
	assert_int_equal(digest_parse(&d, bad, NULL), -EINVAL);
	snprintf(bad, sizeof(bad), "%s", good);
	bad[10] = 'A';
	assert_int_equal(digest_parse(&d, bad, NULL), -EINVAL);
	assert_int_equal(digest_parse(&d, "sha512:00", NULL), -ENOTSUP);
	assert_int_equal(digest_parse(&d, "latest", NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(paths_are_cleaned),
		cmocka_unit_test(base64_is_decoded_or_refused),
		cmocka_unit_test(utf8_is_checked),
		cmocka_unit_test(numbers_with_units_are_parsed),
		cmocka_unit_test(sizes_are_printed_as_docker_does),
		cmocka_unit_test(an_error_keeps_its_cause_when_wrapped),
		cmocka_unit_test(digests_are_exact),
	};

	return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
