/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_changes: what differs from the tree below, told from memory.
 *
 * Every entry of a folder is a change: something that was added, that took the place of something
 * below, or that is gone. Every bound inode that still is where it was below was modified, or has
 * changed names in it. A folder that was renamed is told once; what it holds of the tree below
 * comes with it.
 */

#include "merge/upper-internal.h"

#define DEPTH_MAX 4096

struct found {
	char *path;
	char kind;
	bool is_moved;
	struct attr attr;
};
struct gathering {
	struct upper *u;
	vec(struct found) items;
};

static int compare(const void *a, const void *b)
{
	return strcmp(((const struct found *)a)->path, ((const struct found *)b)->path);
}

/* The path of a folder as it is now, with a slash at its end; false: it does not show. */
static bool path_of(struct upper *u, uint64_t id, struct strbuf *out)
{
	vec(char *) names = {0};
	int depth = 0, r = 0;

	while (r == 0 && id != TREE_ROOT && depth++ < DEPTH_MAX) {
		struct strbuf name = {0};
		char **slot = vec_push(&names);

		r = slot ? tree_parent(&u->tree, id, &id, &name, NULL) : -ENOMEM;
		if (slot)
			*slot = strbuf_finish(&name);
		if (r == 0 && slot && !*slot)
			r = -ENOMEM;
	}
	bool found = r == 0 && id == TREE_ROOT;
	strbuf_putc(out, '/');
	for (size_t i = names.n; i-- > 0;) {
		if (found) {
			strbuf_puts(out, names.items[i]);
			strbuf_putc(out, '/');
		}
		free(names.items[i]);
	}
	vec_free(&names);
	return found && !out->failed;
}

static int add(struct gathering *g, char kind, const char *dir, const char *name, size_t len,
	       const struct attr *attr, bool is_moved)
{
	struct strbuf path = {0};
	struct found *f = vec_push(&g->items);

	if (!f)
		return -ENOMEM;
	strbuf_puts(&path, dir);
	strbuf_add(&path, name, len);
	f->path = strbuf_finish(&path);
	f->kind = kind;
	f->is_moved = is_moved;
	if (attr)
		f->attr = *attr;
	return f->path ? 0 : -ENOMEM;
}

/* One entry of a folder, copied. */
struct copied {
	char name[256];
	size_t len;
	bool is_hiding, exists, is_below;
	struct attr attr;
	uint64_t seq;
};

static bool next_entry(struct upper *u, uint64_t ino, uint64_t from, struct copied *out)
{
	pthread_mutex_lock(&u->lock);
	const struct upper_node *dir = upper_by_ino(u, ino);
	const struct upper_entry *e = dir ? upper_dir_after(dir, from) : NULL;
	if (e) {
		struct upper_node *child = e->child ? upper_by_ino(u, e->child) : NULL;

		memcpy(out->name, e->name, (size_t)e->len + 1);
		out->len = e->len;
		out->is_hiding = e->is_hiding;
		out->exists = child != NULL;
		out->is_below = child && child->below;
		out->seq = e->seq;
		if (child)
			upper_attr(u, child, &out->attr);
	}
	pthread_mutex_unlock(&u->lock);
	return e != NULL;
}

static int gather_entries(struct gathering *g, uint64_t ino, uint64_t id)
{
	scoped(strbuf_free) struct strbuf dir = {0};
	struct copied c = {0};
	int r = 0;

	if (!path_of(g->u, id, &dir))
		return dir.failed ? -ENOMEM : 0;
	while (r == 0 && next_entry(g->u, ino, c.seq + 1, &c)) {
		if (!c.exists && !c.is_hiding)
			continue;
		char kind = !c.exists ? 'D' : c.is_hiding ? 'M' : 'A';
		r = add(g, kind, dir.data, c.name, c.len, c.exists ? &c.attr : NULL,
			c.exists && c.is_below && c.attr.type == NODE_DIR);
	}
	return r;
}

/* A bound inode whose name below still leads to it. */
static int gather_bound(struct gathering *g, uint64_t id, uint64_t dir_below, const char *path)
{
	scoped(strbuf_free) struct strbuf dir = {0};
	const char *name = strrchr(path, '/');
	struct attr attr;

	if (id == TREE_ROOT || !name || !name[1])
		return 0;
	uint64_t parent = dir_below;
	if (!parent) {
		scoped(free) char *up = strndup(path, (size_t)(name - path));
		if (!up)
			return -ENOMEM;
		if (tree_walk(g->u->below, up, false, &attr, NULL) < 0)
			return 0;
		parent = attr.id;
	}
	if (tree_lookup(&g->u->tree, parent, name + 1, strlen(name + 1), &attr, NULL, NULL) < 0 ||
	    attr.id != id)
		return 0;
	pthread_mutex_lock(&g->u->lock);
	const struct upper_node *p = upper_by_id(g->u, parent);
	bool is_told = p && upper_dir_find(p, name + 1, strlen(name + 1));
	pthread_mutex_unlock(&g->u->lock);
	if (is_told || !path_of(g->u, parent, &dir))
		return dir.failed ? -ENOMEM : 0;
	return add(g, 'M', dir.data, name + 1, strlen(name + 1), &attr, false);
}

/* What is to be looked at, so that nothing is asked with the lock. */
struct todo {
	uint64_t ino, id, below_dir;
	char *path; /* bound */
	bool is_dir;
};

static int gather(struct gathering *g)
{
	struct upper *u = g->u;
	vec(struct todo) todos = {0};
	int r = 0;

	pthread_mutex_lock(&u->lock);
	for (size_t i = 0; i < u->by_ino.n_buckets && r == 0; i++) {
		for (const struct upper_node *n = u->by_ino.buckets[i]; n; n = n->next_ino) {
			struct todo *t = n->is_orphan ? NULL : vec_push(&todos);
			if (n->is_orphan)
				continue;
			if (!t) {
				r = -ENOMEM;
				break;
			}
			*t = (struct todo){n->ino, n->id, n->below_dir, NULL,
					   n->i.type == NODE_DIR};
			t->path = n->below ? strdup(n->path) : NULL;
		}
	}
	pthread_mutex_unlock(&u->lock);
	for (size_t i = 0; i < todos.n; i++) {
		const struct todo *t = &todos.items[i];
		if (r == 0 && t->path)
			r = gather_bound(g, t->id, t->below_dir, t->path);
		if (r == 0 && t->is_dir)
			r = gather_entries(g, t->ino, t->id);
		free(t->path);
	}
	vec_free(&todos);
	return r;
}

int upper_changes(struct upper *u, int (*fn)(void *arg, const struct upper_change *change),
		  void *arg, struct err *err)
{
	struct gathering g = {.u = u};
	int r = gather(&g);

	if (r == 0 && g.items.n)
		qsort(g.items.items, g.items.n, sizeof(*g.items.items), compare);
	for (size_t i = 0; i < g.items.n; i++) {
		const struct found *f = &g.items.items[i];
		if (r == 0)
			r = fn(arg, &(struct upper_change){.kind = f->kind,
							   .path = f->path,
							   .attr = f->attr,
							   .is_moved = f->is_moved});
		free(f->path);
	}
	vec_free(&g.items);
	return r;
}
