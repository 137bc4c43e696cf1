/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The one table of options, and what is read from it.
 *
 * Parsing, --help, the man pages and completion all walk option_specs; nothing else knows an
 * option's name. getopt_long does the reading, from arrays made out of the table: once for what
 * stands in front of the command, once for what follows it. Words that are no options and --merge
 * are kept in one list, because "A --merge ref=B C" merges in that order.
 */

#include "tools/tools.h"

#include <assert.h>
#include <getopt.h>
#include <unistd.h>

#define FIELD(member) offsetof(struct options, member)

const struct option_spec option_specs[] = {
	/* of one command or a few */
	{"foreground", 'f', OPTION_FLAG, FIELD(is_foreground), NULL, NULL,
	 "stay in the foreground; tell systemd when ready", FOR_MOUNT},
	{"options", 'o', OPTION_LIST, FIELD(mount_options), "OPTS", NULL,
	 "mount(8) options, comma separated; see above", FOR_MOUNT},
	{"rw", 0, OPTION_FLAG, FIELD(is_writable), NULL, NULL,
	 "the mount can be written; without --upper, changes go when it ends", FOR_MOUNT},
	{"upper", 0, OPTION_TEXT, FIELD(upper), "DIR", NULL,
	 "with --rw: keep what is changed in DIR, which needs to be empty or such a folder",
	 FOR_MOUNT},
	{"prefetch", 0, OPTION_CHOICE, FIELD(prefetch), "none|learned|all", NULL,
	 "fetch ahead what earlier mounts read (learned, the default), everything, or nothing",
	 FOR_MOUNT},
	{"lazy", 'l', OPTION_FLAG, FIELD(is_lazy), NULL, NULL,
	 "detach now, even while files are open", FOR_UMOUNT},
	{"long", 'l', OPTION_FLAG, FIELD(is_long), NULL, NULL,
	 "mode, links, owner, size and time of each", FOR_LS},
	{"recursive", 'R', OPTION_FLAG, FIELD(is_recursive), NULL, NULL, "folders below, too",
	 FOR_LS},
	{"name", 0, OPTION_TEXT, FIELD(name), "GLOB", NULL, "only names that match", FOR_FIND},
	{"type", 0, OPTION_TEXT, FIELD(type), "T", NULL,
	 "only files of a type: f, d, l, c, b, p or s", FOR_FIND},
	{"summarize", 's', OPTION_FLAG, FIELD(is_summary), NULL, NULL, "only the total", FOR_DU},
	{"sha256", 0, OPTION_FLAG, FIELD(sha256), NULL, NULL,
	 "digest of each regular file (read where it is not known)", FOR_SHA256},
	{"include", 0, OPTION_LIST, FIELD(include), "PATTERN", NULL,
	 "only what matches, as in .dockerignore, relative to PATH", FOR_HASH},
	{"exclude", 0, OPTION_LIST, FIELD(exclude), "PATTERN", NULL,
	 "without what matches, as in .dockerignore, relative to PATH", FOR_HASH},
	{"follow", 0, OPTION_FLAG, FIELD(follow), NULL, NULL,
	 "follow symbolic links at the end of PATH, as COPY does", FOR_HASH},
	{"wildcard", 0, OPTION_FLAG, FIELD(wildcard), NULL, NULL,
	 "PATH is a wildcard: * ? and [a-z] stand for characters of names", FOR_HASH},
	{"man", 0, OPTION_FLAG, FIELD(man), NULL, NULL, "as a man page", FOR_HELP},
	{"merge", 0, OPTION_MERGE, 0, "ref=REF[,trim=/p][,add=/q]", NULL,
	 "one more input, the later wins; trim shows only /p of it, add puts it below /q", FOR_REF},
	{"layer", 0, OPTION_TEXT, FIELD(layer), "N|DIGEST|A..B", NULL,
	 "only this layer, or these, of an image; 0 is the lowest", FOR_REF},
	{"oci-layout", 0, OPTION_LIST, FIELD(layouts), "NAME=DIR", NULL,
	 "where the oci-layout source NAME of an LLB definition is", FOR_REF | FOR_BUILD},
	{"local", 0, OPTION_LIST, FIELD(locals), "NAME=DIR", NULL,
	 "the folder that is the local source NAME of an LLB definition", FOR_REF | FOR_BUILD},

	{"secret", 0, OPTION_LIST, FIELD(secrets), "id=ID[,src=FILE|env=VAR]", NULL,
	 "what sources of an LLB definition may need to log in; default the variable or file ID",
	 FOR_REF | FOR_BUILD},
	{"import-cache", 0, OPTION_LIST, FIELD(import_caches), "CSV", NULL,
	 "a cache to solve with: type=registry,ref=NAME or type=local,src=DIR[,tag=T][,digest=D]",
	 FOR_REF | FOR_BUILD},
	{"output", 'o', OPTION_LIST, FIELD(outputs), "CSV", NULL,
	 "where the result goes: type=local|tar|oci|docker|mount,dest=PATH; repeatable", FOR_BUILD},
	{"no-cache", 0, OPTION_FLAG, FIELD(no_cache), NULL, NULL,
	 "do everything again, whatever is in the cache", FOR_BUILD},
	{"metadata-file", 0, OPTION_TEXT, FIELD(metadata_file), "FILE", NULL,
	 "write what came of it as JSON", FOR_BUILD},
	{"iidfile", 0, OPTION_TEXT, FIELD(iidfile), "FILE", NULL, "write the ID of the result",
	 FOR_BUILD},

	/* of all */
	{"root", 0, OPTION_TEXT, FIELD(root), "DIR", "LLBFS_ROOT",
	 "the store (default $XDG_DATA_HOME/llbfs; for root /var/lib/llbfs)", FOR_ALL},
	{"format", 0, OPTION_CHOICE, FIELD(format), "table|json", NULL,
	 "output for people, or one JSON object a line", FOR_ALL},
	{"progress", 0, OPTION_CHOICE, FIELD(progress), "auto|plain|tty|rawjson|quiet",
	 "BUILDKIT_PROGRESS", "what is shown on stderr while waiting", FOR_ALL},
	{"log-level", 0, OPTION_CHOICE, FIELD(log_level), "error|warn|info|debug", "LLBFS_LOG",
	 "log lines on stderr (default warn)", FOR_ALL},
	{"platform", 0, OPTION_TEXT, FIELD(platform), "OS/ARCH[/VARIANT]", NULL,
	 "which image of an index (default this host's)", FOR_ALL},
	{"plain-http", 0, OPTION_FLAG, FIELD(plain_http), NULL, NULL,
	 "http for every registry, not only those on loopback", FOR_ALL},
	{"insecure", 0, OPTION_FLAG, FIELD(insecure), NULL, NULL, "do not check TLS certificates",
	 FOR_ALL},
	{"trust-index", 0, OPTION_FLAG, FIELD(trust_index), NULL, NULL,
	 "use layer indexes that the manifest does not vouch for", FOR_ALL},
	{"ca", 0, OPTION_TEXT, FIELD(ca), "FILE", NULL, "more CA certificates", FOR_ALL},
	{"max-rate", 0, OPTION_SIZE, FIELD(max_rate), "N", NULL,
	 "bytes a second, all transfers together", FOR_ALL},
	{"offline", 0, OPTION_FLAG, FIELD(offline), NULL, NULL,
	 "no network: only what the store has", FOR_ALL},
	{"deadline", 0, OPTION_DURATION, FIELD(deadline_ms), "DUR", NULL,
	 "a read that takes longer fails (default 60s)", FOR_ALL},
	{"max-used-space", 0, OPTION_SIZE, FIELD(max_used_space), "N", NULL,
	 "bound on the store (default half of its file system)", FOR_ALL},
	{"help", 'h', OPTION_HELP, FIELD(help), NULL, NULL, "show this", FOR_ALL},
};
const size_t n_option_specs = countof(option_specs);

