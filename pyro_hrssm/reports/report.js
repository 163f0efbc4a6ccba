"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const choice = byId("sequence"), slider = byId("frame"), left = byId("left"), right = byId("right");
const pictures = new Map();
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const written = (value) => value === null ? "–" : String(value).replace("-", "−");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

// The decoded images of a film strip, one per line; drawing waits for them once.
function images(name) {
  if (!pictures.has(name)) {
    const loaded = [...document.querySelectorAll(`[data-strip="${name}"] image`)].map((node) => {
      const image = new Image();
      image.src = node.getAttribute("href");
      return image;
    });
    Promise.all(loaded.map((image) => image.decode())).then(show);
    pictures.set(name, loaded);
  }
  return pictures.get(name);
}

const ready = (image) => image.complete && image.naturalWidth > 0;

// The markup of a sequence; every number of it changes in `show`.
function build() {
  const one = report.sequences[choice.value], total = one.seen.length;
  const side = (layer, title) => `<figure class="layer"><span>${title}</span><canvas id="${layer}" role="img"></canvas>` +
    (report.kind === "rows" ? `<canvas id="${layer}-row" class="row" role="img"></canvas>` : "") + "</figure>";
  const film = (layer, title) => `<span class="side middle">${title}</span><div class="track"><img class="film" alt="${layer} of the whole sequence, features down, frames to the right" src="${images(choice.value + "-" + (layer === "original" ? layer : "rebuilt"))[0].src}"><div class="cursor"></div></div>`;
  const strip = (name, title) => `<span class="side middle">${name}</span><div class="track"><canvas id="${name}-strip" role="img" aria-label="${title} over the frames"></canvas><div class="cursor"></div></div>`;
  const bars = (name, title) => `<div><h3>${title}</h3><svg id="${name}-bars" role="img" aria-label="bars of the numbers below" preserveAspectRatio="none"></svg><output id="${name}-numbers"></output></div>`;
  const facts = (report.hierarchical ? ["segment", "posterior", "prior", "drawn"] : []).concat(one.truth ? ["true"] : [], ["observed", "error"]);
  const names = {
    segment: "segment", posterior: "posterior q(boundary)", prior: "prior p(boundary)", drawn: "boundary drawn",
    true: "true boundary", observed: "observed", error: "mean absolute error",
  };
  left.innerHTML = (report.kind === "vectors"
    ? `<div class="bars">${bars("original", "original")}${bars("rebuilt", "reconstruction")}</div>`
    : `<div class="pictures">${side("original", "original")}${side("rebuilt", "reconstruction")}</div>`) +
    `<h3>This frame</h3><dl>${facts.map((key) => `<dt>${names[key]}</dt><dd id="fact-${key}"></dd>`).join("")}</dl>`;
  const axis = `<div class="axis"><span>${report.start}</span><span>frame</span><span>${report.start + total - 1}</span></div>`;
  right.innerHTML = '<div class="times">' +
    (report.kind === "vectors" ? film("original", "x") + film("reconstruction", "x̂") : "") +
    (report.hierarchical
      ? `<span class="side unit"><span>1</span><span>½</span><span>0</span></span><div class="track">${chances(one)}<div class="cursor"></div></div>` +
        '<div class="key"><span><i class="posterior"></i>posterior</span><span><i class="prior"></i>prior</span>' +
        '<span><i class="end"></i>boundary drawn</span>' + (one.truth ? '<span><i class="true"></i>true boundary</span>' : "") + "</div>"
      : "") +
    (report.hierarchical ? strip("z", "abstract state") : "") + strip("s", "observation state") + axis +
    `<div class="key"><span>${states().join(" and ")}: blue above zero, orange below</span></div></div>` +
    `<div class="bars">${report.hierarchical ? bars("z", "z, abstract state") : ""}${bars("s", "s, observation state")}</div>`;
  slider.max = total - 1;
  for (const name of states()) heat(byId(`${name}-strip`), one[name]);
}

const states = () => report.hierarchical ? ["z", "s"] : ["s"];

// Both probabilities as steps over the frames; the last frame has no boundary.
function chances(one) {
  const total = one.seen.length, last = total - 1;
  const steps = (values) => values.slice(0, last).map((value, t) => `${t ? "L" : "M"}${t} ${1 - value}L${t + 1} ${1 - value}`).join("");
  const uprights = (flags, kind, top, bottom) => flags.map((flag, t) => flag ? `<path class="line ${kind}" d="M${t + 1} ${top}V${bottom}"/>` : "").join("");
  return `<svg viewBox="0 0 ${total} 1" preserveAspectRatio="none" role="img" aria-label="Probability of a boundary after each frame">` +
    `<path class="line zero" d="M0 0H${total}M0 .5H${total}M0 1H${total}"/>` +
    uprights(one.ends, "end", -.09, 1) + (one.truth ? uprights(one.truth, "true", .95, 1.09) : "") +
    `<path class="line prior" d="${steps(one.prior)}"/><path class="line posterior" d="${steps(one.posterior)}"/></svg>`;
}

