/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The store's own cache of results: keys, the links between them, and which refs they lead to.
 *
 *	cache_keys	a key; record: its digest when it is a root, NULL when links lead to it
 *	cache_links	(key of an input, number of the input, record, selector) -> key
 *	cache_results	key -> refs (refdb.c), with the time when they were made
 *	cache_ingredients  digest -> what was hashed: tells later why two keys differ
 *	cache_content	(ref, selectors) -> digest of content that was hashed once
 *	cache_files	a host file as it is -> its part of such a digest (merge/treehash.c)
 *
 * A result is kept in one transaction with all ways to it. A key that all inputs lead to already is
 * used again, so that a second way to the same place (another definition of an input with the same
 * content) becomes one more link. Keys are never numbered twice: another process may hold one that
 * was pruned here.
 */

#include <stdio.h>
#include <time.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/cache-internal.h"

struct cache_db {
	struct cache cache;
	struct store *store;
	struct db *db;
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static struct cache_db *of(struct cache *c)
{
	return containerof(c, struct cache_db, cache);
}

/* ------------------------------------------------------------------ sets of keys */

int cache_keys_add(struct cache_keys *keys, int64_t key)
{
	for (size_t i = 0; i < keys->n; i++)
		if (keys->items[i] == key)
			return 0;
	int64_t *slot = vec_push(keys);
	if (!slot)
		return -ENOMEM;
	*slot = key;
	return 0;
}

void cache_keys_intersect(struct cache_keys *keys, const struct cache_keys *with)
{
	size_t kept = 0;
	for (size_t i = 0; i < keys->n; i++)
		for (size_t k = 0; k < with->n; k++)
			if (with->items[k] == keys->items[i]) {
				keys->items[kept++] = keys->items[i];
				break;
			}
	keys->n = kept;
}

void cache_keys_deinit(struct cache_keys *keys)
{
	vec_free(keys);
}

void cache_record_digest(struct digest *out, const struct digest *digest, int output)
{
	char text[DIGEST_TEXT_MAX];
	char whole[DIGEST_TEXT_MAX + 16];
	int n = snprintf(whole, sizeof(whole), "%s@%d", digest_text(digest, text), output);
	digest_bytes(out, whole, (size_t)n);
}

/* ------------------------------------------------------------------ looking up */

static void bind_digest(struct db_stmt *s, int i, const struct digest *digest)
{
	db_bind_blob(s, i, digest ? digest->bytes : (const uint8_t *)"",
		     digest ? sizeof(digest->bytes) : 0);
}

/* False: the catalogue has something else there. */
static bool column_digest(struct db_stmt *s, int col, struct digest *out)
{
	size_t n;
	const void *bytes = db_blob(s, col, &n);
	if (n != sizeof(out->bytes))
		return false;
	memcpy(out->bytes, bytes, n);
	return true;
}

/* Adds the first column of all rows. */
static int collect_keys(struct db_stmt *s, struct cache_keys *out, struct err *err)
{
	int r;
	while ((r = db_step(s, err)) == 1) {
		if (cache_keys_add(out, db_i64(s, 0)) < 0) {
			db_reset(s);
			return no_memory(err);
		}
	}
	return r;
}

static int root_locked(struct cache_db *c, const struct digest *record, struct cache_keys *out,
		       struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db, "SELECT id FROM cache_keys WHERE record = ?", &s, err);
	if (r < 0)
		return r;
	bind_digest(s, 1, record);
	return collect_keys(s, out, err);
}

static int links_locked(struct cache_db *c, int64_t from, size_t input, const struct digest *record,
			const struct digest *selector, struct cache_keys *out, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db,
			   "SELECT target FROM cache_links WHERE source = ? AND input = ?"
			   " AND record = ? AND selector = ?",
			   &s, err);
	if (r < 0)
		return r;
	db_bind_i64(s, 1, from);
	db_bind_i64(s, 2, (int64_t)input);
	bind_digest(s, 3, record);
	bind_digest(s, 4, selector);
	return collect_keys(s, out, err);
}

static int db_cache_root(struct cache *cache, const struct digest *record, struct cache_keys *out,
			 struct err *err)
{
	struct cache_db *c = of(cache);
	db_lock(c->db);
	int r = root_locked(c, record, out, err);
	db_unlock(c->db);
	return r;
}

static int db_cache_links(struct cache *cache, int64_t from, size_t input,
			  const struct digest *record, const struct digest *selector,
			  struct cache_keys *out, struct err *err)
{
	struct cache_db *c = of(cache);
	db_lock(c->db);
	int r = links_locked(c, from, input, record, selector, out, err);
	db_unlock(c->db);
	return r;
}

