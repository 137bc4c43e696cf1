/* SPDX-License-Identifier: Apache-2.0 */

/*
 * ls, stat, find: names and what is known of them. Only indexes are read, no content (unless a
 * digest is asked for that no index has).
 */

#include "tools/tools.h"

#include <fnmatch.h>
#include <time.h>

static const char *split_path(const struct look *l)
{
	return l->split.n_paths ? l->split.paths[0].text : "/";
}

/* ------------------------------------------------------------------ ls */

struct ls_folder {
	uint64_t id;
	char *path; /* "/a/b" */
};

struct ls {
	struct look look;
	const struct options *o;
	struct strbuf out;
	vec(struct ls_folder) todo; /* the last one is next */
	const char *folder;	    /* the one that is being listed */
	size_t n_listed;	    /* entries of it that were printed */
	struct err *err;
	bool any;
};

static int ls_row(struct ls *ls, const char *path, const char *name, const struct attr *attr)
{
	int r = 0;

	if (ls->o->format == FORMAT_JSON) {
		r = row_json(&ls->out, ls->look.view.tree, path, attr, ls->o->sha256, ls->err);
	} else if (ls->o->is_long) {
		r = row_long(&ls->out, ls->look.view.tree, name, attr, ls->err);
	} else {
		row_name(&ls->out, name);
		strbuf_putc(&ls->out, '\n');
	}
	return r < 0 ? r : out_maybe(&ls->look.app, &ls->out, ls->err);
}

static char *path_join(const char *folder, const char *name, size_t len)
{
	return str_printf("%s/%.*s", strcmp(folder, "/") == 0 ? "" : folder, (int)len, name);
}

static int ls_entry(void *arg, const char *name, size_t len, const struct attr *attr, uint64_t next)
{
	struct ls *ls = arg;
	scoped(free) char *path = path_join(ls->folder, name, len);
	struct ls_folder *folder;
	int r;

	if (!path)
		return -ENOMEM;
	r = ls_row(ls, path, strrchr(path, '/') + 1, attr);
	if (r < 0 || !ls->o->is_recursive || attr->type != NODE_DIR)
		return r;
	folder = vec_push(&ls->todo);
	if (!folder)
		return -ENOMEM;
	*folder = (struct ls_folder){attr->id, take(path)};
	return 0;
}

/* Lists one folder; its subfolders become the next to do, in order. */
static int ls_folder(struct ls *ls, const struct ls_folder *folder)
{
	size_t first = ls->todo.n;
	int r;

	if (ls->o->is_recursive && ls->o->format != FORMAT_JSON) {
		strbuf_puts(&ls->out, ls->any ? "\n" : "");
		row_name(&ls->out, folder->path);
		strbuf_puts(&ls->out, ":\n");
	}
	ls->any = true;
	ls->folder = folder->path;
	r = tree_list(ls->look.view.tree, folder->id, 0, ls_entry, ls, NULL, ls->err);
	for (size_t a = first, b = ls->todo.n; a + 1 < b; a++, b--) {
		struct ls_folder swap = ls->todo.items[a];

		ls->todo.items[a] = ls->todo.items[b - 1];
		ls->todo.items[b - 1] = swap;
	}
	return r < 0 ? err_wrap(ls->err, r, "%s", folder->path) : 0;
}

static int ls_all(struct ls *ls)
{
	const char *path = split_path(&ls->look);
	scoped(strbuf_free) struct strbuf real = {0};
	struct ls_folder *todo;
	struct attr attr;
	int r;

	r = tree_walk_real(ls->look.view.tree, path, !ls->o->is_long || str_ends(path, "/"), &attr,
			   &real, ls->err);
	if (r < 0)
		return r;
	if (attr.type != NODE_DIR) {
		r = ls_row(ls, real.data, path, &attr);
		return r < 0 ? r : out_flush(&ls->look.app, &ls->out, ls->err);
	}
	todo = vec_push(&ls->todo);
	if (!todo || !(todo->path = strdup(real.data)))
		return -ENOMEM;
	todo->id = attr.id;
	while (r == 0 && ls->todo.n) {
		struct ls_folder folder = ls->todo.items[--ls->todo.n];

		r = ls_folder(ls, &folder);
		free(folder.path);
	}
	return r < 0 ? r : out_flush(&ls->look.app, &ls->out, ls->err);
}

int cmd_ls(struct options *o, struct err *err)
{
	struct ls ls = {.o = o, .err = err};
	int r = look_open(&ls.look, o, "ls", 0, 1, err);

	if (r == 0)
		r = ls_all(&ls);
	for (size_t i = 0; i < ls.todo.n; i++)
		free(ls.todo.items[i].path);
	vec_free(&ls.todo);
	strbuf_free(&ls.out);
	look_close(&ls.look);
	return r;
}

/* ------------------------------------------------------------------ stat */

static int stat_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct strbuf *s = arg;
	const char *bytes = value;

	strbuf_puts(s, "  xattr: ");
	row_name(s, name);
	strbuf_puts(s, "=");
	json_text(s, bytes, len);
	strbuf_putc(s, '\n');
	return 0;
}

