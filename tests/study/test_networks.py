"""Students and teachers of every kind: what a run needs is said before it, what it is decides its name."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lrkd
from lrkd import files, userfile
from lrkd.data import prepared
from lrkd.distill import methods
from lrkd.distill.terms import Term, View
from lrkd.errors import ConfigError, DataError, RunError
from lrkd.models import backbones, checkpoints
from lrkd.models.backbones import BUILDERS
from lrkd.study import experiment, networks, results, teaching
from lrkd.study.presets import DESIGNS, SCALES
from lrkd.study.spec import Spec, config_hash, run_config, run_name, splits, teacher_spec

SMOKE = SCALES["smoke"]
pytestmark = pytest.mark.usefixtures("smoke")

NETS = """
import torch
from torch import nn
from lrkd.models.wrap import wrap

class Plain(nn.Module):
    def __init__(self, size, embedding, stages=2):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.output = nn.Sequential(nn.Flatten(), nn.Linear(8 * (size // 4) ** 2, embedding))

    def forward(self, x):
        return self.output(self.layer2(self.layer1(x)))

def make(size, embedding):
    return wrap(Plain(size, embedding), size, ["layer1", "layer2"])

def bare(size):
    return Plain(size, 20)

def large():
    return wrap(Plain(32, 40), 32)

def wrong():
    return 3

def broken():
    raise RuntimeError("no weights")

VALUE = 3
"""


def spec(name: str = "embedding-cos", side: int | None = 6, seed: int = 0, **more) -> Spec:
    return Spec(methods.get(name), side, seed, more.pop("scale", SMOKE), **more)


def trained(one: Spec, store: Path):
    return experiment.train(one, store, device="cpu", progress=False)


@pytest.fixture(scope="module")
def store(smoke):
    return smoke / "networks"


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets_of_a_test.py").write_text(NETS)
    yield tmp_path / "nets_of_a_test.py"
    sys.modules.pop("nets_of_a_test", None)


# ----------------------------------------------------------------------------------------------------------- students


def test_an_iresnet18_taught_by_an_iresnet50_is_one_line():
    one = spec("fskd", 14, scale=SCALES["gpu"], student="iresnet18", teacher="iresnet50", source="procedural")
    assert one == spec("fskd", 14, scale=SCALES["gpu"], teacher="iresnet50"), "the preset's own"
    assert (one.model["name"], one.teacher_run.model["name"]) == ("iresnet18", "iresnet50")
    assert run_name(one) == "procedural-gpu-fskd-14-s0-t0-iresnet50"
    assert run_name(one.teacher_run) == "procedural-gpu-teacher-iresnet50-hr-s0"


def test_a_student_is_a_name_and_its_teacher_another(store, teacher):
    one = spec("embedding-cos", student="mobile", teacher="mobile")
    assert one.teacher_run.model["name"] == one.model["name"] == "mobile"
    run = trained(one, store)
    assert type(experiment.load(run)[0]).__name__ == "MobileFaceNet"
    assert experiment.find_run(one.teacher_run, store) == teacher
    table = results.results_table([one], store)
    assert set(table["student"]) == set(table["teacher"]) == {"mobile"}
    scores = results.score_table([one], store)
    assert set(scores["student"]) == set(scores["teacher"]) == {"mobile"}
    assert "preset" not in scores


def test_two_networks_never_share_a_runs_name(nets):
    names = [*BUILDERS, *DESIGNS, f"{nets}:make", f"{nets}:bare"]
    students = {run_name(spec(student=name)) for name in names}
    teachers = {run_name(spec(teacher=name)) for name in (*BUILDERS, f"{nets}:make", f"{nets}:bare")}
    assert len(students) == len(names)
    assert len(teachers) == len(BUILDERS) + 2
    assert len({config_hash(spec(student=name)) for name in names}) == len(names)


def test_the_presets_own_network_by_its_name_is_the_same_run():
    assert spec(student=SMOKE.model, teacher=SMOKE.model) == spec()
    assert config_hash(spec(student=SMOKE.model)) == config_hash(spec())


def test_a_users_network_is_trained_measured_and_rebuilt(nets, store):
    one = spec("embedding-cos", student=f"{nets}:make", seed=3)
    network, _ = experiment.load(run := trained(one, store))
    assert network.widths == (8, 8)
    assert run.config["model"]["function"] == "nets_of_a_test.py:make"
    assert {"cosine_embedding"} == {key for key in run.result["measures"]["test"] if key.startswith("cosine")}
    again, _ = experiment.load(run)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    text = nets.read_text()
    nets.write_text(text.replace("nn.ReLU()", "nn.PReLU()"))
    with pytest.raises(
        ConfigError, match=r"expected the file of its network nets_of_a_test.py:make .* another content"
    ):
        experiment.load(run)
    nets.unlink()
    with pytest.raises(ConfigError, match=r"nets_of_a_test.py:make .* got no file there: put it back"):
        experiment.load(run)
    nets.write_text(text)
    experiment.load(run)
    (run.path / nets.name).write_text(text)
    result = files.read_json(run.path / "result.json")
    for where in (f"{run.path / nets.name}:make", "nets_of_a_test.py:make"):
        files.write_json(run.path / "result.json", result | {"student": where})
        with pytest.raises(ConfigError, match="got no file there"):  # code that came with a run is not run
            experiment.load(run)


def test_the_hash_covers_a_users_file_and_not_where_it_lies(nets, tmp_path):
    one = spec("embedding-cos", student=f"{nets}:make")
    before = config_hash(one)
    nets.write_text(NETS + "# a word more\n")
    assert config_hash(one) != before
    nets.write_text(NETS)
    assert config_hash(one) == before


def test_the_hash_covers_a_users_method_and_all_that_its_file_has(nets):
    method = """
from lrkd.distill.methods import Method
from lrkd.distill.terms import Term

FACTOR = 2

def loss(student, teacher):
    return FACTOR * (student.embedding - teacher.embedding).square().mean()

MINE = Method("mine", "mine", (Term("mine", 1.0, loss),))
"""
    hashes = []
    for text in (method, method.replace("FACTOR = 2", "FACTOR = 3"), method):
        nets.write_text(text)
        hashes.append(config_hash(Spec(userfile.load_object(f"{nets}:MINE").value, 6, 0, SMOKE)))
    assert hashes[0] == hashes[2] != hashes[1]


def test_another_process_loads_the_users_files_before_what_is_defined_in_them(nets):
    nets.write_text("def loss(student, teacher):\n    return 7\n")
    loss = userfile.load_object(f"{nets}:loss").value
    sent = pickle.dumps((userfile.LoadedFiles(), loss))
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())[1](0, 0))"
    said = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True, timeout=60)
    assert said.stdout.split() == [b"7"]


def test_a_module_that_is_not_wrapped_is_seeded_and_has_its_own_embedding(nets):
    one = spec("rkd", student=f"{nets}:bare", seed=5)
    (a, head), (b, _), (c, _) = (teaching.build(replace(one, seed=seed), seed, 7) for seed in (5, 5, 6))
    assert (a.embedding, tuple(head.weight.shape)) == (20, (7, 20))
    weights = [network.state_dict()["module.layer1.0.weight"] for network in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("wrong", "expected an nn.Module, got int"),
        ("VALUE", "expected a function that returns an nn.Module, got int"),
        ("broken", r"called with \(\): RuntimeError: no weights"),
        ("large", "expected a network for images of 24 px, or of the run's side 6, got one for 32 px"),
    ],
)
def test_what_is_no_network_is_said_and_nothing_is_written(nets, tmp_path, function, match):
    with pytest.raises(ConfigError, match=match):
        trained(spec("embedding-cos", student=f"{nets}:{function}"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------------------------------------------------- teachers


@pytest.fixture(scope="module")
def teacher(store):
    """A teacher's run with a deeper network than the preset's."""
    return trained(teacher_spec(SMOKE, 0, student="mobile"), store)


@pytest.mark.parametrize("method", ["fskd", "fskd-l2", "at"])
def test_stages_of_other_shapes_are_named(nets, store, method):
    with pytest.raises(
        ConfigError, match=r"the shapes of their stages differ: \d+x\d+x\d+, .* of the student, \d+x"
    ) as caught:
        trained(spec(method, student=f"{nets}:make"), store)
    assert "embedding-cos" in str(caught.value).partition("these methods work: ")[2]


def test_a_run_teaches_by_its_folder(teacher, store):
    named, given = (spec("fskd", 8, teacher=name) for name in ("mobile", str(teacher.path)))
    assert given.teacher_run is None
    assert run_config(given)["teacher"] == run_config(named)["teacher"]
    for one in (named, given):
        with pytest.raises(
            ConfigError, match=r"'fskd': student IResNet and teacher \S* ?do not fit .*work: .*logit-kd"
        ):
            experiment.check(one)
    run = trained(spec("logit-kd", 8, teacher=str(teacher.path)), store)
    assert run.path.name.startswith(f"procedural-smoke-logit-kd-8-s0-{teacher.path.name}-")


def test_a_run_that_has_not_finished_teaches_nobody(teacher, tmp_path):
    shutil.copytree(teacher.path, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(RunError, match="has not finished"):
        trained(spec(teacher=str(tmp_path / "run")), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def embeddings(smoke):
    rows = np.random.default_rng(0).normal(size=(len(splits(SMOKE).train), 24)).astype(np.float32)
    path = smoke / "embeddings.npy"
    np.save(path, rows)
    return path


def test_embeddings_teach_what_reads_embeddings_and_no_more(embeddings, store, tmp_path):
    one = spec("embedding-cos", teacher=str(embeddings))
    run = trained(one, store)
    assert experiment.load(run)[0].embedding == 24, "a student's embedding is as long as what it learns"
    assert "cosine_embedding" not in run.result["measures"]["test"]
    for name, lacks in (("fskd", "no feature maps"), ("askd", "no attention maps"), ("logit-kd", "no logits")):
        with pytest.raises(ConfigError, match=rf"embeddings.npy has .*{lacks}.*{name}.*these methods work: .*rkd"):
            trained(spec(name, teacher=str(embeddings)), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert spec("none", teacher=str(embeddings)).model["embedding"] == 24, "so that it can be compared"


def test_moving_a_teachers_file_changes_nothing_and_its_content_does(embeddings, tmp_path):
    moved = shutil.copy(embeddings, tmp_path / "embeddings.npy")
    here, there = (spec(teacher=str(path)) for path in (embeddings, moved))
    assert run_name(here) == run_name(there)
    assert config_hash(here) == config_hash(there)
    np.save(tmp_path / "embeddings.npy", 2 * np.load(embeddings))
    assert config_hash(there) != config_hash(here)


def test_a_table_of_another_length_is_refused_before_anything_is_written(tmp_path):
    np.save(tmp_path / "few.npy", np.ones((5, 24), np.float32))
    with pytest.raises(DataError, match=r"few.npy: expected 96 rows, one an image of the manifest, got 5"):
        trained(spec(teacher=str(tmp_path / "few.npy")), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_training_images_of_a_prepared_folder_find_their_rows_of_the_manifest(photographs, tmp_path):
    whole, train = prepared.load_prepared(photographs).faces, splits(SMOKE, photographs).train
    np.save(tmp_path / "e.npy", np.arange(1.0, 1 + len(whole))[:, None].repeat(3, 1))
    network = teaching.lent_network(spec(teacher=str(tmp_path / "e.npy"), source=photographs), train)
    assert len(network) == len(train) < len(whole)
    for row in range(len(train)):
        at = int(network.table[row, 0]) - 1
        assert whole.sources[at] == train.sources[row]


def a_checkpoint(path):
    """insightface's layout with few channels, which `load_foreign` knows by its names."""
    network = backbones.IResNet((2, 2, 2, 2), (4, 5, 6, 7), size=112, embedding=20, cbam=False)
    family = checkpoints.ARCFACE
    state = {checkpoints.name_in_file(family, name, 18): value for name, value in network.state_dict().items()}
    torch.save(state, path)
    return path


def an_onnx(path):
    """A file of 32 px whose embedding is a product of the image with a matrix."""
    matrix = np.random.default_rng(0).normal(size=(3 * 32 * 32, 12)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "matrix"], ["out"])]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 3, 32, 32]), ("out", ["N", 12]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(matrix, "matrix")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (("channels", "RGB"), ("range", "[-1,1]")):
        made.metadata_props.add(key=key, value=value)
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("make", "name", "size", "embedding"), [(a_checkpoint, "r18.pth", 112, 20), (an_onnx, "small.onnx", 32, 12)]
)
def test_a_file_of_another_size_teaches(store, tmp_path, make, name, size, embedding):
    path = make(tmp_path / name)
    one = spec("embedding-cos", teacher=str(path))
    assert networks.load_teacher(str(path)).size == size != SMOKE.size
    run = trained(one, store)
    assert run.config["teacher"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert experiment.load(run)[0].embedding == embedding
    assert "cosine_embedding" in run.result["measures"]["test"]
    assert f"-{name}-" in run.path.name
    with pytest.raises(ConfigError, match=f"teacher {name} has no attention maps: method 'askd' needs them"):
        experiment.check(spec("askd", teacher=str(path)))


def test_a_users_function_teaches(nets, store):
    one = spec("rkd", teacher=f"{nets}:large")
    run = trained(one, store)
    assert run.config["teacher"]["function"] == "nets_of_a_test.py:large"
    assert run.config["teacher_seed"] is None
    assert experiment.load(run)[0].embedding == 40
    shown = networks.resized(networks.load_teacher(f"{nets}:large"), 24)
    x = torch.rand(2, 3, 24, 24)
    expected = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(shown(x).embedding, shown.network(expected).embedding)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"teacher": "iresnet99"}, r"teacher: expected a network \(.*\), a folder of a run.*, got 'iresnet99'"),
        ({"name": "random-teacher", "teacher": "t.onnx"}, "builds or trains its own: expected a network"),
    ],
)
def test_impossible_teachers(more, match):
    with pytest.raises(ConfigError, match=match):
        spec(**more)


