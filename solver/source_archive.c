/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Images in archive files, read in place: the tar is scanned once for where its members lie, and a
 * remote that reads those ranges of the file takes the place of a registry.
 *
 *	oci-archive	a tar of a layout folder: index.json, blobs/sha256/HEX
 *	docker-archive	what `docker save` writes: manifest.json names a config and layers by path
 *
 * Nothing in a docker archive says a layer's digest, but the config has the digests of the layers
 * as plain tars (diff IDs), and that is what the members are. Newer writers put them, compressed or
 * not, at blobs/sha256/HEX, where the path is the digest of what is stored. A compressed member
 * elsewhere has to be hashed. Either way the layer is checked when it is read. Old writers store a
 * layer that several images share once, as a link from the others.
 *
 * An archive that is compressed as a whole has no members that could be read in place.
 */

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "merge/merge.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

/* An archive of images has a handful per layer. */
#define MEMBERS_MAX 100000
#define LINKS_MAX 8

struct member {
	char *name;
	char *link; /* NULL = a file */
	uint64_t off, size;
	size_t seq; /* of equal names the last counts */
};

struct archive {
	const char *path;
	int fd;
	vec(struct member) members; /* sorted by name, then seq */
	struct err *err;	    /* of the scan */
};

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static void archive_deinit(struct archive *a)
{
	for (size_t i = 0; i < a->members.n; i++) {
		free(a->members.items[i].name);
		free(a->members.items[i].link);
	}
	vec_free(&a->members);
	if (a->fd >= 0)
		close_fd(a->fd);
}

static void archive_deinit_scoped(struct archive *a)
{
	archive_deinit(a);
}

/* ------------------------------------------------------------------ members */

static int on_member(void *arg, const struct tar_member *m)
{
	struct archive *a = arg;
	if (!m->is_file && !m->link)
		return 0;
	if (a->members.n == MEMBERS_MAX)
		return err_set(a->err, -EFBIG, "more than %d members: no archive of images",
			       MEMBERS_MAX);
	struct member *to = vec_push(&a->members);
	if (!to || !(to->name = strdup(m->name)) || (m->link && !(to->link = strdup(m->link))))
		return no_memory(a->err);
	to->off = m->off;
	to->size = m->size;
	to->seq = a->members.n;
	return 0;
}

static int compare_members(const void *a, const void *b)
{
	const struct member *x = a, *y = b;
	int by_name = strcmp(x->name, y->name);
	return by_name ? by_name : x->seq < y->seq ? -1 : 1;
}

/* The last member called @name. */
static const struct member *find_name(const struct archive *a, const char *name)
{
	size_t low = 0, high = a->members.n; /* the first that is greater */
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (strcmp(a->members.items[mid].name, name) <= 0)
			low = mid + 1;
		else
			high = mid;
	}
	const struct member *m = low > 0 ? &a->members.items[low - 1] : NULL;
	return m && strcmp(m->name, name) == 0 ? m : NULL;
}

/* The member that the link of @m leads to. A symlink's target is relative to its folder, a hard
 * link's to the archive; the scan does not say which it is, and the layer's digest would tell if
 * the wrong one were there, too. */
static int follow(const struct archive *a, const struct member *m, const struct member **out,
		  struct err *err)
{
	const char *slash = strrchr(m->name, '/');
	int n_dir = slash ? (int)(slash - m->name) : 0;
	scoped(free) char *joined = str_printf("%.*s/%s", n_dir, m->name, m->link);
	scoped(free) char *near = joined ? path_clean(joined, strlen(joined)) : NULL;
	scoped(free) char *far = path_clean(m->link, strlen(m->link));
	if (!near || !far)
		return no_memory(err);
	*out = find_name(a, near + 1);
	if (!*out || *out == m)
		*out = find_name(a, far + 1);
	return 0;
}

/* The file called @path, through links. */
static int find_member(const struct archive *a, const char *path, const struct member **out,
		       struct err *err)
{
	scoped(free) char *name = path_clean(path, strlen(path));
	if (!name)
		return no_memory(err);
	const struct member *m = find_name(a, name + 1);
	for (int i = 0; m && m->link && i < LINKS_MAX; i++) {
		int r = follow(a, m, &m, err);
		if (r < 0)
			return r;
	}
	if (!m || m->link)
		return err_set(err, -ENOENT, "there is no file %.200s in it", path);
	*out = m;
	return 0;
}

