/* SPDX-License-Identifier: Apache-2.0 */

/*
 * JSON byte for byte as Go's encoding/json writes it, because BuildKit's cache keys are digests of
 * such text, and one byte more is another key:
 *
 *  - no white space; members in the order in which the caller gives them;
 *  - in strings " and \ have a backslash, \b \f \n \r \t their short forms, other controls \u00xx;
 *    < > & are \u003c \u003e \u0026, U+2028 and U+2029 \u2028 and \u2029; each byte that is no part
 *    of valid UTF-8 is \ufffd; everything else, also / and DEL, stands for itself;
 *  - bytes are padded base64; keys of maps are sorted bytewise.
 *
 * Go leaves out what is empty where a struct says so. Here the caller says so: gojson_opt_* write a
 * member unless it is empty, gojson_member and a value write it in any case.
 *
 * A comma is needed unless a bracket has just been opened; no value ends with one, so the last byte
 * of the text tells.
 */

#include <stdio.h>

#include "solver/gojson.h"

static void comma(struct strbuf *s)
{
	char last = s->len ? s->data[s->len - 1] : '{';
	if (last != '{' && last != '[' && last != ':')
		strbuf_putc(s, ',');
}

void gojson_open(struct strbuf *s, char bracket)
{
	comma(s);
	strbuf_putc(s, bracket);
}

void gojson_close(struct strbuf *s, char bracket)
{
	strbuf_putc(s, bracket);
}

/* ------------------------------------------------------------------ values */

/* Length of the UTF-8 sequence at @p, at most @n bytes; 0 = there is none. NUL is one to Go. */
static size_t sequence_len(const char *p, size_t n)
{
	uint8_t lead = (uint8_t)*p;
	size_t len = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
	return len == 1 || (len && len <= n && utf8_valid(p, len)) ? len : 0;
}

/* The letter of a short escape; 0 = it has none. */
static char short_escape(uint8_t c)
{
	switch (c) {
	case '"':
	case '\\':
		return (char)c;
	case '\b':
		return 'b';
	case '\f':
		return 'f';
	case '\n':
		return 'n';
	case '\r':
		return 'r';
	case '\t':
		return 't';
	default:
		return 0;
	}
}

void gojson_text(struct strbuf *s, const char *text, size_t n)
{
	comma(s);
	strbuf_putc(s, '"');
	for (size_t i = 0, len; i < n; i += len ? len : 1) {
		uint8_t c = (uint8_t)text[i];
		len = sequence_len(text + i, n - i);
		if (len == 0)
			strbuf_puts(s, "\\ufffd");
		else if (short_escape(c))
			strbuf_add(s, (char[]){'\\', short_escape(c)}, 2);
		else if (c < 0x20 || c == '<' || c == '>' || c == '&')
			strbuf_printf(s, "\\u%04x", c);
		else if (len == 3 && (!memcmp(text + i, "\xe2\x80\xa8", 3) ||
				      !memcmp(text + i, "\xe2\x80\xa9", 3)))
			strbuf_puts(s, text[i + 2] == '\xa8' ? "\\u2028" : "\\u2029");
		else
			strbuf_add(s, text + i, len);
	}
	strbuf_putc(s, '"');
}

void gojson_i64(struct strbuf *s, int64_t value)
{
	comma(s);
	strbuf_printf(s, "%lld", (long long)value);
}

void gojson_null(struct strbuf *s)
{
	comma(s);
	strbuf_puts(s, "null");
}

void gojson_bytes(struct strbuf *s, const void *bytes, size_t n)
{
	static const char letters[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const uint8_t *p = bytes;
	comma(s);
	strbuf_putc(s, '"');
	for (size_t i = 0; i < n; i += 3) {
		size_t have = MIN(n - i, (size_t)3);
		uint32_t v = (uint32_t)p[i] << 16;
		v |= have > 1 ? (uint32_t)p[i + 1] << 8 : 0;
		v |= have > 2 ? p[i + 2] : 0;
		char four[4] = {letters[v >> 18], letters[v >> 12 & 63],
				have > 1 ? letters[v >> 6 & 63] : '=',
				have > 2 ? letters[v & 63] : '='};
		strbuf_add(s, four, 4);
	}
	strbuf_putc(s, '"');
}

/* ------------------------------------------------------------------ members */

void gojson_member(struct strbuf *s, const char *name)
{
	gojson_text(s, name, strlen(name));
	strbuf_putc(s, ':');
}

void gojson_member_text(struct strbuf *s, const char *name, const char *text)
{
	gojson_member(s, name);
	gojson_text(s, text, strlen(text));
}

void gojson_member_i64(struct strbuf *s, const char *name, int64_t value)
{
	gojson_member(s, name);
	gojson_i64(s, value);
}

void gojson_opt_text(struct strbuf *s, const char *name, const char *text)
{
	if (text && *text)
		gojson_member_text(s, name, text);
}

void gojson_opt_i64(struct strbuf *s, const char *name, int64_t value)
{
	if (value)
		gojson_member_i64(s, name, value);
}

void gojson_opt_bool(struct strbuf *s, const char *name, bool value)
{
	if (!value)
		return;
	gojson_member(s, name);
	strbuf_puts(s, "true");
}

void gojson_opt_bytes(struct strbuf *s, const char *name, const void *bytes, size_t n)
{
	if (n == 0)
		return;
	gojson_member(s, name);
	gojson_bytes(s, bytes, n);
}

void gojson_member_texts(struct strbuf *s, const char *name, char *const *texts, size_t n)
{
	gojson_member(s, name);
	gojson_open(s, '[');
	for (size_t i = 0; i < n; i++)
		gojson_text(s, texts[i], strlen(texts[i]));
	gojson_close(s, ']');
}

void gojson_opt_texts(struct strbuf *s, const char *name, char *const *texts, size_t n)
{
	if (n)
		gojson_member_texts(s, name, texts, n);
}
