/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * tools: people.
 *
 * The program: one table of options (options.c) and one of commands (main.c) feed parsing, --help,
 * man pages and completion. A command returns an exit code (0, or 1 for an answer of no), or a
 * negative errno whose reason main prints as the one line of the error.
 */

#include <stdio.h>

#include "blobstore/base.h"
#include "blobstore/blobstore.h"
#include "fs/fs.h"
#include "merge/merge.h"
#include "solver/solver.h"

/* ------------------------------------------------------------------ options */

/* Which commands an option belongs to; a command names the groups that it takes. */
enum option_group {
	FOR_ALL = 1 << 0,
	FOR_REF = 1 << 1, /* verbs that take a REF */
	FOR_MOUNT = 1 << 2,
	FOR_UMOUNT = 1 << 3,
	FOR_LS = 1 << 4,
	FOR_FIND = 1 << 5,
	FOR_DU = 1 << 6,
	FOR_SHA256 = 1 << 7, /* verbs that can print digests of files */
	FOR_HELP = 1 << 8,
	FOR_HASH = 1 << 9,
	FOR_BUILD = 1 << 10,
};

enum option_kind {
	OPTION_FLAG,	 /* bool */
	OPTION_TEXT,	 /* const char * */
	OPTION_CHOICE,	 /* int: index into the words of @value, -1 when not given */
	OPTION_SIZE,	 /* uint64_t, "10MB" */
	OPTION_DURATION, /* uint64_t in ms, "10s" */
	OPTION_LIST,	 /* struct texts, repeatable */
	OPTION_MERGE,	 /* a word among the words, in the order typed */
	OPTION_HELP,
};

struct option_spec {
	const char *name; /* without dashes */
	char letter;	  /* 0 = none */
	enum option_kind kind;
	size_t field;	   /* of struct options */
	const char *value; /* placeholder, or the words of a choice: "table|json" */
	const char *env;   /* gives the value when the option is not typed; or NULL */
	const char *help;
	unsigned groups; /* enum option_group */
};
extern const struct option_spec option_specs[];
extern const size_t n_option_specs;

enum format { FORMAT_DEFAULT = -1, FORMAT_TABLE, FORMAT_JSON };
enum progress_mode {
	PROGRESS_AUTO,
	PROGRESS_PLAIN,
	PROGRESS_TTY,
	PROGRESS_RAWJSON,
	PROGRESS_QUIET
};
enum prefetch { PREFETCH_NONE, PREFETCH_LEARNED, PREFETCH_ALL };

/* What was typed after the command that is not an option, and --merge in its place between. */
struct word {
	const char *text;
	bool is_merge;
};
struct words {
	struct word *items;
	size_t n, cap;
};
struct texts {
	const char **items;
	size_t n, cap;
};

/* Everything that was asked for. Strings are borrowed from argv and the environment, but for
 * those in owned. */
struct options {
	const char *root;
	int format, progress, log_level, prefetch; /* choices */
	const char *platform, *ca, *layer, *name, *type;
	bool plain_http, insecure, trust_index, offline;
	uint64_t max_rate, deadline_ms, max_used_space;
	bool is_foreground, is_lazy, is_long, is_recursive, is_summary, sha256, man;
	bool follow, wildcard;
	bool is_writable;
	const char *upper; /* the folder of changes; NULL = they go with the mount */
	struct texts mount_options;    /* each -o as typed */
	struct texts layouts;	       /* each --oci-layout */
	struct texts include, exclude; /* patterns */
	struct texts locals;	       /* each --local */
	struct texts secrets, outputs, import_caches; /* each --secret, --output, --import-cache */
	bool no_cache;
	const char *metadata_file, *iidfile;
	struct words words;
	struct texts owned; /* strings made while parsing */
	bool help;
};

struct command;
/* Defaults and environment. Errors: -EINVAL a variable has a wrong value. */
int options_init(struct options *o, struct err *err);
void options_deinit(struct options *o);
/* Reads options in front of the command: returns the index of the command in @argv (argc = none). */
int options_parse_global(struct options *o, int argc, char **argv, struct err *err);
/* Reads the rest: argv[0] is the command's name. Errors: -EINVAL. */
int options_parse(struct options *o, const struct command *command, int argc, char **argv,
		  struct err *err);
/* Sets one option by name from text, as mount's -o does. -ENOENT: no such option. */
int options_set(struct options *o, const char *name, const char *value, struct err *err);
/* Keeps a copy of @text for as long as @o lives; NULL = no memory. */
const char *options_keep(struct options *o, const char *text);
/* True when @command takes the option. */
bool option_applies(const struct option_spec *spec, const struct command *command);

/* ------------------------------------------------------------------ commands */

