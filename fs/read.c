/* SPDX-License-Identifier: Apache-2.0 */

/*
 * read: content.
 *
 * A READ is copied twice, from the tree into the request's buffer and from there to the kernel: for
 * small reads that is several times faster than splicing pages, and large files that are all here
 * go through passthrough and never come this way. The reply leaves on the reading thread where the
 * tree has the bytes, else on the thread that brought them.
 *
 * The kernel asks twice for what fails: its read-ahead drops the error, and the read that wanted the
 * first page asks for that again. By then the deadline has passed, so the second time the same
 * answer is given without trying.
 */

#include "fs/fs-internal.h"

#include <unistd.h>

#define FAILED_NS (200 * NS_PER_MS)

/* ------------------------------------------------------------------ READ */

void read_reply(struct session *s, const struct call *call, const char *buf, int64_t result,
		const struct err *err)
{
	if (result < 0) {
		ops_fail(s, call, (int)result, err);
		return;
	}
	atomic_fetch_add_explicit(&s->n_reads, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->n_read_bytes, (uint64_t)result, memory_order_relaxed);
	fuse_reply_buf(call->req, buf, (size_t)result);
}

int read_attempt(struct session *s, struct parked *p, struct err *err)
{
	size_t size = MIN(p->call.size, (size_t)REPLY_MAX);
	int64_t n =
		tree_read(s->tree, p->call.id, p->call.off, p->buf, size, parked_read_done, p, err);

	if (n < 0)
		return (int)n;
	read_reply(s, &p->call, p->buf, n, NULL);
	return 0;
}

void read_failed(struct session *s, const struct call *call)
{
	uint64_t now = now_ns();

	pthread_mutex_lock(&s->lock);
	s->failed_reads[s->n_failed_reads++ % N_FAILED_READS] =
		(struct failed_read){call->id, call->off, call->off + call->size, now};
	pthread_mutex_unlock(&s->lock);
	atomic_store(&s->last_failed_ns, now);
}

static bool has_just_failed(struct session *s, uint64_t id, uint64_t off)
{
	uint64_t last = atomic_load_explicit(&s->last_failed_ns, memory_order_relaxed);
	bool found = false;

	if (!last || now_ns() - last > FAILED_NS)
		return false;
	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < MIN(s->n_failed_reads, (size_t)N_FAILED_READS) && !found; i++) {
		struct failed_read *f = &s->failed_reads[i];
		found = f->id == id && off >= f->off && off < f->end &&
			now_ns() - f->at_ns <= FAILED_NS;
		if (found)
			f->id = 0; /* the third time it is somebody who tries again */
	}
	pthread_mutex_unlock(&s->lock);
	return found;
}

void read_op(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	if (has_just_failed(fuse_req_userdata(req), ino, (uint64_t)off)) {
		fuse_reply_err(req, EIO);
		return;
	}
	ops_start(&(struct call){
		.op = CALL_READ, .req = req, .id = ino, .off = (uint64_t)off, .size = size});
}

/* ------------------------------------------------------------------ LSEEK */

/* The first hole at or after @off; the end of a file counts as one. */
static int seek_hole(struct session *s, uint64_t id, uint64_t off, uint64_t size, uint64_t *out)
{
	uint64_t data, end;

	while (off < size) {
		int r = tree_seek_data(s->tree, id, off, &data, &end);
		if (r == -ENODATA || (r == 0 && data > off))
			break;
		if (r < 0)
			return r;
		if (end <= off)
			break;
		off = end;
	}
	*out = MIN(off, size);
	return 0;
}

static int seek(struct session *s, const struct call *call, uint64_t size, uint64_t *out)
{
	uint64_t end;

	if (call->off >= size)
		return -ENXIO;
	if (!s->tree->ops->seek_data) { /* knows nothing of holes: all is data */
		*out = call->whence == SEEK_DATA ? call->off : size;
		return 0;
	}
	if (call->whence == SEEK_HOLE)
		return seek_hole(s, call->id, call->off, size, out);
	int r = tree_seek_data(s->tree, call->id, call->off, out, &end);
	return r == -ENODATA ? -ENXIO : r;
}

int lseek_attempt(struct session *s, struct parked *p, struct err *err)
{
	struct attr a;
	uint64_t out;

	int r = tree_getattr(s->tree, p->call.id, &a, &p->wait, err);
	if (r < 0)
		return r;
	r = seek(s, &p->call, a.size, &out);
	if (r == -ENXIO)
		fuse_reply_err(p->call.req, ENXIO);
	else if (r == 0)
		fuse_reply_lseek(p->call.req, (off_t)out);
	return r == -ENXIO ? 0 : r;
}

void lseek_op(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	if (whence != SEEK_DATA && whence != SEEK_HOLE) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	ops_start(&(struct call){
		.op = CALL_LSEEK, .req = req, .id = ino, .off = (uint64_t)off, .whence = whence});
}
