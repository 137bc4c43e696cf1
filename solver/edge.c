/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Edges: how one output of a vertex gets its ref with as little work as possible.
 *
 * An edge rises through levels, and only as far as somebody wants it to:
 *
 *	FAST	 the keys that its definition gives, once all inputs are FAST: where do keys of the
 *		 inputs lead, in each cache? For a whole graph that is in a cache this is one look-up
 *		 a vertex, from the sources up, and nothing else happens.
 *	SLOW	 when no result was found so: inputs that led nowhere are asked for more keys (an image
 *		 for its layers, a copy for what it copies), and where an op has a look at the content of
 *		 an input, that input is completed and what the op takes of it is hashed. First only the
 *		 inputs that led nowhere: when one of them cannot match by content either, no result can
 *		 be found, and the rest is left alone.
 *	COMPLETE the ref: of the newest result that can be loaded; else all inputs are completed and the
 *		 op runs, once a vertex. The result is kept under all keys that are known by then.
 *
 * So the inputs of what is found in a cache are never completed, and of a long chain only the last
 * result is loaded.
 *
 * Before an op runs it takes a lock that all processes name alike, and looks again: who waited for
 * the lock finds the result of who had it. The name is the *identity* of the vertex: its key's
 * digest and those of its inputs, all the way down; content takes the place of an input that is
 * random (a local source). Two vertices of one graph with one identity are one, too.
 *
 * Nothing here recurses and nothing waits: edge_advance() takes the steps that can be taken now.
 * What an edge waits for counts it down and puts it back on the queue. A failure goes up at once, to
 * edges that wait for something else, too.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solve-internal.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ making and freeing */

void edge_free(struct edge_state *e, size_t n_caches)
{
	for (size_t i = 0; e->query && i < n_caches; i++)
		cache_keys_deinit(&e->query[i]);
	free(e->query);
	cache_keys_deinit(&e->kept);
	vec_free(&e->waiters);
	vec_free(&e->bad);
	free(e->matched);
	free(e->err);
	ref_unref(e->ref);
	free(e);
}

void vertex_state_free(struct vertex_state *vs, size_t n_caches)
{
	for (size_t i = 0; i < vs->edges.n; i++)
		edge_free(vs->edges.items[i], n_caches);
	vec_free(&vs->edges);
	vertex_keys_deinit(&vs->keys);
	pthread_mutex_destroy(&vs->work);
	free(vs->deps);
	free(vs);
}

static struct vertex_state *vertex_get(struct solve *s, struct vertex *v)
{
	struct vertex_state **slot = &s->vertices[v->position];
	if (*slot)
		return *slot;
	struct vertex_state *vs = calloc(1, sizeof(*vs));
	if (!vs)
		return NULL;
	vs->v = v;
	pthread_mutex_init(&vs->work, NULL);
	vs->n_deps = v->op.n_inputs;
	vs->deps = calloc(vs->n_deps + 1, sizeof(*vs->deps));
	if (!vs->deps) {
		free(vs);
		return NULL;
	}
	return *slot = vs;
}

int edge_get(struct solve *s, struct vertex *v, int output, struct edge_state **out)
{
	struct vertex_state *vs = vertex_get(s, v);
	for (size_t i = 0; vs && i < vs->edges.n; i++)
		if (vs->edges.items[i]->output == output) {
			*out = vs->edges.items[i];
			return 0;
		}
	struct edge_state *e = vs ? calloc(1, sizeof(*e)) : NULL;
	if (!e)
		return -ENOMEM;
	e->vertex = vs;
	e->output = output;
	e->query = calloc(s->n_caches, sizeof(*e->query));
	e->matched = calloc(vs->n_deps + 1, sizeof(*e->matched));
	struct edge_state **slot = e->query && e->matched ? vec_push(&vs->edges) : NULL;
	if (!slot) {
		edge_free(e, s->n_caches);
		return -ENOMEM;
	}
	*slot = *out = e;
	return 0;
}

/* ------------------------------------------------------------------ waiting */

