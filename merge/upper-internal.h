/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * upper-internal: what the files of the upper share. The essay is at the head of upper.c.
 */

#include <pthread.h>
#include <sys/queue.h>
#include <time.h>

#include "merge/merge.h"

/* ------------------------------------------------------------------ records (upper_record.c) */

enum upper_kind {
	UPPER_BELOW = 1, /* the first of a journal: which tree this lies over */
	UPPER_NEXT,	 /* numbers below this one were given out */
	UPPER_BIND,	 /* this inode is that one of the tree below */
	UPPER_INODE,	 /* all of an inode's metadata but xattrs */
	UPPER_XATTR,
	UPPER_UNXATTR,
	UPPER_ENTRY,   /* a folder's name: an inode, or nothing */
	UPPER_UNENTRY, /* what the tree below says of that name counts again */
	UPPER_TOUCH,   /* mtime and ctime */
	UPPER_CTIME,
	UPPER_DATA, /* these granules are here */
	UPPER_FREE, /* no such inode any more */
};

/* Where a file's bytes are. */
enum upper_content {
	CONTENT_BELOW, /* in the tree below, up to limit */
	CONTENT_PART,  /* the granules that are marked, and what lies beyond limit, are here */
	CONTENT_HERE,
};

/* What an inode is, as it is recorded. */
struct upper_inode {
	uint8_t type;	 /* enum node_type */
	uint8_t content; /* enum upper_content */
	bool has_xattrs; /* its own, none of the tree below */
	uint32_t mode, uid, gid, nlink;
	uint32_t dev_major, dev_minor;
	uint64_t limit; /* so many bytes show of the file below */
	uint64_t size;	/* while the content is below; links: of the target */
	struct timespec atime, mtime, ctime;
};

/* One statement of a record; what it points to is borrowed. */
struct upper_item {
	enum upper_kind kind;
	uint64_t ino;		   /* the folder of an entry; the number of UPPER_NEXT */
	uint64_t child;		   /* ENTRY: 0 = nothing */
	bool is_hiding;		   /* ENTRY: the tree below has that name, too */
	uint64_t below, below_dir; /* BIND: ids of the tree below */
	uint64_t first, n;	   /* DATA */
	struct timespec time;	   /* TOUCH, CTIME */
	struct upper_inode inode;  /* INODE */
	const char *name; /* ENTRY, UNENTRY, XATTR, UNXATTR; BIND: the path; INODE: target */
	size_t name_len;
	const void *value; /* XATTR */
	size_t value_len;
};

#define UPPER_MAGIC "llbfsup1"
#define UPPER_RECORD_MAX (8u << 20) /* one record's bytes: a moment's changes, never many */
#define UPPER_FRAME 8		    /* in front of each: length, checksum */

void upper_item_put(struct strbuf *to, const struct upper_item *item);
/* The next statement of a record: 1, or 0 at its end; -EBADMSG. */
int upper_item_next(const uint8_t **p, size_t *left, struct upper_item *out);
/* Begins and ends a record in @to; upper_record_end returns how many bytes it has in all. */
size_t upper_record_begin(struct strbuf *to);
void upper_record_end(struct strbuf *to, size_t start);
/* The next record of a journal's bytes: 1; 0 at the end, and also where the rest is torn. */
int upper_record_next(const uint8_t **p, size_t *left, const uint8_t **record, size_t *n);

/* ------------------------------------------------------------------ nodes (upper_node.c) */

#define GRANULE (UINT64_C(64) << 10) /* copied up as one */

struct upper_xattr {
	char *name;
	void *value;
	size_t len;
};

struct upper_entry {
	struct upper_entry *next; /* in its bucket */
	uint64_t seq;		  /* its place in listings */
	uint64_t child;		  /* ino; 0 = nothing is there */
	bool is_hiding;
	uint8_t len;
	char name[];
};

struct upper_place {
	uint64_t seq;
	struct upper_entry *entry; /* NULL = it is gone */
};

/* What a folder has of its own. */
struct upper_dir {
	struct upper_entry **buckets;
	size_t n_buckets, n_entries;
	vec(struct upper_place) order; /* by seq */
	uint64_t next_seq;
	uint64_t n_subdirs;
	/* where it is now, if not where the tree below has it */
	uint64_t parent;	   /* ino; 0 = as below */
	struct upper_entry *entry; /* of parent, borrowed */
};

