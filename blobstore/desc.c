/* SPDX-License-Identifier: Apache-2.0 */

/*
 * desc: what a manifest says of a blob, as a value that owns its strings.
 */

#include "blobstore/blobstore.h"

int desc_annotate(struct desc *desc, const char *key, const char *value)
{
	struct annotation *grown =
		realloc(desc->annotations, (desc->n_annotations + 1) * sizeof(*grown));

	if (!grown)
		return -ENOMEM;
	desc->annotations = grown;
	struct annotation *a = &grown[desc->n_annotations];
	*a = (struct annotation){strdup(key), strdup(value)};
	if (!a->key || !a->value) {
		free(a->key);
		free(a->value);
		return -ENOMEM;
	}
	desc->n_annotations++;
	return 0;
}

int desc_copy(struct desc *out, const struct desc *in)
{
	int r = 0;

	*out = (struct desc){.digest = in->digest, .size = in->size};
	if (in->media_type) {
		out->media_type = strdup(in->media_type);
		if (!out->media_type)
			r = -ENOMEM;
	}
	for (size_t i = 0; r == 0 && i < in->n_annotations; i++)
		r = desc_annotate(out, in->annotations[i].key, in->annotations[i].value);
	if (r < 0)
		desc_deinit(out);
	return r;
}

void desc_deinit(struct desc *desc)
{
	free(desc->media_type);
	for (size_t i = 0; i < desc->n_annotations; i++) {
		free(desc->annotations[i].key);
		free(desc->annotations[i].value);
	}
	free(desc->annotations);
	*desc = (struct desc){0};
}

const char *desc_annotation(const struct desc *desc, const char *key)
{
	for (size_t i = 0; i < desc->n_annotations; i++)
		if (strcmp(desc->annotations[i].key, key) == 0)
			return desc->annotations[i].value;
	return NULL;
}
