/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The documents of an image that is made of a ref: config and manifest, byte for byte as BuildKit
 * writes them, which means as Go does.
 *
 * The config says nothing but what BuildKit says of a plain definition, whatever images are in it:
 * the platform, the usual $PATH, one entry of history for each layer. It is a map there, so its
 * members are in the order of their names, and it is compact; the manifest is a struct, in an order
 * of its own, and indented by two spaces.
 *
 * With an epoch (SOURCE_DATE_EPOCH) no time in them is later.
 */

#include <stdio.h>
#include <time.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/gojson.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define PATH_DEFAULT "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ config */

static void member_time(struct strbuf *s, const char *name, int64_t seconds)
{
	char text[40];
	time_t t = (time_t)seconds;
	struct tm tm;
	gmtime_r(&t, &tm);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
	gojson_member_text(s, name, text);
}

static void put_history(struct strbuf *s, const struct image *image)
{
	if (image->n_layers == 0)
		return;
	gojson_member(s, "history");
	gojson_open(s, '[');
	for (size_t i = 0; i < image->n_layers; i++) {
		gojson_open(s, '{');
		member_time(s, "created", image->layers[i].created);
		gojson_member_text(s, "created_by", image->layers[i].created_by);
		gojson_member_text(s, "comment", "buildkit.exporter.image.v0");
		gojson_close(s, '}');
	}
	gojson_close(s, ']');
}

static void put_rootfs(struct strbuf *s, const struct image *image)
{
	char text[DIGEST_TEXT_MAX];
	gojson_member(s, "rootfs");
	gojson_open(s, '{');
	gojson_member_text(s, "type", "layers");
	gojson_member(s, "diff_ids");
	gojson_open(s, '[');
	for (size_t i = 0; i < image->n_layers; i++) {
		digest_text(&image->layers[i].diff_id, text);
		gojson_text(s, text, strlen(text));
	}
	gojson_close(s, ']');
	gojson_close(s, '}');
}

static void put_config(struct strbuf *s, const struct image *image)
{
	static char path[] = PATH_DEFAULT;
	char *const env[] = {path};
	gojson_open(s, '{');
	gojson_member_text(s, "architecture", image->platform.arch);
	gojson_member(s, "config");
	gojson_open(s, '{');
	gojson_member_texts(s, "Env", env, countof(env));
	gojson_member_text(s, "WorkingDir", "/");
	gojson_close(s, '}');
	member_time(s, "created", image->created);
	put_history(s, image);
	gojson_member_text(s, "os", image->platform.os);
	put_rootfs(s, image);
	gojson_opt_text(s, "variant", image->platform.variant);
	gojson_close(s, '}');
}

/* ------------------------------------------------------------------ manifest */

static void put_indent(struct strbuf *s, int depth)
{
	strbuf_printf(s, "\n%*s", 2 * depth, "");
}

/* Written apart: gojson would put a comma before it. */
static void put_text(struct strbuf *s, const char *text)
{
	scoped(strbuf_free) struct strbuf json = {0};
	gojson_text(&json, text, strlen(text));
	s->failed |= json.failed;
	strbuf_puts(s, json.data ? json.data : "");
}

/* "name": "value" on a line of its own. */
static void put_member(struct strbuf *s, int depth, const char *name, const char *value)
{
	put_indent(s, depth);
	put_text(s, name);
	strbuf_puts(s, ": ");
	put_text(s, value);
}

/* @annotations are sorted. */
static void put_annotations(struct strbuf *s, int depth, const struct annotation *annotations,
			    size_t n)
{
	if (n == 0)
		return;
	strbuf_putc(s, ',');
	put_indent(s, depth);
	strbuf_puts(s, "\"annotations\": {");
	for (size_t i = 0; i < n; i++) {
		if (i > 0)
			strbuf_putc(s, ',');
		put_member(s, depth + 1, annotations[i].key, annotations[i].value);
	}
	put_indent(s, depth);
	strbuf_putc(s, '}');
}

static void put_desc(struct strbuf *s, int depth, const struct desc *desc)
{
	char text[DIGEST_TEXT_MAX];
	strbuf_putc(s, '{');
	put_member(s, depth + 1, "mediaType", desc->media_type);
	strbuf_putc(s, ',');
	put_member(s, depth + 1, "digest", digest_text(&desc->digest, text));
	strbuf_putc(s, ',');
	put_indent(s, depth + 1);
	strbuf_printf(s, "\"size\": %llu", (unsigned long long)desc->size);
	put_annotations(s, depth + 1, desc->annotations, desc->n_annotations);
	put_indent(s, depth);
	strbuf_putc(s, '}');
}

