"""The API server is away for two minutes; the tests before this one go on meanwhile."""


def test_what_happened_in_two_minutes_without_the_api_server_is_counted_once(outage):
    """An end, a failure, a pod that went unseen, a suspend that came and went, and a new job."""
    seen = outage.finish()
    names = ("attempt", "failures", "preemptions")
    counted = {
        name: (status["outcome"], *(status[one] for one in names))
        for name, status in seen.statuses.items()
    }
    causes = {
        name: [(one["cause"], one["fromStep"]) for one in status["resumes"]]
        for name, status in seen.statuses.items()
    }

    assert seen.away >= 120
    assert seen.written == []
    # Another process could not reach it either: it is not ready, and there is no need to start anew.
    assert seen.health == (200, 500)
    assert counted == {
        "ends": ("Succeeded", 1, 0, 0),
        "fails": ("Succeeded", 2, 1, 0),
        "fades": ("Succeeded", 2, 0, 1),
        "halts": ("Succeeded", 1, 0, 0),
        "comes": ("Succeeded", 1, 0, 0),
    }
    assert causes["fails"] == [("CommunicationLost", 40)]
    # The watch goes on from where it was cut off and tells why the pod went, unless the job is looked
    # at before it is connected again: then all that is known is that the pod is gone.
    assert causes["fades"] in ([("LostInfrastructure", 30)], [("Preempted", 30)])
    assert sorted(seen.made) == sorted(
        f"{child}-0-abcde"
        for child in (
            *("ends-prepare", "ends-1", "ends-publish"),
            *("fails-prepare", "fails-1", "fails-2", "fails-publish"),
            *("fades-prepare", "fades-1", "fades-2", "fades-publish"),
            *("halts-prepare", "halts-1", "halts-publish"),
            *("comes-prepare", "comes-1", "comes-publish"),
        )
    )
    assert seen.most_alive == dict.fromkeys(seen.statuses, 1)
    assert seen.back < 120
