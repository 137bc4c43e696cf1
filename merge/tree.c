/* SPDX-License-Identifier: Apache-2.0 */

/*
 * tree: what all trees share.
 *
 * The calls of the door are thin: they check what every tree would have to check, and hand on to
 * the tree's own operations. Three things are made here once, from those operations:
 *
 *  - The blocking form of read. The bytes' destination is borrowed until done is called, so the
 *    only safe way to wait is to wait for done; the deadline is kept by whoever calls it.
 *  - Paths. A path is walked name by name with a stack of the folders passed, because ".." in a
 *    symlink's target means the folder that holds the reached one, not the text before it. Every
 *    link is resolved inside the tree: "/" is its root, and ".." above the root stays there.
 *  - The walk over everything below a folder. It keeps one whole listing per level, so that the
 *    caller's function runs outside the tree's own listing (it may read, block, or list again),
 *    and so that a live folder is read once however many folders lie in it.
 *
 * xattrs of overlayfs (trusted.overlay.*, user.overlay.*) never leave a tree: a layer could
 * otherwise forge redirects for a kernel overlay that is mounted over ours.
 */

#include "merge/merge.h"

#include <assert.h>
#include <pthread.h>

#include "merge/merge-internal.h"

#define NAME_LEN_MAX 255
#define LINKS_MAX 40 /* as the kernel's MAXSYMLINKS */

struct tree *tree_ref(struct tree *t)
{
	if (t)
		__atomic_add_fetch(&t->n_refs, 1, __ATOMIC_RELAXED);
	return t;
}

struct tree *tree_unref(struct tree *t)
{
	if (t && __atomic_sub_fetch(&t->n_refs, 1, __ATOMIC_ACQ_REL) == 0)
		t->ops->free(t);
	return NULL;
}

void tree_init(struct tree *t, const struct tree_ops *ops, uint32_t n_leaves, bool is_live)
{
	t->ops = ops;
	t->n_refs = 1;
	t->n_leaves = n_leaves;
	t->is_live = is_live;
}

/* ------------------------------------------------------------------ calls handed on */

int tree_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
		 struct err *err)
{
	return t->ops->getattr(t, id, out, wait, err);
}

int tree_lookup(struct tree *t, uint64_t dir, const char *name, size_t len, struct attr *out,
		struct tree_wait *wait, struct err *err)
{
	if (len > NAME_LEN_MAX)
		return err_set(err, -ENAMETOOLONG, "a name of %zu bytes", len);
	assert(len > 0 && !memchr(name, '/', len) && !memchr(name, '\0', len));
	return t->ops->lookup(t, dir, name, len, out, wait, err);
}

int tree_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
	      struct tree_wait *wait, struct err *err)
{
	return t->ops->list(t, dir, from, fn, arg, wait, err);
}

int tree_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name, struct err *err)
{
	return t->ops->parent(t, dir, out, name, err);
}

int tree_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	return t->ops->readlink(t, id, out, err);
}

struct xattr_filter {
	tree_xattr_fn fn;
	void *arg;
};

static int filter_xattr(void *arg, const char *name, const void *value, size_t len)
{
	const struct xattr_filter *f = arg;
	const char *dot = strchr(name, '.');

	if (dot && str_starts(dot + 1, "overlay."))
		return 0;
	return f->fn(f->arg, name, value, len);
}

int tree_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	struct xattr_filter filter = {.fn = fn, .arg = arg};

	return t->ops->xattrs(t, id, filter_xattr, &filter, err);
}

static int collect_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct xattr_list *list = arg;
	struct tree_xattr *x = vec_push(&list->items);

	if (!x)
		return -ENOMEM;
	x->name = strdup(name);
	x->value = malloc(len + 1);
	x->len = len;
	if (!x->name || !x->value)
		return -ENOMEM;
	memcpy(x->value, value, len);
	return 0;
}

