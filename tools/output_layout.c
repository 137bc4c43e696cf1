/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An image as an OCI layout: a tar, or a folder that may hold other images already.
 *
 * The tar has its members sorted by name, as containerd writes them, and no times; docker's archive
 * is the same with manifest.json. Blobs stream from where they are into the tar, once each, and are
 * verified as they pass: a wrong one is an error after which nothing of the file is kept.
 *
 * In a folder a blob gets its name when it is whole, and what is there is not written again. The
 * index is read, changed and replaced with index.json.lock held, as BuildKit does, so that two
 * writers lose nothing of each other; an image that had the same name goes out of it. A folder that
 * was not there gets its name at the end.
 */

#include "tools/tools.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 512
#define INDEX_MAX (16u << 20)
#define LOCK_WAIT_S 60
#define LOCK_POLL_MS 50

static const char layout_text[] = "{\"imageLayoutVersion\":\"1.0.0\"}";

/* ------------------------------------------------------------------ members */

/* One blob of the image: bytes that are here, or a layer. */
struct member {
	struct digest digest;
	uint64_t size;
	const struct strbuf *bytes;
	const struct image_layer *layer;
};
struct members {
	vec(struct member) items;
};

static int by_digest(const void *a, const void *b)
{
	return memcmp(&((const struct member *)a)->digest, &((const struct member *)b)->digest,
		      sizeof(struct digest));
}

static int add_member(struct members *m, const struct desc *desc, const struct strbuf *bytes,
		      const struct image_layer *layer)
{
	struct member *slot = vec_push(&m->items);

	if (!slot)
		return -ENOMEM;
	*slot = (struct member){desc->digest, desc->size, bytes, layer};
	return 0;
}

/* Each blob once, sorted. */
static int list_members(struct members *m, const struct image *image)
{
	size_t n = 0;
	int r = add_member(m, &image->config_desc, &image->config, NULL);

	if (r == 0)
		r = add_member(m, &image->manifest_desc, &image->manifest, NULL);
	for (size_t i = 0; i < image->n_layers && r == 0; i++)
		r = add_member(m, &image->layers[i].desc, NULL, &image->layers[i]);
	if (r < 0)
		return r;
	qsort(m->items.items, m->items.n, sizeof(*m->items.items), by_digest);
	for (size_t i = 0; i < m->items.n; i++)
		if (n == 0 || by_digest(&m->items.items[n - 1], &m->items.items[i]) != 0)
			m->items.items[n++] = m->items.items[i];
	m->items.n = n;
	return 0;
}

struct target_fd {
	int fd;
	struct err *err;
};

static int write_some(void *arg, const void *bytes, size_t n)
{
	struct target_fd *t = arg;
	int r = write_full(t->fd, bytes, n);

	return r < 0 ? err_set(t->err, r, "cannot write: %s", strerror(-r)) : 0;
}

static int write_member(const struct member *m, struct store *store, int fd, struct err *err)
{
	struct target_fd to = {fd, err};

	return m->layer ? image_layer_copy(m->layer, store, write_some, &to, err)
			: write_some(&to, m->bytes->data, m->bytes->len);
}

/* ------------------------------------------------------------------ documents */

/* The descriptors, one a name. A folder that is looked into without a tag is searched for
 * "latest". */
static void put_descs(const struct output_image *image, struct strbuf *out)
{
	const char *tag = image->is_folder ? "latest" : NULL;

	for (size_t i = 0; i < MAX(image->names.n, (size_t)1); i++) {
		if (i > 0)
			strbuf_putc(out, ',');
		output_image_desc(image, image->names.n ? &image->names.items[i] : NULL, tag, out);
	}
}

static void put_index(const struct output_image *image, struct strbuf *out)
{
	strbuf_puts(out, "{\"schemaVersion\":2,\"mediaType\":"
			 "\"application/vnd.oci.image.index.v1+json\",\"manifests\":[");
	put_descs(image, out);
	strbuf_puts(out, "]}");
}

