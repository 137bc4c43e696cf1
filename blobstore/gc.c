/* SPDX-License-Identifier: Apache-2.0 */

/*
 * gc: the space budget and leases; what may go, and in which order.
 *
 * Every file of content is a row (kind, name, bytes, last use) of the catalogue, written before the
 * bytes are, so that all processes together stay below the bound. Room is made by unlinking whole
 * files, least recently used first; nothing is truncated or punched, since another process may have
 * it mapped.
 *
 * A lease says "do not collect this blob". Each process has one lease file, locked with flock()
 * for as long as it lives, with one line of hex a blob. A file whose lock can be had belonged to a
 * process that is gone: it is removed by whoever finds it. A lease covers every file named after
 * the blob, its index and spans too. Flat copies of what layers have need none: who has one open
 * keeps its bytes even when its name is gone. Trees that were made here, and content that is nowhere
 * else, are leased by their digest (store_lease).
 */

#include "blobstore/blobstore-internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define HEX_LEN 64

struct gc {
	struct store *store;
	uint64_t bound;
	pthread_mutex_t lock;
	int lease_fd; /* guarded by lock; -1 until the first lease */
	char *lease_path;
};

int gc_new(struct gc **out, struct store *store, uint64_t max_bytes, struct err *err)
{
	struct gc *gc = calloc(1, sizeof(*gc));
	struct statvfs fs;

	if (!gc)
		return -ENOMEM;
	gc->store = store;
	gc->lease_fd = -1;
	gc->bound = max_bytes;
	pthread_mutex_init(&gc->lock, NULL);
	if (!gc->bound) {
		if (statvfs(store->root, &fs) < 0) {
			int r = err_errno(err, "%s", store->root);
			gc_free(gc);
			return r;
		}
		gc->bound = (uint64_t)fs.f_blocks * fs.f_frsize / 2;
	}
	*out = gc;
	return 0;
}

void gc_free(struct gc *gc)
{
	if (!gc)
		return;
	if (gc->lease_path)
		unlink(gc->lease_path);
	close_fd(gc->lease_fd);
	free(gc->lease_path);
	pthread_mutex_destroy(&gc->lock);
	free(gc);
}

/* ------------------------------------------------------------------ leases */

static int lease_begin(struct gc *gc, struct err *err)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	int r = store_path(gc->store, &gc->lease_path, "leases/%d-%lld%09ld", (int)getpid(),
			   (long long)now.tv_sec, now.tv_nsec);
	if (r < 0)
		return r;
	/* Locked before it has its name, so that nobody takes it for a dead one. */
	scoped(free) char *tmp = str_printf("%s.new", gc->lease_path);
	if (!tmp)
		return -ENOMEM;
	int fd = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0 || rename(tmp, gc->lease_path) < 0) {
		r = err_errno(err, "lease %s", tmp);
		close_fd(fd);
		return r;
	}
	gc->lease_fd = fd;
	return 0;
}

static int lease_write(struct gc *gc, const char *lines, size_t n, struct err *err)
{
	int r = 0;

	pthread_mutex_lock(&gc->lock);
	if (gc->lease_fd < 0)
		r = lease_begin(gc, err);
	if (r == 0) {
		r = write_full(gc->lease_fd, lines, n);
		if (r < 0)
			err_set(err, r, "lease: %s", strerror(-r));
	}
	pthread_mutex_unlock(&gc->lock);
	return r;
}

int gc_lease(struct gc *gc, const char *hex, struct err *err)
{
	char line[HEX_LEN + 2];

	snprintf(line, sizeof(line), "%.64s\n", hex);
	return lease_write(gc, line, strlen(line), err);
}

int store_lease(struct store *store, const struct digest *names, size_t n, struct err *err)
{
	scoped(strbuf_free) struct strbuf lines = {0};
	char hex[DIGEST_HEX_MAX];

	if (n == 0)
		return 0;
	for (size_t i = 0; i < n; i++)
		strbuf_printf(&lines, "%s\n", digest_hex(&names[i], hex));
	if (lines.failed)
		return err_set(err, -ENOMEM, "no memory");
	int r = lease_write(store->gc, lines.data, lines.len, err);
	if (r < 0)
		return r;
	/* Eviction reads the leases and unlinks in one transaction: one that has not seen these is
	 * over when we have had one, too. */
	db_lock(store->db);
	r = db_begin(store->db, err);
	if (r == 0)
		r = db_end(store->db, 0, err);
	db_unlock(store->db);
	return r;
}

