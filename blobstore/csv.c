/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Values of options that are one CSV record, read as Go's encoding/csv reads it (RFC 4180): fields
 * are separated by commas; one that begins with a quote runs to the next lone quote, "" in it
 * standing for one; a quote anywhere else is an error.
 */

#include "blobstore/base.h"

#include <strings.h>

/* Reads one field of @p into @field; returns what follows it, NULL when it is malformed. */
static const char *csv_field(const char *p, struct strbuf *field)
{
	size_t n;

	if (*p != '"') {
		n = strcspn(p, ",\"\r\n");
		strbuf_add(field, p, n);
		return p[n] && p[n] != ',' ? NULL : p + n;
	}
	for (p++;; p += 2) {
		n = strcspn(p, "\"");
		strbuf_add(field, p, n);
		p += n;
		if (!*p)
			return NULL;
		if (p[1] != '"')
			return p[1] && p[1] != ',' ? NULL : p + 1;
		strbuf_putc(field, '"');
	}
}

int csv_each(const char *option, const char *text, csv_fn fn, void *arg, struct err *err)
{
	const char *p = text;
	int r = 0;

	while (r == 0) {
		scoped(strbuf_free) struct strbuf field = {0};

		p = csv_field(p, &field);
		if (!p)
			return err_set(err, -EINVAL, "%s: a quote is out of place in '%s'", option,
				       text);
		r = field.failed ? -ENOMEM : fn(arg, field.data ? field.data : "", err);
		if (!*p)
			break;
		p++;
	}
	return r;
}

const char *csv_value(const char *field, const char *key)
{
	size_t n = strlen(key);

	return strncasecmp(field, key, n) == 0 && field[n] == '=' ? field + n + 1 : NULL;
}
