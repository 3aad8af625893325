import argparse

import numpy as np
import pytest

from soda_jax.codecs.audio import write_wav
from soda_jax.commands import generate
from soda_jax.errors import UserError
from soda_jax.generate import speech_model


def run(*arguments):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.run(parser.parse_args(arguments))


@pytest.fixture
def loaded(model, monkeypatch):
    """Replaces the model that the command loads; returns the list of its load calls."""
    calls = []
    monkeypatch.setattr(
        speech_model, "load", lambda workdir, **options: calls.append((workdir, options)) or model
    )
    monkeypatch.setattr("soda_jax.train.program.use_compilation_cache", lambda: None)
    return calls


def test_speak_writes_a_sound_file(loaded, tmp_path, capsys):
    out = tmp_path / "out.wav"
    options = ["--max_seconds=1", "--seed=3", "--temperature=1", "--top_k=4", f"--output={out}"]
    model = ["--workdir=RUN", "--codec=mel:X", "--dtype=int8", "--mesh=data=2,tensor=4"]
    assert run(*model, "speak", "one", *options) == 0
    assert loaded == [
        ("RUN", {"step": None, "codec": "mel:X", "dtype": "int8", "mesh": {"data": 2, "tensor": 4}})
    ]
    assert out.stat().st_size > 44
    assert "out.wav" in capsys.readouterr().out


def test_options_of_the_model_may_follow_the_action(loaded, tmp_path, capsys):
    write_wav(tmp_path / "a.wav", np.sin(np.arange(300) / 9), 1_000)
    clip = str(tmp_path / "a.wav")
    assert run("transcribe", clip, clip, "--workdir=RUN", "--step=7", "--max_tokens=12") == 0
    assert loaded == [("RUN", {"step": 7, "codec": "", "dtype": "", "mesh": None})]
    assert len(capsys.readouterr().out.strip().split(f"{clip}: ")) == 3


def test_an_unknown_dtype_is_refused_before_the_model_is_loaded(loaded, tmp_path):
    with pytest.raises(UserError, match="dtype 'int4' is unknown: use one of float32, bfloat16"):
        run("--workdir=RUN", "--dtype=int4", "transcribe", str(tmp_path / "a.wav"))
    assert not loaded


@pytest.mark.parametrize("mesh", ["data", "data=0", "fsdp=2", "data=2;tensor=2", "data=2,data=4"])
def test_a_malformed_mesh_is_refused(loaded, tmp_path, mesh):
    with pytest.raises(UserError, match=f"--mesh={mesh}: write data=N,tensor=N"):
        run("--workdir=RUN", f"--mesh={mesh}", "transcribe", str(tmp_path / "a.wav"))
    assert not loaded


def test_transcribe_reads_a_flac_of_unknown_length(loaded, tmp_path, capsys):
    import soundfile

    path = tmp_path / "a.flac"
    soundfile.write(path, 0.5 * np.sin(np.arange(3_000) / 9), 1_000)
    assert run("transcribe", str(path), "--workdir=RUN", "--max_tokens=12") == 0
    known = path.read_bytes()
    path.write_bytes(known[:21] + bytes([known[21] & 0xF0]) + bytes(20) + known[42:])
    assert run("transcribe", str(path), "--workdir=RUN", "--max_tokens=12") == 0
    printed = capsys.readouterr()
    one, two = printed.out.splitlines()
    assert one == two
    assert printed.err.count("a.flac: cut at --max_tokens=12") == 2  # the weights are random


def test_continue_can_write_the_clip_before_its_continuation(loaded, tmp_path):
    import soundfile

    write_wav(tmp_path / "a.wav", np.sin(np.arange(300) / 9), 1_000)
    arguments = ["--workdir=RUN", "continue", str(tmp_path / "a.wav"), "--max_seconds=0.5"]
    out = tmp_path / "out.wav"
    run(*arguments, f"--output={out}", "--with_prompt")
    assert 300 <= soundfile.info(out).frames <= 800


def test_speech_is_streamed_to_a_file_and_to_a_pipe(loaded, tmp_path, capsysbinary):
    import soundfile

    one, two = tmp_path / "one.wav", tmp_path / "two.wav"
    arguments = ["--workdir=RUN", "speak", "one. two.", "--max_seconds=1", "--piece_characters=5"]
    assert run(*arguments, f"--output={one}", "--stream") == 0
    assert "first audio after" in capsysbinary.readouterr().err.decode()
    assert run(*arguments, f"--output={two}") == 0
    capsysbinary.readouterr()
    assert run(*arguments, "--output=-") == 0
    piped = np.frombuffer(capsysbinary.readouterr().out, "<i2") / 32767
    streamed, whole = soundfile.read(one)[0], soundfile.read(two)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.wav", "two.wav"]
    np.testing.assert_allclose(streamed, piped, atol=1e-4)
    np.testing.assert_allclose(streamed, whole, atol=1e-3)


def test_a_stream_that_fails_leaves_no_file(loaded, tmp_path):
    with pytest.raises(UserError, match="the text to speak is empty"):
        run("--workdir=RUN", "speak", " ", f"--output={tmp_path / 'a.wav'}", "--stream")
    assert not list(tmp_path.iterdir())


