/* SPDX-License-Identifier: Apache-2.0 */

/*
 * call: one request to a registry and its answer, for a thread that waits for it.
 *
 * Writing to a registry is a conversation: each request hangs on the answer before. It is led by the
 * thread that wants it, in plain loops (upload.c), and only single requests are made on the network
 * thread. The bytes of a body come from the same waiting thread, through a ring that both share:
 *
 *     caller: feed ─► ring ─► send ─► curl (network thread)
 *
 * The caller fills it while there is room and sleeps when there is none; curl rests when it is empty
 * and is woken when there is something. So a body is never in memory as a whole, and neither end
 * blocks the network thread.
 */

#include "blobstore/net-internal.h"

#define RING_SIZE (1u << 20)
#define PIECE (256u << 10)
#define CONNECT_MS 5000u

static void call_attempt(struct call *c);

/* The last thing that the network thread does with @c. */
static void call_finish(struct call *c, int result, const struct err *err)
{
	struct loop *loop = net_loop(c->r->net);

	exchange_abort(&c->x);
	auth_forget(&c->auth);
	loop_timer_clear(&c->next);
	loop_task_end(&c->task);
	pthread_mutex_lock(&c->lock);
	loop_unpost(loop, &c->fed_call);
	loop_unpost(loop, &c->stop_call);
	c->result = result;
	if (result < 0 && err)
		c->err = *err;
	c->is_done = true;
	pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

static void call_fail(struct call *c, int result, const char *why)
{
	struct err err = {0};

	err_set(&err, result, "%s", why);
	call_finish(c, result, &err);
}

/* ------------------------------------------------------------------ the body */

static ssize_t call_send(struct exchange *x, void *dst, size_t n)
{
	struct call *c = containerof(x, struct call, x);

	pthread_mutex_lock(&c->lock);
	size_t straight = MIN(c->ring_len, RING_SIZE - c->ring_at);
	n = MIN(n, straight);
	if (n) {
		memcpy(dst, c->ring + c->ring_at, n);
		c->ring_at = (c->ring_at + n) % RING_SIZE;
		c->ring_len -= n;
		pthread_cond_signal(&c->cond);
	}
	pthread_mutex_unlock(&c->lock);
	return (ssize_t)n;
}

static void call_fed(struct loop_call *call)
{
	exchange_resume(&containerof(call, struct call, fed_call)->x);
}

static void call_stopped(struct loop_call *call)
{
	struct call *c = containerof(call, struct call, stop_call);

	call_finish(c, c->feed_result, &c->feed_err);
}

/* Puts @n bytes of @piece into the ring, where there is room for them. Called with the lock held. */
static void ring_put(struct call *c, const uint8_t *piece, size_t n)
{
	size_t to = (c->ring_at + c->ring_len) % RING_SIZE;
	size_t first = MIN(n, RING_SIZE - to);

	memcpy(c->ring + to, piece, first);
	memcpy(c->ring, piece + first, n - first);
	c->ring_len += n;
	c->fed += n;
}

/* Gets the next piece and puts it into the ring. Called with the lock held, which it lets go. */
static void call_feed(struct call *c, uint8_t *piece)
{
	size_t want = (size_t)MIN(c->body_size - c->fed, (uint64_t)PIECE), got = 0;
	uint64_t at = c->fed;

	pthread_mutex_unlock(&c->lock);
	int r = c->feed(c->feed_arg, at, piece, want, &got, &c->feed_err);
	pthread_mutex_lock(&c->lock);
	if (r < 0)
		c->feed_result = r;
	else
		ring_put(c, piece, got);
	if (!c->is_done)
		loop_post(net_loop(c->r->net), r < 0 ? &c->stop_call : &c->fed_call);
}

/* ------------------------------------------------------------------ the request */

static int call_head(struct exchange *x)
{
	return 1;
}

static void call_done(struct exchange *x, int result, const struct err *err)
{
	struct call *c = containerof(x, struct call, x);
	struct registry *r = c->r;
	bool is_first = !c->url || c->is_own_url;

	if (result < 0 && x->is_not_tls && is_first && !r->is_plain && host_is_loopback(r->host)) {
		r->is_plain = true; /* TLS was only worth a try */
		call_attempt(c);
		return;
	}
	if (x->status == 429 || x->status == 503)
		exchange_overloaded(x);
	call_finish(c, result, err);
}

static void call_send_request(struct call *c)
{
	struct exchange *x = &c->x;

	x->url = c->url;
	x->method = c->method;
	x->form = !strcmp(c->method, "POST") ? "" : NULL;
	x->authorization = c->is_at_registry ? c->authorization : NULL;
	x->accept = c->accept;
	x->send = c->feed ? call_send : NULL;
	x->send_size = c->body_size;
	x->send_type = c->type;
	x->send_range = c->range;
	x->connect_ms = CONNECT_MS;
	x->stall_ms = (unsigned)MIN(net_options_of(c->r->net)->deadline_ms, UINT64_C(3600000));
	x->head = call_head;
	x->done = call_done;
	exchange_start(c->r->net, x);
}

static void call_authorized(struct call *c)
{
	free(c->authorization);
	c->authorization = take(c->auth.header);
	call_send_request(c);
}

static void call_auth_done(struct auth_wait *w, int result, const struct err *err)
{
	struct call *c = containerof(w, struct call, auth);

	if (result == 0) {
		call_authorized(c);
		return;
	}
	c->x.is_transient = result != -EACCES && result != -EBADMSG && result != -ECANCELED;
	c->is_auth_failure = !c->x.is_transient;
	call_finish(c, result, err);
}

static void call_authorize(struct call *c)
{
	struct auth *auth = net_auth(c->r->net);
	struct err err = {0};
	int r = c->is_renewal ? auth_renew(auth, &c->auth, c->rejected, c->challenge, &err)
			      : auth_get(auth, &c->auth, &err);

	if (r == 0) {
		call_authorized(c);
	} else if (r != -EINPROGRESS) {
		c->is_auth_failure = r == -EACCES;
		call_finish(c, r, &err);
	}
}

static void call_attempt(struct call *c)
{
	struct registry *r = c->r;
	scoped(free) char *base = str_printf("%s:%s/", r->is_plain ? "http" : "https", r->path);

	if (!c->url || c->is_own_url) {
		free(c->url);
		c->url = base ? str_printf("%s%s", base, c->what) : NULL;
		c->is_own_url = true;
	}
	if (!base || !c->url) {
		call_fail(c, -ENOMEM, "no memory");
		return;
	}
	c->is_at_registry = url_same_origin(c->url, base);
	if (c->is_at_registry)
		call_authorize(c);
	else
		call_send_request(c);
}

static void call_next(struct loop_timer *timer)
{
	call_attempt(containerof(timer, struct call, next));
}

static void call_stop(struct loop_task *task)
{
	call_fail(containerof(task, struct call, task), -ECANCELED, "cancelled");
}

static void call_begin(struct loop_call *call)
{
	struct call *c = containerof(call, struct call, begin);
	struct net *net = c->r->net;

	loop_task_begin(net_loop(net), &c->task);
	if (c->n_failed)
		loop_timer_set(net_loop(net), &c->next,
			       now_ns() + net_backoff_ns(net, c->n_failed - 1, c->retry_after_ms));
	else
		call_attempt(c);
}

/* ------------------------------------------------------------------ the waiting thread */

void call_init(struct call *c, struct registry *r, const char *method)
{
	*c = (struct call){.r = r, .method = method};
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->cond, NULL);
	c->begin.fn = call_begin;
	c->fed_call.fn = call_fed;
	c->stop_call.fn = call_stopped;
	c->next.fn = call_next;
	c->task.stop = call_stop;
	c->auth.host = r->host;
	c->auth.repository = r->repository;
	c->auth.done = call_auth_done;
}

