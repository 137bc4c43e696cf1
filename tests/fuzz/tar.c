/* SPDX-License-Identifier: Apache-2.0 */

/* A layer's tar: read in small steps, made into an index, and that asked for everything. */

#include <assert.h>

#include "tests/fuzz/index-ask.h"

struct feed {
	const uint8_t *data;
	size_t size;
};

static int feed_next(void *arg, const void **bytes, size_t *n, struct err *err)
{
	struct feed *f = arg;

	*bytes = f->data;
	*n = MIN(f->size, (size_t)1500);
	f->data += *n;
	f->size -= *n;
	return *n > 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct feed feed = {data, size};
	scoped(index_builder_free) struct index_builder *b = index_builder_new(false);
	const struct index_about about = {.format = LAYER_TAR};
	struct err err = {0};
	const void *content;
	void *made;
	size_t n;

	log_max = LOG_ERROR;
	if (tar_find(data, size, "stargz.index.json", &content, &n, &err) == 0)
		assert((const uint8_t *)content + n <= data + size);
	if (tar_index(b, feed_next, &feed, &err) < 0) {
		assert(err.code < 0 && *err.text);
		return 0;
	}
	assert(feed.size == 0);
	if (index_builder_finish(b, &about, true, &made, &n, &err) == 0) {
		index_ask(made, n, true);
		free(made);
	}
	return 0;
}
