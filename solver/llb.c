/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The wire format of LLB: decodes definitions, ops and metadata into the program's own structs.
 * The generated code (llb.proto says how it differs from BuildKit's) ends here.
 *
 * A definition is a list of serialized ops; each is decoded by itself, so that one op's memory is
 * bounded by its own bytes and nothing follows the depth of the graph. What the format leaves open
 * is checked here: text is UTF-8 without NUL, numbers that are indexes are in range. A field that
 * is not decoded is neither lost nor judged: vertices keep their bytes.
 *
 * Display names are BuildKit's. A name is made of what the op itself says; merge and diff, whose
 * names hold those of their inputs, get theirs from graph.c.
 */

#include <limits.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "llb.pb-c.h"
#include "solver/solver-internal.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static bool is_text(const ProtobufCBinaryData *data)
{
	return data->len == 0 || utf8_valid((const char *)data->data, data->len);
}

/* A protobuf string as one of ours. */
static int text(char **out, const ProtobufCBinaryData *data, const char *what, struct err *err)
{
	if (!is_text(data))
		return err_set(err, -EBADMSG, "%s is not valid UTF-8 text", what);
	*out = strndup(data->len ? (const char *)data->data : "", data->len);
	return *out ? 0 : no_memory(err);
}

static int digest(struct digest *out, const ProtobufCBinaryData *data, struct err *err)
{
	scoped(free) char *s = NULL;
	int r = text(&s, data, "a digest", err);
	if (r < 0)
		return r;
	r = digest_parse(out, s, err);
	return r == -EINVAL ? err_wrap(err, -EBADMSG, "digest") : r;
}

static void free_texts(char **texts, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(texts[i]);
	free(texts);
}

static void free_pairs(struct llb_pair *pairs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		free(pairs[i].key);
		free(pairs[i].value);
	}
	free(pairs);
}

/* ------------------------------------------------------------------ the definition */

int llb_definition_decode(struct llb_definition *out, const void *bytes, size_t n, struct err *err)
{
	scoped(llb_definition_deinit) struct llb_definition d = {0};
	Pb__Definition *pb = pb__definition__unpack(NULL, n, bytes);
	if (!pb)
		return err_set(err, -EBADMSG, "not a definition: malformed protobuf");
	d.impl = pb;
	d.ops = calloc(pb->n_def + 1, sizeof(*d.ops));
	d.metadata = calloc(pb->n_metadata + 1, sizeof(*d.metadata));
	if (!d.ops || !d.metadata)
		return no_memory(err);
	for (; d.n_ops < pb->n_def; d.n_ops++)
		d.ops[d.n_ops] = (struct llb_bytes){pb->def[d.n_ops].data, pb->def[d.n_ops].len};
	for (size_t i = 0; i < pb->n_metadata; i++) {
		const Pb__MetadataEntry *entry = pb->metadata[i];
		struct llb_metadata_entry *to = &d.metadata[d.n_metadata];
		int r = digest(&to->digest, &entry->key, err);
		if (r < 0)
			return err_wrap(err, r, "metadata");
		to->metadata = (struct llb_bytes){entry->value.data, entry->value.len};
		d.n_metadata++;
	}
	*out = d;
	d = (struct llb_definition){0};
	return 0;
}

void llb_definition_deinit(struct llb_definition *d)
{
	free(d->ops);
	free(d->metadata);
	if (d->impl)
		pb__definition__free_unpacked(d->impl, NULL);
	*d = (struct llb_definition){0};
}

/* ------------------------------------------------------------------ names */

/* Appends a text to a display name. */
static int label_add(struct strbuf *label, const char *before, const ProtobufCBinaryData *data,
		     struct err *err)
{
	if (!is_text(data))
		return err_set(err, -EBADMSG, "text that is not valid UTF-8");
	strbuf_puts(label, before);
	if (data->len)
		strbuf_add(label, data->data, data->len);
	return 0;
}

static int label_exec(struct strbuf *label, const Pb__ExecOp *exec, struct err *err)
{
	int r = 0;
	for (size_t i = 0; exec->meta && i < exec->meta->n_args && r == 0; i++)
		r = label_add(label, i ? " " : "", &exec->meta->args[i], err);
	return r;
}

