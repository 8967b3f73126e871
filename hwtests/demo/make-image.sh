#!/usr/bin/env bash
# Makes the demo's OCI image (a layout on disk) with umoci: busybox and its links.
#   make-image.sh DIR     the layout goes to DIR, tag `latest`
set -euo pipefail

layout=${1:?usage: make-image.sh DIR}
[ -f "$layout/index.json" ] && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umoci --log error init --layout "$work/layout"
umoci --log error new --image "$work/layout:latest"
umoci --log error unpack --image "$work/layout:latest" "$work/bundle"

root=$work/bundle/rootfs
mkdir -p "$root"/{bin,etc,tmp,root,srv/www}
chmod 1777 "$root/tmp"
cp /bin/busybox "$root/bin/busybox"
for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh
web:x:1000:1000:web:/srv/www:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:
web:x:1000:' >"$root/etc/group"
echo 'A page from a pod of its own kernel.' >"$root/srv/www/index.html"

umoci --log error repack --image "$work/layout:latest" "$work/bundle"
umoci --log error config --image "$work/layout:latest" --os linux --architecture amd64 \
    --config.env PATH=/bin --config.cmd /bin/sh --config.workingdir /root
mkdir -p "$(dirname "$layout")"
rm -rf "$layout"
mv "$work/layout" "$layout"