/* As people write the name of an image: without what is understood. */
static void put_familiar(const struct image_name *name, struct strbuf *out)
{
	scoped(strbuf_free) struct strbuf text = {0};
	bool is_hub = strcmp(name->host, "docker.io") == 0;
	const char *repository = name->repository;

	if (is_hub && str_starts(repository, "library/"))
		repository += strlen("library/");
	strbuf_printf(&text, "%s%s%s", is_hub ? "" : name->host, is_hub ? "" : "/", repository);
	if (name->tag)
		strbuf_printf(&text, ":%s", name->tag);
	json_text(out, text.data ? text.data : "", text.len);
	out->failed |= text.failed;
}

/* manifest.json, by which docker load finds its way. */
static void put_docker_manifest(const struct output_image *image, struct strbuf *out)
{
	const struct image *i = &image->image;
	char hex[DIGEST_HEX_MAX];

	strbuf_printf(out, "[{\"Config\":\"blobs/sha256/%s\",\"RepoTags\":",
		      digest_hex(&i->config_desc.digest, hex));
	strbuf_puts(out, image->names.n ? "[" : "null");
	for (size_t k = 0; k < image->names.n; k++) {
		strbuf_puts(out, k ? "," : "");
		put_familiar(&image->names.items[k], out);
	}
	strbuf_puts(out, image->names.n ? "],\"Layers\":[" : ",\"Layers\":[");
	for (size_t k = 0; k < i->n_layers; k++)
		strbuf_printf(out, "%s\"blobs/sha256/%s\"", k ? "," : "",
			      digest_hex(&i->layers[k].desc.digest, hex));
	strbuf_puts(out, "]}]");
}

/* ------------------------------------------------------------------ a tar */

/* Octal; what does not fit is base 256, as everybody reads it. */
static void put_number(char *field, size_t size, uint64_t n)
{
	if (n >> (3 * (size - 1)) == 0) {
		for (size_t i = size - 1; i-- > 0; n >>= 3)
			field[i] = (char)('0' + (n & 7));
		return;
	}
	for (size_t i = size; i-- > 1; n >>= 8)
		field[i] = (char)(n & 0xff);
	field[0] = (char)0x80;
}

/* Names here are short. */
static int put_header(struct target_fd *to, const char *name, uint64_t size)
{
	bool is_dir = str_ends(name, "/");
	char b[BLOCK] = {0};
	unsigned sum = 0;

	strncpy(b, name, 99);
	put_number(b + 100, 8, is_dir ? 0755 : 0444);
	put_number(b + 108, 8, 0);
	put_number(b + 116, 8, 0);
	put_number(b + 124, 12, size);
	put_number(b + 136, 12, 0);
	memset(b + 148, ' ', 8);
	b[156] = is_dir ? '5' : '0';
	memcpy(b + 257, "ustar\00000", 8); /* "ustar", NUL, "00" */
	put_number(b + 329, 8, 0);
	put_number(b + 337, 8, 0);
	for (size_t i = 0; i < BLOCK; i++)
		sum += (unsigned char)b[i];
	put_number(b + 148, 7, sum);
	b[154] = '\0';
	return write_some(to, b, BLOCK);
}

static int put_padding(struct target_fd *to, uint64_t size)
{
	static const char zeros[BLOCK];

	return write_some(to, zeros, (BLOCK - size % BLOCK) % BLOCK);
}

static int put_text_file(struct target_fd *to, const char *name, const struct strbuf *text)
{
	int r = text->failed ? -ENOMEM : put_header(to, name, text->len);

	if (r == 0)
		r = write_some(to, text->data, text->len);
	return r == 0 ? put_padding(to, text->len) : r;
}

static int put_blobs(const struct members *m, struct store *store, struct target_fd *to)
{
	int r = put_header(to, "blobs/", 0);

	if (r == 0)
		r = put_header(to, "blobs/sha256/", 0);
	for (size_t i = 0; i < m->items.n && r == 0; i++) {
		const struct member *member = &m->items.items[i];
		char hex[DIGEST_HEX_MAX], name[100];

		snprintf(name, sizeof(name), "blobs/sha256/%s", digest_hex(&member->digest, hex));
		r = put_header(to, name, member->size);
		if (r == 0)
			r = write_member(member, store, to->fd, to->err);
		if (r == 0)
			r = put_padding(to, member->size);
	}
	return r;
}

