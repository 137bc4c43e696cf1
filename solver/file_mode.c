/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Modes as chmod takes them: octal, or "u=rwX,go=u-w".
 *
 * The meaning is that of BSD's setmode, as BuildKit's copier uses it, with a umask of 0. It is not
 * that of GNU's chmod: "=" clears the set-ID bits of whom it is said for, of folders, too; the sticky
 * bit belongs to nobody, so that only "t" changes it; for others alone "s" and "t" say nothing; a copy
 * (g=u) takes and sets nothing but rwx, of the mode as the clauses before have left it; and X looks at
 * the mode that the file had at first.
 */

#include "blobstore/base.h"
#include "solver/file-internal.h"

#define ALL_BITS 07777u
#define SET_ID 06000u
#define STICKY 01000u
#define OTHERS 00007u

/* What stands after one of + - =. */
struct perms {
	uint32_t bits;	      /* r w x s t, for all three alike */
	uint32_t copy;	      /* rwx of user, group or others, for all three alike */
	bool has_copy, has_x; /* one of "ugo", an X */
};

static uint32_t read_who(const char **text)
{
	static const uint32_t bits[] = {
		['u'] = 04700, ['g'] = 02070, ['o'] = OTHERS, ['a'] = 06777};
	uint32_t who = 0;
	for (; **text && strchr("ugoa", **text); ++*text)
		who |= bits[(unsigned char)**text];
	return who;
}

/* @only_others: there is no set-ID or sticky bit for them. */
static struct perms read_perms(const char **text, bool only_others, uint32_t now)
{
	struct perms p = {0};
	for (; **text && strchr("rwxXstugo", **text); ++*text) {
		char c = **text;
		if (strchr("ugo", c)) {
			unsigned shift = c == 'u' ? 6 : c == 'g' ? 3 : 0;
			p.has_copy = true;
			p.copy |= (now >> shift & 7) * 0111;
		} else if (c == 'X') {
			p.has_x = true;
		} else if (!strchr("st", c) || !only_others) {
			p.bits |= c == 'r'   ? 0444
				  : c == 'w' ? 0222
				  : c == 'x' ? 0111
				  : c == 's' ? SET_ID
					     : STICKY;
		}
	}
	return p;
}

static uint32_t apply(char op, uint32_t who, const struct perms *p, bool x_counts, uint32_t now)
{
	bool only_copy = p->has_copy && !p->bits && !p->has_x;
	uint32_t whom = who ? who : 06777;
	uint32_t bits = (p->bits | p->copy | (p->has_x && x_counts ? 0111 : 0)) &
			(whom | (p->bits & STICKY));
	if (op == '+')
		return now | bits;
	if (op == '-')
		return now & ~bits;
	return (now & ~(only_copy ? whom & 0777 : whom | (p->bits & STICKY))) | bits;
}

static int clause(const char **text, bool is_dir, uint32_t first, uint32_t *now)
{
	uint32_t who = read_who(text);
	if (!**text || !strchr("+-=", **text))
		return -EINVAL;
	while (**text && strchr("+-=", **text)) {
		char op = *(*text)++;
		const struct perms p = read_perms(text, who && !(who & ~OTHERS), *now);
		*now = apply(op, who, &p, is_dir || (first & 0111), *now);
	}
	return 0;
}

int file_mode(const char *text, bool is_dir, uint32_t mode, uint32_t *out)
{
	size_t digits = strspn(text, "01234567");
	if (digits > 0 && !text[digits]) {
		while (*text == '0')
			text++;
		*out = (uint32_t)strtoul(text, NULL, 8) & ALL_BITS;
		return strlen(text) > 4 ? -EINVAL : 0;
	}
	for (uint32_t first = mode;; text++) {
		int r = clause(&text, is_dir, first, &mode);
		if (r < 0 || (*text && *text != ','))
			return -EINVAL;
		if (!*text)
			break;
	}
	*out = mode;
	return 0;
}
