/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The source map of a definition: the lines of which file a vertex was made from.
 *
 * It is there for people, in errors and for blame, and no part of what is solved: what points to no
 * file or to no vertex is left out rather than refused. All locations stand in one array, and all
 * ranges in another, so that they end with two frees.
 */

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "llb.pb-c.h"
#include "solver/solver-internal.h"

/* A source map has the text of its files. Bounds what decoding takes, which is a multiple. */
#define SOURCE_MAX (16u << 20)

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

static int decode_files(struct llb_source *out, const Pb__Source *pb, struct err *err)
{
	out->files = calloc(pb->n_infos + 1, sizeof(*out->files));
	if (!out->files)
		return no_memory(err);
	for (; out->n_files < pb->n_infos; out->n_files++) {
		const ProtobufCBinaryData *name = &pb->infos[out->n_files]->filename;
		const char *text = name->len ? (const char *)name->data : "";
		if (name->len && !utf8_valid(text, name->len))
			return err_set(err, -EBADMSG, "file %zu: its name is not valid UTF-8 text",
				       out->n_files);
		char *file = strndup(text, name->len);
		if (!file)
			return no_memory(err);
		out->files[out->n_files] = file;
	}
	return 0;
}

/* Room for everything. The sums are bounded by the input, which was decoded. */
static int allocate(struct llb_source *out, const Pb__Source *pb, struct err *err)
{
	size_t n_locations = 0, n_ranges = 0;
	for (size_t i = 0; i < pb->n_locations; i++) {
		const Pb__Locations *of = pb->locations[i]->value;
		n_locations += of ? of->n_locations : 0;
		for (size_t k = 0; of && k < of->n_locations; k++)
			n_ranges += of->locations[k]->n_ranges;
	}
	out->vertices = calloc(pb->n_locations + 1, sizeof(*out->vertices));
	out->locations = calloc(n_locations + 1, sizeof(*out->locations));
	out->ranges = calloc(n_ranges + 1, sizeof(*out->ranges));
	return out->vertices && out->locations && out->ranges ? 0 : no_memory(err);
}

static bool decode_range(struct source_range *to, const Pb__Range *pb)
{
	static const Pb__Position none = PB__POSITION__INIT;
	const Pb__Position *start = pb->start ? pb->start : &none;
	const Pb__Position *end = pb->end ? pb->end : start;
	*to = (struct source_range){start->line, start->character, end->line, end->character};
	return start->line >= 0 && start->character >= 0 && end->line >= 0 && end->character >= 0;
}

/* The locations of one vertex, from the first free places of both arrays. */
static void decode_locations(struct llb_source *out, struct llb_source_vertex *to,
			     const Pb__Locations *pb, size_t *n_locations, size_t *n_ranges)
{
	to->locations = out->locations + *n_locations;
	for (size_t i = 0; i < pb->n_locations; i++) {
		const Pb__Location *from = pb->locations[i];
		if (from->source_index < 0 || (size_t)from->source_index >= out->n_files)
			continue;
		struct source_location *location = &out->locations[(*n_locations)++];
		struct source_range *ranges = out->ranges + *n_ranges;
		location->file = out->files[from->source_index];
		location->ranges = ranges;
		for (size_t k = 0; k < from->n_ranges; k++)
			location->n_ranges +=
				decode_range(&ranges[location->n_ranges], from->ranges[k]);
		*n_ranges += location->n_ranges;
		to->n_locations++;
	}
}

static int decode(struct llb_source *out, const Pb__Source *pb, struct err *err)
{
	size_t n_locations = 0, n_ranges = 0;
	int r = decode_files(out, pb, err);
	if (r == 0)
		r = allocate(out, pb, err);
	for (size_t i = 0; i < pb->n_locations && r == 0; i++) {
		const Pb__LocationsEntry *entry = pb->locations[i];
		struct llb_source_vertex *to = &out->vertices[out->n_vertices];
		char text[DIGEST_TEXT_MAX] = {0};
		if (!entry->value || entry->key.len >= sizeof(text))
			continue;
		memcpy(text, entry->key.len ? (const void *)entry->key.data : "", entry->key.len);
		if (digest_parse(&to->digest, text, NULL) < 0)
			continue;
		decode_locations(out, to, entry->value, &n_locations, &n_ranges);
		out->n_vertices++;
	}
	return r;
}

int llb_source_decode(struct llb_source *out, const struct llb_bytes *bytes, struct err *err)
{
	struct llb_source source = {0};
	if (bytes->n > SOURCE_MAX)
		return err_set(err, -EFBIG, "larger than %u MiB", SOURCE_MAX >> 20);
	Pb__Source *pb = pb__source__unpack(NULL, bytes->n, bytes->bytes);
	if (!pb)
		return err_set(err, -EBADMSG, "malformed protobuf");
	int r = decode(&source, pb, err);
	pb__source__free_unpacked(pb, NULL);
	if (r < 0)
		llb_source_deinit(&source);
	else
		*out = source;
	return r;
}

void llb_source_deinit(struct llb_source *source)
{
	texts_free(source->files, source->n_files);
	free(source->vertices);
	free(source->locations);
	free(source->ranges);
	*source = (struct llb_source){0};
}
