/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upload: a blob or a manifest goes to a registry (OCI distribution specification, "push").
 *
 *     HEAD: there? ─► end
 *     POST, with mount= and from= where another repository has it: mounted? ─► end
 *       └─► Location of an upload ─► PUT of everything ─► 201: end
 *                                ─► PATCH of a chunk, again and again ─► PUT of nothing ─► 201: end
 *
 * One PUT is what every registry takes, so that is how it begins, except for what is so large that a
 * token or a proxy's patience may end before it does. After a break the upload is asked (GET) how
 * much it has, and goes on from there in chunks; an upload that the registry has forgotten is begun
 * anew, unless the blob turns out to be there: then only the answer was lost. Registries that know no
 * chunks get a PUT after all, and those that refuse so large a body (413) get chunks.
 *
 * The bytes are hashed in order as they are read for the first time, and the last piece is given away
 * only when they have proved to be the right ones. So nothing wrong is ever completed, and the
 * registry's own check is the second one.
 */

#include "blobstore/net-internal.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>

#define WHOLE_MAX (UINT64_C(128) << 20) /* more goes in chunks */
#define CHUNK_LARGE (UINT64_C(64) << 20)
#define CHUNK (UINT64_C(8) << 20) /* where the size of a body was the problem */
#define BEGINNINGS_MAX 5

struct upload {
	struct push push;
	const struct desc *desc;
	const struct blob_source *from;
	char *url;     /* of the upload; NULL = there is none */
	uint64_t at;   /* the registry has all before */
	uint64_t best; /* the most that it ever had */
	uint64_t chunk;
	bool is_chunked, knows_no_chunks, has_tried_mount;
	unsigned n_begun;
	struct hasher *hasher;
	uint64_t hashed;
	bool is_right;
};

/* ------------------------------------------------------------------ texts */

bool upload_range_parse(const char *text, uint64_t *n)
{
	char a[24], b[24];
	int end = 0;
	uint64_t first, last;

	if (!text)
		return false;
	if (str_starts(text, "bytes=") || str_starts(text, "bytes "))
		text += 6;
	if (sscanf(text, "%20[0-9]-%20[0-9]%n", a, b, &end) != 2 || !end || text[end] ||
	    parse_u64(a, &first) < 0 || parse_u64(b, &last) < 0 || first || last >= INT64_MAX)
		return false;
	*n = last ? last + 1 : 0;
	return true;
}

char *upload_finish_url(const char *url, const struct digest *digest)
{
	char text[DIGEST_TEXT_MAX];
	size_t n = strlen(url);
	const char *join = !strchr(url, '?') ? "?" : n && strchr("?&", url[n - 1]) ? "" : "&";

	return str_printf("%s%sdigest=%s", url, join, digest_text(digest, text));
}

/* ------------------------------------------------------------------ the bytes */

/* @n bytes of the blob that begin at @off. */
static void upload_hash(struct upload *u, uint64_t off, const uint8_t *bytes, size_t n)
{
	struct digest is;

	if (off > u->hashed || off + n <= u->hashed)
		return;
	size_t skip = (size_t)(u->hashed - off);
	hasher_add(u->hasher, bytes + skip, n - skip);
	u->hashed = off + n;
	if (u->hashed == u->desc->size) {
		hasher_done(u->hasher, &is);
		u->is_right = digest_equal(&is, &u->desc->digest);
	}
}

static int upload_wrong(const struct upload *u, const char *what, struct err *err)
{
	char text[DIGEST_TEXT_MAX];

	return err_set(err, -EBADMSG, "blob %s: %s", digest_text(&u->desc->digest, text), what);
}

static int upload_feed(void *arg, uint64_t off, void *dst, size_t len, size_t *got, struct err *err)
{
	struct upload *u = arg;
	uint64_t from = u->at + off;
	int r = u->from->read(u->from->arg, from, dst, len, got, err);

	if (r < 0)
		return r;
	if (!*got || *got > len)
		return upload_wrong(u, "its source has fewer bytes than it should", err);
	upload_hash(u, from, dst, *got);
	if (u->hashed == u->desc->size && !u->is_right)
		return upload_wrong(u, "content does not match its digest", err);
	return 0;
}

