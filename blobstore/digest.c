/* SPDX-License-Identifier: Apache-2.0 */

/*
 * digest: parse, print and compute content digests. The only user of libcrypto, which brings the
 * CPU's own instructions for sha256.
 */

#include "blobstore/blobstore.h"

#include <assert.h>
#include <openssl/evp.h>
#include <pthread.h>

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int digest_parse(struct digest *out, const char *text, struct err *err)
{
	if (!str_starts(text, "sha256:")) {
		if (str_starts(text, "sha512:") || str_starts(text, "blake3:"))
			return err_set(err, -ENOTSUP, "digest %.80s: only sha256 is supported",
				       text);
		return err_set(err, -EINVAL, "not a digest: %.80s", text);
	}
	const char *hex = text + 7;
	if (strlen(hex) != 64)
		return err_set(err, -EINVAL, "not a sha256 digest: %.80s", text);
	for (int i = 0; i < 32; i++) {
		int hi = hex_value(hex[2 * i]), lo = hex_value(hex[2 * i + 1]);
		if (hi < 0 || lo < 0)
			return err_set(err, -EINVAL, "not a sha256 digest: %.80s", text);
		out->bytes[i] = (uint8_t)(hi << 4 | lo);
	}
	return 0;
}

char *digest_hex(const struct digest *d, char buf[DIGEST_HEX_MAX])
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < 32; i++) {
		buf[2 * i] = digits[d->bytes[i] >> 4];
		buf[2 * i + 1] = digits[d->bytes[i] & 15];
	}
	buf[64] = '\0';
	return buf;
}

char *digest_text(const struct digest *d, char buf[DIGEST_TEXT_MAX])
{
	memcpy(buf, "sha256:", 7);
	digest_hex(d, buf + 7);
	return buf;
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
	return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

bool digest_is_zero(const struct digest *d)
{
	static const struct digest zero;

	return digest_equal(d, &zero);
}

/* The algorithm, looked up once: for a few bytes that takes longer than to hash them. */
static const EVP_MD *sha256;

static void find_sha256(void)
{
	const EVP_MD *found = EVP_MD_fetch(NULL, "SHA256", NULL);

	sha256 = found ? found : EVP_sha256();
}

static const EVP_MD *sha256_md(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, find_sha256);
	return sha256;
}

void digest_bytes(struct digest *out, const void *bytes, size_t n)
{
	unsigned len = 32;
	int ok = EVP_Digest(bytes, n, out->bytes, &len, sha256_md(), NULL);

	assert(ok == 1 && len == 32);
}

struct hasher {
	EVP_MD_CTX *ctx;
};

struct hasher *hasher_new(void)
{
	struct hasher *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->ctx = EVP_MD_CTX_new();
	if (!h->ctx || EVP_DigestInit_ex(h->ctx, sha256_md(), NULL) != 1) {
		hasher_free(h);
		return NULL;
	}
	return h;
}

void hasher_add(struct hasher *h, const void *bytes, size_t n)
{
	int ok = EVP_DigestUpdate(h->ctx, bytes, n);

	assert(ok == 1);
}

void hasher_done(struct hasher *h, struct digest *out)
{
	unsigned len = 32;
	int ok = EVP_DigestFinal_ex(h->ctx, out->bytes, &len);

	assert(ok == 1 && len == 32);
	ok = EVP_DigestInit_ex(h->ctx, sha256_md(), NULL);
	assert(ok == 1);
}

void hasher_free(struct hasher *h)
{
	if (!h)
		return;
	EVP_MD_CTX_free(h->ctx);
	free(h);
}
