/* SPDX-License-Identifier: Apache-2.0 */

/* Reads of a blob by spans: the places bytes come from, and what happens when they are wrong. */

#include "tests/test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <zlib.h>

#define N_MEMBERS 40
#define MEMBER 70000

/* A blob of gzip members, each a span, and the memory remote that has it. */
struct fixture {
	char *dir;
	struct store *store;
	struct remote *remote;
	struct desc desc;
	char key[DIGEST_HEX_MAX]; /* of the span table: the blob's own digest */
	uint8_t *plain;
	size_t n_plain, n_stored;
	struct span spans[N_MEMBERS];
	int n_transfers, n_to_spoil, code_to_fail; /* the hook's */
	uint64_t n_bytes;
};

static int hook(void *arg, struct transfer *t, uint8_t *bytes)
{
	struct fixture *f = arg;

	__atomic_fetch_add(&f->n_transfers, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&f->n_bytes, t->len, __ATOMIC_RELAXED);
	if (f->code_to_fail)
		return f->code_to_fail;
	if (f->n_to_spoil) {
		f->n_to_spoil--;
		bytes[t->len / 2] ^= 0x55;
	}
	return 0;
}

static size_t gzip_member(const uint8_t *in, size_t n, uint8_t *out, size_t max)
{
	z_stream z = {.next_in = (Bytef *)in,
		      .avail_in = (uInt)n,
		      .next_out = out,
		      .avail_out = (uInt)max};

	assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return max - z.avail_out;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	uint8_t *stored = malloc(N_MEMBERS * (MEMBER + 1000));

	f->dir = test_dir();
	f->store = test_store(f->dir, 0);
	f->n_plain = N_MEMBERS * MEMBER;
	f->plain = malloc(f->n_plain);
	test_fill(f->plain, f->n_plain, 1);
	for (int i = 0; i < N_MEMBERS; i++) {
		size_t n = gzip_member(f->plain + i * MEMBER, MEMBER, stored + f->n_stored,
				       MEMBER + 1000);
		f->spans[i] = (struct span){.stored_off = f->n_stored,
					    .plain_off = (uint64_t)i * MEMBER,
					    .stored_len = (uint32_t)n,
					    .plain_len = MEMBER,
					    .kind = SPAN_GZIP};
		digest_bytes(&f->spans[i].digest, f->plain + i * MEMBER, MEMBER);
		f->n_stored += n;
	}
	struct remote_memory_fault fault = {.hook = hook, .arg = f, .delay_ms = 1};
	assert_int_equal(remote_memory_new(&f->remote, &fault), 0);
	assert_int_equal(remote_memory_add(f->remote, stored, f->n_stored, &f->desc.digest), 0);
	f->desc.size = f->n_stored;
	digest_hex(&f->desc.digest, f->key);
	free(stored);
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
	free(f);
	return 0;
}

static struct blob *open_blob(struct fixture *f)
{
	struct span_builder *b = span_builder_new();
	struct span_table *table = NULL;
	struct blob *blob = NULL;

	for (int i = 0; i < N_MEMBERS; i++)
		assert_int_equal(span_builder_add(b, &f->spans[i], NULL), 0);
	assert_int_equal(span_builder_commit(b, f->store, f->key, &table, NULL), 0);
	span_builder_free(b);
	assert_int_equal(blob_open(&blob, f->store, &f->desc, f->remote, NULL), 0);
	assert_int_equal(blob_set_spans(blob, table, f->key, NULL), 0);
	span_table_unref(table);
	return blob;
}

static int64_t read_all(struct blob *blob, uint64_t off, void *dst, size_t len, struct err *err)
{
	struct test_wait w = TEST_WAIT;
	int64_t r = test_wait_for(&w, blob_read(blob, off, dst, len, test_wait_done, &w, &w.err));

	if (err)
		*err = w.err;
	return r;
}

static void expect(struct fixture *f, struct blob *blob, uint64_t off, size_t len)
{
	uint8_t *dst = malloc(len + 1);
	struct err err = {0};
	int64_t r = read_all(blob, off, dst, len, &err);

	if (r != (int64_t)len)
		fail_msg("read %zu at %llu: %lld %s", len, (unsigned long long)off, (long long)r,
			 err_text(&err, (int)r));
	assert_memory_equal(dst, f->plain + off, len);
	free(dst);
}

static void a_read_fetches_only_its_spans_and_only_once(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);

	expect(f, blob, 5 * MEMBER + 100, 1000);
	assert_int_equal(f->n_transfers, 1);
	assert_int_equal(f->n_bytes, f->spans[5].stored_len);
	expect(f, blob, 5 * MEMBER, MEMBER);
	assert_int_equal(f->n_transfers, 1);
	expect(f, blob, 6 * MEMBER - 10, 20);
	assert_int_equal(read_all(blob, f->n_plain, &(char){0}, 1, NULL), -EINVAL);
	assert_int_equal(read_all(blob, UINT64_MAX - 3, &(char){0}, 8, NULL), -EINVAL);
	assert_int_equal(read_all(blob, f->n_plain, &(char){0}, 0, NULL), 0);
	blob_unref(blob);
}