static void wake(struct solve *s, struct edge_state *e)
{
	size_t kept = 0;
	for (size_t i = 0; i < e->waiters.n; i++) {
		struct edge_waiter w = e->waiters.items[i];
		if (!e->failed && w.level > e->level)
			e->waiters.items[kept++] = w;
		else if (--w.edge->n_waiting == 0 || e->failed)
			solve_push(s, w.edge);
	}
	e->waiters.n = kept;
}

static void rise(struct solve *s, struct edge_state *e, enum edge_level level)
{
	if (e->level >= level)
		return;
	e->level = level;
	wake(s, e);
}

void edge_fail(struct solve *s, struct edge_state *e, int r, const struct err *err)
{
	e->failed = r;
	if (!e->err && (e->err = calloc(1, sizeof(*e->err))) && err)
		*e->err = *err;
	if (e->err && e->err->code == 0)
		err_set(e->err, r, "%s", strerror(-r));
	wake(s, e);
}

void edge_want(struct solve *s, struct edge_state *e, enum edge_level level,
	       struct edge_state *waiter)
{
	if (waiter && !e->failed && e->level < level) {
		struct edge_waiter *slot = vec_push(&e->waiters);
		if (!slot) {
			edge_fail(s, waiter, -ENOMEM, NULL);
			return;
		}
		*slot = (struct edge_waiter){waiter, level};
		waiter->n_waiting++;
	}
	if (e->wanted < level) {
		e->wanted = level;
		if (e->n_waiting == 0)
			solve_push(s, e);
	}
}

static void want_input(struct solve *s, struct edge_state *e, size_t i, enum edge_level level)
{
	edge_want(s, e->vertex->deps[i].edge, level, e);
}

static void want_inputs(struct solve *s, struct edge_state *e, enum edge_level level)
{
	for (size_t i = 0; i < e->vertex->n_deps; i++)
		want_input(s, e, i, level);
}

/* ------------------------------------------------------------------ keys */

bool edge_may_query(const struct solve *s, const struct edge_state *e)
{
	return !s->no_cache && !e->vertex->v->metadata.ignore_cache;
}

const struct digest *edge_record(const struct edge_state *e)
{
	const struct vertex_keys *keys = &e->vertex->keys;
	for (size_t i = 0; i < keys->n_records; i++)
		if (keys->records[i].output == e->output)
			return &keys->records[i].digest.digest;
	return NULL;
}

static const struct cache_input *input_of(const struct vertex_state *vs, size_t i)
{
	return i < vs->keys.n_inputs ? &vs->keys.inputs[i] : NULL;
}

static bool has_content(const struct vertex_state *vs, size_t i)
{
	const struct cache_input *input = input_of(vs, i);
	return input && input->content != CONTENT_NONE;
}

/* Keys of @input that may lead to a result: what it was found under, or what it was kept under when
 * it ran, which another process may have gone on from meanwhile. */
static const struct cache_keys *keys_of_input(const struct solve *s, const struct edge_state *input,
					      size_t c)
{
	bool has_run = c == 0 && input->level == LEVEL_COMPLETE && edge_may_query(s, input);
	return has_run && input->kept.n ? &input->kept : &input->query[c];
}

/* Where the keys of one input lead in one cache. */
static int match_input(const struct solve *s, const struct edge_state *e, struct cache *cache,
		       size_t c, size_t i, struct cache_keys *out, bool *lacks_links,
		       struct err *err)
{
	const struct solve_dep *dep = &e->vertex->deps[i];
	const struct cache_input *input = input_of(e->vertex, i);
	const struct digest *record = edge_record(e);
	const struct digest *selector = input && input->has_selector ? &input->selector : NULL;
	const struct cache_keys *from = keys_of_input(s, dep->edge, c);
	size_t n_ways = 0, n_leading = 0;
	int r = 0;
	for (size_t k = 0; k < from->n && r == 0; k++, n_ways++) {
		size_t before = out->n;
		r = cache->ops->links(cache, from->items[k], i, record, selector, out, err);
		n_leading += out->n > before || (out->n && k > 0);
	}
	if (r == 0 && dep->state == CONTENT_KNOWN) {
		scoped(cache_keys_deinit) struct cache_keys root = {0};
		scoped(cache_keys_deinit) struct cache_keys to = {0};
		r = cache->ops->root(cache, &dep->record, &root, err);
		if (r == 0 && root.n)
			r = cache->ops->links(cache, root.items[0], i, record, NULL, &to, err);
		n_ways++;
		n_leading += to.n > 0;
		for (size_t k = 0; k < to.n && r == 0; k++)
			r = cache_keys_add(out, to.items[k]);
	}
	*lacks_links = *lacks_links || n_leading < n_ways;
	return r;
}

