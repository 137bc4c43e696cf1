/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The hash of content that BuildKit's cache keys are made of, byte for byte.
 *
 * A leaf (file, link, device, and the header of a folder) is sha256 over its metadata as text, in
 * the order of a tar header, then xattrs, then content. A folder is sha256 over its header's digest
 * and, in order of names, NUL, name and digest of each entry. Both are digests as text.
 *
 * Lists of what wildcards and patterns take are in treehash_list.c.
 *
 * As the content is hashed behind the metadata, a known digest of the content is of no use: every
 * file that is taken is read, hard links and the targets of followed links once. But the caller may
 * keep digests of host files by what fstat() says of them.
 */

#include "merge/merge-internal.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINKS_MAX 255 /* BuildKit's */
#define READ_SIZE (1u << 20)

/* ------------------------------------------------------------------ what is known already */

static struct treehash_memo *memo_slot(struct treehash_memo *slots, size_t n, uint64_t id)
{
	size_t i = hash_bytes(&id, sizeof(id)) & (n - 1);

	while (slots[i].id != 0 && slots[i].id != id)
		i = (i + 1) & (n - 1);
	return &slots[i];
}

static bool memo_get(const struct treehash *h, uint64_t id, struct digest *out)
{
	const struct treehash_memo *m =
		h->n_memos ? memo_slot(h->memos, h->n_memo_slots, id) : NULL;

	if (!m || m->id == 0)
		return false;
	*out = m->digest;
	return true;
}

static int memo_add(struct treehash *h, uint64_t id, const struct digest *digest)
{
	if (2 * (h->n_memos + 1) > h->n_memo_slots) {
		size_t n = h->n_memo_slots ? 2 * h->n_memo_slots : 64;
		struct treehash_memo *slots = calloc(n, sizeof(*slots));

		if (!slots)
			return -ENOMEM;
		for (size_t i = 0; i < h->n_memo_slots; i++)
			if (h->memos[i].id)
				*memo_slot(slots, n, h->memos[i].id) = h->memos[i];
		free(h->memos);
		h->memos = slots;
		h->n_memo_slots = n;
	}
	struct treehash_memo *m = memo_slot(h->memos, h->n_memo_slots, id);
	h->n_memos += m->id == 0;
	*m = (struct treehash_memo){id, *digest};
	return 0;
}

/* ------------------------------------------------------------------ leaves */

struct leaf_xattr {
	char *name;
	struct strbuf value;
};
struct leaf_xattrs {
	vec(struct leaf_xattr) items;
};

static void leaf_xattrs_deinit(struct leaf_xattrs *x)
{
	for (size_t i = 0; i < x->items.n; i++) {
		free(x->items.items[i].name);
		strbuf_free(&x->items.items[i].value);
	}
	vec_free(&x->items);
}

static int leaf_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct leaf_xattrs *x = arg;
	struct leaf_xattr *item;

	if (strcmp(name, "security.capability") != 0 &&
	    (str_starts(name, "security.") || str_starts(name, "system.")))
		return 0;
	item = vec_push(&x->items);
	if (!item)
		return -ENOMEM;
	item->name = strdup(name);
	strbuf_add(&item->value, value, len);
	return item->name && !item->value.failed ? 0 : -ENOMEM;
}

static int leaf_xattr_order(const void *a, const void *b)
{
	return strcmp(((const struct leaf_xattr *)a)->name, ((const struct leaf_xattr *)b)->name);
}

static int leaf_add_xattrs(struct treehash *h, const struct attr *attr, struct strbuf *s)
{
	struct leaf_xattrs x = {0};
	int r = tree_xattrs(h->t, attr->id, leaf_xattr, &x, h->err);

	if (r == 0 && x.items.n > 1)
		qsort(x.items.items, x.items.n, sizeof(*x.items.items), leaf_xattr_order);
	for (size_t i = 0; r == 0 && i < x.items.n; i++) {
		strbuf_puts(s, x.items.items[i].name);
		strbuf_add(s, x.items.items[i].value.data, x.items.items[i].value.len);
	}
	leaf_xattrs_deinit(&x);
	return r;
}

/* As in a tar header; a socket counts as a file, which has no type of its own there. */
static char leaf_typeflag(uint8_t type)
{
	switch (type) {
	case NODE_DIR:
		return '5';
	case NODE_SYMLINK:
		return '2';
	case NODE_CHAR:
		return '3';
	case NODE_BLOCK:
		return '4';
	case NODE_FIFO:
		return '6';
	default:
		return '0';
	}
}

