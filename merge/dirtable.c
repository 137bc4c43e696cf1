/* SPDX-License-Identifier: Apache-2.0 */

/*
 * dirtable: the numbers that a dirtree gives out.
 *
 * A growing table from ids to what was seen under them (device, inode, birth time, type) and where
 * it was seen last (the folder's id, the name); and, by a hash of the former, back.
 *
 * Files with the same inode share an id, so that hard links are seen as such; of several names the
 * latest is kept, as the one most likely to still be there. A folder's id also depends on where it
 * is, because one folder can be bound to two places of the host, and a kernel refuses a folder with
 * two parents; so a folder never changes its place in the table. The birth time tells an inode
 * number that is used again from its former owner. Nothing is ever forgotten: an id may be asked
 * for as long as the tree lives.
 */

#include "merge/merge.h"

#include <sys/stat.h>

#include "merge/merge-internal.h"

static struct dir_node node_of(uint64_t parent, const char *name, const struct statx *st)
{
	return (struct dir_node){
		.parent = parent,
		.name = (char *)name,
		.dev = (uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor,
		.ino = st->stx_ino,
		.btime_ns = st->stx_mask & STATX_BTIME
				    ? (int64_t)((uint64_t)st->stx_btime.tv_sec * NS_PER_S +
						st->stx_btime.tv_nsec)
				    : 0,
		.type = (uint8_t)((st->stx_mode & S_IFMT) >> 12),
	};
}

static bool node_is_dir(const struct dir_node *n)
{
	return n->type == S_IFDIR >> 12;
}

static uint64_t node_hash(const struct dir_node *n)
{
	uint64_t key[] = {n->dev, n->ino, (uint64_t)n->btime_ns, n->type, 0, 0};

	if (node_is_dir(n)) {
		key[4] = n->parent;
		key[5] = hash_bytes(n->name, strlen(n->name));
	}
	return hash_bytes(key, sizeof(key));
}

static bool node_is_same_inode(const struct dir_node *a, const struct dir_node *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->btime_ns == b->btime_ns &&
	       a->type == b->type;
}

static bool node_is_same(const struct dir_node *a, const struct dir_node *b)
{
	return node_is_same_inode(a, b) &&
	       (!node_is_dir(a) || (a->parent == b->parent && strcmp(a->name, b->name) == 0));
}

/* The slot of @want, or the free one where it belongs. */
static uint32_t *table_slot(struct dir_table *t, const struct dir_node *want)
{
	size_t i = node_hash(want) & (t->n_slots - 1);

	while (t->slots[i] && !node_is_same(&t->nodes.items[t->slots[i] - 1], want))
		i = (i + 1) & (t->n_slots - 1);
	return &t->slots[i];
}

static int table_grow(struct dir_table *t)
{
	size_t n = t->n_slots ? 2 * t->n_slots : 16;
	uint32_t *slots = calloc(n, sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	free(t->slots);
	t->slots = slots;
	t->n_slots = n;
	for (uint32_t i = 1; i < t->nodes.n; i++)
		*table_slot(t, &t->nodes.items[i]) = i + 1;
	return 0;
}

static int table_add(struct dir_table *t, const struct dir_node *want, uint64_t *id)
{
	if (t->nodes.n == UINT32_MAX)
		return -ENOSPC;
	/* At most three quarters full, so that searches end. */
	if (4 * (t->nodes.n + 1) > 3 * t->n_slots && table_grow(t) < 0)
		return -ENOMEM;
	scoped(free) char *name = strdup(want->name);
	struct dir_node *n = name ? vec_push(&t->nodes) : NULL;
	if (!n)
		return -ENOMEM;
	*n = *want;
	n->name = take(name);
	*table_slot(t, n) = (uint32_t)t->nodes.n;
	*id = t->nodes.n;
	return 0;
}

int dirtable_intern(struct dir_table *t, uint64_t parent, const char *name, const struct statx *st,
		    uint64_t *id)
{
	const struct dir_node want = node_of(parent, name, st);
	int r = 0;

	pthread_mutex_lock(&t->lock);
	uint32_t found = t->n_slots ? *table_slot(t, &want) : 0;
	if (!found) {
		r = table_add(t, &want, id);
	} else {
		struct dir_node *n = &t->nodes.items[found - 1];

		*id = found;
		/* The latest name of a file is the one most likely to still be there. */
		if (n->parent != parent || strcmp(n->name, name) != 0) {
			char *copy = strdup(name);
			if (copy) {
				free(n->name);
				n->name = copy;
				n->parent = parent;
			} else {
				r = -ENOMEM;
			}
		}
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

int dirtable_path(struct dir_table *t, uint64_t id, struct strbuf *path, struct dir_node *node)
{
	vec(uint64_t) chain = {0};
	int r = 0;

	pthread_mutex_lock(&t->lock);
	if (id < TREE_ROOT || id > t->nodes.n)
		r = -ENOENT;
	/* Ends: a folder is entered into the table after the one that holds it. */
	for (uint64_t at = id; r == 0 && at != TREE_ROOT; at = t->nodes.items[at - 1].parent) {
		uint64_t *p = vec_push(&chain);
		if (p)
			*p = at;
		else
			r = -ENOMEM;
	}
	for (size_t i = chain.n; r == 0 && i > 0; i--) {
		if (path->len > 0)
			strbuf_putc(path, '/');
		strbuf_puts(path, t->nodes.items[chain.items[i - 1] - 1].name);
	}
	if (r == 0) {
		*node = t->nodes.items[id - 1];
		node->name = NULL; /* may be replaced once the lock is gone */
	}
	pthread_mutex_unlock(&t->lock);
	vec_free(&chain);
	return r == 0 && path->failed ? -ENOMEM : r;
}

bool dirtable_is_inode(const struct dir_node *was, const struct statx *st)
{
	const struct dir_node is = node_of(0, "", st);

	return node_is_same_inode(&is, was);
}

int dirtable_parent(struct dir_table *t, uint64_t dir, uint64_t *out, struct strbuf *name)
{
	int r = -ENOENT;

	pthread_mutex_lock(&t->lock);
	if (dir >= TREE_ROOT && dir <= t->nodes.n) {
		const struct dir_node *n = &t->nodes.items[dir - 1];

		*out = n->parent;
		strbuf_puts(name, n->name);
		r = !node_is_dir(n) ? -ENOTDIR : name->failed ? -ENOMEM : 0;
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

int dirtable_init(struct dir_table *t)
{
	*t = (struct dir_table){0};
	pthread_mutex_init(&t->lock, NULL);
	struct dir_node *root = vec_push(&t->nodes);
	char *name = strdup("");
	if (!root || !name) {
		free(name);
		return -ENOMEM;
	}
	*root = (struct dir_node){.parent = TREE_ROOT, .name = name, .type = S_IFDIR >> 12};
	return 0;
}

void dirtable_deinit(struct dir_table *t)
{
	for (size_t i = 0; i < t->nodes.n; i++)
		free(t->nodes.items[i].name);
	vec_free(&t->nodes);
	free(t->slots);
	pthread_mutex_destroy(&t->lock);
}
