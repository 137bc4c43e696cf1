/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Wildcards and lists of patterns, as copies and their cache keys know them.
 *
 * match_wildcard is Go's filepath.Match. match_patterns is what .dockerignore files are made of:
 * a list of which the last that matches decides, where a pattern also matches all that lies below
 * what it matches.
 *
 * What such a pattern means is defined by a regular expression that the original program makes of
 * it, character by character, also of the inside of [...]: "[*]" becomes "[[^/]*]", which is
 * another thing than it looks. To mean the same in every case, that text is made here, too, and
 * then read into a row of atoms. It has no alternatives and only one kind of group, so that the row
 * is its own automaton: matching takes (atoms x characters) steps at worst. Three escapes that the
 * original would take are refused, as nobody can mean them: \x, \Q, \p and others with a letter or
 * digit, but for \d \s \w and control characters.
 */

#include "merge/merge.h"

#define RUNE_BAD 0xfffdu

/* The next character; a byte that is not UTF-8 is one by itself. @len > 0. */
static uint32_t rune_next(const char *s, size_t len, size_t *used)
{
	const uint8_t *b = (const uint8_t *)s;
	size_t n = b[0] < 0x80 ? 1 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : 4;
	uint32_t c = b[0];

	*used = 1;
	if (n == 1)
		return c;
	if (n > len || !utf8_valid(s, n))
		return RUNE_BAD;
	*used = n;
	c &= 0xffu >> (n + 1);
	for (size_t i = 1; i < n; i++)
		c = c << 6 | (b[i] & 0x3f);
	return c;
}

/* ------------------------------------------------------------------ filepath.Match */

/* One end of a range in a class. */
static int class_rune(const char **p, uint32_t *out)
{
	const char *s = *p;
	size_t used;

	if (*s == '\0' || *s == '-' || *s == ']')
		return -EINVAL;
	if (*s == '\\' && *++s == '\0')
		return -EINVAL;
	*out = rune_next(s, strnlen(s, 4), &used);
	if (*out == RUNE_BAD && used == 1)
		return -EINVAL;
	*p = s + used;
	return **p ? 0 : -EINVAL; /* the class must still be closed */
}

/* Reads the class at *@p, which is moved behind it: 1 when @c is in it. */
static int class_match(const char **p, uint32_t c)
{
	const char *s = *p + 1;
	bool is_negated = *s == '^', is_in = false;

	s += is_negated;
	for (size_t n = 0; n == 0 || *s != ']'; n++) {
		uint32_t low, high;
		int r = class_rune(&s, &low);

		high = low;
		if (r == 0 && *s == '-') {
			s++;
			r = class_rune(&s, &high);
		}
		if (r < 0)
			return r;
		is_in |= low <= c && c <= high;
	}
	*p = s + 1;
	return is_in != is_negated;
}

/* True when the whole pattern makes sense, which does not depend on what it is compared with. */
static bool wildcard_valid(const char *p)
{
	while (*p) {
		if (*p == '[') {
			if (class_match(&p, 0) < 0)
				return false;
			continue;
		}
		if (*p == '\\' && *++p == '\0')
			return false;
		p++;
	}
	return true;
}

/* One element of the pattern that is no star against the head of @name; both are moved on. */
static bool wildcard_step(const char **pattern, const char **name)
{
	const char *p = *pattern;
	size_t used = 1;
	bool is_match;

	if (!**name)
		return false;
	uint32_t c = rune_next(*name, strnlen(*name, 4), &used);
	if (*p == '[') {
		is_match = class_match(&p, c) > 0;
	} else if (*p == '?') {
		is_match = **name != '/';
		p++;
	} else {
		p += *p == '\\';
		is_match = *p++ == **name;
		used = 1;
	}
	*pattern = p;
	*name += used;
	return is_match;
}

int match_wildcard(const char *pattern, const char *name)
{
	const char *p = pattern, *star = NULL, *star_name = NULL;

	if (!wildcard_valid(pattern))
		return -EINVAL;
	while (*name || *p) {
		if (*p == '*') {
			while (*p == '*')
				p++;
			star = p;
			star_name = name;
			continue;
		}
		if (*p && wildcard_step(&p, &name))
			continue;
		/* the last star takes one byte more */
		if (!star || *star_name == '\0' || *star_name == '/')
			return 0;
		p = star;
		name = ++star_name;
	}
	return 1;
}

/* ------------------------------------------------------------------ patterns */

enum atom_kind {
	ATOM_RUNE,
	ATOM_SET,
	ATOM_ANY,   /* all but a newline */
	ATOM_SPLIT, /* takes nothing; also leads behind the two atoms after it */
	ATOM_BEGIN, /* takes nothing; only at the beginning */
};

