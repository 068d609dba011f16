"""Every method and task that the registry knows; a new one adds its tests by being there."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from unbackdoor.registry import kit, method_names, task_names
from unbackdoor.testing import tiny_models

torch.set_num_threads(1)

NAMES = {
    "method_name": method_names,
    "tiny_name": lambda: list(tiny_models()),
    "task_name": task_names,
    "attack_name": lambda: [f"{task}/{attack}" for task in task_names() for attack in sorted(kit(task).attacks)],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, names in NAMES.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, names())


def pytest_report_header() -> str:
    image = "installed" if find_spec("unbackdoor_image") else "not installed"
    return f"contracts: methods {', '.join(method_names())}; tasks {', '.join(task_names()) or 'none'} (image {image})"
