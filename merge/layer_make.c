/* SPDX-License-Identifier: Apache-2.0 */

/*
 * layer_make: how a layer's index comes to be in the store.
 *
 * Two ways, in this order:
 *
 *  - From a table of contents, when the manifest names the table's digest (eStargz). Two small
 *    reads: the blob's tail, and the rest of the table. The table's place is a claim of the blob's
 *    last bytes, and nothing is believed before the table's digest has been checked.
 *  - By one pass over the whole blob, which checks the blob's digest, reads the tar that it is,
 *    and leaves spans. Nothing is published before blob_pass_finish has said yes: spans first,
 *    then the index, so that an index in the store always has its spans.
 *
 * Anything wrong with a table (its digest, its JSON, chunks that are too large or have no digest)
 * leads to the pass, with the reason told; so does a registry that sends whole blobs only, from
 * which one pass is cheaper than any two reads. Errors of the network do not: the pass would meet them
 * again, with more to fetch.
 *
 * The passes of several processes are kept apart by the lock "layer-<hex>"; who waited for it finds
 * the index in the store. Tables are cheap and may be read twice; the last rename wins, and equals
 * the first.
 */

#include "merge/merge.h"

#include <stdio.h>

#include "merge/merge-internal.h"

#define TOC_ANNOTATION "containerd.io/snapshot/stargz/toc.digest"
#define TOC_NAME "stargz.index.json"
#define TAIL_MAX (32u << 10)
#define TOC_MAX (150u << 20) /* as containers/storage has it, compressed or not */
#define TAR_OVERHEAD (64u << 10)
#define LOCK_WAIT_MS 500

static const char *const zstdchunked_prefixes[] = {"io.github.containers.zstd-chunked.",
						   "io.containers.zstd-chunked."};

static bool is_zstdchunked(const struct desc *desc)
{
	for (size_t i = 0; i < desc->n_annotations; i++) {
		for (size_t k = 0; k < countof(zstdchunked_prefixes); k++) {
			if (str_starts(desc->annotations[i].key, zstdchunked_prefixes[k]))
				return true;
		}
	}
	return false;
}

/* The digest of the table of contents that the manifest vouches for. */
static bool toc_digest(const struct desc *desc, struct digest *out)
{
	const char *text = desc_annotation(desc, TOC_ANNOTATION);

	return text && !is_zstdchunked(desc) && digest_parse(out, text, NULL) == 0;
}

enum layer_format layer_guess(const struct desc *desc, char reason[LAYER_REASON_MAX])
{
	const char *type = desc->media_type ? desc->media_type : "";
	struct digest toc;

	reason[0] = '\0';
	if (is_zstdchunked(desc)) {
		snprintf(reason, LAYER_REASON_MAX,
			 "zstd:chunked is read as plain zstd: streamed once");
		return LAYER_ZSTDCHUNKED;
	}
	if (toc_digest(desc, &toc))
		return LAYER_ESTARGZ;
	enum layer_format format = str_ends(type, "gzip")   ? LAYER_GZIP
				   : str_ends(type, "zstd") ? LAYER_ZSTD
				   : str_ends(type, "tar")  ? LAYER_TAR
							    : LAYER_UNKNOWN;
	snprintf(reason, LAYER_REASON_MAX, "plain %s: no table of contents, streamed once",
		 format == LAYER_UNKNOWN ? "layer" : layer_format_name(format));
	return format;
}

/* ------------------------------------------------------------------ in the store */

static void make_key(const struct layer_source *s, const struct digest *toc,
		     char key[LAYER_KEY_MAX])
{
	char hex[DIGEST_HEX_MAX], toc_hex[DIGEST_HEX_MAX];

	digest_hex(&blob_desc(s->blob)->digest, hex);
	if (toc)
		snprintf(key, LAYER_KEY_MAX, "%s-%.16s", hex, digest_hex(toc, toc_hex));
	else
		snprintf(key, LAYER_KEY_MAX, "%s", hex);
}

static int map_index(const struct layer_source *s, const char *key, struct index **out,
		     struct err *err)
{
	int opened;
	int r = store_file_open(s->store, "index", key, &opened);

	if (r < 0)
		return err_set(err, r, "layer index %s: %s", key, strerror(-r));
	scoped(close_fd) int fd = opened;
	scoped(index_free) struct index *x = NULL;
	r = index_map(&x, fd, err);
	if (r < 0)
		return r;
	struct index_about about;
	index_about(x, &about);
	if (!digest_equal(&about.digest, &blob_desc(s->blob)->digest))
		return err_set(err, -EBADMSG, "layer index %s: of another layer", key);
	*out = take(x);
	return 0;
}

