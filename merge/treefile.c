/* SPDX-License-Identifier: Apache-2.0 */

/*
 * treefile: a made tree (sealed.c) as bytes, so that another process has it, too.
 *
 *	header	"llbfstre", version, number of layers, number of nodes, 0
 *	layer	digest, size, media type, annotations: one that files point into
 *	node	in the order of their numbers: fixed part, names (node, name), xattrs (name, value),
 *		then a link's target, or a file's content: its bytes, or a file of a layer (number of
 *		the layer, number in its tree, digest of the content or zeros), or the digest of plain
 *		content in the store
 *
 * All numbers are little-endian; texts have their length before them. Nodes are numbered as
 * sealed.c does it, so that equal trees are equal bytes, whose digest names them. Where the blobs of
 * the layers are is not part of that: it is given beside the bytes.
 *
 * A pointer into a host folder or into memory means nothing to others. Such content is put into the
 * store (content.c), or among these bytes when it is small.
 *
 * The reader believes nothing: each length is held against what is left, each number against what
 * there is. A folder's number is greater than that of the folder it is in, and it has one name, so
 * that folders make a tree.
 */

#include "merge/merge.h"

#include "merge/edit-internal.h"
#include "merge/merge-internal.h"

#define MAGIC "llbfstre"
#define VERSION UINT32_C(1)
#define HEADER_LEN 24
#define NODE_LEN 64  /* the fixed part of a node */
#define LAYER_LEN 48 /* the least that a layer takes */
/* Content up to this size is cheaper here than as a file of its own. */
#define INLINE_MAX 4096
/* So many files are synced one by one; for more, one sync of the file system is faster. */
#define SYNC_EACH_MAX 8

enum { NODE_OPAQUE = 1, NODE_IMPLICIT = 2 };
enum { CONTENT_HERE = 0, CONTENT_LAYER = LEAF_LAYER, CONTENT_STORE = LEAF_CONTENT };

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ writing */

static void put_u32(struct strbuf *s, uint32_t v)
{
	const uint8_t bytes[] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16),
				 (uint8_t)(v >> 24)};

	strbuf_add(s, bytes, sizeof(bytes));
}

static void put_u64(struct strbuf *s, uint64_t v)
{
	put_u32(s, (uint32_t)v);
	put_u32(s, (uint32_t)(v >> 32));
}

static void put_bytes(struct strbuf *s, const void *bytes, size_t n)
{
	put_u32(s, (uint32_t)n);
	strbuf_add(s, bytes, n);
}

static void put_text(struct strbuf *s, const char *text)
{
	put_bytes(s, text ? text : "", text ? strlen(text) : 0);
}

struct writer {
	struct treefile *out;
	struct tree *tree;
	struct store *store;
	struct strbuf layers, nodes;
	size_t n_put; /* new content of the store */
	struct err *err;
};

static void put_layer(struct strbuf *s, const struct desc *desc)
{
	strbuf_add(s, desc->digest.bytes, sizeof(desc->digest.bytes));
	put_u64(s, desc->size);
	put_text(s, desc->media_type);
	put_u32(s, (uint32_t)desc->n_annotations);
	for (size_t i = 0; i < desc->n_annotations; i++) {
		put_text(s, desc->annotations[i].key);
		put_text(s, desc->annotations[i].value);
	}
}

/* The number of a layer, which is written when it is new. */
static int layer_number(struct writer *w, const struct desc *desc, struct remote *remote,
			uint32_t *number)
{
	for (size_t i = w->out->layers.n; i-- > 0;)
		if (digest_equal(&w->out->layers.items[i].digest, &desc->digest)) {
			*number = (uint32_t)i;
			return 0;
		}
	struct treefile_layer *layer = vec_push(&w->out->layers);
	if (!layer)
		return no_memory(w->err);
	layer->digest = desc->digest;
	layer->remote = remote ? remote_ref(remote) : NULL;
	*number = (uint32_t)(w->out->layers.n - 1);
	put_layer(&w->layers, desc);
	return 0;
}

