/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The insides of a solve: edges and their steps (edge.c), the thread that owns them and the workers
 * (solve.c), what runs on workers (solve_work.c). edge.c has the essay.
 */

#include "solver/cache-internal.h"

enum edge_level {
	LEVEL_NONE,
	LEVEL_FAST,	/* the keys that definitions give are known */
	LEVEL_SLOW,	/* no more keys can be found without running something of its own */
	LEVEL_COMPLETE, /* has its ref */
};

enum edge_step {
	STEP_START,
	STEP_FAST,
	STEP_LOOK,	   /* in the caches: what more would the inputs have to tell? */
	STEP_LOOK_KEYS,	   /* they have told: does content decide? */
	STEP_LOOK_CONTENT, /* the inputs whose content is wanted are there */
	STEP_LOOKED,
	STEP_LOAD,
	STEP_LOADED,
	STEP_INPUTS,
	STEP_CONTENT, /* all inputs are there */
	STEP_HASHED,  /* and what counts of their content is known */
	STEP_RUN,
	STEP_RAN,
	STEP_DONE,
};

struct edge_state;
struct edge_waiter {
	struct edge_state *edge;
	enum edge_level level; /* that it waits for */
};

enum content_state { CONTENT_UNKNOWN, CONTENT_ASKED, CONTENT_KNOWN };

struct solve_dep {
	struct edge_state *edge;
	enum content_state state;
	struct digest content; /* CONTENT_KNOWN */
	struct digest record;  /* of it */
};

/* A vertex of which some output is wanted. The owner's, apart from what a job of it works on. */
struct vertex_state {
	struct vertex *v;
	struct vertex_keys keys;
	bool has_keys;
	struct solve_dep *deps; /* one for each input */
	size_t n_deps;
	vec(struct edge_state *) edges;
	bool has_identity;
	struct digest identity; /* the same in every process; what a lock is named by */
	pthread_mutex_t work; /* one job of a vertex at a time */
	size_t n_running;     /* JOB_RUNs: v->outputs is theirs */
	bool is_started, is_ended, was_cached; /* as told */
};

struct edge_state {
	struct vertex_state *vertex;
	int output;
	enum edge_level level, wanted;
	enum edge_step step;
	size_t n_waiting; /* for inputs and jobs */
	vec(struct edge_waiter) waiters;
	bool is_queued;
	int failed; /* -errno */
	struct err *err;
	struct cache_keys *query; /* one for each cache: keys that it was found under */
	struct cache_keys kept;	  /* keys in the store's own cache; set when complete */
	bool has_key;		  /* its key was kept for the result of another edge */
	bool *matched;		  /* one for each input: some key of it leads on */
	bool lacks_links;	  /* a way to the result is not in the store's own cache yet */
	struct cache_result found;
	struct cache *found_in;
	vec(struct digest) bad; /* results that could not be loaded */
	struct ref *ref;
};

enum job_kind { JOB_KEYS, JOB_CONTENT, JOB_LOAD, JOB_RUN };
struct job {
	struct job *next;
	enum job_kind kind;
	struct edge_state *edge;
	struct vertex_state *vertex;
	size_t input;	  /* JOB_CONTENT */
	struct digest content; /* JOB_CONTENT: the result */
	struct ref *ref;  /* JOB_LOAD, JOB_RUN: the result */
	bool was_cached;  /* JOB_RUN: another process had done it */
	int r;
	struct err err;
};

#define CACHES_MAX 16
struct solve {
	struct graph *graph;
	struct solver *solver;
	const struct solve_options *options; /* of the call under way; may be NULL; the owner's */
	bool no_cache;			     /* of that call */
	struct cache *caches[CACHES_MAX]; /* [0] is the store's own; borrowed from the solver */
	size_t n_caches;
	struct vertex_state **vertices; /* by position */
	vec(struct edge_state *) queue; /* a stack */
	vec(struct solve_event) events; /* that are to be told; errors are owned */
	/* The first of those that are equal to run: by identity, a power of two, at most half full. */
	struct vertex_state **leaders;
	size_t n_leaders;

	pthread_mutex_t lock;
	pthread_cond_t has_job, has_done;
	struct job *jobs, **jobs_end; /* guarded by lock */
	struct job *done;	      /* guarded by lock */
	size_t n_jobs;		      /* under way; the owner's */
	pthread_t threads[16];
	size_t n_threads;
	size_t n_idle, n_busy; /* guarded by lock */
	bool is_stopping;	  /* guarded by lock */
};

/* --- edges (edge.c) --- */
int edge_get(struct solve *s, struct vertex *v, int output, struct edge_state **out);
/* Goes on with @e as far as it can; failures are kept in it. */
void edge_advance(struct solve *s, struct edge_state *e);
/* @e is wanted at @level, by @waiter (NULL = by the caller of the solve). */
void edge_want(struct solve *s, struct edge_state *e, enum edge_level level,
	       struct edge_state *waiter);
/* @err may be NULL. */
void edge_fail(struct solve *s, struct edge_state *e, int r, const struct err *err);
void edge_free(struct edge_state *e, size_t n_caches);
void vertex_state_free(struct vertex_state *vs, size_t n_caches);
/* A job of @e or its vertex is done. */
void edge_job_done(struct solve *s, struct job *job);
bool edge_may_query(const struct solve *s, const struct edge_state *e);
/* The keys of @e in all caches as the inputs' keys and contents lead to them; @matched and
 * @lacks_links may be NULL. */
int edge_match(const struct solve *s, const struct edge_state *e, struct cache_keys *out,
	       bool *matched, bool *lacks_links, struct err *err);
/* The best result of keys: 1, or 0. */
int edge_find_result(const struct solve *s, const struct edge_state *e,
		     const struct cache_keys *keys, struct cache_result *out, struct cache **in,
		     struct err *err);
const struct digest *edge_record(const struct edge_state *e);
/* Before a result of another cache is loaded: all that it is made of gets keys in the store's own
 * cache, without results (edge_keep.c). */
int edge_keep_below(struct solve *s, struct edge_state *e, struct err *err);

/* --- work (solve_work.c): called on workers --- */
void job_run(struct solve *s, struct job *job);
/* Keeps the result of a complete edge. */
int edge_commit(struct solve *s, struct edge_state *e, struct ref *ref, struct err *err);

/* --- the owner (solve.c) --- */
void solve_post(struct solve *s, enum job_kind kind, struct edge_state *e, size_t input);
void solve_push(struct solve *s, struct edge_state *e);
void solve_event(struct solve *s, const struct vertex_state *vs, enum solve_event_kind kind,
		 const char *error);
void solve_started(struct solve *s, struct vertex_state *vs);
bool solve_is_stopping(struct solve *s);
/* No job is begun any more. False: some are under way, for which solve_free would wait. */
bool solve_stop(struct solve *s);
void solve_free(struct solve *s);
