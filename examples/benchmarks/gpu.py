"""A check for a day with a GPU: is the library right there, how fast is a step, and what does an epoch take?

    python examples/benchmarks/gpu.py --budget 480 --out OUT --data CIFAR     on a machine with a GPU
    python examples/benchmarks/gpu.py --device cpu --tiny --budget 240        anywhere: tries the check itself

Each stage is a process of its own, since an error of CUDA spoils the rest of a process, and gets a share of the budget;
what one leaves over goes to the next.

    machine   versions, the rates of matrix products and copies, the attention kernels and what each costs
    right     CUDA equals CPU for every objective, nothing leaks, every attention kernel, compiled equals eager
    step      a training step, eager, compiled and as one CUDA graph, beside the pseudocode; EsViT's loss
    feed      augmentation and draws of a batch, and where the host waits for the GPU
    epoch     the recipe randsac_cifar10 by its command line, for as many epochs as there is time for

Every result is a line of OUT/results.jsonl as soon as it is known, so that a run that is cut off loses none;
OUT/kernels.txt lists kernels. The exit code is 1 if a result is bad. MFU is three times the FLOP of a forward pass
(matrix products, masked attention in full) over time and the measured rate of matrix products.
Run from the repository root, which must be in PYTHONPATH.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from examples.benchmarks.gpu_stages.items import Settings, Stage
from examples.benchmarks.gpu_stages.report import RESULTS, append, read, summarise

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"machine": 0.06, "right": 0.22, "step": 0.36, "feed": 0.05, "epoch": 0.31}
GRACE = 10  # seconds in which a stage may end by itself


def run_stage(name: str, settings: Settings) -> int | str:
    """Run a stage in a process of its own, which loads torch; return how it ended, 0 if well."""
    command = [sys.executable, "-u", "-m", "examples.benchmarks.gpu", "--child", name]
    command += ["--budget", f"{settings.budget:.1f}", "--out", str(settings.out), "--data", str(settings.data)]
    command += ["--device", settings.device, *(["--tiny"] if settings.tiny else [])]
    environment = {"OMP_NUM_THREADS": "1"} if settings.device == "cpu" else {}  # threads would wait for each other
    environment |= os.environ
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=settings.budget + GRACE)
    except subprocess.TimeoutExpired:
        return "cut off"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the workers of compilers and loaders
        process.wait()


def run_all(settings: Settings, names: list[str]) -> int:
    """Run stages one after the other, and summarise; return 1 if a result is bad."""
    start = time.monotonic()
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / RESULTS).unlink(missing_ok=True)
    for number, name in enumerate(names):
        left = settings.budget - (time.monotonic() - start)
        seconds = left * SHARES[name] / sum(SHARES[other] for other in names[number:])
        print(f"\n=== {name}: {seconds:.0f} s of {left:.0f} s", flush=True)
        ended = run_stage(name, settings.with_budget(seconds))
        if ended != 0:
            append(settings.out, {"stage": name, "item": "the process", "error": f"ended with {ended}"})
            print(f"=== {name} ended with {ended}", flush=True)
    print(f"\n=== summary ({time.monotonic() - start:.0f} s)")
    text, num_bad = summarise(read(settings.out))
    print(text, flush=True)
    return int(num_bad > 0)


def main() -> int:
    """Run all stages, or as a child a single one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")), help="folder for results")
    parser.add_argument(
        "--data", type=Path, default=Path("/tmp/cifar10"), help="CIFAR-10 as folders of classes in train/ and test/"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the check itself")
    parser.add_argument("--stages", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--child", choices=SHARES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = Settings(args.budget, args.out.resolve(), args.data.resolve(), args.device, args.tiny)
    if args.child is None:
        return run_all(settings, [name for name in SHARES if name in args.stages])
    importlib.import_module(f"examples.benchmarks.gpu_stages.{args.child}").run(Stage(args.child, settings))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