struct atom {
	uint8_t kind;
	bool is_star, is_negated;
	uint32_t c;
	uint32_t first_range, n_ranges;
};
struct range {
	uint32_t low, high;
};

struct pattern {
	bool is_exclusion;
	enum { PATTERN_EXACT, PATTERN_PREFIX, PATTERN_SUFFIX, PATTERN_ATOMS } kind;
	char *text; /* cleaned, without the ! */
	vec(struct atom) atoms;
	vec(struct range) ranges;
};
struct match_patterns {
	vec(struct pattern) items;
};

/* --- from a pattern to the text of an expression --- */

static void text_star(struct strbuf *s, struct pattern *p, const char **at, bool is_first)
{
	if (**at != '*') {
		strbuf_puts(s, "[^/]*");
		p->kind = PATTERN_ATOMS;
		return;
	}
	*at += 1;
	*at += **at == '/';
	if (**at) {
		strbuf_puts(s, "(.*/)?");
		p->kind = PATTERN_ATOMS;
	} else if (p->kind == PATTERN_EXACT) {
		p->kind = PATTERN_PREFIX;
	} else {
		strbuf_puts(s, ".*");
		p->kind = PATTERN_ATOMS;
	}
	if (is_first)
		p->kind = PATTERN_SUFFIX;
}

/* Decides the pattern's kind, too. */
static void text_make(struct strbuf *s, struct pattern *p)
{
	const char *at = p->text;

	p->kind = PATTERN_EXACT;
	while (*at) {
		bool is_first = at == p->text;
		char c = *at++;

		if (c == '*') {
			text_star(s, p, &at, is_first);
		} else if (c == '?') {
			strbuf_puts(s, "[^/]");
			p->kind = PATTERN_ATOMS;
		} else if (strchr(".+()|{}$", c)) {
			strbuf_putc(s, '\\');
			strbuf_putc(s, c);
		} else if (c == '\\') {
			strbuf_putc(s, c);
			if (*at)
				strbuf_putc(s, *at++);
			p->kind = PATTERN_ATOMS;
		} else {
			strbuf_putc(s, c);
			if (c == '[' || c == ']')
				p->kind = PATTERN_ATOMS;
		}
	}
}

/* --- from that text to atoms --- */

static int range_add(struct pattern *p, struct atom *a, uint32_t low, uint32_t high)
{
	struct range *r = low <= high ? vec_push(&p->ranges) : NULL;

	if (!r)
		return low <= high ? -ENOMEM : -EINVAL;
	*r = (struct range){low, high};
	a->n_ranges++;
	return 0;
}

/* \d \s \w and their opposites: 1 when @c was one. */
static int perl_class(struct pattern *p, struct atom *a, char c)
{
	static const struct {
		char letter;
		struct range ranges[4];
	} table[] = {
		{'d', {{'0', '9'}}},
		{'D', {{0, '0' - 1}, {'9' + 1, UINT32_MAX}}},
		{'s', {{'\t', '\n'}, {'\f', '\r'}, {' ', ' '}}},
		{'S', {{0, '\t' - 1}, {'\v', '\v'}, {'\r' + 1, ' ' - 1}, {' ' + 1, UINT32_MAX}}},
		{'w', {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}},
	};
	static const struct range not_word[] = {{0, '0' - 1},
						{'9' + 1, 'A' - 1},
						{'Z' + 1, '_' - 1},
						{'`', '`'},
						{'z' + 1, UINT32_MAX}};
	int r = 0;

	for (size_t i = 0; c == 'W' && r == 0 && i < countof(not_word); i++)
		r = range_add(p, a, not_word[i].low, not_word[i].high);
	if (c == 'W')
		return r < 0 ? r : 1;
	for (size_t i = 0; i < countof(table); i++) {
		const struct range *ranges = table[i].ranges;

		if (table[i].letter != c)
			continue;
		for (size_t k = 0; r == 0 && k < 4 && ranges[k].high; k++)
			r = range_add(p, a, ranges[k].low, ranges[k].high);
		return r < 0 ? r : 1;
	}
	return 0;
}

/* The character at *@s, or that which an escape there means. */
static int atom_rune(const char **s, uint32_t *out)
{
	static const char letters[] = "afnrtv", meant[] = "\a\f\n\r\t\v";
	size_t used;

	if (**s == '\0')
		return -EINVAL;
	if (**s != '\\') {
		*out = rune_next(*s, strnlen(*s, 4), &used);
		*s += used;
		return 0;
	}
	uint8_t c = (uint8_t) * ++*s;
	const char *letter = c ? strchr(letters, c) : NULL;
	bool is_alnum = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');

	if (c == '\0' || c >= 0x80 || (is_alnum && !letter))
		return -EINVAL;
	*out = letter ? (uint8_t)meant[letter - letters] : c;
	*s += 1;
	return 0;
}

