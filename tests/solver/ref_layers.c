/* SPDX-License-Identifier: Apache-2.0 */

/* ref_layers and image_make: which layers an image of a ref has, and what is said of them. */

#include <sys/stat.h>

#include "solver/ref-internal.h"
#include "tests/solver/layout.h"
#include "tests/test.h"

static char slash_a[] = "/a";

struct fixture {
	char *root;
	struct store *store;
	struct solver *solver;
	struct ref *abc, *xy; /* images: layers a, b, c; layers x, b */
	struct digest a, b, c, x;
};

/* Blobs that nobody has: who reads one fails. */
static struct digest digest_of(const char *text)
{
	struct digest digest;

	digest_bytes(&digest, text, strlen(text));
	return digest;
}

static struct ref *image(struct fixture *f, const char *name, const struct digest *layers, size_t n)
{
	static char gzip[] = "application/vnd.docker.image.rootfs.diff.tar.gzip";
	const struct origin origin = {.store = f->store};
	struct desc descs[4] = {0};
	struct digest diff_ids[4];
	struct ref_image what = {.name = name,
				 .origin = &origin,
				 .layers = descs,
				 .diff_ids = diff_ids,
				 .n_layers = n};
	struct ref *ref;

	for (size_t i = 0; i < n; i++) {
		descs[i] = (struct desc){.digest = layers[i], .size = 7, .media_type = gzip};
		digest_bytes(&diff_ids[i], &layers[i], sizeof(layers[i]));
	}
	assert_int_equal(ref_image(&ref, &what, NULL), 0);
	return ref;
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct solver_options options = {.platform = {"linux", "arm64", "v9"}};

	f->root = test_dir();
	options.store = f->store = test_store(f->root, 0);
	assert_int_equal(solver_new(&f->solver, &options, NULL), 0);
	f->a = digest_of("a");
	f->b = digest_of("b");
	f->c = digest_of("c");
	f->x = digest_of("x");
	f->abc = image(f, "abc", (struct digest[]){f->a, f->b, f->c}, 3);
	f->xy = image(f, "xy", (struct digest[]){f->x, f->b}, 2);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	ref_unref(f->abc);
	ref_unref(f->xy);
	solver_free(f->solver);
	store_close(f->store);
	test_dir_remove(f->root);
	free(f);
	return 0;
}

static struct ref *merge(struct ref *one, struct ref *two)
{
	struct ref *ref;

	assert_int_equal(ref_merge(&ref, (struct ref_part[]){{.ref = one}, {.ref = two}}, 2, NULL),
			 0);
	return ref;
}

/* A layer that was made here: the file @name, and @hidden is hidden. */
static struct ref *made(const char *name, const char *hidden)
{
	scoped(edit_free) struct edit *edit = NULL;
	scoped(tree_unref) struct tree *tree = NULL;
	const struct attr attr = {.type = NODE_FILE, .mode = 0640, .mtime_s = 1000, .mtime_ns = 5};
	const struct edit_what what = {.attr = &attr, .data = "text", .len = 4};
	struct ref *ref;
	uint64_t node;

	assert_int_equal(edit_new(&edit, NULL, NULL), 0);
	assert_int_equal(edit_make(edit, TREE_ROOT, name, strlen(name), &what, &node, NULL), 0);
	if (hidden)
		assert_int_equal(edit_whiteout(edit, TREE_ROOT, hidden, strlen(hidden), NULL), 0);
	assert_int_equal(edit_seal(&tree, &edit, NULL), 0);
	assert_int_equal(ref_made(&ref, "made here", tree, NULL), 0);
	return ref;
}

static struct image make(struct fixture *f, struct ref *ref, const struct image_options *options)
{
	static const struct image_options usual = {.compression = PLAIN_GZIP,
						   .level = BLOB_LEVEL_DEFAULT};
	struct image image;
	struct err err = {0};

	if (image_make(&image, ref, f->solver, options ? options : &usual, &err) < 0)
		fail_msg("%s", err.text);
	return image;
}

static void check_layers(const struct image *image, const struct digest *want, size_t n)
{
	assert_int_equal(image->n_layers, n);
	for (size_t i = 0; i < n; i++)
		assert_true(digest_is_zero(&want[i]) ||
			    digest_equal(&image->layers[i].desc.digest, &want[i]));
}

static int to_strbuf(void *arg, const void *bytes, size_t n)
{
	strbuf_add(arg, bytes, n);
	return 0;
}