struct upper_fill;

struct upper_node {
	struct upper_node *next_ino, *next_below; /* in their buckets */
	uint64_t ino, id;
	uint64_t below;	    /* 0 = new */
	uint64_t below_dir; /* bound: where it was found below */
	char *path;	    /* bound: its path below; "" = not known */
	struct upper_inode i;
	bool is_orphan;	  /* has no name, and no record */
	bool is_fresh;	  /* size, blocks and time below are what the host says */
	bool is_new_file; /* of the host: its folder was not synced since */
	uint64_t host_size, host_allocated;
	struct timespec host_mtime, host_ctime;
	uint8_t *marks;	      /* CONTENT_PART: a bit a granule */
	size_t n_marks;	      /* of granules */
	uint64_t first_below; /* none before this one is unmarked */
	char *target;
	vec(struct upper_xattr) xattrs;
	struct upper_dir *dir;
	struct upper_fill *fill; /* of the file below, under way */
	int fd;			 /* its content, -1 = not open */
	TAILQ_ENTRY(upper_node) by_use;
};

/* Of a table by numbers. */
static inline size_t upper_bucket(uint64_t key, size_t n_buckets)
{
	return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (n_buckets - 1);
}

struct upper_table {
	struct upper_node **buckets;
	size_t n_buckets, n;
};

/* What the kernel was told. */
struct upper_known {
	struct upper_known *next;
	uint64_t id, dir, n;
	uint8_t len;
	char name[];
};

struct upper {
	struct tree tree;
	/* given */
	struct tree *below;
	bool is_scratch, is_below_live;
	char *key;
	char *path;    /* for messages */
	uint64_t base; /* id of what is new, less its ino */
	/* owned */
	int dir_fd, data_fd, lock_fd, journal_fd;

	pthread_mutex_t lock;
	/* guarded by lock, as all nodes are, and the files of the folder */
	struct upper_table by_ino, by_below;
	struct upper_known **known;
	size_t n_known_buckets, n_known;
	uint64_t next_ino;
	uint64_t journal_size, journal_base; /* now; and after it was last rewritten */
	uint64_t n_synced;		     /* of journal_size */
	bool is_broken;			     /* memory and journal may differ */
	bool is_replaying;
	bool is_closed;
	struct strbuf record;	       /* being made */
	TAILQ_HEAD(, upper_node) open; /* with an fd, the least recently used first */
	size_t n_open;
	bool has_fanout[256];
	vec(uint64_t) dead; /* numbers whose content is to be unlinked */
	pthread_t reaper;
	bool has_reaper;
	pthread_cond_t wake; /* the reaper */
};

static inline struct upper *upper_of(struct tree *t)
{
	return containerof(t, struct upper, tree);
}
static inline bool upper_is_new(const struct upper *u, uint64_t id)
{
	return id > u->base;
}

/* All with the lock. */
struct upper_node *upper_by_ino(const struct upper *u, uint64_t ino);
struct upper_node *upper_by_id(const struct upper *u, uint64_t id); /* NULL = as below */
int upper_node_add(struct upper *u, uint64_t ino, struct upper_node **out);
int upper_node_bind(struct upper *u, struct upper_node *n, uint64_t below, uint64_t below_dir,
		    const char *path, size_t len);
void upper_node_unbind(struct upper *u, struct upper_node *n); /* from the table only */
void upper_node_drop(struct upper *u, struct upper_node *n);
void upper_nodes_deinit(struct upper *u);
/* Applies a statement: while ops are carried out and when a journal is read again, alike. */
int upper_apply(struct upper *u, const struct upper_item *item);
struct upper_entry *upper_dir_find(const struct upper_node *dir, const char *name, size_t len);
/* The first entry at or after @seq that is not gone. */
struct upper_entry *upper_dir_after(const struct upper_node *dir, uint64_t seq);
struct upper_known *upper_known_find(const struct upper *u, uint64_t id);
void upper_known_deinit(struct upper *u);
/* Puts all of @n into a record. */
void upper_node_put(struct upper *u, const struct upper_node *n, struct strbuf *to);
bool upper_is_marked(const struct upper_node *n, uint64_t granule);

