/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A decoded op, apart from how it came: what it is called, its attributes, its end.
 *
 * Display names are BuildKit's. A name is made of what the op itself says; merge and diff, whose
 * names hold those of their inputs, get theirs from graph.c.
 */

#include "blobstore/base.h"
#include "solver/solver-internal.h"

/* ------------------------------------------------------------------ names */

static void add_action(struct strbuf *label, const struct llb_action *action)
{
	switch (action->kind) {
	case ACTION_COPY:
		strbuf_printf(label, "copy %s %s", action->from, action->path);
		break;
	case ACTION_MKFILE:
		strbuf_printf(label, "mkfile %s", action->path);
		break;
	case ACTION_MKDIR:
		strbuf_printf(label, "mkdir %s", action->path);
		break;
	case ACTION_RM:
		strbuf_printf(label, "rm %s", action->path);
		break;
	case ACTION_SYMLINK:
		strbuf_printf(label, "symlink %s -> %s", action->path, action->from);
		break;
	case ACTION_UNKNOWN:
		strbuf_puts(label, "unknown");
		break;
	}
}

int llb_op_label(struct llb_op *op, struct err *err)
{
	scoped(strbuf_free) struct strbuf label = {0};
	switch (op->kind) {
	case OP_MERGE:
	case OP_DIFF:
		return 0;
	case OP_SOURCE:
		strbuf_puts(&label, op->source.identifier);
		break;
	case OP_EXEC:
		for (size_t i = 0; i < op->exec.n_args; i++) {
			strbuf_puts(&label, i ? " " : "");
			strbuf_puts(&label, op->exec.args[i]);
		}
		break;
	case OP_FILE:
		for (size_t i = 0; i < op->file.n_actions; i++) {
			strbuf_puts(&label, i ? ", " : "");
			add_action(&label, &op->file.actions[i]);
		}
		break;
	case OP_PASSTHROUGH:
		strbuf_printf(&label, "passthrough %s", op->passthrough.id);
		break;
	case OP_BUILD:
	case OP_UNKNOWN:
		strbuf_puts(&label, op_kind_name(op->kind));
		break;
	}
	op->label = strbuf_finish(&label);
	return op->label ? 0 : err_set(err, -ENOMEM, "out of memory");
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

/* ------------------------------------------------------------------ parts */

const char *llb_source_attr(const struct llb_op *op, const char *key)
{
	/* In a map the last of equal keys counts. */
	for (size_t i = op->source.n_attrs; i-- > 0;)
		if (strcmp(op->source.attrs[i].key, key) == 0)
			return op->source.attrs[i].value;
	return NULL;
}

static void free_pairs(struct llb_pair *pairs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		free(pairs[i].key);
		free(pairs[i].value);
	}
	free(pairs);
}

static void free_exec(struct llb_exec *exec)
{
	texts_free(exec->args, exec->n_args);
	texts_free(exec->env, exec->n_env);
	free(exec->cwd);
	free(exec->user);
	free(exec->hostname);
	free(exec->cgroup_parent);
	free_pairs(exec->proxies, exec->n_proxies);
	free_pairs(exec->hosts, exec->n_hosts);
	for (size_t i = 0; i < exec->n_ulimits; i++)
		free(exec->ulimits[i].name);
	free(exec->ulimits);
	free(exec->exit_codes);
	for (size_t i = 0; i < exec->n_mounts; i++) {
		struct llb_mount *mount = &exec->mounts[i];
		free(mount->selector);
		free(mount->dest);
		free(mount->path);
		free(mount->cache_id);
		free(mount->secret.id);
		free(mount->ssh.id);
		free(mount->result_id);
	}
	free(exec->mounts);
	for (size_t i = 0; i < exec->n_secret_envs; i++) {
		free(exec->secret_envs[i].id);
		free(exec->secret_envs[i].name);
	}
	free(exec->secret_envs);
	for (size_t i = 0; i < exec->n_devices; i++)
		free(exec->devices[i].name);
	free(exec->devices);
}

static void free_file(struct llb_file *file)
{
	for (size_t i = 0; i < file->n_actions; i++) {
		struct llb_action *action = &file->actions[i];
		free(action->path);
		free(action->from);
		free(action->user.name);
		free(action->group.name);
		free(action->mode_text);
		texts_free(action->include, action->n_include);
		texts_free(action->exclude, action->n_exclude);
		texts_free(action->required, action->n_required);
		free(action->data);
	}
	free(file->actions);
}

static void free_merge(struct llb_op *op)
{
	for (size_t i = 0; i < op->merge.n_inputs; i++) {
		free(op->merge.inputs[i].add);
		free(op->merge.inputs[i].trim);
	}
	free(op->merge.inputs);
}

static void free_build(struct llb_build *build)
{
	for (size_t i = 0; i < build->n_inputs; i++)
		free(build->inputs[i].name);
	free(build->inputs);
	free_pairs(build->attrs, build->n_attrs);
}

void llb_op_deinit(struct llb_op *op)
{
	free(op->inputs);
	free(op->os_version);
	texts_free(op->os_features, op->n_os_features);
	texts_free(op->constraints, op->n_constraints);
	free(op->label);
	switch (op->kind) {
	case OP_SOURCE:
		free(op->source.identifier);
		free_pairs(op->source.attrs, op->source.n_attrs);
		break;
	case OP_MERGE:
		free_merge(op);
		break;
	case OP_EXEC:
		free_exec(&op->exec);
		break;
	case OP_FILE:
		free_file(&op->file);
		break;
	case OP_BUILD:
		free_build(&op->build);
		break;
	case OP_PASSTHROUGH:
		free(op->passthrough.id);
		free(op->passthrough.outputs);
		break;
	case OP_DIFF:
	case OP_UNKNOWN:
		break;
	}
	*op = (struct llb_op){0};
}

void llb_metadata_deinit(struct llb_metadata *m)
{
	free_pairs(m->descriptions, m->n_descriptions);
	texts_free(m->caps, m->n_caps);
	free(m->group_id);
	free(m->group_name);
	*m = (struct llb_metadata){0};
}
