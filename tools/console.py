"""Messages for a person at a terminal, and one line of progress that also reads well in a log file."""

import re
import sys
import time


class Failure(Exception):
    """Something a user can act on; run.py prints it without a traceback and exits with 1."""


class Progress:
    """A status line. On a terminal it is rewritten in place; elsewhere it is printed every `every` seconds."""

    def __init__(self, title: str, every: float = 15.0):
        self.title = title
        self.every = every
        self.live = sys.stdout.isatty()
        self.start = time.monotonic()
        self.printed = -every

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def update(self, detail: str = "") -> None:
        line = f"{self.title} {self.seconds:4.0f} s  {detail}"[:110]
        if self.live:
            print(f"\r{line:<110}", end="", flush=True)
        elif self.seconds - self.printed >= self.every:
            self.printed = self.seconds
            print(line.rstrip(), flush=True)

    def done(self, detail: str = "done") -> None:
        line = f"{self.title} {self.seconds:4.0f} s  {detail}"
        print(f"\r{line:<110}".rstrip() if self.live else line, flush=True)


def last_line(path, start: str = r"\S") -> str:
    """The last line of a growing log that starts with the pattern, without indentation and colours ('' if none)."""
    lines = (re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in reversed(tail(path).splitlines()))
    return next((line for line in lines if re.match(start, line)), "")


def tail(path, size: int = 4000) -> str:
    """The last `size` bytes of a text file; carriage returns (progress bars) count as line ends."""
    try:
        with open(path, "rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - size))
            return stream.read().decode("utf-8", "replace").replace("\r", "\n")
    except FileNotFoundError:
        return ""
