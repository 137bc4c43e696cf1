/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Platforms: what an image was built for, by containerd's rules.
 *
 * One platform has many spellings (x86_64, arm64/v8, armhf). Every struct platform of the program
 * is normalized, so that comparing is comparing strings: lower case, amd64 without "v1", arm64
 * without "v8", arm always with a variant.
 *
 * A processor also runs what older ones of its family run, so what is wanted is a list, best first:
 *
 *	amd64/v3   amd64/v3, amd64/v2, amd64, 386
 *	arm64      arm64, arm/v8, arm/v7, arm/v6, arm/v5
 *	arm/v7     arm/v7, arm/v6, arm/v5
 *
 * platform_rank is the place in that list. Other architectures run only themselves.
 */

#include <ctype.h>
#include <stdio.h>
#include <sys/utsname.h>

#include "blobstore/base.h"
#include "solver/solver-internal.h"
#include "solver/solver.h"

#define RANK_NONE (-1)

static const char *const known_os[] = {
	"aix",	 "android", "darwin", "dragonfly", "freebsd", "hurd",	"illumos", "ios",     "js",
	"linux", "nacl",    "netbsd", "openbsd",   "plan9",   "wasip1", "solaris", "windows", "zos",
};

static const char *const known_arch[] = {
	"386",	   "amd64",   "arm",  "armbe",	"arm64",  "arm64be",  "ppc64",
	"ppc64le", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc",
	"riscv",   "riscv64", "s390", "s390x",	"sparc",  "sparc64",  "wasm",
};

/* Other spellings; a NULL variant keeps the one that is there. */
static const struct {
	const char *arch, *to_arch, *to_variant;
} aliases[] = {
	{"i386", "386", ""},
	{"i686", "386", ""},
	{"x86_64", "amd64", NULL},
	{"x86-64", "amd64", NULL},
	{"aarch64", "arm64", NULL},
	{"armhf", "arm", "v7"},
	{"armel", "arm", "v6"},
	{"armv7l", "arm", "v7"},
	{"armv6l", "arm", "v6"},
	{"armv8l", "arm", "v8"},
	{"loongarch64", "loong64", NULL},
};

static bool is_listed(const char *const *list, size_t n, const char *what)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(list[i], what) == 0)
			return true;
	return false;
}

static void lower(char *s)
{
	for (; *s; s++)
		*s = (char)tolower((unsigned char)*s);
}

/* @to has room for 32 bytes, and every name of the tables above fits. */
static void set(char *to, const char *from)
{
	snprintf(to, sizeof(((struct platform *)0)->arch), "%s", from);
}

static void normalize_variant(struct platform *p)
{
	char *v = p->variant;
	if (strcmp(p->arch, "amd64") == 0) {
		if (strcmp(v, "v1") == 0)
			v[0] = 0;
	} else if (strcmp(p->arch, "arm64") == 0) {
		if (!strcmp(v, "8") || !strcmp(v, "v8") || !strcmp(v, "v8.0"))
			v[0] = 0;
		else if (!strcmp(v, "9") || !strcmp(v, "9.0") || !strcmp(v, "v9.0"))
			set(v, "v9");
	} else if (strcmp(p->arch, "arm") == 0) {
		if (!v[0] || strcmp(v, "7") == 0)
			set(v, "v7");
		else if (strlen(v) == 1 && strchr("568", v[0]))
			memcpy(v, (char[]){'v', v[0], 0}, 3);
	}
}

void platform_normalize(struct platform *p)
{
	lower(p->os);
	lower(p->arch);
	lower(p->variant);
	if (!p->os[0])
		set(p->os, "linux");
	else if (strcmp(p->os, "macos") == 0)
		set(p->os, "darwin");
	for (size_t i = 0; i < countof(aliases); i++) {
		if (strcmp(p->arch, aliases[i].arch) != 0)
			continue;
		set(p->arch, aliases[i].to_arch);
		if (aliases[i].to_variant)
			set(p->variant, aliases[i].to_variant);
		break;
	}
	normalize_variant(p);
}

