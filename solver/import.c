/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where imported caches come from, in the words of buildctl's --import-cache:
 *
 *	type=registry,ref=NAME			what NAME leads to in its registry
 *	type=local,src=DIR[,tag=T][,digest=D]	a layout folder; tag is "latest"
 *	NAME					the first one, as it was written once
 *
 * That leads to a manifest, or to an index that lists layers as if they were manifests; one
 * descriptor in it is that of the cacheconfig. Without one it is an image, or several, whose configs
 * may carry records: all of these become one cache.
 *
 * Caches are fetched when the first definition is solved, and only documents are. A cache that is
 * not there, or makes no sense, is a warning: the build can do without.
 */

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/cache-internal.h"
#include "solver/solver-internal.h"

#define OPTION "--import-cache"
#define CONFIG_TYPE "application/vnd.buildkit.cacheconfig.v0"
/* Images below one index, indexes included. */
#define DOCUMENTS_MAX 1000
#define LOCK_WAIT_MS 10000
#define LOCK_POLL_MS 20

struct import {
	const char *text; /* as it was typed; borrowed */
	char *type, *ref, *src, *tag, *digest;
	bool is_insecure;
};
struct cache_imports {
	vec(struct import) items;
	pthread_mutex_t lock;
	bool is_fetched;		   /* guarded by lock */
	struct cache *caches[IMPORTS_MAX]; /* never changed once fetched */
	size_t n_caches;
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ what was typed */

static int set_text(char **out, const char *value, struct err *err)
{
	free(*out);
	*out = strdup(value);
	return *out ? 0 : no_memory(err);
}

static int take_field(void *arg, const char *field, struct err *err)
{
	struct import *import = arg;
	const struct {
		const char *key;
		char **to;
	} known[] = {
		{"type", &import->type}, {"ref", &import->ref},	      {"src", &import->src},
		{"tag", &import->tag},	 {"digest", &import->digest},
	};
	if (!strchr(field, '='))
		return err_set(err, -EINVAL, OPTION ": invalid value '%s': want KEY=VALUE", field);
	const char *insecure = csv_value(field, "registry.insecure");
	if (insecure)
		import->is_insecure = strcasecmp(insecure, "true") == 0 || !strcmp(insecure, "1");
	for (size_t i = 0; i < countof(known); i++) {
		const char *value = csv_value(field, known[i].key);
		if (value)
			return set_text(known[i].to, value, err);
	}
	return 0; /* what another program understands */
}

static int check_registry(const struct import *import, struct err *err)
{
	scoped(image_name_deinit) struct image_name name = {0};
	if (!import->ref || !*import->ref)
		return err_set(err, -EINVAL, OPTION " %s: type=registry needs ref=NAME",
			       import->text);
	if (import->is_insecure)
		return err_set(err, -EINVAL,
			       OPTION " %s: for registry.insecure=true say --plain-http, or "
				      "--insecure",
			       import->text);
	int r = image_name_parse(&name, import->ref, err);
	return r < 0 ? err_wrap(err, r, OPTION " %s", import->text) : 0;
}

static int check_local(const struct import *import, struct err *err)
{
	struct digest digest;
	if (!import->src || !*import->src)
		return err_set(err, -EINVAL, OPTION " %s: type=local needs src=DIR", import->text);
	int r = import->digest ? digest_parse(&digest, import->digest, err) : 0;
	return r < 0 ? err_wrap(err, -EINVAL, OPTION " %s", import->text) : 0;
}

static int parse(struct import *import, const char *text, struct err *err)
{
	int r;
	import->text = text;
	if (strstr(text, "type="))
		r = csv_each(OPTION, text, take_field, import, err);
	else if ((r = set_text(&import->type, "registry", err)) == 0)
		r = set_text(&import->ref, text, err);
	if (r < 0)
		return r;
	if (!import->type || !*import->type)
		return err_set(err, -EINVAL, OPTION " %s: type is required", text);
	if (strcmp(import->type, "registry") == 0)
		return check_registry(import, err);
	if (strcmp(import->type, "local") == 0)
		return check_local(import, err);
	return err_set(err, -EINVAL, OPTION " %s: unknown type %s: there are registry and local",
		       text, import->type);
}

int cache_imports_new(struct cache_imports **out, const char *const *texts, size_t n,
		      struct err *err)
{
	struct cache_imports *imports = calloc(1, sizeof(*imports));
	if (!imports)
		return no_memory(err);
	pthread_mutex_init(&imports->lock, NULL);
	int r = n > IMPORTS_MAX
			? err_set(err, -EINVAL, OPTION ": %zu caches, more than %d", n, IMPORTS_MAX)
			: 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		struct import *import = vec_push(&imports->items);
		r = import ? parse(import, texts[i], err) : no_memory(err);
	}
	if (r < 0) {
		cache_imports_free(imports);
		return r;
	}
	*out = imports;
	return 0;
}

