/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_known: what the kernel was told of.
 *
 * The table of what is known to the kernel counts for how often it was told of an inode, which it
 * says back when it forgets it, and keeps the name by which it was last told: a change of an inode
 * of the tree below is recorded under a name there.
 */

#include "merge/upper-internal.h"

struct upper_known *upper_known_find(const struct upper *u, uint64_t id)
{
	if (!u->n_known_buckets)
		return NULL;
	struct upper_known *k = u->known[upper_bucket(id, u->n_known_buckets)];
	while (k && k->id != id)
		k = k->next;
	return k;
}

static struct upper_known **known_slot(struct upper *u, uint64_t id)
{
	struct upper_known **at = &u->known[upper_bucket(id, u->n_known_buckets)];

	while (*at && (*at)->id != id)
		at = &(*at)->next;
	return at;
}

static int known_grow(struct upper *u)
{
	size_t n = MAX(u->n_known_buckets * 2, (size_t)1024);
	struct upper_known **buckets;

	if (u->n_known < u->n_known_buckets)
		return 0;
	buckets = calloc(n, sizeof(*buckets));
	if (!buckets)
		return -ENOMEM;
	for (size_t i = 0; i < u->n_known_buckets; i++) {
		for (struct upper_known *k = u->known[i], *next; k; k = next) {
			struct upper_known **to = &buckets[upper_bucket(k->id, n)];
			next = k->next;
			k->next = *to;
			*to = k;
		}
	}
	free(u->known);
	u->known = buckets;
	u->n_known_buckets = n;
	return 0;
}

/* Without memory nothing is noted: an inode then goes earlier than it might. */
void upper_seen(struct upper *u, uint64_t id, uint64_t dir, const char *name, size_t len)
{
	if (len > UINT8_MAX)
		return;
	pthread_mutex_lock(&u->lock);
	if (known_grow(u) == 0) {
		struct upper_known **at = known_slot(u, id), *k = *at;
		uint64_t n = k ? k->n : 0;
		if (k && !len) { /* found again by its number only */
			k->n++;
			pthread_mutex_unlock(&u->lock);
			return;
		}
		if (!k || k->len < len) {
			struct upper_known *more = realloc(k, sizeof(*k) + len);
			if (more && !k) {
				more->next = NULL;
				u->n_known++;
			}
			k = more ? more : NULL;
			if (k)
				*at = k;
		}
		if (k) {
			k->id = id;
			k->dir = dir;
			k->n = n + 1;
			k->len = (uint8_t)len;
			memcpy(k->name, name, len);
		}
	}
	pthread_mutex_unlock(&u->lock);
}

void upper_forget(struct upper *u, uint64_t id, uint64_t n)
{
	pthread_mutex_lock(&u->lock);
	struct upper_known **at = u->n_known_buckets ? known_slot(u, id) : NULL;
	struct upper_known *k = at ? *at : NULL;
	bool is_last = !k || k->n <= n;
	if (k && is_last) {
		*at = k->next;
		u->n_known--;
		free(k);
	} else if (k) {
		k->n -= n;
	}
	struct upper_node *node = is_last ? upper_by_id(u, id) : NULL;
	if (node && node->is_orphan && !node->fill) {
		if (node->i.content != CONTENT_BELOW)
			upper_content_remove(u, node->ino);
		upper_node_drop(u, node);
	}
	pthread_mutex_unlock(&u->lock);
}

void upper_known_deinit(struct upper *u)
{
	for (size_t i = 0; i < u->n_known_buckets; i++) {
		for (struct upper_known *k = u->known[i], *next; k; k = next) {
			next = k->next;
			free(k);
		}
	}
	free(u->known);
}
