# SPDX-License-Identifier: Apache-2.0
"""f-AnoGAN."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import Folder
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import LambdaCallback, Timer

from ganomaly_plugin import FAnoGAN
from ganomaly_plugin.models.f_anogan import loss
from tests.engine import build_engine

from .conftest import build_datamodule
from .model_tester import ExportTester, ModelTester


class TestFAnoGAN(ModelTester, ExportTester):
    """What every model must do; resuming covers a stop between the phases, which change after two of four epochs."""

    INFERENCE_PARAMETERS = 2_744 + 1_224 + 2_736  # Generator, critic, encoder.

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> FAnoGAN:
        settings: dict[str, Any] = {"n_features": 4, "latent_vec_size": 4, "critic_steps": 2} | kwargs
        return FAnoGAN(image_size=image_size, input_channels=input_channels, **settings)

    def test_resumed_training_equals_uninterrupted(self, tmp_path: Path, digits_folder: Path) -> None:
        """Stopped in the first phase, between the phases and in the second: the bits of one training."""
        whole = self.train(tmp_path / "whole", build_datamodule(digits_folder), max_epochs=4).state_dict()

        class Stop(Callback):
            def __init__(self, epochs: int) -> None:
                self.epochs = epochs

            def on_train_epoch_end(self, trainer: Any, _pl_module: Any) -> None:
                trainer.should_stop = trainer.current_epoch + 1 >= self.epochs

        seed_everything(7)
        checkpoint = None
        for stop in (1, 2, 3, 4):
            resumed = self.build()
            engine = build_engine(tmp_path / str(stop), max_epochs=4, callbacks=[Stop(stop)])
            engine.fit(resumed, datamodule=build_datamodule(digits_folder), ckpt_path=checkpoint)
            checkpoint = engine.best_model_path
            seed_everything(8)
        assert resumed.gan_steps == 8
        state = resumed.state_dict()
        assert all(torch.equal(value.nan_to_num(), state[name].nan_to_num()) for name, value in whole.items())

    def test_every_parameter_gets_a_gradient(self, tmp_path: Path, datamodule: Folder) -> None:
        """The critic in every step of the first phase, the generator in every second, then the encoder alone."""
        trained: list[set[str]] = []

        class Gradients(Callback):
            def on_before_optimizer_step(self, _trainer: Any, pl_module: FAnoGAN, _optimizer: Any) -> None:
                networks = pl_module.model.networks.items()
                gradients = {name: [part.grad for part in network.parameters()] for name, network in networks}
                for name, values in gradients.items():
                    assert len({value is None for value in values}) == 1, name
                trained.append({name for name, values in gradients.items() if values[0] is not None})
                for name in trained[-1]:
                    assert all(value.any() for value in gradients[name]), name

        engine = build_engine(tmp_path, callbacks=[Gradients()], detect_anomaly=True, max_epochs=2)
        # Four channels can all be dead while the batch statistics are those of four steps.
        engine.fit(self.build(n_features=8), datamodule=datamodule)
        assert trained == [{"critic"}, {"critic", "generator"}] * 2 + [{"encoder"}] * 4


def test_losses_by_hand() -> None:
    """Critic scores of 3 and 1 for real images, and of 0 and -1 for generated ones."""
    real, generated = torch.tensor([3.0, 1.0]), torch.tensor([0.0, -1.0])
    assert loss.critic_loss(real, generated).item() == pytest.approx(-2.5)
    assert loss.generator_loss(generated).item() == pytest.approx(0.5)


def test_gradient_penalty_of_a_linear_critic() -> None:
    """A critic whose gradient has norm 5 everywhere pays 16."""
    weights = torch.zeros(1, 2, 2)
    weights[0, 0] = torch.tensor([3.0, 4.0])
    penalty = loss.gradient_penalty(lambda images: (images * weights).sum((1, 2, 3)), torch.rand(3, 1, 2, 2))
    assert penalty.item() == pytest.approx(16.0)


def test_gradient_penalty_by_finite_differences() -> None:
    """Value and slope in a weight of the real critic, each from differences of its scores alone."""
    seed_everything(0)
    model = FAnoGAN(image_size=28, input_channels=1, n_features=2, latent_vec_size=2, visualizer=False).double()
    critic: Any = model.model.networks["critic"]
    images = torch.rand(1, 1, 28, 28, dtype=torch.float64)

    def critic_score(batch: torch.Tensor) -> torch.Tensor:
        return critic(batch)[0]

    @torch.no_grad()
    def by_differences() -> float:
        step = 1e-5
        shifts = step * torch.eye(28 * 28, dtype=torch.float64).view(-1, 1, 28, 28)
        slopes = (critic_score(images + shifts) - critic_score(images - shifts)) / (2 * step)
        return float((slopes.norm() - 1) ** 2)

    penalty = loss.gradient_penalty(critic_score, images)
    assert penalty.item() == pytest.approx(by_differences(), rel=1e-5)
    penalty.backward()
    weight = critic.features[0].weight
    assert weight.grad is not None
    step = 1e-4
    values = []
    for shift in (step, -2 * step):
        with torch.no_grad():
            weight[0, 0, 0, 0] += shift
        values.append(by_differences())
    assert weight.grad[0, 0, 0, 0].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def test_score_follows_its_definition() -> None:
    """The squared error of pixels plus kappa times that of the critic's features, from the averaged networks."""
    model = FAnoGAN(image_size=32, n_features=4, latent_vec_size=4, kappa=0.5, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    networks = model.inference_networks
    with torch.no_grad():
        reconstructions = networks["generator"](networks["encoder"](images))
        features = [networks["critic"](batch)[1] for batch in (images, reconstructions)]
        expected = (images - reconstructions).square().mean((1, 2, 3))
        expected = expected + 0.5 * (features[0] - features[1]).square().mean((1, 2, 3))
        torch.testing.assert_close(model(images).pred_score, expected)


def test_second_phase_leaves_the_gan_as_it_is(tmp_path: Path, datamodule: Folder) -> None:
    """Generator and critic keep every bit, averages and batch statistics among them; the encoder learns."""
    states: list[dict[str, torch.Tensor]] = []

    class Snapshots(Callback):
        def on_train_epoch_end(self, _trainer: Any, pl_module: FAnoGAN) -> None:
            states.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})

    seed_everything(7)
    model = FAnoGAN(image_size=32, n_features=4, latent_vec_size=4, critic_steps=1, gan_fraction=0.4, visualizer=False)
    build_engine(tmp_path, max_epochs=5, callbacks=[Snapshots()]).fit(model, datamodule=datamodule)
    *_, before, after = states
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("encoder" in name or "n_averaged" in name for name in changed)
    gan = [name.removeprefix("networks.") for name in before if name.startswith(("networks.gen", "networks.crit"))]
    assert all(torch.equal(after[f"networks.{name}"], after[f"average.module.{name}"]) for name in gan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 20}, "each side must be at least 28"),
        ({"critic_steps": 0}, "critic_steps is 0; it must be at least 1"),
        ({"gan_fraction": 1.5}, "gan_fraction is 1.5; it is a fraction, which lies in"),
        ({"kappa": -1.0}, "kappa is -1.0; it must be at least 0"),
        ({"penalty": -1.0}, "penalty is -1.0; it must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        FAnoGAN(**arguments)


def test_second_fit_divides_its_own_steps(tmp_path: Path, datamodule: Folder) -> None:
    """A longer training of the same object has a longer first phase."""
    model = FAnoGAN(image_size=32, n_features=4, latent_vec_size=4, visualizer=False)
    for epochs in (2, 4):
        build_engine(tmp_path, max_epochs=epochs).fit(model, datamodule=datamodule)
        assert model.gan_steps == 2 * epochs


def test_endless_training_is_refused(tmp_path: Path, datamodule: Folder) -> None:
    """Nobody knows half of it."""
    model = FAnoGAN(image_size=32, n_features=4, latent_vec_size=4, visualizer=False)
    with pytest.raises(ValueError, match=r"set trainer.max_epochs, trainer.max_steps or trainer.max_time"):
        build_engine(tmp_path, max_epochs=-1).fit(model, datamodule=datamodule)


@pytest.mark.parametrize("limits", [{"max_epochs": -1}, {"max_epochs": None}, {"max_epochs": 100_000}], ids=str)
def test_phases_of_a_training_limited_by_time(tmp_path: Path, datamodule: Folder, limits: dict[str, Any]) -> None:
    """A clock that is set by hand: the encoder begins when the GAN has had half of the seconds."""

    class Clock(Timer):
        """A second a batch."""

        seconds = 0

        def time_elapsed(self, stage: str = "train") -> float:
            return self.seconds if stage == "train" else 0

        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            self.seconds += 1
            super().on_train_batch_end(trainer, *args, **kwargs)

    model = FAnoGAN(image_size=32, n_features=4, latent_vec_size=4, visualizer=False)
    for seconds in (10, 6):
        engine = build_engine(tmp_path, callbacks=[Clock(timedelta(seconds=seconds))], **limits)
        engine.fit(model, datamodule=datamodule)
        assert (model.gan_steps, engine.trainer.global_step) == (seconds // 2, seconds)


def test_training_without_second_phase_is_reported(
    tmp_path: Path, datamodule: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop before the encoder has begun, and none."""
    model = FAnoGAN(image_size=32, n_features=4, latent_vec_size=4, visualizer=False)
    stop = LambdaCallback(on_train_epoch_end=lambda trainer, _module: setattr(trainer, "should_stop", True))
    for epochs, reported in ((4, True), (1, False)):
        caplog.clear()
        build_engine(tmp_path, max_epochs=epochs, callbacks=[stop]).fit(model, datamodule=datamodule)
        assert ("ended after 4 steps, in its first phase" in caplog.text) == reported
