/* SPDX-License-Identifier: Apache-2.0 */

/* tar: what is read from a stream, an archive file and memory. Tars are made here byte by byte,
 * except for sparse ones, which GNU tar made. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <unistd.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

/* ------------------------------------------------------------------ making tars */

static void put_number(char *field, size_t n, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%0*llo", (int)n - 1, (unsigned long long)value);
	memcpy(field, text, n);
}

static void seal_header(char *h)
{
	unsigned sum = 0;

	memset(h + 148, ' ', 8);
	for (int i = 0; i < 512; i++)
		sum += (uint8_t)h[i];
	snprintf(h + 148, 8, "%06o", sum);
}

static void put_header(struct strbuf *s, char type, const char *name, const char *link, size_t size)
{
	char h[512] = {0};

	memcpy(h, name, MIN(strlen(name), (size_t)100));
	put_number(h + 100, 8, 0640);
	put_number(h + 108, 8, 1000);
	put_number(h + 116, 8, 1001);
	put_number(h + 124, 12, size);
	put_number(h + 136, 12, 1700000000);
	h[156] = type;
	if (link)
		memcpy(h + 157, link, MIN(strlen(link), (size_t)100));
	memcpy(h + 257, "ustar\00000", 8);
	put_number(h + 329, 8, 7);
	put_number(h + 337, 8, 300);
	seal_header(h);
	strbuf_add(s, h, sizeof(h));
}

static void put_data(struct strbuf *s, const void *data, size_t n)
{
	static const char zeros[512];

	strbuf_add(s, data, n);
	strbuf_add(s, zeros, -n % 512);
}

static void put(struct strbuf *s, char type, const char *name, const char *link, const char *data)
{
	put_header(s, type, name, link, strlen(data));
	put_data(s, data, strlen(data));
}

static void add_record(struct strbuf *records, const char *key, const void *value, size_t len)
{
	size_t n = strlen(key) + len + 3, total = n + 1;
	char digits[20];

	while (total != n + (size_t)snprintf(digits, sizeof(digits), "%zu", total))
		total++;
	strbuf_printf(records, "%zu %s=", total, key);
	strbuf_add(records, value, len);
	strbuf_putc(records, '\n');
}

/* A PAX header for the entry that follows. */
static void put_pax(struct strbuf *s, const char *key, const void *value, size_t len)
{
	struct strbuf records = {0};

	add_record(&records, key, value, len);
	put_header(s, 'x', "pax", NULL, records.len);
	put_data(s, records.data, records.len);
	strbuf_free(&records);
}

static void put_end(struct strbuf *s)
{
	static const char zeros[1024];

	strbuf_add(s, zeros, sizeof(zeros));
}

/* ------------------------------------------------------------------ reading them */

struct feed {
	const char *bytes;
	size_t n, step;
	int fail_at; /* number of calls before it fails; 0 = never */
	int n_calls;
};

static int feed_next(void *arg, const void **bytes, size_t *n, struct err *err)
{
	struct feed *f = arg;

	if (f->fail_at && ++f->n_calls == f->fail_at)
		return err_set(err, -ETIMEDOUT, "the line is cut");
	if (!f->n)
		return 0;
	*bytes = f->bytes;
	*n = MIN(f->step, f->n);
	f->bytes += *n;
	f->n -= *n;
	return 1;
}

struct made {
	struct strbuf tar;
	void *bytes;
	struct index *x;
};

static void made_free(struct made *m)
{
	index_free(m->x);
	free(m->bytes);
	strbuf_free(&m->tar);
}

static int try_read(struct made *m, size_t step, struct err *err)
{
	struct feed f = {.bytes = m->tar.data, .n = m->tar.len, .step = step};
	struct index_builder *b = index_builder_new(false);
	const struct index_about about = {0};
	size_t n;
	int r = tar_index(b, feed_next, &f, err);

	if (r == 0) {
		assert_int_equal(f.n, 0);
		assert_int_equal(index_builder_finish(b, &about, false, &m->bytes, &n, NULL), 0);
		assert_int_equal(index_parse(&m->x, m->bytes, n, NULL), 0);
	}
	index_builder_free(b);
	return r;
}

