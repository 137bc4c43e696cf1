/* SPDX-License-Identifier: Apache-2.0 */

/* upper: changes over a tree, kept in a folder. Compared with the same changes to a host folder. */

#include "tests/test.h"

#include "merge/upper-internal.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

static struct timespec at(time_t s)
{
	return (struct timespec){.tv_sec = s, .tv_nsec = 7};
}

/* ------------------------------------------------------------------ records */

static void a_record_is_read_as_it_was_written(void **state)
{
	struct upper_item in = {.kind = UPPER_INODE, .ino = 9, .name = "to", .name_len = 2}, out;
	struct strbuf s = {0};
	const uint8_t *p, *record;
	size_t left, n;

	in.inode = (struct upper_inode){.type = NODE_SYMLINK,
					.content = CONTENT_HERE,
					.mode = 0777,
					.uid = UINT32_MAX,
					.nlink = 3,
					.size = 2,
					.mtime = at(-5)};
	size_t start = upper_record_begin(&s);
	upper_item_put(&s, &in);
	upper_item_put(&s, &(struct upper_item){
				   .kind = UPPER_XATTR, .ino = 9, .name = "user.a", .name_len = 6});
	upper_record_end(&s, start);
	p = (const uint8_t *)s.data;
	left = s.len;
	assert_int_equal(upper_record_next(&p, &left, &record, &n), 1);
	assert_int_equal(left, 0);
	assert_int_equal(upper_item_next(&record, &n, &out), 1);
	assert_int_equal(out.ino, 9);
	assert_int_equal(out.inode.uid, UINT32_MAX);
	assert_int_equal(out.inode.mtime.tv_sec, -5);
	assert_memory_equal(out.name, "to", 2);
	assert_int_equal(upper_item_next(&record, &n, &out), 1);
	assert_int_equal(out.value_len, 0);
	assert_int_equal(upper_item_next(&record, &n, &out), 0);
	strbuf_free(&s);
}

static void what_is_no_name_is_no_record(void **state)
{
	static const struct upper_item bad[] = {
		{.kind = UPPER_ENTRY, .ino = 1, .name = "..", .name_len = 2},
		{.kind = UPPER_ENTRY, .ino = 1, .name = "a/b", .name_len = 3},
		{.kind = UPPER_ENTRY, .ino = 1, .name = "a\0b", .name_len = 3},
		{.kind = UPPER_UNENTRY, .ino = 1, .name = "", .name_len = 0},
		{.kind = UPPER_FREE, .ino = 0},
		{.kind = UPPER_BIND, .ino = 1, .below = 0, .name = "", .name_len = 0},
		{.kind = UPPER_INODE, .ino = 1, .inode.type = NODE_WHITEOUT, .name = ""},
		{.kind = UPPER_DATA, .ino = 1, .first = UINT64_MAX},
	};

	for (size_t i = 0; i < countof(bad); i++) {
		struct strbuf s = {0};
		struct upper_item out;
		upper_item_put(&s, &bad[i]);
		const uint8_t *p = (const uint8_t *)s.data;
		size_t left = s.len;
		assert_int_equal(upper_item_next(&p, &left, &out), -EBADMSG);
		/* Nor is one that is cut off anywhere. */
		strbuf_free(&s);
	}
}

/* ------------------------------------------------------------------ an upper and its model */

struct pair {
	char *dir, *model, *upper;
	struct tree *below;
	struct upper *u;
	uint64_t state;
	const char *key;
};

#define BELOW_SIZE 300000u
static uint8_t content[BELOW_SIZE];

