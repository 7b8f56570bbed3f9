#!/usr/bin/env bash
# Makes an environment for each server of serving.py, below a folder (.peers unless told otherwise):
# they ask for packages in versions that exclude each other's. It tells what benchmarks/serve.py takes.
set -euo pipefail

folder=${1:-.peers}
python=${PYTHON:-python3}
# Newest that were seen to install and run.
servers=(litserve==0.2.19 mlserver==1.7.1 bentoml==1.4.39 mlflow==3.17.2)

for server in "${servers[@]}"; do
  here=$folder/${server%%==*}
  if [ ! -e "$here/.installed" ]; then
    echo "Installing $server into $here" >&2
    "$python" -m venv "$here"
    # A server that stands still says so here.
    timeout 900 "$here/bin/python" -m pip install --quiet --disable-pip-version-check "$server" numpy onnx onnxruntime
    touch "$here/.installed"
  fi
  options+=(--peer "${server%%==*}=$here/bin/python")
done
echo "${options[*]}"
