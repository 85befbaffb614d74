/* The page "Try it": the student for photographs in the reader's browser. book/kit/try_it.py has made its data, and says
   in Python what is computed here; book/runtime.py has brought the files that are loaded when the reader asks. */
(function () {
  "use strict";
  const FALLS = [213, 94, 0], RISES = [0, 114, 178];
  const MOST = 1024; // pixels of a picture's longer side, as it is kept
  const LEAST = 24; // pixels of the framed square's side at least
  const AROUND = 1.4, SHARP = 320; // what is shown of a picture, in framed squares, and on how many pixels a side
  const LOW = -0.5; // the least similarity that is drawn
  const CUT = 0.1; // of a face may lie outside its picture, as lrkd.cli.photographs has it

  const TURNS = [["↺", "Turn left"], ["↻", "Turn right"], ["−", "Make smaller"], ["+", "Make larger"]];
  const SLOT = name => `<fieldset class="try-slot"><legend>${name} face</legend>
    <div class="try-frame"><canvas class="try-crop" width="${SHARP}" height="${SHARP}" tabindex="0" role="application"></canvas>
      ${TURNS.map(([sign, said]) => `<button type="button" class="try-turn" aria-label="${said}">${sign}</button>`).join("")}
      <div class="try-live" hidden><video muted playsinline aria-label="The camera's picture"></video>
        <button type="button" class="try-take">Take</button><button type="button" class="try-close">Close</button></div></div>
    <div class="try-own"><label class="try-file"><input type="file" accept="image/*" aria-label="Picture of your own">Picture</label>
      <button type="button" class="try-camera">Camera</button><button type="button" class="try-drawn">Drawn</button></div>
    <p class="try-fault" role="alert"></p></fieldset>`;
  const SEEN = name => `<div class="try-view"><canvas class="try-pixels" role="img" aria-label="${name}"></canvas></div>`;
  const TOOL = `<div class="try-load"><button type="button" class="try-start" hidden></button>
      <p class="try-state" role="status"></p></div>
    <div class="try-tool" hidden><div class="try-slots">${["First", "Second"].map(SLOT).join("")}</div>
      <label class="try-side">Resolution <input type="range" min="0" step="1"> <span></span></label>
      <div class="try-answer">${SEEN("First")}<div class="try-verdict" role="status" aria-live="polite" aria-atomic="true"></div>
        ${SEEN("Second")}</div>
      <div class="try-scores" role="img"></div><p class="try-card"></p>
      <details class="try-where"><summary>Where it looks</summary><div class="try-maps"><canvas role="img" aria-label="First map"></canvas>
        <canvas role="img" aria-label="Second map"></canvas></div><p></p></details>
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

  // ------------------------------------------------------- a face in a picture: complex numbers, since a frame has a turn

  const add = (a, b) => [a[0] + b[0], a[1] + b[1]], sub = (a, b) => [a[0] - b[0], a[1] - b[1]];
  const mul = (a, b) => [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]];
  const div = (a, b) => mul(a, [b[0] / (b[0] ** 2 + b[1] ** 2), -b[1] / (b[0] ** 2 + b[1] ** 2)]);
  const mean = all => all.reduce(add).map(value => value / all.length);

  /* lrkd.data.alignment.similarity: the frame {at, size} in which five landmarks come closest to those of the template.
     A place z of the framed square, from -.5 to .5 from its middle, is at + size z in the picture. */
  function framed(points, data) {
    const wanted = places(data), seen = points.map(point => add(point, [0.5, 0.5])), middle = mean(seen);
    const from = seen.map(point => sub(point, middle));
    const turn = from.map((point, k) => mul([point[0], -point[1]], wanted[k])).reduce(add);
    const size = div([from.reduce((sum, [x, y]) => sum + x * x + y * y, 0), 0], turn);
    return {at: sub(middle, mul(size, mean(wanted))), size};
  }

  function places(data) {
    return data.template.map(([x, y]) => [(x + 0.5) / data.aligned - 0.5, (y + 0.5) / data.aligned - 0.5]);
  }

  /* lrkd.data.alignment.warp: bilinear, out of means of whole blocks where the face is large; beyond the picture its
     edge goes on. `beyond` is the share of such pixels. */
  function warp({width, height, data}, {at, size}, side) {
    const block = Math.max(1, Math.min(Math.floor(Math.hypot(...size) / side), width, height)), n = side * side;
    const wide = Math.ceil(width / block), high = Math.ceil(height / block), out = new Float64Array(3 * n);
    const blocks = new Map();
    let beyond = 0;
    function colour(x, y) {
      x = Math.min(Math.max(x, 0), wide - 1);
      y = Math.min(Math.max(y, 0), high - 1);
      const key = y * wide + x;
      if (!blocks.has(key)) {
        const sum = [0, 0, 0], right = Math.min((x + 1) * block, width), low = Math.min((y + 1) * block, height);
        for (let j = y * block; j < low; j++)
          for (let i = x * block; i < right; i++)
            for (let plane = 0; plane < 3; plane++) sum[plane] += data[4 * (j * width + i) + plane];
        blocks.set(key, sum.map(value => value / (255 * (right - x * block) * (low - y * block))));
      }
      return blocks.get(key);
    }
    for (let i = 0; i < n; i++) {
      const z = [(i % side + 0.5) / side - 0.5, (Math.floor(i / side) + 0.5) / side - 0.5];
      const [x, y] = add(at, mul(size, z)).map(value => value / block - 0.5), left = Math.floor(x), top = Math.floor(y);
      if (x < -0.5 || y < -0.5 || x >= wide - 0.5 || y >= high - 0.5) beyond += 1 / n;
      for (const [dx, dy, weight] of [[0, 0, (left + 1 - x) * (top + 1 - y)], [1, 0, (x - left) * (top + 1 - y)],
        [0, 1, (left + 1 - x) * (y - top)], [1, 1, (x - left) * (y - top)]])
        colour(left + dx, top + dy).forEach((value, plane) => { out[plane * n + i] += weight * value; });
    }
    return {side, data: out, beyond};
  }

  /* face-api's landmarks of each face in a picture -> five each: the eyes, the nose, the corners of the mouth. */
  async function faces(canvas) {
    const api = window.faceapi;
    for (const inputSize of [224, 416]) { // the larger finds smaller faces, and takes longer
      const options = new api.TinyFaceDetectorOptions({inputSize, scoreThreshold: 0.4});
      const found = await api.detectAllFaces(canvas, options).withFaceLandmarks();
      const five = found.map(one => {
        const all = one.landmarks.positions.map(({x, y}) => [x - 0.5, y - 0.5]);
        return [mean(all.slice(36, 42)), mean(all.slice(42, 48)), all[30], all[48], all[54]];
      });
      if (five.length) return five;
    }
    return [];
  }

  /* lrkd.data.alignment.central: the largest face, the nearer to the middle the better. */
  function central(found, {width, height}) {
    const worth = ({at, size}) => size[0] ** 2 + size[1] ** 2 - 2 * ((at[0] - width / 2) ** 2 + (at[1] - height / 2) ** 2);
    return found.reduce((best, one) => worth(one) > worth(best) ? one : best);
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
    const {tf, nets} = window.faceapi;
    await tf.setBackend("webgl").catch(() => false) || await tf.setBackend("cpu");
    await tf.ready();
    for (const [net, name] of [[nets.tinyFaceDetector, "detector"], [nets.faceLandmark68Net, "landmarks"]]) {
      const about = JSON.parse(atob(runtime[name + "About"])).flatMap(group => group.weights);
      net.loadFromWeightMap(tf.io.decodeWeights(bytes(runtime[name]).buffer, about));
    }
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

  /* A picture under the frame, which the reader moves, turns and resizes; changed() hears of it. */
  function cropper(canvas, data, changed) {
    const pen = canvas.getContext("2d"), held = new Map(), wanted = places(data);
    let picture = null, name = "", frame = null, guess = null, waiting = 0;

    function put(next, soon, guessed) {
      const {width, height} = picture, length = Math.hypot(...next.size);
      const bounded = Math.min(Math.max(length, LEAST), 3 * Math.max(width, height)) / length;
      frame = {at: [Math.min(Math.max(next.at[0], 0), width), Math.min(Math.max(next.at[1], 0), height)],
        size: next.size.map(value => value * bounded)};
      if (guessed) guess = frame;
      show();
      clearTimeout(waiting);
      if (soon) changed(); else waiting = setTimeout(changed, 60);
    }

    function show() {
      const scale = SHARP / AROUND, map = div([scale, 0], frame.size), middle = [SHARP / 2, SHARP / 2];
      const [right, down] = sub(middle, mul(map, frame.at)), spot = z => add(middle, [scale * z[0], scale * z[1]]);
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.fillStyle = "#000";
      pen.fillRect(0, 0, SHARP, SHARP);
      pen.setTransform(map[0], map[1], -map[1], map[0], right, down);
      pen.drawImage(picture.canvas, 0, 0);
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.fillStyle = "#0009"; // what the network does not see
      pen.beginPath();
      pen.rect(0, 0, SHARP, SHARP);
      pen.rect((SHARP - scale) / 2, (SHARP - scale) / 2, scale, scale);
      pen.fill("evenodd");
      pen.beginPath();
      pen.ellipse(...spot([0, 0.03]), 0.4 * scale, 0.53 * scale, 0, 0, 2 * Math.PI);
      for (const eye of wanted.slice(0, 2)) {
        const [x, y] = spot(eye);
        pen.moveTo(x + 0.06 * scale, y);
        pen.arc(x, y, 0.06 * scale, 0, 2 * Math.PI);
      }
      pen.moveTo(...spot(wanted[3]));
      pen.lineTo(...spot(wanted[4]));
      for (const [colour, wide] of [["#000a", 5], ["#fff", 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = wide;
        pen.stroke();
      }
      const turn = Math.round(Math.atan2(frame.size[1], frame.size[0]) * 180 / Math.PI) || 0;
      canvas.setAttribute("aria-label", `${name}. The frame is ${Math.round(Math.hypot(...frame.size))} pixels wide, its middle`
        + ` ${Math.round(frame.at[0])} from the left and ${Math.round(frame.at[1])} from the top of ${picture.width} ×`
        + ` ${picture.height}, turned by ${turn}°. Arrows move the picture, plus and minus resize it, brackets turn it.`);
    }

    /* Two places of the frame now lie where two others lay; with one of them the size stays. */
    function drag(before, after) {
      const size = before[1] ? mul(frame.size, div(sub(before[1], before[0]), sub(after[1], after[0]))) : frame.size;
      put({at: sub(add(frame.at, mul(frame.size, before[0])), mul(size, after[0])), size});
    }
    function turned(by, middle = [0, 0]) { // the picture grows and turns by a complex number
      drag([middle, add(middle, [0.1, 0])], [middle, add(middle, mul([0.1, 0], by))]);
    }
    function place(event) {
      const shown = canvas.getBoundingClientRect();
      return [AROUND * ((event.clientX - shown.left) / shown.width - 0.5), AROUND * ((event.clientY - shown.top) / shown.height - 0.5)];
    }

    canvas.addEventListener("pointerdown", event => {
      if (held.size < 2) held.set(event.pointerId, place(event));
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", event => {
      if (!held.has(event.pointerId)) return;
      const before = [...held.values()];
      held.set(event.pointerId, place(event));
      drag(before, [...held.values()]);
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, event => held.delete(event.pointerId));
    canvas.addEventListener("wheel", event => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      turned([Math.exp(-event.deltaY / 500), 0], place(event));
    }, {passive: false});

    const [steps, left, right] = [1.05, [Math.cos(0.05), -Math.sin(0.05)], [Math.cos(0.05), Math.sin(0.05)]];
    canvas.addEventListener("keydown", event => {
      const step = event.shiftKey ? 0.1 : 0.02;
      const moves = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
      const turns = {"+": [steps, 0], "=": [steps, 0], "-": [1 / steps, 0], "_": [1 / steps, 0], "[": left, "]": right};
      if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in moves || event.key in turns)) return;
      event.preventDefault();
      if (event.key in moves) drag([[0, 0]], [moves[event.key]]);
      else turned(turns[event.key]);
    });
    canvas.parentElement.querySelectorAll(".try-turn").forEach((button, k) =>
      button.addEventListener("click", () => turned([left, right, [1 / steps, 0], [steps, 0]][k])));

    return {
      /* A picture, its name, and where the face is; in the middle, if nobody knows. */
      open(source, said, points) {
        const scale = Math.min(1, MOST / Math.max(source.width, source.height));
        const [width, height] = [source.width, source.height].map(value => Math.max(1, Math.round(value * scale)));
        const copy = make("canvas", {width, height}), ink = copy.getContext("2d", {willReadFrequently: true});
        ink.fillStyle = "#fff"; // behind what is transparent
        ink.fillRect(0, 0, width, height);
        ink.drawImage(source, 0, 0, width, height);
        picture = {canvas: copy, width, height, data: ink.getImageData(0, 0, width, height).data};
        name = said;
        const length = 0.7 * Math.min(width, height);
        put(points ? framed(points, data) : {at: [width / 2, height / 2], size: [length, 0]}, true, !points);
      },
      put: next => put(next, true),
      picture: () => picture,
      frame: () => frame,
      guessed: () => frame === guess, // nobody has chosen this frame
      face: () => warp(picture, frame, data.aligned),
    };
  }

  /* One of the two pictures: a drawn face, a file, or the camera. look(crop, fault) finds the face in the reader's own. */
  function slot(box, data, start, changed, look) {
    const find = name => box.querySelector(".try-" + name), fault = find("fault"), live = find("live");
    const video = live.querySelector("video"), crop = cropper(find("crop"), data, changed);
    const one = {crop, fault, drawn: true, looking: false};
    let next = start;

    function draw() {
      const {image, points, name} = data.drawn[next % data.drawn.length];
      next++;
      fault.textContent = "";
      one.drawn = true;
      crop.open(image, name, points);
    }
    function own(source, width, height) {
      const canvas = make("canvas", {width, height});
      canvas.getContext("2d").drawImage(source, 0, 0, width, height);
      fault.textContent = "";
      one.drawn = false;
      crop.open(canvas, "Your picture");
      look(one);
    }
    find("drawn").addEventListener("click", draw);
    draw();

    box.querySelector("input[type=file]").addEventListener("change", async event => {
      const file = event.target.files[0];
      if (!file) return;
      try {
        const image = await createImageBitmap(file, {imageOrientation: "from-image"});
        own(image, image.width, image.height);
      } catch (error) {
        fault.textContent = "Your browser cannot read this file as a picture: a PNG, JPEG or WebP is right.";
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
      own(video, video.videoWidth, video.videoHeight);
      close();
      find("crop").focus();
    });
    find("close").addEventListener("click", close);
    return one;
  }

  /* Two histograms, the threshold, and where this pair lies: 50 bars from -1 to 1, of which those above LOW are drawn. */
  function histogram(box, found, similarity) {
    const [width, height, left, right, top, bottom] = [360, 142, 8, 352, 34, 112];
    const x = value => left + (right - left) * (Math.max(value, LOW) - LOW) / (1 - LOW);
    const shares = kind => {
      const bars = new Float64Array(50), all = found[kind].reduce((a, b) => a + b) || 1, per = found[kind].length / 50;
      found[kind].forEach((count, i) => { bars[Math.floor(i / per)] += count / all; });
      return bars;
    };
    const kinds = [["genuine", "same"], ["impostor", "other"]].map(([kind, look]) => [shares(kind), look]);
    const most = Math.max(...kinds.flatMap(([bars]) => [...bars]));
    const steps = bars => [...bars].map((share, i) =>
      `V${(bottom - (bottom - top) * share / most).toFixed(1)}H${x(-1 + (i + 1) / 25).toFixed(1)}`).join("");
    const text = (at, y, said, anchor) => `<text x="${at}" y="${y}" text-anchor="${anchor}">${said}</text>`;
    const near = value => value > 0.7 ? "end" : value < -0.2 ? "start" : "middle";
    const key = (at, look, said) => `<rect x="${at}" y="2" width="16" height="9" class="try-${look}"/>` + text(at + 21, 11, said, "start");
    const line = (value, low, look) => `<line x1="${x(value)}" x2="${x(value)}" y1="${low}" y2="${bottom}" class="try-${look}"/>`;
    box.innerHTML = `<svg viewBox="0 0 ${width} ${height}">`
      + kinds.map(([bars, look]) => `<path d="M${left} ${bottom}${steps(bars)}V${bottom}Z" class="try-${look}"/>`).join("")
      + `<path d="M${left} ${bottom}H${right}" class="try-axis"/>` + line(found.threshold, top, "cut")
      + [LOW, 0, 0.5, 1].map(v => text(x(v), bottom + 13, signed(v).replace(/\.?0+$/, "") || "0",
        v === LOW ? "start" : v === 1 ? "end" : "middle")).join("")
      + text(width / 2, bottom + 27, "similarity: the cosine of the two embeddings", "middle")
      + key(left, "same", "same person") + key(left + 105, "other", "different people")
      + `<line x1="${left + 235}" x2="${left + 251}" y1="7" y2="7" class="try-cut"/>` + text(left + 256, 11, "threshold", "start")
      + (similarity === null ? "" : line(similarity, top - 8, "pair") + text(x(similarity), top - 11, `this pair ${signed(similarity)}`, near(similarity)))
      + "</svg>";
    const pair = similarity === null ? "" : ` This pair has ${signed(similarity)}.`;
    box.setAttribute("aria-label", `Similarities of test photographs at ${found.side} pixels, of one person and of`
      + ` different people; the threshold is ${signed(found.threshold)}.${pair}`);
  }

  async function start(box) {
    const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    box.insertAdjacentHTML("afterbegin", TOOL);
    const find = name => box.querySelector(".try-" + name), button = find("start"), state = find("state");

    await script("runtime/about.js").catch(() => {});
    const runtime = window.lrkdRuntime;
    if (!runtime || runtime.missing) {
      state.replaceChildren("The recogniser is not in this copy of the book", runtime ? ` (${runtime.missing}). ` : ". ",
        make("code", {}, "make runtime"), " brings it; it needs npm and a connection.");
      return;
    }
    const drawn = data.people.flatMap((pictures, p) => pictures.map(async one => ({
      image: await createImageBitmap(new Blob([bytes(one.webp)], {type: "image/webp"})), points: one.points,
      name: `Drawn person ${String.fromCharCode(65 + p)}, aged ${one.age}`,
    })));
    data.drawn = await Promise.all(drawn);
    const ready = play(box, data, said => { state.textContent = said; });
    button.textContent = `Load the recogniser (${(runtime.bytes / 1e6).toFixed(1)} MB)`;
    button.hidden = false;
    button.addEventListener("click", async () => {
      button.disabled = true;
      state.textContent = "Loading …";
      try {
        const session = await opened(runtime);
        button.hidden = true;
        state.textContent = "No picture leaves this page.";
        // For the tests, and for curious readers.
        window.lrkdTryIt = {session, data, seen, embed, occlusion, framed, warp, ...ready(session)};
      } catch (error) {
        state.textContent = `The recogniser could not be loaded: ${error.message || error}. A browser of 2023 or later is `
          + "needed.";
        button.disabled = false;
      }
    });
  }

  /* Brings the tool to life; what it returns takes the network, once that is there. */
  function play(box, data, tell) {
    const find = name => box.querySelector(".try-" + name), slider = find("side").querySelector("input");
    const verdict = find("verdict"), pixels = [...box.querySelectorAll(".try-pixels")], where = find("where");
    const slots = [];
    let session = null, busy = false, again = false;

    async function update() {
      again = true;
      if (busy || slots.length < 2) return;
      for (busy = true; again;) {
        again = false;
        await show(data.scores[slider.value]);
      }
      busy = false;
    }

    async function show(found) {
      const sharp = slots.map(one => one.crop.face()), pair = sharp.map(face => seen(face, found.side, data.size));
      sharp.forEach((face, k) => {
        draw(pixels[k], clamped(resized(face, found.side)));
        pixels[k].setAttribute("aria-label", `The ${["first", "second"][k]} face with ${found.side} pixels a side`);
      });
      if (!session) {
        verdict.textContent = "The recogniser has yet to be loaded.";
        return histogram(find("scores"), found, null);
      }
      if (slots.some(one => one.crop.guessed())) {
        verdict.textContent = slots.some(one => one.looking) ? "Looking for the face …" : "Frame the face by hand.";
        return histogram(find("scores"), found, null);
      }
      const mapped = where.open ? await occlusion(session, pair, data.patch, data.stride) : null;
      const [one, other] = mapped ? [] : await embed(session, pair), similarity = mapped ? mapped.similarity : dot(one, other);
      const above = similarity > found.threshold, drawn = slots.some(one => one.drawn), cut = !drawn && sharp.some(face => face.beyond > CUT);
      const said = cut || drawn ? " No verdict" : above ? " Rather the same person" : " Rather two people";
      verdict.replaceChildren(
        make("p", {}, make("strong", {className: "try-similarity"}, signed(similarity)), said),
        make("p", {}, cut ? "Part of a face lies outside its picture: the threshold does not hold for it."
          : `${above ? "Above" : "Not above"} the threshold ${signed(found.threshold)}`, cut ? "" : drawn
          ? ". A face is drawn, and this student knows photographs alone: that says little."
          : `, which ${percent(found.false_match_rate)} of the pairs of different people pass (${data.card.threshold_data}).`));
      histogram(find("scores"), found, similarity);
      if (mapped) paint(pair, mapped.maps);
      box.dataset.similarity = similarity;
    }

    function paint(pair, maps) {
      const falls = Math.max(0, ...maps.flatMap(map => [...map])), rises = Math.max(0, ...maps.flatMap(map => [...map].map(v => -v)));
      const most = Math.max(falls, rises, 1e-9), names = [["upper", "middle", "lower"], ["left", "centre", "right"]];
      where.querySelectorAll("canvas").forEach((canvas, k) => {
        draw(canvas, pair[k], (i, red, green, blue) => {
          const grey = 0.6 * (0.299 * red + 0.587 * green + 0.114 * blue) + 90, share = Math.abs(maps[k][i]) / most;
          return (maps[k][i] > 0 ? FALLS : RISES).map(part => grey + share * (part - grey));
        });
        const at = maps[k].indexOf(Math.max(...maps[k])), third = value => Math.floor(3 * value / data.size);
        canvas.setAttribute("aria-label", `The ${["first", "second"][k]} face: covering it matters most in the`
          + ` ${names[0][third(at / data.size)]} ${names[1][third(at % data.size)]}`);
      });
      where.querySelector("p").replaceChildren(make("span", {className: "try-falls"}, "Vermilion"), ": covering the place lowers "
        + `the similarity, by up to ${signed(falls)}; `, make("span", {className: "try-rises"}, "blue"), `: raises it, by up to ${signed(rises)}.`);
    }

    /* Finds the face in a reader's picture, once the finder is there. */
    async function look(one) {
      if (!session) return;
      const picture = one.crop.picture();
      one.looking = true;
      const five = await faces(picture.canvas).catch(() => []); // as where a graphics card gives up
      const found = five.map(points => framed(points, data));
      if (one.crop.picture() !== picture) return; // another one by now
      one.looking = false;
      if (one.crop.guessed() && found.length) one.crop.put(central(found, picture)); // or the reader was faster
      tell(found.length === 1 ? "The face was found." : found.length ? `${found.length} faces: the largest central one is framed.` : "");
      if (!found.length) one.fault.textContent = "No face was found: bring its eyes into the rings and its mouth onto the line.";
      update();
    }

    slider.max = data.scores.length - 1;
    slider.value = slider.max;
    const stop = () => {
      const said = `${data.scores[slider.value].side} px`;
      slider.nextElementSibling.textContent = said;
      slider.setAttribute("aria-valuetext", `${data.scores[slider.value].side} pixels a side`);
    };
    slider.addEventListener("input", () => { stop(); update(); });
    stop();
    where.addEventListener("toggle", () => { if (where.open) update(); });
    find("card").textContent = `Trained on ${data.card.trained_on}. Not for ${data.card.not_for}.`;
    box.querySelectorAll(".try-slot").forEach((one, k) =>
      slots.push(slot(one, data, k * (data.people[0].length - 1), update, look)));
    find("tool").hidden = false;
    update();
    return given => {
      session = given;
      update();
      slots.filter(one => one.crop.guessed()).forEach(look);
      return {slots};
    };
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".try-it").forEach(start));
})();
