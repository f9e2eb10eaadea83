"""Rows to workers: each row once, those of lost workers again, until none is left or somebody stops it.

A seat is a place for a worker: `start()`, `run(job) -> dict`, `stop()`, after which it may start again, and `close()`,
which also ends what another thread is doing there. `local.LocalSeat` has its worker in this process, `ray_pool.RaySeat`
anywhere in a cluster.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from .worker import Job, RowFailed, Stopped, WorkerLost

log = logging.getLogger("idcrafter")


@dataclass
class Outcome:
    """What became of the jobs: results by row, reasons of failure by row, and how often a worker was lost."""

    results: dict[int, dict] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    lost: int = 0


class Collection:
    """Run jobs on seats, one thread a seat.

    retries  how often a row may lose its worker and still be tried again
    """

    def __init__(self, jobs: Sequence[Job], seats: Sequence, retries: int):
        self.outcome = Outcome()
        self._seats = seats
        self._retries = retries
        self._waiting = deque(jobs)
        self._total = len(jobs)
        self._losses: dict[str, int] = {}
        self._busy = 0
        self._stopping = False
        self._changed = threading.Condition()

    def run(self) -> Outcome:
        """Until every job has an outcome. Seats that run already go on, and all are stopped in the end.

        Raises RuntimeError when no seat can be started any more, and what `deliver` raises when the storage fails.
        KeyboardInterrupt passes after the workers were stopped; what had finished by then is in `outcome`.
        """
        with ThreadPoolExecutor(len(self._seats)) as pool:
            threads = [pool.submit(self._serve, seat) for seat in self._seats]
            try:
                # In steps, because on Windows Ctrl-C cannot end a wait without a limit.
                while not self._complete():
                    done, others = wait(threads, 0.5, FIRST_EXCEPTION)
                    if not others or any(thread.exception() for thread in done):
                        break
            finally:
                self._stop()
        errors = [error for thread in threads if (error := thread.exception())]
        if errors:
            raise errors[0]
        if self._waiting:
            raise RuntimeError(f"No worker is left for {len(self._waiting)} rows; what ended them stands above.")
        return self.outcome

    def _serve(self, seat) -> None:
        try:
            while self._open():
                # First a worker, then a row: where there is no room for another worker, the others do all rows.
                if not seat.running and not self._start(seat):
                    return
                job = self._take()
                if job is None:
                    return
                self._run(seat, job)
        except Stopped:
            return

    def _start(self, seat) -> bool:
        log.info("%s: starting ComfyUI", seat.name)
        for _ in range(self._retries + 1):
            try:
                seat.start()
                return True
            except Stopped:
                raise
            except WorkerLost as error:
                seat.stop()
                log.error("%s was lost while it started: %s", seat.name, error)
            except RuntimeError as error:
                log.error("%s cannot be used: %s", seat.name, error)
                break
        return False

    def _run(self, seat, job: Job) -> None:
        back = True
        try:
            log.info("row %d begins on %s", job.row, seat.name)
            self._finished(job, seat, seat.run(job))
            back = False
        except RowFailed as error:
            self._failed(job, str(error))
            back = False
        except WorkerLost as error:
            seat.stop()
            back = self._lost(job, str(error))
        finally:
            self._release(job if back else None)

    def _open(self) -> bool:
        """Whether a row may still need a worker."""
        with self._changed:
            return not self._stopping and bool(self._waiting or self._busy)

    def _complete(self) -> bool:
        with self._changed:
            return len(self.outcome.results) + len(self.outcome.failed) == self._total

    def _take(self) -> Job | None:
        """The next job, after waiting while one of another seat may still come back; None when there is none left."""
        with self._changed:
            while not self._waiting and self._busy and not self._stopping:
                self._changed.wait(0.5)
            if not self._waiting or self._stopping:
                return None
            self._busy += 1
            return self._waiting.popleft()

    def _release(self, back: Job | None) -> None:
        with self._changed:
            self._busy -= 1
            if back is not None:
                self._waiting.appendleft(back)  # its worker may have left finished takes
            self._changed.notify_all()

    def _finished(self, job: Job, seat, result: dict) -> None:
        with self._changed:
            self.outcome.results[job.row] = result
            number = len(self.outcome.results) + len(self.outcome.failed)
        log.info(
            "row %d is finished after %.1f s on %s (%d of %d): %d groups, %d files%s",
            job.row,
            result["seconds"],
            seat.name,
            number,
            self._total,
            len(result["groups"]),
            len(result["files"]),
            "".join(f"; {note.splitlines()[0]}" for note in result["notes"] if note),
        )

    def _failed(self, job: Job, reason: str) -> None:
        with self._changed:
            self.outcome.failed[job.row] = reason
        log.error("row %d failed: %s", job.row, reason)

    def _lost(self, job: Job, reason: str) -> bool:
        """Whether the job is tried again."""
        with self._changed:
            self.outcome.lost += 1
            losses = self._losses[job.id] = self._losses.get(job.id, 0) + 1
        log.error("row %d lost its worker: %s", job.row, reason)
        if losses <= self._retries:
            return True
        self._failed(job, f"it has lost {losses} workers, the last one because: {reason}")
        return False

    def _stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for seat in self._seats:
            seat.close()