static int leaf_header(struct treehash *h, const struct attr *attr, struct strbuf *s)
{
	bool is_upload = h->ask->is_upload;
	/* BuildKit forgets a device's numbers where it looks at files itself: only those that a
	 * client told it of have theirs. */
	bool is_told = is_upload && (attr->type == NODE_CHAR || attr->type == NODE_BLOCK);
	int r = 0;

	strbuf_printf(s, "namemode%uuid%ugid%usize%llutypeflag%clinkname",
		      attr->type == NODE_SYMLINK ? 0777 : attr->mode & 07777,
		      is_upload ? 0 : attr->uid, is_upload ? 0 : attr->gid,
		      attr->type == NODE_FILE ? (unsigned long long)attr->size : 0,
		      leaf_typeflag(attr->type));
	if (attr->type == NODE_SYMLINK)
		r = tree_readlink(h->t, attr->id, s, h->err);
	strbuf_printf(s, "unamegnamedevmajor%udevminor%u", is_told ? attr->dev_major : 0,
		      is_told ? attr->dev_minor : 0);
	if (r == 0)
		r = leaf_add_xattrs(h, attr, s);
	return r == 0 && s->failed ? -ENOMEM : r;
}

static int leaf_content(struct treehash *h, const struct attr *attr)
{
	for (uint64_t off = 0; off < attr->size;) {
		size_t want = MIN(attr->size - off, (uint64_t)READ_SIZE);
		int64_t n = tree_read(h->t, attr->id, off, h->buf, want, NULL, NULL, h->err);

		if (n < 0)
			return (int)n;
		if (n == 0)
			return err_set(h->err, -ESTALE, "a file became shorter while it was read");
		hasher_add(h->hasher, h->buf, (size_t)n);
		off += (uint64_t)n;
	}
	return 0;
}

/* ------------------------------------------------------------------ host files */

/* A change in the same tick of the file system's clock would not show: local ones tick within
 * 10 ms, some only count seconds. */
#define SETTLED_NS (100 * NS_PER_MS)
#define SETTLED_COARSE_NS (2500 * NS_PER_MS)

static bool is_settled(const struct stat *st)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int64_t age = (int64_t)(now.tv_sec - st->st_ctim.tv_sec) * 1000000000 + now.tv_nsec -
		      st->st_ctim.tv_nsec;
	return age > (int64_t)(st->st_ctim.tv_nsec ? SETTLED_NS : SETTLED_COARSE_NS);
}

