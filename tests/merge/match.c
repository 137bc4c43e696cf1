/* SPDX-License-Identifier: Apache-2.0 */

/* match: Go's filepath.Match, and lists of patterns as moby reads them. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "merge/merge.h"

static void wildcards_match_as_in_go(void **state)
{
	static const struct {
		const char *pattern, *name;
		int want;
	} rows[] = {
		{"", "", 1},
		{"", "a", 0},
		{"abc", "abc", 1},
		{"*", "abc", 1},
		{"*", "", 1},
		{"*", "a/b", 0},
		{"*c", "abc", 1},
		{"a*", "a", 1},
		{"a*", "ab/c", 0},
		{"a*/b", "abc/b", 1},
		{"a*/b", "a/c/b", 0},
		{"a*b*c*d*e*/f", "axbxcxdxe/f", 1},
		{"a*b*c*d*e*/f", "axbxcxdxexxx/f", 1},
		{"a*b*c*d*e*/f", "axbxcxdxe/xxx/f", 0},
		{"a*b?c*x", "abxbbxdbxebxczzx", 1},
		{"a*b?c*x", "abxbbxdbxebxczzy", 0},
		{"**", "ab", 1},
		{"a**b", "axyb", 1},
		{"ab[c]", "abc", 1},
		{"ab[b-d]", "abc", 1},
		{"ab[e-g]", "abc", 0},
		{"ab[^c]", "abc", 0},
		{"ab[^e-g]", "abc", 1},
		{"a[d-b]c", "acc", 0},
		{"a\\*b", "a*b", 1},
		{"a\\*b", "ab", 0},
		{"a?b",
		 "a\xe2\x98\xba"
		 "b",
		 1},
		{"a[^a]b",
		 "a\xe2\x98\xba"
		 "b",
		 1},
		{"a???b",
		 "a\xe2\x98\xba"
		 "b",
		 0},
		{"a[\xc3\xa0-\xc3\xbf]b",
		 "a\xc3\xa9"
		 "b",
		 1},
		{"[a-\xce\xb6]*", "\xce\xb1", 1},
		{"*[a-\xce\xb6]", "A", 0},
		{"a?b", "a/b", 0},
		{"a*b", "a/b", 0},
		{"a[^x]b", "a/b", 1}, /* a class is not kept from slashes */
		{"a?b",
		 "a\xff"
		 "b",
		 1},
		{"[\\]a]", "]", 1},
		{"[\\-]", "-", 1},
		{"[x\\-]", "x", 1},
		{"[x\\-]", "-", 1},
		{"[x\\-]", "z", 0},
		{"*x", "xxx", 1},
		/* nonsense, whatever it is compared with */
		{"[]a]", "]", -EINVAL},
		{"[-]", "-", -EINVAL},
		{"[x-]", "x", -EINVAL},
		{"[-x]", "x", -EINVAL},
		{"a[", "a", -EINVAL},
		{"a[", "zz", -EINVAL},
		{"a[b", "ab", -EINVAL},
		{"[a-b-c]", "a", -EINVAL},
		{"[", "a", -EINVAL},
		{"[^", "a", -EINVAL},
		{"[^bc", "a", -EINVAL},
		{"a\\", "a", -EINVAL},
		{"[\xff]", "a", -EINVAL},
	};

	for (size_t i = 0; i < countof(rows); i++)
		if (match_wildcard(rows[i].pattern, rows[i].name) != rows[i].want)
			fail_msg("%s on %s is not %d", rows[i].pattern, rows[i].name, rows[i].want);
}

static int match_list(const char *texts, const char *path)
{
	scoped(match_patterns_free) struct match_patterns *set = NULL;
	scoped(free) char *copy = strdup(texts);
	const char *list[8];
	bool matched[8];
	size_t n = 0;

	for (char *save, *s = strtok_r(copy, "|", &save); s; s = strtok_r(NULL, "|", &save))
		list[n++] = s;
	int r = match_patterns_new(&set, list, n, NULL);
	return r < 0 ? r : match_patterns(set, path, NULL, matched);
}

