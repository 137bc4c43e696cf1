/* SPDX-License-Identifier: Apache-2.0 */

/* name: docker's image names, and every form of REF. */

#include "solver/solver-internal.h"
#include "tests/test.h"

#define HEX "1111111111111111111111111111111111111111111111111111111111111111"

static void image(const char *text, const char *canonical)
{
	struct image_name name;
	struct err err = {0};

	if (image_name_parse(&name, text, &err) < 0)
		fail_msg("%s: %s", text, err.text);
	scoped(free) char *is = image_name_text(&name);
	image_name_deinit(&name);
	assert_string_equal(is, canonical);
}

static void image_names_have_dockers_defaults(void **state)
{
	image("alpine", "docker.io/library/alpine:latest");
	image("alpine:3.20", "docker.io/library/alpine:3.20");
	image("moby/buildkit", "docker.io/moby/buildkit:latest");
	image("index.docker.io/alpine", "docker.io/library/alpine:latest");
	image("docker.io/alpine:1", "docker.io/library/alpine:1");
	image("docker.io/a/b", "docker.io/a/b:latest");
	image("host:5000/a/b:tag", "host:5000/a/b:tag");
	image("host:5000/a", "host:5000/a:latest");
	image("host.example/a", "host.example/a:latest");
	image("localhost/a", "localhost/a:latest");
	image("localhost:5000/a", "localhost:5000/a:latest");
	image("Host/a", "Host/a:latest");
	image("127.0.0.1:5000/golden/tiny:1", "127.0.0.1:5000/golden/tiny:1");
	image("[::1]:5000/a", "[::1]:5000/a:latest");
	image("a/b@sha256:" HEX, "docker.io/a/b@sha256:" HEX);
	image("a:t@sha256:" HEX, "docker.io/library/a:t@sha256:" HEX);
	image("g/a-b__c.d_e--f", "docker.io/g/a-b__c.d_e--f:latest");
	image("alpine:5000", "docker.io/library/alpine:5000");
}

static void refuses_what_docker_refuses(void **state)
{
	static const char *const bad[] = {
		"",
		":tag",
		"@sha256:" HEX,
		"A",
		"a/B",
		"a//b",
		"/a",
		"a/",
		"a:",
		"a:.t",
		"a:-t",
		"a:t/b:",
		"a_",
		"-a",
		"a___b",
		"a..b",
		"a b",
		"a\n",
		"host:/a",
		"host:x/a",
		"h..x/a",
		"-h.x/a",
		"h-.x/a",
		"a@sha256",
		"a@",
		"a@sha256:12",
		"a@sha512:" HEX HEX,
		HEX,
		"[::1/a",
		"[]/a",
		"a:t:u",
		"a@b@sha256:" HEX,
		"\xc3\xa4/b",
		"a/\xff",
	};
	struct image_name name;

	for (size_t i = 0; i < countof(bad); i++)
		if (image_name_parse(&name, bad[i], NULL) >= 0)
			fail_msg("\"%s\" was taken", bad[i]);
	char tag[140] = "a:";
	memset(tag + 2, 't', 128);
	assert_int_equal(image_name_parse(&name, tag, NULL), 0);
	image_name_deinit(&name);
	tag[2 + 128] = 't';
	assert_int_equal(image_name_parse(&name, tag, NULL), -EINVAL);
	char longest[300];
	memset(longest, 'a', sizeof(longest));
	longest[256] = 0;
	assert_int_equal(image_name_parse(&name, longest, NULL), -EINVAL);
}

struct expected {
	enum ref_form form;
	const char *name, *tag, *digest, *vertex;
	int index;
};