int edge_match(const struct solve *s, const struct edge_state *e, struct cache_keys *out,
	       bool *matched, bool *lacks_links, struct err *err)
{
	const struct vertex_state *vs = e->vertex;
	bool lacks = false, lacks_any = false;
	int r = 0;
	for (size_t i = 0; matched && i < vs->n_deps; i++)
		matched[i] = false;
	for (size_t c = 0; c < s->n_caches && r == 0; c++) {
		out[c].n = 0;
		for (size_t i = 0; i < vs->n_deps && r == 0; i++) {
			scoped(cache_keys_deinit) struct cache_keys here = {0};
			r = match_input(s, e, s->caches[c], c, i, &here, &lacks, err);
			if (matched && here.n)
				matched[i] = true;
			if (i == 0) {
				out[c] = here;
				here = (struct cache_keys){0};
			} else {
				cache_keys_intersect(&out[c], &here);
			}
		}
		if (c == 0)
			lacks_any = lacks;
	}
	if (lacks_links)
		*lacks_links = lacks_any;
	return r;
}

static int match_root(struct solve *s, struct edge_state *e, struct err *err)
{
	const struct vertex_keys *keys = &e->vertex->keys;
	int r = 0;
	for (size_t c = 0; c < s->n_caches; c++)
		for (size_t i = 0; i < keys->n_records && r == 0; i++) {
			const struct cache_record *record = &keys->records[i];
			if (record->output == e->output && !record->digest.is_random)
				r = s->caches[c]->ops->root(s->caches[c], &record->digest.digest,
							    &e->query[c], err);
		}
	return r;
}

/* Finds the keys of @e anew. */
static int match(struct solve *s, struct edge_state *e, struct err *err)
{
	if (!edge_may_query(s, e) || !edge_record(e))
		return 0;
	if (e->vertex->n_deps == 0)
		return match_root(s, e, err);
	struct cache_keys found[CACHES_MAX] = {0};
	int r = edge_match(s, e, found, e->matched, &e->lacks_links, err);
	for (size_t c = 0; c < s->n_caches; c++) {
		cache_keys_deinit(&e->query[c]);
		e->query[c] = found[c];
	}
	return r;
}

static bool is_better(const struct cache_result *a, int a_priority, const struct cache_result *b,
		      int b_priority)
{
	if (a->created_ns != b->created_ns)
		return a->created_ns > b->created_ns;
	return a_priority < b_priority;
}

int edge_find_result(const struct solve *s, const struct edge_state *e,
		     const struct cache_keys *keys, struct cache_result *out, struct cache **in,
		     struct err *err)
{
	*in = NULL;
	for (size_t c = 0; c < s->n_caches; c++)
		for (size_t i = 0; i < keys[c].n; i++) {
			struct cache *cache = s->caches[c];
			struct cache_result found;
			int r = cache->ops->result(cache, keys[c].items[i], e->bad.items, e->bad.n,
						   &found, err);
			if (r < 0)
				return r;
			if (r == 1 &&
			    (!*in || is_better(&found, cache->priority, out, (*in)->priority))) {
				*out = found;
				*in = cache;
			}
		}
	return *in != NULL;
}

