// How far a version is from its reference: one line beside the version.

import { html } from "./vendor/htm-preact.js";

export function QualityLine({ known }) {
  const found = known?.verification;
  if (!found) return null;
  if (!found.quality) return found.not_measured ? html`<div class="small muted">quality not measured: ${found.not_measured}</div>` : null;
  const { against, agreement, kl, perplexity, reference_perplexity: of } = found.quality;
  return html`<div class="small muted">
    ${(100 * agreement).toFixed(1)} % of the next tokens of ${against}, KL ${kl.toFixed(4)}, perplexity × ${(perplexity / of).toFixed(3)}
  </div>`;
}
