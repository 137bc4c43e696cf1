/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What sources of a single file have in common: downloads (source_http.c) and blobs
 * (source_blob.c).
 *
 * The bytes are flat content of the store, named by their digest; which one came under which name,
 * and what the server said to it, is a row of the catalogue. So another process finds it again, asks
 * whether it is still right, and moves nothing. A row whose content was evicted counts for nothing
 * and is written anew. The result is an edit of one file that points to the content: no byte is
 * copied, and a copy of it points there, too.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ the catalogue */

void fetched_deinit(struct fetched *f)
{
	free(f->etag);
	free(f->last_modified);
	free(f->disposition);
	*f = (struct fetched){0};
}

static int open_table(struct db *db, struct err *err)
{
	return db_exec(db,
		       "CREATE TABLE IF NOT EXISTS fetched ("
		       " key BLOB PRIMARY KEY, digest BLOB NOT NULL, size INTEGER NOT NULL,"
		       " etag TEXT NOT NULL, last_modified TEXT NOT NULL,"
		       " disposition TEXT NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID",
		       err);
}

/* An empty text is none. False: no memory. */
static bool copy_text(char **out, const char *text)
{
	*out = *text ? strdup(text) : NULL;
	return *out || !*text;
}

static int read_row(struct db_stmt *s, struct fetched *out, struct err *err)
{
	size_t n;
	const void *bytes = db_blob(s, 0, &n);
	if (n != sizeof(out->digest.bytes))
		return -ENOENT;
	memcpy(out->digest.bytes, bytes, n);
	out->size = (uint64_t)db_i64(s, 1);
	bool ok = copy_text(&out->etag, db_text(s, 2)) &&
		  copy_text(&out->last_modified, db_text(s, 3)) &&
		  copy_text(&out->disposition, db_text(s, 4));
	return ok ? 0 : no_memory(err);
}

static int recall_locked(struct db *db, const struct digest *key, struct fetched *out,
			 struct err *err)
{
	struct db_stmt *s;
	int r = open_table(db, err);
	if (r == 0)
		r = db_prepare(db,
			       "SELECT digest, size, etag, last_modified, disposition"
			       " FROM fetched WHERE key = ?",
			       &s, err);
	if (r < 0)
		return r;
	db_bind_blob(s, 1, key->bytes, sizeof(key->bytes));
	r = db_step(s, err);
	if (r != 1)
		return r < 0 ? r : -ENOENT;
	r = read_row(s, out, err);
	db_reset(s);
	return r;
}

int fetched_recall(struct solver *solver, const struct digest *key, struct fetched *out,
		   struct err *err)
{
	struct db *db = store_db(solver->options.store);
	db_lock(db);
	int r = recall_locked(db, key, out, err);
	db_unlock(db);
	if (r == 0)
		r = content_keep(solver->options.store, &out->digest, out->size, err);
	if (r < 0)
		fetched_deinit(out);
	return r;
}

static const char *or_empty(const char *text)
{
	return text ? text : "";
}

static int keep_locked(struct db *db, const struct digest *key, const struct fetched *f,
		       struct err *err)
{
	struct db_stmt *s;
	int r = open_table(db, err);
	if (r == 0)
		r = db_prepare(db,
			       "INSERT OR REPLACE INTO fetched"
			       " (key, digest, size, etag, last_modified, disposition, seen)"
			       " VALUES (?, ?, ?, ?, ?, ?, unixepoch())",
			       &s, err);
	if (r < 0)
		return r;
	db_bind_blob(s, 1, key->bytes, sizeof(key->bytes));
	db_bind_blob(s, 2, f->digest.bytes, sizeof(f->digest.bytes));
	db_bind_i64(s, 3, (int64_t)f->size);
	db_bind_text(s, 4, or_empty(f->etag));
	db_bind_text(s, 5, or_empty(f->last_modified));
	db_bind_text(s, 6, or_empty(f->disposition));
	return db_step(s, err);
}

int fetched_keep(struct solver *solver, const struct digest *key, const struct fetched *f,
		 struct err *err)
{
	struct db *db = store_db(solver->options.store);
	db_lock(db);
	int r = keep_locked(db, key, f, err);
	db_unlock(db);
	return MIN(r, 0);
}

/* ------------------------------------------------------------------ the result */

static int file_attr(struct attr *out, const struct vertex *v, const struct fetched *content,
		     int64_t mtime_s, struct err *err)
{
	int64_t perm, uid, gid;
	int r = source_number(&perm, v, "http.perm", err);
	if (r == 0)
		r = source_number(&uid, v, "http.uid", err);
	if (r == 0)
		r = source_number(&gid, v, "http.gid", err);
	if (r == 0)
		*out = (struct attr){.type = NODE_FILE,
				     .mode = perm ? (uint32_t)perm & 0777 : 0600,
				     .uid = (uint32_t)uid,
				     .gid = (uint32_t)gid,
				     .size = content->size,
				     .n_bytes_allocated = content->size,
				     .mtime_s = mtime_s};
	return r;
}

int source_file(struct ref **out, const struct vertex *v, struct solver *solver, const char *name,
		const struct fetched *content, int64_t mtime_s, struct err *err)
{
	scoped(tree_unref) struct tree *flat = NULL, *layer = NULL;
	scoped(edit_free) struct edit *edit = NULL;
	struct attr attr, was;
	uint64_t node;
	size_t len = strlen(name);
	if (len == 0 || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return err_set(err, -EINVAL, "\"%.80s\" is no name for a file", name);
	if (len > 255)
		return err_set(err, -ENAMETOOLONG, "a file name of %zu bytes", len);
	int r = file_attr(&attr, v, content, mtime_s, err);
	if (r < 0)
		return r;
	if (flattree_new(&flat, solver->options.store, &content->digest, content->size) < 0 ||
	    edit_new(&edit, NULL, &solver->now) < 0)
		return no_memory(err);
	const struct edit_what what = {
		.attr = &attr, .from = flat, .from_id = FLATTREE_FILE, .was = &was};
	r = tree_getattr(flat, FLATTREE_FILE, &was, NULL, err);
	if (r == 0)
		r = edit_make(edit, TREE_ROOT, name, len, &what, &node, err);
	if (r == 0)
		r = edit_seal(&layer, &edit, err);
	return r < 0 ? r : ref_made(out, v->op.source.identifier, layer, err);
}