static bool same(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

static void ref(const char *text, struct expected want)
{
	struct ref_text t;
	struct err err = {0};

	if (ref_text_parse(&t, text, &err) < 0)
		fail_msg("%s: %s", text, err.text);
	if (t.form != want.form || !same(t.name, want.name) || !same(t.tag, want.tag) ||
	    !same(t.digest, want.digest) || !same(t.vertex, want.vertex) || t.index != want.index)
		fail_msg("%s: form %d name %s tag %s digest %s vertex %s index %d", text, t.form,
			 t.name, t.tag, t.digest, t.vertex, t.index);
	ref_text_deinit(&t);
}

static void every_form_is_told_apart(void **state)
{
	ref("alpine:3.20", (struct expected){FORM_IMAGE, "alpine:3.20"});
	ref("a/b", (struct expected){FORM_IMAGE, "a/b"});
	ref("docker-image://a/b:1", (struct expected){FORM_IMAGE, "a/b:1"});
	ref("docker://a/b", (struct expected){FORM_IMAGE, "a/b"});
	ref("./a", (struct expected){FORM_DIR, "./a"});
	ref("../a", (struct expected){FORM_DIR, "../a"});
	ref("/a", (struct expected){FORM_DIR, "/a"});
	ref(".", (struct expected){FORM_DIR, "."});
	ref("dir://a", (struct expected){FORM_DIR, "a"});
	ref("./a://b", (struct expected){FORM_DIR, "./a://b"});
	ref("ref://0123abcd", (struct expected){FORM_REF, "0123abcd"});
	ref("ref://sha256:0123abcd", (struct expected){FORM_REF, "0123abcd"});
	ref("cache://type=local,src=x#abc", (struct expected){FORM_OTHER, "cache"});
}

static void layouts_and_archives_have_tags(void **state)
{
	ref("oci-layout://d", (struct expected){FORM_OCI_LAYOUT, "d"});
	ref("oci-layout:///a/d:v1", (struct expected){FORM_OCI_LAYOUT, "/a/d", "v1"});
	ref("oci-layout://d@sha256:" HEX,
	    (struct expected){FORM_OCI_LAYOUT, "d", NULL, "sha256:" HEX});
	ref("oci-layout://a:b/d:v1@sha256:" HEX,
	    (struct expected){FORM_OCI_LAYOUT, "a:b/d", "v1", "sha256:" HEX});
	ref("oci-layout://a@b/d", (struct expected){FORM_OCI_LAYOUT, "a@b/d"});
	ref("oci-archive://x.tar", (struct expected){FORM_OCI_ARCHIVE, "x.tar"});
	ref("oci-archive://x.tar:v1", (struct expected){FORM_OCI_ARCHIVE, "x.tar", "v1"});
	ref("docker-archive://x.tar", (struct expected){FORM_DOCKER_ARCHIVE, "x.tar"});
	ref("docker-archive://x.tar:host:5000/a/b:c",
	    (struct expected){FORM_DOCKER_ARCHIVE, "x.tar", "host:5000/a/b:c"});
}

static void definitions_have_vertices(void **state)
{
	ref("llb://-", (struct expected){FORM_LLB, "-"});
	ref("llb://a#b/def.pb#abcdef",
	    (struct expected){FORM_LLB, "a#b/def.pb", NULL, NULL, "abcdef"});
	ref("llb://f#abcdef:3", (struct expected){FORM_LLB, "f", NULL, NULL, "abcdef", 3});
	ref("llb://f#sha256:" HEX ":1",
	    (struct expected){FORM_LLB, "f", NULL, NULL, "sha256:" HEX, 1});
}

static void refuses_what_is_no_ref(void **state)
{
	static const char *const bad[] = {
		"nosuch://x",
		"oci-layout://",
		"oci-layout://:v1",
		"oci-layout://d:",
		"oci-layout://d@sha256:1",
		"oci-archive://",
		"docker-archive://x:A",
		"dir://",
		"llb://",
		"llb://f#abc",
		"llb://f#xyzxyz",
		"llb://f#abcdef:",
		"llb://f#abcdef:x",
		"llb://f#abcdef:-1",
		"llb://f#abcdef:9999999999",
		"llb://f#",
		"docker-image://",
		"docker://A",
	};
	struct ref_text t;
	struct err err;

	for (size_t i = 0; i < countof(bad); i++) {
		err = (struct err){0};
		if (ref_text_parse(&t, bad[i], &err) != -EINVAL)
			fail_msg("\"%s\" was taken", bad[i]);
		assert_true(err.text[0]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(image_names_have_dockers_defaults),
		cmocka_unit_test(refuses_what_docker_refuses),
		cmocka_unit_test(every_form_is_told_apart),
		cmocka_unit_test(layouts_and_archives_have_tags),
		cmocka_unit_test(definitions_have_vertices),
		cmocka_unit_test(refuses_what_is_no_ref),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