static void add_below(struct pair *p, const char *path, size_t size)
{
	struct attr attr = {.type = NODE_FILE, .mode = 0644, .mtime_s = 1700000000};
	char host[PATH_MAX];

	assert_int_equal(memtree_add(p->below, path, &attr, content, size), 0);
	snprintf(host, sizeof(host), "%s/%s", p->model, path);
	char *slash = strrchr(host, '/');
	*slash = '\0';
	assert_int_equal(make_dirs(host, 0755), 0);
	*slash = '/';
	int fd = open(host, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	assert_int_equal(write_full(fd, content, size), 0);
	close(fd);
}

static void open_upper(struct pair *p)
{
	const struct upper_options options = {.dir = p->upper, .below_key = p->key};
	struct err err = {0};

	int r = upper_open(&p->u, p->below, &options, &err);
	if (r < 0)
		fail_msg("upper_open: %s", err_text(&err, r));
}

static void close_upper(struct pair *p)
{
	struct err err = {0};

	if (upper_close(take(p->u), &err) < 0)
		fail_msg("upper_close: %s", err.text);
}

/* As a server that is killed leaves it: the journal is not rewritten. */
static void kill_upper(struct pair *p)
{
	struct upper *u = take(p->u);

	pthread_mutex_lock(&u->lock);
	u->is_broken = true;
	pthread_mutex_unlock(&u->lock);
	upper_close(u, NULL);
}

static int make(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));

	test_fill(content, sizeof(content), 5);
	p->dir = test_dir();
	p->model = str_printf("%s/model", p->dir);
	p->upper = str_printf("%s/upper", p->dir);
	p->key = "one";
	assert_int_equal(memtree_new(&p->below), 0);
	assert_int_equal(make_dirs(p->model, 0755), 0);
	add_below(p, "a", 10);
	add_below(p, "d/a", BELOW_SIZE);
	add_below(p, "d/e/b", 65536);
	add_below(p, "d/e/c", 65537);
	add_below(p, "f", 200000);
	open_upper(p);
	*state = p;
	return 0;
}

static int drop(void **state)
{
	struct pair *p = *state;

	if (p->u)
		close_upper(p);
	tree_unref(p->below);
	test_dir_remove(p->dir);
	free(p->model);
	free(p->upper);
	free(p);
	return 0;
}

/* The folder of @path and its last name. */
static int split(struct pair *p, const char *path, struct upper_name *out)
{
	const char *slash = strrchr(path, '/');
	scoped(free) char *dir = strndup(path, slash ? (size_t)(slash - path) : 0);
	struct attr a;

	int r = tree_walk(upper_tree(p->u), dir, false, &a, NULL);
	out->dir = r < 0 ? 0 : a.id;
	out->name = slash ? slash + 1 : path;
	out->len = strlen(out->name);
	return r;
}

/* Looks @path up as the kernel does, which tells the upper. */
static int look_up(struct pair *p, const char *path, struct attr *out)
{
	struct upper_name at_;

	int r = split(p, path, &at_);
	if (r == 0)
		r = tree_lookup(upper_tree(p->u), at_.dir, at_.name, at_.len, out, NULL, NULL);
	if (r == 0)
		upper_seen(p->u, out->id, at_.dir, at_.name, at_.len);
	return r;
}

static struct attr find(struct pair *p, const char *path)
{
	struct attr a;

	int r = look_up(p, path, &a);
	if (r < 0)
		fail_msg("%s: %s", path, strerror(-r));
	return a;
}

/* ------------------------------------------------------------------ comparing */

struct compare {
	struct pair *p;
	size_t n;
};

static int compare_one(void *arg, const char *path, const char *name, const struct attr *a)
{
	static uint8_t here[1 << 20], there[1 << 20];
	struct compare *c = arg;
	char host[PATH_MAX];
	struct stat st;

	snprintf(host, sizeof(host), "%s/%s", c->p->model, path);
	if (lstat(host, &st) < 0)
		fail_msg("%s is in the upper only", path);
	c->n++;
	assert_int_equal(st.st_mode & 07777, a->mode);
	assert_int_equal(S_ISDIR(st.st_mode), a->type == NODE_DIR);
	if (a->type != NODE_FILE)
		return 0;
	assert_int_equal(st.st_nlink, a->nlink);
	if (st.st_size != (off_t)a->size)
		fail_msg("%s: %zu bytes, not %zu", path, (size_t)a->size, (size_t)st.st_size);
	int fd = open(host, O_RDONLY);
	assert_int_equal(pread_full(fd, there, a->size, 0), 0);
	close(fd);
	int64_t n = tree_read(upper_tree(c->p->u), a->id, 0, here, sizeof(here), NULL, NULL, NULL);
	assert_int_equal(n, a->size);
	for (size_t i = 0; i < a->size; i++)
		if (here[i] != there[i])
			fail_msg("%s differs at %zu of %zu", path, i, (size_t)a->size);
	return 0;
}

