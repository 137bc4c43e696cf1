/* SPDX-License-Identifier: Apache-2.0 */

/*
 * get: one wish to a registry, a range of a blob or a manifest, from the first request to its end.
 *
 * It lives on the network thread:
 *
 *     begin ─► (wait for the place) ─► (authorisation) ─► exchange ─┬─► all bytes given: end
 *       ▲                                                          ├─► redirect: ask there
 *       │                                                          ├─► 401: authorise anew
 *       └── back-off ◄── overload, broken or stalled connection ◄──┴─► clear refusal: end
 *
 * Nothing is buffered: bytes go to the transfer as they come, and after a break the rest is asked
 * for from where it stopped. An answer is believed only as far as its Content-Range goes: a wider
 * one is trimmed, a shorter one continued, and a server that ignores ranges (200) is read up to our
 * bytes and no further. Whether the bytes are the right ones is the caller's to verify.
 *
 * The place of a blob. Hosted registries answer with a redirect to a signed URL of a store that is
 * elsewhere. The URL is kept and used until it is refused (400, 401, 403, 404: expired, however
 * its store says so), and then found anew, once. While one get finds the place, the others for the
 * same blob wait, unless this registry is known to answer by itself. Authorization is for the
 * registry's own origin and never goes elsewhere; URLs of redirects appear in no message.
 *
 * Deadlines. A get has one over all its attempts; that of a stream starts again with every byte.
 */

#include "blobstore/net-internal.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <strings.h>

#define REDIRECTS_MAX 5
#define BAD_ANSWERS_MAX 3 /* one may be a broken cache of many */
#define UNREACHABLE_MAX 3 /* attempts for a manifest: someone is waiting at a terminal */
#define CONNECT_MS 3000u
#define STALL_MS 10000u

static const char manifest_types[] = "application/vnd.oci.image.index.v1+json, "
				     "application/vnd.oci.image.manifest.v1+json, "
				     "application/vnd.docker.distribution.manifest.list.v2+json, "
				     "application/vnd.docker.distribution.manifest.v2+json";

LIST_HEAD(gets, get);

/* Where a blob is. Of the network thread. */
struct place {
	struct digest digest;
	char *url;	     /* the last redirect; NULL = ask the registry */
	struct get *finder;  /* asks it now */
	struct gets waiting; /* for the finder to know */
	LIST_ENTRY(place) link;
};

struct get {
	struct registry *r;
	struct loop_task task;
	struct loop_call begin, cancel, resume;
	struct loop_timer next, deadline;
	struct exchange x;
	struct auth_wait auth;

	/* the wish: a transfer, or a manifest for a waiter */
	struct transfer *t;
	struct waiter *waiter;
	char *what;	  /* "blobs/sha256:…" or "manifests/…" */
	uint64_t at, end; /* the stored bytes that are still wanted */
	bool is_stream;
	uint64_t patience_ns, deadline_ns;

	/* the attempt */
	struct place *place;  /* NULL for a manifest */
	LIST_ENTRY(get) link; /* among those who wait for the place */
	bool is_waiting;
	char *url;	/* at the registry */
	char *redirect; /* elsewhere; NULL = there */
	char *authorization;
	uint64_t body_at, body_end; /* of the answer, in the blob */
	uint64_t n_given;	    /* by this answer */
	int sink_result;	    /* what the transfer said to bytes */
	bool is_held;		    /* it wants no more for now */

	/* since something was last given */
	unsigned attempt, n_bad, n_redirects;
	bool is_renewed, is_found_again;
	struct err last; /* why the last attempt failed */
};

static void get_attempt(struct get *g);
static void get_finish(struct get *g, int result, const struct err *err);

static const char *get_url(const struct get *g)
{
	return g->redirect ? g->redirect : g->url;
}

static bool get_is_at_registry(const struct get *g)
{
	return !g->redirect || url_same_origin(g->redirect, g->url);
}

/* ------------------------------------------------------------------ places */

