/* SPDX-License-Identifier: Apache-2.0 */

/*
 * layer: real blobs in all encodings, from a remote in memory that counts and fails, into a store
 * of their own. That all layers together unpack to the right tree is tested where images are
 * mounted; here it is that every encoding of a layer is the same tree with the same bytes.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "merge/merge-internal.h"
#include "merge/merge.h"

#define TOC "containerd.io/snapshot/stargz/toc.digest"

/* ------------------------------------------------------------------ samples */

struct sample {
	const char *name, *hex, *toc, *media_type;
	enum layer_format format;
};

#define GZIP_TYPE "application/vnd.oci.image.layer.v1.tar+gzip"
#define ZSTD_TYPE "application/vnd.oci.image.layer.v1.tar+zstd"

/* The second layer of the image, in all encodings: 300 small files, one of 9 MiB, links, xattrs. */
static const struct sample samples[] = {
	{"gzip-single", "229d2f6e5379bb277aaa2a8b794beb31af2577859952e2eb3b5a7956e29da874", NULL,
	 GZIP_TYPE, LAYER_GZIP},
	{"gzip-multimember", "78d0d54070abe56beb74c09c2e3bacc2313ecfc14a2503068db7fa3ba04140d1",
	 NULL, GZIP_TYPE, LAYER_GZIP},
	{"gzip-fname", "666c2623e100006429062672517a1c831caa83a899f89457c7e6972dc7718259", NULL,
	 NULL, LAYER_GZIP},
	{"zstd-3", "cf595e5b0cbf531d67b37e708472eb20bfbd0b427b6cc2d7523c2c9f2f350d4a", NULL,
	 ZSTD_TYPE, LAYER_ZSTD},
	{"zstd-multiframe", "9fc54e2037dd4e23cd96596630309ce2a27e6d8f5846c13623d48c55fcc6a5fa",
	 NULL, ZSTD_TYPE, LAYER_ZSTD},
	{"zstd-seekable", "727c1f0553604d92427373e7f68e99af7719d431a39d9d51428d8eaa4279cec4", NULL,
	 ZSTD_TYPE, LAYER_ZSTD},
	{"estargz-default", "55b044ff2f33f5d81d35c3bcdc631e1161fc558c0f07aba38f6be8dfc5918447",
	 "sha256:a5cf11616f889176444c13ca87130c0495fd450773accb2b479acd78aefa69ca", GZIP_TYPE,
	 LAYER_ESTARGZ},
	{"estargz-chunk64k", "54107e01552a550abc6d0ba172bebb35728afcb3a83fc021a49c2d382cd96136",
	 "sha256:69a1159ca49704443faca7b1db1667db89fec6330cd50bbbc646606ce69bdb54", GZIP_TYPE,
	 LAYER_ESTARGZ},
	{"estargz-minchunk", "d70ddaba5ecc852908d2256a53af38d83f868a40f6f96a29b3721e95a1fe5f3f",
	 "sha256:5b1422c115559e41c31a2bec693b8436fee637f78ea02b933d488423e85c9a29", GZIP_TYPE,
	 LAYER_ESTARGZ},
	{"estargz-prefetch", "b5f3c000c1edbc34d9a2c0b63d4edfb0e2ea11a628bb4a1951afcccc8912bf38",
	 "sha256:633030f5a5a99a635516aeb356815011cdfd5eec3c9799e7aafeeb9ada2c1afb", GZIP_TYPE,
	 LAYER_ESTARGZ},
	/* no annotation: read as a whole, and what eStargz adds is hidden all the same */
	{"estargz-default without digest",
	 "55b044ff2f33f5d81d35c3bcdc631e1161fc558c0f07aba38f6be8dfc5918447", NULL, GZIP_TYPE,
	 LAYER_ESTARGZ},
	/* its table is in another image */
	{"estargz-lossless", "a386cbe514e47ea1716913ea4748a18179964f26012c21b38e2123aa18f85188",
	 "sha256:a4e432f613c4962c1d856a001a252103019a3a0980f31c62fe1f7327bd606f92", GZIP_TYPE,
	 LAYER_ESTARGZ},
};
#define GZIP_SINGLE (&samples[0])
#define ESTARGZ (&samples[6])
#define CHUNK64K (&samples[7])
#define PREFETCH (&samples[9])
#define UNVOUCHED (&samples[10])
#define EXTERNAL (&samples[11])

/* ------------------------------------------------------------------ one store and one remote */

struct bench {
	char dir[40];
	struct store *store;
	struct remote *remote;
	struct remote_memory_fault fault;
	uint64_t n_bytes; /* atomic: given by the remote */
	int n_requests;	  /* atomic */
	int fail;	  /* atomic: what every request ends with */
	bool is_unranged; /* the remote sends whole blobs only */
	struct desc desc;
};

static int count(void *arg, struct transfer *t, uint8_t *bytes)
{
	struct bench *b = arg;

	__atomic_add_fetch(&b->n_bytes, t->len, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&b->n_requests, 1, __ATOMIC_SEQ_CST);
	t->is_unranged = b->is_unranged;
	return __atomic_load_n(&b->fail, __ATOMIC_SEQ_CST);
}

