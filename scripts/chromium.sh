#!/usr/bin/env bash
# Makes sure that there is a chromium for the browser tests: the distribution's own package.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done

if ! command -v apt-get >/dev/null; then
  echo "The browser tests need chromium: install it with your package manager and run this again." >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "The browser tests need chromium; ask an administrator for: apt-get install chromium" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "chromium is missing: installing the distribution's package with apt-get"
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --yes --no-install-recommends -qq \
  chromium fonts-dejavu-core
