/* SPDX-License-Identifier: Apache-2.0 */

/*
 * FileOp: makes, copies and removes files. No bytes are moved: the result of an op is what it is
 * made on, and one layer of changes over it (merge/edittree.c).
 *
 * The actions of an op refer to its inputs and to each other's results. An action that is the only
 * user of another one's result goes on in the same edit; a result that is used otherwise, or is an
 * output, is sealed into a ref. So a chain of actions is one layer, as with BuildKit. What no
 * output needs is not done.
 *
 * Paths are resolved below the root of what is edited, links too. An owner's name is looked up in
 * the passwd and group files of the input it names; one that is not there is 0, as with BuildKit.
 * What is made without a time has that of the solve.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define ACCOUNTS_MAX (10u << 20)

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* An input of the op, or the result of an action. */
struct result {
	struct ref
		*ref; /* an input: borrowed; what an action began on, then what came out: owned */
	bool is_owned;
	struct edit *edit;
	struct tree *tree; /* of ref, once needed */
	size_t n_uses;
	bool is_needed;
};

struct file_op {
	const struct vertex *v;
	struct solver *solver;
	struct result *results; /* inputs, then actions */
	size_t n_inputs;
	struct err *err;
};

/* ------------------------------------------------------------------ inputs and results */

/* What index @i means to action @action; NULL for -1. */
static int result_at(struct file_op *op, size_t action, int64_t i, struct result **out)
{
	*out = NULL;
	if (i == -1)
		return 0;
	if (i < 0 || (uint64_t)i >= op->n_inputs + action)
		return err_set(op->err, -EBADMSG,
			       "action %zu: %lld is neither an input nor an earlier action", action,
			       (long long)i);
	*out = &op->results[i];
	return 0;
}

/* Makes the changes so far a ref, upon which others may build. */
static int result_seal(struct file_op *op, struct result *result)
{
	struct ref *over;
	if (!result->edit)
		return 0;
	if (edit_is_empty(result->edit)) {
		edit_free(take(result->edit));
		return 0;
	}
	scoped(tree_unref) struct tree *tree = NULL;
	scoped(ref_unref) struct ref *layer = NULL;
	int r = edit_seal(&tree, &result->edit, op->err);
	if (r == 0)
		r = ref_made(&layer, op->v->name, tree, op->err);
	if (r < 0)
		return r;
	const struct ref_part parts[] = {{.ref = result->ref}, {.ref = layer}};
	r = ref_merge(&over, parts, countof(parts), op->err);
	if (r < 0)
		return r;
	ref_unref(result->ref);
	result->ref = over;
	return 0;
}

/* The files of an input or a finished action; @result NULL = none. Borrowed. */
static int result_tree(struct file_op *op, struct result *result, struct tree **out)
{
	int r = result_seal(op, result);
	if (r == 0 && !result->tree)
		r = ref_tree(&result->tree, result->ref, op->solver->options.store, NULL, NULL,
			     op->err);
	*out = result->tree;
	return r;
}

/* ------------------------------------------------------------------ owners */

int file_read(struct tree *t, const struct attr *attr, struct strbuf *out, struct err *err)
{
	scoped(free) char *bytes = malloc(attr->size + 1);
	if (!bytes)
		return no_memory(err);
	for (uint64_t off = 0; off < attr->size;) {
		int64_t n = tree_read(t, attr->id, off, bytes, attr->size - off, NULL, NULL, err);
		if (n < 0)
			return (int)n;
		if (n == 0)
			break;
		strbuf_add(out, bytes, (size_t)n);
		off += (uint64_t)n;
	}
	strbuf_puts(out, "");
	return out->failed ? no_memory(err) : 0;
}

/* Field @n of a line of passwd or group; NULL when there is none. */
static const char *account_field(const char *line, size_t line_len, int n, size_t *len)
{
	const char *end = line + line_len;
	for (; n > 0 && line; n--) {
		line = memchr(line, ':', (size_t)(end - line));
		line = line ? line + 1 : NULL;
	}
	if (!line)
		return NULL;
	const char *colon = memchr(line, ':', (size_t)(end - line));
	*len = (size_t)((colon ? colon : end) - line);
	return line;
}

