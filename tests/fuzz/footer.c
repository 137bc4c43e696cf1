/* SPDX-License-Identifier: Apache-2.0 */

/* The last bytes of a blob: a footer's claim must lie inside it. */

#include <assert.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t off = 0;

	for (uint64_t blob_size = size; blob_size <= size + 100000; blob_size += 50000) {
		enum toc_kind kind = toc_footer(data, size, blob_size, &off);
		if (kind == TOC_ESTARGZ || kind == TOC_LEGACY)
			assert(off < blob_size);
	}
	return 0;
}
