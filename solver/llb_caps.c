/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a definition may require of who solves it: BuildKit's capabilities, by their names. One that
 * is not here is newer than this program, and who asked for it would get something else than they
 * meant; so it is refused before anything is done. That one is here says only that its fields are
 * understood: an operation that cannot be solved says so when it is to be solved.
 */

#include "blobstore/base.h"
#include "solver/solver-internal.h"

static const char *const caps[] = {
	"cache.azblob",
	"cache.gha",
	"cache.s3",
	"constraints",
	"diffop",
	"exec.cgroup",
	"exec.meta.base",
	"exec.meta.cdi",
	"exec.meta.cgroup.parent",
	"exec.meta.linux.resources",
	"exec.meta.network",
	"exec.meta.network.proxy",
	"exec.meta.proxyenv",
	"exec.meta.removemountstubs.recursive",
	"exec.meta.security",
	"exec.meta.security.devices.v1",
	"exec.meta.setsdefaultpath",
	"exec.meta.ulimit",
	"exec.mount.bind",
	"exec.mount.bind.readwrite-nooutput",
	"exec.mount.cache",
	"exec.mount.cache.content",
	"exec.mount.cache.sharing",
	"exec.mount.secret",
	"exec.mount.selector",
	"exec.mount.ssh",
	"exec.mount.tmpfs",
	"exec.mount.tmpfs.size",
	"exec.secretenv",
	"exec.validexitcode",
	"exporter.image.annotations",
	"exporter.image.attestations",
	"exporter.multiple",
	"exporter.session",
	"exporter.sourcedateepoch",
	"file.base",
	"file.copy.alwaysreplaceexistingdestpaths",
	"file.copy.includeexcludepatterns",
	"file.copy.modestring",
	"file.copy.requiredpaths",
	"file.rm.nofollowsymlink",
	"file.rm.wildcard",
	"file.symlink.create",
	"gc.freespacefilter",
	"history.filter",
	"mergeop",
	"meta.description",
	"meta.exportcache",
	"meta.ignorecache",
	"passthroughop",
	"platform",
	"soruce.http.uidgid",
	"source.buildop.llbfilename",
	"source.git",
	"source.git.bundle",
	"source.git.checkoutbundle",
	"source.git.checksum",
	"source.git.fetchbycommit",
	"source.git.fullurl",
	"source.git.httpauth",
	"source.git.keepgitdir",
	"source.git.knownsshhosts",
	"source.git.mountsshsock",
	"source.git.mtime",
	"source.git.signatureverify",
	"source.git.skipsubmodules",
	"source.git.subdir",
	"source.http",
	"source.http.auth",
	"source.http.checksum",
	"source.http.header",
	"source.http.perm",
	"source.http.signatureverify",
	"source.image",
	"source.image.checksum",
	"source.image.layerlimit",
	"source.image.resolvemode",
	"source.imageblob",
	"source.local",
	"source.local.differ",
	"source.local.excludepatterns",
	"source.local.followpaths",
	"source.local.includepatterns",
	"source.local.metadatatransfer",
	"source.local.sessionid",
	"source.local.sharedkeyhint",
	"source.local.unique",
	"source.ocilayout",
	"source.policy",
	"source.policy.session",
};

static int compare(const void *name, const void *cap)
{
	return strcmp(name, *(const char *const *)cap);
}

bool llb_cap_is_known(const char *name)
{
	return bsearch(name, caps, countof(caps), sizeof(*caps), compare);
}
