package fleet_test

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// write makes a folder with files and returns the path of its fleet.yaml.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "fleet.yaml")
}

func load(t testing.TB, files map[string]string) *fleet.Inventory {
	t.Helper()
	v, err := fleet.Load(write(t, files), fleet.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func names(instances []fleet.Instance) (all []string) {
	for _, i := range instances {
		all = append(all, i.Name)
	}
	return all
}

const contractFile = "testdata/inventory/good/contract.yaml"

func TestTheContractsExampleReadsWithItsDefaults(t *testing.T) {
	t.Parallel()
	v, err := fleet.Load(contractFile, fleet.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	acme, bolt, local := v.Instances[0], v.Instances[1], v.Instances[2]
	type facts struct {
		URL, Channel, Pin, Host, Wanted, Delivery, Token, Source string
		Interval, Timeout                                        time.Duration
		Labels                                                   map[string]string
	}
	of := func(i fleet.Instance) facts {
		return facts{i.URL, i.Channel, i.Pin, i.Host, i.Wanted(), i.Delivery(), i.Token.String(), i.Source.String(), i.Interval, i.Timeout, i.LabelSet()}
	}
	want := []facts{
		{
			"https://data.acme.com", "", "stable-2026.04.3", "ssh://agnes@203.0.113.7/opt/agnes", "stable-2026.04.3", "push", "${file:secrets/acme.token}", contractFile + ":8:5",
			30 * time.Second, 5 * time.Second,
			map[string]string{"name": "acme", "cloud": "gcp", "delivery": "push", "tier": "canary"},
		},
		{
			"https://bolt.example.com/agnes", "dev", "", "", "dev", "pull", "${env:BOLT_TOKEN}", contractFile + ":15:5",
			time.Minute, 5 * time.Second,
			map[string]string{"name": "bolt", "cloud": "aws", "channel": "dev", "delivery": "pull", "region": "eu"},
		},
		{
			"http://127.0.0.1:8000", "stable", "", "", "stable", "pull", "", contractFile + ":23:5",
			30 * time.Second, 5 * time.Second,
			map[string]string{"name": "local", "channel": "stable", "delivery": "pull"},
		},
	}
	if diff := cmp.Diff(want, []facts{of(acme), of(bolt), of(local)}); diff != "" {
		t.Error(diff)
	}
	var waves []string
	for _, w := range v.Waves {
		waves = append(waves, strings.Join([]string{w.Name, w.Match.String(), w.Soak.String(), w.MaxUnavailable.String()}, " "))
	}
	if diff := cmp.Diff([]string{"canary tier=canary 10m0s 1", "early  30m0s 1", "rest  0s 10%"}, waves); diff != "" {
		t.Error(diff)
	}
	if v.Image != "ghcr.io/keboola/agnes-the-ai-analyst" || v.Waves[1].Percent != 10 {
		t.Errorf("image %s, percent %d", v.Image, v.Waves[1].Percent)
	}
}

func TestDefaultsHoldForTheirOwnFileAlone(t *testing.T) {
	t.Parallel()
	v := load(t, map[string]string{
		"fleet.yaml": "defaults: {channel: dev, interval: 10s}\ninclude: [customers/*.yaml]\ninstances:\n  - {name: a, url: https://a.com}\n",
		"customers/b.yaml": `defaults: {timeout: 7s, tls: {server_name: b.internal}}
instances:
  - {name: b, url: https://b.com}
  - {name: c, url: https://c.com, tls: {server_name: ""}, interval: 2s, timeout: 1s}
`,
		"customers/d.yaml":       "include: [more/e.yaml]\n",
		"customers/more/e.yaml":  "instances: [{name: e, url: https://e.com, pin: 2026.04.12}]\n",
		"customers/.hidden.yaml": "not: read\n",
	})
	var got []string
	for _, i := range v.Instances {
		got = append(got, strings.Join([]string{i.Name, i.Wanted(), i.Interval.String(), i.Timeout.String(), i.TLS.ServerName}, " "))
	}
	want := []string{"a dev 10s 5s ", "b stable 30s 7s b.internal", "c stable 2s 1s ", "e 2026.04.12 30s 5s "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAnIntervalBelowTheDefaultTimeoutShortensIt(t *testing.T) {
	t.Parallel()
	v := load(t, map[string]string{"fleet.yaml": "instances: [{name: a, url: https://a.com, interval: 2s}]\n"})
	if got := v.Instances[0].Timeout; got != 2*time.Second {
		t.Errorf("timeout %s, want 2s", got)
	}
}

const (
	one   = "instances:\n  - {name: acme, url: https://acme.com"
	alone = "instances:\n  - {name: acme, url: https://acme.com}\n"
)

func TestWhatHoldsForRolloutsHasDefaults(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]fleet.RolloutPolicy{
		"": {Desired: "desired", MaxUnreachable: fleet.Limit{Percent: 5}, ArriveWithin: 2 * time.Hour, ErrorBudget: 10},
		"rollout: {desired: ops/wanted, max_unreachable: 0, arrive_within: 30m, error_budget: 0}\n": {Desired: "ops/wanted", ArriveWithin: 30 * time.Minute},
		"rollout: {max_unreachable: 20%}\n": {Desired: "desired", MaxUnreachable: fleet.Limit{Percent: 20}, ArriveWithin: 2 * time.Hour, ErrorBudget: 10},
	} {
		if got := load(t, map[string]string{"fleet.yaml": text + alone}).Rollout; got != want {
			t.Errorf("%q gives %+v, want %+v", text, got, want)
		}
	}
}

// bad are files with one fault each. The JSON Schema finds those that it can
// know of; the decoder finds all.
var bad = []struct {
	name, file string
	want       string // after "fleet.yaml:"
	hint       string
	schema     bool // the JSON Schema refuses it, too
}{
	{"an unknown key", one + ", chanel: dev}\n", `2:41: instances[0] (acme): expected one of the keys name, url, channel, pin, host, cloud, labels, token, config_hash, interval, timeout, tls, max_data_age, found "chanel"`, "Did you mean channel?", true},
	{"an unknown key at the top", alone + "wave: []\n", `3:1: expected one of the keys image, waves, rollout, watch, maintenance, alerts, include, defaults, instances, found "wave"`, "Did you mean waves?", true},
	{"a wrong type", "instances:\n  - name: 12\n    url: https://acme.com\n", `2:11: instances[0].name: expected a name of small letters, digits and -, 63 at most, such as acme, found the number 12`, `Quote it, so that it is text: "12"`, true},
	{"a label that is no text", one + ", labels: {beta: true}}\n", "2:56: instances[0] (acme).labels.beta: expected a label's value, such as canary, found the truth value true", `"true"`, true},
	{"nothing as a list", "instances:\n", "1:12: instances: expected a list of instances, found nothing", "Write [] for none.", true},
	{"a list for keys", "instances: [[a]]\n", "1:13: instances[0]: expected an instance, found a list", "", true},
	{"a name that is missing", "instances: [{url: https://acme.com}]\n", "1:13: instances[0]: expected the key name, found none", "Add name:", true},
	{"no instances", "image: a/b\n", "1:1: expected the key instances or include, found none", "instances: []", true},
	{"a name twice", alone + "  - {name: acme, url: https://b.com}\n", "3:12: expected each name once in the fleet, found acme again", "fleet.yaml:2:12", false},
	{"a key twice", "instances: []\ninstances: []\n", `2:1: expected each key once, found "instances" again`, "line 1", false},
	{"http to another machine", "instances: [{name: a, url: http://acme.com}]\n", "1:28: instances[0] (a).url: expected https, found http://acme.com", "Write https://acme.com", true},
	{"a url with a password", "instances: [{name: a, url: https://me:hunter2@acme.com}]\n", "1:28: instances[0] (a).url: The instance's address holds a user or password.", "token", true},
	{"a url with a query", "instances: [{name: a, url: https://acme.com?x=1}]\n", "1:28: instances[0] (a).url: The instance's address https://acme.com goes on", "", true},
	{"a url around which there are spaces", "instances: [{name: a, url: ' https://acme.com'}]\n", "1:28: instances[0] (a).url: expected an address https://HOST, or http:// on this machine, found other text", "", true},
	{"both pin and channel", one + ", pin: stable-2026.04.3, channel: stable}\n", "2:64: instances[0] (acme): expected pin or channel, found both", "Remove one", true},
	{"a pin that is a channel", one + ", pin: stable}\n", "2:46: instances[0] (acme).pin: expected a version tag such as stable-2026.04.3, found the channel stable", "Write channel: stable", true},
	{"a month of one digit", one + ", pin: stable-2026.4.3}\n", `2:46: instances[0] (acme).pin: expected a version tag such as stable-2026.04.3, found "stable-2026.4.3"`, "release-bot version list", true},
	{"a pin that is a number", one + ", pin: 2026.04}\n", "2:46: instances[0] (acme).pin: expected a version tag such as stable-2026.04.3, found the number 2026.04", "", true},
	{"a pin to a state", one + ", pin: confirmed-2026.04.3}\n", `found "confirmed-2026.04.3"`, "", true},
	{"an unknown channel", one + ", channel: beta}\n", `2:50: instances[0] (acme).channel: expected dev or stable, found "beta"`, "", true},
	{"an unknown cloud", one + ", cloud: azure}\n", `2:48: instances[0] (acme).cloud: expected gcp, aws or host, found "azure"`, "", true},
	{"a host without a user", one + ", host: ssh://203.0.113.7}\n", "2:47: instances[0] (acme).host: expected a user name before @ in the host address", "ssh://USER@HOST", true},
	{"a host with a password", one + ", host: ssh://me:hunter2@203.0.113.7}\n", "2:47: instances[0] (acme).host: expected a user without a password", "ssh://", false},
	{"a host twice", one + ", host: ssh://a@h/x}\n  - {name: b, url: https://b.com, host: ssh://b@h:22/x}\n", "3:41: expected each host and folder once in the fleet, found ssh://b@h/x again", "fleet.yaml:2:47", false},
	{"an interval that is too short", one + ", interval: 10ms}\n", `2:51: instances[0] (acme).interval: expected a duration from 1s to 24h, such as 30s, found "10ms"`, "", false},
	{"an interval without a unit", one + ", interval: 30}\n", "2:51: instances[0] (acme).interval: expected a duration from 1s to 24h, such as 30s, found the number 30", "", true},
	{"a timeout that is too long", "defaults: {timeout: 2m}\n" + alone, `1:21: defaults.timeout: expected a duration from 100ms to 1m, such as 5s, found "2m"`, "", false},
	{"a timeout beyond the interval", one + ", interval: 3s, timeout: 4s}\n", "2:64: expected a timeout no longer than the interval of acme, 3s, found 4s", "fleet.yaml:2:5", false},
	{"a reserved label", one + ", labels: {cloud: gcp}}\n", `2:50: instances[0] (acme).labels: expected a label's name, such as tier, and none of name, cloud, channel, delivery`, "", false},
	{"a label's name with a space", one + ", labels: {'a b': c}}\n", `2:50: instances[0] (acme).labels: expected a label's name`, "", true},
	{"a token in the file", one + ", token: s3cr3t-hunter2}\n", "2:48: instances[0] (acme).token: expected ${file:PATH} or ${env:NAME}, found other text, which is not shown", "${file:secrets/NAME.token}", true},
	{"a token file outside", one + ", token: '${file:../../etc/shadow}'}\n", `2:48: token: expected a file below the inventory's folder, found "../../etc/shadow"`, "", false},
	{"a token from git's own files", one + ", token: '${file:.git/config}'}\n", `expected a file below the inventory's folder, found ".git/config"`, "", false},
	{"an authority that is missing", one + ", tls: {ca: no.pem}}\n", "2:51: ca: expected a PEM file that can be read at ", "relative to", false},
	{"an authority outside", one + ", tls: {ca: ../no.pem}}\n", `2:51: ca: expected a file below the folder of the first file, found "../no.pem"`, "", false},
	{"an authority that is none", one + ", tls: {ca: fleet.yaml}}\n", "2:51: ca: expected certificates in PEM form", "openssl x509", false},
	{"an image with a tag", "image: ghcr.io/a/b:stable\n" + alone, `1:8: image: expected an image without tag and digest, such as ghcr.io/keboola/agnes-the-ai-analyst, found "ghcr.io/a/b:stable"`, "", true},
	{"a wave twice", "waves: [{name: a, percent: 10}, {name: a}]\n" + alone, "1:40: expected each wave's name once, found a again", "fleet.yaml:1:16", false},
	{"a wave behind one that takes all", "waves: [{name: a}, {name: b}]\n" + alone, "1:9: expected match or percent for the wave a, found neither", "Move it to the end.", false},
	{"no wave for an instance", "waves: [{name: a, match: {tier: canary}}]\n" + alone, "1:8: waves: expected every instance in a wave, found none for acme", "rest", false},
	{"percent zero", "waves: [{name: a, percent: 0}, {name: b}]\n" + alone, "1:28: waves[0] (a).percent: expected a whole number from 1 to 100, found the number 0", "", true},
	{"percent in parts", "waves: [{name: a, percent: 1.5}, {name: b}]\n" + alone, "1:28: waves[0] (a).percent: expected a whole number from 1 to 100, found the number 1.5", "", true},
	{"a limit of none", "waves: [{name: a, max_unavailable: 0}]\n" + alone, "1:36: waves[0] (a).max_unavailable: expected a whole number from 1, found the number 0", "", true},
	{"a limit of none in percent", "waves: [{name: a, max_unavailable: 0%}]\n" + alone, `1:36: waves[0] (a).max_unavailable: expected a share from 1% to 100%, found "0%"`, "", true},
	{"a limit that is a list", "waves: [{name: a, max_unavailable: [1]}]\n" + alone, "1:36: waves[0] (a).max_unavailable: expected a number from 1, or a share such as 10%, found a list", "", true},
	{"a soak without end", "waves: [{name: a, soak: 1000h}]\n" + alone, `1:25: waves[0] (a).soak: expected a duration from 0s to 168h, such as 10m, found "1000h"`, "", false},
	{"a rollout's budget below none", "rollout: {max_unreachable: -1}\n" + alone, "1:28: rollout.max_unreachable: expected a whole number from 0, found the number -1", "", true},
	{"a rollout's budget of no share", "rollout: {max_unreachable: 0%}\n" + alone, `1:28: rollout.max_unreachable: expected a share from 1% to 100%, found "0%"`, "", true},
	{"an error budget in text", "rollout: {error_budget: 5%}\n" + alone, `1:25: rollout.error_budget: expected a whole number from 0 to 100, found the text "5%"`, "", true},
	{"a window that is too short", "rollout: {arrive_within: 5ms}\n" + alone, `1:26: rollout.arrive_within: expected a duration from 1s to 168h, such as 2h, found "5ms"`, "", false},
	{"a folder outside", "rollout: {desired: ../desired}\n" + alone, `1:20: rollout.desired: expected a folder below that of the first file, such as desired, found "../desired"`, "", true},
	{"an unknown key of rollouts", "rollout: {budget: 5}\n" + alone, "1:11: rollout: expected one of the keys desired, max_unreachable, arrive_within, error_budget, found \"budget\"", "", true},
	{"a selector that is none", "waves: [{name: a, match: 'tier in canary'}, {name: b}]\n" + alone, `1:26: waves[0] (a).match: expected ( at character 9 of the selector, found "canary"`, "region in (eu,us)", false},
	{"a judge for both sides", "watch: {judge: 1/3}\n" + alone, "1:16: watch.judge: Expected M of N with N/2 < M <= N <= 64, found 1 of 3.", "2 of 3", false},
	{"a time without an end", "maintenance: [{from: 2026-05-01T20:00:00Z}]\n" + alone, "1:15: maintenance: expected the keys from and to, or weekly, found less", "weekly", false},
	{"a time that ends before it begins", "maintenance: [{from: 2026-05-01T20:00:00Z, to: 2026-05-01T19:00:00Z}]\n" + alone, "1:48: maintenance: expected an end after the begin", "", false},
	{"a time that is once and each week", "maintenance: [{from: 2026-05-01T20:00:00Z, weekly: Sun 02:00-04:00}]\n" + alone, "1:44: maintenance[0]: expected from or weekly, found both", "Remove one", true},
	{"a day that is none", "maintenance: [{weekly: Sunday 02:00-04:00}]\n" + alone, `1:24: maintenance[0].weekly: expected days and a span of time such as Sun 02:00-04:00 Europe/Prague, found "Sunday 02:00-04:00"`, "Mon-Fri", true},
	{"a zone that is none", "maintenance: [{weekly: Sun 02:00-04:00 Mars/Olympus}]\n" + alone, `found a time zone "Mars/Olympus" that is not known here`, "UTC", false},
	{"a channel without what it needs", "alerts: [{type: telegram, chat: '1'}]\n" + alone, "1:10: alerts (telegram): expected the key token for the type telegram, found none", "docs/fleet.md", false},
	{"a key of another channel", "alerts: [{type: slack, url: '${env:U}', chat: '1'}]\n" + alone, "1:47: alerts (slack): expected none of the key chat for the type slack, found it", "Remove it.", false},
	{"a slack address in the file", "alerts: [{type: slack, url: https://hooks.slack.com/services/hunter2}]\n" + alone, "1:29: alerts (slack): url: expected ${file:PATH} or ${env:NAME}, found other text, which is not shown", "secrets/slack.url", false},
	{"a webhook over http", "alerts: [{type: webhook, url: http://acme.com/hook, secret: '${env:S}'}]\n" + alone, "1:31: alerts[0].url: expected https://", "", true},
	{"a channel twice", "alerts: [{type: slack, url: '${env:U}'}, {type: slack, url: '${env:V}'}]\n" + alone, "1:42: expected each channel's name once, found slack again", "name", false},
	{"a kind that is none", "alerts: [{type: slack, url: '${env:U}', kinds: [down]}]\n" + alone, `1:49: alerts[0].kinds[0]: expected one of unreachable, unhealthy`, "", true},
	{"mail in the clear to another machine", "alerts: [{type: email, server: 'mx.acme.com:25', from: a@acme.com, to: [b@acme.com], tls: none}]\n" + alone, "1:91: alerts (email): expected starttls or tls for another machine", "", false},
	{"a password without a user", "alerts: [{type: email, server: 'mx.acme.com:25', from: a@acme.com, to: [b@acme.com], password: '${env:P}'}]\n" + alone, "1:10: alerts (email): expected both user and password", "", false},
	{"an anchor", "instances: [&a {name: acme, url: https://acme.com}]\n", "1:13: instances[0]: expected a plain value, found an anchor", "defaults", false},
	{"an alias", "instances: *d\n", "1:12: instances: expected a plain value, found an anchor, an alias or a tag", "defaults", false},
	{"two documents", alone + "---\ninstances: []\n", "4:1: expected one document, found another", "include", false},
	{"an empty file", "# nothing\n", " expected an inventory, found an empty file", "instances: []", false},
	{"no YAML", "instances: [\n", "expected YAML", "", false},
	{"an include that is missing", "include: [no.yaml]\n", "1:11: expected a file that can be read at ", "relative to", false},
	{"a pattern without files", "include: ['no/*.yaml']\n", "1:11: expected files that match ", "", false},
	{"an include outside", "include: [../other.yaml]\n", `1:11: expected a file below the folder of the first file, found "../other.yaml"`, "", false},
	{"an absolute include", "include: [/etc/passwd]\n", `1:11: include[0]: expected a path below the folder of the first file`, "", true},
	{"an include of itself", "include: ['*.yaml']\n", "1:11: expected no file to include itself, found fleet.yaml -> fleet.yaml", "customers/*.yaml", false},
}

func TestEachFaultIsNamedWithItsPlaceAndNextStep(t *testing.T) {
	t.Parallel()
	for _, c := range bad {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, map[string]string{"fleet.yaml": c.file})
			_, err := fleet.Load(path, fleet.LoadOptions{})
			p, ok := errors.AsType[*problem.Error](err)
			if !ok || p.Kind != problem.Usage {
				t.Fatalf("got %v, want a usage problem", err)
			}
			message := strings.ReplaceAll(p.Message, path+":", "")
			hint := strings.ReplaceAll(p.Hint, path, "fleet.yaml")
			if !strings.Contains(message, c.want) || c.want[0] >= '0' && c.want[0] <= '9' && !strings.HasPrefix(message, c.want) {
				t.Errorf("got  %s\nwant %s", message, c.want)
			}
			if !strings.Contains(hint, c.hint) {
				t.Errorf("hint %q, want %q in it", hint, c.hint)
			}
			if strings.Contains(err.Error()+p.Hint, "hunter2") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestAllFaultsOfAllFilesAreSaidAtOnceInOrder(t *testing.T) {
	t.Parallel()
	path := write(t, map[string]string{
		"fleet.yaml": "include: [more.yaml]\ninstances:\n  - {name: A, url: https://a.com, cloud: azure}\n  - {name: b, url: ftp://b}\n",
		"more.yaml":  "waves: []\ninstances: [{name: c, url: https://c.com, pin: latest}]\n",
	})
	_, err := fleet.Load(path, fleet.LoadOptions{})
	if err == nil {
		t.Fatal("no error")
	}
	dir := filepath.Dir(path) + "/"
	golden.Compare(t, "testdata/inventory/faults.golden", []byte(strings.ReplaceAll(err.Error(), dir, "")+"\n"))
	var all interface{ Unwrap() []error }
	if !errors.As(err, &all) || len(all.Unwrap()) != 5 {
		t.Errorf("the error holds not five errors: %v", err)
	}
}

func schemaFor(t testing.TB, made func() ([]byte, error)) *jsonschema.Schema {
	t.Helper()
	text, err := made()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource(fleet.SchemaID, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(fleet.SchemaID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON reads YAML as an editor does before it holds it against a schema.
func asJSON(content string) (any, error) {
	var v any
	if err := yaml.UnmarshalWithOptions([]byte(content), &v, yaml.AllowDuplicateMapKey()); err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(strings.NewReader(string(encoded)))
}

func TestTheSchemaRefusesWhatItSaysItRefusesAndNothingThatTheDecoderTakes(t *testing.T) {
	t.Parallel()
	s := schemaFor(t, fleet.Schema)
	good, err := filepath.Glob("testdata/inventory/good/*.yaml")
	if err != nil || len(good) < 2 {
		t.Fatalf("found %v, %v", good, err)
	}
	for _, file := range good {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fleet.Load(file, fleet.LoadOptions{}); err != nil {
			t.Errorf("the decoder refuses %s: %v", file, err)
		}
		if v, err := asJSON(string(content)); err != nil || s.Validate(v) != nil {
			t.Errorf("the schema refuses %s: %v, %v", file, err, s.Validate(v))
		}
	}
	for _, c := range bad {
		v, err := asJSON(c.file)
		if err != nil || v == nil {
			continue // no YAML, or none at all: no schema comes to see it
		}
		if refused := s.Validate(v) != nil; refused != c.schema {
			t.Errorf("%s: the schema refuses it: %t, want %t: %v", c.name, refused, c.schema, s.Validate(v))
		}
	}
}

func TestTheSchemaOfAPartHasNeitherWavesNorImage(t *testing.T) {
	t.Parallel()
	s := schemaFor(t, fleet.PartSchema)
	for content, want := range map[string]bool{alone: true, alone + "waves: []\n": false, "image: a/b\n" + alone: false, "include: [a.yaml]\n": true} {
		v, err := asJSON(content)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Validate(v) == nil; got != want {
			t.Errorf("%q fits: %t, want %t", content, got, want)
		}
	}
}

func TestTheSchemaIsReviewedAsAFile(t *testing.T) {
	t.Parallel()
	text, err := fleet.Schema()
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/inventory/schema.golden", text)
}

func TestADeepOrLargeFileDoesNotReachTheParser(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"lists in one line":     "instances: " + strings.Repeat("[", 100_000),
		"maps in one line":      "instances: " + strings.Repeat("{a: ", 100_000),
		"entries in one line":   strings.Repeat("- ", 100_000) + "a",
		"questions in one line": strings.Repeat("? ", 100_000) + "a",
		"lines that go further in": func() string {
			var b strings.Builder
			for n := range 2_000 {
				b.WriteString(strings.Repeat(" ", n) + "a:\n")
			}
			return b.String()
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := fleet.Load(write(t, map[string]string{"fleet.yaml": content}), fleet.LoadOptions{})
			if err == nil || !strings.Contains(err.Error(), "expected values at most 32 deep, found more") {
				t.Errorf("got %v", err)
			}
		})
	}
	_, err := fleet.Load(write(t, map[string]string{"fleet.yaml": strings.Repeat("a:\n", 50_000)}), fleet.LoadOptions{})
	if err == nil || !strings.Contains(err.Error(), "fleet.yaml:513:1: expected at most 512 keys together, found more") {
		t.Errorf("got %v", err)
	}
	_, err = fleet.Load(write(t, map[string]string{"fleet.yaml": "# " + strings.Repeat("x", 17<<20)}), fleet.LoadOptions{})
	if err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("got %v", err)
	}
}

func TestNothingLeavesTheFolderByALink(t *testing.T) {
	t.Parallel()
	outside := write(t, map[string]string{"x.yaml": "instances: []\n", "x.token": "secret"})
	path := write(t, map[string]string{"fleet.yaml": "include: [x.yaml]\n", "ok.yaml": one + ", token: '${file:x.token}'}\n"})
	for _, name := range []string{"x.yaml", "x.token"} {
		if err := os.Symlink(filepath.Join(filepath.Dir(outside), name), filepath.Join(filepath.Dir(path), name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fleet.Load(path, fleet.LoadOptions{}); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("the include: %v", err)
	}
	v, err := fleet.Load(filepath.Join(filepath.Dir(path), "ok.yaml"), fleet.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := v.Instances[0].Token.Read(); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("the token: %q, %v", secret.Reveal(), err)
	}
}

func TestATokenIsReadWhenItIsAskedFor(t *testing.T) {
	t.Parallel()
	path := write(t, map[string]string{
		"fleet.yaml": "include: [eu/eu.yaml]\n",
		"eu/eu.yaml": `instances:
  - {name: a, url: https://a.com, token: "${file:secrets/a.token}"}
  - {name: b, url: https://b.com, token: "${env:B_TOKEN}"}
  - {name: c, url: https://c.com, token: "${env:C_TOKEN}"}
  - {name: d, url: https://d.com}
  - {name: e, url: https://e.com, token: "${file:secrets/e.token}"}
`,
		"eu/secrets/e.token": "two words\n",
	})
	v, err := fleet.Load(path, fleet.LoadOptions{Getenv: func(name string) string { return map[string]string{"B_TOKEN": "token-b"}[name] }})
	if err != nil {
		t.Fatal(err)
	}
	read := func(n int) string {
		secret, err := v.Instances[n].Token.Read()
		if err != nil {
			return err.Error()
		}
		return secret.Reveal()
	}
	file := filepath.Join(filepath.Dir(path), "eu/secrets/a.token")
	if got := read(0); !strings.Contains(got, "eu.yaml:2:42: the token ${file:secrets/a.token} of a: expected a token in "+file) {
		t.Errorf("a file that is missing: %s", got)
	}
	if err := os.WriteFile(file, []byte("token-a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(0); got != "token-a" {
		t.Errorf("got %s", got)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if got := read(0); !strings.Contains(got, "others on this machine may read "+file) {
		t.Errorf("a file that others may read: %s", got)
	}
	for n, want := range []string{1: "token-b", 2: "the variable C_TOKEN is not set", 3: "", 4: "expected one token in"} {
		if got := read(n); n > 0 && !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", v.Instances[n].Name, got, want)
		}
	}
	if text, err := json.Marshal(v); err != nil || strings.Contains(string(text), "token-b") {
		t.Errorf("the inventory shows a token: %s, %v", text, err)
	}
}

func TestSelectReadsLabelsOfTheFileAndImplicitOnes(t *testing.T) {
	t.Parallel()
	v, err := fleet.Load(contractFile, fleet.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]string{
		"":                        {"acme", "bolt", "local"},
		"tier=canary":             {"acme"},
		"cloud!=aws":              {"acme", "local"},
		"delivery=pull,!cloud":    {"local"},
		"channel in (dev,stable)": {"bolt", "local"},
		"!channel":                {"acme"},
		"name=bolt":               {"bolt"},
		"region":                  {"bolt"},
	} {
		s, err := fleet.ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(v.Select(s)); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func pemOf(certificate []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}))
}
