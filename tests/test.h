/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What unit tests share: cmocka in the order it wants, a folder of their own, a store in it, a wait for a read. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "blobstore/blobstore.h"

#include <ftw.h>
#include <pthread.h>
#include <unistd.h>

static inline char *test_dir(void)
{
	char *dir = strdup("/tmp/llbfs-test-XXXXXX");

	assert_non_null(mkdtemp(dir));
	return dir;
}

static inline int test_unlink(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static inline void test_dir_remove(char *dir)
{
	nftw(dir, test_unlink, 16, FTW_DEPTH | FTW_PHYS);
	free(dir);
}

static inline struct store *test_store(const char *root, uint64_t max_bytes)
{
	struct store_options options = {.root = root, .max_bytes = max_bytes};
	struct store *store = NULL;
	struct err err = {0};
	int r = store_open(&store, &options, &err);

	if (r < 0)
		fail_msg("store_open: %s", err_text(&err, r));
	return store;
}

/* Bytes that compress, are not periodic, and are the same in each run. */
static inline void test_fill(uint8_t *bytes, size_t n, uint64_t seed)
{
	uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

	for (size_t i = 0; i < n; i++) {
		if (i % 7 == 0) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		bytes[i] = (uint8_t)(x >> (i % 5)) & 0x3f;
	}
}

/* Makes a read that may be pending into a blocking one: .done is its callback. */
struct test_wait {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool is_done;
	int64_t result;
	struct err err;
};
#define TEST_WAIT                                                                                  \
	((struct test_wait){.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER})

static inline void test_wait_done(void *arg, int64_t result, const struct err *err)
{
	struct test_wait *w = arg;

	pthread_mutex_lock(&w->lock);
	w->is_done = true;
	w->result = result;
	if (err)
		w->err = *err;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

/* What the call returned, or what it ended with when that was -EINPROGRESS. */
static inline int64_t test_wait_for(struct test_wait *w, int64_t r)
{
	if (r != -EINPROGRESS)
		return r;
	pthread_mutex_lock(&w->lock);
	while (!w->is_done)
		pthread_cond_wait(&w->cond, &w->lock);
	pthread_mutex_unlock(&w->lock);
	return w->result;
}
