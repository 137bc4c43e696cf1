/* SPDX-License-Identifier: Apache-2.0 */

/*
 * tarwrite: a tree as a tar, byte for byte as Go's archive/tar writes it.
 *
 * BuildKit, containerd and Docker are written in Go, and a layer's diff ID is the digest of its
 * tar: the same files get the same ID only if every header byte agrees. What that takes, of the
 * POSIX formats that leave much open:
 *
 *  - Numbers are octal, filled with zeros on the left, one NUL behind. A number that does not fit
 *    is written as 0 and goes into a PAX record. The checksum is six digits, NUL, space.
 *  - The magic is "ustar\0" "00" for both formats; user and group names are empty; the device
 *    fields are always numbers.
 *  - An entry is a plain ustar one if everything fits: a name of more than 100 bytes is split at
 *    the last slash that leaves at most 155 before it. Otherwise, and if the time has a fraction,
 *    it gets a PAX header; then names are never split: the ustar field holds the first 100 bytes.
 *  - A PAX header is an entry of type x, all its numbers 0, named DIR/PaxHeaders.0/BASE (cut to
 *    100). Its records are sorted by key. Names in headers are ASCII; other bytes are left out
 *    there and make a record necessary.
 *  - xattrs are records SCHILY.xattr.NAME with the bytes as they are.
 *  - Two blocks of zeros end the archive, which is not filled up beyond them.
 *
 * A file's second and later names are links (type 1, no size) to the name written first. Sockets
 * have no form in a tar and are left out, as everyone does.
 *
 * A layer (tar_write_layer) differs in what containerd's differ does: the format is PAX throughout,
 * so that long names are never split; times are whole seconds; of the xattrs only
 * security.capability is kept. What hides something below is an empty file, .wh.NAME for a name and
 * .wh..wh..opq for all that a folder had, with mode, owner and time 0. A folder that was made up
 * because something lies below it is not listed, unless nothing does.
 */

#include "merge/merge.h"

#include <assert.h>
#include <stdio.h>

#include "merge/merge-internal.h"

#define BLOCK 512
#define READ_SIZE (1u << 20)
#define NAME_SIZE 100
#define PREFIX_SIZE 155
#define RECORDS_MAX (1u << 20) /* what Go's reader, too, takes */

/* The fields of a header block. */
struct tar_block {
	char name[NAME_SIZE];
	char mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8];
	char type;
	char link[NAME_SIZE];
	char magic[8], user[32], group[32], major[8], minor[8], prefix[PREFIX_SIZE], pad[12];
};
_Static_assert(sizeof(struct tar_block) == BLOCK, "a header is one block");

struct record {
	char *key, *value;
	size_t len;
};

/* One entry, before it is known which format it takes. */
struct tar_item {
	const char *name, *link; /* relative; a folder's ends in a slash; link may be "" */
	char type;
	struct attr attr;
	uint64_t size;
	vec(struct record) records;
	bool needs_pax, only_capability;
};

struct link_name {
	uint64_t id; /* 0 = free */
	char *name;
};

struct tar_writer {
	struct tree *tree;
	tar_write_fn write;
	void *arg;
	const char *prefix;
	const struct tar_layer *layer; /* NULL = no layer */
	struct err *err;
	struct strbuf name, target;
	char *buf;
	struct link_name *links; /* hash table of files with several names */
	size_t n_links, n_slots; /* a power of 2, or 0 */
};

/* ------------------------------------------------------------------ fields */

static void put_text(char *field, size_t size, const char *text)
{
	size_t len = strlen(text);

	memcpy(field, text, MIN(len, size));
	if (len > size && field[size - 1] == '/') {
		/* Some readers take a file for a folder when its cut name ends in a slash. */
		for (len = size - 1; len > 0 && field[len - 1] == '/';)
			len--;
		field[len] = '\0';
	}
}

static bool fits_octal(size_t size, int64_t n)
{
	return n >= 0 && (uint64_t)n < UINT64_C(1) << (3 * (size - 1));
}

static void put_octal(char *field, size_t size, int64_t n)
{
	char text[32];

	snprintf(text, sizeof(text), "%0*llo", (int)size - 1,
		 fits_octal(size, n) ? (unsigned long long)n : 0);
	memcpy(field, text, size);
}

#define put(field, n) put_octal(field, sizeof(field), (int64_t)(n))

