/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Git sources: git://host/repository#ref:subdir, with the address in git.fullurl.
 *
 * What a ref means is asked once a command (`git ls-remote`); of a commit nothing is asked. The
 * result is a copy, in memory, of the names and metadata of a checkout; content stays in the
 * checkout's files (git_clone.c), owned by 0:0. Files are as git writes them under umask 022; of
 * submodules, which come along unless they are not wanted, their ".git" is left out, since it names
 * a folder of this host; it stays where the repository is kept.
 *
 * Secrets are as in BuildKit: a header, or a token that becomes one, under the name in the
 * definition, with ".host" after it first.
 */

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/file-internal.h"
#include "solver/git-internal.h"
#include "solver/solver.h"

#define SCHEME "git://"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static bool attr_is(const struct vertex *v, const char *key, const char *value)
{
	const char *is = llb_source_attr(&v->op, key);
	return is && strcmp(is, value) == 0;
}

/* ------------------------------------------------------------------ what is wanted */

static int check_supported(const struct vertex *v, struct err *err)
{
	static const char *const keys[] = {
		"git.bundle",
		"git.checkoutbundle",
		"git.sig.pubkey",
		"git.sig.rejectexpired",
		"git.sig.requiresignedtag",
		"git.sig.ignoresignedtag",
	};
	for (size_t i = 0; i < countof(keys); i++)
		if (llb_source_attr(&v->op, keys[i]))
			return err_set(err, -ENOTSUP, "%s is not supported", keys[i]);
	return 0;
}

/* What ends up in arguments of git must not look like an option or be more than a line. */
static int check_text(const char *what, const char *text, struct err *err)
{
	if (text[0] == '-')
		return err_set(err, -EINVAL, "invalid git %s \"%.80s\"", what, text);
	for (const char *p = text; *p; p++)
		if ((uint8_t)*p < 0x20 || *p == 0x7f)
			return err_set(err, -EINVAL, "invalid git %s: has control characters",
				       what);
	return 0;
}

/* No options, and nothing that means more than one ref to git. */
static int check_ref(const char *ref, struct err *err)
{
	int r = check_text("ref", ref, err);
	if (r == 0 && strpbrk(ref, " ~^:?*[\\"))
		r = err_set(err, -EINVAL, "invalid git ref \"%.80s\"", ref);
	return r;
}

static int parse_url(struct git_url *out, const struct vertex *v, struct err *err)
{
	int r = git_url_parse(out, v->op.source.identifier + strlen(SCHEME), err);
	const char *full = llb_source_attr(&v->op, "git.fullurl");
	if (r < 0)
		return r;
	if (full) {
		free(out->remote);
		out->remote = git_remote(full);
		if (!out->remote)
			r = no_memory(err);
	}
	if (r == 0)
		r = check_text("address", out->remote, err);
	if (r == 0)
		r = check_ref(out->ref, err);
	if (r < 0)
		git_url_deinit(out);
	return r;
}

/* The subdir as a clean path, "/" for all; NULL = no memory. As in BuildKit one that leads above
 * the root ends there, but has a name in the key. */
static char *clean_subdir(const char *subdir, bool *is_all)
{
	char *clean = path_clean(subdir, strlen(subdir));
	scoped(free) char *below = str_printf("/x/%s", subdir);
	scoped(free) char *clean_below = below ? path_clean(below, strlen(below)) : NULL;
	if (!clean || !clean_below) {
		free(clean);
		return NULL;
	}
	*is_all = strcmp(clean, "/") == 0 && (subdir[0] == '/' || strcmp(clean_below, "/x") == 0);
	return clean;
}

/* ------------------------------------------------------------------ what a ref means */

static int check_sum(const char *sum, const struct git_asked *asked, struct err *err)
{
	if (str_starts(asked->sha, sum) || (asked->commit && str_starts(asked->commit, sum)))
		return 0;
	return err_set(err, -EBADMSG, "expected checksum to match %.70s, got %s%s%s", sum,
		       asked->sha, asked->commit ? " or " : "", asked->commit ? asked->commit : "");
}

