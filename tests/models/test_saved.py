"""A network that is written and read again is the same one, from a folder, a run and a repository alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lrkd.errors import ConfigError, DataError, RunError
from lrkd.models import backbones, saved, wrap
from lrkd.models.layers import Network

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "iresnet18": {"size": 16, "embedding": 8},
    "iresnet50": {"size": 16, "embedding": 8, "cbam": False},
    "small": {"size": 12, "embedding": 8, "widths": (4, 8)},
    "mobile": {"size": 12, "embedding": 8, "depths": (1, 1), "widths": (4, 8), "last": 16, "strides": (2, 2)},
}


def trained(name="small"):
    """A network whose statistics are not those that it began with."""
    network = backbones.build(name, **SMALLEST[name])
    network.train()(torch.rand(4, 3, network.size, network.size))
    return network.eval()


@pytest.mark.parametrize("name", backbones.BUILDERS)
def test_what_is_loaded_embeds_as_what_was_saved(name, tmp_path):
    network = trained(name)
    network.save_pretrained(tmp_path / "new" / "folder")
    again = Network.from_pretrained(tmp_path / "new" / "folder")
    images = torch.rand(3, 3, network.size, network.size) * 2 - 1
    assert not again.training
    assert type(again) is type(network)
    assert torch.equal(again(images).embedding, network(images).embedding)
    assert repr(again) == repr(network)


def test_a_builder_that_is_called_is_recorded_as_one_that_is_named(tmp_path):
    called, named = backbones.small(12, embedding=8, widths=(4, 8)), backbones.build("small", **SMALLEST["small"])
    assert called.origin == named.origin
    assert called.origin["model"]["name"] == "small"


def test_the_card_says_what_it_takes_and_what_it_is_not_for(tmp_path):
    network = trained()
    network.origin = {**network.origin, "side": 6, "method": {"name": "fskd"}, "data": {"source": "procedural"}}
    network.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in ("license: apache-2.0", "RGB (B,3,12,12) in [-1,1]", "| method | fskd |", "| trained for | 6 pixels"):
        assert part in card
    assert "does not recognise photographs" in card
    assert "does not recognise photographs" not in saved.card(trained())
    assert json.loads((tmp_path / "config.json").read_text())["side"] == 6


def test_a_folder_needs_no_hub_and_a_missing_one_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    trained().save_pretrained(tmp_path)
    Network.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no such folder, and a repository needs huggingface_hub: .*lrkd\[hub\]"):
        Network.from_pretrained("somebody/network")
    with pytest.raises(ConfigError, match=r"lrkd\[hub\]"):
        trained().push_to_hub("somebody/network")


def test_a_repository_is_a_folder_that_was_pushed(tmp_path, monkeypatch):
    """By huggingface_hub's own mixin, with its two calls to the outside replaced."""
    hub = pytest.importorskip("huggingface_hub")
    network, pushed = trained(), tmp_path / "pushed"

    def upload(self, *, folder_path, repo_id, **_):
        Path(folder_path).rename(pushed)
        Path(folder_path).mkdir()  # the mixin removes it
        return f"commit of {repo_id}"

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id})())
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    assert network.push_to_hub("somebody/network") == "commit of somebody/network"
    assert {path.name for path in pushed.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file, **_: str(pushed / file))
    again = Network.from_pretrained("somebody/network")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in network.state_dict().items())


def test_a_repository_that_cannot_be_read_is_one_error(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    with pytest.raises(DataError, match="not a/name: expected a folder, or a repository"):
        Network.from_pretrained("not a/name")

    def offline(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(DataError, match="no connection"):
        Network.from_pretrained("somebody/network")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"name": "small", "size": 12, "embedding": 8, "widths": [4, 16]}, "of another shape"),
        ({"name": "small", "size": 12, "embedding": 10**9, "widths": [4, 8]}, "of another shape"),
        ({"name": "mobile", "size": 12, "depths": [10**9, 1, 1]}, "1000000002 blocks"),
        ({"name": "no-such"}, "expected one of"),
        ({}, "do not fit"),
        (None, "do not fit"),
        ({"function": "nets.py:make"}, "of a network from nets.py:make"),
    ],
)
def test_a_file_that_asks_for_more_than_it_has_is_refused(model, says, tmp_path):
    """Before memory is taken: an embedding of a billion numbers would need terabytes."""
    tensors = {f"network.{key}": value.contiguous() for key, value in trained().state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", {"config": json.dumps({"model": model})})
    with pytest.raises((RunError, ConfigError), match=says):
        Network.from_pretrained(tmp_path)


def test_other_files_and_other_networks_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no network")
    with pytest.raises(RunError, match="expected a model written by lrkd"):
        Network.from_pretrained(tmp_path)
    other = wrap.wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)), 4)
    with pytest.raises(ConfigError, match="built, got Wrapped"):
        other.save_pretrained(tmp_path)
    for missing in (tmp_path / "model.safetensors", "no/such/folder", "no-such-folder", "./shared"):
        with pytest.raises(ConfigError, match=r"expected a folder that has model\.safetensors, or"):
            Network.from_pretrained(missing)
    with pytest.raises(RunError, match="expected a folder, or a name for one"):
        trained().save_pretrained(tmp_path / "model.safetensors")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a run's folder"):
        trained().save_pretrained(tmp_path)


def test_torch_hub_loads_from_a_clone(tmp_path):
    """As `torch.hub.load(CLONE, ..., source="local")` does; in a process of its own, as it imports hubconf."""
    trained().save_pretrained(tmp_path)
    code = (
        "import sys, torch\n"
        "network = torch.hub.load(sys.argv[1], 'small', source='local', size=12, embedding=8)\n"
        "assert network.embedding == 8\n"
        "assert torch.hub.load(sys.argv[1], 'network', sys.argv[2], source='local').size == 12\n"
    )
    env = {**os.environ, "TORCH_HOME": str(tmp_path / "torch")}
    words = [sys.executable, "-c", code, str(ROOT), str(tmp_path)]
    ran = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
