/* SPDX-License-Identifier: Apache-2.0 */

/* treehash: digests that BuildKit gave for the same tree; what they are blind to and what not. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "merge/merge.h"

static void add(struct tree *t, const char *path, uint8_t type, uint32_t mode, const char *data)
{
	const struct attr attr = {.type = type, .mode = mode};

	assert_int_equal(memtree_add(t, path, &attr, data, strlen(data)), 0);
}

/* The tree of the vectors. */
static struct tree *vector_tree(void)
{
	const struct attr owned = {.type = NODE_FILE, .mode = 0644, .uid = 1000, .gid = 1001};
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	add(t, "foo", NODE_FILE, 0644, "data0");
	add(t, "bar", NODE_FILE, 0600, "");
	add(t, "d0", NODE_DIR, 0755, "");
	add(t, "d0/abc", NODE_FILE, 0755, "x");
	add(t, "d0/d1", NODE_DIR, 0700, "");
	add(t, "d0/d1/deep.txt", NODE_FILE, 0640, "deep");
	assert_int_equal(memtree_add(t, "d0/z", &owned, "zz", 2), 0);
	add(t, "d0.txt", NODE_FILE, 0644, "dot");
	add(t, "suid", NODE_FILE, 04755, "s");
	add(t, "lnk", NODE_SYMLINK, 0777, "d0");
	add(t, "abslnk", NODE_SYMLINK, 0777, "/d0/abc");
	add(t, "d0/up", NODE_SYMLINK, 0777, "../foo");
	return t;
}

