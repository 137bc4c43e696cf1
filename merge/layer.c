/* SPDX-License-Identifier: Apache-2.0 */

/*
 * layer: one layer's blob as a tree.
 *
 * Names and metadata come from the layer's index, content from the blob: a file is one run of the
 * layer's plain space, or several for a sparse file, and blob_read does the rest.
 *
 *	MAKING ──► READY      the index is mapped and never changes again
 *	  ▲    └─► FAILED     the error is kept and given to every call
 *	  └───────────┘       … but what the network or a full disk did is tried again, at most
 *	                      once a second, by the next call that needs the index
 *
 * A layer whose index is in the store is READY when it is opened. Otherwise a job on one of the
 * store's waiting threads makes it (layer_make.c), while calls either leave a tree_wait and are
 * told to come again, or block. Blocking calls give up when nothing has moved for the store's
 * deadline: a pass over a large layer may take as long as it must, a silent registry may not.
 *
 * The root can be asked before anything is known: its metadata is made up in any case, since that
 * of a layer's root entry is ignored. (That it is opaque shows only when the index is here, which
 * is also the first time that anything below it could matter.)
 *
 * The job holds a reference. When it is the last one nobody wants the layer any more, and the job
 * ends itself; what was fetched stays for the next time.
 */

#include "merge/merge.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "merge/edit-internal.h"
#include "merge/merge-internal.h"

#define RETRY_NS NS_PER_S

enum layer_state { MAKING, READY, FAILED };

struct layer {
	struct tree tree;
	struct layer_source source; /* holds the blob */
	struct remote *remote;	    /* for messages; NULL = only the store */
	uint64_t position;	    /* atomic; of the pass */
	uint64_t n_moves;	    /* atomic; changes as long as something goes on */

	enum layer_state state; /* atomic; changed under the lock; READY is final */
	/* set before the state becomes READY */
	struct layer_made made;
	struct learned *learned;

	pthread_mutex_t lock;
	pthread_cond_t settled;
	struct tree_wait *waits;       /* guarded by lock */
	int error;		       /* guarded by lock */
	uint64_t failed_ns;	       /* guarded by lock */
	struct err err;		       /* guarded by lock */
	char reason[LAYER_REASON_MAX]; /* guarded by lock */
	bool wants_learned, wants_all; /* guarded by lock; prefetch asked for while MAKING */
};

static const struct tree_ops layer_ops;

static struct layer *layer_of(struct tree *t)
{
	assert(t->ops == &layer_ops);
	return containerof(t, struct layer, tree);
}

const char *layer_format_name(enum layer_format f)
{
	switch (f) {
	case LAYER_UNKNOWN:
		break;
	case LAYER_TAR:
		return "tar";
	case LAYER_GZIP:
		return "gzip";
	case LAYER_ZSTD:
		return "zstd";
	case LAYER_ESTARGZ:
		return "estargz";
	case LAYER_ZSTDCHUNKED:
		return "zstdchunked";
	case LAYER_SOCI:
		return "soci";
	case LAYER_LOCAL:
		return "local";
	}
	return "";
}

/* ------------------------------------------------------------------ waiting */

static enum layer_state layer_state(const struct layer *l)
{
	return __atomic_load_n(&l->state, __ATOMIC_ACQUIRE);
}

/* Blocks, with the lock held, until the layer is settled or nothing has moved for the deadline. */
static int wait_settled(struct layer *l, struct err *err)
{
	uint64_t patience = store_deadline_ms(l->source.store) * NS_PER_MS;
	uint64_t n_moves = __atomic_load_n(&l->n_moves, __ATOMIC_RELAXED);
	uint64_t end = now_ns() + patience;

	while (layer_state(l) == MAKING) {
		struct timespec at = {.tv_sec = (time_t)(end / NS_PER_S),
				      .tv_nsec = (long)(end % NS_PER_S)};
		if (pthread_cond_timedwait(&l->settled, &l->lock, &at) != ETIMEDOUT)
			continue;
		uint64_t n = __atomic_load_n(&l->n_moves, __ATOMIC_RELAXED);
		if (n == n_moves && layer_state(l) == MAKING) {
			char text[DIGEST_TEXT_MAX];
			digest_text(&blob_desc(l->source.blob)->digest, text);
			return err_set(err, -ETIMEDOUT,
				       "layer %s: nothing came from %s for %llu ms", text,
				       l->remote ? l->remote->name : "the store",
				       (unsigned long long)(patience / NS_PER_MS));
		}
		n_moves = n;
		end = now_ns() + patience;
	}
	return 0;
}

