/* SPDX-License-Identifier: Apache-2.0 */

/*
 * syncer: requests that wait for the disk.
 *
 * fsync(2) takes as long as the disk does, and the thread that reads /dev/fuse has others to
 * serve. A few threads take such requests in their order, begun when there is work for them, and
 * answer them. At the end of a session what was asked for is still done.
 */

#include "fs/fs-internal.h"

#include <inttypes.h>
#include <stdio.h>

#define N_THREADS 4

struct job {
	STAILQ_ENTRY(job) next;
	fuse_req_t req;
	uint64_t id;
};

struct syncer {
	struct session *s;
	pthread_t threads[N_THREADS]; /* only the reading thread's, as n_threads */
	size_t n_threads;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	/* guarded by lock */
	STAILQ_HEAD(, job) jobs;
	size_t n_idle;
	bool is_closed;
};

static void sync_one(struct session *s, fuse_req_t req, uint64_t id)
{
	struct err err = {0};
	char what[sizeof(s->errors[0].what)];

	int r = upper_sync(s->options.upper, id, &err);
	int e = r < 0 ? change_errno(CALL_WRITE, r) : 0;
	if (e) {
		snprintf(what, sizeof(what), "fsync 0x%" PRIx64, id);
		session_record(s, -e, what, err_text(&err, r));
	}
	fuse_reply_err(req, e);
}

static void *syncer_main(void *arg)
{
	struct syncer *y = arg;
	struct job *job;

	pthread_setname_np(pthread_self(), "syncer");
	pthread_mutex_lock(&y->lock);
	for (;;) {
		while (!(job = STAILQ_FIRST(&y->jobs)) && !y->is_closed) {
			y->n_idle++;
			pthread_cond_wait(&y->wake, &y->lock);
			y->n_idle--;
		}
		if (!job)
			break;
		STAILQ_REMOVE_HEAD(&y->jobs, next);
		pthread_mutex_unlock(&y->lock);
		sync_one(y->s, job->req, job->id);
		free(job);
		pthread_mutex_lock(&y->lock);
	}
	pthread_mutex_unlock(&y->lock);
	return NULL;
}

int syncer_new(struct syncer **out, struct session *s)
{
	struct syncer *y = calloc(1, sizeof(*y));

	if (!y)
		return -ENOMEM;
	y->s = s;
	STAILQ_INIT(&y->jobs);
	pthread_mutex_init(&y->lock, NULL);
	pthread_cond_init(&y->wake, NULL);
	*out = y;
	return 0;
}

void syncer_add(struct syncer *y, fuse_req_t req, uint64_t id)
{
	struct job *job = malloc(sizeof(*job));

	pthread_mutex_lock(&y->lock);
	bool is_busy = y->n_idle == 0;
	pthread_mutex_unlock(&y->lock);
	if (is_busy && y->n_threads < N_THREADS &&
	    pthread_create(&y->threads[y->n_threads], NULL, syncer_main, y) == 0)
		y->n_threads++;
	if (!job || !y->n_threads) { /* no memory, no threads: here, then */
		free(job);
		sync_one(y->s, req, id);
		return;
	}
	*job = (struct job){.req = req, .id = id};
	pthread_mutex_lock(&y->lock);
	STAILQ_INSERT_TAIL(&y->jobs, job, next);
	pthread_cond_signal(&y->wake);
	pthread_mutex_unlock(&y->lock);
}

void syncer_free(struct syncer *y)
{
	if (!y)
		return;
	pthread_mutex_lock(&y->lock);
	y->is_closed = true;
	pthread_cond_broadcast(&y->wake);
	pthread_mutex_unlock(&y->lock);
	for (size_t i = 0; i < y->n_threads; i++)
		pthread_join(y->threads[i], NULL);
	pthread_cond_destroy(&y->wake);
	pthread_mutex_destroy(&y->lock);
	free(y);
}
