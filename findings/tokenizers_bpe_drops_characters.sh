#!/usr/bin/env bash
# tokenizers 0.23.3 (Hugging Face): a BPE model drops characters that it does not have, without an
# error, if it has neither an unk_token (the default is none) nor byte fallback. The offsets do not
# always show it: after ByteLevel, where the vocabulary lacks one byte of a character, the piece of
# the other byte has the offsets of the whole character.
#
# Expected: an error, as Unigram raises without an unk_id ("Encountered an unknown token but `unk_id`
# is missing"), or at least a gap in the offsets.
#
# Observed:
#   letters     'café 7 one' -> ['c', 'a', 'f', ' ', ' ', 'o', 'n', 'e']
#   bytes       'bé' -> ['b', 'Ã'], offsets [(0, 1), (1, 2)], decoded 'b\ufffd'
#   Unigram     Encountered an unknown token but `unk_id` is missing
#
# `soda tokenize` quarantines such a text (not_in_tokenizer).
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

letters = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("acefon ")}, merges=[]))
found = letters.encode("caf\u00e9 7 one").tokens
print(f"letters     'café 7 one' -> {found}")
changed = found != ["c", "a", "f", " ", " ", "o", "n", "e"]

alphabet = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c != "\u00a9"]
by_byte = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
by_byte.decoder = decoders.ByteLevel()
found = by_byte.encode("b\u00e9")
decoded = by_byte.decode(found.ids)
print(f"bytes       'bé' -> {found.tokens}, offsets {found.offsets}, decoded {ascii(decoded)}")
changed |= (found.tokens, found.offsets) != (["b", "\u00c3"], [(0, 1), (1, 2)])
changed |= decoded != "b\ufffd"

unigram = Tokenizer(models.Unigram([("a", -1.0)], unk_id=None))
try:
    print(f"Unigram     {unigram.encode('ab').tokens}")
    changed = True
except Exception as error:
    print(f"Unigram     {error}")
sys.exit(changed)
PYTHON
