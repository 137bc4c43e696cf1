/* SPDX-License-Identifier: Apache-2.0 */

/*
 * fetch: the network thread, and single HTTP exchanges on it. The only file that knows curl.
 *
 * One thread runs one curl_multi and the loop of calls, timers and tasks (loop.c), so requests,
 * tokens, redirects and retries are plain single-threaded state machines. Nothing on it may block:
 * curl resolves names on threads of its own, credential helpers get one from auth.c.
 *
 * An exchange is exactly one request and its answer. It waits in the queue of its host (scheme,
 * name and port) until it may run. Each host has three kinds of places: for small reads, for
 * streams of whole layers, and for what is sent, so that none starves another (a stream that waits
 * for its taker may be what an upload is fed from); a host that answers 429 loses
 * half of its places and earns them back one success at a time. The queues are ours and not curl's
 * because an exchange that waits in curl's cannot be told from one that is stuck.
 *
 * Callbacks of an exchange come from inside curl, where its handles must not be added or removed.
 * exchange_start only queues; adding happens in the loop. exchange_abort and exchange_resume are
 * therefore not for use from head, data and send, which end or pause an exchange with what they
 * return.
 *
 * Back pressure goes both ways: data may refuse bytes for now, and send may have none yet. Such an
 * exchange rests, without a byte buffered here beyond one read of curl's, until exchange_resume; its
 * stall is not the server's then, and does not count.
 */

#include "blobstore/net-internal.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

#define READS_MAX 10
#define STREAMS_MAX 6
#define UPLOADS_MAX 6
#define CONNECTIONS_KEPT 64
#define CONNECT_MS 3000
#define STALL_MS 10000
#define DEADLINE_MS 60000
/* A body that nobody wants is read to its end when it is this short, to keep the connection. */
#define IGNORE_MAX (64u << 10)
#define HEADER_MAX 16384 /* signed URLs and challenges are a few kilobytes */
#define BACKOFF_MAX_MS 5000

TAILQ_HEAD(exchanges, exchange);

enum { READS, STREAMS, UPLOADS, N_KINDS };
static const unsigned places_max[N_KINDS] = {
	[READS] = READS_MAX,
	[STREAMS] = STREAMS_MAX,
	[UPLOADS] = UPLOADS_MAX,
};

struct net_host {
	char *origin;
	LIST_ENTRY(net_host) link;
	struct exchanges queue[N_KINDS];
	unsigned n_active[N_KINDS], places[N_KINDS];
	bool is_http1; /* HTTP/2 went wrong here */
};

struct net {
	/* set once */
	struct net_options options;
	char *ca_file;	       /* instead of curl's default; may be NULL */
	struct strbuf ca_text; /* the default and the additional certificates, when there are */
	CURLM *multi;
	CURLSH *share;
	struct auth *auth;
	pthread_t thread;

	/* the network thread's own */
	struct loop loop;
	LIST_HEAD(, net_host) hosts;
	struct exchanges active;
	unsigned n_active;
	uint64_t seed;
	double credit; /* bytes that may be received now; below 0 = overdrawn */
	uint64_t credit_ns;
	struct loop_timer rate_timer;

	_Atomic uint64_t n_requests, n_bytes;
};

const struct net_options *net_options_of(const struct net *net)
{
	return &net->options;
}

struct loop *net_loop(struct net *net)
{
	return &net->loop;
}

struct auth *net_auth(struct net *net)
{
	return net->auth;
}

void net_stats(struct net *net, struct net_stats *out)
{
	out->requests = atomic_load(&net->n_requests);
	out->bytes = atomic_load(&net->n_bytes);
}

uint64_t net_random(struct net *net, uint64_t bound)
{
	uint64_t z = net->seed += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return (z ^ z >> 31) % MAX(bound, UINT64_C(1));
}

uint64_t net_backoff_ns(struct net *net, unsigned attempt, uint64_t retry_after_ms)
{
	uint64_t bound_ms = attempt < 16 ? UINT64_C(200) << attempt : UINT64_MAX;
	uint64_t ms = 10 + net_random(net, MIN(bound_ms, (uint64_t)BACKOFF_MAX_MS));

	/* Everyone was told the same time, so even then each adds something of its own. */
	if (retry_after_ms)
		ms = retry_after_ms + net_random(net, MIN(retry_after_ms / 4, UINT64_C(1000)) + 1);
	return ms * NS_PER_MS;
}

/* ------------------------------------------------------------------ URLs */

