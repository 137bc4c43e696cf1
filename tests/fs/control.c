/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/test.h"

#include "fs/fs-internal.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static void answer_echo(void *arg, const char *line, struct strbuf *out)
{
	strbuf_printf(out, "%s:%s", (const char *)arg, line);
}

static void answer_long(void *arg, const char *line, struct strbuf *out)
{
	for (int i = 0; i < 300000; i++)
		strbuf_printf(out, "%09d\n", i);
}

static const struct control_row rows[] = {{"echo", answer_echo}, {"long", answer_long}};

struct fixture {
	char *dir;
	char path[64];
	struct control *control;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->dir = test_dir();
	snprintf(f->path, sizeof(f->path), "%s/socket", f->dir);
	assert_int_equal(
		control_new(&f->control, f->path, rows, countof(rows), (void *)"arg", NULL), 0);
	assert_int_equal(control_start(f->control, NULL), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	control_free(f->control);
	assert_int_equal(access(f->path, F_OK), -1);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

static void answers_by_the_first_word(void **state)
{
	struct fixture *f = *state;
	struct strbuf out = {0};

	assert_int_equal(control_ask(f->path, "echo a b", &out, NULL), 0);
	assert_string_equal(out.data, "arg:echo a b");
	strbuf_clear(&out);
	assert_int_equal(control_ask(f->path, "ech", &out, NULL), 0);
	assert_string_equal(out.data, "unknown request: ech\n");
	strbuf_free(&out);
}

static void sends_long_answers_whole(void **state)
{
	struct fixture *f = *state;
	struct strbuf out = {0};

	assert_int_equal(control_ask(f->path, "long", &out, NULL), 0);
	assert_int_equal(out.len, 3000000);
	assert_string_equal(out.data + out.len - 10, "000299999\n");
	strbuf_free(&out);
}

static int connect_to(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(addr.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void is_not_held_up_by_silent_or_rude_clients(void **state)
{
	struct fixture *f = *state;
	struct strbuf out = {0};
	char junk[8192], c;
	int fds[3];

	memset(junk, 'x', sizeof(junk));
	for (size_t i = 0; i < countof(fds); i++)
		fds[i] = connect_to(f->path);
	assert_int_equal(write(fds[0], "ec", 2), 2); /* half a line */
	close(fds[1]);
	send(fds[2], junk, sizeof(junk), MSG_NOSIGNAL); /* a line without end */
	assert_int_equal(control_ask(f->path, "echo", &out, NULL), 0);
	assert_string_equal(out.data, "arg:echo");
	assert_true(recv(fds[2], &c, 1, 0) <= 0);
	assert_int_equal(write(fds[0], "ho\n", 3), 3);
	assert_int_equal(recv(fds[0], junk, sizeof(junk), MSG_WAITALL), 8);
	close(fds[0]);
	close(fds[2]);
	strbuf_free(&out);
}

static void belongs_to_its_owner_alone(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
}

static void takes_a_dead_socket_over_but_no_live_one(void **state)
{
	struct fixture *f = *state;
	struct control *second;
	struct err err;
	char path[64];

	assert_int_equal(control_new(&second, f->path, rows, 1, NULL, &err), -EADDRINUSE);
	assert_int_equal(access(f->path, F_OK), 0);

	snprintf(path, sizeof(path), "%s/dead", f->dir);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	strcpy(addr.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	assert_int_equal(control_new(&second, path, rows, 1, NULL, &err), 0);
	control_free(second);
}

static void says_when_nobody_is_there(void **state)
{
	struct fixture *f = *state;
	struct strbuf out = {0};
	char path[200];
	struct err err;

	snprintf(path, sizeof(path), "%s/none", f->dir);
	assert_int_equal(control_ask(path, "echo", &out, &err), -ENOENT);
	memset(path, 'p', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(control_ask(path, "echo", &out, &err), -ENAMETOOLONG);
	assert_int_equal(control_ask(f->path, "two\nlines", &out, &err), -EINVAL);
	strbuf_free(&out);
}

#define with(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with(answers_by_the_first_word),
		with(sends_long_answers_whole),
		with(is_not_held_up_by_silent_or_rude_clients),
		with(belongs_to_its_owner_alone),
		with(takes_a_dead_socket_over_but_no_live_one),
		with(says_when_nobody_is_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
