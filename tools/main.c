/* SPDX-License-Identifier: Apache-2.0 */

/*
 * llbfs: chooses the command, and says in one line and one exit code how it ended.
 *
 * The table of commands is here; help, man pages and completion are made from it and from the
 * table of options (options.c). Errors travel up as negative errnos with a reason, and become an
 * exit code only in exit_with.
 */

#include "tools/tools.h"

#include <signal.h>
#include <unistd.h>

#define REF_FILES "It works without FUSE and fetches only what it needs."

const struct command commands[] = {
	{
		.name = "mount",
		.usage = "[-f] [-o OPTS] [--rw [--upper DIR]] [--prefetch none|learned|all] "
			 "[--merge ...]... "
			 "[REF...] [MOUNTPOINT]",
		.summary = "show the files of images at a folder",
		.text = "Returns when the mount answers; bytes are fetched when they are read, "
			"and verified. Several REFs are merged in the order typed, the later "
			"wins. MOUNTPOINT is an existing folder. A single REF without one is "
			"mounted below $XDG_RUNTIME_DIR/llbfs (for root without it "
			"/run/llbfs/mnt), and the path is printed.\n\n"
			"With --rw the mount can be written. What is changed goes when it ends, "
			"or is kept in the --upper DIR, with which it can be mounted again over "
			"the same REFs; the REFs themselves never change. An upper is served by "
			"one mount at a time, needs no privileges and may be moved. It survives "
			"a server that is killed; what was synced survives the machine.\n\n"
			"OPTS are those of mount(8): ro, rw, allow_other, uid=N and gid=N (who "
			"owns everything), suid, nosuid, dev, nodev, fsname=TEXT; "
			"data=noopen|passthrough|auto|open (how bytes reach the kernel: noopen "
			"is fastest for many small files, passthrough for large ones); "
			"prefetch=, merge=, layer= and any global option without its dashes "
			"(offline, deadline=10s, ...). A comma inside a value is written \\, "
			"or the value is put in double quotes.\n\n"
			"mount -t fuse.llbfs REF DIR and lines of fstab do the same through "
			"mount.fuse.llbfs; there, REF may be none when merge= names the "
			"inputs.",
		.example = "cd $(llbfs mount debian:12)",
		.groups = FOR_REF | FOR_MOUNT,
		.run = cmd_mount,
	},
	{
		.name = "build",
		.usage = "[--local NAME=DIR]... [--output CSV]... [FILE|-]",
		.summary = "solve an LLB definition into a result that stays",
		.text = "FILE is what buildctl build reads, in any form that llb:// takes; without "
			"it, standard input. Prints the ID of the result, which every verb takes "
			"as ref://ID. Without --output no content is fetched but what cache keys "
			"hash. What runs is shown on stderr as BuildKit shows it; see --progress.\n\n"
			"An --output is type=local,dest=DIR (the files, into a folder that is made "
			"if need be; other files in it stay), type=tar,dest=FILE (- or no dest: "
			"stdout, where the ID is then not printed), type=oci or docker,dest=FILE "
			"(an image), type=mount,dest=DIR (as "
			"llbfs mount ref://ID DIR), or, for a result that is an image as it is, "
			"type=image,name=NAME,push=true: what the registry has is not sent, what "
			"it has elsewhere is mounted across, the rest streams through memory. "
			"DIR alone is short for type=local, - for "
			"type=tar. They are made one after another. A file, or a new folder, is "
			"there when it is whole; an interrupt or a failure leaves none.\n\n"
			"--import-cache takes what buildctl build does: type=registry,ref=NAME for "
			"a cache or an image with an inline one, type=local,src=DIR with "
			"tag=latest or digest=D; NAME alone is a registry's. What is found there "
			"is neither done nor fetched until it is read. A cache that is not there "
			"is a warning.\n\n"
			"An image has the layers of the images in it as they are, and one for each "
			"step that made something. Its keys: tar=false (a layout folder, in which "
			"other images stay), name=NAME[,NAME] (quoted, if there are several), "
			"compression=gzip|zstd|uncompressed, compression-level=N, "
			"force-compression=true (of layers that exist, too), "
			"oci-mediatypes=false, annotation.KEY=VALUE, "
			"annotation-manifest-descriptor.KEY=VALUE, source-date-epoch=SECONDS "
			"(else $SOURCE_DATE_EPOCH: no time in its documents is later), "
			"rewrite-timestamp=true (nor in its layers).\n\n"
			"--iidfile and --metadata-file (JSON keys: llbfs.ref; of an image also "
			"containerimage.digest, containerimage.config.digest, "
			"containerimage.descriptor, image.name) are removed first "
			"and written when everything is done.\n\n"
			"For a Dockerfile let docker make the definition: docker buildx build "
			"--call=convertllb,format=json DIR | llbfs build --local context=DIR -",
		.example = "llbfs build --local context=. --output out def.pb",
		.groups = FOR_BUILD,
		.run = cmd_build,
	},
	{
		.name = "umount",
		.usage = "[-l] MOUNTPOINT",
		.summary = "take a mount away, whether its server lives or not",
		.text = "fusermount3 -u and umount do as well while the server lives.",
		.example = "llbfs umount /mnt",
		.groups = FOR_UMOUNT,
		.run = cmd_umount,
	},
	{
		.name = "mounts",
		.usage = "",
		.summary = "list the live mounts",
		.text = "One line each, with the process that serves it, or dead when nobody "
			"answers: llbfs umount clears those. JSON keys: mountpoint ref pid "
			"answers.",
		.example = "llbfs mounts",
		.run = cmd_mounts,
	},
	{
		.name = "status",
		.usage = "[MOUNTPOINT]",
		.summary = "what a mount has fetched, and why reads failed",
		.text = "One JSON object a line, for every live mount when none is named; "
			"--format table is for people. Keys: mountpoint ref rw pid layers[] "
			"bytes_fetched bytes_total bytes_read requests reads bytes_served "
			"errors[] prefetch data data_reason fuse_requests passthrough parked. "
			"A layer has digest media_type size format lazy reason fetched read "
			"here ready; format is tar, gzip, zstd, estargz, zstdchunked, soci, "
			"local, or empty while not looked at.\n\n"
			"bytes_fetched came over the network, in so many requests; bytes_read "
			"were read from the image's files on this host or from the store; "
			"bytes_total is what the layers have. bytes_served were given to the "
			"kernel, in so many reads. An error has time code what text.",
		.example = "llbfs status /mnt | jq .bytes_fetched",
		.run = cmd_status,
	},
	{
		.name = "ls",
		.usage = "[-lR] REF [PATH]",
		.summary = "list a folder of an image",
		.text = REF_FILES
		" With --format json each file is one object, with the keys that llbfs "
		"stat prints.",
		.example = "llbfs ls -l alpine:3.20 /etc",
		.groups = FOR_REF | FOR_LS | FOR_SHA256,
		.run = cmd_ls,
	},
	{
		.name = "cat",
		.usage = "REF PATH...",
		.summary = "print files of an image",
		.text = REF_FILES,
		.example = "llbfs cat debian:12 /etc/os-release",
		.groups = FOR_REF,
		.run = cmd_cat,
	},
	{
		.name = "stat",
		.usage = "REF PATH",
		.summary = "show all that is known of a file",
		.text = REF_FILES
		" A symbolic link is shown, not followed. JSON keys: path type mode uid "
		"gid mtime inode nlink always; mtime_ns when not 0; size for regular "
		"files; link for symbolic links; dev for devices; xattrs, values in "
		"hex, when there are any; sha256 when asked for. type is one of reg "
		"dir symlink char block fifo socket, mode is octal text.",
		.example = "llbfs stat --format json alpine:3.20 /bin/sh",
		.groups = FOR_REF | FOR_SHA256,
		.run = cmd_stat,
	},
	{
		.name = "find",
		.usage = "REF [PATH] [-name GLOB] [-type T]",
		.summary = "list everything below a folder",
		.text = REF_FILES
		" Paths are absolute in the image, the folder itself comes first. With "
		"--format json each is one object, with the keys that llbfs stat "
		"prints.",
		.example = "llbfs find debian:12 /usr/lib -name '*.so*' -type f",
		.groups = FOR_REF | FOR_FIND | FOR_SHA256,
		.long_dash = true,
		.run = cmd_find,
	},
	{
		.name = "cp",
		.usage = "REF PATH DEST",
		.summary = "copy files out of an image",
		.text = REF_FILES
		" Into DEST when that is a folder, else as DEST; the content of PATH "
		"when it is / or ends in /. Files, folders, links, hard links, holes, "
		"modes, times and xattrs; for root also owners, devices and all "
		"xattrs. Nothing outside of DEST is ever written.",
		.example = "llbfs cp alpine:3.20 /etc/apk ./apk",
		.groups = FOR_REF,
		.run = cmd_cp,
	},
	{
		.name = "tar",
		.usage = "REF [PATH]",
		.summary = "write a folder as a tar to stdout",
		.text = REF_FILES,
		.example = "llbfs tar debian:12 /etc | tar -tv",
		.groups = FOR_REF,
		.run = cmd_tar,
	},
	{
		.name = "du",
		.usage = "[-s] REF [PATH]",
		.summary = "bytes of content below each folder",
		.text = REF_FILES " Hard links count once. JSON keys: path size files.",
		.example = "llbfs du -s debian:12 /usr",
		.groups = FOR_REF | FOR_DU,
		.run = cmd_du,
	},
	{
		.name = "diff",
		.usage = "REF_A REF_B",
		.summary = "what turns one image into another",
		.text = REF_FILES
		" Lines are A (added), M (modified) or D (deleted) and the path; a "
		"deleted folder is one line. The exit code is 1 when there are any. "
		"With --merge, the merged inputs are the side that no word names. JSON "
		"keys: kind path.",
		.example = "llbfs diff debian:12.1 debian:12.2",
		.groups = FOR_REF,
		.run = cmd_diff,
	},
	{
		.name = "hash",
		.usage = "[--follow] [--wildcard] [--include P]... [--exclude P]... REF [PATH]",
		.summary = "by which digest BuildKit's cache knows a path",
		.text = "A COPY is taken from the cache when this digest of its source is what it "
			"was: names, modes, owners, link targets, devices, xattrs and bytes count, "
			"times do not. To see why one missed, compare before and after, and go "
			"down the folders that differ. Reads every file it counts.\n\n"
			"COPY in a Dockerfile means --follow, and --wildcard when the source has "
			"* ? or [; the cache's key is the SHA-256 of this digest's text, or of "
			"those of several sources, with NUL between them. A host folder is hashed "
			"as a client uploads it: owned by 0:0, and / by its entries alone. A "
			".dockerignore is not read: what it names must not be in the folder. "
			"--include and --exclude are those of the COPY; with them, and a PATH "
			"that ends in a slash, the folder itself does not count. The digests are "
			"those of BuildKit 0.26 and later. JSON keys: ref path digest.",
		.example = "llbfs hash --follow . /src",
		.groups = FOR_REF | FOR_HASH,
		.run = cmd_hash,
	},
	{
		.name = "inspect",
		.usage = "REF",
		.summary = "what a reference is made of",
		.text = "One JSON object; fetches manifests and the config, no layers but for "
			"content_keys[]. Keys: "
			"kind ref platform manifest layers[] config parts[]. A layer has "
			"digest diff_id media_type size format, a part ref trim add. For "
			"llb:// there is also vertices[], each with digest name op inputs[] "
			"source[{file,ranges[[line,column,line,column]]}], where it comes from, "
			"and its keys in a build cache, as BuildKit has them: cache_maps[] "
			"selectors[] records[{output,digest}] cache_key (the first record, null "
			"when not known), contents[], for each input what of it is hashed where its content "
			"may stand for it, and ingredients[{digest,text}], what was hashed. "
			"content_keys[{input,digest,record}] has, for those inputs, the hash of that "
			"content, which is read for it, and what caches call it; where it cannot be "
			"had, as below a command, both are null, and reason says why. cached says "
			"whether the store has a result that is found by definitions alone, as it "
			"was before this command solved anything. unknown "
			"says why a key, or the second one of an image, is missing. A definition "
			"that cannot be solved has these, and unsolved, the reason, instead of "
			"layers, config and parts.",
		.example = "llbfs inspect alpine:3.20 | jq .config.config.Env",
		.groups = FOR_REF,
		.run = cmd_inspect,
	},
	{
		.name = "version",
		.usage = "",
		.summary = "print the version",
		.text = "JSON keys: version.",
		.example = "llbfs version",
		.run = cmd_version,
	},
	{
		.name = "completion",
		.usage = "bash|zsh|fish",
		.summary = "print a completion script for a shell",
		.text = "The package installs them where shells look.",
		.example = "source <(llbfs completion bash)",
		.run = cmd_completion,
	},
	{
		.name = "help",
		.usage = "[COMMAND]",
		.summary = "show help",
		.text = "The same as COMMAND --help.",
		.example = "llbfs help mount",
		.groups = FOR_HELP,
		.run = cmd_help,
	},
};
const size_t n_commands = countof(commands);

