"""The errors users see. Every message says the value, the rule it broke and the remedy."""

from numina.stage import Stage


class NuminaError(Exception):
    """Base of all errors that numina raises on purpose."""


class InputError(NuminaError, ValueError):
    """Something the user gave is wrong; nothing was started, nothing was written."""


class ConfigError(InputError):
    """A job's configuration has an unknown key or a value out of range."""


class PromptError(InputError):
    """A prompt or its targets can't be used: empty prompt, noun not in the prompt, count out of range."""


class PromptSetError(InputError):
    """A prompt set can't be used: unreadable file, missing or mistyped column, duplicate id, bad row."""


class ModelError(InputError):
    """A model folder lacks a part, is of an unknown family, or doesn't fit the asked parallel degrees or shape."""


class OutputError(InputError):
    """An output folder belongs to another job, or its filesystem can't hold the commit protocol's promise."""


class JobError(NuminaError):
    """A job stopped after it began: its input turned out to be wrong or changed, or too many clips are broken."""


class LibraryError(NuminaError):
    """A library is of a version that wasn't tested, and lacks a name that is used."""


class StorageError(NuminaError):
    """Storage was lost or is full: the job stops, prompts are not blamed."""


class DamageError(NuminaError):
    """A file of an output or of a prompt set can't be read back: it is torn, or something else has changed it."""


class MachineError(NuminaError):
    """A machine lacks what a job needs: a driver, a GPU, a library's build, a way to other ranks, a place to write."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.problem, self.remedy)


class ClipError(NuminaError):
    """One clip failed: it has numbers that aren't finite or one flat colour in each frame, or it can't be written."""

    def __init__(self, message: str, stage: Stage) -> None:
        super().__init__(message)
        self.stage = stage  # in which it failed

    def __reduce__(self) -> tuple[type, tuple[str, Stage]]:
        return type(self), (str(self), self.stage)


class GangError(NuminaError):
    """A gang of ranks could not start or was lost while it worked."""
