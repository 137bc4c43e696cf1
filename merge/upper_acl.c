/* SPDX-License-Identifier: Apache-2.0 */

/*
 * upper_acl: POSIX ACLs, as far as a file system has to know them.
 *
 * The kernel decides by an ACL who may do what; the file system keeps the mode and the ACL from
 * contradicting each other: an ACL that is set gives the mode its bits, chmod changes the ACL, and
 * what is made in a folder gets that folder's default. The bytes are those of the xattr: u32
 * version 2, then for each entry u16 tag, u16 permissions, u32 id.
 */

#include "merge/upper-internal.h"

#define VERSION 2
#define HEADER 4
#define ENTRY 8

enum { USER_OBJ = 1, USER = 2, GROUP_OBJ = 4, GROUP = 8, MASK = 16, OTHER = 32 };

static uint16_t perm_of(const uint8_t *entry)
{
	return le16(entry + 2);
}

static void set_perm(uint8_t *entry, uint32_t perm)
{
	entry[2] = (uint8_t)(perm & 7);
	entry[3] = 0;
}

/* Which tags there are; -EINVAL when it is no ACL. The three objects stand once each, and a mask
 * where there are users or groups. */
static int tags_of(const uint8_t *acl, size_t n)
{
	int tags = 0;

	if (n < HEADER || (n - HEADER) % ENTRY || n > ACL_MAX || le32(acl) != VERSION)
		return -EINVAL;
	for (const uint8_t *e = acl + HEADER; e < acl + n; e += ENTRY) {
		int tag = le16(e);
		bool is_many = tag == USER || tag == GROUP;
		if ((tag != USER_OBJ && tag != GROUP_OBJ && tag != MASK && tag != OTHER &&
		     !is_many) ||
		    (!is_many && (tags & tag)) || perm_of(e) > 7)
			return -EINVAL;
		tags |= tag;
	}
	if ((tags & (USER_OBJ | GROUP_OBJ | OTHER)) != (USER_OBJ | GROUP_OBJ | OTHER) ||
	    ((tags & (USER | GROUP)) && !(tags & MASK)))
		return -EINVAL;
	return tags;
}

/* How far the entry's permissions are shifted in a mode; -1: they are not in it. */
static int shift_of(const uint8_t *entry, int tags)
{
	switch (le16(entry)) {
	case USER_OBJ:
		return 6;
	case GROUP_OBJ:
		return tags & MASK ? -1 : 3;
	case MASK:
		return 3;
	case OTHER:
		return 0;
	default:
		return -1;
	}
}

int upper_acl_mode(const void *acl, size_t n, uint32_t *mode, bool *is_mode)
{
	const uint8_t *p = acl;
	int tags = tags_of(p, n);

	if (tags < 0)
		return tags;
	for (const uint8_t *e = p + HEADER; e < p + n; e += ENTRY) {
		int shift = shift_of(e, tags);
		if (shift >= 0)
			*mode = (*mode & ~(7u << shift)) | (uint32_t)perm_of(e) << shift;
	}
	*is_mode = !(tags & (USER | GROUP | MASK));
	return 0;
}

int upper_acl_chmod(void *acl, size_t n, uint32_t mode)
{
	uint8_t *p = acl;
	int tags = tags_of(p, n);

	if (tags < 0)
		return tags;
	for (uint8_t *e = p + HEADER; e < p + n; e += ENTRY) {
		int shift = shift_of(e, tags);
		if (shift >= 0)
			set_perm(e, mode >> shift);
	}
	return 0;
}

int upper_acl_create(void *acl, size_t n, uint32_t *mode)
{
	uint8_t *p = acl;
	int tags = tags_of(p, n);

	if (tags < 0)
		return tags;
	for (uint8_t *e = p + HEADER; e < p + n; e += ENTRY) {
		int shift = shift_of(e, tags);
		if (shift < 0)
			continue;
		set_perm(e, perm_of(e) & (*mode >> shift));
		*mode = (*mode & ~(7u << shift)) | (uint32_t)perm_of(e) << shift;
	}
	return tags & (USER | GROUP | MASK) ? 0 : 1;
}
