/* SPDX-License-Identifier: Apache-2.0 */

/*
 * help, version, completion and the man pages: the two tables, told in several languages.
 *
 * A man page is "llbfs help --man NAME" (NAME "llbfs" is the program's own), run by the build.
 */

#include "tools/tools.h"

#define HELP_COLUMNS 96	 /* of at most 100 */
#define OPTION_COLUMN 32 /* where an option's help begins */

/* Prints @text from @column on, broken at blanks, following lines indented by @indent. */
static void help_wrap(FILE *to, const char *text, size_t column, size_t indent)
{
	bool is_first = true; /* word of its line */

	while (*text) {
		size_t n = strcspn(text, " \n"), lines;

		if (!is_first && column + 1 + n > HELP_COLUMNS) {
			fprintf(to, "\n%*s", (int)indent, "");
			column = indent;
			is_first = true;
		}
		fprintf(to, "%s%.*s", is_first ? "" : " ", (int)n, text);
		column += n + !is_first;
		is_first = false;
		text += n;
		lines = strspn(text, "\n");
		if (lines > 0) {
			fprintf(to, "%s%*s", lines > 1 ? "\n\n" : "\n", (int)indent, "");
			column = indent;
			is_first = true;
			text += lines;
		} else if (*text) {
			text++;
		}
	}
	fputc('\n', to);
}

static void help_option(FILE *to, const struct option_spec *spec)
{
	char left[80];
	size_t n;

	n = (size_t)snprintf(left, sizeof(left), "  %c%c%s--%s%s%s", spec->letter ? '-' : ' ',
			     spec->letter ? spec->letter : ' ', spec->letter ? ", " : "  ",
			     spec->name, spec->value ? " " : "", spec->value ? spec->value : "");
	if (n + 2 > OPTION_COLUMN)
		fprintf(to, "%s\n%*s", left, OPTION_COLUMN, "");
	else
		fprintf(to, "%-*s", OPTION_COLUMN, left);
	if (spec->env) {
		scoped(free) char *help = str_printf("%s [$%s]", spec->help, spec->env);

		help_wrap(to, help ? help : spec->help, OPTION_COLUMN, OPTION_COLUMN);
	} else {
		help_wrap(to, spec->help, OPTION_COLUMN, OPTION_COLUMN);
	}
}

static void help_options(FILE *to, const struct command *command, bool is_global)
{
	bool any = false;

	for (size_t i = 0; i < n_option_specs; i++) {
		const struct option_spec *spec = &option_specs[i];

		if (!(spec->groups & FOR_ALL) == is_global ||
		    (command && !option_applies(spec, command)))
			continue;
		if (!any)
			fputs(is_global ? "\nGlobal options:\n" : "\nOptions:\n", to);
		any = true;
		help_option(to, spec);
	}
}

void help_command(FILE *to, const struct command *command)
{
	fprintf(to, "Usage: llbfs %s%s", command->name, *command->usage ? " " : "");
	help_wrap(to, command->usage, strlen(command->name) + 14, 14);
	fputc('\n', to);
	help_wrap(to, command->summary, 0, 0);
	fputc('\n', to);
	help_wrap(to, command->text, 0, 0);
	help_options(to, command, false);
	help_options(to, command, true);
	fprintf(to, "\nExample:\n  %s\n", command->example);
}

void help_program(FILE *to)
{
	fputs("Usage: llbfs [OPTIONS] COMMAND [ARGUMENTS]\n\n", to);
	help_wrap(to,
		  "Shows the files of container images, and of merges of images, without pulling "
		  "them: bytes are fetched when they are read, and verified.",
		  0, 0);
	fputs("\nCommands:\n", to);
	for (size_t i = 0; i < n_commands; i++)
		fprintf(to, "  %-12s%s\n", commands[i].name, commands[i].summary);
	help_options(to, NULL, true);
	fputs("\nReferences (REF):\n"
	      "  alpine:3.20, host:5000/a/b:tag   an image in a registry, as docker names it\n"
	      "  oci-layout://DIR[:TAG][@DIGEST]  an image in an OCI layout folder\n"
	      "  oci-archive://FILE[:TAG], docker-archive://FILE[:NAME:TAG]\n"
	      "  ./DIR, ../DIR, /DIR, dir://DIR   a folder of this host\n"
	      "  llb://FILE[#VERTEX[:INDEX]]      the result of a marshalled LLB definition\n"
	      "  ref://ID                         a result kept in the store\n"
	      "\nExample:\n  llbfs ls -l alpine:3.20 /etc\n",
	      to);
}