static void open_store(struct bench *b)
{
	struct store_options options = {.root = b->dir};

	assert_int_equal(store_open(&b->store, &options, NULL), 0);
}

static struct bench *bench_new(unsigned delay_ms)
{
	struct bench *b = calloc(1, sizeof(*b));

	strcpy(b->dir, "/tmp/test-layer-XXXXXX");
	assert_non_null(mkdtemp(b->dir));
	open_store(b);
	b->fault = (struct remote_memory_fault){.hook = count, .arg = b, .delay_ms = delay_ms};
	assert_int_equal(remote_memory_new(&b->remote, &b->fault), 0);
	return b;
}

static void bench_free(struct bench *b)
{
	char command[100];

	remote_unref(b->remote);
	desc_deinit(&b->desc);
	store_close(b->store);
	snprintf(command, sizeof(command), "rm -rf %s", b->dir);
	assert_int_equal(system(command), 0);
	free(b);
}

static void use_blob(struct bench *b, const void *bytes, size_t n, const char *media_type)
{
	desc_deinit(&b->desc);
	b->desc = (struct desc){.size = n};
	if (media_type)
		b->desc.media_type = strdup(media_type);
	assert_int_equal(remote_memory_add(b->remote, bytes, n, &b->desc.digest), 0);
}

static void use_sample(struct bench *b, const struct sample *s)
{
	struct strbuf blob = {0};
	char path[300];

	snprintf(path, sizeof(path), "%s/data/formats/pool/sha256/%s", getenv("TEST_SOURCE"),
		 s->hex);
	assert_int_equal(read_file(AT_FDCWD, path, 100 << 20, &blob), 0);
	use_blob(b, blob.data, blob.len, s->media_type);
	if (s->toc)
		assert_int_equal(desc_annotate(&b->desc, TOC, s->toc), 0);
	strbuf_free(&blob);
}

static struct tree *open_layer(struct bench *b)
{
	struct err err = {0};
	struct tree *t;

	assert_int_equal(layer_open(&t, b->store, &b->desc, b->remote, NULL, &err), 0);
	return t;
}

static struct tree *ready_layer(struct bench *b)
{
	struct tree *t = open_layer(b);
	struct err err = {0};

	if (layer_wait(t, &err) < 0)
		fail_msg("%s", err.text);
	return t;
}

static struct layer_status status_of(struct tree *t)
{
	struct layer_status s;

	layer_status(t, &s);
	return s;
}

static struct attr walk(struct tree *t, const char *path)
{
	struct attr a;
	struct err err = {0};

	if (tree_walk(t, path, false, &a, &err) < 0)
		fail_msg("%s: %s", path, err.text);
	return a;
}

/* ------------------------------------------------------------------ a layer as text */

static int print_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct digest d;
	char hex[DIGEST_HEX_MAX];

	digest_bytes(&d, value, len);
	strbuf_printf(arg, " %s=%.16s", name, digest_hex(&d, hex));
	return 0;
}

struct printing {
	struct tree *t;
	struct strbuf out;
};

static void print_content(struct printing *p, const struct attr *a)
{
	struct digest have, known;
	char hex[DIGEST_HEX_MAX];
	struct err err = {0};
	char *bytes = malloc(a->size + 1);

	if (tree_read(p->t, a->id, 0, bytes, a->size, NULL, NULL, &err) != (int64_t)a->size)
		fail_msg("read: %s", err.text);
	digest_bytes(&have, bytes, a->size);
	if (tree_content_digest(p->t, a->id, &known) == 0)
		assert_true(digest_equal(&have, &known));
	else
		assert_int_equal(a->size, 0);
	strbuf_printf(&p->out, " %s", digest_hex(&have, hex));
	free(bytes);
}

static int print_entry(void *arg, const char *path, const char *name, const struct attr *a)
{
	struct printing *p = arg;

	/* mtime only to seconds: a table of contents has no more, and rounds */
	strbuf_printf(&p->out, "%s t%d %o %u:%u n%u %llu %lld d%u:%u%s%s", path, a->type, a->mode,
		      a->uid, a->gid, a->nlink, (unsigned long long)a->size, (long long)a->mtime_s,
		      a->dev_major, a->dev_minor, a->is_opaque ? " opaque" : "",
		      a->is_implicit ? " implicit" : "");
	if (a->type == NODE_SYMLINK) {
		strbuf_puts(&p->out, " -> ");
		assert_int_equal(tree_readlink(p->t, a->id, &p->out, NULL), 0);
	}
	assert_int_equal(tree_xattrs(p->t, a->id, print_xattr, &p->out, NULL), 0);
	if (a->type == NODE_FILE)
		print_content(p, a);
	strbuf_putc(&p->out, '\n');
	return 0;
}

static char *print_layer(struct tree *t)
{
	struct printing p = {.t = t};

	assert_int_equal(tree_walk_all(t, TREE_ROOT, print_entry, &p, NULL), 0);
	return strbuf_finish(&p.out);
}

