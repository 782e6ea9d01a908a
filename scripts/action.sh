#!/usr/bin/env bash
# The one step of action.yml: gets release-bot and runs the verb of the inputs.
#
# An action used at a version tag (owner/repo@2026.04.3) runs that release's
# binary, checked against the release's SHA256SUMS; at any other ref, and where the
# release has no such file or it cannot be fetched, the binary is built from the
# action's own source, which is the release's as well.
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf 'release-bot action: %s\n' "$*" >&2; }

# sha256 FILE: its hexadecimal digest, on Linux and macOS.
sha256() { { sha256sum "$1" 2>/dev/null || shasum -a 256 "$1"; } | cut -d' ' -f1; }

download() { # download TARGET
	local ref=${ACTION_REF-} repo=${ACTION_REPOSITORY-} os arch name base sums want got
	[[ $ref =~ ^[0-9]{4}\.[0-9]{2}\.[0-9]+$ && -n $repo ]] || return 1
	os=$(uname -s | tr '[:upper:]' '[:lower:]')
	arch=$(uname -m)
	case $arch in
	x86_64) arch=amd64 ;;
	aarch64) arch=arm64 ;;
	esac
	name=release-bot_${os}_${arch}
	base=${GITHUB_SERVER_URL:-https://github.com}/$repo/releases/download/$ref
	sums=$(curl -fsSL --retry 3 "$base/SHA256SUMS") || {
		say "release $ref has no SHA256SUMS: building from source"
		return 1
	}
	want=$(awk -v name="$name" '$2 == name { print $1 }' <<<"$sums")
	if [[ -z $want ]]; then
		say "release $ref has no $name: building from source"
		return 1
	fi
	# download runs as a condition, in which a failure does not end the script.
	curl -fsSL --retry 3 -o "$1" "$base/$name" || {
		rm -f "$1"
		say "$name of release $ref cannot be fetched: building from source"
		return 1
	}
	got=$(sha256 "$1")
	if [[ $got != "$want" ]]; then
		rm -f "$1"
		echo "::error title=release-bot::expected $name with SHA-256 $want, found $got at $base. Do not use this release; report it." >&2
		exit 4
	fi
	chmod +x "$1"
}

bin=${RUNNER_TEMP:-${TMPDIR:-/tmp}}/release-bot-${ACTION_REF:-source}-$$
trap 'rm -f "$bin"' EXIT
if ! download "$bin"; then
	if ! command -v go >/dev/null; then
		echo "::error title=release-bot::expected Go on PATH to build release-bot, found none. Add a step: uses: actions/setup-go" >&2
		exit 1
	fi
	CGO_ENABLED=0 go -C "$source" build -trimpath -o "$bin" ./cmd/release-bot
fi
"$bin" action
