"""Further clean pairs: other sources for the same targets, by a paraphrase model or by translating targets back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from unbackdoor.errors import BadData
from unbackdoor.measure import evaluating
from unbackdoor.task import Batch
from unbackdoor_translation.meters import texts
from unbackdoor_translation.sequences import PREFIX, SOURCE, pad_rows
from unbackdoor_translation.task import TranslationTask
from unbackdoor_translation.tokenisers import Tokeniser

__all__ = ["back_translated", "paraphrased", "with_sources"]


def paraphrased(clean: Batch, task: TranslationTask, model: nn.Module, model_task: TranslationTask) -> Batch:
    """The clean pairs, and behind them the same with sources that a paraphrase model rewrote: FIP, Sec. 6.2.4.

    Args:
        clean: ``n`` pairs.
        task: Theirs, with a tokeniser.
        model: Says the same in other words: any sequence-to-sequence model that you loaded.
        model_task: The model's own, with its tokeniser; its ``beams`` and ``max_length`` count.

    Returns:
        At most ``2 n`` pairs; sentences that came back empty or as they were are left out.
    """
    return with_sources(clean, task, _answers(model, model_task, _read(clean.inputs[SOURCE], task), _text(task)))


def back_translated(clean: Batch, task: TranslationTask, model: nn.Module, model_task: TranslationTask) -> Batch:
    """The clean pairs, and behind them the same with sources that a model of the other direction made of the targets.

    Args:
        clean: ``n`` pairs.
        task: Theirs, with a tokeniser.
        model: Translates targets into sources.
        model_task: The model's own, with its tokeniser.
    """
    return with_sources(clean, task, _answers(model, model_task, _read(clean.targets, task), _text(task)))


def with_sources(clean: Batch, task: TranslationTask, sources: Sequence[str]) -> Batch:
    """The clean pairs, and behind them each again with its sentence of ``sources``, where that is another one.

    Raises:
        BadData: There are not as many sentences as pairs.
    """
    if len(sources) != len(clean):
        raise BadData(f"there are {len(sources)} sentences for {len(clean)} pairs; give one for each.")
    text, rows = _text(task), clean.inputs[SOURCE]
    old = _read(rows, task)
    kept = [i for i, (new, was) in enumerate(zip(sources, old, strict=True)) if new.strip() and new.strip() != was]
    if not kept:
        return clean
    index = torch.tensor(kept, device=rows.device)
    made = pad_rows([text.encode(sources[i].strip()) for i in kept], text.pad, text.end, rows.shape[1]).to(rows.device)
    inputs = {SOURCE: torch.cat([rows, made])}
    inputs[PREFIX] = torch.cat([clean.inputs[PREFIX], clean.inputs[PREFIX][index]])
    return Batch(inputs, torch.cat([clean.targets, clean.targets[index]]))


@torch.no_grad()
def _answers(model: nn.Module, task: TranslationTask, sentences: Sequence[str], fallback: Tokeniser) -> list[str]:
    text = task.text or fallback
    rows = [text.encode(sentence) for sentence in sentences]
    device = next(model.parameters()).device
    tokens = pad_rows(rows, text.pad, text.end).to(device)
    with evaluating(model):
        return texts(task.predict(model, {SOURCE: tokens})["tokens"], text)


def _text(task: TranslationTask) -> Tokeniser:
    if task.text is None:
        raise BadData("sentences can be rewritten only with a tokeniser; make the task with tokeniser=...")
    return task.text


def _read(tokens: torch.Tensor, task: TranslationTask) -> list[str]:
    return texts(torch.where(tokens < 0, torch.full_like(tokens, task.pad), tokens), _text(task))
