/* SPDX-License-Identifier: Apache-2.0 */

/* Secrets: where they come from, and to whom a download sends them. The rest of downloads is tested
 * from outside (tests/tools/test_sources.py). */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "solver/solver-internal.h"
#include "tests/solver/proto.h"
#include "tests/test.h"

/* Answers each connection with one text, and keeps what was asked. */
struct server {
	int fd;
	unsigned port;
	pthread_t thread;
	const char *answer;
	char asked[4096]; /* the last request; of the thread until it is joined */
};

static void *serve(void *arg)
{
	struct server *s = arg;
	for (int fd; (fd = accept(s->fd, NULL, NULL)) >= 0; close(fd)) {
		size_t n = 0;
		ssize_t got;
		while (n < sizeof(s->asked) - 1 &&
		       (got = read(fd, s->asked + n, sizeof(s->asked) - 1 - n)) > 0) {
			n += (size_t)got;
			s->asked[n] = 0;
			if (strstr(s->asked, "\r\n\r\n"))
				break;
		}
		assert_int_equal(write_full(fd, s->answer, strlen(s->answer)), 0);
	}
	return NULL;
}

static void server_start(struct server *s)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t n = sizeof(in);
	s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(s->fd, (struct sockaddr *)&in, sizeof(in)) | listen(s->fd, 8), 0);
	assert_int_equal(getsockname(s->fd, (struct sockaddr *)&in, &n), 0);
	s->port = ntohs(in.sin_port);
}

static void server_run(struct server *s, const char *answer)
{
	s->answer = answer;
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void server_stop(struct server *s)
{
	shutdown(s->fd, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->fd);
}

struct fixture {
	char *dir, *file;
	struct net *net;
	struct store *store;
	struct solver *solver;
	struct solver_secret secrets[4];
	struct server first, second;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->dir = test_dir();
	f->file = str_printf("%s/secret", f->dir);
	FILE *file = fopen(f->file, "w");
	fputs("Bearer from-file\n", file);
	fclose(file);
	setenv("TEST_SECRET", "Bearer from-env", 1);
	setenv("TEST_EVIL", "Bearer x\r\nX-Evil: 1", 1);
	unsetenv("TEST_NONE");
	f->secrets[0] = (struct solver_secret){.id = "file", .file = f->file};
	f->secrets[1] = (struct solver_secret){.id = "env", .env = "TEST_SECRET"};
	f->secrets[2] = (struct solver_secret){.id = "none", .env = "TEST_NONE"};
	f->secrets[3] = (struct solver_secret){.id = "evil", .env = "TEST_EVIL"};
	const struct net_options net = {.deadline_ms = 20000};
	assert_int_equal(net_new(&f->net, &net, NULL), 0);
	scoped(free) char *root = str_printf("%s/store", f->dir);
	const struct store_options store = {.root = root, .net = f->net};
	assert_int_equal(store_open(&f->store, &store, NULL), 0);
	const struct solver_options options = {.store = f->store,
					       .net = f->net,
					       .secrets = f->secrets,
					       .n_secrets = countof(f->secrets)};
	assert_int_equal(solver_new(&f->solver, &options, NULL), 0);
	server_start(&f->first);
	server_start(&f->second);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	solver_free(f->solver);
	store_close(f->store);
	net_free(f->net);
	free(f->file);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

/* Solves a download from the first server with the secret @id. */
static int download(struct fixture *f, const char *id, struct err *err)
{
	struct strbuf source = {0}, op = {0}, terminal = {0}, def = {0};
	scoped(free) char *url = str_printf("http://127.0.0.1:%u/f", f->first.port);
	scoped(graph_free) struct graph *g = NULL;
	scoped(ref_unref) struct ref *ref = NULL;
	struct digest digest;

	pb_text(&source, 1, url);
	pb_attr(&source, 2, "http.authheadersecret", id);
	pb_message(&op, 3, &source);
	digest_bytes(&digest, op.data, op.len);
	pb_input(&terminal, &digest, 0);
	pb_message(&def, 1, &op);
	pb_message(&def, 1, &terminal);
	int r = graph_load(&g, def.data, def.len, err);
	strbuf_free(&source);
	strbuf_free(&op);
	strbuf_free(&terminal);
	strbuf_free(&def);
	if (r == 0)
		r = graph_solve(g, f->solver, graph_vertex(g, 0), 0, NULL, &ref, err);
	return r;
}

static const char whole[] = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntext";

static void it_is_sent_as_authorization(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	server_run(&f->first, whole);
	if (download(f, "env", &err) < 0)
		fail_msg("%s", err.text);
	server_stop(&f->first);
	close(f->second.fd);
	assert_non_null(strstr(f->first.asked, "Authorization: Bearer from-env\r\n"));
}

static void a_file_may_end_with_a_line_break(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	server_run(&f->first, whole);
	if (download(f, "file", &err) < 0)
		fail_msg("%s", err.text);
	server_stop(&f->first);
	close(f->second.fd);
	assert_non_null(strstr(f->first.asked, "Authorization: Bearer from-file\r\n"));
}

static void another_host_does_not_get_it(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	scoped(free) char *redirect =
		str_printf("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%u/f\r\n"
			   "Content-Length: 0\r\nConnection: close\r\n\r\n",
			   f->second.port);
	server_run(&f->first, redirect);
	server_run(&f->second, whole);
	if (download(f, "env", &err) < 0)
		fail_msg("%s", err.text);
	server_stop(&f->first);
	server_stop(&f->second);
	assert_non_null(strstr(f->first.asked, "Authorization: Bearer from-env\r\n"));
	assert_non_null(strstr(f->second.asked, "GET /f"));
	assert_null(strcasestr(f->second.asked, "authorization"));
}

static void without_it_nothing_is_asked(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	server_run(&f->first, whole);
	assert_int_equal(download(f, "absent", &err), -ENOENT);
	assert_non_null(strstr(err.text, "--secret id=absent"));
	assert_int_equal(download(f, "none", &err), -EINVAL);
	assert_non_null(strstr(err.text, "TEST_NONE"));
	assert_int_equal(download(f, "evil", &err), -EINVAL);
	server_stop(&f->first);
	close(f->second.fd);
	assert_string_equal(f->first.asked, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(it_is_sent_as_authorization, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_file_may_end_with_a_line_break, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(another_host_does_not_get_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(without_it_nothing_is_asked, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