static int write_in_layer(struct writer *w, const struct desc *desc, struct remote *remote,
			  uint64_t id, const struct digest *digest)
{
	uint32_t number = 0;
	int r = layer_number(w, desc, remote, &number);

	if (r < 0)
		return r;
	strbuf_putc(&w->nodes, CONTENT_LAYER);
	put_u32(&w->nodes, number);
	put_u64(&w->nodes, id);
	strbuf_add(&w->nodes, digest->bytes, sizeof(digest->bytes));
	return 0;
}

static void write_in_store(struct writer *w, const struct digest *digest)
{
	strbuf_putc(&w->nodes, CONTENT_STORE);
	strbuf_add(&w->nodes, digest->bytes, sizeof(digest->bytes));
}

static void write_here(struct writer *w, const void *bytes, size_t n)
{
	strbuf_putc(&w->nodes, CONTENT_HERE);
	if (n > 0)
		strbuf_add(&w->nodes, bytes, n);
}

struct node_reader {
	struct tree *tree;
	uint64_t id;
};

/* Through the tree, which knows what the file was when it was copied. */
static int read_node(void *arg, uint64_t off, void *dst, size_t len, struct err *err)
{
	const struct node_reader *reader = arg;

	for (size_t have = 0; have < len;) {
		int64_t n = tree_read(reader->tree, reader->id, off + have, (char *)dst + have,
				      len - have, NULL, NULL, err);
		if (n == 0)
			return err_set(err, -ESTALE, "the file has become shorter");
		if (n < 0)
			return (int)n;
		have += (size_t)n;
	}
	return 0;
}

/* Content that nobody else could find: into the file, or into the store. */
static int write_copy(struct writer *w, const struct edit_node *n)
{
	struct node_reader reader = {w->tree, n->attr.id};
	char small[INLINE_MAX];
	struct digest digest;
	int opened = -1;

	if (n->attr.size <= sizeof(small)) {
		int r = read_node(&reader, 0, small, (size_t)n->attr.size, w->err);
		if (r == 0)
			write_here(w, small, (size_t)n->attr.size);
		return r;
	}
	if (n->source->is_live && tree_open_flat(n->source, n->source_id, false, &opened, NULL) < 0)
		opened = -1;
	scoped(close_fd) int fd = opened;
	const struct content_source source = {
		.size = n->attr.size, .read = read_node, .arg = &reader, .fd = fd};
	int r = content_put(w->store, &source, w->n_put < SYNC_EACH_MAX, &digest, w->err);
	if (r < 0)
		return r;
	w->n_put += (size_t)r;
	write_in_store(w, &digest);
	return 0;
}

static int write_content(struct writer *w, const struct edit_node *n)
{
	const struct desc *desc;
	const struct leaf_layer *layer;
	struct remote *remote;
	struct digest digest = {{0}};

	if (!n->source || n->attr.size == 0) {
		write_here(w, n->data, n->attr.size);
		return 0;
	}
	if (layer_origin(n->source, &desc, &remote)) {
		if (tree_content_digest(n->source, n->source_id, &digest) < 0)
			digest = (struct digest){{0}};
		return write_in_layer(w, desc, remote, n->source_id, &digest);
	}
	const struct leaf *leaf = leaves_find(n->source, n->source_id, &layer);
	if (!leaf || (leaf->kind == LEAF_CONTENT && leaves_store(n->source) != w->store))
		return write_copy(w, n);
	if (leaf->kind == LEAF_LAYER)
		return write_in_layer(w, &layer->desc, layer->remote, leaf->id, &leaf->digest);
	/* which was leased when the tree was loaded */
	write_in_store(w, &leaf->digest);
	return 0;
}

