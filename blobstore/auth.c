/* SPDX-License-Identifier: Apache-2.0 */

/*
 * auth: what to send as Authorization, and how to get it.
 *
 * A registry says with 401 and WWW-Authenticate what it wants: Basic (user and password with each
 * request) or Bearer (a token from a token service, for one scope and for some minutes). What was
 * learned is kept in a grant, one for each repository of each host and what is to be done there:
 *
 *     nothing known ──401──► credentials looked up ──Basic──► header known
 *                                      │
 *                                      └─Bearer─► token fetched ─► header known, for a while
 *
 * A mount lives for days and tokens for minutes, so every step can be gone again: the end of a
 * token is seen by our own clock (so that the next read does not have to meet a 401), and a 401 in
 * the middle of its life fetches another one. Only the source of the credentials is kept for good;
 * they are looked up again when they are old or were refused.
 *
 * However many reads meet a 401 at once, a grant has one fetch at a time, and the others wait for it.
 * A read that was refused with a header which is no longer the grant's takes the newer one.
 *
 * Files and helpers are read on a thread that lives for one look-up, because they may block.
 */

#include "blobstore/net-internal.h"

#include <ctype.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <strings.h>
#include <sys/eventfd.h>

#define CREDENTIALS_LIFE_NS (300 * NS_PER_S)
#define TOKEN_SECONDS 60 /* what the protocol says when the answer does not */
#define TOKEN_BODY_MAX (256u << 10)
#define ATTEMPTS_MAX 4 /* then it is up to those who wait, who have deadlines, to ask again */
#define FETCH_PATIENCE_NS (30 * NS_PER_S)

enum scheme { SCHEME_NONE, SCHEME_BASIC, SCHEME_BEARER };

struct grant {
	struct auth *auth;
	char *host, *repository;
	char *scopes; /* more than reading; may be NULL */
	LIST_ENTRY(grant) link;

	/* what is known */
	enum scheme scheme;
	struct challenge challenge;
	char *header; /* good until until_ns; NULL = none */
	uint64_t until_ns;
	struct credentials credentials;
	uint64_t looked_up_ns; /* 0 = not yet, or no longer believed */
	struct err lookup_err; /* why there may be none */

	/* the fetch under way */
	bool is_busy;
	LIST_HEAD(, auth_wait) waiting;
	struct loop_task task;
	struct loop_timer next, deadline;
	unsigned attempt;
	bool has_looked_up; /* the credentials are as new as can be */
	uint64_t asked_ns;
	struct exchange exchange;
	char *url, *form, *basic; /* what the exchange borrows */
	struct strbuf body;

	/* the look-up under way */
	bool is_looking;
	pthread_t thread;
	int stop_fd;
	struct loop_call looked_up;
	struct credentials found;
	struct err found_err;
};

struct auth {
	struct net *net;
	LIST_HEAD(, grant) grants;
};

/* ------------------------------------------------------------------ the challenge
 *
 * WWW-Authenticate: scheme [token68 | name=value, …], scheme …     (RFC 9110, 11.6.1)
 *
 * A comma may part two parameters or two challenges: what follows it is a parameter if a name and
 * "=" come next, else a scheme. Values are tokens or quoted strings with backslash escapes. */

struct scanner {
	const char *p, *end;
};

static void skip_blanks(struct scanner *s, const char *blanks)
{
	while (s->p < s->end && *s->p && strchr(blanks, *s->p))
		s->p++;
}

static size_t scan_token(struct scanner *s, const char **token)
{
	*token = s->p;
	while (s->p < s->end &&
	       (isalnum((unsigned char)*s->p) || (*s->p && strchr("!#$%&'*+-.^_`|~", *s->p))))
		s->p++;
	return (size_t)(s->p - *token);
}

