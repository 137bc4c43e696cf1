/* SPDX-License-Identifier: Apache-2.0 */

/*
 * index_builder: the entries of a layer, in order, become its index.
 *
 * A layer's entries mean what they do when they are unpacked one after another into an empty
 * folder, with marks for what is hidden below. The rules, which are those of an unpacker with an
 * overlay under it:
 *
 *  - A later entry replaces an earlier one of the same path with all that lies below it, unless
 *    both are folders: then only metadata is replaced.
 *  - Missing parents are made up: 0755 0:0, time 0, marked implicit so that a lower layer's
 *    metadata wins. A parent that is a symlink of this layer is followed, inside the root. (One of
 *    a lower layer is not seen here, and so replaced by a folder.) An entry below a file is an
 *    error. The root's own entry is ignored.
 *  - A hard link in a tar binds to the inode that its target is at that moment; its own metadata
 *    is given to that inode, and xattrs that it does not mention stay (writers leave them out). In a
 *    table of contents links mean names as they are at the end, and may be chains.
 *  - ".wh.NAME" hides NAME of lower layers and nothing of this one, wherever it stands. A folder
 *    that has both becomes opaque: without its whiteout the lower one would show through.
 *    ".wh..wh..opq" makes its folder opaque; other ".wh..wh." names are another union file
 *    system's housekeeping and left out.
 *  - Left out with a warning, as no unpacker could make them: names over 255 bytes, paths over
 *    4096, empty or overlong symlinks, character device 0:0 (a whiteout in disguise). xattrs of
 *    "trusted." and of overlayfs are dropped: a layer must not steer an overlay made over it.
 *
 * Nodes are names. A node is found by (parent's node, name) in a hash table; replacing a name puts
 * a new node into its slot, and whatever lies below the old one is dead because nobody can reach
 * it any more. So removing a folder costs nothing, and at the end one pass in order tells the
 * living: a parent is always made before its children.
 *
 * A million entries are ordinary: nothing here costs more than its own bytes and a logarithm.
 */

#include "merge/merge.h"

#include <assert.h>
#include <stdio.h>
#include <sys/random.h>

#include "merge/merge-internal.h"

#define NAME_LEN_MAX 255
#define PATH_LEN_MAX 4096
#define LINKS_MAX 40
#define WARNINGS_MAX 20 /* a broken layer should not fill the log */
#define OPAQUE_NAME ".wh..wh..opq"

/* What an internal step returns when the entry is left out. */
#define LEFT_OUT 1

/* ------------------------------------------------------------------ messages */

#define SHOWN_MAX 160

/* A path for a line of text: what is not printable UTF-8 as octal escapes. */
static const char *shown(char buf[SHOWN_MAX], const char *text)
{
	bool is_utf8 = utf8_valid(text, strlen(text));
	size_t n = 0;

	/* U+0080 to U+009F steer terminals, too. */
	for (const char *c = text; is_utf8 && (c = strchr(c, '\xc2')); c++)
		is_utf8 = (uint8_t)c[1] >= 0xa0;
	for (const uint8_t *p = (const uint8_t *)text; *p; p++) {
		bool is_control = *p < ' ' || *p == 0x7f;
		if (n > SHOWN_MAX - 12) {
			memcpy(buf + n, "...", 3);
			n += 3;
			break;
		}
		if (!is_control && (*p < 0x80 || is_utf8))
			buf[n++] = (char)*p;
		else
			n += (size_t)snprintf(buf + n, 5, "\\%03o", *p);
	}
	buf[n] = '\0';
	return buf;
}

static int leave_out(struct index_builder *b, const char *path, const char *why)
{
	char buf[SHOWN_MAX];

	if (b->n_warnings++ < WARNINGS_MAX)
		log_warn("entry left out: %s path=%s", why, shown(buf, path));
	return LEFT_OUT;
}

static int senseless(struct err *err, const char *path, const char *why)
{
	char buf[SHOWN_MAX];

	return err_set(err, -EBADMSG, "%s: %s", shown(buf, path), why);
}

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "layer index: no memory");
}

/* ------------------------------------------------------------------ nodes */

