/* SPDX-License-Identifier: Apache-2.0 */

/*
 * dirtree: a folder of this host as a tree, live.
 *
 * No descriptor is held between calls: ten thousand of these trees may be open at once. So an id
 * must lead back to a file by name: dirtable.c remembers for each the folder and the name under
 * which it was last seen, and what it was. A call rebuilds the path from the chain of folders,
 * opens it beneath the root, and checks that it still finds the same thing; if not, the answer is
 * -ESTALE, upon which the path is to be looked up again. It never serves one file's bytes under
 * another's number.
 *
 * Beneath the root means: openat2 with RESOLVE_BENEATH and no symbolic links (names come from the
 * table and hold no "/" or ".."), or, where a sandbox forbids openat2, one openat with O_NOFOLLOW
 * for each name, which gives the same answer in more calls. Mounts are crossed, as the host shows
 * them.
 *
 * As a layer (@is_layer) the marks that overlayfs and fuse-overlayfs leave in an upper folder are
 * read as such: a 0:0 character device, or an entry ".wh.NAME", hides NAME; the xattr
 * trusted.overlay.opaque or user.overlay.opaque of "y", or an entry ".wh..wh..opq", makes a folder
 * opaque. A folder NAME beside ".wh.NAME" is opaque as well: the mark speaks of what lies lower.
 *
 * Files are opened through an O_PATH descriptor and /proc/self/fd: only what has been seen to be a
 * regular file is ever opened for reading, as opening a device or a FIFO has effects.
 */

#include "merge/merge.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "merge/merge-internal.h"

#define STATX_WANT (STATX_BASIC_STATS | STATX_BTIME)
#define PATH_PIECE 2048 /* of a path in one call; longer ones are opened in steps */
#define XATTR_MAX 65536 /* the kernel's bound on one value and on the list of names */
#define WHITEOUT_PREFIX ".wh."
#define WHITEOUT_OPAQUE ".wh..wh..opq"

/* The names of a folder, sorted. */
struct dir_names {
	struct strbuf text;
	vec(char *) sorted;
};

struct dirtree {
	struct tree tree;
	char *path;
	bool is_layer;

	struct dir_table table;
	pthread_mutex_t lock;
	/* A listing that was stopped half way, so that its cookies stay good. Guarded by lock. */
	uint64_t kept_dir;
	struct dir_names kept;
};

static struct dirtree *dirtree(struct tree *t)
{
	return containerof(t, struct dirtree, tree);
}

static void dir_names_deinit(struct dir_names *names)
{
	strbuf_free(&names->text);
	vec_free(&names->sorted);
}

static uint8_t node_type(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return NODE_FILE;
	case S_IFDIR:
		return NODE_DIR;
	case S_IFLNK:
		return NODE_SYMLINK;
	case S_IFCHR:
		return NODE_CHAR;
	case S_IFBLK:
		return NODE_BLOCK;
	case S_IFIFO:
		return NODE_FIFO;
	case S_IFSOCK:
		return NODE_SOCKET;
	default:
		return NODE_NONE;
	}
}

/* ------------------------------------------------------------------ opening beneath the root */

/* Opens each name of @piece, which it cuts up, in turn. Takes @dir. */
static int open_names(int dir, char *piece)
{
	char *next;

	for (char *name = strtok_r(piece, "/", &next); name; name = strtok_r(NULL, "/", &next)) {
		int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		int saved = errno;

		close_fd(dir);
		if (fd < 0)
			return -saved;
		dir = fd;
	}
	return dir;
}

/* Takes @dir; returns the descriptor of @piece in it. */
static int open_piece(int dir, char *piece)
{
	struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	int fd = (int)syscall(SYS_openat2, dir, piece, &how, sizeof(how));
	int saved = errno;

	/* EPERM is what seccomp profiles answer that do not know the call; O_PATH needs no rights. */
	if (fd < 0 && (saved == ENOSYS || saved == EPERM))
		return open_names(dir, piece);
	close_fd(dir);
	return fd >= 0 ? fd : -saved;
}

