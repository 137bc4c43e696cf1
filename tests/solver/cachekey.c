/* SPDX-License-Identifier: Apache-2.0 */

/*
 * cachekey*: keys are BuildKit's.
 *
 * tests/data/llb has definitions; NAME.cache beside one is the cache that BuildKit exported of it:
 * "record DIGEST" or "content DIGEST", each followed by its "link INPUT SELECTOR KIND DIGEST".
 * tests/data/keys/digests.txt lists the maps, records and selectors that BuildKit computed for
 * these and others, ops.txt single ops in hex with map, and selector and content of each input.
 */

#include <dirent.h>
#include <fcntl.h>

#include "solver/solver-internal.h"
#include "tests/solver/layout.h"
#include "tests/solver/proto.h"
#include "tests/test.h"

#define MAP_PREFIX "buildkit.source.v0:"

struct fixture {
	char *dir, *layout;
	struct store *store;
	struct solver *solver;
	struct solver_layout named;
	struct strbuf digests;
};

static struct strbuf read_data(const char *folder, const char *name, const char *suffix)
{
	struct strbuf out = {0};
	scoped(free) char *path =
		str_printf("%s/data/%s/%s%s", getenv("TEST_SOURCE"), folder, name, suffix);

	if (read_file(AT_FDCWD, path, 64 << 20, &out) < 0)
		fail_msg("cannot read %s", path);
	return out;
}

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
	f->digests = read_data("keys", "digests.txt", "");
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	solver_free(f->solver);
	store_close(f->store);
	strbuf_free(&f->digests);
	free(f->layout);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

static struct graph *load(const struct strbuf *def)
{
	struct graph *g = NULL;
	struct err err = {0};

	if (graph_load(&g, def->data, def->len, &err) < 0)
		fail_msg("%s", err.text);
	return g;
}

/* What is hashed is what the digest says, and all that is told was hashed. */
static void check_ingredients(const struct vertex_keys *keys)
{
	for (size_t i = 0; i < keys->n_ingredients; i++) {
		struct digest digest;
		digest_bytes(&digest, keys->ingredients[i].bytes, keys->ingredients[i].n);
		assert_true(digest_equal(&digest, &keys->ingredients[i].digest));
	}
}

/* ------------------------------------------------------------------ what BuildKit exported */

struct keyed {
	struct graph *graph;
	struct vertex_keys *keys; /* by position */
	size_t n;
};

static struct keyed key_all(struct fixture *f, const struct strbuf *def)
{
	struct keyed k = {.graph = load(def)};

	k.n = graph_count(k.graph);
	k.keys = calloc(k.n, sizeof(*k.keys));
	for (size_t i = 0; i < k.n; i++) {
		struct err err = {0};
		int r = vertex_keys(&k.keys[i], graph_vertex(k.graph, i), f->solver, false, &err);
		if (r < 0 && r != -ENODATA)
			fail_msg("%s", err_text(&err, r));
		check_ingredients(&k.keys[i]);
	}
	return k;
}

static void keyed_free(struct keyed *k)
{
	for (size_t i = 0; i < k->n; i++)
		vertex_keys_deinit(&k->keys[i]);
	free(k->keys);
	graph_free(k->graph);
}

static bool has_record(const struct vertex_keys *keys, const char *text)
{
	char buf[DIGEST_TEXT_MAX];

	for (size_t i = 0; i < keys->n_records; i++)
		if (!strcmp(cache_digest_text(&keys->records[i].digest, buf), text))
			return true;
	return false;
}

struct link {
	size_t input;
	char selector[80], kind[16], digest[80];
};

