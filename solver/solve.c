/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The scheduler: the thread that calls graph_solve() owns the graph's edges and takes their steps
 * (edge.c); what blocks is done by workers (solve_work.c), which are started when there is work
 * for them. The owner sleeps only while all that is left to do is on workers.
 *
 * A solve has workers of its own, since a build op solves another graph on one.
 */

#include <assert.h>
#include <time.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solve-internal.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ telling */

/* Told by and by: the one who listens may block, which nobody should under the catalogue's lock. */
void solve_event(struct solve *s, const struct vertex_state *vs, enum solve_event_kind kind,
		 const char *error)
{
	struct solve_event *event = s->options && s->options->event ? vec_push(&s->events) : NULL;
	if (!event)
		return;
	*event = (struct solve_event){
		.kind = kind, .vertex = vs->v, .error = error ? strdup(error) : NULL};
	clock_gettime(CLOCK_REALTIME, &event->when);
}

static void tell_events(struct solve *s)
{
	for (size_t i = 0; i < s->events.n; i++) {
		s->options->event(s->options->arg, &s->events.items[i]);
		free((char *)s->events.items[i].error);
	}
	s->events.n = 0;
}

void solve_started(struct solve *s, struct vertex_state *vs)
{
	if (vs->is_started)
		return;
	vs->is_started = true;
	solve_event(s, vs, SOLVE_STARTED, NULL);
}

/* What was found under its key and then not needed was in a cache, too. After a failure some have
 * begun and are not done. */
static void tell_rest(struct solve *s, bool has_failed)
{
	if (!s->options || !s->options->event)
		return;
	for (size_t i = 0; i < graph_count(s->graph); i++) {
		struct vertex_state *vs = s->vertices[i];
		bool is_known = false;
		for (size_t k = 0; vs && k < vs->edges.n; k++)
			for (size_t c = 0; c < s->n_caches; c++)
				is_known = is_known || vs->edges.items[k]->query[c].n;
		if (!vs || vs->is_ended || (!is_known && (!vs->is_started || has_failed)))
			continue;
		solve_started(s, vs);
		solve_event(s, vs, is_known ? SOLVE_CACHED : SOLVE_DONE, NULL);
		vs->is_ended = true;
	}
}

/* ------------------------------------------------------------------ workers */

static struct job *next_job(struct solve *s)
{
	while (!s->jobs && !s->is_stopping) {
		s->n_idle++;
		pthread_cond_wait(&s->has_job, &s->lock);
		s->n_idle--;
	}
	struct job *job = s->is_stopping ? NULL : s->jobs;
	if (job && !(s->jobs = job->next))
		s->jobs_end = &s->jobs;
	return job;
}

