/* SPDX-License-Identifier: Apache-2.0 */

/*
 * here: which bytes of a blob are on this host, and the decoding of them.
 *
 * Whatever the place, a group of spans is decoded as a whole and checked against the digests before
 * a byte of it is handed out, so a damaged disk costs a fetch, never a wrong byte.
 *
 *	partial/KEY.data	sparse, as long as the blob: verified stored bytes at their offsets
 *	partial/KEY.map		"llbmap1\0", u64 spans, u64 blob size, u64 zero, then a bit a span,
 *				low bit first
 *
 * A bit is set with an atomic or, in the file mapped shared, after the bytes were verified and
 * written: other processes see them at once, and kill -9 loses nothing.
 */

#include "blobstore/blob-internal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAP_MAGIC "llbmap1"
#define MAP_HEADER 32
/* Bytes reserved ahead of being written, so that the catalogue is asked rarely. */
#define RESERVE_STEP (4u << 20)

/* ------------------------------------------------------------------ what is here */

/* The whole blob, when the store or a local remote has it. Asked again at each miss, since another
 * process may have completed it. */
bool blob_find_full(struct blob *blob)
{
	int fd = -1;
	uint64_t off = 0;
	bool is_store = true;
	struct stat st;

	pthread_mutex_lock(&blob->lock);
	bool is_known = blob->full_fd >= 0 || blob->is_full_damaged;
	pthread_mutex_unlock(&blob->lock);
	if (is_known)
		return !blob->is_full_damaged;

	if (store_file_open(blob->store, "blobs/sha256", blob->hex, &fd) < 0)
		fd = -1;
	if (fd >= 0 && (fstat(fd, &st) < 0 || (uint64_t)st.st_size != blob->desc.size)) {
		close_fd(fd);
		fd = -1;
	}
	if (fd < 0 && blob->remote && blob->remote->ops->open_local) {
		is_store = false;
		if (blob->remote->ops->open_local(blob->remote, &blob->desc.digest, blob->desc.size,
						  &fd, &off, NULL) < 0)
			fd = -1;
	}
	if (fd < 0)
		return false;
	pthread_mutex_lock(&blob->lock);
	if (blob->full_fd < 0) {
		blob->full_fd = fd;
		blob->full_off = off;
		blob->is_full_store = is_store;
		fd = -1;
	}
	pthread_mutex_unlock(&blob->lock);
	close_fd(fd);
	return true;
}

bool blob_bit(const struct blob *blob, size_t i)
{
	const uint8_t *map = __atomic_load_n(&blob->map, __ATOMIC_ACQUIRE);

	return map && i < blob->n_bits &&
	       __atomic_load_n(&map[MAP_HEADER + i / 8], __ATOMIC_ACQUIRE) >> (i % 8) & 1;
}

static void bits_change(struct blob *blob, size_t first, size_t last, bool is_set)
{
	for (size_t i = first; i <= last && i < blob->n_bits; i++) {
		uint8_t bit = (uint8_t)(1u << (i % 8));
		if (is_set)
			__atomic_fetch_or(&blob->map[MAP_HEADER + i / 8], bit, __ATOMIC_RELEASE);
		else
			__atomic_fetch_and(&blob->map[MAP_HEADER + i / 8], (uint8_t)~bit,
					   __ATOMIC_RELEASE);
	}
}

static int map_header(const struct blob *blob, int fd, size_t len, struct err *err)
{
	uint8_t want[MAP_HEADER] = {0}, have[MAP_HEADER] = {0};
	uint64_t n = blob->n_bits, size = blob->desc.size;
	struct stat st;

	memcpy(want, MAP_MAGIC, 8);
	memcpy(want + 8, &n, 8);
	memcpy(want + 16, &size, 8);
	if (fstat(fd, &st) < 0)
		return err_errno(err, "partial/%s.map", blob->key);
	if ((size_t)st.st_size == len && pread_full(fd, have, MAP_HEADER, 0) == 0 &&
	    memcmp(want, have, MAP_HEADER) == 0)
		return 0;
	if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)len) < 0)
		return err_errno(err, "partial/%s.map", blob->key);
	int r = pwrite_full(fd, want, MAP_HEADER, 0);
	return r < 0 ? err_set(err, r, "partial/%s.map: %s", blob->key, strerror(-r)) : 0;
}

