# A host: bash -c "$(<host.sh)" host DIR DISK FROM DOCKERD-FLAGS...
# in new process and mount namespaces. It runs while dockerd does and standard
# input is open; each line on that is the name of a signal for dockerd. The end
# of this script is the end of every process and mount below it.
set -euo pipefail
dir=$1 disk=$2 from=$3
shift 3
mount -t proc proc /proc
mkdir -p /run/containerd "$dir/run" "$dir/data"
# What a real host keeps in memory is gone after a boot.
mount -t tmpfs tmpfs /run/containerd
mount -t tmpfs tmpfs "$dir/run"
if ((disk)); then
	mount -o loop "$dir/disk.img" "$dir/data"
	if [[ -n $from && ! -e $dir/data/image ]]; then
		cp -a "$from/." "$dir/data/"
	fi
fi
exec 3<&0
dockerd "$@" 3<&- &
daemon=$!
while read -r signal; do kill -s "$signal" "$daemon"; done <&3 &
exec 3<&-
wait -n || true
