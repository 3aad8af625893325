"""The page of `soda serve` in a real headless Chromium."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import soundfile
from running import running
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from toy_speech_model import ToyCodec

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"
)
RATE = 8_000  # browsers play no lower ones

_OPTIONS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-sync",
    "disable-dev-shm-usage", "window-size=1000,1400", "use-fake-device-for-media-stream",
    "use-fake-ui-for-media-stream", "autoplay-policy=no-user-gesture-required",
)  # fmt: skip


class FastCodec(ToyCodec):
    """A toy codec whose audio a browser can play: a tone per frame, its level is the first code."""

    sample_rate, samples_per_frame = RATE, RATE // 10

    def encode(self, audio):
        return super().encode([clip[::8] for clip in audio])

    def decode(self, codes):
        tone = np.sin(np.arange(RATE // 10) * 2 * np.pi * 440 / RATE)
        return [
            (np.repeat(c[:, 0] + 1, RATE // 10) / 10 * np.tile(tone, len(c))).astype(np.float32)
            for c in codes
        ]


@pytest.fixture(scope="module")
def server(model):
    with running(dataclasses.replace(model, codec=FastCodec())) as client:
        yield client


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (*_OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(server, browser):
    browser.get(f"http://127.0.0.1:{server.port}/")
    wait(browser, lambda: "step 7" in browser.find_element(By.ID, "model").text)
    browser.get_log("browser")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def wait(browser, condition, seconds=90):
    return WebDriverWait(browser, seconds).until(lambda _: condition())


def cards(browser):
    found = browser.find_elements(By.CSS_SELECTOR, "article")
    return [card for card in found if card.find_element(By.TAG_NAME, "audio").get_attribute("src")]


def set_value(browser, name, value):
    script = "document.getElementById(arguments[0]).value = arguments[1]"
    browser.execute_script(script, name, value)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_text_is_spoken_and_its_audio_is_not_silent(server, page, streamed):
    page.find_element(By.ID, "text").send_keys("one two three")
    for name, value in (("max_seconds", "1"), ("seed", "3")):
        set_value(page, name, value)
    if not streamed:
        page.execute_script("document.getElementById('stream').checked = false")
    page.find_element(By.ID, "speak").click()
    wait(page, lambda: len(cards(page)) == 1 and not page.find_element(By.ID, "message").text)
    (card,) = cards(page)
    link = card.find_element(By.CSS_SELECTOR, "a[download]").get_attribute("href")
    status, content, _ = server("GET", link.partition(str(server.port))[2])
    assert status == 200
    audio, rate = soundfile.read(io.BytesIO(content))
    assert rate == RATE and RATE // 10 <= len(audio) <= RATE
    assert np.sqrt(np.mean(audio**2)) > 0.01
    facts = card.find_element(By.CSS_SELECTOR, ".facts").text
    assert facts.startswith(f"{len(audio) / rate:.2f} s")
    assert ("first audio after" in facts) == streamed
    # The player has loaded the same clip, and the pictures are drawn.
    length = "return arguments[0].querySelector('audio').duration"
    wait(
        page,
        lambda: page.execute_script(length, card) == pytest.approx(len(audio) / rate, abs=0.05),
    )
    drawn = """const c = arguments[0], p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
               return new Set(Array.from({length: p.length / 4}, (_, n) => p.slice(4 * n, 4 * n + 3).join())).size"""
    for name in ("wave", "mel"):
        canvas = card.find_element(By.CSS_SELECTOR, f".{name}")
        wait(page, lambda canvas=canvas: page.execute_script(drawn, canvas) > 1)


def test_a_recording_is_uploaded_transcribed_and_shown_as_tokens(page, tmp_path):
    soundfile.write(tmp_path / "a.flac", 0.5 * np.sin(np.arange(3200) / 9), RATE)
    page.find_element(By.ID, "file").send_keys(str(tmp_path / "a.flac"))
    wait(page, lambda: len(cards(page)) == 1)
    (card,) = cards(page)
    assert "0.40 s" in card.find_element(By.CSS_SELECTOR, ".facts").text

    def press(name):
        card.find_element(By.CSS_SELECTOR, f"[data-do={name}]").click()

    press("tokens")
    about = card.find_element(By.CSS_SELECTOR, ".about")
    wait(page, lambda: "15 tokens" in about.text)  # BOS, two markers, 4 frames of 3 codebooks
    press("transcribe")
    button = card.find_element(By.CSS_SELECTOR, "[data-do=transcribe]")
    wait(page, lambda: button.is_enabled() and not page.find_element(By.ID, "message").text)
    press("voice")
    assert page.find_element(By.ID, "voice").is_displayed()
    script = "document.getElementById(arguments[0]).value = arguments[1]"
    page.execute_script(script, "voice-text", "a")
    page.find_element(By.ID, "text").send_keys("two")
    page.find_element(By.ID, "speak").click()
    wait(page, lambda: len(cards(page)) == 2)
    press("continue")
    wait(page, lambda: page.find_elements(By.XPATH, "//h3[text()='Continuation']"))


def test_the_player_can_seek(page, tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(np.arange(80_000) / 9), RATE)
    page.find_element(By.ID, "file").send_keys(str(tmp_path / "a.wav"))
    wait(page, lambda: len(cards(page)) == 1)
    time = (
        "const a = document.querySelector('article audio'); a.currentTime = 6; return a.currentTime"
    )
    wait(page, lambda: page.execute_script(time) == pytest.approx(6, abs=0.1))


def test_the_microphone_is_recorded(page):
    page.find_element(By.ID, "record").click()
    state = page.find_element(By.ID, "record-state")
    wait(page, lambda: state.text and float(state.text.split()[0]) > 1.2)
    page.find_element(By.ID, "record").click()
    wait(page, lambda: len(cards(page)) == 1)
    seconds = float(cards(page)[0].find_element(By.CSS_SELECTOR, ".facts").text.split()[0])
    assert 0.8 < seconds < 10


def test_an_error_is_shown_and_the_page_goes_on(server, browser, tmp_path):
    browser.get(f"http://127.0.0.1:{server.port}/")
    (tmp_path / "a.wav").write_bytes(b"not a sound")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "a.wav"))
    wait(browser, lambda: "cannot read it" in browser.find_element(By.ID, "message").text)
    browser.find_element(By.ID, "speak").click()
    wait(browser, lambda: "text to speak is empty" in browser.find_element(By.ID, "message").text)
    assert browser.find_element(By.ID, "speak").is_enabled()
