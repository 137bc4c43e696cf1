/* SPDX-License-Identifier: Apache-2.0 */

/* Challenges, tokens, credentials and URLs: the pure parts of talking to a registry. */

#include "tests/test.h"

#include "blobstore/net-internal.h"

#include <sys/eventfd.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------ challenges */

static void parses_a_bearer_challenge(void **state)
{
	static const char text[] = "Bearer realm=\"https://a/token\",service=\"r, x=y\","
				   "scope=\"repository:a/b:pull,push\",error=\"invalid_token\"";
	struct challenge c;

	assert_int_equal(challenge_parse(&c, text, strlen(text)), 0);
	assert_true(c.is_bearer);
	assert_false(c.is_basic);
	assert_string_equal(c.realm, "https://a/token");
	assert_string_equal(c.service, "r, x=y");
	assert_string_equal(c.scope, "repository:a/b:pull,push");
	challenge_deinit(&c);
}

static void parses_several_challenges_in_one_header(void **state)
{
	static const char *const texts[] = {
		"Negotiate, Basic realm=\"x\", Bearer realm=\"r\" , scope = s",
		"bearer Realm=r,scope=s,BASIC",
		"Digest realm=\"no\", nonce=\"Bearer realm=\\\"no\\\"\", Bearer "
		"realm=\"\\r\",scope=s, "
		"basic realm=\"no\"",
		"Negotiate dG9rZW4=, Bearer realm=r, scope=s, Basic realm=no, Bearer realm=second",
	};

	for (size_t i = 0; i < countof(texts); i++) {
		struct challenge c;
		assert_int_equal(challenge_parse(&c, texts[i], strlen(texts[i])), 0);
		assert_true(c.is_bearer && c.is_basic);
		assert_string_equal(c.realm, "r");
		assert_string_equal(c.scope, "s");
		assert_null(c.service);
		challenge_deinit(&c);
	}
}

static void refuses_challenges_it_cannot_answer(void **state)
{
	static const char *const texts[] = {
		"",  " , ",	  "Negotiate",	   "Bearer", "Bearer scope=\"s\"", "realm=\"r\"",
		"=", "\"Basic\"", "Digest Basic=x"};
	struct challenge c;

	for (size_t i = 0; i < countof(texts); i++)
		assert_int_equal(challenge_parse(&c, texts[i], strlen(texts[i])), -EBADMSG);
}

static void reads_tokens(void **state)
{
	static const struct {
		const char *json, *token;
		uint64_t seconds;
	} good[] = {
		{"{\"token\":\"abc\"}", "abc", 60},
		{"{\"access_token\":\"abc\",\"expires_in\":300}", "abc", 300},
		{"{\"token\":\"\",\"access_token\":\"x\",\"expires_in\":\"9\"}", "x", 60},
		{"{\"token\":\"t\",\"access_token\":\"x\",\"expires_in\":-5}", "t", 60},
	};
	static const char *const bad[] = {"",
					  "[]",
					  "{}",
					  "{\"token\":7}",
					  "{\"token\":\"a\\r\\nb\"}",
					  "{\"token\":\"a b\"}",
					  "{\"token\":\"\"}",
					  "<html>"};
	char *token;
	uint64_t seconds;

	for (size_t i = 0; i < countof(good); i++) {
		assert_int_equal(token_parse(good[i].json, strlen(good[i].json), &token, &seconds),
				 0);
		assert_string_equal(token, good[i].token);
		assert_int_equal(seconds, good[i].seconds);
		free(token);
	}
	for (size_t i = 0; i < countof(bad); i++)
		assert_int_equal(token_parse(bad[i], strlen(bad[i]), &token, &seconds), -EBADMSG);
}

/* ------------------------------------------------------------------ credentials */

