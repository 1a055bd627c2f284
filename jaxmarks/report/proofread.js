// The page on which landmarks or boxes are looked through and put right: what both have in common. What does not touch the
// page stands first, here and in the files of the kinds (proofread_landmarks.js, proofread_boxes.js), and is tested.
//
// An image is {name, source, size: [height, width], items, group, ...}, its items those of its kind. A kind is an object of
//   doubt(image)                      how much it needs to be looked at, or null;   told(image): the same in words
//   first(image)                      the item that is selected when it is opened, -1 for none
//   moved(item, part, [dx, dy], size) the item, a part of which is moved
//   removed(items, k)                 {items, selected} without one
//   added(image, selected, point)     {items, selected} after a click beside all items, or null
//   drawn(image, from, to)            the same after a stroke in drawing mode, or null
//   taken(image, k)                   the same after the network's item k was taken, or null
//   beside(image, selected)           the network's item that stands for the selected one, or -1
//   settled(items)                    the items of an image that is right
//   next(image, selected, by)         the next item that there is
//   draw(image, selected, px, add)    draws the items with add(kind, attributes, parent, text), px being a screen's pixel
//   chips(image, selected)            buttons: {text, title, on, off, chosen: () -> {items, selected}}
//   where(image, selected)            words on what is selected
//   files                             what can be saved: ending -> images -> text

"use strict";

// A number in at most so many decimals: a thousandth of a pixel is below what a hand can tell.
const rounded = (value) => Math.round(value * 1000) / 1000;

// The text of a table, as CSV.
function table(rows) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return rows.map((cells) => cells.map((cell) => quoted(String(cell ?? ""))).join(",") + "\r\n").join("");
}

// The images' numbers, the most doubtful first, or as they come.
function order(images, doubt, by) {
  const numbers = images.map((_, n) => n), each = images.map((image) => doubt(image) ?? -Infinity);
  return by === "doubt" ? numbers.sort((a, b) => (each[a] === each[b] ? a - b : each[b] - each[a])) : numbers;
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
  .map(([n, { name, items, checked, changed, had }]) => [n, { name, items, checked, changed, had }]));

// Puts what was kept into the images again, but for those that have other items since than they `had`.
function restore(images, kept) {
  images.forEach((image, n) => {
    if (kept[n]?.name === image.name && kept[n].had === image.had) Object.assign(image, kept[n]);
  });
}

