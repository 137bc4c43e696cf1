/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_bind: nodes for inodes of the tree below, and what a node shows.
 *
 * An inode gets a node when it is changed for the first time. Its record holds the path by which it
 * is found below, which for a file is the name by which the kernel was last told of it.
 */

#include "merge/upper-internal.h"

#define PATH_DEPTH_MAX 4096

/* The path below of @name in the folder @dir of that tree; "" when it cannot be told. */
static void path_below(struct upper *u, uint64_t dir, const char *name, size_t len,
		       struct strbuf *out)
{
	scoped(strbuf_free) struct strbuf text = {0};
	vec(size_t) starts = {0};
	int depth = 0;

	while (dir != TREE_ROOT && depth++ < PATH_DEPTH_MAX) {
		size_t *start = vec_push(&starts);
		if (!start)
			break;
		*start = text.len;
		if (tree_parent(u->below, dir, &dir, &text, NULL) < 0)
			break;
		strbuf_putc(&text, '\0');
	}
	for (size_t i = starts.n; dir == TREE_ROOT && i-- > 0;) {
		strbuf_putc(out, '/');
		strbuf_puts(out, text.failed ? "" : text.data + starts.items[i]);
	}
	if (dir == TREE_ROOT) {
		strbuf_putc(out, '/');
		strbuf_add(out, name, len);
	}
	vec_free(&starts);
}

static void inode_below(const struct attr *a, struct upper_inode *out)
{
	struct timespec time = {.tv_sec = a->mtime_s, .tv_nsec = a->mtime_ns};

	*out = (struct upper_inode){
		.type = a->type,
		.content = CONTENT_BELOW,
		.mode = a->mode & 07777,
		.uid = a->uid,
		.gid = a->gid,
		.nlink = MAX(a->nlink, 1u),
		.dev_major = a->dev_major,
		.dev_minor = a->dev_minor,
		.limit = a->type == NODE_FILE ? a->size : 0,
		.size = a->size,
		.atime = time,
		.mtime = time,
		.ctime = time,
	};
}

int upper_bind_attr(struct upper *u, const struct attr *a, uint64_t dir, const char *path,
		    size_t path_len, bool is_kept, struct err *err)
{
	struct upper_item item = {.kind = UPPER_INODE, .ino = u->next_ino};

	upper_item_put(&u->record, &(struct upper_item){.kind = UPPER_BIND,
							.ino = item.ino,
							.below = a->id,
							.below_dir = dir,
							.name = path,
							.name_len = path_len});
	inode_below(a, &item.inode);
	item.name = "";
	upper_item_put(&u->record, &item);
	return upper_commit(u, is_kept, err);
}

/* What is needed to bind an inode, gathered without the lock. */
struct binding {
	struct attr attr;
	uint64_t dir;
	struct strbuf path;
};

static int binding_get(struct upper *u, uint64_t id, struct binding *b, struct tree_wait *wait,
		       struct err *err)
{
	scoped(strbuf_free) struct strbuf name = {0};
	int r = tree_getattr(u->below, id, &b->attr, wait, err);

	if (r < 0)
		return r;
	if (id == TREE_ROOT) {
		strbuf_putc(&b->path, '/');
	} else if (b->attr.type == NODE_DIR) {
		r = tree_parent(u->below, id, &b->dir, &name, err);
	} else {
		pthread_mutex_lock(&u->lock);
		const struct upper_known *k = upper_known_find(u, id);
		if (k) {
			b->dir = k->dir;
			strbuf_add(&name, k->name, k->len);
		}
		pthread_mutex_unlock(&u->lock);
	}
	if (r == 0 && name.len && !upper_is_new(u, b->dir))
		path_below(u, b->dir, name.data, name.len, &b->path);
	if (r == 0 && (b->path.failed || name.failed))
		r = -ENOMEM;
	return r;
}

int upper_hold(struct upper *u, uint64_t id, struct upper_node **out, struct tree_wait *wait,
	       struct err *err)
{
	struct binding b = {0};
	int r = 0;

	pthread_mutex_lock(&u->lock);
	*out = upper_by_id(u, id);
	if (*out)
		return 0;
	pthread_mutex_unlock(&u->lock);
	if (upper_is_new(u, id))
		return -ESTALE;
	r = binding_get(u, id, &b, wait, err);
	pthread_mutex_lock(&u->lock);
	*out = upper_by_id(u, id);
	if (r == 0 && !*out) {
		r = upper_bind_attr(u, &b.attr, b.dir, b.path.data ? b.path.data : "", b.path.len,
				    true, err);
		*out = upper_by_id(u, id);
	}
	strbuf_free(&b.path);
	if (r == 0 && !*out)
		r = -EIO;
	if (r < 0)
		pthread_mutex_unlock(&u->lock);
	return r;
}

void upper_attr(struct upper *u, struct upper_node *n, struct attr *out)
{
	const struct upper_inode *i = &n->i;

	*out = (struct attr){
		.id = n->id,
		.type = i->type,
		.is_live = u->is_below_live && n->below,
		.mode = i->mode,
		.uid = i->uid,
		.gid = i->gid,
		.nlink = i->nlink,
		.size = i->size,
		.n_bytes_allocated = i->type == NODE_FILE ? i->size : 0,
		.mtime_s = i->mtime.tv_sec,
		.mtime_ns = (uint32_t)i->mtime.tv_nsec,
		.dev_major = i->dev_major,
		.dev_minor = i->dev_minor,
	};
	if (i->type == NODE_DIR)
		out->nlink = n->is_orphan ? 0
			     : n->below	  ? 1
					  : 2 + (uint32_t)(n->dir ? n->dir->n_subdirs : 0);
	if (i->type != NODE_FILE || i->content == CONTENT_BELOW || upper_content_stat(u, n) < 0)
		return;
	out->size = n->host_size;
	out->n_bytes_allocated = n->host_allocated;
	out->mtime_s = n->host_mtime.tv_sec;
	out->mtime_ns = (uint32_t)n->host_mtime.tv_nsec;
}
