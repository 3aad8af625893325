#!/usr/bin/env bash
# libsndfile 1.2.2 (soundfile 0.14.0): a CAF whose data chunk has the size -1 does not open. Apple's
# specification of the format uses -1 for a chunk whose size is not known while it is written: the data
# chunk is then the last one and reaches to the end of the file.
#
# Expected: 48,000 samples.
#
# Observed:
#   error 3: Supported file format but file is malformed.
#
# Our reader writes the size into the header (docs/tokenize.md).
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import io
import sys

import numpy as np
import soundfile

buffer = io.BytesIO()
noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
soundfile.write(buffer, noise, 24_000, format="CAF", subtype="PCM_16")
content = bytearray(buffer.getvalue())
at = content.index(b"data")
content[at + 4 : at + 12] = b"\xff" * 8
try:
    print(f"{len(soundfile.read(io.BytesIO(content))[0])} samples")
    sys.exit(1)
except soundfile.LibsndfileError as error:
    print(f"error {error.code}: {error.error_string}")
PYTHON
