/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fs-internal: what the files of fs share.
 *
 * A request from the kernel becomes a struct parked with a struct call in it. Where the tree
 * answers at once (nearly always), the reply leaves on the same thread and the struct is used
 * again for the next request. Where the tree says "later", the struct is what waits: parked.c owns
 * it until it is answered and the tree has given it back.
 *
 * Locks: parking.lock and the session's and table's locks are leaves; none is held across a reply
 * to the kernel, a call into a tree, or another of them.
 */

#include <fuse_lowlevel.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "fs/fs.h"

/* One reply carries at most this much: the kernel's own bound (256 pages) on a request. */
#define REPLY_MAX (1u << 20)
/* Files of at least this size are worth a passthrough open. */
#define PASSTHROUGH_MIN (128u << 10)
#define FOREVER_S 86400.0 /* immutable entries: a day, then the kernel asks again */

/* ------------------------------------------------------------------ requests */

enum call_op {
	CALL_LOOKUP,
	CALL_GETATTR,
	CALL_READDIR,
	CALL_OPEN,
	CALL_READ,
	CALL_LSEEK,
	/* of mounts that can be written: change.c, change_data.c */
	CALL_CREATE,
	CALL_REMOVE,
	CALL_RENAME,
	CALL_LINK,
	CALL_SETATTR,
	CALL_SETXATTR,
	CALL_WRITE,
	CALL_ALLOCATE,
};

/* What a change needs besides. */
struct change_args {
	struct upper_make make;
	struct upper_set set;
	uint64_t to;	   /* LINK, RENAME: the other folder */
	int flags;	   /* of RENAME, SETXATTR; the mode of fallocate */
	bool is_dir;	   /* REMOVE */
	bool opens;	   /* CREATE: the kernel wants it open */
	bool kills_suid;   /* WRITE */
	const char *text;  /* RENAME: the new name; CREATE: a link's target; SETXATTR: the name */
	const void *value; /* SETXATTR (NULL removes), WRITE: size bytes */
};

/* All that is needed to carry a request out, again if need be. */
struct call {
	enum call_op op;
	fuse_req_t req;
	uint64_t id;
	uint64_t off;	 /* READ, READDIR, LSEEK */
	size_t size;	 /* READ, READDIR */
	int whence;	 /* LSEEK */
	size_t name_len; /* LOOKUP */
	char name[NAME_MAX + 1];
	struct change_args w; /* of changes only */
};

struct parking;

struct parked {
	struct tree_wait wait; /* lent to the tree by calls that may say "later" */
	struct call call;
	char *buf;	      /* REPLY_MAX bytes; lent to tree_read, scratch for the others */
	uint64_t deadline_ns; /* 0: not parked yet */
	struct parking *lot;
	/* guarded by the lot's lock once the request is parked or something is lent */
	bool is_lent;	/* the tree will call back */
	bool is_back;	/* it has: try again, or the read's result is below */
	bool is_queued; /* in lot->retries */
	bool is_busy;	/* a thread is at it: leave marks, do not answer, do not free */
	bool is_interrupted;
	bool is_waiting; /* in lot->waiting */
	bool is_answered;
	int64_t result; /* of a read */
	struct err err;
	TAILQ_ENTRY(parked) by_deadline;
	STAILQ_ENTRY(parked) next; /* in lot->retries or lot->spare */
};

/* ------------------------------------------------------------------ parked.c */

int parking_new(struct parking **out, struct session *s, uint64_t deadline_ms);
int parking_start(struct parking *lot, struct err *err); /* the thread of retries and deadlines */
/* Stops the thread, answers what is left, waits for replies under way. Requests whose wait or
 * buffer the tree still has are freed when it gives them back. */
void parking_close(struct parking *lot);
size_t parking_count(struct parking *lot);

