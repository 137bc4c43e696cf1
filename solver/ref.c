/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Refs: what a result is made of, without its bytes.
 *
 *	image    layers, bottom first: descriptors and the remote that has their blobs
 *	merge    parts: other refs, each perhaps with a partition; the last on top
 *	dir      a host folder
 *	scratch  nothing
 *	tree     one layer in memory: what a file op or a diff made, or a local source
 *
 * A ref never changes after it is made, with one exception: an image's config, and the diff IDs in
 * it, are fetched when somebody asks, since a mount needs neither (one request less).
 *
 * Merges hold merges as deep as a definition is long, so nothing here recurses: what dies with the
 * last reference is put on a list and freed in a loop.
 */

#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/ref-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* Manifests have this bound, and no config comes near. */
#define DOCUMENT_MAX MANIFEST_MAX
#define LARGE_DOCUMENT_MAX (64u << 20)
/* The name of a merge is for people; a longer one says how many inputs there are. */
#define MERGE_NAME_MAX 256
/* File ops put a layer each on what is before them, in chains that have been seen 1,000 long. So that
 * each looks at few layers, every SKIP_SHORT of them and every SKIP_LONG are made one tree. */
#define SKIP_SHORT 64
#define SKIP_LONG (64 * SKIP_SHORT)

struct skip_inputs {
	vec(struct union_input) items;
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static struct ref *ref_new(enum ref_kind kind, const char *name)
{
	struct ref *ref = calloc(1, sizeof(*ref));
	if (!ref)
		return NULL;
	ref->n_refs = 1;
	ref->kind = kind;
	pthread_mutex_init(&ref->lock, NULL);
	pthread_mutex_init(&ref->id_lock, NULL);
	ref->name = strdup(name);
	return ref->name ? ref : ref_unref(ref);
}

struct ref *ref_ref(struct ref *ref)
{
	if (ref)
		__atomic_add_fetch(&ref->n_refs, 1, __ATOMIC_RELAXED);
	return ref;
}

static void ref_free(struct ref *ref)
{
	for (size_t i = 0; i < ref->n_layers; i++) {
		desc_deinit(&ref->layers[i].desc);
		remote_unref(ref->layers[i].remote);
	}
	free(ref->layers);
	for (size_t i = 0; i < ref->n_parts; i++) {
		free(ref->parts[i].trim);
		free(ref->parts[i].add);
	}
	free(ref->parts);
	origin_deinit(&ref->origin);
	desc_deinit(&ref->config);
	strbuf_free(&ref->config_text);
	pthread_mutex_destroy(&ref->lock);
	pthread_mutex_destroy(&ref->id_lock);
	free(ref->dir);
	tree_unref(ref->tree);
	for (size_t i = 0; i < ref->n_tree_layers; i++)
		remote_unref(ref->tree_layers[i].remote);
	free(ref->tree_layers);
	tree_unref(ref->skip);
	free(ref->name);
	free(ref);
}

/* Drops one reference; a ref without any goes to the list. */
static void drop(struct ref *ref, struct ref **dead)
{
	if (!ref || __atomic_sub_fetch(&ref->n_refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	ref->next_dead = *dead;
	*dead = ref;
}

struct ref *ref_unref(struct ref *ref)
{
	struct ref *dead = NULL;
	drop(ref, &dead);
	while (dead) {
		struct ref *now = dead;
		dead = now->next_dead;
		for (size_t i = 0; i < now->n_parts; i++)
			drop(now->parts[i].ref, &dead);
		ref_free(now);
	}
	return NULL;
}

enum ref_kind ref_kind(const struct ref *ref)
{
	return ref->kind;
}

const char *ref_name(const struct ref *ref)
{
	return ref->name;
}

size_t ref_layers(const struct ref *ref, const struct ref_layer **out)
{
	*out = ref->layers;
	return ref->n_layers;
}

size_t ref_parts(const struct ref *ref, const struct ref_part **out)
{
	*out = ref->parts;
	return ref->n_parts;
}

const char *ref_dir(const struct ref *ref)
{
	return ref->dir;
}

const struct digest *ref_manifest(const struct ref *ref)
{
	return ref->has_manifest ? &ref->manifest : NULL;
}

const struct digest *ref_root(const struct ref *ref)
{
	return ref->has_root ? &ref->root : NULL;
}

const struct platform *ref_platform(const struct ref *ref)
{
	return ref->has_platform ? &ref->platform : NULL;
}

/* ------------------------------------------------------------------ where documents come from */

void origin_copy(struct origin *out, const struct origin *in)
{
	*out = *in;
	if (out->registry)
		registry_ref(out->registry);
	if (out->remote)
		remote_ref(out->remote);
}

void origin_deinit(struct origin *o)
{
	registry_unref(o->registry);
	remote_unref(o->remote);
	*o = (struct origin){0};
}

/* A blob that is a range of a file of this host. */
static int read_local(struct remote *remote, const struct desc *desc, struct strbuf *body,
		      struct err *err)
{
	scoped(close_fd) int fd = -1;
	uint64_t off;
	int r = remote->ops->open_local(remote, &desc->digest, desc->size, &fd, &off, err);
	if (r < 0)
		return r;
	scoped(free) void *bytes = malloc(desc->size + 1);
	if (!bytes)
		return no_memory(err);
	r = pread_full(fd, bytes, desc->size, off);
	if (r < 0)
		return err_set(err, r, "cannot read");
	struct digest digest;
	digest_bytes(&digest, bytes, desc->size);
	if (!digest_equal(&digest, &desc->digest))
		return err_set(err, -EBADMSG, "content does not match its digest");
	strbuf_add(body, bytes, desc->size);
	return 0;
}

/* That a document cannot be kept makes the next mount need the network, and this one no worse. */
void origin_keep(const struct origin *o, const void *bytes, size_t n)
{
	struct digest digest;
	struct err err = {0};
	int r = store_put_blob(o->store, bytes, n, &digest, &err);
	if (r < 0)
		log_warn("cannot keep a document of an image: %s", err_text(&err, r));
}

static int read_registry(const struct origin *o, const struct desc *desc, bool is_manifest,
			 struct strbuf *body, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	scoped(free) char *media_type = NULL;
	size_t before = body->len;
	int r;
	if (is_manifest)
		r = registry_get_manifest(o->registry, digest_text(&desc->digest, text), body,
					  &media_type, err);
	else
		r = registry_get_blob(o->registry, desc, body, err);
	if (r == 0 && !body->failed)
		origin_keep(o, body->data + before, body->len - before);
	return r;
}

static int recall(const struct origin *o, const struct digest *digest, size_t max,
		  struct strbuf *body, struct err *err)
{
	struct err why = {0};
	int r = store_get_blob(o->store, digest, max, body, &why);
	return r < 0 && r != -ENOENT ? err_set(err, r, "%s", err_text(&why, r)) : r;
}

int origin_recall(const struct origin *o, const struct digest *digest, struct strbuf *body,
		  struct err *err)
{
	return recall(o, digest, DOCUMENT_MAX, body, err);
}

/* A document of a layout or an archive; when that is gone the store may still have it. */
static int read_file_or_store(const struct origin *o, const struct desc *desc, struct strbuf *body,
			      size_t max, struct err *err)
{
	struct err why = {0};
	int r = read_local(o->remote, desc, body, &why);
	if (r < 0 && recall(o, &desc->digest, max, body, NULL) == 0)
		return 0;
	return r < 0 ? err_set(err, r, "%s", err_text(&why, r)) : 0;
}

static int read_document(const struct origin *o, const struct desc *desc, bool is_manifest,
			 size_t max, struct strbuf *body, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	const char *what = is_manifest ? "manifest" : "config";
	int r;
	digest_text(&desc->digest, text);
	if (desc->size > max)
		r = err_set(err, -EFBIG, "%llu bytes are too many", (unsigned long long)desc->size);
	else if (o->remote && !o->registry)
		r = read_file_or_store(o, desc, body, max, err);
	else
		r = recall(o, &desc->digest, max, body, err);
	if (r == -ENOENT && o->registry)
		r = read_registry(o, desc, is_manifest, body, err);
	else if (r == -ENOENT && !o->remote)
		r = err_set(err, -ENOENT, "not in the store, and there is no network");
	if (r == 0 && body->failed)
		r = no_memory(err);
	return r < 0 ? err_wrap(err, r, "%s %s", what, text) : 0;
}

int origin_read(const struct origin *o, const struct desc *desc, bool is_manifest,
		struct strbuf *body, struct err *err)
{
	return read_document(o, desc, is_manifest, DOCUMENT_MAX, body, err);
}

int origin_read_large(const struct origin *o, const struct desc *desc, struct strbuf *body,
		      struct err *err)
{
	return read_document(o, desc, false, LARGE_DOCUMENT_MAX, body, err);
}

/* ------------------------------------------------------------------ images */

static int copy_layers(struct ref *ref, const struct ref_image *image)
{
	ref->layers = calloc(image->n_layers + 1, sizeof(*ref->layers));
	if (!ref->layers)
		return -ENOMEM;
	for (; ref->n_layers < image->n_layers; ref->n_layers++) {
		struct ref_layer *to = &ref->layers[ref->n_layers];
		if (desc_copy(&to->desc, &image->layers[ref->n_layers]) < 0)
			return -ENOMEM;
		struct remote *remote = image->remotes ? image->remotes[ref->n_layers]
						       : image->origin->remote;
		if (image->diff_ids)
			to->diff_id = image->diff_ids[ref->n_layers];
		if (remote)
			to->remote = remote_ref(remote);
	}
	return 0;
}

int ref_image(struct ref **out, const struct ref_image *image, struct err *err)
{
	scoped(ref_unref) struct ref *ref = ref_new(REF_IMAGE, image->name);
	if (!ref || copy_layers(ref, image) < 0)
		return no_memory(err);
	origin_copy(&ref->origin, image->origin);
	if (image->config && desc_copy(&ref->config, image->config) < 0)
		return no_memory(err);
	ref->has_config = image->config != NULL;
	ref->has_diff_ids = image->diff_ids != NULL;
	ref->first_layer = image->first_layer;
	if (image->manifest) {
		ref->manifest = *image->manifest;
		ref->has_manifest = true;
	}
	if (image->root) {
		ref->root = *image->root;
		ref->has_root = true;
	}
	if (image->platform) {
		ref->platform = *image->platform;
		ref->has_platform = true;
	}
	*out = take(ref);
	return 0;
}

/* Fetches the config unless it is here. Called with the lock held: who asks at the same time
 * wants the same answer. */
static int need_config(struct ref *ref, struct err *err)
{
	if (!ref->has_config)
		return err_set(err, -ENOENT, "%s has no image config", ref->name);
	if (ref->config_text.len > 0)
		return 0;
	int r = origin_read(&ref->origin, &ref->config, false, &ref->config_text, err);
	if (r < 0) {
		strbuf_clear(&ref->config_text);
		return err_wrap(err, r, "%s", ref->name);
	}
	return 0;
}

int ref_config(struct ref *ref, struct strbuf *out, struct err *err)
{
	pthread_mutex_lock(&ref->lock);
	int r = need_config(ref, err);
	if (r == 0)
		strbuf_add(out, ref->config_text.data, ref->config_text.len);
	pthread_mutex_unlock(&ref->lock);
	return r == 0 && out->failed ? no_memory(err) : r;
}

const struct desc *ref_config_desc(const struct ref *ref)
{
	return ref->has_config ? &ref->config : NULL;
}

/* The size of a document in a layout: nobody noted that of the manifest. */
static int layout_size(const struct origin *o, struct desc *desc, struct err *err)
{
	scoped(close_fd) int fd = -1;
	struct stat st;
	uint64_t off;
	int opened = -1;
	int r = o->remote->ops->open_local(o->remote, &desc->digest, BLOB_SIZE_UNKNOWN, &opened,
					   &off, err);
	fd = opened;
	if (r == 0 && fstat(fd, &st) < 0)
		r = err_errno(err, "%s", o->remote->name);
	if (r == 0)
		desc->size = (uint64_t)st.st_size;
	return r;
}

int ref_manifest_bytes(struct ref *ref, struct strbuf *out, struct err *err)
{
	struct desc desc = {.digest = ref->manifest};
	int r = 0;
	if (!ref->has_manifest)
		return err_set(err, -ENOENT, "%s has no manifest", ref->name);
	if (ref->origin.remote && ref->origin.remote->ops->open_local)
		r = layout_size(&ref->origin, &desc, err);
	if (r == 0)
		r = origin_read(&ref->origin, &desc, true, out, err);
	return r < 0 ? err_wrap(err, r, "%s", ref->name) : 0;
}

static int fill_diff_ids(struct ref *ref, struct err *err)
{
	int r = need_config(ref, err);
	if (r < 0)
		return r;
	scoped(image_config_deinit) struct image_config config = {0};
	r = image_config_parse(&config, ref->config_text.data, ref->config_text.len, err);
	if (r < 0)
		return err_wrap(err, r, "%s", ref->name);
	if (ref->first_layer + ref->n_layers > config.n_diff_ids)
		return err_set(err, -EBADMSG, "%s: %zu layers, but the config has %zu diff IDs",
			       ref->name, ref->first_layer + ref->n_layers, config.n_diff_ids);
	pthread_mutex_lock(&ref->id_lock);
	for (size_t i = 0; i < ref->n_layers; i++)
		ref->layers[i].diff_id = config.diff_ids[ref->first_layer + i];
	pthread_mutex_unlock(&ref->id_lock);
	return 0;
}

int ref_need_diff_ids(struct ref *ref, struct err *err)
{
	if (ref->kind != REF_IMAGE)
		return 0;
	pthread_mutex_lock(&ref->lock);
	int r = ref->has_diff_ids ? 0 : fill_diff_ids(ref, err);
	ref->has_diff_ids = r == 0;
	pthread_mutex_unlock(&ref->lock);
	return r;
}

int ref_slice(struct ref **out, struct ref *ref, size_t first, size_t last, struct err *err)
{
	if (ref->kind != REF_IMAGE)
		return err_set(err, -EINVAL, "%s is no image: it has no layers to choose from",
			       ref->name);
	if (first > last || last >= ref->n_layers)
		return err_set(err, -EINVAL, "%s has %zu layers, not %zu..%zu", ref->name,
			       ref->n_layers, first, last);
	scoped(ref_unref) struct ref *slice = ref_new(REF_IMAGE, ref->name);
	if (!slice)
		return no_memory(err);
	slice->layers = calloc(last - first + 1, sizeof(*slice->layers));
	if (!slice->layers || desc_copy(&slice->config, &ref->config) < 0)
		return no_memory(err);
	origin_copy(&slice->origin, &ref->origin);
	slice->has_config = ref->has_config;
	slice->first_layer = ref->first_layer + first;
	slice->root = ref->root;
	slice->has_root = ref->has_root;
	slice->platform = ref->platform;
	slice->has_platform = ref->has_platform;
	pthread_mutex_lock(&ref->lock);
	slice->has_diff_ids = ref->has_diff_ids;
	int r = 0;
	for (size_t i = first; i <= last && r == 0; i++) {
		struct ref_layer *to = &slice->layers[slice->n_layers++];
		to->diff_id = ref->layers[i].diff_id;
		if (ref->layers[i].remote)
			to->remote = remote_ref(ref->layers[i].remote);
		r = desc_copy(&to->desc, &ref->layers[i].desc);
	}
	pthread_mutex_unlock(&ref->lock);
	if (r < 0)
		return no_memory(err);
	*out = take(slice);
	return 0;
}

/* ------------------------------------------------------------------ folders, nothing */

int ref_folder(struct ref **out, const char *name, const char *dir, struct err *err)
{
	scoped(ref_unref) struct ref *ref = ref_new(REF_DIR, name);
	if (!ref || !(ref->dir = strdup(dir)))
		return no_memory(err);
	*out = take(ref);
	return 0;
}

int ref_scratch(struct ref **out, struct err *err)
{
	*out = ref_new(REF_SCRATCH, "scratch");
	return *out ? 0 : no_memory(err);
}

int ref_made(struct ref **out, const char *name, struct tree *tree, struct err *err)
{
	struct ref *ref = ref_new(REF_TREE, name);
	if (!ref)
		return no_memory(err);
	ref->tree = tree_ref(tree);
	*out = ref;
	return 0;
}

/* Reads the tree out of the store. Called with the lock held: who asks at the same time wants the
 * same answer. */
static int load_tree(struct ref *ref, struct err *err)
{
	scoped(strbuf_free) struct strbuf bytes = {0};
	pthread_mutex_lock(&ref->id_lock);
	const struct digest digest = ref->tree_digest;
	pthread_mutex_unlock(&ref->id_lock);
	int r = refdb_read_tree(ref->tree_store, &digest, &bytes, err);
	if (r == 0)
		r = treefile_load(&ref->tree, ref->tree_store, bytes.data, bytes.len,
				  ref->tree_layers, ref->n_tree_layers, err);
	return r < 0 ? err_wrap(err, r, "%s", ref->name) : 0;
}

int ref_made_tree(struct ref *ref, struct tree **out, struct err *err)
{
	pthread_mutex_lock(&ref->lock);
	int r = ref->tree ? 0 : load_tree(ref, err);
	*out = ref->tree;
	pthread_mutex_unlock(&ref->lock);
	return r;
}

int ref_kept_tree(struct ref **out, const char *name, struct store *store,
		  const struct digest *digest, struct treefile_layer **layers, size_t n_layers,
		  struct err *err)
{
	struct ref *ref = ref_new(REF_TREE, name);
	if (!ref)
		return no_memory(err);
	ref->tree_store = store;
	ref->tree_digest = *digest;
	ref->tree_layers = take(*layers);
	ref->n_tree_layers = n_layers;
	*out = ref;
	return 0;
}

/* ------------------------------------------------------------------ ids */

bool ref_id(struct ref *ref, struct digest *out)
{
	pthread_mutex_lock(&ref->id_lock);
	bool has_id = ref->has_id;
	*out = ref->id;
	pthread_mutex_unlock(&ref->id_lock);
	return has_id;
}

bool ref_is_same(struct ref *a, struct ref *b)
{
	struct digest x, y;
	return a == b || (ref_id(a, &x) && ref_id(b, &y) && digest_equal(&x, &y));
}

char *ref_key(struct ref *ref, char key[DIGEST_HEX_MAX])
{
	struct digest id;
	if (ref_id(ref, &id))
		return digest_hex(&id, key);
	snprintf(key, DIGEST_HEX_MAX, "%p", (void *)ref);
	return key;
}

/* ------------------------------------------------------------------ merges */

static bool has_dot_dot(const char *path)
{
	for (const char *p = path; *p; p += strcspn(p, "/"), p += strspn(p, "/"))
		if (p[0] == '.' && p[1] == '.' && (p[2] == '/' || !p[2]))
			return true;
	return false;
}

/* Cleans one side of a partition; "/" and "" are none. */
static int clean_prefix(char **out, const char *path, const char *what, struct err *err)
{
	*out = NULL;
	if (!path || !*path)
		return 0;
	if (*path != '/')
		return err_set(err, -EINVAL, "%s=%s: want an absolute path", what, path);
	if (has_dot_dot(path))
		return err_set(err, -EINVAL, "%s=%s: \"..\" is refused", what, path);
	char *clean = path_clean(path, strlen(path));
	if (!clean)
		return no_memory(err);
	if (strcmp(clean, "/") == 0)
		free(clean);
	else
		*out = clean;
	return 0;
}

static char *merge_name(const struct ref_part *parts, size_t n)
{
	scoped(strbuf_free) struct strbuf name = {0};
	strbuf_puts(&name, "merge (");
	for (size_t i = 0; i < n && name.len < MERGE_NAME_MAX; i++) {
		strbuf_puts(&name, i ? ", " : "");
		strbuf_puts(&name, parts[i].ref->name);
	}
	strbuf_puts(&name, ")");
	if (name.len < MERGE_NAME_MAX)
		return strbuf_finish(&name);
	return str_printf("merge (%zu inputs)", n);
}

static int add_part(struct ref *ref, const struct ref_part *part, struct err *err)
{
	struct ref_part *to = &ref->parts[ref->n_parts];
	int r = clean_prefix(&to->trim, part->trim, "trim", err);
	if (r == 0)
		r = clean_prefix(&to->add, part->add, "add", err);
	if (r < 0) {
		free(to->trim);
		return r;
	}
	/* An empty part at its place adds nothing and hides nothing. */
	if (part->ref->kind == REF_SCRATCH && !to->trim && !to->add)
		return 0;
	to->ref = ref_ref(part->ref);
	ref->n_parts++;
	return 0;
}

/* One made layer over something. */
static bool is_plain_step(const struct ref *ref)
{
	const struct ref_part *p = ref->parts;
	return ref->n_parts == 2 && p[1].ref->kind == REF_TREE && !p[0].trim && !p[0].add &&
	       !p[1].trim && !p[1].add;
}

/* How many layers the skip of @ref has; 0 = it has none. */
static size_t skip_span(const struct ref *ref)
{
	return ref->n_made == 0		       ? 0
	       : ref->n_made % SKIP_LONG == 0  ? SKIP_LONG
	       : ref->n_made % SKIP_SHORT == 0 ? SKIP_SHORT
					       : 0;
}

static bool skip_known(struct ref *ref, struct tree **tree, struct ref **below)
{
	pthread_mutex_lock(&ref->lock);
	*tree = tree_ref(ref->skip);
	*below = ref->skip_below;
	pthread_mutex_unlock(&ref->lock);
	return *tree;
}

/* The layers of a skip, the top one first: single ones, and shorter skips that are known. */
static int skip_collect(struct ref *ref, struct skip_inputs *inputs, struct ref **below,
			struct err *err)
{
	size_t left = skip_span(ref);
	while (left > 0) {
		struct union_input *slot = vec_push(&inputs->items);
		if (!slot)
			return no_memory(err);
		*slot = (struct union_input){0};
		size_t span = left < skip_span(ref) ? 0 : skip_span(ref);
		struct ref *next;
		if (span != SKIP_SHORT || !skip_known(ref, &slot->tree, &next)) {
			struct tree *made;
			int r = ref_made_tree(ref->parts[1].ref, &made, err);
			if (r < 0)
				return r;
			slot->tree = tree_ref(made);
			next = ref->parts[0].ref;
			span = 1;
		}
		left -= span;
		ref = next;
	}
	*below = ref;
	return 0;
}

static int skip_make(struct ref *ref, struct tree **out, struct ref **below, struct err *err)
{
	struct skip_inputs inputs = {0};
	int r = skip_collect(ref, &inputs, below, err);
	for (size_t i = 0, k = inputs.items.n; k > i + 1; i++) { /* unions take the lowest first */
		struct union_input swap = inputs.items.items[i];
		inputs.items.items[i] = inputs.items.items[--k];
		inputs.items.items[k] = swap;
	}
	if (r == 0)
		r = union_new(out, inputs.items.items, inputs.items.n, true, err);
	if (r == 0)
		union_keep(*out);
	for (size_t i = 0; i < inputs.items.n; i++)
		tree_unref(inputs.items.items[i].tree);
	vec_free(&inputs.items);
	return r;
}

int ref_skip(struct ref *ref, struct tree **out, struct ref **below, struct err *err)
{
	struct tree *made = NULL;
	if (skip_span(ref) == 0)
		return 0;
	if (skip_known(ref, out, below))
		return 1;
	int r = skip_make(ref, &made, below, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&ref->lock);
	if (!ref->skip) { /* else another thread was faster */
		ref->skip = tree_ref(made);
		ref->skip_below = *below;
	}
	pthread_mutex_unlock(&ref->lock);
	*out = made;
	return 1;
}

int ref_merge(struct ref **out, const struct ref_part *parts, size_t n, struct err *err)
{
	scoped(free) char *name = merge_name(parts, n);
	scoped(ref_unref) struct ref *ref = name ? ref_new(REF_MERGE, name) : NULL;
	if (!ref || !(ref->parts = calloc(n + 1, sizeof(*ref->parts))))
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		int r = add_part(ref, &parts[i], err);
		if (r < 0)
			return err_wrap(err, r, "merge of %s", parts[i].ref->name);
	}
	if (ref->n_parts == 0)
		return ref_scratch(out, err);
	if (is_plain_step(ref))
		ref->n_made = ref->parts[0].ref->n_made + 1;
	const struct ref_part *only = &ref->parts[0];
	if (ref->n_parts == 1 && !only->trim && !only->add)
		*out = ref_ref(only->ref);
	else
		*out = take(ref);
	return 0;
}
