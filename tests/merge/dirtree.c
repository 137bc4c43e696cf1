/* SPDX-License-Identifier: Apache-2.0 */

/* dirtree: a folder of the host, which changes under us and may be hostile. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "merge/merge.h"

struct fixture {
	char dir[64];
	int fd;
	struct tree *tree;
};

static int make(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/llbfs-dirtree-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	f->fd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	*state = f;
	return dirtree_new(&f->tree, f->dir, false, NULL);
}

static void remove_below(int dir)
{
	DIR *d = fdopendir(dir);

	for (struct dirent *e; (e = readdir(d));) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (e->d_type == DT_DIR)
			remove_below(openat(dir, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
		unlinkat(dir, e->d_name, e->d_type == DT_DIR ? AT_REMOVEDIR : 0);
	}
	closedir(d);
}

static int drop(void **state)
{
	struct fixture *f = *state;

	tree_unref(f->tree);
	remove_below(f->fd);
	rmdir(f->dir);
	free(f);
	return 0;
}

static void write_at(int dir, const char *path, const char *text)
{
	int fd = openat(dir, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);

	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, text, strlen(text)), 0);
	close(fd);
}

static struct attr walk(struct tree *t, const char *path)
{
	struct attr a;

	assert_int_equal(tree_walk(t, path, false, &a, NULL), 0);
	return a;
}

static void expect_text(struct tree *t, uint64_t id, const char *text)
{
	char buf[64] = {0};

	assert_int_equal(tree_read(t, id, 0, buf, sizeof(buf) - 1, NULL, NULL, NULL), strlen(text));
	assert_string_equal(buf, text);
}

static int list_text(void *arg, const char *name, size_t len, const struct attr *attr,
		     uint64_t next)
{
	static const char letters[] = "-fdlcbpsw";

	strbuf_printf(arg, "%s:%c%s ", name, letters[attr->type], attr->is_opaque ? "!" : "");
	return 0;
}

static char *list(struct tree *t, uint64_t dir)
{
	struct strbuf text = {0};

	strbuf_puts(&text, "");
	assert_int_equal(tree_list(t, dir, 0, list_text, &text, NULL, NULL), 0);
	return strbuf_finish(&text);
}

static void all_types_are_shown_with_their_attributes(void **state)
{
	struct fixture *f = *state;
	scoped(free) char *names = NULL;
	scoped(strbuf_free) struct strbuf target = {0};
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {1234567890, 123456789}};

	mkdirat(f->fd, "d", 0750);
	write_at(f->fd, "f", "hello");
	assert_int_equal(fchmodat(f->fd, "f", 04751, 0), 0);
	utimensat(f->fd, "f", times, 0);
	assert_int_equal(symlinkat("../some where", f->fd, "l"), 0);
	assert_int_equal(mknodat(f->fd, "p", S_IFIFO | 0600, 0), 0);
	assert_int_equal(mknodat(f->fd, "s", S_IFSOCK | 0600, 0), 0);
	names = list(f->tree, TREE_ROOT);
	assert_string_equal(names, "d:d f:f l:l p:p s:s ");

	struct attr a = walk(f->tree, "/f");
	assert_int_equal(a.mode, 04751);
	assert_int_equal(a.size, 5);
	assert_int_equal(a.nlink, 1);
	assert_int_equal(a.uid, getuid());
	assert_int_equal(a.mtime_s, 1234567890);
	assert_int_equal(a.mtime_ns, 123456789);
	assert_true(a.is_live);
	expect_text(f->tree, a.id, "hello");
	a = walk(f->tree, "/l");
	assert_int_equal(a.size, strlen("../some where"));
	assert_int_equal(tree_readlink(f->tree, a.id, &target, NULL), 0);
	assert_string_equal(target.data, "../some where");
	assert_int_equal(tree_read(f->tree, walk(f->tree, "/p").id, 0, &a, 1, NULL, NULL, NULL),
			 -EINVAL);
	assert_int_equal(tree_read(f->tree, walk(f->tree, "/d").id, 0, &a, 1, NULL, NULL, NULL),
			 -EISDIR);
	assert_int_equal(tree_readlink(f->tree, walk(f->tree, "/d").id, &target, NULL), -EINVAL);
}

static void devices_keep_their_numbers(void **state)
{
	struct fixture *f = *state;

	if (mknodat(f->fd, "c", S_IFCHR | 0600, makedev(300, 70000)) < 0)
		skip(); /* not root */
	assert_int_equal(mknodat(f->fd, "b", S_IFBLK | 0600, makedev(8, 1)), 0);
	struct attr c = walk(f->tree, "/c"), b = walk(f->tree, "/b");
	assert_int_equal(c.type, NODE_CHAR);
	assert_int_equal(c.dev_major, 300);
	assert_int_equal(c.dev_minor, 70000);
	assert_int_equal(b.type, NODE_BLOCK);
}

