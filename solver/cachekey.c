/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Cache keys: what a vertex is called in a build cache, so that a result can be found again without
 * being made again, here or by BuildKit, whose keys these are byte for byte.
 *
 * A vertex has a *map*: the digest of what its op does, without its inputs. That is the JSON of the
 * op as Go writes it (gojson.c), in an envelope that says which kind it is:
 *
 *	exec, file     cachekey_exec.c, cachekey_file.c
 *	merge          {"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}
 *	diff           {"Type":"buildkit.diff.v0","Diff":{"lower":{},"upper":{"input":1}}}
 *	build          {"Type":"buildkit.build.v0","Exec":{"builder":-1,"inputs":{...},"attrs":{...}}}
 *	passthrough    {"Type":"buildkit.passthrough.v0","Passthrough":{"id":"x","outputs":[0]}}
 *	source         "buildkit.source.v0:" and a text that depends on its kind (cachekey_source.c)
 *
 * The *record* of an output is SHA(map "@" output), where SHA is "sha256:" and 64 hex digits, and it
 * is these texts that are hashed again, not their bytes. Caches hold records, and links from those
 * of the inputs, with a *selector* for what an op takes of an input. So neither the digest of a
 * vertex nor any version, host or time is part of a key, and two definitions that were written in
 * another way share what they have in common.
 *
 * Of an input, its *content* may stand for its definition: the digest of the files that the op
 * looks at. Which files those are is told here; merge and diff look at none.
 *
 * Local sources have a map that is "random:" and the digest of their session: equal within it, and
 * to nothing else. Their records are called so, too, and are never exported.
 *
 * A partition of a merge (addPrefix, trimPrefix) is this program's own: two more members of the
 * input that has one. Without, the key is BuildKit's.
 *
 * Every text that was hashed is kept beside its digest, so that two keys that differ can be told
 * apart later: BuildKit's caches only say that they differ.
 */

#include <limits.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/gojson.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* No op that can be run has as many; each costs a record. */
#define OUTPUTS_MAX 65536

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

char *cache_digest_text(const struct cache_digest *d, char buf[DIGEST_TEXT_MAX])
{
	digest_text(&d->digest, buf);
	if (d->is_random)
		memcpy(buf, "random:", 7); /* as long as "sha256:" */
	return buf;
}

/* ------------------------------------------------------------------ parts of keys */

int keys_hash(struct vertex_keys *keys, struct strbuf *preimage, struct digest *out,
	      struct err *err)
{
	size_t n = keys->n_ingredients;
	if ((n & (n - 1)) == 0) { /* grows by doubling */
		void *more =
			reallocarray(keys->ingredients, n ? n * 2 : 1, sizeof(*keys->ingredients));
		if (!more)
			return no_memory(err);
		keys->ingredients = more;
	}
	struct cache_ingredient *to = &keys->ingredients[n];
	to->n = preimage->len;
	to->bytes = strbuf_finish(preimage);
	if (!to->bytes)
		return no_memory(err);
	digest_bytes(&to->digest, to->bytes, to->n);
	*out = to->digest;
	keys->n_ingredients++;
	return 0;
}

int keys_add_map(struct vertex_keys *keys, struct strbuf *preimage, bool is_random, struct err *err)
{
	struct cache_digest *map = &keys->maps[keys->n_maps];
	int r = keys_hash(keys, preimage, &map->digest, err);
	if (r < 0)
		return r;
	map->is_random = is_random;
	/* An image without layers has the first map again for its second. */
	if (keys->n_maps == 0 || !digest_equal(&map->digest, &keys->maps[0].digest))
		keys->n_maps++;
	return 0;
}

int keys_add_inputs(struct vertex_keys *keys, size_t n, struct err *err)
{
	keys->inputs = calloc(n + 1, sizeof(*keys->inputs));
	if (!keys->inputs)
		return no_memory(err);
	keys->n_inputs = n;
	return 0;
}

int keys_set_selector(struct vertex_keys *keys, size_t input, const char *const *paths, size_t n,
		      struct err *err)
{
	scoped(strbuf_free) struct strbuf joined = {0};
	for (size_t i = 0; i < n; i++) {
		if (i)
			strbuf_putc(&joined, 0);
		strbuf_puts(&joined, paths[i]);
	}
	keys->inputs[input].has_selector = true;
	return keys_hash(keys, &joined, &keys->inputs[input].selector, err);
}

/* ------------------------------------------------------------------ paths */

static int compare_paths(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Compares the first @n bytes of @path with a whole path of the list. */
struct prefix {
	const char *path;
	size_t n;
};

static int compare_prefix(const void *key, const void *item)
{
	const struct prefix *prefix = key;
	const char *path = *(const char *const *)item;
	int order = strncmp(prefix->path, path, prefix->n);
	return order ? order : path[prefix->n] ? -1 : 0;
}

/* True when something above @path is in the sorted list. What is longer than any path of a file has
 * nothing above it that could be opened, either. */
static bool is_below_another(const char *path, const char *const *sorted, size_t n)
{
	if (strlen(path) > PATH_MAX)
		return false;
	for (const char *slash = path; (slash = strchr(slash, '/')); slash++) {
		struct prefix above = {path, (size_t)(slash - path)};
		struct prefix with_slash = {path, above.n + 1};
		if (bsearch(&above, sorted, n, sizeof(*sorted), compare_prefix) ||
		    (slash[1] && bsearch(&with_slash, sorted, n, sizeof(*sorted), compare_prefix)))
			return true;
	}
	return false;
}

size_t keys_dedupe_paths(const char **paths, size_t n)
{
	qsort(paths, n, sizeof(*paths), compare_paths);
	size_t kept = 0;
	for (size_t i = 0; i < n; i++)
		if (kept == 0 || strcmp(paths[kept - 1], paths[i]) != 0)
			paths[kept++] = paths[i];
	/* From the end, so that what is above a path is still there when it is looked for; the end
	 * collects what stays. */
	size_t first = kept;
	for (size_t i = kept; i-- > 0;)
		if (!is_below_another(paths[i], paths, i))
			paths[--first] = paths[i];
	memmove(paths, paths + first, (kept - first) * sizeof(*paths));
	return kept - first;
}

void keys_platform(struct strbuf *json, const struct vertex *v, const struct solver *solver)
{
	const struct platform *platform = vertex_platform(v, solver);
	gojson_member_text(json, "OS", platform->os);
	gojson_member_text(json, "Arch", platform->arch);
	gojson_opt_text(json, "Variant", platform->variant);
	gojson_opt_text(json, "OSVersion", v->op.os_version);
	gojson_opt_texts(json, "OSFeatures", v->op.os_features, v->op.n_os_features);
}

/* ------------------------------------------------------------------ simple ops */

static void open_envelope(struct strbuf *json, const char *type, const char *member)
{
	gojson_open(json, '{');
	gojson_member_text(json, "Type", type);
	gojson_member(json, member);
	gojson_open(json, '{');
}

static int close_envelope(struct vertex_keys *keys, struct strbuf *json, size_t n_inputs,
			  struct err *err)
{
	gojson_close(json, '}');
	gojson_close(json, '}');
	int r = keys_add_map(keys, json, false, err);
	return r < 0 ? r : keys_add_inputs(keys, n_inputs, err);
}

static int keys_merge(struct vertex_keys *keys, const struct llb_op *op, struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	open_envelope(&json, "buildkit.merge.v0", "Merge");
	if (op->merge.n_inputs) {
		gojson_member(&json, "inputs");
		gojson_open(&json, '[');
		for (size_t i = 0; i < op->merge.n_inputs; i++) {
			const struct llb_merge_input *input = &op->merge.inputs[i];
			gojson_open(&json, '{');
			gojson_opt_i64(&json, "input", (int64_t)input->input);
			gojson_opt_text(&json, "addPrefix", input->add);
			gojson_opt_text(&json, "trimPrefix", input->trim);
			gojson_close(&json, '}');
		}
		gojson_close(&json, ']');
	}
	return close_envelope(keys, &json, op->merge.n_inputs, err);
}

static void write_side(struct strbuf *json, const char *name, ssize_t input)
{
	gojson_member(json, name);
	gojson_open(json, '{');
	gojson_opt_i64(json, "input", input);
	gojson_close(json, '}');
}

static int keys_diff(struct vertex_keys *keys, const struct llb_op *op, struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	open_envelope(&json, "buildkit.diff.v0", "Diff");
	write_side(&json, "lower", op->diff.lower);
	write_side(&json, "upper", op->diff.upper);
	return close_envelope(keys, &json, (size_t)((op->diff.lower >= 0) + (op->diff.upper >= 0)),
			      err);
}

static int compare_attrs(const void *a, const void *b)
{
	const struct llb_pair *const *x = a, *const *y = b;
	int order = strcmp((*x)->key, (*y)->key);
	return order ? order : *x < *y ? -1 : *x > *y;
}

static int compare_build_inputs(const void *a, const void *b)
{
	const struct llb_build_input *const *x = a, *const *y = b;
	int order = strcmp((*x)->name, (*y)->name);
	return order ? order : *x < *y ? -1 : *x > *y;
}

/* Of equal keys the last in the definition counts, and it comes last here, too. */
static int write_attrs(struct strbuf *json, const struct llb_build *build)
{
	scoped(free) const struct llb_pair **sorted = calloc(build->n_attrs + 1, sizeof(*sorted));
	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < build->n_attrs; i++)
		sorted[i] = &build->attrs[i];
	qsort(sorted, build->n_attrs, sizeof(*sorted), compare_attrs);
	gojson_member(json, "attrs");
	gojson_open(json, '{');
	for (size_t i = 0; i < build->n_attrs; i++)
		if (i + 1 == build->n_attrs || strcmp(sorted[i]->key, sorted[i + 1]->key) != 0)
			gojson_member_text(json, sorted[i]->key, sorted[i]->value);
	gojson_close(json, '}');
	return 0;
}

static int write_build_inputs(struct strbuf *json, const struct llb_build *build)
{
	scoped(free) const struct llb_build_input **sorted =
		calloc(build->n_inputs + 1, sizeof(*sorted));
	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < build->n_inputs; i++)
		sorted[i] = &build->inputs[i];
	qsort(sorted, build->n_inputs, sizeof(*sorted), compare_build_inputs);
	gojson_member(json, "inputs");
	gojson_open(json, '{');
	for (size_t i = 0; i < build->n_inputs; i++) {
		if (i + 1 < build->n_inputs && !strcmp(sorted[i]->name, sorted[i + 1]->name))
			continue;
		gojson_member(json, sorted[i]->name);
		gojson_open(json, '{');
		gojson_opt_i64(json, "input", sorted[i]->input);
		gojson_close(json, '}');
	}
	gojson_close(json, '}');
	return 0;
}

