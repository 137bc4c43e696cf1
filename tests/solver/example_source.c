/* SPDX-License-Identifier: Apache-2.0 */

/*
 * host-file:///path: one small file of this host, as it is when the definition is solved. The
 * worked example of docs/sources.md; tests/solver/example.c runs it.
 */

#include <fcntl.h>

#include "solver/gojson.h"
#include "solver/solver-internal.h"

#define FILE_MAX (1u << 20)

/* What asking found out. It is the vertex's, and freed with it. */
struct example_asked {
	struct strbuf bytes;
	struct digest digest;
};

static void asked_free(void *arg)
{
	struct example_asked *asked = arg;
	strbuf_free(&asked->bytes);
	free(asked);
}

/* Once a vertex, before keys and run, and only when somebody may be asked. */
static int ask(struct vertex *v, struct solver *solver, struct err *err)
{
	const char *path = source_rest(v);
	if (path[0] != '/')
		return err_set(err, -EINVAL, "\"%s\" is not an absolute path", path);
	struct example_asked *asked = calloc(1, sizeof(*asked));
	if (!asked)
		return err_set(err, -ENOMEM, "out of memory");
	int r = read_file(AT_FDCWD, path, FILE_MAX, &asked->bytes);
	if (r == 0 && asked->bytes.failed)
		r = -ENOMEM;
	if (r < 0) {
		asked_free(asked);
		return err_set(err, r, "%s: %s", path, strerror(-r));
	}
	digest_bytes(&asked->digest, asked->bytes.data, asked->bytes.len);
	v->asked = asked;
	return 0;
}

/* Whatever the result depends on, and nothing else: not where the file is, not when it was read. */
static int keys(struct vertex_keys *out, const struct vertex *v, const struct solver *solver,
		struct err *err)
{
	const struct example_asked *asked = v->asked;
	scoped(strbuf_free) struct strbuf key = {0};
	char text[DIGEST_TEXT_MAX];
	if (!asked)
		return err_set(err, -ENODATA, "what the file has is not known without reading it");
	gojson_open(&key, '{');
	gojson_member_text(&key, "Name", strrchr(source_rest(v), '/') + 1);
	gojson_member_text(&key, "Digest", digest_text(&asked->digest, text));
	gojson_close(&key, '}');
	return keys_add_source(out, &key, err);
}

/* The result: a tree of changes over nothing. A large file would not be in memory but point to
 * content of the store (source_file.c), to a host folder (source_local.c) or to layers. */
static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	const struct example_asked *asked = v->asked;
	scoped(tree_unref) struct tree *layer = NULL;
	scoped(edit_free) struct edit *edit = NULL;
	const char *name = strrchr(source_rest(v), '/') + 1;
	const struct attr attr = {.type = NODE_FILE, .mode = 0644};
	const struct edit_what what = {
		.attr = &attr, .data = asked->bytes.data, .len = asked->bytes.len};
	uint64_t node;
	if (edit_new(&edit, NULL, &solver->now) < 0)
		return err_set(err, -ENOMEM, "out of memory");
	int r = edit_make(edit, TREE_ROOT, name, strlen(name), &what, &node, err);
	if (r == 0)
		r = edit_seal(&layer, &edit, err);
	return r < 0 ? r : ref_made(&outputs[0], v->op.source.identifier, layer, err);
}

/* Its row in graph.c: {OP_SOURCE, "host-file://", &source_example_op} */
extern const struct op_ops source_example_op;
const struct op_ops source_example_op = {
	.ask = ask,
	.keys = keys,
	.run = run,
	.asked_free = asked_free,
};