static bool is_among(const struct digest *digest, const struct digest *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (digest_equal(digest, &list[i]))
			return true;
	return false;
}

static int result_locked(struct cache_db *c, int64_t key, const struct digest *bad, size_t n_bad,
			 struct cache_result *out, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db,
			   "SELECT ref, created FROM cache_results WHERE key = ?"
			   " ORDER BY created DESC",
			   &s, err);
	if (r < 0)
		return r;
	db_bind_i64(s, 1, key);
	while ((r = db_step(s, err)) == 1) {
		*out = (struct cache_result){.key = key, .created_ns = db_i64(s, 1)};
		if (!column_digest(s, 0, &out->ref) || is_among(&out->ref, bad, n_bad))
			continue;
		db_reset(s);
		return 1;
	}
	return r;
}

static int db_cache_result(struct cache *cache, int64_t key, const struct digest *bad, size_t n_bad,
			   struct cache_result *out, struct err *err)
{
	struct cache_db *c = of(cache);
	db_lock(c->db);
	int r = result_locked(c, key, bad, n_bad, out, err);
	db_unlock(c->db);
	return r;
}

static int db_cache_load(struct cache *cache, struct solver *solver,
			 const struct cache_result *result, struct ref **out, struct err *err)
{
	return ref_load(solver, &result->ref, out, err);
}

static int knows_locked(struct cache_db *c, const struct digest *record, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db,
			   "SELECT EXISTS (SELECT 1 FROM cache_keys WHERE record = ?1)"
			   " OR EXISTS (SELECT 1 FROM cache_links WHERE record = ?1)",
			   &s, err);
	if (r < 0)
		return r;
	bind_digest(s, 1, record);
	r = db_step(s, err);
	if (r == 1) {
		r = db_i64(s, 0) != 0;
		db_reset(s);
	}
	return r;
}

static int db_cache_knows(struct cache *cache, const struct digest *record, struct err *err)
{
	struct cache_db *c = of(cache);
	db_lock(c->db);
	int r = knows_locked(c, record, err);
	db_unlock(c->db);
	return r;
}

static void db_cache_free(struct cache *cache)
{
	free(of(cache));
}

static const struct cache_ops db_cache_ops = {
	.root = db_cache_root,
	.links = db_cache_links,
	.knows = db_cache_knows,
	.result = db_cache_result,
	.load = db_cache_load,
	.free = db_cache_free,
};

int cache_db_new(struct cache **out, struct store *store, struct err *err)
{
	struct cache_db *c = calloc(1, sizeof(*c));
	if (!c)
		return no_memory(err);
	c->cache.ops = &db_cache_ops;
	c->cache.priority = 1;
	c->store = store;
	c->db = store_db(store);
	*out = &c->cache;
	return 0;
}

/* ------------------------------------------------------------------ keeping */

/* Runs a statement that gives no rows. */
static int run(struct db_stmt *s, struct err *err)
{
	int r = db_step(s, err);
	return MIN(r, 0);
}

static int new_key(struct cache_db *c, const struct digest *record, int64_t *out, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db, "INSERT INTO cache_keys (record) VALUES (?) RETURNING id", &s,
			   err);
	if (r < 0)
		return r;
	if (record)
		bind_digest(s, 1, record);
	r = db_step(s, err);
	if (r == 1) {
		*out = db_i64(s, 0);
		r = run(s, err); /* to its end */
	}
	return r;
}

static int root_or_new(struct cache_db *c, const struct digest *record, int64_t *out,
		       struct err *err)
{
	scoped(cache_keys_deinit) struct cache_keys found = {0};
	int r = root_locked(c, record, &found, err);
	if (r < 0)
		return r;
	if (found.n) {
		*out = found.items[0];
		return 0;
	}
	return new_key(c, record, out, err);
}

static int put_link(struct cache_db *c, int64_t from, size_t input, const struct digest *record,
		    const struct digest *selector, int64_t to, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db,
			   "INSERT OR IGNORE INTO cache_links"
			   " (source, input, record, selector, target) VALUES (?, ?, ?, ?, ?)",
			   &s, err);
	if (r < 0)
		return r;
	db_bind_i64(s, 1, from);
	db_bind_i64(s, 2, (int64_t)input);
	bind_digest(s, 3, record);
	bind_digest(s, 4, selector);
	db_bind_i64(s, 5, to);
	return run(s, err);
}

