package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	duckdb "github.com/duckdb/duckdb-go-bindings"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// A table whose rows stay in a database elsewhere is read through one of
// DuckDB's extensions, which are native code with a network connection of their
// own: DuckDB's settings do not bind them. So such a statement gets a worker of
// its own that is bound to one database, sees no file of the instance, alone
// holds the token of that database, and ends with the statement. The order of
// its binding is the one that works: load the extension while its file can be
// read, restrict the process, attach read only, then lock DuckDB's settings.
//
// Which tables a statement names is known behind the gate only, and the gate
// runs in workers only. So every statement starts in a local worker, which
// sends one that belongs elsewhere back (codeNeedsRemote).

// codeNeedsRemote is a worker's answer to a statement that another kind of
// worker has to run. It never reaches a caller.
const codeNeedsRemote = "needs_remote"

// Failures of a remote worker; explainRemote puts them into words.
const (
	codeExtensionBroken = "remote_extension"
	codeLoginFailed     = "remote_login_failed"
	codeUnavailable     = "remote_unavailable"
	codeTableMissing    = "remote_table_missing"
	codeJournal         = "remote_file_journal"
	codeRemoteFailed    = "remote_failed"
)

// Attachment is a database that DuckDB reaches through an extension.
type Attachment struct {
	Alias         string // its name in SQL
	Extension     string // as in ATTACH (TYPE …)
	ExtensionFile string // absolute path of the extension's binary
	URL           string
	TokenEnv      string        // variable that the token comes from
	Token         redact.Secret // empty: the extension authenticates by itself
}

// attachMessage is an Attachment on its way to a worker. The token does not
// travel with it: it is in the worker's environment.
type attachMessage struct {
	Alias, Extension, ExtensionFile, URL string
	TokenFile                            string // a file that the token names
}

// dialect is what differs between extensions.
type dialect struct {
	binary   string // the extension's name where that differs
	tokenEnv string // variable in which the extension's library looks for the token; empty: ATTACH takes it as TOKEN
	file     bool   // the url is a file of this machine, and nothing else is needed
	key      bool   // the token is the path of a file with a key
	port     string // the only TCP port where the url names none; empty: any
}

func dialectOf(extension string) dialect {
	switch strings.ToLower(extension) {
	case "postgres":
		return dialect{binary: "postgres_scanner", tokenEnv: "PGPASSWORD", port: "5432"}
	case "mysql":
		return dialect{binary: "mysql_scanner", tokenEnv: "MYSQL_PWD", port: "3306"} //nolint:gosec // a variable's name
	case "sqlite":
		return dialect{binary: "sqlite_scanner", file: true}
	case "bigquery":
		return dialect{tokenEnv: "GOOGLE_APPLICATION_CREDENTIALS", key: true} //nolint:gosec // a variable's name
	}
	return dialect{}
}

// tokenOptionEnv brings a worker the token that ATTACH takes as an option.
const tokenOptionEnv = "AGNES_ATTACH_TOKEN"

// FindExtension returns the binary of an extension below dir, where it lies
// plainly or as in DuckDB's own extension directory (v1.5.5/linux_amd64/…).
func FindExtension(dir, extension string) (path string, found bool) {
	name := cmp.Or(dialectOf(extension).binary, strings.ToLower(extension)) + ".duckdb_extension"
	for _, path := range []string{filepath.Join(dir, name), filepath.Join(dir, Version(), "linux_"+runtime.GOARCH, name)} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, true
		}
	}
	return "", false
}

// LocalFile returns the file of this machine that an attachment reads, and
// whether it is of a kind that reads one.
func LocalFile(extension, url string) (string, bool) { return url, dialectOf(extension).file }

