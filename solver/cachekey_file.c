/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The cache map of a file op (cachekey.c):
 *
 *	{"Type":"buildkit.file.v0","Actions":["base64 of an action's JSON",...],"indexes":[[0,-1,0]]}
 *
 * Each action is the JSON of its own message, as bytes. The source of a copy from an input is only
 * its last name: where it lies in the input says the selector, and what it is the content. The
 * numbers of inputs and outputs are left out where they are those of a Dockerfile's lines: the
 * first action works on input 0, each one on what the one before made, things are copied from input
 * 1, and the last makes output 0. (An action's result is expected under the number that it would
 * have with as many inputs as actions. That is BuildKit's slip, and part of its keys.)
 *
 * An input that an action changes counts by its definition alone. Any other counts by content: what
 * is copied, and the files in which owners' names are looked up.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/gojson.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ actions as JSON */

static void write_user(struct strbuf *json, const char *name, const struct llb_owner *owner)
{
	if (!owner->is_set)
		return;
	gojson_member(json, name);
	gojson_open(json, '{');
	gojson_member(json, "User");
	gojson_open(json, '{');
	if (owner->name) {
		gojson_member(json, "byName");
		gojson_open(json, '{');
		gojson_opt_text(json, "name", owner->name);
		gojson_opt_i64(json, "input", owner->input);
		gojson_close(json, '}');
	} else {
		gojson_opt_i64(json, "byId", owner->id);
	}
	gojson_close(json, '}');
	gojson_close(json, '}');
}

static void write_owner(struct strbuf *json, const struct llb_action *action)
{
	if (!action->has_owner)
		return;
	gojson_member(json, "owner");
	gojson_open(json, '{');
	write_user(json, "user", &action->user);
	write_user(json, "group", &action->group);
	gojson_close(json, '}');
}

/* As Go's path.Base has it; @n is its length. */
static const char *path_base(const char *path, size_t *n)
{
	size_t end = strlen(path);
	if (end == 0) {
		*n = 1;
		return ".";
	}
	while (end > 1 && path[end - 1] == '/')
		end--;
	size_t start = end;
	while (start > 0 && path[start - 1] != '/')
		start--;
	if (start == end) /* nothing but slashes */
		start = end - 1;
	*n = end - start;
	return path + start;
}

static void write_source(struct strbuf *json, const struct llb_action *action, size_t n_inputs)
{
	size_t n = strlen(action->from);
	const char *from = action->from;
	if (action->secondary_input >= 0 && (uint64_t)action->secondary_input < n_inputs)
		from = path_base(from, &n);
	if (n == 0)
		return;
	gojson_member(json, "src");
	gojson_text(json, from, n);
}

static void write_copy(struct strbuf *json, const struct llb_action *action, size_t n_inputs)
{
	write_source(json, action, n_inputs);
	gojson_opt_text(json, "dest", action->path);
	write_owner(json, action);
	gojson_opt_i64(json, "mode", action->mode);
	gojson_opt_bool(json, "followSymlink", action->follow_symlink);
	gojson_opt_bool(json, "dirCopyContents", action->dir_copy_contents);
	gojson_opt_bool(json, "attemptUnpackDockerCompatibility", action->attempt_unpack);
	gojson_opt_bool(json, "createDestPath", action->create_dest_path);
	gojson_opt_bool(json, "allowWildcard", action->allow_wildcard);
	gojson_opt_bool(json, "allowEmptyWildcard", action->allow_empty_wildcard);
	gojson_opt_i64(json, "timestamp", action->timestamp);
	gojson_opt_texts(json, "include_patterns", action->include, action->n_include);
	gojson_opt_texts(json, "exclude_patterns", action->exclude, action->n_exclude);
	gojson_opt_bool(json, "alwaysReplaceExistingDestPaths", action->always_replace);
	gojson_opt_text(json, "modeStr", action->mode_text);
	gojson_opt_texts(json, "required_paths", action->required, action->n_required);
}

static int write_action(struct strbuf *json, const struct llb_action *action, size_t n_inputs,
			struct err *err)
{
	gojson_open(json, '{');
	switch (action->kind) {
	case ACTION_COPY:
		write_copy(json, action, n_inputs);
		break;
	case ACTION_MKFILE:
		gojson_opt_text(json, "path", action->path);
		gojson_opt_i64(json, "mode", action->mode);
		gojson_opt_bytes(json, "data", action->data, action->n_data);
		write_owner(json, action);
		gojson_opt_i64(json, "timestamp", action->timestamp);
		break;
	case ACTION_MKDIR:
		gojson_opt_text(json, "path", action->path);
		gojson_opt_i64(json, "mode", action->mode);
		gojson_opt_bool(json, "makeParents", action->make_parents);
		write_owner(json, action);
		gojson_opt_i64(json, "timestamp", action->timestamp);
		break;
	case ACTION_RM:
		gojson_opt_text(json, "path", action->path);
		gojson_opt_bool(json, "allowNotFound", action->allow_not_found);
		gojson_opt_bool(json, "allowWildcard", action->allow_wildcard);
		break;
	case ACTION_SYMLINK:
		gojson_opt_text(json, "oldpath", action->from);
		gojson_opt_text(json, "newpath", action->path);
		write_owner(json, action);
		gojson_opt_i64(json, "timestamp", action->timestamp);
		break;
	case ACTION_UNKNOWN:
		return err_set(err, -ENOTSUP, "a file action that this program does not know");
	}
	gojson_close(json, '}');
	return 0;
}

static bool has_usual_indexes(const struct llb_file *file)
{
	for (size_t i = 0; i < file->n_actions; i++) {
		const struct llb_action *action = &file->actions[i];
		int64_t input = i == 0 ? 0 : (int64_t)(file->n_actions + i - 1);
		int64_t output = i + 1 == file->n_actions ? 0 : -1;
		if (action->input != input || action->output != output)
			return false;
		if (action->secondary_input != -1 && action->secondary_input != 1)
			return false;
	}
	return true;
}

static void write_indexes(struct strbuf *json, const struct llb_file *file)
{
	if (has_usual_indexes(file))
		return;
	gojson_member(json, "indexes");
	gojson_open(json, '[');
	for (size_t i = 0; i < file->n_actions; i++) {
		gojson_open(json, '[');
		gojson_i64(json, file->actions[i].input);
		gojson_i64(json, file->actions[i].secondary_input);
		gojson_i64(json, file->actions[i].output);
		gojson_close(json, ']');
	}
	gojson_close(json, ']');
}

static int add_map(struct vertex_keys *keys, const struct vertex *v, struct err *err)
{
	const struct llb_file *file = &v->op.file;
	scoped(strbuf_free) struct strbuf json = {0}, one = {0};
	gojson_open(&json, '{');
	gojson_member_text(&json, "Type", "buildkit.file.v0");
	gojson_member(&json, "Actions");
	gojson_open(&json, '[');
	for (size_t i = 0; i < file->n_actions; i++) {
		int r = write_action(&one, &file->actions[i], v->op.n_inputs, err);
		if (r < 0)
			return r;
		if (one.failed)
			return no_memory(err);
		gojson_bytes(&json, one.data, one.len);
		strbuf_clear(&one);
	}
	gojson_close(&json, ']');
	write_indexes(&json, file);
	gojson_close(&json, '}');
	return keys_add_map(keys, &json, false, err);
}

/* ------------------------------------------------------------------ inputs */

/* What an action looks at in an input. */
struct look {
	size_t input;
	size_t place; /* among all looks: what is equal otherwise stays in order */
	struct content_selector what;
};
struct looks {
	struct look *items;
	size_t n, cap;
};

static int add_look(struct looks *looks, size_t n_inputs, int64_t input,
		    const struct content_selector *what)
{
	if (input < 0 || (uint64_t)input >= n_inputs)
		return 0;
	struct look *look = vec_push(looks);
	if (!look)
		return -ENOMEM;
	*look = (struct look){(size_t)input, looks->n, *what};
	return 0;
}

bool keys_is_wildcard(const char *path)
{
	for (; *path; path++) {
		if (strchr("*?[", *path))
			return true;
		if (*path == '\\' && path[1])
			path++;
	}
	return false;
}

static int add_owner_look(struct looks *looks, size_t n_inputs, const struct llb_owner *owner,
			  const char *path, struct err *err)
{
	const struct content_selector what = {.path = path, .follow = true};
	if (!owner->name)
		return 0;
	if (owner->input >= 0 && (uint64_t)owner->input >= n_inputs)
		return err_set(err, -EBADMSG, "owner \"%.200s\": its input %lld is not one of %zu",
			       owner->name, (long long)owner->input, n_inputs);
	return add_look(looks, n_inputs, owner->input, &what) < 0 ? no_memory(err) : 0;
}

/* Who owns a symlink is no part of what BuildKit looks at, nor is the group of a user who is looked up
 * nowhere. */
static int add_owner_looks(struct looks *looks, size_t n_inputs, const struct llb_action *action,
			   struct err *err)
{
	if (action->kind == ACTION_SYMLINK || (action->user.name && action->user.input < 0))
		return 0;
	int r = add_owner_look(looks, n_inputs, &action->user, "/etc/passwd", err);
	return r < 0 ? r : add_owner_look(looks, n_inputs, &action->group, "/etc/group", err);
}

static int list_looks(struct looks *looks, const struct llb_op *op, struct err *err)
{
	int r = 0;
	for (size_t i = 0; i < op->file.n_actions && r == 0; i++) {
		const struct llb_action *action = &op->file.actions[i];
		if (action->kind == ACTION_COPY) {
			const struct content_selector what = {
				.path = action->from,
				.wildcard =
					action->allow_wildcard && keys_is_wildcard(action->from),
				.follow = action->follow_symlink,
				.include = action->include,
				.n_include = action->n_include,
				.exclude = action->exclude,
				.n_exclude = action->n_exclude,
				.required = action->required,
				.n_required = action->n_required,
			};
			if (add_look(looks, op->n_inputs, action->secondary_input, &what) < 0)
				return no_memory(err);
		}
		r = add_owner_looks(looks, op->n_inputs, action, err);
	}
	return r;
}

static int compare_inputs(const void *a, const void *b)
{
	const struct look *x = a, *y = b;
	if (x->input != y->input)
		return x->input < y->input ? -1 : 1;
	return x->place < y->place ? -1 : x->place > y->place;
}

/* By path, and where these are equal as they were listed. */
static int compare_looks(const void *a, const void *b)
{
	const struct look *x = a, *y = b;
	int order = strcmp(x->what.path, y->what.path);
	return order ? order : x->place < y->place ? -1 : x->place > y->place;
}

static int compare_descending(const void *a, const void *b)
{
	return strcmp(*(const char *const *)b, *(const char *const *)a);
}

/* What is required counts only where there are patterns. */
static bool is_plain(const struct content_selector *what)
{
	return !what->wildcard && !what->n_include && !what->n_exclude;
}

/* The plain looks that follow links, or those that do not, without what lies below another. */
static void add_plain(struct looks *out, const char **paths, const struct look *looks, size_t n,
		      bool follow)
{
	size_t n_paths = 0;
	for (size_t i = 0; i < n; i++)
		if (is_plain(&looks[i].what) && looks[i].what.follow == follow)
			paths[n_paths++] = looks[i].what.path;
	n_paths = keys_dedupe_paths(paths, n_paths);
	for (size_t i = 0; i < n_paths; i++, out->n++)
		out->items[out->n] = (struct look){
			.place = out->n,
			.what = {.path = paths[i], .follow = follow},
		};
}

static int set_content(struct cache_input *input, const char **paths, const struct look *looks,
		       size_t n, struct err *err)
{
	struct looks sorted = {.items = calloc(n, sizeof(*sorted.items))};
	input->selectors = calloc(n, sizeof(*input->selectors));
	if (!sorted.items || !input->selectors) {
		free(sorted.items);
		return no_memory(err);
	}
	add_plain(&sorted, paths, looks, n, false);
	add_plain(&sorted, paths, looks, n, true);
	for (size_t i = 0; i < n; i++) {
		if (is_plain(&looks[i].what))
			continue;
		sorted.items[sorted.n] = looks[i];
		sorted.items[sorted.n].place = sorted.n;
		sorted.n++;
	}
	qsort(sorted.items, sorted.n, sizeof(*sorted.items), compare_looks);
	for (size_t i = 0; i < sorted.n; i++)
		input->selectors[i] = sorted.items[i].what;
	input->n_selectors = sorted.n;
	input->content = CONTENT_FILES;
	free(sorted.items);
	return 0;
}

/* One input; @looks are all @n at it. */
static int add_input(struct vertex_keys *keys, const struct look *looks, size_t n, struct err *err)
{
	scoped(free) const char **paths = calloc(n, sizeof(*paths));
	if (!paths)
		return no_memory(err);
	for (size_t i = 0; i < n; i++)
		paths[i] = looks[i].what.path;
	qsort(paths, n, sizeof(*paths), compare_descending);
	int r = keys_set_selector(keys, looks->input, paths, n, err);
	return r < 0 ? r : set_content(&keys->inputs[looks->input], paths, looks, n, err);
}

static int add_inputs(struct vertex_keys *keys, const struct llb_op *op, struct looks *looks,
		      struct err *err)
{
	scoped(free) bool *is_target = calloc(op->n_inputs + 1, sizeof(*is_target));
	if (!is_target)
		return no_memory(err);
	int r = list_looks(looks, op, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < op->file.n_actions; i++) {
		int64_t input = op->file.actions[i].input;
		if (input >= 0 && (uint64_t)input < op->n_inputs)
			is_target[input] = true;
	}
	if (looks->n)
		qsort(looks->items, looks->n, sizeof(*looks->items), compare_inputs);
	for (size_t i = 0, n; i < looks->n && r == 0; i += n) {
		for (n = 1; i + n < looks->n && looks->items[i + n].input == looks->items[i].input;)
			n++;
		if (!is_target[looks->items[i].input])
			r = add_input(keys, &looks->items[i], n, err);
	}
	return r;
}

int keys_file(struct vertex_keys *keys, const struct vertex *v, struct err *err)
{
	struct looks looks = {0};
	int r = add_map(keys, v, err);
	if (r == 0)
		r = keys_add_inputs(keys, v->op.n_inputs, err);
	if (r == 0)
		r = add_inputs(keys, &v->op, &looks, err);
	vec_free(&looks);
	return r;
}
