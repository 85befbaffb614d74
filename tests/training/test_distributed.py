"""Two processes on a CPU, started by torchrun, train as one does with the same batch; so does the command."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import toys

from lrkd.distill import methods
from lrkd.distill.terms import logits
from lrkd.errors import ConfigError
from lrkd.study import experiment, presets
from lrkd.study import spec as study_spec
from lrkd.training import checkpoint, distributed
from lrkd.training.acceleration import Speed
from lrkd.training.schedule import Options, Schedule

TESTS = Path(__file__).parent.parent
HOW = {"epochs": 3, "log_every": 1, "options": Options(side=4, shift=1, threads=1)}
SYNC = {"speed": Speed(sync_norm=True)}
SCENES = {
    "whole head": HOW | SYNC,
    "shared head": HOW | {"speed": Speed(sync_norm=True, shard=1)},
    "shared AdaFace": HOW | {"speed": Speed(sync_norm=True, shard=1), "head": "adaface"},
    "norms apart": HOW,
    "random sides": HOW | {"options": replace(HOW["options"], side=(2, 4))},
}


def train(scene: str, folder: Path) -> None:
    """One process's part of a scene; the first leaves what came of it."""
    weights, fitted = toys.train(directory=folder, **SCENES[scene])
    if distributed.rank() == 0:
        torch.save({"weights": weights, "rows": fitted.rows}, folder / "found.pt")


def main(folder: Path) -> None:
    with distributed.init_distributed("cpu"):
        for scene in SCENES:
            train(scene, folder / scene)
        try:
            toys.train(**(HOW | {"schedule": Schedule(1, batch=15)}))
        except ConfigError as error:
            (folder / "uneven").write_text(str(error))
        # Stopped by what the second process alone hears; then to the end, from the first one's checkpoint, which is
        # written so slowly that the second, which does not write, would look for it too soon.
        steps, write = iter(range(100)), checkpoint.write_whole
        checkpoint.write_whole = lambda *words: time.sleep(0.3) or write(*words)
        try:
            stop = lambda: next(steps) == 8 and distributed.rank() == 1  # noqa: E731
            toys.train(directory=folder / "stopped", stop=stop, **(SCENES["shared head"] | {"epochs": 6}))
        except KeyboardInterrupt as error:
            (folder / f"said{distributed.rank()}").write_text(str(error))
        weights, fitted = toys.train(directory=folder / "stopped", **(SCENES["shared head"] | {"epochs": 6}))
        straight, _ = toys.train(**(SCENES["shared head"] | {"epochs": 6}))
        if distributed.rank() == 0:
            near = all(torch.allclose(weights[key], straight[key], atol=1e-5) for key in weights)
            (folder / "resumed").write_text(json.dumps([near, len(fitted.rows)]))


def torchrun(*words: str, **more: str) -> None:
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **more}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for name in (*SCENES, "stopped"):
        (folder / name).mkdir()
    torchrun(__file__, str(folder))
    return folder


def alone(scene: str):
    return toys.train(**SCENES[scene])


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["whole head", "shared head", "shared AdaFace"])
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(found, scene):
    both = torch.load(found / scene / "found.pt", weights_only=True)
    weights, fitted = alone(scene)
    assert len(both["rows"]) == len(fitted.rows) == 12
    for a, b in zip(both["rows"], fitted.rows, strict=True):
        for key in ("loss", "identity", "feature", "attention", "train_accuracy", "lr", "ramp"):
            # What differs is the order of sums, which grows with the steps.
            assert a[key] == pytest.approx(b[key], rel=1e-5 if a["step"] < 6 else 5e-3), (a["step"], key)
    for key, value in weights.items():
        torch.testing.assert_close(both["weights"][key].float(), value.float(), rtol=1e-2, atol=2e-3, msg=key)