void cache_imports_free(struct cache_imports *imports)
{
	if (!imports)
		return;
	for (size_t i = 0; i < imports->items.n; i++) {
		struct import *import = &imports->items.items[i];
		free(import->type);
		free(import->ref);
		free(import->src);
		free(import->tag);
		free(import->digest);
	}
	vec_free(&imports->items);
	for (size_t i = 0; i < imports->n_caches; i++)
		imports->caches[i]->ops->free(imports->caches[i]);
	pthread_mutex_destroy(&imports->lock);
	free(imports);
}

/* ------------------------------------------------------------------ documents of a cache */

/* From the document of a cacheconfig and descriptors of layers. */
static int add_config(struct cache *cache, const struct origin *origin, const struct desc *config,
		      const struct desc *layers, size_t n, struct err *err)
{
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(cacheconfig_deinit) struct cacheconfig parsed = {0};
	int r = origin_read_large(origin, config, &body, err);
	if (r == 0)
		r = cacheconfig_parse(&parsed, body.data ? body.data : "", body.len, err);
	return r < 0 ? r : cache_import_add(cache, &parsed, layers, NULL, n, err);
}

/* What the config of an image has. Errors: -ENOENT nothing. */
static int add_image(struct cache *cache, const struct origin *origin, const struct manifest *m,
		     struct err *err)
{
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(cacheconfig_deinit) struct cacheconfig parsed = {0};
	scoped(image_config_deinit) struct image_config config = {0};
	int r = origin_read_large(origin, &m->config, &body, err);
	const char *text = body.data ? body.data : "";
	if (r == 0)
		r = cacheconfig_parse_image(&parsed, text, body.len, m->layers, m->n_layers, err);
	if (r == 0)
		r = image_config_parse(&config, text, body.len, err);
	if (r < 0)
		return r;
	if (config.n_diff_ids != m->n_layers)
		return err_set(err, -EBADMSG, "an image of %zu layers with %zu diff IDs",
			       m->n_layers, config.n_diff_ids);
	return cache_import_add(cache, &parsed, m->layers, config.diff_ids, m->n_layers, err);
}

static bool is_config(const struct desc *desc)
{
	return desc->media_type && strcmp(desc->media_type, CONFIG_TYPE) == 0;
}

/* An index whose last entry says what the others are for. Errors: -ENOENT: it is none. */
static int add_list(struct cache *cache, const struct origin *origin, const struct manifest *m,
		    struct err *err)
{
	const struct desc *config = NULL;
	scoped(free) struct desc *layers = calloc(m->n_entries + 1, sizeof(*layers)); /* borrowed */
	size_t n = 0;
	if (!layers)
		return no_memory(err);
	for (size_t i = 0; i < m->n_entries; i++)
		if (is_config(&m->entries[i].desc))
			config = &m->entries[i].desc;
		else
			layers[n++] = m->entries[i].desc;
	return config ? add_config(cache, origin, config, layers, n, err) : -ENOENT;
}

static int add_manifest(struct cache *cache, const struct origin *origin, const struct manifest *m,
			struct err *err)
{
	if (is_config(&m->config))
		return add_config(cache, origin, &m->config, m->layers, m->n_layers, err);
	return add_image(cache, origin, m, err);
}

struct desc_list {
	struct desc *items;
	size_t n, cap;
};

static void desc_list_deinit_scoped(struct desc_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		desc_deinit(&list->items[i]);
	vec_free(list);
}

