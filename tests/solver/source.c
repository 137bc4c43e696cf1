/* SPDX-License-Identifier: Apache-2.0 */

/* source*: from REF to ref: layouts, archives, folders, definitions, names without a registry. */

#include "solver/solver-internal.h"
#include "tests/solver/layout.h"
#include "tests/solver/proto.h"
#include "tests/test.h"

struct fixture {
	char *dir, *layout;
	struct store *store;
	struct solver *solver;
	struct solver_layout named;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct solver_options options = {.platform = {"linux", "amd64", ""}};

	f->dir = test_dir();
	f->layout = str_printf("%s/layout", f->dir);
	scoped(free) char *root = str_printf("%s/store", f->dir);
	f->store = test_store(root, 0);
	f->named = (struct solver_layout){"named", f->layout};
	options.store = f->store;
	options.layouts = &f->named;
	options.n_layouts = 1;
	assert_int_equal(solver_new(&f->solver, &options, NULL), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	solver_free(f->solver);
	store_close(f->store);
	free(f->layout);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

/* @scheme, then a path in the fixture's folder. */
static char *text_of(struct fixture *f, const char *scheme, const char *path)
{
	return str_printf("%s%s/%s", scheme, f->dir, path);
}

static struct ref *resolve(struct fixture *f, const char *scheme, const char *path)
{
	scoped(free) char *text = text_of(f, scheme, path);
	struct ref *ref = NULL;
	struct err err = {0};

	if (solver_resolve(f->solver, text, &ref, &err) < 0)
		fail_msg("%s", err.text);
	return ref;
}

static void expect_error(struct fixture *f, const char *scheme, const char *path, int code,
			 const char *says)
{
	scoped(free) char *text = text_of(f, scheme, path);
	struct ref *ref = NULL;
	struct err err = {0};
	int r = solver_resolve(f->solver, text, &ref, &err);

	if (r != code || !strstr(err.text, says))
		fail_msg("%s: %d \"%s\", not %d \"%s\"", text, r, err.text, code, says);
}

static void expect_text(struct fixture *f, struct ref *ref, const char *path, const char *text)
{
	struct tree *tree = NULL;
	struct attr attr;
	struct err err = {0};
	char bytes[100] = {0};

	if (ref_tree(&tree, ref, f->store, NULL, NULL, &err) < 0)
		fail_msg("%s", err.text);
	if (tree_walk(tree, path, false, &attr, &err) < 0)
		fail_msg("%s: %s", path, err.text);
	if (tree_read(tree, attr.id, 0, bytes, 99, NULL, NULL, &err) < 0)
		fail_msg("%s: %s", path, err.text);
	assert_string_equal(bytes, text);
	tree_unref(tree);
}

/* A layout with one image per text: one layer with the file /f. Entries get @extra ("" or
 * annotations and platform, beginning with a comma). */
struct entry {
	const char *text, *arch, *extra;
};

static void make_layout(const char *dir, const struct entry *entries, size_t n)
{
	struct strbuf list = {0};

	for (size_t i = 0; i < n; i++) {
		struct strbuf layer = tar_of("f", entries[i].text);
		struct digest digest;
		struct strbuf desc = layout_image(dir, &layer, 1, entries[i].arch, &digest);
		strbuf_printf(&list, "%s%s%s}", i ? "," : "", desc.data, entries[i].extra);
		strbuf_free(&desc);
		strbuf_free(&layer);
	}
	layout_index(dir, list.data ? list.data : "");
	strbuf_free(&list);
}

#define TAG(name) ",\"annotations\":{\"org.opencontainers.image.ref.name\":\"" name "\"}"
#define PLATFORM(arch) ",\"platform\":{\"os\":\"linux\",\"architecture\":\"" arch "\"}"

/* ------------------------------------------------------------------ layouts */

static void a_layout_with_one_image_needs_no_tag(void **state)
{
	struct fixture *f = *state;
	const struct ref_layer *layers;

	make_layout(f->layout, &(struct entry){"one", "amd64", TAG("v1")}, 1);
	struct ref *ref = resolve(f, "oci-layout://", "layout");
	expect_text(f, ref, "/f", "one");
	assert_int_equal(ref_layers(ref, &layers), 1);
	assert_true(digest_is_zero(&layers[0].diff_id));
	assert_non_null(ref_manifest(ref));
	assert_null(ref_platform(ref));

	struct strbuf config = {0};
	assert_int_equal(ref_config(ref, &config, NULL), 0);
	assert_non_null(strstr(config.data, "diff_ids"));
	assert_int_equal(ref_need_diff_ids(ref, NULL), 0);
	assert_true(digest_equal(&layers[0].diff_id, &layers[0].desc.digest));
	strbuf_free(&config);
	ref_unref(ref);
}

static void tags_are_found_however_they_are_written(void **state)
{
	struct fixture *f = *state;
	const struct entry entries[] = {{"one", "amd64", TAG("v1")},
					{"two", "amd64", TAG("docker.io/library/x:v2")},
					{"three", "amd64", TAG("latest")}};

	make_layout(f->layout, entries, 3);
	struct ref *ref = resolve(f, "oci-layout://", "layout:v1");
	expect_text(f, ref, "/f", "one");
	ref_unref(ref);
	ref = resolve(f, "oci-layout://", "layout:v2");
	expect_text(f, ref, "/f", "two");
	ref_unref(ref);
	ref = resolve(f, "oci-layout://", "layout");
	expect_text(f, ref, "/f", "three");
	ref_unref(ref);
	expect_error(f, "oci-layout://", "layout:v3", -ENOENT,
		     "no image \"v3\": there is v1, docker.io/library/x:v2, latest");
}

static void several_tags_and_no_latest_is_no_guess(void **state)
{
	struct fixture *f = *state;
	const struct entry entries[] = {{"one", "amd64", TAG("v1")}, {"two", "amd64", TAG("v2")}};

	make_layout(f->layout, entries, 2);
	expect_error(f, "oci-layout://", "layout", -ENOENT, "there is v1, v2");
	const struct entry same[] = {{"one", "amd64", TAG("v1")}, {"one", "amd64", TAG("v2")}};
	make_layout(f->layout, same, 2);
	struct ref *ref = resolve(f, "oci-layout://", "layout");
	expect_text(f, ref, "/f", "one");
	ref_unref(ref);
	make_layout(f->layout, NULL, 0);
	expect_error(f, "oci-layout://", "layout", -ENOENT, "none with a tag");
}

static void a_digest_counts_more_than_a_tag(void **state)
{
	struct fixture *f = *state;
	const struct entry entries[] = {{"one", "amd64", TAG("v1")}, {"two", "amd64", TAG("v2")}};
	char digest[DIGEST_TEXT_MAX];

	make_layout(f->layout, entries, 2);
	struct ref *ref = resolve(f, "oci-layout://", "layout:v2");
	digest_text(ref_manifest(ref), digest);
	ref_unref(ref);
	scoped(free) char *path = str_printf("layout:v1@%s", digest);
	ref = resolve(f, "oci-layout://", path);
	expect_text(f, ref, "/f", "two");
	ref_unref(ref);
	expect_error(f, "oci-layout://",
		     "layout@sha256:"
		     "0000000000000000000000000000000000000000000000000000000000000000",
		     -ENOENT, "blobs/sha256/0000");
}

static void platforms_are_chosen_in_one_index_or_in_two(void **state)
{
	struct fixture *f = *state;
	const struct entry entries[] = {{"arm", "arm64", PLATFORM("arm64")},
					{"amd", "amd64", PLATFORM("amd64")}};
	char text[100];

	make_layout(f->layout, entries, 2);
	struct ref *ref = resolve(f, "oci-layout://", "layout");
	expect_text(f, ref, "/f", "amd");
	assert_string_equal(platform_text(ref_platform(ref), text), "linux/amd64");
	ref_unref(ref);

	/* What is index.json now becomes an index that a new index.json names. */
	struct strbuf index = {0}, desc = {0};
	scoped(free) char *path = str_printf("%s/index.json", f->layout);
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &index), 0);
	struct digest digest = layout_blob(f->layout, index.data, index.len);
	add_desc(&desc, "application/vnd.oci.image.index.v1+json", &digest, index.len);
	strbuf_puts(&desc, TAG("v1") "}");
	layout_index(f->layout, desc.data);
	ref = resolve(f, "oci-layout://", "layout:v1");
	expect_text(f, ref, "/f", "amd");
	ref_unref(ref);
	strbuf_free(&index);
	strbuf_free(&desc);

