/* SPDX-License-Identifier: Apache-2.0 */

/* index: the rules of layers, as the index that comes out shows them; and damaged files. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <unistd.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

/* ------------------------------------------------------------------ help */

struct made {
	void *bytes;
	size_t n;
	struct index *x;
};

static void made_free(struct made *m)
{
	index_free(m->x);
	free(m->bytes);
}

static struct index_item item(uint8_t type, const char *path)
{
	return (struct index_item){.type = type, .path = path, .mode = 0644, .mtime_s = 1};
}

static int try_add(struct index_builder *b, uint8_t type, const char *path, const char *link,
		   struct err *err)
{
	struct index_item i = item(type, path);

	i.link = link;
	return index_builder_add(b, &i, err);
}

static void add(struct index_builder *b, uint8_t type, const char *path)
{
	assert_int_equal(try_add(b, type, path, NULL, NULL), 0);
}

static void add_link(struct index_builder *b, uint8_t type, const char *path, const char *link)
{
	assert_int_equal(try_add(b, type, path, link, NULL), 0);
}

/* A file that can be told by its size. */
static void add_file(struct index_builder *b, const char *path, uint64_t size)
{
	struct index_item i = item(NODE_FILE, path);

	i.size = size;
	i.plain_off = size * 1000;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
}

static struct made finish(struct index_builder *b, bool hide_toc)
{
	const struct index_about about = {.format = LAYER_GZIP, .prefetch_bytes = 77};
	struct made m = {0};

	assert_int_equal(index_builder_finish(b, &about, hide_toc, &m.bytes, &m.n, NULL), 0);
	assert_int_equal(index_parse(&m.x, m.bytes, m.n, NULL), 0);
	index_builder_free(b);
	return m;
}

static int find(const struct index *x, const char *path, uint32_t *entry)
{
	*entry = 0;
	while (*path) {
		size_t n = strcspn(path + 1, "/");
		int r = index_find(x, *entry, path + 1, n, entry);
		if (r < 0)
			return r;
		path += 1 + n;
	}
	return 0;
}

static struct attr attr_of(const struct made *m, const char *path)
{
	struct attr a;
	uint32_t entry;

	if (find(m->x, path, &entry) < 0)
		fail_msg("no %s", path);
	assert_int_equal(index_attr(m->x, entry, &a), 0);
	return a;
}

static void expect_type(const struct made *m, const char *path, uint8_t type)
{
	struct attr a = attr_of(m, path);

	if (a.type != type)
		fail_msg("%s has type %d, not %d", path, a.type, type);
}

/* The whole tree as text: folders end in "/", whiteouts begin with "-", opaque folders with "!",
 * implicit ones with "?". */
static void print_tree(struct strbuf *out, const struct index *x, uint32_t dir, const char *path)
{
	uint32_t first, n;

	assert_int_equal(index_children(x, dir, &first, &n), 0);
	for (uint32_t i = first; i < first + n; i++) {
		const char *name;
		char sub[600];
		size_t len;
		struct attr a;
		assert_int_equal(index_name(x, i, &name, &len), 0);
		assert_int_equal(index_attr(x, i, &a), 0);
		snprintf(sub, sizeof(sub), "%s%.*s%s", path, (int)len, name,
			 a.type == NODE_DIR ? "/" : "");
		strbuf_printf(out, "%s%s%s%s ", a.type == NODE_WHITEOUT ? "-" : "",
			      a.is_opaque ? "!" : "", a.is_implicit ? "?" : "", sub);
		if (a.type == NODE_DIR)
			print_tree(out, x, i, sub);
	}
}

static void expect_tree(struct made m, const char *wanted)
{
	struct strbuf out = {0};

	strbuf_puts(&out, "");
	print_tree(&out, m.x, 0, "");
	assert_string_equal(out.data ? out.data : "", wanted);
	strbuf_free(&out);
	made_free(&m);
}

/* ------------------------------------------------------------------ folders and replacing */

static void an_empty_layer_is_a_root(void **state)
{
	struct made m = finish(index_builder_new(false), false);
	struct attr a = attr_of(&m, "");
	struct index_about about;

	assert_int_equal(a.id, TREE_ROOT);
	assert_int_equal(a.type, NODE_DIR);
	assert_int_equal(a.mode, 0755);
	assert_int_equal(a.nlink, 2);
	assert_true(a.is_implicit);
	index_about(m.x, &about);
	assert_int_equal(about.format, LAYER_GZIP);
	assert_int_equal(about.n_entries, 1);
	assert_int_equal(about.prefetch_bytes, 77);
	made_free(&m);
}

