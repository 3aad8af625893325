"""The JSON API of `soda serve`, over a real connection."""

import io
import json
import socket
import threading
import time

import numpy as np
import pytest
import soundfile
from running import running

from soda_jax.codecs.audio import pcm16
from soda_jax.generate.pipeline import Pipeline
from soda_jax.generate.sampling import GREEDY
from soda_jax.generate.tasks import Request, TaskOptions
from soda_jax.serve import app
from soda_jax.serve.app import wav_header
from soda_jax.serve.worker import Worker
from soda_jax.tokens.documents import audio_span, text_span

SHORT = {"max_seconds": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def server(model):
    with running(model, per_minute=100_000, upload_seconds=20, text_characters=200) as client:
        yield client


def sound(samples=450, rate=1_000, subtype="PCM_16", kind="WAV"):
    buffer = io.BytesIO()
    wave = 0.5 * np.sin(np.arange(samples) / 9)
    soundfile.write(buffer, wave, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clip(server):
    return server.json("POST", "/api/clips", sound())["clip"]


def test_the_page_and_its_parts_load_nothing_from_elsewhere(server):
    for path in ("/", "/app.js", "/recorder.js", "/style.css"):
        status, content, response = server("GET", path)
        assert status == 200 and len(content) > 100
        assert b"https://" not in content and b"//cdn" not in content
        assert "default-src 'self'" in response.getheader("content-security-policy")
        assert response.getheader("x-content-type-options") == "nosniff"


def test_the_model_is_described(server, model):
    found = server.json("GET", "/api/model")
    assert (found["sample_rate"], found["codebooks"], found["context"]) == (1_000, 3, 512)
    assert found["limits"]["text_characters"] == 200


def test_speech_is_generated_and_repeats_for_a_seed(server, model):
    one = server.json("POST", "/api/speak", {"text": "two", **SHORT})
    two = server.json("POST", "/api/speak", {"text": "two", **SHORT})
    assert one["clip"] != two["clip"] and one["text"] == "two"
    sounds = [server("GET", f"/api/clips/{c['clip']}.wav")[1] for c in (one, two)]
    assert sounds[0] == sounds[1]
    audio, rate = soundfile.read(io.BytesIO(sounds[0]))
    assert rate == 1_000 and len(audio) == round(one["seconds"] * rate) > 0
    other = server.json("POST", "/api/speak", {"text": "two", "max_seconds": 1.0, "seed": 4})
    assert server("GET", f"/api/clips/{other['clip']}.wav")[1] != sounds[0]


def test_streamed_speech_is_the_clip_that_is_kept(server):
    body = {"text": "One two. Three.", "piece_characters": 9, "stream": True, **SHORT}
    status, content, response = server("POST", "/api/speak", body)
    assert status == 200 and response.getheader("transfer-encoding") == "chunked"
    identifier = response.getheader("x-clip")
    found = server.json("GET", f"/api/clips/{identifier}")
    assert found["complete"] and [part["text"] for part in found["parts"]] == ["One two.", "Three."]
    whole = server("GET", f"/api/clips/{identifier}.wav")[1]
    assert content[44:] == whole[44:]
    plain = server.json("POST", "/api/speak", {**body, "stream": False})
    expected = server("GET", f"/api/clips/{plain['clip']}.wav")[1]
    np.testing.assert_allclose(
        np.frombuffer(content[44:], "<i2"), np.frombuffer(expected[44:], "<i2"), atol=2
    )


def test_recordings_of_several_formats_are_transcribed_and_continued(server, model):
    for kind, subtype in (("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")):
        rate = 8_000
        identifier = server.json("POST", "/api/clips", sound(4000, rate, subtype, kind))["clip"]
        found = server.json("POST", "/api/transcribe", {"clip": identifier, "max_tokens": 8})
        assert found["seconds"] == pytest.approx(0.5, abs=0.01)
        assert server.json("GET", f"/api/clips/{identifier}") == found
        audio, _ = soundfile.read(io.BytesIO(server("GET", f"/api/clips/{identifier}.wav")[1]))
        expected = model.transcribe(audio.astype(np.float32), max_tokens=8)
        assert found["transcript"]["text"] == expected
        more = server.json("POST", "/api/continue", {"clip": identifier, **SHORT})
        assert more["kind"] == "continue"


def test_text_is_continued(server, model):
    found = server.json("POST", "/api/text", {"text": "two", "max_tokens": 6, "temperature": 0})
    (expected,) = Pipeline(model, "text", TaskOptions(max_tokens=6), sampling=GREEDY)(
        [Request("0", "two")]
    )
    assert (found["text"], found["finished"]) == (expected.text, expected.finished)


def test_the_transcript_of_speech_does_not_replace_its_text(server):
    made = server.json("POST", "/api/speak", {"text": "two", **SHORT})
    found = server.json("POST", "/api/transcribe", {"clip": made["clip"], "max_tokens": 8})
    assert (found["text"], found["parts"]) == ("two", made["parts"])
    assert found["transcript"] is not None and made["transcript"] is None
    tokens = server.json("GET", f"/api/clips/{made['clip']}/tokens")
    assert tokens["label"][2:5] == ["t", "w", "o"]


def test_a_voice_changes_the_speech(server, clip):
    with_voice = {"text": "two", "voice": clip, "voice_text": "six", **SHORT}
    one = server.json("POST", "/api/speak", with_voice)
    two = server.json("POST", "/api/speak", {"text": "two", **SHORT})
    wavs = [server("GET", f"/api/clips/{c['clip']}.wav")[1] for c in (one, two)]
    assert wavs[0] != wavs[1]


def test_tokens_have_the_losses_of_a_forward_pass(server, model):
    made = server.json("POST", "/api/speak", {"text": "two", **SHORT})
    found = server.json("GET", f"/api/clips/{made['clip']}/tokens")
    layout, ids = model.layout, np.array(found["id"])
    text = text_span(model.tokenizer.encode("two"), layout)
    codes = layout.ids_to_codes(ids[len(text) + 2 : -1], 3)
    np.testing.assert_array_equal(ids, [layout.bos, *text, *audio_span(codes, layout, 3)])
    decoder = model.model.bind(model.params)
    batch = ids[None]
    hidden = decoder(batch, np.ones_like(batch), np.arange(len(ids))[None])
    logits = np.asarray(decoder.logits(hidden), np.float64)[0]
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -logits[np.arange(len(ids) - 1), ids[1:]]
    assert found["loss"][0] is None
    np.testing.assert_allclose(found["loss"][1:], expected, atol=2e-4)
    names = [found["classes"][number] for number in found["class"]]
    assert names[: len(text) + 2] == ["marker", "marker", *["text"] * 3, "marker", "marker"]
    first = int(codes[0, 0])
    assert found["label"][len(text) + 2] == f"codebook 0: {first}"
    assert found["label"][2] == "t"


def test_a_spectrogram_has_its_size(server, clip):
    import base64

    found = server.json("GET", f"/api/clips/{clip}/mel")
    pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8)
    assert pixels.size == found["columns"] * found["mels"] and pixels.max() == 255
    assert found["seconds"] == 0.45


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/api/clips", b"not a sound", 400, "libsndfile cannot read it"),
        ("POST", "/api/clips", b"", 400, "the upload"),
        ("POST", "/api/clips", sound()[:60], 400, "the upload"),
        ("POST", "/api/clips", sound(21_000), 413, "lasts 21 s, at most 20 s"),
        ("POST", "/api/clips", b"0" * 20_000_001, 413, "larger than 20,000,000 bytes"),
        ("POST", "/api/speak", b"{}", 415, "content-type: application/json"),
        ("POST", "/api/speak", {"text": ""}, 400, "the text to speak is empty"),
        ("POST", "/api/speak", {"text": "a" * 201}, 413, "has 201 characters"),
        ("POST", "/api/speak", b"[" * 60_000, 415, "content-type"),
        (
            "POST",
            "/api/speak",
            {"text": "a. " * 60, "piece_characters": 1, "max_seconds": 30, "best_of": 8},
            413,
            "use a lower max_seconds or a shorter text",
        ),
        ("POST", "/api/speak", {"text": 3}, 400, "text must be a string"),
        ("POST", "/api/speak", {"txt": "a"}, 400, "the field 'txt' is unknown"),
        ("POST", "/api/speak", {"text": "a", "max_seconds": 31}, 400, "max_seconds 31 must be"),
        ("POST", "/api/speak", {"text": "a", "seed": 1.5}, 400, "seed 1.5 must be"),
        ("POST", "/api/speak", {"text": "a", "top_p": 0}, 400, "top_p must be above 0"),
        ("POST", "/api/speak", {"text": "a", "stream": 1}, 400, "stream must be true or false"),
        ("POST", "/api/speak", {"text": "a", "stream": True, "best_of": 2}, 400, "must be 1"),
        ("POST", "/api/speak", {"text": " ", "stream": True}, 400, "the text to speak is empty"),
        ("POST", "/api/speak", {"text": "a", "voice": "none"}, 404, "there is no clip 'none'"),
        ("POST", "/api/speak", ["text"], 400, "not a JSON object"),
        ("POST", "/api/transcribe", {}, 400, "clip is missing"),
        ("GET", "/api/clips/none", None, 404, "there is no clip 'none'"),
        ("GET", "/api/nothing", None, 404, "GET /api/nothing does not exist"),
        ("GET", "/api/speak", None, 405, "does not exist"),
        ("GET", "/../app.py", None, 404, "does not exist"),
    ],
)
def test_bad_requests_get_one_line_and_the_server_answers_on(
    server, method, path, body, status, message
):
    found = server.json(method, path, body, status)
    assert message in found["error"] and "\n" not in found["error"]
    assert server("GET", "/api/model")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "attacker.example"}, 421),
        ({"origin": "http://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://attacker.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_requests_of_other_sites_are_refused(server, headers, status):
    found, content, response = server("GET", "/api/model", headers=headers)
    assert found == status and b"error" in content
    assert response.getheader("content-security-policy")
    own = {"origin": f"http://localhost:{server.port}", "host": f"localhost:{server.port}"}
    assert server("GET", "/api/model", headers=own)[0] == 200
    proxied = {**own, "origin": f"https://localhost:{server.port}"}
    assert server("GET", "/api/model", headers=proxied)[0] == 200


def test_a_request_with_many_prompts_is_refused(server):
    many = {"text": "a. " * 60, "piece_characters": 1, "max_seconds": 0.1, "best_of": 8}
    found = server.json("POST", "/api/speak", many, 413)
    assert "up to 120 pieces of text with 8 candidates are more than 256" in found["error"]
    identifier = server.json("POST", "/api/clips", sound(20_000))["clip"]
    body = {"clip": identifier, "segment_seconds": 0.1, "max_tokens": 1}
    found = server.json("POST", "/api/transcribe", body, 413)
    assert "up to 399 segments with 1 candidates are more than 256" in found["error"]
    found = server.json("POST", "/api/transcribe", body | {"segment_seconds": 0.2})
    assert 100 <= len(found["transcript"]["parts"]) <= 199


def test_nested_json_is_refused(server):
    headers = {"content-type": "application/json"}
    status, content, _ = server("POST", "/api/speak", b"[" * 60_000, headers)
    assert status == 400 and b"is not JSON" in content


def test_uploads_that_would_take_much_memory_are_refused(server, monkeypatch):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((5_000, 8), np.int16), 192_000, format="FLAC")
    monkeypatch.setattr(app, "_MOST_SAMPLES", 39_999)
    found = server.json("POST", "/api/clips", buffer.getvalue(), 413)
    assert "too many channels or too high a rate" in found["error"]


def test_a_client_has_a_rate(model):
    with running(model, per_minute=3) as client:
        statuses = [
            client("POST", "/api/speak", {"text": ""}, {"x-forwarded-for": f"10.0.0.{n}"})[0]
            for n in range(4)
        ]
        assert statuses == [400, 400, 400, 429]
        assert client("GET", "/api/clips/x/tokens")[0] == 429
        assert client("GET", "/api/model")[0] == 200


def test_several_requests_are_served_at_once(server):
    alone = server.json("POST", "/api/speak", {"text": "x1", **SHORT})
    found, threads = {}, []
    for number in range(6):

        def send(number=number):
            found[number] = server.json("POST", "/api/speak", {"text": f"x{number}", **SHORT})

        threads.append(threading.Thread(target=send))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(found) == list(range(6))
    assert found[1]["seconds"] == alone["seconds"]
    assert [found[n]["text"] for n in range(6)] == [f"x{n}" for n in range(6)]


@pytest.mark.parametrize("stream", [False, True])
def test_the_request_of_a_client_that_leaves_is_cancelled(model, monkeypatch, stream):
    works, submit = [], Worker.submit
    go_on = threading.Event()

    def watched(self, request, task, options, on_done, **settings):
        given = settings.pop("on_tokens", None)

        def slow(prompt, ids, ended):
            go_on.wait(0.05)
            if given is not None:
                given(prompt, ids, ended)

        works.append(submit(self, request, task, options, on_done, on_tokens=slow, **settings))
        return works[-1]

    monkeypatch.setattr(Worker, "submit", watched)
    never_ends = {"text": "two", "max_seconds": 30, "temperature": 1, "top_k": 1, "stream": stream}
    with running(model) as client:
        body = json.dumps(never_ends).encode()
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            head = (
                f"POST /api/speak HTTP/1.1\r\nhost: 127.0.0.1:{client.port}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            if stream:
                assert connection.recv(100)
            while not works:
                time.sleep(0.01)
        deadline = time.monotonic() + 30
        while not works[0].cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        assert works[0].cancelled
        go_on.set()
        assert client("POST", "/api/speak", {"text": "two", **SHORT})[0] == 200


def test_a_stream_that_fails_ends_and_the_clip_has_the_reason(model, monkeypatch):
    stream = model.engine.stream

    def fails_later(*arguments, **options):
        for number, event in enumerate(stream(*arguments, **options)):
            if number == 2:
                raise RuntimeError("a device error")
            yield event

    with running(model) as client:
        monkeypatch.setattr(model.engine, "stream", fails_later)
        body = {"text": "two", "stream": True, "max_seconds": 20, "temperature": 1, "top_k": 1}
        status, content, response = client("POST", "/api/speak", body)
        assert status == 200 and len(content) >= 44
        found = client.json("GET", f"/api/clips/{response.getheader('x-clip')}")
        assert "the model failed" in found["error"] and not found["finished"]
        monkeypatch.undo()
        assert client("POST", "/api/speak", {"text": "two", **SHORT})[0] == 200


def test_a_wav_header_gives_the_length_or_leaves_it_open():
    audio = np.linspace(-1, 1, 50)
    whole = wav_header(8_000, 50) + pcm16(audio)
    found, rate = soundfile.read(io.BytesIO(whole))
    assert rate == 8_000
    np.testing.assert_allclose(found, audio, atol=1e-4)
    assert wav_header(8_000, None)[40:] == b"\xff" * 4
