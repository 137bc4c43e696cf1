/* SPDX-License-Identifier: Apache-2.0 */

/*
 * --output: where the result of a build goes, with buildctl's grammar.
 *
 * Each is whole or not there: a file and a new folder get their names at the end. Only in a folder
 * that was there before can some files be left behind by a failure, and then the error says so. A
 * mount is made by this program, called again: a server has to be forked before there are threads.
 */

#include "tools/tools.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const char *const type_names[] = {
	[OUTPUT_LOCAL] = "local",   [OUTPUT_TAR] = "tar",     [OUTPUT_OCI] = "oci",
	[OUTPUT_DOCKER] = "docker", [OUTPUT_MOUNT] = "mount", [OUTPUT_IMAGE] = "image",
};

/* ------------------------------------------------------------------ CSV */

struct output_fields {
	char *type, *dest, *bare;
	struct texts others; /* owned copies */
	size_t n;
};

static int output_field(void *arg, const char *field, struct err *err)
{
	struct output_fields *f = arg;
	const char *type = csv_value(field, "type"), *dest = csv_value(field, "dest");
	char **to = type ? &f->type : dest ? &f->dest : &f->bare;

	f->n++;
	if (csv_value(field, "output"))
		return err_set(err, -EINVAL, "--output: there is no key \"output\": it is dest");
	if (!type && !dest && strchr(field, '=')) {
		const char **other = vec_push(&f->others);

		return other && (*other = strdup(field)) ? 0 : -ENOMEM;
	}
	if (*to)
		return err_set(err, -EINVAL, "--output: \"%s\" is one too many", field);
	*to = strdup(type ? type : dest ? dest : field);
	return *to ? 0 : -ENOMEM;
}

/* Of an image in a registry. */
static int output_push(struct output *out, const struct output_fields *f, struct err *err)
{
	bool push = false;

	for (size_t i = 0; i < f->others.n; i++) {
		const char *name = csv_value(f->others.items[i], "name");
		const char *is_push = csv_value(f->others.items[i], "push");

		if (is_push)
			push = strcmp(is_push, "true") == 0;
		else if (!name || out->name)
			return err_set(err, -EINVAL,
				       "--output type=image: \"%s\": want name=NAME and push=true, "
				       "each once",
				       f->others.items[i]);
		else if (!(out->name = strdup(name)))
			return -ENOMEM;
	}
	if (f->dest || !out->name || !*out->name)
		return err_set(err, -EINVAL, "--output type=image needs name=NAME, and no dest");
	if (!push)
		return err_set(err, -EINVAL,
			       "--output type=image needs push=true: images are kept in registries "
			       "only");
	return 0;
}

/* The keys beside type and dest, which only images have. */
static int output_others(struct output *out, const struct output_fields *f, struct err *err)
{
	bool is_docker = out->type == OUTPUT_DOCKER;
	int r = 0;

	if (out->type == OUTPUT_IMAGE)
		return output_push(out, f, err);
	if (is_docker || out->type == OUTPUT_OCI)
		r = output_image_new(&out->image, is_docker);
	for (size_t i = 0; r == 0 && i < f->others.n; i++) {
		const char *field = f->others.items[i];

		r = out->image ? output_image_field(out->image, field, err)
			       : err_set(err, -EINVAL,
					 "--output type=%s: there is no key \"%.*s\", only dest",
					 type_names[out->type], (int)strcspn(field, "="), field);
	}
	return r == 0 && out->image ? output_image_settle(out->image, err) : r;
}

static int output_type(struct output *out, const struct output_fields *f, struct err *err)
{
	size_t i = 0;

	if (!f->type)
		return err_set(err, -EINVAL,
			       "--output: type=local|tar|oci|docker|mount|image is missing");
	while (i < countof(type_names) && strcmp(f->type, type_names[i]) != 0)
		i++;
	if (i == countof(type_names))
		return err_set(err, -EINVAL,
			       "--output: type must be local, tar, oci, docker, mount or image, "
			       "not \"%s\"",
			       f->type);
	out->type = (enum output_type)i;
	return 0;
}

