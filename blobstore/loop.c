/* SPDX-License-Identifier: Apache-2.0 */

/*
 * loop: what lets single-threaded state machines run on one thread among many.
 *
 * Other threads give it calls through an inbox; all else happens on the thread. Nothing here
 * allocates: calls, timers and tasks are part of the objects that they serve, so arming a timer
 * and asking for a call cannot fail.
 *
 * The list of timers is not sorted: a timer is set far more often than it fires (each read sets one
 * and clears it), so setting must be cheap; wake_ns, a lower bound of all, makes a scan rare.
 */

#include "blobstore/net-internal.h"

#define PATIENCE_MAX_MS 60000

void loop_init(struct loop *loop, void (*wake)(struct loop *loop))
{
	*loop = (struct loop){.wake = wake, .wake_ns = UINT64_MAX};
	pthread_mutex_init(&loop->lock, NULL);
	TAILQ_INIT(&loop->inbox);
}

void loop_deinit(struct loop *loop)
{
	pthread_mutex_destroy(&loop->lock);
}

/* ------------------------------------------------------------------ calls */

bool loop_post(struct loop *loop, struct loop_call *call)
{
	pthread_mutex_lock(&loop->lock);
	bool is_open = !loop->is_closed;
	bool is_new = is_open && !call->is_queued;
	if (is_new) {
		call->is_queued = true;
		TAILQ_INSERT_TAIL(&loop->inbox, call, link);
	}
	pthread_mutex_unlock(&loop->lock);
	if (is_new)
		loop->wake(loop);
	return is_open;
}

void loop_unpost(struct loop *loop, struct loop_call *call)
{
	pthread_mutex_lock(&loop->lock);
	if (call->is_queued)
		TAILQ_REMOVE(&loop->inbox, call, link);
	call->is_queued = false;
	pthread_mutex_unlock(&loop->lock);
}

void loop_close(struct loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	loop->is_closed = true;
	pthread_mutex_unlock(&loop->lock);
	loop->wake(loop);
}

/* Takes one at a time, so that loop_unpost works on those that are still to come. */
static void loop_run_calls(struct loop *loop, bool *is_closed)
{
	for (;;) {
		pthread_mutex_lock(&loop->lock);
		struct loop_call *call = TAILQ_FIRST(&loop->inbox);
		if (call) {
			TAILQ_REMOVE(&loop->inbox, call, link);
			call->is_queued = false;
		}
		*is_closed = loop->is_closed;
		pthread_mutex_unlock(&loop->lock);
		if (!call)
			return;
		call->fn(call);
	}
}

/* ------------------------------------------------------------------ timers */

void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns)
{
	if (!timer->is_armed)
		LIST_INSERT_HEAD(&loop->timers, timer, link);
	timer->is_armed = true;
	timer->at_ns = at_ns;
	loop->wake_ns = MIN(loop->wake_ns, at_ns);
}

void loop_timer_clear(struct loop_timer *timer)
{
	if (timer->is_armed)
		LIST_REMOVE(timer, link);
	timer->is_armed = false;
}

static void loop_run_timers(struct loop *loop)
{
	uint64_t now = now_ns();

	while (now >= loop->wake_ns) {
		struct loop_timer *timer, *due = NULL;
		uint64_t first = UINT64_MAX;
		LIST_FOREACH (timer, &loop->timers, link) {
			if (timer->at_ns <= now)
				due = timer;
			else
				first = MIN(first, timer->at_ns);
		}
		if (!due) {
			loop->wake_ns = first;
			return;
		}
		/* It may clear, set and free others, so the scan begins anew. */
		loop_timer_clear(due);
		due->fn(due);
	}
}

unsigned loop_patience_ms(const struct loop *loop)
{
	uint64_t now = now_ns();

	if (loop->wake_ns <= now)
		return 0;
	uint64_t ms = (loop->wake_ns - now - 1) / NS_PER_MS + 1;
	return (unsigned)MIN(ms, (uint64_t)PATIENCE_MAX_MS);
}

/* ------------------------------------------------------------------ tasks */

void loop_task_begin(struct loop *loop, struct loop_task *task)
{
	LIST_INSERT_HEAD(&loop->tasks, task, link);
}

void loop_task_end(struct loop_task *task)
{
	LIST_REMOVE(task, link);
}

bool loop_run(struct loop *loop)
{
	bool is_closed;

	loop_run_calls(loop, &is_closed);
	if (!is_closed) {
		loop_run_timers(loop);
		return true;
	}
	/* A task that is stopped may tell another one, and that one end by itself. */
	for (struct loop_task *task; (task = LIST_FIRST(&loop->tasks));)
		task->stop(task);
	return false;
}
