package query

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	duckdb "github.com/duckdb/duckdb-go-bindings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// File descriptors that a worker is born with. Standard output and error are
// not part of the protocol: DuckDB's profiler may print there.
const (
	controlFD = 3 // both ways
	streamFD  = 4 // Parquet leaves here, written by DuckDB itself
)

// WorkerCommand is the hidden command of the program under which WorkerMain
// has to run.
const WorkerCommand = "query-worker"

// WorkerMain is the whole life of a worker process. It returns when the server
// closes the connection.
func WorkerMain() error {
	control := os.NewFile(controlFD, "control")
	w := &worker{in: bufio.NewReader(control), out: bufio.NewWriter(control)}
	if err := w.open(); err != nil {
		return err
	}
	defer w.close()
	return w.serve()
}

// worker is one process's only state: one DuckDB with one connection.
type worker struct {
	in    *bufio.Reader
	out   *bufio.Writer // flushed when a frame fills it and when an answer ends
	db    duckdb.Database
	conn  duckdb.Connection
	gate  *Gate
	ast   duckdb.PreparedStatement // statement -> syntax tree
	views map[string]View          // by folded name
	made  map[string]bool          // views that exist in DuckDB by now

	attached *attachMessage // of a worker for remote tables
}

func (w *worker) open() error {
	var config duckdb.Config
	if duckdb.CreateConfig(&config) == duckdb.StateError {
		return errors.New("create DuckDB's configuration")
	}
	defer duckdb.DestroyConfig(&config)
	for name, value := range map[string]string{
		"threads":                      "1",
		"autoinstall_known_extensions": "false",
		"autoload_known_extensions":    "false",
		"allow_community_extensions":   "false",
		"temp_directory":               "",              // nothing spills to disk
		"validate_external_file_cache": "NO_VALIDATION", // published files never change
		"enable_object_cache":          "true",
		"errors_as_json":               "false",
		"allow_persistent_secrets":     "false",
		"default_secret_storage":       "memory",
		"enable_fsst_vectors":          "false",
	} {
		if duckdb.SetConfig(config, name, value) == duckdb.StateError {
			return fmt.Errorf("DuckDB does not know the setting %s", name)
		}
	}
	var msg string
	if duckdb.OpenExt("", &w.db, config, &msg) == duckdb.StateError {
		return fmt.Errorf("open DuckDB: %s", msg)
	}
	if duckdb.Connect(w.db, &w.conn) == duckdb.StateError {
		return errors.New("connect to DuckDB")
	}
	// DuckDB prepares to measure each operator even where nobody profiles. With
	// nothing to measure that costs little; naming it switches profiling on.
	if err := w.exec("SET custom_profiling_settings = '{}'; PRAGMA disable_profiling"); err != nil {
		return err
	}
	// What DuckDB does lazily on first use would fail or be slow once the
	// process is restricted.
	if err := w.exec("SELECT current_timestamp::DATE, strftime(now(), '%Y')"); err != nil {
		return err
	}
	const ast = "SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)::VARCHAR"
	if duckdb.Prepare(w.conn, ast, &w.ast) == duckdb.StateError {
		return fmt.Errorf("prepare the gate: %s", duckdb.PrepareError(w.ast))
	}
	_, err := w.tree("SELECT 1")
	return err
}

func (w *worker) close() {
	duckdb.DestroyPrepare(&w.ast)
	duckdb.Disconnect(&w.conn)
	duckdb.Close(&w.db)
}

// exec runs statements of our own.
func (w *worker) exec(text string) error {
	var res duckdb.Result
	defer duckdb.DestroyResult(&res)
	if duckdb.Query(w.conn, text, &res) == duckdb.StateError {
		return &workerError{Message: duckdb.ResultError(&res), Type: int(duckdb.ResultErrorType(&res))}
	}
	return nil
}