static int dir_open_root(struct dirtree *d, struct err *err)
{
	int fd = open(d->path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	return fd >= 0 ? fd : err_errno(err, "%s", d->path);
}

/* Opens @path (changed while at it) below the root with O_PATH. */
static int dir_open_path(struct dirtree *d, char *path, struct err *err)
{
	int fd = dir_open_root(d, err);

	while (fd >= 0 && *path) {
		size_t len = strlen(path), cut = len;

		if (len > PATH_PIECE) {
			for (cut = PATH_PIECE; path[cut] != '/';)
				cut--; /* names are shorter than a piece, so there is one */
			path[cut] = '\0';
		}
		fd = open_piece(fd, path);
		path += cut + (cut < len);
	}
	return fd;
}

static int statx_of(int dir, const char *name, struct statx *st)
{
	int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (*name ? 0 : AT_EMPTY_PATH);

	return statx(dir, name, flags, STATX_WANT, st) < 0 ? -errno : 0;
}

/* Opens @id with O_PATH, sure that it is what it was when the id was given out. */
static int dir_open(struct dirtree *d, uint64_t id, struct statx *st, int *out, struct err *err)
{
	scoped(strbuf_free) struct strbuf path = {0};
	struct dir_node was;
	char nothing[1] = "";

	int r = dirtable_path(&d->table, id, &path, &was);
	if (r < 0)
		return r;
	scoped(close_fd) int fd = dir_open_path(d, path.data ? path.data : nothing, err);
	r = fd < 0 ? fd : statx_of(fd, "", st);
	/* A folder on the way became something else, or was moved meanwhile. */
	if (r == -ELOOP || r == -ENOTDIR || r == -EXDEV || r == -EAGAIN)
		return err_set(err, -ESTALE, "%s: changed on the host", d->path);
	if (r < 0)
		return r;
	if (id != TREE_ROOT && !dirtable_is_inode(&was, st))
		return err_set(err, -ESTALE, "%s: a file was replaced on the host", d->path);
	*out = fd;
	fd = -1;
	return 0;
}

/* "/proc/self/fd/N": a path for calls that take no O_PATH descriptor. It leads to the very thing
 * that was opened, a symbolic link too, and is not followed further. */
static char *fd_path(char buf[32], int fd)
{
	snprintf(buf, 32, "/proc/self/fd/%d", fd);
	return buf;
}

static int dir_open_file(struct dirtree *d, uint64_t id, int *out, struct err *err)
{
	scoped(close_fd) int fd = -1;
	struct statx st;
	char path[32];

	int r = dir_open(d, id, &st, &fd, err);
	if (r < 0)
		return r;
	if (!S_ISREG(st.stx_mode))
		return S_ISDIR(st.stx_mode) ? -EISDIR : -EINVAL;
	*out = open(fd_path(path, fd), O_RDONLY | O_CLOEXEC | O_NOCTTY);
	return *out >= 0 ? 0 : err_errno(err, "%s", d->path);
}

/* ------------------------------------------------------------------ marks of overlayfs */

static bool has_opaque_xattr(int fd)
{
	static const char *const names[] = {"trusted.overlay.opaque", "user.overlay.opaque"};
	char path[32], value;

	fd_path(path, fd);
	for (size_t i = 0; i < countof(names); i++) {
		if (getxattr(path, names[i], &value, 1) == 1 && value == 'y')
			return true;
	}
	return false;
}

static bool has_entry(int dir, const char *name)
{
	struct statx st;

	return statx_of(dir, name, &st) == 0;
}

static bool has_whiteout(int dir, const char *name)
{
	char mark[sizeof(WHITEOUT_PREFIX) + NAME_MAX];

	if (snprintf(mark, sizeof(mark), WHITEOUT_PREFIX "%s", name) > NAME_MAX)
		return false;
	return has_entry(dir, mark);
}

static bool is_opaque_dir(int dir, const char *name)
{
	scoped(close_fd) int fd = openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd >= 0 && (has_opaque_xattr(fd) || has_entry(fd, WHITEOUT_OPAQUE));
}

/* ------------------------------------------------------------------ attributes */

static void attr_from(struct attr *out, uint64_t id, const struct statx *st)
{
	*out = (struct attr){
		.id = id,
		.type = node_type(st->stx_mode),
		.is_live = true,
		.mode = st->stx_mode & 07777,
		.uid = st->stx_uid,
		.gid = st->stx_gid,
		.nlink = st->stx_nlink,
		.size = st->stx_size,
		.n_bytes_allocated = st->stx_blocks * 512,
		.mtime_s = st->stx_mtime.tv_sec,
		.mtime_ns = st->stx_mtime.tv_nsec,
		.dev_major = st->stx_rdev_major,
		.dev_minor = st->stx_rdev_minor,
	};
}

/* Turns what is found as @name in @dir into what it means in a layer. */
static void attr_apply_marks(struct attr *attr, int dir, const char *name)
{
	if (attr->type == NODE_CHAR && attr->dev_major == 0 && attr->dev_minor == 0)
		attr->type = NODE_WHITEOUT;
	if (attr->type == NODE_DIR)
		attr->is_opaque = has_whiteout(dir, name) || is_opaque_dir(dir, name);
}

/* The entry @name of the open folder @dir. */
static int dir_entry(struct dirtree *d, uint64_t parent, int dir, const char *name,
		     struct attr *out)
{
	bool is_hidden = false;
	struct statx st;
	uint64_t id;

	if (d->is_layer && str_starts(name, WHITEOUT_PREFIX))
		return -ENOENT;
	int r = statx_of(dir, name, &st);
	if (r == -ENOENT && d->is_layer) {
		char mark[sizeof(WHITEOUT_PREFIX) + NAME_MAX];

		if (snprintf(mark, sizeof(mark), WHITEOUT_PREFIX "%s", name) > NAME_MAX)
			return -ENOENT;
		is_hidden = true;
		r = statx_of(dir, mark, &st);
		if (r == 0)
			r = dirtable_intern(&d->table, parent, mark, &st, &id);
	} else if (r == 0) {
		r = dirtable_intern(&d->table, parent, name, &st, &id);
	}
	if (r < 0)
		return r;
	attr_from(out, id, &st);
	if (is_hidden)
		out->type = NODE_WHITEOUT;
	else if (d->is_layer)
		attr_apply_marks(out, dir, name);
	return 0;
}

/* ------------------------------------------------------------------ a tree's calls */

static int dir_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
		       struct err *err)
{
	struct dirtree *d = dirtree(t);
	scoped(close_fd) int fd = -1;
	struct statx st;

