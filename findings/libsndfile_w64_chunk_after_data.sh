#!/usr/bin/env bash
# libsndfile 1.2.2 (soundfile 0.14.0): in a Sony Wave64 file with a chunk after its data chunk, the bytes
# of that chunk are decoded as samples: noise at the end of the sound, without an error. The size of the
# data chunk is ignored.
#
# Input: 1 s of silence, then a "junk" chunk of 24 + 1,000 bytes.
#
# Expected: 24,000 samples.
#
# Observed:
#   24512 samples, peak 0.917
#
# Our reader gives libsndfile the file up to the end of its data chunk.
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
soundfile.write(buffer, np.zeros(24_000), 24_000, format="W64", subtype="PCM_16")
content = bytearray(buffer.getvalue())
# A chunk starts with a GUID, made from its four letters, and its size, the 24 bytes of both included.
content += b"junk" + content[44:56] + (1024).to_bytes(8, "little") + b"\x55" * 1000
content[16:24] = len(content).to_bytes(8, "little")
samples, _ = soundfile.read(io.BytesIO(content))
print(f"{len(samples)} samples, peak {np.abs(samples).max():.3f}")
sys.exit(len(samples) != 24_512)
PYTHON
