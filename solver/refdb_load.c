/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Refs out of the catalogue (refdb.c), as they were when they were saved.
 *
 * Loading reads rows and nothing else: layers stay descriptors, remotes are made without a look at
 * the network, and a made tree is only known by its digest until somebody asks for its files. What
 * must be there is checked, so that a build does not take a result for one that it can use when it is
 * gone: all rows, and the files of trees, which are leased.
 *
 * The parts of a merge are a graph; each of its refs is made once. Merges nest as deep as a
 * definition is long, so the walk keeps a stack of its own.
 *
 * A blob may be known in several places. A file of this host that is there comes first, then a
 * registry. A layout or an archive that has vanished is still named when its bytes are wanted.
 */

#include <stdio.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/ref-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define TOUCH_SECONDS "3600"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static int damaged(const struct digest *id, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	return err_set(err, -EBADMSG, "catalogue: what it says of ref %s makes no sense",
		       digest_hex(id, hex));
}

/* ------------------------------------------------------------------ rows */

struct row {
	int64_t number;
	enum ref_kind kind;
	char *name;
	struct digest tree;
	struct desc config;
	size_t first_layer;
	bool has_config, has_manifest, has_root, has_platform;
	struct digest manifest, root;
	struct platform platform;
	bool is_stale; /* was not used for long */
};

static void row_deinit(struct row *row)
{
	free(row->name);
	desc_deinit(&row->config);
}

static void row_deinit_scoped(struct row *row)
{
	row_deinit(row);
}

struct loaded_layer {
	struct desc desc;
	struct digest diff_id;
	struct remote *remote;
};
struct part_row {
	struct digest child;
	char *trim, *add;
};
struct frame {
	struct digest id;
	vec(struct part_row) parts;
	size_t next;
};
struct loader {
	struct solver *solver;
	struct store *store;
	struct db *db;
	struct id_table made; /* refs by id; NULL while their parts are made */
	vec(struct frame) stack;
	struct err *err;
};

/* False for NULL; what has another length is damaged and zero. */
static bool column_digest(struct db_stmt *s, int col, struct digest *out)
{
	size_t n;
	const void *bytes = db_blob(s, col, &n);
	*out = (struct digest){{0}};
	if (n == sizeof(out->bytes))
		memcpy(out->bytes, bytes, n);
	return n > 0;
}

static int column_text(struct db_stmt *s, int col, char **out)
{
	const char *text = db_text(s, col);
	*out = NULL;
	return *text && !(*out = strdup(text)) ? -ENOMEM : 0;
}

static int fill_row(struct row *row, struct db_stmt *s)
{
	int64_t kind = db_i64(s, 0);
	if (kind < 0 || kind > REF_TREE)
		return -EBADMSG;
	row->kind = (enum ref_kind)kind;
	row->name = strdup(db_text(s, 1));
	column_digest(s, 2, &row->tree);
	row->has_config = column_digest(s, 3, &row->config.digest);
	row->config.size = (uint64_t)db_i64(s, 4);
	row->first_layer = (size_t)db_i64(s, 6);
	row->has_manifest = column_digest(s, 7, &row->manifest);
	row->has_root = column_digest(s, 8, &row->root);
	row->has_platform = *db_text(s, 9);
	row->is_stale = db_i64(s, 10) != 0;
	row->number = db_i64(s, 11);
	if (!row->name || column_text(s, 5, &row->config.media_type) < 0)
		return -ENOMEM;
	return row->has_platform && platform_parse(&row->platform, db_text(s, 9), NULL) < 0
		       ? -EBADMSG
		       : 0;
}

