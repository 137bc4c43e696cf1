/* SPDX-License-Identifier: Apache-2.0 */

/*
 * --output type=oci and type=docker: an image, with buildctl's keys.
 *
 * The default of both is OCI's media types, as BuildKit has it by now, and a tar; with tar=false it
 * is a layout folder. What names the image are annotations of the manifest's descriptor in the
 * index (containerd reads the full name, everybody else the tag), and in docker's archive also
 * manifest.json. Where BuildKit says "now" in a descriptor, we say the time of the image: two
 * outputs of one ref are the same bytes.
 */

#include "tools/tools.h"

#include <strings.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------ keys */

static int bad_value(const char *field, const char *wants, struct err *err)
{
	return err_set(err, -EINVAL, "--output: %s: want %s", field, wants);
}

/* As Go's strconv.ParseBool. */
static int parse_bool(const char *field, const char *value, bool *out, struct err *err)
{
	static const char *const yes[] = {"1", "t", "T", "true", "TRUE", "True"};
	static const char *const no[] = {"0", "f", "F", "false", "FALSE", "False"};

	for (size_t i = 0; i < countof(yes); i++) {
		*out = strcmp(value, yes[i]) == 0;
		if (*out || strcmp(value, no[i]) == 0)
			return 0;
	}
	return bad_value(field, "true or false", err);
}

static int parse_i64(const char *field, const char *value, int64_t *out, struct err *err)
{
	bool is_negative = *value == '-';
	uint64_t n;

	if (parse_u64(value + is_negative, &n) < 0 || n > INT32_MAX * UINT64_C(64))
		return bad_value(field, "a number", err);
	*out = is_negative ? -(int64_t)n : (int64_t)n;
	return 0;
}

static int set_compression(struct output_image *image, const char *field, const char *value,
			   struct err *err)
{
	static const struct {
		const char *name;
		enum plain_format format;
	} known[] = {{"gzip", PLAIN_GZIP}, {"zstd", PLAIN_ZSTD}, {"uncompressed", PLAIN_TAR}};

	for (size_t i = 0; i < countof(known); i++)
		if (strcmp(value, known[i].name) == 0) {
			image->options.compression = known[i].format;
			return 0;
		}
	if (strcmp(value, "estargz") == 0 || strcmp(value, "zstdchunked") == 0)
		return err_set(err, -ENOTSUP,
			       "--output: %s cannot be written, only read; use gzip or zstd",
			       field);
	return bad_value(field, "gzip, zstd or uncompressed", err);
}

static int set_level(struct output_image *image, const char *field, const char *value,
		     struct err *err)
{
	int64_t n = 0;
	int r = parse_i64(field, value, &n, err);

	if (r == 0 && (n < 0 || n > 22))
		r = bad_value(field, "0 to 9 for gzip, 1 to 22 for zstd", err);
	image->options.level = (int)n;
	return r;
}

static int set_epoch(struct output_image *image, const char *what, const char *value,
		     struct err *err)
{
	image->options.has_epoch = *value != '\0'; /* empty: none, whatever the environment says */
	return *value ? parse_i64(what, value, &image->options.epoch, err) : 0;
}

static int add_names(struct output_image *image, const char *value, struct err *err)
{
	for (const char *p = value;; p++) {
		size_t len = strcspn(p, ",");
		scoped(free) char *text = strndup(p, len);
		struct image_name *name = text ? vec_push(&image->names) : NULL;

		if (!name)
			return -ENOMEM;
		int r = image_name_parse(name, text, err);
		if (r < 0) {
			image->names.n--;
			return err_wrap(err, r, "--output: name");
		}
		p += len;
		if (!*p)
			return 0;
	}
}

static int add_annotation(struct annotation *to, const char *key, const char *value)
{
	if (!to)
		return -ENOMEM;
	to->key = strndup(key, (size_t)(value - key) - 1);
	to->value = strdup(value);
	return to->key && to->value ? 0 : -ENOMEM;
}

/* annotation.K, annotation-manifest.K, annotation-manifest-descriptor.K: 1 when it is one. */
static int set_annotation(struct output_image *image, const char *field, const char *value,
			  struct err *err)
{
	static const char of_manifest[] = "annotation-manifest.", plain[] = "annotation.";
	static const char of_desc[] = "annotation-manifest-descriptor.";
	const char *key = NULL;
	int r;

	if (strncasecmp(field, "annotation", strlen("annotation")) != 0)
		return 0;
	if (strncasecmp(field, of_desc, strlen(of_desc)) == 0) {
		key = field + strlen(of_desc);
		r = key + 1 < value ? add_annotation(vec_push(&image->desc_annotations), key, value)
				    : -EINVAL;
		return r < 0 ? r : 1;
	}
	if (strncasecmp(field, of_manifest, strlen(of_manifest)) == 0)
		key = field + strlen(of_manifest);
	else if (strncasecmp(field, plain, strlen(plain)) == 0)
		key = field + strlen(plain);
	if (!key || key + 1 >= value)
		return err_set(
			err, -EINVAL,
			"--output: \"%.*s\": want annotation.KEY, annotation-manifest.KEY or "
			"annotation-manifest-descriptor.KEY: there is one image and no index",
			(int)(value - field) - 1, field);
	r = add_annotation(vec_push(&image->annotations), key, value);
	return r < 0 ? r : 1;
}