/* ------------------------------------------------------------------ all encodings */

static void every_encoding_is_the_same_tree(void **state)
{
	char *wanted = NULL;

	for (size_t i = 0; i < countof(samples); i++) {
		struct bench *b = bench_new(0);
		use_sample(b, &samples[i]);
		struct tree *t = ready_layer(b);
		char *is = print_layer(t);
		if (!wanted)
			wanted = strdup(is);
		if (strcmp(is, wanted) != 0) {
			size_t at = 0;
			while (is[at] == wanted[at])
				at++;
			while (at && is[at - 1] != '\n')
				at--;
			fail_msg("%s:\n%.300s\nand not\n%.300s", samples[i].name, is + at,
				 wanted + at);
		}
		struct layer_status s = status_of(t);
		assert_int_equal(s.format, samples[i].format);
		assert_true(s.is_ready && s.is_lazy);
		assert_string_equal(s.reason, "");
		assert_true(s.large_bytes >= 9 << 20);
		free(is);
		tree_unref(t);
		bench_free(b);
	}
	free(wanted);
}

static void what_is_in_the_store_is_not_made_again(void **state)
{
	for (size_t i = 0; i < countof(samples); i++) {
		struct bench *b = bench_new(0);
		use_sample(b, &samples[i]);
		struct tree *t = ready_layer(b);
		char *first = print_layer(t);
		tree_unref(t);
		store_close(b->store);

		/* Another process, with the remote gone. */
		open_store(b);
		b->fail = -ENETUNREACH;
		b->n_requests = 0;
		t = open_layer(b);
		assert_true(status_of(t).is_ready);
		char *second = print_layer(t);
		assert_string_equal(first, second);
		assert_int_equal(b->n_requests, 0);
		free(first);
		free(second);
		tree_unref(t);
		bench_free(b);
	}
}

static void estargz_costs_its_table_and_what_is_read(void **state)
{
	struct bench *b = bench_new(0);
	char text[10];

	use_sample(b, ESTARGZ);
	struct tree *t = ready_layer(b);
	uint64_t table = b->n_bytes;
	assert_int_equal(b->n_requests, 1); /* the table is within the tail */
	assert_true(table <= 32 << 10);
	struct attr a = walk(t, "/small/d0/e0/f05.txt");
	assert_int_equal(b->n_requests, 1);
	assert_true(tree_read(t, a.id, 0, text, sizeof(text), NULL, NULL, NULL) > 0);
	assert_true(b->n_bytes - table < 64 << 10);
	struct layer_status s = status_of(t);
	assert_true(s.is_lazy);
	assert_false(s.usage.is_complete);
	tree_unref(t);
	bench_free(b);
}

static void one_pass_fetches_each_byte_once(void **state)
{
	struct bench *b = bench_new(20);
	struct tree *trees[8];

	use_sample(b, GZIP_SINGLE);
	for (size_t i = 0; i < countof(trees); i++)
		trees[i] = open_layer(b);
	for (size_t i = 0; i < countof(trees); i++) {
		assert_int_equal(layer_wait(trees[i], NULL), 0);
		tree_unref(trees[i]);
	}
	assert_int_equal(b->n_bytes, b->desc.size);
	bench_free(b);
}

/* ------------------------------------------------------------------ eStargz made by hand */