/* The part, or NULL. Free with curl_free. */
static char *url_part(const char *url, CURLUPart part)
{
	CURLU *u = curl_url();
	char *text = NULL;

	if (u && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
	    curl_url_get(u, part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK)
		text = NULL;
	curl_url_cleanup(u);
	return text;
}

int url_resolve(const char *base, const char *location, char **out)
{
	CURLU *u = curl_url();
	char *scheme = NULL, *url = NULL;
	int r = u ? -EBADMSG : -ENOMEM;

	if (u && curl_url_set(u, CURLUPART_URL, base, 0) == CURLUE_OK &&
	    curl_url_set(u, CURLUPART_URL, location, 0) == CURLUE_OK &&
	    curl_url_set(u, CURLUPART_USER, NULL, 0) == CURLUE_OK &&
	    curl_url_set(u, CURLUPART_PASSWORD, NULL, 0) == CURLUE_OK &&
	    curl_url_set(u, CURLUPART_FRAGMENT, NULL, 0) == CURLUE_OK &&
	    curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
	    (!strcmp(scheme, "http") || !strcmp(scheme, "https")) &&
	    curl_url_get(u, CURLUPART_URL, &url, 0) == CURLUE_OK) {
		*out = strdup(url);
		r = *out ? 0 : -ENOMEM;
	}
	curl_free(scheme);
	curl_free(url);
	curl_url_cleanup(u);
	return r;
}

/* "scheme://host:port"; caller frees; NULL = not a URL, or no memory. */
static char *url_origin(const char *url)
{
	char *scheme = url_part(url, CURLUPART_SCHEME);
	char *host = url_part(url, CURLUPART_HOST);
	char *port = url_part(url, CURLUPART_PORT);
	char *origin = scheme && host && port ? str_printf("%s://%s:%s", scheme, host, port) : NULL;

	for (char *p = origin; p && *p; p++)
		if (*p >= 'A' && *p <= 'Z')
			*p = (char)(*p - 'A' + 'a');
	curl_free(scheme);
	curl_free(host);
	curl_free(port);
	return origin;
}

bool url_same_origin(const char *a, const char *b)
{
	scoped(free) char *x = url_origin(a);
	scoped(free) char *y = url_origin(b);

	return x && y && strcmp(x, y) == 0;
}

bool host_is_loopback(const char *host)
{
	char name[64];
	struct in_addr ip;
	size_t n = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");

	if (!strcmp(host, "::1"))
		return true;
	if (n >= sizeof(name) || n > strlen(host) || (host[n] && host[n] != ':'))
		return false;
	memcpy(name, host, n);
	name[n] = '\0';
	if (!strcasecmp(name, "localhost") || !strcmp(name, "[::1]"))
		return true;
	return inet_pton(AF_INET, name, &ip) == 1 && ntohl(ip.s_addr) >> 24 == 127;
}

bool url_is_allowed(const struct net_options *options, const char *url)
{
	char *scheme = url_part(url, CURLUPART_SCHEME);
	char *host = url_part(url, CURLUPART_HOST);
	bool is_https = scheme && !strcmp(scheme, "https");
	bool is_http = scheme && !strcmp(scheme, "http");
	bool is_allowed =
		host && (is_https || (is_http && (options->plain_http || host_is_loopback(host))));

	curl_free(scheme);
	curl_free(host);
	return is_allowed;
}

char *url_host_text(const char *url, char *buf, size_t size)
{
	scoped(free) char *origin = url_origin(url);
	const char *host = origin ? strstr(origin, "://") + 3 : "an unknown host";
	size_t n = strlen(host);

	/* The port that goes without saying is not said. */
	if (origin && str_starts(origin, "https:") && str_ends(origin, ":443"))
		n -= 4;
	snprintf(buf, size, "%.*s", (int)n, host);
	return buf;
}

/* ------------------------------------------------------------------ hosts */

static struct net_host *host_find(struct net *net, const char *url)
{
	scoped(free) char *origin = url_origin(url);
	struct net_host *host;

	if (!origin)
		return NULL;
	LIST_FOREACH (host, &net->hosts, link)
		if (strcmp(host->origin, origin) == 0)
			return host;
	host = calloc(1, sizeof(*host));
	if (!host)
		return NULL;
	host->origin = take(origin);
	for (int kind = 0; kind < N_KINDS; kind++) {
		TAILQ_INIT(&host->queue[kind]);
		host->places[kind] = places_max[kind];
	}
	LIST_INSERT_HEAD(&net->hosts, host, link);
	return host;
}

static int exchange_kind(const struct exchange *x)
{
	return x->send ? UPLOADS : x->is_stream ? STREAMS : READS;
}

static void host_answered_well(struct net_host *host, int kind)
{
	if (host->places[kind] < places_max[kind])
		host->places[kind]++;
}

void exchange_overloaded(struct exchange *x)
{
	for (int kind = 0; x->host && kind < N_KINDS; kind++)
		x->host->places[kind] = MAX(x->host->places[kind] / 2, 1u);
}

/* ------------------------------------------------------------------ the rate
 *
 * All exchanges draw on one account that max_rate fills. It may be overdrawn by one piece; then who
 * has a piece to give is paused until the account is filled again. curl's own bound is no use here:
 * it is per transfer, and lets a second's worth through at the start. */

static void net_earn(struct net *net)
{
	uint64_t now = now_ns();
	double most = (double)net->options.max_rate / 20;

	net->credit += (double)(now - net->credit_ns) / 1e9 * (double)net->options.max_rate;
	net->credit = MIN(net->credit, most);
	net->credit_ns = now;
}

/* Has the timer fire when there is something to spend. */
static void net_await_credit(struct net *net)
{
	double seconds = MAX(1 - net->credit, 0.0) / (double)net->options.max_rate;

	loop_timer_set(&net->loop, &net->rate_timer, net->credit_ns + (uint64_t)(seconds * 1e9));
}

/* False: nothing left; the timer runs. */
static bool net_spend(struct net *net, size_t n)
{
	net_earn(net);
	if (net->credit <= 0) {
		net_await_credit(net);
		return false;
	}
	net->credit -= (double)n;
	return true;
}

static void exchange_finished(struct exchange *x, CURLcode code);

/* Lets the paused go on in turn, as far as the account goes; each may pause again. */
static void net_rate_timer(struct loop_timer *timer)
{
	struct net *net = containerof(timer, struct net, rate_timer);
	unsigned n = net->n_active;

	net_earn(net);
	for (; n && net->credit > 0 && !TAILQ_EMPTY(&net->active); n--) {
		struct exchange *x = TAILQ_FIRST(&net->active);
		TAILQ_REMOVE(&net->active, x, link);
		TAILQ_INSERT_TAIL(&net->active, x, link);
		if (!x->is_paused)
			continue;
		x->is_paused = false;
		CURLcode code = curl_easy_pause(x->easy, CURLPAUSE_CONT);
		if (code != CURLE_OK)
			exchange_finished(x, code);
	}
	struct exchange *x;
	TAILQ_FOREACH (x, &net->active, link)
		if (x->is_paused)
			net_await_credit(net);
}

/* ------------------------------------------------------------------ the answer */

static void exchange_clear_answer(struct exchange *x)
{
	char **const texts[] = {&x->location,	   &x->challenge,	 &x->content_range,
				&x->content_type,  &x->content_encoding, &x->content_disposition,
				&x->etag,	   &x->last_modified,	 &x->range,
				&x->content_digest};

	for (size_t i = 0; i < countof(texts); i++) {
		free(*texts[i]);
		*texts[i] = NULL;
	}
	x->status = 0;
	x->body_len = -1;
	x->retry_after_ms = x->chunk_min = 0;
	x->is_transient = x->is_not_tls = false;
}

/* Seconds, or a date. */
static uint64_t retry_after_ms(const char *value)
{
	uint64_t seconds;

	if (parse_u64(value, &seconds) < 0) {
		time_t at = curl_getdate(value, NULL);
		time_t now = time(NULL);
		seconds = at > now ? (uint64_t)(at - now) : 0;
	}
	return MIN(seconds, UINT64_C(86400)) * 1000;
}

/* Keeps one header line; a repeated WWW-Authenticate is one list with commas. */
static int exchange_keep_header(struct exchange *x, const char *name, size_t n, const char *value)
{
	const struct {
		const char *name;
		char **text;
	} kept[] = {{"Location", &x->location},
		    {"WWW-Authenticate", &x->challenge},
		    {"Content-Range", &x->content_range},
		    {"Content-Type", &x->content_type},
		    {"Content-Encoding", &x->content_encoding},
		    {"Content-Disposition", &x->content_disposition},
		    {"ETag", &x->etag},
		    {"Last-Modified", &x->last_modified},
		    {"Range", &x->range},
		    {"Docker-Content-Digest", &x->content_digest}};
	uint64_t length;

	if (n == 11 && !strncasecmp(name, "Retry-After", n))
		x->retry_after_ms = retry_after_ms(value);
	if (n == 14 && !strncasecmp(name, "Content-Length", n) && !parse_u64(value, &length) &&
	    length <= INT64_MAX)
		x->body_len = (int64_t)length;
	if (n == 20 && !strncasecmp(name, "OCI-Chunk-Min-Length", n) && !parse_u64(value, &length))
		x->chunk_min = length;
	for (size_t i = 0; i < countof(kept); i++) {
		if (strlen(kept[i].name) != n || strncasecmp(name, kept[i].name, n) != 0)
			continue;
		char *old = *kept[i].text;
		if (old && strlen(old) + strlen(value) > HEADER_MAX)
			return -EBADMSG;
		char *text = old && kept[i].text == &x->challenge ? str_printf("%s, %s", old, value)
								  : strdup(value);
		if (!text)
			return -ENOMEM;
		free(old);
		*kept[i].text = text;
	}
	return 0;
}

/* Ends the exchange from inside curl. */
static size_t exchange_stop(struct exchange *x, int result)
{
	x->is_ended = true;
	x->result = result;
	return 0; /* not what curl gave us: it stops with CURLE_WRITE_ERROR */
}

static size_t on_header_end(struct exchange *x, size_t all)
{
	long status = 0;

	curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status < 200) /* 100 Continue and the like: the answer is still to come */
		return all;
	x->has_head = true;
	x->status = (unsigned)status;
	int r = x->head(x);
	x->is_ignoring = r == 1;
	return r < 0 ? exchange_stop(x, r) : all;
}

