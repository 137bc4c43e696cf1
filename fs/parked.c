/* SPDX-License-Identifier: Apache-2.0 */

/*
 * parked: requests that wait.
 *
 * A tree may say "later" in two ways: a lookup, getattr or list that needs an index which is still
 * on its way (try again when wait.ready was called), and a read whose bytes are (the bytes are in
 * the buffer when done was called). No thread waits in either case; the request is parked here.
 *
 * Four things may happen to a parked request, in any order and at once:
 *	- the tree calls back	a read is answered there and then; anything else is queued, because
 *				ready must not call the tree, and tried again by the thread here;
 *	- its deadline passes	answered EIO by the thread here;
 *	- it is interrupted	answered EINTR by the thread that read FUSE_INTERRUPT;
 *	- the session ends	answered EIO by the closing thread.
 * Who answers is settled under the lock: whoever takes the request out of `waiting` and sets
 * is_answered ("claims" it) does, all others leave it alone. The struct itself stays until it is
 * both answered and no longer lent to the tree, since the tree may write into the wait and the
 * buffer until it calls back, however late, even after the session is gone. That is why the lot is
 * counted: one reference for the session and one for each struct that is out of its hands.
 *
 * is_busy covers the windows in which a thread still works on a request that others can see
 * already: while a reply is being sent, and between the tree's "later" and the end of parked_park
 * (the tree may call back before it has even returned, and libfuse's interrupt handler can only be
 * set while nobody may reply and so free the request). Others then leave a mark, and that thread
 * looks at the marks last.
 *
 * All deadlines are equally long, so `waiting` is nearly always appended to; the thread sleeps
 * until the first deadline, and a new request wakes it only when it sleeps longer than that.
 */

#include "fs/fs-internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#define MAX_SPARE 4 /* structs, each with a buffer, that are kept for the next request */

struct parking {
	struct session *session;
	uint64_t deadline_ms;
	pthread_t thread;
	bool has_thread;

	pthread_mutex_t lock;
	pthread_cond_t wake; /* the thread: something to retry, an earlier deadline, or the end */
	pthread_cond_t idle; /* parking_close: n_busy has become 0 */
	/* guarded by lock */
	TAILQ_HEAD(parked_list, parked) waiting; /* unanswered, earliest deadline first */
	STAILQ_HEAD(, parked) retries;		 /* of those, the ones to try again */
	STAILQ_HEAD(, parked) spare;
	size_t n_waiting, n_spare;
	size_t n_busy; /* claimed or being tried again: a reply is under way */
	size_t n_refs;
	uint64_t sleeps_until_ns;
	bool is_closed;
};

/* ------------------------------------------------------------------ the structs */

static void parked_free(struct parked *p)
{
	free(p->buf);
	free(p);
}

/* Drops a reference; called with the lock, which is gone afterwards. */
static void parking_unref_unlock(struct parking *lot)
{
	bool is_last = --lot->n_refs == 0;

	pthread_mutex_unlock(&lot->lock);
	if (!is_last)
		return;
	pthread_cond_destroy(&lot->wake);
	pthread_cond_destroy(&lot->idle);
	pthread_mutex_destroy(&lot->lock);
	free(lot);
}

static void parked_ready(struct tree_wait *wait);

static struct parked *parked_new(void)
{
	struct parked *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->buf = malloc(REPLY_MAX); /* touched only as far as replies need */
	if (!p->buf) {
		free(p);
		return NULL;
	}
	p->wait.ready = parked_ready;
	return p;
}

struct parked *parked_get(struct parking *lot)
{
	pthread_mutex_lock(&lot->lock);
	struct parked *p = STAILQ_FIRST(&lot->spare);
	if (p) {
		STAILQ_REMOVE_HEAD(&lot->spare, next);
		lot->n_spare--;
	}
	lot->n_refs++;
	pthread_mutex_unlock(&lot->lock);
	if (p)
		return p;

