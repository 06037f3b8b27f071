# SPDX-License-Identifier: Apache-2.0
"""GANomaly on backbone features."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from anomalib.data import Folder
from lightning.pytorch import seed_everything
from scipy.stats import multivariate_normal
from torchvision.transforms.v2 import RandomHorizontalFlip

from ganomaly_plugin import FeatureGANomaly
from ganomaly_plugin.models.components.backbone import Backbone
from ganomaly_plugin.models.components.feature_space import BackboneFeatures
from ganomaly_plugin.models.components.place_statistics import RIDGE, SHRINKAGE_IMAGES, PlaceStatistics
from ganomaly_plugin.models.feature_ganomaly.loss import reconstruction_loss
from ganomaly_plugin.models.feature_ganomaly.training_features import TrainingFeatures
from tests.engine import build_engine

from .conftest import build_datamodule
from .model_tester import ExportTester, ModelTester

BACKBONE = "tf_efficientnet_lite0"


def build(image_size: tuple[int, int] | int = (32, 32), **kwargs: Any) -> FeatureGANomaly:
    """Build a small model with random weights in its backbone."""
    settings: dict[str, Any] = {"n_features": 8, "latent_vec_size": 4, "rank": 0.1, "map_sigma": 2.0} | kwargs
    return FeatureGANomaly(image_size=image_size, pre_trained=False, **settings)


class TestFeatureGANomaly(ModelTester):
    """What every model must do, with all networks that it can have."""

    PANELS = 3
    SIZES = ((28, 28), (39, 39), pytest.param((256, 234), marks=pytest.mark.slow))

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> FeatureGANomaly:
        return build(image_size, input_channels=input_channels, **({"wadv": 1, "wenc": 1} | kwargs))


class TestExports(ExportTester):
    """On a backbone of few layers, since exporting each takes its time."""

    INFERENCE_PARAMETERS = 3_080 + 32 + 40 + 3_474  # Convolutions of one place: 384 channels, 8, 4, 8, 386.

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> FeatureGANomaly:
        settings = {"backbone": "resnet10t", "strides": (4, 8), "wadv": 1, "wenc": 1} | kwargs
        return build(image_size, input_channels=input_channels, **settings)


class TestBackbone:
    """Frozen, with its own normalisation, and no network needed."""

    def test_images_are_normalised_as_timm_says(self) -> None:
        """By the mean and the standard deviation of the backbone's weights."""
        backbone = Backbone("resnet18", (64, 64), (8, 16))
        images = torch.rand(2, 3, 64, 64)
        config = timm.models.get_pretrained_cfg("resnet18")
        normalised = (images - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
        network = timm.create_model("resnet18", features_only=True, out_indices=(2, 3)).eval()
        network.load_state_dict(backbone.network.state_dict())
        with torch.no_grad():
            expected = network(normalised)
        for actual, each in zip(backbone(images), expected, strict=True):
            torch.testing.assert_close(actual, each, rtol=1e-4, atol=1e-5)
        assert backbone.channels == [128, 256]

    def test_is_frozen_and_kept_once(self, tmp_path: Path, datamodule: Folder) -> None:
        """Training changes neither its weights nor its batch-norm statistics, and the EMA holds no copy."""
        model = build()
        before = {name: value.clone() for name, value in model.model.space.backbone.state_dict().items()}
        build_engine(tmp_path).fit(model, datamodule=datamodule)
        after = model.model.space.backbone.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert not any(module.training for module in model.train().model.space.backbone.modules())
        assert sum(name.endswith("conv_stem.weight") for name in model.state_dict()) == 1

    @pytest.mark.parametrize(
        ("name", "choice", "channels"),
        [
            (BACKBONE, {"strides": (16, 8)}, [40, 112]),
            (BACKBONE, {"strides": (), "layers": ["blocks.4", "blocks.1"]}, [24, 112]),
            (BACKBONE, {"strides": (), "layers": [0, 2]}, [16, 40]),
            ("convnext_atto", {"strides": (4, 16)}, [40, 160]),
            ("vit_tiny_patch16_224", {"strides": (), "layers": [3, 11]}, [192, 192]),
            pytest.param(
                *("vit_small_patch16_dinov3", {"strides": (), "layers": ["blocks.5"]}, [384]), marks=pytest.mark.slow
            ),
        ],
    )
    def test_feature_maps_are_chosen(self, name: str, choice: dict[str, Any], channels: list[int]) -> None:
        """By strides, names or places, in the backbone's order; convolutional backbones and transformers."""
        backbone = Backbone(name, (64, 96), **choice)
        assert backbone.channels == channels
        space = BackboneFeatures((64, 96), 3, 2.0, backbone, 0.5, 1)
        target = space(torch.rand(2, 3, 64, 96))
        assert target.shape == (2, 2 * space.channels, *space.size)
        assert space.to_map(target[:, : space.channels].square()).shape == (2, 1, 64, 96)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"backbone": "efficientnet_lite"}, "backbone is 'efficientnet_lite', which timm does not have"),
            ({"strides": (8, 12)}, r"strides is \[8, 12\], but the feature maps of .* are blocks.0 \(stride 2\)"),
            ({"strides": ()}, "choose some of them, each once"),
            ({"strides": (8, 8)}, "choose some of them, each once"),
            ({"layers": ("blocks.9",)}, r"layers is \['blocks.9'\]"),
            ({"layers": (7,)}, r"layers is \[7\]"),
            ({"backbone": "vit_tiny_patch16_224"}, "name some as layers, since strides are not unique"),
            ({"rank": 0.0}, "rank is 0.0"),
            ({"neighbourhood": 0}, "neighbourhood is 0; it must be at least 1"),
            ({"prediction_weight": 1.5}, "prediction_weight is 1.5"),
            ({"kernel_size": 2}, "kernel_size is 2; it must be odd"),
            ({"steps_per_batch": 0}, "steps_per_batch is 0; it must be at least 1"),
            ({"score": "latent"}, "score is 'latent', which needs two codes"),
            ({"image_size": 20}, "each side must be at least 28"),
        ],
    )
    def test_bad_arguments_are_refused(self, arguments: dict[str, Any], message: str) -> None:
        """The message names the value, the rule and what works."""
        with pytest.raises(ValueError, match=message):
            build(**({"image_size": 64} | arguments))


