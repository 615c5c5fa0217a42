"""``spec.objective``: what is optimised. Exactly one of the fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.document import Document

Beta = Annotated[float, Field(gt=0, le=100)]


class Sft(Document):
    """Supervised fine-tuning on the tokens that ``dataset.lossOn`` selects."""


class Pretrain(Document):
    """Next-token prediction on every token."""


class Dpo(Document):
    """Direct preference optimisation (arXiv:2305.18290)."""

    beta: Beta = 0.1
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"


class Kto(Document):
    """Kahneman-Tversky optimisation on unpaired feedback (arXiv:2402.01306)."""

    beta: Beta = 0.1
    desirable_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    undesirable_weight: Annotated[float, Field(ge=0, le=100)] = 1.0


class Reward(Document):
    """A reward model on preference pairs (Bradley-Terry)."""


class Orpo(Document):
    """Odds-ratio preference optimisation (arXiv:2403.07691)."""

    beta: Beta = 0.1


class Supervised(Document):
    """The loss of the model's task head, for tasks other than CausalLM."""


class Objective(Document):
    """Exactly one of the fields."""

    sft: Sft | None = None
    pretrain: Pretrain | None = None
    dpo: Dpo | None = None
    kto: Kto | None = None
    reward: Reward | None = None
    orpo: Orpo | None = None
    supervised: Supervised | None = None

    @property
    def kind(self) -> str:
        """The name of the objective that was chosen, as it is spelled in the object."""
        return next(iter(self.to_json()))