// environment is what only this attachment's workers get.
func (at *Attachment) environment() []string {
	env := []string{"PGCONNECT_TIMEOUT=10", "PGAPPNAME=agnes", "PGPASSFILE=/dev/null"}
	if at.Token != "" {
		env = append(env, cmp.Or(dialectOf(at.Extension).tokenEnv, tokenOptionEnv)+"="+at.Token.Reveal())
	}
	return env
}

func (at *Attachment) message() *attachMessage {
	m := &attachMessage{Alias: at.Alias, Extension: at.Extension, ExtensionFile: at.ExtensionFile, URL: at.URL}
	if dialectOf(at.Extension).key {
		m.TokenFile = at.Token.Reveal()
	}
	return m
}

// needsRemote returns a worker's word that a statement belongs elsewhere.
func needsRemote(err error) *workerError {
	if e, ok := errors.AsType[*workerError](err); ok && e.Code == codeNeedsRemote {
		return e
	}
	return nil
}

// runRemote runs a statement in a worker that is attached to the database of
// the remote tables that it names.
func (e *Engine) runRemote(ctx context.Context, req Request, where *workerError, m queryMessage, a *answer) (endMessage, error) {
	if req.Attach == nil {
		return endMessage{}, errors.New("a statement names remote tables, and the request brings no way to attach them")
	}
	at, err := req.Attach(where.Attachment)
	if err != nil {
		return endMessage{}, err
	}
	p, err := spawn(e.opt.Command, at.environment()...)
	if err != nil {
		return endMessage{}, err
	}
	defer p.kill()
	views := slices.DeleteFunc(slices.Clone(req.Views), func(v View) bool { return v.Attachment != where.Attachment })
	if err := p.bind(ctx, bindMessage{Views: views, MemoryBytes: e.opt.MemoryBytes, Sandbox: true, Attach: at.message()}); err != nil {
		return endMessage{}, explainRemote(at, where.Tables, err)
	}
	end, err := p.query(ctx, m, a)
	return end, explainRemote(at, where.Tables, err)
}

// route decides whether this worker may run a statement over those tables.
func (w *worker) route(names []string) error {
	local, remote := "", map[string]string{} // a table of each attachment
	for _, name := range names {
		if v := w.views[foldName(name)]; v.Attachment == "" {
			local = v.Name
		} else {
			remote[v.Attachment] = v.Name
		}
	}
	switch {
	case len(remote) == 0 || w.attached != nil:
		return nil
	case len(remote) > 1 || local != "":
		where := "in different databases"
		if local != "" {
			where = "partly in this instance and partly in a database elsewhere"
		}
		return problem.New(problem.Unprocessable, fmt.Sprintf("The statement reads tables that lie %s; expected all in one place. query_mode in GET /api/catalog/tables tells which are remote.", where),
			"Query them one at a time and join the answers, or ask an admin to have the smaller one synced as a local table.").WithCode("mixed_engines")
	}
	for attachment := range remote {
		return &workerError{Kind: string(problem.Internal), Code: codeNeedsRemote, Message: "the statement reads remote tables", Tables: names, Attachment: attachment}
	}
	return nil
}

// makeRemoteView creates the view of a remote table. Where no statement reads
// it, which in a local worker is always so, it only stands for its name in SHOW
// TABLES.
func (w *worker) makeRemoteView(v View, read bool) error {
	if w.attached == nil || !read {
		return w.exec("CREATE VIEW " + duck.Ident(v.Name) + " AS SELECT NULL AS remote")
	}
	err := w.exec(fmt.Sprintf("CREATE VIEW %s AS SELECT * FROM %s.%s", duck.Ident(v.Name), duck.Ident(w.attached.Alias), duck.Ident(v.Table)))
	if err == nil {
		return nil
	}
	code := codeTableMissing
	if c := codeOf(err.Error()); c != codeRemoteFailed {
		code = c
	}
	return &workerError{Kind: string(problem.Unavailable), Code: code, Message: "open a remote table", Detail: w.attached.scrub(err.Error()), Tables: []string{v.Name}}
}

