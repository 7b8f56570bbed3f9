#!/usr/bin/env bash
# The C++ compiler for Horovod 0.28.1, which asks for older standards than torch's headers take.
set -euo pipefail

arguments=("$@")
for index in "${!arguments[@]}"; do
  case ${arguments[index]} in
    -std=c++11 | -std=c++14 | -std=gnu++11 | -std=gnu++14) arguments[index]=-std=gnu++17 ;;
  esac
done
exec "${AIOS_CXX:-c++}" "${arguments[@]}"