static int read_ref(struct loader *l, const struct digest *id, struct row *out)
{
	static const char sql[] =
		"SELECT kind, name, tree, config, config_size, config_type, first_layer, manifest,"
		" root, platform, last_used < unixepoch() - " TOUCH_SECONDS ", number"
		" FROM refs WHERE id = ?";
	char hex[DIGEST_HEX_MAX];
	struct db_stmt *s;
	db_lock(l->db);
	int r = db_prepare(l->db, sql, &s, l->err);
	if (r == 0) {
		db_bind_blob(s, 1, id->bytes, sizeof(id->bytes));
		r = db_step(s, l->err);
	}
	if (r == 1) {
		int filled = fill_row(out, s);
		db_reset(s);
		db_unlock(l->db);
		return filled == -EBADMSG ? damaged(id, l->err)
		       : filled < 0	  ? no_memory(l->err)
					  : 0;
	}
	db_unlock(l->db);
	return r < 0 ? r
		     : err_set(l->err, -ENOENT, "no ref %s is kept in this store",
			       digest_hex(id, hex));
}

/* Who uses a ref every day writes once an hour at most; that it cannot be written is no harm. */
static void touch(struct loader *l, const struct digest *id)
{
	static const char sql[] = "UPDATE refs SET last_used = unixepoch() WHERE id = ?";
	struct err err = {0};
	struct db_stmt *s;
	db_lock(l->db);
	int r = db_begin(l->db, &err);
	if (r == 0)
		r = db_prepare(l->db, sql, &s, &err);
	if (r == 0) {
		db_bind_blob(s, 1, id->bytes, sizeof(id->bytes));
		r = db_step(s, &err);
	}
	db_end(l->db, r, &err);
	db_unlock(l->db);
	if (r < 0)
		log_info("the use of a ref is not noted: %s", err_text(&err, r));
}

/* ------------------------------------------------------------------ places */

/* Worth of a place: a larger one is taken first. */
static int place_rank(const char *place)
{
	if (str_starts(place, "registry "))
		return 2;
	const char *path = str_starts(place, "file ") ? strchr(place + 5, ' ') : NULL;
	if (!path)
		return 0;
	return access(path + 1, R_OK) == 0 ? 3 : 1;
}

/* The best place of a blob; NULL when none is known. */
static int find_place(struct loader *l, const struct digest *digest, char **out)
{
	static const char sql[] = "SELECT place FROM places WHERE digest = ? ORDER BY seen DESC";
	vec(char *) places = {0};
	struct db_stmt *s;
	db_lock(l->db);
	int r = db_prepare(l->db, sql, &s, l->err);
	if (r == 0)
		db_bind_blob(s, 1, digest->bytes, sizeof(digest->bytes));
	while (r == 0 && (r = db_step(s, l->err)) == 1) {
		char **slot = vec_push(&places);
		r = slot && (*slot = strdup(db_text(s, 0))) ? 0 : no_memory(l->err);
		if (r < 0)
			db_reset(s);
	}
	db_unlock(l->db);
	*out = NULL;
	int best = 0;
	for (size_t i = 0; i < places.n; i++) {
		int rank = r == 0 && places.items[i] ? place_rank(places.items[i]) : 0;
		if (rank > best) {
			free(*out);
			*out = take(places.items[i]);
			best = rank;
		}
		free(places.items[i]);
	}
	vec_free(&places);
	return r;
}

static int registry_place(struct loader *l, char *text, struct registry **out)
{
	char *space = strchr(text, ' ');
	if (!space)
		return 0;
	*space = '\0';
	const struct image_name name = {.host = text, .repository = space + 1};
	return source_image_registry(l->solver, &name, out, l->err);
}

/* Where a blob is: a remote, and the registry where it is one's; both NULL when only the store can
 * have it. */
static int find_origin(struct loader *l, const struct digest *digest, struct origin *out)
{
	scoped(free) char *place = NULL;
	int r = find_place(l, digest, &place);
	*out = (struct origin){.store = l->store};
	if (r < 0 || !place)
		return r;
	if (str_starts(place, "registry ")) {
		r = registry_place(l, place + strlen("registry "), &out->registry);
		if (r == 0 && out->registry)
			out->remote = remote_ref(registry_remote(out->registry));
		return r;
	}
	char *off = place + strlen("file "), *path = strchr(off, ' ');
	uint64_t value;
	*path++ = '\0';
	if (parse_u64(off, &value) < 0)
		return 0;
	r = remote_file_new(&out->remote, path, digest, value);
	return r < 0 ? no_memory(l->err) : 0;
}

