"""Measures the speed of jaxmarks beside PyTorch and Keras; writes tables, JSON and figures.

    python launch/bench.py --out=runs/bench [--parts=steps,folds,start,load,accuracy,device,growth]
        [--only=network3,unet31] [--peers=torch,torch_compile,keras] [--repeats=5] [--batch=N] [--keras-python=PATH]
        [--run=RUN] [--augment] [--quick]

  steps     a training step and a prediction of each network of NETWORKS, ours and the peers' (launch/peers.py)
  folds     a training step of the networks of two folds, one after another and at once by vmap
  start     time from the command to the end of the first training step, with empty and with filled caches; imports
  load      reading photographs of 3264x2448 into the network's frame, beside plain Pillow in a loop and in threads
  accuracy  seconds until the default run is within 3 px on validation images; trains that run, or reads --run
  device    images/s of training (--batch at a time) and of prediction (1 and 32) in float32, tf32 and bfloat16, and
            their share of a measured matmul's FLOP/s and of the peak FLOP/s that the device's maker specifies
  growth    how the time of a training step grows with the batch, pixels, landmarks and devices; a figure for each

Every side runs in its own process, and the sides take turns: A, B, A, B. Reported are median, minimum and maximum of
--repeats turns. Our side does what a run does (`steps.runner` with the config's network, head and optimiser), with the
batch already on the device and, without --augment, no augmentation, which the peers lack. "cpu" is the CPU time of all
cores together, which other work on a shared machine disturbs less. Our predictions include decoding, the peers' do not.
If a peer's library is missing, its row holds the error and the others go on; --keras-python names a Python that has
Keras and TensorFlow.

Writes bench.json, bench.md and growth_*.png to --out, updated after every row. Parts measured earlier are kept, each
with the command that measured it. The exit status is 1 if one of our own sides failed.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peers
from experiments import hardware, make, resolve

from jaxmarks import atomic
from jaxmarks.data import fitting
from jaxmarks.report import tables

ROOT = Path(__file__).resolve().parent.parent
SPINES = {
    "classes": 1,
    "names": ("spine",),
    "sizes": (15.0, 15.0),
    "anchors": [[9.0, 12.0], [15.0, 15.0], [22.0, 18.0]],
}
ENLARGED = SPINES | {"sizes": (30.0, 30.0), "anchors": [[18.0, 24.0], [30.0, 30.0], [44.0, 36.0]]}
# Each network's config, overrides of it, and the facts of its data.
NETWORKS = {
    "network3": ("beetle.py:paper,network=3", {"train.batch_size": 32}, {"landmarks": 8}),
    "unet31": ("fish.py:paper", {"train.batch_size": 4}, {"landmarks": 7}),
    "unet_small": ("fish.py", {}, {"landmarks": 7}),
    "yolo_tiny": ("spines.py:yolo", {"train.sizes": ()}, ENLARGED),
    "hourglass": ("radiographs.py:network=hourglass", {}, {"landmarks": 8}),
    "centre": ("spines.py:centre", {}, SPINES),
    "faster_rcnn": ("spines.py:faster_rcnn", {}, SPINES),
    "yolo_paper": ("spines.py:yolo,paper", {"train.sizes": ()}, SPINES),
    "faster_rcnn_paper": ("spines.py:faster_rcnn,paper", {}, SPINES),
}
# Changes for `device`: as many heatmaps as in the fish paper.
ON_DEVICE = {"unet31": {"landmarks": 25}}
# Overrides that make the networks small enough for a test.
SMALL = {"data.size": (64, 64), "model.width": 4, "train.batch_size": 4}
QUICK = dict.fromkeys(NETWORKS, SMALL) | {
    "network3": {"data.size": (48, 64), "model.width": 16, "train.batch_size": 4},
    "unet31": {"data.size": (32, 32), "model.width": 4},
    "faster_rcnn": SMALL | {"head.hidden": 8},
    "faster_rcnn_paper": SMALL | {"model.width": 0.1, "head.hidden": 8},
}
PEERS = ("torch", "torch_channels_last", "torch_compile", "torch_channels_last_compile", "keras", "keras_xla")
PARTS = ("steps", "folds", "start", "load", "accuracy", "device", "growth")
WAYS = ("one after another", "at once")
STARTED = {"beetle": "configs/beetle.py", "fish": "configs/fish.py"}
GOAL = 3.0  # pixels
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# FLOP/s of dense matmuls in each of PRECISIONS, from NVIDIA's data sheets, by a part of the device's name.
PEAKS = {
    "H200": (67e12, 494.5e12, 989e12),
    "H100 80GB HBM3": (67e12, 494.5e12, 989e12),
    "A100": (19.5e12, 156e12, 312e12),
}


def main(arguments: list[str] | None = None) -> int:
    """Measures what the command line names; returns 1 if one of our own sides failed, else 0."""
    options = parse(arguments)
    try:
        make(options.out, "--out")
        results = earlier(options.out / "bench.json")
    except ValueError as error:
        sys.exit(f"bench: {error}")
    words = sys.argv[1:] if arguments is None else arguments
    provenance = {"command": shlex.join(["python", "launch/bench.py", *words]), **about()}
    failed = False
    for part in options.parts:
        print(f"{part} ...", flush=True)
        rows: list[dict] = []
        results |= {part: rows, "measured": results["measured"] | {part: provenance}}
        for row in guarded(globals()[part], options):
            rows.append(row)
            atomic.write_json(options.out / "bench.json", results)
            atomic.write(options.out / "bench.md", markdown(results))
        failed |= any("error" in row and row.get("side", "jaxmarks") == "jaxmarks" for row in rows)
    print(markdown(results))
    return int(failed)


def guarded(part, options) -> Iterator[dict]:
    """Yields the rows of a part; if the part fails, the last row holds the error."""
    try:
        yield from part(options)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        yield {"side": "jaxmarks", "error": str(error)}


def earlier(path: Path) -> dict:
    """Reads a bench.json: rows by part, and in "measured" the command, machine, versions and date of each part.

    Without a file there are no parts. Raises ValueError for a file of another format.
    """
    try:
        saved = json.loads(path.read_text())
        parts = [part for part in PARTS if part in saved]
        return {"measured": {part: saved["measured"][part] for part in parts}} | {part: saved[part] for part in parts}
    except FileNotFoundError:
        return {"measured": {}}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} was not written by this command: delete it, or name another --out") from None


def parse(arguments):
    """Returns the options, with the names in them checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def among(allowed):
        def parse_names(text):
            chosen = [name for name in text.split(",") if name]
            for name in chosen:
                if name not in allowed:
                    raise argparse.ArgumentTypeError(f"unknown name {name}; choose from {', '.join(allowed)}")
            return chosen

        return parse_names

    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--parts", type=among(PARTS), default=list(PARTS))
    parser.add_argument("--only", type=among(NETWORKS), default=list(NETWORKS), help="networks to measure")
    parser.add_argument(
        "--peers", type=among(PEERS), default=list(PEERS), help="libraries to compare with; empty: none"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=0, help="images in a training step of `device`; 0: the config's")
    parser.add_argument("--keras-python", default=sys.executable, help="path of a Python that has Keras and TensorFlow")
    parser.add_argument("--run", type=Path, help="a run whose metrics.jsonl is read for `accuracy`")
    parser.add_argument("--augment", action="store_true", help="augment images in our training steps, as configured")
    parser.add_argument("--quick", action="store_true", help="tiny networks, for tests: the measurements mean nothing")
    options = parser.parse_args(arguments)
    for flag, chosen, allowed in (("parts", options.parts, PARTS), ("only", options.only, NETWORKS)):
        if not chosen:
            parser.error(f"--{flag} is empty; choose from {', '.join(allowed)}")
    if options.repeats < 1:
        parser.error(f"--repeats={options.repeats}: give at least 1")
    if shutil.which(options.keras_python) is None:
        parser.error(f"--keras-python={options.keras_python}: no such program; give the path of a Python")
    if options.run and not tables.read_metrics(options.run / "metrics.jsonl"):
        parser.error(f"--run={options.run}: no epochs in a metrics.jsonl there; name the folder of a trained run")
    return options


