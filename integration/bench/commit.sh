#!/bin/bash
# commit.sh [ROUNDS]: a change to an image, committed and pushed: layerfs against buildah and umoci.
#
# An image of 256 MB in five layers (eStargz, which the others take for gzip) is in a
# docker-registry on loopback; all bytes go through a proxy that counts them. Each round
# runs every tool once in every case, so that what disturbs the machine disturbs all. The
# table has medians.
#
#   edit     from nothing local: get the image, change 3 small files, delete a directory, rename
#            one of 500 files, commit, push to another tag; all of it is timed
#   far      the same over a link of 100 Mbit/s with a round trip of 20 ms
#   files    20,000 new small files; from here on commit and push alone are timed
#   large    one new file of 2 GiB, made of what is in /usr of this machine
#   empty    nothing written
#   sparse   a file of 8 GiB with one block written
#
# "disk" is what the tool's directory has grown to at most, what was written included;
# "RSS" the largest process of a tool, of layerfs the server and the command together.
# CASES and TOOLS choose some of them; LEVEL is layerfs's
# compression level; LOG is a file for the list of all requests. docker needs a daemon of its own, and is not run.
# Needs root, 20 GB in TMPDIR, docker-registry, skopeo, buildah, umoci, curl, jq, bc, time.
set -euo pipefail
layerfs=$(realpath "${LAYERFS:-bin/layerfs}")
port=${PORT:-5597}
here=$(cd "$(dirname "$0")" && pwd)

b() { buildah --root "$work/buildah/root" --runroot "$work/buildah/run" --storage-driver "${STORAGE_DRIVER:-overlay}" "$@"; }

# clear TOOL: nothing of it is left.
clear_layerfs() {
    "$layerfs" --root "$work/layerfs" -q umount -a >/dev/null 2>&1 || "$layerfs" --root "$work/layerfs" -q umount -l -a >/dev/null 2>&1 || true
    rm -rf "$work/layerfs"
}
clear_buildah() {
    [ -d "$work/buildah/root" ] || return 0
    b rm --all >/dev/null 2>&1 || true
    umount "$work/buildah/root/overlay" 2>/dev/null || true
    rm -rf "$work/buildah"
}
clear_umoci() { rm -rf "$work/umoci"; }

cleanup() {
    [ -d "$work" ] || return 0
    clear_layerfs
    clear_buildah
    while read -r pid; do kill "$pid" 2>/dev/null || true; done <"$work/pids"
    until rm -rf "$work" 2>/dev/null && sleep 0.2 && [ ! -e "$work" ]; do sleep 0.5; done # a tool may still write there
}

# The script starts itself again as the one who cleans up, whatever ends the first.
if [ "${1:-}" = --cleanup-after ]; then
    work=$3
    trap '' INT TERM HUP
    tail --pid="$2" -f /dev/null
    cleanup
    exit
fi
rounds=${1:-3}
cases=${CASES:-edit far files large empty sparse}
tools=${TOOLS:-layerfs buildah umoci}
work=$(mktemp -d)
: >"$work/pids"
setsid "$0" --cleanup-after $$ "$work" >/dev/null 2>&1 &
trap cleanup EXIT
trap 'exit 130' INT TERM

(cd "$here/../.." && go build -o "$work/proxy" ./integration/bench/proxy)
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "%s"}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
    "$work/registry" "$port" >"$work/config.yml"
docker-registry serve "$work/config.yml" >/dev/null 2>&1 &
echo $! >>"$work/pids"
until curl -sf "http://127.0.0.1:$port/v2/" >/dev/null; do sleep 0.1; done
"$work/proxy" "http://127.0.0.1:$port" >"$work/addresses" &
echo $! >>"$work/pids"
until [ "$(wc -l <"$work/addresses")" = 2 ]; do sleep 0.1; done
{ read -r far; read -r control; } <"$work/addresses"
image=$far/image:1

