"""Workers as actors of a Ray cluster, each with a GPU of its own where the cluster has any.

A lost actor (its process, its host) costs the row that it ran one more try: the seat asks Ray for a new one, on
whatever host has room. The checkout and ComfyUI lie at the same paths on every host, photos and results where all of
them can reach them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from .worker import ROOT, Job, Settings, Stopped, Worker, WorkerLost


@contextlib.contextmanager
def connected() -> Iterator:
    """The ray module, connected to the cluster of RAY_ADDRESS, or to one that is started on this host and ends with it.

    RuntimeError where Ray is not installed or does not start.
    """
    try:
        import ray
    except ImportError as error:
        raise RuntimeError(
            "--ray needs the package ray; install it by `pip install ray` into ComfyUI's Python, on every host."
        ) from error
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    options = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    # What Ray has to say of dead workers it prints; standard output is for the caller's answer.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, **options)
        except Exception as error:  # Ray raises that very class where its parts do not come up in time
            raise RuntimeError(
                f"Ray cannot be reached ({error}); check RAY_ADDRESS, or start it by `ray start`."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def seats(ray, settings: Settings, workers: int | None, kind: type = Worker) -> list[RaySeat]:
    """As many as were asked for, else one a GPU of the cluster, else one. `kind` is the class of the actors."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    return [RaySeat(ray, settings, f"ray-{number}", needs, kind) for number in range(workers or gpus or 1)]


class RaySeat:
    """See `run`.

    needs  what Ray reserves for it, as {"num_gpus": 1}
    """

    def __init__(self, ray, settings: Settings, name: str, needs: dict, kind: type = Worker):
        self.name = name
        self.running = False
        self._ray = ray
        self._settings = settings
        self._make = ray.remote(kind).options(max_restarts=0, **needs)
        self._actor = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            if self._closed.is_set():
                raise Stopped("stopped")
            self._actor = self._make.remote(self._settings, self.name)
        try:
            self._result(self._actor.start.remote())
        except BaseException:
            self.stop()
            raise
        self.running = True

    def schemas(self, classes: list[str]) -> dict:
        return self._result(self._actor.schemas.remote(classes))

    def digests(self, names: list[str]) -> dict[str, str]:
        return self._result(self._actor.digests.remote(names))

    def run(self, job: Job) -> dict:
        return self._result(self._actor.run.remote(job))

    def stop(self) -> None:
        """End the actor; its ComfyUI ends with it."""
        self.running = False
        actor, self._actor = self._actor, None
        if actor is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        with self._lock:
            self._closed.set()
        self.stop()

    def _result(self, reference):
        """What the actor answers or raises. WorkerLost when it has died."""
        errors = self._ray.exceptions
        try:
            while not self._ray.wait([reference], timeout=0.5)[0]:
                if self._closed.is_set():
                    raise Stopped("stopped")
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            if self._closed.is_set():
                raise Stopped("stopped") from error
            raise WorkerLost(f"Ray has lost {self.name} ({str(error).splitlines()[0]})") from error
