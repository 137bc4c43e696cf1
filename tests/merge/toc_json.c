/* SPDX-License-Identifier: Apache-2.0 */

/* toc_json: footers, and tables of contents good and bad. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

/* ------------------------------------------------------------------ the footer */

static size_t make_footer(uint8_t *out, const char *payload, bool has_subfield)
{
	size_t n = strlen(payload), xlen = n + (has_subfield ? 4 : 0), at = 12;

	memcpy(out, "\x1f\x8b\x08\x04\0\0\0\0\0\xff", 10);
	out[10] = (uint8_t)xlen;
	out[11] = 0;
	if (has_subfield) {
		out[at++] = 'S';
		out[at++] = 'G';
		out[at++] = (uint8_t)n;
		out[at++] = 0;
	}
	memcpy(out + at, payload, n);
	at += n;
	memcpy(out + at, "\1\0\0\xff\xff\0\0\0\0\0\0\0\0", 13);
	return at + 13;
}

static void footers_are_told_apart(void **state)
{
	uint8_t tail[200] = {0};
	uint64_t off = 0;

	size_t n = make_footer(tail, "00000000000012abSTARGZ", true);
	assert_int_equal(n, 51);
	assert_int_equal(toc_footer(tail, n, 100000, &off), TOC_ESTARGZ);
	assert_int_equal(off, 0x12ab);

	n = make_footer(tail, "00000000000012ACSTARGZ", false);
	assert_int_equal(n, 47);
	assert_int_equal(toc_footer(tail, n, 100000, &off), TOC_LEGACY);
	assert_int_equal(off, 0x12ac);

	n = make_footer(tail, "STARGZEXTERNALTOC", true);
	assert_int_equal(n, 46);
	assert_int_equal(toc_footer(tail, n, 100000, &off), TOC_EXTERNAL);

	/* what is before it does not matter, and may be the table */
	memset(tail, 0xaa, 100);
	n = 100 + make_footer(tail + 100, "00000000000012abSTARGZ", true);
	assert_int_equal(toc_footer(tail, n, 100000, &off), TOC_ESTARGZ);
	assert_int_equal(toc_footer(tail, n, 0x12ab + 60, &off), TOC_ESTARGZ);
}

static void footers_that_are_none_are_refused(void **state)
{
	uint8_t good[60], tail[60];
	uint64_t off;
	size_t n = make_footer(good, "0000000000001000STARGZ", true);

	assert_int_equal(toc_footer(good, n, 4096 + 52, &off), TOC_ESTARGZ);
	/* the table would be in the footer */
	assert_int_equal(toc_footer(good, n, 4096 + 51, &off), TOC_NONE);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(toc_footer(good + i + 1, n - i - 1, 100000, &off), TOC_NONE);
	for (size_t i = 0; i < n - 13; i++) {
		memcpy(tail, good, n);
		tail[i] = 'z';
		/* flags, time and system may be anything */
		bool may_be = i >= 3 && i < 10;
		enum toc_kind kind = toc_footer(tail, n, 100000, &off);
		if (!may_be && kind != TOC_NONE)
			fail_msg("byte %zu does not matter", i);
	}
}

/* ------------------------------------------------------------------ tables */

struct made {
	void *bytes;
	struct index *x;
	struct span_builder *spans;
	uint64_t prefetch;
};

static void made_free(struct made *m)
{
	index_free(m->x);
	free(m->bytes);
	span_builder_free(m->spans);
}

#define TOC_OFF 100000

static int try_read(const char *json, struct made *m, struct err *err)
{
	struct index_builder *b = index_builder_new(true);
	const struct index_about about = {0};
	size_t n;

	*m = (struct made){.spans = span_builder_new()};
	int r = toc_json(b, m->spans, json, strlen(json), TOC_OFF, &m->prefetch, err);
	if (r == 0)
		r = index_builder_finish(b, &about, true, &m->bytes, &n, err);
	if (r == 0)
		assert_int_equal(index_parse(&m->x, m->bytes, n, NULL), 0);
	index_builder_free(b);
	return r;
}