static size_t n_host;
static int count_host(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	n_host++;
	return 0;
}

static void compare(struct pair *p)
{
	struct compare c = {.p = p};

	assert_int_equal(tree_walk_all(upper_tree(p->u), TREE_ROOT, compare_one, &c, NULL), 0);
	n_host = 0;
	nftw(p->model, count_host, 16, FTW_PHYS);
	assert_int_equal(c.n + 1, n_host);
}

/* ------------------------------------------------------------------ random changes */

static uint64_t pick(struct pair *p, uint64_t n)
{
	p->state ^= p->state << 13;
	p->state ^= p->state >> 7;
	p->state ^= p->state << 17;
	return (p->state * UINT64_C(0x2545f4914f6cdd1d) >> 20) % n;
}

static const char *pick_path(struct pair *p)
{
	static const char *const paths[] = {"a",     "b",   "d",     "d/a",   "d/e",
					    "d/e/b", "f",   "d/e/c", "n",     "n/a",
					    "n/d",   "d/f", "n/d/b", "d/e/n", "n/d/e"};

	return paths[pick(p, countof(paths))];
}

static int make_one(struct pair *p, const char *path, const char *host, bool is_dir, int *on_host)
{
	const struct upper_make what = {.type = is_dir ? NODE_DIR : NODE_FILE, .mode = 0755};
	struct upper_name at_;
	struct attr a;

	*on_host = is_dir ? mkdir(host, 0755) : mknod(host, S_IFREG | 0755, 0);
	*on_host = *on_host < 0 ? -errno : 0;
	int r = split(p, path, &at_);
	return r < 0 ? r : upper_create(p->u, at_.dir, at_.name, at_.len, &what, &a, NULL, NULL);
}

static int remove_one(struct pair *p, const char *path, const char *host, bool is_dir, int *on_host)
{
	struct upper_name at_;

	*on_host = (is_dir ? rmdir(host) : unlink(host)) < 0 ? -errno : 0;
	struct attr a;
	int r = look_up(p, path, &a);
	if (r == 0)
		r = split(p, path, &at_);
	return r < 0 ? r : upper_remove(p->u, at_.dir, at_.name, at_.len, is_dir, NULL, NULL);
}

static int rename_one(struct pair *p, const char *path, const char *host, int *on_host)
{
	static const unsigned flags[] = {0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE};
	const char *to = pick_path(p);
	unsigned flag = flags[pick(p, countof(flags))];
	struct upper_name a, b;
	char to_host[PATH_MAX];

	snprintf(to_host, sizeof(to_host), "%s/%s", p->model, to);
	*on_host = renameat2(AT_FDCWD, host, AT_FDCWD, to_host, flag) < 0 ? -errno : 0;
	/* A folder into itself, which the kernel never asks for. */
	if (*on_host == -EINVAL || (*on_host == -ENOTEMPTY && str_starts(path, to)))
		return *on_host;
	struct attr attr;
	int r = look_up(p, path, &attr);
	if (r == 0)
		r = split(p, path, &a);
	if (r == 0)
		r = split(p, to, &b);
	if (r == 0)
		look_up(p, to, &attr);
	return r < 0 ? r : upper_rename(p->u, &a, &b, flag, NULL, NULL);
}

static int link_one(struct pair *p, const char *path, const char *host, int *on_host)
{
	const char *to = pick_path(p);
	struct upper_name b;
	struct attr a;
	char to_host[PATH_MAX];

	snprintf(to_host, sizeof(to_host), "%s/%s", p->model, to);
	*on_host = link(host, to_host) < 0 ? -errno : 0;
	int r = look_up(p, path, &a);
	if (r == 0)
		r = split(p, to, &b);
	return r < 0 ? r : upper_link(p->u, a.id, b.dir, b.name, b.len, &a, NULL, NULL);
}

