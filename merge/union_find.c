/* SPDX-License-Identifier: Apache-2.0 */

/*
 * union_find: what a name means in a union. The rules are at the head of union.c.
 *
 * One small machine decides about a name: it is fed what each contributor has of that name, top
 * first, and says when enough is known (struct found). A lookup feeds it by asking contributors one
 * after another; a listing gathers all entries of all contributors, sorts them, and feeds it name
 * by name. So both give the same answer by construction.
 */

#include "merge/merge.h"

#include <assert.h>

#include "merge/merge-internal.h"

/* From here on a folder is listed rather than its contributors asked one by one. Images have up to
 * 127 layers, whose lookups must not wait for layers that a name does not need. */
/* How long something made of live inputs is used, at least. */
#define LIVE_NS NS_PER_S
/* ... and how many times as long as it took to make. */
#define LIVE_COSTS 10

/* ------------------------------------------------------------------ one name */

/* What is known of a name so far. */
struct found {
	struct attr attr; /* type NODE_NONE: nothing yet */
	bool is_done;	  /* what lies lower does not matter */
	bool is_opaque;	  /* because something ended the search, not because nothing was left */
	vec(struct contributor) folders;
};

static void found_deinit(struct found *m)
{
	vec_free(&m->folders);
}

static void found_clear(struct found *m)
{
	m->attr = (struct attr){0};
	m->is_done = m->is_opaque = false;
	m->folders.n = 0;
}

static int found_feed(struct found *m, const struct contributor *from, const struct attr *attr)
{
	assert(!m->is_done);
	if (attr->type != NODE_DIR) {
		if (m->folders.n == 0)
			m->attr = *attr;
		else
			m->is_opaque = true;
		m->is_done = true;
		return 0;
	}
	struct contributor *c = vec_push(&m->folders);
	if (!c)
		return -ENOMEM;
	*c = *from;
	if (m->folders.n == 1 || (m->attr.is_implicit && !attr->is_implicit))
		m->attr = *attr;
	m->is_opaque = m->is_done = attr->is_opaque;
	return 0;
}

/* The answer, once no more is fed: false when the name is not there. */
static bool found_finish(struct found *m, const struct union_tree *u, const struct folder *dir)
{
	m->attr.is_opaque = u->is_raw && m->is_opaque;
	m->attr.is_live |= dir->is_live;
	for (size_t i = 0; i < m->folders.n && !m->attr.is_live; i++) {
		const struct contributor *c = &m->folders.items[i];

		m->attr.is_live = c->id != 0 && u->inputs[c->input].tree->is_live;
	}
	return m->attr.type != NODE_NONE && (m->attr.type != NODE_WHITEOUT || u->is_raw);
}

/* ------------------------------------------------------------------ contributors */

/* A live input may lose a folder between two calls; then it contributes nothing. */
static bool is_missing(const struct input *in, int r)
{
	return r == -ENOENT || (in->tree->is_live && (r == -ENOTDIR || r == -ESTALE));
}

static int stop_listing(void *arg, const char *name, size_t len, const struct attr *attr,
			uint64_t next)
{
	return 1;
}

/* Makes sure that getattr of the root can say whether it is opaque. */
static int settle_root(struct input *in, struct tree_wait *wait, struct err *err)
{
	if (__atomic_load_n(&in->root_opaque, __ATOMIC_RELAXED) != ROOT_OPAQUE_UNKNOWN)
		return 0;
	int r = tree_list(in->tree, in->root, 0, stop_listing, NULL, wait, err);
	return r < 0 ? r : 0;
}

/* The root of an input as an entry of the folder that its add path ends in. */
static int root_entry(const struct union_tree *u, struct input *in, struct attr *out,
		      struct tree_wait *wait, struct err *err)
{
	int r = u->is_raw ? settle_root(in, wait, err) : 0;

	if (r == 0)
		r = tree_getattr(in->tree, in->root, out, wait, err);
	if (r == 0)
		union_attr(in, out);
	return r;
}

/* The one entry of a made-up parent. */
static int made_up_entry(const struct union_tree *u, const struct contributor *c,
			 struct contributor *child, struct attr *out, struct tree_wait *wait,
			 struct err *err)
{
	struct input *in = &u->inputs[c->input];

	*child = (struct contributor){.input = c->input};
	if (c->depth + 1 == in->n_steps) {
		child->id = in->root;
		return root_entry(u, in, out, wait, err);
	}
	child->depth = c->depth + 1;
	union_made_up_attr(out, in->steps[c->depth].id);
	return 0;
}