static void block_seal(struct tar_block *b)
{
	unsigned sum = 0;

	memcpy(b->magic, "ustar\00000", sizeof(b->magic)); /* "ustar", NUL, "00" */
	memset(b->checksum, ' ', sizeof(b->checksum));
	for (size_t i = 0; i < sizeof(*b); i++)
		sum += ((const unsigned char *)b)[i];
	put_octal(b->checksum, 7, sum);
}

static bool is_ascii(const char *text)
{
	for (; *text; text++) {
		if ((unsigned char)*text >= 0x80)
			return false;
	}
	return true;
}

/* Leaves out what is not ASCII. Caller frees. */
static char *to_ascii(const char *text)
{
	char *out = malloc(strlen(text) + 1), *p = out;

	for (; out && *text; text++) {
		if ((unsigned char)*text < 0x80)
			*p++ = *text;
	}
	if (out)
		*p = '\0';
	return out;
}

/* The slash at which a long name is split for ustar; NULL when it cannot be. */
static const char *split_name(const char *name)
{
	size_t len = strlen(name), head = len;

	if (len <= NAME_SIZE || !is_ascii(name))
		return NULL;
	if (head > PREFIX_SIZE + 1)
		head = PREFIX_SIZE + 1;
	else if (name[head - 1] == '/')
		head--;
	const char *slash = memrchr(name, '/', head);
	size_t tail = slash ? len - (size_t)(slash - name) - 1 : 0;
	return slash > name && tail > 0 && tail <= NAME_SIZE ? slash : NULL;
}

/* ------------------------------------------------------------------ PAX records */

static int add_record(struct tar_item *item, const char *prefix, const char *key, const void *value,
		      size_t len)
{
	struct record *rec = vec_push(&item->records);

	if (!rec)
		return -ENOMEM;
	rec->key = str_printf("%s%s", prefix, key);
	rec->value = malloc(len + 1);
	rec->len = len;
	if (!rec->key || !rec->value)
		return -ENOMEM;
	if (len > 0)
		memcpy(rec->value, value, len);
	return 0;
}

static int add_number(struct tar_item *item, const char *key, size_t size, uint64_t n)
{
	char text[24];

	if (n <= INT64_MAX && fits_octal(size, (int64_t)n))
		return 0;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)n);
	item->needs_pax = true;
	return add_record(item, "", key, text, strlen(text));
}

static int add_name(struct tar_item *item, const char *key, const char *name, bool can_split)
{
	if (strlen(name) <= NAME_SIZE && is_ascii(name))
		return 0;
	item->needs_pax |= !can_split || !split_name(name);
	/* Recorded although it may be split: something else may ask for a PAX header. */
	return add_record(item, "", key, name, strlen(name));
}

static int add_mtime(struct tar_item *item)
{
	int64_t seconds = item->attr.mtime_s;
	uint32_t ns = item->attr.mtime_ns;
	char text[48];

	if (ns == 0 && fits_octal(12, seconds))
		return 0;
	item->needs_pax = true;
	if (ns == 0) {
		snprintf(text, sizeof(text), "%lld", (long long)seconds);
	} else {
		bool is_negative = seconds < 0;

		/* -1.25 is kept as -2 and 0.75. */
		snprintf(text, sizeof(text), "%s%lld.%09u", is_negative ? "-" : "",
			 is_negative ? -((long long)seconds + 1) : (long long)seconds,
			 is_negative ? 1000000000 - ns : ns);
		for (size_t len = strlen(text); text[len - 1] == '0'; len--)
			text[len - 1] = '\0';
	}
	return add_record(item, "", "mtime", text, strlen(text));
}

static int add_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct tar_item *item = arg;

	if (item->only_capability && strcmp(name, "security.capability") != 0)
		return 0;
	item->needs_pax = true;
	return strchr(name, '=') ? -EILSEQ : add_record(item, "SCHILY.xattr.", name, value, len);
}

static int record_compare(const void *a, const void *b)
{
	return strcmp(((const struct record *)a)->key, ((const struct record *)b)->key);
}

/* "LEN KEY=VALUE\n", where LEN counts itself. */
static void format_record(struct strbuf *out, const struct record *rec)
{
	size_t rest = strlen(rec->key) + rec->len + 3, len = rest;
	char digits[24];

	/* At most one more round: a longer number may need one more digit. */
	for (size_t before = 0; before != len;) {
		before = len;
		len = rest + (size_t)snprintf(digits, sizeof(digits), "%zu", len);
	}
	strbuf_printf(out, "%zu %s=", len, rec->key);
	strbuf_add(out, rec->value, rec->len);
	strbuf_putc(out, '\n');
}

