"""Writes an exported Hugging Face folder as one GGUF file for llama.cpp.

The architecture is "qwen3", whose graph is that of this decoder: QK-norm, grouped queries, SwiGLU, and rotary
pairs (i, i + head_dim / 2), so no dimension is permuted. It has no rotary frequency factors, so a model with
Llama 3 scaling cannot be expressed: llama.cpp refuses a file with the factors and computes other angles
without them. The format is described in ggml's docs/gguf.md.

Markers and audio ids become user-defined tokens, whose text llama.cpp prints and accepts in a grammar. A grammar of
speech is written next to the file.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.convert.architecture import decoder_of, integer_field
from soda_jax.convert.qwen3 import HuggingFaceWeights, exported_tensors
from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.to_hf import ABOUT
from soda_jax.convert.tokenizer_files import FIRST_CHARACTER
from soda_jax.errors import UserError
from soda_jax.files import is_url, sync, write_atomic
from soda_jax.model import DecoderConfig, VocabularyBlocks
from soda_jax.progress import progress
from soda_jax.tokens.documents import most_codebooks
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.vocabulary import MARKERS, VocabularyLayout

DTYPES = ("f32", "f16", "q8_0")
_BLOCK = 32  # values of a row that share a scale in q8_0
# Regular expressions of `Split` pre-tokenizers and their names in llama.cpp (src/llama-vocab.cpp).
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
# Suffixes of Transformers' tensors -> those of llama.cpp.
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


@dataclasses.dataclass(frozen=True)
class Written:
    """Summary: number of parameters, bytes of the file, and duration in seconds."""

    parameters: int
    bytes: int
    seconds: float


def to_gguf(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], dtype: str = "f16"
) -> Written:
    """Writes a folder that `soda convert to-hf` wrote as a GGUF file.

    Args:
      folder: folder with config.json, tokenizer.json and safetensors.
      out: the new file.
      dtype: one of `DTYPES`; norms are always f32. q8_0 stores blocks of 32 values as int8 with an f16
        scale.

    Raises:
      UserError: if the `gguf` extra is not installed, the folder is not such an export, llama.cpp
        cannot express the model or its tokenizer, or the file exists or cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("gguf is missing: pip install 'soda-jax[gguf]'") from None
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    began, source, target = time.monotonic(), Path(folder), Path(out)
    if is_url(out) or target.exists():
        raise UserError(f"{out} exists or is a URL; give the path of a new local file")
    if (source / "checkpoints").is_dir():
        raise UserError(
            f"{source} is a run: export it first with soda convert to-hf {source} FOLDER"
        )
    about = _read_json(source / "config.json")
    size = integer_field(about, "vocab_size", source / "config.json")
    config = decoder_of(about, VocabularyBlocks(size, ()), source / "config.json")
    _check(config, source, dtype)
    vocabulary = _vocabulary(_read_json(source / "tokenizer.json"), size, source, gguf.TokenType)
    weights = HuggingFaceWeights(TensorFolder(source), config, size)
    size_bytes = write_gguf(
        target, config, about, vocabulary, exported_tensors(weights), dtype, source / "config.json"
    )
    record = source / ABOUT
    if record.exists():
        about_run = _read_json(record)
        layout = FrontEnd.from_metadata(about_run).layout
        if layout.codebooks:
            codebooks = most_codebooks(about_run.get("views", {}).values(), layout)
            write_atomic(grammar_path(target), speech_grammar(layout, codebooks))
    return Written(config.parameters, size_bytes, time.monotonic() - began)


def grammar_path(gguf_file: Path) -> Path:
    """Returns the path of the grammar of speech next to a GGUF file."""
    return gguf_file.with_name(f"{gguf_file.stem}.speech.gbnf")


def speech_grammar(layout: VocabularyLayout, codebooks: int) -> str:
    """Returns a grammar of llama.cpp (GBNF) for what follows `audio_start`: frames and `audio_end`.

    The marker is given by its id. Given as a string, llama.cpp also permits ordinary tokens that spell it.

    Args:
      layout: the vocabulary.
      codebooks: number of codebooks in a frame.
    """
    first, classes = FIRST_CHARACTER, []
    for size in layout.codebook_sizes[:codebooks]:
        classes.append(f"[{_escaped(first)}-{_escaped(first + size - 1)}]")
        first += size
    return f"root ::= frame+ <[{layout.audio_end}]>\nframe ::= {' '.join(classes)}\n"


def _escaped(character: int) -> str:
    return f"\\u{character:04X}" if character < 0x10000 else f"\\U{character:08X}"


