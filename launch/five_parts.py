"""The paper's main comparison on phantoms: each of the five parts from scratch, and fine-tuned from three parts.

    python launch/five_parts.py [--workdir=runs/five_parts] [--variant=smoke] [-- --config.train.steps=300 ...]

One network is pretrained on pronotum, elytra and head; then every part is trained twice with the same settings, from
random parameters and from that network. The specimens of the tested fold are held out of all stages. What is complete
in the workdir is not run again. Writes `table.md` and `table.csv` there.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

PARTS = ("pronotum", "elytra", "head", "left_mandible", "right_mandible")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/five_parts", type=Path)
    parser.add_argument("--variant", default="", help="variants of configs/beetle.py that all runs share")
    parser.add_argument("overrides", nargs="*", help="--config.key=value of the ten runs, after --")
    options = parser.parse_args()

    def run(name, variants, *overrides):
        folder = options.workdir / name
        text = ",".join(filter(None, [options.variant, *variants]))
        arguments = [f"--config=configs/beetle.py:{text}", f"--workdir={folder}", *overrides]
        subprocess.run([sys.executable, "-m", "jaxmarks.main", *arguments], check=True)
        return json.loads((folder / "summary.json").read_text())

    run("pretrain", ["pretrain"])
    rows = []
    for part in PARTS:
        found = {
            "scratch": run(f"{part}-scratch", [f"part={part}"], *options.overrides),
            "fine-tuned": run(
                f"{part}-finetuned",
                ["finetune", f"part={part}"],
                f"--config.init_from={options.workdir / 'pretrain'}",
                *options.overrides,
            ),
        }
        baselines = found["scratch"]["baselines"]
        rows.append(
            {
                "part": part.replace("_", " "),
                "landmarks": found["scratch"]["landmarks"],
                "images": found["scratch"]["images"],
                **{name.replace("_", " "): f"{b['mean_distance_px']:.2f}" for name, b in baselines.items()},
                **{name: f"{summary['mean_distance_px']:.2f}" for name, summary in found.items()},
                "scratch / fine-tuned": "{:.2f}".format(
                    found["scratch"]["mean_distance_px"] / found["fine-tuned"]["mean_distance_px"]
                ),
            }
        )
    with (options.workdir / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (options.workdir / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
