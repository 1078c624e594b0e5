#!/bin/sh
# build.sh DIR: two real Debian images as OCI layouts, for the integration tests and the benchmarks.
#
#   DIR/py   minbase, python3, an application, removals   (6 layers, about 145 MB as gzip)
#   DIR/big  the same and gcc, node, git, …               (10 layers, about 600 MB)
#   DIR/py-estargz, DIR/big-estargz  the same with eStargz layers
#
# Needs root, mmdebstrap and buildah. Packages come from wherever this machine's
# apt gets them. What is there already is kept; remove DIR to build afresh.
set -eu

dir=${1:?usage: build.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
store="$dir/.store"
sources=/etc/apt/sources.list.d/debian.sources
[ -s "$sources" ] || sources=/etc/apt/sources.list
export BUILDAH_ISOLATION=chroot
export STORAGE_DRIVER=overlay
bud() { buildah --root "$store/root" --runroot "$store/run" "$@"; }

base() {
    [ -s "$dir/base.tar" ] && return
    mmdebstrap --quiet --format=tar --variant=minbase bookworm "$dir/base.tar.part" - <"$sources"
    mv "$dir/base.tar.part" "$dir/base.tar"
}

# layer FROM TO COMMAND: one more layer by a shell command in the container.
layer() {
    c=$(bud from --pull-never "$1")
    bud run --cap-add CAP_SETFCAP,CAP_MKNOD --network host "$c" -- sh -euc "$3" >/dev/null
    bud config --created-by "$3" "$c"
    bud commit --quiet --rm "$c" "$2" >/dev/null
}

# add FROM TO TREE: one more layer by copying a folder of this machine.
add() {
    c=$(bud from --pull-never "$1")
    bud copy --quiet "$c" "$3" / >/dev/null
    bud commit --quiet --rm "$c" "$2" >/dev/null
}

apt='export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; apt-get -qq install -y --no-install-recommends'

py() {
    [ -s "$dir/py/index.json" ] && return
    c=$(bud from scratch)
    bud add --quiet "$c" "$dir/base.tar" / >/dev/null
    bud config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$c"
    bud commit --quiet --rm "$c" py1 >/dev/null
    layer py1 py2 "$apt python3 python3-numpy ca-certificates; apt-get clean"
    add py2 py3 "$here/app"
    # Removals: single files, a whole folder, a folder made again (opaque).
    layer py3 py4 'rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /usr/share/doc /usr/share/locale; rm /app/obsolete.txt; rm -rf /app/data; mkdir /app/data; echo fresh >/app/data/new'
    # What archives are bad at: hardlinks, sparse files, capabilities, devices, odd names, times.
    layer py4 py5 'cd /app; echo shared >one; ln one two; ln one data/three; truncate -s 64M hole; printf end >>hole
        mkfifo pipe; ln -s /etc/passwd abs; ln -s ../../../../etc/hostname up; : >"$(printf "odd \\303\\244 \\033[31m")"
        touch -d "2001-02-03 04:05:06.789012345" old; chmod 4755 /app/run.py; chmod 1777 data; chown 1000:2000 two
        python3 -c "import os; os.setxattr(\"run.py\", \"security.capability\", bytes.fromhex(\"0100000200040000000000000000000000000000\")); os.setxattr(\"one\", \"user.origin\", b\"sample\")"'
    layer py5 py6 'cd /app; rm old; mkdir old; echo dir >old/file; rm -r data/new; ln -f one data/four; python3 -m compileall -q /app'
    bud push --quiet py6 "oci:$dir/py.part:latest"
    mv "$dir/py.part" "$dir/py"
}

big() {
    [ -s "$dir/big/index.json" ] && return
    layer py6 big7 "$apt gcc libc6-dev make; apt-get clean"
    layer big7 big8 "$apt nodejs npm; apt-get clean"
    layer big8 big9 "$apt git g++ clang default-jdk-headless; apt-get clean"
    layer big9 big10 'rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /usr/share/doc; printf "#include <stdio.h>\nint main(void){puts(\"hello\");}\n" >/app/hello.c'
    bud push --quiet big10 "oci:$dir/big.part:latest"
    mv "$dir/big.part" "$dir/big"
}

# estargz NAME: the same image with eStargz layers, by the format's own library.
estargz() {
    [ -s "$dir/$1-estargz/index.json" ] && return
    (cd "$here" && go run ./estargz "$dir/$1" "$dir/$1-estargz.part")
    mv "$dir/$1-estargz.part" "$dir/$1-estargz"
}

base
py
big
estargz py
estargz big
bud rmi --all --force >/dev/null 2>&1 || true
rm -rf "$store"
