/* SPDX-License-Identifier: Apache-2.0 */

/*
 * MergeOp: its inputs laid over each other, the last on top. No bytes are touched: the result is a
 * ref that points at the inputs. A partition (trimPrefix, addPrefix) of an input becomes that of a
 * part of the ref.
 */

#include "blobstore/base.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	size_t n = v->op.merge.n_inputs;
	scoped(free) struct ref_part *parts = calloc(n + 1, sizeof(*parts));
	if (!parts)
		return err_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++) {
		const struct llb_merge_input *input = &v->op.merge.inputs[i];
		parts[i].ref = inputs[input->input];
		parts[i].trim = input->trim;
		parts[i].add = input->add;
	}
	return ref_merge(&outputs[0], parts, n, err);
}

const struct op_ops op_merge = {.run = run};
