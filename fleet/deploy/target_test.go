package deploy_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestTargetsAreRead(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]deploy.Target{
		"ssh://agnes@203.0.113.7/opt/agnes":    {User: "agnes", Host: "203.0.113.7", Port: 22, Dir: "/opt/agnes"},
		"ssh://root@data.acme.com:2222":        {User: "root", Host: "data.acme.com", Port: 2222, Dir: deploy.DefaultDir},
		"ssh://root@data.acme.com/":            {User: "root", Host: "data.acme.com", Port: 22, Dir: deploy.DefaultDir},
		"ssh://a.b-c@[2001:db8::1]:22//srv/x/": {User: "a.b-c", Host: "2001:db8::1", Port: 22, Dir: "/srv/x"},
		"ssh://a@h/with%20space":               {User: "a", Host: "h", Port: 22, Dir: "/with space"},
	} {
		got, err := deploy.ParseTarget(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
		if again, err := deploy.ParseTarget(got.String()); err != nil || again != got {
			t.Errorf("%s: its text %s is read as %+v, %v", text, got, again, err)
		}
	}
}

func TestOtherAddressesAreRefusedWithAReason(t *testing.T) {
	t.Parallel()
	for text, reason := range map[string]string{
		"":                               "ssh://",
		"agnes@203.0.113.7":              "ssh://",
		"203.0.113.7:/opt":               "ssh://",
		"http://agnes@h/opt":             "ssh://",
		"ssh:agnes@h":                    "ssh://",
		"ssh://203.0.113.7/opt/agnes":    "a user name",
		"ssh://-oProxyCommand=x@h":       "a user name",
		"ssh://agnes:hunter2@h":          "without a password",
		"ssh://agnes@-oProxyCommand=x/a": "a host name",
		"ssh://agnes@/opt/agnes":         "a host name",
		"ssh://agnes@[h]/opt":            "an address",
		"ssh://agnes@h:0":                "a port",
		"ssh://agnes@h:":                 "a port",
		"ssh://agnes@h:70000":            "a port",
		"ssh://agnes@h/opt/../etc":       "without ..",
		"ssh://agnes@h/opt/..":           "without ..",
		"ssh://agnes@h/a%0ab":            "control characters",
		"ssh://agnes@h/opt?x=1":          "no query",
		"ssh://agnes@h/opt#x":            "no query",
		"ssh://agnes:hunter2@h:bad/":     "an address",
	} {
		got, err := deploy.ParseTarget(text)
		switch {
		case !problem.Is(err, problem.Usage) || !strings.Contains(err.Error(), reason):
			t.Errorf("%q: %+v, %v, want a usage error about %q", text, got, err, reason)
		case strings.Contains(err.Error(), "hunter2"):
			t.Errorf("%q: the message tells the password: %v", text, err)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{
		"ssh://agnes@203.0.113.7/opt/agnes", "ssh://a@[::1]:22/x", "ssh://a:b@h", "ssh://a@h/%2e%2e/x", "ssh://a@h:", "ssh:a@h", "ssh://a@[fe80::1%25en0]/",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := deploy.ParseTarget(text)
		if err != nil {
			if !problem.Is(err, problem.Usage) || problem.As(err).Hint == "" {
				t.Fatalf("%q: %v, want a usage error with a hint", text, err)
			}
			return
		}
		if again, err := deploy.ParseTarget(got.String()); err != nil || again != got {
			t.Fatalf("%q: %+v writes itself as %s, which is read as %+v, %v", text, got, got, again, err)
		}
		if strings.HasPrefix(got.Host, "-") || strings.HasPrefix(got.User, "-") || !strings.HasPrefix(got.Dir, "/") || strings.ContainsAny(got.Dir, "\n\x00") {
			t.Fatalf("%q was read as %+v", text, got)
		}
	})
}

func FuzzQuotedTextComesOutOfAShellAsItWas(f *testing.F) {
	for _, seed := range []string{"", "a b", "it's", "'", "$(id)\n`x`\\", "-n", "ž\xff\x80", "!$*?[]{}~#;&|<>"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.ContainsRune(text, 0) || len(text) > 10_000 {
			t.Skip("no command line holds it")
		}
		got, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+deploy.Quote(text)).Output()
		if err != nil || string(got) != text {
			t.Errorf("%q came out as %q, %v", text, got, err)
		}
	})
}

func TestACommandThatNoHostCanRunIsNamedWithoutItsValues(t *testing.T) {
	t.Parallel()
	for _, c := range []deploy.Command{
		{},
		{Args: []string{""}},
		{Args: []string{"echo", "a\x00secret"}},
		{Args: []string{"echo"}, Dir: "/\x00secret"},
		{Args: []string{"echo"}, Env: []string{"A-B=secret"}},
		{Args: []string{"echo"}, Env: []string{"A=\x00secret"}},
		{Args: []string{"echo"}, Env: []string{"=secret"}},
	} {
		if _, err := c.Script(); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want an error without the value", c, err)
		}
	}
}
