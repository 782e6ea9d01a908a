#!/bin/sh
# Takes out of a folder of Python packages what connectors do not import, and
# proves that what they do import still works.
#
#   scripts/slim-pyarrow.sh FOLDER
set -eu
cd "$1"
rm -rf bin pyarrow/tests pyarrow/include pyarrow/src pyarrow/vendored/docscrape.py
find . -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.pyi' -o -name '*.h' -o -name '*.a' -o -name '*.cmake' | xargs rm -f
find . -name __pycache__ -prune -exec rm -rf {} +
# Flight is Arrow's server, Substrait and Gandiva are its query languages, CUDA and ORC other worlds.
rm -f pyarrow/*flight* pyarrow/*substrait* pyarrow/*gandiva* pyarrow/*cuda* pyarrow/libarrow_python_flight* \
	pyarrow/libarrow_flight* pyarrow/libarrow_substrait*
PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 python3 - <<'PROOF'
import duckdb, pyarrow as pa, pyarrow.csv, pyarrow.dataset, pyarrow.json, pyarrow.parquet as pq
table = pa.table({"n": [1, 2, 3], "s": ["a", "b", None]})
pq.write_table(table, "/tmp/proof.parquet", compression="zstd")
assert pq.read_table("/tmp/proof.parquet").equals(table)
assert duckdb.sql("SELECT sum(n) FROM '/tmp/proof.parquet'").fetchone() == (6,)
assert duckdb.sql("SELECT count(s) FROM table").fetchone() == (2,)
PROOF
rm -f /tmp/proof.parquet
