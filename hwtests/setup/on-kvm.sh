#!/usr/bin/env bash
# Runs a command where there is a KVM that can run guests: on this machine, as root,
# or else in the testbed. Says which.
#
#   on-kvm.sh [longship-testbed's options] -- COMMAND ARGUMENTS
set -euo pipefail

bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/release
options=()
while [ "${1-}" != -- ]; do
    [ $# -gt 0 ] || { echo "usage: $0 [options] -- COMMAND ARGUMENTS" >&2; exit 2; }
    options+=("$1")
    shift
done
shift

if "$bin/longship" doctor --kvm-only >&2; then
    echo "== on this machine's own KVM: $*" >&2
    if [ "$(id -u)" = 0 ]; then exec "$@"; fi
    exec sudo -E env "PATH=$PATH" "$@"
fi
echo "== in the testbed, a virtual host in software emulation: $*" >&2
status=0
"$bin/longship-testbed" run "${options[@]}" -- "$@" || status=$?
if [ "$status" = 125 ]; then
    # The virtual host itself was lost (QEMU's emulation does that once in a long
    # while), which says nothing of the command.
    echo "== the virtual host was lost: once more" >&2
    exec "$bin/longship-testbed" run "${options[@]}" -- "$@"
fi
exit "$status"
