package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	prom "github.com/prometheus/common/model"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// fullRig has an instance with all that one can say, one that is down, one that
// was never asked, and one that lies.
func fullRig(t *testing.T) *rig {
	t.Helper()
	full := healthy("acme", "2026.04.3")
	full.Details, full.LastSync, full.StaleTables = true, time.Now().Add(-time.Hour), 1
	full.CertNotAfter, full.Skew, full.Warnings = time.Now().Add(90*24*time.Hour), time.Second, []string{"The disk has 4% left."}
	liar := healthy("liar", strings.Repeat("x", 30)+"\"\n\\{\u202e")
	liar.Channel = "evil\nchannel"
	down := fleet.Result{Name: "core", Health: fleet.Unreachable, Err: problem.New(problem.Unavailable, "Expected a server, found none.", "Start it.")}
	return newRig(t, Access{}, full, liar, down, fleet.Result{Name: "dawn"})
}

func TestMetricsAreWhatPrometheusExpects(t *testing.T) {
	t.Parallel()
	g := fullRig(t)
	faults, err := testutil.GatherAndLint(g.server.registry)
	if err != nil || len(faults) > 0 {
		t.Errorf("%v %v", faults, err)
	}
	status, body, h := g.do(t, http.MethodGet, "/metrics", "", "Accept", "application/openmetrics-text; version=1.0.0")
	if status != http.StatusOK || !strings.HasPrefix(h.Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(body, "# EOF\n") {
		t.Errorf("%d %s", status, h.Get("Content-Type"))
	}
	_, text := g.get(t, "/metrics")
	parser := expfmt.NewTextParser(prom.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	// One value of a family that has these labels, or none.
	value := func(name string, labels ...string) string {
		for _, m := range families[name].GetMetric() {
			has := 0
			for _, l := range m.GetLabel() {
				for i := 0; i+1 < len(labels); i += 2 {
					if l.GetName() == labels[i] && l.GetValue() == labels[i+1] {
						has++
					}
				}
			}
			if has == len(labels)/2 {
				return fmt.Sprint(m.GetGauge().GetValue() + m.GetCounter().GetValue())
			}
		}
		return "none"
	}
	for _, tt := range []struct {
		want, name string
		labels     []string
	}{
		{"1", "agnes_fleet_instance_up", []string{"name", "acme"}},
		{"0", "agnes_fleet_instance_up", []string{"name", "core"}},
		{"none", "agnes_fleet_instance_up", []string{"name", "dawn"}}, // nothing is known of it
		{"1", "agnes_fleet_instance_health", []string{"name", "core", "state", "unreachable"}},
		{"0", "agnes_fleet_instance_health", []string{"name", "core", "state", "healthy"}},
		{"1", "agnes_fleet_instance_health", []string{"name", "dawn", "state", "unknown"}},
		{"1", "agnes_fleet_instance_info", []string{"name", "acme", "version", "2026.04.3", "channel", "stable", "wanted", "stable", "delivery", "pull"}},
		{"1", "agnes_fleet_instance_info", []string{"name", "liar", "version", "other", "channel", "other"}},
		{"0.012", "agnes_fleet_instance_probe_duration_seconds", []string{"name", "acme"}},
		{"none", "agnes_fleet_instance_probe_duration_seconds", []string{"name", "core"}},
		{"0", "agnes_fleet_instance_drift", []string{"name", "acme"}},
		{"1", "agnes_fleet_instance_drift", []string{"name", "liar"}},
		{"none", "agnes_fleet_instance_drift", []string{"name", "core"}},
		{"1", "agnes_fleet_instance_stale_tables", []string{"name", "acme"}},
		{"none", "agnes_fleet_instance_stale_tables", []string{"name", "liar"}},
		{"1", "agnes_fleet_instance_warnings", []string{"name", "acme"}},
		{"2", "agnes_fleet_instances", []string{"state", "healthy"}},
		{"1", "agnes_fleet_instances", []string{"state", "unknown"}},
		{"1", "agnes_fleet_instances_drifted", nil},
		{"7", "agnes_fleet_probes_total", nil},
		{"2", "agnes_fleet_probe_rounds_skipped_total", nil},
		{"1", "agnes_fleet_store_writable", nil},
		{"1", "agnes_fleet_inventory_valid", nil},
		{"0", "agnes_fleet_incidents_open", nil},
	} {
		if got := value(tt.name, tt.labels...); got != tt.want {
			t.Errorf("%s%v is %s, want %s", tt.name, tt.labels, got, tt.want)
		}
	}
	// However many things an instance says, it has so many series and no more.
	most := 0
	for _, line := range strings.Split(text, "\n") {
		if strings.Contains(line, `name="acme"`) {
			most++
		}
	}
	if most != 16 {
		t.Errorf("an instance has %d series", most)
	}
}

func TestMetricsGoOnWhileNobodyLooksAtThePage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newStillRig(t, Access{}, healthy("acme", "2026.04.3"))
		for range 3 {
			<-time.After(time.Minute)
			again := healthy("acme", "2026.04.3")
			again.At, again.Timing.Total = time.Now(), 34*time.Millisecond
			g.quietly(t, map[string]fleet.Result{"acme": again})
		}
		for _, want := range []string{`agnes_fleet_instance_probe_duration_seconds{name="acme"} 0.034`, "agnes_fleet_probe_overdue_seconds 0\n"} {
			if body := g.page("/metrics"); !strings.Contains(body, want) {
				t.Errorf("no %s in\n%s", want, body)
			}
		}
	})
}

