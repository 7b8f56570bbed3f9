#!/usr/bin/env bash
# Makes .venv-horovod: Horovod for torch and TensorFlow (with tf_keras) on CPUs, and through a .pth file
# all that .venv has. Its wheel stays in build/horovod and suits any environment with the same Python,
# torch and TensorFlow.
set -euo pipefail

here=.venv-horovod
version=0.28.1

if [ "$here/.installed" -nt constraints.txt ] && [ "$here/.installed" -nt "$0" ]; then exit 0; fi
if ! command -v "${AIOS_CXX:-c++}" >/dev/null || ! command -v make >/dev/null; then
  echo "Horovod is built here, which needs a C++ compiler; on Debian and Ubuntu: apt-get install g++ make" >&2
  exit 1
fi
[ -x $here/bin/python ] || .venv/bin/python -m venv $here

site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# With addsitedir also the .pth files there count, which an editable installation has.
echo "import site; site.addsitedir('$(site .venv/bin/python)')" >"$(site $here/bin/python)/aios-venv.pth"

install() { $here/bin/python -m pip install --quiet --constraint constraints.txt "$@"; }

version_of() { $here/bin/python -c 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))' "$1"; }

echo "Installing TensorFlow into $here (a few minutes the first time)"
install tensorflow-cpu keras
install --no-deps tf_keras

wheels=build/horovod/torch-$(version_of torch)-tensorflow-$(version_of tensorflow-cpu)
if ! compgen -G "$wheels/horovod-$version-*.whl" >/dev/null; then
  echo "Building Horovod $version (some 15 minutes of a processor, once for each torch and TensorFlow)"
  install setuptools wheel packaging cffi cloudpickle psutil pyyaml
  command -v cmake >/dev/null || install cmake
  log=$wheels/build.log
  mkdir -p "$wheels"
  # A wheel in pip's cache may be one for other frameworks.
  # CMake 4 refuses what the Gloo inside asks for, unless told not to.
  if ! PATH="$PWD/$here/bin:$PATH" CXX="$PWD/scripts/horovod-cxx.sh" MAKEFLAGS="-j$(nproc)" \
    CMAKE_POLICY_VERSION_MINIMUM=3.5 \
    HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
    HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
    $here/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --no-binary horovod \
    --wheel-dir "$wheels" "horovod==$version" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "Horovod could not be built; the whole log is in $log" >&2
    exit 1
  fi
fi
echo "Installing Horovod into $here"
# One that is there may have been built for other frameworks, under the same version.
install --find-links "$wheels" --force-reinstall --no-deps "horovod==$version"
install --find-links "$wheels" "horovod==$version"
$here/bin/python -c 'import horovod.torch'
TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=2 $here/bin/python -c 'import horovod.tensorflow.keras'
touch $here/.installed
