#!/bin/bash
# lazy.sh IMAGES [ROUNDS]: from nothing to the end of a workload, for each form of an image, near and far.
#
# IMAGES is the folder that images/build.sh makes. A docker-registry on loopback has
# the images; all bytes go through a proxy that counts them and, for "far", makes a
# link of 100 Mbit/s with a round trip of 20 ms of it. Each round runs every form once,
# podman's pull among them, so that what disturbs the machine disturbs all. The
# table has medians; the ratio is to podman's time of the same workload and link.
#
#   hello   python3 -c 'print("hi")' in image py
#   gcc     gcc hello.c in image big
#   all     every file read, of image py (ALL=big for the large one)
#
# Forms: gzip (as it was pushed), index (gzip, with the index that an earlier mount left,
# no content), profile (eStargz, with index and access profile left, no content), estargz,
# zstd:chunked, soci (gzip with SOCI indexes in the registry). LINKS, WORKLOADS and FORMS
# choose some of them. Needs root, docker-registry, skopeo, podman, curl, bc.
set -euo pipefail
images=${1:?usage: lazy.sh IMAGES [ROUNDS]}
rounds=${2:-3}
links=${LINKS:-near far}
workloads=${WORKLOADS:-hello gcc all}
forms=${FORMS:-podman gzip index estargz profile zstd-chunked soci}
all=${ALL:-py}
layerfs=$(realpath "${LAYERFS:-bin/layerfs}")
port=${PORT:-5598}
work=$(mktemp -d)
here=$(cd "$(dirname "$0")" && pwd)

(cd "$here/../.." && go build -o "$work/proxy" ./integration/bench/proxy)
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "%s"}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
    "$work/registry" "$port" >"$work/config.yml"
docker-registry serve "$work/config.yml" >/dev/null 2>&1 &
pids=$!
pod() { podman --root "$work/podman" --runroot "$work/run" "$@"; }
cleanup() {
    "$layerfs" --root "$work/root" umount -l -a >/dev/null 2>&1 || true
    pod image umount --all >/dev/null 2>&1 || true
    pod rmi --all --force >/dev/null 2>&1 || true
    umount "$work/podman/overlay" 2>/dev/null || true
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
until curl -sf "http://127.0.0.1:$port/v2/" >/dev/null; do sleep 0.1; done
"$work/proxy" -to "127.0.0.1:$port" >"$work/addresses" &
pids="$pids $!"
until [ -s "$work/addresses" ]; do sleep 0.1; done
read -r far control <"$work/addresses"
mkdir "$work/mnt"

# need FORM IMAGE: puts that form of an image into the registry, or says why it cannot.
need() {
    local done=$work/have-$1-$2
    if [ -e "$done" ]; then return "$(cat "$done")"; fi
    local ok=0
    case $1 in
    podman | gzip | index) put "$2" "$2" ;;
    estargz | profile) put "$2-estargz" "$2-estargz" ;;
    zstd-chunked) make_form "$2" convert --compression zstd:chunked "127.0.0.1:$port/$2:1" "127.0.0.1:$port/$2-zstd-chunked:1" || ok=1 ;;
    soci) make_form "$2" index --push "127.0.0.1:$port/$2:1" || ok=1 ;;
    esac
    echo "$ok" >"$done"
    return "$ok"
}
put() {
    [ -e "$work/put-$2" ] || skopeo copy --quiet --preserve-digests --dest-tls-verify=false "oci:$images/$1:latest" "docker://127.0.0.1:$port/$2:1"
    touch "$work/put-$2"
}
make_form() {
    put "$1" "$1"
    shift
    "$layerfs" --root "$work/forms" -q "$@" >/dev/null 2>"$work/err" || { echo "left out: layerfs $*: $(head -1 "$work/err")" >&2; return 1; }
}
name() {
    case $1 in
    estargz | profile) echo "$far/$2-estargz:1" ;;
    zstd-chunked) echo "$far/$2-zstd-chunked:1" ;;
    *) echo "$far/$2:1" ;;
    esac
}

