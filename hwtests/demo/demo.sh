#!/usr/bin/env bash
# The demo: two pods from a real registry, each in a microVM of its own. It runs where
# /dev/kvm is usable: on this machine, or inside the testbed (`make demo` chooses).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${LONGSHIP_BIN:-$here/../../target/release}
layout=${LONGSHIP_DEMO_IMAGE:-$here/../../target/demo/image}
export LONGSHIP_SERVER=http://127.0.0.1:7700
work=$(mktemp -d)
up= registry=

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
longship() { "$bin/longship" "$@"; }
# What of Longship's exists on this machine now.
residue() {
    pgrep -al '^longship' | grep -v "demo" || true
    ip -o link show | awk -F': ' '!/ lo:/{print "interface", $2}'
    find /sys/fs/cgroup/longship -mindepth 1 -type d 2>/dev/null || true
    find /proc/[0-9]*/ns/net -maxdepth 0 -printf '%l\n' 2>/dev/null | sort -u
    find "$work/run" -type s 2>/dev/null || true
}
finish() {
    [ -z "$up" ] || { kill "$up" 2>/dev/null && wait "$up" || true; }
    [ -z "$registry" ] || { kill "$registry" 2>/dev/null && wait "$registry" || true; }
    rm -rf "$work"
}
trap finish EXIT

started=$SECONDS
residue >"$work/before"

title "An image, made by umoci, pushed to a registry by skopeo"
"$here/make-image.sh" "$layout"
cat >"$work/registry.yml" <<YAML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: 127.0.0.1:5000}
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
image=127.0.0.1:5000/demo/busybox:1
for _ in $(seq 100); do
    (exec 3<>/dev/tcp/127.0.0.1/5000) 2>/dev/null && break
    sleep 0.1
done
skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$layout:latest" "docker://$image"
echo "$image"

title "Longship: control plane, card and agent"
"$bin/longship" up --state "$work/state" --runtime-dir "$work/run" >"$work/up.out" 2>"$work/up.log" &
up=$!
for _ in $(seq 300); do
    longship get hosts -o json 2>/dev/null | grep -q '"ready": true' && break
    kill -0 "$up" 2>/dev/null || { cat "$work/up.out" "$work/up.log"; exit 1; }
    sleep 0.1
done
longship get hosts

title "A pod that serves a page"
cat >"$work/web.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: web
    image: $image
    command: [sh, -c, "echo serving as \$(hostname) on kernel \$(uname -r); exec httpd -f -h /srv/www"]
    resources: {limits: {cpu: 250m, memory: 128Mi}}
YAML
longship create -f "$work/web.yaml"
longship wait pod web --for running --timeout 90s
longship get pods
address=$(longship get pod web -o json | sed -n 's/.*"address": "\(.*\)".*/\1/p' | head -n 1)

title "A second pod fetches it by the first one's address, and ends with code 7"
code=0
longship run --rm --restart Never --name client --image "$image" -- sh -c "
    for i in 1 2 3 4 5 6 7 8 9 10; do wget -q -O - http://$address/index.html && exit 7; sleep 1; done" || code=$?
echo "exit code $code"
[ "$code" = 7 ]

title "What the first pod printed, and a command in it"
longship logs web
longship exec web -- sh -c 'echo "I am $(hostname), pid 1 is: $(tr "\0" " " < /proc/1/cmdline)"; ip -o -4 addr show eth0'

title "Where the start of the pod went"
longship describe pod web

title "Taken down"
longship delete pod web --wait
held=$(longship get held --card "unix:$work/run/card.sock")
scratch=$(find "$work/state" -path '*scratch*' -name '*-scratch*' | wc -l)
kill "$up"
wait "$up" || true
up=
residue >"$work/after"
if [ -n "$held" ] || [ "$scratch" != 0 ] || ! diff "$work/before" "$work/after"; then
    echo "LEFT BEHIND: $held ($scratch scratch disks, and the difference above)"
    exit 1
fi
echo "Nothing is left: no process, TAP, namespace, cgroup, socket, disk or journal entry."
echo "The demo took $((SECONDS - started)) s."
