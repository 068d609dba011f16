"""The defences of BackdoorBench and ours, each run on the same victim and samples: the rows of the page.

What is set from outside, without a change to the peer's files: the module variable ``args`` that its ANP and I-BAU read
and that only exists when they run as scripts; the victim's BatchNorm layers become its noisy ones by class; its NAD is
told that the victim is its ``preactresnet18``, whose children it strings together. Its Fine-Pruning and I-BAU are whole
runs that read a record from disk, load data, test and save: names of their modules that do so lead to `outside.py`.
I-BAU's ``torch.zeros_like(images, device="cuda")`` makes its tensor where the images are. All between is theirs.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from case import Case, Epochs, ours
from outside import Records, peer_module, settings
from torch import nn

import unbackdoor

_PERTURBABLE = 128
ACC_RATIO = 0.1  # of its ANP and Fine-Pruning: how much of the test accuracy pruning may cost
EPOCHS = 100  # of its fine-tuning
MATCHED = {
    "anp": {
        "lr": 0.2, "momentum": 0.9, "schedule": "constant", "eps": 0.4, "noise_steps": 1, "alpha": 0.2,
        "site": "norm", "bn": "update", "threshold": 0.2, "holdout": 0.0, "mixup": 0.0,
    },
    "ft-sam": {
        "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "clip": None, "radius": 2.0,
        "adaptive": True, "rounds": 1, "holdout": 0.0, "bn": "update", "mixup": 0.0,
    },
    "nad": {
        "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "constant", "clip": None, "points": 3,
        "power": 2.0, "bn": "update", "mixup": 0.0,
    },
    "fine-pruning": {
        "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "bn": "update", "prune_step": 0.01,
        "max_clean_drop": 10.0, "mixup": 0.0,
    },
    "i-bau": {
        "lr": 1e-4, "optimiser": "adam", "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant", "rounds": 5,
        "solver_steps": 5, "portion": 0.01, "penalty": 1e-3, "levels": 1, "holdout": 0.0, "mixup": 0.0,
    },
}  # fmt: skip
"""Our options that say what the peer's functions do here."""
UNLIKE = {
    "anp": "its threshold is chosen by test ASR; the rows at 0.2, the paper's, are the comparable ones",
    "ft-sam": "label smoothing is set to 0 on both sides, its cosine runs over all steps instead of 100 batches",
    "nad": "its distance of attention maps is a mean square over samples and places times 500 to 1000, ours that of "
    "the paper's Eq. (2) times 5: no number makes the two equal; both teachers are ours, each fine-tuned "
    "for its own side",
    "fine-pruning": "it prunes as long as the test accuracy allows, ours as the holdout does; its copies of the pruned "
    "network are one network, so the one fine-tuned is that after the last step, one beyond the limit; its fine-tuning "
    "leaves out no pruned unit's gradient (the mask stays), ours keeps the columns at 0",
    "i-bau": "both sides get batches of at least 128: it perturbs a hundredth of a batch, rounded down, so that of "
    "batches below 100 no image is and all that follows is 0; ours rounds up. Its search is one step on each batch "
    "from zero without a bound, ours ten steps within a root mean square of 0.4 deviations",
}