/* ------------------------------------------------------------------ man pages */

/* Text as troff: a backslash is escaped, and so is a dot or quote that would start a line. */
static void man_text(const char *text)
{
	bool at_start = true;

	for (; *text; text++) {
		if (*text == '\n') {
			fputs(text[1] == '\n' ? "\n.PP\n" : "\n", stdout);
			text += strspn(text, "\n") - 1;
			at_start = true;
			continue;
		}
		if (at_start && (*text == '.' || *text == '\''))
			fputs("\\&", stdout);
		if (*text == '\\')
			fputs("\\e", stdout);
		else if (*text == '-')
			fputs("\\-", stdout);
		else
			putchar(*text);
		at_start = false;
	}
}

static void man_option(const struct option_spec *spec)
{
	fputs(".TP\n", stdout);
	if (spec->letter)
		printf("\\fB\\-%c\\fR, ", spec->letter);
	fputs("\\fB\\-\\-", stdout);
	man_text(spec->name);
	fputs("\\fR", stdout);
	if (spec->value) {
		fputs(" \\fI", stdout);
		man_text(spec->value);
		fputs("\\fR", stdout);
	}
	putchar('\n');
	man_text(spec->help);
	if (spec->env)
		printf(". Environment: \\fB%s\\fR", spec->env);
	putchar('\n');
}

static void man_options(const struct command *command)
{
	puts(".SH OPTIONS");
	for (int global = 0; global < 2; global++)
		for (size_t i = 0; i < n_option_specs; i++) {
			const struct option_spec *spec = &option_specs[i];

			if (!(spec->groups & FOR_ALL) == !global &&
			    (command ? option_applies(spec, command) : global))
				man_option(spec);
		}
}

static void man_exit_status(void)
{
	puts(".SH EXIT STATUS\n"
	     "0 fine; 1 only for an answer of no (\\fBdiff\\fR: differs); 2 usage; 3 not found; 4 "
	     "not\n"
	     "authorised; 5 network; 6 content does not match its digest; 7 this host cannot do "
	     "it; 8\n"
	     "anything else.");
}

static void man_command(const struct command *command)
{
	printf(".TH LLBFS\\-%s 1 \"\" \"llbfs " LLBFS_VERSION "\"\n.SH NAME\nllbfs\\-%s \\- ",
	       command->name, command->name);
	man_text(command->summary);
	printf("\n.SH SYNOPSIS\n\\fBllbfs %s\\fR ", command->name);
	man_text(command->usage);
	puts("\n.SH DESCRIPTION");
	man_text(command->text);
	putchar('\n');
	man_options(command);
	man_exit_status();
	puts(".SH EXAMPLE\n.EX");
	man_text(command->example);
	puts("\n.EE\n.SH SEE ALSO\n\\fBllbfs\\fR(1)");
}

