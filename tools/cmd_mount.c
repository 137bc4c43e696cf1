/* SPDX-License-Identifier: Apache-2.0 */

/*
 * mount, and the helper that mount(8) calls: what was typed becomes a request to serve.
 *
 * In the background the server is a child, forked before there is any thread. It says one byte when
 * the mount answers; if it ends without, its exit code is the command's, and its error line has
 * already been printed.
 */

#include "tools/tools.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ------------------------------------------------------------------ -o */

/* Cuts the next option off @p: commas separate unless after a backslash or between double quotes,
 * both of which are taken away. Returns what follows, NULL at the end. */
static const char *mount_option_next(const char *p, struct strbuf *out)
{
	bool is_quoted = false;

	for (; *p && (is_quoted || *p != ','); p++) {
		if (*p == '"') {
			is_quoted = !is_quoted;
			continue;
		}
		if (*p == '\\' && p[1])
			p++;
		strbuf_putc(out, *p);
	}
	return *p ? p + 1 : NULL;
}

static int mount_option_id(const char *value, uint32_t *out, bool *has, struct err *err)
{
	uint64_t id;

	if (!value || parse_u64(value, &id) < 0 || id >= UINT32_MAX)
		return err_set(err, -EINVAL, "-o uid= and gid= need a number");
	*out = (uint32_t)id;
	*has = true;
	return 0;
}

static int mount_option_data(const char *value, enum data_mode *out, struct err *err)
{
	static const char *const names[] = {
		[DATA_AUTO] = "auto",
		[DATA_NOOPEN] = "noopen",
		[DATA_PASSTHROUGH] = "passthrough",
		[DATA_OPEN] = "open",
	};

	for (size_t i = 0; value && i < countof(names); i++) {
		if (strcmp(value, names[i]) == 0) {
			*out = (enum data_mode)i;
			return 0;
		}
	}
	return err_set(err, -EINVAL, "-o data= must be one of auto, noopen, passthrough, open");
}

/* Options that mean nothing here, but that mount(8) and fstab give. */
static bool mount_option_is_noise(const char *key)
{
	static const char *const noise[] = {
		"defaults", "exec",	  "auto",     "noauto",	    "user",    "nouser",
		"users",    "nofail",	  "_netdev",  "async",	    "atime",   "noatime",
		"diratime", "nodiratime", "relatime", "norelatime", "comment", "subtype",
	};

	if (str_starts(key, "x-") || str_starts(key, "X-"))
		return true;
	for (size_t i = 0; i < countof(noise); i++)
		if (strcmp(key, noise[i]) == 0)
			return true;
	return false;
}

struct mount_request {
	struct serve_request serve;
	bool is_helper;
	char *mountpoint, *ref_text;
	bool made_mountpoint;
};

static int mount_option_apply(struct mount_request *m, struct options *o, const char *key,
			      const char *value, struct err *err)
{
	struct mount_options *fs = &m->serve.options;
	const struct {
		const char *name;
		bool *field, value;
	} flags[] = {
		{"allow_other", &fs->allow_other, true},
		{"suid", &fs->suid, true},
		{"nosuid", &fs->suid, false},
		{"dev", &fs->dev, true},
		{"nodev", &fs->dev, false},
		{"ro", &o->is_writable, false},
	};
	int r;

	for (size_t i = 0; i < countof(flags); i++) {
		if (strcmp(key, flags[i].name) == 0) {
			*flags[i].field = flags[i].value;
			return 0;
		}
	}
	if (strcmp(key, "uid") == 0)
		return mount_option_id(value, &fs->uid, &fs->has_uid, err);
	if (strcmp(key, "gid") == 0)
		return mount_option_id(value, &fs->gid, &fs->has_gid, err);
	if (strcmp(key, "data") == 0)
		return mount_option_data(value, &fs->data, err);
	if (strcmp(key, "fsname") == 0) {
		fs->fsname = value;
		return 0;
	}
	/* mount(8) says rw when nobody said anything: there, it means something with an upper only */
	if (mount_option_is_noise(key) || (m->is_helper && strcmp(key, "rw") == 0))
		return 0;
	r = options_set(o, key, value, err);
	return r == -ENOENT ? err_set(err, -EINVAL, "-o %s: there is no such option", key) : r;
}

