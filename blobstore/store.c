/* SPDX-License-Identifier: Apache-2.0 */

/*
 * store: the folder on disk and its catalogue, shared by any number of processes.
 *
 *	oci-layout, index.json	the folder is an OCI layout: complete blobs can be read by others
 *	blobs/sha256/HEX	complete, verified blobs; appear by rename
 *	partial/KEY.data	sparse file of stored bytes, KEY.map its bits (blob.c)
 *	partial/HEX.stream	a pass over a whole layer under way, kept for a resume (pass.c)
 *	spans/KEY index/KEY	tables of spans, indexes of layers: derived, made again when lost
 *	frames/KEY		re-framed copies of what has no restart points
 *	content/HEX		flat files of plain content, of downloads, of single blobs
 *	trees/HEX		trees that were made here and do not fit the catalogue (merge/treefile.c)
 *	learned/HEX		what earlier mounts read
 *	git/HEX git/work/	clones and checkouts (solver/git_clone.c)
 *	locks/NAME leases/PID-N	flock()ed, so that they die with their holder
 *	tmp/			files before their rename; flock()ed while their writer lives
 *	catalogue.db		SQLite (WAL): names, space, refs
 *
 * HEX is a blob's digest; KEY is HEX, or HEX-<16 digits of the digest of the table of contents>
 * for what was derived from a table that only some manifest vouches for.
 */

#include "blobstore/blobstore-internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* A store of a newer version is refused; an older one gets the tables that it lacks. */
#define SCHEMA_VERSION 2

static const char SCHEMA[] =
	/* What takes space: kind is a folder of the store, see gc.c. */
	"CREATE TABLE IF NOT EXISTS content ("
	" kind TEXT NOT NULL, name TEXT NOT NULL, bytes INTEGER NOT NULL,"
	" last_used INTEGER NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;"
	"CREATE INDEX IF NOT EXISTS content_age ON content (last_used);"
	/* What a name last meant. */
	"CREATE TABLE IF NOT EXISTS names ("
	" name TEXT PRIMARY KEY, digest BLOB NOT NULL, size INTEGER NOT NULL,"
	" media_type TEXT NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID;"
	/* Results by their keys: solver/cache_db.c. */
	"CREATE TABLE IF NOT EXISTS cache_keys ("
	" id INTEGER PRIMARY KEY AUTOINCREMENT, record BLOB UNIQUE);"
	"CREATE TABLE IF NOT EXISTS cache_links ("
	" source INTEGER NOT NULL, input INTEGER NOT NULL, record BLOB NOT NULL,"
	" selector BLOB NOT NULL, target INTEGER NOT NULL,"
	" PRIMARY KEY (source, input, record, selector, target)) WITHOUT ROWID;"
	"CREATE INDEX IF NOT EXISTS cache_links_back ON cache_links (target);"
	"CREATE TABLE IF NOT EXISTS cache_results ("
	" key INTEGER NOT NULL, ref BLOB NOT NULL, created INTEGER NOT NULL,"
	" PRIMARY KEY (key, ref)) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS cache_ingredients ("
	" digest BLOB PRIMARY KEY, bytes BLOB NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS cache_content ("
	" ref BLOB NOT NULL, what BLOB NOT NULL, digest BLOB NOT NULL,"
	" PRIMARY KEY (ref, what)) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS cache_files ("
	" key BLOB PRIMARY KEY, digest BLOB NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID;"
	"CREATE INDEX IF NOT EXISTS cache_files_age ON cache_files (seen);"
	/* Refs that stay: solver/refdb.c. */
	"CREATE TABLE IF NOT EXISTS refs ("
	" number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
	" kind INTEGER NOT NULL, name TEXT NOT NULL, tree BLOB,"
	" config BLOB, config_size INTEGER, config_type TEXT, first_layer INTEGER,"
	" manifest BLOB, root BLOB, platform TEXT,"
	" created INTEGER NOT NULL, last_used INTEGER NOT NULL);"
	"CREATE TABLE IF NOT EXISTS ref_layers ("
	" ref INTEGER NOT NULL, position INTEGER NOT NULL, digest BLOB NOT NULL,"
	" size INTEGER NOT NULL, media_type TEXT NOT NULL, annotations BLOB, diff_id BLOB,"
	" PRIMARY KEY (ref, position)) WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS ref_parts ("
	" ref INTEGER NOT NULL, position INTEGER NOT NULL, child BLOB NOT NULL,"
	" trim TEXT, put TEXT, PRIMARY KEY (ref, position)) WITHOUT ROWID;"
	/* A made tree: its bytes, NULL when they are a file of trees/; the layers that it needs. */
	"CREATE TABLE IF NOT EXISTS made_trees ("
	" digest BLOB PRIMARY KEY, bytes BLOB);"
	"CREATE TABLE IF NOT EXISTS tree_layers ("
	" tree BLOB NOT NULL, layer BLOB NOT NULL, PRIMARY KEY (tree, layer)) WITHOUT ROWID;"
	/* Where blobs are, as remote_place writes it. */
	"CREATE TABLE IF NOT EXISTS places ("
	" digest BLOB NOT NULL, place TEXT NOT NULL, seen INTEGER NOT NULL,"
	" PRIMARY KEY (digest, place)) WITHOUT ROWID;";