bool option_applies(const struct option_spec *spec, const struct command *command)
{
	return spec->groups & (FOR_ALL | command->groups);
}

const char *options_keep(struct options *o, const char *text)
{
	scoped(free) char *copy = strdup(text);
	const char **slot = copy ? vec_push(&o->owned) : NULL;

	return slot ? *slot = take(copy) : NULL;
}

static int option_choice(const struct option_spec *spec, const char *value, int *out,
			 struct err *err)
{
	const char *word = spec->value;
	size_t len = strlen(value);

	for (int i = 0;; i++) {
		size_t n = strcspn(word, "|");

		if (n == len && memcmp(word, value, n) == 0) {
			*out = i;
			return 0;
		}
		if (!word[n])
			return err_set(err, -EINVAL, "--%s must be one of %s, not \"%s\"",
				       spec->name, spec->value, value);
		word += n + 1;
	}
}

static int option_store(struct options *o, const struct option_spec *spec, const char *value,
			struct err *err)
{
	void *field = (char *)o + spec->field;
	struct texts *list = field;
	const char **text;
	struct word *word;

	switch (spec->kind) {
	case OPTION_FLAG:
	case OPTION_HELP:
		*(bool *)field = true;
		return 0;
	case OPTION_TEXT:
		*(const char **)field = value;
		return 0;
	case OPTION_CHOICE:
		return option_choice(spec, value, field, err);
	case OPTION_SIZE:
		if (parse_size(value, field) < 0)
			return err_set(err, -EINVAL, "--%s must be a size like 10MB, not \"%s\"",
				       spec->name, value);
		return 0;
	case OPTION_DURATION:
		if (parse_duration_ms(value, field) < 0)
			return err_set(err, -EINVAL, "--%s must be a duration like 30s, not \"%s\"",
				       spec->name, value);
		return 0;
	case OPTION_LIST:
		text = vec_push(list);
		if (!text)
			return -ENOMEM;
		*text = value;
		return 0;
	case OPTION_MERGE:
		word = vec_push(&o->words);
		if (!word)
			return -ENOMEM;
		*word = (struct word){value, true};
		return 0;
	}
	return -EINVAL;
}

