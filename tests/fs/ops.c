/* SPDX-License-Identifier: Apache-2.0 */

#include "mounted.h"

#include <dirent.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

extern char **environ;

static struct tree *memtree(void)
{
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	return t;
}

static void shows_types_modes_owners_and_times(void **state)
{
	static const struct {
		const char *path;
		struct attr attr;
		mode_t mode;
	} cases[] = {
		{"file", {.type = NODE_FILE, .mode = 04755, .uid = 1, .gid = 2}, S_IFREG | 04755},
		{"dir", {.type = NODE_DIR, .mode = 01777, .uid = 70000, .gid = 5}, S_IFDIR | 01777},
		{"link", {.type = NODE_SYMLINK, .mode = 0777}, S_IFLNK | 0777},
		{"char",
		 {.type = NODE_CHAR, .mode = 0600, .dev_major = 5, .dev_minor = 300},
		 S_IFCHR | 0600},
		{"block",
		 {.type = NODE_BLOCK, .mode = 0660, .dev_major = 259, .dev_minor = 70000},
		 S_IFBLK | 0660},
		{"fifo", {.type = NODE_FIFO, .mode = 0644}, S_IFIFO | 0644},
	};
	struct tree *t = memtree();
	struct stat st;
	char target[16];

	for (size_t i = 0; i < countof(cases); i++) {
		struct attr a = cases[i].attr;
		a.mtime_s = -5;
		a.mtime_ns = 123456789;
		assert_int_equal(memtree_add(t, cases[i].path, &a, "12345", 5), 0);
	}
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	for (size_t i = 0; i < countof(cases); i++) {
		const struct attr *a = &cases[i].attr;
		assert_int_equal(lstat(in(m, cases[i].path), &st), 0);
		assert_int_equal(st.st_mode, cases[i].mode);
		assert_int_equal(st.st_uid, a->uid);
		assert_int_equal(st.st_gid, a->gid);
		assert_int_equal(st.st_mtim.tv_sec, -5);
		assert_int_equal(st.st_mtim.tv_nsec, 123456789);
		assert_int_equal(st.st_rdev, makedev(a->dev_major, a->dev_minor));
	}
	assert_int_equal(lstat(in(m, "file"), &st), 0);
	assert_int_equal(st.st_size, 5);
	assert_int_equal(st.st_blocks, 1);
	assert_int_equal(readlink(in(m, "link"), target, sizeof(target)), 5);
	assert_memory_equal(target, "12345", 5);
	mounted_stop(m);
	tree_unref(t);
}

static void shows_everything_as_owned_by_one_user_when_asked(void **state)
{
	struct tree *t = memtree();
	struct stat st;

	add_file(t, "a", "x", 1);
	struct mounted *m = mounted_start(
		t, (struct mount_options){.has_uid = true, .uid = 7, .has_gid = true, .gid = 8});
	assert_int_equal(stat(in(m, "a"), &st), 0);
	assert_int_equal(st.st_uid, 7);
	assert_int_equal(st.st_gid, 8);
	mounted_stop(m);
	tree_unref(t);
}

static void shows_hard_links_as_one_inode(void **state)
{
	struct tree *t = memtree();
	struct stat a, b;

	add_file(t, "a", "x", 1);
	assert_int_equal(memtree_link(t, "d/b", "a"), 0);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	assert_int_equal(stat(in(m, "a"), &a), 0);
	assert_int_equal(stat(in(m, "d/b"), &b), 0);
	assert_int_equal(a.st_ino, b.st_ino);
	assert_int_equal(a.st_nlink, 2);
	mounted_stop(m);
	tree_unref(t);
}