/* Old writers of zstd:chunked drop the padding at the tar's end, so that nobody can get the diff ID
 * that the config has: that is told in *note. */
static int check_diff_id(const struct layer_source *s, const struct index *x, const char **note,
			 struct err *err)
{
	struct index_about about;
	char layer[DIGEST_TEXT_MAX], is[DIGEST_TEXT_MAX], wanted[DIGEST_TEXT_MAX];

	*note = "";
	index_about(x, &about);
	if (digest_is_zero(&s->diff_id) || digest_is_zero(&about.diff_id) ||
	    digest_equal(&s->diff_id, &about.diff_id))
		return 0;
	if (is_zstdchunked(blob_desc(s->blob))) {
		*note = "not the diff ID of the config: its writer dropped the end of the tar";
		return 0;
	}
	return err_set(err, -EBADMSG, "layer %s: the image's config says diff ID %s, but it is %s",
		       digest_text(&blob_desc(s->blob)->digest, layer),
		       digest_text(&s->diff_id, wanted), digest_text(&about.diff_id, is));
}

/* Takes the index with @key and its spans into use. What is damaged is removed. -ENOENT; -EEXIST the
 * blob is in use with another table; -EBADMSG the diff ID is another. */
static int use_index(const struct layer_source *s, const char *key, struct layer_made *out,
		     struct err *err)
{
	scoped(index_free) struct index *x = NULL;
	scoped(span_table_unref) struct span_table *spans = NULL;
	int r = map_index(s, key, &x, err);

	if (r == 0)
		r = span_table_open(&spans, s->store, key, err);
	if (r == 0)
		r = blob_set_spans(s->blob, spans, key, err);
	if (r == -EBADMSG || (r == -ENOENT && x)) {
		log_warn("layer index is made again: key=%s %s", key, err_text(err, r));
		store_file_remove(s->store, "index", key);
		return -ENOENT;
	}
	if (r == 0)
		r = check_diff_id(s, x, &out->note, err);
	if (r < 0)
		return r;
	out->index = take(x);
	out->plain_size = span_table_plain_size(spans);
	snprintf(out->key, sizeof(out->key), "%s", key);
	return 0;
}

int layer_find(const struct layer_source *s, struct layer_made *out, struct err *err)
{
	char key[LAYER_KEY_MAX];
	struct digest toc;

	make_key(s, NULL, key);
	int r = use_index(s, key, out, err);
	if ((r == -ENOENT || r == -EEXIST) && toc_digest(blob_desc(s->blob), &toc)) {
		make_key(s, &toc, key);
		r = use_index(s, key, out, err);
	}
	return r;
}

static int keep_index(const struct layer_source *s, const char *key, struct index_builder *b,
		      const struct index_about *about, bool hide_toc, struct err *err)
{
	void *made = NULL;
	size_t n;
	int r = index_builder_finish(b, about, hide_toc, &made, &n, err);

	if (r < 0)
		return r;
	scoped(free) void *bytes = made;
	struct store_file file;
	r = store_file_begin(s->store, "index", key, &file, err);
	if (r < 0)
		return r;
	r = write_full(file.fd, bytes, n);
	if (r < 0) {
		store_file_abort(s->store, &file);
		return err_set(err, r, "layer index: %s", strerror(-r));
	}
	return store_file_commit(s->store, &file, err);
}

/* ------------------------------------------------------------------ from a table of contents */

/* The member that holds the table, without the footer, appended to @out. */
static int read_toc_member(struct blob *blob, struct strbuf *out, uint64_t *toc_off,
			   struct err *err)
{
	uint64_t size = blob_desc(blob)->size;
	size_t n_tail = (size_t)MIN(size, (uint64_t)TAIL_MAX);
	scoped(free) uint8_t *tail = malloc(TAIL_MAX);

