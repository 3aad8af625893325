"""A run trains and exports, the export is converted back, and a second run starts from it."""

import convert_toys as toys
import numpy as np
import pytest
from test_round_trip import same, weights_of

from soda_jax.convert.from_hf import from_huggingface
from soda_jax.convert.hook import ExportHook
from soda_jax.errors import UserError
from soda_jax.train.loop import DONE, train


def test_a_run_starts_from_a_converted_export(tmp_path):
    data = toys.write_data(tmp_path / "data")
    run, work = tmp_path / "run", tmp_path / "work"
    assert train(toys.tiny(data), run, hooks=[ExportHook(2, "float32")]) == DONE
    exported = run / "exports" / "step-2"
    assert "loss" in (exported / "README.md").read_text()
    from_huggingface(exported, work)
    same(weights_of(run)[0], weights_of(work)[0])

    with pytest.raises(UserError, match="no optimizer state") as refused:
        train(toys.tiny(data, steps=4), work)
    assert f"--config.start_from={work}" in str(refused.value)

    again = toys.tiny(data, steps=1, start_from=str(work))
    again.optimizer.peak_lr = 1e-20
    again.optimizer.weight_decay = 0.0
    assert train(again, tmp_path / "second") == DONE
    # The learning rate is too small to change a parameter.
    first, second = weights_of(work)[0], weights_of(tmp_path / "second")[0]
    for name, values in first.layer(1).items():
        np.testing.assert_array_equal(values, second.layer(1)[name])