int output_image_field(struct output_image *image, const char *field, struct err *err)
{
	struct image_options *o = &image->options;
	const char *value = strchr(field, '=') + 1;
	bool yes = false;
	const struct {
		const char *key;
		bool *flag;
		bool is_negated;
	} flags[] = {
		{"force-compression", &o->force_compression, false},
		{"oci-mediatypes", &o->docker_types, true},
		{"rewrite-timestamp", &o->rewrite_timestamp, false},
		{"tar", &image->is_folder, true},
	};
	int r = set_annotation(image, field, value, err);

	if (r != 0)
		return MIN(r, 0);
	for (size_t i = 0; i < countof(flags); i++)
		if (csv_value(field, flags[i].key)) {
			r = parse_bool(field, value, &yes, err);
			*flags[i].flag = yes != flags[i].is_negated;
			return r;
		}
	if (csv_value(field, "name"))
		return add_names(image, value, err);
	if (csv_value(field, "compression"))
		return set_compression(image, field, value, err);
	if (csv_value(field, "compression-level"))
		return set_level(image, field, value, err);
	if (csv_value(field, "source-date-epoch"))
		return set_epoch(image, field, value, err);
	return err_set(err, -EINVAL, "--output: an image has no key \"%.*s\"",
		       (int)(value - field) - 1, field);
}

static int by_key(const void *a, const void *b)
{
	return strcmp(((const struct annotation *)a)->key, ((const struct annotation *)b)->key);
}

static int check_level(const struct image_options *o, struct err *err)
{
	if (o->level == BLOB_LEVEL_DEFAULT)
		return 0;
	if (o->compression == PLAIN_TAR || (o->compression == PLAIN_GZIP && o->level > 9) ||
	    (o->compression == PLAIN_ZSTD && o->level < 1))
		return err_set(err, -EINVAL,
			       "--output: compression-level=%d: want 0 to 9 for gzip, 1 to 22 for "
			       "zstd, none for uncompressed",
			       o->level);
	return 0;
}

int output_image_settle(struct output_image *image, struct err *err)
{
	struct image_options *o = &image->options;
	size_t n = image->annotations.n;

	if (o->rewrite_timestamp && !o->has_epoch)
		return err_set(err, -EINVAL,
			       "--output: rewrite-timestamp needs a time: set SOURCE_DATE_EPOCH or "
			       "source-date-epoch=SECONDS");
	if (o->docker_types && n > 0)
		return err_set(err, -EINVAL,
			       "--output: annotations need OCI's media types: leave out "
			       "oci-mediatypes=false");
	if (n > 1)
		qsort(image->annotations.items, n, sizeof(*image->annotations.items), by_key);
	o->annotations = image->annotations.items;
	o->n_annotations = n;
	return check_level(o, err);
}

/* ------------------------------------------------------------------ making and freeing */

int output_image_new(struct output_image **out, bool is_docker)
{
	const char *epoch = getenv("SOURCE_DATE_EPOCH");
	struct output_image *image = calloc(1, sizeof(*image));

	if (!image)
		return -ENOMEM;
	image->is_docker = is_docker;
	image->options.compression = PLAIN_GZIP;
	image->options.level = BLOB_LEVEL_DEFAULT;
	*out = image;
	return epoch ? set_epoch(image, "SOURCE_DATE_EPOCH", epoch, NULL) : 0;
}

static void free_annotations(struct annotation *items, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		free(items[i].key);
		free(items[i].value);
	}
	free(items);
}

void output_image_free(struct output_image *image)
{
	if (!image)
		return;
	for (size_t i = 0; i < image->names.n; i++)
		image_name_deinit(&image->names.items[i]);
	vec_free(&image->names);
	free_annotations(image->annotations.items, image->annotations.n);
	free_annotations(image->desc_annotations.items, image->desc_annotations.n);
	image_deinit(&image->image);
	free(image);
}

/* ------------------------------------------------------------------ documents */

static char *time_text(int64_t seconds, char text[40])
{
	time_t t = (time_t)seconds;
	struct tm tm;

	gmtime_r(&t, &tm);
	strftime(text, 40, "%Y-%m-%dT%H:%M:%SZ", &tm);
	return text;
}

struct pair {
	const char *key, *value;
};

static int pair_by_key(const void *a, const void *b)
{
	return strcmp(((const struct pair *)a)->key, ((const struct pair *)b)->key);
}

