"""The model card of an export. What a run has no file of is said to be unknown."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from soda_jax.convert.card_facts import CardFacts, Losses, Source
from soda_jax.convert.tokenizer_files import FIRST_CHARACTER

_FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- soda
- audio
- speech
- text-to-speech
- automatic-speech-recognition
- qwen3
---"""
_UNKNOWN = "not known"
_MET_IN_TEXT = {
    0xFE0F: "U+FE0F behind an emoji",
    0xFF0C: "the full-width comma U+FF0C",
    0xFFFD: "U+FFFD in place of damaged characters",
}


def model_card(facts: CardFacts) -> str:
    """README.md of an export: front matter for the hub, then Markdown. No licence is claimed."""
    return "\n\n".join(_paragraphs(facts)) + "\n"


def _paragraphs(facts: CardFacts) -> Iterator[str]:
    yield _FRONT
    yield f"# {_text(facts.name)}"
    yield (
        "An audio language model of the SODA family: a decoder that reads and writes interleaved text, "
        "semantic and acoustic tokens. The architecture is Qwen3's."
    )
    yield _table(("", ""), _overview(facts))
    yield "## Use"
    yield from _use(facts)
    yield "## Voices"
    yield (
        "The model continues a voice that it is given. Use the voice of a person only with their "
        "consent, tell listeners that the speech is synthetic, and do not use it to impersonate anyone."
    )
    yield "## Licence"
    yield "The licence of the weights is for whoever publishes them to choose and to state here."
    yield "## Training data"
    yield from _data(facts)
    yield "## Contamination"
    yield from _contamination(facts)
    yield "## Loss"
    yield "Nats a token, by the class of the target."
    yield from _losses("Validation split", facts.validation)
    yield from _losses("Training batch", facts.training)
    yield "## Training config"
    yield (
        _table(("key", "value"), ((f"`{key}`", value) for key, value in facts.config.items()))
        if facts.config
        else f"The config is {_UNKNOWN}."
    )


def _overview(facts: CardFacts) -> Iterator[tuple[str, object]]:
    layout = facts.layout
    yield "step", f"{facts.step:,}"
    yield "parameters", f"{facts.parameters:,}"
    yield "weights", facts.dtype
    length = facts.config.get("data.sequence_length")
    seen = facts.windows * length if facts.windows is not None and length else None
    yield "tokens seen in training", _UNKNOWN if seen is None else f"{seen:,}"
    sizes = " · ".join(map(str, layout.codebook_sizes)) or "none"
    yield "vocabulary", f"{layout.size:,} ids: {layout.text_size:,} of text, codebooks {sizes}"
    yield "tokenizer", facts.tokenizer_fingerprint or _UNKNOWN
    yield "codec", facts.codec_fingerprint or _UNKNOWN
    if facts.origin:
        yield "started from", facts.origin
    yield "data digest", facts.data_digest or _UNKNOWN
    yield "code", f"soda_jax {facts.code_version}" if facts.code_version else _UNKNOWN


def _use(facts: CardFacts) -> Iterator[str]:
    layout, shown = facts.layout, facts.layout.codebooks
    starts = [int(first) - layout.audio_base for first in layout.codebook_offsets]
    prompt = f"{facts.bos}<|text_start|>Hello there.<|text_end|><|audio_start|>"
    speaks = f'''```python
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies
sys.path.insert(0, folder)
from soda_grammar import SodaGrammar

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = "{prompt}"
inputs = tokenizer(prompt, return_tensors="pt")
ids = model.generate(
    **inputs,
    logits_processor=[SodaGrammar.from_pretrained(folder, max_frames=180)],
    eos_token_id=tokenizer.convert_tokens_to_ids("<|audio_end|>"),
    pad_token_id=tokenizer.pad_token_id,
    do_sample=True,
    temperature=0.9,
    top_p=0.8,
    max_new_tokens={180 * shown + 1},
)

spoken = tokenizer.decode(ids[0]).split("<|audio_start|>")[-1].split("<|audio_end|>")[0]
starts = {starts}  # of the codebooks
numbers = [ord(character) - 0xE000 for character in spoken]
codes = [  # [frames, codebooks], for the decoder of the codec
    [number - start for number, start in zip(numbers[at:], starts)]
    for at in range(0, len(numbers), {shown})
]
```'''
    if shown:
        yield speaks
    else:
        yield f"The model has no audio ids: a prompt is `{facts.bos}` and text."
    yield (
        f"Prompts are whole: nothing is added to a text by itself, `{facts.bos}` included, and no space or "
        "line break stands between the parts. `soda_grammar.py` lets `generate` pick legal tokens only: "
        "codebooks in their order, spans that close, whole frames. Without it long generations may slip."
    )
    if not shown:
        return
    last = FIRST_CHARACTER + layout.size - layout.audio_base - 1
    met = [name for character, name in _MET_IN_TEXT.items() if character <= last]
    where = (
        f"Real text has some of these: {', '.join(met)}."
        if met
        else ("These are of Unicode's private use area, which real text seldom has.")
    )
    yield (
        f"Each audio id is written as one character, U+{FIRST_CHARACTER:X}–U+{last:X}. {where} This "
        "tokenizer makes audio of them wherever they stand: remove them from text before you put it into "
        "a prompt."
        + (
            " soda_jax, which trained it, encodes text without this fault."
            if facts.code_version
            else ""
        )
    )


def _data(facts: CardFacts) -> Iterator[str]:
    yield (
        f"Data digest: `{facts.data_digest}`."
        if facts.data_digest
        else (f"The digest of the data is {_UNKNOWN}.")
    )
    if not facts.sources:
        yield f"The sources are {_UNKNOWN}."
        return
    yield _table(
        ("source", "weight", "view", "tokens", "documents denied"), map(_source, facts.sources)
    )


def _source(source: Source) -> tuple[object, ...]:
    tokens = _UNKNOWN if source.tokens is None else f"{source.tokens:,}"
    denied = "none"
    if source.denied:
        count = source.excluded_documents
        denied = f"`{source.denied}`: {_UNKNOWN if count is None else f'{count:,}'}"
    return source.name, f"{source.weight:.4f}", source.view, tokens, denied


def _contamination(facts: CardFacts) -> Iterator[str]:
    if facts.contamination is None:
        yield (
            "No report: whether evaluation data stands in the training data is "
            f"{_UNKNOWN} (`soda inspect --contamination`)."
        )
    elif "\n" in facts.contamination:
        fence = "```" if "```" not in facts.contamination else "~~~~"
        yield f"{fence}\n{facts.contamination}\n{fence}"
    else:
        yield _text(facts.contamination)
    lists = [source for source in facts.sources if source.denied]
    if lists:
        named = ", ".join(f"`{source.denied}` ({_text(source.name)})" for source in lists)
        yield f"Documents left out of training stand in {named}."
    elif facts.sources:
        yield "No documents were left out of the training data."


def _losses(label: str, losses: Losses | None) -> Iterator[str]:
    if losses is None:
        yield f"{label}: {_UNKNOWN}."
        return
    columns: dict[str, Mapping[str, float]] = {"all sources": losses.values, **losses.sources}
    classes = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = (
        (name, *(f"{column[name]:.4f}" if name in column else "" for column in columns.values()))
        for name in classes
    )
    yield f"{label}, step {losses.step:,}:\n\n" + _table(("class", *columns), rows)


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    lines: list[Iterable[object]] = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(_text(cell) for cell in line) + " |" for line in lines)


def _text(value: Any) -> str:
    """One line of Markdown in which nothing ends a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