int options_set(struct options *o, const char *name, const char *value, struct err *err)
{
	for (size_t i = 0; i < n_option_specs; i++) {
		const struct option_spec *spec = &option_specs[i];
		bool is_flag = spec->kind == OPTION_FLAG;

		if (strcmp(spec->name, name) != 0)
			continue;
		if (is_flag != !value)
			return err_set(err, -EINVAL,
				       is_flag ? "%s takes no value" : "%s needs a value", name);
		return option_store(o, spec, value, err);
	}
	return -ENOENT;
}

/* The store of a user who named none. NULL = no memory, or no home. */
static char *options_default_root(void)
{
	const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");

	if (geteuid() == 0)
		return str_printf("/var/lib/llbfs");
	if (data && *data)
		return str_printf("%s/llbfs", data);
	return home && *home ? str_printf("%s/.local/share/llbfs", home) : NULL;
}

int options_init(struct options *o, struct err *err)
{
	scoped(free) char *root = options_default_root();
	int r;

	*o = (struct options){
		.format = FORMAT_DEFAULT,
		.progress = PROGRESS_AUTO,
		.log_level = -1,
		.prefetch = PREFETCH_LEARNED,
	};
	if (root && !(o->root = options_keep(o, root)))
		return -ENOMEM;
	for (size_t i = 0; i < n_option_specs; i++) {
		const struct option_spec *spec = &option_specs[i];
		const char *value = spec->env ? getenv(spec->env) : NULL;

		if (!value || !*value)
			continue;
		r = option_store(o, spec, value, err);
		if (r < 0)
			return err_wrap(err, r, "$%s", spec->env);
	}
	return 0;
}