func (w *worker) serve() error {
	var buf []byte
	for {
		kind, payload, err := readFrame(w.in, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		buf = payload
		switch kind {
		case frameBind:
			err = w.bind(payload)
		case frameQuery:
			err = w.answer(payload)
		default:
			err = fmt.Errorf("an unexpected frame %q", kind)
		}
		if err := errors.Join(err, w.out.Flush()); err != nil {
			return err
		}
	}
}

// bind takes what the worker may see and gives everything else up. Views are
// made when a statement first names them, so binding costs the same for ten
// tables and ten thousand.
func (w *worker) bind(payload []byte) error {
	var m bindMessage
	if err := json.Unmarshal(payload, &m); err != nil {
		return err
	}
	w.views, w.made = make(map[string]View, len(m.Views)), make(map[string]bool)
	var files []string
	for _, v := range m.Views {
		w.views[foldName(v.Name)] = v
		files = append(files, v.Files...)
	}
	isolation, err := w.restrict(m, files)
	ready := readyMessage{Isolation: isolation}
	if err != nil {
		ready.Err = asWorkerError(err)
	}
	return writeMessage(w.out, frameReady, ready)
}

func (w *worker) restrict(m bindMessage, files []string) (string, error) {
	if w.gate != nil {
		return "", errors.New("a worker is bound once")
	}
	var err error
	if w.gate, err = newGate(func(sql string) (string, error) { return w.tree(sql) }); err != nil {
		return "", err
	}
	if m.Attach != nil {
		return w.restrictRemote(m)
	}
	isolation := ""
	if m.Sandbox {
		if isolation, err = sandbox(files, m.MemoryBytes); err != nil {
			return "", err
		}
	}
	if m.Threads > 1 {
		// Keeping the order would mean to hold back what one thread has ready
		// while another is still at what comes before it. ORDER BY holds anyway.
		if err := w.exec(fmt.Sprintf("SET threads = %d; SET preserve_insertion_order = false", m.Threads)); err != nil {
			return "", err
		}
	}
	return isolation, w.exec(fmt.Sprintf(`
		SET memory_limit = '%dB';
		SET allowed_paths = %s;
		SET enable_external_access = false;
		SET lock_configuration = true;`,
		m.MemoryBytes, duck.List(append(files, streamPath()))))
}

func streamPath() string { return fmt.Sprintf("/dev/fd/%d", streamFD) }

// tree returns the syntax tree of a statement as JSON.
func (w *worker) tree(sql string) (string, error) {
	duckdb.BindVarcharLength(w.ast, 1, sql, duckdb.IdxT(len(sql)))
	var res duckdb.Result
	defer duckdb.DestroyResult(&res)
	if duckdb.ExecutePrepared(w.ast, &res) == duckdb.StateError {
		return "", &workerError{Message: duckdb.ResultError(&res), Type: int(duckdb.ResultErrorType(&res))}
	}
	chunk := duckdb.FetchChunk(res)
	if chunk.Ptr == nil {
		return "", errors.New("no syntax tree")
	}
	defer duckdb.DestroyDataChunk(&chunk)
	return strings.Clone(stringAt(duckdb.VectorGetData(duckdb.DataChunkGetVector(chunk, 0)), 0)), nil
}

// answer runs one statement and sends its answer or its failure.
func (w *worker) answer(payload []byte) error {
	var m queryMessage
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	if err := dec.Decode(&m); err != nil {
		return err
	}
	var connection *connectionError
	end, err := w.run(m)
	switch {
	case errors.As(err, &connection):
		return connection.err
	case err != nil:
		return writeMessage(w.out, frameFail, asWorkerError(err))
	}
	return writeMessage(w.out, frameEnd, end)
}

// connectionError is a failure to reach the server; the worker then ends.
type connectionError struct{ err error }

func (e *connectionError) Error() string { return e.err.Error() }

// maxMessage bounds a message: DuckDB repeats values in it, however long.
const maxMessage = 4 << 10

func asWorkerError(err error) *workerError {
	if e, ok := errors.AsType[*workerError](err); ok {
		if len(e.Message) > maxMessage {
			e.Message = strings.ToValidUTF8(e.Message[:maxMessage], "") + "…"
		}
		return e
	}
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return &workerError{Kind: string(p.Kind), Code: p.WireCode(), Message: p.Message, Hint: p.Hint}
	}
	return &workerError{Kind: string(problem.Internal), Message: err.Error()}
}