static size_t on_header(char *bytes, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	size_t all = size * n, len = all;

	x->last_ns = now_ns();
	if (x->has_head) /* trailers */
		return all;
	while (len && strchr("\r\n \t", bytes[len - 1]))
		len--;
	if (!len)
		return on_header_end(x, all);
	if (len >= 5 && !strncasecmp(bytes, "HTTP/", 5)) {
		exchange_clear_answer(x);
		return all;
	}
	const char *colon = memchr(bytes, ':', len);
	if (!colon || len > HEADER_MAX)
		return all;
	const char *value = colon + 1;
	while (value < bytes + len && (*value == ' ' || *value == '\t'))
		value++;
	scoped(free) char *text = strndup(value, (size_t)(bytes + len - value));
	int r = text ? exchange_keep_header(x, bytes, (size_t)(colon - bytes), text) : -ENOMEM;
	return r < 0 ? exchange_stop(x, r) : all;
}

static size_t on_body(char *bytes, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	struct net *net = x->net;
	size_t all = size * n;

	x->last_ns = now_ns();
	if (net->options.max_rate && !net_spend(net, all)) {
		x->is_paused = true;
		return CURL_WRITEFUNC_PAUSE; /* it comes again */
	}
	atomic_fetch_add(&net->n_bytes, all);
	if (x->is_ignoring) {
		x->n_ignored += all;
		return x->n_ignored > IGNORE_MAX ? exchange_stop(x, 0) : all;
	}
	int r = x->data(x, bytes, all);
	if (r == EXCHANGE_HOLD) {
		atomic_fetch_sub(&net->n_bytes, all);
		net->credit += (double)all;
		x->is_resting = true;
		return CURL_WRITEFUNC_PAUSE;
	}
	return r ? exchange_stop(x, MIN(r, 0)) : all;
}