/* "user:secret", "token:…" for an identity token, "helper:name@key", or "none". */
static void assert_finds(const char *json, const char *host, const char *repository,
			 const char *wanted)
{
	struct credentials c;
	struct err err = {0};
	char got[300] = "none";
	int r = credentials_find(&c, json, strlen(json), host, repository, &err);

	if (r < 0)
		fail_msg("%s: %s", json, err.text);
	if (r && c.helper)
		snprintf(got, sizeof(got), "helper:%s@%s", c.helper, c.helper_key);
	else if (r && c.is_identity_token)
		snprintf(got, sizeof(got), "token:%s", c.secret);
	else if (r)
		snprintf(got, sizeof(got), "%s:%s", c.user, c.secret);
	assert_string_equal(got, wanted);
	credentials_deinit(&c);
}

static void finds_a_host_however_it_is_written(void **state)
{
	static const char *const keys[] = {"h.io:5000", "https://h.io:5000", "http://h.io:5000/",
					   "https://h.io:5000/v1/", "h.io:5000/v2"};
	char json[300];

	for (size_t i = 0; i < countof(keys); i++) {
		snprintf(json, sizeof(json), "{\"auths\":{\"%s\":{\"auth\":\"dTpw\"}}}", keys[i]);
		assert_finds(json, "h.io:5000", "a", "u:p");
		assert_finds(json, "h.io", "a", "none");
		assert_finds(json, "h.io:500", "a", "none");
		assert_finds(json, "xh.io:5000", "a", "none");
	}
}

static void knows_docker_hub_by_all_its_names(void **state)
{
	static const char *const keys[] = {"https://index.docker.io/v1/", "docker.io",
					   "index.docker.io", "registry-1.docker.io"};
	char json[300];

	for (size_t i = 0; i < countof(keys); i++) {
		snprintf(json, sizeof(json), "{\"auths\":{\"%s\":{\"auth\":\"dTpw\"}}}", keys[i]);
		assert_finds(json, "docker.io", "library/a", "u:p");
		assert_finds(json, "docker.example", "library/a", "none");
	}
	assert_finds("{\"credsStore\":\"pass\"}", "docker.io", "a",
		     "helper:pass@https://index.docker.io/v1/");
}

static void prefers_the_longest_path(void **state)
{
	static const char json[] = "{\"auths\":{\"h\":{\"auth\":\"aG9zdDox\"},"
				   "\"h/team\":{\"auth\":\"dGVhbToy\"},"
				   "\"h/team/app\":{\"auth\":\"YXBwOjM=\"}}}";

	assert_finds(json, "h", "other", "host:1");
	assert_finds(json, "h", "team/x", "team:2");
	assert_finds(json, "h", "team/app", "app:3");
	assert_finds(json, "h", "team/app/deep", "app:3");
	assert_finds(json, "h", "team/apple", "team:2");
	assert_finds(json, "h", "teams", "host:1");
}

static void prefers_helpers_in_dockers_order(void **state)
{
	static const char json[] =
		"{\"auths\":{\"h\":{\"auth\":\"dTpw\"},\"k\":{\"auth\":\"dTpw\"}},"
		"\"credHelpers\":{\"h\":\"ecr-login\"},\"credsStore\":\"pass\"}";

	assert_finds(json, "h", "a", "helper:ecr-login@h");
	assert_finds(json, "k", "a", "helper:pass@k");
	assert_finds("{\"credHelpers\":{\"h\":\"x\"}}", "k", "a", "none");
}

static void reads_all_forms_of_an_entry(void **state)
{
	assert_finds("{\"auths\":{\"h\":{\"identitytoken\":\"tok\",\"auth\":\"dTpw\"}}}", "h", "a",
		     "token:tok");
	assert_finds("{\"auths\":{\"h\":{\"username\":\"me\",\"password\":\"pw\"}}}", "h", "a",
		     "me:pw");
	assert_finds("{\"auths\":{\"h\":{\"auth\":\"dTpwOjo=\"}}}", "h", "a", "u:p::");
	assert_finds("{\"auths\":{\"h\":{}}}", "h", "a", "none");
	assert_finds("{\"auths\":{\"h\":null},\"credHelpers\":7,\"credsStore\":[]}", "h", "a",
		     "none");
	assert_finds("{}", "h", "a", "none");
}

