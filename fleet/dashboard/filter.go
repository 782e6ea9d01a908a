package dashboard

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// perPage is how many rows a page of the table has.
const perPage = 250

// filter is what a person wants to see of the fleet. Its text is the query of the
// page's address, so that a view can be shared.
type filter struct {
	States   []string
	Version  string
	Channel  string
	Drift    string // yes, no, unknown
	Warn     bool   // with warnings, or deprecated
	Label    string // selector, as it was written
	Text     string
	Sort     string // column; with - before it the other way round; empty: the worst first
	Group    string // of the grid: a label
	Page     int    // from 1
	selector fleet.Selector
	Wrong    *problem.Error // the selector cannot be read
}

// maxQuery bounds what is searched for.
const maxQuery = 200

func parseFilter(q url.Values) filter {
	clip := func(key string) string {
		text := strings.TrimSpace(q.Get(key))
		return strings.ToValidUTF8(text[:min(len(text), maxQuery)], "")
	}
	f := filter{Version: clip("version"), Channel: clip("channel"), Drift: clip("drift"), Warn: q.Get("warn") != "", Label: clip("l"), Text: clip("q"), Sort: clip("sort"), Group: clip("group"), Page: 1}
	for _, value := range q["state"] {
		for _, s := range strings.Split(value, ",") {
			if slices.Contains(states(), s) && !slices.Contains(f.States, s) {
				f.States = append(f.States, s)
			}
		}
	}
	if !slices.Contains([]string{"yes", "no", "unknown"}, f.Drift) {
		f.Drift = ""
	}
	if orderOf(strings.TrimPrefix(f.Sort, "-")) == nil {
		f.Sort = ""
	}
	if n, err := strconv.Atoi(q.Get("page")); err == nil && n > 1 {
		f.Page = min(n, 1<<20)
	}
	selector, err := fleet.ParseSelector(f.Label)
	if err != nil {
		f.Wrong = problem.Wrap(err, problem.Usage, "This selector cannot be read", "Write it as tier=canary,cloud!=aws,region in (eu,us),!beta")
	}
	f.selector = selector
	return f
}

// values is the query that parseFilter reads as f; page 1 is left out.
func (f filter) values() url.Values {
	q := url.Values{}
	set := func(key, value string) {
		if value != "" {
			q.Set(key, value)
		}
	}
	set("state", strings.Join(f.States, ","))
	set("version", f.Version)
	set("channel", f.Channel)
	set("drift", f.Drift)
	if f.Warn {
		q.Set("warn", "1")
	}
	set("l", f.Label)
	set("q", f.Text)
	set("sort", f.Sort)
	set("group", f.Group)
	if f.Page > 1 {
		q.Set("page", strconv.Itoa(f.Page))
	}
	return q
}

// Query is values as text, without the question mark.
func (f filter) Query() string { return f.values().Encode() }

// URL is the overview's address with this filter.
func (f filter) URL() string {
	if q := f.Query(); q != "" {
		return "/?" + q
	}
	return "/"
}

// Active reports whether anything is left out.
func (f filter) Active() bool {
	f.Sort, f.Group, f.Page = "", "", 1
	return len(f.values()) > 0
}

// Toggle returns the address in which one state is the only one, or all are again.
func (f filter) Toggle(state string) string {
	if f.Has(state) && len(f.States) == 1 {
		f.States = nil
	} else {
		f.States = []string{state}
	}
	f.Page = 1
	return f.URL()
}

// Has reports whether a state is chosen.
func (f filter) Has(state string) bool { return slices.Contains(f.States, state) }

// With returns the address with one key changed.
func (f filter) With(key, value string) string {
	q := f.values()
	q.Del("page")
	q.Del(key)
	if value != "" {
		q.Set(key, value)
	}
	if len(q) == 0 {
		return "/"
	}
	return "/?" + q.Encode()
}

// OnPage returns the address of another page of the table.
func (f filter) OnPage(n int) string {
	f.Page = n
	return f.URL() + "#instances"
}

// SortURL returns the address in which a column decides; a second click turns it.
func (f filter) SortURL(column string) string {
	if f.Sort == column {
		column = "-" + column
	}
	return f.With("sort", column) + "#instances"
}

// AriaSort is the value of aria-sort of a column's head.
func (f filter) AriaSort(column string) string {
	switch {
	case strings.TrimPrefix(f.Sort, "-") != column:
		return "none"
	case f.descends():
		return "descending"
	}
	return "ascending"
}

// descends reports whether the largest comes first.
func (f filter) descends() bool {
	o := orderOf(strings.TrimPrefix(f.Sort, "-"))
	return o != nil && o.down != strings.HasPrefix(f.Sort, "-")
}

