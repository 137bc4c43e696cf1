/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The JSON documents of images: bytes in, struct out, no I/O.
 *
 *	index      { manifests: [ { mediaType, digest, size, platform?, annotations? } ] }
 *	manifest   { config: descriptor, layers: [ descriptor ] }
 *	config     { os, architecture, variant?, rootfs: { diff_ids: [ digest ] }, … }
 *	manifest.json of docker save   [ { Config, RepoTags, Layers } ]
 *
 * Docker's manifest list and schema 2 manifest have the same members as OCI's under other media
 * types. A document that could be read as two kinds (with manifests as well as layers) is refused,
 * because two programs would then see two images under one digest.
 *
 * Nothing of what is not a layer is taken for one: the media type of every layer must be known. A
 * document's own digest is checked by who read it, before it comes here.
 */

#include <jansson.h>
#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solver-internal.h"

/* More on one descriptor serves nobody, and desc_annotate looks at all for each. */
#define ANNOTATIONS_MAX 1000

define_scoped(json_t *, json_decref);

static const char *const layer_types[] = {
	"application/vnd.oci.image.layer.v1.tar",
	"application/vnd.oci.image.layer.v1.tar+gzip",
	"application/vnd.oci.image.layer.v1.tar+zstd",
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.diff.tar.gzip",
	"application/vnd.docker.image.rootfs.diff.tar.zstd",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
};

static const struct {
	const char *type;
	enum manifest_kind kind;
} manifest_types[] = {
	{"application/vnd.oci.image.index.v1+json", MANIFEST_INDEX},
	{"application/vnd.oci.image.manifest.v1+json", MANIFEST_IMAGE},
	{"application/vnd.docker.distribution.manifest.list.v2+json", MANIFEST_INDEX},
	{"application/vnd.docker.distribution.manifest.v2+json", MANIFEST_IMAGE},
};

bool image_layer_type_known(const char *type)
{
	for (size_t i = 0; i < countof(layer_types); i++)
		if (strcmp(layer_types[i], type) == 0)
			return true;
	return false;
}

/* Errors: -ENOENT not one of ours. */
static int kind_of_type(const char *type, enum manifest_kind *kind)
{
	for (size_t i = 0; i < countof(manifest_types); i++) {
		if (strcmp(manifest_types[i].type, type) == 0) {
			*kind = manifest_types[i].kind;
			return 0;
		}
	}
	return -ENOENT;
}

static int load(json_t **out, const void *bytes, size_t n, struct err *err)
{
	json_error_t why;
	*out = json_loadb(bytes, n, 0, &why);
	if (!*out)
		return err_set(err, -EBADMSG, "not valid JSON: %s (byte %d)", why.text,
			       why.position);
	return 0;
}

