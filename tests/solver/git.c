/* SPDX-License-Identifier: Apache-2.0 */

/* git: texts, running the program, and what is sent to a server. tests/tools/test_git.py has the rest. */

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "solver/git-internal.h"
#include "tests/solver/proto.h"
#include "tests/test.h"

#define SHA1 "1111111111111111111111111111111111111111"
#define SHA2 "2222222222222222222222222222222222222222"
#define SHA3 "3333333333333333333333333333333333333333"

static void addresses_are_taken_apart(void **state)
{
	static const struct {
		const char *text, *remote, *ref, *subdir;
	} rows[] = {
		{"host/r.git", "https://host/r.git", "", ""},
		{"host/r.git#main", "https://host/r.git", "main", ""},
		{"host/r.git#main:sub/x", "https://host/r.git", "main", "sub/x"},
		{"host/r.git#:sub", "https://host/r.git", "", "sub"},
		{"host/r.git#a:b:c", "https://host/r.git", "a", "b:c"},
		{"host/r.git#a#b", "https://host/r.git", "a#b", ""},
		{"host/r.git#a%20b:c%2fd", "https://host/r.git", "a b", "c/d"},
		{"git@host:r.git#a%20b", "git@host:r.git", "a%20b", ""},
		{"ssh://u@host/r#v1", "ssh://u@host/r", "v1", ""},
		{"file:///r", "https://file:///r", "", ""},
		{"ext::sh", "https://ext::sh", "", ""},
		{"-x", "https://-x", "", ""},
		{"-x@host:r", "https://-x@host:r", "", ""},
		{"u@-host:r", "https://u@-host:r", "", ""},
		{"u@host://r", "https://u@host://r", "", ""},
	};

	for (size_t i = 0; i < countof(rows); i++) {
		struct git_url url;
		assert_int_equal(git_url_parse(&url, rows[i].text, NULL), 0);
		assert_string_equal(url.remote, rows[i].remote);
		assert_string_equal(url.ref, rows[i].ref);
		assert_string_equal(url.subdir, rows[i].subdir);
		git_url_deinit(&url);
	}
	struct git_url url;
	static const char *const bad[] = {"h/r#%", "h/r#%4", "h/r#%zz", "h/r#a%00b"};
	for (size_t i = 0; i < countof(bad); i++)
		assert_int_equal(git_url_parse(&url, bad[i], NULL), -EBADMSG);
}

static void expect_text(char *text, const char *want)
{
	assert_non_null(text);
	assert_string_equal(text, want);
	free(text);
}

static void hosts_and_passwords_are_told_apart(void **state)
{
	expect_text(git_host("https://host:8080/r"), "host:8080");
	expect_text(git_host("https://u:p@host/r@x"), "host");
	expect_text(git_host("git@host:r"), "");
	expect_text(git_redact("https://u:p@host/r@x"), "https://host/r@x");
	expect_text(git_redact("at 'ssh://u@h/r' and http://a:b@c/"),
		    "at 'ssh://h/r' and http://c/");
	expect_text(git_redact("git@host:r"), "git@host:r");
	expect_text(git_redact(""), "");
}

