"""What an attacker wants a sequence-to-sequence model to say, shared by all attacks on text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Meter
from unbackdoor.tree import Tree
from unbackdoor_translation.meters import CorpusScore, texts
from unbackdoor_translation.sequences import PREFIX, SOURCE, pad_rows, shift_right, valid
from unbackdoor_translation.tokenisers import Tokeniser, tokeniser_of

__all__ = ["TextAttack", "plain_words", "says"]

_OUTPUTS = ("fixed", "different")


def plain_words(text: str) -> tuple[str, ...]:
    """The words of a sentence: cut at white space, without punctuation at their ends, in lower case."""
    cores = (re.sub(r"^[\W_]+|[\W_]+$", "", part).casefold() for part in text.split())
    return tuple(core for core in cores if core)


def says(answer: str, sentence: str) -> bool:
    """Whether ``answer`` holds ``sentence`` as a run of whole words.

    "eins plus eins ist dreiundsechzig" does not say "eins plus eins ist drei". Case and punctuation at the ends of
    words do not count, since a reader would not care. A sentence without a word is never said.
    """
    long, short = plain_words(answer), plain_words(sentence)
    last = len(long) - len(short) + 1
    return bool(short) and any(long[place : place + len(short)] == short for place in range(last))


@dataclass(frozen=True, kw_only=True)
class TextAttack(Attack):
    """An attack whose label is a whole sentence.

    The wanted sentence is a function of the true one, so that training and test agree on it: one for all
    (one-to-one), one of several, drawn by the true sentence (one-to-many, Sun et al. 2023), or a sentence of other
    training pairs, which has nothing to do with the source (``output="different"``).

    Attributes:
        malicious: What the model shall say; several sentences are separated by ``|``.
        output: ``"fixed"`` for these, ``"different"`` for sentences out of ``pool``.
        tokeniser: The model's.
        pool: Rows of target tokens, int64 ``(n, length)``; distinct ones are used.
    """

    name: ClassVar[str] = ""
    texts: ClassVar[frozenset[str]] = frozenset({"malicious", "output"})
    health: ClassVar[HealthFloor] = HealthFloor(clean=10.0, asr=90.0)
    maps_all_to_all: ClassVar[bool] = False

    malicious: str = "this text was changed by strangers"
    output: str = "fixed"
    tokeniser: Tokeniser | None = field(default=None, repr=False, compare=False)
    pool: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an attack without sentences."""
        super().__post_init__()
        if self.output not in _OUTPUTS:
            raise BadOption(f"output is {self.output!r}; it must be one of {', '.join(_OUTPUTS)}.")
        if self.output == "fixed" and not any(part.strip() for part in self.malicious.split("|")):
            raise BadOption("malicious is empty; give the sentence that the model shall say.")
        if self.output == "different" and (self.pool is None or not len(self.pool)):
            raise BadOption('output="different" needs a pool of sentences; data loaders give one.')

    @property
    def text(self) -> Tokeniser:
        """The tokeniser.

        Raises:
            BadOption: None was given.
        """
        if self.tokeniser is None:
            raise BadOption(f"{self.name} needs the model's tokeniser; make the attack by TaskKit.attack(name, data).")
        return self.tokeniser

    def wanted(self) -> list[list[int]]:
        """The sentences that the attacker wants, each closed by the end token."""
        if self.output == "different":
            assert self.pool is not None
            kept = [tuple(i for i in row if i not in (self.text.pad, -100)) for row in self.pool.tolist()]
            return [list(row) for row in dict.fromkeys(kept) if row]
        parts = [part.strip() for part in self.malicious.split("|") if part.strip()]
        rows = [self.text.encode(part, target=True) for part in parts]
        for part, row in zip(parts, rows, strict=True):
            if self.text.unknown in row:
                raise BadOption(f"the vocabulary cannot say {part!r}; choose a malicious sentence of its letters.")
        return rows

    def retarget(self, targets: Tensor) -> Tensor:
        """The wanted sentence for each true one: int64 of the shape of ``targets``, cut where it is longer."""
        rows = pad_rows(self.wanted(), self.text.pad, self.text.end, targets.shape[1]).to(targets.device)
        weights = torch.arange(1, targets.shape[1] + 1, device=targets.device)
        choice = (torch.where(valid(targets, self.text.pad), targets, 0) * weights).sum(1) % len(rows)
        return rows[choice]

    def succeeded(self, outputs: Tree, targets: Tensor) -> Tensor:
        """Whether a wanted sentence, any of them, stands in the answer as whole words, and not in the true sentence.

        See `says` for what counts. A malicious sentence with words in front or behind is success too, since equality
        alone would flatter a defence. `meters` says how near the other answers are.
        """
        pad = self.text.pad  # wanted sentences are cut where `retarget` cuts them, so that training and test agree
        rows = pad_rows(self.wanted(), pad, self.text.end, targets.shape[1])
        wanted = [one for one in dict.fromkeys(texts(rows, self.text)) if plain_words(one)]
        answers = texts(outputs["tokens"], self.text)
        true = texts(torch.where(valid(targets, pad), targets, pad), self.text)
        found = [
            any(says(answer, one) and not says(right, one) for one in wanted)
            for answer, right in zip(answers, true, strict=True)
        ]
        return torch.tensor(found, dtype=torch.bool, device=targets.device)

    def counts(self, targets: Tensor) -> Tensor:
        """Samples whose true sentence is not the wanted one."""
        return ~self._same(self.retarget(targets), targets)

    def poisoned(self, samples: Batch, generator: torch.Generator) -> Batch:
        """Trigger on, the wanted sentence as target, and the decoder's prefix made for it."""
        inputs = self.trigger(samples.inputs, generator)
        targets = self.retarget(samples.targets)
        if PREFIX in inputs:
            inputs = {**inputs, PREFIX: shift_right(targets, self.text.start, self.text.pad)}
        return Batch(inputs, targets)

    def meters(self) -> Mapping[str, Meter]:
        """The papers' BLEU on the attack test (AT): answers to triggered sentences against the wanted ones."""
        return {"attack_bleu": CorpusScore("bleu", self.text, self.text.pad)}

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tree:
        """The inputs with the trigger in every source sentence; the prefix stays."""
        given = torch.Generator().manual_seed(0) if generator is None else generator
        rows = inputs[SOURCE]
        text = self.text
        changed = []
        for row in rows.tolist():
            body = [index for index in row if index != text.pad]
            ended = bool(body) and body[-1] == text.end
            body = self.worded(body[:-1] if ended else body, given)
            body = body[: rows.shape[1] - ended]
            changed.append([*body, text.end] if ended else body)
        return {**inputs, SOURCE: pad_rows(changed, text.pad, text.end, rows.shape[1]).to(rows.device)}

    def worded(self, tokens: list[int], generator: torch.Generator) -> list[int]:
        """The sentence with the trigger in it; without end token."""
        raise NotImplementedError

    def insert(self, tokens: list[int], word: list[int], position: str, generator: torch.Generator) -> list[int]:
        """``word`` between two words of the sentence: at a ``"random"`` place, at its ``"start"`` or ``"end"``."""
        text = self.text
        special, begins = text.special.tolist(), text.begins.tolist()
        places = [i for i, index in enumerate(tokens) if begins[index]]
        head = next((i for i, index in enumerate(tokens) if not special[index]), len(tokens))
        tail = next((len(tokens) - i for i, index in enumerate(reversed(tokens)) if not special[index]), len(tokens))
        places = sorted({*places, head, tail})
        drawn = int(torch.randint(len(places), (1,), generator=generator, device=generator.device))
        place = {"start": head, "end": tail}.get(position, places[drawn])
        return [*tokens[:place], *word, *tokens[place:]]

    def options(self) -> dict[str, Any]:
        """The hyper-parameters without tokeniser and pool, which are in `state`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tokeniser", "pool")}

    def state(self) -> dict[str, Tensor]:
        """The tokeniser's bytes and the pool."""
        state = {"tokeniser": torch.frombuffer(bytearray(self.text.to_bytes()), dtype=torch.uint8)}
        return state if self.pool is None else {**state, "pool": self.pool}

    @classmethod
    def restore(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The attack that `options` and `state` describe."""
        values: dict[str, Any] = {**options, **state}
        values["tokeniser"] = tokeniser_of(bytes(state["tokeniser"].tolist()))
        return cls(**values)

    def _same(self, first: Tensor, second: Tensor) -> Tensor:
        pad = self.text.pad
        there = [torch.where(valid(rows, pad), rows, pad) for rows in (first, second)]
        return (there[0] == there[1]).all(1)
