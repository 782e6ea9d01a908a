package query

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strings"

	duckdb "github.com/duckdb/duckdb-go-bindings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// stream runs a prepared statement and sends its rows as they come. DuckDB
// computes no more than what the server has taken: a slow reader slows it.
func (w *worker) stream(stmt duckdb.PreparedStatement, m queryMessage, tables []string) (endMessage, error) {
	var pending duckdb.PendingResult
	defer duckdb.DestroyPending(&pending)
	if duckdb.PendingPreparedStreaming(stmt, &pending) == duckdb.StateError {
		return endMessage{}, &workerError{Message: duckdb.PendingError(pending), Type: int(duckdb.ErrorTypeBinder)}
	}
	var res duckdb.Result
	defer duckdb.DestroyResult(&res)
	if duckdb.ExecutePending(pending, &res) == duckdb.StateError {
		return endMessage{}, resultError(&res)
	}
	head, types := describeResult(&res)
	defer func() {
		for i := range types {
			duckdb.DestroyLogicalType(&types[i])
		}
	}()
	head.Tables = tables
	out := &output{w: w.out, left: m.MaxBytes}
	enc, err := w.encoder(m, head, types, out)
	if err != nil {
		return endMessage{}, err
	}
	if err := writeMessage(w.out, frameStart, head); err != nil {
		return endMessage{}, &connectionError{err}
	}
	end, err := fetch(&res, m.Limit, enc)
	if err != nil {
		return end, err
	}
	return end, out.flush()
}

func resultError(res *duckdb.Result) error {
	return &workerError{Message: duckdb.ResultError(res), Type: int(duckdb.ResultErrorType(res))}
}

// fetch moves chunks from the result to the encoder, up to limit rows.
func fetch(res *duckdb.Result, limit int64, enc encoder) (endMessage, error) {
	var end endMessage
	if err := enc.begin(); err != nil {
		return end, err
	}
	for {
		chunk := duckdb.FetchChunk(*res)
		if chunk.Ptr == nil {
			break
		}
		rows := int(duckdb.DataChunkGetSize(chunk))
		if rows == 0 {
			duckdb.DestroyDataChunk(&chunk)
			break
		}
		if limit > 0 && end.Rows+int64(rows) > limit {
			rows, end.Truncated = int(limit-end.Rows), true
		}
		err := enc.rows(chunk, rows)
		duckdb.DestroyDataChunk(&chunk)
		if err != nil {
			return end, err
		}
		end.Rows += int64(rows)
		if end.Truncated {
			return end, enc.end()
		}
	}
	// The end of the rows and a failure halfway look alike; an answer must not
	// end cleanly after a failure.
	if msg := duckdb.ResultError(res); msg != "" {
		return end, resultError(res)
	}
	return end, enc.end()
}

func describeResult(res *duckdb.Result) (startMessage, []duckdb.LogicalType) {
	var head startMessage
	var types []duckdb.LogicalType
	for i := range duckdb.ColumnCount(res) {
		t := duckdb.ColumnLogicalType(res, i)
		types = append(types, t)
		head.Columns = append(head.Columns, duckdb.ColumnName(res, i))
		head.Types = append(head.Types, typeName(t))
	}
	return head, types
}

// typeName writes a type as DuckDB does.
func typeName(t duckdb.LogicalType) string {
	child := func(c duckdb.LogicalType) string {
		defer duckdb.DestroyLogicalType(&c)
		return typeName(c)
	}
	if alias := duckdb.LogicalTypeGetAlias(t); alias != "" {
		return alias
	}
	switch id := duckdb.GetTypeId(t); id {
	case duckdb.TypeDecimal:
		return fmt.Sprintf("DECIMAL(%d,%d)", duckdb.DecimalWidth(t), duckdb.DecimalScale(t))
	case duckdb.TypeEnum:
		var names []string
		for i := range duckdb.EnumDictionarySize(t) {
			names = append(names, duck.Literal(duckdb.EnumDictionaryValue(t, duckdb.IdxT(i))))
		}
		return "ENUM(" + strings.Join(names, ", ") + ")"
	case duckdb.TypeList:
		return child(duckdb.ListTypeChildType(t)) + "[]"
	case duckdb.TypeArray:
		return fmt.Sprintf("%s[%d]", child(duckdb.ArrayTypeChildType(t)), duckdb.ArrayTypeArraySize(t))
	case duckdb.TypeMap:
		return fmt.Sprintf("MAP(%s, %s)", child(duckdb.MapTypeKeyType(t)), child(duckdb.MapTypeValueType(t)))
	case duckdb.TypeStruct:
		var fields []string
		for i := range duckdb.StructTypeChildCount(t) {
			fields = append(fields, duck.Ident(duckdb.StructTypeChildName(t, i))+" "+child(duckdb.StructTypeChildType(t, i)))
		}
		return "STRUCT(" + strings.Join(fields, ", ") + ")"
	case duckdb.TypeUnion:
		var members []string
		for i := range duckdb.UnionTypeMemberCount(t) {
			members = append(members, duck.Ident(duckdb.UnionTypeMemberName(t, i))+" "+child(duckdb.UnionTypeMemberType(t, i)))
		}
		return "UNION(" + strings.Join(members, ", ") + ")"
	default:
		return scalarName(id)
	}
}