def anp(case: Case) -> list[dict[str, Any]]:
    """Masks on BatchNorm's scale in train mode, one signed step of noise, thresholds by steps of 0.05."""
    module = peer_module(case, "anp")
    given = SimpleNamespace(anp_eps=0.4, anp_steps=1, anp_alpha=0.2, device="cpu")
    module.args = given  # type: ignore[attr-defined]
    net = copy.deepcopy(case.model)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, module.anp_model.NoisyBatchNorm2d(child.num_features))
    module.load_state_dict(net, orig_state_dict=case.model.state_dict())
    criterion = nn.CrossEntropyLoss()

    def trained(one: nn.Module) -> Callable[[int], object]:
        masks = [value for name, value in one.named_parameters() if "neuron_mask" in name]
        noise = [value for name, value in one.named_parameters() if "neuron_noise" in name]
        mask_opt = torch.optim.SGD(masks, lr=0.2, momentum=0.9)
        noise_opt = torch.optim.SGD(noise, lr=given.anp_eps / given.anp_steps)
        return lambda steps: module.mask_train(given, one, criterion, mask_opt, noise_opt, case.loader(steps))

    step = case.clock(trained(copy.deepcopy(net)))
    start = time.process_time()
    trained(net)(case.steps("anp"))
    seconds = time.process_time() - start
    scores = sorted(
        (float(value), name.rpartition(".")[0], place)
        for name, mask in net.state_dict().items()
        if "neuron_mask" in name
        for place, value in enumerate(mask)
    )
    pruned = copy.deepcopy(case.model)
    before, best, chosen = case.measured(case.model), None, {}
    waiting = iter(scores)
    score: tuple[float, str, int] | None = next(waiting)
    for number in range(20):
        threshold = 0.05 * number
        while score is not None and score[0] <= threshold:
            module.pruning(pruned, (score[1], score[2], score[0]))
            score = next(waiting, None)
        figures = case.measured(pruned)
        if number == 4:
            at_paper = figures
        lost = abs(figures["accuracy"] - before["accuracy"]) / before["accuracy"]
        if lost < ACC_RATIO and (best is None or figures["asr"] < best):
            best, chosen = figures["asr"], {**figures, "threshold": round(threshold, 2)}
    row = {"method": "anp", "side": "peer", "step_ms": round(1000 * step, 2), "seconds": round(seconds, 2)}
    oracle = row | {"selection": "lowest test ASR (oracle), its own rule", **chosen}
    return [row | {"selection": "threshold 0.2", **at_paper}, oracle, *ours_twice(case, "anp")]


def ft_sam(case: Case) -> list[dict[str, Any]]:
    """Adaptive SAM with radius 2."""
    module = peer_module(case, "ft-sam")
    given = SimpleNamespace(device="cpu", label_smoothing=0.0, print_freq=10**9, lr=0.01)

    def trained(one: nn.Module) -> Callable[[int], object]:
        base = torch.optim.SGD(one.parameters(), lr=given.lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, T_max=case.steps("ft-sam"))
        radius = module.ProportionScheduler(schedule, max_lr=given.lr, min_lr=0.0, max_value=2.0, min_value=2.0)
        optimiser = module.SAM(one.parameters(), base, one, 0.0, radius, adaptive=True)
        return lambda steps: module.dsam._train_sam(
            None, given, case.loader(steps), one, optimiser, schedule, nn.CrossEntropyLoss(), 1
        )

    return both(case, "ft-sam", trained)


def nad(case: Case) -> list[dict[str, Any]]:
    """Attention distillation from a fine-tuned copy; the teacher is fine-tuned by this file, alike for its student."""
    module = peer_module(case, "nad")
    given = SimpleNamespace(device="cpu", model="preactresnet18", lr=0.01, beta1=500, beta2=1000, beta3=1000)
    teacher, _ = unbackdoor.purify(
        case.model, case.data.clean, task=case.task, method="ft", seed=case.seed, steps=case.steps("nad"),
        batch_size=case.size,
    )  # fmt: skip

    def trained(one: nn.Module) -> Callable[[int], object]:
        trainer = module.NADModelTrainer.__new__(module.NADModelTrainer)
        trainer.non_blocking = False
        optimiser = torch.optim.SGD(one.parameters(), lr=given.lr, momentum=0.9, weight_decay=1e-4)
        parts = {"criterionCls": nn.CrossEntropyLoss(), "criterionAT": module.AT(2.0)}
        nets = {"student": one, "teacher": teacher.eval()}
        return lambda steps: trainer.train_epoch(given, case.loader(steps), nets, optimiser, None, parts, 1)

    return both(case, "nad", trained)


