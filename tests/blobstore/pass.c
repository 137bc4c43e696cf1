/* SPDX-License-Identifier: Apache-2.0 */

/* The one pass over a plain blob: its digest, its restart points, reading by them afterwards. */

#include "tests/test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

#define N_PLAIN (9u << 20)

struct fixture {
	char *dir;
	struct store *store;
	struct remote *remote;
	uint8_t *plain, *stored;
	size_t n_stored;
	struct desc desc;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->dir = test_dir();
	f->store = test_store(f->dir, 0);
	f->plain = malloc(N_PLAIN);
	f->stored = malloc(2 * N_PLAIN);
	test_fill(f->plain, N_PLAIN, 3);
	assert_int_equal(remote_memory_new(&f->remote, NULL), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	store_close(f->store);
	remote_unref(f->remote);
	test_dir_remove(f->dir);
	free(f->plain);
	free(f->stored);
	free(f);
	return 0;
}

static void publish(struct fixture *f)
{
	assert_int_equal(remote_memory_add(f->remote, f->stored, f->n_stored, &f->desc.digest), 0);
	f->desc.size = f->n_stored;
}

static void add_gzip(struct fixture *f, size_t from, size_t n, int level, bool has_name)
{
	z_stream z = {0};
	gz_header header = {.name = (Bytef *)"a name", .comment = (Bytef *)"said", .hcrc = 1};

	deflateInit2(&z, level, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY);
	if (has_name)
		deflateSetHeader(&z, &header);
	z.next_in = f->plain + from;
	z.avail_in = (uInt)n;
	z.next_out = f->stored + f->n_stored;
	z.avail_out = N_PLAIN + N_PLAIN / 2;
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	f->n_stored += z.total_out;
	deflateEnd(&z);
}

static void add_zstd(struct fixture *f, size_t from, size_t n)
{
	size_t r = ZSTD_compress(f->stored + f->n_stored, N_PLAIN, f->plain + from, n, 3);

	assert_false(ZSTD_isError(r));
	f->n_stored += r;
}

static int run_pass(struct fixture *f, struct blob **blob, struct pass_result *result,
		    struct err *err)
{
	struct blob_pass *pass = NULL;
	const void *bytes;
	size_t n, total = 0;

