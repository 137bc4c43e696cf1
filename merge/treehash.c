/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The hash of content that BuildKit's cache keys are made of, byte for byte.
 *
 * A leaf (file, link, device, and the header of a folder) is sha256 over its metadata as text, in
 * the order of a tar header, then xattrs, then content. A folder is sha256 over its header's digest
 * and, in order of names, NUL, name and digest of each entry. Both are digests as text.
 *
 * With a wildcard or patterns the hash is over a list: each leaf and folder header that is taken,
 * under the name by which it was asked for (NULs for slashes), a folder without its content, and the
 * headers of folders above what is taken. BuildKit keeps all paths of a tree in one sorted map and
 * walks that; as NUL stands for the slash there, its order is that of tree_walk_all.
 *
 * Nothing is kept between calls. As the content is hashed behind the metadata, a known digest of
 * the content is of no use: every file that is taken is read, hard links and the targets of
 * followed links once.
 */

#include "merge/merge-internal.h"

#define LINKS_MAX 255 /* BuildKit's */
#define READ_SIZE (1u << 20)

struct memo {
	uint64_t id; /* 0 = free */
	struct digest digest;
};

struct treehash {
	struct tree *t;
	const struct treehash_ask *ask;
	struct hasher *hasher; /* of leaves */
	char *buf;	       /* READ_SIZE */
	struct memo *memos;    /* a hash table; n_memo_slots is 0 or a power of two */
	size_t n_memos, n_memo_slots;
	struct err *err;
};

/* ------------------------------------------------------------------ what is known already */

static struct memo *memo_slot(struct memo *slots, size_t n, uint64_t id)
{
	size_t i = hash_bytes(&id, sizeof(id)) & (n - 1);

	while (slots[i].id != 0 && slots[i].id != id)
		i = (i + 1) & (n - 1);
	return &slots[i];
}

static bool memo_get(const struct treehash *h, uint64_t id, struct digest *out)
{
	const struct memo *m = h->n_memos ? memo_slot(h->memos, h->n_memo_slots, id) : NULL;

	if (!m || m->id == 0)
		return false;
	*out = m->digest;
	return true;
}

static int memo_add(struct treehash *h, uint64_t id, const struct digest *digest)
{
	if (2 * (h->n_memos + 1) > h->n_memo_slots) {
		size_t n = h->n_memo_slots ? 2 * h->n_memo_slots : 64;
		struct memo *slots = calloc(n, sizeof(*slots));

		if (!slots)
			return -ENOMEM;
		for (size_t i = 0; i < h->n_memo_slots; i++)
			if (h->memos[i].id)
				*memo_slot(slots, n, h->memos[i].id) = h->memos[i];
		free(h->memos);
		h->memos = slots;
		h->n_memo_slots = n;
	}
	struct memo *m = memo_slot(h->memos, h->n_memo_slots, id);
	h->n_memos += m->id == 0;
	*m = (struct memo){id, *digest};
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

/* Of a folder: its header. */
static int leaf_digest(struct treehash *h, const struct attr *attr, struct digest *out)
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
	hasher_add(h->hasher, header.data, header.len);
	if (has_content)
		r = leaf_content(h, attr);
	hasher_done(h->hasher, out); /* after an error, too: it is used again */
	return r == 0 && may_come_again ? memo_add(h, attr->id, out) : r;
}

/* ------------------------------------------------------------------ folders */

static void hash_text(struct hasher *hasher, const struct digest *digest)
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
	r = leaf_digest(f->h, attr, &header);
	if (r < 0)
		return r;
	level = &f->levels.items[f->n_open++];
	level->id = attr->id;
	hasher_add(level->hasher, "", 1);
	hash_text(level->hasher, &header);
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
			hash_text(level[-1].hasher, &f->last);
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
		hash_text(parent, &digest);
		return TREE_WALK_SKIP;
	}
	r = leaf_digest(f->h, attr, &digest);
	if (r < 0)
		return err_wrap(f->h->err, r, "%s", path);
	hash_text(parent, &digest);
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

/* -ENOENT: nothing is there (and no reason is set). @path is clean and absolute, or "". */
static int place_find(struct treehash *h, const char *path, bool follow, struct attr *out)
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

/* The path as it is a key: clean, absolute, and "" for the root. NULL = no memory. */
static char *place_key(const char *path)
{
	char *clean = path_clean(path, strlen(path));

	if (clean && clean[1] == '\0')
		clean[0] = '\0';
	return clean;
}

static int path_digest(struct treehash *h, const char *path, bool follow, struct digest *out)
{
	scoped(free) char *key = place_key(path);
	struct attr attr;
	int r = key ? place_find(h, key, follow, &attr) : -ENOMEM;

	if (r == -ENOENT)
		return err_set(h->err, r, "%s: no such file or folder", path);
	if (r < 0)
		return r;
	return attr.type == NODE_DIR ? folder_digest(h, &attr, out) : leaf_digest(h, &attr, out);
}

