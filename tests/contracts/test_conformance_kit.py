"""The conformance kit must fail: each broken task, method and attack here is caught, by name of what is broken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from unbackdoor.defender.methods.nft import NFT
from unbackdoor.defender.purifier import Purifier, option
from unbackdoor.errors import ModelChanged
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, SquareTrigger, check_attack, check_purifier, check_task, tiny_models

TINY = tiny_models()["conv-bn"]


# ------------------------------------------------------------------------------------------------ tasks


class PairsAll(ClassificationTask):
    def log_likelihood(self, outputs, targets):
        return outputs.log_softmax(1)[:, targets] if isinstance(targets, torch.Tensor) else super().log_likelihood(
            outputs, targets
        )  # fmt: skip


class MixesSamples(ClassificationTask):
    def log_likelihood(self, outputs, targets):
        return super().log_likelihood(outputs - outputs.mean(0) * torch.arange(3.0), targets)


class Detaches(ClassificationTask):
    def log_likelihood(self, outputs, targets):
        return super().log_likelihood(outputs, targets).detach()


class OtherLoss(ClassificationTask):
    def loss(self, outputs, targets):
        return -self.log_likelihood(outputs, targets).sum()


class SquaresShare(ClassificationTask):
    def log_likelihood(self, outputs, targets):
        score = super().log_likelihood(outputs, targets)
        return -(score**2) if isinstance(targets, tuple) else score


class GlobalChance(ClassificationTask):
    def augment(self, batch, generator, *, mix=1.0):
        return Batch(batch.inputs + torch.rand(()), batch.targets)


class Shrinks(ClassificationTask):
    def augment(self, batch, generator, *, mix=1.0):
        return Batch(batch.inputs[..., 1:], batch.targets)


class ChangesDtype(ClassificationTask):
    def augment(self, batch, generator, *, mix=1.0):
        return Batch(batch.inputs.double(), batch.targets)


class InPlace(ClassificationTask):
    def augment(self, batch, generator, *, mix=1.0):
        batch.inputs.mul_(0.5)
        return batch


class MixesAlways(ClassificationTask):
    def augment(self, batch, generator, *, mix=1.0):
        return super().augment(batch, generator, mix=1.0)


class SharesMeters(ClassificationTask):
    kept = ClassificationTask().meters()

    def meters(self):
        return self.kept


class ProbabilitiesAsCorrect(ClassificationTask):
    def correct(self, outputs, targets):
        return outputs.amax(1)


BROKEN_TASKS = [
    (PairsAll, "shape.*gather"),
    (MixesSamples, "one at a time"),
    (Detaches, "graph"),
    (OtherLoss, "minus the mean"),
    (SquaresShare, "linear in mixed targets"),
    (GlobalChance, "generator alone"),
    (Shrinks, "keep structure, shapes"),
    (ChangesDtype, "keep structure, shapes"),
    (InPlace, "generator alone|changed the batch"),
    (MixesAlways, "mix=0"),
    (SharesMeters, "fresh"),
    (ProbabilitiesAsCorrect, "bool"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN_TASKS, ids=lambda value: getattr(value, "__name__", ""))
def test_check_task_catches(cls, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_task(cls(), TINY.batch(6), TINY.build())


# --------------------------------------------------------------------------------------------- purifiers


@dataclass(frozen=True, kw_only=True)
class Honest(Purifier):
    """Moves the classifier a little, at random."""

    name = "honest"
    steps: int = option(1, "does nothing")

    def _purify(self, model, clean, task, run):
        head = model[-1].weight
        with torch.no_grad():
            head.add_(0.01 * torch.randn(head.shape, generator=run.generator))


class RenamesKeys(Honest):
    def _purify(self, model, clean, task, run):
        model[-1] = nn.Sequential(model[-1])


class MovesBuffers(Honest):
    def _purify(self, model, clean, task, run):
        model[1].running_var.mul_(1.1)


class DropsHooks(Honest):
    def _purify(self, model, clean, task, run):
        super()._purify(model, clean, task, run)
        model.register_forward_hook(lambda *args: None)


class LeavesGradients(Honest):
    def _purify(self, model, clean, task, run):
        super()._purify(model, clean, task, run)
        task.loss(model(clean.samples.inputs), clean.samples.targets).backward()


class Freezes(Honest):
    def _purify(self, model, clean, task, run):
        super()._purify(model, clean, task, run)
        model[0].requires_grad_(False)


class GlobalSeed(Honest):
    def _purify(self, model, clean, task, run):
        torch.manual_seed(0)
        super()._purify(model, clean, task, run)


class GlobalNoise(Honest):
    def _purify(self, model, clean, task, run):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model[-1].weight.add_(torch.rand(()))


class IgnoresSeed(Honest):
    def _purify(self, model, clean, task, run):
        with torch.no_grad():
            model[-1].weight.mul_(0.5)


class ChangesData(Honest):
    def _purify(self, model, clean, task, run):
        clean.samples.inputs.mul_(0.5)
        super()._purify(model, clean, task, run)


class LeavesFastPathOff(Honest):
    def _purify(self, model, clean, task, run):
        torch.backends.mha.set_fastpath_enabled(False)


BROKEN_METHODS = [
    (RenamesKeys, ModelChanged, "classes|tensors"),
    (MovesBuffers, ModelChanged, "running_var"),
    (DropsHooks, AssertionError, "hooks"),
    (LeavesGradients, AssertionError, "gradients"),
    (Freezes, AssertionError, "trainable"),
    (GlobalSeed, AssertionError, "global generator"),
    (GlobalNoise, AssertionError, "one seed must give one result"),
    (IgnoresSeed, AssertionError, "another seed gave the same"),
    (ChangesData, AssertionError, "clean samples"),
    (LeavesFastPathOff, AssertionError, "fast path"),
]


@pytest.fixture
def _fastpath():
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("_fastpath")
@pytest.mark.parametrize(("cls", "error", "message"), BROKEN_METHODS, ids=lambda v: getattr(v, "__name__", ""))
def test_check_purifier_catches(cls, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        check_purifier(cls(holdout=0.0), TINY.build(), TINY.batch(), ClassificationTask())


def test_check_purifier_passes_an_honest_method():
    report = check_purifier(Honest(), TINY.build(), TINY.batch(), ClassificationTask())
    assert report.hash_before != report.hash_after


def test_check_purifier_wants_frozen_weights_frozen():
    model = TINY.build()
    model[-1].requires_grad_(False)
    with pytest.raises(AssertionError, match="requires_grad=False, yet it was changed"):
        check_purifier(Honest(), model, TINY.batch(), ClassificationTask())


def test_check_purifier_asks_for_documented_keyword_options():
    @dataclass(frozen=True, kw_only=True)
    class Undocumented(Honest):
        strength: float = 1.0

    with pytest.raises(AssertionError, match="'strength' has no help"):
        check_purifier(Undocumented(), TINY.build(), TINY.batch(), ClassificationTask())


def test_check_purifier_sees_a_method_that_does_nothing():
    """The control of the contracts: the hashes of a no-op agree, and the tests of methods ask that they differ."""

    class Nothing(Honest):
        def _purify(self, model, clean, task, run):
            pass

    report = check_purifier(Nothing(), TINY.build(), TINY.batch(), ClassificationTask())
    assert report.hash_before == report.hash_after
    assert NFT(steps=2, batch_size=4).purify(TINY.build(), TINY.batch(), ClassificationTask()).hash_after != (
        report.hash_after
    )


# ----------------------------------------------------------------------------------------------- attacks


class Bright(SquareTrigger):
    def trigger(self, inputs, generator=None):
        return inputs + 1


class Nothing(SquareTrigger):
    def trigger(self, inputs, generator=None):
        return inputs.clone()


class Paints(SquareTrigger):
    def trigger(self, inputs, generator=None):
        inputs[..., 0] = 1.0
        return inputs


class Noisy(SquareTrigger):
    def trigger(self, inputs, generator=None):
        return torch.rand(inputs.shape)


class Doubles(SquareTrigger):
    def trigger(self, inputs, generator=None):
        return super().trigger(inputs).double()


class CountsAll(SquareTrigger):
    def counts(self, targets):
        return torch.ones_like(targets, dtype=torch.bool)


class PoisonsTarget(SquareTrigger):
    def eligible(self, targets):
        return torch.ones_like(targets, dtype=torch.bool)


class SaysYes(SquareTrigger):
    def succeeded(self, outputs, targets):
        return torch.ones_like(targets, dtype=torch.bool)


class Forgets(SquareTrigger):
    def options(self):
        return {key: value for key, value in super().options().items() if key != "size"}


class SourceUncounted(SquareTrigger):
    def source(self, targets):
        return targets == 1

    def counts(self, targets):
        return self.label_map.counts(targets)


class HidesCovers(SquareTrigger):
    cover_ratio = 1.0

    def plan(self, targets, generator):
        return self.choose(targets, generator), torch.empty(0, dtype=torch.int64)


class CoversPoison(SquareTrigger):
    cover_ratio = 1.0

    def plan(self, targets, generator):
        chosen = self.choose(targets, generator)
        return chosen, chosen


class DressesAll(SquareTrigger):
    def dress(self, batch, poisoned, covers, generator):
        return Batch(self.trigger(batch.inputs), batch.targets)


class TakesOneMore(SquareTrigger):
    def choose(self, targets, generator):
        chosen = super().choose(targets, generator)
        rest = [i for i in self.eligible(targets).nonzero().flatten().tolist() if i not in chosen.tolist()]
        return torch.cat([chosen, torch.tensor(rest[:1])]).sort().values


class SkipsAClass(SquareTrigger):
    def retarget(self, targets):
        return (targets + 2) % self.num_classes


class Mislabels(SquareTrigger):
    def poisoned(self, samples, generator):
        return Batch(self.implant(samples.inputs), samples.targets)


class ChangesCleanLabels(SquareTrigger):
    clean_label = True

    def poisoned(self, samples, generator):
        return Batch(self.implant(samples.inputs), (samples.targets + 1) % self.num_classes)


class ImplantsBeyond(SquareTrigger):
    def implant(self, inputs, generator=None):
        return self.trigger(inputs) * 1.5


class DrawsFromElsewhere(SquareTrigger):
    def implant(self, inputs, generator=None):
        return (self.trigger(inputs) + 0.1 * torch.rand(inputs.shape)).clamp(0, 1)


BROKEN_ATTACKS = [
    (TakesOneMore, "samples were poisoned; rate"),
    (SkipsAClass, "label map"),
    (Mislabels, "poisoned labels"),
    (ChangesCleanLabels, "poisoned labels"),
    (ImplantsBeyond, "poisoned samples and covers must stay within"),
    (DrawsFromElsewhere, "one seed must give one poisoned set"),
    (Bright, "within"),
    (Nothing, "changed no sample"),
    (Paints, "changed no sample|changed the samples"),
    (Noisy, "one seed"),
    (Doubles, "keep shapes, dtypes"),
    (CountsAll, "flatter"),
    (PoisonsTarget, "eligible"),
    (SaysYes, "succeeded must not hold"),
    (Forgets, "same trigger again"),
    (SourceUncounted, "flatter"),
    (HidesCovers, "covers"),
    (CoversPoison, "not poisoned"),
    (DressesAll, "not in indices"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN_ATTACKS, ids=lambda value: getattr(value, "__name__", ""))
def test_check_attack_catches(cls, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_attack(cls(num_classes=3, rate=0.25, size=3), TINY.batch(40))
