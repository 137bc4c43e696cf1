/* SPDX-License-Identifier: Apache-2.0 */

/*
 * BuildKit's cacheconfig documents: bytes in, struct out, no I/O.
 *
 *	{ layers:  [ { blob, parent } ],		parent: missing is 0, -1 is none
 *	  records: [ { digest,
 *		       inputs: [ [ { link, selector? } ] ],	a list of ways for each input
 *		       layers: [ { layer, createdAt } ],	results: that layer and its ancestors
 *		       chains: [ { layers: [ … ], createdAt } ] } ] }	results: exactly these
 *
 * An image may carry records, too: its config has a list of them, base64, under
 * moby.buildkit.cache.v0. Their layers are those of the image, each on the one before.
 *
 * What this gives is sound: every index is one of the document, and neither records nor layers run
 * in circles. It is written as Go writes it, so that null stands for an empty list.
 */

#include <jansson.h>
#include <time.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/cache-internal.h"

define_scoped(json_t *, json_decref);

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

void cacheconfig_deinit(struct cacheconfig *config)
{
	for (size_t i = 0; i < config->n_records; i++) {
		struct cacheconfig_record *record = &config->records[i];
		for (size_t k = 0; k < record->n_results; k++)
			free(record->results[k].chain);
		free(record->results);
		free(record->links);
	}
	free(config->records);
	free(config->layers);
	*config = (struct cacheconfig){0};
}

/* ------------------------------------------------------------------ members */

/* A list; missing or null is an empty one. */
static int load_list(const json_t *object, const char *key, const json_t **out, size_t *n,
		     struct err *err)
{
	*out = json_object_get(object, key);
	*n = json_array_size(*out); /* 0 for what is no array */
	if (*out && !json_is_null(*out) && !json_is_array(*out))
		return err_set(err, -EBADMSG, "\"%s\" is no list", key);
	return 0;
}

/* A number from @min to @end - 1; missing is 0. */
static int load_index(const json_t *json, const char *what, ssize_t min, size_t end, ssize_t *out,
		      struct err *err)
{
	if (json && !json_is_integer(json))
		return err_set(err, -EBADMSG, "\"%s\" is no number", what);
	json_int_t i = json_integer_value(json);
	if (i < min || i >= (json_int_t)end)
		return err_set(err, -EBADMSG, "\"%s\" is %lld, but there are %zu", what,
			       (long long)i, end);
	*out = (ssize_t)i;
	return 0;
}

/* False in @has when it is missing or empty. */
static int load_digest(const json_t *object, const char *key, bool *has, struct digest *out,
		       struct err *err)
{
	const json_t *json = json_object_get(object, key);
	const char *text = json_string_value(json);
	if (json && !text)
		return err_set(err, -EBADMSG, "\"%s\" is no text", key);
	*has = text && *text;
	int r = *has ? digest_parse(out, text, err) : 0;
	return r < 0 ? err_wrap(err, -EBADMSG, "\"%s\"", key) : 0;
}

/* @n digits and then @end, unless that is 0. */
static bool take_number(const char **p, int n, char end, int *out)
{
	*out = 0;
	for (; n > 0; n--, (*p)++) {
		if (**p < '0' || **p > '9')
			return false;
		*out = *out * 10 + (**p - '0');
	}
	return !end || *(*p)++ == end;
}

/* "." and at most nine digits that count. */
static bool take_fraction(const char **p, int64_t *ns)
{
	int64_t scale = (int64_t)NS_PER_S / 10;
	*ns = 0;
	if (**p != '.')
		return true;
	const char *from = ++*p;
	for (; **p >= '0' && **p <= '9'; (*p)++, scale /= 10)
		*ns += (**p - '0') * scale;
	return *p > from;
}

static bool take_zone(const char **p, int64_t *seconds)
{
	int hours, minutes;
	char sign = *(*p)++;
	*seconds = 0;
	if (sign == 'Z')
		return true;
	if ((sign != '+' && sign != '-') || !take_number(p, 2, ':', &hours) ||
	    !take_number(p, 2, '\0', &minutes) || hours > 23 || minutes > 59)
		return false;
	*seconds = (hours * 60 + minutes) * (sign == '-' ? -60 : 60);
	return true;
}

