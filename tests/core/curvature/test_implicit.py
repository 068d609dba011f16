"""Implicit gradients against bilevel problems that are solved exactly."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.defender.curvature.implicit import adjoint, conjugate_gradients, fixed_point
from unbackdoor.errors import BadOption


def positive(size=6, seed=0):
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size + 0.5 * torch.eye(size, dtype=torch.float64)


def vector(size=6, seed=1):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_conjugate_gradients_solve_a_positive_system():
    matrix, right = positive(), vector()
    found = conjugate_gradients(lambda v: matrix @ v, right, 20)
    assert_close(found, torch.linalg.solve(matrix, right), rtol=0, atol=1e-9)


def test_conjugate_gradients_stop_where_the_matrix_is_not_positive():
    right = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert_close(conjugate_gradients(lambda v: -v, right, 5), torch.zeros(2, dtype=torch.float64))


def test_fixed_point_sums_the_series_and_tends_to_the_solution():
    matrix, right = positive(), vector()
    three = 0.1 * sum(torch.linalg.matrix_power(torch.eye(6, dtype=torch.float64) - 0.1 * matrix, k) @ right
                      for k in range(3))  # fmt: skip
    assert_close(fixed_point(lambda v: matrix @ v, right, 3), three, rtol=0, atol=1e-12)
    assert_close(fixed_point(lambda v: matrix @ v, right, 2000), torch.linalg.solve(matrix, right), rtol=0, atol=1e-9)


def problem(theta):
    """``h(delta, theta) = delta' A delta / 2 + sum theta^2 delta^2 / 2 - delta' B theta`` and ``L``."""
    matrix, mix, goal = positive(), positive(seed=3), vector(seed=4)

    def inner(delta):
        return 0.5 * delta @ matrix @ delta + 0.5 * (theta.square() * delta.square()).sum() - delta @ mix @ theta

    def outer(delta):
        return (delta - goal).square().sum() + (delta * theta).sum() + theta.pow(3).sum()

    return inner, outer, matrix, mix


def hypergradient(theta, delta, radius, **options):
    inner, outer, _, _ = problem(theta)
    free = delta.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(outer(free), free, retain_graph=True)
    solved = adjoint(inner, slope, delta, radius=radius, iterations=50, **options)
    (total,) = torch.autograd.grad(outer(delta.detach()) + solved.term(), theta)
    return total, solved


def test_implicit_gradient_inside_the_ball_is_that_of_the_closed_form():
    theta = vector(seed=5).requires_grad_(True)
    _, outer, matrix, mix = problem(theta)
    solution = torch.linalg.solve(matrix + torch.diag(theta.square()), mix @ theta)  # differentiated by autograd
    (exact,) = torch.autograd.grad(outer(solution), theta)
    found, solved = hypergradient(theta, solution.detach(), radius=1e6)
    assert solved.multiplier == 0
    assert_close(found, exact, rtol=0, atol=1e-9)
    without = torch.autograd.grad(problem(theta)[1](solution.detach()), theta)[0]
    assert float((without - exact).norm()) > 0.1, "the implicit term must matter here, or the test says nothing"


def on_the_surface(theta, radius):
    """``argmin h`` on the ball, by bisection on the multiplier of its closed form; float64."""
    _, _, matrix, mix = problem(theta)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        system = matrix + torch.diag(theta.square()) + middle * torch.eye(6, dtype=torch.float64)
        delta = torch.linalg.solve(system, mix @ theta)
        low, high = (middle, high) if float(delta.norm()) > radius else (low, middle)
    return delta.detach()


def test_implicit_gradient_on_the_surface_is_that_of_finite_differences():
    radius, base = 0.2, vector(seed=5)
    theta = base.clone().requires_grad_(True)
    found, solved = hypergradient(theta, on_the_surface(base, radius), radius)
    assert solved.multiplier > 0
    exact = torch.zeros(6, dtype=torch.float64)
    for i in range(6):
        step = 1e-5 * torch.eye(6, dtype=torch.float64)[i]
        up, down = (problem(t)[1](on_the_surface(t, radius)) for t in (base + step, base - step))
        exact[i] = (up - down) / 2e-5
    assert_close(found, exact, rtol=0, atol=1e-6)


def test_both_solvers_agree_at_the_limit():
    theta = vector(seed=5).requires_grad_(True)
    delta = on_the_surface(theta.detach(), 0.2)
    _, solved = hypergradient(theta, delta, 0.2)
    inner, outer, _, _ = problem(theta)
    free = delta.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(outer(free), free)
    step = 1.0 / (solved.multiplier + 20)
    series = adjoint(inner, slope, delta, radius=0.2, iterations=5000, solver="fixed-point", step=step)
    assert_close(series.values, solved.values, rtol=0, atol=1e-8)


def test_unknown_solver_is_refused():
    delta = vector()
    with pytest.raises(BadOption, match="conjugate-gradients, fixed-point"):
        adjoint(lambda d: d.square().sum(), delta, delta, radius=1.0, iterations=1, solver="newton")
