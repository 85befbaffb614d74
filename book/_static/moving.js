/* A figure that a reader moves: pictures to choose among, or a drawing by plotly. book/kit writes this script behind the
   figure's data, so that it also runs in JupyterLab. The browser's own lists and sliders move it, which keys reach. */
(function () {
  "use strict";
  const here = document.currentScript.parentElement;
  const data = JSON.parse(here.querySelector('script[type="application/json"]').textContent);
  const panel = here.querySelector(".controls");

  /* A labelled list or, where `range`, a slider of `options` in the panel; moved() after each change. */
  function control({name, options, range, start = 0}, moved) {
    const label = document.createElement("label"), said = document.createElement("output");
    const input = document.createElement(range ? "input" : "select");
    label.append(name || "", input);
    if (range) {
      Object.assign(input, {type: "range", min: 0, max: options.length - 1, step: 1});
      label.append(said);
    } else options.forEach((option, place) => input.append(new Option(option, place)));
    input.value = start;
    function tell() {
      said.textContent = options[input.value];
      if (range) input.setAttribute("aria-valuetext", said.textContent); // a list says its option itself
    }
    input.addEventListener("input", () => { tell(); moved(+input.value); });
    tell();
    panel.append(label);
    return input;
  }

  function pictures({controls, uris, alts, which}) {
    const img = here.querySelector("img");
    function show() {
      const [uri, alt] = which[inputs.map((input, place) => controls[place].options[input.value]).join("|")];
      img.src = uris[uri];
      img.alt = alts[alt];
    }
    const inputs = controls.map(one => control(one, show));
    panel.hidden = false;
    show();
  }

  function library() {
    return window.lrkdPlotly = window.lrkdPlotly || new Promise(ready => {
      const script = document.createElement("script");
      script.src = "vendor/plotly.min.js";
      script.onload = ready;
      document.head.append(script);
    });
  }

  /* plotly's own sliders and menus are drawings that no key reaches: each becomes an element of the browser. The library
     is asked for when a reader comes near. The picture is shown until the script has drawn, on paper, and for good where
     scripts are off or vendor/plotly.min.js is not beside the page. */
  function plotly({figure}) {
    const {sliders = [], updatemenus = [], ...layout} = figure.layout;
    const drawing = here.querySelector(".drawing");
    function add(one, steps, range) {
      const name = (one.currentvalue && one.currentvalue.prefix) || one.name;
      control({name, options: steps.map(step => step.label), range, start: one.active}, place =>
        window.Plotly[steps[place].method](drawing, ...steps[place].args));
    }
    async function draw() {
      await library();
      drawing.hidden = false;
      await window.Plotly.newPlot(drawing, figure.data, layout, {responsive: true, displayModeBar: false});
      sliders.forEach(one => add(one, one.steps, true));
      updatemenus.forEach(one => add(one, one.buttons, false));
      panel.hidden = false;
      here.querySelectorAll(".static").forEach(one => { one.hidden = true; });
    }
    let drawn;
    const near = new IntersectionObserver(seen => {
      if (seen.some(one => one.isIntersecting)) here.lrkdDraw();
    }, {rootMargin: "600px"});
    here.lrkdDraw = () => {
      near.disconnect();
      return drawn = drawn || draw();
    };
    near.observe(here);
  }

  (data.figure ? plotly : pictures)(data);
})();
