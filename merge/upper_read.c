/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_read: content, read.
 *
 * Where a byte is, is told at the head of upper_data.c.
 * A read that needs bytes of both places reads those below first and then lays over them what is
 * here by that time, so that a write in between is never lost.
 */

#include "merge/upper-internal.h"

#include <errno.h>
#include <unistd.h>

/* A read whose bytes below are on their way. */
struct overlaid {
	struct upper *u;
	uint64_t id, off, below_off;
	uint8_t *dst;
	size_t len, below_len;
	blob_done done;
	void *arg;
};

static int read_host(int fd, uint8_t *dst, uint64_t off, size_t len)
{
	while (len) {
		ssize_t n = pread(fd, dst, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0) {
			memset(dst, 0, len);
			break;
		}
		dst += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/* With the lock: lays what is here over what was read below. */
static int lay_over(struct upper *u, struct upper_node *n, uint64_t off, uint8_t *dst, size_t len)
{
	uint64_t end = off + len;
	int fd = upper_content_open(u, n, true);
	int r = MIN(fd, 0);

	for (uint64_t at = off; r == 0 && at < end;) {
		uint64_t g = at / GRANULE;
		uint64_t stop = MIN(end, (g + 1) * GRANULE);
		if (upper_is_below(n, g))
			at = MAX(at, upper_granule_end(n, g));
		if (at < stop)
			r = read_host(fd, dst + (at - off), at, stop - at);
		at = stop;
	}
	return r;
}

static int64_t overlaid_end(struct overlaid *o, int64_t result)
{
	struct upper *u = o->u;
	int r = (int)MIN(result, (int64_t)0);

	if (r == 0 && (size_t)result < o->below_len)
		memset(o->dst + (o->below_off - o->off) + result, 0, o->below_len - (size_t)result);
	pthread_mutex_lock(&u->lock);
	struct upper_node *n = upper_by_id(u, o->id);
	if (r == 0 && !n)
		r = -ESTALE;
	if (r == 0)
		r = lay_over(u, n, o->off, o->dst, o->len);
	pthread_mutex_unlock(&u->lock);
	return r < 0 ? r : (int64_t)o->len;
}

static void overlaid_done(void *arg, int64_t result, const struct err *err)
{
	struct overlaid *o = arg;
	struct upper *u = o->u;
	int64_t r = overlaid_end(o, result);

	o->done(o->arg, r, r < 0 ? err : NULL);
	free(o);
	tree_unref(&u->tree);
}

static int64_t read_overlaid(struct upper *u, uint64_t below, struct overlaid o, struct err *err)
{
	struct overlaid *copy = malloc(sizeof(*copy));

	if (!copy)
		return -ENOMEM;
	*copy = o;
	tree_ref(&u->tree);
	int64_t r = below ? tree_read(u->below, below, o.below_off, o.dst + (o.below_off - o.off),
				      o.below_len, o.done ? overlaid_done : NULL, copy, err)
			  : -ESTALE;
	if (r == -EINPROGRESS)
		return r;
	r = overlaid_end(copy, r);
	free(copy);
	tree_unref(&u->tree);
	return r;
}

/* With the lock, which is gone afterwards. */
static int64_t read_node(struct upper *u, struct upper_node *n, struct overlaid *o, struct err *err)
{
	uint64_t size, a, b, below = n->below;
	int r = upper_content_stat(u, n);

	size = upper_content_size(n);
	o->len = o->off >= size ? 0 : (size_t)MIN((uint64_t)o->len, size - o->off);
	bool is_mixed = r == 0 && n->i.content == CONTENT_PART &&
			upper_span_below(n, o->off, o->off + o->len, &a, &b);
	if (r == 0 && !is_mixed && o->len)
		r = lay_over(u, n, o->off, o->dst, o->len);
	pthread_mutex_unlock(&u->lock);
	if (!is_mixed)
		return r < 0 ? err_set(err, r, "%s: %s", u->path, strerror(-r)) : (int64_t)o->len;
	o->below_off = a;
	o->below_len = (size_t)(b - a);
	return read_overlaid(u, below, *o, err);
}

int64_t upper_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len, blob_done done,
		   void *arg, struct err *err)
{
	struct upper *u = upper_of(t);
	struct overlaid o = {
		.u = u, .id = id, .off = off, .dst = dst, .len = len, .done = done, .arg = arg};

	pthread_mutex_lock(&u->lock);
	struct upper_node *n = upper_by_id(u, id);
	if (n && n->i.type != NODE_FILE) {
		pthread_mutex_unlock(&u->lock);
		return -EINVAL;
	}
	if (n && n->i.content != CONTENT_BELOW)
		return read_node(u, n, &o, err);
	uint64_t below = n ? n->below : upper_is_new(u, id) ? 0 : id;
	pthread_mutex_unlock(&u->lock);
	if (!below)
		return -ESTALE;
	return tree_read(u->below, below, off, dst, len, done, arg, err);
}

/* The first data of the host's file at or after @off. */
static int seek_host(int fd, uint64_t off, uint64_t *data, uint64_t *end)
{
	off_t a = lseek(fd, (off_t)off, SEEK_DATA);

	if (a < 0)
		return errno == ENXIO ? -ENODATA : -errno;
	off_t b = lseek(fd, a, SEEK_HOLE);
	if (b < 0)
		return -errno;
	*data = (uint64_t)a;
	*end = (uint64_t)b;
	return 0;
}

static int seek_below(struct upper *u, uint64_t below, uint64_t off, uint64_t size, uint64_t *data,
		      uint64_t *end)
{
	if (u->below->ops->seek_data)
		return tree_seek_data(u->below, below, off, data, end);
	*data = off;
	*end = size;
	return off < size ? 0 : -ENODATA;
}

int upper_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	struct upper *u = upper_of(t);
	struct attr attr;
	int r;

	pthread_mutex_lock(&u->lock);
	struct upper_node *n = upper_by_id(u, id);
	if (!n || n->i.content == CONTENT_BELOW) {
		uint64_t below = n ? n->below : id;
		pthread_mutex_unlock(&u->lock);
		r = tree_getattr(u->below, below, &attr, NULL, NULL);
		return r < 0 ? r : seek_below(u, below, off, attr.size, data, end);
	}
	r = upper_content_stat(u, n);
	if (r == 0 && n->i.content == CONTENT_PART && off < n->i.limit) {
		*data = off; /* what holes there are below does not matter any more */
		*end = n->i.limit;
	} else if (r == 0) {
		int fd = upper_content_open(u, n, false);
		r = fd == -ENOENT ? -ENODATA : fd < 0 ? fd : seek_host(fd, off, data, end);
	}
	pthread_mutex_unlock(&u->lock);
	return r;
}
