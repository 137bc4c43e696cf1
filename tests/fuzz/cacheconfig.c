/* SPDX-License-Identifier: Apache-2.0 */

/* Build caches: cacheconfig documents, and configs of images that carry records. What is accepted is
 * sound, and as a cache it answers for each of its records. */

#include "solver/cache-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool is_so)
{
	if (!is_so)
		abort();
}

static void check_record(const struct cacheconfig *config, const struct cacheconfig_record *record)
{
	for (size_t i = 0; i < record->n_links; i++)
		check(record->links[i].from < config->n_records &&
		      record->links[i].input < record->n_inputs);
	for (size_t i = 0; i < record->n_results; i++) {
		const struct cacheconfig_result *result = &record->results[i];
		check(result->top < (ssize_t)config->n_layers);
		for (size_t k = 0; k < result->n_chain; k++)
			check(result->chain[k] < config->n_layers);
	}
}

/* Every record is found: as a root, or at the end of each of its links. */
static void ask(struct cache *cache, const struct cacheconfig *config)
{
	for (size_t i = 0; i < config->n_records && i < 50; i++) {
		const struct cacheconfig_record *record = &config->records[i];
		struct cache_keys keys = {0};
		struct cache_result result;
		struct ref *ref;
		check(cache->ops->knows(cache, &record->digest, NULL) == 1);
		if (record->n_inputs == 0) {
			cache->ops->root(cache, &record->digest, &keys, NULL);
			check(keys.n == 1);
		}
		for (size_t k = 0; k < record->n_links && k < 50; k++) {
			const struct cacheconfig_link *link = &record->links[k];
			cache->ops->links(cache, (int64_t)link->from, link->input, &record->digest,
					  link->has_selector ? &link->selector : NULL, &keys, NULL);
		}
		for (size_t k = 0; k < keys.n; k++)
			if (cache->ops->result(cache, keys.items[k], NULL, 0, &result, NULL) == 1) {
				check(cache->ops->load(cache, NULL, &result, &ref, NULL) == 0);
				ref_unref(ref);
			}
		cache_keys_deinit(&keys);
	}
}

static void try_cache(const struct cacheconfig *config)
{
	const struct origin origin = {0};
	struct cache *cache;
	struct desc *descs = calloc(config->n_layers + 1, sizeof(*descs));
	struct digest *diff_ids = calloc(config->n_layers + 1, sizeof(*diff_ids));
	check(descs && diff_ids);
	for (size_t i = 0; i < config->n_layers; i++) {
		descs[i].digest = config->layers[i].blob;
		descs[i].media_type = (char *)"application/vnd.oci.image.layer.v1.tar";
	}
	check(cache_import_new(&cache, "fuzz", &origin, NULL) == 0);
	check(cache_import_add(cache, config, descs, diff_ids, config->n_layers, NULL) == 0);
	check(cache_import_done(cache, NULL) == 0);
	ask(cache, config);
	cache->ops->free(cache);
	free(descs);
	free(diff_ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cacheconfig config;
	const struct desc layers[3] = {0};

	if (cacheconfig_parse_image(&config, data, size, layers, 3, NULL) == 0) {
		for (size_t i = 0; i < config.n_records; i++)
			check_record(&config, &config.records[i]);
		cacheconfig_deinit(&config);
	}
	if (cacheconfig_parse(&config, data, size, NULL) < 0)
		return 0;
	for (size_t i = 0; i < config.n_records; i++)
		check_record(&config, &config.records[i]);
	try_cache(&config);
	cacheconfig_deinit(&config);
	return 0;
}