static bool has_link(const struct keyed *k, size_t vertex, const struct link *link)
{
	char text[DIGEST_TEXT_MAX] = "-";
	struct vertex *from;
	int index;

	if (link->input >= k->keys[vertex].n_inputs)
		return false;
	const struct cache_input *input = &k->keys[vertex].inputs[link->input];
	if (strcmp(link->kind, "content") == 0)
		return input->content != CONTENT_NONE && !strcmp(link->selector, "-");
	if (input->has_selector)
		digest_text(&input->selector, text);
	vertex_input(graph_vertex(k->graph, vertex), link->input, &from, &index);
	const struct vertex_keys *keys = &k->keys[from->position];
	bool is_known = keys->is_whole && keys->n_maps;
	return !strcmp(link->selector, text) && (!is_known || has_record(keys, link->digest));
}

/* Vertices with other inputs may have the same record: one of those with @record must have it. */
static void check_link(const struct keyed *k, const char *record, const char *line)
{
	struct link link;
	bool found = false;

	assert_int_equal(sscanf(line, "link %zu %79s %15s %79s", &link.input, link.selector,
				link.kind, link.digest),
			 4);
	for (size_t i = 0; i < k->n; i++)
		found |= has_record(&k->keys[i], record) && has_link(k, i, &link);
	if (!found)
		fail_msg("record %s has no %s", record, line);
}

static bool is_record(const struct keyed *k, const char *text)
{
	for (size_t i = 0; i < k->n; i++)
		if (has_record(&k->keys[i], text))
			return true;
	return false;
}

/* Only a second key of an image, or that of a source without a known one, is not found. */
static bool has_unknown(const struct keyed *k)
{
	for (size_t i = 0; i < k->n; i++)
		if (k->keys[i].n_maps == 0 || !k->keys[i].is_whole)
			return true;
	return false;
}

static size_t check_cache(struct fixture *f, const char *name)
{
	struct strbuf def = read_data("llb", name, ".pb"), cache = read_data("llb", name, ".cache");
	struct keyed k = key_all(f, &def);
	const char *record = NULL;
	size_t n_found = 0;

	for (char *line = strtok(cache.data, "\n"); line; line = strtok(NULL, "\n")) {
		if (str_starts(line, "link")) {
			assert_non_null(record);
			check_link(&k, record, line);
		} else if (str_starts(line, "record")) {
			record = line + strlen("record ");
			n_found += is_record(&k, record);
			if (!is_record(&k, record) && !has_unknown(&k))
				fail_msg("%s: no %s", name, line);
		}
	}
	keyed_free(&k);
	strbuf_free(&def);
	strbuf_free(&cache);
	return n_found;
}

static void exported_caches_have_these_records_and_links(void **state)
{
	scoped(free) char *path = str_printf("%s/data/llb", getenv("TEST_SOURCE"));
	DIR *dir = opendir(path);
	size_t n_files = 0, n_records = 0;

	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		if (!str_ends(e->d_name, ".cache"))
			continue;
		scoped(free) char *name = strndup(e->d_name, strlen(e->d_name) - 6);
		n_records += check_cache(*state, name);
		n_files++;
	}
	closedir(dir);
	assert_true(n_files >= 35);
	assert_int_equal(n_records, 133); /* of 165: the others are what a registry would tell */
}

/* ------------------------------------------------------------------ what BuildKit computed */

static void check_known(const struct fixture *f, const char *what, const struct cache_digest *d)
{
	char text[DIGEST_TEXT_MAX];

	if (!d->is_random && !strstr(f->digests.data, cache_digest_text(d, text)))
		fail_msg("BuildKit has no %s %s", what, text);
}

/* What an exec takes of a local source: BuildKit shows that selector nowhere. */
static bool is_never_exported(const struct keyed *k, size_t vertex, size_t input)
{
	const struct vertex *v = graph_vertex(k->graph, vertex);

	return v->op.kind == OP_EXEC &&
	       k->keys[v->inputs[input].vertex->position].maps[0].is_random;
}

