#!/usr/bin/env bash
# Builds what a pod's guest starts from: the kernel, and an initramfs that holds
# longship-init and nothing else. Both end up in the guest folder of the cargo
# target directory, which is printed.
#
# The archive depends on the program only (fixed times, owners, inode numbers and
# order), and is written here because it has device nodes, which only root could
# put on a disk.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
triple=x86_64-unknown-linux-gnu
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac

kernel=$("$root/guest/kernel/build.sh")

# Static and at a fixed place: half of what a relocated program would touch in
# each guest stays untouched.
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
    cargo build --quiet --manifest-path "$root/Cargo.toml" --target-dir "$target" \
    --profile lean --target "$triple" -p longship-init
init=$target/$triple/lean/longship-init

inode=0
# One entry of the "newc" format: 110 bytes of header, the name and the content,
# each padded to four bytes.
entry() { # name mode(octal) links content|/dev/null [major minor]
    local name=$1 mode=$((8#$2)) links=$3 file=$4 major=${5:-0} minor=${6:-0}
    local size
    size=$(stat -Lc %s "$file")
    [ "$file" != /dev/null ] || size=0
    inode=$((inode + 1))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        "$inode" "$mode" 0 0 "$links" 0 "$size" 0 0 "$major" "$minor" $((${#name} + 1)) 0
    printf '%s\0' "$name"
    zeros $(((4 - (110 + ${#name} + 1) % 4) % 4))
    cat "$file"
    zeros $(((4 - size % 4) % 4))
}
zeros() { head -c "$1" /dev/zero; }

out=$target/guest
mkdir -p "$out"
if [ ! -f "$out/initramfs.cpio" ] || [ "$init" -nt "$out/initramfs.cpio" ] ||
    [ "${BASH_SOURCE[0]}" -nt "$out/initramfs.cpio" ]; then
    {
        entry dev 040755 2 /dev/null
        # For the kernel, and for Rust's start, before init mounts the real ones.
        entry dev/console 020600 1 /dev/null 5 1
        entry dev/null 020666 1 /dev/null 1 3
        entry init 0100755 1 "$init"
        entry proc 040555 2 /dev/null
        entry run 040755 2 /dev/null
        entry sys 040555 2 /dev/null
        entry 'TRAILER!!!' 0 1 /dev/null
    } >"$out/initramfs.cpio.new"
    mv "$out/initramfs.cpio.new" "$out/initramfs.cpio"
fi
if [ -L "$out/vmlinux" ] || ! cmp -s "$kernel" "$out/vmlinux"; then
    cp --remove-destination "$kernel" "$out/vmlinux"
fi
echo "$out"