static void ids_stay_and_hard_links_share_one(void **state)
{
	struct fixture *f = *state;

	mkdirat(f->fd, "d", 0755);
	write_at(f->fd, "f", "one");
	assert_int_equal(linkat(f->fd, "f", f->fd, "d/g", 0), 0);
	struct attr a = walk(f->tree, "/f"), b = walk(f->tree, "/d/g");
	assert_int_equal(a.id, b.id);
	assert_int_equal(a.nlink, 2);
	assert_int_equal(walk(f->tree, "/f").id, a.id);
	for (int i = 0; i < 200; i++) {
		char name[16];

		snprintf(name, sizeof(name), "x%d", i);
		write_at(f->fd, name, name);
		assert_true(walk(f->tree, name).id != a.id);
	}
	assert_int_equal(walk(f->tree, "/d/g").id, a.id);
	/* The other name leads to it when the one seen last has gone. */
	assert_int_equal(unlinkat(f->fd, "d/g", 0), 0);
	assert_int_equal(tree_getattr(f->tree, a.id, &b, NULL, NULL), -ENOENT);
	walk(f->tree, "/f");
	expect_text(f->tree, a.id, "one");
}

static void a_replaced_file_is_not_served_under_the_old_id(void **state)
{
	struct fixture *f = *state;
	struct attr a, b;
	char c;

	write_at(f->fd, "f", "old");
	write_at(f->fd, "g", "new");
	a = walk(f->tree, "/f");
	assert_int_equal(renameat(f->fd, "g", f->fd, "f"), 0);
	assert_int_equal(tree_getattr(f->tree, a.id, &b, NULL, NULL), -ESTALE);
	assert_int_equal(tree_read(f->tree, a.id, 0, &c, 1, NULL, NULL, NULL), -ESTALE);
	b = walk(f->tree, "/f");
	assert_true(a.id != b.id);
	expect_text(f->tree, b.id, "new");
}

static void a_folder_swapped_for_a_link_leads_nowhere(void **state)
{
	struct fixture *f = *state;
	struct attr a, dir;

	mkdirat(f->fd, "d", 0755);
	write_at(f->fd, "d/passwd", "inside");
	dir = walk(f->tree, "/d");
	a = walk(f->tree, "/d/passwd");
	assert_int_equal(renameat(f->fd, "d", f->fd, "moved"), 0);
	assert_int_equal(symlinkat("/etc", f->fd, "d"), 0);
	assert_int_equal(tree_getattr(f->tree, a.id, &a, NULL, NULL), -ESTALE);
	assert_int_equal(tree_lookup(f->tree, dir.id, "passwd", 6, &a, NULL, NULL), -ESTALE);
	assert_int_equal(walk(f->tree, "/d").type, NODE_SYMLINK);
}

static int stop_after_two(void *arg, const char *name, size_t len, const struct attr *attr,
			  uint64_t next)
{
	uint64_t *cookie = arg;

	*cookie = next;
	return next == 2;
}

