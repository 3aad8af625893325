"""Writes tiny benchmarks in their published formats; shares no code with the readers."""

import json
import wave

import numpy as np

RATE = 1_000


def write_tone(path, level, seconds=0.5):
    """Writes a constant-loudness square wave as a 16-bit WAV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.where(np.arange(int(seconds * RATE)) % 2 == 0, level, -level)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def write_zerospeech(folder, voices=("a", "b")):
    """Writes lexical and syntactic pairs: the right one is loud, the wrong one is quiet."""
    lexical = ["filename,id,voice,frequency,word,phones,length,correct"]
    for number, (word, nonword) in enumerate([("two", "twa"), ("eight", "oight"), ("six", "sux")]):
        for voice in voices:
            for correct, text in ((1, word), (0, nonword)):
                name = f"{text}{voice}"
                lexical.append(f"{name},{number},{voice},3,{text},x,1,{correct}")
                write_tone(folder / "lexical" / "dev" / f"{name}.wav", 0.05 if correct else 0.02)
    (folder / "lexical" / "dev" / "gold.csv").write_text("\n".join(lexical) + "\n")
    syntactic = ["id,filename,voice,type,subtype,transcription,correct"]
    for number, kind in enumerate(["agreement", "agreement", "filler_gap"]):
        for correct in (1, 0):
            name = f"s{number}{correct}"
            text = f"the number {number} is here" if correct else f"the number {number} are here"
            syntactic.append(f'{number},{name},v,{kind},sub,"{text}",{correct}')
            write_tone(folder / "syntactic" / "dev" / f"{name}.wav", 0.05 if correct else 0.02)
    (folder / "syntactic" / "dev" / "gold.csv").write_text("\n".join(syntactic) + "\n")
    return folder


def write_salmon(folder, parts=("gender_consistency", "rir_consistency"), samples=3):
    """Writes two recordings per sample, the first of which is the right one."""
    for part in parts:
        for number in range(samples):
            for suffix, level in (("0", 0.05), ("1", 0.02)):
                write_tone(folder / part / f"sample_{number}_{suffix}.wav", level)
    return folder


def write_hellaswag(folder):
    """Writes two items with four endings each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "ind": 24, "activity_label": "Counting", "ctx_a": "A man counts.", "ctx_b": "he",
            "ctx": "A man counts. he", "split": "val", "label": 2,
            "endings": ["says six [title] and so on.", "sings.", "says two.", "leaves  now."],
        },
        {
            "ind": 31, "activity_label": "Turning", "ctx_a": "Turn left [step] then go.", "ctx_b": "",
            "ctx": "Turn left.", "split": "val", "label": 0,
            "endings": ["Stop.", "Run away.", "Sleep for a day.", "Eat."],
        },
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "hellaswag_val.jsonl").write_text(lines)
    return folder


def write_librispeech(folder):
    """Writes two chapters of test-clean as FLAC; one transcript has no words."""
    import soundfile

    for speaker, chapter, texts in (
        ("61", "70968", ["TURN LEFT", "GO ON", "TWO EIGHT"]),
        ("121", "121726", ["STOP", "- -"]),
    ):
        home = folder / "LibriSpeech" / "test-clean" / speaker / chapter
        home.mkdir(parents=True)
        lines = []
        for number, text in enumerate(texts):
            name = f"{speaker}-{chapter}-{number:04}"
            level = 0.01 * (1 + number)
            samples = np.where(np.arange(700) % 2 == 0, level, -level)
            soundfile.write(home / f"{name}.flac", samples, RATE)
            lines.append(f"{name} {text}\n")
        (home / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


def write_seed_tts(folder):
    """Writes three items; the last one has no recording of its text."""
    lines = []
    for number, text in enumerate(["go left", "stop now", "two eight"]):
        name = f"common_voice_en_{number}-common_voice_en_9"
        write_tone(folder / "en" / "prompt-wavs" / f"p{number}.wav", 0.03)
        if number < 2:
            write_tone(folder / "en" / "wavs" / f"{name}.wav", 0.03, 1.0)
        lines.append(f"{name}|a voice|prompt-wavs/p{number}.wav|{text}\n")
    (folder / "en" / "meta.lst").write_text("".join(lines))
    return folder
