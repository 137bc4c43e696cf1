/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From any REF of the command line to a ref. name.c says what the text is; a row here says who
 * makes a ref of it. The forms that only look at this host are here, too: folders and definitions.
 */

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/cache-internal.h"
#include "solver/git-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* 128 random bits. */
static int make_session(char session[SESSION_MAX], struct err *err)
{
	uint8_t bytes[SESSION_MAX / 2];
	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return err_errno(err, "no random numbers");
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(session + 2 * i, 3, "%02x", bytes[i]);
	return 0;
}

int solver_new(struct solver **out, const struct solver_options *options, struct err *err)
{
	assert(options->store);
	struct solver *solver = calloc(1, sizeof(*solver));
	if (!solver)
		return no_memory(err);
	int r = make_session(solver->session, err);
	if (r == 0)
		r = cache_imports_new(&solver->imports, options->import_caches,
				      options->n_import_caches, err);
	if (r == 0)
		r = cache_db_new(&solver->cache, options->store, err);
	if (r < 0) {
		cache_imports_free(solver->imports);
		free(solver);
		return r;
	}
	solver->options = *options;
	platform_normalize(&solver->options.platform);
	pthread_mutex_init(&solver->lock, NULL);
	pthread_cond_init(&solver->left, NULL);
	clock_gettime(CLOCK_REALTIME, &solver->now);
	*out = solver;
	return 0;
}

void solver_free(struct solver *solver)
{
	if (!solver)
		return;
	solver->is_ending = true;
	graph_free_busy(solver);
	for (size_t i = 0; i < solver->images.n; i++) {
		free(solver->images.items[i].key);
		ref_unref(solver->images.items[i].ref);
	}
	vec_free(&solver->images);
	for (size_t i = 0; i < solver->registries.n; i++) {
		free(solver->registries.items[i].host);
		free(solver->registries.items[i].repository);
		registry_unref(solver->registries.items[i].registry);
	}
	vec_free(&solver->registries);
	git_state_free(solver->git);
	vec_free(&solver->entered);
	pthread_mutex_destroy(&solver->lock);
	pthread_cond_destroy(&solver->left);
	cache_imports_free(solver->imports);
	solver->cache->ops->free(solver->cache);
	free(solver);
}

/* ------------------------------------------------------------------ asking once */

static size_t find_entered(const struct solver *solver, const char *what)
{
	size_t i = 0;
	while (i < solver->entered.n && strcmp(solver->entered.items[i], what) != 0)
		i++;
	return i;
}

int solver_enter(struct solver *solver, const char *what)
{
	pthread_mutex_lock(&solver->lock);
	while (find_entered(solver, what) < solver->entered.n)
		pthread_cond_wait(&solver->left, &solver->lock);
	const char **slot = vec_push(&solver->entered);
	if (slot)
		*slot = what;
	pthread_mutex_unlock(&solver->lock);
	return slot ? 0 : -ENOMEM;
}

void solver_leave(struct solver *solver, const char *what)
{
	pthread_mutex_lock(&solver->lock);
	size_t i = find_entered(solver, what);
	solver->entered.items[i] = solver->entered.items[--solver->entered.n];
	pthread_cond_broadcast(&solver->left);
	pthread_mutex_unlock(&solver->lock);
}

/* ------------------------------------------------------------------ secrets */

#define SECRET_MAX (500u << 10)

int solver_secret(struct solver *solver, const char *id, struct strbuf *out, struct err *err)
{
	const struct solver_secret *secret = NULL;
	for (size_t i = 0; i < solver->options.n_secrets; i++)
		if (strcmp(solver->options.secrets[i].id, id) == 0)
			secret = &solver->options.secrets[i];
	if (!secret)
		return err_set(err, -ENOENT,
			       "no secret \"%s\" was given: say --secret id=%s,src=FILE", id, id);
	const char *text = secret->file ? NULL : getenv(secret->env);
	if (!secret->file && !text)
		return err_set(err, -EINVAL, "secret \"%s\": no variable %s", id, secret->env);
	int r = secret->file ? read_file(AT_FDCWD, secret->file, SECRET_MAX, out) : 0;
	if (r < 0)
		return err_set(err, r == -ENOENT ? -EINVAL : r, "secret \"%s\": %s: %s", id,
			       secret->file, strerror(-r));
	if (text)
		strbuf_puts(out, text);
	return out->failed ? no_memory(err) : 0;
}

/* ------------------------------------------------------------------ folders */

