package query

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	duckdb "github.com/duckdb/duckdb-go-bindings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

var errDeadline = errors.New("the query's time is up")

// checkText refuses what is no statement before a worker sees it.
func checkText(sql string) error {
	if len(sql) > MaxSQL {
		return problem.New(problem.TooLarge,
			fmt.Sprintf("The statement has %d bytes; expected at most %d.", len(sql), MaxSQL),
			"Pass long lists of values as params, or split the statement.").WithCode("sql_too_long")
	}
	if !utf8.ValidString(sql) || strings.ContainsRune(sql, 0) {
		return problem.New(problem.Invalid, "The statement is not valid UTF-8 text.", "Send the SQL as UTF-8 without NUL characters.").WithCode("invalid_sql")
	}
	return nil
}

func answerTooLarge(most int64) error {
	return problem.New(problem.TooLarge, fmt.Sprintf("The answer is larger than %d bytes.", most),
		"Select fewer columns or rows, or aggregate.").WithCode("answer_too_large")
}

func tooManyWaiting() error {
	p := problem.New(problem.RateLimited, fmt.Sprintf("%d of your queries wait for their turn already, which is as many as may.", mostWaiting),
		"Send the next one when some have been answered; limits.concurrent of GET /api/health/details says how many run at once.").WithCode("too_many_queries")
	p.RetryAfter = 5 * time.Second
	return p
}

// explainWait is explain for a statement that never ran.
func explainWait(ctx context.Context, req Request, err error) error {
	if errors.Is(context.Cause(ctx), errDeadline) {
		return problem.Wrap(err, problem.Timeout, fmt.Sprintf("The query did not get its turn within %s.", req.Timeout),
			"Send it again when others have ended; limits.concurrent of GET /api/health/details says how many of yours run at once.").WithCode("query_timeout")
	}
	return explain(ctx, req, err)
}

// fatal reports whether the worker must not be used again. One that ran out of
// memory may fail the next statement, whoever sends it, when its own runtime is
// refused a page.
func (e *workerError) fatal() bool {
	return e.Kind == "" && (e.Type == int(duckdb.ErrorTypeFatal) || e.Type == int(duckdb.ErrorTypeInternal) || e.outOfMemory())
}

func (e *workerError) outOfMemory() bool {
	return e.Type == int(duckdb.ErrorTypeOutOfMemory) || strings.Contains(e.Message, "Out of Memory") || strings.Contains(e.Message, "std::bad_alloc")
}

// explain turns any failure of a query into a problem.Error for the caller.
// DuckDB's messages on the caller's own SQL are passed on; those that could
// name files of the instance are not.
func explain(ctx context.Context, req Request, err error) error {
	if errors.Is(context.Cause(ctx), errDeadline) {
		return problem.Wrap(err, problem.Timeout,
			fmt.Sprintf("The query was stopped after %s.", req.Timeout),
			"Narrow it with WHERE or LIMIT, or aggregate before joining.").WithCode("query_timeout")
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return p
	}
	if sink, ok := errors.AsType[*sinkError](err); ok {
		return sink
	}
	e, ok := errors.AsType[*workerError](err)
	if !ok {
		return problem.Wrap(err, problem.TooLarge, "The query ended the process that ran it; most often it needs more memory than one query may use.",
			"Select fewer columns or rows, or aggregate before joining or sorting.").WithCode("query_crashed")
	}
	if e.Kind != "" {
		return problem.New(problem.Kind(e.Kind), e.Message, e.Hint).WithCode(e.Code)
	}
	return explainDuckDB(req, e)
}

func explainDuckDB(req Request, e *workerError) error {
	switch {
	case e.outOfMemory():
		return problem.Wrap(e, problem.TooLarge, "The query needs more memory than one query may use.",
			"Select fewer columns or rows, or aggregate before joining or sorting.").WithCode("query_too_large")
	case namesFiles(req, e.Message):
		return problem.Wrap(e, problem.Invalid, "The statement needs something outside the database, which is switched off.",
			"Query the tables of GET /api/catalog/tables only.").WithCode("invalid_sql")
	}
	switch duckdb.ErrorType(e.Type) {
	case duckdb.ErrorTypeInternal, duckdb.ErrorTypeFatal, duckdb.ErrorTypeErrorIO, duckdb.ErrorTypePermission:
		return problem.Wrap(e, problem.Invalid, "DuckDB could not run the statement.",
			"Try it in smaller parts; the instance's log has the details.").WithCode("invalid_sql")
	}
	return problem.Wrap(e, problem.Invalid, e.Message, "Mend the statement and send it again; GET /api/catalog/tables/{id} lists a table's columns.").WithCode("invalid_sql")
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
	return strings.Contains(msg, "file system operations are disabled") || strings.Contains(msg, streamPath())
}
