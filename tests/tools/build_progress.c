/* SPDX-License-Identifier: Apache-2.0 */

/* build_progress: what a solve may say, as lines and as the picture of a small terminal. */

#include "tools/build_progress.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/ioctl.h>

#include "tests/test.h"

#define LINES_MAX 64
#define COLUMNS_MAX 200

struct fixture {
	struct graph *graph; /* mkfile /x, mkfile /y on it, and copies of both */
	struct build_progress *p;
	int master, slave, old_stderr;
	struct screen {
		char text[LINES_MAX][COLUMNS_MAX + 1];
		size_t row, column, columns;
		size_t n_rows; /* used */
	} screen;
};

static void resize(struct fixture *f, unsigned rows, unsigned columns)
{
	struct winsize w = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};

	assert_int_equal(ioctl(f->slave, TIOCSWINSZ, &w), 0);
	f->screen.columns = columns;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	scoped(free) char *path =
		str_printf("%s/data/llb/graph-shared-subtree.pb", getenv("TEST_SOURCE"));
	scoped(strbuf_free) struct strbuf def = {0};

	setenv("NO_COLOR", "1", 1);
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, &def), 0);
	assert_int_equal(graph_load(&f->graph, def.data, def.len, NULL), 0);
	assert_int_equal(build_progress_new(&f->p, PROGRESS_QUIET, f->graph, NULL), 0);
	assert_int_equal(openpty(&f->master, &f->slave, NULL, NULL, NULL), 0);
	f->old_stderr = dup(STDERR_FILENO);
	dup2(f->slave, STDERR_FILENO); /* it is asked for its size */
	memset(f->screen.text, ' ', sizeof(f->screen.text));
	resize(f, 24, 60);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	dup2(f->old_stderr, STDERR_FILENO);
	close(f->old_stderr);
	close(f->master);
	close(f->slave);
	build_progress_free(f->p);
	graph_free(f->graph);
	free(f);
	return 0;
}

/* ------------------------------------------------------------------ events */

static struct timespec at(double seconds)
{
	double whole = (double)(long)seconds;

	return (struct timespec){1700000000 + (time_t)whole, (long)((seconds - whole) * 1e9)};
}

static void say(struct fixture *f, size_t vertex, enum solve_event_kind kind, double when,
		const char *error)
{
	struct solve_event e = {
		.kind = kind,
		.vertex = graph_vertex(f->graph, vertex),
		.when = at(when),
		.error = error,
	};

	build_progress_event(f->p, &e);
}

static void part(struct fixture *f, size_t vertex, double when, uint64_t current, uint64_t total)
{
	struct solve_event e = {
		.kind = SOLVE_STATUS,
		.vertex = graph_vertex(f->graph, vertex),
		.when = at(when),
		.id = "sha256:abc",
		.current = current,
		.total = total,
	};

	build_progress_event(f->p, &e);
}

static void wrote(struct fixture *f, size_t vertex, double when, const char *text)
{
	struct solve_event e = {
		.kind = SOLVE_LOG,
		.vertex = graph_vertex(f->graph, vertex),
		.when = at(when),
		.fd = 2,
		.bytes = text,
		.n = strlen(text),
	};

	build_progress_event(f->p, &e);
}

/* ------------------------------------------------------------------ lines */

static void plain_says_what_buildkit_says(void **state)
{
	struct fixture *f = *state;

	f->p->mode = PROGRESS_PLAIN;
	say(f, 0, SOLVE_STARTED, 0, NULL);
	part(f, 0, 0.1, 0, 3400000);
	part(f, 0, 0.2, 100000, 3400000); /* too soon after the last to be worth a line */
	part(f, 0, 1.5, 1200000, 3400000);
	say(f, 1, SOLVE_STARTED, 1.6, NULL);
	wrote(f, 1, 1.75, "one\ntw");
	wrote(f, 1, 2, "o\nend");
	part(f, 0, 2.1, 3400000, 3400000);
	say(f, 0, SOLVE_DONE, 2.2, NULL);
	say(f, 1, SOLVE_FAILED, 2.6, "no luck");
	say(f, 2, SOLVE_CACHED, 3, NULL);
	assert_string_equal(f->p->out.data, "#1 mkfile /x\n"
					    "#1 sha256:abc 0B / 3.4MB 0.0s\n"
					    "#1 sha256:abc 1.2MB / 3.4MB 1.4s\n"
					    "\n"
					    "#2 mkfile /y\n"
					    "#2 0.150 one\n"
					    "#2 0.400 two\n"
					    "\n"
					    "#1 ...\n"
					    "#1 sha256:abc 3.4MB / 3.4MB 2.0s done\n"
					    "#1 DONE 2.2s\n"
					    "\n"
					    "#2 ...\n"
					    "#2 1.000 end\n"
					    "#2 ERROR: no luck\n"
					    "\n"
					    "#3 copy /x /1, copy /y /2\n"
					    "#3 CACHED\n"
					    "\n");
	strbuf_clear(&f->p->out);
	lines_failure(&f->p->out, &f->p->vertices.items[1]);
	assert_string_equal(f->p->out.data, "------\n"
					    " > mkfile /y:\n"
					    "one\n"
					    "two\n"
					    "end\n"
					    "------\n");
}

