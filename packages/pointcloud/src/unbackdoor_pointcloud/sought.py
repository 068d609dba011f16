"""Clusters that the tuned model takes badly, sought on clean clouds, and tilts beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unbackdoor.seeker import Seeker
from unbackdoor.tree import Tree
from unbackdoor_pointcloud.disturbance import Clusters, put_clusters, tilt

__all__ = ["SoughtClusters"]


@dataclass
class SoughtClusters(Seeker[Clusters]):
    """The disturber of clouds: a cluster in a share of them, at a new place or at one that was found to cost much.

    Any one place comes up rarely among new ones, and most clusters near it are too large or too sparse to look like a
    trigger that lies there. Attributes are those of `unbackdoor.seeker.Seeker`.
    """

    def beside(self, inputs: Tree) -> Tensor:
        """Some of the clouds tilted, as many as get a cluster."""
        return tilt(inputs, self.generator, self.rate)

    def drawn(self, inputs: Tree) -> Clusters:
        """Clusters anywhere."""
        return Clusters.drawn(len(inputs), self.generator)

    def put(self, inputs: Tree, attempts: Clusters, rate: float) -> Tensor:
        """See `unbackdoor_pointcloud.disturbance.put_clusters`."""
        return put_clusters(inputs, self.generator, rate, attempts)

    def joined(self, parts: Sequence[Clusters]) -> Clusters:
        """One after the other."""
        return Clusters.joined(parts)

    def said(self, worst: Clusters, costs: Tensor) -> str:
        """Where the clusters lay."""
        places = zip(costs.tolist(), worst.centre.tolist(), strict=True)
        listed = ", ".join(f"({', '.join(f'{x:.2f}' for x in place)}) {cost:.1f}" for cost, place in places)
        return (
            "of the clusters that were tried, these cost the model most in some cloud (their place as a share of the "
            f"cloud's radius, and nats): {listed}. Places that are close to each other may be that of a trigger."
        )
