/* SPDX-License-Identifier: Apache-2.0 */

/*
 * target_layout: an OCI layout folder that is written to, maybe by several processes at once, and
 * read by others all the while.
 *
 *     DIR/oci-layout  DIR/blobs/sha256/HEX  DIR/ingest/  DIR/index.json  DIR/index.json.lock
 *
 * A blob is written in ingest/, where containerd has its own half-written ones, and gets its name
 * when it is on the disk and right. index.json is replaced as a whole, and only after the blobs that
 * it names are on the disk. Who replaces it holds a flock on index.json.lock, as BuildKit does, so
 * that entries of both are kept. BuildKit removes the lock's file afterwards: so whoever gets a lock
 * looks whether its file is still the one in the folder. We leave it, since to remove it is what
 * makes that race.
 */

#include "blobstore/net-internal.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_MAX (64u << 20)
#define LOCK_MS 60000
#define PIECE (256u << 10)
#define INDEX_TYPE "application/vnd.oci.image.index.v1+json"
#define REF_NAME "org.opencontainers.image.ref.name"
#define IMAGE_NAME "io.containerd.image.name"

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "no memory");
}

/* ------------------------------------------------------------------ files */

/* Written under another name; takes its own when it is complete. */
struct ingest {
	int dir, fd;
	char name[48];
};

