/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Copies between trees, by the rules of BuildKit's copier.
 *
 * A source that is a folder is walked with a stack of listings, and each entry is put into the
 * edit: a folder is made or, where there is one, gone into; anything else replaces what is no
 * folder. Metadata is set when a folder is left, as BuildKit does, so that its time is not that of
 * what was put into it.
 *
 * With patterns, a folder that is not itself included is made only when something below it is:
 * each frame knows whether its folder is there, and what is included makes the frames below it
 * first. An excluded folder is gone into all the same, as a later pattern may take something in it
 * back.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ hard links */

static struct copy_link *link_slot(const struct copy_links *l, uint64_t from)
{
	size_t i = (size_t)hash_bytes(&from, sizeof(from)) & (l->size - 1);
	while (l->slots[i].from && l->slots[i].from != from)
		i = (i + 1) & (l->size - 1);
	return &l->slots[i];
}

uint64_t copy_links_find(const struct copy_links *l, uint64_t from)
{
	return l->size ? link_slot(l, from)->to : 0;
}

int copy_links_add(struct copy_links *l, uint64_t from, uint64_t to)
{
	if (l->n * 2 >= l->size) {
		struct copy_links bigger = {.size = l->size ? l->size * 2 : 64, .n = l->n};
		bigger.slots = calloc(bigger.size, sizeof(*bigger.slots));
		if (!bigger.slots)
			return -ENOMEM;
		for (size_t i = 0; i < l->size; i++)
			if (l->slots[i].from)
				*link_slot(&bigger, l->slots[i].from) = l->slots[i];
		free(l->slots);
		*l = bigger;
	}
	*link_slot(l, from) = (struct copy_link){from, to};
	l->n++;
	return 0;
}

void copy_links_clear(struct copy_links *l)
{
	free(l->slots);
	*l = (struct copy_links){0};
}

/* ------------------------------------------------------------------ metadata */

/* What the copy of @from is to have. */
static int copy_attr(const struct copy *c, const struct attr *from, struct attr *out,
		     struct err *err)
{
	*out = *from;
	if (out->type == NODE_SOCKET) { /* a file without content, as BuildKit makes */
		out->type = NODE_FILE;
		out->size = out->n_bytes_allocated = 0;
	}
	if (c->env->owner.is_set) {
		out->uid = c->env->owner.uid;
		out->gid = c->env->owner.gid;
	}
	if (c->time_ns != -1)
		file_time(c->env, c->time_ns, out);
	if (out->type == NODE_SYMLINK)
		return 0;
	if (c->mode_text && *c->mode_text) {
		if (file_mode(c->mode_text, out->type == NODE_DIR, out->mode, &out->mode) < 0)
			return err_set(err, -EBADMSG, "bad mode \"%s\"", c->mode_text);
	} else if (c->has_mode) {
		out->mode = c->mode;
	}
	return 0;
}

static int copy_make(struct copy *c, const struct attr *from, uint64_t dir, const char *name,
		     uint64_t *node, struct err *err)
{
	struct attr attr;
	struct edit_what what = {
		.attr = &attr, .from = c->env->source, .from_id = from->id, .was = from};
	if (from->type == NODE_SOCKET)
		what.from = NULL;
	int r = copy_attr(c, from, &attr, err);
	if (r == 0)
		r = edit_make(c->env->edit, dir, name, strlen(name), &what, node, err);
	if (r == 0 && c->is_local)
		edit_keep_xattr(c->env->edit, *node, "security.capability");
	return r;
}

/* ------------------------------------------------------------------ folders on the way */

static void copy_met(struct copy *c, const char *path)
{
	if (!c->required || !c->n_required)
		return;
	size_t len = strlen(c->prefix);
	for (size_t i = 0; i < c->n_required; i++) {
		const char *want = c->required[i];
		size_t n = strlen(want);
		size_t head = MIN(n, len);
		if (memcmp(want, c->prefix, head) != 0)
			continue;
		if (n <= len || (*path && want[len] == '/' && str_starts(path, want + len + 1)))
			c->met[i] = 1;
	}
}

