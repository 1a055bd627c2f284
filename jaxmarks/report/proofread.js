// The page on which landmarks or boxes are looked through and put right: what both have in common. All but `proofread` knows
// nothing of the page, here and in the files of the kinds (proofread_landmarks.js; proofread_boxes.js, which is given its
// slider), and is tested.
//
// An image is {name, source, copied, size: [height, width], items, group, ...}, its items those of its kind, and its source
// the address of the photograph or, `copied`, of a copy for browsers. A kind is an object of
//   doubt(image)                      how much it needs to be looked at, or null;   told(image): the same in words
//   first(image)                      the item that is selected when it is opened, -1 for none
//   next(image, selected, by)         the next item that there is
//   moved(item, part, [dx, dy], size) the item, a part of which is moved
//   removed(image, k)                 {items, selected} without one
//   added(image, selected, point)     {items, selected} after a click beside all items, or null
//   drawn(image, from, to)            the same after a stroke in drawing mode, or null; a kind may lack it
//   taken(image, k)                   the same after the network's item k was taken, or null
//   beside(image, selected)           the network's item that stands for the selected one, or -1
//   limit()                           what has to be known of the page to tell an image's items once it is right
//   get(), put(value)                 what is set on the page for all images, to be kept as well; a kind may lack them
//   draw(image, selected, px, add)    draws the items with add(kind, attributes, parent, text), px being a screen's pixel
//   chips(image, selected)            buttons: {text, title, on, off, chosen: () -> {items, selected}}
//   where(image, selected)            words on what is selected
//   files                             what can be saved: ending -> images -> text

"use strict";

// A number in at most so many decimals: a thousandth of a pixel is below what a hand can tell.
const rounded = (value) => Math.round(value * 1000) / 1000;

const clipped = (value, low, high) => Math.min(Math.max(value, low), high);

// A point within an image of size [height, width].
const inside = ([x, y], [height, width]) => [clipped(rounded(x), 0, width), clipped(rounded(y), 0, height)];

// The items with another one in the place of item k; lists of items never change themselves.
const replaced = (items, k, item) => items.map((old, i) => (i === k ? item : old));

// The numbers of items, the selected one last, as what is drawn last lies above all others.
const topmost = (items, selected) => [...items.keys()].sort((a, b) => (a === selected) - (b === selected));

// The number after k, or before it, of those that are `there`, in a circle; -1 where none is.
const neighbour = (there, k, by) =>
  (by > 0 ? there.find((n) => n > k) ?? there[0] : there.findLast((n) => n < k) ?? there.at(-1)) ?? -1;

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

// The files of a folder by the ends of their paths; of several the one in the fewest folders.
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

// A number that tells texts apart (FNV-1a, 32 bits).
function digest(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

// What is done with the images, in a `store` of texts (get, set, which may throw) that outlives the page: an entry for each
// image, so that pages that are open twice, and photographs that come later, leave the others' alone.
function session(images, kind, store) {
  const times = {}, undone = [], unkept = new Set();
  let readable = true, others = 0;
  for (const image of images) {
    times[image.name] = (times[image.name] ?? 0) + 1; // a photograph may be marked twice
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
    // Whether the store takes what is done, and how many images had other items when it was done.
    get kept() {
      return readable && !unkept.size;
    },
    others,
    keep(image = at.image) {
      unkept.add(image);
      try {
        for (const one of unkept) { // those, too, for which there was no room before
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
    // Before something changes, so that it can be undone.
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
    // What a kind's function gives takes effect: other items, another selection, or null for nothing.
    change(result) {
      if (result?.items) {
        at.remember();
        Object.assign(at.image, { items: result.items, changed: true });
        at.keep();
      }
      at.selected = result?.selected ?? at.selected;
    },
    // The selected item while it is dragged.
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
    // It is right, and the next one is shown.
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

  // The list of photographs, anew.
  function list() {
    find("list").replaceChildren();
    now.places.forEach((n, row) => {
      const line = add("li", { title: images[n].name }, find("list"));
      for (const name of ["state", "name", "doubt"]) add("span", { class: name }, line);
      line.onclick = () => open(row);
      tell(row);
    });
  }

  // A photograph's line of the list: how it stands, and how doubtful it is.
  function tell(row) {
    const image = images[now.places[row]], [state, name, doubt] = find("list").children[row].children;
    state.textContent = image.checked ? "✓" : image.changed ? "•" : "";
    name.textContent = image.name;
    doubt.textContent = kind.told(image);
  }

  // The photograph's items, their lines as thick on the screen at every scale.
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

  // All that changes with the photograph's items.
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

  // The photograph of the session's place, whole.
  function opened() {
    const { name, source, copied } = now.image, file = chosen.get(copied ? decodeURIComponent(source) : name);
    drag = null;
    URL.revokeObjectURL(picture.src);
    picture.style.visibility = "hidden"; // else the last one stays until this is there
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
    if (event.button || drag) return; // a second finger
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
    drag.moved ||= Math.hypot(x - drag.start[0], y - drag.start[1]) > 2; // a hand that clicks is not quite still
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
    find("by").blur(); // keys are for the photograph
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
    Enter: (event) => event.repeat || right(), // a key that is held
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
    if (!now.kept) event.preventDefault(); // asks
  };
  kind.changed = () => { // what is set on the page for all images
    now.selected = -1;
    now.keep();
    now.places.forEach((_, row) => tell(row));
    show();
  };
  list();
  opened();
}
