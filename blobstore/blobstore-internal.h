/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of blobstore share: decoders, worker threads, the parts of a store.
 */

#include "blobstore/blobstore.h"

#include <pthread.h>

/* ------------------------------------------------------------------ pool */

struct pool;
int pool_new(struct pool **out, unsigned n_threads, const char *name);
/* Lets what is queued finish, then joins. */
void pool_free(struct pool *pool);
/* Runs @fn(@arg) on a thread of the pool, in order of submission. Threads start when first needed. */
int pool_submit(struct pool *pool, void (*fn)(void *arg), void *arg);
