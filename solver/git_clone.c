/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Clones and checkouts, in the store's folder git/:
 *
 *	HEX/		a bare clone; HEX is the digest of the address (and of the kind of its objects)
 *	work/RANDOM/	one checkout: tree/ has the files, git/ a repository of its own
 *
 * A clone is as shallow as its commits: each was fetched alone, without history, and is kept by a ref
 * refs/llbfs/keep/SHA, which appears when all of it is there. So a commit is asked for once, and
 * no moved branch or tag can be in the way of another. Servers that do not give single commits are
 * asked for all branches and tags. One process at a time uses a clone, and whoever comes by removes
 * those that nobody used for a month; they do not count into the bound of the store.
 *
 * A checkout has its own index, configuration and submodules, since those of a shared repository
 * would be those of another commit. Its folder is locked while its solver lives: whoever finds one
 * that is not removes it.
 */

#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/git-internal.h"

/* Somebody else may be fetching all of a large repository. */
#define LOCK_WAIT_MS (10 * 60 * 1000)
#define UNUSED_S (30 * 24 * 3600)
#define KEEP "refs/llbfs/keep/"
#define MARK "llbfs" /* of a finished clone; its time is that of the last use */

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ------------------------------------------------------------------ what a solver keeps */

struct git_work {
	char *dir;
	int fd; /* locked */
};
struct git_answer {
	char *remote, *ref;
	struct git_asked asked;
};
struct git_state {
	/* guarded by the solver's lock */
	vec(struct git_work) works;
	vec(struct git_answer) answers;
};

/* All below @path, and itself. What cannot be removed stays. */
static void remove_all(const char *path)
{
	char *const paths[] = {(char *)path, NULL};
	FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	for (FTSENT *e; fts && (e = fts_read(fts));)
		if (e->fts_info == FTS_DP)
			rmdir(e->fts_accpath);
		else if (e->fts_info != FTS_D)
			unlink(e->fts_accpath);
	if (fts)
		fts_close(fts);
}

void git_state_free(struct git_state *state)
{
	if (!state)
		return;
	for (size_t i = 0; i < state->works.n; i++) {
		remove_all(state->works.items[i].dir);
		close_fd(state->works.items[i].fd);
		free(state->works.items[i].dir);
	}
	for (size_t i = 0; i < state->answers.n; i++) {
		free(state->answers.items[i].remote);
		free(state->answers.items[i].ref);
		git_asked_deinit(&state->answers.items[i].asked);
	}
	vec_free(&state->works);
	vec_free(&state->answers);
	free(state);
}

/* With the solver's lock held. NULL = no memory. */
static struct git_state *state_of(struct solver *solver)
{
	if (!solver->git)
		solver->git = calloc(1, sizeof(*solver->git));
	return solver->git;
}

int git_asked_copy(struct git_asked *out, const struct git_asked *in)
{
	*out = (struct git_asked){.ref = strdup(in->ref), .sha = strdup(in->sha)};
	if (in->commit)
		out->commit = strdup(in->commit);
	if (out->ref && out->sha && !in->commit == !out->commit)
		return 0;
	git_asked_deinit(out);
	return -ENOMEM;
}

int git_recall(struct solver *solver, const char *remote, const char *ref, struct git_asked *out)
{
	int r = 0;
	pthread_mutex_lock(&solver->lock);
	struct git_state *state = state_of(solver);
	for (size_t i = 0; state && i < state->answers.n && r == 0; i++) {
		const struct git_answer *a = &state->answers.items[i];
		if (strcmp(a->remote, remote) == 0 && strcmp(a->ref, ref) == 0)
			r = git_asked_copy(out, &a->asked) < 0 ? -ENOMEM : 1;
	}
	pthread_mutex_unlock(&solver->lock);
	return state ? r : -ENOMEM;
}

int git_remember(struct solver *solver, const char *remote, const char *ref,
		 const struct git_asked *asked)
{
	pthread_mutex_lock(&solver->lock);
	struct git_state *state = state_of(solver);
	struct git_answer *a = state ? vec_push(&state->answers) : NULL;
	int r = -ENOMEM;
	if (a) {
		a->remote = strdup(remote);
		a->ref = strdup(ref);
		if (a->remote && a->ref)
			r = git_asked_copy(&a->asked, asked);
		if (r < 0) {
			free(a->remote);
			free(a->ref);
			state->answers.n--;
		}
	}
	pthread_mutex_unlock(&solver->lock);
	return r;
}

