#!/usr/bin/env bash
# libsndfile 1.2.2 (soundfile 0.14.0): a FLAC whose STREAMINFO has 0 as its number of samples, which
# means "unknown" (RFC 9639, section 8.2) and is what encoders that write to a pipe leave, has
# 2^63 - 1 frames. Reading it whole raises in soundfile (it cannot allocate the array), and reading
# up to its end in blocks raises "Internal psf_fseek() failed" at the last one.
#
# Expected: the 48,000 samples, as `flac -d` decodes them.
#
# Observed:
#   frames 9223372036854775807
#   whole ValueError
#   blocks 40000 samples, then LibsndfileError: Internal psf_fseek() failed.
#
# Our reader takes the length from the last frame and writes it into the header (docs/tokenize.md).
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
soundfile.write(buffer, noise, 24_000, format="FLAC", subtype="PCM_16")
content = bytearray(buffer.getvalue())
content[21] &= 0xF0  # the 36 bits of the number of samples, then MD5
content[22:42] = bytes(20)
lines = [f"frames {soundfile.info(io.BytesIO(content)).frames}"]
try:
    soundfile.read(io.BytesIO(content))
except Exception as error:
    lines.append(f"whole {type(error).__name__}")
done = 0
try:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        while len(block := file.read(20_000)):
            done += len(block)
except Exception as error:
    lines.append(f"blocks {done} samples, then {type(error).__name__}: {error}")
print("\n".join(lines))
sys.exit(lines[0] != "frames 9223372036854775807" or len(lines) != 3)
PYTHON
