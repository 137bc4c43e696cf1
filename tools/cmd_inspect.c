/* SPDX-License-Identifier: Apache-2.0 */

/*
 * inspect: what a reference is made of, as one JSON object. Manifests and the config are fetched,
 * layers are opened only for the content that is part of the keys of a definition.
 */

#include "tools/tools.h"

#include <fcntl.h>
#include <jansson.h>
#include <unistd.h>

#define DEFINITION_MAX (256u << 20)

/* ------------------------------------------------------------------ refs */

/* What the descriptor says of a layer; opening it may find more. */
static enum layer_format layer_format_told(const struct desc *desc)
{
	const char *type = desc->media_type ? desc->media_type : "";

	if (desc_annotation(desc, "containerd.io/snapshot/stargz/toc.digest"))
		return LAYER_ESTARGZ;
	if (str_ends(type, "gzip"))
		return LAYER_GZIP;
	if (str_ends(type, "zstd"))
		return LAYER_ZSTD;
	return str_ends(type, "tar") ? LAYER_TAR : LAYER_UNKNOWN;
}

static void inspect_digest(struct strbuf *s, const char *key, const struct digest *digest)
{
	char text[DIGEST_TEXT_MAX];
	bool is_known = digest && !digest_is_zero(digest);

	json_pair(s, key, is_known ? digest_text(digest, text) : NULL);
}

static void inspect_open(struct strbuf *s)
{
	strbuf_puts(s, s->data[s->len - 1] == '[' ? "{" : ",{");
}

static void inspect_image_layers(struct strbuf *s, const struct ref *ref)
{
	const struct ref_layer *layers;
	size_t n = ref_layers(ref, &layers);

	for (size_t i = 0; i < n; i++) {
		const struct desc *desc = &layers[i].desc;

		inspect_open(s);
		inspect_digest(s, "digest", &desc->digest);
		inspect_digest(s, "diff_id", &layers[i].diff_id);
		json_pair(s, "media_type", desc->media_type);
		json_u64(s, "size", desc->size);
		json_pair(s, "format", layer_format_name(layer_format_told(desc)));
		strbuf_putc(s, '}');
	}
}

static void inspect_dir_layer(struct strbuf *s, const struct ref *ref)
{
	inspect_open(s);
	json_pair(s, "digest", NULL);
	json_pair(s, "diff_id", NULL);
	json_pair(s, "media_type", NULL);
	json_u64(s, "size", 0);
	json_pair(s, "format", layer_format_name(LAYER_LOCAL));
	json_pair(s, "dir", ref_dir(ref));
	strbuf_putc(s, '}');
}

/* All layers under @top, lowest first; a stack, for a definition may nest merges as it likes. */
static int inspect_layers(struct strbuf *s, struct ref *top, struct err *err)
{
	vec(struct ref *) todo = {0};
	struct ref **slot = vec_push(&todo);
	const struct ref_part *parts;
	int r = slot ? 0 : -ENOMEM;

	if (slot)
		*slot = top;
	while (r == 0 && todo.n) {
		struct ref *ref = todo.items[--todo.n];
		size_t n = ref_parts(ref, &parts);

		if (ref_kind(ref) == REF_IMAGE) {
			r = ref_need_diff_ids(ref, err);
			r = r == -ENOENT ? 0 : r;
			inspect_image_layers(s, ref);
		} else if (ref_kind(ref) == REF_DIR) {
			inspect_dir_layer(s, ref);
		}
		for (size_t i = n; r == 0 && i > 0; i--) {
			slot = vec_push(&todo);
			if (slot)
				*slot = parts[i - 1].ref;
			else
				r = -ENOMEM;
		}
	}
	vec_free(&todo);
	return r;
}

