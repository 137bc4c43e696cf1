/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What loop.c, fetch.c, auth.c, credentials.c, get.c, registry.c, call.c, upload.c and source.c share:
 * the network thread and what runs on it. Listed from the lowest to the highest; each calls only those before it.
 *
 * Everything here is called on the network thread alone unless it says otherwise. State that only that thread touches needs no lock; that is why all of HTTP,
 * tokens and retries lives there, as callbacks that never block.
 */

#include <pthread.h>
#include <sys/queue.h>

#include "blobstore/blobstore.h"

/* ------------------------------------------------------------------ the loop: loop.c */

/* What runs on one thread: calls from other threads, timers, and tasks that must end with it. The
 * thread itself is whoever calls loop_run and then waits for loop_patience_ms or to be woken. */
struct loop_call {
	void (*fn)(struct loop_call *call);
	TAILQ_ENTRY(loop_call) link;
	bool is_queued; /* guarded by the loop's lock */
};
/* A point in time. Disarmed when zeroed, and before fn runs. */
struct loop_timer {
	void (*fn)(struct loop_timer *timer);
	uint64_t at_ns;
	LIST_ENTRY(loop_timer) link;
	bool is_armed;
};
/* Whatever must be told when the loop closes: stop ends it and takes it off the list. */
struct loop_task {
	void (*stop)(struct loop_task *task);
	LIST_ENTRY(loop_task) link;
};
struct loop {
	pthread_mutex_t lock;
	TAILQ_HEAD(, loop_call) inbox; /* guarded by lock */
	bool is_closed;		       /* guarded by lock */
	void (*wake)(struct loop *loop);
	/* the thread's own */
	LIST_HEAD(, loop_timer) timers;
	LIST_HEAD(, loop_task) tasks;
	uint64_t wake_ns; /* no timer is due before */
};
void loop_init(struct loop *loop, void (*wake)(struct loop *loop));
void loop_deinit(struct loop *loop);

/* Has fn run on the thread; a call that is queued already stays where it is. Any thread.
 * False: the loop is closed, and fn will not run. */
bool loop_post(struct loop *loop, struct loop_call *call);
/* Takes it back when it has not run yet. Any thread. */
void loop_unpost(struct loop *loop, struct loop_call *call);
void loop_close(struct loop *loop); /* any thread */

void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns);
void loop_timer_clear(struct loop_timer *timer);
void loop_task_begin(struct loop *loop, struct loop_task *task);
void loop_task_end(struct loop_task *task);

/* Runs what is queued and due. False when the loop is closed: then everything has been stopped. */
bool loop_run(struct loop *loop);
unsigned loop_patience_ms(const struct loop *loop); /* until the next timer, at most a minute */

/* ------------------------------------------------------------------ the thread: fetch.c */

struct loop *net_loop(struct net *net);
const struct net_options *net_options_of(const struct net *net); /* any thread; deadline_ms > 0 */
struct auth *net_auth(struct net *net);
/* Uniform in [0, bound): for jitter, nothing secret. */
uint64_t net_random(struct net *net, uint64_t bound);

/* How long to wait before attempt number @attempt + 1 (0 = the first has just failed):
 * exponential with full jitter, and never before what the server asked for. */
uint64_t net_backoff_ns(struct net *net, unsigned attempt, uint64_t retry_after_ms);

/* ------------------------------------------------------------------ one HTTP exchange: fetch.c */

/* One request and its answer; redirects, authorisation and retries are the caller's business. The
 * caller embeds it, fills the first part, starts it, and may start it again once done was called.
 * It waits in its host's queue until a connection is due to it. It has no deadline, only stalls
 * end it: whoever embeds it has a deadline over all attempts and calls exchange_abort. */