def fine_pruning(case: Case) -> list[dict[str, Any]]:
    """Its whole run: prune the last layer's inputs as far as the test accuracy allows, then 100 epochs."""
    module = peer_module(case, "fp")
    name, data = "fine-pruning", Records(case)
    epochs = min(EPOCHS, case.steps(name))
    loader = Epochs(case, case.steps(name) // epochs)
    spent: list[float] = []

    class Trainer(module.BackdoorModelTrainer):  # type: ignore[misc]
        """Its trainer without tests and files between epochs."""

        def train_with_test_each_epoch_on_mix(
            self, given: Any, clean: Any, triggered: Any, *words: Any, **more: Any
        ) -> None:
            amp, device, *files = words[4:9]
            self.set_with_dataloader(given, {}, *words[1:4], device, amp, *files, **more)
            start = time.process_time()
            for _ in range(words[0]):
                self.train_one_epoch_on_mix()
            spent.append(time.process_time() - start)

        def agg_save_dataframe(self) -> None:
            pass

    tested: dict[int, dict[str, float]] = {}

    def test(net: nn.Module, which: str, *words: Any) -> list[dict[str, float]]:
        if which == "clean":
            tested[0] = case.measured(net)
        return [{"test_acc": tested[0]["accuracy" if which == "clean" else "asr"] / 100}]

    data.lead(module, loader)
    module.BackdoorModelTrainer, module.given_dataloader_test = Trainer, test  # type: ignore[attr-defined]
    run = module.FinePrune()
    with tempfile.TemporaryDirectory() as folder:
        run.args = settings(case, folder, acc_ratio=ACC_RATIO, once_prune_ratio=0.01, epochs=epochs, lr=0.01, wd=5e-4)
        run.netC, run.attack_result = copy.deepcopy(case.model).requires_grad_(False), data.record
        start = time.process_time()
        run.defense()
        seconds = time.process_time() - start
    steps = epochs * len(loader)
    row = {"method": name, "side": "peer", "step_ms": round(1000 * spent[0] / steps, 2), "seconds": round(seconds, 2)}
    return [row | {"selection": "test accuracy", **case.measured(data.kept())}, *ours_twice(case, name)]


def i_bau(case: Case) -> list[dict[str, Any]]:
    """Its whole run: five rounds of a search and of one unlearning step for each batch."""
    case = case.resized(_PERTURBABLE)
    module = peer_module(case, "i-bau")
    name, rounds, data = "i-bau", 5, Records(case)
    loader = Epochs(case, max(1, case.steps(name) // rounds))
    data.lead(module, loader)

    class Run(module.i_bau):  # type: ignore[misc]
        """Its run without tests and without a record on disk."""

        def __init__(self) -> None:
            self.result = data.record

        def set_trainer(self, model: nn.Module) -> None:
            pass

        def eval_step(self, *words: Any) -> tuple[float, ...]:
            return (0.0,) * 6

    run = Run()
    with tempfile.TemporaryDirectory() as folder:
        run.args = settings(case, folder, lr=1e-4, wd=0.0, client_optimizer="adam", n_rounds=rounds, K=5)
        module.args = run.args  # type: ignore[attr-defined]
        start = time.process_time()
        run.mitigation()
        seconds = time.process_time() - start
    step = seconds / (rounds * len(loader))
    row = {"method": name, "side": "peer", "step_ms": round(1000 * step, 2), "seconds": round(seconds, 2)}
    return [row | {"selection": "last step", **case.measured(data.kept())}, *ours_twice(case, name)]


def both(case: Case, name: str, trained: Callable[[nn.Module], Callable[[int], object]]) -> list[dict[str, Any]]:
    """The peer's row, whose model is the one after the last step, and ours."""
    step = case.clock(trained(copy.deepcopy(case.model)))
    model = copy.deepcopy(case.model)
    start = time.process_time()
    trained(model)(case.steps(name))
    seconds = time.process_time() - start
    row = {"method": name, "side": "peer", "step_ms": round(1000 * step, 2), "seconds": round(seconds, 2)}
    return [row | {"selection": "last step", **case.measured(model.eval())}, *ours_twice(case, name)]


def ours_twice(case: Case, name: str) -> list[dict[str, Any]]:
    """With the peer's options and steps, then with our defaults."""
    steps = case.steps(name)
    options = {"steps": steps, "teacher_steps": steps, **MATCHED[name]}
    matched = ours(case, name, name, **options) | {"side": "ours, matched"}
    return [matched, ours(case, name, name)]


PAIRS: dict[str, Callable[[Case], list[dict[str, Any]]]] = {
    "anp": anp,
    "ft-sam": ft_sam,
    "nad": nad,
    "fine-pruning": fine_pruning,
    "i-bau": i_bau,
}
