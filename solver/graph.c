/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A definition as a graph: vertices (operations) and edges (one output of one of them).
 *
 * A vertex is named by the digest of its bytes as they came, and its inputs are named by such
 * digests, so equal operations are one vertex and the graph has no cycles. The last element of a
 * definition is its terminal: no operation, only one input, which is the result.
 *
 * Vertices stand in an array with inputs before their users. That order replaces recursion: names
 * are made upwards, what an edge needs is marked downwards, and solving is one pass upwards over
 * what is marked. Chains of 100,000 vertices cost what 100,000 vertices cost.
 *
 * The names of merge and diff hold those of their inputs, so that 30 merges of a merge with itself
 * would take 2^30 bytes. One name is kept below NAME_MAX_LEN, and all such names of a graph below
 * NAMES_MAX; beyond, a name says how many inputs there are. No real definition comes near.
 */

#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solve-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* Room for 100,000 vertices and more, and for files in them. They bound what decoding takes, which
 * is a multiple of the input: dozens of bytes for an empty message of two. */
#define DEFINITION_MAX (64u << 20)
#define OP_MAX (16u << 20)
#define VERTICES_MAX 1000000
#define OUTPUTS_MAX 65536
#define NAME_MAX_LEN (64u << 10)
#define NAMES_MAX (16u << 20)
#define PREFIX_HEX_MIN 6