static uint32_t crc_of(const uint8_t *bytes, size_t n)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < n; i++) {
		crc ^= bytes[i];
		for (int k = 0; k < 8; k++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return ~crc;
}

static void put_le(struct strbuf *s, uint32_t value, int n)
{
	for (int i = 0; i < n; i++)
		strbuf_putc(s, (char)(value >> 8 * i));
}

/* A gzip member of stored blocks, which need no compressor. */
static void put_member(struct strbuf *s, const void *bytes, size_t n)
{
	const uint8_t *p = bytes;
	size_t left = n;

	strbuf_add(s, "\x1f\x8b\x08\0\0\0\0\0\0\xff", 10);
	do {
		uint32_t len = (uint32_t)MIN(left, (size_t)65535);
		strbuf_putc(s, len == left);
		put_le(s, len, 2);
		put_le(s, ~len, 2);
		strbuf_add(s, p, len);
		p += len;
		left -= len;
	} while (left);
	put_le(s, crc_of(bytes, n), 4);
	put_le(s, (uint32_t)n, 4);
}

static void put_toc(struct strbuf *s, const struct strbuf *json)
{
	struct strbuf tar = {0};
	char h[512] = {0}, footer[51] = "\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16";
	unsigned sum = 8 * ' ';
	size_t toc_off = s->len;

	strcpy(h, "stargz.index.json");
	snprintf(h + 124, 12, "%011zo", json->len);
	h[156] = '0';
	memcpy(h + 257, "ustar\00000", 8);
	for (size_t i = 0; i < sizeof(h); i++)
		sum += (uint8_t)h[i];
	snprintf(h + 148, 8, "%06o", sum);
	strbuf_add(&tar, h, sizeof(h));
	strbuf_add(&tar, json->data, json->len);
	memset(h, 0, sizeof(h));
	strbuf_add(&tar, h, -json->len % 512);
	strbuf_add(&tar, h, sizeof(h));
	strbuf_add(&tar, h, sizeof(h));
	put_member(s, tar.data, tar.len);
	strbuf_free(&tar);
	snprintf(footer + 16, 24, "%016zxSTARGZ", toc_off);
	memcpy(footer + 38, "\1\0\0\xff\xff\0\0\0\0\0\0\0", 13);
	strbuf_add(s, footer, sizeof(footer));
}

/* One file "f" of the content "hello", which the table says is @digest_of, and @n_dirs folders. */
static void use_own_estargz(struct bench *b, const char *digest_of, int n_dirs)
{
	struct strbuf blob = {0}, json = {0};
	char text[DIGEST_TEXT_MAX];
	struct digest d;

	put_member(&blob, "some header", 11);
	digest_bytes(&d, digest_of, strlen(digest_of));
	strbuf_printf(&json,
		      "{\"version\":1,\"entries\":[{\"name\":\"f\",\"type\":\"reg\",\"size\":5,"
		      "\"offset\":%zu,\"chunkDigest\":\"%s\"}",
		      blob.len, digest_text(&d, text));
	for (int i = 0; i < n_dirs; i++)
		strbuf_printf(&json, ",{\"name\":\"dir%d\",\"type\":\"dir\"}", i);
	strbuf_puts(&json, "]}");
	put_member(&blob, "hello and padding", 17);
	put_toc(&blob, &json);
	use_blob(b, blob.data, blob.len, GZIP_TYPE);
	digest_bytes(&d, json.data, json.len);
	assert_int_equal(desc_annotate(&b->desc, TOC, digest_text(&d, text)), 0);
	strbuf_free(&json);
	strbuf_free(&blob);
}

static void a_large_table_takes_one_more_read(void **state)
{
	struct bench *b = bench_new(0);
	char text[10];

	use_own_estargz(b, "hello", 5000);
	assert_true(b->desc.size > 100 << 10);
	struct tree *t = ready_layer(b);
	assert_int_equal(b->n_requests, 2);
	assert_true(b->n_bytes <= b->desc.size); /* nothing twice */
	walk(t, "/dir4999");
	struct attr a = walk(t, "/f");
	assert_int_equal(tree_read(t, a.id, 0, text, sizeof(text), NULL, NULL, NULL), 5);
	assert_memory_equal(text, "hello", 5);
	assert_int_equal(b->n_requests, 3);
	tree_unref(t);
	bench_free(b);
}

static void content_that_is_not_what_the_table_says_is_refused(void **state)
{
	struct bench *b = bench_new(0);
	struct err err = {0};
	char text[10];

	use_own_estargz(b, "hallo", 0);
	struct tree *t = ready_layer(b);
	struct attr a = walk(t, "/f");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(tree_read(t, a.id, 0, text, 5, NULL, NULL, &err), -EBADMSG);
		assert_true(*err.text);
	}
	tree_unref(t);
	bench_free(b);
}

/* ------------------------------------------------------------------ reasons */

static void the_reason_is_told_while_the_layer_is_streamed(void **state)
{
	static const struct {
		const struct sample *sample;
		const char *annotation, *reason;
	} cases[] = {
		{GZIP_SINGLE, NULL, "plain gzip: no table of contents, streamed once"},
		{&samples[2], NULL, "plain layer: no table of contents, streamed once"},
		{&samples[3], "io.github.containers.zstd-chunked.manifest-checksum",
		 "zstd:chunked is read as plain zstd: streamed once"},
		{ESTARGZ, NULL, ""},
	};

	for (size_t i = 0; i < countof(cases); i++) {
		struct bench *b = bench_new(100);
		use_sample(b, cases[i].sample);
		if (cases[i].annotation)
			desc_annotate(&b->desc, cases[i].annotation, "x");
		struct tree *t = open_layer(b);
		struct layer_status s = status_of(t);
		assert_string_equal(s.reason, cases[i].reason);
		assert_int_equal(s.is_lazy, !*cases[i].reason);
		assert_false(s.is_ready);
		assert_int_equal(layer_wait(t, NULL), 0);
		s = status_of(t);
		assert_string_equal(s.reason, "");
		assert_true(s.is_lazy && s.is_ready);
		tree_unref(t);
		bench_free(b);
	}
}

static void tell(void *arg, const char *reason)
{
	strbuf_puts(arg, reason);
}

static int go_on(void *arg, uint64_t position)
{
	return 0;
}

