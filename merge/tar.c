/* SPDX-License-Identifier: Apache-2.0 */

/*
 * tar: tars in. The only user of libarchive, for four readers: a layer's stream (tar_index), an
 * archive file whose members are read in place (tar_scan), a tar in memory (tar_find), and an
 * archive that a file operation unpacks (tar_unpack).
 *
 * After a header, archive_filter_bytes() is the offset of the member's data in the stream, and the
 * data comes as blocks in order, each with its place in the file: what is between blocks is a
 * hole. So the k-th byte given lies at that offset plus k, for ordinary and for sparse files (old
 * GNU, PAX 0.0, 0.1 and 1.0) alike; the extents are made from the blocks and not from the header.
 *
 * Names are bytes. libarchive takes those of PAX headers for UTF-8 and converts them to the
 * locale, and where that is UTF-8 it also composes them (NFC), which would rename files. In the C
 * locale the conversion of anything but ASCII fails, and then it keeps the bytes as they are, with
 * a warning; so everything here runs in the C locale, of this thread alone.
 *
 * libarchive reads unknown types as files. The type is checked in the header itself, which is kept
 * for that purpose: it ends where the data begins (sparse maps may lie between, but then the type
 * is known anyway).
 */

#include "merge/merge.h"

#include <archive.h>
#include <archive_entry.h>
#include <locale.h>
#include <unistd.h>

#include "merge/merge-internal.h"

#define HEADER_SIZE 512u
#define TYPE_OFF 156u
/* Enough to hold the last header: reading ahead beyond it is at most one more block. */
#define TAIL_SIZE (2 * HEADER_SIZE)
#define SCAN_BUFFER (256u << 10)

/* ------------------------------------------------------------------ the C locale */

struct c_locale {
	locale_t mine, before;
};

static int c_locale_enter(struct c_locale *l, struct err *err)
{
	l->mine = newlocale(LC_ALL_MASK, "C", (locale_t)0);
	if (!l->mine)
		return err_errno(err, "tar: no C locale");
	l->before = uselocale(l->mine);
	return 0;
}

static void c_locale_leave(struct c_locale *l)
{
	uselocale(l->before);
	freelocale(l->mine);
}

/* ------------------------------------------------------------------ errors and entries */

typedef struct archive *archive_ptr;
static void archive_scoped(archive_ptr *a)
{
	if (*a)
		archive_read_free(*a);
}

static archive_ptr new_archive(void)
{
	struct archive *a = archive_read_new();

	if (a && archive_read_support_format_tar(a) == ARCHIVE_OK &&
	    archive_read_support_format_empty(a) == ARCHIVE_OK)
		return a;
	if (a)
		archive_read_free(a);
	return NULL;
}

static int tar_error(struct archive *a, struct err *err)
{
	const char *text = archive_error_string(a);

	return err_set(err, archive_errno(a) == ENOMEM ? -ENOMEM : -EBADMSG, "tar: %s",
		       text ? text : "damaged");
}

/* 1 = *entry, 0 = the end. */
static int next_entry(struct archive *a, struct archive_entry **entry, struct err *err)
{
	int r = archive_read_next_header(a, entry);

	if (r == ARCHIVE_EOF)
		return 0;
	/* Warnings are about names that were not converted, which is what is wanted. */
	if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
		return tar_error(a, err);
	if (!archive_entry_pathname(*entry))
		return err_set(err, -EBADMSG, "tar: an entry without a name");
	return 1;
}

/* ------------------------------------------------------------------ a layer's stream */

struct stream {
	tar_next_fn next;
	void *arg;
	int result; /* of next, when it failed */
	struct err err;
	const uint8_t *block; /* the last one given */
	size_t n;
	uint64_t end;		 /* stream offset of its end */
	uint8_t tail[TAIL_SIZE]; /* what was before it, at most */
	size_t n_tail;
};

static void keep_tail(struct stream *s)
{
	size_t from_block = MIN(s->n, (size_t)TAIL_SIZE);
	size_t from_tail = MIN(s->n_tail, TAIL_SIZE - from_block);

	memmove(s->tail, s->tail + s->n_tail - from_tail, from_tail);
	if (from_block)
		memcpy(s->tail + from_tail, s->block + s->n - from_block, from_block);
	s->n_tail = from_tail + from_block;
}

