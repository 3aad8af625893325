"""Translates between `config.json` of Transformers' Qwen3ForCausalLM and `DecoderConfig`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, RopeConfig, VocabularyBlocks

_ARCHITECTURE, _MODEL_TYPE = "Qwen3ForCausalLM", "qwen3"
# Field of `DecoderConfig` or `RopeConfig` -> field of `config.json` and its type.
_FIELDS: dict[str, tuple[str, type]] = {
    "num_layers": ("num_hidden_layers", int),
    "hidden_size": ("hidden_size", int),
    "intermediate_size": ("intermediate_size", int),
    "num_heads": ("num_attention_heads", int),
    "num_kv_heads": ("num_key_value_heads", int),
    "head_dim": ("head_dim", int),
    "tie_embeddings": ("tie_word_embeddings", bool),
    "rms_norm_eps": ("rms_norm_eps", float),
}
_ROPE_FIELDS: dict[str, tuple[str, type]] = {
    "theta": ("rope_theta", float),
    "factor": ("factor", float),
    "low_freq_factor": ("low_freq_factor", float),
    "high_freq_factor": ("high_freq_factor", float),
    "original_max_position": ("original_max_position_embeddings", float),
}
_THETA, _LENGTH = "rope_theta", "original_max_position_embeddings"
_NO_SCALING = {"factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, _LENGTH: 8192}
# Defaults of optional fields, the same as in Transformers.
_DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "head_dim": 128}
# Defaults of Qwen3Config (Transformers 5.24). Few models have these values, so it is an error if
# one of these fields is missing. Only rope_theta is used, if the other RoPE entry contains it.
REFUSED_DEFAULTS = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rope_theta": 10_000,
}
# If one of these fields is set, Transformers uses settings or weights that are not read here.
_ELSEWHERE = (
    "per_layer_config", "text_config", "configuration_files", "transformers_weights",
)  # fmt: skip
# Fields of which this decoder supports only one value, the default of Transformers. Those in
# `_WRITTEN` are also exported.
_WRITTEN = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
_REQUIRED = {**_WRITTEN, "partial_rotary_factor": 1.0, "quantization_config": None}
# Transformers 5 uses the first entry that is not empty, Transformers 4 only `rope_scaling`.
_ROPE_ENTRIES = ("rope_scaling", "rope_parameters")
_CANNOT = "such a model cannot be converted"


def config_json(
    config: DecoderConfig, bos: int, eos: int, sequence_length: int, dtype: str
) -> dict[str, Any]:
    """Returns the content of `config.json`.

    RoPE is written as `rope_theta` and `rope_scaling`, which Transformers 4 and 5 read.

    Args:
      config: decoder config.
      bos, eos: ids of the tokens that begin and end a document.
      sequence_length: sequence length in training, in tokens.
      dtype: dtype of the tensors, "float32" or "bfloat16".
    """
    fields = {names[0]: getattr(config, ours) for ours, names in _FIELDS.items()}
    rope = {names[0]: getattr(config.rope, ours) for ours, names in _ROPE_FIELDS.items()}
    theta = rope.pop(_THETA)
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": _MODEL_TYPE,
        "vocab_size": config.vocabulary.size,
        **fields,
        "rope_theta": theta,
        "rope_scaling": None if config.rope.factor == 1.0 else {"rope_type": "llama3", **rope},
        "max_position_embeddings": sequence_length,
        **_WRITTEN,
        "attention_dropout": 0.0,
        "initializer_range": config.hidden_size**-0.5,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        # The first release that supports Qwen3. Without a version, some releases warn about the
        # tokenizer regex.
        "transformers_version": "4.51.0",
    }


def generation_config_json(bos: int, eos: int) -> dict[str, Any]:
    """Returns the content of `generation_config.json`, for greedy decoding until EOS."""
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos, "do_sample": False}


def integer_field(
    content: Mapping[str, Any], name: str, file: Path, default: int | None = None
) -> int:
    """Returns the value of a field of `config.json`, or `default` if the field is missing.

    Raises:
      UserError: if the value is not a positive integer, or the field is missing without a default.
    """
    if name not in content and default is None:
        raise UserError(_missing(name, file))
    return _checked(content.get(name, default), name, int, file)


def decoder_of(
    content: Mapping[str, Any], vocabulary: VocabularyBlocks, file: Path
) -> DecoderConfig:
    """Returns the decoder config that `config.json` describes, with compute_dtype float32.

    Args:
      content: content of `config.json`.
      vocabulary: vocabulary of the decoder; `vocab_size` in the file is ignored.
      file: path of `config.json`, for error messages.

    Raises:
      UserError: if the architecture is not Qwen3, a field is missing, or a value is not supported.
    """
    _check_architecture(content, file)
    fields: dict[str, Any] = {}
    for ours, (theirs, kind) in _FIELDS.items():
        value = content.get(theirs, _DEFAULTS.get(theirs))
        if theirs == "num_key_value_heads" and theirs in content and value is None:
            value = content.get("num_attention_heads")  # as in Transformers
        elif theirs not in content and value is None:
            raise UserError(_missing(theirs, file))
        fields[ours] = _checked(value, theirs, kind, file)
    fields["rope"] = _rope(content, file)
    try:
        return DecoderConfig(vocabulary=vocabulary, compute_dtype="float32", **fields)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _check_architecture(content: Mapping[str, Any], file: Path) -> None:
    architectures = content.get("architectures") or [_ARCHITECTURE]
    if content.get("model_type") != _MODEL_TYPE or architectures != [_ARCHITECTURE]:
        raise UserError(
            f"{file}: architectures {_short(architectures)} with model_type "
            f"{_short(content.get('model_type'))} is not supported; only [{_ARCHITECTURE!r}] with "
            f"model_type {_MODEL_TYPE!r} can be converted"
        )
    for name, value in _REQUIRED.items():
        if content.get(name, value) != value:
            raise UserError(
                f"{file}: {name} is {_short(content[name])}, this decoder supports only {value!r}; "
                f"{_CANNOT}"
            )
    for name in _ELSEWHERE:
        if content.get(name):
            raise UserError(
                f"{file}: {name} is {_short(content[name])}, which replaces other settings "
                "or weights; "
                f"{_CANNOT}"
            )
    types = content.get("layer_types") or []
    others = [x for x in types if x != "full_attention"] if isinstance(types, list) else [types]
    if others:
        raise UserError(
            f"{file}: layer_types has {_short(others[0])}, this decoder supports only "
            f"full_attention; {_CANNOT}"
        )


def _checked(value: Any, name: str, kind: type, file: Path) -> Any:
    """Returns `value` as `kind`; raises UserError for another type or a number out of range."""
    limit = 1 if name == "rms_norm_eps" else 1e12
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (type(value) is kind or (kind is float and number)):
        kinds = {int: "an integer", float: "a positive number", bool: "true or false"}
        raise UserError(f"{file}: {name} is {_short(value)}; it must be {kinds[kind]}")
    if kind is not bool and not 0 < value < limit:
        raise UserError(
            f"{file}: {name} is {_short(value)}; it must be a positive number below {limit:g}"
        )
    return kind(value)


def _missing(name: str, file: Path) -> str:
    return (
        f"{file} has no {name}; Transformers would use {REFUSED_DEFAULTS[name]:,}: write the value that "
        "the model was trained with into the file"
    )


def _rope(content: Mapping[str, Any], file: Path) -> RopeConfig:
    """Returns the RoPE settings that Transformers uses; raises UserError if two entries differ."""
    given = {name: content[name] for name in _ROPE_ENTRIES if content.get(name)}
    found = {name: _rope_entry(value, name, content, file) for name, value in given.items()}
    if not found:
        return _rope_entry({}, _THETA, content, file)
    first, *others = found
    for other in others:
        if found[first] != found[other]:
            raise UserError(
                f"{file}: {first} is {_short(given[first])} and {other} is {_short(given[other])}: "
                f"Transformers uses only {first}, with rope_theta {found[first].theta:,.15g}; make them "
                "agree, or remove the wrong one"
            )
    return found[first]


def _rope_entry(given: Any, entry: str, content: Mapping[str, Any], file: Path) -> RopeConfig:
    """Returns the settings of one entry; missing values are read from the top level of the file."""
    if not isinstance(given, dict):
        raise UserError(f"{file}: {entry} is {_short(given)}, not a JSON object; {_CANNOT}")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"{file}: {entry} is of type {_short(kind)}; this decoder supports 'default' and "
            f"'llama3'; {_CANNOT}"
        )
    known = {"rope_type", "type", "partial_rotary_factor", *(x[0] for x in _ROPE_FIELDS.values())}
    for name in given:
        if name not in known:  # it might change the output of the model
            raise UserError(f"{file}: {_short(name)} of {entry} is unknown; {_CANNOT}")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{file}: partial_rotary_factor is {_short(given['partial_rotary_factor'])}, this decoder "
            f"supports only 1.0; {_CANNOT}"
        )
    values = dict(given)
    for name in (_THETA, _LENGTH) if kind == "llama3" else (_THETA,):
        if name in given and name in content and given[name] != content[name]:
            raise UserError(
                f"{file}: {name} is {_short(given[name])} in {entry} and "
                f"{_short(content[name])} at the top level; releases of Transformers differ in "
                "which one they use: keep the right one"
            )
        if name in content:
            values.setdefault(name, content[name])
    if _THETA not in values:
        other = content.get("rope_parameters")
        if not (isinstance(other, dict) and _THETA in other):
            raise UserError(_missing(_THETA, file))
        values[_THETA] = REFUSED_DEFAULTS[_THETA]  # Transformers ignores theta in the other entry
    if kind == "default":
        values = {**_NO_SCALING, _THETA: values[_THETA]}
    elif values.get(_LENGTH) is None:
        raise UserError(
            f"{file}: {entry} has no {_LENGTH}; Transformers would use max_position_embeddings, "
            f"{_short(content.get('max_position_embeddings'))}: write the value that the model was "
            "trained with into the file"
        )
    fields = {
        ours: _checked(values.get(theirs), f"{entry}: {theirs}", type_, file)
        for ours, (theirs, type_) in _ROPE_FIELDS.items()
    }
    if not fields["low_freq_factor"] < fields["high_freq_factor"]:
        raise UserError(
            f"{file}: low_freq_factor {fields['low_freq_factor']} of {entry} is not below "
            f"high_freq_factor {fields['high_freq_factor']}; {_CANNOT}"
        )
    fields["original_max_position"] = int(fields["original_max_position"])
    return RopeConfig(**fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
