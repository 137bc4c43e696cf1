/* SPDX-License-Identifier: Apache-2.0 */

/*
 * tarwrite: against tars that BuildKit (Go's archive/tar) wrote, and corner by corner.
 *
 * The golden tars in tests/data/tar are read here by the simplest means into a tree in memory;
 * written again, they must come out byte for byte.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <unistd.h>

#include "merge/merge.h"

static int to_strbuf(void *arg, const void *bytes, size_t n)
{
	strbuf_add(arg, bytes, n);
	return 0;
}

static struct strbuf written(struct tree *t, uint64_t dir, const char *prefix)
{
	struct strbuf out = {0};
	struct err err = {0};

	if (tar_write_tree(t, dir, prefix, to_strbuf, &out, &err) < 0)
		fail_msg("%s", err.text);
	assert_false(out.failed);
	return out;
}

/* ------------------------------------------------------------------ reading golden tars */

struct member {
	char name[512], link[512];
	struct attr attr;
	const char *data, *records;
	size_t records_len;
	char type;
};

static uint64_t octal(const char *field)
{
	return strtoull(field, NULL, 8);
}

/* Calls @fn for each record of a PAX header. */
static void each_record(const struct member *m,
			void (*fn)(void *arg, const char *key, const char *value, size_t len),
			void *arg)
{
	for (const char *p = m->records; p < m->records + m->records_len;) {
		char *at, key[300];
		size_t len = strtoull(p, &at, 10);
		const char *equals = strchr(++at, '=');

		snprintf(key, sizeof(key), "%.*s", (int)(equals - at), at);
		fn(arg, key, equals + 1, (size_t)(p + len - 1 - (equals + 1)));
		p += len;
	}
}

static void take_path(void *arg, const char *key, const char *value, size_t len)
{
	struct member *m = arg;

	if (strcmp(key, "path") == 0)
		snprintf(m->name, sizeof(m->name), "%.*s", (int)len, value);
	if (strcmp(key, "linkpath") == 0)
		snprintf(m->link, sizeof(m->link), "%.*s", (int)len, value);
}

struct xattr_target {
	struct tree *tree;
	const char *path;
};

static void take_xattr(void *arg, const char *key, const char *value, size_t len)
{
	static const char schily[] = "SCHILY.xattr.";
	struct xattr_target *x = arg;

	if (str_starts(key, schily))
		assert_int_equal(memtree_xattr(x->tree, x->path, key + strlen(schily), value, len),
				 0);
}

/* The next member at *off; false at the end. */
static bool next_member(const struct strbuf *tar, size_t *off, struct member *m)
{
	static const uint8_t types[] = {
		['0'] = NODE_FILE,  ['1'] = NODE_FILE, ['2'] = NODE_SYMLINK, ['3'] = NODE_CHAR,
		['4'] = NODE_BLOCK, ['5'] = NODE_DIR,  ['6'] = NODE_FIFO};

	*m = (struct member){0};
	for (;;) {
		const char *h = tar->data + *off;
		uint64_t size = octal(h + 124);

		if (!*h)
			return false;
		*off += 512 + (size + 511) / 512 * 512;
		if (h[156] == 'x') {
			m->records = h + 512;
			m->records_len = size;
			continue;
		}
		m->type = h[156];
		m->data = h + 512;
		snprintf(m->name, sizeof(m->name), "%.155s%s%.100s", h + 345, h[345] ? "/" : "", h);
		snprintf(m->link, sizeof(m->link), "%.100s", h + 157);
		m->attr = (struct attr){.type = types[(uint8_t)h[156]],
					.mode = (uint32_t)octal(h + 100),
					.uid = (uint32_t)octal(h + 108),
					.gid = (uint32_t)octal(h + 116),
					.size = size,
					.mtime_s = (int64_t)octal(h + 136),
					.dev_major = (uint32_t)octal(h + 329),
					.dev_minor = (uint32_t)octal(h + 337)};
		each_record(m, take_path, m);
		return true;
	}
}

static struct tree *tree_of_tar(const struct strbuf *tar)
{
	struct tree *t;
	struct member m;