static la_ssize_t feed(struct archive *a, void *arg, const void **bytes)
{
	struct stream *s = arg;

	keep_tail(s);
	s->n = 0;
	int r = s->next(s->arg, bytes, &s->n, &s->err);
	if (r < 0) {
		s->result = r;
		archive_set_error(a, -r, "%s", err_text(&s->err, r));
		return -1;
	}
	if (r == 0)
		s->n = 0;
	s->block = *bytes;
	s->end += s->n;
	return (la_ssize_t)s->n;
}

/* The byte at a recent offset of the stream; -1 when it is gone. */
static int byte_at(const struct stream *s, uint64_t off)
{
	uint64_t begin = s->end - s->n;

	if (off >= begin)
		return off < s->end ? s->block[off - begin] : -1;
	uint64_t back = begin - off;
	return back <= s->n_tail ? s->tail[s->n_tail - back] : -1;
}

static int check_type(const struct stream *s, struct archive_entry *e, uint64_t data_off,
		      struct err *err)
{
	if (archive_entry_sparse_count(e) > 0 || data_off < HEADER_SIZE)
		return 0;
	int type = byte_at(s, data_off - HEADER_SIZE + TYPE_OFF);
	if (type <= 0 || (type >= '0' && type <= '7') || type == 'S')
		return 0;
	return err_set(err, -EBADMSG, "tar: an entry of unknown type 0x%02x", type);
}

/* One entry's parts, reused for the next. */
struct tar_entry {
	struct index_item item;
	struct digest digest;
	struct hasher *hasher;
	vec(struct index_xattr) xattrs;
	vec(struct index_extent) extents;
};

static void tar_entry_deinit(struct tar_entry *t)
{
	hasher_free(t->hasher);
	vec_free(&t->xattrs);
	vec_free(&t->extents);
}

static int take_time(struct tar_entry *t, struct archive_entry *e, struct err *err)
{
	int64_t s = archive_entry_mtime(e);
	long ns = archive_entry_mtime_nsec(e);

	if (ns < 0 || ns >= (long)NS_PER_S)
		return err_set(err, -EBADMSG, "tar: a time that is none");
	/* libarchive gives -1.25 as -1 and .25. */
	t->item.mtime_s = s < 0 && ns > 0 ? s - 1 : s;
	t->item.mtime_ns = (uint32_t)(s < 0 && ns > 0 ? (long)NS_PER_S - ns : ns);
	return 0;
}

static int take_xattrs(struct tar_entry *t, struct archive_entry *e)
{
	const char *name;
	const void *value;
	size_t len;

	t->xattrs.n = 0;
	archive_entry_xattr_reset(e);
	while (archive_entry_xattr_next(e, &name, &value, &len) == ARCHIVE_OK) {
		struct index_xattr *x = name ? vec_push(&t->xattrs) : NULL;
		if (x)
			*x = (struct index_xattr){.name = name, .value = value, .len = len};
		else if (name)
			return -ENOMEM;
	}
	t->item.xattrs = t->xattrs.items;
	t->item.n_xattrs = t->xattrs.n;
	return 0;
}

static int take_type(struct tar_entry *t, struct archive_entry *e)
{
	t->item.link = archive_entry_hardlink(e);
	if (t->item.link)
		return NODE_NONE;
	switch (archive_entry_filetype(e)) {
	case AE_IFREG:
		return NODE_FILE;
	case AE_IFDIR:
		return NODE_DIR;
	case AE_IFLNK:
		t->item.link = archive_entry_symlink(e);
		return t->item.link ? NODE_SYMLINK : -EBADMSG;
	case AE_IFCHR:
		return NODE_CHAR;
	case AE_IFBLK:
		return NODE_BLOCK;
	case AE_IFIFO:
		return NODE_FIFO;
	default:
		return -EBADMSG;
	}
}

