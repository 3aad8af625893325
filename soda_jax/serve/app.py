"""The ASGI application of `soda serve`: the page and the JSON API, see docs/serve.md."""

import asyncio
import dataclasses
import functools
import io
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from importlib import resources
from typing import Any

import numpy as np
import soundfile
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from soda_jax import __version__
from soda_jax.codecs.audio import pcm16, read_audio, sound_seconds
from soda_jax.errors import UserError
from soda_jax.generate import tasks
from soda_jax.generate.pieces import split_text
from soda_jax.generate.pipeline import Work, find_task
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.generate.streaming import SpeechStream
from soda_jax.serve.checks import HttpError, Limits, checked_json, read_body
from soda_jax.serve.clips import Clip, Clips, UnknownClipError
from soda_jax.serve.guard import Guard
from soda_jax.serve.inspect import TokenView, mel_image
from soda_jax.serve.worker import BusyError, Worker

_MOST_SAMPLES = 1 << 25  # of an upload, in all channels; 134 MB as f32
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/recorder.js": ("recorder.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
# Seconds between checks whether the client is still connected.
_CHECK = 0.5


class Server:
    """The state and the routes of a server.

    Attributes:
      app: the ASGI application.
    """

    def __init__(
        self,
        model: SpeechModel,
        *,
        name: str,
        hosts: Iterable[str],
        slots: int = 4,
        limits: Limits | None = None,
    ):
        """Starts the worker of the model; `close` ends it.

        Args:
          model: the model.
          name: name of the model on the page.
          hosts: permitted values of the Host header.
          slots: prompts that are decoded at the same time.
          limits: see `Limits`.
        """
        self._model, self._name, self._limits = model, name, limits or Limits()
        self._clips, self._tokens = Clips(), TokenView(model)
        self._worker = Worker(model, slots=slots, most_waiting=self._limits.waiting)
        # One at a time, so that they do not take all cores from the worker.
        self._one_at_a_time = asyncio.Semaphore(1)
        api = {
            ("GET", "/api/model"): self._get_model,
            ("POST", "/api/clips"): self._post_clip,
            ("GET", "/api/clips/{clip}.wav"): self._get_wav,
            ("GET", "/api/clips/{clip}/mel"): self._get_mel,
            ("GET", "/api/clips/{clip}/tokens"): self._get_tokens,
            ("GET", "/api/clips/{clip}"): self._get_clip,
            ("POST", "/api/speak"): self._speak,
            ("POST", "/api/transcribe"): self._transcribe,
            ("POST", "/api/continue"): self._continue,
            ("POST", "/api/text"): self._text,
        }
        routes = [Route(path, self._page, methods=["GET"]) for path in _PAGE]
        routes += [
            Route(path, _answers(function), methods=[method])
            for (method, path), function in api.items()
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, hosts=hosts, per_minute=self._limits.per_minute)],
            exception_handlers={404: _not_found, 405: _not_found, 500: _failed},
        )

    def stop(self) -> None:
        """Ends the requests that run, so that their connections close."""
        self._worker.stop()

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()

    def warm_up(self) -> None:
        """Compiles the programs of short requests in the background, so that the first request need not wait for it."""
        options = tasks.TaskOptions(max_seconds=1.0, max_tokens=8)
        noise = np.random.default_rng(0).normal(0, 0.01, self._model.codec.sample_rate)
        requests = {
            "speak": tasks.Request("0", "one"),
            "transcribe": tasks.Request("0", audio=noise.astype(np.float32)),
        }
        for task, request in requests.items():
            self._worker.submit(request, task, options, lambda result: None)

    async def _page(self, request: Request) -> Response:
        name, media_type = _PAGE[request.url.path]
        content = resources.files("soda_jax.serve").joinpath("page", name).read_bytes()
        return Response(content, media_type=media_type)

    async def _get_model(self, request: Request) -> Response:
        model, codec = self._model, self._model.codec
        return JSONResponse(
            {
                "name": self._name,
                "version": __version__,
                "step": model.step,
                "checkpoint": model.digest,
                "dtype": model.engine.dtype,
                "codec": codec.name,
                "sample_rate": codec.sample_rate,
                "frame_rate": codec.frame_rate,
                "codebooks": model.codebooks,
                "context": model.metadata["data"]["sequence_length"],
                "limits": dataclasses.asdict(self._limits),
            }
        )

    async def _post_clip(self, request: Request) -> Response:
        content = await read_body(request, self._limits.upload_bytes)
        most = self._limits.upload_seconds

        def read() -> np.ndarray:
            seconds = sound_seconds(content)
            if seconds is not None and seconds > most:
                raise HttpError(
                    413, f"the recording lasts {seconds:.0f} s, at most {most:g} s are accepted"
                )
            if _samples(content) > _MOST_SAMPLES:
                raise HttpError(413, "the recording has too many channels or too high a rate")
            return read_audio(content, self._model.codec.sample_rate, name="the upload")

        audio = await self._compute(read)
        if len(audio) > most * self._model.codec.sample_rate:
            raise HttpError(413, f"the recording is longer than {most:g} s")
        clip = self._clips.add(Clip("upload", self._model.codec.sample_rate, audio))
        return JSONResponse(clip.summary())

    async def _get_clip(self, request: Request) -> Response:
        return JSONResponse(self._clips[request.path_params["clip"]].summary())

    async def _get_wav(self, request: Request) -> Response:
        clip = self._complete(request.path_params["clip"])
        assert clip.audio is not None
        content = wav_header(clip.sample_rate, len(clip.audio)) + pcm16(clip.audio)
        return Response(content, media_type="audio/wav")

    async def _get_mel(self, request: Request) -> Response:
        clip = self._complete(request.path_params["clip"])
        return JSONResponse(await self._compute(mel_image, clip.audio, clip.sample_rate))

    async def _get_tokens(self, request: Request) -> Response:
        clip = self._complete(request.path_params["clip"])
        return JSONResponse(await self._compute(self._tokens, clip))

    async def _speak(self, request: Request) -> Response:
        body = await checked_json(
            request, self._limits, "text", "voice", "voice_text", "piece_characters", "stream"
        )
        text = self._text_of(body)
        self._check_length(text, body)
        voice = self._complete(body["voice"]) if body.get("voice") else None
        voice_text = body.get("voice_text", "")
        if voice and not voice_text:
            voice_text = voice.text or (voice.transcript or {}).get("text", "")
        job = tasks.Request(
            str(body["seed"]), text, voice=voice.audio if voice else None, voice_text=voice_text
        )
        return await self._generate(request, "speak", job, body)

    async def _continue(self, request: Request) -> Response:
        body = await checked_json(request, self._limits, "clip", "stream")
        job = tasks.Request(str(body["seed"]), audio=self._complete(body.get("clip")).audio)
        return await self._generate(request, "continue", job, body)

    async def _transcribe(self, request: Request) -> Response:
        body = await checked_json(request, self._limits, "clip", "segment_seconds")
        clip = self._complete(body.get("clip"))
        assert clip.audio is not None
        longest = tasks.TaskContext(self._model, self._options(body)).segment_samples
        # All segments but the last have at least half of this length.
        self._check_prompts(max(1, -(-2 * len(clip.audio) // longest) - 1), "segments", body)
        result = await self._result(
            request, "transcribe", tasks.Request(str(body["seed"]), audio=clip.audio), body
        )
        clip.transcript = {
            "text": result.text,
            "finished": result.finished,
            "parts": [dataclasses.asdict(part) for part in result.parts],
        }
        return JSONResponse(clip.summary())

    async def _text(self, request: Request) -> Response:
        body = await checked_json(request, self._limits, "text")
        job = tasks.Request(str(body["seed"]), self._text_of(body))
        result = await self._result(request, "text", job, body)
        return JSONResponse({"text": result.text, "finished": result.finished})

    async def _generate(
        self, request: Request, task: str, job: tasks.Request, body: Mapping[str, Any]
    ) -> Response:
        """Generates a clip; answers with its summary, or with its audio while it is generated."""
        began = time.monotonic()
        context = tasks.TaskContext(self._model, self._options(body))
        clip = Clip(task, self._model.codec.sample_rate, finished=False)

        def fill(result: tasks.Result) -> None:
            clip.codes, clip.text, clip.finished = result.codes, result.text, result.finished
            clip.parts = [dataclasses.asdict(part) for part in result.parts]
            clip.audio = result.audio
            self._clips.add(clip)

        if not body.get("stream"):
            result = await self._result(request, task, job, body)
            fill(await self._compute(context.decode, result))
            return JSONResponse({**clip.summary(), "after": time.monotonic() - began})
        events, put = _queue()
        work = self._submit(
            task, job, body, put, lambda prompt, ids, ended: put((prompt.piece, ids, ended))
        )
        first = await self._wait(request, work, events)
        if isinstance(first, UserError):
            raise first
        stream = SpeechStream(context)
        self._clips.add(clip)

        async def chunks() -> AsyncIterator[bytes]:
            # Players need a length; the largest one means that the end is not known yet.
            yield wav_header(clip.sample_rate, None)
            sent, event = [np.zeros(0, np.float32)], first
            try:
                while not isinstance(event, tasks.Result | UserError):
                    audio = await run_in_threadpool(stream.push, *event)
                    if len(audio):
                        sent.append(audio)
                        yield pcm16(audio)
                    event = await events.get()
                # The clip is what was heard; decoded as a whole, it could differ a little.
                audio = np.concatenate(sent)
                if isinstance(event, UserError):
                    clip.error, clip.audio = " ".join(str(event).split()), audio
                else:
                    fill(dataclasses.replace(event, audio=audio))
            finally:
                work.cancelled = True
                if clip.audio is None:  # the client has left
                    self._clips.remove(clip)

        return StreamingResponse(chunks(), media_type="audio/wav", headers={"x-clip": clip.id})

    async def _result(
        self, request: Request, task: str, job: tasks.Request, body: Mapping[str, Any]
    ) -> tasks.Result:
        """Returns the result of a request; cancels it if the client leaves."""
        events, put = _queue()
        work = self._submit(task, job, body, put)
        result = await self._wait(request, work, events)
        if isinstance(result, UserError):
            raise result
        return result

    def _submit(
        self,
        task: str,
        job: tasks.Request,
        body: Mapping[str, Any],
        on_done: Callable[[Any], None],
        on_tokens: Any = None,
    ) -> Work:
        default = find_task(task).sampling
        sampling = Sampling(
            body.get("temperature", default.temperature),
            body.get("top_k", default.top_k),
            body.get("top_p", default.top_p),
        )
        return self._worker.submit(
            job, task, self._options(body), on_done, sampling=sampling,
            best_of=body["best_of"], on_tokens=on_tokens,
        )  # fmt: skip

    async def _wait(self, request: Request, work: Work, events: asyncio.Queue[Any]) -> Any:
        """Returns the next event; cancels the work and ends the request if the client leaves."""
        try:
            while True:
                try:
                    return await asyncio.wait_for(events.get(), _CHECK)
                except TimeoutError:
                    if await request.is_disconnected():
                        raise ClientDisconnect from None
        except BaseException:
            work.cancelled = True
            raise

    def _check_length(self, text: str, body: Mapping[str, Any]) -> None:
        """Raises an error if the speech of a text could be too long."""
        model, most = self._model, self._limits.total_seconds
        context = tasks.TaskContext(model, self._options(body))
        fits = context.context / (model.codec.frame_rate * model.codebooks)
        pieces = split_text(text, context.piece_characters([], text))
        seconds = len(pieces) * min(body["max_seconds"], fits) * body["best_of"]
        if seconds > most:
            raise HttpError(
                413,
                f"{len(pieces)} pieces of text with {body['best_of']} candidates may last {seconds:.0f} s, "
                f"at most {most:g} s are accepted: use a lower max_seconds or a shorter text",
            )
        self._check_prompts(len(pieces), "pieces of text", body)

    def _check_prompts(self, count: int, what: str, body: Mapping[str, Any]) -> None:
        """Raises an error if a request has so many prompts that the others would wait too long."""
        most = self._limits.prompts
        if count * body["best_of"] > most:
            raise HttpError(
                413,
                f"up to {count} {what} with {body['best_of']} candidates are more than {most}: use a shorter text or "
                "recording, longer pieces or segments, or a lower best_of",
            )

    def _options(self, body: Mapping[str, Any]) -> tasks.TaskOptions:
        names = {field.name for field in dataclasses.fields(tasks.TaskOptions)}
        return tasks.TaskOptions(**{name: body[name] for name in names & body.keys()})

    def _complete(self, identifier: Any) -> Clip:
        if not isinstance(identifier, str) or not identifier:
            raise UserError("clip is missing: upload a recording to /api/clips first")
        clip = self._clips[identifier]
        if clip.audio is None:
            raise HttpError(409, "the clip is not complete yet")
        if not len(clip.audio):
            raise UserError("the clip has no audio")
        return clip

    def _text_of(self, body: Mapping[str, Any]) -> str:
        text, most = body.get("text", ""), self._limits.text_characters
        if len(text) > most:
            raise HttpError(
                413, f"the text has {len(text):,} characters, at most {most:,} are accepted"
            )
        return text

    async def _compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in a thread, one at a time."""
        async with self._one_at_a_time:
            return await run_in_threadpool(function, *arguments)


def _queue() -> tuple[asyncio.Queue[Any], Callable[[Any], None]]:
    """Returns a queue, and a function that puts an event into it from any thread."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(event: Any) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    return events, put


def _samples(content: bytes) -> int:
    """Returns the samples of a sound in all its channels as its header gives them; 0 if it has none."""
    try:
        info = soundfile.info(io.BytesIO(content))
    except (soundfile.SoundFileError, RuntimeError):
        return 0  # reading it gives the reason
    return info.frames * info.channels


def wav_header(sample_rate: int, samples: int | None) -> bytes:
    """Returns the header of a 16-bit mono WAV file; with `samples` None its length is not known."""
    size = 0xFFFFFFFF if samples is None else 2 * samples
    whole = size if samples is None else size + 36
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", whole, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", size,
    )  # fmt: skip


def _answers(function: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Returns a route whose errors are JSON objects with `error`."""

    @functools.wraps(function)
    async def answer(request: Request) -> Response:
        try:
            return await function(request)
        except HttpError as error:
            return _error(error.status, error)
        except UnknownClipError as error:
            return _error(404, error)
        except BusyError as error:
            response = _error(503, error)
            response.headers["retry-after"] = "5"
            return response
        except UserError as error:
            return _error(400, error)
        except ClientDisconnect:
            return Response(status_code=499)

    return answer


def _error(status: int, error: Exception | str) -> JSONResponse:
    return JSONResponse({"error": " ".join(str(error).split())}, status)


async def _not_found(request: Request, error: Any) -> Response:
    return _error(error.status_code, f"{request.method} {request.url.path[:100]} does not exist")


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "the server failed; its log has the reason")
