"""The command line `finetune`, also `kubectl finetune`."""