static void lists_large_folders_with_dots_and_inode_numbers(void **state)
{
	struct tree *t = memtree();
	struct stat root, st;
	char name[64];
	struct dirent *e;
	size_t n = 0;
	long middle = 0;

	for (int i = 0; i < 3000; i++) {
		snprintf(name, sizeof(name), "d/a-rather-long-name-of-a-file-%05d", i);
		add_file(t, name, "x", 1);
	}
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	assert_int_equal(stat(m->dir, &root), 0);
	assert_int_equal(stat(in(m, "d"), &st), 0);
	DIR *d = opendir(in(m, "d"));
	for (int round = 0; round < 2; round++, rewinddir(d)) {
		for (n = 0; (e = readdir(d)); n++) {
			if (n == 0) {
				assert_string_equal(e->d_name, ".");
				assert_int_equal(e->d_ino, st.st_ino);
			} else if (n == 1) {
				assert_string_equal(e->d_name, "..");
				assert_int_equal(e->d_ino, root.st_ino);
			} else {
				snprintf(name, sizeof(name), "a-rather-long-name-of-a-file-%05zu",
					 n - 2);
				assert_string_equal(e->d_name, name);
				assert_int_equal(e->d_type, DT_REG);
			}
			if (n == 1500)
				middle = telldir(d);
		}
		assert_int_equal(n, 3002);
	}
	seekdir(d, middle);
	assert_string_equal(readdir(d)->d_name, "a-rather-long-name-of-a-file-01499");
	closedir(d);
	mounted_stop(m);
	tree_unref(t);
}

static void asks_once_for_each_name_there_or_not(void **state)
{
	struct tree *t = memtree();
	struct stat st;

	add_file(t, "a", "x", 1);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	assert_int_equal(stat(in(m, "a"), &st), 0);
	assert_int_equal(stat(in(m, "b"), &st), -1);
	assert_int_equal(errno, ENOENT);
	uint64_t before = status_of(m).n_requests;
	for (int i = 0; i < 10; i++) {
		assert_int_equal(stat(in(m, "a"), &st), 0);
		assert_int_equal(stat(in(m, "b"), &st), -1);
	}
	assert_int_equal(status_of(m).n_requests, before);
	mounted_stop(m);
	tree_unref(t);
}

static void keeps_nothing_of_a_live_tree(void **state)
{
	struct tree *below = memtree();
	struct stat st;
	char buf[8];

	add_file(below, "a", "x", 1);
	struct slow *slow = slow_new(below);
	slow->tree.is_live = true;
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){.data = DATA_NOOPEN});
	assert_int_equal(status_of(m).data, DATA_OPEN);
	assert_int_equal(stat(in(m, "a"), &st), 0);
	assert_int_equal(stat(in(m, "b"), &st), -1);
	uint64_t before = status_of(m).n_requests;
	assert_int_equal(stat(in(m, "a"), &st), 0);
	assert_int_equal(stat(in(m, "b"), &st), -1);
	assert_true(status_of(m).n_requests >= before + 2);
	for (int i = 1; i < 3; i++) {
		int fd = open(in(m, "a"), O_RDONLY);
		assert_int_equal(read(fd, buf, sizeof(buf)), 1);
		close(fd);
		assert_int_equal(status_of(m).n_reads, i);
	}
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void reads_whole_files_and_parts(void **state)
{
	static uint8_t data[3 << 20], got[3 << 20];
	struct tree *t = memtree();

	test_fill(data, sizeof(data), 1);
	add_file(t, "a", data, sizeof(data) - 5);
	add_file(t, "empty", "", 0);
	struct mounted *m = mounted_start(t, (struct mount_options){.data = DATA_NOOPEN});
	int fd = open(in(m, "a"), O_RDONLY);
	assert_int_equal(pread_full(fd, got, sizeof(data) - 5, 0), 0);
	assert_memory_equal(got, data, sizeof(data) - 5);
	assert_int_equal(pread(fd, got, 100, sizeof(data) - 15), 10);
	assert_memory_equal(got, data + sizeof(data) - 15, 10);
	assert_int_equal(pread(fd, got, 100, sizeof(data)), 0);
	uint8_t *map = mmap(NULL, sizeof(data) - 5, PROT_READ, MAP_PRIVATE, fd, 0);
	assert_true(map != MAP_FAILED);
	assert_memory_equal(map, data, sizeof(data) - 5);
	munmap(map, sizeof(data) - 5);
	close(fd);
	fd = open(in(m, "empty"), O_RDONLY);
	assert_int_equal(read(fd, got, 10), 0);
	close(fd);
	mounted_stop(m);
	tree_unref(t);
}