static void any_range_gives_its_bytes(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);

	srand(7);
	for (int i = 0; i < 300; i++) {
		uint64_t off = (uint64_t)rand() % f->n_plain;
		expect(f, blob, off, (size_t)rand() % (f->n_plain - off) % 300000);
	}
	expect(f, blob, 0, f->n_plain);
	blob_unref(blob);
}

static void reading_through_takes_few_requests(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);

	for (uint64_t off = 0; off < f->n_plain; off += MEMBER / 2)
		expect(f, blob, off, MEMBER / 2);
	assert_in_range(f->n_transfers, 1, N_MEMBERS / 2);
	assert_in_range(f->n_bytes, f->n_stored, f->n_stored);
	blob_unref(blob);
}

static void what_was_fetched_is_there_for_the_next_process(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);

	expect(f, blob, 3 * MEMBER, 2 * MEMBER);
	blob_unref(blob);
	store_close(f->store);
	f->store = test_store(f->dir, 0);
	f->code_to_fail = -ECONNREFUSED;
	blob = open_blob(f);
	assert_true(blob_is_here(blob, 3 * MEMBER, 2 * MEMBER));
	assert_false(blob_is_here(blob, 3 * MEMBER - 1, 2));
	expect(f, blob, 3 * MEMBER, 2 * MEMBER);
	struct err err = {0};
	char byte;
	assert_int_equal(read_all(blob, 20 * MEMBER, &byte, 1, &err), -ECONNREFUSED);
	assert_non_null(strstr(err.text, "layer sha256:"));
	blob_unref(blob);
}

static void wrong_bytes_are_asked_for_once_more(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);

	f->n_to_spoil = 1;
	expect(f, blob, 0, MEMBER);
	assert_int_equal(f->n_transfers, 2);
	blob_unref(blob);
}

static void bytes_that_stay_wrong_are_refused(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);
	char byte;
	struct err err = {0};

	f->n_to_spoil = 2;
	assert_int_equal(read_all(blob, 0, &byte, 1, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "do not match their digest"));
	assert_false(blob_is_here(blob, 0, 1));
	expect(f, blob, 0, MEMBER);
	blob_unref(blob);
}

static void a_damaged_disk_costs_a_fetch(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);

	expect(f, blob, 0, 2 * MEMBER);
	blob_unref(blob);
	char *path = str_printf("%s/partial/%s.data", f->dir, f->key);
	int fd = open(path, O_RDWR);
	assert_int_equal(pwrite_full(fd, "damage", 6, f->spans[1].stored_off + 50), 0);
	close(fd);
	free(path);
	blob = open_blob(f);
	int before = f->n_transfers;
	expect(f, blob, 0, 2 * MEMBER);
	assert_int_equal(f->n_transfers, before + 1);
	blob_unref(blob);
}

static void reads_of_one_span_at_once_share_a_request(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);
	enum { N = 50 };
	struct test_wait w[N];
	int64_t r[N];
	uint8_t bytes[N][100];

	for (int i = 0; i < N; i++) {
		w[i] = TEST_WAIT;
		r[i] = blob_read(blob, 9 * MEMBER + i * 100, bytes[i], 100, test_wait_done, &w[i],
				 NULL);
	}
	for (int i = 0; i < N; i++) {
		assert_int_equal(test_wait_for(&w[i], r[i]), 100);
		assert_memory_equal(bytes[i], f->plain + 9 * MEMBER + i * 100, 100);
	}
	assert_int_equal(f->n_transfers, 1);
	blob_unref(blob);
}

static void no_room_is_enospc_with_a_reason(void **state)
{
	struct fixture *f = *state;

	store_close(f->store);
	f->store = test_store(f->dir, 60000);
	struct blob *blob = open_blob(f);
	struct err err = {0};
	char byte;
	int64_t r = 1;
	uint64_t off = 0;
	for (; r == 1 && off < f->n_plain; off += MEMBER)
		r = read_all(blob, off, &byte, 1, &err);
	assert_int_equal(r, -ENOSPC);
	assert_non_null(strstr(err.text, "--max-used-space"));
	assert_true(off > MEMBER);  /* the first had room */
	expect(f, blob, 0, MEMBER); /* and still reads */
	blob_unref(blob);
}

static void prefetch_brings_everything(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);

	blob_prefetch(blob, 0, f->n_plain);
	for (int i = 0; i < 2000 && !blob_is_here(blob, 0, f->n_plain); i++)
		usleep(5000);
	assert_true(blob_is_here(blob, 0, f->n_plain));
	struct blob_usage usage;
	blob_usage(blob, &usage);
	assert_int_equal(usage.here, f->n_stored);
	assert_int_equal(usage.fetched, f->n_stored);
	blob_unref(blob);
}