/* ------------------------------------------------------------------ folders of checkouts */

/* A descriptor of the folder, locked; -1 when it is in use, or gone. */
static int lock_folder(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && st.st_nlink)
		return fd;
	close_fd(fd);
	return -1;
}

/* Removes the clone @path if nobody used it for long and nobody uses it now. */
static void sweep_clone(struct store *store, const char *path, const char *hex)
{
	scoped(free) char *mark = str_printf("%s/" MARK, path);
	scoped(free) char *lock_name = str_printf("git-%s", hex);
	scoped(close_fd) int lock = -1;
	struct stat st;
	if (!mark || !lock_name || stat(mark, &st) < 0 || time(NULL) - st.st_mtime < UNUSED_S ||
	    store_lock(store, lock_name, 0, &lock, NULL) < 0)
		return;
	/* Perhaps it was used meanwhile. */
	if (stat(mark, &st) == 0 && time(NULL) - st.st_mtime >= UNUSED_S)
		remove_all(path);
}

static void sweep_clones(struct store *store, const char *top)
{
	char *const paths[] = {(char *)top, NULL};
	FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	for (FTSENT *e; fts && (e = fts_read(fts));) {
		if (e->fts_level != 1 || e->fts_info != FTS_D)
			continue;
		if (strlen(e->fts_name) == DIGEST_HEX_MAX - 1)
			sweep_clone(store, e->fts_accpath, e->fts_name);
		fts_set(fts, e, FTS_SKIP);
	}
	if (fts)
		fts_close(fts);
}

/* Removes the checkouts of processes that are gone. */
static void sweep(const char *top)
{
	char *const paths[] = {(char *)top, NULL};
	FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	for (FTSENT *e; fts && (e = fts_read(fts));) {
		if (e->fts_level != 1 || e->fts_info != FTS_D)
			continue;
		int fd = lock_folder(e->fts_accpath);
		if (fd >= 0)
			remove_all(e->fts_accpath);
		close_fd(fd);
		fts_set(fts, e, FTS_SKIP);
	}
	if (fts)
		fts_close(fts);
}

/* A new folder, which is the solver's from now on. @dir is borrowed from it. */
static int new_work(struct solver *solver, const char *top, const char **dir, struct err *err)
{
	scoped(free) char *path = NULL;
	int fd = -1;
	/* A sweeper may take one before it is locked. */
	while (fd < 0) {
		uint64_t id;
		if (getrandom(&id, sizeof(id), 0) != sizeof(id))
			return err_errno(err, "getrandom");
		free(path);
		path = str_printf("%s/%016llx", top, (unsigned long long)id);
		if (!path)
			return no_memory(err);
		if (mkdir(path, 0700) < 0)
			return err_errno(err, "%s", path);
		fd = lock_folder(path);
	}
	pthread_mutex_lock(&solver->lock);
	struct git_state *state = state_of(solver);
	struct git_work *work = state ? vec_push(&state->works) : NULL;
	if (work)
		*work = (struct git_work){.dir = path, .fd = fd};
	pthread_mutex_unlock(&solver->lock);
	if (!work) {
		remove_all(path);
		close_fd(fd);
		return no_memory(err);
	}
	*dir = take(path);
	return 0;
}

/* ------------------------------------------------------------------ bare clones */

struct clone {
	const struct git *git; /* what all commands have */
	const struct git_want *want;
	char *dir, *keep;
};

/* A command on the clone itself. */
static int clone_run(const struct clone *c, const char *const *args, struct strbuf *notes,
		     struct err *err)
{
	struct git git = *c->git;
	git.git_dir = c->dir;
	return git_run(&git, args, NULL, notes, err);
}

