# SPDX-License-Identifier: Apache-2.0
"""The ablation's variants of GANomaly differ from it in what they say, after a short training on the digits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback, Trainer
from torch import nn

from benchmarks import ablation
from ganomaly_plugin import Digits, GANomaly
from ganomaly_plugin.models.components.joint_training import ReinitialiseCollapsed
from tests.engine import build_engine

SMALL = {"image_size": 32, "input_channels": 1, "n_features": 8, "latent_vec_size": 8, "visualizer": False}


def train(model: GANomaly, root: Path, **kwargs: Any) -> Engine:
    """Train four steps on the digits."""
    engine = build_engine(root, limit_train_batches=4, limit_test_batches=1, **kwargs)
    engine.fit(model, datamodule=Digits(root / "digits", 8, val_split_mode="none"))
    return engine


def test_learning_rate_falls_to_zero(tmp_path: Path) -> None:
    """By a quarter in each of four steps."""
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    train(ablation.DecayedLearningRate(**SMALL, lr=0.004), tmp_path, callbacks=[Watch()])
    assert rates == pytest.approx([0.004, 0.003, 0.002, 0.001])


def test_spectral_norm_is_one(tmp_path: Path) -> None:
    """Of each convolution of the discriminator, also after training steps, and of no other."""
    model = ablation.SpectralNorm(**SMALL)
    train(model, tmp_path)
    norms = {
        name: [float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)) for module in network.modules()
               if isinstance(module, nn.Conv2d)]
        for name, network in model.model.networks.items()
    }  # fmt: skip
    assert norms["discriminator"] == pytest.approx([1] * len(norms["discriminator"]), abs=0.05)
    assert max(norms["generator"]) < 0.9


def test_discriminator_is_not_reinitialised() -> None:
    """The callback that does it is missing, and no other."""
    callbacks = []
    for kind in (GANomaly, ablation.NoReinitialisation):
        model = kind(**SMALL)
        model.trainer = Trainer(accelerator="cpu", logger=False)
        callbacks.append({type(callback) for callback in model.configure_callbacks()})
    assert callbacks[0] - callbacks[1] == {ReinitialiseCollapsed}


def test_training_images_are_shifted() -> None:
    """By at most three of 32 pixels, each on its own, and scoring does not shift."""
    model = ablation.ShiftedImages(**SMALL)
    images = torch.full((64, 3, 32, 32), -1.0)
    images[:, :, 16, 16] = 1
    seen: list[torch.Tensor] = []
    model.model.networks["generator"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.losses(images)
    places = seen[0][:, 0].flatten(1).argmax(1)
    shifts = torch.stack([places // 32, places % 32]) - 16
    assert shifts.abs().max() == 3
    assert len(torch.unique(shifts, dim=1).T) > 20
    assert (seen[0].amax(dim=(1, 2, 3)) > 0.9).all()


def test_combined_score(tmp_path: Path) -> None:
    """The three errors of each image, each divided by the mean of its loss in the last epoch, added up."""
    model = ablation.CombinedScore(**SMALL, average_weights=False)
    engine = train(model, tmp_path)
    losses = {name: float(value) for name, value in engine.trainer.callback_metrics.items()}
    batch = next(iter(engine.trainer.datamodule.test_dataloader()))
    batch.image = model.pre_processor(batch.image)
    model.eval()
    with torch.no_grad():
        scores = model.test_step(batch, 0).pred_score
        generator, discriminator = (model.model.networks[name] for name in ("generator", "discriminator"))
        for number in (0, 7):
            image = model.model.space(batch.image[[number]])
            reconstruction, first, second = generator(image)
            latent = ((first - second) ** 2).mean() / losses["loss_latent"]
            pixels = (image - reconstruction).abs().mean() / losses["loss_reconstruction"]
            features = [discriminator(each)[1] for each in (image, reconstruction)]
            adversarial = ((features[0] - features[1]) ** 2).mean() / losses["loss_adversarial"]
            assert float(scores[number]) == pytest.approx(float(latent + pixels + adversarial), rel=1e-4)
