/* SPDX-License-Identifier: Apache-2.0 */

/*
 * union: several trees as one, later inputs over earlier ones.
 *
 * Folders. A folder of the union is a list of contributors, top first: folders of the inputs that
 * have this path, and made-up parents, which stand on the way to where an input was put (`add`). A
 * name is looked for down that list. The first thing found decides:
 *
 *	whiteout          the name is not there, and nothing lower is looked at
 *	not a folder      it is the result, whatever lies lower
 *	folder            it is collected, and so are folders of that name further down, until
 *	                  one is opaque, or something that is no folder lies in the way
 *
 * What was collected is the contributor list of the folder found. Its number and metadata are
 * those of its topmost contributor that is not implicit: made-up parents, and folders that a layer
 * only implies because something lies in them, are folders like any other but have nothing to say
 * of owner, mode and time.
 *
 * Raw and cooked. What ended a search goes unseen in a cooked union. A raw one shows it, so that
 * it can itself be put over something: a whiteout is an entry, and a folder below which the search
 * was ended, by an opaque mark, by a whiteout or by a file, is opaque. Hence union(a, raw union(b,
 * c)) is union(a, b, c), which is what lets merges of merges be taken apart.
 *
 * Numbers. The union has leaf 0 for itself: TREE_ROOT, and one number for each made-up parent, in
 * the order of their paths. The leaves of its inputs follow, in the order of the inputs. So the
 * number of anything found in an input is the number it has there plus the input's first leaf
 * times 2^32, and which input it belongs to is found by a binary search: there is no table, and a
 * server that starts anew understands the numbers its predecessor gave out. All calls about files
 * are handed on by that alone. For folders folder.c remembers contributor lists; one that is not
 * there is found again from the number: up through the input that the folder is named by, which
 * gives its path, and down again by name.
 *
 * Waiting. A lookup asks the contributors from the top and may be told "later" by a layer whose
 * index is not here. Names that a layer above has decided do not wait. getattr of an input's root
 * is expected not to wait, because a mount is up when that has been answered; so whether an
 * input's root is opaque is asked only after a lookup or listing in it was answered, which is when
 * it is known and when it matters.
 *
 * Many. With thousands of contributors a lookup does not ask them all: the folder is listed once
 * and then searched. Live inputs (host folders) may change at any time, and with them every list
 * in their reach: those are used for at most LIVE_NS, or, as making one may take long, ten times
 * as long as it took; contributor lists the same.
 *
 * nlink of folders is 1, as on btrfs and in merged folders of overlayfs: the number of subfolders
 * is not known without listing all contributors, and below 2 find, fts and others take it as
 * "not known". It is 1 for all folders of a union, so that getattr, which asks only the folder's
 * namesake, and lookup never disagree.
 */

#include "merge/merge.h"

#include <assert.h>

#include "merge/merge-internal.h"

#define MADE_UP_MODE 0755
#define MANY_CONTRIBUTORS 256
#define MANY_WHEN_KEPT 16

static struct union_tree *union_tree(struct tree *t)
{
	return containerof(t, struct union_tree, tree);
}

/* ------------------------------------------------------------------ numbers */

void union_attr(const struct input *in, struct attr *attr)
{
	assert(attr->id >> 32 < in->tree->n_leaves);
	attr->id += in->base << 32;
	if (attr->type == NODE_DIR)
		attr->nlink = 1;
}

void union_made_up_attr(struct attr *out, uint64_t id)
{
	*out = (struct attr){
		.id = id, .type = NODE_DIR, .is_implicit = true, .mode = MADE_UP_MODE, .nlink = 1};
}

struct input *union_input_of(const struct union_tree *u, uint64_t id, uint64_t *inner)
{
	uint64_t leaf = id >> 32;
	size_t low = 0, high = u->n_inputs;

	if (leaf == 0 || leaf >= u->tree.n_leaves)
		return NULL;
	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;
		if (u->inputs[mid].base <= leaf)
			low = mid;
		else
			high = mid;
	}
	*inner = id - (u->inputs[low].base << 32);
	return &u->inputs[low];
}

