/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Images of layout folders: index.json says which manifest has which tag, blobs/sha256 has the
 * rest, and everything is read in place.
 *
 * Tools disagree on what the annotation of a tag holds (the tag alone, or the whole name), on
 * whether an image of several platforms is one entry or many, and list one manifest once per name.
 * layout_choose takes all of it, and guesses nowhere.
 */

#include <fcntl.h>
#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

#define REF_NAME "org.opencontainers.image.ref.name"

/* True when an entry of index.json goes by @tag: tools write the tag alone, or the whole name. */
static bool has_tag(const struct desc *desc, const char *tag)
{
	const char *ref = desc_annotation(desc, REF_NAME);
	const char *colon = ref ? strrchr(ref, ':') : NULL;
	if (!ref)
		return false;
	return strcmp(ref, tag) == 0 ||
	       (colon && !strchr(colon, '/') && strcmp(colon + 1, tag) == 0);
}

static void list_tags(struct strbuf *out, const struct manifest *index)
{
	for (size_t i = 0; i < index->n_entries && out->len < 300; i++) {
		const char *ref = desc_annotation(&index->entries[i].desc, REF_NAME);
		if (!ref)
			continue;
		strbuf_puts(out, out->len ? ", " : "");
		strbuf_puts(out, ref);
	}
}

/* The entries that @tag means; with NULL those without any tag. */
static size_t select_entries(struct index_entry *out, const struct manifest *index, const char *tag)
{
	size_t n = 0;
	for (size_t i = 0; i < index->n_entries; i++) {
		const struct index_entry *e = &index->entries[i];
		if (e->is_attestation)
			continue;
		if (tag ? has_tag(&e->desc, tag) : !desc_annotation(&e->desc, REF_NAME))
			out[n++] = *e; /* borrowed: never deinitialised */
	}
	return n;
}

static size_t select_images(struct index_entry *out, const struct manifest *index)
{
	size_t n = 0;
	for (size_t i = 0; i < index->n_entries; i++)
		if (!index->entries[i].is_attestation)
			out[n++] = index->entries[i];
	return n;
}

/* One image may be listed under several names. */
static bool are_one(const struct index_entry *entries, size_t n)
{
	for (size_t i = 1; i < n; i++)
		if (!digest_equal(&entries[i].desc.digest, &entries[0].desc.digest))
			return false;
	return true;
}

int layout_index_parse(struct manifest *out, const struct strbuf *json, struct err *err)
{
	scoped(manifest_deinit) struct manifest index = {0};
	int r = manifest_parse(&index, json->data, json->len, NULL, err);
	if (r == 0 && index.kind != MANIFEST_INDEX)
		r = err_set(err, -EBADMSG, "no index");
	if (r < 0)
		return err_wrap(err, r, "index.json");
	*out = index;
	index = (struct manifest){0};
	return 0;
}

int layout_choose(struct image_root *out, const struct manifest *index, const char *tag,
		  const struct platform *platform, struct err *err)
{
	scoped(free) struct index_entry *found = calloc(index->n_entries + 1, sizeof(*found));
	if (!found)
		return no_memory(err);
	size_t n;
	if (tag) {
		n = select_entries(found, index, tag);
	} else {
		/* The only one; else the one called latest; else one image for many platforms. */
		n = select_images(found, index);
		if (n > 1 && !are_one(found, n))
			n = select_entries(found, index, "latest");
		if (n == 0)
			n = select_entries(found, index, NULL);
	}
	if (n == 0) {
		scoped(strbuf_free) struct strbuf tags = {0};
		list_tags(&tags, index);
		return err_set(err, -ENOENT, "no image \"%s\": there is %s", tag ? tag : "latest",
			       tags.len ? tags.data : "none with a tag");
	}
	const struct index_entry *entry = &found[0];
	int r = are_one(found, n) ? 0 : manifest_choose(found, n, platform, &entry, err);
	if (r < 0)
		return r;
	out->platform = entry->platform;
	out->has_platform = entry->has_platform;
	return desc_copy(&out->desc, &entry->desc) < 0 ? no_memory(err) : 0;
}

