"""One builder with a config per public source, whose photographs and landmark file the user downloads by hand.

from jaxmarks.data.datasets import public
builder = public.PublicLandmarks(config="wings", data_dir="~/tensorflow_datasets")
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir="DIR"), file_format="array_record"
)
samples = public.to_samples(builder.as_data_source("train"), size=(192, 256))
"""

import dataclasses
import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from jaxmarks.data import folder, formats
from jaxmarks.data.samples import Samples


@dataclasses.dataclass(eq=False)
class Source(tfds.core.BuilderConfig):
    """A public source: where its files lie below the manual download folder.

    `count` is the number of landmarks, `home` the source's web page, `licence` the licence stated there.
    """

    images: str = "images"
    landmarks: str = ""
    count: int = 0
    home: str = ""
    licence: str = "none stated"


SOURCES = (
    Source(
        name="wings", description="Fly wings, 58 photographs, 12 landmarks (TPS).", landmarks="wings.tps", count=12,
        home="https://github.com/agporto/ml-morph", licence="CC BY-NC-SA 3.0 US",
    ),
    *(
        Source(
            name=f"beetle_{part}", description=f"Photographs of the beetle paper, {part}, {count} landmarks (TPS).",
            landmarks=f"{part}.tps", count=count, home="https://github.com/linhlevandlu/cnnBeetles",
        )
        for part, count in (("elytra", 11), ("left_mandible", 16), ("right_mandible", 18))
    ),
    Source(
        name="fish", description="Crops of carp and goldfish, 1,563 images, 7 points, some missing (COCO keypoints).",
        landmarks="keypoints.json", count=7, home="https://github.com/oucvisionlabsanya/fish_keypoint_detection",
    ),
    Source(
        name="cephalograms", description="Lateral cephalograms, 101 images, 19 landmarks (LabelMe).",
        landmarks="annotator_a", count=19, home="https://github.com/vpouramin/Cephalometric-Landmarking-public",
    ),
    Source(
        name="chest", description="Chest radiographs, 669 images, 15 landmarks (CSV).", landmarks="landmarks.csv",
        count=15, home="https://github.com/Rhaink/landmark_prediction", licence="MIT",
    ),
)  # fmt: skip


class PublicLandmarks(tfds.core.GeneratorBasedBuilder):
    """Photographs with landmarks of a public source, in one split "train"; points in source pixels, y down."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = list(SOURCES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download the source (its page is the dataset's homepage) and put the photographs into `images/` and the"
        " landmark file beside that folder, under the name in the config's `landmarks`."
    )

    def _info(self):
        config = self.builder_config
        return self.dataset_info_from_configs(
            description=f"{config.description} Licence: {config.licence}.",
            homepage=config.home,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "points": tfds.features.Tensor(shape=(config.count, 2), dtype=np.float64),
                    "visible": tfds.features.Tensor(shape=(config.count,), dtype=np.bool_),
                    "name": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "mm_per_px": tfds.features.Scalar(dtype=np.float64),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir)}

    def _generate_examples(self, manual):
        config, problems = self.builder_config, []
        images = manual / config.images
        annotations = formats.read(manual / config.landmarks, images, problems)
        for problem in problems:
            logging.warning("%s: %s", problem["image"], problem["what"])
        for i, a in enumerate(annotations):
            photograph = folder.photograph(images, a.image)
            if photograph is None:
                raise FileNotFoundError(f"{a.where}: {a.image}: no such photograph in {images}, or it cannot be read")
            yield (
                i,
                {
                    "image": encode(photograph),
                    "points": a.points,
                    "visible": a.visible,
                    "name": a.image,
                    "group": a.group or a.image,
                    "mm_per_px": a.mm_per_px,
                },
            )


def encode(image: np.ndarray) -> io.BytesIO:
    """Encodes (H, W, 3) uint8 as PNG: without TensorFlow, tfds stores images only as encoded bytes."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    data.seek(0)
    return data


def to_samples(source, *, size: tuple[int, int], fit: str = "pad") -> Samples:
    """Converts the examples of a data source (`builder.as_data_source(split)`) to Samples at `size` (H, W)."""
    examples = [source[i] for i in range(len(source))]
    group_numbers: dict[str, int] = {}
    framed = [folder.into_frame(e["image"], size, fit) for e in examples]
    matrices = np.array([folder.frame(e["image"].shape[:2], size, fit) for e in examples])
    points = np.stack([e["points"] for e in examples])
    visible = np.stack([e["visible"] for e in examples])
    framed_points = (points - matrices[:, None, :, 2]) / matrices[:, None, (0, 1), (0, 1)]
    return Samples(
        images=np.stack(framed),
        points=np.where(visible[..., None], framed_points, 0).astype(np.float32),
        visible=visible,
        group=np.array([group_numbers.setdefault(e["group"].decode(), len(group_numbers)) for e in examples]),
        name=np.array([e["name"].decode() for e in examples]),
        to_source=matrices,
        mm_per_px=np.array([float(e["mm_per_px"]) for e in examples]),
        source_size=np.array([e["image"].shape[:2] for e in examples]),
    )