static void *worker(void *arg)
{
	struct solve *s = arg;
	pthread_mutex_lock(&s->lock);
	for (struct job *job; (job = next_job(s));) {
		s->n_busy++;
		pthread_mutex_unlock(&s->lock);
		job_run(s, job);
		pthread_mutex_lock(&s->lock);
		s->n_busy--;
		job->next = s->done;
		s->done = job;
		pthread_cond_signal(&s->has_done);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

void solve_post(struct solve *s, enum job_kind kind, struct edge_state *e, size_t input)
{
	struct job *job = calloc(1, sizeof(*job));
	if (!job) {
		edge_fail(s, e, -ENOMEM, NULL);
		return;
	}
	*job = (struct job){.kind = kind, .edge = e, .vertex = e->vertex, .input = input};
	e->n_waiting++;
	if (kind != JOB_LOAD)
		solve_started(s, e->vertex);
	if (kind == JOB_RUN)
		e->vertex->n_running++;
	s->n_jobs++;
	pthread_mutex_lock(&s->lock);
	*s->jobs_end = job;
	s->jobs_end = &job->next;
	bool needs_thread = s->n_idle == 0 && s->n_threads < countof(s->threads);
	pthread_cond_signal(&s->has_job);
	pthread_mutex_unlock(&s->lock);
	if (needs_thread && pthread_create(&s->threads[s->n_threads], NULL, worker, s) == 0)
		s->n_threads++;
}

bool solve_is_stopping(struct solve *s)
{
	pthread_mutex_lock(&s->lock);
	bool is_stopping = s->is_stopping;
	pthread_mutex_unlock(&s->lock);
	return is_stopping;
}

/* Waits for jobs that are done and hands them to their edges. */
static void collect(struct solve *s)
{
	pthread_mutex_lock(&s->lock);
	while (!s->done)
		pthread_cond_wait(&s->has_done, &s->lock);
	struct job *done = s->done;
	s->done = NULL;
	pthread_mutex_unlock(&s->lock);
	while (done) {
		struct job *job = done;
		done = job->next;
		s->n_jobs--;
		edge_job_done(s, job);
		free(job);
	}
	tell_events(s);
}

/* ------------------------------------------------------------------ the owner */

void solve_push(struct solve *s, struct edge_state *e)
{
	if (e->is_queued)
		return;
	struct edge_state **slot = vec_push(&s->queue);
	if (!slot) {
		edge_fail(s, e, -ENOMEM, NULL);
		return;
	}
	*slot = e;
	e->is_queued = true;
}

/* Takes all steps that can be taken now. */
static void drain_queue(struct solve *s)
{
	struct db *db = store_db(s->solver->options.store);
	db_read_begin(db);
	while (s->queue.n) {
		struct edge_state *e = s->queue.items[--s->queue.n];
		e->is_queued = false;
		edge_advance(s, e);
	}
	db_read_end(db);
	tell_events(s);
}

static void solve_until(struct solve *s, const struct edge_state *target)
{
	while (target->level < LEVEL_COMPLETE && !target->failed) {
		if (s->queue.n) {
			drain_queue(s);
		} else if (s->n_jobs) {
			collect(s);
		} else {
			break;
		}
	}
}

/* Until there is nothing left to do. */
static void settle(struct solve *s)
{
	while (s->queue.n || s->n_jobs) {
		if (s->queue.n)
			drain_queue(s);
		else
			collect(s);
	}
}

static_assert(CACHES_MAX > IMPORTS_MAX, "room for all caches");

static int solve_new(struct solve **out, struct graph *g, struct solver *solver)
{
	size_t n = graph_count(g);
	struct solve *s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->graph = g;
	s->solver = solver;
	s->caches[s->n_caches++] = solver->cache;
	cache_imports_get(solver, s->caches, &s->n_caches);
	for (s->n_leaders = 16; s->n_leaders < 2 * n;)
		s->n_leaders *= 2;
	s->vertices = calloc(n + 1, sizeof(struct vertex_state *));
	s->leaders = calloc(s->n_leaders, sizeof(struct vertex_state *));
	s->jobs_end = &s->jobs;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->has_job, NULL);
	pthread_cond_init(&s->has_done, NULL);
	if (!s->vertices || !s->leaders) {
		solve_free(s);
		return -ENOMEM;
	}
	*out = s;
	return 0;
}

bool solve_stop(struct solve *s)
{
	pthread_mutex_lock(&s->lock);
	s->is_stopping = true;
	pthread_cond_broadcast(&s->has_job);
	bool is_idle = s->n_busy == 0;
	pthread_mutex_unlock(&s->lock);
	return is_idle;
}

void solve_free(struct solve *s)
{
	if (!s)
		return;
	solve_stop(s);
	for (size_t i = 0; i < s->n_threads; i++)
		pthread_join(s->threads[i], NULL);
	for (struct job *lists[] = {s->jobs, s->done}, **l = lists; l < lists + 2; l++)
		for (struct job *job = *l, *next; job; job = next) {
			next = job->next;
			ref_unref(job->ref);
			free(job);
		}
	for (size_t i = 0; s->vertices && i < graph_count(s->graph); i++)
		if (s->vertices[i])
			vertex_state_free(s->vertices[i], s->n_caches);
	free(s->vertices);
	free(s->leaders);
	vec_free(&s->queue);
	vec_free(&s->events);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->has_job);
	pthread_cond_destroy(&s->has_done);
	free(s);
}

