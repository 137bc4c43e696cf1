/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Single blobs: docker-image+blob:// (of a registry) and oci-layout+blob:// (of a layout folder),
 * named by their digest. Each is one file with the blob's bytes as they are stored there, called
 * like http.filename or else like its digest. The key follows from the definition, and what was
 * fetched once is not fetched again.
 */

#include <stdio.h>
#include <sys/stat.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* Gets the blob f->digest into the store, and its size into @f. */
typedef int (*fetch_fn)(struct fetched *f, const struct vertex *v, struct solver *solver,
			const struct image_name *name, struct err *err);

static int run_blob(const struct vertex *v, struct solver *solver, fetch_fn fetch,
		    struct ref **outputs, struct err *err)
{
	scoped(image_name_deinit) struct image_name name = {0};
	scoped(fetched_deinit) struct fetched f = {0};
	scoped(close_fd) int lock_fd = -1;
	struct digest digest;
	char hex[DIGEST_HEX_MAX], lock[16 + DIGEST_HEX_MAX];
	int r = image_name_parse(&name, source_rest(v), err);
	if (r == 0 && !name.digest)
		r = err_set(err, -EBADMSG, "a blob without digest");
	if (r == 0)
		r = digest_parse(&digest, name.digest, err);
	if (r < 0)
		return r;
	snprintf(lock, sizeof(lock), "fetch-%s", digest_hex(&digest, hex));
	/* Who waited in vain goes alone: that costs bytes, and is no less right. */
	r = store_lock(solver->options.store, lock, store_deadline_ms(solver->options.store),
		       &lock_fd, err);
	if (r < 0 && r != -EAGAIN)
		return r;
	/* Its key is its digest; nothing else is a blob's. */
	r = 0;
	if (fetched_recall(solver, &digest, &f, NULL) < 0) {
		f.digest = digest;
		r = fetch(&f, v, solver, &name, err);
		if (r == 0)
			r = fetched_keep(solver, &digest, &f, err);
	}
	const char *said = llb_source_attr(&v->op, "http.filename");
	const char *file = said && *said ? said : digest_hex(&digest, hex);
	return r < 0 ? r : source_file(&outputs[0], v, solver, file, &f, 0, err);
}

/* ------------------------------------------------------------------ of a registry */

static int fetch_registry(struct fetched *f, const struct vertex *v, struct solver *solver,
			  const struct image_name *name, struct err *err)
{
	scoped(registry_unref) struct registry *registry = NULL;
	int r = source_image_registry(solver, name, &registry, err);
	if (r == 0 && !registry)
		r = err_set(err, -ENETUNREACH, "not in the store, and there is no network");
	f->size = BLOB_SIZE_UNKNOWN;
	return r < 0 ? r
		     : content_fetch(solver->options.store, registry_remote(registry), &f->digest,
				     &f->size, err);
}

static int run_registry(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
			struct ref **outputs, struct err *err)
{
	return run_blob(v, solver, fetch_registry, outputs, err);
}

const struct op_ops source_image_blob_op = {.run = run_registry, .keys = keys_blob};

/* ------------------------------------------------------------------ of a layout */

static int fetch_layout(struct fetched *f, const struct vertex *v, struct solver *solver,
			const struct image_name *name, struct err *err)
{
	scoped(remote_unref) struct remote *remote = NULL;
	const char *dir;
	char hex[DIGEST_HEX_MAX];
	struct stat st;
	int r = source_layout_dir(&dir, v, solver, err);
	if (r < 0)
		return r;
	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", dir, digest_hex(&f->digest, hex));
	if (!path)
		return err_set(err, -ENOMEM, "out of memory");
	if (stat(path, &st) < 0)
		return err_errno(err, "%s", path);
	f->size = (uint64_t)st.st_size;
	r = remote_layout_new(&remote, dir, err);
	return r < 0 ? r : content_fetch(solver->options.store, remote, &f->digest, &f->size, err);
}

static int run_layout(const struct vertex *v, struct solver *solver, struct ref *const *inputs,
		      struct ref **outputs, struct err *err)
{
	return run_blob(v, solver, fetch_layout, outputs, err);
}

const struct op_ops source_layout_blob_op = {.run = run_layout, .keys = keys_blob};
