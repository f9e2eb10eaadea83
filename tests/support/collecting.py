"""Workers of a collection that need no ComfyUI. Run as a script it collects with Ray, as `collect --ray` does.

python collecting.py FOLDER ROWS WORKERS   prints what became of the rows as JSON
"""

import json
import os
import sys
from pathlib import Path

from support.rollouts import make_part

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "ada.png"}, "_meta": {"title": "Photo"}},
    "2": {
        "class_type": "Sample",
        "inputs": {"seed": 1, "cfg": 2.5, "text": "Ada waves.", "fast": False, "method": "euler", "image": ["1", 0]},
        "_meta": {"title": "Sample v1.0"},
    },
    "3": {"class_type": "IDCrafterSaveRollouts", "inputs": {"folder": "kept", "takes": ["2", 0]}},
}
SCHEMAS = {
    "LoadImage": {
        "input": {"required": {"image": [["ada.png", "bo.png"], {"image_upload": True}]}},
        "output": ["IMAGE"],
    },
    "Sample": {
        "input": {
            "required": {
                "seed": ["INT", {"min": 0, "max": 99}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 10.0}],
                "text": ["STRING", {}],
                "fast": ["BOOLEAN", {}],
                "method": ["COMBO", {"options": ["euler", "heun"]}],
                "image": ["IMAGE", {}],
            },
            "optional": {"strength": ["FLOAT", {"min": 0.0, "max": 1.0}]},
        },
        "output": ["TAKES"],
    },
    "IDCrafterSaveRollouts": {
        "input": {"required": {"takes": ["TAKES", {}], "folder": ["STRING", {}]}},
        "output": [],
        "output_node": True,
    },
}  # fmt: skip


class Worker:
    """Makes the group of a row and a small file without sampling, and brings them over as the real worker does.

    A row whose cell `crash` is "before" or "between" ends the process the first time: before anything is there, or
    between its group and its note. `fail` makes its graph fail.
    """

    def __init__(self, settings, name):
        from idcrafter.collect.storage import open_storage

        self.name = name
        self.storage = open_storage(settings.out)
        self.scratch = Path(settings.scratch)
        self.output = self.scratch / name / "output"

    def start(self):
        self.output.mkdir(parents=True, exist_ok=True)

    def run(self, job):
        from idcrafter.collect import delivery, journal
        from idcrafter.collect.worker import RowFailed
        from idcrafter.rollouts.store import RolloutStore

        with (self.scratch / f"tries-{job.row}").open("a") as tries:
            tries.write(f"{self.name}\n")
        crash = job.cells.get("crash") if self._tries(job) == 1 else None
        if job.cells.get("fail"):
            raise RowFailed("Extract Faces (node 7): no face in photo 1 of Ada")
        if crash == "before":
            self.end()
        RolloutStore(self.output / "kept").save(make_part(prompt=f"row {job.row}"))
        saved = self.output / "video.mp4"
        saved.write_text(f"video of row {job.row}")
        done = delivery.deliver(self.output, ("kept",), [saved], self.storage, job.id)
        if crash == "between":
            self.end()
        done |= {"notes": ["Stored."], "seconds": 0.1}
        journal.finish(self.storage, job.id, {"row": job.row, "cells": dict(job.cells), "worker": self.name, **done})
        return done

    def end(self):
        os._exit(1)

    def _tries(self, job):
        return len((self.scratch / f"tries-{job.row}").read_text().split())


def collect_with_ray(folder: Path, count: int, workers: int) -> dict:
    from idcrafter.collect import ray_pool
    from idcrafter.collect.run import Collection
    from idcrafter.collect.worker import Job, Settings

    settings = Settings(folder, folder, str(folder / "out"), folder / "scratch", 60.0)
    crashes = {2: "before", 3: "between"}
    jobs = [Job(row, f"{row:032x}", {}, ("kept",), {"crash": crashes.get(row, "")}) for row in range(2, 2 + count)]
    with ray_pool.connected() as ray:
        outcome = Collection(jobs, ray_pool.seats(ray, settings, workers, Worker), 2).run()
    return {"results": outcome.results, "failed": outcome.failed, "lost": outcome.lost}


if __name__ == "__main__":
    answer = collect_with_ray(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(answer) + "\n")