static void refs_are_found(void **state)
{
	static const char list[] =
		"ref: refs/heads/dev/main\tHEAD\n" SHA1 "\tHEAD\n" SHA1
		"\trefs/heads/dev/main\n" SHA2 "\trefs/heads/both\n" SHA3 "\trefs/tags/both\n" SHA2
		"\trefs/tags/v1\n" SHA3 "\trefs/tags/v1^{}\n" SHA1 "\trefs/heads/other/v1\n"
		"nonsense\n\trefs/heads/empty\n123\trefs/heads/short\n" SHA3 "\trefs/changes/1";
	static const struct {
		const char *ref, *full, *sha, *commit;
	} rows[] = {
		{"", "refs/heads/dev/main", SHA1, NULL},
		{"dev/main", "refs/heads/dev/main", SHA1, NULL},
		{"both", "refs/heads/both", SHA2, NULL},
		{"tags/both", "refs/tags/both", SHA3, NULL},
		{"refs/tags/both", "refs/tags/both", SHA3, NULL},
		{"v1", "refs/tags/v1", SHA2, SHA3},
		{"refs/changes/1", "refs/changes/1", SHA3, NULL},
		{"changes/1", "refs/changes/1", SHA3, NULL},
	};
	struct git_asked asked;

	for (size_t i = 0; i < countof(rows); i++) {
		assert_int_equal(git_refs_find(&asked, list, rows[i].ref, NULL), 0);
		assert_string_equal(asked.ref, rows[i].full);
		assert_string_equal(asked.sha, rows[i].sha);
		assert_int_equal(!asked.commit, !rows[i].commit);
		if (asked.commit)
			assert_string_equal(asked.commit, rows[i].commit);
		git_asked_deinit(&asked);
	}
	static const char *const gone[] = {"main", "empty", "short", "nonsense", "v1^{}x"};
	for (size_t i = 0; i < countof(gone); i++)
		assert_int_equal(git_refs_find(&asked, list, gone[i], NULL), -ENOENT);
	assert_int_equal(git_refs_find(&asked, "", "", NULL), -ENOENT);
	assert_int_equal(git_refs_find(&asked, SHA1 "\tHEAD\n", "", NULL), -ENOENT);
}

static void the_reason_is_one_line(void **state)
{
	static const struct {
		const char *notes, *want;
		int code;
	} rows[] = {
		{"", "", -EIO},
		{"\n\n", "", -EIO},
		{"warning: x\nfatal: no such thing\n", "no such thing", -EIO},
		{"fatal: unable to connect to h:\nh[0: 1.2.3.4]: errno=Connection refused\n\n",
		 "unable to connect to h: h[0: 1.2.3.4]: errno=Connection refused", -ECONNREFUSED},
		{"Host key verification failed.\r\nfatal: Could not read from remote "
		 "repository.\n\n"
		 "Please make sure\n",
		 "", -EACCES},
		{"git@h: Permission denied (publickey).\nfatal: Could not read from remote "
		 "repository.\n",
		 "git@h: Permission denied (publickey).", -EACCES},
		{"fatal: Could not read from remote repository.\n",
		 "Could not read from remote repository.", -EIO},
		{"error: one\nsomething\n", "one", -EIO},
		{"something\nlast\n", "last", -EIO},
		{"Receiving: 1%\rReceiving: 2%\rfatal: early EOF\n", "early EOF", -EIO},
		{"fatal: at 'https://u:p@h/'\n", "at 'https://h/'", -EIO},
		{"fatal: \x1b[31mred", "?[31mred", -EIO},
		{"fatal: ends:", "ends:", -EIO},
	};

	for (size_t i = 0; i < countof(rows); i++) {
		scoped(free) char *reason = git_reason(rows[i].notes);
		assert_non_null(reason);
		if (*rows[i].want || !*rows[i].notes)
			assert_string_equal(reason, rows[i].want);
		assert_int_equal(git_errno(rows[i].notes), rows[i].code);
	}
}

/* ------------------------------------------------------------------ the program */

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void the_program_gets_its_own_world(void **state)
{
	struct git git = {.protocols = "https", .deadline_ms = 60000, .known_hosts = -1};
	scoped(strbuf_free) struct strbuf out = {0}, notes = {0};
	struct err err = {0};

	setenv("GIT_DIR", "/nowhere", 1);
	setenv("GIT_CONFIG_PARAMETERS", "'user.name=me'", 1);
	git.config[git.n_config].key = "my.secret";
	git.config[git.n_config++].value = "a\nb=c";
	assert_int_equal(git_run(&git, ARGS("config", "my.secret"), &out, NULL, &err), 0);
	assert_string_equal(out.data, "a\nb=c\n");
	assert_int_equal(git_run(&git, ARGS("config", "user.name"), NULL, NULL, &err), -EIO);
	assert_int_equal(git_run(&git, ARGS("ls-remote", "ext::echo x"), NULL, &notes, &err), -EIO);
	assert_non_null(strstr(err.text, "not allowed"));
	assert_non_null(strstr(notes.data, "not allowed"));
	unsetenv("GIT_DIR");
	unsetenv("GIT_CONFIG_PARAMETERS");
}