/* ------------------------------------------------------------------ one entry */

static int write_bytes(struct tar_writer *w, const void *bytes, size_t n)
{
	return n > 0 ? w->write(w->arg, bytes, n) : 0;
}

static int write_padding(struct tar_writer *w, uint64_t size)
{
	static const char zeros[BLOCK];

	return write_bytes(w, zeros, (BLOCK - size % BLOCK) % BLOCK);
}

/* DIR/PaxHeaders.0/BASE, as ASCII. */
static char *pax_name(const char *name)
{
	const char *slash = strrchr(name, '/');
	int dir = slash ? (int)(slash - name) + 1 : 0;
	const char *base = name + dir;
	scoped(free) char *text =
		str_printf("%.*sPaxHeaders.0%s%s", dir, name, *base ? "/" : "", base);

	return text ? to_ascii(text) : NULL;
}

static int write_records(struct tar_writer *w, struct tar_item *item)
{
	scoped(strbuf_free) struct strbuf data = {0};
	scoped(free) char *name = pax_name(item->name);
	struct tar_block b = {.type = 'x'};

	qsort(item->records.items, item->records.n, sizeof(*item->records.items), record_compare);
	for (size_t i = 0; i < item->records.n; i++)
		format_record(&data, &item->records.items[i]);
	if (!name || data.failed)
		return -ENOMEM;
	if (data.len > RECORDS_MAX)
		return err_set(w->err, -E2BIG, "%s: more xattrs than a tar can hold", item->name);
	if (strlen(name) > NAME_SIZE)
		name[NAME_SIZE] = '\0';
	for (size_t len = strlen(name); len > 0 && name[len - 1] == '/'; len--)
		name[len - 1] = '\0';
	put_text(b.name, sizeof(b.name), name);
	put(b.mode, 0);
	put(b.uid, 0);
	put(b.gid, 0);
	put(b.size, data.len);
	put(b.mtime, 0);
	block_seal(&b);
	int r = write_bytes(w, &b, sizeof(b));
	if (r == 0)
		r = write_bytes(w, data.data, data.len);
	return r == 0 ? write_padding(w, data.len) : r;
}

static int put_names(struct tar_block *b, const struct tar_item *item)
{
	const char *slash = item->needs_pax ? NULL : split_name(item->name);

	if (slash) {
		memcpy(b->prefix, item->name, (size_t)(slash - item->name));
		put_text(b->name, sizeof(b->name), slash + 1);
		put_text(b->link, sizeof(b->link), item->link);
		return 0;
	}
	scoped(free) char *name = to_ascii(item->name);
	scoped(free) char *link = to_ascii(item->link);
	if (!name || !link)
		return -ENOMEM;
	put_text(b->name, sizeof(b->name), name);
	put_text(b->link, sizeof(b->link), link);
	return 0;
}

static int write_header(struct tar_writer *w, struct tar_item *item)
{
	struct tar_block b = {.type = item->type};
	const struct attr *a = &item->attr;
	bool is_device = a->type == NODE_CHAR || a->type == NODE_BLOCK;
	int r = 0;

	if (item->needs_pax)
		r = write_records(w, item);
	if (r == 0)
		r = put_names(&b, item);
	if (r != 0)
		return r;
	put(b.mode, a->mode);
	put(b.uid, a->uid);
	put(b.gid, a->gid);
	put(b.size, item->size);
	put(b.mtime, a->mtime_s);
	put(b.major, is_device ? a->dev_major : 0);
	put(b.minor, is_device ? a->dev_minor : 0);
	block_seal(&b);
	return write_bytes(w, &b, sizeof(b));
}

