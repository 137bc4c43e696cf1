/* SPDX-License-Identifier: Apache-2.0 */

/* Texts of git. First line: an address, whose ref is looked for in the rest as a list of refs; the rest
 * is also what git wrote to stderr. */

#include "solver/git-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void find(const char *list, const char *ref)
{
	struct git_asked asked;

	if (git_refs_find(&asked, list, ref, NULL) < 0)
		return;
	if (!str_starts(asked.ref, "refs/") || !git_is_commit(asked.sha, strlen(asked.sha)) ||
	    (asked.commit && !git_is_commit(asked.commit, strlen(asked.commit))))
		abort();
	git_asked_deinit(&asked);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(free) char *text = strndup((const char *)data, size);
	struct git_url url;

	if (!text)
		return 0;
	char *list = strchr(text, '\n');
	if (!list)
		return 0;
	*list++ = '\0';
	scoped(free) char *reason = git_reason(list);
	if (!reason || strpbrk(reason, "\r\n") || git_errno(list) >= 0)
		abort();
	find(list, "");
	if (git_url_parse(&url, text, NULL) < 0)
		return 0;
	find(list, url.ref);
	scoped(free) char *host = git_host(url.remote);
	scoped(free) char *shown = git_redact(url.remote);
	if (!host || !shown || strlen(shown) > strlen(url.remote) || url.remote[0] == '-')
		abort();
	git_url_deinit(&url);
	return 0;
}
