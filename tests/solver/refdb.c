/* SPDX-License-Identifier: Apache-2.0 */

/* refdb: refs that are saved, and are there again in another solver, store handle or process. */

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "solver/ref-internal.h"
#include "tests/solver/layout.h"
#include "tests/test.h"

struct fixture {
	char *dir, *layout, *root;
	struct store *store;
	struct solver *solver;
};

static void open_all(struct fixture *f, uint64_t max_bytes)
{
	struct solver_options options = {.platform = {"linux", "amd64", ""}};

	f->store = test_store(f->root, max_bytes);
	options.store = f->store;
	assert_int_equal(solver_new(&f->solver, &options, NULL), 0);
}

static void close_all(struct fixture *f)
{
	solver_free(f->solver);
	store_close(f->store);
}

/* As another process would find it. */
static void reopen(struct fixture *f, uint64_t max_bytes)
{
	close_all(f);
	open_all(f, max_bytes);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->dir = test_dir();
	f->layout = str_printf("%s/layout", f->dir);
	f->root = str_printf("%s/store", f->dir);
	open_all(f, 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	close_all(f);
	free(f->layout);
	free(f->root);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

/* ------------------------------------------------------------------ refs to save */

/* One image of one layer: /f, /d/g, /d/hard (a link to it), /link -> f. */
static void make_layout(const char *dir)
{
	struct strbuf layer = {0};
	struct digest digest;

	tar_member(&layer, '0', "f", "layer f", 7);
	tar_member(&layer, '5', "d", NULL, 0);
	tar_member(&layer, '0', "d/g", "layer g", 7);
	tar_member(&layer, '1', "d/hard", "d/g", 0);
	tar_member(&layer, '2', "link", "f", 0);
	tar_end(&layer);
	struct strbuf desc = layout_image(dir, &layer, 1, "amd64", &digest);
	strbuf_puts(&desc, "}");
	layout_index(dir, desc.data);
	strbuf_free(&desc);
	strbuf_free(&layer);
}

static struct ref *image(struct fixture *f)
{
	scoped(free) char *text = str_printf("oci-layout://%s", f->layout);
	struct ref *ref = NULL;
	struct err err = {0};

	make_layout(f->layout);
	if (solver_resolve(f->solver, text, &ref, &err) < 0)
		fail_msg("%s", err.text);
	return ref;
}

static struct tree *tree_of(struct fixture *f, struct ref *ref)
{
	struct tree *t = NULL;
	struct err err = {0};

	if (ref_tree(&t, ref, f->store, NULL, NULL, &err) < 0)
		fail_msg("%s", err.text);
	return t;
}

static uint64_t put(struct edit *e, uint64_t dir, const char *name, struct attr attr,
		    const void *data, size_t n)
{
	const struct edit_what what = {.attr = &attr, .data = data, .len = n};
	uint64_t node;

	assert_int_equal(edit_make(e, dir, name, strlen(name), &what, &node, NULL), 0);
	return node;
}

static uint64_t copy(struct edit *e, const char *name, struct tree *from, const char *path)
{
	struct attr attr;
	uint64_t node;

	assert_int_equal(tree_walk(from, path, false, &attr, NULL), 0);
	const struct edit_what what = {
		.attr = &attr, .from = from, .from_id = attr.id, .was = &attr};
	assert_int_equal(edit_make(e, TREE_ROOT, name, strlen(name), &what, &node, NULL), 0);
	return node;
}

static struct ref *made(struct edit *e, const char *name)
{
	struct tree *t;
	struct ref *ref;

	assert_int_equal(edit_seal(&t, &e, NULL), 0);
	assert_int_equal(ref_made(&ref, name, t, NULL), 0);
	tree_unref(t);
	return ref;
}

/* A layer with all that there is, over @below, which has /d and /f. */
static struct ref *everything(struct tree *below, struct tree *host)
{
	static const struct timespec now = {.tv_sec = 77, .tv_nsec = 5};
	struct edit *e;
	uint64_t dir, node;

	assert_int_equal(edit_new(&e, below, &now), 0);
	dir = put(e, TREE_ROOT, "new", (struct attr){.type = NODE_DIR, .mode = 01777, .uid = 3},
		  NULL, 0);
	node = put(e, dir, "file", (struct attr){.type = NODE_FILE, .mode = 04755, .gid = 9},
		   "text", 4);
	assert_int_equal(edit_add_xattr(e, node, "user.z", "1\0002", 3, NULL), 0);
	assert_int_equal(edit_add_xattr(e, node, "user.a", "", 0, NULL), 0);
	assert_int_equal(edit_link(e, TREE_ROOT, "hard", 4, node, NULL), 0);
	put(e, dir, "to", (struct attr){.type = NODE_SYMLINK, .mode = 0777}, "../hard", 7);
	put(e, dir, "null",
	    (struct attr){.type = NODE_CHAR, .mode = 0666, .dev_major = 1, .dev_minor = 3}, NULL,
	    0);
	put(e, dir, "pipe", (struct attr){.type = NODE_FIFO, .mode = 0600}, NULL, 0);
	put(e, dir, "empty", (struct attr){.type = NODE_FILE, .mtime_s = -5}, NULL, 0);
	assert_int_equal(edit_child(e, TREE_ROOT, "d", 1, &node, NULL), 0);
	edit_remove(e, TREE_ROOT, "d", 1);
	put(e, TREE_ROOT, "d", (struct attr){.type = NODE_DIR, .mode = 0700}, NULL, 0); /* opaque */
	assert_int_equal(edit_child(e, TREE_ROOT, "f", 1, &node, NULL), 0);
	edit_remove(e, TREE_ROOT, "f", 1); /* a whiteout */
	copy(e, "copied", below, "/d/g");
	if (host) {
		copy(e, "host-small", host, "/small");
		copy(e, "host-large", host, "/large");
	}
	return made(e, "everything");
}

/* A host folder: /small of a few bytes, /large of 3 MB. */
static struct tree *host_folder(struct fixture *f)
{
	scoped(free) char *dir = str_printf("%s/host", f->dir);
	size_t n = 3000000;
	scoped(free) uint8_t *bytes = malloc(n);
	struct tree *t;

	test_fill(bytes, n, 7);
	file_write(dir, "small", "small", 5);
	file_write(dir, "large", bytes, n);
	assert_int_equal(dirtree_new(&t, dir, false, NULL), 0);
	return t;
}

/* ------------------------------------------------------------------ saving, loading, comparing */

static struct digest save(struct fixture *f, struct ref *ref)
{
	struct digest id, again;
	struct err err = {0};

	if (ref_save(ref, f->solver, &id, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(ref_save(ref, f->solver, &again, NULL), 0);
	assert_memory_equal(&id, &again, sizeof(id));
	return id;
}

static struct ref *load(struct fixture *f, const struct digest *id)
{
	struct ref *ref = NULL;
	struct err err = {0};
	struct digest is;

	if (ref_load(f->solver, id, &ref, &err) < 0)
		fail_msg("%s", err.text);
	assert_true(ref_id(ref, &is));
	assert_memory_equal(&is, id, sizeof(is));
	return ref;
}

static int add_xattr(void *arg, const char *name, const void *value, size_t len)
{
	strbuf_printf(arg, " %s=%zu:", name, len);
	strbuf_add(arg, value, len);
	return 0;
}

struct dump {
	struct tree *t;
	struct strbuf text;
};

static int dump_node(void *arg, const char *path, const char *name, const struct attr *a)
{
	struct dump *d = arg;
	struct digest digest = {{0}};
	char hex[DIGEST_HEX_MAX];

	strbuf_printf(&d->text,
		      "%s id %llx type %u %d%d%d mode %o own %u:%u nlink %u size %llu %llu", path,
		      (unsigned long long)a->id, a->type, a->is_opaque, a->is_implicit, a->is_live,
		      a->mode, a->uid, a->gid, a->nlink, (unsigned long long)a->size,
		      (unsigned long long)a->n_bytes_allocated);
	strbuf_printf(&d->text, " time %lld.%u dev %u:%u", (long long)a->mtime_s, a->mtime_ns,
		      a->dev_major, a->dev_minor);
	assert_int_equal(tree_xattrs(d->t, a->id, add_xattr, &d->text, NULL), 0);
	if (a->type == NODE_SYMLINK)
		assert_int_equal(tree_readlink(d->t, a->id, &d->text, NULL), 0);
	if (a->type == NODE_FILE) {
		scoped(free) char *bytes = malloc(a->size + 1);
		struct err err = {0};
		int64_t n = tree_read(d->t, a->id, 0, bytes, a->size, NULL, NULL, &err);
		if (n != (int64_t)a->size)
			fail_msg("%s: %lld %s", path, (long long)n, err.text);
		digest_bytes(&digest, bytes, a->size);
		strbuf_printf(&d->text, " %s", digest_hex(&digest, hex));
		assert_int_equal(
			tree_read(d->t, a->id, a->size / 2, bytes, a->size, NULL, NULL, NULL),
			a->size - a->size / 2);
	}
	strbuf_putc(&d->text, '\n');
	return 0;
}

static struct strbuf dump(struct tree *t)
{
	struct dump d = {.t = t};
	struct err err = {0};

	strbuf_puts(&d.text, "\n");
	if (tree_walk_all(t, TREE_ROOT, dump_node, &d, &err) < 0)
		fail_msg("%s", err.text);
	return d.text;
}

/* All that can be asked of the trees is the same, raw (of made trees) and cooked. */
static void expect_same(struct fixture *f, struct ref *ref, const struct strbuf *cooked,
			const struct strbuf *raw)
{
	struct tree *t = tree_of(f, ref);
	struct strbuf is = dump(t);

	assert_string_equal(is.data, cooked->data);
	strbuf_free(&is);
	tree_unref(t);
	if (!raw)
		return;
	assert_int_equal(ref_made_tree(ref, &t, NULL), 0);
	is = dump(t);
	assert_string_equal(is.data, raw->data);
	strbuf_free(&is);
}

/* Saves @ref, which it drops, and expects it in other processes. */
static struct digest round_trip(struct fixture *f, struct ref *ref)
{
	struct tree *t = tree_of(f, ref);
	struct strbuf cooked = dump(t), raw = {0};
	struct digest id = save(f, ref);

	tree_unref(t);
	if (ref_kind(ref) == REF_TREE) {
		assert_int_equal(ref_made_tree(ref, &t, NULL), 0);
		raw = dump(t);
	}
	ref_unref(ref);
	for (int i = 0; i < 2; i++) { /* the second is of what was loaded and saved again */
		reopen(f, 0);
		ref = load(f, &id);
		expect_same(f, ref, &cooked, raw.data ? &raw : NULL);
		struct digest again = save(f, ref);
		assert_memory_equal(&again, &id, sizeof(id));
		ref_unref(ref);
	}
	strbuf_free(&cooked);
	strbuf_free(&raw);
	return id;
}

/* ------------------------------------------------------------------ tests */

static void an_image_is_found_again(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = image(f), *again;
	struct strbuf config = {0}, config_again = {0};
	const struct ref_layer *a, *b;
	struct digest id = save(f, ref);
	char hex[DIGEST_HEX_MAX];

	digest_hex(&id, hex);
	scoped(free) char *text = str_printf("ref://%.10s", hex);
	assert_int_equal(solver_resolve(f->solver, text, &again, NULL), 0);
	assert_int_equal(ref_kind(again), REF_IMAGE);
	assert_string_equal(ref_name(again), ref_name(ref));
	assert_memory_equal(ref_manifest(again), ref_manifest(ref), sizeof(struct digest));
	assert_memory_equal(ref_root(again), ref_root(ref), sizeof(struct digest));
	assert_null(ref_platform(again));
	assert_int_equal(ref_config(ref, &config, NULL), 0);
	assert_int_equal(ref_config(again, &config_again, NULL), 0);
	assert_string_equal(config.data, config_again.data);
	assert_int_equal(ref_need_diff_ids(again, NULL), 0);
	assert_int_equal(ref_layers(again, &b), ref_layers(ref, &a));
	assert_memory_equal(&a->desc.digest, &b->desc.digest, sizeof(struct digest));
	assert_string_equal(a->desc.media_type, b->desc.media_type);
	assert_int_equal(a->desc.size, b->desc.size);
	strbuf_free(&config);
	strbuf_free(&config_again);
	ref_unref(again);
	round_trip(f, ref);
}

static void equal_refs_have_equal_ids(void **state)
{
	struct fixture *f = *state;
	struct ref *a = image(f), *b, *slice;
	scoped(free) char *other = str_printf("%s/other", f->dir);
	scoped(free) char *text = str_printf("oci-layout://%s", other);
	struct digest id_a = save(f, a), id_b, id_slice;

	make_layout(other);
	assert_int_equal(solver_resolve(f->solver, text, &b, NULL), 0);
	id_b = save(f, b);
	assert_memory_equal(&id_a, &id_b, sizeof(id_a));
	struct ref_part parts[] = {{a}, {b, .add = (char[]){"/x"}}};
	struct ref *m, *n;
	assert_int_equal(ref_merge(&m, parts, 2, NULL), 0);
	assert_int_equal(
		ref_merge(&n, (struct ref_part[]){{b}, {a, .add = (char[]){"/x"}}}, 2, NULL), 0);
	id_a = save(f, m);
	id_b = save(f, n);
	assert_memory_equal(&id_a, &id_b, sizeof(id_a));
	assert_int_equal(ref_slice(&slice, a, 0, 0, NULL), 0);
	id_slice = save(f, slice);
	id_b = save(f, b);
	assert_memory_equal(&id_slice, &id_b, sizeof(id_a));
	ref_unref(slice);
	ref_unref(m);
	ref_unref(n);
	ref_unref(a);
	ref_unref(b);
	/* The first layout goes: the other one has the bytes. */
	reopen(f, 0);
	scoped(free) char *gone = str_printf("%s.gone", f->layout);
	assert_int_equal(rename(f->layout, gone), 0);
	struct ref *ref = load(f, &id_slice);
	struct tree *t = tree_of(f, ref);
	struct strbuf all = dump(t);
	assert_non_null(strstr(all.data, "d/g"));
	strbuf_free(&all);
	tree_unref(t);
	ref_unref(ref);
}

static void equal_edits_are_equal_however_they_came(void **state)
{
	struct fixture *f = *state;
	const struct attr file = {.type = NODE_FILE, .mode = 0644};
	struct edit *e;
	struct digest ids[2];

	for (int i = 0; i < 2; i++) {
		assert_int_equal(edit_new(&e, NULL, NULL), 0);
		if (i == 1)
			put(e, TREE_ROOT, "z", file, "gone", 4);
		put(e, TREE_ROOT, i ? "b" : "a", file, i ? "2" : "1", 1);
		put(e, TREE_ROOT, i ? "a" : "b", file, i ? "1" : "2", 1);
		if (i == 1)
			edit_remove(e, TREE_ROOT, "z", 1);
		struct ref *ref = made(e, "edit");
		ids[i] = save(f, ref);
		ref_unref(ref);
	}
	assert_memory_equal(&ids[0], &ids[1], sizeof(ids[0]));
}

static void merges_keep_their_partitions(void **state)
{
	struct fixture *f = *state;
	struct ref *base = image(f), *scratch, *inner, *outer;

	assert_int_equal(ref_scratch(&scratch, NULL), 0);
	struct ref_part in[] = {{base, .trim = (char[]){"/d"}, .add = (char[]){"/a/b"}}, {base}};
	assert_int_equal(ref_merge(&inner, in, 2, NULL), 0);
	struct ref_part out[] = {
		{inner}, {scratch, .add = (char[]){"/nothing"}}, {inner, .add = (char[]){"/i"}}};
	assert_int_equal(ref_merge(&outer, out, 3, NULL), 0);
	ref_unref(base);
	ref_unref(inner);
	ref_unref(scratch);
	struct digest id = round_trip(f, outer);
	const struct ref_part *parts, *inner_parts;
	struct ref *ref = load(f, &id);
	assert_int_equal(ref_parts(ref, &parts), 3);
	assert_ptr_equal(parts[0].ref, parts[2].ref);
	assert_string_equal(parts[2].add, "/i");
	assert_null(parts[2].trim);
	assert_int_equal(ref_parts(parts[0].ref, &inner_parts), 2);
	assert_string_equal(inner_parts[0].trim, "/d");
	assert_string_equal(inner_parts[0].add, "/a/b");
	assert_ptr_equal(inner_parts[0].ref, inner_parts[1].ref);
	ref_unref(ref);
}

/* A layer over @base; @is_merged: with it below. */
static struct ref *changes(struct fixture *f, bool is_merged)
{
	struct ref *base = image(f), *layer, *whole;
	struct tree *below = tree_of(f, base), *host = host_folder(f);

	layer = everything(below, host);
	tree_unref(below);
	tree_unref(host);
	if (is_merged) {
		struct ref_part parts[] = {{base}, {layer}};
		assert_int_equal(ref_merge(&whole, parts, 2, NULL), 0);
		ref_unref(layer);
		layer = whole;
	}
	ref_unref(base);
	return layer;
}

static void changes_are_all_there(void **state)
{
	round_trip(*state, changes(*state, false));
}

static void changes_over_an_image_are_all_there(void **state)
{
	round_trip(*state, changes(*state, true));
}

/* Copies of copies, across processes: a loaded tree is a source like any other. */
static void a_copy_out_of_a_loaded_tree_points_to_the_same_bytes(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = changes(f, false);
	struct digest id = save(f, ref), id_copy;
	struct edit *e;

	ref_unref(ref);
	reopen(f, 0);
	ref = load(f, &id);
	struct tree *t = tree_of(f, ref);
	assert_int_equal(edit_new(&e, NULL, NULL), 0);
	copy(e, "again", t, "/copied");
	copy(e, "large", t, "/host-large");
	copy(e, "small", t, "/host-small");
	tree_unref(t);
	ref_unref(ref);
	ref = made(e, "copy");
	id_copy = round_trip(f, ref);
	ref = load(f, &id_copy);
	struct treefile file = {0};
	assert_int_equal(ref_made_tree(ref, &t, NULL), 0);
	assert_int_equal(treefile_write(&file, t, f->store, NULL), 0);
	assert_int_equal(file.layers.n, 1); /* no byte of the layer was copied */
	assert_true(file.bytes.len < 1000); /* nor of the large file */
	treefile_deinit(&file);
	ref_unref(ref);
}

static void a_large_tree_is_a_file(void **state)
{
	struct fixture *f = *state;
	struct edit *e;
	uint64_t used, bound;

	assert_int_equal(edit_new(&e, NULL, NULL), 0);
	for (int i = 0; i < 3000; i++) {
		char name[32];
		snprintf(name, sizeof(name), "file-%05d", i);
		put(e, TREE_ROOT, name, (struct attr){.type = NODE_FILE, .mode = 0644}, name, 10);
	}
	struct digest id = round_trip(f, made(e, "large"));
	store_usage(f->store, &used, &bound);
	assert_true(used > 3000 * 64);
	/* Damaged, it is an error and goes; then it is not there. */
	struct ref *ref = load(f, &id), *none;
	struct digest tree = ref->tree_digest;
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path = str_printf("%s/trees/%s", f->root, digest_hex(&tree, hex));
	scoped(close_fd) int fd = open(path, O_WRONLY);
	struct err err = {0};
	struct tree *t;
	assert_int_equal(pwrite_full(fd, "x", 1, 100), 0);
	assert_int_equal(ref_tree(&t, ref, f->store, NULL, NULL, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "damaged"));
	ref_unref(ref);
	assert_int_equal(ref_load(f->solver, &id, &none, &err), -ENOENT);
	assert_non_null(strstr(err.text, "not in the store any more"));
}

static void content_that_is_gone_or_damaged_is_an_error(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = changes(f, false);
	struct digest id = save(f, ref), content;
	struct tree *t;
	struct attr attr;
	struct err err = {0};
	char hex[DIGEST_HEX_MAX], byte;
	void *bytes = calloc(1, 3000000);

	ref_unref(ref);
	test_fill(bytes, 3000000, 7);
	digest_bytes(&content, bytes, 3000000);
	free(bytes);
	scoped(free) char *path = str_printf("%s/content/%s", f->root, digest_hex(&content, hex));
	reopen(f, 0);
	ref = load(f, &id);
	t = tree_of(f, ref);
	scoped(close_fd) int fd = open(path, O_WRONLY);
	assert_true(fd >= 0);
	assert_int_equal(pwrite_full(fd, "\xff", 1, 2999999), 0);
	assert_int_equal(tree_walk(t, "/host-large", false, &attr, NULL), 0);
	assert_int_equal(tree_read(t, attr.id, 0, &byte, 1, NULL, NULL, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "damaged"));
	assert_int_equal(access(path, F_OK), -1);
	tree_unref(t);
	ref_unref(ref);
	ref = load(f, &id);
	assert_int_equal(ref_tree(&t, ref, f->store, NULL, NULL, &err), -ENOENT);
	assert_non_null(strstr(err.text, hex));
	ref_unref(ref);
}

static void a_changed_host_file_is_not_saved(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = changes(f, false);
	scoped(free) char *dir = str_printf("%s/host", f->dir);
	struct digest id;
	struct err err = {0};

	file_write(dir, "large", "other", 5);
	assert_int_equal(ref_save(ref, f->solver, &id, &err), -ESTALE);
	assert_non_null(strstr(err.text, "everything"));
	assert_false(ref_id(ref, &id));
	ref_unref(ref);
}

static void a_live_folder_is_refused(void **state)
{
	struct fixture *f = *state;
	struct ref *ref, *m;
	struct digest id;

	assert_int_equal(ref_folder(&ref, "dir", f->dir, NULL), 0);
	assert_int_equal(ref_save(ref, f->solver, &id, NULL), -EINVAL);
	assert_int_equal(ref_merge(&m, &(struct ref_part){ref, .add = (char[]){"/x"}}, 1, NULL), 0);
	assert_int_equal(ref_save(m, f->solver, &id, NULL), -EINVAL);
	ref_unref(m);
	ref_unref(ref);
}

static void ids_are_found_by_prefix(void **state)
{
	struct fixture *f = *state;
	struct digest a = {{0xab, 0xcd, 0xef, 1}}, b = {{0xab, 0xcd, 0xef, 0x23}}, id;
	struct db *db = store_db(f->store);

	db_lock(db);
	assert_int_equal(db_exec(db,
				 "INSERT INTO refs (id, kind, name, created, last_used) VALUES"
				 " (x'abcdef01' || zeroblob(28), 3, '', 0, 0),"
				 " (x'abcdef23' || zeroblob(28), 3, '', 0, 0)",
				 NULL),
			 0);
	assert_int_equal(db_exec(db, "UPDATE refs SET id = CAST(id AS BLOB)", NULL), 0);
	db_unlock(db);
	assert_int_equal(ref_find(f->solver, "abcdef0", &id, NULL), 0);
	assert_memory_equal(&id, &a, sizeof(id));
	assert_int_equal(ref_find(f->solver, "sha256:abcdef2", &id, NULL), 0);
	assert_memory_equal(&id, &b, sizeof(id));
	assert_int_equal(ref_find(f->solver, "abcdef", &id, NULL), -EEXIST);
	assert_int_equal(ref_find(f->solver, "abcdef1", &id, NULL), -ENOENT);
	assert_int_equal(ref_find(f->solver, "abcde", &id, NULL), -EINVAL);
	assert_int_equal(ref_find(f->solver, "abcdeg", &id, NULL), -EINVAL);
	/* What the rows say is not what the id says. */
	struct ref *ref;
	assert_int_equal(ref_load(f->solver, &a, &ref, NULL), -EBADMSG);
	a.bytes[0] = 0;
	assert_int_equal(ref_load(f->solver, &a, &ref, NULL), -ENOENT);
}

static void another_process_loads_and_reads(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = changes(f, true);
	struct digest id = save(f, ref);
	int status = -1;

	ref_unref(ref);
	close_all(f);
	pid_t pid = fork();
	if (pid == 0) {
		struct tree *t;
		struct attr attr;
		char text[8] = {0};
		open_all(f, 0);
		bool ok = ref_load(f->solver, &id, &ref, NULL) == 0 &&
			  ref_tree(&t, ref, f->store, NULL, NULL, NULL) == 0 &&
			  tree_walk(t, "/copied", false, &attr, NULL) == 0 &&
			  tree_read(t, attr.id, 0, text, 7, NULL, NULL, NULL) == 7 &&
			  strcmp(text, "layer g") == 0 &&
			  tree_walk(t, "/f", false, &attr, NULL) == -ENOENT;
		_exit(ok ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	open_all(f, 0);
}

/* What one process shows, another one does not evict; what nobody uses goes. */
static void loaded_content_is_leased(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = changes(f, false);
	struct digest id = save(f, ref), blob;
	uint64_t used, bound;

	ref_unref(ref);
	reopen(f, 0);
	ref = load(f, &id);
	struct tree *t = tree_of(f, ref);
	store_usage(f->store, &used, &bound);
	struct store *other = test_store(f->root, used + 100000);
	scoped(free) char *bytes = calloc(1, 200000);
	assert_int_equal(store_put_blob(other, bytes, 200000, &blob, NULL), -ENOSPC);
	struct strbuf all = dump(t);
	strbuf_free(&all);
	tree_unref(t);
	ref_unref(ref);
	reopen(f, 0);
	assert_int_equal(store_put_blob(other, bytes, 200000, &blob, NULL), 0);
	store_close(other);
	ref = load(f, &id);
	assert_int_equal(ref_tree(&t, ref, f->store, NULL, NULL, NULL), -ENOENT);
	ref_unref(ref);
}

static size_t count_files(struct fixture *f, const char *folder)
{
	scoped(free) char *path = str_printf("%s/%s", f->root, folder);
	DIR *dir = opendir(path);
	size_t n = 0;

	assert_non_null(dir);
	for (struct dirent *d; (d = readdir(dir));)
		n += d->d_name[0] != '.';
	closedir(dir);
	return n;
}

static void a_full_store_leaves_nothing_half_written(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = changes(f, false);
	struct digest id;
	struct err err = {0};
	uint64_t used, used_before, bound;

	/* the index of the layer must be there; it is read while there is room */
	store_usage(f->store, &used_before, &bound);
	struct store *small = test_store(f->root, used_before + 1000000);
	struct solver_options options = {.store = small, .platform = {"linux", "amd64", ""}};
	struct solver *solver;
	assert_int_equal(solver_new(&solver, &options, NULL), 0);
	assert_int_equal(ref_save(ref, solver, &id, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "full"));
	solver_free(solver);
	store_close(small);
	/* The file system says no, in the middle of a file. */
	struct rlimit was, limit;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	signal(SIGXFSZ, SIG_IGN);
	limit = was;
	limit.rlim_cur = 1500000;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(ref_save(ref, f->solver, &id, &err), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	store_usage(f->store, &used, &bound);
	assert_int_equal(used, used_before);
	assert_int_equal(count_files(f, "content"), 0);
	assert_int_equal(count_files(f, "tmp"), 0);
	assert_int_equal(ref_save(ref, f->solver, &id, &err), 0);
	assert_int_equal(count_files(f, "content"), 1);
	ref_unref(ref);
}

static struct ref *small_change(int i)
{
	struct edit *e;
	char text[16];

	snprintf(text, sizeof(text), "%d", i);
	assert_int_equal(edit_new(&e, NULL, NULL), 0);
	put(e, TREE_ROOT, text, (struct attr){.type = NODE_FILE}, text, strlen(text));
	return made(e, text);
}

#define CHAIN 100000

static void a_chain_of_merges_is_saved_and_loaded(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = small_change(0), *top = small_change(1);

	for (int i = 0; i < CHAIN; i++) {
		struct ref *m;
		struct ref_part parts[] = {{ref}, {top, .add = (char[]){"/x"}}};
		assert_int_equal(ref_merge(&m, parts, 2, NULL), 0);
		ref_unref(ref);
		ref = m;
	}
	ref_unref(top);
	struct digest id = save(f, ref);
	ref_unref(ref);
	reopen(f, 0);
	ref = load(f, &id);
	int n = 0;
	for (struct ref *at = ref; ref_kind(at) == REF_MERGE; n++) {
		const struct ref_part *parts;
		assert_int_equal(ref_parts(at, &parts), 2);
		at = parts[0].ref;
	}
	assert_int_equal(n, CHAIN);
	ref_unref(ref);
}

static int64_t count_rows(struct fixture *f, const char *sql)
{
	struct db_stmt *s;
	struct db *db = store_db(f->store);

	db_lock(db);
	assert_int_equal(db_prepare(db, sql, &s, NULL), 0);
	assert_int_equal(db_step(s, NULL), 1);
	int64_t n = db_i64(s, 0);
	db_reset(s);
	db_unlock(db);
	return n;
}

/* As a build does it: each result is saved when it is there. */
static void each_of_a_chain_is_saved_by_itself(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = small_change(-1);

	save(f, ref);
	for (int i = 0; i < 1000; i++) {
		struct ref *m, *change = small_change(i);
		assert_int_equal(ref_merge(&m, (struct ref_part[]){{ref}, {change}}, 2, NULL), 0);
		save(f, m);
		ref_unref(ref);
		ref_unref(change);
		ref = m;
	}
	ref_unref(ref);
	assert_int_equal(count_rows(f, "SELECT count(*) FROM refs"), 2001);
	assert_int_equal(count_rows(f, "SELECT count(*) FROM ref_parts"), 2000);
	assert_int_equal(count_files(f, "trees"), 0);
}

/* A merge with itself, 40 times: a graph, and not 2^40 refs. */
static void a_shared_part_is_one(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = small_change(1);

	for (int i = 0; i < 40; i++) {
		struct ref *m;
		struct ref_part parts[] = {{ref}, {ref, .add = (char[]){"/x"}}};
		assert_int_equal(ref_merge(&m, parts, 2, NULL), 0);
		ref_unref(ref);
		ref = m;
	}
	struct digest id = save(f, ref);
	ref_unref(ref);
	reopen(f, 0);
	ref_unref(load(f, &id));
	assert_int_equal(count_rows(f, "SELECT count(*) FROM refs"), 41);
}

static void use_is_noted_once_an_hour(void **state)
{
	struct fixture *f = *state;
	static const char sql[] = "SELECT last_used FROM refs";
	struct ref *ref = small_change(1);
	struct digest id = save(f, ref);

	ref_unref(ref);
	db_exec(store_db(f->store), "UPDATE refs SET last_used = unixepoch() - 3000", NULL);
	int64_t was = count_rows(f, sql);
	ref_unref(load(f, &id));
	assert_int_equal(count_rows(f, sql), was);
	db_exec(store_db(f->store), "UPDATE refs SET last_used = last_used - 1000", NULL);
	ref_unref(load(f, &id));
	assert_true(count_rows(f, sql) > was);
}

/* A catalogue of the version before gets the tables. */
static void an_older_catalogue_is_migrated(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(db_exec(store_db(f->store),
				 "DROP TABLE refs; DROP TABLE ref_layers; DROP TABLE ref_parts;"
				 "DROP TABLE made_trees; DROP TABLE tree_layers; DROP TABLE places;"
				 "PRAGMA user_version = 1",
				 NULL),
			 0);
	reopen(f, 0);
	round_trip(f, changes(f, true));
}

struct saver_thread {
	pthread_t thread;
	struct fixture *f;
	struct ref *ref;
	int result;
};

static void *save_in_thread(void *arg)
{
	struct saver_thread *t = arg;
	struct digest id;
	struct ref *ref;

	t->result = ref_save(t->ref, t->f->solver, &id, NULL);
	if (t->result == 0)
		t->result = ref_load(t->f->solver, &id, &ref, NULL);
	if (t->result == 0)
		ref_unref(ref);
	return NULL;
}

static void many_threads_save_the_same(void **state)
{
	struct fixture *f = *state;
	struct saver_thread threads[8];
	struct ref *ref = changes(f, true);

	for (size_t i = 0; i < countof(threads); i++) {
		threads[i] = (struct saver_thread){.f = f, .ref = ref};
		assert_int_equal(
			pthread_create(&threads[i].thread, NULL, save_in_thread, &threads[i]), 0);
	}
	for (size_t i = 0; i < countof(threads); i++) {
		pthread_join(threads[i].thread, NULL);
		assert_int_equal(threads[i].result, 0);
	}
	ref_unref(ref);
	assert_int_equal(count_rows(f, "SELECT count(*) FROM refs"), 3);
}

static void *read_in_thread(void *arg)
{
	struct saver_thread *t = arg;
	struct tree *tree;

	t->result = ref_made_tree(t->ref, &tree, NULL);
	return NULL;
}

/* The locks of a ref and of the catalogue are always taken in the same order. */
static void a_part_is_read_while_what_it_is_part_of_is_saved(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = changes(f, false);
	struct digest id = save(f, ref);

	ref_unref(ref);
	for (int i = 0; i < 50; i++) {
		struct saver_thread reader = {.f = f, .ref = load(f, &id)}, saver = {.f = f};
		scoped(free) char *add = str_printf("/%d", i);
		assert_int_equal(
			ref_merge(&saver.ref, &(struct ref_part){reader.ref, .add = add}, 1, NULL),
			0);
		assert_int_equal(pthread_create(&reader.thread, NULL, read_in_thread, &reader), 0);
		assert_int_equal(pthread_create(&saver.thread, NULL, save_in_thread, &saver), 0);
		pthread_join(reader.thread, NULL);
		pthread_join(saver.thread, NULL);
		assert_int_equal(reader.result, 0);
		assert_int_equal(saver.result, 0);
		ref_unref(reader.ref);
		ref_unref(saver.ref);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(an_image_is_found_again),
		TEST(equal_refs_have_equal_ids),
		TEST(equal_edits_are_equal_however_they_came),
		TEST(merges_keep_their_partitions),
		TEST(changes_are_all_there),
		TEST(changes_over_an_image_are_all_there),
		TEST(a_copy_out_of_a_loaded_tree_points_to_the_same_bytes),
		TEST(a_large_tree_is_a_file),
		TEST(content_that_is_gone_or_damaged_is_an_error),
		TEST(a_changed_host_file_is_not_saved),
		TEST(a_live_folder_is_refused),
		TEST(ids_are_found_by_prefix),
		TEST(another_process_loads_and_reads),
		TEST(loaded_content_is_leased),
		TEST(a_full_store_leaves_nothing_half_written),
		TEST(a_chain_of_merges_is_saved_and_loaded),
		TEST(each_of_a_chain_is_saved_by_itself),
		TEST(a_shared_part_is_one),
		TEST(use_is_noted_once_an_hour),
		TEST(an_older_catalogue_is_migrated),
		TEST(many_threads_save_the_same),
		TEST(a_part_is_read_while_what_it_is_part_of_is_saved),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