static void the_root_entry_is_ignored(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_item i = item(NODE_DIR, "./");

	i.mode = 0700;
	i.uid = 5;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	add(b, NODE_DIR, "/");
	add(b, NODE_DIR, "");
	add(b, NODE_FILE, "..");
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "").mode, 0755);
	assert_int_equal(attr_of(&m, "").uid, 0);
	expect_tree(m, "");
}

static void entries_are_sorted_and_names_cleaned(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_file(b, "./b//x", 1);
	add_file(b, "/b/./w/../a", 2);
	add_file(b, "ab", 3);
	add_file(b, "a", 4);
	add_file(b, "a.b", 5);
	add_file(b, "../../\xff", 6);
	add_file(b, "Z", 7);
	expect_tree(finish(b, false), "Z a a.b ab ?b/ b/a b/x \xff ");
}

static void missing_parents_are_made_up_until_they_come(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_item i = item(NODE_DIR, "a/b/");

	add_file(b, "a/b/c/d", 1);
	i.mode = 0711;
	i.uid = 7;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/a").mode, 0755);
	assert_int_equal(attr_of(&m, "/a").mtime_s, 0);
	assert_int_equal(attr_of(&m, "/a/b").mode, 0711);
	assert_int_equal(attr_of(&m, "/a/b").uid, 7);
	assert_int_equal(attr_of(&m, "/a/b").nlink, 3);
	expect_tree(m, "?a/ a/b/ ?a/b/c/ a/b/c/d ");
}

static void the_last_of_equal_names_wins(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_file(b, "f", 1);
	add_file(b, "f", 2);
	add_link(b, NODE_SYMLINK, "s", "x");
	add_link(b, NODE_SYMLINK, "s", "yy");
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/f").size, 2);
	assert_int_equal(attr_of(&m, "/s").size, 2);
	expect_tree(m, "f s ");
}

static void a_file_over_a_folder_takes_its_content_away(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_file(b, "d/e/f", 1);
	add_file(b, "d/e/g", 1);
	add_file(b, "d/e", 2);
	add_file(b, "x", 3);
	add_file(b, "y/z", 3);
	add(b, NODE_DIR, "x");
	add_file(b, "x/new", 4);
	add(b, NODE_FIFO, "y");
	add(b, NODE_DIR, "y");
	expect_tree(finish(b, false), "?d/ d/e x/ x/new y/ ");
}

static void a_folder_twice_keeps_its_content(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_item i = item(NODE_DIR, "d");

	add(b, NODE_DIR, "d");
	add_file(b, "d/f", 1);
	i.mode = 01777;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/d").mode, 01777);
	expect_tree(m, "d/ d/f ");
}

static void an_entry_below_a_file_is_an_error(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct err err = {0};

	add_file(b, "f", 1);
	assert_int_equal(try_add(b, NODE_FILE, "f/g", NULL, &err), -EBADMSG);
	assert_string_equal(err.text, "/f/g: lies below something that is not a folder");
	assert_int_equal(try_add(b, NODE_FILE, "f/\xc3\xa9\n", NULL, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "/f/\xc3\xa9\\012: lies"));
	assert_int_equal(try_add(b, NODE_FILE, "f/\xc2\x9b", NULL, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "/f/\\302\\233: lies"));
	assert_int_equal(try_add(b, NODE_FILE, "f/\xc3\n", NULL, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "/f/\\303\\012: lies"));
	index_builder_free(b);
}

/* ------------------------------------------------------------------ symlinks on the way */

static void parents_that_are_symlinks_are_followed_inside_the_root(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add(b, NODE_DIR, "usr/lib");
	add_link(b, NODE_SYMLINK, "lib", "usr/lib");
	add_file(b, "lib/one", 1);
	add_link(b, NODE_SYMLINK, "abs", "/usr");
	add_file(b, "abs/lib/two", 2);
	add_link(b, NODE_SYMLINK, "usr/up", "../../../../lib");
	add_file(b, "usr/up/three", 3);
	add_link(b, NODE_SYMLINK, "nowhere", "not/yet");
	add_file(b, "nowhere/four", 4);
	expect_tree(finish(b, false), "abs lib ?not/ ?not/yet/ not/yet/four nowhere ?usr/ usr/lib/ "
				      "usr/lib/one usr/lib/three usr/lib/two usr/up ");
}

