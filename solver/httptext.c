/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Texts of HTTP that become part of a result: the name of a download and its time. Pure.
 *
 * A download is called what the definition says, else what the server says (Content-Disposition),
 * else as its URL ends; a name that could not be that of a file here is "download". Headers are
 * read as Go reads them, since names and times are parts of cache keys: a parameter that makes no
 * sense spoils the whole header, filename* (RFC 2231, in UTF-8 or ASCII) wins over filename, and a
 * backslash in quotes means itself unless a special character follows, as some write Windows paths.
 * A filename in numbered pieces (filename*0) is taken for none.
 */

#include <stdio.h>
#include <strings.h>
#include <time.h>

#include "blobstore/base.h"
#include "solver/solver-internal.h"

static int hex_value(char c)
{
	const char *digits = "0123456789abcdef";
	char lower = c >= 'A' && c <= 'F' ? (char)(c - 'A' + 'a') : c;
	const char *at = c ? strchr(digits, lower) : NULL;
	return at ? (int)(at - digits) : -1;
}

/* Decodes %xx. False when something else follows a %. */
static bool decode_percent(struct strbuf *out, const char *text, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (text[i] != '%') {
			strbuf_putc(out, text[i]);
			continue;
		}
		int hi = i + 2 < n ? hex_value(text[i + 1]) : -1;
		int lo = i + 2 < n ? hex_value(text[i + 2]) : -1;
		if (hi < 0 || lo < 0)
			return false;
		strbuf_putc(out, (char)(hi << 4 | lo));
		i += 2;
	}
	return true;
}

/* ------------------------------------------------------------------ Content-Disposition */

static bool is_special(char c)
{
	return strchr("()<>@,;:\\\"/[]?=", c) != NULL;
}

static size_t token_len(const char *p)
{
	size_t n = 0;
	while ((uint8_t)p[n] > ' ' && (uint8_t)p[n] < 0x7f && !is_special(p[n]))
		n++;
	return n;
}

static const char *skip_space(const char *p)
{
	return p + strspn(p, " \t");
}

/* The inside of quotes, from after the first to after the last. NULL: they are not closed. */
static const char *read_quoted(const char *p, struct strbuf *out)
{
	for (; *p && *p != '"'; p++) {
		if (*p == '\\' && p[1] && is_special(p[1]))
			p++;
		strbuf_putc(out, *p);
	}
	return *p ? p + 1 : NULL;
}

/* One "; name=value" of a header. NULL: it makes no sense. */
static const char *read_parameter(const char *p, const char **name, size_t *n, struct strbuf *value)
{
	p = skip_space(p + 1);
	*name = p;
	*n = token_len(p);
	p = skip_space(p + *n);
	if (*n == 0 || *p != '=')
		return NULL;
	p = skip_space(p + 1);
	strbuf_clear(value);
	if (*p == '"')
		return read_quoted(p + 1, value);
	size_t len = token_len(p);
	strbuf_add(value, p, len);
	return len ? p + len : NULL;
}

/* Of "utf-8'en'na%20me" the name. False when it is another charset. */
static bool decode_extended(struct strbuf *out, const char *value)
{
	size_t n = strcspn(value, "'");
	const char *language = value[n] ? value + n + 1 : "";
	const char *end = strchr(language, '\'');
	bool is_known = (n == 5 && strncasecmp(value, "utf-8", n) == 0) ||
			(n == 8 && strncasecmp(value, "us-ascii", n) == 0);
	return end && is_known && decode_percent(out, end + 1, strlen(end + 1));
}

/* What the header says; nothing when it says nothing, or makes no sense. */
static void read_disposition(const char *header, struct strbuf *out)
{
	scoped(strbuf_free) struct strbuf value = {0}, plain = {0}, extended = {0};
	const char *p = skip_space(header), *name;
	size_t n = token_len(p);
	bool has_plain = false, has_extended = false;
	if (n == 0)
		return;
	for (p = skip_space(p + n); *p == ';' && *skip_space(p + 1); p = skip_space(p)) {
		p = read_parameter(p, &name, &n, &value);
		if (!p)
			return;
		const char *text = value.data ? value.data : "";
		bool is_plain = n == 8 && strncasecmp(name, "filename", n) == 0;
		bool is_extended = n == 9 && strncasecmp(name, "filename*", n) == 0;
		if ((is_plain && has_plain) || (is_extended && has_extended))
			return; /* twice */
		if (is_plain)
			strbuf_puts(&plain, text);
		has_plain |= is_plain;
		if (is_extended)
			has_extended = decode_extended(&extended, text);
	}
	if (*p && *p != ';')
		return;
	const struct strbuf *said = has_extended ? &extended : &plain;
	if (said->len && !memchr(said->data, 0, said->len) && said->data[said->len - 1] != '/')
		strbuf_add(out, said->data, said->len);
}

