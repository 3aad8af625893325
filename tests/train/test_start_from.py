"""A run that begins with the parameters of another one, or of a converted model."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from process_toys import environment_of_two
from run_toys import Watcher, rows_of, stored_state, terminate
from test_data_of_a_run import another_front_end
from toys import run_two
from train_toys import leaves

from soda_jax.checkpoints import Checkpointer, CheckpointReader
from soda_jax.errors import UserError
from soda_jax.file_sums import folder_sums
from soda_jax.files import write_json
from soda_jax.schema import run_config
from soda_jax.train import loop
from soda_jax.train.loop import DONE, PREEMPTED, train
from soda_jax.train.run_files import open_data, run_metadata, write_run_files
from soda_jax.train.start import FreshStart, WarmStart, find_start


def start_of(config, workdir):
    """What a run without checkpoints begins from."""
    return find_start(run_config(config), workdir, CheckpointReader(workdir / "checkpoints"))


FRESH = {"optimizer__peak_lr": 5e-3, "data__seed": 5, "optimizer__warmup_fraction": 0.0, "seed": 9}


@pytest.fixture(scope="module")
def converted(whole, tmp_path_factory) -> Path:
    """A workdir as `soda convert from-hf` leaves it, with the parameters of `whole`."""
    folder = tmp_path_factory.mktemp("converted")
    found, metadata = stored_state(whole[0], 6)
    params: dict = {}
    for name, value in found.items():
        *path, last = name.split(".")
        if path[0] == "params":
            node = params
            for key in path[1:]:
                node = node.setdefault(key, {})
            node[last] = jax.device_put(value)
    kept = ("layout", "layout_fingerprint", "tokenizer_fingerprint", "codec_fingerprint")
    about = {name: metadata[name] for name in kept} | {
        "converted_from": {"name": "model"},
        "config": {"model": metadata["config"]["model"]},
    }
    with Checkpointer(folder / "checkpoints", every_steps=1) as checkpointer:
        assert checkpointer.maybe_save(1, {"params": params}, about)
    return folder


def state_before_the_first_step(monkeypatch) -> dict:
    """Filled with the state that the next run begins with, as numpy, and what it was made from."""
    seen: dict = {}
    make = loop.make_program

    def watching(*args, **options):
        program = make(*args, **options)
        begin, step = program.begin, program.step

        def begun(params):
            made = begin(params)
            seen["params given"] = params
            return made

        def stepped(state, batch):
            if "state" not in seen:
                seen["shardings"] = jax.tree.map(lambda leaf: leaf.sharding, state)
                seen["state"] = leaves(state)
            return step(state, batch)

        program.begin, program.step = begun, stepped
        seen["wanted shardings"] = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
        return program

    monkeypatch.setattr(loop, "make_program", watching)
    return seen


@pytest.mark.parametrize("mesh", [(4, 2, 1), (1, 4, 2)])
def test_invariant_7_a_run_on_any_mesh_takes_the_parameters_and_nothing_else(
    whole, config, tmp_path, monkeypatch, capsys, mesh
):
    data, fsdp, tensor = mesh
    seen = state_before_the_first_step(monkeypatch)
    origin = str(whole[0])
    asked = config(
        start_from=origin, **FRESH, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor
    )
    assert train(asked, tmp_path / "run") == DONE
    assert f"started from step 6 of {origin}\n" in capsys.readouterr().err
    wanted, _ = stored_state(whole[0], 6)
    begun = seen["state"]
    for name, value in begun.items():
        if name.startswith("params."):
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)
        else:
            assert not value.any(), name
    assert sum("layers.gate" in name for name in begun) == 3  # with both moments
    assert seen["shardings"] == seen["wanted shardings"]
    # Given away, so that the parameters do not exist twice.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(seen["params given"]))
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["learning_rate"] == pytest.approx(5e-3)
    _, metadata = stored_state(tmp_path / "run", 6)
    _, about_origin = stored_state(whole[0], 6)
    assert metadata["windows"] == 48 and metadata["data_digest"] != about_origin["data_digest"]
    assert metadata["started_from"] == {
        "path": origin,
        "step": 6,
        "data_digest": about_origin["data_digest"],
    }


def test_a_resumed_run_does_not_look_at_it_again_and_keeps_where_it_began(whole, config, tmp_path):
    origin, workdir = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(whole[0], origin)
    asked = config(start_from=str(origin), **FRESH)
    uninterrupted = tmp_path / "uninterrupted"
    assert train(asked, uninterrupted) == DONE
    assert train(asked, workdir, hooks=[Watcher(at=3, action=terminate)]) == PREEMPTED
    shutil.rmtree(origin)
    assert train(asked, workdir) == DONE
    found, about = stored_state(workdir, 6)
    wanted, about_wanted = stored_state(uninterrupted, 6)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert about == about_wanted and about["started_from"]["path"] == str(origin)
    with pytest.raises(UserError, match="no checkpoints in"):
        train(asked, tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_damaged_newest_checkpoint_is_passed_over_and_a_folder_of_checkpoints_will_do(
    whole, config, tmp_path, capsys
):
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "kept")
    (tmp_path / "kept" / "6" / "params" / "_METADATA").unlink()
    asked = config(start_from=str(tmp_path / "kept"))
    assert start_of(asked, tmp_path / "run").source_step == 4
    assert "checkpoint 6 skipped: params/_METADATA is missing" in capsys.readouterr().err
    asked.start_from_step = 6
    with pytest.raises(UserError, match="6: params/_METADATA is missing"):
        train(asked, tmp_path / "run")
    asked.start_from_step = 5
    with pytest.raises(UserError, match="5: there is no such checkpoint"):
        train(asked, tmp_path / "run")
    asked.start_from_step = 2
    assert start_of(asked, tmp_path / "run").earlier["started_from"]["step"] == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "mismatch", "fix"),
    [
        (
            {"model__rope__theta": 1e6},
            "model.rope.theta is 1000000.0 in the config and 100.0 in ",
            "--config.model.rope.theta=100.0",
        ),
        (
            {"model__num_layers": 3, "model__tie_embeddings": True},
            "model.tie_embeddings is True in the config and False in ",
            "--config.model.num_layers=2 --config.model.tie_embeddings=False",
        ),
        (
            {"model__rope__factor": 8.0},
            "model.rope.factor is 8.0 in the config and 1.0 in ",
            "--config.model.rope.factor=1.0",
        ),
        (
            {"model__rms_norm_eps": 1e-6},
            "model.rms_norm_eps is 1e-06 in the config and 1e-05 in ",
            "--config.model.rms_norm_eps=1e-05",
        ),
    ],
)
def test_another_model_is_refused_field_by_field_before_anything_is_written(
    whole, config, tmp_path, change, mismatch, fix
):
    asked = config(start_from=str(whole[0]), **change)
    with pytest.raises(UserError) as error:
        train(asked, tmp_path / "run")
    message = str(error.value)
    assert f"{mismatch}{whole[0] / 'checkpoints' / '6'}" in message and "\n" not in message
    assert message.endswith(f"; pass {fix}") and not (tmp_path / "run").exists()


def test_what_does_not_change_the_parameters_may_differ(whole, config, tmp_path):
    asked = config(
        start_from=str(whole[0]),
        model__remat="full",
        model__compute_dtype="bfloat16",
        model__rope__low_freq_factor=2.0,  # without scaling it says nothing
    )
    assert start_of(asked, tmp_path / "run").source_step == 6


def test_data_of_another_front_end_is_refused(whole, config, datasets, tmp_path):
    changes = another_front_end(datasets, tmp_path, tokenizer_fingerprint="new")
    with pytest.raises(UserError) as error:
        train(config(start_from=str(whole[0]), **changes), tmp_path / "run")
    message = str(error.value)
    assert "has the tokenizer new" in message and "has toy" in message
    assert message.endswith("with soda retext, or start from another checkpoint")
    assert not (tmp_path / "run").exists()


def test_a_speech_model_that_starts_on_text_keeps_its_codec(whole, config, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(whole[0], origin)
    (origin / "codec").mkdir()
    (origin / "codec" / "codec.json").write_text("{}")
    asked = config(start_from=str(origin))
    with asked.unlocked():
        del asked.data.sources.speech
    asked = run_config(asked)
    found = start_of(asked, tmp_path / "run")
    text = open_data(asked.data, FreshStart(), False)
    metadata = found._metadata
    sums = metadata["front_end"] | folder_sums(origin, "codec")
    start = WarmStart(found.path, found._reader, 6, {**metadata, "front_end": sums})
    start.check_data(text, False)
    kept = run_metadata(asked, text, 0, start.earlier)
    assert kept["codec_fingerprint"] == "toy" and text.front_end.codec is None
    write_run_files(asked, text, tmp_path / "run", start.earlier)
    assert (tmp_path / "run" / "codec" / "codec.json").is_file()
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()


def test_a_converted_model_is_started_from_and_never_resumed(whole, converted, config, tmp_path):
    before = sorted(converted.rglob("*"))
    with pytest.raises(UserError) as error:
        train(config(), converted)
    message = str(error.value)
    assert "no optimizer state (it was converted from model)" in message
    assert f"--config.start_from={converted} and another --workdir" in message
    assert "\n" not in message and sorted(converted.rglob("*")) == before

    assert train(config(start_from=str(converted)), tmp_path / "run") == DONE
    assert train(config(start_from=str(whole[0])), tmp_path / "other") == DONE
    (found, about), (wanted, _) = (stored_state(tmp_path / name, 6) for name in ("run", "other"))
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    started = about["started_from"]
    assert started == {"path": str(converted), "step": 1, "data_digest": None}


def test_an_export_is_neither_resumed_nor_started_from(config, tmp_path):
    export = tmp_path / "export"
    write_json(export / "config.json", {"architectures": ["Qwen3ForCausalLM"]})
    (export / "model.safetensors").write_bytes(b"")
    before = sorted(export.rglob("*"))
    for asked, workdir in ((config(), export), (config(start_from=str(export)), tmp_path / "run")):
        with pytest.raises(UserError, match="no optimizer state") as error:
            train(asked, workdir)
        assert f"soda convert from-hf {export} WORKDIR" in str(error.value)
    assert sorted(export.rglob("*")) == before and not (tmp_path / "run").exists()


TWO = """
import sys
from pathlib import Path
port, number, datasets, workdir, origin = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import jax
from train_toys import tiny_config
from soda_jax.train.loop import train

config = tiny_config(Path(datasets), start_from=origin, start_from_step=4)
with jax.default_matmul_precision("highest"):
    sys.exit(train(config, workdir))
"""


def test_invariant_7_two_processes_start_as_one_does(whole, config, datasets, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    arguments = (str(datasets), str(two), str(whole[0]))
    codes, printed = run_two(TWO, *arguments, environment=environment_of_two(), timeout=180)
    assert codes == [DONE] * 2, printed
    assert train(config(start_from=str(whole[0]), start_from_step=4), one) == DONE
    found = [row["loss/all"] for row in rows_of(two)]
    assert found == pytest.approx([row["loss/all"] for row in rows_of(one)], rel=2e-5)
    about = [json.dumps(stored_state(run, 6)[1]["started_from"]) for run in (one, two)]
    assert about[0] == about[1]
