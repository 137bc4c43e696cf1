/* SPDX-License-Identifier: Apache-2.0 */

/*
 * credentials: who the user is at a registry, from the files that docker and podman keep.
 *
 * Two files have one form (JSON):
 *
 *   $DOCKER_CONFIG/config.json, or ~/.docker/config.json
 *   $REGISTRY_AUTH_FILE, or $XDG_RUNTIME_DIR/containers/auth.json, or /run/containers/UID/auth.json,
 *   then $XDG_CONFIG_HOME/containers/auth.json (~/.config)
 *
 *   {"auths": {KEY: {"auth": base64("user:password"), "identitytoken": …}},
 *    "credsStore": HELPER, "credHelpers": {KEY: HELPER}}
 *
 * A KEY is a host with its port, maybe with a scheme before it, and in containers' file maybe
 * with a part of the repository's path after it; the longest match wins. Docker Hub is
 * "docker.io" in names, but its key is "https://index.docker.io/v1/". In each file credHelpers come
 * before credsStore, and that before auths, which is the order that docker has.
 *
 * A HELPER is a program, docker-credential-HELPER: "get", the server on its stdin, the answer as
 * JSON on its stdout. It may ask the user, talk to a network, or read a file of a mount that we
 * serve: so all this runs on a thread that nobody waits for, and under a time limit.
 */

#include "blobstore/net-internal.h"

#include <ctype.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONFIG_MAX (4u << 20)
#define ANSWER_MAX (64u << 10)
#define HELPER_PATIENCE_MS 20000
#define DOCKER_HUB_KEY "https://index.docker.io/v1/"

extern char **environ;

static void json_free(json_t *json)
{
	json_decref(json);
}
define_scoped(json_t *, json_free);

static void secret_free(char *secret)
{
	if (secret)
		explicit_bzero(secret, strlen(secret));
	free(secret);
}

void credentials_deinit(struct credentials *c)
{
	free(c->user);
	secret_free(c->secret);
	free(c->helper);
	free(c->helper_key);
	*c = (struct credentials){0};
}

/* ------------------------------------------------------------------ keys */

static bool is_docker_hub(const char *host, size_t n)
{
	static const char *const names[] = {"docker.io", "index.docker.io", "registry-1.docker.io"};

	for (size_t i = 0; i < countof(names); i++)
		if (strlen(names[i]) == n && !memcmp(names[i], host, n))
			return true;
	return false;
}

/* How well @key fits: 0 = not at all, more = a longer part of the name. */
static size_t key_match(const char *key, const char *host, const char *repository)
{
	if (str_starts(key, "https://"))
		key += 8;
	else if (str_starts(key, "http://"))
		key += 7;
	size_t n_host = strcspn(key, "/");
	bool is_same = strlen(host) == n_host && !memcmp(key, host, n_host);
	if (!is_same && !(is_docker_hub(host, strlen(host)) && is_docker_hub(key, n_host)))
		return 0;

	const char *path = key + n_host + (key[n_host] == '/');
	size_t n = strlen(path);
	while (n && path[n - 1] == '/')
		n--;
	if ((n == 2 && (!memcmp(path, "v1", 2) || !memcmp(path, "v2", 2))) || n == 0)
		return is_same ? 2 : 1;
	if (strncmp(path, repository, n) != 0 || (repository[n] && repository[n] != '/'))
		return 0;
	return 2 + n;
}

static json_t *best_entry(json_t *object, const char *host, const char *repository)
{
	const char *key;
	json_t *value, *best = NULL;
	size_t best_match = 0;

	json_object_foreach(object, key, value)
	{
		size_t match = key_match(key, host, repository);
		if (match > best_match) {
			best = value;
			best_match = match;
		}
	}
	return best;
}

/* ------------------------------------------------------------------ the files */

static bool helper_name_is_sound(const char *name)
{
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("-_.", *p))
			return false;
	return *name && strlen(name) < 100;
}

static int found_helper(struct credentials *out, const char *name, const char *host,
			struct err *err)
{
	if (!helper_name_is_sound(name))
		return err_set(err, -EBADMSG, "the name of its credential helper is not one");
	bool is_hub = is_docker_hub(host, strlen(host));
	out->helper = strdup(name);
	out->helper_key = strdup(is_hub ? DOCKER_HUB_KEY : host);
	return out->helper && out->helper_key ? 1 : err_set(err, -ENOMEM, "no memory");
}

