"""IDCrafterReward and the loaders of its models, from files to a scorecard."""

from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch

from support import tiny_vision
from support.clips import evidence_of, painted_cast, painted_clip

ROOT = Path(__file__).resolve().parents[2]
TWO_PHOTOS = ((1.0, 0.8), (0.9, 0.7))
FRAMES = [[(0, 0.8, 0), (1, 0.6, 2)]] * 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny_vision.write_dino(root / "tiny-dino")
    tiny_vision.write_clip(root / "tiny-clip")
    tiny_vision.write_head(root / "head.pth")
    tiny_vision.write_vlm(root / "tiny-qwen")
    return root


@pytest.fixture
def folders(monkeypatch, root):
    entry = ([str(root)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "idcrafter_rewards", entry)
    folder_paths.filename_list_cache.pop("idcrafter_rewards", None)


def add(pack, term, weight=1.0, floor=0.0, combine="sum", reward=None, **options):
    inputs = {"term": {"term": term, **options}, "weight": weight, "floor": floor, "combine": combine}
    return pack.execute("IDCrafterReward", **inputs, reward=reward)[0]


def measure(pack, spec, evidence):
    return pack.submodule("idcrafter.rewards.terms").measure_terms(evidence, spec)


@pytest.fixture(scope="module")
def evidence():
    return evidence_of(painted_clip(FRAMES), painted_cast(similarities=TWO_PHOTOS))


def test_the_default_is_the_recommended_reward(pack):
    terms = pack.submodule("idcrafter.rewards.terms")
    schema = pack.nodes["IDCrafterReward"].GET_SCHEMA()
    values = {each.id: each for each in schema.inputs}
    assert values["term"].options[0].key == "recommended" and values["term"].options[0].inputs == []
    got = add(pack, "recommended", values["weight"].default, values["floor"].default, values["combine"].default)
    assert got == terms.recommended_reward()
    assert add(pack, "recommended", 2.0, 0.3, "gdpo").terms == terms.recommended_reward(2.0, 0.3).terms


def test_every_kind_of_term_is_an_option_with_its_inputs(pack):
    terms = pack.submodule("idcrafter.rewards.terms")
    term = next(each for each in pack.nodes["IDCrafterReward"].GET_SCHEMA().inputs if each.id == "term")
    options = {option.key: [each.id for each in option.inputs] for option in term.options[1:]}
    assert list(options) == list(terms.KINDS)
    for kind, needs in terms.KINDS.items():
        widgets = [each for each in options[kind] if each in needs.options]
        assert widgets == list(needs.options) and len(options[kind]) - len(widgets) == (needs.model is not None)
        defaults = {each.id: each.default for each in next(o for o in term.options if o.key == kind).inputs
                    if each.id in needs.options}  # fmt: skip
        assert defaults == dict(needs.options)


def test_a_chain_of_nodes(pack, evidence):
    spec = add(pack, "id_crafter_face", 0.6, worst_share=1.0)
    spec = add(pack, "copy_paste", -0.2, single_photo="error", reward=spec)
    spec = add(pack, "motion", 0.0, floor=0.5, combine="gdpo", reward=spec)
    assert spec.names == ("id_crafter_face", "copy_paste", "motion") and spec.combine == "gdpo"
    assert [term.weight for term in spec.terms] == [0.6, -0.2, 0.0] and spec.gates == (("motion", 0.5),)
    assert measure(pack, spec, evidence)["id_crafter_face"] == pytest.approx(evidence.identity.quality.min())


def test_models_from_their_loaders_measure_a_clip(pack, folders, evidence):
    dino = pack.execute("IDCrafterLoadImageEncoder", model="tiny-dino")[0]
    looks = pack.execute("IDCrafterLoadAestheticPredictor", clip="tiny-clip", head="head.pth")[0]
    vlm = pack.execute("IDCrafterLoadVLM", model="tiny-qwen")[0]
    spec = add(pack, "subject_crops", image_encoder=dino, margin=0.5)
    spec = add(pack, "aesthetics", aesthetic_predictor=looks, reward=spec)
    spec = add(pack, "naturalness", vlm=vlm, question="Real?", frames=2, reward=spec)
    got = measure(pack, spec, evidence)
    assert list(got) == ["subject_crops", "aesthetics", "naturalness"]
    assert 0 < got["subject_crops"] <= 1 and 0 <= got["aesthetics"] <= 1 and 0 < got["naturalness"] < 1
    shown = [evidence.source.images[0], evidence.source.images[3]]
    assert got["naturalness"] == pytest.approx(vlm.yes_probability(shown, "Real?"), rel=1e-5)
    facts = spec.describe()["terms"]
    assert facts["aesthetics"]["model"] == {"name": "tiny-clip", "licence": "mit", "head": "head.pth"}
    assert facts["naturalness"]["model"]["licence"] == "qwen-research"


def test_the_judge_is_a_term(pack, evidence, tmp_path):
    from support import tiny_judge

    loader = pack.submodule("model_loaders.judge")
    folders = tiny_judge.write_judge(tmp_path / "judge"), tiny_judge.write_base(tmp_path / "base")
    judge = loader.load_judge(*folders, dtype="fp32")
    spec = add(pack, "judge", judge=judge)
    photos = [subject.photos[0] for subject in evidence.cast.subjects]
    clip = pack.submodule("idcrafter.rewards.evidence").TensorFrames(evidence.source.images)
    assert measure(pack, spec, replace(evidence, source=clip))["judge"] == judge.score(evidence.source.images, photos)
    assert spec.describe()["terms"]["judge"]["model"]["licence"] == judge.licence


def test_models_that_are_not_connected(pack):
    with pytest.raises(ValueError, match="'naturalness' needs a model; connect a VLM"):
        add(pack, "naturalness", vlm=None, question="Real?", frames=2)


class Vae:
    """Decodes the latent of take k to clip k."""

    def __init__(self, clips):
        self.clips = clips

    def decode(self, samples):
        return self.clips[int(samples[0, 0, 0, 0, 0])][None]


@pytest.fixture
def shot():
    """Take 0 is more alike, take 1 moves and take 0 hardly does: below the floor, and no still picture either."""
    from idcrafter.sampling.takes import Take, Takes

    def clip(likeness, step):
        frames = painted_clip([[(0, likeness, 0), (1, likeness, 2)]] * 6)
        frames[:, :8, :, 0] = 0.5
        for t, frame in enumerate(frames):
            frame[34:, step * t : step * t + 20, :2] = 0.1 * (t if step == 0 else 1)
        return frames

    takes = tuple(Take(k, torch.full((1, 4, 2, 3, 3), float(k)), seconds=0.5, resumed=False) for k in range(2))
    return Takes(takes, 0, "euler", torch.tensor([1.0, 0.0]), {"family": "wan"}), [clip(0.8, 0), clip(0.7, 8)]


def test_a_scorecard_picks_by_the_reward(pack, shot):
    takes, clips = shot
    inputs = {"takes": takes, "vae": Vae(clips), "cast": painted_cast(), "frames": 0}
    plain = pack.execute("IDCrafterScoreTakes", **inputs)[0].report
    report = pack.execute("IDCrafterScoreTakes", **inputs, reward=add(pack, "recommended"))[0].report
    assert plain["best"] == 0 and report["best"] == 1
    assert [take["score"] for take in report["takes"]] == [take["score"] for take in plain["takes"]]
    assert report["takes"][0]["terms"]["motion"] < 0.3 and report["takes"][0]["reward"] < report["takes"][0]["score"]
    assert report["takes"][1]["reward"] == pytest.approx(report["takes"][1]["score"])
    assert report["reward"]["terms"]["motion"]["floor"] == 0.3


def test_an_error_names_the_term_and_the_take(pack, shot):
    takes, clips = shot
    inputs = {"takes": takes, "vae": Vae(clips), "cast": painted_cast(), "frames": 0}
    with pytest.raises(ValueError, match="'copy_paste' cannot measure take 0. A second photo"):
        pack.execute("IDCrafterScoreTakes", **inputs, reward=add(pack, "copy_paste", -1.0, single_photo="error"))


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("IDCrafterLoadImageEncoder", {"model": "dino-vits16"}, "hf download facebook/dino-vits16 --local-dir"),
        ("IDCrafterLoadVLM", {"model": "Qwen2.5-VL-3B-Instruct"}, "hf download Qwen/Qwen2.5-VL-3B-Instruct"),
        ("IDCrafterLoadAestheticPredictor", {"clip": "tiny-clip", "head": "none.pth"}, "'none.pth' is missing .* curl"),
        ("IDCrafterLoadAestheticPredictor", {"clip": "none", "head": "head.pth"}, "hf download openai/clip-vit-large"),
    ],
)
def test_missing_files_come_with_their_command(pack, folders, node, inputs, message):
    with pytest.raises(FileNotFoundError, match=message):
        pack.execute(node, **inputs)


