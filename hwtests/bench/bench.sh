#!/usr/bin/env bash
# Runs all benchmarks where there is a KVM, each kind with the clock that suits it,
# and puts their reports together (`make bench`).
#
#   bench.sh                      all, into target/bench; chooses the place
#   bench.sh here costs|rates     the benchmarks of that kind, on this machine
#
# costs: what one start costs and holds. In the testbed its one CPU's instructions are
# counted, so that times repeat whatever else the caller's machine does.
# rates: many at once or at the same time, by the wall clock, on several CPUs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=$root/target/bench
release=$root/target/release

if [ "${1-}" != here ]; then
    mkdir -p "$out"
    rm -f "$out"/*.json "$out/report.html"
    failed=0
    self=$root/hwtests/bench/bench.sh
    if "$release/longship" doctor --kvm-only >/dev/null 2>&1; then
        "$root/hwtests/setup/on-kvm.sh" -- "$self" here costs || failed=$?
    else
        LONGSHIP_CLOCK=icount "$root/hwtests/setup/on-kvm.sh" --icount --memory 4096 \
            --timeout 1500 --share "$out" -- "$self" here costs || failed=$?
    fi
    # The goal of density is one of a host of 8 GiB.
    "$root/hwtests/setup/on-kvm.sh" --memory 8192 --timeout 1500 --share "$out" \
        -- "$self" here rates || failed=$?
    "$root/hwtests/bench/control-plane.sh" "$out" || failed=$?
    "$release/longship-bench" report "$out"/*.json --html "$out/report.html"
    exit "$failed"
fi

# Reads of the caller's files would be measured too: all is copied first.
work=$(mktemp -d -p /run)
trap 'rm -rf "$work"' EXIT
cp "$release"/longship-{bench,agent,vmm,control,card} "$work"
mkdir "$work/guest"
cp "$root"/target/guest/{vmlinux,initramfs.cpio} "$work/guest"
cp -r "$root/target/demo/image" "$work/image"
image=oci:$work/image:latest

failed=0
run() { # label, arguments
    local label=$1
    shift
    if ! "$work/longship-bench" "$@" --label "$label" --json "$work/$label.json"; then
        echo "bench: $label failed: $*" >&2
        failed=1
    elif [ -s "$work/$label.json" ]; then
        cp "$work/$label.json" "$out/"
    fi
}

case ${2-} in
costs)
    run compare compare --rounds 5
    run start start --rounds 7
    run overhead overhead --pods --image "$image"
    run clones density --count 32
    run pod-start burst --pods --image "$image" --count 5 --concurrency 1 --rounds 1
    run pods-growth density --pods --image "$image" --count 24 --points 3
    ;;
rates)
    run clones-burst burst --count 64 --concurrency 8 --stop
    run throughput throughput --image "$image"
    run pods-burst burst --pods --image "$image" --count 100 --rounds 1
    run pods density --pods --image "$image" --count 200 --points 5
    ;;
*)
    echo "usage: $0 [here costs|rates]" >&2
    exit 2
    ;;
esac
exit "$failed"
