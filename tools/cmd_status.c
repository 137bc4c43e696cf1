/* SPDX-License-Identifier: Apache-2.0 */

/*
 * status, mounts, umount: the kernel says what is mounted, and the server of each mount, asked over
 * its control socket, says the rest. A server that is dead or stuck holds nobody up.
 */

#include "tools/tools.h"

#include <jansson.h>
#include <libgen.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SERVER_END_MS 10000

/* Asks the server of a mount @line. -ENOENT, -ECONNREFUSED: nobody is there. */
static int mount_ask(const struct mount_entry *mount, const char *line, struct strbuf *out,
		     struct err *err)
{
	char *dirs[4];
	size_t n = runtime_dirs(dirs);
	int r = -ENOENT;

	for (size_t i = 0; i < n; i++) {
		scoped(free) char *dir = dirs[i];
		scoped(free) char *path = dir ? str_printf("%s/%u.sock", dir, mount->minor) : NULL;

		if (path && (r == -ENOENT || r == -ECONNREFUSED))
			r = control_ask(path, line, out, err);
	}
	return r;
}

/* @path with the links on the way to it resolved, but not looked at itself. NULL: no such place. */
static char *mountpoint_path(const char *path)
{
	scoped(free) char *copy = strdup(path), *again = strdup(path);
	scoped(free) char *parent = copy && again ? realpath(dirname(copy), NULL) : NULL;
	const char *name = parent ? basename(again) : NULL;

	if (!parent)
		return NULL;
	if (strcmp(name, "/") == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return realpath(path, NULL);
	return str_printf("%s/%s", strcmp(parent, "/") == 0 ? "" : parent, name);
}

/* Our entry for @path, the topmost when there are several; NULL = there is none. Never touches
 * the mount itself, whose server may be dead. */
static struct mount_entry *mount_find(struct mount_entry *entries, size_t n, const char *path)
{
	/* Only what is not itself a mount may be followed, when it is a link. */
	for (int follow = 0; follow < 2; follow++) {
		scoped(free) char *real = follow ? realpath(path, NULL) : mountpoint_path(path);
		for (size_t i = n; i > 0; i--)
			if (strcmp(entries[i - 1].mountpoint, real ? real : path) == 0)
				return &entries[i - 1];
	}
	return NULL;
}

static int no_mount(struct err *err, const char *path)
{
	return err_set(err, -ENOENT, "%s is no mount of llbfs; llbfs mounts lists them", path);
}

/* ------------------------------------------------------------------ mounts */

static int mounts_row(struct strbuf *out, const struct mount_entry *mount, const struct options *o)
{
	scoped(strbuf_free) struct strbuf answer = {0};
	bool answers = mount_ask(mount, "ping", &answer, NULL) == 0;
	long pid = answers && answer.data ? strtol(answer.data, NULL, 10) : 0;

	if (o->format == FORMAT_JSON) {
		strbuf_putc(out, '{');
		json_pair(out, "mountpoint", mount->mountpoint);
		json_pair(out, "ref", mount->source);
		json_i64(out, "pid", pid);
		json_bool(out, "answers", answers);
		strbuf_puts(out, "}\n");
		return 0;
	}
	row_name(out, mount->mountpoint);
	strbuf_puts(out, "  ");
	row_name(out, mount->source);
	if (answers)
		strbuf_printf(out, "  pid %ld\n", pid);
	else
		strbuf_puts(out, "  dead\n");
	return 0;
}

int cmd_mounts(struct options *o, struct err *err)
{
	scoped(strbuf_free) struct strbuf out = {0};
	struct mount_entry *entries;
	size_t n;
	int r;

	if (o->words.n)
		return err_set(err, -EINVAL, "mounts takes no words; see llbfs status --help");
	r = mounts_list(&entries, &n, err);
	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && i < n; i++)
		r = mounts_row(&out, &entries[i], o);
	mounts_free(entries, n);
	return r < 0 ? r : out_flush(NULL, &out, err);
}

/* ------------------------------------------------------------------ status */

static long long status_number(const json_t *status, const char *key)
{
	return (long long)json_integer_value(json_object_get(status, key));
}

static const char *status_text(const json_t *status, const char *key)
{
	const char *text = json_string_value(json_object_get(status, key));

	return text ? text : "";
}

static void status_table_layers(struct strbuf *out, const json_t *layers)
{
	char size[16], fetched[16], read[16];
	size_t i;
	json_t *layer;

	json_array_foreach(layers, i, layer)
	{
		const char *digest = status_text(layer, "digest"),
			   *reason = status_text(layer, "reason");

		strbuf_printf(out, "  %.19s  %s, %s fetched, %s read  %s%s%s%s\n",
			      *digest ? digest : status_text(layer, "dir"),
			      format_size(size, (uint64_t)status_number(layer, "size")),
			      format_size(fetched, (uint64_t)status_number(layer, "fetched")),
			      format_size(read, (uint64_t)status_number(layer, "read")),
			      status_text(layer, "format"),
			      json_is_true(json_object_get(layer, "lazy")) ? " lazy" : "",
			      *reason ? ": " : "", reason);
	}
}

