/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_data: content.
 *
 * What was written of a file is a plain file of the host, data/XX/<number>, made when the first
 * byte comes. Its size and times are the file's size and times, so that a write needs no record.
 * Where the file is one of the tree below, three things say where a byte is:
 *	limit	beyond it everything is here. It begins as the size of the file below and only
 *		falls, by truncation; so appending copies nothing
 *	marks	granules (64 KiB) before the limit that are here
 *	else	it is below
 * A write that covers an unmarked granule in part first copies it up ("fills" it); one that covers
 * it whole marks it when the bytes are written. Filling and marking change nothing that could be
 * seen, so a server may be killed between any two steps. Truncation shortens the host's file
 * before it says so in a record; a limit beyond the end of the file therefore means its end.
 *
 * A fill's bytes may be far away. Then the call says "later"; when they have come the caller is
 * told to try again, and that attempt writes them: no thread waits, and none that brings bytes
 * from the network writes here.
 *
 * Descriptors are kept for a while by use, not by open files of the mount: the kernel does not say
 * when those are closed. Content that nobody needs any more is unlinked by a thread of its own.
 */

#include "merge/upper-internal.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPEN_MAX_KEPT 256
#define FILL_MAX (UINT64_C(1) << 20)
#define FANOUT_SHIFT 12 /* so many neighbours share a folder */

/* Bytes of the file below on their way. */
struct upper_fill {
	struct upper *u; /* a reference to its tree while the bytes are on their way */
	uint64_t off, len;
	enum { FILL_RUNNING, FILL_ARRIVED, FILL_FAILED } state;
	int64_t result;
	struct err err;
	struct tree_wait *waits;
	uint8_t bytes[];
};

/* ------------------------------------------------------------------ files of the host */

static unsigned fanout_of(uint64_t ino)
{
	return (unsigned)(ino >> FANOUT_SHIFT) & 255;
}

static void content_name(char out[32], uint64_t ino)
{
	snprintf(out, 32, "%02x/%" PRIx64, fanout_of(ino), ino);
}

void upper_content_close(struct upper *u, struct upper_node *n)
{
	if (n->fill && n->fill->state != FILL_RUNNING)
		free(take(n->fill));
	if (n->fd < 0)
		return;
	TAILQ_REMOVE(&u->open, n, by_use);
	u->n_open--;
	close_fd(n->fd);
	n->fd = -1;
}

static int open_content_file(struct upper *u, struct upper_node *n, bool make)
{
	char name[32];

	content_name(name, n->ino);
	if (make && !u->has_fanout[fanout_of(n->ino)]) {
		char dir[3] = {name[0], name[1], '\0'};
		if (mkdirat(u->data_fd, dir, 0700) < 0 && errno != EEXIST)
			return -errno;
		u->has_fanout[fanout_of(n->ino)] = true;
	}
	int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
	int fd = openat(u->data_fd, name, flags);
	if (fd < 0 && errno == ENOENT && make) {
		fd = openat(u->data_fd, name, flags | O_CREAT, 0600);
		n->is_new_file = true;
		n->is_fresh = false;
	}
	return fd < 0 ? -errno : fd;
}

int upper_content_open(struct upper *u, struct upper_node *n, bool make)
{
	if (n->fd >= 0) {
		TAILQ_REMOVE(&u->open, n, by_use);
		TAILQ_INSERT_TAIL(&u->open, n, by_use);
		return n->fd;
	}
	while (u->n_open >= OPEN_MAX_KEPT)
		upper_content_close(u, TAILQ_FIRST(&u->open));
	int fd = open_content_file(u, n, make);
	if (fd < 0)
		return fd;
	n->fd = fd;
	TAILQ_INSERT_TAIL(&u->open, n, by_use);
	u->n_open++;
	return fd;
}

int upper_content_stat(struct upper *u, struct upper_node *n)
{
	struct stat st;
	char name[32];

	if (n->is_fresh || n->i.type != NODE_FILE || n->i.content == CONTENT_BELOW)
		return 0;
	content_name(name, n->ino);
	int r = n->fd >= 0 ? fstat(n->fd, &st)
			   : fstatat(u->data_fd, name, &st, AT_SYMLINK_NOFOLLOW);
	if (r < 0 && errno != ENOENT)
		return -errno;
	if (r < 0) { /* nothing was written yet */
		n->host_size = n->host_allocated = 0;
		n->host_mtime = n->i.mtime;
		n->host_ctime = n->i.ctime;
	} else {
		n->host_size = (uint64_t)st.st_size;
		n->host_allocated = (uint64_t)st.st_blocks * 512;
		n->host_mtime = st.st_mtim;
		n->host_ctime = st.st_ctim;
	}
	if (n->i.content == CONTENT_PART)
		n->i.limit = MIN(n->i.limit, n->host_size);
	n->is_fresh = true;
	return 0;
}

