/* SPDX-License-Identifier: Apache-2.0 */

/* image: the JSON documents of images. */

#include "solver/solver-internal.h"
#include "tests/test.h"

#define D1 "sha256:1111111111111111111111111111111111111111111111111111111111111111"
#define D2 "sha256:2222222222222222222222222222222222222222222222222222222222222222"
#define D3 "sha256:3333333333333333333333333333333333333333333333333333333333333333"
#define OCI_INDEX "application/vnd.oci.image.index.v1+json"
#define OCI_MANIFEST "application/vnd.oci.image.manifest.v1+json"
#define DESC(type, digest) "{\"mediaType\":\"" type "\",\"digest\":\"" digest "\",\"size\":7}"
#define GZ "application/vnd.oci.image.layer.v1.tar+gzip"
#define CONFIG "\"config\":" DESC("application/vnd.oci.image.config.v1+json", D1)
#define ENTRY(digest, os, arch)                                                                    \
	"{\"digest\":\"" digest "\",\"size\":1,\"platform\":{\"os\":\"" os                         \
	"\",\"architecture\":\"" arch "\"}}"

static int parse(struct manifest *m, const char *text, const char *type, struct err *err)
{
	return manifest_parse(m, text, strlen(text), type, err);
}

static void expect_error(const char *text, int code, const char *says)
{
	struct manifest m;
	struct err err = {0};
	int r = parse(&m, text, NULL, &err);

	if (r != code || !strstr(err.text, says))
		fail_msg("%s\ngave %d \"%s\", not %d \"%s\"", text, r, err.text, code, says);
}

static const struct index_entry *choose(const struct manifest *m, const char *platform, int code,
					struct err *err)
{
	const struct index_entry *e = NULL;
	struct platform p;

	assert_int_equal(platform_parse(&p, platform, NULL), 0);
	assert_int_equal(manifest_choose(m->entries, m->n_entries, &p, &e, err), code);
	return e;
}

static bool is(const struct digest *d, const char *text)
{
	char buf[DIGEST_TEXT_MAX];

	return strcmp(digest_text(d, buf), text) == 0;
}

static void reads_a_manifest(void **state)
{
	struct manifest m;

	assert_int_equal(
		parse(&m,
		      "{\"schemaVersion\":2,\"mediaType\":\"" OCI_MANIFEST "\"," CONFIG
		      ",\"layers\":[" DESC(
			      GZ, D2) ",{\"mediaType\":\"" GZ "\",\"digest\":\"" D3
				      "\",\"size\":9,\"annotations\":{\"k\":\"v\",\"n\":3}}]}",
		      NULL, NULL),
		0);
	assert_int_equal(m.kind, MANIFEST_IMAGE);
	assert_int_equal(m.n_layers, 2);
	assert_true(is(&m.config.digest, D1));
	assert_true(is(&m.layers[0].digest, D2));
	assert_int_equal(m.layers[1].size, 9);
	assert_string_equal(m.layers[1].media_type, GZ);
	assert_string_equal(desc_annotation(&m.layers[1], "k"), "v");
	assert_null(desc_annotation(&m.layers[1], "n"));
	manifest_deinit(&m);
}

static void knows_every_media_type_of_a_layer(void **state)
{
	static const char *const types[] = {
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.v1.tar+zstd",
	};
	struct manifest m;

	for (size_t i = 0; i < countof(types); i++) {
		scoped(free) char *text =
			str_printf("{" CONFIG ",\"layers\":[{\"mediaType\":\"%s\","
				   "\"digest\":\"" D2 "\",\"size\":1}]}",
				   types[i]);
		assert_int_equal(parse(&m, text, NULL, NULL), 0);
		manifest_deinit(&m);
	}
	expect_error("{" CONFIG ",\"layers\":[" DESC("application/vnd.in-toto+json", D2) "]}",
		     -ENOTSUP, "application/vnd.in-toto+json");
	expect_error("{" CONFIG ",\"layers\":[{\"digest\":\"" D2 "\",\"size\":1}]}", -EBADMSG,
		     "layer 0: no media type");
}

