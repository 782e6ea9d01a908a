package dashboard

import (
	"cmp"
	"html/template"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// stateUnknown is of an instance that was not asked yet, or could not be by our own
// fault. The other states are those of fleet.Health.
const stateUnknown = "unknown"

// states are all that a row can have, the worst first.
func states() []string {
	return []string{string(fleet.Unreachable), string(fleet.Unhealthy), string(fleet.Degraded), stateUnknown, string(fleet.Healthy)}
}

// row is one instance at one moment. It is never changed, so that pages can read
// it without a lock. Whatever an instance says has been made harmless: it holds no
// control characters, and templates escape the rest.
type row struct {
	fleet.InstanceStatus
	fleet.Record // what the judge holds it for

	State  string
	Timing fleet.Timing
	In     fleet.Instance
	Labels map[string]string

	result  fleet.Result
	seq     int64           // greater than that of every row made before
	turned  int64           // seq of the first row that looked like this one and is found like it
	version release.Version // zero where it is none
	search  string          // what free text is looked for in
	html    func() template.HTML
	cell    func() template.HTML
}

// HTML is the row of the table, made once.
func (r *row) HTML() template.HTML { return r.html() }

// Cell is the cell of the grid, made once.
func (r *row) Cell() template.HTML { return r.cell() }

// newRow makes a row of a monitor's line.
func (m *model) newRow(in fleet.Instance, line fleet.InstanceStatus, result fleet.Result, record fleet.Record) *row {
	for _, text := range []*string{&line.Version, &line.Channel, &line.Digest, &line.BundleVersion, &line.ConfigHash, &line.Error, &line.Hint, &line.Commit, &line.Phase, &line.Latest, &line.DriftReason} {
		*text = cli.Sanitize(*text)
	}
	warnings := make([]string, len(line.Warnings))
	for i, w := range line.Warnings {
		warnings[i] = cli.Sanitize(w)
	}
	line.Warnings = warnings
	r := &row{
		InstanceStatus: line, Record: record, State: string(line.Status),
		Timing: result.Timing, In: in, Labels: in.LabelSet(), result: result, seq: m.seq.Add(1),
	}
	r.turned = r.seq
	if line.SelfTrouble || line.Status == "" {
		r.State = stateUnknown
	}
	if v, err := release.ParseVersion(line.Version); err == nil {
		r.version = v
	}
	var b strings.Builder
	for _, text := range append([]string{r.Name, r.URL, r.State, r.Version, r.Channel, r.Wanted, r.In.Cloud, r.In.Delivery(), r.Error, r.DriftReason, r.Commit, r.Digest}, r.Warnings...) {
		b.WriteString(strings.ToLower(text) + "\x00")
	}
	for key, value := range r.In.Labels {
		b.WriteString(strings.ToLower(key+"="+value) + "\x00")
	}
	r.search = b.String()
	r.html = sync.OnceValue(func() template.HTML { return m.draw(r) })
	r.cell = sync.OnceValue(func() template.HTML { return drawCell(r) })
	return r
}

// drawCell is written by hand: a page has one for each instance. Only the version
// is the instance's own word; names are checked by the inventory, states are ours.
func drawCell(r *row) template.HTML {
	off, drift, version := "", "", ""
	if r.Drifts() {
		off, drift = " off", ", drift"
	}
	if r.Version != "" {
		version = ", " + template.HTMLEscapeString(r.Version)
	}
	name := template.HTMLEscapeString(r.Name)
	says := name + ": " + r.State + version + drift
	return template.HTML(`<a id="c-` + name + `" class="c ` + r.State + off + `" href="/i/` + name + `" tabindex="-1" title="` + says + `" aria-label="` + says + `"><span>` + name + `</span></a>`) //nolint:gosec // escaped above
}

// Drifts reports whether it runs something else than what is wanted.
func (r *row) Drifts() bool { return r.Drift != nil && *r.Drift }

// Says is the one line that matters most.
func (r *row) Says() string {
	switch {
	case r.Error != "" && r.State != stateUnknown:
		return r.Error
	case len(r.Warnings) > 0:
		return r.Warnings[0]
	case r.SetupRequired:
		return "It waits for its setup."
	}
	return r.Error
}

// More is how many warnings Says leaves out.
func (r *row) More() int {
	if r.Error != "" {
		return len(r.Warnings)
	}
	return max(0, len(r.Warnings)-1)
}

// looks is what a cell of the grid shows, and what is counted.
type looks struct {
	state, version             string
	drifts, deprecated, warned bool
}

func (r *row) looks() looks {
	return looks{r.State, r.Version, r.Drifts(), r.Deprecated, len(r.Warnings) > 0}
}

// counts are what is said of many rows.
type counts struct {
	Total                            int
	By                               map[string]int // state
	Drifted, Deprecated, Warned, Old int
	Versions                         []versionCount
	Channels                         []string
	SelfTroubled                     int
}

type versionCount struct {
	Version string
	N       int
	Share   int  // percent of the largest
	Warn    bool // most of them call it deprecated
}

// maxVersions bounds how many are shown; instances can invent any number of them.
const maxVersions = 8

func count(rows []*row) counts {
	c := counts{Total: len(rows), By: map[string]int{}}
	versions, channels, deprecated := map[string]int{}, map[string]bool{}, map[string]int{}
	for _, r := range rows {
		c.By[r.State]++
		if r.Drifts() {
			c.Drifted++
		}
		if r.Deprecated {
			c.Deprecated++
			deprecated[r.Version]++
		}
		if len(r.Warnings) > 0 {
			c.Warned++
		}
		if r.SelfTrouble {
			c.SelfTroubled++
		}
		if r.Version != "" {
			versions[r.Version]++
		}
		if r.Channel != "" && len(channels) < 20 {
			channels[r.Channel] = true
		}
	}
	most := 1
	for _, v := range slices.SortedFunc(maps.Keys(versions), func(a, b string) int {
		return cmp.Or(cmp.Compare(versions[b], versions[a]), strings.Compare(a, b))
	}) {
		most = max(most, versions[v])
		if len(c.Versions) < maxVersions {
			c.Versions = append(c.Versions, versionCount{v, versions[v], max(1, versions[v]*100/most), 2*deprecated[v] > versions[v]})
		}
	}
	slices.SortStableFunc(c.Versions, func(a, b versionCount) int { return compareVersions(b.Version, a.Version) })
	c.Old = len(versions) - len(c.Versions)
	c.Channels = slices.Sorted(maps.Keys(channels))
	return c
}

// compareVersions orders numbers as numbers, and what is no version before them.
func compareVersions(a, b string) int {
	v, errV := release.ParseVersion(a)
	w, errW := release.ParseVersion(b)
	switch {
	case errV == nil && errW == nil:
		return v.Compare(w)
	case errV == nil:
		return 1
	case errW == nil:
		return -1
	}
	return strings.Compare(a, b)
}

// model holds the rows.
type model struct {
	draw func(*row) template.HTML
	seq  atomic.Int64 // of the newest row; begins with the time, so that it grows over restarts too

	mu       sync.RWMutex
	rows     []*row // by name
	index    map[string]int
	replaced int64 // seq of the first row of this inventory
}

func newModel(draw func(*row) template.HTML) *model {
	m := &model{draw: draw, index: map[string]int{}}
	m.seq.Store(time.Now().UnixMicro())
	return m
}

// all returns the rows of now, by name. The slice is the caller's.
func (m *model) all() []*row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.rows)
}

