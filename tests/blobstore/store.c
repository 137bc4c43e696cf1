/* SPDX-License-Identifier: Apache-2.0 */

/* The store's folder: names, small blobs, derived files, locks, the bound and what may go. */

#include "tests/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define HEX_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HEX_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static int setup(void **state)
{
	*state = test_dir();
	return 0;
}

static int teardown(void **state)
{
	test_dir_remove(*state);
	return 0;
}

static int put_file(struct store *store, const char *kind, const char *name, size_t n,
		    struct err *err)
{
	struct store_file file;
	char *bytes = calloc(1, n);
	int r = store_file_begin(store, kind, name, &file, err);

	assert_int_equal(r, 0);
	assert_int_equal(write_full(file.fd, bytes, n), 0);
	free(bytes);
	return store_file_commit(store, &file, err);
}

static bool has_file(struct store *store, const char *kind, const char *name)
{
	int fd;

	if (store_file_open(store, kind, name, &fd) < 0)
		return false;
	close(fd);
	return true;
}

static int count_files(const char *dir, const char *sub)
{
	char *path = str_printf("%s/%s", dir, sub);
	DIR *d = opendir(path);
	int n = 0;

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	free(path);
	return n;
}

static void names_and_small_blobs_survive(void **state)
{
	struct store *store = test_store(*state, 0);
	struct digest d, e;
	scoped(strbuf_free) struct strbuf body = {0};

	assert_int_equal(store_put_blob(store, "hello", 5, &d, NULL), 0);
	assert_int_equal(store_put_blob(store, "hello", 5, &e, NULL), 0);
	assert_true(digest_equal(&d, &e));
	struct desc manifest = {.digest = d, .size = 5, .media_type = (char *)"a/b"};
	assert_int_equal(store_remember_name(store, "app:1", &manifest, NULL), 0);
	assert_int_equal(store_remember_name(store, "odd \"name", &manifest, NULL), 0);
	char *index = str_printf("%s/index.json", (char *)*state);
	assert_int_equal(read_file(AT_FDCWD, index, 10000, &body), 0);
	assert_non_null(strstr(body.data, "\"org.opencontainers.image.ref.name\":\"app:1\""));
	assert_non_null(strstr(body.data, "odd \\u0022name"));
	strbuf_clear(&body);
	free(index);
	store_close(store);
	store = test_store(*state, 0);
	assert_int_equal(store_recall_name(store, "app:1", &e), 0);
	assert_true(digest_equal(&d, &e));
	assert_int_equal(store_recall_name(store, "app:2", &e), -ENOENT);
	assert_int_equal(store_get_blob(store, &d, 100, &body, NULL), 0);
	assert_string_equal(body.data, "hello");
	assert_int_equal(store_get_blob(store, &d, 4, &body, NULL), -EFBIG);
	store_close(store);
}

static void a_damaged_small_blob_is_not_served(void **state)
{
	struct store *store = test_store(*state, 0);
	struct digest d;
	char hex[DIGEST_HEX_MAX];
	scoped(strbuf_free) struct strbuf body = {0};

	assert_int_equal(store_put_blob(store, "hello", 5, &d, NULL), 0);
	char *path = str_printf("%s/blobs/sha256/%s", (char *)*state, digest_hex(&d, hex));
	int fd = open(path, O_WRONLY);
	assert_int_equal(write_full(fd, "j", 1), 0);
	close(fd);
	free(path);
	log_max = LOG_ERROR;
	assert_int_equal(store_get_blob(store, &d, 100, &body, NULL), -ENOENT);
	assert_int_equal(body.len, 0);
	assert_int_equal(store_put_blob(store, "hello", 5, &d, NULL), 0);
	assert_int_equal(store_get_blob(store, &d, 100, &body, NULL), 0);
	store_close(store);
}

static void a_newer_store_is_refused(void **state)
{
	struct store *store = test_store(*state, 0);
	struct err err = {0};

	db_lock(store_db(store));
	assert_int_equal(db_exec(store_db(store), "PRAGMA user_version = 99", NULL), 0);
	db_unlock(store_db(store));
	store_close(store);
	struct store_options options = {.root = *state};
	assert_int_equal(store_open(&store, &options, &err), -EPROTO);
	assert_non_null(strstr(err.text, "newer"));
}

