/* SPDX-License-Identifier: Apache-2.0 */

#include "mounted.h"

#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { LARGE = 256 << 10 };

/* A tree with a large and a small file, the content of the large one as a file at @path. */
static struct slow *tree_with_flat(char *path)
{
	static uint8_t data[LARGE];
	struct tree *t;

	test_fill(data, sizeof(data), 7);
	strcpy(path, "/tmp/llbfs-flat-XXXXXX");
	int fd = mkstemp(path);
	assert_int_equal(write_full(fd, data, sizeof(data)), 0);
	close(fd);
	assert_int_equal(memtree_new(&t), 0);
	add_file(t, "large", data, sizeof(data));
	add_file(t, "small", data, 1000);
	return slow_new(t);
}

/* True when the file reads as it should through @fd. */
static bool reads_well(int fd, size_t size)
{
	static uint8_t want[LARGE], got[LARGE];

	test_fill(want, sizeof(want), 7);
	return fd >= 0 && pread_full(fd, got, size, 0) == 0 && memcmp(got, want, size) == 0;
}

static bool file_reads_well(const char *path, size_t size)
{
	int fd = open(path, O_RDONLY);
	bool is_well = reads_well(fd, size);

	close_fd(fd);
	return is_well;
}

static bool yes(void *arg)
{
	return true;
}

static bool no(void *arg)
{
	return false;
}

static void lets_the_kernel_read_large_files(void **state)
{
	char path[32];
	struct slow *slow = tree_with_flat(path);

	slow->flat = path;
	struct mounted *m =
		mounted_start(&slow->tree, (struct mount_options){.data = DATA_PASSTHROUGH});
	assert_int_equal(status_of(m).data, DATA_AUTO);
	assert_true(file_reads_well(in(m, "large"), LARGE));
	struct session_status st = status_of(m);
	assert_int_equal(st.data, DATA_PASSTHROUGH);
	assert_string_equal(st.data_reason, "asked for");
	assert_int_equal(st.n_reads, 0);
	assert_int_equal(st.n_passthrough, 1);
	assert_true(file_reads_well(in(m, "small"), 1000));
	st = status_of(m);
	assert_int_equal(st.n_passthrough, 1);
	assert_int_equal(st.n_reads, 1);
	/* the pages of a small file stay although it is opened anew */
	assert_true(file_reads_well(in(m, "small"), 1000));
	assert_int_equal(status_of(m).n_reads, 1);
	mounted_stop(m);
	tree_unref(&slow->tree);
	unlink(path);
}

static void maps_what_the_kernel_reads(void **state)
{
	static uint8_t want[LARGE];
	char path[32];
	struct slow *slow = tree_with_flat(path);

	test_fill(want, sizeof(want), 7);
	slow->flat = path;
	struct mounted *m =
		mounted_start(&slow->tree, (struct mount_options){.data = DATA_PASSTHROUGH});
	int fd = open(in(m, "large"), O_RDONLY);
	void *map = mmap(NULL, LARGE, PROT_READ, MAP_SHARED, fd, 0);
	assert_true(map != MAP_FAILED);
	close(fd);
	assert_memory_equal(map, want, LARGE);
	assert_true(file_reads_well(in(m, "large"), LARGE)); /* joins the mapping's open */
	munmap(map, LARGE);
	assert_int_equal(status_of(m).n_reads, 0);
	mounted_stop(m);
	tree_unref(&slow->tree);
	unlink(path);
}