static void a_symlink_at_the_end_is_replaced(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add(b, NODE_DIR, "real");
	add_link(b, NODE_SYMLINK, "l", "real");
	add_file(b, "l/a", 1);
	add(b, NODE_DIR, "l");
	add_file(b, "l/b", 2);
	expect_tree(finish(b, false), "l/ l/b real/ real/a ");
}

static void loops_of_symlinks_are_an_error(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_link(b, NODE_SYMLINK, "a", "b");
	add_link(b, NODE_SYMLINK, "b", "a");
	assert_int_equal(try_add(b, NODE_FILE, "a/x", NULL, NULL), -EBADMSG);
	index_builder_free(b);
}

/* ------------------------------------------------------------------ whiteouts */

static void whiteouts_and_opaque_folders_are_marked(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add(b, NODE_FILE, "d/.wh.gone");
	add(b, NODE_FILE, ".wh.top");
	add_file(b, "o/kept", 1);
	add(b, NODE_FILE, "o/.wh..wh..opq");
	add(b, NODE_FILE, ".wh..wh.plnk");
	add_file(b, ".wh..wh.aufs", 1);
	expect_tree(finish(b, false), "?d/ -d/gone !?o/ o/kept -top ");
}

static void the_root_can_be_opaque(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add(b, NODE_FILE, ".wh..wh..opq");
	struct made m = finish(b, false);
	assert_true(attr_of(&m, "").is_opaque);
	made_free(&m);
}

static void what_is_there_stays_with_a_whiteout_beside_it(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_file(b, "f", 1);
	add(b, NODE_FILE, ".wh.f");
	add(b, NODE_FILE, ".wh.g");
	add_file(b, "g", 1);
	add(b, NODE_DIR, "d");
	add(b, NODE_FILE, ".wh.d");
	add(b, NODE_FILE, ".wh.e");
	add(b, NODE_DIR, "e");
	/* no metadata of a lower folder may come through a whiteout */
	add(b, NODE_FILE, ".wh.i");
	add_file(b, "i/x", 1);
	/* once hidden, hidden for good */
	add(b, NODE_FILE, ".wh.p");
	add_file(b, "p", 1);
	add(b, NODE_DIR, "p");
	expect_tree(finish(b, false), "!d/ !e/ f g !i/ i/x !p/ ");
}

static void whiteouts_follow_symlinked_parents(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_link(b, NODE_SYMLINK, "lib", "usr/lib");
	add(b, NODE_FILE, "lib/.wh.x");
	expect_tree(finish(b, false), "lib ?usr/ ?usr/lib/ -usr/lib/x ");
}

static void a_whiteout_of_nothing_is_an_error(void **state)
{
	static const char *const names[] = {"d/.wh.", "d/.wh..", ".wh..."};

	for (size_t i = 0; i < countof(names); i++) {
		struct index_builder *b = index_builder_new(false);
		assert_int_equal(try_add(b, NODE_FILE, names[i], NULL, NULL), -EBADMSG);
		index_builder_free(b);
	}
}

/* ------------------------------------------------------------------ hard links */

static void hard_links_of_a_tar_bind_to_the_inode_of_that_moment(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_item i = item(NODE_NONE, "d/two");

	add_file(b, "one", 10);
	i.link = "/one";
	i.mode = 0600;
	i.uid = 3;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	add_file(b, "one", 20);
	add_link(b, NODE_NONE, "three", "./d/../d/two");
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/d/two").size, 10);
	assert_int_equal(attr_of(&m, "/three").size, 10);
	assert_int_equal(attr_of(&m, "/one").size, 20);
	assert_int_equal(attr_of(&m, "/one").nlink, 1);
	assert_int_equal(attr_of(&m, "/three").nlink, 2);
	assert_int_equal(attr_of(&m, "/three").id, attr_of(&m, "/d/two").id);
	assert_int_equal(attr_of(&m, "/d/two").uid, 0); /* the last link's metadata */
	assert_int_equal(attr_of(&m, "/d/two").mode, 0644);
	made_free(&m);
}