struct parked *parked_get(struct parking *lot); /* NULL: no memory */
void parked_put(struct parked *p);		/* neither waiting nor lent; NULL is fine */
/* Brackets a call that may say "later": before it, and after it has given any other answer. */
void parked_lend(struct parked *p);
void parked_unlend(struct parked *p);
/* After it has said "later": @p belongs to the lot and may already be answered. */
void parked_park(struct parked *p);
/* For tree_read. */
void parked_read_done(void *arg, int64_t result, const struct err *err);

/* ------------------------------------------------------------------ ops.c */

extern const struct fuse_lowlevel_ops ops_table;
/* Carries @p's call out and replies. True: it must wait and @p was parked; false: @p is free for
 * another use. */
bool ops_attempt(struct session *s, struct parked *p);
/* Starts a call on the thread that reads /dev/fuse. */
void ops_start(const struct call *call);
/* Replies to a call that failed with @code; see the comment there for what the kernel gets. */
void ops_fail(struct session *s, const struct call *call, int code, const struct err *err);
void ops_count(struct session *s);
void ops_to_stat(const struct session *s, const struct attr *a, struct stat *st);
void ops_to_entry(const struct session *s, const struct attr *a, struct fuse_entry_param *e);
/* Takes a struct for the next request; NULL: none, and the call has failed. */
struct parked *ops_take(const struct call *call);
/* Carries out what was taken. */
void ops_go(struct parked *p);

/* ------------------------------------------------------------------ change.c, change_data.c
 * Only for sessions with an upper. */

void change_add_ops(struct fuse_lowlevel_ops *ops);
void change_add_data_ops(struct fuse_lowlevel_ops *ops);
int change_attempt(struct session *s, struct parked *p, struct err *err);
int change_data_attempt(struct session *s, struct parked *p, struct err *err);
/* Begins a call. @text and @value are copied. */
void change_start(const struct call *call, const char *text, const void *value, size_t n);
/* What the kernel gets for @code. */
int change_errno(enum call_op op, int code);
/* Times and links as the upper knows them. */
void change_stat(const struct session *s, const struct attr *a, struct stat *st);
/* The kernel is about to be told of an inode, or was not. */
void change_seen(struct session *s, uint64_t id, uint64_t dir, const char *name, size_t len);
void change_unseen(struct session *s, uint64_t id, uint64_t n);

/* ------------------------------------------------------------------ syncer.c */

/* Threads that wait for the disk. */
struct syncer;
int syncer_new(struct syncer **out, struct session *s);
/* Syncs @id, or only names and attributes, and replies. */
void syncer_add(struct syncer *y, fuse_req_t req, uint64_t id);
void syncer_free(struct syncer *y); /* when all is done */

/* ------------------------------------------------------------------ read.c */

/* A READ that ended with EIO, to be remembered for a moment; see read.c. */
struct failed_read {
	uint64_t id, off, end, at_ns;
};
#define N_FAILED_READS 16

