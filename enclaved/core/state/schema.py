"""The tables, version by version. A version that was released never changes: what comes later is a migration."""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x656E636C
"""Says in the file's header that the database is ours ("encl")."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE sandboxes (
            id TEXT PRIMARY KEY,
            number INTEGER NOT NULL,
            spec TEXT NOT NULL,
            adjustments TEXT NOT NULL,
            labels TEXT NOT NULL,
            uid INTEGER NOT NULL,
            directory TEXT NOT NULL,
            container_id TEXT,
            image TEXT NOT NULL,
            env TEXT NOT NULL,
            state TEXT NOT NULL,
            state_reason TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            expires_monotonic_s REAL NOT NULL,
            boot_id TEXT NOT NULL,
            pool_id TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE executions (
            id TEXT PRIMARY KEY,
            sandbox_id TEXT NOT NULL,
            created_at TEXT NOT NULL,
            body TEXT NOT NULL,
            finished TEXT
        ) WITHOUT ROWID
        """,
    ),
    (
        "ALTER TABLE sandboxes ADD COLUMN tenant TEXT NOT NULL DEFAULT 'default'",
        "ALTER TABLE sandboxes ADD COLUMN request_id TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sandboxes ADD COLUMN request_digest TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sandboxes ADD COLUMN revision INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE sandboxes ADD COLUMN used_monotonic_s REAL NOT NULL DEFAULT 0",
        "ALTER TABLE sandboxes ADD COLUMN limits_due INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE sandboxes ADD COLUMN history TEXT NOT NULL DEFAULT '[]'",
        "UPDATE sandboxes SET state = 'deleting' WHERE state = 'stopping'",
        """
        CREATE TABLE sandbox_changes (
            revision INTEGER PRIMARY KEY,
            sandbox_id TEXT NOT NULL,
            body TEXT NOT NULL
        )
        """,
        """
        CREATE TABLE ended_requests (
            tenant TEXT NOT NULL,
            request_id TEXT NOT NULL,
            request_digest TEXT NOT NULL,
            sandbox_id TEXT NOT NULL,
            ended_at TEXT NOT NULL,
            PRIMARY KEY (tenant, request_id)
        ) WITHOUT ROWID
        """,
    ),
    (
        """
        CREATE TABLE pools (
            id TEXT PRIMARY KEY,
            created_at TEXT NOT NULL,
            body TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE pool_members (
            pool_id TEXT NOT NULL,
            slot INTEGER NOT NULL,
            sandbox_id TEXT NOT NULL,
            number INTEGER NOT NULL,
            body TEXT NOT NULL,
            PRIMARY KEY (pool_id, slot)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE leases (
            pool_id TEXT NOT NULL,
            place INTEGER NOT NULL,
            number INTEGER NOT NULL,
            body TEXT NOT NULL,
            PRIMARY KEY (pool_id, place)
        ) WITHOUT ROWID
        """,
    ),
    (
        "ALTER TABLE sandboxes ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sandboxes ADD COLUMN waived TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE sandboxes ADD COLUMN command_execution_id TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sandboxes ADD COLUMN published_ports TEXT NOT NULL DEFAULT '[]'",
    ),
    (
        "ALTER TABLE sandboxes ADD COLUMN gid INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE sandboxes ADD COLUMN command_due INTEGER NOT NULL DEFAULT 0",
    ),
)
"""The statements that lead from each version to the next; the first make version 1.

Each table is one tree, without a second one for its ids: short executions make thousands of changes a second.
"""
