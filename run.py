#!/usr/bin/env python3
"""Set up, serve, demonstrate, test and measure ComfyUI-IDCrafter. Standard library only; Linux and Windows.

  python run.py demo                  render the quickstart video from two photos, score four takes, keep the best
  python run.py serve                 start ComfyUI with the pack and print its address
  python run.py test [ARGS]           ruff, then pytest with ARGS
  python run.py bench NAME --json F   measure; every number in the README comes from one of these
  python run.py setup                 only prepare the environment that the others prepare when they need it

The environment (a virtual environment with locked packages, and ComfyUI) is kept in the user's cache folder, so that
only the first command waits for it. With --comfyui PATH a ComfyUI that is already there is used instead; nothing is
written into it.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit("run.py needs Python 3.10, 3.11 or 3.12; this is {} ({}).".format(sys.version.split()[0], sys.executable))

import argparse
import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from tools.cache import ROOT, cache_folder
from tools.console import Failure, Progress
from tools.environment import Environment, prepare

BENCHMARKS = ROOT / "benchmarks"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 good, 1 failed, 2 wrong usage, 130 interrupted."""
    options, extra = parse(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a log line may hold what the console's code page lacks
    # End the server as Ctrl-C does; started in the background by a shell, SIGINT itself would be ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    command = {"setup": setup, "serve": serve, "demo": demo, "test": test, "bench": bench}[options.command]
    try:
        return command(prepare(options.comfyui, options.fresh), options, extra)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--comfyui", metavar="PATH", help="use this ComfyUI (0.30 or newer) and its own python")
    common.add_argument("--fresh", action="store_true", help="set the cached environment up anew")

    parser = argparse.ArgumentParser(
        "run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[common]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, text):
        return commands.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)

    add("setup", "prepare the environment; does nothing when it is ready")
    part = add("serve", "start ComfyUI with the pack until Ctrl-C; further arguments go to ComfyUI")
    part.add_argument("--port", type=int, default=8188, help="0 picks a free one (default: 8188)")
    part = add("demo", "render the quickstart video and its report")
    part.add_argument("--out", type=Path, default=Path("idcrafter-demo"), metavar="DIR", help="default: %(default)s")
    add("test", "run ruff, then pytest with all further arguments")
    part = add("bench", "run one benchmark")
    part.add_argument("name", choices=sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py")))
    part.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures are written")
    part.add_argument("--quick", action="store_true", help="the same figures from a smaller sample")

    # Defaults come from here and not from the two options: those stand before or after the command, and the second
    # parser would undo what the first has read.
    options, extra = parser.parse_known_args(arguments, argparse.Namespace(comfyui=None, fresh=False))
    if extra and options.command not in ("test", "serve"):
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    if options.comfyui and options.fresh:
        parser.error("--fresh rebuilds the cached environment, which --comfyui does not use")
    return options, [argument for argument in extra if argument != "--"]


def setup(environment: Environment, _options, _extra) -> int:
    print(f"python   {environment.python}\nComfyUI  {environment.comfyui}")
    for folder in cache_folder().glob("env-*"):
        if folder not in environment.python.parents:
            print(f"unused   {folder}: of another version or python; it can be deleted")
    return 0


def serve(environment: Environment, options, extra) -> int:
    from tools.demo import copy_photos
    from tools.server import Server

    server = Server(
        environment,
        cache_folder() / "serve",
        port=options.port,
        only_pack=False,
        extra=("--preview-method", "auto", *extra),
    )
    progress = Progress("starting ComfyUI")
    try:
        server.start(on_wait=progress.update)
        progress.done()
        copy_photos(server.base / "input")
        print(f"ComfyUI with IDCrafter: {server.url}\nfiles: {server.base}\nlog: {server.log}", flush=True)
        print("Ctrl-C stops it.", flush=True)
        wait(server.process)
        raise Failure(f"ComfyUI ended by itself (exit {server.process.returncode}).\n{server.explain()}")
    finally:
        server.stop()


def demo(environment: Environment, options, _extra) -> int:
    from tools.demo import RESULTS, run_demo, table

    start = time.monotonic()
    report = run_demo(environment, options.out)
    print(f"\n{table(report)}\n")
    for name in RESULTS:
        print(options.out / name)
    print(f"done in {time.monotonic() - start:.0f} s")
    return 0


def test(environment: Environment, _options, extra) -> int:
    code = run_in(environment, "-m", "ruff", "check", str(ROOT))
    # Whole files to each process, because fixtures of a module (models, servers) are dear. Other environments need not
    # have the plugin.
    shares = ("-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile") if environment.pinned else ()
    # pytest last: its closing line is the summary that people and machines read
    return run_in(environment, "-m", "pytest", *shares, *extra) or code


def bench(environment: Environment, options, _extra) -> int:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    arguments = [str(BENCHMARKS / f"{options.name}.py"), "--json", str(options.json.absolute())]
    code = run_in(environment, *arguments, *(["--quick"] if options.quick else []))
    if code == 0:
        print(json.dumps(json.loads(options.json.read_text("utf-8")), indent=1)[:2000])
    return code


def run_in(environment: Environment, *arguments: str) -> int:
    """Run the environment's python at the root of the clone; 0 or 1."""
    sys.stdout.flush()
    process = subprocess.Popen([environment.python, *arguments], cwd=ROOT, env=environment.variables())
    try:
        return 1 if wait(process) else 0
    except KeyboardInterrupt:
        wait(process)  # it got the same Ctrl-C and ends its own servers
        raise


def wait(process: subprocess.Popen) -> int:
    """The exit code. In steps, because on Windows Ctrl-C cannot end a wait without a limit."""
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