def about() -> dict:
    """Returns the hardware, the versions and the date."""
    versions = {"python": platform.python_version()}
    for name in ("jax", "flax", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"hardware": f"{hardware()}, {platform.machine()}", "versions": versions, "date": time.strftime("%Y-%m-%d")}


def spec(name: str, *, quick=False, augment=False, **changes) -> dict:
    """Returns what a worker builds, {"network", "batch", "settings", "facts"}: a network with config keys changed."""
    config, overrides, facts = NETWORKS[name]
    overrides = overrides | (QUICK[name] if quick else {}) | changes
    facts = facts | ({"landmarks": overrides.pop("landmarks")} if "landmarks" in overrides else {})
    base = resolve([f"--config={ROOT / 'configs' / config}"])
    fitting.fill_in(base.data)
    settings = json.loads(base.to_json())
    for key, value in overrides.items():
        section, _, subkey = key.partition(".")
        settings[section][subkey] = value
    if not augment:
        settings["augment"] = {"name": "none"}
    return {"network": name, "batch": settings["train"]["batch_size"], "settings": settings, "facts": facts}


class Worker:
    """A process that answers commands (`peers.serve`); `ask` raises RuntimeError with the worker's error.

    `error` is why it takes no further turn (`in_turn`), if it failed.
    """

    def __init__(self, command: list[str], log: Path, environment=None):
        self.error: RuntimeError | None = None
        self.log = log.open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )

    def ask(self, **command) -> dict:
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"the worker process ended; see {self.log.name}"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end()

    def end(self):
        """Ends the process, if it has not ended yet."""
        with contextlib.suppress(BrokenPipeError):  # the worker has already ended
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def worker(side: str, options, environment=None) -> Worker:
    """Starts the process of a side: "jaxmarks", or one of PEERS."""
    python = options.keras_python if side.startswith("keras") else sys.executable
    file = "bench.py" if side == "jaxmarks" else "peers.py"
    log = options.out / f"{side}.log"
    return Worker(
        [python, str(ROOT / "launch" / file), *(["--worker"] if file == "bench.py" else [side])], log, environment
    )