static void refuses_what_is_no_such_file(void **state)
{
	static const char *const texts[] = {"",
					    "[]",
					    "{\"auths\":",
					    "{\"auths\":{\"h\":{\"auth\":\"not base64!\"}}}",
					    "{\"auths\":{\"h\":{\"auth\":\"dXNlcg==\"}}}",
					    "{\"credsStore\":\"../../bin/sh\"}",
					    "{\"credHelpers\":{\"h\":\"a b\"}}"};
	struct credentials c;
	struct err err;

	for (size_t i = 0; i < countof(texts); i++) {
		err.code = 0;
		assert_int_equal(credentials_find(&c, texts[i], strlen(texts[i]), "h", "a", &err),
				 -EBADMSG);
		assert_int_equal(err.code, -EBADMSG);
	}
}

static void reads_what_helpers_say(void **state)
{
	static const char user[] = "{\"ServerURL\":\"h\",\"Username\":\"u\",\"Secret\":\"s\"}";
	static const char token[] = "{\"Username\":\"<token>\",\"Secret\":\"s\"}";
	static const char none[] = "credentials not found in native keychain\n";
	struct credentials c;

	assert_int_equal(credentials_helper_answer(&c, user, strlen(user)), 1);
	assert_string_equal(c.user, "u");
	assert_false(c.is_identity_token);
	credentials_deinit(&c);
	assert_int_equal(credentials_helper_answer(&c, token, strlen(token)), 1);
	assert_true(c.is_identity_token);
	credentials_deinit(&c);
	assert_int_equal(credentials_helper_answer(&c, none, strlen(none)), 0);
	assert_int_equal(credentials_helper_answer(&c, "{}", 2), 0);
	assert_int_equal(credentials_helper_answer(&c, "oops", 4), -EBADMSG);
}

/* ------------------------------------------------------------------ files and helpers */

static char *dir;

static void put(const char *name, const char *text)
{
	scoped(free) char *path = str_printf("%s/%s", dir, name);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	chmod(path, 0755);
}

static int make_home(void **state)
{
	dir = test_dir();
	scoped(free) char *containers = str_printf("%s/containers", dir);
	scoped(free) char *path = str_printf("%s:/bin:/usr/bin", dir);
	assert_int_equal(make_dirs(containers, 0755), 0);
	setenv("DOCKER_CONFIG", dir, 1);
	setenv("XDG_RUNTIME_DIR", dir, 1);
	setenv("XDG_CONFIG_HOME", "/nonexistent", 1);
	setenv("PATH", path, 1);
	return 0;
}

static int remove_home(void **state)
{
	test_dir_remove(dir);
	return 0;
}

static int look_up(struct credentials *c, struct err *err)
{
	int fd = eventfd(0, EFD_CLOEXEC);
	int r = credentials_lookup(c, "h", "a", fd, err);

	close(fd);
	return r;
}

static void asks_dockers_file_before_containers(void **state)
{
	struct credentials c;
	struct err err = {0};

	put("containers/auth.json", "{\"auths\":{\"h\":{\"auth\":\"dTpw\"}}}");
	assert_int_equal(look_up(&c, &err), 0);
	assert_string_equal(c.user, "u");
	credentials_deinit(&c);
	put("config.json", "{\"auths\":{\"h\":{\"auth\":\"ZDpw\"}}}");
	assert_int_equal(look_up(&c, &err), 0);
	assert_string_equal(c.user, "d");
	credentials_deinit(&c);
	/* One that is broken does not hide the other. */
	put("config.json", "{");
	assert_int_equal(look_up(&c, &err), 0);
	assert_string_equal(c.user, "u");
	credentials_deinit(&c);
	put("containers/auth.json", "{}");
	assert_int_equal(look_up(&c, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "config.json"));
}