static struct made read_entries(const char *entries)
{
	struct strbuf json = {0};
	struct err err = {0};
	struct made m;

	strbuf_printf(&json, "{\n\t\"version\": 1,\n\t\"entries\": [%s]\n}", entries);
	if (try_read(json.data, &m, &err) < 0)
		fail_msg("%s", err.text);
	strbuf_free(&json);
	return m;
}

static struct attr attr_of(const struct made *m, const char *name, uint32_t *entry)
{
	struct attr a;

	if (index_find(m->x, 0, name, strlen(name), entry) < 0)
		fail_msg("no %s", name);
	assert_int_equal(index_attr(m->x, *entry, &a), 0);
	return a;
}

/* sha256 of "" */
#define DIGEST "\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\""

static void entries_of_all_types_are_read(void **state)
{
	struct made m = read_entries(
		"{\"name\": \"d/\", \"type\": \"dir\", \"mode\": 16877, \"uid\": 5, \"gid\": 6,"
		" \"modtime\": \"2024-01-02T03:04:05Z\", \"NumLink\": 0},"
		"{\"name\": \"./f\", \"type\": \"reg\", \"size\": 3, \"offset\": 100, \"mode\": "
		"2541,"
		" \"chunkDigest\": " DIGEST ", \"modtime\": \"1969-12-31T23:59:59.25Z\"},"
		"{\"name\": \"e\", \"type\": \"reg\", \"mode\": 384},"
		"{\"name\": \"l\", \"type\": \"symlink\", \"linkName\": \"../x\", \"mode\": 511},"
		"{\"name\": \"h\", \"type\": \"hardlink\", \"linkName\": \"f\"},"
		"{\"name\": \"c\", \"type\": \"char\", \"devMajor\": 1, \"devMinor\": 3},"
		"{\"name\": \"b\", \"type\": \"block\", \"devMajor\": 7, \"devMinor\": 300},"
		"{\"name\": \"p\", \"type\": \"fifo\"}");
	uint32_t e;
	struct attr a = attr_of(&m, "d", &e);

	assert_int_equal(a.mode, 0755);
	assert_int_equal(a.uid, 5);
	assert_int_equal(a.gid, 6);
	assert_int_equal(a.mtime_s, 1704164645);
	a = attr_of(&m, "f", &e);
	assert_int_equal(a.mode, 04755);
	assert_int_equal(a.size, 3);
	assert_int_equal(a.nlink, 2);
	assert_int_equal(a.mtime_s, -1);
	assert_int_equal(a.mtime_ns, 250000000);
	assert_int_equal(attr_of(&m, "h", &e).id, a.id);
	assert_int_equal(attr_of(&m, "e", &e).mtime_s, 0);
	assert_int_equal(attr_of(&m, "l", &e).size, 4);
	assert_int_equal(attr_of(&m, "c", &e).dev_minor, 3);
	assert_int_equal(attr_of(&m, "b", &e).type, NODE_BLOCK);
	assert_int_equal(attr_of(&m, "p", &e).type, NODE_FIFO);
	made_free(&m);
}

static int sum_xattr(void *arg, const char *name, const void *value, size_t len)
{
	strbuf_printf(arg, "%s:%zu ", name, len);
	return 0;
}

static void xattrs_are_base64(void **state)
{
	struct made m = read_entries("{\"name\": \"f\", \"type\": \"reg\", \"xattrs\":"
				     " {\"user.b\": \"AAEC\", \"user.a\": null,"
				     " \"trusted.overlay.opaque\": \"eQ==\"}}");
	struct strbuf text = {0};
	uint32_t e;

	attr_of(&m, "f", &e);
	assert_int_equal(index_xattrs(m.x, e, sum_xattr, &text), 0);
	assert_string_equal(text.data, "user.a:0 user.b:3 ");
	strbuf_free(&text);
	made_free(&m);
}

