#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs Debian 12's packages that llbfs needs: install-deps.sh build|test
#   build   what compiles it, and fuse3 to mount
#   test    that, and what the tests run: sanitizers, registries, peers to compare with
set -eu

build="meson ninja-build gcc libc6-dev pkg-config libfuse3-dev fuse3 libcurl4-openssl-dev libzstd-dev
	zlib1g-dev libsqlite3-dev libarchive-dev libssl-dev libjansson-dev protobuf-c-compiler
	libprotobuf-c-dev libcmocka-dev libisal-dev ca-certificates"
test="clang libclang-rt-14-dev clang-format python3 python3-pytest skopeo umoci docker-registry
	runc attr apache2-utils zstd man-db git procps util-linux"

case "${1-}" in
build) packages=$build ;;
test) packages="$build $test" ;;
*) echo "usage: install-deps.sh build|test" >&2; exit 2 ;;
esac

missing=
for package in $packages; do
	case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) in
	installed) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || { echo "install-deps.sh: run it as root to install:$missing" >&2; exit 1; }
	as_root=sudo
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q
# shellcheck disable=SC2086 # a list of words
$as_root apt-get install -q -y --no-install-recommends $missing
