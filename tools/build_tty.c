/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A build's progress on a terminal: one line a vertex, redrawn in place, and left there at the end.
 *
 * The cursor goes up by the lines drawn last, and each is overwritten. That holds only if no line
 * takes two rows, so lines are cut to the columns there are, wrapping is off while they are drawn
 * (in case a character is wider than is thought here), and the picture is never higher than the
 * terminal: when there is more, what runs is kept, and then what ended last. After a resize the
 * next picture may leave remains of the old one above it.
 */

#include "tools/build_progress.h"

#define LOG_LINES 6	    /* of a vertex that runs */
#define FINAL_LINES_MAX 500 /* of the picture that stays */
#define UP "\033[%uA"
#define HIDE "\033[?25l\033[?7l"
#define SHOW "\033[?7h\033[?25h"

/* ------------------------------------------------------------------ columns */

/* How many columns a character takes, seldom wrong. */
static unsigned char_width(uint32_t c)
{
	static const struct {
		uint32_t first, last;
		unsigned width;
	} odd[] = {
		{0x300, 0x36f, 0},   {0x200b, 0x200f, 0},   {0xfe00, 0xfe0f, 0},
		{0x1100, 0x115f, 2}, {0x2e80, 0xa4cf, 2},   {0xac00, 0xd7a3, 2},
		{0xf900, 0xfaff, 2}, {0xfe30, 0xfe6f, 2},   {0xff00, 0xff60, 2},
		{0xffe0, 0xffe6, 2}, {0x1f300, 0x1faff, 2}, {0x20000, 0x3fffd, 2},
	};

	for (size_t i = 0; i < countof(odd); i++)
		if (c >= odd[i].first && c <= odd[i].last)
			return odd[i].width;
	return 1;
}

/* Appends as much of @text as fits into @columns, without control characters; returns the columns
 * it takes. */
static unsigned put_cut(struct strbuf *s, const char *text, unsigned columns)
{
	unsigned used = 0;

	for (const uint8_t *b = (const uint8_t *)text; *b;) {
		size_t n = *b < 0xc2 ? 1 : *b < 0xe0 ? 2 : *b < 0xf0 ? 3 : 4;
		uint32_t c = *b;
		unsigned width;

		if (*b >= 0x80 &&
		    (n == 1 || strnlen((const char *)b, n) < n || !utf8_valid((const char *)b, n)))
			n = 1, c = '?';
		else if (n > 1)
			c = *b & (0xffu >> (n + 1));
		for (size_t i = 1; i < n; i++)
			c = c << 6 | (b[i] & 0x3f);
		if (c < ' ' || (c >= 0x7f && c < 0xa0))
			c = ' ';
		width = char_width(c);
		if (used + width > columns)
			break;
		if (n == 1)
			strbuf_putc(s, (char)c);
		else if (c == ' ')
			strbuf_putc(s, ' ');
		else
			strbuf_add(s, b, n);
		used += width;
		b += n;
	}
	return used;
}

static void put_line(struct build_progress *p, struct strbuf *s, const char *left,
		     const char *right, const char *colour, unsigned columns)
{
	unsigned room = columns - 1, n_right = (unsigned)strlen(right), used;

	if (n_right + 10 > room) /* too narrow for times */
		n_right = 0;
	if (p->colours && colour)
		strbuf_puts(s, colour);
	used = put_cut(s, left, n_right ? room - n_right - 1 : room);
	if (n_right)
		strbuf_printf(s, "%*s%s", (int)(room - n_right - used), "", right);
	strbuf_printf(s, "%s\033[K\n", p->colours && colour ? "\033[0m" : "");
	p->n_lines++;
}

/* ------------------------------------------------------------------ rows */

static const char *state_colour(enum bp_state state)
{
	return state == BP_FAILED ? "\033[31m" : state > BP_RUNNING ? "\033[34m" : NULL;
}

/* What a vertex has made may still be fetched when it has ended. */
static bool is_status_shown(const struct bp_vertex *v, const struct bp_status *status)
{
	return v->state == BP_RUNNING || (v->state != BP_FAILED && !status->is_done);
}

