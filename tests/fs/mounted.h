/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What mount tests share: a mount served by a thread of the test itself, so that the sanitizers see
 * both sides; and a tree that says "later" on demand.
 */

#include "tests/test.h"

#include "fs/fs-internal.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ------------------------------------------------------------------ a tree that says later */

struct held_read {
	uint64_t id, off;
	void *dst;
	size_t len;
	blob_done done;
	void *arg;
};

struct slow {
	struct tree tree;
	struct tree *below;
	/* set by the test while others run */
	const char *_Atomic flat; /* what open_flat opens, once it is set */
	atomic_bool holds_names;  /* lookups of names with an 'l' first say "later" */
	atomic_bool holds_reads;
	atomic_int read_error; /* of reads that are not held */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* guarded by lock */
	struct tree_wait *waits;
	vec(struct held_read) reads;
	size_t n_held;
	size_t n_getattrs;
};

static inline struct slow *slow_of(struct tree *t)
{
	return containerof(t, struct slow, tree);
}

static int slow_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			struct err *err)
{
	struct slow *s = slow_of(t);

	pthread_mutex_lock(&s->lock);
	s->n_getattrs++;
	pthread_mutex_unlock(&s->lock);
	int r = tree_getattr(s->below, id, out, wait, err);
	out->is_live = t->is_live;
	return r;
}

static int slow_lookup(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		       struct tree_wait *wait, struct err *err)
{
	struct slow *s = slow_of(t);

	pthread_mutex_lock(&s->lock);
	bool is_held = s->holds_names && name[0] == 'l';
	if (is_held) {
		wait->next = s->waits;
		s->waits = wait;
		s->n_held++;
		pthread_cond_broadcast(&s->changed);
	}
	pthread_mutex_unlock(&s->lock);
	if (is_held)
		return -EAGAIN;
	int r = tree_lookup(s->below, dir, name, len, out, wait, err);
	if (r == 0)
		out->is_live = t->is_live;
	return r;
}

static int slow_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		     struct tree_wait *wait, struct err *err)
{
	return tree_list(slow_of(t)->below, dir, from, fn, arg, wait, err);
}

static int slow_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
		       struct err *err)
{
	return tree_parent(slow_of(t)->below, dir, out, name, err);
}

static int slow_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	return tree_readlink(slow_of(t)->below, id, out, err);
}

static int slow_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	return tree_xattrs(slow_of(t)->below, id, fn, arg, err);
}

static int64_t slow_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			 blob_done done, void *arg, struct err *err)
{
	struct slow *s = slow_of(t);

	pthread_mutex_lock(&s->lock);
	bool is_held = s->holds_reads;
	int error = s->read_error;
	if (is_held) {
		*vec_push(&s->reads) = (struct held_read){id, off, dst, len, done, arg};
		s->n_held++;
		pthread_cond_broadcast(&s->changed);
	}
	pthread_mutex_unlock(&s->lock);
	if (is_held)
		return -EINPROGRESS;
	if (error)
		return err_set(err, error, "the wire was cut");
	return tree_read(s->below, id, off, dst, len, done, arg, err);
}

/* Files of this test have data in their second 4 KiB and from 64 KiB on; the end is a hole. */
static int slow_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	static const uint64_t ranges[][2] = {{4096, 8192}, {65536, 69632}};

	for (size_t i = 0; i < countof(ranges); i++) {
		if (off >= ranges[i][1])
			continue;
		*data = MAX(off, ranges[i][0]);
		*end = ranges[i][1];
		return 0;
	}
	return -ENODATA;
}

static int slow_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	const struct slow *s = slow_of(t);

	*fd = s->flat ? open(s->flat, O_RDONLY | O_CLOEXEC) : -1;
	return *fd < 0 ? -ENOENT : 0;
}

static void slow_free(struct tree *t)
{
	struct slow *s = slow_of(t);

	tree_unref(s->below);
	vec_free(&s->reads);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->changed);
	free(s);
}

static const struct tree_ops slow_ops = {
	.getattr = slow_getattr,
	.lookup = slow_lookup,
	.list = slow_list,
	.parent = slow_parent,
	.readlink = slow_readlink,
	.xattrs = slow_xattrs,
	.read = slow_read,
	.seek_data = slow_seek_data,
	.open_flat = slow_open_flat,
	.free = slow_free,
};

/* Takes @below. */
static inline struct slow *slow_new(struct tree *below)
{
	struct slow *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->tree = (struct tree){.ops = &slow_ops, .n_refs = 1, .n_leaves = 1};
	s->below = below;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	return s;
}