/* ------------------------------------------------------------------ the reaper */

static void *reaper_main(void *arg)
{
	struct upper *u = arg;
	char name[32];

	pthread_setname_np(pthread_self(), "reaper");
	pthread_mutex_lock(&u->lock);
	for (;;) {
		while (!u->dead.n && !u->is_closed)
			pthread_cond_wait(&u->wake, &u->lock);
		if (!u->dead.n)
			break;
		content_name(name, u->dead.items[--u->dead.n]);
		pthread_mutex_unlock(&u->lock);
		if (unlinkat(u->data_fd, name, 0) < 0 && errno != ENOENT)
			log_warn("%s: data/%s stays: %s", u->path, name, strerror(errno));
		pthread_mutex_lock(&u->lock);
	}
	pthread_mutex_unlock(&u->lock);
	return NULL;
}

/* Its thread begins with the first work: a mount forks before it serves. */
static int start_reaper(struct upper *u, struct err *err)
{
	int r = u->has_reaper ? 0 : pthread_create(&u->reaper, NULL, reaper_main, u);

	if (r)
		return err_set(err, -r, "cannot start a thread: %s", strerror(r));
	u->has_reaper = true;
	return 0;
}

void upper_reaper_stop(struct upper *u)
{
	pthread_mutex_lock(&u->lock);
	u->is_closed = true;
	pthread_cond_signal(&u->wake);
	pthread_mutex_unlock(&u->lock);
	if (u->has_reaper)
		pthread_join(u->reaper, NULL);
	u->has_reaper = false;
}

/* What cannot be handed over is unlinked here. */
void upper_content_remove(struct upper *u, uint64_t ino)
{
	char name[32];
	uint64_t *slot = start_reaper(u, NULL) == 0 ? vec_push(&u->dead) : NULL;

	if (slot) {
		*slot = ino;
		pthread_cond_signal(&u->wake);
		return;
	}
	content_name(name, ino);
	unlinkat(u->data_fd, name, 0);
}

/* ------------------------------------------------------------------ where bytes are */

uint64_t upper_granule_end(const struct upper_node *n, uint64_t g)
{
	return MIN((g + 1) * GRANULE, n->i.limit);
}

bool upper_is_below(const struct upper_node *n, uint64_t g)
{
	return n->i.content != CONTENT_HERE && g * GRANULE < n->i.limit && !upper_is_marked(n, g);
}

bool upper_span_below(const struct upper_node *n, uint64_t off, uint64_t end, uint64_t *a,
		      uint64_t *b)
{
	bool found = false;

	end = MIN(end, n->i.limit);
	for (uint64_t g = off / GRANULE; off < end && g * GRANULE < end; g++) {
		if (!upper_is_below(n, g))
			continue;
		if (!found)
			*a = MAX(off, g * GRANULE);
		*b = MIN(end, upper_granule_end(n, g));
		found = true;
	}
	return found;
}

/* Marks are only added and the limit only falls, so that what was passed once stays passed. */
static bool has_below(struct upper_node *n)
{
	while (upper_is_marked(n, n->first_below))
		n->first_below++;
	return upper_is_below(n, n->first_below);
}

/* From now on content is here: a host file that is as long, of which nothing was written. */
static int make_part(struct upper *u, struct upper_node *n, struct err *err)
{
	if (n->i.content != CONTENT_BELOW)
		return 0;
	struct upper_inode i = n->i;
	int fd = upper_content_open(u, n, true);
	if (fd < 0)
		return err_set(err, fd, "%s: %s", u->path, strerror(-fd));
	/* A server that was killed before its record may have left one. */
	if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)n->i.size) < 0)
		return err_errno(err, "%s", u->path);
	i.content = i.limit ? CONTENT_PART : CONTENT_HERE;
	upper_put_inode(u, n, &i);
	n->is_fresh = false;
	return upper_commit(u, !n->is_orphan, err);
}

