"use strict";
// The page is whole without this: it draws the last 15 minutes, opens what has to be confirmed, and says whether it is live.
(() => {
  const dialog = document.getElementById("ask");
  const live = document.getElementById("live");
  const plots = new Map();
  let stale = false;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const LINES = {
    rate: [["requests a second", "rate", "--accent", 1]],
    latency: [["p50", "p50", "--accent", 1000], ["p95", "p95", "--second", 1000], ["p99", "p99", "--fail", 1000]],
    fallback: [["fallbacks, %", "fallback", "--second", 100]],
  };

  const drawn = (place, told) => {
    const lines = LINES[place.dataset.chart];
    const mine = told.models[place.dataset.model];
    if (!mine) return;
    const data = [told.at, ...lines.map(([, key, , unit]) => mine[key].map((v) => (v === null ? null : v * unit)))];
    const known = plots.get(place);
    if (known) { known.setData(data); return; }
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false } };
    plots.set(place, new uPlot({
      width: Math.max(place.clientWidth, 200), height: 160,
      legend: { show: false }, cursor: { y: false, drag: { x: false } },
      scales: { y: { range: (u, low, high) => [0, high > 0 ? high * 1.15 : 1] } },
      axes: [{ ...axis, space: 72, size: 30, values: [
        [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1],
      ] }, { ...axis, size: 52 }],
      series: [{}, ...lines.map(([label, , tint], index) => ({
        label, stroke: colour(tint), width: 1.75, dash: [[], [6, 4], [2, 3]][index], points: { show: false }, spanGaps: false,
      }))],
    }, data, place));
  };

  const redraw = () => {
    for (const plot of plots.values()) plot.destroy();
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
