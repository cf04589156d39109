#!/bin/sh
# Build the container image with docker or podman, and ask the miniature in it one question: make image
set -eu
cd "$(dirname "$0")/.."
found=
for engine in docker podman; do
    if command -v "$engine" >/dev/null 2>&1; then
        if ! "$engine" info >/dev/null 2>&1; then
            found="$found $engine"
            continue
        fi
        "$engine" build --tag limelight .
        "$engine" run --rm --entrypoint limelight limelight generate demo-vision --image example:hat \
            --prompt "There is no hat. Is there a hat in the picture?" --compare relevance-contrastive
        exit 0
    fi
done
if [ -n "$found" ]; then
    echo "cannot build the image:$found is installed but its engine does not run: start it (check with: ${found# } info)" >&2
else
    echo "cannot build the image: no container engine found: install docker or podman" >&2
fi
exit 1