static void write_fixed(struct strbuf *s, const struct edit_node *n)
{
	const struct attr *a = &n->attr;

	strbuf_putc(s, (char)a->type);
	strbuf_putc(
		s, (char)((a->is_opaque ? NODE_OPAQUE : 0) | (a->is_implicit ? NODE_IMPLICIT : 0)));
	strbuf_add(s, "\0", 2);
	put_u32(s, a->mode);
	put_u32(s, a->uid);
	put_u32(s, a->gid);
	put_u32(s, a->nlink);
	put_u64(s, a->size);
	put_u64(s, a->n_bytes_allocated);
	put_u64(s, (uint64_t)a->mtime_s);
	put_u32(s, a->mtime_ns);
	put_u32(s, a->dev_major);
	put_u32(s, a->dev_minor);
	put_u32(s, (uint32_t)n->entries.n);
	put_u32(s, (uint32_t)n->xattrs.n);
}

static int write_node(struct writer *w, const struct edit_node *n)
{
	struct strbuf *s = &w->nodes;
	int r = 0;

	write_fixed(s, n);
	for (size_t i = 0; i < n->entries.n; i++) {
		const struct edit_entry *e = &n->entries.items[i];
		put_u32(s, (uint32_t)e->node);
		put_bytes(s, e->name, e->len);
	}
	for (size_t i = 0; i < n->xattrs.n; i++) {
		put_text(s, n->xattrs.items[i].name);
		put_bytes(s, n->xattrs.items[i].value, n->xattrs.items[i].len);
	}
	if (n->attr.type == NODE_SYMLINK)
		strbuf_add(s, n->data, n->attr.size);
	else if (n->attr.type == NODE_FILE)
		r = write_content(w, n);
	return r == 0 && s->failed ? no_memory(w->err) : r;
}

static int write_all(struct writer *w, const struct sealed *sealed)
{
	struct strbuf *s = &w->out->bytes;

	for (size_t i = 0; i < sealed->n_nodes; i++) {
		int r = write_node(w, &sealed->nodes[i]);
		if (r < 0)
			return r;
	}
	if (w->n_put > SYNC_EACH_MAX) {
		int r = content_sync(w->store, w->err);
		if (r < 0)
			return r;
	}
	strbuf_puts(s, MAGIC);
	put_u32(s, VERSION);
	put_u32(s, (uint32_t)w->out->layers.n);
	put_u32(s, (uint32_t)sealed->n_nodes);
	put_u32(s, 0);
	strbuf_add(s, w->layers.data, w->layers.len);
	strbuf_add(s, w->nodes.data, w->nodes.len);
	return w->layers.failed || s->failed ? no_memory(w->err) : 0;
}

int treefile_write(struct treefile *out, struct tree *t, struct store *store, struct err *err)
{
	const struct sealed *sealed = sealed_of(t);
	struct writer w = {.out = out, .tree = t, .store = store, .err = err};

	*out = (struct treefile){0};
	if (!sealed || sealed->n_nodes > UINT32_MAX)
		return err_set(err, -EINVAL, "no tree of changes, or too large a one");
	int r = write_all(&w, sealed);
	strbuf_free(&w.layers);
	strbuf_free(&w.nodes);
	if (r < 0)
		treefile_deinit(out);
	return r;
}

void treefile_deinit(struct treefile *file)
{
	for (size_t i = 0; i < file->layers.n; i++)
		remote_unref(file->layers.items[i].remote);
	vec_free(&file->layers);
	strbuf_free(&file->bytes);
}

/* ------------------------------------------------------------------ reading */

struct reader {
	const uint8_t *at;
	size_t left;
	bool failed; /* sticky: what was taken since is zero */
	struct edit_node *nodes;
	size_t n_nodes;
	struct leaves *leaves;
};

static const uint8_t *take_bytes(struct reader *r, size_t n)
{
	const uint8_t *at = r->at;

	if (r->failed || n > r->left) {
		r->failed = true;
		return NULL;
	}
	r->at += n;
	r->left -= n;
	return at;
}

static uint8_t take_u8(struct reader *r)
{
	const uint8_t *p = take_bytes(r, 1);
	return p ? *p : 0;
}

static uint32_t take_u32(struct reader *r)
{
	const uint8_t *p = take_bytes(r, 4);
	return p ? le32(p) : 0;
}

static uint64_t take_u64(struct reader *r)
{
	const uint8_t *p = take_bytes(r, 8);
	return p ? le64(p) : 0;
}

