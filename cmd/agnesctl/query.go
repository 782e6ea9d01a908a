package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// maxSQL is more than an instance takes; its own refusal is the clearer one.
const maxSQL = 1 << 20

const (
	formatCSV     cli.Format = "csv"
	formatNDJSON  cli.Format = "ndjson"
	formatParquet cli.Format = "parquet"
	formatArrow   cli.Format = "arrow"
)

// streamed returns the media type of a format that comes as a stream, or "".
func streamed(f cli.Format) string {
	switch f {
	case formatCSV:
		return api.MediaCSV
	case formatNDJSON:
		return api.MediaNDJSON
	case formatParquet:
		return api.MediaParquet
	case formatArrow:
		return api.MediaArrow
	default:
		return ""
	}
}

func (a *app) queryCommand() *cobra.Command {
	var (
		file   string
		limit  int
		params []string
		format cli.Format
	)
	c := &cobra.Command{
		Use:   "query SQL|-",
		Short: "Run one SELECT statement",
		Long: `Run one SELECT statement. The SQL is the argument, standard input (-) or a file.

table, json and yaml hold at most --limit rows; csv, ndjson, parquet and arrow
stream all rows. A --param is bound to the next ? of the statement: a JSON number,
true, false, null or quoted string is that value, anything else is text.`,
		Example: `  agnesctl instance query 'SELECT count(*) FROM orders'
  agnesctl instance query --file report.sql -o csv >report.csv
  agnesctl instance query 'SELECT * FROM orders WHERE id = ?' --param 42 -o json
  echo 'FROM orders' | agnesctl instance query - -o parquet >orders.parquet`,
		Args: cobra.MaximumNArgs(1),
		RunE: a.does(func(c *cobra.Command, args []string) error {
			sql, err := a.statement(args, file)
			if err != nil {
				return err
			}
			req := api.QueryRequest{SQL: sql, Params: bind(params)}
			media := streamed(format)
			stream := media != ""
			if c.Flags().Changed("limit") {
				if stream {
					return cli.UsageError("-o %s streams all rows; --limit is for table, json and yaml. Put LIMIT into the SQL.", format)
				}
				req.Limit = &limit
			}
			binary := format == formatParquet || format == formatArrow
			if binary && cli.IsTerminal(a.env.Stdout) {
				return cli.UsageError("-o %s is binary and standard output is a terminal; redirect it to a file.", format)
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			if stream {
				out := a.env.Stdout
				if !binary {
					out = cli.SafeWriter(out)
				}
				_, err := client.QueryStream(c.Context(), req, media, out)
				return err
			}
			got, err := client.Query(c.Context(), req)
			if err != nil {
				return err
			}
			if got.Truncated {
				a.note("Only the first %s are shown; raise --limit, or stream all with -o csv.", plural(got.RowCount, "row"))
			}
			return cli.Print(a.env.Stdout, format, got, func(g *cli.Grid) { rowsGrid(g, got) })
		}),
	}
	f := c.Flags()
	f.StringVarP(&file, "file", "f", "", "file that holds the SQL")
	f.IntVar(&limit, "limit", 1000, "most rows of table, json and yaml")
	f.StringArrayVar(&params, "param", nil, "value for the next ? of the statement; repeatable")
	cli.OutputFlag(c, &format, formatCSV, formatNDJSON, formatParquet, formatArrow)
	return c
}

// statement returns the SQL from the one place that was named.
func (a *app) statement(args []string, file string) (string, error) {
	var from io.Reader
	switch {
	case len(args) == 1 && file != "", len(args) == 0 && file == "":
		return "", cli.UsageError("Expected the SQL as one argument, as - for standard input, or as --file.")
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", problem.Wrap(err, problem.Usage, "The file with the SQL cannot be read.", "Check the path: "+file)
		}
		defer func() { _ = f.Close() }()
		from = f
	case args[0] == "-":
		from = a.env.Stdin
	default:
		return args[0], nil
	}
	data, err := io.ReadAll(io.LimitReader(from, maxSQL+1))
	if err != nil {
		return "", problem.Wrap(err, problem.Usage, "The SQL cannot be read.", "")
	}
	if len(data) > maxSQL {
		return "", cli.UsageError("The SQL is longer than %d bytes.", maxSQL)
	}
	return string(data), nil
}

// bind turns the texts of --param into JSON values.
func bind(params []string) []json.RawMessage {
	var out []json.RawMessage
	for _, p := range params {
		var v any
		raw := json.RawMessage(p)
		if json.Unmarshal(raw, &v) != nil || composite(v) {
			quoted, err := json.Marshal(p)
			if err != nil {
				continue // a string always encodes
			}
			raw = quoted
		}
		out = append(out, raw)
	}
	return out
}

func composite(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return true
	}
	return false
}

func rowsGrid(g *cli.Grid, got *api.QueryResponse) {
	cells := make([]any, len(got.Columns))
	for i, c := range got.Columns {
		cells[i] = c
	}
	g.Row(cells...)
	for _, row := range got.Rows {
		cells := make([]any, len(row))
		for i, v := range row {
			cells[i] = text(v)
		}
		g.Row(cells...)
	}
}

// text shows one value of an answer.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case map[string]any, []any:
		encoded, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}
		return string(encoded)
	}
	return fmt.Sprint(v)
}