@pytest.mark.parametrize("name", ["t.onnx", "t.npy", "t.ckpt", "t.py:make"])
def test_a_teachers_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises((ConfigError, DataError), match=str(tmp_path)):
        trained(spec(teacher=str(tmp_path / name)), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_untrained_network_of_another_kind_is_another_run():
    own, other = (run_config(spec("random-teacher", teacher=name))["teacher"] for name in ("", "iresnet18"))
    assert (own, other) == (None, "iresnet18")
    assert teaching.untrained_teacher(spec("random-teacher", teacher="iresnet18"), 3)[0].depths == (2, 2, 2, 2)


def test_a_change_anywhere_in_the_package_marks_a_runs_commit(monkeypatch):
    def run(words, **_):
        assert Path(words[3]) == Path(lrkd.__file__).parent
        return SimpleNamespace(stdout="abc1234\n" if "rev-parse" in words else " M lrkd/models/wrap.py\n")

    monkeypatch.setattr(experiment.subprocess, "run", run)
    assert experiment.commit.__wrapped__() == "abc1234+"


def each(student: View, teacher: View) -> torch.Tensor:
    return (student.embedding - teacher.embedding).square().mean(1)


def astray(student: View, teacher: View) -> torch.Tensor:
    return student.attention.mean()


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (each, r"term 'mine': expected a loss of one number, such as a mean, got shape \(4,\)"),
        (astray, "a loss fails: .*attention.*; a View has embedding, "),
    ],
)
def test_a_loss_that_is_none_is_said_before_anything_is_written(loss, match, tmp_path):
    mine = replace(spec(), method=methods.Method("mine", "mine", (Term("mine", 1.0, loss),), teacher="random"))
    with pytest.raises(ConfigError, match=match):
        experiment.train(mine, tmp_path, progress=False)
    assert not list(tmp_path.glob("*/*"))
