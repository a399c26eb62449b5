"""Coverage-guided fuzzing of one target, or of all in turn: `make fuzz`, or

    python tests/fuzz/run.py body --seconds 300

New inputs go to a folder of their own (--new), so that the kept corpus grows by decision only:
`--merge FOLDER` takes from it what covers more.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
INPUT_BYTES_MAX, SECONDS_OF_ONE_MAX = 8192, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=sorted(p.name for p in CORPUS.iterdir()))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--new", type=Path)
    parser.add_argument("--merge", type=Path)
    options = parser.parse_args()
    if options.target is None:
        for folder in sorted(CORPUS.iterdir()):
            print(f"--- {folder.name}", flush=True)
            again = [sys.executable, __file__, folder.name, "--seconds", str(options.seconds)]
            subprocess.run(again, check=True)
        return
    kept = str(CORPUS / options.target)
    if options.merge is not None:
        fuzz(options.target, ["-merge=1", kept, str(options.merge)])
    with tempfile.TemporaryDirectory() as folder:
        new = options.new or Path(folder)
        new.mkdir(exist_ok=True)
        fuzz(options.target, [f"-max_total_time={options.seconds}", str(new), kept])


def fuzz(target: str, arguments: list[str]) -> None:
    import atheris  # noqa: PLC0415 - an optional dependency, and slow to import

    with atheris.instrument_imports(include=["extauthz"]):
        import targets  # noqa: PLC0415 - what is imported here is watched

    limits = [f"-max_len={INPUT_BYTES_MAX}", f"-timeout={SECONDS_OF_ONE_MAX}", "-rss_limit_mb=2048"]
    atheris.Setup(
        [sys.argv[0], *limits, "-print_final_stats=1", *arguments], targets.TARGETS[target]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
