"""The beetle paper's main comparison on drawn beetles: each of the five parts from scratch, and fine-tuned from three.

    python launch/ablate.py --grid=configs/ablations/beetle_parts.py[:VARIANT,...] [--seeds=0,1,2]

One network is pretrained on pronotum, elytra and head. Then every part is trained twice with the same settings, from
random parameters and from that network. The specimens of the test fold are held out of all stages. VARIANTs are `smoke`,
`paper` and others of configs/beetle.py that do not choose the data; they apply to all runs.
"""

PARTS = ("pronotum", "elytra", "head", "left_mandible", "right_mandible")


def get_grid(text: str = "") -> dict:
    """Returns the grid with the variants `text` in every cell."""
    has_own_length = not {"smoke", "paper"}.isdisjoint(text.split(","))
    steps = {} if has_own_length else {"train.steps": 300}
    cells = [{"row": "pretrained", "column": "three parts", "config": "pretrain"}]
    for part in PARTS:
        own = {"column": part.replace("_", " "), "overrides": steps}
        cells.append(own | {"row": "from scratch", "config": f"part={part}"})
        after = "pretrained / three parts"
        cells.append(own | {"row": "fine-tuned", "config": f"finetune,part={part}", "after": after})
    return {"config": f"configs/beetle.py:{text}" if text else "configs/beetle.py", "cells": cells}
