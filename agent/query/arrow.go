//go:build duckdb_arrow

package query

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// arrowEncoder writes an Arrow IPC stream from DuckDB's own conversion.
type arrowEncoder struct {
	options duckdb.ArrowOptions
	schema  *arrow.Schema
	writer  *ipc.Writer
}

func newArrow(conn duckdb.Connection, head startMessage, types []duckdb.LogicalType, out *output) (encoder, error) {
	a := &arrowEncoder{}
	duckdb.ConnectionGetArrowOptions(conn, &a.options)
	schema, errData := duckdb.NewArrowSchema(a.options, types, head.Columns)
	if err := errorData(errData); err != nil {
		return nil, err
	}
	a.schema = schema
	a.writer = ipc.NewWriter(out, ipc.WithSchema(schema))
	return a, nil
}

func errorData(e duckdb.ErrorData) error {
	defer duckdb.DestroyErrorData(&e)
	if duckdb.ErrorDataHasError(e) {
		return &workerError{Message: duckdb.ErrorDataMessage(e), Type: int(duckdb.ErrorDataErrorType(e))}
	}
	return nil
}

func (a *arrowEncoder) begin() error { return nil }

func (a *arrowEncoder) rows(chunk duckdb.DataChunk, n int) error {
	batch, errData := duckdb.DataChunkToArrowArray(a.options, a.schema, chunk)
	if err := errorData(errData); err != nil {
		return err
	}
	defer batch.Release()
	if int64(n) < batch.NumRows() {
		cut := batch.NewSlice(0, int64(n))
		defer cut.Release()
		return a.writer.Write(cut)
	}
	return a.writer.Write(batch)
}

func (a *arrowEncoder) end() error {
	duckdb.DestroyArrowOptions(&a.options)
	return a.writer.Close()
}
