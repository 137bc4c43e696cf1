/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper: changes over a tree, kept in a host folder.
 *
 * The folder needs nothing of its host but files: no privilege, no xattrs, no device nodes. It
 * holds
 *	journal		all names and metadata that differ from the tree below (upper_record.c,
 *			upper_journal.c)
 *	data/XX/N	what was written of the file with the number N (upper_data.c)
 *	lock		flock()ed by the server; two servers never share an upper
 * and nothing else, so it may be moved, copied and packed. The host's owners, modes and file names
 * mean nothing: an inode is a number, names lead to numbers, and both are in the journal. So a
 * rename of a folder with a million files is one record, a hard link is a second name, and nothing
 * is ever copied because of a name.
 *
 * Inodes. What is new gets a number from 1 up, and shows as that plus base, which is beyond all ids
 * of the tree below. An inode of the tree below keeps its id for good: when its metadata, content
 * or names are changed for the first time it is bound, which gives it a number and a node as well,
 * but the id stays what the kernel was told. Copy-up is thus nothing that anybody could see: a file
 * that was opened before is found by the same id, and all names of a hard link have one inode, be
 * they here or below. A changed inode has a node; a changed name has an entry in its folder's node,
 * which says what is there or that nothing is (a whiteout). A new folder in the place of one that
 * was deleted has no folder below, which is what opaque means.
 *
 * Bound inodes are recorded with their path in the tree below, too. When the upper is mounted over
 * the same tree again (below_key) ids are believed; over another, or a live one, whose ids mean
 * nothing after the server's end, the inodes are found again by their paths.
 *
 * Memory holds all nodes, for lookups need them: some 500 bytes for an inode and its name. Every
 * operation is one record: written, then applied (upper_change.c, upper_node.c); reading the
 * journal again applies the same records.
 *
 * One lock guards all of it. It is held while a record is appended and content is read or written
 * on the host's disk, and never while the tree below is asked, which may mean the network, while
 * anybody is called back, or while the disk is synced.
 *
 * Inodes without a name live in memory, and their content on the host, until the kernel has
 * forgotten them. What a killed server leaves of them is found when the upper is opened: content
 * whose number nobody knows.
 */

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "merge/merge-internal.h"
#include "merge/upper-internal.h"

/* ------------------------------------------------------------------ the folder */