static int find_remote(struct loader *l, const struct digest *digest, struct remote **out)
{
	scoped(origin_deinit) struct origin origin = {0};
	int r = find_origin(l, digest, &origin);
	*out = r == 0 ? take(origin.remote) : NULL;
	return r;
}

/* ------------------------------------------------------------------ images */

typedef vec(struct loaded_layer) layer_list;

static void layers_deinit(layer_list *layers)
{
	for (size_t i = 0; i < layers->n; i++) {
		desc_deinit(&layers->items[i].desc);
		remote_unref(layers->items[i].remote);
	}
	vec_free(layers);
}

static int get_annotations(struct desc *desc, const char *bytes, size_t n)
{
	while (n > 0) {
		const char *key = bytes, *key_end = memchr(key, '\0', n);
		const char *value = key_end ? key_end + 1 : NULL;
		const char *end = value ? memchr(value, '\0', n - (size_t)(value - bytes)) : NULL;
		if (!end)
			return -EBADMSG;
		if (desc_annotate(desc, key, value) < 0)
			return -ENOMEM;
		n -= (size_t)(end + 1 - bytes);
		bytes = end + 1;
	}
	return 0;
}

static int fill_layer(layer_list *layers, struct db_stmt *s)
{
	size_t n;
	if (db_i64(s, 0) != (int64_t)layers->n)
		return -EBADMSG;
	struct loaded_layer *layer = vec_push(layers);
	if (!layer)
		return -ENOMEM;
	column_digest(s, 1, &layer->desc.digest);
	layer->desc.size = (uint64_t)db_i64(s, 2);
	int r = column_text(s, 3, &layer->desc.media_type);
	if (r == 0) {
		const char *bytes = db_blob(s, 4, &n);
		r = get_annotations(&layer->desc, bytes, n);
	}
	column_digest(s, 5, &layer->diff_id);
	return r;
}

static int read_layers(struct loader *l, const struct digest *id, int64_t number, layer_list *out)
{
	static const char sql[] =
		"SELECT position, digest, size, media_type, annotations, diff_id FROM ref_layers"
		" WHERE ref = ? ORDER BY position";
	struct db_stmt *s;
	db_lock(l->db);
	int r = db_prepare(l->db, sql, &s, l->err);
	if (r == 0)
		db_bind_i64(s, 1, number);
	int filled = 0;
	while (r == 0 && filled == 0 && (r = db_step(s, l->err)) == 1) {
		filled = fill_layer(out, s);
		r = 0;
	}
	if (r == 0 && filled < 0)
		db_reset(s);
	db_unlock(l->db);
	if (filled < 0)
		return filled == -EBADMSG ? damaged(id, l->err) : no_memory(l->err);
	for (size_t i = 0; i < out->n && r == 0; i++)
		r = find_remote(l, &out->items[i].desc.digest, &out->items[i].remote);
	return r;
}

static int make_image(struct loader *l, const struct row *row, const struct origin *origin,
		      const layer_list *layers, struct ref **out)
{
	size_t n = layers->n;
	scoped(free) struct desc *descs = calloc(n + 1, sizeof(*descs));
	scoped(free) struct digest *diff_ids = calloc(n + 1, sizeof(*diff_ids));
	scoped(free) struct remote **remotes = calloc(n + 1, sizeof(struct remote *));
	bool has_diff_ids = n > 0;
	if (!descs || !diff_ids || !remotes)
		return no_memory(l->err);
	for (size_t i = 0; i < n; i++) {
		descs[i] = layers->items[i].desc;
		diff_ids[i] = layers->items[i].diff_id;
		remotes[i] = layers->items[i].remote;
		has_diff_ids = has_diff_ids && !digest_is_zero(&diff_ids[i]);
	}
	const struct ref_image image = {
		.name = row->name,
		.origin = origin,
		.layers = descs,
		.diff_ids = has_diff_ids ? diff_ids : NULL,
		.n_layers = n,
		.config = row->has_config ? &row->config : NULL,
		.manifest = row->has_manifest ? &row->manifest : NULL,
		.root = row->has_root ? &row->root : NULL,
		.platform = row->has_platform ? &row->platform : NULL,
		.first_layer = row->first_layer,
		.remotes = remotes,
	};
	return ref_image(out, &image, l->err);
}