	assert_int_equal(memtree_new(&t), 0);
	for (size_t off = 0; next_member(tar, &off, &m);) {
		const char *data = m.type == '2' ? m.link : m.data;
		size_t len = m.type == '2' ? strlen(m.link) : m.attr.size;
		struct xattr_target x = {.tree = t, .path = m.name};

		if (m.type == '1') {
			assert_int_equal(memtree_link(t, m.name, m.link), 0);
			continue;
		}
		assert_int_equal(memtree_add(t, m.name, &m.attr, data, len), 0);
		each_record(&m, take_xattr, &x);
	}
	return t;
}

static void golden_tars_come_out_as_they_were(void **state)
{
	scoped(free) char *pattern = str_printf("%s/data/tar/*.tar", getenv("TEST_SOURCE"));
	glob_t found;

	assert_int_equal(glob(pattern, 0, NULL, &found), 0);
	for (size_t i = 0; i < found.gl_pathc; i++) {
		scoped(strbuf_free) struct strbuf tar = {0};

		assert_int_equal(read_file(AT_FDCWD, found.gl_pathv[i], 4 << 20, &tar), 0);
		struct tree *t = tree_of_tar(&tar);
		scoped(strbuf_free) struct strbuf out = written(t, TREE_ROOT, "");
		for (size_t off = 0; off + 512 <= MIN(tar.len, out.len); off += 512) {
			if (memcmp(tar.data + off, out.data + off, 512) != 0)
				fail_msg("%s: block %zu differs", found.gl_pathv[i], off / 512);
		}
		assert_int_equal(out.len, tar.len);
		tree_unref(t);
	}
	globfree(&found);
}

/* ------------------------------------------------------------------ corners */

static struct tree *one_file(const char *path, const struct attr *attr)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	assert_int_equal(memtree_add(t, path, attr, "x", 1), 0);
	return t;
}

static char *repeat(char *buf, const char *text, int n)
{
	*buf = '\0';
	while (n-- > 0)
		strcat(buf, text);
	return buf;
}

/* The members' names, "NAME|" each; PAX headers with their records. */
static char *outline(const struct strbuf *tar)
{
	struct strbuf out = {0};

	for (size_t off = 0; tar->data[off];) {
		const char *h = tar->data + off;
		uint64_t size = octal(h + 124);

		strbuf_printf(&out, "%c %.155s%s%.100s", h[156], h + 345, h[345] ? "//" : "", h);
		if (h[156] == 'x')
			strbuf_printf(&out, " %.*s", (int)size, h + 512);
		strbuf_puts(&out, "|");
		off += 512 + (size + 511) / 512 * 512;
	}
	return strbuf_finish(&out);
}

static void expect_outline(struct tree *t, const char *prefix, const char *want)
{
	scoped(strbuf_free) struct strbuf tar = written(t, TREE_ROOT, prefix);
	scoped(free) char *got = outline(&tar);

	assert_string_equal(got, want);
	tree_unref(t);
}

static const struct attr plain = {.type = NODE_FILE, .mode = 0644};

static void a_name_of_100_bytes_needs_no_split_and_one_of_101_does(void **state)
{
	char name[300], want[600];

	repeat(name, "d/", 49);
	strcat(name, "ff");
	struct tree *t = one_file(name, &plain);
	scoped(strbuf_free) struct strbuf tar = written(t, TREE_ROOT, "");
	assert_non_null(strstr(tar.data + tar.len - 512 * 4, "ff"));
	assert_int_equal(tar.data[tar.len - 512 * 4 + 345], '\0');
	tree_unref(t);

	/* Split at the last slash that leaves at most 155 before it. */
	t = one_file(name, &plain);
	strcpy(want, "");
	scoped(strbuf_free) struct strbuf split = written(t, TREE_ROOT, "p");
	const char *h = split.data + split.len - 512 * 4;
	assert_int_equal(strlen(h + 345), 99);
	assert_string_equal(h, "ff");
	tree_unref(t);
}