/* ------------------------------------------------------------------ steps */

/* The answer says where to go on. */
static int upload_learn(struct upload *u, struct call *c, struct err *err)
{
	const struct net_options *options = net_options_of(u->push.r->net);
	char *url = NULL;

	if (!c->x.location && u->url)
		return 0;
	if (!c->x.location)
		return push_refused(&u->push, c, "but where to upload is not said", err);
	int r = url_resolve(c->url, c->x.location, &url);
	bool is_downgrade = !r && str_starts(c->url, "https:") && str_starts(url, "http:") &&
			    !options->plain_http;
	if (r == -ENOMEM)
		return err_set(err, r, "no memory");
	if (r < 0 || is_downgrade || !url_is_allowed(options, url)) {
		free(url);
		return push_refused(&u->push, c, "with a Location that is not https", err);
	}
	free(u->url);
	u->url = url;
	return 0;
}

static void upload_is_at(struct upload *u, uint64_t at)
{
	u->at = at;
	if (at > u->best) {
		u->best = at;
		push_progress(&u->push);
	}
}

static void upload_forget(struct upload *u)
{
	free(take(u->url));
	u->at = 0;
}

/* The registry's own word on what it has taken. */
static int upload_check_answer(struct upload *u, const struct call *c, struct err *err)
{
	char text[DIGEST_TEXT_MAX];

	digest_text(&u->desc->digest, text);
	if (!c->x.content_digest || !strcmp(c->x.content_digest, text))
		return 0;
	return push_refused(&u->push, c, "but says that it has taken something else", err);
}

/* 1 = the registry has it. */
static int upload_is_there(struct upload *u, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	scoped(free) char *what = str_printf("blobs/%s", digest_text(&u->desc->digest, text));
	scoped(call_deinit) struct call c;

	call_init(&c, u->push.r, "HEAD");
	if (!what)
		return err_set(err, -ENOMEM, "no memory");
	c.what = what;
	int r = push_ask(&u->push, &c, err);
	if (r < 0)
		return r;
	/* What does not like the question will say more to the upload. */
	return c.x.status == 200 && (c.x.body_len < 0 || (uint64_t)c.x.body_len == u->desc->size);
}

/* Asks for a mount. 1 = done, 0 = there is an upload, or (u->url NULL) nothing. */
static int upload_mount(struct upload *u, struct err *err)
{
	struct registry *r = u->push.r;
	const char *from = u->from->from_repository;
	char text[DIGEST_TEXT_MAX];
	scoped(free) char *what = str_printf("blobs/uploads/?mount=%s&from=%s",
					     digest_text(&u->desc->digest, text), from);
	scoped(free) char *scopes =
		str_printf("repository:%s:pull,push repository:%s:pull", r->repository, from);
	scoped(call_deinit) struct call c;
	struct push p;
	struct err why = {0};

	call_init(&c, r, "POST");
	if (!what || !scopes)
		return err_set(err, -ENOMEM, "no memory");
	push_begin(&p, r, scopes);
	c.what = what;
	u->has_tried_mount = true;
	int result = push_ask(&p, &c, &why);
	/* Who may not read there, or meets a registry that knows no mounts, uploads. */
	if (result == -EACCES || (result == 0 && c.x.status >= 400))
		return 0;
	if (result < 0)
		return err_set(err, result, "%s", err_text(&why, result));
	if (c.x.status == 202)
		return upload_learn(u, &c, err);
	if (c.x.status != 201)
		return push_refused(&p, &c, "which is no answer to a mount", err);
	result = upload_check_answer(u, &c, err);
	return result < 0 ? result : 1;
}