static void make_job(void *arg);

/* A mount lives for days; what kept it from its index may be over. Called with the lock held. */
static void try_again(struct layer *l)
{
	bool is_final = l->error == -EBADMSG || l->error == -ENOTSUP || l->error == -EFBIG ||
			l->error == -EINVAL;

	if (layer_state(l) != FAILED || is_final || now_ns() - l->failed_ns < RETRY_NS)
		return;
	tree_ref(&l->tree);
	if (store_submit(l->source.store, WORK_WAIT, make_job, l) < 0) {
		tree_unref(&l->tree);
		return;
	}
	l->error = 0;
	l->err = (struct err){0};
	layer_guess(blob_desc(l->source.blob), l->reason);
	__atomic_store_n(&l->state, MAKING, __ATOMIC_RELEASE);
}

/* 0 when the index is here; -EAGAIN: @wait is called later. */
static int layer_need(struct layer *l, struct tree_wait *wait, struct err *err)
{
	int r = 0;

	if (layer_state(l) == READY)
		return 0;
	pthread_mutex_lock(&l->lock);
	try_again(l);
	if (layer_state(l) == MAKING && wait) {
		wait->next = l->waits;
		l->waits = wait;
		r = -EAGAIN;
	} else {
		r = wait_settled(l, err);
	}
	if (r == 0 && layer_state(l) == FAILED) {
		r = l->error;
		if (err)
			*err = l->err;
	}
	pthread_mutex_unlock(&l->lock);
	return r;
}

static int layer_damaged(struct layer *l, struct err *err)
{
	store_file_remove(l->source.store, "index", l->made.key);
	return err_set(err, -EBADMSG,
		       "layer index %s is damaged: it is made again at the next mount",
		       l->made.key);
}

/* What an index function returned, with words where it has none. */
static int layer_result(struct layer *l, int r, struct err *err)
{
	if (r == -EBADMSG)
		return layer_damaged(l, err);
	return r < 0 ? err_set(err, r, "%s", strerror(-r)) : r;
}

static int entry_of(struct layer *l, uint64_t id, uint32_t *entry, struct err *err)
{
	*entry = (uint32_t)(id - TREE_ROOT);
	if (id >= TREE_ROOT && id - TREE_ROOT < index_count(l->made.index))
		return 0;
	return err_set(err, -ENOENT, "no file has the id %llu", (unsigned long long)id);
}

static int need_entry(struct layer *l, uint64_t id, uint32_t *entry, struct tree_wait *wait,
		      struct err *err)
{
	int r = layer_need(l, wait, err);

	return r < 0 ? r : entry_of(l, id, entry, err);
}

/* ------------------------------------------------------------------ names and metadata */

static int layer_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			 struct err *err)
{
	struct layer *l = layer_of(t);
	uint32_t entry = 0;

	if (id == TREE_ROOT && layer_state(l) != READY) {
		*out = (struct attr){.id = TREE_ROOT,
				     .type = NODE_DIR,
				     .is_implicit = true,
				     .mode = 0755,
				     .nlink = 2};
		return 0;
	}
	int r = need_entry(l, id, &entry, wait, err);
	return r < 0 ? r : layer_result(l, index_attr(l->made.index, entry, out), err);
}

static int layer_lookup(struct tree *t, uint64_t dir, const char *name, size_t len,
			struct attr *out, struct tree_wait *wait, struct err *err)
{
	struct layer *l = layer_of(t);
	uint32_t entry = 0, found;
	int r = need_entry(l, dir, &entry, wait, err);