static void check_definition(struct fixture *f, const char *name)
{
	struct strbuf def = read_data("llb", name, ".pb");
	struct keyed k = key_all(f, &def);

	for (size_t i = 0; i < k.n; i++) {
		const struct vertex_keys *keys = &k.keys[i];
		for (size_t j = 0; j < keys->n_maps; j++)
			check_known(f, "map", &keys->maps[j]);
		for (size_t j = 0; j < keys->n_records; j++)
			check_known(f, "record", &keys->records[j].digest);
		for (size_t j = 0; j < keys->n_inputs; j++) {
			if (is_never_exported(&k, i, j))
				continue;
			struct cache_digest selector = {keys->inputs[j].selector, false};
			if (keys->inputs[j].has_selector)
				check_known(f, "selector", &selector);
		}
	}
	keyed_free(&k);
	strbuf_free(&def);
}

static void all_keys_are_ones_that_buildkit_computed(void **state)
{
	scoped(free) char *path = str_printf("%s/data/llb", getenv("TEST_SOURCE"));
	DIR *dir = opendir(path);

	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		if (!str_ends(e->d_name, ".pb"))
			continue;
		scoped(free) char *name = strndup(e->d_name, strlen(e->d_name) - 3);
		check_definition(*state, name);
	}
	closedir(dir);
}

/* The inputs of the ops in ops.txt are all the digest of nothing, which is that of an empty op. */
static struct graph *load_hex(const char *hex, struct digest *op)
{
	struct strbuf def = {0}, bytes = {0};

	pb_op(&def, &bytes);
	for (; hex[0] && hex[1]; hex += 2) {
		unsigned byte;
		assert_int_equal(sscanf(hex, "%2x", &byte), 1);
		strbuf_putc(&bytes, (char)byte);
	}
	*op = pb_op(&def, &bytes);
	pb_result(&def, op, 0);
	struct graph *g = load(&def);
	strbuf_free(&def);
	strbuf_free(&bytes);
	return g;
}

static void check_dep(const struct cache_input *input, const char *line)
{
	char selector[80], content[16], text[DIGEST_TEXT_MAX] = "-";

	assert_int_equal(sscanf(line, "dep %79s %15s", selector, content), 2);
	if (input->has_selector)
		digest_text(&input->selector, text);
	assert_string_equal(text, selector);
	assert_int_equal(input->content != CONTENT_NONE, strcmp(content, "true") == 0);
}

static void single_ops_have_buildkits_maps(void **state)
{
	struct fixture *f = *state;
	struct strbuf ops = read_data("keys", "ops.txt", "");
	struct vertex_keys keys = {0};
	size_t n_ops = 0, n_deps = 0;

	for (char *line = strtok(ops.data, "\n"); line; line = strtok(NULL, "\n")) {
		char text[DIGEST_TEXT_MAX];
		if (str_starts(line, "dep")) {
			assert_true(n_deps < keys.n_inputs);
			check_dep(&keys.inputs[n_deps++], line);
			continue;
		}
		struct digest op;
		char *map = line + strlen("op "), *hex = strchr(map, ' ');
		*hex++ = 0;
		assert_int_equal(n_deps, keys.n_inputs);
		vertex_keys_deinit(&keys);
		struct graph *g = load_hex(hex, &op);
		struct vertex *v;
		assert_int_equal(graph_find(g, digest_text(&op, text), &v, NULL), 0);
		assert_int_equal(vertex_keys(&keys, v, f->solver, false, NULL), 0);
		assert_string_equal(cache_digest_text(&keys.maps[0], text), map);
		/* the selectors of content borrow from the vertex, and are not looked at here */
		graph_free(g);
		n_ops++;
		n_deps = 0;
	}
	assert_int_equal(n_deps, keys.n_inputs);
	assert_int_equal(n_ops, 20);
	vertex_keys_deinit(&keys);
	strbuf_free(&ops);
}

/* ------------------------------------------------------------------ what is hashed */

/* The only vertex but sources of @def that is its result. */
static struct vertex_keys keys_of(struct fixture *f, struct strbuf *def, const struct digest *op,
				  struct graph **g, int want)
{
	struct vertex_keys keys = {0};
	struct vertex *v;
	struct err err = {0};
	int index;

