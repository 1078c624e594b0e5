#!/bin/bash
# pull.sh LAYOUT [ROUNDS]: podman pull against layerfs mount + reading every file, from nothing, interleaved.
#
# Both fetch the image of an OCI layout from a docker-registry on loopback. One
# line a round and the medians, in seconds; the ratio is what can be compared
# between machines. Needs root, docker-registry, skopeo, podman.
set -euo pipefail
layout=${1:?usage: pull.sh LAYOUT [ROUNDS]}
rounds=${2:-5}
layerfs=${LAYERFS:-bin/layerfs}
port=${PORT:-5599}
work=$(mktemp -d)

printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "%s"}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
    "$work/registry" "$port" >"$work/config.yml"
docker-registry serve "$work/config.yml" >/dev/null 2>&1 &
registry=$!
cleanup() {
    "$layerfs" --root "$work/layerfs" umount -l -a >/dev/null 2>&1 || true
    kill "$registry" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
until curl -sf "http://127.0.0.1:$port/v2/" >/dev/null; do sleep 0.1; done
skopeo copy --quiet --preserve-digests --dest-tls-verify=false "oci:$layout:latest" "docker://127.0.0.1:$port/image:latest"

image=127.0.0.1:$port/image:latest
seconds() { local start; start=$(date +%s.%N); "$@" >/dev/null; echo "$(date +%s.%N) - $start" | bc; }
pull() { podman --root "$work/podman" --runroot "$work/run" pull --quiet --tls-verify=false "$image"; }
mount_and_read() {
    "$layerfs" --root "$work/layerfs" -q mount "$image" "$work/mnt"
    date +%s.%N >"$work/ready"
    find "$work/mnt" -xdev -type f -print0 | xargs -0 cat >/dev/null
}
median() { sort -n | awk '{v[NR]=$1} END {print (NR % 2) ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }

mkdir -p "$work/mnt"
: >"$work/a"; : >"$work/b"; : >"$work/m"
for i in $(seq "$rounds"); do
    podman --root "$work/podman" --runroot "$work/run" rmi --all --force >/dev/null 2>&1 || true
    rm -rf "$work/podman" "$work/run" "$work/layerfs"
    sync
    a=$(seconds pull)
    start=$(date +%s.%N)
    b=$(seconds mount_and_read)
    m=$(echo "$(cat "$work/ready") - $start" | bc)
    "$layerfs" --root "$work/layerfs" -q umount "$work/mnt"
    echo "$a" >>"$work/a"; echo "$b" >>"$work/b"; echo "$m" >>"$work/m"
    echo "round $i: podman pull $a, layerfs mount $m, mount + read all $b"
done
a=$(median <"$work/a"); b=$(median <"$work/b"); m=$(median <"$work/m")
echo "median: podman pull $a, layerfs mount $m, mount + read all $b; ratio $(echo "scale=2; $b / $a" | bc)"
