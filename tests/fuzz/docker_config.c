/* SPDX-License-Identifier: Apache-2.0 */

/* Docker's config.json, containers' auth.json, and what a credential helper prints. */

#include "blobstore/net-internal.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	struct credentials c;

	if (credentials_find(&c, text, size, "docker.io", "library/app", NULL) == 1) {
		assert(c.secret || c.helper);
		assert(!c.helper || !strchr(c.helper, '/'));
	}
	credentials_deinit(&c);
	if (credentials_find(&c, text, size, "h:5000", "team/app", NULL) == 1)
		assert(c.secret || c.helper);
	credentials_deinit(&c);
	if (credentials_helper_answer(&c, text, size) == 1)
		assert(c.user && c.secret);
	credentials_deinit(&c);
	return 0;
}