/* curl wants the next bytes of the request's body. */
static size_t on_send(char *dst, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	ssize_t r = x->send(x, dst, size * n);

	x->last_ns = now_ns();
	if (r == 0 && x->n_sent < x->send_size) {
		x->is_resting = true;
		return CURL_READFUNC_PAUSE;
	}
	if (r < 0) {
		exchange_stop(x, (int)r);
		return CURL_READFUNC_ABORT;
	}
	x->n_sent += (uint64_t)r;
	return (size_t)r;
}

void exchange_resume(struct exchange *x)
{
	if (x->state != EXCHANGE_ACTIVE || !x->is_resting)
		return;
	x->is_resting = x->is_paused = false;
	x->last_ns = now_ns();
	CURLcode code = curl_easy_pause(x->easy, CURLPAUSE_CONT);
	if (code != CURLE_OK)
		exchange_finished(x, code);
}

/* ------------------------------------------------------------------ starting and ending */

/* Off whatever list it is on. */
static void exchange_detach(struct exchange *x)
{
	struct net *net = x->net;

	loop_timer_clear(&x->timer);
	if (x->state == EXCHANGE_QUEUED)
		TAILQ_REMOVE(&x->host->queue[exchange_kind(x)], x, link);
	if (x->state == EXCHANGE_ACTIVE) {
		curl_multi_remove_handle(net->multi, x->easy);
		TAILQ_REMOVE(&net->active, x, link);
		x->host->n_active[exchange_kind(x)]--;
		net->n_active--;
	}
	curl_easy_cleanup(x->easy);
	curl_slist_free_all(x->headers);
	free(x->problem);
	x->easy = x->headers = NULL;
	x->problem = NULL;
	x->state = EXCHANGE_IDLE;
}

