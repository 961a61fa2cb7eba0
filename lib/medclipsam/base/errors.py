"""The one error family: every error a user can cause or mend derives from `MedClipSamError`.

The message is one sentence that names the thing, what was given and what is allowed; the command line prints it
and exits with 2, the server answers it as a 4xx.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rapidfuzz import fuzz, process

# Names that an error lists, characters of a value that it repeats, and per cent of similarity to suggest a name.
_MOST_LISTED = 30
_LONGEST_VALUE = 60
_SIMILAR = 65.0


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


class NegationError(InputError):
    """A text says that something is not there, which no model here can read."""


class SeparatorError(InputError):
    """A text names several targets, separated by what does not tell them apart."""


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
        super().__init__(f"Option {key!r} cannot be {shown(value)}; allowed: {allowed}.")
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


class LockedError(MedClipSamError):
    """Another program keeps a file locked that is to be written.

    Attributes
    ----------
    retry_after : int
        Seconds after which trying again may help.
    """

    retry_after = 10


class UnknownOptionError(OptionError):
    """An option has a name that nothing has.

    Parameters
    ----------
    key : str
        Name of the option as the user wrote it.
    value : object
        What was given.
    known : iterable of str
        Names of the options that there are.
    also : iterable of str
        Names that are taken too, but rarely wanted: they are suggested, and not listed.
    what : str
        What takes the options, as the end of a sentence: "the trainer network"; empty where it is plain.
    """

    def __init__(
        self, key: str, value: object, known: Iterable[str], *, also: Iterable[str] = (), what: str = ""
    ) -> None:
        names = sorted(set(known))
        self.key = key
        self.value = value
        self.suggestion = nearest(key, [*names, *also])
        self.allowed = ", ".join(names) or "none"
        if self.suggestion is not None:
            rest = f"did you mean {self.suggestion!r}?"
        elif len(names) > _MOST_LISTED:
            similar = process.extract(key, names, scorer=fuzz.ratio, limit=5)
            rest = f"of the {len(names)} options these are the most similar: {', '.join(name for name, *_ in similar)}."
        else:
            rest = f"allowed: {self.allowed}."
        given = shown(value, _LONGEST_VALUE)
        known_to = f" to {what}" if what else ""
        InputError.__init__(self, f"Option {key!r} (given as {given}) is not known{known_to}; {rest}")


class MissingOptionError(OptionError):
    """An option that has no default is not given.

    Parameters
    ----------
    key : str
        Name of the option.
    allowed : str
        What is allowed, as the end of a sentence.
    """

    def __init__(self, key: str, allowed: str) -> None:
        InputError.__init__(self, f"Option {key!r} is missing; allowed: {allowed}.")
        self.key, self.value, self.allowed = key, None, allowed


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that a misspelt word is most likely to mean; None where none is similar."""
    found = process.extractOne(word, list(names), scorer=fuzz.ratio, processor=str.lower, score_cutoff=_SIMILAR)
    return None if found is None else str(found[0])


class WeightsError(MedClipSamError):
    """Weights are missing, damaged or of another architecture than asked for."""


class TrainingError(MedClipSamError):
    """A network cannot be trained or used: out of memory, a folder of another training, a damaged network."""


class UnknownError(InputError):
    """A request names something that does not exist: an image, a series, a model, a strategy."""


class UpstreamError(MedClipSamError):
    """The DICOMweb server that holds the studies did not do what it was asked.

    Attributes
    ----------
    permanent : bool
        Whether asking again is of no use.
    """

    permanent = False

    def as_permanent(self) -> UpstreamError:
        """Return this error, as one for which asking again is of no use."""
        self.permanent = True
        return self

    def adding(self, sentence: str) -> UpstreamError:
        """Return this error with a further sentence."""
        self.args = (f"{self} {sentence}",)
        return self


class UpstreamTimeoutError(UpstreamError):
    """The DICOMweb server that holds the studies did not answer in time."""


class UpstreamBusyError(UpstreamError):
    """The DICOMweb server that holds the studies asks for the request to be repeated later.

    Parameters
    ----------
    sentence : str
        What it answered.
    retry_after : float
        Seconds after which it may be asked again, as it says.
    """

    def __init__(self, sentence: str, retry_after: float = 30.0) -> None:
        super().__init__(sentence)
        self.retry_after = max(1, math.ceil(retry_after))


class UpstreamContentError(UpstreamError):
    """The DICOMweb server that holds the studies sent something else than what was requested."""


class CancelledError(MedClipSamError):
    """The caller asked to stop; nothing was written."""


def shown(value: object, most: int = 200) -> str:
    """Return a value as it goes into a sentence: the beginning of it where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of so many digits"
    return text if len(text) <= most else f"{text[:most]}..."