static void hard_links_can_name_symlinks_and_go_through_them(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_file(b, "usr/f", 1);
	add_link(b, NODE_SYMLINK, "l", "usr");
	add_link(b, NODE_NONE, "hl", "l/f");
	add_link(b, NODE_NONE, "l2", "l");
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/hl").id, attr_of(&m, "/usr/f").id);
	assert_int_equal(attr_of(&m, "/l2").type, NODE_SYMLINK);
	assert_int_equal(attr_of(&m, "/l2").mode, 0777);
	assert_int_equal(attr_of(&m, "/l2").nlink, 2);
	made_free(&m);
}

static void hard_links_to_nothing_are_an_error(void **state)
{
	static const char *const targets[] = {"missing", "d", "d/missing", "gone", "self", "f/x"};

	for (size_t i = 0; i < countof(targets); i++) {
		struct index_builder *b = index_builder_new(false);
		struct err err = {0};
		add(b, NODE_DIR, "d");
		add_file(b, "f", 1);
		add(b, NODE_FILE, ".wh.gone");
		assert_int_equal(try_add(b, NODE_NONE, "self", targets[i], &err), -EBADMSG);
		assert_non_null(strstr(err.text, "hard link"));
		index_builder_free(b);
	}
}

static void a_hard_link_must_not_replace_its_target(void **state)
{
	struct index_builder *b = index_builder_new(false);

	add_file(b, "d/f", 1);
	assert_int_equal(try_add(b, NODE_NONE, "d", "d/f", NULL), -EBADMSG);
	assert_int_equal(try_add(b, NODE_NONE, "d/f", "d/f", NULL), -EBADMSG);
	index_builder_free(b);
}

static void late_hard_links_mean_names_as_they_are_at_the_end(void **state)
{
	struct index_builder *b = index_builder_new(true);

	add_link(b, NODE_NONE, "c", "b");
	add_link(b, NODE_NONE, "b", "a");
	add_file(b, "a", 1);
	add_link(b, NODE_NONE, "d/e", "a");
	add_file(b, "a", 2);
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/a").nlink, 4);
	assert_int_equal(attr_of(&m, "/c").size, 2);
	assert_int_equal(attr_of(&m, "/c").id, attr_of(&m, "/d/e").id);
	made_free(&m);
}

static int finish_fails(struct index_builder *b)
{
	const struct index_about about = {0};
	void *bytes = NULL;
	size_t n;
	int r = index_builder_finish(b, &about, false, &bytes, &n, NULL);

	free(bytes);
	index_builder_free(b);
	return r;
}

static void late_hard_links_in_a_loop_or_to_nothing_are_an_error(void **state)
{
	struct index_builder *b = index_builder_new(true);
	add_link(b, NODE_NONE, "a", "b");
	add_link(b, NODE_NONE, "b", "c");
	add_link(b, NODE_NONE, "c", "a");
	assert_int_equal(finish_fails(b), -EBADMSG);

	b = index_builder_new(true);
	add_link(b, NODE_NONE, "a", "a");
	assert_int_equal(finish_fails(b), -EBADMSG);

	b = index_builder_new(true);
	add_link(b, NODE_NONE, "a", "nothing");
	assert_int_equal(finish_fails(b), -EBADMSG);

	/* One that is replaced asks for nothing. */
	b = index_builder_new(true);
	add_link(b, NODE_NONE, "d/a", "nothing");
	add_file(b, "d", 1);
	expect_tree(finish(b, false), "d ");
}

static void long_chains_of_late_links_are_walked_once(void **state)
{
	struct index_builder *b = index_builder_new(true);
	char name[20], link[20];

	for (int i = 0; i < 100000; i++) {
		snprintf(name, sizeof(name), "n%d", i);
		snprintf(link, sizeof(link), "n%d", i + 1);
		add_link(b, NODE_NONE, name, link);
	}
	add_file(b, "n100000", 1);
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/n0").nlink, 100001);
	made_free(&m);
}

/* ------------------------------------------------------------------ metadata */