static int resolve_dir(struct solver *solver, const char *text, const struct ref_text *what,
		       struct ref **out, struct err *err)
{
	struct stat st;
	/* The server of a mount works elsewhere. */
	scoped(free) char *dir = realpath(what->name, NULL);
	if (!dir || stat(dir, &st) < 0)
		return err_errno(err, "%s", text);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, -ENOTDIR, "%s: not a folder", text);
	return ref_folder(out, text, dir, err);
}

/* ------------------------------------------------------------------ definitions */

/* More than graph_load takes, so that it is the one to complain. */
#define DEFINITION_READ_MAX (65u << 20)

/* Standard input may be what no path opens (a socket), so it is read as it is. */
static int read_stdin(struct strbuf *out)
{
	char bytes[64 << 10];
	ssize_t n;
	while ((n = read(STDIN_FILENO, bytes, sizeof(bytes))) != 0) {
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			strbuf_add(out, bytes, (size_t)n);
		if (out->len > DEFINITION_READ_MAX)
			return -EFBIG;
	}
	return 0;
}

int definition_read(struct strbuf *out, const char *name, struct err *err)
{
	bool is_stdin = strcmp(name, "-") == 0;
	int r = is_stdin ? read_stdin(out) : read_file(AT_FDCWD, name, DEFINITION_READ_MAX, out);
	if (r == 0 && out->failed)
		r = -ENOMEM;
	return r < 0 ? err_set(err, r, "%s: %s", name, strerror(-r)) : 0;
}

static int resolve_llb(struct solver *solver, const char *text, const struct ref_text *what,
		       struct ref **out, struct err *err)
{
	scoped(strbuf_free) struct strbuf bytes = {0};
	int r = definition_read(&bytes, what->name, err);
	if (r < 0)
		return r;
	scoped(graph_free) struct graph *graph = NULL;
	r = graph_load(&graph, bytes.data, bytes.len, err);
	if (r < 0)
		return err_wrap(err, r, "%s", what->name);
	struct vertex *vertex;
	int index;
	graph_result(graph, &vertex, &index);
	if (what->vertex) {
		r = graph_find(graph, what->vertex, &vertex, err);
		index = what->index;
	}
	if (r == 0)
		r = graph_solve(graph, solver, vertex, index, NULL, out, err);
	return r < 0 ? err_wrap(err, r, "%s", what->name) : 0;
}

/* ------------------------------------------------------------------ images */

/* A folder that the user may have meant: a/b is always an image. */
static bool is_folder_here(const char *name)
{
	struct stat st;
	return stat(name, &st) == 0 && S_ISDIR(st.st_mode);
}

static int resolve_image(struct solver *solver, const char *text, const struct ref_text *what,
			 struct ref **out, struct err *err)
{
	const struct image_request request = {.platform = &solver->options.platform};
	int r = source_image_resolve(solver, what->name, &request, out, err);
	if (r < 0 && strcmp(text, what->name) == 0 && is_folder_here(text)) {
		struct err why = err ? *err : (struct err){0};
		return err_set(err, r, "%s (the folder of that name is ./%s)", err_text(&why, r),
			       text);
	}
	return r;
}

static int resolve_layout(struct solver *solver, const char *text, const struct ref_text *what,
			  struct ref **out, struct err *err)
{
	const struct image_request request = {.platform = &solver->options.platform};
	return source_layout_resolve(solver, text, what->name, what->tag, what->digest, &request,
				     out, err);
}

static int resolve_other(struct solver *solver, const char *text, const struct ref_text *what,
			 struct ref **out, struct err *err)
{
	return err_set(err, -ENOTSUP, "%s: %s:// references cannot be resolved yet", text,
		       what->name);
}

/* ------------------------------------------------------------------ the door */

typedef int (*resolve_fn)(struct solver *solver, const char *text, const struct ref_text *what,
			  struct ref **out, struct err *err);

static const resolve_fn resolvers[] = {
	[FORM_IMAGE] = resolve_image,
	[FORM_OCI_LAYOUT] = resolve_layout,
	[FORM_OCI_ARCHIVE] = source_archive_resolve,
	[FORM_DOCKER_ARCHIVE] = source_archive_resolve,
	[FORM_DIR] = resolve_dir,
	[FORM_LLB] = resolve_llb,
	[FORM_REF] = refdb_resolve,
	[FORM_OTHER] = resolve_other,
};

int solver_resolve(struct solver *solver, const char *text, struct ref **out, struct err *err)
{
	scoped(ref_text_deinit) struct ref_text what = {0};
	int r = ref_text_parse(&what, text, err);
	return r < 0 ? r : resolvers[what.form](solver, text, &what, out, err);
}