int layout_write_tar(const struct output_image *image, struct store *store, int fd, struct err *err)
{
	static const char end[2 * BLOCK];
	scoped(strbuf_free) struct strbuf index = {0}, manifest = {0}, layout = {0};
	struct target_fd to = {fd, err};
	struct members m = {0};
	int r = list_members(&m, &image->image);

	put_index(image, &index);
	put_docker_manifest(image, &manifest);
	strbuf_puts(&layout, layout_text);
	if (r == 0)
		r = put_blobs(&m, store, &to);
	if (r == 0)
		r = put_text_file(&to, "index.json", &index);
	if (r == 0 && image->is_docker)
		r = put_text_file(&to, "manifest.json", &manifest);
	if (r == 0)
		r = put_text_file(&to, "oci-layout", &layout);
	if (r == 0)
		r = write_some(&to, end, sizeof(end));
	vec_free(&m.items);
	return r;
}

/* ------------------------------------------------------------------ a folder */

static int write_file(const char *path, const char *text, size_t n, struct err *err)
{
	struct whole_file file;
	int r = whole_file_open(&file, path, 0644, err);

	if (r < 0)
		return r;
	r = write_full(file.fd, text, n);
	if (r < 0)
		err_set(err, r, "%s: %s", path, strerror(-r));
	return whole_file_close(&file, r, err);
}

static int write_blob(const struct member *m, struct store *store, const char *dir, struct err *err)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", dir, digest_hex(&m->digest, hex));
	struct whole_file file;
	struct stat st;

	if (!path)
		return -ENOMEM;
	if (stat(path, &st) == 0 && (uint64_t)st.st_size == m->size)
		return 0;
	int r = whole_file_open(&file, path, 0644, err);
	if (r < 0)
		return r;
	r = write_member(m, store, file.fd, err);
	return whole_file_close(&file, r, err);
}

static const char *name_of(const json_t *desc)
{
	const json_t *annotations = json_object_get(desc, "annotations");
	const char *full =
		json_string_value(json_object_get(annotations, "io.containerd.image.name"));

	return full ? full
		    : json_string_value(
			      json_object_get(annotations, "org.opencontainers.image.ref.name"));
}

/* @old without what @desc replaces: its name, or itself without a name. */
static void drop_replaced(json_t *old, const json_t *desc)
{
	const char *name = name_of(desc);

	for (size_t i = json_array_size(old); i-- > 0;) {
		const json_t *other = json_array_get(old, i);
		const char *other_name = name_of(other);

		if (other_name ? name && strcmp(name, other_name) == 0
			       : json_equal(json_object_get(other, "digest"),
					    json_object_get(desc, "digest")))
			json_array_remove(old, i);
	}
}

/* The index in @text with our descriptors in it; *out is malloc'ed. */
static int merge_index(const struct strbuf *text, const struct output_image *image, char **out,
		       struct err *err)
{
	scoped(strbuf_free) struct strbuf ours = {0};
	json_t *index = json_loadb(text->data, text->len, 0, NULL), *descs, *desc;
	json_t *manifests = json_object_get(index, "manifests");
	size_t i;
	int r = 0;

	strbuf_putc(&ours, '[');
	put_descs(image, &ours);
	strbuf_putc(&ours, ']');
	descs = ours.failed ? NULL : json_loadb(ours.data, ours.len, 0, NULL);
	if (!json_is_array(manifests))
		r = err_set(err, -EBADMSG, "index.json there is no index of an OCI layout");
	else if (!descs)
		r = -ENOMEM;
	for (i = 0; r == 0 && i < json_array_size(descs); i++) {
		desc = json_array_get(descs, i);
		drop_replaced(manifests, desc);
		r = json_array_append(manifests, desc) < 0 ? -ENOMEM : 0;
	}
	*out = r == 0 ? json_dumps(index, JSON_COMPACT) : NULL;
	json_decref(descs);
	json_decref(index);
	return r == 0 && !*out ? -ENOMEM : r;
}

static int update_index(const struct output_image *image, const char *dir, struct err *err)
{
	scoped(strbuf_free) struct strbuf old = {0}, fresh = {0};
	scoped(free) char *path = str_printf("%s/index.json", dir), *merged = NULL;
	int r = path ? read_file(AT_FDCWD, path, INDEX_MAX, &old) : -ENOMEM;

	if (r == -ENOENT) {
		put_index(image, &fresh);
		return fresh.failed ? -ENOMEM : write_file(path, fresh.data, fresh.len, err);
	}
	if (r < 0)
		return err_set(err, r, "%s/index.json: %s", dir, strerror(-r));
	r = merge_index(&old, image, &merged, err);
	return r < 0 ? r : write_file(path, merged, strlen(merged), err);
}

