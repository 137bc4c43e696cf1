/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a solve does on its workers, for it may take long: asking for what a source is, hashing
 * content, loading results, running ops and keeping what they made.
 *
 * Of one vertex one job runs at a time. A job reads what the owner has settled before (the keys of
 * the inputs, their refs) and hands its own result back in the job.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/solve-internal.h"

#define LOCK_SLICE_MS 1000

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ keys */

static int job_keys(struct solve *s, struct job *job)
{
	struct vertex_state *vs = job->vertex;
	struct vertex_keys keys;
	int r = vertex_keys(&keys, vs->v, s->solver, true, &job->err);
	if (r < 0)
		return r;
	vertex_keys_deinit(&vs->keys);
	vs->keys = keys;
	return 0;
}

/* ------------------------------------------------------------------ loading */

/* A result of another cache becomes a ref of the store. */
static int load(struct solve *s, struct edge_state *e, struct ref **out)
{
	struct err err = {0};
	scoped(ref_unref) struct ref *ref = NULL;
	struct digest id;
	int r = e->found_in->ops->load(e->found_in, s->solver, &e->found, &ref, &err);
	if (r == 0 && e->found_in != s->caches[0])
		r = ref_save(ref, s->solver, &id, &err);
	if (r < 0) {
		log_info("a result is not used: %s", err_text(&err, r));
		if (e->found_in == s->caches[0])
			cache_db_forget(s->caches[0], &e->found, NULL);
		return r;
	}
	*out = take(ref);
	return 0;
}

/* ------------------------------------------------------------------ content */

/* As in BuildKit the vertex fails when what it takes is not there, even where its op could do without:
 * names of owners that are to be looked up in a file that is missing. */
static int job_content(struct solve *s, struct job *job)
{
	struct vertex_state *vs = job->vertex;
	const struct solve_dep *dep = &vs->deps[job->input];
	return content_key(s->solver, &vs->keys.inputs[job->input], dep->edge->ref,
			   &vs->v->inputs[job->input], &job->content, &job->err);
}

/* ------------------------------------------------------------------ keeping */

static int root_records(const struct edge_state *e, struct digest *out, size_t *n)
{
	const struct vertex_keys *keys = &e->vertex->keys;
	*n = 0;
	for (size_t i = 0; i < keys->n_records; i++)
		if (keys->records[i].output == e->output && !keys->records[i].digest.is_random)
			out[(*n)++] = keys->records[i].digest.digest;
	return *n > 0;
}

/* Has somebody a way to find the result again? */
static bool can_be_kept(const struct edge_state *e)
{
	const struct vertex_state *vs = e->vertex;
	if (!edge_record(e) || (vs->keys.n_maps && vs->keys.maps[0].is_random))
		return false;
	for (size_t i = 0; i < vs->n_deps; i++) {
		const struct edge_state *input = vs->deps[i].edge;
		if (!input->kept.n && !input->query[0].n && vs->deps[i].state != CONTENT_KNOWN)
			return false;
	}
	return true;
}

int edge_commit(struct solve *s, struct edge_state *e, struct ref *ref, struct err *err)
{
	struct vertex_state *vs = e->vertex;
	struct digest id, records[countof(vs->keys.maps)];
	scoped(free) struct cache_commit_input *inputs = calloc(vs->n_deps + 1, sizeof(*inputs));
	if (!inputs)
		return no_memory(err);
	if (!can_be_kept(e))
		return 0;
	int r = ref ? ref_save(ref, s->solver, &id, err) : 0;
	if (r < 0)
		return r;
	struct cache_commit commit = {
		.records = edge_record(e),
		.n_records = 1,
		.inputs = inputs,
		.n_inputs = vs->n_deps,
		.ingredients = vs->keys.ingredients,
		.n_ingredients = ref ? vs->keys.n_ingredients : 0,
		.ref = ref ? &id : NULL,
	};
	if (vs->n_deps == 0) {
		root_records(e, records, &commit.n_records);
		commit.records = records;
	}
	for (size_t i = 0; i < vs->n_deps; i++) {
		const struct edge_state *input = vs->deps[i].edge;
		const struct cache_input *takes =
			i < vs->keys.n_inputs ? &vs->keys.inputs[i] : NULL;
		inputs[i].keys = input->kept.n ? &input->kept : &input->query[0];
		inputs[i].selector = takes && takes->has_selector ? &takes->selector : NULL;
		if (vs->deps[i].state == CONTENT_KNOWN)
			inputs[i].content = &vs->deps[i].record;
	}
	return cache_db_commit(s->caches[0], &commit, &e->kept, err);
}

