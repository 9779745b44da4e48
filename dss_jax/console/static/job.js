// The page of a job: its curves, its log and its state move while it runs.
"use strict";

(() => {
  const MOST_LOG_LINES = 5000;
  const job = document.getElementById("job");
  const log = document.getElementById("log");
  const note = document.getElementById("curves-note");
  const figures = Array.from(document.querySelectorAll(".chart"));
  const curves = {};
  let plots = [];

  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const figure = value => value == null ? "–"
    : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();

  // uPlot wants one axis of steps for both curves; where a curve has no point, it has null.
  function aligned(train, evaluation) {
    const steps = Array.from(new Set([...train[0], ...evaluation[0]])).sort((a, b) => a - b);
    const on = ([own, values]) => {
      const at = new Map(own.map((step, i) => [step, values[i]]));
      return steps.map(step => at.has(step) ? at.get(step) : null);
    };
    return [steps, on(train), on(evaluation)];
  }

  const dataOf = element => aligned(curves[element.dataset.train], curves[element.dataset.eval]);

  function draw() {
    plots.forEach(plot => plot.destroy());
    const axis = {
      stroke: style("--muted"), font: "12px system-ui, sans-serif",
      grid: {stroke: style("--line"), width: 1}, ticks: {stroke: style("--line"), width: 1},
    };
    const series = (label, color, points) => ({
      label, stroke: color, width: 2, spanGaps: true, points: {show: points, size: 6, fill: color},
    });
    plots = figures.map(element => {
      const place = element.querySelector(".plot");
      const names = [element.dataset.train, element.dataset.eval];
      const options = {
        width: place.clientWidth, height: 220, legend: {show: false}, cursor: {drag: {x: true, y: false}},
        scales: {x: {time: false}},
        axes: [{...axis, label: "step", labelSize: 20, size: 36, labelFont: axis.font}, {...axis, size: 56}],
        series: [
          {label: "step"},
          series("training", style("--series-1"), undefined),
          series("evaluation", style("--series-2"), true),
        ],
        hooks: {setCursor: [plot => names.forEach((name, i) => {
          const at = plot.cursor.idx;
          const value = at == null ? null : plot.data[i + 1][at];
          element.querySelector(`[data-now="${name}"]`).textContent = value == null ? "" : figure(value);
        })]},
      };
      return new uPlot(options, dataOf(element), place);
    });
  }

  function update() {
    plots.forEach((plot, i) => plot.setData(dataOf(figures[i])));
    for (const [name, [steps, values]] of Object.entries(curves)) {
      if (!steps.length) continue;
      for (const cell of document.querySelectorAll(`[data-value="${name}"]`)) {
        cell.textContent = figure(values[values.length - 1]);
      }
      for (const cell of document.querySelectorAll(`[data-step="${name}"]`)) {
        cell.textContent = steps[steps.length - 1].toLocaleString("en");
      }
      const progress = document.getElementById("progress");
      if (progress && name === progress.dataset.of) progress.value = steps[steps.length - 1];
    }
  }

  let isWaiting = false;
  function updateSoon() {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; update(); });
  }

  function addMetrics(line) {
    let values;
    try { values = JSON.parse(line); } catch { return; }
    for (const [name, [steps, points]] of Object.entries(curves)) {
      if (typeof values[name] !== "number") continue;
      // A run that resumes takes steps again.
      while (steps.length && steps[steps.length - 1] >= values.step) { steps.pop(); points.pop(); }
      steps.push(values.step);
      points.push(values[name]);
    }
    updateSoon();
  }

  function addLog(line) {
    const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 30;
    log.append(line + "\n");
    while (log.childNodes.length > MOST_LOG_LINES) log.firstChild.remove();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  function watch(place) {
    let first = true;
    const events = new EventSource(`${job.dataset.url}:watch?after=${job.dataset.logPlace}.${place}`);
    events.addEventListener("log", event => addLog(event.data));
    events.addEventListener("metrics", event => addMetrics(event.data));
    events.addEventListener("state", event => {
      const {state} = JSON.parse(event.data);
      const hasEnded = ["SUCCEEDED", "FAILED", "CANCELLED"].includes(state);
      if (hasEnded) events.close();
      // The page that was just loaded has this state.
      if (!first || hasEnded !== (document.getElementById("state").dataset.ended === "yes")) {
        htmx.trigger(job, "job-changed");
        document.getElementById("said").textContent = `The job is now ${state.toLowerCase()}.`;
      }
      first = false;
      if (hasEnded) note.textContent = "As they were at the end.";
    });
  }

  log.scrollTop = log.scrollHeight;
  fetch(`${job.dataset.url}:curves`).then(async response => {
    // An encrypted job without its key has none; the page says so.
    if (!response.ok) return;
    const found = await response.json();
    Object.assign(curves, found.curves);
    draw();
    update();
    watch(found.place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    new ResizeObserver(() => plots.forEach((plot, i) => {
      plot.setSize({width: figures[i].querySelector(".plot").clientWidth, height: 220});
    })).observe(document.getElementById("charts"));
  });
})();