	const struct entry others[] = {{"arm", "arm64", PLATFORM("arm64")},
				       {"390", "s390x", PLATFORM("s390x")}};
	make_layout(f->layout, others, 2);
	expect_error(f, "oci-layout://", "layout", -ENOENT,
		     "no image for linux/amd64: there is linux/arm64, linux/s390x");
}

static void indexes_in_indexes_end(void **state)
{
	struct fixture *f = *state;
	struct strbuf desc = {0}, index = {0};
	struct digest digest;

	make_layout(f->layout, &(struct entry){"one", "amd64", ""}, 1);
	for (int i = 0; i < 20; i++) {
		scoped(free) char *path = str_printf("%s/index.json", f->layout);
		assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &index), 0);
		digest = layout_blob(f->layout, index.data, index.len);
		add_desc(&desc, "application/vnd.oci.image.index.v1+json", &digest, index.len);
		strbuf_puts(&desc, "}");
		layout_index(f->layout, desc.data);
		strbuf_clear(&desc);
		strbuf_clear(&index);
	}
	expect_error(f, "oci-layout://", "layout", -EBADMSG, "deeper than 8");
	strbuf_free(&desc);
	strbuf_free(&index);
}

static void wrong_documents_are_refused(void **state)
{
	struct fixture *f = *state;
	char hex[DIGEST_HEX_MAX];

	expect_error(f, "oci-layout://", "nowhere", -ENOENT, "nowhere");
	make_layout(f->layout, &(struct entry){"one", "amd64", TAG("v1")}, 1);
	struct ref *ref = resolve(f, "oci-layout://", "layout:v1");
	scoped(free) char *name = str_printf("blobs/sha256/%s", digest_hex(ref_manifest(ref), hex));
	scoped(free) char *path = str_printf("%s/%s", f->layout, name);
	struct strbuf body = {0};
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &body), 0);
	body.data[body.len / 2] ^= 1;
	file_write(f->layout, name, body.data, body.len);
	strbuf_free(&body);
	ref_unref(ref);
	expect_error(f, "oci-layout://", "layout:v1", -EBADMSG, "does not match its digest");
	scoped(free) char *by_digest = str_printf("layout@sha256:%s", hex);
	expect_error(f, "oci-layout://", by_digest, -EBADMSG, "does not match its name");
	file_write(f->layout, "index.json", "{}", 2);
	expect_error(f, "oci-layout://", "layout:v1", -EBADMSG, "index.json");
}