static int put_result(struct cache_db *c, int64_t key, const struct digest *ref, struct err *err)
{
	struct db_stmt *s;
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int r = db_prepare(c->db,
			   "INSERT INTO cache_results (key, ref, created) VALUES (?, ?, ?)"
			   " ON CONFLICT DO UPDATE SET created = excluded.created",
			   &s, err);
	if (r < 0)
		return r;
	db_bind_i64(s, 1, key);
	bind_digest(s, 2, ref);
	db_bind_i64(s, 3, (int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
	return run(s, err);
}

static int put_ingredient(struct cache_db *c, const struct cache_ingredient *i, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db,
			   "INSERT OR IGNORE INTO cache_ingredients (digest, bytes) VALUES (?, ?)",
			   &s, err);
	if (r < 0)
		return r;
	bind_digest(s, 1, &i->digest);
	db_bind_blob(s, 2, i->bytes, i->n);
	return run(s, err);
}

static int commit_root(struct cache_db *c, const struct cache_commit *commit,
		       struct cache_keys *out, struct err *err)
{
	int r = 0;
	for (size_t i = 0; i < commit->n_records && r == 0; i++) {
		int64_t key;
		r = root_or_new(c, &commit->records[i], &key, err);
		if (r == 0 && commit->ref)
			r = put_result(c, key, commit->ref, err);
		if (r == 0 && cache_keys_add(out, key) < 0)
			r = no_memory(err);
	}
	return r;
}

/* Where the ways from one input lead already. */
static int leads_to(struct cache_db *c, const struct cache_commit *commit, size_t input,
		    struct cache_keys *out, struct err *err)
{
	const struct cache_commit_input *in = &commit->inputs[input];
	int r = 0;
	for (size_t i = 0; i < in->keys->n && r == 0; i++)
		r = links_locked(c, in->keys->items[i], input, commit->records, in->selector, out,
				 err);
	int64_t content;
	if (r == 0 && in->content)
		r = root_or_new(c, in->content, &content, err);
	if (r == 0 && in->content)
		r = links_locked(c, content, input, commit->records, NULL, out, err);
	return r;
}

static int link_input(struct cache_db *c, const struct cache_commit *commit, size_t input,
		      int64_t key, struct err *err)
{
	const struct cache_commit_input *in = &commit->inputs[input];
	int r = 0;
	for (size_t i = 0; i < in->keys->n && r == 0; i++)
		r = put_link(c, in->keys->items[i], input, commit->records, in->selector, key, err);
	int64_t content;
	if (r == 0 && in->content)
		r = root_or_new(c, in->content, &content, err);
	if (r == 0 && in->content)
		r = put_link(c, content, input, commit->records, NULL, key, err);
	return r;
}

static int commit_derived(struct cache_db *c, const struct cache_commit *commit,
			  struct cache_keys *out, struct err *err)
{
	scoped(cache_keys_deinit) struct cache_keys common = {0};
	int64_t key;
	int r = leads_to(c, commit, 0, &common, err);
	for (size_t i = 1; i < commit->n_inputs && r == 0 && common.n; i++) {
		scoped(cache_keys_deinit) struct cache_keys here = {0};
		r = leads_to(c, commit, i, &here, err);
		cache_keys_intersect(&common, &here);
	}
	if (r == 0 && common.n)
		key = common.items[0];
	else if (r == 0)
		r = new_key(c, NULL, &key, err);
	for (size_t i = 0; i < commit->n_inputs && r == 0; i++)
		r = link_input(c, commit, i, key, err);
	if (r == 0 && commit->ref)
		r = put_result(c, key, commit->ref, err);
	if (r == 0 && cache_keys_add(out, key) < 0)
		r = no_memory(err);
	return r;
}

int cache_db_commit(struct cache *cache, const struct cache_commit *commit, struct cache_keys *out,
		    struct err *err)
{
	struct cache_db *c = of(cache);
	for (size_t i = 0; i < commit->n_inputs; i++)
		if (!commit->inputs[i].keys->n && !commit->inputs[i].content)
			return 0;
	db_lock(c->db);
	int r = db_begin(c->db, err);
	if (r == 0) {
		r = commit->n_inputs ? commit_derived(c, commit, out, err)
				     : commit_root(c, commit, out, err);
		for (size_t i = 0; i < commit->n_ingredients && r == 0; i++)
			r = put_ingredient(c, &commit->ingredients[i], err);
		r = db_end(c->db, r, err);
	}
	db_unlock(c->db);
	return r;
}

int cache_db_forget(struct cache *cache, const struct cache_result *result, struct err *err)
{
	struct cache_db *c = of(cache);
	struct db_stmt *s;
	db_lock(c->db);
	int r = db_prepare(c->db, "DELETE FROM cache_results WHERE key = ? AND ref = ?", &s, err);
	if (r == 0) {
		db_bind_i64(s, 1, result->key);
		bind_digest(s, 2, &result->ref);
		r = run(s, err);
	}
	db_unlock(c->db);
	return r;
}

/* ------------------------------------------------------------------ content */

int cache_db_content(struct cache *cache, const struct digest *ref, const struct digest *what,
		     struct digest *out, struct err *err)
{
	struct cache_db *c = of(cache);
	struct db_stmt *s;
	db_lock(c->db);
	int r = db_prepare(c->db, "SELECT digest FROM cache_content WHERE ref = ? AND what = ?", &s,
			   err);
	if (r == 0) {
		bind_digest(s, 1, ref);
		bind_digest(s, 2, what);
		r = db_step(s, err);
		if (r == 1) {
			r = column_digest(s, 0, out);
			db_reset(s);
		}
	}
	db_unlock(c->db);
	return r;
}

static int keep_content_locked(struct cache_db *c, const struct digest *ref,
			       const struct digest *what, const struct digest *content,
			       const struct cache_ingredient *ingredient, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db,
			   "INSERT OR IGNORE INTO cache_content (ref, what, digest)"
			   " VALUES (?, ?, ?)",
			   &s, err);
	if (r < 0)
		return r;
	bind_digest(s, 1, ref);
	bind_digest(s, 2, what);
	bind_digest(s, 3, content);
	r = run(s, err);
	return r < 0 ? r : put_ingredient(c, ingredient, err);
}

