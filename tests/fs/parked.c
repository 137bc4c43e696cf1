/* SPDX-License-Identifier: Apache-2.0 */

#include "mounted.h"

/* A client in a thread of its own: one system call and what came of it. */
struct client {
	pthread_t thread;
	char path[PATH_MAX];
	bool is_read; /* else lstat */
	bool is_done;
	int result, error;
	char buf[16];
};

static void *client_main(void *arg)
{
	struct client *c = arg;
	struct stat st;

	if (c->is_read) {
		int fd = open(c->path, O_RDONLY);
		c->result = fd < 0 ? -1 : (int)read(fd, c->buf, sizeof(c->buf));
		c->error = errno;
		close_fd(fd);
	} else {
		c->result = lstat(c->path, &st);
		c->error = errno;
	}
	return NULL;
}

static void client_start(struct client *c, const char *path, bool is_read)
{
	*c = (struct client){.is_read = is_read};
	snprintf(c->path, sizeof(c->path), "%s", path);
	assert_int_equal(pthread_create(&c->thread, NULL, client_main, c), 0);
}

static struct slow *slow_tree(void)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	add_file(t, "later", "content", 7);
	add_file(t, "now", "content", 7);
	return slow_new(t);
}

static struct session_error last_error(struct mounted *m)
{
	struct session_error e;

	assert_int_equal(session_errors(m->s, &e, 1), 1);
	return e;
}

/* The kernel has its answer a moment before the lot has counted it. */
static void await_parked(struct mounted *m, uint64_t n)
{
	while (status_of(m).n_parked != n)
		sched_yield();
}

static void answers_a_name_that_comes_later(void **state)
{
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){0});
	struct client c;

	slow->holds_names = true;
	client_start(&c, in(m, "later"), false);
	slow_await(slow, 1);
	await_parked(m, 1);
	struct stat st; /* others go on meanwhile */
	assert_int_equal(lstat(in(m, "now"), &st), 0);
	slow_release(slow, 0);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, 0);
	await_parked(m, 0);
	assert_int_equal(session_errors(m->s, &(struct session_error){0}, 1), 0);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void asks_again_as_often_as_it_must(void **state)
{
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){0});
	struct client c;

	slow->holds_names = true;
	client_start(&c, in(m, "later"), false);
	for (int i = 0; i < 5; i++) {
		slow_await(slow, 1);
		pthread_mutex_lock(&slow->lock);
		struct tree_wait *wait = take(slow->waits);
		slow->n_held = 0;
		pthread_mutex_unlock(&slow->lock);
		wait->ready(wait);
	}
	slow_await(slow, 1);
	slow_release(slow, 0);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, 0);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void gives_a_name_up_at_the_deadline(void **state)
{
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){.deadline_ms = 100});
	struct client c;
	struct stat st;

	slow->holds_names = true;
	uint64_t start = now_ns();
	client_start(&c, in(m, "later"), false);
	pthread_join(c.thread, NULL);
	uint64_t took_ms = (now_ns() - start) / NS_PER_MS;
	assert_int_equal(c.result, -1);
	assert_int_equal(c.error, EIO);
	assert_in_range(took_ms, 100, 5000);
	struct session_error e = last_error(m);
	assert_int_equal(e.code, -EIO);
	assert_string_equal(e.what, "lookup 0x1 later");
	assert_non_null(strstr(e.text, "100 ms"));
	slow_release(slow, 0); /* late, and harmless */
	assert_int_equal(lstat(in(m, "later"), &st), 0);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void gives_a_read_up_at_the_deadline(void **state)
{
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(
		&slow->tree, (struct mount_options){.deadline_ms = 100, .data = DATA_NOOPEN});
	struct client c;

	slow->holds_reads = true;
	client_start(&c, in(m, "now"), true);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, -1);
	assert_int_equal(c.error, EIO);
	assert_non_null(strstr(last_error(m).what, "read 0x"));
	slow_release(slow, 0);
	client_start(&c, in(m, "now"), true);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, 7);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void answers_a_read_when_its_bytes_come(void **state)
{
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){.data = DATA_NOOPEN});
	struct client c;

	slow->holds_reads = true;
	client_start(&c, in(m, "now"), true);
	slow_await(slow, 1);
	await_parked(m, 1);
	slow_release(slow, 0);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, 7);
	assert_memory_equal(c.buf, "content", 7);
	assert_int_equal(status_of(m).n_reads, 1);
	assert_int_equal(status_of(m).n_read_bytes, 7);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void turns_unexpected_errors_into_eio_with_a_reason(void **state)
{
	static const struct {
		int error, seen;
	} cases[] = {{-EBADMSG, EIO}, {-ENOENT, EIO}, {-EACCES, EIO}, {-ENOSPC, ENOSPC}};
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){.data = DATA_NOOPEN});
	struct client c;

	for (size_t i = 0; i < countof(cases); i++) {
		slow->read_error = cases[i].error;
		client_start(&c, in(m, "now"), true);
		pthread_join(c.thread, NULL);
		assert_int_equal(c.result, -1);
		struct session_error e = last_error(m);
		assert_int_equal(-e.code, cases[i].seen);
		assert_string_equal(e.text, "the wire was cut");
	}
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void nothing(int signo)
{
}

