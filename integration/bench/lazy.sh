#!/bin/bash
# lazy.sh IMAGES [ROUNDS]: what a start costs, layerfs against podman, over two links.
#
# IMAGES is what `make images` built. Every image is in Debian's docker-registry on
# loopback, in each form; a proxy before it makes the link and counts requests and
# bytes. Each run begins with nothing local (a form "+index" with the indexes of the layers,
# "+profile" with them and the profile of an earlier start), and all runs of a round
# follow each other. The output is a Markdown table of medians; what is going on goes to stderr.
#
# FORMS, LINKS ("MBIT,RTT", 0 is no limit), WORKLOADS and READ (the image of which every
# file is read) choose; a form that this layerfs cannot make is skipped and named. Needs
# root, docker-registry, skopeo, podman, curl, jq.
set -euo pipefail
images=${1:?usage: lazy.sh IMAGES [ROUNDS]}
rounds=${2:-3}
layerfs=$(realpath "${LAYERFS:-bin/layerfs}")
read -ra forms <<<"${FORMS:-gzip estargz zstd:chunked soci gzip+index gzip+profile estargz+profile}"
read -ra links <<<"${LINKS:-0,0 100,20ms}"
read -ra workloads <<<"${WORKLOADS:-python gcc read}"
work=$(mktemp -d)
mnt=$work/mnt
mkdir "$mnt" "$work/tmp"

say() { echo "lazy.sh: $*" >&2; }
fs() { "$layerfs" --root "$work/layerfs" -q "$@"; }
pod() { TMPDIR=$work/tmp podman --root "$work/podman" --runroot "$work/run" "$@"; }

child=
cleanup() {
    trap '' INT TERM HUP
    [ -z "$child" ] || { kill -- "-$child" && wait "$child"; } 2>/dev/null || true
    clear_local || true
    kill "${services[@]}" 2>/dev/null || true
    rm -rf "$work"
}
services=()
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# clear_local leaves nothing local.
clear_local() {
    fs umount -l -a >/dev/null 2>&1 || true
    if [ -d "$work/podman" ]; then
        pod image umount --all >/dev/null 2>&1 || true
        pod rmi --all --force >/dev/null 2>&1 || true
        awk -v w="$work/" 'index($2, w) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
    fi
    rm -rf "$work/layerfs" "$work/podman" "$work/run"
}

# serve COMMAND…: a service that ends with this script, however that ends.
serve() {
    setpriv --pdeathsig TERM "$@" 2>>"$work/services.log" &
    services+=($!)
}

# answers URL: waits for a service.
answers() {
    for _ in $(seq 100); do
        curl -sf "$1" >/dev/null && return
        sleep 0.1
    done
    say "no answer from $1: $(tail -3 "$work/services.log")"
    exit 1
}

free_port() { comm -23 <(seq 20000 29999 | sort) <(ss -Htan | awk '{print $4}' | grep -o '[0-9]*$' | sort -u) | shuf -n 1; }

start_services() {
    registry=127.0.0.1:$(free_port)
    printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "%s"}}\nhttp: {addr: "%s"}\n' \
        "$work/registry" "$registry" >"$work/config.yml"
    serve docker-registry serve "$work/config.yml" >/dev/null
    answers "http://$registry/v2/"
    go build -o "$work/proxy" ./integration/bench/proxy
    serve "$work/proxy" "http://$registry" >"$work/addresses"
    until [ "$(wc -l <"$work/addresses")" = 2 ]; do sleep 0.1; done
    { read -r proxy; read -r control; } <"$work/addresses"
}

image_of() { case $1 in python) echo py ;; gcc) echo big ;; read) echo "${READ:-big}" ;; esac; }

# repo FORM IMAGE: where the registry has it.
repo() { local f=${1%+*}; echo "$2-${f//:/-}"; }

# provide FORM IMAGE: pushes it, or says why not.
provide() {
    local form=${1%+*} image=$2 to
    to=$(repo "$1" "$image"):latest
    [ ! -e "$work/pushed-$to" ] || return 0
    case $form in
    gzip) push "$images/$image" "$to" ;;
    estargz) push "$images/$image-estargz" "$to" ;;
    zstd:chunked)
        fs convert --compression zstd:chunked "oci:$images/$image:latest" "$registry/$to" >/dev/null 2>"$work/err" || no_form "$1" || return
        rm -rf "$work/layerfs" ;;
    soci)
        push "$images/$image" "$to"
        fs index --push "$registry/$to" >/dev/null 2>"$work/err" || no_form "$1" || return
        rm -rf "$work/layerfs" ;;
    *)
        echo "unknown form" >"$work/err"
        no_form "$1" || return ;;
    esac
    touch "$work/pushed-$to"
}

no_form() {
    say "skipped: $1: $(tail -1 "$work/err")"
    return 1
}

push() { skopeo copy --quiet --preserve-digests --dest-tls-verify=false "oci:$1:latest" "docker://$registry/$2"; }

link() { curl -sf -X PUT "http://$control/link?mbit=${1%,*}&rtt=${1#*,}"; }

