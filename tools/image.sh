#!/bin/sh
# Build the container image with docker or podman, and ask the miniature in it one question: make image
set -eu
cd "$(dirname "$0")/.."
for engine in docker podman; do
    if command -v "$engine" >/dev/null 2>&1; then
        "$engine" build --tag limelight .
        "$engine" run --rm --entrypoint limelight limelight generate demo-vision --image example:hat \
            --prompt "There is no hat. Is there a hat in the picture?" --compare relevance-contrastive
        exit 0
    fi
done
echo "no container engine: install docker or podman, or see the Dockerfile" >&2
exit 1
