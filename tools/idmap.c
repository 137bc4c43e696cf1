/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Inode numbers seen before: open addressing with linear probing, at most half full.
 * Numbers are never 0, so that 0 marks a free slot.
 */

#include "tools/tools.h"

static struct idmap_slot *idmap_slot(const struct idmap *m, uint64_t id)
{
	size_t i = hash_bytes(&id, sizeof(id)) & (m->cap - 1);

	while (m->slots[i].id && m->slots[i].id != id)
		i = (i + 1) & (m->cap - 1);
	return &m->slots[i];
}

static int idmap_grow(struct idmap *m)
{
	struct idmap bigger = {.n = m->n, .cap = m->cap ? m->cap * 2 : 64};

	bigger.slots = calloc(bigger.cap, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (size_t i = 0; i < m->cap; i++)
		if (m->slots[i].id)
			*idmap_slot(&bigger, m->slots[i].id) = m->slots[i];
	free(m->slots);
	*m = bigger;
	return 0;
}

int idmap_add(struct idmap *m, uint64_t id, size_t value)
{
	struct idmap_slot *slot;

	if (2 * m->n >= m->cap && idmap_grow(m) < 0)
		return -ENOMEM;
	slot = idmap_slot(m, id);
	if (slot->id)
		return 0;
	*slot = (struct idmap_slot){id, value};
	m->n++;
	return 1;
}

bool idmap_get(const struct idmap *m, uint64_t id, size_t *value)
{
	const struct idmap_slot *slot = m->cap ? idmap_slot(m, id) : NULL;

	if (!slot || !slot->id)
		return false;
	*value = slot->value;
	return true;
}

void idmap_free(struct idmap *m)
{
	free(m->slots);
	*m = (struct idmap){0};
}
