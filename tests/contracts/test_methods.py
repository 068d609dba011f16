"""Every method on every architecture: the promises of `Purifier`, and that something is tuned at all."""

from __future__ import annotations

import warnings

import pytest
import torch

from unbackdoor.errors import UnsupportedTask
from unbackdoor.registry import method, method_names
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, check_purifier, tiny_models

pytestmark = pytest.mark.usefixtures("untrained")

TASK = ClassificationTask()
CONTROLS = {"bn-only"}  # these change no weight by design


def quick(name, **options):
    """The method with two steps; every term of its objective switched on."""
    fields = method(name).__dataclass_fields__
    wanted = {"batch_size": 4, "retain_weight": 1.0, "trace_every": 1, "trace_samples": 3, "passes": 1}
    wanted |= few_steps(fields) | options
    return method(name)(**{key: value for key, value in wanted.items() if key in fields})


def few_steps(fields):
    """Two steps of everything that a method counts in steps: its own, a teacher's, an ascent's."""
    return {key: 2 for key in fields if key == "steps" or key.endswith("_steps")}


def test_method_keeps_its_promises_on_every_architecture(method_name, tiny_name):
    tiny = tiny_models()[tiny_name]
    model = tiny.build()
    if tiny.vocabulary and "perturbable" in method(method_name).needs:
        with pytest.raises(UnsupportedTask, match=f"'{method_name}' searches in input space"):
            quick(method_name).purify(model, tiny.batch(), TASK)
        return
    report = check_purifier(quick(method_name), model, tiny.batch(), TASK)
    if method_name not in CONTROLS:
        assert report.hash_after != report.hash_before or told(report), "nothing was tuned"
        assert report.trainable > 0 or "classes" not in method(method_name).needs


def told(report):
    """Whether a method that prunes says that it left the model as it was: no threshold was within the budget."""
    return any("nothing was pruned" in text for text in report.notices)


def presets():
    return [pytest.param(n, p, id=f"{n}-{p}") for n in method_names() for p in sorted(method(n).presets)]


@pytest.mark.parametrize(("name", "preset"), presets())
def test_method_keeps_its_promises_with_its_presets(name, preset):
    assert preset.partition("-")[0] in ("paper", "authors")
    tiny = tiny_models()["conv-bn"]
    fields = method(name).__dataclass_fields__
    few = {"batch_size": 8, "passes": 1} | few_steps(fields)
    purifier = method(name).make(preset, **{key: value for key, value in few.items() if key in fields})
    check_purifier(purifier, tiny.build(), tiny.batch(), TASK)


def resnet18():
    return _torchvision("resnet18"), 32


def mobilenet_v3():
    return _torchvision("mobilenet_v3_small"), 32


def mobilenet_v2():
    return _torchvision("mobilenet_v2", width_mult=0.25), 32


def densenet():
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3), 32


def googlenet():
    return _torchvision("googlenet", aux_logits=True, init_weights=False), 32


def inception():
    return _torchvision("inception_v3", aux_logits=True, init_weights=False), 75


def vgg11_bn():
    return _torchvision("vgg11_bn"), 32


def efficientnet():
    return _torchvision("efficientnet_b0"), 32


def vision_transformer():
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
    model = VisionTransformer(**sizes, num_classes=3)
    torch.nn.init.normal_(model.heads.head.weight)  # torchvision begins with zeros: no gradient behind it
    return model, 16


def test_method_tunes_attention_that_reads_weights_of_layers_it_never_calls(method_name):
    """Torchvision's Swin computes with the weights of ``qkv`` and ``proj``, not by calling them."""
    pytest.importorskip("torchvision")
    model, size = swin()
    batch = Batch(torch.rand(3, 3, size, size), torch.arange(3))
    check_purifier(quick(method_name, steps=1, retain_weight=0.0), model.eval(), batch, TASK, again=False)


def swin():
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=3), 32


def _torchvision(name, **options):
    import torchvision

    return getattr(torchvision.models, name)(num_classes=3, **options)


SMALL = [densenet, vision_transformer]
LARGE = [resnet18, mobilenet_v2, mobilenet_v3, googlenet, inception, vgg11_bn, efficientnet]
HEAVY = [googlenet, inception, vgg11_bn, efficientnet]  # slow with every method
BEYOND = {
    (vgg11_bn, "f-fip")
}  # left out, and the only pair that is: minutes of singular values of a 25088 x 4096 matrix
FAST = {"nft"}  # on large networks by default; the rest is run by `nox -s slow`


def awake(model, size):
    """Statistics of real activations: with those of a fresh network, eval mode lets the signal of deep ones die."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
        module.train(isinstance(module, torch.nn.BatchNorm2d))
    with torch.no_grad():
        model(torch.rand(8, 3, size, size))
    model.eval()


def combinations():
    for build in SMALL + LARGE:
        for name in method_names():
            if (build, name) in BEYOND:
                continue
            slow = build in LARGE and (name not in FAST or build in HEAVY)
            yield pytest.param(build, name, id=f"{build.__name__}-{name}", marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("build", "name"), list(combinations()))
def test_method_keeps_its_promises_on_networks_of_torchvision(build, name):
    pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, size = build()
        awake(model, size)
    count = 6 if build in SMALL else 3  # of three samples two seeds may draw the same two
    inputs = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs, torch.arange(count) % 3)
    purifier = quick(name, steps=1, batch_size=2, retain_weight=0.0, trace_samples=2)
    report = check_purifier(purifier, model.eval(), batch, TASK, again=build in SMALL)
    skipped = any("skipped" in text for text in report.notices)  # the trace of an untrained network may overflow
    assert name in CONTROLS or skipped or told(report) or report.hash_after != report.hash_before
