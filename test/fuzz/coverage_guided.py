"""Coverage-guided fuzzing of what reads bytes from outside, with atheris: `python test/fuzz/coverage_guided.py --help`.

Needs `pip install atheris` (it has wheels for CPython 3.11 to 3.13 on Linux). A finding ends the run of its target with
a traceback and leaves the input in the folder `--out`, from which `--input FILE` repeats it.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1] / "helpers")]

MEMORY_MB = 2048
HANG_S = 20


def fuzz(target: str, arguments: Sequence[str]) -> None:
    """Run one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["md_perception"]):
        import fuzz_targets
    atheris.Setup([sys.argv[0], *arguments], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


def run(target: str, seconds: int, out: Path) -> bool:
    """Run one target in a process of its own; return whether it found nothing."""
    from fuzz_targets import seeds

    corpus = out / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(target)):
        (corpus / f"seed_{number}").write_bytes(data)
    command = [sys.executable, str(HERE), target, "--libfuzzer", f"-max_total_time={seconds}"]
    command += [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={HANG_S}", "-max_len=20000", f"-artifact_prefix={corpus}-"]
    ran = subprocess.run([*command, str(corpus)], capture_output=True, text=True, errors="replace", check=False)
    (out / f"{target}.log").write_text(ran.stdout + ran.stderr, encoding="utf-8")
    done = re.search(r"Done (\d+) runs in (\d+) second", ran.stderr)
    coverage = re.findall(r"cov: (\d+)", ran.stderr)
    if ran.returncode == 0 and done:
        print(f"{target}: {done[1]} inputs in {done[2]} s, {coverage[-1]} branches, no finding", flush=True)
        return True
    print(f"{target}: a finding, or it did not run; the end of {out / target}.log:", flush=True)
    print("\n".join((ran.stdout + ran.stderr).splitlines()[-25:]), flush=True)
    return False


def main() -> int:
    """Run the command line; return its exit status: 1 after a finding."""
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--out", type=Path, default=Path("log/fuzz"), help="folder for corpus, logs and findings")
    parser.add_argument("--input", type=Path, help="run the one target on this file alone")
    given = parser.parse_args()
    unknown = set(given.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}: use {', '.join(TARGETS)}")
    targets = given.targets or list(TARGETS)
    if given.input is not None:
        for target in targets:
            TARGETS[target](given.input.read_bytes())
        return 0
    results = [run(target, given.seconds, given.out) for target in targets]
    return 0 if all(results) else 1


if __name__ == "__main__":
    if "--libfuzzer" in sys.argv[2:3]:
        fuzz(sys.argv[1], sys.argv[3:])
    else:
        sys.exit(main())
