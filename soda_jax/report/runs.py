"""Reads the files of runs for a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.files import is_url
from soda_jax.model.config import DecoderConfig, VocabularyBlocks
from soda_jax.report.results import read_results
from soda_jax.report.rows import Results
from soda_jax.schema import ModelConfig, parse
from soda_jax.train.metric_logs import FILE, STARTS, read_metrics

EVALUATION, DURING, SAMPLES = "evaluation.json", "evaluations", "samples"


@dataclasses.dataclass(frozen=True, eq=False)
class ReportedRun:
    """What a report shows of a run.

    Attributes:
      label: name of the folder, with as many parent folders as distinguish it from the other runs.
      path: the folder of the run, or the JSON file.
      results: the evaluation, else the last one during training; None if there is none.
      during: evaluations during training, in the order of their steps.
      rows: rows of `metrics.jsonl`, numbers only.
      parameters: the number of parameters, as text; "" if it is not known.
      samples: the folder with samples; None if there is none.
      missing: (what is missing, command that makes it).
    """

    label: str
    path: Path
    results: Results | None = None
    during: tuple[Results, ...] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    parameters: str = ""
    samples: Path | None = None
    missing: tuple[tuple[str, str], ...] = ()


def read_runs(paths: Sequence[str]) -> list[ReportedRun]:
    """Reads runs.

    Args:
      paths: folders of runs, of which `evaluation.json`, `evaluations/*.json`, `metrics.jsonl`, `starts.jsonl`
        and `samples/` are used if they exist; or JSON files of `soda evaluate`.

    Raises:
      UserError: if there are none, one is missing or given twice, or a file is damaged.
    """
    if not paths:
        raise UserError("no RUN is given: name the folders of runs, or JSON files of soda evaluate")
    found = [Path(path) for path in paths]
    for path, name in zip(found, paths, strict=True):
        if is_url(name):
            raise UserError(f"{name} is a URL: copy {EVALUATION} and {FILE} of the run to a folder")
        if not path.exists():
            raise UserError(f"{name} does not exist: give the folder of a run or a JSON file")
    return [
        _read_folder(label, path) if path.is_dir() else _read_file(label, path)
        for label, path in zip(labels(found), found, strict=True)
    ]


def labels(paths: Sequence[Path]) -> list[str]:
    """Returns a short label of each path that differs from the others: its last parts.

    The label of a file ends with its name without `.json`, except for `evaluation.json`, which is labeled like its
    folder.

    Raises:
      UserError: if a path is given twice.
    """
    found: list[tuple[tuple[str, ...], int]] = []
    for path in paths:
        whole = path.resolve()
        if path.is_dir() or path.name == EVALUATION:
            found.append(((whole if path.is_dir() else whole.parent).parts, 1))
        else:
            found.append((whole.with_suffix("").parts, 2))
        if found[-1] in found[:-1]:
            raise UserError(f"{path} is given twice, or with the folder that contains it")

    def label(parts: tuple[str, ...], shortest: int) -> str:
        others = [other for other, _ in found if other != parts]
        for length in range(shortest, len(parts)):
            if all(parts[-length:] != other[-length:] for other in others):
                return "/".join(parts[-length:])
        return str(Path(*parts))

    return [label(parts, shortest) for parts, shortest in found]


def _read_file(label: str, path: Path) -> ReportedRun:
    results = read_results(path)
    return ReportedRun(label, path, results, parameters=_parameters([], results))


def _read_folder(label: str, folder: Path) -> ReportedRun:
    metrics, evaluation = folder / FILE, folder / EVALUATION
    during = sorted((folder / DURING).glob("*.json"))
    samples = folder / SAMPLES if (folder / SAMPLES / "results.jsonl").is_file() else None
    if not (metrics.is_file() or evaluation.is_file() or during or samples):
        raise UserError(
            f"{folder} has no {FILE} and no {EVALUATION}: give the workdir of a run, or the JSON file "
            "of soda evaluate"
        )
    earlier = sorted((read_results(path) for path in during), key=lambda results: results.step)
    results = read_results(evaluation) if evaluation.is_file() else None
    rows = _rows(metrics)
    missing = []
    if results is None:
        shown = f"; the evaluation at step {earlier[-1].step:,} is shown" if earlier else ""
        missing.append((f"no {EVALUATION}{shown}", f"soda evaluate --workdir={folder}"))
        results = earlier[-1] if earlier else None
    if not rows:
        missing.append((f"no {FILE}, so no curves", f"soda train --config=… --workdir={folder}"))
    return ReportedRun(
        *(label, folder, results, tuple(earlier), rows),
        parameters=_parameters(_rows(folder / STARTS), results),
        samples=samples,
        missing=tuple(missing),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """Returns the numbers in the rows of a JSONL file; a cut last line is skipped."""
    try:
        rows = read_metrics(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged, remove it or restore it: {error}") from None
    kept = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}: row {number} has no step: remove the file or restore it")
        kept.append(
            {
                key: value
                for key, value in row.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
        )
    return kept


def _parameters(starts: Sequence[Mapping[str, Any]], results: Results | None) -> str:
    """Returns the number of parameters as text: as logged, or without the vocabulary from the config."""
    if starts and "parameters" in starts[-1]:
        return _millions(starts[-1]["parameters"])
    config = results.settings.get("config") if results else None
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), Mapping):
        return ""
    try:
        model = parse(ModelConfig, config["model"], "model")
    except UserError:  # the config of another version
        return ""
    shape = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    decoder = DecoderConfig(**shape, vocabulary=VocabularyBlocks(0, ()))
    return f"{_millions(decoder.non_embedding_parameters)} without the vocabulary"


def _millions(count: float) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