/* The solve of @g, begun when it is wanted first; it lasts as long as that. */
static int solve_of(struct graph *g, struct solver *solver, struct solve **out, struct err *err)
{
	struct solve **slot = graph_solve_slot(g);
	if (!*slot && solve_new(slot, g, solver) < 0)
		return no_memory(err);
	*out = *slot;
	return 0;
}

/* May the result of @v, which cannot be run, be in some cache? 1 or 0. */
static int may_be_cached(struct graph *g, struct solver *solver, struct vertex *v,
			 const struct solve_options *options, struct err *err)
{
	scoped(vertex_keys_deinit) struct vertex_keys keys = {0};
	struct solve *s;
	if ((options && options->no_cache) || v->metadata.ignore_cache ||
	    vertex_keys(&keys, v, solver, false, NULL) < 0)
		return 0;
	int r = solve_of(g, solver, &s, err);
	for (size_t i = 0; i < keys.n_records && r == 0; i++)
		for (size_t c = s->n_caches; c-- > 0 && r == 0;) /* those in memory first */
			if (!keys.records[i].digest.is_random)
				r = s->caches[c]->ops->knows(
					s->caches[c], &keys.records[i].digest.digest, err);
	return r;
}

/* All of what @target needs can be run, or may be in a cache: else nothing is asked of anybody in
 * vain. What is then in no cache after all fails when it is to run. */
static int check_needed(struct graph *g, struct solver *solver, const struct vertex *target,
			const struct solve_options *options, struct err *err)
{
	scoped(free) uint8_t *needed = calloc(target->position + 1, 1);
	if (!needed)
		return no_memory(err);
	needed[target->position] = 1;
	for (size_t i = target->position + 1; i-- > 0;) {
		struct vertex *v = graph_vertex(g, i);
		if (!needed[i])
			continue;
		int r = v->ops ? 0 : may_be_cached(g, solver, v, options, err);
		if (r == 0 && !v->ops)
			r = vertex_cannot_run(v, err);
		if (r < 0)
			return vertex_error(v, r, err);
		if (r == 1) /* and then what is below it is not needed */
			continue;
		for (size_t k = 0; k < v->op.n_inputs; k++)
			needed[v->inputs[k].vertex->position] = 1;
	}
	return 0;
}

static int solve_edge(struct graph *g, struct solver *solver, struct vertex *vertex, int index,
		      const struct solve_options *options, struct edge_state **out, struct err *err)
{
	struct solve *s = NULL;
	const struct vertex *blocked;
	int r = graph_blocked(g, vertex, &blocked, err);
	if (r == 0 && blocked)
		r = check_needed(g, solver, vertex, options, err);
	if (r == 0)
		r = solve_of(g, solver, &s, err);
	if (r < 0)
		return r;
	if (edge_get(s, vertex, index, out) < 0)
		return no_memory(err);
	s->options = options;
	bool no_cache = options && options->no_cache;
	if (s->no_cache != no_cache) /* workers of a call that failed may still read it */
		s->no_cache = no_cache;
	edge_want(s, *out, LEVEL_COMPLETE, NULL);
	solve_until(s, *out);
	const struct edge_state *e = *out;
	tell_rest(s, e->failed);
	tell_events(s);
	s->options = NULL;
	if (e->failed)
		return err_set(err, e->failed, "%s", err_text(e->err, e->failed));
	assert(e->ref);
	return 0;
}

