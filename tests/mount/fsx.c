/* SPDX-License-Identifier: Apache-2.0 */

/*
 * fsx: random operations on one file, each checked against a copy in memory.
 *
 *	fsx FILE SEED COUNT
 *
 * Reads and writes by call and by map, truncation both ways, holes, zeroed ranges, copies within
 * the file, SEEK_DATA, and opening anew. The file may exist; what it holds is read first. Says on
 * stderr what differed, and after which operation.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX 1500000u

static struct {
	const char *path;
	int fd;
	uint64_t state;
	uint8_t model[FILE_MAX], buf[FILE_MAX];
	size_t size;
	long step;
	const char *what;
} x;

static uint64_t next_random(void)
{
	x.state ^= x.state << 13;
	x.state ^= x.state >> 7;
	x.state ^= x.state << 17;
	return x.state * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

static _Noreturn void die(const char *why)
{
	fprintf(stderr, "fsx: step %ld (%s): %s: %s\n", x.step, x.what, why, strerror(errno));
	exit(1);
}

/* A range within @limit, often at the edges of pages and granules. */
static void pick(size_t limit, size_t *off, size_t *len)
{
	static const size_t edges[] = {4096, 65536};

	*off = next_random() % limit;
	*len = next_random() % 3 ? next_random() % 5000 : next_random() % 200000;
	if (next_random() % 4 == 0)
		*off -= *off % edges[next_random() % 2];
	if (next_random() % 4 == 0)
		*len = (*len / 4096 + 1) * 4096;
	if (*len > limit - *off)
		*len = limit - *off;
	if (*len == 0)
		*len = 1;
}

/* The file has become longer, with zeros. */
static void grow(size_t end)
{
	if (end <= x.size)
		return;
	memset(x.model + x.size, 0, end - x.size);
	x.size = end;
}

static void fill(uint8_t *to, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = (uint8_t)(next_random() | 1);
}

static void check(const uint8_t *got, size_t off, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (got[i] == x.model[off + i])
			continue;
		errno = 0;
		fprintf(stderr, "fsx: byte %zu is %02x, not %02x (range %zu+%zu, size %zu)\n",
			off + i, got[i], x.model[off + i], off, n, x.size);
		die("differs");
	}
}

static void do_read(size_t off, size_t len)
{
	if (!x.size)
		return;
	off %= x.size;
	ssize_t want = (ssize_t)(len < x.size - off ? len : x.size - off);
	if (pread(x.fd, x.buf, len, (off_t)off) != want)
		die("short read");
	check(x.buf, off, (size_t)want);
}

static void do_write(size_t off, size_t len)
{
	grow(off + len);
	fill(x.model + off, len);
	if (pwrite(x.fd, x.model + off, len, (off_t)off) != (ssize_t)len)
		die("write");
}

static void do_mapped(size_t off, size_t len, int writes)
{
	if (!x.size)
		return;
	off %= x.size;
	if (len > x.size - off)
		len = x.size - off;
	uint8_t *map = mmap(NULL, x.size, PROT_READ | PROT_WRITE, MAP_SHARED, x.fd, 0);
	if (map == MAP_FAILED)
		die("mmap");
	check(map + off, off, len);
	if (writes) {
		fill(x.model + off, len);
		memcpy(map + off, x.model + off, len);
		if (next_random() % 2 && msync(map, x.size, MS_SYNC) < 0)
			die("msync");
	}
	munmap(map, x.size);
}

static void do_truncate(size_t size)
{
	if (ftruncate(x.fd, (off_t)size) < 0)
		die("ftruncate");
	grow(size);
	x.size = size;
}

static void do_erase(int mode, size_t off, size_t len)
{
	if (fallocate(x.fd, mode, (off_t)off, (off_t)len) < 0) {
		if (errno == EOPNOTSUPP)
			return;
		die("fallocate");
	}
	if (!(mode & FALLOC_FL_KEEP_SIZE))
		grow(off + len);
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) && off < x.size)
		memset(x.model + off, 0, len < x.size - off ? len : x.size - off);
}

static void do_copy(size_t off, size_t len)
{
	size_t to = next_random() % (FILE_MAX - len);
	loff_t in = (loff_t)off, out = (loff_t)to;

	if (off + len > x.size || (to < off + len && off < to + len))
		return;
	for (size_t left = len; left;) {
		ssize_t n = copy_file_range(x.fd, &in, x.fd, &out, left, 0);
		if (n <= 0)
			die("copy_file_range");
		left -= (size_t)n;
	}
	grow(to + len);
	memcpy(x.model + to, x.model + off, len);
}

/* Nothing but zeros lies before what SEEK_DATA finds. */
static void do_seek(size_t off)
{
	if (off >= x.size)
		return;
	off_t at = lseek(x.fd, (off_t)off, SEEK_DATA);
	if (at < 0 && errno != ENXIO)
		die("SEEK_DATA");
	size_t end = at < 0 ? x.size : (size_t)at;
	for (size_t i = off; i < end; i++)
		if (x.model[i])
			die("data before SEEK_DATA");
}

static void do_reopen(void)
{
	struct stat st;

	if (next_random() % 2 && fsync(x.fd) < 0)
		die("fsync");
	close(x.fd);
	x.fd = open(x.path, O_RDWR | O_CREAT, 0644);
	if (x.fd < 0 || fstat(x.fd, &st) < 0)
		die("open");
	if ((size_t)st.st_size != x.size)
		die("size");
}

static void step(void)
{
	static const char *const names[] = {"read",  "write", "map read", "map write", "truncate",
					    "punch", "zero",  "copy",	  "seek",      "reopen",
					    "write", "read",  "allocate"};
	unsigned kind = (unsigned)(next_random() % (sizeof(names) / sizeof(*names)));
	size_t off, len;

	pick(FILE_MAX, &off, &len);
	x.what = names[kind];
	switch (kind) {
	case 0:
	case 11:
		do_read(off, len);
		break;
	case 1:
	case 10:
		do_write(off, len);
		break;
	case 2:
	case 3:
		do_mapped(off, len, kind == 3);
		break;
	case 4:
		if (next_random() % 3 == 0)
			do_truncate(off);
		break;
	case 5:
		do_erase(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
		break;
	case 6:
		do_erase(FALLOC_FL_ZERO_RANGE, off, len);
		break;
	case 7:
		do_copy(off, len);
		break;
	case 8:
		do_seek(off);
		break;
	case 9:
		do_reopen();
		break;
	default:
		do_erase(next_random() % 2 ? FALLOC_FL_KEEP_SIZE : 0, off, len);
	}
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	x.path = argv[1];
	x.state = strtoull(argv[2], NULL, 10) * 2 + 0x9e3779b97f4a7c15;
	x.what = "open";
	x.fd = open(x.path, O_RDWR | O_CREAT, 0644);
	if (x.fd < 0)
		die("open");
	struct stat st;
	if (fstat(x.fd, &st) < 0 ||
	    (st.st_size > (off_t)FILE_MAX && ftruncate(x.fd, (off_t)FILE_MAX) < 0))
		die("too long");
	ssize_t n = pread(x.fd, x.model, FILE_MAX, 0);
	if (n < 0)
		die("read");
	x.size = (size_t)n;
	long count = strtol(argv[3], NULL, 10);
	for (x.step = 1; x.step <= count; x.step++)
		step();
	x.what = "end";
	if (pread(x.fd, x.buf, FILE_MAX, 0) != (ssize_t)x.size)
		die("size");
	check(x.buf, 0, x.size);
	return 0;
}
