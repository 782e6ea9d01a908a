#!/usr/bin/env bash
# Builds the image, without and with Python, and holds the size of our layers
# over the base image to the bars. Called by `make image`, which gives all of:
#
#   IMAGE VERSION CHANNEL COMMIT EXTENSIONS   name and build arguments
#   BUILDFLAGS                                more flags for docker build
#   labels on standard input, one NAME=VALUE a line
#
# Prints NAME SIZE BAR (bytes, over the base); ends with 3 where one is over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

labels=()
while IFS= read -r line; do labels+=(--label "$line"); done
base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)}

# Extensions are a choice of who builds: the bars are for the image without.
declare -A bars=([slim]=130000000 [full]=330000000)
over=0
for target in slim full; do
	# shellcheck disable=SC2086 # BUILDFLAGS is a list of words
	docker build --target "$target" --tag "$IMAGE:$target" ${BUILDFLAGS-} "${labels[@]}" --build-arg BASE_IMAGE="$base" \
		--build-arg VERSION="${VERSION-}" --build-arg CHANNEL="${CHANNEL-}" --build-arg COMMIT="${COMMIT-}" \
		--build-arg EXTENSIONS="${EXTENSIONS-}" . >&2
	docker image inspect "$base" >/dev/null 2>&1 || docker pull --quiet "$base" >&2
	size=$(($(docker image inspect --format '{{.Size}}' "$IMAGE:$target") - $(docker image inspect --format '{{.Size}}' "$base")))
	echo "$IMAGE:$target $size ${bars[$target]}"
	if [[ -z ${EXTENSIONS-} ]] && ((size > bars[$target])); then
		echo "image: $IMAGE:$target is $size bytes over $base; the bar is ${bars[$target]}. Next: docker history $IMAGE:$target" >&2
		over=3
	fi
done
exit "$over"
