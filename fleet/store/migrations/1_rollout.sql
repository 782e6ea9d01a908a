-- A rollout is one document; orders are what people want of it while it runs.
CREATE TABLE rollout (
  id      TEXT PRIMARY KEY,
  started INTEGER NOT NULL, -- microseconds since 1970, as every time here
  state   TEXT NOT NULL,
  doc     BLOB NOT NULL
) STRICT;
CREATE INDEX rollout_started ON rollout (started);
CREATE TABLE rollout_order (
  seq      INTEGER PRIMARY KEY AUTOINCREMENT,
  rollout  TEXT NOT NULL REFERENCES rollout (id),
  at       INTEGER NOT NULL,
  by       TEXT NOT NULL,
  verb     TEXT NOT NULL
) STRICT;
-- Who holds a lease may write; everybody else finds the nonce changed.
CREATE TABLE lease (
  name    TEXT PRIMARY KEY,
  owner   TEXT NOT NULL,
  nonce   TEXT NOT NULL,
  since   INTEGER NOT NULL,
  expires INTEGER NOT NULL
) STRICT;
