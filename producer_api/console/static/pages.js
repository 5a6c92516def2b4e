// The pages by the first part of their address. Without a title a page is not in the navigation.

import { AuditPage } from "./audit_page.js";
import { BatchesPage } from "./batches_page.js";
import { DeadLettersPage } from "./dead_letters_page.js";
import { JobPage } from "./job_page.js";
import { JobsPage } from "./jobs_page.js";
import { KeysPage } from "./keys_page.js";
import { LivePage } from "./live_page.js";
import { ModelsPage } from "./models_page.js";
import { PlaygroundPage } from "./playground_page.js";
import { WebhooksPage } from "./webhooks_page.js";

export const PAGES = [
  { name: "live", title: "Live", view: LivePage },
  { name: "jobs", title: "Jobs", view: JobsPage },
  { name: "job", title: null, heading: "Job", within: "jobs", view: JobPage },
  { name: "playground", title: "Playground", view: PlaygroundPage },
  { name: "models", title: "Models", view: ModelsPage },
  { name: "batches", title: "Batches", view: BatchesPage },
  { name: "webhooks", title: "Webhooks", view: WebhooksPage },
  { name: "dead-letters", title: "Dead letters", view: DeadLettersPage },
  { name: "keys", title: "Keys and limits", view: KeysPage },
  { name: "audit", title: "Audit", view: AuditPage },
];