static void goes_on_when_a_helper_knows_nothing(void **state)
{
	struct credentials c;
	struct err err = {0};

	put("docker-credential-x",
	    "#!/bin/sh\necho credentials not found in native keychain; exit 1\n");
	put("config.json", "{\"credsStore\":\"x\",\"auths\":{\"h\":{\"auth\":\"ZDpw\"}}}");
	assert_int_equal(look_up(&c, &err), 0);
	assert_string_equal(c.user, "d");
	credentials_deinit(&c);
	put("config.json", "{\"credsStore\":\"x\"}");
	put("containers/auth.json", "{\"auths\":{\"h\":{\"auth\":\"dTpw\"}}}");
	assert_int_equal(look_up(&c, &err), 0);
	assert_string_equal(c.user, "u");
	credentials_deinit(&c);
	assert_int_equal(err.code, 0);
}

static void says_what_is_wrong_with_a_helper(void **state)
{
	struct credentials c;
	struct err err = {0};

	put("config.json", "{\"credsStore\":\"x\"}");
	put("docker-credential-x", "#!/bin/sh\nexit 3\n");
	assert_int_equal(look_up(&c, &err), -EBADMSG);
	assert_string_equal(err.text, "docker-credential-x: exit status 3 and no answer");
	put("docker-credential-x", "#!/bin/sh\nexec cat /dev/zero\n");
	assert_int_equal(look_up(&c, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "too long"));
	put("config.json", "{\"credsStore\":\"not-installed\"}");
	assert_int_equal(look_up(&c, &err), -ENOENT);
}

static void a_helper_that_hangs_can_be_stopped(void **state)
{
	struct credentials c;
	struct err err = {0};
	int fd = eventfd(1, EFD_CLOEXEC);

	put("config.json", "{\"credsStore\":\"x\"}");
	put("docker-credential-x", "#!/bin/sh\nsleep 1000\n");
	assert_int_equal(credentials_lookup(&c, "h", "a", fd, &err), -ECANCELED);
	close(fd);
}

/* ------------------------------------------------------------------ URLs */

static void tells_loopback_from_the_rest(void **state)
{
	static const char *const near[] = {
		"localhost", "LOCALHOST:80", "127.0.0.1", "127.9.8.7:5000",
		"[::1]",     "[::1]:5000",   "::1"};
	static const char *const far[] = {"",
					  "127.evil.com",
					  "127.0.0.1.evil.com:80",
					  "localhost.x",
					  "128.0.0.1",
					  "[::2]:80",
					  "[::1",
					  "[::1]x",
					  "127.1",
					  "::2"};

	for (size_t i = 0; i < countof(near); i++)
		assert_true(host_is_loopback(near[i]));
	for (size_t i = 0; i < countof(far); i++)
		assert_false(host_is_loopback(far[i]));
}

static void allows_http_only_where_it_is_safe_or_wanted(void **state)
{
	struct net_options strict = {0}, plain = {.plain_http = true};

	assert_true(url_is_allowed(&strict, "https://example.com/x"));
	assert_true(url_is_allowed(&strict, "http://127.0.0.1:5000/x"));
	assert_true(url_is_allowed(&strict, "http://[::1]:5000/x"));
	assert_false(url_is_allowed(&strict, "http://example.com/x"));
	assert_false(url_is_allowed(&strict, "http://127.0.0.1@example.com/x"));
	assert_true(url_is_allowed(&plain, "http://example.com/x"));
	assert_false(url_is_allowed(&plain, "file:///etc/passwd"));
	assert_false(url_is_allowed(&plain, "no url"));
}

