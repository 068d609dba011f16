"""Handles on a model's weights: attach, tune a few values, fold back into plain weights."""

from unbackdoor.defender.reparam.attachment import Site
from unbackdoor.defender.reparam.full_weights import FullWeights
from unbackdoor.defender.reparam.neuron_mask import NeuronMask
from unbackdoor.defender.reparam.site import Reparametrisation
from unbackdoor.defender.reparam.spectral_shift import SpectralShift
from unbackdoor.defender.reparam.weight_mask import WeightMask

__all__ = ["FullWeights", "NeuronMask", "Reparametrisation", "Site", "SpectralShift", "WeightMask"]
