# SPDX-License-Identifier: Apache-2.0
"""What every model of the package must do, whatever its networks."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything
from sklearn.metrics import average_precision_score, roc_auc_score

from ganomaly_plugin.image_reader import read_image
from tests.engine import build_engine

from .conftest import build_datamodule

EXPORTED = ("pred_score", "pred_label", "pred_mask", "anomaly_map")
"""Outputs of every exported graph."""


def gather(batches: Sequence[ImageBatch], field: str) -> torch.Tensor:
    """Concatenate one field of predicted batches."""
    return torch.cat([getattr(batch, field) for batch in batches])


class Exported(NamedTuple):
    """A trained model, what the engine predicts with it, and its exports."""

    model: AnomalibModule
    predictions: Sequence[ImageBatch]
    torch_model: torch.nn.Module
    onnx_file: Path
    openvino_model: Any
    compiled: Any


def write_onnx_once(model: AnomalibModule, root: Path) -> Path:
    """Export a model to ONNX, and let its later exports begin with that file rather than write it again."""
    path = model.to_onnx(root)
    vars(model)["to_onnx"] = lambda *_, **__: path
    return path


class Builder:
    """Subclass and say how to build a small version of the model."""

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> AnomalibModule:
        """Build the model, small enough to train a step in a fraction of a second."""
        raise NotImplementedError


@pytest.mark.slow
class ExportTester(Builder):
    """What every model that can be exported must do."""

    INFERENCE_PARAMETERS: int
    """Parameters of the small model that scoring needs, at 28x36 pixels."""

    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Exported:
        """A trained model, its predictions, and its exports by way of a checkpoint."""
        from ganomaly_plugin.edge.detector import shared_core

        root = tmp_path_factory.mktemp("exported")
        seed_everything(7)
        datamodule = build_datamodule(digits_folder)
        model = cls().build(image_size=(28, 36))
        engine = build_engine(root)
        engine.fit(model, datamodule=datamodule)
        predictions = engine.predict(model, datamodule=datamodule)
        reloaded = type(model).load_from_checkpoint(engine.best_model_path)
        torch_file, onnx_file = reloaded.to_torch(root), write_onnx_once(reloaded, root)
        core, xml = shared_core(), reloaded.to_openvino(root)
        return Exported(
            model=model,
            predictions=predictions,
            torch_model=torch.load(torch_file, weights_only=False)["model"].eval(),
            onnx_file=onnx_file,
            openvino_model=core.read_model(xml),
            compiled=core.compile_model(xml, "CPU"),
        )

    def test_exports_agree_with_the_engine(self, exported: Exported) -> None:
        """From the same files, which are larger than the model's images, every export gives what the engine gives."""
        import onnxruntime

        expected = {name: gather(exported.predictions, name).squeeze() for name in EXPORTED}
        paths = [path for batch in exported.predictions for path in batch.image_path]
        images = torch.stack([read_image(path, as_tensor=True) for path in paths])
        assert images.shape[-2:] == (40, 48)
        session = onnxruntime.InferenceSession(exported.onnx_file)
        assert {port.any_name for port in exported.compiled.outputs} == set(EXPORTED)
        assert {port.name for port in session.get_outputs()} == set(EXPORTED)

        def run_torch(batch: torch.Tensor) -> dict[str, torch.Tensor]:
            with torch.no_grad():
                return exported.torch_model(batch)._asdict()

        def run_onnx(batch: torch.Tensor) -> dict[str, torch.Tensor]:
            values = session.run(list(EXPORTED), {session.get_inputs()[0].name: batch.numpy()})
            return {name: torch.from_numpy(value) for name, value in zip(EXPORTED, values, strict=True)}

        def run_openvino(batch: torch.Tensor) -> dict[str, torch.Tensor]:
            values = exported.compiled(batch.numpy())
            return {name: torch.from_numpy(values[name]) for name in EXPORTED}

        for run in (run_torch, run_onnx, run_openvino):
            for size in (1, 2, 7):
                parts = [run(batch) for batch in images.split(size)]
                actual = {name: torch.cat([part[name].reshape(-1) for part in parts]) for name in EXPORTED}
                for value, decision in (("pred_score", "pred_label"), ("anomaly_map", "pred_mask")):
                    values = actual[value].view_as(expected[value])
                    torch.testing.assert_close(values, expected[value], atol=1e-4, rtol=0)
                    clear = (expected[value] - 0.5).abs() > 1e-4
                    decisions = actual[decision].bool().view_as(expected[decision])
                    assert torch.equal(decisions[clear], expected[decision][clear])

    def test_torch_export_holds_the_inference_networks_once(self, exported: Exported, tmp_path: Path) -> None:
        """Neither weights in training beside their average, nor a network that scoring does without.

        The file of a model that was just trained holds no other tensors either.
        """
        networks = exported.model.model.inference_networks
        assert sum(parameter.numel() for parameter in networks.parameters()) == self.INFERENCE_PARAMETERS
        held = {name: value for name, value in exported.torch_model.named_parameters() if ".backbone." not in name}
        assert sum(parameter.numel() for parameter in held.values()) == self.INFERENCE_PARAMETERS
        with zipfile.ZipFile(exported.model.to_torch(tmp_path)) as file:
            stored = sum(entry.file_size for entry in file.infolist() if "/data/" in entry.filename)
        known = [*exported.torch_model.parameters(), *exported.torch_model.buffers()]
        assert stored <= sum(tensor.nbytes for tensor in known) + 10_000  # What the metrics of the test gathered.
        assert exported.model.trainer is not None
        assert callable(exported.model.evaluator.log)

    def test_onnx_file_is_whole(self, exported: Exported) -> None:
        """Nothing lies beside it, since what is small fits into one file."""
        assert list(exported.onnx_file.parent.iterdir()) == [exported.onnx_file]

    def test_exported_graph_takes_any_size(self, exported: Exported) -> None:
        """Smaller and larger images than the model's, down to one of few pixels."""
        for size in ((28, 36), (8, 8), (50, 41), (300, 700)):
            images = torch.rand(2, 3, *size)
            with torch.no_grad():
                expected = exported.model.eval()(images)
            actual = exported.compiled(images.numpy())
            for name in ("pred_score", "anomaly_map"):
                values = torch.from_numpy(actual[name]).view_as(getattr(expected, name))
                torch.testing.assert_close(values, getattr(expected, name), atol=1e-4, rtol=0)

    def test_openvino_file_describes_itself(self, exported: Exported) -> None:
        """What Intel's Model API reads, and what the model was trained on, which its checkpoint knew."""

        def metadata(section: str, name: str) -> str:
            return exported.openvino_model.get_rt_info([section, name]).astype(str)

        assert metadata("model_info", "model_type") == "AnomalyDetection"
        assert metadata("model_info", "labels") == "Normal Anomaly"
        assert metadata("model_info", "image_shape") == "28 36"
        assert metadata("ganomaly_plugin", "trained_on") == "digits"
        assert metadata("ganomaly_plugin", "model") == type(exported.model).__name__
        assert float(metadata("ganomaly_plugin", "raw_image_threshold")) == pytest.approx(
            float(exported.model.post_processor.image_threshold)
        )