# in_root ROOT WORKLOAD: a start that reads, in a chroot with a /tmp of its own.
in_root() {
    case $2 in
    python) unshare -m chroot "$1" python3 -c 'print("hi")' ;;
    gcc) unshare -m sh -ec 'mount -t tmpfs none "$1/tmp"; chroot "$1" sh -c "gcc /app/hello.c -o /tmp/hello && /tmp/hello"' sh "$1" ;;
    read) find "$1" -xdev -type f -print0 | xargs -0 cat >/dev/null && echo read ;;
    esac
}

# layerfs_start FORM WORKLOAD and podman_start do what is timed, and note when the tree was there.
layerfs_start() {
    local flags=()
    [ "$1" = soci ] && flags+=(--index soci)
    [[ $1 == *+profile ]] || flags+=(--prefetch none)
    fs mount "${flags[@]}" "$proxy/$(repo "$1" "$(image_of "$2")")" "$mnt"
    echo "$EPOCHREALTIME" >"$work/ready"
    in_root "$mnt" "$2"
}

podman_start() {
    local image
    image=$proxy/$(repo gzip "$(image_of "$2")")
    pod pull --quiet --tls-verify=false "$image" >/dev/null
    local root
    root=$(pod image mount "$image")
    echo "$EPOCHREALTIME" >"$work/ready"
    in_root "$root" "$2"
}

# warm FORM WORKLOAD: what an earlier start leaves when its content has gone.
warm() {
    [[ $1 == *+* ]] || return 0
    link 0,0
    layerfs_start "$1" "$2" >/dev/null
    fs umount "$mnt"
    fs cache gc >/dev/null
}

# measure WORKLOAD LINK FORM: one line of results. The work is in a process group of its
# own, so that it ends when this script is told to.
measure() {
    local start end what=layerfs_start
    [ "$3" != podman ] || what=podman_start
    clear_local
    warm "$3" "$1"
    sync
    link "$2"
    curl -sf -X DELETE "http://$control/counters"
    start=$EPOCHREALTIME
    set -m
    "$what" "$3" "$1" >"$work/out" 2>"$work/err" &
    child=$!
    set +m
    wait "$child" || { say "$1 on $3 failed: $(tail -2 "$work/err")"; exit 1; }
    child=
    end=$EPOCHREALTIME
    grep -qxE 'hi|hello|read' "$work/out" || { say "$1 on $3 printed $(head -c 200 "$work/out")"; exit 1; }
    curl -sf "http://$control/counters" | jq -r --arg w "$1" --arg l "$2" --arg f "$3" --arg r "$(cat "$work/ready")" --arg s "$start" --arg e "$end" \
        'def ms: . * 1000 | round / 1000;
        [$w, $l, $f, (($e|tonumber) - ($s|tonumber) | ms), (($r|tonumber) - ($s|tonumber) | ms), .received, .requests] | @tsv' | tee -a "$work/results" >&2
}

# table prints the medians of the results, in the order in which they first came.
table() {
    echo "$(nproc) × $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), Linux $(uname -r), $(podman --version), $("$layerfs" version | head -1); medians of $rounds"
    echo
    echo "| workload | link | form | seconds | of which mount or pull | MB | requests | time against podman |"
    echo "|---|---|---|---:|---:|---:|---:|---:|"
    awk -F'\t' '
        function median(key, col,   n, i, j, t, v) {
            n = count[key]
            for (i = 1; i <= n; i++) v[i] = value[key, col, i] + 0
            for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j-1] > v[j]; j--) { t = v[j]; v[j] = v[j-1]; v[j-1] = t }
            return n % 2 ? v[(n+1)/2] : (v[n/2] + v[n/2+1]) / 2
        }
        { key = $1 "\t" $2 "\t" $3
          if (!(key in count)) order[++keys] = key
          n = ++count[key]
          for (c = 4; c <= 7; c++) value[key, c, n] = $c }
        END { for (k = 1; k <= keys; k++) { key = order[k]; split(key, f, "\t")
            base = f[1] "\t" f[2] "\tpodman"
            ratio = base in count ? sprintf("%.2f", median(key, 4) / median(base, 4)) : ""
            name = f[2]; sub(/,/, " Mbit/s, ", name); if (f[2] == "0,0") name = "loopback"
            printf "| %s | %s | %s | %.2f | %.2f | %.2f | %d | %s |\n", f[1], name, f[3], median(key, 4), median(key, 5), median(key, 6) / 1e6, median(key, 7), ratio } }' "$work/results"
}

# able lists the forms in which all images could be pushed.
able() {
    local f w
    for f in "${forms[@]}"; do
        for w in "${workloads[@]}"; do
            provide "$f" "$(image_of "$w")" || continue 2
        done
        echo "$f"
    done
}

start_services
mapfile -t measured < <(able)
for w in "${workloads[@]}"; do
    provide gzip "$(image_of "$w")" # podman's
done
for round in $(seq "$rounds"); do
    for w in "${workloads[@]}"; do
        for l in "${links[@]}"; do
            say "round $round of $rounds: $w, link $l"
            for f in "${measured[@]}" podman; do
                measure "$w" "$l" "$f"
            done
        done
    done
done
table
