/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Local sources: a folder of this host that the command line names (--local NAME=DIR).
 *
 * Names and metadata are read when the definition is solved, as far as the source's patterns want
 * them; content is read from the folder when it is looked at, and refused when the file was changed
 * in between (merge/edittree.c). As with BuildKit all is owned by 0:0, and of xattrs only
 * capabilities come along.
 *
 * Followed paths are more of what is wanted: each, and what the links on the way to it lead to, so
 * that a selected link does not dangle. They may hold wildcards.
 *
 * With local.metadatatransfer only the metadata of all that is in one file (local_stats.c), beside what
 * matches local.metadatatransferexclude.
 *
 * Other attributes change nothing here: local.differ says how an earlier upload is compared with this
 * one, local.sharedkeyhint and local.unique which earlier upload that is, and there are no
 * uploads; local.session says whose folder it is, and is part of the key.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* Links may lead to links with wildcards for ever; nobody means that. */
#define FOLLOWED_MAX 10000

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

struct texts {
	char **items;
	size_t n;
};

/* ------------------------------------------------------------------ followed paths */

struct follow {
	struct tree *tree;
	struct file_paths todo;
	struct texts *found; /* patterns: what is wanted */
	struct err *err;
};

static int texts_add(struct texts *texts, const char *text)
{
	char **items = realloc(texts->items, (texts->n + 2) * sizeof(char *));
	if (!items)
		return -ENOMEM;
	texts->items = items;
	items[texts->n] = strdup(text);
	return items[texts->n] ? (texts->n++, 0) : -ENOMEM;
}

static void texts_deinit_scoped(struct texts *texts)
{
	texts_free(texts->items, texts->n);
}

/* Notes a path as wanted; false when it was already. Errors: -ENOMEM. */
static int follow_found(struct follow *f, const char *path)
{
	for (size_t i = 0; i < f->found->n; i++)
		if (strcmp(f->found->items[i], path) == 0)
			return 0;
	return texts_add(f->found, path) < 0 ? -ENOMEM : 1;
}

/* The path to go on with from a link in the folder @dir, before @rest. */
static int follow_link(struct follow *f, uint64_t link, const char *dir, const char *rest)
{
	scoped(strbuf_free) struct strbuf target = {0};
	int r = tree_readlink(f->tree, link, &target, f->err);
	if (r < 0)
		return r;
	scoped(free) char *whole =
		str_printf("%s/%s/%s", target.data[0] == '/' ? "" : dir, target.data, rest);
	char **slot = whole ? vec_push(&f->todo.items) : NULL;
	if (!slot || !(*slot = path_clean(whole, strlen(whole))))
		return no_memory(f->err);
	return f->todo.items.n + f->found->n > FOLLOWED_MAX
		       ? err_set(f->err, -ELOOP, "followed paths: too many symbolic links")
		       : 0;
}

/* Puts the targets of what @pattern matches in @dir on the list: how many links there were. */
static int follow_matches(struct follow *f, const char *dir, const char *pattern, const char *rest)
{
	scoped(free) char *whole = str_printf("%s/%s", dir, pattern);
	struct file_paths paths = {0};
	int n_links = 0;
	int r = whole ? file_wildcards(&paths, f->tree, whole, false, f->err) : -ENOMEM;
	for (size_t i = 0; i < paths.items.n && r == 0; i++) {
		struct attr attr;
		if (tree_walk(f->tree, paths.items.items[i], false, &attr, NULL) < 0 ||
		    attr.type != NODE_SYMLINK)
			continue;
		n_links++;
		r = follow_link(f, attr.id, dir, rest);
	}
	file_paths_deinit(&paths);
	return r < 0 ? r : n_links;
}

/* One path (clean, absolute): up to its first link, or to its end. */
static int follow_path(struct follow *f, const char *path)
{
	for (const char *name = path + 1;;) {
		size_t len = strcspn(name, "/");
		const char *rest = name[len] ? name + len + 1 : "";
		scoped(free) char *dir = strndup(path, (size_t)(name - path - 1));
		scoped(free) char *part = strndup(name, len);
		scoped(free) char *here = strndup(path + 1, (size_t)(name + len - path - 1));
		if (!dir || !part || !here)
			return no_memory(f->err);
		int n_links = follow_matches(f, dir, part, rest);
		if (n_links < 0)
			return n_links;
		if (n_links > 0 || !*rest)
			return MIN(follow_found(f, here), 0);
		name = rest;
	}
}

/* Adds what @paths lead to to @include. */
static int follow_all(struct texts *include, struct tree *tree, const struct texts *paths,
		      struct err *err)
{
	struct follow f = {.tree = tree, .found = include, .err = err};
	int r = 0;
	for (size_t i = paths->n; i-- > 0 && r == 0;) {
		char **slot = vec_push(&f.todo.items);
		if (!slot || !(*slot = path_clean(paths->items[i], strlen(paths->items[i]))))
			r = no_memory(err);
	}
	while (r == 0 && f.todo.items.n > 0) {
		scoped(free) char *path = f.todo.items.items[--f.todo.items.n];
		if (strcmp(path, "/") == 0)
			r = MIN(follow_found(&f, "**"), 0);
		else
			r = follow_path(&f, path);
	}
	file_paths_deinit(&f.todo);
	return r;
}

/* ------------------------------------------------------------------ the source */

static int read_texts(struct texts *out, const struct vertex *v, const char *key, struct err *err)
{
	const char *json = llb_source_attr(&v->op, key);
	return json ? texts_parse(&out->items, &out->n, json, key, err) : 0;
}

