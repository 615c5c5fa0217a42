"""The operator: resolves, plans and acts on FineTuneJobs."""
