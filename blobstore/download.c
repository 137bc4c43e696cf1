/* SPDX-License-Identifier: Apache-2.0 */

/*
 * download: one GET of any URL into a flat file of the store.
 *
 * Unlike a blob, what a URL has is not known before: the answer is what it says. So there is no
 * range to ask for, only a question (has it changed?) and a body, which is written as it comes. On
 * the network thread:
 *
 *     send ─► exchange ─┬─► 200, all of it: end           cut ─► send, with If-Range when the
 *       ▲               ├─► 304: end                             server named what it sends with a
 *       │               ├─► redirect: send there                 strong ETag; else from the start
 *       └─ back-off ◄───┴─► overload, broken connection
 *
 * There is no deadline for the whole: a stall ends it, attempts that bring nothing new are counted,
 * and so are redirects. Authorization is for the origin of the URL that was asked for, and goes to
 * no other.
 */

#include "blobstore/blobstore-internal.h"
#include "blobstore/net-internal.h"

#include <stdio.h>

#define REDIRECTS_MAX 10
#define ATTEMPTS_MAX 4
#define CONNECT_MS 5000u
/* A server that asks to wait longer is not waited for: someone sits at a terminal. */
#define WAIT_MAX_MS 10000

struct job {
	struct download *d;
	struct draft draft;
	struct net *net;
	struct waiter w;
	struct loop_task task;
	struct loop_call begin;
	struct loop_timer next;
	struct exchange x;
	char *redirect; /* NULL = not redirected */
	uint64_t end;	/* of the body; UINT64_MAX = not said */
	uint64_t high;	/* most bytes there ever were: what is beyond is progress */
	unsigned attempt, n_redirects;
	struct err why; /* what head and data found wrong */
};

static void job_send(struct job *j);

static const char *job_url(const struct job *j)
{
	return j->redirect ? j->redirect : j->d->url;
}

/* ------------------------------------------------------------------ ends */

static void job_finish(struct job *j, int result, const struct err *err)
{
	exchange_abort(&j->x);
	loop_timer_clear(&j->next);
	loop_task_end(&j->task);
	waiter_wake(&j->w, result, err);
}