static struct made read_tar(struct strbuf *tar)
{
	struct made m = {.tar = *tar};

	assert_int_equal(try_read(&m, 1000, NULL), 0);
	return m;
}

static uint32_t find(const struct made *m, const char *name)
{
	uint32_t entry = 0;

	if (index_find(m->x, 0, name, strlen(name), &entry) < 0)
		fail_msg("no %s", name);
	return entry;
}

static struct attr attr_of(const struct made *m, const char *name)
{
	struct attr a;

	assert_int_equal(index_attr(m->x, find(m, name), &a), 0);
	return a;
}

/* Puts a file together from the tar, as reading the layer would. */
static void expect_content(const struct made *m, const char *name, const void *wanted, size_t n)
{
	struct index_content c;
	struct index_extent e;
	struct digest have, is;
	uint32_t entry = find(m, name);
	uint8_t *content = calloc(1, n + 1);

	assert_int_equal(index_content(m->x, entry, &c), 0);
	assert_int_equal(c.size, n);
	for (uint32_t i = 0; i < c.n_extents; i++) {
		assert_int_equal(index_extent_at(&c, i, &e), 0);
		assert_true(e.plain_off + e.len <= m->tar.len);
		memcpy(content + e.file_off, m->tar.data + e.plain_off, e.len);
	}
	assert_memory_equal(content, wanted, n);
	if (index_digest(m->x, entry, &have) == 0) {
		digest_bytes(&is, wanted, n);
		assert_true(digest_equal(&have, &is));
	} else {
		assert_true(c.is_sparse);
	}
	free(content);
}

/* ------------------------------------------------------------------ tests */

static void files_lie_where_the_index_says(void **state)
{
	static const size_t steps[] = {1, 7, 511, 512, 513, 4096, 1 << 20};

	for (size_t i = 0; i < countof(steps); i++) {
		struct made m = {0};
		char big[5000];
		memset(big, 'b', sizeof(big));
		put(&m.tar, '0', "one", NULL, "1");
		put(&m.tar, '5', "dir/", NULL, "");
		put(&m.tar, '0', "empty", NULL, "");
		put_header(&m.tar, '0', "big", NULL, sizeof(big));
		put_data(&m.tar, big, sizeof(big));
		put(&m.tar, '7', "last", NULL, "contiguous");
		put_end(&m.tar);
		assert_int_equal(try_read(&m, steps[i], NULL), 0);
		expect_content(&m, "one", "1", 1);
		expect_content(&m, "empty", "", 0);
		expect_content(&m, "big", big, sizeof(big));
		expect_content(&m, "last", "contiguous", 10);
		assert_int_equal(attr_of(&m, "dir").type, NODE_DIR);
		made_free(&m);
	}
}

static void metadata_comes_from_the_header(void **state)
{
	struct strbuf s = {0};

	put(&s, '0', "f", NULL, "x");
	put(&s, '2', "sl", "some/target", "");
	put(&s, '1', "hl", "f", "");
	put(&s, '3', "char", NULL, "");
	put(&s, '4', "block", NULL, "");
	put(&s, '6', "fifo", NULL, "");
	put_end(&s);
	struct made m = read_tar(&s);
	struct attr a = attr_of(&m, "f");
	assert_int_equal(a.mode, 0640);
	assert_int_equal(a.uid, 1000);
	assert_int_equal(a.gid, 1001);
	assert_int_equal(a.mtime_s, 1700000000);
	assert_int_equal(a.nlink, 2);
	assert_int_equal(attr_of(&m, "hl").id, a.id);
	a = attr_of(&m, "sl");
	assert_int_equal(a.type, NODE_SYMLINK);
	assert_int_equal(a.size, 11);
	a = attr_of(&m, "char");
	assert_int_equal(a.type, NODE_CHAR);
	assert_int_equal(a.dev_major, 7);
	assert_int_equal(a.dev_minor, 300);
	assert_int_equal(attr_of(&m, "block").type, NODE_BLOCK);
	assert_int_equal(attr_of(&m, "fifo").type, NODE_FIFO);
	made_free(&m);
}

