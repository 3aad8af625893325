"""Writes the fixture of tests/codecs/test_mimi.py: a tiny model of transformers and its results.

PYTHONPATH=tests:tests/parity .parity/bin/python tests/parity/regenerate_mimi.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from mimi_sounds import FIXTURE, sounds
from mimi_torch import SMALL, make_model
from safetensors.numpy import load_file, save_file

TINY = {
    **SMALL,
    "num_filters": 4,
    "hidden_size": 32,
    "upsample_groups": 32,
    "intermediate_size": 48,
}


def main() -> None:
    """Saves the model in the published format, with its codes of the test audio and a decoded clip."""
    clips = sounds()
    model = make_model(TINY, 0, [clip for seed in range(4) for clip in sounds(seed).values()])
    results = {}
    with torch.no_grad():
        for name, clip in clips.items():
            codes = model.encode(torch.from_numpy(clip)[None, None], num_quantizers=8).audio_codes
            results[f"codes/{name}"] = codes[0].T.numpy().astype(np.uint8)
        sound = model.decode(codes[..., :5] * 0 + torch.arange(5)).audio_values
        results["decoded"] = sound[0, 0].numpy()
    FIXTURE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        (FIXTURE / "config.json").write_text(Path(folder, "config.json").read_text())
    # save_pretrained writes a file that other users cannot read, in another order.
    save_file(dict(sorted(weights.items())), FIXTURE / "model.safetensors")
    np.savez_compressed(FIXTURE / "expected.npz", **results)


if __name__ == "__main__":
    main()