/* stdout takes one file. */
static bool takes_stdout(const struct output *out)
{
	return out->type == OUTPUT_TAR || (out->image && !out->image->is_folder);
}

static int output_settle(struct output *out, struct output_fields *f, struct err *err)
{
	bool is_stdout;
	int r = 0;

	if (f->bare && f->n > 1)
		return err_set(err, -EINVAL, "--output: \"%s\" is no KEY=VALUE", f->bare);
	if (f->bare) {
		out->type = strcmp(f->bare, "-") == 0 ? OUTPUT_TAR : OUTPUT_LOCAL;
		f->dest = take(f->bare);
	} else {
		r = output_type(out, f, err);
	}
	if (r == 0)
		r = output_others(out, f, err);
	if (r < 0 || out->type == OUTPUT_IMAGE)
		return r;
	is_stdout = !f->dest || strcmp(f->dest, "-") == 0;
	if (is_stdout && !takes_stdout(out))
		return err_set(err, -EINVAL, "--output type=%s%s needs dest=DIR",
			       type_names[out->type], out->image ? ",tar=false" : "");
	if (f->dest && !*f->dest)
		return err_set(err, -EINVAL, "--output: dest is empty");
	out->dest = is_stdout ? NULL : take(f->dest);
	return 0;
}

int output_parse(struct output *out, const char *text, struct err *err)
{
	struct output_fields f = {0};
	int r = csv_each("--output", text, output_field, &f, err);

	*out = (struct output){0};
	if (r == 0)
		r = output_settle(out, &f, err);
	free(f.type);
	free(f.dest);
	free(f.bare);
	for (size_t i = 0; i < f.others.n; i++)
		free((char *)f.others.items[i]);
	vec_free(&f.others);
	return r;
}

void output_deinit(struct output *out)
{
	output_image_free(out->image);
	free(out->dest);
	free(out->name);
	*out = (struct output){0};
}

/* ------------------------------------------------------------------ what cannot work */

/* dest=a/b/file: the folder must be there. */
static int check_parent(const char *dest, struct err *err)
{
	const char *slash = strrchr(dest, '/');
	scoped(free) char *parent = slash ? strndup(dest, (size_t)(slash - dest) + 1) : strdup(".");

	if (!parent)
		return -ENOMEM;
	return access(parent, W_OK | X_OK) < 0 ? err_errno(err, "--output dest=%s", dest) : 0;
}

static int output_check_name(const struct output *out, struct err *err)
{
	struct image_name name = {0};
	int r = image_name_parse(&name, out->name, err);

	if (r == 0 && name.digest)
		r = err_set(err, -EINVAL,
			    "--output: name=%s is a digest, which the image has already",
			    out->name);
	image_name_deinit(&name);
	return r;
}

int output_check(const struct output *out, struct err *err)
{
	struct stat st;
	bool is_there = out->dest && stat(out->dest, &st) == 0;

	if (out->type == OUTPUT_IMAGE)
		return output_check_name(out, err);
	if (!out->dest)
		return isatty(STDOUT_FILENO)
			       ? err_set(err, -EINVAL,
					 "a tar is not for a terminal: pipe it, or use > FILE")
			       : 0;
	if (takes_stdout(out) && is_there && S_ISDIR(st.st_mode))
		return err_set(err, -EINVAL, "--output type=%s: dest=%s is a folder%s",
			       type_names[out->type], out->dest,
			       out->image ? "; with tar=false a layout is written into it" : "");
	if (takes_stdout(out))
		return is_there ? 0 : check_parent(out->dest, err);
	if (is_there && !S_ISDIR(st.st_mode))
		return err_set(err, -ENOTDIR, "--output type=%s: dest=%s is no folder",
			       type_names[out->type], out->dest);
	if (out->type == OUTPUT_MOUNT && !is_there)
		return err_set(err, -ENOENT, "--output type=mount: dest=%s: %s", out->dest,
			       strerror(errno));
	return 0;
}

