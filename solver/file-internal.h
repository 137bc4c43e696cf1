/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files share that make and copy files: op_file.c (actions), op_copy.c (copies, of which
 * a local source is one) and source_local.c.
 */

#include "solver/solver-internal.h"

struct file_owner {
	bool is_set;
	uint32_t uid, gid;
};

/* What an action works on. */
struct file_env {
	struct edit *edit;
	struct tree *below;  /* what the edit began on; NULL = nothing, or not known */
	struct tree *source; /* NULL = scratch */
	struct file_owner owner;
	struct timespec now; /* the time of what is made without one */
};

/* Folders that were made on the way. */
struct file_made {
	vec(uint64_t) nodes;
};

struct file_paths {
	vec(char *) items;
};
void file_paths_deinit(struct file_paths *paths);

/* Appends the content of a file, which is not too large for that. */
int file_read(struct tree *t, const struct attr *attr, struct strbuf *out, struct err *err);
/* Puts a time of the wire (ns; -1 = now) into @attr. */
void file_time(const struct file_env *env, int64_t time_ns, struct attr *attr);
/* The folder (0 = not there) and the last name, borrowed, of a real path. */
int file_split(struct file_env *env, const char *path, uint64_t *dir, const char **name,
	       struct err *err);
/* mkdir -p of a real path; with the owner of @env. @made may be NULL. */
int file_make_dirs(struct file_env *env, const char *path, uint32_t mode, int64_t time_ns,
		   struct file_made *made, struct err *err);
void file_restore_times(struct file_env *env, const struct file_made *made, int64_t time_ns);
/* Appends the paths in @t (NULL = nothing) that the absolute @pattern matches, in order. A folder
 * that matches is not looked into. @follow: the last name of the part without wildcards, too. */
int file_wildcards(struct file_paths *out, struct tree *t, const char *pattern, bool follow,
		   struct err *err);
int file_copy(struct file_env *env, const struct llb_action *a, struct err *err);
/* The mode that @text ("u=rwX,go-w", "0644") makes of @mode (file_mode.c). Errors: -EINVAL. */
int file_mode(const char *text, bool is_dir, uint32_t mode, uint32_t *out);

/* Which node of an edit an inode with several names has become: a hash table. */
struct copy_links {
	struct copy_link {
		uint64_t from, to; /* from 0 = free */
	} * slots;
	size_t n, size;
};
/* 0 when there is none. */
uint64_t copy_links_find(const struct copy_links *l, uint64_t from);
int copy_links_add(struct copy_links *l, uint64_t from, uint64_t to); /* -ENOMEM */
void copy_links_clear(struct copy_links *l);

struct copy_item {
	struct attr attr;
	size_t name; /* offset in names */
};

/* A folder of the source that is being copied. */
struct copy_frame {
	struct attr from;
	uint64_t to;  /* folder of the edit; 0 = not made yet */
	bool is_kept; /* was there before */
	bool is_top;
	bool is_wanted; /* itself, not only for what is in it */
	size_t name_off, path_len; /* of its name in the path below the source, and of the path */
	bool *in, *out;		   /* flags of its include and exclude patterns */
	vec(struct copy_item) items;
	struct strbuf names;
	size_t next;
};

/* A tree copied into an edit (op_copy.c). */
struct copy {
	struct file_env *env;
	struct match_patterns *include, *exclude; /* NULL = all, nothing */
	int64_t time_ns;			  /* -1 = the source's */
	bool has_mode;
	uint32_t mode;
	const char *mode_text; /* NULL or "" = none */
	bool always_replace;
	bool is_local; /* a local source: no sockets, and of xattrs only capabilities */
	/* required paths, and which were met; @prefix is the source's path before each */
	char *const *required;
	size_t n_required;
	uint8_t *met;
	const char *prefix;
	struct copy_links links; /* of inodes with several names */
	vec(struct copy_frame) frames;
	struct strbuf path; /* below the source */
};
/* Copies @from of env->source to @name in @dir, or, when @name is "", what is in it into @dir. */
int copy_run(struct copy *c, const struct attr *from, uint64_t dir, const char *name,
	     struct err *err);
void copy_deinit(struct copy *c);

/* Appends the content of the file by which a local source tells of what it does not have: of all of
 * @tree, which was made of the host folder @folder (local_stats.c). */
#define LOCAL_STATS_NAME ".fsutil-metadata"
int local_stats(struct strbuf *out, struct tree *tree, struct tree *folder, struct err *err);
