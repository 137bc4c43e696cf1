/* SPDX-License-Identifier: Apache-2.0 */

/* WWW-Authenticate, and what a token service answers. */

#include "blobstore/net-internal.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct challenge c;
	char *token;
	uint64_t seconds;

	if (challenge_parse(&c, (const char *)data, size) == 0) {
		assert(c.is_basic || c.is_bearer);
		assert(!c.is_bearer || c.realm);
		challenge_deinit(&c);
	}
	if (token_parse((const char *)data, size, &token, &seconds) == 0) {
		assert(*token && seconds && !strpbrk(token, "\r\n"));
		free(token);
	}
	return 0;
}
