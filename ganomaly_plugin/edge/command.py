# SPDX-License-Identifier: Apache-2.0
"""The command ``ganomaly-edge``: its arguments, its exit status, and errors in one line.

What a subcommand does is in the module of its name, which is imported when it runs: ``--help`` and ``--version`` answer
at once, and a missing library or an early Ctrl-C is reported like every other error.
"""

import argparse
import importlib
import io
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
INTERRUPTION = "ganomaly-edge: interrupted."
RESUMABLE_INTERRUPTION = "ganomaly-edge: interrupted; --resume continues the file of --output."
REQUIRED = {"numpy", "openvino", "PIL"}
"""What a device has to have installed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Returns:
        0 if all images are normal, 1 if some are anomalous, 2 after an error, 130 after Ctrl-C.
    """
    message = INTERRUPTION
    try:
        with _interruption_ends_at_once():
            options = _parser().parse_args(arguments)
            command = importlib.import_module(f"ganomaly_plugin.edge.{options.module}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # As in files of results: names may hold any letters and any bytes.
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        if getattr(options, "resume", None) is not None and options.output is not None:
            message = RESUMABLE_INTERRUPTION
        status: int = command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # Whoever read the results has gone, and Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, MemoryError):
            reason = f"There is not enough memory. {reason}".strip()
        if isinstance(error, ModuleNotFoundError) and error.name in REQUIRED:
            reason = f"{error.name} is not installed: pip install openvino numpy pillow."
        print(f"ganomaly-edge: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(message, file=sys.stderr)
        return INTERRUPTED
    return status


@contextmanager
def _interruption_ends_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process without an exception, while modules are imported and nothing has been written.

    Python imports with locks that it releases in callbacks of weak references. An exception there is swallowed, and its
    lock stays taken: whatever imports something later waits for ever.
    """

    def end(*_: Any) -> NoReturn:
        os.write(2, f"{INTERRUPTION}\n".encode())  # Whatever was interrupted may be writing to sys.stderr.
        os._exit(INTERRUPTED)

    ours = threading.current_thread() is threading.main_thread()  # Others must not set handlers.
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ganomaly-edge", description="Find anomalous images with an exported model.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('ganomaly-plugin')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}. {details}")
        command.set_defaults(module=name.replace("-", "_"))
        command.add_argument("model", type=Path, help="exported model (.xml or .onnx)")
        return command

    predict = add_command("predict", "score images", "Exit status: 0 all normal, 1 anomalies found, 2 errors.")
    predict.add_argument("paths", nargs="+", help="images, folders, globs, videos, or - for a list on standard input")
    predict.add_argument("--save-maps", type=Path, metavar="DIR", help="folder for heat maps over the images")
    _add_scoring(predict)

    watch = add_command(
        "watch",
        "score what a camera writes into a folder",
        "Runs until SIGINT or SIGTERM. Images that are in the folder already are left out; with --resume, all that have"
        " no result are scored. A file that is written again under its name is scored again.",
    )
    watch.add_argument("folder", type=Path, help="the folder; folders in it are followed as well")
    watch.add_argument(
        "--on-anomaly",
        metavar="COMMAND",
        help="program to start for each anomalous image, with its result in JSON as last argument",
    )
    watch.add_argument(
        "--settle",
        type=_number(float, 0),
        default=0.5,
        metavar="SECONDS",
        help="time for which a file must not change before it is read (default: 0.5)",
    )
    watch.add_argument(
        "--drift-window", type=_number(int, 20), default=200, metavar="N", help="parts compared with the calibration"
    )
    watch.add_argument(
        "--summary-seconds", type=_number(float, above=0), default=60, metavar="S", help="time between two summaries"
    )
    _add_scoring(watch)

    calibrate = add_command(
        "calibrate",
        "write a copy of the model with thresholds from your own parts",
        "Without --false-alarms and --recall, the threshold is that of the best F1 score.",
    )
    calibrate.add_argument("good", help="folder, glob or image of good parts")
    calibrate.add_argument("bad", nargs="?", help="folder, glob or image of bad parts")
    goal = calibrate.add_mutually_exclusive_group()
    fraction = _number(float, above=0, below=1)
    goal.add_argument("--false-alarms", type=fraction, metavar="P", help="fraction of good parts that may be anomalous")
    goal.add_argument("--recall", type=fraction, metavar="P", help="fraction of bad parts that must be anomalous")
    calibrate.add_argument("--output", type=Path, help="the new model (default: MODEL.calibrated.xml)")
    _add_device(calibrate)

    server = add_command(
        "model-server",
        "write the files with which OpenVINO Model Server serves the model",
        "Clients send images as float32 (B, 3, H, W) in [0, 1], of any size.",
    )
    server.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for the files")
    server.add_argument("--name", type=_file_name, default="detector", help="name under which clients find the model")
    server.add_argument("--device", type=_server_device, default="CPU", help="OpenVINO's device on the server")

    bench = add_command("bench", "measure latency and throughput")
    sides = ("HEIGHT", "WIDTH")
    bench.add_argument(
        "--size", type=_number(int, 1), nargs=2, metavar=sides, default=(256, 256), help="size of images in pixels"
    )
    bench.add_argument("--seconds", type=_number(float, above=0), default=5, help="duration of each measurement")
    bench.add_argument("--device", default="CPU", help="OpenVINO's device")
    return parser


def _add_device(command: argparse.ArgumentParser) -> None:
    """Add the arguments of all commands that read images."""
    command.add_argument("--device", default="CPU", help="OpenVINO's device")
    command.add_argument(
        "--max-pixels",
        type=_number(int, 1),
        metavar="N",
        help="refuse larger images (default: 50 million); decoding takes 4 bytes a pixel, 8 for rotated photographs, "
        "and models that do not resize with antialiasing take 24",
    )


def _add_scoring(command: argparse.ArgumentParser) -> None:
    """Add the arguments of all commands that write results."""
    command.add_argument("--output", type=Path, help="results as .csv or .jsonl; standard output by default")
    command.add_argument("--resume", action="store_true", help="keep the results in --output and score the rest")
    command.add_argument("--threshold", type=_number(float), help="score above which an image is anomalous")
    _add_device(command)


def _file_name(text: str) -> str:
    """Check that a name can be that of a folder."""
    if text in {"", ".", ".."} or Path(text).name != text:
        msg = f"'{text}' is no name of a folder"
        raise argparse.ArgumentTypeError(msg)
    return text


def _server_device(text: str) -> str:
    """Check that OpenVINO knows such devices; which ones the server has shows there."""
    if re.fullmatch(r"(CPU|GPU|NPU|AUTO|HETERO|MULTI|BATCH)([.:][A-Za-z0-9.,:()-]+)?", text) is None:
        msg = f"'{text}' is none of OpenVINO's devices: CPU, GPU, NPU, AUTO, or such as GPU.1 and HETERO:GPU,CPU"
        raise argparse.ArgumentTypeError(msg)
    return text


def _number(
    kind: type[int] | type[float], least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> Callable[[str], Any]:
    """Return what reads a finite number in a range."""

    def read(text: str) -> int | float:
        value = kind(text)
        if not (least <= value and above < value < below):
            raise ValueError
        return value

    bounds = [f"at least {least:g}"] * (least > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
    bounds += [f"below {below:g}"] * (below < math.inf)
    read.__name__ = " ".join(["whole" if kind is int else "finite", "number", " and ".join(bounds)]).strip()
    return read


if __name__ == "__main__":
    sys.exit(main())