static int compare_xattrs(const void *a, const void *b)
{
	return strcmp(((const struct tree_xattr *)a)->name, ((const struct tree_xattr *)b)->name);
}

int tree_xattr_list(struct tree *t, uint64_t id, struct xattr_list *out, struct err *err)
{
	int r = tree_xattrs(t, id, collect_xattr, out, err);

	if (r == 0 && out->items.n > 1)
		qsort(out->items.items, out->items.n, sizeof(*out->items.items), compare_xattrs);
	return r;
}

void xattr_list_deinit(struct xattr_list *list)
{
	for (size_t i = 0; i < list->items.n; i++) {
		free(list->items.items[i].name);
		free(list->items.items[i].value);
	}
	vec_free(&list->items);
}

int tree_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	return t->ops->seek_data ? t->ops->seek_data(t, id, off, data, end) : -ENODATA;
}

int tree_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	if (!t->ops->open_flat)
		return err_set(err, -ENOENT, "not a file of this host");
	return t->ops->open_flat(t, id, make, fd, err);
}

int tree_content_digest(struct tree *t, uint64_t id, struct digest *out)
{
	return t->ops->content_digest ? t->ops->content_digest(t, id, out) : -ENOENT;
}

int tree_host_stat(struct tree *t, uint64_t id, struct stat *out)
{
	return t->ops->host_stat ? t->ops->host_stat(t, id, out) : -ENOENT;
}

/* ------------------------------------------------------------------ reading and waiting */

struct read_wait {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool is_done;
	int64_t result;
	struct err err;
};

static void read_done(void *arg, int64_t result, const struct err *err)
{
	struct read_wait *w = arg;

	pthread_mutex_lock(&w->lock);
	w->result = result;
	if (result < 0 && err)
		w->err = *err;
	w->is_done = true;
	/* Under the lock: once it is released the waiter may be gone. */
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

int64_t tree_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len, blob_done done,
		  void *arg, struct err *err)
{
	if (done)
		return t->ops->read(t, id, off, dst, len, done, arg, err);

	struct read_wait w = {
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.cond = PTHREAD_COND_INITIALIZER,
	};
	int64_t n = t->ops->read(t, id, off, dst, len, read_done, &w, err);
	if (n == -EINPROGRESS) {
		pthread_mutex_lock(&w.lock);
		while (!w.is_done)
			pthread_cond_wait(&w.cond, &w.lock);
		pthread_mutex_unlock(&w.lock);
		n = w.result;
		if (n < 0 && err)
			*err = w.err;
	}
	pthread_cond_destroy(&w.cond);
	pthread_mutex_destroy(&w.lock);
	return n;
}

/* ------------------------------------------------------------------ paths */

struct walk_level {
	uint64_t id;
	size_t real_len; /* of the real path that leads here */
};

struct walk {
	struct tree *tree;
	const char *path;	       /* as asked for, for messages */
	vec(struct walk_level) levels; /* the folders passed, the root first */
	struct strbuf real;	       /* the path of the last level, without a slash at the end */
	struct strbuf rest;	       /* names still to be walked, from @pos on */
	size_t pos;
	int n_links;
};

static void walk_deinit(struct walk *w)
{
	vec_free(&w->levels);
	strbuf_free(&w->real);
	strbuf_free(&w->rest);
}

static int walk_push(struct walk *w, uint64_t id)
{
	struct walk_level *level = vec_push(&w->levels);
	if (!level)
		return -ENOMEM;
	level->id = id;
	level->real_len = w->real.len;
	return 0;
}

static void walk_cut_real(struct walk *w, size_t len)
{
	w->real.len = len;
	if (w->real.data)
		w->real.data[len] = '\0';
}

static void walk_up(struct walk *w)
{
	if (w->levels.n > 1)
		w->levels.n--;
	walk_cut_real(w, w->levels.items[w->levels.n - 1].real_len);
}

