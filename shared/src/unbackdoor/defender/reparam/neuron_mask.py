"""One scalar per neuron that scales its weight vector: the handle of NFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.defender.reparam.attachment import KEY, Seen, Site, SubstitutedForward, substituted
from unbackdoor.defender.reparam.frozen_norm import freeze_norms
from unbackdoor.defender.reparam.layout import Layout
from unbackdoor.defender.reparam.site import Reparametrisation, drop_head
from unbackdoor.defender.reparam.tracing import Probe, outputs_of
from unbackdoor.errors import NothingTrainable
from unbackdoor.network.backend import seeded, without_fastpath
from unbackdoor.network.norms import train_norms

__all__ = ["NeuronMask"]


class NeuronMask(Reparametrisation):
    r"""Masks ``m`` with ``y = m * (W x) + b``, so ``W <- diag(m) W`` and the bias stays: Eq. (2), (7), (8) of NFT.

    A mask on a convolution whose output goes straight into BatchNorm in train mode does nothing, since
    the normalisation divides it out again. So there are two sites:

    - ``"weight"``: masks on the weights of linear, convolutional, recurrent and attention layers, on request on rows of
      embedding tables and on the scales of other normalisations. BatchNorm must be in eval mode; this is the paper's
      formula.
    - ``"norm"``: masks on BatchNorm's scale gamma, ``y = (m gamma) z / s + beta``, which also works in train mode;
      this is what the authors' code does.

    Recurrent layers have a row for each gate of a hidden unit in each weight. ``gates="each"`` gives every row a mask
    of its own (``4 h`` for an LSTM), so that a unit's memory and its output can be scaled apart. ``gates="unit"`` gives
    a hidden unit one mask over all its gates (``h``), which is the neuron of a feed-forward layer; with 0 the unit's
    gates hear nothing but their bias.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        *,
        site: Literal["weight", "norm"] = "weight",
        gates: Literal["each", "unit"] = "each",
        floor: Callable[[int, int], float] | None = None,
        skip: Sequence[str] = (),
        head: bool = True,
        embeddings: bool = False,
        scales: bool = False,
    ) -> None:
        """Make masks of ones, shape ``(neurons,)`` each (hidden units with ``gates="unit"``), dtype of their weight.

        Args:
            model: In eval mode.
            probe: Runs it once.
            site: Where masks sit, see above.
            gates: Whose masks recurrent layers have, see above.
            floor: Lower bound ``mu(l, L)`` of the masks at depth ``l`` of ``L``, Eq. (6); 0 without it.
            skip: Shell patterns of qualified parameter names to leave alone.
            head: Whether the last layer in the order of execution has masks too. Its neurons are the answers: methods
                that prune leave it out. A network of one layer keeps its masks.
            embeddings: Whether every row of an embedding table has a mask too.
            scales: Whether the scales of layers that normalise each sample by itself (GroupNorm, LayerNorm, RMSNorm,
                InstanceNorm) have masks too: masks that are alike on the weights before them are divided out again.

        Raises:
            NothingTrainable: No site is left, or ``site="norm"`` and the model has no affine BatchNorm.
            UnreachedSite: See `Reparametrisation`.
        """
        self.site = site
        super().__init__(model, probe, skip=skip, embeddings=embeddings, scales=scales)
        if not head and site == "weight":
            drop_head(self)
        if site == "weight":
            self._leave(self._divided_out(probe), "the model divides a factor of a neuron's weights out again")
        if not self.sites:
            raise NothingTrainable(f"no mask would change the model's answers. {' '.join(self.notices)}")
        depths = max(s.depth for s in self.sites.values())
        self.floors = {name: floor(s.depth, depths) if floor else 0.0 for name, s in self.sites.items()}
        self._values = {
            name: torch.ones(_masks(s, gates), dtype=s.weight.dtype, device=s.weight.device, requires_grad=True)
            for name, s in self.sites.items()
        }
        if site == "weight":  # BatchNorm's scale is tuned in train mode, where gradients are others
            self._check_seen(probe)
        self._slopes = {}

    def effective(self, site: Site, value: Tensor) -> Tensor:
        """``diag(m) W``."""
        return site.layout.scale_rows(site.weight, site.layout.repeat(value, site.weight))

    def engine(self, site: Site, layer: nn.Module) -> type:
        """Scale the output of plain linear and convolutional layers: no gradient of ``W`` is ever computed.

        A convolution with few inputs a neuron is the exception: there that gradient costs less than a pass over the
        outputs, and these need not be kept.
        """
        if type(layer) is nn.Embedding:
            return ScaledRows
        plain = type(layer) in _PLAIN and self.site == "weight"
        narrow = site.weight.ndim > 2 and site.layout.to_matrix(site.weight).shape[2] <= _NARROW
        return ScaledOutput if plain and not narrow else SubstitutedForward

    def distance(self) -> Tensor:
        """``||M_0 - M||_1 = sum |1 - m|``, a scalar: the regulariser of Eq. (9)."""
        return sum((1 - mask).abs().sum() for mask in self._values.values())  # type: ignore[return-value]

    @torch.no_grad()
    def attenuate_(self, factor: float) -> None:
        """Scale every mask by ``factor``."""
        for mask in self._values.values():
            mask.mul_(factor)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp every mask to ``[mu(l), 1]``, Eq. (6)."""
        for name, mask in self._values.items():
            mask.clamp_(self.floors[name], 1.0)

    @torch.no_grad()
    def fold_(self) -> None:
        """``W <- diag(m) W`` in the model's own parameters; biases stay."""
        for site in self.sites.values():
            site.weight.copy_(self.effective(site, self.value(site)))

    def __enter__(self) -> Self:
        """Attach; masks on weights see BatchNorm as the affine map of eval mode, masks on it see train mode."""
        super().__enter__()
        if self.site == "weight":
            freeze_norms(self.model, self._swap)
        else:
            for layer, _ in self._classes:
                train_norms(layer, True)
        return self

    def _divided_out(self, probe: Probe) -> list[str]:
        """Weights that are standardised before use or whose every output channel is: masks on them do nothing.

        A layer with a forward of its own is asked by itself, since the network's answers may not depend on it yet: a
        residual branch may begin with a factor of 0.
        """
        asked = {layer: site for site in self.sites.values() for layer, _ in site.owners if _own_forward(layer)}
        deaf = _deaf_to_length(asked, probe)
        found = [name for name, site in self.sites.items() if any(layer in deaf for layer, _ in site.owners)]
        suspects = [site for name, site in self.sites.items() if _right_angled(site, self._slopes[name])]
        return found + self._unmoved([site for site in suspects if site.name not in found], probe)

    @torch.no_grad()
    def _unmoved(self, suspects: Sequence[Site], probe: Probe) -> list[str]:
        """Those of ``suspects`` whose length the answers do not depend on.

        Their gradient stands at right angles to each neuron's weight vector then. Where that is so of all neurons,
        halved weights tell whether it holds for more than small changes, beside weights that are turned instead.
        """
        if not suspects:
            return []
        given = outputs_of(self.model, probe)

        def moved(site: Site, weight: Tensor) -> float:
            kept = site.weight.detach().clone()
            try:
                site.weight.copy_(weight)
                return float((outputs_of(self.model, probe) - given).abs().amax())
            finally:
                site.weight.copy_(kept)

        found = []
        for site in suspects:
            half = 0.5 * site.weight
            turned = site.layout.from_matrix(site.layout.to_matrix(half).roll(1, dims=2), site.weight)
            if moved(site, half) <= _SAME * moved(site, half + turned):
                found.append(site.name)
        return found

    def _candidates(self) -> list[tuple[str, nn.Module, list[Layout]]]:
        if self.site == "weight":
            return super()._candidates()
        norms = [(n, m, [Layout("weight")]) for n, m in self.model.named_modules() if isinstance(m, _BatchNorm)]
        affine = [norm for norm in norms if norm[1].weight is not None]
        if not affine:
            raise NothingTrainable(
                "site='norm' puts masks on BatchNorm's scale, but the model has no affine BatchNorm; use site='weight'."
            )
        return affine  # type: ignore[return-value]


