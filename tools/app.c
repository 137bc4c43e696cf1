/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The parts of the program, connected: network, store, solver, progress; and the folders of this
 * host that the program knows.
 *
 * app_open starts threads, so that whoever forks does it before.
 */

#include "tools/tools.h"

#include <sys/stat.h>
#include <unistd.h>

#define DEADLINE_MS 60000

/* --@option NAME=DIR, each */
static int app_folders(struct solver_layout **out, size_t *n, const char *option,
		       const struct texts *texts, struct err *err)
{
	*out = calloc(texts->n + 1, sizeof(**out));
	if (!*out)
		return -ENOMEM;
	for (size_t i = 0; i < texts->n; i++) {
		const char *text = texts->items[i], *equals = strchr(text, '=');
		struct solver_layout *to = &(*out)[i];

		if (!equals || equals == text || !equals[1])
			return err_set(err, -EINVAL, "--%s must be NAME=DIR, not \"%s\"", option,
				       text);
		to->name = strndup(text, (size_t)(equals - text));
		if (!to->name)
			return -ENOMEM;
		to->dir = equals + 1;
		(*n)++;
	}
	return 0;
}

static void app_free_folders(struct solver_layout *folders, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free((char *)folders[i].name);
	free(folders);
}

static int app_secrets(struct app *app, const struct texts *texts, struct err *err)
{
	app->secrets = calloc(texts->n + 1, sizeof(*app->secrets));
	if (!app->secrets)
		return -ENOMEM;
	for (size_t i = 0; i < texts->n; i++) {
		int r = secret_parse(&app->secrets[i], texts->items[i], err);

		if (r < 0)
			return r;
		app->n_secrets++;
	}
	return 0;
}

static int app_solver(struct app *app, const struct options *o, struct err *err)
{
	struct solver_options options = {
		.store = app->store,
		.net = app->net,
		.offline = o->offline,
		.trust_index = o->trust_index,
	};
	scoped(free) char *cwd = getcwd(NULL, 0);
	int r;

	if (!cwd)
		return err_errno(err, "the current folder");
	options.cwd = cwd;
	r = app_folders(&app->layouts, &app->n_layouts, "oci-layout", &o->layouts, err);
	if (r == 0)
		r = app_folders(&app->locals, &app->n_locals, "local", &o->locals, err);
	if (r == 0)
		r = app_secrets(app, &o->secrets, err);
	if (r < 0)
		return r;
	options.layouts = app->layouts;
	options.n_layouts = app->n_layouts;
	options.locals = app->locals;
	options.n_locals = app->n_locals;
	options.secrets = app->secrets;
	options.n_secrets = app->n_secrets;
	options.import_caches = o->import_caches.items;
	options.n_import_caches = o->import_caches.n;
	if (o->platform) {
		r = platform_parse(&options.platform, o->platform, err);
		if (r < 0)
			return r;
	} else {
		platform_host(&options.platform);
	}
	return solver_new(&app->solver, &options, err);
}

int app_open(struct app *app, const struct options *o, const char *title, struct err *err)
{
	uint64_t deadline_ms = o->deadline_ms ? o->deadline_ms : DEADLINE_MS;
	struct net_options net = {
		.plain_http = o->plain_http,
		.insecure = o->insecure,
		.offline = o->offline,
		.ca = o->ca,
		.max_rate = o->max_rate,
		/* A little before the mount gives up on the request: then the reason that is told is
		 * the network's. */
		.deadline_ms = deadline_ms - deadline_ms / 10,
	};
	struct store_options store = {.root = o->root, .max_bytes = o->max_used_space};
	int r;

	*app = (struct app){0};
	r = net_new(&app->net, &net, err);
	if (r == 0) {
		store.net = app->net;
		r = store_open(&app->store, &store, err);
	}
	if (r == 0)
		r = app_solver(app, o, err);
	if (r == 0)
		r = progress_new(&app->progress, (enum progress_mode)o->progress, title, app->net,
				 err);
	if (r < 0)
		app_close(app);
	return r;
}

void app_close(struct app *app)
{
	progress_free(app->progress);
	net_stop(app->net); /* what a failed solve still waits for */
	solver_free(app->solver);
	store_close(app->store);
	net_free(app->net);
	app_free_folders(app->layouts, app->n_layouts);
	app_free_folders(app->locals, app->n_locals);
	for (size_t i = 0; i < app->n_secrets; i++)
		secret_deinit(&app->secrets[i]);
	free(app->secrets);
	*app = (struct app){0};
}

void app_output(struct app *app)
{
	if (isatty(STDOUT_FILENO))
		progress_hide(app->progress);
}

/* ------------------------------------------------------------------ places */

size_t runtime_dirs(char *out[4])
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	size_t n = 0;

	if (xdg && *xdg == '/')
		out[n++] = str_printf("%s/llbfs", xdg);
	if (geteuid() != 0) {
		out[n++] = str_printf("/run/user/%u/llbfs", geteuid());
		out[n++] = str_printf("/tmp/llbfs-%u", geteuid());
	}
	out[n++] = str_printf("/run/llbfs");
	return n;
}

/* Others must not be able to put their sockets where we look for ours. */
static bool runtime_dir_is_ours(const char *path)
{
	struct stat st;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return false;
	return lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
	       (st.st_mode & 022) == 0;
}

char *runtime_dir(struct err *err)
{
	char *dirs[4];
	char *found = NULL;
	size_t n = runtime_dirs(dirs);

	for (size_t i = 0; i < n; i++) {
		if (!found && dirs[i] && runtime_dir_is_ours(dirs[i]))
			found = take(dirs[i]);
		free(dirs[i]);
	}
	if (!found)
		err_set(err, -EACCES, "no folder for control sockets: set $XDG_RUNTIME_DIR");
	return found;
}