static bool is_same(const struct stat *a, const struct stat *b)
{
	return a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
	       a->st_mtim.tv_nsec == b->st_mtim.tv_nsec && a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
	       a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static int host_key(const struct stat *st, const struct strbuf *header, struct digest *out)
{
	scoped(strbuf_free) struct strbuf text = {0};
	strbuf_printf(&text, "%llu %llu %llu %lld.%09ld %lld.%09ld ",
		      (unsigned long long)st->st_dev, (unsigned long long)st->st_ino,
		      (unsigned long long)st->st_size, (long long)st->st_mtim.tv_sec,
		      st->st_mtim.tv_nsec, (long long)st->st_ctim.tv_sec, st->st_ctim.tv_nsec);
	strbuf_add(&text, header->data, header->len);
	if (text.failed)
		return -ENOMEM;
	digest_bytes(out, text.data, text.len);
	return 0;
}

static int leaf_hash(struct treehash *h, const struct attr *attr, const struct strbuf *header,
		     struct digest *out)
{
	int r = 0;

	hasher_add(h->hasher, header->data, header->len);
	if (attr->type == NODE_FILE && attr->size > 0)
		r = leaf_content(h, attr);
	hasher_done(h->hasher, out); /* after an error, too: it is used again */
	return r;
}

/* A file with content, which may be one of this host. */
static int leaf_file(struct treehash *h, const struct attr *attr, const struct strbuf *header,
		     struct digest *out)
{
	const struct treehash_known *known = h->ask->known;
	struct stat before, after;
	struct digest key;

	if (!known || tree_host_stat(h->t, attr->id, &before) < 0)
		return leaf_hash(h, attr, header, out);
	int r = host_key(&before, header, &key);
	if (r < 0 || known->get(known->arg, &key, out))
		return r;
	r = leaf_hash(h, attr, header, out);
	if (r == 0 && tree_host_stat(h->t, attr->id, &after) == 0 && is_same(&before, &after) &&
	    is_settled(&after))
		known->put(known->arg, &key, out);
	return r;
}

int treehash_leaf(struct treehash *h, const struct attr *attr, struct digest *out)
{
	scoped(strbuf_free) struct strbuf header = {0};
	bool has_content = attr->type == NODE_FILE && attr->size > 0;
	bool may_come_again = has_content && (attr->nlink > 1 || h->ask->follow);
	int r;

	if (may_come_again && memo_get(h, attr->id, out))
		return 0;
	if (h->ask->is_upload && attr->id == TREE_ROOT) {
		digest_bytes(out, "", 0);
		return 0;
	}
	r = leaf_header(h, attr, &header);
	if (r < 0)
		return r;
	r = has_content ? leaf_file(h, attr, &header, out) : leaf_hash(h, attr, &header, out);
	return r == 0 && may_come_again ? memo_add(h, attr->id, out) : r;
}

/* ------------------------------------------------------------------ folders */

void treehash_add(struct hasher *hasher, const struct digest *digest)
{
	char text[DIGEST_TEXT_MAX];

	digest_text(digest, text);
	hasher_add(hasher, text, strlen(text));
}

struct folder_level {
	struct hasher *hasher;
	uint64_t id;
};
struct folder_sum {
	struct treehash *h;
	vec(struct folder_level) levels; /* all that have a hasher */
	size_t n_open;			 /* from the top down to where the walk is */
	struct digest last;		 /* of the folder closed last */
};

static int folder_open(struct folder_sum *f, const struct attr *attr)
{
	struct folder_level *level;
	struct digest header;
	int r;

	if (f->n_open == f->levels.n) {
		level = vec_push(&f->levels);
		if (!level)
			return -ENOMEM;
		level->hasher = hasher_new();
		if (!level->hasher)
			return -ENOMEM;
	}
	r = treehash_leaf(f->h, attr, &header);
	if (r < 0)
		return r;
	level = &f->levels.items[f->n_open++];
	level->id = attr->id;
	hasher_add(level->hasher, "", 1);
	treehash_add(level->hasher, &header);
	return 0;
}

/* Closes folders until only @n are open. */
static int folder_close(struct folder_sum *f, size_t n)
{
	int r = 0;

	while (r == 0 && f->n_open > n) {
		struct folder_level *level = &f->levels.items[--f->n_open];

		hasher_done(level->hasher, &f->last);
		if (f->n_open)
			treehash_add(level[-1].hasher, &f->last);
		if (f->h->ask->follow)
			r = memo_add(f->h, level->id, &f->last);
	}
	return r;
}

static int folder_entry(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct folder_sum *f = arg;
	struct hasher *parent;
	struct digest digest;
	size_t depth = 1;
	int r;

	for (const char *s = path; (s = strchr(s, '/')); s++)
		depth++;
	r = folder_close(f, depth);
	if (r < 0)
		return r;
	parent = f->levels.items[depth - 1].hasher;
	hasher_add(parent, "", 1);
	hasher_add(parent, name, strlen(name));
	if (attr->type == NODE_DIR) {
		if (!memo_get(f->h, attr->id, &digest))
			return folder_open(f, attr);
		treehash_add(parent, &digest);
		return TREE_WALK_SKIP;
	}
	r = treehash_leaf(f->h, attr, &digest);
	if (r < 0)
		return err_wrap(f->h->err, r, "%s", path);
	treehash_add(parent, &digest);
	return 0;
}

static int folder_digest(struct treehash *h, const struct attr *attr, struct digest *out)
{
	struct folder_sum f = {.h = h};
	int r = 0;

	if (memo_get(h, attr->id, out))
		return 0;
	r = folder_open(&f, attr);
	if (r == 0)
		r = tree_walk_all(h->t, attr->id, folder_entry, &f, h->err);
	if (r == 0)
		r = folder_close(&f, 0);
	for (size_t i = 0; i < f.levels.n; i++)
		hasher_free(f.levels.items[i].hasher);
	vec_free(&f.levels);
	*out = f.last;
	return r;
}

/* ------------------------------------------------------------------ paths */

/* Where a path leads, by BuildKit's rules: ".." behind what is missing takes that away again. */
struct place {
	vec(struct attr) at; /* the root, then what each name led to; NODE_NONE = missing */
	struct strbuf rest;  /* what is still to be gone */
	size_t pos;
	int n_links;
};

static int place_link(struct treehash *h, struct place *p, const struct attr *link)
{
	scoped(strbuf_free) struct strbuf text = {0};
	int r;

	if (++p->n_links > LINKS_MAX)
		return err_set(h->err, -ELOOP, "%s: too many symbolic links", h->ask->path);
	r = tree_readlink(h->t, link->id, &text, h->err);
	if (r < 0)
		return r;
	if (text.len > 0 && text.data[0] == '/')
		p->at.n = 1;
	strbuf_putc(&text, '/');
	strbuf_puts(&text, p->rest.data + p->pos);
	strbuf_clear(&p->rest);
	strbuf_add(&p->rest, text.data, text.len);
	p->pos = 0;
	return text.failed || p->rest.failed ? -ENOMEM : 0;
}

static int place_name(struct treehash *h, struct place *p, const char *name, size_t len,
		      bool follow)
{
	const struct attr *dir = &p->at.items[p->at.n - 1];
	struct attr found = {0};
	struct attr *next;
	int r = -ENOENT;

	if (len == 1 && name[0] == '.')
		return 0;
	if (len == 2 && name[0] == '.' && name[1] == '.') {
		p->at.n -= p->at.n > 1;
		return 0;
	}
	if (dir->type == NODE_DIR)
		r = tree_lookup(h->t, dir->id, name, len, &found, NULL, h->err);
	if (r == -ENOENT)
		found.type = NODE_NONE;
	else if (r < 0)
		return r;
	if (found.type == NODE_SYMLINK &&
	    (follow || p->rest.data[p->pos + strspn(p->rest.data + p->pos, "/")]))
		return place_link(h, p, &found);
	next = vec_push(&p->at);
	if (!next)
		return -ENOMEM;
	*next = found;
	return 0;
}

int treehash_find(struct treehash *h, const char *path, bool follow, struct attr *out)
{
	struct place p = {0};
	struct attr *root = vec_push(&p.at);
	int r = root ? tree_getattr(h->t, TREE_ROOT, root, NULL, h->err) : -ENOMEM;

	strbuf_puts(&p.rest, path);
	if (r == 0 && p.rest.failed)
		r = -ENOMEM;
	while (r == 0) {
		const char *name = p.rest.data + p.pos;
		size_t len = strcspn(name += strspn(name, "/"), "/");

		if (len == 0)
			break;
		p.pos = (size_t)(name - p.rest.data) + len;
		r = place_name(h, &p, name, len, follow);
	}
	if (r == 0)
		*out = p.at.items[p.at.n - 1];
	vec_free(&p.at);
	strbuf_free(&p.rest);
	return r == 0 && out->type == NODE_NONE ? -ENOENT : r;
}

char *treehash_key(const char *path)
{
	char *clean = path_clean(path, strlen(path));

	if (clean && clean[1] == '\0')
		clean[0] = '\0';
	return clean;
}

int treehash_path(struct treehash *h, const char *path, bool follow, struct digest *out)
{
	scoped(free) char *key = treehash_key(path);
	struct attr attr;
	int r = key ? treehash_find(h, key, follow, &attr) : -ENOMEM;

	if (r == -ENOENT)
		return err_set(h->err, r, "%s: no such file or folder", path);
	if (r < 0)
		return r;
	return attr.type == NODE_DIR ? folder_digest(h, &attr, out) : treehash_leaf(h, &attr, out);
}

int treehash(struct tree *t, const struct treehash_ask *ask, struct digest *out, struct err *err)
{
	struct err own = {0};
	struct treehash h = {.t = t, .ask = ask, .err = err ? err : &own};
	int r;

	h.hasher = hasher_new();
	h.buf = malloc(READ_SIZE);
	if (!h.hasher || !h.buf)
		r = -ENOMEM;
	else if (ask->wildcard || ask->n_include || ask->n_exclude)
		r = treehash_list(&h, out);
	else
		r = treehash_path(&h, ask->path, ask->follow, out);
	hasher_free(h.hasher);
	free(h.buf);
	free(h.memos);
	return r;
}