static int take_metadata(struct tar_entry *t, struct archive_entry *e, struct err *err)
{
	struct index_item *item = &t->item;
	int64_t uid = archive_entry_uid(e), gid = archive_entry_gid(e);

	*item = (struct index_item){.path = archive_entry_pathname(e)};
	int type = take_type(t, e);
	if (type < 0)
		return err_set(err, -EBADMSG, "tar: an entry of no known type");
	item->type = (uint8_t)type;
	if (uid < 0 || uid > UINT32_MAX || gid < 0 || gid > UINT32_MAX)
		return err_set(err, -EBADMSG, "tar: an owner out of range");
	item->uid = (uint32_t)uid;
	item->gid = (uint32_t)gid;
	item->mode = archive_entry_perm(e);
	if (type == NODE_CHAR || type == NODE_BLOCK) {
		item->dev_major = (uint64_t)archive_entry_rdevmajor(e);
		item->dev_minor = (uint64_t)archive_entry_rdevminor(e);
	}
	if (take_xattrs(t, e) < 0)
		return err_set(err, -ENOMEM, "tar: no memory");
	return take_time(t, e, err);
}

static int add_extent(struct tar_entry *t, uint64_t file_off, uint64_t len, uint64_t plain_off)
{
	struct index_extent *last = t->extents.n ? &t->extents.items[t->extents.n - 1] : NULL;

	if (last && last->file_off + last->len == file_off &&
	    last->plain_off + last->len == plain_off) {
		last->len += len;
		return 0;
	}
	last = vec_push(&t->extents);
	if (!last)
		return -ENOMEM;
	*last = (struct index_extent){.file_off = file_off, .len = len, .plain_off = plain_off};
	return 0;
}

/* Goes through a file's data: where it lies, and what its digest is. */
static int take_content(struct tar_entry *t, struct archive *a, struct archive_entry *e,
			uint64_t data_off, struct err *err)
{
	struct index_item *item = &t->item;
	bool is_sparse = archive_entry_sparse_count(e) > 0;
	uint64_t file_end = 0, n_given = 0;
	const void *block;
	size_t n;
	la_int64_t off;
	int r;

	if (archive_entry_size(e) < 0)
		return err_set(err, -EBADMSG, "tar: a file of negative size");
	item->size = (uint64_t)archive_entry_size(e);
	t->extents.n = 0;
	while ((r = archive_read_data_block(a, &block, &n, &off)) == ARCHIVE_OK) {
		if (n == 0)
			continue;
		if (off < 0 || (uint64_t)off < file_end || n > item->size ||
		    (uint64_t)off > item->size - n)
			return err_set(err, -EBADMSG, "tar: a sparse file whose parts overlap");
		if (add_extent(t, (uint64_t)off, n, data_off + n_given) < 0)
			return err_set(err, -ENOMEM, "tar: no memory");
		if (!is_sparse)
			hasher_add(t->hasher, block, n);
		n_given += n;
		file_end = (uint64_t)off + n;
	}
	if (r != ARCHIVE_EOF)
		return tar_error(a, err);
	if (!is_sparse && n_given != item->size)
		return err_set(err, -EBADMSG, "tar: a file is cut off");
	item->plain_off = data_off;
	item->is_sparse = n_given != item->size;
	item->extents = t->extents.items;
	item->n_extents = item->is_sparse ? t->extents.n : 0;
	if (!is_sparse) {
		hasher_done(t->hasher, &t->digest);
		item->digest = &t->digest;
	}
	return 0;
}

static int index_entries(struct index_builder *b, struct archive *a, struct stream *s,
			 struct tar_entry *t, struct err *err)
{
	struct archive_entry *e;
	int r;

	while ((r = next_entry(a, &e, err)) > 0) {
		uint64_t data_off = (uint64_t)archive_filter_bytes(a, 0);
		r = check_type(s, e, data_off, err);
		if (r == 0)
			r = take_metadata(t, e, err);
		if (r == 0 && t->item.type == NODE_FILE)
			r = take_content(t, a, e, data_off, err);
		if (r == 0)
			r = index_builder_add(b, &t->item, err);
		if (r < 0)
			break;
	}
	/* What follows the end of the archive belongs to the stream all the same. */
	while (r == 0 && s->n > 0) {
		const void *bytes;
		r = s->next(s->arg, &bytes, &s->n, err);
		if (r <= 0)
			break;
		r = 0;
	}
	return r;
}