	pb_result(def, op, 0);
	*g = load(def);
	strbuf_free(def);
	graph_result(*g, &v, &index);
	int r = vertex_keys(&keys, v, f->solver, want == 0, &err);
	if (r != want)
		fail_msg("%d and not %d: %s", r, want, err_text(&err, r));
	check_ingredients(&keys);
	return keys;
}

static void expect_ingredient(const struct vertex_keys *keys, size_t i, const char *want)
{
	assert_true(i < keys->n_ingredients);
	assert_string_equal(keys->ingredients[i].bytes, want);
}

static void free_all(struct vertex_keys *keys, struct graph *g)
{
	vertex_keys_deinit(keys);
	graph_free(g);
}

static void a_partition_is_part_of_the_key_when_there_is_one(void **state)
{
	struct strbuf def = {0};
	struct graph *g;
	struct digest a = pb_source(&def, "docker-image://a", NULL, NULL);
	struct pb_merge_input inputs[] = {{a, NULL, NULL}, {a, "/q<", "/p"}};
	struct digest merge = pb_merge(&def, inputs, 2);
	struct vertex_keys keys = keys_of(*state, &def, &merge, &g, 0);

	expect_ingredient(&keys, 0,
			  "{\"Type\":\"buildkit.merge.v0\",\"Merge\":{\"inputs\":[{},{\"input\":1,"
			  "\"addPrefix\":\"/q\\u003c\",\"trimPrefix\":\"/p\"}]}}");
	assert_int_equal(keys.n_inputs, 2);
	assert_false(keys.inputs[0].has_selector);
	free_all(&keys, g);
}

static void a_builds_maps_are_sorted(void **state)
{
	struct strbuf def = {0}, op = {0}, build = {0}, entry = {0}, value = {0};
	struct graph *g;
	struct digest a = pb_source(&def, "docker-image://a", NULL, NULL);

	pb_input(&op, &a, 0);
	pb_input(&op, &a, 1);
	pb_int(&build, 1, -1);
	for (int i = 1; i >= 0; i--) {
		pb_text(&entry, 1, i ? "z" : "buildkit.llb.definition");
		pb_int(&value, 1, i);
		pb_message(&entry, 2, &value);
		pb_message(&build, 2, &entry);
	}
	pb_attr(&build, 4, "y", "1");
	pb_attr(&build, 4, "llbbuild.filename", "x");
	pb_attr(&build, 4, "y", "2");
	pb_message(&op, 5, &build);
	struct digest d = pb_op(&def, &op);
	struct vertex_keys keys = keys_of(*state, &def, &d, &g, 0);

	expect_ingredient(&keys, 0,
			  "{\"Type\":\"buildkit.build.v0\",\"Exec\":{\"builder\":-1,\"inputs\":{"
			  "\"buildkit.llb.definition\":{},\"z\":{\"input\":1}},\"attrs\":{"
			  "\"llbbuild.filename\":\"x\",\"y\":\"2\"}}}");
	assert_int_equal(keys.n_inputs, 2);
	free_all(&keys, g);
	strbuf_free(&op);
	strbuf_free(&build);
	strbuf_free(&entry);
	strbuf_free(&value);
}

/* A source with two attributes at most. */
static struct vertex_keys source_keys(struct fixture *f, const char *identifier,
				      const char *const attrs[][2], size_t n, int want)
{
	struct strbuf def = {0}, op = {0}, source = {0};
	struct graph *g;

	pb_text(&source, 1, identifier);
	for (size_t i = 0; i < n; i++)
		pb_attr(&source, 2, attrs[i][0], attrs[i][1]);
	pb_message(&op, 3, &source);
	struct digest d = pb_op(&def, &op);
	struct vertex_keys keys = keys_of(f, &def, &d, &g, want);
	graph_free(g);
	strbuf_free(&op);
	strbuf_free(&source);
	return keys;
}

