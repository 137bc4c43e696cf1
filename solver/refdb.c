/* SPDX-License-Identifier: Apache-2.0 */

/*
 * refdb: refs that stay, kept in the store's catalogue.
 *
 *	refs		a ref, by its id; its number is what the next two say, so that they grow at
 *			their ends
 *	ref_layers	the descriptors of an image's layers
 *	ref_parts	the parts of a merge, by their ids: a graph, as it is in memory
 *	made_trees	trees made here (merge/treefile.c): small ones; large ones are files of trees/
 *	tree_layers	the layers that files of such a tree are in
 *	places		where blobs can be had, of all refs together
 *
 * The id of a ref is the digest of what it is: its layers' digests, sizes and media types; its
 * config, as two images with the same files are two images; its parts and where they go; the bytes of
 * its tree. It says nothing of names and places, so equal results are one row wherever they came
 * from, and a second place for a blob is one more row of places.
 *
 * A parent's rows are written after its children's or along with them, so whoever finds a ref finds
 * all of it; what may go later is files (trees, content), which are evicted like all content unless
 * a process leases them. Saving leases what it saves.
 *
 * What is saved already, by this process, is not looked at again: a chain of refs of which each is
 * saved in turn costs a few rows for each. Rows are written in batches, none of which takes long.
 */

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/ref-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define BATCH_REFS 512
#define BATCH_BYTES (4u << 20)

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ tables by digest */

static struct id_slot *id_slot(const struct id_table *t, const struct digest *key)
{
	size_t i = (size_t)hash_bytes(key->bytes, sizeof(key->bytes)) & (t->size - 1);
	while (t->slots[i].is_used && !digest_equal(&t->slots[i].key, key))
		i = (i + 1) & (t->size - 1);
	return &t->slots[i];
}

