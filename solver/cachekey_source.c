/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The cache maps of sources: SHA("buildkit.source.v0:" key), where the key says what the source
 * holds, not where it comes from:
 *
 *	image    1. SHA({"Digest":of the name's document,"OS","Arch",...}), and as soon as the config
 *	         is known 2. the chain ID of its diff IDs: c = d0, then SHA(c " " d1), ... So the same
 *	         layers under another name are found, too. An image of no layers has only the first.
 *	+blob    SHA({"Digest","Filename","Perm","UID","GID"})
 *	http     SHA({"Filename","Perm","UID","GID","Checksum",...})
 *	git      the commit, and what of it is wanted (source_git.c)
 *	local    "session:" name ":" SHA({"SessionID",...}): its map is random:
 *
 * Only what follows from the definition, or from an image that has been resolved, is known here. A
 * file without checksum or a branch is known when it was asked for.
 */

#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/gojson.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static bool attr_is(const struct vertex *v, const char *key, const char *value)
{
	const char *is = llb_source_attr(&v->op, key);
	return is && strcmp(is, value) == 0;
}

int source_number(int64_t *out, const struct vertex *v, const char *key, struct err *err)
{
	const char *text = llb_source_attr(&v->op, key);
	*out = 0;
	if (!text)
		return 0;
	const char *digits = text;
	int base = 0;
	if (digits[0] == '0' && digits[1] && strchr("oObB", digits[1])) {
		base = strchr("oO", digits[1]) ? 8 : 2;
		digits += 2;
	}
	char *end;
	errno = 0;
	long long value = strtoll(digits, &end, base);
	if (errno || end == digits || *end || value < 0 || value > INT32_MAX)
		return err_set(err, -EBADMSG, "%s=%.40s: want a number", key, text);
	*out = value;
	return 0;
}

int keys_add_source(struct vertex_keys *keys, struct strbuf *key, struct err *err)
{
	scoped(strbuf_free) struct strbuf preimage = {0};
	if (key->failed)
		return no_memory(err);
	strbuf_puts(&preimage, "buildkit.source.v0:");
	strbuf_add(&preimage, key->data, key->len);
	bool is_random = str_starts(key->data, "session:");
	strbuf_clear(key);
	return keys_add_map(keys, &preimage, is_random, err);
}

/* The map of the digest of @json. */
static int add_hashed_key(struct vertex_keys *keys, struct strbuf *json, struct err *err)
{
	struct digest digest;
	char text[DIGEST_TEXT_MAX];
	scoped(strbuf_free) struct strbuf key = {0};
	int r = keys_hash(keys, json, &digest, err);
	if (r < 0)
		return r;
	strbuf_puts(&key, digest_text(&digest, text));
	return keys_add_source(keys, &key, err);
}

/* ------------------------------------------------------------------ images */

/* What the name of an image leads to: known from its ref or from the definition. */
static int find_root(struct digest *out, const struct vertex *v, struct err *err)
{
	scoped(image_name_deinit) struct image_name name = {0};
	const struct digest *root = v->outputs ? ref_root(v->outputs[0]) : NULL;
	if (root) {
		*out = *root;
		return 0;
	}
	int r = image_name_parse(&name, source_rest(v), err);
	if (r < 0)
		return r;
	const char *checksum = llb_source_attr(&v->op, "image.checksum");
	const char *text = name.digest ? name.digest : checksum;
	if (!text)
		return err_set(err, -ENODATA,
			       "which image the tag means is not known without asking for it");
	r = digest_parse(out, text, err);
	return r < 0 && !name.digest ? err_wrap(err, r, "image.checksum") : r;
}

static int add_manifest_key(struct vertex_keys *keys, const struct vertex *v,
			    const struct solver *solver, const char *limit_key, struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	struct digest root;
	char text[DIGEST_TEXT_MAX];
	int64_t limit;
	int r = source_number(&limit, v, limit_key, err);
	if (r == 0)
		r = find_root(&root, v, err);
	if (r < 0)
		return r;
	gojson_open(&json, '{');
	gojson_member_text(&json, "Digest", digest_text(&root, text));
	keys_platform(&json, v, solver);
	gojson_opt_i64(&json, "Limit", limit);
	gojson_close(&json, '}');
	return add_hashed_key(keys, &json, err);
}

/* @ref has the layers that are left of a limit. */
static int add_layers_key(struct vertex_keys *keys, struct ref *ref, struct err *err)
{
	const struct ref_layer *layers;
	size_t n = ref_layers(ref, &layers);
	char text[DIGEST_TEXT_MAX], next[DIGEST_TEXT_MAX];
	int r = n ? ref_need_diff_ids(ref, err) : 0;
	if (r < 0 || n == 0)
		return r;
	struct digest chain = layers[0].diff_id;
	for (size_t i = 1; i < n && r == 0; i++) {
		scoped(strbuf_free) struct strbuf link = {0};
		strbuf_printf(&link, "%s %s", digest_text(&chain, text),
			      digest_text(&layers[i].diff_id, next));
		r = keys_hash(keys, &link, &chain, err);
	}
	if (r < 0)
		return r;
	scoped(strbuf_free) struct strbuf key = {0};
	strbuf_puts(&key, digest_text(&chain, text));
	return keys_add_source(keys, &key, err);
}

static int keys_any_image(struct vertex_keys *keys, const struct vertex *v,
			  const struct solver *solver, const char *limit_key, struct err *err)
{
	int r = add_manifest_key(keys, v, solver, limit_key, err);
	if (r < 0)
		return r;
	keys->is_whole = v->outputs != NULL;
	if (!v->outputs)
		return 0;
	/* A config that cannot be fetched is no reason to fail: the first key will do. */
	struct err why = {0};
	r = add_layers_key(keys, v->outputs[0], &why);
	if (r < 0) {
		log_info("the key of the layers is not known: %s", err_text(&why, r));
		keys->is_whole = false;
	}
	return 0;
}

int keys_image(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	       struct err *err)
{
	return keys_any_image(keys, v, solver, "image.layerlimit", err);
}

int keys_layout(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
		struct err *err)
{
	return keys_any_image(keys, v, solver, "oci.layerlimit", err);
}

/* ------------------------------------------------------------------ single files */

/* The members Perm, UID and GID, which stand also when they are 0. */
static int write_owner(struct strbuf *json, const struct vertex *v, struct err *err)
{
	static const char *const members[][2] = {
		{"Perm", "http.perm"},
		{"UID", "http.uid"},
		{"GID", "http.gid"},
	};
	int64_t value;
	for (size_t i = 0; i < countof(members); i++) {
		int r = source_number(&value, v, members[i][1], err);
		if (r < 0)
			return r;
		gojson_member_i64(json, members[i][0], value);
	}
	return 0;
}

int keys_blob(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	      struct err *err)
{
	scoped(image_name_deinit) struct image_name name = {0};
	scoped(strbuf_free) struct strbuf json = {0};
	const char *filename = llb_source_attr(&v->op, "http.filename");
	int r = image_name_parse(&name, source_rest(v), err);
	if (r < 0)
		return r;
	if (!name.digest)
		return err_set(err, -EBADMSG, "a blob without digest");
	gojson_open(&json, '{');
	gojson_member_text(&json, "Digest", name.digest);
	gojson_member_text(&json, "Filename", filename ? filename : "");
	r = write_owner(&json, v, err);
	gojson_close(&json, '}');
	return r < 0 ? r : add_hashed_key(keys, &json, err);
}

/* The headers that are sent, by name. */
static void write_headers(struct strbuf *json, const struct vertex *v)
{
	static const char *const headers[][2] = {
		{"Accept", "http.header.accept"},
		{"User-Agent", "http.header.user-agent"},
	};
	bool is_open = false;
	for (size_t i = 0; i < countof(headers); i++) {
		const char *value = llb_source_attr(&v->op, headers[i][1]);
		if (!value)
			continue;
		if (!is_open) {
			gojson_member(json, "Header");
			gojson_open(json, '[');
			is_open = true;
		}
		gojson_open(json, '{');
		gojson_member_text(json, "Name", headers[i][0]);
		gojson_member_text(json, "Value", value);
		gojson_close(json, '}');
	}
	if (is_open)
		gojson_close(json, ']');
}

int keys_http(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	      struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	const struct http_asked *asked = v->asked;
	const char *checksum = llb_source_attr(&v->op, "http.checksum");
	char text[DIGEST_TEXT_MAX], time[HTTPTEXT_DATE_MAX] = "";
	struct digest digest;
	if (!asked && (!checksum || !*checksum))
		return err_set(err, -ENODATA,
			       "what a download without checksum is, is not known before");
	int r = asked ? 0 : digest_parse(&digest, checksum, err);
	if (r < 0)
		err_wrap(err, r, "http.checksum");
	if (r < 0)
		return r;
	scoped(free) char *name = httptext_filename(llb_source_attr(&v->op, "http.filename"),
						    asked ? asked->content.disposition : NULL,
						    v->op.source.identifier);
	if (!name)
		return no_memory(err);
	if (asked && asked->has_time)
		httptext_date_text(asked->mtime_s, time);
	gojson_open(&json, '{');
	gojson_member_text(&json, "Filename", name);
	r = write_owner(&json, v, err);
	if (r < 0)
		return r;
	gojson_member_text(&json, "Checksum",
			   digest_text(asked ? &asked->content.digest : &digest, text));
	gojson_opt_text(&json, "LastModTime", time);
	gojson_opt_text(&json, "AuthHeaderSecret",
			llb_source_attr(&v->op, "http.authheadersecret"));
	write_headers(&json, v);
	gojson_close(&json, '}');
	return add_hashed_key(keys, &json, err);
}

/* ------------------------------------------------------------------ git */

int keys_git(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	     struct err *err)
{
	scoped(strbuf_free) struct strbuf key = {0};
	int r = git_key(&key, v, err);
	return r < 0 ? r : keys_add_source(keys, &key, err);
}

/* ------------------------------------------------------------------ local */

/* A member that is the list in an attribute, null (or nothing) without one. */
static int write_patterns(struct strbuf *json, const struct vertex *v, const char *member,
			  const char *key, bool is_optional, struct err *err)
{
	const char *text = llb_source_attr(&v->op, key);
	char **texts = NULL;
	size_t n = 0;
	if (!text && !is_optional) {
		gojson_member(json, member);
		gojson_null(json);
	}
	if (!text)
		return 0;
	int r = texts_parse(&texts, &n, text, key, err);
	if (r == 0 && (n || !is_optional))
		gojson_member_texts(json, member, texts, n);
	texts_free(texts, n);
	return r;
}

int keys_local(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
	       struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0}, key = {0};
	const char *session = llb_source_attr(&v->op, "local.session");
	struct digest digest;
	char text[DIGEST_TEXT_MAX];
	gojson_open(&json, '{');
	gojson_member_text(&json, "SessionID", session ? session : solver->session);
	int r = write_patterns(&json, v, "IncludePatterns", "local.includepattern", false, err);
	if (r == 0)
		r = write_patterns(&json, v, "ExcludePatterns", "local.excludepatterns", false,
				   err);
	if (r == 0)
		r = write_patterns(&json, v, "FollowPaths", "local.followpaths", false, err);
	gojson_opt_bool(&json, "MetadataTransfer", attr_is(v, "local.metadatatransfer", "true"));
	if (r == 0)
		r = write_patterns(&json, v, "MetadataExceptions", "local.metadatatransferexclude",
				   true, err);
	gojson_close(&json, '}');
	if (r == 0)
		r = keys_hash(keys, &json, &digest, err);
	if (r < 0)
		return r;
	strbuf_printf(&key, "session:%s:%s", source_rest(v), digest_text(&digest, text));
	return keys_add_source(keys, &key, err);
}

/* ------------------------------------------------------------------ all */

const char *source_rest(const struct vertex *v)
{
	const char *end = strstr(v->op.source.identifier, "://");
	return end ? end + 3 : "";
}

int keys_source(struct vertex_keys *keys, const struct vertex *v, const struct solver *solver,
		struct err *err)
{
	if (v->ops && v->ops->keys)
		return v->ops->keys(keys, v, solver, err);
	return err_set(err, -ENOTSUP, "a source that this program does not know");
}
