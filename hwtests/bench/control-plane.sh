#!/usr/bin/env bash
# Measures the control plane: the real process on loopback, with simulated cards and
# clients beside it. Needs no KVM and no testbed (`make bench-control`).
#
#   control-plane.sh DIR     the reports go into DIR
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
release=$root/target/release
out=${1:?usage: control-plane.sh DIR}
mkdir -p "$out"

failed=0
run() { # label, arguments
    local label=$1
    shift
    if ! "$release/longship-sim" bench "$@" --label "$label" --json "$out/$label.json"; then
        echo "bench: $label failed: $*" >&2
        rm -f "$out/$label.json"
        failed=1
    fi
}

run control-pods pods
run control-pods-batch pods --batch 100
run control-pods-500 pods --pods 500 --rounds 7
run control-stores stores
run control-watch watch
run control-cards cards
run control-local local
run control-failover failover
exit "$failed"