void exchange_abort(struct exchange *x)
{
	if (x->state != EXCHANGE_IDLE)
		exchange_detach(x);
}

void exchange_deinit(struct exchange *x)
{
	exchange_clear_answer(x);
}

static void exchange_done(struct exchange *x, int result, const struct err *err)
{
	exchange_detach(x);
	x->done(x, result, err);
}

/* HTTP/2 in curl has had its hangs: where it stalls or breaks, HTTP/1.1 is tried. */
static void exchange_distrust_http2(struct exchange *x, CURLcode code)
{
	long version = 0;

	curl_easy_getinfo(x->easy, CURLINFO_HTTP_VERSION, &version);
	if (code == CURLE_HTTP2 || code == CURLE_HTTP2_STREAM || version == CURL_HTTP_VERSION_2_0)
		x->host->is_http1 = true;
}

static uint64_t exchange_stall_ns(const struct exchange *x)
{
	return (x->stall_ms ? x->stall_ms : STALL_MS) * NS_PER_MS;
}

static void exchange_timer(struct loop_timer *timer)
{
	struct exchange *x = containerof(timer, struct exchange, timer);
	struct err err = {0};
	char host[256];

	if (x->state == EXCHANGE_FAILED) {
		int r = x->result;
		if (r == -ENETUNREACH)
			err_set(&err, r, "%s: not asked because of --offline",
				url_host_text(x->url, host, sizeof(host)));
		exchange_done(x, r, &err);
		return;
	}
	bool is_ours = x->is_paused || x->is_resting;
	uint64_t until = (is_ours ? now_ns() : x->last_ns) + exchange_stall_ns(x);
	if (now_ns() < until) {
		loop_timer_set(&x->net->loop, &x->timer, until);
		return;
	}
	exchange_distrust_http2(x, CURLE_OK);
	x->is_transient = true;
	err_set(&err, -ETIMEDOUT, "%s: nothing %s for %.1f s",
		url_host_text(x->url, host, sizeof(host)),
		x->send && x->n_sent < x->send_size ? "was taken" : "came",
		(double)exchange_stall_ns(x) / 1e9);
	exchange_done(x, -ETIMEDOUT, &err);
}

void exchange_start(struct net *net, struct exchange *x)
{
	exchange_clear_answer(x);
	x->net = net;
	x->n_ignored = x->n_sent = 0;
	x->result = 0;
	x->has_head = x->is_ignoring = x->is_ended = x->is_paused = x->is_resting = false;
	x->timer.fn = exchange_timer;
	x->host = NULL;
	if (net->options.offline)
		x->result = -ENETUNREACH;
	else if (!(x->host = host_find(net, x->url)))
		x->result = -EBADMSG;
	x->state = x->result ? EXCHANGE_FAILED : EXCHANGE_QUEUED;
	if (x->result)
		loop_timer_set(&net->loop, &x->timer, 0);
	else
		TAILQ_INSERT_TAIL(&x->host->queue[exchange_kind(x)], x, link);
}

/* NULL as @value: no such header. */
static bool add_header(struct curl_slist **list, const char *name, const char *value)
{
	scoped(free) char *line = value ? str_printf("%s: %s", name, value) : NULL;
	struct curl_slist *more = line ? curl_slist_append(*list, line) : NULL;

	if (more)
		*list = more;
	return !value || more;
}

