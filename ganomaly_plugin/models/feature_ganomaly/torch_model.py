# SPDX-License-Identifier: Apache-2.0
"""The networks of GANomaly on features, in plain PyTorch."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from ganomaly_plugin.models.components.checks import check_at_least, check_choice, check_fraction
from ganomaly_plugin.models.components.dcgan import MapToVector, VectorToMap, halved_sizes
from ganomaly_plugin.models.components.detector_model import DetectorModel, Output
from ganomaly_plugin.models.components.feature_space import BackboneFeatures
from ganomaly_plugin.models.components.scores import whitening_matrix
from ganomaly_plugin.models.ganomaly.loss import discriminator_loss, feature_matching_loss, latent_loss

from .loss import reconstruction_loss

Score = Literal["residual", "latent", "sum"]
Code = Literal["global", "spatial"]

LARGEST_LOG_VARIANCE = 6.0
"""Bound on predicted log-variances of features whose usual variance is about one."""


class Shape(NamedTuple):
    """Shape of the networks.

    Attributes:
        size: Height and width of the input.
        channels: Channels of the input.
        n_features: Channels after the first convolution, doubled at each halving.
        max_features: Upper bound on the channels of inner layers, ``None`` for none.
        latent_vec_size: Channels of the code.
        code: ``global`` for one vector an image, ``spatial`` for one a place.
        kernel_size: Side of the first and last convolution's kernels, odd.
        dropout: Fraction of the input to the code that is set to zero in training.
    """

    size: tuple[int, int]
    channels: int
    n_features: int
    max_features: int | None
    latent_vec_size: int
    code: Code
    kernel_size: int
    dropout: float

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths of the feature maps, halved while the shorter side has 8 places or more."""
        return halved_sizes(self.size) if self.code == "global" else [self.size]

    @property
    def widths(self) -> list[int]:
        """Channels of these maps."""
        bound = self.max_features or max(self.channels, self.n_features)
        return [min(self.n_features * 2**stage, max(bound, self.n_features)) for stage in range(len(self.sizes))]


class Encoder(nn.Module):
    """From features ``(B, C, h, w)`` to a code, ``(B, Z, 1, 1)`` or ``(B, Z, h, w)``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = shape.widths
        padding = shape.kernel_size // 2
        layers: list[nn.Module] = [nn.Conv2d(shape.channels, widths[0], shape.kernel_size, padding=padding)]
        layers.append(nn.LeakyReLU(0.2))
        for width_in, width_out in pairwise(widths):
            layers += [nn.Conv2d(width_in, width_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        kernel = shape.sizes[-1] if shape.code == "global" else (1, 1)
        convolution = MapToVector if shape.code == "global" else nn.Conv2d
        self.to_code = nn.Sequential(
            nn.Dropout(shape.dropout), convolution(widths[-1], shape.latent_vec_size, kernel, bias=False)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Encode features."""
        code: torch.Tensor = self.to_code(self.features(features))
        return code