static void runs_a_program_from_the_mount(void **state)
{
	struct attr attr = {.type = NODE_FILE, .mode = 0755};
	scoped(strbuf_free) struct strbuf program = {0};
	struct tree *t = memtree();
	char *argv[] = {(char *)"true", NULL};
	pid_t pid;
	int wstatus;

	assert_int_equal(read_file(AT_FDCWD, "/bin/true", 1 << 20, &program), 0);
	assert_int_equal(memtree_add(t, "bin/true", &attr, program.data, program.len), 0);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	assert_int_equal(posix_spawn(&pid, in(m, "bin/true"), NULL, NULL, argv, environ), 0);
	assert_int_equal(waitpid(pid, &wstatus, 0), pid);
	assert_int_equal(wstatus, 0);
	mounted_stop(m);
	tree_unref(t);
}

static void gives_all_xattrs(void **state)
{
	static const uint8_t capability[20] = {1, 0, 0, 2};
	struct tree *t = memtree();
	char big[4000], buf[8192];

	memset(big, 'v', sizeof(big));
	add_file(t, "a", "x", 1);
	add_file(t, "none", "x", 1);
	assert_int_equal(memtree_xattr(t, "a", "user.big", big, sizeof(big)), 0);
	assert_int_equal(memtree_xattr(t, "a", "user.empty", "", 0), 0);
	assert_int_equal(memtree_xattr(t, "a", "security.capability", capability, 20), 0);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	const char *a = in(m, "a");
	assert_int_equal(listxattr(a, NULL, 0), 9 + 11 + 20);
	assert_int_equal(listxattr(a, buf, 10), -1);
	assert_int_equal(errno, ERANGE);
	assert_int_equal(listxattr(a, buf, sizeof(buf)), 9 + 11 + 20);
	assert_int_equal(getxattr(a, "user.big", NULL, 0), 4000);
	assert_int_equal(getxattr(a, "user.big", buf, 3999), -1);
	assert_int_equal(errno, ERANGE);
	assert_int_equal(getxattr(a, "user.big", buf, sizeof(buf)), 4000);
	assert_memory_equal(buf, big, 4000);
	assert_int_equal(getxattr(a, "user.empty", buf, sizeof(buf)), 0);
	assert_int_equal(getxattr(a, "security.capability", buf, sizeof(buf)), 20);
	assert_int_equal(getxattr(a, "user.none", buf, sizeof(buf)), -1);
	assert_int_equal(errno, ENODATA);
	assert_int_equal(listxattr(in(m, "none"), buf, sizeof(buf)), 0);
	mounted_stop(m);
	tree_unref(t);
}

static void is_read_only(void **state)
{
	struct statvfs fs;
	struct tree *t = memtree();

	add_file(t, "a", "x", 1);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	assert_int_equal(open(in(m, "a"), O_WRONLY), -1);
	assert_int_equal(errno, EROFS);
	assert_int_equal(mkdir(in(m, "d"), 0755), -1);
	assert_int_equal(errno, EROFS);
	assert_int_equal(statvfs(m->dir, &fs), 0);
	assert_int_equal(fs.f_namemax, 255);
	assert_int_equal(fs.f_flag & (ST_RDONLY | ST_NOSUID | ST_NODEV),
			 ST_RDONLY | ST_NOSUID | ST_NODEV);
	mounted_stop(m);
	tree_unref(t);
}