static int label_action(struct strbuf *label, const Pb__FileAction *action, struct err *err)
{
	int r;
	switch (action->action_case) {
	case PB__FILE_ACTION__ACTION_COPY:
		r = label_add(label, "copy ", &action->copy->src, err);
		return r < 0 ? r : label_add(label, " ", &action->copy->dest, err);
	case PB__FILE_ACTION__ACTION_MKFILE:
		return label_add(label, "mkfile ", &action->mkfile->path, err);
	case PB__FILE_ACTION__ACTION_MKDIR:
		return label_add(label, "mkdir ", &action->mkdir->path, err);
	case PB__FILE_ACTION__ACTION_RM:
		return label_add(label, "rm ", &action->rm->path, err);
	case PB__FILE_ACTION__ACTION_SYMLINK:
		r = label_add(label, "symlink ", &action->symlink->newpath, err);
		return r < 0 ? r : label_add(label, " -> ", &action->symlink->oldpath, err);
	case PB__FILE_ACTION__ACTION__NOT_SET:
	case _PB__FILE_ACTION__ACTION__CASE_IS_INT_SIZE:
		break;
	}
	strbuf_puts(label, "unknown");
	return 0;
}

static int label_file(struct strbuf *label, const Pb__FileOp *file, struct err *err)
{
	int r = 0;
	for (size_t i = 0; i < file->n_actions && r == 0; i++) {
		strbuf_puts(label, i ? ", " : "");
		r = label_action(label, file->actions[i], err);
	}
	return r;
}

static int make_label(struct llb_op *op, const Pb__Op *pb, struct err *err)
{
	scoped(strbuf_free) struct strbuf label = {0};
	int r = 0;
	switch (op->kind) {
	case OP_MERGE:
	case OP_DIFF:
		return 0;
	case OP_SOURCE:
		strbuf_puts(&label, op->source.identifier);
		break;
	case OP_EXEC:
		r = label_exec(&label, pb->exec, err);
		break;
	case OP_FILE:
		r = label_file(&label, pb->file, err);
		break;
	case OP_PASSTHROUGH:
		r = label_add(&label, "passthrough ", &pb->passthrough->id, err);
		break;
	case OP_BUILD:
	case OP_UNKNOWN:
		strbuf_puts(&label, op_kind_name(op->kind));
		break;
	}
	if (r < 0)
		return r;
	op->label = strbuf_finish(&label);
	return op->label ? 0 : no_memory(err);
}

/* ------------------------------------------------------------------ ops */

static int decode_inputs(struct llb_op *op, const Pb__Op *pb, struct err *err)
{
	op->inputs = calloc(pb->n_inputs + 1, sizeof(*op->inputs));
	if (!op->inputs)
		return no_memory(err);
	for (; op->n_inputs < pb->n_inputs; op->n_inputs++) {
		const Pb__Input *input = pb->inputs[op->n_inputs];
		struct llb_input *to = &op->inputs[op->n_inputs];
		int r = digest(&to->digest, &input->digest, err);
		if (r < 0)
			return err_wrap(err, r, "input %zu", op->n_inputs);
		if (input->index < 0 || input->index > INT_MAX)
			return err_set(err, -EBADMSG, "input %zu: no output has the index %lld",
				       op->n_inputs, (long long)input->index);
		to->index = (int)input->index;
	}
	return 0;
}

/* One part of a platform, which no real one needs more than 31 bytes for. */
static int decode_platform_part(char to[32], const ProtobufCBinaryData *data, struct err *err)
{
	if (data->len >= 32 || !is_text(data))
		return err_set(err, -EBADMSG, "platform: too long or not valid UTF-8 text");
	memcpy(to, data->len ? (const void *)data->data : "", data->len);
	to[data->len] = 0;
	return 0;
}

static int decode_platform(struct llb_op *op, const Pb__Platform *pb, struct err *err)
{
	/* One without architecture says nothing about which image. */
	if (!pb || pb->architecture.len == 0)
		return 0;
	int r = decode_platform_part(op->platform.arch, &pb->architecture, err);
	if (r == 0)
		r = decode_platform_part(op->platform.os, &pb->os, err);
	if (r == 0)
		r = decode_platform_part(op->platform.variant, &pb->variant, err);
	if (r < 0)
		return r;
	platform_normalize(&op->platform);
	op->has_platform = true;
	return 0;
}

