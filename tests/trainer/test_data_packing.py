"""A packed batch is worth exactly its documents: losses, gradients, and the proof of both."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from finetune_trainer.data import packing_proof
from finetune_trainer.data.collate import Collator
from finetune_trainer.data.packing_proof import largest_difference, prove
from harness.stage_config import make_config
from harness.tiny_model import make_tiny_model

DOCUMENTS = [
    ([11, 12, 13, 14, 15, 16, 17], [(2, 4), (5, 7)]),
    ([21, 22, 23], [(1, 3)]),
    ([31, 32, 33, 34, 35], [(0, 5)]),
    ([41, 42, 43, 44], []),
    ([51, 52, 53, 54, 55, 56, 57, 58, 59], [(8, 9)]),
]


def item(numbers: list[int], sample_id: int = 0) -> dict:
    parts = [DOCUMENTS[i] for i in numbers]
    lengths = np.array([len(ids) for ids, _ in parts], dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    spans = [(a + s, b + s) for (_, spans), s in zip(parts, starts, strict=True) for a, b in spans]
    return {
        "input_ids": np.concatenate([np.array(ids, dtype=np.uint32) for ids, _ in parts]),
        "spans": np.array(spans, dtype=np.int32).reshape(-1, 2),
        "lengths": lengths,
        "sample_id": sample_id,
    }


def test_a_packed_batch_by_hand():
    batch = Collator(pad_token_id=14, packing=True)([item([1, 0], 7), item([2], 9)])
    assert "attention_mask" not in batch
    assert batch["input_ids"].tolist() == [
        [21, 22, 23, 11, 12, 13, 14, 15, 16, 17],
        [31, 32, 33, 34, 35, 14, 14, 14, 14, 14],
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 0, 1, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 0, 1, 2, 3, 4],
    ]
    # 14 is the pad token and a trained token; the first token of a document is never a target
    assert batch["labels"].tolist() == [
        [-100, 22, 23, -100, -100, 13, 14, -100, 16, 17],
        [-100, 32, 33, 34, 35, -100, -100, -100, -100, -100],
    ]
    assert batch["sample_ids"].tolist() == [7, 9]


def test_an_unpacked_batch_by_hand():
    batch = Collator(pad_token_id=None, packing=False)([item([1]), item([2])])
    assert "position_ids" not in batch
    assert batch["input_ids"].tolist() == [[21, 22, 23, 0, 0], [31, 32, 33, 34, 35]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 22, 23, -100, -100], [-100, 32, 33, 34, 35]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_and_gradients_are_the_sum_of_the_documents(folder, attention):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )

    def summed(batches: list[dict]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            inputs = {k: v for k, v in batch.items() if k not in {"labels", "sample_ids"}}
            logits = model(**inputs, use_cache=False).logits[:, :-1].reshape(-1, 400)
            loss = torch.nn.functional.cross_entropy(
                logits, batch["labels"][:, 1:].reshape(-1), ignore_index=-100, reduction="sum"
            )
            loss.backward()
            total += float(loss.detach())
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return total, torch.cat(gradients)

    assert model.config.vocab_size == 400
    alone = [Collator(0, packing=False)([item([i])]) for i in range(5)]
    together = [Collator(0, packing=True)([item([0, 1, 2]), item([3, 4])])]
    loss, gradient = summed(alone)
    packed_loss, packed_gradient = summed(together)
    assert packed_loss == pytest.approx(loss, abs=1e-5, rel=1e-6)
    assert (packed_gradient - gradient).abs().max() < 1e-5
    assert gradient.abs().max() > 1e-2  # there was something to compare

    # What must not be done: an all-ones mask silently joins the documents again.
    leaking = together[0] | {"attention_mask": torch.ones_like(together[0]["input_ids"])}
    assert abs(summed([leaking])[0] - loss) > 1e-3


def test_the_proof_holds_for_llama_and_lora(folder, tmp_path):
    (tmp_path / "volumes" / "models").mkdir(parents=True)
    (tmp_path / "volumes" / "models" / "tiny").symlink_to(folder)
    proof = prove(make_config(tmp_path, "prepare"))
    assert proof.holds
    assert proof.reason.startswith("packed and unpacked losses agree to ")


def test_a_comparison_that_could_not_see_a_leak_proves_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "volumes" / "models").mkdir(parents=True)
    (tmp_path / "volumes" / "models" / "tiny").symlink_to(folder)

    def deaden(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1e-3)

    monkeypatch.setattr(packing_proof, "enliven", deaden)
    proof = prove(make_config(tmp_path, "prepare"))
    assert not proof.holds
    assert proof.reason.endswith("too little to be seen")


def test_layers_that_mix_neighbours_without_attention_are_found(folder, tmp_path):
    from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

    path = tmp_path / "volumes" / "models" / "tiny"
    config = Lfm2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    Lfm2ForCausalLM(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    proof = prove(make_config(tmp_path, "prepare", {"method": {"lora": None, "full": {}}}))
    assert not proof.holds
    assert proof.reason.startswith("documents of one sequence see each other in this model")


def test_the_proof_fails_for_an_architecture_that_ignores_positions(folder, tmp_path):
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    path = tmp_path / "volumes" / "models" / "tiny"
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    proof = prove(make_config(tmp_path, "prepare", {"method": {"lora": None, "full": {}}}))
    assert not proof.holds
    assert proof.reason.startswith("documents of one sequence see each other in this model")


def test_the_proof_fails_for_learnt_positions_that_run_on(tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=32,
        )
    ).eval()  # fmt: skip
    assert largest_difference(model) > 1e-4


def test_flash_attention_is_not_proved_here(tmp_path):
    config = make_config(tmp_path, "prepare", {"model": {"attention": "flash_attention_2"}})
    proof = prove(config)
    assert not proof.holds
    assert proof.reason == (
        "flash_attention_2 cannot be run here; packing is proved with sdpa or eager"
    )


def test_a_job_that_wants_unproved_packing_is_refused(tmp_path, folder):
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    from finetune_trainer import prepare
    from finetune_trainer.errors import StageError
    from harness.stage_config import write_rows

    path = tmp_path / "volumes" / "models" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"hi {i}"},
                {"role": "assistant", "content": "yo"},
            ]
        }
        for i in range(120)
    ]
    write_rows(tmp_path / "volumes" / "datasets" / "train.jsonl", rows)
    with pytest.raises(StageError) as caught:
        prepare.run(make_config(tmp_path, "prepare", {"dataset": {"packing": True}}))
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.code) == (10, "packing-not-proved")
    assert problem.fix == "set dataset.packing: false"
    report = prepare.run(make_config(tmp_path, "prepare", {"training": {"epochs": 30}}))
    assert report.choices.packing is False
    (chosen,) = [c for c in report.choices.chosen if c.field == "dataset.packing"]
    assert chosen.value == "false"
    assert json.loads(json.dumps(chosen.reason))
