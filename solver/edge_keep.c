/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Keys for what was not needed. A result that is found in another cache is kept in the store's own,
 * so that it is found again without that one. But it is found again by way of its inputs, which
 * were never completed and so were never kept: they get their keys here, without results, from the
 * sources up.
 *
 * The owner does this, since nobody else may look at edges that are still rising.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solve-internal.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

struct key_walk {
	struct edge_state *edge;
	size_t next; /* input */
};

static int walk_to(struct key_walk **stack, size_t *n, size_t *cap, struct edge_state *e)
{
	if (vec_reserve_((void **)stack, cap, *n + 1, sizeof(**stack)) < 0)
		return -ENOMEM;
	(*stack)[(*n)++] = (struct key_walk){e, 0};
	return 0;
}

/* Nobody needed it so far: the store's cache has no key for it, but can have one. */
static bool needs_key(const struct edge_state *e)
{
	return e->level < LEVEL_COMPLETE && !e->has_key && !e->kept.n && !e->query[0].n;
}

/* The key alone, unless a job of the vertex is about to do more than that. */
static int keep_key(struct solve *s, struct edge_state *e, struct err *err)
{
	if (pthread_mutex_trylock(&e->vertex->work) != 0)
		return 0;
	int r = edge_commit(s, e, NULL, err);
	pthread_mutex_unlock(&e->vertex->work);
	return r;
}

int edge_keep_below(struct solve *s, struct edge_state *e, struct err *err)
{
	scoped(free) struct key_walk *stack = NULL;
	size_t n = 0, cap = 0;
	int r = walk_to(&stack, &n, &cap, e) < 0 ? no_memory(err) : 0;
	while (n > 0 && r == 0) {
		struct key_walk *top = &stack[n - 1];
		if (top->next < top->edge->vertex->n_deps) {
			struct edge_state *input = top->edge->vertex->deps[top->next++].edge;
			if (needs_key(input) && walk_to(&stack, &n, &cap, input) < 0)
				r = no_memory(err);
			input->has_key = true;
		} else if (--n > 0) {
			r = keep_key(s, top->edge, err);
		}
	}
	return r;
}