const struct command *command_find(const char *name)
{
	for (size_t i = 0; i < n_commands; i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

/* Every errno's exit code, here and nowhere else. */
static int exit_code(int r)
{
	switch (-r) {
	case EINVAL:
		return EXIT_USAGE;
	case ENOENT:
	case ENOTDIR:
		return EXIT_NOT_FOUND;
	case EACCES:
		return EXIT_NOT_AUTHORISED;
	case ENETUNREACH:
	case ENETDOWN:
	case ENETRESET:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ECONNREFUSED:
	case ECONNRESET:
	case ECONNABORTED:
	case ENOTCONN:
	case ETIMEDOUT:
		return EXIT_NETWORK;
	case EBADMSG:
		return EXIT_BAD_CONTENT;
	case ENODEV:
	case EPERM: /* a privilege is missing */
		return EXIT_HOST;
	default:
		return EXIT_OTHER;
	}
}

int exit_with(int result, const struct err *err)
{
	if (result >= 0)
		return result;
	if (result != -EPIPE) /* whoever read our output has seen enough */
		fprintf(stderr, "llbfs: %s\n", err_text(err, result));
	return exit_code(result);
}

static int run(int argc, char **argv, struct err *err)
{
	struct options o;
	const struct command *command = NULL;
	int i = 0, r;

	r = options_init(&o, err);
	if (r == 0)
		r = i = options_parse_global(&o, argc, argv, err);
	if (r < 0)
		goto out;
	if (i < argc) {
		command = command_find(argv[i]);
		if (!command) {
			r = err_set(err, -EINVAL, "there is no command \"%s\"; see llbfs --help",
				    argv[i]);
			goto out;
		}
		r = options_parse(&o, command, argc - i, argv + i, err);
		if (r < 0)
			goto out;
	}
	if (o.log_level >= 0)
		log_max = (enum log_level)o.log_level;
	if (o.help || !command) {
		if (command)
			help_command(stdout, command);
		else
			help_program(o.help ? stdout : stderr);
		r = o.help ? EXIT_YES : EXIT_USAGE;
		goto out;
	}
	r = command->run(&o, err);
out:
	options_deinit(&o);
	return r;
}

int main(int argc, char **argv)
{
	struct err err = {0};
	const char *name = argc > 0 ? strrchr(argv[0], '/') : NULL;

	signal(SIGPIPE, SIG_IGN); /* writes fail with EPIPE instead, also those to the network */
	name = name ? name + 1 : argc > 0 ? argv[0] : "";
	if (str_starts(name, "mount."))
		return mount_helper(argc, argv);
	return exit_with(run(argc, argv, &err), &err);
}
