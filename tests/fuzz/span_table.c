/* SPDX-License-Identifier: Apache-2.0 */

/* A file of spans: whatever it holds, looking things up in it stays inside it. */

#include "blobstore/blobstore.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct span_table *t = NULL;
	struct span s;

	if (span_table_parse(&t, data, size, NULL) < 0)
		return 0;
	for (uint64_t off = 0; off < 64; off++) {
		size_t i = span_table_find(t, off * 977);
		if (span_table_get(t, i, &s) == 0 && s.plain_len > SPAN_PLAIN_MAX)
			abort();
	}
	for (size_t i = 0; i <= span_table_count(t) && i < 100; i++)
		span_table_get(t, i, &s);
	span_table_unref(t);
	return 0;
}
