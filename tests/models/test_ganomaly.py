# SPDX-License-Identifier: Apache-2.0
"""GANomaly against the shared requirements and against values worked out by hand."""

import copy
import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.models import Ganomaly as StockGanomaly
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, Dataset

from benchmarks.official_ganomaly import OfficialGANomaly
from ganomaly_plugin import Digits
from ganomaly_plugin.models.components import averaging, gan_loss, joint_training, scores
from ganomaly_plugin.models.components.space import Pixels
from ganomaly_plugin.models.ganomaly import GANomaly, loss
from tests.engine import build_engine

from . import ddp_step
from .conftest import build_datamodule
from .model_tester import ExportTester, ModelTester, write_onnx_once


class TestGANomaly(ModelTester, ExportTester):
    """The shared requirements."""

    INFERENCE_PARAMETERS = 2 * 4_752 + 4_760  # Two encoders (192 + 528 + 4,032), a decoder.

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> GANomaly:
        """A GANomaly a sixteenth as wide as the paper's."""
        settings = {"n_features": 4, "latent_vec_size": 8, "max_features": 16} | kwargs
        return GANomaly(image_size=image_size, input_channels=input_channels, **settings)


class TestGreyExports(ExportTester):
    """The exports of a model that turns images grey."""

    INFERENCE_PARAMETERS = 2 * 4_624 + 4_632  # The same without two channels of 4 x 16 weights each.

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 1, **kwargs: Any) -> GANomaly:
        """The same with one channel."""
        return TestGANomaly().build(image_size, input_channels, **kwargs)


def parameter_count(network: torch.nn.Module) -> int:
    """Count a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("size", "channels", "generator", "discriminator"),
    [(32, 3, 3_206_528, 663_296), (32, 1, 3_200_384, 661_248), (64, 3, 10_729_856, 2_765_568)],
)
def test_parameter_counts_of_the_paper(size: int, channels: int, generator: int, discriminator: int) -> None:
    """The default widths leave the paper's sizes as they are."""
    model = GANomaly(image_size=size, input_channels=channels)
    assert parameter_count(model.model.networks["generator"]) == generator
    assert parameter_count(model.model.networks["discriminator"]) == discriminator


@pytest.mark.slow
def test_parameter_counts_at_256_pixels() -> None:
    """Unbounded, 256 px doubles to the size of the official networks; the cap cuts it to a quarter."""
    model = GANomaly(image_size=256, max_features=None)
    assert parameter_count(model.model.networks["generator"]) == 143_950_208
    assert parameter_count(model.model.networks["discriminator"]) == 44_739_328
    capped = GANomaly(image_size=256)
    assert parameter_count(capped.model.networks["generator"]) == 35_901_824


def test_torch_export_holds_the_generator_alone(tmp_path: Path) -> None:
    """The paper's networks for 32 px have 3.2 M parameters in the generator, averaged or not."""
    for average in (True, False):
        model = GANomaly(image_size=32, average_weights=average)
        exported = torch.load(model.to_torch(tmp_path), weights_only=False)["model"]
        assert parameter_count(exported) == 3_206_528


def test_initialisation_reaches_every_layer() -> None:
    """Convolutions have no bias and N(0, 0.02) weights, batch norms N(1, 0.02) weights and zero biases."""
    model = GANomaly(image_size=32)
    for network in model.model.networks.values():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                assert layer.bias is None
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            elif isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.4)
                assert not layer.bias.any()


def test_encoders_hold_distinct_weights() -> None:
    """The two encoders are alike in shape and share nothing."""
    generator: Any = GANomaly(image_size=32).model.networks["generator"]
    ids = {id(parameter) for parameter in generator.encoder1.parameters()}
    assert ids.isdisjoint({id(parameter) for parameter in generator.encoder2.parameters()})


def test_losses_by_hand() -> None:
    """Each loss on numbers small enough for paper and pencil."""
    two = torch.tensor([[0.0, 2.0]])
    zero = torch.tensor([[0.0, 0.0]])
    assert loss.feature_matching_loss(two, zero).item() == 2
    assert loss.reconstruction_loss(two, zero).item() == 1
    assert loss.latent_loss(two, zero).item() == 2
    # sigmoid(log 3) = 3/4: calling it real costs -log 3/4, calling it fake -log 1/4.
    logit = torch.tensor([math.log(3)])
    assert gan_loss.generator_loss(logit).item() == pytest.approx(-math.log(0.75))
    expected = (-math.log(0.75) - math.log(0.25)) / 2
    assert loss.discriminator_loss(logit, logit).item() == pytest.approx(expected)