// pipe is a listener of one connection in memory, which belongs to a bubble.
type pipe chan net.Conn

func (p pipe) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (pipe) Close() error   { return nil }
func (pipe) Addr() net.Addr { return &net.TCPAddr{} }

func TestReadersThatDoNotReadKeepPrometheusOutForAMinuteAtMost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newStillRig(t, Access{}, healthy("acme", "2026.04.3"))
		web, listener := &http.Server{Handler: g.server, ReadHeaderTimeout: time.Minute}, make(pipe)
		served := make(chan error, 1)
		go func() { served <- web.Serve(listener) }()
		defer func() {
			close(listener)
			if err := errors.Join(<-served, web.Close()); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}()
		for range 2 {
			theirs, ours := net.Pipe()
			defer theirs.Close()
			listener <- ours
			if _, err := io.WriteString(theirs, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if body := g.page("/metrics"); !strings.Contains(body, "Limit of concurrent requests") {
			t.Errorf("nobody is in the way: %s", body)
		}
		<-time.After(answerLimit)
		synctest.Wait()
		if body := g.page("/metrics"); !strings.Contains(body, `name="acme"`) {
			t.Errorf("they are still in the way: %s", body)
		}
	})
}

var metricName = regexp.MustCompile(`\bagnes_[a-z0-9_]+`)

// exported are the names of all metrics of a fleet in which everything is known.
func exported(t *testing.T) []string {
	t.Helper()
	g := fullRig(t)
	families, err := g.server.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	return names
}

func monitoring(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", "infra", "monitoring", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// checkExpr parses an expression and looks for metrics that nobody exports.
func checkExpr(t *testing.T, where, expr string, names []string) {
	t.Helper()
	expr = strings.NewReplacer("$name", "acme").Replace(expr)
	if _, err := metricsql.Parse(expr); err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
	}
	found := metricName.FindAllString(expr, -1)
	for _, name := range found {
		if !slices.Contains(names, name) {
			t.Errorf("%s: nobody exports %s", where, name)
		}
	}
	if len(found) == 0 && !strings.Contains(expr, `up{job="agnes-fleet"}`) {
		t.Errorf("%s is about no metric of ours: %s", where, expr)
	}
}

func TestAlertRulesAndDashboardUseMetricsThatExist(t *testing.T) {
	t.Parallel()
	names := exported(t)
	var rules struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Expr        string            `yaml:"expr"`
				For         string            `yaml:"for"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.UnmarshalWithOptions(monitoring(t, "rules.yml"), &rules, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			n++
			checkExpr(t, r.Alert, r.Expr, names)
			if _, err := prom.ParseDuration(r.For); err != nil || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s lacks for, severity, summary or description: %v", r.Alert, err)
			}
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	if err := json.Unmarshal(monitoring(t, "grafana/agnes-fleet.json"), &board); err != nil {
		t.Fatal(err)
	}
	m := 0
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			m++
			checkExpr(t, p.Title, target.Expr, names)
		}
	}
	if n < 10 || m < 10 {
		t.Errorf("%d rules and %d expressions of the dashboard were checked", n, m)
	}
	for _, name := range metricName.FindAllString(fmt.Sprint(board.Templating), -1) {
		if !slices.Contains(names, name) {
			t.Errorf("the dashboard's variables: nobody exports %s", name)
		}
	}
}

func TestTargetsAreWhatPrometheusReads(t *testing.T) {
	t.Parallel()
	g := newRig(t, Access{}, healthy("acme", "2026.04.3"), healthy("bolt", "2026.04.3"))
	var groups []TargetGroup
	status, body, h := g.do(t, http.MethodGet, "/sd?l=tier%3Dcanary", "")
	if err := json.Unmarshal([]byte(body), &groups); err != nil || status != http.StatusOK || h.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s %v", status, body, err)
	}
	want := `[{[acme.example.com:443] map[__meta_agnes_channel:stable __meta_agnes_delivery:pull __meta_agnes_label_tier:canary __meta_agnes_url:https://acme.example.com __meta_agnes_wanted:stable __metrics_path__:/metrics __scheme__:https name:acme]}]`
	if got := fmt.Sprint(groups); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if _, body := g.get(t, "/sd?for=health&l=tier%3Drest"); !strings.Contains(body, `"https://bolt.example.com/api/health"`) || strings.Contains(body, "acme") {
		t.Error(body)
	}
	shards := 0
	for _, shard := range []string{"1/2", "2/2"} {
		_, body := g.get(t, "/sd?shard="+shard)
		shards += strings.Count(body, "__scheme__")
	}
	if shards != 2 {
		t.Errorf("the shards have %d targets together", shards)
	}
	for _, bad := range []string{"for=nonsense", "shard=3/2", "l=%3D%3D"} {
		if status, _ := g.get(t, "/sd?"+bad); status != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, status)
		}
	}
	deep, err := Targets([]fleet.Instance{{Name: "x", URL: "http://127.0.0.1:8080/agnes", Pin: "stable-2026.04.3", Labels: map[string]string{"acme.com/team-a": "x"}}}, ForMetrics)
	if err != nil || deep[0].Targets[0] != "127.0.0.1:8080" || deep[0].Labels["__metrics_path__"] != "/agnes/metrics" || deep[0].Labels["__meta_agnes_label_acme_com_team_a"] != "x" {
		t.Errorf("%v %v", deep, err)
	}
}