static int item_records(struct tar_writer *w, struct tar_item *item)
{
	const struct attr *a = &item->attr;

	int r = add_name(item, "path", item->name, !w->layer);
	if (r == 0)
		r = add_name(item, "linkpath", item->link, false);
	if (r == 0)
		r = add_number(item, "uid", 8, a->uid);
	if (r == 0)
		r = add_number(item, "gid", 8, a->gid);
	if (r == 0)
		r = add_number(item, "size", 12, item->size);
	if (r == 0)
		r = add_mtime(item);
	if (r == 0 && a->id)
		r = tree_xattrs(w->tree, a->id, add_xattr, item, w->err);
	if (r == -EILSEQ)
		return err_set(w->err, r, "%s: an xattr with \"=\" in its name does not fit a tar",
			       item->name);
	if (r == 0 && (!fits_octal(8, a->dev_major) || !fits_octal(8, a->dev_minor)))
		return err_set(w->err, -EOVERFLOW, "%s: device number", item->name);
	return r;
}

static int write_content(struct tar_writer *w, const struct tar_item *item)
{
	for (uint64_t off = 0; off < item->size;) {
		size_t want = (size_t)MIN(item->size - off, READ_SIZE);

		int64_t n =
			tree_read(w->tree, item->attr.id, off, w->buf, want, NULL, NULL, w->err);
		if (n == 0)
			return err_set(w->err, -EIO, "%s: became shorter while it was read",
				       item->name);
		int r = n < 0 ? (int)n : write_bytes(w, w->buf, (size_t)n);
		if (r != 0)
			return r;
		off += (uint64_t)n;
	}
	return write_padding(w, item->size);
}

static int write_item(struct tar_writer *w, struct tar_item *item)
{
	int r = item_records(w, item);

	if (r == 0)
		r = write_header(w, item);
	if (r == 0 && item->size > 0)
		r = write_content(w, item);
	for (size_t i = 0; i < item->records.n; i++) {
		free(item->records.items[i].key);
		free(item->records.items[i].value);
	}
	vec_free(&item->records);
	return r;
}

/* ------------------------------------------------------------------ a tree */

static struct link_name *link_slot(const struct tar_writer *w, uint64_t id)
{
	size_t i = hash_bytes(&id, sizeof(id)) & (w->n_slots - 1);

	while (w->links[i].id != 0 && w->links[i].id != id)
		i = (i + 1) & (w->n_slots - 1);
	return &w->links[i];
}

static int links_grow(struct tar_writer *w)
{
	struct tar_writer bigger = {.n_slots = w->n_slots ? 2 * w->n_slots : 64};

	bigger.links = calloc(bigger.n_slots, sizeof(*bigger.links));
	if (!bigger.links)
		return -ENOMEM;
	for (size_t i = 0; i < w->n_slots; i++) {
		if (w->links[i].id != 0)
			*link_slot(&bigger, w->links[i].id) = w->links[i];
	}
	free(w->links);
	w->links = bigger.links;
	w->n_slots = bigger.n_slots;
	return 0;
}

/* The name that @id was written under before, NULL the first time. */
static int link_find(struct tar_writer *w, uint64_t id, const char *name, const char **first)
{
	if (2 * w->n_links >= w->n_slots && links_grow(w) < 0)
		return -ENOMEM;
	struct link_name *l = link_slot(w, id);
	*first = l->id ? l->name : NULL;
	if (l->id)
		return 0;
	l->name = strdup(name);
	if (!l->name)
		return -ENOMEM;
	l->id = id;
	w->n_links++;
	return 0;
}

static char type_flag(uint8_t type)
{
	switch ((enum node_type)type) {
	case NODE_FILE:
		return '0';
	case NODE_SYMLINK:
		return '2';
	case NODE_CHAR:
		return '3';
	case NODE_BLOCK:
		return '4';
	case NODE_DIR:
		return '5';
	case NODE_FIFO:
		return '6';
	case NODE_NONE:
	case NODE_SOCKET:
	case NODE_WHITEOUT:
		break;
	}
	return 0;
}

/* A layer's times. */
static void layer_attr(const struct tar_layer *layer, struct attr *a)
{
	a->mtime_ns = 0;
	if (layer->has_epoch && a->mtime_s > layer->epoch)
		a->mtime_s = layer->epoch;
}