class TestWeights:
    """Where the backbone's weights come from."""

    @pytest.fixture
    def weights(self, tmp_path: Path) -> Path:
        """A file with weights in timm's names."""
        path = tmp_path / "weights.pth"
        torch.save(timm.create_model(BACKBONE).state_dict(), path)
        return path

    @pytest.fixture
    def no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A machine without a network and without a cache."""

        def refuse(*_args: Any, **_kwargs: Any) -> None:
            raise OSError("Network is unreachable")

        monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # Before each of Hugging Face's further attempts.
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))

    @pytest.mark.usefixtures("no_network")
    def test_all_but_the_first_training_needs_neither_file_nor_network(
        self, tmp_path: Path, datamodule: Folder, weights: Path
    ) -> None:
        """A checkpoint is loaded, tested, resumed and exported after the weights are gone."""
        model = FeatureGANomaly(image_size=32, map_sigma=2.0, n_features=8, rank=0.1, weights=weights)
        engine = build_engine(tmp_path, max_epochs=1)
        engine.fit(model, datamodule=datamodule)
        saved = torch.load(weights)
        assert torch.equal(model.model.space.backbone.network.conv_stem.weight, saved["conv_stem.weight"])
        weights.unlink()
        reloaded = FeatureGANomaly.load_from_checkpoint(engine.best_model_path)
        assert torch.equal(reloaded.model.space.backbone.network.conv_stem.weight, saved["conv_stem.weight"])
        build_engine(tmp_path).test(reloaded, datamodule=datamodule)
        assert reloaded.to_onnx(tmp_path).is_file()
        resumed = FeatureGANomaly(image_size=32, map_sigma=2.0, n_features=8, rank=0.1, weights=weights)
        build_engine(tmp_path, max_epochs=2).fit(resumed, datamodule=datamodule, ckpt_path=engine.best_model_path)

    @pytest.mark.usefixtures("no_network")
    def test_training_without_weights_says_where_to_put_them(self, tmp_path: Path, datamodule: Folder) -> None:
        """Before any image is read."""
        model = FeatureGANomaly(image_size=32, map_sigma=2.0)
        with pytest.raises(ValueError, match=r"model.safetensors of https://huggingface.co/timm/tf_eff.*as weights"):
            build_engine(tmp_path).fit(model, datamodule=datamodule)

    def test_missing_file_is_named(self, tmp_path: Path, datamodule: Folder) -> None:
        """And so is what to do."""
        model = FeatureGANomaly(image_size=32, map_sigma=2.0, weights="gone.safetensors")
        with pytest.raises(ValueError, match=r"weights is gone.safetensors, which is no file: download"):
            build_engine(tmp_path).fit(model, datamodule=datamodule)


class TestPlaceStatistics:
    """What is usual, against values worked out otherwise."""

    def test_all_directions_give_mahalanobis_distances(self) -> None:
        """One level with one covariance a place: scipy's density of the same Gaussian, place by place."""
        features = torch.randn(200, 3, 2, 2) * torch.tensor([1.0, 3.0, 0.2]).view(3, 1, 1) + 5
        statistics = PlaceStatistics([3], [1], (2, 2), rank=1.0, neighbourhood=1)
        statistics.fit([features])
        (whitened,) = statistics([features[:7]])
        scaled = features / features.std((0, 2, 3), correction=0).view(3, 1, 1)
        centred = scaled - scaled.mean(0)
        covariances = torch.einsum("nchw,ndhw->hwcd", centred, centred) / len(features)
        weight = SHRINKAGE_IMAGES / (SHRINKAGE_IMAGES + len(features))
        covariances = (1 - weight) * covariances + weight * covariances.mean((0, 1)) + RIDGE * torch.eye(3)
        for row in range(2):
            for column in range(2):
                gaussian = multivariate_normal(torch.zeros(3).numpy(), covariances[row, column].numpy())
                top = gaussian.logpdf(torch.zeros(3).numpy())
                expected = 2 * (top - torch.from_numpy(gaussian.logpdf(centred[:7, :, row, column].numpy())))
                actual = whitened[:, :, row, column].square().sum(1)
                torch.testing.assert_close(actual, expected.float(), rtol=1e-3, atol=1e-3)

    def test_kept_directions_are_whitened_and_the_rest_shares_a_variance(self) -> None:
        """A common factor of channels with noise of their own: one direction is enough, and none is not."""
        features = 3 * torch.randn(5000, 1, 1, 1) + torch.randn(5000, 6, 1, 1)
        for rank in (1 / 6, 1.0):
            statistics = PlaceStatistics([6], [1], (1, 1), rank, neighbourhood=None)
            statistics.fit([features])
            (whitened,) = statistics([features])
            variances = torch.linalg.eigvalsh(torch.cov(whitened.flatten(1).T))
            assert variances.max() < 1.05
            assert variances.min() > 0.8

    def test_what_the_coarser_level_predicts_is_not_anomalous(self) -> None:
        """A fine level that equals its coarse one is nearly constant, given it; alone it is not."""
        coarse = torch.randn(300, 2, 2, 2)
        fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.05 * torch.randn(300, 2, 4, 4)
        statistics = PlaceStatistics([2, 2], [2, 1], (2, 2), rank=1.0, neighbourhood=1)
        statistics.fit([fine, coarse])
        agreeing, _ = statistics([fine[:1] * 2, coarse[:1] * 2])
        opposed, _ = statistics([-fine[:1] * 2, coarse[:1] * 2])
        assert opposed.square().sum() > 20 * agreeing.square().sum()

    @pytest.mark.parametrize("neighbourhood", [1, 2, 3, None])
    @pytest.mark.parametrize("n_images", [1, 2, 10, 50])
    def test_few_images_break_nothing(self, n_images: int, neighbourhood: int | None) -> None:
        """From one image on, sizes that no neighbourhood divides, and a channel that is always zero."""
        levels = [torch.randn(n_images, 5, 10, 14), torch.randn(n_images, 8, 5, 7)]
        levels[0][:, 2] = 0
        statistics = PlaceStatistics([5, 8], [2, 1], (5, 7), rank=0.5, neighbourhood=neighbourhood)
        statistics.fit(levels)
        new = [torch.randn(3, 5, 10, 14), torch.randn(3, 8, 5, 7)]
        for whitened, level in zip(statistics(new), new, strict=True):
            assert whitened.shape == level.shape
            assert whitened.isfinite().all()
            assert whitened.abs().max() < 100

    def test_one_covariance_is_smaller(self) -> None:
        """The neighbourhood divides the number of covariances."""
        sizes = {
            side: sum(value.numel() for value in PlaceStatistics([4], [1], (8, 8), 1.0, side).state_dict().values())
            for side in (1, 2, None)
        }
        assert sizes[1] == 4 + 4 * 64 + 64 * (1 + 16) + 1
        assert sizes[2] == 4 + 4 * 64 + 16 * (1 + 16) + 1
        assert sizes[None] == 4 + 4 * 64 + 1 * (1 + 16) + 1


