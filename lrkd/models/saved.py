"""A trained network as one file that says how it is built, and as a folder that people share."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from lrkd.errors import ConfigError, DataError, RunError, first_line, needed
from lrkd.files import read_json, write_json, write_whole
from lrkd.models import backbones
from lrkd.models.checkpoints import differences
from lrkd.models.heads import Head
from lrkd.models.layers import Network

FILE = "model.safetensors"


def save_model(path: Path, network: Network, head: Head | None, config: Mapping[str, Any]) -> None:
    """Write network and head as one safetensors file that carries its config, from which it can be rebuilt alone."""
    tensors = {f"network.{key}": value.contiguous().cpu() for key, value in network.state_dict().items()}
    if head is not None:
        tensors |= {f"head.{key}": value.contiguous().cpu() for key, value in head.state_dict().items()}
    write_whole(path, safetensors_bytes(tensors, {"config": json.dumps(config, sort_keys=True)}))


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the config of a file written by `save_model`.

    Raises:
        RunError: It is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads(file.metadata()["config"])
            return {key: file.get_tensor(key) for key in file.keys()}, config  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: expected a model written by lrkd ({error})") from error


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of the "network" or the "head" of a file, under their own names."""
    return {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}


def load_network(path: Path, built: Network | None = None) -> Network:
    """Rebuild the network of a file that `save_model` wrote, in evaluation mode.

    What the file's config asks for is compared with the file's own tensors before memory is taken for it.

    Args:
        path: The file.
        built: A network as the file's, where a user's function makes it.

    Raises:
        ConfigError: The network is of a user's function, and not given.
        RunError: It is no such file, or its tensors do not fit its config.
    """
    tensors, config = load_model(path)
    state, model = part_of(tensors, "network"), config.get("model")
    if built is None and isinstance(model, Mapping) and "function" in model:
        raise ConfigError(
            f"{path}: is of a network from {model['function']}: `lrkd.study.experiment.load` opens its run"
        )
    try:
        if built is None:
            assert isinstance(model, Mapping)
            if sum(model.get("depths", ())) > len(state):
                raise ValueError(f"{sum(model['depths'])} blocks, but {len(state)} tensors")
            with torch.device("meta"):
                wanted = {name: tuple(value.shape) for name, value in backbones.build(**model).state_dict().items()}
            if said := differences(wanted, state):
                raise ValueError(said)
            built = backbones.build(**model)
        built.load_state_dict(state)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: its tensors do not fit its config ({first_line(error)})") from error
    return built.eval()


def is_shared(folder: Path) -> bool:
    """Tell whether a folder is one of `save_pretrained`, or a copy of a repository, and not a run's."""
    return (folder / FILE).is_file() and not any((folder / name).exists() for name in ("result.json", "metrics.csv"))


def from_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Network:
    """Load a network from a folder that holds it, such as a run's, or from a repository of the Hugging Face Hub.

    Args:
        source: The folder, for which no network and no further package is needed, or the repository's name.
        revision: A branch, tag or commit of the repository.
        token: For a repository that is not public.

    Returns:
        The network, in evaluation mode; its `origin` says what it was trained for.

    Raises:
        ConfigError: No such folder, and no huggingface_hub; or the network is of a user's function.
        DataError: The repository cannot be read.
        RunError: The file in it is none of lrkd's.
    """
    folder = Path(source)
    named = len(folder.parts) == 2 and folder.parts[0][0] not in "./~"  # a repository may have that name
    if not folder.is_dir() and (folder.is_file() or not named):
        raise ConfigError(f"{source}: expected a folder that has {FILE}, or a repository OWNER/NAME")
    if not folder.is_dir():
        with needed(f"{source}: there is no such folder, and a repository", "hub"):
            from huggingface_hub import hf_hub_download
        try:
            folder = Path(hf_hub_download(str(source), FILE, revision=revision, token=token)).parent
        except (OSError, ValueError) as error:  # the hub's errors are OSErrors, that of a name ValueErrors
            said = first_line(error)
            raise DataError(f"{source}: expected a folder, or a repository that has {FILE} ({said})") from error
    network = load_network(folder / FILE)
    network.origin = load_model(folder / FILE)[1]
    if (folder / "result.json").is_file():
        network.origin["measures"] = read_json(folder / "result.json").get("measures", {})
    return network


def save_pretrained(network: Network, folder: str | os.PathLike[str]) -> None:
    """Write a network, its configuration and a model card into a folder, from which `from_pretrained` loads it.

    Raises:
        ConfigError: The network is not of `lrkd.models.backbones`, or the folder is a run's.
        RunError: A file cannot be written.
    """
    if "model" not in network.origin:
        kind = type(network).__name__
        raise ConfigError(f"expected a network that lrkd.models.backbones built, got {kind}: `lrkd export` takes any")
    place = Path(folder)
    if (place / "result.json").exists():
        raise ConfigError(f"{place}: is a run's folder, which can be shared as it is: expected another folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{place}: expected a folder, or a name for one ({error.strerror})") from error
    save_model(place / FILE, network, None, network.origin)
    write_json(place / "config.json", network.origin)
    write_whole(place / "README.md", card(network).encode())


def push_to_hub(network: Network, repo_id: str, **options: Any) -> str:
    """Write a network to a repository of the Hugging Face Hub, by huggingface_hub's mixin.

    Args:
        network: As `save_pretrained` takes it.
        repo_id: The repository, which is made where it is not there.
        options: Of `ModelHubMixin.push_to_hub`, such as private, branch, token and commit_message.

    Returns:
        The address of the commit.
    """
    with needed("sharing a network", "hub"):
        from huggingface_hub import ModelCard, ModelHubMixin

    class Shared(ModelHubMixin, library_name="lrkd"):
        def _save_pretrained(self, save_directory: Path) -> None:
            save_pretrained(network, save_directory)

        def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
            return ModelCard(card(network))

    return str(Shared().push_to_hub(repo_id, **options))


def card(network: Network) -> str:
    """Return a model card: what the network takes and gives, how it was trained, what it is not for."""
    told, model = network.origin, network.origin.get("model", {})
    source, method = told.get("data", {}).get("source"), told.get("method", {}).get("name")
    rendered = source == "procedural"
    data = "faces that lrkd renders, of no person" if rendered else source
    right = (told.get("measures") or {}).get("test", {}).get("accuracy")
    rows = {
        "input": f"RGB (B,3,{network.size},{network.size}) in [-1,1]",
        "output": f"embedding (B,{network.embedding}), compared by its cosine",
        "network": f"{model.get('name')}, {sum(weight.numel() for weight in network.parameters()):,} weights",
        "method": method,
        "trained for": f"{told['side']} pixels a side" if told.get("side") else None,
        "data": data,
        "accuracy": None if right is None else f"{right:.1%} of the test pairs of {data}, seen as it was trained for",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    limits = "It does not recognise photographs: it has seen rendered faces alone.\n" if rendered else ""
    return f"""---
library_name: lrkd
license: {"apache-2.0" if rendered else "other"}
tags: [face-recognition, knowledge-distillation, low-resolution]
---
# A face recognition network for {network.size} pixels

| | |
|---|---|
{table}

```python
from lrkd.models.layers import Network

network = Network.from_pretrained("FOLDER OR REPOSITORY")
embedding = network(images).embedding
```

{limits}Its figures say nothing of its fitness for identifying people.
"""