/* ------------------------------------------------------------------ journal (upper_journal.c) */

int upper_journal_open(struct upper *u, struct err *err);
void upper_journal_close(struct upper *u);
/* Writes u->record and applies it. @is_kept false: only the latter. */
int upper_commit(struct upper *u, bool is_kept, struct err *err);
/* Starts a new journal with what is left of the old one, when that pays. */
int upper_journal_trim(struct upper *u, struct err *err);
int upper_journal_sync(struct upper *u, struct err *err); /* without the lock */

/* ------------------------------------------------------------------ content (upper_data.c) */

/* With the lock. The descriptor of a node's content; made when it is not there and @make. */
int upper_content_open(struct upper *u, struct upper_node *n, bool make);
void upper_content_close(struct upper *u, struct upper_node *n);
void upper_content_remove(struct upper *u, uint64_t ino);
/* Asks the host for size and times where they are not known. */
int upper_content_stat(struct upper *u, struct upper_node *n);
/* Where the part of granule @g that may be below ends. */
uint64_t upper_granule_end(const struct upper_node *n, uint64_t g);
bool upper_is_below(const struct upper_node *n, uint64_t g);
/* The bytes of [off, end) from the first to the last that is below; false: there is none. */
bool upper_span_below(const struct upper_node *n, uint64_t off, uint64_t end, uint64_t *a,
		      uint64_t *b);
uint64_t upper_content_size(const struct upper_node *n); /* after upper_content_stat */
int upper_resize(struct upper *u, struct upper_node *n, uint64_t size, struct err *err);
void upper_reaper_stop(struct upper *u);
/* (upper_read.c) */
int64_t upper_read(struct tree *t, uint64_t id, uint64_t off, void *dst, size_t len, blob_done done,
		   void *arg, struct err *err);
int upper_seek_data(struct tree *t, uint64_t id, uint64_t off, uint64_t *data, uint64_t *end);

/* ------------------------------------------------------------------ changing (upper_change.c) */

extern const struct tree_ops upper_tree_ops; /* upper_tree.c */
void upper_attr(struct upper *u, struct upper_node *n, struct attr *out);
/* Makes sure that an inode of the tree below has a node; called without the lock, which it takes:
 * 0 = it is held. */
int upper_hold(struct upper *u, uint64_t id, struct upper_node **out, struct tree_wait *wait,
	       struct err *err);
/* A node for the inode @a of the tree below. @is_kept false: only in memory. */
int upper_bind_attr(struct upper *u, const struct attr *a, uint64_t dir, const char *path,
		    size_t path_len, bool is_kept, struct err *err);
/* Before something is made in @dir, without the lock: a default ACL that the folder has in the tree
 * below becomes its own. (upper_set.c) */
int upper_own_default_acl(struct upper *u, uint64_t dir, struct tree_wait *wait, struct err *err);
/* Statements for u->record. */
void upper_put_inode(struct upper *u, const struct upper_node *n, const struct upper_inode *i);
void upper_put_xattr(struct upper *u, uint64_t ino, const char *name, const void *value, size_t n);
/* Drops what a record that is not to be committed would have said. */
void upper_unrecord(struct upper *u);
/* An ACL in xattrs (upper_acl.c). */
#define ACL_ACCESS "system.posix_acl_access"
#define ACL_DEFAULT "system.posix_acl_default"
#define ACL_MAX 4096
/* Checks @acl; *mode gets its permission bits; *is_mode: they say all of it. -EINVAL. */
int upper_acl_mode(const void *acl, size_t n, uint32_t *mode, bool *is_mode);
/* Puts permission bits into @acl, as chmod does. */
int upper_acl_chmod(void *acl, size_t n, uint32_t mode);
/* A new file's ACL from the folder's default: @acl is changed, *mode loses bits. */
int upper_acl_create(void *acl, size_t n, uint32_t *mode);
const struct upper_xattr *upper_xattr_find(const struct upper_node *n, const char *name);

static inline struct timespec upper_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return now;
}
