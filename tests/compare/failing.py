# SPDX-License-Identifier: Apache-2.0
"""A third party's model that cannot be trained."""

from typing import Any

from ganomaly_plugin import GANomaly


class Failing(GANomaly):
    """Fails at the first training batch."""

    def training_step(self, *_: Any) -> Any:
        msg = "out of patience"
        raise RuntimeError(msg)
