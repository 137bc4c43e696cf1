/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A build's progress as lines: BuildKit's plain form, for logs and people, and its rawjson, one
 * SolveStatus object a line, for programs.
 *
 * Plain numbers vertices in the order in which they first say something. Each line begins with the
 * number; a vertex that goes on after another one has spoken repeats "#N ...".
 */

#include "tools/build_progress.h"

#define VERTICES_A_LINE 256
#define LINE_MAX_LEN (64u << 10) /* what is longer is printed in pieces */
#define STATUS_SECONDS 1.0	 /* plain: between lines of one status */

/* ------------------------------------------------------------------ plain */

static void plain_turn(struct build_progress *p, size_t index)
{
	struct bp_vertex *v = &p->vertices.items[index];

	if (p->last == index)
		return;
	if (p->last != SIZE_MAX)
		strbuf_putc(&p->out, '\n');
	p->last = index;
	if (v->number) {
		strbuf_printf(&p->out, "#%u ...\n", v->number);
		return;
	}
	v->number = ++p->n_printed;
	strbuf_printf(&p->out, "#%u ", v->number);
	bp_clean(&p->out, v->name, strlen(v->name));
	strbuf_putc(&p->out, '\n');
}

static void plain_log_line(struct build_progress *p, size_t index, const struct timespec *when)
{
	struct bp_vertex *v = &p->vertices.items[index];

	plain_turn(p, index);
	strbuf_printf(&p->out, "#%u %.3f ", v->number, bp_seconds(&v->started, when));
	if (v->line.len)
		strbuf_add(&p->out, v->line.data, v->line.len);
	strbuf_putc(&p->out, '\n');
	strbuf_clear(&v->line);
}

static void plain_state(struct build_progress *p, size_t index)
{
	struct bp_vertex *v = &p->vertices.items[index];

	if (v->state == BP_RUNNING) {
		plain_turn(p, index);
		return;
	}
	if (v->line.len)
		plain_log_line(p, index, &v->completed);
	plain_turn(p, index);
	if (v->state == BP_CACHED)
		strbuf_printf(&p->out, "#%u CACHED\n", v->number);
	else if (v->state == BP_DONE)
		strbuf_printf(&p->out, "#%u DONE %.1fs\n", v->number,
			      bp_seconds(&v->started, &v->completed));
	else
		strbuf_printf(&p->out, "#%u ERROR: %s\n", v->number, v->error ? v->error : "");
	strbuf_putc(&p->out, '\n');
	p->last = SIZE_MAX;
}

static void plain_status(struct build_progress *p, size_t index, struct bp_status *status)
{
	if (status->printed.tv_sec && !status->is_done &&
	    bp_seconds(&status->printed, &status->updated) < STATUS_SECONDS)
		return;
	status->printed = status->updated;
	plain_turn(p, index);
	strbuf_printf(&p->out, "#%u ", p->vertices.items[index].number);
	bp_clean(&p->out, status->id, strlen(status->id));
	bp_amount(&p->out, status);
	strbuf_printf(&p->out, " %.1fs%s\n", bp_seconds(&status->started, &status->updated),
		      status->is_done ? " done" : "");
}

static void plain_log(struct build_progress *p, size_t index, const struct solve_event *event)
{
	struct bp_vertex *v = &p->vertices.items[index];
	const char *text = event->bytes, *end = text + event->n;

	while (text < end) {
		const char *newline = memchr(text, '\n', (size_t)(end - text));
		size_t n = (size_t)((newline ? newline : end) - text);

		strbuf_add(&v->line, text, n);
		if (newline || v->line.len > LINE_MAX_LEN)
			plain_log_line(p, index, &event->when);
		text += newline ? n + 1 : n;
	}
}

/* ------------------------------------------------------------------ rawjson */