#define WAIT_THREADS 16

int store_path(const struct store *store, char **out, const char *fmt, ...)
{
	char tail[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(tail, sizeof(tail), fmt, ap);
	va_end(ap);
	*out = str_printf("%s/%s", store->root, tail);
	return *out ? 0 : -ENOMEM;
}

/* ------------------------------------------------------------------ opening */

/* A file of tmp/ with a name of its own, locked. A sweeper may lock a new file before its writer
 * does: then it is gone, and another is made. */
static int open_tmp(const char *root, const char *name, char **path, int *fd, struct err *err)
{
	for (;;) {
		uint64_t id = 0;
		struct stat st;
		if (getrandom(&id, sizeof(id), 0) != sizeof(id))
			return err_errno(err, "getrandom");
		scoped(free) char *tmp =
			str_printf("%s/tmp/%016llx-%.80s", root, (unsigned long long)id, name);
		if (!tmp)
			return -ENOMEM;
		int opened = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
		if (opened < 0 && errno == EEXIST)
			continue;
		if (opened < 0 || flock(opened, LOCK_EX) < 0 || fstat(opened, &st) < 0) {
			int r = err_errno(err, "%s", tmp);
			close_fd(opened);
			return r;
		}
		if (st.st_nlink) {
			*path = take(tmp);
			*fd = opened;
			return 0;
		}
		close_fd(opened);
	}
}

static int write_once(const char *root, const char *name, const char *text, struct err *err)
{
	scoped(free) char *path = str_printf("%s/%s", root, name);
	scoped(free) char *tmp = NULL;
	scoped(close_fd) int fd = -1;
	struct stat st;

	if (!path)
		return -ENOMEM;
	if (stat(path, &st) == 0)
		return 0;
	int r = open_tmp(root, name, &tmp, &fd, err);
	if (r < 0)
		return r;
	/* Not by rename: what another process wrote meanwhile stays. */
	if (write_full(fd, text, strlen(text)) < 0 || (link(tmp, path) < 0 && errno != EEXIST))
		r = err_errno(err, "%s", path);
	unlink(tmp);
	return r;
}

static int make_folders(const char *root, struct err *err)
{
	static const char *const folders[] = {"blobs/sha256", "partial", "spans",   "index",
					      "frames",	      "content", "learned", "locks",
					      "leases",	      "trees",	 "tmp"};

	for (size_t i = 0; i < countof(folders); i++) {
		scoped(free) char *path = str_printf("%s/%s", root, folders[i]);
		int r = path ? make_dirs(path, 0755) : -ENOMEM;
		if (r < 0)
			return err_set(err, r, "store %s: %s", root, strerror(-r));
	}
	int r = write_once(root, "oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}", err);
	return r < 0 ? r
		     : write_once(root, "index.json", "{\"schemaVersion\":2,\"manifests\":[]}",
				  err);
}

/* Files whose writer is gone. Nothing is guessed: a living writer holds a lock (open_tmp). */
static void sweep_tmp(const struct store *store)
{
	scoped(free) char *path = NULL;
	DIR *dir = store_path(store, &path, "tmp") == 0 ? opendir(path) : NULL;

	if (!dir)
		return;
	for (struct dirent *d; (d = readdir(dir));) {
		scoped(close_fd) int fd = openat(dirfd(dir), d->d_name, O_RDONLY | O_CLOEXEC);
		struct stat st;
		if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
		    flock(fd, LOCK_EX | LOCK_NB) == 0)
			unlinkat(dirfd(dir), d->d_name, 0);
	}
	closedir(dir);
}