@pytest.mark.slow
def test_norms_that_see_half_a_batch_each_are_another_training_and_learn_too(found):
    both = torch.load(found / "norms apart" / "found.pt", weights_only=True)["rows"]
    one = alone("norms apart")[1].rows
    assert any(abs(a["loss"] - b["loss"]) > 1e-3 for a, b in zip(both, one, strict=True))
    assert both[-1]["loss"] < both[0]["loss"]


@pytest.mark.slow
def test_random_degradations_are_drawn_by_each(found):
    rows = torch.load(found / "random sides" / "found.pt", weights_only=True)["rows"]
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_they_stop_together_and_the_checkpoint_holds_all_classes(found):
    assert {(found / f"said{rank}").read_text() for rank in (0, 1)} == {"train stopped at step 10 of 24"}
    state = torch.load(found / "stopped" / "state.pt", weights_only=True)
    assert state["trained"]["head.head.weight"].shape == (4, 8)
    assert json.loads((found / "resumed").read_text()) == [True, 24]
    assert "batch: expected a multiple of 2, the number of processes, got 15" in (found / "uneven").read_text()


def test_alone_there_is_one_process_and_nothing_to_agree_on():
    with distributed.init_distributed("cpu") as device:
        assert (device, distributed.world_size(), distributed.rank()) == ("cpu", 1, 0)
        assert distributed.local_part(7) == slice(0, 7)
        assert [distributed.any_process(said) for said in (True, False)] == [True, False]
        assert [distributed.broadcast(said) for said in (True, False)] == [True, False]
        x = torch.ones(2)
        assert distributed.all_reduce(x) is x
        network, _ = toys.pair()
        with distributed.sync_batch_norm(network, True):
            assert not any(type(module) is distributed.SyncBatchNorm for module in network.modules())


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("wrong", "device", "match"),
    [
        *(({name: ""}, "cpu", f"expected {name} as torchrun .*, got ''") for name in TORCHRUN),
        *(({name: "x"}, "cpu", f"expected {name} .*, got 'x'") for name in TORCHRUN if name != "MASTER_ADDR"),
        ({}, "cuda", "LOCAL_RANK: expected less than 1, .*, got 1; start with torchrun --nproc-per-node 1"),
    ],
)
def test_settings_that_are_not_torchruns_are_named(monkeypatch, wrong, device, match):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (TORCHRUN | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=match), distributed.init_distributed(device):
        pass


@pytest.mark.slow
def test_the_command_trains_with_two_processes_and_says_so(smoke, tmp_path):
    words = ("train", "--scale", "smoke", "--method", "fskd", "--side", "6", "--device", "cpu", "--runs", str(tmp_path))
    torchrun("-m", "lrkd", *words, "--sync-norm")
    spec = study_spec.Spec(methods.get("fskd"), 6, 0, presets.SCALES["smoke"])
    together = experiment.find_run(replace(spec, processes=2, sync_norm=True), tmp_path)
    assert not experiment.find_run(spec, tmp_path).finished, "its terms saw half a batch each: another run"
    assert experiment.find_run(spec.teacher_run, tmp_path).finished, "nothing of the teacher's saw a part: the same run"
    single = experiment.train(spec, smoke / "single", device="cpu", progress=False)
    assert together.result["processes"] == 2
    assert together.result["sync_norm"] is True
    assert "processes" not in single.result
    losses = [pd.read_csv(run.path / "metrics.csv")["loss"].iloc[-1] for run in (together, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    weights = [experiment.load(run)[0].state_dict() for run in (together, single)]
    for key, value in weights[0].items():
        torch.testing.assert_close(value.float(), weights[1][key].float(), rtol=1e-2, atol=1e-2, msg=key)


def test_logits_of_shared_classes_cannot_be_distilled(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    network, head = toys.pair()
    with pytest.raises(ConfigError, match="logits"):
        toys.fit(
            network,
            head,
            toys.faces(),
            schedule=Schedule(1, 16),
            teacher=toys.Teacher(*toys.pair(9)),
            terms=(logits(),),
            speed=Speed(shard=1),
            progress=False,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
