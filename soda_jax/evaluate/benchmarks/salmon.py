"""SALMon: does a model notice a change of speaker, emotion, background or room? (arXiv 2409.07437)

    DIR/PART/sample_NUMBER_….wav      two files for each number; the first by name is the right one

PART is one of eight tasks (https://github.com/slp-rl/salmon). Parts that DIR lacks are named in the result.
"""

import re
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks._pairs import score_audio
from soda_jax.evaluate.choices import Entry
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.tables import choice_lines

PARTS = (
    "bg_alignment",
    "bg_all_consistency",
    "bg_domain_consistency",
    "gender_consistency",
    "rir_consistency",
    "sentiment_alignment",
    "sentiment_consistency",
    "speaker_consistency",
)


@evaluator("salmon", needs_speech=True, needs_data=True, lines=choice_lines)
def score_salmon(context: EvaluationContext) -> dict[str, Any]:
    """Returns the share of pairs whose unchanged recording is more likely, see `score_choices`.

    The dict also has missing_parts.
    """
    folder = context.data_folder("salmon")
    present = [part for part in PARTS if (folder / part).is_dir()]
    if not present:
        raise UserError(f"{folder} has none of the folders {', '.join(PARTS)}")
    entries = [entry for part in present for entry in _part(folder / part)]
    scores = score_audio(context, "salmon", entries)
    return scores | {"missing_parts": [part for part in PARTS if part not in present]}


def _part(folder: Path) -> list[Entry]:
    samples: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*.wav")):
        matched = re.match(r"[^_]+_(\d+)(_|\.)", path.name)
        if matched is None:
            raise UserError(f"{path}: the name is not sample_NUMBER_….wav")
        samples.setdefault(int(matched[1]), []).append(path)
    for number, paths in samples.items():
        if len(paths) != 2:
            raise UserError(f"{folder}: sample {number} has {len(paths)} recordings, not 2")
    return [
        Entry(f"{folder.name}/{number}", f"{number}", folder.name, [str(path) for path in paths])
        for number, paths in sorted(samples.items())
    ]