/* Makes the folders of all frames that are not there yet. */
static int make_frames(struct copy *c, struct err *err)
{
	for (size_t i = 1; i < c->frames.n; i++) {
		struct copy_frame *f = &c->frames.items[i];
		if (f->to)
			continue;
		uint64_t parent = f[-1].to;
		scoped(free) char *name =
			strndup(c->path.data + f->name_off, f->path_len - f->name_off);
		if (!name)
			return no_memory(err);
		int r = edit_child(c->env->edit, parent, name, strlen(name), &f->to, err);
		f->is_kept = r == 0 && f->to != 0;
		if (r == 0 && f->to && edit_attr(c->env->edit, f->to)->type != NODE_DIR) {
			if (!c->always_replace)
				return err_set(err, -ENOTDIR, "cannot copy to non-directory: %s",
					       name);
			edit_remove(c->env->edit, parent, name, strlen(name));
			f->to = 0;
			f->is_kept = false;
		}
		if (r == 0 && !f->to)
			r = copy_make(c, &f->from, parent, name, &f->to, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int collect_item(void *arg, const char *name, size_t len, const struct attr *attr,
			uint64_t next)
{
	struct copy_frame *f = arg;
	struct copy_item *item = vec_push(&f->items);
	if (!item)
		return -ENOMEM;
	item->attr = *attr;
	item->name = f->names.len;
	strbuf_add(&f->names, name, len);
	strbuf_add(&f->names, "", 1);
	return f->names.failed ? -ENOMEM : 0;
}

static void frame_deinit(struct copy_frame *f)
{
	free(f->in);
	free(f->out);
	vec_free(&f->items);
	strbuf_free(&f->names);
}

void copy_deinit(struct copy *c)
{
	while (c->frames.n > 0)
		frame_deinit(&c->frames.items[--c->frames.n]);
	vec_free(&c->frames);
	copy_links_clear(&c->links);
	strbuf_free(&c->path);
}

static int push_frame(struct copy *c, const struct attr *from, struct copy_frame **out,
		      struct err *err)
{
	struct copy_frame *f = *out = vec_push(&c->frames);
	if (!f)
		return no_memory(err);
	f->from = *from;
	f->path_len = c->path.len;
	f->in = calloc(c->include ? match_patterns_count(c->include) + 1 : 1, 1);
	f->out = calloc(c->exclude ? match_patterns_count(c->exclude) + 1 : 1, 1);
	if (!f->in || !f->out)
		return no_memory(err);
	return tree_list(c->env->source, from->id, 0, collect_item, f, NULL, err);
}

/* Sets the metadata of a folder that all has been put into. */
static int leave_frame(struct copy *c, struct err *err)
{
	struct copy_frame *f = &c->frames.items[c->frames.n - 1];
	bool keeps = f->is_kept && (f->is_top || c->include || !f->is_wanted);
	struct attr attr;
	int r = 0;
	if (f->to) {
		r = copy_attr(c, &f->from, &attr, err);
		if (r == 0 && keeps) {
			struct attr now = *edit_attr(c->env->edit, f->to);
			now.mtime_s = attr.mtime_s;
			now.mtime_ns = attr.mtime_ns;
			attr = now;
		}
		if (r == 0)
			edit_set(c->env->edit, f->to, &attr);
		if (r == 0 && f->is_kept && !keeps)
			r = edit_set_xattrs(c->env->edit, f->to, c->env->source, f->from.id, err);
	}
	frame_deinit(f);
	c->frames.n--;
	return r;
}

/* ------------------------------------------------------------------ entries */

static int copy_leaf(struct copy *c, const struct attr *from, uint64_t dir, const char *name,
		     struct err *err)
{
	struct edit *e = c->env->edit;
	uint64_t node, link = from->nlink > 1 ? copy_links_find(&c->links, from->id) : 0;
	size_t len = strlen(name);
	int r = edit_child(e, dir, name, len, &node, err);
	if (r < 0)
		return r;
	if (node && node == link)
		return 0;
	if (node && edit_attr(e, node)->type == NODE_DIR && !c->always_replace)
		return err_set(err, -EISDIR, "cannot replace to directory %s with file", name);
	if (node)
		edit_remove(e, dir, name, len);
	if (link)
		return edit_link(e, dir, name, len, link, err);
	r = copy_make(c, from, dir, name, &node, err);
	if (r == 0 && from->nlink > 1 && copy_links_add(&c->links, from->id, node) < 0)
		return no_memory(err);
	return r;
}

/* Whether the entry c->path is wanted: 1 or 0. Fills the flags for what lies below it. */
static int is_wanted(struct copy *c, const struct copy_frame *dir, bool *in, bool *out)
{
	bool is_top = c->frames.n == 1;
	int wanted = 1;
	if (c->include)
		wanted = match_patterns(c->include, c->path.data, is_top ? NULL : dir->in, in);
	if (wanted < 0 || !c->exclude)
		return wanted;
	int excluded = match_patterns(c->exclude, c->path.data, is_top ? NULL : dir->out, out);
	return excluded < 0 ? excluded : wanted && !excluded;
}

/* Goes into the folder c->path. */
static int enter(struct copy *c, const struct attr *from, size_t name_off, bool *in, bool *out,
		 bool wanted, struct err *err)
{
	struct copy_frame *f;
	int r = push_frame(c, from, &f, err);
	if (r < 0)
		return r;
	f->name_off = name_off;
	if (c->include)
		memcpy(f->in, in, match_patterns_count(c->include));
	if (c->exclude)
		memcpy(f->out, out, match_patterns_count(c->exclude));
	f->is_wanted = wanted;
	if (!wanted)
		return 0;
	copy_met(c, c->path.data);
	return make_frames(c, err);
}

/* One entry of the innermost folder, or the end of that folder. */
static int copy_step(struct copy *c, struct err *err)
{
	struct copy_frame *f = &c->frames.items[c->frames.n - 1];
	scoped(free) bool *in = NULL, *out = NULL;
	if (f->next == f->items.n)
		return leave_frame(c, err);
	const struct attr from = f->items.items[f->next].attr;
	scoped(free) char *name = strdup(f->names.data + f->items.items[f->next++].name);
	in = calloc(c->include ? match_patterns_count(c->include) + 1 : 1, 1);
	out = calloc(c->exclude ? match_patterns_count(c->exclude) + 1 : 1, 1);
	c->path.len = f->path_len;
	strbuf_puts(&c->path, f->path_len ? "/" : "");
	size_t name_off = c->path.len;
	strbuf_puts(&c->path, name ? name : "");
	if (!name || !in || !out || c->path.failed)
		return no_memory(err);
	if (c->is_local && from.type == NODE_SOCKET)
		return 0;
	int wanted = is_wanted(c, f, in, out);
	if (wanted < 0)
		return no_memory(err);
	if (from.type == NODE_DIR)
		return enter(c, &from, name_off, in, out, wanted, err);
	if (!wanted)
		return 0;
	copy_met(c, c->path.data);
	int r = make_frames(c, err);
	return r < 0 ? r : copy_leaf(c, &from, c->frames.items[c->frames.n - 1].to, name, err);
}

/* The folder into which the source's content goes: @name in @dir, or @dir itself. */
static int copy_top(struct copy *c, const struct attr *from, uint64_t dir, const char *name,
		    struct err *err)
{
	struct edit *e = c->env->edit;
	uint64_t to = dir;
	bool is_kept = true;
	int r = 0;
	if (*name) {
		r = edit_child(e, dir, name, strlen(name), &to, err);
		if (r == 0 && to && edit_attr(e, to)->type != NODE_DIR) {
			if (!c->always_replace)
				return err_set(err, -ENOTDIR, "cannot copy to non-directory: %s",
					       name);
			edit_remove(e, dir, name, strlen(name));
			to = 0;
		}
		is_kept = to != 0;
		if (r == 0 && !to)
			r = copy_make(c, from, dir, name, &to, err);
	}
	if (r < 0)
		return r;
	struct copy_frame *f;
	r = push_frame(c, from, &f, err);
	if (r < 0)
		return r;
	f->to = to;
	f->is_top = f->is_wanted = true;
	f->is_kept = is_kept;
	copy_met(c, "");
	return 0;
}

int copy_run(struct copy *c, const struct attr *from, uint64_t dir, const char *name,
	     struct err *err)
{
	strbuf_clear(&c->path);
	strbuf_puts(&c->path, "");
	copy_links_clear(&c->links);
	if (from->type != NODE_DIR) {
		copy_met(c, "");
		return copy_leaf(c, from, dir, name, err);
	}
	int r = copy_top(c, from, dir, name, err);
	while (r == 0 && c->frames.n > 0)
		r = copy_step(c, err);
	return r;
}