/* Takes over what @entry of "auths" says. */
static int found_auth(struct credentials *out, json_t *entry, struct err *err)
{
	const char *auth = json_string_value(json_object_get(entry, "auth"));
	const char *identity = json_string_value(json_object_get(entry, "identitytoken"));
	const char *user = json_string_value(json_object_get(entry, "username"));
	const char *password = json_string_value(json_object_get(entry, "password"));
	scoped(free) uint8_t *plain = NULL;
	size_t n = 0;

	if (auth && *auth) {
		if (base64_decode(auth, strlen(auth), &plain, &n) < 0)
			return err_set(err, -EBADMSG, "an \"auth\" in it is not base64");
		scoped(free) char *text = strndup((char *)plain, n);
		explicit_bzero(plain, n);
		char *colon = text ? strchr(text, ':') : NULL;
		if (!colon)
			return err_set(err, -EBADMSG, "an \"auth\" in it has no colon");
		*colon = '\0';
		out->user = strdup(text);
		out->secret = strdup(colon + 1);
		explicit_bzero(colon + 1, strlen(colon + 1));
	} else if (user && password) {
		out->user = strdup(user);
		out->secret = strdup(password);
	}
	if (identity && *identity) {
		secret_free(out->secret);
		out->secret = strdup(identity);
		out->is_identity_token = true;
	}
	bool is_any = out->is_identity_token || plain || (user && password);
	if (is_any && !out->secret)
		return err_set(err, -ENOMEM, "no memory");
	return is_any;
}

int credentials_find(struct credentials *out, const char *json, size_t len, const char *host,
		     const char *repository, struct err *err)
{
	json_error_t why;
	scoped(json_free) json_t *root = json_loadb(json, len, 0, &why);

	*out = (struct credentials){0};
	if (!json_is_object(root))
		return err_set(err, -EBADMSG, "not a JSON object: line %d: %s", why.line, why.text);
	json_t *helpers = json_object_get(root, "credHelpers");
	const char *helper = json_string_value(best_entry(helpers, host, repository));
	if (!helper)
		helper = json_string_value(json_object_get(root, "credsStore"));
	json_t *entry = best_entry(json_object_get(root, "auths"), host, repository);
	int r = 0;
	if (json_is_object(entry))
		r = found_auth(out, entry, err);
	if (r >= 0 && helper && *helper)
		r = found_helper(out, helper, host, err);
	if (r < 0)
		credentials_deinit(out);
	return r;
}

int credentials_helper_answer(struct credentials *out, const char *text, size_t len)
{
	scoped(json_free) json_t *root = json_loadb(text, len, 0, NULL);
	const char *user = json_string_value(json_object_get(root, "Username"));
	const char *secret = json_string_value(json_object_get(root, "Secret"));

	*out = (struct credentials){0};
	if (!json_is_object(root))
		return memmem(text, len, "credentials not found", 21) ? 0 : -EBADMSG;
	if (!secret || !*secret)
		return 0;
	out->is_identity_token = user && !strcmp(user, "<token>");
	out->user = strdup(user ? user : "");
	out->secret = strdup(secret);
	if (out->user && out->secret)
		return 1;
	credentials_deinit(out);
	return -ENOMEM;
}

/* ------------------------------------------------------------------ helpers */

struct helper {
	pid_t pid;
	int out; /* our end of its stdout */
};

/* Its stdin is a file and no pipe: it may well end without having read it. */
static int helper_stdin(const char *text)
{
	int fd = memfd_create("server", MFD_CLOEXEC);

	if (fd >= 0 && pwrite_full(fd, text, strlen(text), 0) < 0) {
		close_fd(fd);
		fd = -1;
	}
	return fd;
}

static int helper_spawn(struct helper *h, const char *program, const char *key, struct err *err)
{
	scoped(close_fd) int in = helper_stdin(key);
	int out[2];
	char *argv[] = {(char *)program, (char *)"get", NULL};
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none;

	if (in < 0 || pipe2(out, O_CLOEXEC) < 0)
		return err_errno(err, "%s", program);
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, in, STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&files, out[1], STDOUT_FILENO);
	posix_spawnattr_init(&attr);
	/* A group of its own, so that what it starts goes with it; our blocked signals are not its. */
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
	sigemptyset(&none);
	posix_spawnattr_setsigmask(&attr, &none);
	int r = -posix_spawnp(&h->pid, program, &files, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	close_fd(out[1]);
	h->out = out[0];
	if (r < 0) {
		close_fd(h->out);
		return err_set(err, r, "%s: %s", program, strerror(-r));
	}
	return 0;
}

/* Collects its stdout until it closes it. */
static int helper_read(struct helper *h, int stop_fd, struct strbuf *answer, struct err *err)
{
	uint64_t until = now_ns() + HELPER_PATIENCE_MS * NS_PER_MS;
	char buf[4096];

	for (;;) {
		struct pollfd fds[] = {{.fd = h->out, .events = POLLIN},
				       {.fd = stop_fd, .events = POLLIN}};
		uint64_t now = now_ns();
		int left_ms = now < until ? (int)((until - now) / NS_PER_MS) + 1 : 0;
		int n = poll(fds, countof(fds), left_ms);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, "poll");
		if (n == 0)
			return err_set(err, -ETIMEDOUT, "no answer after %d s",
				       HELPER_PATIENCE_MS / 1000);
		if (fds[1].revents)
			return err_set(err, -ECANCELED, "cancelled");
		ssize_t got = read(h->out, buf, sizeof(buf));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return err_errno(err, "read");
		if (got == 0)
			return 0;
		strbuf_add(answer, buf, (size_t)got);
		explicit_bzero(buf, sizeof(buf));
		if (answer->failed || answer->len > ANSWER_MAX)
			return err_set(err, -EBADMSG, "its answer is too long");
	}
}

