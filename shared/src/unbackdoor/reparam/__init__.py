"""Handles on a model's weights: attach, tune a few values, fold back into plain weights."""

from unbackdoor.reparam.attachment import Site
from unbackdoor.reparam.full_weights import FullWeights
from unbackdoor.reparam.neuron_mask import NeuronMask
from unbackdoor.reparam.site import Reparametrisation
from unbackdoor.reparam.spectral_shift import SpectralShift
from unbackdoor.reparam.weight_mask import WeightMask

__all__ = ["FullWeights", "NeuronMask", "Reparametrisation", "Site", "SpectralShift", "WeightMask"]
