/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The cache map of an exec (cachekey.c):
 *
 *	{"Type":"buildkit.exec.v0","Exec":{meta, mounts, ...},"OS":"linux","Arch":"amd64"}
 *
 * with all that the command can see and no more. Left out is what does not count as a difference:
 * proxies, the addresses of extra hosts, the IDs of cache mounts that are not made from their own
 * place, and selectors, which are part of the links to the inputs instead. An exec that mounts one
 * thing, its root, has no mounts in its key: so it was before there were any.
 *
 * The selector of an input is that of all paths that are mounted of it. Its content counts where
 * the command cannot write to it, or where all of it is mounted; not for the root file system,
 * which is large, unless the definition asks for it. The last mount of an input decides.
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

/* ------------------------------------------------------------------ the op as JSON */

static void write_hosts(struct strbuf *json, const struct llb_exec *exec)
{
	if (exec->n_hosts == 0)
		return;
	gojson_member(json, "extraHosts");
	gojson_open(json, '[');
	for (size_t i = 0; i < exec->n_hosts; i++) {
		gojson_open(json, '{');
		gojson_opt_text(json, "Host", exec->hosts[i].key);
		gojson_close(json, '}');
	}
	gojson_close(json, ']');
}

static void write_ulimits(struct strbuf *json, const struct llb_exec *exec)
{
	if (exec->n_ulimits == 0)
		return;
	gojson_member(json, "ulimit");
	gojson_open(json, '[');
	for (size_t i = 0; i < exec->n_ulimits; i++) {
		gojson_open(json, '{');
		gojson_opt_text(json, "Name", exec->ulimits[i].name);
		gojson_opt_i64(json, "Soft", exec->ulimits[i].soft);
		gojson_opt_i64(json, "Hard", exec->ulimits[i].hard);
		gojson_close(json, '}');
	}
	gojson_close(json, ']');
}

static void write_meta(struct strbuf *json, const struct llb_exec *exec)
{
	if (!exec->has_meta)
		return;
	gojson_member(json, "meta");
	gojson_open(json, '{');
	gojson_opt_texts(json, "args", exec->args, exec->n_args);
	gojson_opt_texts(json, "env", exec->env, exec->n_env);
	gojson_opt_text(json, "cwd", exec->cwd);
	gojson_opt_text(json, "user", exec->user);
	write_hosts(json, exec);
	gojson_opt_text(json, "hostname", exec->hostname);
	write_ulimits(json, exec);
	gojson_opt_text(json, "cgroupParent", exec->cgroup_parent);
	gojson_opt_bool(json, "removeMountStubsRecursive", exec->remove_mount_stubs_recursive);
	if (exec->n_exit_codes) {
		gojson_member(json, "validExitCodes");
		gojson_open(json, '[');
		for (size_t i = 0; i < exec->n_exit_codes; i++)
			gojson_i64(json, exec->exit_codes[i]);
		gojson_close(json, ']');
	}
	gojson_close(json, '}');
}

/* True when the ID is what a client makes of the place: the place, or a namespace, "/", the place. */
static bool is_default_cache(const struct llb_mount *mount)
{
	const char *slash = strchr(mount->cache_id, '/');
	return mount->cache_sharing == LLB_CACHE_SHARED &&
	       (!strcmp(mount->cache_id, mount->dest) ||
		(slash && !strcmp(slash + 1, mount->dest)));
}

static void write_secret(struct strbuf *json, const char *name, const struct llb_secret_opt *opt)
{
	gojson_member(json, name);
	gojson_open(json, '{');
	gojson_opt_text(json, "ID", opt->id);
	gojson_opt_i64(json, "uid", opt->uid);
	gojson_opt_i64(json, "gid", opt->gid);
	gojson_opt_i64(json, "mode", opt->mode);
	gojson_opt_bool(json, "optional", opt->optional);
	gojson_close(json, '}');
}

