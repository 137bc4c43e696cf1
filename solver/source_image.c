/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Images of registries: from a name to a manifest to a ref. Nothing is downloaded but the manifest,
 * and the index before it when there is one. By tag that is one GET, and what comes is named by its
 * own digest; by digest it is none at all when the store has it. With tag and digest the digest
 * counts.
 *
 * What a tag meant, and the documents behind it, stay in the store. When the registry cannot be
 * reached (or must not be: --offline) the tag means what it meant last, with a warning: an image
 * whose layers are here can be mounted without network. When the registry answers that there is no
 * such image, or not for us, that answer counts.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* Indexes in indexes, which no tool makes deeper than two. */
#define INDEX_DEPTH_MAX 8

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ from root to image */

void image_root_deinit(struct image_root *root)
{
	desc_deinit(&root->desc);
	strbuf_free(&root->body);
	*root = (struct image_root){0};
}

/* One step from an index to the entry for @platform; @m becomes that document. */
static int descend(struct manifest *m, const struct origin *origin, const struct platform *platform,
		   struct image_root *at, struct err *err)
{
	const struct index_entry *entry;
	scoped(strbuf_free) struct strbuf body = {0};
	struct manifest next;
	int r = manifest_choose(m->entries, m->n_entries, platform, &entry, err);
	if (r == 0)
		r = origin_read(origin, &entry->desc, true, &body, err);
	if (r < 0)
		return r;
	at->desc.digest = entry->desc.digest;
	if (entry->has_platform) {
		at->platform = entry->platform;
		at->has_platform = true;
	}
	r = manifest_parse(&next, body.data, body.len, entry->desc.media_type, err);
	if (r < 0)
		return r;
	manifest_deinit(m);
	*m = next;
	return 0;
}

int image_from_root(struct ref **out, const char *name, const struct origin *origin,
		    const struct image_root *root, const struct platform *platform, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	scoped(manifest_deinit) struct manifest m = {0};
	struct image_root at = {
		.desc.digest = root->desc.digest,
		.has_platform = root->has_platform,
		.platform = root->platform,
	};
	int r = manifest_parse(&m, root->body.data, root->body.len, root->desc.media_type, err);
	for (int depth = 0; r == 0 && m.kind == MANIFEST_INDEX; depth++) {
		if (depth < INDEX_DEPTH_MAX)
			r = descend(&m, origin, platform, &at, err);
		else
			r = err_set(err, -EBADMSG, "indexes in indexes, deeper than %d",
				    INDEX_DEPTH_MAX);
	}
	if (r < 0)
		return err_wrap(err, r, "%s: %s", name, digest_text(&at.desc.digest, text));
	const struct ref_image image = {
		.name = name,
		.origin = origin,
		.layers = m.layers,
		.n_layers = m.n_layers,
		.config = &m.config,
		.manifest = &at.desc.digest,
		.root = &root->desc.digest,
		.platform = at.has_platform ? &at.platform : NULL,
	};
	return ref_image(out, &image, err);
}

/* ------------------------------------------------------------------ registries */

/* NULL when there is none yet. Called with the lock held. */
static struct registry *known_registry(const struct solver *solver, const struct image_name *name)
{
	for (size_t i = 0; i < solver->registries.n; i++) {
		const struct solver_registry *known = &solver->registries.items[i];
		if (!strcmp(known->host, name->host) &&
		    !strcmp(known->repository, name->repository))
			return known->registry;
	}
	return NULL;
}

/* Called with the lock held. */
static int make_registry(struct solver *solver, const struct image_name *name,
			 struct registry **out, struct err *err)
{
	struct solver_registry *row = vec_push(&solver->registries);
	if (!row)
		return no_memory(err);
	int r = -ENOMEM;
	row->host = strdup(name->host);
	row->repository = strdup(name->repository);
	if (row->host && row->repository)
		r = registry_new(&row->registry, solver->options.net, name->host, name->repository,
				 err);
	if (r < 0) {
		free(row->host);
		free(row->repository);
		solver->registries.n--;
		return r;
	}
	*out = row->registry;
	return 0;
}

int source_image_registry(struct solver *solver, const struct image_name *name,
			  struct registry **out, struct err *err)
{
	*out = NULL;
	if (!solver->options.net)
		return 0;
	pthread_mutex_lock(&solver->lock);
	struct registry *registry = known_registry(solver, name);
	int r = registry ? 0 : make_registry(solver, name, &registry, err);
	if (r == 0)
		*out = registry_ref(registry);
	pthread_mutex_unlock(&solver->lock);
	return r;
}

