"""The benchmark table of the SODA paper, and the columns that our benchmarks correspond to."""

import dataclasses

SOURCE = "arXiv 2602.16687"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the paper's table.

    Attributes:
      name: its heading.
      task: the benchmark of `soda evaluate` that measures it.
      items: number of items of the whole benchmark.
      exact: False if `items` is only the smallest possible number.
      decimals: digits after the point. Rates and accuracies are in percent, SIM is a cosine.
    """

    name: str
    task: str
    items: int
    exact: bool = True
    decimals: int = 1


# Items: the pairs of the development sets of ZeroSpeech 2021 (arXiv 2011.11588), each spoken by one or more voices; eight
# tasks of SALMon with 200 pairs each (arXiv 2409.07437); the validation split of HellaSwag; LibriSpeech
# test-clean; the English part of Seed-TTS-eval.
COLUMNS = (
    Column("sBLIMP", "sblimp", 6_300, exact=False),
    Column("sWUGGY", "swuggy", 5_000, exact=False),
    Column("SALMon", "salmon", 1_600),
    Column("tBLIMP", "tblimp", 6_300, exact=False),
    Column("tWUGGY", "twuggy", 5_000, exact=False),
    Column("HellaSwag", "hellaswag", 10_042),
    Column("ASR WER", "librispeech", 2_620),
    Column("TTS WER", "seed_tts_eval", 1_088),
    Column("SIM", "seed_tts_eval", 1_088, decimals=3),
)

# One number per column.
ROWS = {
    "SODA-135M": (50.1, 56.3, 70.0, 67.4, 70.7, 28.7, 28.1, 11.2, 0.500),
    "SODA-600M": (51.2, 58.9, 70.1, 70.7, 73.1, 35.8, 10.2, 7.6, 0.555),
    "SODA-1.7B": (51.4, 60.6, 70.6, 70.3, 74.7, 44.5, 7.0, 6.9, 0.560),
    "SODA-4B": (52.4, 61.8, 70.4, 71.3, 74.8, 52.6, 5.0, 6.1, 0.560),
}