static void json_vertex(struct strbuf *s, const struct bp_vertex *v)
{
	char text[DIGEST_TEXT_MAX];
	size_t n = v->vertex ? vertex_inputs(v->vertex) : 0;

	strbuf_putc(s, '{');
	json_pair(s, "digest", digest_text(&v->digest, text));
	for (size_t i = 0; i < n; i++) {
		struct vertex *from;
		int output;

		vertex_input(v->vertex, i, &from, &output);
		digest_text(vertex_digest(from), text);
		if (i == 0)
			json_key(s, "inputs");
		strbuf_putc(s, i ? ',' : '[');
		json_text(s, text, strlen(text));
	}
	strbuf_puts(s, n ? "]" : "");
	json_pair(s, "name", v->name);
	if (v->state != BP_WAITING)
		json_time(s, "started", &v->started);
	if (v->state > BP_RUNNING)
		json_time(s, "completed", &v->completed);
	if (v->state == BP_CACHED)
		json_bool(s, "cached", true);
	if (v->error)
		json_pair(s, "error", v->error);
	strbuf_putc(s, '}');
}

static void rawjson_status(struct build_progress *p, size_t index, const struct bp_status *status)
{
	char text[DIGEST_TEXT_MAX];
	struct strbuf *s = &p->out;

	strbuf_puts(s, "{\"statuses\":[{");
	json_pair(s, "id", status->id);
	json_pair(s, "vertex", digest_text(&p->vertices.items[index].digest, text));
	if (status->total)
		json_u64(s, "total", status->total);
	json_u64(s, "current", status->current);
	json_time(s, "timestamp", &status->updated);
	json_time(s, "started", &status->started);
	if (status->is_done)
		json_time(s, "completed", &status->completed);
	strbuf_puts(s, "}]}\n");
}

static void rawjson_log(struct build_progress *p, size_t index, const struct solve_event *event)
{
	char text[DIGEST_TEXT_MAX];
	struct strbuf *s = &p->out;

	strbuf_puts(s, "{\"logs\":[{");
	json_pair(s, "vertex", digest_text(&p->vertices.items[index].digest, text));
	json_u64(s, "stream", (uint64_t)event->fd);
	json_base64(s, "data", event->bytes, event->n);
	json_time(s, "timestamp", &event->when);
	strbuf_puts(s, "}]}\n");
}

/* ------------------------------------------------------------------ both */

void lines_all(struct build_progress *p)
{
	if (p->mode != PROGRESS_RAWJSON)
		return;
	for (size_t i = 0; i < p->vertices.n; i++) {
		strbuf_puts(&p->out, i % VERTICES_A_LINE ? "," : "{\"vertexes\":[");
		json_vertex(&p->out, &p->vertices.items[i]);
		if (i + 1 == p->vertices.n || (i + 1) % VERTICES_A_LINE == 0)
			strbuf_puts(&p->out, "]}\n");
	}
}

void lines_state(struct build_progress *p, size_t index)
{
	if (p->mode == PROGRESS_PLAIN) {
		plain_state(p, index);
	} else if (p->mode == PROGRESS_RAWJSON) {
		strbuf_puts(&p->out, "{\"vertexes\":[");
		json_vertex(&p->out, &p->vertices.items[index]);
		strbuf_puts(&p->out, "]}\n");
	}
}

void lines_status(struct build_progress *p, size_t index, struct bp_status *status)
{
	if (p->mode == PROGRESS_PLAIN)
		plain_status(p, index, status);
	else if (p->mode == PROGRESS_RAWJSON)
		rawjson_status(p, index, status);
}

void lines_log(struct build_progress *p, size_t index, const struct solve_event *event)
{
	if (p->mode == PROGRESS_PLAIN)
		plain_log(p, index, event);
	else if (p->mode == PROGRESS_RAWJSON)
		rawjson_log(p, index, event);
}

void lines_failure(struct strbuf *out, const struct bp_vertex *v)
{
	const char *log = v->log.data;
	size_t n = v->log.len;

	if (v->state != BP_FAILED)
		return;
	if (n > LOG_TAIL_MAX) {
		log += n - LOG_TAIL_MAX;
		n = LOG_TAIL_MAX;
	}
	strbuf_puts(out, "------\n > ");
	bp_clean(out, v->name, strlen(v->name));
	strbuf_puts(out, ":\n");
	if (n)
		strbuf_add(out, log, n);
	strbuf_puts(out, n && log[n - 1] != '\n' ? "\n------\n" : "------\n");
}
