"""The contract between users, operator, trainer and command line, and nothing else.

Everything here is data: frozen models, names and tables. The package imports nothing of ours,
reads no clock and touches no file.
"""

SCHEMA_VERSION = 1
"""Version of every file and message of the contract; a reader refuses a higher one."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