struct command {
	const char *name;
	const char *usage;   /* what follows the name */
	const char *summary; /* one line */
	const char *text;    /* paragraphs, separated by an empty line */
	const char *example;
	unsigned groups;
	bool long_dash; /* options of several letters may have one dash, as in find */
	int (*run)(struct options *o, struct err *err);
};
extern const struct command commands[];
extern const size_t n_commands;
const struct command *command_find(const char *name); /* NULL = none */

int cmd_mount(struct options *o, struct err *err);
int cmd_build(struct options *o, struct err *err);
int cmd_umount(struct options *o, struct err *err);
int cmd_mounts(struct options *o, struct err *err);
int cmd_status(struct options *o, struct err *err);
int cmd_ls(struct options *o, struct err *err);
int cmd_cat(struct options *o, struct err *err);
int cmd_stat(struct options *o, struct err *err);
int cmd_find(struct options *o, struct err *err);
int cmd_cp(struct options *o, struct err *err);
int cmd_tar(struct options *o, struct err *err);
int cmd_du(struct options *o, struct err *err);
int cmd_diff(struct options *o, struct err *err);
int cmd_hash(struct options *o, struct err *err);
int cmd_inspect(struct options *o, struct err *err);
int cmd_version(struct options *o, struct err *err);
int cmd_completion(struct options *o, struct err *err);
int cmd_help(struct options *o, struct err *err);

/* The program called as mount(8)'s helper: SOURCE DIR [-sfnv] [-o OPTS]; mount(8) exit codes. */
int mount_helper(int argc, char **argv);

void help_command(FILE *to, const struct command *command);
void help_program(FILE *to);

/* ------------------------------------------------------------------ exit codes */

/* The program's contract with scripts. */
enum exit_code {
	EXIT_YES = 0,
	EXIT_NO = 1, /* only for an answer of no */
	EXIT_USAGE = 2,
	EXIT_NOT_FOUND = 3,
	EXIT_NOT_AUTHORISED = 4,
	EXIT_NETWORK = 5,
	EXIT_BAD_CONTENT = 6,
	EXIT_HOST = 7, /* this host cannot do it */
	EXIT_OTHER = 8,
};
/* What a command returned as exit code; prints the error, if it is one. */
int exit_with(int result, const struct err *err);

/* ------------------------------------------------------------------ progress */

/* Shows on stderr what a command waits for, once it has waited for a second: the layers that are
 * being read for the first time, and what came over the network. Safe to free at any time. */
struct progress;
/* @title as in "llbfs ls alpine"; @net is borrowed, may be NULL. */
int progress_new(struct progress **out, enum progress_mode mode, const char *title, struct net *net,
		 struct err *err);
/* These layers are worth showing; borrowed until progress_free. */
void progress_watch(struct progress *p, const struct ref_tree_layer *layers, size_t n);
/* What auto means here; the others stay. */
enum progress_mode progress_resolve(enum progress_mode mode);
void progress_terminal(unsigned *rows, unsigned *columns);
bool progress_colours(void); /* $NO_COLOR */
/* Takes the picture away and shows no more: stdout is about to use the same terminal. */
void progress_hide(struct progress *p);
void progress_free(struct progress *p);
define_scoped(struct progress *, progress_free);

/* The same for a build, in BuildKit's style: what happens to the vertices of @graph, which must
 * live as long, and then to outputs, one after another. */
struct build_progress;
int build_progress_new(struct build_progress **out, enum progress_mode mode, struct graph *graph,
		       struct err *err);
void build_progress_event(void *arg, const struct solve_event *event); /* of struct solve_options */
void build_progress_output(struct build_progress *p, const char *name);
/* What the output may have to wait for; borrowed until it ends. */
void build_progress_watch(struct build_progress *p, const struct ref_tree_layer *layers, size_t n);
void build_progress_output_end(struct build_progress *p, int r, const struct err *err);
/* Shows how it ended. */
void build_progress_free(struct build_progress *p);
define_scoped(struct build_progress *, build_progress_free);

/* ------------------------------------------------------------------ what a command works on */

/* The parts of the program, connected. */
struct app {
	struct net *net;
	struct store *store;
	struct solver *solver;
	struct progress *progress;
	/* for solver; names are owned, the rest is of the options */
	struct solver_layout *layouts, *locals;
	size_t n_layouts, n_locals;
	struct solver_secret *secrets; /* strings are owned */
	size_t n_secrets;
};
int app_open(struct app *app, const struct options *o, const char *title, struct err *err);
void app_close(struct app *app);
/* Output begins: on a terminal, progress must go. */
void app_output(struct app *app);

