/* SPDX-License-Identifier: Apache-2.0 */

/*
 * init: what is agreed with the kernel when a mount begins.
 *
 * libfuse negotiates, but Debian 12's (3.14) leaves two things out of the answer to INIT that this
 * program cannot do without:
 *	PARALLEL_DIROPS	it is wanted by default and then forgotten. Without it the kernel looks up
 *			one name of a folder at a time, and a single name that waits for the
 *			network holds up all others of its folder;
 *	PASSTHROUGH	which came with libfuse 3.17;
 *	KILLPRIV_V2	for mounts that can be written: who takes setuid and capabilities away when
 *			a file is written. Left to itself, the kernel asks for a file's
 *			capabilities before each write.
 * So the question is read on its way in and the answer completed on its way out, through
 * fuse_session_custom_io. Where libfuse has set them already nothing changes.
 */

#include "fs/fs-internal.h"

#include <linux/fuse.h>

/* From protocol 7.40; headers of Debian 12 end at 7.38. */
#ifndef FUSE_PASSTHROUGH
#define FUSE_PASSTHROUGH (1ULL << 37)
#endif
#define FLAGS2_PASSTHROUGH ((uint32_t)(FUSE_PASSTHROUGH >> 32))
/* max_stack_depth is the first of the words of fuse_init_out that 7.38 calls unused. */
#define INIT_MAX_STACK_DEPTH (offsetof(struct fuse_init_out, flags2) + sizeof(uint32_t))

static void want(struct fuse_conn_info *conn, unsigned caps)
{
	conn->want |= conn->capable & caps;
}

/* Asks for what serves a tree that never changes, or drops it where some of it may. */
void init_op(void *userdata, struct fuse_conn_info *conn)
{
	struct session *s = userdata;

	want(conn, FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS |
			   FUSE_CAP_EXPORT_SUPPORT);
	/* Every reply to readdir carries attributes: find and ls -l then need nothing more. */
	conn->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
	if (!s->tree->is_live) {
		want(conn, FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_EXPLICIT_INVAL_DATA);
		conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
	}
	if (s->options.upper) {
		/* ACLs and the umask are the upper's; a truncation comes as one, open or not. What
		 * takes setuid away is agreed on in init_complete. */
		want(conn, FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK);
		conn->want &= ~(unsigned)(FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_HANDLE_KILLPRIV |
					  FUSE_CAP_WRITEBACK_CACHE);
	}
	conn->max_readahead = REPLY_MAX;
	conn->max_write = REPLY_MAX; /* the bound on pages of a READ is derived from it */
	/* Reads ahead that may be under way at once, so that they overlap on the network. */
	conn->max_background = 64;
	conn->congestion_threshold = 48;
	conn->time_gran = 1;
}

/* What libfuse leaves out of a request that changes something. */
static void see_change(struct init *init, struct fuse_in_header *header, size_t len)
{
	const void *body = header + 1;

	init->kills_suid = false;
	if (len >= sizeof(*header) + sizeof(struct fuse_write_in) && header->opcode == FUSE_WRITE)
		init->kills_suid =
			((const struct fuse_write_in *)body)->write_flags & FUSE_WRITE_KILL_SUIDGID;
	if (len >= sizeof(*header) + sizeof(struct fuse_setattr_in) &&
	    header->opcode == FUSE_SETATTR)
		init->kills_suid =
			((const struct fuse_setattr_in *)body)->valid & FATTR_KILL_SUIDGID;
	/* Alike but for its name, which is "/". */
	if (header->opcode == FUSE_TMPFILE)
		header->opcode = FUSE_CREATE;
}

void init_see(struct init *init, void *request, size_t len)
{
	struct fuse_in_header *header = request;
	const struct fuse_init_in *in = (const void *)(header + 1);

	if (init->is_writable && len >= sizeof(*header))
		see_change(init, header, len);
	if (len < sizeof(*header) + offsetof(struct fuse_init_in, flags2) ||
	    header->opcode != FUSE_INIT)
		return;
	init->unique = header->unique;
	init->offers_killpriv = in->flags & FUSE_HANDLE_KILLPRIV_V2;
	init->offers_parallel = in->flags & FUSE_PARALLEL_DIROPS;
	init->offers_passthrough = len >= sizeof(*header) + sizeof(*in) &&
				   (in->flags & FUSE_INIT_EXT) && (in->flags2 & FLAGS2_PASSTHROUGH);
}

void init_complete(struct init *init, struct iovec *iov, int count)
{
	const struct fuse_out_header *header = iov[0].iov_base;

	if (!init->unique || header->unique != init->unique)
		return;
	init->unique = 0;
	if (header->error || count != 2 || iov[1].iov_len < sizeof(struct fuse_init_out))
		return;
	struct fuse_init_out *out = iov[1].iov_base;
	if (init->offers_parallel)
		out->flags |= FUSE_PARALLEL_DIROPS;
	if (init->offers_killpriv && init->is_writable)
		out->flags |= FUSE_HANDLE_KILLPRIV_V2;
	if (init->offers_passthrough && init->wants_passthrough) {
		uint32_t depth = 1; /* backing files lie on a file system that is stacked on none */
		out->flags |= FUSE_INIT_EXT;
		out->flags2 |= FLAGS2_PASSTHROUGH;
		memcpy((char *)out + INIT_MAX_STACK_DEPTH, &depth, sizeof(depth));
		init->has_passthrough = true;
	}
}
