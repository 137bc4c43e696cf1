/* SPDX-License-Identifier: Apache-2.0 */

/*
 * push: what a single request to a registry may need before it has its answer.
 *
 *     run ─► answer ─┬─► anything final: that is it
 *      ▲             ├─► 401: a new token, once between two good answers
 *      ├─ at once ◄──┼─► redirect: the same request there, without authorisation if it is elsewhere
 *      └─ back-off ◄─┴─► 429, 5xx, a cut or silent connection
 *
 * There is no deadline for all of it, since a blob may be of any size: patience ends when nothing was
 * achieved for as long as a read may take, or after some attempts in a row. A request with a body
 * that broke is not sent again from here: a part of it may have arrived, and who sent it asks first.
 */

#include "blobstore/net-internal.h"

#include <inttypes.h>
#include <stdio.h>

#define REDIRECTS_MAX 5
#define TRIES_MAX 10
#define UNREACHABLE_MAX 3 /* attempts: someone is waiting at a terminal */

static uint64_t patience_ns(const struct registry *r)
{
	return net_options_of(r->net)->deadline_ms * NS_PER_MS;
}

void push_begin(struct push *p, struct registry *r, const char *scopes)
{
	*p = (struct push){.r = r, .scopes = scopes};
	push_progress(p);
}

void push_progress(struct push *p)
{
	p->deadline_ns = now_ns() + patience_ns(p->r);
	p->n_failed = 0;
	p->retry_after_ms = 0;
	p->last.code = 0;
}

static int push_fail(struct push *p, const struct call *c, int result, struct err *err,
		     const char *why)
{
	return err_set(err, result, "%s: %s %.*s: %s", p->r->remote.name, c->method,
		       (int)strcspn(c->what, "?"), c->what, why);
}

int push_refused(struct push *p, const struct call *c, const char *what, struct err *err)
{
	unsigned status = c->x.status;
	char host[256] = "", text[400];
	int code = status == 404 || status == 410   ? -ENOENT
		   : status == 401 || status == 403 ? -EACCES
		   : status == 413 || status == 507 ? -ENOSPC
						    : -EBADMSG;

	if (!c->is_at_registry && c->url)
		url_host_text(c->url, host, sizeof(host));
	snprintf(text, sizeof(text), "HTTP %u%s%s, %s", status, *host ? " from " : "", host, what);
	if (code == -EACCES)
		snprintf(text, sizeof(text), "HTTP %u, access denied; try: docker login %s", status,
			 p->r->host);
	return push_fail(p, c, code, err, text);
}

/* p->last says what failed. 0 = try again, later. */
static int push_later(struct push *p, const struct call *c, struct err *err)
{
	uint64_t now = now_ns(), asked_ms = c->x.retry_after_ms;
	uint64_t left = p->deadline_ns > now ? p->deadline_ns - now : 0;
	bool is_unreachable = p->last.code == -ECONNREFUSED || p->last.code == -ENETUNREACH;
	char text[sizeof(p->last.text) + 64];

	p->retry_after_ms = asked_ms;
	p->n_failed++;
	if (asked_ms && asked_ms * NS_PER_MS >= left) {
		snprintf(text, sizeof(text), "%s, and asks to wait %" PRIu64 " s", p->last.text,
			 asked_ms / 1000);
		return push_fail(p, c, -ETIMEDOUT, err, text);
	}
	if (left < 20 * NS_PER_MS || p->n_failed >= TRIES_MAX ||
	    (is_unreachable && p->n_failed >= UNREACHABLE_MAX))
		return push_fail(p, c, p->last.code, err, p->last.text);
	log_debug("%s: %s: %s, again", p->r->remote.name, c->method, p->last.text);
	return 0;
}

static int push_follow(struct push *p, struct call *c, unsigned *n_redirects, struct err *err)
{
	const struct net_options *options = net_options_of(p->r->net);
	char *url = NULL;

	if (!c->x.location || ++*n_redirects > REDIRECTS_MAX)
		return push_fail(p, c, -EBADMSG, err,
				 c->x.location ? "redirected again and again"
					       : "redirected, but where to is not said");
	int r = url_resolve(c->url, c->x.location, &url);
	bool is_downgrade = !r && str_starts(c->url, "https:") && str_starts(url, "http:") &&
			    !options->plain_http;
	if (r == -ENOMEM)
		return push_fail(p, c, r, err, "no memory");
	if (r < 0 || is_downgrade || !url_is_allowed(options, url)) {
		free(url);
		return push_fail(p, c, -EBADMSG, err, "redirected to a URL that is not https");
	}
	free(c->url);
	c->url = url;
	c->is_own_url = false;
	return 0;
}

/* 1 = authorise anew. */
static int push_wants_login(struct push *p, struct call *c, struct err *err)
{
	const char *sent = c->authorization;
	bool is_expired = c->x.status == 403 && sent && str_starts(sent, "Basic ");

	if (!c->is_at_registry || (c->x.status != 401 && !is_expired))
		return 0;
	if (c->is_renewal)
		return push_refused(p, c, "", err);
	c->is_renewal = true;
	free(c->rejected);
	free(c->challenge);
	c->rejected = take(c->authorization);
	c->challenge = c->x.challenge && !is_expired ? strdup(c->x.challenge) : NULL;
	return 1;
}

static bool is_passing(unsigned status)
{
	return status == 429 || status == 408 || status == 425 ||
	       (status >= 500 && status != 501 && status != 505 && status != 507);
}

static bool is_redirect(unsigned status)
{
	return (status >= 301 && status <= 303) || status == 307 || status == 308;
}

/* A body may go on for longer than patience. But one that gets no further than those before it, again
 * and again, is no progress. */
static void push_note_body(struct push *p, const struct call *c)
{
	uint64_t end = c->body_at + c->x.n_sent;

	if (!c->feed || !c->x.n_sent || (end <= p->most_sent && p->n_failed > 1))
		return;
	p->most_sent = MAX(p->most_sent, end);
	p->deadline_ns = MAX(p->deadline_ns, now_ns() + patience_ns(p->r));
}

int push_ask(struct push *p, struct call *c, struct err *err)
{
	unsigned n_redirects = 0;
	bool is_at_once = !p->n_failed;

	c->auth.scopes = p->scopes;
	for (;;) {
		struct err why = {0};
		c->n_failed = is_at_once ? 0 : p->n_failed;
		c->retry_after_ms = p->retry_after_ms;
		int r = call_run(c, &why);
		push_note_body(p, c);
		if (r < 0 && !c->x.is_transient)
			return c->feed_result < 0 ? err_set(err, r, "%s", err_text(&why, r))
						  : push_fail(p, c, r, err, err_text(&why, r));
		if (r < 0) {
			err_set(&p->last, r, "%s", err_text(&why, r));
		} else if (is_passing(c->x.status)) {
			err_set(&p->last, -ETIMEDOUT, "HTTP %u", c->x.status);
		} else {
			int login = push_wants_login(p, c, err);
			if (login == 0 && is_redirect(c->x.status)) {
				login = push_follow(p, c, &n_redirects, err);
				if (login == 0)
					login = 1;
			}
			if (login <= 0)
				return login;
			is_at_once = true;
			continue;
		}
		is_at_once = false;
		c->x.is_fresh = true;
		r = push_later(p, c, err);
		if (r < 0 || c->feed)
			return r < 0 ? r : PUSH_UNSURE;
	}
}
