/* SPDX-License-Identifier: Apache-2.0 */

/*
 * control: the socket on which a mount answers questions.
 *
 * One thread serves it with poll: a few clients at once, each with a deadline, none of which can
 * hold up another by being slow. A client sends one line; the answer is made by the row whose name
 * is the line's first word, on this thread; then the connection is closed. The socket can be used
 * by its owner only.
 */

#include "fs/fs-internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_CLIENTS 16
#define LINE_MAX_BYTES 4096
#define ANSWER_MAX (64u << 20)
#define CLIENT_MS 10000

struct client {
	int fd; /* -1: free */
	uint64_t deadline_ns;
	struct strbuf text; /* the line, then the answer */
	size_t sent;
	bool is_answering;
};

struct control {
	char *path;
	struct control_row *rows;
	size_t n_rows;
	void *arg;
	int listen_fd, stop_fd;
	pthread_t thread;
	bool has_thread;
	struct client clients[MAX_CLIENTS]; /* the thread's own */
};

static int make_address(const char *path, struct sockaddr_un *out, struct err *err)
{
	*out = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(out->sun_path))
		return err_set(err, -ENAMETOOLONG,
			       "%s: the path of a socket can have at most %zu bytes", path,
			       sizeof(out->sun_path) - 1);
	strcpy(out->sun_path, path);
	return 0;
}

/* ------------------------------------------------------------------ clients */

static void client_close(struct client *c)
{
	close_fd(c->fd);
	strbuf_free(&c->text);
	*c = (struct client){.fd = -1};
}

static void accept_client(struct control *ctl)
{
	int fd = accept4(ctl->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	for (size_t i = 0; i < MAX_CLIENTS; i++) {
		struct client *c = &ctl->clients[i];
		if (c->fd >= 0)
			continue;
		c->fd = fd;
		c->deadline_ns = now_ns() + CLIENT_MS * NS_PER_MS;
		return;
	}
	close_fd(fd);
}

static void answer(struct control *ctl, struct client *c, const char *line)
{
	scoped(strbuf_free) struct strbuf out = {0};
	size_t word = strcspn(line, " ");
	const struct control_row *row = NULL;

	for (size_t i = 0; i < ctl->n_rows && !row; i++)
		if (strlen(ctl->rows[i].name) == word && !strncmp(ctl->rows[i].name, line, word))
			row = &ctl->rows[i];
	if (row)
		row->answer(ctl->arg, line, &out);
	else
		strbuf_printf(&out, "unknown request: %.*s\n", (int)word, line);
	strbuf_clear(&c->text);
	if (!out.failed && out.len)
		strbuf_add(&c->text, out.data, out.len);
	c->is_answering = true;
	c->deadline_ns = now_ns() + CLIENT_MS * NS_PER_MS;
}

/* Returns false when the client is to be closed. */
static bool client_read(struct control *ctl, struct client *c)
{
	char buf[512];
	ssize_t n = recv(c->fd, buf, sizeof(buf), 0);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n == 0)
		return false;
	strbuf_add(&c->text, buf, (size_t)n);
	char *eol = c->text.failed ? NULL : memchr(c->text.data, '\n', c->text.len);
	if (!eol)
		return !c->text.failed && c->text.len < LINE_MAX_BYTES;
	*eol = '\0';
	scoped(free) char *line = strdup(c->text.data);
	if (!line)
		return false;
	answer(ctl, c, line);
	return true;
}

static bool client_write(struct client *c)
{
	if (c->text.failed || c->sent == c->text.len)
		return false;
	ssize_t n = send(c->fd, c->text.data + c->sent, c->text.len - c->sent, MSG_NOSIGNAL);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	c->sent += (size_t)n;
	return c->sent < c->text.len;
}

static void serve_client(struct control *ctl, struct client *c, short revents)
{
	bool stays = now_ns() < c->deadline_ns;

	if (stays && !c->is_answering && revents)
		stays = client_read(ctl, c);
	if (stays && c->is_answering) /* most answers fit into the socket's buffer at once */
		stays = client_write(c);
	if (!stays)
		client_close(c);
}