static void metadata_is_kept(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_item i = item(NODE_CHAR, "c");

	i.mode = 0104755;
	i.uid = 3000000;
	i.gid = UINT32_MAX - 1;
	i.mtime_s = -5;
	i.mtime_ns = 123456789;
	i.dev_major = 4095;
	i.dev_minor = 1048575;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	struct made m = finish(b, false);
	struct attr a = attr_of(&m, "/c");
	assert_int_equal(a.mode, 04755);
	assert_int_equal(a.uid, 3000000);
	assert_int_equal(a.gid, UINT32_MAX - 1);
	assert_int_equal(a.mtime_s, -5);
	assert_int_equal(a.mtime_ns, 123456789);
	assert_int_equal(a.dev_major, 4095);
	assert_int_equal(a.dev_minor, 1048575);
	assert_int_equal(a.size, 0);
	made_free(&m);
}

static void symlinks_keep_their_target_and_nothing_else(void **state)
{
	struct index_builder *b = index_builder_new(false);
	const char *target;
	uint32_t entry;
	size_t len;

	add_link(b, NODE_SYMLINK, "l", "../a//b/");
	add_file(b, "f", 1);
	struct made m = finish(b, false);
	assert_int_equal(attr_of(&m, "/l").mode, 0777);
	assert_int_equal(find(m.x, "/l", &entry), 0);
	assert_int_equal(index_target(m.x, entry, &target, &len), 0);
	assert_int_equal(len, 8);
	assert_memory_equal(target, "../a//b/", 8);
	assert_int_equal(find(m.x, "/f", &entry), 0);
	assert_int_equal(index_target(m.x, entry, &target, &len), -EINVAL);
	made_free(&m);
}

static void what_no_file_system_can_show_is_left_out(void **state)
{
	struct index_builder *b = index_builder_new(false);
	char name[5000];
	struct index_item i = item(NODE_CHAR, "zero");

	log_max = LOG_ERROR;
	memset(name, 'n', sizeof(name));
	name[256] = '\0';
	add_file(b, name, 1);
	name[255] = '/';
	add_file(b, name, 1); /* 255 bytes are fine */
	name[256] = 'n';
	for (size_t k = 255; k < 4999; k += 100)
		name[k] = '/';
	name[4999] = '\0';
	add_file(b, name, 1);
	add_link(b, NODE_SYMLINK, "empty", "");
	memset(name, 'n', sizeof(name));
	name[4096] = '\0';
	add_link(b, NODE_SYMLINK, "long", name);
	name[4095] = '\0';
	add_link(b, NODE_SYMLINK, "just", name);
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	add_file(b, ".wh.a/below", 1);
	log_max = LOG_WARN;
	struct made m = finish(b, false);
	struct index_about about;
	index_about(m.x, &about);
	assert_int_equal(about.n_entries, 3);
	expect_type(&m, "/just", NODE_SYMLINK);
	made_free(&m);
}

static void a_long_name_can_be_whited_out(void **state)
{
	struct index_builder *b = index_builder_new(false);
	char name[300] = ".wh.";

	memset(name + 4, 'n', 255);
	add(b, NODE_FILE, name);
	struct made m = finish(b, false);
	name[3] = '/';
	expect_type(&m, name + 3, NODE_WHITEOUT);
	made_free(&m);
}

static void device_numbers_out_of_range_are_an_error(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_item i = item(NODE_BLOCK, "b");

	i.dev_major = 4096;
	assert_int_equal(index_builder_add(b, &i, NULL), -EBADMSG);
	i.dev_major = 1;
	i.dev_minor = UINT64_MAX;
	assert_int_equal(index_builder_add(b, &i, NULL), -EBADMSG);
	index_builder_free(b);
}

/* ------------------------------------------------------------------ xattrs */

static int print_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct strbuf *s = arg;

	strbuf_printf(s, "%s=%.*s ", name, (int)len, (const char *)value);
	return 0;
}

static void expect_xattrs(const struct made *m, const char *path, const char *wanted)
{
	struct strbuf s = {0};
	uint32_t entry;

	strbuf_add(&s, "", 0);
	assert_int_equal(find(m->x, path, &entry), 0);
	assert_int_equal(index_xattrs(m->x, entry, print_xattr, &s), 0);
	assert_string_equal(s.data ? s.data : "", wanted);
	strbuf_free(&s);
}

