/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From words to files: REFs and --merge arguments, in the order typed, become one ref and its tree.
 *
 * A --merge argument is one CSV record (csv.c) of fields KEY=VALUE, of ref, trim and add.
 */

#include "tools/tools.h"

#include <ctype.h>

/* ------------------------------------------------------------------ words */

int words_split(struct split *out, const struct options *o, size_t min_paths, size_t max_paths,
		struct err *err)
{
	const struct words *w = &o->words;
	size_t n_inputs = 0, n_paths;

	for (size_t i = 0; i < w->n; i++)
		if (w->items[i].is_merge)
			n_inputs = i + 1;
	if (n_inputs == 0 && w->n > 0)
		n_inputs = 1;
	else if (w->n - n_inputs > max_paths)
		n_inputs = w->n - max_paths;
	n_paths = w->n - n_inputs;
	if (n_inputs == 0)
		return err_set(err, -EINVAL, "a REF is missing; see llbfs --help");
	if (n_paths < min_paths)
		return err_set(err, -EINVAL, "%s after the REF; see --help",
			       min_paths > 1 ? "PATH and DEST are missing" : "a PATH is missing");
	if (n_paths > max_paths)
		return err_set(err, -EINVAL, "\"%s\" is one word too many; see --help",
			       w->items[n_inputs + max_paths].text);
	*out = (struct split){w->items, n_inputs, w->items + n_inputs, n_paths};
	return 0;
}

/* ------------------------------------------------------------------ --merge */

static int merge_arg_set(void *to, const char *field, struct err *err)
{
	struct merge_arg *arg = to;
	static const char *const keys[] = {"ref", "trim", "add"};
	char **const values[] = {&arg->ref, &arg->trim, &arg->add};
	const char *equals = strchr(field, '=');

	for (size_t i = 0; equals && i < countof(keys); i++) {
		if (strlen(keys[i]) != (size_t)(equals - field) || !str_starts(field, keys[i]))
			continue;
		if (*values[i])
			return err_set(err, -EINVAL, "--merge: %s is given twice", keys[i]);
		*values[i] = strdup(equals + 1);
		return *values[i] ? 0 : -ENOMEM;
	}
	return err_set(err, -EINVAL, "--merge: \"%s\" is none of ref=REF, trim=/PATH, add=/PATH",
		       field);
}

int merge_arg_parse(struct merge_arg *out, const char *text, struct err *err)
{
	int r;

	*out = (struct merge_arg){0};
	r = csv_each("--merge", text, merge_arg_set, out, err);
	if (r == 0 && (!out->ref || !*out->ref))
		r = err_set(err, -EINVAL, "--merge: ref=REF is missing in '%s'", text);
	if (r < 0)
		merge_arg_deinit(out);
	return r;
}

void merge_arg_deinit(struct merge_arg *arg)
{
	free(arg->ref);
	free(arg->trim);
	free(arg->add);
	*arg = (struct merge_arg){0};
}
static inline void merge_arg_deinit_scoped(struct merge_arg *arg)
{
	merge_arg_deinit(arg);
}

/* ------------------------------------------------------------------ --layer */

static bool layer_matches(const struct digest *digest, const char *hex, size_t n)
{
	char text[DIGEST_HEX_MAX];

	return !digest_is_zero(digest) && strncmp(digest_hex(digest, text), hex, n) == 0;
}

/* A layer by (a prefix of) its digest or its diff_id. */
static int layer_by_digest(struct ref *ref, const char *text, size_t *out, struct err *err)
{
	const struct ref_layer *layers;
	size_t n = ref_layers(ref, &layers), found = n;
	const char *hex = str_starts(text, "sha256:") ? text + 7 : text;
	size_t len = strlen(hex);

	if (len < 6 || len > 64 || strspn(hex, "0123456789abcdef") != len)
		return err_set(err, -EINVAL, "--layer must be N, DIGEST or A..B, not \"%s\"", text);
	for (size_t i = 0; i < n; i++) {
		if (!layer_matches(&layers[i].desc.digest, hex, len) &&
		    !layer_matches(&layers[i].diff_id, hex, len))
			continue;
		if (found < n)
			return err_set(err, -EINVAL, "--layer: %s fits several layers of %s", text,
				       ref_name(ref));
		found = i;
	}
	if (found == n)
		return err_set(err, -ENOENT, "%s has no layer %s; llbfs inspect lists them",
			       ref_name(ref), text);
	*out = found;
	return 0;
}