def test_no_way_out_of_the_model_folder(pack, folders):
    for node, inputs in (
        ("IDCrafterLoadVLM", {"model": "../secrets"}),
        ("IDCrafterLoadAestheticPredictor", {"clip": "tiny-clip", "head": "../head.pth"}),
    ):
        with pytest.raises(ValueError, match="leaves its model folder"):
            pack.execute(node, **inputs)


def test_lists_show_what_is_there_and_what_can_be_had(pack, folders):
    def options(node, name):
        return next(each for each in pack.nodes[node].define_schema().inputs if each.id == name).options

    names = options("IDCrafterLoadImageEncoder", "model")
    assert {"tiny-dino", "tiny-qwen", "dino-vits16"} <= set(names) and names == sorted(names)
    assert options("IDCrafterLoadAestheticPredictor", "head") == ["head.pth", "sac+logos+ava1-l14-linearMSE.pth"]


@pytest.mark.parametrize("node", ["Reward", "LoadVLM", "LoadImageEncoder", "LoadAestheticPredictor"])
def test_help_names_every_input(pack, node):
    text = (ROOT / "web" / "docs" / f"IDCrafter{node}.md").read_text("utf-8")
    schema = pack.nodes[f"IDCrafter{node}"].GET_SCHEMA()
    assert all(f"| {each.id} |" in text for each in schema.inputs)
    if node == "Reward":
        term = next(each for each in schema.inputs if each.id == "term")
        for option in term.options:
            assert f"| {option.key} |" in text and all(f"**{each.id}**" in text for each in option.inputs)
