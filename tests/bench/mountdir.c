/* SPDX-License-Identifier: Apache-2.0 */

/*
 * mountdir: mounts a copy of a host folder as if it were an image, to measure fs alone.
 *
 *	mountdir [-o auto|noopen|passthrough|open] DIR MOUNTPOINT
 *
 * Names, attributes and the content of small files are read into a memtree before the mount; large
 * files stay where they are, and are what passthrough opens. Prints the counters at the end.
 */

#include "fs/fs.h"

#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LARGE (1u << 20)

struct large {
	uint64_t id;
	int fd;
};

/* A memtree, but for the large files. */
struct benchtree {
	struct tree tree;
	struct tree *below;
	vec(struct large) large;
};

static struct benchtree bench; /* nftw has no argument to pass it through */
static size_t root_len;

static struct tree *below(struct tree *t)
{
	return containerof(t, struct benchtree, tree)->below;
}

static const struct large *find_large(struct tree *t, uint64_t id)
{
	struct benchtree *b = containerof(t, struct benchtree, tree);

	for (size_t i = 0; i < b->large.n; i++)
		if (b->large.items[i].id == id)
			return &b->large.items[i];
	return NULL;
}

static void show_large(struct tree *t, struct attr *a)
{
	const struct large *l = a->type == NODE_FILE ? find_large(t, a->id) : NULL;
	struct stat st;

	if (l && fstat(l->fd, &st) == 0) {
		a->size = (uint64_t)st.st_size;
		a->n_bytes_allocated = (uint64_t)st.st_blocks * 512;
	}
}

static int bench_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			 struct err *err)
{
	int r = tree_getattr(below(t), id, out, wait, err);

	if (r == 0)
		show_large(t, out);
	return r;
}

static int bench_lookup(struct tree *t, uint64_t dir, const char *name, size_t len,
			struct attr *out, struct tree_wait *wait, struct err *err)
{
	int r = tree_lookup(below(t), dir, name, len, out, wait, err);

	if (r == 0)
		show_large(t, out);
	return r;
}

struct relay {
	struct tree *t;
	tree_list_fn fn;
	void *arg;
};

static int relay_one(void *arg, const char *name, size_t len, const struct attr *attr,
		     uint64_t next)
{
	struct relay *r = arg;
	struct attr a = *attr;

	show_large(r->t, &a);
	return r->fn(r->arg, name, len, &a, next);
}

static int bench_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		      struct tree_wait *wait, struct err *err)
{
	struct relay relay = {t, fn, arg};

	return tree_list(below(t), dir, from, relay_one, &relay, wait, err);
}

static int bench_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
			struct err *err)
{
	return tree_parent(below(t), dir, out, name, err);
}

static int bench_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	return tree_readlink(below(t), id, out, err);
}

static int bench_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	return tree_xattrs(below(t), id, fn, arg, err);
}

static int64_t bench_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			  blob_done done, void *arg, struct err *err)
{
	const struct large *l = find_large(t, id);

	if (!l)
		return tree_read(below(t), id, off, dst, len, done, arg, err);
	ssize_t n = pread(l->fd, dst, len, (off_t)off);
	return n < 0 ? -errno : n;
}

static int bench_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	const struct large *l = find_large(t, id);

	if (!l)
		return -ENOENT;
	*fd = dup(l->fd);
	return *fd < 0 ? -errno : 0;
}

static void bench_free(struct tree *t)
{
	tree_unref(below(t));
}

static const struct tree_ops bench_ops = {
	.getattr = bench_getattr,
	.lookup = bench_lookup,
	.list = bench_list,
	.parent = bench_parent,
	.readlink = bench_readlink,
	.xattrs = bench_xattrs,
	.read = bench_read,
	.open_flat = bench_open_flat,
	.free = bench_free,
};

/* ------------------------------------------------------------------ loading */

static int add_file(const char *path, const char *name, struct attr *a, const struct stat *st)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int r;

	if (fd < 0)
		return -errno;
	if (st->st_size >= LARGE) {
		struct attr found;
		struct large *l = vec_push(&bench.large);
		r = memtree_add(bench.below, name, a, "", 0);
		if (r == 0)
			r = tree_walk(bench.below, name, false, &found, NULL);
		if (!l || r < 0)
			return r < 0 ? r : -ENOMEM;
		*l = (struct large){found.id, fd};
		return 0;
	}
	scoped(free) void *data = malloc((size_t)st->st_size + 1);
	r = data ? pread_full(fd, data, (size_t)st->st_size, 0) : -ENOMEM;
	close_fd(fd);
	return r < 0 ? r : memtree_add(bench.below, name, a, data, (size_t)st->st_size);
}

static int load_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	const char *name = path + root_len;
	struct attr a = {.mode = st->st_mode & 07777,
			 .uid = st->st_uid,
			 .gid = st->st_gid,
			 .mtime_s = st->st_mtim.tv_sec,
			 .mtime_ns = (uint32_t)st->st_mtim.tv_nsec};
	char target[PATH_MAX];
	int r = 0;

	if (!*name)
		return 0;
	if (S_ISDIR(st->st_mode)) {
		a.type = NODE_DIR;
		r = memtree_add(bench.below, name, &a, NULL, 0);
	} else if (S_ISLNK(st->st_mode)) {
		ssize_t n = readlink(path, target, sizeof(target));
		a.type = NODE_SYMLINK;
		r = n < 0 ? -errno : memtree_add(bench.below, name, &a, target, (size_t)n);
	} else if (S_ISREG(st->st_mode)) {
		a.type = NODE_FILE;
		r = add_file(path, name, &a, st);
	}
	if (r < 0)
		fprintf(stderr, "mountdir: %s: %s\n", path, strerror(-r));
	return r;
}

/* ------------------------------------------------------------------ mounting */

static void on_ready(void *arg)
{
	puts("ready");
	fflush(stdout);
}

static bool yes(void *arg)
{
	return true;
}

int main(int argc, char **argv)
{
	static const char *const modes[] = {"auto", "noopen", "passthrough", "open"};
	struct mount_options options = {
		.fsname = "bench", .on_ready = on_ready, .wants_passthrough = yes};
	struct session *s = NULL;
	struct session_status status;
	struct err err = {0};

	if (argc > 2 && strcmp(argv[1], "-o") == 0) {
		for (size_t i = 0; i < countof(modes); i++)
			if (strcmp(argv[2], modes[i]) == 0)
				options.data = (enum data_mode)i;
		argc -= 2;
		argv += 2;
	}
	if (argc != 3) {
		fputs("usage: mountdir [-o auto|noopen|passthrough|open] DIR MOUNTPOINT\n", stderr);
		return 2;
	}
	options.mountpoint = argv[2];
	bench.tree = (struct tree){.ops = &bench_ops, .n_refs = 2, .n_leaves = 1};
	root_len = strlen(argv[1]);
	if (memtree_new(&bench.below) < 0 || nftw(argv[1], load_one, 64, FTW_PHYS) != 0)
		return 1;
	int r = session_new(&s, &bench.tree, &options, &err);
	if (r == 0)
		r = session_run(s, &err);
	if (r < 0) {
		fprintf(stderr, "mountdir: %s\n", err_text(&err, r));
	} else {
		session_status(s, &status);
		printf("requests %llu reads %llu bytes %llu passthrough %llu data %s: %s\n",
		       (unsigned long long)status.n_requests, (unsigned long long)status.n_reads,
		       (unsigned long long)status.n_read_bytes,
		       (unsigned long long)status.n_passthrough, modes[status.data],
		       status.data_reason);
	}
	session_free(s);
	return r < 0;
}
