"""The experiments hold the numbers of the paper; misspelt keys are refused with the nearest name."""

import importlib

import pytest

from soda_jax import cli
from soda_jax.commands._config import load_config
from soda_jax.configs import base
from soda_jax.errors import UserError

SUITE = {
    "soda_135m": 0.004243,  # with the width 1024, as the paper's code
    "soda_600m": 0.004243,
    "soda_1_7b": 0.0030,
    "soda_4b": 0.002683,
}


def get(name):
    return importlib.import_module(f"soda_jax.configs.{name}").get_config()


@pytest.mark.parametrize("name", SUITE)
def test_the_suite_follows_the_training_table_of_the_paper(name):
    config = get(name)
    assert config.optimizer.peak_lr == pytest.approx(SUITE[name], abs=5e-7)
    assert (config.batch_size, config.data.sequence_length) == (512, 4096)
    assert round(config.steps * config.batch_size * 4096 / 1e9) == 500
    o = config.optimizer
    assert (o.beta1, o.beta2, o.eps, o.weight_decay) == (0.98, 0.98, 1e-16, 0.033)
    assert (o.schedule, o.warmup_fraction, o.decay_fraction) == ("wsd", 0.10, 0.20)
    assert (o.cautious, o.max_grad_norm, o.z_loss) == (True, 1.0, 1e-4)
    rope = config.model.rope
    assert (rope.theta, rope.factor, rope.low_freq_factor, rope.high_freq_factor) == (
        500_000.0,
        8.0,
        1.0,
        4.0,
    )
    assert rope.original_max_position == 8192 and config.model.rms_norm_eps == 1e-5
    assert config.model.compute_dtype == "bfloat16" and not config.model.tie_embeddings


def test_the_mixture_of_the_suite_has_the_weights_of_the_paper():
    sources = get("soda_4b").data.sources
    weights = {name: round(source.weight, 4) for name, source in sources.items()}
    expected = {"yodas2": 0.5164, "emilia_yodas": 0.2878, "emilia": 0.1459, "nemotron": 0.05}
    assert weights == pytest.approx(expected, abs=1e-4)
    assert sum(source.weight for source in sources.values()) == pytest.approx(1.0)
    shown = {name: (s.order, s.composition) for name, s in sources.items()}
    assert shown.pop("nemotron") == ("text_first", "text")
    assert set(shown.values()) == {("both", "S+A+T")}


def test_overrides_reach_any_depth_and_keep_the_type():
    config = load_config(
        "demo",
        [
            "--config.model.num_layers=6",
            "--config.data.sources.speech.weight=2",
            "--config.steps=7",
        ],
    )
    assert (config.model.num_layers, config.steps) == (6, 7)
    assert config.data.sources.speech.weight == 2.0
    assert get("demo").model.num_layers != 6


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--config.optimizer.paek=1", "no key optimizer.paek; did you mean peak_lr?"),
        ("--config.modle.num_layers=1", "no key modle.num_layers; did you mean model?"),
        ("--config.model.num_layers.x=1", "no key model.num_layers.x"),
        ("--config.data.sources.spech.weight=1", "did you mean speech?"),
        ("--config.steps=many", "many"),
        ("--steps=7", "unknown option --steps=7; overrides are spelled --config.key=value"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_nearest_key(capsys, tmp_path, override, told):
    arguments = ["train", "--config=demo", f"--workdir={tmp_path / 'run'}", override]
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("soda train: error: ") and told in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    config.optimizer.peak_rl = 1.0", 'Did you mean "peak_lr"'),
        ("    config.model.update(layer=3)", "layer"),
        ("    config.stepss = 3", "stepss"),
        ("    config.steps = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_misspelt_key_in_a_config_file_is_refused(tmp_path, body, told):
    file = tmp_path / "mine.py"
    lines = [
        "from soda_jax.configs import base",
        "def get_config():",
        "    config = base.default()",
    ]
    file.write_text("\n".join([*lines, body, "    return config"]))
    with pytest.raises(UserError) as error:
        load_config(str(file), [])
    assert str(error.value).startswith(f"{file} is not a config file") and told in str(error.value)


def test_a_missing_config_names_the_installed_ones():
    with pytest.raises(UserError, match=r"no config file soda_9b; .* demo, .*soda_135m"):
        load_config("soda_9b", [])
    assert load_config("configs/soda_4b.py", []).model.hidden_size == 2560


def test_the_base_refuses_new_keys_but_takes_new_sources():
    config = base.default()
    with pytest.raises(AttributeError, match="learning"):
        config.learning_rate = 1.0
    with config.data.unlocked():
        config.data.sources["mine"] = base.source("data/mine", 1.0)
    assert config.data.sources.mine.path == "data/mine"


@pytest.mark.parametrize("file", ["elsewhere/configs/demo.py", "demo.txt", "configs/demo.py:fast"])
def test_a_missing_file_is_not_taken_for_an_installed_experiment(file):
    with pytest.raises(UserError, match="no config file"):
        load_config(file, [])


def test_overrides_may_be_spelled_as_absl_spells_flags():
    words = ["--config.steps", "7", "--noconfig.log.tensorboard", "--config.optimizer.peak_lr=0.5"]
    config = load_config("demo", words)
    assert (config.steps, config.log.tensorboard, config.optimizer.peak_lr) == (7, False, 0.5)