	assert_int_equal(blob_open(blob, f->store, &f->desc, f->remote, NULL), 0);
	int r = blob_pass_begin(&pass, *blob, err);
	if (r == 0)
		while ((r = blob_pass_next(pass, &bytes, &n, err)) == 1) {
			assert_true(total + n <= N_PLAIN);
			assert_memory_equal(bytes, f->plain + total, n);
			total += n;
		}
	if (r == 0)
		r = blob_pass_finish(pass, "key", result, err);
	if (r == 0)
		assert_int_equal(total, result->plain_size);
	blob_pass_free(pass);
	return r;
}

static int64_t read_range(struct blob *blob, uint64_t off, void *dst, size_t len)
{
	struct test_wait w = TEST_WAIT;

	return test_wait_for(&w, blob_read(blob, off, dst, len, test_wait_done, &w, NULL));
}

static void read_randomly(struct fixture *f, struct blob *blob, size_t n_plain)
{
	uint8_t *bytes = malloc(200000);

	srand(11);
	for (int i = 0; i < 120; i++) {
		uint64_t off = (uint64_t)rand() % n_plain;
		size_t len = MIN((size_t)rand() % 200000, n_plain - off);
		assert_int_equal(read_range(blob, off, bytes, len), len);
		assert_memory_equal(bytes, f->plain + off, len);
	}
	free(bytes);
}

/* Passes, reads at random, drops the blob so that only the index is left, reads again by ranges. */
static void check_blob(struct fixture *f, enum plain_format format, size_t n_plain,
		       bool is_reframed)
{
	struct pass_result result = {0};
	struct blob *blob = NULL;
	struct digest diff_id;
	struct err err = {0};

	publish(f);
	int r = run_pass(f, &blob, &result, &err);
	if (r < 0)
		fail_msg("%s", err_text(&err, r));
	digest_bytes(&diff_id, f->plain, n_plain);
	assert_true(digest_equal(&diff_id, &result.diff_id));
	assert_int_equal(result.plain_size, n_plain);
	assert_int_equal(result.format, format);
	struct blob_usage usage;
	blob_usage(blob, &usage);
	assert_true(usage.is_complete);
	read_randomly(f, blob, n_plain);
	blob_unref(blob);

	char hex[DIGEST_HEX_MAX];
	char *path = str_printf("%s/blobs/sha256/%s", f->dir, digest_hex(&f->desc.digest, hex));
	assert_int_equal(unlink(path), 0);
	free(path);
	store_close(f->store);
	f->store = test_store(f->dir, 0);
	struct span_table *table = NULL;
	assert_int_equal(span_table_open(&table, f->store, "key", NULL), 0);
	assert_int_equal(span_table_is_reframed(table), is_reframed);
	assert_int_equal(blob_open(&blob, f->store, &f->desc, f->remote, NULL), 0);
	assert_int_equal(blob_set_spans(blob, table, "key", NULL), 0);
	span_table_unref(table);
	read_randomly(f, blob, n_plain);
	blob_usage(blob, &usage);
	assert_false(usage.is_complete);
	if (!is_reframed)
		assert_in_range(usage.fetched, 1, f->n_stored + f->n_stored / 10);
	blob_unref(blob);
}

static void a_gzip_stream_gets_checkpoints(void **state)
{
	struct fixture *f = *state;

	add_gzip(f, 0, N_PLAIN, 6, false);
	check_blob(f, PLAIN_GZIP, N_PLAIN, false);
}

static void members_with_headers_and_padding_are_one_stream(void **state)
{
	struct fixture *f = *state;
	size_t at = 0, piece = 1;

	for (int i = 0; at + piece < N_PLAIN && i < 60;
	     i++, at += piece, piece = piece * 7 % 900001 + 1)
		add_gzip(f, at, piece, 1 + i % 9, i % 3 == 0);
	add_gzip(f, at, 0, 6, true);
	memset(f->stored + f->n_stored, 0, 700);
	f->n_stored += 700;
	check_blob(f, PLAIN_GZIP, at, false);
}

static void stored_blocks_are_fine(void **state)
{
	struct fixture *f = *state;

	add_gzip(f, 0, N_PLAIN, 0, false);
	check_blob(f, PLAIN_GZIP, N_PLAIN, false);
}

static void a_single_zstd_frame_is_reframed_when_long(void **state)
{
	struct fixture *f = *state;

	free(f->plain);
	f->plain = calloc(1, 20u << 20);
	test_fill(f->plain, N_PLAIN, 5);
	size_t r = ZSTD_compress(f->stored, 2 * N_PLAIN, f->plain, 20u << 20, 3);
	assert_false(ZSTD_isError(r));
	f->n_stored = r;
	publish(f);

	struct blob *blob = NULL;
	struct blob_pass *pass = NULL;
	struct pass_result result;
	const void *bytes;
	size_t n;
	assert_int_equal(blob_open(&blob, f->store, &f->desc, f->remote, NULL), 0);
	assert_int_equal(blob_pass_begin(&pass, blob, NULL), 0);
	while (blob_pass_next(pass, &bytes, &n, NULL) == 1)
		;
	assert_int_equal(blob_pass_finish(pass, "key", &result, NULL), 0);
	blob_pass_free(pass);
	assert_int_equal(result.plain_size, 20u << 20);
	read_randomly(f, blob, 20u << 20);
	blob_unref(blob);
	struct span_table *table = NULL;
	assert_int_equal(span_table_open(&table, f->store, "key", NULL), 0);
	assert_true(span_table_is_reframed(table));
	assert_int_equal(span_table_count(table), 20);
	span_table_unref(table);
}

static void zstd_frames_are_spans(void **state)
{
	struct fixture *f = *state;
	static const uint8_t skippable[] = {0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'};

	for (size_t at = 0; at < N_PLAIN; at += N_PLAIN / 16) {
		add_zstd(f, at, N_PLAIN / 16);
		memcpy(f->stored + f->n_stored, skippable, sizeof(skippable));
		f->n_stored += sizeof(skippable);
	}
	check_blob(f, PLAIN_ZSTD, N_PLAIN, false);
}

static void a_plain_tar_is_cut_into_blocks(void **state)
{
	struct fixture *f = *state;

	memcpy(f->stored, f->plain, N_PLAIN);
	f->n_stored = N_PLAIN;
	check_blob(f, PLAIN_TAR, N_PLAIN, false);
}

static void an_empty_blob_is_an_empty_stream(void **state)
{
	struct fixture *f = *state;
	struct pass_result result;
	struct blob *blob = NULL;

	publish(f);
	assert_int_equal(run_pass(f, &blob, &result, NULL), 0);
	assert_int_equal(result.plain_size, 0);
	blob_unref(blob);
}

static void a_wrong_digest_is_refused_and_nothing_kept(void **state)
{
	struct fixture *f = *state;
	struct pass_result result;
	struct blob *blob = NULL;
	struct span_table *table;
	struct err err = {0};
	struct stat st;
	char hex[DIGEST_HEX_MAX];

	add_gzip(f, 0, 100000, 6, false);
	/* A layout whose file is not what its name says. */
	char *dir = test_dir();
	digest_bytes(&f->desc.digest, "something else", 14);
	f->desc.size = f->n_stored;
	char *blobs = str_printf("%s/blobs/sha256", dir);
	assert_int_equal(make_dirs(blobs, 0755), 0);
	char *path = str_printf("%s/%s", blobs, digest_hex(&f->desc.digest, hex));
	int fd = open(path, O_WRONLY | O_CREAT, 0644);
	assert_int_equal(write_full(fd, f->stored, f->n_stored), 0);
	close(fd);
	remote_unref(f->remote);
	assert_int_equal(remote_layout_new(&f->remote, dir, NULL), 0);

	assert_int_equal(run_pass(f, &blob, &result, &err), -EBADMSG);
	assert_non_null(strstr(err.text, hex));
	assert_int_equal(span_table_open(&table, f->store, "key", NULL), -ENOENT);
	assert_int_equal(stat(path, &st), 0); /* not ours to remove */
	blob_unref(blob);
	free(path);
	free(blobs);
	test_dir_remove(dir);
}

static void write_stream(struct fixture *f, size_t n, bool is_damaged)
{
	char hex[DIGEST_HEX_MAX];
	char *path = str_printf("%s/partial/%s.stream", f->dir, digest_hex(&f->desc.digest, hex));
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (is_damaged)
		f->stored[20] ^= 1;
	assert_int_equal(write_full(fd, f->stored, n), 0);
	if (is_damaged)
		f->stored[20] ^= 1;
	close(fd);
	free(path);
}

static void a_pass_goes_on_where_the_last_one_stopped(void **state)
{
	struct fixture *f = *state;
	struct pass_result result;
	struct blob *blob = NULL;

	add_gzip(f, 0, N_PLAIN, 6, false);
	publish(f);
	write_stream(f, f->n_stored / 3, false);
	assert_int_equal(run_pass(f, &blob, &result, NULL), 0);
	struct blob_usage usage;
	blob_usage(blob, &usage);
	assert_int_equal(usage.fetched, f->n_stored - f->n_stored / 3);
	blob_unref(blob);
}

static void a_damaged_beginning_is_fetched_anew(void **state)
{
	struct fixture *f = *state;
	struct pass_result result;
	struct blob *blob = NULL;
	struct err err = {0};

	memcpy(f->stored, f->plain, 1000000);
	f->n_stored = 1000000;
	publish(f);
	write_stream(f, 5000, true);
	f->plain[20] ^= 1; /* what the damaged stream gives first */
	assert_int_equal(run_pass(f, &blob, &result, &err), -EAGAIN);
	blob_unref(blob);
	f->plain[20] ^= 1;
	assert_int_equal(run_pass(f, &blob, &result, &err), 0);
	blob_unref(blob);
}

static void a_stream_that_ends_too_early_is_refused(void **state)
{
	struct fixture *f = *state;
	struct pass_result result;
	struct blob *blob = NULL;

	add_gzip(f, 0, 300000, 6, false);
	f->n_stored -= 100;
	publish(f);
	assert_int_equal(run_pass(f, &blob, &result, NULL), -EBADMSG);
	blob_unref(blob);
	f->n_stored = 0;
	add_zstd(f, 0, 300000);
	f->n_stored -= 10;
	publish(f);
	assert_int_equal(run_pass(f, &blob, &result, NULL), -EBADMSG);
	blob_unref(blob);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(a_gzip_stream_gets_checkpoints),
		T(members_with_headers_and_padding_are_one_stream),
		T(stored_blocks_are_fine),
		T(a_single_zstd_frame_is_reframed_when_long),
		T(zstd_frames_are_spans),
		T(a_plain_tar_is_cut_into_blocks),
		T(an_empty_blob_is_an_empty_stream),
		T(a_wrong_digest_is_refused_and_nothing_kept),
		T(a_pass_goes_on_where_the_last_one_stopped),
		T(a_damaged_beginning_is_fetched_anew),
		T(a_stream_that_ends_too_early_is_refused),
	};

	log_max = LOG_ERROR;
	return cmocka_run_group_tests_name("pass", tests, NULL, NULL);
}
