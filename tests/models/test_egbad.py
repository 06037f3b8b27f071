# SPDX-License-Identifier: Apache-2.0
"""EGBAD."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from sklearn.datasets import load_digits

from ganomaly_plugin import EGBAD
from ganomaly_plugin.models.components import gan_loss

from .model_tester import ExportTester, ModelTester


class TestEGBAD(ModelTester, ExportTester):
    """What every model must do."""

    INFERENCE_PARAMETERS = 2_736 + 2_744 + 720 + 2_560 + 1_041_408 + 1_025  # Encoder, generator, discriminator.

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> EGBAD:
        settings: dict[str, Any] = {"n_features": 4, "latent_vec_size": 4} | kwargs
        return EGBAD(image_size=image_size, input_channels=input_channels, **settings)


def test_losses_by_hand() -> None:
    """Logits of log 3 mean a probability of three quarters."""
    logit = torch.tensor([math.log(3.0)])
    assert gan_loss.generator_loss(logit).item() == pytest.approx(-math.log(0.75))
    assert gan_loss.generator_loss(-logit).item() == pytest.approx(-math.log(0.25))
    assert gan_loss.discriminator_loss(logit, -logit).item() == pytest.approx(-2 * math.log(0.75))


@pytest.mark.parametrize("score", ["feature_matching", "cross_entropy"])
def test_score_follows_its_definition(score: Any) -> None:
    """Nine tenths of the summed error and a tenth of the discriminator's part, from the averaged networks."""
    model = EGBAD(image_size=32, n_features=4, latent_vec_size=4, score=score, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    networks = model.inference_networks
    with torch.no_grad():
        scores = model(images).pred_score
        latent = networks["encoder"](images)
        reconstructions = networks["generator"](latent)
        logits, features = networks["discriminator"](images, latent)
        if score == "feature_matching":
            second = (features - networks["discriminator"](reconstructions, latent)[1]).abs().sum(1)
        else:
            second = -logits.sigmoid().log()
    expected = 0.9 * (images - reconstructions).abs().sum((1, 2, 3)) + 0.1 * second
    torch.testing.assert_close(scores, expected)


def test_each_network_gets_its_own_gradient() -> None:
    """The gradients in one shared graph are those of three separate passes."""
    seed_everything(0)
    model = EGBAD(image_size=32, n_features=4, latent_vec_size=4, visualizer=False)
    networks: Any = model.model.networks
    networks["discriminator"].dropout.p = 0.0  # Its masks would differ from pass to pass.
    images = torch.rand(4, 3, 32, 32) * 2 - 1

    def objectives() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return model.objectives(model.losses(images))

    assert objectives().keys() == set(networks)
    expected = {
        name: torch.autograd.grad(objectives()[name], list(network.parameters())) for name, network in networks.items()
    }
    model.backward(model.joint_training.join(objectives(), networks))
    for name, network in networks.items():
        for parameter, gradient in zip(network.parameters(), expected[name], strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.slow
def test_encoder_inverts_the_generator() -> None:
    """After a short training, real digits come back far nearer to themselves than to other digits."""
    seed_everything(0)
    scans, labels = load_digits(return_X_y=True)
    digits = torch.from_numpy(scans[labels < 2]).float().view(-1, 1, 8, 8) / 8 - 1
    digits = torch.nn.functional.interpolate(digits, (28, 28), mode="bilinear")
    model = EGBAD(image_size=28, input_channels=1, n_features=16, latent_vec_size=4, lr=0.001, visualizer=False)
    optimiser = model.configure_optimizers()
    for _ in range(400):
        losses = model.train().losses(digits[torch.randint(len(digits), (16,))])
        optimiser.zero_grad()
        model.backward(model.joint_training.join(model.objectives(losses), model.model.networks))
        optimiser.step()
        model.model.update_average()
    with torch.no_grad():
        reconstructions = model.eval().model(digits).reconstruction
        error = (reconstructions - digits).abs().mean()
        error_by_chance = (reconstructions - digits[torch.randperm(len(digits))]).abs().mean()
    assert error < 0.7 * error_by_chance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 27}, "each side must be at least 28"),
        ({"score": "l2"}, "choose one of feature_matching, cross_entropy"),
        ({"weight": 1.5}, "weight is 1.5; it is a fraction, which lies in"),
        ({"lr": 0.0}, "lr is 0.0; the learning rate must be positive"),
        ({"beta2": 1.0}, "beta2 is 1.0; Adam's decay rates lie in"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        EGBAD(**arguments)
