/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The progress of a build, on stderr, in BuildKit's style.
 *
 * Events of the solver change the state of a vertex here, under a lock; plain and rawjson add their
 * lines to a buffer in the same moment, so that nothing is lost and all is in order, and a thread
 * writes the buffer out, or draws the picture of a terminal, at most ten times a second. Events of
 * a hundred thousand vertices thus cost no system call each.
 *
 * Outputs are vertices, too, as in BuildKit. What they wait for nobody reports: as in progress.c
 * the thread looks at the layers that are being read for the first time.
 */

#include "tools/build_progress.h"

#include <unistd.h>

#define TICK_NS (100 * NS_PER_MS)
#define OUT_ENOUGH (64u << 10)

double bp_seconds(const struct timespec *from, const struct timespec *to)
{
	double s =
		(double)(to->tv_sec - from->tv_sec) + (double)(to->tv_nsec - from->tv_nsec) / 1e9;

	return s > 0 ? s : 0; /* the clock may be set back */
}

void bp_amount(struct strbuf *s, const struct bp_status *status)
{
	char a[16], b[16];

	if (status->total)
		strbuf_printf(s, " %s / %s", format_size(a, status->current),
			      format_size(b, status->total));
	else if (status->current)
		strbuf_printf(s, " %s", format_size(a, status->current));
}

void bp_clean(struct strbuf *s, const char *text, size_t n)
{
	for (size_t i = 0; i < n; i++)
		strbuf_putc(s, (uint8_t)text[i] < ' ' || text[i] == 0x7f ? ' ' : text[i]);
}

/* ------------------------------------------------------------------ vertices */

static struct bp_vertex *bp_add(struct build_progress *p, const struct digest *digest,
				const char *name)
{
	scoped(free) char *copy = strdup(name);
	struct bp_vertex *v = copy ? vec_push(&p->vertices) : NULL;

	if (!v)
		return NULL;
	v->digest = *digest;
	v->name = take(copy);
	return v;
}

static void bp_start(struct build_progress *p, size_t index, const struct timespec *when)
{
	struct bp_vertex *v = &p->vertices.items[index];
	size_t *slot = v->state == BP_WAITING ? vec_push(&p->shown) : NULL;

	if (!slot)
		return;
	*slot = index;
	v->state = BP_RUNNING;
	v->started = *when;
	lines_state(p, index);
}

static void bp_end(struct build_progress *p, size_t index, enum bp_state state,
		   const struct timespec *when, const char *error)
{
	struct bp_vertex *v = &p->vertices.items[index];

	bp_start(p, index, when);
	if (v->state != BP_RUNNING)
		return;
	for (size_t i = 0; i < v->statuses.n && state != BP_FAILED; i++) {
		struct bp_status *status = &v->statuses.items[i];

		if (status->is_done)
			continue;
		status->is_done = true;
		status->completed = status->updated = *when;
		lines_status(p, index, status);
	}
	v->state = state;
	v->completed = *when;
	v->error = error ? strdup(error) : NULL;
	p->has_failed |= state == BP_FAILED;
	p->n_done++;
	lines_state(p, index);
}

void bp_status(struct build_progress *p, size_t index, const char *id, uint64_t current,
	       uint64_t total, const struct timespec *when)
{
	struct bp_vertex *v = &p->vertices.items[index];
	struct bp_status *status = NULL;

	for (size_t i = v->statuses.n; i-- > 0 && !status;)
		if (strcmp(v->statuses.items[i].id, id) == 0)
			status = &v->statuses.items[i];
	if (!status) {
		scoped(free) char *copy = strdup(id);

		status = copy ? vec_push(&v->statuses) : NULL;
		if (!status) /* then it is not shown */
			return;
		status->id = take(copy);
		status->started = *when;
	}
	if (status->is_done)
		return;
	status->current = current;
	status->total = total;
	status->updated = *when;
	status->is_done = total && current >= total;
	if (status->is_done)
		status->completed = *when;
	lines_status(p, index, status);
}

static void bp_log(struct build_progress *p, size_t index, const struct solve_event *event)
{
	struct strbuf *log = &p->vertices.items[index].log;

	strbuf_add(log, event->bytes, event->n);
	if (!log->failed && log->len > 2 * LOG_TAIL_MAX) {
		memmove(log->data, log->data + log->len - LOG_TAIL_MAX, LOG_TAIL_MAX);
		log->len = LOG_TAIL_MAX;
		log->data[log->len] = '\0';
	}
	lines_log(p, index, event);
}

