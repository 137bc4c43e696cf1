/* SPDX-License-Identifier: Apache-2.0 */

/* A table of contents: what it gives, if it gives anything, is a sound index. */

#include <assert.h>

#include "tests/fuzz/index-ask.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(index_builder_free) struct index_builder *b = index_builder_new(true);
	scoped(span_builder_free) struct span_builder *spans = span_builder_new();
	const struct index_about about = {.format = LAYER_ESTARGZ};
	struct err err = {0};
	uint64_t prefetch;
	void *made;
	size_t n;

	log_max = LOG_ERROR;
	if (toc_json(b, spans, (const char *)data, size, 1000000, &prefetch, &err) < 0 ||
	    index_builder_finish(b, &about, true, &made, &n, &err) < 0) {
		assert(err.code < 0 && *err.text);
		return 0;
	}
	index_ask(made, n, true);
	free(made);
	return 0;
}
