// Boxes: `items` are [x0, y0, x1, y1, class, score] in continuous pixels, y down. The class is an index into the names; the
// score is null if drawn or corrected by hand. If the items were annotated by hand, `found` are the network's, or null for
// an image without prediction. The `limit` of a checked image is the threshold at which it was checked.

"use strict";

// Boxes match from this IoU on; the same as `OVERLAP` in detection.py.
const FOUND = 0.4;

// Intersection over union of two boxes.
function iou(a, b) {
  const side = (low, high) => Math.max(0, Math.min(a[high], b[high]) - Math.max(a[low], b[low]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const shared = side(0, 2) * side(1, 3);
  return shared / (area(a) + area(b) - shared);
}

// Indices of boxes that match none of the others. Boxes match one to one within a class, the largest IoU first.
function unmatched(boxes, others) {
  const pairs = boxes.flatMap((a, i) => others.map((b, j) => [a[4] === b[4] ? iou(a, b) : 0, i, j]))
    .filter(([overlap]) => overlap >= FOUND);
  const left = new Set(boxes.keys()), free = new Set(others.keys());
  for (const [, i, j] of pairs.sort((p, q) => q[0] - p[0])) {
    if (left.has(i) && free.has(j)) {
      left.delete(i);
      free.delete(j);
    }
  }
  return [...left];
}

// CSV text: a box's first and last pixel, counted from 0; an image without objects has a row of its own.
function boxes_csv(images, names) {
  const rows = images.flatMap(({ name, size: [height, width], group, items }) => {
    const row = (...cells) => [name, width, height, ...cells, group];
    const each = items.map(([x0, y0, x1, y1, c]) => row(names[c], x0, y0, rounded(x1 - 1), rounded(y1 - 1)));
    return each.length ? each : [row("", "", "", "", "")];
  });
  return table([["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "group"], ...rows]);
}

// COCO text.
function coco(images, names) {
  const categories = names.map((name, c) => ({ id: c + 1, name }));
  const photographs = images.map(({ name, size: [height, width], group }, n) => (
    { id: n + 1, file_name: name, width, height, ...(group ? { group } : {}) }));
  const annotations = images.flatMap(({ items }, n) => items.map(([x0, y0, x1, y1, c]) => {
    const [width, height] = [rounded(x1 - x0), rounded(y1 - y0)];
    return { image_id: n + 1, category_id: c + 1, bbox: [x0, y0, width, height], area: rounded(width * height), iscrowd: 0 };
  })).map((annotation, n) => ({ id: n + 1, ...annotation }));
  return JSON.stringify({ images: photographs, annotations, categories }, null, 1) + "\n";
}

// A box with one corner ("x0 y0", "x1 y0", ...) or, without `part`, all of it moved, at least a pixel wide and high. The
// centre stays in the image of [height, width] or moves no further out; a corner stays in the image or the old box.
function shifted([x0, y0, x1, y1, c], part, [dx, dy], [height, width]) {
  const axis = (low, high, by, side, name) => {
    const middle = (low + high) / 2, first = Math.min(low, 0), last = Math.max(high, side);
    if (!part) by = clipped(by, Math.min(-middle, 0), Math.max(side - middle, 0));
    return [
      !part ? low + by : part.includes(`${name}0`) ? clipped(low + by, first, high - 1) : low,
      !part ? high + by : part.includes(`${name}1`) ? clipped(high + by, low + 1, last) : high,
    ];
  };
  const [left, right] = axis(x0, x1, dx, width, "x"), [top, bottom] = axis(y0, y1, dy, height, "y");
  return [left, top, right, bottom].map(rounded).concat(c, null);
}

// The box of class c between two points of an image. Without `to`: one of a typical [width, height] centred at `from`, or
// null if that is outside the image.
function between(from, to, [width, height], c, size) {
  const [x, y] = inside(from, size);
  if (!to) {
    if (x !== rounded(from[0]) || y !== rounded(from[1])) return null;
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2].map(rounded).concat(c, null);
  }
  const [across, down] = inside(to, size);
  const box = [Math.min(x, across), Math.min(y, down), Math.max(x, across), Math.max(y, down)];
  return box[2] - box[0] >= 1 && box[3] - box[1] >= 1 ? [...box, c, null] : null;
}

// The median width and height of all boxes.
function typical(images) {
  const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 20;
  const all = images.flatMap(({ items, found }) => [...items, ...(found ?? [])]);
  return [middle(all.map((box) => box[2] - box[0])), middle(all.map((box) => box[3] - box[1]))];
}

// The kind. The value of `slider` is its threshold, which the element after the slider shows as text.
function boxes({ names, threshold, images }, slider) {
  const usual = typical(images), marked = images.some((image) => "found" in image);
  let fresh = 0; // class of new boxes
  const limit = () => Number(slider.value);
  const counts = (image) => ([, , , , , score]) => score === null || score >= (image.limit ?? limit());
  const shown = (image) => [...image.items.keys()].filter((k) => counts(image)(image.items[k]));
  const strange = ({ items, found }) => (found ? unmatched(found, items) : []);
  const final = (all) => all.map((image) => ({ ...image, items: image.items.filter(counts(image)) }));
  const differ = (image) => (image.found ? strange(image).length + unmatched(image.items, image.found).length : null);
  // How close the nearest score is to the initial threshold: 1 if equal.
  const near = ({ items }) => Math.max(0, ...items.map(([, , , , , score]) => (score === null ? 0 : Math.min(score / threshold, threshold / score))));
  const kind = {
    doubt: marked ? differ : near,
    told: (image) => (marked ? `${differ(image) ?? ""}` : `${shown(image).length}`),
    first: () => -1,
    next: (image, k, by) => neighbour(shown(image), k, by),
    moved: shifted,
    removed: ({ items }, k) => ({ items: items.filter((_, i) => i !== k), selected: -1 }),
    added: () => ({ selected: -1 }),
    drawn({ items, size }, from, to) {
      const box = between(from, to, usual, fresh, size);
      return box && { items: [...items, box], selected: items.length };
    },
    taken({ items, found }, k) {
      return found?.[k] ? { items: [...items, [...found[k].slice(0, 5), null]], selected: items.length } : null;
    },
    beside: () => -1, // the user clicks the network's box
    limit,
    get: () => ({ of: threshold, at: limit() }), // with another threshold, it was another network's
    put: (value) => value?.of === threshold && set(value.at),
    where({ items }, k) {
      if (!items[k]) return "";
      const [x0, y0, x1, y1, c, score] = items[k];
      const told = score === null ? "" : `, score ${score.toFixed(2)}`;
      return `${names[c]}, ${(x1 - x0).toFixed(1)} x ${(y1 - y0).toFixed(1)} px at ${((x0 + x1) / 2).toFixed(1)}, ${((y0 + y1) / 2).toFixed(1)}${told}`;
    },
    chips: ({ items }, selected) => (names.length < 2 ? [] : names.map((name, c) => ({
      text: name,
      title: "class of the selected box and of new boxes",
      on: c === (items[selected]?.[4] ?? fresh),
      chosen() {
        fresh = c;
        const item = items[selected];
        return item ? { items: replaced(items, selected, [...item.slice(0, 4), c, null]) } : { selected };
      },
    }))),
    draw(image, selected, px, add) {
      const rectangle = ([x0, y0, x1, y1]) => ({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 });
      for (const k of strange(image)) {
        add("rect", { ...rectangle(image.found[k]), "stroke-width": 2 * px, "stroke-dasharray": `${6 * px} ${4 * px}`, class: "strange", "data-taken": k });
      }
      for (const k of topmost(image.items, selected)) {
        if (!counts(image)(image.items[k])) continue;
        const item = image.items[k], style = `${k === selected ? "box selected" : "box"} class${item[4] % 5}`;
        add("rect", { ...rectangle(item), "stroke-width": 4 * px, class: "rim" });
        add("rect", { ...rectangle(item), "stroke-width": 2 * px, class: style, "data-item": k });
        if (k !== selected) continue;
        for (const part of ["x0 y0", "x1 y0", "x0 y1", "x1 y1"]) {
          const corner = { cx: item[part.startsWith("x0") ? 0 : 2], cy: item[part.endsWith("y0") ? 1 : 3], r: 5 * px };
          add("circle", { ...corner, class: "corner", "data-item": k, "data-part": part });
        }
      }
    },
    files: { csv: (all) => boxes_csv(final(all), names), json: (all) => coco(final(all), names) },
  };
  function set(value) {
    slider.value = value;
    slider.nextElementSibling.textContent = limit().toFixed(2);
  }
  slider.parentElement.hidden = marked;
  set(threshold);
  slider.oninput = () => {
    set(slider.value);
    kind.changed();
  };
  slider.onchange = slider.onpointerup = () => slider.blur(); // keys should act on the photograph
  return kind;
}