/* Seeded, so that no layer can be made whose names all meet in one slot. */
static uint32_t name_hash(const struct index_builder *b, uint32_t parent, const char *name,
			  size_t len)
{
	struct {
		uint64_t seed;
		uint32_t parent;
		char name[NAME_LEN_MAX];
	} __attribute__((packed)) key = {.seed = b->seed, .parent = parent};

	memcpy(key.name, name, len);
	return (uint32_t)hash_bytes(&key, offsetof(__typeof__(key), name) + len);
}

/* The slot of a name: its node's, or the free one where it belongs. */
static uint32_t *find_slot(const struct index_builder *b, uint32_t parent, const char *name,
			   size_t len, uint32_t hash)
{
	for (size_t i = hash;; i++) {
		uint32_t *slot = &b->table[i & (b->n_slots - 1)];
		if (!*slot)
			return slot;
		const struct index_node *n = &b->nodes.items[*slot - 1];
		if (n->hash == hash && n->parent == parent && n->name_len == len &&
		    memcmp(b->names.data + n->name, name, len) == 0)
			return slot;
	}
}

static uint32_t find_child(const struct index_builder *b, uint32_t parent, const char *name,
			   size_t len)
{
	if (len > NAME_LEN_MAX)
		return INDEX_NONE;
	return *find_slot(b, parent, name, len, name_hash(b, parent, name, len)) - 1;
}

static int grow_table(struct index_builder *b)
{
	size_t n = b->n_slots ? b->n_slots * 2 : 256;
	uint32_t *table = calloc(n, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < b->nodes.n; i++) {
		if (b->nodes.items[i].flags & IS_GONE)
			continue;
		size_t at = b->nodes.items[i].hash;
		while (table[at & (n - 1)])
			at++;
		table[at & (n - 1)] = (uint32_t)i + 1;
	}
	free(b->table);
	b->table = table;
	b->n_slots = n;
	return 0;
}

static int add_text(struct index_builder *b, const char *text, size_t len, uint32_t *off)
{
	if (b->names.len > UINT32_MAX - len)
		return -ENOMEM;
	*off = (uint32_t)b->names.len;
	strbuf_add(&b->names, text, len);
	return b->names.failed ? -ENOMEM : 0;
}

static int new_inode(struct index_builder *b, uint8_t type, uint32_t *out)
{
	struct index_made *ino = b->inodes.n < INDEX_NONE ? vec_push(&b->inodes) : NULL;

	if (!ino)
		return -ENOMEM;
	ino->type = type;
	ino->rec.digest = ino->rec.extents = INDEX_NONE;
	*out = (uint32_t)b->inodes.n - 1;
	return 0;
}

/* Gives a name to @inode; what had the name before is replaced. */
static int new_node(struct index_builder *b, uint32_t parent, const char *name, size_t len,
		    uint32_t inode, uint8_t flags, uint32_t *out)
{
	uint32_t hash = name_hash(b, parent, name, len);
	uint32_t text;

	if (b->nodes.n >= b->n_slots / 2 && grow_table(b) < 0)
		return -ENOMEM;
	struct index_node *n = b->nodes.n < INDEX_NONE - 1 ? vec_push(&b->nodes) : NULL;
	if (!n)
		return -ENOMEM;
	if (add_text(b, name, len, &text) < 0) {
		b->nodes.n--;
		return -ENOMEM;
	}
	*n = (struct index_node){.parent = parent,
				 .name = text,
				 .inode = inode,
				 .hash = hash,
				 .name_len = (uint8_t)len,
				 .flags = flags};
	uint32_t *slot = find_slot(b, parent, name, len, hash);
	if (*slot) {
		struct index_node *old = &b->nodes.items[*slot - 1];
		old->flags |= IS_GONE;
		n->flags |= old->flags & IS_WHITED_OUT;
		free(take(b->last_dir)); /* it may have gone through the old one */
	}
	*slot = (uint32_t)b->nodes.n;
	*out = *slot - 1;
	return 0;
}

static int new_dir(struct index_builder *b, uint32_t parent, const char *name, size_t len,
		   uint32_t *out)
{
	uint32_t inode;

	if (new_inode(b, NODE_DIR, &inode) < 0)
		return -ENOMEM;
	b->inodes.items[inode].rec.mode = 0755;
	return new_node(b, parent, name, len, inode, IS_IMPLICIT, out);
}

