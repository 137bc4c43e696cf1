/* SPDX-License-Identifier: Apache-2.0 */

/* A Content-Disposition, or a URL, as a name for a file; a date, which reads back as itself. */

#include "solver/solver-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_name(const char *said, const char *disposition, const char *url)
{
	scoped(free) char *name = httptext_filename(said, disposition, url);

	if (!name || !*name || !strcmp(name, ".") || !strcmp(name, ".."))
		abort();
	for (const char *p = name; *p; p++)
		if ((uint8_t)*p < 0x20 || *p == 0x7f || *p == '/')
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(free) char *text = strndup((const char *)data, size);
	char date[HTTPTEXT_DATE_MAX];
	int64_t t, again;

	if (!text)
		return 0;
	try_name(text, NULL, "http://h/u");
	try_name(NULL, text, "http://h/u");
	try_name(NULL, NULL, text);
	if (httptext_date(&t, text) == 0 &&
	    (httptext_date(&again, httptext_date_text(t, date)) < 0 || again != t))
		abort();
	return 0;
}