static bool account_number(const char *line, size_t line_len, int field, uint32_t *out)
{
	size_t len;
	uint64_t number;
	const char *text = account_field(line, line_len, field, &len);
	scoped(free) char *copy = text ? strndup(text, len) : NULL;
	if (!copy || parse_u64(copy, &number) < 0 || number > UINT32_MAX)
		return false;
	*out = (uint32_t)number;
	return true;
}

/* Finds the line of @name; gives its field 2 and, with @second, field 3. 1 = found. */
static int account_find(const struct strbuf *text, const char *name, uint32_t *first,
			uint32_t *second)
{
	const char *line = text->data, *end = line + text->len;
	for (const char *next; line && line < end; line = next) {
		const char *newline = memchr(line, '\n', (size_t)(end - line));
		size_t line_len = (size_t)((newline ? newline : end) - line), len;
		next = newline ? newline + 1 : end;
		const char *is = account_field(line, line_len, 0, &len);
		if (len != strlen(name) || memcmp(is, name, len) != 0)
			continue;
		uint32_t a, b = 0;
		if (!account_number(line, line_len, 2, &a) ||
		    (second && !account_number(line, line_len, 3, &b)))
			continue;
		*first = a;
		if (second)
			*second = b;
		return 1;
	}
	return 0;
}

/* Looks @user up in @path of its input. *first and *second stay when it is not there. */
static int account_lookup(struct file_op *op, size_t action, const struct llb_owner *user,
			  const char *path, uint32_t *first, uint32_t *second)
{
	struct result *result;
	struct tree *tree;
	struct attr attr;
	struct err why = {0};
	int r = result_at(op, action, user->input, &result);
	if (r == 0 && !result)
		r = err_set(op->err, -EBADMSG, "owner \"%s\": no input to look it up in",
			    user->name);
	if (r == 0)
		r = result_tree(op, result, &tree);
	if (r < 0)
		return r;
	r = tree_walk(tree, path, true, &attr, &why);
	if (r == -ENOENT || r == -ENOTDIR)
		return 0;
	if (r < 0)
		return err_set(op->err, r, "%s", err_text(&why, r));
	if (attr.type != NODE_FILE || attr.size > ACCOUNTS_MAX)
		return err_set(op->err, -EBADMSG, "%s is no file of at most %u MiB", path,
			       ACCOUNTS_MAX >> 20);
	scoped(strbuf_free) struct strbuf text = {0};
	r = file_read(tree, &attr, &text, op->err);
	return r < 0 ? r : MIN(0, account_find(&text, user->name, first, second));
}

static int find_owner(struct file_op *op, size_t action, struct file_owner *out)
{
	const struct llb_action *a = &op->v->op.file.actions[action];
	int r = 0;
	*out = (struct file_owner){.is_set = a->has_owner};
	if (a->user.name)
		r = account_lookup(op, action, &a->user, "/etc/passwd", &out->uid, &out->gid);
	else if (a->user.is_set)
		out->uid = out->gid = a->user.id;
	if (r == 0 && a->group.name)
		r = account_lookup(op, action, &a->group, "/etc/group", &out->gid, NULL);
	else if (r == 0 && a->group.is_set)
		out->gid = a->group.id;
	return r;
}

/* ------------------------------------------------------------------ what actions share */

void file_time(const struct file_env *env, int64_t time_ns, struct attr *attr)
{
	if (time_ns == -1) {
		attr->mtime_s = env->now.tv_sec;
		attr->mtime_ns = (uint32_t)env->now.tv_nsec;
		return;
	}
	attr->mtime_s = time_ns / (int64_t)NS_PER_S;
	int64_t rest = time_ns % (int64_t)NS_PER_S;
	if (rest < 0) {
		attr->mtime_s--;
		rest += (int64_t)NS_PER_S;
	}
	attr->mtime_ns = (uint32_t)rest;
}

int file_split(struct file_env *env, const char *path, uint64_t *dir, const char **name,
	       struct err *err)
{
	const char *slash = strrchr(path, '/');
	scoped(free) char *parent = strndup(path, (size_t)(slash - path));
	if (!parent)
		return no_memory(err);
	*name = slash + 1;
	int r = edit_walk(env->edit, parent, EDIT_NO_FOLLOW, dir, NULL, err);
	if (r == 0 && *dir && edit_attr(env->edit, *dir)->type != NODE_DIR)
		r = err_set(err, -ENOTDIR, "%s: not a folder on the way", path);
	return r;
}

