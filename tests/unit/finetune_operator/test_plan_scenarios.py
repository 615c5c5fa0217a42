"""The table of scenarios through the pure planner."""

from __future__ import annotations

import pytest

from harness.ledger_checks import check_ledger
from harness.scenarios import SCENARIOS, Scenario
from harness.simulation import Simulation


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_scenario(scenario: Scenario) -> None:
    sim = Simulation(scenario)
    finish = sim.run()
    check_ledger(scenario, sim.ledger, sim.micro_batches)
    assert finish.succeeded == (scenario.expected.outcome == "Succeeded")
    assert len(set(sim.started)) == len(sim.started)
    if scenario.expected.attempt:
        tries = (sim.tries["prepare"], max(1, sim.tries["publish"]))
        assert tries == scenario.expected.tries
