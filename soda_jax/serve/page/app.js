"use strict";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_seconds", "seed", "best_of"];
let model = null; // the answer of api/model
let voice = null; // summary of the clip that is the voice

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

// Calls the API and returns the response; an error becomes an Error with its message.
async function call(path, body) {
  const options = body === undefined ? {} :
    body instanceof Blob ? { method: "POST", body } :
    { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || `the server answered with status ${response.status}`);
  }
  return response;
}

// Runs an action of a button: the button waits, and errors are shown.
async function act(button, doing, action) {
  button.disabled = true;
  say(doing);
  try {
    await action();
    say("");
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

function settings() {
  const found = {};
  for (const name of NUMBERS) {
    const value = $(name).value;
    if (value !== "") found[name] = Number(value);
  }
  return found;
}

const names = { upload: "Recording", speak: "Speech", continue: "Continuation" };

function transcript({ text, finished, parts }) {
  const cut = finished ? "" : " (cut at the length limit)";
  if (parts.length < 2) return `Transcript: ${text.trim()}${cut}`;
  const lines = parts.map((p) => `${p.start.toFixed(2)}–${p.end.toFixed(2)} s  ${p.text.trim()}`);
  return [`Transcript${cut}:`, ...lines].join("\n");
}

// Adds a card for a clip, or updates it.
function show(clip, note = "") {
  let card = document.querySelector(`article[data-clip="${CSS.escape(clip.clip)}"]`);
  if (!card) {
    card = $("result").content.cloneNode(true).querySelector("article");
    card.dataset.clip = clip.clip;
    for (const button of card.querySelectorAll("button"))
      button.addEventListener("click", () => actions[button.dataset.do](card, button));
    $("results").prepend(card);
  }
  card.clip = clip;
  card.querySelector("h3").textContent = names[clip.kind] || clip.kind;
  const cut = clip.finished ? "" : ", cut at the length limit";
  card.querySelector(".facts").textContent = clip.complete ? `${clip.seconds.toFixed(2)} s${cut}${note}` : "…";
  card.querySelector(".text").textContent = clip.text;
  card.querySelector(".transcript").textContent = clip.transcript ? transcript(clip.transcript) : "";
  if (clip.complete && !card.dataset.drawn) {
    card.dataset.drawn = "yes";
    card.querySelector("a").href = clip.audio;
    card.querySelector("a").download = `${clip.kind}-${clip.clip}.wav`;
    card.drawing = drawSound(card, clip).catch((error) => say(error.message, true));
  }
  return card;
}

async function drawSound(card, clip) {
  if (!clip.seconds) return;
  const sound = await (await call(clip.audio)).blob();
  // From memory, so that the player can seek.
  card.querySelector("audio").src = URL.createObjectURL(sound);
  const content = await sound.arrayBuffer();
  drawWave(card.querySelector(".wave"), new Int16Array(content, 44));
  const mel = await (await call(`api/clips/${clip.clip}/mel`)).json();
  drawMel(card.querySelector(".mel"), mel);
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Gives a canvas one pixel per device pixel; returns its context and size.
function prepare(canvas) {
  const scale = window.devicePixelRatio || 1;
  const height = Number(canvas.getAttribute("data-height") || canvas.height);
  canvas.setAttribute("data-height", height);
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  return [canvas.getContext("2d"), canvas.width, canvas.height];
}

function drawWave(canvas, samples) {
  const [pen, width, height] = prepare(canvas);
  pen.fillStyle = color("--accent");
  for (let x = 0; x < width; x++) {
    const from = Math.floor((x * samples.length) / width);
    const to = Math.max(from + 1, Math.floor(((x + 1) * samples.length) / width));
    let low = 0, high = 0;
    for (let i = from; i < to && i < samples.length; i++) {
      low = Math.min(low, samples[i]);
      high = Math.max(high, samples[i]);
    }
    const top = ((32768 - high) / 65536) * height;
    pen.fillRect(x, top, 1, Math.max(1, ((high - low) / 65536) * height));
  }
}

function drawMel(canvas, mel) {
  const pixels = Uint8Array.from(atob(mel.pixels), (c) => c.charCodeAt(0));
  const small = document.createElement("canvas");
  small.width = Math.max(1, mel.columns);
  small.height = mel.mels;
  const image = small.getContext("2d").createImageData(small.width, small.height);
  for (let t = 0; t < mel.columns; t++)
    for (let f = 0; f < mel.mels; f++) {
      const v = pixels[t * mel.mels + f] / 255;
      const at = 4 * ((mel.mels - 1 - f) * small.width + t);
      // From black over purple and orange to light yellow.
      image.data[at] = 255 * Math.min(1, 1.6 * v);
      image.data[at + 1] = 255 * Math.max(0, 1.5 * v - 0.5);
      image.data[at + 2] = 255 * (v < 0.5 ? 1.1 * v : Math.max(0, 0.9 - 0.7 * v));
      image.data[at + 3] = 255;
    }
  small.getContext("2d").putImageData(image, 0, 0);
  const [pen, width, height] = prepare(canvas);
  pen.drawImage(small, 0, 0, width, height);
}

function tokenColor(kind) {
  const known = kind === "text" || kind === "marker" || kind === "semantic" ? kind : "acoustic";
  return color(`--${known}-token`);
}

function drawTokens(card, found) {
  const box = card.querySelector(".tokens");
  box.hidden = false;
  const legend = card.querySelector(".legend");
  const kinds = ["text", "marker", "semantic", "acoustic"];
  legend.replaceChildren(...kinds.map((kind) => {
    const entry = document.createElement("span"), patch = document.createElement("i");
    patch.style.background = tokenColor(kind);
    entry.append(patch, kind);
    return entry;
  }));
  const canvas = card.querySelector(".strip");
  const [pen, width, height] = prepare(canvas);
  const count = found.id.length, most = Math.max(1, ...found.loss.map((loss) => loss || 0));
  const base = 0.16 * height;
  for (let n = 0; n < count; n++) {
    const left = Math.floor((n * width) / count), right = Math.floor(((n + 1) * width) / count);
    const wide = Math.max(1, right - left - (width / count > 3 ? 1 : 0));
    pen.fillStyle = tokenColor(found.classes[found.class[n]]);
    pen.fillRect(left, height - base, wide, base); // the class
    const tall = ((found.loss[n] || 0) / most) * (height - base - 3);
    pen.fillRect(left, height - base - 2 - tall, wide, tall); // the loss
  }
  const about = card.querySelector(".about");
  const losses = found.loss.filter((loss) => loss !== null);
  const mean = losses.reduce((a, b) => a + b, 0) / losses.length;
  const text = `${count} tokens, mean loss ${mean.toFixed(3)} nats over ${found.normalizer}; the highest bar is ${most.toFixed(2)} nats. Point at a bar to read it.`;
  about.textContent = text;
  canvas.onmousemove = (event) => {
    const n = Math.min(count - 1, Math.floor((event.offsetX / canvas.clientWidth) * count));
    const loss = found.loss[n] === null ? "" : `, ${found.loss[n].toFixed(3)} nats`;
    about.textContent = `token ${n}: ${found.classes[found.class[n]]} “${found.label[n]}”${loss}`;
  };
  canvas.onmouseleave = () => { about.textContent = text; };
}

const actions = {
  transcribe: (card, button) => act(button, "transcribing …", async () => {
    show(await (await call("api/transcribe", { clip: card.clip.clip })).json());
    card.querySelector(".tokens").hidden = true;
  }),
  continue: (card, button) => act(button, "continuing …", () =>
    generate("api/continue", { clip: card.clip.clip })),
  voice: (card) => {
    voice = card.clip;
    $("voice").hidden = false;
    $("voice-name").textContent = `${names[voice.kind]}, ${voice.seconds.toFixed(1)} s`;
    $("voice-text").value = voice.text || (voice.transcript ? voice.transcript.text.trim() : "");
    $("voice-text").focus();
  },
  tokens: (card, button) => act(button, "computing the losses …", async () => {
    drawTokens(card, await (await call(`api/clips/${card.clip.clip}/tokens`)).json());
  }),
};

// Generates a clip and shows it; with streaming, the audio is played as it comes.
async function generate(path, fields) {
  const body = { ...settings(), ...fields };
  if (!$("stream").checked || body.best_of > 1) {
    const clip = await (await call(path, body)).json();
    const card = show(clip, `, ready after ${clip.after.toFixed(2)} s`);
    await card.drawing;
    card.querySelector("audio").play().catch(() => {});
    return;
  }
  const began = performance.now();
  const response = await call(path, { ...body, stream: true });
  const id = response.headers.get("x-clip");
  const player = new Player(model.sample_rate);
  let first = 0;
  const reader = response.body.getReader();
  for (let skip = 44; ;) { // the header of the WAV file
    const { done, value } = await reader.read();
    if (done) break;
    const part = value.subarray(Math.min(skip, value.length));
    skip -= value.length - part.length;
    if (part.length && !first) {
      first = performance.now() - began;
      say("playing while the rest is generated …");
    }
    player.add(part);
  }
  player.end();
  const clip = await (await call(`api/clips/${id}`)).json();
  show(clip, `, first audio after ${(first / 1000).toFixed(2)} s, all after ${((performance.now() - began) / 1000).toFixed(2)} s`);
  if (clip.error) throw new Error(clip.error);
}

// Plays 16-bit PCM as it comes.
class Player {
  constructor(rate) {
    this.rate = rate;
    this.context = new AudioContext();
    this.context.resume(); // a context that was made without a gesture waits
    this.next = 0;
    this.rest = new Uint8Array(0);
  }
  add(bytes) {
    const joined = new Uint8Array(this.rest.length + bytes.length);
    joined.set(this.rest);
    joined.set(bytes, this.rest.length);
    const count = joined.length >> 1;
    this.rest = joined.slice(2 * count);
    if (!count) return;
    const samples = new Int16Array(joined.buffer, 0, count);
    const buffer = this.context.createBuffer(1, count, this.rate);
    buffer.copyToChannel(Float32Array.from(samples, (s) => s / 32768), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    const now = this.context.currentTime;
    if (this.next < now) this.next = now + 0.1; // the first part, or one that came too late
    source.start(this.next);
    this.next += buffer.duration;
  }
  end() { // after the last sample
    const left = Math.max(0, this.next - this.context.currentTime);
    setTimeout(() => this.context.close(), 1000 * left + 500);
  }
}

async function upload(blob) {
  show(await (await call("api/clips", blob)).json());
}

// A 16-bit WAV file of mono samples.
function wav(chunks, rate) {
  const count = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const word = (at, text) => [...text].forEach((c, n) => view.setUint8(at + n, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const chunk of chunks)
    for (const sample of chunk) {
      view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true);
      at += 2;
    }
  return new Blob([view], { type: "audio/wav" });
}

let recording = null;

async function startRecording() {
  const context = new AudioContext();
  await context.audioWorklet.addModule("recorder.js");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch((error) => {
    context.close();
    throw error;
  });
  const source = context.createMediaStreamSource(stream);
  const node = new AudioWorkletNode(context, "recorder");
  const chunks = [];
  node.port.onmessage = (event) => chunks.push(event.data);
  source.connect(node);
  recording = { stream, context, chunks, began: performance.now() };
  recording.timer = setInterval(() => {
    const seconds = (performance.now() - recording.began) / 1000;
    $("record-state").textContent = `${seconds.toFixed(1)} s`;
    if (model && seconds >= model.limits.upload_seconds - 1) $("record").click();
  }, 100);
  $("record").textContent = "Stop";
}

async function stopRecording() {
  const { stream, context, chunks, timer } = recording;
  recording = null;
  clearInterval(timer);
  stream.getTracks().forEach((track) => track.stop());
  $("record").textContent = "Record";
  $("record-state").textContent = "";
  const rate = context.sampleRate;
  await context.close();
  await upload(wav(chunks, rate));
}

$("speak").addEventListener("click", () => act($("speak"), "speaking …", () => {
  const fields = { text: $("text").value };
  if (voice) Object.assign(fields, { voice: voice.clip, voice_text: $("voice-text").value });
  return generate("api/speak", fields);
}));
$("continue-text").addEventListener("click", () => act($("continue-text"), "continuing …", async () => {
  const { temperature, top_p, top_k, seed, best_of } = settings();
  const body = { text: $("text").value, temperature, top_p, top_k, seed, best_of, max_tokens: 100 };
  $("text").value += (await (await call("api/text", body)).json()).text;
}));
$("voice-remove").addEventListener("click", () => { voice = null; $("voice").hidden = true; });
$("file").addEventListener("change", () => act($("file"), "uploading …", async () => {
  if ($("file").files.length) await upload($("file").files[0]);
  $("file").value = "";
}));
$("record").addEventListener("click", () => act($("record"), recording ? "uploading …" : "", () =>
  recording ? stopRecording() : startRecording()));

call("api/model").then((response) => response.json()).then((found) => {
  model = found;
  $("model").textContent =
    `${found.name}, step ${found.step.toLocaleString()}, ${found.codec}, ${found.codebooks} codebooks, ${found.dtype}`;
  $("max_seconds").max = found.limits.max_seconds;
  $("max_seconds").value = Math.min(15, found.limits.max_seconds);
  $("best_of").max = found.limits.best_of;
  document.title = `SODA: ${found.name}`;
}).catch((error) => say(error.message, true));