_NARROW = 128

_RIGHT_ANGLE, _SAME = 0.02, 0.01
"""Largest cosine of a neuron's weights and their gradient, and largest change of the answers beside that by turned
weights, that count as none: the small number that standardisation adds to the variance leaves a little of both."""

_DEAF = 0.1
"""Largest change of a layer's output by halved weights, beside that by absent ones, that counts as none; it is 0.5
where the output is proportional to the weights."""

_NO_EPS = 1e-30
"""1 + this is 1 in every precision; PyTorch 2.11 refuses 0."""


def _right_angled(site: Site, slope: Tensor) -> bool:
    weight, slope = (site.layout.to_matrix(tensor.detach().double()).flatten(0, 1) for tensor in (site.weight, slope))
    lengths = weight.norm(dim=1) * slope.norm(dim=1)
    along = (weight * slope).sum(1).abs()
    return weight.shape[1] > 1 and bool(lengths.any()) and bool((along <= _RIGHT_ANGLE * lengths).all())


def _own_forward(layer: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution that computes otherwise than PyTorch's own."""
    return isinstance(layer, tuple(_PLAIN)) and (type(layer) not in _PLAIN or "forward" in vars(layer))


@torch.no_grad()
def _deaf_to_length(layers: Mapping[nn.Module, Site], probe: Probe) -> set[nn.Module]:
    """Those of ``layers`` that give nearly the same where all their weights are halved, seen in one run of the model.

    Args:
        layers: Each with its site.
        probe: Runs the model once.
    """
    heard: dict[nn.Module, bool] = {}

    def ask(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        local = next(name for owner, name in layers[layer].owners if owner is layer)
        own = dict(layer.named_parameters(recurse=False))
        silent = {name: torch.ones_like(p) for name, p in own.items() if not p.any()}  # a gain that begins at 0

        def given(factor: float) -> Tensor:
            with substituted(layer, silent | {local: factor * own[local]}):
                answer: Tensor = layer.forward(*args, **kwargs)
            return answer

        if isinstance(output, Tensor) and not heard.get(layer):
            whole = given(1.0)
            none, turned = ((given(factor) - whole).abs().amax().nan_to_num(0.0) for factor in (0.0, -1.0))
            largest = max(float(none), float(turned) / 2)
            if largest > 0:
                heard[layer] = float((given(0.5) - whole).abs().amax()) > _DEAF * largest

    hooks = [layer.register_forward_hook(ask, with_kwargs=True) for layer in layers]
    try:
        if layers:
            with seeded(0, next(iter(layers.values())).weight.device), without_fastpath():
                probe()
    finally:
        for hook in hooks:
            hook.remove()
    return {layer for layer, hears in heard.items() if not hears}


def _masks(site: Site, gates: str) -> int:
    recurrent = all(isinstance(layer, nn.RNNBase) for layer, _ in site.owners)
    return site.neurons // site.layout.groups if recurrent and gates == "unit" else site.neurons


_PLAIN = {
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
}


class ScaledOutput(Seen):
    """The fast engine of masks: ``y = m * (W x) + b``; the gradient of ``m`` is a sum of ``g * W x``."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer without its bias, scale its channels, add the bias."""
        attachment = self.__dict__[KEY]
        mask = attachment.handle.value(attachment.only)
        bias = self._parameters["bias"]
        with attachment.inside, substituted(self, {"bias": None}):  # type: ignore[arg-type]
            out: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        weight = attachment.only.weight
        if out.ndim == weight.ndim > 2:  # BatchNorm's kernel with mean 0 and variance 1: no temporary for m's gradient
            mean, variance = torch.zeros_like(mask), torch.ones_like(mask)
            return functional.batch_norm(out, mean, variance, mask, bias, training=False, eps=_NO_EPS)
        scaled = mask.view(-1, *[1] * (weight.ndim - 2))
        return out * scaled if bias is None else torch.addcmul(bias.view(scaled.shape), out, scaled)


class ScaledRows(Seen):
    """The fast engine of masks on embedding tables: ``y = m[i] * W[i]`` for every index ``i`` that is looked up."""

    def forward(self, indices: Tensor) -> Tensor:
        """Look rows up and scale each by its own mask."""
        attachment = self.__dict__[KEY]
        with attachment.inside:
            rows: Tensor = super().forward(indices)  # type: ignore[misc]
        scaled: Tensor = rows * attachment.handle.value(attachment.only)[indices].unsqueeze(-1)
        return scaled
