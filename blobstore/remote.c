/* SPDX-License-Identifier: Apache-2.0 */

/*
 * remote: places outside where blobs live. Here are the interface's small implementations: a layout
 * folder and an archive, both read in place, and blobs in memory (the test double). Registries are
 * in registry.c.
 */

#include "blobstore/blobstore-internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct remote *remote_ref(struct remote *r)
{
	__atomic_fetch_add(&r->n_refs, 1, __ATOMIC_RELAXED);
	return r;
}

struct remote *remote_unref(struct remote *r)
{
	if (r && __atomic_sub_fetch(&r->n_refs, 1, __ATOMIC_ACQ_REL) == 0)
		r->ops->free(r);
	return NULL;
}

/* A local remote answers a transfer at once: its range is read and given in pieces. */
static void transfer_from_file(struct remote *r, struct transfer *t)
{
	struct err err = {0};
	int opened = -1;
	uint64_t base = 0;
	int result = r->ops->open_local(r, &t->digest, t->blob_size, &opened, &base, &err);
	scoped(close_fd) int fd = opened;
	char buf[65536];

	for (uint64_t at = 0; result == 0 && at < t->len;) {
		size_t n = (size_t)MIN(t->len - at, (uint64_t)sizeof(buf));
		result = pread_full(fd, buf, n, base + t->off + at);
		if (result < 0) {
			char text[DIGEST_TEXT_MAX];
			err_set(&err, result, "%s: blob %s: %s", r->name,
				digest_text(&t->digest, text), strerror(-result));
			break;
		}
		result = t->data(t, buf, n);
		at += n;
	}
	t->done(t, result, result ? &err : NULL);
}

static void no_cancel(struct remote *r, struct transfer *t)
{
}

int remote_place(struct remote *r, const struct digest *digest, struct strbuf *out)
{
	if (!r || !r->ops->place)
		return -ENOENT;
	int e = r->ops->place(r, digest, out);
	return e == 0 && out->failed ? -ENOMEM : e;
}

static void place_file(struct strbuf *out, uint64_t off, const char *path)
{
	strbuf_printf(out, "file %llu %s", (unsigned long long)off, path);
}

/* ------------------------------------------------------------------ a range of a file */

struct file_blob {
	struct remote remote; /* its name is the path */
	struct digest digest;
	uint64_t off;
};

static int file_open_local(struct remote *r, const struct digest *digest, uint64_t blob_size,
			   int *fd, uint64_t *off, struct err *err)
{
	struct file_blob *file = containerof(r, struct file_blob, remote);
	char text[DIGEST_TEXT_MAX];
	struct stat st;

	digest_text(digest, text);
	if (!digest_equal(digest, &file->digest))
		return err_set(err, -ENOENT, "%s has no blob %s", r->name, text);
	scoped(close_fd) int opened = open(r->name, O_RDONLY | O_CLOEXEC);
	if (opened < 0 || fstat(opened, &st) < 0)
		return err_errno(err, "%s: blob %s", r->name, text);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < file->off ||
	    (uint64_t)st.st_size - file->off < blob_size)
		return err_set(err, -EBADMSG, "%s: blob %s is not there any more", r->name, text);
	*fd = opened;
	opened = -1;
	*off = file->off;
	return 0;
}

static int file_place(struct remote *r, const struct digest *digest, struct strbuf *out)
{
	struct file_blob *file = containerof(r, struct file_blob, remote);

	if (!digest_equal(digest, &file->digest))
		return -ENOENT;
	place_file(out, file->off, r->name);
	return 0;
}

static void file_free(struct remote *r)
{
	free(r->name);
	free(containerof(r, struct file_blob, remote));
}

static const struct remote_ops file_ops = {
	.start = transfer_from_file,
	.cancel = no_cancel,
	.open_local = file_open_local,
	.place = file_place,
	.free = file_free,
};

int remote_file_new(struct remote **out, const char *path, const struct digest *digest, uint64_t off)
{
	struct file_blob *file = calloc(1, sizeof(*file));
	char *name = strdup(path);

	if (!file || !name) {
		free(file);
		free(name);
		return -ENOMEM;
	}
	*file = (struct file_blob){.remote = {.ops = &file_ops, .n_refs = 1, .name = name},
				   .digest = *digest,
				   .off = off};
	*out = &file->remote;
	return 0;
}

/* ------------------------------------------------------------------ a layout folder */

struct layout {
	struct remote remote;
	char *dir;
};

