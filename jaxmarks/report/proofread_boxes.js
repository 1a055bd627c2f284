// Boxes: `items` are [x0, y0, x1, y1, class, score] in continuous pixels, y down, the score null of what was drawn or put
// right by hand; `found` are the network's where the items were marked by hand. A class is its number among the names.

"use strict";

// What counts as found: so much overlap.
const FOUND = 0.4;

// The share of two boxes' union that they have in common.
function iou(a, b) {
  const side = (low, high) => Math.max(0, Math.min(a[high], b[high]) - Math.max(a[low], b[low]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const shared = side(0, 2) * side(1, 3);
  return shared / (area(a) + area(b) - shared);
}

// The boxes of one list that no box of the other finds, each of which finds one of its class: the best pairs come first.
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

// Which of an image's boxes count at a threshold of the score.
const counting = ({ items }, threshold) => items.filter((item) => item[5] === null || item[5] >= threshold);

// The text of a CSV file: first and last pixel inside, counted from 0; an image without objects has a row of its own.
function boxes_csv(images, names) {
  const rows = images.flatMap(({ name, size: [height, width], group, items }) => {
    const row = (...cells) => [name, width, height, ...cells, group];
    const each = items.map(([x0, y0, x1, y1, c]) => row(names[c], x0, y0, rounded(x1 - 1), rounded(y1 - 1)));
    return each.length ? each : [row("", "", "", "", "")];
  });
  return table([["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "group"], ...rows]);
}

// The text of a COCO file.
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

// A box with a part moved: a corner ("x0 y0", "x1 y0", ...) or, without one, the whole. It stays a pixel wide and high, and
// its middle within the image of size [height, width].
function shifted([x0, y0, x1, y1, c], part, [dx, dy], [height, width]) {
  const clipped = (value, low, high) => Math.min(Math.max(value, low), high);
  const whole = !part, has = (side) => part.includes(side);
  if (whole) {
    dx = clipped(dx, -(x0 + x1) / 2, width - (x0 + x1) / 2);
    dy = clipped(dy, -(y0 + y1) / 2, height - (y0 + y1) / 2);
  }
  const box = [
    whole ? x0 + dx : has("x0") ? Math.min(x0 + dx, x1 - 1) : x0,
    whole ? y0 + dy : has("y0") ? Math.min(y0 + dy, y1 - 1) : y0,
    whole ? x1 + dx : has("x1") ? Math.max(x1 + dx, x0 + 1) : x1,
    whole ? y1 + dy : has("y1") ? Math.max(y1 + dy, y0 + 1) : y1,
  ];
  return [...box.map(rounded), c, null];
}

// The box of a class between two points; of one point alone that of a typical [width, height] about it.
function between([x, y], to, [width, height], c) {
  const [left, top, right, bottom] = to
    ? [Math.min(x, to[0]), Math.min(y, to[1]), Math.max(x, to[0]), Math.max(y, to[1])]
    : [x - width / 2, y - height / 2, x + width / 2, y + height / 2];
  return [left, top, Math.max(right, left + 1), Math.max(bottom, top + 1)].map(rounded).concat(c, null);
}

// The middle width and height of all boxes.
function typical(images) {
  const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 20;
  const all = images.flatMap(({ items, found }) => [...items, ...(found ?? [])]);
  return [middle(all.map((box) => box[2] - box[0])), middle(all.map((box) => box[3] - box[1]))];
}

function boxes({ names, threshold, images }) {
  const slider = document.getElementById("threshold"), size = typical(images);
  let fresh = 0; // the class of boxes that are drawn
  const marked = (image) => "found" in image;
  const limit = (image) => (marked(image) ? 0 : Number(slider.value));
  const shown = (image) => image.items.map((item, k) => k).filter((k) => image.items[k][5] === null || image.items[k][5] >= limit(image));
  const strange = ({ items, found }) => (found ? unmatched(found, items) : []);
  const final = (all) => all.map((image) => ({ ...image, items: counting(image, limit(image)) }));
  const kind = {
    // Where marks were made: how many boxes the network and they do not share. Else: how near a score is to the threshold.
    doubt(image) {
      if (image.found) return strange(image).length + unmatched(image.items, image.found).length;
      if (marked(image)) return null;
      return Math.max(0, ...image.items.filter((item) => item[5] !== null).map(([, , , , , score]) => Math.min(score / threshold, threshold / score)));
    },
    told: (image) => (image.found ? `${kind.doubt(image) || ""}` : marked(image) ? "" : `${shown(image).length}`),
    first: () => -1,
    moved: shifted,
    removed: (items, k) => ({ items: items.filter((_, i) => i !== k), selected: -1 }),
    added: () => ({ selected: -1 }),
    drawn({ items }, from, to) {
      return { items: [...items, between(from, to, size, fresh)], selected: items.length };
    },
    taken({ items, found }, k) {
      return found?.[k] && strange({ items, found }).includes(k) ? { items: [...items, [...found[k].slice(0, 5), null]], selected: items.length } : null;
    },
    beside: () => -1, // it is clicked
    settled: (items) => counting({ items }, Number(slider.value)).map((item) => [...item.slice(0, 5), null]),
    next(image, k, by) {
      const there = shown(image), at = there.indexOf(k);
      return there.length ? there[(at + by + there.length) % there.length] : -1;
    },
    where({ items }, k) {
      if (!items[k]) return "";
      const [x0, y0, x1, y1, c, score] = items[k];
      const told = score === null ? "" : `, score ${score.toFixed(2)}`;
      return `${names[c]}, ${(x1 - x0).toFixed(1)} x ${(y1 - y0).toFixed(1)} px at ${((x0 + x1) / 2).toFixed(1)}, ${((y0 + y1) / 2).toFixed(1)}${told}`;
    },
    chips: ({ items }, selected) => (names.length < 2 ? [] : names.map((name, c) => ({
      text: name,
      title: "the class of the box, and of those to come",
      on: c === (items[selected]?.[4] ?? fresh),
      chosen() {
        fresh = c;
        const other = (item, k) => (k === selected ? [...item.slice(0, 4), c, null] : item);
        return items[selected] ? { items: items.map(other) } : { selected };
      },
    }))),
    draw(image, selected, px, add) {
      const rectangle = ([x0, y0, x1, y1]) => ({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 });
      for (const k of strange(image)) {
        add("rect", { ...rectangle(image.found[k]), "stroke-width": 2 * px, "stroke-dasharray": `${6 * px} ${4 * px}`, class: "strange", "data-taken": k });
      }
      for (const k of shown(image)) {
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
  slider.parentElement.hidden = images.some(marked);
  slider.value = threshold;
  slider.oninput = () => {
    slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
    kind.changed();
  };
  slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
  return kind;
}