static void add_xattrs(struct index_builder *b, uint8_t type, const char *path, const char *link,
		       const struct index_xattr *xattrs, size_t n)
{
	struct index_item i = item(type, path);

	i.link = link;
	i.xattrs = xattrs;
	i.n_xattrs = n;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
}

static void xattrs_are_sorted_and_what_steers_overlays_is_dropped(void **state)
{
	struct index_builder *b = index_builder_new(false);
	char long_name[300] = "user.";
	const struct index_xattr all[] = {
		{"user.b", "2", 1},
		{"trusted.overlay.opaque", "y", 1},
		{"trusted.x", "y", 1},
		{"user.overlay.redirect", "/", 1},
		{"security.capability", "cap", 3},
		{"user.a", "", 0},
		{"user.b", "twice", 5},
		{"user.overlays", "fine", 4},
		{long_name, "x", 1},
		{"", "x", 1},
	};

	memset(long_name + 5, 'n', 252);
	add_xattrs(b, NODE_FILE, "f", NULL, all, countof(all));
	add_file(b, "none", 1);
	struct made m = finish(b, false);
	expect_xattrs(&m, "/f", "security.capability=cap user.a= user.b=2 user.overlays=fine ");
	expect_xattrs(&m, "/none", "");
	expect_xattrs(&m, "", "");
	made_free(&m);
}

static void hard_links_add_xattrs_and_lose_none(void **state)
{
	struct index_builder *b = index_builder_new(false);
	const struct index_xattr one[] = {{"user.a", "1", 1}, {"user.b", "1", 1}};
	const struct index_xattr two[] = {{"user.b", "2", 1}, {"user.c", "2", 1}};

	add_xattrs(b, NODE_FILE, "f", NULL, one, 2);
	add_xattrs(b, NODE_NONE, "g", "f", NULL, 0);
	add_xattrs(b, NODE_NONE, "h", "f", two, 2);
	struct made m = finish(b, false);
	expect_xattrs(&m, "/g", "user.a=1 user.b=2 user.c=2 ");
	made_free(&m);
}

static void a_folder_twice_has_the_xattrs_of_the_last(void **state)
{
	struct index_builder *b = index_builder_new(false);
	const struct index_xattr one[] = {{"user.a", "1", 1}}, two[] = {{"user.b", "2", 1}};

	add_xattrs(b, NODE_DIR, "d", NULL, one, 1);
	add_xattrs(b, NODE_DIR, "d", NULL, two, 1);
	struct made m = finish(b, false);
	expect_xattrs(&m, "/d", "user.b=2 ");
	made_free(&m);
}

static void equal_sets_of_xattrs_are_kept_once(void **state)
{
	struct index_builder *b = index_builder_new(false);
	char value[1000], name[20];
	const struct index_xattr x = {"user.x", value, sizeof(value)};

	memset(value, 'v', sizeof(value));
	for (int i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		add_xattrs(b, NODE_FILE, name, NULL, &x, 1);
	}
	struct made m = finish(b, false);
	assert_true(m.n < 200 * 1000);
	made_free(&m);
}

/* ------------------------------------------------------------------ content */

static void content_is_one_run_or_extents(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_item i = item(NODE_FILE, "sparse");
	const struct index_extent extents[] = {{100, 50, 4000}, {1000, 10, 4050}};
	struct digest digest, found;
	struct index_content c;
	struct index_extent e;
	uint32_t entry;

	i.size = 2000;
	i.is_sparse = true;
	i.extents = extents;
	i.n_extents = 2;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	digest_bytes(&digest, "x", 1);
	i = item(NODE_FILE, "plain");
	i.size = 7;
	i.plain_off = 9000;
	i.digest = &digest;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	struct made m = finish(b, false);

	assert_int_equal(attr_of(&m, "/sparse").n_bytes_allocated, 60);
	assert_int_equal(find(m.x, "/sparse", &entry), 0);
	assert_int_equal(index_content(m.x, entry, &c), 0);
	assert_int_equal(c.n_extents, 2);
	assert_int_equal(index_extent_find(&c, 0), 0);
	assert_int_equal(index_extent_find(&c, 149), 0);
	assert_int_equal(index_extent_find(&c, 150), 1);
	assert_int_equal(index_extent_find(&c, 1010), 2);
	assert_int_equal(index_extent_at(&c, 1, &e), 0);
	assert_int_equal(e.plain_off, 4050);
	assert_int_equal(index_digest(m.x, entry, &found), -ENOENT);

	assert_int_equal(attr_of(&m, "/plain").n_bytes_allocated, 7);
	assert_int_equal(find(m.x, "/plain", &entry), 0);
	assert_int_equal(index_content(m.x, entry, &c), 0);
	assert_false(c.is_sparse);
	assert_int_equal(c.whole.plain_off, 9000);
	assert_int_equal(index_digest(m.x, entry, &found), 0);
	assert_true(digest_equal(&found, &digest));
	made_free(&m);
}

