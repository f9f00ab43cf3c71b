#!/bin/sh
# The tests that need no torch, on every supported Python that is found: each in an environment of its own, with the
# versions of constraints.txt. Environments stay in .venv-VERSION for the next time.
set -eu
cd "$(dirname "$0")/.."
tests="tests/golden tests/contract tests/unit/transport tests/unit/head tests/unit/tail tests/unit/devices tests/unit/cli
tests/integration/test_streaming.py"
found=0
for version in 3.10 3.11 3.12 3.13; do
    # A version manager's shim can be there without its Python: what counts is that it runs.
    python=$(command -v "python$version" || true)
    for candidate in "$HOME/.pyenv/versions/$version."*/bin/python; do
        [ -n "$python" ] && "$python" --version >/dev/null 2>&1 || python=$candidate
    done
    if ! "$python" --version >/dev/null 2>&1; then
        echo "== Python $version is not here; skipped"
        continue
    fi
    found=1
    echo "== $("$python" --version)"
    venv=.venv-$version
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[tail,devices]' \
        constriction hypothesis onnx pytest pytest-asyncio
    # shellcheck disable=SC2086 (a list of folders)
    "$venv/bin/python" -m pytest -q $tests
done
[ "$found" = 1 ] || { echo "none of Python 3.10 to 3.13 was found"; exit 1; }
