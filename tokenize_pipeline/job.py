"""Runs a whole job: settings → plan → shards → quarantine and manifest.

Example:

    tokenize(TokenizeOptions(input="corpus.jsonl", output="data/speech", codec="mel:codec"))
"""

import contextlib
import dataclasses
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, folder_sums
from soda_jax.progress import Progress, progress
from tokenize_pipeline.encoding import load_codec_once
from tokenize_pipeline.merge import NOTHING, Summary, merge
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import Plan, ShardPlan, plan_folder, remove_plan
from tokenize_pipeline.planner import describe_inputs
from tokenize_pipeline.process_pool import run_shards
from tokenize_pipeline.results import (
    has_result,
    is_finished,
    read_progress,
    remove_result,
    remove_shards,
    sweep,
)
from tokenize_pipeline.settings import (
    Job,
    import_beam,
    load_text_tokenizer,
    newest_generation,
    read_job,
)

_UPDATE_SECONDS = 0.5


def tokenize(options: TokenizeOptions) -> Summary:
    """Creates a data set, appends to it, or resumes a stopped job.

    A resumed job skips finished shards.

    Raises:
      UserError: for invalid settings or inputs, settings that differ from those of an unfinished
        job, a worker process that died, no usable input, or a share of bad inputs above
        `max_bad_fraction` (finished shards are kept).
    """
    job = read_job(options)
    dataset, generation, before = job.dataset, job.generation, job.before
    dataset.mkdir(parents=True, exist_ok=True)
    with _lock(dataset):
        if generation and (same := _finished_append(job)):
            return Summary(before, "was finished already", same.counts)
        plan = _plan(job)
        if newest_generation(dataset) >= generation:
            return Summary(Manifest.load(dataset, generation), "was finished already", plan.counts)
        if generation and not plan.shards:
            remove_plan(plan_folder(dataset, generation))
            return Summary(before, NOTHING, plan.counts)
        if not generation:
            load_text_tokenizer(options).save(dataset / "tokenizer")
            if options.codec:
                # Training copies the codec from this folder.
                load_codec_once(options.codec).save(dataset / "codec")
            before = dataclasses.replace(before, front_end_files=folder_sums(dataset, *FRONT_END))
        _run(job, plan)
        sweep(dataset)  # again, because workers of a killed job may have written after `_plan`
        return merge(dataset, plan, before, options.max_bad_fraction)


@contextlib.contextmanager
def _lock(dataset: Path) -> Iterator[None]:
    """Prevents a second job on the folder. The kernel releases the lock of a killed process."""
    handle = os.open(dataset, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another job is writing to {dataset}: wait until it ends") from None
        yield
    finally:
        os.close(handle)


def _finished_append(job: Job) -> Plan | None:
    """Returns the plan of the newest generation if this same append wrote it, else None.

    A user may repeat an append that was killed after it wrote the manifest. A new plan would then
    retry the documents that were bad the first time.
    """
    newest = job.before
    if not newest.generation:
        return None
    try:
        plan = Plan.load(plan_folder(job.dataset, newest.generation))
    except UserError:  # a finished data set needs no plan; it may be removed or damaged
        return None
    settings = {**job.settings(newest.generation), "after": plan.settings.get("after")}
    same = plan.settings == settings and plan.digest == newest.settings_digest
    return plan if same and plan.inputs == describe_inputs(job.inputs) else None


def _plan(job: Job) -> Plan:
    """Returns the saved plan of this generation, or makes a plan if none is saved.

    Raises:
      UserError: if settings or inputs differ from those of the saved plan, or the data set is
        already finished.
    """
    dataset, generation = job.dataset, job.generation
    folder = plan_folder(dataset, generation)
    sweep(dataset)
    if (folder / "plan.json").exists():
        plan = Plan.load(folder)
        plan.check_same(job.settings(generation), describe_inputs(job.inputs), folder)
        return plan
    if newest_generation(dataset) >= generation:
        raise UserError(f"{dataset} is already finished: give another --output, or --append")
    remove_shards(dataset, job.first_numbers)
    return job.make_plan(folder)


def _run(job: Job, plan: Plan) -> None:
    """Tokenizes the shards of `plan` that are not finished yet; shows progress."""
    dataset, options = job.dataset, job.options
    folder = plan_folder(dataset, plan.generation)
    pending = [shard for shard in plan.shards if not is_finished(dataset, plan, shard)]
    for shard in pending:
        remove_result(folder, shard)
    if not pending:
        return
    unit = "seconds of audio" if plan.settings["kind"] == "speech" else "bytes of text"
    total = sum(round(shard.weight) for shard in plan.shards)
    start = total - sum(round(shard.weight) for shard in pending)
    workers_job = job.for_workers(plan, dataset)
    with (
        progress(f"tokenizing, {unit}", total, start=start) as bar,
        _call_repeatedly(_progress_reader(folder, pending, bar)),
    ):
        if options.runner:
            import_beam().run_graph(workers_job, pending, options.runner, options.beam_options)
        else:
            run_shards(workers_job, pending, options.workers)


def _progress_reader(
    folder: Path, pending: Sequence[ShardPlan], bar: Progress
) -> Callable[[], None]:
    """Returns a function that adds to `bar` the progress since its previous call."""
    waiting = list(pending)
    counted = dict.fromkeys((shard.name for shard in pending), 0)

    def update() -> None:
        before = sum(counted.values())
        for shard in list(waiting):
            part = read_progress(folder, shard)
            if has_result(folder, shard):
                waiting.remove(shard)
                part = 1.0
            # The progress of a shard is smaller after a restart; the bar must not move back.
            counted[shard.name] = max(round(part * round(shard.weight)), counted[shard.name])
        finished = f"{len(pending) - len(waiting)} of {len(pending)} shards"
        bar.advance(sum(counted.values()) - before, finished)

    return update


@contextlib.contextmanager
def _call_repeatedly(update: Callable[[], None]) -> Iterator[None]:
    """Calls `update` twice a second in a thread, and once more at the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_UPDATE_SECONDS):
            update()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        update()
