/* SPDX-License-Identifier: Apache-2.0 */

/*
 * mounts: the mounts of this host, as the kernel tells them.
 *
 * A server that died or hangs makes every stat of its mountpoint fail or hang, so nothing here
 * ever looks at a mountpoint: mounts are found in /proc/self/mountinfo, and paths that a person
 * typed are resolved only up to their last name.
 *
 * A line of mountinfo: id, parent id, major:minor, root, mountpoint, options, any number of
 * optional fields, "-", type, source, options of the file system; spaces, tabs, newlines and
 * backslashes in a field are written as \ooo.
 */

#include "fs/fs-internal.h"

#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOUNTINFO_MAX (256u << 20) /* 100,000 mounts with long paths */

/* ------------------------------------------------------------------ mountinfo */

/* A copy of a field without its escapes. NULL: no memory. */
static char *unescape(const char *field, size_t len)
{
	char *out = malloc(len + 1);
	size_t n = 0;

	if (!out)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		const char *f = field + i;
		if (f[0] == '\\' && len - i >= 4 && f[1] >= '0' && f[1] <= '3' && f[2] >= '0' &&
		    f[2] <= '7' && f[3] >= '0' && f[3] <= '7') {
			out[n++] = (char)((f[1] - '0') << 6 | (f[2] - '0') << 3 | (f[3] - '0'));
			i += 3;
		} else {
			out[n++] = *f;
		}
	}
	out[n] = '\0';
	return out;
}

/* Takes the next field off *line. */
static bool next_field(const char **line, const char *end, const char **field, size_t *len)
{
	while (*line < end && **line == ' ')
		(*line)++;
	*field = *line;
	while (*line < end && **line != ' ')
		(*line)++;
	*len = (size_t)(*line - *field);
	return *len > 0;
}

static bool field_is(const char *field, size_t len, const char *text)
{
	return len == strlen(text) && memcmp(field, text, len) == 0;
}

/* 1: one of ours, 0: not, < 0: no memory. */
static int parse_line(const char *line, const char *end, struct mount_entry *out)
{
	const char *f, *mountpoint = NULL;
	size_t len, mountpoint_len = 0;
	unsigned major = 0, minor = 0;

	for (int i = 0; i < 6; i++) {
		if (!next_field(&line, end, &f, &len))
			return 0;
		if (i == 2) {
			char text[32];
			snprintf(text, sizeof(text), "%.*s", (int)MIN(len, sizeof(text) - 1), f);
			if (sscanf(text, "%u:%u", &major, &minor) != 2)
				return 0;
		} else if (i == 4) {
			mountpoint = f;
			mountpoint_len = len;
		}
	}
	do {
		if (!next_field(&line, end, &f, &len))
			return 0;
	} while (!field_is(f, len, "-"));
	if (!next_field(&line, end, &f, &len) || !field_is(f, len, "fuse.llbfs"))
		return 0;
	if (!next_field(&line, end, &f, &len))
		return 0;
	out->major = major;
	out->minor = minor;
	out->mountpoint = unescape(mountpoint, mountpoint_len);
	out->source = unescape(f, len);
	if (out->mountpoint && out->source)
		return 1;
	free(out->mountpoint);
	free(out->source);
	return -ENOMEM;
}

int mounts_parse(const char *text, size_t len, struct mount_entry **out, size_t *n)
{
	vec(struct mount_entry) found = {0};
	const char *end = text + len;

	while (text < end) {
		const char *eol = memchr(text, '\n', (size_t)(end - text));
		struct mount_entry entry;
		if (!eol)
			eol = end;
		int r = parse_line(text, eol, &entry);
		struct mount_entry *slot = r > 0 ? vec_push(&found) : NULL;
		if (slot) {
			*slot = entry;
		} else if (r != 0) {
			mounts_free(found.items, found.n);
			return -ENOMEM;
		}
		text = eol + 1;
	}
	*out = found.items;
	*n = found.n;
	return 0;
}

int mounts_list(struct mount_entry **out, size_t *n, struct err *err)
{
	scoped(strbuf_free) struct strbuf text = {0};
	int r = read_file(AT_FDCWD, "/proc/self/mountinfo", MOUNTINFO_MAX, &text);

	if (r < 0)
		return err_set(err, r, "cannot read /proc/self/mountinfo: %s", strerror(-r));
	r = mounts_parse(text.data ? text.data : "", text.len, out, n);
	if (r < 0)
		return err_set(err, r, "no memory for the list of mounts");
	return 0;
}

void mounts_free(struct mount_entry *entries, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		free(entries[i].mountpoint);
		free(entries[i].source);
	}
	free(entries);
}

/* ------------------------------------------------------------------ unmounting */