static void some_layers_of_an_image_are_a_ref(void **state)
{
	struct fixture *f = *state;
	struct strbuf layers[3] = {tar_of("f", "0"), tar_of("f", "1"), tar_of("f", "2")};
	struct digest digest, second;
	struct strbuf desc = layout_image(f->layout, layers, 3, "amd64", &digest);
	const struct ref_layer *found;
	struct ref *slice, *inner;
	struct err err = {0};

	strbuf_puts(&desc, "}");
	layout_index(f->layout, desc.data);
	digest_bytes(&second, layers[1].data, layers[1].len);
	struct ref *ref = resolve(f, "oci-layout://", "layout");
	assert_int_equal(ref_slice(&slice, ref, 1, 2, NULL), 0);
	assert_int_equal(ref_slice(&inner, slice, 0, 0, NULL), 0);
	ref_unref(ref);
	expect_text(f, slice, "/f", "2");
	expect_text(f, inner, "/f", "1");
	assert_int_equal(ref_need_diff_ids(inner, NULL), 0);
	assert_int_equal(ref_layers(inner, &found), 1);
	assert_true(digest_equal(&found[0].diff_id, &second));
	assert_int_equal(ref_slice(&ref, inner, 0, 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "has 1 layers"));
	ref_unref(slice);
	ref_unref(inner);
	strbuf_free(&desc);
	for (int i = 0; i < 3; i++)
		strbuf_free(&layers[i]);
}

/* ------------------------------------------------------------------ archives */

