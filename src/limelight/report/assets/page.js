"use strict";
(async () => {
  async function unpacked(id) { // base64 of deflated bytes, kept in a script element
    const text = atob(document.getElementById(id).textContent), packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  }
  const [json, heats] = await Promise.all(["data", "heat"].map(unpacked));
  const data = JSON.parse(new TextDecoder().decode(json));
  let used = 0;
  for (const word of data.cases.flatMap((c) => c.columns).flatMap((c) => c.words)) {
    if (word.h === undefined) continue;
    word.heat = new Int8Array(heats, used, word.h);
    used += word.h;
  }
  const { supports, against, opacity } = data.colours;
  const view = { strength: 1, positive: false };
  const percent = (x) => Math.round(x * 100) + " %";
  const number = (x) => (x === null || x === undefined ? "–" : Number(x).toPrecision(3).replace(/\.?0+$/, ""));
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "style") node.style.cssText = value;
      else if (key === "className") node.className = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const bytes = (text) => Int8Array.from(atob(text), (c) => (c.charCodeAt(0) << 24) >> 24);
  const heatOf = (word) => word.heat ?? null;
  const visible = (token) => token.replace(/\n/g, "⏎").trim() || "␣";

  let strength = 1; // of the word that is drawn: the opacity of its map

  function colours(values, rows, columns) { // int8 scores -> a canvas with one pixel per position
    const canvas = new OffscreenCanvas(columns, rows), context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const v = view.positive ? Math.max(0, values[i]) : values[i];
      const [r, g, b] = v >= 0 ? supports : against;
      image.data.set([r, g, b, (Math.abs(v) / 127) * 255 * opacity * view.strength * strength], 4 * i);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function paintGrids(canvas, parts, smooth) { // parts: [values, rows, columns, box]; parts without a box were not seen by the model
    const context = canvas.getContext("2d"), w = canvas.width, h = canvas.height;
    context.clearRect(0, 0, w, h);
    if (parts.some(([values]) => !values)) return;
    context.fillStyle = "rgba(20,20,20,.55)";
    context.fillRect(0, 0, w, h);
    context.imageSmoothingEnabled = smooth;
    context.imageSmoothingQuality = "high";
    for (const [values, rows, columns, [l, t, r, b]] of parts) {
      if (r <= l || b <= t) continue;
      context.clearRect(l * w, t * h, (r - l) * w, (b - t) * h);
      context.drawImage(colours(values, rows, columns), l * w, t * h, (r - l) * w, (b - t) * h);
    }
  }
  const paintGrid = (canvas, values, rows, columns, box, smooth) => paintGrids(canvas, [[values, rows, columns, box]], smooth);

  function paintSound(canvas, parts, sound) { // parts: [values, from, to] in fractions of the clip
    const context = canvas.getContext("2d"), w = canvas.width, h = canvas.height, wave = sound ? h * 0.66 : 0;
    context.clearRect(0, 0, w, h);
    const ink = getComputedStyle(canvas).color;
    for (const [values, from, to] of parts) {
      if (!values?.length) continue;
      if (sound) {
        context.imageSmoothingEnabled = true;
        context.drawImage(colours(values, 1, values.length), from * w, 0, (to - from) * w, wave);
      }
      const each = ((to - from) * w) / values.length, middle = (wave + h) / 2, reach = (h - wave) / 2 - 3;
      values.forEach((v, i) => {
        if (view.positive && v < 0) return;
        context.fillStyle = `rgb(${v >= 0 ? supports : against})`;
        context.fillRect(from * w + i * each, v >= 0 ? middle - (v / 127) * reach : middle, Math.max(each - 0.5, 0.5), (Math.abs(v) / 127) * reach);
      });
    }
    context.fillStyle = ink;
    if (!sound) return;
    sound.wave ??= bytes(sound.peaks);
    const bins = sound.wave.length / 2;
    for (let i = 0; i < bins; i++) {
      const low = sound.wave[2 * i] / 127, high = sound.wave[2 * i + 1] / 127;
      context.fillRect((i * w) / bins, (wave / 2) * (1 - high * 0.95), Math.max(w / bins, 1), Math.max((wave / 2) * 0.95 * (high - low), 1));
    }
  }

  const between = (from, to) => `${from.toFixed(2)}–${to.toFixed(2)} s`;
  document.addEventListener("play", (event) => document.querySelectorAll("audio").forEach((a) => a !== event.target && a.pause()), true);

  function buildPlayer(sound, label, figure) { // audio player; on the waveform, pointing shows the time and clicking plays from there
    const remarkOf = (text) => el("p", { className: "remark" }, text);
    if (!sound.src) {
      figure.append(remarkOf(sound.unheard));
      return null;
    }
    const audio = el("audio", { controls: "", preload: "metadata", src: sound.src, "aria-label": `play ${label}` }), stage = figure.querySelector(".stage");
    audio.addEventListener("error", () => audio.replaceWith(remarkOf("This browser cannot play the audio.")));
    figure.append(audio);
    let until = Infinity, aim = 0;
    const play = (from, to = Infinity) => {
      [until, aim] = [to, from];
      audio.currentTime = from;
      audio.play().catch(() => {}); // the controls show that it is not playing
    };
    const check = () => {
      if (audio.currentTime < until) return;
      until = Infinity;
      audio.pause();
    };
    audio.addEventListener("seeking", () => { if (Math.abs(audio.currentTime - aim) > 0.01) until = Infinity; }); // moved by the user
    if (!stage) return play;
    const head = el("i", { className: "head", hidden: "" }), hand = el("i", { className: "hand", hidden: "" });
    stage.classList.add("playable");
    stage.append(head, hand);
    const part = (event) => Math.max(0, Math.min(1, (event.clientX - stage.getBoundingClientRect().left) / stage.clientWidth));
    const follow = () => {
      check();
      head.hidden = audio.paused && !audio.currentTime;
      head.style.left = `${Math.min(1, audio.currentTime / sound.seconds) * 100}%`;
      if (!audio.paused) requestAnimationFrame(follow);
    };
    for (const kind of ["play", "seeked", "timeupdate", "pause"]) audio.addEventListener(kind, kind === "timeupdate" ? check : follow);
    stage.addEventListener("pointermove", (event) => {
      hand.hidden = false;
      hand.style.left = `${part(event) * 100}%`;
      hand.classList.toggle("left", part(event) > 0.8);
      hand.dataset.second = `${(part(event) * sound.seconds).toFixed(2)} s`;
    });
    stage.addEventListener("pointerleave", () => { hand.hidden = true; });
    stage.addEventListener("click", (event) => play(part(event) * sound.seconds));
    return play;
  }

  function buildViews(media, views, holder, alone, original) { // one painter per image, frame, tile or clip: (word, sum of heat) => void; players by view
    const painters = [], players = new Map();
    const scale = el("div", { className: "scale" }, el("span"), el("i", { "aria-hidden": "true" }, el("span", {}, "strongly against"), el("span", {}, "strongly for")), el("span"));
    const stage = (label, source, small, shape) => {
      const canvas = el("canvas", { role: "img", "aria-label": label });
      const box = el("div", { className: "stage" });
      if (source) {
        box.append(el("img", { src: source.src, alt: label }), canvas);
      } else box.append(canvas);
      canvas.width = [640, 320, 240][small];
      canvas.height = Math.max(16, Math.round(canvas.width * shape));
      if (!source) canvas.classList.add("flow");
      const caption = el("figcaption", {}, el("span", {}, original && source && !small ? "where the evidence lies" : label), el("span"));
      if (original && source && !small) holder.append(el("figure", { className: "view half" }, el("div", { className: "stage plain" },
        el("img", { src: source.src, alt: `${label}, original` })), el("figcaption", {}, el("span", {}, "original"))));
      const fit = source && !small && !original ? { style: `max-width:min(100%, calc(max(240px, ${alone ? 62 : 46}vh) / ${shape.toFixed(4)}))` } : {};
      if (fit.style) scale.style.cssText = fit.style;
      holder.append(el("figure", { className: ["view" + (original && source ? " half" : ""), "view half", "view small"][small], ...fit }, box, caption));
      return [canvas, caption.lastChild];
    };
    const unseenNote = (together, fallback) => { // under the last figure
      const within = ([l, t, r, b]) => Math.max(0, Math.min(r, 1) - Math.max(l, 0)) * Math.max(0, Math.min(b, 1) - Math.max(t, 0));
      const unseen = together.length ? 1 - together.reduce((a, o) => a + within(o.box), 0) : 0;
      const text = unseen > 0.005 ? `Dark: not seen by the model (${percent(unseen)}).` : fallback;
      if (text) holder.lastChild.append(el("p", { className: "remark" }, text));
    };
    const count = new Set(views.map((v) => v.stage)).size, drawn = new Set();
    for (const v of views) {
      if (drawn.has(v.stage)) continue;
      drawn.add(v.stage);
      const together = views.filter((o) => o.stage === v.stage);
      const cut = (word, o = v) => heatOf(word)?.subarray(o.at, o.at + (o.real ?? o.n));
      if (v.kind === "audio") {
        const sound = v.source === null ? null : media.sounds[v.source];
        const [canvas] = stage(v.label, null, 0, sound ? 0.26 : 0.12), band = el("canvas", { width: 640, height: 1, "aria-hidden": "true" });
        const figure = holder.lastChild;
        if (sound) { // the heat over time, the same at all frequencies, behind the spectrogram
          const name = `spectrogram, 0 to ${sound.top_khz} kHz`;
          const picture = el("div", { className: "spectrogram", role: "img", "aria-label": name, title: name, style: `mask-image:url(${sound.spectrogram})` });
          figure.querySelector(".stage").append(el("div", { className: "band" }, band, picture));
        }
        const seconds = sound ? sound.seconds : (v.seconds ?? 0) * v.n, known = sound && together.every((o) => o.from !== undefined);
        const part = (o) => {
          const from = known ? o.from : 0, last = known ? Math.min(o.from + o.real * o.seconds, seconds) : seconds || 1;
          return [from / (seconds || 1), last / (seconds || 1)];
        };
        figure.querySelector("figcaption").replaceChildren(...(seconds ? [0, 0.25, 0.5, 0.75, 1].map((f) => el("span", {}, (f * seconds).toFixed(1) + " s")) : [v.label]));
        if (sound && !together.every((o) => o.seconds)) figure.append(el("p", { className: "remark" }, "The times of positions are unknown: they are spread evenly."));
        const behind = el("p", { className: "remark", hidden: "" });
        if (together.some((o) => o.real < o.n)) figure.append(behind);
        const bracket = el("i", { className: "bracket", hidden: "" });
        const play = sound && buildPlayer(sound, v.label, figure);
        if (play) players.set(views.indexOf(v), play);
        if (sound) figure.querySelector(".stage").append(bracket);
        painters.push((word) => {
          paintSound(canvas, together.map((o) => [cut(word, o), ...part(o)]), sound);
          paintGrids(band, together.map((o) => [cut(word, o), 1, o.real ?? o.n, [part(o)[0], 0, part(o)[1], 1]]), false);
          const sum = (values) => values?.reduce((a, x) => a + Math.abs(x), 0) ?? 0;
          const whole = together.reduce((a, o) => a + sum(heatOf(word)?.subarray(o.at, o.at + o.n)), 0);
          const lost = whole ? 1 - together.reduce((a, o) => a + sum(cut(word, o)), 0) / whole : 0;
          behind.hidden = lost < 0.0005;
          behind.textContent = `${percent(lost)} of the relevance is on padding after the end of the audio, which is not drawn.`;
          const found = word.w?.find(([i]) => views[i] === v);
          bracket.hidden = !found;
          if (found) bracket.style.cssText = `left:${(found[1] / seconds) * 100}%;width:${((Math.min(found[2], seconds) - found[1]) / seconds) * 100}%`;
        });
      } else if (v.frames) {
        const [rows, columns] = v.grid.slice(-2), size = rows * columns;
        v.frames.forEach(([frame, label], t) => {
          const [canvas, share] = stage(label, { src: media.videos[v.source][frame], w: 320 }, v.frames.length > 4 ? 2 : 1, 0.75);
          painters.push((word, total) => {
            const part = cut(word)?.subarray(t * size, (t + 1) * size);
            paintGrid(canvas, part, rows, columns, v.box, true);
            share.textContent = part && total ? percent(part.reduce((a, x) => a + Math.abs(x), 0) / total) : "";
          });
        });
        unseenNote(v.placed ? together : [], v.placed ? "" : "The visible part of each frame is unknown: the heat is spread over the whole frame.");
      } else {
        const flat = v.grid.length === 2 ? v.grid : [1, v.n], source = v.source === null ? null : media.pictures[v.source];
        const small = count > 4 ? 2 : count > 1 ? 1 : 0, shape = source ? source.h / source.w : Math.max(flat[0] / flat[1], 0.06);
        const label = source ? v.label : `${v.label}: ${v.n} positions in order (${v.known ? "location in the image" : "layout"} unknown)`;
        const [canvas] = stage(label, source, small, shape);
        painters.push((word) => paintGrids(canvas, together.map((o) => [cut(word, o), ...(o.grid.length === 2 ? o.grid : [1, o.n]), source ? o.box : [0, 0, 1, 1]]), Boolean(source)));
        if (source) unseenNote(together, "");
      }
    }
    media.sounds.forEach((sound, i) => { // clips whose windows are drawn separately
      if (views.some((v) => v.kind === "audio" && v.source === i)) return;
      holder.append(el("figure", { className: "view" }, el("figcaption", {}, `audio ${i + 1}, ${sound.seconds.toFixed(1)} s`)));
      buildPlayer(sound, `audio ${i + 1}`, holder.lastChild);
    });
    const remark = el("p", { className: "remark strength" });
    if (views.length) holder.append(scale, remark);
    painters.push((word) => {
      remark.textContent = word.st && views.length ? `The ${mediaName(views)}'s part of this relevance: ${percent(1 - (word.sh?.text ?? 0))} (${word.st[1]})${word.st[0] < 1 ? ", drawn fainter" : ""}.` : "";
      scale.firstChild.textContent = word.m === undefined ? "" : (word.cl ? "≤ " : "") + "−" + number(word.m);
      scale.lastChild.textContent = word.m === undefined ? "" : (word.cl ? "≥ " : "+") + number(word.m);
    });
    return { painters, players };
  }

  function buildPrompt(shown, column) { // the prompt and the answer so far; highlights the relevant positions
    const texts = shown.prompt.filter(Array.isArray), cells = new Map(), LONG = 8000;
    const apart = texts.length > 3 && !texts.some(([, t]) => /^\s\S/.test(t));
    const box = el("div", { className: "prompt" + (apart ? " apart" : ""), tabindex: "0", role: "group", "aria-label": "the prompt and the answer so far" });
    const cell = (key, text, extra = "") => {
      const node = el("span", extra ? { className: extra } : {}, text);
      cells.set(key, node);
      box.append(node);
    };
    let seen = 0;
    for (const item of shown.prompt) {
      if (!Array.isArray(item)) {
        box.append(el("span", { className: "media", style: `background:var(--${item.kind})` }, `${item.label} · ${item.n}`));
        continue;
      }
      seen++;
      if (seen <= LONG / 2 || seen > texts.length - LONG / 2) cell(item[0], item[1]);
      else if (seen === LONG / 2 + 1) box.append(el("span", { className: "media", style: "background:var(--text)" }, `… ${texts.length - LONG} more`));
    }
    column.generated.forEach((text, i) => { cell(-1 - i, text, "answered later"); });
    let tinted = [], hidden = 0;
    const scroll = () => { if (tinted.length && box.scrollHeight > box.clientHeight) box.scrollTop = tinted[0].offsetTop - box.clientHeight / 2; };
    return [box, (word) => {
      tinted.forEach((node) => node.removeAttribute("style"));
      tinted = [];
      const rows = (word.x ?? []).filter(([, v]) => !view.positive || v > 0);
      const top = Math.max(...rows.map(([, v]) => Math.abs(v)), 1e-9);
      for (const [key, value] of rows) {
        const node = cells.get(key);
        if (!node) continue;
        node.style.background = `rgba(${value >= 0 ? supports : against},${(Math.abs(value) / top) * 0.6 * view.strength})`;
        tinted.push(node);
      }
      const from = word.k ? word.k[0] : column.generated.length; // the answer up to this word
      for (let i = Math.min(from, hidden); i < Math.max(from, hidden); i++) cells.get(-1 - i).classList.toggle("later", i >= from);
      hidden = from;
    }, scroll];
  }

  function place(word, v) { // the location of the strongest support, in words
    const heat = heatOf(word)?.subarray(v.at, v.at + v.n);
    if (!heat || !v.known) return "";
    let best = 0;
    heat.forEach((x, i) => { if (x > heat[best]) best = i; });
    if (v.kind === "image" && v.source === null) return `strongest on ${v.label}: position ${best + 1} of ${v.n}`;
    const [rows, columns] = v.grid.slice(-2), size = rows * columns, row = Math.floor((best % size) / columns), column = best % columns;
    const third = (i, n, names, from, to) => names[Math.max(0, Math.min(2, Math.floor(3 * (from + ((to - from) * (i + 0.5)) / n))))];
    const [l, t, r, b] = v.box ?? [0, 0, 1, 1];
    const frame = v.grid.length === 3 ? `, ${v.frames?.[Math.floor(best / size)]?.[1] ?? ""}` : "";
    return `strongest on ${v.label}${frame}: ${third(row, rows, ["upper", "middle", "lower"], t, b)} ${third(column, columns, ["left", "centre", "right"], l, r)} (row ${row + 1} of ${rows}, column ${column + 1} of ${columns})`;
  }

  const mediaName = (views) => (views.some((v) => v.kind !== views[0].kind) ? "media" : views[0].kind);
  const signed = (v) => (v === null ? "–" : (v >= 0 ? "+" : "−") + number(Math.abs(v)));
  const bar = (v, most) => el("span", {}, el("i", { style: `width:${(Math.abs(v ?? 0) / most) * 100}%;background:var(--${v >= 0 ? "supports" : "against"})` }));

  // what the sum over the input leaves of the difference: AttnLRP's sum is not exactly the logit
  const untraced = (word) => {
    const parts = Object.values(word.to), rest = word.lo - parts.reduce((a, v) => a + v, 0), most = Math.max(...parts.map(Math.abs), Math.abs(word.lo));
    return word.lo === null || Math.abs(rest) < 0.02 * most ? [] : [", ", el("b", {}, signed(rest)), " not traced to the input (biases, activations)"];
  };

  function facts(holder, shown, column, word, players) {
    const children = [el("p", { className: "word" }, el("b", {}, word.t), word.lp === undefined ? "" : `probability ${number(word.lp)}`)];
    if (word.to) children.push(el("p", { className: "totals" }, `Difference of the logits ${signed(word.lo)}: `, ...Object.entries(word.to).flatMap(([m, v], i) => [i ? ", " : "", el("b", {}, signed(v)), ` from the ${m}`]), ...untraced(word), ". Red is for ", el("b", {}, word.on), ", blue against."));
    if (word.sh) {
      const shares = Object.entries(word.sh);
      children.push(el("div", { className: "bar", "aria-hidden": "true" }, ...shares.map(([m, v]) => el("span", { style: `width:${v * 100}%;background:var(--${m})` }))),
        el("p", { className: "shares" }, ...shares.map(([m, v]) => el("span", {}, el("i", { style: `background:var(--${m})` }), el("b", {}, percent(v)), " " + m))));
      if (word.h === undefined) children.push(el("p", {}, "Only shares were computed for this word, no heat map."));
    } else children.push(el("p", {}, "No relevance was computed for this word."));
    if (word.co) children.push(el("p", { className: "parts", title: "parts of the logit, measured by the grounding meter without a backward pass; the shares above are of the sum of absolute relevance" },
      "Parts of its logit (meter): " + Object.entries(word.co).map(([m, v]) => `${percent(v)} ${m}`).join(", ")));
    for (const [i, from, to] of word.w ?? []) {
      const button = el("button", { type: "button" }, "play"), name = word.w.length > 1 ? shown.views[i].label : "the audio";
      button.addEventListener("click", () => players.get(i)(from, to));
      children.push(el("p", { className: "when" }, `Half of its support in ${name}: ${between(from, to)} `, ...(players.has(i) ? [button] : [])));
    }
    const decided = (moved, ...texts) => children.push(el("p", { className: "decoder" + (moved ? " moved" : "") }, ...texts));
    const did = word.i ? "The decoder intervened" : "The decoder did not intervene";
    if (column.audited) {
      if (word.g !== undefined) decided(true, "The model's own choice here is ", el("b", {}, visible(word.g)), ".");
      else if (word.same) decided(false, "This is the model's own choice.");
    } else if (word.g !== undefined) decided(true, `${did}. Greedy decoding gives `, el("b", {}, visible(word.g)), " here.");
    else if (word.same) decided(false, `${did}; greedy decoding gives the same word.`);
    else if (word.i) decided(true, `${did}; the greedy word is unknown.`);
    if (word.gr) {
      const { grounding, rival_grounding: rival, p_supported: p, ...each } = word.gr;
      const extras = [rival === undefined ? "" : `another plausible word: ${number(rival)}`, ...Object.entries(each).map(([k, z]) => `${k.slice(10)}: ${number(z)}`),
        p === undefined ? "" : `probability that it is supported: ${percent(p)}`].filter(Boolean);
      children.push(el("p", { className: "grounding" }, word.f ? "⚑ Not supported by the media. " : "", "Grounding ", el("b", {}, number(grounding)), extras.length ? ` (${extras.join("; ")})` : ""));
    } else if (word.f) children.push(el("p", {}, "⚑ Not supported by the media."));
    if (word.l) children.push(el("p", {}, "Loss, first to last update: " + Object.entries(word.l).map(([n, [a, b]]) => `${n} ${number(a)} → ${number(b)}`).join("; ")));
    if (word.c) {
      const most = Math.max(...word.c.map((c) => Math.abs(c[2] ?? 0)), 1e-9), several = shown.views.some((v) => v.kind !== shown.views[0].kind);
      const from = several || !shown.views.length ? "media" : { image: "image", audio: "audio", video: "video" }[shown.views[0].kind];
      children.push(el("h4", {}, word.ct === undefined ? "Candidates" : `Candidates for “${visible(word.ct)}”`), el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), el("th", { scope: "col" }, "logit"),
          el("th", { scope: "col", title: "the part of the logit that comes from the " + from + ", measured by the grounding meter" }, `Φ: part from the ${from}`))),
        el("tbody", {}, ...word.c.map(([text, logit, phi, mark]) => el("tr", mark & 1 ? { className: "chosen" } : {},
          el("td", {}, visible(text), mark ? " " : "", mark ? el("small", {}, ["", "chosen", "greedy", "chosen"][mark]) : ""),
          el("td", {}, number(logit)), el("td", { className: "phi" }, el("div", {}, bar(phi, most), signed(phi))))))));
    }
    if (word.tx?.length) {
      const rows = word.tx.filter(([, v]) => !view.positive || v > 0).slice(0, word.to ? 5 : 6), top = Math.max(...rows.map(([, v]) => Math.abs(v)), 1e-9);
      children.push(el("h4", {}, "Most relevant text (logit)"), el("ul", { className: "tops" }, ...rows.map(([text, v]) =>
        el("li", {}, el("span", { title: visible(text) }, visible(text)), bar(v, top), el("span", {}, signed(v))))));
    }
    holder.replaceChildren(...children);
  }

  const cases = data.cases.map((shown, c) => {
    const article = document.querySelector(`[data-case="${c}"]`);
    const wide = shown.columns.length > 1 && shown.views.some((v) => v.kind !== "image"); // a waveform needs the full width of a column
    const panel = shown.together ? article.querySelector(".panel") : null; // one for all answers, where there is a decision
    const common = panel && { views: buildViews(shown.media, shown.views, panel.querySelector(".views"), true, true), facts: el("div"), prompt: el("div") };
    if (panel) {
      panel.querySelector(".split").classList.toggle("beside", !wide && shown.views.length > 0);
      panel.querySelector(".facts").append(common.facts, el("h4", {}, "Prompt"), common.prompt);
    }
    const columns = shown.columns.map((column, k) => {
      const root = article.querySelector(`[data-column="${k}"]`);
      const [prompt, tint, scroll] = buildPrompt(shown, column);
      if (common) return { column, root, tint, scroll, prompt, ...common.views, buttons: [...root.querySelectorAll(".w")], facts: common.facts, status: root.querySelector("[role=status]"), at: -1 };
      root.querySelector(".split").classList.toggle("beside", !wide && shown.views.length > 0);
      const details = el("div"); // the part that changes from word to word; the prompt, which may be long, stays in place
      root.querySelector(".facts").append(details, el("h4", {}, "Prompt"), prompt);
      return { column, root, tint, scroll, ...buildViews(shown.media, shown.views, root.querySelector(".views"), shown.columns.length === 1),
        buttons: [...root.querySelectorAll(".w")], facts: details, status: root.querySelector("[role=status]"), at: -1 };
    });
    const state = { pinned: null };

    function draw(k, i, how) {
      const one = columns[k], word = one.column.words[i];
      if (!word) return;
      one.buttons[one.at]?.classList.remove("on", "other");
      one.buttons[i].classList.add(how);
      one.at = i;
      if (common && how === "other") return; // the panel shows the word that is pointed at
      if (common) {
        columns.forEach((c) => c !== one && c.buttons[c.at]?.classList.remove("on", "other"));
        common.prompt.replaceChildren(one.prompt);
      }
      strength = word.st?.[0] ?? 1;
      const total = heatOf(word)?.reduce((a, x) => a + Math.abs(x), 0);
      one.painters.forEach((paint) => paint(word, total));
      one.tint(word);
      facts(one.facts, shown, one.column, word, one.players);
      one.scroll();
    }
    function counterpart(k, i, other) { // via the first answer
      const to = (n, x) => (n === 0 ? x : columns[n].column.pairs.find(([a]) => a === x)?.[1]);
      const from = (n, x) => (n === 0 ? x : columns[n].column.pairs.find(([, b]) => b === x)?.[0]);
      const first = from(k, i);
      return first === undefined ? undefined : to(other, first);
    }
    function show(k, i, spoken) {
      draw(k, i, "on");
      columns.forEach((_, other) => {
        const j = other === k ? undefined : counterpart(k, i, other);
        if (j !== undefined) draw(other, j, "other");
      });
      if (!spoken) return;
      const word = columns[k].column.words[i], places = shown.views.map((v) => (v.kind === "audio" ? "" : place(word, v))).filter(Boolean);
      columns[k].status.textContent = places.slice(0, 2).join("; ");
    }
    function pin(k, i) {
      if (state.pinned) columns[state.pinned[0]].buttons[state.pinned[1]].removeAttribute("aria-pressed");
      state.pinned = k === null || (state.pinned && state.pinned[0] === k && state.pinned[1] === i) ? null : [k, i];
      if (state.pinned) columns[k].buttons[i].setAttribute("aria-pressed", "true");
    }
    function focus(k, i) {
      const button = columns[k].buttons[i];
      if (!button) return;
      columns[k].buttons.forEach((b) => (b.tabIndex = -1));
      button.tabIndex = 0;
      button.focus();
    }
    columns.forEach((one, k) => {
      const answer = one.root.querySelector(".answer");
      const index = (event) => { const b = event.target.closest?.(".w"); return b ? Number(b.dataset.word) : -1; };
      answer.addEventListener("pointerover", (event) => { const i = index(event); if (i >= 0 && !state.pinned && !common) show(k, i, false); });
      answer.addEventListener("focusin", (event) => { const i = index(event); if (i >= 0) show(k, i, true); });
      answer.addEventListener("click", (event) => { const i = index(event); if (i >= 0) { pin(k, i); show(k, i, true); } });
      answer.addEventListener("keydown", (event) => {
        const i = index(event), last = one.buttons.length - 1;
        const side = { ArrowUp: k - 1, ArrowDown: k + 1 }[event.key];
        const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: last }[event.key];
        if (event.key === "Escape") pin(null);
        else if (next !== undefined) focus(k, Math.max(0, Math.min(last, next)));
        else if (side !== undefined && columns[side]) focus(side, counterpart(k, i, side) ?? Math.min(i, columns[side].buttons.length - 1));
        else return;
        event.preventDefault();
      });
    });
    const decision = shown.columns.findIndex((c) => c.name === "decision");
    if (common) {
      columns.forEach((one, k) => one.buttons.forEach((b, i) => (b.tabIndex = i === 0 ? 0 : -1)));
      draw(decision, 0, "on");
    } else columns.forEach((one, k) => { // initially: the same word in every answer
      const start = (k ? counterpart(0, columns[0].column.start, k) : undefined) ?? one.column.start;
      draw(k, start, "other");
      if (start >= 0) one.buttons.forEach((b, i) => (b.tabIndex = i === start ? 0 : -1));
    });
    return { redraw: () => columns.forEach((one, k) => {
      const on = one.buttons[one.at]?.classList.contains("on");
      if (on || (!common && one.at >= 0)) draw(k, one.at, on ? "on" : "other");
    }) };
  });

  document.getElementById("about").open = !matchMedia("(max-width: 760px)").matches; // a phone shows the answers first
  const redraw = () => cases.forEach((one) => one.redraw());
  const buttons = [...document.querySelectorAll(".w[data-share]")], shares = buttons.map((b) => Number(b.dataset.share));
  const [least, most] = [Math.min(...shares), Math.max(...shares)], ends = document.querySelectorAll("#legend .end");
  document.getElementById("stretch").addEventListener("change", (event) => {
    const wide = event.target.checked && most > least;
    buttons.forEach((b, i) => b.style.setProperty("--s", wide ? (shares[i] - least) / (most - least) : shares[i]));
    ends.forEach((end, i) => (end.textContent = percent(wide ? [least, most][i % 2] : i % 2)));
  });
  document.getElementById("positive").addEventListener("change", (event) => { view.positive = event.target.checked; redraw(); });
  document.getElementById("opacity").addEventListener("input", (event) => { view.strength = event.target.value / 100; redraw(); });
  const themes = [["", "system"], ["light", "light"], ["dark", "dark"]];
  let theme = 0;
  document.getElementById("theme").addEventListener("click", (event) => {
    theme = (theme + 1) % themes.length;
    document.documentElement.dataset.theme = themes[theme][0];
    event.target.textContent = "colours: " + themes[theme][1];
    redraw();
  });
  document.documentElement.dataset.ready = "yes";
})().catch((error) => {
  const box = document.getElementById("error");
  box.hidden = false;
  box.textContent = "The heat maps could not be drawn; the answers and their shares are shown below. " +
    (typeof DecompressionStream === "undefined" ? "This browser is too old: it has no DecompressionStream." : String(error));
});
