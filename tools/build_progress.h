/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of a build's progress share: the state of each vertex (build_progress.c), lines for
 * logs and for programs (build_lines.c), and the picture on a terminal (build_tty.c).
 */

#include <pthread.h>
#include <time.h>

#include "tools/tools.h"

#define LOG_TAIL_MAX (8u << 10) /* kept of what a vertex wrote, to be shown if it fails */

enum bp_state { BP_WAITING, BP_RUNNING, BP_CACHED, BP_DONE, BP_FAILED };

/* A part of a vertex's work. */
struct bp_status {
	char *id;
	uint64_t current, total; /* total 0 = not known */
	struct timespec started, updated, completed;
	bool is_done;
	struct timespec printed; /* by plain */
};

struct bp_vertex {
	struct digest digest;
	char *name;
	const struct vertex *vertex; /* NULL: an output */
	enum bp_state state;
	struct timespec started, completed;
	char *error;
	unsigned number; /* plain's; 0 = not printed yet */
	vec(struct bp_status) statuses;
	struct strbuf log;  /* the last of it */
	struct strbuf line; /* plain: begun and not ended */
};

struct build_progress {
	enum progress_mode mode; /* not auto */
	bool colours;
	uint64_t begin_ns;
	pthread_t thread;
	bool has_thread;

	pthread_mutex_t lock;
	pthread_cond_t wake;
	/* guarded by lock */
	bool stop;
	bool has_failed;
	vec(struct bp_vertex) vertices;
	vec(size_t) shown; /* indexes of those that have started, in that order */
	size_t n_done;
	struct idmap by_vertex;
	struct strbuf out;  /* lines that wait to be written */
	size_t last;	    /* plain: index of the vertex that spoke last; SIZE_MAX = none */
	unsigned n_printed; /* plain: vertices with a number */
	struct graph *graph;
	const struct ref_tree_layer *layers; /* what the last output waits for; borrowed */
	size_t *makers;			     /* of each the index of the vertex that shows it */
	size_t n_layers;

	unsigned n_lines; /* tty: of the picture on the screen; the drawing thread's own */
};

double bp_seconds(const struct timespec *from, const struct timespec *to);
/* Sets or moves a status; total == current ends it. Called with the lock held. */
void bp_status(struct build_progress *p, size_t index, const char *id, uint64_t current,
	       uint64_t total, const struct timespec *when);
/* "1.2MB / 3.4MB", " 1.2MB" without a total */
void bp_amount(struct strbuf *s, const struct bp_status *status);
/* @text on one line, without what moves a cursor. */
void bp_clean(struct strbuf *s, const char *text, size_t n);

/* build_lines.c: append to p->out */
void lines_state(struct build_progress *p, size_t index);
void lines_status(struct build_progress *p, size_t index, struct bp_status *status);
void lines_log(struct build_progress *p, size_t index, const struct solve_event *event);
void lines_all(struct build_progress *p); /* rawjson: what there is to do */
/* What a vertex that failed wrote, framed. */
void lines_failure(struct strbuf *out, const struct bp_vertex *v);

/* build_tty.c */
void tty_picture(struct build_progress *p, struct strbuf *out, bool is_end);
