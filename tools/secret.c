/* SPDX-License-Identifier: Apache-2.0 */

/*
 * --secret, with buildctl's grammar: what it means that neither a file nor a variable is named is
 * settled here, so that the solver has one of them. What a secret is stays out of memory until a
 * source asks for it; that its file is there is looked at now, since a typo must not first show
 * itself when a server says no.
 */

#include "tools/tools.h"

#include <unistd.h>

struct secret_fields {
	char *type, *id, *src, *env;
};

static int secret_field(void *arg, const char *field, struct err *err)
{
	struct secret_fields *s = arg;
	const struct {
		const char *key;
		char **value;
	} rows[] = {
		{"type", &s->type},  {"id", &s->id},   {"src", &s->src},
		{"source", &s->src}, {"env", &s->env},
	};

	for (size_t i = 0; i < countof(rows); i++) {
		const char *value = csv_value(field, rows[i].key);

		if (!value)
			continue;
		if (*rows[i].value)
			return err_set(err, -EINVAL, "--secret: %s is given twice", rows[i].key);
		*rows[i].value = strdup(value);
		return *rows[i].value ? 0 : -ENOMEM;
	}
	return err_set(err, -EINVAL,
		       "--secret: \"%s\" is none of id=ID, src=FILE, env=VAR, type=", field);
}

static int secret_settle(struct secret_fields *s, const char *text, struct err *err)
{
	bool wants_env = s->type && strcmp(s->type, "env") == 0;
	char **name;

	if (s->type && !wants_env && strcmp(s->type, "file") != 0)
		return err_set(err, -EINVAL, "--secret: type must be file or env, not \"%s\"",
			       s->type);
	if (!s->id || !*s->id)
		return err_set(err, -EINVAL, "--secret: id=ID is missing in '%s'", text);
	if (wants_env && !s->env)
		s->env = take(s->src); /* type=env,src=VAR */
	if (s->src && s->env)
		return err_set(err, -EINVAL, "--secret: src and env are both given in '%s'", text);
	if (!s->src && !s->env) {
		name = wants_env || (!s->type && getenv(s->id)) ? &s->env : &s->src;
		*name = strdup(s->id);
		if (!*name)
			return -ENOMEM;
	}
	if (s->src && access(s->src, R_OK) < 0)
		return err_errno(err, "--secret %s: %s", s->id, s->src);
	return 0;
}

int secret_parse(struct solver_secret *out, const char *text, struct err *err)
{
	struct secret_fields s = {0};
	int r = csv_each("--secret", text, secret_field, &s, err);

	if (r == 0)
		r = secret_settle(&s, text, err);
	*out = (struct solver_secret){s.id, s.src, s.env};
	free(s.type);
	if (r < 0)
		secret_deinit(out);
	return r;
}

void secret_deinit(struct solver_secret *secret)
{
	free((char *)secret->id);
	free((char *)secret->file);
	free((char *)secret->env);
	*secret = (struct solver_secret){0};
}