static void what_cannot_be_split_gets_a_pax_header_cut_to_100(void **state)
{
	char name[300], want[900];

	repeat(name, "n", 101);
	snprintf(want, sizeof(want), "x PaxHeaders.0/%.87s 111 path=%s\n|0 %.100s|", name, name,
		 name);
	expect_outline(one_file(name, &plain), "", want);
}

static void names_are_ascii_in_headers_and_whole_in_records(void **state)
{
	expect_outline(one_file("\xc3\xbcn\xff.txt", &plain), "",
		       "x PaxHeaders.0/n.txt 17 path=\xc3\xbcn\xff.txt\n|0 n.txt|");
	expect_outline(one_file("d\xc3\xbc/f", &plain), "",
		       "x d/PaxHeaders.0 13 path=d\xc3\xbc/\n|5 d/|"
		       "x d/PaxHeaders.0/f 14 path=d\xc3\xbc/f\n|0 d/f|");
}

static void numbers_too_large_for_octal_become_records(void **state)
{
	struct attr a = plain;

	a.uid = 2097151;
	expect_outline(one_file("f", &a), "", "0 f|");
	a.uid = 2097152;
	a.gid = UINT32_MAX;
	expect_outline(one_file("f", &a), "",
		       "x PaxHeaders.0/f 18 gid=4294967295\n15 uid=2097152\n|0 f|");
	struct tree *t = one_file("f", &a);
	scoped(strbuf_free) struct strbuf tar = written(t, TREE_ROOT, "");
	assert_string_equal(tar.data + 1024 + 108, "0000000");
	tree_unref(t);
}

static void times_with_fractions_or_before_1970_become_records(void **state)
{
	struct attr a = plain;

	a.mtime_s = 1234567890;
	a.mtime_ns = 120000000;
	expect_outline(one_file("f", &a), "", "x PaxHeaders.0/f 23 mtime=1234567890.12\n|0 f|");
	a.mtime_s = -2;
	a.mtime_ns = 750000000;
	expect_outline(one_file("f", &a), "", "x PaxHeaders.0/f 15 mtime=-1.25\n|0 f|");
	a.mtime_s = -1;
	a.mtime_ns = 500000000;
	expect_outline(one_file("f", &a), "", "x PaxHeaders.0/f 14 mtime=-0.5\n|0 f|");
	a.mtime_s = -5;
	a.mtime_ns = 0;
	expect_outline(one_file("f", &a), "", "x PaxHeaders.0/f 12 mtime=-5\n|0 f|");
	a.mtime_s = INT64_C(1) << 33;
	expect_outline(one_file("f", &a), "", "x PaxHeaders.0/f 20 mtime=8589934592\n|0 f|");
	a.mtime_s--;
	expect_outline(one_file("f", &a), "", "0 f|");
}

static void a_record_counts_its_own_length(void **state)
{
	char value[200], want[400];

	/* 3 digits make the record 100 long, 2 would make it 99: both are tried by growing. */
	for (int n = 60; n < 90; n++) {
		struct tree *t = one_file("f", &plain);
		int len = (int)strlen(" SCHILY.xattr.user.x=\n") + n;

		len += len + 2 < 100 ? 2 : 3;
		repeat(value, "v", n);
		assert_int_equal(memtree_xattr(t, "f", "user.x", value, (size_t)n), 0);
		snprintf(want, sizeof(want), "x PaxHeaders.0/f %d SCHILY.xattr.user.x=%s\n|0 f|",
			 len, value);
		expect_outline(t, "", want);
	}
}

static void records_are_sorted_and_binary_values_kept(void **state)
{
	struct tree *t = one_file("f", &plain);

	assert_int_equal(memtree_xattr(t, "f", "user.b", "\0\n=", 3), 0);
	assert_int_equal(memtree_xattr(t, "f", "security.capability", "c", 1), 0);
	scoped(strbuf_free) struct strbuf tar = written(t, TREE_ROOT, "");
	static const char want[] = "38 SCHILY.xattr.security.capability=c\n"
				   "27 SCHILY.xattr.user.b=\0\n=\n";
	assert_memory_equal(tar.data + 512, want, sizeof(want) - 1);
	tree_unref(t);
}