static bool is_made_up(const struct union_tree *u, uint64_t id)
{
	return id >= MADE_UP_FIRST && id - MADE_UP_FIRST < u->n_made_up;
}

static int prefix_compare(const void *left, const void *right)
{
	const struct prefix *a = left, *b = right;
	int c = memcmp(a->path, b->path, MIN(a->len, b->len));

	return c != 0 ? c : (a->len > b->len) - (a->len < b->len);
}

/* The number of the made-up parent with this path, which has one. */
static uint64_t made_up_id(const struct union_tree *u, const char *path, uint32_t len)
{
	const struct prefix want = {.path = path, .len = len};
	const struct prefix *found =
		bsearch(&want, u->made_up, u->n_made_up, sizeof(want), prefix_compare);

	assert(found);
	return MADE_UP_FIRST + (uint64_t)(found - u->made_up);
}

static int up_from_made_up(const struct union_tree *u, uint64_t id, uint64_t *up,
			   struct strbuf *name)
{
	const struct prefix *p = &u->made_up[id - MADE_UP_FIRST];
	const char *slash = memrchr(p->path, '/', p->len);
	const char *start = slash ? slash + 1 : p->path;

	*up = slash ? made_up_id(u, p->path, (uint32_t)(slash - p->path)) : TREE_ROOT;
	strbuf_add(name, start, (size_t)(p->path + p->len - start));
	return name->failed ? -ENOMEM : 0;
}

/* The input's own root lies where its add path ends; without one it is the union's root, and is
 * known by that number only. */
static int up_from_input(const struct input *in, uint64_t *up, struct strbuf *name)
{
	if (in->n_steps == 0)
		return -ENOENT;
	const struct add_step *last = &in->steps[in->n_steps - 1];
	*up = in->n_steps > 1 ? in->steps[in->n_steps - 2].id : TREE_ROOT;
	strbuf_add(name, in->add + last->off, last->len);
	return name->failed ? -ENOMEM : 0;
}

int union_up(struct union_tree *u, uint64_t id, uint64_t *up, struct strbuf *name,
	     struct tree_wait *wait, struct err *err)
{
	uint64_t inner, root;
	struct attr attr;

	if (is_made_up(u, id))
		return up_from_made_up(u, id, up, name);
	struct input *in = union_input_of(u, id, &inner);
	if (!in)
		return -ENOENT;
	int r = union_input_root(in, &root, wait, err);
	if (r < 0)
		return r;
	if (inner == root)
		return up_from_input(in, up, name);
	/* Above the trimmed folder nothing shows. */
	if (inner == TREE_ROOT)
		return -ENOENT;
	/* getattr can say "later", tree_parent cannot. */
	r = tree_getattr(in->tree, inner, &attr, wait, err);
	if (r < 0)
		return r;
	if (attr.type != NODE_DIR)
		return -ENOTDIR;
	r = tree_parent(in->tree, inner, up, name, err);
	if (r < 0)
		return r;
	*up = *up == root && in->n_steps == 0 ? TREE_ROOT : *up + (in->base << 32);
	return 0;
}

int union_input_root(struct input *in, uint64_t *out, struct tree_wait *wait, struct err *err)
{
	struct attr attr;

	*out = __atomic_load_n(&in->root, __ATOMIC_ACQUIRE);
	if (*out)
		return 0;
	int r = tree_walk_wait(in->tree, in->trim, true, &attr, NULL, wait, err);
	if (r == 0 && attr.type != NODE_DIR)
		r = err_set(err, -ENOTDIR, "%s: not a folder", in->trim);
	if (r == -ENOENT || r == -ENOTDIR || r == -ELOOP)
		return err_wrap(err, r, "trim path");
	if (r < 0)
		return r;
	*out = attr.id;
	__atomic_store_n(&in->root, attr.id, __ATOMIC_RELEASE);
	return 0;
}

/* ------------------------------------------------------------------ a tree's calls */

/* The input root that names the union's root: its attr in *out and, when it is an input's, *in.
 * Every trim path is walked, so that a bad one is found by the first call of all. */
