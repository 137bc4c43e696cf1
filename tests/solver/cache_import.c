/* SPDX-License-Identifier: Apache-2.0 */

/* cache_import: what leads where, and which result is loaded. */

#include "solver/cache-internal.h"
#include "tests/test.h"

#define GZIP "application/vnd.oci.image.layer.v1.tar+gzip"

struct fixture {
	char *dir;
	struct store *store;
	struct cache *cache;
};

static struct digest digest_of(char c)
{
	struct digest d;
	memset(d.bytes, c, sizeof(d.bytes));
	return d;
}

/* Texts of digests stand in the documents as :A, :B, …: 32 times that byte. */
static char *expand(const char *text)
{
	struct strbuf out = {0};
	for (char before = 0; *text; before = *text++) {
		char buf[DIGEST_TEXT_MAX];
		struct digest d = digest_of(*text);
		if (before == ':' && *text >= 'A' && *text <= 'Z')
			strbuf_printf(&out, "\"%s\"", digest_text(&d, buf));
		else
			strbuf_putc(&out, *text == '\'' ? '"' : *text);
	}
	return strbuf_finish(&out);
}

/* Layers L, M, N are described; O is not, P is of no known kind, Q does not say what it holds. */
static void add(struct fixture *f, const char *text)
{
	scoped(free) char *json = expand(text);
	scoped(cacheconfig_deinit) struct cacheconfig config = {0};
	struct desc descs[5] = {0};
	struct err err = {0};
	char buf[DIGEST_TEXT_MAX];

	if (cacheconfig_parse(&config, json, strlen(json), &err) < 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < 5; i++) {
		struct digest holds = digest_of((char)('l' + i));
		descs[i].digest = digest_of("LMNPQ"[i]);
		descs[i].size = 7;
		descs[i].media_type = strdup(i == 3 ? "text/plain" : GZIP);
		if (i != 4)
			assert_int_equal(desc_annotate(&descs[i], "containerd.io/uncompressed",
						       digest_text(&holds, buf)),
					 0);
	}
	assert_int_equal(cache_import_add(f->cache, &config, descs, NULL, 5, NULL), 0);
	for (size_t i = 0; i < 5; i++)
		desc_deinit(&descs[i]);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->dir = test_dir();
	scoped(free) char *root = str_printf("%s/store", f->dir);
	f->store = test_store(root, 0);
	const struct origin origin = {.store = f->store};
	assert_int_equal(cache_import_new(&f->cache, "the cache", &origin, NULL), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	f->cache->ops->free(f->cache);
	store_close(f->store);
	test_dir_remove(f->dir);
	free(f);
	return 0;
}

static int64_t root(struct fixture *f, char record)
{
	scoped(cache_keys_deinit) struct cache_keys keys = {0};
	struct digest d = digest_of(record);
	assert_int_equal(f->cache->ops->root(f->cache, &d, &keys, NULL), 0);
	assert_true(keys.n <= 1);
	return keys.n ? keys.items[0] : -1;
}

/* How many keys a link leads to; *to is the first. @selector 0 = none. */
static size_t links(struct fixture *f, int64_t from, size_t input, char record, char selector,
		    int64_t *to)
{
	scoped(cache_keys_deinit) struct cache_keys keys = {0};
	struct digest d = digest_of(record), s = digest_of(selector);
	assert_int_equal(
		f->cache->ops->links(f->cache, from, input, &d, selector ? &s : NULL, &keys, NULL),
		0);
	*to = keys.n ? keys.items[0] : -1;
	return keys.n;
}

static bool knows(struct fixture *f, char record)
{
	struct digest d = digest_of(record);
	return f->cache->ops->knows(f->cache, &d, NULL) == 1;
}

static void follows_links(void **state)
{
	struct fixture *f = *state;
	int64_t to;
	add(f, "{'records':[{'digest':C,'inputs':[[{'link':2},{'link':1,'selector':S}],"
	       "[{'link':1}]]},{'digest':A},{'digest':B},"
	       "{'digest':C,'inputs':[[{'link':2}],[{'link':2}]]}]}");
	assert_int_equal(cache_import_done(f->cache, NULL), 0);
	int64_t a = root(f, 'A'), b = root(f, 'B');
	assert_true(a >= 0 && b >= 0 && a != b);
	assert_int_equal(root(f, 'C'), -1);
	assert_true(knows(f, 'A') && knows(f, 'C') && !knows(f, 'D'));
	assert_int_equal(links(f, a, 0, 'C', 'S', &to), 1);
	assert_int_equal(to, 0);
	assert_int_equal(links(f, a, 0, 'C', 0, &to), 0);
	assert_int_equal(links(f, a, 0, 'C', 'T', &to), 0);
	assert_int_equal(links(f, a, 1, 'C', 0, &to), 1);
	assert_int_equal(links(f, a, 0, 'D', 'S', &to), 0);
	assert_int_equal(links(f, b, 0, 'C', 'S', &to), 0);
	assert_int_equal(links(f, b, 0, 'C', 0, &to), 2); /* two records of one digest */
	assert_int_equal(links(f, b, 1, 'C', 0, &to), 1);
	assert_int_equal(to, 3);
}

static void roots_of_one_digest_are_one(void **state)
{
	struct fixture *f = *state;
	int64_t to;
	struct cache_result result;
	add(f, "{'layers':[{'blob':L,'parent':-1},{'blob':M,'parent':-1}],'records':["
	       "{'digest':A,'layers':[{'layer':0,'createdAt':'2024-01-01T00:00:00Z'}]},"
	       "{'digest':A,'layers':[{'layer':1,'createdAt':'2025-01-01T00:00:00Z'}]},"
	       "{'digest':B,'inputs':[[{'link':1}]]}]}");
	add(f, "{'records':[{'digest':C,'inputs':[[{'link':1}]]},{'digest':A}]}");
	assert_int_equal(cache_import_done(f->cache, NULL), 0);
	assert_int_equal(cache_import_count(f->cache), 5);
	int64_t a = root(f, 'A');
	assert_int_equal(links(f, a, 0, 'B', 0, &to), 1);
	assert_int_equal(links(f, a, 0, 'C', 0, &to), 1);
	/* The results of both, the newest first. */
	assert_int_equal(f->cache->ops->result(f->cache, a, NULL, 0, &result, NULL), 1);
	assert_int_equal(result.created_ns, 1735689600LL * 1000000000);
	struct digest bad[2] = {result.ref};
	assert_int_equal(f->cache->ops->result(f->cache, a, bad, 1, &result, NULL), 1);
	assert_int_equal(result.created_ns, 1704067200LL * 1000000000);
	bad[1] = result.ref;
	assert_int_equal(f->cache->ops->result(f->cache, a, bad, 2, &result, NULL), 0);
}

static const char *layers_of(struct fixture *f, char record, char out[16])
{
	struct cache_result result;
	struct ref *ref;
	const struct ref_layer *layers;
	int64_t key = root(f, record);
	if (f->cache->ops->result(f->cache, key, NULL, 0, &result, NULL) == 0)
		return "none";
	assert_int_equal(f->cache->ops->load(f->cache, NULL, &result, &ref, NULL), 0);
	size_t n = ref_layers(ref, &layers);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(layers[i].diff_id.bytes[0],
				 'l' + (layers[i].desc.digest.bytes[0] - 'L'));
		out[i] = (char)layers[i].desc.digest.bytes[0];
	}
	out[n] = '\0';
	if (n == 0)
		assert_int_equal(ref_kind(ref), REF_SCRATCH);
	else
		assert_string_equal(ref_name(ref), "the cache");
	ref_unref(ref);
	return out;
}

