# SPDX-License-Identifier: Apache-2.0
"""The variational autoencoder."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ganomaly_plugin import VAE
from ganomaly_plugin.models.vae import loss

from .model_tester import ExportTester, ModelTester


class TestVAE(ModelTester, ExportTester):
    """What every model must do."""

    INFERENCE_PARAMETERS = 4_752 + 2_936  # An encoder to 8 numbers, a decoder to 6 channels.

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> VAE:
        settings: dict[str, Any] = {"n_features": 4, "latent_vec_size": 4, "n_samples": 3} | kwargs
        return VAE(image_size=image_size, input_channels=input_channels, **settings)


def test_losses_equal_those_of_distributions() -> None:
    """torch.distributions gives the same densities and divergences."""
    images, mean, std = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4) + 0.1
    torch.testing.assert_close(loss.gaussian_nll(images, mean, std), -Normal(mean, std).log_prob(images))
    latent, log_variance = torch.randn(3, 5, 1, 1), torch.randn(3, 5, 1, 1)
    expected = kl_divergence(Normal(latent, (log_variance / 2).exp()), Normal(0, 1)).sum((1, 2, 3))
    torch.testing.assert_close(loss.kl_divergence(latent, log_variance), expected)


def test_score_is_the_reconstruction_probability() -> None:
    """Computed here sample by sample with torch.distributions, above the smallest value that the floor allows."""
    model = VAE(image_size=32, n_features=4, latent_vec_size=4, n_samples=3, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        prediction = model(images)
        expected = []
        for image in images.split(1):
            latent, log_variance = model.autoencoder.encode(image)
            densities = []
            for noise in model.noise:
                mean, std = model.autoencoder.decode(latent + (log_variance / 2).exp() * noise)
                densities.append(Normal(mean, std).log_prob(image).mean())
            expected.append(-torch.stack(densities).mean() - math.log(0.1 * math.sqrt(2 * math.pi)))
    torch.testing.assert_close(prediction.pred_score, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_floor_bounds_the_score() -> None:
    """A constant image, reconstructed without error and with the smallest standard deviation, scores zero."""
    model = VAE(image_size=32, n_features=4, latent_vec_size=4, n_samples=3, visualizer=False).eval().model
    image = torch.full((1, 3, 32, 32), 0.5)
    outputs = torch.full((3, 6, 32, 32), math.atanh(0.5))
    outputs[:, 3:] = -50  # Softplus makes nothing of it.
    model.autoencoder.decoder.forward = lambda _codes: outputs
    with torch.no_grad():
        prediction = model(image)
    assert prediction.pred_score.item() == pytest.approx(0, abs=1e-5)
    assert prediction.anomaly_map.min() >= -1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (64, 20)}, "each side must be at least 28"),
        ({"n_samples": 0}, "n_samples is 0; it must be at least 1"),
        ({"minimum_std": 0.0}, "minimum_std is 0.0; it must be at least 0.001"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)
