"""Where a photograph lies in a network's frame. Plain Python, so that data can be placed without JAX."""


def placement(source_size, size, fit):
    """(top, left, rows, columns), in whole pixels of the frame, that the photograph fills.

    Args:
      source_size: (h, w) of the photograph.
      size: (H, W) of the frame.
      fit: `pad` keeps the aspect and centres; `stretch` fills the frame.
    """
    if fit not in ("pad", "stretch"):
        raise ValueError(f"fit={fit!r}: there are pad and stretch")
    if fit == "stretch":
        return 0, 0, *size
    scale = min(size[0] / source_size[0], size[1] / source_size[1])
    rows, columns = (max(1, round(side * scale)) for side in source_size)
    return (size[0] - rows) // 2, (size[1] - columns) // 2, rows, columns


def frame(source_size, size, fit):
    """The map from a frame of `size` (H, W) to the photograph of `source_size` (h, w) in it: nested tuples (2, 3).

    The photograph fills a whole number of the frame's pixels, so each axis has its own scale.
    """
    top, left, rows, columns = placement(source_size, size, fit)
    sx, sy = source_size[1] / columns, source_size[0] / rows
    return ((sx, 0.0, -left * sx), (0.0, sy, -top * sy))