static void expect_time(const char *text, int64_t s, uint32_t ns)
{
	struct strbuf tar = {0};

	put_pax(&tar, "mtime", text, strlen(text));
	put(&tar, '0', "f", NULL, "");
	put_end(&tar);
	struct made m = read_tar(&tar);
	assert_int_equal(attr_of(&m, "f").mtime_s, s);
	assert_int_equal(attr_of(&m, "f").mtime_ns, ns);
	made_free(&m);
}

static void times_keep_their_nanoseconds(void **state)
{
	expect_time("1700000000.123456789", 1700000000, 123456789);
	expect_time("5", 5, 0);
	expect_time("-1.25", -2, 750000000);
	expect_time("-7", -7, 0);
}

static void names_are_bytes_in_any_locale(void **state)
{
	static const char *const names[] = {
		"e\xcc\x81 not composed", "\xc3\xa9 composed",
		"\xff\xfe not UTF-8",	  "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab",
		"line\nfeed \"<&>",
	};
	char *before = strdup(setlocale(LC_ALL, NULL));

	assert_non_null(setlocale(LC_ALL, "C.UTF-8"));
	for (size_t i = 0; i < countof(names); i++) {
		struct strbuf s = {0};
		const char *text;
		char tail[20];
		size_t len;
		/* The name itself makes the entry longer than fits into a header. */
		put_pax(&s, "path", names[i], strlen(names[i]));
		put(&s, '0', "short", NULL, "x");
		put_pax(&s, "linkpath", names[i], strlen(names[i]));
		snprintf(tail, sizeof(tail), "link%zu", i);
		put(&s, '2', tail, "short", "");
		put(&s, '0', "in the header \xff\xc3\xa9", NULL, "x");
		put_end(&s);
		struct made m = read_tar(&s);
		find(&m, names[i]);
		find(&m, "in the header \xff\xc3\xa9");
		assert_int_equal(index_target(m.x, find(&m, tail), &text, &len), 0);
		assert_int_equal(len, strlen(names[i]));
		assert_memory_equal(text, names[i], len);
		made_free(&m);
	}
	setlocale(LC_ALL, before);
	free(before);
}

static int print_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct strbuf *s = arg;

	strbuf_printf(s, "%s=", name);
	for (size_t i = 0; i < len; i++)
		strbuf_printf(s, "%02x", ((const uint8_t *)value)[i]);
	strbuf_putc(s, ' ');
	return 0;
}

static void xattrs_are_bytes(void **state)
{
	struct strbuf s = {0}, records = {0}, text = {0};

	add_record(&records, "SCHILY.xattr.user.bin", "a\0\n=\xff", 5);
	add_record(&records, "SCHILY.xattr.security.capability", "\1\0", 2);
	add_record(&records, "SCHILY.xattr.trusted.overlay.opaque", "y", 1);
	add_record(&records, "LIBARCHIVE.xattr.user.a%20b", "AAEC", 4);
	put_header(&s, 'x', "pax", NULL, records.len);
	put_data(&s, records.data, records.len);
	put(&s, '0', "f", NULL, "");
	put_end(&s);
	struct made m = read_tar(&s);
	assert_int_equal(index_xattrs(m.x, find(&m, "f"), print_xattr, &text), 0);
	assert_string_equal(text.data,
			    "security.capability=0100 user.a b=000102 user.bin=61000a3dff ");
	strbuf_free(&text);
	strbuf_free(&records);
	made_free(&m);
}

