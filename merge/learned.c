/* SPDX-License-Identifier: Apache-2.0 */

/*
 * learned: what earlier mounts read of a layer, so that the next one asks for it at once.
 *
 * A bitmap over the layer's plain space, a bit per granule: 64 KiB, or more so that there are at
 * most 2^20 of them. The file "learned/<key>", in the byte order of the host:
 *
 *	0	magic "llblearn"
 *	8	u64 plain size, which decides the granule
 *	16	the bitmap, u64 words
 *
 * Mounts add to what is there. One that read more than half of a layer (a backup, a scan) has not
 * shown what a start needs, and is not learned from.
 */

#include "merge/merge.h"

#include "merge/merge-internal.h"

#define MAGIC "llblearn"
#define GRANULE_LOG_MIN 16
#define GRANULES_LOG_MAX 20
#define SMALL_LAYER 64 /* granules: not worth the question whether it was a scan */

struct learned {
	uint64_t plain_size;
	unsigned granule_log;
	size_t n_words;
	uint64_t words[]; /* bits are set atomically */
};

static size_t count_granules(const struct learned *l)
{
	return l->plain_size ? ((l->plain_size - 1) >> l->granule_log) + 1 : 0;
}

struct learned *learned_new(uint64_t plain_size)
{
	struct learned head = {.plain_size = plain_size, .granule_log = GRANULE_LOG_MIN};

	while (plain_size >> head.granule_log >= 1u << GRANULES_LOG_MAX)
		head.granule_log++;
	head.n_words = count_granules(&head) / 64 + 1;
	struct learned *l = calloc(1, sizeof(*l) + head.n_words * sizeof(l->words[0]));
	if (l)
		*l = head;
	return l;
}

void learned_free(struct learned *l)
{
	free(l);
}

void learned_add(struct learned *l, uint64_t plain_off, uint64_t len)
{
	if (len == 0 || plain_off >= l->plain_size || len > l->plain_size - plain_off)
		return;
	size_t last = (plain_off + len - 1) >> l->granule_log;
	for (size_t i = plain_off >> l->granule_log; i <= last; i++) {
		uint64_t bit = UINT64_C(1) << i % 64;
		uint64_t *word = &l->words[i / 64];
		/* Mostly set already: then the cache line is not taken from other readers. */
		if (!(__atomic_load_n(word, __ATOMIC_RELAXED) & bit))
			__atomic_fetch_or(word, bit, __ATOMIC_RELAXED);
	}
}

static size_t count_bits(const struct learned *l)
{
	size_t n = 0;

	for (size_t i = 0; i < l->n_words; i++)
		n += (size_t)__builtin_popcountll(__atomic_load_n(&l->words[i], __ATOMIC_RELAXED));
	return n;
}

static bool is_scan(const struct learned *l)
{
	size_t n = count_granules(l);

	return n > SMALL_LAYER && count_bits(l) > n / 2;
}

struct file_head {
	char magic[8];
	uint64_t plain_size;
};

/* NULL when the store knows nothing that fits. */
static struct learned *load(struct store *store, const char *key, uint64_t plain_size)
{
	int opened;

	if (store_file_open(store, "learned", key, &opened) < 0)
		return NULL;
	scoped(close_fd) int fd = opened;
	scoped(learned_free) struct learned *l = learned_new(plain_size);
	struct file_head head;
	if (!l || pread_full(fd, &head, sizeof(head), 0) < 0 ||
	    memcmp(head.magic, MAGIC, sizeof(head.magic)) != 0 || head.plain_size != plain_size ||
	    pread_full(fd, l->words, l->n_words * sizeof(l->words[0]), sizeof(head)) < 0)
		return NULL;
	return take(l);
}

static int save(const struct learned *l, struct store *store, const char *key)
{
	struct file_head head = {.plain_size = l->plain_size};
	struct store_file file;
	struct err err = {0};
	int r = store_file_begin(store, "learned", key, &file, &err);

	if (r < 0)
		return r;
	memcpy(head.magic, MAGIC, sizeof(head.magic));
	r = write_full(file.fd, &head, sizeof(head));
	if (r == 0)
		r = write_full(file.fd, l->words, l->n_words * sizeof(l->words[0]));
	if (r < 0) {
		store_file_abort(store, &file);
		return r;
	}
	return store_file_commit(store, &file, &err);
}

void learned_save(const struct learned *l, struct store *store, const char *key)
{
	if (count_bits(l) == 0 || is_scan(l))
		return;
	scoped(learned_free) struct learned *all = load(store, key, l->plain_size);
	scoped(learned_free) struct learned *own = learned_new(l->plain_size);
	if (!own)
		return;
	for (size_t i = 0; i < l->n_words; i++)
		own->words[i] = __atomic_load_n(&l->words[i], __ATOMIC_RELAXED);
	size_t n_before = all ? count_bits(all) : 0;
	for (size_t i = 0; all && i < all->n_words; i++)
		all->words[i] |= own->words[i];
	if (all && count_bits(all) == n_before)
		return;
	/* Many different uses may add up to a scan: then the last one counts alone. */
	int r = save(all && !is_scan(all) ? all : own, store, key);
	if (r < 0)
		log_debug("what was read is not kept: key=%s %s", key, strerror(-r));
}

bool learned_prefetch(struct blob *blob, uint64_t plain_size, struct store *store, const char *key)
{
	scoped(learned_free) struct learned *l = load(store, key, plain_size);

	if (!l)
		return false;
	size_t n = count_granules(l);
	for (size_t i = 0, begin; i < n;) {
		if (!(l->words[i / 64] >> i % 64 & 1)) {
			i++;
			continue;
		}
		for (begin = i; i < n && l->words[i / 64] >> i % 64 & 1;)
			i++;
		uint64_t off = (uint64_t)begin << l->granule_log;
		blob_prefetch(blob, off, MIN((uint64_t)i << l->granule_log, plain_size) - off);
	}
	return true;
}
