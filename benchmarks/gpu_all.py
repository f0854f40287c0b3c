"""Everything that needs a GPU, in one command that a bare host can run: `make gpu`, or

    python3 benchmarks/gpu_all.py [--part 1|2|3]... [--seconds N] [--out DIR] [--results DIR]
        [--only STAGE]... [--quick] [--published F] [--commit HASH] [--device cuda:0]

Part 1 (555 s) asks whether everything works on a GPU and how close steps are to it, part 2 (190 s) times the
kernels' variants, part 3 makes the tables: two colocated models under mux, temporal and spatial, kernels and
answers against the roofline, the share table. Without --part all three run. The stages are in gpu_stages.py;
each runs in processes of its own and has a limit, and one that fails or is cut short keeps what it found and
does not keep the next from running. --seconds: all has ended by then.

Nothing is fetched and nothing installed: a copy of the tree is enough, without git, and packages that the
host lacks may lie in ``.whl/`` beside it. Results (logs and files of all stages) lie in --results, where
runs add up; --out (default $OUT, else the same folder) gets them in one archive, ``gpu-part-<N>.tgz``, packed
every few seconds, with a summary (.json) and a section for docs/measurements.md (.md) beside it. Exit code 0
when every stage was good.

``--device cpu`` rehearses stages of every kind with tiny models; what it prints are not measurements.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from gpu_host import environment, gpu_name, installed, without_driver
from gpu_section import section
from gpu_stages import HERE, PARTS, Kit, rehearsal
from provenance import COMMIT, Machine, about
from stages import Done, Run, Stage, last_words, pack

_DEMO = ("smollm2-135m-instruct", "gemma3-270m")


class Report:
    """What every stage came to, in the folder that is kept; ``number``: of the part, for the archive."""

    def __init__(self, kit: Kit, out: Path, number: str, machine: Machine):
        self._kit, self._machine = kit, machine
        self.archive, self._summary, self.section = (
            out / f"gpu-part-{number}{ending}" for ending in (".tgz", ".json", ".md")
        )
        self.done: list[Done] = []
        self.left_out: list[str] = []

    def tell(self, done: Done) -> None:
        """On the terminal too, with its last words (tests say how many ran): often all that comes back."""
        self.done.append(done)
        print(f"{done.step}: {done.state}, {done.seconds:.0f} s {done.why}".rstrip(), flush=True)
        words = last_words(self._kit.results / f"{done.step}.log") if done.state != "not run" else []
        for line in words[-1:] if done.state == "good" else words:
            print(f"    {line}", flush=True)

    def pack(self) -> None:
        """A run that is cut short keeps what it found; a full disk costs an archive, not the run."""
        summary = {
            "machine": self._machine.fields,
            "steps": [one._asdict() for one in self.done],
            "rehearsal": self._kit.rehearsal,
            "left_out": self.left_out,  # of the archive: too large
        }
        text = section(self._kit.results, self._machine, self.done, rehearsal=self._kit.rehearsal)
        try:
            self._summary.write_text(json.dumps(summary, indent=1))
            self.section.write_text(text)
            self.left_out = pack(self._kit.results, self.archive)
        except OSError as error:
            print(f"{self.archive}: {error.strerror}", file=sys.stderr, flush=True)


def main() -> int:
    args = _arguments()
    if args.device != "cpu" and (why := without_driver()):
        sys.exit(f"benchmarks/gpu_all.py: {args.device} cannot be used: {why}")
    begun = time.monotonic()
    numbers = args.part or list(PARTS)
    kit = Kit(
        *(args.results.absolute(), args.device, args.quick, args.published and args.published.absolute()),
        all((_models() / name).is_dir() for name in _DEMO),
    )
    stages = chosen(kit, numbers, args.only)
    for folder in (kit.results, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    if args.commit:
        os.environ[COMMIT] = args.commit
    site, wrong = installed(HERE.parent)
    if wrong:
        print(f"wheels: {wrong}", file=sys.stderr, flush=True)
    env = environment(HERE.parent, site)
    machine = about("cpu" if kit.rehearsal else gpu_name())
    report = Report(kit, args.out, "-".join(map(str, numbers)), machine)
    seconds = args.seconds or sum(PARTS[number].seconds for number in numbers)
    run = Run(kit.results, HERE.parent, env, begun + seconds, report.tell, report.pack)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(run, "stopped", True))
    run.all(stages)
    print(report.section)
    good = len(report.done) == len(stages) and all(one.state == "good" for one in report.done)
    return 0 if good else 1


def chosen(kit: Kit, numbers: list[int], only: list[str]) -> list[Stage]:
    """The stages of these parts, or of the rehearsal. Exits where ``only`` names none."""
    stages = rehearsal(kit) if kit.rehearsal else [one for n in numbers for one in PARTS[n].stages(kit)]
    names = [stage.name for stage in stages]
    if unknown := set(only) - set(names):
        sys.exit(f"benchmarks/gpu_all.py: --only {unknown.pop()}: there is {', '.join(names)}")
    return [stage for stage in stages if not only or stage.name in only]


def _models() -> Path:
    """As ``muxd.config.home`` has it, which cannot be imported yet."""
    return Path(os.environ.get("MUXD_HOME") or Path.home() / ".cache" / "muxd") / "models"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", type=int, action="append", choices=list(PARTS), help="default: all")
    parser.add_argument("--seconds", type=float, help="all has ended by then; default: the parts' own")
    parser.add_argument("--out", type=Path, help="for the archive; default $OUT, else --results")
    parser.add_argument("--results", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="default: all")
    parser.add_argument("--published", type=Path, help="MuxServe's llama.json, for the share table")
    parser.add_argument("--quick", action="store_true", help="fewer models and shapes in part 3")
    parser.add_argument("--commit", help="of this tree, where git cannot tell")
    args = parser.parse_args()
    args.out = args.out or Path(os.environ.get("OUT") or args.results)
    return args


if __name__ == "__main__":
    sys.exit(main())