class TestTrainingFeatures:
    """What the generator learns from."""

    def test_training_images_vary_as_new_ones_do(self) -> None:
        """Few images fit their own statistics too well; cross-fitted ones have the variance of new images."""
        torch.manual_seed(0)
        space = BackboneFeatures((32, 32), 3, 2.0, Backbone(BACKBONE, (32, 32), (16,)), rank=1.0, neighbourhood=1)
        draw = lambda count: [torch.randn(count, 112, 2, 2)]  # noqa: E731
        names = [f"{index:02}" for index in range(60)]
        drawn = draw(60)
        training = TrainingFeatures(space, names, drawn, keep=True)

        def variances(target: torch.Tensor) -> torch.Tensor:
            return torch.stack([half.square().mean() for half in space.split(target)])

        learnt = variances(training.target(names, torch.empty(0)))
        new = variances(space.whiten(draw(500), space.statistics))
        assert learnt[0] == pytest.approx(1, abs=0.01)
        torch.testing.assert_close(new, learnt, rtol=0, atol=0.25)
        assert variances(space.whiten(drawn, space.statistics))[0] < 0.5 * new[0]

    def test_kept_features_equal_computed_ones(self) -> None:
        """Up to 16 bits, in any order of the images."""
        torch.manual_seed(0)
        space = BackboneFeatures((32, 48), 3, 2.0, Backbone(BACKBONE, (32, 48), (8, 16)), rank=0.2, neighbourhood=1)
        images = torch.rand(9, 3, 32, 48) * 2 - 1
        names = [f"{index}" for index in range(9)]
        levels = space.features(images)
        kept = TrainingFeatures(space, names, levels, keep=True)
        order = [4, 0, 8, 1]
        chosen = [names[index] for index in order]
        computed = TrainingFeatures(space, names[::-1], [level.flip(0) for level in levels], keep=False)
        torch.testing.assert_close(
            kept.target(chosen, torch.empty(0)), computed.target(chosen, images[order]), rtol=0.01, atol=0.01
        )

    def test_each_image_is_drawn_once_before_any_again(self) -> None:
        """In draws of any size, and by two processes with equal random numbers, each of which has its part."""
        space = BackboneFeatures((32, 32), 3, 2.0, Backbone(BACKBONE, (32, 32), (16,)), rank=0.2, neighbourhood=1)
        names = [f"{index}" for index in range(10)]
        training = TrainingFeatures(space, names, [torch.randn(10, 112, 2, 2)], keep=True)
        images = training.target(names, torch.empty(0))

        def find(drawn: torch.Tensor) -> list[int]:
            return [next(index for index, image in enumerate(images) if torch.equal(image, each)) for each in drawn]

        numbers = [number for _ in range(5) for number in find(training.draw(4))]
        assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
        assert numbers[:10] != numbers[10:]
        parts = []
        for rank in range(2):
            torch.manual_seed(0)
            parts += find(training.draw(5, rank, 2))
        assert sorted(parts) == list(range(10))

    def test_images_that_were_not_measured_are_new(self) -> None:
        """Whitened by the statistics of all others, among images whose features are kept and among computed ones."""
        torch.manual_seed(0)
        space = BackboneFeatures((32, 48), 3, 2.0, Backbone(BACKBONE, (32, 48), (8, 16)), rank=0.2, neighbourhood=1)
        images = torch.rand(9, 3, 32, 48) * 2 - 1
        names = [f"{index}" for index in range(8)]
        for keep in (True, False):
            training = TrainingFeatures(space, names, space.features(images[:8]), keep)
            actual = training.target(["3", "unmeasured"], images[[3, 8]])
            torch.testing.assert_close(actual[1:], space.target(images[8:]))
            torch.testing.assert_close(actual[:1], training.target(["3"], images[3:4]))

    def test_features_beyond_16_bits(self, tmp_path: Path, datamodule: Folder) -> None:
        """Some backbones have such: they are kept in 32 bits, and the statistics stay finite."""
        model = build(visualizer=False, backbone="resnet10t")
        model.model.space.backbone.std.mul_(1e-8)
        build_engine(tmp_path, max_epochs=1).fit(model, datamodule=datamodule)
        statistics = model.model.space.statistics
        assert statistics.levels[0].scale.max() > torch.finfo(torch.float16).max
        assert all(buffer.isfinite().all() for buffer in statistics.buffers())

    def test_epochs_may_show_other_images(self, tmp_path: Path, datamodule: Folder) -> None:
        """As where the loader leaves an incomplete batch out, or the trainer limits the batches of shuffled images."""
        model = build(visualizer=False)
        build_engine(tmp_path, max_epochs=4, limit_train_batches=1).fit(model, datamodule=datamodule)
        assert model.model.space.statistics.unit.isfinite().all()

    @pytest.mark.parametrize(
        ("augmentations", "accumulated", "expected"),
        [(None, 1, 2 * 2 * 3), (None, 2, 2 * 1 * 3), (RandomHorizontalFlip(p=0.5), 1, 2 * 2)],
        ids=["kept", "accumulated", "augmented"],
    )
    def test_several_steps_go_with_a_batch_of_kept_features(
        self, tmp_path: Path, digits_folder: Path, augmentations: Any, accumulated: int, expected: int
    ) -> None:
        """Adam's own count after two epochs of two batches; what augmentations change is computed for each step."""
        model = build(visualizer=False, steps_per_batch=3)
        engine = build_engine(
            tmp_path, max_epochs=2, limit_train_batches=2, accumulate_grad_batches=accumulated, limit_val_batches=0
        )
        engine.fit(model, datamodule=build_datamodule(digits_folder, train_augmentations=augmentations))
        checkpoint = torch.load(engine.best_model_path, weights_only=False)
        steps = {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()}
        assert steps == {expected}

    def test_augmented_images_are_computed_again(self, tmp_path: Path, digits_folder: Path) -> None:
        """With augmentations the backbone computes the features of each step's images, else of each image once."""
        for augmentations, expected in ((None, 1), (RandomHorizontalFlip(p=0.5), 3)):
            seed_everything(7)
            model = build(visualizer=False)
            datamodule = build_datamodule(digits_folder, train_augmentations=augmentations)
            seen: list[int] = []
            engine = build_engine(tmp_path, max_epochs=2, limit_val_batches=0)
            model.model.space.backbone.register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(len(inputs[0]))
            )
            engine.fit(model, datamodule=datamodule)
            assert sum(seen) == expected * len(datamodule.train_data)


