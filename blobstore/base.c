/* SPDX-License-Identifier: Apache-2.0 */

/*
 * base: error texts, log lines, strings, vectors, whole reads and writes, time.
 * Everything here is small and knows nothing of the program around it.
 */

#include "blobstore/base.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------ errors */

/* Names that others chose are in it: no newlines, and nothing that a terminal obeys. */
static void make_one_line(char *text)
{
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = ' ';
}

__attribute__((format(printf, 3, 0))) static void err_vset(struct err *err, int code,
							   const char *fmt, va_list ap)
{
	if (!err)
		return;
	err->code = code;
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	make_one_line(err->text);
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	err_vset(err, code, fmt, ap);
	va_end(ap);
	return code;
}

int err_wrap(struct err *err, int code, const char *fmt, ...)
{
	if (!err)
		return code;

	char before[sizeof(err->text)];
	char after[sizeof(err->text)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(before, sizeof(before), fmt, ap);
	va_end(ap);
	snprintf(after, sizeof(after), "%s", err_text(err, code));
	/* The cause is worth more than where it happened: it is the front that gets cut. */
	size_t room = sizeof(err->text) - 3;
	size_t n_after = strnlen(after, room);
	if (n_after == room)
		return err->code = code;
	int n_before = (int)MIN(strlen(before), room - n_after);
	snprintf(err->text, sizeof(err->text), "%.*s: %.*s", n_before, before, (int)n_after, after);
	make_one_line(err->text);
	err->code = code;
	return code;
}

int err_errno(struct err *err, const char *fmt, ...)
{
	int code = -errno;
	char what[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	return err_set(err, code, "%s: %s", what, strerror(-code));
}

const char *err_text(const struct err *err, int code)
{
	if (err && err->code && err->text[0])
		return err->text;
	return strerror(code < 0 ? -code : code);
}

void close_fd(int fd)
{
	int saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
}

/* ------------------------------------------------------------------ log lines */

enum log_level log_max = LOG_WARN;

void log_line(enum log_level level, const char *where, const char *fmt, ...)
{
	static const char *const names[] = {"error", "warn", "info", "debug"};
	char line[1024];
	va_list ap;

	if (level > log_max)
		return;
	while (str_starts(where, "../"))
		where += 3;
	int n = snprintf(line, sizeof(line), "llbfs: %s %.*s: ", names[level],
			 (int)strcspn(where, "."), where);
	va_start(ap, fmt);
	vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	size_t len = strlen(line);
	line[len] = '\n';
	/* One write, so that lines of several threads and processes do not mix. */
	(void)!write(STDERR_FILENO, line, len + 1);
}

/* ------------------------------------------------------------------ strings */

static bool strbuf_room(struct strbuf *s, size_t n)
{
	if (s->failed)
		return false;
	if (n >= SIZE_MAX / 2 - s->len) {
		s->failed = true;
		return false;
	}
	size_t want = s->len + n + 1;
	if (want <= s->cap)
		return true;
	size_t cap = MAX(s->cap * 2, (size_t)64);
	cap = MAX(cap, want);
	char *data = realloc(s->data, cap);
	if (!data) {
		s->failed = true;
		return false;
	}
	s->data = data;
	s->cap = cap;
	return true;
}

void strbuf_add(struct strbuf *s, const void *bytes, size_t n)
{
	if (!strbuf_room(s, n))
		return;
	if (n)
		memcpy(s->data + s->len, bytes, n);
	s->len += n;
	s->data[s->len] = '\0';
}

void strbuf_puts(struct strbuf *s, const char *text)
{
	strbuf_add(s, text, strlen(text));
}

void strbuf_putc(struct strbuf *s, char c)
{
	strbuf_add(s, &c, 1);
}

void strbuf_printf(struct strbuf *s, const char *fmt, ...)
{
	va_list ap, again;

	va_start(ap, fmt);
	va_copy(again, ap);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0)
		s->failed = true;
	else if (strbuf_room(s, (size_t)n)) {
		vsnprintf(s->data + s->len, (size_t)n + 1, fmt, again);
		s->len += (size_t)n;
	}
	va_end(again);
}

void strbuf_clear(struct strbuf *s)
{
	s->len = 0;
	s->failed = false;
	if (s->data)
		s->data[0] = '\0';
}

void strbuf_free(struct strbuf *s)
{
	free(s->data);
	*s = (struct strbuf){0};
}

char *strbuf_finish(struct strbuf *s)
{
	char *text = NULL;

	if (strbuf_room(s, 0) && !s->failed) {
		s->data[s->len] = '\0';
		text = take(s->data);
	}
	strbuf_free(s);
	return text;
}

char *str_printf(const char *fmt, ...)
{
	va_list ap;
	char *text = NULL;

	va_start(ap, fmt);
	int n = vasprintf(&text, fmt, ap);
	va_end(ap);
	return n < 0 ? NULL : text;
}

bool str_starts(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_ends(const char *s, const char *suffix)
{
	size_t n = strlen(s), k = strlen(suffix);

	return n >= k && memcmp(s + n - k, suffix, k) == 0;
}

char *path_clean(const char *path, size_t len)
{
	char *out = malloc(len + 2);
	size_t n = 0;

	if (!out)
		return NULL;
	for (size_t i = 0; i < len;) {
		if (path[i] == '/') {
			i++;
			continue;
		}
		size_t end = i;
		while (end < len && path[end] != '/')
			end++;
		size_t part = end - i;
		if (part == 2 && path[i] == '.' && path[i + 1] == '.') {
			while (n && out[--n] != '/')
				;
		} else if (part != 1 || path[i] != '.') {
			out[n++] = '/';
			memcpy(out + n, path + i, part);
			n += part;
		}
		i = end;
	}
	if (!n)
		out[n++] = '/';
	out[n] = '\0';
	return out;
}

static int base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int base64_decode(const char *text, size_t len, uint8_t **out, size_t *out_len)
{
	size_t n_pad = 0;
	while (len && text[len - 1] == '=' && n_pad < 2) {
		len--;
		n_pad++;
	}
	if (len % 4 == 1 || (n_pad && (len + n_pad) % 4))
		return -EBADMSG;

	scoped(free) uint8_t *bytes = malloc(len / 4 * 3 + 3);
	if (!bytes)
		return -ENOMEM;
	size_t n = 0;
	uint32_t acc = 0;
	for (size_t i = 0; i < len; i++) {
		int v = base64_value(text[i]);
		if (v < 0)
			return -EBADMSG;
		acc = acc << 6 | (uint32_t)v;
		if (i % 4 == 1)
			bytes[n++] = (uint8_t)(acc >> 4);
		else if (i % 4 == 2)
			bytes[n++] = (uint8_t)(acc >> 2);
		else if (i % 4 == 3)
			bytes[n++] = (uint8_t)acc;
	}
	bytes[n] = 0;
	*out = take(bytes);
	*out_len = n;
	return 0;
}

bool utf8_valid(const char *text, size_t len)
{
	const uint8_t *p = (const uint8_t *)text, *end = p + len;

	while (p < end) {
		uint8_t c = *p++;
		if (c == 0)
			return false;
		if (c < 0x80)
			continue;
		int n = c >= 0xf0 && c <= 0xf4	? 3
			: c >= 0xe0 && c < 0xf0 ? 2
			: c >= 0xc2 && c < 0xe0 ? 1
						: 0;
		if (!n || end - p < n)
			return false;
		if ((c == 0xe0 && p[0] < 0xa0) || (c == 0xed && p[0] > 0x9f) ||
		    (c == 0xf0 && p[0] < 0x90) || (c == 0xf4 && p[0] > 0x8f))
			return false;
		for (; n; n--)
			if ((*p++ & 0xc0) != 0x80)
				return false;
	}
	return true;
}

int parse_u64(const char *text, uint64_t *out)
{
	uint64_t v = 0;

	if (!*text)
		return -EINVAL;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return -EINVAL;
		if (__builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*text - '0'), &v))
			return -ERANGE;
	}
	*out = v;
	return 0;
}

