/* SPDX-License-Identifier: Apache-2.0 */

/*
 * cp: files of a tree onto this host.
 *
 * The tree is not trusted, and neither is what lies below DEST: every step is taken from the
 * descriptor of a folder that was opened or made by its name alone, without following links
 * (O_NOFOLLOW), so that no name, link or "..", old or new, leads out of DEST. What is no folder is
 * made under a temporary name and renamed into place, so that whatever happens a name never stands
 * for half a file. A folder gets its owner, mode and times when everything in it is there.
 */

#include "tools/tools.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define READ_SIZE (4u << 20)
#define FOLDER_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

struct cp_folder {
	int fd;
	size_t path_len; /* of the walk's paths that lie in it */
	struct attr attr;
	bool keep_attr; /* the user's own folder: leave it as it is */
};

struct cp {
	struct tree *tree;
	struct strbuf path;	    /* of the innermost open folder, relative to the outermost */
	vec(struct cp_folder) open; /* from the outermost down to where the walk is */
	struct idmap links;	    /* inode with several names → index in first_names */
	vec(char *) first_names;    /* relative to the outermost folder */
	char *buf;
	unsigned n_temporary;
	bool is_root;
	struct err *err;
};

/* ------------------------------------------------------------------ attributes */

struct cp_xattrs {
	struct cp *cp;
	int fd; /* the file, or when @name is set the folder that has it */
	const char *name;
	const char *path; /* for messages */
};

static int cp_xattr(void *arg, const char *key, const void *value, size_t len)
{
	struct cp_xattrs *x = arg;
	char proc[300];
	int r;

	if (!x->cp->is_root && !str_starts(key, "user."))
		return 0; /* nobody but root may set them */
	if (x->name) {
		snprintf(proc, sizeof(proc), "/proc/self/fd/%d/%s", x->fd, x->name);
		r = lsetxattr(proc, key, value, len, 0);
	} else {
		r = fsetxattr(x->fd, key, value, len, 0);
	}
	if (r == 0)
		return 0;
	if (errno == EOPNOTSUPP) {
		log_warn("%s: xattr %s is left out, the file system has none such", x->path, key);
		return 0;
	}
	return err_errno(x->cp->err, "%s: xattr %s", x->path, key);
}

static void cp_times(const struct attr *attr, struct timespec out[2])
{
	out[0] = (struct timespec){0, UTIME_NOW};
	out[1] = (struct timespec){attr->mtime_s, attr->mtime_ns};
}

/* Owner, xattrs, mode, times of an open file or folder; in this order, for each of the first two
 * may clear what comes after. */
static int cp_attributes(struct cp *cp, int fd, const struct attr *attr, const char *path)
{
	struct cp_xattrs x = {cp, fd, NULL, path};
	struct timespec times[2];
	int r;

	if (cp->is_root && fchown(fd, attr->uid, attr->gid) < 0)
		return err_errno(cp->err, "%s: owner", path);
	r = tree_xattrs(cp->tree, attr->id, cp_xattr, &x, cp->err);
	if (r < 0)
		return r;
	cp_times(attr, times);
	if (fchmod(fd, attr->mode) < 0 || futimens(fd, times) < 0)
		return err_errno(cp->err, "%s", path);
	return 0;
}

/* The same for what cannot be opened: links, devices, pipes. Their mode came when they were made. */
static int cp_attributes_at(struct cp *cp, int dir, const char *name, const struct attr *attr,
			    const char *path)
{
	struct cp_xattrs x = {cp, dir, name, path};
	struct timespec times[2];
	int r;

	if (cp->is_root && fchownat(dir, name, attr->uid, attr->gid, AT_SYMLINK_NOFOLLOW) < 0)
		return err_errno(cp->err, "%s: owner", path);
	r = tree_xattrs(cp->tree, attr->id, cp_xattr, &x, cp->err);
	if (r < 0)
		return r;
	cp_times(attr, times);
	if (utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) < 0)
		return err_errno(cp->err, "%s", path);
	return 0;
}

/* ------------------------------------------------------------------ content */

static int cp_range(struct cp *cp, int fd, const struct attr *attr, uint64_t off, uint64_t end)
{
	while (off < end) {
		size_t want = MIN(end - off, (uint64_t)READ_SIZE);
		int64_t n = tree_read(cp->tree, attr->id, off, cp->buf, want, NULL, NULL, cp->err);
		int r;

		if (n < 0)
			return (int)n;
		if (n == 0)
			return err_set(cp->err, -EIO, "it ended early, at %llu",
				       (unsigned long long)off);
		r = pwrite_full(fd, cp->buf, (size_t)n, off);
		if (r < 0)
			return err_wrap(cp->err, r, "writing");
		off += (uint64_t)n;
	}
	return 0;
}