void read_failed(struct session *s, const struct call *call);
void read_op(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void lseek_op(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);
int read_attempt(struct session *s, struct parked *p, struct err *err);
/* Replies with what tree_read gave. */
void read_reply(struct session *s, const struct call *call, const char *buf, int64_t result,
		const struct err *err);
int lseek_attempt(struct session *s, struct parked *p, struct err *err);

/* ------------------------------------------------------------------ init.c */

struct init {
	bool wants_passthrough;			  /* given by caller */
	uint64_t unique;			  /* the request that is to be completed */
	/* by the kernel */
	bool offers_parallel, offers_passthrough, offers_killpriv;
	bool has_passthrough;			  /* both sides agreed */
	bool is_writable;			  /* given by caller */
	bool kills_suid; /* the request at hand: setuid and setgid are to be taken away */
};

void init_op(void *userdata, struct fuse_conn_info *conn);
/* Looks at every request; remembers INIT, and what libfuse does not hand on of others. */
void init_see(struct init *init, void *request, size_t len);
/* Completes the answer to INIT on its way out; leaves others alone. */
void init_complete(struct init *init, struct iovec *iov, int count);

/* ------------------------------------------------------------------ passthrough.c */

struct open_inode;
#define OPEN_BUCKETS 256

struct passthrough {
	atomic_bool is_broken; /* the host refused a backing file: no more of them */
	pthread_mutex_t lock;
	/* guarded by lock */
	LIST_HEAD(, open_inode) table[OPEN_BUCKETS];
};

void passthrough_init(struct passthrough *pt);
void passthrough_deinit(struct passthrough *pt);

void open_op(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void opendir_op(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void release_op(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
int open_attempt(struct session *s, struct parked *p, struct err *err);

/* ------------------------------------------------------------------ control.c */

struct control;
int control_new(struct control **out, const char *path, const struct control_row *rows, size_t n,
		void *arg, struct err *err);
int control_start(struct control *c, struct err *err);
void control_free(struct control *c); /* stops the thread, removes the socket */

/* ------------------------------------------------------------------ mounts.c */

/* The parser alone: entries of type fuse.llbfs in the text of a mountinfo file, in its order. */
int mounts_parse(const char *text, size_t len, struct mount_entry **out, size_t *n);
/* The real path of a folder to mount on, in @real. Errors: -EBUSY where a mount of ours is already
 * (which is not touched, since its server may be dead), -ENOENT, -ENOTDIR. */
int mounts_resolve(const char *path, char **real, struct err *err);
/* Takes away what is mounted at @mountpoint (as mountinfo spells it), by umount2 or fusermount3. */
int mounts_unmount(const char *mountpoint, bool is_lazy, struct err *err);

/* ------------------------------------------------------------------ session.c */

#define N_ERRORS 64
#define N_STOP_SIGNALS 3

struct session {
	/* given by caller */
	struct tree *tree;
	struct mount_options options;
	char *mountpoint; /* real path */
	char *fsname;
	/* owned */
	struct fuse_session *fuse;
	struct parking *lot;
	struct parked *spare; /* for the next request; only the reading thread's */
	struct control *control;
	int fd; /* of /dev/fuse, closed by libfuse; -1 before the mount */
	struct init init;
	struct passthrough passthrough;
	struct syncer *syncer; /* NULL: nothing can be written */
	int wake_fd; /* eventfd: something for the reading thread to look at */
	struct sigaction old_actions[N_STOP_SIGNALS];
	bool catches_signals;
	pthread_t probe;
	bool has_probe;
	bool is_mounted;
	bool is_fusermount; /* by fusermount3; else by mount(2) */
	bool is_gone;	    /* unmounted by others, or the connection is cut */
	bool is_ready;	    /* on_ready was called */
	atomic_bool is_root_answered;
	atomic_int data; /* enum data_mode */
	atomic_ullong n_requests, n_reads, n_read_bytes, n_passthrough;
	atomic_ullong last_failed_ns; /* of failed_reads; 0 = none yet */

	pthread_mutex_t lock;
	/* guarded by lock */
	char data_reason[120];
	struct session_error errors[N_ERRORS]; /* a ring */
	uint64_t n_errors; /* ever; the newest is at (n_errors - 1) % N_ERRORS */
	struct failed_read failed_reads[N_FAILED_READS]; /* a ring */
	size_t n_failed_reads;				 /* ever */
	int root_result; /* why the mount never answered; 0 = it did, or may yet */
	struct err root_err;
};

/* Keeps the reason for an error that the kernel gets, and logs it. */
void session_record(struct session *s, int code, const char *what, const char *text);
void session_set_data(struct session *s, enum data_mode data, const char *reason);
/* Tells the thread of session_run that the root's getattr has been answered. */
void session_root_answered(struct session *s);
/* The tree says that there is no root: ends the session with that error. False: it had answered
 * before, and this is an error like any other. */
bool session_root_failed(struct session *s, int code, const struct err *err);
