#!/bin/bash
# union.sh [ROUNDS]: file operations in a mount, against a plain directory, overlayfs and fuse-overlayfs.
#
# An image of five layers: a tree of 50,000 files in 500 directories, the files of each
# spread over all layers, and two files of 1 GiB. The others get the layers as directories
# of the same file system (ext4, say), which also has all upper directories; "plain" is one
# directory with everything. In each round every operation is done by one after the
# other, so that what disturbs the machine disturbs all. Medians of ROUNDS; the program in
# union/ does and times the operations.
#
#   read-only  walk cold (dentries and inodes dropped), walk warm, 10,000 small files, 1 GiB
#              sequentially, 100,000 random reads of 4 KiB: what is read was read once before
#   writable   512 MiB written; 20,000 empty files created, deleted; a byte appended to the
#              first of the large files, which is read again then; the second truncated by open
#   tree       the tree renamed (overlayfs: redirect_dir=on); in another mount, removed
#
# CASES chooses some of "read write tree", TOOLS some of the tools. Needs root, fuse-overlayfs,
# umoci, 15 GB in TMPDIR.
set -euo pipefail
layerfs=$(realpath "${LAYERFS:-bin/layerfs}")
here=$(cd "$(dirname "$0")" && pwd)
rounds=${1:-3}
cases=${CASES:-read write tree}
tools=${TOOLS:-plain overlayfs fuse-overlayfs layerfs}
work=$(mktemp -d)

fs() { "$layerfs" --root "$work/root" -q "$@"; }
cleanup() {
    local t
    for t in $tools; do unmount "$t" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

make_image() {
    (cd "$here/../.." && go build -o "$work/union" ./integration/bench/union)
    "$work/union" make "$work/layers"
    umoci init --layout "$work/layout"
    umoci new --image "$work/layout:1"
    local i
    for i in 1 2 3 4 5; do umoci insert --image "$work/layout:1" "$work/layers/$i" / 2>/dev/null; done
    lower=$work/layers/5:$work/layers/4:$work/layers/3:$work/layers/2:$work/layers/1
    mkdir "$work/whole"
    cp -a "$work/layers/"?/. "$work/whole"
}

# mount_TOOL ro|rw DIR: a mount with nothing in its upper directory. For plain, the way in.
upper() { rm -rf "$work/up-$1" && mkdir -p "$work/up-$1/u" "$work/up-$1/w"; }
mount_overlayfs() {
    local more=
    [ "$1" = ro ] || { upper overlayfs; more=,upperdir=$work/up-overlayfs/u,workdir=$work/up-overlayfs/w,redirect_dir=on; }
    mount -t overlay overlay -o "lowerdir=$lower$more" "$2"
}
mount_fuse-overlayfs() {
    local more=
    [ "$1" = ro ] || { upper fuse-overlayfs; more=,upperdir=$work/up-fuse-overlayfs/u,workdir=$work/up-fuse-overlayfs/w; }
    fuse-overlayfs -o "lowerdir=$lower$more" "$2"
}
mount_layerfs() {
    local more=()
    [ "$1" = ro ] || { upper layerfs; more=(--upper "$work/up-layerfs/u" --work "$work/up-layerfs/w"); }
    fs mount "${more[@]}" "oci:$work/layout:1" "$2" >/dev/null
}
mount_plain() {
    [ "$1" = ro ] || { cp -a "$work/whole/." "$2"; sync; return; }
    mount --bind -o ro "$work/whole" "$2"
}

unmount() {
    case $1 in
    layerfs) fs umount "$work/mnt/layerfs" ;;
    *) ! mountpoint -q "$work/mnt/$1" || umount "$work/mnt/$1" ;;
    esac
    rm -rf "$work/mnt/$1" "$work/up-$1"
}

# with ro|rw FUNCTION: mounts all, runs it, and unmounts all.
with() {
    local t
    for t in $tools; do
        mkdir -p "$work/mnt/$t"
        "mount_$t" "$1" "$work/mnt/$t"
    done
    "$2"
    for t in $tools; do unmount "$t"; done
}

# each NAME OPERATION [BEFORE]: once by every tool. What one cannot do has no number.
each() {
    local t s
    for t in $tools; do
        case ${3:-} in
        cold) sync; echo 2 >/proc/sys/vm/drop_caches ;;
        warm) "$work/union" "$2" "$work/mnt/$t" >/dev/null ;;
        sync) sync ;;
        esac
        if s=$("$work/union" "$2" "$work/mnt/$t"); then
            echo "$s" >>"$work/times/$1.$t"
            echo "round $round: $1, $t: $s" >&2
        fi
    done
}

reading() {
    each 'walk, cold' walk cold
    each 'walk, warm' walk warm
    each '10k small files' small warm
    each '1 GiB read' seq warm
    each 'random 4 KiB' random warm
}
writing() {
    each '512 MiB written' write sync
    each '20k created' create sync
    each '20k deleted' delete sync
    each 'byte appended to 1 GiB' append sync
    each '1 GiB read, upper' seq warm
    each 'random 4 KiB, upper' random warm
    each 'open(O_TRUNC) of 1 GiB' trunc sync
}
renaming() { each 'tree renamed' rename sync; }
removing() { each 'tree removed' rmtree sync; }

median() { sort -n "$1" | awk '{v[NR]=$1} END {printf "%.6f", (NR % 2) ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }

# table: medians in ms, and the time of layerfs over that of each.
table() {
    local name t us f
    echo "| operation, ms (layerfs / it) | ${tools// / | } |"
    echo "|---|${tools//[^ ]/}---|---|---|---|" | tr -d ' '
    while read -r name; do
        us=$work/times/$name.layerfs
        printf '| %s ' "$name"
        for t in $tools; do
            f=$work/times/$name.$t
            if [ ! -e "$f" ]; then printf '| – '; continue; fi
            printf '| %s ' "$(awk -v a="$(median "$f")" -v u="$([ ! -e "$us" ] || median "$us")" -v t="$t" \
                'BEGIN { printf a < 0.01 ? "%.2f" : "%.0f", a * 1000; if (t != "layerfs" && u != "") printf " (%.2f)", u / a }')"
        done
        echo '|'
    done < <(ls -tr "$work/times" | sed 's/\.[a-z-]*$//' | awk '!seen[$0]++')
}

mkdir -p "$work/times" "$work/mnt"
make_image
for round in $(seq "$rounds"); do
    case " $cases " in *" read "*) with ro reading ;; esac
    case " $cases " in *" write "*) with rw writing ;; esac
    case " $cases " in *" tree "*) with rw renaming; with rw removing ;; esac
done
table