/* NULL when the member is missing or no string. */
static const char *text_of(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static int load_annotations(struct desc *desc, json_t *json, struct err *err)
{
	if (json_object_size(json) > ANNOTATIONS_MAX)
		return err_set(err, -EBADMSG, "more than %d annotations", ANNOTATIONS_MAX);
	const char *key;
	json_t *value;
	json_object_foreach(json, key, value)
	{
		const char *text = json_string_value(value);
		if (text && desc_annotate(desc, key, text) < 0)
			return err_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

static int load_desc(struct desc *desc, const json_t *json, struct err *err)
{
	const char *digest = text_of(json, "digest");
	if (!digest)
		return err_set(err, -EBADMSG, "a descriptor without a digest");
	int r = digest_parse(&desc->digest, digest, err);
	if (r < 0)
		return r == -EINVAL ? err_wrap(err, -EBADMSG, "a descriptor") : r;
	const json_t *size = json_object_get(json, "size");
	if (!json_is_integer(size) || json_integer_value(size) < 0)
		return err_set(err, -EBADMSG, "%s: a descriptor without a size", digest);
	desc->size = (uint64_t)json_integer_value(size);
	const char *type = text_of(json, "mediaType");
	if (type && !(desc->media_type = strdup(type)))
		return err_set(err, -ENOMEM, "out of memory");
	return load_annotations(desc, json_object_get(json, "annotations"), err);
}

static bool load_platform(struct platform *out, const json_t *json)
{
	const char *os = text_of(json, "os"), *arch = text_of(json, "architecture");
	const char *variant = text_of(json, "variant");
	if (!os || !arch || !*os || !*arch)
		return false;
	/* What is cut here is no platform that anyone can ask for. */
	snprintf(out->os, sizeof(out->os), "%s", os);
	snprintf(out->arch, sizeof(out->arch), "%s", arch);
	snprintf(out->variant, sizeof(out->variant), "%s", variant ? variant : "");
	platform_normalize(out);
	return true;
}

static bool is_attestation(const struct index_entry *e)
{
	const char *type = desc_annotation(&e->desc, "vnd.docker.reference.type");
	return (type && strcmp(type, "attestation-manifest") == 0) ||
	       (e->has_platform && strcmp(e->platform.os, "unknown") == 0);
}

static int load_index(struct manifest *m, const json_t *json, struct err *err)
{
	const json_t *list = json_object_get(json, "manifests");
	if (!json_is_array(list))
		return err_set(err, -EBADMSG, "an index without manifests");
	size_t n = json_array_size(list);
	if (n > 0 && !(m->entries = calloc(n, sizeof(*m->entries))))
		return err_set(err, -ENOMEM, "out of memory");
	for (; m->n_entries < n; m->n_entries++) {
		struct index_entry *e = &m->entries[m->n_entries];
		const json_t *item = json_array_get(list, m->n_entries);
		int r = load_desc(&e->desc, item, err);
		if (r < 0) {
			desc_deinit(&e->desc);
			return err_wrap(err, r, "entry %zu", m->n_entries);
		}
		const json_t *platform = json_object_get(item, "platform");
		e->has_platform = load_platform(&e->platform, platform);
		e->is_attestation = is_attestation(e);
	}
	return 0;
}

static int load_image(struct manifest *m, const json_t *json, struct err *err)
{
	const json_t *config = json_object_get(json, "config");
	const json_t *list = json_object_get(json, "layers");
	if (!json_is_object(config) || !json_is_array(list))
		return err_set(err, -EBADMSG, "a manifest without config or layers");
	int r = load_desc(&m->config, config, err);
	if (r < 0)
		return err_wrap(err, r, "config");
	size_t n = json_array_size(list);
	if (n > 0 && !(m->layers = calloc(n, sizeof(*m->layers))))
		return err_set(err, -ENOMEM, "out of memory");
	for (; m->n_layers < n; m->n_layers++) {
		struct desc *layer = &m->layers[m->n_layers];
		r = load_desc(layer, json_array_get(list, m->n_layers), err);
		if (r == 0 && !layer->media_type)
			r = err_set(err, -EBADMSG, "no media type");
		else if (r == 0 && !image_layer_type_known(layer->media_type))
			r = err_set(err, -ENOTSUP, "\"%.200s\" is no layer of files",
				    layer->media_type);
		if (r < 0) {
			desc_deinit(layer);
			return err_wrap(err, r, "layer %zu", m->n_layers);
		}
	}
	return 0;
}

/* The document's own word counts, then the giver's, then its members. */
static int find_kind(const json_t *json, const char *given, enum manifest_kind *kind,
		     struct err *err)
{
	const json_t *version = json_object_get(json, "schemaVersion");
	const char *type = text_of(json, "mediaType");
	bool has_list = json_object_get(json, "manifests") != NULL;
	bool has_layers = json_object_get(json, "layers") || json_object_get(json, "fsLayers");
	if (json_is_integer(version) && json_integer_value(version) == 1)
		return err_set(
			err, -ENOTSUP,
			"a schema 1 manifest, which registries gave up: push the image again");
	if (has_list && has_layers)
		return err_set(err, -EBADMSG, "a document with manifests as well as layers");
	if (type) {
		if (kind_of_type(type, kind) < 0)
			return err_set(err, -ENOTSUP, "\"%.200s\" is neither image nor index",
				       type);
		return 0;
	}
	if (given && kind_of_type(given, kind) == 0)
		return 0;
	if (!has_list && !has_layers)
		return err_set(err, -EBADMSG, "neither an image manifest nor an index");
	*kind = has_list ? MANIFEST_INDEX : MANIFEST_IMAGE;
	return 0;
}

int manifest_parse(struct manifest *out, const void *bytes, size_t n, const char *media_type,
		   struct err *err)
{
	scoped(json_decref) json_t *json = NULL;
	scoped(manifest_deinit) struct manifest m = {0};
	int r = load(&json, bytes, n, err);
	if (r < 0)
		return r;
	if (!json_is_object(json))
		return err_set(err, -EBADMSG, "neither an image manifest nor an index");
	r = find_kind(json, media_type, &m.kind, err);
	if (r == 0)
		r = m.kind == MANIFEST_INDEX ? load_index(&m, json, err)
					     : load_image(&m, json, err);
	if (r < 0)
		return r;
	*out = m;
	m = (struct manifest){0};
	return 0;
}

void manifest_deinit(struct manifest *m)
{
	for (size_t i = 0; i < m->n_entries; i++)
		desc_deinit(&m->entries[i].desc);
	free(m->entries);
	for (size_t i = 0; i < m->n_layers; i++)
		desc_deinit(&m->layers[i]);
	free(m->layers);
	desc_deinit(&m->config);
	*m = (struct manifest){0};
}

/* "linux/amd64, linux/arm64": what there is, for who asked for something else. */
static void list_platforms(struct strbuf *out, const struct index_entry *entries, size_t n)
{
	char text[100];
	for (size_t i = 0; i < n && out->len < 300; i++) {
		if (entries[i].is_attestation || !entries[i].has_platform)
			continue;
		strbuf_puts(out, out->len ? ", " : "");
		strbuf_puts(out, platform_text(&entries[i].platform, text));
	}
}

int manifest_choose(const struct index_entry *entries, size_t n, const struct platform *want,
		    const struct index_entry **out, struct err *err)
{
	const struct index_entry *best = NULL, *unnamed = NULL;
	int best_rank = 0;
	size_t n_unnamed = 0;
	for (size_t i = 0; i < n; i++) {
		const struct index_entry *e = &entries[i];
		if (e->is_attestation)
			continue;
		if (!e->has_platform) {
			unnamed = unnamed ? unnamed : e;
			n_unnamed++;
			continue;
		}
		int rank = platform_rank(want, &e->platform);
		if (rank >= 0 && (!best || rank < best_rank)) {
			best = e;
			best_rank = rank;
		}
	}
	/* An entry without platform may be anything: it is taken only where it is no guess. */
	if (!best && n_unnamed == 1)
		best = unnamed;
	*out = best;
	if (best)
		return 0;

	char wanted[100];
	scoped(strbuf_free) struct strbuf there = {0};
	list_platforms(&there, entries, n);
	if (n_unnamed > 1)
		return err_set(err, -ENOENT,
			       "%zu images without a platform: name one by its digest", n_unnamed);
	return err_set(err, -ENOENT, "no image for %s: there is %s", platform_text(want, wanted),
		       there.len ? there.data : "none at all");
}

/* ------------------------------------------------------------------ config */

int image_config_parse(struct image_config *out, const void *bytes, size_t n, struct err *err)
{
	scoped(json_decref) json_t *json = NULL;
	scoped(image_config_deinit) struct image_config config = {0};
	int r = load(&json, bytes, n, err);
	if (r < 0)
		return err_wrap(err, r, "image config");
	config.has_platform = load_platform(&config.platform, json);
	const json_t *list = json_object_get(json_object_get(json, "rootfs"), "diff_ids");
	size_t n_ids = json_array_size(list); /* 0 for what is no array */
	if (n_ids > 0 && !(config.diff_ids = calloc(n_ids, sizeof(*config.diff_ids))))
		return err_set(err, -ENOMEM, "out of memory");
	for (; config.n_diff_ids < n_ids; config.n_diff_ids++) {
		const char *text = json_string_value(json_array_get(list, config.n_diff_ids));
		if (!text)
			return err_set(err, -EBADMSG, "image config: a diff ID is no string");
		r = digest_parse(&config.diff_ids[config.n_diff_ids], text, err);
		if (r < 0)
			return err_wrap(err, r == -EINVAL ? -EBADMSG : r, "image config: diff ID");
	}
	*out = config;
	config = (struct image_config){0};
	return 0;
}

void image_config_deinit(struct image_config *config)
{
	free(config->diff_ids);
	*config = (struct image_config){0};
}

/* ------------------------------------------------------------------ lists of texts */

void texts_free(char **texts, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(texts[i]);
	free(texts);
}

/* A list of strings; missing or null is an empty one. */
static int load_texts(char ***out, size_t *n_out, const json_t *list, const char *what,
		      struct err *err)
{
	size_t n = json_array_size(list);
	char **texts = n > 0 ? calloc(n, sizeof(*texts)) : NULL;
	if (n > 0 && !texts)
		return err_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++) {
		const char *text = json_string_value(json_array_get(list, i));
		texts[i] = text ? strdup(text) : NULL;
		if (!texts[i]) {
			texts_free(texts, i);
			return text ? err_set(err, -ENOMEM, "out of memory")
				    : err_set(err, -EBADMSG, "%s: not a list of strings", what);
		}
	}
	*out = texts;
	*n_out = n;
	return 0;
}

int texts_parse(char ***out, size_t *n_out, const char *json, const char *what, struct err *err)
{
	json_error_t wrong;
	json_t *list = json_loads(json, 0, &wrong);
	int r = json_is_array(list)
			? load_texts(out, n_out, list, what, err)
			: err_set(err, -EBADMSG, "%s: not a JSON list of strings", what);
	json_decref(list);
	return r;
}

/* ------------------------------------------------------------------ docker save */

static int load_saved(struct saved_image *image, const json_t *json, struct err *err)
{
	const char *config = text_of(json, "Config");
	if (!config)
		return err_set(err, -EBADMSG, "no Config");
	if (!(image->config = strdup(config)))
		return err_set(err, -ENOMEM, "out of memory");
	int r = load_texts(&image->tags, &image->n_tags, json_object_get(json, "RepoTags"),
			   "RepoTags", err);
	if (r < 0)
		return r;
	return load_texts(&image->layers, &image->n_layers, json_object_get(json, "Layers"),
			  "Layers", err);
}

int saved_images_parse(struct saved_image **out, size_t *n_out, const void *bytes, size_t n,
		       struct err *err)
{
	scoped(json_decref) json_t *json = NULL;
	int r = load(&json, bytes, n, err);
	if (r < 0)
		return r;
	size_t n_images = json_array_size(json);
	if (n_images == 0)
		return err_set(err, -EBADMSG, "lists no images");
	struct saved_image *images = calloc(n_images, sizeof(*images));
	if (!images)
		return err_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n_images; i++) {
		r = load_saved(&images[i], json_array_get(json, i), err);
		if (r < 0) {
			saved_images_free(images, n_images);
			return err_wrap(err, r, "item %zu", i);
		}
	}
	*out = images;
	*n_out = n_images;
	return 0;
}

void saved_images_free(struct saved_image *images, size_t n)
{
	for (size_t i = 0; i < n && images; i++) {
		free(images[i].config);
		texts_free(images[i].tags, images[i].n_tags);
		texts_free(images[i].layers, images[i].n_layers);
	}
	free(images);
}
