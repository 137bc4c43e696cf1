/* SPDX-License-Identifier: Apache-2.0 */

/*
 * pool: worker threads and their queue. Threads are started when work comes and none is idle, up
 * to the pool's size, so that a short command does not pay for threads that it never needs.
 */

#include "blobstore/blobstore-internal.h"

#include <signal.h>
#include <stdio.h>
#include <sys/queue.h>

struct job {
	STAILQ_ENTRY(job) link;
	void (*fn)(void *arg);
	void *arg;
};

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	STAILQ_HEAD(, job) queue;   /* guarded by lock */
	unsigned n_idle, n_queued, n_threads; /* guarded by lock */
	bool is_stopping;	    /* guarded by lock */
	unsigned max_threads;
	pthread_t *threads; /* n_threads of them; guarded by lock */
	char name[12];
};

static void *pool_thread(void *arg)
{
	struct pool *pool = arg;

	pthread_setname_np(pthread_self(), pool->name);
	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct job *job = STAILQ_FIRST(&pool->queue);
		if (job) {
			STAILQ_REMOVE_HEAD(&pool->queue, link);
			pool->n_queued--;
			pthread_mutex_unlock(&pool->lock);
			job->fn(job->arg);
			free(job);
			pthread_mutex_lock(&pool->lock);
			continue;
		}
		if (pool->is_stopping)
			break;
		pool->n_idle++;
		pthread_cond_wait(&pool->wake, &pool->lock);
		pool->n_idle--;
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

int pool_new(struct pool **out, unsigned n_threads, const char *name)
{
	struct pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return -ENOMEM;
	pool->threads = calloc(n_threads, sizeof(*pool->threads));
	if (!pool->threads) {
		free(pool);
		return -ENOMEM;
	}
	pool->max_threads = n_threads;
	snprintf(pool->name, sizeof(pool->name), "%s", name);
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->wake, NULL);
	STAILQ_INIT(&pool->queue);
	*out = pool;
	return 0;
}

void pool_free(struct pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->is_stopping = true;
	pthread_cond_broadcast(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
	/* A job that still runs may submit another and thereby start a thread: look again each time. */
	for (unsigned i = 0;; i++) {
		pthread_mutex_lock(&pool->lock);
		bool is_last = i >= pool->n_threads;
		pthread_t thread = is_last ? 0 : pool->threads[i];
		pthread_mutex_unlock(&pool->lock);
		if (is_last)
			break;
		pthread_join(thread, NULL);
	}
	pthread_cond_destroy(&pool->wake);
	pthread_mutex_destroy(&pool->lock);
	free(pool->threads);
	free(pool);
}

/* Signals belong to the thread that asked for them, never to a worker. */
static int start_thread(struct pool *pool)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int r = pthread_create(&pool->threads[pool->n_threads], NULL, pool_thread, pool);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r == 0)
		pool->n_threads++;
	return -r;
}

int pool_submit(struct pool *pool, void (*fn)(void *arg), void *arg)
{
	struct job *job = malloc(sizeof(*job));
	int r = 0;

	if (!job)
		return -ENOMEM;
	*job = (struct job){.fn = fn, .arg = arg};
	pthread_mutex_lock(&pool->lock);
	if (pool->n_queued >= pool->n_idle && pool->n_threads < pool->max_threads)
		r = start_thread(pool);
	if (r < 0 && pool->n_threads == 0) {
		pthread_mutex_unlock(&pool->lock);
		free(job);
		return r;
	}
	STAILQ_INSERT_TAIL(&pool->queue, job, link);
	pool->n_queued++;
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
	return 0;
}