	p = parked_new();
	if (!p) {
		pthread_mutex_lock(&lot->lock);
		parking_unref_unlock(lot);
		return NULL;
	}
	p->lot = lot;
	return p;
}

/* With the lock, which is gone afterwards. */
static void parked_put_unlock(struct parked *p)
{
	struct parking *lot = p->lot;

	if (lot->n_spare < MAX_SPARE && !lot->is_closed) {
		p->deadline_ns = 0;
		p->is_lent = p->is_back = p->is_queued = p->is_busy = false;
		p->is_interrupted = p->is_waiting = p->is_answered = false;
		STAILQ_INSERT_HEAD(&lot->spare, p, next);
		lot->n_spare++;
	} else {
		parked_free(p);
	}
	parking_unref_unlock(lot);
}

void parked_put(struct parked *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lot->lock);
	parked_put_unlock(p);
}

void parked_lend(struct parked *p)
{
	p->is_lent = true;
	p->is_back = false;
}

void parked_unlend(struct parked *p)
{
	p->is_lent = false;
}

/* ------------------------------------------------------------------ who answers */

/* With the lock. */
static void leave_waiting(struct parked *p)
{
	struct parking *lot = p->lot;

	if (p->is_queued)
		STAILQ_REMOVE(&lot->retries, p, parked, next);
	p->is_queued = false;
	TAILQ_REMOVE(&lot->waiting, p, by_deadline);
	p->is_waiting = false;
	lot->n_waiting--;
	p->is_busy = true;
	lot->n_busy++;
}

/* With the lock: makes the caller the one who answers. */
static void claim(struct parked *p)
{
	leave_waiting(p);
	p->is_answered = true;
}

/* With the lock: the caller's reply has been sent, or @p was parked again. */
static void busy_end(struct parking *lot)
{
	if (--lot->n_busy == 0)
		pthread_cond_broadcast(&lot->idle);
}

/* After the reply: lets the struct go unless the tree still has it. */
static void claim_end(struct parked *p)
{
	struct parking *lot = p->lot;

	pthread_mutex_lock(&lot->lock);
	busy_end(lot);
	p->is_busy = false;
	if (p->is_lent)
		pthread_mutex_unlock(&lot->lock);
	else
		parked_put_unlock(p);
}

static void answer_interrupted(struct parked *p)
{
	fuse_reply_err(p->call.req, EINTR);
	claim_end(p);
}

static void answer_failed(struct parked *p, int code, const char *text)
{
	struct err err;

	err_set(&err, code, "%s", text);
	ops_fail(p->lot->session, &p->call, code, &err);
	claim_end(p);
}

static void answer_late(struct parked *p)
{
	char text[80];

	snprintf(text, sizeof(text), "nothing came within the deadline of %" PRIu64 " ms",
		 p->lot->deadline_ms);
	answer_failed(p, -ETIMEDOUT, text);
}

static void answer_read(struct parked *p)
{
	read_reply(p->lot->session, &p->call, p->buf, p->result, &p->err);
	claim_end(p);
}

/* ------------------------------------------------------------------ the tree calls back */

/* With the lock, which is gone afterwards: the tree has given back what was answered before. */
static void back_too_late(struct parked *p)
{
	if (p->is_busy)
		pthread_mutex_unlock(&p->lot->lock); /* claim_end frees it */
	else
		parked_put_unlock(p);
}

/* With the lock. */
static void queue_retry(struct parked *p)
{
	p->is_queued = true;
	STAILQ_INSERT_TAIL(&p->lot->retries, p, next);
	pthread_cond_signal(&p->lot->wake);
}

static void parked_ready(struct tree_wait *wait)
{
	struct parked *p = containerof(wait, struct parked, wait);
	struct parking *lot = p->lot;

	pthread_mutex_lock(&lot->lock);
	p->is_lent = false;
	if (p->is_answered) {
		back_too_late(p);
		return;
	}
	p->is_back = true;
	if (p->is_waiting && !p->is_busy)
		queue_retry(p);
	pthread_mutex_unlock(&lot->lock);
}