/* @ref is a name for @sha. */
static int set_asked(struct git_asked *out, char *ref, const char *sha, struct err *err)
{
	*out = (struct git_asked){.ref = ref, .sha = strdup(sha)};
	if (out->ref && out->sha)
		return 0;
	git_asked_deinit(out);
	return no_memory(err);
}

/* What the definition itself says. Errors: -ENODATA it does not. */
static int read_asked(struct git_asked *out, const struct vertex *v, const struct git_url *url,
		      struct err *err)
{
	const char *sum = llb_source_attr(&v->op, "git.checksum");
	const char *ref = url->ref;
	sum = sum ? sum : "";
	if (sum[strspn(sum, "0123456789abcdefABCDEF")])
		return err_set(err, -EBADMSG, "git.checksum \"%.80s\" is not hexadecimal", sum);
	if (git_is_commit(ref, strlen(ref))) {
		int r = set_asked(out, strdup(ref), ref, err);
		if (r == 0 && (r = check_sum(sum, out, err)) < 0)
			git_asked_deinit(out);
		return r;
	}
	if (!attr_is(v, "git.fetchbycommit", "true"))
		return err_set(err, -ENODATA,
			       "which commit a branch or tag means is not known without asking");
	if (!git_is_commit(sum, strlen(sum)))
		return err_set(err, -EBADMSG,
			       "git.fetchbycommit wants a whole commit in git.checksum");
	return set_asked(out,
			 !*ref			    ? strdup(sum)
			 : str_starts(ref, "refs/") ? strdup(ref)
						    : str_printf("refs/heads/%s", ref),
			 sum, err);
}

/* ------------------------------------------------------------------ the key */

int git_key(struct strbuf *key, const struct vertex *v, struct err *err)
{
	scoped(git_url_deinit) struct git_url url = {0};
	struct git_asked own = {0}, *asked = v->asked;
	const char *mtime = llb_source_attr(&v->op, "git.mtime");
	bool keeps = attr_is(v, "git.keepgitdir", "true"), is_all;
	int r = parse_url(&url, v, err);
	if (r == 0)
		r = check_supported(v, err);
	if (r == 0 && !asked)
		r = read_asked(asked = &own, v, &url, err);
	scoped(free) char *clean = r == 0 ? clean_subdir(url.subdir, &is_all) : NULL;
	if (r == 0 && !clean)
		r = no_memory(err);
	if (r == 0) {
		strbuf_puts(key, asked->commit && !keeps ? asked->commit : asked->sha);
		if (keeps)
			strbuf_printf(key, ".git#%s", asked->ref);
		if (!is_all)
			strbuf_printf(key, ":%s", url.subdir);
		if (attr_is(v, "git.skipsubmodules", "true"))
			strbuf_puts(key, "(skip-submodules)");
		if (mtime && *mtime && strcmp(mtime, "checkout") != 0)
			strbuf_printf(key, "(mtime=%s)", mtime);
	}
	git_asked_deinit(&own);
	return r;
}

/* ------------------------------------------------------------------ running git */

/* What of a command is freed after it. */
struct session {
	struct git git;
	char *header_key, *header;
	int known_hosts;
};

static void session_deinit_scoped(struct session *s)
{
	if (s->header)
		explicit_bzero(s->header, strlen(s->header));
	free(s->header_key);
	free(s->header);
	close_fd(s->known_hosts);
}

static void base64(struct strbuf *out, const uint8_t *bytes, size_t n)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	for (size_t i = 0; i < n; i += 3) {
		uint32_t b = (uint32_t)bytes[i] << 16;
		b |= i + 1 < n ? (uint32_t)bytes[i + 1] << 8 : 0;
		b |= i + 2 < n ? bytes[i + 2] : 0;
		strbuf_putc(out, digits[b >> 18]);
		strbuf_putc(out, digits[b >> 12 & 63]);
		strbuf_putc(out, i + 1 < n ? digits[b >> 6 & 63] : '=');
		strbuf_putc(out, i + 2 < n ? digits[b & 63] : '=');
	}
}