static int decode_constraints(struct llb_op *op, const Pb__WorkerConstraints *pb, struct err *err)
{
	if (!pb || pb->n_filter == 0)
		return 0;
	op->constraints = calloc(pb->n_filter, sizeof(*op->constraints));
	if (!op->constraints)
		return no_memory(err);
	for (; op->n_constraints < pb->n_filter; op->n_constraints++) {
		int r = text(&op->constraints[op->n_constraints], &pb->filter[op->n_constraints],
			     "constraint", err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int decode_pairs(struct llb_pair **out, size_t *n_out, Pb__Attr *const *attrs, size_t n,
			struct err *err)
{
	*out = calloc(n + 1, sizeof(**out));
	if (!*out)
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		struct llb_pair *pair = &(*out)[(*n_out)++];
		int r = text(&pair->key, &attrs[i]->key, "a key", err);
		if (r == 0)
			r = text(&pair->value, &attrs[i]->value, pair->key, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int decode_source(struct llb_op *op, const Pb__SourceOp *pb, struct err *err)
{
	int r = text(&op->source.identifier, &pb->identifier, "identifier", err);
	if (r < 0)
		return r;
	return decode_pairs(&op->source.attrs, &op->source.n_attrs, pb->attrs, pb->n_attrs, err);
}

static int decode_prefix(char **out, const ProtobufCBinaryData *data, const char *what,
			 struct err *err)
{
	return data->len ? text(out, data, what, err) : 0;
}

static int decode_merge(struct llb_op *op, const Pb__MergeOp *pb, struct err *err)
{
	op->merge.inputs = calloc(pb->n_inputs + 1, sizeof(*op->merge.inputs));
	if (!op->merge.inputs)
		return no_memory(err);
	for (size_t i = 0; i < pb->n_inputs; i++) {
		const Pb__MergeInput *input = pb->inputs[i];
		struct llb_merge_input *to = &op->merge.inputs[op->merge.n_inputs++];
		if (input->input < 0 || (uint64_t)input->input >= op->n_inputs)
			return err_set(err, -EBADMSG, "merge input %zu: there is no input %lld", i,
				       (long long)input->input);
		to->input = (size_t)input->input;
		int r = decode_prefix(&to->add, &input->add_prefix, "addPrefix", err);
		if (r == 0)
			r = decode_prefix(&to->trim, &input->trim_prefix, "trimPrefix", err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int decode_side(ssize_t *out, const Pb__DiffInput *pb, size_t n_inputs, const char *side,
		       struct err *err)
{
	if (!pb)
		return err_set(err, -EBADMSG, "diff without %s", side);
	if (pb->input < -1 || (pb->input >= 0 && (uint64_t)pb->input >= n_inputs))
		return err_set(err, -EBADMSG, "diff: %s: there is no input %lld", side,
			       (long long)pb->input);
	*out = (ssize_t)pb->input;
	return 0;
}

static int decode_body(struct llb_op *op, const Pb__Op *pb, struct err *err)
{
	int r;
	switch (pb->op_case) {
	case PB__OP__OP_SOURCE:
		op->kind = OP_SOURCE;
		return decode_source(op, pb->source, err);
	case PB__OP__OP_MERGE:
		op->kind = OP_MERGE;
		return decode_merge(op, pb->merge, err);
	case PB__OP__OP_DIFF:
		op->kind = OP_DIFF;
		r = decode_side(&op->diff.lower, pb->diff->lower, op->n_inputs, "lower", err);
		return r < 0 ? r
			     : decode_side(&op->diff.upper, pb->diff->upper, op->n_inputs, "upper",
					   err);
	case PB__OP__OP_EXEC:
		op->kind = OP_EXEC;
		return 0;
	case PB__OP__OP_FILE:
		op->kind = OP_FILE;
		return 0;
	case PB__OP__OP_BUILD:
		op->kind = OP_BUILD;
		return 0;
	case PB__OP__OP_PASSTHROUGH:
		op->kind = OP_PASSTHROUGH;
		return 0;
	case PB__OP__OP__NOT_SET:
	case _PB__OP__OP__CASE_IS_INT_SIZE:
		break;
	}
	op->kind = OP_UNKNOWN;
	return 0;
}

static int decode_op(struct llb_op *op, const Pb__Op *pb, struct err *err)
{
	int r = decode_inputs(op, pb, err);
	if (r == 0)
		r = decode_platform(op, pb->platform, err);
	if (r == 0)
		r = decode_constraints(op, pb->constraints, err);
	if (r == 0)
		r = decode_body(op, pb, err);
	return r < 0 ? r : make_label(op, pb, err);
}

int llb_op_decode(struct llb_op *out, const struct llb_bytes *bytes, struct err *err)
{
	struct llb_op op = {0};
	Pb__Op *pb = pb__op__unpack(NULL, bytes->n, bytes->bytes);
	if (!pb)
		return err_set(err, -EBADMSG, "malformed protobuf");
	int r = decode_op(&op, pb, err);
	pb__op__free_unpacked(pb, NULL);
	if (r < 0)
		llb_op_deinit(&op);
	else
		*out = op;
	return r;
}

void llb_op_deinit(struct llb_op *op)
{
	free(op->inputs);
	free_texts(op->constraints, op->n_constraints);
	free(op->label);
	if (op->kind == OP_SOURCE) {
		free(op->source.identifier);
		free_pairs(op->source.attrs, op->source.n_attrs);
	} else if (op->kind == OP_MERGE) {
		for (size_t i = 0; i < op->merge.n_inputs; i++) {
			free(op->merge.inputs[i].add);
			free(op->merge.inputs[i].trim);
		}
		free(op->merge.inputs);
	}
	*op = (struct llb_op){0};
}

const char *op_kind_name(enum op_kind kind)
{
	switch (kind) {
	case OP_EXEC:
		return "exec";
	case OP_SOURCE:
		return "source";
	case OP_FILE:
		return "file";
	case OP_BUILD:
		return "build";
	case OP_MERGE:
		return "merge";
	case OP_DIFF:
		return "diff";
	case OP_PASSTHROUGH:
		return "passthrough";
	case OP_UNKNOWN:
		break;
	}
	return "unknown";
}

const char *llb_source_attr(const struct llb_op *op, const char *key)
{
	/* In a map the last of equal keys counts. */
	for (size_t i = op->source.n_attrs; i-- > 0;)
		if (strcmp(op->source.attrs[i].key, key) == 0)
			return op->source.attrs[i].value;
	return NULL;
}

/* ------------------------------------------------------------------ metadata */

static int decode_metadata(struct llb_metadata *m, const Pb__OpMetadata *pb, struct err *err)
{
	m->ignore_cache = pb->ignore_cache;
	m->has_export_cache = pb->export_cache != NULL;
	m->export_cache = pb->export_cache && pb->export_cache->value;
	int r = decode_pairs(&m->descriptions, &m->n_descriptions, pb->description,
			     pb->n_description, err);
	if (r < 0)
		return r;
	m->caps = calloc(pb->n_caps + 1, sizeof(*m->caps));
	if (!m->caps)
		return no_memory(err);
	for (size_t i = 0; i < pb->n_caps; i++) {
		if (!pb->caps[i]->value)
			continue;
		r = text(&m->caps[m->n_caps++], &pb->caps[i]->key, "capability", err);
		if (r < 0)
			return r;
	}
	const Pb__ProgressGroup *group = pb->progress_group;
	if (!group)
		return 0;
	m->group_weak = group->weak;
	r = text(&m->group_id, &group->id, "progress group", err);
	return r < 0 ? r : text(&m->group_name, &group->name, "progress group", err);
}

int llb_metadata_decode(struct llb_metadata *out, const struct llb_bytes *bytes, struct err *err)
{
	struct llb_metadata m = {0};
	Pb__OpMetadata *pb = pb__op_metadata__unpack(NULL, bytes->n, bytes->bytes);
	if (!pb)
		return err_set(err, -EBADMSG, "malformed protobuf");
	int r = decode_metadata(&m, pb, err);
	pb__op_metadata__free_unpacked(pb, NULL);
	if (r < 0)
		llb_metadata_deinit(&m);
	else
		*out = m;
	return r;
}

void llb_metadata_deinit(struct llb_metadata *m)
{
	free_pairs(m->descriptions, m->n_descriptions);
	free_texts(m->caps, m->n_caps);
	free(m->group_id);
	free(m->group_name);
	*m = (struct llb_metadata){0};
}
