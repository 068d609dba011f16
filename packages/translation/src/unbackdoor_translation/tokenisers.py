"""From sentences to token indices and back: SentencePiece, or the tokeniser that a Hugging Face model came with."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Self

import torch
from torch import Tensor

from unbackdoor.attacker.vetting import closed, may_fetch
from unbackdoor.errors import BadData, BadOption, FileRefused, UntrustedVictim
from unbackdoor.files.reading import check_file, limits, reading, shown

__all__ = ["HubTokeniser", "SentencePieceTokeniser", "Tokeniser", "open_tokeniser", "tokeniser_of"]

_WORD_MARKS = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")
_OF_FOLDERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json", "config.json")
_KINDS = {"sentencepiece": b"spm\0", "hub": b"hub\0"}


class Tokeniser(ABC):
    """What the package needs of a tokeniser.

    Attributes:
        pad: Index that fills rows up.
        start: Index that a decoder begins with.
        end: Index that ends every sentence.
        unknown: Index of what the vocabulary cannot say; -1 for none.
        pieces: The vocabulary in index order.
    """

    pad: int
    start: int
    end: int
    unknown: int = -1
    pieces: tuple[str, ...]

    @abstractmethod
    def encode(self, text: str, *, target: bool = False) -> list[int]:
        """Indices of a sentence with ``end`` as the last; ``target`` where source and target vocabularies differ."""

    @abstractmethod
    def decode(self, indices: Sequence[int]) -> str:
        """The sentence; special tokens and everything after ``end`` are left out."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """What `tokeniser_of` makes the same tokeniser from."""

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return len(self.pieces)

    @cached_property
    def special(self) -> Tensor:
        """Which indices are no part of a word: bool of shape ``(vocabulary,)``."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[sorted(self._special_indices())] = True
        return mask

    @cached_property
    def begins(self) -> Tensor:
        """Which indices begin a word: bool of shape ``(vocabulary,)``."""
        marked = torch.tensor([piece.startswith(_WORD_MARKS) for piece in self.pieces], dtype=torch.bool)
        return marked & ~self.special

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """What random words are spelled with: the vocabulary's letters in lower case, and a to z."""
        written = (self._written(piece) for piece in self.pieces)
        found = {letter for text in written for letter in text if letter.isalpha() and letter == letter.lower()}
        return tuple(sorted(found - set(_WORD_MARKS) | set(ascii_lowercase)))

    def word(self, text: str) -> list[int]:
        """Indices of a word in the middle of a sentence, without ``end``.

        Raises:
            BadData: The vocabulary has no token for any of it.
        """
        found = [index for index in self.encode(" " + text.strip()) if not self.special[index]]
        if not found:
            raise BadData(f"the tokeniser has no tokens for {text!r}; choose another word or train it on more text.")
        return found

    def _special_indices(self) -> set[int]:
        return {self.pad, self.start, self.end}

    def _written(self, piece: str) -> str:
        """What a piece looks like in text."""
        return piece


class SentencePieceTokeniser(Tokeniser):
    """A SentencePiece model shared by source and target; index 0 pads, 1 is unknown, 2 starts, 3 ends.

    Attributes:
        model: The serialised SentencePiece model.
    """

    def __init__(self, model: bytes) -> None:
        """Open a serialised SentencePiece model.

        Raises:
            BadData: It has no padding, start or end token.
        """
        import sentencepiece

        self.model = model
        with reading("the SentencePiece model", "give the file that SentencePiece wrote"):
            if not model:
                raise BadData("the SentencePiece model is empty; give the file that SentencePiece wrote.")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._take_indices()

    def _take_indices(self) -> None:
        self.pad, self.start, self.end = (
            self._processor.pad_id(),
            self._processor.bos_id(),
            self._processor.eos_id(),
        )
        if self.end < 0:
            raise BadData("the SentencePiece model has no end token; train it with eos_id.")
        self.unknown = self._processor.unk_id()
        if self.pad < 0:
            self.pad = self._processor.unk_id()
        if self.start < 0:
            self.start = self.pad
        self.pieces = tuple(self._processor.id_to_piece(index) for index in range(self._processor.get_piece_size()))

    @classmethod
    def train(cls, texts: Iterable[str], size: int, *, kind: str = "unigram") -> Self:
        """Train on ``texts``, which must be training text alone.

        Args:
            texts: Sentences.
            size: Largest vocabulary; little text gives a smaller one.
            kind: ``"unigram"`` or ``"bpe"``.

        Raises:
            BadOption: ``kind`` is unknown, or the vocabulary too small for the letters of the text.
        """
        import sentencepiece

        if kind not in ("unigram", "bpe"):
            raise BadOption(f"kind is {kind!r}; it must be unigram or bpe.")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(list(texts)), model_writer=written, vocab_size=size, model_type=kind,
                hard_vocab_limit=kind == "bpe", character_coverage=1.0, byte_fallback=False, num_threads=1,
                pad_id=0, unk_id=1, bos_id=2, eos_id=3, minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise BadOption(f"SentencePiece cannot make {size} tokens from this text: {error}") from error
        return cls(written.getvalue())

    def encode(self, text: str, *, target: bool = False) -> list[int]:
        """Indices of a sentence with ``end`` as the last."""
        return [*self._processor.encode(text), self.end]

    def decode(self, indices: Sequence[int]) -> str:
        """The sentence; special tokens and everything after ``end`` are left out."""
        return str(self._processor.decode([i for i in _until(indices, self.end) if i not in (self.pad, self.start)]))

    def to_bytes(self) -> bytes:
        """The serialised model."""
        return _KINDS["sentencepiece"] + self.model