static void add_file(struct strbuf *tar, const char *dir, const char *name)
{
	struct strbuf body = {0};
	scoped(free) char *path = str_printf("%s/%s", dir, name);

	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &body), 0);
	tar_member(tar, '0', name, body.data, body.len);
	strbuf_free(&body);
}

static void add_blob(struct strbuf *tar, const char *dir, const struct digest *digest)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *name = str_printf("blobs/sha256/%s", digest_hex(digest, hex));

	add_file(tar, dir, name);
}

static void write_tar(struct fixture *f, const char *name, struct strbuf *tar)
{
	tar_end(tar);
	file_write(f->dir, name, tar->data, tar->len);
	strbuf_clear(tar);
}

static void an_oci_archive_is_read_in_place(void **state)
{
	struct fixture *f = *state;
	struct strbuf tar = {0}, layer = tar_of("f", "one");
	const struct ref_layer *layers;
	struct digest digest;

	make_layout(f->layout, &(struct entry){"one", "amd64", TAG("v1")}, 1);
	struct ref *ref = resolve(f, "oci-layout://", "layout:v1");
	struct manifest m;
	struct strbuf body = {0};
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", f->layout, digest_hex(ref_manifest(ref), hex));
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &body), 0);
	assert_int_equal(manifest_parse(&m, body.data, body.len, NULL, NULL), 0);
	tar_member(&tar, '5', "blobs/", NULL, 0);
	add_blob(&tar, f->layout, ref_manifest(ref));
	add_blob(&tar, f->layout, &m.config.digest);
	add_blob(&tar, f->layout, &m.layers[0].digest);
	add_file(&tar, f->layout, "index.json");
	write_tar(f, "a.tar", &tar);
	ref_unref(ref);
	manifest_deinit(&m);
	strbuf_free(&body);

	ref = resolve(f, "oci-archive://", "a.tar:v1");
	expect_text(f, ref, "/f", "one");
	assert_int_equal(ref_need_diff_ids(ref, NULL), 0);
	assert_int_equal(ref_layers(ref, &layers), 1);
	digest_bytes(&digest, layer.data, layer.len);
	assert_true(digest_equal(&layers[0].diff_id, &digest));
	ref_unref(ref);
	expect_error(f, "oci-archive://", "a.tar:v2", -ENOENT, "there is v1");
	expect_error(f, "docker-archive://", "a.tar", -EINVAL, "say oci-archive://");
	strbuf_free(&tar);
	strbuf_free(&layer);
}

/* Config and manifest.json for layers at @paths. */
static void add_saved(struct strbuf *tar, const struct strbuf *layers, const char *const *paths,
		      size_t n, const char *tags)
{
	struct strbuf config = {0}, list = {0};
	struct digest digest;
	char text[DIGEST_TEXT_MAX];

	strbuf_puts(&config, "{\"os\":\"linux\",\"architecture\":\"arm64\",\"rootfs\":{"
			     "\"diff_ids\":[");
	strbuf_printf(&list, "[{\"Config\":\"config.json\",\"RepoTags\":%s,\"Layers\":[", tags);
	for (size_t i = 0; i < n; i++) {
		digest_bytes(&digest, layers[i].data, layers[i].len);
		strbuf_printf(&config, "%s\"%s\"", i ? "," : "", digest_text(&digest, text));
		strbuf_printf(&list, "%s\"%s\"", i ? "," : "", paths[i]);
	}
	strbuf_puts(&config, "]}}");
	strbuf_puts(&list, "]}]");
	tar_member(tar, '0', "config.json", config.data, config.len);
	tar_member(tar, '0', "manifest.json", list.data, list.len);
	strbuf_free(&config);
	strbuf_free(&list);
}

