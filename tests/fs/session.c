/* SPDX-License-Identifier: Apache-2.0 */

#include "mounted.h"

static struct tree *small_tree(void)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	add_file(t, "a", "x", 1);
	return t;
}

static bool is_mounted(const char *dir, char source[64])
{
	struct mount_entry *entries;
	bool found = false;
	size_t n;

	assert_int_equal(mounts_list(&entries, &n, NULL), 0);
	for (size_t i = 0; i < n; i++)
		if (strcmp(entries[i].mountpoint, dir) == 0) {
			found = true;
			snprintf(source, 64, "%s", entries[i].source);
		}
	mounts_free(entries, n);
	return found;
}

static void is_ready_once_and_found_among_the_mounts(void **state)
{
	struct tree *t = small_tree();
	char source[64];
	struct stat st;

	struct mounted *m = mounted_start(t, (struct mount_options){.fsname = "host/a b:1,2\\3"});
	assert_true(is_mounted(m->dir, source));
	assert_string_equal(source, "host/a b:1,2\\3");
	assert_int_equal(stat(m->dir, &st), 0);
	assert_int_equal(m->n_ready, 1);
	mounted_end(m);
	assert_int_equal(m->result, 0);
	assert_int_equal(m->n_ready, 1);
	assert_false(is_mounted(m->dir, source));
	mounted_stop(m);
	tree_unref(t);
}

static void refuses_bad_mountpoints(void **state)
{
	struct tree *t = small_tree();
	struct session *s = NULL;
	struct err err = {0};
	struct mounted *m = mounted_start(t, (struct mount_options){.fsname = "first"});

	assert_int_equal(
		session_new(&s, t, &(struct mount_options){.mountpoint = "/no/such"}, &err),
		-ENOENT);
	assert_int_equal(
		session_new(&s, t, &(struct mount_options){.mountpoint = "/proc/version"}, &err),
		-ENOTDIR);
	assert_int_equal(session_new(&s, t, &(struct mount_options){.mountpoint = m->dir}, &err),
			 -EBUSY);
	assert_non_null(strstr(err.text, "first"));
	assert_null(s);
	mounted_stop(m);
	tree_unref(t);
}

/* A server in a process of its own; it writes a byte to @fd when the mount answers. */
static void child_ready(void *arg)
{
	(void)!write(*(int *)arg, "r", 1);
}

static pid_t child_start(struct tree *t, const char *dir)
{
	int fds[2];
	char c;

	assert_int_equal(pipe(fds), 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct mount_options options = {
			.mountpoint = dir, .on_ready = child_ready, .arg = &fds[1]};
		struct session *s;
		int r = session_new(&s, t, &options, NULL);
		if (r == 0) {
			r = session_run(s, NULL);
			session_free(s);
		}
		_exit(r == 0 ? 0 : 1);
	}
	assert_int_equal(read(fds[0], &c, 1), 1);
	close(fds[0]);
	close(fds[1]);
	return pid;
}

static void leaves_at_a_signal_even_when_in_use(void **state)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
	struct tree *t = small_tree();
	char *dir = test_dir();
	char path[64], source[64];
	int wstatus;

	snprintf(path, sizeof(path), "%s/a", dir);
	for (size_t i = 0; i < countof(signals); i++) {
		pid_t pid = child_start(t, dir);
		int fd = open(path, O_RDONLY);
		assert_true(fd >= 0);
		kill(pid, signals[i]);
		assert_int_equal(waitpid(pid, &wstatus, 0), pid);
		assert_int_equal(wstatus, 0);
		assert_false(is_mounted(dir, source));
		close(fd);
	}
	test_dir_remove(dir);
	tree_unref(t);
}

static void a_dead_server_can_be_cleared(void **state)
{
	struct tree *t = small_tree();
	char *dir = test_dir();
	char source[64];
	char path[64];
	struct session *s;
	struct stat st;
	struct err err;

	pid_t pid = child_start(t, dir);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	snprintf(path, sizeof(path), "%s/a", dir);
	assert_int_equal(stat(path, &st), -1);
	assert_int_equal(errno, ENOTCONN);
	assert_int_equal(session_new(&s, t, &(struct mount_options){.mountpoint = dir}, &err),
			 -EBUSY);
	assert_non_null(strstr(err.text, "llbfs umount"));
	assert_int_equal(mount_clear(dir, false, &err), 0);
	assert_false(is_mounted(dir, source));
	assert_int_equal(stat(dir, &st), 0);
	test_dir_remove(dir);
	tree_unref(t);
}

static void a_hanging_server_can_be_cleared(void **state)
{
	struct tree *t = small_tree();
	char *dir = test_dir();
	char source[64];
	struct err err;

	pid_t pid = child_start(t, dir);
	kill(pid, SIGSTOP);
	assert_int_equal(mount_clear(dir, true, &err), 0);
	assert_false(is_mounted(dir, source));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	test_dir_remove(dir);
	tree_unref(t);
}

static void clears_only_what_is_a_mount_of_ours_and_free(void **state)
{
	struct tree *t = small_tree();
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	char dots[PATH_MAX], source[64];
	struct err err;

	assert_int_equal(mount_clear("/proc", false, &err), -EINVAL);
	assert_int_equal(mount_clear("/no/such", false, &err), -EINVAL);
	int fd = open(in(m, "a"), O_RDONLY);
	assert_int_equal(mount_clear(m->dir, false, &err), -EBUSY);
	assert_true(is_mounted(m->dir, source));
	close(fd);
	snprintf(dots, sizeof(dots), "/tmp/../%s/./", m->dir);
	assert_int_equal(mount_clear(dots, false, &err), 0);
	assert_false(is_mounted(m->dir, source));
	mounted_stop(m);
	tree_unref(t);
}

static void keeps_the_newest_errors(void **state)
{
	struct session_error errors[100];
	struct session s = {0};
	char text[32];
	int null = open("/dev/null", O_WRONLY), log = dup(STDERR_FILENO);

	pthread_mutex_init(&s.lock, NULL);
	assert_int_equal(session_errors(&s, errors, 100), 0);
	dup2(null, STDERR_FILENO);
	for (int i = 0; i < 70; i++) {
		snprintf(text, sizeof(text), "reason %d", i);
		session_record(&s, -EIO, "read", text);
	}
	dup2(log, STDERR_FILENO);
	close(null);
	close(log);
	assert_int_equal(session_errors(&s, errors, 100), 64);
	assert_string_equal(errors[0].text, "reason 69");
	assert_string_equal(errors[63].text, "reason 6");
	assert_int_equal(session_errors(&s, errors, 2), 2);
	assert_string_equal(errors[1].text, "reason 68");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(is_ready_once_and_found_among_the_mounts),
		cmocka_unit_test(refuses_bad_mountpoints),
		cmocka_unit_test(leaves_at_a_signal_even_when_in_use),
		cmocka_unit_test(a_dead_server_can_be_cleared),
		cmocka_unit_test(a_hanging_server_can_be_cleared),
		cmocka_unit_test(clears_only_what_is_a_mount_of_ours_and_free),
		cmocka_unit_test(keeps_the_newest_errors),
	};

	return cannot_mount() ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
