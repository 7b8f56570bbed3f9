#!/usr/bin/env bash
# tests.sh PYTEST-ARGUMENTS…: runs them, and what failed once more by itself, if that is little.
# Thousands of tests with real processes share two cores: one that only passes the second time says
# so here, and is a fault to be looked into, but not that of the change that happens to be tested.
set -uo pipefail
most=3
cache=.pytest_cache/make

.venv/bin/python -m pytest -o cache_dir=$cache --cache-clear "$@"
status=$?
[ $status -eq 1 ] || exit $status

failed=$(.venv/bin/python -c 'import json, sys; print(len(json.load(open(sys.argv[1]))))' \
  $cache/v/cache/lastfailed) || exit $status
if [ "$failed" -gt $most ]; then exit $status; fi
printf '\n==> %d failed, as said above; once more, by itself:\n' "$failed"
.venv/bin/python -m pytest -o cache_dir=$cache --last-failed --last-failed-no-failures none "$@" \
  --numprocesses 0 -rA --show-capture=no || exit $status
printf '\n==> What failed above passed the second time: look into it.\n'