static void expect_fallback(const struct sample *s, const char *toc, const char *words)
{
	struct bench *b = bench_new(0);
	struct strbuf told = {0};
	struct layer_progress progress = {.tell = tell, .go_on = go_on, .arg = &told};
	struct layer_made made = {0};
	struct err err = {0};

	use_sample(b, s);
	assert_int_equal(desc_annotate(&b->desc, TOC, toc), 0);
	struct layer_source source = {.store = b->store};
	assert_int_equal(blob_open(&source.blob, b->store, &b->desc, b->remote, NULL), 0);
	if (layer_make(&source, &progress, &made, &err) < 0)
		fail_msg("%s", err.text);
	if (!strstr(told.data, words))
		fail_msg("\"%s\" does not say \"%s\"", told.data, words);
	assert_int_equal(strlen(made.key), 64);
	index_free(made.index);
	blob_unref(source.blob);
	strbuf_free(&told);
	bench_free(b);
}

static void a_table_that_cannot_be_used_leads_to_the_pass(void **state)
{
	static const char other[] =
		"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

	expect_fallback(UNVOUCHED, other, "not the one that the manifest vouches for: streamed");
	expect_fallback(GZIP_SINGLE, other, "without a footer: streamed once");
	struct sample external = *EXTERNAL;
	external.toc = NULL;
	expect_fallback(&external, other, "in another image: streamed once");
}

/* ------------------------------------------------------------------ failing */

struct counter {
	struct tree_wait wait;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	int n;
};

static void counter_ready(struct tree_wait *wait)
{
	struct counter *c = containerof(wait, struct counter, wait);

	pthread_mutex_lock(&c->lock);
	c->n++;
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

static void counter_wait(struct counter *c)
{
	pthread_mutex_lock(&c->lock);
	while (c->n == 0)
		pthread_cond_wait(&c->cond, &c->lock);
	pthread_mutex_unlock(&c->lock);
}

#define COUNTER                                                                                    \
	{                                                                                          \
		.wait = {.ready = counter_ready}, .lock = PTHREAD_MUTEX_INITIALIZER,               \
		.cond = PTHREAD_COND_INITIALIZER                                                   \
	}

static void calls_say_later_and_are_told_when(void **state)
{
	struct bench *b = bench_new(200);
	struct counter one = COUNTER, two = COUNTER;
	struct attr a;

	use_sample(b, ESTARGZ);
	struct tree *t = open_layer(b);
	/* the root never waits */
	assert_int_equal(tree_getattr(t, TREE_ROOT, &a, &one.wait, NULL), 0);
	assert_int_equal(a.type, NODE_DIR);
	assert_int_equal(a.mode, 0755);
	assert_true(a.is_implicit);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "small", 5, &a, &one.wait, NULL), -EAGAIN);
	assert_int_equal(tree_list(t, TREE_ROOT, 0, NULL, NULL, &two.wait, NULL), -EAGAIN);
	assert_int_equal(one.n, 0);
	counter_wait(&one);
	counter_wait(&two);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "small", 5, &a, &one.wait, NULL), 0);
	assert_int_equal(one.n, 1);
	tree_unref(t);
	bench_free(b);
}

static void a_failure_is_kept_and_given_to_every_call(void **state)
{
	struct bench *b = bench_new(50);
	struct counter c = COUNTER;
	struct err err = {0};
	struct attr a;

	use_sample(b, ESTARGZ);
	b->fail = -ENETUNREACH;
	struct tree *t = open_layer(b);
	assert_int_equal(tree_lookup(t, TREE_ROOT, "small", 5, &a, &c.wait, NULL), -EAGAIN);
	counter_wait(&c);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(tree_lookup(t, TREE_ROOT, "small", 5, &a, &c.wait, &err),
				 -ENETUNREACH);
		assert_true(*err.text);
	}
	assert_int_equal(layer_wait(t, &err), -ENETUNREACH);
	assert_int_equal(tree_getattr(t, TREE_ROOT, &a, NULL, NULL), 0); /* is made up anyway */
	struct layer_status s = status_of(t);
	assert_int_equal(s.error, -ENETUNREACH);
	assert_false(s.is_lazy || s.is_ready);
	assert_true(*s.reason);
	assert_int_equal(c.n, 1);
	tree_unref(t);
	bench_free(b);
}

static void without_ranges_a_layer_is_streamed_once(void **state)
{
	struct bench *b = bench_new(0);
	struct attr a;
	uint8_t byte;

	use_sample(b, ESTARGZ);
	b->is_unranged = true;
	struct tree *t = open_layer(b);
	assert_int_equal(layer_wait(t, NULL), 0);
	assert_int_equal(b->n_requests, 2); /* the tail, which told; then all of it */
	assert_int_equal(tree_lookup(t, TREE_ROOT, "small", 5, &a, NULL, NULL), 0);
	assert_int_equal(tree_walk(t, "log/text-9m.log", false, &a, NULL), 0);
	assert_int_equal(tree_read(t, a.id, a.size - 1, &byte, 1, NULL, NULL, NULL), 1);
	assert_int_equal(b->n_requests, 2);
	struct layer_status s = status_of(t);
	assert_true(s.usage.is_complete);
	tree_unref(t);
	bench_free(b);
}

