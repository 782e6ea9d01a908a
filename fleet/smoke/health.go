package smoke

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// askHealth returns the health of an instance that is not unhealthy.
func (r *run) askHealth(ctx context.Context, s *Step) (*api.Health, *finding) {
	e := exchange{method: http.MethodGet, path: "/api/health"}
	a, wrong := r.call(ctx, s, e)
	if wrong != nil {
		return nil, wrong
	}
	h, wrong := decode[api.Health](e, a)
	switch {
	case wrong != nil:
		return nil, wrong
	case h.Status == api.Unhealthy:
		return nil, failing(hintOf(h), "The instance is unhealthy. %s", strings.Join(h.Warnings, " "))
	case h.Status != api.Healthy && h.Status != api.Degraded:
		return nil, failing("", "Expected the status healthy or degraded in GET /api/health, found %q.", h.Status)
	}
	return &h, nil
}

// hintOf returns the way to mend the worst service.
func hintOf(h api.Health) string {
	hint, worst := "", 0
	for _, name := range slices.Sorted(maps.Keys(h.Services)) {
		if s := h.Services[name]; rank(s.Status) > worst && s.Hint != "" {
			hint, worst = s.Hint, rank(s.Status)
		}
	}
	return hint
}

// rank orders the states; one that this version does not know is no good sign.
func rank(status string) int {
	switch status {
	case api.Healthy, "": // a service that was not there had no error
		return 0
	case api.Unhealthy:
		return 2
	default:
		return 1
	}
}

// newErrors lists what is worse now than it was: a service's state, the whole's,
// or a warning that was not there.
func newErrors(was, now api.Health) []string {
	var found []string
	details := map[string]bool{} // an instance repeats them as warnings
	for _, name := range slices.Sorted(maps.Keys(now.Services)) {
		s := now.Services[name]
		details[s.Detail] = true
		if before := was.Services[name].Status; rank(s.Status) > rank(before) {
			found = append(found, fmt.Sprintf("%s is %s: %s", name, s.Status, s.Detail))
		}
	}
	known := map[string]int{}
	for _, w := range was.Warnings {
		known[shape(w)]++
	}
	for _, w := range now.Warnings {
		if known[shape(w)]--; known[shape(w)] < 0 && !details[w] && !deprecation(w) {
			found = append(found, "New warning: "+w)
		}
	}
	if len(found) == 0 && rank(now.Status) > rank(was.Status) {
		found = append(found, fmt.Sprintf("It is %s.", now.Status))
	}
	return found
}

var number = regexp.MustCompile(`[0-9]+`)

// shape is a warning without its numbers: a disk with 811 MB left instead of 812
// is no news, and neither is a date.
func shape(warning string) string { return number.ReplaceAllString(warning, "0") }

// deprecation reports whether a warning is about the version's support. That
// depends on what was released meanwhile and not on how it runs.
func deprecation(warning string) bool {
	return strings.HasPrefix(warning, "Running deprecated version")
}
