"""The data that a run keeps, refuses and masks."""

import dataclasses
import shutil

import numpy as np
import pytest
from run_toys import rows_of
from train_toys import CODEC, LAYOUT, write_generation

from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.schema import run_config
from soda_jax.train import run_files
from soda_jax.train.loop import DONE, train
from soda_jax.train.start import FreshStart, Resume


def open_data(settings, metadata, allow_change):
    """The data of a run that is new (metadata None) or resumes a checkpoint."""
    start = FreshStart() if metadata is None else Resume(1, metadata, "checkpoints")
    return run_files.open_data(run_config(settings).data, start, allow_change)


def run_metadata(settings, dataset, windows, earlier=None):
    return run_files.run_metadata(run_config(settings), dataset, windows, earlier)


def test_invariant_1_a_running_job_keeps_its_data_when_some_is_appended(config, datasets, tmp_path):
    for name in ("speech", "text"):
        shutil.copytree(datasets / name, tmp_path / name)
    settings = config(
        data__sources__speech__path=str(tmp_path / "speech"),
        data__sources__text__path=str(tmp_path / "text"),
    )
    before = open_data(settings, None, False)
    metadata = run_metadata(settings, before, 0)
    write_generation(tmp_path / "speech", "speech", 7, 30)
    resumed = open_data(settings, metadata, False)
    assert resumed.digest == before.digest
    assert resumed.config.sources["speech"].generation == 0
    np.testing.assert_array_equal(
        resumed.batch(0, range(20)).tokens, before.batch(0, range(20)).tokens
    )
    fresh = open_data(settings, None, False)
    assert fresh.digest != before.digest and fresh.sources[0].windows > before.sources[0].windows
    # A source that names no generation at all follows the checkpoint as well.
    with settings.unlocked():
        del settings.data.sources.speech.generation
    assert open_data(settings, metadata, False).digest == before.digest


@pytest.mark.parametrize(
    "change",
    [
        {"data__sources__speech__weight": 2.0},
        {"data__seed": 1},
        {"data__sequence_length": 16},
        {"data__sources__speech__order": "text_first"},
    ],
)
def test_other_data_than_the_checkpoints_is_refused_unless_allowed(config, change):
    metadata = run_metadata(config(), open_data(config(), None, False), 0)
    with pytest.raises(
        UserError, match=r"the data differs from that of the checkpoint .*--allow_data_c"
    ):
        open_data(config(**change), metadata, False)
    assert open_data(config(**change), metadata, True).digest != metadata["data_digest"]


def another_front_end(datasets, folder, **fields):
    """A copy of the data sets whose manifests say something else; returns changes for a config."""
    changes = {}
    for name in ("speech", "text"):
        shutil.copytree(datasets / name, folder / name)
        manifest = Manifest.load(folder / name)
        shutil.rmtree(folder / name / "manifests")
        mine = {key: value for key, value in fields.items() if key != "codec" or manifest.codec}
        dataclasses.replace(manifest, **mine).save(folder / name)
        changes[f"data__sources__{name}__path"] = str(folder / name)
    return changes


@pytest.mark.parametrize(
    ("what", "fields", "ours", "theirs", "fix"),
    [
        ("codec", {"codec": {**CODEC, "fingerprint": "new"}}, "new", "toy", "tokenize the data ag"),
        ("tokenizer", {"tokenizer_fingerprint": "new"}, "new", "toy", "with soda retext"),
        (
            "vocabulary layout",
            {"layout": dataclasses.replace(LAYOUT, text_size=48)},
            "text_size 48",
            f"text_size {LAYOUT.text_size}",
            "tokenize the data again",
        ),
    ],
)
def test_data_of_another_front_end_is_refused_even_if_other_data_is_allowed(
    whole, config, datasets, tmp_path, what, fields, ours, theirs, fix
):
    workdir, _ = whole
    other = config(**another_front_end(datasets, tmp_path, **fields), steps=9)
    for allowed in (True, False):
        with pytest.raises(UserError) as error:
            train(other, workdir, allow_data_change=allowed)
        message = str(error.value)
        assert f"has the {what} {ours}," in message and "\n" not in message
        assert f"{workdir / 'checkpoints'} has {theirs};" in message and fix in message
        # A text data set has no codec to be blamed for.
        assert str(tmp_path / "speech") in message
        assert (str(tmp_path / "text") in message) == (what != "codec")
    assert len(rows_of(workdir)) == 6


def test_a_model_of_text_may_go_on_to_speech_and_back_and_keeps_its_codec(config):
    def text_alone():
        settings = config()
        with settings.unlocked():
            del settings.data.sources.speech
        return settings

    text = open_data(text_alone(), None, False)
    text_metadata = run_metadata(text_alone(), text, 0)
    assert text_metadata["codec_fingerprint"] is None
    both = open_data(config(), text_metadata, True)
    metadata = run_metadata(config(), both, 0, text_metadata)
    assert metadata["codec_fingerprint"] == "toy"
    again = open_data(text_alone(), metadata, True)
    assert run_metadata(text_alone(), again, 0, metadata)["codec_fingerprint"] == "toy"


def test_damaged_records_that_are_masked_are_counted_in_the_metrics(config, datasets, tmp_path):
    shutil.copytree(datasets / "text", tmp_path / "text")
    (tmp_path / "text" / "train" / "shard-00000.array_record").unlink()
    settings = config(
        data__sources__text__path=str(tmp_path / "text"), data__on_corrupt_record="mask", steps=2
    )
    assert train(settings, tmp_path / "run") == DONE
    counts = [row["masked_records"] for row in rows_of(tmp_path / "run")]
    assert 0 < counts[0] <= counts[1] <= 60 and "loss/text/text" not in rows_of(tmp_path / "run")[0]


def test_records_to_mask_can_be_named_on_the_command_line(config, tmp_path):
    (tmp_path / "m.txt").write_text("shard-00000.array_record 3\n")
    settings = config()
    settings.update_from_flattened_dict(
        {"data.sources.speech.mask_records": str(tmp_path / "m.txt")}
    )
    masked = open_data(settings, None, False)
    assert masked.summary()["speech"]["masked_records"] == 1
    assert masked.digest != open_data(config(), None, False).digest