static struct span_table *spans_of(struct made *m, struct store *store)
{
	struct span_table *t;

	assert_int_equal(span_builder_commit(m->spans, store, "key", &t, NULL), 0);
	return t;
}

static struct store *new_store(char *dir)
{
	struct store_options options = {.root = dir};
	struct store *store;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(store_open(&store, &options, NULL), 0);
	return store;
}

static void remove_store(struct store *store, const char *dir)
{
	char command[100];

	store_close(store);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	assert_int_equal(system(command), 0);
}

static void expect_span(const struct span_table *t, size_t i, uint64_t stored_off,
			uint32_t stored_len, uint64_t plain_off, uint32_t plain_len, uint32_t inner)
{
	struct span s;

	assert_int_equal(span_table_get(t, i, &s), 0);
	assert_int_equal(s.kind, SPAN_GZIP);
	assert_int_equal(s.check, SPAN_CHECK_PLAIN);
	assert_int_equal(s.stored_off, stored_off);
	assert_int_equal(s.stored_len, stored_len);
	assert_int_equal(s.plain_off, plain_off);
	assert_int_equal(s.plain_len, plain_len);
	assert_int_equal(s.inner_off, inner);
}

static void chunks_become_spans(void **state)
{
	char dir[] = "/tmp/test-toc-XXXXXX";
	struct store *store = new_store(dir);
	struct made m = read_entries(
		"{\"name\": \"a\", \"type\": \"reg\", \"size\": 10, \"offset\": 100,"
		" \"chunkSize\": 4, \"chunkDigest\": " DIGEST ", \"digest\": " DIGEST "},"
		"{\"name\": \"a\", \"type\": \"chunk\", \"offset\": 200, \"chunkOffset\": 4,"
		" \"chunkSize\": 4, \"chunkDigest\": " DIGEST "},"
		"{\"type\": \"chunk\", \"offset\": 300, \"chunkOffset\": 8, "
		"\"chunkDigest\": " DIGEST "},"
		"{\"name\": \".prefetch.landmark\", \"type\": \"reg\", \"size\": 1, \"offset\": "
		"350,"
		" \"digest\": " DIGEST "},"
		"{\"name\": \"b\", \"type\": \"reg\", \"size\": 5, \"offset\": 400,"
		" \"digest\": " DIGEST "},"
		"{\"name\": \"c\", \"type\": \"reg\", \"size\": 6, \"offset\": 400, "
		"\"innerOffset\":"
		" 1024, \"digest\": " DIGEST "}");
	struct span_table *t = spans_of(&m, store);
	struct index_content c;
	uint32_t e;

	assert_int_equal(span_table_count(t), 6);
	assert_int_equal(span_table_plain_size(t), 22);
	expect_span(t, 0, 100, 100, 0, 4, 0);
	expect_span(t, 1, 200, 100, 4, 4, 0);
	expect_span(t, 2, 300, 50, 8, 2, 0);
	expect_span(t, 3, 350, 50, 10, 1, 0);
	expect_span(t, 4, 400, TOC_OFF - 400, 11, 5, 0);
	expect_span(t, 5, 400, TOC_OFF - 400, 16, 6, 1024);
	assert_int_equal(m.prefetch, 10);
	assert_int_equal(index_count(m.x), 4); /* the landmark is hidden */
	attr_of(&m, "c", &e);
	assert_int_equal(index_content(m.x, e, &c), 0);
	assert_int_equal(c.whole.plain_off, 16);
	span_table_unref(t);
	made_free(&m);
	remove_store(store, dir);
}

static void expect_bad(const char *json, int code, const char *words)
{
	struct err err = {0};
	struct made m;

	if (try_read(json, &m, &err) != code)
		fail_msg("%s gives %d %s", json, err.code, err.text);
	if (!strstr(err.text, words))
		fail_msg("%s: \"%s\" does not say \"%s\"", json, err.text, words);
	made_free(&m);
}