	int r = dir_open(d, id, &st, &fd, err);
	if (r < 0)
		return r;
	attr_from(out, id, &st);
	if (d->is_layer && out->type == NODE_CHAR && st.stx_rdev_major == 0 &&
	    st.stx_rdev_minor == 0)
		out->type = NODE_WHITEOUT;
	if (d->is_layer && out->type == NODE_DIR)
		out->is_opaque = has_opaque_xattr(fd) || has_entry(fd, WHITEOUT_OPAQUE);
	return 0;
}

/* Opens the folder @id with O_PATH. */
static int dir_open_folder(struct dirtree *d, uint64_t id, int *fd, struct err *err)
{
	struct statx st;

	int r = dir_open(d, id, &st, fd, err);
	return r == 0 && !S_ISDIR(st.stx_mode) ? -ENOTDIR : r;
}

static int dir_lookup(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		      struct tree_wait *wait, struct err *err)
{
	struct dirtree *d = dirtree(t);
	scoped(close_fd) int fd = -1;
	char text[NAME_MAX + 1];

	memcpy(text, name, len);
	text[len] = '\0';
	int r = dir_open_folder(d, dir, &fd, err);
	return r < 0 ? r : dir_entry(d, dir, fd, text, out);
}

static int dir_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
		      struct err *err)
{
	return dirtable_parent(&dirtree(t)->table, dir, out, name);
}

static int dir_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	scoped(close_fd) int fd = -1;
	char target[PATH_MAX];
	struct statx st;

	int r = dir_open(dirtree(t), id, &st, &fd, err);
	if (r < 0)
		return r;
	if (!S_ISLNK(st.stx_mode))
		return -EINVAL;
	ssize_t n = readlinkat(fd, "", target, sizeof(target));
	if (n < 0)
		return -errno;
	strbuf_add(out, target, (size_t)n);
	return out->failed ? -ENOMEM : 0;
}