// matches reports whether a row is wanted.
func (f *filter) matches(r *row) bool {
	if len(f.States) > 0 && !slices.Contains(f.States, r.State) ||
		f.Version != "" && r.Version != f.Version ||
		f.Channel != "" && r.Channel != f.Channel ||
		f.Warn && len(r.Warnings) == 0 && !r.Deprecated {
		return false
	}
	switch f.Drift {
	case "yes":
		if !r.Drifts() {
			return false
		}
	case "no":
		if r.Drift == nil || *r.Drift {
			return false
		}
	case "unknown":
		if r.Drift != nil {
			return false
		}
	}
	if f.Wrong != nil || !f.selector.Matches(r.Labels) {
		return false
	}
	for word := range strings.FieldsSeq(strings.ToLower(f.Text)) {
		if !strings.Contains(r.search, word) {
			return false
		}
	}
	return true
}

// apply returns the rows that are wanted, in the order of their names.
func (f *filter) apply(rows []*row) []*row {
	return slices.DeleteFunc(rows, func(r *row) bool { return !f.matches(r) })
}

// sort orders rows for the table.
func (f filter) sort(rows []*row) {
	f.Sort = cmp.Or(f.Sort, "state")
	o, down := orderOf(strings.TrimPrefix(f.Sort, "-")), f.descends()
	slices.SortStableFunc(rows, func(a, b *row) int {
		switch known := o.known(a); {
		case known != o.known(b):
			if known {
				return -1
			}
			return 1
		case !known:
			return 0
		case down:
			return o.by(b, a)
		}
		return o.by(a, b)
	})
}

// order is that of a column. What is not known comes last, either way.
type order struct {
	by    func(a, b *row) int // the smallest first
	down  bool                // the first click shows the largest first
	known func(*row) bool
}

// orderOf returns a column's order, or nil for one that does not exist.
func orderOf(column string) *order {
	text := func(of func(*row) string) *order {
		return &order{by: func(a, b *row) int { return strings.Compare(of(a), of(b)) }, known: func(r *row) bool { return of(r) != "" }}
	}
	number := func(of func(*row) *int64) *order {
		return &order{by: func(a, b *row) int { return cmp.Compare(*of(a), *of(b)) }, down: true, known: func(r *row) bool { return of(r) != nil }}
	}
	switch column {
	case "name":
		return text(func(r *row) string { return r.Name })
	case "state":
		return &order{by: func(a, b *row) int { return cmp.Compare(a.badness(), b.badness()) }, down: true, known: func(*row) bool { return true }}
	case "version":
		o := text(func(r *row) string { return r.Version })
		words := o.by
		o.by = func(a, b *row) int { return cmp.Or(a.version.Compare(b.version), words(a, b)) }
		return o
	case "channel":
		return text(func(r *row) string { return r.Channel })
	case "wanted":
		return text(func(r *row) string { return r.Wanted })
	case "drift":
		return &order{by: func(a, b *row) int { return cmp.Compare(truth(b.Drifts()), truth(a.Drifts())) }, known: func(r *row) bool { return r.Drift != nil }}
	case "age":
		return number(func(r *row) *int64 { return r.DataAgeS })
	case "latency":
		return number(func(r *row) *int64 { return r.LatencyMS })
	case "probed":
		return &order{by: func(a, b *row) int { return a.ProbedAt.Compare(b.ProbedAt) }, known: func(r *row) bool { return !r.ProbedAt.IsZero() }}
	}
	return nil
}

// badness orders rows as fleet.Status does, with the unknown between.
func (r *row) badness() int {
	b := 10 * (len(states()) - slices.Index(states(), r.State))
	if r.Drifts() {
		b += 4
	}
	if r.Deprecated {
		b += 2
	}
	if len(r.Warnings) > 0 {
		b++
	}
	return b
}

// group is a part of the grid.
type group struct {
	Name string
	Rows []*row
}

// groups divides rows by a label; without one there is a single group.
func (f *filter) groups(rows []*row) []group {
	if f.Group == "" {
		return []group{{"", rows}}
	}
	at := map[string]int{}
	var all []group
	for _, r := range rows {
		value := r.Labels[f.Group]
		if f.Group == "version" {
			value = r.Version
		}
		i, ok := at[value]
		if !ok {
			i = len(all)
			at[value] = i
			all = append(all, group{Name: value})
		}
		all[i].Rows = append(all[i].Rows, r)
	}
	slices.SortFunc(all, func(a, b group) int { return compareVersions(a.Name, b.Name) })
	return all
}
