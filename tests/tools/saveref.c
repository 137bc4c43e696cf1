/* SPDX-License-Identifier: Apache-2.0 */

/* saveref STORE REF: keeps what REF names in the store, and prints its ID. For tests of what finds
 * such a ref again. --local NAME=DIR may come first. */

#include <stdio.h>

#include "solver/solver.h"

static int fail(const char *what, int r, const struct err *err)
{
	fprintf(stderr, "%s: %s\n", what, err_text(err, r));
	return 1;
}

int main(int argc, char **argv)
{
	struct err err = {0};
	struct solver_layout local = {0};
	scoped(store_close) struct store *store = NULL;
	scoped(solver_free) struct solver *solver = NULL;
	scoped(ref_unref) struct ref *ref = NULL;
	char hex[DIGEST_HEX_MAX];
	struct digest id;

	if (argc == 5 && strcmp(argv[1], "--local") == 0 && strchr(argv[2], '=')) {
		char *dir = strchr(argv[2], '=');
		*dir++ = '\0';
		local = (struct solver_layout){argv[2], dir};
		argc -= 2;
		argv += 2;
	}
	if (argc != 3)
		return 2;
	const struct store_options in = {.root = argv[1]};
	int r = store_open(&store, &in, &err);
	if (r < 0)
		return fail(argv[1], r, &err);
	struct solver_options options = {
		.store = store, .locals = &local, .n_locals = local.name != NULL};
	platform_host(&options.platform);
	r = solver_new(&solver, &options, &err);
	if (r == 0)
		r = solver_resolve(solver, argv[2], &ref, &err);
	if (r == 0)
		r = ref_save(ref, solver, &id, &err);
	if (r < 0)
		return fail(argv[2], r, &err);
	printf("%s\n", digest_hex(&id, hex));
	return 0;
}
