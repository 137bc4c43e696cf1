/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Writes definitions as BuildKit's client does (fields in order, the op last), for tests. */

#include "blobstore/blobstore.h"
#include "tests/test.h"

static inline void pb_number(struct strbuf *s, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		strbuf_putc(s, (char)(v | 0x80));
	strbuf_putc(s, (char)v);
}

static inline void pb_bytes(struct strbuf *s, unsigned field, const void *bytes, size_t n)
{
	pb_number(s, field << 3 | 2);
	pb_number(s, n);
	if (n)
		strbuf_add(s, bytes, n);
}

static inline void pb_text(struct strbuf *s, unsigned field, const char *text)
{
	pb_bytes(s, field, text, strlen(text));
}

/* A number; as proto3 has it, 0 is not written. */
static inline void pb_int(struct strbuf *s, unsigned field, int64_t v)
{
	if (v == 0)
		return;
	pb_number(s, field << 3);
	pb_number(s, (uint64_t)v);
}

/* A message that was written by itself; clears it. */
static inline void pb_message(struct strbuf *s, unsigned field, struct strbuf *message)
{
	pb_bytes(s, field, message->data, message->len);
	strbuf_clear(message);
}

/* Op.inputs */
static inline void pb_input(struct strbuf *op, const struct digest *from, int64_t index)
{
	struct strbuf input = {0};
	char text[DIGEST_TEXT_MAX];

	pb_text(&input, 1, digest_text(from, text));
	pb_int(&input, 2, index);
	pb_message(op, 1, &input);
	strbuf_free(&input);
}

static inline void pb_attr(struct strbuf *s, unsigned field, const char *key, const char *value)
{
	struct strbuf pair = {0};

	pb_text(&pair, 1, key);
	pb_text(&pair, 2, value);
	pb_message(s, field, &pair);
	strbuf_free(&pair);
}

/* Adds @op to the definition, gives its digest, and clears it. */
static inline struct digest pb_op(struct strbuf *def, struct strbuf *op)
{
	struct digest digest;

	digest_bytes(&digest, op->data, op->len);
	pb_message(def, 1, op);
	return digest;
}

/* A source vertex with one attribute (@key may be NULL). */
static inline struct digest pb_source(struct strbuf *def, const char *identifier, const char *key,
				      const char *value)
{
	struct strbuf op = {0}, source = {0};

	pb_text(&source, 1, identifier);
	if (key)
		pb_attr(&source, 2, key, value);
	pb_message(&op, 3, &source);
	struct digest digest = pb_op(def, &op);
	strbuf_free(&source);
	strbuf_free(&op);
	return digest;
}

struct pb_merge_input {
	struct digest from;
	const char *add, *trim;
};

static inline struct digest pb_merge(struct strbuf *def, const struct pb_merge_input *inputs,
				     size_t n)
{
	struct strbuf op = {0}, merge = {0}, input = {0};

	for (size_t i = 0; i < n; i++) {
		pb_input(&op, &inputs[i].from, 0);
		pb_int(&input, 1, (int64_t)i);
		if (inputs[i].add)
			pb_text(&input, 2, inputs[i].add);
		if (inputs[i].trim)
			pb_text(&input, 3, inputs[i].trim);
		pb_message(&merge, 1, &input);
	}
	pb_message(&op, 6, &merge);
	struct digest digest = pb_op(def, &op);
	strbuf_free(&input);
	strbuf_free(&merge);
	strbuf_free(&op);
	return digest;
}

/* The terminal. */
static inline void pb_result(struct strbuf *def, const struct digest *from, int64_t index)
{
	struct strbuf op = {0};

	pb_input(&op, from, index);
	pb_op(def, &op);
	strbuf_free(&op);
}
