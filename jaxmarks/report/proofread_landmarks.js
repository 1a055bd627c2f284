// Landmarks: `items` are [x, y] in pixels, y down, or null if missing. If they were annotated by hand, `found` are the
// network's. `doubt` has a value for each landmark. An image may also have an id and mm_per_px.

"use strict";

// TPS text, with y up from the lower edge, as in tpsDig.
function tps(images) {
  const row = (point, height) => (point ? `${point[0]} ${rounded(height - point[1])}` : "NA NA");
  return images.map((image) => [
    `LM=${image.items.length}`,
    ...image.items.map((point) => row(point, image.size[0])),
    `IMAGE=${image.name.trim()}`,
    ...(image.id ? [`ID=${image.id}`] : []),
    ...(image.mm_per_px ? [`SCALE=${image.mm_per_px}`] : []),
  ].join("\n") + "\n").join("");
}

// CSV text: image,x1,y1,...,group,mm_per_px,id, with y down.
function landmarks_csv(images) {
  const each = images[0].items.flatMap((_, k) => [`x${k + 1}`, `y${k + 1}`]);
  const row = ({ name, items, group, mm_per_px, id }) =>
    [name, ...items.flatMap((point) => point ?? ["NA", "NA"]), group, mm_per_px ?? "NA", id];
  return table([["image", ...each, "group", "mm_per_px", "id"], ...images.map(row)]);
}

// Index of the landmark that most needs checking: the first with the largest doubt.
const worst = ({ doubt }) => doubt.reduce((best, one, k) => ((one ?? -1) > (doubt[best] ?? -1) ? k : best), 0);

function landmarks({ names, unit }) {
  const label = (k) => (names[k] ? `${k + 1} ${names[k]}` : `${k + 1}`);
  const doubt = (image) => image.doubt[worst(image)];
  const next = ({ items }, k, by) => neighbour([...items.keys()].filter((n) => items[n]), k, by);
  return {
    doubt,
    told(image) { // the worst landmark's distance from the network's, or its score
      const most = doubt(image);
      return most === null ? "" : unit === "px" ? `${most.toFixed(1)} px` : (1 - most).toFixed(2);
    },
    first: (image) => (image.items[worst(image)] ? worst(image) : image.items.findIndex(Boolean)),
    next,
    moved: ([x, y], part, [dx, dy], size) => inside([x + dx, y + dy], size),
    removed(image, k) { // selects the next one, as a click on empty space would bring this one back
      const items = replaced(image.items, k, null);
      return { items, selected: next({ items }, k, 1) };
    },
    added: ({ items, size }, k, point) => (k < 0 || items[k] ? null : { items: replaced(items, k, inside(point, size)) }),
    taken: ({ items, found, size }, k) => (found?.[k] ? { items: replaced(items, k, inside(found[k], size)), selected: k } : null),
    beside: ({ found }, k) => (found?.[k] ? k : -1),
    limit: () => null,
    where: ({ items }, k) =>
      k < 0 ? "" : `${label(k)}: ${items[k]?.map((value) => value.toFixed(1)).join(", ") ?? "missing: click where it is"}`,
    chips: ({ items }, selected) => items.map((point, k) => (
      { text: `${k + 1}`, title: label(k), on: k === selected, off: !point, chosen: () => ({ selected: k }) })),
    draw({ items, found }, selected, px, add) {
      found?.forEach((there, k) => {
        if (!there) return;
        const [x, y] = there, here = items[k];
        if (here) add("line", { x1: here[0], y1: here[1], x2: x, y2: y, "stroke-width": px, class: "gap" });
        add("circle", { cx: x, cy: y, r: 3 * px, class: "found" });
      });
      for (const k of topmost(items, selected)) {
        const point = items[k];
        if (!point) continue;
        const group = add("g", { class: k === selected ? "mark selected" : "mark", "data-item": k });
        const ring = { cx: point[0], cy: point[1], r: 6 * px };
        add("circle", { ...ring, r: 11 * px, class: "grip" }, group);
        add("circle", { ...ring, "stroke-width": 4 * px, class: "rim" }, group);
        add("circle", { ...ring, "stroke-width": 2 * px, class: "ring" }, group);
        add("circle", { ...ring, r: px, class: "dot" }, group);
        const place = { x: point[0] + 9 * px, y: point[1] - 7 * px, "font-size": 13 * px, "stroke-width": 3 * px };
        add("text", place, group, k === selected ? label(k) : `${k + 1}`);
      }
    },
    files: { tps, csv: landmarks_csv },
  };
}
