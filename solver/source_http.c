/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Downloads: http:// and https:// sources, one file each.
 *
 * What a URL has is known when it was asked for, so asking fetches it, unless an earlier solve, of
 * any process, did so and the server says that it is still the same (304). With http.checksum the
 * definition says what it is: the key follows from that, nothing is asked before somebody wants the
 * result, and nothing at all when it is here. The time and the server's name of the file are parts
 * of the result, so "here" means: fetched from this URL with these headers.
 *
 * Two processes that want one URL fetch it once: the second waits, and then asks whether it changed.
 */

#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* What is sent; texts are the vertex's but for the secret. */
struct request {
	const char *url, *accept, *user_agent, *secret_id;
	char *authorization;
	struct digest key; /* of all that the answer may depend on */
	const struct digest *checksum;
	struct digest checksum_value;
};

static void request_deinit_scoped(struct request *q)
{
	if (q->authorization)
		explicit_bzero(q->authorization, strlen(q->authorization));
	free(q->authorization);
}

static const char *text_attr(const struct vertex *v, const char *key)
{
	const char *text = llb_source_attr(&v->op, key);
	return text && *text ? text : NULL;
}

static int read_secret(struct request *q, struct solver *solver, struct err *err)
{
	struct strbuf text = {0};
	if (!q->secret_id)
		return 0;
	int r = solver_secret(solver, q->secret_id, &text, err);
	/* Files of secrets end with a line break that nobody means. */
	while (r == 0 && text.len && strchr("\r\n", text.data[text.len - 1]))
		text.data[--text.len] = 0;
	if (r == 0 && !(q->authorization = strbuf_finish(&text)))
		r = no_memory(err);
	strbuf_free(&text);
	return r;
}

static void add_part(struct strbuf *s, const char *text)
{
	strbuf_puts(s, text ? text : "");
	strbuf_putc(s, 0);
}

static int make_request(struct request *q, const struct vertex *v, struct solver *solver,
			struct err *err)
{
	scoped(strbuf_free) struct strbuf key = {0};
	const char *checksum = text_attr(v, "http.checksum");
	*q = (struct request){
		.url = v->op.source.identifier,
		.accept = text_attr(v, "http.header.accept"),
		.user_agent = text_attr(v, "http.header.user-agent"),
		.secret_id = text_attr(v, "http.authheadersecret"),
	};
	if (text_attr(v, "http.sig.pubkey") || text_attr(v, "http.sig.signature"))
		return err_set(err, -ENOTSUP, "signatures of downloads cannot be checked");
	int r = checksum ? digest_parse(&q->checksum_value, checksum, err) : 0;
	if (r < 0)
		return err_wrap(err, r, "http.checksum");
	q->checksum = checksum ? &q->checksum_value : NULL;
	add_part(&key, "http");
	add_part(&key, q->url);
	add_part(&key, q->accept);
	add_part(&key, q->user_agent);
	add_part(&key, q->secret_id);
	if (key.failed)
		return no_memory(err);
	digest_bytes(&q->key, key.data, key.len);
	return 0;
}

/* ------------------------------------------------------------------ asking */

/* Takes what came into @f, which holds what was here. */
static void take_answer(struct fetched *f, struct download *d)
{
	if (!d->is_unchanged) {
		fetched_deinit(f);
		f->digest = d->digest;
		f->size = d->size;
		f->etag = take(d->new_etag);
		f->last_modified = take(d->last_modified);
	}
	if (d->content_disposition) {
		free(f->disposition);
		f->disposition = take(d->content_disposition);
	}
}

static int fetch(struct fetched *f, bool is_here, const struct request *q, struct solver *solver,
		 struct err *err)
{
	/* Of what is not wanted it does not matter whether it has changed. */
	bool is_question = is_here && !q->checksum;
	scoped(download_deinit) struct download d = {
		.url = q->url,
		.accept = q->accept,
		.user_agent = q->user_agent,
		.authorization = q->authorization,
		.etag = is_question ? f->etag : NULL,
		.modified = is_question ? f->last_modified : NULL,
		.wanted = q->checksum,
	};
	int r = content_download(solver->options.store, &d, err);
	if (r < 0)
		return r;
	take_answer(f, &d);
	return fetched_keep(solver, &q->key, f, err);
}

static int ask_locked(struct fetched *f, struct request *q, struct solver *solver, struct err *err)
{
	struct err why = {0};
	int r = fetched_recall(solver, &q->key, f, &why);
	if (r < 0 && r != -ENOENT)
		log_warn("what was downloaded before is not known: %s", err_text(&why, r));
	bool is_here = r == 0;
	if (is_here &&
	    (q->checksum ? digest_equal(q->checksum, &f->digest) : solver->options.offline))
		return 0;
	r = read_secret(q, solver, err);
	return r < 0 ? r : fetch(f, is_here, q, solver, err);
}

static int http_get(struct fetched *f, const struct vertex *v, struct solver *solver,
		    struct err *err)
{
	scoped(request_deinit) struct request q = {0};
	scoped(close_fd) int lock_fd = -1;
	char hex[DIGEST_HEX_MAX], name[16 + DIGEST_HEX_MAX];
	int r = make_request(&q, v, solver, err);
	if (r < 0)
		return r;
	snprintf(name, sizeof(name), "fetch-%s", digest_hex(&q.key, hex));
	/* Who waited in vain goes alone: that costs bytes, and is no less right. */
	r = store_lock(solver->options.store, name, store_deadline_ms(solver->options.store),
		       &lock_fd, err);
	if (r < 0 && r != -EAGAIN)
		return r;
	return ask_locked(f, &q, solver, err);
}

static int64_t modified_time(const char *text, bool *is_known)
{
	int64_t t = 0;
	*is_known = text && httptext_date(&t, text) == 0;
	return *is_known ? t : 0;
}

/* ------------------------------------------------------------------ the operation */

static int ask(struct vertex *v, struct solver *solver, struct err *err)
{
	scoped(fetched_deinit) struct fetched f = {0};
	if (text_attr(v, "http.checksum"))
		return 0;
	int r = http_get(&f, v, solver, err);
	if (r < 0)
		return r;
	struct http_asked *asked = calloc(1, sizeof(*asked));
	if (!asked)
		return no_memory(err);
	asked->content.digest = f.digest;
	asked->content.size = f.size;
	asked->mtime_s = modified_time(f.last_modified, &asked->has_time);
	asked->content.disposition = take(f.disposition);
	v->asked = asked;
	return 0;
}

static void asked_free(void *arg)
{
	struct http_asked *asked = arg;
	fetched_deinit(&asked->content);
	free(asked);
}

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	const struct http_asked *asked = v->asked;
	scoped(fetched_deinit) struct fetched own = {0};
	bool is_known;
	int r = asked ? 0 : http_get(&own, v, solver, err);
	if (r < 0)
		return r;
	const struct fetched *f = asked ? &asked->content : &own;
	int64_t mtime_s = asked ? asked->mtime_s : modified_time(own.last_modified, &is_known);
	scoped(free) char *name = httptext_filename(llb_source_attr(&v->op, "http.filename"),
						    f->disposition, v->op.source.identifier);
	return name ? source_file(&outputs[0], v, solver, name, f, mtime_s, err) : no_memory(err);
}

const struct op_ops source_http_op = {
	.ask = ask,
	.run = run,
	.asked_free = asked_free,
	.keys = keys_http,
};
