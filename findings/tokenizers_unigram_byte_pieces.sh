#!/usr/bin/env bash
# tokenizers 0.23.3 (Hugging Face): a Unigram model with byte fallback reads text that spells a byte
# piece, such as the six characters <0x41>, as that byte: it is decoded as "A". SentencePiece 0.2.1,
# whose models it loads, never matches byte pieces against text: with the same pieces it writes the six
# characters and decodes them again. The BPE model of tokenizers does so too.
#
# Observed:
#   SentencePiece        ['▁', '<0x3C>', '<0x30>', '<0x78>', '<0x34>', '<0x31>', '<0x3E>'], decoded '<0x41>'
#   tokenizers Unigram   ['▁', '<0x41>'], decoded 'A'
#   tokenizers BPE       ['▁', '<0x3C>', '<0x30>', '<0x78>', '<0x34>', '<0x31>', '<0x3E>'], decoded '<0x41>'
#
# `soda tokenize` quarantines such a text (not_in_tokenizer).
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.1
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEXT = "<0x41>"
BYTES = [f"<0x{byte:02X}>" for byte in TEXT.encode()]

written = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a man a plan a canal"] * 50), model_writer=written, vocab_size=267,
    model_type="unigram", byte_fallback=True, character_coverage=1.0, minloglevel=2,
)
original = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
pieces = [original.id_to_piece(i) for i in range(original.get_piece_size())]
scores = [original.get_score(i) for i in range(len(pieces))]


def report(name, tokens, decoded):
    print(f"{name:20} {tokens}, decoded {decoded!r}")
    return tokens, decoded


ids = original.encode(TEXT)
changed = report("SentencePiece", [pieces[i] for i in ids], original.decode(ids)) != (
    ["▁", *BYTES], TEXT
)

space = {"replacement": "▁", "prepend_scheme": "always"}
steps = [decoders.ByteFallback(), decoders.Metaspace(**space), decoders.Fuse()]
for model, expected in (
    (models.Unigram(list(zip(pieces, scores)), unk_id=0, byte_fallback=True), (["▁", TEXT], "A")),
    (
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True
        ),
        (["▁", *BYTES], TEXT),
    ),
):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**space)
    tokenizer.decoder = decoders.Sequence(steps)
    found = tokenizer.encode(TEXT)
    name = f"tokenizers {type(model).__name__}"
    changed |= report(name, found.tokens, tokenizer.decode(found.ids)) != expected
sys.exit(changed)
PYTHON