static void a_docker_archive_is_read_in_place(void **state)
{
	struct fixture *f = *state;
	struct strbuf layers[3] = {tar_of("a", "0"), tar_of("b", "1"), tar_of("a", "0")};
	static const char *const paths[] = {"l0/layer.tar", "l1/layer.tar", "l2/layer.tar"};
	struct strbuf tar = {0}, config = {0};
	char text[100];

	tar_member(&tar, '0', "l0/layer.tar", layers[0].data, layers[0].len);
	tar_member(&tar, '0', "shared/layer.tar", layers[1].data, layers[1].len);
	tar_member(&tar, '2', "l1/layer.tar", "../shared/layer.tar", 19);
	tar_member(&tar, '1', "l2/layer.tar", "l0/layer.tar", 12);
	add_saved(&tar, layers, paths, 3, "[\"app:1\",\"host:5000/a/b:c\"]");
	write_tar(f, "d.tar", &tar);

	struct ref *ref = resolve(f, "docker-archive://", "d.tar");
	expect_text(f, ref, "/a", "0");
	expect_text(f, ref, "/b", "1");
	assert_null(ref_manifest(ref));
	assert_string_equal(platform_text(ref_platform(ref), text), "linux/arm64");
	assert_int_equal(ref_config(ref, &config, NULL), 0);
	assert_non_null(strstr(config.data, "arm64"));
	ref_unref(ref);
	ref_unref(resolve(f, "docker-archive://", "d.tar:app:1"));
	ref_unref(resolve(f, "docker-archive://", "d.tar:docker.io/library/app:1"));
	ref_unref(resolve(f, "docker-archive://", "d.tar:host:5000/a/b:c"));
	expect_error(f, "docker-archive://", "d.tar:app", -ENOENT,
		     "no image \"app\": there is app:1, host:5000/a/b:c");
	expect_error(f, "oci-archive://", "d.tar", -EINVAL, "say docker-archive://");
	strbuf_free(&tar);
	strbuf_free(&config);
	for (int i = 0; i < 3; i++)
		strbuf_free(&layers[i]);
}

static void a_layer_that_is_not_what_the_config_says_is_never_shown(void **state)
{
	struct fixture *f = *state;
	struct strbuf layer = tar_of("a", "right"), wrong = tar_of("a", "wrong"), tar = {0};
	static const char *const paths[] = {"layer.tar"};
	struct tree *tree;
	struct attr attr;

	tar_member(&tar, '0', "layer.tar", wrong.data, wrong.len);
	add_saved(&tar, &layer, paths, 1, "null");
	write_tar(f, "d.tar", &tar);
	struct ref *ref = resolve(f, "docker-archive://", "d.tar");
	assert_int_equal(ref_tree(&tree, ref, f->store, NULL, NULL, NULL), 0);
	assert_int_equal(tree_walk(tree, "/a", false, &attr, NULL), -EBADMSG);
	tree_unref(tree);
	ref_unref(ref);
	strbuf_free(&layer);
	strbuf_free(&wrong);
	strbuf_free(&tar);
}

static void bad_archives_are_refused(void **state)
{
	struct fixture *f = *state;
	struct strbuf layer = tar_of("a", "x"), tar = {0};
	static const char *const nowhere[] = {"nowhere"}, *const loop[] = {"loop"};

	expect_error(f, "oci-archive://", "nowhere.tar", -ENOENT, "nowhere.tar");
	file_write(f->dir, "x.gz", "\x1f\x8b\x08\0\0\0\0\0", 8);
	expect_error(f, "oci-archive://", "x.gz", -ENOTSUP, "gunzip");
	file_write(f->dir, "x.zst", "\x28\xb5\x2f\xfd....", 8);
	expect_error(f, "docker-archive://", "x.zst", -ENOTSUP, "unzstd");
	file_write(f->dir, "x", "", 0);
	expect_error(f, "oci-archive://", "x", -EBADMSG, "too short");

	tar_member(&tar, '0', "other", "x", 1);
	write_tar(f, "x.tar", &tar);
	expect_error(f, "oci-archive://", "x.tar", -ENOENT, "no file index.json");
	expect_error(f, "docker-archive://", "x.tar", -ENOENT, "no file manifest.json");
	add_saved(&tar, &layer, nowhere, 1, "null");
	write_tar(f, "x.tar", &tar);
	expect_error(f, "docker-archive://", "x.tar", -ENOENT, "no file nowhere");
	tar_member(&tar, '2', "loop", "loop", 4);
	add_saved(&tar, &layer, loop, 1, "null");
	write_tar(f, "x.tar", &tar);
	expect_error(f, "docker-archive://", "x.tar", -ENOENT, "no file loop");
	static const char list[] = "[{\"Config\":\"config.json\",\"Layers\":[]}]";
	add_saved(&tar, &layer, loop, 1, "null");
	tar_member(&tar, '0', "manifest.json", list, strlen(list));
	write_tar(f, "x.tar", &tar);
	expect_error(f, "docker-archive://", "x.tar", -EBADMSG, "0 layers, but the config has 1");
	strbuf_free(&tar);
	strbuf_free(&layer);
}

