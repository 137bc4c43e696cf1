/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fs: mounts.
 *
 * Serves any tree to the kernel through libfuse's low-level API. One session is one mount. Requests
 * that can be answered from memory are, on the thread that reads them; everything else is parked
 * and answered when its bytes arrive. No thread here ever waits for the network, and no request
 * outlives its deadline.
 */

#include "blobstore/base.h"
#include "merge/merge.h"

enum data_mode {
	DATA_AUTO = 0, /* decided at the first open, by what the tree holds and what the host allows */
	DATA_NOOPEN, /* the kernel never asks to open: fastest for many small files */
	DATA_PASSTHROUGH, /* large files that are all here are read by the kernel itself */
	DATA_OPEN, /* neither: what live trees get */
};

struct mount_options {
	const char *mountpoint; /* an existing folder */
	const char *fsname; /* shown in /proc/mounts: the ref */
	enum data_mode data;
	bool allow_other, suid, dev;
	bool has_uid, has_gid; /* show everything as owned by uid/gid */
	uint32_t uid, gid;
	uint64_t deadline_ms; /* 0 = 60 s */
	/* The mount can be written, and the tree is this upper's. Borrowed for as long as the session
	 * lives. NULL: it cannot. Then data is DATA_NOOPEN unless DATA_OPEN is asked for. */
	struct upper *upper;
	/* Called once, on the thread of session_run, when getattr of the root has been answered. */
	void (*on_ready)(void *arg);
	/* Chooses for DATA_AUTO, at the first open: true = passthrough. NULL: no-open. */
	bool (*wants_passthrough)(void *arg);
	void *arg;
};

struct session;
/* Mounts. Errors: -ENODEV no FUSE here (and what to do), -EPERM, -ENOENT, -ENOTDIR, -EBUSY. */
int session_new(struct session **out, struct tree *tree, const struct mount_options *options,
		struct err *err);
/* Serves until unmounted, or until SIGTERM, SIGINT or SIGHUP, which unmount. */
int session_run(struct session *s, struct err *err);
/* Answers what is left with an error, unmounts if still mounted. */
void session_free(struct session *s);
define_scoped(struct session *, session_free);

/* What a mount says of itself. */
struct session_status {
	enum data_mode data; /* as decided; DATA_AUTO: nothing was opened yet */
	char data_reason[120];
	uint64_t n_requests; /* from the kernel */
	uint64_t n_reads, n_read_bytes; /* READ requests answered here */
	uint64_t n_passthrough; /* opens given to the kernel */
	uint64_t n_parked; /* requests that wait for something now */
};
void session_status(struct session *s, struct session_status *out);
/* A reason for each EIO that was answered, newest first, at most 64 kept. */
struct session_error {
	int64_t time_s; /* CLOCK_REALTIME */
	int code; /* negative errno that the kernel got */
	char what[48]; /* "read 0x2000000f3 at 131072" */
	char text[504];
};
size_t session_errors(struct session *s, struct session_error *out, size_t max);

/* --- the control socket ---
 * A Unix stream socket: one request line in, one answer out, closed. Rows are given by tools; fs
 * knows what none of them means. */
struct control_row {
	const char *name; /* "status", "stop", … */
	/* Appends the answer. Runs on the control thread. */
	void (*answer)(void *arg, const char *line, struct strbuf *out);
};
/* Listens at @path (removed when the session ends); before session_run. */
int session_control(struct session *s, const char *path, const struct control_row *rows, size_t n,
		    void *arg, struct err *err);
/* The other side: asks and reads the whole answer; at most 10 s. -ECONNREFUSED, -ENOENT: nobody is
 * there. */
int control_ask(const char *path, const char *line, struct strbuf *out, struct err *err);

/* --- mounts of this host --- */
struct mount_entry {
	char *mountpoint; /* unescaped */
	char *source; /* fsname */
	unsigned major, minor; /* device numbers, which name the control socket */
};
/* Every mount of type fuse.llbfs in /proc/self/mountinfo. */
int mounts_list(struct mount_entry **out, size_t *n, struct err *err);
void mounts_free(struct mount_entry *entries, size_t n);
/* Unmounts @mountpoint whether its server lives or not (umount2, else fusermount3). Never hangs on
 * a dead server. Errors: -EINVAL not a mount of llbfs, -EBUSY (unless @is_lazy), -EPERM. */
int mount_clear(const char *mountpoint, bool is_lazy, struct err *err);
