/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A cache that somebody exported: a graph in memory, which never changes once it is done.
 *
 * Keys are numbers of records. Records without inputs are roots, found by their digest; several
 * roots with one digest are one key. Any other record is where its inputs' links lead, and its
 * digest is part of each of them: (record it comes from, input, own digest, selector). Two records
 * may have all of that in common for some of their inputs, so that a link leads to several.
 *
 * A result is a list of layers, named by their blobs. One with a layer that the manifest does not
 * describe, or not well enough to make a ref of it, is left out; its record stays, as a way to
 * others. A loaded result is descriptors and the remote of the cache: no byte is fetched for it.
 *
 * The documents may be large and come from anywhere: all is tables, and linear.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/cache-internal.h"
#include "solver/solver-internal.h"

#define DIFF_ID "containerd.io/uncompressed"
#define NONE SIZE_MAX

/* Numbers by hash: chains of what fell into one place. */
struct table {
	size_t *heads, *next;
	size_t mask;
};

struct import_layer {
	size_t desc;	  /* in descs; NONE: there is none */
	size_t parent;	  /* NONE: the lowest */
	size_t depth;	  /* layers up to this one; 0: some of them cannot be had */
	struct digest id; /* of the blobs up to this one */
	bool is_done;
};
struct import_desc {
	struct desc desc;
	struct digest diff_id;
};
struct import_result {
	struct digest id;
	int64_t created_ns;
	size_t top;    /* a layer with its ancestors; NONE: the chain */
	size_t *chain; /* layers, lowest first */
	size_t n_chain;
	size_t next; /* of the same key; NONE */
};
struct import_key {
	struct digest record;
	bool is_root;
	size_t same_as; /* another key, or itself */
	size_t results; /* the first; NONE */
};
struct import_link {
	size_t from, to, input;
	bool has_selector;
	struct digest selector;
};