static void sparse_files_of_every_kind_are_read(void **state)
{
	static const char *const files[] = {"sparse-gnu.tar", "sparse-0.0.tar", "sparse-0.1.tar",
					    "sparse-1.0.tar"};
	static char wanted[150000], hole[70000];

	memcpy(wanted + 10000, "hello", 5);
	memcpy(wanted + 140000, "world", 5);
	for (size_t i = 0; i < countof(files); i++) {
		struct made m = {0};
		char path[300];
		snprintf(path, sizeof(path), "%s/fuzz/corpus/tar/%s", getenv("TEST_SOURCE"),
			 files[i]);
		assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &m.tar), 0);
		assert_int_equal(try_read(&m, 512, NULL), 0);
		expect_content(&m, "sp", wanted, sizeof(wanted));
		expect_content(&m, "hole", hole, sizeof(hole));
		assert_true(attr_of(&m, "sp").n_bytes_allocated <= 8192);
		assert_int_equal(attr_of(&m, "hole").n_bytes_allocated, 0);
		made_free(&m);
	}
}

static void what_follows_the_end_is_read_but_not_parsed(void **state)
{
	struct strbuf s = {0};
	char *junk = calloc(1, 300000);

	put(&s, '0', "f", NULL, "x");
	put_end(&s);
	put(&s, '0', "after", NULL, "x");
	strbuf_add(&s, junk, 300000);
	free(junk);
	struct made m = read_tar(&s);
	assert_int_equal(index_count(m.x), 2);
	made_free(&m);
}

static void tars_without_an_end_are_read(void **state)
{
	struct strbuf s = {0};

	put(&s, '0', "f", NULL, "x");
	struct made m = read_tar(&s);
	expect_content(&m, "f", "x", 1);
	made_free(&m);
	s = (struct strbuf){0};
	m = read_tar(&s);
	assert_int_equal(index_count(m.x), 1);
	made_free(&m);
	put_end(&s);
	m = read_tar(&s);
	assert_int_equal(index_count(m.x), 1);
	made_free(&m);
}

static void expect_bad(struct strbuf *s, const char *words)
{
	struct made m = {.tar = *s};
	struct err err = {0};

	assert_int_equal(try_read(&m, 512, &err), -EBADMSG);
	if (!strstr(err.text, words))
		fail_msg("\"%s\" does not say \"%s\"", err.text, words);
	made_free(&m);
}

static void what_is_no_tar_is_refused(void **state)
{
	struct strbuf s = {0};

	for (int i = 0; i < 100; i++)
		strbuf_puts(&s, "<html>this is not what you want</html>");
	expect_bad(&s, "tar: ");

	s = (struct strbuf){0};
	put(&s, '0', "f", NULL, "content of a file");
	s.len = 520;
	expect_bad(&s, "tar: ");

	s = (struct strbuf){0};
	put(&s, '0', "f", NULL, "x");
	put(&s, '0', "g", NULL, "x");
	s.data[1024 + 10] ^= 1;
	expect_bad(&s, "tar: ");

	s = (struct strbuf){0};
	put(&s, '0', "f", NULL, "x");
	put(&s, 'Z', "odd", NULL, "x");
	put_end(&s);
	expect_bad(&s, "unknown type 0x5a");

	s = (struct strbuf){0};
	put_pax(&s, "uid", "4294967296", 10);
	put(&s, '0', "f", NULL, "x");
	put_end(&s);
	expect_bad(&s, "owner out of range");
}

static void an_unknown_type_is_seen_at_any_step(void **state)
{
	for (size_t step = 1; step < 1600; step += 13) {
		struct made m = {0};
		put(&m.tar, '0', "f", NULL, "x");
		put_pax(&m.tar, "mtime", "1", 1);
		put(&m.tar, 'Z', "odd", NULL, "x");
		put(&m.tar, '0', "g", NULL, "x");
		put_end(&m.tar);
		assert_int_equal(try_read(&m, step, NULL), -EBADMSG);
		made_free(&m);
	}
}

static void failures_of_the_stream_are_told_as_they_are(void **state)
{
	struct strbuf s = {0};

	put(&s, '0', "f", NULL, "x");
	put_end(&s);
	for (int i = 1; i <= 4; i++) {
		struct feed f = {.bytes = s.data, .n = s.len, .step = 700, .fail_at = i};
		struct index_builder *b = index_builder_new(false);
		struct err err = {0};
		assert_int_equal(tar_index(b, feed_next, &f, &err), -ETIMEDOUT);
		assert_string_equal(err.text, "the line is cut");
		index_builder_free(b);
	}
	strbuf_free(&s);
}

