/* SPDX-License-Identifier: Apache-2.0 */

/*
 * source: the bytes of a whole blob, in order, for who sends them on.
 *
 * From a file where there is one (the store's, or a layout's), else streamed from where the blob
 * lives: one transfer for all of it, which is held when the reader is slower, so that there is never
 * more than the ring in memory and nothing on the disk. A reader that goes back begins a new one.
 * Nothing is verified here: who sends it on does that.
 */

#include "blobstore/blobstore-internal.h"
#include "blobstore/net-internal.h"

#include <sys/stat.h>

#define RING_SIZE (1u << 20)

struct stream {
	struct desc desc;
	int fd; /* of a file that has it; -1 = it is streamed */
	uint64_t base;

	struct remote *remote;
	struct transfer t;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	/* guarded by lock */
	uint8_t *ring;
	size_t ring_at, ring_len;
	uint64_t at; /* of the first byte in the ring */
	bool is_running, is_held;
	int result;
	struct err err;
};

static int stream_data(struct transfer *t, const void *bytes, size_t n)
{
	struct stream *s = containerof(t, struct stream, t);

	pthread_mutex_lock(&s->lock);
	s->is_held = n > RING_SIZE - s->ring_len;
	if (!s->is_held) {
		size_t to = (s->ring_at + s->ring_len) % RING_SIZE;
		size_t first = MIN(n, RING_SIZE - to);
		memcpy(s->ring + to, bytes, first);
		memcpy(s->ring, (const uint8_t *)bytes + first, n - first);
		s->ring_len += n;
		pthread_cond_signal(&s->cond);
	}
	bool is_held = s->is_held;
	pthread_mutex_unlock(&s->lock);
	return is_held ? TRANSFER_HOLD : 0;
}

static void stream_done(struct transfer *t, int result, const struct err *err)
{
	struct stream *s = containerof(t, struct stream, t);

	pthread_mutex_lock(&s->lock);
	s->is_running = s->is_held = false;
	s->result = result;
	if (result < 0 && err)
		s->err = *err;
	pthread_cond_signal(&s->cond);
	pthread_mutex_unlock(&s->lock);
}

/* Ends the transfer and forgets what it gave. Called with the lock held. */
static void stream_end(struct stream *s)
{
	if (s->is_running) {
		pthread_mutex_unlock(&s->lock);
		s->remote->ops->cancel(s->remote, &s->t);
		pthread_mutex_lock(&s->lock);
	}
	while (s->is_running)
		pthread_cond_wait(&s->cond, &s->lock);
	s->result = 0;
	s->ring_at = s->ring_len = 0;
}

/* Called with the lock held, which it lets go: where there is no hold, all comes from inside. */
static void stream_begin(struct stream *s)
{
	uint64_t left = s->desc.size - s->at;

	s->t = (struct transfer){
		.digest = s->desc.digest,
		.blob_size = s->desc.size,
		.off = s->at,
		.len = s->remote->ops->resume ? left : MIN(left, (uint64_t)RING_SIZE),
		.is_stream = true,
		.data = stream_data,
		.done = stream_done,
	};
	s->is_running = true;
	s->result = 0;
	pthread_mutex_unlock(&s->lock);
	s->remote->ops->start(s->remote, &s->t);
	pthread_mutex_lock(&s->lock);
}

static size_t stream_take(struct stream *s, void *dst, size_t len)
{
	size_t straight = MIN(s->ring_len, RING_SIZE - s->ring_at);
	size_t n = MIN(len, straight);

	memcpy(dst, s->ring + s->ring_at, n);
	s->ring_at = (s->ring_at + n) % RING_SIZE;
	s->ring_len -= n;
	s->at += n;
	return n;
}

static int stream_read(struct stream *s, uint64_t off, void *dst, size_t len, size_t *got,
		       struct err *err)
{
	bool may_resume = false;
	int r = 0;

	pthread_mutex_lock(&s->lock);
	if (off != s->at) {
		stream_end(s);
		s->at = off;
	}
	if (!s->ring_len && !s->is_running)
		stream_begin(s);
	while (!s->ring_len && s->is_running)
		pthread_cond_wait(&s->cond, &s->lock);
	*got = stream_take(s, dst, len);
	if (!*got)
		r = s->result < 0
			    ? err_set(err, s->result, "%s", err_text(&s->err, s->result))
			    : err_set(err, -EBADMSG, "%s: a blob that ends early", s->remote->name);
	if (s->is_held && s->ring_len <= RING_SIZE / 2) {
		s->is_held = false;
		may_resume = true;
	}
	pthread_mutex_unlock(&s->lock);
	if (may_resume)
		s->remote->ops->resume(s->remote, &s->t);
	return r;
}

static int source_read(void *arg, uint64_t off, void *dst, size_t len, size_t *got, struct err *err)
{
	struct stream *s = arg;

	*got = 0;
	if (off >= s->desc.size || !len)
		return 0;
	len = (size_t)MIN((uint64_t)len, s->desc.size - off);
	if (s->fd < 0)
		return stream_read(s, off, dst, len, got, err);
	int r = pread_full(s->fd, dst, len, s->base + off);
	if (r < 0)
		return err_set(err, r, "reading a blob: %s", strerror(-r));
	*got = len;
	return 0;
}

/* A file of this host that has the blob. */
static int stream_find_file(struct stream *s, struct store *store, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	struct stat st;
	int fd = -1;

	digest_hex(&s->desc.digest, hex);
	if (store && store_file_open(store, "blobs/sha256", hex, &fd) == 0) {
		if (fstat(fd, &st) == 0 && (uint64_t)st.st_size == s->desc.size) {
			s->fd = fd;
			return 0;
		}
		close_fd(fd);
	}
	if (!s->remote)
		return err_set(err, -ENOENT, "blob sha256:%s is not in the store, and nowhere else",
			       hex);
	if (!s->remote->ops->open_local)
		return 0;
	return s->remote->ops->open_local(s->remote, &s->desc.digest, s->desc.size, &s->fd,
					  &s->base, err);
}

int blob_source_open(struct blob_source *out, struct store *store, struct remote *remote,
		     const struct desc *desc, struct err *err)
{
	struct stream *s = calloc(1, sizeof(*s));

	*out = (struct blob_source){0};
	if (!s)
		return err_set(err, -ENOMEM, "no memory");
	s->fd = -1;
	s->desc.digest = desc->digest;
	s->desc.size = desc->size;
	s->remote = remote ? remote_ref(remote) : NULL;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->cond, NULL);
	*out = (struct blob_source){.size = desc->size, .read = source_read, .arg = s};
	int r = stream_find_file(s, store, err);
	if (r == 0 && s->fd < 0 && !(s->ring = malloc(RING_SIZE)))
		r = err_set(err, -ENOMEM, "no memory");
	if (r < 0)
		blob_source_close(out);
	return r;
}

void blob_source_close(struct blob_source *source)
{
	struct stream *s = source->arg;

	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	stream_end(s);
	pthread_mutex_unlock(&s->lock);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->cond);
	remote_unref(s->remote);
	close_fd(s->fd);
	free(s->ring);
	free(s);
	*source = (struct blob_source){0};
}