static void take_digest(struct reader *r, struct digest *out)
{
	const uint8_t *p = take_bytes(r, sizeof(out->bytes));
	if (p)
		memcpy(out->bytes, p, sizeof(out->bytes));
}

/* A copy of @n bytes with a NUL behind; NULL: -ENOMEM, or there are not so many. */
static char *copy_bytes(struct reader *r, uint64_t n)
{
	const uint8_t *p = n > r->left ? take_bytes(r, SIZE_MAX) : take_bytes(r, (size_t)n);
	char *copy = p ? malloc((size_t)n + 1) : NULL;

	if (copy) {
		memcpy(copy, p, (size_t)n);
		copy[n] = '\0';
	}
	return copy;
}

/* A text without NUL in it. */
static char *copy_text(struct reader *r, size_t *len)
{
	size_t n = take_u32(r);
	char *text = copy_bytes(r, n);

	if (text && memchr(text, '\0', n))
		r->failed = true;
	if (len)
		*len = n;
	return text;
}

/* Why something is missing. */
static int reason(const struct reader *r)
{
	return r->failed ? -EBADMSG : -ENOMEM;
}

static int read_layer(struct reader *r)
{
	struct leaf_layer *layer = vec_push(&r->leaves->layers);

	if (!layer)
		return -ENOMEM;
	take_digest(r, &layer->desc.digest);
	layer->desc.size = take_u64(r);
	layer->desc.media_type = copy_text(r, NULL);
	if (!layer->desc.media_type)
		return reason(r);
	if (!*layer->desc.media_type)
		free(take(layer->desc.media_type));
	for (uint32_t n = take_u32(r); n > 0 && !r->failed; n--) {
		scoped(free) char *key = copy_text(r, NULL);
		scoped(free) char *value = key ? copy_text(r, NULL) : NULL;
		if (!value || r->failed)
			return reason(r);
		if (desc_annotate(&layer->desc, key, value) < 0)
			return -ENOMEM;
	}
	return r->failed ? -EBADMSG : 0;
}

static bool is_name(const char *name, size_t len)
{
	return len >= 1 && len <= 255 && !memchr(name, '/', len) && strcmp(name, ".") != 0 &&
	       strcmp(name, "..") != 0;
}

/* The folder number @id gets its one name; what has a greater number is still without. */
static bool name_folder(struct reader *r, struct edit_node *dir, uint64_t id, const char *name)
{
	struct edit_node *n = &r->nodes[id - 1];

	if (id <= dir->attr.id || n->name)
		return false;
	n->parent = dir->attr.id;
	n->name = name;
	return true;
}

static int read_entry(struct reader *r, struct edit_node *dir)
{
	struct edit_entry *e = vec_push(&dir->entries);
	size_t len;

	if (!e)
		return -ENOMEM;
	e->node = take_u32(r);
	e->name = copy_text(r, &len);
	if (!e->name)
		return reason(r);
	e->len = (uint32_t)len;
	if (!is_name(e->name, len) || e->node <= TREE_ROOT || e->node > r->n_nodes)
		return -EBADMSG;
	if (dir->entries.n > 1 && strcmp(e[-1].name, e->name) >= 0)
		return -EBADMSG;
	return r->failed ? -EBADMSG : 0;
}

static int read_xattr(struct reader *r, struct edit_node *n)
{
	struct edit_xattr *x = vec_push(&n->xattrs);

	if (!x)
		return -ENOMEM;
	x->name = copy_text(r, NULL);
	if (!x->name)
		return reason(r);
	x->len = take_u32(r);
	x->value = copy_bytes(r, x->len);
	return !x->value ? reason(r) : r->failed || !*x->name ? -EBADMSG : 0;
}