int tar_index(struct index_builder *b, tar_next_fn next, void *arg, struct err *err)
{
	struct stream s = {.next = next, .arg = arg};
	struct tar_entry t = {.hasher = hasher_new()};
	struct c_locale locale = {0};
	int r = c_locale_enter(&locale, err);

	if (r == 0) {
		scoped(archive) archive_ptr a = new_archive();
		if (!a || !t.hasher)
			r = err_set(err, -ENOMEM, "tar: no memory");
		else if (archive_read_open(a, &s, NULL, feed, NULL) != ARCHIVE_OK)
			r = tar_error(a, err);
		else
			r = index_entries(b, a, &s, &t, err);
		c_locale_leave(&locale);
	}
	tar_entry_deinit(&t);
	if (r < 0 && s.result < 0) {
		r = s.result;
		if (err)
			*err = s.err;
	}
	return r;
}

/* ------------------------------------------------------------------ a file's members */

struct scan {
	int fd;
	uint64_t off;
	uint8_t *buffer;
};

static la_ssize_t scan_read(struct archive *a, void *arg, const void **bytes)
{
	struct scan *s = arg;
	ssize_t n;

	do {
		n = pread(s->fd, s->buffer, SCAN_BUFFER, (off_t)s->off);
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		archive_set_error(a, errno, "%s", strerror(errno));
		return -1;
	}
	s->off += (uint64_t)n;
	*bytes = s->buffer;
	return n;
}

static la_int64_t scan_skip(struct archive *a, void *arg, la_int64_t n)
{
	struct scan *s = arg;

	s->off += (uint64_t)n;
	return n;
}

static int scan_entries(struct archive *a, int (*fn)(void *arg, const struct tar_member *m),
			void *arg, struct err *err)
{
	struct archive_entry *e;
	int r;

	while ((r = next_entry(a, &e, err)) > 0) {
		const char *path = archive_entry_pathname(e);
		const char *hard = archive_entry_hardlink(e);
		scoped(free) char *name = path_clean(path, strlen(path));
		scoped(free) char *link = hard ? path_clean(hard, strlen(hard)) : NULL;
		if (!name || (hard && !link))
			return err_set(err, -ENOMEM, "tar: no memory");
		struct tar_member m = {
			.name = name + 1,
			.link = hard ? link + 1 : archive_entry_symlink(e),
			.off = (uint64_t)archive_filter_bytes(a, 0),
			.size = (uint64_t)MAX(archive_entry_size(e), (la_int64_t)0),
			.is_file = !hard && archive_entry_filetype(e) == AE_IFREG &&
				   archive_entry_sparse_count(e) == 0,
		};
		r = *m.name ? fn(arg, &m) : 0;
		if (r != 0)
			return r;
	}
	return r;
}

int tar_scan(int fd, int (*fn)(void *arg, const struct tar_member *m), void *arg, struct err *err)
{
	struct scan s = {.fd = fd, .buffer = malloc(SCAN_BUFFER)};
	scoped(archive) archive_ptr a = new_archive();
	struct c_locale locale = {0};
	int r;

	if (!s.buffer || !a)
		r = err_set(err, -ENOMEM, "tar: no memory");
	else
		r = c_locale_enter(&locale, err);
	if (r == 0) {
		if (archive_read_open2(a, &s, NULL, scan_read, scan_skip, NULL) != ARCHIVE_OK)
			r = tar_error(a, err);
		else
			r = scan_entries(a, fn, arg, err);
		c_locale_leave(&locale);
	}
	free(s.buffer);
	return r;
}

/* ------------------------------------------------------------------ one file in memory */

struct wanted {
	const char *name;
	uint64_t off, size;
};

static int find_member(struct archive *a, struct wanted *w, struct err *err)
{
	struct archive_entry *e;
	int r;

	while ((r = next_entry(a, &e, err)) > 0) {
		const char *path = archive_entry_pathname(e);
		scoped(free) char *clean = path_clean(path, strlen(path));
		if (!clean)
			return err_set(err, -ENOMEM, "tar: no memory");
		if (strcmp(clean + 1, w->name) != 0 || archive_entry_hardlink(e) ||
		    archive_entry_filetype(e) != AE_IFREG || archive_entry_sparse_count(e) > 0)
			continue;
		w->off = (uint64_t)archive_filter_bytes(a, 0);
		w->size = (uint64_t)MAX(archive_entry_size(e), (la_int64_t)0);
		return 0;
	}
	return r < 0 ? r : err_set(err, -ENOENT, "tar: no %s in it", w->name);
}