/* By digest, out of the store where it has it. */
static int root_by_digest(struct image_root *root, const struct origin *origin, const char *text,
			  struct err *err)
{
	int r = digest_parse(&root->desc.digest, text, err);
	if (r < 0)
		return r;
	r = origin_recall(origin, &root->desc.digest, &root->body, err);
	if (r != -ENOENT)
		return r;
	if (!origin->registry)
		return err_set(err, -ENETUNREACH, "%s is not in the store, and there is no network",
			       text);
	root->is_new = true;
	return registry_get_manifest(origin->registry, text, &root->body, &root->desc.media_type,
				     err);
}

/* What @key meant last. */
static int root_recall(struct image_root *root, const struct origin *origin, const char *key)
{
	int r = store_recall_name(origin->store, key, &root->desc.digest);
	return r < 0 ? r : origin_recall(origin, &root->desc.digest, &root->body, NULL);
}

/* The registry could not be asked; any answer of its own is none of these. */
static bool is_network_error(int r)
{
	switch (-r) {
	case ENOENT:
	case EACCES:
	case EBADMSG:
	case EINVAL:
	case ENOTSUP:
	case EFBIG:
	case ENOMEM:
		return false;
	default:
		return true;
	}
}

static int root_ask(struct image_root *root, const struct origin *origin, const char *tag,
		    struct err *err)
{
	if (!origin->registry)
		return err_set(err, -ENETUNREACH, "there is no network to ask for it");
	int r = registry_get_manifest(origin->registry, tag, &root->body, &root->desc.media_type,
				      err);
	if (r < 0)
		return r;
	digest_bytes(&root->desc.digest, root->body.data, root->body.len);
	root->desc.size = root->body.len;
	root->is_new = true;
	return 0;
}

/* Keeps what came, and what the tag means (@key, else NULL), for when the registry is gone. */
static void root_keep(const struct image_root *root, const struct origin *origin, const char *key)
{
	if (!root->is_new)
		return;
	origin_keep(origin, root->body.data, root->body.len);
	struct err why = {0};
	int r = !key ? 0 : store_remember_name(origin->store, key, &root->desc, &why);
	if (r < 0)
		log_warn("cannot keep what %s means: %s", key, err_text(&why, r));
}

static int root_by_tag(struct image_root *root, const struct solver *solver,
		       const struct origin *origin, const char *key, const char *tag,
		       bool prefer_store, struct err *err)
{
	if (prefer_store && root_recall(root, origin, key) == 0)
		return 0;
	struct err why = {0};
	int r = root_ask(root, origin, tag, &why);
	if (r == 0)
		return 0;
	strbuf_clear(&root->body);
	if (!is_network_error(r) || root_recall(root, origin, key) < 0)
		return err_set(err, r, "%s", err_text(&why, r));
	if (origin->registry && !solver->options.offline) {
		char text[DIGEST_TEXT_MAX];
		log_warn("%s: %s; taking what it meant last, %s", key, err_text(&why, r),
			 digest_text(&root->desc.digest, text));
	}
	return 0;
}

int source_image_document(struct solver *solver, const struct image_name *name,
			  struct origin *origin, struct image_root *root, struct err *err)
{
	struct registry *registry;
	int r = source_image_registry(solver, name, &registry, err);
	if (r < 0)
		return r;
	*origin = (struct origin){.store = solver->options.store, .registry = registry};
	if (registry)
		origin->remote = remote_ref(registry_remote(registry));
	if (name->digest)
		r = root_by_digest(root, origin, name->digest, err);
	else
		r = root_ask(root, origin, name->tag, err);
	if (r == 0)
		root_keep(root, origin, NULL);
	return r;
}

