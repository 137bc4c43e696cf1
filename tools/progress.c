/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a command waits for, on stderr.
 *
 * Nobody reports progress: one thread looks, a few times a second, at what the layers and the
 * network say of themselves anyway. Only layers that are being read for the first time, from end to
 * end, get a row of their own; everything else is part of the total. Nothing is shown in the first
 * second (but rawjson, which is for programs, begins at once).
 *
 *   tty      a picture, redrawn in place, gone at the end
 *   plain    #N lines as BuildKit's, for logs
 *   rawjson  BuildKit's SolveStatus objects, one a line: the command is the vertex, layers statuses
 */

#include "tools/tools.h"

#include <pthread.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define GRACE_NS NS_PER_S
#define TTY_TICK_NS (150 * NS_PER_MS)
#define PLAIN_TICK_NS (3 * NS_PER_S)
#define RAWJSON_TICK_NS (500 * NS_PER_MS)
#define ROWS_MAX 16

enum row_state { ROW_NEW, ROW_SHOWN, ROW_DONE };

struct progress {
	enum progress_mode mode;
	bool colours;
	char *title;
	struct net *net;
	uint64_t begin_ns;
	struct timespec begin_real;
	pthread_t thread;
	bool has_thread;

	pthread_mutex_t lock;
	pthread_cond_t wake;
	/* guarded by lock */
	bool stop;
	const struct ref_tree_layer *layers;
	size_t n_layers;
	uint8_t *states; /* enum row_state of each */

	/* the thread's own */
	bool began;
	unsigned n_lines; /* of the picture on the screen */
};

static double progress_seconds(const struct progress *p)
{
	return (double)(now_ns() - p->begin_ns) / (double)NS_PER_S;
}

/* "sha256:0123456789ab" */
static const char *short_digest(const struct desc *desc, char buf[DIGEST_TEXT_MAX])
{
	digest_text(&desc->digest, buf);
	buf[sizeof("sha256:") - 1 + 12] = '\0';
	return buf;
}

static void progress_total(const struct progress *p, struct strbuf *s)
{
	struct net_stats stats = {0};
	char size[16];

	if (p->net)
		net_stats(p->net, &stats);
	if (stats.requests)
		strbuf_printf(s, " %s in %llu requests", format_size(size, stats.bytes),
			      (unsigned long long)stats.requests);
}

/* ------------------------------------------------------------------ tty */

static void tty_erase(struct progress *p, struct strbuf *s)
{
	if (p->n_lines)
		strbuf_printf(s, "\033[%uA\r\033[J", p->n_lines);
	p->n_lines = 0;
}

void progress_terminal(unsigned *rows, unsigned *columns)
{
	struct winsize w = {0};

	ioctl(STDERR_FILENO, TIOCGWINSZ, &w);
	*rows = w.ws_row ? w.ws_row : 24;
	*columns = w.ws_col ? w.ws_col : 80;
}

/* One line of the picture, cut to the terminal so that the cursor arithmetic holds. */
static void tty_line(struct progress *p, struct strbuf *s, const char *text, unsigned columns,
		     bool faint)
{
	strbuf_printf(s, "%s%.*s%s\n", faint && p->colours ? "\033[34m" : "", (int)columns - 1,
		      text, faint && p->colours ? "\033[0m" : "");
	p->n_lines++;
}

static void tty_draw(struct progress *p, struct strbuf *s)
{
	scoped(strbuf_free) struct strbuf line = {0};
	unsigned rows, columns, n = 0;
	char digest[DIGEST_TEXT_MAX], done[16], size[16];

	progress_terminal(&rows, &columns);
	tty_erase(p, s);
	strbuf_printf(&line, "[+] %s %.1fs", p->title, progress_seconds(p));
	progress_total(p, &line);
	tty_line(p, s, line.data ? line.data : "", columns, false);
	for (size_t i = 0; i < p->n_layers && n + 3 < rows && n < ROWS_MAX; i++) {
		struct layer_status status;

		if (!p->layers[i].layer)
			continue;
		layer_status(p->layers[i].tree, &status);
		if (status.is_ready || status.error || !status.pass_position)
			continue;
		strbuf_clear(&line);
		strbuf_printf(&line, " => %s %s / %s", short_digest(status.desc, digest),
			      format_size(done, status.pass_position),
			      format_size(size, status.desc->size));
		tty_line(p, s, line.data ? line.data : "", columns, true);
		n++;
	}
}

/* ------------------------------------------------------------------ plain */

static void plain_draw(struct progress *p, struct strbuf *s)
{
	char digest[DIGEST_TEXT_MAX], done[16], size[16];

	if (!p->began)
		strbuf_printf(s, "#0 %s\n", p->title);
	for (size_t i = 0; i < p->n_layers; i++) {
		struct layer_status status;

		if (!p->layers[i].layer || p->states[i] == ROW_DONE)
			continue;
		layer_status(p->layers[i].tree, &status);
		if (status.is_ready || status.error) {
			if (p->states[i] == ROW_SHOWN)
				strbuf_printf(s, "#%zu %s\n", i + 1,
					      status.error ? "ERROR" : "DONE");
			p->states[i] = ROW_DONE;
		} else if (status.pass_position) {
			strbuf_printf(s, "#%zu %s %s / %s\n", i + 1,
				      short_digest(status.desc, digest),
				      format_size(done, status.pass_position),
				      format_size(size, status.desc->size));
			p->states[i] = ROW_SHOWN;
		}
	}
}