static int upload_post(struct upload *u, struct err *err)
{
	scoped(call_deinit) struct call c;

	call_init(&c, u->push.r, "POST");
	c.what = "blobs/uploads/";
	if (++u->n_begun > BEGINNINGS_MAX)
		return err_set(err, -ETIMEDOUT, "%s: an upload that is lost again and again%s%s",
			       u->push.r->remote.name, u->push.last.text[0] ? ": " : "",
			       u->push.last.text);
	int r = push_ask(&u->push, &c, err);
	if (r < 0)
		return r;
	if (c.x.status != 202)
		return push_refused(&u->push, &c, "where an upload was to begin", err);
	if (c.x.chunk_min)
		u->chunk = MAX(u->chunk, c.x.chunk_min);
	push_progress(&u->push);
	return upload_learn(u, &c, err);
}

/* How much has arrived? 1 = all is there as a blob, and the upload has ended with that. */
static int upload_settle(struct upload *u, struct err *err)
{
	scoped(call_deinit) struct call c;
	uint64_t n;

	call_init(&c, u->push.r, "GET");
	c.what = "blobs/uploads/";
	c.url = strdup(u->url);
	if (!c.url)
		return err_set(err, -ENOMEM, "no memory");
	int r = push_ask(&u->push, &c, err);
	if (r < 0)
		return r;
	if (c.x.status / 100 == 2 && upload_range_parse(c.x.range, &n) && n <= u->hashed) {
		upload_is_at(u, n);
		u->is_chunked = n || u->is_chunked;
		return upload_learn(u, &c, err);
	}
	upload_forget(u);
	return upload_is_there(u, err);
}

/* A body was refused: maybe its size, or that it is but a part. 0 = another way is left. */
static int upload_other_way(struct upload *u, const struct call *c, bool is_part, struct err *err)
{
	unsigned status = c->x.status;

	if (status == 413 && !u->knows_no_chunks && (!is_part || u->chunk > CHUNK)) {
		u->is_chunked = true;
		u->chunk = CHUNK;
	} else if (is_part && !u->knows_no_chunks &&
		   (status == 404 || status == 405 || status == 501 || status == 400)) {
		u->knows_no_chunks = true;
		u->is_chunked = false;
	} else if (status != 416 && status != 404) {
		return push_refused(&u->push, c, "to an upload", err);
	}
	err_set(&u->push.last, -EBADMSG, "HTTP %u to an upload", status);
	upload_forget(u);
	return 0;
}

/* All that is left, and the end of it: 1 = the registry has taken it, 0 = go on. */
static int upload_put(struct upload *u, struct err *err)
{
	scoped(call_deinit) struct call c;

	call_init(&c, u->push.r, "PUT");
	c.what = "blobs/uploads/";
	c.url = upload_finish_url(u->url, &u->desc->digest);
	c.type = "application/octet-stream";
	c.feed = upload_feed;
	c.feed_arg = u;
	c.body_at = u->at;
	c.body_size = u->desc->size - u->at;
	if (!c.url)
		return err_set(err, -ENOMEM, "no memory");
	int r = push_ask(&u->push, &c, err);
	if (r < 0)
		return r;
	if (r == PUSH_UNSURE)
		return upload_settle(u, err);
	if (c.x.status == 201 || c.x.status == 204) {
		r = upload_check_answer(u, &c, err);
		return r < 0 ? r : 1;
	}
	return upload_other_way(u, &c, false, err);
}

static int upload_patch(struct upload *u, struct err *err)
{
	scoped(call_deinit) struct call c;
	uint64_t n = MIN(u->chunk, u->desc->size - u->at), now_at = u->at + n;
	char range[64];

	call_init(&c, u->push.r, "PATCH");
	snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, u->at, now_at - 1);
	c.what = "blobs/uploads/";
	c.url = strdup(u->url);
	c.type = "application/octet-stream";
	c.range = range;
	c.feed = upload_feed;
	c.feed_arg = u;
	c.body_at = u->at;
	c.body_size = n;
	if (!c.url)
		return err_set(err, -ENOMEM, "no memory");
	int r = push_ask(&u->push, &c, err);
	if (r < 0)
		return r;
	if (r == PUSH_UNSURE)
		return upload_settle(u, err);
	if (c.x.status / 100 != 2)
		return upload_other_way(u, &c, true, err);
	if (c.x.range && (!upload_range_parse(c.x.range, &now_at) || now_at > u->hashed))
		return push_refused(&u->push, &c, "with no sound Range", err);
	if (now_at <= u->at) {
		err_set(&u->push.last, -EBADMSG, "HTTP %u, but nothing of a chunk was taken",
			c.x.status);
		upload_forget(u);
		return 0;
	}
	upload_is_at(u, now_at);
	return upload_learn(u, &c, err);
}

