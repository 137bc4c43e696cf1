/* SPDX-License-Identifier: Apache-2.0 */

/*
 * JSON out, a little: rows are many and simple, and names are bytes that a JSON library refuses.
 * A key adds a comma unless it stands right after a brace.
 */

#include "tools/tools.h"

/* Length of the UTF-8 sequence at @p, at most @n bytes; 0 = there is none. */
static size_t utf8_len(const char *p, size_t n)
{
	uint8_t lead = (uint8_t)*p;
	size_t len = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;

	return len && len <= n && lead && utf8_valid(p, len) ? len : 0;
}

void json_text(struct strbuf *s, const char *bytes, size_t len)
{
	strbuf_putc(s, '"');
	for (size_t i = 0; i < len;) {
		uint8_t c = (uint8_t)bytes[i];
		size_t n = utf8_len(bytes + i, len - i);

		if (c == '"' || c == '\\')
			strbuf_printf(s, "\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			strbuf_printf(s, "\\u%04x", c);
		else if (n == 0)
			strbuf_printf(s, "\\udc%02x", c);
		else
			strbuf_add(s, bytes + i, n);
		i += n ? n : 1;
	}
	strbuf_putc(s, '"');
}

void json_key(struct strbuf *s, const char *key)
{
	if (s->len && s->data[s->len - 1] != '{')
		strbuf_putc(s, ',');
	json_text(s, key, strlen(key));
	strbuf_putc(s, ':');
}

void json_pair(struct strbuf *s, const char *key, const char *text)
{
	json_key(s, key);
	if (text)
		json_text(s, text, strlen(text));
	else
		strbuf_puts(s, "null");
}

void json_u64(struct strbuf *s, const char *key, uint64_t value)
{
	json_key(s, key);
	strbuf_printf(s, "%llu", (unsigned long long)value);
}

void json_i64(struct strbuf *s, const char *key, int64_t value)
{
	json_key(s, key);
	strbuf_printf(s, "%lld", (long long)value);
}

void json_bool(struct strbuf *s, const char *key, bool value)
{
	json_key(s, key);
	strbuf_puts(s, value ? "true" : "false");
}

void json_time(struct strbuf *s, const char *key, const struct timespec *t)
{
	struct tm tm;
	char text[40];

	gmtime_r(&t->tv_sec, &tm);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	json_key(s, key);
	strbuf_printf(s, "\"%s.%09ldZ\"", text, t->tv_nsec);
}

void json_base64(struct strbuf *s, const char *key, const void *bytes, size_t n)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const uint8_t *b = bytes;

	json_key(s, key);
	strbuf_putc(s, '"');
	for (size_t i = 0; i < n; i += 3) {
		size_t have = MIN(n - i, (size_t)3);
		uint32_t v = (uint32_t)b[i] << 16 | (have > 1 ? (uint32_t)b[i + 1] << 8 : 0) |
			     (have > 2 ? b[i + 2] : 0);

		strbuf_putc(s, alphabet[v >> 18]);
		strbuf_putc(s, alphabet[v >> 12 & 63]);
		strbuf_putc(s, have > 1 ? alphabet[v >> 6 & 63] : '=');
		strbuf_putc(s, have > 2 ? alphabet[v & 63] : '=');
	}
	strbuf_putc(s, '"');
}