/* Makes the entry @path, a real path whose folder must be there, with @what. */
static int make_at(struct file_env *env, const char *path, const struct edit_what *what,
		   uint64_t *node, struct err *err)
{
	const char *name;
	uint64_t dir;
	int r = file_split(env, path, &dir, &name, err);
	if (r == 0 && !dir)
		r = err_set(err, -ENOENT, "%s: no such file or folder", path);
	return r < 0 ? r : edit_make(env->edit, dir, name, strlen(name), what, node, err);
}

int file_make_dirs(struct file_env *env, const char *path, uint32_t mode, int64_t time_ns,
		   struct file_made *made, struct err *err)
{
	struct attr attr = {
		.type = NODE_DIR, .mode = mode, .uid = env->owner.uid, .gid = env->owner.gid};
	const struct edit_what what = {.attr = &attr};
	file_time(env, time_ns, &attr);
	for (const char *end = path; *end;) {
		end += 1 + strcspn(end + 1, "/");
		scoped(free) char *part = strndup(path, (size_t)(end - path));
		uint64_t node;
		if (!part)
			return no_memory(err);
		int r = edit_walk(env->edit, part, EDIT_NO_FOLLOW, &node, NULL, err);
		if (r == 0 && node && edit_attr(env->edit, node)->type != NODE_DIR)
			r = err_set(err, -ENOTDIR, "mkdir %s: not a folder", part);
		if (r < 0)
			return r;
		if (node)
			continue;
		r = make_at(env, part, &what, &node, err);
		uint64_t *slot = r < 0 || !made ? &node : vec_push(&made->nodes);
		if (r < 0 || !slot)
			return r < 0 ? r : no_memory(err);
		*slot = node;
	}
	return 0;
}

/* Sets again the times of folders that things were put into since. */
void file_restore_times(struct file_env *env, const struct file_made *made, int64_t time_ns)
{
	for (size_t i = 0; i < made->nodes.n && time_ns != -1; i++) {
		struct attr attr = *edit_attr(env->edit, made->nodes.items[i]);
		file_time(env, time_ns, &attr);
		edit_set(env->edit, made->nodes.items[i], &attr);
	}
}

/* ------------------------------------------------------------------ actions */

/* The real path of @path, and its node, 0 when it is not there. */
static int resolve(struct file_env *env, const char *path, struct strbuf *real, uint64_t *node,
		   struct err *err)
{
	return edit_walk(env->edit, path, EDIT_FOLLOW, node, real, err);
}

static int run_mkdir(struct file_env *env, const struct llb_action *a, struct err *err)
{
	scoped(strbuf_free) struct strbuf real = {0};
	uint64_t node;
	uint32_t mode = (uint32_t)a->mode & 0777;
	int r = resolve(env, a->path, &real, &node, err);
	if (r < 0)
		return r;
	if (a->make_parents) {
		struct file_made made = {0};
		r = file_make_dirs(env, real.data, mode, a->timestamp, &made, err);
		if (r == 0)
			file_restore_times(env, &made, a->timestamp);
		vec_free(&made.nodes);
		return r;
	}
	if (node) /* of any type */
		return 0;
	struct attr attr = {
		.type = NODE_DIR, .mode = mode, .uid = env->owner.uid, .gid = env->owner.gid};
	const struct edit_what what = {.attr = &attr};
	file_time(env, a->timestamp, &attr);
	return make_at(env, real.data, &what, &node, err);
}

