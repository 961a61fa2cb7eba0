"""The one error family: every error a user can cause or mend derives from `MedClipSamError`.

The message is one sentence that names the thing, what was given and what is allowed; the command line prints it
and exits with 2, the server answers it as a 4xx.
"""


class MedClipSamError(Exception):
    """Base of all errors of this package; `str(error)` is a sentence fit for the user."""


class InputError(MedClipSamError):
    """What the user gave cannot be used: a text, an image, a file, a range."""


class ImageError(InputError):
    """An image file cannot be read, or holds something that is not an image this package handles."""


class TooLargeError(InputError):
    """A request or an archive holds more bytes than is allowed."""


class TargetError(InputError):
    """A target or targets file is unknown or malformed."""


class OptionError(InputError):
    """An option is unknown, of the wrong type or out of range.

    Parameters
    ----------
    key : str
        Name of the option as the user wrote it.
    value : object
        What was given.
    allowed : str
        What is allowed, as the end of a sentence: "one of kmeans, threshold, crf".
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"Option {key!r} cannot be {_shown(value)}; allowed: {allowed}.")
        self.key = key
        self.value = value
        self.allowed = allowed


class StorageError(MedClipSamError):
    """A file cannot be written: the disk is full, or the folder is read-only or out of reach.

    Parameters
    ----------
    sentence : str
        What cannot be written.
    full : bool
        Whether there is no room; else nothing may be written, or the disk fails.
    """

    def __init__(self, sentence: str, *, full: bool) -> None:
        super().__init__(sentence)
        self.full = full


class WeightsError(MedClipSamError):
    """Weights are missing, damaged or of another architecture than asked for."""


class TrainingError(MedClipSamError):
    """A network cannot be trained or used: out of memory, a folder of another training, a damaged network."""


class CancelledError(MedClipSamError):
    """The caller asked to stop; nothing was written."""


def _shown(value: object) -> str:
    """Return a value as it goes into a sentence: the beginning of it where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of so many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."