/* index.json.lock, as BuildKit takes it, and as it removes it: who gets the lock of a file that is
 * gone tries again. @path is borrowed. */
static int lock_index(const char *path, int *out, struct err *err)
{
	uint64_t end = now_ns() + LOCK_WAIT_S * NS_PER_S;
	struct stat st;

	for (;;) {
		scoped(close_fd) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);

		if (fd < 0)
			return err_errno(err, "%s", path);
		if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
			if (fstat(fd, &st) == 0 && st.st_nlink > 0) {
				*out = fd;
				fd = -1;
				return 0;
			}
			continue;
		}
		if (errno != EWOULDBLOCK && errno != EINTR)
			return err_errno(err, "%s", path);
		if (now_ns() > end)
			return err_set(err, -ETIMEDOUT, "%s: somebody has held it for %d s", path,
				       LOCK_WAIT_S);
		poll(NULL, 0, LOCK_POLL_MS);
	}
}

static int locked_index(const struct output_image *image, const char *dir, struct err *err)
{
	scoped(free) char *path = str_printf("%s/index.json.lock", dir);
	scoped(close_fd) int lock = -1;
	int r = path ? lock_index(path, &lock, err) : -ENOMEM;

	if (r < 0)
		return r;
	r = update_index(image, dir, err);
	unlink(path); /* while we hold it */
	return r;
}

static int fill_folder(const struct output_image *image, struct store *store, const char *dir,
		       struct err *err)
{
	scoped(free) char *blobs = str_printf("%s/blobs/sha256", dir);
	scoped(free) char *layout = str_printf("%s/oci-layout", dir);
	struct members m = {0};
	int r = blobs && layout ? list_members(&m, &image->image) : -ENOMEM;

	if (r == 0) {
		r = make_dirs(blobs, 0755);
		if (r < 0)
			err_set(err, r, "%s: %s", blobs, strerror(-r));
	}
	for (size_t i = 0; i < m.items.n && r == 0; i++)
		r = write_blob(&m.items.items[i], store, dir, err);
	if (r == 0 && access(layout, F_OK) < 0)
		r = write_file(layout, layout_text, strlen(layout_text), err);
	if (r == 0)
		r = locked_index(image, dir, err);
	vec_free(&m.items);
	return r;
}

/* The same for a folder that is not there yet. */
static int make_folder(const struct output_image *image, struct store *store, const char *dest,
		       struct err *err)
{
	size_t len = strlen(dest);
	while (len > 1 && dest[len - 1] == '/')
		len--;
	scoped(free) char *path = strndup(dest, len);
	const char *slash = path ? strrchr(path, '/') : NULL, *name = slash ? slash + 1 : path;
	scoped(free) char *parent = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
	scoped(free) char *tmp = str_printf(".llbfs-%d-layout", (int)getpid());
	scoped(free) char *inside = parent && tmp ? str_printf("%s/%s", parent, tmp) : NULL;
	scoped(close_fd) int dir = -1;

	if (!path || !inside)
		return -ENOMEM;
	int r = make_dirs(parent, 0755);
	if (r < 0)
		return err_set(err, r, "%s: %s", parent, strerror(-r));
	dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0 || mkdirat(dir, tmp, 0755) < 0)
		return err_errno(err, "%s", dest);
	temporary_folder(dir, tmp);
	r = fill_folder(image, store, inside, err);
	if (r < 0) {
		temporary_folder_drop();
		return r;
	}
	r = temporary_folder_done(name);
	return r < 0 ? err_set(err, r, "%s: %s", dest, strerror(-r)) : 0;
}

int layout_write_folder(const struct output_image *image, struct store *store, const char *dest,
			struct err *err)
{
	struct stat st;

	return stat(dest, &st) < 0 && errno == ENOENT ? make_folder(image, store, dest, err)
						      : fill_folder(image, store, dest, err);
}
