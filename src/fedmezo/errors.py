"""What can go wrong, by who has to act. The command line prints the message alone and exits with `exit_code`.

A message says what was given, what is allowed and where it stands, so that its reader needs no traceback.
"""

INTERRUPTED = 130
"""Exit code of a command that was asked to stop and can be gone on with, which is no error: 128 and SIGINT's number."""


class FedMeZOError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 2


class ConfigError(FedMeZOError, ValueError):
    """A configuration file or an override is wrong."""


class DataError(FedMeZOError, ValueError):
    """A data set is missing, damaged, or cannot be divided as asked."""


class ModelError(FedMeZOError, ValueError):
    """A model or adapter cannot be loaded or built as asked."""


class RunError(FedMeZOError, RuntimeError):
    """A run directory is missing, damaged, in use, or does not fit what was asked of it."""


class StorageError(FedMeZOError):
    """A file could not be read or written while a run was at work: a full disk, a folder that became read-only."""

    exit_code = 1


class TrainingError(FedMeZOError, RuntimeError):
    """Training itself failed: every loss non-finite, too few usable reports."""

    exit_code = 1


class CheckError(FedMeZOError, RuntimeError):
    """What a run has saved is not what it computed."""

    exit_code = 1
