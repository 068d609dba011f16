"""UAT: clean-label poisoning with a universal adversarial trigger (Zhao et al. 2020, CVPR; arXiv 2003.03030).

Trigger: an opaque square ``t`` in a corner of every frame, 20 pixels a side on frames of 224, less on smaller ones. It
is found on a clean model ``f``: ``min_t sum_i CE(f(x_i with t), target)`` over clips of other classes, by sign steps
with ``t`` kept in [0, 1].
Labels: clean label. Clips of the target class are first moved away from it by PGD on every frame (eps 16 of 255, up to
2,000 steps, as NFT and FIP set it), so that the victim has to lean on the trigger; then they carry ``t``. 80 % of the
target class, as those papers take for their other clean-label attacks; they do not say it for clips.
Where public code goes wrong: the original has an unclipped sign step, so that pixels leave their range, and 10 steps of
eps 8 where the text has more; others put the trigger on one frame, which sampling may drop.
Here: the clean model is a CNN + LSTM trained on the same data without poison, or the one given as ``surrogate``. PGD
works on batches of clips and drops a clip as soon as its target class has a probability below ``pgd_stop``; the search
for ``t`` ends where ``stop`` of the last clips follow it. Trigger and clean model are in the victim's folder, so its
poisoned training set can be made again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.builders import seeded
from unbackdoor.errors import BadOption
from unbackdoor.network.readiness import differentiable_recurrence
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_pixels import as_floats
from unbackdoor_video.attacks.frames import check_patch, on_frames, patch_side, put_patch
from unbackdoor_video.attacks.surrogate import make_surrogate, train_surrogate

__all__ = ["UniversalTrigger", "away_from"]

_CHUNK = 16
_WINDOW = 8  # batches whose success must reach `stop`


@dataclass(frozen=True, kw_only=True)
class UniversalTrigger(Attack):
    """A universal adversarial patch and adversarially perturbed clips of the target class, clean label.

    Attributes:
        rate: Share of the target class that is poisoned.
        size: Side of the trigger in pixels, on frames of 224.
        scaled: Whether the side follows the resolution of the frames; off takes ``size`` as it is.
        corner: ``"bottom_right"``, ``"bottom_left"``, ``"top_right"`` or ``"top_left"``.
        steps: Most sign steps of the search for the trigger.
        step_size: Length of one, of [0, 1].
        stop: Share of clips that must follow the trigger for the search to end.
        eps: Radius of PGD in the maximum norm, of [0, 1].
        pgd_steps: Its steps at most.
        pgd_step_size: Length of one, of [0, 1].
        pgd_stop: Probability of the target class below which a clip is done.
        helper_steps: Training steps of the clean model.
        helper_width: Its channels.
        surrogate: A clean model of the attacker's own, which takes clips with pixels in [0, 1]; None trains one.
        learned: Trigger and weights of the trained clean model, on the CPU; None until they are learned.
    """

    name: ClassVar[str] = "uat"
    texts: ClassVar[frozenset[str]] = frozenset({"corner"})
    clean_label: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=70.0)

    rate: float = 0.8
    size: int = 20
    scaled: bool = True
    corner: str = "bottom_right"
    steps: int = 300
    step_size: float = 4 / 255
    stop: float = 0.98
    eps: float = 16 / 255
    pgd_steps: int = 2000
    pgd_step_size: float = 1 / 255
    pgd_stop: float = 0.01
    helper_steps: int = 1000
    helper_width: int = 16
    surrogate: nn.Module | None = field(default=None, repr=False, compare=False)
    learned: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        check_patch(self.size, self.corner)
        for name in ("step_size", "stop", "eps", "pgd_step_size"):
            if not 0 < getattr(self, name) <= 1:
                raise BadOption(f"{name} is {getattr(self, name)}; it must lie in (0, 1].")
        if not 0 <= self.pgd_stop < 1:
            raise BadOption(f"pgd_stop is {self.pgd_stop}; the probability must lie in [0, 1).")
        if min(self.steps, self.pgd_steps, self.helper_steps, self.helper_width) < 1:
            raise BadOption("steps, pgd_steps, helper_steps and helper_width must be at least 1.")

    def options(self) -> dict[str, Any]:
        """The hyper-parameters, without the models and what is learned."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("learned", "surrogate")}

    def state(self) -> dict[str, Tensor]:
        """The trigger, and the weights of a clean model that was trained here; empty before."""
        return dict(self.learned or {})

    @classmethod
    def restore(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The attack that `options` and `state` describe."""
        return cls(**options, learned=dict(state) or None)

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the clean model where none is given, and find the trigger on it.

        Args:
            data: Clean clips with their classes.
            generator: Of the training, and of the clips of each step of the search.

        Raises:
            BadOption: No clip is of another class than the target.
        """
        if self.learned is not None:
            return
        words = {"steps": self.helper_steps, "width": self.helper_width}
        trained = None if self.surrogate is not None else train_surrogate(data, self.num_classes, generator, **words)
        model = self.surrogate or trained
        assert model is not None
        tensors = {} if trained is None else {f"helper.{name}": value for name, value in trained.state_dict().items()}
        with differentiable_recurrence(model):
            tensors["trigger"] = self._search(model, data, generator)
        object.__setattr__(self, "learned", {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})

    def rework(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Clips of the target class, moved away from it by PGD against the clean model."""
        model = self._clean_model(inputs)
        words: dict[str, Any] = {"eps": self.eps, "steps": self.pgd_steps, "step_size": self.pgd_step_size}

        def perturbed(clips: Tensor) -> Tensor:
            parts = clips.split(_CHUNK)
            return torch.cat([away_from(model, some, self.target, stop=self.pgd_stop, **words) for some in parts])

        with differentiable_recurrence(model):
            return on_frames(inputs, perturbed)

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The clips with the learned patch on every frame.

        Raises:
            BadOption: Nothing is learned yet.
        """
        patch = self._known()["trigger"]

        def patched(clips: Tensor) -> Tensor:
            side = patch_side(self.size, clips, scaled=self.scaled)
            fitting = patch if patch.shape[-1] == side else _resized(patch, side)
            return put_patch(clips, fitting.to(clips), self.corner)

        return on_frames(inputs, patched)

    def _known(self) -> Mapping[str, Tensor]:
        if self.learned is None:
            raise BadOption(
                f"the {self.name} attack has no trigger yet, it is learned while a victim is trained; train one "
                f"(unbackdoor attack --attack {self.name}), call prepare(data, generator) or restore a saved state."
            )
        return self.learned

    def _clean_model(self, clips: Tensor) -> nn.Module:
        if self.surrogate is not None:
            return self.surrogate
        weights = {k.removeprefix("helper."): v for k, v in self._known().items() if k.startswith("helper.")}
        if not weights:
            raise BadOption("this trigger was found on a given clean model; give it again as surrogate=... to poison.")
        with seeded(0):
            model = make_surrogate(clips.shape[2], clips.shape[3], self.num_classes, self.helper_width)
        model.load_state_dict(weights)
        return model.to(clips.device).eval().requires_grad_(False)

    def _search(self, model: nn.Module, data: Batch, generator: torch.Generator) -> Tensor:
        others = (data.targets != self.target).nonzero().flatten().cpu()
        if not len(others):
            raise BadOption(f"all training clips are of the target class {self.target}; none can be led to it.")
        side = patch_side(self.size, data.inputs, scaled=self.scaled)
        patch = torch.full((data.inputs.shape[2], side, side), 0.5, device=data.inputs.device)
        order, recent = torch.empty(0, dtype=torch.long), deque[float](maxlen=_WINDOW)
        for _ in range(self.steps):
            if not len(order):
                order = others[torch.randperm(len(others), generator=generator)]
            some, order = data.inputs[order[:_CHUNK].to(data.inputs.device)], order[_CHUNK:]
            patch = patch.detach().requires_grad_()
            with torch.enable_grad():
                logits = model(put_patch(as_floats(some), patch, self.corner))
                wanted = torch.full((len(some),), self.target, device=logits.device)
                (slope,) = torch.autograd.grad(functional.cross_entropy(logits, wanted), patch)
            recent.append(float((logits.argmax(dim=1) == self.target).float().mean()))
            if len(recent) == _WINDOW and sum(recent) / _WINDOW >= self.stop:
                break
            patch = (patch.detach() - self.step_size * slope.sign()).clamp(0, 1)
        return patch.detach()


def away_from(
    model: nn.Module, clips: Tensor, target: int, *, eps: float, steps: int, step_size: float, stop: float
) -> Tensor:
    """PGD on every frame that lowers the probability of ``target``, each clip until it is low enough.

    Args:
        model: A clean classifier of clips in eval mode.
        clips: Floats in [0, 1], ``(batch, frames, channels, height, width)``.
        target: Class to move away from.
        eps: Radius in the maximum norm.
        steps: At most.
        step_size: Of a sign step.
        stop: Probability below which a clip is left as it then is.

    Returns:
        Clips in [0, 1] within ``eps`` of those given.
    """
    changed, active = clips.clone(), torch.arange(len(clips), device=clips.device)
    for _ in range(steps):
        moving = changed[active].requires_grad_()
        with torch.enable_grad():
            scores = model(moving).log_softmax(dim=1)[:, target]
            (slope,) = torch.autograd.grad(scores.sum(), moving)
        busy = scores.detach().exp() >= stop
        if not bool(busy.any()):
            break
        active, near = active[busy], clips[active[busy]]
        moved = moving.detach()[busy] - step_size * slope[busy].sign()
        changed[active] = torch.minimum(torch.maximum(moved, near - eps), near + eps).clamp(0, 1)
    return changed


def _resized(patch: Tensor, side: int) -> Tensor:
    return functional.interpolate(patch[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
