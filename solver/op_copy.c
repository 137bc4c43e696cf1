/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The copy action of a FileOp: which sources it means, where they go, and with which mode; copy.c
 * does the rest.
 *
 * What BuildKit does, in its order: the folder in which the destination lies is made; each source
 * (one, or those that a wildcard matches) is put to the destination, or into it under its own name
 * when that is a folder (unless the contents of a folder are to be copied). Each source finds the
 * destination as the one before it left it.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define MODE_BITS 07777u

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

void file_paths_deinit(struct file_paths *paths)
{
	for (size_t i = 0; i < paths->items.n; i++)
		free(paths->items.items[i]);
	vec_free(&paths->items);
}

/* ------------------------------------------------------------------ wildcards */

static bool has_wildcard(const char *name, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (name[i] == '\\')
			i++;
		else if (strchr("*?[", name[i]))
			return true;
	}
	return false;
}

struct wildcards {
	struct file_paths *out;
	const char *base;    /* what is walked, a real path */
	const char *pattern; /* of paths below it */
	size_t n_names;	     /* of the pattern */
	bool has_class;	     /* which may match a slash */
};

static int paths_add(struct file_paths *paths, const char *base, const char *path)
{
	char **slot = vec_push(&paths->items);
	if (!slot)
		return -ENOMEM;
	*slot = str_printf("%s%s%s", strcmp(base, "/") == 0 ? "" : base, *path ? "/" : "", path);
	return *slot ? 0 : -ENOMEM;
}

/* Whether something below the folder @path can match. */
static bool may_match_below(const struct wildcards *w, const char *path)
{
	size_t n = 1, len = 0;
	for (const char *p = path; *p; p++)
		n += *p == '/';
	if (w->has_class)
		return true;
	if (n >= w->n_names)
		return false;
	for (; n > 0; n--)
		len += strcspn(w->pattern + len, "/") + (n > 1);
	scoped(free) char *head = strndup(w->pattern, len);
	return !head || match_wildcard(head, path) != 0;
}

static int try_path(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct wildcards *w = arg;
	int r = match_wildcard(w->pattern, path);
	if (r == -ENOMEM)
		return r;
	if (r == 1) {
		r = paths_add(w->out, w->base, path);
		return r < 0 ? r : TREE_WALK_SKIP;
	}
	return attr->type == NODE_DIR && may_match_below(w, path) ? 0 : TREE_WALK_SKIP;
}

int file_wildcards(struct file_paths *out, struct tree *t, const char *pattern, bool follow,
		   struct err *err)
{
	/* Up to the first name with a wildcard. */
	const char *name = pattern;
	while (*name) {
		size_t len = strcspn(name + 1, "/");
		if (has_wildcard(name + 1, len))
			break;
		name += 1 + len;
	}
	if (!*name)
		return paths_add(out, "", pattern + 1) < 0 ? no_memory(err) : 0;
	scoped(free) char *base = strndup(pattern, (size_t)(name - pattern));
	scoped(strbuf_free) struct strbuf real = {0};
	struct attr attr;
	if (!base)
		return no_memory(err);
	int r = t ? tree_walk_real(t, base, follow, &attr, &real, err) : -ENOENT;
	if (r == -ENOENT || (r == 0 && attr.type != NODE_DIR))
		return 0;
	if (r < 0)
		return r;
	struct wildcards w = {.out = out,
			      .base = real.data,
			      .pattern = name + 1,
			      .n_names = 1,
			      .has_class = strchr(name, '[') != NULL};
	for (const char *p = w.pattern; *p; p++)
		w.n_names += *p == '/';
	return tree_walk_all(t, attr.id, try_path, &w, err);
}

/* ------------------------------------------------------------------ one source */

/* Everything about a copy that is the same for all its sources. */
struct copy_job {
	struct copy copy;
	struct file_env *env;
	const struct llb_action *a;
	struct match_patterns *include, *exclude;
	uint32_t parent_mode;
};