void options_deinit(struct options *o)
{
	for (size_t i = 0; i < o->owned.n; i++)
		free((char *)o->owned.items[i]);
	vec_free(&o->owned);
	vec_free(&o->mount_options);
	vec_free(&o->layouts);
	vec_free(&o->include);
	vec_free(&o->exclude);
	vec_free(&o->locals);
	vec_free(&o->secrets);
	vec_free(&o->import_caches);
	vec_free(&o->outputs);
	vec_free(&o->words);
}

/* getopt's arrays for the options that @command takes, or for the global ones. */
struct getopt_tables {
	struct option longs[countof(option_specs) + 1];
	const struct option_spec *specs[countof(option_specs)]; /* by position in longs */
	char shorts[4 + 2 * countof(option_specs)];
};

static void getopt_tables_fill(struct getopt_tables *t, const struct command *command)
{
	size_t n = 0, s = 0;

	/* '-': words come in their place; '+': the first word ends it. ':' tells a missing value */
	t->shorts[s++] = command ? '-' : '+';
	t->shorts[s++] = ':';
	for (size_t i = 0; i < n_option_specs; i++) {
		const struct option_spec *spec = &option_specs[i];
		bool has_value = spec->value != NULL;

		if (command ? !option_applies(spec, command) : !(spec->groups & FOR_ALL))
			continue;
		t->specs[n] = spec;
		t->longs[n] = (struct option){spec->name, has_value, NULL, 256 + (int)n};
		n++;
		if (spec->letter)
			t->shorts[s++] = spec->letter;
		if (spec->letter && has_value)
			t->shorts[s++] = ':';
	}
	t->shorts[s] = '\0';
	t->longs[n] = (struct option){0};
}

static const struct option_spec *getopt_tables_find(const struct getopt_tables *t, int c)
{
	if (c >= 256)
		return t->specs[c - 256];
	for (size_t i = 0; t->longs[i].name; i++)
		if (t->specs[i]->letter == c)
			return t->specs[i];
	return NULL;
}

/* What getopt did not like, in words. */
static int getopt_error(int c, const struct command *command, char **argv, struct err *err)
{
	const char *typed = optind > 0 ? argv[optind - 1] : "";
	char letter[3] = {'-', (char)optopt, '\0'};

	if (optopt > 0 && optopt < 256)
		typed = letter;
	return err_set(err, -EINVAL, "%s %s; see llbfs %s%s--help",
		       c == ':' ? "a value is missing after" : "unknown or ambiguous option", typed,
		       command ? command->name : "", command ? " " : "");
}

static int options_read(struct options *o, const struct command *command, int argc, char **argv,
			struct err *err)
{
	struct getopt_tables t;
	bool long_dash = command && command->long_dash;
	struct word *word;
	int c, r;

	getopt_tables_fill(&t, command);
	opterr = 0;
	optind = 0; /* glibc: start afresh */
	while ((c = long_dash ? getopt_long_only(argc, argv, t.shorts, t.longs, NULL)
			      : getopt_long(argc, argv, t.shorts, t.longs, NULL)) != -1) {
		const struct option_spec *spec;

		if (c == '?' || c == ':')
			return getopt_error(c, command, argv, err);
		if (c == 1) {
			word = vec_push(&o->words);
			if (!word)
				return -ENOMEM;
			*word = (struct word){optarg, false};
			continue;
		}
		spec = getopt_tables_find(&t, c);
		assert(spec);
		r = option_store(o, spec, optarg, err);
		if (r < 0)
			return r;
	}
	return optind;
}

int options_parse_global(struct options *o, int argc, char **argv, struct err *err)
{
	return options_read(o, NULL, argc, argv, err);
}

int options_parse(struct options *o, const struct command *command, int argc, char **argv,
		  struct err *err)
{
	int i = options_read(o, command, argc, argv, err);
	struct word *word;

	for (; i >= 0 && i < argc; i++) { /* after "--" */
		word = vec_push(&o->words);
		if (!word)
			return -ENOMEM;
		*word = (struct word){argv[i], false};
	}
	if (i < 0)
		return i;
	if (!o->root)
		return err_set(err, -EINVAL,
			       "no place for the store: set --root, $LLBFS_ROOT or $HOME");
	return 0;
}
