"""The whole job: settings → plan → shards → index, manifest and quarantine.

tokenize(Options(input="corpus/manifest.jsonl", output="data/speech", codec="mel:codec"))
"""

import contextlib
import fcntl
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from soda_jax.data.manifest import Manifest, check_compatible
from soda_jax.data.shards import index_path, read_index
from soda_jax.errors import UserError
from soda_jax.progress import Progress, progress
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.merge import NOTHING, Summary, give_up, merge
from tokenize_pipeline.options import Options, find_data_root, find_inputs, plan_settings
from tokenize_pipeline.plan import SPLITS, Plan, ShardPlan, plan_folder
from tokenize_pipeline.planner import describe_inputs, make_plan, speech_weight, text_weight
from tokenize_pipeline.readers import Reader, find_reader
from tokenize_pipeline.results import forget, has_result, is_finished, read_progress
from tokenize_pipeline.sweep import remove_shards, shard_number, sweep
from tokenize_pipeline.worker import Job, load_codec_once

_WATCH_SECONDS = 0.5


def tokenize(options: Options) -> Summary:
    """Makes or continues a data set; see `Summary` for what is returned.

    A job that was stopped goes on where it was: the plan is kept and finished shards are skipped.

    Raises:
      UserError: for wrong settings or inputs, settings other than those of an unfinished job, or
        more bad utterances than `max_bad_fraction` allows (finished shards stay).
    """
    inputs = find_inputs(options.input)
    reader = find_reader(options.format)
    dataset = Path(options.output)
    _check_folder(dataset)
    if options.beam_options or options.runner != Options.runner:
        _beam().check_options(options.runner, options.beam_options)
    generation = _generation(dataset, options.append)
    if options.tokenizer is None and options.append:
        tokenizer = load_tokenizer(dataset / "tokenizer")
    else:
        tokenizer = load_tokenizer(options.tokenizer or "bytes")
    before = _before(options, reader, tokenizer, dataset, generation)
    root = find_data_root(options, reader, inputs)
    dataset.mkdir(parents=True, exist_ok=True)
    with _only_job(dataset):
        if generation and (same := _finished_append(options, before, inputs, root, dataset)):
            return Summary(before, "was finished already", same.counts)
        plan = _plan(options, reader, inputs, root, dataset, generation, before)
        if newest_generation(dataset) >= generation:
            return Summary(Manifest.load(dataset, generation), "was finished already", plan.counts)
        if generation and not plan.shards:
            give_up(plan_folder(dataset, generation))
            return Summary(before, NOTHING, plan.counts)
        if not generation:
            tokenizer.save(dataset / "tokenizer")
            if options.codec:
                # A model trained on this data can speak without a look for the codec.
                load_codec_once(options.codec).save(dataset / "codec")
        job = Job(
            str(dataset.absolute()),
            generation,
            plan.digest,
            options.codec if reader.KIND == "speech" else None,
            before.layout.codebook_sizes,
            str(root),
            options.max_audio_seconds,
        )
        _run(job, plan, options)
        sweep(dataset)  # again, for what workers of a killed job began since the first time
        return merge(dataset, plan, before, options.max_bad_fraction)


def newest_generation(dataset: Path) -> int:
    """Generation of a data set, -1 if none is finished."""
    return Manifest.load(dataset).generation if (dataset / "manifest.json").exists() else -1


def _check_folder(dataset: Path) -> None:
    if dataset.exists() and not dataset.is_dir():
        raise UserError(f"--output={dataset} is a file: name a folder")
    ours = (dataset / "plan").is_dir() or (dataset / "manifests").is_dir()
    if dataset.is_dir() and any(dataset.iterdir()) and not ours:
        raise UserError(f"--output={dataset} holds other files: name a new or empty folder")


def _generation(dataset: Path, append: bool) -> int:
    if not append:
        return 0
    newest = newest_generation(dataset)
    if newest < 0:
        raise UserError(f"--append needs a finished data set: {dataset} has no manifest")
    return newest + 1


def _before(
    options: Options, reader: Reader, tokenizer: TextTokenizer, dataset: Path, generation: int
) -> Manifest:
    """The data set without this generation: the newest manifest, or an empty one."""
    if reader.KIND == "speech" and not options.codec:
        raise UserError(
            f"--format={options.format} is speech: give a codec, as in --codec=mel:DIR or mimi:DIR"
        )
    codec = load_codec_once(options.codec) if options.codec else None
    layout = make_layout(tokenizer, codec.codebook_sizes if codec else ())
    described = None
    if codec and reader.KIND == "speech":
        described = {
            "name": codec.name,
            "fingerprint": codec.fingerprint,
            "sample_rate": codec.sample_rate,
            "frame_rate": codec.frame_rate,
            "samples_per_frame": codec.samples_per_frame,
        }
    empty = Manifest(reader.KIND, layout, described, tokenizer.fingerprint, {})
    if not generation:
        return empty
    newest = Manifest.load(dataset)
    if newest.kind != empty.kind:
        raise UserError(
            f"{dataset} is a {newest.kind} data set, --format={options.format} is {empty.kind}: "
            "give another --output"
        )
    if newest.tokenizer_fingerprint != empty.tokenizer_fingerprint:
        raise UserError(
            f"{dataset} was made with text tokenizer {newest.tokenizer_fingerprint}, --tokenizer is "
            f"{empty.tokenizer_fingerprint}: leave --tokenizer out to use the data set's own"
        )
    wanted = codec.fingerprint if codec else None
    check_compatible(newest, layout, wanted, name=str(dataset), other="--codec")
    return newest


