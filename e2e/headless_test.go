//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// specLines are the commands of the design's headless setup, word for word; the
// data source is csv instead of Keboola. What the design leaves to its reader,
// taking the token out of the first answer, is the line in between.
const specLines = `
# Bootstrap admin
curl -X POST http://localhost:8000/auth/bootstrap \
  -H "Content-Type: application/json" \
  -d '{"email":"admin@company.com","password":"SecurePass123!"}' > "$OUT/1"
TOKEN=$(sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p' "$OUT/1")

# Configure data source
curl -X POST http://localhost:8000/api/admin/configure \
  -H "Authorization: Bearer $TOKEN" \
  -H "Content-Type: application/json" \
  -d '{"data_source":"csv","csv_dir":"'"$CSV_DIR"'"}' > "$OUT/2"

# Discover and register tables
curl -X POST http://localhost:8000/api/admin/discover-and-register \
  -H "Authorization: Bearer $TOKEN" > "$OUT/3"

# Trigger first sync
curl -X POST http://localhost:8000/api/sync/trigger \
  -H "Authorization: Bearer $TOKEN" > "$OUT/4"

printf %s "$TOKEN" > "$OUT/token"
`

// specSetup runs specLines against the instance at url, which reads the sample
// shop as csvDir, checks each answer and returns the admin's token.
func specSetup(t *testing.T, p *process, csvDir string) (token string) {
	t.Helper()
	out := t.TempDir()
	// The lines say port 8000; this test's instance listens on a free one.
	home := t.TempDir()
	writeFile(t, filepath.Join(home, ".curlrc"), fmt.Sprintf("silent\nfail-with-body\nconnect-to = \"localhost:8000:%s\"\n", strings.TrimPrefix(p.url, "http://")))
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", specLines)
	cmd.Env = append(os.Environ(), "CURL_HOME="+home, "OUT="+out, "CSV_DIR="+csvDir)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the lines failed: %v\n%s", err, text)
	}
	read := func(name string, into any) {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatalf("answer %s: %v: %s", name, err, raw)
		}
	}
	var tok api.TokenResponse
	read("1", &tok)
	if tok.Role != "admin" || tok.Email != adminEmail || tok.TokenType != "bearer" {
		t.Errorf("bootstrap = %+v", tok)
	}
	var conf api.ConfigureResponse
	read("2", &conf)
	if conf.DataSource != "csv" || conf.Connection != "local" {
		t.Errorf("configure = %+v", conf)
	}
	var found api.Discovery
	read("3", &found)
	if found.Registered != 5 || len(found.Errors) != 0 {
		t.Errorf("discover = %+v", found)
	}
	var trig api.SyncTriggered
	read("4", &trig)
	if trig.Status != "triggered" || len(trig.Tables) != 5 {
		t.Errorf("trigger = %+v", trig)
	}
	waitJob(t, p, tok.AccessToken, trig.JobID, api.JobSucceeded)
	return tok.AccessToken
}

func TestTheHeadlessSetupOfTheDesignWorksWordForWord(t *testing.T) {
	parallel(t)
	data := t.TempDir()
	csvDir, err := filepath.Abs("../examples/shop")
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, data)
	token := specSetup(t, p, csvDir)

	var answer api.QueryResponse
	p.must("POST", "/api/query", token, map[string]string{
		"sql": "SELECT count(*) FROM orders JOIN customers USING (customer_id)",
	}, &answer)
	if n, ok := answer.Rows[0][0].(float64); !ok || n < 2000 {
		t.Errorf("the joined answer = %v", answer.Rows)
	}

	secrets := map[string]string{}
	for _, name := range []string{".jwt_secret", ".session_secret"} {
		raw, err := os.ReadFile(filepath.Join(data, "state", name))
		if err != nil || len(strings.TrimSpace(string(raw))) < 32 {
			t.Errorf("%s: %v, %d bytes", name, err, len(raw))
		}
		secrets[name] = string(raw)
	}
	p.stop()
	p = start(t, data)
	for name, before := range secrets {
		if after, err := os.ReadFile(filepath.Join(data, "state", name)); err != nil || string(after) != before {
			t.Errorf("%s changed with a restart (%v)", name, err)
		}
	}
	p.must("POST", "/api/query", token, map[string]string{"sql": "SELECT count(*) FROM orders"}, &answer)
}

func waitJob(t *testing.T, p *process, token, id, want string) api.Job {
	t.Helper()
	c, err := api.NewClient(p.url, api.WithToken(redact.Secret(token)))
	if err != nil {
		t.Fatal(err)
	}
	job, err := c.FollowJob(t.Context(), id, func(api.Job) {})
	if err != nil {
		t.Fatalf("follow job %s: %v\n%s", id, err, p.out)
	}
	if job.Status != want {
		t.Fatalf("job %s = %+v, want %s", id, job, want)
	}
	return *job
}
