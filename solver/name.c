/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Texts that name a ref, taken apart without a look at the world.
 *
 * Image names, docker's grammar:
 *
 *	[HOST "/"] REPOSITORY [":" TAG] ["@" DIGEST]
 *
 * The first component is a HOST when it has a '.' or ':', is "localhost", or has upper-case letters
 * (which no repository has); else the host is docker.io, where a REPOSITORY of one component lies
 * under library/. Without tag and digest the tag is "latest".
 *
 *	HOST        components [A-Za-z0-9] with inner '-', joined by '.', or [IPv6]; ":" port
 *	REPOSITORY  components [a-z0-9]+ joined by '.', '_', "__" or any number of '-'; joined by '/'
 *	TAG         [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
 *
 * REF, everything that a command takes:
 *
 *	IMAGE  docker-image://IMAGE  docker://IMAGE
 *	./DIR  ../DIR  /DIR  dir://DIR               a/b is always an image
 *	oci-layout://DIR[:TAG][@DIGEST]              ":TAG" at the last ':' that no '/' follows
 *	oci-archive://FILE[:TAG]                     the same
 *	docker-archive://FILE[:NAME:TAG]             at the first ':', since NAME has '/' and ':'
 *	ref://ID                                     or a unique prefix of it
 *	llb://FILE[#VERTEX[:INDEX]]                  at the last '#'; VERTEX may begin with "sha256:"
 */

#include <ctype.h>
#include <limits.h>
#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define TAG_MAX 128
#define REPOSITORY_MAX 255
#define VERTEX_PREFIX_MIN 6

/* ------------------------------------------------------------------ image names */

static bool is_name_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* Length of a separator inside a path component: '.', '_', "__", or dashes. 0 = none. */
static size_t separator(const char *s, const char *end)
{
	size_t n = 0;
	if (s < end && *s == '.')
		return 1;
	while (s + n < end && n < 2 && s[n] == '_')
		n++;
	if (n > 0)
		return n;
	while (s + n < end && s[n] == '-')
		n++;
	return n;
}

/* [a-z0-9]+ (separator [a-z0-9]+)*, components joined by '/'. */
static bool is_repository(const char *s, const char *end)
{
	for (;;) {
		if (s == end || !is_name_char(*s))
			return false;
		while (s < end && is_name_char(*s))
			s++;
		if (s == end)
			return true;
		size_t n = *s == '/' ? 1 : separator(s, end);
		if (n == 0)
			return false;
		s += n;
	}
}

static bool is_port(const char *s, const char *end)
{
	if (s == end)
		return false;
	for (; s < end; s++)
		if (!isdigit((unsigned char)*s))
			return false;
	return true;
}

/* Hostname, IPv4 or [IPv6], with or without port. */
static bool is_host(const char *s, const char *end)
{
	const char *name = s;
	if (s < end && *s == '[') {
		for (s++; s < end && (isxdigit((unsigned char)*s) || *s == ':');)
			s++;
		if (s == end || *s++ != ']' || s - name == 2)
			return false;
	} else {
		for (; s < end && *s != ':'; s++) {
			bool is_edge = s == name || s + 1 == end || s[1] == ':' || s[1] == '.' ||
				       s[-1] == '.';
			if (*s != '.' && !isalnum((unsigned char)*s) && (*s != '-' || is_edge))
				return false;
			if (*s == '.' && is_edge)
				return false;
		}
		if (s == name)
			return false;
	}
	return s == end || (*s == ':' && is_port(s + 1, end));
}

static bool is_tag(const char *s)
{
	size_t n = 0;
	for (; s[n]; n++)
		if (!isalnum((unsigned char)s[n]) && s[n] != '_' &&
		    (n == 0 || (s[n] != '.' && s[n] != '-')))
			return false;
	return n > 0 && n <= TAG_MAX;
}

/* True when what lies before the first '/' names a host. */
static bool is_host_part(const char *s, const char *slash)
{
	bool has_upper = false;
	for (const char *p = s; p < slash; p++) {
		if (*p == '.' || *p == ':')
			return true;
		has_upper = has_upper || isupper((unsigned char)*p);
	}
	return has_upper || (slash - s == 9 && memcmp(s, "localhost", 9) == 0);
}

/* Host and repository out of [@s, @end). */
static int split_repository(struct image_name *out, const char *s, const char *end)
{
	const char *slash = memchr(s, '/', (size_t)(end - s));
	if (slash && is_host_part(s, slash)) {
		size_t n = (size_t)(slash - s);
		bool is_hub = n == 15 && memcmp(s, "index.docker.io", n) == 0;
		out->host = is_hub ? strdup("docker.io") : strndup(s, n);
		s = slash + 1;
	} else {
		out->host = strdup("docker.io");
	}
	if (!out->host)
		return -ENOMEM;
	bool is_short = !memchr(s, '/', (size_t)(end - s));
	const char *prefix = is_short && strcmp(out->host, "docker.io") == 0 ? "library/" : "";
	out->repository = str_printf("%s%.*s", prefix, (int)(end - s), s);
	return out->repository ? 0 : -ENOMEM;
}

static int check_name(const struct image_name *name, const char *text, struct err *err)
{
	const char *r = name->repository;
	if (!is_host(name->host, name->host + strlen(name->host)))
		return err_set(err, -EINVAL, "\"%s\": \"%s\" is no host name", text, name->host);
	for (const char *p = r; *p; p++)
		if (isupper((unsigned char)*p))
			return err_set(err, -EINVAL, "\"%s\": a repository name must be lower case",
				       text);
	if (!is_repository(r, r + strlen(r)))
		return err_set(err, -EINVAL, "\"%s\" is no image name", text);
	if (strlen(r) > REPOSITORY_MAX)
		return err_set(err, -EINVAL, "\"%.80s…\": the name is longer than %d", text,
			       REPOSITORY_MAX);
	if (name->tag && !is_tag(name->tag))
		return err_set(err, -EINVAL, "\"%s\": \"%s\" is no tag", text, name->tag);
	struct digest digest;
	return name->digest ? digest_parse(&digest, name->digest, err) : 0;
}

/* 64 hex digits alone are an ID to docker, never a name. */
static bool is_bare_id(const char *text)
{
	return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64;
}

int image_name_parse(struct image_name *out, const char *text, struct err *err)
{
	scoped(image_name_deinit) struct image_name name = {0};
	if (!*text)
		return err_set(err, -EINVAL, "an image name is empty");
	if (is_bare_id(text))
		return err_set(err, -EINVAL, "\"%s\" is an image ID, not a name", text);
	if (strlen(text) > INT_MAX / 2)
		return err_set(err, -EINVAL, "an image name is too long");

	const char *at = strchr(text, '@');
	const char *end = at ? at : text + strlen(text);
	const char *colon = memrchr(text, ':', (size_t)(end - text));
	if (colon && memchr(colon, '/', (size_t)(end - colon)))
		colon = NULL; /* a port */
	const char *name_end = colon ? colon : end;
	if (at && !(name.digest = strdup(at + 1)))
		return err_set(err, -ENOMEM, "out of memory");
	if (colon)
		name.tag = strndup(colon + 1, (size_t)(end - colon - 1));
	else if (!at)
		name.tag = strdup("latest");
	if ((colon || !at) && !name.tag)
		return err_set(err, -ENOMEM, "out of memory");
	if (split_repository(&name, text, name_end) < 0)
		return err_set(err, -ENOMEM, "out of memory");

	int r = check_name(&name, text, err);
	if (r < 0)
		return r;
	*out = name;
	name = (struct image_name){0};
	return 0;
}

void image_name_deinit(struct image_name *name)
{
	free(name->host);
	free(name->repository);
	free(name->tag);
	free(name->digest);
	*name = (struct image_name){0};
}

char *image_name_text(const struct image_name *name)
{
	return str_printf("%s/%s%s%s%s%s", name->host, name->repository, name->tag ? ":" : "",
			  name->tag ? name->tag : "", name->digest ? "@" : "",
			  name->digest ? name->digest : "");
}

/* ------------------------------------------------------------------ REF */

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static int keep(char **to, const char *s, size_t n, struct err *err)
{
	*to = strndup(s, n);
	return *to ? 0 : no_memory(err);
}

/* "PATH:TAG" at the last ':' that no '/' follows. */
static int split_tag(struct ref_text *out, const char *s, size_t n, struct err *err)
{
	const char *colon = memrchr(s, ':', n);
	if (colon && memchr(colon, '/', (size_t)(s + n - colon)))
		colon = NULL;
	if (colon) {
		int r = keep(&out->tag, colon + 1, (size_t)(s + n - colon - 1), err);
		if (r < 0)
			return r;
		if (!is_tag(out->tag))
			return err_set(err, -EINVAL, "\"%s\" is no tag", out->tag);
		n = (size_t)(colon - s);
	}
	return keep(&out->name, s, n, err);
}

static int parse_layout(struct ref_text *out, const char *s, struct err *err)
{
	/* A folder may have '@' in its name; a digest is told by its algorithm. */
	size_t n = strlen(s);
	const char *at = strrchr(s, '@');
	if (at && strchr(at, ':') && !strchr(at, '/')) {
		struct digest digest;
		int r = digest_parse(&digest, at + 1, err);
		if (r < 0)
			return r;
		r = keep(&out->digest, at + 1, strlen(at + 1), err);
		if (r < 0)
			return r;
		n = (size_t)(at - s);
	}
	return split_tag(out, s, n, err);
}

static int parse_oci_archive(struct ref_text *out, const char *s, struct err *err)
{
	return split_tag(out, s, strlen(s), err);
}

static int parse_docker_archive(struct ref_text *out, const char *s, struct err *err)
{
	size_t n = strcspn(s, ":");
	if (s[n] == ':') {
		struct image_name name = {0};
		int r = image_name_parse(&name, s + n + 1, err);
		if (r < 0)
			return r;
		image_name_deinit(&name);
		r = keep(&out->tag, s + n + 1, strlen(s + n + 1), err);
		if (r < 0)
			return r;
	}
	return keep(&out->name, s, n, err);
}

static int parse_dir(struct ref_text *out, const char *s, struct err *err)
{
	return keep(&out->name, s, strlen(s), err);
}

static int parse_image(struct ref_text *out, const char *s, struct err *err)
{
	struct image_name name = {0};
	int r = image_name_parse(&name, s, err);
	if (r < 0)
		return r;
	image_name_deinit(&name);
	return keep(&out->name, s, strlen(s), err);
}

static int parse_vertex(struct ref_text *out, const char *s, struct err *err)
{
	static const char usage[] = "\"#%s\": want #VERTEX[:INDEX], VERTEX a digest or at least %d "
				    "hex digits of it";
	size_t prefix = str_starts(s, "sha256:") ? 7 : 0;
	size_t n_hex = strspn(s + prefix, "0123456789abcdef");
	const char *end = s + prefix + n_hex;
	if (n_hex < VERTEX_PREFIX_MIN || n_hex > 64 || (*end && *end != ':'))
		return err_set(err, -EINVAL, usage, s, VERTEX_PREFIX_MIN);
	if (*end == ':') {
		uint64_t index;
		if (parse_u64(end + 1, &index) < 0 || index > INT_MAX)
			return err_set(err, -EINVAL, usage, s, VERTEX_PREFIX_MIN);
		out->index = (int)index;
	}
	return keep(&out->vertex, s, (size_t)(end - s), err);
}

static int parse_llb(struct ref_text *out, const char *s, struct err *err)
{
	const char *hash = strrchr(s, '#');
	if (hash) {
		int r = parse_vertex(out, hash + 1, err);
		if (r < 0)
			return r;
	}
	return keep(&out->name, s, hash ? (size_t)(hash - s) : strlen(s), err);
}

static int parse_id(struct ref_text *out, const char *s, struct err *err)
{
	const char *hex = str_starts(s, "sha256:") ? s + 7 : s;
	size_t n = strspn(hex, "0123456789abcdef");
	if (n < VERTEX_PREFIX_MIN || n > 64 || hex[n])
		return err_set(err, -EINVAL, "want an ID, or at least its first %d hex digits",
			       VERTEX_PREFIX_MIN);
	return keep(&out->name, hex, n, err);
}

static const struct {
	const char *scheme;
	enum ref_form form;
	int (*parse)(struct ref_text *out, const char *s, struct err *err);
} schemes[] = {
	{"docker-image", FORM_IMAGE, parse_image},
	{"docker", FORM_IMAGE, parse_image},
	{"oci-layout", FORM_OCI_LAYOUT, parse_layout},
	{"oci-archive", FORM_OCI_ARCHIVE, parse_oci_archive},
	{"docker-archive", FORM_DOCKER_ARCHIVE, parse_docker_archive},
	{"dir", FORM_DIR, parse_dir},
	{"llb", FORM_LLB, parse_llb},
	{"ref", FORM_REF, parse_id},
	{"cache", FORM_OTHER, NULL},
	{"record", FORM_OTHER, NULL},
	{"remote", FORM_OTHER, NULL},
	{"blob", FORM_OTHER, NULL},
};

static int parse_scheme(struct ref_text *out, const char *text, size_t n, struct err *err)
{
	for (size_t i = 0; i < countof(schemes); i++) {
		if (strlen(schemes[i].scheme) != n || memcmp(schemes[i].scheme, text, n) != 0)
			continue;
		out->form = schemes[i].form;
		if (!schemes[i].parse)
			return keep(&out->name, text, n, err);
		int r = schemes[i].parse(out, text + n + 3, err);
		if (r == 0 && !*out->name)
			r = err_set(err, -EINVAL, "names nothing");
		/* An image name says itself what it is. */
		return r < 0 && out->form != FORM_IMAGE ? err_wrap(err, r, "%s", text) : r;
	}
	return err_set(err, -EINVAL, "%.*s:// is no kind of reference", (int)MIN(n, (size_t)40),
		       text);
}

static bool is_path(const char *text)
{
	return text[0] == '/' || str_starts(text, "./") || str_starts(text, "../") ||
	       strcmp(text, ".") == 0 || strcmp(text, "..") == 0;
}

int ref_text_parse(struct ref_text *out, const char *text, struct err *err)
{
	scoped(ref_text_deinit) struct ref_text t = {0};
	const char *colon = strstr(text, "://");
	int r;
	if (is_path(text)) {
		t.form = FORM_DIR;
		r = parse_dir(&t, text, err);
	} else if (colon && colon > text) {
		r = parse_scheme(&t, text, (size_t)(colon - text), err);
	} else {
		t.form = FORM_IMAGE;
		r = parse_image(&t, text, err);
	}
	if (r < 0)
		return r;
	*out = t;
	t = (struct ref_text){0};
	return 0;
}

void ref_text_deinit(struct ref_text *t)
{
	free(t->name);
	free(t->tag);
	free(t->digest);
	free(t->vertex);
	*t = (struct ref_text){0};
}