static int write_one(struct pair *p, const char *path, const char *host, int *on_host)
{
	uint64_t off = pick(p, 400000), len = pick(p, 3) ? pick(p, 5000) : pick(p, 200000);
	const uint8_t *bytes = content + pick(p, BELOW_SIZE - 200000);
	struct stat st;
	struct attr a;

	if (pick(p, 3) == 0 && stat(host, &st) == 0)
		off = (uint64_t)st.st_size; /* append */
	int r = look_up(p, path, &a);
	int fd = open(host, O_WRONLY);
	*on_host = fd < 0 ? -errno : pwrite_full(fd, bytes, len, off);
	close_fd(fd);
	return r < 0 ? r
		     : (int)MIN(upper_write(p->u, a.id, off, bytes, len, false, NULL, NULL),
				(int64_t)0);
}

static int set_one(struct pair *p, const char *path, const char *host, int *on_host)
{
	struct upper_set set = {.what = UPPER_SIZE, .size = pick(p, 400000)};
	struct attr a;

	int r = look_up(p, path, &a);
	if (pick(p, 2)) {
		set = (struct upper_set){.what = UPPER_MODE, .mode = (uint32_t)pick(p, 512) | 0700};
		*on_host = chmod(host, set.mode) < 0 ? -errno : 0;
	} else {
		*on_host = truncate(host, (off_t)set.size) < 0 ? -errno : 0;
	}
	return r < 0 ? r : upper_set(p->u, a.id, &set, &a, NULL, NULL);
}

static void change(struct pair *p, int step)
{
	unsigned kind = (unsigned)pick(p, 16);
	const char *path = pick_path(p);
	char host[PATH_MAX];
	int r, on_host = 0;

	snprintf(host, sizeof(host), "%s/%s", p->model, path);
	if (kind < 3)
		r = make_one(p, path, host, kind == 0, &on_host);
	else if (kind < 6)
		r = remove_one(p, path, host, kind == 3, &on_host);
	else if (kind < 9)
		r = rename_one(p, path, host, &on_host);
	else if (kind == 9)
		r = link_one(p, path, host, &on_host);
	else if (kind < 13)
		r = write_one(p, path, host, &on_host);
	else
		r = set_one(p, path, host, &on_host);
	/* Of two paths that both lead nowhere, which is said first is the kernel's matter. */
	bool is_nowhere =
		(r == -ENOENT || r == -ENOTDIR) && (on_host == -ENOENT || on_host == -ENOTDIR);
	if (r != on_host && !is_nowhere)
		fail_msg("step %d, kind %u of %s: %d, on the host %d", step, kind, path, r,
			 on_host);
}

/* After each so many changes the upper is closed, or its server dies, and it is opened again. */
static void random_changes_are_as_on_the_host(void **state)
{
	struct pair *p = *state;

	for (uint64_t seed = 1; seed <= 6; seed++) {
		p->state = seed * UINT64_C(0x9e3779b97f4a7c15);
		for (int step = 1; step <= 400; step++) {
			change(p, step);
			if (step % 37 == 0) {
				kill_upper(p);
				open_upper(p);
			}
			if (step % 90 == 0) {
				close_upper(p);
				open_upper(p);
			}
			if (step % 20 == 0)
				compare(p);
		}
	}
	compare(p);
}

/* With another name for the tree below, inodes are found by their paths. */
static void over_another_tree_paths_count(void **state)
{
	struct pair *p = *state;

	p->state = 77;
	for (int round = 0; round < 8; round++) {
		for (int step = 1; step <= 40; step++)
			change(p, step);
		close_upper(p);
		p->key = round % 2 ? "another" : NULL;
		open_upper(p);
		compare(p);
	}
}

/* ------------------------------------------------------------------ torn journals */