struct index_builder *index_builder_new(bool links_late)
{
	scoped(index_builder_free) struct index_builder *b = calloc(1, sizeof(*b));
	uint32_t root;

	if (!b)
		return NULL;
	b->links_late = links_late;
	if (getrandom(&b->seed, sizeof(b->seed), GRND_NONBLOCK) < 0)
		b->seed = now_ns();
	if (xattr_pool_init(&b->xattrs) < 0 || grow_table(b) < 0 ||
	    new_dir(b, INDEX_ROOT, "", 0, &root) < 0)
		return NULL;
	return take(b);
}

void index_builder_free(struct index_builder *b)
{
	if (!b)
		return;
	vec_free(&b->nodes);
	vec_free(&b->inodes);
	vec_free(&b->digests);
	vec_free(&b->extents);
	strbuf_free(&b->names);
	xattr_pool_deinit(&b->xattrs);
	free(b->table);
	free(b->last_dir);
	free(b);
}

/* ------------------------------------------------------------------ paths */

/* The next name of @text from *pos on; 0 at its end. */
static size_t next_name(const char *text, size_t n, size_t *pos, const char **name)
{
	while (*pos < n && text[*pos] == '/')
		++*pos;
	*name = text + *pos;
	size_t begin = *pos;
	while (*pos < n && text[*pos] != '/')
		++*pos;
	return *pos - begin;
}

static bool is_whiteout_name(const char *name, size_t len)
{
	return len >= 4 && memcmp(name, ".wh.", 4) == 0;
}

/* One name further down from *at. A symlink is not followed but given in *link. */
static int step_down(struct index_builder *b, const char *name, size_t len, bool make, uint32_t *at,
		     uint32_t *link)
{
	if (len == 1 && name[0] == '.')
		return 0;
	if (len == 2 && name[0] == '.' && name[1] == '.') {
		*at = b->nodes.items[*at].parent;
		return 0;
	}
	uint32_t child = find_child(b, *at, name, len);
	uint8_t type = child == INDEX_NONE ? NODE_WHITEOUT : index_node_inode(b, child)->type;
	if (type == NODE_DIR) {
		*at = child;
		return 0;
	}
	if (type == NODE_SYMLINK) {
		*link = child;
		return 0;
	}
	if (type != NODE_WHITEOUT)
		return -ENOTDIR;
	if (!make)
		return -ENOENT;
	if (len > NAME_LEN_MAX || is_whiteout_name(name, len))
		return -ENAMETOOLONG;
	return new_dir(b, *at, name, len, at);
}

/* The folder at @path, through symlinks, inside the root. @make: made up where it is missing.
 * Errors: -ENOENT, -ENOTDIR, -ELOOP, -ENAMETOOLONG (cannot be made), -ENOMEM. */
static int find_dir(struct index_builder *b, const char *path, size_t len, bool make, uint32_t *out)
{
	scoped(strbuf_free) struct strbuf longer = {0};
	unsigned n_links = 0;
	uint32_t at = INDEX_ROOT;
	size_t pos = 0;

	for (;;) {
		const char *name;
		uint32_t link = INDEX_NONE;
		size_t n = next_name(path, len, &pos, &name);
		if (n == 0)
			break;
		int r = step_down(b, name, n, make, &at, &link);
		if (r < 0)
			return r;
		if (link == INDEX_NONE)
			continue;
		if (++n_links > LINKS_MAX)
			return -ELOOP;
		const struct index_inode *ino = &index_node_inode(b, link)->rec;
		struct strbuf text = {0};
		strbuf_add(&text, b->names.data + ino->where, (size_t)ino->size);
		strbuf_putc(&text, '/');
		strbuf_add(&text, path + pos, len - pos);
		strbuf_free(&longer);
		longer = text;
		if (longer.failed)
			return -ENOMEM;
		path = longer.data;
		len = longer.len;
		pos = 0;
		if (path[0] == '/')
			at = INDEX_ROOT;
	}
	*out = at;
	return 0;
}

