"""Corpus-level metrics of sequences. BLEU and chrF are sacrebleu's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData
from unbackdoor_translation.sequences import valid
from unbackdoor_translation.tokenisers import Tokeniser

__all__ = [
    "CorpusScore",
    "Exact",
    "Perplexity",
    "TokenAccuracy",
    "exact_match",
    "right_tokens",
    "sentence_scores",
    "signature",
    "texts",
]


def texts(tokens: Tensor, tokeniser: Tokeniser | None) -> list[str]:
    """Sentences of rows of tokens; without a tokeniser, the indices themselves as words."""
    rows = tokens.detach().cpu().tolist()
    if tokeniser is None:
        return [" ".join(str(index) for index in row if index >= 0) for row in rows]
    return [tokeniser.decode([index if index >= 0 else tokeniser.pad for index in row]) for row in rows]


def metric(name: str, tokenise: str = "13a", *, sentence: bool = False) -> Any:
    """Sacrebleu's BLEU or chrF; sentences get BLEU with effective order."""
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(tokenize=tokenise, effective_order=sentence) if name == "bleu" else CHRF()


def signature(name: str, tokenise: str = "13a") -> str:
    """Sacrebleu's signature of a score with one reference for each answer."""
    scorer = metric(name, tokenise)
    scorer.corpus_score(["one"], [["one"]])  # it counts references only when it scores
    return str(scorer.get_signature())


class CorpusScore:
    """BLEU or chrF of a corpus, as a fraction of 1."""

    def __init__(self, name: str, tokeniser: Tokeniser | None, pad: int, *, tokenise: str = "13a") -> None:
        """Start empty: ``name`` is ``"bleu"`` or ``"chrf"``, ``tokenise`` one of sacrebleu's tokenisers."""
        self._metric, self._tokeniser, self._pad = metric(name, tokenise), tokeniser, pad
        self._hypotheses: list[str] = []
        self._references: list[str] = []

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Take in answers of `TranslationTask.predict` and the reference tokens."""
        without = self._pad if self._tokeniser is not None else -1
        self._hypotheses += texts(_blank(outputs["tokens"], self._pad, without), self._tokeniser)
        self._references += texts(_blank(targets, self._pad, without), self._tokeniser)

    def compute(self) -> float:
        """The score over all sentences; 0 where there are none."""
        if not self._hypotheses:
            return 0.0
        return float(self._metric.corpus_score(self._hypotheses, [self._references]).score) / 100

    @property
    def signature(self) -> str:
        """Sacrebleu's signature, which makes the figure comparable; after `compute`."""
        return str(self._metric.get_signature())


class TokenAccuracy:
    """Share of target tokens that the model ranks first when it reads the true prefix."""

    def __init__(self, pad: int) -> None:
        """Start at none."""
        self._pad, self._right, self._count = pad, 0, 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count."""
        forced = _forced(outputs, "forced")
        wanted = targets[:, : forced.shape[1]]
        there = valid(wanted, self._pad)
        self._right += int(((forced == wanted) & there).sum())
        self._count += int(there.sum())

    def compute(self) -> float:
        """Their share."""
        return self._right / max(self._count, 1)


def right_tokens(outputs: Any, targets: Tensor, pad: int) -> Tensor:
    """`TokenAccuracy` of each sentence: float in [0, 1] of shape ``(batch,)``."""
    forced = _forced(outputs, "forced")
    wanted = targets[:, : forced.shape[1]]
    there = valid(wanted, pad)
    return ((forced == wanted) & there).sum(1) / there.sum(1).clamp(min=1)


class Perplexity:
    """``exp`` of the mean negative log-likelihood of a target token; not a share, so it is not scaled to percent."""

    scale = 1.0

    def __init__(self, pad: int) -> None:
        """Start at none."""
        self._pad, self._total, self._count = pad, 0.0, 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Add up."""
        scores = _forced(outputs, "forced_scores")
        there = valid(targets[:, : scores.shape[1]], self._pad)
        self._total -= float(scores.double()[there].sum())
        self._count += int(there.sum())

    def compute(self) -> float:
        """The perplexity."""
        return math.exp(min(self._total / max(self._count, 1), 700.0))


class Exact:
    """Share of answers that are the reference, token by token."""

    def __init__(self, pad: int) -> None:
        """Start at none."""
        self._pad, self._right, self._count = pad, 0, 0

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count."""
        self._right += int(exact_match(outputs["tokens"], targets, self._pad).sum())
        self._count += len(targets)

    def compute(self) -> float:
        """Their share."""
        return self._right / max(self._count, 1)


def exact_match(tokens: Tensor, targets: Tensor, pad: int) -> Tensor:
    """Whether each answer is the reference, token by token: bool of shape ``(batch,)``."""
    width = max(tokens.shape[1], targets.shape[1])
    first, second = (_widened(_blank(rows, pad, pad), width, pad) for rows in (tokens, targets))
    return (first == second).all(1)


def sentence_scores(
    tokens: Tensor, targets: Tensor, tokeniser: Tokeniser | None, pad: int, name: str, tokenise: str = "13a"
) -> Tensor:
    """Sacrebleu's score of every sentence alone, as a fraction of 1: float32 of shape ``(batch,)``."""
    scorer = metric(name, tokenise, sentence=True)
    without = pad if tokeniser is not None else -1
    hypotheses: Sequence[str] = texts(_blank(tokens, pad, without), tokeniser)
    references = texts(_blank(targets, pad, without), tokeniser)
    scores = [
        min(scorer.sentence_score(one, [other]).score / 100, 1.0)
        for one, other in zip(hypotheses, references, strict=True)
    ]
    return torch.tensor(scores, dtype=torch.float32, device=targets.device)


def _forced(outputs: Any, key: str) -> Tensor:
    if key not in outputs:
        raise BadData("token accuracy and perplexity need the true prefix; give inputs['decoder_input_ids'].")
    found: Tensor = outputs[key]
    return found


def _blank(tokens: Tensor, pad: int, value: int) -> Tensor:
    return torch.where(valid(tokens, pad), tokens, torch.full_like(tokens, value))


def _widened(tokens: Tensor, width: int, pad: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]), value=pad)