class ModelTester(Builder):
    """What every model must do, exported or not."""

    PANELS = 4
    """Input, reconstruction, map and mask."""
    SIZES = (
        *((28, 28), (32, 32), (39, 39), (64, 64)),
        *(pytest.param(size, marks=pytest.mark.slow) for size in ((224, 224), (256, 234), (300, 700))),
    )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Take the sizes of the subclass."""
        if "size" in metafunc.fixturenames:
            metafunc.parametrize("size", self.SIZES, ids=lambda size: f"{size[0]}x{size[1]}")

    def train(self, root: Path, datamodule: Folder, **kwargs: Any) -> AnomalibModule:
        """Train a model from a fixed seed."""
        seed_everything(7)
        model = self.build()
        build_engine(root, **kwargs).fit(model, datamodule=datamodule)
        return model

    def test_fit_test_predict(self, tmp_path: Path, datamodule: Folder) -> None:
        """A trained model reports the AUROC and average precision that scikit-learn finds in the raw scores."""
        seed_everything(7)
        model = self.build()
        engine = build_engine(tmp_path)
        engine.fit(model, datamodule=datamodule)
        (reported,) = engine.test(model, datamodule=datamodule)
        predictions = engine.predict(model, datamodule=datamodule)

        raw, labels = gather(predictions, "raw_score"), gather(predictions, "gt_label")
        assert reported["image_AUROC"] == pytest.approx(roc_auc_score(labels, raw), abs=1e-6)
        assert reported["image_AveragePrecision"] == pytest.approx(average_precision_score(labels, raw), abs=1e-6)
        shown = gather(predictions, "pred_score")
        assert raw.isfinite().all()
        assert (raw >= 0).all()
        assert ((shown >= 0) & (shown <= 1)).all()
        order = raw.argsort()
        assert (shown[order].diff()[raw[order].diff() > 1e-5 * raw.max()] > 0).all()
        torch.testing.assert_close(gather(predictions, "pred_label"), shown > 0.5)
        assert gather(predictions, "anomaly_map").shape == (len(raw), 32, 32)
        assert gather(predictions, "pred_mask").dtype == torch.bool

    def test_pictures_show_the_reconstruction(self, tmp_path: Path, datamodule: Folder) -> None:
        """Each test image gets one picture: input, reconstruction if it is one, map and mask, each 256 pixels wide."""
        from PIL import Image

        model = self.build()
        engine = build_engine(tmp_path)
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule)
        pictures = list(tmp_path.rglob("images/**/*.png"))
        assert len(pictures) == len(datamodule.test_data)
        assert Image.open(pictures[0]).size == (self.PANELS * 256, 256)

    def test_score_depends_on_the_image_alone(self, tmp_path: Path, datamodule: Folder) -> None:
        """An image's score and map agree within 1e-5 alone, in batches of any size and in any order.

        The same batch gives the same bits.
        """
        model = self.train(tmp_path, datamodule).eval()
        images = torch.rand(67, 3, 32, 32) * 2 - 1
        order = torch.randperm(67)
        with torch.no_grad():
            whole, again = model.model(images), model.model(images)
            assert torch.equal(whole.pred_score, again.pred_score)
            assert torch.equal(whole.anomaly_map, again.anomaly_map)
            for size in (1, 2, 5, 64):
                parts = [model.model(part) for part in images[order].split(size)]
                for name in ("pred_score", "anomaly_map"):
                    values, expected = torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)
                    torch.testing.assert_close(values, expected[order], rtol=1e-5, atol=0)

    def test_images_are_reconstructed_once(self, tmp_path: Path, datamodule: Folder) -> None:
        """Scores and pictures of a test take one pass over each image; pictures show its reconstruction."""
        model = self.build()
        engine = build_engine(tmp_path)
        engine.fit(model, datamodule=datamodule)
        scored: list[torch.Tensor] = []
        shown: list[torch.Tensor] = []
        model.model.register_forward_hook(lambda _module, _inputs, output: scored.append(output.reconstruction))
        draw = model.visualizer.draw
        model.visualizer.draw = lambda item, reconstruction: shown.append(reconstruction) or draw(item, reconstruction)
        engine.test(model, datamodule=datamodule)
        assert sum(map(len, scored)) == len(datamodule.test_data)
        expected = model.model.space.show(torch.cat(scored))
        assert shown == [None] * len(shown) if expected is None else torch.equal(torch.stack(shown), expected)

    def test_checkpoint_reloads(self, tmp_path: Path, datamodule: Folder) -> None:
        """A checkpoint loads under weights-only unpickling and gives the same scores and labels."""
        seed_everything(7)
        model = self.build()
        engine = build_engine(tmp_path)
        engine.fit(model, datamodule=datamodule)
        reloaded = type(model).load_from_checkpoint(engine.best_model_path, weights_only=True)
        images = torch.rand(3, 3, 50, 60)
        with torch.no_grad():
            expected, actual = model.eval()(images), reloaded.eval()(images)
        for name in ("pred_score", "pred_label", "anomaly_map", "pred_mask"):
            assert torch.equal(getattr(expected, name), getattr(actual, name)), name

    def test_same_seed_same_weights(self, tmp_path: Path, datamodule: Folder) -> None:
        """Two trainings from one seed end in the same bits."""
        first = self.train(tmp_path / "first", datamodule).state_dict()
        second = self.train(tmp_path / "second", datamodule).state_dict()
        assert all(torch.equal(first[name].nan_to_num(), second[name].nan_to_num()) for name in first)

    def test_resumed_training_equals_uninterrupted(self, tmp_path: Path, digits_folder: Path) -> None:
        """Two epochs, new objects and another seed, two epochs more: the bits of four epochs."""
        whole = self.train(tmp_path / "whole", build_datamodule(digits_folder), max_epochs=4).state_dict()

        seed_everything(7)
        engine = build_engine(tmp_path / "first", max_epochs=2)
        engine.fit(self.build(), datamodule=build_datamodule(digits_folder))
        seed_everything(8)
        resumed = self.build()
        build_engine(tmp_path / "second", max_epochs=4).fit(
            resumed, datamodule=build_datamodule(digits_folder), ckpt_path=engine.best_model_path
        )
        assert all(
            torch.equal(value.nan_to_num(), resumed.state_dict()[name].nan_to_num()) for name, value in whole.items()
        )

    def test_any_size_trains_and_scores(self, tmp_path: Path, digits_folder: Path, size: tuple[int, int]) -> None:
        """Square or not, odd or even, every size from 28 up trains two steps and gives a map of its own size."""
        model = self.build(image_size=size)
        datamodule = build_datamodule(digits_folder, train_batch_size=2, eval_batch_size=2)
        engine = build_engine(tmp_path, limit_train_batches=2, limit_val_batches=1)
        engine.fit(model, datamodule=datamodule)
        with torch.no_grad():
            prediction = model.eval()(torch.rand(1, 3, 31, 77))
        assert prediction.pred_score.isfinite().all()
        assert prediction.anomaly_map.shape[-2:] == size

    def test_grey_model_takes_colour_and_grey(self) -> None:
        """A one-channel model scores a grey image and its three equal channels alike."""
        model = self.build(input_channels=1).eval()
        grey = torch.rand(2, 1, 32, 32) * 2 - 1
        with torch.no_grad():
            alone, tripled = model.model(grey), model.model(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(alone.pred_score, tripled.pred_score)
        torch.testing.assert_close(alone.anomaly_map, tripled.anomaly_map)

    def test_trains_without_anomalies_in_validation(self, tmp_path: Path, digits_folder: Path) -> None:
        """With normal validation images alone there is a threshold, and normal images stay below it."""
        model = self.build()
        engine = build_engine(tmp_path)
        datamodule = build_datamodule(digits_folder, val_split_mode="from_train", val_split_ratio=0.5)
        engine.fit(model, datamodule=datamodule)
        assert model.post_processor.image_threshold.isfinite()
        assert model.post_processor.pixel_threshold.isfinite()
        predictions = engine.predict(model, dataloaders=datamodule.val_dataloader())
        assert gather(predictions, "pred_label").float().mean() <= 0.1
        assert gather(predictions, "pred_mask").float().mean() <= 0.01

    def test_post_processor_can_be_left_out(self, tmp_path: Path, datamodule: Folder) -> None:
        """A test then reports the metrics of raw scores, and predictions have no labels."""
        model = self.build(post_processor=False, visualizer=False)
        engine = build_engine(tmp_path, limit_train_batches=2)
        engine.fit(model, datamodule=datamodule)
        (reported,) = engine.test(model, datamodule=datamodule)
        predictions = engine.predict(model, datamodule=datamodule)
        raw, labels = gather(predictions, "raw_score"), gather(predictions, "gt_label")
        assert reported["image_AUROC"] == pytest.approx(roc_auc_score(labels, raw), abs=1e-6)
        assert torch.equal(gather(predictions, "pred_score"), raw)
        assert predictions[0].pred_label is None

    @pytest.mark.parametrize("monitor", ["val_score", "image_AUROC"])
    def test_callbacks_find_a_validation_metric(self, tmp_path: Path, datamodule: Folder, monitor: str) -> None:
        """EarlyStopping can watch either documented metric."""
        from lightning.pytorch.callbacks import EarlyStopping

        engine = build_engine(tmp_path, max_epochs=3, callbacks=[EarlyStopping(monitor, patience=0, mode="min")])
        engine.fit(self.build(), datamodule=datamodule)
        assert monitor in engine.trainer.callback_metrics

    @pytest.mark.parametrize(("precision", "clip"), [("32-true", None), ("bf16-mixed", None), ("bf16-mixed", 0.5)])
    def test_precision(self, tmp_path: Path, datamodule: Folder, precision: str, clip: float | None) -> None:
        """Every epoch's losses are finite in single and in mixed precision, with clipped gradients too."""
        engine = build_engine(tmp_path, precision=precision, gradient_clip_val=clip)
        engine.fit(self.build(), datamodule=datamodule)
        losses = {name: value for name, value in engine.trainer.callback_metrics.items() if name.startswith("loss_")}
        assert losses
        assert all(value.isfinite() for value in losses.values())

    def test_trained_model_can_be_pickled(self, tmp_path: Path, datamodule: Folder) -> None:
        """Its torch model too, after a test has shown its progress."""
        model = self.build(visualizer=False)
        engine = build_engine(tmp_path, limit_train_batches=1, enable_progress_bar=True)
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule)
        torch.save(model, tmp_path / "model.pt")
        assert set(torch.load(tmp_path / "model.pt", weights_only=False).state_dict()) == set(model.state_dict())

    def test_every_parameter_gets_a_gradient(self, tmp_path: Path, datamodule: Folder) -> None:
        """Nothing that is optimised is left out of the backward passes, and autograd finds no anomaly."""
        from lightning.pytorch import Callback

        missing: list[str] = []

        class Gradients(Callback):
            def on_before_optimizer_step(self, _trainer: Any, pl_module: AnomalibModule, optimizer: Any) -> None:
                names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
                missing.extend(
                    names[id(parameter)]
                    for group in optimizer.param_groups
                    for parameter in group["params"]
                    if parameter.grad is None or not parameter.grad.any()
                )

        engine = build_engine(tmp_path, callbacks=[Gradients()], detect_anomaly=True, limit_train_batches=2)
        engine.fit(self.build(), datamodule=datamodule)
        assert not missing