static void write_mount(struct strbuf *json, const struct llb_mount *mount)
{
	gojson_open(json, '{');
	gojson_opt_i64(json, "input", mount->input);
	gojson_opt_text(json, "dest", mount->dest);
	gojson_opt_i64(json, "output", mount->output);
	gojson_opt_bool(json, "readonly", mount->readonly);
	gojson_opt_i64(json, "mountType", mount->type);
	if (mount->has_tmpfs) {
		gojson_member(json, "TmpfsOpt");
		gojson_open(json, '{');
		gojson_opt_i64(json, "size", mount->tmpfs_size);
		gojson_close(json, '}');
	}
	if (mount->has_cache) {
		gojson_member(json, "cacheOpt");
		gojson_open(json, '{');
		if (is_default_cache(mount))
			gojson_opt_text(json, "ID", mount->cache_id);
		gojson_close(json, '}');
	}
	if (mount->has_secret)
		write_secret(json, "secretOpt", &mount->secret);
	if (mount->has_ssh)
		write_secret(json, "SSHOpt", &mount->ssh);
	gojson_opt_text(json, "resultID", mount->result_id);
	gojson_opt_i64(json, "contentCache", mount->content_cache);
	gojson_close(json, '}');
}

/* Only a root that can be written to. */
static bool has_plain_root(const struct llb_exec *exec)
{
	const struct llb_mount *mount = &exec->mounts[0];
	return exec->n_mounts == 1 && strcmp(mount->dest, "/") == 0 && !mount->readonly &&
	       mount->type == LLB_MOUNT_BIND && !mount->has_cache && !mount->has_ssh &&
	       !mount->has_secret && !mount->result_id[0];
}

static void write_mounts(struct strbuf *json, const struct llb_exec *exec)
{
	if (exec->n_mounts == 0 || has_plain_root(exec))
		return;
	gojson_member(json, "mounts");
	gojson_open(json, '[');
	for (size_t i = 0; i < exec->n_mounts; i++)
		write_mount(json, &exec->mounts[i]);
	gojson_close(json, ']');
}

static void write_secret_envs(struct strbuf *json, const struct llb_exec *exec)
{
	if (exec->n_secret_envs == 0)
		return;
	gojson_member(json, "secretenv");
	gojson_open(json, '[');
	for (size_t i = 0; i < exec->n_secret_envs; i++) {
		gojson_open(json, '{');
		gojson_opt_text(json, "ID", exec->secret_envs[i].id);
		gojson_opt_text(json, "name", exec->secret_envs[i].name);
		gojson_opt_bool(json, "optional", exec->secret_envs[i].optional);
		gojson_close(json, '}');
	}
	gojson_close(json, ']');
}

static void write_devices(struct strbuf *json, const struct llb_exec *exec)
{
	if (exec->n_devices == 0)
		return;
	gojson_member(json, "cdiDevices");
	gojson_open(json, '[');
	for (size_t i = 0; i < exec->n_devices; i++) {
		gojson_open(json, '{');
		gojson_opt_text(json, "name", exec->devices[i].name);
		gojson_opt_bool(json, "optional", exec->devices[i].optional);
		gojson_close(json, '}');
	}
	gojson_close(json, ']');
}

/* ------------------------------------------------------------------ its inputs */

static bool counts(const struct llb_mount *mount)
{
	return mount->input >= 0 && mount->type != LLB_MOUNT_SECRET &&
	       mount->type != LLB_MOUNT_SSH && mount->type != LLB_MOUNT_TMPFS;
}

/* Whether the content of what @mount mounts, @path of an input, stands for that input. */
static int decide_content(bool *out, const struct llb_mount *mount, const char *path,
			  struct err *err)
{
	bool may = mount->output == -1 || mount->readonly || strcmp(path, "/") == 0;
	*out = may && mount->content_cache != LLB_CONTENT_OFF;
	if (mount->content_cache == LLB_CONTENT_ON && !may)
		return err_set(err, -EBADMSG,
			       "mount %.200s: its content cannot be part of the key, for it is "
			       "written to",
			       mount->dest);
	if (mount->content_cache == LLB_CONTENT_DEFAULT && strcmp(mount->dest, "/") == 0)
		*out = false;
	return 0;
}