function proofread(images, kind) {
  const at = (id) => document.getElementById(id);
  const stage = at("stage"), sheet = at("sheet"), picture = at("picture"), marks = at("marks");
  const key = `jaxmarks ${location.pathname}`;
  const chosen = new Map(); // the files of a folder that was chosen, by the ends of their paths
  const undone = [];
  for (const image of images) Object.assign(image, { checked: false, changed: false, had: JSON.stringify(image.items) });
  let kept = true;
  try {
    restore(images, JSON.parse(localStorage.getItem(key) ?? "{}"));
  } catch {
    kept = false;
  }
  let places = order(images, kind.doubt, "doubt"), place = 0, selected = -1, view = null, drag = null, drawing = false;

  const current = () => images[places[place]];

  function keep() {
    try {
      localStorage.setItem(key, JSON.stringify(progress(images)));
      kept = true;
    } catch { // a browser that keeps nothing for files, or not so much
      kept = false;
    }
  }

  function add(name, attributes, parent, text = "") {
    const made = document.createElementNS(parent.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  // The list of photographs, anew.
  function list() {
    at("list").replaceChildren();
    places.forEach((n, row) => {
      const line = add("li", { title: images[n].name }, at("list"));
      for (const name of ["state", "name", "doubt"]) add("span", { class: name }, line);
      line.onclick = () => open(row);
      tell(row);
    });
    here();
  }

  // A photograph's line of the list: how it stands, and how doubtful it is.
  function tell(row) {
    const image = images[places[row]], [state, name, doubt] = at("list").children[row].children;
    state.textContent = image.checked ? "✓" : image.changed ? "•" : "";
    name.textContent = image.name;
    doubt.textContent = kind.told(image);
  }

  // What the list says of the photograph that is shown, and of all.
  function here() {
    tell(place);
    document.querySelector("#list .here")?.classList.remove("here");
    at("list").children[place].classList.add("here");
    at("list").children[place].scrollIntoView({ block: "nearest" });
    const done = images.filter((image) => image.checked).length;
    at("count").textContent = `${done} of ${images.length} looked through${kept ? "" : " (this browser keeps none of it: save before you leave)"}`;
  }

  // The items, their lines as thick on the screen at every scale.
  function draw() {
    const image = current(), [height, width] = image.size;
    sheet.style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.scale})`;
    sheet.style.width = `${width}px`;
    sheet.style.height = `${height}px`;
    sheet.className = view.scale > 3 ? "pixels" : "";
    stage.className = drawing ? "drawing" : "";
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.replaceChildren();
    kind.draw(image, selected, 1 / view.scale, (name, attributes, parent = marks, text = "") => add(name, attributes, parent, text));
    at("chips").replaceChildren();
    for (const { text, title, on, off, chosen } of kind.chips(image, selected)) {
      const button = add("button", { class: `${on ? "selected" : ""} ${off ? "missing" : ""}`, title }, at("chips"), text);
      button.onclick = () => change(chosen());
    }
    at("where").textContent = kind.where(image, selected);
    at("take").hidden = kind.beside(image, selected) < 0;
    at("draw").hidden = !kind.drawn;
    at("check").textContent = image.checked ? "Not yet right" : "Right, next";
  }

  function state() {
    keep();
    here();
    draw();
  }

  // The address of a photograph, or of the copy that was written for browsers: in a folder that was chosen, else where it lay.
  function address({ name, source }) {
    const copy = `proofread/${name}.jpg`, copied = decodeURIComponent(source) === copy;
    at("which").textContent = `Choose the folder ${copied ? "“proofread” that was written with this page" : "of photographs"}`;
    const file = chosen.get(copied ? copy : name);
    return file ? URL.createObjectURL(file) : source;
  }

  function open(row) {
    place = Math.min(Math.max(row, 0), places.length - 1);
    selected = kind.first(current());
    URL.revokeObjectURL(picture.src);
    at("lost").hidden = true;
    picture.src = address(current());
    fit();
    here();
  }

  function fit() {
    view = fitted(current().size, [stage.clientHeight, stage.clientWidth]);
    draw();
  }

  function remember() {
    const { items, changed } = current();
    return undone.push({ image: current(), items: structuredClone(items), changed });
  }

  // What a kind's function gives takes effect: other items, another selection, or null for nothing.
  function change(result) {
    if (!result) return;
    if (result.items) {
      remember();
      Object.assign(current(), { items: result.items, changed: true });
    }
    selected = result.selected ?? selected;
    if (result.items) state();
    else draw();
  }

  function move(item) {
    current().items[selected] = item;
    current().changed = true;
  }

  function remove() {
    if (current().items[selected]) change(kind.removed(current().items, selected));
  }

  function take() {
    change(kind.taken(current(), kind.beside(current(), selected)));
  }

  function undo() {
    const last = undone.pop();
    if (!last) return;
    Object.assign(last.image, { items: last.items, changed: last.changed });
    if (last.image !== current()) open(places.indexOf(images.indexOf(last.image)));
    state();
  }

  function check() {
    const image = current();
    image.checked = !image.checked;
    if (image.checked) image.items = kind.settled(image.items);
    state();
    if (image.checked) open(place + 1);
  }

  function save(ending) {
    const some = at("some").checked ? images.filter((image) => image.checked) : images;
    if (!some.length) return alert("No photograph is looked through yet: press “Right, next” on those that are.");
    const link = add("a", { download: `corrected.${ending}` }, document.body);
    link.href = URL.createObjectURL(new Blob([kind.files[ending](some)], { type: "text/plain" }));
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
    drag = { start: window_of(event), from: pixel_of(event), view, moved: false };
    const { item, part, taken } = event.target.closest("[data-item], [data-taken]")?.dataset ?? {};
    if (kind.drawn && (drawing || event.shiftKey)) drag.stroke = true;
    else if (taken !== undefined) drag.taken = Number(taken);
    else if (item !== undefined) {
      selected = Number(item);
      Object.assign(drag, { item: current().items[selected], part });
      draw();
    }
  };
  stage.onpointermove = (event) => {
    if (!drag) return;
    const [x, y] = window_of(event);
    drag.moved ||= Math.hypot(x - drag.start[0], y - drag.start[1]) > 2; // a hand that clicks is not quite still
    if (!drag.moved) return;
    if (drag.item) {
      drag.undo ??= remember();
      const [across, down] = pixel_of(event);
      move(kind.moved(drag.item, drag.part, [across - drag.from[0], down - drag.from[1]], current().size));
    } else if (!drag.stroke) {
      view = { ...view, left: drag.view.left + x - drag.start[0], top: drag.view.top + y - drag.start[1] };
    }
    draw();
    if (drag.stroke) {
      const [across, down] = pixel_of(event), [left, top] = drag.from;
      const corner = { x: Math.min(left, across), y: Math.min(top, down), "stroke-width": 2 / view.scale, class: "box selected" };
      add("rect", { ...corner, width: Math.abs(across - left), height: Math.abs(down - top) }, marks);
    }
  };
  stage.onpointerup = (event) => {
    const { moved, item, stroke, taken, from } = drag ?? { item: {} };
    drag = null;
    if (stroke) change(kind.drawn(current(), from, moved ? pixel_of(event) : null));
    else if (item) moved && state();
    else if (!moved) change(taken === undefined ? kind.added(current(), selected, pixel_of(event)) : kind.taken(current(), taken));
  };
  stage.onpointercancel = () => (drag = null);
  picture.onerror = () => (at("lost").hidden = false);

  at("check").onclick = check;
  at("take").onclick = take;
  at("draw").onclick = () => {
    drawing = !drawing;
    at("draw").classList.toggle("main", drawing);
    draw();
  };
  at("remove").onclick = remove;
  at("undo").onclick = undo;
  at("fit").onclick = fit;
  for (const ending of Object.keys(kind.files)) {
    add("button", {}, at("save"), `Save ${ending.toUpperCase()}`).onclick = () => save(ending);
  }
  at("by").onchange = () => {
    const here = places[place];
    places = order(images, kind.doubt, at("by").value);
    place = places.indexOf(here);
    list();
  };
  at("folder").onchange = (event) => {
    for (const file of event.target.files) {
      const parts = (file.webkitRelativePath || file.name).split("/");
      parts.forEach((_, from) => chosen.set(parts.slice(from).join("/"), file));
    }
    open(place);
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const keys = {
    PageDown: () => open(place + 1),
    PageUp: () => open(place - 1),
    Enter: check,
    Delete: remove,
    Backspace: remove,
    n: take,
    f: fit,
    Tab: (event) => change({ selected: kind.next(current(), selected, event.shiftKey ? -1 : 1) }),
  };
  document.onkeydown = (event) => {
    if (event.target.matches("select, input:not([type=checkbox])")) return;
    const { items, size } = current(), step = arrows[event.key]?.map((by) => (by * (event.shiftKey ? 10 : 1)) / view.scale);
    const act = step && items[selected]
      ? () => change({ items: items.map((item, k) => (k === selected ? kind.moved(item, undefined, step, size) : item)) })
      : event.key === "z" && (event.ctrlKey || event.metaKey) ? undo : event.ctrlKey || event.metaKey ? null : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act(event);
  };
  window.onresize = fit;
  window.onbeforeunload = (event) => {
    if (!kept && images.some((image) => image.changed)) event.preventDefault(); // asks
  };
  kind.changed = () => { // what a kind has of its own
    list();
    draw();
  };
  list();
  open(0);
}