	if (!tail)
		return err_set(err, -ENOMEM, "table of contents: no memory");
	if (n_tail == 0)
		return err_set(err, -EBADMSG, "eStargz without a footer");
	int r = blob_read_stored(blob, size - n_tail, tail, n_tail, err);
	if (r < 0)
		return r;
	if (blob_is_unranged(blob))
		return err_set(err, -ENOTSUP, "the registry does not serve ranges");
	enum toc_kind kind = toc_footer(tail, n_tail, size, toc_off);
	if (kind == TOC_EXTERNAL)
		return err_set(err, -ENOTSUP,
			       "eStargz whose table of contents is in another image");
	if (kind == TOC_NONE)
		return err_set(err, -EBADMSG, "eStargz without a footer");
	if (size - *toc_off > TOC_MAX)
		return err_set(err, -EFBIG,
			       "eStargz with a table of contents of more than 150 MiB");

	uint64_t tail_off = size - n_tail;
	if (*toc_off >= tail_off) {
		strbuf_add(out, tail + (*toc_off - tail_off), (size_t)(size - *toc_off));
		return out->failed ? err_set(err, -ENOMEM, "table of contents: no memory") : 0;
	}
	size_t n_rest = (size_t)(tail_off - *toc_off);
	scoped(free) uint8_t *rest = malloc(n_rest);
	if (!rest)
		return err_set(err, -ENOMEM, "table of contents: no memory");
	r = blob_read_stored(blob, *toc_off, rest, n_rest, err);
	if (r < 0)
		return r;
	strbuf_add(out, rest, n_rest);
	strbuf_add(out, tail, n_tail);
	return out->failed ? err_set(err, -ENOMEM, "table of contents: no memory") : 0;
}

/* The table's JSON, borrowed from @tar; its digest has been checked. */
static int read_toc(struct blob *blob, const struct digest *wanted, struct strbuf *tar,
		    const char **json, size_t *n, uint64_t *toc_off, struct err *err)
{
	scoped(strbuf_free) struct strbuf member = {0};
	const void *content;
	struct digest is;
	int r = read_toc_member(blob, &member, toc_off, err);

	if (r == 0)
		r = codec_gunzip_member(member.data, member.len, TOC_MAX + TAR_OVERHEAD, tar, err);
	if (r == 0)
		r = tar_find(tar->data, tar->len, TOC_NAME, &content, n, err);
	if (r == -ENOENT)
		r = -EBADMSG;
	if (r < 0)
		return r;
	digest_bytes(&is, content, *n);
	if (!digest_equal(&is, wanted))
		return err_set(err, -EBADMSG,
			       "table of contents is not the one that the manifest vouches for");
	*json = content;
	return 0;
}

static int make_from_toc(const struct layer_source *s, const struct digest *toc,
			 struct layer_made *out, struct err *err)
{
	scoped(strbuf_free) struct strbuf tar = {0};
	scoped(index_builder_free) struct index_builder *b = index_builder_new(true);
	scoped(span_builder_free) struct span_builder *spans = span_builder_new();
	scoped(span_table_unref) struct span_table *table = NULL;
	struct index_about about = {.format = LAYER_ESTARGZ, .digest = blob_desc(s->blob)->digest};
	char key[LAYER_KEY_MAX];
	const char *json = NULL;
	uint64_t toc_off = 0;
	size_t n;

	if (!b || !spans)
		return err_set(err, -ENOMEM, "table of contents: no memory");
	int r = read_toc(s->blob, toc, &tar, &json, &n, &toc_off, err);
	if (r == 0)
		r = toc_json(b, spans, json, n, toc_off, &about.prefetch_bytes, err);
	if (r < 0)
		return r;
	make_key(s, toc, key);
	r = span_builder_commit(spans, s->store, key, &table, err);
	if (r == 0)
		r = keep_index(s, key, b, &about, true, err);
	return r < 0 ? r : use_index(s, key, out, err);
}

/* ------------------------------------------------------------------ by a pass */

struct feed {
	struct blob_pass *pass;
	const struct layer_progress *progress;
	bool has_failed; /* the stream and not the tar: that error names the layer already */
};

static int feed_next(void *arg, const void **bytes, size_t *n, struct err *err)
{
	struct feed *f = arg;
	int r = f->progress->go_on(f->progress->arg, blob_pass_position(f->pass));

	if (r < 0)
		err_set(err, r, "given up");
	else
		r = blob_pass_next(f->pass, bytes, n, err);
	f->has_failed = r < 0;
	return r;
}

/* True when the blob is an eStargz that nobody vouches for. It is all here by now. */
static bool has_toc_footer(struct blob *blob)
{
	uint8_t tail[TOC_FOOTER_MAX];
	uint64_t size = blob_desc(blob)->size, toc_off;

	return size >= sizeof(tail) &&
	       blob_read_stored(blob, size - sizeof(tail), tail, sizeof(tail), NULL) == 0 &&
	       toc_footer(tail, sizeof(tail), size, &toc_off) != TOC_NONE;
}