/* A quoted string or a run of anything that ends no parameter. NULL = no memory. */
static char *scan_value(struct scanner *s)
{
	struct strbuf value = {0};

	strbuf_puts(&value, "");
	if (s->p < s->end && *s->p == '"') {
		for (s->p++; s->p < s->end && *s->p != '"'; s->p++) {
			if (*s->p == '\\' && s->p + 1 < s->end)
				s->p++;
			strbuf_putc(&value, *s->p);
		}
		if (s->p < s->end)
			s->p++;
	} else {
		while (s->p < s->end && *s->p && !strchr(", \t", *s->p))
			strbuf_putc(&value, *s->p++);
	}
	return strbuf_finish(&value);
}

static bool is_word(const char *token, size_t n, const char *word)
{
	return strlen(word) == n && !strncasecmp(token, word, n);
}

/* Only the first Bearer counts. */
static int challenge_param(struct challenge *out, bool is_ours, const char *name, size_t n,
			   struct scanner *s)
{
	const struct {
		const char *name;
		char **value;
	} params[] = {{"realm", &out->realm}, {"service", &out->service}, {"scope", &out->scope}};
	char *value = scan_value(s);

	if (!value)
		return -ENOMEM;
	for (size_t i = 0; is_ours && value && i < countof(params); i++)
		if (is_word(name, n, params[i].name) && !*params[i].value)
			*params[i].value = take(value);
	free(value);
	return 0;
}

int challenge_parse(struct challenge *out, const char *text, size_t len)
{
	struct scanner s = {text, text + len};
	bool is_ours = false;

	*out = (struct challenge){0};
	for (;;) {
		const char *token;
		skip_blanks(&s, ", \t");
		size_t n = scan_token(&s, &token);
		if (!n)
			break;
		struct scanner ahead = s;
		skip_blanks(&ahead, " \t");
		if (ahead.p < ahead.end && *ahead.p == '=') {
			s.p = ahead.p + 1;
			skip_blanks(&s, " \t");
			int r = challenge_param(out, is_ours, token, n, &s);
			if (r < 0) {
				challenge_deinit(out);
				return r;
			}
			continue;
		}
		is_ours = is_word(token, n, "Bearer") && !out->is_bearer;
		out->is_bearer |= is_ours;
		out->is_basic |= is_word(token, n, "Basic");
	}
	if (out->is_bearer && !out->realm)
		out->is_bearer = false;
	if (out->is_bearer || out->is_basic)
		return 0;
	challenge_deinit(out);
	return -EBADMSG;
}

void challenge_deinit(struct challenge *c)
{
	free(c->realm);
	free(c->service);
	free(c->scope);
	*c = (struct challenge){0};
}

/* ------------------------------------------------------------------ texts */

static void text_wipe(char **text)
{
	if (*text)
		explicit_bzero(*text, strlen(*text));
	free(*text);
	*text = NULL;
}

/* "Basic …" for Authorization; NULL = no memory. */
static char *basic_header(const char *user, const char *password)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char *plain = str_printf("%s:%s", user ? user : "", password);
	struct strbuf out = {0};

	if (!plain)
		return NULL;
	strbuf_puts(&out, "Basic ");
	size_t n = strlen(plain);
	for (size_t i = 0; i < n; i += 3) {
		uint32_t v = (uint32_t)(uint8_t)plain[i] << 16;
		v |= i + 1 < n ? (uint32_t)(uint8_t)plain[i + 1] << 8 : 0;
		v |= i + 2 < n ? (uint32_t)(uint8_t)plain[i + 2] : 0;
		strbuf_putc(&out, digits[v >> 18]);
		strbuf_putc(&out, digits[v >> 12 & 63]);
		strbuf_putc(&out, i + 1 < n ? digits[v >> 6 & 63] : '=');
		strbuf_putc(&out, i + 2 < n ? digits[v & 63] : '=');
	}
	text_wipe(&plain);
	return strbuf_finish(&out);
}

/* &name=value, percent-encoded, for a query as well as for a form. */
static void add_param(struct strbuf *s, const char *name, const char *value, size_t n)
{
	strbuf_printf(s, "&%s=", name);
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)value[i];
		if (isalnum(c) || (c && strchr("-_.~", c)))
			strbuf_putc(s, (char)c);
		else
			strbuf_printf(s, "%%%02X", c);
	}
}

