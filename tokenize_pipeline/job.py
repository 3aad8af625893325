"""The whole job: settings → plan → shards → index, manifest and quarantine.

tokenize(TokenizeOptions(input="corpus/manifest.jsonl", output="data/speech", codec="mel:codec"))
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
from tokenize_pipeline.merge import NOTHING, Summary, merge
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import Plan, ShardPlan, plan_folder, remove_plan
from tokenize_pipeline.planner import describe_inputs
from tokenize_pipeline.process_pool import run_shards
from tokenize_pipeline.request import Request, import_beam, newest_generation, read_request
from tokenize_pipeline.results import has_result, is_finished, read_progress, remove_result
from tokenize_pipeline.sweep import remove_shards, sweep
from tokenize_pipeline.worker import Job, load_codec_once

_UPDATE_SECONDS = 0.5


def tokenize(options: TokenizeOptions) -> Summary:
    """Creates or continues a data set.

    A stopped job is resumed: the plan is kept and finished shards are skipped.

    Raises:
      UserError: for wrong settings or inputs, settings that differ from those of an unfinished job, a
        worker process that died, or more bad utterances than `max_bad_fraction` (finished shards stay).
    """
    request = read_request(options)
    dataset, generation, before = request.dataset, request.generation, request.before
    dataset.mkdir(parents=True, exist_ok=True)
    with _lock(dataset):
        if generation and (same := _finished_append(request)):
            return Summary(before, "was finished already", same.counts)
        plan = _plan(request)
        if newest_generation(dataset) >= generation:
            return Summary(Manifest.load(dataset, generation), "was finished already", plan.counts)
        if generation and not plan.shards:
            remove_plan(plan_folder(dataset, generation))
            return Summary(before, NOTHING, plan.counts)
        if not generation:
            request.tokenizer.save(dataset / "tokenizer")
            if options.codec:
                # A model trained on this data finds its codec here.
                load_codec_once(options.codec).save(dataset / "codec")
            before = dataclasses.replace(before, front_end_files=folder_sums(dataset, *FRONT_END))
        _run(request.job(dataset, plan), plan, options)
        sweep(dataset)  # again, for files that workers of a killed job began after the first sweep
        return merge(dataset, plan, before, options.max_bad_fraction)


@contextlib.contextmanager
def _lock(dataset: Path) -> Iterator[None]:
    """Prevents a second job on the folder. The lock ends with the process, even if it is killed."""
    handle = os.open(dataset, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another job is writing to {dataset}: wait until it ends") from None
        yield
    finally:
        os.close(handle)


def _finished_append(request: Request) -> Plan | None:
    """Returns the plan of the newest generation if it was this same append, else None.

    A user who cannot see whether a job ended (it may have been killed after its last rename) repeats
    the command. A new plan would then retry the documents that were bad the first time.
    """
    newest = request.before
    folder = plan_folder(request.dataset, newest.generation)
    if not newest.generation or not (folder / "plan.json").exists():
        return None
    try:
        plan = Plan.load(folder)
    except UserError:  # damaged or of another version; a finished data set does not need it
        return None
    settings = request.settings(newest.generation)
    settings["after"] = plan.settings.get("after")
    same = plan.settings == settings and plan.digest == newest.settings_digest
    return plan if same and plan.inputs == describe_inputs(request.inputs) else None


def _plan(request: Request) -> Plan:
    """Returns the plan of this generation: the saved one if it is the same, else a new one."""
    dataset, generation = request.dataset, request.generation
    folder = plan_folder(dataset, generation)
    sweep(dataset)
    if (folder / "plan.json").exists():
        plan = Plan.load(folder)
        plan.check_same(request.settings(generation), describe_inputs(request.inputs), folder)
        return plan
    if newest_generation(dataset) >= generation:
        raise UserError(f"{dataset} is already finished: give another --output, or --append")
    remove_shards(dataset, request.first_numbers)
    plan = request.make_plan(folder)
    if not generation and not plan.shards and not plan.counts["rejected_rows"]:
        remove_plan(folder)
        raise UserError(f"--input={request.options.input} contains no document")
    return plan


def _run(job: Job, plan: Plan, options: TokenizeOptions) -> None:
    """Tokenizes the shards that are not finished yet, and shows the progress."""
    dataset, folder = Path(job.dataset), plan_folder(Path(job.dataset), job.generation)
    pending = []
    for shard in plan.shards:
        if not is_finished(dataset, folder, plan, shard):
            remove_result(folder, shard)
            pending.append(shard)
    if not pending:
        return
    unit = "seconds of audio" if plan.settings["kind"] == "speech" else "bytes of text"
    total = sum(round(shard.weight) for shard in plan.shards)
    start = total - sum(round(shard.weight) for shard in pending)
    with (
        progress(f"tokenizing, {unit}", total, start=start) as bar,
        _call_repeatedly(_progress_reader(folder, pending, bar)),
    ):
        if options.runner:
            import_beam().run_graph(job, pending, options.runner, options.beam_options)
        else:
            run_shards(job, pending, options.workers)


def _progress_reader(
    folder: Path, pending: Sequence[ShardPlan], bar: Progress
) -> Callable[[], None]:
    """Returns a function that advances `bar` by the progress that workers wrote since its last call."""
    waiting = list(pending)
    counted = dict.fromkeys((shard.name for shard in pending), 0)

    def update() -> None:
        advanced = 0
        for shard in list(waiting):
            finished = has_result(folder, shard)
            if finished:
                waiting.remove(shard)
            part = 1.0 if finished else read_progress(folder, shard)
            # A shard that another worker restarted does not move the bar back.
            now = max(round(part * round(shard.weight)), counted[shard.name])
            advanced += now - counted[shard.name]
            counted[shard.name] = now
        bar.advance(advanced, f"{len(pending) - len(waiting)} of {len(pending)} shards")

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