func (m *model) replacedAt() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.replaced
}

// get returns one row, or nil.
func (m *model) get(name string) *row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if i, ok := m.index[name]; ok {
		return m.rows[i]
	}
	return nil
}

// replace takes the rows of an inventory. Where the monitor has not seen an instance
// yet, and its address is the same, what was seen before stays.
func (m *model) replace(instances []fleet.Instance, live Live) {
	lines := map[string]fleet.InstanceStatus{}
	for _, line := range live.Status().Instances {
		lines[line.Name] = line
	}
	first := m.seq.Load() + 1
	rows, index := make([]*row, 0, len(instances)), make(map[string]int, len(instances))
	for _, in := range instances {
		result, record, seen := live.Result(in.Name)
		if was := m.get(in.Name); !seen && was != nil && was.URL == in.URL && !was.result.At.IsZero() {
			result, record = was.result, was.Record
			lines[in.Name] = fleet.NewStatus(time.Now(), []fleet.Instance{in}, []fleet.Result{result}).Instances[0]
		}
		line := lines[in.Name]
		if result.At.IsZero() { // nobody has asked it; that is no trouble yet
			line = fleet.InstanceStatus{Name: in.Name, Error: "It was not asked yet.", DriftReason: line.DriftReason}
		}
		line.URL, line.Wanted = in.URL, in.Wanted()
		rows = append(rows, m.newRow(in, line, result, record))
	}
	slices.SortFunc(rows, func(a, b *row) int { return strings.Compare(a.Name, b.Name) })
	for i, r := range rows {
		index[r.Name] = i
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows, m.index, m.replaced = rows, index, first
}

// update takes one line in; it returns the row before and after, or nothing for an
// instance that is not of the inventory.
func (m *model) update(line fleet.InstanceStatus, live Live) (was, is *row) {
	if was = m.get(line.Name); was == nil {
		return nil, nil
	}
	result, record, _ := live.Result(line.Name)
	is = m.newRow(was.In, line, result, record)
	if is.looks() == was.looks() && is.search == was.search {
		is.turned = was.turned
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i, there := m.index[line.Name]
	if !there {
		return nil, nil
	}
	m.rows[i] = is
	return was, is
}

// refresh is update for a line that may be known already, or be of an instance that
// this monitor has not asked yet.
func (m *model) refresh(line fleet.InstanceStatus, live Live) (was, is *row) {
	if _, _, seen := live.Result(line.Name); !seen {
		return nil, nil
	}
	if was = m.get(line.Name); was == nil || !line.ProbedAt.After(was.ProbedAt) {
		return nil, nil
	}
	return m.update(line, live)
}