/* What @c has of @name. */
static int contributor_find(const struct union_tree *u, const struct contributor *c,
			    const char *name, size_t len, struct contributor *child,
			    struct attr *out, struct tree_wait *wait, struct err *err)
{
	struct input *in = &u->inputs[c->input];

	if (c->id == 0) {
		const struct add_step *s = &in->steps[c->depth];

		if (s->len != len || memcmp(in->add + s->off, name, len) != 0)
			return -ENOENT;
		return made_up_entry(u, c, child, out, wait, err);
	}
	int r = tree_lookup(in->tree, c->id, name, len, out, wait, err);
	if (r < 0)
		return r;
	*child = (struct contributor){.input = c->input, .id = out->id};
	union_attr(in, out);
	return 0;
}

/* After @c has answered: does it hide what lies below? 1 = yes. Only an input's root has to be
 * asked; of other folders it was known when they became contributors. */
static int contributor_ends(const struct union_tree *u, const struct contributor *c,
			    struct err *err)
{
	struct input *in = &u->inputs[c->input];
	struct attr attr;

	if (c->id == 0 || c->id != in->root)
		return 0;
	uint8_t known = __atomic_load_n(&in->root_opaque, __ATOMIC_RELAXED);
	if (known != ROOT_OPAQUE_UNKNOWN)
		return known == ROOT_OPAQUE_YES;
	int r = tree_getattr(in->tree, in->root, &attr, NULL, err);
	if (r < 0)
		return is_missing(in, r) ? 0 : r;
	known = attr.is_opaque ? ROOT_OPAQUE_YES : ROOT_OPAQUE_NO;
	if (!in->tree->is_live)
		__atomic_store_n(&in->root_opaque, known, __ATOMIC_RELAXED);
	return attr.is_opaque;
}

static int find_by_asking(const struct union_tree *u, const struct folder *f, const char *name,
			  size_t len, struct found *m, struct tree_wait *wait, struct err *err)
{
	for (size_t i = 0; i < f->n_contributors; i++) {
		const struct contributor *c = &f->contributors[i];
		struct contributor child;
		struct attr attr;

		int r = contributor_find(u, c, name, len, &child, &attr, wait, err);
		if (r == 0)
			r = found_feed(m, &child, &attr);
		else if (is_missing(&u->inputs[c->input], r))
			r = 0;
		if (r < 0)
			return r;
		if (m->is_done)
			break;
		r = contributor_ends(u, c, err);
		if (r < 0)
			return r;
		if (r > 0)
			break;
	}
	return 0;
}

/* ------------------------------------------------------------------ listings */

/* What one contributor has of one name. */
struct gathered {
	struct attr attr;
	struct contributor child;
	size_t name_off;
	uint32_t name_len;
	uint32_t order; /* 0 = the top contributor */
};
struct gathering {
	const struct input *in; /* being listed */
	uint32_t input, order;
	vec(struct gathered) entries;
	struct strbuf names;
};

static int gather(struct gathering *g, const char *name, size_t len, const struct attr *attr,
		  const struct contributor *child)
{
	struct gathered *e = vec_push(&g->entries);

	if (!e)
		return -ENOMEM;
	*e = (struct gathered){
		.attr = *attr,
		.child = *child,
		.name_off = g->names.len,
		.name_len = (uint32_t)len,
		.order = g->order,
	};
	strbuf_add(&g->names, name, len);
	return g->names.failed ? -ENOMEM : 0;
}

static int gather_entry(void *arg, const char *name, size_t len, const struct attr *attr,
			uint64_t next)
{
	struct gathering *g = arg;
	const struct contributor child = {.input = g->input, .id = attr->id};
	struct attr own = *attr;

	union_attr(g->in, &own);
	return gather(g, name, len, &own, &child);
}

static int gather_contributor(const struct union_tree *u, const struct contributor *c,
			      struct gathering *g, struct tree_wait *wait, struct err *err)
{
	struct input *in = &u->inputs[c->input];
	struct contributor child;
	struct attr attr;
	int r;

	g->in = in;
	g->input = c->input;
	if (c->id == 0) {
		const struct add_step *s = &in->steps[c->depth];

		r = made_up_entry(u, c, &child, &attr, wait, err);
		if (r == 0)
			r = gather(g, in->add + s->off, s->len, &attr, &child);
	} else {
		r = tree_list(in->tree, c->id, 0, gather_entry, g, wait, err);
	}
	return r < 0 && is_missing(in, r) ? 0 : r;
}

