/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * JSON as Go writes it, for what is hashed (gojson.c says how). A writer appends to a strbuf, whose
 * sticky failure is the only one; commas come by themselves. UTF-8 that is none is written as Go
 * writes it, so any bytes will do.
 */

#include "blobstore/base.h"

void gojson_open(struct strbuf *s, char bracket); /* '{' or '[' */
void gojson_close(struct strbuf *s, char bracket);

/* Values: items of a list, or what comes after gojson_member. */
void gojson_text(struct strbuf *s, const char *text, size_t n);
void gojson_i64(struct strbuf *s, int64_t value);
void gojson_null(struct strbuf *s);
void gojson_bytes(struct strbuf *s, const void *bytes, size_t n);

/* Members of an object. */
void gojson_member(struct strbuf *s, const char *name);
void gojson_member_text(struct strbuf *s, const char *name, const char *text);
void gojson_member_i64(struct strbuf *s, const char *name, int64_t value);
void gojson_member_texts(struct strbuf *s, const char *name, char *const *texts, size_t n);

/* The same, left out when 0, false, empty or (texts) NULL: Go's omitempty. */
void gojson_opt_text(struct strbuf *s, const char *name, const char *text);
void gojson_opt_i64(struct strbuf *s, const char *name, int64_t value);
void gojson_opt_bool(struct strbuf *s, const char *name, bool value);
void gojson_opt_bytes(struct strbuf *s, const char *name, const void *bytes, size_t n);
void gojson_opt_texts(struct strbuf *s, const char *name, char *const *texts, size_t n);