/* Splits words into REFs (with --merge among them) and paths. Without --merge the first word is the
 * REF. With it, words before the last --merge are REFs and those after it paths; so are surplus
 * words, when more than @max_paths follow. Pointers into @o. */
struct split {
	const struct word *inputs;
	size_t n_inputs;
	const struct word *paths;
	size_t n_paths;
};
int words_split(struct split *out, const struct options *o, size_t min_paths, size_t max_paths,
		struct err *err);

/* One --secret argument: id=ID[,src=FILE|,env=VAR]; with neither the variable called ID, if there
 * is one, else the file. Strings of @out are owned. Errors: -EINVAL, -ENOENT there is no such file. */
int secret_parse(struct solver_secret *out, const char *text, struct err *err);
void secret_deinit(struct solver_secret *secret);

/* One --merge argument: a CSV record. The strings are the caller's. */
struct merge_arg {
	char *ref, *trim, *add;
};
int merge_arg_parse(struct merge_arg *out, const char *text, struct err *err);
void merge_arg_deinit(struct merge_arg *arg);

/* Resolves and merges @inputs, narrowed by --layer, into one ref. */
int inputs_resolve(struct ref **out, struct app *app, const struct options *o,
		   const struct word *inputs, size_t n, struct err *err);

/* A ref and its files. */
struct view {
	struct ref *ref;
	struct tree *tree;
	struct ref_tree_layer *layers;
	size_t n_layers;
};
int view_open(struct view *v, struct app *app, const struct options *o, const struct word *inputs,
	      size_t n, struct err *err);
void view_close(struct view *v);

/* words_split, app_open and view_open in one: what most verbs begin with. On failure there is
 * nothing to close, but look_close may be called. */
struct look {
	struct app app;
	struct view view;
	struct split split;
};
int look_open(struct look *l, const struct options *o, const char *verb, size_t min_paths,
	      size_t max_paths, struct err *err);
void look_close(struct look *l);

/* A set of inode numbers with a value each. */
struct idmap {
	struct idmap_slot {
		uint64_t id; /* 0 = free */
		size_t value;
	} * slots;
	size_t n, cap; /* cap is 0 or a power of two */
};
/* 1 = added, 0 = it was there; or -ENOMEM. */
int idmap_add(struct idmap *m, uint64_t id, size_t value);
bool idmap_get(const struct idmap *m, uint64_t id, size_t *value);
void idmap_free(struct idmap *m);

/* ------------------------------------------------------------------ output */

/* A JSON string, quotes and all. Names are bytes: one that is not UTF-8 has each wrong byte b as
 * the lone surrogate \udcb, as Python's surrogateescape does, so that nothing is lost. */
void json_text(struct strbuf *s, const char *bytes, size_t len);
/* ,"key":"value" (without the comma right after a brace). @text NULL: null. */
void json_key(struct strbuf *s, const char *key);
void json_pair(struct strbuf *s, const char *key, const char *text);
void json_u64(struct strbuf *s, const char *key, uint64_t value);
void json_i64(struct strbuf *s, const char *key, int64_t value);
void json_bool(struct strbuf *s, const char *key, bool value);
void json_time(struct strbuf *s, const char *key, const struct timespec *t); /* RFC 3339, UTC */
void json_base64(struct strbuf *s, const char *key, const void *bytes, size_t n);

/* One file as a JSON object on a line, or as a line of ls -l. @path as it is to be shown. */
int row_json(struct strbuf *s, struct tree *t, const char *path, const struct attr *attr,
	     bool with_sha256, struct err *err);
int row_long(struct strbuf *s, struct tree *t, const char *name, const struct attr *attr,
	     struct err *err);
/* A name for a table: on a terminal, control characters are escaped. */
void row_name(struct strbuf *s, const char *name);
const char *type_name(uint8_t type); /* "reg", "dir", … as in the JSON */
char type_letter(uint8_t type);	     /* as ls -l begins; '-' for a regular file */
/* sha256 of a file's content: the one that is known, or read. */
int file_digest(struct tree *t, const struct attr *attr, struct digest *out, struct err *err);

/* Writes @s to stdout and empties it; @app (may be NULL) shows no more progress when that is a
 * terminal. Errors: -EPIPE among others. */
int out_flush(struct app *app, struct strbuf *s, struct err *err);
/* The same once there is enough to be worth a write. */
int out_maybe(struct app *app, struct strbuf *s, struct err *err);

/* Copies everything in @tree into the folder @dest of this host, which is made if it is not there;
 * what is there already stays or is written over. */
int copy_out(struct tree *tree, const char *dest, struct err *err);

/* ------------------------------------------------------------------ what is half written */