static int gathered_compare(const void *left, const void *right, void *names)
{
	const struct gathered *a = left, *b = right;
	int c = memcmp((char *)names + a->name_off, (char *)names + b->name_off,
		       MIN(a->name_len, b->name_len));

	if (c == 0)
		c = (a->name_len > b->name_len) - (a->name_len < b->name_len);
	return c != 0 ? c : (a->order > b->order) - (a->order < b->order);
}

static bool is_same_name(const struct gathering *g, const struct gathered *a,
			 const struct gathered *b)
{
	return a->name_len == b->name_len &&
	       memcmp(g->names.data + a->name_off, g->names.data + b->name_off, a->name_len) == 0;
}

static int list_add(struct folder_list *l, const struct gathering *g, const struct gathered *first,
		    const struct found *m)
{
	struct folder_entry *e = vec_push(&l->entries);

	if (!e)
		return -ENOMEM;
	*e = (struct folder_entry){
		.attr = m->attr,
		.name_off = l->names.len,
		.name_len = first->name_len,
		.n_contributors = (uint32_t)m->folders.n,
		.first_contributor = l->contributors.n,
	};
	strbuf_add(&l->names, g->names.data + first->name_off, first->name_len);
	/* Listings hand names on as C strings. */
	strbuf_add(&l->names, "", 1);
	for (size_t i = 0; i < m->folders.n; i++) {
		struct contributor *c = vec_push(&l->contributors);
		if (!c)
			return -ENOMEM;
		*c = m->folders.items[i];
	}
	return l->names.failed ? -ENOMEM : 0;
}

/* Sorts what was gathered and decides about each name. */
static int list_fill(struct folder_list *l, const struct union_tree *u, const struct folder *f,
		     struct gathering *g)
{
	struct gathered *all = g->entries.items;
	struct found m = {0};
	int r = 0;

	if (g->entries.n > 1)
		qsort_r(all, g->entries.n, sizeof(*all), gathered_compare, g->names.data);
	for (size_t i = 0, first; r == 0 && i < g->entries.n;) {
		found_clear(&m);
		for (first = i; i < g->entries.n && is_same_name(g, &all[i], &all[first]); i++) {
			if (r == 0 && !m.is_done)
				r = found_feed(&m, &all[i].child, &all[i].attr);
		}
		if (r == 0 && found_finish(&m, u, f))
			r = list_add(l, g, &all[first], &m);
	}
	found_deinit(&m);
	return r;
}

/* Waits for contributors from where it waited last. Without this a folder of thousands of layers
 * that become ready one after another would be gathered anew for each of them. */
static int await_many(const struct union_tree *u, struct folder *f, struct tree_wait *wait,
		      struct err *err)
{
	size_t i = __atomic_load_n(&f->n_answered, __ATOMIC_RELAXED);
	int r = 0;

	for (; r >= 0 && i < f->n_contributors; i++) {
		const struct contributor *c = &f->contributors[i];
		const struct input *in = &u->inputs[c->input];

		/* Live ones never wait, and listing them is what costs. */
		if (c->id == 0 || in->tree->is_live)
			continue;
		r = tree_list(in->tree, c->id, 0, stop_listing, NULL, wait, err);
		__atomic_store_n(&f->n_answered, r < 0 ? i : i + 1, __ATOMIC_RELAXED);
	}
	return r < 0 ? r : 0;
}

static int list_make(struct union_tree *u, struct folder *f, struct folder_list **out,
		     struct tree_wait *wait, struct err *err)
{
	scoped(folder_list_unref) struct folder_list *l = folder_list_new();
	struct gathering g = {0};
	uint64_t start_ns = now_ns();
	int r = l ? 0 : -ENOMEM;

	if (r == 0 && f->n_contributors >= u->many)
		r = await_many(u, f, wait, err);
	for (; r == 0 && g.order < f->n_contributors; g.order++) {
		const struct contributor *c = &f->contributors[g.order];

		r = gather_contributor(u, c, &g, wait, err);
		if (r == 0)
			r = contributor_ends(u, c, err);
	}
	if (r >= 0)
		r = list_fill(l, u, f, &g);
	vec_free(&g.entries);
	strbuf_free(&g.names);
	if (r < 0)
		return r;
	l->made_ns = now_ns();
	l->cost_ns = l->made_ns - start_ns;
	folder_cache_set_list(&u->cache, f, l);
	*out = take(l);
	return 0;
}

static bool is_fresh(const struct folder_list *l)
{
	return now_ns() - l->made_ns < MAX(LIVE_NS, LIVE_COSTS * l->cost_ns);
}

/* The list that is kept, if it may be used for an answer of now. A live folder of few contributors
 * is always asked itself. */
static struct folder_list *list_kept(struct union_tree *u, struct folder *f)
{
	scoped(folder_list_unref) struct folder_list *l = folder_cache_list(&u->cache, f);

