/* SPDX-License-Identifier: Apache-2.0 */

/*
 * retag: an image goes to another place as it is, without coming here.
 *
 * Manifest and config are documents of a few kilobytes, which are here or are fetched; layers go from
 * where they are to where they should be, a megabyte at a time through memory, or do not move at all.
 * The manifest is last, so that a name never means an image that is not whole.
 */

#include "tools/tools.h"

#include <jansson.h>

#define OCI_MANIFEST "application/vnd.oci.image.manifest.v1+json"

struct retag {
	struct app *app;
	struct ref *ref;
	struct target *target;
	const char *host; /* of the target; NULL = a layout */
	struct strbuf manifest;
	struct desc desc; /* of the manifest */
};

static int read_manifest(struct retag *t, struct err *err)
{
	const struct digest *digest = ref_manifest(t->ref);

	if (ref_kind(t->ref) != REF_IMAGE || !digest || !ref_config_desc(t->ref))
		return err_set(err, -ENOTSUP,
			       "%s is no image as it is, with a manifest and a config, and nothing "
			       "else can be written there yet",
			       ref_name(t->ref));
	int r = ref_manifest_bytes(t->ref, &t->manifest, err);
	if (r < 0)
		return r;
	json_t *root = json_loadb(t->manifest.data, t->manifest.len, 0, NULL);
	const char *type = json_string_value(json_object_get(root, "mediaType"));
	t->desc.digest = *digest;
	t->desc.size = t->manifest.len;
	t->desc.media_type = strdup(type ? type : OCI_MANIFEST);
	json_decref(root);
	return t->desc.media_type ? 0 : -ENOMEM;
}

/* The repository of the target's registry that has the blob. Returns @buf, or NULL. */
static char *same_registry(const struct retag *t, struct remote *remote, const struct desc *desc,
			   struct strbuf *buf)
{
	scoped(free) char *prefix = t->host ? str_printf("registry %s ", t->host) : NULL;

	if (!prefix || !remote || remote_place(remote, &desc->digest, buf) < 0 || buf->failed ||
	    !str_starts(buf->data, prefix))
		return NULL;
	return buf->data + strlen(prefix);
}

static int send_layer(struct retag *t, const struct ref_layer *layer, struct err *err)
{
	scoped(strbuf_free) struct strbuf place = {0};
	scoped(blob_source_close) struct blob_source from = {0};
	int r = blob_source_open(&from, t->app->store, layer->remote, &layer->desc, err);

	if (r < 0)
		return r;
	from.from_repository = same_registry(t, layer->remote, &layer->desc, &place);
	return target_put_blob(t->target, &layer->desc, &from, err);
}

static int read_text(void *arg, uint64_t off, void *dst, size_t len, size_t *got, struct err *err)
{
	const struct strbuf *s = arg;

	*got = MIN(len, s->len - (size_t)off);
	memcpy(dst, s->data + off, *got);
	return 0;
}

static int send_config(struct retag *t, struct err *err)
{
	scoped(strbuf_free) struct strbuf config = {0};
	int r = ref_config(t->ref, &config, err);
	const struct blob_source from = {.size = config.len, .read = read_text, .arg = &config};

	return r < 0 ? r : target_put_blob(t->target, ref_config_desc(t->ref), &from, err);
}

static int send_all(struct retag *t, const char *tag, struct err *err)
{
	const struct ref_layer *layers;
	size_t n = ref_layers(t->ref, &layers);
	char text[DIGEST_TEXT_MAX];
	int r = 0;

	for (size_t i = 0; r >= 0 && i < n; i++) {
		r = send_layer(t, &layers[i], err);
		if (r < 0)
			return err_wrap(err, r, "layer %s",
					digest_text(&layers[i].desc.digest, text));
	}
	r = send_config(t, err);
	return r < 0 ? r : target_put_manifest(t->target, &t->desc, t->manifest.data, tag, err);
}

static void retag_end(struct retag *t)
{
	target_unref(t->target);
	strbuf_free(&t->manifest);
	desc_deinit(&t->desc);
}

int retag_push(struct app *app, struct ref *ref, const char *name, struct err *err)
{
	scoped(image_name_deinit) struct image_name to = {0};
	struct retag t = {.app = app, .ref = ref};
	int r = image_name_parse(&to, name, err);

	if (r == 0)
		r = read_manifest(&t, err);
	t.host = to.host;
	if (r == 0)
		r = target_registry(&t.target, app->net, to.host, to.repository, err);
	if (r == 0)
		r = send_all(&t, to.tag, err);
	retag_end(&t);
	return r;
}