/* ------------------------------------------------------------------ events */

void build_progress_event(void *arg, const struct solve_event *event)
{
	struct build_progress *p = arg;
	size_t index;

	pthread_mutex_lock(&p->lock);
	if (idmap_get(&p->by_vertex, (uintptr_t)event->vertex, &index)) {
		switch (event->kind) {
		case SOLVE_STARTED:
			bp_start(p, index, &event->when);
			break;
		case SOLVE_CACHED:
			bp_end(p, index, BP_CACHED, &event->when, NULL);
			break;
		case SOLVE_DONE:
			bp_end(p, index, BP_DONE, &event->when, NULL);
			break;
		case SOLVE_FAILED:
			bp_end(p, index, BP_FAILED, &event->when, event->error);
			break;
		case SOLVE_STATUS:
			bp_status(p, index, event->id, event->current, event->total, &event->when);
			break;
		case SOLVE_LOG:
			bp_log(p, index, event);
			break;
		}
	}
	if (p->out.len > OUT_ENOUGH)
		pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
}

void build_progress_output(struct build_progress *p, const char *name)
{
	struct timespec now;
	struct digest digest;
	struct strbuf id = {0};

	clock_gettime(CLOCK_REALTIME, &now);
	pthread_mutex_lock(&p->lock);
	strbuf_printf(&id, "output %zu %lld.%ld %s", p->vertices.n, (long long)now.tv_sec,
		      now.tv_nsec, name);
	digest_bytes(&digest, id.data ? id.data : "", id.len);
	strbuf_free(&id);
	if (bp_add(p, &digest, name))
		bp_start(p, p->vertices.n - 1, &now);
	pthread_mutex_unlock(&p->lock);
}

/* What shows the progress of a layer: the vertex that made it, where that is known (of a result from a
 * cache it is not), else the output. */
static size_t bp_maker(const struct build_progress *p, const struct ref_tree_layer *layer)
{
	struct vertex *v = graph_layer_vertex(p->graph, &layer->layer->desc.digest);
	size_t index;

	return v && idmap_get(&p->by_vertex, (uintptr_t)v, &index) ? index : p->vertices.n - 1;
}

static bool bp_has_status(const struct build_progress *p, size_t index, const char *id)
{
	const struct bp_vertex *v = &p->vertices.items[index];

	for (size_t i = 0; i < v->statuses.n; i++)
		if (strcmp(v->statuses.items[i].id, id) == 0)
			return true;
	return false;
}

/* The layers that the output waits for. */
static void bp_look(struct build_progress *p)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	for (size_t i = 0; i < p->n_layers; i++) {
		char digest[DIGEST_TEXT_MAX];
		struct layer_status s;

		if (!p->layers[i].layer)
			continue;
		layer_status(p->layers[i].tree, &s);
		digest_text(&s.desc->digest, digest);
		bool is_read = !s.is_ready && !s.error && s.pass_position &&
			       s.pass_position < s.desc->size;
		if (is_read)
			bp_status(p, p->makers[i], digest, s.pass_position, s.desc->size, &now);
		else if (s.is_ready && bp_has_status(p, p->makers[i], digest))
			bp_status(p, p->makers[i], digest, s.desc->size, s.desc->size, &now);
	}
}

void build_progress_watch(struct build_progress *p, const struct ref_tree_layer *layers, size_t n)
{
	pthread_mutex_lock(&p->lock);
	bp_look(p); /* a last time at those that were looked at so far */
	free(p->makers);
	p->makers = n ? calloc(n, sizeof(*p->makers)) : NULL;
	p->layers = layers;
	p->n_layers = p->makers ? n : 0; /* without memory nothing is shown */
	for (size_t i = 0; i < p->n_layers; i++)
		if (layers[i].layer)
			p->makers[i] = bp_maker(p, &layers[i]);
	pthread_mutex_unlock(&p->lock);
}