/* ------------------------------------------------------------------ folders, other forms */

static void a_folder_is_a_ref(void **state)
{
	struct fixture *f = *state;

	file_write(f->dir, "d/x", "text", 4);
	struct ref *ref = resolve(f, "", "d");
	assert_int_equal(ref_kind(ref), REF_DIR);
	expect_text(f, ref, "/x", "text");
	ref_unref(ref);
	ref = resolve(f, "dir://", "d/../d");
	assert_true(str_ends(ref_dir(ref), "/d"));
	ref_unref(ref);
	expect_error(f, "", "nowhere", -ENOENT, "nowhere");
	expect_error(f, "", "d/x", -ENOTDIR, "not a folder");
}

static void other_forms_are_not_there_yet(void **state)
{
	struct fixture *f = *state;
	struct ref *ref;
	struct err err = {0};

	assert_int_equal(solver_resolve(f->solver, "record://abcdef", &ref, &err), -ENOTSUP);
	assert_string_equal(err.text,
			    "record://abcdef: record:// references cannot be resolved yet");
}

/* ------------------------------------------------------------------ names, no registry */

static void a_name_means_what_it_meant_last(void **state)
{
	struct fixture *f = *state;
	struct strbuf body = {0};
	struct digest digest, kept;
	struct ref *ref;
	struct err err = {0};
	char text[DIGEST_TEXT_MAX], hex[DIGEST_HEX_MAX];

	assert_int_equal(solver_resolve(f->solver, "a/b:1", &ref, &err), -ENETUNREACH);
	assert_non_null(strstr(err.text, "docker.io/a/b:1"));

	make_layout(f->layout, &(struct entry){"one", "amd64", ""}, 1);
	ref = resolve(f, "oci-layout://", "layout");
	digest = *ref_manifest(ref);
	ref_unref(ref);
	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", f->layout, digest_hex(&digest, hex));
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &body), 0);
	assert_int_equal(store_put_blob(f->store, body.data, body.len, &kept, NULL), 0);
	assert_int_equal(store_remember_name(f->store, "docker.io/a/b:1",
					     &(struct desc){.digest = kept, .size = 1}, NULL),
			 0);
	strbuf_free(&body);

	assert_int_equal(solver_resolve(f->solver, "docker://a/b:1", &ref, &err), 0);
	assert_true(digest_equal(ref_manifest(ref), &digest));
	ref_unref(ref);
	scoped(free) char *pinned = str_printf("a/b:2@%s", digest_text(&digest, text));
	assert_int_equal(solver_resolve(f->solver, pinned, &ref, &err), 0);
	assert_true(digest_equal(ref_manifest(ref), &digest));
	ref_unref(ref);
	assert_int_equal(solver_resolve(f->solver, "a/b:2", &ref, &err), -ENETUNREACH);
}

static void a_folder_of_that_name_is_mentioned(void **state)
{
	struct fixture *f = *state;
	struct ref *ref;
	struct err err = {0};
	char before[4096];

	file_write(f->dir, "a/b/x", "", 0);
	assert_non_null(getcwd(before, sizeof(before)));
	assert_int_equal(chdir(f->dir), 0);
	int r = solver_resolve(f->solver, "a/b", &ref, &err);
	assert_int_equal(chdir(before), 0);
	assert_int_equal(r, -ENETUNREACH);
	assert_non_null(strstr(err.text, "(the folder of that name is ./a/b)"));
}

/* ------------------------------------------------------------------ definitions */

static void write_def(struct fixture *f, const struct strbuf *def)
{
	file_write(f->dir, "def.pb", def->data, def->len);
}

