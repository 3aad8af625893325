#!/usr/bin/env bash
# speechmos 0.0.1.1, the package of DNSMOS: its metadata names no dependency, but `from speechmos import dnsmos`
# imports librosa, onnxruntime and requests (requests is not used for local scores).
#
# Expected: `pip install speechmos` installs what the package imports.
#
# Observed: importlib.metadata.requires("speechmos") is None; in a new environment with numpy only, the import
# raises ModuleNotFoundError: No module named 'librosa'.
#
# The extra `eval` of soda-jax lists the three packages (setup.py).
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check speechmos==0.0.1.1 numpy==2.4.6
cat >"$folder/run.py" <<'PYTHON'
import importlib.metadata
import sys

required = importlib.metadata.requires("speechmos")
try:
    from speechmos import dnsmos

    missing = f"nothing, {dnsmos.__name__} is imported"
except ModuleNotFoundError as error:
    missing = error.name
print(f"declared: {required}; missing: {missing}")
sys.exit(0 if required is None and missing == "librosa" else 1)
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