static bool exchange_headers(struct exchange *x)
{
	struct curl_slist *list = NULL;
	char range[64];

	snprintf(range, sizeof(range), "bytes=%llu-%llu", (unsigned long long)x->range_first,
		 (unsigned long long)x->range_last);
	/* identity: a CDN that compresses on the way would make offsets meaningless. */
	bool ok = add_header(&list, "Accept-Encoding", "identity") &&
		  add_header(&list, "Accept", x->accept ? x->accept : "*/*") &&
		  add_header(&list, "Authorization", x->authorization) &&
		  add_header(&list, "If-None-Match", x->if_none_match) &&
		  add_header(&list, "If-Modified-Since", x->if_modified_since) &&
		  add_header(&list, "If-Range", x->if_range) &&
		  add_header(&list, "Content-Type", x->send_type) &&
		  add_header(&list, "Content-Range", x->send_range) &&
		  add_header(&list, "Range", x->has_range ? range : NULL);
	x->headers = list;
	return ok;
}

static void exchange_trust(const struct net *net, CURL *easy)
{
	if (net->options.insecure) {
		curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 0L);
		curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 0L);
	}
	if (net->ca_text.len) {
		struct curl_blob blob = {net->ca_text.data, net->ca_text.len, CURL_BLOB_NOCOPY};
		curl_easy_setopt(easy, CURLOPT_CAINFO_BLOB, &blob);
	} else if (net->ca_file) {
		/* One file and no folder: only then does curl parse it once and not for each
		 * connection. */
		curl_easy_setopt(easy, CURLOPT_CAINFO, net->ca_file);
		curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	}
}

/* The method and the body. */
static void exchange_request(struct exchange *x, CURL *e)
{
	if (x->form)
		curl_easy_setopt(e, CURLOPT_POSTFIELDS, x->form);
	if (x->send) {
		curl_easy_setopt(e, CURLOPT_UPLOAD, 1L);
		curl_easy_setopt(e, CURLOPT_INFILESIZE_LARGE, (curl_off_t)x->send_size);
		curl_easy_setopt(e, CURLOPT_READFUNCTION, on_send);
		curl_easy_setopt(e, CURLOPT_READDATA, x);
		curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
	}
	if (x->method && !strcmp(x->method, "HEAD"))
		curl_easy_setopt(e, CURLOPT_NOBODY, 1L);
	else if (x->method)
		curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, x->method);
}

static int exchange_setup(struct exchange *x)
{
	CURL *e = x->easy = curl_easy_init();

	x->problem = calloc(1, CURL_ERROR_SIZE);
	if (!e || !x->problem || !exchange_headers(x))
		return -ENOMEM;
	curl_easy_setopt(e, CURLOPT_PRIVATE, x);
	curl_easy_setopt(e, CURLOPT_URL, x->url);
	curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(e, CURLOPT_HTTPHEADER, x->headers);
	curl_easy_setopt(e, CURLOPT_USERAGENT,
			 x->user_agent ? x->user_agent : "llbfs/" LLBFS_VERSION);
	exchange_request(x, e);
	curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(e, CURLOPT_HEADERDATA, x);
	curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(e, CURLOPT_WRITEDATA, x);
	curl_easy_setopt(e, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	curl_easy_setopt(e, CURLOPT_ERRORBUFFER, x->problem);
	curl_easy_setopt(e, CURLOPT_SHARE, x->net->share);
	curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)(x->connect_ms ?: CONNECT_MS));
	curl_easy_setopt(e, CURLOPT_HTTP_VERSION,
			 x->host->is_http1 ? CURL_HTTP_VERSION_1_1 : CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(e, CURLOPT_FRESH_CONNECT, (long)x->is_fresh);
	curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(e, CURLOPT_BUFFERSIZE, x->is_stream ? 256L << 10 : 64L << 10);
	/* Threads: no signals; and an abort during a name look-up must not wait for the resolver. */
	curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L);
	exchange_trust(x->net, e);
	return 0;
}

static void exchange_activate(struct exchange *x)
{
	struct net *net = x->net;
	int kind = exchange_kind(x);
	int r = exchange_setup(x);

	TAILQ_REMOVE(&x->host->queue[kind], x, link);
	if (r < 0 || curl_multi_add_handle(net->multi, x->easy) != CURLM_OK) {
		x->state = EXCHANGE_FAILED;
		x->result = -ENOMEM;
		loop_timer_set(&net->loop, &x->timer, 0);
		return;
	}
	x->state = EXCHANGE_ACTIVE;
	TAILQ_INSERT_TAIL(&net->active, x, link);
	x->host->n_active[kind]++;
	net->n_active++;
	atomic_fetch_add(&net->n_requests, 1);
	x->last_ns = now_ns();
	loop_timer_set(&net->loop, &x->timer, x->last_ns + exchange_stall_ns(x));
}