/* RFC 3339. Go's zero time, and all else that 64 bits do not hold, is the farthest that they do. */
static bool parse_time(const char *p, int64_t *out)
{
	struct tm tm = {0};
	int64_t ns, zone;
	if (!take_number(&p, 4, '-', &tm.tm_year) || !take_number(&p, 2, '-', &tm.tm_mon) ||
	    !take_number(&p, 2, 'T', &tm.tm_mday) || !take_number(&p, 2, ':', &tm.tm_hour) ||
	    !take_number(&p, 2, ':', &tm.tm_min) || !take_number(&p, 2, '\0', &tm.tm_sec) ||
	    !take_fraction(&p, &ns) || !take_zone(&p, &zone) || *p)
		return false;
	if (tm.tm_mon < 1 || tm.tm_mon > 12 || tm.tm_mday < 1 || tm.tm_mday > 31 ||
	    tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60)
		return false;
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	int64_t s = timegm(&tm) - zone;
	if (__builtin_mul_overflow(s, (int64_t)NS_PER_S, out) ||
	    __builtin_add_overflow(*out, ns, out))
		*out = s < 0 ? INT64_MIN : INT64_MAX;
	return true;
}

static int load_created(const json_t *object, int64_t *out, struct err *err)
{
	const json_t *json = json_object_get(object, "createdAt");
	*out = INT64_MIN;
	if (!json || json_is_null(json))
		return 0;
	const char *text = json_string_value(json);
	return text && parse_time(text, out) ? 0
					     : err_set(err, -EBADMSG, "\"createdAt\" is no time");
}

/* ------------------------------------------------------------------ records */

static int load_ways(struct cacheconfig_record *record, size_t *cap, const json_t *list,
		     size_t n_records, struct err *err)
{
	size_t n = json_array_size(list);
	if (n == 0)
		return err_set(err, -EBADMSG, "no way leads there");
	if (vec_reserve_((void **)&record->links, cap, record->n_links + n,
			 sizeof(*record->links)) < 0)
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		struct cacheconfig_link *link = &record->links[record->n_links];
		const json_t *json = json_array_get(list, i);
		ssize_t from;
		if (!json_is_object(json))
			return err_set(err, -EBADMSG, "a link is no object");
		*link = (struct cacheconfig_link){.input = record->n_inputs};
		int r = load_index(json_object_get(json, "link"), "link", 0, n_records, &from, err);
		if (r == 0)
			r = load_digest(json, "selector", &link->has_selector, &link->selector,
					err);
		if (r < 0)
			return r;
		link->from = (size_t)from;
		record->n_links++;
	}
	return 0;
}

static int load_inputs(struct cacheconfig_record *record, const json_t *json, size_t n_records,
		       struct err *err)
{
	const json_t *list;
	size_t n, cap = 0;
	int r = load_list(json, "inputs", &list, &n, err);
	for (; record->n_inputs < n && r == 0; record->n_inputs++) {
		r = load_ways(record, &cap, json_array_get(list, record->n_inputs), n_records, err);
		if (r < 0)
			return err_wrap(err, r, "input %zu", record->n_inputs);
	}
	return r;
}

/* Of a result that is a layer with its ancestors. */
static int load_layer_result(struct cacheconfig_result *out, const json_t *json, size_t n_layers,
			     struct err *err)
{
	int r = load_index(json_object_get(json, "layer"), "layer", 0, n_layers, &out->top, err);
	return r < 0 ? r : load_created(json, &out->created_ns, err);
}

/* Of a result that names each layer. */
static int load_chain_result(struct cacheconfig_result *out, const json_t *json, size_t n_layers,
			     struct err *err)
{
	const json_t *list;
	size_t n;
	out->top = -1;
	int r = load_list(json, "layers", &list, &n, err);
	if (r == 0 && !(out->chain = calloc(n + 1, sizeof(*out->chain))))
		r = no_memory(err);
	for (; out->n_chain < n && r == 0; out->n_chain++) {
		ssize_t i = 0;
		r = load_index(json_array_get(list, out->n_chain), "layers", 0, n_layers, &i, err);
		out->chain[out->n_chain] = (size_t)i;
	}
	return r < 0 ? r : load_created(json, &out->created_ns, err);
}

