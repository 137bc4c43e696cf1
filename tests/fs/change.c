/* SPDX-License-Identifier: Apache-2.0 */

/* change: mounts that can be written, over a tree that says "later". */

#include "mounted.h"

#define SIZE 200000u
static uint8_t content[SIZE];

struct writable {
	struct slow *slow;
	struct upper *upper;
	struct mounted *m;
	char *dir;
};

static void start(struct writable *w)
{
	struct err err = {0};
	struct tree *t;

	test_fill(content, sizeof(content), 9);
	assert_int_equal(memtree_new(&t), 0);
	add_file(t, "file", content, SIZE);
	add_file(t, "dir/file", content, SIZE);
	w->slow = slow_new(t);
	w->dir = test_dir();
	int r = upper_open(&w->upper, &w->slow->tree, &(struct upper_options){.dir = w->dir}, &err);
	if (r < 0)
		fail_msg("upper_open: %s", err_text(&err, r));
	w->m = mounted_start(upper_tree(w->upper), (struct mount_options){.upper = w->upper});
}

static void stop(struct writable *w)
{
	struct err err = {0};

	mounted_stop(w->m);
	if (upper_close(w->upper, &err) < 0)
		fail_msg("upper_close: %s", err.text);
	tree_unref(&w->slow->tree);
	test_dir_remove(w->dir);
}

/* A client in a thread of its own: writes three bytes into a file, or makes one. */
struct client {
	pthread_t thread;
	char path[PATH_MAX];
	off_t off; /* -1: makes it */
	int result, error;
};

static void *client_main(void *arg)
{
	struct client *c = arg;
	int fd = open(c->path, c->off < 0 ? O_CREAT | O_EXCL | O_WRONLY : O_WRONLY, 0644);

	c->result = fd < 0 ? -1 : c->off < 0 ? 0 : (int)pwrite(fd, "NEW", 3, c->off);
	c->error = errno;
	close_fd(fd);
	return NULL;
}

static void client_start(struct client *c, const char *path, off_t off)
{
	*c = (struct client){.off = off};
	snprintf(c->path, sizeof(c->path), "%s", path);
	assert_int_equal(pthread_create(&c->thread, NULL, client_main, c), 0);
}

static void await_parked(struct mounted *m, uint64_t n)
{
	while (status_of(m).n_parked != n)
		sched_yield();
}

/* @path is as below, but for three bytes at each offset. */
static void check(const char *path, const off_t *offs, size_t n)
{
	static uint8_t got[SIZE + 1], want[SIZE];
	int fd = open(path, O_RDONLY);

	memcpy(want, content, SIZE);
	for (size_t i = 0; i < n; i++)
		memcpy(want + offs[i], "NEW", 3);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, got, sizeof(got), 0), SIZE);
	assert_memory_equal(got, want, SIZE);
	close(fd);
}

static void a_write_waits_and_nobody_else_does(void **state)
{
	struct writable w;
	struct client a, b;
	char text[3];

	start(&w);
	w.slow->holds_reads = true;
	client_start(&a, in(w.m, "file"), 100000);
	slow_await(w.slow, 1);
	await_parked(w.m, 1);
	client_start(&b, in(w.m, "dir/file"), 5); /* another file waits for itself */
	slow_await(w.slow, 2);
	await_parked(w.m, 2);

	int fd = open(in(w.m, "other"), O_CREAT | O_RDWR, 0644);
	assert_int_equal(pwrite(fd, "now", 3, 0), 3);
	assert_int_equal(pread(fd, text, 3, 0), 3);
	close(fd);
	assert_int_equal(rename(in(w.m, "dir"), in(w.m, "moved")), 0);

	slow_release(w.slow, 0);
	pthread_join(a.thread, NULL);
	pthread_join(b.thread, NULL);
	assert_int_equal(a.result, 3);
	assert_int_equal(b.result, 3);
	check(in(w.m, "file"), (off_t[]){100000}, 1);
	check(in(w.m, "moved/file"), (off_t[]){5}, 1);
	assert_int_equal(session_errors(w.m->s, &(struct session_error){0}, 1), 0);
	stop(&w);
}