static void patterns_match_as_in_moby(void **state)
{
	static const struct {
		const char *patterns, *path; /* separated by | */
		int want;
	} rows[] = {
		{"**", "file", 1},
		{"**", "dir/file", 1},
		{"**/", "file", 1},
		{"**/**", "dir/file", 1},
		{"dir/**", "dir/file", 1},
		{"dir/**", "dir/dir2/file", 1},
		{"dir/**", "dir", 0},
		{"**/dir2/*", "dir/dir2/file", 1},
		{"**/dir2/*", "dir/dir2/dir3/file", 1}, /* below dir3, which matches */
		{"**file", "file", 1},
		{"**file", "dir/file", 1},
		{"**/file", "dir/dir/file", 1},
		{"**/file*txt", "dir/dir/file.txt", 1},
		{"**/*.txt", "file.txt", 1},
		{"**/*.txt", "file.txtx", 0},
		{"**/a", "ba", 0},
		{"a/**/b", "a/b", 1},
		{"a/**/b", "a/x/y/b", 1},
		{"a/**/b", "a/xb", 0},
		{"a**b", "axx/yyb", 0}, /* what ** takes ends in a slash */
		{"a**b", "axx/b", 1},
		{"a**/*a*", "axx/yya", 1},
		{"a**/*/**", "a/b/c/d", 1},
		{"a/*/b", "a/x/b", 1},
		{"a/*/b", "a/x/y/b", 0},
		{"a?c", "a/c", 0},
		{"[a-c]x", "bx", 1},
		{"[^a-c]x", "bx", 0},
		{"[^a-c]x", "\nx", 1},
		{"**/x?", "a\nb/xy", 0}, /* no newline in what ** takes */
		{"*x?", "a\nbxy", 1},
		{"a.b", "axb", 0},
		{"a.*b", "axb", 0},
		{"a(b)*", "a(b)c", 1},
		{"a|!b", "a", 1},
		{"*|!keep", "keep", 0},
		{"*|!keep", "other", 1},
		{"*|!keep|ke*", "keep", 1},
		{"!keep", "keep", 0},
		{" a ", "a", 1},
		{"./a//b/../c/", "a/c/d", 1},
		{"/a", "a", 0},
		{"a", "a/b/c", 1},
		{"a/b", "a", 0},
		{"\\*", "*", 1},
		{"\\*", "x", 0},
		{"\\d", "7", 1}, /* the expression's own classes shine through */
		{"\\d", "d", 0},
		{"\\W", "-", 1},
		{"[*]", "*", 0}, /* is [[^/]*] */
		{"[*]", "^[]", 1},
		{"a^b", "a^b", 1},
		{"a^b*", "a^bc", 0}, /* ^ is where the path begins */
		{"^a*", "ab", 1},
		{"\xc3\xa9?", "\xc3\xa9\xe2\x98\xba", 1},
		{"?", "\xff", 1},
		{"a/", "a/b", 1},
		{"a//", "a", 1},
		{"a/.", "a", 1},
		{"a|!a/", "a", 0},
		{"\ta \r", "a", 1},
		{"a b", "a b", 1},
		{"a b", "a", 0},
		{"a|! a", "a", 1}, /* what is after ! keeps its space */
		{"a|!/a", "a", 1},
		{"a|!./a", "a", 1}, /* cleaned with the ! before it: "!./a" */
		{"!a|a", "a", 1},
		{"!!a", "a", 0},
		{".", "a", 0},
		{"..", "a", 0},
		{"a/../../b", "b", 0},
		{"**|!**/*.c", "x/y.c", 0},
		{"**|!**/*.c", "x", 1},
		{"a/**|!a/b", "a/b/c", 0},
		{"a|!a/b|a/b/c", "a/b/c", 1},
		{"a|!a/b|a/b/c", "a/b/d", 0},
		{"", "a", 0},
		{"a[", "a", -EINVAL},
		{"!", "a", -EINVAL},
		{"[z-a]", "a", -EINVAL},
		{"a\\", "a", -EINVAL},
		{"\\Qa", "a", -EINVAL},
		{"[[:alpha:]]", "a", -EINVAL},
	};

	for (size_t i = 0; i < countof(rows); i++) {
		int r = match_list(rows[i].patterns, rows[i].path);

		if (r != rows[i].want)
			fail_msg("%s on %s is %d", rows[i].patterns, rows[i].path, r);
	}
}

/* What is known of a folder decides for what lies in it. */
static void parents_pass_on_what_they_matched(void **state)
{
	static const char *const texts[] = {"d", "!d/keep", "x*"};
	scoped(match_patterns_free) struct match_patterns *set = NULL;
	bool top[3], below[3];

	assert_int_equal(match_patterns_new(&set, texts, 3, NULL), 0);
	assert_int_equal(match_patterns_count(set), 3);
	assert_int_equal(match_patterns(set, "d", NULL, top), 1);
	assert_int_equal(match_patterns(set, "d/keep", top, below), 0);
	assert_int_equal(match_patterns(set, "d/keep/more", below, top), 0);
	assert_int_equal(match_patterns(set, "e", NULL, top), 0);
	/* nothing above matched: only the path itself is looked at */
	assert_int_equal(match_patterns(set, "d/other", top, below), 0);
	assert_int_equal(match_patterns(set, "d/other", NULL, below), 1);
}

/* Takes far too long for matchers that go back. */
static void many_stars_take_no_time(void **state)
{
	char name[2001];

	memset(name, 'a', 2000);
	name[2000] = '\0';
	assert_int_equal(match_list("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", name), 0);
	assert_int_equal(match_wildcard("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", name), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wildcards_match_as_in_go),
		cmocka_unit_test(patterns_match_as_in_moby),
		cmocka_unit_test(parents_pass_on_what_they_matched),
		cmocka_unit_test(many_stars_take_no_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