static void a_listing_goes_on_where_it_was_although_names_change(void **state)
{
	struct fixture *f = *state;
	scoped(strbuf_free) struct strbuf rest = {0};
	uint64_t cookie;

	for (const char *p = "abcdef"; *p; p++)
		write_at(f->fd, (char[]){*p, '\0'}, "");
	assert_int_equal(tree_list(f->tree, TREE_ROOT, 0, stop_after_two, &cookie, NULL, NULL), 1);
	assert_int_equal(unlinkat(f->fd, "a", 0), 0);
	assert_int_equal(unlinkat(f->fd, "d", 0), 0);
	write_at(f->fd, "aa", "");
	assert_int_equal(tree_list(f->tree, TREE_ROOT, cookie, list_text, &rest, NULL, NULL), 0);
	assert_string_equal(rest.data, "c:f e:f f:f ");
}

static int xattr_text(void *arg, const char *name, const void *value, size_t len)
{
	if (str_starts(name, "user."))
		strbuf_printf(arg, "%s=%.*s ", name, (int)len, (const char *)value);
	return 0;
}

static void xattrs_are_read_and_links_are_not_followed_for_them(void **state)
{
	struct fixture *f = *state;
	scoped(strbuf_free) struct strbuf text = {0};
	char path[128];

	write_at(f->fd, "f", "");
	assert_int_equal(symlinkat("f", f->fd, "l"), 0);
	snprintf(path, sizeof(path), "%s/f", f->dir);
	if (setxattr(path, "user.a", "1\0002", 3, 0) < 0)
		skip(); /* a file system without */
	assert_int_equal(setxattr(path, "user.b", "", 0, 0), 0);
	assert_int_equal(setxattr(path, "user.overlay.opaque", "y", 1, 0), 0);
	strbuf_puts(&text, "");
	assert_int_equal(tree_xattrs(f->tree, walk(f->tree, "/l").id, xattr_text, &text, NULL), 0);
	assert_string_equal(text.data, "");
	assert_int_equal(tree_xattrs(f->tree, walk(f->tree, "/f").id, xattr_text, &text, NULL), 0);
	assert_true(strstr(text.data, "user.a=1"));
	assert_true(strstr(text.data, "user.b= "));
	assert_false(strstr(text.data, "overlay"));
}

