/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_journal: the file that makes an upper survive its server.
 *
 * A record is in the file, by one write(2), before memory changes and before the kernel hears of
 * it. So a server that is killed loses nothing at all; what a machine that loses its power keeps is
 * what was synced. A write that fails is cut off again; where not even that works, or where memory
 * runs out after a record was written, the upper takes no more changes until it is opened again.
 *
 * Records say what was done, so the file grows while what is left of it may not. When it has become
 * several times as large as what was there after it was last rewritten, it is written anew from
 * memory beside the old one and put in its place: inodes first, then names.
 *
 * A scratch upper has no journal: everything is in memory.
 */

#include "merge/upper-internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME "journal"
#define NEW_NAME "journal.new"
#define TRIM_MIN (16u << 20)
#define TRIM_FACTOR 4
#define WRITE_PIECE (1u << 20)

static int broken(const struct upper *u, struct err *err)
{
	return err_set(err, -EIO, "%s: a change could not be kept; mount it again", u->path);
}

/* ------------------------------------------------------------------ appending */

static int append(struct upper *u, const struct strbuf *record, struct err *err)
{
	int r = pwrite_full(u->journal_fd, record->data, record->len, u->journal_size);

	if (r < 0) {
		if (ftruncate(u->journal_fd, (off_t)u->journal_size) < 0)
			u->is_broken = true;
		return err_set(err, r, "%s: %s", u->path, strerror(-r));
	}
	u->journal_size += record->len;
	return 0;
}

static int apply_all(struct upper *u, const uint8_t *p, size_t n)
{
	struct upper_item item;
	int r;

	while ((r = upper_item_next(&p, &n, &item)) > 0) {
		r = upper_apply(u, &item);
		if (r < 0)
			break;
	}
	return r;
}

int upper_commit(struct upper *u, bool is_kept, struct err *err)
{
	struct strbuf *record = &u->record;
	int r = 0;

	if (record->failed)
		r = -ENOMEM;
	else if (record->len > UPPER_RECORD_MAX)
		r = -E2BIG;
	else if (u->is_broken)
		r = broken(u, err);
	if (r == 0 && is_kept && u->journal_fd >= 0) {
		upper_record_end(record, 0);
		r = record->failed ? -ENOMEM : append(u, record, err);
	}
	if (r == 0) {
		r = apply_all(u, (const uint8_t *)record->data + UPPER_FRAME,
			      record->len - UPPER_FRAME);
		if (r < 0) {
			u->is_broken = true;
			r = broken(u, err);
		}
	}
	strbuf_clear(record);
	upper_record_begin(record);
	/* The change is made, whatever comes of this: where it fails, later is early enough. */
	if (r == 0 && u->journal_size > TRIM_MIN &&
	    u->journal_size / TRIM_FACTOR > u->journal_base && upper_journal_trim(u, NULL) < 0)
		u->journal_base = u->journal_size;
	return r;
}

int upper_journal_sync(struct upper *u, struct err *err)
{
	pthread_mutex_lock(&u->lock);
	uint64_t size = u->journal_size;
	bool is_done = u->journal_fd < 0 || u->n_synced >= size;
	int fd = is_done ? -1 : fcntl(u->journal_fd, F_DUPFD_CLOEXEC, 0);
	int r = !is_done && fd < 0 ? -errno : 0;
	uint64_t base = u->journal_base;
	pthread_mutex_unlock(&u->lock);
	if (is_done || r < 0)
		return r;
	if (fdatasync(fd) < 0)
		r = err_errno(err, "%s", u->path);
	close_fd(fd);
	pthread_mutex_lock(&u->lock);
	/* A journal that was rewritten meanwhile was synced as a whole. */
	if (r == 0 && u->journal_base == base)
		u->n_synced = MAX(u->n_synced, size);
	pthread_mutex_unlock(&u->lock);
	return r;
}

/* ------------------------------------------------------------------ rewriting */

/* Records are kept small, so that each can be read back. */
struct rewrite {
	int fd;
	uint64_t off;
	struct strbuf out;
	size_t start; /* of the record in out */
	int result;
};