/* The name of the vertex for everybody. Without one when a random input cannot be told by content. */
static void find_identity(struct vertex_state *vs)
{
	if (vs->has_identity || !vs->keys.n_maps || vs->keys.maps[0].is_random)
		return;
	scoped(strbuf_free) struct strbuf text = {0};
	strbuf_add(&text, vs->keys.maps[0].digest.bytes, sizeof(struct digest));
	for (size_t i = 0; i < vs->n_deps; i++) {
		const struct solve_dep *dep = &vs->deps[i];
		const struct cache_input *input = input_of(vs, i);
		if (dep->edge->vertex->has_identity) {
			strbuf_puts(&text, "i");
			strbuf_add(&text, dep->edge->vertex->identity.bytes, sizeof(struct digest));
			strbuf_printf(&text, "%d", dep->edge->output);
			if (input && input->has_selector)
				strbuf_add(&text, input->selector.bytes, sizeof(struct digest));
		} else if (dep->state == CONTENT_KNOWN) {
			strbuf_puts(&text, "c");
			strbuf_add(&text, dep->content.bytes, sizeof(struct digest));
		} else {
			return;
		}
	}
	if (text.failed)
		return;
	digest_bytes(&vs->identity, text.data, text.len);
	vs->has_identity = true;
}

/* ------------------------------------------------------------------ steps
 * Each returns 0 to go on with the next one, or an error. A step that has made the edge wait is
 * followed by the next one when the waiting is over. */

/* The step after this one. */
static void go_to(struct edge_state *e, enum edge_step step)
{
	e->step = step - 1;
}

static bool is_found(const struct edge_state *e)
{
	return e->found_in != NULL;
}

static int look(struct solve *s, struct edge_state *e, struct err *err)
{
	int r = match(s, e, err);
	if (r == 0)
		r = edge_find_result(s, e, e->query, &e->found, &e->found_in, err);
	return MIN(r, 0);
}

static int start(struct solve *s, struct edge_state *e, struct err *err)
{
	struct vertex_state *vs = e->vertex;
	if ((size_t)e->output >= vs->v->n_outputs)
		return vertex_has_no_output(e->output, err);
	for (size_t i = 0; i < vs->n_deps; i++) {
		const struct edge *input = &vs->v->inputs[i];
		int r = vs->deps[i].edge
				? 0
				: edge_get(s, input->vertex, input->index, &vs->deps[i].edge);
		if (r < 0)
			return no_memory(err);
		want_input(s, e, i, LEVEL_FAST);
	}
	if (vs->has_keys)
		return 0;
	/* An image that was resolved tells more, from its config, which may have to be fetched. */
	int r = vs->v->outputs ? -ENODATA : vertex_keys(&vs->keys, vs->v, s->solver, false, err);
	vs->has_keys = r == 0;
	if (r != -ENODATA)
		return r;
	*err = (struct err){0};
	solve_post(s, JOB_KEYS, e, 0);
	return 0;
}

static int fast(struct solve *s, struct edge_state *e, struct err *err)
{
	int r = match(s, e, err);
	if (r < 0)
		return r;
	find_identity(e->vertex);
	rise(s, e, LEVEL_FAST);
	return 0;
}

static bool all_matched(const struct edge_state *e)
{
	for (size_t i = 0; i < e->vertex->n_deps; i++)
		if (!e->matched[i])
			return false;
	return true;
}

static int step_look(struct solve *s, struct edge_state *e, struct err *err)
{
	struct vertex_state *vs = e->vertex;
	int r = edge_find_result(s, e, e->query, &e->found, &e->found_in, err);
	if (r < 0)
		return r;
	if (is_found(e) || !edge_may_query(s, e)) {
		go_to(e, STEP_LOOKED);
		return 0;
	}
	if (vs->n_deps == 0) { /* an image has a second key */
		if (!vs->keys.is_whole && !vs->v->outputs)
			solve_post(s, JOB_KEYS, e, 0);
		return 0;
	}
	bool every = all_matched(e);
	for (size_t i = 0; i < vs->n_deps; i++)
		if (every || !e->matched[i])
			want_input(s, e, i, LEVEL_SLOW);
	return 0;
}

