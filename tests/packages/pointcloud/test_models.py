"""Networks: shapes, what they do not depend on, and sizes as published."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.errors import BadOption, UnknownName
from unbackdoor_pointcloud import KIT, build
from unbackdoor_pointcloud.models.pointnet import TNet

NARROW = {"pointnet": 0.1, "pointnet2_ssg": 0.1, "pointnet2_msg": 0.1, "dgcnn": 0.1}


def made(name: str) -> torch.nn.Module:
    options = {"width": NARROW[name]} if name in NARROW else {}
    return build(name, 5, seed=1, **options).eval()


@pytest.mark.parametrize("name", sorted(KIT.models))
def test_model_gives_logits_of_each_cloud_alone(name: str, clouds: torch.Tensor) -> None:
    model = made(name)
    with torch.no_grad():
        together = model(clouds)
        assert together.shape == (6, 5)
        assert_close(together[2:3], model(clouds[2:3]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("name", ["pointnet", "pointnet_small", "dgcnn", "dgcnn_small"])
def test_order_of_the_points_does_not_matter(name: str, clouds: torch.Tensor) -> None:
    model = made(name).double()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert_close(model(clouds.double()), model(clouds[:, order].double()))


@pytest.mark.parametrize("name", sorted(KIT.models))
def test_every_weight_gets_a_gradient(name: str, clouds: torch.Tensor) -> None:
    model = made(name).train()
    for module in model.modules():
        if isinstance(module, TNet):  # the last layer begins at 0, so that nothing reaches those before it
            torch.nn.init.normal_(module.joint[-1].weight, std=0.01)
    model(clouds / 10).square().sum().backward()  # so dense that every ball holds more than its centre
    lost = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert lost == []


def test_transform_network_begins_as_the_identity(clouds: torch.Tensor) -> None:
    matrix = TNet(3, 0.1).eval()(clouds.transpose(1, 2))
    assert_close(matrix, torch.eye(3).expand(6, 3, 3))


def test_models_have_about_the_published_number_of_weights() -> None:
    """Millions, for 40 classes: PointNet 3.5, SSG 1.5, MSG 1.7, DGCNN 1.8 in the papers and their PyTorch versions."""
    counts = {name: sum(p.numel() for p in build(name, 40).parameters()) / 1e6 for name in NARROW}
    for name, published in (("pointnet", 3.5), ("pointnet2_ssg", 1.48), ("pointnet2_msg", 1.74), ("dgcnn", 1.8)):
        assert counts[name] == pytest.approx(published, rel=0.05), name


def test_model_is_the_same_from_the_same_seed_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    first, second, other = (build("pointnet2_small", 4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    weight = "levels.0.mlps.0.0.weight"
    assert torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_unknown_models_and_options_are_refused() -> None:
    with pytest.raises(UnknownName, match="pointnet2_ssg"):
        build("pointnet3")
    with pytest.raises(BadOption, match="colour"):
        build("dgcnn_small", colour=3)