/* The secret @name, for @host first when @has_host: 1 = found. */
static int find_secret(struct strbuf *out, struct solver *solver, const char *name,
		       const char *host, struct err *err)
{
	scoped(free) char *whole = host ? str_printf("%s.%s", name, host) : strdup(name);
	if (!whole)
		return no_memory(err);
	int r = solver_secret(solver, whole, out, err);
	return r == -ENOENT ? 0 : r < 0 ? r : 1;
}

/* The value of Authorization:, if there is a secret for one. */
static int find_header(struct strbuf *out, struct solver *solver, const struct vertex *v,
		       const char *host, struct err *err)
{
	const char *const names[] = {llb_source_attr(&v->op, "git.authheadersecret"),
				     llb_source_attr(&v->op, "git.authtokensecret")};
	for (size_t i = 0; i < 4; i++) {
		scoped(strbuf_free) struct strbuf secret = {0}, pair = {0};
		const char *name = names[i % 2];
		bool is_token = i % 2 == 1;
		int r = name && *name ? find_secret(&secret, solver, name, i < 2 ? host : NULL, err)
				      : 0;
		if (r < 0)
			return r;
		if (r == 0)
			continue;
		strbuf_puts(&pair, is_token ? "x-access-token:" : "");
		strbuf_add(&pair, secret.data, secret.len);
		strbuf_puts(out, is_token ? "basic " : "");
		if (is_token && !pair.failed)
			base64(out, (const uint8_t *)pair.data, pair.len);
		else
			strbuf_add(out, pair.data, pair.len);
		if (secret.failed || pair.failed || out->failed)
			return no_memory(err);
		for (size_t k = 0; k < out->len; k++)
			if ((uint8_t)out->data[k] < 0x20)
				return err_set(err, -EINVAL, "secret %s: more than a line", name);
		return 1;
	}
	return 0;
}

/* The token of one repository of github.com is good for its submodules, too. */
static const char *header_scope(const char *remote)
{
	static const char *const sites[] = {"https://github.com/", "https://www.github.com/"};
	for (size_t i = 0; i < countof(sites); i++)
		if (str_starts(remote, sites[i]))
			return sites[i];
	return remote;
}

static int add_header(struct session *s, struct solver *solver, const struct vertex *v,
		      const char *remote, struct err *err)
{
	scoped(strbuf_free) struct strbuf value = {0};
	scoped(free) char *host = git_host(remote);
	if (!host)
		return no_memory(err);
	int r = find_header(&value, solver, v, host, err);
	if (r <= 0)
		return r;
	s->header_key = str_printf("http.%s.extraheader", header_scope(remote));
	s->header = str_printf("Authorization: %s", value.data);
	explicit_bzero(value.data, value.len);
	if (!s->header_key || !s->header)
		return no_memory(err);
	s->git.config[s->git.n_config].key = s->header_key;
	s->git.config[s->git.n_config++].value = s->header;
	return 0;
}

/* ssh opens it as /proc/PID/fd/N. */
static int add_known_hosts(struct session *s, const char *text, struct err *err)
{
	s->known_hosts = memfd_create("known_hosts", MFD_CLOEXEC);
	if (s->known_hosts < 0 || write_full(s->known_hosts, text, strlen(text)) < 0)
		return err_errno(err, "known_hosts");
	s->git.known_hosts = s->known_hosts;
	return 0;
}