/* Opened while it was not here, complete now, opened again: the kernel would refuse a second way. */
static void keeps_the_way_of_the_first_open(void **state)
{
	char path[32];
	struct slow *slow = tree_with_flat(path);
	struct mounted *m =
		mounted_start(&slow->tree, (struct mount_options){.data = DATA_PASSTHROUGH});
	int first = open(in(m, "large"), O_RDONLY);

	assert_true(reads_well(first, 10000));
	slow->flat = path;
	int second = open(in(m, "large"), O_RDONLY);
	assert_true(reads_well(second, LARGE));
	assert_true(reads_well(first, LARGE));
	assert_int_equal(status_of(m).n_passthrough, 0);
	close(first);
	close(second);
	/* The last release is on its way to the server; sooner or later an open passes. */
	for (int i = 0; i < 1000 && status_of(m).n_passthrough == 0; i++)
		assert_true(file_reads_well(in(m, "large"), LARGE));
	assert_true(status_of(m).n_passthrough > 0);

	/* And the other way round: passing, and gone from the store meanwhile. */
	first = open(in(m, "large"), O_RDONLY);
	slow->flat = NULL;
	second = open(in(m, "large"), O_RDONLY);
	assert_true(reads_well(first, LARGE));
	assert_true(reads_well(second, LARGE));
	close(first);
	close(second);
	mounted_stop(m);
	tree_unref(&slow->tree);
	unlink(path);
}

static void chooses_for_auto_at_the_first_open(void **state)
{
	static const struct {
		bool (*wants)(void *arg);
		enum data_mode data;
	} cases[] = {{NULL, DATA_NOOPEN}, {no, DATA_NOOPEN}, {yes, DATA_PASSTHROUGH}};
	char path[32];

	for (size_t i = 0; i < countof(cases); i++) {
		struct slow *slow = tree_with_flat(path);
		struct stat st;
		slow->flat = path;
		struct mounted *m = mounted_start(
			&slow->tree, (struct mount_options){.wants_passthrough = cases[i].wants});
		assert_int_equal(stat(in(m, "large"), &st), 0);
		assert_int_equal(status_of(m).data, DATA_AUTO);
		assert_true(file_reads_well(in(m, "large"), LARGE));
		assert_int_equal(status_of(m).data, cases[i].data);
		assert_true(status_of(m).data_reason[0]);
		mounted_stop(m);
		tree_unref(&slow->tree);
		unlink(path);
	}
}

static void opens_without_a_word_in_noopen_mode(void **state)
{
	char path[32];
	struct slow *slow = tree_with_flat(path);
	struct mounted *m = mounted_start(&slow->tree, (struct mount_options){.data = DATA_NOOPEN});

	assert_true(file_reads_well(in(m, "small"), 1000));
	uint64_t before = status_of(m).n_requests;
	for (int i = 0; i < 5; i++)
		assert_true(file_reads_well(in(m, "small"), 1000));
	assert_int_equal(status_of(m).n_requests, before);
	mounted_stop(m);
	tree_unref(&slow->tree);
	unlink(path);
}

/* Comes on the thread that serves, whose capabilities count when the kernel is given a file. */
static void drop_sys_admin(void *arg)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	syscall(SYS_capget, &header, data);
	data[0].effective &= ~(1u << CAP_SYS_ADMIN);
	syscall(SYS_capset, &header, data);
	atomic_store((atomic_bool *)arg, true);
}

static void falls_back_where_the_kernel_refuses(void **state)
{
	char path[32];
	struct slow *slow = tree_with_flat(path);
	atomic_bool is_dropped = false;

	slow->flat = path;
	struct mounted *m =
		mounted_start(&slow->tree, (struct mount_options){.data = DATA_PASSTHROUGH,
								  .on_ready = drop_sys_admin,
								  .arg = &is_dropped});
	while (!atomic_load(&is_dropped))
		sched_yield();
	assert_true(file_reads_well(in(m, "large"), LARGE));
	struct session_status st = status_of(m);
	assert_int_equal(st.data, DATA_NOOPEN);
	assert_non_null(strstr(st.data_reason, "CAP_SYS_ADMIN"));
	assert_int_equal(st.n_passthrough, 0);
	mounted_stop(m);
	tree_unref(&slow->tree);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lets_the_kernel_read_large_files),
		cmocka_unit_test(maps_what_the_kernel_reads),
		cmocka_unit_test(keeps_the_way_of_the_first_open),
		cmocka_unit_test(chooses_for_auto_at_the_first_open),
		cmocka_unit_test(opens_without_a_word_in_noopen_mode),
		cmocka_unit_test(falls_back_where_the_kernel_refuses),
	};

	return cannot_mount() ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