func (w *worker) run(m queryMessage) (endMessage, error) {
	tables, err := w.gate.check(m.SQL, func(name string) bool { _, ok := w.views[foldName(name)]; return ok })
	if err != nil {
		return endMessage{}, err
	}
	if err := w.route(tables.names); err != nil {
		return endMessage{}, err
	}
	if err := w.makeViews(tables); err != nil {
		return endMessage{}, err
	}
	if m.Format == Parquet {
		return w.runParquet(m, tables.names)
	}
	stmt, err := w.prepare(m.SQL, m.Params)
	if err != nil {
		return endMessage{}, err
	}
	defer duckdb.DestroyPrepare(&stmt)
	return w.stream(stmt, m, tables.names)
}

// makeViews creates the views that a statement names and that are not there
// yet.
func (w *worker) makeViews(t checked) error {
	names := t.names
	if t.listsTables {
		names = slices.Clone(names) // as the statement spells them, before they are listed
		for _, v := range w.views {
			names = append(names, v.Name)
		}
	}
	for _, name := range names {
		key := foldName(name)
		if w.made[key] {
			continue
		}
		v := w.views[key]
		if v.Attachment != "" {
			if err := w.makeRemoteView(v, slices.Contains(t.names, name)); err != nil {
				return err
			}
			w.made[key] = true
			continue
		}
		if err := w.exec(fmt.Sprintf("CREATE VIEW %s AS SELECT * FROM read_parquet(%s)", duck.Ident(v.Name), duck.List(v.Files))); err != nil {
			return problem.Wrap(err, problem.Internal, fmt.Sprintf("The table %q cannot be opened.", v.Name),
				"Ask an admin to publish it again: POST /api/sync/trigger.").WithCode("table_broken")
		}
		w.made[key] = true
	}
	return nil
}

// prepare compiles the statement and binds its parameters. The gate has proved
// that there is exactly one.
func (w *worker) prepare(sql string, params []any) (duckdb.PreparedStatement, error) {
	var stmt duckdb.PreparedStatement
	if duckdb.Prepare(w.conn, sql, &stmt) == duckdb.StateError {
		err := &workerError{Message: duckdb.PrepareError(stmt), Type: int(duckdb.ErrorTypeBinder)}
		duckdb.DestroyPrepare(&stmt)
		return stmt, err
	}
	if err := bindParams(stmt, params); err != nil {
		duckdb.DestroyPrepare(&stmt)
		return stmt, err
	}
	return stmt, nil
}

func bindParams(stmt duckdb.PreparedStatement, params []any) error {
	if want := int(duckdb.NParams(stmt)); want != len(params) {
		return problem.New(problem.Invalid, fmt.Sprintf("The statement has %d parameters; params has %d values.", want, len(params)),
			"Send one value in params for each ? or $n.").WithCode("invalid_param")
	}
	for n, value := range params {
		if err := bindParam(stmt, duckdb.IdxT(n+1), value); err != nil {
			return err
		}
	}
	return nil
}

// bindParam binds one value. Integers keep all digits.
func bindParam(stmt duckdb.PreparedStatement, at duckdb.IdxT, value any) error {
	state := duckdb.StateError
	switch v := value.(type) {
	case nil:
		state = duckdb.BindNull(stmt, at)
	case bool:
		state = duckdb.BindBoolean(stmt, at, v)
	case string:
		state = duckdb.BindVarcharLength(stmt, at, v, duckdb.IdxT(len(v)))
	case json.Number:
		if whole, err := v.Int64(); err == nil {
			state = duckdb.BindInt64(stmt, at, whole)
		} else if float, err := v.Float64(); err == nil {
			state = duckdb.BindDouble(stmt, at, float)
		}
	}
	if state == duckdb.StateError {
		return problem.New(problem.Unprocessable, fmt.Sprintf("params[%d] is no text, number, true, false or null.", at-1),
			"Send lists and objects as text and unpack them in SQL, such as json(?) or from_json(?, '…').").WithCode("invalid_param")
	}
	return nil
}
