# SPDX-License-Identifier: Apache-2.0
"""anomalib's command with the names of this package, for environments that allow no start-up hook.

``python -m ganomaly_plugin train --model ganomaly --data digits`` is ``anomalib train --model ganomaly --data digits``.
"""

import sys

from ganomaly_plugin import startup

startup.install()  # Also in processes that are spawned, which run this module under another name.

if __name__ == "__main__":
    from anomalib.cli.cli import main

    sys.argv[0] = "anomalib"  # What the help shows.
    main()