static void sizes_are_counted(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct index_about about;

	add_file(b, "small", 10);
	add_file(b, "large", 1 << 20);
	add_link(b, NODE_NONE, "again", "large");
	add_file(b, "gone", 500);
	add(b, NODE_DIR, "gone");
	struct made m = finish(b, false);
	index_about(m.x, &about);
	assert_int_equal(about.n_entries, 5);
	assert_int_equal(about.n_files, 2);
	assert_int_equal(about.file_bytes, (1 << 20) + 10);
	assert_int_equal(about.large_bytes, 1 << 20);
	made_free(&m);
}

static void what_estargz_adds_can_be_hidden(void **state)
{
	for (int hide = 0; hide < 2; hide++) {
		struct index_builder *b = index_builder_new(true);
		add_file(b, ".prefetch.landmark", 1);
		add_file(b, ".no.prefetch.landmark", 1);
		add_file(b, "d/.prefetch.landmark", 1);
		add_file(b, "stargz.index.json", 1);
		expect_tree(finish(b, hide), hide ? "?d/ d/.prefetch.landmark "
						  : ".no.prefetch.landmark .prefetch.landmark ?d/ "
						    "d/.prefetch.landmark stargz.index.json ");
	}
}

/* ------------------------------------------------------------------ size */

static void a_million_entries_are_fast(void **state)
{
	struct index_builder *b = index_builder_new(false);
	struct digest digest = {0};
	uint64_t begin = now_ns();
	char path[60];

	for (unsigned i = 0; i < 1000000; i++) {
		snprintf(path, sizeof(path), "usr/lib/%u/%u/file-%u.js", i / 10000, i / 100 % 100,
			 i % 100);
		struct index_item it = item(NODE_FILE, path);
		it.size = 1000;
		it.plain_off = i * 1536ull;
		it.digest = &digest;
		assert_int_equal(index_builder_add(b, &it, NULL), 0);
	}
	struct made m = finish(b, false);
	uint64_t ms = (now_ns() - begin) / NS_PER_MS;
	print_message("# %llu ms, %zu bytes a file\n", (unsigned long long)ms, m.n / 1000000);
	assert_true(m.n < 150 * 1000000ull);
	assert_true(ms < 30000);
	assert_int_equal(attr_of(&m, "/usr/lib/99/99/file-99.js").size, 1000);
	made_free(&m);
}

/* ------------------------------------------------------------------ damaged files */

static int ignore_xattr(void *arg, const char *name, const void *value, size_t len)
{
	return 0;
}

/* Everything that can be asked of every entry; nothing may crash or never end. */
static void ask_everything(const struct index *x)
{
	for (uint32_t i = 0; i < index_count(x) + 1; i++) {
		struct attr a;
		struct digest d;
		struct index_content c;
		struct index_extent e;
		const char *text;
		uint32_t first, n;
		size_t len;
		index_attr(x, i, &a);
		index_name(x, i, &text, &len);
		index_parent(x, i, &n);
		index_target(x, i, &text, &len);
		index_xattrs(x, i, ignore_xattr, NULL);
		index_digest(x, i, &d);
		index_find(x, i, "some", 4, &n);
		index_children(x, i, &first, &n);
		if (index_content(x, i, &c) == 0) {
			index_extent_find(&c, 5);
			for (uint32_t k = 0; k < c.n_extents; k++)
				index_extent_at(&c, k, &e);
		}
	}
}

static struct made sample(void)
{
	struct index_builder *b = index_builder_new(false);
	const struct index_extent extents[] = {{100, 50, 4000}, {1000, 10, 4050}};
	const struct index_xattr x = {"user.x", "y", 1};
	struct index_item i = item(NODE_FILE, "d/sparse");