func scalarName(id duckdb.Type) string {
	switch id {
	case duckdb.TypeBoolean:
		return "BOOLEAN"
	case duckdb.TypeTinyInt:
		return "TINYINT"
	case duckdb.TypeSmallInt:
		return "SMALLINT"
	case duckdb.TypeInteger:
		return "INTEGER"
	case duckdb.TypeBigInt:
		return "BIGINT"
	case duckdb.TypeUTinyInt:
		return "UTINYINT"
	case duckdb.TypeUSmallInt:
		return "USMALLINT"
	case duckdb.TypeUInteger:
		return "UINTEGER"
	case duckdb.TypeUBigInt:
		return "UBIGINT"
	case duckdb.TypeHugeInt:
		return "HUGEINT"
	case duckdb.TypeUHugeInt:
		return "UHUGEINT"
	case duckdb.TypeFloat:
		return "FLOAT"
	case duckdb.TypeDouble:
		return "DOUBLE"
	case duckdb.TypeVarchar:
		return "VARCHAR"
	case duckdb.TypeBlob:
		return "BLOB"
	case duckdb.TypeUUID:
		return "UUID"
	case duckdb.TypeBit:
		return "BIT"
	case duckdb.TypeBigNum:
		return "BIGNUM"
	case duckdb.TypeDate:
		return "DATE"
	case duckdb.TypeTime:
		return "TIME"
	case duckdb.TypeTimeNS:
		return "TIME_NS"
	case duckdb.TypeTimeTZ:
		return "TIME WITH TIME ZONE"
	case duckdb.TypeTimestamp:
		return "TIMESTAMP"
	case duckdb.TypeTimestampS:
		return "TIMESTAMP_S"
	case duckdb.TypeTimestampMS:
		return "TIMESTAMP_MS"
	case duckdb.TypeTimestampNS:
		return "TIMESTAMP_NS"
	case duckdb.TypeTimestampTZ:
		return "TIMESTAMP WITH TIME ZONE"
	case duckdb.TypeInterval:
		return "INTERVAL"
	case duckdb.TypeSQLNull:
		return "NULL"
	}
	return fmt.Sprintf("TYPE_%d", id)
}

// output collects an answer's bytes into data frames.
type output struct {
	w    *bufio.Writer
	buf  []byte
	left int64 // bytes that may still be sent; 0 at the start: no bound
	sent int64
}

// Write takes bytes of an encoder that writes by itself.
func (o *output) Write(p []byte) (int, error) {
	o.buf = append(o.buf, p...)
	return len(p), o.spill()
}

// spill sends what has been collected once it fills a frame.
func (o *output) spill() error {
	if len(o.buf) < dataSize {
		return nil
	}
	return o.flush()
}

func (o *output) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	o.sent += int64(len(o.buf))
	if o.left > 0 && o.sent > o.left {
		return answerTooLarge(o.left)
	}
	for part := range slices.Chunk(o.buf, dataSize) { // one value may fill many frames
		if err := writeFrame(o.w, frameData, part); err != nil {
			return &connectionError{err}
		}
	}
	o.buf = o.buf[:0]
	return nil
}

// encoder writes an answer in one format.
type encoder interface {
	begin() error
	rows(chunk duckdb.DataChunk, n int) error
	end() error
}

func (w *worker) encoder(m queryMessage, head startMessage, types []duckdb.LogicalType, out *output) (encoder, error) {
	if m.Format == Arrow {
		return newArrow(w.conn, head, types, out)
	}
	t := &textEncoder{out: out, format: m.Format, head: head}
	opt := columnOptions{bigIntStrings: m.BigIntStrings && m.Format != CSV, csv: m.Format == CSV}
	for i, typ := range types {
		c, err := compile(typ, opt, func() int { return t.size })
		if err != nil {
			return nil, problem.Wrap(err, problem.Invalid, fmt.Sprintf("The column %q has the type %s, which cannot be sent.", head.Columns[i], head.Types[i]),
				fmt.Sprintf("Cast it: %s::VARCHAR.", duck.Ident(head.Columns[i]))).WithCode("invalid_sql")
		}
		t.columns = append(t.columns, c)
		t.text = append(t.text, mayBeEmpty(typ))
		t.names = append(t.names, append(appendString(nil, head.Columns[i]), ':'))
	}
	return t, nil
}

// mayBeEmpty reports whether a type has a value without any text, which CSV has
// to tell from NULL.
func mayBeEmpty(t duckdb.LogicalType) bool {
	switch duckdb.GetTypeId(t) {
	case duckdb.TypeVarchar, duckdb.TypeBlob, duckdb.TypeEnum, duckdb.TypeBit:
		return true
	}
	return false
}