def write_gguf(
    target: Path,
    config: DecoderConfig,
    about: Mapping[str, Any],
    vocabulary: "Vocabulary",
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    file: Path,
) -> int:
    """Writes a GGUF file and returns its size in bytes.

    Args:
      target: the new file.
      config: decoder config.
      about: content of config.json: the ids of BOS and EOS, and the context.
      vocabulary: the pieces.
      tensors: (name in Transformers, f32 values), which are held in memory in `dtype`.
      dtype: one of `DTYPES`.
      file: path of config.json, for error messages.
    """
    import gguf

    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(partial, "qwen3")
        _write_settings(writer, config, about, dtype, gguf)
        _write_vocabulary(writer, vocabulary, about, file)
        with progress(f"writing {target}, MB", 4 * config.parameters / 1e6) as bar:
            for name, values in tensors:
                quantized = values.ndim == 2 and dtype != "f32"
                kind = gguf.GGMLQuantizationType[dtype.upper() if quantized else "F32"]
                data = gguf.quants.quantize(values, kind) if quantized else values
                writer.add_tensor(_name(name), data, raw_dtype=kind if quantized else None)
                bar.advance(values.nbytes / 1e6)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync(partial)
        partial.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}); give another path") from None
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def _check(config: DecoderConfig, source: Path, dtype: str) -> None:
    if config.rope.factor != 1.0:
        raise UserError(
            f"{source / 'config.json'}: rope_scaling has factor {config.rope.factor:g}, and llama.cpp's "
            "qwen3 graph has no frequency factors: it would compute other angles; train with "
            "model.rope.factor=1 to serve a model with llama.cpp"
        )
    widths = {
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_heads · head_dim": config.num_heads * config.head_dim,
    }  # fmt: skip
    for name, width in widths.items():
        if dtype == "q8_0" and width % _BLOCK:
            raise UserError(
                f"{source}: {name} {width} is not a multiple of {_BLOCK}: use --dtype=f16"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give a folder that soda convert to-hf wrote"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Pieces and merges of a byte-level BPE as llama.cpp stores them.

    Attributes:
      pieces: text of each id.
      kinds: `gguf.TokenType` of each id.
      merges: "LEFT RIGHT" in the order of their ranks.
      pre: llama.cpp's name of the pre-tokenizer.
    """

    pieces: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str


def _vocabulary(description: Mapping[str, Any], size: int, source: Path, kinds: Any) -> Vocabulary:
    """Returns the vocabulary of a tokenizer.json as llama.cpp stores byte-level BPE."""
    file, model = source / "tokenizer.json", description.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{file} is not a byte-level BPE, the only kind that is written to GGUF")
    pre = _pre_tokenizer(description, file) if model.get("merges") else "gpt-2"
    # llama.cpp looks up whole words first with this pre-tokenizer only.
    if bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
        raise UserError(f"{file}: ignore_merges is not that of llama.cpp's pre-tokenizer {pre}")
    normalizer = (description.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):  # llama.cpp ignores NFC; give it text in this form
        raise UserError(f"{file}: llama.cpp does not have the normalizer {normalizer}")
    pieces: list[str] = [""] * size
    types = [int(kinds.UNUSED)] * size
    for piece, number in model["vocab"].items():
        pieces[number], types[number] = piece, int(kinds.NORMAL)
    for token in description.get("added_tokens") or []:
        number, content = token["id"], token["content"]
        printed = not token["special"] or content in MARKERS
        pieces[number] = content
        types[number] = int(kinds.USER_DEFINED if printed else kinds.CONTROL)
        if content.startswith("<|unused_"):
            types[number] = int(kinds.UNUSED)
    if "" in pieces:
        raise UserError(f"{file} has no piece for id {pieces.index('')} of {size}")
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []
    ]
    return Vocabulary(pieces, types, merges, pre)


def _pre_tokenizer(description: Mapping[str, Any], file: Path) -> str:
    """Returns llama.cpp's name of the pre-tokenizer; raises UserError if it has none."""
    found = description.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    patterns = [s["pattern"].get("Regex") for s in steps if s.get("type") == "Split"]
    levels = [s for s in steps if s.get("type") == "ByteLevel"]
    if len(patterns) == 1 and patterns[0] in _SPLITS:
        return _SPLITS[patterns[0]]
    if not patterns and len(levels) == 1 == len(steps) and levels[0].get("use_regex", True):
        return "gpt-2"
    raise UserError(
        f"{file}: llama.cpp does not know this pre-tokenizer; the model works with Transformers and vLLM"
    )


def _name(theirs: str) -> str:
    """Returns llama.cpp's name of a tensor of Transformers."""
    if theirs in _TOP:
        return _TOP[theirs]
    _, _, layer, rest = theirs.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _token_id(about: Mapping[str, Any], name: str, file: Path) -> int:
    """Returns an id in config.json, which may be 0."""
    value = about.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{file}: {name} is {value!r}; it must be the id of a token")
    return value


def _write_settings(
    writer: Any, config: DecoderConfig, about: Mapping[str, Any], dtype: str, gguf: Any
) -> None:
    writer.add_name("SODA")
    writer.add_context_length(int(about.get("max_position_embeddings", 4096)))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_vocab_size(config.vocabulary.size)
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(int(gguf.LlamaFileType[kinds[dtype]]))


def _write_vocabulary(
    writer: Any, vocabulary: Vocabulary, about: Mapping[str, Any], file: Path
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.kinds)
    # llama.cpp refuses a BPE without merges, which a byte tokenizer is. This one joins the bytes 0 and 1 to a piece
    # that does not exist, and llama.cpp then takes the bytes.
    writer.add_token_merges(vocabulary.merges or ["\u0100 \u0101"])
    writer.add_bos_token_id(_token_id(about, "bos_token_id", file))
    writer.add_eos_token_id(_token_id(about, "eos_token_id", file))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
