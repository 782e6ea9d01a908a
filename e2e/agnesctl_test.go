//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// terminal is a person or script that uses agnesctl against one instance.
type terminal struct {
	t      *testing.T
	config string // XDG_CONFIG_HOME
	url    string
}

func newTerminal(t *testing.T, url string) *terminal {
	t.Helper()
	return &terminal{t: t, config: t.TempDir(), url: url}
}

// run runs agnesctl instance and expects an exit code. Neither the password nor
// the saved token may be in what it prints.
func (c *terminal) run(code int, stdin string, args ...string) (stdout, stderr string) {
	c.t.Helper()
	env := []string{"XDG_CONFIG_HOME=" + c.config, "HOME=" + c.config, "AGNES_URL=" + c.url, "AGNES_TOKEN=", "NO_COLOR=1"}
	stdout, stderr, got := command(c.t, stdin, env, "agnesctl", append([]string{"instance"}, args...)...)
	if got != code {
		c.t.Fatalf("agnesctl instance %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout, stderr)
	}
	if code != 0 && !strings.Contains(stderr, "\nNext:  ") {
		c.t.Errorf("agnesctl instance %s: no next step\n%s", strings.Join(args, " "), stderr)
	}
	keepsSecrets(c.t, stdout+stderr, map[string]string{"password": adminPassword})
	if token := c.token(); token != "" {
		keepsSecrets(c.t, stdout+stderr, map[string]string{"token": token})
	}
	return stdout, stderr
}

var savedToken = regexp.MustCompile(`(?m)^\s+token: "?([^"\n]+)"?$`)

func (c *terminal) logins() string { return filepath.Join(c.config, "agnesctl", "logins.yaml") }

// token returns the saved token, empty before the first login.
func (c *terminal) token() string {
	raw, err := os.ReadFile(c.logins())
	if err != nil {
		return ""
	}
	m := savedToken.FindSubmatch(raw)
	if m == nil {
		c.t.Fatalf("no token in %s:\n%s", c.logins(), raw)
	}
	return string(m[1])
}

func (c *terminal) client() *api.Client {
	c.t.Helper()
	client, err := api.NewClient(c.url, api.WithToken(redact.Secret(c.token())))
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var out T
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return out
}

// traces is all that a change would leave behind.
type traces struct{ audit, jobs, tables int }

func (c *terminal) traces() (n traces) {
	c.t.Helper()
	audit, err := c.client().Audit(c.t.Context(), 1000)
	if err != nil {
		c.t.Fatal(err)
	}
	status, err := c.client().SyncStatus(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	registry, err := c.client().Registry(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range audit.Entries {
		if e.Action != "session.create" { // signing in is recorded each time
			n.audit++
		}
	}
	n.jobs, n.tables = len(status.Jobs), registry.Count
	return n
}

type setupAnswer struct {
	Changed bool `json:"changed"`
	Steps   []struct {
		Name    string `json:"name"`
		Changed bool   `json:"changed"`
	} `json:"steps"`
	Tables []api.CatalogTable `json:"tables"`
	Next   []string           `json:"next"`
}

func TestOneCommandTakesAFreshInstanceToTables(t *testing.T) {
	parallel(t)
	data := t.TempDir()
	p := start(t, data)
	c := newTerminal(t, p.url)
	setup := []string{"setup", "--url", p.url, "--email", adminEmail, "--password-stdin", "--source", "csv", "--csv-dir", shop(t)}

	// A rehearsal changes nothing.
	out, _ := c.run(0, "", append(setup, "--dry-run", "-o", "json")...)
	plan := decode[struct {
		DryRun bool `json:"dry_run"`
		Calls  []struct{ Path string }
	}](t, out)
	if !plan.DryRun || len(plan.Calls) != 4 || plan.Calls[0].Path != "/auth/bootstrap" {
		t.Errorf("setup --dry-run = %s", out)
	}
	var h api.Health
	if p.must("GET", "/api/health", "", nil, &h); !h.SetupRequired || c.token() != "" {
		t.Errorf("after the dry run: setup required %v, saved token %q", h.SetupRequired, c.token())
	}
	c.run(1, "", "tables")

	out, errs := c.run(0, adminPassword+"\n", append(setup, "-o", "json")...)
	got := decode[setupAnswer](t, out)
	if !got.Changed || len(got.Steps) != 4 || len(got.Tables) != 5 || len(got.Next) == 0 {
		t.Fatalf("setup = %s", out)
	}
	for _, table := range got.Tables {
		if table.Rows == 0 || table.LastSync == nil {
			t.Errorf("the table %s has %d rows, last sync %v", table.ID, table.Rows, table.LastSync)
		}
	}
	for _, line := range []string{"admin: created " + adminEmail, "orders: succeeded, ", "discover: 5 registered"} {
		if !strings.Contains(errs, line) {
			t.Errorf("setup does not tell %q:\n%s", line, errs)
		}
	}
	if info, err := os.Stat(c.logins()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the saved login: %v, mode %v, want 0600", err, info.Mode())
	}

	// The same again, for a machine and for a person.
	before := c.traces()
	out, _ = c.run(0, adminPassword+"\n", append(setup, "-o", "json")...)
	again := decode[setupAnswer](t, out)
	if again.Changed || len(again.Tables) != 5 {
		t.Errorf("the second setup = %s, want changed false", out)
	}
	for _, s := range again.Steps {
		if s.Changed {
			t.Errorf("the second setup says that %s changed something", s.Name)
		}
	}
	if after := c.traces(); after != before {
		t.Errorf("the second setup left traces: %+v, before it %+v", after, before)
	}
	if out, _ = c.run(0, adminPassword+"\n", setup...); !strings.Contains(out, "Nothing to do") {
		t.Errorf("the third setup says\n%s", out)
	}

	_, errs = c.run(1, "WrongPassword1!\n", setup...)
	if !strings.Contains(errs, "password") || strings.Contains(errs, "WrongPassword1!") {
		t.Errorf("a wrong password is answered\n%s", errs)
	}
	if after := c.traces(); after.jobs != before.jobs || after.tables != before.tables {
		t.Errorf("a wrong password left traces: %+v, before it %+v", after, before)
	}

	token := c.token()
	p.stop()
	keepsSecrets(t, p.out.String(), map[string]string{"password": adminPassword, "token": token})
	_, errs = c.run(1, "", "tables")
	if !strings.Contains(errs, "Nothing listens at "+p.url) {
		t.Errorf("an instance that is not there is reported as\n%s", errs)
	}
	c.run(1, adminPassword+"\n", setup...)
}

func TestCommandsOfAnInstanceThatIsSetUp(t *testing.T) {
	parallel(t)
	files := t.TempDir()
	writeFile(t, filepath.Join(files, "orders.csv"), "id,note\n1,plain\n2,\"a \x1b[31mred\x1b[0m note\"\n")
	in := settled(t, t.TempDir(), files)
	c := newTerminal(t, in.url)

	_, errs := c.run(1, "not-the-password\n", "token", "--email", adminEmail, "--password-stdin")
	if strings.Contains(errs, "not-the-password") || c.token() != "" {
		t.Errorf("a wrong password: saved %q\n%s", c.token(), errs)
	}
	c.run(0, adminPassword+"\n", "token", "--email", adminEmail, "--password-stdin")
	if info, err := os.Stat(c.logins()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the saved login: %v, mode %v, want 0600", err, info.Mode())
	}
	if err := os.Chmod(c.logins(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errs = c.run(4, "", "tables"); !strings.Contains(errs, "chmod 600 "+c.logins()) {
		t.Errorf("a login that others may read is answered\n%s", errs)
	}
	if err := os.Chmod(c.logins(), 0o600); err != nil {
		t.Fatal(err)
	}

	// Answers in each form; nothing in them drives the terminal.
	const sql = "SELECT id, note, 9007199254740993 AS big FROM orders ORDER BY id"
	out, _ := c.run(0, "", "query", sql)
	if !strings.Contains(out, "9007199254740993") || !strings.Contains(out, "plain") || strings.Contains(out, "\x1b") {
		t.Errorf("query as a table:\n%q", out)
	}
	out, _ = c.run(0, "", "query", sql, "-o", "json")
	if got := decode[api.QueryResponse](t, out); got.RowCount != 2 || fmt.Sprint(got.Columns) != "[id note big]" || !strings.Contains(out, "9007199254740993") {
		t.Errorf("query as json:\n%s", out)
	}
	out, _ = c.run(0, "", "query", sql, "-o", "yaml")
	if !strings.Contains(out, "row_count: 2") || !strings.Contains(out, "9007199254740993") || strings.Contains(out, "\x1b") {
		t.Errorf("query as yaml:\n%q", out)
	}
	out, errs = c.run(0, "SELECT * FROM orders ORDER BY id\n", "query", "-", "--limit", "1")
	if strings.Contains(out, "red") || !strings.Contains(errs, "first 1 row") {
		t.Errorf("query with a limit:\n%s%s", out, errs)
	}
	out, _ = c.run(0, "", "query", "SELECT note FROM orders WHERE id = ?", "--param", "1", "-o", "json")
	if got := decode[api.QueryResponse](t, out); got.RowCount != 1 || got.Rows[0][0] != "plain" {
		t.Errorf("query with a parameter:\n%s", out)
	}
	if _, errs = c.run(1, "", "query", "SELEC 1"); !strings.Contains(errs, "Parser Error") {
		t.Errorf("a slip in SQL:\n%s", errs)
	}
	if _, errs = c.run(1, "", "query", "SELECT * FROM nowhere"); !strings.Contains(errs, `no table "nowhere"`) {
		t.Errorf("a table that is not there:\n%s", errs)
	}
	c.run(1, "", "query", "DROP TABLE orders")
	for format, want := range map[string]string{"csv": "n\r\n", "ndjson": `{"n":`, "parquet": "PAR1", "arrow": "n"} {
		if out, errs = c.run(0, "", "query", "SELECT count(*) AS n FROM orders", "-o", format); !strings.Contains(out, want) {
			t.Errorf("query -o %s: expected %q in\n%q\n%s", format, want, out, errs)
		}
	}

	// Looking first changes nothing.
	writeFile(t, filepath.Join(files, "late.csv"), "id\n1\n")
	before := c.traces()
	if out, _ = c.run(0, "", "discover", "--dry-run"); !strings.Contains(out, "late") || !strings.Contains(out, "Would register 1 table of csv; 1 registered before.") {
		t.Errorf("discover --dry-run:\n%s", out)
	}
	c.run(0, "", "sync", "--dry-run")
	c.run(0, "", "configure", "--source", "csv", "--instance-name", "Other", "--dry-run")
	if after := c.traces(); after != before {
		t.Errorf("dry runs left traces: %+v, before them %+v", after, before)
	}

	c.run(0, "", "discover")
	out, errs = c.run(0, "", "sync")
	if !strings.Contains(errs, "late: succeeded, 1 row\n") || !strings.Contains(errs, "orders: unchanged\n") || !regexp.MustCompile(`Job \S+ succeeded in `).MatchString(out) {
		t.Errorf("sync:\n%s%s", out, errs)
	}
	if out, _ = c.run(0, "", "tables"); !strings.Contains(out, "late") {
		t.Errorf("tables:\n%s", out)
	}
	if out, _ = c.run(0, "", "tables", "orders"); !strings.Contains(out, "BIGINT") {
		t.Errorf("one table:\n%s", out)
	}

	// Health: 0 while healthy, 3 with the way out otherwise.
	h := in.health()
	code := map[bool]int{true: 0, false: 3}[h.Status == api.Healthy] // the disk of the machine may be short
	c.run(code, "", "health")
	c.run(code, "", "health", "--details", "-o", "json")
	if err := os.Rename(files, files+".away"); err != nil {
		t.Fatal(err)
	}
	if _, errs = c.run(1, "", "sync"); !strings.Contains(errs, files) {
		t.Errorf("a sync without its source:\n%s", errs)
	}
	out, errs = c.run(3, "", "health")
	if !strings.Contains(out, "sync") || !strings.Contains(errs, "not healthy") {
		t.Errorf("health after a failed sync:\n%s%s", out, errs)
	}
}

// The first screen of the README: the folder comes from a flag, relative to
// where the instance was started, and its first sync may still run.
func TestSetupOverAFolderThatAFlagFixes(t *testing.T) {
	parallel(t)
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	p := launchIn(t, root, data, nil, "--csv-dir", "examples/shop")
	p.waitReady()
	env := []string{"XDG_CONFIG_HOME=" + t.TempDir()}
	out, errs, code := command(t, adminPassword+"\n", env, "agnesctl", "instance", "setup", "--url", p.url, "--email", adminEmail,
		"--password-stdin", "--source", "csv", "--csv-dir", filepath.Join(root, "examples", "shop"))
	if code != 0 {
		t.Fatalf("setup ended with %d:\n%s%s\n%s", code, out, errs, p.out)
	}
	out, errs, code = command(t, "", env, "agnesctl", "instance", "query", "SELECT count(*) AS products FROM products", "-o", "csv")
	if code != 0 || out != "products\r\n96\r\n" {
		t.Errorf("the query after setup ended with %d:\n%q%s", code, out, errs)
	}
}
