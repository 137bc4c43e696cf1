/* SPDX-License-Identifier: Apache-2.0 */

/*
 * BuildOp: a definition that is found in an input, as a file, and solved in the place of the vertex.
 *
 * The file may say anything, also that it is to be built again: a host folder can hold a definition
 * that builds the definition in that folder. So each vertex knows how many builds it is inside of,
 * and that is bounded, which bounds the stack, too; and because a definition may build several
 * others, all that one solver builds so are counted.
 */

#include <stdatomic.h>

#include "blobstore/base.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define INPUT_NAME "buildkit.llb.definition"
#define FILE_NAME_ATTR "llbbuild.filename"
#define DEPTH_MAX 16
#define BUILDS_MAX 10000
#define FILE_MAX (64u << 20)

static int find_input(const struct llb_build *build, struct ref *const *inputs, struct ref **out,
		      struct err *err)
{
	if (build->builder != -1)
		return err_set(err, -ENOTSUP, "the builder is an input; only LLB can be built");
	*out = NULL;
	for (size_t i = 0; i < build->n_inputs; i++) /* of equal names the last counts */
		if (strcmp(build->inputs[i].name, INPUT_NAME) == 0)
			*out = build->inputs[i].input < 0 ? NULL : inputs[build->inputs[i].input];
	return *out ? 0 : err_set(err, -EBADMSG, "no input is called " INPUT_NAME);
}

static const char *file_name(const struct llb_build *build)
{
	const char *name = INPUT_NAME;
	for (size_t i = 0; i < build->n_attrs; i++)
		if (strcmp(build->attrs[i].key, FILE_NAME_ATTR) == 0)
			name = build->attrs[i].value;
	return name;
}

static int read_definition(struct strbuf *out, struct ref *input, const char *name,
			   struct store *store, struct err *err)
{
	scoped(tree_unref) struct tree *tree = NULL;
	struct attr attr;
	int r = ref_tree(&tree, input, store, NULL, NULL, err);
	if (r == 0)
		r = tree_walk(tree, name, true, &attr, err);
	if (r < 0)
		return err_wrap(err, r, "definition %s", name);
	if (attr.type != NODE_FILE || attr.size > FILE_MAX)
		return err_set(err, -EBADMSG, "definition %s: no file of at most %u MiB", name,
			       FILE_MAX >> 20);
	r = file_read(tree, &attr, out, err);
	return r < 0 ? err_wrap(err, r, "definition %s", name) : 0;
}

static int count_build(const struct vertex *v, struct solver *solver, struct err *err)
{
	if (v->depth >= DEPTH_MAX)
		return err_set(err, -ELOOP, "a build in more than %d builds", DEPTH_MAX);
	if (atomic_fetch_add(&solver->n_builds, 1) >= BUILDS_MAX)
		return err_set(err, -ELOOP, "more than %d definitions in definitions", BUILDS_MAX);
	return 0;
}

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	scoped(graph_free) struct graph *inner = NULL;
	scoped(strbuf_free) struct strbuf bytes = {0};
	struct vertex *result;
	struct ref *input;
	int index, r = count_build(v, solver, err);
	if (r == 0)
		r = find_input(&v->op.build, inputs, &input, err);
	if (r == 0)
		r = read_definition(&bytes, input, file_name(&v->op.build), solver->options.store,
				    err);
	if (r == 0)
		r = graph_load(&inner, bytes.data, bytes.len, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < graph_count(inner); i++)
		graph_vertex(inner, i)->depth = v->depth + 1;
	graph_result(inner, &result, &index);
	return graph_solve(inner, solver, result, index, NULL, &outputs[0], err);
}

const struct op_ops op_build = {.run = run};