static int keys_build(struct vertex_keys *keys, const struct llb_op *op, struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	if (op->build.has_definition)
		return err_set(err, -ENOTSUP,
			       "a build with a definition in itself: its key is not known");
	open_envelope(&json, "buildkit.build.v0", "Exec");
	gojson_opt_i64(&json, "builder", op->build.builder);
	int r = op->build.n_inputs ? write_build_inputs(&json, &op->build) : 0;
	if (r == 0 && op->build.n_attrs)
		r = write_attrs(&json, &op->build);
	return r < 0 ? no_memory(err) : close_envelope(keys, &json, op->n_inputs, err);
}

static int keys_passthrough(struct vertex_keys *keys, const struct llb_op *op, struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	const struct llb_passthrough *pass = &op->passthrough;
	open_envelope(&json, "buildkit.passthrough.v0", "Passthrough");
	gojson_opt_text(&json, "id", pass->id);
	if (pass->n_outputs) {
		gojson_member(&json, "outputs");
		gojson_open(&json, '[');
		for (size_t i = 0; i < pass->n_outputs; i++)
			gojson_i64(&json, pass->outputs[i]);
		gojson_close(&json, ']');
	}
	return close_envelope(keys, &json, op->n_inputs, err);
}

/* ------------------------------------------------------------------ records */

