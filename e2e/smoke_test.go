//go:build e2e

package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

type smokeReport struct {
	Verdict string `json:"verdict"`
	Version string `json:"version"`
	Steps   []struct {
		Name      string `json:"name"`
		OK        bool   `json:"ok"`
		Skipped   bool   `json:"skipped"`
		Status    int    `json:"status"`
		ElapsedMS int64  `json:"elapsed_ms"`
		Detail    string `json:"detail"`
		Response  string `json:"response"`
	} `json:"steps"`
	Warnings []string `json:"warnings"`
}

// at names the verdict and the step that it comes from.
func (r smokeReport) at() string {
	for _, s := range r.Steps {
		if !s.OK && !s.Skipped {
			return r.Verdict + " at " + s.Name
		}
	}
	return r.Verdict
}

// smokeWith runs agnesctl smoke and reads its report.
func smokeWith(t *testing.T, env []string, args ...string) (r smokeReport, code int) {
	t.Helper()
	env = append([]string{"XDG_CONFIG_HOME=" + t.TempDir(), "AGNES_TOKEN="}, env...)
	out, errs, code := command(t, "", env, "agnesctl", append([]string{"smoke", "-o", "json"}, args...)...)
	keepsSecrets(t, out+errs, map[string]string{"password": adminPassword})
	return decode[smokeReport](t, out), code
}

// secret writes a secret into a file of its own.
func secret(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// people copies a folder of CSV that a test may take away.
func people(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "files")
	writeFile(t, filepath.Join(dir, "people.csv"), "id,name\n1,Ann\n2,Bob\n")
	return dir
}

func (in *world) emails() string {
	in.t.Helper()
	users, err := in.client.Users(in.t.Context())
	if err != nil {
		in.t.Fatal(err)
	}
	var out []string
	for _, u := range users.Users {
		out = append(out, u.Email)
	}
	return strings.Join(out, " ")
}

func TestASmokeTestOfAGoodInstance(t *testing.T) {
	parallel(t)
	dir := people(t)
	in := settled(t, t.TempDir(), dir)
	token := secret(t, in.secrets["token"])
	for _, name := range []string{"data that are unchanged", "data that are new"} {
		if name == "data that are new" {
			writeFile(t, filepath.Join(dir, "people.csv"), "id,name\n1,Ann\n2,Bob\n3,Cid\n")
		}
		r, code := smokeWith(t, nil, in.url, "--token-file", token)
		if code != 0 || r.at() != "pass" || len(r.Steps) != 7 || len(r.Warnings) > 0 || r.Version == "" {
			t.Errorf("%s: exit %d, %+v", name, code, r)
		}
		for _, s := range r.Steps {
			if !s.OK || s.Status != http.StatusOK {
				t.Errorf("%s: %+v", name, s)
			}
			t.Logf("%-13s %5d ms  %s", s.Name, s.ElapsedMS, s.Detail)
		}
		if got := in.emails(); got != adminEmail {
			t.Errorf("%s: the accounts are %s, want %s alone", name, got, adminEmail)
		}
	}

	// Read-only leaves no job behind.
	jobs := func() int {
		status, err := in.client.SyncStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(status.Jobs)
	}
	before := jobs()
	r, code := smokeWith(t, []string{"AGNES_TOKEN_FILE=" + token}, in.url, "--profile", "readonly")
	if code != 0 || len(r.Steps) != 5 || jobs() != before || in.emails() != adminEmail {
		t.Errorf("readonly: exit %d, %d jobs more, accounts %s, %+v", code, jobs()-before, in.emails(), r)
	}

	// An instance that lets in addresses of one domain alone.
	domain := "company.com"
	if _, err := in.client.Configure(t.Context(), api.ConfigureRequest{DataSource: "csv", AllowedDomain: &domain}); err != nil {
		t.Fatal(err)
	}
	if r, code = smokeWith(t, nil, in.url, "--token-file", token); code != 0 || in.emails() != adminEmail {
		t.Errorf("with an allowed domain: exit %d, accounts %s, %+v", code, in.emails(), r)
	}
}