/* ------------------------------------------------------------------ running */

/* The lock of a vertex, over all processes; its holder's death frees it. */
static int lock_vertex(struct solve *s, const struct vertex_state *vs, int *fd, struct err *err)
{
	int r = -EAGAIN;
	while (r == -EAGAIN && !solve_is_stopping(s))
		r = store_lock_key(s->solver->options.store, "vertices",
				   le64(vs->identity.bytes + 8), LOCK_SLICE_MS, fd, err);
	return r;
}

/* Under the lock: has another process made it meanwhile? 1 or 0. */
static int look_again(struct solve *s, struct job *job)
{
	struct edge_state *e = job->edge;
	struct cache_keys found[CACHES_MAX] = {0};
	if (!edge_may_query(s, e) || !edge_record(e))
		return 0;
	int r = 0;
	if (e->vertex->n_deps)
		r = edge_match(s, e, found, NULL, NULL, &job->err);
	else
		r = s->caches[0]->ops->root(s->caches[0], edge_record(e), &found[0], &job->err);
	if (r == 0)
		r = edge_find_result(s, e, found, &e->found, &e->found_in, &job->err);
	if (r == 1) {
		r = load(s, e, &job->ref) == 0;
		/* All inputs are there, and stay as they are. */
		int kept = r == 1 && e->found_in != s->caches[0]
				   ? edge_commit(s, e, job->ref, &job->err)
				   : 0;
		r = kept < 0 ? kept : r;
		for (size_t i = 0; i < found[0].n && r == 1; i++)
			if (cache_keys_add(&e->kept, found[0].items[i]) < 0)
				r = no_memory(&job->err);
	}
	for (size_t c = 0; c < s->n_caches; c++)
		cache_keys_deinit(&found[c]);
	return r;
}

/* An image that has been resolved can tell its second key. No loss when it cannot. */
static void learn_keys(struct solve *s, struct vertex_state *vs)
{
	struct vertex_keys keys;
	struct err err = {0};
	if (vs->keys.is_whole)
		return;
	int r = vertex_keys(&keys, vs->v, s->solver, false, &err);
	if (r < 0) {
		log_info("a second key is not known: %s", err_text(&err, r));
		return;
	}
	vertex_keys_deinit(&vs->keys);
	vs->keys = keys;
}

static int run_vertex(struct solve *s, struct job *job)
{
	struct edge_state *e = job->edge;
	struct vertex *v = e->vertex->v;
	int r = 0;
	if (!v->outputs || !v->outputs[e->output])
		r = vertex_run(v, s->solver, &job->err);
	if (r < 0)
		return r;
	learn_keys(s, e->vertex);
	job->ref = ref_ref(v->outputs[e->output]);
	return edge_commit(s, e, job->ref, &job->err);
}

static int job_run_vertex(struct solve *s, struct job *job)
{
	scoped(close_fd) int fd = -1;
	int r = 0;
	if (job->vertex->has_identity)
		r = lock_vertex(s, job->vertex, &fd, &job->err);
	if (r == 0 && fd >= 0)
		r = look_again(s, job);
	if (r == 1) {
		job->was_cached = true;
		return 0;
	}
	return r < 0 ? r : run_vertex(s, job);
}

/* ------------------------------------------------------------------ the door */

void job_run(struct solve *s, struct job *job)
{
	pthread_mutex_lock(&job->vertex->work);
	switch (job->kind) {
	case JOB_KEYS:
		job->r = job_keys(s, job);
		break;
	case JOB_CONTENT:
		job->r = job_content(s, job);
		break;
	case JOB_LOAD:
		load(s, job->edge, &job->ref); /* one that cannot be is no failure */
		break;
	case JOB_RUN:
		job->r = job_run_vertex(s, job);
		break;
	}
	pthread_mutex_unlock(&job->vertex->work);
}