static int atom_set(struct pattern *p, const char **at, struct atom *a)
{
	const char *s = *at + 1;

	a->kind = ATOM_SET;
	a->first_range = (uint32_t)p->ranges.n;
	a->is_negated = *s == '^';
	s += a->is_negated;
	for (bool is_first = true; *s != ']' || is_first; is_first = false) {
		uint32_t low = 0, high;
		int r = s[0] == '[' && s[1] == ':' && strstr(s + 2, ":]") ? -EINVAL : 0;

		if (r == 0 && *s == '\\')
			r = perl_class(p, a, s[1]);
		if (r == 1) {
			s += 2;
			continue;
		}
		if (r == 0)
			r = atom_rune(&s, &low);
		high = low;
		if (r == 0 && s[0] == '-' && s[1] != ']') {
			s++;
			r = atom_rune(&s, &high);
		}
		if (r == 0)
			r = range_add(p, a, low, high);
		if (r < 0)
			return r;
	}
	*at = s + 1;
	return 0;
}

static struct atom *atom_add(struct pattern *p, enum atom_kind kind, uint32_t c, bool is_star)
{
	struct atom *a = vec_push(&p->atoms);

	if (a)
		*a = (struct atom){.kind = kind, .c = c, .is_star = is_star};
	return a;
}

/* The next atom, or the three of a group. */
static int atom_read(struct pattern *p, const char **at)
{
	const char *s = *at;
	struct atom *a;
	int r = 0;

	if (str_starts(s, "(.*/)?")) {
		*at += 6;
		return atom_add(p, ATOM_SPLIT, 0, false) && atom_add(p, ATOM_ANY, 0, true) &&
				       atom_add(p, ATOM_RUNE, '/', false)
			       ? 0
			       : -ENOMEM;
	}
	a = atom_add(p, ATOM_RUNE, 0, false);
	if (!a)
		return -ENOMEM;
	if (*s == '[') {
		r = atom_set(p, &s, a);
	} else if (*s == '.') {
		a->kind = ATOM_ANY;
		s++;
	} else if (*s == '^') {
		a->kind = ATOM_BEGIN;
		s++;
	} else {
		a->first_range = (uint32_t)p->ranges.n;
		r = *s == '\\' ? perl_class(p, a, s[1]) : 0;
		if (r == 1) {
			a->kind = ATOM_SET;
			s += 2;
			r = 0;
		} else if (r == 0) {
			r = atom_rune(&s, &a->c);
		}
	}
	if (r == 0 && *s == '*') {
		a->is_star = true;
		s++;
	}
	*at = s;
	return r;
}

/* --- making one --- */

/* Go's filepath.Clean, in place. Never empty. */
static void pattern_clean(char *text)
{
	bool is_rooted = *text == '/';
	size_t n = is_rooted, floor = n; /* what ".." cannot take away */

	for (char *s = text, *end; *s; s = end) {
		size_t len = strcspn(s += strspn(s, "/"), "/");

		end = s + len;
		if (len == 0 || (len == 1 && *s == '.'))
			continue;
		if (len == 2 && s[0] == '.' && s[1] == '.' && (n > floor || is_rooted)) {
			while (n > floor && text[--n] != '/')
				;
			continue;
		}
		if (n > is_rooted)
			text[n++] = '/';
		memmove(text + n, s, len);
		n += len;
		if (len == 2 && text[n - 1] == '.' && text[n - 2] == '.')
			floor = n;
	}
	if (n == 0)
		text[n++] = '.';
	text[n] = '\0';
}

static int pattern_atoms(struct pattern *p)
{
	scoped(strbuf_free) struct strbuf text = {0};
	const char *at;
	int r = 0;

	text_make(&text, p);
	if (text.failed)
		return -ENOMEM;
	if (p->kind != PATTERN_ATOMS)
		return 0;
	for (at = text.data; r == 0 && *at;)
		r = atom_read(p, &at);
	return r;
}

static int pattern_init(struct pattern *p, const char *text, size_t len)
{
	p->text = malloc(len + 2); /* cleaning may make "." of nothing */
	if (!p->text)
		return -ENOMEM;
	memcpy(p->text, text, len);
	p->text[len] = '\0';
	pattern_clean(p->text);
	p->is_exclusion = p->text[0] == '!';
	if (p->is_exclusion)
		memmove(p->text, p->text + 1, strlen(p->text));
	if (!*p->text || !wildcard_valid(p->text))
		return -EINVAL;
	return pattern_atoms(p);
}