static void a_silent_document_is_what_its_giver_says(void **state)
{
	struct manifest m;

	assert_int_equal(parse(&m, "{\"manifests\":[]}", OCI_INDEX, NULL), 0);
	assert_int_equal(m.kind, MANIFEST_INDEX);
	manifest_deinit(&m);
	assert_int_equal(parse(&m, "{\"manifests\":[]}", "text/plain", NULL), 0);
	manifest_deinit(&m);
	assert_int_equal(parse(&m, "{\"manifests\":[]}", OCI_MANIFEST, NULL), -EBADMSG);
}

static void refuses_what_is_no_image(void **state)
{
	expect_error("", -EBADMSG, "JSON");
	expect_error("{", -EBADMSG, "JSON");
	expect_error("[]", -EBADMSG, "neither");
	expect_error("{}", -EBADMSG, "neither");
	expect_error("\"x\"", -EBADMSG, "JSON");
	expect_error("{\"schemaVersion\":1,\"fsLayers\":[]}", -ENOTSUP, "schema 1");
	expect_error("{\"manifests\":[]," CONFIG ",\"layers\":[]}", -EBADMSG, "as well as");
	expect_error("{\"mediaType\":\"application/x\"}", -ENOTSUP, "application/x");
	expect_error("{\"mediaType\":\"" OCI_MANIFEST "\"}", -EBADMSG, "without config");
	expect_error("{\"manifests\":3}", -EBADMSG, "without manifests");
	expect_error("{\"manifests\":[{}]}", -EBADMSG, "entry 0: a descriptor without a digest");
	expect_error("{\"manifests\":[{\"digest\":\"" D1 "\"}]}", -EBADMSG, "without a size");
	expect_error("{\"manifests\":[{\"digest\":\"" D1 "\",\"size\":-1}]}", -EBADMSG,
		     "without a size");
	expect_error("{\"manifests\":[{\"digest\":\"" D1 "\",\"size\":\"1\"}]}", -EBADMSG,
		     "without a size");
	expect_error("{\"manifests\":[{\"digest\":\"sha256:12\",\"size\":1}]}", -EBADMSG,
		     "entry 0");
	expect_error("{\"manifests\":[{\"digest\":\"sha512:12\",\"size\":1}]}", -ENOTSUP, "sha512");
}

static void chooses_by_platform_exact_before_compatible(void **state)
{
	struct manifest m;
	struct err err = {0};

	assert_int_equal(parse(&m,
			       "{\"manifests\":[" ENTRY(D1, "linux", "386") "," ENTRY(
				       D2, "linux", "amd64") "," ENTRY(D3, "linux", "arm64") "]}",
			       NULL, NULL),
			 0);
	assert_true(is(&choose(&m, "linux/amd64", 0, NULL)->desc.digest, D2));
	assert_true(is(&choose(&m, "linux/amd64/v3", 0, NULL)->desc.digest, D2));
	assert_true(is(&choose(&m, "linux/386", 0, NULL)->desc.digest, D1));
	assert_true(is(&choose(&m, "linux/arm64/v8", 0, NULL)->desc.digest, D3));
	choose(&m, "linux/s390x", -ENOENT, &err);
	assert_string_equal(
		err.text, "no image for linux/s390x: there is linux/386, linux/amd64, linux/arm64");
	manifest_deinit(&m);
}

static void skips_attestations(void **state)
{
	struct manifest m;
	struct err err = {0};

	assert_int_equal(parse(&m,
			       "{\"manifests\":[" ENTRY(D1, "unknown",
							"unknown") ",{\"digest\":\"" D2
								   "\",\"size\":1,\"annotations\":{"
								   "\"vnd.docker.reference.type\":"
								   "\"attestation-manifest\"}}]}",
			       NULL, NULL),
			 0);
	choose(&m, "linux/amd64", -ENOENT, &err);
	assert_non_null(strstr(err.text, "none at all"));
	manifest_deinit(&m);
}

