#!/usr/bin/env bash
# Builds the guest kernel from Debian's linux-source package with our own small
# configuration, and prints the path of the finished vmlinux.
#
# The result is kept by the hash of all its inputs (source package version,
# fragment, patches, this script, compiler), so nothing is built twice.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${LONGSHIP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/longship}/kernel
series=6.12
tarball=/usr/src/linux-source-$series.tar.xz

say() { echo "guest kernel: $*" >&2; }
failed() { tail -30 "$cache/build.log" >&2; say "the build failed"; exit 1; }

[ -f "$tarball" ] || { say "$tarball is missing: install the package linux-source-$series"; exit 1; }

version=$(dpkg-query -W -f '${Version}' "linux-source-$series")
shopt -s nullglob
hash=$({ echo "$version"; gcc -dumpfullversion; cat "$here/config.fragment" "$here/build.sh" "$here"/patches/*.patch; } | sha256sum | cut -c1-16)
out=$cache/$hash

if [ ! -f "$out/vmlinux" ]; then
    mkdir -p "$cache"
    # Two builds of the same inputs at once would do the same work twice.
    exec 9>"$cache/lock"
    flock 9
fi
if [ ! -f "$out/vmlinux" ]; then
    work=$(mktemp -d "${TMPDIR:-/tmp}/longship-kernel.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    say "building linux $version ($hash), log in $cache/build.log"
    started=$SECONDS
    {
        tar -C "$work" --strip-components=1 -xf "$tarball"
        cd "$work"
        for p in "$here"/patches/*.patch; do patch -p1 <"$p"; done
        make -s tinyconfig
        ./scripts/kconfig/merge_config.sh -m .config "$here/config.fragment"
        make -s olddefconfig
    } >"$cache/build.log" 2>&1 || failed

    # An option that the kernel's Kconfig refused would be missing silently.
    lost=$(grep -E '^CONFIG_[A-Z0-9_]+=y' "$here/config.fragment" | while read -r line; do
        grep -qx "$line" .config || echo "$line"
    done)
    [ -z "$lost" ] || { say "not accepted by Kconfig:"; echo "$lost" >&2; exit 1; }

    {
        make -j"$(nproc)" vmlinux
        strip -o vmlinux.stripped vmlinux
    } >>"$cache/build.log" 2>&1 || failed

    mkdir -p "$out.new"
    cp "$work/vmlinux.stripped" "$out.new/vmlinux"
    cp "$work/.config" "$out.new/config"
    cp "$work/System.map" "$out.new"
    echo "$version" >"$out.new/version"
    rm -rf "$out"
    mv "$out.new" "$out"
    say "built in $((SECONDS - started)) s"
fi
echo "$out/vmlinux"