// States as colours: blue above zero, orange below, and as faint as they are small.
function heat(canvas, values) {
  const width = values.length, height = values[0].length, largest = Math.max(1e-9, ...values.flat().map(Math.abs));
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  values.forEach((column, t) => column.forEach((value, i) => {
    context.globalAlpha = Math.abs(value) / largest;
    context.fillStyle = colour(value > 0 ? "--prior" : "--segment");
    context.fillRect(t, i, 1, 1);
  }));
}

function fill(name, values, all) {
  const svg = byId(`${name}-bars`), low = Math.min(0, ...all.flat()), range = Math.max(1e-9, ...all.flat()) - low;
  const place = (value) => 1 - (value - low) / range, zero = place(0);
  svg.setAttribute("viewBox", `0 0 ${values.length} 1`);
  svg.innerHTML = `<path class="line zero" d="M0 ${zero}H${values.length}"/>` + values.map((value, i) => {
    const end = place(value), top = Math.min(zero, end);
    return `<rect class="${value > 0 ? "up" : "down"}" x="${i + .15}" width=".7" y="${top}" height="${Math.max(zero, end) - top}"/>`;
  }).join("");
  byId(`${name}-numbers`).textContent = values.map((value) => value === null ? "–" : written(value.toFixed(2))).join(" ");
}

// Rows: the picture so far with the current row framed, and that row alone. Images: the frame.
function paint(layer, t, said) {
  const lines = images(`${choice.value}-${layer}`), canvas = byId(layer);
  const line = lines[report.kind === "images" ? Math.floor(t / report.across) : 0];
  canvas.setAttribute("aria-label", `${layer === "original" ? "original" : "reconstruction"}, ${said}`);
  if (!ready(line)) return;
  const context = canvas.getContext("2d");
  if (report.kind === "images") {
    const total = report.sequences[choice.value].seen.length, first = t - t % report.across;
    const width = line.naturalWidth / (Math.min(total, first + report.across) - first);
    Object.assign(canvas, {width, height: line.naturalHeight});
    context.drawImage(line, (t - first) * width, 0, width, canvas.height, 0, 0, width, canvas.height);
    return;
  }
  const across = line.naturalWidth, down = line.naturalHeight, step = clamp(Math.round(280 / Math.max(across, down)), 1, 16);
  Object.assign(canvas, {width: across * step, height: down * step});
  canvas.style.aspectRatio = clamp(across / down, .5, 2.5);
  context.imageSmoothingEnabled = false;
  context.drawImage(line, 0, 0, across, t + 1, 0, 0, across * step, (t + 1) * step);
  context.strokeStyle = colour("--segment");
  context.lineWidth = 2;
  context.strokeRect(1, t * step, across * step - 2, step);
  const row = byId(`${layer}-row`);
  Object.assign(row, {width: across, height: 1});
  row.getContext("2d").drawImage(line, 0, t, across, 1, 0, 0, across, 1);
  row.setAttribute("aria-label", `this row of the ${layer === "original" ? "original" : "reconstruction"}`);
}

function say(key, text) {
  const node = byId(`fact-${key}`);
  if (node) node.textContent = text;
}

function show() {
  const one = report.sequences[choice.value], total = one.seen.length, last = total - 1;
  const t = clamp(Number(slider.value), 0, last), said = `frame ${report.start + t}`;
  const flag = (flags) => t === last ? "none after the last frame" : flags[t] ? "yes, a segment ends here" : "no";
  byId("place").textContent = `${report.start + t} of ${report.start}–${report.start + last}`;
  let spoken = said;
  if (report.hierarchical) {
    const before = one.ends.slice(0, t), first = before.lastIndexOf(1) + 1, end = one.ends.indexOf(1, t);
    const number = before.filter(Boolean).length + 1, count = one.ends.filter(Boolean).length + 1;
    say("segment", `${number} of ${count}, frames ${report.start + first} to ${report.start + (end < 0 ? last : end)}`);
    say("posterior", t === last ? "–" : one.posterior[t].toFixed(3));
    say("prior", t === last ? "–" : one.prior[t].toFixed(3));
    say("drawn", flag(one.ends));
    spoken += `, segment ${number} of ${count}`;
  }
  if (one.truth) say("true", flag(one.truth));
  say("observed", !one.seen[t] ? "no, this frame is missing" : one.original?.[t].includes(null) ? "in part" : "yes");
  say("error", one.seen[t] ? written(one.error[t]) : "–");
  slider.setAttribute("aria-valuetext", spoken);
  if (report.kind === "vectors") {
    const all = one.original.concat(one.rebuilt);
    fill("original", one.seen[t] ? one.original[t] : one.original[t].map(() => null), all);
    fill("rebuilt", one.rebuilt[t], all);
  } else {
    for (const layer of ["original", "rebuilt"]) paint(layer, t, said);
  }
  for (const name of states()) fill(name, one[name][t], one[name]);
  for (const cursor of document.querySelectorAll(".cursor")) {
    cursor.style.left = `${100 * t / total}%`;
    cursor.style.width = `${100 / total}%`;
  }
}

function restart() {
  build();
  slider.value = Math.min(Number(slider.value), Number(slider.max));
  show();
}

choice.addEventListener("change", restart);
slider.addEventListener("input", show);
// Canvases do not take the page's colours by themselves.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restart);
byId("player").hidden = false;
restart();