/* The lines of one vertex, at most @max. */
static void vertex_lines(struct build_progress *p, struct strbuf *s, const struct bp_vertex *v,
			 const struct timespec *now, size_t max, unsigned columns)
{
	const char *mark = v->state == BP_CACHED   ? "CACHED "
			   : v->state == BP_FAILED ? "ERROR "
						   : "";
	scoped(free) char *left = str_printf(" => %s%s", mark, v->name);
	char right[32];

	snprintf(right, sizeof(right), "%.1fs",
		 bp_seconds(&v->started, v->state > BP_RUNNING ? &v->completed : now));
	put_line(p, s, left ? left : "", right, state_colour(v->state), columns);
	for (size_t i = 0; i < v->statuses.n && max > 1; i++) {
		const struct bp_status *status = &v->statuses.items[i];
		if (!is_status_shown(v, status))
			continue;
		scoped(strbuf_free) struct strbuf line = {0};

		strbuf_printf(&line, " => => %s", status->id);
		bp_amount(&line, status);
		snprintf(right, sizeof(right), "%.1fs",
			 bp_seconds(&status->started, status->is_done ? &status->completed : now));
		put_line(p, s, line.failed ? "" : line.data, right,
			 state_colour(status->is_done ? BP_DONE : BP_RUNNING), columns);
		max--;
	}
}

/* The last lines that a vertex wrote. */
static void log_lines(struct build_progress *p, struct strbuf *s, const struct bp_vertex *v,
		      size_t max, unsigned columns)
{
	const char *log = v->log.data, *from;
	size_t n = 0;

	if (!v->log.len || !max)
		return;
	from = log + v->log.len;
	if (from[-1] == '\n')
		from--;
	for (; from > log; from--)
		if (from[-1] == '\n' && ++n == MIN(max, (size_t)LOG_LINES))
			break;
	while (*from) {
		size_t len = strcspn(from, "\n");
		scoped(free) char *line = str_printf(" # %.*s", (int)len, from);

		put_line(p, s, line ? line : "", "", NULL, columns);
		from += from[len] ? len + 1 : len;
	}
}

static size_t lines_wanted(const struct bp_vertex *v)
{
	size_t n = 1;

	for (size_t i = 0; i < v->statuses.n; i++)
		n += is_status_shown(v, &v->statuses.items[i]);
	return v->state == BP_RUNNING && v->log.len ? n + LOG_LINES : n;
}

static bool is_live(const struct bp_vertex *v)
{
	return v->state == BP_RUNNING || v->state == BP_FAILED || lines_wanted(v) > 1;
}

/* Marks in @lines how many each vertex gets: those that run or failed first, then the youngest. */
static void share_lines(const struct build_progress *p, size_t *lines, size_t room)
{
	for (int pass = 0; pass < 3; pass++) {
		for (size_t i = p->shown.n; i-- > 0 && room > 0;) {
			const struct bp_vertex *v = &p->vertices.items[p->shown.items[i]];
			size_t more;

			if (pass == 0)
				more = is_live(v);
			else if (pass == 1)
				more = lines_wanted(v) - 1;
			else
				more = !is_live(v);
			more = MIN(more, room);
			lines[i] += more;
			room -= more;
		}
	}
}

/* ------------------------------------------------------------------ the picture */

void tty_picture(struct build_progress *p, struct strbuf *out, bool is_end)
{
	scoped(free) size_t *lines = calloc(p->shown.n + 1, sizeof(*lines));
	scoped(strbuf_free) struct strbuf title = {0};
	unsigned rows, columns;
	struct timespec now;

	if (!lines)
		return;
	progress_terminal(&rows, &columns);
	columns = MAX(columns, 2u);
	share_lines(p, lines, is_end ? FINAL_LINES_MAX : rows > 2 ? rows - 2 : 0);
	clock_gettime(CLOCK_REALTIME, &now);
	strbuf_puts(out, HIDE);
	if (p->n_lines)
		strbuf_printf(out, UP, p->n_lines);
	strbuf_putc(out, '\r');
	p->n_lines = 0;
	strbuf_printf(&title, "[+] Building %.1fs (%zu/%zu)%s",
		      (double)(now_ns() - p->begin_ns) / (double)NS_PER_S, p->n_done, p->vertices.n,
		      is_end && !p->has_failed ? " FINISHED" : "");
	put_line(p, out, title.failed ? "" : title.data, "", NULL, columns);
	for (size_t i = 0; i < p->shown.n; i++) {
		const struct bp_vertex *v = &p->vertices.items[p->shown.items[i]];
		unsigned before = p->n_lines;

		if (!lines[i])
			continue;
		vertex_lines(p, out, v, &now, lines[i], columns);
		if (v->state == BP_RUNNING)
			log_lines(p, out, v, lines[i] - (p->n_lines - before), columns);
	}
	strbuf_puts(out, "\033[J" SHOW);
}