static void finds_data_and_holes(void **state)
{
	static const struct {
		int whence;
		off_t from, to;
	} cases[] = {
		{SEEK_DATA, 0, 4096},	 {SEEK_HOLE, 0, 0},	    {SEEK_DATA, 5000, 5000},
		{SEEK_HOLE, 5000, 8192}, {SEEK_DATA, 8192, 65536},  {SEEK_HOLE, 65536, 69632},
		{SEEK_DATA, 69632, -1},	 {SEEK_HOLE, 99999, 99999}, {SEEK_HOLE, 100000, -1},
		{SEEK_DATA, 100000, -1},
	};
	struct tree *below = memtree();
	scoped(free) char *zeros = calloc(1, 100000);

	add_file(below, "a", zeros, 100000);
	struct slow *slow = slow_new(below);
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){0});
	int fd = open(in(m, "a"), O_RDONLY);
	for (size_t i = 0; i < countof(cases); i++) {
		assert_int_equal(lseek(fd, cases[i].from, cases[i].whence), cases[i].to);
		if (cases[i].to < 0)
			assert_int_equal(errno, ENXIO);
	}
	close(fd);
	mounted_stop(m);
	tree_unref(&slow->tree);
}

static void takes_a_tree_that_knows_no_holes_as_data(void **state)
{
	struct tree *t = memtree();
	scoped(free) char *zeros = calloc(1, 10000);

	add_file(t, "a", zeros, 10000);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	int fd = open(in(m, "a"), O_RDONLY);
	assert_int_equal(lseek(fd, 100, SEEK_DATA), 100);
	assert_int_equal(lseek(fd, 100, SEEK_HOLE), 10000);
	close(fd);
	mounted_stop(m);
	tree_unref(t);
}

static void takes_long_and_odd_names(void **state)
{
	char longest[256], too_long[257];
	struct tree *t = memtree();
	struct stat st;

	memset(longest, 'n', 255);
	longest[255] = '\0';
	memset(too_long, 'n', 256);
	too_long[256] = '\0';
	add_file(t, longest, "x", 1);
	add_file(t, "new\nline", "x", 1);
	add_file(t, "\xff\xfe", "x", 1);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	assert_int_equal(stat(in(m, longest), &st), 0);
	assert_int_equal(stat(in(m, "new\nline"), &st), 0);
	assert_int_equal(stat(in(m, "\xff\xfe"), &st), 0);
	assert_int_equal(stat(in(m, too_long), &st), -1);
	assert_int_equal(errno, ENAMETOOLONG);
	mounted_stop(m);
	tree_unref(t);
}

static void brings_file_handles_back_to_life(void **state)
{
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.handle.handle_bytes = MAX_HANDLE_SZ};
	struct tree *t = memtree();
	int mount_id;
	char buf[4];

	add_file(t, "d/a", "xyz", 3);
	struct mounted *m = mounted_start(t, (struct mount_options){0});
	assert_int_equal(name_to_handle_at(AT_FDCWD, in(m, "d/a"), &u.handle, &mount_id, 0), 0);
	drop_names();
	int root = open(m->dir, O_RDONLY | O_DIRECTORY);
	int fd = open_by_handle_at(root, &u.handle, O_RDONLY);
	assert_true(fd >= 0);
	assert_int_equal(read(fd, buf, 4), 3);
	close(fd);
	close(root);
	mounted_stop(m);
	tree_unref(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shows_types_modes_owners_and_times),
		cmocka_unit_test(shows_everything_as_owned_by_one_user_when_asked),
		cmocka_unit_test(shows_hard_links_as_one_inode),
		cmocka_unit_test(lists_large_folders_with_dots_and_inode_numbers),
		cmocka_unit_test(asks_once_for_each_name_there_or_not),
		cmocka_unit_test(keeps_nothing_of_a_live_tree),
		cmocka_unit_test(reads_whole_files_and_parts),
		cmocka_unit_test(runs_a_program_from_the_mount),
		cmocka_unit_test(gives_all_xattrs),
		cmocka_unit_test(is_read_only),
		cmocka_unit_test(finds_data_and_holes),
		cmocka_unit_test(takes_a_tree_that_knows_no_holes_as_data),
		cmocka_unit_test(takes_long_and_odd_names),
		cmocka_unit_test(brings_file_handles_back_to_life),
	};

	return cannot_mount() ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