/* Marks granules; a file that has no others any more is a file like those made here. */
static int mark(struct upper *u, struct upper_node *n, uint64_t first, uint64_t end,
		struct err *err)
{
	for (uint64_t g = first; g < end;) {
		uint64_t from = g;
		while (g < end && upper_is_below(n, g))
			g++;
		if (g > from)
			upper_item_put(&u->record, &(struct upper_item){.kind = UPPER_DATA,
									.ino = n->ino,
									.first = from,
									.n = g - from});
		else
			g++;
	}
	if (u->record.len == UPPER_FRAME)
		return 0;
	int r = upper_commit(u, !n->is_orphan, err);
	if (r == 0 && n->i.content == CONTENT_PART && !has_below(n)) {
		struct upper_inode i = n->i;
		i.content = CONTENT_HERE;
		upper_put_inode(u, n, &i);
		r = upper_commit(u, !n->is_orphan, err);
	}
	return r;
}

/* ------------------------------------------------------------------ filling */

static void fill_done(void *arg, int64_t result, const struct err *err)
{
	struct upper_fill *f = arg;
	struct upper *u = f->u;

	pthread_mutex_lock(&u->lock);
	f->state = result < 0 ? FILL_FAILED : FILL_ARRIVED;
	f->result = result;
	if (err)
		f->err = *err;
	struct tree_wait *waits = take(f->waits);
	pthread_mutex_unlock(&u->lock);
	while (waits) {
		struct tree_wait *wait = waits;
		waits = wait->next;
		wait->ready(wait);
	}
	tree_unref(&u->tree);
}

/* Writes what has arrived where nothing else was written since. */
static int fill_install(struct upper *u, struct upper_node *n, struct upper_fill *f,
			struct err *err)
{
	uint64_t end = f->off + f->len;
	int r = make_part(u, n, err);
	int fd = r == 0 ? upper_content_open(u, n, true) : r;

	if ((uint64_t)f->result < f->len) /* a live file has become shorter */
		memset(f->bytes + f->result, 0, f->len - (uint64_t)f->result);
	if (fd < 0)
		return r < 0 ? r : err_set(err, fd, "%s: %s", u->path, strerror(-fd));
	end = MIN(end, n->i.limit);
	for (uint64_t g = f->off / GRANULE; r == 0 && g * GRANULE < end; g++) {
		uint64_t a = MAX(f->off, g * GRANULE), b = upper_granule_end(n, g);
		if (upper_is_below(n, g))
			r = pwrite_full(fd, f->bytes + (a - f->off), b - a, a);
	}
	n->is_fresh = false;
	if (r < 0)
		return err_set(err, r, "%s: %s", u->path, strerror(-r));
	return mark(u, n, f->off / GRANULE, (end + GRANULE - 1) / GRANULE, err);
}

/* Uses up a fill that has come to its end. */
static int fill_end(struct upper *u, struct upper_node *n, struct err *err)
{
	struct upper_fill *f = take(n->fill);
	int r = (int)MIN(f->result, (int64_t)0);

	if (r < 0 && err)
		*err = f->err;
	if (r == 0)
		r = fill_install(u, n, f, err);
	free(f);
	return r;
}

/* Has granules that hold [a, b) filled. With the lock, which is gone after an error; 0: look
 * again. */
static int fill(struct upper *u, struct upper_node *n, uint64_t a, uint64_t b,
		struct tree_wait *wait, struct err *err)
{
	struct upper_fill *f = n->fill;
	int r = 0;

	if (!f) {
		a -= a % GRANULE;
		b = MIN((b + GRANULE - 1) / GRANULE * GRANULE, a + FILL_MAX);
		b = MIN(b, n->i.limit);
		f = malloc(sizeof(*f) + (b - a));
		if (!f) {
			pthread_mutex_unlock(&u->lock);
			return -ENOMEM;
		}
		*f = (struct upper_fill){.u = u, .off = a, .len = b - a};
		n->fill = f;
		tree_ref(&u->tree);
		uint64_t below = n->below;
		pthread_mutex_unlock(&u->lock);
		int64_t got = !below ? -ESTALE
				     : tree_read(u->below, below, f->off, f->bytes, f->len,
						 wait ? fill_done : NULL, f, err);
		if (got != -EINPROGRESS)
			fill_done(f, got, got < 0 ? err : NULL);
		pthread_mutex_lock(&u->lock);
		if (n->fill != f) /* somebody else has used it up */
			return 0;
	}
	if (f->state == FILL_RUNNING && !wait)
		r = -EBUSY;
	else if (f->state == FILL_RUNNING) {
		wait->next = f->waits;
		f->waits = wait;
		r = -EAGAIN;
	} else {
		r = fill_end(u, n, err);
	}
	if (r < 0)
		pthread_mutex_unlock(&u->lock);
	return r;
}

