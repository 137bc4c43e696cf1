/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The layers of a ref: what an image of it is made of, in BuildKit's order.
 *
 *	image		its layers, as they are
 *	merge		the layers of its parts, one part after another, equal ones as often as they come
 *	tree		one layer, packed from what was made here
 *	partition	of a part only some folder, or below some folder: one layer, packed from its files
 *
 * So a layer that exists is a descriptor all the way: nobody asks for a byte of it, wherever it
 * is. Only force_compression (its plain bytes stay, and with them its diff ID) and
 * rewrite_timestamp (it is packed again from its files: in the order of their names, and without
 * what trees do not keep, as trusted xattrs) read it.
 *
 * What was packed is a blob of the store and a row of layer_blobs, by the digest of what it was
 * made of (a tree's file, a partition's id, a blob) and how. A row whose blob was evicted is as
 * good as none. Two processes that pack the same thing get the same bytes, so the lock spares work and
 * nothing else.
 *
 * Where the history of an image says who made a layer, and when, that is what the catalogue says of
 * its ref: two images of one ref are equal, whenever they are made.
 *
 * Merges nest as deep as a definition is long: the walk keeps a stack of its own.
 */

#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/ref-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* What has more cannot be mounted by anybody else; merges of merges double. */
#define LAYERS_MAX 4096
#define STEPS_MAX (1u << 20)

#define REWRITTEN "buildkit/rewritten-timestamp"

struct layers {
	struct image *image;
	struct solver *solver;
	struct store *store;
	struct db *db;
	const struct image_options *options;
	vec(struct ref_part) todo; /* a stack, borrowed */
	vec(struct image_layer) made;
	struct err *err;
};