def test_reconstruction_loss_is_a_likelihood() -> None:
    """That of torch.distributions, without its constant."""
    target, mean, log_variance = torch.randn(3, 5, 2, 4, 4)
    density = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(target)
    expected = -(density + torch.log(torch.tensor(2 * torch.pi)) / 2)
    weights = torch.tensor([0.4, 1.6]).view(2, 1, 1)
    actual = reconstruction_loss(target, mean, log_variance, weights)
    torch.testing.assert_close(actual, 0.2 * expected[:, 0].mean() + 0.8 * expected[:, 1].mean())


def test_without_prediction_the_score_is_the_whitened_norm() -> None:
    """A map's place is then the mean square of the whitened features there."""
    model = build((64, 64), prediction_weight=0.0, visualizer=False).eval().model
    target = torch.randn(2, 2 * model.space.channels, *model.space.size)
    with torch.no_grad():
        output = model.score(target)
    torch.testing.assert_close(output.anomaly_map, model.space.to_map(model.space.split(target)[0].square()))
    torch.testing.assert_close(output.pred_score, output.anomaly_map.amax((1, 2, 3)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"wadv": 0, "wenc": 0},
        {"code": "global", "wenc": 1, "score": "latent"},
        {"code": "global", "wenc": 1, "score": "sum", "top_fraction": 0.01},
        {"kernel_size": 3, "predict_variance": False},
        {"strides": (4, 8, 16), "neighbourhood": 2},
        {"strides": (16,), "neighbourhood": None},
    ],
    ids=str,
)
def test_variants_train_and_reload(tmp_path: Path, datamodule: Folder, arguments: dict[str, Any]) -> None:
    """Every choice trains, tests and gives the same scores from its checkpoint."""
    model = build((64, 48), visualizer=False, **arguments)
    engine = build_engine(tmp_path)
    engine.fit(model, datamodule=datamodule)
    reloaded = FeatureGANomaly.load_from_checkpoint(engine.best_model_path)
    images = torch.rand(3, 3, 50, 60)
    with torch.no_grad():
        assert torch.equal(model.eval()(images).pred_score, reloaded.eval()(images).pred_score)


@pytest.mark.data
@pytest.mark.slow
def test_finds_defects_of_real_parts(tmp_path: Path, real_data: Path) -> None:
    """A few real tiles and real weights: far above what pixels reach, in one epoch."""
    seed_everything(0)
    datamodule = Folder(
        name="tiles",
        root=real_data / "magnetic_tile",
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/blowhole",
        val_split_mode="from_train",
        num_workers=0,
        train_batch_size=16,
    )
    model = FeatureGANomaly(
        image_size=128, visualizer=False, weights=real_data / "weights" / "efficientnet_lite0_timm.safetensors"
    )
    engine = build_engine(tmp_path, max_epochs=1, limit_train_batches=6, limit_test_batches=1.0)
    engine.fit(model, datamodule=datamodule)
    (reported,) = engine.test(model, datamodule=datamodule)
    assert reported["image_AUROC"] > 0.8
