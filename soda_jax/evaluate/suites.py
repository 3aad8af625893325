"""Named lists of tasks for `soda evaluate --suite`."""

LIKELIHOOD = ("sblimp", "swuggy", "salmon", "tblimp", "twuggy", "hellaswag")
SUITES: dict[str, tuple[str, ...]] = {
    "held_out": ("loss", "baselines", "asr", "tts"),
    "likelihood": LIKELIHOOD,
    "paper": ("nll", *LIKELIHOOD, "librispeech", "seed_tts_eval"),
}