static int root_attr(struct union_tree *u, struct attr *out, struct input **in_out,
		     struct tree_wait *wait, struct err *err)
{
	bool is_settled = false, is_live = false;

	if (u->has_root) {
		*out = u->root;
		*in_out = u->root_input;
		return 0;
	}
	union_made_up_attr(out, TREE_ROOT);
	*in_out = NULL;
	for (size_t i = u->n_inputs; i > 0; i--) {
		struct input *in = &u->inputs[i - 1];
		uint64_t root;
		struct attr attr;

		int r = union_input_root(in, &root, wait, err);
		if (r < 0)
			return r;
		if (in->n_steps > 0)
			continue;
		is_live |= in->tree->is_live;
		if (is_settled)
			continue;
		r = tree_getattr(in->tree, root, &attr, wait, err);
		if (r < 0)
			return r;
		bool is_opaque = out->is_opaque || attr.is_opaque;
		if (!*in_out && !attr.is_implicit) {
			*out = attr;
			*in_out = in;
		}
		out->is_opaque = is_opaque;
		is_settled = is_opaque || (*in_out && !u->is_raw);
	}
	out->id = TREE_ROOT;
	out->nlink = 1;
	out->is_live = is_live;
	out->is_opaque &= u->is_raw;
	return 0;
}

static int union_getattr(struct tree *t, uint64_t id, struct attr *out, struct tree_wait *wait,
			 struct err *err)
{
	struct union_tree *u = union_tree(t);
	struct input *in;
	uint64_t inner;
	int r = 0;

	if (id == TREE_ROOT)
		return root_attr(u, out, &in, wait, err);
	if (is_made_up(u, id)) {
		union_made_up_attr(out, id);
	} else {
		in = union_input_of(u, id, &inner);
		r = in ? tree_getattr(in->tree, inner, out, wait, err) : -ENOENT;
		if (r < 0)
			return r;
		union_attr(in, out);
	}
	out->is_opaque = false;
	/* What depends on all contributors, and only where it can be anything but false. */
	if ((u->is_raw || u->tree.is_live) && out->type == NODE_DIR) {
		scoped(folder_unref) struct folder *f = NULL;

		r = union_folder(u, id, &f, wait, err);
		if (r < 0)
			return r;
		out->is_opaque = f->is_opaque;
		out->is_live |= f->is_live;
	}
	return 0;
}

static int union_lookup(struct tree *t, uint64_t dir, const char *name, size_t len,
			struct attr *out, struct tree_wait *wait, struct err *err)
{
	struct union_tree *u = union_tree(t);
	scoped(folder_unref) struct folder *f = NULL;

	int r = union_folder(u, dir, &f, wait, err);
	return r < 0 ? r : union_find(u, f, name, len, out, NULL, wait, err);
}

static int union_list(struct tree *t, uint64_t dir, uint64_t from, tree_list_fn fn, void *arg,
		      struct tree_wait *wait, struct err *err)
{
	struct union_tree *u = union_tree(t);
	scoped(folder_unref) struct folder *f = NULL;

	int r = union_folder(u, dir, &f, wait, err);
	return r < 0 ? r : union_find_all(u, f, from, fn, arg, wait, err);
}

static int union_parent(struct tree *t, uint64_t dir, uint64_t *out, struct strbuf *name,
			struct err *err)
{
	scoped(folder_unref) struct folder *f = NULL;

	if (dir == TREE_ROOT) {
		*out = TREE_ROOT;
		return 0;
	}
	int r = union_folder(union_tree(t), dir, &f, NULL, err);
	if (r < 0)
		return r;
	*out = f->parent;
	strbuf_add(name, f->name, f->name_len);
	return name->failed ? -ENOMEM : 0;
}

static int union_readlink(struct tree *t, uint64_t id, struct strbuf *out, struct err *err)
{
	struct union_tree *u = union_tree(t);
	uint64_t inner;
	struct input *in = union_input_of(u, id, &inner);

	if (!in)
		return id == TREE_ROOT || is_made_up(u, id) ? -EINVAL : -ENOENT;
	return tree_readlink(in->tree, inner, out, err);
}