static int layer_number(const char *text, size_t len, uint64_t *out)
{
	scoped(free) char *copy = strndup(text, len);

	return copy ? parse_u64(copy, out) : -ENOMEM;
}

/* Replaces *ref by the layers of it that --layer names. */
static int layer_narrow(struct ref **ref, const char *text, struct err *err)
{
	const struct ref_layer *layers;
	size_t n = ref_layers(*ref, &layers);
	const char *dots = strstr(text, "..");
	scoped(ref_unref) struct ref *slice = NULL;
	uint64_t first, last;
	size_t found = 0;
	int r;

	if (ref_kind(*ref) != REF_IMAGE)
		return err_set(err, -EINVAL, "--layer: %s is no image", ref_name(*ref));
	if (layer_number(text, dots ? (size_t)(dots - text) : strlen(text), &first) < 0) {
		r = layer_by_digest(*ref, text, &found, err);
		if (r < 0)
			return r;
		first = last = found;
	} else if (!dots) {
		last = first;
	} else if (layer_number(dots + 2, strlen(dots + 2), &last) < 0 || last < first) {
		return err_set(err, -EINVAL, "--layer must be N, DIGEST or A..B, not \"%s\"", text);
	}
	if (last >= n)
		return err_set(err, -ENOENT, "%s has %zu layers, counted from 0: there is no %s",
			       ref_name(*ref), n, text);
	r = ref_slice(&slice, *ref, first, last, err);
	if (r < 0)
		return r;
	ref_unref(*ref);
	*ref = take(slice);
	return 0;
}

/* ------------------------------------------------------------------ refs */

static int input_resolve(struct ref_part *out, struct app *app, const struct options *o,
			 const struct word *word, struct err *err)
{
	scoped(merge_arg_deinit) struct merge_arg arg = {0};
	int r = 0;

	if (word->is_merge)
		r = merge_arg_parse(&arg, word->text, err);
	if (r < 0)
		return r;
	r = solver_resolve(app->solver, word->is_merge ? arg.ref : word->text, &out->ref, err);
	if (r == 0 && o->layer)
		r = layer_narrow(&out->ref, o->layer, err);
	out->trim = take(arg.trim);
	out->add = take(arg.add);
	return r;
}

int inputs_resolve(struct ref **out, struct app *app, const struct options *o,
		   const struct word *inputs, size_t n, struct err *err)
{
	scoped(free) struct ref_part *parts = calloc(n, sizeof(*parts));
	int r = parts ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < n; i++)
		r = input_resolve(&parts[i], app, o, &inputs[i], err);
	if (r == 0)
		r = ref_merge(out, parts, n, err);
	for (size_t i = 0; parts && i < n; i++) {
		ref_unref(parts[i].ref);
		free(parts[i].trim);
		free(parts[i].add);
	}
	return r;
}

/* ------------------------------------------------------------------ views */

int view_open(struct view *v, struct app *app, const struct options *o, const struct word *inputs,
	      size_t n, struct err *err)
{
	int r;

	*v = (struct view){0};
	r = inputs_resolve(&v->ref, app, o, inputs, n, err);
	if (r == 0)
		r = ref_tree(&v->tree, v->ref, app->store, &v->layers, &v->n_layers, err);
	if (r == 0)
		progress_watch(app->progress, v->layers, v->n_layers);
	else
		view_close(v);
	return r;
}

void view_close(struct view *v)
{
	ref_tree_layers_free(v->layers, v->n_layers);
	tree_unref(v->tree);
	ref_unref(v->ref);
	*v = (struct view){0};
}

int look_open(struct look *l, const struct options *o, const char *verb, size_t min_paths,
	      size_t max_paths, struct err *err)
{
	scoped(free) char *title = NULL;
	int r;

	*l = (struct look){0};
	r = words_split(&l->split, o, min_paths, max_paths, err);
	if (r < 0)
		return r;
	title = str_printf("llbfs %s %s%s", verb, l->split.inputs[0].text,
			   l->split.n_inputs > 1 ? " ..." : "");
	if (!title)
		return -ENOMEM;
	r = app_open(&l->app, o, title, err);
	if (r == 0)
		r = view_open(&l->view, &l->app, o, l->split.inputs, l->split.n_inputs, err);
	if (r < 0)
		look_close(l);
	return r;
}

void look_close(struct look *l)
{
	progress_hide(l->app.progress);
	view_close(&l->view);
	app_close(&l->app);
}