static void read_fixed(struct reader *r, struct edit_node *n, uint32_t *n_entries,
		       uint32_t *n_xattrs)
{
	struct attr *a = &n->attr;

	a->type = take_u8(r);
	uint8_t flags = take_u8(r);
	a->is_opaque = flags & NODE_OPAQUE;
	a->is_implicit = flags & NODE_IMPLICIT;
	uint16_t zero = take_u8(r);
	zero |= take_u8(r);
	a->mode = take_u32(r);
	a->uid = take_u32(r);
	a->gid = take_u32(r);
	a->nlink = take_u32(r);
	a->size = take_u64(r);
	a->n_bytes_allocated = take_u64(r);
	a->mtime_s = (int64_t)take_u64(r);
	a->mtime_ns = take_u32(r);
	a->dev_major = take_u32(r);
	a->dev_minor = take_u32(r);
	*n_entries = take_u32(r);
	*n_xattrs = take_u32(r);
	bool is_dir = a->type == NODE_DIR;
	if (zero || flags & ~(NODE_OPAQUE | NODE_IMPLICIT) || a->type <= NODE_NONE ||
	    a->type > NODE_WHITEOUT || a->mode > 07777 || a->mtime_ns >= NS_PER_S ||
	    (!is_dir && (*n_entries || flags)) || (a->type != NODE_FILE && a->size > INT64_MAX))
		r->failed = true;
}

static int read_content(struct reader *r, struct edit_node *n)
{
	uint8_t kind = take_u8(r);

	if (kind == CONTENT_HERE) {
		n->data = copy_bytes(r, n->attr.size);
		return n->data ? 0 : reason(r);
	}
	struct leaf *leaf = vec_push(&r->leaves->leaves);
	if (!leaf)
		return -ENOMEM;
	leaf->kind = kind;
	leaf->size = n->attr.size;
	if (kind == CONTENT_LAYER) {
		leaf->layer = take_u32(r);
		leaf->id = take_u64(r);
	}
	take_digest(r, &leaf->digest);
	if (r->failed || kind > CONTENT_STORE || leaf->size == 0 || leaf->size > INT64_MAX)
		return -EBADMSG;
	if (kind == CONTENT_LAYER &&
	    (leaf->layer >= r->leaves->layers.n || leaf->id <= TREE_ROOT || leaf->id >> 32))
		return -EBADMSG;
	n->source = tree_ref(&r->leaves->tree);
	n->source_id = r->leaves->leaves.n;
	return 0;
}

static int read_node_record(struct reader *r, size_t i)
{
	struct edit_node *n = &r->nodes[i];
	uint32_t n_entries = 0, n_xattrs = 0;
	int e = 0;

	n->attr.id = i + 1;
	n->is_changed = true;
	read_fixed(r, n, &n_entries, &n_xattrs);
	if (r->failed)
		return -EBADMSG;
	for (; e == 0 && n_entries > 0; n_entries--)
		e = read_entry(r, n);
	for (; e == 0 && n_xattrs > 0; n_xattrs--)
		e = read_xattr(r, n);
	if (e == 0 && n->attr.type == NODE_SYMLINK) {
		n->data = copy_bytes(r, n->attr.size);
		e = n->data ? 0 : reason(r);
	} else if (e == 0 && n->attr.type == NODE_FILE) {
		e = read_content(r, n);
	}
	return e == 0 && r->failed ? -EBADMSG : e;
}

/* Folders get their places, once everybody's type is known. */
static int bind_names(struct reader *r)
{
	if (r->nodes[0].attr.type != NODE_DIR)
		return -EBADMSG;
	r->nodes[0].parent = TREE_ROOT;
	r->nodes[0].name = "";
	for (size_t i = 0; i < r->n_nodes; i++)
		for (size_t k = 0; k < r->nodes[i].entries.n; k++) {
			const struct edit_entry *e = &r->nodes[i].entries.items[k];
			bool is_dir = r->nodes[e->node - 1].attr.type == NODE_DIR;
			if (is_dir && !name_folder(r, &r->nodes[i], e->node, e->name))
				return -EBADMSG;
		}
	for (size_t i = 0; i < r->n_nodes; i++)
		if (r->nodes[i].attr.type == NODE_DIR && !r->nodes[i].name)
			return -EBADMSG;
	return 0;
}