static void holes_are_found_and_the_file_itself_is_given(void **state)
{
	struct fixture *f = *state;
	uint64_t data, end;
	struct stat a, b;
	int fd = openat(f->fd, "s", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_int_equal(pwrite_full(fd, "x", 1, 1 << 20), 0);
	assert_int_equal(ftruncate(fd, 3 << 20), 0);
	uint64_t id = walk(f->tree, "/s").id;
	assert_int_equal(tree_seek_data(f->tree, id, 0, &data, &end), 0);
	assert_true(data <= 1 << 20 && end > 1 << 20 && end <= 3 << 20);
	assert_int_equal(tree_seek_data(f->tree, id, 3 << 20, &data, &end), -ENODATA);
	fstat(fd, &a);
	close(fd);
	assert_int_equal(tree_open_flat(f->tree, id, false, &fd, NULL), 0);
	fstat(fd, &b);
	assert_int_equal(a.st_ino, b.st_ino);
	close(fd);
}

static void a_layer_folder_shows_marks_as_flags(void **state)
{
	struct fixture *f = *state;
	struct tree *layer;
	scoped(free) char *names = NULL;
	struct attr a;

	assert_int_equal(dirtree_new(&layer, f->dir, true, NULL), 0);
	mkdirat(f->fd, "opq", 0755);
	write_at(f->fd, "opq/.wh..wh..opq", "");
	mkdirat(f->fd, "plain", 0755);
	mkdirat(f->fd, "again", 0755);
	write_at(f->fd, ".wh.again", "");
	write_at(f->fd, ".wh.gone", "");
	write_at(f->fd, "file", "");
	write_at(f->fd, ".wh.file", "");
	write_at(f->fd, ".wh..wh.plnk", "");
	names = list(layer, TREE_ROOT);
	assert_string_equal(names, "again:d! file:f gone:w opq:d! plain:d ");
	assert_int_equal(tree_lookup(layer, TREE_ROOT, "gone", 4, &a, NULL, NULL), 0);
	assert_int_equal(a.type, NODE_WHITEOUT);
	assert_int_equal(tree_lookup(layer, TREE_ROOT, ".wh.gone", 8, &a, NULL, NULL), -ENOENT);
	assert_int_equal(tree_lookup(layer, TREE_ROOT, "opq", 3, &a, NULL, NULL), 0);
	assert_true(a.is_opaque);
	assert_int_equal(tree_getattr(layer, a.id, &a, NULL, NULL), 0);
	assert_true(a.is_opaque);
	/* Not as a layer they are files like others. */
	assert_int_equal(walk(f->tree, "/.wh.gone").type, NODE_FILE);
	assert_false(walk(f->tree, "/opq").is_opaque);
	tree_unref(layer);
}

static void overlayfs_own_marks_are_understood(void **state)
{
	struct fixture *f = *state;
	struct tree *layer;
	char path[128];

	mkdirat(f->fd, "d", 0755);
	snprintf(path, sizeof(path), "%s/d", f->dir);
	if (mknodat(f->fd, "w", S_IFCHR, makedev(0, 0)) < 0 ||
	    setxattr(path, "trusted.overlay.opaque", "y", 1, 0) < 0)
		skip(); /* not root */
	assert_int_equal(dirtree_new(&layer, f->dir, true, NULL), 0);
	scoped(free) char *names = list(layer, TREE_ROOT);
	assert_string_equal(names, "d:d! w:w ");
	tree_unref(layer);
}

static void very_deep_folders_are_reached(void **state)
{
	struct fixture *f = *state;
	scoped(strbuf_free) struct strbuf path = {0};
	char name[201];
	int at = dup(f->fd);

	memset(name, 'n', 200);
	name[200] = '\0';
	for (int i = 0; i < 40; i++) { /* twice what one path can hold */
		assert_int_equal(mkdirat(at, name, 0755), 0);
		int next = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		close(at);
		at = next;
		strbuf_printf(&path, "/%s", name);
	}
	write_at(at, "end", "reached");
	close(at);
	strbuf_puts(&path, "/end");
	expect_text(f->tree, walk(f->tree, path.data).id, "reached");
}

static void ten_thousand_of_them_hold_no_descriptors(void **state)
{
	struct fixture *f = *state;
	static struct tree *trees[10000];
	struct rlimit old, few = {64, 64};

	write_at(f->fd, "f", "x");
	getrlimit(RLIMIT_NOFILE, &old);
	few.rlim_max = old.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	for (size_t i = 0; i < countof(trees); i++) {
		assert_int_equal(dirtree_new(&trees[i], f->dir, false, NULL), 0);
		expect_text(trees[i], walk(trees[i], "f").id, "x");
	}
	for (size_t i = 0; i < countof(trees); i++)
		tree_unref(trees[i]);
	setrlimit(RLIMIT_NOFILE, &old);
}

static void what_is_no_folder_is_refused(void **state)
{
	struct fixture *f = *state;
	struct tree *t;
	char path[128];

	write_at(f->fd, "f", "");
	snprintf(path, sizeof(path), "%s/f", f->dir);
	assert_int_equal(dirtree_new(&t, path, false, NULL), -ENOTDIR);
	snprintf(path, sizeof(path), "%s/none", f->dir);
	assert_int_equal(dirtree_new(&t, path, false, NULL), -ENOENT);
}

int main(void)
{
#define test(name) cmocka_unit_test_setup_teardown(name, make, drop)
	const struct CMUnitTest tests[] = {
		test(all_types_are_shown_with_their_attributes),
		test(devices_keep_their_numbers),
		test(ids_stay_and_hard_links_share_one),
		test(a_replaced_file_is_not_served_under_the_old_id),
		test(a_folder_swapped_for_a_link_leads_nowhere),
		test(a_listing_goes_on_where_it_was_although_names_change),
		test(xattrs_are_read_and_links_are_not_followed_for_them),
		test(holes_are_found_and_the_file_itself_is_given),
		test(a_layer_folder_shows_marks_as_flags),
		test(overlayfs_own_marks_are_understood),
		test(very_deep_folders_are_reached),
		test(ten_thousand_of_them_hold_no_descriptors),
		test(what_is_no_folder_is_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
