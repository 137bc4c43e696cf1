/* SPDX-License-Identifier: Apache-2.0 */

/* httptext: what downloads are called, and how old they are. */

#include "solver/solver-internal.h"
#include "tests/test.h"

static void expect(const char *said, const char *disposition, const char *url, const char *want)
{
	scoped(free) char *name = httptext_filename(said, disposition, url);
	assert_string_equal(name, want);
}

static void names_of_urls(void **state)
{
	static const char *const cases[][2] = {
		{"http://h/a/b.txt", "b.txt"},
		{"http://h/b.txt?q=/x#f", "b.txt"},
		{"http://h/a%20b", "a b"},
		{"http://h/a%2Fb", "b"},
		{"http://h/a/", "a"},
		{"http://h/", "download"},
		{"http://h", "download"},
		{"http://h?x=/y", "download"},
		{"http://h/..", "download"},
		{"http://h/.", "download"},
		{"http://h/%zz", "download"},
		{"http://h/a%2", "download"},
		{"http://h/a%00b", "download"},
		{"http://h/a%0ab", "download"},
		{"http://h/%7f", "download"},
		{"http://h/\xc3\xa9", "\xc3\xa9"},
		{"http://h/.hidden", ".hidden"},
		{"http://h/a//", "a"},
	};
	for (size_t i = 0; i < countof(cases); i++)
		expect(NULL, NULL, cases[i][0], cases[i][1]);
}

static void what_is_said_wins(void **state)
{
	const char *url = "http://h/url";
	expect("said", "attachment; filename=server", url, "said");
	expect("", NULL, url, "url");
	expect("/etc/said", NULL, url, "said");
	expect("..", NULL, url, "download");
	expect("a/..", NULL, url, "download");
	expect("a\nb", NULL, url, "download");
}

static void names_of_the_server(void **state)
{
	static const char *const cases[][2] = {
		{"attachment; filename=a.txt", "a.txt"},
		{"attachment;filename=\"a b.txt\"", "a b.txt"},
		{"Attachment ; FileName = \"a\\\"b\"", "a\"b"},
		{"attachment; filename=\"..\\win\"", "..\\win"},
		{"attachment; filename=\"/etc/passwd\"", "passwd"},
		{"attachment; filename=\"../../x\"", "x"},
		{"attachment; filename=\"..\"", "download"},
		{"attachment; filename=\"a\tb\"", "download"},
		{"attachment; filename=a; filename*=UTF-8''%c3%a9%20", "\xc3\xa9 "},
		{"attachment; filename*=us-ascii'en'b%2fc", "c"},
		{"attachment; filename*=latin-1''x; filename=plain", "plain"},
		{"attachment; filename=a;", "a"},
		/* no name in it */
		{"attachment", "url"},
		{"attachment; filename=\"\"", "url"},
		{"attachment; filename=\"dir/\"", "url"},
		{"attachment; filename*0=a; filename*1=b", "url"},
		{"attachment; size=5", "url"},
		/* no sense in it */
		{"attachment; filename=a; filename=b", "url"},
		{"attachment; filename=a b", "url"},
		{"attachment; filename=\"a", "url"},
		{"attachment; filename", "url"},
		{"attachment; filename=", "url"},
		{"; filename=a", "url"},
		{"attachment; filename*=UTF-8''%zz", "url"},
		{"attachment; filename*=UTF-8''a%00b", "url"},
		{"", "url"},
	};
	for (size_t i = 0; i < countof(cases); i++)
		expect(NULL, cases[i][0], "http://h/url", cases[i][1]);
}

static void dates(void **state)
{
	static const char *const same[] = {
		"Tue, 02 Jan 2024 03:04:05 GMT",
		"Tuesday, 02-Jan-24 03:04:05 GMT",
		"Tue Jan  2 03:04:05 2024",
	};
	char text[HTTPTEXT_DATE_MAX];
	int64_t t;
	for (size_t i = 0; i < countof(same); i++) {
		assert_int_equal(httptext_date(&t, same[i]), 0);
		assert_int_equal(t, 1704164645);
	}
	assert_string_equal(httptext_date_text(t, text), same[0]);
	assert_int_equal(httptext_date(&t, "Thu, 01 Jan 1970 00:00:00 GMT"), 0);
	assert_int_equal(t, 0);
	assert_int_equal(httptext_date(&t, "Fri, 31 Dec 1969 23:59:59 GMT"), 0);
	assert_int_equal(t, -1);
	assert_int_equal(httptext_date(&t, "Wednesday, 31-Dec-69 00:00:00 GMT"), 0);
	assert_true(t < 0);
}

static void what_is_no_date(void **state)
{
	static const char *const cases[] = {
		"",
		"0",
		"yesterday",
		"Tue, 02 Jan 2024 03:04:05",
		"Tue, 02 Jan 2024 03:04:05 CET",
		"Tue, 02 Jan 2024 03:04:05 GMT+1",
		"Tue, 32 Jan 2024 03:04:05 GMT",
		"Tue, 30 Feb 2024 03:04:05 GMT",
		"Tue, 02 Foo 2024 03:04:05 GMT",
		"Tue, 02 Jan 2024 25:04:05 GMT",
		"Tue, 02 Jan 2024 03:61:05 GMT",
		"Tue, -2 Jan 2024 03:04:05 GMT",
	};
	int64_t t;
	for (size_t i = 0; i < countof(cases); i++)
		if (httptext_date(&t, cases[i]) != -EINVAL)
			fail_msg("\"%s\" is taken for a date", cases[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_of_urls),       cmocka_unit_test(what_is_said_wins),
		cmocka_unit_test(names_of_the_server), cmocka_unit_test(dates),
		cmocka_unit_test(what_is_no_date),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
