/* SPDX-License-Identifier: Apache-2.0 */

/*
 * hash: the digest by which BuildKit's cache knows a path's content, without a build.
 */

#include "tools/tools.h"

/* The whole of scratch is known by the digest of nothing: there is no tree behind it. */
static bool hash_is_nothing(const struct look *l, const char *path)
{
	return ref_kind(l->view.ref) == REF_SCRATCH && strspn(path, "/") == strlen(path);
}

static int hash_print(struct look *l, const struct options *o, const char *path,
		      const struct digest *digest, struct err *err)
{
	scoped(strbuf_free) struct strbuf out = {0};
	char text[DIGEST_TEXT_MAX];

	digest_text(digest, text);
	if (o->format == FORMAT_JSON) {
		strbuf_putc(&out, '{');
		json_pair(&out, "ref", ref_name(l->view.ref));
		json_pair(&out, "path", path);
		json_pair(&out, "digest", text);
		strbuf_puts(&out, "}\n");
	} else {
		strbuf_printf(&out, "%s\n", text);
	}
	return out_flush(&l->app, &out, err);
}

int cmd_hash(struct options *o, struct err *err)
{
	struct digest digest;
	struct look l;
	int r = look_open(&l, o, "hash", 0, 1, err);

	if (r < 0)
		return r;
	const char *path = l.split.n_paths ? l.split.paths[0].text : "/";
	const struct treehash_ask ask = {
		.path = path,
		.follow = o->follow,
		.wildcard = o->wildcard,
		.include = o->include.items,
		.n_include = o->include.n,
		.exclude = o->exclude.items,
		.n_exclude = o->exclude.n,
		.is_upload = ref_kind(l.view.ref) == REF_DIR,
	};
	if (hash_is_nothing(&l, path))
		digest_bytes(&digest, "", 0);
	else
		r = treehash(l.view.tree, &ask, &digest, err);
	if (r == 0)
		r = hash_print(&l, o, path, &digest, err);
	look_close(&l);
	return r;
}
