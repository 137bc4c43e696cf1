/* SPDX-License-Identifier: Apache-2.0 */

/* What registries say of uploads (Location, Range), and an index.json that others wrote. */

#include "blobstore/net-internal.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_location(const char *text)
{
	struct digest digest = {{1}};
	char *url = NULL;

	if (url_resolve("https://h.example/v2/a/blobs/uploads/?x=1", text, &url) < 0)
		return;
	scoped(free) char *whole = upload_finish_url(url, &digest);
	assert(str_starts(url, "http:") || str_starts(url, "https:"));
	assert(whole && str_starts(whole, url) && strstr(whole, "digest=sha256:01"));
	assert(!strpbrk(url, "\r\n#"));
	free(url);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(free) char *text = strndup((const char *)data, size);
	scoped(strbuf_free) struct strbuf out = {0}, again = {0};
	struct desc desc = {.size = 5, .media_type = (char *)"application/x"};
	uint64_t n;

	if (!text)
		return 0;
	try_location(text);
	if (upload_range_parse(text, &n))
		assert(n <= INT64_MAX && strchr(text, '-'));
	/* What has been put stays the same when it is put again. */
	if (layout_index_put((const char *)data, size, &desc, "tag", &out, NULL) == 0) {
		assert(!layout_index_put(out.data, out.len, &desc, "tag", &again, NULL));
		assert(out.len == again.len && !memcmp(out.data, again.data, out.len));
	}
	return 0;
}