static const struct vector {
	const char *path;
	bool wildcard, follow;
	const char *include, *exclude;
	const char *hex;
} vectors[] = {
	{"/", false, false, NULL, NULL,
	 "ac7590fb902f7a3e7772f41cfa857196470a3451ef23d09494483df1bc397c25"},
	{"/foo", false, false, NULL, NULL,
	 "cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b"},
	{"/bar", false, false, NULL, NULL,
	 "2bac37a1b15ce2475f45da359bd47f5dad0aea6b4ecdff8b774ee093757e1a28"},
	{"/d0", false, false, NULL, NULL,
	 "ee52ad180f4cf9fb56b3af1b06f0356c710d3df671e1844875c3c334992824c1"},
	{"/d0/", false, false, NULL, NULL,
	 "ee52ad180f4cf9fb56b3af1b06f0356c710d3df671e1844875c3c334992824c1"},
	{"/d0/d1", false, false, NULL, NULL,
	 "9265ce26e6c22303b006222de19946e025fb7779ee9926b3ba02d85c8bac5d12"},
	{"/d0/d1/", false, false, NULL, NULL,
	 "9265ce26e6c22303b006222de19946e025fb7779ee9926b3ba02d85c8bac5d12"},
	{"/suid", false, false, NULL, NULL,
	 "a66a3af9a512dc14eea9804be6a105a8ae5815b01806f2796a20c295f6a61b60"},
	{"/d0.txt", false, false, NULL, NULL,
	 "eba5a58571cfd1f269c3f5bb55380b428e63bd390fd9ae06e32eded53c9a63a3"},
	{"/lnk", false, false, NULL, NULL,
	 "0f3fe99b735e5b495fcd43fb6db50d80f98a051ec7cbf3883f4a36d9b955fcb4"},
	{"/lnk", false, true, NULL, NULL,
	 "ee52ad180f4cf9fb56b3af1b06f0356c710d3df671e1844875c3c334992824c1"},
	{"/lnk/abc", false, false, NULL, NULL,
	 "dbc0ebe29d01cef335b3c4e65b110eb68dbda27017a057097997db792010575f"},
	{"/abslnk", false, false, NULL, NULL,
	 "2213f6757bc2f20c06cf545e93414a88fe3b2c6488a05bd55c78d7b0a1fad2d3"},
	{"/abslnk", false, true, NULL, NULL,
	 "dbc0ebe29d01cef335b3c4e65b110eb68dbda27017a057097997db792010575f"},
	{"/d0/up", false, true, NULL, NULL,
	 "cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b"},
	{"/d0/z", false, false, NULL, NULL,
	 "aeccf07d48f9e444f1b690c3ad57f1d7063efb39e5c8129ae80e775721ff4389"},
	{"/d0/*", true, false, NULL, NULL,
	 "a1b7e58c5b873ebadb101969e92b790ffbab31de3e20d865cff40f0e9f4933d4"},
	{"/d0*", true, false, NULL, NULL,
	 "ca81270d648b71181e4267a38e4e45cb48891265382f9aa0cec15b9d58f92748"},
	{"/f?o", true, false, NULL, NULL,
	 "0bc65b6c08c1e2b4026e952a223c4a2d61de3b708cbd2352c16a8c6ff29d2415"},
	{"/*.txt", true, false, NULL, NULL,
	 "72cf546bb18d5eb81222e458caffe7df5f9c97fcff85909850b35d6e79665feb"},
	{"/*", true, false, NULL, NULL,
	 "c070dd51aed8a85f62dc3c473d6d3a2dffecc4ea380c16ae5bfec5f2f2f0040d"},
	{"/ln*", true, true, NULL, NULL,
	 "d7ab96261c13f660e8328d907ce94ec80feb28632fea7c8ab283d360cf6a8d0e"},
	{"/ln*", true, false, NULL, NULL,
	 "855fd2c818b0e66a0719ff3df3a8f02c81068d09463cd3ba85b1d38a479a5300"},
	{"/nothing*", true, false, NULL, NULL,
	 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
	{"/d0", false, false, "abc", NULL,
	 "6663fc88c76662f33a2ed6910564a6c88fba59de2685b28b52cc78141d964f10"},
	{"/d0", false, false, "d1/*.txt", NULL,
	 "76845eae434155caa0c3937ee45a7cad1b517e2df9b40328baa0eac627ac82e9"},
	{"/d0/", false, false, "abc", NULL,
	 "a4f994b3430f954115ce750d203d967b2e4238c60620ae61ab72bb5aff9a675e"},
	{"/", false, false, "d0/abc", NULL,
	 "28610fe2bdd4c3932e4708864314f0aa427ae75ebe438747f07fd905d9571382"},
	{"/", false, false, NULL, "d0",
	 "a720033f09f96dd9f2e39bf350a08a1bf37135f157ca3a4d6a6a30dd6d2c0427"},
	{"/d0", false, false, NULL, "d1",
	 "d596bfb4538ec38b18ea46219871742f78d73a1933de16ee7550f690835f1f34"},
	{"/d0/", false, false, NULL, "**/*.txt",
	 "c4a1a4bf2496fcf645be91873188476a1db651d3705f334105e4e7b5b5e7401c"},
	{"/lnk", false, false, "abc", NULL,
	 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
};

static void ask_text(struct tree *t, const struct treehash_ask *ask, char text[DIGEST_HEX_MAX])
{
	struct digest digest;
	struct err err = {0};

	if (treehash(t, ask, &digest, &err) < 0)
		fail_msg("%s: %s", ask->path, err.text);
	digest_hex(&digest, text);
}

static void vectors_agree(void **state)
{
	struct tree *t = vector_tree();
	char text[DIGEST_HEX_MAX];

	for (size_t i = 0; i < countof(vectors); i++) {
		const struct vector *v = &vectors[i];
		const struct treehash_ask ask = {
			.path = v->path,
			.wildcard = v->wildcard,
			.follow = v->follow,
			.include = &v->include,
			.exclude = &v->exclude,
			.n_include = v->include != NULL,
			.n_exclude = v->exclude != NULL,
		};

		ask_text(t, &ask, text);
		if (strcmp(text, v->hex) != 0)
			fail_msg("vector %zu, %s: %s", i, v->path, text);
	}
	tree_unref(t);
}

static const uint8_t capability[] = {1, 2, 0};

/* Single nodes, of which BuildKit's digests are known; devices have numbers only when uploaded. */
static void every_type_agrees(void **state)
{
	static const struct {
		struct attr attr;
		bool is_upload;
		const char *data, *hex;
	} nodes[] = {
		{{.type = NODE_SYMLINK, .mode = 0777},
		 false,
		 "target",
		 "a2ba571981f48ec34eb79c9a3ab091b6491e825c2f7e9914ea86e8e958be7fae"},
		{{.type = NODE_CHAR, .mode = 0600, .dev_major = 1, .dev_minor = 3},
		 true,
		 "",
		 "85bd76951360c88286c3180c022599ad52bc3dfbbd2779d887da8490374495cf"},
		{{.type = NODE_CHAR, .mode = 0666, .dev_major = 1, .dev_minor = 3},
		 false,
		 "",
		 "0194263160120bafc733c52ddbb2636e86b9d9a1cfb01e77e9a367548d2461d8"},
		{{.type = NODE_FIFO, .mode = 0600},
		 false,
		 "",
		 "df86591a50f2862155e76a1d53cdad72c7f3f6c13413e4dbfb6410e347bd9ff9"},
		{{.type = NODE_FIFO, .mode = 0644},
		 false,
		 "",
		 "ed66acfbb9d93c08ed7faab2b6c0e2201a312df9abcbd94a761a1ea7f345dad5"},
	};
	char text[DIGEST_HEX_MAX];

	for (size_t i = 0; i < countof(nodes); i++) {
		const struct treehash_ask ask = {.path = "/n", .is_upload = nodes[i].is_upload};
		struct tree *t;

		assert_int_equal(memtree_new(&t), 0);
		assert_int_equal(
			memtree_add(t, "n", &nodes[i].attr, nodes[i].data, strlen(nodes[i].data)),
			0);
		ask_text(t, &ask, text);
		assert_string_equal(text, nodes[i].hex);
		tree_unref(t);
	}
}

/* Sorted by name; of security.* and system.* only the capability counts. */
static void xattrs_agree(void **state)
{
	static const char bytes[] = "namemode420uid0gid0size5typeflag0linknameunamegname"
				    "devmajor0devminor0security.capability\1\2\0trusted.zt"
				    "user.a1user.b2hello";
	const struct treehash_ask ask = {.path = "/n"}, other = {.path = "/one"};
	char text[DIGEST_HEX_MAX], want[DIGEST_HEX_MAX];
	struct digest digest;
	struct tree *t;

	assert_int_equal(memtree_new(&t), 0);
	add(t, "n", NODE_FILE, 0644, "hello");
	assert_int_equal(memtree_xattr(t, "n", "user.b", "2", 1), 0);
	assert_int_equal(memtree_xattr(t, "n", "user.a", "1", 1), 0);
	assert_int_equal(memtree_xattr(t, "n", "security.capability", capability, 3), 0);
	assert_int_equal(memtree_xattr(t, "n", "trusted.z", "t", 1), 0);
	assert_int_equal(memtree_xattr(t, "n", "security.selinux", "x", 1), 0);
	assert_int_equal(memtree_xattr(t, "n", "system.posix_acl_access", "x", 1), 0);
	ask_text(t, &ask, text);
	digest_bytes(&digest, bytes, sizeof(bytes) - 1);
	assert_string_equal(text, digest_hex(&digest, want));

	add(t, "one", NODE_FILE, 0644, "xa\n");
	assert_int_equal(memtree_xattr(t, "one", "user.test", "v1", 2), 0);
	ask_text(t, &other, text);
	assert_string_equal(text,
			    "2fe8244f303391dc1a91e941708b105ec05c9b8d8e6138241821fc27666c656d");
	tree_unref(t);
}

/* ------------------------------------------------------------------ what counts */

/* /d with a file, a link and a folder in it; changed at one place. */
enum tweak {
	SAME,
	MTIME,
	CONTENT,
	NAME,
	MODE,
	OWNER,
	TARGET,
	XATTR,
	XATTR_OF_HOST, /* security.* says something of the host, not of the file */
	HARD_LINK,
	NEW_ENTRY,
	FOLDER_MODE,
};

static void changed_digest(enum tweak edit, char text[DIGEST_HEX_MAX])
{
	const struct treehash_ask ask = {.path = "/d"};
	struct attr file = {.type = NODE_FILE, .mode = 0644, .mtime_s = 5};
	struct attr folder = {.type = NODE_DIR, .mode = 0755, .mtime_s = 5};
	const char *name = edit == NAME ? "d/g" : "d/f";
	struct tree *t;

	file.mtime_s += edit == MTIME;
	folder.mtime_ns += edit == MTIME;
	file.mode += edit == MODE;
	file.gid += edit == OWNER;
	folder.mode -= edit == FOLDER_MODE;
	assert_int_equal(memtree_new(&t), 0);
	assert_int_equal(memtree_add(t, "d/sub", &folder, "", 0), 0);
	assert_int_equal(memtree_add(t, name, &file, edit == CONTENT ? "two" : "one", 3), 0);
	if (edit == HARD_LINK)
		assert_int_equal(memtree_link(t, "d/sub/same", name), 0);
	else
		assert_int_equal(
			memtree_add(t, "d/sub/same", &file, edit == CONTENT ? "two" : "one", 3), 0);
	add(t, "d/l", NODE_SYMLINK, 0777, edit == TARGET ? "f/." : "f");
	if (edit == XATTR)
		assert_int_equal(memtree_xattr(t, name, "user.a", "1", 1), 0);
	if (edit == XATTR_OF_HOST)
		assert_int_equal(memtree_xattr(t, name, "security.selinux", "1", 1), 0);
	if (edit == NEW_ENTRY)
		add(t, "d/sub/new", NODE_FILE, 0644, "");
	ask_text(t, &ask, text);
	tree_unref(t);
}

static void what_counts_counts(void **state)
{
	static const enum tweak same[] = {MTIME, XATTR_OF_HOST, HARD_LINK};
	static const enum tweak others[] = {CONTENT, NAME,  MODE,      OWNER,
					    TARGET,  XATTR, NEW_ENTRY, FOLDER_MODE};
	char was[DIGEST_HEX_MAX], is[DIGEST_HEX_MAX];

	changed_digest(SAME, was);
	for (size_t i = 0; i < countof(same); i++) {
		changed_digest(same[i], is);
		assert_string_equal(was, is);
	}
	for (size_t i = 0; i < countof(others); i++) {
		changed_digest(others[i], is);
		assert_string_not_equal(was, is);
	}
}

static void an_upload_has_no_owner_and_no_root(void **state)
{
	const struct treehash_ask file = {.path = "/f", .is_upload = true};
	const struct treehash_ask root = {.path = "/", .is_upload = true};
	const struct treehash_ask plain = {.path = "/f"};
	struct attr attr = {.type = NODE_FILE, .mode = 0644};
	char texts[2][DIGEST_HEX_MAX], text[DIGEST_HEX_MAX];

	for (int i = 0; i < 2; i++) {
		struct tree *t;

		attr.uid = attr.gid = i ? 1000 : 0;
		assert_int_equal(memtree_new(&t), 0);
		assert_int_equal(memtree_add(t, "f", &attr, "x", 1), 0);
		ask_text(t, &file, texts[i]);
		ask_text(t, &plain, text);
		assert_int_equal(strcmp(texts[i], text) == 0, i == 0);
		ask_text(t, &root, text);
		add(t, "/", NODE_DIR, 0700, "");
		ask_text(t, &root, texts[i]);
		assert_string_equal(texts[i], text);
		tree_unref(t);
	}
	assert_string_equal(texts[0], texts[1]);
}

/* ------------------------------------------------------------------ what cannot be hashed */

static int ask_error(struct tree *t, const struct treehash_ask *ask)
{
	struct digest digest;

	return treehash(t, ask, &digest, NULL);
}

static void errors_are_told(void **state)
{
	struct tree *t = vector_tree();
	const char *bad = "a[";

	add(t, "loop", NODE_SYMLINK, 0777, "/loop");
	add(t, "dangling", NODE_SYMLINK, 0777, "nowhere");
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "/missing"}), -ENOENT);
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "/foo/x"}), -ENOENT);
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "/loop/x"}), -ELOOP);
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "/loop", .follow = true}),
			 -ELOOP);
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "/loop"}), 0);
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "/dang*",
							     .wildcard = true,
							     .follow = true}),
			 -ENOENT);
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "/a[", .wildcard = true}),
			 -EINVAL);
	assert_int_equal(
		ask_error(t, &(struct treehash_ask){.path = "/", .include = &bad, .n_include = 1}),
		-EINVAL);
	tree_unref(t);
}