/* The folder that an entry belongs into; @path is clean and not the root. */
static int find_parent(struct index_builder *b, const char *path, size_t dir_len, uint32_t *out,
		       struct err *err)
{
	if (b->last_dir && strlen(b->last_dir) == dir_len &&
	    memcmp(b->last_dir, path, dir_len) == 0) {
		*out = b->last_node;
		return 0;
	}
	int r = find_dir(b, path, dir_len, true, out);
	switch (r) {
	case 0:
		free(b->last_dir);
		b->last_dir = strndup(path, dir_len); /* only a shortcut: may fail */
		b->last_node = *out;
		return 0;
	case -ENOTDIR:
		return senseless(err, path, "lies below something that is not a folder");
	case -ELOOP:
		return senseless(err, path, "lies below a loop of symlinks");
	case -ENAMETOOLONG:
		return leave_out(b, path, "no folder can have its parent's name");
	default:
		return no_memory(err);
	}
}

/* ------------------------------------------------------------------ adding */

/* Metadata and content of @item become those of @inode. */
static int fill_inode(struct index_builder *b, uint32_t inode, const struct index_item *item)
{
	struct index_made *ino = &b->inodes.items[inode];
	struct index_inode *rec = &ino->rec;
	uint32_t text;

	rec->mode = item->type == NODE_SYMLINK ? 0777 : item->mode & 07777;
	rec->uid = item->uid;
	rec->gid = item->gid;
	rec->mtime_s = item->mtime_s;
	rec->mtime_ns = item->mtime_ns;
	rec->xattrs = 0;
	switch ((enum node_type)ino->type) {
	case NODE_FILE:
		rec->size = item->size;
		rec->where = item->plain_off;
		break;
	case NODE_SYMLINK:
		rec->size = strlen(item->link);
		if (add_text(b, item->link, (size_t)rec->size, &text) < 0)
			return -ENOMEM;
		rec->where = text;
		break;
	case NODE_CHAR:
	case NODE_BLOCK:
		rec->where = item->dev_major << 32 | item->dev_minor;
		break;
	case NODE_NONE:
	case NODE_DIR:
	case NODE_FIFO:
	case NODE_SOCKET:
	case NODE_WHITEOUT:
		break;
	}
	return xattr_pool_merge(&b->xattrs, item->xattrs, item->n_xattrs, &rec->xattrs);
}

static int fill_content(struct index_builder *b, uint32_t inode, const struct index_item *item)
{
	struct index_inode *rec = &b->inodes.items[inode].rec;

	if (item->digest) {
		struct digest *d = vec_push(&b->digests);
		if (!d || b->digests.n >= INDEX_NONE)
			return -ENOMEM;
		*d = *item->digest;
		rec->digest = (uint32_t)b->digests.n - 1;
	}
	if (!item->is_sparse)
		return 0;
	if (b->extents.n > INDEX_NONE - 1 - item->n_extents)
		return -ENOMEM;
	rec->extents = (uint32_t)b->extents.n;
	rec->n_extents = (uint32_t)item->n_extents;
	rec->allocated = 0;
	for (size_t i = 0; i < item->n_extents; i++) {
		struct index_extent *e = vec_push(&b->extents);
		if (!e)
			return -ENOMEM;
		*e = item->extents[i];
		rec->allocated += e->len;
	}
	return 0;
}

static int add_real(struct index_builder *b, const struct index_item *item, uint32_t parent,
		    const char *name)
{
	uint32_t old = find_child(b, parent, name, strlen(name));
	uint32_t node, inode;

	if (old != INDEX_NONE && item->type == NODE_DIR &&
	    index_node_inode(b, old)->type == NODE_DIR) {
		b->nodes.items[old].flags &= (uint8_t)~IS_IMPLICIT;
		return fill_inode(b, b->nodes.items[old].inode, item);
	}
	if (new_inode(b, item->type, &inode) < 0 ||
	    new_node(b, parent, name, strlen(name), inode, 0, &node) < 0 ||
	    fill_inode(b, inode, item) < 0)
		return -ENOMEM;
	return item->type == NODE_FILE ? fill_content(b, inode, item) : 0;
}

