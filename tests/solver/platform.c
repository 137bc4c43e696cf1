/* SPDX-License-Identifier: Apache-2.0 */

/* platform: spellings, and which image serves whom. */

#include "solver/solver-internal.h"
#include "tests/test.h"

static void expect(const char *text, const char *normal)
{
	struct platform p;
	char buf[100];
	struct err err = {0};

	if (platform_parse(&p, text, &err) < 0)
		fail_msg("%s: %s", text, err.text);
	assert_string_equal(platform_text(&p, buf), normal);
}

static struct platform parsed(const char *text)
{
	struct platform p;

	assert_int_equal(platform_parse(&p, text, NULL), 0);
	return p;
}

static int rank(const char *want, const char *have)
{
	struct platform w = parsed(want), h = parsed(have);

	return platform_rank(&w, &h);
}

static void every_spelling_becomes_one(void **state)
{
	expect("linux/amd64", "linux/amd64");
	expect("Linux/X86_64", "linux/amd64");
	expect("linux/amd64/v1", "linux/amd64");
	expect("linux/amd64/v3", "linux/amd64/v3");
	expect("linux/aarch64", "linux/arm64");
	expect("linux/arm64/v8", "linux/arm64");
	expect("linux/arm64/8", "linux/arm64");
	expect("linux/arm64/9", "linux/arm64/v9");
	expect("linux/arm", "linux/arm/v7");
	expect("linux/arm/6", "linux/arm/v6");
	expect("linux/armhf", "linux/arm/v7");
	expect("linux/armel", "linux/arm/v6");
	expect("linux/i386", "linux/386");
	expect("macos/arm64", "darwin/arm64");
	expect("arm64", "linux/arm64");
	expect("s390x", "linux/s390x");
	expect("loongarch64", "linux/loong64");
}

static void one_word_may_be_a_system(void **state)
{
	struct platform host, p = parsed("windows");

	platform_host(&host);
	assert_string_equal(p.os, "windows");
	assert_string_equal(p.arch, host.arch);
	assert_string_equal(host.os, "linux");
}

static void refuses_what_is_no_platform(void **state)
{
	static const char *const bad[] = {
		"",
		"/",
		"linux/",
		"/amd64",
		"linux//v1",
		"linux/amd64/v1/x",
		"no such",
		"linux/*",
		"linux/amd64\n",
		"nosuch",
		"linux/amd 64",
		"linux/0123456789012345678901234567890123456789",
	};
	struct platform p;
	struct err err;

	for (size_t i = 0; i < countof(bad); i++) {
		err = (struct err){0};
		if (platform_parse(&p, bad[i], &err) != -EINVAL)
			fail_msg("\"%s\" was taken", bad[i]);
		assert_non_null(strstr(err.text, "OS/ARCH"));
	}
}

static void a_newer_processor_runs_what_older_ones_run(void **state)
{
	assert_int_equal(rank("linux/arm/v7", "linux/arm/v7"), 0);
	assert_true(rank("linux/arm/v8", "linux/arm/v7") < rank("linux/arm/v8", "linux/arm/v6"));
	assert_true(rank("linux/arm/v7", "linux/arm/v5") > 0);
	assert_int_equal(rank("linux/arm/v6", "linux/arm/v7"), -1);
	assert_true(rank("linux/amd64/v3", "linux/amd64/v2") > 0);
	assert_true(rank("linux/amd64/v3", "linux/amd64") >
		    rank("linux/amd64/v3", "linux/amd64/v2"));
	assert_int_equal(rank("linux/amd64", "linux/amd64/v2"), -1);
	assert_true(rank("linux/amd64", "linux/386") > rank("linux/amd64/v4", "linux/amd64"));
	assert_int_equal(rank("linux/386", "linux/amd64"), -1);
	assert_true(rank("linux/arm64", "linux/arm/v7") > 0);
	assert_true(rank("linux/arm64/v9", "linux/arm64") > 0);
	assert_true(rank("linux/arm64", "linux/arm/v8") > rank("linux/arm64/v9", "linux/arm64"));
	assert_int_equal(rank("linux/arm64", "linux/arm64/v9"), -1);
	assert_int_equal(rank("linux/arm/v7", "linux/arm64"), -1);
}

static void another_system_never_serves(void **state)
{
	assert_int_equal(rank("linux/amd64", "windows/amd64"), -1);
	assert_int_equal(rank("linux/riscv64", "linux/amd64"), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_spelling_becomes_one),
		cmocka_unit_test(one_word_may_be_a_system),
		cmocka_unit_test(refuses_what_is_no_platform),
		cmocka_unit_test(a_newer_processor_runs_what_older_ones_run),
		cmocka_unit_test(another_system_never_serves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
