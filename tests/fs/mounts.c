/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/test.h"

#include "fs/fs-internal.h"

static void finds_ours_and_undoes_escapes(void **state)
{
	static const char text[] =
		"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
		"40 22 0:41 / /mnt/a\\040b\\011c\\134d ro,nosuid - fuse.llbfs debian:12 "
		"ro,user_id=0\n"
		"41 22 0:42 / /mnt/x rw shared:1 master:2 - fuse.sshfs host: rw\n"
		"43 22 1:7 / /mnt/y rw shared:1 propagate_from:3 - fuse.llbfs a\\040b\\012 rw";
	struct mount_entry *e;
	size_t n;

	assert_int_equal(mounts_parse(text, sizeof(text) - 1, &e, &n), 0);
	assert_int_equal(n, 2);
	assert_string_equal(e[0].mountpoint, "/mnt/a b\tc\\d");
	assert_string_equal(e[0].source, "debian:12");
	assert_int_equal(e[0].major, 0);
	assert_int_equal(e[0].minor, 41);
	assert_string_equal(e[1].mountpoint, "/mnt/y");
	assert_string_equal(e[1].source, "a b\n");
	assert_int_equal(e[1].major, 1);
	mounts_free(e, n);
}

static void skips_lines_that_it_does_not_understand(void **state)
{
	static const char *const texts[] = {
		"",
		"\n\n",
		"40 22 0:41 / /mnt",
		"40 22 0:41 / /mnt ro",
		"40 22 0:41 / /mnt ro - fuse.llbfs",
		"40 22 x / /mnt ro - fuse.llbfs src ro\n",
		"40 22 0:41 / /mnt ro fuse.llbfs src ro\n",
	};
	struct mount_entry *e;
	size_t n;

	for (size_t i = 0; i < countof(texts); i++) {
		assert_int_equal(mounts_parse(texts[i], strlen(texts[i]), &e, &n), 0);
		assert_int_equal(n, 0);
		mounts_free(e, n);
	}
}

static void keeps_what_is_no_whole_escape(void **state)
{
	static const char text[] = "40 22 0:41 / /m\\04 ro - fuse.llbfs \\999\\ ro\n";
	struct mount_entry *e;
	size_t n;

	assert_int_equal(mounts_parse(text, sizeof(text) - 1, &e, &n), 0);
	assert_int_equal(n, 1);
	assert_string_equal(e[0].mountpoint, "/m\\04");
	assert_string_equal(e[0].source, "\\999\\");
	mounts_free(e, n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(finds_ours_and_undoes_escapes),
		cmocka_unit_test(skips_lines_that_it_does_not_understand),
		cmocka_unit_test(keeps_what_is_no_whole_escape),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