/* ------------------------------------------------------------------ the thread */

/* Milliseconds until the next deadline of a client; -1 without clients. */
static int poll_timeout(const struct control *ctl)
{
	uint64_t now = now_ns();
	uint64_t first = UINT64_MAX;

	for (size_t i = 0; i < MAX_CLIENTS; i++)
		if (ctl->clients[i].fd >= 0)
			first = MIN(first, ctl->clients[i].deadline_ns);
	if (first == UINT64_MAX)
		return -1;
	return first <= now ? 0 : (int)((first - now) / NS_PER_MS) + 1;
}

static void *control_main(void *arg)
{
	struct control *ctl = arg;
	struct pollfd fds[2 + MAX_CLIENTS];

	pthread_setname_np(pthread_self(), "control");
	for (;;) {
		fds[0] = (struct pollfd){.fd = ctl->stop_fd, .events = POLLIN};
		fds[1] = (struct pollfd){.fd = ctl->listen_fd, .events = POLLIN};
		for (size_t i = 0; i < MAX_CLIENTS; i++) {
			const struct client *c = &ctl->clients[i];
			fds[2 + i] = (struct pollfd){.fd = c->fd,
						     .events = c->is_answering ? POLLOUT : POLLIN};
		}
		if (poll(fds, countof(fds), poll_timeout(ctl)) < 0 && errno != EINTR)
			break;
		if (fds[0].revents)
			break;
		for (size_t i = 0; i < MAX_CLIENTS; i++)
			if (ctl->clients[i].fd >= 0)
				serve_client(ctl, &ctl->clients[i], fds[2 + i].revents);
		if (fds[1].revents)
			accept_client(ctl);
	}
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		if (ctl->clients[i].fd >= 0)
			client_close(&ctl->clients[i]);
	return NULL;
}

/* ------------------------------------------------------------------ the socket */

/* Binds; a socket file that nobody listens on any more is replaced. */
static int bind_socket(int fd, const char *path, const struct sockaddr_un *addr, struct err *err)
{
	const struct sockaddr *sa = (const struct sockaddr *)addr;

	/* Before bind: the file is made with the socket's own mode. */
	if (fchmod(fd, 0600) < 0)
		return err_errno(err, "fchmod");
	if (bind(fd, sa, sizeof(*addr)) == 0)
		return 0;
	if (errno != EADDRINUSE)
		return err_errno(err, "cannot listen at %s", path);

	scoped(close_fd) int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe < 0)
		return err_errno(err, "socket");
	if (connect(probe, sa, sizeof(*addr)) == 0 || errno != ECONNREFUSED)
		return err_set(err, -EADDRINUSE, "somebody listens at %s already", path);
	if (unlink(path) < 0 || bind(fd, sa, sizeof(*addr)) < 0)
		return err_errno(err, "cannot listen at %s", path);
	return 0;
}

int control_new(struct control **out, const char *path, const struct control_row *rows, size_t n,
		void *arg, struct err *err)
{
	struct sockaddr_un addr;
	int r = make_address(path, &addr, err);

	if (r < 0)
		return r;
	struct control *ctl = calloc(1, sizeof(*ctl));
	if (!ctl)
		return err_set(err, -ENOMEM, "no memory");
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		ctl->clients[i].fd = -1;
	ctl->arg = arg;
	ctl->stop_fd = eventfd(0, EFD_CLOEXEC);
	ctl->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	ctl->rows = calloc(n ? n : 1, sizeof(*rows));
	if (ctl->stop_fd < 0 || ctl->listen_fd < 0 || !ctl->rows) {
		r = err_errno(err, "socket");
		goto fail;
	}
	if (n)
		memcpy(ctl->rows, rows, n * sizeof(*rows));
	ctl->n_rows = n;
	r = bind_socket(ctl->listen_fd, path, &addr, err);
	if (r < 0)
		goto fail;
	ctl->path = strdup(path); /* from here on control_free removes the file */
	if (!ctl->path) {
		unlink(path);
		r = err_set(err, -ENOMEM, "no memory");
		goto fail;
	}
	if (listen(ctl->listen_fd, MAX_CLIENTS) < 0) {
		r = err_errno(err, "cannot listen at %s", path);
		goto fail;
	}
	*out = ctl;
	return 0;
fail:
	control_free(ctl);
	return r;
}