static void an_xattr_that_a_record_cannot_name_is_an_error(void **state)
{
	struct tree *t = one_file("f", &plain);
	struct strbuf out = {0};
	struct err err;

	assert_int_equal(memtree_xattr(t, "f", "user.a=b", "x", 1), 0);
	assert_int_equal(tar_write_tree(t, TREE_ROOT, "", to_strbuf, &out, &err), -EILSEQ);
	assert_true(str_starts(err.text, "f: "));
	strbuf_free(&out);
	tree_unref(t);
}

static void further_names_are_links_to_the_first(void **state)
{
	struct tree *t = one_file("b", &plain);
	char name[16];

	for (int i = 0; i < 100; i++) { /* more than the table begins with */
		snprintf(name, sizeof(name), "f%d", i);
		assert_int_equal(memtree_add(t, name, &plain, "y", 1), 0);
		snprintf(name, sizeof(name), "d/l%d", i);
		assert_int_equal(memtree_link(t, name, i % 2 ? "b" : "f0"), 0);
	}
	scoped(strbuf_free) struct strbuf tar = written(t, TREE_ROOT, "p");
	int n_links = 0, n_files = 0;
	struct member m;
	for (size_t off = 0; next_member(&tar, &off, &m);) {
		n_links += m.type == '1';
		n_files += m.type == '0';
		if (m.type != '1')
			continue;
		assert_string_equal(m.link, strcmp(m.name, "p/d/l1") == 0 ? "p/b" : m.link);
		assert_int_equal(m.attr.size, 0);
	}
	assert_int_equal(n_files, 101);
	assert_int_equal(n_links, 100);
	tree_unref(t);
}

static void a_prefix_names_the_folder_itself_too(void **state)
{
	struct attr socket = {.type = NODE_SOCKET};
	struct tree *t = one_file("d/f", &plain);
	struct attr a;

	assert_int_equal(memtree_add(t, "s", &socket, NULL, 0), 0);
	expect_outline(tree_ref(t), "", "5 d/|0 d/f|");
	expect_outline(tree_ref(t), "a/b", "5 a/b/|5 a/b/d/|0 a/b/d/f|");
	assert_int_equal(tree_walk(t, "/d/f", false, &a, NULL), 0);
	scoped(strbuf_free) struct strbuf tar = written(t, a.id, "file");
	scoped(free) char *got = outline(&tar);
	assert_string_equal(got, "0 file|");
	assert_int_equal(tar_write_tree(t, a.id, "", to_strbuf, &tar, NULL), -EINVAL);
	tree_unref(t);
}

static int stop_writing(void *arg, const void *bytes, size_t n)
{
	return --*(int *)arg < 0 ? -EPIPE : 0;
}

static void an_error_of_the_writer_ends_it(void **state)
{
	struct tree *t = one_file("d/f", &plain);

	for (int left = 0; left < 5; left++) {
		int n = left;

		assert_int_equal(tar_write_tree(t, TREE_ROOT, "", stop_writing, &n, NULL), -EPIPE);
	}
	tree_unref(t);
}

static void other_tars_read_it(void **state)
{
	char path[] = "/tmp/llbfs-tarwrite-XXXXXX", name[300];
	const struct attr dir = {.type = NODE_DIR, .mode = 0755};
	int fd = mkstemp(path);

	struct tree *t = one_file("\xc3\xbcn\xc3\xaf", &plain);
	repeat(name, "long/", 45);
	assert_int_equal(memtree_add(t, name, &dir, NULL, 0), 0);
	scoped(strbuf_free) struct strbuf tar = written(t, TREE_ROOT, "");
	assert_int_equal(write_full(fd, tar.data, tar.len), 0);
	close(fd);
	scoped(free) char *command = str_printf("tar -tf %s", path);
	FILE *p = popen(command, "r");
	int lines = 0, c;
	while ((c = fgetc(p)) != EOF)
		lines += c == '\n';
	assert_int_equal(pclose(p), 0);
	assert_int_equal(lines, 46);
	unlink(path);
	tree_unref(t);
}

