"""Writes the fixture of tests/convert/test_qwen3_fixture.py, with torch and transformers.

PYTHONPATH=tests/parity python tests/parity/regenerate_qwen3.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
from qwen3_torch import answers, random_model

FOLDER = Path(__file__).parents[1] / "convert" / "qwen3_fixture"
# Bytes, BOS, EOS, four markers and codebooks of 6, 4 and 4.
VOCABULARY = 258 + 4 + 14


def write(folder: Path) -> None:
    """Saves two models and their answers to two prompts."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 40)).astype(np.int32)
    for name, changes in (
        ("scaled", {}),
        ("tied", {"tie_word_embeddings": True, "rope_scaling": None, "num_key_value_heads": 4}),
    ):
        model = random_model(VOCABULARY, seed=1, **changes)
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        np.savez(folder / name / "answers.npz", tokens=tokens, **answers(model, tokens, 8))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
