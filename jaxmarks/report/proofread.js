// The page for checking and correcting landmarks or boxes: shared code. Only `proofread` uses the page; all other code,
// here and in proofread_landmarks.js and proofread_boxes.js (which is passed its slider), does not, and is tested.
//
// An image is {name, source, copied, size: [height, width], items, group, ...}. The kind defines its items; `source` is the
// URL of the photograph or, if `copied`, of a copy for browsers. A result is {items, selected}; what is left out, or all if
// it is null, stays as it is. A kind is an object of
//   doubt(image)                      how much it needs checking, or null;   told(image): its text in the list
//   first(image)                      index of the item selected on opening, or -1
//   next(image, selected, by)         index of the next existing item (by < 0: previous)
//   moved(item, part, [dx, dy], size) the item after moving `part` of it
//   removed(image, k)                 result of removing item k
//   added(image, selected, point)     result of a click that hits no item
//   drawn(image, from, to)            result of a drag in drawing mode (click: `to` is null); optional
//   taken(image, k)                   result of accepting the network's item k
//   beside(image, selected)           the network's item for the selected one, or -1
//   limit()                           page state, kept with a checked image, on which its final items depend
//   get(), put(value)                 settings for all images, also stored; optional
//   draw(image, selected, px, add)    draws items by add(name, attributes, parent, text); px: a screen pixel's size
//   chips(image, selected)            buttons: {text, title, on, off, chosen: () -> result}
//   where(image, selected)            text about the selected item
//   files                             formats for saving: ending -> images -> text

"use strict";

// Rounded to a thousandth of a pixel, finer than any hand can place.
const rounded = (value) => Math.round(value * 1000) / 1000;

const clipped = (value, low, high) => Math.min(Math.max(value, low), high);

// The point, rounded and clipped to an image of size [height, width].
const inside = ([x, y], [height, width]) => [clipped(rounded(x), 0, width), clipped(rounded(y), 0, height)];

// A copy of the items with item k replaced; item lists are never modified in place.
const replaced = (items, k, item) => items.map((old, i) => (i === k ? item : old));

// Indices of the items, the selected one last: what is drawn last lies on top.
const topmost = (items, selected) => [...items.keys()].sort((a, b) => (a === selected) - (b === selected));

// The number after k (before it if by < 0) in the ascending list `there`, wrapping around; -1 if it is empty.
const neighbour = (there, k, by) =>
  (by > 0 ? there.find((n) => n > k) ?? there[0] : there.findLast((n) => n < k) ?? there.at(-1)) ?? -1;

// The rows of a table as CSV text.
function table(rows) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return rows.map((cells) => cells.map((cell) => quoted(String(cell ?? ""))).join(",") + "\r\n").join("");
}

// Indices of the images, the most doubtful first or in their given order.
function order(images, doubt, by) {
  const numbers = images.map((_, n) => n), each = images.map((image) => doubt(image) ?? -Infinity);
  return by === "doubt" ? numbers.sort((a, b) => (each[a] === each[b] ? a - b : each[b] - each[a])) : numbers;
}

// The view (scale, left, top) in which a picture fills a window of [rows, columns].
function fitted([height, width], [rows, columns]) {
  const scale = Math.min(rows / height, columns / width) * 0.96;
  return { scale, left: (columns - scale * width) / 2, top: (rows - scale * height) / 2 };
}

// The view, zoomed by `factor`, with the point (x, y) of the window kept in place.
const zoomed = (view, factor, x, y) => ({
  scale: view.scale * factor,
  left: x - factor * (x - view.left),
  top: y - factor * (y - view.top),
});

// A folder's files by every ending of their paths; if several share one, the file in the fewest folders.
function by_path(files) {
  const found = new Map(), each = files.map(([path, file]) => [path.split("/"), file]);
  for (const [parts, file] of each.sort(([a], [b]) => a.length - b.length)) {
    parts.forEach((_, from) => {
      const end = parts.slice(from).join("/");
      if (!found.has(end)) found.set(end, file);
    });
  }
  return found;
}

