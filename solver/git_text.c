/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Texts of git: addresses of repositories as definitions have them, what `git ls-remote` prints, and
 * which line of its standard error a person wants to read. Nothing here runs anything.
 */

#include "blobstore/base.h"
#include "solver/git-internal.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

bool git_is_commit(const char *text, size_t n)
{
	return (n == 40 || n == 64) && strspn(text, "0123456789abcdef") >= n;
}

/* ------------------------------------------------------------------ addresses */

#define ALNUM "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

bool git_is_scp(const char *text)
{
	size_t user = strspn(text, ALNUM "_-");
	if (user == 0 || text[user] != '@' || text[0] == '-')
		return false;
	const char *host = text + user + 1;
	size_t n = strspn(host, ALNUM ".-");
	return n > 0 && host[0] != '-' && host[n] == ':' && !str_starts(host + n, "://");
}

char *git_remote(const char *text)
{
	static const char *const transports[] = {"http://", "https://", "git://", "ssh://"};
	for (size_t i = 0; i < countof(transports); i++)
		if (str_starts(text, transports[i]))
			return strdup(text);
	return git_is_scp(text) ? strdup(text) : str_printf("https://%s", text);
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %xx in place. False when something else follows a %, or a NUL. */
static bool decode(char *text)
{
	char *to = text;
	for (const char *p = text; *p; p++) {
		int value = (uint8_t)*p;
		if (*p == '%') {
			int hi = hex_value(p[1]), lo = hi < 0 ? -1 : hex_value(p[2]);
			if (lo < 0)
				return false;
			value = hi << 4 | lo;
			p += 2;
		}
		if (!value)
			return false;
		*to++ = (char)value;
	}
	*to = 0;
	return true;
}

int git_url_parse(struct git_url *out, const char *text, struct err *err)
{
	const char *hash = strchr(text, '#');
	scoped(free) char *address = hash ? strndup(text, (size_t)(hash - text)) : strdup(text);
	scoped(free) char *fragment = strdup(hash ? hash + 1 : "");
	*out = (struct git_url){0};
	if (!address || !fragment)
		return no_memory(err);
	out->remote = git_remote(address);
	if (out->remote && !git_is_scp(out->remote) && !decode(fragment)) {
		git_url_deinit(out);
		return err_set(err, -EBADMSG, "\"%.80s\" is not percent-encoded", fragment);
	}
	size_t n = strcspn(fragment, ":");
	out->ref = strndup(fragment, n);
	out->subdir = strdup(fragment[n] ? fragment + n + 1 : "");
	if (out->remote && out->ref && out->subdir)
		return 0;
	git_url_deinit(out);
	return no_memory(err);
}

void git_url_deinit(struct git_url *url)
{
	free(url->remote);
	free(url->ref);
	free(url->subdir);
	*url = (struct git_url){0};
}

char *git_host(const char *remote)
{
	const char *host = strstr(remote, "://");
	if (!host || git_is_scp(remote))
		return strdup("");
	host += 3;
	size_t n = strcspn(host, "/?#");
	for (size_t i = n; i-- > 0;)
		if (host[i] == '@')
			return strndup(host + i + 1, n - i - 1);
	return strndup(host, n);
}

char *git_redact(const char *text)
{
	struct strbuf out = {0};
	const char *p = text;
	for (const char *scheme; (scheme = strstr(p, "://")); p = scheme) {
		scheme += 3;
		strbuf_add(&out, p, (size_t)(scheme - p));
		size_t n = strcspn(scheme, "/ '\"\t\n");
		for (size_t i = n; i-- > 0;)
			if (scheme[i] == '@') {
				scheme += i + 1;
				break;
			}
	}
	strbuf_puts(&out, p);
	return strbuf_finish(&out);
}

/* ------------------------------------------------------------------ refs */

void git_asked_deinit(struct git_asked *asked)
{
	free(asked->ref);
	free(asked->sha);
	free(asked->commit);
	*asked = (struct git_asked){0};
}

/* One line: "ref: NAME\tHEAD", or "SHA\tNAME". */
struct line {
	const char *left, *name;
	size_t n_left, n_name;
};

static bool next_line(const char **text, struct line *out)
{
	while (**text) {
		const char *line = *text;
		size_t n = strcspn(line, "\n");
		*text = line + n + (line[n] == '\n');
		const char *tab = memchr(line, '\t', n);
		if (!tab)
			continue;
		size_t left = (size_t)(tab - line);
		*out = (struct line){line, tab + 1, left, n - left - 1};
		return true;
	}
	return false;
}

static bool is_name(const struct line *line, const char *name)
{
	return strlen(name) == line->n_name && memcmp(name, line->name, line->n_name) == 0;
}

/* The sha beside @name; NULL when it is not there. */
static char *find_name(const char *text, const char *name)
{
	struct line line;
	while (next_line(&text, &line))
		if (is_name(&line, name) && git_is_commit(line.left, line.n_left))
			return strndup(line.left, line.n_left);
	return NULL;
}

/* What HEAD is a name for, without refs/heads/. NULL when it is none. */
static char *find_head(const char *text)
{
	static const char prefix[] = "ref: refs/heads/";
	size_t n = sizeof(prefix) - 1;
	struct line line;
	while (next_line(&text, &line))
		if (is_name(&line, "HEAD") && line.n_left > n && str_starts(line.left, prefix))
			return strndup(line.left + n, line.n_left - n);
	return NULL;
}

/* Which of refs/X, refs/heads/X and refs/tags/X there is, in this order. */
static int find_ref(struct git_asked *out, const char *text, const char *ref)
{
	static const char *const kinds[] = {"refs/", "refs/heads/", "refs/tags/"};
	for (size_t i = 0; i < countof(kinds) && !out->sha; i++) {
		const char *rest = str_starts(ref, kinds[i]) ? ref + strlen(kinds[i]) : ref;
		free(out->ref);
		out->ref = str_printf("%s%s", kinds[i], rest);
		if (!out->ref)
			return -ENOMEM;
		out->sha = find_name(text, out->ref);
	}
	if (!out->sha)
		return -ENOENT;
	scoped(free) char *peeled = str_printf("%s^{}", out->ref);
	if (!peeled)
		return -ENOMEM;
	if (str_starts(out->ref, "refs/tags/"))
		out->commit = find_name(text, peeled);
	return 0;
}

int git_refs_find(struct git_asked *out, const char *text, const char *ref, struct err *err)
{
	int r = 0;
	*out = (struct git_asked){0};
	if (*ref) {
		r = find_ref(out, text, ref);
	} else {
		scoped(free) char *head = find_head(text);
		out->sha = head ? find_name(text, "HEAD") : NULL;
		out->ref = head ? str_printf("refs/heads/%s", head) : NULL;
		r = out->sha && out->ref ? 0 : -ENOENT;
	}
	if (r == 0)
		return 0;
	git_asked_deinit(out);
	if (r != -ENOENT)
		return no_memory(err);
	return *ref ? err_set(err, r, "the repository does not contain ref %.200s", ref)
		    : err_set(err, r, "the repository has no default branch");
}

/* ------------------------------------------------------------------ errors */

/* Progress is overwritten by what follows a carriage return: a line, too. */
static char *line_at(const char *at)
{
	return strndup(at, strcspn(at, "\r\n"));
}

/* The last line that begins so and is not empty. */
static const char *last_line(const char *text, const char *prefix)
{
	const char *found = NULL;
	for (const char *p = text; *p; p += strcspn(p, "\r\n"), p += *p != 0)
		if (str_starts(p, prefix) && !strchr("\r\n", *p))
			found = p;
	return found;
}

char *git_reason(const char *text)
{
	/* ssh says why before git says that it cannot read. */
	static const char cannot_read[] = "fatal: Could not read from remote repository";
	const char *fatal = last_line(text, "fatal: ");
	const char *error = last_line(text, "error: ");
	scoped(free) char *line = NULL, *next = NULL;
	if (fatal && str_starts(fatal, cannot_read) && fatal > text) {
		const char *before = fatal - 1;
		while (before > text && !strchr("\r\n", before[-1]))
			before--;
		line = line_at(before);
	} else if (fatal && fatal[strcspn(fatal, "\r\n") - 1] == ':') {
		const char *more = fatal + strcspn(fatal, "\r\n");
		line = line_at(fatal);
		next = line_at(more + (*more != 0));
	} else {
		const char *at = fatal ? fatal : error ? error : last_line(text, "");
		line = line_at(at ? at : "");
	}
	const char *shown = line ? line : "";
	if (str_starts(shown, "fatal: ") || str_starts(shown, "error: "))
		shown += 7;
	scoped(free) char *whole =
		str_printf("%s%s%s", shown, next && *next ? " " : "", next ? next : "");
	char *clean = whole ? git_redact(whole) : NULL;
	for (char *p = clean; p && *p; p++)
		if ((uint8_t)*p < 0x20 || *p == 0x7f)
			*p = '?';
	return clean;
}

int git_errno(const char *text)
{
	static const struct {
		const char *words;
		int code;
	} rows[] = {
		{"Connection refused", -ECONNREFUSED},
		{"Failed to connect", -ECONNREFUSED},
		{"Could not resolve host", -EHOSTUNREACH},
		{"unable to look up", -EHOSTUNREACH},
		{"Name or service not known", -EHOSTUNREACH},
		{"unreachable", -EHOSTUNREACH},
		{"timed out", -ETIMEDOUT},
		{"Authentication failed", -EACCES},
		{"could not read Username", -EACCES},
		{"could not read Password", -EACCES},
		{"Permission denied (", -EACCES},
		{"Host key verification failed", -EACCES},
		{"The requested URL returned error: 403", -EACCES},
	};
	for (size_t i = 0; i < countof(rows); i++)
		if (strstr(text, rows[i].words))
			return rows[i].code;
	return -EIO;
}