/* Gets the first granule of [off, end) that must be filled before that range is written: one that
 * the range covers only in part. A range that makes the file longer fills all, so that whoever
 * sees the new length sees the rest. */
static bool must_fill(const struct upper_node *n, uint64_t off, uint64_t end, uint64_t size,
		      uint64_t *a, uint64_t *b)
{
	uint64_t stop = MIN(end, n->i.limit);

	for (uint64_t g = off / GRANULE; off < stop && g * GRANULE < stop; g++) {
		bool covers = off <= g * GRANULE && end >= upper_granule_end(n, g) && end <= size;

		if (!upper_is_below(n, g) || covers)
			continue;
		*a = g * GRANULE;
		*b = upper_granule_end(n, g);
		return true;
	}
	return false;
}

uint64_t upper_content_size(const struct upper_node *n)
{
	return n->i.content == CONTENT_BELOW ? n->i.size : n->host_size;
}

/* Makes [off, end) of a file ready to be written by the host: 0 = the lock is held and *fd the
 * content. */
static int prepare(struct upper *u, uint64_t id, uint64_t off, uint64_t end,
		   struct upper_node **out, struct tree_wait *wait, struct err *err)
{
	uint64_t a, b;
	int r = upper_hold(u, id, out, wait, err);

	if (r < 0)
		return r;
	struct upper_node *n = *out;
	if (n->i.type != NODE_FILE) {
		pthread_mutex_unlock(&u->lock);
		return n->i.type == NODE_DIR ? -EISDIR : -EINVAL;
	}
	do {
		r = upper_content_stat(u, n);
		if (r == 0 && must_fill(n, off, end, upper_content_size(n), &a, &b)) {
			r = fill(u, n, a, b, wait, err);
			if (r < 0)
				return r; /* the lock is gone */
			continue;
		}
		break;
	} while (true);
	if (r == 0)
		r = make_part(u, n, err);
	if (r == 0) {
		int fd = upper_content_open(u, n, true);
		r = fd < 0 ? err_set(err, fd, "%s: %s", u->path, strerror(-fd)) : 0;
	}
	if (r < 0)
		pthread_mutex_unlock(&u->lock);
	return r;
}

/* The granules of [off, end) that were covered whole by what the host has just written. */
static int mark_covered(struct upper *u, struct upper_node *n, uint64_t off, uint64_t end,
			struct err *err)
{
	if (n->i.content != CONTENT_PART || off >= n->i.limit)
		return 0;
	uint64_t stop = MIN(end, n->i.limit);
	uint64_t first = (off + GRANULE - 1) / GRANULE;
	uint64_t last = stop == n->i.limit ? (stop + GRANULE - 1) / GRANULE : stop / GRANULE;
	return first < last ? mark(u, n, first, last, err) : 0;
}

/* ------------------------------------------------------------------ writing */

int64_t upper_write(struct upper *u, uint64_t id, uint64_t off, const void *bytes, size_t len,
		    bool kills_suid, struct tree_wait *wait, struct err *err)
{
	struct upper_node *n;
	int r = 0;

	if (off > INT64_MAX || len > INT64_MAX - off)
		return -EFBIG;
	if (kills_suid)
		r = upper_set(u, id, &(struct upper_set){.what = UPPER_KILL}, NULL, wait, err);
	if (r == 0)
		r = prepare(u, id, off, off + len, &n, wait, err);
	if (r < 0)
		return r;
	r = u->is_broken ? -EIO : pwrite_full(n->fd, bytes, len, off);
	n->is_fresh = false;
	if (r == 0)
		r = mark_covered(u, n, off, off + len, err);
	pthread_mutex_unlock(&u->lock);
	return r < 0 ? r : (int64_t)len;
}