/* The config of an image, NULL where there is none. */
static int inspect_config(json_t **out, struct ref *ref, struct err *err)
{
	scoped(strbuf_free) struct strbuf text = {0};
	json_error_t wrong;
	int r = ref_kind(ref) == REF_IMAGE ? ref_config(ref, &text, err) : -ENOENT;

	*out = NULL;
	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return r;
	*out = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, &wrong);
	if (!*out)
		return err_set(err, -EBADMSG, "the config of %s: %s", ref_name(ref), wrong.text);
	return 0;
}

/* As the index says, else as the config does. */
static void inspect_platform(struct strbuf *s, const struct ref *ref, const json_t *config)
{
	const struct platform *platform = ref_platform(ref);
	const char *os = json_string_value(json_object_get(config, "os"));
	const char *arch = json_string_value(json_object_get(config, "architecture"));
	const char *variant = json_string_value(json_object_get(config, "variant"));
	scoped(free) char *text = NULL;
	char buf[100];

	if (!platform && os && arch)
		text = str_printf("%s/%s%s%s", os, arch, variant && *variant ? "/" : "",
				  variant ? variant : "");
	json_pair(s, "platform", platform ? platform_text(platform, buf) : text);
}

static void inspect_parts(struct strbuf *s, const struct ref *ref)
{
	const struct ref_part *parts;
	size_t n = ref_parts(ref, &parts);

	json_key(s, "parts");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < n; i++) {
		inspect_open(s);
		json_pair(s, "ref", ref_name(parts[i].ref));
		json_pair(s, "trim", parts[i].trim);
		json_pair(s, "add", parts[i].add);
		strbuf_putc(s, '}');
	}
	strbuf_putc(s, ']');
}

static int inspect_ref(struct strbuf *s, struct ref *ref, const char *kind, const char *text,
		       struct err *err)
{
	static const char *const kinds[] = {
		[REF_IMAGE] = "image",
		[REF_MERGE] = "merge",
		[REF_DIR] = "dir",
		[REF_SCRATCH] = "scratch",
		[REF_TREE] = "tree",
	};
	scoped(free) char *line = NULL;
	char hex[DIGEST_HEX_MAX];
	struct digest id;
	json_t *config;
	int r = inspect_config(&config, ref, err);

	if (r < 0)
		return r;
	json_pair(s, "kind", kind ? kind : kinds[ref_kind(ref)]);
	json_pair(s, "ref", text);
	if (ref_id(ref, &id))
		json_pair(s, "id", digest_hex(&id, hex));
	inspect_platform(s, ref, config);
	inspect_digest(s, "manifest", ref_manifest(ref));
	json_key(s, "layers");
	strbuf_putc(s, '[');
	r = inspect_layers(s, ref, err);
	strbuf_putc(s, ']');
	line = config ? json_dumps(config, JSON_COMPACT) : NULL;
	json_decref(config);
	json_key(s, "config");
	strbuf_puts(s, line ? line : "null");
	inspect_parts(s, ref);
	return r;
}

/* ------------------------------------------------------------------ definitions */

static void inspect_texts(struct strbuf *s, const char *key, char *const *texts, size_t n)
{
	json_key(s, key);
	strbuf_putc(s, '[');
	for (size_t i = 0; i < n; i++) {
		strbuf_puts(s, i ? "," : "");
		json_text(s, texts[i], strlen(texts[i]));
	}
	strbuf_putc(s, ']');
}

/* A registry could not be asked; the others are errors that are about this vertex alone. */
static bool is_no_answer(int r)
{
	switch (-r) {
	case 0:
	case ENOENT:
	case EACCES:
	case EBADMSG:
	case EINVAL:
	case ENOTSUP:
	case ENODATA:
	case EFBIG:
		return false;
	default:
		return true;
	}
}

/* A definition, as its vertices are told of. */
struct inspected {
	struct app *app;
	struct graph *graph;
	bool may_ask; /* the network answers, as far as is known */
	bool is_offline;
};