static int open_session(struct session *s, struct solver *solver, const struct vertex *v,
			const char *remote, struct err *err)
{
	const char *known = llb_source_attr(&v->op, "git.knownsshhosts");
	const char *agent = llb_source_attr(&v->op, "git.mountsshsock");
	s->git = (struct git){
		.protocols = "http:https:git:ssh",
		.deadline_ms = store_deadline_ms(solver->options.store),
		.stop = &solver->is_ending,
		.known_hosts = -1,
		.has_agent = agent && *agent,
	};
	int r = add_header(s, solver, v, remote, err);
	if (r == 0 && known && *known)
		r = add_known_hosts(s, known, err);
	return r;
}

/* ------------------------------------------------------------------ asking */

static int ask_remote(struct git_asked *out, struct solver *solver, const struct vertex *v,
		      const struct git_url *url, struct err *err)
{
	scoped(session_deinit) struct session s = {.known_hosts = -1};
	scoped(strbuf_free) struct strbuf text = {0};
	scoped(free) char *shown = git_redact(url->remote);
	scoped(free) char *peeled = str_printf("%s^{}", url->ref);
	if (!peeled || !shown)
		return no_memory(err);
	if (solver->options.offline)
		return err_set(err, -ENETUNREACH,
			       "%s: offline; only a commit needs not be asked "
			       "for",
			       shown);
	int r = open_session(&s, solver, v, url->remote, err);
	const char *const by_ref[] = {"ls-remote", "--", url->remote, url->ref, peeled, NULL};
	const char *const by_head[] = {"ls-remote", "--symref", "--", url->remote, "HEAD", NULL};
	if (r == 0)
		r = git_run(&s.git, *url->ref ? by_ref : by_head, &text, NULL, err);
	if (r == 0)
		r = git_refs_find(out, text.len ? text.data : "", url->ref, err);
	return r < 0 ? err_wrap(err, r, "%s", shown) : 0;
}

/* One command has one answer for a ref. */
static int ask_once(struct git_asked *out, struct solver *solver, const struct vertex *v,
		    const struct git_url *url, struct err *err)
{
	scoped(free) char *what = str_printf("git %s %s", url->remote, url->ref);
	if (!what || solver_enter(solver, what) < 0)
		return no_memory(err);
	int r = git_recall(solver, url->remote, url->ref, out);
	if (r < 0)
		no_memory(err);
	if (r == 0) {
		r = ask_remote(out, solver, v, url, err);
		if (r == 0 && git_remember(solver, url->remote, url->ref, out) < 0) {
			git_asked_deinit(out);
			r = no_memory(err);
		}
	}
	solver_leave(solver, what);
	if (r < 0)
		return r;
	const char *sum = llb_source_attr(&v->op, "git.checksum");
	r = check_sum(sum ? sum : "", out, err);
	if (r < 0)
		git_asked_deinit(out);
	return r;
}

static void asked_free(void *arg)
{
	git_asked_deinit(arg);
	free(arg);
}

static int ask(struct vertex *v, struct solver *solver, struct err *err)
{
	scoped(git_url_deinit) struct git_url url = {0};
	scoped(free) struct git_asked *asked = calloc(1, sizeof(*asked));
	if (!asked)
		return no_memory(err);
	int r = check_supported(v, err);
	if (r == 0)
		r = parse_url(&url, v, err);
	if (r == 0)
		r = read_asked(asked, v, &url, err);
	if (r == -ENODATA)
		r = ask_once(asked, solver, v, &url, err);
	if (r == 0)
		v->asked = take(asked);
	return r;
}

/* ------------------------------------------------------------------ the files */

/* The folder @path, reached by folders only. */
static int find_subdir(struct tree *tree, const char *path, struct attr *out, struct err *err)
{
	int r = tree_getattr(tree, TREE_ROOT, out, NULL, err);
	for (const char *p = path + 1; r == 0 && *p;) {
		size_t n = strcspn(p, "/");
		r = tree_lookup(tree, out->id, p, n, out, NULL, err);
		if (r == -ENOENT)
			return err_set(err, r, "the commit has no folder %s", path);
		if (r == 0 && out->type != NODE_DIR)
			return err_set(err, -ENOTDIR, "%s: %.*s is no folder", path, (int)n, p);
		p += n + (p[n] == '/');
	}
	return r;
}

