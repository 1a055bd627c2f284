"""Where a photograph lies in a network's frame. Plain Python, so that data can be placed without JAX."""

# The share of a close view's width or height, whichever is more, that the landmarks take (`views.close`).
FILL = 0.8


def placement(source_size, size, fit, scale=None):
    """(top, left, rows, columns), in whole pixels of the frame, that the photograph fills.

    Args:
      source_size: (h, w) of the photograph.
      size: (H, W) of the frame.
      fit: `pad` keeps the aspect and centres; `stretch` fills the frame; `tile` brings it to the `scale`, and centres it
        along an axis on which the frame is larger.
      scale: pixels of the frame in one of the photograph.
    """
    if fit == "stretch":
        return 0, 0, *size
    if fit == "pad":
        scale = min(size[0] / source_size[0], size[1] / source_size[1])
    elif fit != "tile" or scale is None:
        raise ValueError(f"fit={fit!r}: there are pad and stretch")
    rows, columns = (max(1, round(side * scale)) for side in source_size)
    return max(0, size[0] - rows) // 2, max(0, size[1] - columns) // 2, rows, columns


def frame(source_size, size, fit, scale=None):
    """The map from a frame of `size` (H, W) to the photograph of `source_size` (h, w) in it: nested tuples (2, 3).

    The photograph fills a whole number of the frame's pixels, so each axis has its own scale.
    """
    top, left, rows, columns = placement(source_size, size, fit, scale)
    sx, sy = source_size[1] / columns, source_size[0] / rows
    return ((sx, 0.0, -left * sx), (0.0, sy, -top * sy))


def tiles(size, tile, overlap):
    """Where tiles must lie to cover an image: a list of (top, left), row by row.

    They are spread evenly, so that neighbours share at least `overlap` pixels and none leaves an image that is larger.
    An object no larger than the overlap lies whole in some tile.

    Args:
      size: (H, W) of the image.
      tile: (h, w).
      overlap: pixels.

    Raises:
      ValueError: the overlap is negative or leaves no step.
    """
    if not 0 <= overlap < min(tile):
        raise ValueError(f"overlap={overlap}: give 0 to {min(tile) - 1} pixels for tiles of {tile}")

    def starts(length, part):
        last = max(length - part, 0)
        steps = -(-last // (part - overlap))
        return [last * i // max(steps, 1) for i in range(steps + 1)]

    return [(top, left) for top in starts(size[0], tile[0]) for left in starts(size[1], tile[1])]
