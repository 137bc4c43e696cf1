/* SPDX-License-Identifier: Apache-2.0 */

/* Documents of images: manifests, indexes, configs, manifest.json of docker save. Whatever comes,
 * what is accepted is whole: every layer has a known type, every choice is an entry of the index. */

#include "solver/solver-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_manifest(const uint8_t *data, size_t size)
{
	const struct platform want = {"linux", "arm64", ""};
	const struct index_entry *e;
	struct manifest m;

	if (manifest_parse(&m, data, size, NULL, NULL) < 0)
		return;
	for (size_t i = 0; i < m.n_layers; i++)
		if (!m.layers[i].media_type)
			abort();
	if (m.kind == MANIFEST_INDEX &&
	    manifest_choose(m.entries, m.n_entries, &want, &e, NULL) == 0 &&
	    (e < m.entries || e >= m.entries + m.n_entries || e->is_attestation))
		abort();
	struct image_root root = {0};
	struct err err;
	if (m.kind == MANIFEST_INDEX) {
		layout_choose(&root, &m, NULL, &want, &err);
		image_root_deinit(&root);
		layout_choose(&root, &m, "v1", &want, &err);
		image_root_deinit(&root);
	}
	manifest_deinit(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct image_config config;
	struct saved_image *images;
	size_t n;

	try_manifest(data, size);
	if (image_config_parse(&config, data, size, NULL) == 0)
		image_config_deinit(&config);
	if (saved_images_parse(&images, &n, data, size, NULL) == 0)
		saved_images_free(images, n);
	return 0;
}
