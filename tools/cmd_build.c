/* SPDX-License-Identifier: Apache-2.0 */

/*
 * build: a definition becomes a ref that stays in the store.
 *
 * Everything that was typed is looked at before the first thing is done. The ID is told last, on
 * stdout and in files, when all outputs are there: who has an ID of this build has all of it. For
 * the same reason files that are to tell it are removed first, as docker does with --iidfile: those
 * of an earlier build must not speak for one that failed.
 */

#include "tools/tools.h"

#include <sys/stat.h>
#include <unistd.h>

struct build {
	const struct options *o;
	const char *file; /* "-" = stdin */
	vec(struct output) outputs;
	bool uses_stdout;
	struct graph *graph;
	struct build_progress *progress;
	struct app app;
	struct ref *ref;
	struct digest id;
};

/* ------------------------------------------------------------------ what was typed */

static int build_outputs(struct build *b, struct err *err)
{
	size_t n_stdout = 0;

	for (size_t i = 0; i < b->o->outputs.n; i++) {
		struct output *out = vec_push(&b->outputs);
		int r = out ? output_parse(out, b->o->outputs.items[i], err) : -ENOMEM;

		if (r == 0)
			r = output_check(out, err);
		if (r < 0)
			return r;
		n_stdout += out->type != OUTPUT_IMAGE && !out->dest;
	}
	b->uses_stdout = n_stdout > 0;
	return n_stdout > 1 ? err_set(err, -EINVAL, "--output: two of them go to stdout") : 0;
}

static int build_parse(struct build *b, struct err *err)
{
	const struct words *w = &b->o->words;

	if (w->n > 1)
		return err_set(err, -EINVAL, "\"%s\" is one word too many; see llbfs build --help",
			       w->items[1].text);
	b->file = w->n ? w->items[0].text : "-";
	if (strcmp(b->file, "-") == 0 && isatty(STDIN_FILENO))
		return err_set(
			err, -EINVAL,
			"a definition is missing: name a FILE or pipe one in; see llbfs build "
			"--help");
	return build_outputs(b, err);
}

/* ------------------------------------------------------------------ Dockerfiles */

/* @file: what to name with -f; NULL = the one that docker finds. */
static int say_dockerfile(const char *what, const char *file, const char *dir, struct err *err)
{
	return err_set(
		err, -EINVAL,
		"%s, no definition; run docker buildx build --call=convertllb,format=json "
		"%s%s%s%s | llbfs build - (with --local context=%s, if it copies from there)",
		what, file ? "-f " : "", file ? file : "", file ? " " : "", dir, dir);
}

/* The first line that is neither empty nor a comment begins with FROM or ARG. */
static bool begins_like_dockerfile(const char *text)
{
	for (; *text; text += strcspn(text, "\n")) {
		text += strspn(text, " \t\r\n");
		if (*text == '#')
			continue;
		return (strncasecmp(text, "FROM", 4) == 0 && strchr(" \t", text[4])) ||
		       (strncasecmp(text, "ARG", 3) == 0 && strchr(" \t", text[3]));
	}
	return false;
}

/* What could not be loaded may be what people have instead of a definition. */
static int build_refused(const struct build *b, const struct strbuf *bytes, int r, struct err *err)
{
	const char *slash = strrchr(b->file, '/'), *name = slash ? slash + 1 : b->file;
	bool is_stdin = strcmp(b->file, "-") == 0;
	scoped(free) char *dir =
		slash ? strndup(b->file, (size_t)MAX(slash - b->file, 1)) : strdup(".");

	if (!dir || r == -ENOMEM)
		return -ENOMEM;
	if (!str_starts(name, "Dockerfile") &&
	    !begins_like_dockerfile(bytes->data ? bytes->data : ""))
		return err_wrap(err, r, "%s", is_stdin ? "standard input" : b->file);
	return say_dockerfile("this is a Dockerfile",
			      is_stdin || strcmp(name, "Dockerfile") == 0 ? NULL : b->file, dir,
			      err);
}

