"""A mistyped word of any kind gets the word that was meant, as it has to be typed."""

from __future__ import annotations

import pytest

from unbackdoor_cli.wording import as_flag, as_key, as_typed

PURIFY = ["purify", "victim", "--out", "p.safetensors"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["purfy"], "'purify'"),
        (["list", "metods"], "'methods'"),
        ([*PURIFY, "--methd", "ft"], "--method"),
        ([*PURIFY, "--metod=ft"], "--method"),
        ([*PURIFY, "--num-clases", "3"], "--num-classes"),
        ([*PURIFY, "--stesp", "3"], "--steps"),
        ([*PURIFY, "--no-drop-doubtfull"], "--no-drop-doubtful"),
        ([*PURIFY, "--means", "0"], "--mean"),
        ([*PURIFY, "--fitt", "crop"], "--data-option fit="),
        ([*PURIFY, "--task", "toy", "--clases", "a"], "--classes"),
        ([*PURIFY, "--anway"], "--anyway"),
        ([*PURIFY, "--method", "nftt"], "'nft'"),
        ([*PURIFY, "--method", "nft", "--preset", "papper"], "'paper'"),
        ([*PURIFY, "--device", "cud"], "'cuda'"),
        ([*PURIFY, "--limit", "pixel=3"], "'pixels'"),
        (["evaluate", "victim", "--attack-fro", "v"], "--attack-from"),
        (["evaluate", "victim", "--task-option", "men=0"], "mean"),
        (["attack", "--task", "toy", "--attack", "cornr", "--out", "v"], "'corner'"),
        (["attack", "--task", "toy", "--data", "blob", "--model", "mlp", "--out", "v"], "'blobs'"),
        (["attack", "--task", "toy", "--attack-option", "strenght=1", "--out", "v"], "strength"),
        (["attack", "--task", "toy", "--data-option", "cont=1", "--out", "v"], "count"),
        (["attack", "--task", "ty", "--out", "v"], "'toy'"),
        (["attack", "--task", "toy", "--atack", "corner"], "--attack"),
        (["train", "--defence", "ab", "--out", "d.safetensors"], "'abl'"),
        (["train", "--defenc", "abl", "--out", "d.safetensors"], "--defence"),
        (["compare", "victim", "--method", "ft"], "--methods"),
        (["card", "fip2"], "'fip'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_the_word_that_was_meant_is_named(call, victim, words, meant):
    told = call(*words).error
    assert f"id you mean {meant}" in told, told


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--data-option", "clases=a,b"], "classes"),
        (["--data-option", "mean=0.1"], "--task-option mean="),
        (["--task-option", "size=3"], "--data-option size="),
        (["--model", "mpl"], "'mlp'"),
    ],
)
def test_options_of_samples_are_suggested_too(call, victim, samples, words, meant):
    given = words if "--model" in words else ["--model", "mlp", *words]
    told = call(
        "purify", victim / "model.safetensors", "--task", "toy", "--data", samples, *given, "--out", "p.pt"
    ).error
    assert f"id you mean {meant}" in told, told


TYPED = {
    "classes": as_flag, "order": as_key("--data-option"), "lr": as_flag, "drop_doubtful": as_flag, "anyway": as_flag,
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("use order='text'.", "use --data-option order=text."),
        ("such as classes=['cat', 'dog'].", "such as --classes cat,dog."),
        ("go on with anyway=True (--anyway).", "go on with --anyway."),
        ("(drop_doubtful=True leaves them out)", "(--drop-doubtful leaves them out)"),
        ("drop_doubtful=False", "--no-drop-doubtful"),
        ("lower lr=0.1.", "lower --lr 0.1."),
        ("--data-option order=text stays", "--data-option order=text stays"),
        ("foo.lr=3 and xlr=3 stay", "foo.lr=3 and xlr=3 stay"),
    ],
)
def test_options_in_messages_are_spelt_as_they_are_typed(said, typed):
    assert as_typed(said, TYPED) == typed
