"""The whole job: settings → plan → shards → index, manifest and quarantine.

tokenize(Options(input="corpus/manifest.jsonl", output="data/speech", codec="mel:codec"))
"""

import contextlib
import dataclasses
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from soda_jax.data.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, folder_sums
from soda_jax.progress import Progress, progress
from tokenize_pipeline.local_workers import LocalWorkers, local_workers
from tokenize_pipeline.merge import NOTHING, Summary, give_up, merge
from tokenize_pipeline.options import Options
from tokenize_pipeline.plan import Plan, ShardPlan, plan_folder
from tokenize_pipeline.planner import describe_inputs
from tokenize_pipeline.request import Request, import_beam, newest_generation, read_request
from tokenize_pipeline.results import forget, has_result, is_finished, read_progress
from tokenize_pipeline.sweep import remove_shards, sweep
from tokenize_pipeline.worker import Job, load_codec_once

_WATCH_SECONDS = 0.5


def tokenize(options: Options) -> Summary:
    """Makes or continues a data set; see `Summary` for what is returned.

    A job that was stopped goes on where it was: the plan is kept and finished shards are skipped.

    Raises:
      UserError: for wrong settings or inputs, settings other than those of an unfinished job, or
        more bad utterances than `max_bad_fraction` allows (finished shards stay).
    """
    with local_workers(options.runner, options.beam_options) as workers:
        return _tokenize(options, workers)


def _tokenize(options: Options, workers: LocalWorkers | None) -> Summary:
    request = read_request(options)
    dataset, generation, before = request.dataset, request.generation, request.before
    dataset.mkdir(parents=True, exist_ok=True)
    with _only_job(dataset):
        if generation and (same := _finished_append(request)):
            return Summary(before, "was finished already", same.counts)
        plan = _plan(request)
        if newest_generation(dataset) >= generation:
            return Summary(Manifest.load(dataset, generation), "was finished already", plan.counts)
        if generation and not plan.shards:
            give_up(plan_folder(dataset, generation))
            return Summary(before, NOTHING, plan.counts)
        if not generation:
            request.tokenizer.save(dataset / "tokenizer")
            if options.codec:
                # A model trained on this data can speak without a look for the codec.
                load_codec_once(options.codec).save(dataset / "codec")
            before = dataclasses.replace(before, front_end=folder_sums(dataset, *FRONT_END))
        job = request.job(dataset, plan)
        _run(job, plan, options, workers)
        sweep(dataset)  # again, for what workers of a killed job began since the first time
        return merge(dataset, plan, before, options.max_bad_fraction)


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


def _finished_append(request: Request) -> Plan | None:
    """The plan of the newest generation if it was this very append, else None.

    Whoever cannot see whether a job had ended (it was killed, say, after its last rename) gives the
    command again. Planned anew, that would try again the documents that were bad the first time.
    """
    newest = request.before
    folder = plan_folder(request.dataset, newest.generation)
    if not newest.generation or not (folder / "plan.json").exists():
        return None
    try:
        plan = Plan.load(folder)
    except UserError:  # damaged, or of another version: the data set does not need it any more
        return None
    settings = request.settings(newest.generation)
    settings["after"] = plan.settings.get("after")
    same = plan.settings == settings and plan.digest == newest.settings_digest
    return plan if same and plan.inputs == describe_inputs(request.inputs) else None


def _plan(request: Request) -> Plan:
    """The plan of this generation: the one that is there if it is the same, else a new one."""
    dataset, generation = request.dataset, request.generation
    folder = plan_folder(dataset, generation)
    sweep(dataset)
    if (folder / "plan.json").exists():
        plan = Plan.load(folder)
        plan.check_same(request.settings(generation), describe_inputs(request.inputs), folder)
        return plan
    if newest_generation(dataset) >= generation:
        raise UserError(f"{dataset} is finished already: give another --output, or --append")
    remove_shards(dataset, request.first_numbers)
    plan = request.make_plan(folder)
    if not generation and not plan.shards and not plan.counts["rejected_rows"]:
        give_up(folder)
        raise UserError(f"--input={request.options.input} holds no document")
    return plan


def _run(job: Job, plan: Plan, options: Options, workers: LocalWorkers | None) -> None:
    """Works on the shards that are not finished yet."""
    dataset, folder = Path(job.dataset), plan_folder(Path(job.dataset), job.generation)
    pending = []
    for shard in plan.shards:
        if not is_finished(dataset, folder, plan, shard):
            forget(folder, shard)
            pending.append(shard)
    if not pending:
        return
    run_graph = import_beam().run_graph
    unit = "seconds of audio" if plan.settings["kind"] == "speech" else "bytes of text"
    total = sum(round(shard.weight) for shard in plan.shards)
    start = total - sum(round(shard.weight) for shard in pending)
    with (
        progress(f"tokenizing, {unit}", total, start=start) as bar,
        _watch(_looker(folder, pending, bar)),
    ):
        run_graph(job, pending, options.runner, options.beam_options, workers)


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