struct exchange {
	/* given by the caller, strings borrowed until done */
	const char *url;
	const char *accept;	   /* may be NULL */
	const char *authorization; /* value of the header; may be NULL */
	const char *form;	   /* body of a POST; NULL = GET */
	const char *method;	   /* NULL = as form and send say */
	/* Body of a PUT (or of what method says), send_size bytes: the next ones, at most @n, into
	 * @dst. Returns how many; 0 = there are none yet, until exchange_resume; a negative errno
	 * ends the exchange. NULL = there is no body. */
	ssize_t (*send)(struct exchange *x, void *dst, size_t n);
	uint64_t send_size;
	const char *send_type, *send_range; /* Content-Type, Content-Range; may be NULL */
	/* values of more headers; NULL = none, or the usual */
	const char *user_agent, *if_none_match, *if_modified_since, *if_range;
	uint64_t range_first, range_last;
	bool has_range;
	bool is_stream;	     /* long: takes a place among the streams, not among the small reads */
	bool is_fresh;	     /* do not use a connection that is open already */
	unsigned connect_ms; /* bound on name, connection and TLS; 0 = 3000 */
	unsigned stall_ms;   /* and on silence after that; 0 = 10000 */
	/* The status and the headers are here. 0 = send me the body, 1 = not interested; a negative
	 * errno ends the exchange. */
	int (*head)(struct exchange *x);
	/* Body bytes. 0 = go on, 1 = enough, EXCHANGE_HOLD = not now: the same bytes come again after
	 * exchange_resume; a negative errno ends the exchange. */
#define EXCHANGE_HOLD 2
	int (*data)(struct exchange *x, const void *bytes, size_t n);
	/* Once, unless aborted; never from inside exchange_start. @result 0: answered, whatever the
	 * status. @x may be started again or freed (after exchange_deinit) from here. */
	void (*done)(struct exchange *x, int result, const struct err *err);

	/* the answer, valid from head on until the next start */
	unsigned status; /* 0 = there was no answer */
	char *location, *challenge, *content_range, *content_type, *content_encoding; /* or NULL */
	char *content_disposition, *etag, *last_modified;			      /* or NULL */
	char *range, *content_digest; /* of uploads: Range, Docker-Content-Digest; or NULL */
	uint64_t chunk_min;	      /* OCI-Chunk-Min-Length; 0 = not said */
	int64_t body_len;	 /* Content-Length; -1 = not said */
	uint64_t retry_after_ms; /* 0 = not said */
	bool is_transient;	 /* after a negative result: another attempt may do better */
	bool is_not_tls;	 /* https was spoken to something that does not understand it */

	/* fetch.c's own */
	enum { EXCHANGE_IDLE, EXCHANGE_FAILED, EXCHANGE_QUEUED, EXCHANGE_ACTIVE } state;
	struct net *net;
	struct net_host *host;
	TAILQ_ENTRY(exchange) link; /* in its host's queue or among the active ones */
	struct loop_timer timer;    /* watches for a stall, or delivers a failure */
	void *easy, *headers;	    /* curl's */
	char *problem;		    /* curl's words about what failed */
	uint64_t last_ns;	    /* when something was last heard */
	uint64_t n_ignored;	    /* bytes of a body that nobody wants */
	int result;		    /* of the callback that ended it, or of a start that failed */
	bool has_head, is_ignoring, is_paused, is_resting, is_ended;
	uint64_t n_sent;
};
void exchange_start(struct net *net, struct exchange *x);
/* Goes on after a hold, or after send had nothing. Done may be called from in here. */
void exchange_resume(struct exchange *x);
/* Ends it without done; nothing when it does not run. */
void exchange_abort(struct exchange *x);
void exchange_deinit(struct exchange *x); /* frees the answer; must not run */
/* The server of @x said that it has too much to do: fewer at once from now on. */
void exchange_overloaded(struct exchange *x);

/* Absolute form of @location as seen from @base, without user info or fragment.
 * Errors: -EBADMSG (not http or https), -ENOMEM. */
int url_resolve(const char *base, const char *location, char **out);
/* Same scheme, host and port. */
bool url_same_origin(const char *a, const char *b);
/* Is https, or http where @options allow it: loopback, or plain_http. */
bool url_is_allowed(const struct net_options *options, const char *url);
/* "host:port" for messages: never the path or the query, which may be a credential. */
char *url_host_text(const char *url, char *buf, size_t size);
/* True for localhost, 127.0.0.0/8 and ::1, with or without port. */
bool host_is_loopback(const char *host);

/* ------------------------------------------------------------------ credentials: credentials.c */

