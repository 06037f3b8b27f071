# SPDX-License-Identifier: Apache-2.0
"""Skip-GANomaly."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from ganomaly_plugin import SkipGANomaly
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.skip_ganomaly.torch_model import UNet

from .model_tester import ExportTester, ModelTester


class TestSkipGANomaly(ModelTester, ExportTester):
    """What every model must do."""

    INFERENCE_PARAMETERS = 24_747 + 2_740  # U-Net and discriminator.

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> SkipGANomaly:
        settings: dict[str, Any] = {"n_features": 4, "latent_vec_size": 4} | kwargs
        return SkipGANomaly(image_size=image_size, input_channels=input_channels, **settings)


def test_parameter_counts() -> None:
    """Networks of 64 features for 32 pixels in colour, counted by hand: 16 weights a pair of channels."""
    down = 3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 512
    up = 512 * 512 + 1024 * 256 + 512 * 128 + 256 * 64 + 128 * 3
    norms = 2 * (128 + 256 + 512) + 2 * (512 + 256 + 128 + 64)
    networks = SkipGANomaly(image_size=32, n_features=64).model.networks
    assert sum(parameter.numel() for parameter in networks["generator"].parameters()) == 16 * (down + up) + norms + 3
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 100) + 100
    discriminator = networks["discriminator"]
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == weights + 2 * (128 + 256)


def test_connections_carry_the_image_past_the_bottleneck() -> None:
    """With the innermost layer cut, the reconstruction still depends on the image."""
    seed_everything(0)
    network = UNet(Pyramid((32, 32), 1, 4, 1)).eval()
    with torch.no_grad():
        network.down[-1][0].weight.zero_()
        first, second = network(torch.rand(2, 1, 32, 32))
    assert (first - second).abs().max() > 1e-6


def test_score_follows_its_definition() -> None:
    """Nine tenths of the squared error and a tenth of that of the features, from the averaged networks."""
    model = SkipGANomaly(image_size=32, n_features=4, latent_vec_size=4, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    networks = model.inference_networks
    with torch.no_grad():
        scores = model(images).pred_score
        reconstructions = networks["generator"](images)
        features = [networks["discriminator"](batch)[1] for batch in (images, reconstructions)]
    expected = 0.9 * (images - reconstructions).square().mean((1, 2, 3)) + 0.1 * (
        features[0] - features[1]
    ).square().mean((1, 2, 3))
    torch.testing.assert_close(scores, expected)


def test_losses_by_hand() -> None:
    """The generator's is the weighted sum of three terms; the discriminator's contains none of them."""
    seed_everything(0)
    model = SkipGANomaly(image_size=32, n_features=4, latent_vec_size=4, wadv=2, wcon=3, wlat=5, visualizer=False)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    losses = model.train().losses(images)
    objectives = model.objectives(losses)
    networks = model.model.networks
    reconstructions = networks["generator"](images)
    real, real_features = networks["discriminator"](images)
    fake, fake_features = networks["discriminator"](reconstructions)
    adversarial = -fake.sigmoid().log().mean()
    pixel_error = (reconstructions - images).abs().mean()
    feature_error = (real_features - fake_features).square().mean()
    discriminator_loss = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    assert discriminator_loss.item() == pytest.approx(2 * math.log(2), rel=0.2)
    torch.testing.assert_close(objectives["generator"], 2 * adversarial + 3 * pixel_error + 5 * feature_error)
    torch.testing.assert_close(objectives["discriminator"], discriminator_loss)
    torch.testing.assert_close(losses["loss_discriminator"], discriminator_loss)

    wanted = torch.autograd.grad(discriminator_loss, list(networks["discriminator"].parameters()))
    model.backward(model.joint_training.join(objectives, networks))
    for parameter, gradient in zip(networks["discriminator"].parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 27}, "each side must be at least 28"),
        ({"wlat": -1}, "wlat is -1; it must be at least 0"),
        ({"weight": 1.5}, "weight is 1.5; it is a fraction, which lies in"),
        ({"beta1": 1.0}, "beta1 is 1.0; Adam's decay rates lie in"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        SkipGANomaly(**arguments)
