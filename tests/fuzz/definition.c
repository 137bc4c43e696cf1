/* SPDX-License-Identifier: Apache-2.0 */

/* A definition: what is accepted is a graph whose vertices come after their inputs, have names, and
 * are found by their digests; a cache key, where there is one, is the digest of what is told. */

#include "solver/solver-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_vertex(struct graph *g, struct vertex *v)
{
	struct vertex *found;
	char text[DIGEST_TEXT_MAX];
	int index;

	if (!vertex_name(v) || !utf8_valid(vertex_name(v), strlen(vertex_name(v))))
		abort();
	if (graph_find(g, digest_text(vertex_digest(v), text), &found, NULL) < 0 || found != v)
		abort();
	for (size_t i = 0; i < vertex_inputs(v); i++) {
		vertex_input(v, i, &found, &index);
		if (found->position >= v->position || index < 0)
			abort();
	}
}

static void check_keys(struct vertex *v)
{
	static struct solver solver; /* asks nobody */
	struct vertex_keys keys;
	struct digest digest;

	if (vertex_keys(&keys, v, &solver, false, NULL) < 0)
		return;
	if (keys.n_maps == 0 || keys.n_maps > countof(keys.maps))
		abort();
	for (size_t i = 0; i < keys.n_ingredients; i++) {
		const struct cache_ingredient *what = &keys.ingredients[i];
		digest_bytes(&digest, what->bytes, what->n);
		if (!digest_equal(&digest, &what->digest))
			abort();
	}
	for (size_t i = 0; i < keys.n_inputs; i++)
		if ((keys.inputs[i].content == CONTENT_NONE) != (keys.inputs[i].n_selectors == 0))
			abort();
	vertex_keys_deinit(&keys);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct graph *g;
	struct vertex *result;
	struct err err;
	int index;

	if (graph_load(&g, data, size, &err) < 0)
		return 0;
	graph_result(g, &result, &index);
	if (!result || index < 0)
		abort();
	for (size_t i = 0; i < graph_count(g) && i < 100; i++) {
		check_vertex(g, graph_vertex(g, i));
		check_keys(graph_vertex(g, i));
	}
	graph_free(g);
	return 0;
}