static int resolve_name(struct solver *solver, const char *text, const struct image_name *name,
			const char *key, const struct image_request *request, struct ref **out,
			struct err *err)
{
	scoped(registry_unref) struct registry *registry = NULL;
	int r = source_image_registry(solver, name, &registry, err);
	if (r < 0)
		return err_wrap(err, r, "%s", key);
	const struct origin origin = {
		.store = solver->options.store,
		.registry = registry,
		.remote = registry ? registry_remote(registry) : NULL,
	};
	scoped(image_root_deinit) struct image_root root = {0};
	if (name->digest)
		r = root_by_digest(&root, &origin, name->digest, err);
	else
		r = root_by_tag(&root, solver, &origin, key, name->tag, request->prefer_store, err);
	if (r < 0)
		return err_wrap(err, r, "%s", key);
	if (request->checksum && !digest_equal(request->checksum, &root.desc.digest)) {
		char is[DIGEST_TEXT_MAX], want[DIGEST_TEXT_MAX];
		return err_set(err, -EBADMSG, "%s is %s, but %s was wanted", key,
			       digest_text(&root.desc.digest, is),
			       digest_text(request->checksum, want));
	}
	r = image_from_root(out, text, &origin, &root, request->platform, err);
	if (r == 0)
		root_keep(&root, &origin, name->digest ? NULL : key);
	return r;
}

/* An image that this solver has resolved before; NULL when it has not. */
static struct ref *known_image(struct solver *solver, const char *key)
{
	struct ref *ref = NULL;
	pthread_mutex_lock(&solver->lock);
	for (size_t i = 0; i < solver->images.n && !ref; i++)
		if (strcmp(solver->images.items[i].key, key) == 0)
			ref = ref_ref(solver->images.items[i].ref);
	pthread_mutex_unlock(&solver->lock);
	return ref;
}

static void keep_image(struct solver *solver, char **key, struct ref *ref)
{
	pthread_mutex_lock(&solver->lock);
	struct solver_image *row = vec_push(&solver->images);
	if (row)
		*row = (struct solver_image){take(*key), ref_ref(ref)};
	pthread_mutex_unlock(&solver->lock);
}

int source_image_resolve(struct solver *solver, const char *text,
			 const struct image_request *request, struct ref **out, struct err *err)
{
	scoped(image_name_deinit) struct image_name name = {0};
	int r = image_name_parse(&name, text, err);
	if (r < 0)
		return r;
	char platform[100], checksum[DIGEST_TEXT_MAX] = "";
	if (request->checksum)
		digest_text(request->checksum, checksum);
	scoped(free) char *key = image_name_text(&name);
	scoped(free) char *memo = str_printf("%s %s %s %d", key ? key : "",
					     platform_text(request->platform, platform), checksum,
					     request->prefer_store);
	if (!key || !memo || solver_enter(solver, key) < 0)
		return no_memory(err);
	*out = known_image(solver, memo);
	if (!*out) {
		r = resolve_name(solver, text, &name, key, request, out, err);
		if (r == 0)
			keep_image(solver, &memo, *out);
	}
	solver_leave(solver, key);
	return r;
}

/* ------------------------------------------------------------------ as operations */

int image_limit(struct ref **out, struct ref *ref, const struct vertex *v, const char *key,
		struct err *err)
{
	const char *text = llb_source_attr(&v->op, key);
	const struct ref_layer *layers;
	uint64_t limit = UINT64_MAX;
	if (text && (parse_u64(text, &limit) < 0 || limit == 0))
		return err_set(err, -EBADMSG, "%s=%.40s: want a number above 0", key, text);
	if (limit < ref_layers(ref, &layers))
		return ref_slice(out, ref, 0, limit - 1, err);
	*out = ref_ref(ref);
	return 0;
}

const struct platform *vertex_platform(const struct vertex *v, const struct solver *solver)
{
	return v->op.has_platform ? &v->op.platform : &solver->options.platform;
}

static int run_image(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
		     struct ref **outputs, struct err *err)
{
	const char *name = v->op.source.identifier + strlen("docker-image://");
	const char *mode = llb_source_attr(&v->op, "image.resolvemode");
	const char *checksum_text = llb_source_attr(&v->op, "image.checksum");
	struct digest checksum;
	int r = checksum_text ? digest_parse(&checksum, checksum_text, err) : 0;
	if (r < 0)
		return err_wrap(err, r, "image.checksum");
	const struct image_request request = {
		.platform = vertex_platform(v, solver),
		.prefer_store = mode && strcmp(mode, "local") == 0,
		.checksum = checksum_text ? &checksum : NULL,
	};
	scoped(ref_unref) struct ref *ref = NULL;
	r = source_image_resolve(solver, name, &request, &ref, err);
	return r < 0 ? r : image_limit(&outputs[0], ref, v, "image.layerlimit", err);
}

const struct op_ops source_image_op = {.run = run_image, .keys = keys_image};