static enum layer_format pass_format(const struct layer_source *s, enum plain_format plain)
{
	const struct desc *desc = blob_desc(s->blob);

	switch (plain) {
	case PLAIN_GZIP:
		return desc_annotation(desc, TOC_ANNOTATION) || has_toc_footer(s->blob)
			       ? LAYER_ESTARGZ
			       : LAYER_GZIP;
	case PLAIN_ZSTD:
		return is_zstdchunked(desc) ? LAYER_ZSTDCHUNKED : LAYER_ZSTD;
	case PLAIN_TAR:
		break;
	}
	return LAYER_TAR;
}

static int make_by_pass(const struct layer_source *s, const struct layer_progress *p,
			struct layer_made *out, struct err *err)
{
	scoped(index_builder_free) struct index_builder *b = index_builder_new(false);
	scoped(blob_pass_free) struct blob_pass *pass = NULL;
	const struct desc *desc = blob_desc(s->blob);
	struct pass_result result;
	char key[LAYER_KEY_MAX], text[DIGEST_TEXT_MAX];

	if (!b)
		return err_set(err, -ENOMEM, "layer index: no memory");
	make_key(s, NULL, key);
	int r = blob_pass_begin(&pass, s->blob, err);
	if (r < 0)
		return r;
	struct feed feed = {.pass = pass, .progress = p};
	r = tar_index(b, feed_next, &feed, err);
	if (r < 0 && !feed.has_failed)
		err_wrap(err, r, "layer %s", digest_text(&desc->digest, text));
	if (r == 0)
		r = blob_pass_finish(pass, key, &result, err);
	else if (r != -ECANCELED && r != -ENOMEM)
		r = blob_pass_blame(pass, r, err);
	if (r < 0)
		return r;
	struct index_about about = {.digest = desc->digest,
				    .diff_id = result.diff_id,
				    .format = pass_format(s, result.format)};
	/* The same tree, whichever way it was read. */
	bool hide_toc = about.format == LAYER_ESTARGZ || about.format == LAYER_ZSTDCHUNKED;
	r = keep_index(s, key, b, &about, hide_toc, err);
	return r < 0 ? r : use_index(s, key, out, err);
}

/* Waits for the lock of passes over this layer. -EEXIST: somebody else has made the index. */
static int lock_pass(const struct layer_source *s, const struct layer_progress *p,
		     struct layer_made *out, int *fd, struct err *err)
{
	char hex[DIGEST_HEX_MAX], name[sizeof("layer-") + DIGEST_HEX_MAX];

	snprintf(name, sizeof(name), "layer-%s", digest_hex(&blob_desc(s->blob)->digest, hex));
	for (;;) {
		int r = store_lock(s->store, name, LOCK_WAIT_MS, fd, err);
		if (r == 0 || r == -EAGAIN) {
			int found = layer_find(s, out, err);
			if (found != -ENOENT) {
				if (r == 0)
					close_fd(*fd);
				return found < 0 ? found : -EEXIST;
			}
		}
		if (r != -EAGAIN)
			return r;
		r = p->go_on(p->arg, 0);
		if (r < 0)
			return err_set(err, r, "given up");
	}
}

int layer_make(const struct layer_source *s, const struct layer_progress *p, struct layer_made *out,
	       struct err *err)
{
	struct digest toc;
	int fd;

	if (toc_digest(blob_desc(s->blob), &toc)) {
		struct err why = {0};
		int r = make_from_toc(s, &toc, out, &why);
		if (r != -EBADMSG && r != -ENOTSUP && r != -EFBIG) {
			if (r < 0 && err)
				*err = why;
			return r;
		}
		char reason[LAYER_REASON_MAX];
		snprintf(reason, sizeof(reason), "%.130s: streamed once", err_text(&why, r));
		p->tell(p->arg, reason);
	}
	int r = lock_pass(s, p, out, &fd, err);
	if (r < 0)
		return r == -EEXIST ? 0 : r;
	r = make_by_pass(s, p, out, err);
	if (r == -EAGAIN) /* an earlier fetch had left damage, or there is some on the way */
		r = make_by_pass(s, p, out, err);
	if (r == -EAGAIN)
		r = err_wrap(err, -EBADMSG, "asked twice");
	close_fd(fd);
	return r;
}