/* ------------------------------------------------------------------ local and tar */

static int tar_write(void *arg, const void *bytes, size_t n)
{
	return write_full(*(int *)arg, bytes, n);
}

static int write_tar(const struct output *out, struct tree *tree, struct err *err)
{
	struct whole_file file;
	int fd = STDOUT_FILENO, r;

	if (!out->dest)
		return tar_write_tree(tree, TREE_ROOT, "", tar_write, &fd, err);
	r = whole_file_open(&file, out->dest, 0666, err);
	if (r < 0)
		return r;
	r = tar_write_tree(tree, TREE_ROOT, "", tar_write, &file.fd, err);
	return whole_file_close(&file, r, err);
}

static int write_tree(const struct output *out, struct app *app, struct ref *ref,
		      struct build_progress *progress, struct err *err)
{
	struct view v = {0};
	int r = ref_tree(&v.tree, ref, app->store, &v.layers, &v.n_layers, err);

	if (r < 0)
		return r;
	build_progress_watch(progress, v.layers, v.n_layers);
	r = out->type == OUTPUT_TAR ? write_tar(out, v.tree, err)
				    : copy_out(v.tree, out->dest, err);
	build_progress_watch(progress, NULL, 0);
	view_close(&v);
	return r;
}

/* ------------------------------------------------------------------ mounts */

#define ARGS_MAX 32

struct mount_args {
	char *argv[ARGS_MAX];
	size_t n;
	bool failed;
};

