#!/usr/bin/env bash
# Makes the virtual host's kernel, modules and initramfs in the directory $1,
# from the distribution's own packages; nothing is installed.
#
#   $1/vmlinux     the kernel, unpacked: decompressing it in emulation costs seconds
#   $1/initramfs   busybox, the modules needed at once, the init script beside this one
#   $1/modules     the package's whole module tree (lib/modules/VERSION)
#   $1/version     the package and its version
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1

say() { echo "testbed: $*" >&2; }
die() { say "$*"; exit 1; }

for tool in apt-get apt-cache dpkg cpio depmod xz zstd od; do
    command -v "$tool" >/dev/null || die "the command $tool is missing (make setup installs what is needed)"
done
busybox=$(command -v busybox) || die "busybox is missing: install the package busybox-static"
if ldd "$busybox" >/dev/null 2>&1; then die "$busybox is not static: install the package busybox-static"; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/longship-testbed.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The newest signed 6.12 kernel; where there is none, the distribution's own.
# The "cloud" flavour would be smaller, but has no 9p.
kernel_package() {
    local package
    package=$(apt-cache "$@" pkgnames linux-image-6.12 | grep -E '^linux-image-6\.12\.[0-9]+\+?[a-z0-9]*-amd64$' | sort -V | tail -1)
    [ -n "$package" ] || package=$(apt-cache "$@" depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: //p' | head -1)
    [ -n "$package" ] && echo "$package"
}

# The machine's package lists may be empty or too old for the archive: then the
# lists are fetched into a place of our own, which needs no root either.
options=()
fetch() {
    package=$(kernel_package "${options[@]}") || return 1
    say "fetching $package"
    (cd "$work" && apt-get "${options[@]}" -q -o APT::Sandbox::User=root download "$package" >"$work/apt.log" 2>&1)
}
if ! fetch; then
    say "fetching package lists"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    options=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache")
    apt-get "${options[@]}" -q -o APT::Sandbox::User=root update >"$work/apt.log" 2>&1 || true
    fetch || { cat "$work/apt.log" >&2; die "no kernel package could be fetched"; }
fi

mkdir "$work/package"
dpkg -x "$work"/linux-image-*.deb "$work/package"
# Debian 13 has its modules below /usr/lib.
[ -d "$work/package/lib/modules" ] || ln -s usr/lib "$work/package/lib"
release=$(basename "$work"/package/lib/modules/*)
mkdir -p "$out/modules/lib/modules"
cp -a "$work/package/lib/modules/$release" "$out/modules/lib/modules/"
depmod -b "$out/modules" "$release"

# The kernel proper inside the bzImage (Documentation/arch/x86/boot.rst: setup_sects,
# payload_offset, payload_length; the payload's last four bytes are its size).
image=$work/package/boot/vmlinuz-$release
field() { od -An -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
offset=$((($(field 497 1) + 1) * 512 + $(field 584 4)))
tail -c +$((offset + 1)) "$image" | head -c $(($(field 588 4) - 4)) >"$work/payload" || true
case $(od -An -tx1 -N4 "$work/payload" | tr -d ' ') in
    28b52ffd) zstd -dcq <"$work/payload" >"$out/vmlinux" ;;
    fd377a58) xz -dc <"$work/payload" >"$out/vmlinux" ;;
    *) die "$package holds a kernel in an unknown compression" ;;
esac

# Modules loaded at every start, in the order of their dependencies, decompressed.
tree=$work/initramfs
mkdir -p "$tree"/{bin,dev,proc,sys,host,root,modules}
cp "$busybox" "$tree/bin/busybox"
install -m 755 "$here/init.sh" "$tree/init"
load() { # file of the order, modules…
    local order=$1 module file
    shift
    for module in "$@"; do
        modprobe -d "$out/modules" -S "$release" --show-depends "$module" 2>/dev/null | sed -n 's/^insmod //p'
    done | awk '{print $1}' | while read -r file; do
        name=$(basename "$file"); name=${name%%.ko*}.ko
        [ ! -e "$tree/modules/$name" ] || continue
        case $file in
            *.xz) xz -dc "$file" ;;
            *.zst) zstd -dcq "$file" ;;
            *) cat "$file" ;;
        esac >"$tree/modules/$name"
        echo "$name" >>"$tree/modules/$order"
    done
}
load early virtio_pci virtio_console qemu_fw_cfg 9pnet_virtio 9p overlay
load late kvm_amd tun bridge veth vhost_net vhost_vsock loop
grep -qx kvm-amd.ko "$tree/modules/late" || die "$package has no kvm-amd module"

(cd "$tree" && find . -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --owner=0:0 --quiet) >"$out/initramfs"
echo "$package $release" >"$out/version"
