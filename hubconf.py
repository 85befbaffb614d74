"""For torch.hub: `torch.hub.load(REPOSITORY, "small")`; of a clone `torch.hub.load(FOLDER, "small", source="local")`.

The four networks, untrained, and `network`, which loads a trained one from a folder or from a repository.
"""

from lrkd.models.backbones import iresnet18, iresnet50, mobile, small
from lrkd.models.saved import from_pretrained as network

__all__ = ["iresnet18", "iresnet50", "mobile", "network", "small"]
dependencies = ["torch", "torchvision", "numpy", "scipy", "pandas", "PIL", "safetensors", "tqdm"]