/* Who the user is at a host. All strings may be NULL: nobody in particular. */
struct credentials {
	char *user, *secret;
	bool is_identity_token; /* secret is an OAuth2 refresh token */
	char *helper;		/* ask this program; only from credentials_find */
	char *helper_key;	/* about this server */
};
void credentials_deinit(struct credentials *c);
/* Finds the best entry of a docker config or containers' auth file. Pure.
 * 1 = found, 0 = nothing for this host; -EBADMSG: not such a file. */
int credentials_find(struct credentials *out, const char *json, size_t len, const char *host,
		     const char *repository, struct err *err);
/* What a helper printed. Pure. 1 = found, 0 = it knows none; -EBADMSG. */
int credentials_helper_answer(struct credentials *out, const char *text, size_t len);
/* Reads the files and runs the helper; any thread, and it blocks, so on one of its own. Gives up with -ECANCELED
 * when @stop_fd becomes readable. 0 also when there are none. On an error of one source the next
 * is tried; if none has any, @err has the reason of the last error. */
int credentials_lookup(struct credentials *out, const char *host, const char *repository,
		       int stop_fd, struct err *err);

/* ------------------------------------------------------------------ authorisation: auth.c */

/* What WWW-Authenticate asks for. Owns its strings. */
struct challenge {
	bool is_bearer, is_basic;
	char *realm, *service, *scope; /* of Bearer; may be NULL */
};
/* Pure. Errors: -EBADMSG (nothing in it that we understand), -ENOMEM. */
int challenge_parse(struct challenge *out, const char *text, size_t len);
void challenge_deinit(struct challenge *c);

/* What a token service answered: the token (caller frees) and for how long it is good. Pure. */
int token_parse(const char *json, size_t len, char **token, uint64_t *seconds);

struct auth;
struct auth *auth_new(struct net *net); /* NULL = no memory */
void auth_free(struct auth *auth);

/* Someone who wants to know what to send as Authorization to a repository. */
struct auth_wait {
	/* given, borrowed while waiting */
	const char *host, *repository;
	/* What it is for, as scopes with blanks between; NULL = reading the repository. */
	const char *scopes;
	void (*done)(struct auth_wait *w, int result, const struct err *err);
	/* the answer; the caller frees it. NULL = nothing, as far as is known. */
	char *header;
	/* auth.c's own */
	LIST_ENTRY(auth_wait) link;
	bool is_waiting;
};
/* 0 = w->header is set at once; -EINPROGRESS = done will be called; or an error at once. */
int auth_get(struct auth *auth, struct auth_wait *w, struct err *err);
/* The same after a 401: @rejected is what was sent (or NULL), @challenge what came back (or NULL:
 * the server only said that the credentials are no longer good). Concurrent ones share one fetch. */
int auth_renew(struct auth *auth, struct auth_wait *w, const char *rejected, const char *challenge,
	       struct err *err);
void auth_forget(struct auth_wait *w); /* stops waiting; nothing when it does not wait */

/* ------------------------------------------------------------------ wishes: get.c */

/* The fields are set once by registry.c; the last ones are get.c's. */
struct registry {
	struct remote remote;
	struct net *net;
	char *host, *repository; /* as in image names */
	char *path;		 /* "//host/v2/repository" */
	pthread_mutex_t lock;	 /* guards impl of the transfers */

	/* the network thread's own */
	LIST_HEAD(, place) places;
	bool is_plain;	/* http */
	bool is_direct; /* has sent a blob itself */
};

/* Starts @t; whatever happens comes through its done. Any thread. */
void get_range(struct registry *r, struct transfer *t);
void get_range_cancel(struct registry *r, struct transfer *t);
void get_range_resume(struct registry *r, struct transfer *t); /* after TRANSFER_HOLD */
/* "bytes first-last/total", where total may be "*": then it is UINT64_MAX. */
bool content_range_parse(const char *text, uint64_t *first, uint64_t *last, uint64_t *total);
/* Blocks. The body is not verified; *media_type may become NULL, and the caller frees it. */
int get_manifest(struct registry *r, const char *reference, struct strbuf *body, char **media_type,
		 struct err *err);
void get_forget_places(struct registry *r); /* nothing of @r may run */

/* A thread that waits for something of the network. */
struct waiter {
	struct strbuf *body;
	struct err *err; /* may be NULL */
	char *media_type;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	int result;   /* guarded by lock */
	bool is_done; /* guarded by lock */
};
#define WAITER_INIT .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER
void waiter_wake(struct waiter *w, int result, const struct err *err);
int waiter_wait(struct waiter *w); /* the result */

