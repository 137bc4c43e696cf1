/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * base: what every folder needs and no folder is about. The second door of blobstore.
 *
 * Errors, cleanup, log lines, strings, vectors, byte order, whole reads and writes, time.
 * Knows no other file of the project.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#define countof(a) (sizeof(a) / sizeof((a)[0]))
#define containerof(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))
#define MIN(a, b)                                                                                  \
	({                                                                                         \
		__typeof__(a) a_ = (a);                                                            \
		__typeof__(b) b_ = (b);                                                            \
		a_ < b_ ? a_ : b_;                                                                 \
	})
#define MAX(a, b)                                                                                  \
	({                                                                                         \
		__typeof__(a) a_ = (a);                                                            \
		__typeof__(b) b_ = (b);                                                            \
		a_ > b_ ? a_ : b_;                                                                 \
	})

/* --- errors ---
 * A function returns 0 or a negative errno; iterators return 1 = an item, 0 = the end. Where a
 * person will read the reason, the last parameter is a struct err: a value, one line, no controls,
 * set only on failure. NULL is allowed everywhere. */
struct err {
	int code; /* the negative errno; 0 = nothing failed */
	char text[504];
};

/* Sets @err and returns @code, so that `return err_set(err, -EBADMSG, "…")` reads well. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "fmt: " before what @err says (or before strerror when it says nothing); returns @code. */
int err_wrap(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The same with errno: sets "fmt: strerror(errno)" and returns -errno. */
int err_errno(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Never NULL, never empty: the text of @err or, when it has none, strerror(-@code). */
const char *err_text(const struct err *err, int code);

/* --- cleanup ---
 * scoped(blob_unref) struct blob *blob = NULL;  is released when it leaves its block;
 * take(blob) hands its value on. define_scoped() makes the glue for a pointer type. */
#define scoped(fn) __attribute__((cleanup(fn##_scoped)))
#define define_scoped(type, fn)                                                                    \
	static inline void fn##_scoped(type *p)                                                    \
	{                                                                                          \
		if (*p)                                                                            \
			fn(*p);                                                                    \
	}                                                                                          \
	struct scoped_needs_a_semicolon
#define take(p)                                                                                    \
	({                                                                                         \
		__typeof__(p) taken_ = (p);                                                        \
		(p) = NULL;                                                                        \
		taken_;                                                                            \
	})
static inline void free_scoped(void *p)
{
	free(*(void **)p);
}
void close_fd(int fd); /* keeps errno; negative is ignored */
static inline void close_fd_scoped(int *fd)
{
	if (*fd >= 0)
		close_fd(*fd);
}

/* --- log lines ---
 * To stderr (and syslog-like priorities when stderr is the journal), one line a call:
 * `level folder/file: words key=value`. The last owner of an error prints it, nobody between. */
enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
extern enum log_level log_max; /* set once by main, default LOG_WARN */
void log_line(enum log_level level, const char *where, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
#define log_error(...) log_line(LOG_ERROR, __FILE__, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __FILE__, __VA_ARGS__)
#define log_info(...) (log_max >= LOG_INFO ? log_line(LOG_INFO, __FILE__, __VA_ARGS__) : (void)0)
#define log_debug(...) (log_max >= LOG_DEBUG ? log_line(LOG_DEBUG, __FILE__, __VA_ARGS__) : (void)0)

/* --- strings ---
 * A growing byte string, always NUL-terminated. Allocation failure is sticky: later appends do
 * nothing, and strbuf_finish tells. */
struct strbuf {
	char *data;
	size_t len, cap;
	bool failed;
};
void strbuf_add(struct strbuf *s, const void *bytes, size_t n);
void strbuf_puts(struct strbuf *s, const char *text);
void strbuf_putc(struct strbuf *s, char c);
void strbuf_printf(struct strbuf *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_clear(struct strbuf *s); /* empty again; keeps memory; clears the failure */
void strbuf_free(struct strbuf *s);
/* Caller owns the text; NULL when an append failed. @s is empty afterwards. */
char *strbuf_finish(struct strbuf *s);
static inline void strbuf_free_scoped(struct strbuf *s)
{
	strbuf_free(s);
}

/* NULL when memory is out. */
char *str_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);
/* Cleans like path.Clean("/" + path): absolute, no "//", ".", ".." or trailing slash.
 * @len bytes of @path are read, so it need not be terminated. Caller frees; NULL = no memory. */
char *path_clean(const char *path, size_t len);
/* Base64 (standard alphabet, padding optional). Caller frees *out. Errors: -EBADMSG, -ENOMEM. */
int base64_decode(const char *text, size_t len, uint8_t **out, size_t *out_len);
/* True when all @len bytes are well-formed UTF-8 without NUL. */
bool utf8_valid(const char *text, size_t len);
/* Decimal, whole string, no sign. Errors: -EINVAL, -ERANGE. */
int parse_u64(const char *text, uint64_t *out);
/* "10s", "500ms", "2m", "1h", or plain seconds. Errors: -EINVAL. */
int parse_duration_ms(const char *text, uint64_t *out_ms);
/* "10MB", "1GiB", "4096": decimal and binary units. Errors: -EINVAL. */
int parse_size(const char *text, uint64_t *out);
/* 1.5kB, 90.2MB: decimal units as docker prints. Returns @buf. */
char *format_size(char buf[16], uint64_t bytes);

/* --- CSV (csv.c) --- */
/* Calls @fn for each field of @text, one CSV record as Go's encoding/csv reads it; stops when it
 * fails. Errors: -EINVAL, naming @option; those of @fn. */
typedef int (*csv_fn)(void *arg, const char *field, struct err *err);
int csv_each(const char *option, const char *text, csv_fn fn, void *arg, struct err *err);
/* What follows "KEY=" in @field, where KEY is @key in any case; else NULL. */
const char *csv_value(const char *field, const char *key);

/* --- vectors ---
 * struct { T *items; size_t n, cap; }; vec_push returns a pointer to the new zeroed item or NULL. */
#define vec(T)                                                                                     \
	struct {                                                                                   \
		T *items;                                                                          \
		size_t n, cap;                                                                     \
	}
int vec_reserve_(void **items, size_t *cap, size_t want, size_t size);
#define vec_push(v)                                                                                \
	(vec_reserve_((void **)&(v)->items, &(v)->cap, (v)->n + 1, sizeof(*(v)->items)) < 0        \
		 ? NULL                                                                            \
		 : (__typeof__((v)->items))memset(&(v)->items[(v)->n++], 0, sizeof(*(v)->items)))
#define vec_free(v)                                                                                \
	do {                                                                                       \
		free((v)->items);                                                                  \
		(v)->items = NULL;                                                                 \
		(v)->n = (v)->cap = 0;                                                             \
	} while (0)

/* --- byte order --- */
static inline uint16_t le16(const void *p)
{
	const uint8_t *b = p;
	return (uint16_t)(b[0] | b[1] << 8);
}
static inline uint32_t le32(const void *p)
{
	const uint8_t *b = p;
	return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
static inline uint64_t le64(const void *p)
{
	return le32(p) | (uint64_t)le32((const uint8_t *)p + 4) << 32;
}

/* --- hashing for tables (not for content) --- */
uint64_t hash_bytes(const void *bytes, size_t n);

/* --- whole reads and writes ---
 * Retry on EINTR and short counts. pread_full: -ENODATA when the file ends early. */
int write_full(int fd, const void *bytes, size_t n);
int pwrite_full(int fd, const void *bytes, size_t n, uint64_t off);
int pread_full(int fd, void *bytes, size_t n, uint64_t off);
/* Reads a whole small file (up to @max bytes, -EFBIG beyond). @out is appended to. */
int read_file(int dirfd, const char *path, size_t max, struct strbuf *out);
/* mkdir -p with @mode for what is made. */
int make_dirs(const char *path, mode_t mode);

/* --- time --- */
uint64_t now_ns(void); /* CLOCK_MONOTONIC */
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)