	if (l && f->is_live && (f->n_contributors < u->many || !is_fresh(l)))
		return NULL;
	return take(l);
}

/* The attr of an entry of a list, as of now. In a folder that is not live itself there may be the
 * root of a live input, put there by an add path: what is kept of it in the list is old. */
static int entry_attr(const struct union_tree *u, const struct folder *f,
		      const struct folder_entry *e, struct attr *out, struct tree_wait *wait,
		      struct err *err)
{
	uint64_t inner;

	*out = e->attr;
	struct input *in = union_input_of(u, out->id, &inner);
	if (!out->is_live || f->is_live || !in)
		return 0;
	int r = tree_getattr(in->tree, inner, out, wait, err);
	if (r < 0)
		return is_missing(in, r) ? -ENOENT : r;
	union_attr(in, out);
	out->is_opaque = e->attr.is_opaque;
	out->is_live = true;
	return 0;
}

/* A wait that nobody waits for. */
static void probe_ready(struct tree_wait *wait)
{
	free(wait);
}

/* The list of a folder of many contributors, for lookups; NULL in *out when they must be asked
 * one by one, because not all of them can answer yet. */
static int list_of_many(struct union_tree *u, struct folder *f, struct folder_list **out)
{
	*out = list_kept(u, f);
	if (*out || f->n_contributors < u->many)
		return 0;
	struct tree_wait *probe = calloc(1, sizeof(*probe));
	if (!probe)
		return -ENOMEM;
	probe->ready = probe_ready;
	int r = list_make(u, f, out, probe, NULL);
	if (r == -EAGAIN)
		return 0; /* the probe is freed when its tree is ready */
	free(probe);
	/* A layer that cannot answer at all is met by the names that need it, and only by those. */
	return r == -ENOMEM ? r : 0;
}

/* ------------------------------------------------------------------ folders */

static bool is_usable(const struct folder *f)
{
	return !f->is_live || f->id == TREE_ROOT || now_ns() - f->made_ns < LIVE_NS;
}

static struct folder *folder_kept(struct union_tree *u, uint64_t id)
{
	scoped(folder_unref) struct folder *f = folder_cache_get(&u->cache, id);

	return f && is_usable(f) ? take(f) : NULL;
}

static struct folder *folder_make(struct union_tree *u, uint64_t parent, const char *name,
				  size_t len, const struct attr *attr,
				  const struct contributor *contributors, size_t n)
{
	const struct folder from = {
		.id = attr->id,
		.parent = parent,
		.is_live = attr->is_live,
		.is_opaque = attr->is_opaque,
		.contributors = (struct contributor *)contributors,
		.n_contributors = n,
	};
	/* One that is kept may have a list already. */
	struct folder *f = folder_kept(u, attr->id);
	if (f)
		return f;
	f = folder_new(&from, name, len);
	if (f)
		folder_cache_put(&u->cache, f);
	return f;
}

int union_find(struct union_tree *u, struct folder *f, const char *name, size_t len,
	       struct attr *out, struct folder **child, struct tree_wait *wait, struct err *err)
{
	scoped(folder_list_unref) struct folder_list *l = NULL;
	scoped(folder_unref) struct folder *made = NULL;
	struct found m = {0};

	int r = list_of_many(u, f, &l);
	if (r < 0)
		return r;
	if (l) {
		const struct folder_entry *e = folder_list_find(l, name, len);

		r = e ? entry_attr(u, f, e, out, wait, err) : -ENOENT;
		if (r == 0 && child && out->type == NODE_DIR) {
			made = folder_make(u, f->id, name, len, out,
					   l->contributors.items + e->first_contributor,
					   e->n_contributors);
			r = made ? 0 : -ENOMEM;
		}
	} else {
		r = find_by_asking(u, f, name, len, &m, wait, err);
		if (r == 0 && !found_finish(&m, u, f))
			r = -ENOENT;
		*out = m.attr;
		/* Kept in any case: who looks a folder up looks into it next. */
		if (r == 0 && out->type == NODE_DIR) {
			made = folder_make(u, f->id, name, len, out, m.folders.items, m.folders.n);
			r = made ? 0 : -ENOMEM;
		}
		found_deinit(&m);
	}
	if (r == 0 && child)
		*child = take(made);
	return r;
}

static int root_folder(struct union_tree *u, struct folder **out, struct tree_wait *wait,
		       struct err *err)
{
	struct attr attr = {.id = TREE_ROOT};
	vec(struct contributor) all = {0};
	int r = 0;

