/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One file as a row: a JSON object (the keys of "llbfs stat"), a line of ls -l, a name.
 *
 * Output is gathered in a strbuf and written in large pieces.
 */

#include "tools/tools.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define OUT_ENOUGH (256u << 10)
#define READ_SIZE (1u << 20)

static const struct file_type {
	const char *name;
	char letter;
} types[] = {
	[NODE_NONE] = {"none", '?'},	     [NODE_FILE] = {"reg", '-'},
	[NODE_DIR] = {"dir", 'd'},	     [NODE_SYMLINK] = {"symlink", 'l'},
	[NODE_CHAR] = {"char", 'c'},	     [NODE_BLOCK] = {"block", 'b'},
	[NODE_FIFO] = {"fifo", 'p'},	     [NODE_SOCKET] = {"socket", 's'},
	[NODE_WHITEOUT] = {"whiteout", 'w'},
};

const char *type_name(uint8_t type)
{
	return types[type < countof(types) ? type : NODE_NONE].name;
}

char type_letter(uint8_t type)
{
	return types[type < countof(types) ? type : NODE_NONE].letter;
}

int file_digest(struct tree *t, const struct attr *attr, struct digest *out, struct err *err)
{
	scoped(hasher_free) struct hasher *hasher = NULL;
	scoped(free) char *buf = NULL;
	uint64_t off = 0;

	if (tree_content_digest(t, attr->id, out) == 0)
		return 0;
	hasher = hasher_new();
	buf = malloc(READ_SIZE);
	if (!hasher || !buf)
		return -ENOMEM;
	for (;;) {
		int64_t n = tree_read(t, attr->id, off, buf, READ_SIZE, NULL, NULL, err);

		if (n < 0)
			return (int)n;
		if (n == 0)
			break;
		hasher_add(hasher, buf, (size_t)n);
		off += (uint64_t)n;
	}
	hasher_done(hasher, out);
	return 0;
}

static int row_json_xattr(void *arg, const char *name, const void *value, size_t len)
{
	struct strbuf *s = arg;
	const uint8_t *bytes = value;

	json_key(s, name);
	strbuf_putc(s, '"');
	for (size_t i = 0; i < len; i++)
		strbuf_printf(s, "%02x", bytes[i]);
	strbuf_putc(s, '"');
	return 0;
}

static int row_json_xattrs(struct strbuf *s, struct tree *t, const struct attr *attr,
			   struct err *err)
{
	scoped(strbuf_free) struct strbuf xattrs = {0};
	int r;

	strbuf_putc(&xattrs, '{');
	r = tree_xattrs(t, attr->id, row_json_xattr, &xattrs, err);
	if (r < 0 || xattrs.failed)
		return r < 0 ? r : -ENOMEM;
	if (xattrs.len > 1) {
		json_key(s, "xattrs");
		strbuf_add(s, xattrs.data, xattrs.len);
		strbuf_putc(s, '}');
	}
	return 0;
}

int row_json(struct strbuf *s, struct tree *t, const char *path, const struct attr *attr,
	     bool with_sha256, struct err *err)
{
	scoped(strbuf_free) struct strbuf link = {0};
	char text[DIGEST_HEX_MAX];
	struct digest digest;
	int r = 0;

	strbuf_putc(s, '{');
	json_pair(s, "path", path);
	json_pair(s, "type", type_name(attr->type));
	json_key(s, "mode");
	strbuf_printf(s, "\"%04o\"", attr->mode);
	json_u64(s, "uid", attr->uid);
	json_u64(s, "gid", attr->gid);
	json_i64(s, "mtime", attr->mtime_s);
	if (attr->mtime_ns)
		json_u64(s, "mtime_ns", attr->mtime_ns);
	json_u64(s, "inode", attr->id);
	json_u64(s, "nlink", attr->nlink);
	if (attr->type == NODE_FILE)
		json_u64(s, "size", attr->size);
	if (attr->type == NODE_SYMLINK) {
		r = tree_readlink(t, attr->id, &link, err);
		if (r == 0)
			json_pair(s, "link", link.data ? link.data : "");
	}
	if (attr->type == NODE_CHAR || attr->type == NODE_BLOCK) {
		json_key(s, "dev");
		strbuf_printf(s, "\"%u:%u\"", attr->dev_major, attr->dev_minor);
	}
	if (r == 0)
		r = row_json_xattrs(s, t, attr, err);
	if (r == 0 && with_sha256 && attr->type == NODE_FILE) {
		r = file_digest(t, attr, &digest, err);
		if (r == 0)
			json_pair(s, "sha256", digest_hex(&digest, text));
	}
	strbuf_puts(s, "}\n");
	return r < 0 ? err_wrap(err, r, "%s", path) : 0;
}

void row_name(struct strbuf *s, const char *name)
{
	bool for_people = isatty(STDOUT_FILENO);

	for (; *name; name++) {
		uint8_t c = (uint8_t)*name;

		if (for_people && (c < 0x20 || c == 0x7f))
			strbuf_printf(s, "\\%03o", c);
		else
			strbuf_putc(s, *name);
	}
}

/* "drwxr-sr-t" */
static void row_mode(char out[11], const struct attr *attr)
{
	static const char letters[] = "rwxrwxrwx";
	static const struct {
		unsigned bit, x;
		char with_x, without_x;
	} special[] = {{S_ISUID, 3, 's', 'S'}, {S_ISGID, 6, 's', 'S'}, {S_ISVTX, 9, 't', 'T'}};

	out[0] = type_letter(attr->type);
	for (unsigned i = 0; i < 9; i++)
		out[1 + i] = attr->mode & (0400u >> i) ? letters[i] : '-';
	for (size_t i = 0; i < countof(special); i++)
		if (attr->mode & special[i].bit)
			out[special[i].x] =
				out[special[i].x] == 'x' ? special[i].with_x : special[i].without_x;
	out[10] = '\0';
}

int row_long(struct strbuf *s, struct tree *t, const char *name, const struct attr *attr,
	     struct err *err)
{
	scoped(strbuf_free) struct strbuf link = {0};
	time_t seconds = attr->mtime_s;
	char mode[11], when[40] = "?", size[32];
	struct tm tm;
	int r;

	row_mode(mode, attr);
	if (gmtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M", &tm);
	if (attr->type == NODE_CHAR || attr->type == NODE_BLOCK)
		snprintf(size, sizeof(size), "%u, %u", attr->dev_major, attr->dev_minor);
	else
		snprintf(size, sizeof(size), "%llu", (unsigned long long)attr->size);
	strbuf_printf(s, "%s %3u %5u %5u %10s %s ", mode, attr->nlink, attr->uid, attr->gid, size,
		      when);
	row_name(s, name);
	if (attr->type == NODE_SYMLINK) {
		r = tree_readlink(t, attr->id, &link, err);
		if (r < 0)
			return err_wrap(err, r, "%s", name);
		strbuf_puts(s, " -> ");
		row_name(s, link.data ? link.data : "");
	}
	strbuf_putc(s, '\n');
	return 0;
}

int out_flush(struct app *app, struct strbuf *s, struct err *err)
{
	int r = s->failed ? -ENOMEM : 0;

	if (r == 0 && s->len) {
		if (app)
			app_output(app);
		r = write_full(STDOUT_FILENO, s->data, s->len);
	}
	strbuf_clear(s);
	return r < 0 ? err_wrap(err, r, "stdout") : 0;
}

int out_maybe(struct app *app, struct strbuf *s, struct err *err)
{
	return s->len >= OUT_ENOUGH || s->failed ? out_flush(app, s, err) : 0;
}