/* Maps KEY.map and opens KEY.data; @make: creates them. Called with keep_lock held. */
static int partial_open(struct blob *blob, bool make, struct err *err)
{
	scoped(free) char *map_path = NULL;
	scoped(free) char *data_path = NULL;
	int flags = O_RDWR | O_CLOEXEC | (make ? O_CREAT : 0);
	size_t len = MAP_HEADER + (blob->n_bits + 7) / 8;
	struct stat st;

	int r = store_path(blob->store, &map_path, "partial/%s.map", blob->key);
	if (r == 0)
		r = store_path(blob->store, &data_path, "partial/%s.data", blob->key);
	if (r < 0)
		return r;
	scoped(close_fd) int map_fd = open(map_path, flags, 0644);
	if (map_fd < 0)
		return err_errno(err, "%s", map_path);
	/* Held while the header is looked at, so that only one process writes it. */
	if (flock(map_fd, LOCK_EX) < 0)
		return err_errno(err, "%s", map_path);
	r = map_header(blob, map_fd, len, err);
	if (r < 0)
		return r;
	scoped(close_fd) int data_fd = open(data_path, flags, 0644);
	if (data_fd < 0 || fstat(data_fd, &st) < 0 ||
	    ((uint64_t)st.st_size < blob->desc.size &&
	     ftruncate(data_fd, (off_t)blob->desc.size) < 0))
		return err_errno(err, "%s", data_path);
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (map == MAP_FAILED)
		return err_errno(err, "%s", map_path);
	flock(map_fd, LOCK_UN); /* closing is not enough: the mapping keeps the open file */
	blob->map_len = len;
	blob->data_fd = data_fd;
	data_fd = -1;
	blob->written = (uint64_t)st.st_blocks * 512;
	__atomic_store_n(&blob->map, map, __ATOMIC_RELEASE);
	return 0;
}

/* ------------------------------------------------------------------ groups */

static bool shares_bytes(const struct span *a, const struct span *b)
{
	return a->stored_off == b->stored_off && a->stored_len == b->stored_len &&
	       a->kind == b->kind && (a->kind == SPAN_GZIP || a->kind == SPAN_ZSTD);
}

int blob_group(const struct blob *blob, size_t i, struct group *out)
{
	struct span s, other;

	if (span_table_get(blob->spans, i, &s) < 0)
		return -EBADMSG;
	*out = (struct group){
		.first = i, .last = i, .span = s, .decoded_len = s.inner_off + s.plain_len};
	while (out->first > 0 && span_table_get(blob->spans, out->first - 1, &other) == 0 &&
	       shares_bytes(&s, &other)) {
		out->first--;
		out->decoded_len = MAX(out->decoded_len, other.inner_off + other.plain_len);
	}
	while (span_table_get(blob->spans, out->last + 1, &other) == 0 &&
	       shares_bytes(&s, &other)) {
		out->last++;
		out->decoded_len = MAX(out->decoded_len, other.inner_off + other.plain_len);
	}
	return 0;
}

static bool group_is_partial(const struct blob *blob, const struct group *g)
{
	for (size_t i = g->first; i <= g->last; i++)
		if (!blob_bit(blob, i))
			return false;
	return true;
}

bool blob_group_is_here(struct blob *blob, const struct group *g)
{
	return g->span.kind == SPAN_ZERO || blob->frames_fd >= 0 || group_is_partial(blob, g) ||
	       blob_find_full(blob);
}

static int check_group(const struct blob *blob, const struct group *g, const uint8_t *stored,
		       const struct plain *plain, enum span_check when)
{
	struct digest have;
	struct span s;

	for (size_t i = g->first; i <= g->last; i++) {
		if (span_table_get(blob->spans, i, &s) < 0)
			return -EBADMSG;
		if (s.check != when)
			continue;
		if (when == SPAN_CHECK_STORED)
			digest_bytes(&have, stored, s.stored_len);
		else
			digest_bytes(&have, plain->bytes + s.inner_off, s.plain_len);
		if (!digest_equal(&have, &s.digest))
			return -EBADMSG;
	}
	return 0;
}

int blob_decode_group(struct blob *blob, const struct group *g, const void *stored,
		      struct plain **out, struct err *err)
{
	uint8_t window[32768];
	scoped(plain_unref) struct plain *plain = plain_new(g->decoded_len);

	if (!plain)
		return -ENOMEM;
	int r = check_group(blob, g, stored, NULL, SPAN_CHECK_STORED);
	if (r == 0)
		r = span_table_window(blob->spans, &g->span, window);
	if (r == 0)
		r = codec_decode(&g->span, stored, window, 0, plain->bytes, g->decoded_len, NULL);
	if (r == 0)
		r = check_group(blob, g, NULL, plain, SPAN_CHECK_PLAIN);
	if (r < 0)
		return err_set(err, r,
			       r == -EBADMSG
				       ? "layer sha256:%s: bytes at %llu do not match their digest"
				       : "layer sha256:%s: bytes at %llu: no memory",
			       blob->hex, (unsigned long long)g->span.stored_off);
	*out = take(plain);
	return 0;
}

