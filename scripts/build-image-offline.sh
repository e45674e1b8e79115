#!/bin/sh
# Build the image solostream-sandbox with no container registry: Debian's packages become the base, wheels are copied in,
# and `docker build` runs without a network. Both are cached in build/image, so that a second run takes about a second.
# Needs a Docker daemon, root, and mmdebstrap or debootstrap; PYTHON (default python3) must be 3.11 or newer.
set -eu
cd "$(dirname "$0")/.."

suite=bookworm
packages=python3,python3-venv,ca-certificates
python_version=3.11  # of that suite
base=solostream-base:$suite
tag=${1:-solostream-sandbox}
cache=build/image
python=${PYTHON:-python3}
mkdir -p "$cache"

docker info >/dev/null 2>&1 || { echo "no Docker daemon answers: scripts/start-dockerd.sh" >&2; exit 1; }

if ! docker image inspect "$base" >/dev/null 2>&1; then
    if [ ! -s "$cache/base.tar" ]; then
        [ "$(id -u)" = 0 ] || { echo "building the base needs root: sudo $0" >&2; exit 1; }
        rm -f "$cache/base.part"
        if command -v mmdebstrap >/dev/null; then
            mmdebstrap --quiet --variant=minbase --include="$packages" \
                --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
                --dpkgopt='path-exclude=/usr/share/locale/*' --format=tar "$suite" "$cache/base.part"
        elif command -v debootstrap >/dev/null; then
            root=$(mktemp -d)
            trap 'rm -rf "$root"' EXIT
            debootstrap --variant=minbase --include="$packages" "$suite" "$root" >/dev/null
            rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc "$root"/usr/share/man
            tar -C "$root" -cf "$cache/base.part" .
        else
            echo "mmdebstrap is not installed: apt-get install --no-install-recommends mmdebstrap" >&2
            exit 1
        fi
        mv "$cache/base.part" "$cache/base.tar"
    fi
    docker import "$cache/base.tar" "$base" >/dev/null
fi

# Wheels are fetched again only when what they are chosen from has changed.
wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
wheels=$cache/wheels-$wanted
if [ ! -d "$wheels" ]; then
    rm -rf "$cache"/wheels-*
    "$python" sandbox/image/requirements.py pyproject.toml > "$cache/requirements.txt"
    "$python" -m pip download -q --disable-pip-version-check --only-binary=:all: --python-version "$python_version" \
        -c constraints.txt -r "$cache/requirements.txt" -d "$wheels.part"
    mv "$wheels.part" "$wheels"
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
# shellcheck disable=SC2046
cp -r .dockerignore $(sed -n 's/^!//p' .dockerignore) "$context"
find "$context" -name __pycache__ -prune -exec rm -rf {} +
cp -r "$wheels" "$context/wheels"
echo '!wheels' >> "$context/.dockerignore"
docker build -q --network none --build-arg "BASE=$base" -t "$tag" -f sandbox/image/Dockerfile "$context"
