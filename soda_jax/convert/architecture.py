"""`config.json` of Transformers' Qwen3ForCausalLM, and what of it this model can be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, RopeConfig, VocabularyBlocks

ARCHITECTURE, MODEL_TYPE = "Qwen3ForCausalLM", "qwen3"
# Ours → theirs, of the same meaning.
_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "tie_embeddings": "tie_word_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}
# What Transformers takes where config.json is silent, and we do too.
_DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "head_dim": 128}
# What it takes for fields that we refuse to guess (Qwen3Config of release 5.24).
_GUESSES = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rope_theta": 10_000,
}
# They lead Transformers to other weights, or to layers of several kinds.
_ELSEWHERE = (
    "per_layer_config", "text_config", "configuration_files", "transformers_weights",
)  # fmt: skip
# Of another value the model would not be this one; what is absent has it.
_REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
# In this order: Transformers 5 takes the first of them that is not empty, 4 only the first.
_ROPE_ENTRIES = ("rope_scaling", "rope_parameters")
_ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position": "original_max_position_embeddings",
}


def config_json(
    config: DecoderConfig, bos: int, eos: int, sequence_length: int, dtype: str
) -> dict[str, Any]:
    """`config.json` of a decoder.

    Rope is written as `rope_theta` and `rope_scaling`, which Transformers 4 and 5 both read.

    Args:
      config: the decoder's shape.
      bos, eos: ids of the tokens that begin and end a document.
      sequence_length: of training, in tokens.
      dtype: of the tensors, "float32" or "bfloat16".
    """
    rope = config.rope
    scaling = {"rope_type": "llama3"} | {
        theirs: getattr(rope, ours) for ours, theirs in _ROPE.items()
    }
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocabulary.size,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.factor == 1.0 else scaling,
        "max_position_embeddings": sequence_length,
        **{
            name: _REQUIRED[name] for name in ("hidden_act", "attention_bias", "use_sliding_window")
        },
        "attention_dropout": 0.0,
        "initializer_range": config.hidden_size**-0.5,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        # The first that has Qwen3; without one, some releases warn of a regular expression that is not there.
        "transformers_version": "4.51.0",
    }


def generation_config_json(bos: int, eos: int) -> dict[str, Any]:
    """`generation_config.json`: greedy, to the end of the document."""
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos, "do_sample": False}


def model_fields(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The `model` part of our config that `config.json` stands for.

    Args:
      content: of the file.
      file: named in messages.

    Raises:
      UserError: for another architecture, a missing field, or a setting that this model has not.
    """
    architectures = content.get("architectures") or [ARCHITECTURE]
    if content.get("model_type") != MODEL_TYPE or architectures != [ARCHITECTURE]:
        raise UserError(
            f"{file}: architectures {_short(architectures)} of model_type "
            f"{_short(content.get('model_type'))} is unknown; only {ARCHITECTURE} of {MODEL_TYPE!r} can be converted"
        )
    for name, value in _REQUIRED.items():
        if content.get(name, value) != value:
            raise UserError(
                f"{file}: {name} is {_short(content[name])}, this decoder has {value!r}; "
                "such a model cannot be converted"
            )
    for name in _ELSEWHERE:
        if content.get(name):
            raise UserError(
                f"{file}: {name} is {_short(content[name])}: part of the model is described elsewhere; "
                "such a model cannot be converted"
            )
    layer_types = content.get("layer_types") or ["full_attention"]
    others = (
        [x for x in layer_types if x != "full_attention"]
        if isinstance(layer_types, list)
        else [layer_types]
    )
    if others:
        raise UserError(
            f"{file}: layer_types has {_short(others[0])}, this decoder has "
            "full attention in all layers; such a model cannot be converted"
        )
    fields: dict[str, Any] = {}
    for ours, theirs in _FIELDS.items():
        value = content.get(theirs, _DEFAULTS.get(theirs))
        if theirs == "num_key_value_heads" and theirs in content and value is None:
            value = content.get("num_attention_heads")  # as in Transformers
        if theirs not in content and value is None:
            raise UserError(missing(theirs, file))
        wanted = bool if ours == "tie_embeddings" else float if ours == "rms_norm_eps" else int
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UserError(f"{file}: {theirs} is {_short(value)}; it must be {_KINDS[wanted]}")
        fields[ours] = value
    if not 0 < fields["rms_norm_eps"] < 1:
        raise UserError(
            f"{file}: rms_norm_eps is {fields['rms_norm_eps']}; it must be between 0 and 1"
        )
    return {**fields, "rope": _rope_fields(content, file)}


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def decoder_of(
    content: Mapping[str, Any], vocabulary: VocabularyBlocks, file: Path
) -> DecoderConfig:
    """The decoder that `config.json` stands for, computing in f32, with a vocabulary of ours.

    Raises:
      UserError: as `model_fields`, and for sizes that do not fit each other.
    """
    fields = model_fields(content, file)
    rope = RopeConfig(**fields.pop("rope"))
    try:
        return DecoderConfig(vocabulary=vocabulary, rope=rope, compute_dtype="float32", **fields)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def missing(name: str, file: Path) -> str:
    """The message about a field that `config.json` lacks."""
    return (
        f"{file} has no {name}; Transformers would use {_GUESSES[name]:,}: write the value that the model "
        "was trained with into the file"
    )