/* How it ended is the command's to say. */
static void plain_end(struct progress *p, struct strbuf *s)
{
	strbuf_printf(s, "#0 %.1fs", progress_seconds(p));
	progress_total(p, s);
	strbuf_putc(s, '\n');
}

/* ------------------------------------------------------------------ rawjson */

static void rawjson_draw(struct progress *p, struct strbuf *s, bool is_end)
{
	struct digest vertex;
	struct timespec now;
	char digest[DIGEST_TEXT_MAX], vertex_text[DIGEST_TEXT_MAX];
	bool first = true;

	digest_bytes(&vertex, p->title, strlen(p->title));
	digest_text(&vertex, vertex_text);
	clock_gettime(CLOCK_REALTIME, &now);
	strbuf_puts(s, "{\"vertexes\":[{");
	json_pair(s, "digest", vertex_text);
	json_pair(s, "name", p->title);
	json_time(s, "started", &p->begin_real);
	if (is_end)
		json_time(s, "completed", &now);
	strbuf_puts(s, "}],\"statuses\":[");
	for (size_t i = 0; i < p->n_layers; i++) {
		struct layer_status status;

		if (!p->layers[i].layer || p->states[i] == ROW_DONE)
			continue;
		layer_status(p->layers[i].tree, &status);
		if (!status.is_ready && !status.pass_position)
			continue;
		strbuf_puts(s, first ? "{" : ",{");
		first = false;
		json_pair(s, "id", digest_text(&status.desc->digest, digest));
		json_pair(s, "vertex", vertex_text);
		json_u64(s, "current", status.is_ready ? status.desc->size : status.pass_position);
		json_u64(s, "total", status.desc->size);
		json_time(s, "timestamp", &now);
		json_time(s, "started", &p->begin_real);
		if (status.is_ready) {
			json_time(s, "completed", &now);
			p->states[i] = ROW_DONE;
		}
		strbuf_putc(s, '}');
	}
	strbuf_puts(s, "]}\n");
}

/* ------------------------------------------------------------------ the thread */

static void progress_draw(struct progress *p, bool is_end)
{
	scoped(strbuf_free) struct strbuf s = {0};

	if (p->mode == PROGRESS_RAWJSON) {
		rawjson_draw(p, &s, is_end);
	} else if (p->mode == PROGRESS_TTY) {
		if (is_end)
			tty_erase(p, &s);
		else
			tty_draw(p, &s);
	} else if (is_end) {
		plain_draw(p, &s);
		plain_end(p, &s);
	} else {
		plain_draw(p, &s);
	}
	p->began = true;
	if (!s.failed && s.len)
		write_full(STDERR_FILENO, s.data, s.len);
}

/* Waits until @ns of the monotonic clock, or until told to stop. */
static bool progress_sleep(struct progress *p, uint64_t ns)
{
	struct timespec until = {(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};

	while (!p->stop && now_ns() < ns)
		pthread_cond_timedwait(&p->wake, &p->lock, &until);
	return !p->stop;
}

static void *progress_thread(void *arg)
{
	struct progress *p = arg;
	uint64_t tick = p->mode == PROGRESS_TTY	      ? TTY_TICK_NS
			: p->mode == PROGRESS_RAWJSON ? RAWJSON_TICK_NS
						      : PLAIN_TICK_NS;
	uint64_t next = p->begin_ns + (p->mode == PROGRESS_RAWJSON ? 0 : GRACE_NS);

	pthread_mutex_lock(&p->lock);
	while (progress_sleep(p, next)) {
		progress_draw(p, false);
		next = now_ns() + tick;
	}
	if (p->began)
		progress_draw(p, true);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

enum progress_mode progress_resolve(enum progress_mode mode)
{
	const char *term = getenv("TERM");

	if (mode != PROGRESS_AUTO)
		return mode;
	return isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb") != 0 ? PROGRESS_TTY
										   : PROGRESS_PLAIN;
}

bool progress_colours(void)
{
	const char *no_color = getenv("NO_COLOR");

	return !no_color || !*no_color;
}

int progress_new(struct progress **out, enum progress_mode mode, const char *title, struct net *net,
		 struct err *err)
{
	pthread_condattr_t attr;
	struct progress *p;
	int r;

	p = calloc(1, sizeof(*p));
	if (!p || !(p->title = strdup(title))) {
		free(p);
		return -ENOMEM;
	}
	p->mode = progress_resolve(mode);
	p->colours = progress_colours();
	p->net = net;
	p->begin_ns = now_ns();
	clock_gettime(CLOCK_REALTIME, &p->begin_real);
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->wake, &attr);
	pthread_condattr_destroy(&attr);
	if (p->mode != PROGRESS_QUIET) {
		r = -pthread_create(&p->thread, NULL, progress_thread, p);
		if (r < 0) {
			progress_free(p);
			return err_set(err, r, "no thread for progress: %s", strerror(-r));
		}
		p->has_thread = true;
	}
	*out = p;
	return 0;
}

void progress_watch(struct progress *p, const struct ref_tree_layer *layers, size_t n)
{
	scoped(free) uint8_t *states = calloc(n + 1, 1);

	if (!states) /* then they are not shown */
		return;
	pthread_mutex_lock(&p->lock);
	free(p->states);
	p->states = take(states);
	p->layers = layers;
	p->n_layers = n;
	pthread_mutex_unlock(&p->lock);
}

void progress_hide(struct progress *p)
{
	if (!p || !p->has_thread)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	p->has_thread = false;
}

void progress_free(struct progress *p)
{
	if (!p)
		return;
	progress_hide(p);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	free(p->states);
	free(p->title);
	free(p);
}
