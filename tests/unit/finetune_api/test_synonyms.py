"""Names of other tools lead to fields that exist."""

import pytest

from finetune_api.crd import job_definition
from finetune_api.synonyms import SYNONYMS, Suggestion, suggest

SCHEMA = job_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
TRAINING = ("epochs", "globalBatchSize", "microBatchSize", "learningRate", "warmupRatio", "seed")


@pytest.mark.parametrize("name", SYNONYMS)
def test_a_synonym_names_a_field_of_the_object(name):
    field = SYNONYMS[name].field
    here = SCHEMA
    for part in field.split(".") if field else []:
        key, _, index = part.partition("[")
        here = here["properties"][key]
        here = here["items"] if index else here
    assert SYNONYMS[name].fix


def test_the_example_of_every_other_tool():
    assert suggest("per_device_train_batch_size", TRAINING) == Suggestion(
        "spec.training.microBatchSize",
        "spec.training.microBatchSize (per GPU), or leave it out and set globalBatchSize",
    )


@pytest.mark.parametrize(
    ("name", "known", "field"),
    [
        ("num_train_epochs", TRAINING, "spec.training.epochs"),
        ("lora_r", ("r", "alpha"), "spec.method.lora.r"),
        ("loraR", ("r", "alpha"), "spec.method.lora.r"),
        ("cutoff_len", ("maxLength",), "spec.dataset.maxLength"),
        ("gradient_accumulation_steps", TRAINING, "spec.training.globalBatchSize"),
        ("output_dir", ("model", "output"), "spec.output.uri"),
        ("model_name_or_path", ("uri",), "spec.model.uri"),
        # Another case of a name that may stand here wins over the table.
        ("learning_rate", TRAINING, "learningRate"),
        ("learning-rate", TRAINING, "learningRate"),
        ("LearningRate", TRAINING, "learningRate"),
        # The nearest name.
        ("learningRatte", TRAINING, "learningRate"),
        ("global_batch_sise", TRAINING, "globalBatchSize"),
        ("epoch", TRAINING, "epochs"),
        # Known, but nothing to write.
        ("do_train", TRAINING, None),
    ],
)
def test_suggestions(name, known, field):
    found = suggest(name, known)

    assert found is not None
    assert found.field == field


def test_nothing_near():
    assert suggest("zzz", TRAINING) is None
    assert suggest("", ()) is None


def test_there_are_enough_of_them():
    assert len(SYNONYMS) >= 60
