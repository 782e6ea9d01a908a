package query

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// explain turns any failure of a query into a problem.Error for the caller.
// DuckDB's messages on the caller's own SQL are passed on; those that could
// name files of the instance are not.
func explain(ctx context.Context, req Request, err error) error {
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return p
	}
	if errors.Is(context.Cause(ctx), errDeadline) {
		return problem.Wrap(err, problem.Timeout,
			fmt.Sprintf("The query was stopped after %s.", req.Timeout),
			"Narrow it with WHERE or LIMIT, or aggregate before joining.").WithCode("query_timeout")
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d, ok := errors.AsType[*duckdb.Error](err)
	if !ok {
		return err
	}
	if d.Type == duckdb.ErrorTypeOutOfMemory {
		return problem.Wrap(err, problem.TooLarge, "The query needs more memory than one query may use.",
			"Select fewer columns or rows, or aggregate before joining or sorting.").WithCode("query_too_large")
	}
	if namesFiles(req, d.Msg) {
		return problem.Wrap(err, problem.Invalid, "The statement needs something outside the database, which is switched off.",
			"Query the tables of GET /api/catalog/tables only.").WithCode("invalid_sql")
	}
	switch d.Type {
	case duckdb.ErrorTypeInternal, duckdb.ErrorTypeFatal, duckdb.ErrorTypeIO, duckdb.ErrorTypePermission:
		return problem.Wrap(err, problem.Invalid, "DuckDB could not run the statement.",
			"Try it in smaller parts; the instance's log has the details.").WithCode("invalid_sql")
	}
	return problem.Wrap(err, problem.Invalid, d.Msg, "Mend the statement and send it again; GET /api/catalog/tables/{id} lists a table's columns.").WithCode("invalid_sql")
}

// namesFiles reports whether a message shows where the instance keeps its data.
func namesFiles(req Request, msg string) bool {
	for _, v := range req.Views {
		for _, f := range v.Files {
			if strings.Contains(msg, f) {
				return true
			}
		}
	}
	return strings.Contains(msg, "file system operations are disabled")
}

// broken reports whether the database must not be used again.
func broken(err error) bool {
	d, ok := errors.AsType[*duckdb.Error](err)
	return ok && (d.Type == duckdb.ErrorTypeFatal || d.Type == duckdb.ErrorTypeInternal)
}
