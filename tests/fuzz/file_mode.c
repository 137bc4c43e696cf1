/* SPDX-License-Identifier: Apache-2.0 */

/* A mode as chmod takes it, after two bytes of the mode it is for: what comes out is a mode, the same
 * for a number whatever it is for; clauses go on from each other; a comma at an end is refused. */

#include "solver/file-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int ask(const char *text, bool is_dir, uint32_t mode, uint32_t *out)
{
	*out = mode;
	int r = file_mode(text, is_dir, mode, out);
	if (r != 0 && r != -EINVAL)
		abort();
	if (r == 0 && *out > 07777)
		abort();
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	uint32_t mode = (data[0] | (uint32_t)data[1] << 8) & 07777, once, both, other;
	bool is_dir = data[1] & 0x80;
	scoped(free) char *text = strndup((const char *)data + 2, MIN(size - 2, (size_t)4096));
	scoped(free) char *comma = text ? str_printf("%s,", text) : NULL;
	scoped(free) char *twice = text ? str_printf("%s,%s", text, text) : NULL;
	if (!comma || !twice)
		return 0;
	int r = ask(text, is_dir, mode, &once);
	if (ask(comma, is_dir, mode, &both) == 0)
		abort();
	if (strspn(text, "01234567") == strlen(text)) {
		if (ask(text, !is_dir, ~mode & 07777, &other) != r || (r == 0 && other != once))
			abort();
	} else if (ask(twice, is_dir, mode, &both) != r) {
		abort();
	} else if (r == 0 && !strchr(text, 'X')) {
		/* X looks back at the first mode, all else only at what is so far. */
		if (ask(text, is_dir, once, &other) < 0 || other != both)
			abort();
	}
	return 0;
}
