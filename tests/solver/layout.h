/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Small images for tests: tars of a few members, layouts of a few images. */

#include <fcntl.h>
#include <sys/stat.h>

#include "blobstore/blobstore.h"
#include "tests/test.h"

/* One member: a file ('0'), a folder ('5'), a symlink ('2') or a hard link ('1'). */
static inline void tar_member(struct strbuf *tar, char type, const char *name, const void *data,
			      size_t n)
{
	char head[512] = {0};
	bool is_link = type == '1' || type == '2';
	unsigned sum = 0;

	snprintf(head, 100, "%s", name);
	memcpy(head + 100, type == '5' ? "0000755" : "0000644", 8);
	memcpy(head + 108, "0000000", 8);
	memcpy(head + 116, "0000000", 8);
	snprintf(head + 124, 12, "%011o", is_link ? 0 : (unsigned)n);
	memcpy(head + 136, "14000000000", 12);
	memset(head + 148, ' ', 8);
	head[156] = type;
	if (is_link)
		snprintf(head + 157, 100, "%s", (const char *)data);
	memcpy(head + 257, "ustar\00000", 8);
	for (size_t i = 0; i < sizeof(head); i++)
		sum += (uint8_t)head[i];
	snprintf(head + 148, 8, "%06o", sum);
	strbuf_add(tar, head, sizeof(head));
	if (is_link || n == 0)
		return;
	strbuf_add(tar, data, n);
	static const char zeros[512];
	strbuf_add(tar, zeros, (512 - n % 512) % 512);
}

static inline void tar_end(struct strbuf *tar)
{
	static const char zeros[1024];

	strbuf_add(tar, zeros, sizeof(zeros));
}

/* A layer with one file. */
static inline struct strbuf tar_of(const char *name, const char *text)
{
	struct strbuf tar = {0};

	tar_member(&tar, '0', name, text, strlen(text));
	tar_end(&tar);
	return tar;
}

static inline void file_write(const char *dir, const char *name, const void *bytes, size_t n)
{
	scoped(free) char *path = str_printf("%s/%s", dir, name);
	scoped(free) char *parent = strndup(path, (size_t)(strrchr(path, '/') - path));
	scoped(close_fd) int fd = -1;

	assert_int_equal(make_dirs(parent, 0755), 0);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes, n), 0);
}

static inline struct digest layout_blob(const char *dir, const void *bytes, size_t n)
{
	struct digest digest;
	char hex[DIGEST_HEX_MAX];

	digest_bytes(&digest, bytes, n);
	scoped(free) char *name = str_printf("blobs/sha256/%s", digest_hex(&digest, hex));
	file_write(dir, name, bytes, n);
	return digest;
}

static inline struct digest layout_text(const char *dir, const char *text)
{
	return layout_blob(dir, text, strlen(text));
}

static inline void add_desc(struct strbuf *s, const char *type, const struct digest *digest,
			    size_t n)
{
	char text[DIGEST_TEXT_MAX];

	strbuf_printf(s, "{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":%zu", type,
		      digest_text(digest, text), n);
}

/* An image of plain tars: config, manifest; gives the manifest's descriptor as JSON, still open for
 * more members. */
static inline struct strbuf layout_image(const char *dir, const struct strbuf *layers, size_t n,
					 const char *arch, struct digest *out)
{
	struct strbuf config = {0}, manifest = {0}, desc = {0};
	char text[DIGEST_TEXT_MAX];

	strbuf_printf(&config,
		      "{\"os\":\"linux\",\"architecture\":\"%s\",\"rootfs\":{\"type\":"
		      "\"layers\",\"diff_ids\":[",
		      arch);
	for (size_t i = 0; i < n; i++) {
		struct digest digest = layout_blob(dir, layers[i].data, layers[i].len);
		strbuf_printf(&config, "%s\"%s\"", i ? "," : "", digest_text(&digest, text));
	}
	strbuf_puts(&config, "]}}");
	struct digest config_digest = layout_text(dir, config.data);

	strbuf_puts(&manifest, "{\"schemaVersion\":2,\"config\":");
	add_desc(&manifest, "application/vnd.oci.image.config.v1+json", &config_digest, config.len);
	strbuf_puts(&manifest, "},\"layers\":[");
	for (size_t i = 0; i < n; i++) {
		struct digest digest;
		digest_bytes(&digest, layers[i].data, layers[i].len);
		strbuf_puts(&manifest, i ? "," : "");
		add_desc(&manifest, "application/vnd.oci.image.layer.v1.tar", &digest,
			 layers[i].len);
		strbuf_puts(&manifest, "}");
	}
	strbuf_puts(&manifest, "]}");
	*out = layout_text(dir, manifest.data);
	add_desc(&desc, "application/vnd.oci.image.manifest.v1+json", out, manifest.len);
	strbuf_free(&config);
	strbuf_free(&manifest);
	return desc;
}

/* index.json of entries that are complete. */
static inline void layout_index(const char *dir, const char *entries)
{
	scoped(free) char *text = str_printf("{\"schemaVersion\":2,\"manifests\":[%s]}", entries);

	file_write(dir, "index.json", text, strlen(text));
	file_write(dir, "oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}", 30);
}