@contextlib.contextmanager
def _only_job(dataset: Path) -> Iterator[None]:
    """Keeps a second job away from the folder; the lock dies with the process, however it ends."""
    handle = os.open(dataset, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another job is writing to {dataset}: wait for its end") from None
        yield
    finally:
        os.close(handle)


def _finished_append(
    options: Options, newest: Manifest, inputs: Sequence[Path], root: Path, dataset: Path
) -> Plan | None:
    """The plan of the newest generation if it was this very append, else None.

    Whoever cannot see whether a job had ended (it was killed, say, after its last rename) gives the
    command again. Planned anew, that would try again the documents that were bad the first time.
    """
    folder = plan_folder(dataset, newest.generation)
    if not newest.generation or not (folder / "plan.json").exists():
        return None
    try:
        plan = Plan.load(folder)
    except UserError:  # damaged, or of another version: the data set does not need it any more
        return None
    settings = plan_settings(options, newest, inputs, root, newest.generation)
    settings["after"] = plan.settings.get("after")
    same = plan.settings == settings and plan.digest == newest.settings_digest
    return plan if same and plan.inputs == describe_inputs(inputs) else None


def _plan(
    options: Options,
    reader: Reader,
    inputs: Sequence[Path],
    root: Path,
    dataset: Path,
    generation: int,
    before: Manifest,
) -> Plan:
    """The plan of this generation: the one that is there if it is the same, else a new one."""
    settings = plan_settings(options, before, inputs, root, generation)
    folder = plan_folder(dataset, generation)
    sweep(dataset)
    if (folder / "plan.json").exists():
        plan = Plan.load(folder)
        plan.check_same(settings, describe_inputs(inputs), folder)
        return plan
    if newest_generation(dataset) >= generation:
        raise UserError(f"{dataset} is finished already: give another --output, or --append")
    first_numbers = {split: _first_number(before, split) for split in SPLITS}
    remove_shards(dataset, first_numbers)
    plan = make_plan(
        folder,
        generation,
        reader,
        inputs,
        settings,
        weigh=speech_weight(root) if reader.KIND == "speech" else text_weight,
        known=_known_documents(dataset, before),
        first_numbers=first_numbers,
    )
    if not generation and not plan.shards and not plan.counts["rejected_rows"]:
        give_up(folder)
        raise UserError(f"--input={options.input} holds no document")
    return plan


def _first_number(before: Manifest, split: str) -> int:
    numbers = [shard_number(info.file) for info in before.splits.get(split, ())]
    return max(numbers, default=-1) + 1


def _known_documents(dataset: Path, before: Manifest) -> set[int]:
    known: set[int] = set()
    for split, shards in before.splits.items():
        for info in shards:
            index = read_index(index_path(dataset / split / info.file), info.index_crc32c)
            known.update(index.document_hashes.tolist())
    return known


def _run(job: Job, plan: Plan, options: Options) -> None:
    """Works on the shards that are not finished yet."""
    dataset, folder = Path(job.dataset), plan_folder(Path(job.dataset), job.generation)
    pending = []
    for shard in plan.shards:
        if not is_finished(dataset, folder, plan, shard):
            forget(folder, shard)
            pending.append(shard)
    if not pending:
        return
    run_graph = _beam().run_graph
    unit = "seconds of audio" if plan.settings["kind"] == "speech" else "bytes of text"
    total = sum(round(shard.weight) for shard in plan.shards)
    start = total - sum(round(shard.weight) for shard in pending)
    with (
        progress(f"tokenizing, {unit}", total, start=start) as bar,
        _watch(_looker(folder, pending, bar)),
    ):
        run_graph(job, pending, options.runner, options.beam_options)


def _beam() -> ModuleType:
    # Beam takes seconds to import, and warns of cloud libraries that no local job needs.
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("tokenize_pipeline.beam_graph")
    finally:
        logging.disable(logging.NOTSET)


def _looker(folder: Path, pending: Sequence[ShardPlan], bar: Progress) -> Callable[[], None]:
    """Returns a function that advances `bar` by what the workers have noted since its last call."""
    waiting = list(pending)
    counted = dict.fromkeys((shard.name for shard in pending), 0)

    def look() -> None:
        advanced = 0
        for shard in list(waiting):
            finished = has_result(folder, shard)
            if finished:
                waiting.remove(shard)
            part = 1.0 if finished else read_progress(folder, shard)
            # A shard that another worker began anew does not move the bar back.
            now = max(round(part * round(shard.weight)), counted[shard.name])
            advanced += now - counted[shard.name]
            counted[shard.name] = now
        bar.advance(advanced, f"{len(pending) - len(waiting)} of {len(pending)} shards")

    return look


@contextlib.contextmanager
def _watch(look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` now and then from a thread, and once more at the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_WATCH_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
