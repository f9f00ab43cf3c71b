#!/bin/sh
# namespaces.sh outside|inside|gone ROOT CPUINFO GROUP: PID 1 of a board's namespaces. Mounts what a board has and becomes
# its systemd.
#
# "outside" runs before there is a cgroup namespace: it moves into a group of its own, so that this board's systemd sees
# its own units alone, whatever else runs on the machine. "gone", in a mount namespace, removes that group. Everything that
# is mounted here goes when the last process does.
set -eu
stage=$1 root=$2 cpuinfo=$3 group=$4

remove_group() { # of a board that has ended: all its groups are empty
    [ ! -d "$root/sys/$group" ] || find "$root/sys/$group" -depth -type d -exec rmdir {} +
}

if [ "$stage" != inside ]; then
    mount --bind "$root" "$root"
    mount -t cgroup2 cgroup2 "$root/sys"
    remove_group
    [ "$stage" = outside ] || exit 0
    mkdir "$root/sys/$group"
    echo 0 >"$root/sys/$group/cgroup.procs"
    umount "$root/sys"
    exec unshare --cgroup -- "$0" inside "$root" "$cpuinfo" "$group"
fi

hostname "$(cat "$root/etc/hostname")"
mount -t proc proc "$root/proc"
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
cat /proc/sys/kernel/random/uuid >"$root/run/boot_id" # this machine's own stays the same when a board is switched on again
mount --bind "$root/run/boot_id" "$root/proc/sys/kernel/random/boot_id"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
export container=lxc QEMU_CPU=cortex-a72
exec chroot "$root" /lib/systemd/systemd --log-target=journal