void platform_host(struct platform *out)
{
	memset(out, 0, sizeof(*out));
	struct utsname host;
	if (uname(&host) == 0)
		snprintf(out->arch, sizeof(out->arch), "%.31s", host.machine);
	platform_normalize(out);
}

/* The next part of "a/b/c" into @to. */
static bool parse_part(const char **text, char to[32])
{
	size_t n = strcspn(*text, "/");
	if (n == 0 || n > 31)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)(*text)[i]) && !strchr("_.-", (*text)[i]))
			return false;
	memcpy(to, *text, n);
	to[n] = 0;
	*text += n;
	return true;
}

int platform_parse(struct platform *out, const char *text, struct err *err)
{
	static const char usage[] = "platform \"%s\": want OS/ARCH[/VARIANT], as in linux/arm64";
	char parts[3][32] = {0};
	size_t n = 0;
	const char *p = text;
	do {
		if (n == countof(parts) || !parse_part(&p, parts[n++]))
			return err_set(err, -EINVAL, usage, text);
	} while (*p++ == '/');

	memset(out, 0, sizeof(*out));
	if (n > 1) {
		set(out->os, parts[0]);
		set(out->arch, parts[1]);
		set(out->variant, parts[2]);
		platform_normalize(out);
		return 0;
	}
	/* One word is an architecture of this system, or a system on this architecture. */
	struct platform host;
	platform_host(&host);
	set(out->arch, parts[0]);
	platform_normalize(out);
	if (is_listed(known_arch, countof(known_arch), out->arch))
		return 0;
	*out = host;
	set(out->os, parts[0]);
	platform_normalize(out);
	if (is_listed(known_os, countof(known_os), out->os))
		return 0;
	return err_set(err, -EINVAL, usage, text);
}

char *platform_text(const struct platform *p, char buf[100])
{
	snprintf(buf, 100, "%s/%s%s%s", p->os, p->arch, p->variant[0] ? "/" : "", p->variant);
	return buf;
}

bool platform_equal(const struct platform *a, const struct platform *b)
{
	return !strcmp(a->os, b->os) && !strcmp(a->arch, b->arch) &&
	       !strcmp(a->variant, b->variant);
}

/* "v7" -> 7; @fallback for no variant; -1 for what is no plain version. */
static int version(const char *variant, int fallback)
{
	if (!variant[0])
		return fallback;
	if (variant[0] != 'v' || !isdigit((unsigned char)variant[1]))
		return -1;
	char *end;
	long v = strtol(variant + 1, &end, 10);
	return *end == 0 && v <= 100 ? (int)v : -1;
}

/* Steps down from @want to @have, neither below @lowest; RANK_NONE when it is no way down. */
static int steps_down(int want, int have, int lowest)
{
	return want >= have && have >= lowest ? want - have : RANK_NONE;
}

int platform_rank(const struct platform *want, const struct platform *have)
{
	if (platform_equal(want, have))
		return 0;
	if (strcmp(want->os, have->os) != 0)
		return RANK_NONE;
	const char *to = have->arch;
	if (strcmp(want->arch, "amd64") == 0) {
		if (strcmp(to, "amd64") == 0)
			return steps_down(version(want->variant, 1), version(have->variant, 1), 1);
		return strcmp(to, "386") == 0 && !have->variant[0] ? 100 : RANK_NONE;
	}
	if (strcmp(want->arch, "arm") == 0 && strcmp(to, "arm") == 0)
		return steps_down(version(want->variant, 7), version(have->variant, 7), 5);
	if (strcmp(want->arch, "arm64") == 0) {
		if (strcmp(to, "arm64") == 0)
			return steps_down(version(want->variant, 8), version(have->variant, 8), 8);
		if (strcmp(to, "arm") != 0)
			return RANK_NONE;
		int down = steps_down(8, version(have->variant, 7), 5);
		return down < 0 ? RANK_NONE : 100 + down;
	}
	return RANK_NONE;
}
