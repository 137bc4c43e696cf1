/* SPDX-License-Identifier: Apache-2.0 */

/*
 * cat, tar, du, diff: content and sums of trees, without FUSE.
 */

#include "tools/tools.h"

#include <unistd.h>

/* Large, so that a file's spans are asked for together. */
#define READ_SIZE (4u << 20)

/* ------------------------------------------------------------------ cat */

static int cat_file(struct look *l, const char *path, char *buf, struct err *err)
{
	struct attr attr;
	uint64_t off = 0;
	int64_t n;
	int r = tree_walk(l->view.tree, path, true, &attr, err);

	if (r < 0)
		return r;
	if (attr.type == NODE_DIR)
		return err_set(err, -EISDIR, "%s is a folder; llbfs ls lists it", path);
	if (attr.type != NODE_FILE)
		return err_set(err, -EOPNOTSUPP, "%s is no regular file but %s", path,
			       type_name(attr.type));
	while ((n = tree_read(l->view.tree, attr.id, off, buf, READ_SIZE, NULL, NULL, err)) > 0) {
		app_output(&l->app);
		r = write_full(STDOUT_FILENO, buf, (size_t)n);
		if (r < 0)
			return err_wrap(err, r, "stdout");
		off += (uint64_t)n;
	}
	return n < 0 ? err_wrap(err, (int)n, "%s at %llu", path, (unsigned long long)off) : 0;
}

int cmd_cat(struct options *o, struct err *err)
{
	scoped(free) char *buf = malloc(READ_SIZE);
	struct look l;
	int r;

	if (!buf)
		return -ENOMEM;
	r = look_open(&l, o, "cat", 1, SIZE_MAX, err);
	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && i < l.split.n_paths; i++)
		r = cat_file(&l, l.split.paths[i].text, buf, err);
	look_close(&l);
	return r;
}

/* ------------------------------------------------------------------ tar */

static int tar_write(void *arg, const void *bytes, size_t n)
{
	return write_full(STDOUT_FILENO, bytes, n);
}

static int tar_all(struct look *l, const char *path, struct err *err)
{
	scoped(strbuf_free) struct strbuf real = {0};
	struct attr attr;
	int r = tree_walk_real(l->view.tree, path, true, &attr, &real, err);

	if (r == 0 && attr.type != NODE_DIR)
		r = err_set(err, -ENOTDIR, "%s is no folder; llbfs cat or cp takes files", path);
	/* members have their names in the image, so that unpacking puts them back in place */
	return r < 0 ? r
		     : tar_write_tree(l->view.tree, attr.id, real.data + 1, tar_write, NULL, err);
}

int cmd_tar(struct options *o, struct err *err)
{
	struct look l;
	int r;

	if (isatty(STDOUT_FILENO))
		return err_set(err, -EINVAL, "a tar is not for a terminal: pipe it, or use > FILE");
	r = look_open(&l, o, "tar", 0, 1, err);
	if (r < 0)
		return r;
	r = tar_all(&l, l.split.n_paths ? l.split.paths[0].text : "/", err);
	look_close(&l);
	return r;
}

/* ------------------------------------------------------------------ du */

struct du_folder {
	size_t path_len; /* of the walk's paths that lie in it */
	uint64_t size, files;
};

struct du {
	struct look look;
	const struct options *o;
	const char *top;	    /* "" for the root */
	struct idmap seen;	    /* inodes with several names */
	struct strbuf path;	    /* of the innermost open folder, relative to the top */
	vec(struct du_folder) open; /* from the top down to where the walk is */
	struct strbuf out;
	struct err *err;
};

static int du_row(struct du *du, const struct du_folder *folder)
{
	scoped(strbuf_free) struct strbuf path = {0};
	char size[16];

	strbuf_printf(&path, "%s%s%.*s", du->top, folder->path_len || !*du->top ? "/" : "",
		      (int)folder->path_len, folder->path_len ? du->path.data : "");
	if (path.failed)
		return -ENOMEM;
	if (du->o->format == FORMAT_JSON) {
		strbuf_putc(&du->out, '{');
		json_pair(&du->out, "path", path.data);
		json_u64(&du->out, "size", folder->size);
		json_u64(&du->out, "files", folder->files);
		strbuf_puts(&du->out, "}\n");
	} else {
		strbuf_printf(&du->out, "%s\t", format_size(size, folder->size));
		row_name(&du->out, path.data);
		strbuf_putc(&du->out, '\n');
	}
	return out_maybe(&du->look.app, &du->out, du->err);
}

/* Closes folders until the innermost open one has @path in it; NULL: until none is open. */
static int du_close(struct du *du, const char *path)
{
	while (du->open.n) {
		struct du_folder *folder = &du->open.items[du->open.n - 1];
		int r = 0;

		if (path && (folder->path_len == 0 ||
			     (strncmp(path, du->path.data, folder->path_len) == 0 &&
			      path[folder->path_len] == '/')))
			return 0;
		if (!du->o->is_summary || du->open.n == 1)
			r = du_row(du, folder);
		if (r < 0)
			return r;
		if (du->open.n > 1) {
			folder[-1].size += folder->size;
			folder[-1].files += folder->files;
		}
		du->open.n--;
	}
	return 0;
}

