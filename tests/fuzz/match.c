/* SPDX-License-Identifier: Apache-2.0 */

/* Patterns, a line each, and in the last line a path: a wildcard and a list either make no sense or
 * decide the same each time; what a list says does not change when an empty pattern is added. */

#include "merge/merge.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int ask(const char *const *texts, size_t n, const char *path)
{
	scoped(match_patterns_free) struct match_patterns *set = NULL;
	bool top[8], matched[8];
	int r = match_patterns_new(&set, texts, n, NULL);

	if (r < 0)
		return r;
	if (match_patterns_count(set) > n || match_patterns(set, "a", NULL, top) < 0)
		abort();
	r = match_patterns(set, path, NULL, matched);
	if (match_patterns(set, path, top, matched) < 0)
		abort();
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(free) char *text = strndup((const char *)data, size < 4096 ? size : 4096);
	const char *texts[8];
	size_t n = 0;

	if (!text)
		return 0;
	char *path = strrchr(text, '\n');
	if (!path)
		return 0;
	*path++ = '\0';
	for (char *save, *s = strtok_r(text, "\n", &save); s && n < 7;
	     s = strtok_r(NULL, "\n", &save))
		texts[n++] = s;
	if (n == 0)
		return 0;
	int r = match_wildcard(texts[0], path);
	if ((r < 0) != (match_wildcard(texts[0], "") < 0))
		abort();
	r = ask(texts, n, path);
	texts[n] = " ";
	if (ask(texts, n + 1, path) != r)
		abort();
	return 0;
}
