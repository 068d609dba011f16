"""Clusters that the tuned model takes badly, sought on clean clouds, and tilts beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unbackdoor.defender.seeker import Seeker
from unbackdoor.tree import Tree
from unbackdoor_pointcloud.disturbance import Clusters, put_clusters, tilt

__all__ = ["SoughtClusters"]


@dataclass
class SoughtClusters(Seeker[Clusters]):
    """The disturber of clouds: a cluster in a share of them, at a new place or at one that was found to cost much.

    Any one place comes up rarely among new ones, and most clusters near it are too large or too sparse to look like a
    trigger that lies there. Attributes are those of `unbackdoor.defender.seeker.Seeker`.
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
        """Where the clusters lay, the dearest first."""
        places = dict.fromkeys(f"({', '.join(f'{x:.1f}' for x in place)})" for place in worst.centre.tolist())
        return (
            "of the clusters of points that were put into clean clouds while tuning, those here changed the model's "
            f"answers most (x, y, z as shares of the cloud's radius): {', '.join(places)}. Look there for a trigger if "
            "several lie close together; a model without a backdoor has such places too."
        )