static int run_mkfile(struct file_env *env, const struct llb_action *a, struct err *err)
{
	scoped(strbuf_free) struct strbuf real = {0};
	uint64_t node, dir;
	const char *name;
	int r = resolve(env, a->path, &real, &node, err);
	if (r < 0)
		return r;
	struct attr attr = {.type = NODE_FILE, .mode = (uint32_t)a->mode & 0777};
	if (!node) {
		const struct edit_what what = {.attr = &attr, .data = a->data, .len = a->n_data};
		r = make_at(env, real.data, &what, &node, err);
	} else if (edit_attr(env->edit, node)->type != NODE_FILE) {
		return err_set(err, -EISDIR, "%s: not a regular file", real.data);
	} else {
		r = file_split(env, real.data, &dir, &name, err);
		if (r == 0)
			r = edit_write(env->edit, dir, name, strlen(name), &node, a->data,
				       a->n_data, err);
	}
	if (r < 0)
		return r;
	attr = *edit_attr(env->edit, node);
	if (env->owner.is_set) {
		attr.uid = env->owner.uid;
		attr.gid = env->owner.gid;
		/* What a kernel does when the owner of a file is set. */
		attr.mode &= attr.mode & 010 ? ~06000u : ~04000u;
	}
	file_time(env, a->timestamp, &attr);
	edit_set(env->edit, node, &attr);
	return 0;
}

static int run_symlink(struct file_env *env, const struct llb_action *a, struct err *err)
{
	scoped(strbuf_free) struct strbuf real = {0};
	uint64_t node;
	int r = resolve(env, a->path, &real, &node, err);
	if (r < 0)
		return r;
	if (node)
		return err_set(err, -EEXIST, "%s: file exists", real.data);
	if (!*a->from)
		return err_set(err, -ENOENT, "%s: a symbolic link to nothing", real.data);
	struct attr attr = {
		.type = NODE_SYMLINK, .mode = 0777, .uid = env->owner.uid, .gid = env->owner.gid};
	const struct edit_what what = {.attr = &attr, .data = a->from, .len = strlen(a->from)};
	file_time(env, a->timestamp, &attr);
	return make_at(env, real.data, &what, &node, err);
}

/* BuildKit asks whether the file is there by following it as a link on the host. So a link to an
 * absolute path leads out of the tree, to what must not matter, and counts as leading nowhere. */
static int remove_one(struct file_env *env, const char *path, bool allow_not_found, struct err *err)
{
	uint64_t dir, node = 0;
	const char *slash = strrchr(path, '/'), *name = slash + 1;
	scoped(free) char *parent = strndup(path, (size_t)(slash - path));
	if (!parent)
		return no_memory(err);
	if (!*name)
		return err_set(err, -EBUSY, "cannot remove \"%s\"", path);
	if (!allow_not_found) {
		int r = edit_walk(env->edit, path, EDIT_FOLLOW_RELATIVE, &node, NULL, err);
		if (r == 0 && !node)
			r = err_set(err, -ENOENT, "rm %s: no such file or folder", path);
		if (r < 0)
			return r;
	}
	int r = edit_walk(env->edit, parent, EDIT_FOLLOW, &dir, NULL, err);
	if (r == 0 && dir && edit_attr(env->edit, dir)->type == NODE_DIR)
		r = edit_child(env->edit, dir, name, strlen(name), &node, err);
	else
		node = 0;
	if (r == 0 && node)
		edit_remove(env->edit, dir, name, strlen(name));
	return r == -ENOTDIR && allow_not_found ? 0 : r;
}

static int run_rm(struct file_env *env, const struct llb_action *a, struct tree *below,
		  struct err *err)
{
	scoped(free) char *path = path_clean(a->path, strlen(a->path));
	if (!path)
		return no_memory(err);
	if (!a->allow_wildcard)
		return remove_one(env, path, a->allow_not_found, err);
	struct file_paths paths = {0};
	int r = file_wildcards(&paths, below, path, false, err);
	for (size_t i = 0; i < paths.items.n && r == 0; i++)
		r = remove_one(env, paths.items.items[i], a->allow_not_found, err);
	file_paths_deinit(&paths);
	return r;
}

/* ------------------------------------------------------------------ the graph of actions */