/* @dir, or @subdir of it, as a tree whose content stays there. */
static int copy_files(struct tree **out, const struct solver *solver, const char *dir,
		      const char *subdir, bool keeps, int64_t time_ns, struct err *err)
{
	static const char *const submodule[] = {"**/.git"};
	scoped(tree_unref) struct tree *folder = NULL;
	scoped(edit_free) struct edit *edit = NULL;
	scoped(match_patterns_free) struct match_patterns *unwanted = NULL;
	struct attr top;
	int r = dirtree_new(&folder, dir, false, err);
	if (r == 0)
		r = find_subdir(folder, subdir, &top, err);
	if (r == 0 && !keeps)
		r = match_patterns_new(&unwanted, submodule, 1, err);
	if (r == 0 && edit_new(&edit, NULL, &solver->now) < 0)
		r = no_memory(err);
	if (r < 0)
		return r;
	struct file_env env = {.edit = edit, .source = folder, .owner = {.is_set = true}};
	struct copy copy = {.env = &env,
			    .exclude = unwanted,
			    .time_ns = time_ns,
			    .prefix = "",
			    .is_local = true};
	r = copy_run(&copy, &top, TREE_ROOT, "", err);
	copy_deinit(&copy);
	return r < 0 ? r : edit_seal(out, &edit, err);
}

/* The name under which BuildKit keeps what was asked for. */
static char *kept_name(const struct vertex *v, const struct git_url *url,
		       const struct git_asked *asked)
{
	if (attr_is(v, "git.fetchbycommit", "true"))
		return strdup(asked->ref);
	if (!*url->ref && str_starts(asked->ref, "refs/heads/"))
		return strdup(asked->ref + strlen("refs/heads/"));
	return strdup(url->ref);
}

static int run(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
	       struct ref **outputs, struct err *err)
{
	scoped(git_url_deinit) struct git_url url = {0};
	scoped(session_deinit) struct session s = {.known_hosts = -1};
	scoped(tree_unref) struct tree *layer = NULL;
	scoped(free) char *dir = NULL, *subdir = NULL, *name = NULL, *shown = NULL;
	const struct git_asked *asked = v->asked;
	bool keeps = attr_is(v, "git.keepgitdir", "true"), is_all;
	int64_t time_s = 0;
	int r = parse_url(&url, v, err);
	if (r == 0)
		r = open_session(&s, solver, v, url.remote, err);
	if (r < 0)
		return r;
	subdir = clean_subdir(url.subdir, &is_all);
	name = kept_name(v, &url, asked);
	shown = git_redact(url.remote);
	if (!subdir || !name || !shown)
		return no_memory(err);
	const struct git_want want = {
		.remote = url.remote,
		.ref = name,
		.sha = asked->sha,
		.subdir = subdir + 1,
		.keep_git_dir = keeps,
		.skip_submodules = attr_is(v, "git.skipsubmodules", "true"),
		.commit_time = attr_is(v, "git.mtime", "commit"),
		.is_tag = asked->commit != NULL,
		.is_commit = git_is_commit(asked->ref, strlen(asked->ref)),
		.is_offline = solver->options.offline,
	};
	r = git_checkout(solver, &s.git, &want, &dir, &time_s, err);
	if (r == 0)
		r = copy_files(&layer, solver, dir, subdir, keeps && !subdir[1],
			       want.commit_time ? time_s * (int64_t)NS_PER_S : -1, err);
	if (r < 0)
		return err_wrap(err, r, "%s", shown);
	return ref_made(&outputs[0], v->op.source.identifier, layer, err);
}

const struct op_ops source_git_op = {
	.run = run, .ask = ask, .asked_free = asked_free, .keys = keys_git};