static int union_xattrs(struct tree *t, uint64_t id, tree_xattr_fn fn, void *arg, struct err *err)
{
	struct union_tree *u = union_tree(t);
	struct input *in;
	uint64_t inner;

	if (id == TREE_ROOT) {
		struct attr attr;

		int r = root_attr(u, &attr, &in, NULL, err);
		return r < 0 || !in ? r : tree_xattrs(in->tree, in->root, fn, arg, err);
	}
	in = union_input_of(u, id, &inner);
	if (!in)
		return is_made_up(u, id) ? 0 : -ENOENT;
	return tree_xattrs(in->tree, inner, fn, arg, err);
}

static int64_t union_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len,
			  blob_done done, void *arg, struct err *err)
{
	struct union_tree *u = union_tree(t);
	uint64_t inner;
	struct input *in = union_input_of(u, id, &inner);

	if (!in)
		return id == TREE_ROOT || is_made_up(u, id) ? -EISDIR : -ENOENT;
	return tree_read(in->tree, inner, off, dst, len, done, arg, err);
}

static int union_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end)
{
	uint64_t inner;
	struct input *in = union_input_of(union_tree(t), id, &inner);

	return in ? tree_seek_data(in->tree, inner, off, data, end) : -ENOENT;
}

static int union_open_flat(struct tree *t, uint64_t id, bool make, int *fd, struct err *err)
{
	uint64_t inner;
	struct input *in = union_input_of(union_tree(t), id, &inner);

	return in ? tree_open_flat(in->tree, inner, make, fd, err) : -ENOENT;
}

static int union_host_stat(struct tree *t, uint64_t id, struct stat *out)
{
	uint64_t inner;
	struct input *in = union_input_of(union_tree(t), id, &inner);

	return in ? tree_host_stat(in->tree, inner, out) : -ENOENT;
}

static int union_content_digest(struct tree *t, uint64_t id, struct digest *out)
{
	uint64_t inner;
	struct input *in = union_input_of(union_tree(t), id, &inner);

	return in ? tree_content_digest(in->tree, inner, out) : -ENOENT;
}

/* ------------------------------------------------------------------ making one */

static void union_free(struct tree *t)
{
	struct union_tree *u = union_tree(t);

	folder_cache_deinit(&u->cache);
	for (size_t i = 0; i < u->n_inputs; i++) {
		struct input *in = &u->inputs[i];

		tree_unref(in->tree);
		free(in->trim);
		free(in->add);
		free(in->steps);
	}
	free(u->inputs);
	free(u->made_up);
	free(u);
}

static const struct tree_ops union_ops = {
	.getattr = union_getattr,
	.lookup = union_lookup,
	.list = union_list,
	.parent = union_parent,
	.readlink = union_readlink,
	.xattrs = union_xattrs,
	.read = union_read,
	.seek_data = union_seek_data,
	.open_flat = union_open_flat,
	.host_stat = union_host_stat,
	.content_digest = union_content_digest,
	.free = union_free,
};

static bool has_dot_dot(const char *path)
{
	for (size_t len; *path; path += len + (path[len] == '/')) {
		len = strcspn(path, "/");
		if (len == 2 && path[0] == '.' && path[1] == '.')
			return true;
	}
	return false;
}

/* NULL in *out for "all" and for the root. */
static int clean_path(char **out, const char *what, const char *path, struct err *err)
{
	*out = NULL;
	if (!path)
		return 0;
	if (has_dot_dot(path))
		return err_set(err, -EINVAL, "%s path %s: \"..\" is not allowed", what, path);
	char *clean = path_clean(path, strlen(path));
	if (!clean)
		return -ENOMEM;
	if (strcmp(clean, "/") == 0)
		free(clean);
	else
		*out = clean;
	return 0;
}

static int input_steps(struct input *in)
{
	size_t n = 0;

	for (const char *p = in->add; p && *p; p++)
		n += *p == '/';
	if (!in->add)
		return 0;
	memmove(in->add, in->add + 1, strlen(in->add));
	in->steps = calloc(n, sizeof(*in->steps));
	if (!in->steps)
		return -ENOMEM;
	for (size_t off = 0; in->n_steps < n; in->n_steps++) {
		size_t len = strcspn(in->add + off, "/");

		in->steps[in->n_steps] = (struct add_step){(uint32_t)off, (uint32_t)len, 0};
		off += len + 1;
	}
	return 0;
}