/* Cut anywhere, a journal holds what was done up to there. */
static void a_torn_journal_ends_before_the_tear(void **state)
{
	struct pair *p = *state;
	const struct upper_make what = {.type = NODE_FILE, .mode = 0600};
	scoped(strbuf_free) struct strbuf whole = {0};
	scoped(free) char *path = str_printf("%s/journal", p->upper);
	size_t ends[11];
	struct attr a;
	char name[2] = "0";

	for (size_t i = 0; i < 10; i++, name[0]++) {
		ends[i] = p->u->journal_size;
		assert_int_equal(upper_create(p->u, TREE_ROOT, name, 1, &what, &a, NULL, NULL), 0);
	}
	ends[10] = p->u->journal_size;
	kill_upper(p);
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &whole), 0);
	assert_int_equal(whole.len, ends[10]);
	for (size_t cut = ends[0]; cut <= whole.len; cut += 5) {
		size_t want = 0;
		int fd = open(path, O_WRONLY | O_TRUNC);
		assert_int_equal(write_full(fd, whole.data, cut), 0);
		if (cut % 2 && cut + 30 < whole.len) /* and then garbage */
			assert_int_equal(write_full(fd, content, 30), 0);
		close(fd);
		while (want < 10 && ends[want + 1] <= cut)
			want++;
		open_upper(p);
		for (name[0] = '0'; name[0] <= '9'; name[0]++)
			assert_int_equal(
				tree_lookup(upper_tree(p->u), TREE_ROOT, name, 1, &a, NULL, NULL),
				(size_t)(name[0] - '0') < want ? 0 : -ENOENT);
		kill_upper(p);
	}
	open_upper(p);
}

static void an_upper_is_served_once(void **state)
{
	struct pair *p = *state;
	const struct upper_options options = {.dir = p->upper};
	struct upper *other;
	struct err err = {0};

	assert_int_equal(upper_open(&other, p->below, &options, &err), -EBUSY);
	close_upper(p);
	scoped(free) char *path = str_printf("%s/journal", p->upper);
	assert_int_equal(truncate(path, 9), 0);
	assert_int_equal(upper_open(&other, p->below, &options, &err), -EBADMSG);
	int fd = open(path, O_WRONLY | O_TRUNC);
	assert_int_equal(write_full(fd, "something else", 14), 0);
	close(fd);
	assert_int_equal(upper_open(&other, p->below, &options, &err), -ENOTSUP);
}

/* ------------------------------------------------------------------ changes */

static int change_to_text(void *arg, const struct upper_change *c)
{
	strbuf_printf(arg, "%c %s%s\n", c->kind, c->path, c->is_moved ? " moved" : "");
	return 0;
}

static void changes_are_known(void **state)
{
	struct pair *p = *state;
	const struct upper_make file = {.type = NODE_FILE}, dir = {.type = NODE_DIR};
	scoped(strbuf_free) struct strbuf text = {0};
	struct upper_name from, to;
	struct attr a;

	assert_int_equal(upper_changes(p->u, change_to_text, &text, NULL), 0);
	assert_int_equal(text.len, 0);
	uint64_t d = find(p, "d").id;
	assert_int_equal(upper_create(p->u, TREE_ROOT, "new", 3, &dir, &a, NULL, NULL), 0);
	assert_int_equal(upper_create(p->u, a.id, "x", 1, &file, &a, NULL, NULL), 0);
	assert_int_equal(upper_remove(p->u, TREE_ROOT, "a", 1, false, NULL, NULL), 0);
	assert_int_equal(upper_write(p->u, find(p, "f").id, 3, "!", 1, false, NULL, NULL), 1);
	assert_int_equal(upper_set(p->u, find(p, "d/e/b").id,
				   &(struct upper_set){.what = UPPER_MODE, .mode = 0600}, &a, NULL,
				   NULL),
			 0);
	assert_int_equal(upper_remove(p->u, d, "a", 1, false, NULL, NULL), 0);
	assert_int_equal(split(p, "d", &from), 0);
	assert_int_equal(split(p, "new/d", &to), 0);
	assert_int_equal(upper_rename(p->u, &from, &to, 0, NULL, NULL), 0);
	for (int i = 0; i < 2; i++) { /* and when it was opened again */
		strbuf_clear(&text);
		assert_int_equal(upper_changes(p->u, change_to_text, &text, NULL), 0);
		assert_string_equal(text.data, "D /a\nD /d\nM /f\nA /new\nA /new/d moved\n"
					       "D /new/d/a\nM /new/d/e/b\nA /new/x\n");
		kill_upper(p);
		open_upper(p);
	}
}

/* ------------------------------------------------------------------ what nobody needs any more */

static size_t n_content;
static int count_content(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	n_content += type == FTW_F && strstr(path, "/data/") != NULL;
	return 0;
}

