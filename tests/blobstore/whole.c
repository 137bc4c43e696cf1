/* SPDX-License-Identifier: Apache-2.0 */

/* whole: blobs that are made, and read from their first byte to their last. */

#include "blobstore/blobstore.h"
#include "tests/test.h"

#define SIZE (9u << 20) /* several pieces */

struct fixture {
	char *root;
	struct store *store;
	uint8_t *bytes;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->root = test_dir();
	f->store = test_store(f->root, 0);
	f->bytes = malloc(SIZE);
	test_fill(f->bytes, SIZE, 1);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	store_close(f->store);
	test_dir_remove(f->root);
	free(f->bytes);
	free(f);
	return 0;
}

static int to_strbuf(void *arg, const void *bytes, size_t n)
{
	strbuf_add(arg, bytes, n);
	return 0;
}

/* Makes a blob of the first @n bytes, given in odd pieces. */
static struct digest make(struct fixture *f, enum plain_format format, int level, size_t n,
			  uint64_t *size)
{
	scoped(blob_draft_free) struct blob_draft *d = NULL;
	struct digest digest, diff_id, plain;
	struct err err = {0};

	assert_int_equal(blob_draft_begin(&d, f->store, format, level, &err), 0);
	for (size_t at = 0; at < n;) {
		size_t piece = MIN(n - at, (size_t)300007);
		assert_int_equal(blob_draft_write(d, f->bytes + at, piece, &err), 0);
		at += piece;
	}
	assert_int_equal(blob_draft_commit(d, &digest, size, &diff_id, &err), 0);
	digest_bytes(&plain, f->bytes, n);
	assert_true(digest_equal(&plain, &diff_id));
	return digest;
}

static void made_blobs_decode_to_what_went_in(void **state)
{
	static const enum plain_format formats[] = {PLAIN_TAR, PLAIN_GZIP, PLAIN_ZSTD};
	static const size_t sizes[] = {0, 1, SIZE};
	struct fixture *f = *state;

	for (size_t i = 0; i < countof(formats) * countof(sizes); i++) {
		enum plain_format format = formats[i / countof(sizes)];
		size_t n = sizes[i % countof(sizes)];
		scoped(strbuf_free) struct strbuf plain = {0}, stored = {0};
		scoped(blob_unref) struct blob *blob = NULL;
		struct digest is;
		struct err err = {0};
		struct desc desc = {0};

		desc.digest = make(f, format, BLOB_LEVEL_DEFAULT, n, &desc.size);
		assert_true(blob_is_kept(f->store, &desc.digest, desc.size));
		assert_false(blob_is_kept(f->store, &desc.digest, desc.size + 1));
		assert_int_equal(blob_open(&blob, f->store, &desc, NULL, &err), 0);
		assert_int_equal(blob_copy_plain(blob, to_strbuf, &plain, &err), 0);
		assert_int_equal(plain.len, n);
		assert_true(n == 0 || memcmp(plain.data, f->bytes, n) == 0);
		assert_int_equal(blob_copy_stored(blob, to_strbuf, &stored, &err), 0);
		digest_bytes(&is, stored.data ? stored.data : "", stored.len);
		assert_true(digest_equal(&is, &desc.digest));
		assert_true(n < SIZE || format == PLAIN_TAR || stored.len < n);
	}
}

static void equal_input_makes_equal_bytes(void **state)
{
	struct fixture *f = *state;
	uint64_t a_size, b_size, c_size;
	struct digest a = make(f, PLAIN_GZIP, BLOB_LEVEL_DEFAULT, SIZE, &a_size);
	struct digest b = make(f, PLAIN_GZIP, 6, SIZE, &b_size);
	struct digest c = make(f, PLAIN_GZIP, 1, SIZE, &c_size);

	assert_true(digest_equal(&a, &b));
	assert_false(digest_equal(&a, &c));
	assert_true(c_size > a_size);
}

/* The remote's bytes are not what the descriptor says. */
static int spoil(void *arg, struct transfer *t, uint8_t *bytes)
{
	if (t->off == 0)
		bytes[0] ^= 1;
	return 0;
}

static void wrong_bytes_are_told_at_the_end(void **state)
{
	struct fixture *f = *state;
	const struct remote_memory_fault fault = {.hook = spoil};
	scoped(remote_unref) struct remote *remote = NULL;
	scoped(blob_unref) struct blob *blob = NULL;
	scoped(strbuf_free) struct strbuf got = {0};
	struct desc desc = {.size = SIZE - 1};
	struct err err = {0};

	assert_int_equal(remote_memory_new(&remote, &fault), 0);
	assert_int_equal(remote_memory_add(remote, f->bytes, SIZE - 1, &desc.digest), 0);
	assert_int_equal(blob_open(&blob, f->store, &desc, remote, &err), 0);
	assert_int_equal(blob_copy_stored(blob, to_strbuf, &got, &err), -EBADMSG);
	assert_int_equal(got.len, SIZE - 1);
}

static int refuse(void *arg, const void *bytes, size_t n)
{
	return -EPIPE;
}

static void a_taker_may_end_it(void **state)
{
	struct fixture *f = *state;
	scoped(blob_unref) struct blob *blob = NULL;
	struct desc desc = {0};
	struct err err = {0};

	desc.digest = make(f, PLAIN_ZSTD, BLOB_LEVEL_DEFAULT, SIZE, &desc.size);
	assert_int_equal(blob_open(&blob, f->store, &desc, NULL, &err), 0);
	assert_int_equal(blob_copy_stored(blob, refuse, NULL, &err), -EPIPE);
	assert_int_equal(blob_copy_plain(blob, refuse, NULL, &err), -EPIPE);
}

/* What was not finished leaves nothing, neither a file nor a charge. */
static void an_unfinished_one_is_gone(void **state)
{
	struct fixture *f = *state;
	struct blob_draft *d;
	uint64_t before, after, bound;

	store_usage(f->store, &before, &bound);
	assert_int_equal(blob_draft_begin(&d, f->store, PLAIN_TAR, BLOB_LEVEL_DEFAULT, NULL), 0);
	assert_int_equal(blob_draft_write(d, f->bytes, SIZE, NULL), 0);
	store_usage(f->store, &after, &bound);
	assert_true(after >= before + SIZE);
	blob_draft_free(d);
	store_usage(f->store, &after, &bound);
	assert_int_equal(after, before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(made_blobs_decode_to_what_went_in),
		cmocka_unit_test(equal_input_makes_equal_bytes),
		cmocka_unit_test(wrong_bytes_are_told_at_the_end),
		cmocka_unit_test(a_taker_may_end_it),
		cmocka_unit_test(an_unfinished_one_is_gone),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
