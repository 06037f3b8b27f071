# SPDX-License-Identifier: Apache-2.0
"""The subcommand ``anomalib compare``."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from ganomaly_plugin.compare.runners import RunnerName


class Compare:
    """Compare anomaly detectors side by side, over datasets and seeds, with one report."""

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Return the parser of the subcommand's arguments."""
        parser = parser or ArgumentParser()
        parser.add_argument("--config", type=str, required=True, help="YAML file with a section 'compare'")
        parser.add_argument("--output", type=str, default="results/compare", help="folder of results and report")
        parser.add_argument("--resume", action="store_true", help="keep finished trainings and do the rest")
        parser.add_argument("--dry-run", action="store_true", help="print the trainings and an estimate, and stop")
        parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
        parser.add_argument("--runner", type=RunnerName, default="local", help="where trainings run")
        parser.add_argument("--ray-address", type=str | None, default=None, help="address of a Ray cluster")
        return parser

    def run(self, args: Namespace) -> None:
        """Run the comparison; the exit status is 1 if a training failed, 2 if nothing could start."""
        # Every command of anomalib's imports this module, and does not need the rest.
        from ganomaly_plugin.compare.comparison import compare, overview, print_plan

        console = Console()
        try:
            if args.dry_run:
                print_plan(args.config, args.jobs)
                return
            summary = compare(
                args.config, args.output, resume=args.resume, jobs=args.jobs, runner=args.runner,
                ray_address=args.ray_address,
            )  # fmt: skip
        except (OSError, ValueError, ModuleNotFoundError) as error:
            console.print(f"[red]anomalib compare:[/red] {error}", highlight=False)
            raise SystemExit(2) from error
        console.print(overview(summary))
        console.print(f"report  {Path(args.output) / 'report.html'}", highlight=False)
        failed = len(summary.results) - len(summary.done)
        if failed:
            console.print(f"{failed} trainings failed; --resume tries them again.")
            raise SystemExit(1)
