#!/usr/bin/env bash
# The C++ compiler for Horovod 0.28.1, which asks for older standards than the headers of torch and
# TensorFlow take, and whose part for XLA was written for another TensorFlow: it is left empty.
set -euo pipefail

arguments=("$@")
for index in "${!arguments[@]}"; do
  case ${arguments[index]} in
    *xla_mpi_ops.cc) arguments+=(-UTENSORFLOW_VERSION -DTENSORFLOW_VERSION=0) ;;
    -std=c++11 | -std=c++14 | -std=gnu++11 | -std=gnu++14) arguments[index]=-std=gnu++17 ;;
  esac
done
exec "${AIOS_CXX:-c++}" "${arguments[@]}"