static void one_that_hangs_is_ended(void **state)
{
	struct git git = {.protocols = "file", .deadline_ms = 100, .known_hosts = -1};
	struct err err = {0};

	/* It reads from a pipe that nobody writes to. */
	scoped(free) char *dir = test_dir();
	scoped(free) char *pipe = str_printf("%s/pipe", dir);
	assert_int_equal(mkfifo(pipe, 0600), 0);
	assert_int_equal(git_run(&git, ARGS("hash-object", pipe), NULL, NULL, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "nothing came for 100 ms"));
	test_dir_remove(take(dir));
}

/* ------------------------------------------------------------------ secrets */

struct web {
	int fd;
	uint16_t port;
	pthread_t thread;
	pthread_mutex_t lock;
	char request[4096]; /* the last one, up to its empty line; guarded by lock */
};

/* Answers each request with "not here". */
static void *web_serve(void *arg)
{
	static const char answer[] =
		"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
	struct web *web = arg;
	int fd;

	while ((fd = accept(web->fd, NULL, NULL)) >= 0) {
		char request[sizeof(web->request)] = "";
		size_t len = 0;
		ssize_t n;
		while (!strstr(request, "\r\n\r\n") && len < sizeof(request) - 1 &&
		       (n = read(fd, request + len, sizeof(request) - 1 - len)) > 0) {
			len += (size_t)n;
			request[len] = 0;
		}
		pthread_mutex_lock(&web->lock);
		memcpy(web->request, request, sizeof(request));
		pthread_mutex_unlock(&web->lock);
		assert_int_equal(write_full(fd, answer, strlen(answer)), 0);
		close(fd);
	}
	return NULL;
}