static int compare_outputs(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return x < y ? -1 : x > y;
}

/* The outputs that @op says it has, in order, each once; freed by the caller. */
static int list_outputs(int64_t **out, size_t *n_out, const struct llb_op *op, struct err *err)
{
	size_t n = op->kind == OP_EXEC		? op->exec.n_mounts
		   : op->kind == OP_FILE	? op->file.n_actions
		   : op->kind == OP_PASSTHROUGH ? op->passthrough.n_outputs
						: 1;
	int64_t *all = calloc(n + 1, sizeof(*all));
	if (!all)
		return no_memory(err);
	size_t kept = 0;
	for (size_t i = 0; i < n; i++) {
		int64_t output = op->kind == OP_EXEC   ? op->exec.mounts[i].output
				 : op->kind == OP_FILE ? op->file.actions[i].output
						       : (int64_t)i;
		if (output >= 0)
			all[kept++] = output;
	}
	qsort(all, kept, sizeof(*all), compare_outputs);
	*n_out = 0;
	for (size_t i = 0; i < kept; i++)
		if (i == 0 || all[i] != all[i - 1])
			all[(*n_out)++] = all[i];
	*out = all;
	if (*n_out > OUTPUTS_MAX || (*n_out && all[*n_out - 1] > INT_MAX))
		return err_set(err, -EBADMSG, "more outputs than %d", OUTPUTS_MAX);
	return 0;
}