static void resolves_locations(void **state)
{
	static const struct {
		const char *location, *url;
	} cases[] = {
		{"https://cdn/x?sig=a%2Fb", "https://cdn/x?sig=a%2Fb"},
		{"/other/path", "https://h:5000/other/path"},
		{"sibling?q=1", "https://h:5000/v2/a/sibling?q=1"},
		{"//cdn/x", "https://cdn/x"},
		{"https://user:password@cdn/x#part", "https://cdn/x"},
	};
	static const char *const bad[] = {"ftp://h/x", "file:///etc/passwd", "gopher://x"};
	char *url, host[100];

	for (size_t i = 0; i < countof(cases); i++) {
		assert_int_equal(url_resolve("https://h:5000/v2/a/b", cases[i].location, &url), 0);
		assert_string_equal(url, cases[i].url);
		free(url);
	}
	for (size_t i = 0; i < countof(bad); i++)
		assert_int_equal(url_resolve("https://h:5000/v2/a/b", bad[i], &url), -EBADMSG);
	assert_true(url_same_origin("https://h/a", "https://H:443/b"));
	assert_false(url_same_origin("https://h/a", "http://h/a"));
	assert_false(url_same_origin("https://h/a", "https://h:444/a"));
	assert_string_equal(url_host_text("https://h/secret?x", host, sizeof(host)), "h");
	assert_string_equal(url_host_text("http://h:1/secret?x", host, sizeof(host)), "h:1");
	assert_string_equal(url_host_text("?", host, sizeof(host)), "an unknown host");
}

static void registries_have_sound_names(void **state)
{
	static const char *const bad[][2] = {{"", "a"},	      {"h", ""},     {"h/x", "a"},
					     {"h", "/a"},     {"h", "a/"},   {"h", "a//b"},
					     {"h", "a/../b"}, {"h@x", "a"},  {"h", "a?b"},
					     {"h", "a#b"},    {"h", "a%2f"}, {"h\n", "a"}};
	struct net_options options = {0};
	struct net *net = NULL;
	struct registry *r = NULL;

	assert_int_equal(net_new(&net, &options, NULL), 0);
	for (size_t i = 0; i < countof(bad); i++)
		assert_int_equal(registry_new(&r, net, bad[i][0], bad[i][1], NULL), -EINVAL);
	assert_int_equal(registry_new(&r, net, "docker.io", "library/a", NULL), 0);
	assert_string_equal(registry_remote(r)->name, "docker.io/library/a");
	assert_string_equal(r->path, "//registry-1.docker.io/v2/library/a");
	assert_false(r->is_plain);
	registry_unref(r);
	assert_int_equal(registry_new(&r, net, "[::1]:5000", "a_b/c-d.e", NULL), 0);
	assert_true(r->is_plain);
	registry_unref(r);
	net_free(net);
}

static void a_net_needs_certificates_that_are_some(void **state)
{
	struct net_options options = {.ca = "/dev/null"};
	struct net *net = NULL;
	struct err err = {0};

	assert_int_equal(net_new(&net, &options, &err), -EINVAL);
	assert_non_null(strstr(err.text, "/dev/null"));
	options.ca = "/nonexistent";
	assert_int_equal(net_new(&net, &options, &err), -ENOENT);
	assert_null(net);
}

#define at_home(f) cmocka_unit_test_setup_teardown(f, make_home, remove_home)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parses_a_bearer_challenge),
		cmocka_unit_test(parses_several_challenges_in_one_header),
		cmocka_unit_test(refuses_challenges_it_cannot_answer),
		cmocka_unit_test(reads_tokens),
		cmocka_unit_test(finds_a_host_however_it_is_written),
		cmocka_unit_test(knows_docker_hub_by_all_its_names),
		cmocka_unit_test(prefers_the_longest_path),
		cmocka_unit_test(prefers_helpers_in_dockers_order),
		cmocka_unit_test(reads_all_forms_of_an_entry),
		cmocka_unit_test(refuses_what_is_no_such_file),
		cmocka_unit_test(reads_what_helpers_say),
		at_home(asks_dockers_file_before_containers),
		at_home(goes_on_when_a_helper_knows_nothing),
		at_home(says_what_is_wrong_with_a_helper),
		at_home(a_helper_that_hangs_can_be_stopped),
		cmocka_unit_test(tells_loopback_from_the_rest),
		cmocka_unit_test(allows_http_only_where_it_is_safe_or_wanted),
		cmocka_unit_test(resolves_locations),
		cmocka_unit_test(registries_have_sound_names),
		cmocka_unit_test(a_net_needs_certificates_that_are_some),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