/* ------------------------------------------------------------------ tests */

static void images_give_their_layers(void **state)
{
	struct fixture *f = *state;
	struct image image = make(f, f->abc, NULL);

	check_layers(&image, (struct digest[]){f->a, f->b, f->c}, 3);
	for (size_t i = 0; i < 3; i++) {
		assert_string_equal(image.layers[i].desc.media_type,
				    "application/vnd.oci.image.layer.v1.tar+gzip");
		assert_string_equal(image.layers[i].created_by, "pulled from abc");
	}
	image_deinit(&image);
}

static void a_slice_gives_some(void **state)
{
	struct fixture *f = *state;
	scoped(ref_unref) struct ref *slice = NULL;

	assert_int_equal(ref_slice(&slice, f->abc, 1, 2, NULL), 0);
	struct image image = make(f, slice, NULL);
	check_layers(&image, (struct digest[]){f->b, f->c}, 2);
	image_deinit(&image);
}

/* In order, with what comes twice twice. */
static void merges_of_merges_are_flat(void **state)
{
	struct fixture *f = *state;
	scoped(ref_unref) struct ref *made_one = made("f", NULL);
	scoped(ref_unref) struct ref *low = merge(f->xy, f->abc);
	scoped(ref_unref) struct ref *high = merge(made_one, f->xy);
	scoped(ref_unref) struct ref *all = merge(low, high);
	struct image image = make(f, all, NULL);

	check_layers(&image, (struct digest[]){f->x, f->b, f->a, f->b, f->c, {{0}}, f->x, f->b}, 8);
	assert_string_equal(image.layers[5].created_by, "made here");
	image_deinit(&image);
}

static void too_many_layers_are_refused(void **state)
{
	struct fixture *f = *state;
	struct ref *ref = ref_ref(f->abc);
	struct image image;
	struct err err = {0};
	const struct image_options options = {.level = BLOB_LEVEL_DEFAULT};

	for (int i = 0; i < 40; i++) {
		struct ref *twice = merge(ref, ref);
		ref_unref(ref);
		ref = twice;
	}
	assert_int_equal(image_make(&image, ref, f->solver, &options, &err), -E2BIG);
	ref_unref(ref);
}

static void made_layers_are_tars(void **state)
{
	struct fixture *f = *state;
	scoped(ref_unref) struct ref *ref = made("f", "gone");
	const struct image_options options = {.compression = PLAIN_TAR,
					      .level = BLOB_LEVEL_DEFAULT};
	scoped(strbuf_free) struct strbuf tar = {0};
	struct image image = make(f, ref, &options);

	assert_int_equal(image.n_layers, 1);
	assert_true(digest_equal(&image.layers[0].diff_id, &image.layers[0].desc.digest));
	assert_string_equal(image.layers[0].desc.media_type,
			    "application/vnd.oci.image.layer.v1.tar");
	assert_int_equal(image_layer_copy(&image.layers[0], f->store, to_strbuf, &tar, NULL), 0);
	/* f with its text; .wh.gone; the end */
	assert_int_equal(tar.len, 512 * 5);
	assert_string_equal(tar.data, "f");
	assert_string_equal(tar.data + 100, "0000640");
	assert_string_equal(tar.data + 136, "00000001750"); /* whole seconds */
	assert_string_equal(tar.data + 1024, ".wh.gone");
	assert_string_equal(tar.data + 1024 + 100, "0000000");
	image_deinit(&image);
}

/* The second time the first time's blob is taken; when it is gone it is made again. */
static void layers_are_packed_once(void **state)
{
	struct fixture *f = *state;
	scoped(ref_unref) struct ref *ref = made("once", NULL);
	struct image one = make(f, ref, NULL);
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path = str_printf("%s/blobs/sha256/%s", f->root,
					     digest_hex(&one.layers[0].desc.digest, hex));
	struct stat before, after;

	assert_int_equal(stat(path, &before), 0);
	struct image two = make(f, ref, NULL);
	assert_int_equal(stat(path, &after), 0);
	assert_true(before.st_ino == after.st_ino);
	assert_int_equal(one.manifest.len, two.manifest.len);
	assert_memory_equal(one.manifest.data, two.manifest.data, one.manifest.len);
	image_deinit(&two);
	assert_int_equal(unlink(path), 0);
	two = make(f, ref, NULL);
	assert_int_equal(stat(path, &after), 0);
	assert_memory_equal(one.manifest.data, two.manifest.data, one.manifest.len);
	image_deinit(&two);
	image_deinit(&one);
}

