/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Content keys: the digest of what an op takes of the content of an input, which may stand for the
 * input's definition.
 *
 * Each selector of the input gives a digest (merge/treehash.c); their texts, joined by NUL, are
 * hashed again. Hashing reads what is selected and nothing else. What was hashed of a ref that stays
 * is remembered by (ref, selectors), so that no content is read twice.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/cache-internal.h"
#include "solver/solver-internal.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ naming what is selected */

static void put_text(struct strbuf *out, const char *text)
{
	strbuf_printf(out, "%zu:", strlen(text));
	strbuf_puts(out, text);
}

static void put_texts(struct strbuf *out, char *const *texts, size_t n)
{
	strbuf_printf(out, "%zu;", n);
	for (size_t i = 0; i < n; i++)
		put_text(out, texts[i]);
}

static int selectors_digest(struct digest *out, const struct cache_input *input)
{
	scoped(strbuf_free) struct strbuf text = {0};
	for (size_t i = 0; i < input->n_selectors; i++) {
		const struct content_selector *sel = &input->selectors[i];
		put_text(&text, sel->path);
		strbuf_printf(&text, "%d%d", sel->wildcard, sel->follow);
		put_texts(&text, sel->include, sel->n_include);
		put_texts(&text, sel->exclude, sel->n_exclude);
		put_texts(&text, sel->required, sel->n_required);
	}
	if (text.failed)
		return -ENOMEM;
	digest_bytes(out, text.data ? text.data : "", text.len);
	return 0;
}

/* ------------------------------------------------------------------ hashing */

static int hash_selector(struct tree *tree, const struct content_selector *sel, bool is_upload,
			 const struct treehash_known *known, struct digest *out, struct err *err)
{
	/* Cleaned, so that a slash at the end says nothing. */
	scoped(free) char *path = path_clean(sel->path, strlen(sel->path));
	if (!path)
		return no_memory(err);
	const struct treehash_ask ask = {
		.path = path,
		.follow = sel->follow,
		.wildcard = sel->wildcard,
		.include = (const char *const *)sel->include,
		.exclude = (const char *const *)sel->exclude,
		.n_include = sel->n_include,
		.n_exclude = sel->n_exclude,
		.is_upload = is_upload,
		.known = known,
	};
	return treehash(tree, &ask, out, err);
}

/* ------------------------------------------------------------------ special inputs */

/* Where output @output of @v is another's unchanged, goes to that one; else false. */
static bool go_to_origin(const struct vertex **v, int *output)
{
	const struct llb_op *op = &(*v)->op;
	int64_t input = -1;
	if (op->kind == OP_PASSTHROUGH && (size_t)*output < op->passthrough.n_outputs)
		input = op->passthrough.outputs[*output];
	else if (op->kind == OP_DIFF && op->diff.lower < 0)
		input = op->diff.upper;
	else if (op->kind == OP_MERGE && op->merge.n_inputs == 1 && !op->merge.inputs[0].trim &&
		 !op->merge.inputs[0].add)
		input = (int64_t)op->merge.inputs[0].input;
	if (input < 0 || (uint64_t)input >= op->n_inputs)
		return false;
	*output = (*v)->inputs[input].index;
	*v = (*v)->inputs[input].vertex;
	return true;
}

/* BuildKit hashes an upload while it comes in, and that stays with it where it is passed on. */
static bool is_from_upload(const struct edge *from)
{
	const struct vertex *v = from->vertex;
	int output = from->index;
	while (v->ops != &source_local_op)
		if (!go_to_origin(&v, &output))
			return false;
	return true;
}

/* To BuildKit a result without any layer is no result: it has a root, and nothing else to look for. */
static bool is_nothing(const struct ref *ref)
{
	const struct ref_layer *layers;
	return ref_kind(ref) == REF_SCRATCH ||
	       (ref_kind(ref) == REF_IMAGE && ref_layers(ref, &layers) == 0);
}

static int hash_nothing(const struct content_selector *sel, struct digest *out, struct err *err)
{
	scoped(free) char *path = path_clean(sel->path, strlen(sel->path));
	if (!path)
		return no_memory(err);
	if (strcmp(path, "/") != 0)
		return err_set(err, -ENOENT, "%s: no such file or folder", path);
	digest_bytes(out, "", 0);
	return 0;
}

/* ------------------------------------------------------------------ all selectors */

static int hash_all(struct strbuf *joined, struct solver *solver, const struct cache_input *input,
		    struct ref *ref, bool is_upload, struct err *err)
{
	scoped(tree_unref) struct tree *tree = NULL;
	struct digest digest;
	char text[DIGEST_TEXT_MAX];
	struct cache_files files = {.cache = solver->cache};
	const struct treehash_known known = {cache_files_get, cache_files_put, &files};
	int r = ref_tree(&tree, ref, solver->options.store, NULL, NULL, err);
	for (size_t i = 0; i < input->n_selectors && r == 0; i++) {
		const struct content_selector *sel = &input->selectors[i];
		r = is_nothing(ref) ? hash_nothing(sel, &digest, err)
				    : hash_selector(tree, sel, is_upload, &known, &digest, err);
		if (i)
			strbuf_putc(joined, 0);
		strbuf_puts(joined, digest_text(&digest, text));
	}
	cache_files_flush(&files);
	return r == 0 && joined->failed ? no_memory(err) : r;
}

/* A ref that is not kept has nothing to be remembered by. */
static bool is_kept(struct ref *ref, struct digest *id)
{
	return ref_id(ref, id);
}

int content_key(struct solver *solver, const struct cache_input *input, struct ref *ref,
		const struct edge *from, struct digest *out, struct err *err)
{
	struct digest what, id;
	scoped(strbuf_free) struct strbuf joined = {0};
	bool is_upload = is_from_upload(from);
	bool can_keep = !is_upload && is_kept(ref, &id);
	int r = can_keep ? selectors_digest(&what, input) : 0;
	if (r < 0)
		return no_memory(err);
	if (can_keep)
		r = cache_db_content(solver->cache, &id, &what, out, err);
	if (r != 0)
		return MIN(r, 0);
	r = hash_all(&joined, solver, input, ref, is_upload, err);
	if (r < 0)
		return r;
	digest_bytes(out, joined.data, joined.len);
	const struct cache_ingredient ingredient = {
		.digest = *out, .bytes = joined.data, .n = joined.len};
	return can_keep ? cache_db_keep_content(solver->cache, &id, &what, out, &ingredient, err)
			: 0;
}

int content_key_known(struct solver *solver, const struct cache_input *input,
		      const struct digest *ref, struct digest *out, struct err *err)
{
	struct digest what;
	if (selectors_digest(&what, input) < 0)
		return no_memory(err);
	return cache_db_content(solver->cache, ref, &what, out, err);
}
