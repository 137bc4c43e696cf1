/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes, written as a text and as base64: a JSON reader that is not ours reads the same bytes;
 * of what is no UTF-8, all that is UTF-8 in its order and U+FFFD for the rest. */

#include <jansson.h>

#include "solver/gojson.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REPLACED "\xef\xbf\xbd"

static json_t *read_back(const struct strbuf *s)
{
	if (s->failed || strpbrk(s->data, "<>&\n") || strlen(s->data) != s->len)
		abort();
	json_t *value = json_loadb(s->data, s->len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
	if (!value || !json_is_string(value))
		abort();
	return value;
}

/* Whether @text is @data, each run of bytes that it does not have told by U+FFFD. */
static bool is_mended(const char *text, size_t n, const uint8_t *data, size_t size)
{
	size_t at = 0;
	for (size_t i = 0; i < n;) {
		bool is_one = n - i >= 3 && memcmp(text + i, REPLACED, 3) == 0;
		bool had_one = size - at >= 3 && memcmp(data + at, REPLACED, 3) == 0;
		if (at == size || (!is_one && data[at] != (uint8_t)text[i]))
			return false;
		at += is_one && had_one ? 3 : 1; /* Go puts one for each byte */
		i += is_one ? 3 : 1;
	}
	return at == size;
}

static void check_text(const uint8_t *data, size_t size)
{
	scoped(strbuf_free) struct strbuf once = {0}, twice = {0};
	gojson_text(&once, (const char *)data, size);
	json_t *value = read_back(&once);
	const char *text = json_string_value(value);
	size_t n = json_string_length(value);
	json_t *valid = json_stringn((const char *)data, size);
	if (valid && (n != size || memcmp(text, data, n) != 0))
		abort();
	if (!valid && !is_mended(text, n, data, size))
		abort();
	gojson_text(&twice, text, n);
	if (!valid && once.len < twice.len)
		abort();
	json_t *again = read_back(&twice);
	if (!json_equal(value, again))
		abort();
	json_decref(value);
	json_decref(valid);
	json_decref(again);
}

static void check_bytes(const uint8_t *data, size_t size)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	scoped(strbuf_free) struct strbuf s = {0};
	gojson_bytes(&s, data, size);
	json_t *value = read_back(&s);
	const char *text = json_string_value(value);
	if (json_string_length(value) != (size + 2) / 3 * 4)
		abort();
	for (size_t i = 0; i < (size + 2) / 3 * 4; i++) {
		const char *digit = text[i] == '=' ? digits : strchr(digits, text[i]);
		size_t bit = i * 6, byte = bit / 8;
		if (!digit)
			abort();
		/* six bits that lie in two bytes at most; what is behind the end is 0 */
		unsigned two = byte < size ? (unsigned)data[byte] << 8 : 0;
		two |= byte + 1 < size ? data[byte + 1] : 0;
		if ((two >> (10 - bit % 8) & 63) != (unsigned)(digit - digits))
			abort();
	}
	json_decref(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	check_text(data, size);
	check_bytes(data, size);
	return 0;
}