/* Adds what one living process leases; removes the file of a dead one. */
static int read_lease(int dirfd, const char *name, struct strbuf *out)
{
	scoped(close_fd) int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (!str_ends(name, ".new") && flock(fd, LOCK_EX | LOCK_NB) == 0) {
		unlinkat(dirfd, name, 0);
		return 0;
	}
	return read_file(dirfd, name, 64u << 20, out);
}

static int compare_hex(const void *a, const void *b)
{
	return memcmp(a, b, HEX_LEN);
}

/* All leased blobs, as sorted lines of 65 bytes. */
static int read_leases(struct gc *gc, struct strbuf *out, struct err *err)
{
	scoped(free) char *path = NULL;
	int r = store_path(gc->store, &path, "leases");
	DIR *dir = r == 0 ? opendir(path) : NULL;

	if (!dir)
		return r < 0 ? r : err_errno(err, "%s", path);
	/* Our own lease is read by descriptor: to flock() it is a stranger's. */
	for (struct dirent *d; r == 0 && (d = readdir(dir));)
		if (d->d_name[0] != '.')
			r = read_lease(dirfd(dir), d->d_name, out);
	closedir(dir);
	if (r == 0 && out->len)
		qsort(out->data, out->len / (HEX_LEN + 1), HEX_LEN + 1, compare_hex);
	return r;
}

static bool is_leased(const struct strbuf *leases, const char *name)
{
	return strlen(name) >= HEX_LEN && leases->len &&
	       bsearch(name, leases->data, leases->len / (HEX_LEN + 1), HEX_LEN + 1, compare_hex);
}

/* ------------------------------------------------------------------ rows */

static int64_t query_i64(struct db *db, const char *sql, int64_t *out, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(db, sql, &s, err);

	if (r == 0)
		r = db_step(s, err);
	if (r == 1) {
		*out = db_i64(s, 0);
		db_reset(s);
		return 0;
	}
	return r < 0 ? r : -ENOENT;
}

static int used_bytes(struct db *db, uint64_t *out, struct err *err)
{
	int64_t n = 0;
	int r = (int)query_i64(db, "SELECT coalesce(sum(bytes), 0) FROM content", &n, err);

	*out = (uint64_t)MAX(n, (int64_t)0);
	return r;
}

static int row_bytes(struct db *db, const char *kind, const char *name, uint64_t *out,
		     struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(db, "SELECT bytes FROM content WHERE kind = ? AND name = ?", &s, err);

	*out = 0;
	if (r < 0)
		return r;
	db_bind_text(s, 1, kind);
	db_bind_text(s, 2, name);
	r = db_step(s, err);
	if (r == 1) {
		*out = (uint64_t)db_i64(s, 0);
		db_reset(s);
		r = 0;
	}
	return r;
}

static int row_set(struct db *db, const char *kind, const char *name, uint64_t bytes,
		   struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(db,
			   "INSERT INTO content (kind, name, bytes, last_used)"
			   " VALUES (?, ?, ?, unixepoch())"
			   " ON CONFLICT (kind, name) DO UPDATE"
			   " SET bytes = excluded.bytes, last_used = excluded.last_used",
			   &s, err);
	if (r < 0)
		return r;
	db_bind_text(s, 1, kind);
	db_bind_text(s, 2, name);
	db_bind_i64(s, 3, (int64_t)bytes);
	return db_step(s, err);
}

static int row_remove(struct db *db, const char *kind, const char *name, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(db, "DELETE FROM content WHERE kind = ? AND name = ?", &s, err);

	if (r < 0)
		return r;
	db_bind_text(s, 1, kind);
	db_bind_text(s, 2, name);
	return db_step(s, err);
}

/* ------------------------------------------------------------------ eviction */

static void unlink_content(struct gc *gc, const char *kind, const char *name)
{
	static const char *const partial[] = {".map", ".data", ".stream"};
	const char *root = gc->store->root;

	if (strcmp(kind, "partial") != 0) {
		scoped(free) char *path =
			str_printf("%s/%s%s/%s", root, kind,
				   strcmp(kind, "blobs") == 0 ? "/sha256" : "", name);
		if (path)
			unlink(path);
		return;
	}
	for (size_t i = 0; i < countof(partial); i++) {
		scoped(free) char *path = str_printf("%s/partial/%s%s", root, name, partial[i]);
		if (path)
			unlink(path);
	}
}

struct victim {
	char *kind, *name;
	uint64_t bytes;
};
typedef vec(struct victim) victim_list;

