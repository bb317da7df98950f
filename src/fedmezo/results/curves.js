// Draws the curves of a report and lets their reader choose axes, hide curves, read values and zoom. No library, no
// network: the page holds the data as JSON in the element with the id `curves-data`, as results/curves.py writes it.
"use strict";

(() => {
  const WIDTH = 760, HEIGHT = 380, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 40;
  const SVG = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("curves-data").textContent);
  const view = { group: data.groups[0], axis: data.axes[0], log: false, hidden: new Set(), range: null };
  const place = document.getElementById("curves");

  const element = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    Object.assign(node, attributes);
    node.append(...children);
    return node;
  };
  const shape = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // Points (x, y) of a curve that can be drawn: with a value, in the range, and above 0 on a logarithmic axis.
  const points = (curve) => {
    const xs = curve.x[view.axis] || [];
    return curve.y.map((y, i) => [xs[i], y]).filter(([x, y]) =>
      x != null && y != null && (!view.log || y > 0) && (!view.range || (x >= view.range[0] && x <= view.range[1])));
  };
  const visible = () => data.curves.filter((c) => c.group === view.group && !view.hidden.has(c.label));

  // About five round numbers between two values.
  const ticks = (low, high) => {
    const rough = (high - low) / 5 || 1;
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * size).find((s) => s >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
    return found;
  };
  const decades = (low, high) => {
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
      for (const f of [1, 2, 5]) if (f * 10 ** p >= low && f * 10 ** p <= high) found.push(f * 10 ** p);
    return found;
  };
  const shown = (value, axis) => {
    if (axis === "bytes sent") {
      const unit = value < 1e3 ? 0 : value < 1e6 ? 1 : value < 1e9 ? 2 : 3;
      return `${+(value / 1e3 ** unit).toPrecision(4)} ${["B", "kB", "MB", "GB"][unit]}`;
    }
    return Math.abs(value) >= 1e4 ? value.toLocaleString("en") : String(+value.toPrecision(5));
  };

  function draw() {
    const curves = visible().map((curve) => ({ curve, points: points(curve) })).filter((c) => c.points.length);
    const all = curves.flatMap((c) => c.points);
    const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${view.group} against ${view.axis}` });
    if (!all.length) {
      svg.append(shape("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing to draw"));
      return place.replaceChild(svg, place.querySelector("svg"));
    }
    const map = view.log ? Math.log10 : (v) => v;
    const bounds = (i) => all.reduce(([a, b], p) => [Math.min(a, p[i]), Math.max(b, p[i])], [Infinity, -Infinity]);
    const [x0, x1] = bounds(0), [y0, y1] = bounds(1);
    const px = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - RIGHT);
    const margin = (map(y1) - map(y0)) * 0.04 || 0.5;
    const py = (y) => HEIGHT - BOTTOM - ((map(y) - map(y0) + margin) / (map(y1) - map(y0) + 2 * margin)) * (HEIGHT - TOP - BOTTOM);

    for (const y of view.log ? decades(y0, y1) : ticks(y0, y1)) {
      svg.append(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }));
      svg.append(shape("text", { x: LEFT - 8, y: py(y) + 4, "text-anchor": "end" }, shown(y)));
    }
    for (const x of ticks(x0, x1))
      svg.append(shape("text", { x: px(x), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, shown(x, view.axis)));
    svg.append(shape("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, view.axis));
    for (const { curve, points: drawn } of curves) {
      const path = drawn.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)},${py(y).toFixed(1)}`).join("");
      svg.append(shape("path", { d: path, stroke: curve.colour, "stroke-dasharray": curve.dash, "data-label": curve.label }));
    }
    const cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    const zoom = shape("rect", { class: "zoom", y: TOP, height: HEIGHT - TOP - BOTTOM });
    svg.append(zoom, cursor);
    listen(svg, { curves, x0, x1, px, cursor, zoom });
    place.replaceChild(svg, place.querySelector("svg"));
  }

  // Reading values under the pointer, and choosing a range by dragging; a double click shows everything again.
  function listen(svg, { curves, x0, x1, px, cursor, zoom }) {
    let from = null;
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const inside = ((event.clientX - box.left) / box.width) * WIDTH;
      const share = (inside - LEFT) / (WIDTH - LEFT - RIGHT);
      return x0 + Math.min(1, Math.max(0, share)) * (x1 - x0);
    };
    svg.addEventListener("pointermove", (event) => {
      const x = at(event);
      const nearest = ({ points: p }) => p.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      const rows = curves.map((c) => [c.curve, nearest(c)]);
      const where = rows.map(([, p]) => p[0]).reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
      cursor.setAttribute("x1", px(where));
      cursor.setAttribute("x2", px(where));
      cursor.style.display = "block";
      place.querySelector("output").replaceChildren(
        `${view.axis} ${shown(where, view.axis)}`,
        ...rows.map(([curve, p]) => element("span", { style: `color: ${curve.colour}` }, `${curve.label} ${shown(p[1])}`)));
      if (from === null) return;
      zoom.setAttribute("x", Math.min(px(from), px(x)));
      zoom.setAttribute("width", Math.abs(px(x) - px(from)));
    });
    svg.addEventListener("pointerdown", (event) => { from = at(event); });
    svg.addEventListener("pointerup", (event) => {
      const to = at(event);
      const wide = from !== null && Math.abs(px(to) - px(from)) > 8;
      if (wide) view.range = [Math.min(from, to), Math.max(from, to)];
      from = null;
      if (wide) draw();
    });
    svg.addEventListener("dblclick", () => { view.range = null; draw(); });
  }

  function controls() {
    const choice = (name, options, current, choose) => {
      const select = element("select", { name, ariaLabel: name }, ...options.map((o) => element("option", { value: o, selected: o === current }, o)));
      select.addEventListener("change", () => { choose(select.value); view.range = null; legend(); draw(); });
      return select;
    };
    const log = element("input", { type: "checkbox", name: "log" });
    log.addEventListener("change", () => { view.log = log.checked; draw(); });
    return element("p", { className: "controls" },
      choice("curve", data.groups, view.group, (value) => { view.group = value; }), " against ",
      choice("axis", data.axes, view.axis, (value) => { view.axis = value; }), " ",
      element("label", {}, log, " logarithmic"));
  }

  function legend() {
    const buttons = data.curves.filter((c) => c.group === view.group).map((curve) => {
      const button = element("button", { type: "button", ariaPressed: String(!view.hidden.has(curve.label)) },
        element("i", { style: `border-top: 3px ${curve.dash ? "dashed" : "solid"} ${curve.colour}` }), curve.label);
      button.addEventListener("click", () => {
        if (!view.hidden.delete(curve.label)) view.hidden.add(curve.label);
        legend();
        draw();
      });
      return button;
    });
    place.querySelector(".legend").replaceChildren(...buttons);
  }

  place.append(controls(), shape("svg", {}), element("output", {}, "point at the picture to read values, drag to enlarge, double-click to go back"),
    element("p", { className: "legend" }));
  legend();
  draw();
})();
