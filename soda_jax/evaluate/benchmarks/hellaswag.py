"""HellaSwag: which of four endings continues a text? (arXiv 1905.07830)

    DIR/hellaswag_val.jsonl     ctx_a, ctx_b, activity_label, endings, label and others, one object per line

(https://github.com/rowanz/hellaswag). Texts are cleaned as in lm-evaluation-harness, whose `acc_norm` this
is: the prompt is "ACTIVITY: CTX_A Ctx_b", each ending follows a space, and its log-probability is divided by
its number of characters. The stream is `BOS text`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks._pairs import file_in, or_reason, read_lines, score
from soda_jax.evaluate.choices import ALL, Choice, Entry, Item
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.likelihood import ScoredSequence
from soda_jax.evaluate.tables import choice_lines


@evaluator("hellaswag", needs_data=True, lines=choice_lines)
def score_hellaswag(context: EvaluationContext) -> dict[str, Any]:
    """Returns the share of items whose right ending is the most likely one per character."""
    layout = context.model.layout

    def item(entry: Entry) -> Item:
        prompt, endings, label = entry.content
        if not prompt or not all(endings):
            raise UserError("the prompt or an ending is empty")
        before = context.tokenizer.encode(prompt.rstrip())
        choices = []
        for ending in endings:
            whole = context.tokenizer.encode(f"{prompt} {ending}")
            ids = np.concatenate([[layout.bos], whole]).astype(np.int32)
            sequence = ScoredSequence(ids, 1 + len(before), len(ids))
            choices.append(Choice(sequence, len(ending)))
        if any(choice.sequence.first >= choice.sequence.last for choice in choices):
            raise UserError("an ending has no token of its own")
        return Item(tuple(choices), label)

    def build(block: Sequence[Entry]) -> list[Item | str]:
        return [or_reason(item, entry) for entry in block]

    entries = read_hellaswag(context.data_folder("hellaswag"))
    scores = score(context, "hellaswag", entries, build, (ALL,))
    return scores | {"scorer": "log-probability per character (acc_norm)"}


def read_hellaswag(folder: Path) -> list[Entry]:
    """Returns the items; the content is (prompt, endings, index of the right one)."""
    path = file_in(folder, "hellaswag_val.jsonl", "validation.jsonl")
    entries = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
            prompt = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
            endings, label = [clean(ending) for ending in row["endings"]], int(row["label"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}:{number} is not an item of HellaSwag: {what}") from None
        if not 0 <= label < len(endings):
            raise UserError(f"{path}:{number}: label {label} is not one of {len(endings)} endings")
        name = f"{number}/{row.get('ind', '')}"
        entries.append(Entry(name, name, "", (prompt, endings, label)))
    return entries


def clean(text: str) -> str:
    """Returns a text without the marks of WikiHow, as lm-evaluation-harness cleans it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