	if (r < 0)
		return r;
	r = index_find(l->made.index, entry, name, len, &found);
	if (r == -ENOENT)
		return r; /* the most frequent answer needs no words */
	if (r == 0)
		r = index_attr(l->made.index, found, out);
	return layer_result(l, r, err);
}

static int layer_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		      struct tree_wait *wait, struct err *err)
{
	struct layer *l = layer_of(t);
	uint32_t entry = 0, first, n;
	int r = need_entry(l, dir, &entry, wait, err);

	if (r < 0)
		return r;
	r = index_children(l->made.index, entry, &first, &n);
	if (r < 0)
		return layer_result(l, r, err);
	for (uint64_t i = from; i < n; i++) {
		const char *name;
		size_t len;
		struct attr attr;
		if (index_name(l->made.index, first + (uint32_t)i, &name, &len) < 0 ||
		    index_attr(l->made.index, first + (uint32_t)i, &attr) < 0)
			return layer_damaged(l, err);
		r = fn(arg, name, len, &attr, i + 1);
		if (r != 0)
			return r;
	}
	return 0;
}

static int layer_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
			struct err *err)
{
	struct layer *l = layer_of(t);
	uint32_t entry = 0, parent;
	const char *text;
	size_t len;
	int r = need_entry(l, dir, &entry, NULL, err);

	if (r < 0)
		return r;
	r = index_parent(l->made.index, entry, &parent);
	if (r == 0)
		r = index_name(l->made.index, entry, &text, &len);
	if (r < 0)
		return layer_result(l, r, err);
	*out = TREE_ROOT + parent;
	strbuf_add(name, text, len);
	return name->failed ? err_set(err, -ENOMEM, "no memory") : 0;
}

static int layer_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	struct layer *l = layer_of(t);
	uint32_t entry = 0;
	const char *target;
	size_t len;
	int r = need_entry(l, id, &entry, NULL, err);

	if (r < 0)
		return r;
	r = index_target(l->made.index, entry, &target, &len);
	if (r < 0)
		return layer_result(l, r, err);
	strbuf_add(out, target, len);
	return out->failed ? err_set(err, -ENOMEM, "no memory") : 0;
}

static int layer_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	struct layer *l = layer_of(t);
	uint32_t entry = 0;
	int r = need_entry(l, id, &entry, NULL, err);

	if (r < 0)
		return r;
	r = index_xattrs(l->made.index, entry, fn, arg);
	return r == -EBADMSG ? layer_damaged(l, err) : r;
}

static int layer_content_digest(struct tree *t, uint64_t id, struct digest *out)
{
	struct layer *l = layer_of(t);
	uint32_t entry = 0;

	if (layer_state(l) != READY || entry_of(l, id, &entry, NULL) < 0)
		return -ENOENT;
	return layer_result(l, index_digest(l->made.index, entry, out), NULL);
}

/* ------------------------------------------------------------------ content */

/* One read of a sparse file: several reads of the blob, and zeros between them. */
struct gather {
	int n_pending; /* atomic: reads under way, and one for the call that starts them */
	int64_t len;
	blob_done done;
	void *arg;
	pthread_mutex_t lock;
	int result;	/* guarded by lock: the first error */
	struct err err; /* guarded by lock */
};

static void gather_result(struct gather *g, int64_t result, const struct err *err)
{
	if (result >= 0)
		return;
	pthread_mutex_lock(&g->lock);
	if (g->result == 0) {
		g->result = (int)result;
		if (err)
			g->err = *err;
	}
	pthread_mutex_unlock(&g->lock);
}

/* True when this was the last part. */
static bool gather_drop(struct gather *g)
{
	return __atomic_sub_fetch(&g->n_pending, 1, __ATOMIC_ACQ_REL) == 0;
}

static void gather_free(struct gather *g)
{
	pthread_mutex_destroy(&g->lock);
	free(g);
}

static void gather_done(void *arg, int64_t result, const struct err *err)
{
	struct gather *g = arg;

	gather_result(g, result, err);
	if (!gather_drop(g))
		return;
	g->done(g->arg, g->result ? g->result : g->len, g->result ? &g->err : NULL);
	gather_free(g);
}