void parked_read_done(void *arg, int64_t result, const struct err *err)
{
	struct parked *p = arg;
	struct parking *lot = p->lot;

	pthread_mutex_lock(&lot->lock);
	p->is_lent = false;
	if (p->is_answered) {
		back_too_late(p);
		return;
	}
	p->is_back = true;
	p->result = result;
	p->err = err ? *err : (struct err){0};
	bool is_mine = p->is_waiting && !p->is_busy;
	if (is_mine)
		claim(p);
	pthread_mutex_unlock(&lot->lock);
	if (is_mine)
		answer_read(p);
}

/* ------------------------------------------------------------------ parking */

/* libfuse calls this on the thread that read FUSE_INTERRUPT, or from fuse_req_interrupt_func. */
static void parked_interrupted(fuse_req_t req, void *data)
{
	struct parking *lot = data;
	struct parked *p;

	pthread_mutex_lock(&lot->lock);
	TAILQ_FOREACH (p, &lot->waiting, by_deadline)
		if (p->call.req == req)
			break;
	bool is_mine = p && !p->is_busy;
	if (is_mine)
		claim(p);
	else if (p)
		p->is_interrupted = true;
	pthread_mutex_unlock(&lot->lock);
	if (is_mine)
		answer_interrupted(p);
}

/* With the lock. */
static void insert_waiting(struct parked *p)
{
	struct parking *lot = p->lot;
	struct parked *before = TAILQ_LAST(&lot->waiting, parked_list);

	while (before && before->deadline_ns > p->deadline_ns)
		before = TAILQ_PREV(before, parked_list, by_deadline);
	if (before)
		TAILQ_INSERT_AFTER(&lot->waiting, before, p, by_deadline);
	else
		TAILQ_INSERT_HEAD(&lot->waiting, p, by_deadline);
	p->is_waiting = true;
	lot->n_waiting++;
}

void parked_park(struct parked *p)
{
	struct parking *lot = p->lot;
	uint64_t now = now_ns();

	if (!p->deadline_ns)
		p->deadline_ns = now + lot->deadline_ms * NS_PER_MS;
	pthread_mutex_lock(&lot->lock);
	p->is_busy = true;
	insert_waiting(p);
	pthread_mutex_unlock(&lot->lock);

	fuse_req_interrupt_func(p->call.req, parked_interrupted, lot);

	pthread_mutex_lock(&lot->lock);
	p->is_busy = false;
	bool is_interrupted = p->is_interrupted;
	bool is_read = p->is_back && p->call.op == CALL_READ;
	bool is_late = now >= p->deadline_ns;
	if (is_interrupted || is_read || is_late)
		claim(p);
	else if (p->is_back)
		queue_retry(p);
	else if (p->deadline_ns < lot->sleeps_until_ns)
		pthread_cond_signal(&lot->wake);
	pthread_mutex_unlock(&lot->lock);

	if (is_interrupted)
		answer_interrupted(p);
	else if (is_read)
		answer_read(p);
	else if (is_late)
		answer_late(p);
}

/* ------------------------------------------------------------------ the thread */

/* With the lock, which it lets go for a while. */
static void try_again(struct parking *lot, struct parked *p)
{
	leave_waiting(p);
	p->is_busy = false;
	pthread_mutex_unlock(&lot->lock);
	bool is_parked = ops_attempt(lot->session, p);
	if (!is_parked)
		parked_put(p);
	pthread_mutex_lock(&lot->lock);
	busy_end(lot);
}

/* With the lock: the first request whose deadline has passed and that can be claimed now (a busy
 * one looks at its deadline itself). */
static struct parked *first_late(struct parking *lot, uint64_t now)
{
	struct parked *p;

	TAILQ_FOREACH (p, &lot->waiting, by_deadline) {
		if (p->deadline_ns > now)
			return NULL;
		if (!p->is_busy)
			return p;
	}
	return NULL;
}

