/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What is half written, and how an interrupt ends it.
 *
 * A file or a folder that somebody asked for is made under another name and renamed when it is
 * whole. The one file and the one folder that are unfinished are known here, so that an interrupt
 * can take them away at once, whatever the rest of the program is waiting for: the handler writes a
 * byte into a pipe, and a thread that does nothing else reads it, holds the lock that every change
 * of a name needs, removes, and lets the signal do what it does to a program without a handler.
 * (Handlers, not blocked signals: programs that this one starts inherit the latter.)
 */

#include "tools/tools.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

struct place {
	int dir;
	const char *name; /* NULL = nothing is unfinished */
};

static struct {
	pthread_mutex_t lock;
	/* guarded by lock */
	struct place file, folder;
	pid_t child;
	/* set before the first signal can come */
	int pipe[2];
} t = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ------------------------------------------------------------------ folders go */

/* Goes into @name of *dir, or out again when @name is ".."; *dir is replaced. */
static int go(int *dir, const char *name)
{
	int fd = openat(*dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	close_fd(*dir);
	*dir = fd;
	return 0;
}

/* Removes what is no folder from @dir; gives the name of a folder in it: 1, or 0 when it is empty. */
static int empty_files(int dir, char name[NAME_MAX + 1])
{
	int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	DIR *list = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;

	if (!list) {
		close_fd(fd);
		return -errno;
	}
	while (r == 0 && (entry = readdir(list))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (unlinkat(dir, entry->d_name, 0) == 0)
			continue;
		r = errno == EISDIR ? 1 : -errno;
		strcpy(name, entry->d_name);
	}
	closedir(list);
	return r;
}

/* Removes the folder @top in @parent with all that is in it, which we made; without recursion, for
 * nobody knows how deep it is. */
static int remove_folder(int parent, const char *top)
{
	vec(char *) names = {0};
	char name[NAME_MAX + 1];
	int dir = fcntl(parent, F_DUPFD_CLOEXEC, 0), r = dir < 0 ? -errno : 1;

	strncpy(name, top, NAME_MAX);
	name[NAME_MAX] = '\0';
	while (r > 0) { /* into @name */
		char **slot = vec_push(&names);

		r = slot && (*slot = strdup(name)) ? 0 : -ENOMEM;
		if (r == 0 && geteuid() != 0 && fchmodat(dir, name, 0700, 0) < 0)
			r = -errno;
		if (r == 0)
			r = go(&dir, name);
		while (r == 0 && names.n > 0) {
			r = empty_files(dir, name);
			if (r != 0)
				break;
			r = names.n > 1 ? go(&dir, "..") : 0;
			if (r == 0 && unlinkat(names.n > 1 ? dir : parent, names.items[names.n - 1],
					       AT_REMOVEDIR) < 0)
				r = -errno;
			free(names.items[--names.n]);
		}
	}
	for (size_t i = 0; i < names.n; i++)
		free(names.items[i]);
	vec_free(&names);
	close_fd(dir);
	return r;
}

/* ------------------------------------------------------------------ interrupts */

static void drop_file(void)
{
	if (t.file.name)
		unlinkat(t.file.dir, t.file.name, 0);
	t.file.name = NULL;
}

static void drop_folder(void)
{
	int r = t.folder.name ? remove_folder(t.folder.dir, t.folder.name) : 0;

	if (r < 0)
		log_warn("%s stays, unfinished: %s", t.folder.name, strerror(-r));
	t.folder.name = NULL;
}

static void on_signal(int number)
{
	int saved = errno;
	uint8_t byte = (uint8_t)number;

	if (write(t.pipe[1], &byte, 1) < 0)
		_exit(128 + number);
	errno = saved;
}

static void *wait_for_signal(void *arg)
{
	uint8_t number;
	ssize_t n;

	do
		n = read(t.pipe[0], &number, 1);
	while (n < 0 && errno == EINTR);
	pthread_mutex_lock(&t.lock);
	if (t.child > 0)
		kill(t.child, SIGTERM);
	drop_file();
	drop_folder();
	signal(number, SIG_DFL);
	raise(number);
	_exit(128 + number); /* it cannot be reached, but by what blocks signals */
}

int temporary_catch_interrupts(struct err *err)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction old, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	pthread_t thread;
	int r;

	if (pipe2(t.pipe, O_CLOEXEC) < 0)
		return err_errno(err, "pipe");
	r = -pthread_create(&thread, NULL, wait_for_signal, NULL);
	if (r < 0)
		return err_set(err, r, "no thread for signals: %s", strerror(-r));
	pthread_detach(thread);
	for (size_t i = 0; i < countof(signals); i++) /* nohup's wish is kept */
		if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(signals[i], &action, NULL);
	return 0;
}