static void a_definition_of_layouts_and_partitions_is_solved(void **state)
{
	struct fixture *f = *state;
	const struct entry entries[] = {{"one", "amd64", TAG("v1")}, {"two", "amd64", TAG("v2")}};
	struct strbuf def = {0};
	char hex[DIGEST_HEX_MAX];

	make_layout(f->layout, entries, 2);
	struct digest a = pb_source(&def, "oci-layout://not/real:v1", "oci.store", "named");
	struct digest b = pb_source(&def, "oci-layout://not/real:v2", "oci.store", "named");
	const struct pb_merge_input inputs[] = {{a}, {b, "/opt", NULL}};
	struct digest m = pb_merge(&def, inputs, 2);
	const struct pb_merge_input trimmed[] = {{m, NULL, "/opt"}};
	struct digest t = pb_merge(&def, trimmed, 1);
	pb_result(&def, &t, 0);
	write_def(f, &def);

	struct ref *ref = resolve(f, "llb://", "def.pb");
	expect_text(f, ref, "/f", "two");
	ref_unref(ref);
	digest_hex(&m, hex);
	hex[8] = 0;
	scoped(free) char *path = str_printf("def.pb#%s:0", hex);
	ref = resolve(f, "llb://", path);
	expect_text(f, ref, "/f", "one");
	expect_text(f, ref, "/opt/f", "two");
	ref_unref(ref);
	scoped(free) char *output = str_printf("def.pb#%s:1", hex);
	expect_error(f, "llb://", output, -EBADMSG, "has no output 1");
	expect_error(f, "llb://", "def.pb#00000000", -ENOENT, "no vertex begins with");
	strbuf_free(&def);
}

static void only_what_the_wanted_vertex_needs_is_solved(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = {0};
	char text[DIGEST_TEXT_MAX];

	make_layout(f->layout, &(struct entry){"one", "amd64", TAG("v1")}, 1);
	struct digest a = pb_source(&def, "oci-layout://not/real:v1", "oci.store", "named");
	struct digest b = pb_source(&def, "local://ctx", NULL, NULL);
	const struct pb_merge_input inputs[] = {{a}, {b}};
	struct digest m = pb_merge(&def, inputs, 2);
	pb_result(&def, &m, 0);
	write_def(f, &def);

	expect_error(f, "llb://", "def.pb", -ENOENT, "say --local ctx=DIR");
	scoped(free) char *path = str_printf("def.pb#%s", digest_text(&a, text));
	struct ref *ref = resolve(f, "llb://", path);
	expect_text(f, ref, "/f", "one");
	ref_unref(ref);
	strbuf_free(&def);
}

static void a_source_that_is_wrong_says_so(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *identifier, *key, *value, *says;
		int code;
	} bad[] = {
		{"oci-layout://a/b:v1", "oci.store", "other", "say --oci-layout other=DIR",
		 -ENOENT},
		{"oci-layout://a/b:v1", NULL, NULL, "without oci.store", -EBADMSG},
		{"oci-layout://a/b:nope", "oci.store", "named", "there is v1", -ENOENT},
		{"docker-image://a/B", NULL, NULL, "lower case", -EINVAL},
		{"docker-image://a/b", "image.checksum", "sha256:1", "image.checksum", -EINVAL},
		{"docker-image://a/b", NULL, NULL, "no network", -ENETUNREACH},
		{"git://a/b", "git.bundle", "x", "git.bundle is not supported", -ENOTSUP},
	};

	make_layout(f->layout, &(struct entry){"one", "amd64", TAG("v1")}, 1);
	for (size_t i = 0; i < countof(bad); i++) {
		struct strbuf def = {0};
		struct digest d = pb_source(&def, bad[i].identifier, bad[i].key, bad[i].value);
		pb_result(&def, &d, 0);
		write_def(f, &def);
		expect_error(f, "llb://", "def.pb", bad[i].code, bad[i].says);
		expect_error(f, "llb://", "def.pb", bad[i].code, bad[i].identifier);
		strbuf_free(&def);
	}
}