/* What of an input is hashed where its content may stand for it; null when it may not. */
static void inspect_content(struct strbuf *s, const struct cache_input *input)
{
	if (input->content == CONTENT_NONE) {
		strbuf_puts(s, "null");
		return;
	}
	strbuf_putc(s, '[');
	for (size_t i = 0; i < input->n_selectors; i++) {
		const struct content_selector *what = &input->selectors[i];

		inspect_open(s);
		json_pair(s, "path", what->path);
		json_bool(s, "wildcard", what->wildcard);
		json_bool(s, "follow", what->follow);
		inspect_texts(s, "include", what->include, what->n_include);
		inspect_texts(s, "exclude", what->exclude, what->n_exclude);
		inspect_texts(s, "required", what->required, what->n_required);
		strbuf_putc(s, '}');
	}
	strbuf_putc(s, ']');
}

static void inspect_key_inputs(struct strbuf *s, const struct vertex_keys *keys)
{
	json_key(s, "selectors");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < keys->n_inputs; i++) {
		const struct cache_input *input = &keys->inputs[i];
		char text[DIGEST_TEXT_MAX];

		strbuf_puts(s, i ? "," : "");
		if (input->has_selector)
			strbuf_printf(s, "\"%s\"", digest_text(&input->selector, text));
		else
			strbuf_puts(s, "null");
	}
	strbuf_putc(s, ']');
	json_key(s, "contents");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < keys->n_inputs; i++) {
		strbuf_puts(s, i ? "," : "");
		inspect_content(s, &keys->inputs[i]);
	}
	strbuf_putc(s, ']');
}

static void inspect_content_key(struct strbuf *s, size_t input, const struct digest *digest,
				const char *reason)
{
	struct digest record = {0};

	if (!reason)
		cache_record_digest(&record, digest, -1);
	inspect_open(s);
	json_u64(s, "input", input);
	inspect_digest(s, "digest", reason ? NULL : digest);
	inspect_digest(s, "record", reason ? NULL : &record);
	if (reason)
		json_pair(s, "reason", reason);
	strbuf_putc(s, '}');
}

/* For each input whose content may stand for it the digest of what is taken of it, and the record
 * that this is in an exported cache. Reads that content. */
static int inspect_content_keys(struct strbuf *s, struct inspected *in, struct vertex *vertex,
				const struct vertex_keys *keys)
{
	json_key(s, "content_keys");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < keys->n_inputs; i++) {
		struct digest digest;
		struct err err = {0};
		int r = -ENODATA;

		if (keys->inputs[i].content == CONTENT_NONE)
			continue;
		if (in->may_ask || in->is_offline)
			r = vertex_content_key(in->graph, in->app->solver, vertex, i, &digest, &err);
		else
			err_set(&err, r, "the network was not asked");
		if (r == -ENOMEM)
			return r;
		if (r < 0 && is_no_answer(r))
			in->may_ask = false;
		inspect_content_key(s, i, &digest, r < 0 ? err_text(&err, r) : NULL);
	}
	strbuf_putc(s, ']');
	return 0;
}

static void inspect_records(struct strbuf *s, const struct vertex_keys *keys)
{
	char text[DIGEST_TEXT_MAX];

	json_key(s, "records");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < keys->n_records; i++) {
		inspect_open(s);
		json_i64(s, "output", keys->records[i].output);
		json_pair(s, "digest", cache_digest_text(&keys->records[i].digest, text));
		strbuf_putc(s, '}');
	}
	strbuf_putc(s, ']');
	json_pair(s, "cache_key",
		  keys->n_records ? cache_digest_text(&keys->records[0].digest, text) : NULL);
}

static void inspect_ingredients(struct strbuf *s, const struct vertex_keys *keys)
{
	json_key(s, "ingredients");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < keys->n_ingredients; i++) {
		const struct cache_ingredient *what = &keys->ingredients[i];

		inspect_open(s);
		inspect_digest(s, "digest", &what->digest);
		json_key(s, "text");
		json_text(s, what->bytes, what->n);
		strbuf_putc(s, '}');
	}
	strbuf_putc(s, ']');
}

