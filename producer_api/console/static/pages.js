// The pages by the first part of their address. Without a title a page is not in the navigation.

import { JobPage } from "./job_page.js";
import { JobsPage } from "./jobs_page.js";
import { LivePage } from "./live_page.js";

export const PAGES = [
  { name: "live", title: "Live", view: LivePage },
  { name: "jobs", title: "Jobs", view: JobsPage },
  { name: "job", title: null, heading: "Job", within: "jobs", view: JobPage },
];