# pieces DIR BYTES SIZE: files of SIZE with BYTES that hardly compress, as in a layer of programs.
pieces() {
    mkdir -p "$1"
    head -c "$2" /dev/urandom | split -b "$3" -a 4 - "$1/f"
}
make_image() {
    local l=$work/layout t=$work/bundle/rootfs i
    umoci init --layout "$l" && umoci new --image "$l:1" && umoci unpack --image "$l:1" "$work/bundle" 2>/dev/null
    for i in 1 2 3 4 5; do
        pieces "$t/usr/lib/part$i" 44M 200k
        pieces "$t/usr/bin/part$i" 6M 20k
        pieces "$t/opt/docs$i" 200k 2k
        if [ "$i" = 3 ]; then pieces "$t/opt/names" 250k 512; fi
        umoci repack --refresh-bundle --image "$l:1" "$work/bundle" 2>/dev/null
    done
    "$layerfs" --root "$work/layerfs" -q convert --compression estargz "oci:$l:1" "127.0.0.1:$port/image:1" >/dev/null
    clear_layerfs
    rm -rf "$l" "$work/bundle"
}
make_content() {
    case " $cases " in *" files "*) pieces "$work/content/many" 40M 2k ;; esac
    case " $cases " in *" large "*) head -c 2G < <(while tar -cf - /usr; do :; done 2>/dev/null) >"$work/content/large" ;; esac
}

# t COMMAND: runs a command of a tool and notes its RSS.
t() { /usr/bin/time -a -o "$work/rss" -f %M "$@"; }

# For each tool: base gets the image, tree is where its files are to be changed, send commits and pushes.
base_layerfs() { t "$layerfs" --root "$work/layerfs" -q mount --rw "$image" "$work/mnt" >/dev/null; }
tree_layerfs() { echo "$work/mnt"; }
send_layerfs() { t "$layerfs" --root "$work/layerfs" -q commit --level "${LEVEL:-0}" "$work/mnt" "$far/image:new" >/dev/null; }
rss_layerfs() {
    local server
    server=$("$layerfs" --root "$work/layerfs" mounts --json | jq '.[0].pid')
    echo $(($(sort -n "$work/rss" | tail -1) + $(awk '/VmHWM/ {print $2}' "/proc/$server/status")))
}
bt() { t buildah --root "$work/buildah/root" --runroot "$work/buildah/run" --storage-driver "${STORAGE_DRIVER:-overlay}" "$@"; }
base_buildah() { bt from --quiet --name c --tls-verify=false "docker://$image" >/dev/null && bt mount c >"$work/merged"; }
tree_buildah() { cat "$work/merged"; }
send_buildah() { bt commit --quiet c new >/dev/null && bt push --quiet --tls-verify=false new "docker://$far/image:new"; }
base_umoci() {
    mkdir -p "$work/umoci"
    t skopeo copy --quiet --src-tls-verify=false "docker://$image" "oci:$work/umoci/layout:1"
    t umoci unpack --image "$work/umoci/layout:1" "$work/umoci/bundle" 2>/dev/null
}
tree_umoci() { echo "$work/umoci/bundle/rootfs"; }
send_umoci() {
    t umoci repack --image "$work/umoci/layout:new" "$work/umoci/bundle" 2>/dev/null
    t skopeo copy --quiet --dest-tls-verify=false "oci:$work/umoci/layout:new" "docker://$far/image:new"
}

# change CASE DIR
change() {
    case $1 in
    edit | far)
        local f
        for f in opt/docs1/faaaa opt/docs2/faaab usr/bin/part5/faaac; do echo changed >>"$2/$f"; done
        rm -r "$2/opt/docs4"
        mv "$2/opt/names" "$2/opt/renamed" ;;
    files) cp -r "$work/content/many" "$2/many" ;;
    large) cp "$work/content/large" "$2/large" ;;
    sparse) truncate -s 8G "$2/sparse" && dd if=/dev/urandom of="$2/sparse" bs=4k count=1 seek=1M conv=notrunc status=none ;;
    esac
}