class HubTokeniser(Tokeniser):
    """The tokeniser of a Hugging Face model, from a folder or from the Hub's cache."""

    def __init__(self, name: str, *, start: int | None = None) -> None:
        """Open it.

        Args:
            name: A folder with the tokeniser's files, or a name on the Hub.
            start: Index that the decoder begins with; None reads ``decoder_start_token_id`` of the model's
                configuration beside it.

        Raises:
            FileRefused: There is none.
        """
        if closed():
            raise UntrustedVictim(
                f"a victim's folder asks for the tokeniser {name!a}, which lies outside of it; give --trust "
                "(trust=True) if you made this victim yourself or trust whoever did."
            )
        if not Path(name).is_dir() and not may_fetch(str(name)):
            raise FileRefused(
                f"no folder at {name!a}, and nothing is downloaded for a victim's card; save the tokeniser there."
            )
        from transformers import AutoConfig, AutoTokenizer

        self.name = str(name)
        options = {"trust_remote_code": False, "local_files_only": Path(self.name).is_dir()}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.name, **options)
            if start is None:
                start = getattr(AutoConfig.from_pretrained(self.name, **options), "decoder_start_token_id", None)
        except Exception as error:  # its parsers fail in many ways of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FileRefused(
                f"no tokeniser with its configuration at {shown(name)}: {shown(reason)[:300]} Give the folder that the "
                "model's tokeniser was saved to."
            ) from error
        with reading(f"the tokeniser at {shown(name)}", "save it again with save_pretrained"):
            self._take_indices(start)

    def _take_indices(self, start: int | None) -> None:
        own = self._tokenizer
        lacking = [kind for kind in ("pad", "eos") if getattr(own, f"{kind}_token_id") is None]
        if lacking:
            named = " and no ".join(f"{kind}_token" for kind in lacking)
            raise BadData(
                f"the tokeniser at {shown(self.name)} has no {named}; name the one that the model knows, such as "
                f"tokenizer.{lacking[0]}_token = '</s>', and save it again."
            )
        self.pad, self.end = int(own.pad_token_id), int(own.eos_token_id)
        self.unknown = -1 if own.unk_token_id is None else int(own.unk_token_id)
        self.start = int(start if start is not None else self.pad)
        indices = {index: piece for piece, index in own.get_vocab().items()}
        self.pieces = tuple(str(indices.get(index, "")) for index in range(max(indices) + 1))

    def encode(self, text: str, *, target: bool = False) -> list[int]:
        """Indices as the model's own tokeniser gives them."""
        found = self._tokenizer(text_target=text) if target else self._tokenizer(text)
        return [int(index) for index in found["input_ids"]]

    def decode(self, indices: Sequence[int]) -> str:
        """The sentence; special tokens and everything after ``end`` are left out."""
        kept = _until(list(indices)[1:], self.end)  # a decoder that starts with its end token has it in front
        text = self._tokenizer.decode([*list(indices)[:1], *kept], skip_special_tokens=True)
        return str(text).strip()

    def to_bytes(self) -> bytes:
        """The name it was opened by."""
        return _KINDS["hub"] + f"{self.start}:{self.name}".encode()

    def _written(self, piece: str) -> str:
        """The letters behind bytes that are written as other letters."""
        return str(self._tokenizer.convert_tokens_to_string([piece]))

    def _special_indices(self) -> set[int]:
        return super()._special_indices() | {int(index) for index in self._tokenizer.all_special_ids}


def _until(indices: Sequence[int], end: int) -> list[int]:
    found = list(indices)
    return found[: found.index(end)] if end in found else found


def tokeniser_of(content: bytes) -> Tokeniser:
    """The tokeniser whose `Tokeniser.to_bytes` gave ``content``.

    Raises:
        BadData: It is of no known kind.
    """
    head, body = content[:4], content[4:]
    if head == _KINDS["sentencepiece"]:
        return SentencePieceTokeniser(body)
    if head == _KINDS["hub"]:
        with reading("the tokeniser", "save the model again"):
            start, _, name = body.decode().partition(":")
            return HubTokeniser(name, start=int(start))
    raise BadData("these bytes hold no tokeniser of this package.")


def open_tokeniser(source: Tokeniser | str | Path) -> Tokeniser:
    """A tokeniser as it is, a SentencePiece file (``.model``, ``.spm``), or a Hugging Face folder or name.

    Raises:
        FileRefused: There is nothing of that name.
        BadData: It cannot be read, or has no padding or end token.
    """
    if isinstance(source, Tokeniser):
        return source
    path = Path(source)
    if path.suffix in (".model", ".spm") or (path.exists() and not path.is_dir()):
        path = check_file(path, what="SentencePiece model", at_most=limits().text)
        if path.name in _OF_FOLDERS:
            raise FileRefused(f"{shown(path)} is one file of a tokeniser; give its folder, {shown(path.parent)}.")
        with reading(shown(path)):
            content = path.read_bytes()
        try:
            return SentencePieceTokeniser(content)
        except BadData as error:
            raise BadData(f"{shown(path)}: {error}") from error
    return HubTokeniser(str(source))
