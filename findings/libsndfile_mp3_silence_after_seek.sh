#!/usr/bin/env bash
# libsndfile 1.2.2 with libmpg123 (soundfile 0.14.0): after a seek in an MP3 of low bitrate the first
# samples are silence. A frame of layer III uses up to 511 bytes of the frames before it (255 in
# MPEG 2); where these are small, that is more frames than libmpg123 decodes in front of the target.
#
# Input: a complete MP3 with its Xing header, 10 s of a tone of 440 Hz.
#
# Expected: after seek(n), the samples from n on of the whole file.
#
# Observed, the worst of 100 positions:
#   5760 samples (240 ms) are 0
#
# Our reader decodes 65,536 samples in front of a stretch and drops them.
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

tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(10 * 24_000) / 24_000)
buffer = io.BytesIO()
soundfile.write(buffer, tone, 24_000, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
whole, _ = soundfile.read(io.BytesIO(buffer.getvalue()))
worst = 0
for start in range(60_000, 210_000, 1_500):
    with soundfile.SoundFile(io.BytesIO(buffer.getvalue())) as file:
        file.seek(start)
        part = file.read(24_000)
    worst = max(worst, int(np.argmax(np.abs(part) > 1e-9)))
    assert np.abs(part[12_000:] - whole[start + 12_000 : start + 24_000]).max() < 1e-6
print(f"{worst} samples ({worst / 24:.0f} ms) are 0")
sys.exit(worst < 576)
PYTHON