static void loads_descriptors(void **state)
{
	struct fixture *f = *state;
	char buf[16];
	add(f, "{'layers':[{'blob':L,'parent':2},{'blob':M,'parent':-1},{'blob':N,'parent':1},"
	       "{'blob':M,'parent':4},{'blob':O,'parent':-1},{'blob':P,'parent':-1},"
	       "{'blob':Q,'parent':-1},{'parent':-1}],'records':["
	       "{'digest':A,'layers':[{'layer':0}]},"
	       "{'digest':B,'chains':[{'layers':[0,1,0]}]},"
	       "{'digest':C,'chains':[{'layers':[]}]},"
	       "{'digest':D,'layers':[{'layer':3}]},"
	       "{'digest':E,'layers':[{'layer':4},{'layer':5},{'layer':6},{'layer':7}]},"
	       "{'digest':F,'chains':[{'layers':[0,4]},{'layers':[5]}]},{'digest':G}]}");
	assert_int_equal(cache_import_done(f->cache, NULL), 0);
	assert_string_equal(layers_of(f, 'A', buf), "MNL");
	assert_string_equal(layers_of(f, 'B', buf), "LML");
	assert_string_equal(layers_of(f, 'C', buf), "");
	assert_string_equal(layers_of(f, 'D', buf), "none"); /* its parent is nowhere */
	assert_string_equal(layers_of(f, 'E', buf), "none");
	assert_string_equal(layers_of(f, 'F', buf), "none");
	assert_string_equal(layers_of(f, 'G', buf), "none");
}

static void equal_layers_are_equal_results(void **state)
{
	struct fixture *f = *state;
	struct cache_result a, b;
	add(f, "{'layers':[{'blob':L,'parent':-1},{'blob':M}],'records':["
	       "{'digest':A,'layers':[{'layer':1}]},{'digest':B,'chains':[{'layers':[0,1]}]}]}");
	assert_int_equal(cache_import_done(f->cache, NULL), 0);
	assert_int_equal(f->cache->ops->result(f->cache, root(f, 'A'), NULL, 0, &a, NULL), 1);
	assert_int_equal(f->cache->ops->result(f->cache, root(f, 'B'), NULL, 0, &b, NULL), 1);
	assert_true(digest_equal(&a.ref, &b.ref));
	b.ref = digest_of('X');
	struct ref *ref;
	assert_int_equal(f->cache->ops->load(f->cache, NULL, &b, &ref, NULL), -ENOENT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(follows_links),
		TEST(roots_of_one_digest_are_one),
		TEST(loads_descriptors),
		TEST(equal_layers_are_equal_results),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