static int add_entries(struct desc_list *list, const struct manifest *index)
{
	for (size_t i = 0; i < index->n_entries && list->n < DOCUMENTS_MAX; i++) {
		struct desc *to = index->entries[i].is_attestation ? NULL : vec_push(list);
		if (!to && !index->entries[i].is_attestation)
			return -ENOMEM;
		if (to && desc_copy(to, &index->entries[i].desc) < 0)
			return -ENOMEM;
	}
	return 0;
}

/* One of an index's images, or an index again: its entries come later. */
static int add_entry(struct cache *cache, const struct origin *origin, const struct desc *desc,
		     struct desc_list *list, struct err *err)
{
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(manifest_deinit) struct manifest m = {0};
	int r = origin_read(origin, desc, true, &body, err);
	if (r == 0)
		r = manifest_parse(&m, body.data ? body.data : "", body.len, desc->media_type, err);
	if (r < 0)
		return r;
	if (m.kind == MANIFEST_IMAGE)
		return add_image(cache, origin, &m, err);
	return add_entries(list, &m) < 0 ? no_memory(err) : 0;
}

/* All images below an index. One that has nothing, or nothing that makes sense, is no loss. */
static int add_images(struct cache *cache, const struct origin *origin, const struct manifest *m,
		      struct err *err)
{
	scoped(desc_list_deinit) struct desc_list list = {0};
	int r = add_entries(&list, m);
	for (size_t i = 0; i < list.n && r != -ENOMEM; i++) {
		struct err why = {0};
		struct desc desc; /* the list may move */
		r = desc_copy(&desc, &list.items[i]);
		if (r == 0) {
			r = add_entry(cache, origin, &desc, &list, &why);
			desc_deinit(&desc);
		}
		if (r < 0)
			log_info("an image adds nothing to a cache: %s", err_text(&why, r));
	}
	return r == -ENOMEM ? no_memory(err) : 0;
}

static int add_root(struct cache *cache, const struct origin *origin, const struct image_root *root,
		    struct err *err)
{
	scoped(manifest_deinit) struct manifest m = {0};
	int r = manifest_parse(&m, root->body.data ? root->body.data : "", root->body.len,
			       root->desc.media_type, err);
	if (r < 0)
		return r;
	if (m.kind == MANIFEST_IMAGE)
		return add_manifest(cache, origin, &m, err);
	struct err why = {0};
	r = add_list(cache, origin, &m, &why);
	if (r == -ENOENT && !why.code)
		return add_images(cache, origin, &m, err);
	return r < 0 ? err_set(err, r, "%s", err_text(&why, r)) : 0;
}

/* ------------------------------------------------------------------ places */

static int find_registry(struct solver *solver, const struct import *import, struct origin *origin,
			 struct image_root *root, struct err *err)
{
	scoped(image_name_deinit) struct image_name name = {0};
	int r = image_name_parse(&name, import->ref, err);
	return r < 0 ? r : source_image_document(solver, &name, origin, root, err);
}

/* The entry that goes by @tag, as BuildKit looks for it. */
static const struct desc *find_tag(const struct manifest *index, const char *tag)
{
	static const char *const keys[] = {"io.containerd.image.name",
					   "org.opencontainers.image.ref.name"};
	for (size_t k = 0; k < countof(keys); k++)
		for (size_t i = 0; i < index->n_entries; i++) {
			const struct desc *desc = &index->entries[i].desc;
			const char *name = desc_annotation(desc, keys[k]);
			if (name && strcmp(name, tag) == 0)
				return desc;
		}
	return NULL;
}

