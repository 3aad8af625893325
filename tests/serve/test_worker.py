"""Requests of a server run together on one model, in order, and one fault does not end it."""

import queue
import threading

import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.generate.pipeline import Pipeline
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.generate.tasks import Request, Result, TaskOptions
from soda_jax.serve.worker import BusyError, Worker

CLIP = (np.sin(np.arange(450) / 5) * np.linspace(0.1, 0.9, 450)).astype(np.float32)
SHORT = TaskOptions(max_seconds=1.0, max_tokens=12)


@pytest.fixture
def worker(model):
    worker = Worker(model, slots=2, most_waiting=3)
    yield worker
    worker.close()


def test_results_equal_those_of_a_pipeline_whatever_runs_beside_them(model, worker):
    done = queue.Queue()
    jobs = [("speak", Request("1", "two")), ("transcribe", Request("2", audio=CLIP)),
            ("speak", Request("3", "six")), ("transcribe", Request("4", audio=CLIP[:300]))]  # fmt: skip
    for task, request in jobs:
        while True:
            try:
                worker.submit(
                    request, task, SHORT, lambda result, name=request.name: done.put((name, result)),
                    sampling=GREEDY,
                )  # fmt: skip
                break
            except BusyError:
                pass
    found = dict(done.get(timeout=120) for _ in jobs)
    for task, request in jobs:
        (expected,) = Pipeline(model, task, SHORT, sampling=GREEDY)([request])
        assert found[request.name].text == expected.text
        if expected.codes is not None:
            np.testing.assert_array_equal(found[request.name].codes, expected.codes)


def test_a_request_with_other_settings_joins_a_running_one(model, worker):
    slow = TaskOptions(max_seconds=20)
    names = (Request(str(n), "two") for n in range(100))
    found = list(Pipeline(model, "speak", slow, sampling=Sampling(1.0)).run(names))
    long, result = max(found, key=lambda pair: len(pair[1].codes))
    assert len(result.codes) >= 10  # five rounds of two frames
    started, go_on, events = threading.Event(), threading.Event(), queue.Queue()

    def hold(prompt, ids, ended):
        started.set()
        go_on.wait(60)

    worker.submit(
        long, "speak", slow, lambda result: events.put("long"), sampling=Sampling(1.0),
        on_tokens=hold,
    )  # fmt: skip
    assert started.wait(60)
    worker.submit(
        Request("b", "six"), "speak", TaskOptions(max_seconds=0.1),
        lambda result: events.put("short"), sampling=Sampling(0.5),
    )  # fmt: skip
    go_on.set()
    assert [events.get(timeout=60) for _ in range(2)] == ["short", "long"]


def test_too_many_requests_are_refused_and_cancelled_ones_make_room(worker):
    started, go_on, done = threading.Event(), threading.Event(), queue.Queue()

    def hold(prompt, ids, ended):
        started.set()
        go_on.wait(60)

    def submit(number, temperature=0.9, on_tokens=None):
        return worker.submit(
            Request(str(number), "two"), "speak", SHORT, lambda result: done.put(number),
            sampling=Sampling(temperature), on_tokens=on_tokens,
        )  # fmt: skip

    submit(0, on_tokens=hold)
    assert started.wait(60)
    waiting = [submit(number, 0.5) for number in (1, 2, 3)]
    with pytest.raises(BusyError, match="3 requests wait already"):
        submit(4)
    waiting[1].cancelled = True
    submit(5, 0.5)
    go_on.set()
    assert sorted(done.get(timeout=120) for _ in range(4)) == [0, 1, 3, 5]


def test_a_fault_fails_the_running_requests_only(model, worker, monkeypatch, capsys):
    done = queue.Queue()

    def fail(*arguments, **options):
        raise RuntimeError("a fault of the device")

    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "stream", fail)
        worker.submit(Request("1", "two"), "speak", SHORT, done.put)
        error = done.get(timeout=60)
    assert isinstance(error, UserError) and "the model failed" in str(error)
    assert "a fault of the device" in capsys.readouterr().err
    worker.submit(Request("2", "two"), "speak", SHORT, done.put)
    assert isinstance(done.get(timeout=120), Result)


def test_bad_requests_are_refused_or_answered(worker):
    done = queue.Queue()
    with pytest.raises(UserError, match="sing"):
        worker.submit(Request("1", "x"), "sing", SHORT, done.put)
    with pytest.raises(UserError, match="candidates that differ"):
        worker.submit(Request("1", "x"), "speak", SHORT, done.put, sampling=GREEDY, best_of=2)
    worker.submit(Request("1", " "), "speak", SHORT, done.put)
    assert "is empty" in str(done.get(timeout=60))


def test_a_worker_that_stops_answers_all_requests(model):
    worker, answers, started = Worker(model, slots=1), queue.Queue(), threading.Event()
    for number in range(3):
        worker.submit(
            Request(str(number), "two"), "speak", TaskOptions(max_seconds=20), answers.put,
            sampling=Sampling(1.0, 1, 1.0), on_tokens=lambda prompt, ids, ended: started.set(),
        )  # fmt: skip
    assert started.wait(60)
    worker.close()
    found = [answers.get(timeout=60) for _ in range(answers.qsize())]
    assert found and any("the server stops" in str(result) for result in found)
    with pytest.raises(BusyError, match="the server stops"):
        worker.submit(Request("4", "two"), "speak", SHORT, answers.put)