static void expect_bad_entry(const char *entry, int code, const char *words)
{
	struct strbuf json = {0};

	strbuf_printf(&json, "{\"entries\":[%s]}", entry);
	expect_bad(json.data, code, words);
	strbuf_free(&json);
}

static void what_is_no_table_is_refused(void **state)
{
	expect_bad("", -EBADMSG, "no JSON object");
	expect_bad("[]", -EBADMSG, "no JSON object");
	expect_bad("{}", -EBADMSG, "no entries");
	expect_bad("{\"version\":1}", -EBADMSG, "no entries");
	expect_bad("{\"version\":2,\"entries\":[]}", -ENOTSUP, "version");
	expect_bad("{\"entries\":{}}", -EBADMSG, "no array");
	expect_bad("{\"entries\":[]", -EBADMSG, "does not end");
	expect_bad("{\"entries\":[],\"entries\":[]}", -EBADMSG, "twice");
	expect_bad("{\"entries\":[{}", -EBADMSG, "");
	expect_bad("{\"entries\":[{\"name\":\"a\",\"type\":\"dir\"}", -EBADMSG, "do not end");
	expect_bad("{\"entries\":[1]}", -EBADMSG, "no entry");
	expect_bad("{1:2}", -EBADMSG, "no key");
	expect_bad("{\"entries\"}", -EBADMSG, "no value");
	expect_bad("{\"entries\":", -EBADMSG, "no array");
	expect_bad("{\"other\":", -EBADMSG, "cut off");
	expect_bad("{\"other\":\"\xff\",\"entries\":[]}", -EBADMSG, "0xff");
}

static void unknown_members_are_passed_over(void **state)
{
	struct made m;

	assert_int_equal(try_read("{\"a\":{\"entries\":[1]},\"entries\":[],\"b\":[]} ", &m, NULL),
			 0);
	made_free(&m);
}

#define FILE_OF(size, more) "{\"name\":\"f\",\"type\":\"reg\",\"size\":" size "," more "}"

static void entries_that_make_no_sense_are_refused(void **state)
{
	expect_bad_entry("{\"name\":\"a\",\"type\":\"tape\"}", -EBADMSG, "unknown type");
	expect_bad_entry("{\"name\":7,\"type\":\"dir\"}", -EBADMSG, "name");
	expect_bad_entry("{\"name\":\"a\",\"type\":\"dir\",\"uid\":-1}", -EBADMSG, "uid");
	expect_bad_entry("{\"name\":\"a\",\"type\":\"dir\",\"gid\":4294967296}", -EBADMSG, "gid");
	expect_bad_entry("{\"name\":\"a\",\"type\":\"dir\",\"modtime\":\"yesterday\"}", -EBADMSG,
			 "time");
	expect_bad_entry("{\"name\":\"a\",\"type\":\"dir\",\"modtime\":\"2024-01-02T03:04:05\"}",
			 -EBADMSG, "time");
	expect_bad_entry("{\"name\":\"a\",\"type\":\"dir\",\"xattrs\":{\"u\":\"?\"}}", -EBADMSG,
			 "base64");
	expect_bad_entry("{\"name\":\"a\",\"type\":\"dir\",\"xattrs\":[]}", -EBADMSG, "xattrs");
	expect_bad_entry("{\"name\":\"a\",\"type\":\"hardlink\",\"linkName\":\"b\"}", -EBADMSG,
			 "hard link");
	expect_bad_entry(FILE_OF("-1", "\"offset\":1"), -EBADMSG, "size");
	expect_bad_entry(FILE_OF("1.5", "\"offset\":1"), -EBADMSG, "size");
	expect_bad_entry(FILE_OF("5", "\"offset\":100000,\"digest\":" DIGEST), -EBADMSG, "behind");
	expect_bad_entry(FILE_OF("5", "\"offset\":1,\"digest\":\"sha256:12\""), -EINVAL, "");
}