/* Reads of [off, off + len) are started, holes are filled. */
static void gather_start(struct gather *g, struct layer *l, const struct index_content *c,
			 uint64_t off, uint8_t *dst)
{
	uint64_t at = off, end = off + (uint64_t)g->len;

	for (uint32_t i = index_extent_find(c, off); at < end; i++) {
		struct index_extent e = {.file_off = end};
		struct err err = {0};
		if (i < c->n_extents && index_extent_at(c, i, &e) < 0) {
			gather_result(g, layer_damaged(l, &err), &err);
			return;
		}
		if (e.file_off > at) {
			uint64_t hole = MIN(e.file_off, end) - at;
			memset(dst + (at - off), 0, hole);
			at += hole;
		}
		if (at == end)
			return;
		uint64_t skip = at - e.file_off;
		size_t n = (size_t)MIN(e.len - skip, end - at);
		learned_add(l->learned, e.plain_off + skip, n);
		__atomic_add_fetch(&g->n_pending, 1, __ATOMIC_RELAXED);
		int64_t r = blob_read(l->source.blob, e.plain_off + skip, dst + (at - off), n,
				      gather_done, g, &err);
		if (r != -EINPROGRESS) {
			gather_drop(g);
			gather_result(g, r, &err);
		}
		if (r < 0 && r != -EINPROGRESS)
			return;
		at += n;
	}
}

static int64_t read_sparse(struct layer *l, const struct index_content *c, uint64_t off, void *dst,
			   size_t len, blob_done done, void *arg, struct err *err)
{
	struct gather *g = calloc(1, sizeof(*g));

	if (!g)
		return err_set(err, -ENOMEM, "no memory");
	*g = (struct gather){.n_pending = 1, .len = (int64_t)len, .done = done, .arg = arg};
	pthread_mutex_init(&g->lock, NULL);
	gather_start(g, l, c, off, dst);
	if (!gather_drop(g))
		return -EINPROGRESS;
	int64_t r = g->result ? g->result : g->len;
	if (r < 0 && err)
		*err = g->err;
	gather_free(g);
	return r;
}

static int64_t layer_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			  blob_done done, void *arg, struct err *err)
{
	struct layer *l = layer_of(t);
	struct index_content c;
	uint32_t entry = 0;
	int r = need_entry(l, id, &entry, NULL, err);

	if (r < 0)
		return r;
	r = index_content(l->made.index, entry, &c);
	if (r < 0)
		return layer_result(l, r, err);
	if (off >= c.size)
		return 0;
	len = (size_t)MIN((uint64_t)len, c.size - off);
	if (c.is_sparse)
		return read_sparse(l, &c, off, dst, len, done, arg, err);
	learned_add(l->learned, c.whole.plain_off + off, len);
	return blob_read(l->source.blob, c.whole.plain_off + off, dst, len, done, arg, err);
}

static int layer_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	struct layer *l = layer_of(t);
	struct index_content c;
	struct index_extent e;
	uint32_t entry = 0;

	if (layer_state(l) != READY || entry_of(l, id, &entry, NULL) < 0)
		return -ENODATA;
	int r = index_content(l->made.index, entry, &c);
	if (r < 0)
		return layer_result(l, r, NULL);
	uint32_t i = index_extent_find(&c, off);
	if (i >= c.n_extents)
		return -ENODATA;
	r = index_extent_at(&c, i, &e);
	if (r < 0)
		return layer_result(l, r, NULL);
	*data = MAX(off, e.file_off);
	*end = e.file_off + e.len;
	return 0;
}

static int layer_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	struct layer *l = layer_of(t);
	struct index_content c;
	struct digest digest;
	uint32_t entry = 0;

	if (layer_state(l) != READY || entry_of(l, id, &entry, NULL) < 0 ||
	    index_content(l->made.index, entry, &c) < 0 || c.is_sparse || c.size == 0 ||
	    index_digest(l->made.index, entry, &digest) < 0)
		return err_set(err, -ENOENT, "no flat copy can be made");
	if (content_open(l->source.store, &digest, c.size, fd) == 0)
		return 0;
	if (make && blob_is_here(l->source.blob, c.whole.plain_off, c.size))
		content_make(l->source.store, l->source.blob, c.whole.plain_off, c.size, &digest);
	return err_set(err, -ENOENT, "no flat copy yet");
}