# peak DIR FILE: writes the most that a directory takes, in kB, until it is killed.
peak() {
    local most=0 now
    while [ -d "$1" ]; do
        now=$(du -sk "$1" 2>/dev/null | cut -f1)
        [ "${now:-0}" -le "$most" ] || { most=$now; echo "$most" >"$2"; }
        sleep 0.5
    done
}

all_of() { "base_$1" && change "$2" "$("tree_$1")" && "send_$1"; }

link() { curl -sf -X PUT "$control/link?mbit=$1&rtt=$2"; }

# measure CASE TOOL: appends seconds, bytes down, bytes up, kB of disk, kB of RSS.
measure() {
    local start end requests in out watcher timed="send_$2"
    link 0 0s
    mkdir -p "$work/mnt" "$work/$2"
    : >"$work/rss"
    case $1 in
    edit) timed=all_of ;;
    far) timed=all_of; link 100 20ms ;;
    *) "base_$2" && change "$1" "$("tree_$2")" && sync ;;
    esac
    echo 0 >"$work/peak"
    peak "$work/$2" "$work/peak" &
    watcher=$!
    curl -sf -X DELETE "$control/counters"
    start=$(date +%s.%N)
    "$timed" "$2" "$1"
    end=$(date +%s.%N)
    [ -z "${LOG:-}" ] || curl -sf "$control/log" >>"$LOG"
    read -r requests in out < <(curl -sf "$control/counters" | jq -r '"\(.requests) \(.received) \(.sent)"')
    sleep 0.6
    kill "$watcher" && wait "$watcher" 2>/dev/null || true
    local rss
    if [ "$2" = layerfs ]; then rss=$(rss_layerfs); else rss=$(sort -n "$work/rss" | tail -1); fi
    echo "$(echo "$end - $start" | bc) $in $out $(cat "$work/peak") $rss $requests" >>"$work/$1.$2"
    check "$1"
    "clear_$2"
}

# check CASE: the new image is what the case is about.
check() {
    local layers want=6
    layers=$(curl -sf -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://127.0.0.1:$port/v2/image/manifests/new" | jq '.layers | length')
    [ "$1" != empty ] || want=5
    [ "$layers" = "$want" ] || echo "$1: the new image has $layers layers" >&2
}
median() { cut -d' ' -f"$2" "$1" | sort -n | awk '{v[NR]=$1} END {printf "%.3f", (NR % 2) ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }

mkdir "$work/content"
make_image
make_content
for i in $(seq "$rounds"); do
    for c in $cases; do
        for tool in $tools; do
            measure "$c" "$tool"
            echo "round $i: $c, $tool: $(tail -1 "$work/$c.$tool")" >&2
        done
    done
done
mb() { echo "$(median "$1" "$2") / $3" | bc -l; }
ratio() { if [ -e "$work/$1.$2" ]; then echo "scale=3; $(median "$work/$1.layerfs" 1) / $(median "$work/$1.$2" 1)" | bc; else echo -; fi; }
echo "| case | tool | s | MB down | MB up | disk MB | RSS MB | layerfs takes of its time |"
echo "|---|---|---|---|---|---|---|---|"
for c in $cases; do
    for tool in $tools; do
        f=$work/$c.$tool
        r=
        if [ "$tool" != layerfs ] && [ -e "$work/$c.layerfs" ]; then r=$(ratio "$c" "$tool"); fi
        printf '| %s | %s | %.2f | %.2f | %.2f | %.0f | %.0f | %s |\n' "$c" "$tool" "$(median "$f" 1)" \
            "$(mb "$f" 2 1000000)" "$(mb "$f" 3 1000000)" "$(mb "$f" 4 1000)" "$(mb "$f" 5 1000)" "$r"
    done
done