/* Reads @dir/@path whole. */
static int read_layout_file(const char *dir, const char *path, struct strbuf *out, struct err *err)
{
	scoped(free) char *full = str_printf("%s/%s", dir, path);
	if (!full)
		return no_memory(err);
	int r = read_file(AT_FDCWD, full, MANIFEST_MAX, out);
	if (r == 0 && out->failed)
		return no_memory(err);
	return r < 0 ? err_set(err, r, "%s: %s", full, strerror(-r)) : 0;
}

/* The root document by its digest alone: its size is that of its file. */
static int root_by_digest(struct image_root *root, const char *dir, const char *digest,
			  struct err *err)
{
	int r = digest_parse(&root->desc.digest, digest, err);
	if (r < 0)
		return r;
	char hex[DIGEST_HEX_MAX], path[16 + DIGEST_HEX_MAX];
	snprintf(path, sizeof(path), "blobs/sha256/%s", digest_hex(&root->desc.digest, hex));
	r = read_layout_file(dir, path, &root->body, err);
	if (r < 0)
		return r;
	struct digest is;
	digest_bytes(&is, root->body.data, root->body.len);
	if (!digest_equal(&is, &root->desc.digest))
		return err_set(err, -EBADMSG, "%s/%s does not match its name", dir, path);
	return 0;
}

static int root_by_tag(struct image_root *root, const struct origin *origin, const char *dir,
		       const char *tag, const struct platform *platform, struct err *err)
{
	scoped(strbuf_free) struct strbuf json = {0};
	scoped(manifest_deinit) struct manifest index = {0};
	int r = read_layout_file(dir, "index.json", &json, err);
	if (r < 0)
		return r;
	r = layout_index_parse(&index, &json, err);
	if (r < 0)
		return err_wrap(err, r, "%s", dir);
	r = layout_choose(root, &index, tag, platform, err);
	return r < 0 ? r : origin_read(origin, &root->desc, true, &root->body, err);
}

int source_layout_resolve(struct solver *solver, const char *name, const char *dir, const char *tag,
			  const char *digest, const struct image_request *request, struct ref **out,
			  struct err *err)
{
	scoped(remote_unref) struct remote *remote = NULL;
	scoped(image_root_deinit) struct image_root root = {0};
	/* The server of a mount works elsewhere. */
	scoped(free) char *real = realpath(dir, NULL);
	if (!real)
		return err_errno(err, "%s: %s", name, dir);
	int r = remote_layout_new(&remote, real, err);
	if (r < 0)
		return err_wrap(err, r, "%s", name);
	const struct origin origin = {.store = solver->options.store, .remote = remote};
	if (digest)
		r = root_by_digest(&root, real, digest, err);
	else
		r = root_by_tag(&root, &origin, real, tag, request->platform, err);
	if (r < 0)
		return err_wrap(err, r, "%s", name);
	return image_from_root(out, name, &origin, &root, request->platform, err);
}

int source_layout_dir(const char **out, const struct vertex *v, const struct solver *solver,
		      struct err *err)
{
	const char *store = llb_source_attr(&v->op, "oci.store");
	*out = NULL;
	if (!store)
		return err_set(err, -EBADMSG, "an oci-layout source without oci.store");
	for (size_t i = 0; i < solver->options.n_layouts; i++)
		if (strcmp(solver->options.layouts[i].name, store) == 0)
			*out = solver->options.layouts[i].dir;
	if (!*out)
		return err_set(err, -ENOENT,
			       "no folder was given for the layout \"%s\": say "
			       "--oci-layout %s=DIR",
			       store, store);
	return 0;
}

static int run_layout(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
		      struct ref **outputs, struct err *err)
{
	/* The name before tag and digest means nothing: the folder is that of oci.store. */
	const char *identifier = v->op.source.identifier;
	scoped(image_name_deinit) struct image_name name = {0};
	int r = image_name_parse(&name, identifier + strlen("oci-layout://"), err);
	if (r < 0)
		return r;
	const char *dir;
	r = source_layout_dir(&dir, v, solver, err);
	if (r < 0)
		return r;
	const struct image_request request = {.platform = vertex_platform(v, solver)};
	scoped(ref_unref) struct ref *ref = NULL;
	r = source_layout_resolve(solver, identifier, dir, name.tag, name.digest, &request, &ref,
				  err);
	return r < 0 ? r : image_limit(&outputs[0], ref, v, "oci.layerlimit", err);
}

const struct op_ops source_layout_op = {.run = run_layout, .keys = keys_layout};