static void man_program(void)
{
	puts(".TH LLBFS 1 \"\" \"llbfs " LLBFS_VERSION "\"\n.SH NAME\n"
	     "llbfs \\- files of container images and of merges of images, fetched as they are "
	     "read\n"
	     ".SH SYNOPSIS\n\\fBllbfs\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]\n"
	     ".SH COMMANDS");
	for (size_t i = 0; i < n_commands; i++) {
		printf(".TP\n\\fBllbfs\\-%s\\fR(1)\n", commands[i].name);
		man_text(commands[i].summary);
		putchar('\n');
	}
	puts(".SH REFERENCES\n"
	     ".TP\n\\fIhost:5000/a/b:tag@sha256:...\\fR\nan image in a registry, with docker's "
	     "grammar "
	     "and defaults; docker\\-image:// and docker:// may stand before it\n"
	     ".TP\n\\fIoci\\-layout://DIR[:TAG][@DIGEST]\\fR\nan image in an OCI layout folder\n"
	     ".TP\n\\fIoci\\-archive://FILE[:TAG]\\fR, \\fIdocker\\-archive://FILE[:NAME:TAG]\\fR\n"
	     "an image in a tar, read in place\n"
	     ".TP\n\\fI./DIR\\fR, \\fI../DIR\\fR, \\fI/DIR\\fR, \\fIdir://DIR\\fR\na folder of "
	     "this host\n"
	     ".TP\n\\fIllb://FILE[#VERTEX[:INDEX]]\\fR\nthe result of a marshalled LLB definition, "
	     "or of "
	     "one vertex in it; FILE (\\- is standard input) may also be what \\fIbuildctl debug "
	     "dump\\-llb\\fR or \\fIdocker buildx build "
	     "\\-\\-call=convertllb,format=json\\fR prints\n"
	     ".TP\n\\fIref://ID\\fR\na result kept in the store, by its ID or a unique prefix of "
	     "it\n"
	     ".PP\nSeveral inputs are merged with \\-\\-merge; words before the last \\-\\-merge "
	     "are REFs, "
	     "words after it paths.");
	man_options(NULL);
	puts(".SH ENVIRONMENT\nCredentials are those of docker (\\fBDOCKER_CONFIG\\fR) and of\n"
	     "containers\\-auth.json(5); proxies and CAs come from the usual variables.\n"
	     ".SH FILES\n.TP\n\\fI$XDG_RUNTIME_DIR/llbfs\\fR, \\fI/run/llbfs\\fR\n"
	     "control sockets of mounts, and mounts made without a folder");
	man_exit_status();
}

/* ------------------------------------------------------------------ completion */

static const char *const shells[] = {"bash", "zsh", "fish"};

static bool spec_is_choice(const struct option_spec *spec)
{
	return spec->kind == OPTION_CHOICE;
}

/* The words of a choice, blank separated. */
static void print_words(const char *value)
{
	for (; *value; value++)
		putchar(*value == '|' ? ' ' : *value);
}

static void completion_bash(void)
{
	puts("_llbfs()\n{\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
	     "\tlocal command= opts= i\n\tCOMPREPLY=()\n\tcase $prev in");
	for (size_t i = 0; i < n_option_specs; i++) {
		if (!spec_is_choice(&option_specs[i]))
			continue;
		printf("\t--%s) COMPREPLY=($(compgen -W '", option_specs[i].name);
		print_words(option_specs[i].value);
		puts("' -- \"$cur\")); return ;;");
	}
	puts("\tesac\n\tfor ((i = 1; i < COMP_CWORD; i++)); do\n\t\tcase ${COMP_WORDS[i]} in");
	for (size_t i = 0; i < n_commands; i++) {
		printf("\t\t%s) command=%s opts='", commands[i].name, commands[i].name);
		for (size_t k = 0; k < n_option_specs; k++)
			if (option_applies(&option_specs[k], &commands[i]))
				printf(" --%s", option_specs[k].name);
		puts("'; break ;;");
	}
	fputs("\t\tesac\n\tdone\n\tif [[ $cur == -* ]]; then\n\t\t"
	      "COMPREPLY=($(compgen -W \"${opts:-",
	      stdout);
	for (size_t k = 0; k < n_option_specs; k++)
		if (option_specs[k].groups & FOR_ALL)
			printf(" --%s", option_specs[k].name);
	fputs("}\" -- \"$cur\"))\n\telif [[ -z $command || $command == help ]]; then\n"
	      "\t\tCOMPREPLY=($(compgen -W '",
	      stdout);
	for (size_t i = 0; i < n_commands; i++)
		printf("%s ", commands[i].name);
	puts("' -- \"$cur\"))\n\telif [[ $command == completion ]]; then\n"
	     "\t\tCOMPREPLY=($(compgen -W 'bash zsh fish' -- \"$cur\"))\n"
	     "\tfi\n}\ncomplete -o default -F _llbfs llbfs");
}

/* What goes between single quotes of a shell; @special get a backslash. */
static void print_quoted(const char *text, const char *special)
{
	for (; *text; text++) {
		if (*text == '\'')
			fputs("'\\''", stdout);
		else
			printf("%s%c", strchr(special, *text) ? "\\" : "", *text);
	}
}

