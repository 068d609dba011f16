"""What the checks compare: states of a model, of a batch and of the process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unbackdoor.task import Batch
from unbackdoor.tree import Tree, tree_map

__all__ = ["Snapshot", "assert_close", "assert_equal", "copy_of", "form", "generator", "global_state_kept", "parts"]


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass(frozen=True)
class Snapshot:
    """Everything of a model that a purification must leave alone, except for weights."""

    state: dict[str, Tensor]
    modes: dict[str, bool]
    trainable: dict[str, bool]
    gradients: dict[str, bool]
    hooks: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Take it; tensors are copied."""
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        return cls(
            {n: t.detach().clone() for n, t in model.state_dict().items() if isinstance(t, Tensor)},
            {n: m.training for n, m in modules.items()},
            {n: p.requires_grad for n, p in parameters.items()},
            {n: p.grad is not None for n, p in parameters.items()},
            {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()},
        )

    def differs(self, other: Snapshot) -> bool:
        """Whether any tensor of the state dict differs in any bit."""
        return any(not torch.equal(value, other.state[name]) for name, value in self.state.items())

    def check(self, before: Snapshot, what: str) -> None:
        """Assert that nothing at all differs."""
        for part in fields(self):
            if part.name != "state":
                assert getattr(self, part.name) == getattr(before, part.name), f"{what}: its {part.name}"
        assert_equal(self.state, before.state, what)


@contextmanager
def global_state_kept(who: str) -> Iterator[None]:
    """Assert that generators, modes and switches of the process are the same after as before."""

    def now() -> dict[str, Any]:
        return {
            "torch's global generator": torch.get_rng_state().tolist(),
            "Python's global generator": random.getstate(),
            "the attention fast path": torch.backends.mha.get_fastpath_enabled(),
            "grad mode": torch.is_grad_enabled(),
            "the default dtype": torch.get_default_dtype(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "the number of threads": torch.get_num_threads(),
        }

    before = now()
    state = torch.get_rng_state()
    yield
    for what, value in now().items():
        if what == "torch's global generator" and who.startswith(("task", "attack")):
            continue  # the checks themselves move it between two draws; equality of the draws is what is asked
        assert value == before[what], f"{who} changed {what}; library code must leave global state alone"
    torch.set_rng_state(state)


def generator(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def parts(batch: Batch) -> tuple[Tree, Tree]:
    """Inputs and targets, to compare."""
    return batch.inputs, batch.targets


def copy_of(tree: Tree) -> Tree:
    """The tree with its tensors copied."""
    return tree_map(lambda t: t.detach().clone(), tree)


def form(tree: Tree) -> Any:
    """Structure, shapes, dtypes and devices."""
    flat, spec = pytree.tree_flatten(tree)
    return spec, [(tuple(t.shape), t.dtype, t.device) for t in flat if isinstance(t, Tensor)]


def assert_equal(found: Tree, expected: Tree, message: str) -> None:
    """Assert equality bit for bit."""
    assert form(found) == form(expected), f"{message}\n{form(found)} is not {form(expected)}"
    torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=lambda details: f"{message}\n{details}")


def assert_close(found: Tensor, expected: Tensor, message: str) -> None:
    """Assert equality up to rounding in the dtype of ``found``."""
    tolerance = TOLERANCE.get(found.dtype, 1e-2)
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, msg=lambda details: f"{message}\n{details}"
    )
