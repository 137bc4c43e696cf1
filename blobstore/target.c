/* SPDX-License-Identifier: Apache-2.0 */

/*
 * target: places that take blobs and manifests. A registry's part is in upload.c, a layout's in
 * target_layout.c; here is what both have in common: what is given is checked before it is sent.
 */

#include "blobstore/net-internal.h"

struct target {
	int n_refs; /* atomic */
	struct registry *registry;
	char *dir; /* of a layout, when there is no registry */
};

int target_registry(struct target **out, struct net *net, const char *host, const char *repository,
		    struct err *err)
{
	scoped(target_unref) struct target *t = calloc(1, sizeof(*t));

	if (!t)
		return err_set(err, -ENOMEM, "no memory");
	t->n_refs = 1;
	int r = registry_new(&t->registry, net, host, repository, err);
	if (r < 0)
		return r;
	*out = take(t);
	return 0;
}

int target_layout(struct target **out, const char *dir, struct err *err)
{
	scoped(target_unref) struct target *t = calloc(1, sizeof(*t));

	if (!t || !(t->dir = strdup(dir)))
		return err_set(err, -ENOMEM, "no memory");
	t->n_refs = 1;
	int r = layout_make(dir, err);
	if (r < 0)
		return r;
	*out = take(t);
	return 0;
}

struct target *target_ref(struct target *t)
{
	__atomic_fetch_add(&t->n_refs, 1, __ATOMIC_RELAXED);
	return t;
}

struct target *target_unref(struct target *t)
{
	if (t && __atomic_sub_fetch(&t->n_refs, 1, __ATOMIC_ACQ_REL) <= 0) {
		registry_unref(t->registry);
		free(t->dir);
		free(t);
	}
	return NULL;
}

int target_put_blob(struct target *t, const struct desc *desc, const struct blob_source *from,
		    struct err *err)
{
	return t->registry ? upload_blob(t->registry, desc, from, err)
			   : layout_put_blob(t->dir, desc, from, err);
}

/* Letters, digits and "._-", as the specification has it; it becomes a part of a URL. */
static bool tag_is_sound(const char *tag)
{
	size_t n = strspn(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");

	return n && n <= 128 && !tag[n] && *tag != '.' && *tag != '-';
}

int target_put_manifest(struct target *t, const struct desc *desc, const void *bytes,
			const char *tag, struct err *err)
{
	struct digest is;

	if (desc->size > MANIFEST_MAX || !desc->media_type)
		return err_set(err, -EINVAL, "no manifest, or larger than one may be");
	digest_bytes(&is, bytes, (size_t)desc->size);
	if (!digest_equal(&is, &desc->digest))
		return err_set(err, -EBADMSG, "a manifest does not match its digest");
	if (t->registry && tag && !tag_is_sound(tag))
		return err_set(err, -EINVAL, "%s: not a tag", tag);
	return t->registry ? upload_manifest(t->registry, desc, bytes, tag, err)
			   : layout_put_manifest(t->dir, desc, bytes, tag, err);
}
