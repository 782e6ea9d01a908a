//go:build !duckdb_arrow

package query

import (
	duckdb "github.com/duckdb/duckdb-go-bindings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// newArrow: the driver has its conversion to Arrow behind a build tag.
func newArrow(duckdb.Connection, startMessage, []duckdb.LogicalType, *output) (encoder, error) {
	return nil, problem.New(problem.Unprocessable, "This build of agnes cannot write Arrow.",
		"Ask for another format, or build agnes with make build, which sets -tags duckdb_arrow.").WithCode("no_arrow")
}