/* ------------------------------------------------------------------ the name */

static bool is_name(const char *base)
{
	for (const char *p = base; *p; p++)
		if ((uint8_t)*p < 0x20 || *p == 0x7f)
			return false;
	return *base && strcmp(base, ".") != 0 && strcmp(base, "..") != 0;
}

char *httptext_filename(const char *said, const char *disposition, const char *url)
{
	const char *scheme = strstr(url, "://");
	const char *host = scheme ? scheme + 3 : url;
	const char *path = host + strcspn(host, "/?#");
	scoped(strbuf_free) struct strbuf name = {0};
	bool is_sound = true;
	if (said && *said)
		strbuf_puts(&name, said);
	else if (disposition)
		read_disposition(disposition, &name);
	if (name.len == 0)
		is_sound = decode_percent(&name, path, strcspn(path, "?#"));
	if (name.failed)
		return NULL;
	if (name.len && memchr(name.data, 0, name.len))
		is_sound = false;
	while (name.len > 0 && name.data[name.len - 1] == '/')
		name.data[--name.len] = 0;
	const char *slash = name.len ? strrchr(name.data, '/') : NULL;
	const char *base = slash ? slash + 1 : name.len ? name.data : "";
	return strdup(is_sound && is_name(base) ? base : "download");
}

/* ------------------------------------------------------------------ dates */

static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
				     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

/* The three forms that there are; the name of the day tells nothing. The format must be a literal. */
static bool split_date(const char *text, char month[4], struct tm *tm)
{
	int n = 0;
	if (sscanf(text, "%*3[A-Za-z], %2d %3[A-Za-z] %4d %2d:%2d:%2d GMT%n", &tm->tm_mday, month,
		   &tm->tm_year, &tm->tm_hour, &tm->tm_min, &tm->tm_sec, &n) == 6 &&
	    n && !text[n])
		return true;
	n = 0;
	if (sscanf(text, "%*9[A-Za-z], %2d-%3[A-Za-z]-%2d %2d:%2d:%2d GMT%n", &tm->tm_mday, month,
		   &tm->tm_year, &tm->tm_hour, &tm->tm_min, &tm->tm_sec, &n) == 6 &&
	    n && !text[n]) {
		tm->tm_year += tm->tm_year >= 69 ? 1900 : 2000;
		return true;
	}
	n = 0;
	return sscanf(text, "%*3[A-Za-z] %3[A-Za-z] %2d %2d:%2d:%2d %4d%n", month, &tm->tm_mday,
		      &tm->tm_hour, &tm->tm_min, &tm->tm_sec, &tm->tm_year, &n) == 6 &&
	       n && !text[n];
}

int httptext_date(int64_t *out, const char *text)
{
	struct tm tm = {0}, back;
	char month[4] = "";
	if (!split_date(text, month, &tm))
		return -EINVAL;
	for (tm.tm_mon = 0; tm.tm_mon < 12 && strcmp(months[tm.tm_mon], month) != 0;)
		tm.tm_mon++;
	if (tm.tm_mon == 12 || tm.tm_year < 0)
		return -EINVAL;
	tm.tm_year -= 1900;
	struct tm same = tm;
	time_t t = timegm(&same);
	/* No 31st of June, no hour 25. */
	if (!gmtime_r(&t, &back) || back.tm_mday != tm.tm_mday || back.tm_mon != tm.tm_mon ||
	    back.tm_hour != tm.tm_hour || back.tm_min != tm.tm_min || back.tm_sec != tm.tm_sec)
		return -EINVAL;
	*out = t;
	return 0;
}

char *httptext_date_text(int64_t t, char buf[HTTPTEXT_DATE_MAX])
{
	static const char *const days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
	struct tm tm = {0};
	time_t time = (time_t)t;
	gmtime_r(&time, &tm);
	snprintf(buf, HTTPTEXT_DATE_MAX, "%s, %02d %s %04d %02d:%02d:%02d GMT", days[tm.tm_wday],
		 tm.tm_mday, months[tm.tm_mon], tm.tm_year + 1900, tm.tm_hour, tm.tm_min,
		 tm.tm_sec);
	return buf;
}