/* A chain of links within the limit, ".." above the root, and behind what is missing. */
static void links_lead_where_buildkit_goes(void **state)
{
	struct tree *t = vector_tree();
	char want[DIGEST_HEX_MAX], text[DIGEST_HEX_MAX], name[16], target[16];

	for (int i = 0; i < 255; i++) {
		snprintf(name, sizeof(name), "chain%d", i);
		snprintf(target, sizeof(target), i ? "chain%d" : "foo", i - 1);
		add(t, name, NODE_SYMLINK, 0777, target);
	}
	add(t, "chain255", NODE_SYMLINK, 0777, "chain254");
	add(t, "out", NODE_SYMLINK, 0777, "../../no/such/../../../foo");
	ask_text(t, &(struct treehash_ask){.path = "/foo"}, want);
	ask_text(t, &(struct treehash_ask){.path = "chain254", .follow = true}, text);
	assert_string_equal(text, want);
	ask_text(t, &(struct treehash_ask){.path = "/out", .follow = true}, text);
	assert_string_equal(text, want);
	assert_int_equal(ask_error(t, &(struct treehash_ask){.path = "chain255", .follow = true}),
			 -ELOOP);
	tree_unref(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(vectors_agree),
		cmocka_unit_test(every_type_agrees),
		cmocka_unit_test(xattrs_agree),
		cmocka_unit_test(what_counts_counts),
		cmocka_unit_test(an_upload_has_no_owner_and_no_root),
		cmocka_unit_test(errors_are_told),
		cmocka_unit_test(links_lead_where_buildkit_goes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