	i.size = 2000;
	i.is_sparse = true;
	i.extents = extents;
	i.n_extents = 2;
	i.xattrs = &x;
	i.n_xattrs = 1;
	assert_int_equal(index_builder_add(b, &i, NULL), 0);
	add_file(b, "d/some", 5);
	add_link(b, NODE_SYMLINK, "l", "d");
	return finish(b, false);
}

static void a_file_that_is_cut_or_foreign_is_refused(void **state)
{
	struct made m = sample();
	struct index *x;

	for (size_t n = 0; n < m.n; n++)
		assert_int_equal(index_parse(&x, m.bytes, n, NULL), -EBADMSG);
	((uint8_t *)m.bytes)[20] ^= 1;
	assert_int_equal(index_parse(&x, m.bytes, m.n, NULL), -EBADMSG);
	made_free(&m);
}

static void a_damaged_file_is_never_read_wildly(void **state)
{
	struct made m = sample();
	uint8_t *bytes = m.bytes;

	for (size_t i = sizeof(struct index_header); i < m.n; i++) {
		static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
		uint8_t was = bytes[i];
		for (size_t k = 0; k < countof(values); k++) {
			bytes[i] = values[k];
			ask_everything(m.x);
		}
		bytes[i] = was;
	}
	made_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_layer_is_a_root),
		cmocka_unit_test(the_root_entry_is_ignored),
		cmocka_unit_test(entries_are_sorted_and_names_cleaned),
		cmocka_unit_test(missing_parents_are_made_up_until_they_come),
		cmocka_unit_test(the_last_of_equal_names_wins),
		cmocka_unit_test(a_file_over_a_folder_takes_its_content_away),
		cmocka_unit_test(a_folder_twice_keeps_its_content),
		cmocka_unit_test(an_entry_below_a_file_is_an_error),
		cmocka_unit_test(parents_that_are_symlinks_are_followed_inside_the_root),
		cmocka_unit_test(a_symlink_at_the_end_is_replaced),
		cmocka_unit_test(loops_of_symlinks_are_an_error),
		cmocka_unit_test(whiteouts_and_opaque_folders_are_marked),
		cmocka_unit_test(the_root_can_be_opaque),
		cmocka_unit_test(what_is_there_stays_with_a_whiteout_beside_it),
		cmocka_unit_test(whiteouts_follow_symlinked_parents),
		cmocka_unit_test(a_whiteout_of_nothing_is_an_error),
		cmocka_unit_test(hard_links_of_a_tar_bind_to_the_inode_of_that_moment),
		cmocka_unit_test(hard_links_can_name_symlinks_and_go_through_them),
		cmocka_unit_test(hard_links_to_nothing_are_an_error),
		cmocka_unit_test(a_hard_link_must_not_replace_its_target),
		cmocka_unit_test(late_hard_links_mean_names_as_they_are_at_the_end),
		cmocka_unit_test(late_hard_links_in_a_loop_or_to_nothing_are_an_error),
		cmocka_unit_test(long_chains_of_late_links_are_walked_once),
		cmocka_unit_test(metadata_is_kept),
		cmocka_unit_test(symlinks_keep_their_target_and_nothing_else),
		cmocka_unit_test(what_no_file_system_can_show_is_left_out),
		cmocka_unit_test(a_long_name_can_be_whited_out),
		cmocka_unit_test(device_numbers_out_of_range_are_an_error),
		cmocka_unit_test(xattrs_are_sorted_and_what_steers_overlays_is_dropped),
		cmocka_unit_test(hard_links_add_xattrs_and_lose_none),
		cmocka_unit_test(a_folder_twice_has_the_xattrs_of_the_last),
		cmocka_unit_test(equal_sets_of_xattrs_are_kept_once),
		cmocka_unit_test(content_is_one_run_or_extents),
		cmocka_unit_test(sizes_are_counted),
		cmocka_unit_test(what_estargz_adds_can_be_hidden),
		cmocka_unit_test(a_million_entries_are_fast),
		cmocka_unit_test(a_file_that_is_cut_or_foreign_is_refused),
		cmocka_unit_test(a_damaged_file_is_never_read_wildly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
