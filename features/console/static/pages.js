// The pages by the first part of their address. Without a title a page is not in the navigation. A page's script is
// loaded when the page is first opened.

export const PAGES = [
  { name: "live", title: "Live", load: () => import("./live_page.js") },
  { name: "jobs", title: "Jobs", load: () => import("./jobs_page.js") },
  { name: "job", title: null, heading: "Job", within: "jobs", load: () => import("./job_page.js") },
  { name: "playground", title: "Playground", load: () => import("./playground_page.js") },
  { name: "models", title: "Models", load: () => import("./models_page.js") },
  { name: "batches", title: "Batches", load: () => import("./batches_page.js") },
  { name: "webhooks", title: "Webhooks", load: () => import("./webhooks_page.js") },
  { name: "dead-letters", title: "Dead letters", load: () => import("./dead_letters_page.js") },
  { name: "keys", title: "Keys and limits", load: () => import("./keys_page.js") },
  { name: "usage", title: "Usage", load: () => import("./usage_page.js") },
  { name: "audit", title: "Audit", load: () => import("./audit_page.js") },
];
