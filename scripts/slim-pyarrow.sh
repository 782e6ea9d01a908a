#!/bin/sh
# Takes out of a folder of Python packages what connectors do not import, and
# proves that what they do import still works.
#
#   scripts/slim-pyarrow.sh FOLDER DUCKDB-VERSION PYARROW-VERSION
set -eu
cd "$1"
rm -rf bin pyarrow/tests pyarrow/include pyarrow/src
find . -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.pyi' -o -name '*.h' -o -name '*.a' -o -name '*.cmake' | xargs rm -f
find . -name __pycache__ -prune -exec rm -rf {} +
# Flight is Arrow's server; ORC, HDFS and Gandiva are other worlds. What other
# names a library has beside the one that is loaded are copies in a wheel.
rm -f pyarrow/*flight* pyarrow/*gandiva* pyarrow/*cuda* pyarrow/_orc* pyarrow/orc.py pyarrow/_hdfs* pyarrow/_substrait* pyarrow/substrait.py
for lib in pyarrow/lib*.so.*.*.*; do
	[ -e "$lib" ] && rm -f "$lib" "${lib%%.so.*}.so"
done
find . -name '*.so*' -type f -exec strip --strip-unneeded {} +
PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 python3 - "$2" "$3" <<'PROOF'
import sys
import duckdb, pyarrow as pa, pyarrow.csv, pyarrow.dataset, pyarrow.json, pyarrow.parquet as pq
found = (duckdb.sql("SELECT version()").fetchone()[0], pa.__version__)
assert found == ("v" + sys.argv[1], sys.argv[2]), found
extract = pa.table({"n": [1, 2, 3], "s": ["a", "b", None]})
pq.write_table(extract, "/tmp/proof.parquet", compression="zstd")
assert pq.read_table("/tmp/proof.parquet").equals(extract)
assert duckdb.sql("SELECT sum(n) FROM '/tmp/proof.parquet'").fetchone() == (6,)
assert duckdb.sql("SELECT count(s) FROM extract").fetchone() == (2,)
PROOF
rm -f /tmp/proof.parquet