static void a_layer_recovers_when_its_registry_does(void **state)
{
	struct bench *b = bench_new(1);
	struct err err = {0};
	struct attr a;
	uint64_t end = now_ns() + 20 * NS_PER_S;

	use_sample(b, ESTARGZ);
	b->fail = -ENETUNREACH;
	struct tree *t = open_layer(b);
	assert_int_equal(layer_wait(t, &err), -ENETUNREACH);
	b->fail = 0;
	int r;
	do
		r = tree_lookup(t, TREE_ROOT, "small", 5, &a, NULL, &err);
	while (r == -ENETUNREACH && now_ns() < end);
	assert_int_equal(r, 0);
	struct layer_status s = status_of(t);
	assert_int_equal(s.error, 0);
	assert_true(s.is_lazy && s.is_ready);
	tree_unref(t);
	bench_free(b);
}

static void a_wrong_diff_id_is_an_error_at_any_time(void **state)
{
	struct bench *b = bench_new(0);
	struct digest wrong, right;
	struct err err = {0};
	struct tree *t;

	use_sample(b, GZIP_SINGLE);
	digest_bytes(&wrong, "x", 1);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(layer_open(&t, b->store, &b->desc, b->remote, &wrong, NULL), 0);
		assert_int_equal(layer_wait(t, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "diff ID"));
		tree_unref(t);
	}
	assert_int_equal(
		digest_parse(&right,
			     "sha256:"
			     "abfcdbdd48265e56cb0eb79828113f788cee2304b24198dde215cb9948428845",
			     NULL),
		0);
	assert_int_equal(layer_open(&t, b->store, &b->desc, b->remote, &right, NULL), 0);
	assert_int_equal(layer_wait(t, NULL), 0);
	tree_unref(t);
	bench_free(b);
}

static void what_is_no_tar_is_an_error_that_names_the_layer(void **state)
{
	struct bench *b = bench_new(0);
	struct err err = {0};
	char junk[2000];

	memset(junk, 'j', sizeof(junk));
	use_blob(b, junk, sizeof(junk), NULL);
	struct tree *t = open_layer(b);
	assert_int_equal(layer_wait(t, &err), -EBADMSG);
	assert_true(str_starts(err.text, "layer sha256:"));
	assert_non_null(strstr(err.text, ": tar: "));
	assert_int_equal(status_of(t).error, -EBADMSG);
	tree_unref(t);
	bench_free(b);
}

/* Their tars have lost their padding, and nothing else. */
static void a_wrong_diff_id_of_zstd_chunked_is_only_told(void **state)
{
	struct bench *b = bench_new(0);
	struct digest wrong;
	struct tree *t;

	use_sample(b, &samples[3]);
	digest_bytes(&wrong, "x", 1);
	desc_annotate(&b->desc, "io.containers.zstd-chunked.manifest-checksum", "x");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(layer_open(&t, b->store, &b->desc, b->remote, &wrong, NULL), 0);
		assert_int_equal(layer_wait(t, NULL), 0);
		struct layer_status s = status_of(t);
		assert_true(s.is_lazy);
		assert_int_equal(s.format, LAYER_ZSTDCHUNKED);
		assert_non_null(strstr(s.reason, "diff ID"));
		tree_unref(t);
	}
	bench_free(b);
}

static void nothing_is_published_of_a_blob_with_another_digest(void **state)
{
	struct bench *b = bench_new(0);
	struct err err = {0};
	struct tree *t;
	int fd;

	use_sample(b, GZIP_SINGLE);
	b->desc.digest.bytes[0] ^= 1;
	t = open_layer(b);
	assert_true(layer_wait(t, &err) < 0);
	tree_unref(t);
	char hex[DIGEST_HEX_MAX];
	digest_hex(&b->desc.digest, hex);
	assert_int_equal(store_file_open(b->store, "index", hex, &fd), -ENOENT);
	bench_free(b);
}

static void a_layer_that_nobody_wants_is_given_up(void **state)
{
	struct bench *b = bench_new(300);

	use_sample(b, GZIP_SINGLE);
	struct tree *t = open_layer(b);
	tree_unref(t);
	/* closing the store waits for the job, which ends */
	bench_free(b);
}

static void damaged_files_of_the_store_are_made_again(void **state)
{
	static const char *const kinds[] = {"index", "spans"};

	for (size_t i = 0; i < countof(kinds); i++) {
		struct bench *b = bench_new(0);
		char path[300];
		use_sample(b, ESTARGZ);
		struct tree *t = ready_layer(b);
		char *first = print_layer(t);
		tree_unref(t);
		snprintf(path, sizeof(path), "%s/%s/%s-%.16s", b->dir, kinds[i], ESTARGZ->hex,
			 ESTARGZ->toc + 7);
		assert_int_equal(truncate(path, 50), 0);
		log_max = LOG_ERROR;
		t = ready_layer(b);
		log_max = LOG_WARN;
		char *second = print_layer(t);
		assert_string_equal(first, second);
		tree_unref(t);
		free(first);
		free(second);
		bench_free(b);
	}
}

