"""What the API and the workers share: settings, errors, payloads, tables, and every word said to Postgres and Redis."""
