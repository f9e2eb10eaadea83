"""IDCrafterLoadJudge, and the judge as a reward: whole graphs, validated and run by ComfyUI's own executor."""

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch

from idcrafter.sampling.takes import Take, Takes
from support import tiny_judge
from support.clips import painted_cast, painted_clip
from support.inprocess import wait_for

CAST = painted_cast(similarities=((1.0, 0.8), (0.9,)))
CLIPS = [painted_clip([[(0, value, 0), (1, 0.6, 2)]] * 6) for value in (0.5, 0.8)]


class Vae:
    """Decodes the latent of take k to clip k."""

    def decode(self, samples):
        return CLIPS[int(samples[0, 0, 0, 0, 0])].clone().unsqueeze(0)


class Shot:
    """A node that stands for the sampling: two takes, their VAE, the cast, and the second take's frames."""

    CATEGORY, FUNCTION = "tests", "make"
    RETURN_TYPES = ("IDCRAFTER_TAKES", "VAE", "IDCRAFTER_CAST", "IMAGE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        takes = tuple(Take(k, torch.full((1, 4, 2, 3, 3), float(k)), seconds=0.5, resumed=False) for k in range(2))
        return Takes(takes, 0, "euler", torch.tensor([1.0, 0.0]), {"family": "wan"}), Vae(), CAST, CLIPS[1].clone()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny_judge.write_judge(root / "identity_reward")
    tiny_judge.write_base(root / "Qwen2.5-VL-3B-Instruct")
    return root


@pytest.fixture
def run(pack, root, monkeypatch):
    """Run a graph in API format; returns what its nodes have sent to the browser. A refused or failed one raises."""
    import execution

    import nodes

    entry = ([str(root)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "idcrafter_rewards", entry)
    pack.core("LoadVideo")
    for name, node in {**pack.nodes, "Shot": Shot}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    server = SimpleNamespace(client_id=None, last_node_id=None, sockets_metadata={}, send_sync=lambda *a: None)
    arguments = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}

    def run(graph):
        good, error, outputs, errors = wait_for(execution.validate_prompt("p", graph, None))
        assert good, (error, errors)
        executor = execution.PromptExecutor(server, execution.CacheType.CLASSIC, arguments)
        wait_for(executor.execute_async(graph, "p", {}, outputs))
        if not executor.success:
            raise RuntimeError(executor.status_messages[-1][1]["exception_message"])
        return executor.history_result["outputs"]

    return run


def node(kind, /, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**more):
    """A judge of 1.0 in a reward, after an identity that is only measured."""
    return {
        "shot": node("Shot"),
        "judge": node(
            "IDCrafterLoadJudge",
            judge="identity_reward",
            base="Qwen2.5-VL-3B-Instruct",
            dtype="default",
            device="default",
        ),  # fmt: skip
        "identity": node("IDCrafterReward", term="identity", weight=0.0, floor=0.0, combine="sum"),
        "reward": node(
            "IDCrafterReward",
            **{"term": "judge", "term.judge": ["judge", 0]},
            weight=1.0,
            floor=0.0,
            combine="sum",
            reward=["identity", 0],
        ),
        **more,
    }


def report_of(outputs, name):
    (file,) = [each for each in outputs[name]["files"] if each["filename"].endswith(".json")]
    folder = Path(folder_paths.get_output_directory()) / file["subfolder"]
    return json.loads((folder / file["filename"]).read_text("utf-8"))


@pytest.fixture
def answers(pack, root):
    """What the judge says of a clip by itself, with the first photo of each subject."""
    judge = pack.submodule("model_loaders.judge").load_judge(root / "identity_reward", root / "Qwen2.5-VL-3B-Instruct")
    return lambda clip: judge.score(clip, [subject.photos[0] for subject in CAST.subjects])


def test_score_takes_asks_the_judge_about_every_take(run, answers):
    scored = node("IDCrafterScoreTakes", takes=["shot", 0], vae=["shot", 1], cast=["shot", 2], frames=3)
    scored["inputs"]["reward"] = ["reward", 0]
    picked = node(
        "IDCrafterPickTake",
        takes=["shot", 0], vae=["shot", 1], scorecard=["scores", 0], take=-1, filename_prefix="tests/judged",
    )  # fmt: skip
    outputs = run(graph(scores=scored, pick=picked))
    report = report_of(outputs, "pick")
    wanted = [answers(clip) for clip in CLIPS]
    assert wanted[0] != wanted[1]
    assert [take["terms"]["judge"] for take in report["takes"]] == pytest.approx(wanted, abs=2e-6)
    assert [take["reward"] for take in report["takes"]] == pytest.approx(wanted, abs=2e-6)
    assert report["picked"] == report["best"] == wanted.index(max(wanted))
    judged = report["reward"]["terms"]["judge"]
    assert judged["model"]["name"] == "identity_reward"
    assert "Qwen Research Licence" in judged["model"]["licence"]
    (said,) = outputs["judge"]["text"]
    assert "Judge identity_reward" in said and "no licence stated for its weights" in said


def test_score_video_asks_the_judge_about_frames(run, answers):
    video = node(
        "IDCrafterScoreVideo", video=["shot", 3], cast=["shot", 2], frames=0, filename_prefix="tests/judged_frames",
        reward=["reward", 0],
    )  # fmt: skip
    report = report_of(run(graph(video=video)), "video")
    assert report["takes"][0]["terms"]["judge"] == pytest.approx(answers(CLIPS[1]), abs=2e-6)


def test_score_video_shows_the_judge_a_file_as_it_is(pack, run, answers):
    import av

    pixels = (CLIPS[1] * 255).round().to(torch.uint8)
    path = Path(folder_paths.get_input_directory()) / "judged.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.pix_fmt, stream.height, stream.width = "bgr0", *pixels.shape[1:3]
        for index, frame in enumerate(pixels.numpy()):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    scored = node(
        "IDCrafterScoreVideo", video=["file", 0], cast=["shot", 2], frames=0, filename_prefix="tests/judged_file",
        reward=["reward", 0],
    )  # fmt: skip
    outputs = run(graph(file=node("LoadVideo", file="judged.mkv"), video=scored))
    got = report_of(outputs, "video")["takes"][0]["terms"]["judge"]
    evidence = pack.submodule("idcrafter.rewards.evidence")
    assert got == pytest.approx(answers(evidence.VideoFrames(path)), abs=2e-6)
    assert abs(got - answers(CLIPS[1])) > 1e-5  # which goes through the lossy file


def test_a_take_that_is_too_short_is_an_error_in_words(run, monkeypatch):
    monkeypatch.setitem(globals(), "CLIPS", [CLIPS[0], CLIPS[1][:3]])
    video = node("IDCrafterScoreVideo", video=["shot", 3], cast=["shot", 2], frames=0, filename_prefix="tests/short")
    video["inputs"]["reward"] = ["reward", 0]
    with pytest.raises(RuntimeError, match="looks at 4 frames, but the clip has 3"):
        run(graph(video=video))


@pytest.mark.parametrize(
    "folder, command, licence",
    [
        ("identity_reward", "identity_grpo/identity_reward.tgz", "no licence stated for its weights"),
        ("Qwen2.5-VL-3B-Instruct", "hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir", "Qwen Research Licence"),
    ],
)
def test_a_missing_folder_is_named_with_command_and_licence(
    pack, root, tmp_path, monkeypatch, folder, command, licence
):
    whole = "identity_reward" if folder != "identity_reward" else "Qwen2.5-VL-3B-Instruct"
    (tmp_path / whole).symlink_to(root / whole)
    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "idcrafter_rewards", entry)
    with pytest.raises(FileNotFoundError) as error:
        pack.execute("IDCrafterLoadJudge", judge="identity_reward", base="Qwen2.5-VL-3B-Instruct")
    for part in (f"'{folder}' is missing", str(tmp_path / folder), command, licence):
        assert part in str(error.value)


def test_the_lists_offer_what_is_there_and_the_released_names(pack, tmp_path, monkeypatch):
    tiny_judge.write_judge(tmp_path / "my_judge")
    tiny_judge.write_base(tmp_path / "qwen-here")
    entry = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "idcrafter_rewards", entry)
    schema = pack.nodes["IDCrafterLoadJudge"].define_schema()
    options = {each.id: each.options for each in schema.inputs}
    assert options["judge"] == ["identity_reward", "my_judge"]
    assert options["base"] == ["Qwen2.5-VL-3B-Instruct", "qwen-here"]