/* A definition with a docker-image whose tag the store knows. */
static void attributes_of_an_image_are_obeyed(void **state)
{
	struct fixture *f = *state;
	struct strbuf layers[2] = {tar_of("f", "low"), tar_of("f", "high")}, def = {0}, body = {0};
	struct digest manifest, kept;
	struct strbuf desc = layout_image(f->layout, layers, 2, "amd64", &manifest);
	char hex[DIGEST_HEX_MAX], text[DIGEST_TEXT_MAX];
	const struct ref_layer *found;

	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", f->layout, digest_hex(&manifest, hex));
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &body), 0);
	assert_int_equal(store_put_blob(f->store, body.data, body.len, &kept, NULL), 0);
	assert_int_equal(store_remember_name(f->store, "docker.io/a/b:1",
					     &(struct desc){.digest = kept, .size = 1}, NULL),
			 0);

	struct digest d =
		pb_source(&def, "docker-image://docker.io/a/b:1", "image.layerlimit", "1");
	pb_result(&def, &d, 0);
	write_def(f, &def);
	struct ref *ref = resolve(f, "llb://", "def.pb");
	assert_int_equal(ref_layers(ref, &found), 1);
	ref_unref(ref);
	strbuf_clear(&def);
	d = pb_source(&def, "docker-image://docker.io/a/b:1", "image.layerlimit", "0");
	pb_result(&def, &d, 0);
	write_def(f, &def);
	expect_error(f, "llb://", "def.pb", -EBADMSG, "image.layerlimit=0");
	strbuf_clear(&def);
	d = pb_source(&def, "docker-image://docker.io/a/b:1", "image.checksum",
		      digest_text(&manifest, text));
	pb_result(&def, &d, 0);
	write_def(f, &def);
	ref_unref(resolve(f, "llb://", "def.pb"));
	strbuf_clear(&def);
	manifest.bytes[0] ^= 1;
	d = pb_source(&def, "docker-image://docker.io/a/b:1", "image.checksum",
		      digest_text(&manifest, text));
	pb_result(&def, &d, 0);
	write_def(f, &def);
	expect_error(f, "llb://", "def.pb", -EBADMSG, "was wanted");
	strbuf_free(&def);
	strbuf_free(&desc);
	strbuf_free(&body);
	strbuf_free(&layers[0]);
	strbuf_free(&layers[1]);
}

static void a_vertex_is_solved_once(void **state)
{
	struct fixture *f = *state;
	struct strbuf def = {0};
	struct graph *g;
	struct ref *first, *second;
	struct vertex *v;
	int index;

	make_layout(f->layout, &(struct entry){"one", "amd64", TAG("v1")}, 1);
	struct digest d = pb_source(&def, "oci-layout://not/real:v1", "oci.store", "named");
	for (int i = 0; i < 30; i++) {
		const struct pb_merge_input inputs[] = {{d}, {d, .add = i % 3 ? NULL : "/x"}};
		d = pb_merge(&def, inputs, 2);
	}
	pb_result(&def, &d, 0);
	assert_int_equal(graph_load(&g, def.data, def.len, NULL), 0);
	graph_result(g, &v, &index);
	assert_int_equal(graph_solve(g, f->solver, v, index, NULL, &first, NULL), 0);
	assert_int_equal(graph_solve(g, f->solver, v, index, NULL, &second, NULL), 0);
	assert_ptr_equal(first, second);
	graph_free(g);
	expect_text(f, first, "/x/x/x/f", "one");
	ref_unref(first);
	ref_unref(second);
	strbuf_free(&def);
}

#define in_folder(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		in_folder(a_layout_with_one_image_needs_no_tag),
		in_folder(tags_are_found_however_they_are_written),
		in_folder(several_tags_and_no_latest_is_no_guess),
		in_folder(a_digest_counts_more_than_a_tag),
		in_folder(platforms_are_chosen_in_one_index_or_in_two),
		in_folder(indexes_in_indexes_end),
		in_folder(wrong_documents_are_refused),
		in_folder(some_layers_of_an_image_are_a_ref),
		in_folder(an_oci_archive_is_read_in_place),
		in_folder(a_docker_archive_is_read_in_place),
		in_folder(a_layer_that_is_not_what_the_config_says_is_never_shown),
		in_folder(bad_archives_are_refused),
		in_folder(a_folder_is_a_ref),
		in_folder(other_forms_are_not_there_yet),
		in_folder(a_name_means_what_it_meant_last),
		in_folder(a_folder_of_that_name_is_mentioned),
		in_folder(a_definition_of_layouts_and_partitions_is_solved),
		in_folder(only_what_the_wanted_vertex_needs_is_solved),
		in_folder(a_source_that_is_wrong_says_so),
		in_folder(attributes_of_an_image_are_obeyed),
		in_folder(a_vertex_is_solved_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
