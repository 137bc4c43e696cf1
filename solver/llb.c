/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The wire format of LLB: decodes definitions, ops and metadata into the program's own structs.
 * The generated code (llb.proto says how it differs from BuildKit's) ends here, and in llb_json.c
 * and llb_source.c.
 *
 * A definition is a list of serialized ops; each is decoded by itself, so that one op's memory is
 * bounded by its own bytes and nothing follows the depth of the graph. What the format leaves open
 * is checked here: text is UTF-8 without NUL, numbers that are indexes are in range. A field that
 * is not decoded is neither lost nor judged: vertices keep their bytes.
 *
 * What an op must be to be solved at all (an exec has a root mount) is for those who solve it.
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

static int texts(char ***out, size_t *n_out, const ProtobufCBinaryData *data, size_t n,
		 const char *what, struct err *err)
{
	if (n == 0)
		return 0;
	*out = calloc(n, sizeof(**out));
	if (!*out)
		return no_memory(err);
	int r = 0;
	for (; *n_out < n && r == 0; (*n_out)++)
		r = text(&(*out)[*n_out], &data[*n_out], what, err);
	return r;
}

/* A text that is NULL when it is not there. */
static int optional_text(char **out, const ProtobufCBinaryData *data, const char *what,
			 struct err *err)
{
	return data->len ? text(out, data, what, err) : 0;
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

/* ------------------------------------------------------------------ the definition */

int llb_definition_decode(struct llb_definition *out, const void *bytes, size_t n, struct err *err)
{
	scoped(llb_definition_deinit) struct llb_definition d = {0};
	Pb__Definition *pb = pb__definition__unpack(NULL, n, bytes);
	if (!pb)
		return err_set(err, -EBADMSG, "not a definition: malformed protobuf");
	d.impl = pb;
	d.source = (struct llb_bytes){pb->source.data, pb->source.len};
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

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void sort_features(struct llb_op *op)
{
	size_t n = 0;
	if (op->n_os_features)
		qsort(op->os_features, op->n_os_features, sizeof(*op->os_features), compare_texts);
	for (size_t i = 0; i < op->n_os_features; i++) {
		if (n && strcmp(op->os_features[n - 1], op->os_features[i]) == 0)
			free(op->os_features[i]);
		else
			op->os_features[n++] = op->os_features[i];
	}
	op->n_os_features = n;
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
	r = optional_text(&op->os_version, &pb->os_version, "OS version", err);
	if (r == 0)
		r = texts(&op->os_features, &op->n_os_features, pb->os_features, pb->n_os_features,
			  "OS feature", err);
	if (r == 0)
		sort_features(op);
	return r;
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
		int r = optional_text(&to->add, &input->add_prefix, "addPrefix", err);
		if (r == 0)
			r = optional_text(&to->trim, &input->trim_prefix, "trimPrefix", err);
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

/* An input by number, none being -1. */
static int check_input(int64_t input, size_t n, const char *what, size_t i, struct err *err)
{
	if (input >= -1 && (input < 0 || (uint64_t)input < n))
		return 0;
	return err_set(err, -EBADMSG, "%s %zu: there is no input %lld", what, i, (long long)input);
}

/* ------------------------------------------------------------------ exec */

static int decode_proxies(struct llb_exec *exec, const Pb__ProxyEnv *pb, struct err *err)
{
	if (!pb)
		return 0;
	const struct {
		const char *key;
		const ProtobufCBinaryData *value;
	} all[] = {
		{"http_proxy", &pb->http_proxy}, {"https_proxy", &pb->https_proxy},
		{"ftp_proxy", &pb->ftp_proxy},	 {"no_proxy", &pb->no_proxy},
		{"all_proxy", &pb->all_proxy},
	};
	exec->proxies = calloc(countof(all), sizeof(*exec->proxies));
	if (!exec->proxies)
		return no_memory(err);
	for (size_t i = 0; i < countof(all); i++) {
		if (all[i].value->len == 0)
			continue;
		struct llb_pair *pair = &exec->proxies[exec->n_proxies++];
		pair->key = strdup(all[i].key);
		if (!pair->key)
			return no_memory(err);
		int r = text(&pair->value, all[i].value, all[i].key, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int decode_hosts(struct llb_exec *exec, const Pb__Meta *pb, struct err *err)
{
	exec->hosts = calloc(pb->n_extra_hosts + 1, sizeof(*exec->hosts));
	exec->ulimits = calloc(pb->n_ulimit + 1, sizeof(*exec->ulimits));
	if (!exec->hosts || !exec->ulimits)
		return no_memory(err);
	int r = 0;
	for (size_t i = 0; i < pb->n_extra_hosts && r == 0; i++) {
		struct llb_pair *pair = &exec->hosts[exec->n_hosts++];
		r = text(&pair->key, &pb->extra_hosts[i]->host, "extra host", err);
		if (r == 0)
			r = text(&pair->value, &pb->extra_hosts[i]->ip, "extra host", err);
	}
	for (size_t i = 0; i < pb->n_ulimit && r == 0; i++) {
		struct llb_ulimit *to = &exec->ulimits[exec->n_ulimits++];
		to->soft = pb->ulimit[i]->soft;
		to->hard = pb->ulimit[i]->hard;
		r = text(&to->name, &pb->ulimit[i]->name, "ulimit", err);
	}
	return r;
}

static int decode_meta(struct llb_exec *exec, const Pb__Meta *pb, struct err *err)
{
	if (!pb)
		return 0;
	exec->has_meta = true;
	exec->remove_mount_stubs_recursive = pb->remove_mount_stubs_recursive;
	int r = texts(&exec->args, &exec->n_args, pb->args, pb->n_args, "argument", err);
	if (r == 0)
		r = texts(&exec->env, &exec->n_env, pb->env, pb->n_env, "environment", err);
	if (r == 0)
		r = text(&exec->cwd, &pb->cwd, "cwd", err);
	if (r == 0)
		r = text(&exec->user, &pb->user, "user", err);
	if (r == 0)
		r = text(&exec->hostname, &pb->hostname, "hostname", err);
	if (r == 0)
		r = text(&exec->cgroup_parent, &pb->cgroup_parent, "cgroup parent", err);
	if (r == 0)
		r = decode_proxies(exec, pb->proxy_env, err);
	if (r == 0)
		r = decode_hosts(exec, pb, err);
	if (r < 0 || pb->n_valid_exit_codes == 0)
		return r;
	exec->exit_codes = calloc(pb->n_valid_exit_codes, sizeof(*exec->exit_codes));
	if (!exec->exit_codes)
		return no_memory(err);
	exec->n_exit_codes = pb->n_valid_exit_codes;
	memcpy(exec->exit_codes, pb->valid_exit_codes,
	       exec->n_exit_codes * sizeof(*exec->exit_codes));
	return 0;
}

static int decode_secret(struct llb_secret_opt *to, bool *has, const Pb__SecretOpt *pb,
			 struct err *err)
{
	*has = pb != NULL;
	if (!pb)
		return 0;
	to->uid = pb->uid;
	to->gid = pb->gid;
	to->mode = pb->mode;
	to->optional = pb->optional;
	return text(&to->id, &pb->id, "a secret's ID", err);
}

static int decode_mount(struct llb_mount *to, const Pb__Mount *pb, struct err *err)
{
	to->input = pb->input;
	to->output = pb->output;
	to->readonly = pb->readonly;
	to->type = (int)pb->mount_type;
	to->content_cache = (int)pb->content_cache;
	to->has_tmpfs = pb->tmpfs_opt != NULL;
	to->tmpfs_size = pb->tmpfs_opt ? pb->tmpfs_opt->size : 0;
	to->has_cache = pb->cache_opt != NULL;
	to->cache_sharing = pb->cache_opt ? (int)pb->cache_opt->sharing : 0;
	int r = text(&to->selector, &pb->selector, "selector", err);
	if (r == 0)
		r = text(&to->dest, &pb->dest, "destination", err);
	if (r == 0 && !(to->path = path_clean(to->selector, strlen(to->selector))))
		r = no_memory(err);
	if (r == 0)
		r = text(&to->result_id, &pb->result_id, "result ID", err);
	if (r == 0 && pb->cache_opt)
		r = text(&to->cache_id, &pb->cache_opt->id, "cache ID", err);
	if (r == 0)
		r = decode_secret(&to->secret, &to->has_secret, pb->secret_opt, err);
	return r < 0 ? r : decode_secret(&to->ssh, &to->has_ssh, pb->ssh_opt, err);
}

static int decode_mounts(struct llb_op *op, const Pb__ExecOp *pb, struct err *err)
{
	struct llb_exec *exec = &op->exec;
	exec->mounts = calloc(pb->n_mounts + 1, sizeof(*exec->mounts));
	if (!exec->mounts)
		return no_memory(err);
	for (size_t i = 0; i < pb->n_mounts; i++) {
		int r = check_input(pb->mounts[i]->input, op->n_inputs, "mount", i, err);
		if (r < 0)
			return r;
		r = decode_mount(&exec->mounts[exec->n_mounts++], pb->mounts[i], err);
		if (r < 0)
			return err_wrap(err, r, "mount %zu", i);
	}
	return 0;
}

static int decode_exec(struct llb_op *op, const Pb__ExecOp *pb, struct err *err)
{
	struct llb_exec *exec = &op->exec;
	exec->network = (int)pb->network;
	exec->security = (int)pb->security;
	int r = decode_meta(exec, pb->meta, err);
	if (r == 0)
		r = decode_mounts(op, pb, err);
	if (r < 0)
		return r;
	exec->secret_envs = calloc(pb->n_secretenv + 1, sizeof(*exec->secret_envs));
	exec->devices = calloc(pb->n_cdi_devices + 1, sizeof(*exec->devices));
	if (!exec->secret_envs || !exec->devices)
		return no_memory(err);
	for (size_t i = 0; i < pb->n_secretenv && r == 0; i++) {
		struct llb_secret_env *to = &exec->secret_envs[exec->n_secret_envs++];
		to->optional = pb->secretenv[i]->optional;
		r = text(&to->id, &pb->secretenv[i]->id, "a secret's ID", err);
		if (r == 0)
			r = text(&to->name, &pb->secretenv[i]->name, "a secret's name", err);
	}
	for (size_t i = 0; i < pb->n_cdi_devices && r == 0; i++) {
		struct llb_device *to = &exec->devices[exec->n_devices++];
		to->optional = pb->cdi_devices[i]->optional;
		r = text(&to->name, &pb->cdi_devices[i]->name, "device", err);
	}
	return r;
}

/* ------------------------------------------------------------------ file */

static int decode_user(struct llb_owner *to, const Pb__UserOpt *pb, struct err *err)
{
	if (!pb)
		return 0;
	to->is_set = true;
	if (pb->user_case == PB__USER_OPT__USER_BY_ID)
		to->id = pb->by_id;
	if (pb->user_case != PB__USER_OPT__USER_BY_NAME)
		return 0;
	to->input = pb->by_name->input;
	return text(&to->name, &pb->by_name->name, "owner", err);
}

static int decode_owner(struct llb_action *to, const Pb__ChownOpt *pb, struct err *err)
{
	if (!pb)
		return 0;
	to->has_owner = true;
	int r = decode_user(&to->user, pb->user, err);
	return r < 0 ? r : decode_user(&to->group, pb->group, err);
}

static int decode_copy(struct llb_action *to, const Pb__FileActionCopy *pb, struct err *err)
{
	to->kind = ACTION_COPY;
	to->mode = pb->mode;
	to->timestamp = pb->timestamp;
	to->follow_symlink = pb->follow_symlink;
	to->dir_copy_contents = pb->dir_copy_contents;
	to->attempt_unpack = pb->attempt_unpack_docker_compatibility;
	to->create_dest_path = pb->create_dest_path;
	to->allow_wildcard = pb->allow_wildcard;
	to->allow_empty_wildcard = pb->allow_empty_wildcard;
	to->always_replace = pb->always_replace_existing_dest_paths;
	int r = text(&to->from, &pb->src, "source path", err);
	if (r == 0)
		r = text(&to->path, &pb->dest, "destination", err);
	if (r == 0)
		r = text(&to->mode_text, &pb->mode_str, "mode", err);
	if (r == 0)
		r = texts(&to->include, &to->n_include, pb->include_patterns,
			  pb->n_include_patterns, "pattern", err);
	if (r == 0)
		r = texts(&to->exclude, &to->n_exclude, pb->exclude_patterns,
			  pb->n_exclude_patterns, "pattern", err);
	if (r == 0)
		r = texts(&to->required, &to->n_required, pb->required_paths, pb->n_required_paths,
			  "required path", err);
	return r < 0 ? r : decode_owner(to, pb->owner, err);
}

static int decode_mkfile(struct llb_action *to, const Pb__FileActionMkFile *pb, struct err *err)
{
	to->kind = ACTION_MKFILE;
	to->mode = pb->mode;
	to->timestamp = pb->timestamp;
	to->data = malloc(pb->data.len + 1);
	if (!to->data)
		return no_memory(err);
	to->n_data = pb->data.len;
	memcpy(to->data, pb->data.len ? (const void *)pb->data.data : "", pb->data.len);
	int r = text(&to->path, &pb->path, "path", err);
	return r < 0 ? r : decode_owner(to, pb->owner, err);
}

static int decode_action(struct llb_action *to, const Pb__FileAction *pb, struct err *err)
{
	int r;
	to->input = pb->input;
	to->secondary_input = pb->secondary_input;
	to->output = pb->output;
	switch (pb->action_case) {
	case PB__FILE_ACTION__ACTION_COPY:
		return decode_copy(to, pb->copy, err);
	case PB__FILE_ACTION__ACTION_MKFILE:
		return decode_mkfile(to, pb->mkfile, err);
	case PB__FILE_ACTION__ACTION_MKDIR:
		to->kind = ACTION_MKDIR;
		to->mode = pb->mkdir->mode;
		to->timestamp = pb->mkdir->timestamp;
		to->make_parents = pb->mkdir->make_parents;
		r = text(&to->path, &pb->mkdir->path, "path", err);
		return r < 0 ? r : decode_owner(to, pb->mkdir->owner, err);
	case PB__FILE_ACTION__ACTION_RM:
		to->kind = ACTION_RM;
		to->allow_not_found = pb->rm->allow_not_found;
		to->allow_wildcard = pb->rm->allow_wildcard;
		return text(&to->path, &pb->rm->path, "path", err);
	case PB__FILE_ACTION__ACTION_SYMLINK:
		to->kind = ACTION_SYMLINK;
		to->timestamp = pb->symlink->timestamp;
		r = text(&to->path, &pb->symlink->newpath, "path", err);
		if (r == 0)
			r = text(&to->from, &pb->symlink->oldpath, "target", err);
		return r < 0 ? r : decode_owner(to, pb->symlink->owner, err);
	case PB__FILE_ACTION__ACTION__NOT_SET:
	case _PB__FILE_ACTION__ACTION__CASE_IS_INT_SIZE:
		break;
	}
	to->kind = ACTION_UNKNOWN;
	return 0;
}

/* Outputs are numbered without gaps, and each is one action's. */
static int check_outputs(struct llb_op *op, struct err *err)
{
	size_t n = op->file.n_actions, n_outputs = 0;
	scoped(free) uint8_t *seen = calloc(n + 1, 1);
	if (!seen)
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		int64_t output = op->file.actions[i].output;
		if (output == -1)
			continue;
		if (output < 0 || (uint64_t)output >= n || seen[output])
			return err_set(err, -EBADMSG, "action %zu: bad output %lld", i,
				       (long long)output);
		seen[output] = 1;
		n_outputs++;
	}
	if (n_outputs == 0 || memchr(seen, 0, n_outputs))
		return err_set(err, -EBADMSG, "a file op without output, or with a gap in them");
	op->file.n_outputs = n_outputs;
	return 0;
}

static int decode_file(struct llb_op *op, const Pb__FileOp *pb, struct err *err)
{
	struct llb_file *file = &op->file;
	file->actions = calloc(pb->n_actions + 1, sizeof(*file->actions));
	if (!file->actions)
		return no_memory(err);
	int r = 0;
	for (size_t i = 0; i < pb->n_actions && r == 0; i++) {
		size_t n = op->n_inputs + pb->n_actions;
		r = check_input(pb->actions[i]->input, n, "action", i, err);
		if (r == 0)
			r = check_input(pb->actions[i]->secondary_input, n, "action", i, err);
		if (r == 0)
			r = decode_action(&file->actions[file->n_actions++], pb->actions[i], err);
	}
	return r < 0 ? r : check_outputs(op, err);
}

/* ------------------------------------------------------------------ build, passthrough */

static int decode_build(struct llb_op *op, const Pb__BuildOp *pb, struct err *err)
{
	struct llb_build *build = &op->build;
	build->builder = pb->builder;
	build->has_definition = pb->def.len > 0;
	build->inputs = calloc(pb->n_inputs + 1, sizeof(*build->inputs));
	if (!build->inputs)
		return no_memory(err);
	for (size_t i = 0; i < pb->n_inputs; i++) {
		struct llb_build_input *to = &build->inputs[build->n_inputs++];
		to->input = pb->inputs[i]->value ? pb->inputs[i]->value->input : 0;
		int r = text(&to->name, &pb->inputs[i]->key, "input", err);
		if (r == 0)
			r = check_input(to->input, op->n_inputs, "build", i, err);
		if (r < 0)
			return r;
	}
	return decode_pairs(&build->attrs, &build->n_attrs, pb->attrs, pb->n_attrs, err);
}

static int decode_passthrough(struct llb_op *op, const Pb__PassthroughOp *pb, struct err *err)
{
	struct llb_passthrough *pass = &op->passthrough;
	pass->outputs = calloc(pb->n_outputs + 1, sizeof(*pass->outputs));
	if (!pass->outputs)
		return no_memory(err);
	for (; pass->n_outputs < pb->n_outputs; pass->n_outputs++) {
		int64_t input = pb->outputs[pass->n_outputs];
		if (input < 0 || (uint64_t)input >= op->n_inputs)
			return err_set(err, -EBADMSG, "output %zu: there is no input %lld",
				       pass->n_outputs, (long long)input);
		pass->outputs[pass->n_outputs] = input;
	}
	return text(&pass->id, &pb->id, "ID", err);
}

/* ------------------------------------------------------------------ any op */

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
		return decode_exec(op, pb->exec, err);
	case PB__OP__OP_FILE:
		op->kind = OP_FILE;
		return decode_file(op, pb->file, err);
	case PB__OP__OP_BUILD:
		op->kind = OP_BUILD;
		return decode_build(op, pb->build, err);
	case PB__OP__OP_PASSTHROUGH:
		op->kind = OP_PASSTHROUGH;
		return decode_passthrough(op, pb->passthrough, err);
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
	if (r == 0 && pb->constraints)
		r = texts(&op->constraints, &op->n_constraints, pb->constraints->filter,
			  pb->constraints->n_filter, "constraint", err);
	if (r == 0)
		r = decode_body(op, pb, err);
	return r < 0 ? r : llb_op_label(op, err);
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