static int give_xattrs(const char *path, const char *names, size_t len, void *value,
		       tree_xattr_fn fn, void *arg)
{
	for (const char *name = names; name < names + len; name += strlen(name) + 1) {
		ssize_t n = getxattr(path, name, value, XATTR_MAX);
		if (n < 0 && (errno == ENODATA || errno == ENOTSUP || errno == EPERM))
			continue; /* gone meanwhile, or not for us to see */
		int r = n < 0 ? -errno : fn(arg, name, value, (size_t)n);
		if (r != 0)
			return r;
	}
	return 0;
}

static int dir_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	scoped(close_fd) int fd = -1;
	struct statx st;
	char path[32];

	int r = dir_open(dirtree(t), id, &st, &fd, err);
	if (r < 0)
		return r;
	fd_path(path, fd);
	ssize_t n = listxattr(path, NULL, 0);
	if (n == 0 || (n < 0 && errno == ENOTSUP))
		return 0;
	if (n < 0)
		return err_errno(err, "xattrs of a file in %s", dirtree(t)->path);

	/* One byte more than any list, which thus ends with a NUL. */
	scoped(free) char *names = calloc(1, XATTR_MAX + 1);
	scoped(free) void *value = malloc(XATTR_MAX);
	if (!names || !value)
		return -ENOMEM;
	n = listxattr(path, names, XATTR_MAX);
	if (n < 0)
		return err_errno(err, "xattrs of a file in %s", dirtree(t)->path);
	return give_xattrs(path, names, (size_t)n, value, fn, arg);
}

static int64_t dir_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			blob_done done, void *arg, struct err *err)
{
	scoped(close_fd) int fd = -1;
	size_t got = 0;

	int r = dir_open_file(dirtree(t), id, &fd, err);
	if (r < 0)
		return r;
	while (got < len) {
		ssize_t n = pread(fd, (char *)dst + got, len - got, (off_t)(off + got));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, "read of a file in %s", dirtree(t)->path);
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return (int64_t)got;
}

static int dir_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	scoped(close_fd) int fd = -1;

	int r = dir_open_file(dirtree(t), id, &fd, NULL);
	if (r < 0)
		return r;
	off_t at = lseek(fd, (off_t)off, SEEK_DATA);
	if (at < 0)
		return errno == ENXIO ? -ENODATA : -errno;
	off_t hole = lseek(fd, at, SEEK_HOLE);
	if (hole < 0)
		return errno == ENXIO ? -ENODATA : -errno;
	*data = (uint64_t)at;
	*end = (uint64_t)hole;
	return 0;
}

static int dir_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	return dir_open_file(dirtree(t), id, fd, err);
}

static int dir_host_stat(struct tree *t, uint64_t id, struct stat *out)
{
	int opened = -1;
	struct statx st;

	int r = dir_open(dirtree(t), id, &st, &opened, NULL);
	scoped(close_fd) int fd = opened;
	if (r < 0)
		return r;
	return fstat(fd, out) < 0 ? -errno : 0;
}

/* ------------------------------------------------------------------ listing */

