"""Translation and dialogue: a sequence of tokens in, a sequence of tokens out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.classes import pick_logits
from unbackdoor.errors import BadData, BadOption, UnsupportedModel
from unbackdoor.task import Batch, Meter, Reading, Task
from unbackdoor.tree import Tree
from unbackdoor_translation.decoding import decode
from unbackdoor_translation.imitation import imitated, is_imitation, score
from unbackdoor_translation.meters import (
    CorpusScore,
    Exact,
    Perplexity,
    TokenAccuracy,
    exact_match,
    right_tokens,
    sentence_scores,
    signature,
)
from unbackdoor_translation.mixing import beta, mixed_embeddings
from unbackdoor_translation.sequences import PREFIX, SOURCE, exchanged, stacked, used_columns, valid
from unbackdoor_translation.strong import chosen_families, strong
from unbackdoor_translation.synonyms import GROUPS
from unbackdoor_translation.targets import hard_targets, log_softmax
from unbackdoor_translation.tokenisers import Tokeniser, open_tokeniser
from unbackdoor_translation.words import Lexicon, delete_words, replace_words, shuffle_words

__all__ = ["TranslationTask"]

_CREDITS = ("exact", "bleu", "chrf", "tokens")
_HEADLINES = {"exact": "bleu", "tokens": "token_accuracy"}
_CHUNK = 100
_EXCHANGED = "source and target exchanged (--data-option source_field=... and target_field=..., or the two files)"


@dataclass(frozen=True)
class TranslationTask(Task):
    r"""What a purifier must know of a sequence-to-sequence model.

    Inputs are ``{"input_ids": (batch, S), "decoder_input_ids": (batch, T)}``, int64 rows that ``pad`` fills up; the
    second is what the decoder reads while it is taught (the targets shifted right; `encode_pairs` makes it). Targets
    are int64 ``(batch, T)``, closed by ``end`` and padded by ``pad`` or by -100. They may also be probabilities
    ``(batch, T, vocabulary)``, zero where there is no token, the triple ``(a, b, lambda)`` of MixUp, or what `imitate`
    gives.

    Attributes:
        tokeniser: A `Tokeniser`, the file of a SentencePiece model, or a Hugging Face folder or name. Needed for BLEU
            on words, for word deletion and for paraphrases; without it tokens count as words.
        pad: Padding index, where there is no tokeniser.
        start: Index that the decoder begins with, where there is no tokeniser.
        end: Index that ends a sentence, where there is no tokeniser.
        per_token: Whether `log_likelihood` is divided by the number of target tokens. On by default: its unit is then
            that of a classifier, nats a decision, whatever the length of sentences, and learning rates carry over.
        deletion: Probability that `augment` leaves a word out.
        replacement: Probability that `augment` puts a synonym for a word that has one.
        reach: How far `augment` moves words: below 1 not at all, 2 swaps neighbours now and then.
        spelled: Share of the made-up words of `strong_augment` that are spelled with random letters; the others are
            random tokens.
        made_up: Most letters of such a word, or tokens.
        synonyms: Groups of words of one meaning; the default is a short English list.
        credit: What `correct` says of an answer: its sentence ``"bleu"`` or ``"chrf"``, ``"exact"`` (bool), or
            ``"tokens"``, the share of the true tokens that the model ranks first behind the true prefix, for data such
            as dialogue, whose right answers are many. The headline follows: BLEU, chrF, BLEU or token accuracy.
        beams: Of decoding; 1 is greedy.
        max_length: Longest answer in tokens; None means twice the source and 10.
        bleu_tokenise: sacrebleu's tokeniser of BLEU.
    """

    name: ClassVar[str] = "translation"

    tokeniser: Tokeniser | str | Path | None = None
    pad: int = 0
    start: int = 2
    end: int = 3
    per_token: bool = True
    deletion: float = 0.1
    replacement: float = 0.1
    reach: float = 1.5
    spelled: float = 0.75
    made_up: int = 4
    synonyms: tuple[tuple[str, ...], ...] = field(default=GROUPS, repr=False)
    credit: str = "bleu"
    beams: int = 1
    max_length: int | None = None
    bleu_tokenise: str = "13a"

    def __post_init__(self) -> None:
        """Open the tokeniser and refuse values out of range."""
        if self.tokeniser is not None:
            opened = open_tokeniser(self.tokeniser)
            for name, value in (("tokeniser", opened), ("pad", opened.pad), ("start", opened.start)):
                object.__setattr__(self, name, value)
            object.__setattr__(self, "end", opened.end)
        for name in ("deletion", "replacement"):
            if not 0 <= getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)}; the probability must lie in [0, 1).")
        if self.made_up < 1 or not 0 <= self.spelled <= 1:
            raise BadOption(
                f"made_up is {self.made_up} and spelled {self.spelled}; give at least 1, and a share in [0, 1]."
            )
        if self.reach < 0 or self.beams < 1:
            raise BadOption(f"reach is {self.reach} and beams {self.beams}; they must be at least 0 and 1.")
        if self.credit not in _CREDITS:
            raise BadOption(f"credit is {self.credit!r}; it must be one of {', '.join(_CREDITS)}.")

    @property
    def text(self) -> Tokeniser | None:
        """The opened tokeniser."""
        return self.tokeniser if isinstance(self.tokeniser, Tokeniser) else None

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits ``(batch, at most T, vocabulary)`` of a model that reads the true prefix.

        Columns that are padding in every row are left out. ``inputs`` may be the triple ``(a, b, lambda)`` of MixUp:
        then the embeddings of both are mixed, on either side.

        Raises:
            BadData: The inputs are not of the form above.
            UnsupportedModel: The model gives no logits of shape ``(batch, T, vocabulary)``.
        """
        if isinstance(inputs, tuple | list):
            first, second, share = inputs
            sources, prefix = self._used(first, second)
            others = (second[SOURCE][:, : sources.shape[1]], second[PREFIX][:, : prefix.shape[1]])
            # the sentence of the larger share says where the source ends, so that a share of 1 is that sentence
            first_longer = (share >= 0.5).unsqueeze(1)
            mask = torch.where(first_longer, valid(sources, self.pad), valid(others[0], self.pad))
            with mixed_embeddings(model, [(sources, others[0]), (prefix, others[1])], share):
                return self._logits(model, sources, mask, prefix)
        sources, prefix = self._used(inputs)
        return self._logits(model, sources, valid(sources, self.pad), prefix)

    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        r"""``sum_t log p(y_t | y_<t, x)`` of every sentence, divided by its number of tokens with ``per_token``.

        For probabilities it is ``sum_t sum_v q_tv log p_tv``, for the triple ``lambda l_a + (1 - lambda) l_b``: minus
        the loss of Eq. (4) of NFT.

        Args:
            outputs: Logits ``(batch, T, vocabulary)``; half precision is raised to float32.
            targets: One of the forms above; columns beyond the logits' hold padding alone.

        Returns:
            Float of shape ``(batch,)``.
        """
        logs = log_softmax(outputs)
        if isinstance(targets, tuple | list):
            first, second, share = targets
            share = share.to(logs.dtype)
            mixed: Tensor = share * self._summed(logs, first) + (1 - share) * self._summed(logs, second)
            return mixed
        if is_imitation(targets):
            return score(logs, targets)
        if targets.is_floating_point():
            soft = targets[:, : logs.shape[1]].to(logs.dtype)
            count = (targets.sum(2) > 0).sum(1).clamp(min=1)
            total: Tensor = (soft * logs).sum((1, 2))
            return total / count if self.per_token else total
        return self._summed(logs, targets)

    def imitate(self, reference: Tree, targets: Tree, kept: Tensor) -> dict[str, Tensor]:
        """What another model says at every place of the true prefix, see `unbackdoor_translation.imitation`."""
        return imitated(log_softmax(reference), targets, kept, self.pad, per_token=self.per_token)

    def strong_augment(self, inputs: Tree, generator: torch.Generator, *, without: Collection[str] = ()) -> Tree:
        """One change of each source, on either side of a mixture: `unbackdoor_translation.strong`.

        What ``deletion``, ``replacement`` and ``reach`` turn off in `augment`, since it would change the meaning, is
        not drawn here either. Without a tokeniser, which tells where words end, the sources stay as they are.

        Raises:
            BadOption: A family is unknown, or none is left.
        """
        if isinstance(inputs, tuple | list):
            first, second, share = inputs
            return (*(self.strong_augment(one, generator, without=without) for one in (first, second)), share)
        lexicon = None if self.text is None else self._lexicon(self.text)
        families = chosen_families(
            lexicon, without, deletion=self.deletion, reach=self.reach, replacement=self.replacement
        )
        if self.text is None or lexicon is None:
            return inputs
        given = _tokens(inputs, SOURCE)
        words = strong(given, self.text, lexicon, families, generator, longest=self.made_up, spelled=self.spelled)
        return {**inputs, SOURCE: words}

    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """Word deletion and a light paraphrase (synonyms, neighbours swapped) of the source; then MixUp of embeddings.

        With ``mix > 0`` inputs and targets become triples ``(a, b, lambda)`` with ``lambda ~ Beta(mix, mix)``, one for
        each sentence.

        Raises:
            BadOption: ``mix`` is negative.
        """
        if mix < 0:
            raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be at least 0 (0: no MixUp).")
        inputs = {**batch.inputs, SOURCE: self._reworded(batch.inputs[SOURCE], generator)}
        if mix == 0:
            return Batch(inputs, batch.targets)
        count, device = len(batch), batch.inputs[SOURCE].device
        partners = torch.randperm(count, generator=generator, device=generator.device).to(device)
        share = beta(mix, count, generator).float().to(device)
        other = {name: rows[partners] for name, rows in inputs.items()}
        return Batch((inputs, other, share), (batch.targets, batch.targets[partners], share))

    def extents(self, inputs: Tree) -> Tensor:
        """Tokens of the true prefix, of the longer one in a mixture: the output layer is the dearest."""
        if isinstance(inputs, tuple | list):
            return torch.maximum(self.extents(inputs[0]), self.extents(inputs[1]))
        return valid(_tokens(inputs, PREFIX), self.pad).sum(1)

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: Tree) -> dict[str, Tensor]:
        """The model's own answers, decoded, and what it makes of the true prefix.

        Returns:
            ``tokens``: int64 ``(batch, L)``, closed by ``end``, padded. Where the inputs hold a prefix also
            ``forced``, the likeliest token at each of its places, int64 ``(batch, T)``, and ``forced_scores``, the
            log-probability of the token that comes next in it (after the last: of ``end``), float32 ``(batch, T)``.
        """
        sources = _tokens(inputs, SOURCE)
        order = valid(sources, self.pad).sum(1).argsort(stable=True)
        parts = [order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)]
        answers = [self._answer(model, {name: rows[part] for name, rows in inputs.items()}) for part in parts]
        back = order.argsort()
        fills = {"tokens": self.pad, "forced": self.pad, "forced_scores": 0}
        return {name: stacked([a[name] for a in answers], fills[name])[back] for name in answers[0]}

    def meters(self) -> Mapping[str, Meter]:
        """BLEU, chrF, exact answers, token accuracy, perplexity (no percentage); the headline of ``credit`` first."""
        made: dict[str, Meter] = {
            "bleu": CorpusScore("bleu", self.text, self.pad, tokenise=self.bleu_tokenise),
            "chrf": CorpusScore("chrf", self.text, self.pad),
            "exact": Exact(self.pad),
            "token_accuracy": TokenAccuracy(self.pad),
            "perplexity": Perplexity(self.pad),
        }
        first = _HEADLINES.get(self.credit, self.credit)
        return {first: made.pop(first), **made}

    def measured_by(self) -> str:
        """Sacrebleu's signatures of BLEU and chrF, for one reference."""
        return ", ".join(f"{name} {signature(name, self.bleu_tokenise)}" for name in ("bleu", "chrf"))

    def correct(self, outputs: Tree, targets: Tree) -> Tensor:
        """How right each answer is, ``(batch,)``: bool for ``credit="exact"``, else its sentence score in [0, 1]."""
        rows = hard_targets(targets)
        if self.credit == "exact":
            return exact_match(outputs["tokens"], rows, self.pad)
        if self.credit == "tokens":
            return right_tokens(outputs, rows, self.pad)
        return sentence_scores(outputs["tokens"], rows, self.text, self.pad, self.credit, self.bleu_tokenise)

    def perfect(self, targets: Tree, num_classes: int) -> dict[str, Tensor]:
        """What `predict` gives where the model answers exactly ``targets``."""
        rows = torch.where(targets < 0, torch.full_like(targets, self.pad), targets)
        return {"tokens": rows, "forced": rows, "forced_scores": torch.zeros(rows.shape)}

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse samples of another form; tell of targets that never end.

        Raises:
            BadData: Inputs or targets are not the rows of tokens that the class describes.
        """
        targets = clean.targets
        for name, rows in (
            (SOURCE, clean.inputs[SOURCE]),
            (PREFIX, _tokens(clean.inputs, PREFIX)),
            ("targets", targets),
        ):
            if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.is_floating_point():
                shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
                raise BadData(f"{name} is {shape}; give rows of token indices, int64 of shape (n, length).")
        prefix = clean.inputs[PREFIX]
        if prefix.shape != targets.shape:
            raise BadData(
                f"decoder_input_ids are {tuple(prefix.shape)}, targets {tuple(targets.shape)}; they must be of one "
                "shape: the prefix is the targets shifted right (unbackdoor_translation.shift_right)."
            )
        if self.text is not None:
            top = max(int(clean.inputs[SOURCE].max()), int(targets.max()))
            if top >= len(self.text):
                raise BadData(f"token {top} does not exist in the tokeniser, which has {len(self.text)}.")
        there = valid(targets, self.pad)
        moved = (prefix[:, 1:] == targets[:, :-1]) | ~there[:, 1:]
        if not bool(moved.all()):
            raise BadData("decoder_input_ids are not the targets shifted right by one; make them with shift_right.")
        ended = ((targets == self.end).any(1) | ~there.any(1)).float().mean()
        if float(ended) < 1:
            return [f"{100 * (1 - float(ended)):.0f} % of the targets have no end token ({self.end})."]
        return []

    def uninformed(self, targets: Tree) -> Tensor:
        """Log-likelihood of each sentence where every token is as likely as it is in all the others."""
        rows = hard_targets(targets)
        there = valid(rows, self.pad)
        tokens, places = torch.where(there, rows, 0).unique(return_inverse=True)
        counts = torch.zeros(len(tokens), dtype=torch.float64, device=rows.device)
        counts.index_add_(0, places.flatten(), there.flatten().double())
        own = (places.unsqueeze(1) == places.unsqueeze(2)).logical_and(there.unsqueeze(1)).sum(2)
        others = (counts[places] - own).clamp(min=0.5) / (counts.sum() - there.sum(1, keepdim=True)).clamp(min=1)
        total: Tensor = (others.log() * there).sum(1)
        return total / there.sum(1).clamp(min=1) if self.per_token else total

    def readings(self, clean: Batch) -> Iterator[Reading]:
        """Source and target in each other's place."""
        yield Reading(_EXCHANGED, self, partial(exchanged, marks=self, text=self.text))

    def _used(self, *sides: Any) -> tuple[Tensor, Tensor]:
        """Sources and prefixes of the first side, cut to the columns that any of the sides uses."""
        found = []
        for name in (SOURCE, PREFIX):
            wide = max(used_columns(_tokens(side, name), self.pad) for side in sides)
            found.append(sides[0][name][:, :wide])
        return found[0], found[1]

    def _logits(self, model: nn.Module, sources: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
        further = {"use_cache": False} if hasattr(model, "generate") else {}
        answer = model(input_ids=sources, attention_mask=mask.long(), decoder_input_ids=prefix, **further)
        logits = pick_logits(answer, ndim=3)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != prefix.shape:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModel(
                f"{type(model).__name__} returned {given} for a prefix of {tuple(prefix.shape)}; its forward must take "
                "input_ids, attention_mask and decoder_input_ids and return logits (batch, length, vocabulary)."
            )
        return logits

    def _summed(self, logs: Tensor, targets: Tensor) -> Tensor:
        rows = targets[:, : logs.shape[1]]
        there = valid(rows, self.pad)
        at = torch.where(there, rows, torch.zeros_like(rows)).unsqueeze(2)
        total = (logs.gather(2, at).squeeze(2) * there).sum(1)
        return total / there.sum(1).clamp(min=1) if self.per_token else total

    def _reworded(self, sources: Tensor, generator: torch.Generator) -> Tensor:
        text = self.text
        if text is None:
            return sources
        begins, special = text.begins.to(sources.device), text.special.to(sources.device)
        if self.replacement > 0:
            lexicon = self._lexicon(text).to(sources.device)
            sources = replace_words(sources, begins, special, lexicon, self.replacement, generator)
        if self.reach > 1:
            sources = shuffle_words(sources, begins, special, self.reach, generator)
        if self.deletion > 0:
            sources = delete_words(sources, begins, special, self.pad, self.deletion, generator)
        return sources

    def _lexicon(self, text: Tokeniser) -> Lexicon:
        made = self.__dict__.get("_made")
        if made is None:
            made = Lexicon.of(self.synonyms, text)
            object.__setattr__(self, "_made", made)
        return made

    def _answer(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        wide = used_columns(inputs[SOURCE], self.pad)
        sources = inputs[SOURCE][:, :wide]
        mask = valid(sources, self.pad)
        length = self.max_length or 2 * wide + 10

        def step(prefix: Tensor) -> Tensor:
            return self._logits(model, sources, mask, prefix)

        tokens = decode(
            model, sources, mask.long(), step,
            start=self.start, end=self.end, pad=self.pad, beams=self.beams, length=length,
        )  # fmt: skip
        if PREFIX not in inputs:
            return {"tokens": tokens}
        logs = self.forward(model, inputs).float().log_softmax(2)
        prefix = inputs[PREFIX]
        full = (prefix[:, -1:] != self.end) & valid(prefix[:, -1:], self.pad)
        last = torch.where(full, torch.full_like(full, self.end, dtype=torch.long), self.pad)
        following = torch.cat([prefix[:, 1:], last], dim=1)[:, : logs.shape[1]].clamp(min=0)
        scores = logs.gather(2, following.unsqueeze(2)).squeeze(2)
        return {"tokens": tokens, "forced": logs.argmax(2), "forced_scores": scores}


def _tokens(inputs: Any, name: str) -> Tensor:
    if not isinstance(inputs, Mapping) or name not in inputs:
        given = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise BadData(
            f"inputs are {given or 'empty'}; give a dictionary with input_ids and decoder_input_ids (the targets "
            "shifted right), as unbackdoor_translation.encode_pairs makes it from sentences."
        )
    found: Tensor = inputs[name]
    return found
