"""What a scenario promises, checked against the ledger that an executor left."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.status import Ledger
from harness.scenarios import Scenario


def check_ledger(scenario: Scenario, ledger: Ledger, micro_batches: Sequence[int]) -> None:
    """Compare with the literals of the table."""
    want = scenario.expected
    assert ledger.outcome == want.outcome
    assert ledger.attempt == want.attempt
    assert ledger.failures == want.failures
    assert ledger.preemptions == want.preemptions
    assert tuple(entry.cause for entry in ledger.resumes) == want.causes
    assert tuple(entry.attempt for entry in ledger.resumes) == tuple(range(2, 2 + len(want.causes)))
    assert tuple(entry.from_step for entry in ledger.resumes) == want.from_steps
    assert tuple(entry.lost_steps for entry in ledger.resumes) == want.lost_steps
    assert tuple(micro_batches) == want.micro_batches
    failure = ledger.last_failure
    if want.failure is None:
        assert failure is None
        return
    assert failure is not None
    assert failure.class_ == want.failure
    assert failure.exit_code == want.exit_code
    assert failure.code == want.code
    assert want.fix in failure.fix