static void rewrite_flush(struct rewrite *w, bool is_last)
{
	if (w->out.len > w->start + UPPER_FRAME)
		upper_record_end(&w->out, w->start);
	else
		w->out.len = w->start;
	if (w->out.failed && w->result == 0)
		w->result = -ENOMEM;
	if (w->result == 0 && (is_last || w->out.len >= WRITE_PIECE)) {
		w->result = pwrite_full(w->fd, w->out.data, w->out.len, w->off);
		w->off += w->out.len;
		strbuf_clear(&w->out);
	}
	w->start = upper_record_begin(&w->out);
}

static void rewrite_put(struct rewrite *w, const struct upper_item *item)
{
	upper_item_put(&w->out, item);
	if (w->out.len - w->start >= 4096)
		rewrite_flush(w, false);
}

static void rewrite_names(struct rewrite *w, const struct upper_node *n)
{
	for (size_t i = 0; n->dir && i < n->dir->order.n; i++) {
		const struct upper_entry *e = n->dir->order.items[i].entry;

		if (e)
			rewrite_put(w, &(struct upper_item){.kind = UPPER_ENTRY,
							    .ino = n->ino,
							    .child = e->child,
							    .is_hiding = e->is_hiding,
							    .name = e->name,
							    .name_len = e->len});
	}
}

static void rewrite_all(struct upper *u, struct rewrite *w)
{
	strbuf_add(&w->out, UPPER_MAGIC, 8);
	w->start = upper_record_begin(&w->out);
	upper_item_put(&w->out, &(struct upper_item){.kind = UPPER_BELOW,
						     .name = u->key,
						     .name_len = strlen(u->key)});
	rewrite_put(w, &(struct upper_item){.kind = UPPER_NEXT, .ino = u->next_ino});
	rewrite_flush(w, false);
	for (size_t i = 0; i < u->by_ino.n_buckets && w->result == 0; i++) {
		for (struct upper_node *n = u->by_ino.buckets[i]; n; n = n->next_ino) {
			if (n->is_orphan)
				continue;
			upper_node_put(u, n, &w->out);
			rewrite_flush(w, false);
		}
	}
	for (size_t i = 0; i < u->by_ino.n_buckets && w->result == 0; i++)
		for (struct upper_node *n = u->by_ino.buckets[i]; n; n = n->next_ino)
			if (!n->is_orphan)
				rewrite_names(w, n);
	rewrite_flush(w, true);
}

