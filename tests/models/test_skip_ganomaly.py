# SPDX-License-Identifier: Apache-2.0
"""Skip-GANomaly."""

import math
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import seed_everything

from ganomaly_plugin import SkipGANomaly
from ganomaly_plugin.models.components.dcgan import Pyramid
from ganomaly_plugin.models.skip_ganomaly.torch_model import FeatureDiscriminator, UNet

from .model_tester import ExportTester, ModelTester


class TestSkipGANomaly(ModelTester, ExportTester):
    """What every model must do."""

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> SkipGANomaly:
        settings: dict[str, Any] = {"n_features": 4, "latent_vec_size": 4} | kwargs
        return SkipGANomaly(image_size=image_size, input_channels=input_channels, **settings)


def test_parameter_counts() -> None:
    """Networks of 64 features for 32 pixels in colour, counted by hand: 16 weights a pair of channels."""
    down = 3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 512
    up = 512 * 512 + 1024 * 256 + 512 * 128 + 256 * 64 + 128 * 3
    norms = 2 * (128 + 256 + 512) + 2 * (512 + 256 + 128 + 64)
    pyramid = Pyramid((32, 32), 3, 64, 100)
    generator = UNet(pyramid)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 16 * (down + up) + norms + 3
    discriminator = FeatureDiscriminator(pyramid)
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 100) + 100
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
    networks: Any = model.average.module
    with torch.no_grad():
        scores = model(images).pred_score
        rebuilt = networks.generator(images)
        features = [networks.discriminator(batch)[1] for batch in (images, rebuilt)]
    expected = 0.9 * (images - rebuilt).square().mean((1, 2, 3)) + 0.1 * (features[0] - features[1]).square().mean(
        (1, 2, 3)
    )
    torch.testing.assert_close(scores, expected)


def test_losses_by_hand() -> None:
    """The generator's is the weighted sum of three terms; the discriminator's has no part of them."""
    seed_everything(0)
    model = SkipGANomaly(image_size=32, n_features=4, latent_vec_size=4, wadv=2, wcon=3, wlat=5, visualizer=False)
    logged: dict[str, torch.Tensor] = {}
    model.log_losses = lambda losses, *_: logged.update(losses)  # type: ignore[method-assign]
    batch = ImageBatch(image=torch.rand(4, 3, 32, 32) * 2 - 1)
    output = model.train().training_step(batch, 0)
    networks = model.model.networks
    rebuilt = networks.generator(batch.image)
    (real, real_features), (fake, fake_features) = networks.discriminator(batch.image), networks.discriminator(rebuilt)
    fooling = -fake.sigmoid().log().mean()
    of_pixels = (rebuilt - batch.image).abs().mean()
    of_features = (real_features - fake_features).square().mean()
    judging = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    assert judging.item() == pytest.approx(2 * math.log(2), rel=0.2)
    expected = torch.stack([2 * fooling + 3 * of_pixels + 5 * of_features, judging])
    torch.testing.assert_close(output["loss"], expected)
    torch.testing.assert_close(logged["loss_discriminator"], judging)

    wanted = torch.autograd.grad(judging, list(networks.discriminator.parameters()))
    model.backward(output["loss"])
    for parameter, gradient in zip(networks.discriminator.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 27}, "each side must be at least 28"),
        ({"wlat": -1}, "wlat is -1; it must be at least 0"),
        ({"weight": 1.5}, "weight is 1.5; it is a share, which lies in"),
        ({"beta1": 1.0}, "beta1 is 1.0; Adam's decay rates lie in"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        SkipGANomaly(**arguments)
