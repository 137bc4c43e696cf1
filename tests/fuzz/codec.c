/* SPDX-License-Identifier: Apache-2.0 */

/* Compressed bytes of strangers: a whole stream with its restart points, and each span that follows
 * from them. What the points give must be what the stream gave. */

#include "blobstore/blobstore-internal.h"

#define OUT_MAX (1u << 20)
#define POINTS_MAX 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct point {
	struct codec_point at;
	size_t stored, plain;
};

static void check_point(const struct point *p, const uint8_t *data, size_t size,
			const uint8_t *plain, size_t n_plain)
{
	size_t from = p->stored - (p->at.bits != 0), len = MIN(n_plain - p->plain, (size_t)65536);
	struct span span = {
		.kind = (uint8_t)p->at.kind,
		.bits = p->at.bits,
		.window_len = p->at.window_len,
		.stored_len = (uint32_t)(size - from),
	};
	uint8_t *out = malloc(len + 1);

	if (out && len) {
		int r = codec_decode(&span, data + from, p->at.window, 0, out, len, NULL);
		if (r == 0 && memcmp(out, plain + p->plain, len) != 0)
			abort();
	}
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct codec_reader *reader = NULL;
	uint8_t *plain = malloc(OUT_MAX);
	struct point *points = calloc(POINTS_MAX, sizeof(*points));
	struct codec_io io = {data, size, plain, OUT_MAX};
	size_t n = 0;

	if (!plain || !points || codec_reader_new(&reader, codec_detect(data, size)) < 0)
		goto end;
	for (;;) {
		size_t in = io.n_in, out = io.n_out;
		int r = codec_reader_step(reader, &io, NULL);
		if (r < 0 || (r == CODEC_MORE && in == io.n_in && out == io.n_out))
			break;
		if (r == CODEC_POINT && n < POINTS_MAX &&
		    codec_reader_point(reader, &points[n].at) == 0) {
			points[n].stored = size - io.n_in;
			points[n].plain = OUT_MAX - io.n_out;
			n++;
		}
		if (!io.n_in || !io.n_out)
			break;
	}
	for (size_t i = 0; i < n; i++)
		check_point(&points[i], data, size, plain, OUT_MAX - io.n_out);
end:
	codec_reader_free(reader);
	free(points);
	free(plain);
	return 0;
}
