/* SPDX-License-Identifier: Apache-2.0 */

/* Texts that name something: an image name that is accepted reads back as itself; REFs and
 * platforms are taken or refused. */

#include "solver/solver-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_name(const char *text)
{
	struct image_name name, again;

	if (image_name_parse(&name, text, NULL) < 0)
		return;
	scoped(free) char *first = image_name_text(&name);
	if (!first || image_name_parse(&again, first, NULL) < 0)
		abort();
	scoped(free) char *second = image_name_text(&again);
	if (!second || strcmp(first, second) != 0)
		abort();
	image_name_deinit(&name);
	image_name_deinit(&again);
}

static void try_platform(const char *text)
{
	struct platform p, again;
	char first[100], second[100];

	if (platform_parse(&p, text, NULL) < 0)
		return;
	if (platform_parse(&again, platform_text(&p, first), NULL) < 0 ||
	    strcmp(first, platform_text(&again, second)) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(free) char *text = strndup((const char *)data, size);
	struct ref_text t;

	if (!text)
		return 0;
	try_name(text);
	try_platform(text);
	if (ref_text_parse(&t, text, NULL) == 0) {
		if (!t.name)
			abort();
		ref_text_deinit(&t);
	}
	return 0;
}
