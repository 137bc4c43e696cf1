/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The content hash of what a wildcard or patterns take.
 *
 * With a wildcard or patterns the hash is over a list: each leaf and folder header that is taken,
 * under the name by which it was asked for (NULs for slashes), a folder without its content, and the
 * headers of folders above what is taken. BuildKit keeps all paths of a tree in one sorted map and
 * walks that; as NUL stands for the slash there, its order is that of tree_walk_all.
 */

#include "merge/merge-internal.h"

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
		r = treehash_path(t->h, path, true, &digest);
	else
		r = treehash_leaf(t->h, attr, &digest);
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
	treehash_add(t->sum, &digest);
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
	int r = treehash_find(t->h, t->prefix, t->h->ask->wildcard && has_rest, &attr);

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
	t->path = treehash_key(ask->path);
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

int treehash_list(struct treehash *h, struct digest *out)
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