/* Images are asked for until a registry cannot be: one deadline is enough, and what the definition
 * says of the others must do. */
static int inspect_keys(struct strbuf *s, struct inspected *in, struct vertex *vertex)
{
	scoped(vertex_keys_deinit) struct vertex_keys keys = {0};
	char text[DIGEST_TEXT_MAX];
	struct err err = {0};
	struct solver *solver = in->app->solver;
	int r = vertex_keys(&keys, vertex, solver, in->may_ask, &err);

	if (r < 0 && in->may_ask) {
		in->may_ask = !is_no_answer(r);
		r = vertex_keys(&keys, vertex, solver, false, err.code ? NULL : &err);
	}
	if (r == -ENOMEM)
		return r;
	json_key(s, "cache_maps");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < keys.n_maps; i++)
		strbuf_printf(s, "%s\"%s\"", i ? "," : "", cache_digest_text(&keys.maps[i], text));
	strbuf_putc(s, ']');
	inspect_key_inputs(s, &keys);
	if (inspect_content_keys(s, in, vertex, &keys) < 0)
		return -ENOMEM;
	inspect_records(s, &keys);
	inspect_ingredients(s, &keys);
	if (r < 0 || !keys.is_whole)
		json_pair(s, "unknown", err.code ? err.text : "the network was not asked");
	return 0;
}

/* The lines that the vertex was made from. */
static void inspect_source(struct strbuf *s, const struct vertex *vertex)
{
	const struct source_location *at;
	size_t n = vertex_locations(vertex, &at);

	json_key(s, "source");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < n; i++) {
		inspect_open(s);
		json_pair(s, "file", at[i].file);
		json_key(s, "ranges");
		strbuf_putc(s, '[');
		for (size_t k = 0; k < at[i].n_ranges; k++)
			strbuf_printf(s, "%s[%d,%d,%d,%d]", k ? "," : "", at[i].ranges[k].line,
				      at[i].ranges[k].column, at[i].ranges[k].end_line,
				      at[i].ranges[k].end_column);
		strbuf_puts(s, "]}");
	}
	strbuf_putc(s, ']');
}

static int inspect_vertices(struct strbuf *s, struct inspected *in, const bool *cached)
{
	int r = 0;

	json_key(s, "vertices");
	strbuf_putc(s, '[');
	for (size_t i = 0; i < graph_count(in->graph) && r == 0; i++) {
		struct vertex *vertex = graph_vertex(in->graph, i);

		inspect_open(s);
		inspect_digest(s, "digest", vertex_digest(vertex));
		json_pair(s, "name", vertex_name(vertex));
		json_pair(s, "op", vertex_op(vertex));
		json_key(s, "inputs");
		strbuf_putc(s, '[');
		for (size_t k = 0; k < vertex_inputs(vertex); k++) {
			char digest[DIGEST_TEXT_MAX];
			struct vertex *from;
			int index;

			vertex_input(vertex, k, &from, &index);
			strbuf_printf(s, "%s\"%s:%d\"", k ? "," : "",
				      digest_text(vertex_digest(from), digest), index);
		}
		strbuf_putc(s, ']');
		inspect_source(s, vertex);
		r = inspect_keys(s, in, vertex);
		json_bool(s, "cached", cached[i]);
		strbuf_putc(s, '}');
	}
	strbuf_putc(s, ']');
	return r;
}

/* FILE[#VERTEX[:INDEX]], "-" being standard input. */
static int inspect_load(struct graph **out, const char *text, struct vertex **vertex, int *index,
			struct err *err)
{
	const char *hash = strrchr(text, '#'), *colon;
	scoped(free) char *file = strndup(text, hash ? (size_t)(hash - text) : strlen(text));
	scoped(free) char *name = hash ? strdup(hash + 1) : NULL;
	scoped(strbuf_free) struct strbuf bytes = {0};
	uint64_t number = 0;
	int r;

