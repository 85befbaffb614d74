/* The page "Try it": the student of the book in the reader's browser. book/kit/try_it.py has made its data, and says
   in Python what is computed here; book/runtime.py has brought the files that are loaded when the reader asks. */
(function () {
  "use strict";
  const BLUE = "#0072B2", ORANGE = "#E69F00", FALLS = [213, 94, 0], RISES = [0, 114, 178];
  const MOST = 1024; // pixels of a picture's longer side, as it is kept for cropping
  const LEAST = 24; // pixels of the square's side at least

  const SLOT = name => `<fieldset class="try-slot"><legend>${name} picture</legend><div class="try-faces"></div>
    <div class="try-own"><label class="try-file">A picture of your own: <input type="file" accept="image/*"></label>
      <button type="button" class="try-camera">Use the camera</button></div>
    <div class="try-live" hidden><video muted playsinline aria-label="The camera's picture"></video>
      <button type="button" class="try-take">Take the picture</button>
      <button type="button" class="try-close">Close the camera</button></div>
    <div class="try-crop" hidden><canvas tabindex="0" role="application"></canvas>
      <p>Put the square around the face: drag it, or its lower right corner; by keys, arrows move it, + and − resize it.</p>
    </div><p class="try-fault" role="alert"></p></fieldset>`;
  const TOOL = `<div class="try-load"><button type="button" class="try-start" hidden></button>
      <p class="try-state" role="status"></p></div>
    <div class="try-tool" hidden><div class="try-slots">${["First", "Second"].map(SLOT).join("")}</div>
      <label class="try-side">Resolution <input type="range" min="0" step="1"> <span></span></label>
      <div class="try-seen"></div><div class="try-result" role="status"></div><div class="try-scores" role="img"></div>
    </div>`;

  // ---------------------------------------------------------------- pictures: {side, data: planes of red, green, blue}

  /* lrkd.data.degradation.resampling_matrix, a list of [place, weight] a row: areas to shrink, bicubic (a = -.75) to enlarge. */
  function resampling(size, side) {
    return Array.from({length: side}, (_, row) => {
      if (size === side) return [[row, 1]];
      const taps = [];
      if (side < size) {
        const first = Math.floor(row * size / side), last = Math.ceil((row + 1) * size / side);
        for (let at = first; at < last; at++) taps.push([at, 1 / (last - first)]);
        return taps;
      }
      const centre = (row + 0.5) * size / side - 0.5, left = Math.floor(centre);
      for (let at = left - 1; at <= left + 2; at++)
        taps.push([Math.min(Math.max(at, 0), size - 1), cubic(Math.abs(centre - at))]);
      return taps;
    });
  }

  function cubic(t) {
    if (t <= 1) return 1.25 * t * t * t - 2.25 * t * t + 1;
    return t < 2 ? -0.75 * (t * t * t - 5 * t * t + 8 * t - 4) : 0;
  }

  function resized(picture, side) {
    const size = picture.side, rows = resampling(size, side), data = new Float64Array(3 * side * side);
    const across = new Float64Array(3 * size * side);
    for (let line = 0; line < 3 * size; line++)
      rows.forEach((taps, x) => {
        let sum = 0;
        for (const [at, weight] of taps) sum += weight * picture.data[line * size + at];
        across[line * side + x] = sum;
      });
    for (let plane = 0; plane < 3; plane++)
      rows.forEach((taps, y) => {
        for (let x = 0; x < side; x++) {
          let sum = 0;
          for (const [at, weight] of taps) sum += weight * across[(plane * size + at) * side + x];
          data[(plane * side + y) * side + x] = sum;
        }
      });
    return {side, data};
  }

  /* What the network is given, in [0,1]: the picture at `side`, brought to the network's own size. */
  function seen(picture, side, size) {
    return clamped(resized(resized(picture, side), size));
  }

  function clamped(picture) {
    return {side: picture.side, data: picture.data.map(value => Math.min(Math.max(value, 0), 1))};
  }

  function fromBytes(rgb, side, step) {
    const data = new Float64Array(3 * side * side);
    for (let i = 0; i < side * side; i++)
      for (let plane = 0; plane < 3; plane++) data[plane * side * side + i] = rgb[step * i + plane] / 255;
    return {side, data};
  }

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  /* Draws a picture pixel by pixel; colour(i, red, green, blue) may change it. The style sheet enlarges it. */
  function draw(canvas, picture, colour) {
    const {side, data} = picture, n = side * side, image = new ImageData(side, side);
    for (let i = 0; i < n; i++) {
      const rgb = [data[i], data[n + i], data[2 * n + i]].map(value => 255 * value);
      image.data.set([...(colour ? colour(i, ...rgb) : rgb).map(Math.round), 255], 4 * i);
    }
    canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // ---------------------------------------------------------------------------------------------------- the recogniser

  function script(src) {
    return new Promise((ready, failed) => {
      const one = document.createElement("script");
      one.src = src;
      one.onload = ready;
      one.onerror = () => failed(new Error(`${src} is not beside this page`));
      document.head.append(one);
    });
  }

  /* Scripts alone, which a page may also load from a file: the runtime's code in WebAssembly comes packed in one. */
  async function opened(runtime) {
    for (const file of runtime.files) await script("runtime/" + file);
    const packed = new Blob([bytes(runtime.wasm)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const code = new Blob([await new Response(packed).arrayBuffer()], {type: "application/wasm"});
    const address = URL.createObjectURL(code), ort = window.ort;
    Object.assign(ort.env.wasm, {numThreads: 1, proxy: false, wasmPaths: {"ort-wasm-simd.wasm": address}});
    const session = await ort.InferenceSession.create(bytes(runtime.student), {executionProviders: ["wasm"]});
    URL.revokeObjectURL(address);
    delete runtime.wasm;
    delete runtime.student;
    return session;
  }

  /* Pictures of [0,1] at the network's size -> embeddings of length one, in one batch. */
  async function embed(session, pictures) {
    const {side} = pictures[0], each = 3 * side * side, input = new Float32Array(pictures.length * each);
    pictures.forEach((one, k) => input.set(one.data.map(value => 2 * value - 1), k * each));
    const images = new window.ort.Tensor("float32", input, [pictures.length, 3, side, side]);
    const {embedding} = await session.run({images}), count = embedding.dims[1];
    return pictures.map((_, k) => {
      const own = Float64Array.from(embedding.data.subarray(k * count, (k + 1) * count));
      const length = Math.sqrt(dot(own, own)) || 1;
      return own.map(value => value / length);
    });
  }

  function dot(a, b) {
    return a.reduce((sum, value, i) => sum + value * b[i], 0);
  }

  /* kit.try_it.occlusion: how far the similarity falls where each of the two is covered, a map for each. */
  async function occlusion(session, pair, patch, stride) {
    const size = pair[0].side, n = size * size, places = [], inputs = [...pair];
    for (let top = 0; top + patch <= size; top += stride)
      for (let left = 0; left + patch <= size; left += stride) {
        const inside = [];
        for (let y = 0; y < patch; y++) for (let x = 0; x < patch; x++) inside.push((top + y) * size + left + x);
        places.push(inside);
      }
    for (const picture of pair) {
      const mean = [0, 1, 2].map(plane => picture.data.subarray(plane * n, (plane + 1) * n).reduce((a, b) => a + b) / n);
      for (const inside of places) {
        const data = picture.data.slice();
        mean.forEach((value, plane) => inside.forEach(i => { data[plane * n + i] = value; }));
        inputs.push({side: size, data});
      }
    }
    const found = await embed(session, inputs), similarity = dot(found[0], found[1]);
    const maps = [0, 1].map(k => {
      const total = new Float64Array(n), count = new Float64Array(n);
      places.forEach((inside, p) => {
        const fall = similarity - dot(found[2 + k * places.length + p], found[1 - k]);
        for (const i of inside) { total[i] += fall; count[i]++; }
      });
      return total.map((sum, i) => sum / Math.max(count[i], 1));
    });
    return {similarity, maps};
  }

  // ---------------------------------------------------------------------------------------------------------- the page

  const make = (kind, more, ...inside) => {
    const one = Object.assign(document.createElement(kind), more);
    one.append(...inside);
    return one;
  };
  const signed = value => (value < 0 ? "−" : "") + Math.abs(value).toFixed(2);
  const percent = share => share > 0 && share < 0.01 ? "under 1 %" : `${Math.round(100 * share)} %`;

  /* A square over a picture that the reader moves; changed(picture of `side` pixels) hears of it. */
  function cropper(box, side, changed) {
    const canvas = box.querySelector("canvas"), pen = canvas.getContext("2d");
    let image = null, square = null, held = null, waiting = 0;

    function put(x, y, length) {
      const {width, height} = image;
      length = Math.round(Math.min(Math.max(length, Math.min(LEAST, width, height)), width, height));
      x = Math.round(Math.min(Math.max(x, 0), width - length));
      y = Math.round(Math.min(Math.max(y, 0), height - length));
      square = {x, y, length};
      pen.drawImage(image, 0, 0);
      pen.fillStyle = "#000a";
      pen.fillRect(0, 0, width, y);
      pen.fillRect(0, y + length, width, height);
      pen.fillRect(0, y, x, length);
      pen.fillRect(x + length, y, width, length);
      const thick = Math.max(width, height) / 160, corner = 6 * thick;
      pen.lineWidth = thick;
      pen.strokeStyle = pen.fillStyle = "#fff";
      pen.strokeRect(x, y, length, length);
      pen.fillRect(x + length - corner, y + length - corner, corner, corner);
      canvas.setAttribute("aria-label", `Square of ${length} pixels, ${x} from the left and ${y} from the top of a picture`
        + ` of ${width} × ${height}. Arrows move it, plus and minus resize it.`);
      clearTimeout(waiting);
      waiting = setTimeout(() => changed(cut()), 60);
    }

    function cut() {
      const {x, y, length} = square, read = image.getContext("2d").getImageData(x, y, length, length);
      return clamped(resized(fromBytes(read.data, length, 4), side));
    }

    function place(event) {
      const shown = canvas.getBoundingClientRect(), scale = image.width / shown.width;
      return {x: (event.clientX - shown.left) * scale, y: (event.clientY - shown.top) * scale, scale};
    }

    canvas.addEventListener("pointerdown", event => {
      const at = place(event), {x, y, length} = square, reach = Math.max(24 * at.scale, length / 6);
      const corner = Math.abs(at.x - x - length) < reach && Math.abs(at.y - y - length) < reach;
      held = corner ? {corner} : {dx: at.x - x, dy: at.y - y};
      if (!corner && (at.x < x || at.y < y || at.x > x + length || at.y > y + length)) held = {dx: length / 2, dy: length / 2};
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", event => {
      if (!held) return;
      const at = place(event);
      if (held.corner) put(square.x, square.y, Math.max(at.x - square.x, at.y - square.y));
      else put(at.x - held.dx, at.y - held.dy, square.length);
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { held = null; });
    canvas.addEventListener("keydown", event => {
      const {x, y, length} = square, step = Math.max(1, Math.round(length / (event.shiftKey ? 5 : 25)));
      const moves = {
        ArrowLeft: [x - step, y, length], ArrowRight: [x + step, y, length],
        ArrowUp: [x, y - step, length], ArrowDown: [x, y + step, length],
      };
      moves["+"] = moves["="] = [x - step / 2, y - step / 2, length + step];
      moves["-"] = moves["_"] = [x + step / 2, y + step / 2, length - step];
      const move = event.ctrlKey || event.altKey || event.metaKey ? null : moves[event.key];
      if (!move) return;
      event.preventDefault();
      put(...move);
    });

    return (source, width, height) => {
      const scale = Math.min(1, MOST / Math.max(width, height));
      image = make("canvas", {width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale))});
      const ink = image.getContext("2d", {willReadFrequently: true});
      ink.fillStyle = "#fff"; // behind what is transparent
      ink.fillRect(0, 0, image.width, image.height);
      ink.drawImage(source, 0, 0, image.width, image.height);
      Object.assign(canvas, {width: image.width, height: image.height});
      canvas.style.width = `min(100%, ${Math.round(320 * Math.min(1, image.width / image.height))}px)`;
      box.hidden = false;
      const length = Math.min(image.width, image.height);
      put((image.width - length) / 2, (image.height - length) / 2, length);
    };
  }

  /* One of the two pictures: faces of the page, a file, or the camera. */
  function slot(box, number, people, side, start, changed) {
    const find = name => box.querySelector(".try-" + name), fault = find("fault"), faces = find("faces");
    const crop = cropper(find("crop"), side, picture => { choose(null); changed(picture); });
    const live = find("live"), video = live.querySelector("video");

    function choose(radio) {
      fault.textContent = "";
      faces.querySelectorAll("input").forEach(one => { one.checked = one === radio; });
      if (radio) find("crop").hidden = true;
    }

    people.forEach((person, p) => {
      const row = make("div", {className: "try-person"}, make("span", {}, person.name));
      person.pictures.forEach((one, k) => {
        const radio = make("input", {type: "radio", name: `try-${number}`}), canvas = make("canvas");
        radio.setAttribute("aria-label", `Person ${person.name}, aged ${one.age}`);
        draw(canvas, one.picture);
        row.append(make("label", {title: `Person ${person.name}, aged ${one.age}`}, radio, canvas));
        radio.addEventListener("change", () => { choose(radio); changed(one.picture); });
        if (p === start[0] && k === start[1]) { radio.checked = true; changed(one.picture); }
      });
      faces.append(row);
    });

    box.querySelector("input[type=file]").addEventListener("change", async event => {
      const file = event.target.files[0];
      if (!file) return;
      fault.textContent = "";
      try {
        const image = await createImageBitmap(file, {imageOrientation: "from-image"});
        crop(image, image.width, image.height);
      } catch (error) {
        fault.textContent = "This file is no picture that your browser can read: a PNG, JPEG or WebP is right.";
      }
      event.target.value = ""; // the same file may be chosen again
    });

    function close() {
      if (video.srcObject) video.srcObject.getTracks().forEach(track => track.stop());
      video.srcObject = null;
      live.hidden = true;
    }
    find("camera").addEventListener("click", async () => {
      fault.textContent = "";
      close();
      try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: "user"}});
        live.hidden = false;
        await video.play();
        find("take").focus();
      } catch (error) {
        close();
        fault.textContent = "There is no camera that this page may use: allow it in your browser, or take a file.";
      }
    });
    find("take").addEventListener("click", () => {
      if (!video.videoWidth) return; // no picture yet
      crop(video, video.videoWidth, video.videoHeight);
      close();
      box.querySelector(".try-crop canvas").focus();
    });
    find("close").addEventListener("click", close);
  }

  /* Two histograms, the thresholds, and where this pair lies: 40 bars from -1 to 1. */
  function histogram(box, found, similarity) {
    const [width, height, left, right, top, bottom] = [360, 190, 8, 352, 46, 158];
    const x = value => left + (right - left) * (value + 1) / 2, per = found.genuine.length / 40;
    const shares = kind => {
      const bars = new Float64Array(40), all = found[kind].reduce((a, b) => a + b) || 1;
      found[kind].forEach((count, i) => { bars[Math.floor(i / per)] += count / all; });
      return bars;
    };
    const kinds = [["genuine", BLUE, ""], ["impostor", ORANGE, "5 3"]].map(([kind, ...look]) => [shares(kind), ...look]);
    const most = Math.max(...kinds.flatMap(([bars]) => [...bars]));
    const steps = bars => [...bars].map((share, i) =>
      `V${(bottom - (bottom - top) * share / most).toFixed(1)}H${x(-1 + (i + 1) / 20).toFixed(1)}`).join("");
    const line = (value, low, look) => `<line x1="${x(value)}" x2="${x(value)}" y1="${low}" y2="${bottom}" ${look}/>`;
    const text = (at, y, said, anchor) => `<text x="${at}" y="${y}" text-anchor="${anchor}">${said}</text>`;
    const near = value => value > 0.55 ? "end" : value < -0.55 ? "start" : "middle";
    const key = (at, colour, dash, said) => `<rect x="${at}" y="4" width="18" height="10" fill="${colour}" fill-opacity=".35"
      stroke="${colour}" stroke-width="1.6" stroke-dasharray="${dash}"/>` + text(at + 23, 13, said, "start");
    const [strict, loose] = found.cuts; // FAR 1 % and 10 %
    box.innerHTML = `<svg viewBox="0 0 ${width} ${height}">`
      + kinds.map(([bars, colour, dash]) => `<path d="M${left} ${bottom}${steps(bars)}V${bottom}Z" fill="${colour}"
        fill-opacity=".35" stroke="${colour}" stroke-width="1.6" stroke-dasharray="${dash}"/>`).join("")
      + `<path d="M${left} ${bottom}H${right}" stroke="#000"/>`
      + [-1, -0.5, 0, 0.5, 1].map(v => text(x(v), bottom + 14, signed(v).replace(/\.?0+$/, "") || "0",
        v === -1 ? "start" : v === 1 ? "end" : "middle")).join("")
      + text(width / 2, bottom + 28, "similarity (cosine of the two embeddings)", "middle")
      + [strict, loose].map(cut => line(cut.at, top - 4, 'stroke="#000" stroke-dasharray="2 3"')).join("")
      + line(similarity, top - 12, 'class="try-pair" stroke="#000" stroke-width="3"')
      + text(x(loose.at) - 3, top + 6, "FAR 10 %", "end") + text(x(strict.at) + 3, top + 6, "1 %", "start")
      + text(x(similarity), top - 16, `this pair ${signed(similarity)}`, near(similarity))
      + key(left, BLUE, "", "same person") + key(left + 120, ORANGE, "5 3", "different people") + "</svg>";
  }

  function start(box) {
    const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    box.querySelector(".try-still").insertAdjacentHTML("beforebegin", TOOL);
    const find = name => box.querySelector(".try-" + name), button = find("start"), state = find("state");
    for (const person of data.people)
      for (const one of person.pictures) one.picture = fromBytes(bytes(one.rgb), data.side, 3);

    script("runtime/about.js").catch(() => {}).then(() => {
      const runtime = window.lrkdRuntime;
      if (!runtime || runtime.missing) {
        state.replaceChildren("The recogniser is not in this copy of the book, and the picture below does not move",
          runtime ? ` (${runtime.missing}). ` : ". ", make("code", {}, "make runtime"), " brings it; it needs npm and a connection.");
        return;
      }
      button.textContent = `Load the recogniser (${(runtime.bytes / 1e6).toFixed(1)} MB)`;
      button.hidden = false;
      button.addEventListener("click", async () => {
        button.disabled = true;
        state.textContent = "Loading …";
        try {
          const session = await opened(runtime);
          window.lrkdTryIt = {session, data, seen, embed, occlusion, fromBytes}; // for the tests, and for curious readers
          play(box, data, session);
          state.textContent = "The recogniser is loaded. It runs in this page, and no picture leaves it.";
          button.hidden = find("still").hidden = true;
        } catch (error) {
          state.textContent = `The recogniser could not be loaded: ${error.message || error}. A browser of 2023 or later is `
            + "needed.";
          button.disabled = false;
        }
      });
    });
  }

  function play(box, data, session) {
    const find = name => box.querySelector(".try-" + name), slider = find("side").querySelector("input");
    const chosen = [null, null], views = [];
    let busy = false, again = false;

    for (const name of ["First", "Second"]) {
      const view = {};
      const row = make("div", {className: "try-views"});
      for (const part of ["low", "own", "map"]) {
        view[part] = make("canvas");
        view[part].setAttribute("role", "img");
        view[part + "Said"] = make("span");
        row.append(make("div", {}, view[part], view[part + "Said"]));
      }
      find("seen").append(make("div", {className: "try-view"}, make("strong", {}, `${name} picture`), row));
      views.push(view);
    }

    async function update() {
      again = true;
      if (busy || !chosen[0] || !chosen[1]) return;
      for (busy = true; again;) {
        again = false;
        await show(data.scores[slider.value]);
      }
      busy = false;
    }

    async function show(found) {
      const pair = chosen.map(picture => seen(picture, found.side, data.size));
      const lows = chosen.map(picture => resized(picture, found.side));
      const {similarity, maps} = await occlusion(session, pair, data.patch, data.stride);
      const falls = Math.max(0, ...maps.flatMap(map => [...map])), rises = Math.max(0, ...maps.flatMap(map => [...map].map(v => -v)));
      const most = Math.max(falls, rises, 1e-9);
      views.forEach((view, k) => {
        const name = k ? "second" : "first";
        draw(view.low, lows[k]);
        draw(view.own, pair[k]);
        draw(view.map, pair[k], (i, red, green, blue) => {
          const grey = 0.6 * (0.299 * red + 0.587 * green + 0.114 * blue) + 90, share = Math.abs(maps[k][i]) / most;
          return (maps[k][i] > 0 ? FALLS : RISES).map(part => grey + share * (part - grey));
        });
        view.lowSaid.textContent = `${found.side} px`;
        view.ownSaid.textContent = `the network's ${data.size} px`;
        view.mapSaid.textContent = "occlusion map";
        view.low.setAttribute("aria-label", `The ${name} picture with ${found.side} pixels a side`);
        view.own.setAttribute("aria-label", `The ${name} picture as the network is given it, ${data.size} pixels a side`);
        view.map.setAttribute("aria-label", `Occlusion map of the ${name} picture: ${where(maps[k], data.size)}`);
      });
      const share = (kind, least) => {
        const counts = found[kind], from = Math.round((similarity + 1) / 2 * counts.length);
        const part = least ? counts.slice(from) : counts.slice(0, from);
        return part.reduce((a, b) => a + b, 0) / (counts.reduce((a, b) => a + b, 0) || 1);
      };
      const said = cut => `${similarity >= cut.at ? "the same person" : "different people"} at a FAR of ${100 * cut.far} %`
        + ` (threshold ${signed(cut.at)})`;
      find("result").replaceChildren(
        make("p", {}, "Similarity ", make("strong", {className: "try-similarity"}, signed(similarity)),
          ` at ${found.side} pixels. Taken for ${found.cuts.map(said).join(", and for ")}.`),
        make("p", {}, `Of the test pairs of different people ${percent(share("impostor", true))} are as similar or more, of those`
          + ` of one person ${percent(share("genuine", false))} are less similar.`),
        make("p", {}, "Occlusion maps: ", make("span", {className: "try-falls"}, "vermilion"), " where covering the place lowers the "
          + `similarity, by up to ${signed(falls)}; `, make("span", {className: "try-rises"}, "blue"),
          ` where it raises it, by up to ${signed(rises)}.`));
      histogram(find("scores"), found, similarity);
      find("scores").setAttribute("aria-label", `Similarities of test pairs at ${found.side} pixels, of one person and of`
        + ` different people; this pair has ${signed(similarity)}, the thresholds are at`
        + ` ${found.cuts.map(cut => signed(cut.at)).join(" and ")}.`);
      box.dataset.similarity = similarity;
    }

    function where(map, size) {
      const at = map.indexOf(Math.max(...map)), names = [["upper", "middle", "lower"], ["left", "centre", "right"]];
      const third = value => Math.floor(3 * value / size);
      return `covering it matters most in the ${names[0][third(at / size)]} ${names[1][third(at % size)]}`;
    }

    slider.max = data.scores.length - 1;
    slider.value = data.scores.findIndex(one => one.side === data.size);
    const tell = () => {
      const said = `${data.scores[slider.value].side} pixels a side`;
      slider.nextElementSibling.textContent = said;
      slider.setAttribute("aria-valuetext", said);
    };
    slider.addEventListener("input", () => { tell(); update(); });
    tell();
    find("tool").hidden = false;
    const starts = [[0, 0], [0, data.people[0].pictures.length - 1]];
    box.querySelectorAll(".try-slot").forEach((one, k) =>
      slot(one, k, data.people, data.side, starts[k], picture => { chosen[k] = picture; update(); }));
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".try-it").forEach(start));
})();
