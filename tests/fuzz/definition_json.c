/* SPDX-License-Identifier: Apache-2.0 */

/* A definition as JSON: what is accepted is a protobuf that can be split into its ops, each of
 * which has one of the digests that the text gives. */

#include "solver/solver-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_op(const uint8_t *data, size_t size, const struct llb_bytes *op)
{
	struct digest digest;
	char text[DIGEST_TEXT_MAX];

	digest_bytes(&digest, op->n ? op->bytes : (const uint8_t *)"", op->n);
	digest_text(&digest, text);
	if (!memchr(data, '\\', size) && !memmem(data, size, text, strlen(text)))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped(strbuf_free) struct strbuf out = {0};
	struct llb_definition d;
	struct graph *g;
	struct err err = {0};

	if (llb_json_encode(&out, data, size, NULL) < 0 || out.len == 0)
		return 0;
	if (llb_definition_decode(&d, out.data, out.len, &err) < 0) {
		if (!strstr(err.text, "metadata")) /* of a name that is no digest */
			abort();
		return 0;
	}
	for (size_t i = 0; i < d.n_ops; i++)
		check_op(data, size, &d.ops[i]);
	llb_definition_deinit(&d);
	if (graph_load(&g, out.data, out.len, NULL) == 0)
		graph_free(g);
	return 0;
}