/* A decimal number with an optional fraction, and what follows it. */
static int parse_number(const char *text, double *out, const char **rest)
{
	char *end;

	if (!(*text >= '0' && *text <= '9'))
		return -EINVAL;
	errno = 0;
	*out = strtod(text, &end);
	*rest = end;
	return errno ? -EINVAL : 0;
}

int parse_duration_ms(const char *text, uint64_t *out_ms)
{
	static const struct {
		const char *unit;
		double ms;
	} units[] = {{"", 1000}, {"ms", 1}, {"s", 1000}, {"m", 60e3}, {"h", 3600e3}};
	const char *rest;
	double v;

	if (parse_number(text, &v, &rest) < 0)
		return -EINVAL;
	for (size_t i = 0; i < countof(units); i++)
		if (strcmp(rest, units[i].unit) == 0 && v * units[i].ms < 1e15) {
			*out_ms = (uint64_t)(v * units[i].ms);
			return 0;
		}
	return -EINVAL;
}

int parse_size(const char *text, uint64_t *out)
{
	static const struct {
		const char *unit;
		double bytes;
	} units[] = {{"", 1},
		     {"B", 1},
		     {"k", 1e3},
		     {"kB", 1e3},
		     {"KB", 1e3},
		     {"M", 1e6},
		     {"MB", 1e6},
		     {"G", 1e9},
		     {"GB", 1e9},
		     {"T", 1e12},
		     {"TB", 1e12},
		     {"KiB", 1024},
		     {"MiB", 1048576.},
		     {"GiB", 1073741824.},
		     {"TiB", 1099511627776.}};
	const char *rest;
	double v;

	if (parse_u64(text, out) == 0)
		return 0;
	if (parse_number(text, &v, &rest) < 0)
		return -EINVAL;
	for (size_t i = 0; i < countof(units); i++)
		if (strcmp(rest, units[i].unit) == 0 && v * units[i].bytes < 9e18) {
			*out = (uint64_t)(v * units[i].bytes);
			return 0;
		}
	return -EINVAL;
}