static void put_manifest(struct strbuf *s, const struct image *image,
			 const struct image_options *options)
{
	strbuf_puts(s, "{\n  \"schemaVersion\": 2,");
	put_member(s, 1, "mediaType", image->manifest_desc.media_type);
	strbuf_puts(s, ",\n  \"config\": ");
	put_desc(s, 1, &image->config_desc);
	strbuf_puts(s, ",\n  \"layers\": [");
	for (size_t i = 0; i < image->n_layers; i++) {
		if (i > 0)
			strbuf_putc(s, ',');
		put_indent(s, 2);
		put_desc(s, 2, &image->layers[i].desc);
	}
	if (image->n_layers > 0)
		put_indent(s, 1);
	strbuf_putc(s, ']');
	put_annotations(s, 1, options->annotations, options->n_annotations);
	strbuf_puts(s, "\n}");
}

/* ------------------------------------------------------------------ the door */

static int by_key(const void *a, const void *b)
{
	return strcmp(((const struct annotation *)a)->key, ((const struct annotation *)b)->key);
}

static int describe(struct desc *desc, const struct strbuf *bytes, const char *media_type)
{
	desc->media_type = strdup(media_type);
	desc->size = bytes->len;
	if (bytes->len)
		digest_bytes(&desc->digest, bytes->data, bytes->len);
	return desc->media_type && !bytes->failed ? 0 : -ENOMEM;
}

static void settle_times(struct image *image, const struct image_options *options)
{
	image->created = options->has_epoch ? options->epoch : 0;
	for (size_t i = 0; i < image->n_layers; i++) {
		struct image_layer *layer = &image->layers[i];
		if (options->has_epoch)
			layer->created = MIN(layer->created, options->epoch);
		image->created = layer->created;
	}
}

int image_documents(struct image *image, const struct solver *solver,
		    const struct image_options *options, struct err *err)
{
	bool is_docker = options->docker_types;
	image->platform = solver->options.platform;
	settle_times(image, options);
	for (size_t i = 0; i < image->n_layers; i++) {
		struct desc *desc = &image->layers[i].desc;
		if (desc->n_annotations > 1)
			qsort(desc->annotations, desc->n_annotations, sizeof(*desc->annotations),
			      by_key);
	}
	put_config(&image->config, image);
	int r = describe(&image->config_desc, &image->config,
			 is_docker ? "application/vnd.docker.container.image.v1+json"
				   : "application/vnd.oci.image.config.v1+json");
	image->manifest_desc.media_type =
		strdup(is_docker ? "application/vnd.docker.distribution.manifest.v2+json"
				 : "application/vnd.oci.image.manifest.v1+json");
	if (r < 0 || !image->manifest_desc.media_type)
		return no_memory(err);
	put_manifest(&image->manifest, image, options);
	if (image->manifest.failed)
		return no_memory(err);
	image->manifest_desc.size = image->manifest.len;
	digest_bytes(&image->manifest_desc.digest, image->manifest.data, image->manifest.len);
	return 0;
}

int image_make(struct image *out, struct ref *ref, struct solver *solver,
	       const struct image_options *options, struct err *err)
{
	*out = (struct image){0};
	int r = ref_layers_make(out, ref, solver, options, err);
	if (r == 0)
		r = image_documents(out, solver, options, err);
	if (r < 0)
		image_deinit(out);
	return r;
}

void image_deinit(struct image *image)
{
	for (size_t i = 0; i < image->n_layers; i++) {
		desc_deinit(&image->layers[i].desc);
		remote_unref(image->layers[i].remote);
		free(image->layers[i].created_by);
	}
	free(image->layers);
	strbuf_free(&image->config);
	strbuf_free(&image->manifest);
	desc_deinit(&image->config_desc);
	desc_deinit(&image->manifest_desc);
	*image = (struct image){0};
}

int image_layer_copy(const struct image_layer *layer, struct store *store, blob_sink sink,
		     void *arg, struct err *err)
{
	scoped(blob_unref) struct blob *blob = NULL;
	int r = blob_open(&blob, store, &layer->desc, layer->remote, err);
	return r < 0 ? r : blob_copy_stored(blob, sink, arg, err);
}