/* Puts the target of the link @id in front of what is left to walk. */
static int walk_link(struct walk *w, uint64_t id, struct err *err)
{
	scoped(strbuf_free) struct strbuf text = {0};

	if (++w->n_links > LINKS_MAX)
		return err_set(err, -ELOOP, "%s: too many symbolic links", w->path);
	int r = tree_readlink(w->tree, id, &text, err);
	if (r < 0)
		return r;
	if (text.len == 0)
		return err_set(err, -ENOENT, "%s: a symbolic link to nothing", w->path);
	if (text.data[0] == '/') {
		w->levels.n = 1;
		walk_cut_real(w, 0);
	}
	strbuf_putc(&text, '/');
	strbuf_add(&text, w->rest.data + w->pos, w->rest.len - w->pos);
	strbuf_clear(&w->rest);
	strbuf_add(&w->rest, text.data, text.len);
	w->pos = 0;
	return text.failed || w->rest.failed ? -ENOMEM : 0;
}

/* The next name to walk, "" at the end. */
static const char *walk_next(struct walk *w, size_t *len)
{
	while (w->pos < w->rest.len && w->rest.data[w->pos] == '/')
		w->pos++;
	const char *name = w->rest.data + w->pos;
	*len = strcspn(name, "/");
	w->pos += *len;
	return name;
}

static bool walk_is_last(const struct walk *w)
{
	return strspn(w->rest.data + w->pos, "/") == w->rest.len - w->pos;
}

static int walk_name(struct walk *w, const char *name, size_t len, bool follow, struct attr *at,
		     struct tree_wait *wait, struct err *err)
{
	if (at->type != NODE_DIR)
		return err_set(err, -ENOTDIR, "%s: not a folder on the way", w->path);
	if (len == 1 && name[0] == '.')
		return 0;
	if (len == 2 && name[0] == '.' && name[1] == '.') {
		walk_up(w);
		at->id = w->levels.items[w->levels.n - 1].id;
		return 0;
	}

	struct attr found;
	int r = tree_lookup(w->tree, at->id, name, len, &found, wait, err);
	if (r == -ENOENT || (r == 0 && found.type == NODE_WHITEOUT))
		return err_set(err, -ENOENT, "%s: no such file or folder", w->path);
	if (r < 0)
		return r;
	if (found.type == NODE_SYMLINK && (follow || !walk_is_last(w))) {
		r = walk_link(w, found.id, err);
		at->id = w->levels.items[w->levels.n - 1].id;
		return r;
	}
	*at = found;
	strbuf_putc(&w->real, '/');
	strbuf_add(&w->real, name, len);
	if (w->real.failed)
		return -ENOMEM;
	return found.type == NODE_DIR ? walk_push(w, found.id) : 0;
}

static int walk_run(struct walk *w, bool follow, struct attr *out, struct tree_wait *wait,
		    struct err *err)
{
	/* On the way only id and type are kept: ".." leads to folders whose attr is long gone. */
	struct attr at = {.type = NODE_DIR, .id = TREE_ROOT};
	size_t len;

	int r = walk_push(w, TREE_ROOT);
	while (r == 0) {
		const char *name = walk_next(w, &len);
		if (len == 0)
			return tree_getattr(w->tree, at.id, out, wait, err);
		r = walk_name(w, name, len, follow, &at, wait, err);
	}
	return r;
}

int tree_walk_wait(struct tree *t, const char *path, bool follow, struct attr *out,
		   struct strbuf *real, struct tree_wait *wait, struct err *err)
{
	struct walk w = {.tree = t, .path = path};
	scoped(free) char *clean = path_clean(path, strlen(path));

	if (clean)
		strbuf_puts(&w.rest, clean);
	int r = !clean || w.rest.failed ? -ENOMEM : walk_run(&w, follow, out, wait, err);
	if (r == 0 && real) {
		if (w.real.len == 0)
			strbuf_putc(real, '/');
		else
			strbuf_add(real, w.real.data, w.real.len);
		if (real->failed)
			r = -ENOMEM;
	}
	walk_deinit(&w);
	return r;
}