int graph_solve(struct graph *g, struct solver *solver, struct vertex *vertex, int index,
		const struct solve_options *options, struct ref **out, struct err *err)
{
	struct edge_state *e;
	int r = solve_edge(g, solver, vertex, index, options, &e, err);
	if (r < 0)
		return r;
	*out = ref_ref(e->ref);
	return 0;
}

static int want_keys(struct solve *s, struct vertex *v, int index)
{
	struct edge_state *e;
	int r = edge_get(s, v, index, &e);
	if (r == 0)
		edge_want(s, e, LEVEL_FAST, NULL);
	return r;
}

static int want_all_keys(struct solve *s, struct graph *g)
{
	struct vertex *v;
	int index;
	graph_result(g, &v, &index);
	int r = want_keys(s, v, index);
	for (size_t i = 0; i < graph_count(g); i++) {
		v = graph_vertex(g, i);
		for (size_t k = 0; k < v->op.n_inputs && r == 0; k++)
			r = want_keys(s, v->inputs[k].vertex, v->inputs[k].index);
	}
	return r;
}

/* Is there a result for each output that is wanted? */
static int is_cached(const struct solve *s, const struct vertex_state *vs, bool *out,
		     struct err *err)
{
	*out = vs && vs->edges.n;
	for (size_t i = 0; *out && i < vs->edges.n; i++) {
		const struct edge_state *e = vs->edges.items[i];
		struct cache_result found;
		struct cache *in;
		int r = e->failed ? 0 : edge_find_result(s, e, e->query, &found, &in, err);
		if (r < 0)
			return r;
		*out = r == 1;
	}
	return 0;
}

int graph_probe(struct graph *g, struct solver *solver, bool *cached, struct err *err)
{
	struct solve *s = NULL;
	int r = solve_of(g, solver, &s, err);
	if (r < 0)
		return r;
	if (want_all_keys(s, g) < 0)
		return no_memory(err);
	settle(s);
	db_read_begin(store_db(solver->options.store));
	for (size_t i = 0; i < graph_count(g) && r == 0; i++)
		r = is_cached(s, s->vertices[i], &cached[i], err);
	db_read_end(store_db(solver->options.store));
	return r;
}

/* What is remembered of the content of a result that the store has, which is not loaded for that: of a
 * long chain each would have all that are below it. 1, or 0. */
static int remembered_content(struct graph *g, struct solver *solver, const struct edge *from,
			      const struct cache_input *input, struct digest *out, struct err *err)
{
	struct solve *s = NULL;
	struct edge_state *e;
	struct cache_result found;
	struct cache *in;
	int r = solve_of(g, solver, &s, err);
	if (r < 0)
		return r;
	if (edge_get(s, from->vertex, from->index, &e) < 0)
		return no_memory(err);
	edge_want(s, e, LEVEL_FAST, NULL);
	settle(s);
	r = e->failed ? 0 : edge_find_result(s, e, e->query, &found, &in, err);
	if (r != 1 || in != s->caches[0])
		return MIN(r, 0);
	return content_key_known(solver, input, &found.ref, out, err);
}

int vertex_content_key(struct graph *g, struct solver *solver, struct vertex *v, size_t input,
		       struct digest *out, struct err *err)
{
	struct edge_state *e;
	scoped(vertex_keys_deinit) struct vertex_keys keys = {0};
	int r = vertex_keys(&keys, v, solver, false, err);
	if (r < 0)
		return r;
	if (input >= keys.n_inputs || keys.inputs[input].content == CONTENT_NONE)
		return err_set(err, -ENODATA, "only the definition of that input counts");
	struct edge *from = &v->inputs[input];
	r = remembered_content(g, solver, from, &keys.inputs[input], out, err);
	if (r != 0)
		return MIN(r, 0);
	r = solve_edge(g, solver, from->vertex, from->index, NULL, &e, err);
	return r < 0 ? r : content_key(solver, &keys.inputs[input], e->ref, from, out, err);
}
