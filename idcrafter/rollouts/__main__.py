"""Look after a folder of rollouts, without ComfyUI.

    python -m idcrafter.rollouts FOLDER report
    python -m idcrafter.rollouts FOLDER verify                      every tensor against its digest
    python -m idcrafter.rollouts FOLDER repair                      damaged files aside, a new index
    python -m idcrafter.rollouts FOLDER prune --gib 100             groups of the smallest spread first
    python -m idcrafter.rollouts FOLDER export pairs --out F.jsonl
    python -m idcrafter.rollouts FOLDER export fastvideo --out DIR [--fps 16] [--best 1]

The answer is JSON (report: text). Exit code 0: good; 1: something is damaged, or it failed; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import export, page
from .dataset import load
from .store import RolloutStore


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        answer, good = _run(options)
    except (ValueError, RuntimeError, OSError) as error:
        answer, good = {"error": str(error)}, False
    text = answer if isinstance(answer, str) else json.dumps(answer, indent=1, ensure_ascii=False)
    sys.stdout.write(text + "\n")
    return 0 if good else 1


def _run(options: argparse.Namespace) -> tuple[dict | str, bool]:
    store = RolloutStore(options.folder)
    if not store.groups.is_dir():
        raise FileNotFoundError(f"There are no rollouts in '{options.folder}'.")
    if options.command == "report":
        rollouts = load(options.folder)
        return page.report(rollouts), not rollouts.damages
    if options.command in ("verify", "repair"):
        damages = getattr(store, options.command)()
        found = [{"file": damage.file, "reason": damage.reason} for damage in damages]
        good = not found or options.command == "repair"
        return {"groups": len(store.scan().entries), "bytes": store.size(), "damages": found}, good
    if options.command == "prune":
        deleted = store.prune(int(options.gib * 2**30))
        return {"deleted": [entry.path.name for entry in deleted], "bytes": store.size()}, True
    rollouts = load(options.folder)
    if options.format == "pairs":
        count = export.export_preference_pairs(rollouts, options.out)
    else:
        count = export.export_fastvideo(rollouts, options.out, options.fps, options.best)
    skipped = [{"what": each.what, "reason": each.reason} for each in rollouts.skipped]
    return {"exported": count, "to": str(options.out), "left_out": skipped}, True


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m idcrafter.rollouts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("report", "verify", "repair"):
        commands.add_parser(name)
    commands.add_parser("prune").add_argument("--gib", type=float, required=True, help="what may remain")
    part = commands.add_parser("export", help="Flow-Factory needs a VAE: use Load Rollouts")
    part.add_argument("format", choices=("pairs", "fastvideo"))
    part.add_argument("--out", type=Path, required=True)
    part.add_argument("--fps", type=float, default=16.0)
    part.add_argument("--best", type=int, default=1, help="takes of each group (default: 1)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