int tar_find(const void *bytes, size_t n, const char *name, const void **content, size_t *size,
	     struct err *err)
{
	struct wanted w = {.name = name};
	scoped(archive) archive_ptr a = new_archive();
	struct c_locale locale = {0};

	if (!a)
		return err_set(err, -ENOMEM, "tar: no memory");
	int r = c_locale_enter(&locale, err);
	if (r < 0)
		return r;
	if (archive_read_open_memory(a, bytes, n) != ARCHIVE_OK)
		r = tar_error(a, err);
	else
		r = find_member(a, &w, err);
	c_locale_leave(&locale);
	if (r == 0 && (w.off > n || w.size > n - w.off))
		r = err_set(err, -EBADMSG, "tar: %s is cut off", name);
	if (r == 0) {
		*content = (const uint8_t *)bytes + w.off;
		*size = (size_t)w.size;
	}
	return r;
}

/* ------------------------------------------------------------------ a tar into an edit */

/* What an archive unpacks to is held in memory. */
#define UNPACK_MAX (512u << 20)
#define UNPACK_BUFFER (256u << 10)

struct unpack {
	struct edit *edit;
	struct tree *source;
	const struct attr *file;
	const struct tar_unpack_options *options;
	uint64_t off;	/* in the archive */
	uint64_t total; /* unpacked so far */
	char *buffer;
	int result; /* of reading, when it failed */
	struct err err;
};

static la_ssize_t unpack_feed(struct archive *a, void *arg, const void **bytes)
{
	struct unpack *u = arg;
	int64_t n = tree_read(u->source, u->file->id, u->off, u->buffer, UNPACK_BUFFER, NULL, NULL,
			      &u->err);

	if (n < 0) {
		u->result = (int)n;
		archive_set_error(a, EIO, "%s", err_text(&u->err, (int)n));
		return ARCHIVE_FATAL;
	}
	u->off += (uint64_t)n;
	*bytes = u->buffer;
	return (la_ssize_t)n;
}

/* Makes the folders of @path, a real path, that are not there. What is no folder is in the way. */
static int unpack_dirs(struct unpack *u, const char *path, uint64_t *dir, struct err *err)
{
	struct attr attr = {.type = NODE_DIR,
			    .mode = 0755,
			    .uid = u->options->uid,
			    .gid = u->options->gid,
			    .mtime_s = u->options->now.tv_sec,
			    .mtime_ns = (uint32_t)u->options->now.tv_nsec};
	const struct edit_what what = {.attr = &attr};
	uint64_t at = TREE_ROOT, node;

	for (const char *name = path; *name;) {
		name += strspn(name, "/");
		size_t len = strcspn(name, "/");
		if (len == 0)
			break;
		scoped(free) char *part = strndup(name, len);
		int r = part ? edit_child(u->edit, at, part, len, &node, err) : -ENOMEM;
		if (r == 0 && !node)
			r = edit_make(u->edit, at, part, len, &what, &node, err);
		else if (r == 0 && edit_attr(u->edit, node)->type != NODE_DIR)
			r = err_set(err, -ENOTDIR, "%s: not a folder on the way", path);
		if (r < 0)
			return r;
		at = node;
		name += len;
	}
	*dir = at;
	return 0;
}

/* The folder and the name at which an entry is to be; its path is resolved below the root. */
static int unpack_place(struct unpack *u, const char *path, uint64_t *dir, char **name,
			struct err *err)
{
	scoped(free) char *clean = path_clean(path, strlen(path));
	char *slash = clean ? strrchr(clean, '/') : NULL;
	scoped(strbuf_free) struct strbuf real = {0};
	uint64_t node;

