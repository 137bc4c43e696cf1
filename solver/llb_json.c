/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Definitions as JSON, which people can get: `buildctl debug dump-llb` prints a vertex a line, and
 * `docker buildx build --call=convertllb,format=json` prints one object. Both become the protobuf
 * that they were made of, and go on as such.
 *
 * An op is encoded as Go's canonical protobuf has it: fields ascending, but the op itself after all
 * others, maps by key. A vertex is named by the digest of these bytes, so every op must hash to the
 * name that the JSON gives it: what was lost, changed or is not known here cannot go unnoticed.
 *
 * There is no second table of fields: messages are made by the descriptors of the generated code,
 * whose names are BuildKit's but for case and underscores. The two forms spell names and numbers
 * differently (include_patterns, includePatterns; -1, "-1"; 3, "CACHE"): either will do anywhere.
 * What the descriptors do not tell is in two short tables: which bytes are no text, and where
 * dump-llb puts an object of its own around a oneof.
 *
 * Recursion follows the types of the messages, which end, but for definitions in definitions:
 * DEPTH_MAX bounds them, and jansson its own parser (2048).
 */

#include <inttypes.h>
#include <jansson.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "llb.pb-c.h"
#include "solver/solver-internal.h"

#define DEPTH_MAX 16
/* Bounds the memory of a parsed text: a value takes a hundred bytes or two. A definition has fewer
 * than one in eight bytes. */
#define VALUES_MAX (8u << 20)

/* What is being encoded. */
struct encoder {
	unsigned depth; /* of definitions in definitions */
	char note[120]; /* what cannot be encoded as it was; "" = nothing */
	struct err *err;
};

static int no_memory(struct encoder *e)
{
	return err_set(e->err, -ENOMEM, "out of memory");
}

static int wrong(struct encoder *e, const ProtobufCFieldDescriptor *field, const char *want)
{
	return err_set(e->err, -EBADMSG, "\"%s\": want %s", field->name, want);
}

/* ------------------------------------------------------------------ names */