// restrictRemote binds this worker to one database elsewhere and gives
// everything else up.
func (w *worker) restrictRemote(m bindMessage) (string, error) {
	at := m.Attach
	failed := func(code string, err error) error {
		return &workerError{Kind: string(problem.Unavailable), Code: code, Message: "attach a database", Detail: at.scrub(err.Error())}
	}
	// Extensions look a secret up before they connect, and DuckDB then insists on
	// a folder for secrets: one that cannot exist.
	err := w.exec("SET allow_persistent_secrets = true; SET secret_directory = '/dev/null/none'; LOAD " + duck.Literal(at.ExtensionFile))
	if err != nil {
		return "", failed(codeExtensionBroken, err)
	}
	isolation := ""
	if m.Sandbox {
		if isolation, err = sandboxRemote(at, m.MemoryBytes); err != nil {
			return "", err
		}
	}
	attach := fmt.Sprintf("ATTACH %s AS %s (TYPE %s, READ_ONLY", duck.Literal(at.URL), duck.Ident(at.Alias), strings.ToLower(at.Extension))
	if token := os.Getenv(tokenOptionEnv); token != "" {
		attach += ", TOKEN " + duck.Literal(token)
	}
	if err := w.exec(attach + ")"); err != nil {
		return "", failed(codeOf(err.Error()), err)
	}
	w.attached = at
	return isolation, w.exec(fmt.Sprintf(`
		SET memory_limit = '%dB';
		SET allowed_paths = %s;
		SET enable_external_access = false;
		SET lock_configuration = true;`,
		m.MemoryBytes, duck.List([]string{streamPath()})))
}

var (
	portKeyword = regexp.MustCompile(`(?i)\bport\s*=\s*'?([0-9,]+)`)
	passwords   = regexp.MustCompile(`(?i)((?:password|passwd|pwd|token|secret|api_?key|access_?key)\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&;,)]+)`)
	userinfo    = regexp.MustCompile(`(://)[^\s@]*@`)
)

// ports are the TCP ports that the url needs; nil: any.
func (at *attachMessage) ports() []uint16 {
	standard := dialectOf(at.Extension).port
	if standard == "" {
		return nil
	}
	named := standard
	if match := portKeyword.FindStringSubmatch(at.URL); match != nil {
		named = match[1]
	} else if u, err := url.Parse(at.URL); err == nil && u.Port() != "" {
		named = u.Port()
	} else if strings.Contains(at.URL, "://") && err != nil {
		return nil // several hosts in one URL
	}
	ports := []uint16{53} // names that need more than a datagram
	for text := range strings.SplitSeq(named, ",") {
		if port, err := strconv.ParseUint(cmp.Or(text, standard), 10, 16); err == nil {
			ports = append(ports, uint16(port))
		}
	}
	return ports
}

// scrub takes the token, and what looks like one, out of a text for the log.
func (at *attachMessage) scrub(text string) string {
	for _, variable := range []string{tokenOptionEnv, dialectOf(at.Extension).tokenEnv} {
		if token := os.Getenv(variable); token != "" && variable != "" {
			text = strings.ReplaceAll(text, token, "[redacted]")
		}
	}
	return userinfo.ReplaceAllString(passwords.ReplaceAllString(text, "${1}[redacted]"), "${1}[redacted]@")
}

// codeOf tells from an extension's message what went wrong: there is no other
// sign of it.
func codeOf(message string) string {
	message = strings.ToLower(message)
	has := func(signs ...string) bool {
		return slices.ContainsFunc(signs, func(sign string) bool { return strings.Contains(message, sign) })
	}
	switch {
	case has("authentication failed", "no password supplied", "access denied for user", "no pg_hba.conf entry", "role \"", "unauthorized", "invalid credentials"):
		return codeLoginFailed
	case has("attempt to write a readonly database"): // SQLite's way to say it
		return codeJournal
	case has("unable to connect", "failed to connect", "could not connect", "can't connect", "connection to server", "connection refused", "server closed the connection",
		"terminating connection", "connection has been closed", "lost connection", "gone away", "no connection to the server", "unable to open database", "database is locked", "timeout expired",
		"could not translate host name", "ssl syscall error", "connection reset"):
		return codeUnavailable
	}
	return codeRemoteFailed
}