int control_start(struct control *ctl, struct err *err)
{
	int r = pthread_create(&ctl->thread, NULL, control_main, ctl);

	if (r)
		return err_set(err, -r, "cannot start a thread: %s", strerror(r));
	ctl->has_thread = true;
	return 0;
}

void control_free(struct control *ctl)
{
	const uint64_t one = 1;

	if (!ctl)
		return;
	if (ctl->path)
		unlink(ctl->path);
	if (ctl->has_thread) {
		(void)!write(ctl->stop_fd, &one, sizeof(one));
		pthread_join(ctl->thread, NULL);
	}
	close_fd(ctl->listen_fd);
	close_fd(ctl->stop_fd);
	free(ctl->path);
	free(ctl->rows);
	free(ctl);
}

/* ------------------------------------------------------------------ the other side */

/* Waits until @fd is ready for @events or the deadline passes. */
static int wait_for(int fd, short events, uint64_t deadline_ns, struct err *err)
{
	struct pollfd pfd = {.fd = fd, .events = events};

	for (;;) {
		uint64_t now = now_ns();
		if (now >= deadline_ns)
			return err_set(err, -ETIMEDOUT, "the mount's server does not answer");
		int n = poll(&pfd, 1, (int)((deadline_ns - now) / NS_PER_MS) + 1);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return err_errno(err, "poll");
	}
}

static int send_line(int fd, const char *line, uint64_t deadline_ns, struct err *err)
{
	scoped(free) char *text = str_printf("%s\n", line);
	if (!text)
		return err_set(err, -ENOMEM, "no memory");
	for (size_t sent = 0, len = strlen(text); sent < len;) {
		ssize_t n = send(fd, text + sent, len - sent, MSG_NOSIGNAL);
		if (n > 0) {
			sent += (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return err_errno(err, "cannot ask the mount's server");
		int r = wait_for(fd, POLLOUT, deadline_ns, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_answer(int fd, struct strbuf *out, uint64_t deadline_ns, struct err *err)
{
	char buf[4096];

	for (;;) {
		ssize_t n = recv(fd, buf, sizeof(buf), 0);
		if (n == 0)
			return out->failed ? err_set(err, -ENOMEM, "no memory") : 0;
		if (n > 0) {
			if (out->len + (size_t)n > ANSWER_MAX)
				return err_set(err, -EFBIG, "the answer is too long");
			strbuf_add(out, buf, (size_t)n);
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return err_errno(err, "cannot hear the mount's server");
		int r = wait_for(fd, POLLIN, deadline_ns, err);
		if (r < 0)
			return r;
	}
}

int control_ask(const char *path, const char *line, struct strbuf *out, struct err *err)
{
	uint64_t deadline_ns = now_ns() + CLIENT_MS * NS_PER_MS;
	struct sockaddr_un addr;
	int r = make_address(path, &addr, err);

	if (r < 0)
		return r;
	if (strchr(line, '\n') || strlen(line) >= LINE_MAX_BYTES)
		return err_set(err, -EINVAL, "a request is one line of less than %d bytes",
			       LINE_MAX_BYTES);
	scoped(close_fd) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_errno(err, "socket");
	/* Blocks only while the queue of a live listener is full, and then no longer than this. */
	struct timeval patience = {.tv_sec = CLIENT_MS / 1000};
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
		return err_errno(err, "no server answers at %s", path);
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return err_errno(err, "fcntl");
	r = send_line(fd, line, deadline_ns, err);
	return r < 0 ? r : read_answer(fd, out, deadline_ns, err);
}