/* ------------------------------------------------------------------ what is unfinished */

static void place_set(struct place *place, int dir, const char *name)
{
	pthread_mutex_lock(&t.lock);
	*place = (struct place){dir, name};
	pthread_mutex_unlock(&t.lock);
}

void temporary_file(int dir, const char *name)
{
	place_set(&t.file, dir, name);
}

void temporary_folder(int dir, const char *name)
{
	place_set(&t.folder, dir, name);
}

static int place_done(struct place *place, const char *to, void (*drop)(void))
{
	int r = 0;

	pthread_mutex_lock(&t.lock);
	if (renameat(place->dir, place->name, place->dir, to) < 0) {
		r = -errno;
		drop();
	}
	place->name = NULL;
	pthread_mutex_unlock(&t.lock);
	return r;
}

int temporary_file_done(const char *to)
{
	return place_done(&t.file, to, drop_file);
}

int temporary_folder_done(const char *to)
{
	return place_done(&t.folder, to, drop_folder);
}

void temporary_file_drop(void)
{
	pthread_mutex_lock(&t.lock);
	drop_file();
	pthread_mutex_unlock(&t.lock);
}

void temporary_folder_drop(void)
{
	pthread_mutex_lock(&t.lock);
	drop_folder();
	pthread_mutex_unlock(&t.lock);
}

void temporary_child(pid_t pid)
{
	pthread_mutex_lock(&t.lock);
	t.child = pid;
	pthread_mutex_unlock(&t.lock);
}

/* ------------------------------------------------------------------ whole files */

/* Where @path leads: what is there, or what would be. */
static char *whole_file_path(const char *path)
{
	char *real = realpath(path, NULL);

	return real || errno != ENOENT ? real : strdup(path);
}

static int whole_file_make(struct whole_file *f, mode_t mode)
{
	const char *slash = strrchr(f->path, '/');
	scoped(free) char *parent =
		slash ? strndup(f->path, (size_t)(slash - f->path) + 1) : strdup(".");

	f->dir = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (f->dir < 0)
		return parent ? -errno : -ENOMEM;
	for (unsigned i = 0;; i++) {
		f->tmp = str_printf(".llbfs-%d-%u.tmp", (int)getpid(), i);
		if (!f->tmp)
			return -ENOMEM;
		f->fd = openat(f->dir, f->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
		if (f->fd >= 0)
			break;
		free(take(f->tmp));
		if (errno != EEXIST)
			return -errno;
	}
	temporary_file(f->dir, f->tmp);
	return 0;
}

int whole_file_open(struct whole_file *f, const char *path, mode_t mode, struct err *err)
{
	struct stat st;
	int r = 0;

	*f = (struct whole_file){.path = whole_file_path(path), .dir = -1, .fd = -1};
	if (!f->path)
		return err_errno(err, "%s", path);
	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
		f->fd = open(path, O_WRONLY | O_CLOEXEC);
		r = f->fd < 0 ? -errno : 0;
	} else {
		r = whole_file_make(f, mode);
	}
	if (r == 0)
		return 0;
	whole_file_close(f, r, NULL);
	return err_set(err, r, "%s: %s", path, strerror(-r));
}

int whole_file_close(struct whole_file *f, int r, struct err *err)
{
	const char *slash = f->path ? strrchr(f->path, '/') : NULL;
	int failed = 0;

	if (f->fd >= 0 && close(f->fd) < 0 && r == 0)
		failed = -errno;
	if (f->tmp && (r < 0 || failed < 0))
		temporary_file_drop();
	else if (f->tmp)
		failed = temporary_file_done(slash ? slash + 1 : f->path);
	if (failed < 0)
		r = err_set(err, failed, "%s: %s", f->path, strerror(-failed));
	close_fd(f->dir);
	free(f->path);
	free(f->tmp);
	*f = (struct whole_file){.dir = -1, .fd = -1};
	return r;
}