static int open_folder(int at, const char *name, int *fd)
{
	if (mkdirat(at, name, 0700) < 0 && errno != EEXIST)
		return -errno;
	*fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

/* A folder that holds something else is not ours to write into. */
static int check_folder(const struct upper *u, struct err *err)
{
	int fd = fcntl(u->dir_fd, F_DUPFD_CLOEXEC, 0);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	int r = 0;

	if (!dir) {
		close_fd(fd);
		return err_errno(err, "%s", u->path);
	}
	for (struct dirent *d; r == 0 && (d = readdir(dir));) {
		static const char *const ours[] = {".",	   "..",   "journal",	"journal.new",
						   "data", "lock", "lost+found"};
		bool is_ours = false;

		for (size_t i = 0; i < countof(ours); i++)
			is_ours |= strcmp(d->d_name, ours[i]) == 0;
		if (!is_ours)
			r = err_set(err, -ENOTSUP,
				    "%s holds \"%s\": an upper is an empty folder, or one that "
				    "llbfs has made",
				    u->path, d->d_name);
	}
	closedir(dir);
	return r;
}

static int open_all(struct upper *u, struct err *err)
{
	int r = make_dirs(u->path, 0755);

	if (r == 0)
		r = open_folder(AT_FDCWD, u->path, &u->dir_fd);
	if (r < 0)
		return err_set(err, r, "%s: %s", u->path, strerror(-r));
	r = check_folder(u, err);
	if (r < 0)
		return r;
	u->lock_fd = openat(u->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (u->lock_fd < 0)
		return err_errno(err, "%s/lock", u->path);
	if (flock(u->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK
			       ? err_set(err, -EBUSY, "%s: another mount writes to this upper",
					 u->path)
			       : err_errno(err, "%s/lock", u->path);
	r = open_folder(u->dir_fd, "data", &u->data_fd);
	return r < 0 ? err_set(err, r, "%s/data: %s", u->path, strerror(-r)) : 0;
}

/* ------------------------------------------------------------------ content that nobody knows */

static bool is_known_content(const struct upper *u, const char *name)
{
	char *end;
	uint64_t ino = strtoull(name, &end, 16);
	const struct upper_node *n = *end ? NULL : upper_by_ino(u, ino);

	return n && n->i.type == NODE_FILE && n->i.content != CONTENT_BELOW && !u->is_scratch;
}

static void sweep_fanout(struct upper *u, const char *name)
{
	int fd = openat(u->data_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;

	if (!dir) {
		close_fd(fd);
		return;
	}
	for (struct dirent *d; (d = readdir(dir));)
		if (d->d_name[0] != '.' && !is_known_content(u, d->d_name))
			unlinkat(fd, d->d_name, 0);
	closedir(dir);
	if (u->is_scratch)
		unlinkat(u->data_fd, name, AT_REMOVEDIR);
}

static void sweep(struct upper *u)
{
	char name[3];

	for (unsigned i = 0; i < 256; i++) {
		snprintf(name, sizeof(name), "%02x", i);
		sweep_fanout(u, name);
	}
}

/* ------------------------------------------------------------------ scratch folders */

static void remove_scratch(struct upper *u)
{
	sweep(u);
	unlinkat(u->dir_fd, "data", AT_REMOVEDIR);
	unlinkat(u->dir_fd, "lock", 0);
	rmdir(u->path);
}

/* One whose server is gone: nobody holds its lock. */
static void remove_if_dead(const char *path)
{
	struct upper u = {.path = (char *)path, .is_scratch = true, .data_fd = -1};

	u.dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	u.lock_fd = u.dir_fd < 0 ? -1 : openat(u.dir_fd, "lock", O_RDWR | O_CLOEXEC);
	if (u.lock_fd >= 0 && flock(u.lock_fd, LOCK_EX | LOCK_NB) == 0) {
		u.data_fd = openat(u.dir_fd, "data", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		remove_scratch(&u);
	}
	close_fd(u.data_fd);
	close_fd(u.lock_fd);
	close_fd(u.dir_fd);
}

/* A folder in @parent. */
static int make_scratch(struct upper *u, const char *parent, struct err *err)
{
	scoped(free) char *path = str_printf("%s/XXXXXX", parent);
	int r = path ? make_dirs(parent, 0755) : -ENOMEM;
	DIR *dir = r == 0 ? opendir(parent) : NULL;

	if (r < 0)
		return err_set(err, r, "%s: %s", parent, strerror(-r));
	for (struct dirent *d; dir && (d = readdir(dir));) {
		scoped(free) char *old = str_printf("%s/%s", parent, d->d_name);
		if (old && d->d_name[0] != '.')
			remove_if_dead(old);
	}
	if (dir)
		closedir(dir);
	if (!mkdtemp(path))
		return err_errno(err, "%s", parent);
	free(u->path);
	u->path = take(path);
	return 0;
}

/* ------------------------------------------------------------------ opening and closing */

/* The root is always a node, as it has no entry anywhere. */
static int hold_root(struct upper *u, struct err *err)
{
	struct upper_node *root;
	int r = upper_hold(u, TREE_ROOT, &root, NULL, err);

	if (r == 0)
		pthread_mutex_unlock(&u->lock);
	return r;
}

int upper_open(struct upper **out, struct tree *below, const struct upper_options *options,
	       struct err *err)
{
	struct upper *u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	tree_init(&u->tree, &upper_tree_ops, below->n_leaves + 1, below->is_live);
	pthread_mutex_init(&u->lock, NULL);
	pthread_cond_init(&u->wake, NULL);
	TAILQ_INIT(&u->open);
	u->dir_fd = u->data_fd = u->lock_fd = u->journal_fd = -1;
	u->below = tree_ref(below);
	u->base = (uint64_t)below->n_leaves << 32;
	u->is_scratch = options->is_scratch;
	u->is_below_live = below->is_live;
	u->next_ino = 1;
	u->key = strdup(options->below_key ? options->below_key : "");
	u->path = strdup(options->dir);
	upper_record_begin(&u->record);
	int r = u->key && u->path && !u->record.failed ? 0 : -ENOMEM;
	if (r == 0 && u->is_scratch)
		r = make_scratch(u, options->dir, err);
	if (r == 0)
		r = open_all(u, err);
	if (r == 0)
		r = upper_journal_open(u, err);
	if (r == 0)
		r = hold_root(u, err);
	if (r < 0) {
		tree_unref(&u->tree);
		return r;
	}
	sweep(u);
	*out = u;
	return 0;
}

int upper_close(struct upper *u, struct err *err)
{
	int r = 0;

	if (!u)
		return 0;
	upper_reaper_stop(u);
	pthread_mutex_lock(&u->lock);
	while (!TAILQ_EMPTY(&u->open))
		upper_content_close(u, TAILQ_FIRST(&u->open));
	if (!u->is_scratch && !u->is_broken)
		upper_journal_trim(u, NULL); /* a full disk may keep the longer one */
	pthread_mutex_unlock(&u->lock);
	if (u->is_scratch)
		remove_scratch(u);
	else if (r == 0 && syncfs(u->dir_fd) < 0)
		r = err_errno(err, "%s", u->path);
	flock(u->lock_fd, LOCK_UN);
	tree_unref(&u->tree);
	return r;
}

struct tree *upper_tree(struct upper *u)
{
	return &u->tree;
}

int upper_statfs(struct upper *u, struct statvfs *out)
{
	return fstatvfs(u->dir_fd, out) < 0 ? -errno : 0;
}