/* ------------------------------------------------------------------ making the index */

static void prefetch_all(struct layer *l)
{
	struct index_about about;

	index_about(l->made.index, &about);
	/* What a start needs comes first: as learned, or as the image's maker marked it. */
	if (!learned_prefetch(l->source.blob, l->made.plain_size, l->source.store, l->made.key) &&
	    about.prefetch_bytes)
		blob_prefetch(l->source.blob, 0, about.prefetch_bytes);
	blob_prefetch(l->source.blob, 0, l->made.plain_size);
}

static void prefetch_learned(struct layer *l)
{
	learned_prefetch(l->source.blob, l->made.plain_size, l->source.store, l->made.key);
}

static void make_tell(void *arg, const char *reason)
{
	struct layer *l = arg;

	pthread_mutex_lock(&l->lock);
	snprintf(l->reason, sizeof(l->reason), "%s", reason);
	pthread_mutex_unlock(&l->lock);
}

static int make_go_on(void *arg, uint64_t position)
{
	struct layer *l = arg;

	__atomic_store_n(&l->position, position, __ATOMIC_RELAXED);
	__atomic_add_fetch(&l->n_moves, 1, __ATOMIC_RELAXED);
	/* Only the job itself still holds the layer. */
	return __atomic_load_n(&l->tree.n_refs, __ATOMIC_ACQUIRE) == 1 ? -ECANCELED : 0;
}

/* The layer becomes READY or, with @r < 0, FAILED, and everybody who waits is told. */
static void settle(struct layer *l, int r, const struct err *err)
{
	if (r == 0) {
		l->learned = learned_new(l->made.plain_size);
		if (!l->learned)
			r = -ENOMEM;
	}
	/* A layer that nobody has must not look like a file that is not there. */
	if (r == -ENOENT || r == -ENOTDIR)
		r = -EIO;
	pthread_mutex_lock(&l->lock);
	if (r < 0) {
		l->error = r;
		l->failed_ns = now_ns();
		if (err)
			l->err = *err;
		if (!l->err.code)
			err_set(&l->err, r, "%s", strerror(-r));
		snprintf(l->reason, sizeof(l->reason), "%.*s", (int)sizeof(l->reason) - 1,
			 l->err.text);
	} else {
		snprintf(l->reason, sizeof(l->reason), "%s", l->made.note);
	}
	__atomic_store_n(&l->state, r < 0 ? FAILED : READY, __ATOMIC_RELEASE);
	__atomic_store_n(&l->position, 0, __ATOMIC_RELAXED);
	struct tree_wait *wait = take(l->waits);
	bool wants_learned = l->wants_learned && r == 0, wants_all = l->wants_all && r == 0;
	pthread_cond_broadcast(&l->settled);
	pthread_mutex_unlock(&l->lock);

	while (wait) {
		struct tree_wait *next = wait->next; /* it may be gone once it is ready */
		wait->ready(wait);
		wait = next;
	}
	if (wants_all)
		prefetch_all(l);
	else if (wants_learned)
		prefetch_learned(l);
}

static void make_job(void *arg)
{
	struct layer *l = arg;
	struct layer_progress progress = {.tell = make_tell, .go_on = make_go_on, .arg = l};
	struct err err = {0};
	int r = layer_make(&l->source, &progress, &l->made, &err);

	settle(l, r, &err);
	tree_unref(&l->tree);
}

/* ------------------------------------------------------------------ opening and closing */

