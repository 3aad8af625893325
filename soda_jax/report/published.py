"""The benchmark table of the SODA paper, and the columns that our benchmarks correspond to."""

import dataclasses

SOURCE = "arXiv 2602.16687"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the paper's table.

    Attributes:
      name: its heading.
      task: the benchmark of `soda evaluate` that measures it.
      items: number of items of the whole benchmark; 0 if its authors do not state one number.
      decimals: digits after the point. Rates and accuracies are in percent, SIM is a cosine.
      lower: whether a lower number is better.
    """

    name: str
    task: str
    items: int = 0
    decimals: int = 1
    lower: bool = False


# The sizes of the whole benchmarks: validation split of HellaSwag, LibriSpeech test-clean, English part of
# Seed-TTS-eval.
COLUMNS = (
    Column("sBLIMP", "sblimp"),
    Column("sWUGGY", "swuggy"),
    Column("SALMon", "salmon"),
    Column("tBLIMP", "tblimp"),
    Column("tWUGGY", "twuggy"),
    Column("HellaSwag", "hellaswag", 10_042),
    Column("ASR WER", "librispeech", 2_620, lower=True),
    Column("TTS WER", "seed_tts_eval", 1_088, lower=True),
    Column("SIM", "seed_tts_eval", 1_088, decimals=3),
)

# One number per column.
ROWS = {
    "SODA-135M": (50.1, 56.3, 70.0, 67.4, 70.7, 28.7, 28.1, 11.2, 0.500),
    "SODA-600M": (51.2, 58.9, 70.1, 70.7, 73.1, 35.8, 10.2, 7.6, 0.555),
    "SODA-1.7B": (51.4, 60.6, 70.6, 70.3, 74.7, 44.5, 7.0, 6.9, 0.560),
    "SODA-4B": (52.4, 61.8, 70.4, 71.3, 74.8, 52.6, 5.0, 6.1, 0.560),
}