static int du_entry(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct du *du = arg;
	struct du_folder *folder;
	int r = du_close(du, path);

	if (r < 0)
		return r;
	if (attr->type == NODE_DIR) {
		folder = vec_push(&du->open);
		strbuf_clear(&du->path);
		strbuf_puts(&du->path, path);
		if (!folder || du->path.failed)
			return -ENOMEM;
		folder->path_len = du->path.len;
		return 0;
	}
	folder = &du->open.items[du->open.n - 1];
	if (attr->nlink > 1) {
		r = idmap_add(&du->seen, attr->id, 0);
		if (r <= 0)
			return r;
	}
	folder->files++;
	if (attr->type == NODE_FILE)
		folder->size += attr->size;
	return 0;
}

static int du_all(struct du *du)
{
	scoped(strbuf_free) struct strbuf real = {0};
	const struct split *split = &du->look.split;
	struct du_folder file;
	struct attr attr;
	struct tree *t = du->look.view.tree;
	int r = tree_walk_real(t, split->n_paths ? split->paths[0].text : "/", false, &attr, &real,
			       du->err);

	if (r < 0)
		return r;
	du->top = strcmp(real.data, "/") == 0 ? "" : real.data;
	if (attr.type != NODE_DIR) {
		file = (struct du_folder){0, attr.type == NODE_FILE ? attr.size : 0, 1};
		r = du_row(du, &file);
	} else if (!vec_push(&du->open)) {
		r = -ENOMEM;
	} else {
		r = tree_walk_all(t, attr.id, du_entry, du, du->err);
		if (r == 0)
			r = du_close(du, NULL);
	}
	return r < 0 ? r : out_flush(&du->look.app, &du->out, du->err);
}

int cmd_du(struct options *o, struct err *err)
{
	struct du du = {.o = o, .err = err};
	int r = look_open(&du.look, o, "du", 0, 1, err);

	if (r == 0)
		r = du_all(&du);
	idmap_free(&du.seen);
	strbuf_free(&du.path);
	strbuf_free(&du.out);
	vec_free(&du.open);
	look_close(&du.look);
	return r;
}

/* ------------------------------------------------------------------ diff */

struct diff {
	const struct options *o;
	struct app *app;
	struct strbuf out;
	struct err *err;
	bool any;
};

static int diff_change(void *arg, const struct change *change)
{
	struct diff *d = arg;
	char kind[2] = {change->kind, '\0'};

	d->any = true;
	if (d->o->format == FORMAT_JSON) {
		strbuf_putc(&d->out, '{');
		json_pair(&d->out, "kind", kind);
		json_pair(&d->out, "path", change->path);
		strbuf_puts(&d->out, "}\n");
	} else {
		strbuf_printf(&d->out, "%s ", kind);
		row_name(&d->out, change->path);
		strbuf_putc(&d->out, '\n');
	}
	return out_maybe(d->app, &d->out, d->err);
}

/* The words of each side. Without --merge these are two; with it, one word stands alone and the
 * merged inputs are the other side, each where it was typed. */
static int diff_sides(const struct words *w, size_t *n_first, struct err *err)
{
	size_t n_merges = 0;

	for (size_t i = 0; i < w->n; i++)
		n_merges += w->items[i].is_merge;
	if (w->n - n_merges != (n_merges ? 1 : 2))
		return err_set(err, -EINVAL,
			       "diff takes REF_A and REF_B, or one of them and --merge "
			       "inputs for the other; see llbfs diff --help");
	if (n_merges && !w->items[w->n - 1].is_merge)
		*n_first = w->n - 1;
	else if (n_merges && w->items[0].is_merge)
		return err_set(err, -EINVAL, "the --merge inputs of diff must stand together");
	else
		*n_first = 1;
	return 0;
}

static int diff_views(struct diff *d, struct view *a, struct view *b)
{
	int r;

	r = tree_diff(a->tree, b->tree, diff_change, d, d->err);
	if (r == 0)
		r = out_flush(d->app, &d->out, d->err);
	return r < 0 ? r : d->any ? EXIT_NO : EXIT_YES;
}

int cmd_diff(struct options *o, struct err *err)
{
	const struct word *words = o->words.items;
	struct view a = {0}, b = {0};
	struct app app;
	struct diff d = {.o = o, .app = &app, .err = err};
	size_t n_first = 0;
	int r = diff_sides(&o->words, &n_first, err);

	if (r == 0)
		r = app_open(&app, o, "llbfs diff", err);
	if (r < 0)
		return r;
	r = view_open(&a, &app, o, words, n_first, err);
	if (r == 0)
		r = view_open(&b, &app, o, words + n_first, o->words.n - n_first, err);
	if (r == 0)
		r = diff_views(&d, &a, &b);
	strbuf_free(&d.out);
	progress_hide(app.progress);
	view_close(&a);
	view_close(&b);
	app_close(&app);
	return r;
}