	*name = slash ? strdup(slash + 1) : NULL;
	if (!*name)
		return err_set(err, -ENOMEM, "out of memory");
	*slash = '\0';
	scoped(free) char *parent = str_printf("%s/%s", u->options->into, clean);
	if (!parent)
		return err_set(err, -ENOMEM, "out of memory");
	int r = edit_walk(u->edit, parent, EDIT_FOLLOW, &node, &real, err);
	return r < 0 ? r : unpack_dirs(u, real.data, dir, err);
}

static int unpack_data(struct unpack *u, struct archive *a, struct strbuf *out, struct err *err)
{
	const void *bytes;
	la_int64_t off;
	size_t n;
	int r;

	while ((r = archive_read_data_block(a, &bytes, &n, &off)) == ARCHIVE_OK) {
		static const char zeros[4096];
		if (off < 0 || (uint64_t)off + n + u->total > UNPACK_MAX)
			return err_set(err, -EFBIG, "unpacks to more than %u MiB",
				       UNPACK_MAX >> 20);
		while (out->len < (uint64_t)off && !out->failed)
			strbuf_add(out, zeros, MIN(sizeof(zeros), (size_t)off - out->len));
		strbuf_add(out, bytes, n);
		if (out->failed)
			return err_set(err, -ENOMEM, "out of memory");
	}
	u->total += out->len;
	return r == ARCHIVE_EOF ? 0 : u->result < 0 ? u->result : tar_error(a, err);
}

static uint8_t unpack_type(struct archive_entry *e)
{
	switch (archive_entry_filetype(e)) {
	case AE_IFREG:
		return NODE_FILE;
	case AE_IFDIR:
		return NODE_DIR;
	case AE_IFLNK:
		return NODE_SYMLINK;
	case AE_IFCHR:
		return NODE_CHAR;
	case AE_IFBLK:
		return NODE_BLOCK;
	case AE_IFIFO:
		return NODE_FIFO;
	default:
		return NODE_NONE;
	}
}

static void unpack_attr(const struct unpack *u, struct archive_entry *e, struct attr *out)
{
	const struct tar_unpack_options *o = u->options;

	*out = (struct attr){
		.type = unpack_type(e),
		.mode = archive_entry_perm(e) & 07777,
		.uid = o->has_owner ? o->uid : (uint32_t)archive_entry_uid(e),
		.gid = o->has_owner ? o->gid : (uint32_t)archive_entry_gid(e),
		.mtime_s = archive_entry_mtime(e),
		.mtime_ns = (uint32_t)archive_entry_mtime_nsec(e),
		.dev_major = (uint32_t)archive_entry_rdevmajor(e),
		.dev_minor = (uint32_t)archive_entry_rdevminor(e),
	};
}

static int unpack_link(struct unpack *u, const char *target, uint64_t dir, const char *name,
		       struct err *err)
{
	scoped(free) char *clean = path_clean(target, strlen(target));
	scoped(free) char *path = clean ? str_printf("%s%s", u->options->into, clean) : NULL;
	uint64_t node;
	int r = path ? edit_walk(u->edit, path, EDIT_NO_FOLLOW, &node, NULL, err)
		     : err_set(err, -ENOMEM, "out of memory");

	if (r == 0 && (!node || edit_attr(u->edit, node)->type == NODE_DIR))
		r = err_set(err, -EBADMSG, "%s: a hard link to %s, which is no file", name, target);
	return r < 0 ? r : edit_link(u->edit, dir, name, strlen(name), node, err);
}

/* Puts what the entry is at a place where nothing is. */
static int unpack_make(struct unpack *u, struct archive *a, struct archive_entry *e, uint64_t dir,
		       const char *name, struct err *err)
{
	scoped(strbuf_free) struct strbuf data = {0};
	const char *hard = archive_entry_hardlink(e), *xattr;
	struct attr attr;
	uint64_t node;
	const void *value;
	size_t len;
	int r = 0;

	if (hard)
		return unpack_link(u, hard, dir, name, err);
	unpack_attr(u, e, &attr);
	if (attr.type == NODE_NONE)
		return 0;
	if (attr.type == NODE_FILE)
		r = unpack_data(u, a, &data, err);
	else if (attr.type == NODE_SYMLINK)
		strbuf_puts(&data, archive_entry_symlink(e) ? archive_entry_symlink(e) : "");
	const struct edit_what what = {.attr = &attr, .data = data.data, .len = data.len};
	if (r == 0)
		r = edit_make(u->edit, dir, name, strlen(name), &what, &node, err);
	archive_entry_xattr_reset(e);
	while (r == 0 && archive_entry_xattr_next(e, &xattr, &value, &len) == ARCHIVE_OK)
		r = edit_add_xattr(u->edit, node, xattr, value, len, err);
	return r;
}