int token_parse(const char *json, size_t len, char **token, uint64_t *seconds)
{
	json_t *root = json_loadb(json, len, 0, NULL);
	const char *text = json_string_value(json_object_get(root, "token"));
	json_t *life = json_object_get(root, "expires_in");
	int r = -EBADMSG;

	if (!text || !*text)
		text = json_string_value(json_object_get(root, "access_token"));
	/* It goes into a header line. */
	for (const char *p = text; p && *p; p++)
		if (*p <= ' ' || *p >= 127)
			text = NULL;
	if (text && *text) {
		*token = strdup(text);
		*seconds = TOKEN_SECONDS;
		if (json_is_integer(life) && json_integer_value(life) > 0)
			*seconds = (uint64_t)json_integer_value(life);
		r = *token ? 0 : -ENOMEM;
	}
	json_decref(root);
	return r;
}

/* ------------------------------------------------------------------ the end of a fetch */

static void grant_work(struct grant *g);

/* Tells all who wait. A callback may come back with another wish for the same grant: that one
 * begins a new fetch and is not on the list taken here. */
static void grant_finish(struct grant *g, int result, const struct err *err)
{
	LIST_HEAD(, auth_wait) told = {g->waiting.lh_first};
	struct auth_wait *w;

	LIST_INIT(&g->waiting);
	if (told.lh_first)
		told.lh_first->link.le_prev = &told.lh_first;
	exchange_abort(&g->exchange);
	exchange_deinit(&g->exchange);
	loop_timer_clear(&g->next);
	loop_timer_clear(&g->deadline);
	text_wipe(&g->form);
	text_wipe(&g->basic);
	free(take(g->url));
	strbuf_free(&g->body);
	loop_task_end(&g->task);
	g->is_busy = false;
	while ((w = LIST_FIRST(&told))) {
		int r = result;
		auth_forget(w);
		w->header = !r && g->header ? strdup(g->header) : NULL;
		if (!r && g->header && !w->header)
			r = -ENOMEM;
		w->done(w, r, err);
	}
}

