"""One local worker process of Beam: `python -m tokenize_pipeline.beam_worker LAUNCHER THREADS`.

Beam's own entry point, with three differences. Its messages go to the job (not twice, and not every
detail, to the terminal); it ends soon after the job that launched it, where Beam's goes on with its
shards after a killed job, beside the next one; and the numerical libraries take their share of the cores.
"""

import logging
import os
import sys
import threading
import time

_LOOK_SECONDS = 0.5


def die_with(launcher: int) -> None:
    """Watches process `launcher` from a thread and ends this one when it is gone."""

    def watch() -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(launcher: int, threads: int) -> None:
    """Serves the job of process `launcher` until it is done."""
    die_with(launcher)
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(threads))
    # With a handler there, an early warning of some library does not set up one that prints.
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    # It warns that nothing was staged for it, which no local worker needs.
    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
