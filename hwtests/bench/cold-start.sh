#!/usr/bin/env bash
# What a cold start costs: from the spawn of the VMM until the guest's first program
# has asked for the reset, in milliseconds of the testbed's instruction clock (one is
# a million executed instructions of the virtual host). `make bench` runs it there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
rounds=${ROUNDS:-5}
# Reads of the host's files would be counted too: everything is copied first.
work=$(mktemp -d -p /run)
trap 'rm -rf "$work"' EXIT
cp "$root"/target/lean/{longship-vmm,examples/boot} "$root/target/guest/vmlinux" "$work"
mkdir -p "$work/root/bin" "$work/root/dev"
cp /bin/busybox "$work/root/bin"
printf '#!/bin/busybox sh\nexec /bin/busybox reboot -f\n' >"$work/root/init"
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio --quiet -o -H newc) >"$work/initramfs"

boot() {
    "$work/boot" --vmm "$work/longship-vmm" --kernel "$work/vmlinux" --initramfs "$work/initramfs" \
        --vcpus 1 --memory 128 \
        --command-line "quiet reboot=k panic=-1 pci=conf1 8250.nr_uarts=0 tsc=reliable random.trust_cpu=on" 2>&1 >/dev/null
}
boot >"$work/warm-up"
for round in $(seq "$rounds"); do
    boot >"$work/round"
    awk '/µs$/{printf "%s %.1f, ", $1, $2 / 1000} / after /{sub(/.* after /, ""); print "in all " $0}' "$work/round"
    sed -n 's/.* after \([0-9.]*\)ms$/\1/p' "$work/round" >>"$work/totals"
done
sort -n "$work/totals" | awk '{v[NR] = $1} END {
    printf "cold start, 1 vCPU, 128 MiB: median %.1f ims (%.1f to %.1f, %d rounds)\n", v[int((NR + 1) / 2)], v[1], v[NR], NR }'