static int check_schema(struct store *store, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(store->db, "PRAGMA user_version", &s, err);
	if (r == 0)
		r = db_step(s, err);
	if (r < 0)
		return r;
	int64_t version = db_i64(s, 0);
	db_reset(s);
	if (version > SCHEMA_VERSION)
		return err_set(err, -EPROTO,
			       "store %s was written by a newer llbfs (schema %lld, known %d): use"
			       " that one, or another --root",
			       store->root, (long long)version, SCHEMA_VERSION);
	if (version == SCHEMA_VERSION)
		return 0;
	r = db_begin(store->db, err);
	if (r < 0)
		return r;
	r = db_exec(store->db, SCHEMA, err);
	if (r == 0)
		r = db_exec(store->db, "PRAGMA user_version = 2", err);
	return db_end(store->db, r, err);
}

static int open_catalogue(struct store *store, struct err *err)
{
	scoped(free) char *path = NULL;
	int r = store_path(store, &path, "catalogue.db");

	if (r == 0)
		r = db_open(&store->db, path, err);
	if (r == 0)
		r = check_schema(store, err);
	return r < 0 ? err_wrap(err, r, "store %s", store->root) : 0;
}

int store_open(struct store **out, const struct store_options *options, struct err *err)
{
	scoped(store_close) struct store *store = calloc(1, sizeof(*store));
	long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (!store)
		return -ENOMEM;
	int r = make_folders(options->root, err);
	if (r < 0)
		return r;
	store->root = realpath(options->root, NULL);
	if (!store->root)
		return err_errno(err, "store %s", options->root);
	store->net = options->net;
	store->deadline_ms = options->net ? net_deadline_ms(options->net) : 60000;
	r = open_catalogue(store, err);
	if (r == 0)
		r = gc_new(&store->gc, store, options->max_bytes, err);
	if (r == 0)
		r = cache_new(&store->cache,
			      options->memory_bytes ? options->memory_bytes : (size_t)64 << 20);
	if (r == 0)
		r = pool_new(&store->cpu, (unsigned)MAX(n_cpus, 1L), "llbfs-cpu");
	if (r == 0)
		r = pool_new(&store->wait, WAIT_THREADS, "llbfs-wait");
	if (r == 0)
		r = blob_table_new(&store->blobs);
	if (r < 0)
		return err && err->code ? r : err_set(err, r, "store: %s", strerror(-r));
	sweep_tmp(store);
	*out = take(store);
	return 0;
}

void store_close(struct store *store)
{
	if (!store)
		return;
	/* Nothing may wait for the network any more; then passes, which may still hand work to the CPU
	 * threads. */
	if (store->blobs)
		blob_table_stop(store->blobs);
	pool_free(store->wait);
	pool_free(store->cpu);
	blob_table_free(store->blobs);
	cache_free(store->cache);
	gc_free(store->gc);
	db_close(store->db);
	free(store->root);
	free(store);
}