int upper_allocate(struct upper *u, uint64_t id, int mode, uint64_t off, uint64_t len,
		   struct tree_wait *wait, struct err *err)
{
	bool erases = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
	struct upper_node *n;

	if (len == 0 || off > INT64_MAX || len > INT64_MAX - off)
		return -EINVAL;
	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		return -EOPNOTSUPP;
	int r = prepare(u, id, off, erases ? off + len : off, &n, wait, err);
	if (r < 0)
		return r;
	if (u->is_broken)
		r = -EIO;
	else if (fallocate(n->fd, mode, (off_t)off, (off_t)len) < 0)
		r = -errno;
	n->is_fresh = false;
	if (r == 0 && erases)
		r = mark_covered(u, n, off, off + len, err);
	pthread_mutex_unlock(&u->lock);
	return r;
}

int upper_resize(struct upper *u, struct upper_node *n, uint64_t size, struct err *err)
{
	int r = upper_content_stat(u, n);

	if (size > INT64_MAX)
		return -EFBIG;
	if (r == 0 && n->i.content == CONTENT_BELOW && size == n->i.size)
		return 0;
	if (r == 0)
		r = make_part(u, n, err);
	int fd = r == 0 ? upper_content_open(u, n, true) : r;
	if (fd < 0)
		return fd;
	if (u->is_broken)
		return -EIO;
	if (ftruncate(fd, (off_t)size) < 0)
		return -errno;
	n->is_fresh = false;
	if (n->i.content != CONTENT_PART || size >= n->i.limit)
		return 0;
	struct upper_inode i = n->i;
	i.limit = size;
	i.content = size ? CONTENT_PART : CONTENT_HERE;
	upper_put_inode(u, n, &i);
	return upper_commit(u, !n->is_orphan, err);
}

int64_t upper_copy_range(struct upper *u, uint64_t from, uint64_t from_off, uint64_t to,
			 uint64_t to_off, size_t len, struct err *err)
{
	loff_t in = (loff_t)from_off, out = (loff_t)to_off;
	ssize_t n = -EOPNOTSUPP;

	pthread_mutex_lock(&u->lock);
	struct upper_node *a = upper_by_id(u, from), *b = upper_by_id(u, to);
	bool is_here = a && b && a->i.content == CONTENT_HERE && b->i.content == CONTENT_HERE &&
		       a->i.type == NODE_FILE && b->i.type == NODE_FILE && !u->is_broken;
	int in_fd = is_here ? upper_content_open(u, a, true) : -1;
	int out_fd = in_fd >= 0 ? upper_content_open(u, b, true) : -1;
	if (a && b && out_fd >= 0 && a->fd >= 0) {
		n = copy_file_range(a->fd, &in, out_fd, &out, MIN(len, (size_t)64 << 20), 0);
		n = n < 0 ? -errno : n;
		b->is_fresh = false;
	}
	pthread_mutex_unlock(&u->lock);
	return n;
}

/* ------------------------------------------------------------------ syncing */

/* The folder in which a host file was made. */
static int sync_fanout(struct upper *u, uint64_t ino)
{
	char name[32];

	content_name(name, ino);
	name[2] = '\0';
	scoped(close_fd) int fd = openat(u->data_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 || fsync(u->data_fd) < 0 ? -errno : 0;
}

int upper_sync(struct upper *u, uint64_t id, struct err *err)
{
	scoped(close_fd) int fd = -1;
	bool is_new = false;
	uint64_t ino = 0;
	int r = 0;

	if (u->is_scratch)
		return 0;
	pthread_mutex_lock(&u->lock);
	struct upper_node *n = upper_by_id(u, id);
	if (n && n->i.type == NODE_FILE && n->i.content != CONTENT_BELOW) {
		int kept = upper_content_open(u, n, false);
		fd = kept < 0 ? -1 : fcntl(kept, F_DUPFD_CLOEXEC, 0);
		r = kept < 0 ? (kept == -ENOENT ? 0 : kept) : fd < 0 ? -errno : 0;
		is_new = n->is_new_file;
		n->is_new_file = false;
		ino = n->ino;
	}
	pthread_mutex_unlock(&u->lock);
	if (r == 0 && fd >= 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && is_new)
		r = sync_fanout(u, ino);
	if (r < 0)
		return err_set(err, r, "%s: %s", u->path, strerror(-r));
	return upper_journal_sync(u, err);
}