static int build_load(struct build *b, struct err *err)
{
	scoped(strbuf_free) struct strbuf bytes = {0};
	struct stat st;
	int r;

	if (strcmp(b->file, "-") != 0 && stat(b->file, &st) == 0 && S_ISDIR(st.st_mode))
		return say_dockerfile("this is a folder", NULL, b->file, err);
	r = definition_read(&bytes, b->file, err);
	if (r < 0)
		return r;
	r = graph_load(&b->graph, bytes.data ? bytes.data : "", bytes.len, err);
	return r < 0 ? build_refused(b, &bytes, r, err) : 0;
}

/* ------------------------------------------------------------------ what came of it */

static int write_whole(const char *path, const struct strbuf *text, struct err *err)
{
	struct whole_file file;
	int r;

	if (text->failed)
		return -ENOMEM;
	r = whole_file_open(&file, path, 0666, err);
	if (r < 0)
		return r;
	r = write_full(file.fd, text->data, text->len);
	if (r < 0)
		err_set(err, r, "%s: %s", path, strerror(-r));
	return whole_file_close(&file, r, err);
}

static int remove_stale(const char *path, struct err *err)
{
	struct stat st;

	if (!path || lstat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	return unlink(path) < 0 ? err_errno(err, "%s", path) : 0;
}

static int build_tell(struct build *b, struct err *err)
{
	scoped(strbuf_free) struct strbuf id = {0}, metadata = {0};
	char hex[DIGEST_HEX_MAX];
	int r = 0;

	strbuf_puts(&id, digest_hex(&b->id, hex));
	strbuf_puts(&metadata, "{\n");
	for (size_t i = b->outputs.n; i-- > 0;)
		if (b->outputs.items[i].image) {
			/* the last one speaks, as the last writer of a key does */
			output_image_metadata(b->outputs.items[i].image, &metadata);
			break;
		}
	strbuf_printf(&metadata, "  \"llbfs.ref\": \"%s\"\n}\n", hex);
	if (b->o->metadata_file)
		r = write_whole(b->o->metadata_file, &metadata, err);
	if (r == 0 && b->o->iidfile)
		r = write_whole(b->o->iidfile, &id, err);
	if (r < 0 || b->uses_stdout)
		return r;
	strbuf_putc(&id, '\n');
	return out_flush(NULL, &id, err);
}

/* ------------------------------------------------------------------ building */

static int build_solve(struct build *b, struct err *err)
{
	const struct solve_options options = {
		.no_cache = b->o->no_cache,
		.event = build_progress_event,
		.arg = b->progress,
	};
	struct vertex *vertex;
	int index, r;

	graph_result(b->graph, &vertex, &index);
	r = graph_solve(b->graph, b->app.solver, vertex, index, &options, &b->ref, err);
	if (r == 0)
		r = ref_save(b->ref, b->app.solver, &b->id, err);
	for (size_t i = 0; r == 0 && i < b->outputs.n; i++)
		r = output_write(&b->outputs.items[i], &b->app, b->o, b->ref, &b->id, b->progress,
				 err);
	return r;
}

static int build_run(struct build *b, struct err *err)
{
	struct options quiet = *b->o; /* a build shows its own progress */
	int r = remove_stale(b->o->iidfile, err);

	quiet.progress = PROGRESS_QUIET;
	if (r == 0)
		r = remove_stale(b->o->metadata_file, err);
	if (r == 0)
		r = temporary_catch_interrupts(err);
	if (r == 0)
		r = app_open(&b->app, &quiet, "llbfs build", err);
	if (r < 0)
		return r;
	r = build_progress_new(&b->progress, (enum progress_mode)b->o->progress, b->graph, err);
	if (r == 0) {
		r = build_solve(b, err);
		build_progress_free(b->progress);
	}
	ref_unref(b->ref);
	graph_free(take(b->graph)); /* its refs, too, are of the store */
	app_close(&b->app);
	return r;
}

int cmd_build(struct options *o, struct err *err)
{
	struct build b = {.o = o};
	int r = build_parse(&b, err);

	if (r == 0)
		r = build_load(&b, err);
	if (r == 0)
		r = build_run(&b, err);
	if (r == 0)
		r = build_tell(&b, err);
	graph_free(b.graph);
	for (size_t i = 0; i < b.outputs.n; i++)
		output_deinit(&b.outputs.items[i]);
	vec_free(&b.outputs);
	return r;
}