static void arg_add(struct mount_args *a, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
static void arg_add(struct mount_args *a, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	if (a->n + 1 >= ARGS_MAX || vasprintf(&a->argv[a->n], fmt, args) < 0)
		a->failed = true;
	else
		a->n++;
	va_end(args);
}

/* llbfs [what this command was told of the network and the store] mount ref://ID DIR */
static void mount_args(struct mount_args *a, const struct output *out, const struct options *o,
		       const struct digest *id)
{
	char hex[DIGEST_HEX_MAX];
	const struct {
		bool is_set;
		const char *name;
	} flags[] = {
		{o->plain_http, "--plain-http"},
		{o->insecure, "--insecure"},
		{o->trust_index, "--trust-index"},
		{o->offline, "--offline"},
	};

	arg_add(a, "llbfs");
	arg_add(a, "--progress=quiet");
	arg_add(a, "--root=%s", o->root);
	for (size_t i = 0; i < countof(flags); i++)
		if (flags[i].is_set)
			arg_add(a, "%s", flags[i].name);
	if (o->ca)
		arg_add(a, "--ca=%s", o->ca);
	if (o->max_rate)
		arg_add(a, "--max-rate=%llu", (unsigned long long)o->max_rate);
	if (o->deadline_ms)
		arg_add(a, "--deadline=%llums", (unsigned long long)o->deadline_ms);
	if (o->max_used_space)
		arg_add(a, "--max-used-space=%llu", (unsigned long long)o->max_used_space);
	arg_add(a, "mount");
	arg_add(a, "--");
	arg_add(a, "ref://%s", digest_hex(id, hex));
	arg_add(a, "%s", out->dest);
}

/* Starts it with its stderr in a pipe, whose end is *fd. */
static int mount_spawn(struct mount_args *a, pid_t *pid, int *fd)
{
	posix_spawn_file_actions_t actions;
	int fds[2], r;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	r = -posix_spawn_file_actions_init(&actions);
	if (r == 0) {
		r = -posix_spawn_file_actions_adddup2(&actions, fds[1], STDERR_FILENO);
		if (r == 0)
			r = -posix_spawn(pid, "/proc/self/exe", &actions, NULL, a->argv, environ);
		posix_spawn_file_actions_destroy(&actions);
	}
	close_fd(fds[1]);
	if (r < 0)
		close_fd(fds[0]);
	else
		*fd = fds[0];
	return r;
}

/* What another llbfs said and how it ended, as an error of our own. */
static int mount_failed(int status, const struct strbuf *said, struct err *err)
{
	static const int codes[] = {
		[EXIT_USAGE] = EINVAL,		[EXIT_NOT_FOUND] = ENOENT,
		[EXIT_NOT_AUTHORISED] = EACCES, [EXIT_NETWORK] = ENETDOWN,
		[EXIT_BAD_CONTENT] = EBADMSG,	[EXIT_HOST] = ENODEV,
	};
	int exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_OTHER;
	int code = (size_t)exit_code < countof(codes) && codes[exit_code] ? codes[exit_code] : EIO;
	const char *text = said->data ? said->data : "";
	size_t len = strlen(text);
	const char *line;

	while (len > 0 && text[len - 1] == '\n')
		len--;
	for (line = text + len; line > text && line[-1] != '\n';)
		line--;
	if (str_starts(line, "llbfs: "))
		line += strlen("llbfs: ");
	return line < text + len ? err_set(err, -code, "%.*s", (int)(text + len - line), line)
				 : err_set(err, -code, "the mount ended before it answered");
}

static int mount_wait(pid_t pid, int fd, struct err *err)
{
	scoped(strbuf_free) struct strbuf said = {0};
	char bytes[512];
	int status = 0;
	ssize_t n;

	/* ends when the mount answers: its server then leaves our stderr */
	while ((n = read(fd, bytes, sizeof(bytes))) != 0) {
		if (n < 0 && errno != EINTR)
			break;
		if (n > 0)
			strbuf_add(&said, bytes, (size_t)n);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : mount_failed(status, &said, err);
}

static int write_mount(const struct output *out, const struct options *o, const struct digest *id,
		       struct err *err)
{
	struct mount_args a = {0};
	pid_t pid;
	int fd = -1, r;

	mount_args(&a, out, o, id);
	r = a.failed ? -ENOMEM : mount_spawn(&a, &pid, &fd);
	if (r < 0) {
		err_set(err, r, "%s: %s", "/proc/self/exe", strerror(-r));
	} else {
		temporary_child(pid);
		r = mount_wait(pid, fd, err);
		temporary_child(0);
		close_fd(fd);
	}
	for (size_t i = 0; i < a.n; i++)
		free(a.argv[i]);
	return r;
}

/* ------------------------------------------------------------------ the door */

int output_write(const struct output *out, struct app *app, const struct options *o,
		 struct ref *ref, const struct digest *id, struct build_progress *progress,
		 struct err *err)
{
	scoped(free) char *name =
		out->type == OUTPUT_LOCAL    ? strdup("exporting to client directory")
		: out->type == OUTPUT_TAR    ? strdup("exporting to client tarball")
		: out->type == OUTPUT_OCI    ? strdup("exporting to oci image format")
		: out->type == OUTPUT_DOCKER ? strdup("exporting to docker image format")
		: out->type == OUTPUT_IMAGE  ? str_printf("pushing %s", out->name)
					     : str_printf("mounting at %s", out->dest);
	int r;

	if (!name)
		return -ENOMEM;
	build_progress_output(progress, name);
	if (out->type == OUTPUT_MOUNT)
		r = write_mount(out, o, id, err);
	else if (out->type == OUTPUT_IMAGE)
		r = retag_push(app, ref, out->name, err);
	else if (out->image)
		r = output_image_write(out->image, out->dest, app, ref, err);
	else
		r = write_tree(out, app, ref, progress, err);
	build_progress_output_end(progress, r, err);
	return r < 0 ? err_wrap(err, r, "--output type=%s", type_names[out->type]) : 0;
}
