"""How the solution of an inner problem moves with the weights: implicit gradients, exact or by a truncated series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unbackdoor.errors import BadOption
from unbackdoor.network.gradients import slopes

__all__ = ["Adjoint", "Solver", "adjoint", "conjugate_gradients", "fixed_point"]

Solver = Literal["conjugate-gradients", "fixed-point"]
_ACTIVE = 1e-3


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, iterations: int, *, tolerance: float = 1e-10
) -> Tensor:
    r"""``q`` with ``A q = b`` for a symmetric ``A``, known by its products alone.

    It stops early where ``||A q - b|| <= tolerance ||b||``, or where a direction of no positive curvature comes up:
    ``A`` is then not positive definite, and the solution so far is the one within the subspace where it is.

    Args:
        product: ``v -> A v``.
        right: ``b``.
        iterations: At most; as many as ``b`` has values solve the system exactly but for rounding.
        tolerance: See above.

    Returns:
        ``q``, of the shape of ``b``.
    """
    solution = torch.zeros_like(right)
    residual = right.clone()
    direction = residual.clone()
    square = residual.square().sum()
    limit = tolerance**2 * square
    for _ in range(iterations):
        if not bool(square > limit):
            break
        mapped = product(direction)
        curvature = (direction * mapped).sum()
        if not bool(curvature > 0):
            break
        step = square / curvature
        solution = solution + step * direction
        residual = residual - step * mapped
        last, square = square, residual.square().sum()
        direction = residual + (square / last) * direction
    return solution


def fixed_point(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int, *, step: float = 0.1) -> Tensor:
    r"""``q_{k+1} = q_k - a (A q_k - b)`` from ``q_0 = 0``: ``a sum_k (I - a A)^k b``, which tends to ``A^{-1} b``.

    Cut off after a few terms it underestimates ``q`` where ``A`` is nearly singular, instead of blowing it up.

    Args:
        product: ``v -> A v``.
        right: ``b``.
        iterations: Terms of the series.
        step: ``a``; the series converges for ``0 < a < 2 / lambda_max(A)`` where ``A`` is positive definite.

    Returns:
        ``q``, of the shape of ``b``.
    """
    if iterations < 1:
        return torch.zeros_like(right)
    solution = step * right  # the first term: the product with q_0 = 0 is known
    for _ in range(iterations - 1):
        solution = solution - step * (product(solution) - right)
    return solution


@dataclass(frozen=True)
class Adjoint:
    r"""``q``; `term` is what it adds to the gradient of the outer loss.

    Attributes:
        values: ``q``, of the shape of ``delta``.
        multiplier: ``lambda`` of the constraint; 0 inside the ball.
        slope: ``dh / d delta`` at ``delta*``, with the graph that leads to the weights.
    """

    values: Tensor
    multiplier: float
    slope: Tensor

    def term(self) -> Tensor:
        r"""A scalar whose gradient by the weights is ``-(d^2 h / d theta d delta) q``; its own value means nothing.

        That gradient can be asked for once: it frees the graph of the inner problem.
        """
        return -(self.slope * self.values).sum()


def adjoint(
    inner: Callable[[Tensor], Tensor],
    outer_slope: Tensor,
    delta: Tensor,
    *,
    radius: float,
    iterations: int,
    solver: Solver = "conjugate-gradients",
    step: float = 0.1,
) -> Adjoint:
    r"""What the implicit function theorem needs of ``delta* = argmin_{||delta|| <= r} h(delta, theta)``.

    With ``L(delta*(theta), theta)`` the outer loss,

        dL / dtheta = partial L / partial theta - (d^2 h / d theta d delta) q
        (P (H + lambda I) P) q = P partial L / partial delta

    with ``H`` the Hessian of ``h`` by ``delta``. Inside the ball ``P = I`` and ``lambda = 0`` (Eq. (4) of I-BAU).
    On its surface ``delta*`` can only slide along it: ``P`` projects onto the tangent plane, ``lambda`` is
    the multiplier ``-<dh / d delta, delta> / r^2``.

    Args:
        inner: ``h`` as a function of ``delta`` at the present weights: a scalar with a second derivative.
        outer_slope: ``partial L / partial delta``.
        delta: ``delta*``, of any shape; the ball is that of its Euclidean norm.
        radius: ``r``.
        iterations: Of the solver, each one Hessian-vector product.
        solver: `conjugate_gradients`, or `fixed_point` as the authors of I-BAU use it.
        step: Of `fixed_point`.

    Returns:
        ``q``; its `Adjoint.term` goes into the objective.

    Raises:
        BadOption: There is no such solver.
    """
    if solver not in get_args(Solver):
        raise BadOption(f"no solver {solver!r}. Known: {', '.join(get_args(Solver))}.")
    point = delta.detach().requires_grad_(True)
    (slope,) = slopes(inner(point), [point], what="the inputs", create_graph=True)
    assert slope is not None
    normal = delta.detach() / delta.detach().norm().clamp(min=torch.finfo(delta.dtype).tiny)
    multiplier = 0.0
    if float(delta.norm()) >= (1 - _ACTIVE) * radius:
        multiplier = max(0.0, -float((slope.detach() * delta).sum()) / radius**2)

    def tangent(vector: Tensor) -> Tensor:
        return vector - (vector * normal).sum() * normal if multiplier > 0 else vector

    def product(vector: Tensor) -> Tensor:
        along = tangent(vector)
        mapped = None
        if slope.requires_grad:  # else h is linear in delta
            (mapped,) = torch.autograd.grad(slope, point, along, retain_graph=True, allow_unused=True)
        return tangent(multiplier * along if mapped is None else mapped + multiplier * along)

    right = tangent(outer_slope.detach())
    if solver == "fixed-point":
        return Adjoint(fixed_point(product, right, iterations, step=step), multiplier, slope)
    return Adjoint(conjugate_gradients(product, right, iterations), multiplier, slope)