int tree_walk(struct tree *t, const char *path, bool follow, struct attr *out, struct err *err)
{
	return tree_walk_wait(t, path, follow, out, NULL, NULL, err);
}

int tree_walk_real(struct tree *t, const char *path, bool follow, struct attr *out,
		   struct strbuf *real, struct err *err)
{
	return tree_walk_wait(t, path, follow, out, real, NULL, err);
}

/* ------------------------------------------------------------------ everything below a folder */

static int collect_entry(void *arg, const char *name, size_t len, const struct attr *attr,
			 uint64_t next)
{
	struct tree_listing *l = arg;
	struct tree_entry *e = vec_push(&l->entries);

	if (!e)
		return -ENOMEM;
	e->attr = *attr;
	e->name_off = l->names.len;
	e->name_len = (uint32_t)len;
	strbuf_add(&l->names, name, len);
	strbuf_add(&l->names, "", 1);
	return l->names.failed ? -ENOMEM : 0;
}

int tree_listing_read(struct tree_listing *out, struct tree *t, uint64_t dir,
		      struct tree_wait *wait, struct err *err)
{
	*out = (struct tree_listing){0};
	int r = tree_list(t, dir, 0, collect_entry, out, wait, err);
	if (r < 0)
		tree_listing_deinit(out);
	return r;
}

void tree_listing_deinit(struct tree_listing *l)
{
	vec_free(&l->entries);
	strbuf_free(&l->names);
}

struct walk_frame {
	struct tree_listing listing;
	size_t next;
	size_t path_len; /* of the folder's own path */
};

struct walk_all {
	struct tree *tree;
	vec(struct walk_frame) frames;
	struct strbuf path;
};

static void walk_all_pop(struct walk_all *w)
{
	tree_listing_deinit(&w->frames.items[--w->frames.n].listing);
}

static int walk_all_push(struct walk_all *w, const struct attr *dir, struct err *err)
{
	struct walk_frame *f = vec_push(&w->frames);
	if (!f)
		return -ENOMEM;
	f->path_len = w->path.len;
	int r = tree_listing_read(&f->listing, w->tree, dir->id, NULL, err);
	if (r < 0)
		w->frames.n--;
	/* A live folder may go between its parent's listing and its own. */
	if (dir->is_live && w->frames.n > 0 && (r == -ENOENT || r == -ENOTDIR || r == -ESTALE))
		return 0;
	return r;
}

/* One entry of the innermost folder, or the end of that folder. */
static int walk_all_step(struct walk_all *w, tree_walk_fn fn, void *arg, struct err *err)
{
	struct walk_frame *f = &w->frames.items[w->frames.n - 1];

	if (f->next == f->listing.entries.n) {
		walk_all_pop(w);
		return 0;
	}
	const struct tree_entry *e = &f->listing.entries.items[f->next++];
	const char *name = tree_entry_name(&f->listing, e);
	struct attr attr = e->attr;

	w->path.len = f->path_len;
	if (f->path_len > 0)
		strbuf_putc(&w->path, '/');
	strbuf_add(&w->path, name, e->name_len);
	if (w->path.failed)
		return -ENOMEM;
	int r = fn(arg, w->path.data, name, &attr);
	if (r == TREE_WALK_SKIP)
		return 0;
	return r != 0 || attr.type != NODE_DIR ? r : walk_all_push(w, &attr, err);
}

int tree_walk_all(struct tree *t, uint64_t dir, tree_walk_fn fn, void *arg, struct err *err)
{
	struct walk_all w = {.tree = t};
	const struct attr start = {.id = dir};

	int r = walk_all_push(&w, &start, err);
	while (r == 0 && w.frames.n > 0)
		r = walk_all_step(&w, fn, arg, err);
	while (w.frames.n > 0)
		walk_all_pop(&w);
	vec_free(&w.frames);
	strbuf_free(&w.path);
	return r;
}