struct cache_import {
	struct cache cache;
	char *name;
	struct origin origin;
	vec(struct import_desc) descs;
	vec(struct import_layer) layers;
	vec(struct import_result) results;
	vec(struct import_key) keys;
	vec(struct import_link) links;
	struct table by_record, roots, by_link; /* made when all is there */
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static struct cache_import *of(struct cache *cache)
{
	return containerof(cache, struct cache_import, cache);
}

/* ------------------------------------------------------------------ tables */

static int table_init(struct table *t, size_t n)
{
	size_t size = 16;
	while (size < n)
		size *= 2;
	t->mask = size - 1;
	t->heads = malloc(size * sizeof(*t->heads));
	t->next = malloc((n + 1) * sizeof(*t->next));
	if (!t->heads || !t->next)
		return -ENOMEM;
	for (size_t i = 0; i < size; i++)
		t->heads[i] = NONE;
	return 0;
}

static void table_deinit(struct table *t)
{
	free(t->heads);
	free(t->next);
}

static inline void table_deinit_scoped(struct table *t)
{
	table_deinit(t);
}

static void table_add(struct table *t, uint64_t hash, size_t i)
{
	size_t *head = &t->heads[hash & t->mask];
	t->next[i] = *head;
	*head = i;
}

static size_t table_first(const struct table *t, uint64_t hash)
{
	return t->heads[hash & t->mask];
}

static uint64_t digest_hash(const struct digest *digest)
{
	return hash_bytes(digest->bytes, sizeof(uint64_t));
}

static uint64_t link_hash(size_t from, size_t input, const struct digest *record,
			  const struct digest *selector)
{
	const uint64_t parts[] = {from, input, le64(record->bytes),
				  selector ? le64(selector->bytes) : 0};
	return hash_bytes(parts, sizeof(parts));
}

/* ------------------------------------------------------------------ layers and results */

/* Can a layer be made of it? Then *diff_id is what it holds. */
static bool is_usable(const struct desc *desc, const struct digest *given, struct digest *diff_id)
{
	const char *text = desc_annotation(desc, DIFF_ID);
	if (!desc->media_type || !image_layer_type_known(desc->media_type))
		return false;
	if (given)
		*diff_id = *given;
	return given || (text && digest_parse(diff_id, text, NULL) == 0);
}

static int add_descs(struct cache_import *c, struct table *by_blob, const struct desc *descs,
		     const struct digest *diff_ids, size_t n)
{
	size_t first = c->descs.n;
	if (table_init(by_blob, first + n) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		struct digest diff_id;
		if (!is_usable(&descs[i], diff_ids ? &diff_ids[i] : NULL, &diff_id))
			continue;
		struct import_desc *to = vec_push(&c->descs);
		if (!to || desc_copy(&to->desc, &descs[i]) < 0)
			return -ENOMEM;
		to->diff_id = diff_id;
		table_add(by_blob, digest_hash(&to->desc.digest), c->descs.n - 1);
	}
	return 0;
}

static size_t find_desc(const struct cache_import *c, const struct table *by_blob,
			const struct digest *blob)
{
	size_t i = table_first(by_blob, digest_hash(blob));
	while (i != NONE && !digest_equal(&c->descs.items[i].desc.digest, blob))
		i = by_blob->next[i];
	return i;
}

/* The id of a list of blobs and one more on top. */
static void extend_id(struct digest *id, const struct digest *below, const struct digest *blob)
{
	uint8_t bytes[2 * sizeof(struct digest)];
	memcpy(bytes, below->bytes, sizeof(struct digest));
	memcpy(bytes + sizeof(struct digest), blob->bytes, sizeof(struct digest));
	digest_bytes(id, bytes, sizeof(bytes));
}

static const struct digest no_layers;

static void finish_layer(struct cache_import *c, struct import_layer *layer)
{
	const struct import_layer *parent =
		layer->parent == NONE ? NULL : &c->layers.items[layer->parent];
	layer->is_done = true;
	if (layer->desc == NONE || (parent && !parent->depth))
		return;
	layer->depth = parent ? parent->depth + 1 : 1;
	extend_id(&layer->id, parent ? &parent->id : &no_layers,
		  &c->descs.items[layer->desc].desc.digest);
}

/* Parents before those on them. */
static int finish_layers(struct cache_import *c, size_t first)
{
	scoped(free) size_t *stack = malloc((c->layers.n - first + 1) * sizeof(*stack));
	if (!stack)
		return -ENOMEM;
	for (size_t i = first; i < c->layers.n; i++) {
		size_t n = 0;
		for (size_t k = i; k != NONE && !c->layers.items[k].is_done;
		     k = c->layers.items[k].parent)
			stack[n++] = k;
		while (n > 0)
			finish_layer(c, &c->layers.items[stack[--n]]);
	}
	return 0;
}

static int add_layers(struct cache_import *c, const struct cacheconfig *config,
		      const struct desc *descs, const struct digest *diff_ids, size_t n)
{
	scoped(table_deinit) struct table by_blob = {0};
	size_t first = c->layers.n;
	if (add_descs(c, &by_blob, descs, diff_ids, n) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < config->n_layers; i++) {
		const struct cacheconfig_layer *from = &config->layers[i];
		struct import_layer *to = vec_push(&c->layers);
		if (!to)
			return -ENOMEM;
		to->parent = from->parent < 0 ? NONE : first + (size_t)from->parent;
		to->desc = from->has_blob ? find_desc(c, &by_blob, &from->blob) : NONE;
	}
	return finish_layers(c, first);
}

static void chain_id(const struct cache_import *c, struct import_result *result)
{
	result->id = no_layers;
	for (size_t i = 0; i < result->n_chain; i++) {
		const struct import_layer *layer = &c->layers.items[result->chain[i]];
		extend_id(&result->id, &result->id, &c->descs.items[layer->desc].desc.digest);
	}
}

static bool has_all(const struct cache_import *c, const struct cacheconfig_result *from,
		    size_t first_layer)
{
	if (from->top >= 0)
		return c->layers.items[first_layer + (size_t)from->top].depth > 0;
	for (size_t i = 0; i < from->n_chain; i++)
		if (c->layers.items[first_layer + from->chain[i]].desc == NONE)
			return false;
	return true;
}

static int add_result(struct cache_import *c, size_t key, const struct cacheconfig_result *from,
		      size_t first_layer)
{
	if (!has_all(c, from, first_layer))
		return 0;
	struct import_result *to = vec_push(&c->results);
	if (!to)
		return -ENOMEM;
	*to = (struct import_result){.created_ns = from->created_ns, .top = NONE};
	to->next = c->keys.items[key].results;
	c->keys.items[key].results = c->results.n - 1;
	if (from->top >= 0) {
		to->top = first_layer + (size_t)from->top;
		to->id = c->layers.items[to->top].id;
		return 0;
	}
	to->chain = malloc((from->n_chain + 1) * sizeof(*to->chain));
	if (!to->chain)
		return -ENOMEM;
	for (; to->n_chain < from->n_chain; to->n_chain++)
		to->chain[to->n_chain] = first_layer + from->chain[to->n_chain];
	chain_id(c, to);
	return 0;
}

/* ------------------------------------------------------------------ records */

static int add_record(struct cache_import *c, const struct cacheconfig_record *from,
		      size_t first_key, size_t first_layer)
{
	struct import_key *key = vec_push(&c->keys);
	size_t me = c->keys.n - 1;
	if (!key)
		return -ENOMEM;
	*key = (struct import_key){
		.record = from->digest,
		.is_root = from->n_inputs == 0,
		.same_as = me,
		.results = NONE,
	};
	for (size_t i = 0; i < from->n_links; i++) {
		const struct cacheconfig_link *link = &from->links[i];
		struct import_link *to = vec_push(&c->links);
		if (!to)
			return -ENOMEM;
		*to = (struct import_link){
			.from = first_key + link->from,
			.to = me,
			.input = link->input,
			.has_selector = link->has_selector,
			.selector = link->selector,
		};
	}
	for (size_t i = 0; i < from->n_results; i++)
		if (add_result(c, me, &from->results[i], first_layer) < 0)
			return -ENOMEM;
	return 0;
}

int cache_import_add(struct cache *cache, const struct cacheconfig *config,
		     const struct desc *descs, const struct digest *diff_ids, size_t n,
		     struct err *err)
{
	struct cache_import *c = of(cache);
	size_t first_key = c->keys.n, first_layer = c->layers.n;
	if (add_layers(c, config, descs, diff_ids, n) < 0)
		return no_memory(err);
	for (size_t i = 0; i < config->n_records; i++)
		if (add_record(c, &config->records[i], first_key, first_layer) < 0)
			return no_memory(err);
	return 0;
}

size_t cache_import_count(const struct cache *cache)
{
	return containerof(cache, const struct cache_import, cache)->keys.n;
}

/* ------------------------------------------------------------------ tables of all */

static size_t find_root(const struct cache_import *c, const struct digest *record)
{
	size_t i = table_first(&c->roots, digest_hash(record));
	while (i != NONE && !digest_equal(&c->keys.items[i].record, record))
		i = c->roots.next[i];
	return i;
}

/* All that @from has becomes @to's. */
static void unite(struct cache_import *c, size_t from, size_t to)
{
	size_t *end = &c->keys.items[from].results;
	while (*end != NONE)
		end = &c->results.items[*end].next;
	*end = c->keys.items[to].results;
	c->keys.items[to].results = c->keys.items[from].results;
	c->keys.items[from].results = NONE;
	c->keys.items[from].same_as = to;
}

int cache_import_done(struct cache *cache, struct err *err)
{
	struct cache_import *c = of(cache);
	if (table_init(&c->by_record, c->keys.n) < 0 || table_init(&c->roots, c->keys.n) < 0 ||
	    table_init(&c->by_link, c->links.n) < 0)
		return no_memory(err);
	for (size_t i = 0; i < c->keys.n; i++) {
		struct import_key *key = &c->keys.items[i];
		size_t same = key->is_root ? find_root(c, &key->record) : NONE;
		table_add(&c->by_record, digest_hash(&key->record), i);
		if (same != NONE)
			unite(c, i, same);
		else if (key->is_root)
			table_add(&c->roots, digest_hash(&key->record), i);
	}
	for (size_t i = 0; i < c->links.n; i++) {
		struct import_link *link = &c->links.items[i];
		link->from = c->keys.items[link->from].same_as;
		table_add(&c->by_link,
			  link_hash(link->from, link->input, &c->keys.items[link->to].record,
				    link->has_selector ? &link->selector : NULL),
			  i);
	}
	return 0;
}

/* ------------------------------------------------------------------ asking */

static int import_root(struct cache *cache, const struct digest *record, struct cache_keys *out,
		       struct err *err)
{
	const struct cache_import *c = of(cache);
	size_t i = find_root(c, record);
	return i != NONE && cache_keys_add(out, (int64_t)i) < 0 ? no_memory(err) : 0;
}

static bool is_link(const struct cache_import *c, const struct import_link *link, size_t from,
		    size_t input, const struct digest *record, const struct digest *selector)
{
	return link->from == from && link->input == input &&
	       link->has_selector == (selector != NULL) &&
	       digest_equal(&c->keys.items[link->to].record, record) &&
	       (!selector || digest_equal(&link->selector, selector));
}

static int import_links(struct cache *cache, int64_t from, size_t input,
			const struct digest *record, const struct digest *selector,
			struct cache_keys *out, struct err *err)
{
	const struct cache_import *c = of(cache);
	size_t key = (size_t)from;
	size_t i = table_first(&c->by_link, link_hash(key, input, record, selector));
	for (; i != NONE; i = c->by_link.next[i]) {
		const struct import_link *link = &c->links.items[i];
		if (is_link(c, link, key, input, record, selector) &&
		    cache_keys_add(out, (int64_t)link->to) < 0)
			return no_memory(err);
	}
	return 0;
}

static int import_knows(struct cache *cache, const struct digest *record, struct err *err)
{
	const struct cache_import *c = of(cache);
	size_t i = table_first(&c->by_record, digest_hash(record));
	while (i != NONE && !digest_equal(&c->keys.items[i].record, record))
		i = c->by_record.next[i];
	return i != NONE;
}

static bool is_among(const struct digest *digest, const struct digest *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (digest_equal(digest, &list[i]))
			return true;
	return false;
}

static int import_result(struct cache *cache, int64_t key, const struct digest *bad, size_t n_bad,
			 struct cache_result *out, struct err *err)
{
	const struct cache_import *c = of(cache);
	const struct import_result *best = NULL;
	for (size_t i = c->keys.items[key].results; i != NONE; i = c->results.items[i].next) {
		const struct import_result *one = &c->results.items[i];
		if ((!best || one->created_ns > best->created_ns) &&
		    !is_among(&one->id, bad, n_bad))
			best = one;
	}
	if (!best)
		return 0;
	*out = (struct cache_result){
		.key = key,
		.created_ns = best->created_ns,
		.ref = best->id,
	};
	return 1;
}

/* The descriptors of a result, lowest first; what they have is borrowed. */
static size_t list_layers(const struct cache_import *c, const struct import_result *result,
			  struct desc *descs, struct digest *diff_ids)
{
	size_t n = result->top == NONE ? result->n_chain : c->layers.items[result->top].depth;
	size_t layer = result->top;
	for (size_t i = n; i-- > 0;) {
		if (result->top == NONE)
			layer = result->chain[i];
		const struct import_desc *from = &c->descs.items[c->layers.items[layer].desc];
		descs[i] = from->desc;
		diff_ids[i] = from->diff_id;
		layer = c->layers.items[layer].parent;
	}
	return n;
}

static int make_ref(const struct cache_import *c, const struct import_result *result,
		    struct ref **out, struct err *err)
{
	size_t n = result->top == NONE ? result->n_chain : c->layers.items[result->top].depth;
	if (n == 0)
		return ref_scratch(out, err);
	scoped(free) struct desc *descs = malloc(n * sizeof(*descs));
	scoped(free) struct digest *diff_ids = malloc(n * sizeof(*diff_ids));
	if (!descs || !diff_ids)
		return no_memory(err);
	const struct ref_image image = {
		.name = c->name,
		.origin = &c->origin,
		.layers = descs,
		.diff_ids = diff_ids,
		.n_layers = list_layers(c, result, descs, diff_ids),
	};
	return ref_image(out, &image, err);
}

static int import_load(struct cache *cache, struct solver *solver,
		       const struct cache_result *result, struct ref **out, struct err *err)
{
	const struct cache_import *c = of(cache);
	size_t i = c->keys.items[result->key].results;
	while (i != NONE && !digest_equal(&c->results.items[i].id, &result->ref))
		i = c->results.items[i].next;
	if (i == NONE)
		return err_set(err, -ENOENT, "%s: no such result", c->name);
	return make_ref(c, &c->results.items[i], out, err);
}

static void import_free(struct cache *cache)
{
	struct cache_import *c = of(cache);
	for (size_t i = 0; i < c->descs.n; i++)
		desc_deinit(&c->descs.items[i].desc);
	for (size_t i = 0; i < c->results.n; i++)
		free(c->results.items[i].chain);
	vec_free(&c->descs);
	vec_free(&c->layers);
	vec_free(&c->results);
	vec_free(&c->keys);
	vec_free(&c->links);
	table_deinit(&c->by_record);
	table_deinit(&c->roots);
	table_deinit(&c->by_link);
	origin_deinit(&c->origin);
	free(c->name);
	free(c);
}

static const struct cache_ops cache_import_ops = {
	.root = import_root,
	.links = import_links,
	.knows = import_knows,
	.result = import_result,
	.load = import_load,
	.free = import_free,
};

int cache_import_new(struct cache **out, const char *name, const struct origin *origin,
		     struct err *err)
{
	struct cache_import *c = calloc(1, sizeof(*c));
	if (!c || !(c->name = strdup(name))) {
		free(c);
		return no_memory(err);
	}
	c->cache.ops = &cache_import_ops;
	origin_copy(&c->origin, origin);
	*out = &c->cache;
	return 0;
}
