"""What runs in the pods of a FineTuneJob: prepare, train, publish, generate."""