const char *store_root(const struct store *store)
{
	return store->root;
}

struct net *store_net(const struct store *store)
{
	return store->net;
}

uint64_t store_deadline_ms(const struct store *store)
{
	return store->deadline_ms;
}

struct db *store_db(struct store *store)
{
	return store->db;
}

void store_usage(struct store *store, uint64_t *used, uint64_t *bound)
{
	gc_usage(store->gc, used, bound);
}

int store_submit(struct store *store, enum work_kind kind, void (*fn)(void *arg), void *arg)
{
	return pool_submit(kind == WORK_CPU ? store->cpu : store->wait, fn, arg);
}

/* ------------------------------------------------------------------ derived files */

int store_file_begin(struct store *store, const char *kind, const char *name,
		     struct store_file *out, struct err *err)
{
	*out = (struct store_file){.fd = -1};
	int r = store_path(store, &out->final_path, "%s/%s", kind, name);
	if (r == 0)
		r = open_tmp(store->root, name, &out->tmp_path, &out->fd, err);
	if (r < 0)
		store_file_abort(store, out);
	return r;
}

static const char *kind_of(const struct store *store, const char *path, char kind[16])
{
	const char *p = path + strlen(store->root) + 1;

	snprintf(kind, 16, "%.*s", (int)strcspn(p, "/"), p);
	return strrchr(path, '/') + 1;
}

int store_file_commit(struct store *store, struct store_file *file, struct err *err)
{
	char kind[16];
	const char *name = kind_of(store, file->final_path, kind);
	struct stat st;
	int r = 0;

	if (fstat(file->fd, &st) < 0)
		r = err_errno(err, "%s", file->tmp_path);
	if (r == 0)
		r = gc_reserve(store->gc, kind, name, (uint64_t)st.st_size, err);
	/* Without the sync a crash of the machine could leave the name without the bytes. */
	if (r == 0 && (fsync(file->fd) < 0 || rename(file->tmp_path, file->final_path) < 0))
		r = err_errno(err, "%s", file->final_path);
	if (r == 0)
		free(take(file->tmp_path)); /* the name is gone: abort must not unlink it */
	store_file_abort(store, file);
	return r;
}

void store_file_abort(struct store *store, struct store_file *file)
{
	if (!file)
		return;
	if (file->tmp_path)
		unlink(file->tmp_path);
	close_fd(file->fd);
	free(file->tmp_path);
	free(file->final_path);
	*file = (struct store_file){.fd = -1};
}

