#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The map of the code, checked: check-doors.sh SOURCE_ROOT
#   - includes go down:  tools -> fs, solver -> merge -> blobstore; fs and solver know nothing of each other
#   - another folder is entered through its door only: FOLDER/FOLDER.h, and blobstore/base.h
#   - one library, one file: the table below
set -u
cd "$1" || exit 2
bad=0

complain()
{
	echo "$*" >&2
	bad=1
}

# may FOLDER: the folders whose doors it may include
may()
{
	case $1 in
	blobstore) echo "" ;;
	merge) echo "blobstore" ;;
	solver | fs) echo "blobstore merge" ;;
	tools) echo "blobstore merge solver fs" ;;
	esac
}

for folder in blobstore merge solver fs tools; do
	for line in $(grep -Hno '#include "[^"]*"' "$folder"/*.[ch] | tr -d ' '); do
		where=${line%%:#include*}
		path=${line#*#include\"}
		path=${path%\"}
		case $path in
		"$folder"/*) continue ;; # its own
		llb.pb-c.h) # generated
			case ${where%%:*} in
			solver/llb.c | solver/llb_json.c | solver/llb_source.c) ;;
			*) complain "$where: only solver/llb.c, llb_json.c and llb_source.c may include $path" ;;
			esac
			continue
			;;
		esac
		target=${path%%/*}
		case " $(may "$folder") " in
		*" $target "*) ;;
		*) complain "$where: $folder may not include $path" ;;
		esac
		case $path in
		"$target/$target.h" | blobstore/base.h) ;;
		*) complain "$where: $path is not the door of $target" ;;
		esac
	done
done

# library HEADER_PATTERN FILE_PATTERN: only these files may include these headers
library()
{
	for file in $(grep -lE "#include <$1>" blobstore/*.[ch] merge/*.[ch] solver/*.[ch] fs/*.[ch] tools/*.[ch]); do
		echo "$file" | grep -qE "^($2)$" || complain "$file: must not include <$1>; only $2 may"
	done
}
library 'curl/.*' 'blobstore/fetch\.c'
library 'sqlite3\.h' 'blobstore/db\.c'
library '(zlib|zstd|zstd_.*|isa-l.*|igzip_lib)\.h(/.*)?' 'blobstore/codec\.c'
library 'isa-l/.*' 'blobstore/codec\.c'
library 'openssl/.*' 'blobstore/digest\.c'
library 'archive(_entry)?\.h' 'merge/tar\.c'
library 'protobuf-c/.*' 'solver/llb(_json|_source)?\.c'
library 'fuse.*\.h' 'fs/[a-z-]*\.[ch]'
library 'jansson\.h' 'blobstore/(auth|credentials|registry|target_layout)\.c|merge/toc_json\.c|solver/(image|llb_json|cacheconfig)\.c|tools/[a-z_]*\.c'

exit $bad