static void chunks_that_do_not_fit_are_refused(void **state)
{
	/* too few, too many, in the wrong place, of nothing */
	expect_bad_entry(FILE_OF("5", "\"offset\":1,\"chunkSize\":4,\"chunkDigest\":" DIGEST),
			 -EBADMSG, "do not cover");
	expect_bad_entry(FILE_OF("5", "\"offset\":1,\"chunkSize\":6,\"chunkDigest\":" DIGEST),
			 -EBADMSG, "out of order");
	expect_bad_entry(FILE_OF("5", "\"offset\":1,\"chunkOffset\":1,\"chunkDigest\":" DIGEST),
			 -EBADMSG, "out of order");
	expect_bad_entry(FILE_OF("5", "\"offset\":1,\"digest\":" DIGEST) ",{\"type\":\"chunk\"}",
			 -EBADMSG, "out of order");
	expect_bad_entry("{\"type\":\"chunk\",\"chunkSize\":1}", -EBADMSG, "out of order");
}

static void what_cannot_be_read_lazily_says_so(void **state)
{
	expect_bad_entry(FILE_OF("5", "\"offset\":1"), -ENOTSUP, "without digest");
	/* the file's digest does not stand in for that of one chunk of several */
	expect_bad_entry(FILE_OF("5", "\"offset\":1,\"chunkSize\":4,\"digest\":" DIGEST), -ENOTSUP,
			 "without digest");
	expect_bad_entry(FILE_OF("67108865", "\"offset\":1,\"digest\":" DIGEST), -ENOTSUP,
			 "64 MiB");
	expect_bad_entry(FILE_OF("5", "\"offset\":1,\"innerOffset\":67108860,\"digest\":" DIGEST),
			 -ENOTSUP, "64 MiB");
}

static void a_large_table_is_read_in_little_time(void **state)
{
	struct strbuf json = {0};
	uint64_t begin = now_ns();
	struct err err = {0};
	struct made m;

	strbuf_puts(&json, "{\"version\":1,\"entries\":[");
	for (int i = 0; i < 100000; i++)
		strbuf_printf(
			&json,
			"%s{\n\t\t\t\"name\": \"usr/lib/dir%d/file%d\",\n\t\t\t\"type\": \"reg\","
			"\n\t\t\t\"size\": 1000,\n\t\t\t\"modtime\": \"2024-01-02T03:04:05Z\","
			"\n\t\t\t\"mode\": 33188,\n\t\t\t\"offset\": %d,\n\t\t\t\"digest\": " DIGEST
			",\n\t\t\t\"chunkDigest\": " DIGEST "\n}",
			i ? "," : "", i / 100, i, i / 2);
	strbuf_puts(&json, "]}");
	if (try_read(json.data, &m, &err) < 0)
		fail_msg("%s", err.text);
	uint64_t ms = (now_ns() - begin) / NS_PER_MS;
	print_message("# %zu MB of JSON in %llu ms\n", json.len >> 20, (unsigned long long)ms);
	assert_int_equal(index_count(m.x), 101003);
	assert_true(ms < 20000);
	strbuf_free(&json);
	made_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(footers_are_told_apart),
		cmocka_unit_test(footers_that_are_none_are_refused),
		cmocka_unit_test(entries_of_all_types_are_read),
		cmocka_unit_test(xattrs_are_base64),
		cmocka_unit_test(chunks_become_spans),
		cmocka_unit_test(what_is_no_table_is_refused),
		cmocka_unit_test(unknown_members_are_passed_over),
		cmocka_unit_test(entries_that_make_no_sense_are_refused),
		cmocka_unit_test(chunks_that_do_not_fit_are_refused),
		cmocka_unit_test(what_cannot_be_read_lazily_says_so),
		cmocka_unit_test(a_large_table_is_read_in_little_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