static int unpack_entry(struct unpack *u, struct archive *a, struct archive_entry *e,
			struct err *err)
{
	scoped(free) char *name = NULL;
	struct attr attr;
	uint64_t dir, node;
	int r = unpack_place(u, archive_entry_pathname(e), &dir, &name, err);

	if (r < 0 || !*name)
		return r;
	r = edit_child(u->edit, dir, name, strlen(name), &node, err);
	if (r < 0)
		return r;
	unpack_attr(u, e, &attr);
	if (node && attr.type == NODE_DIR && edit_attr(u->edit, node)->type == NODE_DIR) {
		edit_set(u->edit, node, &attr);
		return 0;
	}
	if (node)
		edit_remove(u->edit, dir, name, strlen(name));
	return unpack_make(u, a, e, dir, name, err);
}

/* Folders get their times last: what was put into them has changed those. */
static int unpack_all(struct unpack *u, struct archive *a, struct archive_entry *e, struct err *err)
{
	vec(struct folder_time {
		uint64_t node;
		struct attr attr;
	}) times = {0};
	int r = 1;

	while (r > 0) {
		bool is_dir = unpack_type(e) == NODE_DIR && !archive_entry_hardlink(e);
		r = unpack_entry(u, a, e, err);
		if (r == 0 && is_dir) {
			const char *path = archive_entry_pathname(e);
			struct folder_time *t = vec_push(&times);
			scoped(free) char *whole = str_printf("%s/%s", u->options->into, path);
			if (!t || !whole)
				r = err_set(err, -ENOMEM, "out of memory");
			else
				r = edit_walk(u->edit, whole, EDIT_FOLLOW, &t->node, NULL, err);
			if (r == 0)
				unpack_attr(u, e, &t->attr);
		}
		if (r == 0)
			r = next_entry(a, &e, err);
	}
	for (size_t i = 0; i < times.n && r == 0; i++)
		if (times.items[i].node)
			edit_set(u->edit, times.items[i].node, &times.items[i].attr);
	vec_free(&times);
	return r;
}

/* The first header decides whether it is an archive. */
static int unpack_open(struct unpack *u, struct archive *a, struct err *err)
{
	struct archive_entry *e;
	uint64_t dir;
	bool is_tar = archive_read_support_filter_gzip(a) == ARCHIVE_OK &&
		      archive_read_support_filter_bzip2(a) == ARCHIVE_OK &&
		      archive_read_support_filter_xz(a) == ARCHIVE_OK &&
		      archive_read_support_filter_zstd(a) == ARCHIVE_OK &&
		      archive_read_open(a, u, NULL, unpack_feed, NULL) == ARCHIVE_OK;

	int r = is_tar ? next_entry(a, &e, NULL) : 0;
	if (u->result < 0)
		return err_set(err, u->result, "%s", err_text(&u->err, u->result));
	if (r <= 0)
		return 0;
	r = unpack_dirs(u, u->options->into, &dir, err);
	if (r == 0)
		r = unpack_all(u, a, e, err);
	return r < 0 ? err_wrap(err, r, "unpacking") : 1;
}

int tar_unpack(struct edit *edit, struct tree *source, const struct attr *file,
	       const struct tar_unpack_options *options, struct err *err)
{
	struct unpack u = {.edit = edit, .source = source, .file = file, .options = options};
	struct c_locale locale = {0};
	archive_ptr a = new_archive();
	int r;

	u.buffer = malloc(UNPACK_BUFFER);
	if (!u.buffer || !a)
		r = err_set(err, -ENOMEM, "tar: no memory");
	else
		r = c_locale_enter(&locale, err);
	if (r == 0) {
		r = unpack_open(&u, a, err);
		c_locale_leave(&locale);
	}
	archive_scoped(&a);
	free(u.buffer);
	return r;
}