// textEncoder writes JSON, NDJSON and CSV.
type textEncoder struct {
	out     *output
	format  Format
	head    startMessage
	columns []*column
	text    []bool   // the column may hold empty text, which CSV tells from NULL
	names   [][]byte // quoted, with a colon
	size    int      // rows of the chunk at hand
	first   bool
}

func (t *textEncoder) begin() error {
	t.first = true
	b := t.out.buf
	switch t.format {
	case JSON:
		b = appendStrings(append(b, `{"columns":`...), t.head.Columns)
		b = appendStrings(append(b, `,"types":`...), t.head.Types)
		b = append(b, `,"rows":[`...)
	case CSV:
		for i, name := range t.head.Columns {
			if i > 0 {
				b = append(b, ',')
			}
			start := len(b)
			b = appendCSV(append(b, name...), start, true)
		}
		b = append(b, '\r', '\n')
	}
	t.out.buf = b
	return nil
}

func appendStrings(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, s)
	}
	return append(b, ']')
}

func (t *textEncoder) rows(chunk duckdb.DataChunk, n int) error {
	t.size = int(duckdb.DataChunkGetSize(chunk))
	for i, c := range t.columns {
		c.load(duckdb.DataChunkGetVector(chunk, duckdb.IdxT(i)))
	}
	for row := range n {
		switch t.format {
		case CSV:
			t.out.buf = t.csvRow(t.out.buf, row)
		case NDJSON:
			t.out.buf = t.objectRow(t.out.buf, row)
		default:
			t.out.buf = t.arrayRow(t.out.buf, row)
		}
		if err := t.out.spill(); err != nil {
			return err
		}
	}
	return nil
}

func (t *textEncoder) arrayRow(b []byte, row int) []byte {
	if !t.first {
		b = append(b, ',')
	}
	t.first = false
	b = append(b, '[')
	for i, c := range t.columns {
		if i > 0 {
			b = append(b, ',')
		}
		b = c.appendJSON(b, row)
	}
	return append(b, ']')
}

func (t *textEncoder) objectRow(b []byte, row int) []byte {
	b = append(b, '{')
	for i, c := range t.columns {
		if i > 0 {
			b = append(b, ',')
		}
		b = c.appendJSON(append(b, t.names[i]...), row)
	}
	return append(b, '}', '\n')
}

func (t *textEncoder) csvRow(b []byte, row int) []byte {
	for i, c := range t.columns {
		if i > 0 {
			b = append(b, ',')
		}
		if c.isNull(row) {
			continue
		}
		start := len(b)
		b = appendCSV(c.csv(b, row), start, t.text[i])
	}
	return append(b, '\r', '\n')
}

func (t *textEncoder) end() error {
	if t.format == JSON {
		t.out.buf = append(t.out.buf, ']')
	}
	return nil
}

// withoutEnd cuts off the semicolons that end a statement, with what stands
// behind them. The syntax tree tells them from those in text and comments.
func (w *worker) withoutEnd(sql string) (string, error) {
	whole, err := w.tree(sql)
	if err != nil {
		return "", err
	}
	for at := range len(sql) {
		if sql[at] != ';' {
			continue
		}
		if before, err := w.tree(sql[:at]); err != nil || before == whole {
			return sql[:at], err
		}
	}
	return sql, nil
}

// parquetThreads encode one Parquet answer. Compression is most of the work, so
// a second one nearly halves the time; each costs about 30 MB.
const parquetThreads = 2

// runParquet lets DuckDB write the answer into the stream, which the server
// reads until this process ends.
func (w *worker) runParquet(m queryMessage, tables []string) (endMessage, error) {
	limit := ""
	if m.Limit > 0 {
		limit = fmt.Sprintf(" LIMIT %d", m.Limit)
	}
	// The gate has proved that the text is one query; the line breaks keep a
	// trailing comment from swallowing the bracket.
	sql, err := w.withoutEnd(m.SQL)
	if err != nil {
		return endMessage{}, err
	}
	stmt, err := w.prepare(fmt.Sprintf("COPY (SELECT * FROM (\n%s\n)%s) TO '%s' (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)", sql, limit, streamPath()), m.Params)
	if err != nil {
		return endMessage{}, err
	}
	defer duckdb.DestroyPrepare(&stmt)
	err = writeMessage(w.out, frameStart, startMessage{Tables: tables})
	if err := errors.Join(err, w.out.Flush()); err != nil {
		return endMessage{}, &connectionError{err}
	}
	var res duckdb.Result
	defer duckdb.DestroyResult(&res)
	if duckdb.ExecutePrepared(stmt, &res) == duckdb.StateError {
		return endMessage{}, resultError(&res)
	}
	chunk := duckdb.FetchChunk(res) // one row: how many were copied
	defer duckdb.DestroyDataChunk(&chunk)
	return endMessage{Rows: view[int64](duckdb.DataChunkGetVector(chunk, 0), 1)[0]}, nil
}