/* @paths: of one input, in the order of the mounts, borrowed from the vertex's memory of them. */
static int set_input(struct vertex_keys *keys, size_t i, const char **paths, size_t n,
		     bool has_content, struct err *err)
{
	struct cache_input *input = &keys->inputs[i];
	int r = keys_set_selector(keys, i, paths, n, err);
	if (r < 0 || !has_content)
		return r;
	n = keys_dedupe_paths(paths, n);
	input->selectors = calloc(n, sizeof(*input->selectors));
	if (!input->selectors)
		return no_memory(err);
	input->content = CONTENT_PATHS;
	for (; input->n_selectors < n; input->n_selectors++)
		input->selectors[input->n_selectors] = (struct content_selector){
			.path = paths[input->n_selectors],
			.follow = true,
		};
	return 0;
}

/* The mounts that count, those of one input together, in their order. */
struct taken {
	size_t input, mount;
};

static int compare_taken(const void *a, const void *b)
{
	const struct taken *x = a, *y = b;
	if (x->input != y->input)
		return x->input < y->input ? -1 : 1;
	return x->mount < y->mount ? -1 : x->mount > y->mount;
}

/* One input; @taken are its @n mounts. */
static int add_input(struct vertex_keys *keys, const struct llb_exec *exec,
		     const struct taken *taken, size_t n, struct err *err)
{
	scoped(free) const char **paths = calloc(n, sizeof(*paths));
	if (!paths)
		return no_memory(err);
	bool has_content = false;
	for (size_t i = 0; i < n; i++) {
		const struct llb_mount *mount = &exec->mounts[taken[i].mount];
		paths[i] = mount->path;
		int r = decide_content(&has_content, mount, mount->path, err);
		if (r < 0)
			return r;
	}
	return set_input(keys, taken->input, paths, n, has_content, err);
}

static int add_inputs(struct vertex_keys *keys, const struct llb_exec *exec, struct err *err)
{
	scoped(free) struct taken *taken = calloc(exec->n_mounts + 1, sizeof(*taken));
	if (!taken)
		return no_memory(err);
	size_t n_taken = 0;
	for (size_t i = 0; i < exec->n_mounts; i++)
		if (counts(&exec->mounts[i]))
			taken[n_taken++] = (struct taken){(size_t)exec->mounts[i].input, i};
	qsort(taken, n_taken, sizeof(*taken), compare_taken);
	int r = 0;
	for (size_t i = 0, n; i < n_taken && r == 0; i += n) {
		for (n = 1; i + n < n_taken && taken[i + n].input == taken[i].input;)
			n++;
		r = add_input(keys, exec, &taken[i], n, err);
	}
	return r;
}

int keys_exec(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	      struct err *err)
{
	const struct llb_exec *exec = &v->op.exec;
	scoped(strbuf_free) struct strbuf json = {0};
	gojson_open(&json, '{');
	gojson_member_text(&json, "Type", "buildkit.exec.v0");
	gojson_member(&json, "Exec");
	gojson_open(&json, '{');
	write_meta(&json, exec);
	write_mounts(&json, exec);
	gojson_opt_i64(&json, "network", exec->network);
	gojson_opt_i64(&json, "security", exec->security);
	write_secret_envs(&json, exec);
	write_devices(&json, exec);
	gojson_close(&json, '}');
	keys_platform(&json, v, solver);
	gojson_close(&json, '}');
	int r = keys_add_map(keys, &json, false, err);
	if (r == 0)
		r = keys_add_inputs(keys, v->op.n_inputs, err);
	return r < 0 ? r : add_inputs(keys, exec, err);
}