/* Which inputs have to be there so that their content can be looked at; none when no result can be
 * found in any case. */
static bool content_would_help(const struct edge_state *e, size_t i, bool every)
{
	const struct vertex_state *vs = e->vertex;
	return (every || !e->matched[i]) && has_content(vs, i) &&
	       vs->deps[i].state == CONTENT_UNKNOWN;
}

static int step_look_keys(struct solve *s, struct edge_state *e, struct err *err)
{
	const struct vertex_state *vs = e->vertex;
	int r = look(s, e, err);
	bool every = all_matched(e), any = false;
	if (r < 0)
		return r;
	bool is_hopeless = is_found(e) || vs->n_deps == 0;
	for (size_t i = 0; i < vs->n_deps && !is_hopeless; i++) {
		bool would = content_would_help(e, i, every);
		any = any || would;
		is_hopeless = !e->matched[i] && !would && vs->deps[i].state != CONTENT_ASKED;
	}
	if (is_hopeless || !any) {
		go_to(e, STEP_LOOKED);
		return 0;
	}
	for (size_t i = 0; i < vs->n_deps; i++)
		if (content_would_help(e, i, every))
			want_input(s, e, i, LEVEL_COMPLETE);
	return 0;
}

static void hash_inputs(struct solve *s, struct edge_state *e)
{
	struct vertex_state *vs = e->vertex;
	for (size_t i = 0; i < vs->n_deps; i++)
		if (has_content(vs, i) && vs->deps[i].state < CONTENT_KNOWN &&
		    vs->deps[i].edge->level == LEVEL_COMPLETE) {
			vs->deps[i].state = CONTENT_ASKED;
			solve_post(s, JOB_CONTENT, e, i);
		}
}

static int step_look_content(struct solve *s, struct edge_state *e, struct err *err)
{
	hash_inputs(s, e);
	/* And again: now there may be nothing left that leads nowhere. */
	go_to(e, STEP_LOOK_KEYS);
	return 0;
}

static int step_looked(struct solve *s, struct edge_state *e, struct err *err)
{
	/* Also of what is never completed: it is part of the names of those above. */
	find_identity(e->vertex);
	rise(s, e, LEVEL_SLOW);
	return 0;
}

/* What the vertex has made already, to learn its key or for another output. */
static struct ref *made(const struct edge_state *e)
{
	const struct vertex *v = e->vertex->v;
	return !e->vertex->n_running && v->outputs && (size_t)e->output < v->n_outputs
		       ? v->outputs[e->output]
		       : NULL;
}

static void complete(struct solve *s, struct edge_state *e, struct ref *ref)
{
	struct vertex *v = e->vertex->v;
	if (!v->outputs && !e->vertex->n_running)
		v->outputs = calloc(v->n_outputs, sizeof(struct ref *));
	if (!e->vertex->n_running && v->outputs && (size_t)e->output < v->n_outputs &&
	    !v->outputs[e->output])
		v->outputs[e->output] = ref_ref(ref);
	if (!e->ref)
		e->ref = ref_ref(ref);
	find_identity(e->vertex);
	go_to(e, STEP_DONE);
	rise(s, e, LEVEL_COMPLETE);
}

/* What the store's cache did not know yet: a result of another cache, or one more way to its own. Not
 * more than a help for the next. */
static void keep_loaded(struct solve *s, struct edge_state *e)
{
	struct err err = {0};
	int r = 0;
	if (e->found_in != s->caches[0])
		r = edge_commit(s, e, e->ref, &err);
	else if (e->lacks_links && e->query[0].n && e->vertex->n_deps)
		r = edge_commit(s, e, NULL, &err);
	if (r < 0)
		log_warn("cannot keep a key: %s", err_text(&err, r));
}

