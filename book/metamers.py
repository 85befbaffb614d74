"""Write what no student can learn: `python -m book.metamers`, after study `answer --part length`.

metamers.csv: a row a face of world 0 and a network. Of each small image others are drawn that look the same, people and
circumstances alike, and their sharp renders are shown to the teacher: the scatter of its embeddings is what no student
can learn from the small image, the rest of a student's distance what it has not learned.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import chi2
from tqdm.auto import tqdm

from book import ceiling, known
from book.kit.ideal_observer import metamers
from lrkd.evaluation.embedding import embed
from lrkd.study import presets
from lrkd.study.experiment import commit, device_name
from lrkd.study.results import write_table


def drawn(of: ceiling.World, row: int, side: int, draws: int) -> np.ndarray:
    """Numbers of images that look like one at a side, and last what each leaves of it: (draws,D+K+1)."""

    def make() -> np.ndarray:
        rows = np.repeat(row, draws)
        found, left = metamers(
            lambda z: of.drawn(z, of.scale.size, side),
            ceiling.shrunk(of.faces.batch(rows).float() / 255, side),
            of.numbers(rows),
            of.noise_at(side),
            torch.Generator().manual_seed(int(row)),
            step=1e-3,
        )
        return torch.cat([found, left[:, None]], 1).numpy()

    return ceiling.kept_or(ceiling.cache_dir() / f"alike-{of.faces.digest}" / f"{side}-{draws}-{row}.npy", make)


def split(own: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Split the expected distances of an embedding (D,) to targets (M,D) into what stays for the best and the rest.

    No vector is nearer to the targets, by the cosine, than their mean direction, and by the squared L2 than their mean.
    length: the mean target's, as a share of the targets' own.
    """
    unit, at = targets / np.linalg.norm(targets, axis=1, keepdims=True), own / np.linalg.norm(own)
    mean = targets.mean(0)
    cos, l2 = 1 - np.linalg.norm(unit.mean(0)), np.square(targets - mean).sum(1).mean()
    return {
        "cosine_fixed": float(cos),
        "cosine_open": float((1 - unit @ at).mean() - cos),
        "l2_fixed": float(l2),
        "l2_open": float(np.square(own - mean).sum()),
        "length": float(np.linalg.norm(mean) / np.linalg.norm(targets, axis=1).mean()),
        "own_length": float(np.linalg.norm(own) / np.linalg.norm(targets, axis=1).mean()),
    }


def rows(of: ceiling.World, epochs: int, faces: int, draws: int) -> pd.DataFrame:
    """Make metamers.csv without its provenance."""
    side, size = of.scale.sides[-1], of.scale.size
    images = ceiling.genuine(of, faces)[0]
    limit = float(np.sqrt(chi2.ppf(0.999, 3 * side**2) / (3 * side**2)))  # noise alone leaves more once in a thousand
    found = [drawn(of, row, side, draws) for row in tqdm(images, desc="metamers", unit="face")]
    accepted = [one[one[:, -1] < limit, :-1] for one in found]
    networks = list(known.networks(of.scale, of.number, epochs))
    teacher = next(network for told, network, _ in networks if told["role"] == "teacher")
    table: list[dict[str, Any]] = []
    for row, numbers in zip(images, accepted, strict=True):
        if len(numbers) < 2:
            continue
        sharp = of.drawn(torch.from_numpy(numbers).float(), size, size).detach().clamp(0, 1)
        pixels = (255 * sharp).round().byte().permute(0, 2, 3, 1).numpy()
        targets = embed(teacher, pixels, mirror=False)
        d = of.identity.shape[1]
        about: dict[str, Any] = {"world": of.number, "image": int(row), "draws": draws, "accepted": len(numbers)}
        # Of the person's numbers: the draws' variance, and that of the linear posterior, which they should have.
        about["spread"] = float(numbers[:, :d].var(0, ddof=1).mean())
        about["posterior"] = float(1 - np.diagonal(ceiling.shares(of, int(row))[-1])[:d].mean())
        for told, network, shown in networks:
            if told["side"] == side:
                own = embed(network, of.faces.images[row : row + 1], side=shown, mirror=False)[0]
                table.append({**about, **told, **split(own, targets)})
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--epochs", type=int, default=12, help="how long the runs were trained (default: 12)")
    parser.add_argument("--faces", type=int, default=24)
    parser.add_argument("--draws", type=int, default=16, help="others that look like each (default: 16)")
    parser.add_argument("--out", type=Path, default=ceiling.RESULTS, help="folder of the table")
    asked = parser.parse_args()
    scale = presets.scale(asked.scale)
    table = rows(ceiling.world(scale, 0), asked.epochs, asked.faces, asked.draws)
    known_of = {"data": "procedural", "scale": scale.name, "device": device_name("cpu"), "torch": torch.__version__}
    write_table(asked.out / "metamers.csv", table.assign(**known_of, commit=commit()))


if __name__ == "__main__":
    main()