static int stat_table(struct strbuf *s, struct tree *t, const char *path, const struct attr *attr,
		      bool with_sha256, struct err *err)
{
	scoped(strbuf_free) struct strbuf link = {0};
	char when[40] = "?", hex[DIGEST_HEX_MAX];
	time_t seconds = attr->mtime_s;
	struct digest digest;
	struct tm tm;
	int r = 0;

	strbuf_puts(s, "   path: ");
	row_name(s, path);
	if (attr->type == NODE_SYMLINK) {
		r = tree_readlink(t, attr->id, &link, err);
		strbuf_puts(s, " -> ");
		row_name(s, link.data ? link.data : "");
	}
	if (gmtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	strbuf_printf(
		s,
		"\n   type: %s\n   mode: %04o\n  owner: %u:%u\n   size: %llu\n  mtime: %s.%09u\n"
		"  inode: %llu\n  links: %u\n",
		type_name(attr->type), attr->mode, attr->uid, attr->gid,
		(unsigned long long)attr->size, when, attr->mtime_ns, (unsigned long long)attr->id,
		attr->nlink);
	if (attr->type == NODE_CHAR || attr->type == NODE_BLOCK)
		strbuf_printf(s, " device: %u:%u\n", attr->dev_major, attr->dev_minor);
	if (r == 0)
		r = tree_xattrs(t, attr->id, stat_xattr, s, err);
	if (r == 0 && with_sha256 && attr->type == NODE_FILE) {
		r = file_digest(t, attr, &digest, err);
		if (r == 0)
			strbuf_printf(s, " sha256: %s\n", digest_hex(&digest, hex));
	}
	return r;
}

int cmd_stat(struct options *o, struct err *err)
{
	scoped(strbuf_free) struct strbuf out = {0}, real = {0};
	struct look l;
	struct attr attr;
	int r = look_open(&l, o, "stat", 1, 1, err);

	if (r < 0)
		return r;
	r = tree_walk_real(l.view.tree, l.split.paths[0].text, false, &attr, &real, err);
	if (r == 0 && o->format == FORMAT_JSON)
		r = row_json(&out, l.view.tree, real.data, &attr, o->sha256, err);
	else if (r == 0)
		r = stat_table(&out, l.view.tree, real.data, &attr, o->sha256, err);
	if (r == 0)
		r = out_flush(&l.app, &out, err);
	look_close(&l);
	return r;
}

/* ------------------------------------------------------------------ find */

struct find {
	struct look look;
	const struct options *o;
	const char *top; /* without a slash at the end: "" for the root */
	struct strbuf out;
	struct err *err;
};

/* The letter of find(1) for a type. */
static char find_letter(uint8_t type)
{
	return type == NODE_FILE ? 'f' : type_letter(type);
}

static int find_entry(void *arg, const char *relative, const char *name, const struct attr *attr)
{
	struct find *f = arg;
	scoped(free) char *path = NULL;
	int r = 0;

	if (f->o->type && f->o->type[0] != find_letter(attr->type))
		return 0;
	if (f->o->name && fnmatch(f->o->name, name, 0) != 0)
		return 0;
	path = *relative ? str_printf("%s/%s", f->top, relative) : strdup(*f->top ? f->top : "/");
	if (!path)
		return -ENOMEM;
	if (f->o->format == FORMAT_JSON) {
		r = row_json(&f->out, f->look.view.tree, path, attr, f->o->sha256, f->err);
	} else {
		row_name(&f->out, path);
		strbuf_putc(&f->out, '\n');
	}
	return r < 0 ? r : out_maybe(&f->look.app, &f->out, f->err);
}

static int find_all(struct find *f)
{
	scoped(strbuf_free) struct strbuf real = {0};
	struct attr attr;
	int r;

	r = tree_walk_real(f->look.view.tree, split_path(&f->look), false, &attr, &real, f->err);
	if (r < 0)
		return r;
	f->top = strcmp(real.data, "/") == 0 ? "" : real.data;
	r = find_entry(f, "", *f->top ? strrchr(f->top, '/') + 1 : "/", &attr);
	if (r == 0 && attr.type == NODE_DIR)
		r = tree_walk_all(f->look.view.tree, attr.id, find_entry, f, f->err);
	return r < 0 ? r : out_flush(&f->look.app, &f->out, f->err);
}

int cmd_find(struct options *o, struct err *err)
{
	struct find f = {.o = o, .err = err};
	int r;

	if (o->type && (strlen(o->type) != 1 || !strchr("fdlcbps", o->type[0])))
		return err_set(err, -EINVAL, "-type must be one of f d l c b p s, not \"%s\"",
			       o->type);
	r = look_open(&f.look, o, "find", 0, 1, err);
	if (r == 0)
		r = find_all(&f);
	strbuf_free(&f.out);
	look_close(&f.look);
	return r;
}
