#!/usr/bin/env bash
# Makes .venv-tensorflow: TensorFlow, and through a .pth file all that .venv has.
set -euo pipefail

here=.venv-tensorflow

if [ "$here/.installed" -nt constraints.txt ] && [ "$here/.installed" -nt "$0" ]; then exit 0; fi
[ -x $here/bin/python ] || .venv/bin/python -m venv $here

site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# With addsitedir also the .pth files there count, which an editable installation has.
echo "import site; site.addsitedir('$(site .venv/bin/python)')" >"$(site $here/bin/python)/aios-venv.pth"

install() { $here/bin/python -m pip install --quiet --constraint constraints.txt "$@"; }

echo "Installing TensorFlow into $here (a few minutes the first time)"
# The tests need no GPU, and this is a third of what the extra 'tensorflow' brings. tf_keras wants
# the package of the other name.
install tensorflow-cpu keras tf2onnx ai-edge-litert
install --no-deps tf_keras
touch $here/.installed