struct graph {
	struct llb_definition definition; /* vertices point into its bytes */
	struct llb_source source;	  /* and into this */
	struct vertex *vertices;	  /* inputs before their users */
	size_t n_vertices;
	struct edge result;
	/* digest -> vertex: open addressing, a power of two, at most half full */
	struct vertex **table;
	size_t table_size;
	size_t names_len;    /* of composed names */
	struct solve *solve; /* NULL until something was solved */
	struct graph *next;  /* of those that solver_free has to free */
	/* by position, see graph_blocked(); NULL until something was to be solved */
	const struct vertex **blocked;
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ operations */

/* A row per operation that can be solved. Sources are told apart by their identifier's scheme. */
static const struct {
	enum op_kind kind;
	const char *scheme;
	const struct op_ops *ops;
} op_rows[] = {
	{OP_SOURCE, "docker-image://", &source_image_op},
	{OP_SOURCE, "oci-layout://", &source_layout_op},
	{OP_SOURCE, "local://", &source_local_op},
	{OP_SOURCE, "http://", &source_http_op},
	{OP_SOURCE, "https://", &source_http_op},
	{OP_SOURCE, "docker-image+blob://", &source_image_blob_op},
	{OP_SOURCE, "oci-layout+blob://", &source_layout_blob_op},
	{OP_SOURCE, "git://", &source_git_op},
	{OP_FILE, NULL, &op_file},
	{OP_MERGE, NULL, &op_merge},
	{OP_DIFF, NULL, &op_diff},
	{OP_BUILD, NULL, &op_build},
	{OP_PASSTHROUGH, NULL, &op_passthrough},
};

static const struct op_ops *op_ops_find(const struct llb_op *op)
{
	for (size_t i = 0; i < countof(op_rows); i++) {
		if (op_rows[i].kind != op->kind)
			continue;
		if (!op_rows[i].scheme || str_starts(op->source.identifier, op_rows[i].scheme))
			return op_rows[i].ops;
	}
	return NULL;
}

/* ------------------------------------------------------------------ lookup */

static struct vertex **slot_of(const struct graph *g, const struct digest *digest)
{
	size_t i = (size_t)le64(digest->bytes) & (g->table_size - 1);
	while (g->table[i] && !digest_equal(&g->table[i]->digest, digest))
		i = (i + 1) & (g->table_size - 1);
	return &g->table[i];
}

static int make_table(struct graph *g, size_t n, struct err *err)
{
	for (g->table_size = 16; g->table_size < n * 2;)
		g->table_size *= 2;
	g->table = calloc(g->table_size, sizeof(struct vertex *));
	return g->table ? 0 : no_memory(err);
}

/* ------------------------------------------------------------------ loading */

static int vertex_load(struct vertex *v, const struct llb_bytes *bytes, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	v->bytes = *bytes;
	if (bytes->n > OP_MAX)
		return err_set(err, -EFBIG, "vertex %s: larger than %u MiB",
			       digest_text(&v->digest, text), OP_MAX >> 20);
	int r = llb_op_decode(&v->op, bytes, err);
	if (r < 0)
		return err_wrap(err, r, "vertex %s", digest_text(&v->digest, text));
	v->ops = op_ops_find(&v->op);
	v->n_outputs = v->op.kind == OP_FILE	      ? v->op.file.n_outputs
		       : v->op.kind == OP_PASSTHROUGH ? v->op.passthrough.n_outputs
						      : 1;
	if (v->op.kind == OP_EXEC)
		for (size_t i = 0; i < v->op.exec.n_mounts; i++) {
			int64_t output = v->op.exec.mounts[i].output;
			if (output >= (int64_t)v->n_outputs && output < OUTPUTS_MAX)
				v->n_outputs = (size_t)output + 1;
		}
	v->inputs = calloc(v->op.n_inputs + 1, sizeof(*v->inputs));
	return v->inputs ? 0 : no_memory(err);
}

/* Decodes every op but the terminal; equal ones become one. */
static int load_vertices(struct graph *g, struct err *err)
{
	const struct llb_definition *d = &g->definition;
	int r = make_table(g, d->n_ops, err);
	if (r < 0)
		return r;
	g->vertices = calloc(d->n_ops, sizeof(*g->vertices));
	if (!g->vertices)
		return no_memory(err);
	for (size_t i = 0; i + 1 < d->n_ops; i++) {
		const struct llb_bytes *bytes = &d->ops[i];
		struct digest digest;
		digest_bytes(&digest, bytes->bytes, bytes->n);
		struct vertex **slot = slot_of(g, &digest);
		if (*slot)
			continue;
		struct vertex *v = &g->vertices[g->n_vertices++];
		v->digest = digest;
		*slot = v;
		r = vertex_load(v, bytes, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int link_inputs(struct graph *g, struct err *err)
{
	char text[DIGEST_TEXT_MAX], input[DIGEST_TEXT_MAX];
	for (size_t i = 0; i < g->n_vertices; i++) {
		struct vertex *v = &g->vertices[i];
		for (size_t k = 0; k < v->op.n_inputs; k++) {
			const struct llb_input *from = &v->op.inputs[k];
			struct vertex *found = *slot_of(g, &from->digest);
			if (!found)
				return err_set(err, -EBADMSG,
					       "vertex %s (%s): input %zu, %s, is not in the "
					       "definition",
					       digest_text(&v->digest, text), vertex_op(v), k,
					       digest_text(&from->digest, input));
			v->inputs[k] = (struct edge){found, from->index};
		}
	}
	return 0;
}

static int load_result(struct graph *g, struct err *err)
{
	const struct llb_definition *d = &g->definition;
	struct llb_op terminal;
	int r = llb_op_decode(&terminal, &d->ops[d->n_ops - 1], err);
	if (r < 0)
		return err_wrap(err, r, "terminal");
	char text[DIGEST_TEXT_MAX];
	if (terminal.kind != OP_UNKNOWN || terminal.n_inputs != 1)
		r = err_set(err, -EBADMSG,
			    "the last element must be the terminal: one input, no op");
	else if (!(g->result.vertex = *slot_of(g, &terminal.inputs[0].digest)))
		r = err_set(err, -EBADMSG, "the result, %s, is not in the definition",
			    digest_text(&terminal.inputs[0].digest, text));
	else
		g->result.index = terminal.inputs[0].index;
	llb_op_deinit(&terminal);
	return r;
}

/* ------------------------------------------------------------------ order */

/* Depth-first with a stack of its own; position is 0 until a vertex is placed, then its place + 1;
 * ON_STACK in between. */
#define ON_STACK SIZE_MAX

struct visit {
	struct vertex *vertex;
	size_t next; /* input to look at */
};

static int place_all(struct graph *g, struct visit *stack, struct err *err)
{
	size_t n_placed = 0;
	for (size_t i = 0; i < g->n_vertices; i++) {
		if (g->vertices[i].position != 0)
			continue;
		size_t depth = 0;
		stack[depth++] = (struct visit){&g->vertices[i], 0};
		g->vertices[i].position = ON_STACK;
		while (depth > 0) {
			struct visit *top = &stack[depth - 1];
			if (top->next == top->vertex->op.n_inputs) {
				top->vertex->position = ++n_placed;
				depth--;
				continue;
			}
			struct vertex *input = top->vertex->inputs[top->next++].vertex;
			/* A cycle would need a digest that contains itself. */
			if (input->position == ON_STACK)
				return err_set(err, -EBADMSG, "a cycle of vertices");
			if (input->position == 0) {
				input->position = ON_STACK;
				stack[depth++] = (struct visit){input, 0};
			}
		}
	}
	return 0;
}

/* Moves the vertices to their places and mends what points to them. */
static int reorder(struct graph *g, struct err *err)
{
	scoped(free) struct visit *stack = calloc(g->n_vertices + 1, sizeof(*stack));
	struct vertex *placed = calloc(g->n_vertices + 1, sizeof(*placed));
	if (!stack || !placed) {
		free(placed);
		return no_memory(err);
	}
	int r = place_all(g, stack, err);
	if (r < 0) {
		free(placed);
		return r;
	}
	for (size_t i = 0; i < g->n_vertices; i++) {
		struct vertex *v = &g->vertices[i];
		for (size_t k = 0; k < v->op.n_inputs; k++)
			v->inputs[k].vertex = &placed[v->inputs[k].vertex->position - 1];
	}
	for (size_t i = 0; i < g->table_size; i++)
		if (g->table[i])
			g->table[i] = &placed[g->table[i]->position - 1];
	g->result.vertex = &placed[g->result.vertex->position - 1];
	for (size_t i = 0; i < g->n_vertices; i++) {
		size_t place = g->vertices[i].position - 1;
		placed[place] = g->vertices[i];
		placed[place].position = place;
	}
	free(g->vertices);
	g->vertices = placed;
	return 0;
}

/* ------------------------------------------------------------------ metadata and names */

/* ", Dockerfile:12": where the vertex begins in its source; "" when the definition does not say. */
static char *place_text(const struct vertex *v, char buf[96])
{
	buf[0] = 0;
	for (size_t i = 0; i < v->n_locations && !buf[0]; i++) {
		const struct source_location *at = &v->locations[i];
		if (at->n_ranges && at->file[0])
			snprintf(buf, 96, ", %.80s:%d", at->file, at->ranges[0].line);
	}
	return buf;
}

static int check_caps(const struct vertex *v, struct err *err)
{
	char text[DIGEST_TEXT_MAX], place[96];
	for (size_t i = 0; i < v->metadata.n_caps; i++)
		if (!llb_cap_is_known(v->metadata.caps[i]))
			return err_set(err, -ENOTSUP,
				       "vertex %s (%s%s) requires the capability \"%.80s\", which "
				       "is not known here",
				       digest_text(&v->digest, text), vertex_op(v),
				       place_text(v, place), v->metadata.caps[i]);
	return 0;
}

static int load_metadata(struct graph *g, struct err *err)
{
	char text[DIGEST_TEXT_MAX];
	const struct llb_definition *d = &g->definition;
	for (size_t i = 0; i < d->n_metadata; i++) {
		struct vertex *v = *slot_of(g, &d->metadata[i].digest);
		if (!v) /* the terminal has some, too */
			continue;
		llb_metadata_deinit(&v->metadata); /* of equal keys the last counts */
		int r = llb_metadata_decode(&v->metadata, &d->metadata[i].metadata, err);
		if (r < 0)
			return err_wrap(err, r, "metadata of vertex %s",
					digest_text(&v->digest, text));
		r = check_caps(v, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int load_source(struct graph *g, struct err *err)
{
	int r = llb_source_decode(&g->source, &g->definition.source, err);
	for (size_t i = 0; i < g->source.n_vertices; i++) {
		const struct llb_source_vertex *from = &g->source.vertices[i];
		struct vertex *v = *slot_of(g, &from->digest);
		if (!v)
			continue;
		v->locations = from->locations;
		v->n_locations = from->n_locations;
	}
	return r < 0 ? err_wrap(err, r, "source map") : 0;
}

static const char *side_name(const struct vertex *v, ssize_t input)
{
	return input < 0 ? "scratch" : v->inputs[input].vertex->name;
}

/* The length of a name that holds its inputs' names. */
static size_t composed_len(const struct vertex *v)
{
	size_t len = 32;
	if (v->op.kind == OP_DIFF)
		return len + strlen(side_name(v, v->op.diff.lower)) +
		       strlen(side_name(v, v->op.diff.upper));
	for (size_t i = 0; i < v->op.merge.n_inputs && len <= NAME_MAX_LEN; i++)
		len += strlen(side_name(v, (ssize_t)v->op.merge.inputs[i].input)) + 2;
	return len;
}

static char *compose_name(struct graph *g, const struct vertex *v)
{
	size_t len = composed_len(v);
	if (len > NAME_MAX_LEN || len > NAMES_MAX - g->names_len)
		return str_printf("%s (%zu inputs)", vertex_op(v), v->op.n_inputs);
	g->names_len += len;
	if (v->op.kind == OP_DIFF)
		return str_printf("diff (%s) -> (%s)", side_name(v, v->op.diff.lower),
				  side_name(v, v->op.diff.upper));
	scoped(strbuf_free) struct strbuf name = {0};
	strbuf_puts(&name, "merge (");
	for (size_t i = 0; i < v->op.merge.n_inputs; i++) {
		strbuf_puts(&name, i ? ", " : "");
		strbuf_puts(&name, side_name(v, (ssize_t)v->op.merge.inputs[i].input));
	}
	strbuf_puts(&name, ")");
	return strbuf_finish(&name);
}

static int name_all(struct graph *g, struct err *err)
{
	for (size_t i = 0; i < g->n_vertices; i++) {
		struct vertex *v = &g->vertices[i];
		const struct llb_metadata *m = &v->metadata;
		for (size_t k = m->n_descriptions; k-- > 0 && !v->name;) /* the last counts */
			if (strcmp(m->descriptions[k].key, "llb.customname") == 0)
				v->name = strdup(m->descriptions[k].value);
		if (!v->name)
			v->name = v->op.label ? take(v->op.label) : compose_name(g, v);
		if (!v->name)
			return no_memory(err);
	}
	return 0;
}

/* ------------------------------------------------------------------ the door */

/* Definitions have two more forms, which begin as JSON does; no protobuf begins so. */
static bool is_json(const void *bytes, size_t n)
{
	const char *p = bytes;
	while (n > 0 && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r'))
		p++, n--;
	return n > 0 && *p == '{';
}

static int graph_init(struct graph *g, const void *bytes, size_t n, struct err *err)
{
	if (n > DEFINITION_MAX)
		return err_set(err, -EFBIG, "larger than %u MiB", DEFINITION_MAX >> 20);
	scoped(strbuf_free) struct strbuf encoded = {0};
	int r = 0;
	if (is_json(bytes, n)) {
		r = llb_json_encode(&encoded, bytes, n, err);
		bytes = encoded.data;
		n = encoded.len;
	}
	if (r == 0)
		r = llb_definition_decode(&g->definition, bytes, n, err);
	if (r < 0)
		return r;
	if (g->definition.n_ops < 2)
		return err_set(err, -EBADMSG, "empty: wants a vertex and the terminal");
	if (g->definition.n_ops > VERTICES_MAX)
		return err_set(err, -EFBIG, "more than %d vertices", VERTICES_MAX);
	r = load_vertices(g, err);
	if (r == 0)
		r = link_inputs(g, err);
	if (r == 0)
		r = load_result(g, err);
	if (r == 0)
		r = reorder(g, err);
	if (r == 0)
		r = load_source(g, err);
	if (r == 0)
		r = load_metadata(g, err);
	return r < 0 ? r : name_all(g, err);
}

int graph_load(struct graph **out, const void *bytes, size_t n, struct err *err)
{
	scoped(graph_free) struct graph *g = calloc(1, sizeof(*g));
	if (!g)
		return no_memory(err);
	int r = graph_init(g, bytes, n, err);
	if (r < 0)
		return err_wrap(err, r, "definition");
	*out = take(g);
	return 0;
}

static void graph_free_now(struct graph *g)
{
	solve_free(g->solve);
	free(g->blocked);
	for (size_t i = 0; i < g->n_vertices; i++) {
		struct vertex *v = &g->vertices[i];
		for (size_t k = 0; v->outputs && k < v->n_outputs; k++)
			ref_unref(v->outputs[k]);
		free(v->outputs);
		if (v->asked)
			v->ops->asked_free(v->asked);
		llb_op_deinit(&v->op);
		llb_metadata_deinit(&v->metadata);
		free(v->inputs);
		free(v->name);
	}
	free(g->vertices);
	free(g->table);
	llb_definition_deinit(&g->definition);
	llb_source_deinit(&g->source);
	free(g);
}

void graph_free(struct graph *g)
{
	if (!g)
		return;
	if (!g->solve || solve_stop(g->solve)) {
		graph_free_now(g);
		return;
	}
	struct solver *solver = g->solve->solver;
	pthread_mutex_lock(&solver->lock);
	g->next = solver->busy_graphs;
	solver->busy_graphs = g;
	pthread_mutex_unlock(&solver->lock);
}

void graph_free_busy(struct solver *solver)
{
	for (;;) {
		pthread_mutex_lock(&solver->lock);
		struct graph *g = solver->busy_graphs;
		if (g)
			solver->busy_graphs = g->next;
		pthread_mutex_unlock(&solver->lock);
		if (!g)
			return;
		graph_free_now(g);
	}
}

size_t graph_count(const struct graph *g)
{
	return g->n_vertices;
}

struct vertex *graph_vertex(struct graph *g, size_t i)
{
	return &g->vertices[i];
}

int graph_find(struct graph *g, const char *text, struct vertex **out, struct err *err)
{
	const char *hex = str_starts(text, "sha256:") ? text + 7 : text;
	size_t n = strlen(hex);
	if (n < PREFIX_HEX_MIN || n > 64 || strspn(hex, "0123456789abcdef") != n)
		return err_set(err, -EINVAL,
			       "\"%s\": want a digest or at least %d hex digits of it", text,
			       PREFIX_HEX_MIN);
	struct vertex *found = NULL;
	for (size_t i = 0; i < g->n_vertices; i++) {
		char full[DIGEST_HEX_MAX];
		if (!str_starts(digest_hex(&g->vertices[i].digest, full), hex))
			continue;
		if (found)
			return err_set(err, -EEXIST, "several vertices begin with \"%s\"", hex);
		found = &g->vertices[i];
	}
	if (!found)
		return err_set(err, -ENOENT, "no vertex begins with \"%s\"", hex);
	*out = found;
	return 0;
}

void graph_result(struct graph *g, struct vertex **vertex, int *index)
{
	*vertex = g->result.vertex;
	*index = g->result.index;
}

const struct digest *vertex_digest(const struct vertex *v)
{
	return &v->digest;
}

const char *vertex_name(const struct vertex *v)
{
	return v->name;
}

const char *vertex_op(const struct vertex *v)
{
	return op_kind_name(v->op.kind);
}

size_t vertex_inputs(const struct vertex *v)
{
	return v->op.n_inputs;
}

void vertex_input(const struct vertex *v, size_t i, struct vertex **from, int *index)
{
	*from = v->inputs[i].vertex;
	*index = v->inputs[i].index;
}

size_t vertex_locations(const struct vertex *v, const struct source_location **out)
{
	*out = v->locations;
	return v->n_locations;
}

static bool has_layer(const struct ref *ref, const struct digest *layer)
{
	const struct ref_layer *layers;
	size_t n = ref && ref_kind(ref) == REF_IMAGE ? ref_layers(ref, &layers) : 0;
	while (n > 0 && !digest_equal(&layers[n - 1].desc.digest, layer))
		n--;
	return n > 0;
}

struct vertex *graph_layer_vertex(struct graph *g, const struct digest *layer)
{
	for (size_t i = 0; i < g->n_vertices; i++)
		for (size_t k = 0; g->vertices[i].outputs && k < g->vertices[i].n_outputs; k++)
			if (has_layer(g->vertices[i].outputs[k], layer))
				return &g->vertices[i];
	return NULL;
}

/* ------------------------------------------------------------------ running */

int vertex_error(const struct vertex *v, int r, struct err *err)
{
	/* The name leaves room for the reason. */
	char text[DIGEST_TEXT_MAX], place[96];
	return err_wrap(err, r, "vertex %s (%.120s%s)", digest_text(&v->digest, text), v->name,
			place_text(v, place));
}

int vertex_cannot_run(const struct vertex *v, struct err *err)
{
	if (v->op.kind != OP_SOURCE)
		return err_set(err, -ENOTSUP, "%s operations cannot be solved yet", vertex_op(v));
	/* "local://" for a source, which says more than "source". */
	const char *identifier = v->op.source.identifier;
	const char *end = strstr(identifier, "://");
	int n = end ? (int)MIN(end - identifier, 40) : 0;
	return err_set(err, -ENOTSUP, "%.*s sources cannot be solved yet", n, identifier);
}

static void find_blocked(const struct graph *g, const struct vertex **blocked)
{
	for (size_t i = 0; i < g->n_vertices; i++) {
		const struct vertex *v = &g->vertices[i];
		blocked[i] = v->ops ? NULL : v;
		for (size_t k = 0; v->ops && k < v->op.n_inputs; k++) {
			const struct vertex *by = blocked[v->inputs[k].vertex->position];
			if (by && (!blocked[i] || by->position > blocked[i]->position))
				blocked[i] = by;
		}
	}
}

int graph_blocked(struct graph *g, const struct vertex *v, const struct vertex **out,
		  struct err *err)
{
	if (!g->blocked) {
		g->blocked = calloc(g->n_vertices + 1, sizeof(const struct vertex *));
		if (!g->blocked)
			return no_memory(err);
		find_blocked(g, g->blocked);
	}
	*out = g->blocked[v->position];
	return 0;
}

int vertex_has_no_output(int index, struct err *err)
{
	return err_set(err, -EBADMSG, "has no output %d", index);
}

int vertex_run(struct vertex *v, struct solver *solver, struct err *err)
{
	scoped(free) struct ref **inputs = calloc(v->op.n_inputs + 1, sizeof(struct ref *));
	scoped(free) struct ref **outputs = calloc(v->n_outputs, sizeof(struct ref *));
	if (!inputs || !outputs)
		return no_memory(err);
	for (size_t i = 0; i < v->op.n_inputs; i++)
		inputs[i] = v->inputs[i].vertex->outputs[v->inputs[i].index];
	int r = v->ops->ask && !v->asked ? v->ops->ask(v, solver, err) : 0;
	if (r == 0)
		r = v->ops->run(v, solver, inputs, outputs, err);
	if (r < 0)
		return r;
	v->outputs = take(outputs);
	return 0;
}

struct solve **graph_solve_slot(struct graph *g)
{
	return &g->solve;
}