/* Ends with "host: …". */
static void __attribute__((format(printf, 3, 4)))
job_fail(struct job *j, int result, const char *fmt, ...)
{
	struct err err = {0};
	char text[sizeof(err.text)], host[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	err_set(&err, result, "%s: %s", url_host_text(job_url(j), host, sizeof(host)), text);
	job_finish(j, result, &err);
}

static void job_stop(struct loop_task *task)
{
	job_fail(containerof(task, struct job, task), -ECANCELED, "cancelled");
}

/* Another attempt, unless there were enough: then @result, which @err (whole) explains. */
static void job_retry(struct job *j, int result, const struct err *err)
{
	uint64_t asked_ms = j->x.retry_after_ms;

	if (++j->attempt >= ATTEMPTS_MAX || asked_ms > WAIT_MAX_MS) {
		job_finish(j, result, err);
		return;
	}
	log_debug("%s, again", err_text(err, result));
	loop_timer_set(net_loop(j->net), &j->next,
		       now_ns() + net_backoff_ns(j->net, j->attempt - 1, asked_ms));
}

/* ------------------------------------------------------------------ the answer */

/* A strong ETag vouches for every byte. */
static bool is_strong(const char *etag)
{
	return etag && etag[0] == '"';
}

static void keep_text(char **to, char **from)
{
	free(*to);
	*to = take(*from);
}

/* A body from its start. */
static int job_take_whole(struct job *j)
{
	int r = j->draft.size ? draft_restart(&j->draft, &j->why) : 0;

	keep_text(&j->d->new_etag, &j->x.etag);
	keep_text(&j->d->last_modified, &j->x.last_modified);
	keep_text(&j->d->content_disposition, &j->x.content_disposition);
	j->end = j->x.body_len >= 0 ? (uint64_t)j->x.body_len : UINT64_MAX;
	if (r == 0 && j->end != UINT64_MAX)
		r = draft_expect(&j->draft, j->end, &j->why);
	return r;
}

/* The rest of one. */
static int job_take_rest(struct job *j)
{
	uint64_t first, last, total;

	if (!content_range_parse(j->x.content_range, &first, &last, &total) ||
	    first != j->draft.size || last != j->end - 1 ||
	    (total != UINT64_MAX && total != j->end))
		return err_set(&j->why, -EBADMSG, "asked for the bytes from %llu on, got others",
			       (unsigned long long)j->draft.size);
	return 0;
}

static int job_head(struct exchange *x)
{
	struct job *j = containerof(x, struct job, x);

	if (x->status == 200)
		return job_take_whole(j);
	return x->status == 206 && x->has_range ? job_take_rest(j) : 1;
}

static int job_data(struct exchange *x, const void *bytes, size_t n)
{
	struct job *j = containerof(x, struct job, x);
	int r = draft_add(&j->draft, bytes, n, &j->why);

	if (j->draft.size > j->high) {
		j->high = j->draft.size;
		j->attempt = 0;
	}
	return r;
}

/* ------------------------------------------------------------------ what to do about it */

static void job_follow(struct job *j)
{
	char *url = NULL;

	if (!j->x.location || ++j->n_redirects > REDIRECTS_MAX) {
		job_fail(j, -EBADMSG, "HTTP %u, %s", j->x.status,
			 j->x.location ? "again and again" : "but where to is not said");
		return;
	}
	int r = url_resolve(job_url(j), j->x.location, &url);
	/* What a checksum will judge may come by any way. */
	bool is_downgrade = !r && str_starts(job_url(j), "https:") && str_starts(url, "http:") &&
			    !j->d->wanted && !net_options_of(j->net)->plain_http;
	if (r < 0 || is_downgrade) {
		free(url);
		job_fail(j, r == -ENOMEM ? r : -EBADMSG, "HTTP %u to a URL that is not %s",
			 j->x.status, is_downgrade ? "https" : "http or https");
		return;
	}
	free(j->redirect);
	j->redirect = url;
	job_send(j);
}

static bool is_passing(unsigned status)
{
	return status == 408 || status == 425 || status == 429 ||
	       (status >= 500 && status != 501 && status != 505);
}

/* An answer without a body that we want. */
static void job_status(struct job *j)
{
	unsigned status = j->x.status;
	struct err err = {0};
	char host[256];

	if (status == 304 && (j->x.if_none_match || j->x.if_modified_since)) {
		j->d->is_unchanged = true;
		keep_text(&j->d->content_disposition, &j->x.content_disposition);
		job_finish(j, 0, NULL);
	} else if (status >= 301 && status <= 308 && status != 304 && status != 305 &&
		   status != 306) {
		job_follow(j);
	} else if (is_passing(status)) {
		if (status == 429 || status == 503)
			exchange_overloaded(&j->x);
		err_set(&err, -ETIMEDOUT, "%s: HTTP %u",
			url_host_text(job_url(j), host, sizeof(host)), status);
		job_retry(j, -ETIMEDOUT, &err);
	} else if (status == 416 && j->x.has_range && draft_restart(&j->draft, &err) == 0) {
		job_send(j);
	} else if (status == 401 || status == 403) {
		job_fail(j, -EACCES, "HTTP %u, access denied", status);
	} else if (status == 404 || status == 410) {
		job_fail(j, -ENOENT, "HTTP %u, not found", status);
	} else {
		job_fail(j, -EBADMSG, "HTTP %u", status);
	}
}

static void job_done(struct exchange *x, int result, const struct err *err)
{
	struct job *j = containerof(x, struct job, x);

	x->is_fresh = false;
	if (result < 0 && j->why.code) {
		job_fail(j, result, "%s", j->why.text);
	} else if (result == -ETIMEDOUT || (result < 0 && !x->is_transient)) {
		job_finish(j, result, err);
	} else if (result < 0) {
		x->is_fresh = true;
		job_retry(j, result, err);
	} else if (x->status == 200 || (x->status == 206 && x->has_range)) {
		job_finish(j, 0, NULL);
	} else {
		job_status(j);
	}
}

/* ------------------------------------------------------------------ an attempt */

static void job_send(struct job *j)
{
	struct exchange *x = &j->x;
	const struct download *d = j->d;
	bool is_same = !j->redirect || url_same_origin(j->redirect, d->url);
	uint64_t patience_ms = net_options_of(j->net)->deadline_ms;

	x->url = job_url(j);
	x->accept = d->accept;
	x->user_agent = d->user_agent;
	x->authorization = is_same ? d->authorization : NULL;
	x->has_range = j->draft.size && j->end != UINT64_MAX && is_strong(d->new_etag);
	x->range_first = j->draft.size;
	x->range_last = j->end - 1;
	x->if_range = x->has_range ? d->new_etag : NULL;
	/* Once a body has begun, only a body will do. */
	x->if_none_match = j->draft.size ? NULL : d->etag;
	x->if_modified_since = j->draft.size ? NULL : d->modified;
	x->is_stream = true;
	unsigned connect_ms = CONNECT_MS << MIN(j->attempt, 2u);
	x->connect_ms = (unsigned)MIN(connect_ms, patience_ms);
	x->stall_ms = (unsigned)MIN(patience_ms, (uint64_t)UINT32_MAX);
	x->head = job_head;
	x->data = job_data;
	x->done = job_done;
	exchange_start(j->net, x);
}

static void job_next(struct loop_timer *timer)
{
	job_send(containerof(timer, struct job, next));
}

static void job_begin(struct loop_call *call)
{
	struct job *j = containerof(call, struct job, begin);

	loop_task_begin(net_loop(j->net), &j->task);
	job_send(j);
}

/* ------------------------------------------------------------------ the door */

/* A header with a line break in it would be two. */
static bool is_sound(const char *value)
{
	for (; value && *value; value++)
		if (((uint8_t)*value < ' ' && *value != '\t') || *value == 0x7f)
			return false;
	return true;
}

static int download_run(struct job *j, struct err *err)
{
	if (!loop_post(net_loop(j->net), &j->begin))
		return err_set(err, -ECANCELED, "cancelled");
	int r = waiter_wait(&j->w);
	if (r < 0 || j->d->is_unchanged)
		return r;
	j->d->size = j->draft.size;
	return draft_commit(&j->draft, j->d->wanted, &j->d->digest, err);
}

int content_download(struct store *store, struct download *d, struct err *err)
{
	struct job j = {
		.d = d,
		.net = store->net,
		.w = {WAITER_INIT, .err = err},
		.task.stop = job_stop,
		.begin.fn = job_begin,
		.next.fn = job_next,
		.end = UINT64_MAX,
	};

	if (!store->net)
		return err_set(err, -ENETUNREACH, "there is no network");
	if (!is_sound(d->url) || !is_sound(d->accept) || !is_sound(d->user_agent) ||
	    !is_sound(d->authorization))
		return err_set(err, -EINVAL, "a control character in a header or a URL");
	int r = draft_begin(&j.draft, store, err);
	if (r == 0)
		r = download_run(&j, err);
	draft_abort(&j.draft);
	exchange_deinit(&j.x);
	free(j.redirect);
	return r;
}

void download_deinit(struct download *d)
{
	free(d->new_etag);
	free(d->last_modified);
	free(d->content_disposition);
	*d = (struct download){0};
}
