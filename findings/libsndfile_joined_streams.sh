#!/usr/bin/env bash
# libsndfile 1.2.2 (soundfile 0.14.0): of two streams joined with `cat` only the first is decoded,
# without an error. RFC 3533 (section 4) defines such chains for Ogg, and recordings of radio streams are
# chains; every MP3 player continues with the next frame.
#
# Input: 2 s and 3 s.
#
# Expected: 5 s, or an error.
#
# Observed:
#   OGG VORBIS   2.00 s
#   OGG OPUS     2.00 s
#   MP3          2.00 s
#   FLAC PCM_16  2.00 s
#
# Our reader finds the streams and decodes one after the other (docs/tokenize.md).
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

changed = False
for format, subtype in (("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("FLAC", "PCM_16")):
    joined = b""
    for seconds in (2, 3):
        buffer = io.BytesIO()
        noise = 0.1 * np.random.default_rng(seconds).standard_normal(seconds * 24_000)
        soundfile.write(buffer, noise, 24_000, format=format, subtype=subtype)
        joined += buffer.getvalue()
    samples, rate = soundfile.read(io.BytesIO(joined))
    print(f"{format} {subtype or ''}".ljust(12), f"{len(samples) / rate:.2f} s")
    changed |= len(samples) != 2 * rate
sys.exit(changed)
PYTHON