static void rawjson_is_buildkits(void **state)
{
	struct fixture *f = *state;
	char x[DIGEST_TEXT_MAX], y[DIGEST_TEXT_MAX], copy[DIGEST_TEXT_MAX];
	scoped(free) char *want = NULL;

	digest_text(vertex_digest(graph_vertex(f->graph, 0)), x);
	digest_text(vertex_digest(graph_vertex(f->graph, 1)), y);
	digest_text(vertex_digest(graph_vertex(f->graph, 2)), copy);
	f->p->mode = PROGRESS_RAWJSON;
	lines_all(f->p);
	say(f, 0, SOLVE_STARTED, 0.5, NULL);
	part(f, 0, 1, 3, 7);
	wrote(f, 0, 1, "hello");
	say(f, 0, SOLVE_CACHED, 2, NULL);
	want = str_printf(
		"{\"vertexes\":[{\"digest\":\"%s\",\"name\":\"mkfile /x\"},"
		"{\"digest\":\"%s\",\"inputs\":[\"%s\"],\"name\":\"mkfile /y\"},"
		"{\"digest\":\"%s\",\"inputs\":[\"%s\"],"
		"\"name\":\"copy /x /1, copy /y /2\"}]}\n"
		"{\"vertexes\":[{\"digest\":\"%s\",\"name\":\"mkfile /x\","
		"\"started\":\"2023-11-14T22:13:20.500000000Z\"}]}\n"
		"{\"statuses\":[{\"id\":\"sha256:abc\",\"vertex\":\"%s\",\"total\":7,\"current\":3,"
		"\"timestamp\":\"2023-11-14T22:13:21.000000000Z\","
		"\"started\":\"2023-11-14T22:13:21.000000000Z\"}]}\n"
		"{\"logs\":[{\"vertex\":\"%s\",\"stream\":2,\"data\":\"aGVsbG8=\","
		"\"timestamp\":\"2023-11-14T22:13:21.000000000Z\"}]}\n"
		"{\"statuses\":[{\"id\":\"sha256:abc\",\"vertex\":\"%s\",\"total\":7,\"current\":3,"
		"\"timestamp\":\"2023-11-14T22:13:22.000000000Z\","
		"\"started\":\"2023-11-14T22:13:21.000000000Z\","
		"\"completed\":\"2023-11-14T22:13:22.000000000Z\"}]}\n"
		"{\"vertexes\":[{\"digest\":\"%s\",\"name\":\"mkfile /x\","
		"\"started\":\"2023-11-14T22:13:20.500000000Z\","
		"\"completed\":\"2023-11-14T22:13:22.000000000Z\",\"cached\":true}]}\n",
		x, y, x, copy, y, x, x, x, x, x);
	assert_string_equal(f->p->out.data, want);
}

static void a_log_without_end_keeps_its_end(void **state)
{
	struct fixture *f = *state;
	struct strbuf out = {0};

	f->p->mode = PROGRESS_PLAIN;
	say(f, 0, SOLVE_STARTED, 0, NULL);
	for (int i = 0; i < 20000; i++) {
		char text[16];

		snprintf(text, sizeof(text), "line%d\n", i);
		wrote(f, 0, 1, text);
	}
	say(f, 0, SOLVE_FAILED, 2, "no luck");
	assert_non_null(strstr(f->p->out.data, "#1 1.000 line0\n"));
	lines_failure(&out, &f->p->vertices.items[0]);
	assert_true(out.len < LOG_TAIL_MAX + 100);
	assert_non_null(strstr(out.data, "line19999\n------\n"));
	strbuf_free(&out);
}

/* ------------------------------------------------------------------ a terminal */

static void screen_newline(struct screen *s)
{
	s->row++;
	assert_true(s->row < LINES_MAX);
	s->n_rows = MAX(s->n_rows, s->row);
}

static const char *screen_escape(struct screen *s, const char *p)
{
	unsigned n = 0;

	if (*p == '?') /* cursor and wrapping */
		return p + strcspn(p, "hl") + 1;
	for (; *p >= '0' && *p <= '9'; p++)
		n = 10 * n + (unsigned)(*p - '0');
	switch (*p) {
	case 'A':
		assert_true(n <= s->row);
		s->row -= n;
		break;
	case 'K':
		memset(s->text[s->row] + s->column, ' ', COLUMNS_MAX - s->column);
		break;
	case 'J':
		for (size_t i = s->row; i < LINES_MAX; i++)
			memset(s->text[i] + (i == s->row ? s->column : 0), ' ',
			       COLUMNS_MAX - (i == s->row ? s->column : 0));
		s->n_rows = s->row;
		break;
	default:
		fail_msg("\\033[...%c", *p);
	}
	return p + 1;
}

