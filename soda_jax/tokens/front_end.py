"""Defines the front end of a model or data set: text tokenizer, codec and vocabulary layout.

Token ids have a meaning only together with these three. Data sets, checkpoints and exports store
the fingerprints of all three; `FrontEnd.check_same` raises an error if two front ends differ.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from soda_jax.errors import UserError
from soda_jax.tokens.vocabulary import VocabularyLayout

_FIXES = {
    "tokenizer": "convert the data with soda retext",
    "codec": "tokenize the data again with that codec",
    "vocabulary layout": "tokenize the data again with that tokenizer and codec",
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A part in which two front ends differ.

    Attributes:
      part: "tokenizer", "codec" or "vocabulary layout".
      ours: value in the first front end, as text: a fingerprint or the differing layout fields.
      theirs: value in the second front end, as text.
    """

    part: str
    ours: str
    theirs: str

    @property
    def looks_damaged(self) -> bool:
        """True if the values have equal length (16 or more) and differ in at most two characters.

        The fingerprints of different tokenizers or codecs differ in most characters, whereas a
        flipped bit in a stored fingerprint changes only one.
        """
        if len(self.ours) != len(self.theirs) or len(self.ours) < 16:
            return False
        return sum(a != b for a, b in zip(self.ours, self.theirs, strict=True)) <= 2


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """The text tokenizer, codec and vocabulary layout that define token ids.

    Attributes:
      layout: the ids of text, markers and codebooks.
      tokenizer: fingerprint of the text tokenizer.
      codec: fingerprint of the codec; None for text without speech, and for a converted model whose
        codec is unknown.
    """

    layout: VocabularyLayout
    tokenizer: str
    codec: str | None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "FrontEnd":
        """Returns the front end in the metadata of a checkpoint; the inverse of `to_metadata`."""
        layout = VocabularyLayout.from_json(metadata["layout"])
        return cls(layout, metadata["tokenizer_fingerprint"], metadata["codec_fingerprint"])

    def to_metadata(self) -> dict[str, Any]:
        """Returns the entries of a checkpoint's metadata that describe the front end."""
        return {
            "layout": self.layout.to_json(),
            "layout_fingerprint": self.layout.fingerprint,
            "codec_fingerprint": self.codec,
            "tokenizer_fingerprint": self.tokenizer,
        }

    def differences(self, other: "FrontEnd") -> list[Difference]:
        """Returns the parts in which two front ends differ; a missing codec is ignored.

        The layout is the last element, because it usually differs only if another part does.
        """
        found = []
        if self.tokenizer != other.tokenizer:
            found.append(Difference("tokenizer", self.tokenizer, other.tokenizer))
        if None not in (self.codec, other.codec) and self.codec != other.codec:
            found.append(Difference("codec", str(self.codec), str(other.codec)))
        if self.layout != other.layout:
            ours, theirs = self.layout.to_json(), other.layout.to_json()
            fields = [field for field in ours if ours[field] != theirs[field]]
            found.append(
                Difference("vocabulary layout", _show(ours, fields), _show(theirs, fields))
            )
        return found

    def check_same(
        self,
        other: "FrontEnd",
        name: str,
        other_name: str,
        *,
        fixes: Mapping[str, str] | None = None,
        otherwise: str = "",
        repair: str = "",
    ) -> None:
        """Raises UserError for the first of `differences`.

        Args:
          other: the expected front end.
          name: what this front end belongs to, for the error message.
          other_name: what `other` belongs to.
          fixes: `Difference.part` -> fix in the error message, instead of the default fix.
          otherwise: alternative fix, appended to the error message.
          repair: data set for `soda checkpoints --repair`, which the message suggests if a
            fingerprint looks damaged.
        """
        for difference in self.differences(other):
            fix = {**_FIXES, **(fixes or {})}[difference.part]
            if repair and difference.looks_damaged:
                fix = (
                    "they differ in one or two characters, probably because of a damaged manifest: "
                    f"run soda checkpoints WORKDIR --repair={repair}"
                )
            raise UserError(
                f"{name} has the {difference.part} {difference.ours}, {other_name} has "
                f"{difference.theirs}; {fix}{', or ' if otherwise else ''}{otherwise}"
            )


def _show(layout: Mapping[str, Any], fields: list[str]) -> str:
    return ", ".join(f"{field} {layout[field]}" for field in fields)
