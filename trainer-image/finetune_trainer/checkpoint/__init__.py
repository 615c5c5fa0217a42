"""Claims, checkpoints, and exact resume.

The trainer uses these, in this order:

``gang.Gang(rank, world_size, group)``
    The ranks and the gloo group over which they exchange small objects.
``restore.start(config, gang, pod_uid=...) -> Start``
    Collective. Chooses and verifies the checkpoint, takes the claim. ``Start.folder`` goes to
    ``Trainer.train(resume_from_checkpoint=...)``; ``Start.claim``, ``Start.resume`` and
    ``Start.rejected`` go into the reports. ``restore.method_state(model, config, folder)`` before
    the first step of a resumed run.
``trained.network(config, folder)``
    The model with the trained weights, or one that refuses to be given less than all of them.
``save.Checkpoints(config, start, gang)``
    One a rank, for the time of training: ``mark()`` first thing at the end of each optimizer step
    (and once before the first), ``save(trainer, reason, evaluation)`` from ``_save_checkpoint``,
    ``save_best(trainer, evaluation)``, ``newest``, ``seconds``, ``close()``.
``rng.load(folder, rank)`` and ``rng.preserved()``
    The first is all of the trainer's ``_load_rng_state``; the second goes around evaluation, so
    that a step that was evaluated draws the same numbers as one that was not.
``callbacks.cadence.Cadence``
    When rank 0 wants a save.
``verify.places(layout)`` and ``verify.verified(folder, job_uid)``
    For publishing: the candidates along the lineage, and the proof of one.

All that must be mended by somebody is raised as ``StageError`` on every rank alike.
"""