int store_file_open(struct store *store, const char *kind, const char *name, int *fd)
{
	scoped(free) char *path = NULL;
	int r = store_path(store, &path, "%s/%s", kind, name);

	if (r < 0)
		return r;
	*fd = open(path, O_RDONLY | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

int store_file_remove(struct store *store, const char *kind, const char *name)
{
	scoped(free) char *path = NULL;
	int r = store_path(store, &path, "%s/%s", kind, name);

	if (r == 0 && unlink(path) < 0 && errno != ENOENT)
		r = -errno;
	if (r == 0)
		gc_settle(store->gc, kind, name, 0);
	return r;
}

/* ------------------------------------------------------------------ locks */

#define LOCK_POLL_MS 20

static int open_lock(struct store *store, const char *name, int *fd, struct err *err)
{
	scoped(free) char *path = NULL;
	int r = store_path(store, &path, "locks/%s", name);

	if (r < 0)
		return r;
	*fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	return *fd < 0 ? err_errno(err, "%s", path) : 0;
}

static int try_file(int fd, uint64_t key)
{
	return flock(fd, LOCK_EX | LOCK_NB);
}

static int try_key(int fd, uint64_t key)
{
	struct flock lock = {.l_type = F_WRLCK,
			     .l_whence = SEEK_SET,
			     .l_start = (off_t)(key >> 2),
			     .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &lock);
}

/* Locks have no timeout that threads could use: asks again until the time is over. */
static int lock_within(struct store *store, const char *name, uint64_t wait_ms,
		       int (*try)(int fd, uint64_t key), uint64_t key, int *fd, struct err *err)
{
	uint64_t end = now_ns() + wait_ms * NS_PER_MS;
	scoped(close_fd) int opened = -1;
	int r = open_lock(store, name, &opened, err);

	if (r < 0)
		return r;
	while (try(opened, key) < 0) {
		if (errno != EWOULDBLOCK && errno != EACCES && errno != EINTR)
			return err_errno(err, "lock %s", name);
		if (now_ns() >= end)
			return err_set(err, -EAGAIN, "lock %s is held by another process", name);
		poll(NULL, 0, LOCK_POLL_MS);
	}
	*fd = opened;
	opened = -1;
	return 0;
}

int store_lock(struct store *store, const char *name, uint64_t wait_ms, int *fd, struct err *err)
{
	return lock_within(store, name, wait_ms, try_file, 0, fd, err);
}

int store_lock_key(struct store *store, const char *name, uint64_t key, uint64_t wait_ms, int *fd,
		   struct err *err)
{
	return lock_within(store, name, wait_ms, try_key, key, fd, err);
}

/* ------------------------------------------------------------------ small blobs */

int store_put_blob(struct store *store, const void *bytes, size_t n, struct digest *out,
		   struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	struct store_file file;
	int fd;

	digest_bytes(out, bytes, n);
	digest_hex(out, hex);
	if (store_file_open(store, "blobs/sha256", hex, &fd) == 0) {
		close_fd(fd);
		return 0;
	}
	int r = gc_reserve(store->gc, "blobs", hex, n, err);
	if (r == 0)
		r = store_file_begin(store, "blobs/sha256", hex, &file, err);
	if (r < 0)
		return r;
	r = write_full(file.fd, bytes, n);
	if (r == 0 && (fsync(file.fd) < 0 || rename(file.tmp_path, file.final_path) < 0))
		r = -errno;
	if (r < 0)
		err_set(err, r, "%s: %s", file.final_path, strerror(-r));
	else
		free(take(file.tmp_path));
	store_file_abort(store, &file);
	return r;
}

int store_get_blob(struct store *store, const struct digest *digest, size_t max,
		   struct strbuf *body, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path = NULL;
	scoped(strbuf_free) struct strbuf bytes = {0};
	struct digest have;

	int r = store_path(store, &path, "blobs/sha256/%s", digest_hex(digest, hex));
	if (r == 0)
		r = read_file(AT_FDCWD, path, max, &bytes);
	if (r < 0)
		return err_set(err, r, "blob sha256:%s: %s", hex, strerror(-r));
	digest_bytes(&have, bytes.data ? bytes.data : "", bytes.len);
	if (!digest_equal(&have, digest)) {
		/* A damaged disk: what is not what its name says must not stay. */
		log_warn("blob sha256:%s in the store is damaged: removed", hex);
		unlink(path);
		gc_settle(store->gc, "blobs", hex, 0);
		return err_set(err, -ENOENT, "blob sha256:%s: not here", hex);
	}
	strbuf_add(body, bytes.data, bytes.len);
	return body->failed ? -ENOMEM : 0;
}

/* ------------------------------------------------------------------ names */

static void put_json_text(struct strbuf *out, const char *text)
{
	strbuf_putc(out, '"');
	for (; *text; text++)
		if (*text == '"' || *text == '\\' || (unsigned char)*text < ' ')
			strbuf_printf(out, "\\u%04x", (unsigned)*text);
		else
			strbuf_putc(out, *text);
	strbuf_putc(out, '"');
}

static int print_index(struct db *db, struct strbuf *out, struct err *err)
{
	struct db_stmt *s;
	struct digest digest;
	char text[DIGEST_TEXT_MAX];
	int r = db_prepare(db,
			   "SELECT name, digest, size, media_type FROM names"
			   " WHERE media_type <> '' ORDER BY name",
			   &s, err);

	strbuf_puts(out, "{\"schemaVersion\":2,\"manifests\":[");
	for (int n = 0; r == 0 && (r = db_step(s, err)) == 1; n++, r = 0) {
		size_t len;
		const void *bytes = db_blob(s, 1, &len);
		memcpy(digest.bytes, bytes, MIN(len, sizeof(digest.bytes)));
		strbuf_puts(out, n ? ",{\"mediaType\":" : "{\"mediaType\":");
		put_json_text(out, db_text(s, 3));
		strbuf_printf(out, ",\"digest\":\"%s\",\"size\":%lld,\"annotations\":{",
			      digest_text(&digest, text), (long long)db_i64(s, 2));
		strbuf_puts(out, "\"org.opencontainers.image.ref.name\":");
		put_json_text(out, db_text(s, 0));
		strbuf_puts(out, "}}");
	}
	strbuf_puts(out, "]}");
	return out->failed ? -ENOMEM : r;
}

/* index.json follows the table of names; inside the transaction, so that the last one to change a
 * name is also the last to write. */
static int write_index(struct store *store, struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	struct store_file file;
	int r = print_index(store->db, &json, err);

	if (r == 0)
		r = store_file_begin(store, ".", "index.json", &file, err);
	if (r < 0)
		return r;
	r = write_full(file.fd, json.data, json.len);
	if (r == 0 && rename(file.tmp_path, file.final_path) < 0)
		r = -errno;
	if (r < 0)
		err_set(err, r, "%s: %s", file.final_path, strerror(-r));
	else
		free(take(file.tmp_path));
	store_file_abort(store, &file);
	return r;
}

static int remember_locked(struct store *store, const char *name, const struct desc *manifest,
			   struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(store->db,
			   "INSERT INTO names (name, digest, size, media_type, seen)"
			   " VALUES (?, ?, ?, ?, unixepoch())"
			   " ON CONFLICT (name) DO UPDATE SET digest = excluded.digest,"
			   " size = excluded.size, media_type = excluded.media_type,"
			   " seen = excluded.seen",
			   &s, err);
	if (r < 0)
		return r;
	db_bind_text(s, 1, name);
	db_bind_blob(s, 2, manifest->digest.bytes, sizeof(manifest->digest.bytes));
	db_bind_i64(s, 3, (int64_t)manifest->size);
	db_bind_text(s, 4, manifest->media_type ? manifest->media_type : "");
	r = db_step(s, err);
	return r < 0 ? r : write_index(store, err);
}

int store_remember_name(struct store *store, const char *name, const struct desc *manifest,
			struct err *err)
{
	struct digest known;

	/* A tag that still means the same is the ordinary case, and costs no write. */
	if (store_recall_name(store, name, &known) == 0 && digest_equal(&known, &manifest->digest))
		return 0;
	db_lock(store->db);
	int r = db_begin(store->db, err);
	if (r == 0)
		r = db_end(store->db, remember_locked(store, name, manifest, err), err);
	db_unlock(store->db);
	return r;
}

int store_recall_name(struct store *store, const char *name, struct digest *out)
{
	struct db_stmt *s;

	db_lock(store->db);
	int r = db_prepare(store->db, "SELECT digest FROM names WHERE name = ?", &s, NULL);
	if (r == 0) {
		db_bind_text(s, 1, name);
		r = db_step(s, NULL);
	}
	if (r == 1) {
		size_t n;
		const void *bytes = db_blob(s, 0, &n);
		r = n == sizeof(out->bytes) ? 0 : -EBADMSG;
		if (r == 0)
			memcpy(out->bytes, bytes, n);
		db_reset(s);
	} else if (r == 0) {
		r = -ENOENT;
	}
	db_unlock(store->db);
	return r;
}
