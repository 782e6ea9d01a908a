#!/usr/bin/env bash
# Proves that the generated files are what `make gen` makes of the sources.
#
# The whole working tree is compared before and after, new files too, so the
# proof also holds with uncommitted work around it. In CI the tree must equal
# the commit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

index=$(mktemp)
trap 'rm -f "$index"' EXIT

snapshot() { # prints the id of a tree of all files that git does not ignore
	cp "$(git rev-parse --git-path index)" "$index"
	GIT_INDEX_FILE=$index git add --all
	GIT_INDEX_FILE=$index git write-tree
}

if [[ ${CI:-} == true ]]; then
	before=$(git rev-parse 'HEAD^{tree}')
else
	before=$(snapshot)
fi
make --no-print-directory gen
after=$(snapshot)

if ! git --no-pager diff --stat --exit-code "$before" "$after"; then
	{
		git --no-pager diff "$before" "$after" | head -n 80 || true # head may close the pipe
		echo
		echo 'fresh: generated files are stale. Next: make gen, then commit what changed.'
	} >&2
	exit 1
fi
echo 'fresh: generated files are up to date'
