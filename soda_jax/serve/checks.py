"""Checks the content of requests: limits, sizes, and the fields of JSON objects."""

import dataclasses
import io
import json
from typing import Any

from starlette.requests import Request

from soda_jax.errors import UserError

_JSON_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
      upload_bytes: largest sound file.
      upload_seconds: longest recording.
      text_characters: longest text.
      max_seconds: longest generated utterance.
      total_seconds: longest speech of a request, of all pieces and candidates together.
      prompts: most pieces of text or segments of a recording, times candidates, of a request.
      max_tokens: longest transcript of a segment or text continuation, in tokens.
      best_of: most candidates.
      waiting: most requests that wait for the model.
      per_minute: most requests of a client per minute that need the model or a computation.
    """

    upload_bytes: int = 20_000_000
    upload_seconds: float = 120.0
    text_characters: int = 2_000
    max_seconds: float = 30.0
    total_seconds: float = 600.0
    prompts: int = 256
    max_tokens: int = 448
    best_of: int = 8
    waiting: int = 16
    per_minute: int = 120


class HttpError(Exception):
    """Ends a request with a status and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


async def read_body(request: Request, most: int) -> bytes:
    """Returns the body of a request; raises 413 as soon as it is longer than `most` bytes."""
    buffer = io.BytesIO()
    async for chunk in request.stream():
        buffer.write(chunk)
        if buffer.tell() > most:
            raise HttpError(413, f"the request is larger than {most:,} bytes")
    return buffer.getvalue()


async def checked_json(request: Request, limits: Limits, *fields: str) -> dict[str, Any]:
    """Returns the JSON object of a request with checked fields and defaults.

    Args:
      request: the request.
      limits: the limits of numbers.
      *fields: fields that it may have besides the settings of sampling.

    Raises:
      UserError, HttpError: if it is not such an object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HttpError(415, "send a JSON object with content-type: application/json")
    content = await read_body(request, _JSON_BYTES)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UserError("the request is not a JSON object")
    numbers: dict[str, tuple[type, float, float]] = {
        "temperature": (float, 0, 1e6), "top_p": (float, 0, 1), "top_k": (int, 0, 2**31 - 1),
        "seed": (int, 0, 2**32 - 1), "best_of": (int, 1, limits.best_of),
        "max_seconds": (float, 0, limits.max_seconds), "max_tokens": (int, 1, limits.max_tokens),
        "piece_characters": (int, 1, limits.text_characters),
        "segment_seconds": (float, 0, limits.upload_seconds),
    }  # fmt: skip
    always = ("temperature", "top_p", "top_k", "seed", "best_of", "max_seconds", "max_tokens")
    for name, value in body.items():
        if name not in (*fields, *always):
            raise UserError(
                f"the field {name[:40]!r} is unknown: use {', '.join((*fields, *always))}"
            )
        if name in numbers:
            kind, least, most = numbers[name]
            right = isinstance(value, int if kind is int else int | float)
            if not right or isinstance(value, bool) or not least <= value <= most:
                raise UserError(
                    f"{name} {str(value)[:40]} must be a number from {least:g} to {most:g}"
                )
        elif name == "stream":
            if not isinstance(value, bool):
                raise UserError("stream must be true or false")
        elif not isinstance(value, str):
            raise UserError(f"{name} must be a string")
    given = {"seed": 0, "best_of": 1, "max_seconds": min(15.0, limits.max_seconds)}
    return {**given, **body}
