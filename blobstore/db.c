/* SPDX-License-Identifier: Apache-2.0 */

/*
 * db: the little of sqlite that is used. The only user of sqlite3.
 *
 * One handle a process, one thread at a time (db_lock), statements kept by the address of their
 * text. Other processes use the same file: WAL, short transactions, a busy timeout.
 */

#include "blobstore/blobstore-internal.h"

#include <poll.h>
#include <sqlite3.h>

#define BUSY_TIMEOUT_MS 20000
#define BUSY_POLL_MS	10

struct db_stmt {
	struct db *db;
	sqlite3_stmt *stmt;
	const char *sql;
	int bind_error; /* of the first bind that failed; told by db_step */
};

struct db {
	sqlite3 *handle;
	pthread_mutex_t lock;	     /* recursive */
	vec(struct db_stmt *) stmts; /* guarded by lock */
	unsigned n_reading;	     /* guarded by lock: db_read_begin in db_read_begin */
};

static int db_error(struct db *db, int rc, struct err *err)
{
	int code = -EIO;

	switch (rc & 0xff) {
	case SQLITE_FULL:
		code = -ENOSPC;
		break;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		code = -EBUSY;
		break;
	case SQLITE_NOMEM:
		code = -ENOMEM;
		break;
	case SQLITE_READONLY:
	case SQLITE_PERM:
		code = -EACCES;
		break;
	case SQLITE_CANTOPEN:
		code = -ENOENT;
		break;
	default:
		break;
	}
	return err_set(err, code, "catalogue: %s", db->handle ? sqlite3_errmsg(db->handle) : "");
}

/* A new file becomes WAL once. Processes that do it at the same time may each hold what the other
 * needs; sqlite then says busy at once, without its timeout. */
static int become_wal(sqlite3 *handle)
{
	uint64_t end = now_ns() + BUSY_TIMEOUT_MS * NS_PER_MS;

	for (;;) {
		int rc = sqlite3_exec(handle, "PRAGMA journal_mode=WAL", NULL, NULL, NULL);
		if ((rc & 0xff) != SQLITE_BUSY || now_ns() >= end)
			return rc;
		poll(NULL, 0, BUSY_POLL_MS);
	}
}

int db_open(struct db **out, const char *path, struct err *err)
{
	struct db *db = calloc(1, sizeof(*db));

	if (!db)
		return -ENOMEM;
	pthread_mutexattr_t attr;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&db->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
	int rc = sqlite3_open_v2(path, &db->handle, flags, NULL);
	if (rc == SQLITE_OK)
		rc = sqlite3_busy_timeout(db->handle, BUSY_TIMEOUT_MS);
	if (rc == SQLITE_OK)
		rc = become_wal(db->handle);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db->handle,
				  "PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;", NULL, NULL,
				  NULL);
	if (rc != SQLITE_OK) {
		int code = db_error(db, rc, err);
		db_close(db);
		return code;
	}
	*out = db;
	return 0;
}

void db_close(struct db *db)
{
	if (!db)
		return;
	for (size_t i = 0; i < db->stmts.n; i++) {
		sqlite3_finalize(db->stmts.items[i]->stmt);
		free(db->stmts.items[i]);
	}
	vec_free(&db->stmts);
	sqlite3_close(db->handle);
	pthread_mutex_destroy(&db->lock);
	free(db);
}

void db_lock(struct db *db)
{
	pthread_mutex_lock(&db->lock);
}

void db_unlock(struct db *db)
{
	pthread_mutex_unlock(&db->lock);
}

int db_exec(struct db *db, const char *sql, struct err *err)
{
	int rc = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);

	return rc == SQLITE_OK ? 0 : db_error(db, rc, err);
}

void db_read_begin(struct db *db)
{
	db_lock(db);
	/* Without it every statement has its own transaction, which is right, too. */
	if (db->n_reading++ == 0)
		db_exec(db, "BEGIN", NULL);
}

void db_read_end(struct db *db)
{
	if (--db->n_reading == 0)
		db_exec(db, "COMMIT", NULL);
	db_unlock(db);
}

int db_begin(struct db *db, struct err *err)
{
	/* What was read before may have been changed by others: a write begins anew. */
	if (db->n_reading)
		db_exec(db, "COMMIT", NULL);
	return db_exec(db, "BEGIN IMMEDIATE", err);
}

int db_end(struct db *db, int r, struct err *err)
{
	if (r == 0)
		r = db_exec(db, "COMMIT", err);
	if (r < 0)
		db_exec(db, "ROLLBACK", NULL);
	if (db->n_reading)
		db_exec(db, "BEGIN", NULL);
	return r;
}

int db_prepare(struct db *db, const char *sql, struct db_stmt **out, struct err *err)
{
	for (size_t i = 0; i < db->stmts.n; i++)
		if (db->stmts.items[i]->sql == sql) {
			*out = db->stmts.items[i];
			db_reset(*out);
			return 0;
		}
	scoped(free) struct db_stmt *s = calloc(1, sizeof(*s));
	struct db_stmt **slot = s ? vec_push(&db->stmts) : NULL;
	if (!slot)
		return -ENOMEM;
	int rc = sqlite3_prepare_v3(db->handle, sql, -1, SQLITE_PREPARE_PERSISTENT, &s->stmt, NULL);
	if (rc != SQLITE_OK) {
		db->stmts.n--;
		return db_error(db, rc, err);
	}
	s->db = db;
	s->sql = sql;
	*out = *slot = take(s);
	return 0;
}

static void note_bind(struct db_stmt *s, int rc)
{
	if (rc != SQLITE_OK && s->bind_error == SQLITE_OK)
		s->bind_error = rc;
}

void db_bind_text(struct db_stmt *s, int i, const char *text)
{
	note_bind(s, sqlite3_bind_text(s->stmt, i, text, -1, SQLITE_TRANSIENT));
}

void db_bind_blob(struct db_stmt *s, int i, const void *bytes, size_t n)
{
	note_bind(s, sqlite3_bind_blob64(s->stmt, i, bytes, n, SQLITE_TRANSIENT));
}

void db_bind_i64(struct db_stmt *s, int i, int64_t value)
{
	note_bind(s, sqlite3_bind_int64(s->stmt, i, value));
}

int db_step(struct db_stmt *s, struct err *err)
{
	int rc = s->bind_error ? s->bind_error : sqlite3_step(s->stmt);

	if (rc == SQLITE_ROW)
		return 1;
	int r = rc == SQLITE_DONE ? 0 : db_error(s->db, rc, err);
	db_reset(s);
	return r;
}

void db_reset(struct db_stmt *s)
{
	sqlite3_reset(s->stmt);
	sqlite3_clear_bindings(s->stmt);
	s->bind_error = SQLITE_OK;
}

const char *db_text(struct db_stmt *s, int col)
{
	const char *text = (const char *)sqlite3_column_text(s->stmt, col);

	return text ? text : "";
}

const void *db_blob(struct db_stmt *s, int col, size_t *n)
{
	const void *bytes = sqlite3_column_blob(s->stmt, col);

	*n = (size_t)sqlite3_column_bytes(s->stmt, col);
	return bytes;
}

int64_t db_i64(struct db_stmt *s, int col)
{
	return sqlite3_column_int64(s->stmt, col);
}