/* ".wh.NAME" and its relatives. */
static int add_whiteout(struct index_builder *b, const struct index_item *item, uint32_t parent,
			const char *name, struct err *err)
{
	if (strcmp(name, OPAQUE_NAME) == 0) {
		b->nodes.items[parent].flags |= IS_OPAQUE;
		return 0;
	}
	if (str_starts(name, ".wh..wh."))
		return 0;
	name += strlen(".wh.");
	if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return senseless(err, item->path, "a whiteout of nothing");

	uint32_t inode, node = find_child(b, parent, name, strlen(name));
	if (node == INDEX_NONE && (new_inode(b, NODE_WHITEOUT, &inode) < 0 ||
				   new_node(b, parent, name, strlen(name), inode, 0, &node) < 0))
		return no_memory(err);
	b->nodes.items[node].flags |= IS_WHITED_OUT;
	return 0;
}

/* The node that a clean path names, not following a symlink at its end. */
static int find_node(struct index_builder *b, const char *path, uint32_t *out)
{
	const char *name = strrchr(path, '/') + 1;
	uint32_t dir;
	int r = find_dir(b, path, (size_t)(name - path), false, &dir);

	if (r < 0)
		return r;
	*out = *name ? find_child(b, dir, name, strlen(name)) : INDEX_ROOT;
	return *out == INDEX_NONE || index_node_inode(b, *out)->type == NODE_WHITEOUT ? -ENOENT : 0;
}

static int find_target(struct index_builder *b, const char *path, const char *link, uint32_t *out,
		       struct err *err)
{
	scoped(free) char *clean = path_clean(link, strlen(link));
	char buf[SHOWN_MAX], target[SHOWN_MAX];
	int r = clean ? find_node(b, clean, out) : -ENOMEM;

	if (r == -ENOMEM)
		return no_memory(err);
	if (r == 0 && index_node_inode(b, *out)->type != NODE_DIR)
		return 0;
	return err_set(err, -EBADMSG, "%s: hard link to %s, which %s", shown(buf, path),
		       shown(target, link), r ? "the layer does not have" : "is a folder");
}

/* A link in a tar: one more name of the inode that the target is now. */
static int add_link_now(struct index_builder *b, const struct index_item *item, uint32_t parent,
			const char *name, struct err *err)
{
	uint32_t target, node;
	int r = find_target(b, item->path, item->link, &target, err);

	if (r < 0)
		return r;
	uint32_t old = find_child(b, parent, name, strlen(name));
	for (uint32_t n = target; old != INDEX_NONE && n != INDEX_ROOT;
	     n = b->nodes.items[n].parent) {
		if (n == old)
			return senseless(err, item->path, "replaces what it is a hard link to");
	}
	uint32_t inode = b->nodes.items[target].inode;
	struct index_made *ino = &b->inodes.items[inode];
	if (ino->type != NODE_SYMLINK)
		ino->rec.mode = item->mode & 07777;
	ino->rec.uid = item->uid;
	ino->rec.gid = item->gid;
	ino->rec.mtime_s = item->mtime_s;
	ino->rec.mtime_ns = item->mtime_ns;
	if (xattr_pool_merge(&b->xattrs, item->xattrs, item->n_xattrs, &ino->rec.xattrs) < 0 ||
	    new_node(b, parent, name, strlen(name), inode, 0, &node) < 0)
		return no_memory(err);
	return 0;
}

/* A link in a table of contents: its target is looked up at the end. */
static int add_link_late(struct index_builder *b, const struct index_item *item, uint32_t parent,
			 const char *name, struct err *err)
{
	size_t len = strlen(item->link);
	uint32_t inode, node, text;

	if (new_inode(b, NODE_NONE, &inode) < 0 || add_text(b, item->link, len, &text) < 0 ||
	    new_node(b, parent, name, strlen(name), inode, 0, &node) < 0)
		return no_memory(err);
	b->inodes.items[inode].rec.where = text;
	b->inodes.items[inode].rec.size = len;
	b->n_late_links++;
	return 0;
}