static void a_store_closes_while_reads_are_under_way(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);
	struct test_wait w = TEST_WAIT;
	uint8_t *dst = malloc(f->n_plain);

	int64_t r = blob_read(blob, 0, dst, f->n_plain, test_wait_done, &w, NULL);
	assert_int_equal(r, -EINPROGRESS);
	blob_prefetch(blob, 0, f->n_plain);
	blob_unref(blob);
	store_close(f->store);
	assert_true(w.is_done);
	f->store = test_store(f->dir, 0);
	free(dst);
}

static void spans_of_one_member_are_decoded_together(void **state)
{
	struct fixture *f = *state;
	struct span_builder *b = span_builder_new();
	struct span_table *table = NULL;
	struct blob *blob = NULL;
	uint64_t plain_off = 0;

	/* Three files in each member, with 100 bytes that belong to none before each. */
	for (int i = 0; i < N_MEMBERS; i++)
		for (uint32_t k = 0; k < 3; k++) {
			struct span s = f->spans[i];
			s.inner_off = k * 20000 + 100;
			s.plain_len = 19900;
			s.plain_off = plain_off;
			digest_bytes(&s.digest, f->plain + i * MEMBER + s.inner_off, s.plain_len);
			plain_off += s.plain_len;
			assert_int_equal(span_builder_add(b, &s, NULL), 0);
		}
	struct span hole = {.kind = SPAN_ZERO, .plain_off = plain_off, .plain_len = 5000};
	assert_int_equal(span_builder_add(b, &hole, NULL), 0);
	assert_int_equal(span_builder_commit(b, f->store, "inner", &table, NULL), 0);
	span_builder_free(b);
	assert_int_equal(blob_open(&blob, f->store, &f->desc, f->remote, NULL), 0);
	assert_int_equal(blob_set_spans(blob, table, "inner", NULL), 0);
	span_table_unref(table);

	uint8_t bytes[19900 * 3];
	assert_int_equal(read_all(blob, 19900 * 6, bytes, sizeof(bytes), NULL), sizeof(bytes));
	for (int k = 0; k < 3; k++)
		assert_memory_equal(bytes + k * 19900, f->plain + 2 * MEMBER + k * 20000 + 100,
				    19900);
	assert_int_equal(f->n_transfers, 1);
	assert_int_equal(f->n_bytes, f->spans[2].stored_len);
	assert_true(blob_is_here(blob, 19900 * 6, sizeof(bytes)));
	assert_int_equal(read_all(blob, plain_off, bytes, 5000, NULL), 5000);
	for (int i = 0; i < 5000; i++)
		assert_int_equal(bytes[i], 0);
	blob_unref(blob);
}

static void a_flat_copy_is_made_and_verified(void **state)
{
	struct fixture *f = *state;
	struct blob *blob = open_blob(f);
	struct digest digest, wrong = {{1}};
	int fd = -1;

	digest_bytes(&digest, f->plain + 1000, 3 * MEMBER);
	content_make(f->store, blob, 1000, 3 * MEMBER, &digest);
	content_make(f->store, blob, 1000, 3 * MEMBER, &wrong);
	for (int i = 0; i < 2000 && content_open(f->store, &digest, 3 * MEMBER, &fd) < 0; i++)
		usleep(5000);
	uint8_t *bytes = malloc(3 * MEMBER);
	assert_int_equal(pread_full(fd, bytes, 3 * MEMBER, 0), 0);
	assert_memory_equal(bytes, f->plain + 1000, 3 * MEMBER);
	free(bytes);
	close(fd);
	blob_unref(blob);
	store_close(f->store); /* waits for the other one, which cannot succeed */
	f->store = test_store(f->dir, 0);
	assert_int_equal(content_open(f->store, &wrong, 3 * MEMBER, &fd), -ENOENT);
	assert_int_equal(content_open(f->store, &digest, 3 * MEMBER - 1, &fd), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(a_read_fetches_only_its_spans_and_only_once),
		T(any_range_gives_its_bytes),
		T(reading_through_takes_few_requests),
		T(what_was_fetched_is_there_for_the_next_process),
		T(wrong_bytes_are_asked_for_once_more),
		T(bytes_that_stay_wrong_are_refused),
		T(a_damaged_disk_costs_a_fetch),
		T(reads_of_one_span_at_once_share_a_request),
		T(no_room_is_enospc_with_a_reason),
		T(prefetch_brings_everything),
		T(a_store_closes_while_reads_are_under_way),
		T(spans_of_one_member_are_decoded_together),
		T(a_flat_copy_is_made_and_verified),
	};

	log_max = LOG_ERROR;
	return cmocka_run_group_tests_name("blob", tests, NULL, NULL);
}
