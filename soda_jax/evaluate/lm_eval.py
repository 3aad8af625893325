"""Runs the command line of lm-evaluation-harness with checkpoints of this package as the model `soda`.

    python -m soda_jax.evaluate.lm_eval run --model soda --model_args workdir=RUN --tasks hellaswag

lm-evaluation-harness does not search other packages for models, so its own program `lm-eval` does not know
`soda`. This one imports `lm_eval_model.py`, which registers it, and calls the same function.
"""

import sys

from soda_jax.errors import UserError


def main() -> int:
    """Runs `lm-eval` with the arguments of this process; returns 0, or 2 for bad input to the model."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from soda_jax.evaluate import lm_eval_model  # noqa: F401  # registers the model

        cli_evaluate()
    except UserError as error:
        print(f"lm_eval: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        print(
            "lm_eval: error: lm_eval is not installed; install it with pip install 'soda-jax[lm-eval]'",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