static void lets_a_waiting_client_be_interrupted(void **state)
{
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){0});
	struct sigaction action = {.sa_handler = nothing};
	struct client c;

	sigaction(SIGUSR1, &action, NULL);
	slow->holds_names = true;
	client_start(&c, in(m, "later"), false);
	slow_await(slow, 1);
	await_parked(m, 1);
	pthread_kill(c.thread, SIGUSR1);
	pthread_join(c.thread, NULL);
	assert_int_equal(c.result, -1);
	assert_int_equal(c.error, EINTR);
	await_parked(m, 0);
	slow_release(slow, 0);
	assert_int_equal(session_errors(m->s, &(struct session_error){0}, 1), 0);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void outlives_the_session_while_the_tree_has_it(void **state)
{
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){.data = DATA_NOOPEN});
	struct client c[2];

	client_start(&c[0], in(m, "now"), false); /* so that the other need not look it up */
	pthread_join(c[0].thread, NULL);
	slow->holds_names = slow->holds_reads = true;
	client_start(&c[0], in(m, "later"), false);
	client_start(&c[1], in(m, "now"), true);
	slow_await(slow, 2);
	kill(getpid(), SIGTERM); /* umount would wait for those who still use the mount */
	mounted_stop(m);
	for (int i = 0; i < 2; i++) {
		pthread_join(c[i].thread, NULL);
		assert_int_equal(c[i].result, -1);
	}
	slow_release(slow, 0);
	tree_unref(&slow->tree);
}

/* The tree's answer and the deadline at the same time, over and over: each request is answered
 * once, whoever is first, and nothing is lost or freed twice. */
static void survives_answers_that_race_with_deadlines(void **state)
{
	enum { ROUNDS = 60, CLIENTS = 16 };
	struct slow *slow = slow_tree();
	struct mounted *m = mounted_start(
		&slow->tree, (struct mount_options){.deadline_ms = 3, .data = DATA_OPEN});
	struct sigaction action = {.sa_handler = nothing};
	struct client c[CLIENTS];
	int null = open("/dev/null", O_WRONLY), log = dup(STDERR_FILENO);

	sigaction(SIGUSR1, &action, NULL);
	dup2(null, STDERR_FILENO); /* a line for each of hundreds of errors */
	for (int round = 0; round < ROUNDS; round++) {
		pthread_mutex_lock(&slow->lock);
		slow->holds_names = slow->holds_reads = true;
		pthread_mutex_unlock(&slow->lock);
		for (int i = 0; i < CLIENTS; i++) {
			char name[32];
			snprintf(name, sizeof(name), "l-%d-%d", round, i);
			client_start(&c[i], i % 4 ? in(m, name) : in(m, "now"), i % 4 == 0);
		}
		usleep(2500 + (useconds_t)(round * 37 % 1000));
		pthread_kill(c[1].thread, SIGUSR1);
		slow_release(slow, round % 3 ? 0 : -EIO);
		for (int i = 0; i < CLIENTS; i++)
			pthread_join(c[i].thread, NULL);
	}
	slow_release(slow, 0);
	await_parked(m, 0);
	dup2(log, STDERR_FILENO);
	close(null);
	close(log);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_a_name_that_comes_later),
		cmocka_unit_test(asks_again_as_often_as_it_must),
		cmocka_unit_test(gives_a_name_up_at_the_deadline),
		cmocka_unit_test(gives_a_read_up_at_the_deadline),
		cmocka_unit_test(answers_a_read_when_its_bytes_come),
		cmocka_unit_test(turns_unexpected_errors_into_eio_with_a_reason),
		cmocka_unit_test(lets_a_waiting_client_be_interrupted),
		cmocka_unit_test(outlives_the_session_while_the_tree_has_it),
		cmocka_unit_test(survives_answers_that_race_with_deadlines),
	};

	return cannot_mount() ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
