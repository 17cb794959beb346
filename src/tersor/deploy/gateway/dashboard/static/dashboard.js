"use strict";
// The page is whole without this: it draws the last 15 minutes and the last hour, opens what has to be confirmed, and says whether it is live.
(() => {
  const dialog = document.getElementById("ask");
  const live = document.getElementById("live");
  const plots = new Map();
  let stale = false;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const LINES = {
    rate: [["requests a second", "rate", 0, 1]],
    latency: [["p50", "p50", 0, 1000], ["p95", "p95", 1, 1000], ["p99", "p99", 2, 1000]],
    fallback: [["fallbacks, %", "fallback", 1, 100]],
  };

  // Of the last hour by minutes, a line a variant: unit, and what the axis holds.
  const upwards = (low, high) => [0, high > 0 ? high * 1.15 : 1];
  const shares = (low) => [low === null ? 0 : Math.max(0, Math.min(90, Math.floor(low - 2))), 100.5];
  const MINUTES = {
    agreement: [100, shares], accuracy: [100, shares], first: [1000, upwards], memory: [2 ** -20, upwards],
  };
  const TINTS = ["--accent", "--second", "--fail", "--soft"];
  const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3]];

  const scaled = (values, unit) => values.map((v) => (v === null ? null : v * unit));

  // Labels, values and range of a chart; nothing where there is nothing to draw.
  const content = (place, told) => {
    const { chart, model } = place.dataset;
    if (chart in MINUTES) {
      const [unit, range] = MINUTES[chart];
      const { variants, charts } = told.minutes.models[model] ?? { variants: [], charts: {} };
      const drawable = Object.entries(charts[chart] ?? {});
      if (!drawable.length) return null;
      // A variant has the same colour in every chart.
      const lines = drawable.map(([name, values]) => [name, variants.indexOf(name), scaled(values, unit)]);
      return { at: told.minutes.at, lines, range, isNamed: true, isSparse: true };
    }
    const mine = told.models[model];
    if (!mine) return null;
    const lines = LINES[chart].map(([label, key, style, unit]) => [label, style, scaled(mine[key], unit)]);
    return { at: told.at, lines, range: upwards, isNamed: false, isSparse: false };
  };

  const named = (place, lines) => {
    const keys = document.createElement("ul");
    keys.className = "keys";
    for (const [label, style] of lines) {
      const mark = document.createElement("span");
      mark.className = `key line-${style}`;
      const item = document.createElement("li");
      item.append(mark, label);
      keys.append(item);
    }
    place.append(keys);
  };

  const drawn = (place, told) => {
    const found = content(place, told);
    const slot = place.closest("figure");
    slot.hidden = !found;
    if (!found) return;
    const data = [found.at, ...found.lines.map(([, , values]) => values)];
    const shape = found.lines.map(([label]) => label).join("\n");
    const known = plots.get(place);
    if (known?.shape === shape) { known.plot.setData(data); return; }
    known?.plot.destroy();
    place.replaceChildren();
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false } };
    const plot = new uPlot({
      width: Math.max(place.clientWidth, 200), height: 160,
      padding: [8, 26, 0, 0],  // half of the last time's width, which stands centred under the edge
      legend: { show: false }, cursor: { y: false, drag: { x: false } },
      scales: { y: { range: (u, low, high) => found.range(low, high) } },
      axes: [{ ...axis, space: 72, size: 30, values: [
        [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1],
      ] }, { ...axis, size: 52 }],
      series: [{}, ...found.lines.map(([label, style]) => ({
        label, stroke: colour(TINTS[style]), width: 1.75, dash: DASHES[style], points: { show: found.isSparse, size: 3 },
        spanGaps: false,
      }))],
    }, data, place);
    plots.set(place, { plot, shape });
    if (found.isNamed) named(place, found.lines);
  };

  const redraw = () => {
    for (const { plot } of plots.values()) plot.destroy();
    plots.clear();
    if (redraw.told) draw(redraw.told);
  };
  const draw = (told) => {
    redraw.told = told;
    if (told.at.length < 2) return;
    for (const group of document.querySelectorAll(".plots")) group.hidden = false;
    for (const place of document.querySelectorAll(".plot")) drawn(place, told);
  };

  document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
    const place = event.target.id;
    if (place === "series") { event.preventDefault(); draw(JSON.parse(event.detail.data)); }
    if (place === "shape") {
      event.preventDefault();
      stale = event.detail.data !== event.target.dataset.shape;  // there are other models now
      if (stale && !dialog.open) location.reload();
    }
  });
  document.body.addEventListener("htmx:sseOpen", () => {
    live.textContent = "Live: what changes shows by itself.";
    live.classList.remove("lost");
  });
  document.body.addEventListener("htmx:sseError", () => {
    live.textContent = "Connection lost: this is what was so before. Trying again …";
    live.classList.add("lost");
  });
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target?.id !== "ask-body") return;
    if (!dialog.open) dialog.showModal();
    (dialog.querySelector("[autofocus]") ?? dialog.querySelector("a, button"))?.focus();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) { event.preventDefault(); dialog.close(); }
  });
  dialog.addEventListener("close", () => { if (stale) location.reload(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
})();