/* ------------------------------------------------------------------ wildcards and patterns */

/* A folder above where the walk is. */
struct above {
	char *path;
	struct attr attr;
	bool is_taken;
	bool *included, *excluded; /* what matched it, by pattern; NULL = not known */
};

struct taking {
	struct treehash *h;
	char *path;	   /* what was asked for, as a key */
	char *prefix;	   /* its part before any wildcard, as a key; paths are shown below it */
	size_t max_depth;  /* slashes that what matches a wildcard has at most */
	char *last;	   /* the last path that matched the wildcard */
	bool without_self; /* the path ended in a slash: the header of what it names is left out */
	struct match_patterns *include, *exclude;
	vec(struct above) above;
	struct strbuf at; /* the path where the walk is */
	struct hasher *sum;
	size_t n_taken;
	struct digest first; /* of what was taken first */
	bool is_first_self;  /* and it has the name that was asked for */
};

static size_t count_chars(const char *text, const char *chars)
{
	size_t n = 0;

	for (; *text; text++)
		n += strchr(chars, *text) != NULL;
	return n;
}

/* Go's path.Base. */
static size_t base_name(const char *path, const char **out)
{
	size_t len = strlen(path), start;

	if (len == 0)
		path = ".", len = 1;
	while (len > 1 && path[len - 1] == '/')
		len--;
	for (start = len; start > 0 && path[start - 1] != '/'; start--)
		;
	start -= start == len; /* nothing but slashes */
	*out = path + start;
	return len - start;
}

static bool same_base(const char *a, const char *b)
{
	const char *base_a, *base_b;
	size_t len = base_name(a, &base_a);

	return len == base_name(b, &base_b) && memcmp(base_a, base_b, len) == 0;
}

/* Puts a leaf or a folder's header into the sum. */
static int take_one(struct taking *t, const char *path, const struct attr *attr, bool follow)
{
	struct digest digest;
	const char *key = path + strlen(t->prefix);
	int r;

	if (follow && attr->type == NODE_SYMLINK)
		r = path_digest(t->h, path, true, &digest);
	else
		r = leaf_digest(t->h, attr, &digest);
	if (r < 0)
		return err_wrap(t->h->err, r, "%s", path);
	if (t->n_taken++ == 0) {
		t->first = digest;
		t->is_first_self = same_base(t->h->ask->path, path);
	}
	for (const char *end; *key; key = end) {
		end = key + 1 + strcspn(key + 1, "/");
		hasher_add(t->sum, "", 1);
		hasher_add(t->sum, key + 1, (size_t)(end - key - 1));
	}
	if (path[strlen(t->prefix)] == '\0')
		hasher_add(t->sum, "", 1);
	hash_text(t->sum, &digest);
	return 0;
}

static void above_pop(struct taking *t)
{
	struct above *a = &t->above.items[--t->above.n];

	free(a->path);
	free(a->included);
	free(a->excluded);
}

/* Asks one list of patterns; *out is what matched, by pattern. */
static int patterns_ask(const struct match_patterns *set, const char *path, const bool *parent,
			bool **out)
{
	*out = calloc(match_patterns_count(set) + 1, sizeof(**out));
	return *out ? match_patterns(set, path, parent, *out) : -ENOMEM;
}

/* 1 = the patterns take @path, 0 = they do not. What matched is noted in @self. */
static int take_wanted(struct taking *t, const char *path, const struct above *parent,
		       struct above *self)
{
	int r = 1;

	if (t->include)
		r = patterns_ask(t->include, path, parent ? parent->included : NULL,
				 &self->included);
	if (r == 1 && t->exclude) {
		r = patterns_ask(t->exclude, path, parent ? parent->excluded : NULL,
				 &self->excluded);
		r = r < 0 ? r : !r;
	}
	return r;
}

/* 1 = @path matches the wildcard or lies below what did. */
static int take_matches(struct taking *t, const char *path)
{
	size_t last_len = t->last ? strlen(t->last) : 0;
	char *last;
	int r;

	if (!*t->path ||
	    (last_len && strncmp(path, t->last, last_len) == 0 && path[last_len] == '/'))
		return 1;
	r = match_wildcard(t->path, path);
	if (r == -EINVAL)
		return err_set(t->h->err, r, "the wildcard \"%s\" makes no sense", t->h->ask->path);
	if (r <= 0)
		return r;
	last = strdup(path);
	free(t->last);
	t->last = last;
	return last ? 1 : -ENOMEM;
}

/* Closes the folders above that @path does not lie in. */
static void above_close(struct taking *t, const char *path)
{
	while (t->above.n) {
		const struct above *a = &t->above.items[t->above.n - 1];
		size_t len = strlen(a->path);

		if (strncmp(path, a->path, len) == 0 && path[len] == '/')
			break;
		above_pop(t);
	}
}

