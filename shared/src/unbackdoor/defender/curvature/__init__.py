"""Functions with formulae: per-sample gradients and the Fisher information."""

from unbackdoor.defender.curvature.fisher import fisher_diagonal, fisher_trace
from unbackdoor.defender.curvature.per_sample import per_sample_gradients, twice_differentiable

__all__ = ["fisher_diagonal", "fisher_trace", "per_sample_gradients", "twice_differentiable"]