# work_in WORKLOAD DIR: the workload in a mounted image.
work_in() {
    case $1 in
    hello) chroot "$2" python3 -c 'print("hi")' ;;
    gcc) # the output goes to a file system that can be written: the image is read-only
        mount -t tmpfs tmpfs "$2/tmp"
        printf '#include <stdio.h>\nint main(void) { puts("hi"); return 0; }\n' >"$2/tmp/hello.c"
        chroot "$2" sh -c 'gcc -o /tmp/hello /tmp/hello.c && /tmp/hello'
        umount "$2/tmp" ;;
    all) find "$2" -xdev -type f -print0 | xargs -0 cat ;;
    esac >/dev/null
}
image_of() { case $1 in hello) echo py ;; gcc) echo big ;; all) echo "$all" ;; esac; }

run_layerfs() { # WORKLOAD FORM
    local o=()
    case $2 in soci) o=(--index soci) ;; esac
    case $2 in index) o=(--prefetch none) ;; esac
    "$layerfs" --root "$work/root" -q mount "${o[@]}" "$(name "$2" "$(image_of "$1")")" "$work/mnt" >/dev/null
    work_in "$1" "$work/mnt"
}
run_podman() { # WORKLOAD
    pod pull --quiet --tls-verify=false "$(name podman "$(image_of "$1")")" >/dev/null
    work_in "$1" "$(pod image mount "$(name podman "$(image_of "$1")")")"
}

# before FORM WORKLOAD: the state that the form begins with.
before() {
    "$layerfs" --root "$work/root" -q umount -a >/dev/null 2>&1 || true
    pod image umount --all >/dev/null 2>&1 || true
    pod rmi --all --force >/dev/null 2>&1 || true
    rm -rf "$work/podman" "$work/run" "$work/root"
    case $1 in index | profile)
        curl -sf "$control/link?mbit=0&rtt=0s"
        run_layerfs "$2" "$(case $1 in index) echo gzip ;; profile) echo estargz ;; esac)"
        "$layerfs" --root "$work/root" -q umount "$work/mnt"
        "$layerfs" --root "$work/root" -q cache gc >/dev/null ;;
    esac
    sync
    echo 1 >/proc/sys/vm/drop_caches 2>/dev/null || true
}

# measure FORM WORKLOAD LINK: appends seconds, bytes and requests.
measure() {
    before "$1" "$2"
    case $3 in near) curl -sf "$control/link?mbit=0&rtt=0s" ;; far) curl -sf "$control/link?mbit=100&rtt=20ms" ;; esac
    curl -sf "$control/reset"
    local start end requests in out
    start=$(date +%s.%N)
    if [ "$1" = podman ]; then run_podman "$2"; else run_layerfs "$2" "$1"; fi
    end=$(date +%s.%N)
    read -r requests in out < <(curl -sf "$control/counters")
    echo "$(echo "$end - $start" | bc) $out $requests $in" >>"$work/$2.$3.$1"
}
median() { cut -d' ' -f"$2" "$1" | sort -n | awk '{v[NR]=$1} END {print (NR % 2) ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }

for i in $(seq "$rounds"); do
    for w in $workloads; do
        for l in $links; do
            for f in $forms; do
                need "$f" "$(image_of "$w")" || continue
                measure "$f" "$w" "$l"
                echo "round $i: $w, $l, $f: $(tail -1 "$work/$w.$l.$f")" >&2
            done
        done
    done
done
echo "| workload | link | form | s | MB | requests | of podman's time |"
echo "|---|---|---|---|---|---|---|"
for w in $workloads; do
    for l in $links; do
        for f in $forms; do
            [ -e "$work/$w.$l.$f" ] || continue
            s=$(median "$work/$w.$l.$f" 1)
            ratio=-
            [ ! -e "$work/$w.$l.podman" ] || ratio=$(echo "scale=2; $s / $(median "$work/$w.$l.podman" 1)" | bc)
            printf '| %s | %s | %s | %.2f | %.1f | %s | %s |\n' "$w" "$l" "$f" "$s" \
                "$(echo "$(median "$work/$w.$l.$f" 2) / 1000000" | bc -l)" "$(median "$work/$w.$l.$f" 3)" "$ratio"
        done
    done
done