// A hash that tells texts apart (FNV-1a, 32 bits).
function digest(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

// The user's work, in a `store` of texts that outlives the page (its get and set may throw). Each image has its own entry,
// so that pages opened twice and photographs added later leave other images' entries alone.
function session(images, kind, store) {
  const times = {}, undone = [], unkept = new Set();
  let readable = true, others = 0;
  for (const image of images) {
    times[image.name] = (times[image.name] ?? 0) + 1; // a photograph may be annotated twice
    Object.assign(image, { key: `${times[image.name]} ${image.name}`, had: digest(JSON.stringify(image.items)) });
    Object.assign(image, { checked: false, changed: false, limit: null });
    try {
      const { had, ...done } = JSON.parse(store.get(image.key) ?? "null") ?? { had: image.had };
      if (had === image.had) Object.assign(image, done);
      else others += 1;
    } catch {
      readable = false;
    }
  }
  try {
    kind.put?.(JSON.parse(store.get("settings") ?? "null"));
  } catch {
    readable = false;
  }
  const places = order(images, kind.doubt, "doubt");
  const at = {
    places, place: 0, selected: -1,
    get image() {
      return images[at.places[at.place]];
    },
    get done() {
      return images.filter((image) => image.checked).length;
    },
    // Whether the store could be read and holds all of the user's work.
    get kept() {
      return readable && !unkept.size;
    },
    others, // images whose stored work is ignored: their original items changed
    keep(image = at.image) {
      unkept.add(image);
      try {
        for (const one of unkept) { // including those that did not fit before
          const { key, items, checked, changed, limit, had } = one;
          store.set(key, checked || changed ? JSON.stringify({ items, checked, changed, limit, had }) : null);
          unkept.delete(one);
        }
        if (kind.get) store.set("settings", JSON.stringify(kind.get()));
      } catch { /* the page tells */ }
    },
    open(place) {
      at.place = clipped(place, 0, images.length - 1);
      at.selected = kind.first(at.image);
    },
    // Called before a change, so that it can be undone.
    remember() {
      const { image, selected } = at, { items, checked, changed, limit } = image;
      return undone.push([image, { items, checked, changed, limit }, selected]);
    },
    undo() {
      if (!undone.length) return false;
      const [image, before, selected] = undone.pop();
      Object.assign(image, before);
      at.keep(image);
      if (image !== at.image) at.open(at.places.indexOf(images.indexOf(image)));
      at.selected = selected;
      return true;
    },
    // Applies a result of the kind: new items, a new selection, both, or null for neither.
    change(result) {
      if (result?.items) {
        at.remember();
        Object.assign(at.image, { items: result.items, changed: true });
        at.keep();
      }
      at.selected = result?.selected ?? at.selected;
    },
    // Updates the selected item while it is dragged.
    drag(item) {
      Object.assign(at.image, { items: replaced(at.image.items, at.selected, item), changed: true });
    },
    remove() {
      if (at.image.items[at.selected]) at.change(kind.removed(at.image, at.selected));
    },
    check(on) {
      if (on === at.image.checked) return;
      at.remember();
      Object.assign(at.image, { checked: on, limit: on ? kind.limit() : null });
      at.keep();
    },
    // Marks the image as checked and opens the next one.
    next() {
      at.check(true);
      at.open(at.place + 1);
    },
    sort(by) {
      const image = images.indexOf(at.image);
      at.places = order(images, kind.doubt, by);
      at.place = at.places.indexOf(image);
    },
    saved: (ending, some) => kind.files[ending](some ? images.filter((image) => image.checked) : images),
  };
  const first = places.findIndex((n) => !images[n].checked);
  at.open(Math.max(first, 0));
  return at;
}

function proofread(images, kind) {
  const find = (id) => document.getElementById(id);
  const stage = find("stage"), sheet = find("sheet"), picture = find("picture"), marks = find("marks");
  const key = (name) => `jaxmarks ${location.pathname} ${name}`;
  const now = session(images, kind, {
    get: (name) => localStorage.getItem(key(name)),
    set: (name, text) => (text === null ? localStorage.removeItem(key(name)) : localStorage.setItem(key(name), text)),
  });
  let view = null, drag = null, drawing = false, chosen = new Map();

  function add(name, attributes, parent, text = "") {
    const made = document.createElementNS(parent.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  // Rebuilds the list of photographs.
  function list() {
    find("list").replaceChildren();
    now.places.forEach((n, row) => {
      const line = add("li", { title: images[n].name }, find("list"));
      for (const name of ["state", "name", "doubt"]) add("span", { class: name }, line);
      line.onclick = () => open(row);
      tell(row);
    });
  }

  // Updates a photograph's row in the list: its state, name and `told`.
  function tell(row) {
    const image = images[now.places[row]], [state, name, doubt] = find("list").children[row].children;
    state.textContent = image.checked ? "✓" : image.changed ? "•" : "";
    name.textContent = image.name;
    doubt.textContent = kind.told(image);
  }

  // Draws the photograph's items, lines equally thick on screen at every scale.
  function draw() {
    const { image, selected } = now, [height, width] = image.size;
    sheet.style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.scale})`;
    sheet.style.width = `${width}px`;
    sheet.style.height = `${height}px`;
    sheet.className = view.scale > 3 ? "pixels" : "";
    stage.className = drawing ? "drawing" : "";
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.replaceChildren();
    kind.draw(image, selected, 1 / view.scale, (name, attributes, parent = marks, text = "") => add(name, attributes, parent, text));
  }

  // Updates all that depends on the photograph's items.
  function show() {
    const { image, selected, place } = now;
    draw();
    tell(place);
    document.querySelector("#list .here")?.classList.remove("here");
    find("list").children[place].classList.add("here");
    find("list").children[place].scrollIntoView({ block: "nearest" });
    find("count").textContent = `${now.done} of ${images.length} checked`
      + (now.others ? `; ${now.others} have changed since they were corrected in this browser: those corrections are not used` : "")
      + (now.kept ? "" : "; this browser cannot store your corrections: save a file before you leave");
    find("chips").replaceChildren();
    for (const { text, title, on, off, chosen } of kind.chips(image, selected)) {
      const button = add("button", { class: `${on ? "selected" : ""} ${off ? "missing" : ""}`, title }, find("chips"), text);
      button.onclick = () => change(chosen());
    }
    find("where").textContent = kind.where(image, selected);
    find("take").hidden = kind.beside(image, selected) < 0;
    find("draw").hidden = !kind.drawn;
    find("check").textContent = image.checked ? "Mark as unchecked" : "Checked, next";
  }

  // Shows the session's current photograph, whole.
  function opened() {
    const { name, source, copied } = now.image, file = chosen.get(copied ? decodeURIComponent(source) : name);
    drag = null;
    URL.revokeObjectURL(picture.src);
    picture.style.visibility = "hidden"; // until it has loaded: else the last one stays
    picture.src = file ? URL.createObjectURL(file) : source;
    find("lost").hidden = true;
    find("which").textContent = `Choose the folder ${copied ? "“proofread” that was written with this page" : "of photographs"}`;
    fit();
  }

  function open(place) {
    if (drag?.undo) now.keep();
    now.open(place);
    opened();
  }

  function fit() {
    view = fitted(now.image.size, [stage.clientHeight, stage.clientWidth]);
    show();
  }

  function change(result) {
    now.change(result);
    show();
  }

  function undo() {
    const { image } = now;
    drag = null;
    if (!now.undo()) return;
    if (image === now.image) show();
    else opened();
  }

  function right() {
    const { place } = now;
    now.next();
    tell(place);
    if (now.place === place) show();
    else opened();
  }

  function take() {
    change(kind.taken(now.image, kind.beside(now.image, now.selected)));
  }

  function remove() {
    now.remove();
    show();
  }

  function save(ending) {
    if (find("some").checked && !now.done) {
      alert("No photograph is marked as checked yet: press “Checked, next” on each one that is correct.");
      return;
    }
    const link = add("a", { download: `corrected.${ending}` }, document.body);
    link.href = URL.createObjectURL(new Blob([now.saved(ending, find("some").checked)], { type: "text/plain" }));
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
    if (event.button || drag) return; // another button or a second finger
    stage.setPointerCapture(event.pointerId);
    drag = { id: event.pointerId, start: window_of(event), from: pixel_of(event), view, moved: false };
    const { item, part, taken } = event.target.closest("[data-item], [data-taken]")?.dataset ?? {};
    if (kind.drawn && (drawing || event.shiftKey)) drag.stroke = true;
    else if (taken !== undefined) drag.taken = Number(taken);
    else if (item !== undefined) {
      now.selected = Number(item);
      Object.assign(drag, { item: now.image.items[now.selected], part });
      show();
    }
  };
  stage.onpointermove = (event) => {
    if (drag?.id !== event.pointerId) return;
    const [x, y] = window_of(event), [across, down] = pixel_of(event), [left, top] = drag.from;
    drag.moved ||= Math.hypot(x - drag.start[0], y - drag.start[1]) > 2; // a click, too, moves a little
    if (!drag.moved) return;
    if (drag.item) {
      drag.undo ??= now.remember();
      now.drag(kind.moved(drag.item, drag.part, [across - left, down - top], now.image.size));
    } else if (!drag.stroke) {
      view = { ...view, left: drag.view.left + x - drag.start[0], top: drag.view.top + y - drag.start[1] };
    }
    draw();
    if (drag.stroke) {
      const corner = { x: Math.min(left, across), y: Math.min(top, down), "stroke-width": 2 / view.scale, class: "box selected" };
      add("rect", { ...corner, width: Math.abs(across - left), height: Math.abs(down - top) }, marks);
    }
  };
  stage.onpointerup = (event) => {
    if (drag?.id !== event.pointerId) return;
    const { moved, item, stroke, taken, from } = drag;
    drag = null;
    if (item && moved) now.keep();
    if (stroke) now.change(kind.drawn(now.image, from, moved ? pixel_of(event) : null));
    else if (!item && !moved) {
      now.change(taken === undefined ? kind.added(now.image, now.selected, pixel_of(event)) : kind.taken(now.image, taken));
    }
    show();
  };
  stage.onpointercancel = (event) => {
    if (drag?.id !== event.pointerId) return;
    drag = null;
    now.keep();
    show();
  };
  picture.onload = () => {
    const [height, width] = now.image.size;
    picture.style.visibility = "";
    find("lost").hidden = picture.naturalHeight === height && picture.naturalWidth === width;
  };
  picture.onerror = () => (find("lost").hidden = false);

  find("check").onclick = () => {
    if (!now.image.checked) return right();
    now.check(false);
    show();
  };
  find("take").onclick = take;
  find("draw").onclick = () => {
    drawing = !drawing;
    find("draw").classList.toggle("main", drawing);
    draw();
  };
  find("remove").onclick = remove;
  find("undo").onclick = undo;
  find("fit").onclick = fit;
  for (const ending of Object.keys(kind.files)) {
    add("button", {}, find("save"), `Save ${ending.toUpperCase()}`).onclick = () => save(ending);
  }
  find("by").onchange = () => {
    now.sort(find("by").value);
    find("by").blur(); // keys should act on the photograph
    list();
    show();
  };
  find("folder").onchange = (event) => {
    chosen = new Map([...chosen, ...by_path([...event.target.files].map((file) => [file.webkitRelativePath || file.name, file]))]);
    opened();
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const keys = {
    PageDown: () => open(now.place + 1),
    PageUp: () => open(now.place - 1),
    Enter: (event) => event.repeat || right(), // not while the key is held
    Delete: (event) => event.repeat || remove(),
    Backspace: (event) => event.repeat || remove(),
    n: take,
    f: fit,
    Tab: (event) => change({ selected: kind.next(now.image, now.selected, event.shiftKey ? -1 : 1) }),
  };
  document.onkeydown = (event) => {
    if (event.target.matches("select, input:not([type=checkbox])")) return;
    const { items, size } = now.image, { selected } = now, chord = event.ctrlKey || event.metaKey || event.altKey;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const step = arrows[name]?.map((by) => (by * (event.shiftKey ? 10 : 1)) / view.scale);
    const nudge = () => change({ items: replaced(items, selected, kind.moved(items[selected], undefined, step, size)) });
    const act = chord ? name === "z" && !event.altKey && undo : step ? items[selected] && nudge : keys[name];
    if (!act) return;
    event.preventDefault();
    if (!drag) act(event);
  };
  window.onresize = fit;
  window.onbeforeunload = (event) => {
    if (!now.kept) event.preventDefault(); // the browser asks first
  };
  kind.changed = () => { // called when a setting for all images changes
    now.selected = -1;
    now.keep();
    now.places.forEach((_, row) => tell(row));
    show();
  };
  list();
  opened();
}
