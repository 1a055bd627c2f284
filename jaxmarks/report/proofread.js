// The page on which landmarks are looked through and put right. What does not touch the page stands first, and is tested.
//
// An image is {name, source, size: [height, width], points, found, doubt, id, group, mm_per_px}: `points` are [x, y] in
// its pixels, y down, or null where a landmark is missing; `found` are the network's where `points` were marked by hand.

"use strict";

// A number in at most so many decimals: a thousandth of a pixel is below what a hand can tell.
const rounded = (value) => Math.round(value * 1000) / 1000;

// A point within an image of size [height, width].
const inside = ([x, y], [height, width]) =>
  [Math.min(Math.max(rounded(x), 0), width), Math.min(Math.max(rounded(y), 0), height)];

// The text of a TPS file, y up from the lower edge as tpsDig has it.
function tps(images) {
  const row = (point, height) => (point ? `${point[0]} ${rounded(height - point[1])}` : "NA NA");
  return images.map((image) => [
    `LM=${image.points.length}`,
    ...image.points.map((point) => row(point, image.size[0])),
    `IMAGE=${image.name.trim()}`,
    ...(image.id ? [`ID=${image.id}`] : []),
    ...(image.mm_per_px ? [`SCALE=${image.mm_per_px}`] : []),
  ].join("\n") + "\n").join("");
}

// The text of a CSV file, image,x1,y1,...,group,mm_per_px,id, y down.
function csv(images) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const each = images[0].points.map((_, k) => [`x${k + 1}`, `y${k + 1}`]).flat();
  const rows = images.map((image) => [
    image.name, ...image.points.flatMap((point) => point ?? ["NA", "NA"]), image.group ?? "", image.mm_per_px ?? "NA", image.id ?? "",
  ]);
  return [["image", ...each, "group", "mm_per_px", "id"], ...rows]
    .map((cells) => cells.map((cell) => quoted(String(cell))).join(",") + "\r\n").join("");
}

// The landmark that most needs to be looked at: the first of the largest doubt.
const worst = (image) => image.doubt.reduce((best, doubt, k) => ((doubt ?? -1) > (image.doubt[best] ?? -1) ? k : best), 0);

// The images' numbers, the most doubtful first, or as they come.
function order(images, by) {
  const numbers = images.map((_, n) => n);
  const doubt = images.map((image) => image.doubt[worst(image)] ?? -1);
  return by === "doubt" ? numbers.sort((a, b) => doubt[b] - doubt[a] || a - b) : numbers;
}

// Where a picture of [height, width] lies to fill a window of [height, width]: its scale, left and top.
function fitted([height, width], [rows, columns]) {
  const scale = Math.min(rows / height, columns / width) * 0.96;
  return { scale, left: (columns - scale * width) / 2, top: (rows - scale * height) / 2 };
}

// A view that is `factor` times as close, in which what is at (x, y) of the window stays there.
const zoomed = (view, factor, x, y) => ({
  scale: view.scale * factor,
  left: x - factor * (x - view.left),
  top: y - factor * (y - view.top),
});

// What is worth keeping of the images, by their numbers: of those that were changed or looked through.
const progress = (images) => Object.fromEntries([...images.entries()]
  .filter(([, { checked, changed }]) => checked || changed)
  .map(([n, { name, points, checked, changed, had }]) => [n, { name, points, checked, changed, had }]));

// Puts what was kept into the images again, but for those that have other points since than they `had`.
function restore(images, kept) {
  images.forEach((image, n) => {
    if (kept[n]?.name === image.name && kept[n].had === image.had) Object.assign(image, kept[n]);
  });
}