static int layout_open_local(struct remote *r, const struct digest *digest, uint64_t blob_size,
			     int *fd, uint64_t *off, struct err *err)
{
	struct layout *layout = containerof(r, struct layout, remote);
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", layout->dir, digest_hex(digest, hex));
	if (!path)
		return -ENOMEM;
	scoped(close_fd) int opened = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (opened < 0 || fstat(opened, &st) < 0)
		return err_errno(err, "%s: blob sha256:%s", r->name, hex);
	if (!S_ISREG(st.st_mode) ||
	    (blob_size != BLOB_SIZE_UNKNOWN && (uint64_t)st.st_size != blob_size))
		return err_set(err, -EBADMSG, "%s: blob sha256:%s has %lld bytes, not %llu",
			       r->name, hex, (long long)st.st_size, (unsigned long long)blob_size);
	*fd = opened;
	opened = -1;
	*off = 0;
	return 0;
}

static int layout_place(struct remote *r, const struct digest *digest, struct strbuf *out)
{
	struct layout *layout = containerof(r, struct layout, remote);
	char hex[DIGEST_HEX_MAX];

	place_file(out, 0, layout->dir);
	strbuf_printf(out, "/blobs/sha256/%s", digest_hex(digest, hex));
	return 0;
}

static void layout_free(struct remote *r)
{
	struct layout *layout = containerof(r, struct layout, remote);

	free(layout->dir);
	free(r->name);
	free(layout);
}

static const struct remote_ops layout_ops = {
	.start = transfer_from_file,
	.cancel = no_cancel,
	.open_local = layout_open_local,
	.place = layout_place,
	.free = layout_free,
};

int remote_layout_new(struct remote **out, const char *dir, struct err *err)
{
	struct layout *layout = calloc(1, sizeof(*layout));

	if (!layout)
		return -ENOMEM;
	layout->remote = (struct remote){.ops = &layout_ops, .n_refs = 1};
	layout->dir = realpath(dir, NULL);
	layout->remote.name = str_printf("oci-layout://%s", dir);
	if (!layout->dir || !layout->remote.name) {
		int r = err_errno(err, "oci-layout://%s", dir);
		layout_free(&layout->remote);
		return r;
	}
	*out = &layout->remote;
	return 0;
}

/* ------------------------------------------------------------------ an archive */

struct member {
	struct digest digest;
	uint64_t off, size;
};

struct archive {
	struct remote remote;
	int fd;
	char *path; /* absolute; NULL when the name is that of no file */
	vec(struct member) members; /* few: an archive has as many as its images have layers */
};

static int archive_open_local(struct remote *r, const struct digest *digest, uint64_t blob_size,
			      int *fd, uint64_t *off, struct err *err)
{
	struct archive *archive = containerof(r, struct archive, remote);
	char text[DIGEST_TEXT_MAX];

	for (size_t i = 0; i < archive->members.n; i++) {
		const struct member *m = &archive->members.items[i];
		if (!digest_equal(&m->digest, digest))
			continue;
		if (m->size != blob_size)
			return err_set(err, -EBADMSG, "%s: blob %s has %llu bytes, not %llu",
				       r->name, digest_text(digest, text),
				       (unsigned long long)m->size, (unsigned long long)blob_size);
		*fd = fcntl(archive->fd, F_DUPFD_CLOEXEC, 0);
		*off = m->off;
		return *fd < 0 ? err_errno(err, "%s", r->name) : 0;
	}
	return err_set(err, -ENOENT, "%s has no blob %s", r->name, digest_text(digest, text));
}

static int archive_place(struct remote *r, const struct digest *digest, struct strbuf *out)
{
	struct archive *archive = containerof(r, struct archive, remote);

	for (size_t i = 0; archive->path && i < archive->members.n; i++) {
		const struct member *m = &archive->members.items[i];
		if (!digest_equal(&m->digest, digest))
			continue;
		place_file(out, m->off, archive->path);
		return 0;
	}
	return -ENOENT;
}

static void archive_free(struct remote *r)
{
	struct archive *archive = containerof(r, struct archive, remote);

	close_fd(archive->fd);
	free(archive->path);
	vec_free(&archive->members);
	free(r->name);
	free(archive);
}

static const struct remote_ops archive_ops = {
	.start = transfer_from_file,
	.cancel = no_cancel,
	.open_local = archive_open_local,
	.place = archive_place,
	.free = archive_free,
};

