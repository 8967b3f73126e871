#!/bin/busybox sh
# PID 1 of the virtual host: makes the caller's machine visible here and runs one
# command in it. It runs twice: as the kernel's /init in the initramfs, and then, with
# the argument "command", in the final root: the caller's root file system, read-only
# over 9p, below a tmpfs that takes every change.
#
# What src/machine.rs says comes through QEMU's fw_cfg; what goes back to it goes
# through virtio ports: "out", "err" and "status". This shell is busybox's, which
# prefers its own applets to the commands of the caller's machine.

# A panic ends QEMU, and src/machine.rs shows the console.
fail() { echo "testbed: $*" >/dev/kmsg; echo c >/proc/sysrq-trigger; }

said() { cat "/sys/firmware/qemu_fw_cfg/by_name/opt/longship/$1/raw" 2>/dev/null; }

share() { # tag, directory, options
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,access=any,$3" "$1" "$2"
}

port() { # name
    for p in /sys/class/virtio-ports/*; do
        if [ "$(cat "$p/name")" = "$1" ]; then echo "/dev/${p##*/}"; fi
    done
}

insert() { # list of modules
    while read -r module; do
        insmod "/modules/$module" || echo "testbed: $module cannot be loaded" >/dev/kmsg
    done <"/modules/$1"
}

build_root() {
    /bin/busybox mount -t proc proc /proc # through which busybox finds its applets
    mount -t devtmpfs dev /dev
    mount -t sysfs sys /sys
    insert early
    insert late & # on the other CPU, meanwhile
    late=$!

    share root /host ro,cache=loose,noxattr || fail "the caller's root cannot be mounted"
    mount -t tmpfs -o size=100%,mode=755 changes /root
    mkdir /root/upper /root/work
    mount -t overlay -o lowerdir=/host,upperdir=/root/upper,workdir=/root/work,xino=off,index=off,metacopy=off \
        root /root || fail "the overlay cannot be mounted"

    cd /root || fail "no root"
    mkdir -p proc sys dev run tmp
    mount -t devtmpfs dev dev
    mount -t proc proc proc
    mount -t sysfs sys sys
    mount -t tmpfs -o mode=755,nosuid,nodev run run
    mkdir -p dev/pts dev/shm run/lock run/testbed
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm
    for link in fd: stdin:/0 stdout:/1 stderr:/2; do ln -s "/proc/self/fd${link#*:}" "dev/${link%%:*}"; done
    mount -t cgroup2 cgroup sys/fs/cgroup
    for c in $(cat sys/fs/cgroup/cgroup.controllers); do echo "+$c" >sys/fs/cgroup/cgroup.subtree_control; done

    # The caller's machine has not this kernel's modules; the cache has.
    if share modules /host ro,cache=loose; then
        mkdir -p lib/modules
        mount --bind /host/lib/modules lib/modules
        umount /host
    fi
    wait $late
    ip link set lo up
    hostname testbed

    cp /bin/busybox /init run/testbed/
    umount /dev /sys
    /bin/busybox umount /proc
    exec /bin/busybox switch_root /root /run/testbed/busybox sh /run/testbed/init command
}

# Copies a pipe to a port, and then says that nothing more will come. (A port itself
# cannot be the command's standard output: it can be opened only once.)
forward() { # name
    mkfifo "$1"
    { cat; said end; } <"$1" >"$(port "$1")" &
}

run_command() {
    cd /run/testbed || fail "no /run/testbed"
    said shares | while read -r tag directory; do
        mkdir -p "$directory"
        share "$tag" "$directory" rw,cache=mmap || echo "testbed: $directory cannot be shared" >/dev/kmsg
    done
    # With counted instructions time leaps to the next timer whenever the CPU is idle,
    # even if it only waits for the caller's files. So it never is: something always
    # runs, at the lowest priority.
    if [ "$(said clock)" = exact ]; then
        /usr/bin/chrt -i 0 ./busybox sh -c 'while :; do :; done' &
    fi
    ulimit -l unlimited
    ulimit -n 1048576
    said command >command
    forward out; out=$!
    forward err; err=$!

    env -i setsid /bin/sh /run/testbed/command </dev/null >out 2>err &
    command=$!
    wait $command
    status=$?

    # What the command left running holds its output open. The forwarders are busybox.
    left=1
    while [ -n "$left" ]; do
        left=
        for process in /proc/[0-9]*; do
            program=$(readlink "$process/exe") || continue
            [ "$program" != /run/testbed/busybox ] || continue
            kill -9 "${process#/proc/}" && left=1
        done 2>/dev/null
    done
    wait "$out" "$err"
    sync
    echo "$status" >"$(port status)"
    sleep 60
    poweroff -f
}

case $1 in
    command) run_command ;;
    *) build_root ;;
esac
