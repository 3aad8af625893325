"""Verifies a conversion with a second, independent implementation of Transformers' rules.

`architecture.py` both reads and writes `config.json`. A setting that it misunderstands is therefore
the same before and after a conversion, and the logits agree. This module does not use
`architecture.py`. It reads the files again and compares settings, tensor files and rotary
frequencies with those of the conversion. `make parity` compares this module with Transformers.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, rope

# Allows for a different order of f32 operations; a wrong setting has a far larger effect.
_TOLERANCE = 1e-5


def rotary_frequencies(content: dict[str, Any]) -> np.ndarray:
    """Returns the inverse frequencies that Transformers 5.24 uses, f64 `[head_dim / 2]`.

    The rules are those of `RotaryEmbeddingConfigMixin` and the rope types "default" and "llama3".
    The entry `rope_scaling` overrides `rope_parameters`. An entry without `rope_theta` has that of
    the top level, else 10,000. `original_max_position_embeddings` of the top level overrides that
    of the entry.

    Args:
      content: content of `config.json`.

    Raises:
      ValueError: if the rope type is neither "default" nor "llama3".
    """
    entry = dict(content.get("rope_scaling") or content.get("rope_parameters") or {})
    theta = float(entry.get("rope_theta", content.get("rope_theta", 10_000.0)))
    size = int(content.get("head_dim", 128))
    plain = [theta ** -(2 * pair / size) for pair in range(size // 2)]
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind == "default":
        return np.array(plain)
    if kind != "llama3":
        raise ValueError(f"rope type {kind!r}")
    factor, low, high = (
        float(entry[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    key = "original_max_position_embeddings"
    length = content.get(key) or entry.get(key) or content.get("max_position_embeddings", 32_768)
    scaled = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            scaled.append(frequency)
        elif wavelength > length / low:
            scaled.append(frequency / factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return np.array(scaled)


def weight_files(folder: Path) -> dict[str, Path]:
    """Returns the file of every tensor; a single file overrides an index, as in Transformers."""
    from safetensors import safe_open

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = [single]
    if not single.is_file():
        files = [folder / name for name in json.loads(index.read_text())["weight_map"].values()]
    found: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        with safe_open(file, framework="np") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def check(tensors: TensorFolder, config: DecoderConfig) -> None:
    """Compares a folder with the decoder config and the tensors that a conversion used.

    Args:
      tensors: the tensors of the folder, as the conversion read or wrote them.
      config: decoder config that the conversion used; its vocabulary is not compared.

    Raises:
      UserError: if the two readings differ, which is a bug in soda.
    """
    content = json.loads((tensors.path / "config.json").read_text(encoding="utf-8"))
    heads = content["num_attention_heads"]
    # name -> (value read here, value that the conversion used)
    values: dict[str, tuple[Any, Any]] = {
        "num_attention_heads": (heads, config.num_heads),
        "num_key_value_heads": (content.get("num_key_value_heads") or heads, config.num_kv_heads),
        "num_hidden_layers": (content["num_hidden_layers"], config.num_layers),
        "tie_word_embeddings": (content.get("tie_word_embeddings", False), config.tie_embeddings),
        "rms_norm_eps": (float(content.get("rms_norm_eps", 1e-6)), config.rms_norm_eps),
    }
    for name, file in weight_files(tensors.path).items():
        used = tensors.tensors.get(name)
        values[f"the file of {name}"] = (file, used and used.file)
    wrong = [f"{name} is {a}, the conversion used {b}" for name, (a, b) in values.items() if a != b]
    try:
        theirs = rotary_frequencies(content)
        ours = rope.frequencies(config.head_dim, config.rope)
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=_TOLERANCE, atol=0):
            wrong.insert(0, f"rotary frequencies are {theirs[:4]}, the conversion used {ours[:4]}")
    except ValueError as error:
        wrong.insert(0, str(error))
    if wrong:
        raise UserError(
            f"{tensors.path}: an independent reading of the folder differs from the conversion: "
            f"{wrong[0]}; this is a bug in soda; please report it with config.json"
        )
