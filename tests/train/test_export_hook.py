"""Exports while a run trains; a small function replaces the export."""

import json
import sys
import types

import numpy as np
import pytest
from process_toys import environment_of_two
from run_toys import Watcher, stored_state, terminate
from toys import run_two

from soda_jax import cli
from soda_jax.convert.hook import ExportHook
from soda_jax.errors import UserError
from soda_jax.train import loop
from soda_jax.train.loop import DONE, PREEMPTED, train


class Export:
    """Replaces `soda_jax.convert.to_hf.export`: writes one layer and some rows as npz."""

    def __init__(self, fail_at: int = 0):
        self.steps, self._fail_at = [], fail_at

    def __call__(self, weights, folder, *, step, metadata, workdir, dtype, write):
        self.steps.append(step)
        arrays = weights.layer(weights.config.num_layers - 1) | {"rows": weights.read("head", 0, 9)}
        if not write:
            return
        if step == self._fail_at:
            raise UserError(f"{folder}: cannot be written (No space left on device)")
        folder.mkdir(parents=True)
        np.savez(folder / "arrays.npz", **arrays)
        about = {**metadata, "dtype": dtype, "workdir": str(workdir)}
        (folder / "about.json").write_text(json.dumps(about))


def exports(workdir) -> list[str]:
    return sorted(path.name for path in (workdir / "exports").iterdir())


def test_a_run_exports_what_its_checkpoints_hold(config, tmp_path):
    assert train(config(), tmp_path, hooks=[ExportHook(4, "bfloat16", Export())]) == DONE
    assert exports(tmp_path) == ["step-4", "step-6"]  # and after the last step
    for step in (4, 6):
        folder = tmp_path / "exports" / f"step-{step}"
        stored, metadata = stored_state(tmp_path, step)
        arrays = np.load(folder / "arrays.npz")
        np.testing.assert_array_equal(arrays["gate"], stored["params.layers.gate"][-1])
        np.testing.assert_array_equal(arrays["rows"], stored["params.head_first"][:9])
        about = json.loads((folder / "about.json").read_text())
        assert (about.pop("dtype"), about.pop("workdir")) == ("bfloat16", str(tmp_path))
        assert about == {k: v for k, v in metadata.items() if k != "format_version"}


def test_a_resumed_run_leaves_finished_exports(config, tmp_path):
    asked = config(checkpoint__every_steps=0)
    assert train(asked, tmp_path, hooks=[Watcher(at=1, action=terminate)]) == PREEMPTED
    (tmp_path / "exports" / "step-2").mkdir(parents=True)
    export = Export()
    assert train(asked, tmp_path, hooks=[ExportHook(2, "float32", export)]) == DONE
    assert export.steps == [4, 6] and exports(tmp_path) == ["step-2", "step-4", "step-6"]
    assert not list((tmp_path / "exports" / "step-2").iterdir())


def test_an_export_that_fails_ends_the_run(config, tmp_path):
    with pytest.raises(UserError) as error:
        train(config(), tmp_path, hooks=[ExportHook(2, "float32", Export(fail_at=4))])
    assert str(error.value).startswith(f"{tmp_path / 'exports' / 'step-4'}: cannot be written (")
    assert exports(tmp_path) == ["step-2"]


def test_an_unknown_dtype_is_refused():
    with pytest.raises(
        UserError, match=r"export.dtype = 'fp16' is unknown: use float32 or bfloat16"
    ):
        ExportHook(2, "fp16", Export())


TWO = """
import sys
from pathlib import Path
port, number, datasets, workdir = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import jax
from test_export_hook import Export
from train_toys import tiny_config
from soda_jax.convert.hook import ExportHook
from soda_jax.train.loop import train

config = tiny_config(Path(datasets), checkpoint__every_steps=1)
with jax.default_matmul_precision("highest"):
    train(config, workdir, hooks=[ExportHook(1, "float32", Export(fail_at=2))])
"""


def test_two_processes_export_together_and_end_together_with_one_line(datasets, tmp_path):
    codes, printed = run_two(
        TWO, str(datasets), str(tmp_path), environment=environment_of_two(), timeout=180
    )
    assert codes == [2, 2], printed
    for text in printed:
        lines = [line for line in text.splitlines() if "cannot be written" in line]
        assert len(lines) == 1 and "step-2" in lines[0] and "Traceback" not in text, text
    assert exports(tmp_path) == ["step-1"]
    stored, _ = stored_state(tmp_path, 1)
    arrays = np.load(tmp_path / "exports" / "step-1" / "arrays.npz")
    np.testing.assert_array_equal(arrays["gate"], stored["params.layers.gate"][-1])


def test_soda_train_plugs_it_in_when_asked(config, tmp_path, monkeypatch):
    stand_in = types.ModuleType("soda_jax.convert.to_hf")
    stand_in.export = Export()
    monkeypatch.setitem(sys.modules, "soda_jax.convert.to_hf", stand_in)
    hooks = []
    monkeypatch.setattr(loop, "train", lambda *_, **settings: hooks.append(settings["hooks"]) or 0)
    command = ["train", "--config=demo", f"--workdir={tmp_path}"]
    for option, every in (([], []), (["--config.export.every_steps=7"], [7])):
        assert cli.main([*command, *option]) == 0
        found = [hook.every for hook in hooks.pop() if isinstance(hook, ExportHook)]
        assert found == every