static void status_table(struct strbuf *out, const json_t *status)
{
	char fetched[16], total[16], read[16], served[16];
	size_t i;
	json_t *error;

	row_name(out, status_text(status, "mountpoint"));
	strbuf_puts(out, "  ");
	row_name(out, status_text(status, "ref"));
	strbuf_printf(out, "\n  pid %lld, data %s (%s)\n", status_number(status, "pid"),
		      status_text(status, "data"), status_text(status, "data_reason"));
	strbuf_printf(out, "  layers: %s, of which %s fetched in %lld requests, %s read here\n",
		      format_size(total, (uint64_t)status_number(status, "bytes_total")),
		      format_size(fetched, (uint64_t)status_number(status, "bytes_fetched")),
		      status_number(status, "requests"),
		      format_size(read, (uint64_t)status_number(status, "bytes_read")));
	strbuf_printf(out, "  given to the kernel: %s in %lld reads\n",
		      format_size(served, (uint64_t)status_number(status, "bytes_served")),
		      status_number(status, "reads"));
	status_table_layers(out, json_object_get(status, "layers"));
	json_array_foreach(json_object_get(status, "errors"), i, error) strbuf_printf(
		out, "  error %s: %s\n", status_text(error, "what"), status_text(error, "text"));
}

static int status_one(struct strbuf *out, const struct mount_entry *mount, const struct options *o,
		      struct err *err)
{
	scoped(strbuf_free) struct strbuf answer = {0};
	json_error_t wrong;
	json_t *status;
	int r = mount_ask(mount, "status", &answer, err);

	if (r == -ENOENT || r == -ECONNREFUSED)
		return err_set(err, -ESRCH,
			       "the server of %s does not answer; llbfs umount %s clears the mount",
			       mount->mountpoint, mount->mountpoint);
	if (r < 0)
		return err_wrap(err, r, "%s", mount->mountpoint);
	if (o->format != FORMAT_TABLE) {
		strbuf_add(out, answer.data, answer.len);
		return 0;
	}
	status = json_loadb(answer.data, answer.len, 0, &wrong);
	if (!status)
		return err_set(err, -EPROTO, "%s: the server's answer: %s", mount->mountpoint,
			       wrong.text);
	status_table(out, status);
	json_decref(status);
	return 0;
}

/* Every live mount; a dead one is told on stderr and does not hide the others. */
static void status_all(struct strbuf *out, const struct mount_entry *entries, size_t n,
		       const struct options *o)
{
	for (size_t i = 0; i < n; i++) {
		struct err err = {0};
		int r = status_one(out, &entries[i], o, &err);

		if (r < 0)
			log_warn("%s", err_text(&err, r));
	}
}

int cmd_status(struct options *o, struct err *err)
{
	scoped(strbuf_free) struct strbuf out = {0};
	const struct mount_entry *mount;
	struct mount_entry *entries;
	size_t n;
	int r;

	if (o->words.n > 1)
		return err_set(err, -EINVAL, "status takes one MOUNTPOINT, or none for all");
	r = mounts_list(&entries, &n, err);
	if (r < 0)
		return r;
	if (o->words.n) {
		mount = mount_find(entries, n, o->words.items[0].text);
		r = mount ? status_one(&out, mount, o, err) : no_mount(err, o->words.items[0].text);
	} else {
		status_all(&out, entries, n, o);
	}
	mounts_free(entries, n);
	return r < 0 ? r : out_flush(NULL, &out, err);
}

/* ------------------------------------------------------------------ umount */

/* A folder that mount made for itself goes with the mount; the server does it too, unless killed. */
static void umount_remove_folder(const char *path)
{
	char *dirs[4];
	size_t n = runtime_dirs(dirs);

	for (size_t i = 0; i < n; i++) {
		if (dirs[i] && str_starts(path, dirs[i]) && path[strlen(dirs[i])] == '/')
			rmdir(path);
		free(dirs[i]);
	}
}

/* A descriptor that becomes readable when the mount's server ends; -1 when none answers. */
static int umount_watch(const struct mount_entry *mount)
{
	scoped(strbuf_free) struct strbuf answer = {0};
	json_t *status = NULL;

	if (mount_ask(mount, "status", &answer, NULL) == 0)
		status = json_loadb(answer.data, answer.len, 0, NULL);
	long long pid = status ? status_number(status, "pid") : 0;
	json_decref(status);
	return pid > 0 ? (int)syscall(SYS_pidfd_open, (pid_t)pid, 0) : -1;
}

/* What the server still keeps (what was read, its lease) is kept when this command returns. */
static void umount_wait(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	if (pidfd >= 0 && poll(&p, 1, SERVER_END_MS) == 0)
		log_warn("unmounted, but the server has not ended yet");
}

int cmd_umount(struct options *o, struct err *err)
{
	scoped(free) char *path = NULL;
	scoped(close_fd) int pidfd = -1;
	const struct mount_entry *mount;
	struct mount_entry *entries;
	size_t n;
	int r;

	if (o->words.n != 1)
		return err_set(err, -EINVAL, "umount takes one MOUNTPOINT");
	r = mounts_list(&entries, &n, err);
	if (r < 0)
		return r;
	mount = mount_find(entries, n, o->words.items[0].text);
	path = mount ? strdup(mount->mountpoint) : NULL;
	if (mount && !o->is_lazy)
		pidfd = umount_watch(mount);
	mounts_free(entries, n);
	if (!path)
		return mount ? -ENOMEM : no_mount(err, o->words.items[0].text);
	r = mount_clear(path, o->is_lazy, err);
	if (r == 0) {
		umount_wait(pidfd);
		umount_remove_folder(path);
	}
	return r;
}