static int step_load(struct solve *s, struct edge_state *e, struct err *err)
{
	int r = e->found_in || !edge_may_query(s, e)
			? 0
			: edge_find_result(s, e, e->query, &e->found, &e->found_in, err);
	if (r < 0)
		return r;
	if (is_found(e) && !made(e)) {
		r = e->found_in == s->caches[0] ? 0 : edge_keep_below(s, e, err);
		if (r == 0)
			solve_post(s, JOB_LOAD, e, 0);
		return r;
	}
	if (is_found(e)) {
		e->vertex->was_cached = true;
		e->ref = ref_ref(made(e));
	}
	return 0;
}

static int step_loaded(struct solve *s, struct edge_state *e, struct err *err)
{
	if (e->ref) {
		for (size_t i = 0; i < e->query[0].n; i++)
			if (cache_keys_add(&e->kept, e->query[0].items[i]) < 0)
				return no_memory(err);
		keep_loaded(s, e);
		solve_started(s, e->vertex);
		if (!e->vertex->is_ended)
			solve_event(s, e->vertex, SOLVE_CACHED, NULL);
		e->vertex->is_ended = true;
		complete(s, e, e->ref);
	} else if (is_found(e)) { /* it could not be loaded: is there another? */
		struct digest *slot = vec_push(&e->bad);
		if (!slot)
			return no_memory(err);
		*slot = e->found.ref;
		e->found_in = NULL;
		go_to(e, STEP_LOAD);
	}
	return 0;
}

static int step_inputs(struct solve *s, struct edge_state *e, struct err *err)
{
	if (!e->vertex->v->ops)
		return vertex_cannot_run(e->vertex->v, err);
	want_inputs(s, e, LEVEL_COMPLETE);
	return 0;
}

static int step_content(struct solve *s, struct edge_state *e, struct err *err)
{
	hash_inputs(s, e);
	return 0;
}

static int step_hashed(struct solve *s, struct edge_state *e, struct err *err)
{
	int r = look(s, e, err);
	find_identity(e->vertex);
	if (r == 0 && is_found(e))
		go_to(e, STEP_LOAD);
	return r;
}

/* The vertex that runs, or ran, what @vs would; @vs itself when it is the first. One that must not
 * be taken from a cache follows nobody. */
static struct vertex_state *leader_of(struct solve *s, struct vertex_state *vs)
{
	if (!vs->has_identity || vs->v->metadata.ignore_cache)
		return vs;
	size_t i = (size_t)le64(vs->identity.bytes) & (s->n_leaders - 1);
	while (s->leaders[i] && !digest_equal(&s->leaders[i]->identity, &vs->identity))
		i = (i + 1) & (s->n_leaders - 1);
	if (!s->leaders[i])
		s->leaders[i] = vs;
	return s->leaders[i];
}

static int step_run(struct solve *s, struct edge_state *e, struct err *err)
{
	struct vertex_state *leader = leader_of(s, e->vertex);
	struct edge_state *other;
	if (leader == e->vertex) {
		solve_post(s, JOB_RUN, e, 0);
		return 0;
	}
	if (edge_get(s, leader->v, e->output, &other) < 0)
		return no_memory(err);
	edge_want(s, other, LEVEL_COMPLETE, e);
	return 0;
}

static int copy_from_leader(struct solve *s, struct edge_state *e, struct err *err)
{
	struct vertex_state *leader = leader_of(s, e->vertex);
	struct edge_state *other;
	if (leader == e->vertex)
		return 0;
	if (edge_get(s, leader->v, e->output, &other) < 0)
		return no_memory(err);
	if (other->failed)
		return err_set(err, other->failed, "%s", err_text(other->err, other->failed));
	e->ref = ref_ref(other->ref);
	e->vertex->was_cached = true;
	for (size_t i = 0; i < other->kept.n; i++)
		if (cache_keys_add(&e->kept, other->kept.items[i]) < 0)
			return no_memory(err);
	return 0;
}

static int step_ran(struct solve *s, struct edge_state *e, struct err *err)
{
	int r = e->ref ? 0 : copy_from_leader(s, e, err);
	if (r < 0)
		return r;
	if (!e->ref)
		return vertex_has_no_output(e->output, err);
	solve_started(s, e->vertex);
	if (!e->vertex->is_ended)
		solve_event(s, e->vertex, e->vertex->was_cached ? SOLVE_CACHED : SOLVE_DONE, NULL);
	e->vertex->is_ended = true;
	complete(s, e, e->ref);
	return 0;
}

