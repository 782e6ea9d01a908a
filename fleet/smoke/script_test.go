package smoke_test

import (
	"bytes"
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke/smoketest"
)

// shells returns those of this machine that read POSIX shell and nothing more.
func shells(t *testing.T) map[string][]string {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the script needs curl, which is not installed")
		}
		t.Skip("the script needs curl, which is not installed")
	}
	found := map[string][]string{}
	for name, words := range map[string][]string{"dash": {"dash"}, "busybox": {"busybox", "sh"}, "bash": {"bash", "--posix"}} {
		if _, err := exec.LookPath(words[0]); err == nil {
			found[name] = words
		}
	}
	if len(found) == 0 {
		found["sh"] = []string{"sh"}
	}
	return found
}

func script(t *testing.T, shell []string, address, email, password string) (out string, code int) {
	t.Helper()
	path, err := filepath.Abs("../../scripts/smoke-test.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), shell[0], append(append([]string{}, shell[1:]...), path, address)...)
	cmd.Env = append(os.Environ(), "SMOKE_EMAIL="+email, "SMOKE_PASSWORD="+password, "SMOKE_WAIT=1", "TMPDIR="+t.TempDir(),
		"http_proxy=http://127.0.0.1:1", "no_proxy=agnes.invalid", "NO_PROXY=") // none leads to this machine
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	err = cmd.Run()
	if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return both.String(), cmd.ProcessState.ExitCode()
}

var stepLine = regexp.MustCompile(`(?m)^(\S+) +(fail|inconclusive) `)

func TestTheScriptAndTheProgramGiveTheSameVerdict(t *testing.T) {
	t.Parallel()
	json := func(body string) smoketest.Fault { return smoketest.Answer(200, "application/json", body) }
	degraded := map[string]api.ServiceHealth{"disk": {Status: api.Degraded, Detail: "Only 12 MB left, of 100."}}
	cases := map[string]func(*smoketest.Instance){
		"good":          func(*smoketest.Instance) {},
		"setup mode":    func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.SetupRequired = true }) },
		"empty catalog": (*smoketest.Instance).Empty,
		"sync fails":    func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.SyncFails = true }) },
		"sync lies":     func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.SyncLies = true }) },
		"stale data":    func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.SyncStale = true }) },
		"nothing new":   func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.SyncUnchanged = true }) },
		"draining":      func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.Draining = true }) },
		"sync hangs": func(i *smoketest.Instance) {
			i.Change(func(k *smoketest.Knobs) { k.SyncHangs, k.NoPhase = true, true })
		},
		"slow sync":    func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.SyncHangs = true }) },
		"was degraded": func(i *smoketest.Instance) { i.Change(func(k *smoketest.Knobs) { k.Services = degraded }) },
		"gets degraded": func(i *smoketest.Instance) {
			i.Change(func(k *smoketest.Knobs) { k.AfterSync = func(k *smoketest.Knobs) { k.Services = degraded } })
		},
		"gets a warning": func(i *smoketest.Instance) {
			i.Change(func(k *smoketest.Knobs) {
				k.AfterSync = func(k *smoketest.Knobs) { k.Warnings = []string{"The log was torn, 2 times."} }
			})
		},
		"gets old": func(i *smoketest.Instance) {
			i.Change(func(k *smoketest.Knobs) {
				k.AfterSync = func(k *smoketest.Knobs) {
					k.Warnings = []string{"Running deprecated version 2026.04.3. Update to stable."}
				}
			})
		},
		"health 500": func(i *smoketest.Instance) {
			i.Break("GET /api/health", 1, smoketest.Problem(500, "internal", "It broke."))
		},
		"health page":   func(i *smoketest.Instance) { i.Break("GET /api/health", 1, smoketest.Page()) },
		"unhealthy":     func(i *smoketest.Instance) { i.Break("GET /api/health", 1, json(`{"status":"unhealthy"}`)) },
		"cut":           func(i *smoketest.Instance) { i.Break("GET /api/catalog/tables", 1, smoketest.Cut()) },
		"lying catalog": func(i *smoketest.Instance) { i.Break("GET /api/catalog/tables", 1, json(`{"tables":[],"count":3}`)) },
		"wrong number":  func(i *smoketest.Instance) { i.Break("POST /api/query", 1, json(`{"rows":[[2]],"row_count":1}`)) },
		"pretty JSON": func(i *smoketest.Instance) {
			i.Break("POST /api/query", 1, json("{\n \"rows\": [\n  [ 1 ]\n ],\n \"row_count\": 1\n}\n"))
		},
		"query 429": func(i *smoketest.Instance) {
			i.Break("POST /api/query", 1, smoketest.Problem(429, "rate_limited", "Too many."))
		},
		"redirect away": func(i *smoketest.Instance) {
			i.Break("GET /api/health", 1, smoketest.Redirect("https://elsewhere.test/"))
		},
		"redirect": func(i *smoketest.Instance) { i.Break("GET /api/health", 1, smoketest.Redirect("/login")) },
		"no token": func(i *smoketest.Instance) { i.Break("POST /auth/token", 1, json(`{}`)) },
		"lost job": func(i *smoketest.Instance) {
			i.Break("GET /api/sync/jobs/", 1, smoketest.Problem(404, "not_found", "No."))
		},
	}
	for shell, words := range shells(t) {
		for name, damage := range cases {
			t.Run(shell+" "+name, func(t *testing.T) {
				t.Parallel()
				// One for each, for both change it.
				verdicts := map[string]string{}
				for _, who := range []string{"program", "script"} {
					i := smoketest.New()
					damage(i)
					server := httptest.NewServer(i)
					defer server.Close()
					if who == "program" {
						r := smoke.Run(t.Context(), smoke.Options{
							URL: server.URL, Account: smoke.Account{Email: smoketest.Email, Password: smoketest.Password}, Wait: time.Second,
						})
						verdicts[who] = string(r.Verdict)
						if s := r.Failed(); s != nil {
							verdicts[who] += " at " + s.Name
						}
						continue
					}
					out, code := script(t, words, strings.TrimPrefix(server.URL, "http://"), smoketest.Email, smoketest.Password.Reveal())
					verdicts[who] = scriptVerdict(code, out)
					if strings.Contains(out, smoketest.Password.Reveal()) || strings.Contains(out, "agnes-session-") {
						t.Errorf("the script prints a secret:\n%s", out)
					}
					defer func() {
						if t.Failed() {
							t.Log(out)
						}
					}()
				}
				if verdicts["program"] != verdicts["script"] {
					t.Errorf("the program says %s, the script %s", verdicts["program"], verdicts["script"])
				}
			})
		}
		t.Run(shell+" and what is no instance's fault", func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(smoketest.New())
			defer server.Close()
			nobody, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			_ = nobody.Close()
			for _, tt := range []struct{ address, password, want string }{
				{server.URL, "wrong", "inconclusive at token"},
				{nobody.Addr().String(), "any", "fail at health"},
				{"https" + strings.TrimPrefix(server.URL, "http"), "any", "inconclusive at health"},
				{"agnes.invalid:8000", "any", "inconclusive at health"},
			} {
				if out, code := script(t, words, tt.address, smoketest.Email, tt.password); scriptVerdict(code, out) != tt.want {
					t.Errorf("%s: %d, want %s\n%s", tt.address, code, tt.want, out)
				}
			}
			if out, code := script(t, words, server.URL, smoketest.Email, ""); code != 2 {
				t.Errorf("without a password: %d, want 2\n%s", code, out)
			}
		})
	}
}

func scriptVerdict(code int, out string) string {
	verdict := map[int]string{0: "pass", 1: "fail", 5: "inconclusive"}[code]
	if m := stepLine.FindStringSubmatch(out); m != nil && m[2] == verdict {
		verdict += " at " + m[1]
	}
	return verdict
}
