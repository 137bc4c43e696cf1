/* SPDX-License-Identifier: Apache-2.0 */

/*
 * PassthroughOp: a vertex that groups. Its outputs are some of its inputs, as they are; that it has
 * others too only means that they must have been solved before anybody gets one.
 */

#include "blobstore/base.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	const struct llb_passthrough *pass = &v->op.passthrough;
	if (!*pass->id)
		return err_set(err, -EBADMSG, "a passthrough without an ID");
	for (size_t i = 0; i < pass->n_outputs; i++)
		outputs[i] = ref_ref(inputs[pass->outputs[i]]);
	return 0;
}

const struct op_ops op_passthrough = {.run = run};