static void local_sources_are_random_and_their_sessions(void **state)
{
	static const char *const attrs[][2] = {
		{"local.session", "8lb20dlhlkijaxqh0ckpjbowz"},
		{"local.metadatatransfer", "true"},
		{"local.metadatatransferexclude", "[\"src/main.go\"]"},
	};
	struct fixture *f = *state;
	char text[DIGEST_TEXT_MAX];
	struct vertex_keys keys = source_keys(f, "local://ctx", attrs, 3, 0);

	expect_ingredient(&keys, 0,
			  "{\"SessionID\":\"8lb20dlhlkijaxqh0ckpjbowz\",\"IncludePatterns\":null,"
			  "\"ExcludePatterns\":null,\"FollowPaths\":null,\"MetadataTransfer\":true,"
			  "\"MetadataExceptions\":[\"src/main.go\"]}");
	assert_true(str_starts(keys.ingredients[1].bytes, MAP_PREFIX "session:ctx:sha256:"));
	assert_true(keys.maps[0].is_random);
	assert_true(str_starts(cache_digest_text(&keys.maps[0], text), "random:"));
	assert_true(has_record(&keys, text)); /* the map itself */
	vertex_keys_deinit(&keys);

	keys = source_keys(f, "local://ctx", NULL, 0, 0);
	assert_non_null(strstr(keys.ingredients[0].bytes, f->solver->session));
	vertex_keys_deinit(&keys);
	static const char *const bad[][2] = {{"local.followpaths", "[1]"}};
	keys = source_keys(f, "local://ctx", bad, 1, -EBADMSG);
}

#define SUM "sha256:a22e87b43e99adf383276ea75b63586a976b6dbefa14cadab581dd9d63ed43fd"

static void downloads_with_a_checksum_are_known(void **state)
{
	static const char *const attrs[][2] = {
		{"http.checksum", SUM},
		{"http.perm", "0755"},
		{"http.uid", "1000"},
		{"http.header.user-agent", "me"},
		{"http.header.accept", "text/plain"},
	};
	struct vertex_keys keys =
		source_keys(*state, "http://host/a/b%20c.txt?q=/x#y", attrs, 5, 0);
	expect_ingredient(&keys, 0,
			  "{\"Filename\":\"b c.txt\",\"Perm\":493,\"UID\":1000,\"GID\":0,"
			  "\"Checksum\":\"" SUM "\",\"Header\":[{\"Name\":\"Accept\",\"Value\":"
			  "\"text/plain\"},{\"Name\":\"User-Agent\",\"Value\":\"me\"}]}");
	vertex_keys_deinit(&keys);
	keys = source_keys(*state, "https://host", attrs, 1, 0);
	expect_ingredient(&keys, 0,
			  "{\"Filename\":\"download\",\"Perm\":0,\"UID\":0,\"GID\":0,"
			  "\"Checksum\":\"" SUM "\"}");
	vertex_keys_deinit(&keys);
	keys = source_keys(*state, "https://host/f", NULL, 0, -ENODATA);
}

#define COMMIT "b8240c4d3c4780bf978527d21fb7c136c9b5e9df"

static void commits_are_known_and_branches_are_not(void **state)
{
	static const char *const attrs[][2] = {
		{"git.skipsubmodules", "true"},
		{"git.mtime", "commit"},
	};
	struct vertex_keys keys =
		source_keys(*state, "git://host/r.git#" COMMIT ":sub", attrs, 2, 0);
	expect_ingredient(&keys, 0, MAP_PREFIX COMMIT ":sub(skip-submodules)(mtime=commit)");
	vertex_keys_deinit(&keys);
	keys = source_keys(*state, "git://host/r.git#" COMMIT, NULL, 0, 0);
	expect_ingredient(&keys, 0, MAP_PREFIX COMMIT);
	vertex_keys_deinit(&keys);
	keys = source_keys(*state, "git://host/r.git#main", NULL, 0, -ENODATA);
	keys = source_keys(*state, "other://x", NULL, 0, -ENOTSUP);
}

/* ------------------------------------------------------------------ images */

