#!/usr/bin/env bash
# libsndfile 1.2.2 with libmpg123 (soundfile 0.14.0): an MP3 without a Xing, Info or VBRI header, as an
# encoder that writes to a pipe leaves it, is decoded up to a length that is estimated from the size of
# the file and its first frames. The rest of a variable-bitrate file is never returned, without an error.
#
# Input: 60 s of noise, loud in the first third, variable bitrate; the same file without its first frame.
#
# Expected: all frames, 60.05 s (2,502 frames of 576 samples), or an error.
#
# Observed:
#   with the header     60.00 s
#   without it          20.24 s
#
# Our reader counts the frames and puts a header in front of such a file (docs/tokenize.md).
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

noise = 0.3 * np.random.default_rng(0).standard_normal(60 * 24_000).clip(-1, 1)
noise[len(noise) // 3 :] *= 0.002
buffer = io.BytesIO()
soundfile.write(buffer, noise, 24_000, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
content = buffer.getvalue()
# The header is a frame of MPEG 2 layer III at 24 kHz without padding: 72 * bitrate / 24,000 bytes.
kbits = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[(content[2] >> 4) - 1]
assert content[13:17] == b"Xing"
found = []
for name, data in (("with the header", content), ("without it", content[3 * kbits :])):
    samples, rate = soundfile.read(io.BytesIO(data))
    found.append(len(samples) / rate)
    print(f"{name:<19} {found[-1]:.2f} s")
sys.exit(not (found[0] == 60 and found[1] < 30))
PYTHON