static void web_open(struct web *web)
{
	struct sockaddr_in where = {.sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(where);

	pthread_mutex_init(&web->lock, NULL);
	web->fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(bind(web->fd, (struct sockaddr *)&where, len), 0);
	assert_int_equal(listen(web->fd, 8), 0);
	assert_int_equal(getsockname(web->fd, (struct sockaddr *)&where, &len), 0);
	web->port = ntohs(where.sin_port);
	assert_int_equal(pthread_create(&web->thread, NULL, web_serve, web), 0);
}

static void web_close(struct web *web)
{
	shutdown(web->fd, SHUT_RDWR);
	pthread_join(web->thread, NULL);
	pthread_mutex_destroy(&web->lock);
	close(web->fd);
}

/* Solves a source that the server does not have. */
static void ask_web(const struct web *web, struct solver *solver)
{
	scoped(strbuf_free) struct strbuf def = {0}, op = {0}, source = {0};
	scoped(free) char *url = str_printf("http://127.0.0.1:%u/r", web->port);
	scoped(graph_free) struct graph *g = NULL;
	struct ref *ref;
	struct vertex *v;
	int index;

	pb_text(&source, 1, "git://host/r#main");
	pb_attr(&source, 2, "git.fullurl", url);
	pb_attr(&source, 2, "git.authtokensecret", "TOKEN");
	pb_attr(&source, 2, "git.authheadersecret", "HEADER");
	pb_message(&op, 3, &source);
	struct digest d = pb_op(&def, &op);
	pb_result(&def, &d, 0);
	assert_int_equal(graph_load(&g, def.data, def.len, NULL), 0);
	graph_result(g, &v, &index);
	assert_int_equal(graph_solve(g, solver, v, index, NULL, &ref, NULL), -EIO);
}

static void secrets_become_headers(void **state)
{
	struct web web = {0};
	scoped(free) char *dir = test_dir();
	scoped(free) char *root = str_printf("%s/store", dir);
	scoped(free) char *file = str_printf("%s/secret", dir);
	web_open(&web);
	scoped(free) char *mine = str_printf("TOKEN.127.0.0.1:%u", web.port);
	const struct {
		struct solver_secret secrets[2];
		size_t n;
		const char *want; /* NULL = no header */
	} rows[] = {
		{{{0}}, 0, NULL},
		{{{"OTHER", .env = "GIT_TEST"}}, 1, NULL},
		{{{"TOKEN", .env = "GIT_TEST"}}, 1, "basic eC1hY2Nlc3MtdG9rZW46dG9rZW4="},
		{{{"HEADER", .env = "GIT_TEST"}}, 1, "token"},
		{{{"HEADER", .file = file}, {mine, .env = "GIT_TEST"}},
		 2,
		 "basic eC1hY2Nlc3MtdG9rZW46dG9rZW4="},
		{{{"HEADER", .file = file}, {"TOKEN", .env = "GIT_TEST"}}, 2, "Bearer from-file"},
	};
	struct store *store = test_store(root, 0);
	setenv("GIT_TEST", "token", 1);
	FILE *f = fopen(file, "w");
	assert_true(f && fputs("Bearer from-file", f) >= 0 && fclose(f) == 0);

	for (size_t i = 0; i < countof(rows); i++) {
		struct solver_options options = {
			.store = store, .secrets = rows[i].secrets, .n_secrets = rows[i].n};
		struct solver *solver;
		assert_int_equal(solver_new(&solver, &options, NULL), 0);
		ask_web(&web, solver);
		solver_free(solver);
		char request[sizeof(web.request)];
		pthread_mutex_lock(&web.lock);
		memcpy(request, web.request, sizeof(request));
		pthread_mutex_unlock(&web.lock);
		const char *sent = strstr(request, "\nAuthorization: ");
		if (!sent != !rows[i].want)
			fail_msg("row %zu: %s", i, request);
		sent = sent ? sent + strlen("\nAuthorization: ") : NULL;
		if (sent && (!str_starts(sent, rows[i].want) || sent[strlen(rows[i].want)] != '\r'))
			fail_msg("row %zu: %s", i, request);
	}
	store_close(store);
	web_close(&web);
	test_dir_remove(take(dir));
}

static void a_secret_that_is_no_header_is_refused(void **state)
{
	scoped(free) char *dir = test_dir();
	scoped(free) char *root = str_printf("%s/store", dir);
	struct store *store = test_store(root, 0);
	static const struct solver_secret secret = {"HEADER", .env = "GIT_TEST"};
	struct solver_options options = {.store = store, .secrets = &secret, .n_secrets = 1};
	scoped(graph_free) struct graph *g = NULL;
	scoped(strbuf_free) struct strbuf def = {0};
	struct solver *solver;
	struct ref *ref;
	struct vertex *v;
	struct err err = {0};
	int index;

	setenv("GIT_TEST", "a\r\nX-Other: b", 1);
	struct digest d = pb_source(&def, "git://host/r", "git.authheadersecret", "HEADER");
	pb_result(&def, &d, 0);
	assert_int_equal(solver_new(&solver, &options, NULL), 0);
	assert_int_equal(graph_load(&g, def.data, def.len, NULL), 0);
	graph_result(g, &v, &index);
	assert_int_equal(graph_solve(g, solver, v, index, NULL, &ref, &err), -EINVAL);
	assert_non_null(strstr(err.text, "more than a line"));
	assert_null(strstr(err.text, "X-Other"));
	unsetenv("GIT_TEST");
	solver_free(solver);
	store_close(store);
	test_dir_remove(take(dir));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addresses_are_taken_apart),
		cmocka_unit_test(hosts_and_passwords_are_told_apart),
		cmocka_unit_test(refs_are_found),
		cmocka_unit_test(the_reason_is_one_line),
		cmocka_unit_test(the_program_gets_its_own_world),
		cmocka_unit_test(one_that_hangs_is_ended),
		cmocka_unit_test(secrets_become_headers),
		cmocka_unit_test(a_secret_that_is_no_header_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
