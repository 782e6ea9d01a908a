#!/usr/bin/env bash
# Makes the base images of the tests as archives for `docker import`, out of
# Debian's packages and this machine's Go: no registry is asked.
#
#   scripts/base-images.sh slim DIR    DIR/debian_bookworm-slim.tar
#   scripts/base-images.sh go DIR      DIR/golang_1.26-bookworm.tar: with compiler, Go, and
#                                      the modules and compiled packages of this repository
#
# Certificates that this machine trusts beside Debian's (a company's own
# authority, say) are in both, so that builds can download here. No image that
# is released descends from these.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what=$1 dir=$(realpath -m "$2")
tmp=$(mktemp -d)
as=()
((EUID == 0)) || as=(sudo)
trap '"${as[@]}" rm -rf "$tmp"' EXIT
mkdir -p "$dir"

# What Debian's own slim images leave out, and what only apt needs.
without=(--exclude='./dev/*' --exclude='./var/cache/apt/*.bin' --exclude='./var/cache/apt/archives/*' --exclude='./var/lib/apt/lists/*'
	--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' --exclude='./var/log/*.log' --exclude='./var/log/apt/*'
	--exclude='./usr/bin/*lto-dump*' --exclude='./usr/lib/gcc/*/*/lto1')

# What a build of a module does not read.
untested=(--exclude='*_test.go' --exclude=testdata --exclude=fuzz --exclude=corpus)

bootstrap() { # bootstrap INCLUDE TAR
	"${as[@]}" debootstrap --variant=minbase ${1:+--include="$1"} bookworm "$tmp/root" http://deb.debian.org/debian >"$tmp/log" 2>&1 ||
		{ tail -n 20 "$tmp/log" >&2; exit 1; }
	trusted
	printf 'deb http://deb.debian.org/debian %s main\n' bookworm bookworm-updates |
		"${as[@]}" tee "$tmp/root/etc/apt/sources.list" >/dev/null
	printf 'deb http://deb.debian.org/debian-security bookworm-security main\n' |
		"${as[@]}" tee -a "$tmp/root/etc/apt/sources.list" >/dev/null
	# As in Debian's own images: packages are installed without a flush to disk each.
	echo force-unsafe-io | "${as[@]}" tee "$tmp/root/etc/dpkg/dpkg.cfg.d/docker-apt-speedup" >/dev/null
	"${as[@]}" tar -C "$tmp/root" "${without[@]}" -c . >"$2.part"
}

# Copies certificates into the tree's own list: those of this machine that its
# ca-certificates package does not bring.
trusted() {
	local bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} own=$tmp/root/usr/local/share/ca-certificates n=0 cert
	[[ -s $bundle ]] || return 0
	"${as[@]}" mkdir -p "$own"
	cat /usr/share/ca-certificates/mozilla/*.crt 2>/dev/null | tr -d '\n' >"$tmp/debian" || true
	awk -v dir="$tmp" '/BEGIN CERT/ { n++ } n { print > (dir "/cert-" n ".crt") }' "$bundle"
	for cert in "$tmp"/cert-*.crt; do
		[[ -e $cert ]] || continue
		if ! grep -qF -- "$(tr -d '\n' <"$cert")" "$tmp/debian"; then
			n=$((n + 1))
			"${as[@]}" cp "$cert" "$own/machine-$n.crt"
		fi
	done
	if [[ -x $tmp/root/usr/sbin/update-ca-certificates ]]; then
		"${as[@]}" chroot "$tmp/root" update-ca-certificates >/dev/null 2>&1
	fi
}

# Copies out of Go's build cache what `make build` finds there, so that the
# build in the image compiles nothing a second time. An entry NAME-a says
# which output NAME-d an action had; the outputs are what go list names.
build_cache() { # build_cache TO
	local from to=$1
	from=$(go env GOCACHE)
	{
		make --no-print-directory exports
	} | sed '/^$/d; s,.*/,,; s,-d$,,' | sort -u >"$tmp/outputs"
	find "$from" -name '*-a' -exec awk 'NR == FNR { want[$1]; next } FNR == 1 && ($3 in want) { print FILENAME }' "$tmp/outputs" {} + |
		sed "s,^$from/,," >"$tmp/entries"
	sed 's,^\(..\).*,\1/&-d,' "$tmp/outputs" >>"$tmp/entries"
	mkdir -p "$to"
	tar -C "$from" --ignore-failed-read -cf - -T "$tmp/entries" | tar -C "$to" -xf -
}

# Copies the modules that the programs link, without the archives they came in.
modules() { # modules TO
	local from to=$1
	from=$(go env GOMODCACHE)
	go list -deps -tags duckdb_arrow -f '{{with .Module}}{{if not .Main}}{{.Dir}}{{end}}{{end}}' ./cmd/... | sort -u | sed "s,^$from/,," >"$tmp/modules"
	mkdir -p "$to"
	tar -C "$from" "${untested[@]}" -cf - -T "$tmp/modules" | tar -C "$to" -xf -
	# Of every module in the graph, its go.mod; of those that are linked, the sum that stands for the archive.
	go list -m -f '{{if not .Main}}{{.GoMod}}{{end}}' all | sed "s,^$from/,,; s,\.mod$,," | sort -u |
		while read -r path; do (cd "$from" && ls "$path".{mod,info,ziphash} 2>/dev/null || true); done >"$tmp/downloads"
	tar -C "$from" -cf - -T "$tmp/downloads" | tar -C "$to" -xf -
}

case $what in
slim)
	out=$dir/debian_bookworm-slim.tar
	bootstrap '' "$out"
	;;
go)
	out=$dir/golang_1.26-bookworm.tar
	# Without Go, for the next time that only go.sum has changed.
	system=$dir/build-$(sha256sum <scripts/base-images.sh | cut -c1-12).tar
	if [[ ! -s $system ]]; then
		rm -f "$dir"/build*.tar
		bootstrap g++,make,ca-certificates "$system"
		mv "$system.part" "$system"
	fi
	mkdir -p "$tmp/add/usr/local/go" "$tmp/add/go/pkg/mod" "$tmp/add/root/.cache/go-build"
	goroot=$(go env GOROOT)
	tar -C "$goroot" --exclude=./test --exclude=./api --exclude=./doc --exclude=./src/cmd --exclude=./pkg/tool/*/cover "${untested[@]}" -cf - . | tar -C "$tmp/add/usr/local/go" -xf -
	modules "$tmp/add/go/pkg/mod"
	build_cache "$tmp/add/root/.cache/go-build"
	cp "$system" "$out.part"
	tar -C "$tmp/add" --owner=0 --group=0 -rf "$out.part" ./usr/local/go ./go ./root/.cache
	;;
*)
	echo "usage: scripts/base-images.sh slim|go DIR" >&2
	exit 2
	;;
esac
mv "$out.part" "$out"