static void net_start_queued(struct net *net)
{
	struct net_host *host;

	LIST_FOREACH (host, &net->hosts, link)
		for (int kind = 0; kind < N_KINDS; kind++)
			while (!TAILQ_EMPTY(&host->queue[kind]) &&
			       host->n_active[kind] < host->places[kind])
				exchange_activate(TAILQ_FIRST(&host->queue[kind]));
}

/* What a failure inside curl means. */
static int exchange_failure(struct exchange *x, CURLcode code, struct err *err)
{
	static const struct {
		CURLcode code;
		int result;
		bool is_transient;
	} meanings[] = {
		{CURLE_COULDNT_RESOLVE_PROXY, -ENETUNREACH, true},
		{CURLE_COULDNT_RESOLVE_HOST, -ENETUNREACH, true},
		{CURLE_COULDNT_CONNECT, -ENETUNREACH, true},
		{CURLE_OPERATION_TIMEDOUT, -ETIMEDOUT, true},
		{CURLE_SSL_CONNECT_ERROR, -ENETUNREACH, true},
		{CURLE_PEER_FAILED_VERIFICATION, -ENETUNREACH, false},
		{CURLE_SSL_CACERT_BADFILE, -ENETUNREACH, false},
		{CURLE_GOT_NOTHING, -ECONNRESET, true},
		{CURLE_SEND_ERROR, -ECONNRESET, true},
		{CURLE_SEND_FAIL_REWIND, -ECONNRESET, true},
		{CURLE_RECV_ERROR, -ECONNRESET, true},
		{CURLE_PARTIAL_FILE, -ECONNRESET, true},
		{CURLE_HTTP2, -ECONNRESET, true},
		{CURLE_HTTP2_STREAM, -ECONNRESET, true},
		{CURLE_WEIRD_SERVER_REPLY, -EBADMSG, true},
		{CURLE_UNSUPPORTED_PROTOCOL, -EBADMSG, false}, /* HTTP/0.9: not HTTP at all */
		{CURLE_URL_MALFORMAT, -EBADMSG, false},
		{CURLE_OUT_OF_MEMORY, -ENOMEM, false},
	};
	int result = -ENETUNREACH;
	long os = 0;
	char host[256];

	for (size_t i = 0; i < countof(meanings); i++)
		if (meanings[i].code == code) {
			result = meanings[i].result;
			x->is_transient = meanings[i].is_transient;
		}
	curl_easy_getinfo(x->easy, CURLINFO_OS_ERRNO, &os);
	x->is_not_tls = code == CURLE_SSL_CONNECT_ERROR;
	if (code == CURLE_COULDNT_CONNECT && os == ECONNREFUSED)
		result = -ECONNREFUSED;
	if (code == CURLE_OPERATION_TIMEDOUT || code == CURLE_HTTP2 || code == CURLE_HTTP2_STREAM)
		exchange_distrust_http2(x, code);
	const char *words = x->problem[0] ? x->problem : curl_easy_strerror(code);
	const char *next = code == CURLE_PEER_FAILED_VERIFICATION
				   ? " (trust it with --ca FILE, or do not check with --insecure)"
				   : "";
	return err_set(err, result, "%s: %s%s", url_host_text(x->url, host, sizeof(host)), words,
		       next);
}

static void exchange_finished(struct exchange *x, CURLcode code)
{
	struct err err = {0};
	int result = 0;

	if (x->is_ended)
		result = x->result;
	else if (code != CURLE_OK)
		result = exchange_failure(x, code, &err);
	else if (!x->has_head)
		result = -EBADMSG;
	if (!result && x->status / 100 == 2)
		host_answered_well(x->host, exchange_kind(x));
	exchange_done(x, result, &err);
}

/* ------------------------------------------------------------------ the loop */

static void net_reap(struct net *net)
{
	CURLMsg *msg;
	int n_left;

	while ((msg = curl_multi_info_read(net->multi, &n_left))) {
		struct exchange *x = NULL;
		CURLcode code = msg->data.result;
		if (msg->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &x);
		exchange_finished(x, code);
	}
}