// explainRemote turns a failure of a remote worker into a problem. What the
// other database says goes to the log; a caller is told what it means.
func explainRemote(at *Attachment, tables []string, err error) error {
	e, ok := errors.AsType[*workerError](err)
	if !ok || e.Type == int(duckdb.ErrorTypeOutOfMemory) {
		return err
	}
	code, detail := e.Code, e.Detail
	if e.Kind == "" {
		if ownMistake(at, e.Message) {
			return err
		}
		code, detail = codeOf(e.Message), at.message().scrub(e.Message)
	} else if detail == "" {
		return err
	}
	named := strings.Join(tables, ", ")
	if at.Token != "" {
		detail = strings.ReplaceAll(detail, at.Token.Reveal(), "[redacted]")
	}
	detail, _, _ = strings.Cut(detail, "\n\n") // behind it: the place in the statement, stack traces
	cause := errors.New(detail)
	const log = "Ask an admin: the instance's log has the reason, GET /api/health/details shows what is missing."
	switch code {
	case codeExtensionBroken:
		return problem.Wrap(cause, problem.Unavailable, fmt.Sprintf("DuckDB's extension %s, through which %s is read, cannot be loaded.", at.Extension, named),
			fmt.Sprintf("An admin puts the extension of DuckDB %s into AGNES_EXTENSION_DIR.", Version())).WithCode(code)
	case codeLoginFailed:
		hint := "An admin gives the database's user access, and names the password's variable in token_env of _remote_attach."
		if at.TokenEnv != "" {
			hint = fmt.Sprintf("An admin corrects %s in the instance's environment and restarts it.", at.TokenEnv)
		}
		return problem.Wrap(cause, problem.Unavailable, fmt.Sprintf("The database that holds %s refused the instance's login.", named), hint).WithCode(code)
	case codeUnavailable:
		return problem.Wrap(cause, problem.Unavailable, fmt.Sprintf("The database that holds %s cannot be reached.", named),
			"Try again in a minute. "+log).WithCode(code)
	case codeJournal:
		return problem.Wrap(cause, problem.Unprocessable, fmt.Sprintf("The SQLite file that holds %s is in WAL mode and no program has it open; SQLite cannot read it then without writing.", named),
			"An admin switches it back once: sqlite3 FILE 'PRAGMA journal_mode = DELETE'.").WithCode(code)
	case codeTableMissing:
		return problem.Wrap(cause, problem.Unprocessable, fmt.Sprintf("The database that should hold %s has no such table, or the instance's user may not read it.", strings.Join(e.Tables, ", ")),
			"An admin checks the name in _meta, and that the table lies in the database's default schema and may be read by the instance's user.").WithCode(code)
	}
	return problem.Wrap(cause, problem.Unprocessable, fmt.Sprintf("The database that holds %s could not run its part of the statement.", named),
		"Try a simpler statement. "+log).WithCode(codeRemoteFailed)
}

// ownMistake reports whether a message of DuckDB is on the caller's own SQL and
// shows nothing of the database behind it.
func ownMistake(at *Attachment, message string) bool {
	kind, _, _ := strings.Cut(message, ":")
	if !slices.Contains([]string{"Parser Error", "Binder Error", "Conversion Error", "Out of Range Error", "Mismatch Type Error"}, kind) {
		return false
	}
	if codeOf(message) != codeRemoteFailed || at.URL != "" && strings.Contains(message, at.URL) {
		return false
	}
	return at.Token == "" || !strings.Contains(message, at.Token.Reveal())
}