static int cp_content(struct cp *cp, int fd, const struct attr *attr)
{
	uint64_t off = 0, data, end;
	int r = 0;

	if (attr->n_bytes_allocated >= attr->size)
		return cp_range(cp, fd, attr, 0, attr->size);
	if (ftruncate(fd, (off_t)attr->size) < 0)
		return err_errno(cp->err, "writing");
	while (r == 0 && off < attr->size) {
		r = tree_seek_data(cp->tree, attr->id, off, &data, &end);
		if (r == -ENODATA) /* nothing but holes from here on */
			return 0;
		if (r == 0)
			r = cp_range(cp, fd, attr, data, MIN(end, attr->size));
		off = end;
	}
	return r;
}

/* ------------------------------------------------------------------ what is no folder */

/* Makes a regular file under the name @tmp. */
static int cp_regular(struct cp *cp, int dir, const char *tmp, const struct attr *attr,
		      const char *path)
{
	scoped(close_fd) int fd =
		openat(dir, tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return -errno;
	r = cp_content(cp, fd, attr);
	if (r < 0)
		return err_wrap(cp->err, r, "%s", path);
	return cp_attributes(cp, fd, attr, path);
}

static int cp_special(struct cp *cp, int dir, const char *tmp, const struct attr *attr,
		      const char *path)
{
	static const mode_t kinds[] = {
		[NODE_CHAR] = S_IFCHR,
		[NODE_BLOCK] = S_IFBLK,
		[NODE_FIFO] = S_IFIFO,
		[NODE_SOCKET] = S_IFSOCK,
	};
	scoped(strbuf_free) struct strbuf target = {0};
	int r;

	if (attr->type == NODE_SYMLINK) {
		r = tree_readlink(cp->tree, attr->id, &target, cp->err);
		if (r < 0)
			return err_wrap(cp->err, r, "%s", path);
		r = symlinkat(target.data ? target.data : "", dir, tmp);
	} else {
		r = mknodat(dir, tmp, kinds[attr->type] | attr->mode,
			    makedev(attr->dev_major, attr->dev_minor));
	}
	if (r < 0)
		return -errno;
	return cp_attributes_at(cp, dir, tmp, attr, path);
}

/* The folder below the outermost one that holds @path, component by component. */
static int cp_open_beneath(struct cp *cp, const char *path)
{
	int fd = fcntl(cp->open.items[0].fd, F_DUPFD_CLOEXEC, 0);
	const char *slash;

	while (fd >= 0 && (slash = strchr(path, '/'))) {
		scoped(free) char *name = strndup(path, (size_t)(slash - path));
		int next = name ? openat(fd, name, FOLDER_FLAGS) : -1;

		close_fd(fd);
		fd = next;
		path = slash + 1;
	}
	return fd;
}

/* Another name of an inode that was copied before as @first. */
static int cp_link(struct cp *cp, int dir, const char *tmp, const char *first)
{
	scoped(close_fd) int from = cp_open_beneath(cp, first);
	const char *slash = strrchr(first, '/');

	if (from < 0 || linkat(from, slash ? slash + 1 : first, dir, tmp, 0) < 0)
		return -errno;
	return 0;
}

/* Makes it under @tmp: -EEXIST when that name is taken, and then nothing is reported. */
static int cp_make(struct cp *cp, int dir, const char *tmp, const struct attr *attr,
		   const char *path)
{
	size_t first;

	if (attr->nlink > 1 && cp->open.n && idmap_get(&cp->links, attr->id, &first))
		return cp_link(cp, dir, tmp, cp->first_names.items[first]);
	if (attr->type == NODE_FILE)
		return cp_regular(cp, dir, tmp, attr, path);
	return cp_special(cp, dir, tmp, attr, path);
}

/* Remembers the first name of an inode that has several. */
static int cp_remember(struct cp *cp, const struct attr *attr, const char *path)
{
	char **slot;
	int r;

	if (attr->nlink <= 1 || !cp->open.n)
		return 0;
	r = idmap_add(&cp->links, attr->id, cp->first_names.n);
	if (r <= 0)
		return r;
	slot = vec_push(&cp->first_names);
	if (!slot || !(*slot = strdup(path)))
		return -ENOMEM;
	return 0;
}

/* Copies what is no folder as @name in @dir. @path: for messages and links. */
static int cp_file(struct cp *cp, int dir, const char *name, const struct attr *attr,
		   const char *path)
{
	char tmp[64];
	int r;

	do {
		snprintf(tmp, sizeof(tmp), ".llbfs-%d-%u", (int)getpid(), cp->n_temporary++);
		temporary_file(dir, tmp);
		r = cp_make(cp, dir, tmp, attr, path);
		if (r == -EEXIST)
			temporary_file(-1, NULL);
	} while (r == -EEXIST);
	if (r == 0)
		r = temporary_file_done(name);
	if (r < 0) {
		temporary_file_drop();
		return cp->err && cp->err->code == r
			       ? r
			       : err_set(cp->err, r, "%s: %s", path, strerror(-r));
	}
	return cp_remember(cp, attr, path);
}

/* ------------------------------------------------------------------ folders */

/* Enters @name in @dir, made if missing; @path_len as in struct cp_folder. */
static int cp_enter(struct cp *cp, int dir, const char *name, const struct attr *attr,
		    size_t path_len, const char *path)
{
	struct cp_folder *folder;
	int fd;

	if (mkdirat(dir, name, 0700) < 0 && errno != EEXIST)
		return err_errno(cp->err, "%s", path);
	fd = openat(dir, name, FOLDER_FLAGS);
	if (fd < 0)
		return errno == ENOTDIR || errno == ELOOP
			       ? err_set(cp->err, -EEXIST,
					 "%s: something that is no folder is in the way", path)
			       : err_errno(cp->err, "%s", path);
	folder = vec_push(&cp->open);
	if (!folder) {
		close_fd(fd);
		return -ENOMEM;
	}
	*folder = (struct cp_folder){.fd = fd, .path_len = path_len, .attr = *attr};
	return 0;
}

static int cp_leave(struct cp *cp)
{
	struct cp_folder *folder = &cp->open.items[cp->open.n - 1];
	int r = 0;

	if (!folder->keep_attr)
		r = cp_attributes(cp, folder->fd, &folder->attr,
				  folder->path_len ? cp->path.data : ".");
	close_fd(folder->fd);
	cp->open.n--;
	return r;
}

static int cp_entry(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct cp *cp = arg;
	const struct cp_folder *folder;
	size_t len = strlen(path);
	int r;

	for (;;) { /* leave the folders that @path is not in */
		folder = &cp->open.items[cp->open.n - 1];
		if (folder->path_len == 0 || (strncmp(path, cp->path.data, folder->path_len) == 0 &&
					      path[folder->path_len] == '/'))
			break;
		r = cp_leave(cp);
		if (r < 0)
			return r;
	}
	if (attr->type != NODE_DIR)
		return cp_file(cp, folder->fd, name, attr, path);
	r = cp_enter(cp, folder->fd, name, attr, len, path);
	strbuf_clear(&cp->path);
	strbuf_puts(&cp->path, path);
	return r < 0 ? r : cp->path.failed ? -ENOMEM : 0;
}

/* Everything below the folder @attr, into the one that was entered last. */
static int cp_folder_content(struct cp *cp, const struct attr *attr)
{
	int r = tree_walk_all(cp->tree, attr->id, cp_entry, cp, cp->err);

	while (r == 0 && cp->open.n)
		r = cp_leave(cp);
	return r;
}

/* ------------------------------------------------------------------ DEST */

/* The folder @path, which may be reached over links: it is the user's own word. */
static int cp_open_user_folder(const char *path)
{
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* Into the open folder @fd, which becomes @cp's; @attr is that of where it comes from. */
static int cp_into_fd(struct cp *cp, int fd, const struct attr *attr, bool is_new)
{
	struct cp_folder *folder = vec_push(&cp->open);

	if (!folder) {
		close_fd(fd);
		return -ENOMEM;
	}
	*folder = (struct cp_folder){.fd = fd, .attr = *attr, .keep_attr = !is_new};
	return cp_folder_content(cp, attr);
}

/* "cp REF / DEST" and "cp REF DIR/. DEST": the content goes into DEST itself. */
static int cp_into(struct cp *cp, const char *dest, const struct attr *attr)
{
	bool is_new = mkdir(dest, 0700) == 0;
	int fd;

	if (!is_new && errno != EEXIST)
		return err_errno(cp->err, "%s", dest);
	fd = cp_open_user_folder(dest);
	return fd < 0 ? err_errno(cp->err, "%s", dest) : cp_into_fd(cp, fd, attr, is_new);
}

/* The same for a folder that is not there: it gets its name when everything is in it. */
static int cp_into_new(struct cp *cp, const char *dest, const struct attr *attr)
{
	scoped(free) char *parent = NULL;
	scoped(close_fd) int dir = -1;
	size_t len = strlen(dest), start;
	char tmp[64];
	int fd, r;

	while (len > 1 && dest[len - 1] == '/')
		len--;
	for (start = len; start > 0 && dest[start - 1] != '/';)
		start--;
	scoped(free) char *name = strndup(dest + start, len - start);
	parent = start ? strndup(dest, start) : strdup(".");
	if (!name || !parent)
		return -ENOMEM;
	r = make_dirs(parent, 0755);
	dir = r < 0 ? -1 : cp_open_user_folder(parent);
	if (dir < 0)
		return err_set(cp->err, r < 0 ? r : -errno, "%s: %s", parent,
			       strerror(r < 0 ? -r : errno));
	do
		snprintf(tmp, sizeof(tmp), ".llbfs-%d-%u", (int)getpid(), cp->n_temporary++);
	while ((r = mkdirat(dir, tmp, 0700)) < 0 && errno == EEXIST);
	if (r < 0)
		return err_errno(cp->err, "%s", dest);
	temporary_folder(dir, tmp);
	fd = openat(dir, tmp, FOLDER_FLAGS);
	r = fd < 0 ? err_errno(cp->err, "%s", dest) : cp_into_fd(cp, fd, attr, true);
	if (r < 0) {
		temporary_folder_drop();
		return r;
	}
	r = temporary_folder_done(name);
	return r < 0 ? err_set(cp->err, r, "%s: %s", dest, strerror(-r)) : 0;
}

/* Into the folder DEST under its own name, or as DEST. */
static int cp_as(struct cp *cp, const char *dest, const char *own_name, const struct attr *attr)
{
	scoped(close_fd) int dir = cp_open_user_folder(dest);
	scoped(free) char *clean = NULL, *parent = NULL;
	const char *name = own_name;
	size_t len = strlen(dest);
	const char *slash;
	int r;

	if (dir < 0) {
		while (len > 1 && dest[len - 1] == '/')
			len--;
		clean = strndup(dest, len);
		slash = clean ? strrchr(clean, '/') : NULL;
		parent = !clean	 ? NULL
			 : slash ? strndup(clean, (size_t)(slash - clean) + 1)
				 : strdup(".");
		if (!parent)
			return -ENOMEM;
		name = slash ? slash + 1 : clean;
		dir = cp_open_user_folder(parent);
	}
	if (dir < 0)
		return err_errno(cp->err, "%s", parent);
	if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return err_set(cp->err, -EINVAL, "%s is no name for a copy", dest);
	if (attr->type != NODE_DIR)
		return cp_file(cp, dir, name, attr, name);
	r = cp_enter(cp, dir, name, attr, 0, name);
	return r < 0 ? r : cp_folder_content(cp, attr);
}

static int cp_init(struct cp *cp, struct tree *tree, struct err *err)
{
	struct rlimit files;

	*cp = (struct cp){.tree = tree, .is_root = geteuid() == 0, .err = err};
	umask(0);				     /* modes are the tree's */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* a descriptor for each folder on the way */
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	cp->buf = malloc(READ_SIZE);
	return cp->buf ? 0 : -ENOMEM;
}

static void cp_deinit(struct cp *cp)
{
	for (size_t i = 0; i < cp->open.n; i++)
		close_fd(cp->open.items[i].fd);
	for (size_t i = 0; i < cp->first_names.n; i++)
		free(cp->first_names.items[i]);
	vec_free(&cp->first_names);
	vec_free(&cp->open);
	idmap_free(&cp->links);
	strbuf_free(&cp->path);
	free(cp->buf);
}

static int cp_all(struct cp *cp, const char *path, const char *dest)
{
	scoped(strbuf_free) struct strbuf real = {0};
	struct attr attr;
	int r = tree_walk_real(cp->tree, path, str_ends(path, "/."), &attr, &real, cp->err);

	if (r < 0)
		return r;
	if (strcmp(real.data, "/") != 0 && !str_ends(path, "/."))
		return cp_as(cp, dest, strrchr(real.data, '/') + 1, &attr);
	if (attr.type != NODE_DIR)
		return err_set(cp->err, -ENOTDIR, "%s is no folder", path);
	return cp_into(cp, dest, &attr);
}

int cmd_cp(struct options *o, struct err *err)
{
	struct look look;
	struct cp cp;
	int r = look_open(&look, o, "cp", 2, 2, err);

	if (r < 0)
		return r;
	r = cp_init(&cp, look.view.tree, err);
	if (r == 0)
		r = cp_all(&cp, look.split.paths[0].text, look.split.paths[1].text);
	cp_deinit(&cp);
	look_close(&look);
	return r;
}

int copy_out(struct tree *tree, const char *dest, struct err *err)
{
	mode_t mask = umask(0);
	struct stat st;
	struct attr root;
	struct cp cp;
	int r = cp_init(&cp, tree, err);

	if (r == 0)
		r = tree_getattr(tree, TREE_ROOT, &root, NULL, err);
	if (r == 0 && stat(dest, &st) < 0 && errno == ENOENT) {
		r = cp_into_new(&cp, dest, &root);
	} else if (r == 0) {
		r = cp_into(&cp, dest, &root);
		if (r < 0)
			r = err_wrap(err, r, "%s may have only some of the files", dest);
	}
	cp_deinit(&cp);
	umask(mask);
	return r;
}