def test_a_long_recording_is_printed_with_the_times_of_its_segments(loaded, tmp_path, capsys):
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(np.arange(1500) / 9), 1_000)
    options = ["--max_tokens=12", "--segment_seconds=1"]
    assert run("--workdir=RUN", "transcribe", str(tmp_path / "a.wav"), *options) == 0
    lines = capsys.readouterr().out.split("\n")
    assert any(line.startswith("      0.00 to") for line in lines)
    assert any(" to     1.50 s" in line for line in lines)


def test_files_that_cannot_be_transcribed_are_named_after_the_others(loaded, tmp_path, capsys):
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(np.arange(300) / 9), 1_000)
    clips = [str(tmp_path / "a.wav"), str(tmp_path / "no.wav")]
    assert run("--workdir=RUN", "transcribe", *clips, "--max_tokens=8") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{clips[0]}: ")
    assert f"{clips[1]}: there is no such file" in printed.err
    assert "1 of 2 files failed" in printed.err
    with pytest.raises(UserError, match=r"no\.wav: there is no such file"):
        run("--workdir=RUN", "transcribe", clips[1])


def test_text_is_continued(loaded, capsys):
    assert run("--workdir=RUN", "text", "two", "--max_tokens=5", "--temperature=0") == 0
    assert capsys.readouterr().out.startswith("two")


def test_what_the_grammar_changes_is_reported(loaded, tmp_path, capsys):
    out = f"--output={tmp_path / 'a.wav'}"
    with pytest.raises(UserError, match="the generated audio is empty"):  # the weights are random
        run("--workdir=RUN", "speak", "two", "--max_seconds=1", "--unconstrained", out)
    assert "without the grammar 0% legal" in capsys.readouterr().err


def test_a_batch_counts_failed_items_and_exits_with_1(loaded, tmp_path, capsys):
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(np.arange(300) / 9), 1_000)
    rows = tmp_path / "rows.tsv"
    rows.write_text("name\taudio\none\ta.wav\ntwo\tno.wav\n")
    arguments = [f"--input={rows}", f"--output={tmp_path / 'out'}", "--max_tokens=8"]
    assert run("--workdir=RUN", "batch", "--task=transcribe", *arguments) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 items, 0 ended by the model, 0.3 s of audio" in printed
    assert "failed: two: " in printed and "there is no such file" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speak", "one", "--output=-", "--best_of=2", "--workdir=R"], "--stream cannot be used"),
        (["transcribe", "a.wav", "--best_of=2", "--workdir=R"], "candidates that differ"),
        (["speak", "a", "--output=a.wav", "--best_of=0", "--workdir=R"], "best_of 0"),
        (["speak", "a", "--output=a.wav", "--pause_seconds=-1", "--workdir=R"], "pause_seconds"),
        (["speak", "a", "--output=a.wav", "--examples=no.tsv", "--workdir=R"], "no.tsv cannot be"),
        (
            ["batch", "--task=sing", "--input=a.tsv", "--output=o", "--workdir=R"],
            "'sing' is not a registered",
        ),
        (["batch", "--task=text", "--input=a.csv", "--output=o", "--workdir=R"], "a.csv is not a"),
        (
            [
                "--workdir=R",
                "batch",
                "--task=text",
                "--input=a.tsv",
                "--output=o",
                "--voice=a.wav",
                "--voice_text=x",
            ],
            "takes no voice",
        ),
        (
            [
                "--workdir=R",
                "batch",
                "--task=text",
                "--input=a.tsv",
                "--output=o",
                "--examples=e.tsv",
            ],
            "takes no examples",
        ),
        (["speak", "one", "--output=x.wav"], "--workdir"),
        (["--workdir=R", "speak", "one", "--output=."], "--output=. cannot be written"),
        (["--workdir=R", "speak", "one", "--output=x.wav", "--voice=a.wav"], "--voice_text"),
        (["--workdir=R", "speak", "one", "--output=x.wav", "--max_seconds=0"], "max_seconds"),
        (["--workdir=R", "speak", "one", "--output=x.wav", "--top_p=0"], "top_p"),
        (["--workdir=R", "transcribe", "a.wav", "--max_tokens=0"], "max_tokens"),
        (["--workdir=R", "transcribe", "a.wav", "--seed=-1"], "--seed"),
        (["--workdir=R", "transcribe", "a.wav", f"--seed={2**32}"], "--seed"),
        (["--workdir=R", "transcribe", "a.wav", "--temperature=inf"], "temperature must be"),
        (["--workdir=R", "transcribe", "a.wav", "--temperature=nan"], "temperature must be"),
        (["--workdir=R", "transcribe", "a.wav", "--temperature=1e-39"], "temperature must be"),
        (["--workdir=R", "speak", "one", "--output=x.wav", "--temperature=1e30"], "must be"),
        (["--workdir=R", "speak", "one", "--output=x.wav", "--top_k=-1"], "top_k must be"),
        (["--workdir=R", "speak", "one", "--output=x.wav", "--max_seconds=inf"], "max_seconds"),
        (["--workdir=R", "speak", "one", "--output=x.wav", "--max_seconds=nan"], "max_seconds"),
    ],
)
def test_bad_options_are_rejected_before_the_model_is_loaded(arguments, message, loaded):
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert not loaded