int cache_db_keep_content(struct cache *cache, const struct digest *ref, const struct digest *what,
			  const struct digest *content, const struct cache_ingredient *ingredient,
			  struct err *err)
{
	struct cache_db *c = of(cache);
	db_lock(c->db);
	int r = db_begin(c->db, err);
	if (r == 0)
		r = db_end(c->db, keep_content_locked(c, ref, what, content, ingredient, err), err);
	db_unlock(c->db);
	return r;
}

/* ------------------------------------------------------------------ host files */

#define FILE_DAYS 30 /* what was not asked for as long is forgotten */

bool cache_files_get(void *arg, const struct digest *key, struct digest *out)
{
	struct cache_files *files = arg;
	struct cache_db *c = of(files->cache);
	struct db_stmt *s;
	db_lock(c->db);
	int r = db_prepare(c->db, "SELECT digest FROM cache_files WHERE key = ?", &s, NULL);
	if (r == 0) {
		bind_digest(s, 1, key);
		r = db_step(s, NULL);
		if (r == 1) {
			r = column_digest(s, 0, out);
			db_reset(s);
		}
	}
	db_unlock(c->db);
	return r == 1;
}

void cache_files_put(void *arg, const struct digest *key, const struct digest *digest)
{
	struct cache_files *files = arg;
	struct cache_file *slot = vec_push(&files->puts);
	if (slot)
		*slot = (struct cache_file){*key, *digest};
}

static int put_files_locked(struct cache_db *c, const struct cache_files *files, struct err *err)
{
	struct db_stmt *s;
	int r = db_prepare(c->db, "DELETE FROM cache_files WHERE seen < unixepoch() - ?", &s, err);
	if (r < 0)
		return r;
	db_bind_i64(s, 1, FILE_DAYS * 86400);
	r = run(s, err);
	for (size_t i = 0; i < files->puts.n && r == 0; i++) {
		r = db_prepare(c->db,
			       "INSERT OR REPLACE INTO cache_files (key, digest, seen)"
			       " VALUES (?, ?, unixepoch())",
			       &s, err);
		if (r < 0)
			return r;
		bind_digest(s, 1, &files->puts.items[i].key);
		bind_digest(s, 2, &files->puts.items[i].digest);
		r = run(s, err);
	}
	return r;
}

void cache_files_flush(struct cache_files *files)
{
	struct cache_db *c = of(files->cache);
	struct err err = {0};
	if (files->puts.n) {
		db_lock(c->db);
		int r = db_begin(c->db, &err);
		if (r == 0)
			r = db_end(c->db, put_files_locked(c, files, &err), &err);
		db_unlock(c->db);
		if (r < 0)
			log_info("digests of files are not kept: %s", err_text(&err, r));
	}
	vec_free(&files->puts);
}