/* Two layers, in the layout that is known as "named". */
static struct digest make_image(struct fixture *f, struct digest diff_ids[2])
{
	struct strbuf layers[2] = {tar_of("a", "1"), tar_of("b", "2")};
	struct digest manifest;
	struct strbuf desc = layout_image(f->layout, layers, 2, "amd64", &manifest);

	for (size_t i = 0; i < 2; i++) {
		digest_bytes(&diff_ids[i], layers[i].data, layers[i].len);
		strbuf_free(&layers[i]);
	}
	strbuf_puts(&desc, ",\"annotations\":{\"org.opencontainers.image.ref.name\":\"latest\"}}");
	layout_index(f->layout, desc.data);
	strbuf_free(&desc);
	return manifest;
}

static void an_image_has_a_key_of_its_name_and_one_of_its_layers(void **state)
{
	struct fixture *f = *state;
	static const char *const attrs[][2] = {{"oci.store", "named"}, {"oci.layerlimit", "1"}};
	struct digest diff_ids[2], manifest = make_image(f, diff_ids);
	char a[DIGEST_TEXT_MAX], b[DIGEST_TEXT_MAX];

	for (size_t limited = 0; limited < 2; limited++) {
		struct vertex_keys keys =
			source_keys(f, "oci-layout://not/real:latest", attrs, 1 + limited, 0);
		scoped(free) char *first =
			str_printf("{\"Digest\":\"%s\",\"OS\":\"linux\",\"Arch\":\"amd64\"%s}",
				   digest_text(&manifest, a), limited ? ",\"Limit\":1" : "");
		scoped(free) char *link = str_printf("%s %s", digest_text(&diff_ids[0], a),
						     digest_text(&diff_ids[1], b));
		struct digest chain = diff_ids[0];
		if (!limited)
			digest_bytes(&chain, link, strlen(link));
		scoped(free) char *second = str_printf(MAP_PREFIX "%s", digest_text(&chain, a));
		expect_ingredient(&keys, 0, first);
		expect_ingredient(&keys, limited ? 2 : 3, second);
		assert_int_equal(keys.n_maps, 2);
		assert_int_equal(keys.n_records, 2);
		assert_true(keys.is_whole);
		vertex_keys_deinit(&keys);
	}
}

static void a_tag_is_not_known_unless_asked_for(void **state)
{
	struct fixture *f = *state;
	static const char *const checksum[][2] = {{"image.checksum", SUM}};
	struct strbuf def = {0};
	struct digest d = pb_source(&def, "docker-image://host/a:1", NULL, NULL);
	struct graph *g;
	struct vertex_keys keys = keys_of(f, &def, &d, &g, -ENODATA);

	graph_free(g);
	struct strbuf pinned = {0};
	struct vertex *v;
	int index;
	d = pb_source(&pinned, "docker-image://host/a:1", checksum[0][0], checksum[0][1]);
	pb_result(&pinned, &d, 0);
	g = load(&pinned);
	graph_result(g, &v, &index);
	assert_int_equal(vertex_keys(&keys, v, f->solver, false, NULL), 0);
	assert_int_equal(keys.n_maps, 1);
	assert_false(keys.is_whole);
	free_all(&keys, g);
	strbuf_free(&pinned);
}

/* ------------------------------------------------------------------ content */

