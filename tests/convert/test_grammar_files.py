"""The grammar of an export equals that of soda_jax.tokens; its processor needs no other file of soda."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import soda_jax.convert
from soda_jax.convert.grammar_files import grammar_files
from soda_jax.tokens.grammar import grammar
from soda_jax.tokens.vocabulary import VocabularyLayout

LAYOUTS = [
    VocabularyLayout.soda(),
    VocabularyLayout(10, (7, 8, 9), 8, 9, (3, 2)),
    VocabularyLayout(9, (0, 4, 8), 4, 0, (5,)),
    VocabularyLayout(3, (0, 1), 1, 0, ()),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.codebook_sizes}")
def test_the_tables_are_those_of_the_grammar_for_every_number_of_codebooks(layout):
    value = json.loads(grammar_files(layout)["grammar.json"])
    assert list(value["automata"]) == [str(k) for k in range(1, layout.codebooks + 1)] or ["0"]
    for codebooks, automaton in value["automata"].items():
        rules = grammar(layout, int(codebooks))
        np.testing.assert_array_equal(automaton["transitions"], rules.transitions)
        np.testing.assert_array_equal(automaton["frame_boundary"], rules.frame_boundary)
        assert (automaton["start"], automaton["end"]) == (rules.start, rules.end)
        assert value["group_names"] == list(rules.group_names)
        groups = np.full(value["vocabulary"], -1)
        for first, last, group in value["group_runs"]:
            assert (groups[first : last + 1] == -1).all()
            groups[first : last + 1] = group
        np.testing.assert_array_equal(groups, rules.group_of_id)
    assert value["vocabulary"] == layout.size and value["eos"] == value["padding"] == layout.eos


def test_the_processor_does_not_import_soda_jax():
    source = grammar_files(LAYOUTS[1])["soda_grammar.py"]
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    ours = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert ours <= {"torch", "transformers", "transformers.utils"}


def test_the_package_never_imports_the_processor():
    package = Path(soda_jax.convert.__file__).parents[1]
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert "soda_grammar" not in ast.unparse(node), file
