"""The document grammar beside an export, so that Transformers generates legal documents too.

`grammar.json` holds the tables of `soda_jax.tokens.grammar`, for every number of codebooks up to that
of the layout; `soda_grammar.py` (in `exported/`, never imported here) reads them and needs nothing of
this package.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.tokens.grammar import ILLEGAL, grammar
from soda_jax.tokens.vocabulary import VocabularyLayout

FORMAT_VERSION = 1
TABLES, PROCESSOR = "grammar.json", "soda_grammar.py"


def grammar_files(layout: VocabularyLayout) -> dict[str, str]:
    """Contents of `grammar.json` and `soda_grammar.py` by file name."""
    source = Path(__file__).parent / "exported" / PROCESSOR
    return {
        TABLES: json.dumps(grammar_tables(layout)) + "\n",
        PROCESSOR: source.read_text("utf-8"),
    }


def grammar_tables(layout: VocabularyLayout) -> dict[str, Any]:
    """The grammar of a layout as a JSON object.

    Its keys: `vocabulary`, the number of ids; `padding`, the id that fills rows (EOS); `eos`;
    `group_names`; `group_runs`, [first id, last id, group] and so on through the vocabulary; `automata`
    by the number of codebooks shown, each with `transitions` (rows are states, columns groups; −1: not
    legal), `frame_boundary`, `start` and `end` as in `soda_jax.tokens.grammar.Grammar`.
    """
    shown = range(1, layout.codebooks + 1) if layout.codebooks else (0,)
    automata = {}
    for codebooks in shown:
        rules = grammar(layout, codebooks)
        automata[str(codebooks)] = {
            "transitions": rules.transitions.tolist(),
            "frame_boundary": rules.frame_boundary.tolist(),
            "start": rules.start,
            "end": rules.end,
        }
    return {
        "format_version": FORMAT_VERSION,
        "vocabulary": layout.size,
        "padding": layout.eos,
        "eos": layout.eos,
        "illegal": ILLEGAL,
        "group_names": list(rules.group_names),
        "group_runs": _runs(rules.group_of_id),
        "automata": automata,
    }


def _runs(groups: np.ndarray) -> list[list[int]]:
    """[first id, last id, group] of each run of equal groups."""
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))
    lasts = np.append(firsts[1:], len(groups)) - 1
    return np.stack([firsts, lasts, groups[firsts]], axis=1).tolist()
