"""Whether the loaded video models compute what diffusers computes, and have every tensor of the released files.

Keys of the result: `checks`, a list of {`name`, `ok`} with `max_abs` (largest difference of an output, float32, limit
1e-4: diffusers' modules and its VACE pipeline on the same tiny weights, and stored numbers of the public code of
Phantom and RefAlign) or with `missing` and `unexpected` (tensors of a released checkpoint's table, compared with the
network built without memory); `failed`, how many are not ok.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch

from support import inprocess, parity, released


def run(folder: Path, families: tuple[str, ...]) -> dict:
    from support import published, vace_pipeline  # they import ComfyUI, which `main` has put on the path

    started = time.time()
    pack = inprocess.Pack()
    load = pack.submodule("model_loaders.video_dit").load_video_dit
    checks = []
    for family in families:
        checks += parity.family_checks(load, folder / family, family)
        print(f"{family}: {max(c['max_abs'] for c in checks if c['name'].startswith(family)):.1e}", flush=True)
    for source in (vace_pipeline, published):
        checks += source.checks(pack, folder)
    checks += released.checks()
    failed = sum(not check["ok"] for check in checks)
    return {"checks": checks, "failed": failed, "seconds": round(time.time() - started, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="one Wan and one CogVideoX model, and all tables")
    arguments = parser.parse_args()
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        with torch.inference_mode():
            result = run(Path(folder), ("vace", "cogvideox") if arguments.quick else parity.FAMILIES)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for check in result["checks"]:
        if not check["ok"]:
            print(json.dumps(check)[:500])
    print(f"{len(result['checks'])} checks, {result['failed']} failed, {result['seconds']} s")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