char *format_size(char buf[16], uint64_t bytes)
{
	static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
	double v = (double)bytes;
	size_t i = 0;

	for (; v >= 999.5 && i + 1 < countof(units); i++)
		v /= 1000;
	snprintf(buf, 16, i && v < 99.95 ? "%.1f%s" : "%.0f%s", v, units[i]);
	return buf;
}

int vec_reserve_(void **items, size_t *cap, size_t want, size_t size)
{
	if (want <= *cap)
		return 0;
	size_t n = MAX(*cap * 2, (size_t)8);
	n = MAX(n, want);
	if (n > SIZE_MAX / 2 / size)
		return -ENOMEM;
	void *p = realloc(*items, n * size);
	if (!p)
		return -ENOMEM;
	*items = p;
	*cap = n;
	return 0;
}

/* FNV-1a with a finisher: tables here are small or keyed by digests; no attacker gains by collisions
 * that he could not have by a large image. */
uint64_t hash_bytes(const void *bytes, size_t n)
{
	const uint8_t *p = bytes;
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * UINT64_C(0x100000001b3);
	h ^= h >> 32;
	h *= UINT64_C(0x9e3779b97f4a7c15);
	return h ^ h >> 29;
}

/* ------------------------------------------------------------------ files */

int write_full(int fd, const void *bytes, size_t n)
{
	const char *p = bytes;

	while (n) {
		ssize_t r = write(fd, p, n);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		p += r;
		n -= (size_t)r;
	}
	return 0;
}

int pwrite_full(int fd, const void *bytes, size_t n, uint64_t off)
{
	const char *p = bytes;

	while (n) {
		ssize_t r = pwrite(fd, p, n, (off_t)off);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		p += r;
		n -= (size_t)r;
		off += (uint64_t)r;
	}
	return 0;
}

int pread_full(int fd, void *bytes, size_t n, uint64_t off)
{
	char *p = bytes;

	while (n) {
		ssize_t r = pread(fd, p, n, (off_t)off);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return -ENODATA;
		p += r;
		n -= (size_t)r;
		off += (uint64_t)r;
	}
	return 0;
}

int read_file(int dirfd, const char *path, size_t max, struct strbuf *out)
{
	scoped(close_fd) int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;

	char buf[65536];
	size_t total = 0;
	for (;;) {
		ssize_t r = read(fd, buf, sizeof(buf));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return out->failed ? -ENOMEM : 0;
		total += (size_t)r;
		if (total > max)
			return -EFBIG;
		strbuf_add(out, buf, (size_t)r);
	}
}

int make_dirs(const char *path, mode_t mode)
{
	scoped(free) char *copy = strdup(path);
	if (!copy)
		return -ENOMEM;

	for (char *p = copy + 1;; p++) {
		if (*p != '/' && *p != '\0')
			continue;
		char c = *p;
		*p = '\0';
		if (mkdir(copy, mode) < 0 && errno != EEXIST) {
			/* An unwritable parent may still hold what we want. */
			struct stat st;
			int saved = errno;
			if (stat(copy, &st) < 0 || !S_ISDIR(st.st_mode))
				return -saved;
		}
		*p = c;
		if (!c)
			return 0;
	}
}

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}