/* ------------------------------------------------------------------ going on */

static const struct {
	int (*go)(struct solve *s, struct edge_state *e, struct err *err);
	enum edge_level wanted; /* gone only when this is wanted */
} steps[] = {
	[STEP_START] = {start, LEVEL_FAST},
	[STEP_FAST] = {fast, LEVEL_FAST},
	[STEP_LOOK] = {step_look, LEVEL_SLOW},
	[STEP_LOOK_KEYS] = {step_look_keys, LEVEL_SLOW},
	[STEP_LOOK_CONTENT] = {step_look_content, LEVEL_SLOW},
	[STEP_LOOKED] = {step_looked, LEVEL_SLOW},
	[STEP_LOAD] = {step_load, LEVEL_COMPLETE},
	[STEP_LOADED] = {step_loaded, LEVEL_COMPLETE},
	[STEP_INPUTS] = {step_inputs, LEVEL_COMPLETE},
	[STEP_CONTENT] = {step_content, LEVEL_COMPLETE},
	[STEP_HASHED] = {step_hashed, LEVEL_COMPLETE},
	[STEP_RUN] = {step_run, LEVEL_COMPLETE},
	[STEP_RAN] = {step_ran, LEVEL_COMPLETE},
};

/* An input that has failed is why this one fails, too: its reason, unchanged. */
static const struct edge_state *failed_input(const struct edge_state *e)
{
	for (size_t i = 0; i < e->vertex->n_deps; i++) {
		const struct edge_state *input = e->vertex->deps[i].edge;
		if (input && input->failed)
			return input;
	}
	return NULL;
}

/* Puts the vertex before @err. */
static void tell_failure(struct solve *s, struct vertex_state *vs, int r, struct err *err)
{
	solve_started(s, vs);
	if (!vs->is_ended)
		solve_event(s, vs, SOLVE_FAILED, err_text(err, r));
	vs->is_ended = true;
	vertex_error(vs->v, r, err);
}

void edge_advance(struct solve *s, struct edge_state *e)
{
	while (!e->failed && e->step < STEP_DONE && e->wanted >= steps[e->step].wanted) {
		struct err err = {0};
		const struct edge_state *input = failed_input(e);
		if (e->n_waiting && !input)
			return;
		int r = input ? input->failed : steps[e->step].go(s, e, &err);
		e->step++;
		if (input && input->err)
			err = *input->err;
		if (r == 0)
			continue;
		if (!input) {
			tell_failure(s, e->vertex, r, &err);
		}
		edge_fail(s, e, r, &err);
	}
}

/* ------------------------------------------------------------------ jobs */

static void edge_done_waiting(struct solve *s, struct edge_state *e)
{
	if (--e->n_waiting == 0)
		solve_push(s, e);
}

void edge_job_done(struct solve *s, struct job *job)
{
	struct edge_state *e = job->edge;
	struct vertex_state *vs = job->vertex;
	switch (job->kind) {
	case JOB_KEYS:
		vs->has_keys = job->r == 0;
		break;
	case JOB_CONTENT:
		if (job->r == 0 && vs->deps[job->input].state < CONTENT_KNOWN) {
			vs->deps[job->input].content = job->content;
			cache_record_digest(&vs->deps[job->input].record, &job->content, -1);
			vs->deps[job->input].state = CONTENT_KNOWN;
		}
		break;
	case JOB_LOAD:
		e->ref = job->ref;
		vs->was_cached = vs->was_cached || e->ref;
		break;
	case JOB_RUN:
		e->ref = job->ref;
		vs->n_running--;
		vs->was_cached = job->was_cached;
		break;
	}
	if (job->r < 0 && !e->failed) {
		tell_failure(s, vs, job->r, &job->err);
		edge_fail(s, e, job->r, &job->err);
	}
	edge_done_waiting(s, e);
}