/* Makes the clone, or makes good one that was not finished. */
static int clone_init(const struct clone *c, struct err *err)
{
	scoped(free) char *done = str_printf("%s/" MARK, c->dir);
	if (!done)
		return no_memory(err);
	if (access(done, F_OK) == 0)
		return 0;
	bool is_long = strlen(c->want->sha) == 64;
	int r = make_dirs(c->dir, 0700);
	if (r < 0)
		return err_set(err, r, "%s: %s", c->dir, strerror(-r));
	r = clone_run(c,
		      ARGS("init", "--bare", "--quiet", "--template=",
			   is_long ? "--object-format=sha256" : "--object-format=sha1"),
		      NULL, err);
	if (r == 0)
		r = clone_run(c, ARGS("config", "remote.origin.url", c->want->remote), NULL, err);
	if (r < 0)
		return r;
	scoped(close_fd) int fd = open(done, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	return fd < 0 ? err_errno(err, "%s", done) : 0;
}

static bool clone_has(const struct clone *c)
{
	return clone_run(c, ARGS("rev-parse", "--verify", "--quiet", c->keep), NULL, NULL) == 0;
}

/* All branches and tags, from a server that does not give single commits. */
static int fetch_all(const struct clone *c, struct err *err)
{
	scoped(free) char *shallow = str_printf("%s/shallow", c->dir);
	scoped(free) char *commit = str_printf("%s^{commit}", c->want->sha);
	if (!shallow || !commit)
		return no_memory(err);
	const char *const args[] = {"fetch",
				    "--progress",
				    "--force",
				    "--no-tags",
				    "--no-write-fetch-head",
				    access(shallow, F_OK) == 0 ? "--unshallow" : "--no-auto-gc",
				    "--",
				    "origin",
				    "+refs/heads/*:refs/llbfs/heads/*",
				    "+refs/tags/*:refs/llbfs/tags/*",
				    NULL};
	int r = clone_run(c, args, NULL, err);
	if (r < 0)
		return r;
	if (clone_run(c, ARGS("cat-file", "-e", commit), NULL, NULL) < 0)
		return err_set(err, -ENOENT, "the repository does not contain commit %s",
			       c->want->sha);
	return clone_run(c, ARGS("update-ref", c->keep, c->want->sha), NULL, err);
}

static bool has_any(const struct strbuf *text, const char *const *words)
{
	for (; *words; words++)
		if (text->len && strstr(text->data, *words))
			return true;
	return false;
}

/* The commit, alone if that can be had. -ESTALE: the clone is damaged. */
static int clone_fetch(const struct clone *c, struct err *err)
{
	static const char *const refusals[] = {"not our ref", "unadvertised object", "--depth",
					       "shallow",     "exact SHA1",	     NULL};
	static const char *const damage[] = {".lock'",	     "bad object", "missing blob",
					     "missing tree", "corrupt",	   NULL};
	scoped(strbuf_free) struct strbuf notes = {0};
	scoped(free) char *spec = str_printf("%s:%s", c->want->sha, c->keep);
	if (!spec)
		return no_memory(err);
	int r = clone_run(c,
			  ARGS("fetch", "--progress", "--force", "--depth=1", "--no-tags",
			       "--no-write-fetch-head", "--", "origin", spec),
			  &notes, err);
	if (r == -EIO && has_any(&notes, damage))
		return -ESTALE;
	return r == -EIO && has_any(&notes, refusals) ? fetch_all(c, err) : r;
}

/* The lock of the clone is held. */
static int clone_need(const struct clone *c, struct err *err)
{
	scoped(free) char *mark = str_printf("%s/" MARK, c->dir);
	int r = mark ? clone_init(c, err) : no_memory(err);
	if (r < 0)
		return r;
	utimensat(AT_FDCWD, mark, NULL, 0);
	if (clone_has(c))
		return 0;
	if (c->want->is_offline)
		return err_set(err, -ENETUNREACH, "offline, and commit %s was not fetched before",
			       c->want->sha);
	r = clone_fetch(c, err);
	if (r != -ESTALE)
		return r;
	remove_all(c->dir);
	r = clone_init(c, err);
	if (r == 0)
		r = clone_fetch(c, err);
	return r == -ESTALE ? -EIO : r;
}

/* ------------------------------------------------------------------ checkouts */

/* The files without a repository: one that borrows the clone's objects is made for it. */
static int check_out(const struct clone *c, const struct git *git, struct err *err)
{
	scoped(free) char *borrowed = str_printf("%s/objects/info/alternates", git->git_dir);
	scoped(free) char *line = str_printf("%s/objects\n", c->dir);
	scoped(free) char *shallow_from = str_printf("%s/shallow", c->dir);
	scoped(free) char *shallow_to = str_printf("%s/shallow", git->git_dir);
	scoped(free) char *tree = str_printf("%s^{tree}", c->want->sha);
	if (!borrowed || !line || !shallow_from || !shallow_to || !tree)
		return no_memory(err);
	bool is_long = strlen(c->want->sha) == 64;
	struct git init = *git;
	init.work_tree = NULL;
	int r = git_run(&init,
			ARGS("init", "--bare", "--quiet", "--template=",
			     is_long ? "--object-format=sha256" : "--object-format=sha1"),
			NULL, NULL, err);
	if (r == 0)
		r = git_run(&init, ARGS("config", "remote.origin.url", c->want->remote), NULL, NULL,
			    err);
	if (r < 0)
		return r;
	scoped(close_fd) int fd = open(borrowed, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || write_full(fd, line, strlen(line)) < 0)
		return err_errno(err, "%s", borrowed);
	if (link(shallow_from, shallow_to) < 0 && errno != ENOENT)
		return err_errno(err, "%s", shallow_to);
	return git_run(git, ARGS("read-tree", "-v", "--reset", "-u", tree), NULL, NULL, err);
}

/* The refs that BuildKit leaves in a repository that is kept: what was asked for as a branch, and
 * also as a tag, by which name it keeps it; an annotated tag only as what it is. */
static int name_refs(const struct git_want *want, char **first, char **second)
{
	const char *ref = want->ref;
	bool is_full = str_starts(ref, "refs/");
	bool is_kind = str_starts(ref, "heads/") || str_starts(ref, "tags/") ||
		       str_starts(ref, "remotes/");
	*first = *second = NULL;
	if (want->is_commit)
		return 0;
	if (!str_starts(ref, "refs/tags/"))
		*second = str_printf("refs/tags/%s", ref);
	else
		*second = strdup(ref);
	if (!*second)
		return -ENOMEM;
	if (want->is_tag)
		return 0;
	*first = is_full   ? strdup(ref)
		 : is_kind ? str_printf("refs/%s", ref)
			   : str_printf("refs/heads/%s", ref);
	return *first ? 0 : -ENOMEM;
}

/* The address of a folder. */
static char *file_url(const char *dir)
{
	struct strbuf url = {0};
	strbuf_puts(&url, "file://");
	for (const char *p = dir; *p; p++)
		if (*p == '%')
			strbuf_puts(&url, "%25");
		else
			strbuf_putc(&url, *p);
	return strbuf_finish(&url);
}

/* Gets the commit into a repository that is kept. By the file protocol: a local clone would link
 * and copy what lies in the folder. */
static int pull(const struct clone *c, const struct git *git, struct err *err)
{
	scoped(free) char *first = NULL, *second = NULL, *url = file_url(c->dir);
	struct git local = *git;
	local.protocols = "file";
	local.work_tree = NULL;
	if (!url || name_refs(c->want, &first, &second) < 0)
		return no_memory(err);
	scoped(free) char *one = first ? str_printf("%s:%s", c->keep, first) : strdup(c->keep);
	scoped(free) char *two = second ? str_printf("%s:%s", c->keep, second) : NULL;
	if (!one || (second && !two))
		return no_memory(err);
	if (c->want->is_tag && two) { /* only as what it is */
		free(one);
		one = take(two);
	}
	if (two && first && strcmp(first, second) == 0) {
		free(two);
		two = NULL;
	}
	const char *const args[] = {
		"fetch", "--progress", "-u", "--depth=1", "--no-tags", "--no-write-fetch-head",
		"--",	 url,	       one,  two,	  NULL};
	return git_run(&local, args, NULL, NULL, err);
}

/* The files with their repository, in .git. */
static int check_out_whole(const struct clone *c, const struct git *git, struct err *err)
{
	scoped(free) char *commit = str_printf("%s^{commit}", c->want->sha);
	scoped(free) char *remote = git_redact(c->want->remote);
	if (!commit || !remote)
		return no_memory(err);
	bool is_long = strlen(c->want->sha) == 64;
	int r = git_run(git,
			ARGS("init", "--quiet",
			     is_long ? "--object-format=sha256" : "--object-format=sha1"),
			NULL, NULL, err);
	if (r == 0)
		r = git_run(git, ARGS("remote", "add", "--", "origin", remote), NULL, NULL, err);
	if (r == 0)
		r = pull(c, git, err);
	if (r == 0)
		r = git_run(git, ARGS("checkout", "--progress", "--detach", commit, "--"), NULL,
			    NULL, err);
	if (r == 0)
		r = git_run(git, ARGS("reflog", "expire", "--all", "--expire=now"), NULL, NULL,
			    err);
	return r;
}

static int update_submodules(const struct git *git, struct err *err)
{
	scoped(free) char *list = str_printf("%s/.gitmodules", git->work_tree);
	struct stat st;
	if (!list)
		return no_memory(err);
	if (lstat(list, &st) < 0)
		return 0;
	int r = git_run(
		git,
		ARGS("submodule", "update", "--init", "--recursive", "--depth=1", "--progress"),
		NULL, NULL, err);
	return r < 0 ? err_wrap(err, r, "submodules") : 0;
}

static int read_time(const struct clone *c, int64_t *out, struct err *err)
{
	scoped(free) char *commit = str_printf("%s^{commit}", c->want->sha);
	scoped(strbuf_free) struct strbuf text = {0};
	struct git git = *c->git;
	git.git_dir = c->dir;
	if (!commit)
		return no_memory(err);
	int r = git_run(&git, ARGS("log", "-1", "--format=%ct", commit, "--"), &text, NULL, err);
	if (r < 0)
		return r;
	char *end = text.data;
	errno = 0;
	*out = text.len ? strtoll(text.data, &end, 10) : 0;
	/* Times are handed on in ns. */
	if (errno || end == text.data || *end != '\n' || *out < 0 || *out > INT64_MAX / 1000000000)
		return err_set(err, -EBADMSG, "commit %s has no time", c->want->sha);
	return 0;
}

/* With the lock of the clone held. */
static int clone_check_out(const struct clone *c, const char *work, char **dir, int64_t *time_s,
			   struct err *err)
{
	scoped(free) char *tree = str_printf("%s/tree", work);
	bool is_whole = c->want->keep_git_dir && !*c->want->subdir;
	scoped(free) char *git_dir = str_printf(is_whole ? "%s/tree/.git" : "%s/git", work);
	if (!tree || !git_dir)
		return no_memory(err);
	if (mkdir(tree, 0755) < 0)
		return err_errno(err, "%s", tree);
	struct git git = *c->git;
	git.work_tree = tree;
	git.git_dir = git_dir;
	int r = is_whole ? check_out_whole(c, &git, err) : check_out(c, &git, err);
	if (r == 0 && c->want->commit_time)
		r = read_time(c, time_s, err);
	if (r == 0 && !c->want->skip_submodules)
		r = update_submodules(&git, err);
	if (!is_whole)
		remove_all(git_dir);
	if (r == 0)
		*dir = take(tree);
	return r;
}

static int clone_open(struct clone *c, const char *top, const char *hex, struct err *err)
{
	c->dir = str_printf("%s/%s", top, hex);
	c->keep = str_printf(KEEP "%s", c->want->sha);
	return c->dir && c->keep ? 0 : no_memory(err);
}

static void clone_deinit_scoped(struct clone *c)
{
	free(c->dir);
	free(c->keep);
}

int git_checkout(struct solver *solver, const struct git *git, const struct git_want *want,
		 char **dir, int64_t *time_s, struct err *err)
{
	scoped(clone_deinit) struct clone c = {.git = git, .want = want};
	const char *root = store_root(solver->options.store);
	scoped(free) char *real = realpath(root, NULL);
	scoped(free) char *top = real ? str_printf("%s/git", real) : NULL;
	scoped(free) char *works = top ? str_printf("%s/work", top) : NULL;
	scoped(free) char *name = str_printf("%s %zu", want->remote, strlen(want->sha));
	const char *work = NULL;
	struct digest digest;
	char hex[DIGEST_HEX_MAX];
	if (!real)
		return err_errno(err, "%s", root);
	if (!works || !name)
		return no_memory(err);
	int r = make_dirs(works, 0700);
	if (r < 0)
		return err_set(err, r, "%s: %s", works, strerror(-r));
	sweep(works);
	sweep_clones(solver->options.store, top);
	digest_bytes(&digest, name, strlen(name));
	r = clone_open(&c, top, digest_hex(&digest, hex), err);
	if (r == 0)
		r = new_work(solver, works, &work, err);
	scoped(free) char *lock_name = str_printf("git-%s", hex);
	scoped(close_fd) int lock = -1;
	if (r == 0)
		r = lock_name
			    ? store_lock(solver->options.store, lock_name, LOCK_WAIT_MS, &lock, err)
			    : no_memory(err);
	if (r == 0)
		r = clone_need(&c, err);
	return r < 0 ? r : clone_check_out(&c, work, dir, time_s, err);
}