static void __attribute__((format(printf, 3, 4)))
grant_fail(struct grant *g, int result, const char *fmt, ...)
{
	const struct err *also = &g->lookup_err;
	struct err err = {0};
	char what[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (also->code)
		err_set(&err, result, "%s (%s)", what, also->text);
	else
		err_set(&err, result, "%s", what);
	grant_finish(g, result, &err);
}

static void grant_deadline(struct loop_timer *timer)
{
	struct grant *g = containerof(timer, struct grant, deadline);

	grant_fail(g, -ETIMEDOUT,
		   "the token service or the credential helper gave no answer in time");
}

/* Takes @header over; NULL = no memory. */
static void grant_succeed(struct grant *g, char *header, uint64_t until_ns)
{
	text_wipe(&g->header);
	g->header = header;
	g->until_ns = until_ns;
	if (header)
		grant_finish(g, 0, NULL);
	else
		grant_fail(g, -ENOMEM, "no memory");
}

/* ------------------------------------------------------------------ credentials */

static void *lookup_main(void *arg)
{
	struct grant *g = arg;

	g->found_err.code = 0;
	credentials_lookup(&g->found, g->host, g->repository, g->stop_fd, &g->found_err);
	loop_post(net_loop(g->auth->net), &g->looked_up);
	return NULL;
}

static void lookup_join(struct grant *g)
{
	pthread_join(g->thread, NULL);
	loop_unpost(net_loop(g->auth->net), &g->looked_up);
	close_fd(g->stop_fd);
	g->is_looking = false;
	credentials_deinit(&g->credentials);
	g->credentials = g->found;
	g->lookup_err = g->found_err;
	g->found = (struct credentials){0};
	g->looked_up_ns = now_ns();
}

static void lookup_done(struct loop_call *call)
{
	struct grant *g = containerof(call, struct grant, looked_up);

	lookup_join(g);
	g->has_looked_up = true;
	if (g->is_busy)
		grant_work(g);
}

static void grant_look_up(struct grant *g)
{
	sigset_t all, old;

	g->looked_up.fn = lookup_done;
	g->stop_fd = eventfd(0, EFD_CLOEXEC);
	/* Signals are for the threads that wait for them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int r = g->stop_fd < 0 ? -errno : -pthread_create(&g->thread, NULL, lookup_main, g);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0) {
		close_fd(g->stop_fd);
		grant_fail(g, r, "cannot start a thread to look up credentials");
		return;
	}
	g->is_looking = true;
}

static void lookup_cancel(struct grant *g)
{
	const uint64_t one = 1;

	if (!g->is_looking)
		return;
	(void)!write_full(g->stop_fd, &one, sizeof(one));
	lookup_join(g);
	g->looked_up_ns = 0;
}

/* ------------------------------------------------------------------ tokens */

static int token_head(struct exchange *x)
{
	return x->status != 200;
}

static int token_data(struct exchange *x, const void *bytes, size_t n)
{
	struct grant *g = containerof(x, struct grant, exchange);

	if (g->body.len + n > TOKEN_BODY_MAX)
		return -EBADMSG;
	strbuf_add(&g->body, bytes, n);
	return g->body.failed ? -ENOMEM : 0;
}

static void token_refused(struct grant *g)
{
	char where[128];
	const char *what =
		g->credentials.secret ? "the stored credentials" : "access without a login";

	g->looked_up_ns = 0;
	if (g->credentials.secret && !g->has_looked_up)
		grant_work(g); /* the user may have logged in anew */
	else
		grant_fail(g, -EACCES,
			   "the token service %s refuses %s (HTTP %u); try: docker login %s",
			   url_host_text(g->url, where, sizeof(where)), what, g->exchange.status,
			   g->host);
}

/* The answer is complete and 200. */
static void token_take(struct grant *g)
{
	char *token = NULL, where[128];
	uint64_t seconds;
	int r = token_parse(g->body.data ? g->body.data : "", g->body.len, &token, &seconds);

	if (r < 0) {
		grant_fail(g, r, "the token service %s answers without a token",
			   url_host_text(g->url, where, sizeof(where)));
		return;
	}
	/* From when it was asked for, and a tenth early: a token must not end on its way. */
	uint64_t life_ns = MIN(seconds, UINT64_C(86400)) * NS_PER_S;
	char *header = str_printf("Bearer %s", token);
	text_wipe(&token);
	grant_succeed(g, header, g->asked_ns + life_ns - life_ns / 10);
}

static void token_done(struct exchange *x, int result, const struct err *err)
{
	struct grant *g = containerof(x, struct grant, exchange);
	struct net *net = g->auth->net;
	char where[128];

	bool is_passing = result < 0 ? x->is_transient
				     : x->status >= 500 || x->status == 429 || x->status == 408;

	url_host_text(g->url, where, sizeof(where));
	if (is_passing && ++g->attempt < ATTEMPTS_MAX)
		loop_timer_set(net_loop(net), &g->next,
			       now_ns() + net_backoff_ns(net, g->attempt - 1, x->retry_after_ms));
	else if (result < 0)
		grant_fail(g, result, "token service: %s", err_text(err, result));
	else if (is_passing)
		grant_fail(g, -ETIMEDOUT, "the token service %s answers with HTTP %u", where,
			   x->status);
	else if (x->status == 401 || x->status == 403 || (x->status == 400 && g->form))
		token_refused(g);
	else if (x->status == 200)
		token_take(g);
	else
		grant_fail(g, -EBADMSG, "the token service %s answers with HTTP %u", where,
			   x->status);
}

/* What to ask for: what the challenge says and what is needed. A challenge that a mere question got
 * speaks of reading only. NULL = no memory. */
static char *grant_scopes(const struct grant *g)
{
	const char *said = g->challenge.scope;

	if (g->scopes && said && strcmp(said, g->scopes) != 0)
		return str_printf("%s %s", g->scopes, said);
	if (g->scopes || said)
		return strdup(g->scopes ? g->scopes : said);
	return str_printf("repository:%s:pull", g->repository);
}

/* They are parted by blanks; each becomes a parameter of the query, while the form has them in one. */
static void add_scopes(struct grant *g, struct strbuf *s)
{
	scoped(free) char *all = grant_scopes(g);
	const char *scope = all;

	if (!scope)
		s->failed = true;
	while (scope && *scope) {
		size_t n = strcspn(scope, " ");
		if (n)
			add_param(s, "scope", scope, n);
		scope += n + (scope[n] == ' ');
	}
}

/* An identity token can only be posted; everything else goes the way that every registry knows. */
static bool token_request(struct grant *g)
{
	const struct credentials *c = &g->credentials;
	const char *service = g->challenge.service;
	struct strbuf s = {0};

	if (c->secret && c->is_identity_token) {
		scoped(free) char *scope = grant_scopes(g);
		if (!scope)
			return false;
		strbuf_puts(&s, "grant_type=refresh_token&client_id=llbfs");
		add_param(&s, "refresh_token", c->secret, strlen(c->secret));
		if (service)
			add_param(&s, "service", service, strlen(service));
		add_param(&s, "scope", scope, strlen(scope));
		g->form = strbuf_finish(&s);
		g->url = strdup(g->challenge.realm);
		return g->form && g->url;
	}
	if (service)
		add_param(&s, "service", service, strlen(service));
	add_scopes(g, &s);
	if (c->secret && c->user)
		add_param(&s, "account", c->user, strlen(c->user));
	scoped(free) char *query = strbuf_finish(&s);
	bool has_query = strchr(g->challenge.realm, '?');
	if (query && *query)
		g->url = str_printf("%s%c%s", g->challenge.realm, has_query ? '&' : '?', query + 1);
	g->basic = c->secret ? basic_header(c->user, c->secret) : NULL;
	return g->url && (g->basic || !c->secret);
}

static void grant_fetch_token(struct grant *g)
{
	struct exchange *x = &g->exchange;

	text_wipe(&g->form);
	text_wipe(&g->basic);
	free(take(g->url));
	strbuf_clear(&g->body);
	if (!url_is_allowed(net_options_of(g->auth->net), g->challenge.realm)) {
		grant_fail(g, -EACCES,
			   "its token service is not reached by https, so credentials are not sent "
			   "there (allow it with --plain-http)");
		return;
	}
	if (!token_request(g)) {
		grant_fail(g, -ENOMEM, "no memory");
		return;
	}
	x->url = g->url;
	x->form = g->form;
	x->authorization = g->basic;
	x->head = token_head;
	x->data = token_data;
	x->done = token_done;
	g->asked_ns = now_ns();
	exchange_start(g->auth->net, x);
}

/* ------------------------------------------------------------------ grants */

/* The next step of the fetch under way. */
static void grant_work(struct grant *g)
{
	const struct credentials *c = &g->credentials;

	if (g->is_looking)
		return;
	if (!g->looked_up_ns || now_ns() > g->looked_up_ns + CREDENTIALS_LIFE_NS) {
		grant_look_up(g);
	} else if (g->scheme == SCHEME_BEARER) {
		grant_fetch_token(g);
	} else if (c->secret && !c->is_identity_token) {
		grant_succeed(g, basic_header(c->user, c->secret), now_ns() + CREDENTIALS_LIFE_NS);
	} else {
		g->looked_up_ns = 0;
		grant_fail(g, -EACCES, "needs a login; try: docker login %s", g->host);
	}
}

static void grant_next(struct loop_timer *timer)
{
	grant_work(containerof(timer, struct grant, next));
}

static void grant_stop(struct loop_task *task)
{
	struct grant *g = containerof(task, struct grant, task);

	lookup_cancel(g);
	grant_fail(g, -ECANCELED, "cancelled");
}

/* Has @w wait for the fetch, which is begun when there is none; it never ends from in here. */
static int grant_wait(struct grant *g, struct auth_wait *w)
{
	struct net *net = g->auth->net;
	bool is_new = !g->is_busy;

	w->is_waiting = true;
	LIST_INSERT_HEAD(&g->waiting, w, link);
	if (is_new) {
		g->is_busy = true;
		g->attempt = 0;
		g->has_looked_up = false;
		g->task.stop = grant_stop;
		loop_task_begin(net_loop(net), &g->task);
		g->deadline.fn = grant_deadline;
		loop_timer_set(net_loop(net), &g->deadline, now_ns() + FETCH_PATIENCE_NS);
		g->next.fn = grant_next;
		loop_timer_set(net_loop(net), &g->next, 0);
	}
	return -EINPROGRESS;
}

static bool same_scopes(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

static void grant_free(struct grant *g)
{
	free(g->host);
	free(g->repository);
	free(g->scopes);
	free(g);
}

static struct grant *grant_find(struct auth *auth, const struct auth_wait *w)
{
	struct grant *g;

	LIST_FOREACH (g, &auth->grants, link)
		if (!strcmp(g->host, w->host) && !strcmp(g->repository, w->repository) &&
		    same_scopes(g->scopes, w->scopes))
			return g;
	g = calloc(1, sizeof(*g));
	if (!g)
		return NULL;
	g->auth = auth;
	g->host = strdup(w->host);
	g->repository = strdup(w->repository);
	g->scopes = w->scopes ? strdup(w->scopes) : NULL;
	if (!g->host || !g->repository || (w->scopes && !g->scopes)) {
		grant_free(g);
		return NULL;
	}
	LIST_INSERT_HEAD(&auth->grants, g, link);
	return g;
}

static int grant_answer(struct grant *g, struct auth_wait *w, struct err *err)
{
	w->header = g->header ? strdup(g->header) : NULL;
	return g->header && !w->header ? err_set(err, -ENOMEM, "no memory") : 0;
}

int auth_get(struct auth *auth, struct auth_wait *w, struct err *err)
{
	struct grant *g = grant_find(auth, w);

	w->header = NULL;
	if (!g)
		return err_set(err, -ENOMEM, "no memory");
	if (g->scheme == SCHEME_NONE || (g->header && now_ns() < g->until_ns))
		return grant_answer(g, w, err);
	return grant_wait(g, w);
}

/* Learns what the registry wants. */
static int grant_learn(struct grant *g, const char *text, struct err *err)
{
	struct challenge c;
	int r = text ? challenge_parse(&c, text, strlen(text)) : -EBADMSG;

	if (r < 0)
		return err_set(err, r == -EBADMSG ? -EACCES : r,
			       "asks for a kind of login that is not known here");
	challenge_deinit(&g->challenge);
	g->challenge = c;
	g->scheme = c.is_bearer ? SCHEME_BEARER : SCHEME_BASIC;
	return 0;
}

int auth_renew(struct auth *auth, struct auth_wait *w, const char *rejected, const char *challenge,
	       struct err *err)
{
	struct grant *g = grant_find(auth, w);

	w->header = NULL;
	if (!g)
		return err_set(err, -ENOMEM, "no memory");
	if (g->is_busy)
		return grant_wait(g, w);
	if (g->header && (!rejected || strcmp(rejected, g->header) != 0) && now_ns() < g->until_ns)
		return grant_answer(g, w, err); /* somebody else was faster */
	if (challenge || g->scheme == SCHEME_NONE) {
		int r = grant_learn(g, challenge, err);
		if (r < 0)
			return r;
	}
	if (rejected && g->scheme == SCHEME_BASIC)
		g->looked_up_ns = 0;
	text_wipe(&g->header);
	return grant_wait(g, w);
}

void auth_forget(struct auth_wait *w)
{
	if (w->is_waiting)
		LIST_REMOVE(w, link);
	w->is_waiting = false;
}

struct auth *auth_new(struct net *net)
{
	struct auth *auth = calloc(1, sizeof(*auth));

	if (auth)
		auth->net = net;
	return auth;
}

void auth_free(struct auth *auth)
{
	struct grant *g;

	while (auth && (g = LIST_FIRST(&auth->grants))) {
		LIST_REMOVE(g, link);
		lookup_cancel(g);
		challenge_deinit(&g->challenge);
		credentials_deinit(&g->credentials);
		text_wipe(&g->header);
		grant_free(g);
	}
	free(auth);
}