static int id_table_grow(struct id_table *t)
{
	struct id_table bigger = {.size = t->size ? t->size * 2 : 64, .n = t->n};
	bigger.slots = calloc(bigger.size, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (size_t i = 0; i < t->size; i++)
		if (t->slots[i].is_used)
			*id_slot(&bigger, &t->slots[i].key) = t->slots[i];
	free(t->slots);
	*t = bigger;
	return 0;
}

void **id_table_get(struct id_table *t, const struct digest *key, bool *is_new)
{
	if (t->n * 2 >= t->size && id_table_grow(t) < 0)
		return NULL;
	struct id_slot *slot = id_slot(t, key);
	*is_new = !slot->is_used;
	if (*is_new) {
		*slot = (struct id_slot){.key = *key, .is_used = true};
		t->n++;
	}
	return &slot->value;
}

void id_table_deinit(struct id_table *t)
{
	free(t->slots);
	*t = (struct id_table){0};
}

/* ------------------------------------------------------------------ ids */

static void add_text(struct strbuf *s, const char *text)
{
	strbuf_printf(s, " %zu:%s", text ? strlen(text) : 0, text ? text : "");
}

static void add_image(struct strbuf *s, const struct ref *ref)
{
	char text[DIGEST_TEXT_MAX];
	strbuf_puts(s, "image\n");
	for (size_t i = 0; i < ref->n_layers; i++) {
		const struct desc *desc = &ref->layers[i].desc;
		strbuf_printf(s, "layer %s %llu", digest_text(&desc->digest, text),
			      (unsigned long long)desc->size);
		add_text(s, desc->media_type);
		strbuf_putc(s, '\n');
	}
	if (ref->has_config)
		strbuf_printf(s, "config %s %zu\n", digest_text(&ref->config.digest, text),
			      ref->first_layer);
}

static void add_parts(struct strbuf *s, const struct ref *ref)
{
	strbuf_puts(s, "merge\n");
	for (size_t i = 0; i < ref->n_parts; i++) {
		char text[DIGEST_TEXT_MAX];
		struct digest id = {{0}};
		ref_id(ref->parts[i].ref, &id);
		strbuf_printf(s, "part %s", digest_text(&id, text));
		add_text(s, ref->parts[i].trim);
		add_text(s, ref->parts[i].add);
		strbuf_putc(s, '\n');
	}
}

int refdb_id(struct ref *ref, struct digest *out)
{
	scoped(strbuf_free) struct strbuf s = {0};
	char text[DIGEST_TEXT_MAX];
	strbuf_puts(&s, "llbfs ref 1\n");
	switch (ref->kind) {
	case REF_IMAGE:
		add_image(&s, ref);
		break;
	case REF_MERGE:
		add_parts(&s, ref);
		break;
	case REF_TREE:
		pthread_mutex_lock(&ref->id_lock);
		strbuf_printf(&s, "tree %s\n", digest_text(&ref->tree_digest, text));
		pthread_mutex_unlock(&ref->id_lock);
		break;
	case REF_SCRATCH:
		strbuf_puts(&s, "scratch\n");
		break;
	case REF_DIR:
		return -EINVAL;
	}
	if (s.failed)
		return -ENOMEM;
	digest_bytes(out, s.data, s.len);
	return 0;
}

void refdb_set_kept(struct ref *ref, const struct store *store, const struct digest *id)
{
	pthread_mutex_lock(&ref->id_lock);
	ref->id = *id;
	ref->has_id = true;
	ref->store = store;
	pthread_mutex_unlock(&ref->id_lock);
}

static bool is_kept(struct ref *ref, const struct store *store)
{
	pthread_mutex_lock(&ref->id_lock);
	bool is = ref->has_id && ref->store == store;
	pthread_mutex_unlock(&ref->id_lock);
	return is;
}

/* ------------------------------------------------------------------ questions to the catalogue */

/* 1 or 0 for a query of one digest, and perhaps one text. */
static int ask(struct db *db, const char *sql, const struct digest *digest, const char *text,
	       struct err *err)
{
	struct db_stmt *s;
	db_lock(db);
	int r = db_prepare(db, sql, &s, err);
	if (r == 0) {
		db_bind_blob(s, 1, digest->bytes, sizeof(digest->bytes));
		if (text)
			db_bind_text(s, 2, text);
		r = db_step(s, err);
		if (r == 1)
			db_reset(s);
	}
	db_unlock(db);
	return r;
}

static int read_row(struct db *db, const struct digest *digest, struct strbuf *out, struct err *err)
{
	static const char sql[] =
		"SELECT bytes FROM made_trees WHERE digest = ? AND bytes IS NOT NULL";
	struct db_stmt *s;
	db_lock(db);
	int r = db_prepare(db, sql, &s, err);
	if (r == 0) {
		db_bind_blob(s, 1, digest->bytes, sizeof(digest->bytes));
		r = db_step(s, err);
	}
	if (r == 1) {
		size_t n;
		const void *bytes = db_blob(s, 0, &n);
		strbuf_add(out, n ? bytes : "", n);
		db_reset(s);
	}
	db_unlock(db);
	return r;
}

static int gone(const struct digest *digest, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	return err_set(err, -ENOENT, "the tree %s is not in the store any more",
		       digest_text(digest, text));
}

static int read_tree_file(struct store *store, const struct digest *digest, struct strbuf *out,
			  struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path =
		str_printf("%s/trees/%s", store_root(store), digest_hex(digest, hex));
	int r = path ? read_file(AT_FDCWD, path, SIZE_MAX / 4, out) : -ENOMEM;
	if (r == -ENOENT)
		return gone(digest, err);
	return r < 0 ? err_set(err, r, "%s: %s", path ? path : "", strerror(-r)) : 0;
}

int refdb_read_tree(struct store *store, const struct digest *digest, struct strbuf *out,
		    struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	struct digest is;
	int r = read_row(store_db(store), digest, out, err);
	bool is_file = r == 0;
	if (is_file)
		r = read_tree_file(store, digest, out, err);
	if (r < 0)
		return r;
	if (out->failed)
		return no_memory(err);
	digest_bytes(&is, out->data ? out->data : "", out->len);
	if (digest_equal(&is, digest))
		return 0;
	if (is_file)
		store_file_remove(store, "trees", digest_hex(digest, hex));
	return err_set(err, -EBADMSG, "the tree sha256:%s in the store is damaged",
		       digest_hex(digest, hex));
}

int refdb_has_tree(struct store *store, const struct digest *digest, struct err *err)
{
	static const char sql[] = "SELECT 1 FROM made_trees WHERE digest = ? AND bytes IS NOT NULL";
	char hex[DIGEST_HEX_MAX];
	int fd, r = ask(store_db(store), sql, digest, NULL, err);
	if (r != 0)
		return r < 0 ? r : 0;
	r = store_lease(store, digest, 1, err);
	if (r < 0)
		return r;
	if (store_file_open(store, "trees", digest_hex(digest, hex), &fd) < 0)
		return gone(digest, err);
	close_fd(fd);
	return 0;
}

/* ------------------------------------------------------------------ what is to be written */

struct pending {
	struct ref *ref; /* borrowed: part of what is saved */
	struct digest id;
	struct treefile file; /* REF_TREE */
	struct digest tree;   /* of the file */
	int64_t number;	      /* of its row, once that is written */
};
struct todo {
	struct ref *ref;
	size_t next; /* part to be looked at */
};
struct saver {
	struct store *store;
	struct db *db;
	struct id_table seen;	   /* refs by address */
	vec(struct todo) stack;	   /* a ref, its part, its part's part, … */
	vec(struct pending) batch; /* parts before what they are part of */
	size_t batch_bytes;
	struct err *err;
};

static void clear_batch(struct saver *s)
{
	for (size_t i = 0; i < s->batch.n; i++)
		treefile_deinit(&s->batch.items[i].file);
	s->batch.n = 0;
	s->batch_bytes = 0;
}

static void saver_deinit(struct saver *s)
{
	clear_batch(s);
	vec_free(&s->batch);
	vec_free(&s->stack);
	id_table_deinit(&s->seen);
}

/* ------------------------------------------------------------------ rows */

static void bind_digest(struct db_stmt *s, int i, const struct digest *digest)
{
	db_bind_blob(s, i, digest->bytes, sizeof(digest->bytes));
}

void refdb_put_annotations(struct strbuf *s, const struct desc *desc)
{
	for (size_t i = 0; i < desc->n_annotations; i++) {
		strbuf_add(s, desc->annotations[i].key, strlen(desc->annotations[i].key) + 1);
		strbuf_add(s, desc->annotations[i].value, strlen(desc->annotations[i].value) + 1);
	}
}

static int insert_place(struct saver *s, const struct digest *digest, struct remote *remote)
{
	static const char sql[] = "INSERT INTO places (digest, place, seen)"
				  " VALUES (?, ?, unixepoch())"
				  " ON CONFLICT (digest, place) DO UPDATE SET seen = excluded.seen";
	scoped(strbuf_free) struct strbuf place = {0};
	struct db_stmt *stmt;
	int r = remote_place(remote, digest, &place);
	if (r < 0)
		return r == -ENOENT ? 0 : no_memory(s->err);
	r = db_prepare(s->db, sql, &stmt, s->err);
	if (r < 0)
		return r;
	bind_digest(stmt, 1, digest);
	db_bind_text(stmt, 2, place.data);
	return db_step(stmt, s->err);
}

static int insert_layer(struct saver *s, const struct pending *p, size_t i)
{
	/* Another manifest may say more of a layer than the one before did. */
	static const char sql[] =
		"INSERT INTO ref_layers (ref, position, digest, size, media_type, annotations,"
		" diff_id) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ref, position) DO UPDATE SET"
		" annotations = iif(length(coalesce(excluded.annotations, ''))"
		"  > length(coalesce(annotations, '')), excluded.annotations, annotations),"
		" diff_id = coalesce(excluded.diff_id, diff_id)";
	const struct ref_layer *layer = &p->ref->layers[i];
	scoped(strbuf_free) struct strbuf annotations = {0};
	struct db_stmt *stmt;
	refdb_put_annotations(&annotations, &layer->desc);
	if (annotations.failed)
		return no_memory(s->err);
	int r = db_prepare(s->db, sql, &stmt, s->err);
	if (r < 0)
		return r;
	db_bind_i64(stmt, 1, p->number);
	db_bind_i64(stmt, 2, (int64_t)i);
	bind_digest(stmt, 3, &layer->desc.digest);
	db_bind_i64(stmt, 4, (int64_t)layer->desc.size);
	db_bind_text(stmt, 5, layer->desc.media_type ? layer->desc.media_type : "");
	if (annotations.len)
		db_bind_blob(stmt, 6, annotations.data, annotations.len);
	pthread_mutex_lock(&p->ref->id_lock);
	if (!digest_is_zero(&layer->diff_id))
		bind_digest(stmt, 7, &layer->diff_id);
	pthread_mutex_unlock(&p->ref->id_lock);
	r = db_step(stmt, s->err);
	return r < 0 ? r : insert_place(s, &layer->desc.digest, layer->remote);
}

static int insert_part(struct saver *s, const struct pending *p, size_t i)
{
	static const char sql[] = "INSERT INTO ref_parts (ref, position, child, trim, put)"
				  " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
	const struct ref_part *part = &p->ref->parts[i];
	struct digest child;
	struct db_stmt *stmt;
	int r = db_prepare(s->db, sql, &stmt, s->err);
	if (r < 0)
		return r;
	ref_id(part->ref, &child);
	db_bind_i64(stmt, 1, p->number);
	db_bind_i64(stmt, 2, (int64_t)i);
	bind_digest(stmt, 3, &child);
	if (part->trim)
		db_bind_text(stmt, 4, part->trim);
	if (part->add)
		db_bind_text(stmt, 5, part->add);
	return db_step(stmt, s->err);
}

static int insert_tree_layer(struct saver *s, const struct pending *p, size_t i)
{
	static const char sql[] = "INSERT INTO tree_layers (tree, layer) VALUES (?, ?)"
				  " ON CONFLICT DO NOTHING";
	const struct treefile_layer *layer = &p->file.layers.items[i];
	struct db_stmt *stmt;
	int r = db_prepare(s->db, sql, &stmt, s->err);
	if (r < 0)
		return r;
	bind_digest(stmt, 1, &p->tree);
	bind_digest(stmt, 2, &layer->digest);
	r = db_step(stmt, s->err);
	return r < 0 ? r : insert_place(s, &layer->digest, layer->remote);
}

static int insert_tree(struct saver *s, const struct pending *p)
{
	static const char sql[] = "INSERT INTO made_trees (digest, bytes) VALUES (?, ?)"
				  " ON CONFLICT (digest) DO NOTHING";
	struct db_stmt *stmt;
	int r = db_prepare(s->db, sql, &stmt, s->err);
	if (r < 0)
		return r;
	bind_digest(stmt, 1, &p->tree);
	if (p->file.bytes.len <= TREE_ROW_MAX)
		db_bind_blob(stmt, 2, p->file.bytes.data, p->file.bytes.len);
	r = db_step(stmt, s->err);
	for (size_t i = 0; i < p->file.layers.n && r == 0; i++)
		r = insert_tree_layer(s, p, i);
	return r;
}

static void bind_image(struct db_stmt *stmt, const struct ref *ref)
{
	char platform[100];
	if (ref->has_config) {
		bind_digest(stmt, 5, &ref->config.digest);
		db_bind_i64(stmt, 6, (int64_t)ref->config.size);
		db_bind_text(stmt, 7, ref->config.media_type ? ref->config.media_type : "");
	}
	db_bind_i64(stmt, 8, (int64_t)ref->first_layer);
	if (ref->has_manifest)
		bind_digest(stmt, 9, &ref->manifest);
	if (ref->has_root)
		bind_digest(stmt, 10, &ref->root);
	if (ref->has_platform)
		db_bind_text(stmt, 11, platform_text(&ref->platform, platform));
}

static int insert_ref(struct saver *s, struct pending *p)
{
	static const char sql[] =
		"INSERT INTO refs (id, kind, name, tree, config, config_size, config_type,"
		" first_layer, manifest, root, platform, created, last_used)"
		" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, unixepoch(), unixepoch())"
		" ON CONFLICT (id) DO UPDATE SET manifest = coalesce(manifest, excluded.manifest),"
		" root = coalesce(root, excluded.root),"
		" platform = coalesce(platform, excluded.platform) RETURNING number";
	struct db_stmt *stmt;
	int r = db_prepare(s->db, sql, &stmt, s->err);
	if (r < 0)
		return r;
	bind_digest(stmt, 1, &p->id);
	db_bind_i64(stmt, 2, p->ref->kind);
	/* That of a merge is made of its parts'. */
	db_bind_text(stmt, 3, p->ref->kind == REF_MERGE ? "" : p->ref->name);
	if (p->ref->kind == REF_TREE)
		bind_digest(stmt, 4, &p->tree);
	if (p->ref->kind == REF_IMAGE)
		bind_image(stmt, p->ref);
	r = db_step(stmt, s->err);
	if (r == 1) {
		p->number = db_i64(stmt, 0);
		db_reset(stmt);
	}
	return MIN(r, 0);
}

static int insert_all(struct saver *s, struct pending *p)
{
	const struct ref *ref = p->ref;
	int r = insert_ref(s, p);
	for (size_t i = 0; i < ref->n_layers && r == 0; i++)
		r = insert_layer(s, p, i);
	if (r == 0 && ref->has_config)
		r = insert_place(s, &ref->config.digest, ref->origin.remote);
	for (size_t i = 0; i < ref->n_parts && r == 0; i++)
		r = insert_part(s, p, i);
	return r == 0 && ref->kind == REF_TREE ? insert_tree(s, p) : r;
}

/* Writes what has come together. */
static int flush(struct saver *s)
{
	if (s->batch.n == 0)
		return 0;
	db_lock(s->db);
	int r = db_begin(s->db, s->err);
	if (r == 0) {
		for (size_t i = 0; i < s->batch.n && r == 0; i++)
			r = insert_all(s, &s->batch.items[i]);
		r = db_end(s->db, r, s->err);
	}
	db_unlock(s->db);
	for (size_t i = 0; i < s->batch.n && r == 0; i++)
		refdb_set_kept(s->batch.items[i].ref, s->store, &s->batch.items[i].id);
	clear_batch(s);
	return r;
}

/* ------------------------------------------------------------------ one ref */

static int keep_tree_file(struct saver *s, const struct pending *p)
{
	char hex[DIGEST_HEX_MAX];
	struct store_file file;
	int r = refdb_has_tree(s->store, &p->tree, s->err);
	if (r != -ENOENT)
		return r;
	r = store_file_begin(s->store, "trees", digest_hex(&p->tree, hex), &file, s->err);
	if (r < 0)
		return r;
	r = write_full(file.fd, p->file.bytes.data, p->file.bytes.len);
	if (r == 0)
		return store_file_commit(s->store, &file, s->err);
	store_file_abort(s->store, &file);
	return err_set(s->err, r, "tree sha256:%s: %s", hex, strerror(-r));
}

/* Makes the file of a tree; where it is large, in the store. */
static int keep_tree(struct saver *s, struct pending *p)
{
	struct tree *tree;
	int r = ref_made_tree(p->ref, &tree, s->err);
	if (r == 0)
		r = treefile_write(&p->file, tree, s->store, s->err);
	if (r < 0)
		return err_wrap(s->err, r, "%s", p->ref->name);
	digest_bytes(&p->tree, p->file.bytes.data, p->file.bytes.len);
	pthread_mutex_lock(&p->ref->id_lock);
	p->ref->tree_digest = p->tree;
	pthread_mutex_unlock(&p->ref->id_lock);
	return p->file.bytes.len > TREE_ROW_MAX ? keep_tree_file(s, p) : 0;
}

/* 1 when it is known that the blob is at @remote, or when that cannot be said anyway. */
static int has_place(struct saver *s, const struct digest *digest, struct remote *remote)
{
	scoped(strbuf_free) struct strbuf place = {0};
	int r = remote_place(remote, digest, &place);
	if (r < 0)
		return r == -ENOENT ? 1 : no_memory(s->err);
	return ask(s->db, "SELECT 1 FROM places WHERE digest = ? AND place = ?", digest, place.data,
		   s->err);
}

/* 1 when the catalogue says all this already. */
static int has_rows(struct saver *s, const struct pending *p)
{
	const struct ref *ref = p->ref;
	int r = ask(s->db, "SELECT 1 FROM refs WHERE id = ?", &p->id, NULL, s->err);
	for (size_t i = 0; i < ref->n_layers && r == 1; i++)
		r = has_place(s, &ref->layers[i].desc.digest, ref->layers[i].remote);
	if (r == 1 && ref->has_config)
		r = has_place(s, &ref->config.digest, ref->origin.remote);
	for (size_t i = 0; i < p->file.layers.n && r == 1; i++)
		r = has_place(s, &p->file.layers.items[i].digest, p->file.layers.items[i].remote);
	return r;
}

/* All its parts have ids. */
static int save_one(struct saver *s, struct ref *ref)
{
	struct pending p = {.ref = ref};
	if (ref->kind == REF_DIR)
		return err_set(s->err, -EINVAL, "%s is a folder that may change: it cannot be kept",
			       ref->name);
	int r = ref->kind == REF_TREE ? keep_tree(s, &p) : 0;
	if (r == 0 && refdb_id(ref, &p.id) < 0)
		r = no_memory(s->err);
	if (r == 0)
		r = has_rows(s, &p);
	if (r != 0) {
		treefile_deinit(&p.file);
		if (r == 1)
			refdb_set_kept(ref, s->store, &p.id);
		return MIN(r, 0);
	}
	struct pending *slot = vec_push(&s->batch);
	if (!slot) {
		treefile_deinit(&p.file);
		return no_memory(s->err);
	}
	*slot = p;
	/* Its parents need the id now; that the store has it shows when it was written. */
	refdb_set_kept(ref, NULL, &p.id);
	s->batch_bytes += p.file.bytes.len;
	return s->batch.n >= BATCH_REFS || s->batch_bytes >= BATCH_BYTES ? flush(s) : 0;
}

/* Puts a ref on the stack unless it was there, or is saved. */
static int visit(struct saver *s, struct ref *ref)
{
	struct digest key = {{0}};
	bool is_new;
	if (is_kept(ref, s->store))
		return 0;
	memcpy(key.bytes, &ref, sizeof(ref));
	if (!id_table_get(&s->seen, &key, &is_new))
		return no_memory(s->err);
	struct todo *slot = is_new ? vec_push(&s->stack) : NULL;
	if (is_new && !slot)
		return no_memory(s->err);
	if (slot)
		slot->ref = ref;
	return 0;
}

static int save_all(struct saver *s, struct ref *ref)
{
	int r = visit(s, ref);
	while (r == 0 && s->stack.n > 0) {
		struct todo *top = &s->stack.items[s->stack.n - 1];
		if (top->next < top->ref->n_parts) {
			r = visit(s, top->ref->parts[top->next++].ref);
			continue;
		}
		r = save_one(s, top->ref);
		s->stack.n--;
	}
	return r < 0 ? r : flush(s);
}

int ref_save(struct ref *ref, struct solver *solver, struct digest *id, struct err *err)
{
	struct saver s = {
		.store = solver->options.store, .db = store_db(solver->options.store), .err = err};
	int r = save_all(&s, ref);
	saver_deinit(&s);
	if (r == 0)
		ref_id(ref, id);
	return r;
}

/* ------------------------------------------------------------------ finding */

int ref_find(struct solver *solver, const char *text, struct digest *id, struct err *err)
{
	static const char sql[] = "SELECT id FROM refs WHERE id >= ? AND id <= ? LIMIT 2";
	const char *hex = str_starts(text, "sha256:") ? text + 7 : text;
	size_t n = strspn(hex, "0123456789abcdef");
	if (n < 6 || n > 64 || hex[n])
		return err_set(err, -EINVAL, "\"%s\": want an ID, or at least 6 hex digits of it",
			       text);
	char low[DIGEST_TEXT_MAX], high[DIGEST_TEXT_MAX];
	struct digest from, to;
	snprintf(low, sizeof(low), "sha256:%s%.*s", hex, (int)(64 - n),
		 "0000000000000000000000000000000000000000000000000000000000000000");
	snprintf(high, sizeof(high), "sha256:%s%.*s", hex, (int)(64 - n),
		 "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff");
	int r = digest_parse(&from, low, err);
	if (r == 0)
		r = digest_parse(&to, high, err);
	if (r < 0)
		return r;
	struct db *db = store_db(solver->options.store);
	struct db_stmt *stmt;
	int n_found = 0;
	db_lock(db);
	r = db_prepare(db, sql, &stmt, err);
	if (r == 0) {
		bind_digest(stmt, 1, &from);
		bind_digest(stmt, 2, &to);
	}
	while (r == 0 && n_found < 2 && (r = db_step(stmt, err)) == 1) {
		size_t len;
		const void *bytes = db_blob(stmt, 0, &len);
		if (len == sizeof(id->bytes))
			memcpy(id->bytes, bytes, len);
		n_found++;
		r = 0;
	}
	if (n_found == 2)
		db_reset(stmt);
	db_unlock(db);
	if (r < 0)
		return r;
	if (n_found == 2)
		return err_set(err, -EEXIST, "more than one kept ref begins with %s", hex);
	return n_found ? 0 : err_set(err, -ENOENT, "no ref %s is kept in this store", hex);
}