static int ingest_open(struct ingest *in, const char *dir, struct err *err)
{
	uint8_t random[16];

	in->fd = -1;
	in->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (in->dir < 0)
		return err_errno(err, "%s", dir);
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return err_errno(err, "getrandom");
	memcpy(in->name, "ingest/", 8);
	for (size_t i = 0; i < sizeof(random); i++)
		snprintf(in->name + 7 + 2 * i, 3, "%02x", random[i]);
	in->fd = openat(in->dir, in->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	return in->fd < 0 ? err_errno(err, "%s/%s", dir, in->name) : 0;
}

/* Ends it, well when @r is 0: then it is @to, whose folder is @folder ("." or "blobs/sha256"). */
static int ingest_close(struct ingest *in, const char *to, const char *folder, int r,
			struct err *err)
{
	bool is_there = in->fd >= 0;

	if (r == 0 && (fsync(in->fd) < 0 || renameat(in->dir, in->name, in->dir, to) < 0))
		r = err_errno(err, "%s", to);
	else if (r == 0)
		is_there = false;
	if (is_there)
		unlinkat(in->dir, in->name, 0);
	if (r == 0) {
		scoped(close_fd) int fd =
			openat(in->dir, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0 || fsync(fd) < 0)
			r = err_errno(err, "%s", folder);
	}
	close_fd(in->fd);
	close_fd(in->dir);
	return r;
}

static int put_small(const char *dir, const char *to, const char *folder, const void *bytes,
		     size_t n, struct err *err)
{
	struct ingest in;
	int r = ingest_open(&in, dir, err);

	if (r == 0) {
		r = write_full(in.fd, bytes, n);
		if (r < 0)
			err_set(err, r, "%s/%s: %s", dir, to, strerror(-r));
	}
	return ingest_close(&in, to, folder, r, err);
}

int layout_make(const char *dir, struct err *err)
{
	static const char text[] = "{\"imageLayoutVersion\":\"1.0.0\"}";
	scoped(free) char *blobs = str_printf("%s/blobs/sha256", dir);
	scoped(free) char *ingest = str_printf("%s/ingest", dir);
	scoped(free) char *mark = str_printf("%s/oci-layout", dir);

	if (!blobs || !ingest || !mark)
		return no_memory(err);
	int r = make_dirs(blobs, 0755);
	if (r == 0)
		r = make_dirs(ingest, 0755);
	if (r < 0)
		return err_set(err, r, "%s: %s", dir, strerror(-r));
	return access(mark, F_OK) == 0
		       ? 0
		       : put_small(dir, "oci-layout", ".", text, sizeof(text) - 1, err);
}

/* ------------------------------------------------------------------ blobs */

static int copy_blob(int fd, const struct desc *desc, const struct blob_source *from,
		     struct err *err)
{
	scoped(hasher_free) struct hasher *h = hasher_new();
	scoped(free) uint8_t *piece = malloc(PIECE);
	struct digest is;
	char text[DIGEST_TEXT_MAX];

	if (!h || !piece)
		return no_memory(err);
	for (uint64_t at = 0; at < desc->size;) {
		size_t got = 0, want = (size_t)MIN(desc->size - at, (uint64_t)PIECE);
		int r = from->read(from->arg, at, piece, want, &got, err);
		if (r < 0)
			return r;
		if (!got || got > want)
			return err_set(err, -EBADMSG, "a blob that ends early");
		hasher_add(h, piece, got);
		r = write_full(fd, piece, got);
		if (r < 0)
			return err_set(err, r, "writing a blob: %s", strerror(-r));
		at += got;
	}
	hasher_done(h, &is);
	return digest_equal(&is, &desc->digest)
		       ? 0
		       : err_set(err, -EBADMSG, "blob %s: content does not match its digest",
				 digest_text(&desc->digest, text));
}

static bool has_blob(const char *dir, const char *to, uint64_t size)
{
	scoped(free) char *path = str_printf("%s/%s", dir, to);
	struct stat st;

	return path && stat(path, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == size;
}

int layout_put_blob(const char *dir, const struct desc *desc, const struct blob_source *from,
		    struct err *err)
{
	char hex[DIGEST_HEX_MAX], to[sizeof("blobs/sha256/") + DIGEST_HEX_MAX];
	struct ingest in;

	snprintf(to, sizeof(to), "blobs/sha256/%s", digest_hex(&desc->digest, hex));
	if (has_blob(dir, to, desc->size))
		return 1;
	int r = ingest_open(&in, dir, err);
	if (r == 0)
		r = copy_blob(in.fd, desc, from, err);
	return ingest_close(&in, to, "blobs/sha256", r, err);
}

/* ------------------------------------------------------------------ the index */

static const char *annotation_of(const json_t *entry, const char *key)
{
	const char *text =
		json_string_value(json_object_get(json_object_get(entry, "annotations"), key));

	return text ? text : "";
}

/* An absent name is the empty one. */
static bool same_names(const json_t *a, const json_t *b)
{
	return !strcmp(annotation_of(a, REF_NAME), annotation_of(b, REF_NAME)) &&
	       !strcmp(annotation_of(a, IMAGE_NAME), annotation_of(b, IMAGE_NAME));
}

static json_t *index_entry(const struct desc *desc, const char *tag)
{
	char text[DIGEST_TEXT_MAX];
	json_t *notes = json_object();
	bool ok = notes != NULL;

	for (size_t i = 0; ok && i < desc->n_annotations; i++)
		ok = !json_object_set_new(notes, desc->annotations[i].key,
					  json_string(desc->annotations[i].value));
	ok = ok && !json_object_set_new(notes, REF_NAME, json_string(tag));
	json_t *entry = ok ? json_pack("{s:s, s:s, s:I, s:O}", "mediaType", desc->media_type,
				       "digest", digest_text(&desc->digest, text), "size",
				       (json_int_t)desc->size, "annotations", notes)
			   : NULL;
	json_decref(notes);
	return entry;
}

/* The index that there is, or an empty one. */
static int index_load(const char *old, size_t len, json_t **out, struct err *err)
{
	json_error_t why;
	json_t *root = len ? json_loadb(old, len, JSON_REJECT_DUPLICATES, &why)
			   : json_pack("{s:i, s:s, s:[]}", "schemaVersion", 2, "mediaType",
				       INDEX_TYPE, "manifests");

	if (!root && !len)
		return no_memory(err);
	if (!json_is_array(json_object_get(root, "manifests"))) {
		json_decref(root);
		return err_set(err, -EBADMSG, "index.json is no index of images");
	}
	*out = root;
	return 0;
}

int layout_index_put(const char *old, size_t len, const struct desc *desc, const char *tag,
		     struct strbuf *out, struct err *err)
{
	json_t *root = NULL, *entry = index_entry(desc, tag);
	int r = entry ? index_load(old, len, &root, err) : no_memory(err);
	json_t *list = json_object_get(root, "manifests");

	for (size_t i = json_array_size(list); r == 0 && i-- > 0;)
		if (same_names(json_array_get(list, i), entry))
			json_array_remove(list, i);
	if (r == 0 && json_array_append(list, entry) < 0)
		r = no_memory(err);
	char *text = r == 0 ? json_dumps(root, JSON_COMPACT) : NULL;
	if (text)
		strbuf_puts(out, text);
	if (r == 0 && (!text || out->failed))
		r = no_memory(err);
	free(text);
	json_decref(root);
	json_decref(entry);
	return r;
}

/* Locks have no timeout that threads could use: asks again until the time is over. */
static int index_lock(const char *dir, int *out, struct err *err)
{
	scoped(free) char *path = str_printf("%s/index.json.lock", dir);
	uint64_t end = now_ns() + LOCK_MS * NS_PER_MS;

	if (!path)
		return no_memory(err);
	for (;;) {
		scoped(close_fd) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		struct stat ours, theirs;
		if (fd < 0)
			return err_errno(err, "%s", path);
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			if (errno != EWOULDBLOCK && errno != EINTR)
				return err_errno(err, "%s", path);
			if (now_ns() >= end)
				return err_set(err, -ETIMEDOUT, "%s is held by somebody", path);
			poll(NULL, 0, 5);
		} else if (fstat(fd, &ours) == 0 && stat(path, &theirs) == 0 &&
			   ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev) {
			*out = fd;
			fd = -1;
			return 0;
		}
	}
}

static int index_update(const char *dir, const struct desc *desc, const char *tag, struct err *err)
{
	scoped(free) char *path = str_printf("%s/index.json", dir);
	scoped(strbuf_free) struct strbuf old = {0}, text = {0};
	scoped(close_fd) int lock = -1;

	if (!path)
		return no_memory(err);
	int r = index_lock(dir, &lock, err);
	if (r < 0)
		return r;
	r = read_file(AT_FDCWD, path, INDEX_MAX, &old);
	if (r < 0 && r != -ENOENT)
		return err_set(err, r, "%s: %s", path, strerror(-r));
	r = layout_index_put(old.data ? old.data : "", old.len, desc, tag, &text, err);
	if (r < 0)
		return err_wrap(err, r, "%s", dir);
	return put_small(dir, "index.json", ".", text.data, text.len, err);
}

struct bytes {
	const uint8_t *bytes;
	size_t n;
};

static int bytes_read(void *arg, uint64_t off, void *dst, size_t len, size_t *got, struct err *err)
{
	const struct bytes *b = arg;

	*got = MIN(len, b->n - (size_t)off);
	memcpy(dst, b->bytes + off, *got);
	return 0;
}

int layout_put_manifest(const char *dir, const struct desc *desc, const void *bytes,
			const char *tag, struct err *err)
{
	struct bytes b = {bytes, (size_t)desc->size};
	const struct blob_source from = {.size = desc->size, .read = bytes_read, .arg = &b};
	int r = layout_put_blob(dir, desc, &from, err);

	return r >= 0 && tag ? index_update(dir, desc, tag, err) : MIN(r, 0);
}
