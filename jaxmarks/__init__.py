"""jaxmarks: anatomical landmarks and small objects in biological and medical images, on JAX.

The public modules, each imported when it is first used:

  metrics   distances, correlations, success rates (pure functions)
  geometry  affine maps, frames, resampling (pure functions)
  heatmaps  targets for heatmap regression (pure functions)
  decode    heatmaps to points (pure functions)
  losses    losses on coordinates and on heatmaps (pure functions)
  boxes     overlap, suppression, encodings, RoIAlign, average precision (pure functions)
  calibrate the acquisition volume from landmarks in scout planes (pure functions)
  edges     the bilateral filter and Canny's detector (pure functions)
  augment   augmentation on the device
  models    bodies by name: images to features (Flax modules)
  heads     heads by name: the last layer with its targets, loss and decoder
  steps     steps of training and validation (pure functions), and how they run on devices
  formats   read and write landmark files: TPS, CSV, COCO, LabelMe; read dlib's and DeepLabCut's
  tps       the TPS format alone
  phantoms  beetles drawn from a seed, with exact landmarks
  optim     the beetle paper's learning-rate and momentum ramps, and other optimisers
  predict   a trained run as a pure function
  serving   a trained run as an artefact that runs without jaxmarks
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` imports the modules
    from jaxmarks import augment as augment
    from jaxmarks import heads as heads
    from jaxmarks import models as models
    from jaxmarks import optim as optim
    from jaxmarks import predict as predict
    from jaxmarks import serving as serving
    from jaxmarks import steps as steps
    from jaxmarks.data import formats as formats
    from jaxmarks.data import phantoms as phantoms
    from jaxmarks.data.formats import tps as tps
    from jaxmarks.ops import boxes as boxes
    from jaxmarks.ops import calibrate as calibrate
    from jaxmarks.ops import decode as decode
    from jaxmarks.ops import edges as edges
    from jaxmarks.ops import geometry as geometry
    from jaxmarks.ops import heatmaps as heatmaps
    from jaxmarks.ops import losses as losses
    from jaxmarks.ops import metrics as metrics

__version__ = "0.1.0"

_MODULES = {
    "metrics": "jaxmarks.ops.metrics",
    "geometry": "jaxmarks.ops.geometry",
    "heatmaps": "jaxmarks.ops.heatmaps",
    "decode": "jaxmarks.ops.decode",
    "losses": "jaxmarks.ops.losses",
    "boxes": "jaxmarks.ops.boxes",
    "calibrate": "jaxmarks.ops.calibrate",
    "edges": "jaxmarks.ops.edges",
    "augment": "jaxmarks.augment",
    "models": "jaxmarks.models",
    "heads": "jaxmarks.heads",
    "steps": "jaxmarks.steps",
    "formats": "jaxmarks.data.formats",
    "tps": "jaxmarks.data.formats.tps",
    "phantoms": "jaxmarks.data.phantoms",
    "optim": "jaxmarks.optim",
    "predict": "jaxmarks.predict",
    "serving": "jaxmarks.serving",
}
__all__ = [*_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'jaxmarks' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_MODULES})