static void ids_that_are_none_are_refused(void **state)
{
	static const uint64_t ids[] = {0, 100000, UINT64_C(1) << 32, UINT64_MAX};
	struct bench *b = bench_new(0);
	struct attr a;
	char byte;

	use_sample(b, ESTARGZ);
	struct tree *t = ready_layer(b);
	for (size_t i = 0; i < countof(ids); i++) {
		assert_int_equal(tree_getattr(t, ids[i], &a, NULL, NULL), -ENOENT);
		assert_int_equal(tree_read(t, ids[i], 0, &byte, 1, NULL, NULL, NULL), -ENOENT);
	}
	a = walk(t, "/small");
	assert_int_equal(tree_read(t, a.id, 0, &byte, 1, NULL, NULL, NULL), -EINVAL);
	a = walk(t, "/small/d0/e0/f05.txt");
	assert_int_equal(tree_lookup(t, a.id, "x", 1, &a, NULL, NULL), -ENOTDIR);
	tree_unref(t);
	bench_free(b);
}

/* ------------------------------------------------------------------ content */

static void reads_end_with_the_file(void **state)
{
	struct bench *b = bench_new(0);
	char text[4096], part[100];

	use_sample(b, CHUNK64K);
	struct tree *t = ready_layer(b);
	struct attr a = walk(t, "/small/d0/e0/f05.txt");
	assert_int_equal(tree_read(t, a.id, 0, text, sizeof(text), NULL, NULL, NULL), a.size);
	assert_int_equal(tree_read(t, a.id, a.size - 10, part, 100, NULL, NULL, NULL), 10);
	assert_memory_equal(part, text + a.size - 10, 10);
	assert_int_equal(tree_read(t, a.id, a.size, part, 100, NULL, NULL, NULL), 0);
	assert_int_equal(tree_read(t, a.id, UINT64_MAX, part, 100, NULL, NULL, NULL), 0);
	uint64_t data, end;
	assert_int_equal(tree_seek_data(t, a.id, 3, &data, &end), 0);
	assert_int_equal(data, 3);
	assert_int_equal(end, a.size);
	assert_int_equal(tree_seek_data(t, a.id, a.size, &data, &end), -ENODATA);
	tree_unref(t);
	bench_free(b);
}

static void sparse_files_have_zeros_between_their_data(void **state)
{
	static char wanted[150000], content[150000];
	struct bench *b = bench_new(5);
	struct strbuf tar = {0};
	char path[300];
	uint64_t data, end;

	memcpy(wanted + 10000, "hello", 5);
	memcpy(wanted + 140000, "world", 5);
	snprintf(path, sizeof(path), "%s/fuzz/corpus/tar/sparse-1.0.tar", getenv("TEST_SOURCE"));
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &tar), 0);
	use_blob(b, tar.data, tar.len, NULL);
	strbuf_free(&tar);
	struct tree *t = ready_layer(b);
	assert_int_equal(status_of(t).format, LAYER_TAR);
	struct attr a = walk(t, "/sp");
	static const size_t steps[] = {150000, 9999, 70001};
	for (size_t i = 0; i < countof(steps); i++) {
		memset(content, 0xaa, sizeof(content));
		for (size_t at = 0; at < sizeof(content);) {
			int64_t n =
				tree_read(t, a.id, at, content + at, steps[i], NULL, NULL, NULL);
			assert_int_equal(n, MIN(steps[i], sizeof(content) - at));
			at += (size_t)n;
		}
		assert_memory_equal(content, wanted, sizeof(content));
	}
	assert_int_equal(tree_seek_data(t, a.id, 0, &data, &end), 0);
	assert_int_equal(data, 8192);
	assert_int_equal(end, 12288);
	assert_int_equal(tree_seek_data(t, a.id, end, &data, &end), 0);
	assert_int_equal(data, 139264);
	assert_int_equal(tree_seek_data(t, a.id, end, &data, &end), -ENODATA);
	a = walk(t, "/hole");
	assert_int_equal(tree_read(t, a.id, 69990, content, 100, NULL, NULL, NULL), 10);
	assert_memory_equal(content, wanted, 10);
	tree_unref(t);
	bench_free(b);
}

static void large_files_get_a_flat_copy(void **state)
{
	struct bench *b = bench_new(0);
	struct err err = {0};
	char text[5], flat[5];
	int fd = -1, r;

	use_sample(b, GZIP_SINGLE);
	struct tree *t = ready_layer(b);
	struct attr a = walk(t, "/log/text-9m.log");
	assert_int_equal(tree_open_flat(t, a.id, false, &fd, &err), -ENOENT);
	/* made in the background, which tells nobody: ask until it is there */
	for (int i = 0; (r = tree_open_flat(t, a.id, true, &fd, &err)) < 0 && i < 2000; i++)
		usleep(5000);
	assert_int_equal(r, 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), a.size);
	assert_int_equal(tree_read(t, a.id, 5000000, text, 5, NULL, NULL, NULL), 5);
	assert_int_equal(pread(fd, flat, 5, 5000000), 5);
	assert_memory_equal(text, flat, 5);
	close(fd);
	a = walk(t, "/small");
	assert_int_equal(tree_open_flat(t, a.id, true, &fd, &err), -ENOENT);
	tree_unref(t);
	bench_free(b);
}

