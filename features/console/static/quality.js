// Quality reports of versions: one line beside a version, and bars for all versions of a model.

import { html, useState } from "./vendor/htm-preact.js";
import { text } from "./api.js";
import { tell } from "./ui.js";

export function QualityLine({ known }) {
  const found = known?.verification;
  if (!found) return null;
  if (!found.quality) return found.not_measured ? html`<div class="small muted">quality not measured: ${found.not_measured}</div>` : null;
  const { against, agreement, kl, version, reference, same_answers: same, num_answers: all } = found.quality;
  if (agreement === null) return html`<div class="small muted">${same} of ${all} continuations as ${against}</div>`;
  const ratio = version.perplexity / reference.perplexity;
  return html`<div class="small muted">
    ${(100 * agreement).toFixed(1)} % of the next tokens of ${against}, KL ${kl.toFixed(4)}, perplexity × ${ratio.toFixed(3)}
  </div>`;
}

export function QualityPlots({ models }) {
  const measured = models.filter((model) => model.known?.verification?.quality).map((model) => model.root);
  const names = [...new Set(measured)];
  if (names.length === 0) return null;
  return html`<h2>Quality</h2>${names.map((name) => html`<${Plot} key=${name} name=${name} />`)}`;
}

function Plot({ name }) {
  const [plot, setPlot] = useState(null);
  const draw = async () => {
    try {
      setPlot(plot === null ? await text(`models/${name}/quality_plot`) : null);
    } catch (error) {
      tell(error.message);
    }
  };
  return html`<p>
    <button type="button" onClick=${draw}>${plot === null ? "Draw" : "Hide"} the quality of ${name}</button>
    ${plot === null ? null : html`<img alt=${`Quality and speed of the versions of ${name}`} src=${`data:image/svg+xml,${encodeURIComponent(plot)}`} />`}
  </p>`;
}