static int read_member(const struct archive *a, const struct member *m, struct strbuf *out,
		       struct err *err)
{
	if (m->size > MANIFEST_MAX)
		return err_set(err, -EFBIG, "%s: %llu bytes are too many", m->name,
			       (unsigned long long)m->size);
	scoped(free) void *bytes = malloc(m->size + 1);
	if (!bytes)
		return no_memory(err);
	int r = pread_full(a->fd, bytes, m->size, m->off);
	if (r < 0)
		return err_set(err, r, "%s: the archive ends early", m->name);
	strbuf_add(out, bytes, m->size);
	return out->failed ? no_memory(err) : 0;
}

/* ------------------------------------------------------------------ the file */

enum packing { PACKING_NONE, PACKING_GZIP, PACKING_ZSTD, PACKING_OTHER };

static enum packing find_packing(const uint8_t *start)
{
	if (start[0] == 0x1f && start[1] == 0x8b)
		return PACKING_GZIP;
	if (le32(start) == 0xfd2fb528)
		return PACKING_ZSTD;
	if (memcmp(start, "BZh", 3) == 0 || memcmp(start,
						   "\xfd"
						   "7zX",
						   4) == 0)
		return PACKING_OTHER;
	return PACKING_NONE;
}

static int refuse_packed(const struct archive *a, struct err *err)
{
	static const char *const unpack[] = {
		[PACKING_GZIP] = "gunzip",
		[PACKING_ZSTD] = "unzstd",
		[PACKING_OTHER] = "xz -d or bzip2 -d",
	};
	uint8_t start[4];
	if (pread_full(a->fd, start, sizeof(start), 0) < 0)
		return err_set(err, -EBADMSG, "no archive: it is too short");
	enum packing packing = find_packing(start);
	if (packing == PACKING_NONE)
		return 0;
	return err_set(err, -ENOTSUP,
		       "the archive is compressed, so it cannot be read in place: decompress it "
		       "first (%s)",
		       unpack[packing]);
}

static int archive_open(struct archive *a, const char *path, struct err *err)
{
	a->path = path;
	a->err = err;
	a->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (a->fd < 0)
		return err_errno(err, "cannot open");
	int r = refuse_packed(a, err);
	if (r == 0)
		r = tar_scan(a->fd, on_member, a, err);
	if (r == 0 && a->members.n > 0)
		qsort(a->members.items, a->members.n, sizeof(*a->members.items), compare_members);
	return r;
}

