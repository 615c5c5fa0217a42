"""A status never has more than 16 kB, and says what matters to the last."""

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.document import canonical
from finetune_api.resolved import Chosen
from finetune_api.status import (
    Child,
    Condition,
    Failure,
    JobStatus,
    OutputStatus,
    ResolvedRef,
    Resume,
)
from finetune_operator.status_size import within
from harness.rendered import CHOICES

DIGEST = "sha256:" + "a" * 64
TIME = "2026-01-01T00:00:00Z"
KINDS = (
    *("Accepted", "Prepared", "Queued", "Running", "Recovering"),
    *("Suspended", "Succeeded", "Failed", "Finished"),
)
CHOSEN = CHOICES.model_copy(update={"model_path": "p" * 1024})


def full(letter: str = "x") -> JobStatus:
    """Every part as large as it may be."""
    return JobStatus(
        attempt=1000,
        child=Child(kind="PyTorchJob", name="n" * 253, uid="u" * 36),
        last_failure=Failure(
            class_="Crashed",
            code="c" * 64,
            message=letter * 1024,
            fix=letter * 1024,
            pod="p" * 253,
            time=TIME,
        ),
        resumes=tuple(
            Resume(
                attempt=number,
                cause="LostInfrastructure",
                stopped_at=900,
                from_step=880,
                digest=DIGEST,
                rejected=(letter * 256,) * 3,
                time=TIME,
            )
            for number in range(991, 1001)
        ),
        conditions=tuple(
            Condition(
                type=kind,
                status="True" if kind in ("Accepted", "Recovering") else "False",
                reason="WaitingForRoom",
                message=letter * 1024,
                last_transition_time=TIME,
            )
            for kind in KINDS
        ),
        resolved=ResolvedRef(config_map="m" * 253, digest=DIGEST),
        choices=CHOSEN,
        trainer_image="i" * 512,
        chosen=tuple(
            Chosen(field="f" * 256, value=letter * 256, reason=letter * 512) for _ in range(32)
        ),
        output=OutputStatus(uri="o" * 1024, digest=DIGEST, evaluation={"loss": 1.5}),
    )


def size(status: JobStatus) -> int:
    return len(canonical(status.to_json()))


def test_a_full_one_is_cut_and_says_what_matters():
    assert size(full()) > 50_000
    found = within(full())
    assert size(found) <= 16_000
    assert found.choices == CHOSEN, "attempts are made of them"
    assert (found.attempt, found.child, found.resolved) == (1000, full().child, full().resolved)
    assert [one.attempt for one in found.resumes] == list(range(991, 1001))
    assert found.resumes[-1].rejected == ("x" * 256,) * 3
    # Two conditions hold, and with the failure they are told in full.
    assert [len(one.message) for one in found.conditions] == [1024, *[128] * 3, 1024, *[128] * 4]
    assert found.conditions[1].message == "x" * 125 + "..."
    assert found.last_failure == full().last_failure
    assert found.chosen == ()


def test_letters_of_three_bytes_are_cut_further():
    found = within(full("語"))
    assert size(found) <= 16_000
    assert found.last_failure.message == "語" * 253 + "..."


def test_one_that_is_small_enough_is_the_same():
    chosen = full().chosen[:3]
    small = full().model_copy(update={"resumes": (), "conditions": (), "chosen": chosen})
    assert size(small) < 16_000
    assert within(small) is small


def test_reasons_go_before_anything_else():
    some = full().model_copy(update={"resumes": (), "conditions": full().conditions[:2]})
    found = within(some)
    assert {len(one.reason) for one in found.chosen} == {64} or found.chosen == ()
    assert found.last_failure == some.last_failure
    assert found.conditions[0] == some.conditions[0]


@settings(deadline=None)
@given(
    st.integers(0, 32),
    st.integers(0, 10),
    st.integers(0, 9),
    st.sampled_from(["x", "é", "語", '"']),
)
def test_cutting_what_was_cut_changes_nothing(chosen, resumes, conditions, letter):
    status = full(letter).model_copy(
        update={
            "chosen": full(letter).chosen[:chosen],
            "resumes": full(letter).resumes[:resumes],
            "conditions": full(letter).conditions[:conditions],
        }
    )
    once = within(status)
    assert size(once) <= 16_000
    assert within(once) == once
