/* Two vectors of the plane that a reader drags, with the pull of three distances on one; book/kit writes this script
   behind their places. One unit is 100 pixels, and y points up. A pull is minus the gradient of a distance. */
(function () {
  "use strict";
  const here = document.currentScript.parentElement, svg = here.querySelector("svg");
  const at = JSON.parse(here.querySelector('script[type="application/json"]').textContent);
  const handles = svg.querySelectorAll("[role=slider]");

  const length = a => Math.hypot(...a);
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1];

  function put(line, from, to) {
    for (const [name, value] of [["x1", from[0]], ["y1", -from[1]], ["x2", to[0]], ["y2", -to[1]]])
      line.setAttribute(name, (100 * value).toFixed(1));
  }

  /* [value, minus its gradient at s] of the cosine, the squared L2 and the L1 distance, means over both numbers. */
  function distances(s, t) {
    const S = length(s), T = length(t), c = dot(s, t) / S / T, d = [s[0] - t[0], s[1] - t[1]];
    return [
      [1 - c, [0, 1].map(i => (t[i] / T - c * s[i] / S) / S)],
      [dot(d, d) / 2, [-d[0], -d[1]]],
      [(Math.abs(d[0]) + Math.abs(d[1])) / 2, [-Math.sign(d[0]) / 2, -Math.sign(d[1]) / 2]]
    ];
  }

  function draw() {
    const {s, t} = at, S = length(s);
    put(svg.querySelector(".gap"), s, t);
    handles.forEach(handle => {
      const v = at[handle.dataset.name], angle = Math.round(Math.atan2(v[1], v[0]) * 180 / Math.PI);
      handle.setAttribute("transform", `translate(${100 * v[0]},${-100 * v[1]})`);
      handle.setAttribute("aria-valuenow", angle);
      handle.setAttribute("aria-valuetext", `length ${length(v).toFixed(2)}, angle ${angle} degrees`);
      put(handle.previousElementSibling, [0, 0], v);
    });
    distances(s, t).forEach(([value, pull], row) => {
      const size = length(pull), still = size < 1e-6, {cells} = here.querySelectorAll("tbody tr")[row];
      const reach = still ? 0 : 0.8 / size;
      put(svg.querySelectorAll(".pull")[row], s, [s[0] + reach * pull[0], s[1] + reach * pull[1]]);
      cells[1].textContent = value.toFixed(3);
      cells[2].textContent = size.toFixed(2);
      cells[3].textContent = still ? "–" : Math.round(100 * (dot(pull, s) / size / S) ** 2) + " %";
    });
  }

  function move(name, x, y) {
    at[name] = [Math.min(3.5, Math.max(-2, x)), Math.min(3.6, Math.max(0.15, y))];
    draw();
  }

  handles.forEach(handle => {
    const {name} = handle.dataset;
    handle.addEventListener("pointerdown", event => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", event => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      move(name, point.x / 100, -point.y / 100);
    });
    handle.addEventListener("keydown", event => {
      const turn = {ArrowLeft: 1, ArrowRight: -1}[event.key] || 0, grow = {ArrowUp: 1, ArrowDown: -1}[event.key] || 0;
      if (!turn && !grow) return;
      event.preventDefault();
      const v = at[name], size = length(v) + grow / 20, angle = Math.atan2(v[1], v[0]) + turn * Math.PI / 60;
      move(name, size * Math.cos(angle), size * Math.sin(angle));
    });
  });
  here.querySelectorAll("[hidden]").forEach(one => { one.hidden = false; });
  draw();
})();