/* The edit in which action @i works: a new one, or that of the action before it. */
static int begin(struct file_op *op, size_t i, struct file_env *env)
{
	const struct llb_action *a = &op->v->op.file.actions[i];
	struct result *to = &op->results[op->n_inputs + i], *from;
	struct tree *below = NULL;
	int r = result_at(op, i, a->input, &from);
	if (r < 0)
		return r;
	to->is_owned = true;
	bool needs_tree = a->kind == ACTION_RM && a->allow_wildcard;
	if (from && from->edit && from->n_uses == 1 && !needs_tree) {
		to->edit = take(from->edit);
		to->ref = ref_ref(from->ref);
	} else {
		r = from ? result_tree(op, from, &below) : 0;
		if (r == 0 && from)
			to->ref = ref_ref(from->ref);
		else if (r == 0)
			r = ref_scratch(&to->ref, op->err);
		if (r == 0 && edit_new(&to->edit, below, &env->now) < 0)
			r = no_memory(op->err);
	}
	env->edit = to->edit;
	env->below = below;
	return r;
}

static int run_action(struct file_op *op, size_t i)
{
	const struct llb_action *a = &op->v->op.file.actions[i];
	struct file_env env = {.now = op->solver->now};
	struct result *from;
	int r = result_at(op, i, a->secondary_input, &from);
	if (r == 0 && from)
		r = result_tree(op, from, &env.source);
	if (r == 0)
		r = find_owner(op, i, &env.owner);
	if (r == 0)
		r = begin(op, i, &env);
	if (r < 0)
		return r;
	switch (a->kind) {
	case ACTION_COPY:
		return file_copy(&env, a, op->err);
	case ACTION_MKFILE:
		return run_mkfile(&env, a, op->err);
	case ACTION_MKDIR:
		return run_mkdir(&env, a, op->err);
	case ACTION_RM:
		return run_rm(&env, a, env.below, op->err);
	case ACTION_SYMLINK:
		return run_symlink(&env, a, op->err);
	case ACTION_UNKNOWN:
		break;
	}
	return err_set(op->err, -ENOTSUP, "action %zu is of a kind that is not known", i);
}

static int use(struct file_op *op, size_t action, int64_t i)
{
	struct result *result;
	int r = result_at(op, action, i, &result);
	if (r == 0 && result) {
		result->n_uses++;
		result->is_needed = true;
	}
	return r;
}

/* Counts who uses what, from the outputs down. */
static int count_uses(struct file_op *op)
{
	for (size_t i = op->v->op.file.n_actions; i-- > 0;) {
		const struct llb_action *a = &op->v->op.file.actions[i];
		struct result *to = &op->results[op->n_inputs + i];
		if (a->output >= 0) {
			to->is_needed = true;
			to->n_uses++;
		}
		if (!to->is_needed)
			continue;
		int r = use(op, i, a->input);
		if (r == 0)
			r = use(op, i, a->secondary_input);
		if (r == 0 && a->user.name)
			r = use(op, i, a->user.input);
		if (r == 0 && a->group.name)
			r = use(op, i, a->group.input);
		if (r < 0)
			return r;
	}
	return 0;
}

static int run_all(struct file_op *op, struct ref **outputs)
{
	int r = count_uses(op);
	for (size_t i = 0; r == 0 && i < op->v->op.file.n_actions; i++) {
		struct result *result = &op->results[op->n_inputs + i];
		int64_t output = op->v->op.file.actions[i].output;
		if (!result->is_needed)
			continue;
		r = run_action(op, i);
		if (r == 0 && output >= 0)
			r = result_seal(op, result);
		if (r == 0 && output >= 0)
			outputs[output] = ref_ref(result->ref);
	}
	return r;
}

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	size_t n = v->op.n_inputs + v->op.file.n_actions;
	struct file_op op = {.v = v, .solver = solver, .n_inputs = v->op.n_inputs, .err = err};
	op.results = calloc(n + 1, sizeof(*op.results));
	if (!op.results)
		return no_memory(err);
	for (size_t i = 0; i < v->op.n_inputs; i++)
		op.results[i].ref = inputs[i];
	int r = run_all(&op, outputs);
	for (size_t i = 0; i < n; i++) {
		if (op.results[i].is_owned)
			ref_unref(op.results[i].ref);
		edit_free(op.results[i].edit);
		tree_unref(op.results[i].tree);
	}
	free(op.results);
	if (r < 0)
		for (size_t i = 0; i < v->n_outputs; i++)
			outputs[i] = ref_unref(outputs[i]);
	return r;
}

const struct op_ops op_file = {.run = run};