/* Exit status; one that has closed its stdout but does not end is killed. */
static int helper_end(struct helper *h, bool is_done)
{
	struct pollfd gone = {.fd = pidfd_open(h->pid, 0), .events = POLLIN};
	int status = 0;

	if (!is_done || gone.fd < 0 || poll(&gone, 1, 1000) != 1)
		kill(-h->pid, SIGKILL);
	while (waitpid(h->pid, &status, 0) < 0 && errno == EINTR)
		;
	close_fd(gone.fd);
	close_fd(h->out);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void strbuf_wipe(struct strbuf *s)
{
	if (s->data)
		explicit_bzero(s->data, s->len);
	strbuf_free(s);
}

/* Replaces what @c says of a helper by what the helper says. 1, 0 (it knows none), or an error. */
static int helper_ask(struct credentials *c, int stop_fd, struct err *err)
{
	scoped(free) char *program = str_printf("docker-credential-%s", c->helper);
	struct credentials answer;
	struct strbuf text = {0};
	struct helper h;

	if (!program)
		return err_set(err, -ENOMEM, "no memory");
	int r = helper_spawn(&h, program, c->helper_key, err);
	if (r < 0)
		return r;
	r = helper_read(&h, stop_fd, &text, err);
	int status = helper_end(&h, r == 0);
	if (r < 0)
		err_wrap(err, r, "%s", program);
	else
		r = credentials_helper_answer(&answer, text.data ? text.data : "", text.len);
	if (r == 1) {
		credentials_deinit(c);
		*c = answer;
	} else if (r == -EBADMSG && !(err && err->code)) {
		err_set(err, r, "%s: exit status %d and no answer", program, status);
	}
	strbuf_wipe(&text);
	return r;
}

/* ------------------------------------------------------------------ looking up */

static char *home_path(const char *below)
{
	const char *home = getenv("HOME");
	struct passwd pw, *found = NULL;
	char buf[4096];

	if ((!home || !*home) && !getpwuid_r(getuid(), &pw, buf, sizeof(buf), &found) && found)
		home = found->pw_dir;
	return home && *home ? str_printf("%s/%s", home, below) : NULL;
}

static char *env_path(const char *name, const char *below)
{
	const char *dir = getenv(name);

	return dir && *dir ? str_printf("%s%s", dir, below) : NULL;
}

/* The n-th file to look in; NULL = there is none such here. Caller frees. */
#define N_PLACES 4
static char *place(int n)
{
	char *path = NULL;

	switch (n) {
	case 0:
		path = env_path("DOCKER_CONFIG", "/config.json");
		return path ? path : home_path(".docker/config.json");
	case 1:
		return env_path("REGISTRY_AUTH_FILE", "");
	case 2:
		path = env_path("XDG_RUNTIME_DIR", "/containers/auth.json");
		return path ? path : str_printf("/run/containers/%u/auth.json", (unsigned)getuid());
	default:
		path = env_path("XDG_CONFIG_HOME", "/containers/auth.json");
		return path ? path : home_path(".config/containers/auth.json");
	}
}

/* Asks the helper first; what the file itself says is the second choice. */
static int lookup_in_file(struct credentials *out, const char *path, const char *host,
			  const char *repository, int stop_fd, struct err *err)
{
	struct strbuf text = {0};
	int r = read_file(AT_FDCWD, path, CONFIG_MAX, &text);

	if (r == -ENOENT || r == -ENOTDIR)
		r = 0;
	else if (r < 0)
		err_set(err, r, "%s: %s", path, strerror(-r));
	else if ((r = credentials_find(out, text.data ? text.data : "", text.len, host, repository,
				       err)) < 0)
		err_wrap(err, r, "%s", path);
	strbuf_wipe(&text);
	if (r == 1 && out->helper) {
		r = helper_ask(out, stop_fd, err);
		if (r <= 0 && r != -ECANCELED && out->secret)
			r = 1;
	}
	if (r != 1)
		credentials_deinit(out);
	return r;
}

int credentials_lookup(struct credentials *out, const char *host, const char *repository,
		       int stop_fd, struct err *err)
{
	int result = 0;

	*out = (struct credentials){0};
	for (int i = 0; i < N_PLACES; i++) {
		scoped(free) char *path = place(i);
		if (!path)
			continue;
		int r = lookup_in_file(out, path, host, repository, stop_fd, err);
		if (r == 1 || r == -ECANCELED)
			return MIN(r, 0);
		if (r < 0)
			result = r;
	}
	return result;
}
