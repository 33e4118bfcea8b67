"""Read a file under limits of time and memory, and say what was wrong with how that ended."""

import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

CPU_LIMIT_S = 8.0  # of processor time: other work on the machine does not count
MEMORY_LIMIT = 2 << 30  # bytes of address space beyond what the process has already
LONGEST_MESSAGE = 4000


class TooSlowError(BaseException):
    """The reader took more processor time than it may; no ``except Exception`` hides it."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader of files that may come from anywhere."""

    name: str
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    """The documented errors; a subclass is not one of them."""

    words: Callable[[Path], tuple[str, ...]]
    """What a message may name: one of them has to be in it."""


def fault_of(reader: Reader, path: Path) -> str | None:
    """Read a file; returns what is wrong with how that ended, None where nothing is."""
    try:
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    except TooSlowError:
        return f"more than {CPU_LIMIT_S} s of processor time"
    except Exception as error:
        if type(error) not in reader.refusals:
            return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"[:3000]
        message = str(error)
        if not any(word in message for word in reader.words(path)):
            return f"a message that names neither key nor file: {message[:300]}"
        if "\n" in message or len(message) > LONGEST_MESSAGE:
            return f"a message of more than one line, or too long: {message[:300]}"
    return None


@contextmanager
def _limits() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    before = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)
