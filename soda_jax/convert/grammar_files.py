"""Adds the document grammar to an export, so that Transformers generates legal documents.

`grammar.json` contains the tables of `soda_jax.tokens.grammar`. `exported/soda_grammar.py` reads
these tables. It does not depend on soda_jax, and soda_jax does not import it.
"""

import json
from pathlib import Path

import numpy as np

from soda_jax.tokens.grammar import ILLEGAL, grammar
from soda_jax.tokens.vocabulary import VocabularyLayout

FORMAT_VERSION = 1
_TABLES, _PROCESSOR = "grammar.json", "soda_grammar.py"


def grammar_files(layout: VocabularyLayout) -> dict[str, str]:
    """Returns the contents of `grammar.json` and `soda_grammar.py` by file name.

    The keys of `grammar.json` are `format_version`; `vocabulary`, the number of ids; `padding`, the
    id of the padding token (EOS); `eos`; `illegal`, the value of an illegal transition;
    `group_names`; `group_runs`, a list of [first id, last id, group]; and `automata`. For each
    number of codebooks per frame, `automata` contains `transitions` [states, groups],
    `frame_boundary`, `start` and `end` of `soda_jax.tokens.grammar.Grammar`.
    """
    automata = {}
    for codebooks in range(1, layout.codebooks + 1) if layout.codebooks else (0,):
        rules = grammar(layout, codebooks)
        automata[str(codebooks)] = {
            "transitions": rules.transitions.tolist(),
            "frame_boundary": rules.frame_boundary.tolist(),
            "start": rules.start,
            "end": rules.end,
        }
    groups = rules.group_of_id
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))
    lasts = np.append(firsts[1:], len(groups)) - 1
    tables = {
        "format_version": FORMAT_VERSION,
        "vocabulary": layout.size,
        "padding": layout.eos,
        "eos": layout.eos,
        "illegal": ILLEGAL,
        "group_names": list(rules.group_names),
        "group_runs": np.stack([firsts, lasts, groups[firsts]], axis=1).tolist(),
        "automata": automata,
    }
    processor = Path(__file__).parent / "exported" / _PROCESSOR
    return {_TABLES: json.dumps(tables) + "\n", _PROCESSOR: processor.read_text("utf-8")}
