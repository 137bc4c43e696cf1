/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One mount's server: the tree of a ref, a FUSE session that shows it, and a control socket that
 * tells how it goes.
 *
 * Runs in a process of its own from the first request to the registry on, so that its counters
 * hold them all, and so that whoever waits for the mount learns of a failure by its exit code.
 * It stays in the caller's process group, with its stderr, until the mount answers: until then an
 * interrupt ends both.
 */

#include "tools/tools.h"

#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct server {
	const struct options *o;
	const struct serve_request *request;
	struct app app;
	struct view view;
	struct upper *upper; /* NULL: it cannot be written */
	struct session *session;
	char *log_path; /* NULL = none is kept */
};

/* ------------------------------------------------------------------ control rows */

/* Returns the stored bytes that were read of it. */
static uint64_t status_layer(struct strbuf *s, const struct ref_tree_layer *layer)
{
	struct layer_status status;
	char digest[DIGEST_TEXT_MAX];

	strbuf_puts(s, s->data[s->len - 1] == '[' ? "{" : ",{");
	if (!layer->layer) {
		json_pair(s, "digest", NULL);
		json_pair(s, "media_type", NULL);
		json_u64(s, "size", 0);
		json_pair(s, "format", layer_format_name(LAYER_LOCAL));
		json_bool(s, "lazy", true);
		json_pair(s, "reason", "");
		json_u64(s, "fetched", 0);
		json_bool(s, "ready", true);
		json_pair(s, "dir", layer->dir);
		strbuf_putc(s, '}');
		return 0;
	}
	layer_status(layer->tree, &status);
	json_pair(s, "digest", digest_text(&status.desc->digest, digest));
	json_pair(s, "media_type", status.desc->media_type);
	json_u64(s, "size", status.desc->size);
	json_pair(s, "format", layer_format_name(status.format));
	json_bool(s, "lazy", status.is_lazy);
	json_pair(s, "reason", status.reason);
	json_u64(s, "fetched", status.usage.fetched);
	json_u64(s, "read", status.usage.read);
	json_u64(s, "here", status.usage.here);
	json_bool(s, "ready", status.is_ready);
	strbuf_putc(s, '}');
	return status.usage.read;
}

static void status_errors(struct strbuf *s, struct session *session)
{
	const size_t max = 64;
	scoped(free) struct session_error *errors = calloc(max, sizeof(*errors));
	size_t n = errors ? session_errors(session, errors, max) : 0;

	json_key(s, "errors");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < n; i++) {
		const char *code = strerrorname_np(-errors[i].code);

		strbuf_puts(s, i ? ",{" : "{");
		json_i64(s, "time", errors[i].time_s);
		json_pair(s, "code", code ? code : "");
		json_pair(s, "what", errors[i].what);
		json_pair(s, "text", errors[i].text);
		strbuf_putc(s, '}');
	}
	strbuf_putc(s, ']');
}

static void status_session(struct strbuf *s, struct session *session)
{
	static const char *const modes[] = {
		[DATA_AUTO] = "auto",
		[DATA_NOOPEN] = "noopen",
		[DATA_PASSTHROUGH] = "passthrough",
		[DATA_OPEN] = "open",
	};
	struct session_status status;

	session_status(session, &status);
	json_u64(s, "reads", status.n_reads);
	json_u64(s, "bytes_served", status.n_read_bytes);
	json_u64(s, "fuse_requests", status.n_requests);
	json_u64(s, "passthrough", status.n_passthrough);
	json_u64(s, "parked", status.n_parked);
	json_pair(s, "data", modes[status.data]);
	json_pair(s, "data_reason", status.data_reason);
}