void call_deinit(struct call *c)
{
	exchange_deinit(&c->x);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->cond);
	free(c->url);
	free(c->authorization);
	free(c->rejected);
	free(c->challenge);
	free(c->ring);
}

int call_run(struct call *c, struct err *err)
{
	scoped(free) uint8_t *piece = c->feed ? malloc(PIECE) : NULL;

	if (c->feed && !c->ring)
		c->ring = malloc(RING_SIZE);
	if (c->feed && (!c->ring || !piece))
		return err_set(err, -ENOMEM, "no memory");
	c->is_done = c->is_auth_failure = c->x.is_transient = false;
	c->ring_at = c->ring_len = 0;
	c->fed = 0;
	c->x.status = 0;
	c->feed_result = 0;
	c->err = c->feed_err = (struct err){0};
	if (!loop_post(net_loop(c->r->net), &c->begin))
		return err_set(err, -ECANCELED, "cancelled");
	pthread_mutex_lock(&c->lock);
	while (!c->is_done) {
		bool has_room = RING_SIZE - c->ring_len >= PIECE;
		if (c->feed && !c->feed_result && has_room && c->fed < c->body_size)
			call_feed(c, piece);
		else
			pthread_cond_wait(&c->cond, &c->lock);
	}
	pthread_mutex_unlock(&c->lock);
	if (c->feed_result < 0) { /* whatever was answered meanwhile */
		c->x.is_transient = false;
		c->x.status = 0;
		return err_set(err, c->feed_result, "%s", err_text(&c->feed_err, c->feed_result));
	}
	return c->result < 0 ? err_set(err, c->result, "%s", err_text(&c->err, c->result)) : 0;
}
