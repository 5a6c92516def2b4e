// Small charts of the last ten minutes, drawn by uPlot. A chart is a picture: its figures stand beside it as text.
// Its scale is text as well: the value at the top, and the times of both ends.

import { html, useEffect, useRef } from "./vendor/htm-preact.js";
import uPlot from "./vendor/uplot.js";
import { clock } from "./format.js";

const SPAN_S = 600;
// While less is known, what is known fills the picture, from two minutes on.
const LEAST_S = 120;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const ROUND = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10];

// The value at the top: a round one that is not below the highest of the data, and not below `least`.
function topOf(highest, least) {
  const value = Math.max(highest, least);
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ROUND.find((one) => one * power >= value * 0.999999);
}

const highestOf = (data) => data.slice(1).flat().reduce((most, value) => Math.max(most, value ?? 0), 0);
const spanOf = (low, high) => [Math.max(high - SPAN_S, Math.min(low, high - LEAST_S)), high];

function options(element, lines, least) {
  return {
    width: element.clientWidth,
    height: element.clientHeight,
    padding: [1, 0, 1, 0],
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time: false, range: (_plot, low, high) => spanOf(low, high) },
      y: { range: (_plot, _low, high) => [0, topOf(high || 0, least)] },
    },
    axes: [
      { show: false },
      {
        size: 0, gap: 0, ticks: { show: false }, values: () => [],
        splits: (_plot, _axis, low, high) => [low, high / 2, high], grid: { stroke: () => colour("--line"), width: 1 },
      },
    ],
    series: [
      {},
      ...lines.map(({ name, fill }) => ({
        stroke: () => colour(name),
        fill: fill ? () => `color-mix(in srgb, ${colour(name)} 16%, transparent)` : undefined,
        width: 1.75,
        points: { show: false },
      })),
    ],
  };
}

// `lines`: [{name: a CSS colour variable, fill}], `data`: [times, values, ...]; null values are gaps. `tell` returns a
// value as text.
export function Chart({ lines, data, least = 1, label, tell }) {
  const place = useRef(null);
  const plot = useRef(null);
  useEffect(() => {
    plot.current = new uPlot(options(place.current, lines, least), data, place.current);
    const resized = new ResizeObserver(() => {
      plot.current.setSize({ width: place.current.clientWidth, height: place.current.clientHeight });
    });
    resized.observe(place.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => plot.current.redraw(false);
    scheme.addEventListener("change", redraw);
    return () => {
      resized.disconnect();
      scheme.removeEventListener("change", redraw);
      plot.current.destroy();
    };
  }, []);
  useEffect(() => plot.current.setData(data), [data]);
  const times = data[0];
  const [from, to] = times.length === 0 ? [null, null] : spanOf(times[0], times[times.length - 1]);
  return html`<div class="chart" role="img" aria-label=${label}>
    <div ref=${place}></div>
    ${from !== null && html`
      <span>${tell(topOf(highestOf(data), least))}</span>
      <span>0</span>
      <span>${clock(from).slice(0, 5)}</span>
      <span>${clock(to).slice(0, 5)}</span>`}
  </div>`;
}
