"""Channel Lipschitzness based pruning: needs no data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import NeuronMask, Site
from unbackdoor.defender.reparam.norm_pairs import norms_after
from unbackdoor.defender.tolerance import FEW, AccuracyTolerance, check_drop, strongest_within
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["CLP", "Channels", "channel_lipschitz"]

_PAPER = 3.0
_LEVELS = [i / 4 for i in range(20, 0, -1)]  # u from 5 down to 0.25


@torch.no_grad()
def channel_lipschitz(site: Site, norm: _BatchNorm | None) -> Tensor:
    """Upper bound of each channel's Lipschitz constant: float64 of shape ``(neurons,)``.

    The spectral norm of a neuron's weights as a matrix (inputs, kernel positions), times ``|gamma| / s`` of the
    BatchNorm that takes its output. A neuron of a linear layer is a matrix of one column: its Euclidean norm.
    """
    weight, layout = site.weight.detach(), site.layout
    rows = layout.to_matrix(weight).flatten(0, 1)
    inputs = rows.shape[1] // max(1, weight[0, 0].numel())
    bound: Tensor = torch.linalg.matrix_norm(rows.unflatten(1, (inputs, -1)).double(), ord=2)
    if norm is not None and norm.running_var is not None:
        scale = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach().abs()
        bound = bound * (scale.double() / (norm.running_var.double() + norm.eps).sqrt())
    return bound


class Channels:
    """All channels of a network that may be pruned: their standardised bounds, and how to silence them."""

    def __init__(self, sites: Mapping[str, Site], norms: Mapping[nn.Module, _BatchNorm]) -> None:
        """Standardise the bounds layer by layer: ``(bound - mean) / std``; 0 where a layer's are all alike."""
        self.scores: dict[str, Tensor] = {}
        self.silenced: dict[str, list[nn.Parameter]] = {}
        for name, site in sites.items():
            layer, local = site.owners[0]
            norm = norms.get(layer) if len(site.owners) == 1 else None
            bound = channel_lipschitz(site, norm)
            spread = bound.std() if len(bound) > 1 else bound.new_zeros(())
            self.scores[name] = torch.where(spread > 0, (bound - bound.mean()) / spread, torch.zeros_like(bound))
            self.silenced[name] = _affine(norm) or [site.weight, *_bias(layer, local, site.neurons)]
        self.sites = sites
        self.given = {id(p): p.detach().clone() for values in self.silenced.values() for p in values}

    @torch.no_grad()
    def prune_(self, u: float) -> int:
        """Bring every channel back, then make those with a score above ``u`` constantly 0; returns their number."""
        count = 0
        for name, values in self.silenced.items():
            keep = self.scores[name] <= u
            count += int((~keep).sum())
            for value in values:
                given = self.given[id(value)]
                keep_ = keep.to(given)
                scaled = value is self.sites[name].weight
                value.copy_(self.sites[name].layout.scale_rows(given, keep_) if scaled else given * keep_)
        return count


@dataclass(frozen=True, kw_only=True)
class CLP(Purifier):
    """CLP (Zheng et al., ECCV 2022): silence the channels that can change their output most; no data needed."""

    name: ClassVar[str] = "clp"
    needs: ClassVar[tuple[str, ...]] = ()
    discrete: ClassVar[bool] = True
    tunes: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"u": _PAPER}}

    u: float | None = option(None, "channels this many deviations above their layer's mean go; none: by the tolerance")
    max_clean_drop: float = option(3.0, "points of clean accuracy that pruning may cost")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.u is not None and not self.u > 0:
            raise BadOption(f"u is {self.u}; give a positive number of standard deviations, such as 3.")
        check_drop(self.max_clean_drop)

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        handle = NeuronMask(model, probe, skip=self.skip.split(), head=False)
        run.notices += handle.notices
        layers = [layer for site in handle.sites.values() for layer, _ in site.owners]
        channels = Channels(handle.sites, norms_after(model, layers, probe))
        u, classes = self.u, task.strata(clean.samples.targets)
        if u is None and (len(clean) < FEW or (classes is not None and len(classes.unique()) == 1)):
            u = _PAPER
            run.notice(
                f"{len(clean)} clean samples of too few classes or too few in all cannot judge a threshold, so the "
                f"paper's u = {_PAPER:g} was used."
            )
        if u is None:
            tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop)
            u = strongest_within(_LEVELS, channels.prune_, tolerance, model, what="u", patience=4, required=True)
        assert u is not None
        pruned = channels.prune_(u)
        run.record(1, 1, "silencing channels", pruned=float(pruned))
        total = sum(len(score) for score in channels.scores.values())
        run.notice(
            f"pruned {pruned} of {total} channels, those more than {u:g} standard deviations above the mean."
            if pruned
            else "nothing was pruned: no channel stands out from its layer far enough within the tolerance."
        )


def _affine(norm: _BatchNorm | None) -> list[nn.Parameter]:
    """Scale and shift of a BatchNorm, if both may be changed."""
    if norm is None or norm.weight is None or norm.bias is None:
        return []
    both = [norm.weight, norm.bias]
    return both if all(isinstance(p, nn.Parameter) and p.requires_grad for p in both) else []


def _bias(layer: nn.Module, local: str, neurons: int) -> list[nn.Parameter]:
    """The bias that goes with the weight ``local``, if it has one value for each neuron."""
    try:
        bias = layer.get_parameter(local.replace("weight", "bias"))
    except AttributeError:
        return []
    return [bias] if bias.requires_grad and bias.shape == (neurons,) else []