/* A remote over the same file, still without blobs. */
static int make_remote(const struct archive *a, struct remote **out, struct err *err)
{
	int fd = fcntl(a->fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return err_errno(err, "cannot duplicate a descriptor");
	return remote_archive_new(out, fd, a->path, err);
}

/* "blobs/sha256/HEX" says the digest of what is stored. */
static bool digest_of_path(const char *name, struct digest *out)
{
	char text[DIGEST_TEXT_MAX];
	if (!str_starts(name, "blobs/sha256/") || strlen(name) != 13 + 64)
		return false;
	snprintf(text, sizeof(text), "sha256:%s", name + 13);
	return digest_parse(out, text, NULL) == 0;
}

/* ------------------------------------------------------------------ layouts in a tar */

static int add_blobs(const struct archive *a, struct remote *remote, struct err *err)
{
	for (size_t i = 0; i < a->members.n; i++) {
		const struct member *m;
		struct digest digest;
		if (!digest_of_path(a->members.items[i].name, &digest))
			continue;
		int r = find_member(a, a->members.items[i].name, &m, err);
		if (r < 0)
			return r;
		if (remote_archive_add(remote, &digest, m->off, m->size) < 0)
			return no_memory(err);
	}
	return 0;
}

/* Says what to write instead when the archive is of the other kind. */
static int find_start(const struct archive *a, const char *name, const char *other,
		      const char *scheme, const struct member **out, struct err *err)
{
	int r = find_member(a, name, out, err);
	if (r == -ENOENT && find_name(a, other))
		return err_set(err, -EINVAL, "it has no %s but a %s: say %s://%s", name, other,
			       scheme, a->path);
	return r;
}

static int resolve_oci(struct solver *solver, const char *text, const struct archive *a,
		       const char *tag, struct ref **out, struct err *err)
{
	const struct member *m;
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(image_root_deinit) struct image_root root = {0};
	scoped(manifest_deinit) struct manifest index = {0};
	scoped(remote_unref) struct remote *remote = NULL;
	const struct platform *platform = &solver->options.platform;
	int r = find_start(a, "index.json", "manifest.json", "docker-archive", &m, err);
	if (r == 0)
		r = read_member(a, m, &body, err);
	if (r < 0)
		return err_wrap(err, r, "%s", text);
	r = layout_index_parse(&index, &body, err);
	if (r == 0)
		r = make_remote(a, &remote, err);
	if (r == 0)
		r = add_blobs(a, remote, err);
	if (r == 0)
		r = layout_choose(&root, &index, tag, platform, err);
	const struct origin origin = {.store = solver->options.store, .remote = remote};
	if (r == 0)
		r = origin_read(&origin, &root.desc, true, &root.body, err);
	if (r < 0)
		return err_wrap(err, r, "%s", text);
	return image_from_root(out, text, &origin, &root, platform, err);
}

/* ------------------------------------------------------------------ docker save */

static bool is_same_name(const char *a, const char *b)
{
	struct image_name x = {0}, y = {0};
	scoped(free) char *p = image_name_parse(&x, a, NULL) == 0 ? image_name_text(&x) : NULL;
	scoped(free) char *q = image_name_parse(&y, b, NULL) == 0 ? image_name_text(&y) : NULL;
	image_name_deinit(&x);
	image_name_deinit(&y);
	return p && q && strcmp(p, q) == 0;
}

static int choose_saved(const struct saved_image *images, size_t n, const char *tag,
			const struct saved_image **out, struct err *err)
{
	scoped(strbuf_free) struct strbuf there = {0};
	*out = !tag && n == 1 ? &images[0] : NULL;
	for (size_t i = 0; i < n && !*out; i++) {
		for (size_t k = 0; k < images[i].n_tags && !*out; k++) {
			if (tag && is_same_name(images[i].tags[k], tag))
				*out = &images[i];
			else if (there.len < 300)
				strbuf_printf(&there, "%s%s", there.len ? ", " : "",
					      images[i].tags[k]);
		}
	}
	if (*out)
		return 0;
	if (!tag)
		return err_set(err, -ENOENT, "it has %zu images, name one of %s", n,
			       there.len ? there.data : "them, but none has a name");
	return err_set(err, -ENOENT, "no image \"%s\": there is %s", tag,
		       there.len ? there.data : "none with a name");
}

static int hash_member(const struct archive *a, const struct member *m, struct digest *out,
		       struct err *err)
{
	scoped(hasher_free) struct hasher *hasher = hasher_new();
	size_t room = 1 << 20;
	scoped(free) void *bytes = malloc(room);
	if (!hasher || !bytes)
		return no_memory(err);
	for (uint64_t done = 0; done < m->size;) {
		size_t n = (size_t)MIN((uint64_t)room, m->size - done);
		int r = pread_full(a->fd, bytes, n, m->off + done);
		if (r < 0)
			return err_set(err, r, "%s: the archive ends early", m->name);
		hasher_add(hasher, bytes, n);
		done += n;
	}
	hasher_done(hasher, out);
	return 0;
}

/* A descriptor of what is stored at @path, and a blob of @remote. */
static int load_layer(const struct archive *a, struct remote *remote, const char *path,
		      const struct digest *diff_id, struct desc *out, struct err *err)
{
	static const char *const types[] = {
		[PACKING_NONE] = "application/vnd.docker.image.rootfs.diff.tar",
		[PACKING_GZIP] = "application/vnd.docker.image.rootfs.diff.tar.gzip",
		[PACKING_ZSTD] = "application/vnd.oci.image.layer.v1.tar+zstd",
	};
	const struct member *m;
	int r = find_member(a, path, &m, err);
	if (r < 0)
		return r;
	uint8_t start[4];
	if (m->size < sizeof(start) || pread_full(a->fd, start, sizeof(start), m->off) < 0)
		return err_set(err, -EBADMSG, "layer %s: too short", m->name);
	enum packing packing = find_packing(start);
	if (packing == PACKING_OTHER)
		return err_set(err, -ENOTSUP, "layer %s: neither tar, gzip nor zstd", m->name);
	if (digest_of_path(m->name, &out->digest))
		r = 0;
	else if (packing != PACKING_NONE)
		r = hash_member(a, m, &out->digest, err);
	else
		out->digest = *diff_id;
	if (r < 0)
		return r;
	out->size = m->size;
	out->media_type = strdup(types[packing]);
	if (!out->media_type || remote_archive_add(remote, &out->digest, m->off, m->size) < 0)
		return no_memory(err);
	return 0;
}

/* An image of an archive, while its ref is made. */
struct saved {
	struct image_config config;
	struct desc config_desc;
	struct desc *layers;
	size_t n_layers;
	struct remote *remote;
};

static void saved_deinit(struct saved *s)
{
	for (size_t i = 0; i < s->n_layers; i++)
		desc_deinit(&s->layers[i]);
	free(s->layers);
	image_config_deinit(&s->config);
	desc_deinit(&s->config_desc);
	remote_unref(s->remote);
}

static void saved_deinit_scoped(struct saved *s)
{
	saved_deinit(s);
}

static int load_config(struct saved *s, const struct archive *a, const struct saved_image *image,
		       struct err *err)
{
	scoped(strbuf_free) struct strbuf body = {0};
	const struct member *m;
	int r = find_member(a, image->config, &m, err);
	if (r == 0)
		r = read_member(a, m, &body, err);
	if (r == 0)
		r = image_config_parse(&s->config, body.data, body.len, err);
	if (r < 0)
		return r;
	digest_bytes(&s->config_desc.digest, body.data, body.len);
	s->config_desc.size = body.len;
	struct digest named;
	if (digest_of_path(m->name, &named) && !digest_equal(&named, &s->config_desc.digest))
		return err_set(err, -EBADMSG, "%s does not match its name", m->name);
	if (s->config.n_diff_ids != image->n_layers)
		return err_set(err, -EBADMSG, "%zu layers, but the config has %zu diff IDs",
			       image->n_layers, s->config.n_diff_ids);
	if (remote_archive_add(s->remote, &s->config_desc.digest, m->off, m->size) < 0)
		return no_memory(err);
	return 0;
}

static int load_saved(struct saved *s, const struct archive *a, const struct saved_image *image,
		      struct err *err)
{
	int r = make_remote(a, &s->remote, err);
	if (r == 0)
		r = load_config(s, a, image, err);
	if (r < 0)
		return r;
	s->layers = calloc(image->n_layers + 1, sizeof(*s->layers));
	if (!s->layers)
		return no_memory(err);
	while (s->n_layers < image->n_layers && r == 0) {
		size_t i = s->n_layers++;
		r = load_layer(a, s->remote, image->layers[i], &s->config.diff_ids[i],
			       &s->layers[i], err);
	}
	return r;
}

static int make_saved(struct solver *solver, const char *text, const struct archive *a,
		      const struct saved_image *image, struct ref **out, struct err *err)
{
	scoped(saved_deinit) struct saved s = {0};
	int r = load_saved(&s, a, image, err);
	if (r < 0)
		return r;
	const struct origin origin = {.store = solver->options.store, .remote = s.remote};
	const struct ref_image made = {
		.name = text,
		.origin = &origin,
		.layers = s.layers,
		.diff_ids = s.config.diff_ids,
		.n_layers = s.n_layers,
		.config = &s.config_desc,
		.platform = s.config.has_platform ? &s.config.platform : NULL,
	};
	return ref_image(out, &made, err);
}

static int resolve_saved(struct solver *solver, const char *text, const struct archive *a,
			 const char *tag, struct ref **out, struct err *err)
{
	const struct member *m;
	scoped(strbuf_free) struct strbuf body = {0};
	int r = find_start(a, "manifest.json", "index.json", "oci-archive", &m, err);
	if (r == 0)
		r = read_member(a, m, &body, err);
	if (r < 0)
		return err_wrap(err, r, "%s", text);
	struct saved_image *images;
	size_t n;
	r = saved_images_parse(&images, &n, body.data, body.len, err);
	if (r < 0)
		return err_wrap(err, r, "%s: manifest.json", text);
	const struct saved_image *image;
	r = choose_saved(images, n, tag, &image, err);
	if (r == 0)
		r = make_saved(solver, text, a, image, out, err);
	saved_images_free(images, n);
	return r < 0 ? err_wrap(err, r, "%s", text) : 0;
}

/* ------------------------------------------------------------------ the door */

int source_archive_resolve(struct solver *solver, const char *text, const struct ref_text *what,
			   struct ref **out, struct err *err)
{
	scoped(archive_deinit) struct archive a = {.fd = -1};
	int r = archive_open(&a, what->name, err);
	if (r < 0)
		return err_wrap(err, r, "%s", text);
	if (what->form == FORM_OCI_ARCHIVE)
		return resolve_oci(solver, text, &a, what->tag, out, err);
	return resolve_saved(solver, text, &a, what->tag, out, err);
}
