#!/usr/bin/env bash
# Installs, with apt, what building and testing Longship needs and this machine lacks.
# Does nothing, at once, where all is there.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin

packages=(
    ca-certificates gcc libc6-dev make                           # Rust crates
    linux-source-6.12 bc bison cpio flex libelf-dev patch xz-utils # the guest kernel
    busybox-static kmod zstd                                     # the testbed, with QEMU
    e2fsprogs erofs-utils iproute2                               # disks, networks
    docker-registry skopeo umoci                                 # images for tests
    etcd-server                                                  # the store of several replicas
)

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

wanted_rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
rust=$(cargo --version 2>/dev/null | awk '{print $2}') || true
if [ "$(printf '%s\n' "$wanted_rust" "${rust:-0}" | sort -V | head -1)" != "$wanted_rust" ]; then
    die "Rust $wanted_rust or newer is needed (here: ${rust:-none}): curl -sSf https://sh.rustup.rs | sh -s -- -y"
fi

command -v apt-get >/dev/null || die "apt-get is missing: only Debian and its kin are supported"

installed() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }
version() { dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null; }
# QEMU older than 8 emulates AMD-V with one thread only: slower.
recent() { dpkg --compare-versions "$1" ge 1:8; }

missing=()
for package in "${packages[@]}"; do
    installed "$package" || missing+=("$package")
done

# Once it is known that there is no newer QEMU for this machine, it is not looked for again.
tried=${LONGSHIP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/longship}/setup/qemu-$(version || echo none)
qemu=present
if ! installed qemu-system-x86; then qemu=missing; elif ! recent "$(version)" && [ ! -e "$tried" ]; then qemu=old; fi

if [ ${#missing[@]} = 0 ] && [ $qemu = present ]; then exit 0; fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "run this as root, or install sudo; missing: ${missing[*]} qemu-system-x86 ($qemu)"
    as_root=(sudo)
fi

parts=$(mktemp -d "${TMPDIR:-/tmp}/longship-sources.XXXXXX")
chmod 755 "$parts"
policy=/usr/sbin/policy-rc.d
own_policy=
cleanup() {
    rm -rf "$parts"
    [ -z "$own_policy" ] || "${as_root[@]}" rm -f "$policy"
}
trap cleanup EXIT

# The release's backports, from this machine's own mirror: its sources with another
# suite, in a directory for this run only.
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
shopt -s nullglob
for file in /etc/apt/sources.list.d/*.{sources,list}; do cp "$file" "$parts/"; done
for file in /etc/apt/sources.list.d/*.sources; do
    awk -v RS= -v suite="$codename" '
        # One stanza a record (deb822, sources.list(5)).
        /(^|\n)Types:[^\n]*deb( |\n|$)/ && !/(^|\n)Enabled: *no/ && $0 ~ "(^|\n)Suites:([^\n]* )?" suite "( |\n|$)" {
            sub(/(^|\n)Suites:[^\n]*/, "\nSuites: " suite "-backports")
            sub(/\nComponents:[^\n]*/, "\nComponents: main")
            sub(/^\n/, "")
            print $0 "\n"
        }' "$file"
done >"$parts/longship-backports.sources"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$file" ] || continue
    sed -nE "s/^(deb +(\[[^]]*\] +)?[^ ]+ +)$codename( +.*)?$/\1$codename-backports main/p" "$file"
done | sort -u >"$parts/longship-backports.list"
find "$parts" -name 'longship-*' -empty -delete

apt() {
    local command=$1
    shift
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "$command" -q -o "Dir::Etc::SourceParts=$parts" \
        -o DPkg::Lock::Timeout=600 -o APT::Get::Assume-Yes=true -o Dpkg::Use-Pty=0 "$@" </dev/null
}
install() { apt apt-get install --no-install-recommends "$@" >&2; }
candidate() { apt apt-cache policy "$@" qemu-system-x86 2>/dev/null | sed -n 's/^ *Candidate: //p'; }

say "fetching package lists"
apt apt-get update >&2 || say "not all package lists could be fetched; going on with what there is"

# Nothing that is installed here shall start a service.
if [ ! -e "$policy" ]; then
    own_policy=1
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

# Backports count only where nothing else will do: they would replace libraries that
# the release's own development packages need.
backports=(-o "APT::Default-Release=$codename-backports")

if [ ${#missing[@]} != 0 ]; then
    say "installing ${missing[*]}"
    install "${missing[@]}" || install "${backports[@]}" "${missing[@]}" ||
        die "apt could not install what is missing: ${missing[*]}"
    # Tests start registries and etcds of their own; the packaged services are nobody's wish.
    for service in docker-registry etcd; do
        if [[ " ${missing[*]} " = *" $service"[\ -]* ]] && command -v systemctl >/dev/null; then
            "${as_root[@]}" systemctl -q disable "$service" || true
        fi
    done
fi

if [ $qemu != present ]; then
    newer=$(candidate "${backports[@]}")
    if ! recent "$(candidate)" && recent "$newer"; then
        say "installing qemu-system-x86 $newer from $codename-backports"
        install "${backports[@]}" qemu-system-x86 || say "that QEMU cannot be installed here"
    fi
    if ! installed qemu-system-x86 || { ! recent "$(version)" && recent "$(candidate)"; }; then
        say "installing qemu-system-x86 $(candidate)"
        install qemu-system-x86 || die "apt could not install qemu-system-x86"
    fi
    if ! recent "$(version)"; then
        say "there is no QEMU 8 or newer for this machine: the testbed will be slower"
        mkdir -p "${tried%/*}"
        touch "${tried%/*}/qemu-$(version)"
    fi
fi