/* Lets those who wait for the place go on. */
static void place_release(struct place *p)
{
	struct get *g;

	p->finder = NULL;
	while ((g = LIST_FIRST(&p->waiting))) {
		LIST_REMOVE(g, link);
		g->is_waiting = false;
		loop_timer_set(net_loop(g->r->net), &g->next, 0);
	}
}

/* The registry answered with @url, or (NULL) with the blob itself. Whoever waits need not wait until
 * that answers, too: it may take its turn among long streams. */
static void get_found_place(struct get *g, const char *url)
{
	struct place *p = g->place;

	if (!p)
		return;
	if (url) {
		free(p->url);
		p->url = strdup(url);
	} else if (!g->redirect) {
		g->r->is_direct = true;
	}
	if (p->finder == g)
		place_release(p);
}

/* The redirect no longer works. */
static void get_lose_place(struct get *g)
{
	struct place *p = g->place;

	if (p && p->url && g->redirect && !strcmp(p->url, g->redirect))
		free(take(p->url));
	free(take(g->redirect));
	g->n_redirects = 0;
}

static struct place *place_find(struct registry *r, const struct digest *digest)
{
	struct place *p;

	LIST_FOREACH (p, &r->places, link)
		if (digest_equal(&p->digest, digest))
			return p;
	p = calloc(1, sizeof(*p));
	if (p) {
		p->digest = *digest;
		LIST_INSERT_HEAD(&r->places, p, link);
	}
	return p;
}

/* ------------------------------------------------------------------ ends */

static void get_free(struct get *g)
{
	exchange_deinit(&g->x);
	free(g->what);
	free(g->url);
	free(g->redirect);
	free(g->authorization);
	registry_unref(g->r);
	free(g);
}

static void get_finish(struct get *g, int result, const struct err *err)
{
	struct registry *r = g->r;
	struct transfer *t = g->t;

	exchange_abort(&g->x);
	auth_forget(&g->auth);
	loop_timer_clear(&g->next);
	loop_timer_clear(&g->deadline);
	loop_task_end(&g->task);
	if (g->is_waiting)
		LIST_REMOVE(g, link);
	if (g->place && g->place->finder == g)
		place_release(g->place);
	if (t) {
		/* After this no cancel finds it, so one that is queued is the last. */
		pthread_mutex_lock(&r->lock);
		t->impl = NULL;
		pthread_mutex_unlock(&r->lock);
		loop_unpost(net_loop(r->net), &g->cancel);
		loop_unpost(net_loop(r->net), &g->resume);
		t->done(t, result, err);
	} else {
		g->waiter->media_type = take(g->x.content_type);
		waiter_wake(g->waiter, result, err);
	}
	get_free(g);
}