static int add_record(struct vertex_keys *keys, const struct cache_digest *map, int output,
		      struct err *err)
{
	struct cache_record *record = &keys->records[keys->n_records];
	record->output = output;
	record->digest = *map;
	if (!map->is_random) {
		char text[DIGEST_TEXT_MAX];
		scoped(strbuf_free) struct strbuf preimage = {0};
		strbuf_printf(&preimage, "%s@%d", cache_digest_text(map, text), output);
		int r = keys_hash(keys, &preimage, &record->digest.digest, err);
		if (r < 0)
			return r;
	}
	keys->n_records++;
	return 0;
}

static int add_records(struct vertex_keys *keys, const struct llb_op *op, struct err *err)
{
	scoped(free) int64_t *outputs = NULL;
	size_t n = 0;
	int r = list_outputs(&outputs, &n, op, err);
	if (r < 0)
		return r;
	keys->records = calloc(n * keys->n_maps + 1, sizeof(*keys->records));
	if (!keys->records)
		return no_memory(err);
	for (size_t map = 0; map < keys->n_maps; map++)
		for (size_t i = 0; i < n && r == 0; i++)
			r = add_record(keys, &keys->maps[map], (int)outputs[i], err);
	return r;
}

/* ------------------------------------------------------------------ the door */

static int add_op(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
		  struct err *err)
{
	switch (v->op.kind) {
	case OP_SOURCE:
		return keys_source(keys, v, solver, err);
	case OP_EXEC:
		return keys_exec(keys, v, solver, err);
	case OP_FILE:
		return keys_file(keys, v, err);
	case OP_MERGE:
		return keys_merge(keys, &v->op, err);
	case OP_DIFF:
		return keys_diff(keys, &v->op, err);
	case OP_BUILD:
		return keys_build(keys, &v->op, err);
	case OP_PASSTHROUGH:
		return keys_passthrough(keys, &v->op, err);
	case OP_UNKNOWN:
		break;
	}
	return err_set(err, -ENOTSUP, "an operation that this program does not know");
}

/* Images are all that can be solved by asking for their name. */
static bool can_be_asked(const struct vertex *v)
{
	return v->ops == &source_image_op || v->ops == &source_layout_op;
}

int vertex_keys(struct vertex_keys *out, struct vertex *v, struct solver *solver, bool may_ask,
		struct err *err)
{
	scoped(vertex_keys_deinit) struct vertex_keys keys = {.is_whole = true};
	int r = 0;
	if (may_ask && can_be_asked(v) && !v->outputs)
		r = vertex_run(v, solver, err);
	else if (may_ask && v->ops && v->ops->ask && !v->asked)
		r = v->ops->ask(v, solver, err);
	if (r == 0)
		r = add_op(&keys, v, solver, err);
	if (r == 0)
		r = add_records(&keys, &v->op, err);
	if (r < 0)
		return r;
	*out = keys;
	keys = (struct vertex_keys){0};
	return 0;
}

void vertex_keys_deinit(struct vertex_keys *keys)
{
	for (size_t i = 0; i < keys->n_inputs; i++)
		free(keys->inputs[i].selectors);
	free(keys->inputs);
	free(keys->records);
	for (size_t i = 0; i < keys->n_ingredients; i++)
		free(keys->ingredients[i].bytes);
	free(keys->ingredients);
	*keys = (struct vertex_keys){0};
}