static int print_member(void *arg, const struct tar_member *m)
{
	strbuf_printf(arg, "%s%s%s:%llu+%llu%s ", m->name, m->link ? "->" : "",
		      m->link ? m->link : "", (unsigned long long)m->off,
		      (unsigned long long)m->size, m->is_file ? "" : "!");
	return 0;
}

static int stop(void *arg, const struct tar_member *m)
{
	return 42;
}

static void members_of_an_archive_file_are_found(void **state)
{
	struct strbuf s = {0}, text = {0};
	char path[] = "/tmp/test-tar-XXXXXX";
	char *big = calloc(1, 3 << 20);
	int fd = mkstemp(path);

	put(&s, '5', "./", NULL, "");
	put(&s, '5', "./blobs/", NULL, "");
	put_header(&s, '0', "./blobs/big", NULL, 3 << 20);
	put_data(&s, big, 3 << 20);
	put(&s, '2', "abc/layer.tar", "../x/layer.tar", "");
	put(&s, '1', "hard", "./blobs/big", "");
	put(&s, '0', "manifest.json", NULL, "[]");
	put_end(&s);
	assert_int_equal(write_full(fd, s.data, s.len), 0);
	/* wherever the descriptor stands, and however often */
	for (int i = 0; i < 2; i++) {
		strbuf_clear(&text);
		assert_int_equal(tar_scan(fd, print_member, &text, NULL), 0);
		assert_string_equal(text.data, "blobs:1024+0! blobs/big:1536+3145728 "
					       "abc/layer.tar->../x/layer.tar:3147776+0! "
					       "hard->blobs/big:3148288+0! "
					       "manifest.json:3148800+2 ");
	}
	assert_int_equal(tar_scan(fd, stop, NULL, NULL), 42);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(pwrite_full(fd, "no tar, but something else", 26, 0), 0);
	assert_int_equal(tar_scan(fd, print_member, &text, NULL), -EBADMSG);
	close(fd);
	unlink(path);
	free(big);
	strbuf_free(&s);
	strbuf_free(&text);
}

static void one_file_is_found_in_memory(void **state)
{
	struct strbuf s = {0};
	const void *content;
	size_t n;

	put(&s, '2', "wanted", "elsewhere", "");
	put(&s, '0', "./wanted", NULL, "content");
	put_end(&s);
	assert_int_equal(tar_find(s.data, s.len, "wanted", &content, &n, NULL), 0);
	assert_int_equal(n, 7);
	assert_memory_equal(content, "content", 7);
	assert_int_equal(tar_find(s.data, s.len, "other", &content, &n, NULL), -ENOENT);
	assert_int_equal(tar_find(s.data, 1024 + 3, "wanted", &content, &n, NULL), -EBADMSG);
	assert_int_equal(tar_find("", 0, "wanted", &content, &n, NULL), -ENOENT);
	strbuf_free(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(files_lie_where_the_index_says),
		cmocka_unit_test(metadata_comes_from_the_header),
		cmocka_unit_test(times_keep_their_nanoseconds),
		cmocka_unit_test(names_are_bytes_in_any_locale),
		cmocka_unit_test(xattrs_are_bytes),
		cmocka_unit_test(sparse_files_of_every_kind_are_read),
		cmocka_unit_test(what_follows_the_end_is_read_but_not_parsed),
		cmocka_unit_test(tars_without_an_end_are_read),
		cmocka_unit_test(what_is_no_tar_is_refused),
		cmocka_unit_test(an_unknown_type_is_seen_at_any_step),
		cmocka_unit_test(failures_of_the_stream_are_told_as_they_are),
		cmocka_unit_test(members_of_an_archive_file_are_found),
		cmocka_unit_test(one_file_is_found_in_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
