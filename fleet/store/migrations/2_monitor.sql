-- What the monitor knows of each instance, for the next one that goes on.
CREATE TABLE instance (
  name TEXT PRIMARY KEY,
  seen INTEGER NOT NULL,
  doc  BLOB NOT NULL
) STRICT;
