/* SPDX-License-Identifier: Apache-2.0 */

/*
 * work: the workloads of the benchmark, each a loop of system calls and nothing else, so that what
 * is timed is the file system. Prints seconds and how much was done.
 *
 *	work walk DIR		readdir and lstat of everything
 *	work small DIR		open, read to the end, close of every file below 1 MiB
 *	work all DIR		the same of every file
 *	work seq FILE		read in pieces of 1 MiB
 *	work mmap FILE		map, touch each page
 */

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];
static uint64_t n_items, n_bytes;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void read_at(int dir, const char *name, int64_t size)
{
	int fd = openat(dir, name, O_RDONLY);
	int64_t total = 0;

	if (fd < 0)
		die(name);
	for (ssize_t n; total < size; total += n) {
		n = read(fd, buffer, sizeof(buffer));
		if (n < 0)
			die(name);
		if (n == 0)
			break;
	}
	if (total != size)
		die("a file is shorter than it says");
	n_bytes += (uint64_t)total;
	close(fd);
}

/* Depth-first with a stack of names; sizes above @max_read are not read. */
static void walk(const char *path, int64_t max_read)
{
	DIR *dir = opendir(path);
	char **below = NULL;
	size_t n = 0;

	if (!dir)
		die(path);
	for (struct dirent *e; (e = readdir(dir));) {
		struct stat st;
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			die(e->d_name);
		n_items++;
		if (S_ISREG(st.st_mode) && st.st_size < max_read)
			read_at(dirfd(dir), e->d_name, st.st_size);
		if (!S_ISDIR(st.st_mode))
			continue;
		below = realloc(below, (n + 1) * sizeof(*below));
		if (asprintf(&below[n++], "%s/%s", path, e->d_name) < 0)
			die("memory");
	}
	closedir(dir);
	for (size_t i = 0; i < n; i++) {
		walk(below[i], max_read);
		free(below[i]);
	}
	free(below);
}

static void map_all(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat st;
	volatile unsigned sum = 0;

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	const unsigned char *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die(path);
	for (int64_t i = 0; i < st.st_size; i += 4096)
		sum += p[i];
	n_bytes = (uint64_t)st.st_size;
	close(fd);
}

int main(int argc, char **argv)
{
	struct timespec a, b;
	struct stat st;

	if (argc != 3)
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &a);
	if (strcmp(argv[1], "walk") == 0)
		walk(argv[2], 0);
	else if (strcmp(argv[1], "small") == 0)
		walk(argv[2], 1 << 20);
	else if (strcmp(argv[1], "all") == 0)
		walk(argv[2], INT64_MAX);
	else if (strcmp(argv[1], "mmap") == 0)
		map_all(argv[2]);
	else if (strcmp(argv[1], "seq") == 0 && stat(argv[2], &st) == 0)
		read_at(AT_FDCWD, argv[2], st.st_size);
	else
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%.6f %llu %llu\n",
	       (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9,
	       (unsigned long long)n_items, (unsigned long long)n_bytes);
	return 0;
}