static int load_results(struct cacheconfig_record *record, const json_t *json, size_t n_layers,
			struct err *err)
{
	const json_t *layers, *chains;
	size_t n, m;
	int r = load_list(json, "layers", &layers, &n, err);
	if (r == 0)
		r = load_list(json, "chains", &chains, &m, err);
	if (r < 0)
		return r;
	record->results = calloc(n + m + 1, sizeof(*record->results));
	if (!record->results)
		return no_memory(err);
	for (; record->n_results < n + m && r == 0; record->n_results++) {
		size_t i = record->n_results;
		const json_t *item = json_array_get(i < n ? layers : chains, i < n ? i : i - n);
		struct cacheconfig_result *out = &record->results[i];
		if (!json_is_object(item))
			r = err_set(err, -EBADMSG, "a result is no object");
		else
			r = (i < n ? load_layer_result : load_chain_result)(out, item, n_layers,
									    err);
	}
	return r;
}

static int load_record(struct cacheconfig_record *record, const json_t *json,
		       const struct cacheconfig *config, size_t n_records, struct err *err)
{
	bool has;
	if (!json_is_object(json))
		return err_set(err, -EBADMSG, "no object");
	int r = load_digest(json, "digest", &has, &record->digest, err);
	if (r == 0 && !has)
		r = err_set(err, -EBADMSG, "no digest");
	if (r == 0)
		r = load_inputs(record, json, n_records, err);
	return r < 0 ? r : load_results(record, json, config->n_layers, err);
}

static int load_records(struct cacheconfig *config, const json_t *list, struct err *err)
{
	size_t n = json_array_size(list);
	config->records = calloc(n + 1, sizeof(*config->records));
	if (!config->records)
		return no_memory(err);
	while (config->n_records < n) {
		size_t i = config->n_records++;
		int r = load_record(&config->records[i], json_array_get(list, i), config, n, err);
		if (r < 0)
			return err_wrap(err, r, "record %zu", i);
	}
	return 0;
}

struct step {
	size_t record, next; /* link */
};

/* Follows links from each record that was not seen. @state: 1 = on the way, 2 = done. */
static int check_records(const struct cacheconfig *config, struct err *err)
{
	scoped(free) uint8_t *state = calloc(config->n_records + 1, 1);
	scoped(free) struct step *stack = calloc(config->n_records + 1, sizeof(*stack));
	if (!state || !stack)
		return no_memory(err);
	for (size_t i = 0; i < config->n_records; i++) {
		size_t n = 0;
		if (state[i] == 0)
			stack[n++] = (struct step){i, 0};
		while (n > 0) {
			struct step *top = &stack[n - 1];
			const struct cacheconfig_record *record = &config->records[top->record];
			state[top->record] = 1;
			if (top->next == record->n_links) {
				state[top->record] = 2;
				n--;
				continue;
			}
			size_t from = record->links[top->next++].from;
			if (state[from] == 1)
				return err_set(err, -EBADMSG, "record %zu leads to itself", from);
			if (state[from] == 0)
				stack[n++] = (struct step){from, 0};
		}
	}
	return 0;
}

/* ------------------------------------------------------------------ layers */

static int load_layers(struct cacheconfig *config, const json_t *json, struct err *err)
{
	const json_t *list;
	size_t n;
	int r = load_list(json, "layers", &list, &n, err);
	if (r < 0)
		return r;
	config->layers = calloc(n + 1, sizeof(*config->layers));
	if (!config->layers)
		return no_memory(err);
	for (; config->n_layers < n; config->n_layers++) {
		struct cacheconfig_layer *layer = &config->layers[config->n_layers];
		const json_t *item = json_array_get(list, config->n_layers);
		r = json_is_object(item)
			    ? load_digest(item, "blob", &layer->has_blob, &layer->blob, err)
			    : err_set(err, -EBADMSG, "no object");
		if (r == 0)
			r = load_index(json_object_get(item, "parent"), "parent", -1, n,
				       &layer->parent, err);
		if (r < 0)
			return err_wrap(err, r, "layer %zu", config->n_layers);
	}
	return 0;
}

