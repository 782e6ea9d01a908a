package dashboard

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// What the targets of a service discovery are asked for.
const (
	ForMetrics = "metrics" // each instance's own GET /metrics; needs a token
	ForHealth  = "health"  // GET /api/health, by an exporter that probes
)

// TargetGroup is one instance in Prometheus' HTTP service discovery.
// https://prometheus.io/docs/prometheus/latest/http_sd/
type TargetGroup struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// Targets lists instances for Prometheus. For metrics a target is host:port, with
// the scheme and the path as labels; for health it is the whole address. The label
// name stays on every series; what begins with __meta_agnes_ is for relabeling.
func Targets(instances []fleet.Instance, what string) ([]TargetGroup, error) {
	if what != ForMetrics && what != ForHealth {
		return nil, problem.New(problem.Usage, "Expected targets for metrics or health, found "+what+".", "Say metrics, for the instances' own, or health, for a blackbox exporter.")
	}
	groups := make([]TargetGroup, 0, len(instances))
	for _, in := range instances {
		u, err := url.Parse(in.URL)
		if err != nil {
			continue // the inventory has been checked
		}
		labels := map[string]string{
			"name": in.Name, "__meta_agnes_wanted": in.Wanted(), "__meta_agnes_channel": in.Channel,
			"__meta_agnes_delivery": in.Delivery(), "__meta_agnes_cloud": in.Cloud, "__meta_agnes_url": in.URL,
		}
		for key, value := range in.Labels {
			labels["__meta_agnes_label_"+labelName(key)] = value
		}
		target := u.JoinPath("api", "health").String()
		if what == ForMetrics {
			target = u.Host
			if u.Port() == "" {
				target += map[string]string{"http": ":80"}[u.Scheme]
				if u.Scheme == "https" {
					target += ":443"
				}
			}
			labels["__scheme__"], labels["__metrics_path__"] = u.Scheme, "/"+strings.TrimPrefix(u.JoinPath("metrics").Path, "/")
		}
		for key, value := range labels {
			if value == "" {
				delete(labels, key)
			}
		}
		groups = append(groups, TargetGroup{Targets: []string{target}, Labels: labels})
	}
	slices.SortFunc(groups, func(a, b TargetGroup) int { return strings.Compare(a.Labels["name"], b.Labels["name"]) })
	return groups, nil
}

// labelName makes a label's key one of Prometheus, as its Kubernetes discovery does.
func labelName(key string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, key)
}

// discovery answers GET /sd?for=metrics|health&l=SELECTOR&shard=I/N.
func (s *Server) discovery(w http.ResponseWriter, r *http.Request) {
	refuse := func(err error) {
		p := problem.As(err)
		http.Error(w, p.Error()+" "+p.Hint, p.Kind.Status())
	}
	q := r.URL.Query()
	selector, err := fleet.ParseSelector(q.Get("l"))
	if err != nil {
		refuse(problem.Wrap(err, problem.Usage, "The selector cannot be read", "Write it as l=tier=canary,cloud!=aws"))
		return
	}
	shard, err := fleet.ParseShard(q.Get("shard"))
	if err != nil {
		refuse(err)
		return
	}
	what := q.Get("for")
	if what == "" {
		what = ForMetrics
	}
	var chosen []fleet.Instance
	v, _, _ := s.current()
	for _, in := range v.Instances {
		if shard.Has(in.Name) && selector.Matches(in.LabelSet()) {
			chosen = append(chosen, in)
		}
	}
	groups, err := Targets(chosen, what)
	if err != nil {
		refuse(err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(groups)
}