/* Takes what is at t->at, and before it the folders above that were not taken yet. */
static int take_with_above(struct taking *t, const struct attr *attr)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < t->above.n; i++) {
		struct above *a = &t->above.items[i];

		if (!a->is_taken)
			r = take_one(t, a->path, &a->attr, false);
		a->is_taken = true;
	}
	return r < 0 ? r : take_one(t, t->at.data, attr, t->above.n == 0 && t->h->ask->follow);
}

/* Decides on what is at t->at. What is found out about it is put into @self. */
static int take_at(struct taking *t, const struct attr *attr, struct above *self)
{
	const char *path = t->at.data;
	size_t base_len = strlen(t->path);
	struct above *a;
	int r;

	above_close(t, path);
	if (t->h->ask->wildcard) {
		r = take_matches(t, path);
		if (r == 0 && attr->type == NODE_DIR && count_chars(path, "/") >= t->max_depth)
			return TREE_WALK_SKIP; /* nothing below can match */
		if (r <= 0)
			return r;
		base_len = t->last ? strlen(t->last) : 0;
	}
	if (attr->type == NODE_DIR && t->without_self && strcmp(path, t->path) == 0)
		return 0;
	a = t->above.n ? &t->above.items[t->above.n - 1] : NULL;
	r = take_wanted(t, path + base_len + (path[base_len] == '/'), a, self);
	if (r == 1) {
		self->is_taken = true;
		r = take_with_above(t, attr);
	}
	if (r < 0 || attr->type != NODE_DIR)
		return r;
	self->attr = *attr;
	self->path = strdup(path);
	a = self->path ? vec_push(&t->above) : NULL;
	if (!a)
		return -ENOMEM;
	*a = *self;
	*self = (struct above){0};
	return 0;
}

static int take_entry(void *arg, const char *path, const char *name, const struct attr *attr)
{
	struct taking *t = arg;
	struct above self = {0};
	int r;

	strbuf_clear(&t->at);
	strbuf_puts(&t->at, t->prefix);
	if (*path)
		strbuf_putc(&t->at, '/');
	strbuf_puts(&t->at, path);
	r = t->at.failed ? -ENOMEM : take_at(t, attr, &self);
	free(self.path);
	free(self.included);
	free(self.excluded);
	return r;
}

/* Everything in the order of BuildKit's map. */
static int take_all(struct taking *t)
{
	bool has_rest = strlen(t->prefix) < strlen(t->path);
	struct attr attr;
	int r = place_find(t->h, t->prefix, t->h->ask->wildcard && has_rest, &attr);

	if (r == -ENOENT) /* then nothing is taken */
		return 0;
	if (r == 0)
		r = take_entry(t, "", "", &attr);
	if (r == 0 && attr.type == NODE_DIR)
		r = tree_walk_all(t->h->t, attr.id, take_entry, t, t->h->err);
	return r == TREE_WALK_SKIP ? 0 : r;
}

/* Cuts off the names from the first on that has a wildcard. */
static void prefix_cut(char *prefix)
{
	for (char *slash = prefix, *s = prefix; *s; s++) {
		if (*s == '/') {
			slash = s;
		} else if (strchr("*?[", *s)) {
			*slash = '\0';
			return;
		} else if (*s == '\\' && s[1] && s[1] != '/') {
			s++;
		}
	}
}

static int taking_init(struct taking *t, struct treehash *h)
{
	const struct treehash_ask *ask = h->ask;
	size_t len = strlen(ask->path);
	int r = 0;

	*t = (struct taking){.h = h, .without_self = len > 0 && ask->path[len - 1] == '/'};
	t->path = place_key(ask->path);
	t->prefix = t->path ? strdup(t->path) : NULL;
	t->sum = hasher_new();
	if (!t->prefix || !t->sum)
		return -ENOMEM;
	if (ask->wildcard)
		prefix_cut(t->prefix);
	/* a class may stand for a slash */
	t->max_depth = count_chars(t->path, "/[");
	if (ask->n_include)
		r = match_patterns_new(&t->include, ask->include, ask->n_include, h->err);
	if (r == 0 && ask->n_exclude)
		r = match_patterns_new(&t->exclude, ask->exclude, ask->n_exclude, h->err);
	return r;
}

static void taking_deinit(struct taking *t)
{
	while (t->above.n)
		above_pop(t);
	vec_free(&t->above);
	match_patterns_free(t->include);
	match_patterns_free(t->exclude);
	hasher_free(t->sum);
	strbuf_free(&t->at);
	free(t->path);
	free(t->prefix);
	free(t->last);
}

static int taken_digest(struct treehash *h, struct digest *out)
{
	struct taking t;
	int r = taking_init(&t, h);

	if (r == 0)
		r = take_all(&t);
	if (r == 0 && t.n_taken == 1 && t.is_first_self)
		*out = t.first;
	else if (r == 0)
		hasher_done(t.sum, out);
	taking_deinit(&t);
	return r;
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
		r = taken_digest(&h, out);
	else
		r = path_digest(&h, ask->path, ask->follow, out);
	hasher_free(h.hasher);
	free(h.buf);
	free(h.memos);
	return r;
}
