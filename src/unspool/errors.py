"""Everything that unspool raises on purpose.

UnspoolError                 exit code 1: some work failed
├── UsageError               exit code 2: wrong arguments, decidable before any work
├── VideoError               a video that cannot be read or written
├── MaskError                a mask that cannot be read, or does not fit its video
├── DataError                a data set's folder tree that is not as its layout says
├── WeightsError             weights that do not fit the architecture
│   └── WeightsUnavailable   weights that are neither on disk nor to be downloaded
├── OutputError              results that cannot be written or continued
└── ShapeError               a tensor of the wrong shape; shows required and actual

UnspoolWarning               the work goes on, but somebody should know

Every message names the file, the value and the remedy.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING
from warnings import WarningMessage

if TYPE_CHECKING:
    from av import FFmpegError


class UnspoolError(Exception):
    """Base of all errors; the message is written for the person at the keyboard."""

    exit_code = 1


class UsageError(UnspoolError):
    """Wrong use: arguments or settings that can be refused before any work starts."""

    exit_code = 2


class VideoError(UnspoolError):
    """A video that cannot be read or written."""


class MaskError(UnspoolError):
    """A mask that cannot be read, or does not fit its video."""


class DataError(UnspoolError):
    """A data set whose folders or files are not as its layout says."""


class WeightsError(UnspoolError):
    """Weights that do not fit the architecture; lists missing and unexpected keys."""


class WeightsUnavailable(WeightsError):
    """Weights that are neither on disk nor may be downloaded; says which file to put where."""


class OutputError(UnspoolError):
    """Results that cannot be written or continued."""

    @classmethod
    def of(cls, path: object, error: OSError | FFmpegError) -> OutputError:
        """What went wrong with writing `path`, and what to do about it."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again; what is written already is whole"
        elif error.errno == errno.EFBIG:
            remedy = (
                "files may not grow that large here; lift the limit (ulimit -f unlimited), or choose another "
                "file system with -o, and run the same command again"
            )
        else:
            remedy = "choose a place that you may write to with -o"
        return cls(f"{path}: cannot be written ({error.strerror or error}); {remedy}")


class ShapeError(UnspoolError, ValueError):
    """A tensor of the wrong shape; the message shows the required and the actual one."""


class UnspoolWarning(UserWarning):
    """Something was lost or guessed, and the work goes on."""


def counted(number: int, thing: str) -> str:
    """`1 frame`, `2 frames`: how many, for a message."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def told_by(caught: Iterable[WarningMessage]) -> list[str]:
    """What the `UnspoolWarning`s among caught warnings say, each once, in their order."""
    return list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UnspoolWarning)))