static void victims_free(victim_list *victims)
{
	for (size_t i = 0; i < victims->n; i++) {
		free(victims->items[i].kind);
		free(victims->items[i].name);
	}
	vec_free(victims);
}

/* Oldest first, until @need bytes would be free; small files (manifests, small indexes) last, since
 * they give little and are asked for by every mount. */
static int choose_victims(struct db *db, const struct strbuf *leases, uint64_t need,
			  victim_list *out, uint64_t *freed, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(db,
			   "SELECT kind, name, bytes FROM content WHERE bytes > 0"
			   " ORDER BY bytes < 262144, last_used, bytes DESC",
			   &s, err);
	if (r < 0)
		return r;
	*freed = 0;
	while (*freed < need && (r = db_step(s, err)) == 1) {
		if (is_leased(leases, db_text(s, 1)))
			continue;
		struct victim *v = vec_push(out);
		if (v) {
			v->kind = strdup(db_text(s, 0));
			v->name = strdup(db_text(s, 1));
			v->bytes = (uint64_t)db_i64(s, 2);
		}
		if (!v || !v->kind || !v->name) {
			db_reset(s);
			return -ENOMEM;
		}
		*freed += v->bytes;
	}
	db_reset(s);
	return r < 0 ? r : 0;
}

/* Inside a transaction. -ENOSPC and nothing changed when @need bytes cannot be freed. */
static int evict(struct gc *gc, uint64_t need, struct err *err)
{
	scoped(strbuf_free) struct strbuf leases = {0};
	victim_list victims = {0};
	uint64_t freed = 0;
	char size[16];

	int r = read_leases(gc, &leases, err);
	if (r == 0)
		r = choose_victims(gc->store->db, &leases, need, &victims, &freed, err);
	if (r == 0 && freed < need)
		r = err_set(err, -ENOSPC,
			    "the store %s is full (bound %s) and all of it is in use: unmount"
			    " something or raise --max-used-space",
			    gc->store->root, format_size(size, gc->bound));
	for (size_t i = 0; r == 0 && i < victims.n; i++) {
		const struct victim *v = &victims.items[i];
		r = row_remove(gc->store->db, v->kind, v->name, err);
		if (r == 0) {
			unlink_content(gc, v->kind, v->name);
			log_info("evicted kind=%s name=%.16s bytes=%llu", v->kind, v->name,
				 (unsigned long long)v->bytes);
		}
	}
	victims_free(&victims);
	return r;
}

static int reserve_locked(struct gc *gc, const char *kind, const char *name, uint64_t total,
			  struct err *err)
{
	struct db *db = gc->store->db;
	uint64_t have, used;

	int r = row_bytes(db, kind, name, &have, err);
	if (r < 0 || have >= total)
		return r;
	r = used_bytes(db, &used, err);
	if (r < 0)
		return r;
	uint64_t after = used - have + total;
	if (after > gc->bound) {
		r = evict(gc, after - gc->bound, err);
		if (r < 0)
			return r;
	}
	return row_set(db, kind, name, total, err);
}

int gc_reserve(struct gc *gc, const char *kind, const char *name, uint64_t total, struct err *err)
{
	struct db *db = gc->store->db;

	db_lock(db);
	int r = db_begin(db, err);
	if (r == 0)
		r = db_end(db, reserve_locked(gc, kind, name, total, err), err);
	db_unlock(db);
	return r;
}

void gc_settle(struct gc *gc, const char *kind, const char *name, uint64_t bytes)
{
	struct db *db = gc->store->db;
	struct err err = {0};

	db_lock(db);
	int r = bytes ? row_set(db, kind, name, bytes, &err) : row_remove(db, kind, name, &err);
	db_unlock(db);
	if (r < 0)
		log_warn("usage of %s/%.16s is not recorded: %s", kind, name, err_text(&err, r));
}

int gc_make_room(struct gc *gc, uint64_t bytes, struct err *err)
{
	struct db *db = gc->store->db;

	db_lock(db);
	int r = db_begin(db, err);
	if (r == 0)
		r = db_end(db, evict(gc, bytes, err), err);
	db_unlock(db);
	if (r == -ENOSPC)
		err_set(err, r, "the file system of %s is full", gc->store->root);
	return r;
}

void gc_usage(struct gc *gc, uint64_t *used, uint64_t *bound)
{
	struct db *db = gc->store->db;

	*used = 0;
	*bound = gc->bound;
	db_lock(db);
	used_bytes(db, used, NULL);
	db_unlock(db);
}