/* Walks from each layer to one that was seen. */
static int check_layers(const struct cacheconfig *config, struct err *err)
{
	scoped(free) size_t *seen = calloc(config->n_layers + 1, sizeof(*seen)); /* by which walk */
	if (!seen)
		return no_memory(err);
	for (size_t walk = 1; walk <= config->n_layers; walk++) {
		ssize_t i = (ssize_t)walk - 1;
		for (; i >= 0 && !seen[i]; i = config->layers[i].parent)
			seen[i] = walk;
		if (i >= 0 && seen[i] == walk)
			return err_set(err, -EBADMSG, "layer %zd lies on itself", i);
	}
	return 0;
}

/* ------------------------------------------------------------------ the doors */

static int load(json_t **out, const void *bytes, size_t n, struct err *err)
{
	json_error_t why;
	*out = json_loadb(bytes, n, 0, &why);
	return *out ? 0
		    : err_set(err, -EBADMSG, "not valid JSON: %s (byte %d)", why.text,
			      why.position);
}

int cacheconfig_parse(struct cacheconfig *out, const void *bytes, size_t n, struct err *err)
{
	scoped(json_decref) json_t *json = NULL;
	scoped(cacheconfig_deinit) struct cacheconfig config = {0};
	const json_t *records;
	size_t n_records;
	int r = load(&json, bytes, n, err);
	if (r == 0 && !json_is_object(json))
		r = err_set(err, -EBADMSG, "no object");
	if (r == 0)
		r = load_layers(&config, json, err);
	if (r == 0)
		r = check_layers(&config, err);
	if (r == 0)
		r = load_list(json, "records", &records, &n_records, err);
	if (r == 0)
		r = load_records(&config, records, err);
	if (r == 0)
		r = check_records(&config, err);
	if (r < 0)
		return err_wrap(err, r, "cache config");
	*out = config;
	config = (struct cacheconfig){0};
	return 0;
}

/* The layers of an image, each on the one before. */
static int image_layers(struct cacheconfig *config, const struct desc *layers, size_t n)
{
	config->layers = calloc(n + 1, sizeof(*config->layers));
	if (!config->layers)
		return -ENOMEM;
	for (; config->n_layers < n; config->n_layers++)
		config->layers[config->n_layers] = (struct cacheconfig_layer){
			.has_blob = true,
			.blob = layers[config->n_layers].digest,
			.parent = (ssize_t)config->n_layers - 1,
		};
	return 0;
}

static int parse_inline(struct cacheconfig *config, const char *base64, struct err *err)
{
	scoped(free) uint8_t *text = NULL;
	scoped(json_decref) json_t *json = NULL;
	size_t n;
	int r = base64_decode(base64, strlen(base64), &text, &n);
	if (r < 0)
		return err_set(err, r, "not valid base64");
	r = load(&json, text, n, err);
	if (r == 0 && !json_is_array(json) && !json_is_null(json))
		r = err_set(err, -EBADMSG, "no list of records");
	if (r == 0)
		r = load_records(config, json, err);
	return r < 0 ? r : check_records(config, err);
}

int cacheconfig_parse_image(struct cacheconfig *out, const void *bytes, size_t n,
			    const struct desc *layers, size_t n_layers, struct err *err)
{
	scoped(json_decref) json_t *json = NULL;
	scoped(cacheconfig_deinit) struct cacheconfig config = {0};
	int r = load(&json, bytes, n, err);
	if (r < 0)
		return err_wrap(err, r, "image config");
	const json_t *cache = json_object_get(json, "moby.buildkit.cache.v0");
	const char *text = json_string_value(cache);
	if (!cache || json_is_null(cache) || (text && !*text))
		return err_set(err, -ENOENT, "the image has no build cache in its config");
	if (!text)
		return err_set(err, -EBADMSG, "moby.buildkit.cache.v0 is no text");
	r = image_layers(&config, layers, n_layers) < 0 ? no_memory(err)
							: parse_inline(&config, text, err);
	if (r < 0)
		return err_wrap(err, r, "moby.buildkit.cache.v0");
	*out = config;
	config = (struct cacheconfig){0};
	return 0;
}