/* The folder that must be before anything is copied: all of a destination that says it is one. */
static int make_destination(struct copy_job *job, struct file_made *made, struct err *err)
{
	const char *dest = job->a->path, *slash = strrchr(dest, '/');
	const char *last = slash ? slash + 1 : dest;
	bool is_folder = !*last || strcmp(last, ".") == 0;
	scoped(free) char *dir = is_folder ? strdup(dest) : strndup(dest, (size_t)(last - dest));
	scoped(strbuf_free) struct strbuf real = {0};
	uint64_t node;
	if (!dir)
		return no_memory(err);
	int r = edit_walk(job->env->edit, dir, EDIT_FOLLOW, &node, &real, err);
	return r < 0 ? r
		     : file_make_dirs(job->env, real.data, job->parent_mode, job->a->timestamp,
				      made, err);
}

/* The name under which a source goes into a folder; "" for one that has none. */
static char *source_name(const char *path)
{
	size_t len = strlen(path);
	while (len > 0 && path[len - 1] == '/')
		len--;
	const char *slash = len ? memrchr(path, '/', len) : NULL;
	const char *name = slash ? slash + 1 : path;
	size_t n = (size_t)(path + len - name);
	return strndup(name, n == 1 && *name == '.' ? 0 : n);
}

/* Where a source goes: a real path. */
static int find_target(struct copy_job *job, const char *path, const struct attr *from,
		       struct strbuf *target, struct file_made *made, struct err *err)
{
	bool is_dir = from->type == NODE_DIR, contents = job->a->dir_copy_contents;
	uint64_t node;
	int r = edit_walk(job->env->edit, job->a->path, EDIT_FOLLOW, &node, target, err);
	if (r < 0)
		return r;
	bool into = is_dir ? !contents && node
			   : node && edit_attr(job->env->edit, node)->type == NODE_DIR;
	if (into) {
		scoped(free) char *name = source_name(path);
		if (!name)
			return no_memory(err);
		if (*name && strcmp(target->data, "/") != 0)
			strbuf_putc(target, '/');
		strbuf_puts(target, name);
	}
	if (target->failed)
		return no_memory(err);
	/* The folder that is copied to is made like its parents when its contents are meant. */
	size_t len = (size_t)(strrchr(target->data, '/') - target->data);
	scoped(free) char *parent =
		is_dir && contents && !node ? strdup(target->data) : strndup(target->data, len);
	return parent ? file_make_dirs(job->env, parent, job->parent_mode, job->a->timestamp, made,
				       err)
		      : no_memory(err);
}

/* Unpacks the source when it is an archive: 1, else 0. */
static int try_unpack(struct copy_job *job, const char *path, struct err *err)
{
	scoped(strbuf_free) struct strbuf real = {0};
	struct file_env *env = job->env;
	struct attr attr;
	uint64_t node;
	int r = tree_walk(env->source, path, true, &attr, err);
	if (r < 0 || attr.type != NODE_FILE)
		return r;
	r = edit_walk(env->edit, job->a->path, EDIT_FOLLOW, &node, &real, err);
	if (r < 0)
		return r;
	const struct tar_unpack_options options = {
		.into = real.data,
		.has_owner = env->owner.is_set,
		.uid = env->owner.uid,
		.gid = env->owner.gid,
		.now = env->now,
	};
	return tar_unpack(env->edit, env->source, &attr, &options, err);
}

static int copy_one(struct copy_job *job, const char *path, struct file_made *made, struct err *err)
{
	scoped(strbuf_free) struct strbuf target = {0};
	struct attr from;
	const char *name;
	uint64_t dir;
	int r = make_destination(job, made, err);
	if (r == 0)
		r = tree_walk(job->env->source, path, job->a->follow_symlink, &from, err);
	if (r == -ENOENT)
		return err_set(err, r, "\"%s\": not found", path);
	if (r == 0)
		r = find_target(job, path, &from, &target, made, err);
	if (r < 0)
		return r;
	scoped(free) char *prefix = path_clean(path, strlen(path));
	if (!prefix)
		return no_memory(err);
	job->copy.prefix = strcmp(prefix, "/") == 0 ? "" : prefix;
	if (strcmp(target.data, "/") == 0)
		return copy_run(&job->copy, &from, TREE_ROOT, "", err);
	r = file_split(job->env, target.data, &dir, &name, err);
	return r < 0 ? r : copy_run(&job->copy, &from, dir, name, err);
}

/* ------------------------------------------------------------------ all of them */