static int put_annotations(const struct output_image *image, const struct image_name *name,
			   const char *tag, struct strbuf *out)
{
	vec(struct pair) all = {0};
	char created[40];
	scoped(free) char *full = name ? image_name_text(name) : NULL;
	const struct pair own[] = {
		{"io.containerd.image.name", full},
		{"org.opencontainers.image.created", time_text(image->image.created, created)},
		{"org.opencontainers.image.ref.name", tag},
	};
	struct pair *slot;
	int r = name && !full ? -ENOMEM : 0;

	for (size_t i = 0; i < countof(own) && r == 0; i++) {
		slot = own[i].value ? vec_push(&all) : NULL;
		if (slot)
			*slot = own[i];
		else if (own[i].value)
			r = -ENOMEM;
	}
	for (size_t i = 0; i < image->desc_annotations.n && r == 0; i++) {
		slot = vec_push(&all);
		if (slot)
			*slot = (struct pair){image->desc_annotations.items[i].key,
					      image->desc_annotations.items[i].value};
		else
			r = -ENOMEM;
	}
	if (all.n > 0)
		qsort(all.items, all.n, sizeof(*all.items), pair_by_key);
	json_key(out, "annotations");
	strbuf_putc(out, '{');
	for (size_t i = 0; i < all.n; i++)
		json_pair(out, all.items[i].key, all.items[i].value);
	strbuf_putc(out, '}');
	vec_free(&all);
	return r;
}

void output_image_desc(const struct output_image *image, const struct image_name *name,
		       const char *tag, struct strbuf *out)
{
	const struct desc *desc = &image->image.manifest_desc;
	const struct platform *p = &image->image.platform;
	char text[DIGEST_TEXT_MAX];

	strbuf_putc(out, '{');
	json_pair(out, "mediaType", desc->media_type);
	json_pair(out, "digest", digest_text(&desc->digest, text));
	json_u64(out, "size", desc->size);
	if (put_annotations(image, name, name ? name->tag : tag, out) < 0)
		out->failed = true;
	json_key(out, "platform");
	strbuf_putc(out, '{');
	json_pair(out, "architecture", p->arch);
	json_pair(out, "os", p->os);
	if (*p->variant)
		json_pair(out, "variant", p->variant);
	strbuf_puts(out, "}}");
}

/* As json.MarshalIndent would show the compact object @json, inside of a value at depth 1. */
static void put_indented(struct strbuf *out, const char *json)
{
	int depth = 1;
	bool is_text = false;

	for (const char *p = json; *p; p++) {
		bool opens = !is_text && *p == '{', closes = !is_text && *p == '}';

		if (*p == '\\') /* only in texts; what follows ends none */
			strbuf_putc(out, *p++);
		else if (*p == '"')
			is_text = !is_text;
		depth += opens - closes;
		if (closes)
			strbuf_printf(out, "\n%*s", 2 * depth, "");
		strbuf_putc(out, *p);
		if (opens || (!is_text && *p == ','))
			strbuf_printf(out, "\n%*s", 2 * depth, "");
		else if (!is_text && *p == ':')
			strbuf_putc(out, ' ');
	}
}

void output_image_metadata(const struct output_image *image, struct strbuf *out)
{
	scoped(strbuf_free) struct strbuf desc = {0}, names = {0};
	char text[DIGEST_TEXT_MAX];

	output_image_desc(image, NULL, NULL, &desc);
	strbuf_printf(out, "  \"containerimage.config.digest\": \"%s\",\n",
		      digest_text(&image->image.config_desc.digest, text));
	strbuf_puts(out, "  \"containerimage.descriptor\": ");
	put_indented(out, desc.data ? desc.data : "{}");
	strbuf_printf(out, ",\n  \"containerimage.digest\": \"%s\",\n",
		      digest_text(&image->image.manifest_desc.digest, text));
	for (size_t i = 0; i < image->names.n; i++) {
		scoped(free) char *name = image_name_text(&image->names.items[i]);

		strbuf_printf(&names, "%s%s", i ? "," : "", name ? name : "");
		out->failed |= !name;
	}
	if (names.len) {
		strbuf_puts(out, "  \"image.name\": ");
		json_text(out, names.data, names.len);
		strbuf_puts(out, ",\n");
	}
	out->failed |= desc.failed || names.failed;
}

/* ------------------------------------------------------------------ the door */

static int write_tar(const struct output_image *image, const char *dest, struct store *store,
		     struct err *err)
{
	struct whole_file file;
	int r;

	if (!dest)
		return layout_write_tar(image, store, STDOUT_FILENO, err);
	r = whole_file_open(&file, dest, 0666, err);
	if (r < 0)
		return r;
	r = layout_write_tar(image, store, file.fd, err);
	return whole_file_close(&file, r, err);
}

int output_image_write(struct output_image *image, const char *dest, struct app *app,
		       struct ref *ref, struct err *err)
{
	int r = image_make(&image->image, ref, app->solver, &image->options, err);

	if (r < 0)
		return r;
	return image->is_folder ? layout_write_folder(image, app->store, dest, err)
				: write_tar(image, dest, app->store, err);
}
