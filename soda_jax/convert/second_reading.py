"""A second reading of a Hugging Face folder, for the verification: Transformers' rules written out.

`architecture` and `safetensors_folder` make the decoder of a conversion, and the logits before and after
are computed with it, so a misread setting would be on both sides. What is here shares no code with them
but JSON and the safetensors library: it reads the raw files again and compares numbers that a setting ends
up in, the rotary frequencies and the shapes, with those of the decoder. `make parity` compares this
reading with Transformers.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, rope

# Differences in the order of f32 operations; another setting changes far more.
_ROUNDING = 1e-5


def rotary_frequencies(content: dict[str, Any]) -> np.ndarray:
    """Returns the inverse frequencies that Transformers 5.24 computes from `config.json`, f64 `[head_dim / 2]`.

    The rules are those of `RotaryEmbeddingConfigMixin` and of the rope types "default" and "llama3" there:
    `rope_scaling` replaces `rope_parameters`; a base outside them, else 10,000, fills a missing one; the
    length outside them replaces the one inside.

    Raises:
      ValueError: for another rope type.
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
    """Returns the file of every tensor, as Transformers 5.24 chooses them: a single file before an index."""
    from safetensors import safe_open

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    else:
        files = [folder / name for name in json.loads(index.read_text())["weight_map"].values()]
    found: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        with safe_open(file, framework="np") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def check(folder: Path, config: DecoderConfig, used: dict[str, Path]) -> None:
    """Compares a folder with the decoder and the tensors that a conversion used.

    Args:
      folder: of `config.json` and safetensors.
      config: the decoder; its vocabulary is not compared.
      used: file of every tensor that was read or written.

    Raises:
      UserError: if they differ: this is a bug of soda.
    """
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wrong = next(
        (text for same, text in _comparisons(content, folder, config, used) if not same), ""
    )
    if wrong:
        raise UserError(
            f"{folder}: a second reading finds another model: {wrong}; please report this with config.json"
        )


def _comparisons(
    content: dict[str, Any], folder: Path, config: DecoderConfig, used: dict[str, Path]
) -> list[tuple[bool, str]]:
    try:
        theirs = rotary_frequencies(content)
    except ValueError as error:
        return [(False, str(error))]
    ours = rope.frequencies(config.head_dim, config.rope)
    near = theirs.shape == ours.shape and np.allclose(theirs, ours, rtol=_ROUNDING, atol=0)
    heads = content["num_attention_heads"]
    groups = content.get("num_key_value_heads") or heads
    norm = float(content.get("rms_norm_eps", 1e-6))
    files = weight_files(folder)
    found = [
        (near, f"rotary frequencies {_some(theirs)}, the converted ones are {_some(ours)}"),
        (heads == config.num_heads, f"{heads} heads, converted {config.num_heads}"),
        (
            groups == config.num_kv_heads,
            f"{groups} key-value heads, converted {config.num_kv_heads}",
        ),
        (
            math.isclose(norm, config.rms_norm_eps),
            f"rms_norm_eps {norm}, converted {config.rms_norm_eps}",
        ),
        (
            content["num_hidden_layers"] == config.num_layers,
            f"{content['num_hidden_layers']} layers",
        ),
    ]
    for name, file in files.items():
        found.append((used.get(name) == file, f"{name} in {file.name}, converted {used.get(name)}"))
    tied = content.get("tie_word_embeddings", False)
    found.append(
        (
            tied == config.tie_embeddings,
            f"tie_word_embeddings {tied}, converted {config.tie_embeddings}",
        )
    )
    return found


def _some(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:4]) + ", …"