/* With the lock. */
static void sleep_until_needed(struct parking *lot, uint64_t now)
{
	struct parked *first = TAILQ_FIRST(&lot->waiting);

	if (!first) {
		lot->sleeps_until_ns = UINT64_MAX;
		pthread_cond_wait(&lot->wake, &lot->lock);
	} else {
		/* A busy request whose deadline has passed is about to be answered or put back by
		 * its own thread: look again in a moment. */
		uint64_t until = MAX(first->deadline_ns, now + NS_PER_MS);
		struct timespec ts = {.tv_sec = (time_t)(until / NS_PER_S),
				      .tv_nsec = (long)(until % NS_PER_S)};
		lot->sleeps_until_ns = until;
		pthread_cond_timedwait(&lot->wake, &lot->lock, &ts);
	}
	lot->sleeps_until_ns = 0; /* awake: sees what is new by itself */
}

static void *parking_main(void *arg)
{
	struct parking *lot = arg;

	pthread_setname_np(pthread_self(), "parked");
	pthread_mutex_lock(&lot->lock);
	while (!lot->is_closed) {
		struct parked *p = STAILQ_FIRST(&lot->retries);
		if (p) {
			try_again(lot, p);
			continue;
		}
		uint64_t now = now_ns();
		p = first_late(lot, now);
		if (!p) {
			sleep_until_needed(lot, now);
			continue;
		}
		claim(p);
		pthread_mutex_unlock(&lot->lock);
		answer_late(p);
		pthread_mutex_lock(&lot->lock);
	}
	pthread_mutex_unlock(&lot->lock);
	return NULL;
}

/* ------------------------------------------------------------------ the lot */

int parking_new(struct parking **out, struct session *s, uint64_t deadline_ms)
{
	struct parking *lot = calloc(1, sizeof(*lot));
	pthread_condattr_t attr;

	if (!lot)
		return -ENOMEM;
	lot->session = s;
	lot->deadline_ms = deadline_ms;
	lot->n_refs = 1;
	TAILQ_INIT(&lot->waiting);
	STAILQ_INIT(&lot->retries);
	STAILQ_INIT(&lot->spare);
	pthread_mutex_init(&lot->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&lot->wake, &attr);
	pthread_cond_init(&lot->idle, NULL);
	pthread_condattr_destroy(&attr);
	*out = lot;
	return 0;
}

int parking_start(struct parking *lot, struct err *err)
{
	int r = pthread_create(&lot->thread, NULL, parking_main, lot);

	if (r)
		return err_set(err, -r, "cannot start a thread: %s", strerror(r));
	lot->has_thread = true;
	return 0;
}

void parking_close(struct parking *lot)
{
	struct parked *p;

	if (!lot)
		return;
	pthread_mutex_lock(&lot->lock);
	lot->is_closed = true;
	pthread_cond_signal(&lot->wake);
	pthread_mutex_unlock(&lot->lock);
	if (lot->has_thread)
		pthread_join(lot->thread, NULL);

	pthread_mutex_lock(&lot->lock);
	while ((p = TAILQ_FIRST(&lot->waiting))) {
		claim(p);
		pthread_mutex_unlock(&lot->lock);
		answer_failed(p, -ECANCELED, "unmounted while it waited");
		pthread_mutex_lock(&lot->lock);
	}
	while (lot->n_busy)
		pthread_cond_wait(&lot->idle, &lot->lock);
	while ((p = STAILQ_FIRST(&lot->spare))) {
		STAILQ_REMOVE_HEAD(&lot->spare, next);
		parked_free(p);
	}
	lot->session = NULL;
	parking_unref_unlock(lot);
}

size_t parking_count(struct parking *lot)
{
	pthread_mutex_lock(&lot->lock);
	size_t n = lot->n_waiting;
	pthread_mutex_unlock(&lot->lock);
	return n;
}
