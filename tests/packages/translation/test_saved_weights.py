"""What is saved is what Hugging Face's library reads, and what it saves opens."""

from __future__ import annotations

import pytest
import torch

import unbackdoor
from unbackdoor.errors import CheckpointMismatch

transformers = pytest.importorskip("transformers")

_SMALL = {"vocab_size": 20, "d_model": 8, "max_position_embeddings": 16, "pad_token_id": 1, "eos_token_id": 2,
          "decoder_start_token_id": 2, "forced_eos_token_id": None, "encoder_layers": 1, "decoder_layers": 1,
          "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8,
          "decoder_ffn_dim": 8}  # fmt: skip


def made(kind, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match kind:
            case "marian":
                return transformers.MarianMTModel(transformers.MarianConfig(**_SMALL)).eval()
            case "bart":
                return transformers.BartForConditionalGeneration(transformers.BartConfig(**_SMALL)).eval()
            case "t5":
                small = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
                return transformers.T5ForConditionalGeneration(transformers.T5Config(**small)).eval()
            case "bert":
                small = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
                return transformers.BertForMaskedLM(transformers.BertConfig(**small, intermediate_size=8)).eval()
            case "gpt2":
                small = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
                return transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)).eval()


def same(one, two):
    other = two.state_dict()
    return all(torch.equal(other[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize("kind", ["marian", "bart", "t5", "bert", "gpt2"])
def test_folder_of_save_pretrained_goes_in_and_comes_out(tmp_path, kind):
    given, target = made(kind, 0), made(kind, 1)
    given.save_pretrained(tmp_path / "given")
    unbackdoor.load(target, tmp_path / "given")
    assert same(given, target)
    folder = tmp_path / "saved"
    given.config.save_pretrained(folder)
    unbackdoor.save(target, folder / "model.safetensors")
    back, found = type(given).from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert same(given, back)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


def test_shards_of_save_pretrained_open(tmp_path):
    given, target = made("bart", 0), made("bart", 1)
    given.save_pretrained(tmp_path, max_shard_size="2KB")
    (notice,) = unbackdoor.load(target, tmp_path)
    assert "files" in notice
    assert same(given, target)


def test_weight_that_marian_does_save_may_not_be_missing(tmp_path):
    given = made("marian", 0)
    state = {n: v for n, v in given.state_dict().items() if "embed_positions" not in n and n != "lm_head.weight"}
    torch.save(state, tmp_path / "pytorch_model.bin")
    target = made("marian", 1)
    assert unbackdoor.load(target, tmp_path) == []
    assert same(given, target)
    del state["model.encoder.layers.0.fc1.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointMismatch, match=r"missing: model\.encoder\.layers\.0\.fc1\.bias"):
        unbackdoor.load(target, tmp_path)