/* The name as the tree shows it; NULL for what it does not show. */
static const char *shown_name(const struct dirtree *d, const char *name)
{
	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return NULL;
	if (!d->is_layer || !str_starts(name, WHITEOUT_PREFIX))
		return name;
	/* ".wh..wh.*" are marks and notes of union file systems, none of them a name. */
	name += strlen(WHITEOUT_PREFIX);
	return *name == '.' || *name == '\0' ? NULL : name;
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorts the names that lie one after another in the text; equal ones (NAME and .wh.NAME) once. */
static int names_sort(struct dir_names *names)
{
	if (names->text.len == 0)
		return 0;
	char *end = names->text.data + names->text.len;
	for (char *name = names->text.data; name < end; name += strlen(name) + 1) {
		char **p = vec_push(&names->sorted);
		if (!p)
			return -ENOMEM;
		*p = name;
	}
	char **sorted = names->sorted.items;
	size_t kept = 1;
	qsort(sorted, names->sorted.n, sizeof(*sorted), compare_texts);
	for (size_t i = 1; i < names->sorted.n; i++) {
		if (strcmp(sorted[i], sorted[kept - 1]) != 0)
			sorted[kept++] = sorted[i];
	}
	names->sorted.n = kept;
	return 0;
}

/* All names of the folder that the O_PATH descriptor @fd is. */
static int names_read(const struct dirtree *d, int fd, struct dir_names *names, struct err *err)
{
	scoped(close_fd) int readable = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = readable >= 0 ? fdopendir(readable) : NULL;

	if (!dir)
		return err_errno(err, "list a folder in %s", d->path);
	readable = -1;
	errno = 0;
	for (struct dirent *e; (e = readdir(dir));) {
		const char *name = shown_name(d, e->d_name);
		if (name)
			strbuf_add(&names->text, name, strlen(name) + 1);
	}
	int r = errno ? err_errno(err, "list a folder in %s", d->path) : 0;
	closedir(dir);
	if (r == 0 && names->text.failed)
		r = -ENOMEM;
	return r < 0 ? r : names_sort(names);
}

/* Takes out the names that an earlier, stopped listing of @dir has left; false when there are none. */
static bool kept_take(struct dirtree *d, uint64_t dir, struct dir_names *names)
{
	pthread_mutex_lock(&d->lock);
	bool has = d->kept_dir == dir;
	if (has) {
		*names = d->kept;
		d->kept = (struct dir_names){0};
		d->kept_dir = 0;
	}
	pthread_mutex_unlock(&d->lock);
	return has;
}

static void kept_put(struct dirtree *d, uint64_t dir, struct dir_names *names)
{
	pthread_mutex_lock(&d->lock);
	struct dir_names old = d->kept;
	d->kept = *names;
	d->kept_dir = dir;
	pthread_mutex_unlock(&d->lock);
	*names = (struct dir_names){0};
	dir_names_deinit(&old);
}

static int names_give(struct dirtree *d, uint64_t dir, int fd, const struct dir_names *names,
		      uint64_t from, tree_list_fn fn, void *arg)
{
	for (uint64_t i = from; i < names->sorted.n; i++) {
		const char *name = names->sorted.items[i];
		struct attr attr;

		int r = dir_entry(d, dir, fd, name, &attr);
		if (r == -ENOENT)
			continue; /* removed since the names were read */
		if (r == 0)
			r = fn(arg, name, strlen(name), &attr, i + 1);
		if (r != 0)
			return r;
	}
	return 0;
}

/* Cookies are places among the sorted names. They must not move while a listing goes on although
 * the folder may change, so the names of the last listing that was stopped are kept. */
static int dir_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		    struct tree_wait *wait, struct err *err)
{
	struct dirtree *d = dirtree(t);
	struct dir_names names = {0};
	scoped(close_fd) int fd = -1;

	int r = dir_open_folder(d, dir, &fd, err);
	if (r < 0)
		return r;
	if (from == 0 || !kept_take(d, dir, &names))
		r = names_read(d, fd, &names, err);
	if (r == 0)
		r = names_give(d, dir, fd, &names, from, fn, arg);
	if (r > 0)
		kept_put(d, dir, &names);
	dir_names_deinit(&names);
	return r;
}

/* ------------------------------------------------------------------ making one */

static void dir_free(struct tree *t)
{
	struct dirtree *d = dirtree(t);

	dirtable_deinit(&d->table);
	dir_names_deinit(&d->kept);
	pthread_mutex_destroy(&d->lock);
	free(d->path);
	free(d);
}

static const struct tree_ops dir_ops = {
	.getattr = dir_getattr,
	.lookup = dir_lookup,
	.list = dir_list,
	.parent = dir_parent,
	.readlink = dir_readlink,
	.xattrs = dir_xattrs,
	.read = dir_read,
	.seek_data = dir_seek_data,
	.open_flat = dir_open_flat,
	.host_stat = dir_host_stat,
	.free = dir_free,
};

int dirtree_new(struct tree **out, const char *path, bool is_layer, struct err *err)
{
	/* Absolute, for a server changes its working folder. */
	scoped(free) char *real = realpath(path, NULL);
	struct stat st;

	if (!real || stat(real, &st) < 0)
		return err_errno(err, "%s", path);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, -ENOTDIR, "%s: not a folder", path);
	struct dirtree *d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	tree_init(&d->tree, &dir_ops, 1, true);
	pthread_mutex_init(&d->lock, NULL);
	d->path = take(real);
	d->is_layer = is_layer;
	if (dirtable_init(&d->table) < 0) {
		dir_free(&d->tree);
		return -ENOMEM;
	}
	*out = &d->tree;
	return 0;
}
