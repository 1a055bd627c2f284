"""The placement of a photograph in a network's frame. Plain Python, so that data code need not import JAX."""

# The landmarks' box fills this share of a view's width or height, whichever share is larger (`views.close`, `posed`).
FILL = 0.8


def placement(source_size, size, fit, scale=None):
    """Returns the area (top, left, rows, columns) that the photograph fills, in whole pixels of the frame.

    Args:
      source_size: (h, w) of the photograph.
      size: (H, W) of the frame.
      fit: `pad` keeps the aspect ratio and centres; `stretch` fills the frame; `tile` resizes by `scale`, and centres
        along an axis on which the frame is larger.
      scale: frame pixels per pixel of the photograph.
    """
    if fit == "stretch":
        return 0, 0, *size
    if fit == "pad":
        scale = min(size[0] / source_size[0], size[1] / source_size[1])
    elif fit != "tile" or scale is None:
        raise ValueError(f"fit={fit!r}: choose pad or stretch, or tile with a scale")
    rows, columns = (max(1, round(side * scale)) for side in source_size)
    return max(0, size[0] - rows) // 2, max(0, size[1] - columns) // 2, rows, columns


def frame(source_size, size, fit, scale=None):
    """Returns the affine map (2, 3), as nested tuples, from a frame of `size` (H, W) to its photograph's pixels.

    The photograph, of `source_size` (h, w), fills a whole number of the frame's pixels, so each axis has its own scale.
    """
    top, left, rows, columns = placement(source_size, size, fit, scale)
    sx, sy = source_size[1] / columns, source_size[0] / rows
    return ((sx, 0.0, -left * sx), (0.0, sy, -top * sy))


def tiles(size, tile, overlap):
    """Returns the positions of tiles that cover an image: a list of (top, left), row by row.

    They are evenly spaced; neighbours share at least `overlap` pixels, and no tile extends beyond an image that is
    larger than the tile. An object no larger than the overlap lies completely in at least one tile.

    Args:
      size: (H, W) of the image.
      tile: (h, w).
      overlap: in pixels.

    Raises:
      ValueError: the overlap is negative or not smaller than the tile.
    """
    if not 0 <= overlap < min(tile):
        raise ValueError(f"overlap={overlap}: give 0 to {min(tile) - 1} pixels for tiles of {tile}")

    def starts(length, tile_side):
        last = max(length - tile_side, 0)
        steps = -(-last // (tile_side - overlap))
        return [last * i // max(steps, 1) for i in range(steps + 1)]

    return [(top, left) for top in starts(size[0], tile[0]) for left in starts(size[1], tile[1])]
