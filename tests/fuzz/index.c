/* SPDX-License-Identifier: Apache-2.0 */

/* A layer's index as it may lie damaged in the store. The header's seal is put right, so that what
 * lies behind it is reached. */

#include "tests/fuzz/index-ask.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(free) uint8_t *copy = malloc(MAX(size, sizeof(struct index_header)));

	if (!copy)
		return 0;
	memcpy(copy, data, size);
	index_ask(copy, size, false);
	if (size >= sizeof(struct index_header)) {
		struct index_header h;
		memcpy(&h, copy, sizeof(h));
		h.file_size = size;
		index_header_seal(&h);
		memcpy(copy, &h, sizeof(h));
		index_ask(copy, size, false);
	}
	return 0;
}