static void answer_status(void *arg, const char *line, struct strbuf *out)
{
	static const char *const prefetch[] = {"none", "learned", "all"};
	struct server *server = arg;
	struct view *v = &server->view;
	struct net_stats net;
	uint64_t total = 0, read = 0;

	net_stats(server->app.net, &net);
	strbuf_putc(out, '{');
	json_pair(out, "mountpoint", server->request->mountpoint);
	json_pair(out, "ref", server->request->ref_text);
	json_bool(out, "rw", server->upper != NULL);
	json_pair(out, "upper", server->o->upper);
	json_u64(out, "pid", (uint64_t)getpid());
	json_key(out, "layers");
	strbuf_putc(out, '[');
	for (size_t i = 0; i < v->n_layers; i++) {
		read += status_layer(out, &v->layers[i]);
		total += v->layers[i].layer ? v->layers[i].layer->desc.size : 0;
	}
	strbuf_putc(out, ']');
	json_u64(out, "bytes_fetched", net.bytes);
	json_u64(out, "bytes_total", total);
	json_u64(out, "bytes_read", read);
	json_u64(out, "requests", net.requests);
	status_session(out, server->session);
	status_errors(out, server->session);
	json_pair(out, "prefetch", prefetch[server->o->prefetch]);
	strbuf_puts(out, "}\n");
}

static void answer_ping(void *arg, const char *line, struct strbuf *out)
{
	strbuf_printf(out, "%d\n", (int)getpid());
}

/* Ends the session as SIGTERM does. */
static void answer_stop(void *arg, const char *line, struct strbuf *out)
{
	strbuf_puts(out, "stopping\n");
	kill(getpid(), SIGTERM);
}

static const struct control_row control_rows[] = {
	{"status", answer_status},
	{"ping", answer_ping},
	{"stop", answer_stop},
};

/* ------------------------------------------------------------------ ready */

/* sd_notify(3): one datagram to $NOTIFY_SOCKET; a leading @ is an abstract address. */
static void notify_systemd(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	size_t len = path ? strlen(path) : 0;
	scoped(close_fd) int fd = -1;

	if (len == 0 || len >= sizeof(addr.sun_path))
		return;
	memcpy(addr.sun_path, path, len);
	if (*path == '@')
		addr.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&addr,
			     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
		log_warn("systemd was not told: %s", strerror(errno));
}

static void redirect(const char *path, int flags, int to)
{
	scoped(close_fd) int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd >= 0)
		dup2(fd, to);
}