/* Paths that no file system could have. */
static int check_path(struct index_builder *b, const char *clean)
{
	size_t pos = 0, len, n = strlen(clean);
	const char *name;

	if (n > PATH_LEN_MAX)
		return leave_out(b, clean, "path too long");
	while ((len = next_name(clean, n, &pos, &name)) > 0) {
		bool is_whiteout = is_whiteout_name(name, len);
		if (len - (is_whiteout ? strlen(".wh.") : 0) > NAME_LEN_MAX)
			return leave_out(b, clean, "name too long");
		if (is_whiteout && pos < n)
			return leave_out(b, clean, "lies below a whiteout");
	}
	return 0;
}

/* Entries that no file system could show. */
static int check_item(struct index_builder *b, const struct index_item *item, struct err *err)
{
	switch ((enum node_type)item->type) {
	case NODE_SYMLINK:
		if (!*item->link || strlen(item->link) >= PATH_LEN_MAX)
			return leave_out(b, item->path,
					 "symlink with no target, or too long a one");
		return 0;
	case NODE_CHAR:
	case NODE_BLOCK:
		/* What the kernel's dev_t holds. */
		if (item->dev_major > 0xfff || item->dev_minor > 0xfffff)
			return senseless(err, item->path, "device numbers out of range");
		if (item->type == NODE_CHAR && item->dev_major == 0 && item->dev_minor == 0)
			return leave_out(b, item->path, "device 0:0 would be a whiteout");
		return 0;
	case NODE_NONE:
	case NODE_FILE:
	case NODE_DIR:
	case NODE_FIFO:
	case NODE_SOCKET:
	case NODE_WHITEOUT:
		break;
	}
	return 0;
}

int index_builder_add(struct index_builder *b, const struct index_item *item, struct err *err)
{
	scoped(free) char *clean = path_clean(item->path, strlen(item->path));
	uint32_t parent;

	if (!clean)
		return no_memory(err);
	if (clean[1] == '\0')
		return 0; /* the root is not the layer's to say */
	const char *name = strrchr(clean, '/') + 1;
	bool is_whiteout = is_whiteout_name(name, strlen(name));
	int r = check_path(b, clean);
	if (r == 0 && !is_whiteout)
		r = check_item(b, item, err);
	if (r == 0)
		r = find_parent(b, clean, (size_t)(name - clean), &parent, err);
	if (r != 0)
		return r < 0 ? r : 0;
	if (is_whiteout)
		return add_whiteout(b, item, parent, name, err);
	if (item->type == NODE_NONE && b->links_late)
		return add_link_late(b, item, parent, name, err);
	if (item->type == NODE_NONE)
		return add_link_now(b, item, parent, name, err);
	return add_real(b, item, parent, name) < 0 ? no_memory(err) : 0;
}

/* ------------------------------------------------------------------ late hard links */

/* Follows the link @node, and those that it leads to, to an inode that is none. All on the way are
 * bound to it, so that a long chain is walked once. */
static int bind_link(struct index_builder *b, uint32_t node, struct err *err)
{
	vec(uint32_t) chain = {0};
	int r = 0;

	while (index_node_inode(b, node)->type == NODE_NONE) {
		const struct index_inode *rec = &index_node_inode(b, node)->rec;
		scoped(free) char *link = strndup(b->names.data + rec->where, (size_t)rec->size);
		uint32_t *passed = vec_push(&chain);
		if (!link || !passed) {
			r = no_memory(err);
			break;
		}
		*passed = node;
		r = find_target(b, link, link, &node, err);
		if (r == 0 && chain.n > b->n_late_links)
			r = senseless(err, link, "hard links in a loop");
		if (r < 0)
			break;
	}
	for (size_t i = 0; r == 0 && i < chain.n; i++)
		b->nodes.items[chain.items[i]].inode = b->nodes.items[node].inode;
	vec_free(&chain);
	return r;
}

int index_builder_bind_links(struct index_builder *b, struct err *err)
{
	for (uint32_t i = 0; i < b->nodes.n; i++) {
		if (b->nodes.items[i].flags & IS_GONE || index_node_inode(b, i)->type != NODE_NONE)
			continue;
		int r = bind_link(b, i, err);
		if (r < 0)
			return r;
	}
	return 0;
}