// Both smoke tests, against the same instance: the same verdict at the same step.
func TestTheTwoSmokeTestsAgree(t *testing.T) {
	parallel(t)
	script, err := filepath.Abs("../scripts/smoke-test.sh")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		make     func(t *testing.T) (address string)
		password string
		want     string
	}{
		"good": {func(t *testing.T) string { return settled(t, t.TempDir(), people(t)).url }, adminPassword, "pass"},
		"catalog empty": {func(t *testing.T) string {
			p := start(t, t.TempDir())
			p.must("POST", "/auth/bootstrap", "", map[string]string{"email": adminEmail, "password": adminPassword}, nil)
			return p.url
		}, adminPassword, "fail at catalog"},
		"setup mode":     {func(t *testing.T) string { return start(t, t.TempDir()).url }, adminPassword, "fail at token"},
		"wrong password": {func(t *testing.T) string { return settled(t, t.TempDir(), people(t)).url }, "WrongPassword1!", "inconclusive at token"},
		"sync failing": {func(t *testing.T) string {
			dir := people(t)
			in := settled(t, t.TempDir(), dir)
			if err := os.Rename(dir, dir+".away"); err != nil {
				t.Fatal(err)
			}
			return in.url
		}, adminPassword, "fail at wait"},
		"a table that cannot be read": {func(t *testing.T) string {
			dir := people(t)
			in := settled(t, t.TempDir(), dir)
			writeFile(t, filepath.Join(dir, "people.csv"), "\x00\x01\xff\xfe\"")
			return in.url
		}, adminPassword, "fail at wait"},
		"down": {func(t *testing.T) string {
			in := settled(t, t.TempDir(), people(t))
			in.stop()
			return in.url
		}, adminPassword, "fail at health"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, password := tt.make(t), secret(t, tt.password)
			r, code := smokeWith(t, nil, address, "--email", adminEmail, "--password-file", password)
			want := map[string]int{"pass": 0, "fail": 1, "inconclusive": 5}[strings.Fields(tt.want)[0]]
			if r.at() != tt.want || code != want {
				t.Errorf("agnesctl smoke: exit %d, %s, want %d, %s\n%+v", code, r.at(), want, tt.want, r)
			}
			cmd := exec.CommandContext(t.Context(), "sh", script, strings.TrimPrefix(address, "http://"))
			cmd.Env = append(os.Environ(), "SMOKE_EMAIL="+adminEmail, "SMOKE_PASSWORD_FILE="+password, "TMPDIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != want {
				t.Errorf("the script: exit %d (%v), want %d\n%s", got, err, want, out)
			}
			if step := strings.TrimPrefix(tt.want, strings.Fields(tt.want)[0]+" at "); want != 0 && !strings.Contains(string(out), "\n"+step+" ") && !strings.HasPrefix(string(out), step+" ") {
				t.Errorf("the script does not end at %s:\n%s", step, out)
			}
			keepsSecrets(t, string(out), map[string]string{"password": tt.password})
		})
	}
}

// A person or a CI system ends the smoke test in the middle of a query: its
// account is removed all the same.
func TestAnInterruptedSmokeTestLeavesNoAccount(t *testing.T) {
	parallel(t)
	in := settled(t, t.TempDir(), people(t))
	target, err := url.Parse(in.url)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	proxy := httputil.NewSingleHostReverseProxy(target)
	held := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/query" {
			close(asked)
			_, _ = io.Copy(io.Discard, r.Body) // only then is it seen that the caller has gone
			<-r.Context().Done()
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer held.Close()

	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "agnesctl"), "smoke", held.URL, "--token-file", secret(t, in.secrets["token"]))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("the smoke test asked no query within 30 s")
	}
	if got := in.emails(); !strings.Contains(got, "smoke-") {
		t.Errorf("meanwhile the accounts are %s, want one of the smoke test", got)
	}
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its code is looked at below
	if code := cmd.ProcessState.ExitCode(); code != 5 || !strings.Contains(out.String(), "Verdict: inconclusive") {
		t.Errorf("it ended with %d, want 5:\n%s", code, out.String())
	}
	if got := in.emails(); got != adminEmail {
		t.Errorf("the accounts are %s, want %s alone", got, adminEmail)
	}
	t.Logf("it ended %s after SIGTERM", time.Since(began).Round(time.Millisecond))
}
