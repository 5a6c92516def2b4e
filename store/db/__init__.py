"""The connection to Postgres: pool, transactions, tenants and row security, roles, TLS, leader election, group commit.

No statement of a subject is in here, only what every subject needs to run one."""
