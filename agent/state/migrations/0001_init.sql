-- Ids are UUIDv7 strings, times are UTC, columns named *_json hold JSON text.
-- Only short-lived lookups by id get an index (PRIMARY KEY). Every other rule
-- (unique e-mail, unique source table, one running job) is checked inside the
-- single writer's transaction, because index entries that are deleted and
-- inserted again within one transaction are where DuckDB is fragile.

CREATE TABLE instance (
    key   VARCHAR PRIMARY KEY,
    value VARCHAR NOT NULL
);

CREATE TABLE users (
    id            VARCHAR PRIMARY KEY,
    email         VARCHAR NOT NULL,
    name          VARCHAR NOT NULL,
    role          VARCHAR NOT NULL,
    password_hash VARCHAR NOT NULL,
    disabled      BOOLEAN NOT NULL,
    grants_json   VARCHAR NOT NULL,
    token_epoch   BIGINT NOT NULL,
    created_at    TIMESTAMP NOT NULL,
    updated_at    TIMESTAMP NOT NULL
);

CREATE TABLE tokens (
    id           VARCHAR PRIMARY KEY,
    user_id      VARCHAR NOT NULL,
    name         VARCHAR NOT NULL,
    role         VARCHAR NOT NULL,
    hash         VARCHAR NOT NULL,
    prefix       VARCHAR NOT NULL,
    created_at   TIMESTAMP NOT NULL,
    expires_at   TIMESTAMP,
    last_used_at TIMESTAMP
);

CREATE TABLE revoked_sessions (
    jti        VARCHAR NOT NULL,
    expires_at TIMESTAMP NOT NULL
);

CREATE TABLE table_registry (
    id            VARCHAR PRIMARY KEY,
    source        VARCHAR NOT NULL,
    source_table  VARCHAR NOT NULL,
    description   VARCHAR NOT NULL,
    sync_strategy VARCHAR NOT NULL,
    query_mode    VARCHAR NOT NULL,
    enabled       BOOLEAN NOT NULL,
    created_at    TIMESTAMP NOT NULL,
    updated_at    TIMESTAMP NOT NULL
);

CREATE TABLE jobs (
    id            VARCHAR PRIMARY KEY,
    kind          VARCHAR NOT NULL,
    status        VARCHAR NOT NULL,
    requested_by  VARCHAR NOT NULL,
    request_json  VARCHAR NOT NULL,
    progress      DOUBLE NOT NULL,
    sources_json  VARCHAR NOT NULL,
    tables_json   VARCHAR NOT NULL,
    warnings_json VARCHAR NOT NULL,
    error         VARCHAR NOT NULL,
    hint          VARCHAR NOT NULL,
    created_at    TIMESTAMP NOT NULL,
    started_at    TIMESTAMP,
    ended_at      TIMESTAMP
);

CREATE TABLE audit (
    id          VARCHAR NOT NULL,
    happened_at TIMESTAMP NOT NULL,
    actor       VARCHAR NOT NULL,
    actor_id    VARCHAR NOT NULL,
    action      VARCHAR NOT NULL,
    target      VARCHAR NOT NULL,
    outcome     VARCHAR NOT NULL,
    detail_json VARCHAR NOT NULL,
    remote      VARCHAR NOT NULL
);