static int copy_folder(struct edit *edit, struct tree *folder, const struct vertex *v,
		       struct err *err)
{
	scoped(texts_deinit) struct texts include = {0}, exclude = {0}, follow = {0};
	scoped(match_patterns_free) struct match_patterns *wanted = NULL, *unwanted = NULL;
	struct attr root;
	int r = read_texts(&include, v, "local.includepattern", err);
	if (r == 0)
		r = read_texts(&exclude, v, "local.excludepatterns", err);
	if (r == 0)
		r = read_texts(&follow, v, "local.followpaths", err);
	if (r == 0)
		r = follow_all(&include, folder, &follow, err);
	if (r == 0 && include.n)
		r = match_patterns_new(&wanted, (const char *const *)include.items, include.n, err);
	if (r == 0 && exclude.n)
		r = match_patterns_new(&unwanted, (const char *const *)exclude.items, exclude.n,
				       err);
	if (r == 0)
		r = tree_getattr(folder, TREE_ROOT, &root, NULL, err);
	if (r < 0)
		return r;
	struct file_env env = {.edit = edit, .source = folder, .owner = {.is_set = true}};
	struct copy copy = {.env = &env,
			    .include = wanted,
			    .exclude = unwanted,
			    .time_ns = -1,
			    .prefix = "",
			    .is_local = true};
	r = copy_run(&copy, &root, TREE_ROOT, "", err);
	copy_deinit(&copy);
	return r;
}

/* What of @all is wanted nonetheless, by patterns. */
static int copy_exceptions(struct edit *edit, struct tree *all, const struct vertex *v,
			   struct err *err)
{
	scoped(texts_deinit) struct texts texts = {0};
	scoped(match_patterns_free) struct match_patterns *wanted = NULL;
	struct attr root;
	int r = read_texts(&texts, v, "local.metadatatransferexclude", err);
	if (r < 0 || texts.n == 0)
		return r;
	r = match_patterns_new(&wanted, (const char *const *)texts.items, texts.n, err);
	if (r == 0)
		r = tree_getattr(all, TREE_ROOT, &root, NULL, err);
	if (r < 0)
		return r;
	struct file_env env = {.edit = edit, .source = all, .owner = {.is_set = true}};
	struct copy copy = {
		.env = &env, .include = wanted, .time_ns = -1, .prefix = "", .is_local = true};
	r = copy_run(&copy, &root, TREE_ROOT, "", err);
	copy_deinit(&copy);
	return r;
}

/* Puts a tree that tells of *layer in its place. */
static int leave_metadata(struct tree **layer, struct tree *folder, const struct vertex *v,
			  const struct solver *solver, struct err *err)
{
	static const char name[] = LOCAL_STATS_NAME;
	scoped(strbuf_free) struct strbuf stats = {0};
	scoped(edit_free) struct edit *edit = NULL;
	uint64_t node;
	int r = local_stats(&stats, *layer, folder, err);
	if (r == 0 && edit_new(&edit, NULL, &solver->now) < 0)
		r = no_memory(err);
	if (r == 0)
		r = copy_exceptions(edit, *layer, v, err);
	if (r == 0)
		r = edit_child(edit, TREE_ROOT, name, strlen(name), &node, err);
	if (r < 0)
		return r;
	if (node)
		edit_remove(edit, TREE_ROOT, name, strlen(name));
	const struct attr attr = {.type = NODE_FILE,
				  .mode = 0644,
				  .nlink = 1,
				  .mtime_s = solver->now.tv_sec,
				  .mtime_ns = (uint32_t)solver->now.tv_nsec};
	const struct edit_what what = {
		.attr = &attr, .data = stats.len ? stats.data : "", .len = stats.len};
	r = edit_make(edit, TREE_ROOT, name, strlen(name), &what, &node, err);
	if (r < 0)
		return r;
	*layer = tree_unref(*layer);
	return edit_seal(layer, &edit, err);
}

static const char *find_folder(const struct solver *solver, const char *name)
{
	for (size_t i = 0; i < solver->options.n_locals; i++)
		if (strcmp(solver->options.locals[i].name, name) == 0)
			return solver->options.locals[i].dir;
	return NULL;
}

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	const char *name = v->op.source.identifier + strlen("local://");
	const char *dir = find_folder(solver, name);
	const char *metadata = llb_source_attr(&v->op, "local.metadatatransfer");
	if (!dir)
		return err_set(err, -ENOENT,
			       "no folder was given for the local source \"%s\": say "
			       "--local %s=DIR",
			       name, name);
	scoped(tree_unref) struct tree *folder = NULL, *layer = NULL;
	scoped(edit_free) struct edit *edit = NULL;
	/* The server of a mount works elsewhere. */
	scoped(free) char *real = realpath(dir, NULL);
	if (!real)
		return err_errno(err, "local source \"%s\": %s", name, dir);
	int r = dirtree_new(&folder, real, false, err);
	if (r == 0 && edit_new(&edit, NULL, &solver->now) < 0)
		r = no_memory(err);
	if (r == 0)
		r = copy_folder(edit, folder, v, err);
	if (r == 0)
		r = edit_seal(&layer, &edit, err);
	if (r == 0 && metadata && strcmp(metadata, "true") == 0)
		r = leave_metadata(&layer, folder, v, solver, err);
	if (r < 0)
		return err_wrap(err, r, "%s", dir);
	return ref_made(&outputs[0], v->op.source.identifier, layer, err);
}

const struct op_ops source_local_op = {.run = run, .keys = keys_local};
