/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of the git source share: texts (git_text.c), running the program (git_run.c),
 * clones and checkouts (git_clone.c), and what a definition says of them (source_git.c).
 */

#include "solver/solver-internal.h"

/* ------------------------------------------------------------------ texts (git_text.c) */

/* host/repository#ref:subdir, as it follows "git://" in an identifier. */
struct git_url {
	char *remote; /* with a transport: https:// where none is given */
	char *ref;    /* "" = the default branch */
	char *subdir; /* as written; "" = all */
};
/* Errors: -EBADMSG. */
int git_url_parse(struct git_url *out, const char *text, struct err *err);
void git_url_deinit(struct git_url *url);
static inline void git_url_deinit_scoped(struct git_url *url)
{
	git_url_deinit(url);
}
/* @text with https:// before it if it names no transport that git is allowed to use. */
char *git_remote(const char *text);
/* user@host:path */
bool git_is_scp(const char *text);
/* host:port of a remote, for names of secrets; "" for user@host:path. */
char *git_host(const char *remote);
/* Without user and password. */
char *git_redact(const char *text);
/* SHA-1, or SHA-256. */
bool git_is_commit(const char *text, size_t n);

/* What a ref means. */
struct git_asked {
	char *ref;    /* "refs/heads/main", or the commit that was asked for */
	char *sha;    /* a commit or an annotated tag */
	char *commit; /* of an annotated tag; NULL = sha is one, or it is not known */
};
void git_asked_deinit(struct git_asked *asked);
/* From what `ls-remote --symref` says. @ref "" = what HEAD is. A branch goes before a tag of the same
 * name. Errors: -ENOENT, -EBADMSG. */
int git_refs_find(struct git_asked *out, const char *text, const char *ref, struct err *err);
/* The line of what git wrote to stderr that tells why it failed; without passwords. */
char *git_reason(const char *text);
/* What kind of failure that is: -EIO when nothing is known of it. */
int git_errno(const char *text);

/* ------------------------------------------------------------------ the program (git_run.c) */

#define GIT_CONFIG_MAX 8
struct git {
	const char *git_dir, *work_tree, *index; /* NULL = none */
	const char *protocols;			 /* that may be used: "https:ssh" */
	uint64_t deadline_ms;			 /* without a byte of output */
	const _Atomic bool *stop;		 /* nobody wants it any more; NULL = never */
	int known_hosts;			 /* descriptor of the file; -1 = any host will do */
	bool has_agent;				 /* the caller's ssh agent may be used */
	struct {
		const char *key, *value;
	} config[GIT_CONFIG_MAX];
	size_t n_config;
};
/* Runs git with @args, which end with NULL. @out (may be NULL) gets its standard output, @notes (may
 * be NULL) what it wrote to standard error.
 * Errors: -ENODEV it is not installed, -ETIMEDOUT, -ECONNREFUSED, -EHOSTUNREACH, -EACCES, -EIO it failed
 * otherwise; with its reason. */
int git_run(const struct git *git, const char *const *args, struct strbuf *out,
	    struct strbuf *notes, struct err *err);

/* ------------------------------------------------------------------ clones (git_clone.c) */

/* What a solver keeps of git sources: answers and checkouts, which live as long as it. */
struct git_state;
void git_state_free(struct git_state *state);

/* What is wanted of a repository. */
struct git_want {
	const char *remote, *ref, *sha; /* ref: as asked for */
	const char *subdir;
	bool keep_git_dir, skip_submodules, commit_time;
	bool is_tag;	/* sha is an annotated tag, as far as is known */
	bool is_commit; /* nothing but the commit was asked for */
	bool is_offline;
};
/* A folder with the files, which stays until @solver ends; *time_s is that of the commit.
 * Errors: those of git_run, -ENETUNREACH, -ENOSPC. */
int git_checkout(struct solver *solver, const struct git *git, const struct git_want *want,
		 char **dir, int64_t *time_s, struct err *err);
/* What was asked before: 1, or 0. -ENOMEM. */
int git_recall(struct solver *solver, const char *remote, const char *ref, struct git_asked *out);
int git_remember(struct solver *solver, const char *remote, const char *ref,
		 const struct git_asked *asked);
int git_asked_copy(struct git_asked *out, const struct git_asked *in);
