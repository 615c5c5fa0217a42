"""An objective, and the rows and the task that it needs."""

from __future__ import annotations

from finetune_api.condition import All, Eq, Has, In, Not, any_of
from finetune_api.contradictions.choices import OBJECTIVES
from finetune_api.contradictions.inputs import SOURCES, one_source
from finetune_api.rule import Rule

PREFERENCE_OBJECTIVES = ("objective.dpo", "objective.reward", "objective.orpo")
HEADED_TASKS = (
    "SequenceClassification",
    "Seq2SeqLM",
    "TokenClassification",
    "QuestionAnswering",
    "FeatureExtraction",
)

ROWS: tuple[Rule, ...] = (
    Rule(
        code="preference-data-needs-preference-objective",
        field="@.format",
        each=SOURCES,
        when=All(
            Eq("@.format", "Preference"),
            any_of(("objective.sft", "objective.pretrain", "objective.supervised")),
        ),
        message="preference pairs are for the objectives dpo, orpo, reward and kto",
        fix="choose one of these objectives, or another format",
        bad={"dataset": {"train": one_source(format="Preference")}, "objective": {"sft": {}}},
        good={"dataset": {"train": one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="preference-objective-needs-preference-data",
        field="@.format",
        each=SOURCES,
        when=All(any_of(PREFERENCE_OBJECTIVES), Has("@.format"), Not(Eq("@.format", "Preference"))),
        message="dpo, orpo and reward need preference pairs",
        fix="use format: Preference, or objective: {sft: {}}",
        bad={"dataset": {"train": one_source(format="Messages")}, "objective": {"dpo": {}}},
        good={"dataset": {"train": one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="kto-needs-feedback",
        field="@.format",
        each=SOURCES,
        when=All(
            Has("objective.kto"),
            Has("@.format"),
            Not(In("@.format", ("Unpaired", "Preference"))),
        ),
        message="kto needs answers that are marked as good or bad",
        fix="use format: Unpaired or Preference, or objective: {sft: {}}",
        bad={"dataset": {"train": one_source(format="Alpaca")}, "objective": {"kto": {}}},
        good={"dataset": {"train": one_source(format="Alpaca")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="unpaired-data-needs-kto",
        field="@.format",
        each=SOURCES,
        when=All(
            Eq("@.format", "Unpaired"),
            any_of(
                (
                    "objective.sft",
                    "objective.pretrain",
                    "objective.supervised",
                    *PREFERENCE_OBJECTIVES,
                )
            ),
        ),
        message="unpaired feedback is for the objective kto",
        fix="use objective: {kto: {}}, or another format",
        bad={"dataset": {"train": one_source(format="Unpaired")}, "objective": {"sft": {}}},
        good={"dataset": {"train": one_source(format="ShareGPT")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="pretrain-needs-text",
        field="@.format",
        each=SOURCES,
        when=All(
            Has("objective.pretrain"), Has("@.format"), Not(In("@.format", ("Text", "Tokens")))
        ),
        message="pretraining reads plain text or tokens",
        fix="use format: Text or Tokens, or objective: {sft: {}}",
        bad={"dataset": {"train": one_source(format="Messages")}, "objective": {"pretrain": {}}},
        good={"dataset": {"train": one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="labels-need-supervised",
        field="@.format",
        each=SOURCES,
        when=All(
            In("@.format", ("Labelled", "Spans")),
            any_of(path for path in OBJECTIVES if path != "objective.supervised"),
        ),
        message="labelled rows are for the objective supervised, with a task other than CausalLM",
        fix="set model.task and objective: {supervised: {}}, or use another format",
        bad={"dataset": {"train": one_source(format="Labelled")}, "objective": {"sft": {}}},
        good={"dataset": {"train": one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="supervised-needs-task",
        field="objective.supervised",
        when=All(Has("objective.supervised"), Eq("model.task", "CausalLM")),
        message="the objective supervised needs a task other than CausalLM",
        fix="set model.task, such as SequenceClassification, or use objective: {sft: {}}",
        bad={"model.task": "CausalLM", "objective": {"supervised": {}}},
        good={"model.task": "CausalLM", "objective": {"sft": {}}},
    ),
    Rule(
        code="task-needs-supervised",
        field="model.task",
        when=All(
            In("model.task", HEADED_TASKS),
            any_of(path for path in OBJECTIVES if path != "objective.supervised"),
        ),
        message="a task other than CausalLM is trained with the objective supervised",
        fix="use objective: {supervised: {}}, or task: CausalLM",
        bad={"model.task": "SequenceClassification", "objective": {"sft": {}}},
        good={"model.task": "CausalLM", "objective": {"sft": {}}},
    ),
)