static int read_all(struct reader *r)
{
	const uint8_t *magic = take_bytes(r, 8);
	uint32_t version = take_u32(r), n_layers = take_u32(r), n_nodes = take_u32(r);
	int e = 0;

	if (!magic || memcmp(magic, MAGIC, 8) != 0 || version != VERSION || take_u32(r) != 0 ||
	    r->failed || n_nodes == 0 || n_nodes > r->left / NODE_LEN ||
	    n_layers > r->left / LAYER_LEN)
		return -EBADMSG;
	r->nodes = calloc(n_nodes, sizeof(*r->nodes));
	if (!r->nodes)
		return -ENOMEM;
	r->n_nodes = n_nodes;
	for (uint32_t i = 0; i < n_layers && e == 0; i++)
		e = read_layer(r);
	for (size_t i = 0; i < r->n_nodes && e == 0; i++)
		e = read_node_record(r, i);
	if (e == 0)
		e = r->left > 0 ? -EBADMSG : bind_names(r);
	return e;
}

static void give_remotes(struct leaves *l, const struct treefile_layer *layers, size_t n)
{
	for (size_t i = 0; i < l->layers.n; i++)
		for (size_t k = 0; k < n; k++) {
			struct leaf_layer *to = &l->layers.items[i];
			if (to->remote || !layers[k].remote ||
			    !digest_equal(&to->desc.digest, &layers[k].digest))
				continue;
			to->remote = remote_ref(layers[k].remote);
		}
}

int treefile_parse(struct tree **out, struct store *store, const void *bytes, size_t n,
		   const struct treefile_layer *layers, size_t n_layers, struct err *err)
{
	struct reader r = {.at = bytes, .left = n, .leaves = leaves_new(store)};
	int e = r.leaves ? read_all(&r) : -ENOMEM;

	if (e == 0) {
		give_remotes(r.leaves, layers, n_layers);
		*out = sealed_take(r.nodes, r.n_nodes);
		e = *out ? 0 : -ENOMEM;
	}
	if (e < 0)
		edit_nodes_free(r.nodes, r.n_nodes);
	if (r.leaves)
		tree_unref(&r.leaves->tree);
	if (e == -EBADMSG)
		return err_set(err, e, "a kept tree makes no sense");
	return e < 0 ? no_memory(err) : 0;
}

/* From now on the plain content of the tree stays; that it is there can be said at once. */
static int keep_content(const struct leaves *l, struct store *store, struct err *err)
{
	vec(struct digest) names = {0};
	char text[DIGEST_TEXT_MAX];
	int r = 0;

	for (size_t i = 0; i < l->leaves.n && r == 0; i++) {
		if (l->leaves.items[i].kind != LEAF_CONTENT)
			continue;
		struct digest *name = vec_push(&names);
		if (name)
			*name = l->leaves.items[i].digest;
		else
			r = no_memory(err);
	}
	if (r == 0)
		r = store_lease(store, names.items, names.n, err);
	vec_free(&names);
	for (size_t i = 0; i < l->leaves.n && r == 0; i++) {
		const struct leaf *leaf = &l->leaves.items[i];
		int fd;
		if (leaf->kind != LEAF_CONTENT)
			continue;
		r = content_open(store, &leaf->digest, leaf->size, &fd);
		if (r == 0)
			close_fd(fd);
		else
			err_set(err, r, "content %s is not in the store any more",
				digest_text(&leaf->digest, text));
	}
	return r;
}

int treefile_load(struct tree **out, struct store *store, const void *bytes, size_t n,
		  const struct treefile_layer *layers, size_t n_layers, struct err *err)
{
	scoped(tree_unref) struct tree *t = NULL;
	int r = treefile_parse(&t, store, bytes, n, layers, n_layers, err);
	const struct sealed *s = r == 0 ? sealed_of(t) : NULL;
	const struct tree *leaves = NULL;

	for (size_t i = 0; s && i < s->n_nodes && !leaves; i++)
		leaves = s->nodes[i].source;
	if (leaves)
		r = keep_content(containerof(leaves, const struct leaves, tree), store, err);
	if (r == 0)
		*out = take(t);
	return r;
}
