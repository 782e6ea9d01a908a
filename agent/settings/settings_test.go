package settings_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func TestTheFirstPlaceThatSetsAValueWins(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(file, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name       string
		in         settings.Inputs
		key        string
		text, from string
	}{
		{"nothing is set", settings.Inputs{}, settings.InstanceName, "Agnes", "default"},
		{"stored", settings.Inputs{Stored: map[string]string{"instance_name": "Stored"}}, settings.InstanceName, "Stored", "instance.yaml"},
		{"the environment wins over stored", settings.Inputs{
			Stored: map[string]string{"instance_name": "Stored"},
			Getenv: env(map[string]string{"AGNES_INSTANCE_NAME": "Env"}),
		}, settings.InstanceName, "Env", "environment AGNES_INSTANCE_NAME"},
		{"a file wins over stored", settings.Inputs{
			Stored: map[string]string{"instance_name": "Stored"},
			Getenv: env(map[string]string{"AGNES_INSTANCE_NAME_FILE": file}),
		}, settings.InstanceName, "from a file", "file " + file + " (AGNES_INSTANCE_NAME_FILE)"},
		{"a flag wins over all", settings.Inputs{
			Flags:  map[string]string{"addr": ":1"},
			Getenv: env(map[string]string{"AGNES_ADDR": ":2"}),
		}, settings.Addr, ":1", "flag --addr"},
		{"a folder from the environment makes csv the source", settings.Inputs{
			Getenv: env(map[string]string{"AGNES_CSV_DIR": "/files"}),
		}, settings.DataSource, "csv", "derived from environment AGNES_CSV_DIR"},
		{"what cannot be stored is not read from the store", settings.Inputs{Stored: map[string]string{"addr": ":9"}}, settings.Addr, "127.0.0.1:8000", "default"},
	} {
		if tc.in.Getenv == nil {
			tc.in.Getenv = env(nil)
		}
		r, err := settings.Resolve(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if v := r.Value(tc.key); v.Text != tc.text || v.Source != tc.from {
			t.Errorf("%s: %s = %q from %q, want %q from %q", tc.name, tc.key, v.Text, v.Source, tc.text, tc.from)
		}
	}
}

func TestWrongInputsAreRefusedByName(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env  map[string]string
		want string
	}{
		"both ways":               {map[string]string{"JWT_SECRET_KEY": "x", "JWT_SECRET_KEY_FILE": "y"}, "JWT_SECRET_KEY_FILE"},
		"a missing file":          {map[string]string{"JWT_SECRET_KEY_FILE": "/nowhere/secret"}, "/nowhere/secret"},
		"a value not of the list": {map[string]string{"AGNES_BOOTSTRAP": "maybe"}, "token, open"},
	} {
		_, err := settings.Resolve(settings.Inputs{Getenv: env(tc.env)})
		if !problem.Is(err, problem.Usage) || !strings.Contains(err.Error(), tc.want) || problem.As(err).Hint == "" {
			t.Errorf("%s: Resolve() = %v, want a usage problem with a hint that names %q", name, err, tc.want)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	r, err := settings.Resolve(settings.Inputs{Getenv: env(map[string]string{"JWT_SECRET_KEY": "s3cr3t-s3cr3t"})})
	if err != nil {
		t.Fatal(err)
	}
	if v := r.Value(settings.JWTSecretKey); v.Shown() != "[redacted]" || v.Text != "s3cr3t-s3cr3t" {
		t.Errorf("Shown() = %q, Text = %q", v.Shown(), v.Text)
	}
	other, err := settings.Resolve(settings.Inputs{Getenv: env(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if r.Hash() != other.Hash() {
		t.Error("Hash() depends on a secret")
	}
}

func TestTheHashIsOfWhatIsChosen(t *testing.T) {
	t.Parallel()
	hash := func(vars map[string]string) string {
		r, err := settings.Resolve(settings.Inputs{Getenv: env(vars)})
		if err != nil {
			t.Fatal(err)
		}
		return r.Hash()
	}
	plain := hash(nil)
	for name, vars := range map[string]map[string]string{
		"again":                    nil,
		"after a deploy":           {"AGNES_IMAGE_DIGEST": "sha256:abc", "AGNES_BUNDLE_VERSION": "2026.04.3", "AGNES_UPDATE_FAILED": "sha256:def"},
		"with a default spelt out": {"AGNES_UPDATE_CHECK": "on"},
	} {
		if hash(vars) != plain {
			t.Errorf("%s the hash is another", name)
		}
	}
	for _, vars := range []map[string]string{{"AGNES_UPDATE_CHECK": "off"}, {"AGNES_IMAGE": "registry.example/agnes"}, {"AGNES_INSTANCE_NAME": "Other"}} {
		if hash(vars) == plain {
			t.Errorf("%v does not change the hash", vars)
		}
	}
}

func TestStoredConfigurationSurvivesARoundTrip(t *testing.T) {
	t.Parallel()
	want := map[string]string{"data_source": "csv", "csv_dir": "/a b/č: #x", "instance_name": "yes", "allowed_domain": "123"}
	data, err := settings.Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := settings.Decode("instance.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("round trip (-want +got):\n%s\n%s", diff, data)
	}
}

func TestABadStoredConfigurationNamesTheLine(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"an unknown key": "data_source: csv\ncsv_dirr: /x\n",
		"a map":          "data_source: csv\ncsv_dir: {a: 1}\n",
	} {
		_, err := settings.Decode("instance.yaml", []byte(text))
		if !problem.Is(err, problem.Usage) || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: Decode() = %v, want a usage problem that names line 2", name, err)
		}
	}
	if _, err := settings.Decode("instance.yaml", []byte("a: [")); !problem.Is(err, problem.Usage) {
		t.Errorf("broken YAML: Decode() = %v, want a usage problem", err)
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, s := range settings.All() {
		if s.Help == "" || s.Env == "" || seen[s.Key] || seen[s.Env] {
			t.Errorf("setting %+v: wants a unique key, a unique variable and a help text", s)
		}
		seen[s.Key], seen[s.Env] = true, true
	}
}
