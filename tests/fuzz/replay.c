/* SPDX-License-Identifier: Apache-2.0 */

/*
 * replay: what a fuzz target is linked with when not with libFuzzer. Runs every file given, and
 * every file of a folder given, through the target; a crash is the only failure.
 */

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "blobstore/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (64u << 20)

static int replay_file(const char *path)
{
	scoped(strbuf_free) struct strbuf file = {0};
	int r = read_file(AT_FDCWD, path, INPUT_MAX, &file);

	if (r < 0) {
		fprintf(stderr, "%s: %s\n", path, strerror(-r));
		return 1;
	}
	/* A copy of exactly its size, so that a sanitizer sees reads beyond the end. */
	scoped(free) uint8_t *copy = malloc(MAX(file.len, (size_t)1));
	if (!copy)
		return 1;
	if (file.len)
		memcpy(copy, file.data, file.len);
	LLVMFuzzerTestOneInput(copy, file.len);
	return 0;
}

static int replay_folder(const char *path, DIR *dir)
{
	int failed = 0, n = 0;

	for (struct dirent *d; (d = readdir(dir));) {
		scoped(free) char *sub = str_printf("%s/%s", path, d->d_name);
		struct stat st;
		if (!sub || stat(sub, &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		failed |= replay_file(sub);
		n++;
	}
	closedir(dir);
	if (n == 0)
		fprintf(stderr, "%s: no corpus\n", path);
	return failed || n == 0;
}

int main(int argc, char **argv)
{
	int failed = 0;

	log_max = LOG_ERROR; /* bad input is what this is about */
	for (int i = 1; i < argc; i++) {
		DIR *dir = opendir(argv[i]);
		failed |= dir ? replay_folder(argv[i], dir) : replay_file(argv[i]);
	}
	return failed;
}