class Decoder(nn.Module):
    """From a code to features ``(B, C, h, w)`` and the log-variances of ``L`` levels ``(B, L, h, w)``."""

    def __init__(self, shape: Shape, n_levels: int) -> None:
        super().__init__()
        sizes, widths = shape.sizes[::-1], shape.widths[::-1]
        if shape.code == "global":
            first: nn.Module = VectorToMap(shape.latent_vec_size, widths[0], sizes[0], bias=False)
        else:
            first = nn.Conv2d(shape.latent_vec_size, widths[0], 1)
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2)]
        for (width_in, width_out), (size_in, size_out) in zip(pairwise(widths), pairwise(sizes), strict=True):
            odd = (size_out[0] - 2 * size_in[0], size_out[1] - 2 * size_in[1])
            layers.append(nn.ConvTranspose2d(width_in, width_out, 4, stride=2, padding=1, output_padding=odd))
            layers.append(nn.LeakyReLU(0.2))
        padding = shape.kernel_size // 2
        last = nn.Conv2d(widths[-1], shape.channels + n_levels, shape.kernel_size, padding=padding)
        # What is usual, to begin with: a mean of nearly zero and a variance of nearly one.
        nn.init.normal_(last.weight, std=0.001)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # It has one.
        self.layers = nn.Sequential(*layers, last)
        self.channels = shape.channels

    def forward(self, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a code."""
        features, log_variance = self.layers(code).tensor_split([self.channels], dim=1)
        return features, LARGEST_LOG_VARIANCE * torch.tanh(log_variance / LARGEST_LOG_VARIANCE)


class Generator(nn.Module):
    """Encoder of centred features, and decoder to whitened ones.

    The encoder sees them softly limited to a few standard deviations, so that an anomaly cannot explain itself.
    """

    def __init__(self, shape: Shape, n_levels: int) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape, n_levels)

    def forward(self, centred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return reconstructions ``(B, C, h, w)``, log-variances ``(B, L, h, w)`` and codes of centred features."""
        code = self.encoder(limit(centred))
        return (*self.decoder(code), code)


class Discriminator(nn.Module):
    """An encoder to one number, the logit of "these features are real", that also returns its last feature map."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        encoder = Encoder(shape._replace(latent_vec_size=1, code="global", dropout=0))
        self.features = encoder.features
        self.classifier = encoder.to_code

    def forward(self, whitened: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(B,)`` and features ``(B, F, h, w)`` of whitened features ``(B, C, h, w)``."""
        features = self.features(limit(whitened))
        return self.classifier(features).flatten(), features


def limit(features: torch.Tensor) -> torch.Tensor:
    """Limit features of unit variance softly to three standard deviations."""
    return 3 * torch.tanh(features / 3)


class FeatureGANomalyModel(DetectorModel):
    """GANomaly on whitened features.

    The generator predicts a Gaussian for each feature: its reconstruction is the mean, and it predicts one variance a
    level and place. An image's residual is whitened by the geometric mean of the usual variance at the place and the
    predicted one.

    Args:
        space: Features of a backbone.
        shape: Shape of the networks.
        score: ``residual`` (of the anomaly map), ``latent`` (the whitened difference of the two codes), or their
            ``sum``, each in units of its mean over the training images.
        top_fraction: Fraction of the map's largest values whose mean is the residual's score; 0 for the maximum.
        prediction_weight: Weight in [0, 1] of the generator's prediction against what is usual; 0 leaves PaDiM's score.
        predict_variance: Whether the generator predicts variances.
        adversarial: Whether there is a discriminator.
        second_encoder: Whether there is a second encoder.
        average_weights: Whether to score with an EMA of the networks' weights.

    Attributes:
        whitening: Buffer ``(N, N)`` that whitens the difference of the codes; the identity until training sets it.
        usual_scores: Buffer ``(2,)``, means over the training images of the residual's score and the latent one.

    Raises:
        ValueError: If an argument is out of its range; the message names the value, the rule and what works.
    """

    space: BackboneFeatures
    whitening: torch.Tensor
    usual_scores: torch.Tensor

    def __init__(
        self,
        space: BackboneFeatures,
        shape: Shape,
        *,
        score: Score,
        top_fraction: float,
        prediction_weight: float,
        predict_variance: bool,
        adversarial: bool,
        second_encoder: bool,
        average_weights: bool,
    ) -> None:
        check_choice(get_args(Score), score=score)
        check_choice(get_args(Code), code=shape.code)
        check_at_least(1, n_features=shape.n_features, latent_vec_size=shape.latent_vec_size)
        check_fraction(top_fraction=top_fraction, prediction_weight=prediction_weight, dropout=shape.dropout)
        if score != "residual" and (shape.code == "spatial" or not second_encoder):
            msg = f"score is {score!r}, which needs two codes: set code to 'global' and wenc above 0."
            raise ValueError(msg)
        networks = nn.ModuleDict({"generator": Generator(shape, len(space.level_channels))})
        if second_encoder:
            networks["second_encoder"] = Encoder(shape)
        if adversarial:
            networks["discriminator"] = Discriminator(shape)
        inference = ["generator"] if score == "residual" else ["generator", "second_encoder"]
        super().__init__(space, networks, inference, average=average_weights)
        self.score_name = score
        self.top_fraction = top_fraction
        self.prediction_weight = prediction_weight
        self.predict_variance = predict_variance
        if score != "residual":
            self.register_buffer("whitening", torch.eye(shape.latent_vec_size))
            self.register_buffer("usual_scores", torch.ones(2))

    def losses(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unweighted losses of targets ``(B, 2 C, h, w)``; those of networks that exist."""
        whitened, centred = self.space.split(target)
        reconstruction, log_variance, code = self.networks["generator"](centred)
        log_variance = self._spread(log_variance)
        likelihood = reconstruction_loss(whitened, reconstruction, log_variance, self.space.channel_weights)
        losses = {"loss_reconstruction": likelihood}
        if "second_encoder" in self.networks:
            losses["loss_latent"] = latent_loss(code, self.networks["second_encoder"](limit(reconstruction)))
        if "discriminator" in self.networks:
            real_logits, real_features = self.networks["discriminator"](whitened)
            fake_logits, fake_features = self.networks["discriminator"](reconstruction)
            losses["loss_adversarial"] = feature_matching_loss(real_features, fake_features)
            losses["loss_discriminator"] = discriminator_loss(real_logits, fake_logits)
        return losses

    def _spread(self, log_variance: torch.Tensor) -> torch.Tensor:
        """Give every channel of a level the level's log-variance, ``(B, C, h, w)``; zero without predictions."""
        if not self.predict_variance:
            log_variance = torch.zeros_like(log_variance)
        parts = [
            part.expand(-1, channels, -1, -1)
            for part, channels in zip(log_variance.split(1, 1), self.space.level_channels, strict=True)
        ]
        return torch.cat(parts, 1)

    @torch.no_grad()
    def measure_scores(self, targets: Iterable[torch.Tensor]) -> None:
        """Set the units of the latent score and of the sum.

        Args:
            targets: Targets ``(B, 2 C, h, w)`` of all training images.
        """
        differences, residuals = [], []
        for target in targets:
            generated = self._generate(target)
            differences.append(self._latent_difference(*generated))
            residuals.append(largest(self._residual(target, *generated)[0], self.top_fraction))
        difference = torch.cat(differences)
        self.whitening.copy_(whitening_matrix(difference.T @ difference / len(difference)))
        usual_latent = (difference @ self.whitening).square().mean()
        self.usual_scores.copy_(torch.stack([torch.cat(residuals).mean(), usual_latent]))

    def _generate(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generated: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.inference_networks["generator"](
            self.space.split(target)[1]
        )
        return generated

    def _latent_difference(
        self, reconstruction: torch.Tensor, _log_variance: torch.Tensor, code: torch.Tensor
    ) -> torch.Tensor:
        """Return the codes of what was generated less those of its reconstructions, ``(B, Z)``."""
        return (code - self.inference_networks["second_encoder"](limit(reconstruction))).flatten(1)

    def _residual(
        self, target: torch.Tensor, reconstruction: torch.Tensor, log_variance: torch.Tensor, _code: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return anomaly maps ``(B, 1, H, W)``, and the weighted reconstructions."""
        predicted = self.prediction_weight * reconstruction
        precision = (-self.prediction_weight * self._spread(log_variance)).exp()
        return self.space.to_map(self.space.error(target, predicted) * precision), predicted

    def score(self, target: torch.Tensor) -> Output:
        """Score targets ``(B, 2 C, h, w)``, and map their residuals."""
        generated = self._generate(target)
        anomaly_map, predicted = self._residual(target, *generated)
        score = largest(anomaly_map, self.top_fraction)
        if self.score_name != "residual":
            difference = self._latent_difference(*generated)
            latent = (difference @ self.whitening).square().mean(1) / self.usual_scores[1]
            score = latent if self.score_name == "latent" else score / self.usual_scores[0] + latent
        return Output(score, anomaly_map, predicted)


def largest(anomaly_map: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the mean of the largest values of maps ``(B, 1, H, W)``, a fraction of all, at least one, as ``(B,)``."""
    values = anomaly_map.flatten(1)
    count = max(1, round(fraction * values.shape[1]))
    return values.amax(1) if count == 1 else values.topk(count, dim=1).values.mean(1)