static int input_init(struct input *in, const struct union_input *from, struct err *err)
{
	in->tree = tree_ref(from->tree);
	int r = clean_path(&in->trim, "trim", from->trim, err);
	if (r == 0)
		r = clean_path(&in->add, "add", from->add, err);
	if (!in->trim)
		in->root = TREE_ROOT;
	return r < 0 ? r : input_steps(in);
}

static uint32_t step_end(const struct input *in, uint32_t i)
{
	return in->steps[i].off + in->steps[i].len;
}

/* Numbers the made-up parents of all inputs by the order of their paths. */
static int number_made_up(struct union_tree *u)
{
	vec(struct prefix) all = {0};
	size_t n = 0;

	for (size_t k = 0; k < u->n_inputs; k++) {
		const struct input *in = &u->inputs[k];

		for (uint32_t i = 0; i + 1 < in->n_steps; i++) {
			struct prefix *p = vec_push(&all);
			if (!p) {
				vec_free(&all);
				return -ENOMEM;
			}
			*p = (struct prefix){.path = in->add, .len = step_end(in, i)};
		}
	}
	if (all.n == 0)
		return 0;
	qsort(all.items, all.n, sizeof(*all.items), prefix_compare);
	for (size_t i = 0; i < all.n; i++) {
		if (n == 0 || prefix_compare(&all.items[i], &all.items[n - 1]) != 0)
			all.items[n++] = all.items[i];
	}
	u->made_up = all.items;
	u->n_made_up = n;
	for (size_t k = 0; k < u->n_inputs; k++) {
		struct input *in = &u->inputs[k];

		for (uint32_t i = 0; i + 1 < in->n_steps; i++)
			in->steps[i].id = made_up_id(u, in->add, step_end(in, i));
	}
	return 0;
}

static int union_fill(struct union_tree *u, const struct union_input *inputs, size_t n,
		      struct err *err)
{
	uint64_t n_leaves = 1;

	u->inputs = calloc(n + 1, sizeof(*u->inputs));
	if (!u->inputs)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		struct input *in = &u->inputs[u->n_inputs++];

		int r = input_init(in, &inputs[i], err);
		if (r < 0)
			return r;
		in->base = n_leaves;
		n_leaves += in->tree->n_leaves;
		u->tree.is_live |= in->tree->is_live;
	}
	/* 2^31 leaves keep every number below 2^63, which is what file systems can show. */
	if (n_leaves > INT32_MAX)
		return err_set(err, -EOVERFLOW, "too many layers to merge");
	u->tree.n_leaves = (uint32_t)n_leaves;
	return number_made_up(u);
}

int union_new(struct tree **out, const struct union_input *inputs, size_t n, bool is_raw,
	      struct err *err)
{
	struct union_tree *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	tree_init(&u->tree, &union_ops, 1, false);
	u->is_raw = is_raw;
	u->many = MANY_CONTRIBUTORS;
	folder_cache_init(&u->cache);
	int r = union_fill(u, inputs, n, err);
	if (r < 0) {
		union_free(&u->tree);
		return r;
	}
	*out = &u->tree;
	return 0;
}

void union_keep(struct tree *t)
{
	struct union_tree *u = union_tree(t);

	u->many = MANY_WHEN_KEPT;
	u->has_root = root_attr(u, &u->root, &u->root_input, NULL, NULL) == 0 && !u->root.is_live;
}

void union_origin(struct tree **t, uint64_t *id)
{
	while ((*t)->ops == &union_ops) {
		uint64_t inner;
		struct input *in = union_input_of(union_tree(*t), *id, &inner);

		if (!in)
			return;
		*t = in->tree;
		*id = inner;
	}
}

void union_limit_cache(struct tree *t, size_t max_folders, size_t max_list_bytes)
{
	folder_cache_limit(&union_tree(t)->cache, max_folders, max_list_bytes);
}