static void layer_free(struct tree *t)
{
	struct layer *l = layer_of(t);

	assert(!l->waits);
	index_free(l->made.index);
	learned_free(l->learned);
	blob_unref(l->source.blob);
	remote_unref(l->remote);
	pthread_cond_destroy(&l->settled);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static const struct tree_ops layer_ops = {
	.getattr = layer_getattr,
	.lookup = layer_lookup,
	.list = layer_list,
	.parent = layer_parent,
	.readlink = layer_readlink,
	.xattrs = layer_xattrs,
	.read = layer_read,
	.seek_data = layer_seek_data,
	.open_flat = layer_open_flat,
	.content_digest = layer_content_digest,
	.free = layer_free,
};

bool layer_origin(struct tree *t, const struct desc **desc, struct remote **remote)
{
	if (t->ops != &layer_ops)
		return false;
	*desc = blob_desc(layer_of(t)->source.blob);
	*remote = layer_of(t)->remote;
	return true;
}

static struct layer *layer_new(struct store *store)
{
	struct layer *l = calloc(1, sizeof(*l));
	pthread_condattr_t attr;

	if (!l)
		return NULL;
	tree_init(&l->tree, &layer_ops, 1, false);
	l->source.store = store;
	pthread_mutex_init(&l->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->settled, &attr);
	pthread_condattr_destroy(&attr);
	return l;
}

int layer_open(struct tree **out, struct store *store, const struct desc *desc,
	       struct remote *remote, const struct digest *diff_id, struct err *err)
{
	struct layer *l = layer_new(store);

	if (!l)
		return err_set(err, -ENOMEM, "no memory");
	scoped(tree_unref) struct tree *t = &l->tree;
	int r = blob_open(&l->source.blob, store, desc, remote, err);
	if (r < 0)
		return r;
	l->remote = remote ? remote_ref(remote) : NULL;
	if (diff_id)
		l->source.diff_id = *diff_id;
	layer_guess(desc, l->reason);
	struct err why = {0};
	r = layer_find(&l->source, &l->made, &why);
	if (r == -ENOENT) {
		tree_ref(t);
		r = store_submit(store, WORK_WAIT, make_job, l);
		if (r < 0) {
			tree_unref(t);
			return err_set(err, r, "no thread for a layer");
		}
	} else {
		settle(l, r, &why);
	}
	*out = take(t);
	return 0;
}

/* ------------------------------------------------------------------ what others ask of a layer */

void layer_status(struct tree *t, struct layer_status *out)
{
	struct layer *l = layer_of(t);
	char reason[LAYER_REASON_MAX];

	*out = (struct layer_status){.desc = blob_desc(l->source.blob)};
	out->format = layer_guess(out->desc, reason);
	pthread_mutex_lock(&l->lock);
	enum layer_state state = layer_state(l);
	out->error = l->error;
	snprintf(out->reason, sizeof(out->reason), "%s", l->reason);
	pthread_mutex_unlock(&l->lock);
	out->is_ready = state == READY;
	/* Once the index is here, everything is lazy from then on. */
	out->is_lazy = state == READY || (state == MAKING && !*out->reason);
	out->pass_position = __atomic_load_n(&l->position, __ATOMIC_RELAXED);
	blob_usage(l->source.blob, &out->usage);
	if (state != READY)
		return;
	struct index_about about;
	index_about(l->made.index, &about);
	out->format = about.format;
	out->n_entries = about.n_entries;
	out->n_files = about.n_files;
	out->plain_bytes = about.file_bytes;
	out->large_bytes = about.large_bytes;
}

int layer_wait(struct tree *t, struct err *err)
{
	return layer_need(layer_of(t), NULL, err);
}

void layer_learn(struct tree *t)
{
	struct layer *l = layer_of(t);

	if (layer_state(l) == READY)
		learned_save(l->learned, l->source.store, l->made.key);
}

/* True when the layer is READY; else the wish is kept until then. */
static bool is_ready_or_later(struct layer *l, bool *wish)
{
	pthread_mutex_lock(&l->lock);
	bool is_ready = layer_state(l) == READY;
	*wish = true;
	pthread_mutex_unlock(&l->lock);
	return is_ready;
}

void layer_prefetch_learned(struct tree *t)
{
	struct layer *l = layer_of(t);

	if (is_ready_or_later(l, &l->wants_learned))
		prefetch_learned(l);
}

void layer_prefetch_all(struct tree *t)
{
	struct layer *l = layer_of(t);

	if (is_ready_or_later(l, &l->wants_all))
		prefetch_all(l);
}