/* While somebody writes index.json there is a lock beside it. Without one *fd stays as it is. */
static int wait_for_writer(int *fd, const char *dir, struct err *err)
{
	scoped(free) char *path = str_printf("%s/index.json.lock", dir);
	uint64_t end = now_ns() + LOCK_WAIT_MS * NS_PER_MS;
	if (!path)
		return no_memory(err);
	*fd = open(path, O_RDONLY | O_CLOEXEC);
	while (*fd >= 0 && flock(*fd, LOCK_SH | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return err_errno(err, "%s", path);
		if (now_ns() >= end)
			return err_set(err, -ETIMEDOUT, "%s is held by another process", path);
		poll(NULL, 0, LOCK_POLL_MS);
	}
	return 0;
}

static int choose_by_tag(struct desc *out, const char *dir, const char *tag, struct err *err)
{
	scoped(close_fd) int lock = -1;
	scoped(strbuf_free) struct strbuf json = {0};
	scoped(manifest_deinit) struct manifest index = {0};
	scoped(free) char *path = str_printf("%s/index.json", dir);
	if (!path)
		return no_memory(err);
	int r = wait_for_writer(&lock, dir, err);
	if (r < 0)
		return r;
	r = read_file(AT_FDCWD, path, MANIFEST_MAX, &json);
	if (r < 0)
		return err_set(err, r, "%s: %s", path, strerror(-r));
	if (json.failed)
		return no_memory(err);
	r = layout_index_parse(&index, &json, err);
	if (r < 0)
		return err_wrap(err, r, "%s", dir);
	const struct desc *found = find_tag(&index, tag);
	if (!found)
		return err_set(err, -ENOENT, "%s has nothing that is tagged \"%s\"", dir, tag);
	return desc_copy(out, found) < 0 ? no_memory(err) : 0;
}

/* Its size is that of its file. */
static int choose_by_digest(struct desc *out, const char *dir, const char *digest, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	struct stat st;
	int r = digest_parse(&out->digest, digest, err);
	if (r < 0)
		return r;
	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", dir, digest_hex(&out->digest, hex));
	if (!path)
		return no_memory(err);
	if (stat(path, &st) < 0)
		return err_errno(err, "%s", path);
	out->size = (uint64_t)st.st_size;
	return 0;
}

static int find_local(struct solver *solver, const struct import *import, struct origin *origin,
		      struct image_root *root, struct err *err)
{
	/* Who reads later may work elsewhere. */
	scoped(free) char *dir = realpath(import->src, NULL);
	if (!dir)
		return err_errno(err, "%s", import->src);
	origin->store = solver->options.store;
	int r = remote_layout_new(&origin->remote, dir, err);
	if (r == 0 && import->digest)
		r = choose_by_digest(&root->desc, dir, import->digest, err);
	else if (r == 0)
		r = choose_by_tag(&root->desc, dir, import->tag ? import->tag : "latest", err);
	return r < 0 ? r : origin_read(origin, &root->desc, true, &root->body, err);
}

/* ------------------------------------------------------------------ the door */

static int fetch(struct solver *solver, const struct import *import, struct cache **out,
		 struct err *err)
{
	scoped(origin_deinit) struct origin origin = {0};
	scoped(image_root_deinit) struct image_root root = {0};
	bool is_local = strcmp(import->type, "local") == 0;
	struct cache *cache;
	int r = (is_local ? find_local : find_registry)(solver, import, &origin, &root, err);
	if (r == 0)
		r = cache_import_new(&cache, is_local ? import->src : import->ref, &origin, err);
	if (r < 0)
		return r;
	r = add_root(cache, &origin, &root, err);
	if (r == 0 && cache_import_count(cache) == 0)
		r = err_set(err, -ENOENT, "there is no build cache");
	if (r == 0)
		r = cache_import_done(cache, err);
	if (r < 0) {
		cache->ops->free(cache);
		return r;
	}
	*out = cache;
	return 0;
}

static void fetch_all(struct solver *solver, struct cache_imports *imports)
{
	for (size_t i = 0; i < imports->items.n; i++) {
		const struct import *import = &imports->items.items[i];
		struct cache *cache;
		struct err err = {0};
		int r = fetch(solver, import, &cache, &err);
		if (r < 0) {
			log_warn(OPTION " %s: %s", import->text, err_text(&err, r));
			continue;
		}
		cache->priority = 2 + (int)i; /* the store's own has 1 */
		imports->caches[imports->n_caches++] = cache;
	}
}

void cache_imports_get(struct solver *solver, struct cache **caches, size_t *n_caches)
{
	struct cache_imports *imports = solver->imports;
	pthread_mutex_lock(&imports->lock);
	if (!imports->is_fetched)
		fetch_all(solver, imports);
	imports->is_fetched = true;
	pthread_mutex_unlock(&imports->lock);
	for (size_t i = 0; i < imports->n_caches; i++)
		caches[(*n_caches)++] = imports->caches[i];
}