def _rope_fields(content: Mapping[str, Any], file: Path) -> dict[str, float | int]:
    """What Transformers would use, where all entries that it or one of its releases reads agree."""
    given = {name: content[name] for name in _ROPE_ENTRIES if content.get(name)}
    found = {name: _rope_entry(value, name, content, file) for name, value in given.items()}
    if not found:
        return _rope_entry({}, "rope_theta", content, file)
    first, *others = found
    for other in others:
        if found[first] != found[other]:
            theta = found[first]["theta"]
            raise UserError(
                f"{file}: {first} is {_short(given[first])} and {other} is {_short(given[other])}: "
                f"Transformers takes {first} alone, with rope_theta {theta:,.15g}; make them agree, or "
                "remove the one that is not meant"
            )
    return found[first]


def _rope_entry(
    given: Any, entry: str, content: Mapping[str, Any], file: Path
) -> dict[str, float | int]:
    """The fields of one entry, completed as Transformers does from the top level of the file."""
    cannot = "such a model cannot be converted"
    if not isinstance(given, dict):
        raise UserError(f"{file}: {entry} is {_short(given)}, not a JSON object; {cannot}")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"{file}: {entry} is of type {_short(kind)}; this decoder has 'default' and 'llama3', so "
            f"{cannot}"
        )
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE.values()}
    for name in given:
        if name not in known:  # it would change what the model computes
            raise UserError(f"{file}: {_short(name)} of {entry} is unknown here; {cannot}")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{file}: partial_rotary_factor is {_short(given['partial_rotary_factor'])}, this decoder "
            f"has 1.0; {cannot}"
        )
    # Both are also read at the top level, and releases differ in which one they prefer.
    names = ("rope_theta", _ROPE["original_max_position"]) if kind == "llama3" else ("rope_theta",)
    inner = dict(given)
    for name in names:
        if name in given and name in content and given[name] != content[name]:
            raise UserError(
                f"{file}: {name} is {_short(given[name])} in {entry} and {_short(content[name])} outside; "
                "releases of Transformers differ in which one they use: keep the one that is meant"
            )
        if name in content:
            inner.setdefault(name, content[name])
    if "rope_theta" not in inner:
        other = content.get("rope_parameters")
        if not (isinstance(other, dict) and "rope_theta" in other):
            raise UserError(missing("rope_theta", file))
        inner["rope_theta"] = _GUESSES["rope_theta"]  # Transformers ignores that of the other entry
    fields: dict[str, Any] = {"theta": inner["rope_theta"]}
    if kind == "default":
        fields |= {
            "factor": 1.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position": 8192,
        }
    else:
        fields |= {ours: inner.get(theirs) for ours, theirs in _ROPE.items()}
        if fields["original_max_position"] is None:
            raise UserError(
                f"{file}: {entry} has no {_ROPE['original_max_position']}; Transformers would use "
                f"max_position_embeddings, {_short(content.get('max_position_embeddings'))}: write the "
                "value that the model was trained with into the file"
            )
    for ours, value in fields.items():
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or not 0 < value < 1e12:
            theirs = _ROPE.get(ours, "rope_theta")
            raise UserError(
                f"{file}: {theirs} of the rotary positions is {_short(value)}; it must be a positive number"
            )
        fields[ours] = int(value) if ours == "original_max_position" else float(value)
    if not fields["low_freq_factor"] < fields["high_freq_factor"]:
        raise UserError(
            f"{file}: low_freq_factor {fields['low_freq_factor']} of {entry} is not below high_freq_factor "
            f"{fields['high_freq_factor']}; {cannot}"
        )
    return fields


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