/* Leaves the caller's session and terminal. Log lines go to a file when they were asked for. */
static void detach(const struct server *server)
{
	setsid();
	if (chdir("/") < 0)
		log_warn("chdir: %s", strerror(errno));
	redirect("/dev/null", O_RDONLY, STDIN_FILENO);
	redirect("/dev/null", O_WRONLY, STDOUT_FILENO);
	redirect("/dev/null", O_WRONLY, STDERR_FILENO);
	if (server->log_path)
		redirect(server->log_path, O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
}

static void server_prefetch(struct server *server)
{
	for (size_t i = 0; i < server->view.n_layers; i++) {
		const struct ref_tree_layer *layer = &server->view.layers[i];

		if (!layer->layer || server->o->prefetch == PREFETCH_NONE)
			continue;
		if (server->o->prefetch == PREFETCH_ALL)
			layer_prefetch_all(layer->tree);
		else
			layer_prefetch_learned(layer->tree);
	}
}

static void server_ready(void *arg)
{
	struct server *server = arg;
	int fd = server->request->ready_fd;

	progress_hide(server->app.progress);
	server_prefetch(server);
	if (fd < 0) {
		if (server->request->prints_path) {
			printf("%s\n", server->request->mountpoint);
			fflush(stdout);
		}
		notify_systemd("READY=1");
		return;
	}
	detach(server);
	if (write_full(fd, "", 1) < 0) /* who wanted the mount has gone */
		kill(getpid(), SIGTERM);
	close_fd(fd);
}

/* Passthrough pays where many bytes lie in a few large files; each of its opens is a request more. */
static bool server_wants_passthrough(void *arg)
{
	const uint64_t few_files = 1000, many_bytes = 64 << 20;
	struct server *server = arg;
	uint64_t files = 0, bytes = 0, large = 0;

	for (size_t i = 0; i < server->view.n_layers; i++) {
		struct layer_status status;

		if (!server->view.layers[i].layer)
			return false; /* a live folder, of unknown size */
		layer_status(server->view.layers[i].tree, &status);
		if (!status.is_ready)
			return false;
		files += status.n_files;
		bytes += status.plain_bytes;
		large += status.large_bytes;
	}
	return files <= few_files && large >= many_bytes && large > bytes / 2;
}

/* ------------------------------------------------------------------ serving */

/* The device number of our own mount, which names its socket. */
static int server_minor(const struct server *server, unsigned *out, struct err *err)
{
	struct mount_entry *entries;
	size_t n;
	int r = mounts_list(&entries, &n, err);

	if (r < 0)
		return r;
	r = -ENOENT;
	for (size_t i = 0; i < n; i++) {
		if (strcmp(entries[i].mountpoint, server->request->mountpoint) != 0)
			continue;
		*out = entries[i].minor; /* the last one is on top */
		r = 0;
	}
	mounts_free(entries, n);
	return r < 0 ? err_set(err, r, "%s is not in /proc/self/mountinfo",
			       server->request->mountpoint)
		     : 0;
}

static int server_control(struct server *server, struct err *err)
{
	scoped(free) char *dir = runtime_dir(err);
	scoped(free) char *path = NULL;
	unsigned device = 0;
	int r;

	if (!dir)
		return -EACCES;
	r = server_minor(server, &device, err);
	if (r < 0)
		return r;
	path = str_printf("%s/%u.sock", dir, device);
	if (server->o->log_level >= 0)
		server->log_path = str_printf("%s/%u.log", dir, device);
	if (!path)
		return -ENOMEM;
	return session_control(server->session, path, control_rows, countof(control_rows), server,
			       err);
}

/* What the tree is made of, in words: ids mean the same as long as this does. */
static char *server_key(const struct server *server)
{
	const struct options *o = server->o;
	struct strbuf key = {0};
	char digest[DIGEST_TEXT_MAX];

	for (size_t i = 0; i < server->request->n_inputs; i++)
		strbuf_printf(&key, "%s\n", server->request->inputs[i].text);
	strbuf_printf(&key, "layer %s platform %s\n", o->layer ? o->layer : "",
		      o->platform ? o->platform : "");
	for (size_t i = 0; i < server->view.n_layers; i++) {
		const struct ref_tree_layer *layer = &server->view.layers[i];

		strbuf_printf(&key, "%s\n",
			      layer->layer ? digest_text(&layer->layer->desc.digest, digest)
					   : layer->dir);
	}
	return strbuf_finish(&key);
}

static int server_upper(struct server *server, struct err *err)
{
	scoped(free) char *scratch = str_printf("%s/scratch", store_root(server->app.store));
	scoped(free) char *key = server_key(server);
	struct upper_options options = {.dir = server->o->upper, .below_key = key};

	if (!server->o->is_writable)
		return 0;
	if (!scratch || !key)
		return -ENOMEM;
	if (!options.dir) {
		options.dir = scratch;
		options.is_scratch = true;
	}
	return upper_open(&server->upper, server->view.tree, &options, err);
}

static int server_run(struct server *server, struct err *err)
{
	struct mount_options options = server->request->options;
	int r = server_upper(server, err);

	if (r < 0)
		return r;
	options.mountpoint = server->request->mountpoint;
	options.deadline_ms = server->o->deadline_ms;
	options.on_ready = server_ready;
	options.wants_passthrough = server_wants_passthrough;
	options.arg = server;
	if (!options.fsname)
		options.fsname = server->request->ref_text;
	options.upper = server->upper;
	r = session_new(&server->session,
			server->upper ? upper_tree(server->upper) : server->view.tree, &options,
			err);
	if (r == 0)
		r = server_control(server, err);
	if (r == 0)
		r = session_run(server->session, err);
	session_free(server->session);
	int closed = upper_close(server->upper, r < 0 ? NULL : err);
	if (r == 0)
		r = closed;
	if (r == 0)
		for (size_t i = 0; i < server->view.n_layers; i++)
			if (server->view.layers[i].layer)
				layer_learn(server->view.layers[i].tree);
	free(server->log_path);
	return r;
}

int serve(const struct options *o, const struct serve_request *request, struct err *err)
{
	struct server server = {.o = o, .request = request};
	scoped(free) char *title = str_printf("llbfs mount %s", request->ref_text);
	int r;

	if (!title)
		return -ENOMEM;
	r = app_open(&server.app, o, title, err);
	if (r < 0)
		return r;
	r = view_open(&server.view, &server.app, o, request->inputs, request->n_inputs, err);
	if (r == 0)
		r = server_run(&server, err);
	progress_hide(server.app.progress);
	view_close(&server.view);
	app_close(&server.app);
	return r;
}
