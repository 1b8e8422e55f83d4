-- Schema 1 of index.db. Described in docs/formats/store-layout.md; keep the two in step.
CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', 1), ('synced_epoch', 0), ('written_epoch', 0);

CREATE TABLE layers (
  id        TEXT PRIMARY KEY,
  tree      BLOB,
  diff_id   TEXT,
  bytes     INTEGER NOT NULL,
  entries   INTEGER NOT NULL,
  last_used INTEGER NOT NULL,
  epoch     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_by_diff_id ON layers (diff_id) WHERE diff_id IS NOT NULL;
CREATE INDEX layers_by_tree ON layers (tree) WHERE tree IS NOT NULL;

CREATE TABLE compressed (
  diff_id     TEXT NOT NULL,
  digest      TEXT NOT NULL,
  compression TEXT NOT NULL,
  descriptor  TEXT NOT NULL,
  PRIMARY KEY (diff_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX compressed_by_digest ON compressed (digest);

CREATE TABLE blobs (
  digest    TEXT PRIMARY KEY,
  size      INTEGER NOT NULL,
  last_used INTEGER NOT NULL,
  epoch     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sources (
  digest     TEXT NOT NULL,
  registry   TEXT NOT NULL,
  repository TEXT NOT NULL,
  seen       INTEGER NOT NULL,
  PRIMARY KEY (digest, registry, repository)
) STRICT, WITHOUT ROWID;

CREATE TABLE records (
  key         BLOB PRIMARY KEY,
  op          BLOB NOT NULL,
  result      BLOB NOT NULL,
  ingredients BLOB NOT NULL,
  created     INTEGER NOT NULL,
  last_used   INTEGER NOT NULL,
  epoch       INTEGER NOT NULL
) STRICT;
CREATE INDEX records_by_op ON records (op, created);

CREATE TABLE record_layers (
  key      BLOB NOT NULL REFERENCES records (key) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  layer    TEXT NOT NULL,
  PRIMARY KEY (key, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX record_layers_by_layer ON record_layers (layer);

CREATE TABLE images (
  id        TEXT PRIMARY KEY,
  manifest  TEXT,
  created   TEXT,
  added     INTEGER NOT NULL,
  last_used INTEGER NOT NULL,
  epoch     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE image_layers (
  image    TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  diff_id  TEXT NOT NULL,
  PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layers_by_diff_id ON image_layers (diff_id);

CREATE TABLE image_blobs (
  image  TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  digest TEXT NOT NULL,
  PRIMARY KEY (image, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_blobs_by_digest ON image_blobs (digest);

CREATE TABLE names (
  name    TEXT PRIMARY KEY,
  image   TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  updated INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX names_by_image ON names (image);

CREATE TABLE leases (
  id      TEXT PRIMARY KEY,
  expires INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE lease_items (
  lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
  kind  TEXT NOT NULL CHECK (kind IN ('blob', 'image', 'layer')),
  name  TEXT NOT NULL,
  PRIMARY KEY (lease, kind, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_items_by_name ON lease_items (kind, name);
