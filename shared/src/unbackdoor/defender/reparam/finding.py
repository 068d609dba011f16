"""Which weights of a model a handle can have: those with neurons that a run reaches, in the order of execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from unbackdoor.defender.reparam.attachment import Site
from unbackdoor.defender.reparam.layout import SCALES, Layout, layouts_of
from unbackdoor.defender.reparam.tracing import Probe, Trace, gradients_of, traced
from unbackdoor.errors import NothingTrainable, UnreachedSite

__all__ = ["Candidate", "Search", "candidates_of", "listed"]

Candidate = tuple[str, nn.Module, list[Layout]]
"""Qualified name, layer, and how its tensors read as matrices."""


def candidates_of(model: nn.Module, left_out: tuple[type, ...]) -> list[Candidate]:
    """Layers with neurons but for those of the types ``left_out``; children of a layer that has some are its own."""
    found: list[Candidate] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        layouts = [] if isinstance(module, left_out) else layouts_of(module)
        if layouts and module not in inside:
            inside.update(child for child in module.modules() if child is not module)
            found.append((name, module, layouts))
    return found


def listed(names: Sequence[str], why: str) -> list[str]:
    """A notice on weights that are left as they are; none where there are no such."""
    if not names:
        return []
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return [f"left as they are, {why}: {', '.join(names[:6])}{rest}."]


class Search:
    """The search for sites in one model."""

    def __init__(self, model: nn.Module, candidates: Sequence[Candidate], skip: Sequence[str]) -> None:
        """Take layers that may have sites, and shell patterns of names that shall have none."""
        self.model, self.candidates, self.skip = model, candidates, skip
        self.notices: list[str] = []
        self.slopes: dict[str, Tensor] = {}

    def sites(self, handle: str, probe: Probe) -> dict[str, Site]:
        """The sites by name, ordered by their depth.

        Args:
            handle: Name of the class that wants them, for messages.
            probe: Runs the model once.

        Raises:
            UnreachedSite: A weight changes the output past its layer's forward and its attribute.
            NothingTrainable: No site is left.
            UnsupportedModel: No gradient reaches any of them.
        """
        trace = traced({layer: [layout.name for layout in layouts] for _, layer, layouts in self.candidates}, probe)
        sites: dict[int, Site] = {}
        unreached: dict[str, nn.Parameter] = {}
        silent: list[tuple[nn.Module, str]] = []  # layers that are never reached; others may share their weight
        frozen: list[str] = []
        for prefix, layer, layouts in self.candidates:
            for layout in layouts:
                name = f"{prefix}.{layout.name}" if prefix else layout.name
                weight = layer.get_parameter(layout.name)
                if self._skipped(name):
                    continue
                if not weight.requires_grad:
                    frozen.append(name)
                elif not trace.reached(layer, layout.name):
                    if not isinstance(layer, SCALES):  # reading a scale elsewhere only means that it gets no mask
                        unreached[name] = weight
                    silent.append((layer, layout.name))
                else:
                    _add(sites, Site(name, weight, layout, [(layer, layout.name)], trace.order[layer]))
        _join(sites, silent)
        unreached = {name: weight for name, weight in unreached.items() if id(weight) not in sites}
        shared = self._drop_shared(sites)
        self._tell(shared, "their memory belongs to another tensor too, to which they are not tied")
        tied = self._drop_tied(sites)
        self._tell(frozen, "requires_grad=False")
        self._tell(tied, "tied to a weight that is no site, such as an embedding")
        cut = self._feel(sites, unreached, trace, probe)
        self._tell(list(unreached), "never reached in a forward pass in eval mode")
        self._tell(cut, "no gradient reaches them: the model computes with them under torch.no_grad or detaches them")
        covered = {id(site.weight) for site in sites.values()} | {id(weight) for weight in unreached.values()}
        rest = [n for n, p in self.model.named_parameters() if p.ndim >= 2 and p.requires_grad and id(p) not in covered]
        known = {*tied, *cut, *shared}
        self._tell(
            [name for name in rest if name not in known and not self._skipped(name)],
            "in layers of another type (embeddings, the user's own parameters)",
        )
        if not sites:
            raise NothingTrainable(
                f"{handle} finds no weight to tune in {type(self.model).__name__}: it needs linear, "
                "convolutional, recurrent or attention layers with requires_grad=True that a forward pass reaches. "
                + " ".join(self.notices)
            )
        return _ordered(sites)

    def _skipped(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.skip)

    def _tell(self, names: Sequence[str], why: str) -> None:
        self.notices += listed(names, why)

    def _drop_shared(self, sites: dict[int, Site]) -> list[str]:
        """Take off what lies in the memory of another parameter or buffer, and name it: both would be written."""
        double = _overlapping(self.model)
        shared = [site.name for key, site in sites.items() if key in double]
        for key in [key for key in sites if key in double]:
            del sites[key]
        return shared

    def _drop_tied(self, sites: dict[int, Site]) -> list[str]:
        """Take off what is registered under more names than it has owners, and name it."""
        users, tied = _users(self.model), []
        for key, site in list(sites.items()):
            if len(site.owners) != users[key]:
                tied.append(site.name)
                del sites[key]
        return tied

    def _feel(
        self, sites: dict[int, Site], unreached: Mapping[str, nn.Parameter], trace: Trace, probe: Probe
    ) -> list[str]:
        """Keep the gradient by each site; take off, and name, those that have none.

        Raises:
            UnreachedSite: A weight that nobody was seen to use has one.
        """
        if not sites and not unreached:
            return []
        weights = [*(site.weight for site in sites.values()), *unreached.values()]
        found = gradients_of(self.model, weights, probe, needed=bool(sites))
        hidden = [name for name, slope in zip(unreached, found[len(sites) :], strict=True) if slope is not None]
        if hidden:
            raise UnreachedSite(
                f"these weights change the output although their layers' forward is never called: {', '.join(hidden)}. "
                "Call the layer instead of reading its weight, or leave it alone: skip takes patterns of names."
            )
        cut = []
        for (key, site), slope in zip(list(sites.items()), found, strict=False):
            if slope is None:
                cut.append(site.name)
                del sites[key]
            else:
                self.slopes[site.name] = slope
        return cut


def _add(sites: dict[int, Site], site: Site) -> None:
    known = sites.setdefault(id(site.weight), site)
    if known is not site:
        known.owners += site.owners
        known.depth = min(known.depth, site.depth)


def _join(sites: Mapping[int, Site], silent: Sequence[tuple[nn.Module, str]]) -> None:
    """Make layers that are never called owners of the sites whose weight they share."""
    for layer, local in silent:
        weight = layer.get_parameter(local)
        if id(weight) in sites:
            sites[id(weight)].owners.append((layer, local))


def _users(model: nn.Module) -> dict[int, int]:
    """Under how many names each parameter is registered, by identity: more than one where weights are tied."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1
    return users


def _overlapping(model: nn.Module) -> set[int]:
    """Identities of parameters and buffers that lie in memory of another one, as the transpose of a weight does."""
    spans = []
    for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
        if tensor.layout == torch.strided and tensor.numel():
            start = tensor.data_ptr()
            length = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            spans.append((str(tensor.device), start, start + length * tensor.element_size(), id(tensor)))
    found: set[int] = set()
    last: tuple[str, int, int, int] | None = None  # of those before, the one that reaches furthest
    for span in sorted(spans):
        if last is not None and span[0] == last[0] and span[1] < last[2]:
            found |= {span[3], last[3]}
        if last is None or span[0] != last[0] or span[2] > last[2]:
            last = span
    return found


def _ordered(sites: Mapping[int, Site]) -> dict[str, Site]:
    ordered = sorted(sites.values(), key=lambda site: site.depth)
    rank = {depth: i + 1 for i, depth in enumerate(sorted({site.depth for site in ordered}))}
    for site in ordered:
        site.depth = rank[site.depth]
    return {site.name: site for site in ordered}
