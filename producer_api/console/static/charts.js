// Small charts of the last ten minutes, drawn by uPlot. A chart is a picture: its figures stand beside it as text.

import { html, useEffect, useRef } from "./vendor/htm-preact.js";
import uPlot from "./vendor/uplot.js";

const SPAN_S = 600;
// While less is known, what is known fills the picture, from two minutes on.
const LEAST_S = 120;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function options(element, lines, most) {
  return {
    width: element.clientWidth,
    height: element.clientHeight,
    padding: [4, 0, 0, 0],
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time: false, range: (_plot, low, high) => [Math.max(high - SPAN_S, Math.min(low, high - LEAST_S)), high] },
      y: { range: (_plot, _low, high) => [0, Math.max(most, (high || 0) * 1.15)] },
    },
    axes: [{ show: false }, { show: false }],
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

// `lines`: [{name: a CSS colour variable, fill}], `data`: [times, values, ...]; null values are gaps.
export function Chart({ lines, data, most = 1, label }) {
  const place = useRef(null);
  const plot = useRef(null);
  useEffect(() => {
    plot.current = new uPlot(options(place.current, lines, most), data, place.current);
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
  return html`<div class="chart" role="img" aria-label=${label}><div ref=${place}></div></div>`;
}