static void a_partition_is_one_layer(void **state)
{
	struct fixture *f = *state;
	scoped(ref_unref) struct ref *low = made("low", NULL);
	scoped(ref_unref) struct ref *high = made("high", "low");
	scoped(ref_unref) struct ref *both = merge(low, high);
	scoped(ref_unref) struct ref *all = NULL;
	const struct ref_part parts[] = {{.ref = f->abc}, {.ref = both, .add = slash_a}};
	const struct image_options options = {.compression = PLAIN_TAR,
					      .level = BLOB_LEVEL_DEFAULT};
	scoped(strbuf_free) struct strbuf tar = {0};

	assert_int_equal(ref_merge(&all, parts, countof(parts), NULL), 0);
	struct image image = make(f, all, &options);
	check_layers(&image, (struct digest[]){f->a, f->b, f->c, {{0}}}, 4);
	assert_int_equal(image_layer_copy(&image.layers[3], f->store, to_strbuf, &tar, NULL), 0);
	assert_string_equal(tar.data, "a/high"); /* what made /a up is not told of */
	assert_string_equal(tar.data + 1024, "a/.wh.low");
	image_deinit(&image);
}

static void live_folders_are_refused(void **state)
{
	struct fixture *f = *state;
	scoped(ref_unref) struct ref *dir = NULL;
	const struct image_options options = {.level = BLOB_LEVEL_DEFAULT};
	struct image image;

	assert_int_equal(ref_folder(&dir, "d", f->root, NULL), 0);
	assert_int_equal(image_make(&image, dir, f->solver, &options, NULL), -EINVAL);
}

static void an_epoch_bounds_all_times(void **state)
{
	struct fixture *f = *state;
	struct annotation note = {(char[]){"k"}, (char[]){"<v>"}};
	const struct image_options options = {
		.compression = PLAIN_GZIP,
		.level = BLOB_LEVEL_DEFAULT,
		.has_epoch = true,
		.epoch = 1700000000,
		.docker_types = true,
		.annotations = &note,
		.n_annotations = 1,
	};
	struct image image = make(f, f->xy, &options);

	strbuf_putc(&image.config, '\0');
	strbuf_putc(&image.manifest, '\0');
	assert_non_null(
		strstr(image.config.data, "{\"architecture\":\"arm64\",\"config\":{\"Env\":"));
	assert_non_null(strstr(image.config.data,
			       ",\"created\":\"2023-11-14T22:13:20Z\","
			       "\"history\":[{\"created\":\"2023-11-14T22:13:20Z\","
			       "\"created_by\":\"pulled from xy\","));
	assert_true(str_ends(image.config.data, "]},\"variant\":\"v9\"}"));
	assert_true(str_starts(
		image.manifest.data,
		"{\n  \"schemaVersion\": 2,\n  \"mediaType\": "
		"\"application/vnd.docker.distribution.manifest.v2+json\",\n  \"config\": {\n"
		"    \"mediaType\": \"application/vnd.docker.container.image.v1+json\",\n"));
	assert_true(str_ends(image.manifest.data,
			     "  ],\n  \"annotations\": {\n    \"k\": \"\\u003cv\\u003e\"\n  }\n}"));
	image_deinit(&image);
}

static void nothing_is_an_image_of_no_layers(void **state)
{
	struct fixture *f = *state;
	scoped(ref_unref) struct ref *scratch = NULL;

	assert_int_equal(ref_scratch(&scratch, NULL), 0);
	struct image image = make(f, scratch, NULL);
	assert_int_equal(image.n_layers, 0);
	strbuf_putc(&image.manifest, '\0');
	assert_true(str_ends(image.manifest.data, "\n  \"layers\": []\n}"));
	image_deinit(&image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(images_give_their_layers),
		cmocka_unit_test(a_slice_gives_some),
		cmocka_unit_test(merges_of_merges_are_flat),
		cmocka_unit_test(too_many_layers_are_refused),
		cmocka_unit_test(made_layers_are_tars),
		cmocka_unit_test(layers_are_packed_once),
		cmocka_unit_test(a_partition_is_one_layer),
		cmocka_unit_test(live_folders_are_refused),
		cmocka_unit_test(an_epoch_bounds_all_times),
		cmocka_unit_test(nothing_is_an_image_of_no_layers),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
