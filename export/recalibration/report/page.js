"use strict";

// Everything here is read from the tables of the page, which do without it.

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SIZE = 400;
  const LEFT = 62;
  const BOTTOM = 48;
  const EDGE = 14;
  const REACH = 24; // how near the pointer must come to a point, in units of the plot

  const layers = [...document.querySelectorAll("details.layer")];
  const cells = [...document.querySelectorAll(".strip a")];
  const count = layers.length;
  const said = document.getElementById("layer-said");
  const channelSaid = document.getElementById("channel-said");
  const select = document.getElementById("layer-choice");
  const plots = document.getElementById("plots");
  let channels = [];
  let chosen = -1;
  let drawn = [];

  function readChannels(layer) {
    return [...layer.querySelector("tbody").rows].map((row) => {
      const text = [...row.cells].map((cell) => cell.textContent);
      const [channel, storedMean, mean, storedVar, variance] = text.map(Number);
      return { channel, text, means: [storedMean, mean], deviations: [storedVar, variance].map(Math.sqrt) };
    });
  }

  function element(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function linearTicks(low, high) {
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
    const ticks = [];
    for (let at = Math.ceil(low / step); at * step <= high; at += 1) ticks.push(at * step);
    return ticks;
  }

  function linear(values) {
    let [low, high] = extent(values);
    const pad = (high - low || Math.abs(high) || 1) * 0.05;
    low -= pad;
    high += pad;
    return { place: (value) => (value - low) / (high - low), ticks: linearTicks(low, high) };
  }

  function logarithmic(values) {
    const positive = values.filter((value) => value > 0);
    if (!positive.length) return linear(values);
    let [low, high] = extent(positive).map(Math.log10);
    const zeros = positive.length < values.length;
    low -= zeros ? 0.5 : 0.08;
    high += 0.08;
    const place = (value) => (value > 0 ? (Math.log10(value) - low) / (high - low) : 0);
    const factors = high - low > 2.5 ? [1] : high - low > 1 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power += Math.ceil((high - low) / 6)) {
      for (const factor of factors) ticks.push(factor * 10 ** power);
    }
    return { place, ticks: ticks.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high) };
  }

  function extent(values) {
    return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [
      Infinity,
      -Infinity,
    ]);
  }

  function tickText(value) {
    return String(Number(value.toPrecision(3)));
  }

  function draw(svg, key, what, scaleOf) {
    svg.replaceChildren();
    const finite = channels.filter((channel) => channel[key].every(Number.isFinite));
    svg.setAttribute(
      "aria-label",
      `Stored against observed ${what} of ${finite.length} channels; arrow keys go through them, ` +
        "the largest drift first",
    );
    if (!finite.length) return { points: [] };
    const { place, ticks } = scaleOf(finite.flatMap((channel) => channel[key]));
    const span = SIZE - LEFT - EDGE;
    const across = (value) => LEFT + place(value) * span;
    const up = (value) => SIZE - BOTTOM - place(value) * (SIZE - BOTTOM - EDGE);
    for (const tick of ticks) {
      const [x, y] = [across(tick), up(tick)];
      element(svg, "path", { class: "grid", d: `M${x} ${EDGE}V${SIZE - BOTTOM}M${LEFT} ${y}H${SIZE - EDGE}` });
      element(svg, "text", { class: "tick", x, y: SIZE - BOTTOM + 15, "text-anchor": "middle" }, tickText(tick));
      element(svg, "text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, tickText(tick));
    }
    element(svg, "text", { x: LEFT + span / 2, y: SIZE - 10, "text-anchor": "middle" }, `stored ${what}`);
    const middle = (SIZE - BOTTOM + EDGE) / 2;
    element(
      svg,
      "text",
      { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` },
      `observed ${what}`,
    );
    const points = finite.map((channel) => {
      const [x, y] = [across(channel[key][0]), up(channel[key][1])];
      element(svg, "circle", { class: "point", cx: x, cy: y, r: finite.length > 300 ? 2.5 : 4 });
      return { channel, x, y };
    });
    element(svg, "path", { class: "same", d: `M${LEFT} ${SIZE - BOTTOM}L${SIZE - EDGE} ${EDGE}` });
    return { points, ring: element(svg, "circle", { class: "chosen", r: 7, visibility: "hidden" }) };
  }

  function choose(index) {
    chosen = index;
    const channel = channels[index];
    for (const { points, ring } of drawn) {
      const point = points.find((each) => each.channel === channel);
      if (!ring) continue;
      ring.setAttribute("visibility", point ? "visible" : "hidden");
      if (point) {
        ring.setAttribute("cx", point.x);
        ring.setAttribute("cy", point.y);
      }
    }
    if (!channel) {
      channelSaid.textContent = "Point at a channel, or use the arrow keys on a plot.";
      return;
    }
    const [name, storedMean, mean, storedVar, variance, shift, ratio, kl] = channel.text;
    channelSaid.textContent =
      `channel ${name}: mean ${storedMean} stored, ${mean} observed (${shift} deviations); ` +
      `variance ${storedVar} stored, ${variance} observed (ratio ${ratio}); symmetric KL ${kl}`;
  }

  function show(index) {
    select.value = String(index);
    channels = readChannels(layers[index]);
    const [means, deviations] = plots.children;
    drawn = [
      draw(means, "means", "mean", linear),
      draw(deviations, "deviations", "deviation", logarithmic),
    ];
    cells.forEach((cell, at) => {
      if (at % count === index) cell.setAttribute("aria-current", "true");
      else cell.removeAttribute("aria-current");
    });
    choose(-1);
  }

  function byDrift() {
    const size = (index) => {
      const kl = Number(channels[index].text[7]);
      return Number.isNaN(kl) ? Infinity : kl;
    };
    return channels.map((_, index) => index).sort((one, two) => size(two) - size(one) || one - two);
  }

  function listen(svg, number) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * SIZE;
      const y = ((event.clientY - box.top) / box.height) * SIZE;
      let nearest = null;
      let distance = REACH;
      for (const point of drawn[number].points) {
        const apart = Math.hypot(point.x - x, point.y - y);
        if (apart < distance) [nearest, distance] = [point, apart];
      }
      if (nearest && channels[chosen] !== nearest.channel) choose(channels.indexOf(nearest.channel));
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const order = byDrift();
      const at = order.indexOf(chosen);
      choose(order[at < 0 ? 0 : (at + step + order.length) % order.length]);
    });
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const text = (row) => row.cells[column].textContent;
        const compare = (one, two) =>
          Number(text(one)) - Number(text(two)) || text(one).localeCompare(text(two));
        const rows = [...body.rows].sort(compare);
        body.append(...(down ? rows.reverse() : rows));
      });
    });
  }

  layers.forEach((layer, index) => {
    const option = document.createElement("option");
    option.value = String(index);
    option.textContent = layer.dataset.name;
    select.append(option);
  });
  for (const cell of cells) {
    const tell = () => {
      said.textContent = cell.title;
    };
    cell.addEventListener("pointerenter", tell);
    cell.addEventListener("focus", tell);
    cell.addEventListener("click", (event) => {
      event.preventDefault();
      show(cells.indexOf(cell) % count);
    });
  }
  select.addEventListener("change", () => show(Number(select.value)));
  [...plots.children].forEach(listen);
  document.querySelectorAll("table.layers").forEach(makeSortable);
  if (count) {
    document.getElementById("channels").hidden = false;
    show(Number(plots.dataset.first));
  }
})();