static void an_aborted_file_leaves_nothing(void **state)
{
	struct store *store = test_store(*state, 0);
	struct store_file file;

	assert_int_equal(store_file_begin(store, "index", HEX_A, &file, NULL), 0);
	assert_int_equal(write_full(file.fd, "half", 4), 0);
	store_file_abort(store, &file);
	assert_false(has_file(store, "index", HEX_A));
	assert_int_equal(count_files(*state, "tmp"), 0);
	store_close(store);
}

static void what_a_killed_writer_left_is_swept(void **state)
{
	int ready[2];
	char byte;

	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct store *store = test_store(*state, 0);
		struct store_file file;
		if (store_file_begin(store, "index", HEX_A, &file, NULL) < 0)
			_exit(1);
		(void)!write(ready[1], "x", 1);
		pause();
		_exit(0);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	struct store *store = test_store(*state, 0);
	assert_int_equal(count_files(*state, "tmp"), 1); /* its writer lives */
	store_close(store);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	store = test_store(*state, 0);
	assert_int_equal(count_files(*state, "tmp"), 0);
	store_close(store);
	close(ready[0]);
	close(ready[1]);
}

static void a_lock_is_held_by_one_and_dies_with_it(void **state)
{
	struct store *store = test_store(*state, 0);
	int fd = -1, second = -1;

	assert_int_equal(store_lock(store, "layer-x", 0, &fd, NULL), 0);
	assert_int_equal(store_lock(store, "layer-x", 50, &second, NULL), -EAGAIN);
	assert_int_equal(store_lock(store, "layer-y", 0, &second, NULL), 0);
	close(second);
	close(fd);
	assert_int_equal(store_lock(store, "layer-x", 0, &fd, NULL), 0);
	close(fd);
	store_close(store);
}

static void the_oldest_goes_when_room_is_needed(void **state)
{
	struct store *store = test_store(*state, 1000000);
	uint64_t used, bound;

	assert_int_equal(put_file(store, "content", HEX_A, 600000, NULL), 0);
	db_lock(store_db(store));
	assert_int_equal(db_exec(store_db(store), "UPDATE content SET last_used = 1", NULL), 0);
	db_unlock(store_db(store));
	assert_int_equal(put_file(store, "content", HEX_B, 300000, NULL), 0);
	store_usage(store, &used, &bound);
	assert_int_equal(used, 900000);
	assert_int_equal(bound, 1000000);
	assert_int_equal(put_file(store, "content", "c", 300000, NULL), 0);
	assert_false(has_file(store, "content", HEX_A));
	assert_true(has_file(store, "content", HEX_B));
	assert_true(has_file(store, "content", "c"));
	struct err err = {0};
	assert_int_equal(put_file(store, "content", "d", 1100000, &err), -ENOSPC);
	assert_false(has_file(store, "content", "d"));
	assert_true(has_file(store, "content", HEX_B)); /* nothing was lost for what cannot fit */
	store_close(store);
}

/* A process that has a blob with spans open, until it is killed. */
static pid_t start_holder(const char *dir, const char *hex)
{
	int ready[2];
	char byte;

	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct store *store = test_store(dir, 1000000);
		struct desc desc = {.size = 5};
		struct blob *blob = NULL;
		struct span_table *table = NULL;
		struct span_builder *b = span_builder_new();
		memset(desc.digest.bytes, 0xaa, 32);
		if (span_builder_commit(b, store, hex, &table, NULL) < 0 ||
		    blob_open(&blob, store, &desc, NULL, NULL) < 0 ||
		    blob_set_spans(blob, table, hex, NULL) < 0)
			_exit(1);
		(void)!write(ready[1], "x", 1);
		pause();
		_exit(0);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	return pid;
}

static void what_a_living_process_uses_stays(void **state)
{
	pid_t pid = start_holder(*state, HEX_A);
	struct store *store = test_store(*state, 1000000);
	struct err err = {0};

	assert_int_equal(put_file(store, "index", HEX_A, 700000, NULL), 0);
	assert_int_equal(put_file(store, "content", HEX_B, 600000, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "in use"));
	assert_true(has_file(store, "index", HEX_A));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(put_file(store, "content", HEX_B, 600000, &err), 0);
	assert_false(has_file(store, "index", HEX_A));
	store_close(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(names_and_small_blobs_survive),
		T(a_damaged_small_blob_is_not_served),
		T(a_newer_store_is_refused),
		T(an_aborted_file_leaves_nothing),
		T(what_a_killed_writer_left_is_swept),
		T(a_lock_is_held_by_one_and_dies_with_it),
		T(the_oldest_goes_when_room_is_needed),
		T(what_a_living_process_uses_stays),
	};

	return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