	for (size_t i = u->n_inputs; r == 0 && i > 0; i--) {
		struct input *in = &u->inputs[i - 1];
		struct contributor *c = vec_push(&all);
		uint64_t root;

		r = c ? union_input_root(in, &root, wait, err) : -ENOMEM;
		if (r < 0)
			break;
		*c = (struct contributor){.input = (uint32_t)(i - 1)};
		if (in->n_steps == 0) {
			c->id = root;
			attr.is_live |= in->tree->is_live;
		}
	}
	if (r == 0) {
		*out = folder_make(u, TREE_ROOT, "", 0, &attr, all.items, all.n);
		r = *out ? 0 : -ENOMEM;
	}
	vec_free(&all);
	return r;
}

/* The nearest folder at or above @id that needs no finding; *names has those below it, innermost
 * first, each with a NUL behind. */
static int climb(struct union_tree *u, uint64_t id, struct folder **out, struct strbuf *names,
		 struct tree_wait *wait, struct err *err)
{
	int r = 0;

	while (!(*out = folder_kept(u, id))) {
		if (id == TREE_ROOT)
			return root_folder(u, out, wait, err);
		r = union_up(u, id, &id, names, wait, err);
		if (r < 0)
			return r;
		strbuf_add(names, "", 1);
		if (names->failed)
			return -ENOMEM;
	}
	return 0;
}

int union_folder(struct union_tree *u, uint64_t id, struct folder **out, struct tree_wait *wait,
		 struct err *err)
{
	scoped(strbuf_free) struct strbuf names = {0};
	scoped(folder_unref) struct folder *f = NULL;

	int r = climb(u, id, &f, &names, wait, err);
	while (r == 0 && names.len > 0) {
		struct folder *child = NULL;
		struct attr attr;

		const char *before = memrchr(names.data, '\0', names.len - 1);
		const char *name = before ? before + 1 : names.data;
		r = union_find(u, f, name, strlen(name), &attr, &child, wait, err);
		if (r == 0 && !child)
			r = -ENOENT;
		folder_unref(f);
		f = child;
		names.len = (size_t)(name - names.data);
	}
	if (r == 0 && f->id != id)
		r = u->tree.is_live ? -ESTALE : -ENOENT; /* something lies over it, or it moved */
	if (r == 0)
		*out = take(f);
	return r;
}

/* ------------------------------------------------------------------ giving a listing */

struct pass {
	const struct union_tree *u;
	const struct folder *folder;
	const struct input *in;
	tree_list_fn fn;
	void *arg;
};

static int pass_entry(void *arg, const char *name, size_t len, const struct attr *attr,
		      uint64_t next)
{
	const struct pass *p = arg;
	struct attr own = *attr;

	if (!p->u->is_raw && own.type == NODE_WHITEOUT)
		return 0;
	union_attr(p->in, &own);
	own.is_opaque &= p->u->is_raw;
	own.is_live |= p->folder->is_live;
	return p->fn(p->arg, name, len, &own, next);
}

static int give_list(const struct union_tree *u, const struct folder *f,
		     const struct folder_list *l, uint64_t from, tree_list_fn fn, void *arg,
		     struct tree_wait *wait, struct err *err)
{
	for (uint64_t i = from; i < l->entries.n; i++) {
		const struct folder_entry *e = &l->entries.items[i];
		struct attr attr;

		int r = entry_attr(u, f, e, &attr, wait, err);
		if (r == -ENOENT)
			continue;
		if (r == 0)
			r = fn(arg, l->names.data + e->name_off, e->name_len, &attr, i + 1);
		if (r != 0)
			return r;
	}
	return 0;
}

int union_find_all(struct union_tree *u, struct folder *f, uint64_t from, tree_list_fn fn,
		   void *arg, struct tree_wait *wait, struct err *err)
{
	scoped(folder_list_unref) struct folder_list *l = NULL;

	/* One contributor has the listing already: most folders of an image are such. */
	if (f->n_contributors == 1 && f->contributors[0].id != 0) {
		const struct contributor *c = &f->contributors[0];
		struct pass pass = {
			.u = u,
			.folder = f,
			.in = &u->inputs[c->input],
			.fn = fn,
			.arg = arg,
		};
		return tree_list(pass.in->tree, c->id, from, pass_entry, &pass, wait, err);
	}
	/* A listing that goes on must go on in the list it began with. */
	l = from > 0 ? folder_cache_list(&u->cache, f) : list_kept(u, f);
	int r = l ? 0 : list_make(u, f, &l, wait, err);
	return r < 0 ? r : give_list(u, f, l, from, fn, arg, wait, err);
}