/* Names that stand for something unfinished, one file and one folder at a time. With interrupts
 * caught, SIGINT and SIGTERM take both away before they end the process as they would. Calls wait
 * for ever once that has begun. Names are borrowed and lie in @dir. */
int temporary_catch_interrupts(struct err *err);
void temporary_file(int dir, const char *name);
void temporary_folder(int dir, const char *name);
/* It is finished: becomes @to in the same folder. On failure it is gone. */
int temporary_file_done(const char *to);
int temporary_folder_done(const char *to);
/* It is removed. */
void temporary_file_drop(void);
void temporary_folder_drop(void);
/* Also ends with the process: 0 = none. */
void temporary_child(pid_t pid);
/* Writes @path in one step: what was there is replaced when everything was written. What is no
 * regular file (a pipe, a device) is written to as it is. */
struct whole_file {
	char *path;   /* where links lead */
	char *tmp;    /* name of the unfinished file; NULL = none, it is written to as it is */
	int dir, fd;
};
int whole_file_open(struct whole_file *f, const char *path, mode_t mode, struct err *err);
/* Ends it, well when @r is 0. Returns @r, or why it could not be finished. */
int whole_file_close(struct whole_file *f, int r, struct err *err);

/* ------------------------------------------------------------------ builds */

/* One --output. */
enum output_type { OUTPUT_LOCAL, OUTPUT_TAR, OUTPUT_OCI, OUTPUT_DOCKER, OUTPUT_MOUNT, OUTPUT_IMAGE };
struct output_image;
struct output {
	enum output_type type;
	char *dest; /* NULL = stdout, or none */
	char *name; /* OUTPUT_IMAGE */
	struct output_image *image; /* OUTPUT_OCI, OUTPUT_DOCKER */
};
/* Errors: -EINVAL. */
int output_parse(struct output *out, const char *text, struct err *err);
void output_deinit(struct output *out);
/* Finds what would fail for sure before anything is done for it. */
int output_check(const struct output *out, struct err *err);
/* Does it; @id is the ref's in the store. */
int output_write(const struct output *out, struct app *app, const struct options *o,
		 struct ref *ref, const struct digest *id, struct build_progress *progress,
		 struct err *err);

/* What is said of an image, and was made of it (output_image.c). */
struct output_image {
	bool is_docker, is_folder; /* an archive of docker's; no tar */
	struct image_options options;
	vec(struct image_name) names;
	vec(struct annotation) annotations;	 /* of the manifest, sorted */
	vec(struct annotation) desc_annotations; /* of its descriptor */
	struct image image;			 /* when it was written */
};
int output_image_new(struct output_image **out, bool is_docker);
void output_image_free(struct output_image *image);
/* One KEY=VALUE. Errors: -EINVAL, -ENOTSUP. */
int output_image_field(struct output_image *image, const char *field, struct err *err);
int output_image_settle(struct output_image *image, struct err *err);
/* @dest NULL: a tar on stdout. */
int output_image_write(struct output_image *image, const char *dest, struct app *app,
		       struct ref *ref, struct err *err);
/* Appends the members of --metadata-file, each with a comma behind it. */
void output_image_metadata(const struct output_image *image, struct strbuf *out);
/* Appends the descriptor of the manifest as in an index; without a @name, under @tag or none. */
void output_image_desc(const struct output_image *image, const struct image_name *name,
		       const char *tag, struct strbuf *out);
/* Writes it, as a tar or a folder (output_layout.c). */
int layout_write_tar(const struct output_image *image, struct store *store, int fd,
		     struct err *err);
int layout_write_folder(const struct output_image *image, struct store *store, const char *dest,
			struct err *err);

/* Puts an image as it is into a registry, under @name (retag.c). */
int retag_push(struct app *app, struct ref *ref, const char *name, struct err *err);

/* ------------------------------------------------------------------ mounts */

/* What is to be served; all of it is borrowed. */
struct serve_request {
	const char *mountpoint; /* absolute, exists */
	const char *ref_text;	/* for people */
	const struct word *inputs;
	size_t n_inputs;
	struct mount_options options; /* the mountpoint and callbacks are added */
	int ready_fd;	  /* gets one byte when the mount answers; -1: in the foreground */
	bool prints_path; /* on stdout, when ready in the foreground */
};
/* Mounts and serves; returns when the mount has ended. */
int serve(const struct options *o, const struct serve_request *request, struct err *err);

/* ------------------------------------------------------------------ places */

/* Folders where control sockets may be, own ones first; how many. NULL entries: no memory. The
 * caller frees each. */
size_t runtime_dirs(char *out[4]);
/* Where a new mount puts its socket; made if missing. NULL with @err set. */
char *runtime_dir(struct err *err);