/* A place on disk did not hold what its name says. Forget it, so that the remote is asked. */
static int forget_damaged(struct blob *blob, const struct group *g, bool was_partial,
			  struct err *err)
{
	if (was_partial) {
		bits_change(blob, g->first, g->last, false);
		log_warn(
			"layer sha256:%.12s: stored bytes at %llu are damaged: fetching them again",
			blob->hex, (unsigned long long)g->span.stored_off);
		return -EAGAIN;
	}
	if (blob->frames_fd >= 0) {
		store_file_remove(blob->store, "frames", blob->key);
		return err_wrap(err, -EBADMSG,
				"the re-framed copy is damaged (made again at the next mount)");
	}
	if (!blob->is_full_store)
		return err_wrap(err, -EBADMSG, "%s",
				blob->remote ? blob->remote->name : "local blob");
	pthread_mutex_lock(&blob->lock);
	bool is_first = !blob->is_full_damaged;
	blob->is_full_damaged = true; /* the descriptor stays open: others may be reading it */
	pthread_mutex_unlock(&blob->lock);
	if (is_first) {
		log_warn("blob sha256:%s in the store is damaged: removed", blob->hex);
		store_file_remove(blob->store, "blobs/sha256", blob->hex);
		gc_settle(blob->store->gc, "blobs", blob->hex, 0);
	}
	return -EAGAIN;
}

void blob_find_partial(struct blob *blob)
{
	pthread_mutex_lock(&blob->keep_lock);
	if (!blob->map)
		partial_open(blob, false, NULL);
	pthread_mutex_unlock(&blob->keep_lock);
}

/* Decodes a group whose bytes are here. -EAGAIN: they were damaged and are not here any more. */
int blob_load_here(struct blob *blob, const struct group *g, struct plain **out, struct err *err)
{
	bool is_partial = false;
	uint64_t base = 0;
	int fd = blob->frames_fd;

	/* The bits are a look at memory; a whole blob is looked for on disk. */
	if (fd < 0 && group_is_partial(blob, g)) {
		is_partial = true;
		fd = blob->data_fd;
	} else if (fd < 0 && blob_find_full(blob)) {
		fd = blob->full_fd;
		base = blob->full_off;
	}
	if (fd < 0)
		return -EAGAIN;
	scoped(free) uint8_t *stored = malloc(g->span.stored_len + (size_t)1);
	if (!stored)
		return -ENOMEM;
	int r = pread_full(fd, stored, g->span.stored_len, base + g->span.stored_off);
	if (r == 0) {
		__atomic_fetch_add(&blob->read, g->span.stored_len, __ATOMIC_RELAXED);
		r = blob_decode_group(blob, g, stored, out, err);
	} else {
		err_set(err, r, "layer sha256:%s: stored bytes at %llu: %s", blob->hex,
			(unsigned long long)g->span.stored_off, strerror(-r));
		if (r == -ENODATA)
			r = -EBADMSG; /* the file is shorter than it must be */
	}
	return r == -EBADMSG ? forget_damaged(blob, g, is_partial, err) : r;
}

/* ------------------------------------------------------------------ keeping what was fetched */

static int reserve(struct blob *blob, uint64_t more, struct err *err)
{
	uint64_t used, bound, want = blob->written + more;

	if (want <= blob->reserved)
		return 0;
	struct gc *gc = blob->store->gc;
	gc_usage(gc, &used, &bound);
	uint64_t step = MIN((uint64_t)RESERVE_STEP, bound / 64);
	uint64_t ahead = MIN(want + step, blob->desc.size + (1u << 16));
	int r = gc_reserve(gc, "partial", blob->key, MAX(ahead, want), NULL);
	if (r == 0) {
		blob->reserved = MAX(ahead, want);
		return 0;
	}
	r = gc_reserve(gc, "partial", blob->key, want, err);
	if (r == 0)
		blob->reserved = want;
	return r;
}

static int partial_ready(struct blob *blob, struct err *err)
{
	return blob->map ? 0 : partial_open(blob, true, err);
}

/* Writes a verified group to the sparse file and sets its bits. Errors: -ENOSPC and others. */
int blob_keep_group(struct blob *blob, const struct group *g, const void *stored, struct err *err)
{
	/* Whole blocks of a sparse file are what it costs. */
	uint64_t cost = g->span.stored_len + (uint64_t)4096;

	pthread_mutex_lock(&blob->keep_lock);
	int r = partial_ready(blob, err);
	if (r == 0)
		r = reserve(blob, cost, err);
	if (r == 0)
		blob->written += cost;
	pthread_mutex_unlock(&blob->keep_lock);
	if (r < 0)
		return r;
	r = pwrite_full(blob->data_fd, stored, g->span.stored_len, g->span.stored_off);
	if (r == -ENOSPC && gc_make_room(blob->store->gc, cost, NULL) == 0)
		r = pwrite_full(blob->data_fd, stored, g->span.stored_len, g->span.stored_off);
	if (r < 0)
		return err_set(err, r, "store %s: %s", blob->store->root, strerror(-r));
	bits_change(blob, g->first, g->last, true);
	return 0;
}
