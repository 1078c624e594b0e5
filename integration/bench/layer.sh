#!/bin/bash
# layer.sh [ROUNDS] [DIR]: one large layer mounted from nothing, against "tar xzf" of the same blob.
#
# The layer is the first 600 MB of the files of DIR (default /usr), as "gzip -6" and as
# "zstd -3" make it; a docker-registry on loopback has it. A round runs, one after the other:
#
#   tar      tar xzf of the gzip blob, from a file
#   gzip     a mount with nothing local: fetched, inflated, hashed twice, indexed, kept
#   zstd     the same of the zstd form
#   two      the same of an image of two such layers (different ones)
#
# No sync is in what is timed; before each run there is one. The table has the medians, and
# the rate in MB of tar for each second. Needs docker-registry, skopeo, zstd, curl, jq, bc; 5 GB in TMPDIR.
set -euo pipefail
rounds=${1:-3}
dir=${2:-/usr}
layerfs=$(realpath "${LAYERFS:-bin/layerfs}")
work=$(mktemp -d)
mkdir "$work/mnt"

cleanup() {
    fs umount -l -a >/dev/null 2>&1 || true
    kill "$registry_pid" 2>/dev/null || true
    rm -rf "$work"
}
registry_pid=
trap cleanup EXIT
trap 'exit 130' INT TERM

fs() { "$layerfs" --root "$work/root" -q "$@"; }

# first_files BYTES: names of files of DIR, from the start or, with a second argument, after so many bytes.
first_files() {
    find "$dir" -xdev -type f -printf '%s %p\n' | LC_ALL=C sort -k 2 |
        awk -v most="$1" -v skip="${2:-0}" '{ s += $1; sub(/^[0-9]+ /, "") } s > skip && s <= skip + most'
}

# blob FILE: puts a file into the layout, and prints its digest and size.
blob() {
    local sum
    sum=$(sha256sum <"$1" | cut -d' ' -f1)
    cp "$1" "$layout/blobs/sha256/$sum"
    jq -nc --arg d "sha256:$sum" --argjson s "$(stat -c %s "$1")" '{digest: $d, size: $s}'
}

# image NAME TYPE TAR LAYER [TAR LAYER]: makes an image of these layers and pushes it.
image() {
    layout=$work/layout
    rm -rf "$layout"
    mkdir -p "$layout/blobs/sha256"
    echo '{"imageLayoutVersion": "1.0.0"}' >"$layout/oci-layout"
    local name=$1 type=application/vnd.oci.image.layer.v1.tar+$2 layers='[]' ids='[]'
    shift 2
    while [ $# -gt 0 ]; do
        ids=$(jq -c --arg d "sha256:$(sha256sum <"$1" | cut -d' ' -f1)" '. + [$d]' <<<"$ids")
        layers=$(blob "$2" | jq -c --argjson l "$layers" --arg t "$type" '$l + [. + {mediaType: $t}]')
        shift 2
    done
    jq -nc --argjson ids "$ids" '{os: "linux", architecture: "amd64", rootfs: {type: "layers", diff_ids: $ids}}' >"$work/config"
    blob "$work/config" | jq -c --argjson l "$layers" '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: (. + {mediaType: "application/vnd.oci.image.config.v1+json"}), layers: $l}' >"$work/manifest"
    blob "$work/manifest" | jq -c '{schemaVersion: 2, manifests: [. + {mediaType: "application/vnd.oci.image.manifest.v1+json"}]}' >"$layout/index.json"
    skopeo copy --quiet --preserve-digests --dest-tls-verify=false "oci:$layout" "docker://$registry/$name:1"
}

# run NAME COMMAND…: times a command and notes it.
run() {
    local name=$1 start=$EPOCHREALTIME
    shift
    "$@" >/dev/null
    echo "$EPOCHREALTIME - $start" | bc >>"$work/$name.times"
    echo "layer.sh: $name $(tail -1 "$work/$name.times")" >&2
}

mounted() {
    rm -rf "$work/root"
    sync
    run "$1" fs mount --prefetch none "$registry/$1:1" "$work/mnt"
    fs umount "$work/mnt"
}

median() { sort -n "$work/$1.times" | awk '{v[NR]=$1} END {printf "%.3f", (NR % 2) ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }

registry=127.0.0.1:${PORT:-5598}
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "%s"}}\nhttp: {addr: "%s"}\n' \
    "$work/registry" "$registry" >"$work/config.yml"
docker-registry serve "$work/config.yml" >/dev/null 2>&1 &
registry_pid=$!
until curl -sf "http://$registry/v2/" >/dev/null; do
    kill -0 "$registry_pid" || { echo "layer.sh: no registry on $registry; PORT chooses another port" >&2; exit 1; }
    sleep 0.1
done

for i in 1 2; do
    tar -cf "$work/$i.tar" --no-recursion -T <(first_files 600000000 $(((i - 1) * 600000000))) 2>/dev/null
    gzip -6 <"$work/$i.tar" >"$work/$i.gz"
done
zstd -q -3 "$work/1.tar" -o "$work/1.zst"
image gzip gzip "$work/1.tar" "$work/1.gz"
image zstd zstd "$work/1.tar" "$work/1.zst"
image two gzip "$work/1.tar" "$work/1.gz" "$work/2.tar" "$work/2.gz"
one=$(stat -c %s "$work/1.tar")
both=$((one + $(stat -c %s "$work/2.tar")))
rm -rf "$layout" "$work"/*.tar "$work"/2.gz "$work"/*.zst

for _ in $(seq "$rounds"); do
    rm -rf "$work/tree"
    mkdir "$work/tree"
    sync
    run tar tar -C "$work/tree" -xzf "$work/1.gz"
    rm -rf "$work/tree"
    for form in gzip zstd two; do mounted "$form"; done
done
echo "| run | seconds | MB/s of tar | time against tar xzf |"
echo "|---|---:|---:|---:|"
for name in tar gzip zstd two; do
    bytes=$one
    [ "$name" != two ] || bytes=$both
    printf '| %s | %s | %.0f | %.2f |\n' "$name" "$(median $name)" "$(echo "$bytes / $(median $name) / 1000000" | bc -l)" \
        "$(echo "$(median $name) / $(median tar)" | bc -l)"
done
