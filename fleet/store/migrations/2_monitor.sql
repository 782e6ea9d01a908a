-- What the monitor knows of each instance, for the next one that goes on. The row
-- without a name is about the monitor itself.
CREATE TABLE instance (
  name TEXT PRIMARY KEY,
  seen INTEGER NOT NULL, -- microseconds since 1970, as every time here
  doc  BLOB NOT NULL
) STRICT;

-- A change is known by what it says, so that one that is written twice is one.
CREATE TABLE change (
  seq     INTEGER PRIMARY KEY AUTOINCREMENT,
  name    TEXT NOT NULL,
  at      INTEGER NOT NULL,
  what    TEXT NOT NULL, -- health, version
  was     TEXT NOT NULL,
  is_now  TEXT NOT NULL,
  version TEXT NOT NULL,
  reason  TEXT NOT NULL,
  UNIQUE (name, what, at)
) STRICT;
CREATE INDEX change_at ON change (at);

CREATE TABLE incident (
  id       TEXT PRIMARY KEY,
  name     TEXT NOT NULL,
  kind     TEXT NOT NULL,
  opened   INTEGER NOT NULL,
  closed   INTEGER,
  summary  TEXT NOT NULL,
  hint     TEXT NOT NULL,
  ending   TEXT NOT NULL DEFAULT '',
  silenced TEXT NOT NULL DEFAULT '' -- why nobody was told
) STRICT;
CREATE INDEX incident_name ON incident (name, opened);
CREATE INDEX incident_opened ON incident (opened);
CREATE INDEX incident_open ON incident (opened) WHERE closed IS NULL;

-- A message is what a channel is sent at once: its id never changes.
CREATE TABLE message (
  id       TEXT PRIMARY KEY,
  channel  TEXT NOT NULL,
  made     INTEGER NOT NULL,
  thread   TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  next     INTEGER NOT NULL,
  state    TEXT NOT NULL DEFAULT 'pending', -- pending, sent, refused
  ended    INTEGER,
  link     TEXT NOT NULL DEFAULT '',
  error    TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX message_pending ON message (channel, made) WHERE state = 'pending';
CREATE INDEX message_ended ON message (ended);

-- The outbox is what has to be said, once to each channel.
CREATE TABLE outbox (
  seq      INTEGER PRIMARY KEY AUTOINCREMENT,
  incident TEXT NOT NULL REFERENCES incident (id) ON DELETE CASCADE,
  event    TEXT NOT NULL, -- opened, closed
  channel  TEXT NOT NULL,
  made     INTEGER NOT NULL,
  message  TEXT REFERENCES message (id),
  UNIQUE (incident, event, channel)
) STRICT;
CREATE INDEX outbox_waiting ON outbox (channel, seq) WHERE message IS NULL;
CREATE INDEX outbox_message ON outbox (message);

CREATE TABLE latency (
  hour  INTEGER NOT NULL,
  name  TEXT NOT NULL,
  count INTEGER NOT NULL,
  p50   INTEGER NOT NULL, -- microseconds
  p95   INTEGER NOT NULL,
  max   INTEGER NOT NULL,
  PRIMARY KEY (hour, name)
) STRICT, WITHOUT ROWID;

-- When a monitor watched: what is known of an instance's time.
CREATE TABLE life (
  began INTEGER PRIMARY KEY,
  until INTEGER NOT NULL
) STRICT;
CREATE INDEX life_until ON life (until);