static void an_entry_without_platform_serves_only_alone(void **state)
{
#define BARE(digest) "{\"digest\":\"" digest "\",\"size\":1}"
	struct manifest m;
	struct err err = {0};

	assert_int_equal(parse(&m, "{\"manifests\":[" BARE(D1) "," ENTRY(D2, "linux", "arm64") "]}",
			       NULL, NULL),
			 0);
	assert_true(is(&choose(&m, "linux/amd64", 0, NULL)->desc.digest, D1));
	assert_true(is(&choose(&m, "linux/arm64", 0, NULL)->desc.digest, D2));
	manifest_deinit(&m);
	assert_int_equal(parse(&m, "{\"manifests\":[" BARE(D1) "," BARE(D2) "]}", NULL, NULL), 0);
	choose(&m, "linux/amd64", -ENOENT, &err);
	assert_non_null(strstr(err.text, "2 images without a platform"));
	manifest_deinit(&m);
}

static int config(struct image_config *c, const char *text, struct err *err)
{
	return image_config_parse(c, text, strlen(text), err);
}

static void reads_what_a_config_says(void **state)
{
	struct image_config c;
	char text[100];

	assert_int_equal(config(&c,
				"{\"os\":\"linux\",\"architecture\":\"arm\",\"variant\":\"v6\","
				"\"rootfs\":{\"diff_ids\":[\"" D1 "\",\"" D2 "\"]}}",
				NULL),
			 0);
	assert_int_equal(c.n_diff_ids, 2);
	assert_true(is(&c.diff_ids[1], D2));
	assert_string_equal(platform_text(&c.platform, text), "linux/arm/v6");
	image_config_deinit(&c);
	assert_int_equal(config(&c, "{}", NULL), 0);
	assert_false(c.has_platform);
	image_config_deinit(&c);
	assert_int_equal(config(&c, "{\"rootfs\":{\"diff_ids\":[3]}}", NULL), -EBADMSG);
	assert_int_equal(config(&c, "{\"rootfs\":{\"diff_ids\":[\"sha256:x\"]}}", NULL), -EBADMSG);
	assert_int_equal(config(&c, "nothing", NULL), -EBADMSG);
}

static void reads_what_docker_saved(void **state)
{
	static const char text[] = "[{\"Config\":\"c.json\",\"RepoTags\":null,\"Layers\":[\"a/l\","
				   "\"b/l\"]},{\"Config\":\"d\",\"RepoTags\":[\"x:1\"]}]";
	struct saved_image *images;
	size_t n;
	struct err err = {0};

	assert_int_equal(saved_images_parse(&images, &n, text, strlen(text), NULL), 0);
	assert_int_equal(n, 2);
	assert_int_equal(images[0].n_tags, 0);
	assert_string_equal(images[0].layers[1], "b/l");
	assert_string_equal(images[1].tags[0], "x:1");
	saved_images_free(images, n);
	assert_int_equal(saved_images_parse(&images, &n, "[]", 2, &err), -EBADMSG);
	assert_int_equal(saved_images_parse(&images, &n, "[{}]", 4, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "no Config"));
	static const char bad[] = "[{\"Config\":\"c\",\"Layers\":[\"a\",1]}]";
	assert_int_equal(saved_images_parse(&images, &n, bad, strlen(bad), &err), -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_a_manifest),
		cmocka_unit_test(knows_every_media_type_of_a_layer),
		cmocka_unit_test(a_silent_document_is_what_its_giver_says),
		cmocka_unit_test(refuses_what_is_no_image),
		cmocka_unit_test(chooses_by_platform_exact_before_compatible),
		cmocka_unit_test(skips_attestations),
		cmocka_unit_test(an_entry_without_platform_serves_only_alone),
		cmocka_unit_test(reads_what_a_config_says),
		cmocka_unit_test(reads_what_docker_saved),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
