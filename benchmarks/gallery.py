# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of the documentation's gallery: test images of the quickstart, chosen by the rank of their scores.

    python -m benchmarks.gallery [--config configs/quickstart.yaml] [--output docs/gallery]

takes some minutes on two cores. Nobody chooses among the pictures: of each class it draws those with the lowest, the
median and the highest score, the false alarms and missed anomalies among them.
"""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from anomalib.engine import Engine
from PIL import Image

from ganomaly_plugin.models.components.visualizer import ReconstructionVisualizer

ROOT = Path(__file__).parents[1]
RANKS = {"lowest": 0.0, "median": 0.5, "highest": 1.0}


def main() -> None:
    """Train, score the test images, and draw six of them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gallery")
    arguments = parser.parse_args()
    engine, model, datamodule = Engine.from_config(arguments.config)
    engine.fit(model, datamodule=datamodule)
    batches: Any = engine.predict(model, datamodule=datamodule)
    scores = torch.cat([batch.raw_score for batch in batches])
    labels = torch.cat([batch.gt_label for batch in batches])
    items = [(item, shown) for batch in batches for item, shown in zip(batch, batch.reconstruction, strict=True)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    visualizer = ReconstructionVisualizer()
    for kind, chosen in (("normal", ~labels), ("anomalous", labels)):
        ranked = torch.argsort(torch.where(chosen, scores, torch.inf))[: int(chosen.sum())]
        for name, rank in RANKS.items():
            item, shown = items[int(ranked[round(rank * (len(ranked) - 1))])]
            picture = visualizer.draw(item, shown).reduce(2).convert("P", palette=Image.Palette.ADAPTIVE)
            picture.save(arguments.output / f"{kind}_{name}.png", optimize=True)
            print(f"{kind}, {name} score: {item.image_path}, {float(item.pred_score):.3f}")


if __name__ == "__main__":
    main()