/* ------------------------------------------------------------------ layers */

/* Names of the members, each with a newline; of PAX headers, too. */
static char *member_names(const struct strbuf *tar)
{
	struct strbuf names = {0};

	for (size_t at = 0; at + 1024 < tar->len;) {
		const char *b = tar->data + at;
		strbuf_printf(&names, "%c %.100s\n", b[156], b);
		at += 512 + (octal(b + 124) + 511) / 512 * 512;
	}
	return strbuf_finish(&names);
}

static void layers_have_marks_and_whole_seconds(void **state)
{
	const struct attr file = {.type = NODE_FILE, .mode = 0640, .mtime_s = 3000, .mtime_ns = 7};
	const struct attr opaque = {
		.type = NODE_DIR, .mode = 0700, .is_opaque = true, .mtime_s = 1000};
	const struct attr gone = {.type = NODE_WHITEOUT};
	const struct tar_layer layer = {.has_epoch = true, .epoch = 2000}, as_is = {0};
	const struct tar_layer with_xattrs = {.all_xattrs = true};
	scoped(strbuf_free) struct strbuf tar = {0}, other = {0};
	scoped(tree_unref) struct tree *t = NULL;
	char deep[160];

	memset(deep, 'n', sizeof(deep));
	memcpy(deep, "o/", 2);
	deep[80] = '/';
	deep[150] = '\0';
	assert_int_equal(memtree_new(&t), 0);
	assert_int_equal(memtree_add(t, "a", &file, "x", 1), 0);
	assert_int_equal(memtree_add(t, "b", &gone, NULL, 0), 0);
	assert_int_equal(memtree_add(t, "o", &opaque, NULL, 0), 0);
	assert_int_equal(memtree_add(t, "o/gone", &gone, NULL, 0), 0);
	assert_int_equal(memtree_add(t, deep, &file, "", 0), 0);
	assert_int_equal(memtree_xattr(t, "a", "user.note", "v", 1), 0);
	assert_int_equal(tar_write_layer(t, &layer, to_strbuf, &tar, NULL), 0);
	scoped(free) char *names = member_names(&tar);
	/* A long name is a record, never split; the xattr is dropped. */
	assert_true(str_starts(names, "0 a\n0 .wh.b\n5 o/\n0 o/.wh..wh..opq\n0 o/.wh.gone\n"));
	assert_non_null(strstr(names, "\nx o/"));
	assert_int_equal(octal(tar.data + 136), 2000); /* of a: the epoch */
	assert_int_equal(octal(tar.data + 1024 + 100), 0);
	assert_int_equal(octal(tar.data + 1024 + 136), 0);
	assert_int_equal(octal(tar.data + 1536 + 136), 1000);
	assert_int_equal(tar_write_layer(t, &as_is, to_strbuf, &other, NULL), 0);
	assert_int_equal(octal(other.data + 136), 3000);
	strbuf_clear(&other);
	assert_int_equal(tar_write_layer(t, &with_xattrs, to_strbuf, &other, NULL), 0);
	assert_int_equal(other.data[156], 'x');
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_tars_come_out_as_they_were),
		cmocka_unit_test(a_name_of_100_bytes_needs_no_split_and_one_of_101_does),
		cmocka_unit_test(what_cannot_be_split_gets_a_pax_header_cut_to_100),
		cmocka_unit_test(names_are_ascii_in_headers_and_whole_in_records),
		cmocka_unit_test(numbers_too_large_for_octal_become_records),
		cmocka_unit_test(times_with_fractions_or_before_1970_become_records),
		cmocka_unit_test(a_record_counts_its_own_length),
		cmocka_unit_test(records_are_sorted_and_binary_values_kept),
		cmocka_unit_test(an_xattr_that_a_record_cannot_name_is_an_error),
		cmocka_unit_test(further_names_are_links_to_the_first),
		cmocka_unit_test(a_prefix_names_the_folder_itself_too),
		cmocka_unit_test(an_error_of_the_writer_ends_it),
		cmocka_unit_test(other_tars_read_it),
		cmocka_unit_test(layers_have_marks_and_whole_seconds),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
