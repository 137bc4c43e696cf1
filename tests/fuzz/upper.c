/* SPDX-License-Identifier: Apache-2.0 */

/* An upper's journal, damaged or made up: its records, and what applying them does to memory. The
 * checksums are put right, so that what lies behind them is reached. */

#include <fcntl.h>

#include "merge/upper-internal.h"

/* A node that a journal made is asked what operations ask. */
static void ask(struct upper *u, uint64_t ino)
{
	struct upper_node *n = upper_by_ino(u, ino);
	struct strbuf out = {0};

	if (!n)
		return;
	upper_dir_find(n, "a", 1);
	for (struct upper_entry *e = upper_dir_after(n, 0); e; e = upper_dir_after(n, e->seq + 1))
		upper_by_ino(u, e->child);
	upper_is_marked(n, 3);
	upper_node_put(u, n, &out);
	strbuf_free(&out);
}

static void replay(const uint8_t *p, size_t left)
{
	struct upper u = {.base = UINT64_C(1) << 32, .next_ino = 1, .is_replaying = true};
	struct upper_item item;

	TAILQ_INIT(&u.open);
	while (upper_item_next(&p, &left, &item) > 0) {
		/* A run that fits any file could ask for much memory. */
		if (item.kind == UPPER_DATA && item.first + item.n > 1 << 20)
			continue;
		if (upper_apply(&u, &item) < 0)
			break;
	}
	for (uint64_t ino = 1; ino < 16; ino++)
		ask(&u, ino);
	upper_nodes_deinit(&u);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *p = data, *record;
	struct strbuf sealed = {0};
	size_t left = size, n;

	while (upper_record_next(&p, &left, &record, &n) > 0)
		replay(record, n);
	replay(data, size);

	size_t start = upper_record_begin(&sealed);
	strbuf_add(&sealed, data, size);
	upper_record_end(&sealed, start);
	p = (const uint8_t *)sealed.data;
	left = sealed.len;
	if (!sealed.failed && size && size <= UPPER_RECORD_MAX &&
	    (upper_record_next(&p, &left, &record, &n) <= 0 || n != size))
		abort();
	strbuf_free(&sealed);
	return 0;
}