def in_turn(sides: dict[str, Worker], action) -> None:
    """Calls `action(side, ask)` for each side. A side that fails is ended, and takes no further turn."""
    for side, one in sides.items():
        try:
            if one.error is None:
                action(side, one.ask)
        except RuntimeError as error:
            one.error = error
            one.end()


def timed(sides: dict[str, Worker], kind: str, repeats: int) -> dict[str, list[dict]]:
    """Returns the answers about a step, `repeats` of them, of each side that does not fail.

    After a warm-up the sides take turns of about a second (at most 100 steps).
    """
    step_counts: dict[str, int] = {}
    answers: dict[str, list[dict]] = {side: [] for side in sides}

    def begin(side, ask):
        ask(run=kind, steps=1)
        step_counts[side] = max(1, min(100, round(1 / ask(run=kind, steps=1)["seconds"])))
        ask(run=kind, steps=step_counts[side])  # where steps are scanned, the compiled program depends on their number

    def turn(side, ask):
        answers[side].append(ask(run=kind, steps=step_counts[side]))

    for action in (begin, *[turn] * repeats):
        in_turn(sides, action)
    return {side: given for side, given in answers.items() if sides[side].error is None}


def alone(ours: Worker, repeats: int) -> dict:
    """Returns the `spread` of our training step in ms; raises RuntimeError if it fails."""
    answers = timed({"jaxmarks": ours}, "train", repeats)
    if ours.error:
        raise ours.error
    return spread(answers["jaxmarks"])


