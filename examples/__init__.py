"""Programs of users: each folder is one, with a README. They use a running Headrace, or start one themselves."""
