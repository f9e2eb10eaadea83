"""Workers of this process, each with a ComfyUI of its own."""

from __future__ import annotations

import threading

from .worker import Job, Settings, Stopped, Worker


class LocalSeat:
    """See `run`. `device` is the number of its GPU, None for what ComfyUI takes by itself."""

    def __init__(self, settings: Settings, name: str, device: int | None = None):
        self.name = name
        self.running = False
        self._settings = settings
        self._device = device
        self._worker: Worker | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            if self._closed:
                raise Stopped("stopped")
            self._worker = Worker(self._settings, self.name, self._device)
        self._worker.start()
        self.running = True

    def schemas(self, classes: list[str]) -> dict:
        return self._worker.schemas(classes)

    def digests(self, names: list[str]) -> dict[str, str]:
        return self._worker.digests(names)

    def run(self, job: Job) -> dict:
        return self._worker.run(job)

    def stop(self) -> None:
        self.running = False
        if self._worker is not None:
            self._worker.stop()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.stop()