static size_t content_files(const struct pair *p)
{
	n_content = 0;
	nftw(p->upper, count_content, 16, FTW_PHYS);
	return n_content;
}

static void content_without_a_name_goes_when_it_is_forgotten(void **state)
{
	struct pair *p = *state;
	const struct upper_make file = {.type = NODE_FILE};
	struct attr a, b;
	char byte;

	assert_int_equal(upper_create(p->u, TREE_ROOT, "x", 1, &file, &a, NULL, NULL), 0);
	upper_seen(p->u, a.id, TREE_ROOT, "x", 1);
	assert_int_equal(upper_write(p->u, a.id, 0, "y", 1, false, NULL, NULL), 1);
	assert_int_equal(upper_remove(p->u, TREE_ROOT, "x", 1, false, NULL, NULL), 0);
	assert_int_equal(tree_getattr(upper_tree(p->u), a.id, &b, NULL, NULL), 0);
	assert_int_equal(b.nlink, 0);
	assert_int_equal(tree_read(upper_tree(p->u), a.id, 0, &byte, 1, NULL, NULL, NULL), 1);
	assert_int_equal(content_files(p), 1);
	upper_forget(p->u, a.id, 1);
	assert_int_equal(tree_getattr(upper_tree(p->u), a.id, &b, NULL, NULL), -ENOENT);
	close_upper(p); /* waits for what unlinks */
	assert_int_equal(content_files(p), 0);
	open_upper(p);

	/* A server that dies leaves it; the next one finds it. */
	assert_int_equal(upper_create_tmp(p->u, TREE_ROOT, &file, &a, NULL, NULL), 0);
	assert_int_equal(upper_write(p->u, a.id, 0, "y", 1, false, NULL, NULL), 1);
	kill_upper(p);
	assert_int_equal(content_files(p), 1);
	open_upper(p);
	assert_int_equal(content_files(p), 0);
}

/* ------------------------------------------------------------------ ACLs */

static void acls_and_modes_agree(void **state)
{
	static const uint8_t acl[] = {2,   0,	0,   0,	  1,   0,   6,	0,   255, 255, 255,
				      255, 2,	0,   7,	  0,   232, 3,	0,   0,	  4,   0,
				      5,   0,	255, 255, 255, 255, 16, 0,   3,	  0,   255,
				      255, 255, 255, 32,  0,   4,   0,	255, 255, 255, 255};
	uint8_t copy[sizeof(acl)];
	uint32_t mode = 04000;
	bool is_mode;

	assert_int_equal(upper_acl_mode(acl, sizeof(acl), &mode, &is_mode), 0);
	assert_int_equal(mode, 04634);
	assert_false(is_mode);
	for (size_t n = 0; n < sizeof(acl); n++)
		assert_int_equal(upper_acl_mode(acl, n, &mode, &is_mode), -EINVAL);
	memcpy(copy, acl, sizeof(acl));
	assert_int_equal(upper_acl_chmod(copy, sizeof(copy), 0751), 0);
	assert_int_equal(upper_acl_mode(copy, sizeof(copy), &mode, &is_mode), 0);
	assert_int_equal(mode, 04751);
	assert_int_equal(copy[22], 5); /* the group's own are not the mask */
	memcpy(copy, acl, sizeof(acl));
	mode = 0666;
	assert_int_equal(upper_acl_create(copy, sizeof(copy), &mode), 0);
	assert_int_equal(mode, 0624);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_record_is_read_as_it_was_written),
		cmocka_unit_test(what_is_no_name_is_no_record),
		cmocka_unit_test_setup_teardown(random_changes_are_as_on_the_host, make, drop),
		cmocka_unit_test_setup_teardown(over_another_tree_paths_count, make, drop),
		cmocka_unit_test_setup_teardown(a_torn_journal_ends_before_the_tear, make, drop),
		cmocka_unit_test_setup_teardown(an_upper_is_served_once, make, drop),
		cmocka_unit_test_setup_teardown(changes_are_known, make, drop),
		cmocka_unit_test_setup_teardown(content_without_a_name_goes_when_it_is_forgotten,
						make, drop),
		cmocka_unit_test(acls_and_modes_agree),
	};

	log_max = LOG_ERROR; /* torn journals are what this is about */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