/* Waits until @n calls are held. */
static inline void slow_await(struct slow *s, size_t n)
{
	pthread_mutex_lock(&s->lock);
	while (s->n_held < n)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

/* Calls back for all that is held; reads get @error, or their bytes where it is 0. */
static inline void slow_release(struct slow *s, int error)
{
	pthread_mutex_lock(&s->lock);
	struct tree_wait *waits = take(s->waits);
	struct held_read *reads = take(s->reads.items);
	size_t n = s->reads.n;
	s->reads.n = s->reads.cap = s->n_held = 0;
	s->holds_names = s->holds_reads = false;
	pthread_mutex_unlock(&s->lock);

	while (waits) {
		struct tree_wait *wait = waits;
		waits = wait->next;
		wait->ready(wait);
	}
	for (size_t i = 0; i < n; i++) {
		struct held_read *h = &reads[i];
		struct err err = {0};
		int64_t r = error ? err_set(&err, error, "the wire was cut")
				  : tree_read(s->below, h->id, h->off, h->dst, h->len, NULL, NULL,
					      &err);
		h->done(h->arg, r, r < 0 ? &err : NULL);
	}
	free(reads);
}

/* ------------------------------------------------------------------ a mount */

struct mounted {
	char *dir;
	struct session *s;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int n_ready;
	int result; /* of session_run */
	bool is_running;
};

static void mounted_ready(void *arg)
{
	struct mounted *m = arg;

	pthread_mutex_lock(&m->lock);
	m->n_ready++;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

static void *mounted_main(void *arg)
{
	struct mounted *m = arg;

	m->result = session_run(m->s, NULL);
	return NULL;
}

/* Mounts @tree on a folder of its own and waits until it answers. */
static inline struct mounted *mounted_start(struct tree *tree, struct mount_options options)
{
	struct mounted *m = calloc(1, sizeof(*m));
	struct err err = {0};

	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->changed, NULL);
	m->dir = test_dir();
	options.mountpoint = m->dir;
	if (!options.on_ready) {
		options.on_ready = mounted_ready;
		options.arg = m;
	}
	int r = session_new(&m->s, tree, &options, &err);
	if (r < 0)
		fail_msg("session_new: %s", err_text(&err, r));
	assert_int_equal(pthread_create(&m->thread, NULL, mounted_main, m), 0);
	m->is_running = true;
	if (options.on_ready != mounted_ready)
		return m;
	pthread_mutex_lock(&m->lock);
	while (!m->n_ready)
		pthread_cond_wait(&m->changed, &m->lock);
	pthread_mutex_unlock(&m->lock);
	return m;
}

/* Unmounts from outside and waits for the end of session_run. */
static inline void mounted_end(struct mounted *m)
{
	if (!m->is_running)
		return;
	umount2(m->dir, MNT_DETACH);
	pthread_join(m->thread, NULL);
	m->is_running = false;
}

static inline void mounted_stop(struct mounted *m)
{
	mounted_end(m);
	session_free(m->s);
	rmdir(m->dir);
	free(m->dir);
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->changed);
	free(m);
}

/* A path in the mount, in one of four buffers used in turn. */
static inline const char *in(const struct mounted *m, const char *path)
{
	static _Thread_local char buf[4][PATH_MAX];
	static _Thread_local unsigned turn;

	turn = (turn + 1) % 4;
	snprintf(buf[turn], PATH_MAX, "%s/%s", m->dir, path);
	return buf[turn];
}

static inline struct session_status status_of(const struct mounted *m)
{
	struct session_status status;

	session_status(m->s, &status);
	return status;
}

/* Kernel caches of names and attributes are dropped, so that the next look asks the server. */
static inline void drop_names(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);

	assert_int_equal(write(fd, "2", 1), 1);
	close(fd);
}

/* ------------------------------------------------------------------ running them */

/* Where nothing can be mounted, says so and returns true. */
static inline bool cannot_mount(void)
{
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	if (fd >= 0 && geteuid() == 0)
		return false;
	printf("1..0 # SKIP needs root and /dev/fuse\n");
	return true;
}

static inline void add_file(struct tree *t, const char *path, const void *data, size_t n)
{
	struct attr attr = {.type = NODE_FILE, .mode = 0644, .mtime_s = 1700000000};

	assert_int_equal(memtree_add(t, path, &attr, data, n), 0);
}
