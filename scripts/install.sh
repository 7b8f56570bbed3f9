#!/usr/bin/env bash
# Installs this working tree into .venv as an editable package whose front end is a link: what
# `npm run build` writes is what the next reload of JupyterLab shows.
set -euo pipefail

link=.venv/share/jupyter/labextensions/aios-jupyter

# pip removes the files of the previous installation, and through a link those would be the build.
if [ -L "$link" ]; then rm "$link"; fi

echo "Installing aios-jupyter and its dependencies into .venv (a few minutes the first time)"
SKIP_JUPYTER_BUILDER=1 .venv/bin/python -m pip install --quiet --constraint constraints.txt \
  --no-build-isolation --editable '.[dev]'

rm -rf "$link"
ln -s "$PWD/aios_jupyter/labextension" "$link"
