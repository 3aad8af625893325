"""Restricts Transformers' `generate` to legal SODA documents.

In a legal document the codebooks are in order, every span is closed and every frame is complete.

    import sys

    sys.path.insert(0, folder)  # the model's folder, which contains this file
    from soda_grammar import SodaGrammar

    grammar = SodaGrammar.from_pretrained(folder, max_frames=375)
    model.generate(**inputs, logits_processor=[grammar], max_new_tokens=4000)

Each row of a batch must be the beginning of a legal document, starting with BOS. Shorter rows must
be padded on the left. A row whose document has ended continues with EOS or padding.

Requires torch, transformers and the tables in grammar.json in the same folder.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.utils import cached_file

_FILE = "grammar.json"
_FORMAT_VERSION = 1


class SodaGrammar(LogitsProcessor):
    """A logits processor that allows only legal next tokens.

    The state of each row is stored between calls, so that a step runs the automaton only on the new
    token. Rows may be reordered between steps, as in beam search. If a row does not extend a row of
    the last call by one token, all rows are treated as new prompts.
    """

    def __init__(
        self,
        tables: dict[str, Any],
        codebooks: int = 0,
        max_frames: int = 0,
        padding: int | None = None,
    ):
        """Builds the automaton from its tables.

        Args:
          tables: the content of grammar.json.
          codebooks: number of codebooks per frame in the document; 0 = all.
          max_frames: total number of new frames in all audio spans after which only the token that
            closes the span is legal; 0 = no limit. A later span still needs one frame.
          padding: id of the padding token; None uses the id in `tables` (EOS).

        Raises:
          ValueError: if the tables have another format version, the model has fewer codebooks than
            `codebooks`, or the padding id is BOS or outside the vocabulary.
        """
        if tables.get("format_version") != _FORMAT_VERSION:
            raise ValueError(
                f"{_FILE} has format version {tables.get('format_version')}, this file reads "
                f"{_FORMAT_VERSION}: take both from the same export"
            )
        automata = tables["automata"]
        chosen = str(codebooks) if codebooks else max(automata, key=int)
        if chosen not in automata:
            raise ValueError(f"codebooks={codebooks}: the model has 1 to {max(automata, key=int)}")
        rules, self._names = automata[chosen], tables["group_names"]
        self._start, self._end = int(rules["start"]), int(rules["end"])
        self._eos = int(tables["eos"])
        self._padding = int(tables["padding"] if padding is None else padding)
        self._max_frames = max_frames
        groups = torch.zeros(tables["vocabulary"], dtype=torch.long)
        for first, last, group in tables["group_runs"]:
            groups[first : last + 1] = group
        # An extra group, which is never legal, is used for ids outside the vocabulary.
        legal = torch.tensor(rules["transitions"])
        beyond = torch.full_like(legal[:, :1], tables["illegal"])
        self._tables = {
            "group_of_id": groups,
            "transitions": torch.cat([legal, beyond], dim=1),
            "boundary": torch.tensor(rules["frame_boundary"]),
        }
        if not 0 <= self._padding < len(groups):
            raise ValueError(f"padding={self._padding} is not in 0–{len(groups) - 1}")
        if self._allowed_first()[groups[self._padding]]:
            raise ValueError(f"padding={self._padding} is BOS, the first token of every document")
        self._close = self._names.index("audio_end")
        self._before: torch.Tensor | None = None  # the ids of the last call, [batch, tokens]
        self._states = self._frames = torch.zeros(0, dtype=torch.long)  # [batch]

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "SodaGrammar":
        """Creates the processor from the `grammar.json` of an exported model.

        Args:
          folder: the model's folder, or its name on the hub.
          options: other arguments of the constructor.
        """
        path = Path(cached_file(str(folder), _FILE))
        return cls(json.loads(path.read_text("utf-8")), **options)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns the scores with the illegal tokens set to −∞.

        Args:
          input_ids: the tokens so far `[batch, tokens]`.
          scores: logits of the next token `[batch, vocabulary]`; extra columns are illegal.

        Raises:
          ValueError: if a row is not the beginning of a legal document (the message contains the
            row, position and token), or the model has fewer ids than grammar.json.
        """
        legal = self.legal(input_ids)
        missing = scores.shape[-1] - legal.shape[-1]
        if missing < 0:
            raise ValueError(
                f"the model has {scores.shape[-1]} ids, {_FILE} has {legal.shape[-1]}: "
                "take both from the same export"
            )
        legal = torch.nn.functional.pad(legal, (0, missing), value=False).to(scores.device)
        return scores.masked_fill(~legal, -torch.inf)

    def legal(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the legal next tokens, bool `[batch, vocabulary]`.

        Args:
          input_ids: the tokens so far `[batch, tokens]`.
        """
        self._tables = {name: t.to(input_ids.device) for name, t in self._tables.items()}
        origins = self._origins(input_ids)
        if origins is None:
            self._states = self._read(input_ids)
            self._frames = torch.zeros_like(self._states)
        else:
            self._advance(origins, input_ids)
        self._before = input_ids.clone()
        allowed = self._tables["transitions"][self._states] >= 0
        if self._max_frames:
            full = (self._frames >= self._max_frames) & self._tables["boundary"][self._states]
            only = torch.arange(allowed.shape[1], device=allowed.device) == self._close
            allowed = torch.where(full[:, None], allowed & only, allowed)
        legal = allowed[:, self._tables["group_of_id"]]
        ended = self._states == self._end
        legal[:, [self._eos, self._padding]] |= ended[:, None]
        return legal

    def _allowed_first(self) -> torch.Tensor:
        return self._tables["transitions"][self._start] >= 0

    def _groups(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the group of each id; ids outside the vocabulary are in the extra group."""
        groups = self._tables["group_of_id"]
        ids = ids.to(groups.device)
        inside = (ids >= 0) & (ids < len(groups))
        return torch.where(inside, groups[ids.clamp(0, len(groups) - 1)], len(self._names))

    def _origins(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Returns, for each row, which row of the last call it extends by one token.

        Returns None if a row does not extend any of them, as for a new prompt.
        """
        before = self._before
        if before is None or ids.shape != (len(before), before.shape[1] + 1):
            return None
        if before.device != ids.device:
            return None
        prefix = ids[:, :-1]
        if torch.equal(prefix, before):
            return torch.arange(len(ids), device=ids.device)
        same = (prefix[:, None] == before[None]).all(-1)
        return same.int().argmax(1) if bool(same.any(1).all()) else None

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the states after a prompt, `[batch]`."""
        transitions = self._tables["transitions"].cpu()
        rows, groups = ids.cpu(), self._groups(ids).cpu()
        states = torch.full((len(rows),), self._start)
        for position in range(rows.shape[1]):
            padding = (states == self._start) & (rows[:, position] == self._padding)
            following = torch.where(padding, states, transitions[states, groups[:, position]])
            self._check(following, states, rows[:, position], position)
            states = following
        return states.to(ids.device)

    def _advance(self, origins: torch.Tensor, ids: torch.Tensor) -> None:
        """Updates the states and frame counts with the last token of each row."""
        states, frames, token = self._states[origins], self._frames[origins], ids[:, -1]
        following = self._tables["transitions"][states, self._groups(token)]
        # After a stop token, `generate` fills the row with padding, even within a document.
        over = (states == self._end) & (token == self._eos)
        over |= (following < 0) & (token == self._padding)
        following = torch.where(over, self._end, following)
        self._check(following, states, token, ids.shape[1] - 1)
        self._frames = frames + self._tables["boundary"][following]
        self._states = following

    def _check(
        self, following: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor, position: int
    ) -> None:
        illegal = (following < 0).nonzero()
        if not len(illegal):
            return
        row = int(illegal[0])
        token, allowed = int(tokens[row]), self._tables["transitions"][int(states[row])] >= 0
        names = [*self._names, "outside the vocabulary"]
        due = [name for name, may in zip(names, allowed.tolist(), strict=True) if may]
        found = names[int(self._groups(tokens[row]))]
        raise ValueError(
            f"row {row}, position {position}: token {token} ({found}) is illegal, expected "
            f"{', '.join(due) or 'nothing (the document has ended)'}"
        )