int remote_archive_new(struct remote **out, int fd, const char *name, struct err *err)
{
	struct archive *archive = calloc(1, sizeof(*archive));
	char *copy = strdup(name);

	if (!archive || !copy) {
		free(archive);
		free(copy);
		close_fd(fd);
		return err_set(err, -ENOMEM, "no memory");
	}
	archive->remote = (struct remote){.ops = &archive_ops, .n_refs = 1, .name = copy};
	archive->fd = fd;
	archive->path = realpath(name, NULL);
	*out = &archive->remote;
	return 0;
}

int remote_archive_add(struct remote *r, const struct digest *digest, uint64_t off, uint64_t size)
{
	struct archive *archive = containerof(r, struct archive, remote);
	struct member *m = vec_push(&archive->members);

	if (!m)
		return -ENOMEM;
	*m = (struct member){.digest = *digest, .off = off, .size = size};
	return 0;
}

/* ------------------------------------------------------------------ memory */

struct memory_blob {
	struct digest digest;
	uint8_t *bytes;
	size_t n;
};

struct memory {
	struct remote remote;
	struct remote_memory_fault fault;
	vec(struct memory_blob) blobs;
};

static void memory_answer(struct memory *memory, struct transfer *t)
{
	const struct memory_blob *blob = NULL;
	struct err err = {0};
	int r = 0;

	for (size_t i = 0; i < memory->blobs.n; i++)
		if (digest_equal(&memory->blobs.items[i].digest, &t->digest))
			blob = &memory->blobs.items[i];
	if (!blob || t->off > blob->n || t->len > blob->n - t->off) {
		err_set(&err, -ENOENT, "memory: no such bytes");
		t->done(t, -ENOENT, &err);
		return;
	}
	scoped(free) uint8_t *copy = malloc(t->len);
	if (!copy)
		r = -ENOMEM;
	else
		memcpy(copy, blob->bytes + t->off, t->len);
	if (r == 0 && memory->fault.hook)
		r = memory->fault.hook(memory->fault.arg, t, copy);
	if (r == 0)
		r = t->data(t, copy, t->len);
	if (r < 0)
		err_set(&err, r, "memory: %s", strerror(-r));
	t->done(t, r, r ? &err : NULL);
}

struct memory_job {
	struct memory *memory;
	struct transfer *transfer;
};

static void *memory_thread(void *arg)
{
	struct memory_job *job = arg;

	usleep(job->memory->fault.delay_ms * 1000);
	memory_answer(job->memory, job->transfer);
	remote_unref(&job->memory->remote);
	free(job);
	return NULL;
}

static void memory_start(struct remote *r, struct transfer *t)
{
	struct memory *memory = containerof(r, struct memory, remote);
	struct memory_job *job = memory->fault.delay_ms ? malloc(sizeof(*job)) : NULL;
	pthread_t thread;

	if (job) {
		*job = (struct memory_job){memory, t};
		remote_ref(r);
		if (pthread_create(&thread, NULL, memory_thread, job) == 0) {
			pthread_detach(thread);
			return;
		}
		remote_unref(r);
		free(job);
	}
	memory_answer(memory, t);
}

static void memory_free(struct remote *r)
{
	struct memory *memory = containerof(r, struct memory, remote);

	for (size_t i = 0; i < memory->blobs.n; i++)
		free(memory->blobs.items[i].bytes);
	vec_free(&memory->blobs);
	free(r->name);
	free(memory);
}

static const struct remote_ops memory_ops = {
	.start = memory_start,
	.cancel = no_cancel,
	.free = memory_free,
};

int remote_memory_new(struct remote **out, const struct remote_memory_fault *fault)
{
	struct memory *memory = calloc(1, sizeof(*memory));
	char *name = strdup("memory");

	if (!memory || !name) {
		free(memory);
		free(name);
		return -ENOMEM;
	}
	memory->remote = (struct remote){.ops = &memory_ops, .n_refs = 1, .name = name};
	if (fault)
		memory->fault = *fault;
	*out = &memory->remote;
	return 0;
}

int remote_memory_add(struct remote *r, const void *bytes, size_t n, struct digest *out)
{
	struct memory *memory = containerof(r, struct memory, remote);
	struct memory_blob *blob = vec_push(&memory->blobs);

	if (!blob)
		return -ENOMEM;
	blob->bytes = malloc(n + 1);
	if (!blob->bytes) {
		memory->blobs.n--;
		return -ENOMEM;
	}
	memcpy(blob->bytes, bytes, n);
	blob->n = n;
	digest_bytes(&blob->digest, bytes, n);
	*out = blob->digest;
	return 0;
}