static int mount_options_parse(struct mount_request *m, struct options *o, struct err *err)
{
	for (size_t i = 0; i < o->mount_options.n; i++) {
		const char *p = o->mount_options.items[i];

		while (p) {
			scoped(strbuf_free) struct strbuf text = {0};
			const char *kept;
			char *equals;
			int r;

			p = mount_option_next(p, &text);
			if (text.failed)
				return -ENOMEM;
			if (!text.len)
				continue;
			kept = options_keep(o, text.data);
			if (!kept)
				return -ENOMEM;
			equals = strchr(kept, '=');
			if (equals)
				*equals++ = '\0';
			r = mount_option_apply(m, o, kept, equals, err);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

/* ------------------------------------------------------------------ where */

/* A folder's name for a REF: its last component, with nothing odd in it. */
static char *mount_name(const char *ref)
{
	const char *slash = strrchr(ref, '/');
	char *name = str_printf("%.80s", slash && slash[1] ? slash + 1 : ref);

	for (char *p = name; p && *p; p++)
		if ((*p == '.' && p == name) || *p < '!' || *p > '~' ||
		    strchr("/\\\"'$`*?<>|&;()", *p))
			*p = '_';
	return name;
}

/* Makes a new folder for a mount that has none. */
static int mount_place_new(struct mount_request *m, const char *ref, struct err *err)
{
	scoped(free) char *runtime = runtime_dir(err), *parent = NULL, *name = mount_name(ref);
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	int r;

	if (!runtime || !name)
		return runtime ? -ENOMEM : -EACCES;
	parent = xdg && str_starts(runtime, xdg) ? str_printf("%s", runtime)
						 : str_printf("%s/mnt", runtime);
	r = parent ? make_dirs(parent, 0755) : -ENOMEM;
	for (unsigned i = 1; r == 0; i++) {
		m->mountpoint = i == 1 ? str_printf("%s/%s", parent, name)
				       : str_printf("%s/%s.%u", parent, name, i);
		if (!m->mountpoint)
			return -ENOMEM;
		if (mkdir(m->mountpoint, 0755) == 0) {
			m->made_mountpoint = true;
			return 0;
		}
		r = errno == EEXIST ? 0 : -errno;
		if (r == 0)
			free(take(m->mountpoint));
	}
	return err_wrap(err, r, "making a folder in %s", parent ? parent : runtime);
}

static int mount_place(struct mount_request *m, const char *path, struct err *err)
{
	struct stat st;

	m->mountpoint = realpath(path, NULL);
	if (!m->mountpoint)
		return err_set(err, -errno, "MOUNTPOINT %s: %s", path, strerror(errno));
	if (stat(m->mountpoint, &st) < 0)
		return errno == ENOTCONN ? err_set(err, -ENOTCONN,
						   "%s has a mount whose server is dead; llbfs "
						   "umount %s clears it",
						   path, path)
					 : err_errno(err, "MOUNTPOINT %s", path);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, -ENOTDIR, "MOUNTPOINT %s is no folder", path);
	return 0;
}

/* Takes MOUNTPOINT out of the words: the last plain one, unless it is the only input. */
static const char *mount_take_mountpoint(struct words *w)
{
	size_t n_plain = 0, last = 0;
	const char *path;

	for (size_t i = 0; i < w->n; i++) {
		if (w->items[i].is_merge)
			continue;
		n_plain++;
		last = i;
	}
	if (n_plain == 0 || w->n == 1)
		return NULL;
	path = w->items[last].text;
	memmove(&w->items[last], &w->items[last + 1], (w->n - last - 1) * sizeof(*w->items));
	w->n--;
	return path;
}

/* What /proc/mounts and status show: the inputs, as far as they are short enough to be read. */
static char *mount_ref_text(const struct words *w)
{
	const size_t enough = 300;
	struct strbuf s = {0};

	for (size_t i = 0; i < w->n; i++) {
		if (i > 0 && s.len + strlen(w->items[i].text) > enough) {
			strbuf_printf(&s, " + %zu more", w->n - i);
			break;
		}
		strbuf_printf(&s, "%s%s", i ? " + " : "", w->items[i].text);
	}
	return strbuf_finish(&s);
}

/* ------------------------------------------------------------------ serving */

/* In this process, until the mount ends. */
static int mount_serve(struct mount_request *m, const struct options *o, struct err *err)
{
	int r = serve(o, &m->serve, err);

	if (m->made_mountpoint)
		rmdir(m->mountpoint);
	return r;
}

/* In a child: returns in both processes, in the child when the mount has ended. */
static int mount_background(struct mount_request *m, const struct options *o, struct err *err)
{
	int fds[2], status;
	ssize_t n;
	char byte;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return err_errno(err, "pipe");
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return err_errno(err, "fork");
	if (pid == 0) {
		close_fd(fds[0]);
		m->serve.ready_fd = fds[1];
		return mount_serve(m, o, err);
	}
	close_fd(fds[1]);
	do
		n = read(fds[0], &byte, 1);
	while (n < 0 && errno == EINTR);
	close_fd(fds[0]);
	if (n == 1) {
		if (m->serve.prints_path)
			puts(m->mountpoint);
		return EXIT_YES;
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
		return WEXITSTATUS(status); /* it has said why */
	return err_set(err, -ECHILD, "the server of %s ended before the mount answered",
		       m->mountpoint);
}

static int mount_run(struct mount_request *m, struct options *o, struct err *err)
{
	const char *mountpoint;
	int r = mount_options_parse(m, o, err);

	if (r < 0)
		return r;
	if (o->log_level >= 0)
		log_max = (enum log_level)o->log_level;
	if (o->upper && m->is_helper)
		o->is_writable = true;
	if (o->upper && !o->is_writable)
		return err_set(err, -EINVAL, "--upper needs --rw");
	mountpoint = mount_take_mountpoint(&o->words);
	if (!o->words.n)
		return err_set(err, -EINVAL, "a REF is missing; see llbfs mount --help");
	m->ref_text = mount_ref_text(&o->words);
	if (!m->ref_text)
		return -ENOMEM;
	r = mountpoint ? mount_place(m, mountpoint, err) : mount_place_new(m, m->ref_text, err);
	if (r < 0)
		return r;
	m->serve.inputs = o->words.items;
	m->serve.n_inputs = o->words.n;
	m->serve.mountpoint = m->mountpoint;
	m->serve.ref_text = m->ref_text;
	m->serve.prints_path = !mountpoint;
	m->serve.ready_fd = -1;
	return o->is_foreground ? mount_serve(m, o, err) : mount_background(m, o, err);
}

static int mount_command(struct options *o, bool is_helper, struct err *err)
{
	struct mount_request m = {.is_helper = is_helper};
	int r = mount_run(&m, o, err);

	free(m.mountpoint);
	free(m.ref_text);
	return r;
}

int cmd_mount(struct options *o, struct err *err)
{
	return mount_command(o, false, err);
}

/* ------------------------------------------------------------------ mount(8)'s helper */

/* SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTS] [-t TYPE]; SOURCE none: the inputs are merge=. */
static int helper_parse(struct options *o, int argc, char **argv, bool *is_fake, struct err *err)
{
	const char **text;
	struct word *word;
	int c;

	opterr = 0;
	optind = 1;
	while ((c = getopt(argc, argv, "sfnvN:o:t:")) != -1) {
		if (c == '?' || c == 'N')
			return err_set(err, -EINVAL, "the mount helper does not take -%c",
				       c == '?' ? optopt : c);
		if (c == 'f')
			*is_fake = true;
		if (c != 'o')
			continue;
		text = vec_push(&o->mount_options);
		if (!text)
			return -ENOMEM;
		*text = optarg;
	}
	if (argc - optind != 2)
		return err_set(err, -EINVAL, "usage: mount.fuse.llbfs REF DIR [-o OPTS]");
	for (; optind < argc; optind++) {
		if (optind == argc - 2 && strcmp(argv[optind], "none") == 0)
			continue;
		word = vec_push(&o->words);
		if (!word)
			return -ENOMEM;
		*word = (struct word){argv[optind], false};
	}
	return 0;
}

/* mount(8) knows codes of its own: 1 usage, 2 system, 32 the mount failed. */
static int helper_exit_code(int code)
{
	switch (code) {
	case EXIT_YES:
		return 0;
	case EXIT_USAGE:
		return 1;
	case EXIT_HOST:
		return 2;
	default:
		return 32;
	}
}

int mount_helper(int argc, char **argv)
{
	struct err err = {0};
	struct options o;
	bool is_fake = false;
	int r = options_init(&o, &err);

	if (r == 0)
		r = helper_parse(&o, argc, argv, &is_fake, &err);
	if (r == 0 && !o.root)
		r = err_set(&err, -EINVAL, "no place for the store: give -o root=DIR");
	if (r == 0 && !is_fake)
		r = mount_command(&o, true, &err);
	options_deinit(&o);
	return helper_exit_code(exit_with(r, &err));
}