static void what_lies_below_another_path_is_dropped(void **state)
{
	const char *paths[] = {"/a/c", "/b/x/y", "/a-b", "/a", "/b/x", "/a/c/d", "/a", "/bb"};
	static const char *const want[] = {"/a", "/a-b", "/b/x", "/bb"};
	const char *all[] = {"/z", "/", "/a"};
	/* Relative paths lie below nothing, and a slash at the end is one. */
	const char *odd[] = {"d", "/", "/d", "e/f", "e"};
	static const char *const want_odd[] = {"/", "d", "e"};
	const char *slashes[] = {"/a/", "/b/c", "/b/", "/a", "/c/"};
	static const char *const want_slashes[] = {"/a", "/b/", "/c/"};

	assert_int_equal(keys_dedupe_paths(paths, countof(paths)), countof(want));
	for (size_t i = 0; i < countof(want); i++)
		assert_string_equal(paths[i], want[i]);
	assert_int_equal(keys_dedupe_paths(all, countof(all)), 1);
	assert_string_equal(all[0], "/");
	assert_int_equal(keys_dedupe_paths(all, 0), 0);
	assert_int_equal(keys_dedupe_paths(odd, countof(odd)), 3);
	assert_int_equal(keys_dedupe_paths(slashes, countof(slashes)), 3);
	for (size_t i = 0; i < 3; i++) {
		assert_string_equal(odd[i], want_odd[i]);
		assert_string_equal(slashes[i], want_slashes[i]);
	}
}

static void add_copy(struct strbuf *file, const char *from, bool follow, const char *include)
{
	struct strbuf action = {0}, copy = {0};

	pb_text(&copy, 1, from);
	pb_text(&copy, 2, "/");
	pb_int(&copy, 5, follow);
	pb_int(&copy, 9, 1);
	if (include)
		pb_text(&copy, 12, include);
	pb_int(&action, 2, 1);
	pb_int(&action, 3, file->len ? -1 : 0); /* the first is the output */
	pb_message(&action, 4, &copy);
	pb_message(file, 2, &action);
	strbuf_free(&action);
	strbuf_free(&copy);
}

static void copies_tell_what_is_hashed(void **state)
{
	struct strbuf def = {0}, op = {0}, file = {0};
	struct graph *g;
	struct digest a = pb_source(&def, "docker-image://a", NULL, NULL);

	pb_input(&op, &a, 0);
	pb_input(&op, &a, 1);
	add_copy(&file, "/s/x", false, NULL);
	add_copy(&file, "/s", false, NULL);
	add_copy(&file, "/s", true, NULL);
	add_copy(&file, "/q*", false, NULL);
	add_copy(&file, "/s", false, "*.c");
	add_copy(&file, "/q\\*", false, NULL);
	pb_message(&op, 4, &file);
	struct digest d = pb_op(&def, &op);
	struct vertex_keys keys = keys_of(*state, &def, &d, &g, 0);
	const struct content_selector *s = keys.inputs[1].selectors;

	assert_int_equal(keys.inputs[0].content, CONTENT_NONE); /* it is changed */
	assert_int_equal(keys.inputs[1].content, CONTENT_FILES);
	assert_int_equal(keys.inputs[1].n_selectors, 5);
	assert_string_equal(s[0].path, "/q*");
	assert_true(s[0].wildcard);
	assert_string_equal(s[1].path, "/q\\*");
	assert_false(s[1].wildcard);
	for (size_t i = 2; i < 5; i++)
		assert_string_equal(s[i].path, "/s");
	assert_false(s[2].follow);
	assert_true(s[3].follow);
	assert_int_equal(s[4].n_include, 1);
	assert_string_equal(s[4].include[0], "*.c");
	free_all(&keys, g);
	strbuf_free(&op);
	strbuf_free(&file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exported_caches_have_these_records_and_links),
		cmocka_unit_test(all_keys_are_ones_that_buildkit_computed),
		cmocka_unit_test(single_ops_have_buildkits_maps),
		cmocka_unit_test(a_partition_is_part_of_the_key_when_there_is_one),
		cmocka_unit_test(a_builds_maps_are_sorted),
		cmocka_unit_test(local_sources_are_random_and_their_sessions),
		cmocka_unit_test(downloads_with_a_checksum_are_known),
		cmocka_unit_test(commits_are_known_and_branches_are_not),
		cmocka_unit_test(an_image_has_a_key_of_its_name_and_one_of_its_layers),
		cmocka_unit_test(a_tag_is_not_known_unless_asked_for),
		cmocka_unit_test(what_lies_below_another_path_is_dropped),
		cmocka_unit_test(copies_tell_what_is_hashed),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