static char next_letter(const char **name)
{
	while (**name == '_')
		(*name)++;
	char c = **name;
	if (c)
		(*name)++;
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* But for case and underscores. */
static bool same_name(const char *a, const char *b)
{
	char c;
	do {
		c = next_letter(&a);
		if (c != next_letter(&b))
			return false;
	} while (c);
	return true;
}

static const ProtobufCFieldDescriptor *find_field(const ProtobufCMessageDescriptor *type,
						  const char *name)
{
	for (unsigned i = 0; i < type->n_fields; i++)
		if (same_name(type->fields[i].name, name))
			return &type->fields[i];
	return NULL;
}

/* Fields of type bytes that are no text: base64, or another message. */
static const struct special {
	const ProtobufCMessageDescriptor *type;
	unsigned field;
	const ProtobufCMessageDescriptor *message; /* NULL = base64 */
} specials[] = {
	{&pb__definition__descriptor, 1, NULL},
	{&pb__definition__descriptor, 3, &pb__source__descriptor},
	{&pb__metadata_entry__descriptor, 2, &pb__op_metadata__descriptor},
	{&pb__source_info__descriptor, 2, NULL},
	{&pb__source_info__descriptor, 3, &pb__definition__descriptor},
	{&pb__build_op__descriptor, 3, &pb__definition__descriptor},
	{&pb__file_action_mk_file__descriptor, 3, NULL},
};

static const struct special *special_of(const ProtobufCMessageDescriptor *type,
					const ProtobufCFieldDescriptor *field)
{
	for (size_t i = 0; i < countof(specials); i++)
		if (specials[i].type == type && specials[i].field == field->id)
			return &specials[i];
	return NULL;
}

/* The object that dump-llb puts around the oneof of @type. */
static bool is_wrapper(const ProtobufCMessageDescriptor *type, const char *name)
{
	return (type == &pb__op__descriptor && strcmp(name, "Op") == 0) ||
	       (type == &pb__file_action__descriptor && strcmp(name, "Action") == 0) ||
	       (type == &pb__user_opt__descriptor && strcmp(name, "User") == 0);
}

static bool is_map(const ProtobufCFieldDescriptor *field)
{
	const ProtobufCMessageDescriptor *entry = field->descriptor;
	return field->type == PROTOBUF_C_TYPE_MESSAGE && entry->n_fields == 2 &&
	       strcmp(entry->fields[0].name, "key") == 0 &&
	       strcmp(entry->fields[1].name, "value") == 0;
}

/* ------------------------------------------------------------------ packing */

struct sink {
	ProtobufCBuffer base;
	struct strbuf *to;
};

static void sink_add(ProtobufCBuffer *buffer, size_t n, const uint8_t *bytes)
{
	strbuf_add(containerof(buffer, struct sink, base)->to, bytes, n);
}

static void pack(struct strbuf *to, const ProtobufCMessage *message)
{
	struct sink sink = {{sink_add}, to};
	protobuf_c_message_pack_to_buffer(message, &sink.base);
}

/* The op proper comes last, though its number does not. */
static void pack_op(struct strbuf *to, Pb__Op *op)
{
	Pb__Op body = PB__OP__INIT;
	body.op_case = op->op_case;
	body.exec = op->exec; /* any member of the union: all are pointers */
	op->op_case = PB__OP__OP__NOT_SET;
	pack(to, &op->base);
	pack(to, &body.base);
	op->op_case = body.op_case;
}

/* A field of the definition that is made. */
static void put_bytes(struct strbuf *to, unsigned field, const struct strbuf *bytes)
{
	size_t n = bytes->len;
	strbuf_putc(to, (char)(field << 3 | 2));
	for (; n >= 0x80; n >>= 7)
		strbuf_putc(to, (char)(n | 0x80));
	strbuf_putc(to, (char)n);
	strbuf_add(to, bytes->data, bytes->len);
	to->failed |= bytes->failed;
}

static void message_free(ProtobufCMessage *message)
{
	protobuf_c_message_free_unpacked(message, NULL);
}
define_scoped(ProtobufCMessage *, message_free);

/* ------------------------------------------------------------------ values */

static int make_message(struct encoder *e, ProtobufCMessage **out,
			const ProtobufCMessageDescriptor *type, const json_t *json);

/* @json as a number, which is a text where it has 64 bits; 0 = it is none, -1 below zero. */
static int number_of(const json_t *json, uint64_t *out)
{
	if (json_is_integer(json)) {
		json_int_t value = json_integer_value(json);
		*out = value < 0 ? -(uint64_t)value : (uint64_t)value;
		return value < 0 ? -1 : 1;
	}
	const char *text = json_string_value(json);
	if (!text || strlen(text) != json_string_length(json))
		return 0;
	bool is_negative = *text == '-';
	return parse_u64(text + is_negative, out) < 0 ? 0 : is_negative ? -1 : 1;
}

/* @min is what is below zero, as a positive number. */
static int set_number(struct encoder *e, const ProtobufCFieldDescriptor *field, uint64_t *out,
		      const json_t *json, uint64_t min, uint64_t max)
{
	int sign = number_of(json, out);
	if (sign == 0 || *out > (sign < 0 ? min : max))
		return wrong(e, field, "a number in range");
	if (sign < 0)
		*out = -*out;
	return 0;
}

static int set_enum(struct encoder *e, const ProtobufCFieldDescriptor *field, uint64_t *out,
		    const json_t *json)
{
	const ProtobufCEnumDescriptor *type = field->descriptor;
	const char *name = json_string_value(json);
	for (unsigned i = 0; name && i < type->n_values; i++) {
		if (strcmp(type->values[i].name, name) == 0) {
			*out = (uint64_t)type->values[i].value;
			return 0;
		}
	}
	if (name && number_of(json, out) == 0)
		return wrong(e, field, "one of its names, or a number");
	return set_number(e, field, out, json, (uint64_t)INT32_MAX + 1, INT32_MAX);
}

/* A message where the field is bytes. */
static int set_packed(struct encoder *e, ProtobufCBinaryData *out,
		      const ProtobufCMessageDescriptor *type, const json_t *json)
{
	scoped(message_free) ProtobufCMessage *message = NULL;
	scoped(strbuf_free) struct strbuf bytes = {0};
	if (type == &pb__definition__descriptor && e->depth == DEPTH_MAX)
		return err_set(e->err, -EBADMSG, "definitions nested deeper than %d", DEPTH_MAX);
	e->depth++;
	int r = make_message(e, &message, type, json);
	e->depth--;
	if (r < 0)
		return r;
	pack(&bytes, message);
	out->len = bytes.len;
	out->data = (uint8_t *)strbuf_finish(&bytes);
	return out->data ? 0 : no_memory(e);
}

static int set_bytes(struct encoder *e, const ProtobufCMessageDescriptor *type,
		     const ProtobufCFieldDescriptor *field, ProtobufCBinaryData *out,
		     const json_t *json)
{
	const struct special *special = special_of(type, field);
	if (special && special->message)
		return set_packed(e, out, special->message, json);
	if (!json_is_string(json))
		return wrong(e, field, special ? "base64" : "a text");
	const char *text = json_string_value(json);
	size_t n = json_string_length(json);
	if (special) {
		int r = base64_decode(text, n, &out->data, &out->len);
		return r == -EBADMSG ? wrong(e, field, "base64") : r < 0 ? no_memory(e) : 0;
	}
	out->data = malloc(n + 1);
	if (!out->data)
		return no_memory(e);
	memcpy(out->data, text, n);
	out->len = n;
	return 0;
}

static size_t size_of(const ProtobufCFieldDescriptor *field)
{
	switch ((int)field->type) {
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_UINT64:
		return sizeof(int64_t);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(ProtobufCMessage *);
	default: /* 32 bits, enums too */
		return sizeof(int32_t);
	}
}

static int set_wide(struct encoder *e, const ProtobufCFieldDescriptor *field, void *to,
		    const json_t *json, uint64_t min, uint64_t max)
{
	uint64_t value;
	int r = set_number(e, field, &value, json, min, max);
	if (r == 0 && size_of(field) == sizeof(uint64_t))
		*(uint64_t *)to = value;
	else if (r == 0)
		*(uint32_t *)to = (uint32_t)value;
	return r;
}

/* One value of @field, a field of @type, into zeroed memory; what fails leaves it so. */
static int set_value(struct encoder *e, const ProtobufCMessageDescriptor *type,
		     const ProtobufCFieldDescriptor *field, void *to, const json_t *json)
{
	uint64_t value;
	int r;
	switch ((int)field->type) {
	case PROTOBUF_C_TYPE_BOOL:
		if (!json_is_boolean(json))
			return wrong(e, field, "true or false");
		*(protobuf_c_boolean *)to = json_is_true(json);
		return 0;
	case PROTOBUF_C_TYPE_INT32:
		return set_wide(e, field, to, json, (uint64_t)INT32_MAX + 1, INT32_MAX);
	case PROTOBUF_C_TYPE_INT64:
		return set_wide(e, field, to, json, (uint64_t)INT64_MAX + 1, INT64_MAX);
	case PROTOBUF_C_TYPE_UINT32:
		return set_wide(e, field, to, json, 0, UINT32_MAX);
	case PROTOBUF_C_TYPE_UINT64:
		return set_wide(e, field, to, json, 0, UINT64_MAX);
	case PROTOBUF_C_TYPE_ENUM:
		r = set_enum(e, field, &value, json);
		if (r == 0)
			*(uint32_t *)to = (uint32_t)value;
		return r;
	case PROTOBUF_C_TYPE_BYTES:
		return set_bytes(e, type, field, to, json);
	case PROTOBUF_C_TYPE_MESSAGE:
		return make_message(e, to, field->descriptor, json);
	default:
		return wrong(e, field, "a type that the definition's format has");
	}
}

/* ------------------------------------------------------------------ fields */

static void *member_at(ProtobufCMessage *message, unsigned offset)
{
	return (char *)message + offset;
}

static int set_list(struct encoder *e, ProtobufCMessage *message,
		    const ProtobufCFieldDescriptor *field, const json_t *json)
{
	size_t size = size_of(field), *n = member_at(message, field->quantifier_offset);
	char **items = member_at(message, field->offset);
	if (!json_is_array(json))
		return wrong(e, field, "a list");
	*items = calloc(json_array_size(json) + 1, size);
	if (!*items)
		return no_memory(e);
	for (size_t i = 0; i < json_array_size(json); i++, (*n)++) {
		int r = set_value(e, message->descriptor, field, *items + i * size,
				  json_array_get(json, i));
		if (r < 0)
			return r;
	}
	return 0;
}

/* Members of the oneofs of an entry, so that they are written also when empty. */
static int set_entry(struct encoder *e, ProtobufCMessage *entry, const char *key,
		     const json_t *value)
{
	const ProtobufCMessageDescriptor *type = entry->descriptor;
	const ProtobufCFieldDescriptor *fields = type->fields;
	ProtobufCBinaryData *to = member_at(entry, fields[0].offset);
	to->len = strlen(key);
	to->data = (uint8_t *)strdup(key);
	if (!to->data)
		return no_memory(e);
	*(uint32_t *)member_at(entry, fields[0].quantifier_offset) = fields[0].id;
	int r = set_value(e, type, &fields[1], member_at(entry, fields[1].offset), value);
	if (r == 0)
		*(uint32_t *)member_at(entry, fields[1].quantifier_offset) = fields[1].id;
	return r;
}

static int compare_keys(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int set_map(struct encoder *e, ProtobufCMessage *message,
		   const ProtobufCFieldDescriptor *field, json_t *json)
{
	const ProtobufCMessageDescriptor *type = field->descriptor;
	size_t n_keys = 0, *n = member_at(message, field->quantifier_offset);
	ProtobufCMessage ***entries = member_at(message, field->offset);
	scoped(free) const char **keys = calloc(json_object_size(json) + 1, sizeof(*keys));
	if (!json_is_object(json))
		return wrong(e, field, "an object");
	*entries = calloc(json_object_size(json) + 1, sizeof(**entries));
	if (!keys || !*entries)
		return no_memory(e);
	for (void *i = json_object_iter(json); i; i = json_object_iter_next(json, i))
		keys[n_keys++] = json_object_iter_key(i);
	qsort(keys, n_keys, sizeof(*keys), compare_keys);
	for (size_t i = 0; i < n_keys; i++) {
		ProtobufCMessage *entry = calloc(1, type->sizeof_message);
		if (!entry)
			return no_memory(e);
		type->message_init(entry);
		(*entries)[(*n)++] = entry;
		int r = set_entry(e, entry, keys[i], json_object_get(json, keys[i]));
		if (r < 0)
			return r;
	}
	return 0;
}

static bool is_set(ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
	void *to = member_at(message, field->offset);
	if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
		return *(uint32_t *)member_at(message, field->quantifier_offset) != 0;
	if (field->label == PROTOBUF_C_LABEL_REPEATED || field->type == PROTOBUF_C_TYPE_MESSAGE)
		return *(void **)to != NULL;
	return field->type == PROTOBUF_C_TYPE_BYTES && ((ProtobufCBinaryData *)to)->data;
}

static int set_field(struct encoder *e, ProtobufCMessage *message,
		     const ProtobufCFieldDescriptor *field, json_t *json)
{
	if (is_set(message, field))
		return wrong(e, field, "one of its kind");
	if (field->label == PROTOBUF_C_LABEL_REPEATED)
		return is_map(field) ? set_map(e, message, field, json)
				     : set_list(e, message, field, json);
	int r = set_value(e, message->descriptor, field, member_at(message, field->offset), json);
	if (r == 0 && field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
		*(uint32_t *)member_at(message, field->quantifier_offset) = field->id;
	return r;
}

/* What dump-llb prints for an owner with the ID 0, and for an action that it does not know. */
static void fill_empty(struct encoder *e, ProtobufCMessage *message)
{
	Pb__UserOpt *user = containerof(message, Pb__UserOpt, base);
	if (message->descriptor == &pb__user_opt__descriptor) {
		if (user->user_case == PB__USER_OPT__USER__NOT_SET)
			user->user_case = PB__USER_OPT__USER_BY_ID;
	} else if (message->descriptor == &pb__file_action__descriptor) {
		snprintf(e->note, sizeof(e->note), "%s",
			 "buildctl debug dump-llb leaves out what symlink actions say");
	}
}

static int fill(struct encoder *e, ProtobufCMessage *message, json_t *json, bool is_inner)
{
	const char *name;
	json_t *value;
	json_object_foreach(json, name, value)
	{
		const ProtobufCFieldDescriptor *field = find_field(message->descriptor, name);
		int r = 0;
		if (json_is_null(value))
			continue;
		if (!is_inner && json_is_object(value) && is_wrapper(message->descriptor, name)) {
			if (json_object_size(value) == 0)
				fill_empty(e, message);
			else
				r = fill(e, message, value, true);
		} else if (field) {
			r = set_field(e, message, field, value);
		} else if (!*e->note) {
			snprintf(e->note, sizeof(e->note), "\"%.80s\" is not known here", name);
		}
		if (r < 0)
			return r;
	}
	return 0;
}

static int make_message(struct encoder *e, ProtobufCMessage **out,
			const ProtobufCMessageDescriptor *type, const json_t *json)
{
	if (!json_is_object(json))
		return err_set(e->err, -EBADMSG, "%s: want an object", type->short_name);
	scoped(message_free) ProtobufCMessage *message = calloc(1, type->sizeof_message);
	if (!message)
		return no_memory(e);
	type->message_init(message);
	int r = fill(e, message, (json_t *)json, false);
	if (r == 0)
		*out = take(message);
	return r;
}

/* ------------------------------------------------------------------ vertices */

static int encode(struct strbuf *out, const ProtobufCMessageDescriptor *type, const json_t *json,
		  struct err *err)
{
	struct encoder e = {.err = err};
	scoped(message_free) ProtobufCMessage *message = NULL;
	int r = make_message(&e, &message, type, json);
	if (r == 0)
		pack(out, message);
	return r;
}

/* Appends the op to @out; its bytes must have the digest @name. */
static int encode_op(struct strbuf *out, const struct digest *name, const json_t *json,
		     bool *has_body, struct err *err)
{
	struct encoder e = {.err = err};
	scoped(message_free) ProtobufCMessage *message = NULL;
	struct digest digest;
	char text[DIGEST_TEXT_MAX];
	int r = make_message(&e, &message, &pb__op__descriptor, json);
	if (r < 0)
		return r;
	Pb__Op *op = containerof(message, Pb__Op, base);
	*has_body = op->op_case != PB__OP__OP__NOT_SET;
	pack_op(out, op);
	if (out->failed)
		return no_memory(&e);
	digest_bytes(&digest, out->data ? out->data : "", out->len);
	if (!digest_equal(&digest, name))
		return err_set(err, -EBADMSG, "its op does not hash to its name but to %s%s%s",
			       digest_text(&digest, text), *e.note ? ": " : "", e.note);
	return 0;
}

static int put_metadata(struct strbuf *out, const char *key, const json_t *json, struct err *err)
{
	scoped(strbuf_free) struct strbuf entry = {0}, value = {0}, name = {0};
	if (!json || json_is_null(json))
		return 0;
	int r = encode(&value, &pb__op_metadata__descriptor, json, err);
	if (r < 0)
		return err_wrap(err, r, "metadata of vertex %.80s", key);
	strbuf_puts(&name, key);
	put_bytes(&entry, 1, &name);
	put_bytes(&entry, 2, &value);
	put_bytes(out, 2, &entry);
	return 0;
}

/* ------------------------------------------------------------------ dump-llb */

static int put_line(struct strbuf *out, size_t number, const json_t *line, struct err *err)
{
	const json_t *op = json_object_get(line, "Op");
	const char *name = json_string_value(json_object_get(line, "Digest"));
	scoped(strbuf_free) struct strbuf bytes = {0};
	struct digest digest;
	bool has_body;
	if (!json_is_object(op) || !name)
		return err_set(err, -EBADMSG, "vertex %zu: want an object with Op and Digest",
			       number);
	if (digest_parse(&digest, name, err) < 0)
		return err_wrap(err, -EBADMSG, "vertex %zu", number);
	int r = encode_op(&bytes, &digest, op, &has_body, err);
	if (r < 0)
		return err_wrap(err, r, "vertex %s", name);
	put_bytes(out, 1, &bytes);
	return put_metadata(out, name, json_object_get(line, "OpMetadata"), err);
}

/* ------------------------------------------------------------------ convertllb */

/* All ops; the one that does nothing is the terminal, and becomes the last. */
static int put_ops(struct strbuf *out, json_t *def, struct err *err)
{
	scoped(strbuf_free) struct strbuf terminal = {0};
	const char *name;
	json_t *op;
	if (!json_is_object(def))
		return err_set(err, -EBADMSG, "\"def\": want an object");
	json_object_foreach(def, name, op)
	{
		scoped(strbuf_free) struct strbuf bytes = {0};
		struct digest digest;
		bool has_body;
		if (digest_parse(&digest, name, err) < 0)
			return err_wrap(err, -EBADMSG, "\"def\"");
		int r = encode_op(&bytes, &digest, op, &has_body, err);
		if (r < 0)
			return err_wrap(err, r, "vertex %s", name);
		if (!has_body && terminal.len)
			return err_set(err, -EBADMSG, "two vertices without operation");
		put_bytes(has_body ? out : &terminal, 1, &bytes);
	}
	if (!terminal.len)
		return err_set(err, -EBADMSG, "no terminal: one vertex must be without operation");
	strbuf_add(out, terminal.data, terminal.len);
	out->failed |= terminal.failed;
	return 0;
}

static int put_document(struct strbuf *out, const json_t *root, struct err *err)
{
	json_t *metadata = json_object_get(root, "metadata"), *value;
	const json_t *source = json_object_get(root, "source");
	const char *name;
	int r = put_ops(out, json_object_get(root, "def"), err);
	if (r < 0)
		return r;
	if (metadata && !json_is_object(metadata) && !json_is_null(metadata))
		return err_set(err, -EBADMSG, "\"metadata\": want an object");
	json_object_foreach(metadata, name, value)
	{
		r = put_metadata(out, name, value, err);
		if (r < 0)
			return r;
	}
	if (!source || json_is_null(source))
		return 0;
	scoped(strbuf_free) struct strbuf bytes = {0};
	r = encode(&bytes, &pb__source__descriptor, source, err);
	if (r < 0)
		return err_wrap(err, r, "\"source\"");
	put_bytes(out, 3, &bytes);
	return 0;
}

/* ------------------------------------------------------------------ the text */

static void json_decref_scoped(json_t **json)
{
	json_decref(*json);
}

static size_t skip_space(const char *text, size_t n)
{
	size_t i = 0;
	while (i < n && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r'))
		i++;
	return i;
}

static bool has_too_many_values(const char *text, size_t n)
{
	size_t values = 0;
	for (size_t i = 0; i < n; i++)
		values += text[i] == '{' || text[i] == '[' || text[i] == ',';
	return values > VALUES_MAX;
}

int llb_json_encode(struct strbuf *out, const void *bytes, size_t n, struct err *err)
{
	const char *text = bytes;
	if (has_too_many_values(text, n))
		return err_set(err, -EFBIG, "more than %u values", VALUES_MAX);
	size_t number = 1;
	for (size_t at = skip_space(text, n); at < n; at += skip_space(text + at, n - at)) {
		json_error_t why;
		scoped(json_decref) json_t *json = json_loadb(
			text + at, n - at, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, &why);
		if (!json)
			return err_set(err, -EBADMSG, "JSON, value %zu, line %d: %s", number,
				       why.line, why.text);
		at += (size_t)why.position;
		bool is_document = number == 1 && json_object_get(json, "def");
		if (is_document && at + skip_space(text + at, n - at) < n)
			return err_set(err, -EBADMSG, "JSON: more behind the definition");
		int r = is_document ? put_document(out, json, err)
				    : put_line(out, number, json, err);
		if (r < 0)
			return r;
		number++;
	}
	return out->failed ? err_set(err, -ENOMEM, "out of memory") : 0;
}