void build_progress_output_end(struct build_progress *p, int r, const struct err *err)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	pthread_mutex_lock(&p->lock);
	p->layers = NULL;
	p->n_layers = 0;
	bp_end(p, p->vertices.n - 1, r < 0 ? BP_FAILED : BP_DONE, &now,
	       r < 0 ? err_text(err, r) : NULL);
	pthread_mutex_unlock(&p->lock);
}

/* ------------------------------------------------------------------ the thread */

/* Takes what there is to write; called with the lock held. */
static void bp_collect(struct build_progress *p, struct strbuf *out, bool is_end)
{
	bp_look(p);
	if (p->mode == PROGRESS_TTY)
		tty_picture(p, &p->out, is_end);
	for (size_t i = 0; is_end && p->mode != PROGRESS_RAWJSON && i < p->shown.n; i++)
		lines_failure(&p->out, &p->vertices.items[p->shown.items[i]]);
	strbuf_free(out);
	*out = p->out;
	p->out = (struct strbuf){0};
}

static void *bp_thread(void *arg)
{
	struct build_progress *p = arg;
	struct strbuf out = {0};
	uint64_t next = now_ns();
	bool is_end = false;

	pthread_mutex_lock(&p->lock);
	while (!is_end) {
		next += TICK_NS;
		for (;;) {
			struct timespec until = {(time_t)(next / NS_PER_S),
						 (long)(next % NS_PER_S)};

			if (p->stop || now_ns() >= next || p->out.len > OUT_ENOUGH)
				break;
			pthread_cond_timedwait(&p->wake, &p->lock, &until);
		}
		is_end = p->stop;
		bp_collect(p, &out, is_end);
		pthread_mutex_unlock(&p->lock);
		if (!out.failed && out.len)
			write_full(STDERR_FILENO, out.data, out.len);
		next = now_ns();
		pthread_mutex_lock(&p->lock);
	}
	pthread_mutex_unlock(&p->lock);
	strbuf_free(&out);
	return NULL;
}

/* ------------------------------------------------------------------ the door */

static int bp_add_graph(struct build_progress *p, struct graph *graph)
{
	for (size_t i = 0; i < graph_count(graph); i++) {
		const struct vertex *vertex = graph_vertex(graph, i);
		struct bp_vertex *v = bp_add(p, vertex_digest(vertex), vertex_name(vertex));

		if (!v || idmap_add(&p->by_vertex, (uintptr_t)vertex, i) < 0)
			return -ENOMEM;
		v->vertex = vertex;
	}
	lines_all(p);
	return 0;
}

int build_progress_new(struct build_progress **out, enum progress_mode mode, struct graph *graph,
		       struct err *err)
{
	struct build_progress *p = calloc(1, sizeof(*p));
	pthread_condattr_t attr;
	int r;

	if (!p)
		return -ENOMEM;
	p->mode = progress_resolve(mode);
	p->colours = progress_colours();
	p->begin_ns = now_ns();
	p->last = SIZE_MAX;
	p->graph = graph;
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->wake, &attr);
	pthread_condattr_destroy(&attr);
	r = bp_add_graph(p, graph);
	if (r == 0 && p->mode != PROGRESS_QUIET) {
		r = -pthread_create(&p->thread, NULL, bp_thread, p);
		if (r < 0)
			err_set(err, r, "no thread for progress: %s", strerror(-r));
		p->has_thread = r == 0;
	}
	if (r < 0)
		build_progress_free(p);
	else
		*out = p;
	return r;
}

static void bp_vertex_deinit(struct bp_vertex *v)
{
	for (size_t i = 0; i < v->statuses.n; i++)
		free(v->statuses.items[i].id);
	vec_free(&v->statuses);
	strbuf_free(&v->log);
	strbuf_free(&v->line);
	free(v->name);
	free(v->error);
}

void build_progress_free(struct build_progress *p)
{
	if (p->has_thread) {
		pthread_mutex_lock(&p->lock);
		p->stop = true;
		pthread_cond_signal(&p->wake);
		pthread_mutex_unlock(&p->lock);
		pthread_join(p->thread, NULL);
	}
	for (size_t i = 0; i < p->vertices.n; i++)
		bp_vertex_deinit(&p->vertices.items[i]);
	vec_free(&p->vertices);
	vec_free(&p->shown);
	idmap_free(&p->by_vertex);
	strbuf_free(&p->out);
	free(p->makers);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