/* Ends @g with "repository: what: …". */
static void __attribute__((format(printf, 3, 4)))
get_fail(struct get *g, int result, const char *fmt, ...)
{
	struct err err = {0};
	char text[sizeof(err.text)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	err_set(&err, result, "%s", text);
	err_wrap(&err, result, "%s: %s", g->r->remote.name, g->what);
	get_finish(g, result, &err);
}

static void get_no_memory(struct get *g)
{
	get_fail(g, -ENOMEM, "no memory");
}

static void get_refused(struct get *g)
{
	get_fail(g, -EACCES, "HTTP %u, access denied; try: docker login %s", g->x.status,
		 g->r->host);
}

/* A registry on this host that speaks https understands nothing of what it is asked. */
static const char *get_hint(const struct get *g)
{
	bool is_guess = g->r->is_plain && !g->redirect && host_is_loopback(g->r->host);

	return is_guess ? " (if it speaks https: --ca FILE or --insecure)" : "";
}

/* Tries again later, or ends with what g->last says when there is no later. */
static void get_retry(struct get *g)
{
	struct net *net = g->r->net;
	uint64_t asked_ms = g->x.retry_after_ms;
	uint64_t now = now_ns();
	uint64_t left = g->deadline_ns > now ? g->deadline_ns - now : 0;
	uint64_t wait_ns = net_backoff_ns(net, g->attempt++, asked_ms);

	if (asked_ms && wait_ns >= left) {
		get_fail(g, -ETIMEDOUT, "%s, and asks to wait %" PRIu64 " s", g->last.text,
			 asked_ms / 1000);
		return;
	}
	bool is_unreachable = g->last.code == -ECONNREFUSED || g->last.code == -ENETUNREACH ||
			      (g->last.code == -ECONNRESET && !g->x.status);
	if (left < 20 * NS_PER_MS || (!g->t && is_unreachable && g->attempt >= UNREACHABLE_MAX)) {
		get_fail(g, g->last.code, "%s", g->last.text);
		return;
	}
	log_debug("%s: %s: %s, again in %" PRIu64 " ms", g->r->remote.name, g->what, g->last.text,
		  wait_ns / NS_PER_MS);
	loop_timer_set(net_loop(net), &g->next,
		       now + (asked_ms ? wait_ns : MIN(wait_ns, left / 2)));
}

/* The answer contradicts itself or what is known of the blob; g->last says how. */
static void get_bad_answer(struct get *g)
{
	if (++g->n_bad >= BAD_ANSWERS_MAX) {
		get_fail(g, -EBADMSG, "%s", g->last.text);
		return;
	}
	get_lose_place(g);
	get_retry(g);
}

static void get_deadline(struct loop_timer *timer)
{
	struct get *g = containerof(timer, struct get, deadline);

	if (g->is_held) /* it is not the registry that lets us wait */
		g->deadline_ns = now_ns() + g->patience_ns;
	if (now_ns() < g->deadline_ns) /* a stream that has gone on since */
		loop_timer_set(net_loop(g->r->net), timer, g->deadline_ns);
	else if (g->last.code)
		get_fail(g, g->last.code, "%s, and no better within the deadline", g->last.text);
	else
		get_fail(g, -ETIMEDOUT, "no answer within the deadline");
}

/* ------------------------------------------------------------------ the answer */

bool content_range_parse(const char *text, uint64_t *first, uint64_t *last, uint64_t *total)
{
	char a[24], b[24], c[24];
	int n = 0;

	if (!text || strncasecmp(text, "bytes ", 6) != 0 ||
	    sscanf(text + 6, " %20[0-9]-%20[0-9]/%20[0-9*]%n", a, b, c, &n) != 3 || text[6 + n])
		return false;
	*total = UINT64_MAX;
	return !parse_u64(a, first) && !parse_u64(b, last) &&
	       (!strcmp(c, "*") || !parse_u64(c, total));
}

/* A whole blob whose size is first learnt from the answer. */
static void get_learn_size(struct get *g, uint64_t size)
{
	if (g->t->blob_size == BLOB_SIZE_UNKNOWN)
		g->t->blob_size = g->t->len = g->end = size;
}

/* Which bytes of the blob the body holds. */
static int get_check_range(struct get *g)
{
	const struct exchange *x = &g->x;
	uint64_t first = 0, last, total = g->t->blob_size;
	bool is_encoded = x->content_encoding && strcasecmp(x->content_encoding, "identity") != 0;

	if (x->status == 200) {
		g->t->is_unranged = x->has_range;
		if (x->body_len >= 0)
			total = (uint64_t)x->body_len;
		else if (is_encoded)
			total = UINT64_MAX;
		get_learn_size(g, total);
		last = total - 1;
	} else if (!content_range_parse(x->content_range, &first, &last, &total)) {
		return err_set(&g->last, -EBADMSG, "HTTP 206 without a sound Content-Range");
	}
	/* Some stores say gzip of a blob that is gzip. Only a size that fits shows that the bytes
	 * are those of the blob. */
	if (total != g->t->blob_size && (total != UINT64_MAX || is_encoded))
		return err_set(&g->last, -EBADMSG,
			       "content does not match: %" PRIu64
			       " bytes where the manifest has %" PRIu64,
			       total, g->t->blob_size);
	if (total == 0) { /* nothing is what there is */
		g->body_at = g->body_end = 0;
		return 0;
	}
	if (first > g->at || last < g->at || last >= g->t->blob_size ||
	    (x->body_len >= 0 && (uint64_t)x->body_len != last - first + 1))
		return err_set(&g->last, -EBADMSG,
			       "asked for bytes from %" PRIu64 " on, the answer is %" PRIu64
			       "-%" PRIu64,
			       g->at, first, last);
	g->body_at = first;
	g->body_end = last + 1;
	return 0;
}

static int get_head(struct exchange *x)
{
	struct get *g = containerof(x, struct get, x);

	g->n_given = 0;
	if (!(x->status == 200 || (x->status == 206 && g->t)))
		return 1;
	if (!g->t && x->body_len > (int64_t)MANIFEST_MAX)
		return err_set(&g->last, -EBADMSG, "larger than a manifest may be");
	int r = g->t ? get_check_range(g) : 0;
	if (r == 0)
		get_found_place(g, NULL);
	return r;
}

/* Something new has come: what failed before is forgotten. */
static void get_progress(struct get *g)
{
	g->attempt = g->n_bad = g->n_redirects = 0;
	g->is_renewed = g->is_found_again = false;
	g->last.code = 0;
	if (g->is_stream)
		g->deadline_ns = now_ns() + g->patience_ns;
}

static int get_manifest_data(struct get *g, const void *bytes, size_t n)
{
	struct strbuf *body = g->waiter->body;

	if (n > MANIFEST_MAX - g->n_given)
		return err_set(&g->last, -EBADMSG, "larger than a manifest may be");
	strbuf_add(body, bytes, n);
	g->n_given += n;
	return body->failed ? err_set(&g->last, -ENOMEM, "no memory") : 0;
}

static int get_data(struct exchange *x, const void *bytes, size_t n)
{
	struct get *g = containerof(x, struct get, x);

	if (!g->t)
		return get_manifest_data(g, bytes, n);
	size_t skip = g->body_at < g->at ? (size_t)MIN(g->at - g->body_at, (uint64_t)n) : 0;
	uint64_t room = MIN(g->end, g->body_end) - g->at;
	size_t take_n = (size_t)MIN((uint64_t)(n - skip), room);
	if (take_n) {
		int r = g->t->data(g->t, (const char *)bytes + skip, take_n);
		if (r < 0) {
			g->sink_result = r;
			return r;
		}
		g->is_held = r == TRANSFER_HOLD;
		if (g->is_held)
			return EXCHANGE_HOLD;
		g->at += take_n;
		g->n_given += take_n;
	}
	g->body_at += n;
	/* Skipping is progress, too, but only of a stream that may take as long as it likes. */
	if (take_n || g->is_stream)
		get_progress(g);
	/* What is beyond is not waited for. */
	return g->body_at > g->body_end || (g->at == g->end && g->body_at < g->body_end);
}

/* ------------------------------------------------------------------ what to do about it */

static void get_follow(struct get *g)
{
	char *url = NULL;

	if (!g->x.location || ++g->n_redirects > REDIRECTS_MAX) {
		get_fail(g, -EBADMSG, "HTTP %u, %s", g->x.status,
			 g->x.location ? "again and again" : "but where to is not said");
		return;
	}
	int r = url_resolve(get_url(g), g->x.location, &url);
	bool is_downgrade = !r && str_starts(get_url(g), "https:") && str_starts(url, "http:") &&
			    !net_options_of(g->r->net)->plain_http;
	if (r == -ENOMEM) {
		get_no_memory(g);
	} else if (r < 0 || is_downgrade || !url_is_allowed(net_options_of(g->r->net), url)) {
		free(url);
		get_fail(g, -EBADMSG, "HTTP %u to a URL that is not https", g->x.status);
	} else {
		free(g->redirect);
		g->redirect = url;
		get_found_place(g, url);
		get_attempt(g);
	}
}

static void get_authorized(struct get *g);

static void get_login(struct get *g, const char *challenge)
{
	struct err err = {0};

	if (g->is_renewed) {
		get_refused(g);
		return;
	}
	g->is_renewed = true;
	int r = auth_renew(net_auth(g->r->net), &g->auth, g->authorization, challenge, &err);
	if (r == 0)
		get_authorized(g);
	else if (r != -EINPROGRESS)
		get_fail(g, r, "HTTP %u: %s", g->x.status, err_text(&err, r));
}

static bool is_overload(unsigned status)
{
	return status == 429 || status == 503;
}

static bool is_passing(unsigned status)
{
	return is_overload(status) || status == 408 || status == 425 ||
	       (status >= 500 && status != 501 && status != 505);
}

/* A redirect may have expired without anyone saying so in a way that all would understand. */
static bool is_stale(unsigned status)
{
	return status == 400 || status == 401 || status == 403 || status == 404 || status == 410;
}

static void get_status(struct get *g)
{
	unsigned status = g->x.status;
	const char *sent = g->authorization;
	char where[128] = "";

	if (!get_is_at_registry(g))
		url_host_text(g->redirect, where, sizeof(where));
	if (status >= 301 && status <= 308 && status != 304 && status != 305 && status != 306) {
		get_follow(g);
	} else if (is_passing(status)) {
		if (is_overload(status))
			exchange_overloaded(&g->x);
		if (g->attempt)
			get_lose_place(g);
		err_set(&g->last, -ETIMEDOUT, "HTTP %u%s%s", status, *where ? " from " : "", where);
		get_retry(g);
	} else if (*where && is_stale(status) && !g->is_found_again) {
		g->is_found_again = true;
		get_lose_place(g);
		get_attempt(g);
	} else if (*where && (status == 401 || status == 403)) {
		get_fail(g, -EACCES, "HTTP %u from %s, to which the registry redirects", status,
			 where);
	} else if (status == 401) {
		get_login(g, g->x.challenge);
	} else if (status == 403 && sent && str_starts(sent, "Basic ")) {
		/* ECR says so when a password has expired. */
		get_login(g, NULL);
	} else if (status == 403) {
		get_refused(g);
	} else if (status == 404 || status == 410) {
		get_fail(g, -ENOENT, "HTTP %u, not found", status);
	} else if (status == 416) {
		get_fail(g, -EBADMSG,
			 "HTTP 416, content does not match: it is shorter than the manifest says");
	} else {
		get_fail(g, -EBADMSG, "HTTP %u%s%s%s", status, *where ? " from " : "", where,
			 status == 400 ? get_hint(g) : "");
	}
}

/* There was no answer, or not all of it. */
static void get_broken(struct get *g, int result, const struct err *err)
{
	struct registry *r = g->r;

	if (g->sink_result < 0) {
		get_finish(g, g->sink_result, NULL);
	} else if (result == -EBADMSG && !(err && err->code)) {
		get_bad_answer(g);
	} else if (g->x.is_not_tls && !g->redirect && !r->is_plain && host_is_loopback(r->host)) {
		r->is_plain = true; /* TLS was only worth a try */
		get_attempt(g);
	} else if (!g->x.is_transient) {
		get_fail(g, result, "%s", err_text(err, result));
	} else {
		err_set(&g->last, result, "%s%s", err_text(err, result),
			result == -ECONNRESET && !g->x.status ? get_hint(g) : "");
		if (g->attempt && !g->n_given)
			get_lose_place(g);
		g->x.is_fresh = true;
		get_retry(g);
	}
}

static void get_done(struct exchange *x, int result, const struct err *err)
{
	struct get *g = containerof(x, struct get, x);
	bool is_body = x->status == 200 || (x->status == 206 && g->t);

	x->is_fresh = false;
	if (result < 0) {
		get_broken(g, result, err);
	} else if (!is_body) {
		get_status(g);
	} else if (!g->t || g->at == g->end || g->t->blob_size == BLOB_SIZE_UNKNOWN) {
		get_finish(g, 0, NULL);
	} else if (g->n_given) {
		get_attempt(g); /* less than was asked for: go on from there */
	} else {
		err_set(&g->last, -EBADMSG, "HTTP %u without the bytes it announces", x->status);
		get_bad_answer(g);
	}
}

/* ------------------------------------------------------------------ an attempt */

static void get_send(struct get *g)
{
	struct exchange *x = &g->x;

	if (!g->t)
		strbuf_clear(g->waiter->body);
	x->url = get_url(g);
	x->accept = g->t ? NULL : manifest_types;
	x->authorization = get_is_at_registry(g) ? g->authorization : NULL;
	/* For a whole blob there is no need to bother the server with ranges. */
	x->has_range = g->t && (g->at || g->end != g->t->blob_size);
	x->range_first = g->at;
	x->range_last = g->end - 1;
	x->is_stream = g->is_stream;
	x->connect_ms = CONNECT_MS << MIN(g->attempt, 2u);
	/* A short deadline still leaves time for another try. */
	x->stall_ms = (unsigned)MIN(g->patience_ns / 4 / NS_PER_MS + 1, (uint64_t)STALL_MS);
	x->head = get_head;
	x->data = get_data;
	x->done = get_done;
	exchange_start(g->r->net, x);
}

static void get_authorized(struct get *g)
{
	free(g->authorization);
	g->authorization = take(g->auth.header);
	get_send(g);
}

static void get_auth_done(struct auth_wait *w, int result, const struct err *err)
{
	struct get *g = containerof(w, struct get, auth);

	if (result == 0) {
		get_authorized(g);
	} else if (result == -EACCES || result == -EBADMSG || result == -ECANCELED) {
		get_fail(g, result, "%s", err_text(err, result));
	} else {
		err_set(&g->last, result, "%s", err_text(err, result));
		g->is_renewed = false; /* nothing has been renewed */
		get_retry(g);
	}
}

/* Returns false when somebody else is finding the place already. */
static bool get_use_place(struct get *g)
{
	struct place *p = g->place;

	if (!p || g->redirect)
		return true;
	if (p->url) {
		g->redirect = strdup(p->url);
	} else if (!p->finder) {
		p->finder = g;
	} else if (p->finder != g && !g->r->is_direct) {
		g->is_waiting = true;
		LIST_INSERT_HEAD(&p->waiting, g, link);
		return false;
	}
	return true;
}

static void get_attempt(struct get *g)
{
	struct registry *r = g->r;
	struct err err = {0};

	free(g->url);
	g->url = str_printf("%s:%s/%s", r->is_plain ? "http" : "https", r->path, g->what);
	if (!g->url) {
		get_no_memory(g);
		return;
	}
	if (!get_use_place(g))
		return;
	if (!get_is_at_registry(g)) {
		get_send(g);
		return;
	}
	int result = auth_get(net_auth(r->net), &g->auth, &err);
	if (result == 0)
		get_authorized(g);
	else if (result != -EINPROGRESS)
		get_fail(g, result, "%s", err_text(&err, result));
}

static void get_next(struct loop_timer *timer)
{
	get_attempt(containerof(timer, struct get, next));
}

static void get_stop(struct loop_task *task)
{
	get_fail(containerof(task, struct get, task), -ECANCELED, "cancelled");
}

static void get_cancel(struct loop_call *call)
{
	get_fail(containerof(call, struct get, cancel), -ECANCELED, "cancelled");
}

static void get_resume(struct loop_call *call)
{
	struct get *g = containerof(call, struct get, resume);

	g->is_held = false;
	exchange_resume(&g->x);
}

static void get_begin(struct loop_call *call)
{
	struct get *g = containerof(call, struct get, begin);
	struct net *net = g->r->net;

	loop_task_begin(net_loop(net), &g->task);
	loop_timer_set(net_loop(net), &g->deadline, g->deadline_ns);
	if (g->t && !(g->place = place_find(g->r, &g->t->digest)))
		get_no_memory(g);
	else
		get_attempt(g);
}

/* @deadline_ns 0: the net's. */
static struct get *get_new(struct registry *r, const char *kind, const char *name,
			   uint64_t deadline_ns)
{
	struct get *g = calloc(1, sizeof(*g));
	uint64_t now = now_ns();

	if (!g)
		return NULL;
	g->what = str_printf("%s/%s", kind, name);
	if (!g->what) {
		free(g);
		return NULL;
	}
	g->r = registry_ref(r);
	g->task.stop = get_stop;
	g->begin.fn = get_begin;
	g->cancel.fn = get_cancel;
	g->resume.fn = get_resume;
	g->next.fn = get_next;
	g->deadline.fn = get_deadline;
	g->auth.host = r->host;
	g->auth.repository = r->repository;
	g->auth.done = get_auth_done;
	g->deadline_ns = deadline_ns;
	if (!g->deadline_ns)
		g->deadline_ns = now + net_options_of(r->net)->deadline_ms * NS_PER_MS;
	g->patience_ns = g->deadline_ns > now ? g->deadline_ns - now : 0;
	return g;
}

/* ------------------------------------------------------------------ wishes */

void waiter_wake(struct waiter *w, int result, const struct err *err)
{
	pthread_mutex_lock(&w->lock);
	w->result = result;
	if (result < 0 && err && w->err)
		*w->err = *err;
	w->is_done = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

/* A get ends by its deadline, so this does. */
int waiter_wait(struct waiter *w)
{
	pthread_mutex_lock(&w->lock);
	while (!w->is_done)
		pthread_cond_wait(&w->cond, &w->lock);
	int result = w->result;
	pthread_mutex_unlock(&w->lock);
	return result;
}

static void transfer_fail(struct transfer *t, int result, const char *why)
{
	struct err err = {0};

	err_set(&err, result, "%s", why);
	t->done(t, result, &err);
}

void get_range(struct registry *r, struct transfer *t)
{
	char text[DIGEST_TEXT_MAX];

	if (!t->len || t->off > t->blob_size || t->len > t->blob_size - t->off) {
		transfer_fail(t, -EINVAL, "a range outside of the blob");
		return;
	}
	struct get *g = get_new(r, "blobs", digest_text(&t->digest, text), t->deadline_ns);
	if (!g) {
		transfer_fail(t, -ENOMEM, "no memory");
		return;
	}
	g->t = t;
	g->at = t->off;
	g->end = t->off + t->len;
	g->is_stream = t->is_stream;
	/* Under the lock, so that a cancel from another thread is behind the beginning or before it. */
	pthread_mutex_lock(&r->lock);
	bool has_begun = !t->is_cancelled && loop_post(net_loop(r->net), &g->begin);
	if (has_begun)
		t->impl = g;
	pthread_mutex_unlock(&r->lock);
	if (!has_begun) {
		get_free(g);
		transfer_fail(t, -ECANCELED, "cancelled");
	}
}

void get_range_cancel(struct registry *r, struct transfer *t)
{
	pthread_mutex_lock(&r->lock);
	struct get *g = t->impl;
	t->is_cancelled = true;
	if (g)
		loop_post(net_loop(r->net), &g->cancel);
	pthread_mutex_unlock(&r->lock);
}

void get_range_resume(struct registry *r, struct transfer *t)
{
	pthread_mutex_lock(&r->lock);
	struct get *g = t->impl;
	if (g)
		loop_post(net_loop(r->net), &g->resume);
	pthread_mutex_unlock(&r->lock);
}

int get_manifest(struct registry *r, const char *reference, struct strbuf *body, char **media_type,
		 struct err *err)
{
	struct waiter w = {WAITER_INIT, .body = body, .err = err};
	struct get *g = get_new(r, "manifests", reference, 0);

	if (!g)
		return err_set(err, -ENOMEM, "no memory");
	g->waiter = &w;
	if (!loop_post(net_loop(r->net), &g->begin)) {
		get_free(g);
		return err_set(err, -ECANCELED, "%s: cancelled", r->remote.name);
	}
	int result = waiter_wait(&w);
	*media_type = w.media_type;
	return result;
}

void get_forget_places(struct registry *r)
{
	struct place *p;

	while ((p = LIST_FIRST(&r->places))) {
		LIST_REMOVE(p, link);
		free(p->url);
		free(p);
	}
}