/* Writes what w->name says, without the slash of a folder. */
static int write_node(struct tar_writer *w, const struct attr *attr)
{
	struct tar_item item = {.type = type_flag(attr->type), .attr = *attr, .link = ""};

	if (!item.type)
		return 0;
	if (w->layer) {
		layer_attr(w->layer, &item.attr);
		item.only_capability = !w->layer->all_xattrs;
	}
	if (attr->type == NODE_DIR)
		strbuf_putc(&w->name, '/');
	if (w->name.failed)
		return -ENOMEM;
	item.name = w->name.data;
	if (attr->type == NODE_FILE)
		item.size = attr->size;
	if (attr->type == NODE_SYMLINK) {
		strbuf_clear(&w->target);
		strbuf_puts(&w->target, "");
		int r = tree_readlink(w->tree, attr->id, &w->target, w->err);
		if (r < 0)
			return r;
		item.link = w->target.data;
	}
	if (attr->type != NODE_DIR && attr->nlink > 1) {
		const char *first;

		int r = link_find(w, attr->id, item.name, &first);
		if (r < 0)
			return r;
		if (first) {
			item.type = '1';
			item.link = first;
			item.size = 0;
		}
	}
	return write_item(w, &item);
}

/* An empty file DIR/.wh.WHAT, where DIR is the first @dir_len bytes of @path with their slash. */
static int write_mark(struct tar_writer *w, const char *path, size_t dir_len, const char *what)
{
	struct tar_item item = {.type = '0', .link = ""};

	strbuf_clear(&w->name);
	strbuf_printf(&w->name, "%.*s.wh.%s", (int)dir_len, path, what);
	if (w->name.failed)
		return -ENOMEM;
	item.name = w->name.data;
	return write_item(w, &item);
}

static int stop_listing(void *arg, const char *name, size_t len, const struct attr *attr,
			uint64_t next)
{
	return 1;
}

static int write_layer_visit(struct tar_writer *w, const char *path, const struct attr *attr)
{
	int r = 0;

	if (attr->type == NODE_WHITEOUT) {
		const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
		return write_mark(w, path, (size_t)(name - path), name);
	}
	if (attr->type == NODE_DIR && attr->is_implicit && !attr->is_opaque)
		r = tree_list(w->tree, attr->id, 0, stop_listing, NULL, NULL, w->err);
	if (r != 0)
		return MIN(r, 0); /* something lies in it, which makes it */
	strbuf_puts(&w->name, path);
	r = write_node(w, attr);
	if (r == 0 && attr->type == NODE_DIR && attr->is_opaque) {
		scoped(free) char *dir = str_printf("%s/", path);
		r = dir ? write_mark(w, dir, strlen(dir), ".wh..opq") : -ENOMEM;
	}
	return r;
}

static int write_visit(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct tar_writer *w = arg;

	strbuf_clear(&w->name);
	if (w->layer)
		return write_layer_visit(w, path, attr);
	strbuf_printf(&w->name, "%s%s%s", w->prefix, *w->prefix ? "/" : "", path);
	return write_node(w, attr);
}

static int write_all_of(struct tar_writer *w, uint64_t id)
{
	static const char end[2 * BLOCK];
	struct attr attr;

	int r = tree_getattr(w->tree, id, &attr, NULL, w->err);
	if (r < 0)
		return r;
	if (w->layer && attr.is_opaque)
		r = write_mark(w, "", 0, ".wh..opq");
	if (*w->prefix) {
		strbuf_puts(&w->name, w->prefix);
		r = write_node(w, &attr);
	} else if (attr.type != NODE_DIR) {
		return err_set(w->err, -EINVAL, "a file in a tar must have a name");
	}
	if (r == 0 && attr.type == NODE_DIR)
		r = tree_walk_all(w->tree, id, write_visit, w, w->err);
	return r == 0 ? write_bytes(w, end, sizeof(end)) : r;
}

static int write_tar(struct tar_writer *w, uint64_t dir)
{
	w->buf = malloc(READ_SIZE);
	int r = w->buf ? write_all_of(w, dir) : -ENOMEM;
	for (size_t i = 0; i < w->n_slots; i++)
		free(w->links[i].name);
	free(w->links);
	free(w->buf);
	strbuf_free(&w->name);
	strbuf_free(&w->target);
	return r;
}

int tar_write_tree(struct tree *t, uint64_t dir, const char *prefix, tar_write_fn write, void *arg,
		   struct err *err)
{
	struct tar_writer w = {.tree = t, .write = write, .arg = arg, .prefix = prefix, .err = err};

	return write_tar(&w, dir);
}

int tar_write_layer(struct tree *t, const struct tar_layer *layer, tar_write_fn write, void *arg,
		    struct err *err)
{
	struct tar_writer w = {
		.tree = t, .write = write, .arg = arg, .prefix = "", .layer = layer, .err = err};

	return write_tar(&w, TREE_ROOT);
}