def spread(seconds: list, key: str = "seconds", *, unit: float = 1000) -> dict:
    """Returns {"median", "least", "most"}, times `unit` (by default s -> ms), of numbers or of answers' `key`."""
    values = [unit * (one[key] if isinstance(one, dict) else one) for one in seconds]
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def steps(options) -> Iterator[dict]:
    """Yields a row for each network and side: ms of a training step and of a prediction, parameters, peak memory."""
    for name in options.only:
        yield from side_by_side(name, options)


def side_by_side(name: str, options) -> list[dict]:
    """Returns the rows of a network.

    The row of a side that fails holds its error and what was measured before it; the other sides go on.
    """
    network_spec = spec(name, quick=options.quick, augment=options.augment)
    libraries = options.peers if name in peers.NETWORKS else ()
    rows = {side: {"network": name, "batch": network_spec["batch"], "side": side} for side in ("jaxmarks", *libraries)}

    def build_network(side, ask):
        rows[side]["parameters"] = ask(set=network_spec)["parameters"]
        ask(run="train", steps=1)

    def compare_parameters(side, ask):
        theirs, ours = rows[side]["parameters"], rows["jaxmarks"].get("parameters")
        if ours not in (None, theirs):  # None if our side failed; then no peer is rejected
            raise RuntimeError(f"{theirs:,} parameters, not {ours:,} as ours: not the same network")

    def ask_memory(side, ask):
        rows[side]["peak_mb"] = round(ask(memory=True)["peak_mb"])

    with contextlib.ExitStack() as stack:
        sides = {side: stack.enter_context(worker(side, options)) for side in rows}
        in_turn(sides, build_network)
        in_turn(sides, compare_parameters)
        for kind in ("train", "predict"):
            for side, answers in timed(sides, kind, options.repeats).items():
                rows[side] |= {kind: spread(answers), f"{kind}, cpu": spread(answers, "cpu")}
            if kind == "train":
                in_turn(sides, ask_memory)
    return [row | ({"error": str(sides[side].error)} if sides[side].error else {}) for side, row in rows.items()]


def folds(options) -> Iterator[dict]:
    """Yields a row for each network: ms of a training step of two folds' networks, one after another and at once."""
    with worker("jaxmarks", options) as ours:
        for name in options.only:
            ours.ask(set=spec(name, quick=options.quick, augment=options.augment))
            # The first turn compiles.
            _, *turns = [{way: ours.ask(run=way, steps=1) for way in WAYS} for _ in range(1 + options.repeats)]
            yield {"network": name} | {way: spread([turn[way] for turn in turns]) for way in WAYS}