	if (!file || (hash && !name))
		return -ENOMEM;
	r = read_file(AT_FDCWD, strcmp(file, "-") == 0 ? "/dev/stdin" : file, DEFINITION_MAX,
		      &bytes);
	if (r < 0)
		return err_wrap(err, r, "%s", file);
	r = graph_load(out, bytes.data, bytes.len, err);
	if (r < 0)
		return err_wrap(err, r, "%s", file);
	graph_result(*out, vertex, index);
	if (!name)
		return 0;
	colon = strchr(name + (str_starts(name, "sha256:") ? 7 : 0), ':');
	if (colon && parse_u64(colon + 1, &number) < 0)
		return err_set(err, -EINVAL, "#%s: an output is a number", name);
	if (colon)
		name[colon - name] = '\0';
	*index = (int)MIN(number, (uint64_t)INT32_MAX);
	return graph_find(*out, name, vertex, err);
}

/* What is cached is looked for first: a solve keeps what it makes. */
static int inspect_graph(struct strbuf *s, struct inspected *in, struct vertex *vertex, int index,
			 const char *text, struct err *err)
{
	scoped(free) bool *cached = calloc(graph_count(in->graph) + 1, sizeof(*cached));
	scoped(ref_unref) struct ref *ref = NULL;
	int r = cached ? graph_probe(in->graph, in->app->solver, cached, err) : -ENOMEM;

	if (r < 0)
		return r;
	r = graph_solve(in->graph, in->app->solver, vertex, index, NULL, &ref, err);
	if (r == 0) {
		r = inspect_ref(s, ref, "llb", text, err);
	} else if (r != -ENOMEM) {
		/* what its vertices are can be said all the same */
		json_pair(s, "kind", "llb");
		json_pair(s, "ref", text);
		json_pair(s, "unsolved", err_text(err, r));
		r = 0;
	}
	return r < 0 ? r : inspect_vertices(s, in, cached);
}

static int inspect_llb(struct strbuf *s, struct app *app, const struct options *o, const char *text,
		       struct err *err)
{
	scoped(graph_free) struct graph *graph = NULL;
	struct vertex *vertex;
	int index;
	int r = inspect_load(&graph, text + strlen("llb://"), &vertex, &index, err);

	if (r < 0)
		return r;
	struct inspected in = {
		.app = app, .graph = graph, .may_ask = true, .is_offline = o->offline};
	return inspect_graph(s, &in, vertex, index, text, err);
}

static int inspect_all(struct strbuf *s, struct app *app, const struct options *o,
		       const struct split *split, struct err *err)
{
	scoped(ref_unref) struct ref *ref = NULL;
	const struct word *word = split->inputs;
	int r;

	strbuf_putc(s, '{');
	if (split->n_inputs == 1 && !word->is_merge && str_starts(word->text, "llb://")) {
		r = inspect_llb(s, app, o, word->text, err);
	} else {
		r = inputs_resolve(&ref, app, o, split->inputs, split->n_inputs, err);
		if (r == 0)
			r = inspect_ref(s, ref, NULL, word->is_merge ? ref_name(ref) : word->text,
					err);
	}
	strbuf_puts(s, "}\n");
	return r;
}

int cmd_inspect(struct options *o, struct err *err)
{
	scoped(strbuf_free) struct strbuf s = {0};
	struct split split;
	struct app app;
	int r = words_split(&split, o, 0, 0, err);

	if (r == 0)
		r = app_open(&app, o, "llbfs inspect", err);
	if (r < 0)
		return r;
	r = inspect_all(&s, &app, o, &split, err);
	if (r == 0)
		r = out_flush(&app, &s, err);
	app_close(&app);
	return r;
}