def test_scores_by_hand() -> None:
    """Scores and map on numbers small enough for paper and pencil."""
    latent, other = torch.tensor([1.0, -3.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    assert scores.latent_l1_score(latent, other).tolist() == [2]
    assert scores.latent_l2_score(latent, other).tolist() == [5]
    assert scores.latent_whitened_score(latent, other, torch.diag(torch.tensor([2.0, 1.0]))).tolist() == [6.5]
    white, black = torch.ones(1, 3, 28, 28), -torch.ones(1, 3, 28, 28)
    assert (Pixels((28, 28), 3, 2.0).error(white, black) == 1).all()


@pytest.mark.parametrize("score", ["latent_l1", "latent_l2", "latent_relative", "reconstruction"])
def test_score_follows_its_definition(score: str) -> None:
    """The model's score is what the paper, its code or the map say, computed here from the generator's output."""
    model = GANomaly(image_size=32, n_features=4, score=score, map_sigma=0.1).model.eval()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        reconstructions, latent, latent_of_reconstruction = model.average.module["generator"](images)
        prediction = model(images)
    difference = (latent - latent_of_reconstruction).flatten(1)
    error = (images - reconstructions).abs() / 2
    expected = {
        "latent_l1": difference.norm(p=1, dim=1) / 100,
        "latent_l2": difference.norm(dim=1) ** 2 / 100,
        "latent_relative": (difference.square().sum(1) / latent.flatten(1).square().sum(1)).sqrt(),
        "reconstruction": error.mean(dim=(1, 2, 3)),
    }
    torch.testing.assert_close(prediction.pred_score, expected[score])
    torch.testing.assert_close(prediction.anomaly_map, error.mean(1, keepdim=True))


def test_whitening_undoes_scale_and_correlation() -> None:
    """Differences with a known covariance have the identity as covariance afterwards, and a mean score of 1."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[3.0, 0.0], [1.0, 0.5]])
    differences = torch.randn(100_000, 2, generator=generator) @ mixing.T
    whitening = scores.whitening_matrix(differences.T @ differences / len(differences), ridge=0)
    torch.testing.assert_close(whitening @ whitening.T, torch.linalg.inv(mixing @ mixing.T), rtol=0.02, atol=0.01)
    torch.testing.assert_close((differences @ whitening).T.cov(), torch.eye(2), rtol=0, atol=0.01)
    latent = differences.view(-1, 2, 1, 1)
    score = scores.latent_whitened_score(latent, torch.zeros_like(latent), whitening)
    assert score.mean().item() == pytest.approx(1, abs=1e-4)
    degenerate = scores.whitening_matrix(torch.zeros(2, 2))
    assert degenerate.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "validates"),
    [
        ({}, True),
        ({"check_val_every_n_epoch": 2, "max_epochs": 3}, True),
        ({"limit_val_batches": 0}, True),
        ({}, False),
    ],
)
def test_whitening_is_measured_on_the_training_images(
    tmp_path: Path, datamodule: Folder, arguments: dict[str, Any], validates: bool
) -> None:
    """After training, the matrix whitens the training images' second moments with 1 % of ridge.

    It belongs to the last weights, whether or not a validation has seen them.
    """
    seed_everything(5)
    if not validates:
        datamodule = copy.copy(datamodule)
        datamodule.val_dataloader = lambda: []
    model = GANomaly(image_size=32, n_features=4, latent_vec_size=3, score="latent_whitened")
    build_engine(tmp_path, **arguments).fit(model, datamodule=datamodule)
    model.eval()
    with torch.no_grad():
        images = torch.cat([model.pre_processor(batch.image) for batch in datamodule.train_dataloader()])
        differences = model.model.latent_difference(images).double().numpy()
    moments = differences.T @ differences / len(differences)
    expected = np.linalg.inv(moments + 0.01 * moments.diagonal().mean() * np.eye(3))
    whitening = model.model.whitening.double().numpy()
    np.testing.assert_allclose(whitening @ whitening.T, expected, rtol=1e-3)
    other = GANomaly(image_size=32, n_features=4, latent_vec_size=3)
    checkpoint = tmp_path / "other.ckpt"
    build_engine(tmp_path / "other").fit(other, datamodule=datamodule)
    other.trainer.save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="trained for another score than latent_whitened"):
        GANomaly.load_from_checkpoint(checkpoint, score="latent_whitened")
    assert GANomaly.load_from_checkpoint(checkpoint, score="latent_l2").hparams["score"] == "latent_l2"


class Batches(Dataset):
    """Ready batches of images, for the trainer to take as they are."""

    def __init__(self, *batches: torch.Tensor) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ImageBatch:
        return ImageBatch(image=self.batches[index].clone(), gt_label=torch.zeros(len(self.batches[index])).long())

    def loader(self) -> DataLoader:
        """A loader in the given order."""
        return DataLoader(self, batch_size=None)


def train_on(model: GANomaly, *batches: torch.Tensor, **kwargs: Any) -> GANomaly:
    """Train one epoch on ready batches in [-1, 1]."""
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False} | kwargs
    trainer = Trainer(
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, barebones=False, **settings
    )
    trainer.fit(model, train_dataloaders=Batches(*batches).loader())
    return model


def bare_model(**kwargs: Any) -> GANomaly:
    """A narrow GANomaly that takes images as they are."""
    settings: dict[str, Any] = {"image_size": 32, "n_features": 8, "latent_vec_size": 10} | kwargs
    return GANomaly(pre_processor=False, evaluator=False, visualizer=False, **settings)


def discriminator_of(model: GANomaly) -> Any:
    """The discriminator in training."""
    return model.model.networks["discriminator"]


def official_twin(model: GANomaly) -> OfficialGANomaly:
    """The official code's networks with the model's weights."""
    official = OfficialGANomaly(32, 3, width=8, latent=10)
    ours = model.model.networks.state_dict().values()
    official.load_state_dict(dict(zip(official.state_dict(), ours, strict=True)))
    return official


def test_training_equals_the_official_order() -> None:
    """Five steps with two shared discriminator passes move the weights as the official order's four passes do."""
    seed_everything(3)
    batches = [torch.rand(6, 3, 32, 32) * 2 - 1 for _ in range(5)]
    model = bare_model()
    official = official_twin(model)
    initial = [value.clone() for value in official.state_dict().values()]
    train_on(model, *batches)
    for batch in batches:
        official.step(batch)
    ours = list(model.model.networks.parameters())
    moved = 0.0
    for before, expected, actual in zip(
        (
            value
            for value, name in zip(initial, official.state_dict(), strict=True)
            if "running" not in name and "num_batches" not in name
        ),
        official.parameters(),
        ours,
        strict=True,
    ):
        moved = max(moved, (expected - before).abs().max().item())
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    assert moved > 5e-4


def test_gradient_accumulation_averages_the_batches() -> None:
    """Two accumulated batches move the weights as one step with the mean of their gradients does."""
    seed_everything(3)
    first, second = (torch.rand(4, 3, 32, 32) * 2 - 1 for _ in range(2))
    model = bare_model()
    twin = copy.deepcopy(model)
    train_on(model, first, second, accumulate_grad_batches=2)
    optimizer = twin.configure_optimizers()
    for batch in (first, second):
        networks = twin.model.networks
        reconstructions, latent, other = networks["generator"](batch)
        real, fake = networks["discriminator"](batch), networks["discriminator"](reconstructions)
        generator_loss = (
            loss.feature_matching_loss(real[1], fake[1])
            + 50 * loss.reconstruction_loss(batch, reconstructions)
            + loss.latent_loss(latent, other)
        )
        objectives = {"generator": generator_loss, "discriminator": loss.discriminator_loss(real[0], fake[0])}
        twin.backward(twin.joint_training.join(objectives, networks) / 2)
    optimizer.step()
    for expected, actual in zip(twin.model.networks.parameters(), model.model.networks.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


def test_collapsed_discriminator_is_reinitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the limit the weights are re-initialised; Adam's moments and running statistics stay."""
    monkeypatch.setattr(joint_training, "COLLAPSE_LOSS", float("inf"))
    model = bare_model()
    with torch.no_grad():
        discriminator_of(model).classifier.weight.fill_(5)
    train_on(model, torch.rand(4, 3, 32, 32))
    assert discriminator_of(model).classifier.weight.abs().max() < 0.2
    moments = [state["exp_avg"].abs().max() for state in model.optimizers().state.values()]
    assert min(moments) > 0
    assert discriminator_of(model).features[3].num_batches_tracked == 2


def test_healthy_discriminator_is_left_alone() -> None:
    """Above the limit nothing is re-initialised."""
    model = bare_model()
    with torch.no_grad():
        discriminator_of(model).classifier.weight.fill_(5)
    train_on(model, torch.rand(4, 3, 32, 32))
    assert discriminator_of(model).classifier.weight.min() > 4.9


@pytest.mark.slow
def test_compiled_networks_score_alike(tmp_path: Path, datamodule: Folder) -> None:
    """Under the engine, whose images are a subclass of tensors."""
    model = GANomaly(image_size=32, n_features=4, input_channels=1, visualizer=False)
    engine = build_engine(tmp_path)
    engine.fit(model, datamodule=datamodule)
    expected = engine.predict(model, datamodule=datamodule)
    model.model = torch.compile(model.model, backend="aot_eager")
    for first, second in zip(expected, engine.predict(model, datamodule=datamodule), strict=True):
        torch.testing.assert_close(second.raw_score, first.raw_score)


@pytest.mark.slow
def test_ddp_equals_the_joint_batch(tmp_path: Path) -> None:
    """Two gloo processes with four images each take the step of one process with all eight."""
    ddp_step.main(1, str(tmp_path / "1.pt"))
    subprocess.run([sys.executable, ddp_step.__file__, "2", str(tmp_path / "2.pt")], check=True, timeout=300)
    classifier = "model.networks.discriminator.classifier.weight"
    joint, distributed = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    assert (joint["before"][classifier] != joint["after"][classifier]).any()
    for name, expected in joint["after"].items():
        torch.testing.assert_close(distributed["after"][name], expected, atol=1e-6, rtol=1e-4)


def test_average_follows_then_remembers() -> None:
    """The first update copies; after t steps of a ramp the average lags by the profile's mean, t / (EXPONENT + 3)."""
    network = torch.nn.Linear(1, 1, bias=False)
    average = averaging.power_average(network)
    for step in range(1, 1001):
        torch.nn.init.constant_(network.weight, float(step))
        average.update_parameters(network)
        if step == 1:
            assert average.module.weight.item() == 1
    # Weights proportional to s ** EXPONENT on 1..t have the mean t * (EXPONENT + 1) / (EXPONENT + 2).
    assert average.module.weight.item() == pytest.approx(1000 * 7.94 / 8.94, rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 27}, r"image_size is \(27, 27\).*at least 28.*\(28, 28\)"),
        ({"image_size": (64, 0)}, r"image_size is \(64, 0\).*\(64, 28\)"),
        ({"image_size": -5}, "at least 28"),
        ({"input_channels": 4}, r"input_channels is 4; choose 1 .* or 3"),
        ({"n_features": 0}, "n_features is 0; it must be at least 1"),
        ({"latent_vec_size": 0}, "latent_vec_size is 0"),
        ({"extra_layers": -1}, "extra_layers is -1"),
        ({"max_features": 8}, "max_features is 8; .* at least n_features, which is 64"),
        ({"wadv": -1}, "wadv is -1; it must be at least 0"),
        ({"wcon": float("nan")}, "wcon is nan"),
        ({"wenc": -0.5}, "wenc is -0.5"),
        ({"lr": 0}, "lr is 0"),
        ({"beta1": 1}, "beta1 is 1"),
        (
            {"score": "l3"},
            "score is 'l3'; choose one of latent_l1, latent_l2, latent_relative, latent_whitened, reconstruction",
        ),
        ({"score": "latent_whitened", "add_final_conv_layer": False}, "needs a latent vector"),
        ({"adversarial": "wgan"}, "adversarial is 'wgan'; choose one of feature_matching, bce"),
        ({"map_sigma": 0}, "map_sigma is 0"),
        ({"image_size": [32]}, r"image_size is \[32\]; give one whole number of pixels, or height and width"),
        ({"image_size": 32.0}, "image_size is 32.0; give one whole number"),
        ({"image_size": (32, 32, 3)}, "give one whole number"),
        ({"map_sigma": 40}, r"map_sigma is 40 pixels; .* \(0, 15.25\]"),
        (
            {"pre_processor": GANomaly.configure_pre_processor((32, 32))},
            r"\(32, 32\) pixels, but image_size is \(64, 64\)",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Every bad value is named at construction, with the rule and what works."""
    with pytest.raises(ValueError, match=message):
        GANomaly(**arguments)


def test_images_of_another_size_are_refused() -> None:
    """Without a pre-processor, a wrong size is named rather than mis-scored."""
    with pytest.raises(ValueError, match=r"\(40, 40\) pixels, but the model is built for \(32, 32\)"):
        bare_model().model(torch.zeros(1, 3, 40, 40))


def test_ganomaly_options_train() -> None:
    """Extra layers, spatial latents, the adversarial loss of 2018 and no averaging all train a step."""
    for options in (
        {"extra_layers": 2},
        {"add_final_conv_layer": False},
        {"adversarial": "bce"},
        {"average_weights": False},
        {"input_channels": 1},
    ):
        model = train_on(bare_model(**options), torch.rand(4, 3, 32, 32)).eval()
        with torch.no_grad():
            assert model.model(torch.rand(1, 3, 32, 32)).pred_score.isfinite().all(), options


def test_spatial_latent() -> None:
    """Without the final convolution the code is the last feature map."""
    generator = bare_model(add_final_conv_layer=False).model.networks["generator"]
    assert generator(torch.zeros(1, 3, 32, 32)).latent.shape == (1, 32, 4, 4)


def test_stock_yaml_arguments_load(caplog: pytest.LogCaptureFixture) -> None:
    """Every argument of anomalib's Ganomaly is taken; the one without effect says so."""
    GANomaly(batch_size=32, n_features=64, latent_vec_size=100, extra_layers=0, add_final_conv_layer=True, wadv=1,
             wcon=50, wenc=1, lr=0.0002, beta1=0.5, beta2=0.999)  # fmt: skip
    assert "ignores batch_size=32" in caplog.text


def test_nan_pixels_stop_training_by_name() -> None:
    """A broken image stops training before it reaches the weights."""
    images = torch.rand(4, 3, 32, 32)
    images[2, 0, 5, 5] = float("nan")
    model = bare_model()
    with pytest.raises(ValueError, match="epoch 0, batch 1.*pixels of image 2 of the batch are not finite"):
        train_on(model, torch.rand(4, 3, 32, 32), images)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_divergence_names_the_loss() -> None:
    """A loss that overflows stops training with the loss's name and advice."""
    model = bare_model()
    with torch.no_grad():
        discriminator_of(model).classifier.weight.fill_(1e38)
    with pytest.raises(
        ValueError,
        match=r"diverged in epoch 0, batch 0: \{'loss_discriminator': (inf|nan)\}. Try a learning rate below",
    ):
        train_on(model, torch.rand(4, 3, 32, 32))


def test_nan_pixels_are_named_when_scoring() -> None:
    """A broken image has no score, and the error says which it is."""
    model = bare_model().eval()
    batch = ImageBatch(image=torch.rand(2, 3, 32, 32), image_path=["good.png", "bad.png"])
    batch.image[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="score of bad.png is not finite"):
        model.test_step(batch, 0)


def test_constant_and_duplicate_images_score_finitely() -> None:
    """Images without contrast train and score, and equal images score alike."""
    model = train_on(bare_model(), torch.zeros(4, 3, 32, 32), torch.ones(4, 3, 32, 32)).eval()
    with torch.no_grad():
        scores_ = model.model(torch.stack([torch.zeros(3, 32, 32)] * 2)).pred_score
    assert scores_.isfinite().all()
    assert scores_[0] == scores_[1]


def test_checkpoint_of_stock_ganomaly_is_refused(tmp_path: Path, datamodule: Folder) -> None:
    """anomalib's own checkpoint is recognised."""
    stock = StockGanomaly(n_features=4, latent_vec_size=8, pre_processor=GANomaly.configure_pre_processor((32, 32)))
    engine = build_engine(tmp_path, limit_train_batches=1)
    engine.fit(stock, datamodule=datamodule)
    with pytest.raises(ValueError, match="not a checkpoint of ganomaly_plugin.GANomaly: anomalib's own Ganomaly"):
        GANomaly.load_from_checkpoint(engine.best_model_path)


def test_checkpoint_of_another_size_is_refused(tmp_path: Path, datamodule: Folder) -> None:
    """A checkpoint for 32 pixels does not load into a model for 64."""
    engine = build_engine(tmp_path, limit_train_batches=1)
    engine.fit(GANomaly(image_size=32, n_features=4), datamodule=datamodule)
    with pytest.raises(ValueError, match=r"image_size is \(32, 32\) in the checkpoint and \(64, 64\) in the model"):
        build_engine(tmp_path).test(GANomaly(n_features=4), datamodule=datamodule, ckpt_path=engine.best_model_path)


def test_trainer_flags_of_the_user_win(tmp_path: Path, datamodule: Folder) -> None:
    """The model sets no trainer argument of its own."""
    engine = build_engine(tmp_path, max_epochs=3, gradient_clip_val=0.5)
    engine.fit(GANomaly(image_size=32, n_features=4), datamodule=datamodule)
    assert engine.trainer.current_epoch == 3
    assert engine.trainer.gradient_clip_val == 0.5


def test_losses_are_logged_per_epoch(tmp_path: Path, datamodule: Folder) -> None:
    """Every part of the objective can be watched under its documented name."""
    engine = build_engine(tmp_path)
    engine.fit(GANomaly(image_size=32, n_features=4), datamodule=datamodule)
    expected = {"loss_adversarial", "loss_reconstruction", "loss_latent", "loss_discriminator"}
    assert expected <= set(engine.trainer.callback_metrics)


def test_logger_writes_one_row_an_epoch(tmp_path: Path, datamodule: Folder) -> None:
    """Losses and validation metrics reach Lightning's CSV logger, once for each epoch."""
    logger = CSVLogger(tmp_path)
    engine = build_engine(tmp_path, max_epochs=3, logger=logger)
    engine.fit(GANomaly(image_size=32, n_features=4), datamodule=datamodule)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("loss_adversarial", "loss_discriminator", "val_score", "image_AUROC"):
        assert [int(row["epoch"]) for row in rows if row[name]] == [0, 1, 2], name


@pytest.fixture(scope="module")
def trained_on_digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[GANomaly, Digits]:
    """A model with the paper's code of 100 numbers after some steps on digits, whose exports share its ONNX file."""
    root = tmp_path_factory.mktemp("digits")
    seed_everything(3)
    datamodule = Digits(root / "digits", 8)
    model = GANomaly(image_size=32, n_features=8, input_channels=1, score="latent_l2")
    build_engine(root, max_epochs=2, limit_train_batches=20, logger=False).fit(model, datamodule=datamodule)
    write_onnx_once(model, root)
    return model.eval(), datamodule


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "correlation", "fraction"),
    [("FP16", 0.999, 0.6), ("INT8", 0.97, 0.35), ("INT8_PTQ", 0.99, 0.95), ("INT8_ACQ", 0.99, 0.95)],
)
def test_compressed_exports_score_alike(
    tmp_path: Path,
    trained_on_digits: tuple[GANomaly, Digits],
    compression: str,
    correlation: float,
    fraction: float,
) -> None:
    """Scores of the test images hardly move, the AUROC by less than 0.01, and the weights take a smaller fraction."""
    from anomalib.deploy import CompressionType

    from ganomaly_plugin.edge.detector import shared_core

    model, datamodule = trained_on_digits
    path = model.to_openvino(tmp_path, compression_type=CompressionType[compression], datamodule=datamodule)
    compiled = shared_core().compile_model(path, "CPU")
    batches = list(datamodule.test_dataloader())
    with torch.no_grad():
        expected = torch.cat([model(batch.image).pred_score for batch in batches])
    actual = np.concatenate([compiled(batch.image.numpy())["pred_score"].ravel() for batch in batches])
    labels = torch.cat([batch.gt_label for batch in batches])
    assert np.corrcoef(expected, actual)[0, 1] > correlation
    assert roc_auc_score(labels, actual) == pytest.approx(roc_auc_score(labels, expected), abs=0.01)
    size = path.with_suffix(".bin").stat().st_size
    assert size < fraction * 4 * parameter_count(model.model.inference_networks)


@pytest.mark.slow
def test_quantisation_takes_training_images_where_there_is_no_validation(
    trained_on_digits: tuple[GANomaly, Digits], digits_folder: Path, tmp_path: Path
) -> None:
    """anomalib's datamodules have no validation set at all then."""
    from anomalib.deploy import CompressionType

    datamodule = build_datamodule(digits_folder, val_split_mode="none")
    model, _ = trained_on_digits
    assert model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=datamodule).exists()


def test_quantisation_without_images_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The message says what is missing, before anything is exported."""
    from anomalib.deploy import CompressionType

    model = GANomaly(image_size=32, n_features=4, latent_vec_size=4, visualizer=False)
    for compression in (CompressionType.INT8_PTQ, CompressionType.INT8_ACQ):
        with pytest.raises(ValueError, match="calibrate on its images: name one, on the command line with --data"):
            model.to_openvino(tmp_path, compression_type=compression)
    assert not caplog.records
    assert not list(tmp_path.iterdir())