/* ------------------------------------------------------------------ prefetch */

static void wait_for_bytes(struct bench *b, uint64_t more_than)
{
	for (int i = 0; i < 2000; i++) {
		if (__atomic_load_n(&b->n_bytes, __ATOMIC_SEQ_CST) > more_than)
			return;
		usleep(5000);
	}
	fail_msg("nothing was fetched");
}

static void what_was_read_is_learned(void **state)
{
	struct bench *b = bench_new(0);
	char text[100];
	int fd;

	use_sample(b, CHUNK64K);
	struct tree *t = ready_layer(b);
	layer_learn(t);
	char key[100];
	snprintf(key, sizeof(key), "%s-%.16s", CHUNK64K->hex, CHUNK64K->toc + 7);
	assert_int_equal(store_file_open(b->store, "learned", key, &fd), -ENOENT);
	struct attr a = walk(t, "/log/text-9m.log");
	assert_int_equal(tree_read(t, a.id, 3000000, text, 100, NULL, NULL, NULL), 100);
	layer_learn(t);
	tree_unref(t);
	store_close(b->store);

	/* Another machine that has learned the same: content is not here, what was read is known. */
	char command[300];
	snprintf(command, sizeof(command), "rm -rf %s/partial/* %s/blobs/sha256/*", b->dir, b->dir);
	assert_int_equal(system(command), 0);
	open_store(b);
	t = ready_layer(b);
	b->n_bytes = 0;
	layer_prefetch_learned(t);
	wait_for_bytes(b, 0);
	usleep(100000);
	uint64_t n = b->n_bytes;
	assert_true(n < 200000);
	assert_int_equal(tree_read(t, a.id, 3000000, text, 100, NULL, NULL, NULL), 100);
	assert_int_equal(b->n_bytes, n);
	tree_unref(t);
	bench_free(b);
}

static void a_scan_is_not_learned(void **state)
{
	struct learned *l = learned_new(100 << 20);
	struct bench *b = bench_new(0);
	int fd;

	learned_add(l, 0, 60 << 20);
	learned_save(l, b->store, "key");
	assert_int_equal(store_file_open(b->store, "learned", "key", &fd), -ENOENT);
	learned_free(l);
	l = learned_new(100 << 20);
	learned_add(l, 99 << 20, 1 << 20);
	learned_add(l, 99 << 20, 2 << 20); /* beyond the end: nothing */
	learned_save(l, b->store, "key");
	assert_int_equal(store_file_open(b->store, "learned", "key", &fd), 0);
	close(fd);
	learned_free(l);
	bench_free(b);
}

static void wishes_to_prefetch_wait_for_the_index(void **state)
{
	struct bench *b = bench_new(50);

	use_sample(b, PREFETCH);
	struct tree *t = open_layer(b);
	layer_prefetch_all(t);
	assert_int_equal(layer_wait(t, NULL), 0);
	for (int i = 0; i < 2000 && status_of(t).usage.here < b->desc.size * 9 / 10; i++)
		usleep(5000);
	assert_true(status_of(t).usage.here >= b->desc.size * 9 / 10);
	tree_unref(t);
	bench_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_encoding_is_the_same_tree),
		cmocka_unit_test(what_is_in_the_store_is_not_made_again),
		cmocka_unit_test(estargz_costs_its_table_and_what_is_read),
		cmocka_unit_test(a_large_table_takes_one_more_read),
		cmocka_unit_test(content_that_is_not_what_the_table_says_is_refused),
		cmocka_unit_test(one_pass_fetches_each_byte_once),
		cmocka_unit_test(the_reason_is_told_while_the_layer_is_streamed),
		cmocka_unit_test(a_table_that_cannot_be_used_leads_to_the_pass),
		cmocka_unit_test(calls_say_later_and_are_told_when),
		cmocka_unit_test(a_failure_is_kept_and_given_to_every_call),
		cmocka_unit_test(a_layer_recovers_when_its_registry_does),
		cmocka_unit_test(without_ranges_a_layer_is_streamed_once),
		cmocka_unit_test(a_wrong_diff_id_is_an_error_at_any_time),
		cmocka_unit_test(a_wrong_diff_id_of_zstd_chunked_is_only_told),
		cmocka_unit_test(what_is_no_tar_is_an_error_that_names_the_layer),
		cmocka_unit_test(nothing_is_published_of_a_blob_with_another_digest),
		cmocka_unit_test(a_layer_that_nobody_wants_is_given_up),
		cmocka_unit_test(damaged_files_of_the_store_are_made_again),
		cmocka_unit_test(ids_that_are_none_are_refused),
		cmocka_unit_test(reads_end_with_the_file),
		cmocka_unit_test(sparse_files_have_zeros_between_their_data),
		cmocka_unit_test(large_files_get_a_flat_copy),
		cmocka_unit_test(what_was_read_is_learned),
		cmocka_unit_test(a_scan_is_not_learned),
		cmocka_unit_test(wishes_to_prefetch_wait_for_the_index),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