static void *net_main(void *arg)
{
	struct net *net = arg;
	int n_running;

	while (loop_run(&net->loop)) {
		net_start_queued(net);
		curl_multi_perform(net->multi, &n_running);
		net_reap(net);
		/* What has been reaped may have made room for others, or started them. */
		net_start_queued(net);
		curl_multi_poll(net->multi, NULL, 0, (int)loop_patience_ms(&net->loop), NULL);
	}
	return NULL;
}

/* ------------------------------------------------------------------ making and freeing */

/* Which certificates to trust: the usual ones, and those of @ca. */
static int net_read_ca(struct net *net, const char *ca, struct err *err)
{
	const char *const names[] = {"SSL_CERT_FILE", "CURL_CA_BUNDLE"};
	const char *usual = NULL;

	for (size_t i = 0; i < countof(names) && !usual; i++)
		usual = getenv(names[i]);
	if (!usual)
		usual = curl_version_info(CURLVERSION_NOW)->cainfo;
	if (usual && !(net->ca_file = strdup(usual)))
		return err_set(err, -ENOMEM, "no memory");
	if (!ca)
		return 0;
	/* A system without any is fine as long as there is @ca. */
	if (usual)
		(void)read_file(AT_FDCWD, usual, 16 << 20, &net->ca_text);
	strbuf_putc(&net->ca_text, '\n');
	size_t from = net->ca_text.len;
	int r = read_file(AT_FDCWD, ca, 16 << 20, &net->ca_text);
	if (r < 0)
		return err_set(err, r, "%s: %s", ca, strerror(-r));
	if (!memmem(net->ca_text.data + from, net->ca_text.len - from, "-----BEGIN ", 11))
		return err_set(err, -EINVAL, "%s: no certificate in PEM form in it", ca);
	return 0;
}

static void net_wake(struct loop *loop)
{
	curl_multi_wakeup(containerof(loop, struct net, loop)->multi);
}

static void curl_init(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

static int net_init(struct net *net, const struct net_options *options, struct err *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, curl_init);
	net->options = *options;
	if (options->ca && !(net->options.ca = strdup(options->ca)))
		return err_set(err, -ENOMEM, "no memory");
	if (!net->options.deadline_ms)
		net->options.deadline_ms = DEADLINE_MS;
	net->rate_timer.fn = net_rate_timer;
	net->credit_ns = now_ns();
	TAILQ_INIT(&net->active);
	if (getrandom(&net->seed, sizeof(net->seed), GRND_NONBLOCK) != sizeof(net->seed))
		net->seed = now_ns();
	net->multi = curl_multi_init();
	net->share = curl_share_init();
	net->auth = auth_new(net);
	if (!net->multi || !net->share || !net->auth)
		return err_set(err, -ENOMEM, "no memory for the network");
	curl_multi_setopt(net->multi, CURLMOPT_MAXCONNECTS, (long)CONNECTIONS_KEPT);
	curl_share_setopt(net->share, CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION);
	return net_read_ca(net, net->options.ca, err);
}

static void net_destroy(struct net *net)
{
	struct net_host *host;

	auth_free(net->auth);
	while ((host = LIST_FIRST(&net->hosts))) {
		LIST_REMOVE(host, link);
		free(host->origin);
		free(host);
	}
	curl_multi_cleanup(net->multi);
	curl_share_cleanup(net->share);
	strbuf_free(&net->ca_text);
	free(net->ca_file);
	free((char *)net->options.ca);
	loop_deinit(&net->loop);
	free(net);
}

int net_new(struct net **out, const struct net_options *options, struct err *err)
{
	struct net *net = calloc(1, sizeof(*net));
	sigset_t all, old;

	if (!net)
		return err_set(err, -ENOMEM, "no memory for the network");
	loop_init(&net->loop, net_wake);
	int r = net_init(net, options, err);
	if (!r) {
		/* Signals are for the threads that wait for them; SIGPIPE is for nobody. */
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		r = -pthread_create(&net->thread, NULL, net_main, net);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		if (r < 0)
			err_set(err, r, "cannot start the network thread: %s", strerror(-r));
	}
	if (r < 0) {
		net_destroy(net);
		return r;
	}
	pthread_setname_np(net->thread, "network");
	*out = net;
	return 0;
}

uint64_t net_deadline_ms(const struct net *net)
{
	return net->options.deadline_ms;
}

void net_stop(struct net *net)
{
	if (net)
		loop_close(&net->loop);
}

void net_free(struct net *net)
{
	if (!net)
		return;
	net_stop(net);
	pthread_join(net->thread, NULL);
	net_destroy(net);
}
