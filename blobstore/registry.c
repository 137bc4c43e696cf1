/* SPDX-License-Identifier: Apache-2.0 */

/*
 * registry: one repository of an OCI registry, as a remote for blobs and a source of manifests.
 *
 * Here are names and the calls that wait; how a wish becomes requests is in get.c. A registry is
 * addressed as image names do it: docker.io means registry-1.docker.io, and hosts on this machine
 * speak http. With --ca or --insecure they are first tried with https.
 *
 * Nothing that comes from a registry is believed: whole bodies are hashed here, ranges by the blob
 * that they belong to.
 */

#include "blobstore/net-internal.h"

#include <ctype.h>

#define SMALL_BLOB_MAX (64u << 20)

/* ------------------------------------------------------------------ the remote */

static void registry_start(struct remote *remote, struct transfer *t)
{
	get_range(containerof(remote, struct registry, remote), t);
}

static void registry_cancel(struct remote *remote, struct transfer *t)
{
	get_range_cancel(containerof(remote, struct registry, remote), t);
}

static void registry_resume(struct remote *remote, struct transfer *t)
{
	get_range_resume(containerof(remote, struct registry, remote), t);
}

static int registry_place(struct remote *remote, const struct digest *digest, struct strbuf *out)
{
	struct registry *r = containerof(remote, struct registry, remote);

	strbuf_printf(out, "registry %s %s", r->host, r->repository);
	return 0;
}

static void registry_free(struct remote *remote)
{
	struct registry *r = containerof(remote, struct registry, remote);

	get_forget_places(r);
	pthread_mutex_destroy(&r->lock);
	free(r->host);
	free(r->repository);
	free(r->path);
	free(r->remote.name);
	free(r);
}

static const struct remote_ops registry_ops = {
	.start = registry_start,
	.cancel = registry_cancel,
	.resume = registry_resume,
	.place = registry_place,
	.free = registry_free,
};

/* ------------------------------------------------------------------ names */

/* Only what cannot change the meaning of a URL; the grammar proper is that of image names. */
static bool name_is_sound(const char *name, const char *others)
{
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr(others, *p))
			return false;
	return *name && !strstr(name, "..") && !strstr(name, "//") && *name != '/' &&
	       !str_ends(name, "/");
}

int registry_new(struct registry **out, struct net *net, const char *host, const char *repository,
		 struct err *err)
{
	const struct net_options *options = net_options_of(net);
	bool is_hub = !strcmp(host, "docker.io") || !strcmp(host, "index.docker.io");

	if (!name_is_sound(host, ".-:[]_") || !name_is_sound(repository, "._-/"))
		return err_set(err, -EINVAL, "%s/%s: not a registry and a repository", host,
			       repository);
	struct registry *r = calloc(1, sizeof(*r));
	if (!r)
		return err_set(err, -ENOMEM, "no memory");
	r->remote.ops = &registry_ops;
	r->remote.n_refs = 1;
	r->remote.name = str_printf("%s/%s", host, repository);
	r->net = net;
	r->host = strdup(host);
	r->repository = strdup(repository);
	r->path = str_printf("//%s/v2/%s", is_hub ? "registry-1.docker.io" : host, repository);
	pthread_mutex_init(&r->lock, NULL);
	/* A registry on this host speaks http, unless something said of certificates hints that it
	 * might not. */
	r->is_plain = options->plain_http ||
		      (host_is_loopback(host) && !options->ca && !options->insecure);
	if (!r->remote.name || !r->host || !r->repository || !r->path) {
		registry_free(&r->remote);
		return err_set(err, -ENOMEM, "no memory");
	}
	*out = r;
	return 0;
}

struct remote *registry_remote(struct registry *r)
{
	return &r->remote;
}

struct registry *registry_ref(struct registry *r)
{
	remote_ref(&r->remote);
	return r;
}

struct registry *registry_unref(struct registry *r)
{
	if (r)
		remote_unref(&r->remote);
	return NULL;
}

/* ------------------------------------------------------------------ whole small things */

int registry_get_manifest(struct registry *r, const char *reference, struct strbuf *body,
			  char **media_type, struct err *err)
{
	scoped(strbuf_free) struct strbuf own = {0};
	struct digest wanted, got;
	bool is_digest = strchr(reference, ':');

	if (is_digest) {
		int r_digest = digest_parse(&wanted, reference, err);
		if (r_digest < 0)
			return r_digest;
	} else if (!name_is_sound(reference, "._-")) {
		return err_set(err, -EINVAL, "%s: not a tag", reference);
	}
	scoped(free) char *type = NULL;
	int result = get_manifest(r, reference, &own, &type, err);
	if (result < 0)
		return result;
	digest_bytes(&got, own.data ? own.data : "", own.len);
	if (is_digest && !digest_equal(&wanted, &got))
		return err_set(err, -EBADMSG, "%s: manifests/%s: content does not match its digest",
			       r->remote.name, reference);
	strbuf_add(body, own.data ? own.data : "", own.len);
	if (body->failed)
		return err_set(err, -ENOMEM, "no memory");
	if (type)
		type[strcspn(type, "; \t")] = '\0';
	*media_type = take(type);
	return 0;
}

struct blob_wait {
	struct transfer t;
	struct waiter w;
};

static int blob_wait_data(struct transfer *t, const void *bytes, size_t n)
{
	struct strbuf *body = containerof(t, struct blob_wait, t)->w.body;

	strbuf_add(body, bytes, n);
	return body->failed ? -ENOMEM : 0;
}

static void blob_wait_done(struct transfer *t, int result, const struct err *err)
{
	waiter_wake(&containerof(t, struct blob_wait, t)->w, result, err);
}

int registry_get_blob(struct registry *r, const struct desc *desc, struct strbuf *body,
		      struct err *err)
{
	scoped(strbuf_free) struct strbuf own = {0};
	char text[DIGEST_TEXT_MAX];
	struct digest got;
	struct blob_wait b = {.t = {.digest = desc->digest,
				    .blob_size = desc->size,
				    .len = desc->size,
				    .data = blob_wait_data,
				    .done = blob_wait_done},
			      .w = {WAITER_INIT, .body = &own, .err = err}};

	digest_text(&desc->digest, text);
	if (desc->size > SMALL_BLOB_MAX)
		return err_set(err, -EBADMSG, "%s: blobs/%s: larger than it may be", r->remote.name,
			       text);
	if (desc->size) {
		get_range(r, &b.t);
		int result = waiter_wait(&b.w);
		if (result < 0)
			return result;
	}
	digest_bytes(&got, own.data ? own.data : "", own.len);
	if (!digest_equal(&desc->digest, &got))
		return err_set(err, -EBADMSG, "%s: blobs/%s: content does not match its digest",
			       r->remote.name, text);
	strbuf_add(body, own.data ? own.data : "", own.len);
	return body->failed ? err_set(err, -ENOMEM, "no memory") : 0;
}