static int load_image(struct loader *l, const struct digest *id, const struct row *row,
		      struct ref **out)
{
	scoped(origin_deinit) struct origin origin = {.store = l->store};
	layer_list layers = {0};
	int r = read_layers(l, id, row->number, &layers);
	if (r == 0 && row->has_config)
		r = find_origin(l, &row->config.digest, &origin);
	if (r == 0)
		r = make_image(l, row, &origin, &layers, out);
	layers_deinit(&layers);
	return r;
}

/* ------------------------------------------------------------------ trees */

typedef vec(struct treefile_layer) tree_layer_list;

static int read_tree_layers(struct loader *l, const struct digest *tree, tree_layer_list *out)
{
	static const char sql[] = "SELECT layer FROM tree_layers WHERE tree = ?";
	struct db_stmt *s;
	db_lock(l->db);
	int r = db_prepare(l->db, sql, &s, l->err);
	if (r == 0)
		db_bind_blob(s, 1, tree->bytes, sizeof(tree->bytes));
	while (r == 0 && (r = db_step(s, l->err)) == 1) {
		struct treefile_layer *layer = vec_push(out);
		r = layer ? 0 : no_memory(l->err);
		if (layer)
			column_digest(s, 0, &layer->digest);
		else
			db_reset(s);
	}
	db_unlock(l->db);
	for (size_t i = 0; i < out->n && r == 0; i++)
		r = find_remote(l, &out->items[i].digest, &out->items[i].remote);
	return r;
}

static int load_tree(struct loader *l, const struct row *row, struct ref **out)
{
	tree_layer_list layers = {0};
	int r = refdb_has_tree(l->store, &row->tree, l->err);
	if (r == 0)
		r = read_tree_layers(l, &row->tree, &layers);
	if (r == 0)
		r = ref_kept_tree(out, row->name, l->store, &row->tree, &layers.items, layers.n,
				  l->err);
	for (size_t i = 0; layers.items && i < layers.n; i++)
		remote_unref(layers.items[i].remote);
	free(layers.items);
	return r;
}

/* ------------------------------------------------------------------ merges */

static void frame_deinit(struct frame *f)
{
	for (size_t i = 0; i < f->parts.n; i++) {
		free(f->parts.items[i].trim);
		free(f->parts.items[i].add);
	}
	vec_free(&f->parts);
}

static int fill_part(struct frame *f, struct db_stmt *s)
{
	if (db_i64(s, 0) != (int64_t)f->parts.n)
		return -EBADMSG;
	struct part_row *part = vec_push(&f->parts);
	if (!part)
		return -ENOMEM;
	column_digest(s, 1, &part->child);
	int r = column_text(s, 2, &part->trim);
	return r < 0 ? r : column_text(s, 3, &part->add);
}

/* Puts a merge on the stack. */
static int begin_merge(struct loader *l, const struct digest *id, int64_t number)
{
	static const char sql[] = "SELECT position, child, trim, put FROM ref_parts WHERE ref = ?"
				  " ORDER BY position";
	struct frame *f = vec_push(&l->stack);
	struct db_stmt *s;
	if (!f)
		return no_memory(l->err);
	f->id = *id;
	db_lock(l->db);
	int r = db_prepare(l->db, sql, &s, l->err);
	if (r == 0)
		db_bind_i64(s, 1, number);
	int filled = 0;
	while (r == 0 && filled == 0 && (r = db_step(s, l->err)) == 1) {
		filled = fill_part(f, s);
		r = 0;
	}
	if (r == 0 && filled < 0)
		db_reset(s);
	db_unlock(l->db);
	return filled == -EBADMSG ? damaged(id, l->err) : filled < 0 ? no_memory(l->err) : r;
}

static struct ref *made_ref(struct loader *l, const struct digest *id)
{
	bool is_new;
	void **slot = id_table_get(&l->made, id, &is_new);
	return slot ? *slot : NULL;
}

