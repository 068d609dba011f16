"""Models by name: whose they are, seeds, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from unbackdoor.builders import build_model, none_like, seeded
from unbackdoor.errors import BadOption, UnknownName, UnsupportedModel


def line(num_classes, width=3):
    return nn.Linear(width, num_classes)


def library(name):
    if name != "line":
        raise none_like("library model", name, ["line", "curve"])
    return line


build = partial(build_model, makers={"line": line, "count": lambda num_classes: num_classes}, sources={"lib": library})


def test_own_and_library_models_are_built_with_their_options():
    for name in ("line", "lib:line"):
        assert build(name, num_classes=4, seed=0, options={"width": 5}).weight.shape == (4, 5)


def test_seed_decides_the_weights_and_leaves_the_global_generator():
    state = torch.get_rng_state()
    first, again, other = (build("line", num_classes=4, seed=seed, options={}) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    torch.manual_seed(1)
    assert torch.equal(first.weight, line(4).weight)


def test_seeded_starts_where_it_says_and_goes_on_afterwards():
    state = torch.get_rng_state()
    with seeded(7):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(inside, torch.rand(3))


def test_function_of_the_user_is_found_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "my_lines_of_a_core_test.py").write_text(
        "from torch import nn\ndef made(num_classes, width=2):\n    return nn.Linear(width, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build("my_lines_of_a_core_test:made", num_classes=3, seed=0, options={}).weight.shape == (3, 2)
    with pytest.raises(UnknownName, match="Did you mean 'made'"):
        build("my_lines_of_a_core_test:mad", num_classes=3, seed=0, options={})


def test_function_whose_module_lacks_a_package_says_which(tmp_path, monkeypatch):
    (tmp_path / "my_broken_lines_of_a_core_test.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match="imports 'a_package_that_nobody_has', which is not installed"):
        build("my_broken_lines_of_a_core_test:made", num_classes=3, seed=0, options={})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lien", "Also: lib:NAME, or my_module:function for your own. Did you mean 'line'"),
        ("lib:lines", "no lib model 'lib:lines'. Did you mean 'lib:line'"),
        ("curve", "Did you mean 'lib:curve'"),
        ("lob:curve", "no module 'lob' .* Did you mean 'lib:curve'"),
        ("no_such_module_anywhere:made", "no module 'no_such_module_anywhere'.* or use lib:NAME"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(name, words):
    with pytest.raises(UnknownName, match=words):
        build(name, num_classes=3, seed=0, options={})


def test_options_that_do_not_fit_and_what_is_no_module_are_refused():
    with pytest.raises(BadOption, match="widht=3"):
        build("line", num_classes=3, seed=0, options={"widht": 3})
    with pytest.raises(UnsupportedModel, match="returned a int"):
        build("count", num_classes=3, seed=0, options={})


def test_long_lists_are_cut():
    assert "There are 99, such as n0, n1" in str(none_like("thing", "xyz", [f"n{i}" for i in range(99)]))
