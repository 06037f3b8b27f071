# SPDX-License-Identifier: Apache-2.0
"""A plain restatement of GANomaly's public code, as the reference of tests and benchmarks.

It follows the code of August 2019 and later in networks, losses and order of work: four discriminator passes a step, a
generator step whose backward pass also fills the discriminator's gradients, then a discriminator step from predictions
made before the generator moved. Its networks share nothing with the package, so that agreement between the two means
something.

As a program it gives the public code's image AUROCs on the images of a comparison, for as many epochs: MNIST scaled by
mean 0.1307 and standard deviation 0.3081, batch statistics at test time, mean-square latent score. The test set is
shuffled, so that batch statistics cannot give the labels away.

    python -m benchmarks.official_ganomaly [--config configs/compare/mnist_small.yaml] [--seed 0] [--output CSV]
"""

import argparse
from math import log2
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from pandas import DataFrame
from rich.progress import track
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from ganomaly_plugin.compare.comparison import load
from ganomaly_plugin.compare.grid import Run
from ganomaly_plugin.compare.run import build_datamodule
from ganomaly_plugin.compare.summary import epoch_figures

SIZE = 32
SCALING = {1: (0.1307, 0.3081), 3: (0.5, 0.5)}
"""Mean and standard deviation of the public code's normalisation, by the number of channels."""


def encoder(size: int, channels: int, width: int, outputs: int) -> list[nn.Module]:
    """Layers from a square image, whose side is a power of two, to ``outputs`` numbers."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for _ in range(int(log2(size)) - 3):
        layers += [
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width *= 2
    return [*layers, nn.Conv2d(width, outputs, 4, 1, 0, bias=False)]


def decoder(size: int, channels: int, width: int, inputs: int) -> list[nn.Module]:
    """Layers from ``inputs`` numbers to a square image."""
    width *= size // 8
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(inputs, width, 4, 1, 0, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    for _ in range(int(log2(size)) - 3):
        layers += [
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
        ]
        width //= 2
    return [*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]


def initialise(layer: nn.Module) -> None:
    """Initialise a layer's weights as DCGAN does."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)


class OfficialGANomaly(nn.Module):
    """Networks, optimisers and one training step.

    Args:
        size: Side of the square images, a power of two from 32 up.
        channels: Channels of the images.
        width: Channels after the first convolution.
        latent: Length of the latent code.
    """

    def __init__(self, size: int, channels: int, width: int = 64, latent: int = 100) -> None:
        super().__init__()
        self.encoder1 = nn.Sequential(*encoder(size, channels, width, latent))
        self.decoder = nn.Sequential(*decoder(size, channels, width, latent))
        self.encoder2 = nn.Sequential(*encoder(size, channels, width, latent))
        *features, classifier = encoder(size, channels, width, 1)
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(classifier, nn.Sigmoid())
        self.apply(initialise)
        generator = [self.encoder1, self.decoder, self.encoder2]
        self.optimizer_g = self._adam(generator)
        self.optimizer_d = self._adam([self.features, self.classifier])

    @staticmethod
    def _adam(networks: list[nn.Sequential]) -> torch.optim.Adam:
        parameters = [parameter for network in networks for parameter in network.parameters()]
        return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))

    def step(self, images: torch.Tensor) -> None:
        """Train on one batch ``(B, C, H, W)``."""
        latent = self.encoder1(images)
        reconstructions = self.decoder(latent)
        latent_of_reconstruction = self.encoder2(reconstructions)
        real = self.classifier(self.features(images)).flatten()
        fake = self.classifier(self.features(reconstructions.detach())).flatten()

        self.optimizer_g.zero_grad()
        adversarial = (self.features(images) - self.features(reconstructions)).square().mean()
        contextual = (images - reconstructions).abs().mean()
        encoding = (latent - latent_of_reconstruction).square().mean()
        (adversarial + 50 * contextual + encoding).backward(retain_graph=True)
        self.optimizer_g.step()

        self.optimizer_d.zero_grad()
        bce = nn.functional.binary_cross_entropy
        loss_d = (bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2
        loss_d.backward()
        self.optimizer_d.step()
        if loss_d.item() < 1e-5:
            self.features.apply(initialise)
            self.classifier.apply(initialise)

    @torch.no_grad()
    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Mean squared distance of the two codes ``(B,)``, in whichever mode the batch-norm layers are."""
        latent = self.encoder1(images)
        return (latent - self.encoder2(self.decoder(latent))).square().flatten(1).mean(1)


def train(run: Run) -> list[float]:
    """Train on the images of a comparison's run, and return the image AUROC after each epoch."""
    seed_everything(run.seed, verbose=False)
    channels = run.model_config["init_args"].get("input_channels", 3)
    mean, std = SCALING[channels]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    datamodule = build_datamodule(run)
    datamodule.setup()
    for data in (datamodule.train_data, datamodule.test_data):
        data.augmentations = Resize((SIZE, SIZE), antialias=True)

    def prepare(batch: Any) -> torch.Tensor:
        return ((batch.image[:, :channels] - mean) / std).to(device)

    # The layout changes the speed on a CPU, not what is computed.
    model = OfficialGANomaly(SIZE, channels).to(device).to(memory_format=torch.channels_last)
    test = datamodule.test_data
    shuffled = DataLoader(test, datamodule.eval_batch_size, shuffle=True, collate_fn=test.collate_fn)
    aurocs = []
    for _ in track(range(run.trainer["max_epochs"]), run.category):
        for batch in datamodule.train_dataloader():
            model.step(prepare(batch))
        batches = list(shuffled)
        scores = torch.cat([model.score(prepare(batch)) for batch in batches])  # In training mode, as the code is.
        labels = torch.cat([batch.gt_label for batch in batches])
        aurocs.append(float(roc_auc_score(labels, scores.double().cpu())))
    return aurocs


def main() -> None:
    """Train once for each category of the comparison, and write a line for each into a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/compare/mnist_small.yaml"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("official.csv"))
    arguments = parser.parse_args()

    grid = load(arguments.config)
    rows: list[dict[str, Any]] = []
    for run in grid.runs:
        if (run.model, run.seed) == (grid.reference, arguments.seed):
            epochs = train(run)
            figures = {"image_AUROC": epochs[-1]} | epoch_figures(epochs)
            rows.append({"dataset": run.dataset, "category": run.category, "seed": run.seed, **figures})
            DataFrame(rows).to_csv(arguments.output, index=False)
    print(DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