/* Draws, and lets a terminal show it. Lines must never be wider than the terminal. */
static void draw(struct fixture *f, bool is_end)
{
	scoped(strbuf_free) struct strbuf out = {0};
	struct screen *s = &f->screen;

	tty_picture(f->p, &out, is_end);
	assert_false(out.failed);
	for (const char *p = out.data; *p;) {
		if (*p == '\033' && p[1] == '[') {
			p = screen_escape(s, p + 2);
		} else if (*p == '\n') {
			screen_newline(s);
			s->column = 0;
			p++;
		} else if (*p == '\r') {
			s->column = 0;
			p++;
		} else {
			assert_true((uint8_t)*p >= ' ');
			if (((uint8_t)*p & 0xc0) !=
			    0x80) /* all characters here are one column wide */
				s->text[s->row][s->column++] = (char)MIN((uint8_t)*p, 0x7e);
			assert_true(s->column < s->columns);
			p++;
		}
	}
}

/* Row @i without blanks at its end. */
static const char *row(struct fixture *f, size_t i)
{
	char *text = f->screen.text[i];
	size_t n = COLUMNS_MAX;

	while (n > 0 && text[n - 1] == ' ')
		n--;
	text[n] = '\0';
	return text;
}

static void assert_row(struct fixture *f, size_t i, const char *begin, const char *end)
{
	const char *text = row(f, i);

	if (!str_starts(text, begin) || !str_ends(text, end))
		fail_msg("row %zu is \"%s\", not \"%s...%s\"", i, text, begin, end);
	f->screen.text[i][strlen(text)] = ' ';
}

static void a_picture_moves_and_stays(void **state)
{
	struct fixture *f = *state;

	f->p->mode = PROGRESS_TTY;
	draw(f, false);
	assert_row(f, 0, "[+] Building 0.", "s (0/3)");
	assert_int_equal(f->screen.n_rows, 1);
	say(f, 0, SOLVE_STARTED, 0, NULL);
	part(f, 0, 1, 1200000, 3400000);
	wrote(f, 0, 1, "one\ntwo\n");
	draw(f, false);
	assert_row(f, 1, " => mkfile /x ", "s");
	assert_row(f, 2, " => => sha256:abc 1.2MB / 3.4MB ", "s");
	assert_row(f, 3, " # one", "# one");
	assert_row(f, 4, " # two", "# two");
	say(f, 0, SOLVE_DONE, 2, NULL);
	say(f, 1, SOLVE_CACHED, 3, NULL);
	say(f, 2, SOLVE_STARTED, 3, NULL);
	say(f, 2, SOLVE_DONE, 3.5, NULL);
	draw(f, true);
	assert_row(f, 0, "[+] Building 0.", "s (3/3) FINISHED");
	assert_row(f, 1, " => mkfile /x", "   2.0s");
	assert_row(f, 2, " => CACHED mkfile /y", "   0.0s");
	assert_row(f, 3, " => copy /x /1, copy /y /2", "   0.5s");
	assert_int_equal(f->screen.n_rows, 4);
	assert_int_equal(strlen(row(f, 1)), 59); /* times end where lines end */
}

static void a_picture_fits(void **state)
{
	struct fixture *f = *state;
	static const unsigned sizes[][2] = {{24, 20}, {5, 12}, {2, 2}, {1, 1}, {3, 150}, {24, 9}};

	f->p->mode = PROGRESS_TTY;
	free(f->p->vertices.items[1].name);
	f->p->vertices.items[1].name =
		strdup("h\303\244\303\237lich \033[31m\tlang \377 \342\202\254 "
		       "und noch viel l\303\244nger \342\202");
	for (size_t i = 0; i < 3; i++)
		say(f, i, SOLVE_STARTED, 0, NULL);
	part(f, 1, 1, 1, 7);
	wrote(f, 1, 1, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj and so on, for longer than a line\n");
	draw(f, false);
	for (size_t i = 0; i < countof(sizes); i++) {
		resize(f, sizes[i][0], MAX(sizes[i][1], 2u));
		draw(f, false);
		assert_true(f->screen.n_rows <= MAX(sizes[i][0], 2u));
	}
	resize(f, 24, 60);
	draw(f, false);
	assert_row(f, 2, " => h~~lich  [31m lang ? ~ und noch viel l~nger ", "s");
	for (size_t i = 0; i < 3; i++)
		say(f, i, i == 1 ? SOLVE_FAILED : SOLVE_DONE, 3, "no luck");
	resize(f, 4, 60);
	draw(f, false); /* two rows are left: the failure, and the youngest */
	assert_row(f, 1, " => ERROR h~~lich", "3.0s");
	assert_row(f, 2, " => copy", "3.0s");
	assert_int_equal(f->screen.n_rows, 3);
	draw(f, true);
	assert_int_equal(f->screen.n_rows, 4);
	assert_row(f, 0, "[+] Building 0.", "s (3/3)");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(plain_says_what_buildkit_says, setup, teardown),
		cmocka_unit_test_setup_teardown(rawjson_is_buildkits, setup, teardown),
		cmocka_unit_test_setup_teardown(a_log_without_end_keeps_its_end, setup, teardown),
		cmocka_unit_test_setup_teardown(a_picture_moves_and_stays, setup, teardown),
		cmocka_unit_test_setup_teardown(a_picture_fits, setup, teardown),
	};

	return cmocka_run_group_tests_name("tools/build_progress", tests, NULL, NULL);
}
