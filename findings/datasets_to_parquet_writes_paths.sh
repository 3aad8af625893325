#!/bin/sh
# datasets 5.1.0 (with pyarrow 26.0.1): Dataset.to_parquet of an Audio column writes paths and no sound.
#
# A data set of paths of sound files is cast to Audio() and written with to_parquet. The cells contain the
# given path and no bytes, so the Parquet file cannot be used without the sound files, and a relative path
# depends on the folder in which the command ran. There is no warning.
#
# Observed: "relative: {'bytes': None, 'path': 'clips/a.wav'}; absolute: {'bytes': None, 'path': '…/clips/a.wav'}"
# Exit status: 0 as observed, 1 if a cell has bytes or another path.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    'datasets==5.1.0' 'pyarrow==26.0.1'
cd "$folder"
mkdir clips
cat >write.py <<'PYTHON'
import os
import wave

import pyarrow.parquet
from datasets import Audio, Dataset, disable_progress_bars

disable_progress_bars()
with wave.open("clips/a.wav", "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(8000)
    file.writeframes(bytes(1600))
cells = []
for path in ("clips/a.wav", os.path.abspath("clips/a.wav")):
    data = Dataset.from_dict({"audio": [path]}).cast_column("audio", Audio())
    data.to_parquet("x.parquet")
    (cell,) = pyarrow.parquet.read_table("x.parquet")["audio"].to_pylist()
    assert cell["path"] == path or cell["bytes"], cell
    cells.append(cell)
shown = str(cells[1]).replace(os.getcwd(), "…")
print(f"relative: {cells[0]}; absolute: {shown}")
raise SystemExit(any(cell["bytes"] is not None for cell in cells))
PYTHON
"$folder/venv/bin/python" write.py