def start(options) -> Iterator[dict]:
    """Yields ms from the command to the end of the first training step, of first and later starts; and of imports."""
    for name, config in STARTED.items():
        arguments = [f"--config={ROOT / config}{':smoke' if options.quick else ''}"]
        first, later = [], []
        for _ in range(1 if options.quick else max(1, options.repeats // 2)):
            with tempfile.TemporaryDirectory() as folder:
                for times in (first, later):
                    times.append(
                        seconds_until_output(
                            "first step", [*arguments, f"--workdir={folder}/{len(later)}-{len(first)}"], folder
                        )
                    )
        yield {"what": f"first step, configs/{name}.py", "first": spread(first), "later": spread(later)}
    for statement in ("import jaxmarks", "import jax", "import jaxmarks.predict"):
        seconds = []
        for _ in range(options.repeats):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds.append(time.perf_counter() - began)
        yield {"what": statement, "later": spread(seconds)}


def seconds_until_output(text: str, words: list[str], cache: str) -> float:
    """Returns the seconds until a run with these arguments, and its caches in the folder `cache`, prints `text`.

    Waits for the run to end. Raises RuntimeError if it ends without printing `text`.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(Path(cache) / "compiled"),
        "JAXMARKS_CACHE": str(cache),
    }
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "--first-step", *words]
    began, seconds = time.perf_counter(), None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        for line in process.stdout:
            if seconds is None and text in line:
                seconds = time.perf_counter() - began
    if seconds is None:
        raise RuntimeError(f"{shlex.join(command)} ended with status {process.returncode} before its first step")
    return seconds


def first_step(arguments: list[str]) -> None:
    """Runs jaxmarks.main with these arguments, and exits after its first training step."""
    import jax

    from jaxmarks import main as command_line
    from jaxmarks import steps as step_functions

    make = step_functions.runner

    def runner(*args, **options):
        original = make(*args, **options)

        def first_step(state, data, rows, key, *_):
            jax.block_until_ready(original.run(state, data, rows[:1], key))
            print("first step", flush=True)
            os._exit(0)

        return original._replace(run=first_step)

    step_functions.runner = runner
    command_line.run(["jaxmarks.main", *arguments])


def load(options) -> list[dict]:
    """Measures photographs per second read into frames of 256x192.

    Compares our reader for predictions with Pillow at full size, in a plain loop and in threads.
    """
    from PIL import Image

    from jaxmarks.data import folder as folders
    from jaxmarks.data import phantoms

    size, count = ((306, 408), 4) if options.quick else ((2448, 3264), 24)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            image, _ = phantoms.draw("pronotum", i % 4, size=size)
            Image.fromarray(image).save(Path(folder) / f"{i}.jpg", quality=90)

        def ours():
            return sum(len(part) for part, _ in folders.batches(folder, size=(192, 256), problems=[]))

        def read_frame(file):
            return np.asarray(Image.open(file).convert("RGB").resize((256, 192)))

        def plain():
            return len([read_frame(file) for file in Path(folder).glob("*.jpg")])

        def threads():
            with concurrent.futures.ThreadPoolExecutor() as pool:
                return len(list(pool.map(read_frame, Path(folder).glob("*.jpg"))))

        sides = {"jaxmarks": ours, "Pillow, a loop": plain, "Pillow, threads": threads}
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, read in sides.items():
                began = time.perf_counter()
                assert read() == count
                rates[side].append(count / (time.perf_counter() - began))
    return [{"side": side, "images_per_s": spread(values, unit=1)} for side, values in rates.items()]


def accuracy(options) -> list[dict]:
    """Returns the seconds of training until the mean validation distance is within GOAL, in --run or a new run."""
    run = options.run or options.out / "accuracy"
    command = [sys.executable, "-m", "jaxmarks.main", f"--workdir={run.absolute()}"]
    command += [f"--config={ROOT / 'configs/beetle.py'}{':smoke' if options.quick else ''}"]
    if not options.run:  # a complete run in that folder is not trained again
        subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
    epochs = tables.read_metrics(run / "metrics.jsonl")
    seconds = [e["seconds"] for e in epochs if (e.get("valid/distance_px") or np.inf) <= GOAL and "seconds" in e]
    return [{"goal_px": GOAL, "seconds": min(seconds, default=None), "epochs": len(epochs)}]


def device(options) -> Iterator[dict]:
    """Yields a row for each precision and network: images/s of training and prediction, and the shares they reach.

    The shares are of a measured matmul's FLOP/s and, for devices in PEAKS, of the peak FLOP/s.
    """
    for index, precision in enumerate(PRECISIONS):
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest" if precision == "float32" else precision}
        with worker("jaxmarks", options, environment) as ours:
            about = ours.ask(devices=True)
            peak = next((peaks[index] for name, peaks in PEAKS.items() if name in about["kind"]), None)
            count = 1 if about["platform"] == "cpu" else 20  # steps per turn, so that launching them is not measured
            matmul = ours.ask(peak=512 if options.quick else 8192, dtype=dtype, count=count)["matmul"]
            for name in options.only:
                row = {"network": name, "precision": precision}
                try:
                    row |= on_device(ours, name, dtype, count, options)
                except RuntimeError as error:
                    yield row | {"error": str(error)}
                    continue
                for kind in ("train", "predict"):
                    row |= {f"{kind}, of a matmul": round(row[f"{kind}_flops_per_s"] / matmul, 3)}
                    row |= {f"{kind}, of the peak": round(row[f"{kind}_flops_per_s"] / peak, 3)} if peak else {}
                yield row | {"matmul": matmul}


def on_device(ours: Worker, name: str, dtype: str, some: int, options) -> dict:
    """Returns ms, images/s and FLOP/s of a network's training and prediction, with `some` steps per turn."""
    changes = ON_DEVICE.get(name, {}) | {"train.dtype": dtype}
    changes |= {"train.batch_size": options.batch} if options.batch else {}
    network_spec = spec(name, quick=options.quick, augment=options.augment, **changes)
    row = {"batch": network_spec["batch"]} | ours.ask(set=network_spec) | ours.ask(cost=True)
    for kind, images in (("train", network_spec["batch"]), ("predict 1", 1), ("predict 32", 32)):
        ours.ask(run=kind, steps=some)  # compiles
        row[kind] = spread([ours.ask(run=kind, steps=some) for _ in range(options.repeats)])
        row[f"{kind}, images/s"] = round(1000 * images / row[kind]["median"], 1)
    train, predict = (row.pop(f"{kind} flops") for kind in ("train", "predict"))
    row["train_flops_per_s"] = train * row["train, images/s"]
    row["predict_flops_per_s"] = predict * row["predict 32, images/s"]
    return row


def growth(options) -> Iterator[dict]:
    """Yields ms of our training step, and draws figures, over batch size, pixels, landmarks and devices."""
    name = "unet_small" if "unet_small" in options.only else options.only[0]
    base_spec = spec(name, quick=options.quick)
    height, width = base_spec["settings"]["data"]["size"]
    sizes = [(height // 2, width // 2), (height, width), (2 * height, 2 * width)]
    axes = {
        "batch": [({"train.batch_size": n}, n) for n in (1, 2, 4, 8, 16, 32)],
        "pixels": [({"data.size": size}, size[0] * size[1]) for size in sizes],
        "landmarks": [({"landmarks": n}, n) for n in (4, 16, 64)] if "landmarks" in base_spec["facts"] else [],
    }
    measured: dict[str, list] = {}

    def row(axis, value, train_ms):
        entry = {"network": name, "axis": axis, "value": value, "train": train_ms}
        measured.setdefault(axis, []).append(entry)
        draw(measured[axis], options.out / f"growth_{axis}.png")
        return entry

    with worker("jaxmarks", options) as ours:
        for axis, cases in axes.items():
            for changes, value in cases:
                ours.ask(set=spec(name, quick=options.quick, augment=options.augment, **changes))
                yield row(axis, value, alone(ours, options.repeats))
        devices = ours.ask(devices=True)
    for count in [2**i for i in range(10) if 2**i <= (2 if devices["platform"] == "cpu" else devices["devices"])]:
        # The CPU poses as several devices, which share its cores.
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        with worker("jaxmarks", options, os.environ | {"XLA_FLAGS": flags}) as ours:
            network_spec = spec(name, quick=options.quick, augment=options.augment, **{"train.devices": count})
            ours.ask(set=network_spec)
            yield row("devices", count, alone(ours, options.repeats))


def draw(rows: list[dict], path: Path) -> None:
    """Plots ms of a step over what grows, on logarithmic axes, with a dotted line for proportional growth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x = np.array([row["value"] for row in rows])
    median, least, most = (np.array([row["train"][key] for row in rows]) for key in ("median", "least", "most"))
    figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    axes.errorbar(x, median, [median - least, most - median], marker="o", capsize=3)
    axes.plot(x, median[-1] * x / x[-1], ":", color="grey")
    axes.set(xscale="log", yscale="log", xlabel=rows[0]["axis"], ylabel="ms of a training step")
    axes.set_xticks(x, [str(n) for n in x])
    axes.set_title(rows[0]["network"])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def build(wanted: dict):
    """Builds our side of a spec, for `peers.serve`."""
    import jax
    import jax.numpy as jnp
    import ml_collections

    from jaxmarks import optim, tasks
    from jaxmarks import steps as step_functions

    settings = ml_collections.ConfigDict(wanted["settings"])
    network, task = tasks.build(settings, wanted["facts"])
    variables = tasks.initial(network, settings, jax.random.key(0))
    tx = optim.build(settings.optimizer, epochs=100, steps_per_epoch=100)
    runner = step_functions.runner(task, tx=tx, devices=settings.train.devices or 1)
    examples, batch = peers.examples(wanted), wanted["batch"]
    no_points = np.zeros((batch, 0, 2), np.float32)
    has_classes = "classes" in wanted["facts"]
    host = {
        "images": examples["images"],
        "points": no_points if has_classes else examples["points"],
        "visible": np.ones((batch, wanted["facts"].get("landmarks", 0)), bool),
        "boxes": examples["boxes"],
        "labels": np.full(examples["boxes"].shape[:2], 0 if has_classes else -1, np.int32),
    }
    device_data = {name: jnp.asarray(array) for name, array in host.items()}
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    # A training step donates the memory of its state, so predictions use `variables`.
    buffers = {
        "state": runner.put(step_functions.create(variables, tx)),
        "data": runner.put(device_data),
    }
    predict_step = jax.jit(functools.partial(step_functions.predict_step, task=task))

    def train_steps(count):
        rows = np.tile(np.arange(batch, dtype=np.int32), (count, 1))
        buffers["state"], _ = runner.run(buffers["state"], buffers["data"], rows, jax.random.key(1))
        jax.block_until_ready(buffers["state"])

    step = functools.partial(step_functions.train_step, task=task, tx=tx)
    two_states = lambda: [step_functions.create(variables, tx) for _ in range(2)]
    rows_of_two, keys_of_two = np.tile(np.arange(batch, dtype=np.int32), (2, 1)), jax.random.split(jax.random.key(1))

    def one_after_another(count):
        buffers.setdefault("two", two_states())
        for _ in range(count):
            for fold, arguments in enumerate(zip(rows_of_two, keys_of_two, strict=True)):
                buffers["two"][fold], _ = jitted_step(buffers["two"][fold], device_data, *arguments)
        jax.block_until_ready(buffers["two"])

    def at_once(count):
        buffers.setdefault("both", jax.tree.map(lambda *leaves: jnp.stack(leaves), *two_states()))
        for _ in range(count):
            buffers["both"], _ = vmapped_step(buffers["both"], device_data, rows_of_two, keys_of_two)
        jax.block_until_ready(buffers["both"])

    jitted_step = jax.jit(step, donate_argnums=0)
    vmapped_step = jax.jit(jax.vmap(step, in_axes=(0, None, 0, 0)), donate_argnums=0)

    def cost():
        state, rows = step_functions.create(variables, tx), jnp.arange(batch)
        train = flops(step, state, device_data, rows, jax.random.key(0))
        return {"train flops": train / batch, "predict flops": flops(predict_step, variables, image_batch(1))}

    @functools.cache
    def image_batch(count):
        return jnp.asarray(np.resize(examples["images"], (count, *examples["images"].shape[1:])))

    def predict_batch(images, count):
        for _ in range(count):
            outputs = predict_step(variables, image_batch(images))
        jax.block_until_ready(outputs)

    ways = {"one after another": one_after_another, "at once": at_once}
    ways |= {f"predict {images}": functools.partial(predict_batch, images) for images in (1, 32)}
    return parameters, {"train": train_steps, "predict": functools.partial(predict_batch, batch), "cost": cost} | ways


def flops(function, *arguments) -> int:
    """Counts the floating-point operations of a function's matmuls and convolutions; a multiply-add counts as two.

    Counts in the traced function, because XLA's own count misses the library kernels that a GPU uses. Operations on
    padding are included; a loop of unknown length counts as one iteration.
    """
    import jax

    def equation_flops(equation):
        produced = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            return 2 * produced * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        if equation.primitive.name == "conv_general_dilated":
            kernel, axes = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            fan_in = math.prod(kernel[axis] for axis in axes[1:])  # all axes but that of the output channels
            return 2 * produced * fan_in // math.prod(equation.params["lhs_dilation"])  # less the zeros between pixels
        return 0

    def inner_jaxprs(equation):
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield part

    def jaxpr_flops(jaxpr):
        return sum(
            equation_flops(equation) + equation.params.get("length", 1) * sum(map(jaxpr_flops, inner_jaxprs(equation)))
            for equation in jaxpr.eqns
        )

    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def matmul(side: int, dtype: str, count: int) -> float:
    """Returns the FLOP/s of multiplying side x side matrices: the best of three turns of `count` products."""
    import jax
    import jax.numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)  # not ones, for which a device draws less power
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(count):
            result = product(matrix, matrix)
        jax.block_until_ready(result)
        times.append(time.perf_counter() - began)
    return 2 * side**3 * count / min(times)


def work() -> None:
    """Runs our worker: `peers.serve`, in a process with the settings of a run."""
    from jaxmarks import host

    host.keep_freed_memory()
    host.cache_compiled_steps()
    import jax

    def devices(command):
        kind = jax.local_devices()[0].device_kind
        return {"devices": jax.local_device_count(), "platform": jax.default_backend(), "kind": kind}

    def memory(command):
        on_device = jax.local_devices()[0].memory_stats() or {}
        return {"peak_mb": on_device["peak_bytes_in_use"] / 2**20} if "peak_bytes_in_use" in on_device else None

    def peak(command):
        return {"matmul": matmul(command["peak"], command["dtype"], command["count"])}

    peers.serve(build, devices=devices, peak=peak, memory=memory)


def markdown(results: dict) -> str:
    """Formats the results as tables; a part says how it was measured only if the part before was measured otherwise."""
    parts: list[str] = []
    previous = None
    span = lambda cell, digits=0: (
        f"{cell['median']:.{digits}f} ({cell['least']:.{digits}f}-{cell['most']:.{digits}f})" if cell else ""
    )
    for part in PARTS:
        lines = []
        for row in results.get(part, []):
            line = {key: str(value) for key, value in row.items() if isinstance(value, str | int | float)}
            for key in ("train", "predict", "predict 1", "predict 32", "train, cpu", "predict, cpu", *WAYS):
                line |= {f"{key}, ms": span(row[key], 1)} if key in row else {}
            for key in ("first", "later"):
                line |= {f"{key}, s": span({of: ms / 1000 for of, ms in row[key].items()}, 2)} if key in row else {}
            if "images_per_s" in row:
                line["images/s"] = span(row["images_per_s"], 1)
            for key in ("train_flops_per_s", "predict_flops_per_s", "matmul"):
                if key in row:
                    line[key] = f"{row[key] / 1e12:.2f} T"
            lines.append(line)
        if lines:
            columns = {key: key for line in lines for key in line}
            filled = [{key: line.get(key, "") for key in columns} for line in lines]
            provenance = results["measured"][part]
            versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items() if version)
            about = [f"`{provenance['command']}`\n", f"{provenance['hardware']}; {versions}; {provenance['date']}\n"]
            parts += [f"## {part}\n", *(about if provenance != previous else []), tables.markdown(filled, columns)]
            previous = provenance
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        work()
    elif sys.argv[1:2] == ["--first-step"]:
        first_step(sys.argv[2:])
    else:
        sys.exit(main())
