"""What attacks with learned tensors share: where the tensors are kept, and small networks trained on data at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from unbackdoor.attacker.attack import Attack
from unbackdoor.errors import BadOption
from unbackdoor.network.backend import seeded as drawn_from
from unbackdoor.task import Batch
from unbackdoor_image.models.small_cnn import SmallCNN
from unbackdoor_image.task import as_floats

__all__ = [
    "Learned",
    "adversarial",
    "batches",
    "draws",
    "named",
    "seeded",
    "straight_through",
    "train_helper",
]


@dataclass(frozen=True, kw_only=True)
class Learned(Attack):
    """An attack whose trigger is learned from data.

    Attributes:
        learned: Its tensors by name, on the CPU; None until they are learned.
    """

    learned: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def options(self) -> dict[str, Any]:
        """The hyper-parameters without what is learned."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "learned"}

    def state(self) -> dict[str, Tensor]:
        """What is learned; empty before."""
        return dict(self.learned or {})

    @classmethod
    def restore(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The attack that `options` and `state` describe."""
        return cls(**options, learned=dict(state) or None)

    @property
    def ready(self) -> bool:
        """Whether there is a trigger."""
        return self.learned is not None

    def tensors(self, part: str = "") -> dict[str, Tensor]:
        """What is learned, or the tensors whose names begin with ``part.``, without that beginning.

        Raises:
            BadOption: Nothing is learned yet.
        """
        if self.learned is None:
            raise BadOption(
                f"the {self.name} attack has no trigger yet, it is learned while a victim is trained; train one "
                f"(unbackdoor attack --attack {self.name}), call prepare(data, generator) or restore a saved state."
            )
        if not part:
            return dict(self.learned)
        return {k.removeprefix(part + "."): v for k, v in self.learned.items() if k.startswith(part + ".")}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Make ``tensors`` the learned ones; networks built from earlier ones are forgotten."""
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        object.__setattr__(self, "learned", copies)
        self.__dict__.pop("_networks", None)

    def network(self, part: str, make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
        """The network whose weights are the tensors of ``part``, in eval mode; built once for each device."""
        if "_networks" not in self.__dict__:
            object.__setattr__(self, "_networks", {})
        known: dict[tuple[str, torch.device], nn.Module] = self.__dict__["_networks"]
        if (part, device) not in known:
            network = seeded(make, 0)
            network.load_state_dict(self.tensors(part))
            known[part, device] = network.to(device).eval().requires_grad_(False)
        return known[part, device]


def named(part: str, network: nn.Module) -> dict[str, Tensor]:
    """The state of ``network`` with ``part.`` before every name."""
    return {f"{part}.{name}": value for name, value in network.state_dict().items()}


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """``make()`` with weights drawn from ``seed``; the global generator is left as it was."""
    with drawn_from(seed):
        return make()


def draws(generator: torch.Generator) -> int:
    """A seed drawn from ``generator``."""
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def straight_through(images: Tensor, like: Tensor) -> Tensor:
    """Floats as they will be once stored like ``like``: rounded to 255 levels for ``uint8``, with the gradient kept."""
    if like.dtype is not torch.uint8:
        return images
    return images + ((images.detach() * 255).round() / 255 - images.detach())


def batches(data: Batch, size: int, steps: int, generator: torch.Generator) -> Iterator[Batch]:
    """``steps`` batches of random samples with pixels as floats in [0, 1]."""
    size = min(size, len(data))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(data), generator=generator)
        batch, order = data[order[:size].to(data.targets.device)], order[size:]
        yield Batch(as_floats(batch.inputs).contiguous(memory_format=torch.channels_last), batch.targets)


def train_helper(
    data: Batch,
    num_classes: int,
    generator: torch.Generator,
    *,
    steps: int,
    width: int = 16,
    eps: float = 0.0,
    batch_size: int = 64,
) -> SmallCNN:
    """A small classifier of the clean samples, in eval mode and without gradients.

    With ``eps`` it is trained on adversarial examples made in one step from a random start within the ball (Wong, Rice
    and Kolter 2020, arXiv 2001.03994).

    Args:
        data: Images and class indices.
        num_classes: Number of logits.
        generator: Of weights, order and noise.
        steps: Of SGD with a one-cycle schedule.
        width: Of `SmallCNN`.
        eps: Radius of the ball in the maximum norm, pixels in [0, 1].
        batch_size: Samples a step.
    """
    channels = data.inputs.shape[1]
    helper = seeded(lambda: SmallCNN(num_classes, channels, width), draws(generator))
    assert isinstance(helper, SmallCNN)
    helper.to(data.inputs.device).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(helper.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = OneCycleLR(optimiser, 0.1, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
    for batch in batches(data, batch_size, steps, generator):
        images = batch.inputs
        if eps > 0:
            images = adversarial(
                helper, images, batch.targets, eps=eps, steps=1, step_size=1.25 * eps, generator=generator
            )
        loss = functional.cross_entropy(helper(images), batch.targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return helper.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def adversarial(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    *,
    eps: float | Tensor,
    steps: int,
    step_size: float | Tensor,
    generator: torch.Generator,
    towards: bool = False,
) -> Tensor:
    """PGD (Madry et al. 2018, arXiv 1706.06083): raise the loss within ``eps``, from a random start.

    Args:
        model: A classifier; its mode is left as it is.
        images: Floats in [0, 1].
        targets: True classes; wanted ones with ``towards``.
        eps: Radius in the maximum norm, one number or one for each image, of shape ``(batch, 1, 1, 1)``.
        steps: Sign steps.
        step_size: Length of one, in the form of ``eps``.
        generator: Of the start, on the CPU.
        towards: Lower the loss instead, so that the images come to look like ``targets``.

    Returns:
        Images in [0, 1] within ``eps`` of those given.
    """
    noise = (torch.rand(images.shape, generator=generator) * 2 - 1).to(images) * eps
    sign = -1 if towards else 1
    changed = (images + noise).clamp(0, 1)
    with torch.enable_grad():
        for _ in range(steps):
            changed = changed.detach().requires_grad_()
            loss = functional.cross_entropy(model(changed), targets, reduction="sum")
            (slope,) = torch.autograd.grad(loss, changed)
            changed = changed.detach() + sign * step_size * slope.sign()
            changed = torch.minimum(torch.maximum(changed, images - eps), images + eps).clamp(0, 1)
    return changed.detach()