/* ------------------------------------------------------------------ one request that is waited for: call.c */

/* Not of the network thread but of the one that calls: it fills the first part, runs it, reads the
 * answer in x, and may run it again. One thread at a time. */
struct call {
	struct registry *r; /* borrowed */
	const char *method;
	const char *what;   /* after the repository's path, when there is no url */
	char *url;	    /* owned; anywhere. Set on the way when it was NULL */
	const char *accept, *type, *range; /* headers of the request; may be NULL */
	/* The body: the bytes from @off on, at least one. NULL = there is none. */
	int (*feed)(void *arg, uint64_t off, void *dst, size_t len, size_t *got, struct err *err);
	void *feed_arg;
	uint64_t body_size;
	uint64_t body_at; /* of something larger */
	/* After a 401: what was sent and what was answered, owned. */
	bool is_renewal;
	char *rejected, *challenge;
	/* Waits first, when something failed @n_failed times and asked for this long. */
	unsigned n_failed;
	uint64_t retry_after_ms;

	/* the answer, besides x */
	char *authorization; /* what was sent to the registry; may be NULL */
	bool is_at_registry;
	bool is_auth_failure; /* the result is what became of getting a token */
	struct exchange x;

	/* call.c's own */
	struct auth_wait auth;
	struct loop_task task;
	struct loop_call begin, fed_call, stop_call;
	struct loop_timer next;
	bool is_own_url;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	/* guarded by lock */
	uint8_t *ring;
	size_t ring_at, ring_len;
	uint64_t fed;
	bool is_done;
	int result, feed_result;
	struct err err, feed_err;
};
void call_init(struct call *c, struct registry *r, const char *method);
void call_deinit(struct call *c);
static inline void call_deinit_scoped(struct call *c)
{
	call_deinit(c);
}
/* Blocks. 0 = it was answered, whatever the status. @err as c->err, or what feed said. */
int call_run(struct call *c, struct err *err);

/* ------------------------------------------------------------------ writing: upload.c, push.c */

/* "0-99", "bytes=0-99": how many bytes an upload has. "0-0" is none: registries say so of an empty
 * one. False: no such text. Pure. */
bool upload_range_parse(const char *text, uint64_t *n);
/* @url with digest=…, whatever it has already. NULL = no memory. Pure. */
char *upload_finish_url(const char *url, const struct digest *digest);

/* Requests that belong together: what they got over, and how long that may take. */
struct push {
	struct registry *r;
	const char *scopes;
	uint64_t deadline_ns; /* without progress */
	uint64_t most_sent;   /* the end of the body that got furthest */
	unsigned n_failed;
	uint64_t retry_after_ms;
	struct err last; /* why the last attempt failed */
};
void push_begin(struct push *p, struct registry *r, const char *scopes);
void push_progress(struct push *p); /* something was done: what failed before is forgotten */
/* One request with all that it takes: redirects, tokens, retries. 0 = answered with something else
 * than these; 1 = it has a body, and how much of that arrived is not known: ask before the next. */
#define PUSH_UNSURE 1
int push_ask(struct push *p, struct call *c, struct err *err);
/* The status of @c is not what it should be. */
int push_refused(struct push *p, const struct call *c, const char *what, struct err *err);

/* One blob. 1 = it was there or mounted, 0 = sent. */
int upload_blob(struct registry *r, const struct desc *desc, const struct blob_source *from,
		struct err *err);
int upload_manifest(struct registry *r, const struct desc *desc, const void *bytes,
		    const char *tag, struct err *err);

/* ------------------------------------------------------------------ layouts: target_layout.c */

int layout_make(const char *dir, struct err *err);
int layout_put_blob(const char *dir, const struct desc *desc, const struct blob_source *from,
		    struct err *err);
int layout_put_manifest(const char *dir, const struct desc *desc, const void *bytes,
			const char *tag, struct err *err);
/* index.json with an entry for @desc, in place of one of the same names, last. @old may be empty.
 * Pure. Errors: -EBADMSG, -ENOMEM. */
int layout_index_put(const char *old, size_t len, const struct desc *desc, const char *tag,
		     struct strbuf *out, struct err *err);