static void print_zsh_option(const struct option_spec *spec)
{
	printf(" '--%s[", spec->name);
	print_quoted(spec->help, "[]:\\");
	putchar(']');
	if (spec_is_choice(spec)) {
		printf(":%s:(", spec->name);
		print_words(spec->value);
		putchar(')');
	} else if (spec->value) {
		printf(":%s:_files", spec->name);
	}
	putchar('\'');
}

static void completion_zsh(void)
{
	puts("#compdef llbfs\n_llbfs()\n{\n\tlocal -a commands options\n\tcommands=(");
	for (size_t i = 0; i < n_commands; i++)
		printf("\t\t'%s:%s'\n", commands[i].name, commands[i].summary);
	puts("\t)\n\tlocal word command=\n\tfor word in ${words[2,CURRENT-1]}; do\n"
	     "\t\t[[ -n ${commands[(r)$word:*]} ]] && { command=$word; break; }\n\tdone\n"
	     "\tcase $command in");
	for (size_t i = 0; i < n_commands; i++) {
		printf("\t%s) options=(", commands[i].name);
		for (size_t k = 0; k < n_option_specs; k++)
			if (option_applies(&option_specs[k], &commands[i]))
				print_zsh_option(&option_specs[k]);
		puts(") ;;");
	}
	puts("\t*) _describe command commands; return ;;\n\tesac\n"
	     "\t_arguments -s $options '*::file:_files'\n}\n_llbfs \"$@\"");
}

static void completion_fish(void)
{
	for (size_t i = 0; i < n_commands; i++)
		printf("complete -c llbfs -n __fish_use_subcommand -a %s -d '%s'\n",
		       commands[i].name, commands[i].summary);
	for (size_t k = 0; k < n_option_specs; k++) {
		const struct option_spec *spec = &option_specs[k];

		printf("complete -c llbfs -l %s", spec->name);
		if (spec->letter)
			printf(" -s %c", spec->letter);
		if (!(spec->groups & FOR_ALL)) {
			fputs(" -n '__fish_seen_subcommand_from", stdout);
			for (size_t i = 0; i < n_commands; i++)
				if (option_applies(spec, &commands[i]))
					printf(" %s", commands[i].name);
			putchar('\'');
		}
		if (spec_is_choice(spec)) {
			fputs(" -x -a '", stdout);
			print_words(spec->value);
			putchar('\'');
		} else if (spec->value) {
			fputs(" -r", stdout);
		}
		fputs(" -d '", stdout);
		print_quoted(spec->help, "\\");
		puts("'");
	}
}

int cmd_completion(struct options *o, struct err *err)
{
	void (*const print[])(void) = {completion_bash, completion_zsh, completion_fish};

	for (size_t i = 0; o->words.n == 1 && i < countof(shells); i++) {
		if (strcmp(o->words.items[0].text, shells[i]) == 0) {
			print[i]();
			return EXIT_YES;
		}
	}
	return err_set(err, -EINVAL, "completion needs one word: bash, zsh or fish");
}

/* ------------------------------------------------------------------ commands */

int cmd_version(struct options *o, struct err *err)
{
	if (o->words.n)
		return err_set(err, -EINVAL, "version takes no words");
	puts(o->format == FORMAT_JSON ? "{\"version\":\"" LLBFS_VERSION "\"}"
				      : "llbfs " LLBFS_VERSION);
	return EXIT_YES;
}

int cmd_help(struct options *o, struct err *err)
{
	const char *name = o->words.n ? o->words.items[0].text : NULL;
	const struct command *command = name ? command_find(name) : NULL;

	if (o->words.n > 1)
		return err_set(err, -EINVAL, "help takes one command");
	if (o->man && name && strcmp(name, "llbfs") == 0) {
		man_program();
		return EXIT_YES;
	}
	if (name && !command)
		return err_set(err, -EINVAL, "there is no command \"%s\"; see llbfs --help", name);
	if (o->man && command)
		man_command(command);
	else if (command)
		help_command(stdout, command);
	else
		help_program(stdout);
	return EXIT_YES;
}