/* A ref that came out of rows must be what its id says. Takes @ref. */
static int finish(struct loader *l, const struct digest *id, struct ref *ref)
{
	scoped(ref_unref) struct ref *made = ref;
	struct digest is;
	bool is_new;
	if (refdb_id(made, &is) < 0)
		return no_memory(l->err);
	if (!digest_equal(&is, id))
		return damaged(id, l->err);
	refdb_set_kept(made, l->store, id);
	void **slot = id_table_get(&l->made, id, &is_new);
	if (!slot)
		return no_memory(l->err);
	*slot = take(made);
	return 0;
}

/* All parts are made. */
static int finish_merge(struct loader *l, struct frame *f)
{
	scoped(free) struct ref_part *parts = calloc(f->parts.n + 1, sizeof(*parts));
	struct ref *ref;
	if (!parts)
		return no_memory(l->err);
	for (size_t i = 0; i < f->parts.n; i++) {
		struct part_row *row = &f->parts.items[i];
		parts[i] = (struct ref_part){
			.ref = made_ref(l, &row->child), .trim = row->trim, .add = row->add};
	}
	int r = ref_merge(&ref, parts, f->parts.n, l->err);
	return r < 0 ? r : finish(l, &f->id, ref);
}

/* ------------------------------------------------------------------ the walk */

/* Makes the ref, or begins to. */
static int begin(struct loader *l, const struct digest *id, bool is_top)
{
	scoped(row_deinit) struct row row = {0};
	struct ref *ref = NULL;
	bool is_new;
	void **slot = id_table_get(&l->made, id, &is_new);
	if (!slot)
		return no_memory(l->err);
	if (!is_new) /* a merge that is a part of itself has no end */
		return *slot ? 0 : damaged(id, l->err);
	int r = read_ref(l, id, &row);
	if (r < 0)
		return r;
	if (is_top && row.is_stale)
		touch(l, id);
	switch (row.kind) {
	case REF_MERGE:
		return begin_merge(l, id, row.number);
	case REF_IMAGE:
		r = load_image(l, id, &row, &ref);
		break;
	case REF_TREE:
		r = load_tree(l, &row, &ref);
		break;
	case REF_SCRATCH:
		r = ref_scratch(&ref, l->err);
		break;
	case REF_DIR:
		return damaged(id, l->err);
	}
	return r < 0 ? r : finish(l, id, ref);
}

static int load_all(struct loader *l, const struct digest *id)
{
	int r = begin(l, id, true);
	while (r == 0 && l->stack.n > 0) {
		struct frame *top = &l->stack.items[l->stack.n - 1];
		if (top->next < top->parts.n) {
			const struct digest child = top->parts.items[top->next++].child;
			r = begin(l, &child, false);
			continue;
		}
		r = finish_merge(l, top);
		frame_deinit(top);
		l->stack.n--;
	}
	return r;
}

int ref_load(struct solver *solver, const struct digest *id, struct ref **out, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	struct loader l = {.solver = solver,
			   .store = solver->options.store,
			   .db = store_db(solver->options.store),
			   .err = err};
	db_read_begin(l.db);
	int r = load_all(&l, id);
	db_read_end(l.db);
	if (r == 0)
		*out = ref_ref(made_ref(&l, id));
	for (size_t i = 0; i < l.stack.n; i++)
		frame_deinit(&l.stack.items[i]);
	vec_free(&l.stack);
	for (size_t i = 0; i < l.made.size; i++)
		if (l.made.slots[i].is_used)
			ref_unref(l.made.slots[i].value);
	id_table_deinit(&l.made);
	return r < 0 ? err_wrap(err, r, "ref://%s", digest_hex(id, hex)) : 0;
}

int refdb_resolve(struct solver *solver, const char *text, const struct ref_text *what,
		  struct ref **out, struct err *err)
{
	struct digest id;
	int r = ref_find(solver, what->name, &id, err);
	return r < 0 ? err_wrap(err, r, "%s", text) : ref_load(solver, &id, out, err);
}