int upper_journal_trim(struct upper *u, struct err *err)
{
	struct rewrite w = {
		.fd = openat(u->dir_fd, NEW_NAME, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};

	if (w.fd < 0)
		return err_errno(err, "%s/" NEW_NAME, u->path);
	rewrite_all(u, &w);
	strbuf_free(&w.out);
	if (w.result < 0) {
		err_set(err, w.result, "%s/" NEW_NAME ": %s", u->path, strerror(-w.result));
	} else if (fsync(w.fd) < 0 || renameat(u->dir_fd, NEW_NAME, u->dir_fd, NAME) < 0 ||
		   fsync(u->dir_fd) < 0) {
		w.result = err_errno(err, "%s/" NEW_NAME, u->path);
	}
	if (w.result < 0) {
		close_fd(w.fd);
		unlinkat(u->dir_fd, NEW_NAME, 0);
		return w.result;
	}
	close_fd(u->journal_fd);
	u->journal_fd = w.fd;
	u->journal_size = u->journal_base = u->n_synced = w.off;
	return 0;
}

/* ------------------------------------------------------------------ reading it again */

/* The first record: which tree it lies over. *is_same: ids of that tree may be believed. */
static int replay_head(struct upper *u, const uint8_t *record, size_t n, bool *is_same,
		       struct err *err)
{
	struct upper_item item;

	if (upper_item_next(&record, &n, &item) <= 0 || item.kind != UPPER_BELOW)
		return err_set(err, -EBADMSG, "%s/" NAME ": damaged at its start", u->path);
	*is_same = !u->is_below_live && item.name_len > 0 && item.name_len == strlen(u->key) &&
		   memcmp(item.name, u->key, item.name_len) == 0;
	return apply_all(u, record, n);
}

static int replay(struct upper *u, const uint8_t *bytes, size_t n, bool *is_same, struct err *err)
{
	const uint8_t *p = bytes, *record;
	size_t left = n, len;
	int r = 0;

	if (left < 8 || memcmp(p, UPPER_MAGIC, 8) != 0)
		return err_set(err, -ENOTSUP, "%s/" NAME ": not a journal of this version",
			       u->path);
	p += 8;
	left -= 8;
	if (upper_record_next(&p, &left, &record, &len) <= 0)
		return err_set(err, -EBADMSG, "%s/" NAME ": damaged at its start", u->path);
	r = replay_head(u, record, len, is_same, err);
	while (r == 0 && upper_record_next(&p, &left, &record, &len) > 0)
		r = apply_all(u, record, len);
	if (r < 0 && r != -ENOMEM)
		return err_set(err, -EBADMSG, "%s/" NAME ": makes no sense at byte %zu", u->path,
			       (size_t)(record - bytes));
	if (left > 0)
		log_warn("%s/" NAME ": the last %zu bytes are torn and left out", u->path, left);
	u->journal_size = n - left;
	return r;
}

/* Journals end when their writer is killed, but below this one they are no journals. */
#define JOURNAL_MAX (UINT64_C(8) << 30)

static int read_again(struct upper *u, bool *is_same, struct err *err)
{
	struct stat st;

	if (fstat(u->journal_fd, &st) < 0)
		return err_errno(err, "%s/" NAME, u->path);
	if ((uint64_t)st.st_size > JOURNAL_MAX)
		return err_set(err, -EFBIG, "%s/" NAME ": too large", u->path);
	size_t n = (size_t)st.st_size;
	scoped(free) uint8_t *bytes = malloc(MAX(n, (size_t)1));
	if (!bytes)
		return -ENOMEM;
	int r = pread_full(u->journal_fd, bytes, n, 0);
	if (r < 0)
		return err_set(err, r, "%s/" NAME ": %s", u->path, strerror(-r));
	u->is_replaying = true;
	r = replay(u, bytes, n, is_same, err);
	u->is_replaying = false;
	return r;
}

/* Finds all inodes of the tree below again, by their paths; what is not there any more keeps its
 * metadata and has lost its content. */
static int bind_again(struct upper *u, struct err *err)
{
	vec(struct upper_node *) bound = {0};
	int r = 0;

	for (size_t i = 0; i < u->by_ino.n_buckets && r == 0; i++) {
		for (struct upper_node *n = u->by_ino.buckets[i]; n && r == 0; n = n->next_ino) {
			struct upper_node **slot = n->below ? vec_push(&bound) : NULL;
			if (n->below && !slot)
				r = -ENOMEM;
			else if (slot)
				*slot = n;
		}
	}
	for (size_t i = 0; i < bound.n; i++)
		upper_node_unbind(u, bound.items[i]);
	for (size_t i = 0; i < bound.n && r == 0; i++) {
		struct upper_node *n = bound.items[i];
		scoped(strbuf_free) struct strbuf real = {0};
		scoped(free) char *path = strdup(n->path);
		struct attr attr;

		if (!path)
			r = -ENOMEM;
		else
			r = tree_walk_real(u->below, path, false, &attr, &real, err);
		bool is_it = r == 0 && attr.type == n->i.type && !upper_by_id(u, attr.id) &&
			     (!real.data || strcmp(real.data, path) == 0);
		if (r == -ENOENT || r == -ENOTDIR || r == -ELOOP)
			r = 0;
		if (is_it)
			r = upper_node_bind(u, n, attr.id, 0, path, strlen(path));
		else if (r == 0)
			log_warn("%s: %s is not in the tree below any more", u->path, path);
	}
	vec_free(&bound);
	return r;
}

int upper_journal_open(struct upper *u, struct err *err)
{
	bool is_same = false;
	int r;

	if (u->is_scratch)
		return 0;
	u->journal_fd = openat(u->dir_fd, NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (u->journal_fd < 0 && errno == ENOENT)
		return upper_journal_trim(u, err); /* a new one */
	if (u->journal_fd < 0)
		return err_errno(err, "%s/" NAME, u->path);
	r = read_again(u, &is_same, err);
	if (r == 0 && !is_same)
		r = bind_again(u, err);
	if (r < 0)
		return r;
	/* Rewritten at once: what was torn is gone, and the ids are those of now. On a full disk it
	 * has to do as it is, unless its ids mean something else. */
	r = upper_journal_trim(u, err);
	if (r < 0 && is_same && ftruncate(u->journal_fd, (off_t)u->journal_size) == 0) {
		u->journal_base = u->journal_size;
		return 0;
	}
	return r;
}

void upper_journal_close(struct upper *u)
{
	if (u->journal_fd >= 0)
		close_fd(u->journal_fd);
	u->journal_fd = -1;
}