/* ------------------------------------------------------------------ blobs */

/* 1 = the registry has it now, 0 = go on. */
static int upload_step(struct upload *u, struct err *err)
{
	if (!u->url)
		return upload_post(u, err);
	if (u->is_chunked && !u->knows_no_chunks && u->at < u->desc->size)
		return upload_patch(u, err);
	/* What cannot be continued in chunks is sent as a whole. */
	if (u->at && u->at < u->desc->size) {
		upload_forget(u);
		return 0;
	}
	return upload_put(u, err);
}

static int upload_run(struct upload *u, struct err *err)
{
	int r = upload_is_there(u, err);

	if (r != 0)
		return r;
	if (u->from->from_repository && !u->has_tried_mount) {
		r = upload_mount(u, err);
		if (r != 0)
			return r;
	}
	if (u->from->size != u->desc->size)
		return upload_wrong(u, "its source has another size", err);
	if (!u->desc->size) { /* there is nothing to feed, so it is looked at here */
		struct digest is;
		digest_bytes(&is, "", 0);
		if (!digest_equal(&is, &u->desc->digest))
			return upload_wrong(u, "content does not match its digest", err);
	}
	while (r == 0)
		r = upload_step(u, err);
	return MIN(r, 0);
}

int upload_blob(struct registry *r, const struct desc *desc, const struct blob_source *from,
		struct err *err)
{
	scoped(free) char *scopes = str_printf("repository:%s:pull,push", r->repository);
	struct upload u = {.desc = desc, .from = from, .hasher = hasher_new()};
	int result = -ENOMEM;

	u.is_chunked = desc->size > WHOLE_MAX;
	u.chunk = CHUNK_LARGE;
	if (scopes && u.hasher) {
		push_begin(&u.push, r, scopes);
		result = upload_run(&u, err);
	} else {
		err_set(err, result, "no memory");
	}
	hasher_free(u.hasher);
	free(u.url);
	return result;
}

/* ------------------------------------------------------------------ manifests */

struct manifest_bytes {
	const uint8_t *bytes;
	size_t n;
};

static int manifest_feed(void *arg, uint64_t off, void *dst, size_t len, size_t *got,
			 struct err *err)
{
	const struct manifest_bytes *m = arg;

	*got = MIN(len, m->n - (size_t)off);
	memcpy(dst, m->bytes + off, *got);
	return 0;
}

int upload_manifest(struct registry *r, const struct desc *desc, const void *bytes, const char *tag,
		    struct err *err)
{
	struct manifest_bytes m = {bytes, (size_t)desc->size};
	char text[DIGEST_TEXT_MAX];
	scoped(free) char *scopes = str_printf("repository:%s:pull,push", r->repository);
	scoped(free) char *what =
		str_printf("manifests/%s", tag ? tag : digest_text(&desc->digest, text));
	scoped(call_deinit) struct call c;
	struct push p;

	call_init(&c, r, "PUT");
	if (!scopes || !what)
		return err_set(err, -ENOMEM, "no memory");
	push_begin(&p, r, scopes);
	c.what = what;
	c.type = desc->media_type;
	c.feed = manifest_feed;
	c.feed_arg = &m;
	c.body_size = desc->size;
	int result;
	do /* sent twice it is the same */
		result = push_ask(&p, &c, err);
	while (result == PUSH_UNSURE);
	if (result < 0)
		return result;
	if (c.x.status / 100 != 2)
		return push_refused(&p, &c, "to a manifest", err);
	digest_text(&desc->digest, text);
	if (c.x.content_digest && strcmp(c.x.content_digest, text) != 0)
		return push_refused(&p, &c, "but says that it has taken something else", err);
	return 0;
}