/* Runs fusermount3; what it says goes to @said (one line, cut). Returns its exit code. */
static int run_fusermount(const char *mountpoint, bool is_lazy, char *said, size_t size,
			  struct err *err)
{
	char *const argv[] = {(char *)"fusermount3",
			      (char *)"-u",
			      is_lazy ? (char *)"-z" : (char *)"--",
			      is_lazy ? (char *)"--" : (char *)mountpoint,
			      is_lazy ? (char *)mountpoint : NULL,
			      NULL};
	posix_spawn_file_actions_t actions;
	extern char **environ;
	int fds[2], status;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return err_errno(err, "pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, fds[1], STDERR_FILENO);
	int r = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close_fd(fds[1]);
	if (r) {
		close_fd(fds[0]);
		return err_set(err, r == ENOENT ? -EPERM : -r,
			       "cannot run fusermount3 (Debian's package fuse3): %s", strerror(r));
	}
	size_t n = 0;
	ssize_t got;
	while ((got = read(fds[0], said + n, size - 1 - n)) > 0 || (got < 0 && errno == EINTR))
		n += got > 0 ? (size_t)got : 0;
	said[n] = '\0';
	said[strcspn(said, "\n")] = '\0';
	close_fd(fds[0]);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return err_errno(err, "waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int mounts_unmount(const char *mountpoint, bool is_lazy, struct err *err)
{
	char said[300];

	if (umount2(mountpoint, UMOUNT_NOFOLLOW | (is_lazy ? MNT_DETACH : 0)) == 0)
		return 0;
	if (errno == EBUSY)
		return err_set(err, -EBUSY, "%s is in use", mountpoint);
	if (errno != EPERM)
		return err_errno(err, "umount %s", mountpoint);
	int r = run_fusermount(mountpoint, is_lazy, said, sizeof(said), err);
	if (r <= 0)
		return r;
	return err_set(err, strstr(said, "busy") ? -EBUSY : -EPERM, "%s",
		       said[0] ? said : "fusermount3 failed");
}

/* An absolute path of a mountpoint, resolved but for its last name. Caller frees; NULL = no memory
 * or no such folder. */
static char *resolve_parent(const char *path)
{
	scoped(free) char *cwd = path[0] == '/' ? strdup("") : getcwd(NULL, 0);
	if (!cwd)
		return NULL;
	scoped(free) char *joined = str_printf("%s/%s", cwd, path);
	scoped(free) char *clean = joined ? path_clean(joined, strlen(joined)) : NULL;
	if (!clean)
		return NULL;

	char *name = strrchr(clean, '/');
	*name++ = '\0';
	scoped(free) char *parent = realpath(clean[0] ? clean : "/", NULL);
	if (!parent)
		return NULL;
	return str_printf("%s/%s", strcmp(parent, "/") == 0 ? "" : parent, name);
}

/* The source of the mount of ours that is on top at @path; -EINVAL when there is none. Caller
 * frees. */
static int find_source(const char *path, char **source, struct err *err)
{
	struct mount_entry *entries;
	size_t n;

	int r = mounts_list(&entries, &n, err);
	if (r < 0)
		return r;
	r = -EINVAL;
	for (size_t i = n; i > 0 && r < 0; i--)
		if (strcmp(entries[i - 1].mountpoint, path) == 0) {
			*source = take(entries[i - 1].source);
			r = 0;
		}
	mounts_free(entries, n);
	return r < 0 ? err_set(err, r, "%s is not a mount of llbfs", path) : 0;
}

static int check_free(const char *path, struct err *err)
{
	scoped(free) char *source = NULL;

	int r = find_source(path, &source, err);
	if (r == 0)
		return err_set(err, -EBUSY,
			       "%s is a mount of %s already; `llbfs umount %s` ends it", path,
			       source, path);
	return r == -EINVAL ? 0 : r;
}

int mounts_resolve(const char *path, char **real, struct err *err)
{
	/* Twice: before the folder is touched, and by its real name when it was a symlink. */
	scoped(free) char *typed = resolve_parent(path);
	int r = typed ? check_free(typed, err) : 0;
	if (r < 0)
		return r;

	struct stat st;
	if (stat(path, &st) < 0)
		return err_errno(err, "cannot mount at %s", path);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, -ENOTDIR, "cannot mount at %s: not a folder", path);
	scoped(free) char *found = realpath(path, NULL);
	if (!found)
		return err_errno(err, "cannot mount at %s", path);
	r = check_free(found, err);
	if (r == 0)
		*real = take(found);
	return r;
}

int mount_clear(const char *mountpoint, bool is_lazy, struct err *err)
{
	scoped(free) char *path = resolve_parent(mountpoint);
	scoped(free) char *source = NULL;

	if (!path)
		return err_set(err, -EINVAL, "%s is not a mount of llbfs", mountpoint);
	int r = find_source(path, &source, err);
	return r < 0 ? r : mounts_unmount(path, is_lazy, err);
}