static void a_write_fails_when_its_bytes_do_not_come(void **state)
{
	struct session_error e;
	struct writable w;
	struct client c;

	start(&w);
	w.slow->holds_reads = true;
	client_start(&c, in(w.m, "file"), 70000);
	slow_await(w.slow, 1);
	slow_release(w.slow, -ENETUNREACH);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, -1);
	assert_int_equal(c.error, EIO);
	assert_int_equal(session_errors(w.m->s, &e, 1), 1);
	assert_string_equal(e.text, "the wire was cut");
	check(in(w.m, "file"), NULL, 0); /* as it was */

	client_start(&c, in(w.m, "file"), 70000); /* and the next one may do */
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, 3);
	check(in(w.m, "file"), (off_t[]){70000}, 1);
	stop(&w);
}

/* What lies beyond the end, or makes a file shorter, needs nothing of what is below. */
static void what_is_not_needed_is_not_fetched(void **state)
{
	struct writable w;
	struct stat st;

	start(&w);
	w.slow->holds_reads = true;
	int fd = open(in(w.m, "file"), O_WRONLY);
	assert_int_equal(pwrite(fd, "end", 3, SIZE), 3);
	assert_int_equal(ftruncate(fd, SIZE + 100), 0);
	assert_int_equal(truncate(in(w.m, "dir/file"), 10), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, SIZE + 100);
	close(fd);
	assert_int_equal(status_of(w.m).n_parked, 0);
	w.slow->holds_reads = false;

	static uint8_t got[SIZE + 100];
	fd = open(in(w.m, "file"), O_RDONLY);
	assert_int_equal(pread(fd, got, sizeof(got), 0), sizeof(got));
	close(fd);
	assert_memory_equal(got, content, SIZE);
	assert_memory_equal(got + SIZE, "end\0", 4);
	stop(&w);
}

static void a_new_name_waits_for_what_may_be_there(void **state)
{
	struct writable w;
	struct client c;

	start(&w);
	struct stat st; /* the kernel knows the folder: it looks nothing up in one it has locked */
	assert_int_equal(lstat(in(w.m, "dir"), &st), 0);
	w.slow->holds_names = true;
	client_start(&c, in(w.m, "later"), -1);
	slow_await(w.slow, 1);
	await_parked(w.m, 1);
	assert_int_equal(mkdir(in(w.m, "dir/now"), 0755), 0);
	slow_release(w.slow, 0);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, 0);
	stop(&w);
}

static void count_ready(struct tree_wait *wait)
{
	wait->next = wait; /* seen */
}

static void an_upper_may_be_closed_while_bytes_are_on_their_way(void **state)
{
	struct tree_wait wait = {.ready = count_ready};
	struct writable w = {.dir = test_dir()};
	struct err err = {0};
	struct tree *t;
	struct attr a;

	assert_int_equal(memtree_new(&t), 0);
	add_file(t, "file", content, SIZE);
	w.slow = slow_new(t);
	assert_int_equal(
		upper_open(&w.upper, &w.slow->tree, &(struct upper_options){.dir = w.dir}, &err),
		0);
	assert_int_equal(tree_walk(upper_tree(w.upper), "file", false, &a, &err), 0);
	w.slow->holds_reads = true;
	assert_int_equal(upper_write(w.upper, a.id, 70000, "NEW", 3, false, &wait, &err), -EAGAIN);
	assert_int_equal(upper_close(w.upper, &err), 0);
	slow_release(w.slow, 0);
	assert_ptr_equal(wait.next, &wait);
	tree_unref(&w.slow->tree);
	test_dir_remove(w.dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_write_waits_and_nobody_else_does),
		cmocka_unit_test(a_write_fails_when_its_bytes_do_not_come),
		cmocka_unit_test(what_is_not_needed_is_not_fetched),
		cmocka_unit_test(a_new_name_waits_for_what_may_be_there),
		cmocka_unit_test(an_upper_may_be_closed_while_bytes_are_on_their_way),
	};

	return cannot_mount() ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