/* What a layer is packed from: one of ref (a made tree, or a partition) and layer (of an image). */
struct pack {
	struct ref *ref;
	const struct ref_layer *layer;
	bool is_plain; /* the bytes of the layer's tar stay what they are */
	struct digest key;
	enum plain_format format;
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ media types */

static const char *const oci_types[] = {
	[PLAIN_TAR] = "application/vnd.oci.image.layer.v1.tar",
	[PLAIN_GZIP] = "application/vnd.oci.image.layer.v1.tar+gzip",
	[PLAIN_ZSTD] = "application/vnd.oci.image.layer.v1.tar+zstd",
};
static const char *const docker_types[] = {
	[PLAIN_TAR] = "application/vnd.docker.image.rootfs.diff.tar",
	[PLAIN_GZIP] = "application/vnd.docker.image.rootfs.diff.tar.gzip",
	[PLAIN_ZSTD] = "application/vnd.docker.image.rootfs.diff.tar.zstd",
};

static int set_type(struct layers *l, struct desc *desc, enum plain_format format)
{
	const char *type = (l->options->docker_types ? docker_types : oci_types)[format];
	free(desc->media_type);
	desc->media_type = strdup(type);
	return desc->media_type ? 0 : no_memory(l->err);
}

static int open_layer(struct layers *l, const struct ref_layer *layer, struct blob **out)
{
	return blob_open(out, l->store, &layer->desc, layer->remote, l->err);
}

/* By the media type; where it says nothing (an archive of docker's) by the first bytes. */
static int layer_format(struct layers *l, const struct ref_layer *layer, enum plain_format *out)
{
	const char *type = layer->desc.media_type;
	scoped(blob_unref) struct blob *blob = NULL;
	uint8_t magic[4] = {0};
	*out = PLAIN_TAR;
	if (type) {
		if (str_ends(type, "gzip"))
			*out = PLAIN_GZIP;
		else if (str_ends(type, "zstd"))
			*out = PLAIN_ZSTD;
		return 0;
	}
	int r = open_layer(l, layer, &blob);
	if (r == 0)
		r = blob_read_stored(blob, 0, magic, MIN(layer->desc.size, sizeof(magic)), l->err);
	if (r == 0 && magic[0] == 0x1f && magic[1] == 0x8b)
		*out = PLAIN_GZIP;
	else if (r == 0 && le32(magic) == 0xfd2fb528)
		*out = PLAIN_ZSTD;
	return r;
}

/* ------------------------------------------------------------------ what was packed before */

static void bind_digest(struct db_stmt *s, int i, const struct digest *digest)
{
	db_bind_blob(s, i, digest->bytes, sizeof(digest->bytes));
}

static bool column_digest(struct db_stmt *s, int col, struct digest *out)
{
	size_t n;
	const void *bytes = db_blob(s, col, &n);
	if (n == sizeof(out->bytes))
		memcpy(out->bytes, bytes, n);
	return n == sizeof(out->bytes);
}

static int make_table(struct layers *l)
{
	db_lock(l->db);
	int r = db_exec(l->db,
			"CREATE TABLE IF NOT EXISTS layer_blobs ("
			" source BLOB NOT NULL, form TEXT NOT NULL, digest BLOB NOT NULL,"
			" size INTEGER NOT NULL, diff_id BLOB NOT NULL,"
			" PRIMARY KEY (source, form)) WITHOUT ROWID",
			l->err);
	db_unlock(l->db);
	return r;
}

/* 1 when it was packed before and the store still has it. */
static int pack_known(struct layers *l, const struct pack *p, const char *form,
		      struct image_layer *out)
{
	static const char sql[] = "SELECT digest, size, diff_id FROM layer_blobs"
				  " WHERE source = ? AND form = ?";
	struct db_stmt *stmt;
	db_lock(l->db);
	int r = db_prepare(l->db, sql, &stmt, l->err);
	if (r == 0) {
		bind_digest(stmt, 1, &p->key);
		db_bind_text(stmt, 2, form);
		r = db_step(stmt, l->err);
	}
	if (r == 1) {
		out->desc.size = (uint64_t)db_i64(stmt, 1);
		r = column_digest(stmt, 0, &out->desc.digest) &&
		    column_digest(stmt, 2, &out->diff_id);
		db_reset(stmt);
	}
	db_unlock(l->db);
	return r == 1 ? blob_is_kept(l->store, &out->desc.digest, out->desc.size) : r;
}

static int pack_note(struct layers *l, const struct pack *p, const char *form,
		     const struct image_layer *layer)
{
	static const char sql[] =
		"INSERT INTO layer_blobs (source, form, digest, size, diff_id)"
		" VALUES (?, ?, ?, ?, ?) ON CONFLICT (source, form) DO UPDATE SET"
		" digest = excluded.digest, size = excluded.size, diff_id = excluded.diff_id";
	struct db_stmt *stmt;
	db_lock(l->db);
	int r = db_prepare(l->db, sql, &stmt, l->err);
	if (r == 0) {
		bind_digest(stmt, 1, &p->key);
		db_bind_text(stmt, 2, form);
		bind_digest(stmt, 3, &layer->desc.digest);
		db_bind_i64(stmt, 4, (int64_t)layer->desc.size);
		bind_digest(stmt, 5, &layer->diff_id);
		r = db_step(stmt, l->err);
	}
	db_unlock(l->db);
	return MIN(r, 0);
}

/* ------------------------------------------------------------------ packing */

struct pack_sink {
	struct blob_draft *draft;
	struct err *err;
};

static int pack_write(void *arg, const void *bytes, size_t n)
{
	struct pack_sink *s = arg;
	return blob_draft_write(s->draft, bytes, n, s->err);
}

static int pack_tree(struct layers *l, const struct pack *p, struct pack_sink *sink)
{
	const struct tar_layer tar = {
		.has_epoch = l->options->rewrite_timestamp,
		.epoch = l->options->epoch,
		.all_xattrs = p->layer != NULL,
	};
	scoped(tree_unref) struct tree *tree = NULL;
	int r;
	if (p->layer)
		r = layer_open(&tree, l->store, &p->layer->desc, p->layer->remote,
			       digest_is_zero(&p->layer->diff_id) ? NULL : &p->layer->diff_id,
			       l->err);
	else
		r = ref_tree_raw(&tree, p->ref, l->store, l->err);
	return r < 0 ? r : tar_write_layer(tree, &tar, pack_write, sink, l->err);
}

static int pack_plain(struct layers *l, const struct pack *p, struct pack_sink *sink)
{
	scoped(blob_unref) struct blob *blob = NULL;
	int r = open_layer(l, p->layer, &blob);
	return r < 0 ? r : blob_copy_plain(blob, pack_write, sink, l->err);
}

static int pack_make(struct layers *l, const struct pack *p, const char *form,
		     struct image_layer *out)
{
	scoped(blob_draft_free) struct blob_draft *draft = NULL;
	int r = blob_draft_begin(&draft, l->store, p->format, l->options->level, l->err);
	struct pack_sink sink = {draft, l->err};
	if (r == 0)
		r = p->is_plain ? pack_plain(l, p, &sink) : pack_tree(l, p, &sink);
	if (r == 0)
		r = blob_draft_commit(draft, &out->desc.digest, &out->desc.size, &out->diff_id,
				      l->err);
	if (r == 0 && p->is_plain && !digest_is_zero(&p->layer->diff_id) &&
	    !digest_equal(&p->layer->diff_id, &out->diff_id))
		r = err_set(l->err, -EBADMSG, "its diff ID is not what the image's config says");
	return r < 0 ? r : pack_note(l, p, form, out);
}

/* Gives digest, size, media type and diff ID. */
static int pack(struct layers *l, const struct pack *p, struct image_layer *out)
{
	const struct image_options *o = l->options;
	scoped(close_fd) int lock = -1;
	scoped(free) char *form = str_printf("1 %s %d %d epoch %lld",
					     p->is_plain ? "bytes"
					     : p->layer	 ? "files"
							 : "changes",
					     (int)p->format, o->level,
					     o->rewrite_timestamp ? (long long)o->epoch : -1LL);
	if (!form)
		return no_memory(l->err);
	int r = pack_known(l, p, form, out);
	if (r == 0) {
		/* Who cannot wait any longer makes the same bytes. */
		r = store_lock_key(l->store, "packs", le64(p->key.bytes),
				   store_deadline_ms(l->store), &lock, NULL);
		r = lock >= 0 && r == 0 ? pack_known(l, p, form, out) : 0;
	}
	if (r == 0)
		r = pack_make(l, p, form, out);
	return r < 0 ? r : set_type(l, &out->desc, p->format);
}

/* ------------------------------------------------------------------ who made it, and when */

/* What the catalogue says of @ref. */
static int ask_row(struct layers *l, struct ref *ref, char **name, int64_t *created)
{
	struct digest id;
	struct db_stmt *stmt;
	ref_id(ref, &id);
	db_lock(l->db);
	int r = db_prepare(l->db, "SELECT name, created FROM refs WHERE id = ?", &stmt, l->err);
	if (r == 0) {
		bind_digest(stmt, 1, &id);
		r = db_step(stmt, l->err);
	}
	if (r == 1) {
		*name = strdup(*db_text(stmt, 0) ? db_text(stmt, 0) : ref_name(ref));
		*created = db_i64(stmt, 1);
		db_reset(stmt);
	}
	db_unlock(l->db);
	if (r == 0)
		return err_set(l->err, -ENOENT, "%s is not in the catalogue any more",
			       ref_name(ref));
	return r < 0 ? r : *name ? 0 : no_memory(l->err);
}

/* In BuildKit's words, by the kind of source. */
static char *describe(const struct ref *ref, const char *name)
{
	if (ref_kind(ref) == REF_IMAGE)
		return str_printf("pulled from %s", name);
	if (str_starts(name, "local://"))
		return str_printf("local source for %s", name + strlen("local://"));
	if (str_starts(name, "http://") || str_starts(name, "https://"))
		return str_printf("http url %s", name);
	if (str_starts(name, "git://"))
		return str_printf("git snapshot for %s", name + strlen("git://"));
	return strdup(name);
}

/* A new layer of the image, with what its history says. */
static struct image_layer *add_layer(struct layers *l, struct ref *of)
{
	scoped(free) char *name = NULL;
	int64_t created = 0;
	if (l->made.n >= LAYERS_MAX) {
		err_set(l->err, -E2BIG, "more than %d layers", LAYERS_MAX);
		return NULL;
	}
	if (ask_row(l, of, &name, &created) < 0)
		return NULL;
	struct image_layer *layer = vec_push(&l->made);
	if (!layer || !(layer->created_by = describe(of, name))) {
		no_memory(l->err);
		return NULL;
	}
	layer->created = created;
	return layer;
}

static int failed(struct layers *l)
{
	return l->err->code ? l->err->code : -ENOMEM;
}

/* ------------------------------------------------------------------ layers that exist */

static bool is_internal(const char *key)
{
	return strcmp(key, "containerd.io/uncompressed") == 0 ||
	       strcmp(key, "buildkit/createdat") == 0 || strcmp(key, "buildkit/description") == 0 ||
	       str_starts(key, "containerd.io/distribution.source.");
}

static int copy_annotations(struct layers *l, struct desc *to, const struct desc *from)
{
	for (size_t i = 0; i < from->n_annotations; i++) {
		const struct annotation *a = &from->annotations[i];
		if (!is_internal(a->key) && desc_annotate(to, a->key, a->value) < 0)
			return no_memory(l->err);
	}
	return 0;
}

static int count_nothing(void *arg, const void *bytes, size_t n)
{
	hasher_add(arg, bytes, n);
	return 0;
}

/* A layer of something that has no config: its annotation says it, or its bytes. */
static int need_diff_id(struct layers *l, const struct ref_layer *layer, struct digest *out)
{
	const char *said = desc_annotation(&layer->desc, "containerd.io/uncompressed");
	scoped(blob_unref) struct blob *blob = NULL;
	scoped(hasher_free) struct hasher *h = hasher_new();
	if (!digest_is_zero(out))
		return 0;
	if (said && digest_parse(out, said, NULL) == 0)
		return 0;
	int r = h ? open_layer(l, layer, &blob) : no_memory(l->err);
	if (r == 0)
		r = blob_copy_plain(blob, count_nothing, h, l->err);
	if (r == 0)
		hasher_done(h, out);
	return r;
}

static int keep_layer(struct layers *l, const struct ref_layer *layer, enum plain_format format,
		      struct image_layer *out)
{
	out->desc.digest = layer->desc.digest;
	out->desc.size = layer->desc.size;
	out->diff_id = layer->diff_id;
	out->remote = layer->remote ? remote_ref(layer->remote) : NULL;
	int r = need_diff_id(l, layer, &out->diff_id);
	if (r == 0)
		r = set_type(l, &out->desc, format);
	return r < 0 ? r : copy_annotations(l, &out->desc, &layer->desc);
}

static int mark_rewritten(struct layers *l, struct image_layer *out)
{
	char text[24];
	if (!l->options->rewrite_timestamp)
		return 0;
	snprintf(text, sizeof(text), "%lld", (long long)l->options->epoch);
	return desc_annotate(&out->desc, REWRITTEN, text) < 0 ? no_memory(l->err) : 0;
}

static int add_image_layer(struct layers *l, struct ref *ref, const struct ref_layer *layer)
{
	const struct image_options *o = l->options;
	enum plain_format format;
	struct image_layer *out = add_layer(l, ref);
	int r = out ? layer_format(l, layer, &format) : failed(l);
	if (r < 0)
		return r;
	bool is_other = o->force_compression && format != o->compression;
	if (!is_other && !o->rewrite_timestamp)
		return keep_layer(l, layer, format, out);
	struct pack p = {
		.layer = layer,
		.is_plain = !o->rewrite_timestamp,
		.key = layer->desc.digest,
		.format = o->force_compression ? o->compression : format,
	};
	r = pack(l, &p, out);
	return r < 0 ? r : mark_rewritten(l, out);
}

static int add_image(struct layers *l, struct ref *ref)
{
	const struct ref_layer *layers;
	size_t n = ref_layers(ref, &layers);
	struct err why = {0};
	int r = ref_need_diff_ids(ref, &why);
	if (r < 0 && r != -ENOENT)
		return err_set(l->err, r, "%s", err_text(&why, r));
	for (size_t i = 0; i < n; i++) {
		r = add_image_layer(l, ref, &layers[i]);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ------------------------------------------------------------------ layers that are made */

static int add_packed(struct layers *l, struct ref *of, const struct pack *p)
{
	struct image_layer *out = add_layer(l, of);
	int r = out ? pack(l, p, out) : failed(l);
	return r < 0 ? r : mark_rewritten(l, out);
}

static int add_tree(struct layers *l, struct ref *ref)
{
	struct pack p = {.ref = ref, .format = l->options->compression};
	pthread_mutex_lock(&ref->id_lock);
	p.key = ref->tree_digest;
	pthread_mutex_unlock(&ref->id_lock);
	return add_packed(l, ref, &p);
}

static int add_partition(struct layers *l, const struct ref_part *part)
{
	scoped(ref_unref) struct ref *alone = NULL;
	struct pack p = {.format = l->options->compression};
	int r = ref_merge(&alone, part, 1, l->err);
	if (r == 0 && refdb_id(alone, &p.key) < 0)
		r = no_memory(l->err);
	p.ref = alone;
	return r < 0 ? r : add_packed(l, part->ref, &p);
}

/* ------------------------------------------------------------------ the walk */

static int push(struct layers *l, const struct ref_part *part)
{
	struct ref_part *slot = vec_push(&l->todo);
	if (!slot)
		return no_memory(l->err);
	*slot = *part;
	return 0;
}

static int add_part(struct layers *l, const struct ref_part *part)
{
	struct ref *ref = part->ref;
	const struct ref_part *parts;
	int r = 0;
	if (part->trim || part->add)
		return add_partition(l, part);
	switch (ref_kind(ref)) {
	case REF_IMAGE:
		return add_image(l, ref);
	case REF_TREE:
		return add_tree(l, ref);
	case REF_MERGE:
		for (size_t i = ref_parts(ref, &parts); i-- > 0 && r == 0;)
			r = push(l, &parts[i]);
		return r;
	case REF_DIR: /* was refused when it was to be saved */
	case REF_SCRATCH:
		break;
	}
	return 0;
}

static int add_all(struct layers *l, struct ref *ref)
{
	const struct ref_part whole = {.ref = ref};
	int r = push(l, &whole);
	for (size_t n = 0; r == 0 && l->todo.n > 0; n++) {
		struct ref_part part = l->todo.items[--l->todo.n];
		r = n < STEPS_MAX ? add_part(l, &part)
				  : err_set(l->err, -E2BIG, "merges of merges without end");
	}
	return r;
}

int ref_layers_make(struct image *out, struct ref *ref, struct solver *solver,
		    const struct image_options *options, struct err *err)
{
	struct store *store = solver->options.store;
	struct err own = {0};
	struct layers l = {
		.image = out,
		.solver = solver,
		.store = store,
		.db = store_db(store),
		.options = options,
		.err = &own,
	};
	struct digest id;
	int r = ref_save(ref, solver, &id, &own);
	if (r == 0)
		r = make_table(&l);
	if (r == 0)
		r = add_all(&l, ref);
	vec_free(&l.todo);
	out->layers = take(l.made.items);
	out->n_layers = l.made.n;
	return r < 0 ? err_set(err, r, "%s: %s", ref_name(ref), err_text(&own, r)) : 0;
}
