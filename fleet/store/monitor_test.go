package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func opened(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (s *Store) must(t *testing.T, b Batch) {
	t.Helper()
	if err := s.Remember(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

var noon = time.Date(2026, 4, 12, 12, 0, 0, 0, time.UTC)

func incident(name string, at time.Time) Incident {
	return Incident{ID: name + "-1", Name: name, Kind: "unreachable", Opened: at, Summary: "It is silent.", Hint: "Look."}
}

func TestABatchThatIsWrittenTwiceIsAsOne(t *testing.T) {
	t.Parallel()
	s := opened(t)
	b := Batch{
		Seen: noon, Minds: map[string][]byte{"acme": []byte("{}")},
		Changes:     []Change{{At: noon, Name: "acme", What: ChangeHealth, From: "healthy", To: "unreachable", Reason: "It is silent."}},
		Opened:      []Opening{{Incident: incident("acme", noon), To: []string{"chat", "mail"}}},
		Closed:      []Closing{{ID: "acme-1", At: noon.Add(time.Minute), Ending: "It is back."}},
		WatchedFrom: noon.Add(-time.Hour), WatchedUntil: noon,
	}
	s.must(t, b)
	s.must(t, b)
	changes, err := s.Changes(t.Context(), "", time.Time{}, 0)
	if diff := cmp.Diff(b.Changes, changes); err != nil || diff != "" {
		t.Error(err, diff)
	}
	want := incident("acme", noon)
	want.Closed, want.Ending = noon.Add(time.Minute), "It is back."
	incidents, err := s.Incidents(t.Context(), IncidentQuery{})
	if diff := cmp.Diff([]Incident{want}, incidents); err != nil || diff != "" {
		t.Error(err, diff)
	}
	unsaid, err := s.Unsaid(t.Context())
	if err != nil || len(unsaid) != 2 || unsaid[0].Waiting != 2 || unsaid[1].Waiting != 2 {
		t.Errorf("%+v: %v", unsaid, err)
	}
	if open, err := s.Incidents(t.Context(), IncidentQuery{Name: "acme", OpenOnly: true}); err != nil || len(open) > 0 {
		t.Errorf("%+v: %v", open, err)
	}
	if minds, err := s.Minds(t.Context()); err != nil || string(minds["acme"]) != "{}" {
		t.Errorf("%v: %v", minds, err)
	}
}

func TestABatchIsKeptWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	s := opened(t)
	b := Batch{
		Minds:  map[string][]byte{"acme": []byte("{}")},
		Opened: []Opening{{Incident: incident("acme", noon)}},
		Told:   []Opening{{Incident: Incident{ID: "nobody-1"}, To: []string{"chat"}}}, // the outbox refuses what has no incident
	}
	if err := s.Remember(t.Context(), b); err == nil {
		t.Fatal("it was written")
	}
	minds, _ := s.Minds(t.Context())
	incidents, _ := s.Incidents(t.Context(), IncidentQuery{})
	if len(minds)+len(incidents) > 0 {
		t.Errorf("%v and %v were kept", minds, incidents)
	}
}

// said is what the pending messages of a channel say, in their order, each taken
// as sent.
func (s *Store) said(t *testing.T, channel string) (all []string) {
	t.Helper()
	for {
		m, ok, err := s.Pending(t.Context(), channel)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		text := fmt.Sprintf("open %d:", m.Open)
		for _, i := range m.Items {
			text += " " + i.Name + " " + i.Event
		}
		all = append(all, text)
		if err := s.Sent(t.Context(), m.ID, noon, "https://code.example.com/"+m.Thread); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsSaidAtOnceBecomesOneMessage(t *testing.T) {
	t.Parallel()
	s := opened(t)
	g := Grouping{Wait: 30 * time.Second}
	for n := range 3 {
		at := noon.Add(time.Duration(n) * 25 * time.Second)
		s.must(t, Batch{Opened: []Opening{{Incident: incident(fmt.Sprintf("acme%d", n), at), To: []string{"chat"}}}})
	}
	// While more comes in it waits, ten seconds after the last one.
	next, err := s.Compose(t.Context(), "chat", noon.Add(59*time.Second), g)
	if err != nil || !next.Equal(noon.Add(60*time.Second)) {
		t.Errorf("next at %s: %v", next, err)
	}
	if got := s.said(t, "chat"); got != nil {
		t.Errorf("said too early: %q", got)
	}
	s.must(t, Batch{Closed: []Closing{{ID: "acme1-1", At: noon.Add(59 * time.Second)}}})
	if next, err = s.Compose(t.Context(), "chat", noon.Add(69*time.Second), g); err != nil || !next.IsZero() {
		t.Errorf("next at %s: %v", next, err)
	}
	if got, want := s.said(t, "chat"), []string{"open 0: acme0 opened acme1 opened acme2 opened acme1 closed"}; !slices.Equal(got, want) {
		t.Errorf("said %q, want %q", got, want)
	}
}

func TestWhatIsTooMuchForOneMessageBecomesSeveral(t *testing.T) {
	t.Parallel()
	s := opened(t)
	var all Batch
	for n := range 1100 {
		all.Opened = append(all.Opened, Opening{Incident: incident(fmt.Sprintf("acme%d", n), noon), To: []string{"chat"}})
	}
	s.must(t, all)
	if _, err := s.Compose(t.Context(), "chat", noon.Add(time.Hour), Grouping{}); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, text := range s.said(t, "chat") {
		sizes = append(sizes, strings.Count(text, " opened"))
	}
	if !slices.Equal(sizes, []int{500, 500, 100}) {
		t.Errorf("messages of %v things", sizes)
	}
}

func TestAnEndGoesToTheThreadOfItsBegin(t *testing.T) {
	t.Parallel()
	s := opened(t)
	g := Grouping{Threads: true, Alone: 2}
	begin := func(names ...string) {
		b := Batch{}
		for _, name := range names {
			b.Opened = append(b.Opened, Opening{Incident: incident(name, noon), To: []string{"issues"}})
		}
		s.must(t, b)
	}
	end := func(names ...string) {
		b := Batch{}
		for _, name := range names {
			b.Closed = append(b.Closed, Closing{ID: name + "-1", At: noon})
		}
		s.must(t, b)
	}
	compose := func() {
		if _, err := s.Compose(t.Context(), "issues", noon.Add(time.Minute), g); err != nil {
			t.Fatal(err)
		}
	}
	begin("a", "b")
	compose()
	begin("c", "d", "e")
	compose()
	if got, want := s.said(t, "issues"), []string{"open 1: a opened", "open 1: b opened", "open 3: c opened d opened e opened"}; !slices.Equal(got, want) {
		t.Errorf("said %q, want %q", got, want)
	}
	end("a", "c", "d")
	compose()
	end("e")
	begin("f")
	end("f")
	compose()
	want := []string{"open 0: a closed", "open 0: c closed d closed", "open 0: f opened", "open 0: e closed", "open 0: f closed"}
	if got := s.said(t, "issues"); !slices.Equal(got, want) {
		t.Errorf("said %q, want %q", got, want)
	}
	all, err := s.Incidents(t.Context(), IncidentQuery{Name: "c"})
	if err != nil || !strings.HasPrefix(all[0].Link, "https://code.example.com/") {
		t.Errorf("%+v: %v", all, err)
	}
}

func TestAChannelThatIsGoneIsGivenUp(t *testing.T) {
	t.Parallel()
	s := opened(t)
	s.must(t, Batch{Opened: []Opening{{Incident: incident("a", noon), To: []string{"chat", "mail"}}}})
	if _, err := s.Compose(t.Context(), "mail", noon, Grouping{}); err != nil {
		t.Fatal(err)
	}
	s.must(t, Batch{Opened: []Opening{{Incident: incident("b", noon), To: []string{"chat", "mail"}}}})
	if lost, err := s.Abandon(t.Context(), []string{"chat"}, noon); err != nil || lost != 2 {
		t.Errorf("lost %d: %v", lost, err)
	}
	unsaid, err := s.Unsaid(t.Context())
	if err != nil || len(unsaid) != 1 || unsaid[0].Channel != "chat" || unsaid[0].Waiting != 2 {
		t.Errorf("%+v: %v", unsaid, err)
	}
	if lost, err := s.Abandon(t.Context(), nil, noon); err != nil || lost != 2 {
		t.Errorf("lost %d: %v", lost, err)
	}
}

func TestUptimeKnowsOnlyWhatWasWatched(t *testing.T) {
	t.Parallel()
	s := opened(t)
	health := func(at time.Time, to string) Change {
		return Change{At: at, Name: "acme", What: ChangeHealth, To: to}
	}
	day := noon.Add(-24 * time.Hour)
	s.must(t, Batch{
		Changes: []Change{
			health(day.Add(-10*time.Hour), "healthy"), // long before, and nothing since
			health(day.Add(6*time.Hour), "unreachable"), health(day.Add(7*time.Hour), "degraded"),
			health(day.Add(20*time.Hour), ""), health(day.Add(21*time.Hour), "healthy"), // it was not in the inventory
			{At: day.Add(9 * time.Hour), Name: "acme", What: ChangeVersion, To: "2026.04.1"},
			{At: day.Add(9 * time.Hour), Name: "bolt", What: ChangeHealth, To: "unreachable"},
		},
		WatchedFrom: day.Add(-20 * time.Hour), WatchedUntil: day.Add(10 * time.Hour),
	})
	s.must(t, Batch{WatchedFrom: day.Add(9 * time.Hour), WatchedUntil: day.Add(12 * time.Hour)}) // two monitors overlap
	s.must(t, Batch{WatchedFrom: day.Add(18 * time.Hour), WatchedUntil: noon.Add(time.Hour)})
	got, err := s.Uptime(t.Context(), "acme", noon, 24*time.Hour, 3*time.Hour, time.Minute)
	want := []Uptime{
		{24 * time.Hour, (12 + 6 - 1) * time.Hour, (12 - 1 + 6 - 1) * time.Hour},
		{3 * time.Hour, 3 * time.Hour, 3 * time.Hour},
		{time.Minute, time.Minute, time.Minute},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got, err = s.Uptime(t.Context(), "nobody", noon, time.Hour); err != nil || got[0].Known != 0 {
		t.Errorf("%+v: %v", got, err)
	}
}

func TestOldRecordsGoAndTheLastWordStays(t *testing.T) {
	t.Parallel()
	s := opened(t)
	b := Batch{WatchedFrom: noon.Add(-3 * time.Hour), WatchedUntil: noon.Add(-2 * time.Hour)}
	for n := range 2500 {
		b.Changes = append(b.Changes, Change{At: noon.Add(time.Duration(n-9000) * time.Second), Name: "acme", What: ChangeHealth, To: fmt.Sprint(n)})
	}
	for _, name := range []string{"done", "open", "unsaid"} {
		b.Opened = append(b.Opened, Opening{Incident: incident(name, noon.Add(-3*time.Hour)), To: []string{"chat"}})
	}
	for h := range 5 {
		b.Latency = append(b.Latency, NamedLatency{"acme", LatencyHour{Hour: noon.Add(-time.Duration(h) * time.Hour), Count: 1, P50: time.Second, P95: time.Second, Max: time.Second}})
	}
	s.must(t, b)
	s.must(t, Batch{Closed: []Closing{{ID: "done-1", At: noon.Add(-2 * time.Hour)}}})
	if _, err := s.Compose(t.Context(), "chat", noon, Grouping{}); err != nil {
		t.Fatal(err)
	}
	s.said(t, "chat")
	if _, err := s.db.ExecContext(t.Context(), "UPDATE message SET ended = ?", micros(noon.Add(-2*time.Hour))); err != nil {
		t.Fatal(err)
	}
	s.must(t, Batch{Closed: []Closing{{ID: "unsaid-1", At: noon.Add(-2 * time.Hour)}}})
	steps := 0
	for more := true; more; steps++ {
		var err error
		if more, err = s.Prune(t.Context(), noon.Add(-time.Hour), noon.Add(-90*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if steps < 3 {
		t.Errorf("it took %d steps", steps)
	}
	changes, err := s.Changes(t.Context(), "acme", time.Time{}, 10)
	if err != nil || len(changes) != 1 || changes[0].To != "2499" {
		t.Errorf("%+v: %v", changes, err)
	}
	all, err := s.Incidents(t.Context(), IncidentQuery{})
	if err != nil || len(all) != 2 || all[0].Name != "open" || all[1].Name != "unsaid" {
		t.Errorf("%+v: %v", all, err)
	}
	hours, err := s.Latency(t.Context(), "acme", time.Time{})
	if err != nil || len(hours) != 2 || !hours[1].Hour.Equal(noon) {
		t.Errorf("%+v: %v", hours, err)
	}
}

func TestTheTwoPartsOfAnHourBecomeOne(t *testing.T) {
	t.Parallel()
	s := opened(t)
	for _, l := range []LatencyHour{
		{Hour: noon, Count: 1, P50: 10 * time.Millisecond, P95: 10 * time.Millisecond, Max: 10 * time.Millisecond},
		{Hour: noon, Count: 3, P50: 50 * time.Millisecond, P95: 90 * time.Millisecond, Max: 100 * time.Millisecond},
	} {
		s.must(t, Batch{Latency: []NamedLatency{{"acme", l}}})
	}
	got, err := s.Latency(t.Context(), "acme", noon)
	want := []LatencyHour{{Hour: noon, Count: 4, P50: 40 * time.Millisecond, P95: 70 * time.Millisecond, Max: 100 * time.Millisecond}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestOneMonitorWatchesAStore(t *testing.T) {
	t.Parallel()
	s := opened(t)
	release, err := s.Watch()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Watch(); !problem.Is(err, problem.Refused) {
		t.Errorf("found %v, want a refusal", err)
	}
	release()
	if release, err = s.Watch(); err != nil {
		t.Error(err)
	}
	release()
}