static int check_parent(struct copy_job *job, struct err *err)
{
	scoped(strbuf_free) struct strbuf real = {0};
	const char *name;
	uint64_t node, dir;
	if (job->a->create_dest_path)
		return 0;
	int r = edit_walk(job->env->edit, job->a->path, EDIT_FOLLOW, &node, &real, err);
	if (r == 0)
		r = file_split(job->env, real.data, &dir, &name, err);
	if (r < 0)
		return r;
	return dir ? 0
		   : err_set(err, -ENOENT, "failed to stat %s: its folder is not there",
			     job->a->path);
}

static int find_sources(struct copy_job *job, struct file_paths *paths, struct err *err)
{
	const struct llb_action *a = job->a;
	if (!a->allow_wildcard)
		return paths_add(paths, "", a->from[0] == '/' ? a->from + 1 : a->from) < 0
			       ? no_memory(err)
			       : 0;
	scoped(free) char *pattern = path_clean(a->from, strlen(a->from));
	if (!pattern)
		return no_memory(err);
	int r = file_wildcards(paths, job->env->source, pattern, a->follow_symlink, err);
	if (r == 0 && paths->items.n == 0 && !a->allow_empty_wildcard)
		return err_set(err, -ENOENT, "%s not found", pattern);
	return r;
}

/* With neither wildcard nor patterns BuildKit does not look at what is required. */
static int check_required(const struct copy_job *job, struct err *err)
{
	const struct llb_action *a = job->a;
	if (!a->n_include && !a->n_exclude && !(a->allow_wildcard && keys_is_wildcard(a->from)))
		return 0;
	for (size_t i = 0; i < job->a->n_required; i++)
		if (!job->copy.met[i])
			return err_set(err, -ENOENT, "\"%s\": not found", job->a->required[i]);
	return 0;
}

static int copy_all(struct copy_job *job, struct file_made *made, struct err *err)
{
	struct file_paths paths = {0};
	int r = find_sources(job, &paths, err);
	if (r == 0)
		r = check_parent(job, err);
	for (size_t i = 0; i < paths.items.n && r == 0; i++) {
		const char *path = paths.items.items[i];
		int done = job->a->attempt_unpack ? try_unpack(job, path, err) : 0;
		r = done < 0 ? done : done ? 0 : copy_one(job, path, made, err);
	}
	file_paths_deinit(&paths);
	return r < 0 ? r : check_required(job, err);
}

static int job_init(struct copy_job *job, struct err *err)
{
	const struct llb_action *a = job->a;
	bool has_mode = a->mode != -1 && !*a->mode_text;
	int r = 0;
	if (a->n_include)
		r = match_patterns_new(&job->include, (const char *const *)a->include, a->n_include,
				       err);
	if (r == 0 && a->n_exclude)
		r = match_patterns_new(&job->exclude, (const char *const *)a->exclude, a->n_exclude,
				       err);
	if (r < 0)
		return r;
	job->parent_mode = has_mode ? (uint32_t)a->mode & 0777 : 0755; /* mkdir sets no more */
	job->copy = (struct copy){
		.env = job->env,
		.include = job->include,
		.exclude = job->exclude,
		.time_ns = a->timestamp,
		.has_mode = has_mode,
		.mode = (uint32_t)a->mode & MODE_BITS,
		.mode_text = a->mode_text,
		.always_replace = a->always_replace,
		.required = a->required,
		.n_required = a->n_required,
		.met = calloc(a->n_required + 1, 1),
	};
	return job->copy.met ? 0 : no_memory(err);
}

int file_copy(struct file_env *env, const struct llb_action *a, struct err *err)
{
	scoped(tree_unref) struct tree *nothing = NULL;
	struct copy_job job = {.env = env, .a = a};
	struct file_made made = {0};
	if (!env->source) {
		if (tree_empty(&nothing) < 0)
			return no_memory(err);
		env->source = nothing;
	}
	int r = job_init(&job, err);
	if (r == 0)
		r = copy_all(&job, &made, err);
	if (r == 0)
		file_restore_times(env, &made, a->timestamp);
	copy_deinit(&job.copy);
	free(job.copy.met);
	match_patterns_free(job.include);
	match_patterns_free(job.exclude);
	vec_free(&made.nodes);
	return r;
}