function proofread({ names, unit, images }) {
  const at = (id) => document.getElementById(id);
  const stage = at("stage"), sheet = at("sheet"), picture = at("picture"), marks = at("marks");
  const key = `jaxmarks ${location.pathname}`;
  const chosen = new Map(); // the files of a folder that was chosen, by their path's ends
  const undone = [];
  let places = order(images, "doubt"), place = 0, selected = 0, view = null, drag = null, kept = true;
  for (const image of images) Object.assign(image, { checked: false, changed: false, had: JSON.stringify(image.points) });
  try {
    restore(images, JSON.parse(localStorage.getItem(key) ?? "{}"));
  } catch {
    kept = false;
  }

  const current = () => images[places[place]];
  const label = (k) => (names[k] ? `${k + 1} ${names[k]}` : `${k + 1}`);

  function keep() {
    try {
      localStorage.setItem(key, JSON.stringify(progress(images)));
      kept = true;
    } catch { // a browser that keeps nothing for files, or not so much
      kept = false;
    }
  }

  function element(kind, attributes, parent, text = "") {
    const made = document.createElementNS(parent.namespaceURI, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  // How doubtful a photograph is: by its worst landmark's distance from the network's, or score.
  const told = (doubt) => (!(doubt > 0) ? "" : unit === "px" ? `${doubt.toFixed(1)} px` : (1 - doubt).toFixed(2));

  // The list of photographs; of each how it stands and how doubtful it is.
  function list() {
    at("list").replaceChildren();
    places.forEach((n, row) => {
      const image = images[n], doubt = image.doubt[worst(image)];
      const line = element("li", { class: row === place ? "here" : "" }, at("list"));
      element("span", { class: "state" }, line, image.checked ? "✓" : image.changed ? "•" : "");
      element("span", { class: "name" }, line, image.name);
      element("span", { class: "doubt" }, line, told(doubt));
      line.onclick = () => open(row);
    });
    at("list").children[place].scrollIntoView({ block: "nearest" });
    const done = images.filter((image) => image.checked).length;
    at("count").textContent = `${done} of ${images.length} looked through${kept ? "" : " (this browser keeps none of it: save before you leave)"}`;
  }

  function state() {
    keep();
    list();
    draw();
  }

  // The landmarks, as large on the screen at every scale.
  function draw() {
    const image = current(), px = 1 / view.scale, [height, width] = image.size;
    sheet.style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.scale})`;
    sheet.style.width = `${width}px`;
    sheet.style.height = `${height}px`;
    sheet.className = view.scale > 3 ? "pixels" : "";
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.replaceChildren();
    image.points.forEach((point, k) => {
      const found = image.found?.[k];
      if (found) {
        if (point) element("line", { x1: point[0], y1: point[1], x2: found[0], y2: found[1], "stroke-width": px, class: "gap" }, marks);
        element("circle", { cx: found[0], cy: found[1], r: 3 * px, class: "found" }, marks);
      }
    });
    image.points.forEach((point, k) => {
      if (!point) return;
      const group = element("g", { class: k === selected ? "mark selected" : "mark", "data-landmark": k }, marks);
      const ring = { cx: point[0], cy: point[1], r: 6 * px };
      element("circle", { ...ring, r: 11 * px, class: "grip" }, group);
      element("circle", { ...ring, "stroke-width": 4 * px, class: "rim" }, group);
      element("circle", { ...ring, "stroke-width": 2 * px, class: "ring" }, group);
      element("circle", { ...ring, r: px, class: "dot" }, group);
      const words = { x: point[0] + 9 * px, y: point[1] - 7 * px, "font-size": 13 * px, "stroke-width": 3 * px };
      element("text", words, group, k === selected ? label(k) : `${k + 1}`);
    });
    at("landmarks").replaceChildren();
    image.points.forEach((point, k) => {
      const chip = element("button", { class: `${k === selected ? "selected" : ""} ${point ? "" : "missing"}`, title: label(k) }, at("landmarks"), `${k + 1}`);
      chip.onclick = () => select(k);
    });
    const where = image.points[selected]?.map((value) => value.toFixed(1)).join(", ") ?? "missing: click where it is";
    at("where").textContent = `${label(selected)}: ${where}`;
    at("take").hidden = !image.found?.[selected];
    at("check").textContent = image.checked ? "Not yet right" : "Right, next";
  }

  function select(k) {
    selected = k;
    draw();
  }

  // The address of a photograph: in the folder that was chosen, else where it lay.
  function address(image) {
    const parts = image.name.split("/");
    const file = parts.map((_, from) => chosen.get(parts.slice(from).join("/"))).find(Boolean);
    return file ? URL.createObjectURL(file) : image.source;
  }

  function open(row) {
    place = Math.min(Math.max(row, 0), places.length - 1);
    const image = current();
    selected = worst(image);
    URL.revokeObjectURL(picture.src);
    at("lost").hidden = true;
    picture.src = address(image);
    fit();
    list();
  }

  function fit() {
    view = fitted(current().size, [stage.clientHeight, stage.clientWidth]);
    draw();
  }

  // Moves a landmark of the photograph that is shown; null is missing.
  function move(k, point) {
    const image = current();
    image.points[k] = point && inside(point, image.size);
    image.changed = true;
  }

  function remember() {
    return undone.push([current(), structuredClone(current().points), current().changed]);
  }

  function change(k, point) {
    remember();
    move(k, point);
    state();
  }

  function undo() {
    const last = undone.pop();
    if (!last) return;
    const [image, points, changed] = last;
    Object.assign(image, { points, changed });
    if (image !== current()) open(places.indexOf(images.indexOf(image)));
    state();
  }

  function check() {
    const image = current();
    image.checked = !image.checked;
    keep();
    if (image.checked && place + 1 < places.length) open(place + 1);
    else state();
  }

  function take() {
    if (current().found?.[selected]) change(selected, current().found[selected]);
  }

  function save(ending, text) {
    const some = at("some").checked ? images.filter((image) => image.checked) : images;
    if (!some.length) return alert("No photograph is looked through yet: press “Right, next” on those that are.");
    const link = element("a", { download: `corrected.${ending}` }, document.body);
    link.href = URL.createObjectURL(new Blob([text(some)], { type: "text/plain" }));
    link.click();
    link.remove();
  }

  const window_of = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pixel_of = (event) => {
    const [x, y] = window_of(event);
    return [(x - view.left) / view.scale, (y - view.top) / view.scale];
  };

  stage.onwheel = (event) => {
    event.preventDefault();
    view = zoomed(view, Math.exp(-event.deltaY / (event.deltaMode ? 20 : 500)), ...window_of(event));
    draw();
  };
  stage.onpointerdown = (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    drag = { start: window_of(event), view, moved: false };
    const mark = event.target.closest("[data-landmark]");
    if (!mark) return;
    select(Number(mark.dataset.landmark));
    const [x, y] = pixel_of(event), point = current().points[selected];
    drag.off = [point[0] - x, point[1] - y];
  };
  stage.onpointermove = (event) => {
    if (!drag) return;
    const [x, y] = window_of(event);
    drag.moved ||= Math.hypot(x - drag.start[0], y - drag.start[1]) > 2; // a hand that clicks is not quite still
    if (!drag.moved) return;
    if (drag.off) {
      drag.undo ??= remember();
      const [across, down] = pixel_of(event);
      move(selected, [across + drag.off[0], down + drag.off[1]]);
    } else {
      view = { ...view, left: drag.view.left + x - drag.start[0], top: drag.view.top + y - drag.start[1] };
    }
    draw();
  };
  stage.onpointerup = (event) => {
    const { moved, off } = drag ?? { moved: true };
    drag = null;
    if (off && moved) state();
    else if (!moved && !off && !current().points[selected]) change(selected, pixel_of(event));
  };
  stage.onpointercancel = () => (drag = null);
  picture.onerror = () => (at("lost").hidden = false);

  at("check").onclick = check;
  at("take").onclick = take;
  at("missing").onclick = () => change(selected, null);
  at("undo").onclick = undo;
  at("fit").onclick = fit;
  at("tps").onclick = () => save("tps", tps);
  at("csv").onclick = () => save("csv", csv);
  at("by").onchange = (event) => {
    const image = current();
    places = order(images, event.target.value);
    place = places.indexOf(images.indexOf(image));
    list();
  };
  at("folder").onchange = (event) => {
    for (const file of event.target.files) {
      const parts = (file.webkitRelativePath || file.name).split("/");
      parts.forEach((_, from) => chosen.set(parts.slice(from).join("/"), file));
    }
    open(place);
  };
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const count = images[0].points.length;
  const keys = {
    PageDown: () => open(place + 1),
    PageUp: () => open(place - 1),
    Enter: check,
    Delete: () => change(selected, null),
    Backspace: () => change(selected, null),
    n: take,
    f: fit,
    Tab: (event) => select((selected + (event.shiftKey ? count - 1 : 1)) % count),
  };
  document.onkeydown = (event) => {
    if (event.target.matches("select, input[type=text]")) return;
    const point = current().points[selected], step = steps[event.key];
    const act = step && point
      ? () => change(selected, step.map((by, axis) => point[axis] + (by * (event.shiftKey ? 10 : 1)) / view.scale))
      : event.key === "z" && (event.ctrlKey || event.metaKey) ? undo : event.ctrlKey || event.metaKey ? null : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act(event);
  };
  window.onresize = fit;
  window.onbeforeunload = (event) => {
    if (!kept && images.some((image) => image.changed)) event.preventDefault(); // asks
  };
  open(0);
}
