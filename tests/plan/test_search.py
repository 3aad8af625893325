"""`soda plan --search`: which candidates there are, which are compiled, and what is printed."""

import dataclasses
import json
import math

import pytest

from soda_jax.commands._config import load_config
from soda_jax.errors import UserError
from soda_jax.plan import run as plan
from soda_jax.plan.compiled import DoesNotFitError
from soda_jax.plan.search import candidates, search
from soda_jax.plan.topologies import parse_topology
from soda_jax.schema import run_config
from soda_jax.tokens.vocabulary import VocabularyLayout


def config_of(name, *overrides):
    return run_config(load_config(name, [f"--config.{one}" for one in overrides]))


def planner(config, topology="h100:8", slices=1):
    return plan.Planner(
        config, VocabularyLayout.soda(), parse_topology(topology, slices), None, True
    )


def rows_of(text):
    """Cells of the table's rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_search_prints_what_fits_best_first(capsys):
    assert search(planner(config_of("soda_1_7b")), 6, False) == 0
    out = capsys.readouterr().out
    assert "h100:8, 8 chips; 512 × 4,096 tokens a step" in out
    rows = rows_of(out)
    steps = [float(row[5].replace(",", "")) for row in rows]
    assert len(rows) > 1 and steps == sorted(steps)
    for mesh, micro, accumulate, *_ in rows:
        sizes = {name: int(size) for name, size in (one.split("=") for one in mesh.split(" × "))}
        windows, positions = (int(number.replace(",", "")) for number in micro.split(" × "))
        split = sizes.get("data", 1) * sizes.get("fsdp", 1)
        assert windows * int(accumulate) * split == 512
        assert positions * sizes.get("sequence", 1) == 4096


def test_candidates_keep_batch_and_model_divisible():
    config = config_of("soda_135m")
    found = list(candidates(config, parse_topology("v5p:2x2x1")))
    assert len(found) > 20
    for one in found:
        rows = one.mesh.dcn * one.mesh.data * one.mesh.fsdp
        assert rows * one.mesh.tensor * one.mesh.sequence == 4
        assert one.batch_size == 512 and one.batch_size % (rows * one.gradient_accumulation) == 0
    assert {one.mesh.sequence for one in found} == {1, 2, 4}
    assert {one.gradient_accumulation for one in found} >= {1, 2, 4, 8, 128}


def splits(*overrides, topology="v5p:4x4x4", slices=1):
    found = candidates(config_of("soda_1_7b", *overrides), parse_topology(topology, slices))
    return {one.mesh.sequence for one in found}


def test_splits_of_the_sequence_are_those_that_attention_takes():
    assert splits() == {1, 2, 4, 8}
    assert splits("mesh.sequence=16") == {1, 2, 4, 8, 16}  # the config's own; 256 positions each
    assert splits("mesh.sequence=64") == {1, 2, 4, 8}  # 64 positions, half a tile of splash
    assert splits("mesh.sequence=64", "model.attention=xla") == {1, 2, 4, 8, 64}
    assert splits("data.sequence_length=384") == {1}
    assert splits(topology="h100:8") == {1}  # triton takes whole sequences
    assert splits("model.attention=mosaic", topology="h100:8") == {1, 2, 4, 8}


def test_slices_stay_on_the_dcn_axis_and_the_configs_own_choices_are_tried():
    config = config_of("soda_135m", "batch_size=384", "gradient_accumulation=3", "mesh.fsdp=8")
    found = list(candidates(config, parse_topology("v5p:2x2x2", 2)))
    assert {one.mesh.dcn for one in found} == {2}
    assert {one.gradient_accumulation for one in found} >= {1, 2, 3, 4}
    # 64 columns a device are less than a tile: only as the config says so.
    assert 8 in {one.mesh.fsdp for one in found}
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=4))
    assert max(one.mesh.fsdp for one in candidates(config, parse_topology("v5p:2x2x2", 2))) == 4


def test_a_batch_that_no_mesh_splits_is_told_and_one_that_few_split_is_noted(capsys):
    with pytest.raises(
        UserError, match="batch_size 7 cannot be split over the 16 devices of h100:16"
    ):
        search(planner(config_of("soda_135m", "batch_size=7"), "h100:16"), 2, False)
    with pytest.raises(UserError, match="'flash' is not a registered"):  # not its consequence
        search(planner(config_of("soda_135m", "model.attention=flash")), 2, False)
    assert search(planner(config_of("soda_1_7b"), "v5p:8x8x16"), 2, True) == 0
    value = json.loads(capsys.readouterr().out)
    assert any("512 is not a multiple of 1024" in note for note in value["notes"])
    for one in value["plans"]:
        assert one["mesh"]["sequence"] * one["mesh"]["tensor"] >= 2


class Compiler(plan.Planner):
    """Stands for the compiler: knows what a remat really needs, as a multiple of the estimate."""

    def __init__(self, config, needs, topology="v5p:2x2x1"):
        super().__init__(config, VocabularyLayout.soda(), parse_topology(topology), None, True)
        self.needs, self.compiled = needs, []

    def make(self, config, estimate=False):
        outcome = super().make(config, estimate=True)
        if estimate:
            return outcome
        self.compiled.append(outcome)
        needed = outcome.memory.total * self.needs.get(config.model.remat, 1.0)
        if needed > self.topology.memory:
            raise DoesNotFitError("the step needs more than there is", needed)
        more = needed - outcome.memory.total
        memory = dataclasses.replace(outcome.memory, temporaries=outcome.memory.temporaries + more)
        return dataclasses.replace(outcome, memory=memory)


def kinds(outcomes):
    return [(tuple(one.mesh.items()), one.settings["remat"]) for one in outcomes]


def test_no_more_than_asked_is_compiled_and_each_mesh_and_remat_once_if_it_fits(capsys):
    compiler = Compiler(config_of("soda_135m"), {})
    assert search(compiler, 9, True) == 0
    value = json.loads(capsys.readouterr().out)
    assert len(compiler.compiled) == len(value["plans"]) == 9
    assert len(set(kinds(compiler.compiled))) == 9
    steps = [one["roofline_seconds"] for one in value["plans"]]
    assert steps == sorted(steps)
    # They are the best of all, which the estimate alone tells here.
    everything = [compiler.make(one, estimate=True) for one in
                  candidates(compiler.config, compiler.topology)]  # fmt: skip
    assert min(one.seconds for one in everything if one.fits) == min(steps)


def test_what_does_not_fit_is_tried_smaller_and_its_likes_are_passed_over(capsys):
    config = config_of("soda_135m")
    easy = Compiler(config, {})
    search(easy, 1, True)
    best = easy.compiled[0]
    remat, room = best.settings["remat"], easy.topology.memory
    off = 1.2 * room / best.memory.total  # the estimate of this remat is too low by this much
    compiler = Compiler(config, {remat: off})
    capsys.readouterr()
    assert search(compiler, 12, True) == 0
    value = json.loads(capsys.readouterr().out)
    # One is compiled to learn it; none of its likes in vain.
    assert len(value["does_not_fit"]) == 1
    again = [one for one in compiler.compiled if one.settings["remat"] == remat][1:]
    assert again and all(off * one.memory.total <= room for one in again)
    same = [one for one in compiler.compiled if kinds([one]) == kinds([best])]
    first, second = (math.prod(one.micro_batch) for one in same)
    assert second < first


def test_a_search_in_which_nothing_fits_ends_with_1_and_says_why(capsys):
    compiler = Compiler(config_of("soda_135m"), dict.fromkeys(("none", "dots", "full", "attention", "offload"), 1e3))  # fmt: skip
    assert search(compiler, 12, False) == 1
    out = capsys.readouterr().out
    assert out.count("does not fit: ") == 5 and "needs more than there is" in out
    # Not worth a compilation: the exit status is that of a step that does not fit, not of bad input.
    assert search(planner(config_of("soda_4b"), "v5e:1x1"), 2, False) == 1
    out = capsys.readouterr().out
    assert "no mesh and remat comes near the 15.75 GiB of a device; use more chips" in out
    assert "|" not in out
    assert search(planner(config_of("soda_4b"), "v5e:1x1"), 2, True) == 1
    assert json.loads(capsys.readouterr().out)["plans"] == []