int match_patterns_new(struct match_patterns **out, const char *const *texts, size_t n,
		       struct err *err)
{
	static const char blanks[] = " \t\n\v\f\r";
	scoped(match_patterns_free) struct match_patterns *set = calloc(1, sizeof(*set));
	int r = set ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < n; i++) {
		const char *text = texts[i] + strspn(texts[i], blanks);
		size_t len = strlen(text);

		while (len > 0 && strchr(blanks, text[len - 1]))
			len--;
		if (len == 0)
			continue;
		struct pattern *p = vec_push(&set->items);
		r = p ? pattern_init(p, text, len) : -ENOMEM;
		if (r == -EINVAL)
			err_set(err, r, "the pattern \"%s\" makes no sense", texts[i]);
	}
	if (r == 0)
		*out = take(set);
	return r;
}

void match_patterns_free(struct match_patterns *set)
{
	for (size_t i = 0; set && i < set->items.n; i++) {
		struct pattern *p = &set->items.items[i];

		free(p->text);
		vec_free(&p->atoms);
		vec_free(&p->ranges);
	}
	if (set)
		vec_free(&set->items);
	free(set);
}

size_t match_patterns_count(const struct match_patterns *set)
{
	return set->items.n;
}

/* ------------------------------------------------------------------ matching */

static bool atom_takes(const struct pattern *p, const struct atom *a, uint32_t c)
{
	if (a->kind == ATOM_RUNE)
		return a->c == c;
	if (a->kind == ATOM_ANY)
		return c != '\n';
	if (a->kind != ATOM_SET)
		return false;
	for (uint32_t i = 0; i < a->n_ranges; i++) {
		const struct range *r = &p->ranges.items[a->first_range + i];

		if (r->low <= c && c <= r->high)
			return !a->is_negated;
	}
	return a->is_negated;
}

/* Adds the states that are reached from those in @on without taking a character. All such steps
 * lead forward, so that one pass is enough. */
static void atoms_settle(const struct pattern *p, bool *on, bool is_begin)
{
	for (size_t i = 0; i < p->atoms.n; i++) {
		const struct atom *a = &p->atoms.items[i];

		if (!on[i])
			continue;
		if (a->is_star || a->kind == ATOM_SPLIT || (a->kind == ATOM_BEGIN && is_begin))
			on[i + 1] = true;
		if (a->kind == ATOM_SPLIT)
			on[i + 3] = true;
	}
}

static int atoms_match(const struct pattern *p, const char *path, size_t len)
{
	size_t n = p->atoms.n + 1, used;
	scoped(free) bool *states = calloc(2, n);
	bool *on = states, *next = states + n;

	if (!states)
		return -ENOMEM;
	on[0] = true;
	atoms_settle(p, on, true);
	for (size_t at = 0; at < len; at += used) {
		uint32_t c = rune_next(path + at, len - at, &used);
		bool *was = on;

		memset(next, 0, n);
		for (size_t i = 0; i + 1 < n; i++)
			if (on[i] && atom_takes(p, &p->atoms.items[i], c))
				next[i + !p->atoms.items[i].is_star] = true;
		atoms_settle(p, next, false);
		on = next;
		next = was;
	}
	return on[n - 1];
}

static int pattern_match(const struct pattern *p, const char *path, size_t len)
{
	const char *text = p->text;
	size_t n = strlen(text);

	switch (p->kind) {
	case PATTERN_EXACT:
		return n == len && memcmp(text, path, n) == 0;
	case PATTERN_PREFIX: /* "x/" and two stars, of which the slash may be missing */
		n -= 2;
		return len >= n && memcmp(text, path, n) == 0;
	case PATTERN_SUFFIX:
		text += 2;
		n -= 2;
		if (len >= n && memcmp(text, path + len - n, n) == 0)
			return 1;
		return *text == '/' && len == n - 1 && memcmp(text + 1, path, len) == 0;
	case PATTERN_ATOMS:
		break;
	}
	return atoms_match(p, path, len);
}

/* @path or, where nothing is known of its folders, one of them. */
static int pattern_match_any(const struct pattern *p, const char *path, bool with_folders)
{
	int r = pattern_match(p, path, strlen(path));

	for (const char *s = strchr(path, '/'); r == 0 && with_folders && s; s = strchr(s + 1, '/'))
		r = pattern_match(p, path, (size_t)(s - path));
	return r;
}

int match_patterns(const struct match_patterns *set, const char *path, const bool *parent,
		   bool *matched)
{
	bool is_match = false;

	for (size_t i = 0; i < set->items.n; i++) {
		const struct pattern *p = &set->items.items[i];
		int r = parent && parent[i];

		matched[i] = false;
		if (r == 0 && p->is_exclusion != is_match)
			continue;
		if (r == 0)
			r = pattern_match_any(p, path, !parent);
		if (r < 0)
			return r;
		matched[i] = r;
		if (r)
			is_match = !p->is_exclusion;
	}
	return is_match;
}
