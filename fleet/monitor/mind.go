package monitor

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// mind is what decides about an instance: what was seen of it, in so few words that
// most probes add nothing. One that was saved when it last changed goes on as if
// nothing had happened.
type mind struct {
	last    time.Time // of the last observation
	from    time.Time // since when it is watched by this process: what is steady is not saved each time
	version string
	health  string // as it is judged: a fleet.Health, or nothing before there was enough to judge
	downAs  string // what it was when it was found to be down: unreachable or unhealthy
	tracks  [tracks]track
}

// trackID is one question that the probes answer.
type trackID int

const (
	working trackID = iota
	degraded
	deprecated
	certificate
	stale
	drift
	itself // of the monitor
	tracks
)

var trackNames = [tracks]string{"working", "degraded", "deprecated", "certificate", "stale", "drift", "itself"} //nolint:gochecknoglobals // a constant table

// track is a question's answer so far, by several probes, and the incident that
// came of it.
type track struct {
	Record   fleet.Record `json:"record"`
	Incident *open        `json:"incident,omitempty"`
}

// open is an incident that is not over.
type open struct {
	ID       string     `json:"id"`
	Kind     fleet.Kind `json:"kind"`
	Silenced string     `json:"silenced,omitempty"` // why nobody was told so far
}

type savedMind struct {
	Last    time.Time         `json:"last,omitzero"`
	Version string            `json:"version,omitempty"`
	Health  string            `json:"health,omitempty"`
	DownAs  string            `json:"down_as,omitempty"`
	Tracks  map[string]*track `json:"tracks,omitempty"`
}

func (m *mind) save() ([]byte, error) {
	s := savedMind{Last: m.last, Version: m.version, Health: m.health, DownAs: m.downAs, Tracks: map[string]*track{}}
	for i := range m.tracks {
		if m.tracks[i] != (track{}) {
			s.Tracks[trackNames[i]] = &m.tracks[i]
		}
	}
	return json.Marshal(s)
}

// restore reads a mind. now bounds its times: a clock that was wrong once must not
// make a monitor deaf.
func restore(doc []byte, now time.Time) (m mind, err error) {
	var s savedMind
	if err := json.Unmarshal(doc, &s); err != nil {
		return m, err
	}
	bound := func(t time.Time) time.Time {
		if t.After(now) {
			return now
		}
		return t
	}
	m = mind{last: bound(s.Last), from: now, version: s.Version, health: s.Health, downAs: s.DownAs}
	for i := range m.tracks {
		if saved := s.Tracks[trackNames[i]]; saved != nil {
			m.tracks[i] = *saved
			m.tracks[i].Record.Last, m.tracks[i].Record.Since = bound(saved.Record.Last), bound(saved.Record.Since)
		}
	}
	return m, nil
}

// observe takes an observation in, and reports whether that changed what has to be
// remembered. A track that is steady, up and seen up or down and seen down, stays
// as it is: for the Judge, what a window lacks at its begin is as what stands for
// the standing already.
func (t *track) observe(j fleet.Judge, at time.Time, o fleet.Observation) bool {
	if o == fleet.Nothing {
		return false
	}
	if t.Record.Window == "" && (t.Record.Standing == fleet.Up && o == fleet.Good || t.Record.Standing == fleet.Down && o == fleet.Bad) {
		t.Record.Last = at
		return false
	}
	t.Record, _ = j.Decide(t.Record, at, o)
	switch t.Record.Standing {
	case fleet.Up:
		t.Record.Window = strings.TrimLeft(t.Record.Window, string(rune(fleet.Good)))
	case fleet.Down:
		t.Record.Window = strings.TrimLeft(t.Record.Window, string(rune(fleet.Bad)))
	}
	return true
}

// rules are what a mind decides by.
type rules struct {
	judge    fleet.Judge
	watch    fleet.Watch
	drifted  func(fleet.Instance, fleet.Result) fleet.Drift
	silenced func(in fleet.Instance, at time.Time) string // why, or nothing
	tell     func(in fleet.Instance, kind fleet.Kind) []string
}

// unknownAfter is how long an instance that works says nothing about an incident of
// its own, until that is over: its token or its https was taken from the inventory.
const unknownAfter = time.Hour

// sight is one result of an instance, seen by its mind.
type sight struct {
	rules *rules
	mind  *mind
	in    fleet.Instance
	r     fleet.Result
	at    time.Time
	out   *store.Batch
}

// see takes a result in and appends to out what follows from it. It reports whether
// the mind changed.
func (s *sight) see() bool {
	m := s.mind
	m.last = s.at
	yes := func(bad bool) fleet.Observation {
		if bad {
			return fleet.Bad
		}
		return fleet.Good
	}
	var seen [tracks]fleet.Observation
	for i := range seen {
		seen[i] = fleet.Nothing
	}
	var d fleet.Drift
	seen[working] = fleet.Observe(s.r)
	if s.r.Good() {
		seen[degraded] = yes(s.r.Health == fleet.Degraded)
	}
	if s.r.Version != "" {
		seen[deprecated] = yes(s.r.Deprecated)
		if d = s.rules.drifted(s.in, s.r); d.Known {
			seen[drift] = yes(d.Drifted)
		}
	}
	if !s.r.CertNotAfter.IsZero() {
		seen[certificate] = yes(s.r.CertNotAfter.Sub(s.at) < s.rules.watch.CertBefore)
	}
	if s.r.Details && !s.r.LastSync.IsZero() {
		seen[stale] = yes(s.at.Sub(s.r.LastSync) > s.maxAge())
	}
	changed := false
	for i := range seen {
		changed = m.tracks[i].observe(s.rules.judge, s.at, seen[i]) || changed
	}
	changed = s.changes() || changed
	for i := range seen {
		changed = s.incident(trackID(i), seen[i], d) || changed
	}
	return changed
}

func (s *sight) maxAge() time.Duration {
	if s.in.MaxDataAge > 0 {
		return s.in.MaxDataAge
	}
	return s.rules.watch.MaxDataAge
}

// changes notes what the instance is now, where that is something else.
func (s *sight) changes() bool {
	m, changed := s.mind, false
	health := ""
	switch m.tracks[working].Record.Standing {
	case fleet.Down:
		if m.health != string(fleet.Unreachable) && m.health != string(fleet.Unhealthy) {
			m.downAs = string(s.r.Health)
		}
		health = m.downAs
	case fleet.Up:
		health, m.downAs = string(fleet.Healthy), ""
		if m.tracks[degraded].Record.Standing == fleet.Down {
			health = string(fleet.Degraded)
		}
	}
	if health != m.health {
		s.out.Changes = append(s.out.Changes, store.Change{At: s.at, Name: s.in.Name, What: store.ChangeHealth, From: m.health, To: health, Version: s.r.Version, Reason: s.why()})
		m.health, changed = health, true
	}
	if v := s.r.Version; v != "" && v != m.version {
		s.out.Changes = append(s.out.Changes, store.Change{At: s.at, Name: s.in.Name, What: store.ChangeVersion, From: m.version, To: v, Version: v})
		m.version, changed = v, true
	}
	return changed
}

// why is what the result says is wrong.
func (s *sight) why() string {
	switch {
	case s.r.Err != nil:
		return s.r.Err.Message
	case len(s.r.Warnings) > 0:
		return s.r.Warnings[0]
	}
	return ""
}

// incident opens, tells or closes that of a track.
func (s *sight) incident(id trackID, o fleet.Observation, d fleet.Drift) bool {
	t := &s.mind.tracks[id]
	bad := t.Record.Standing == fleet.Down && o == fleet.Bad
	switch {
	case t.Incident == nil && bad && s.at.Sub(t.Record.Since) >= s.patience(id):
		i := s.describe(id, d)
		i.ID, i.Name, i.Opened = fmt.Sprintf("%s-%s-%d", s.in.Name, i.Kind, s.at.UnixMicro()), s.in.Name, s.at
		i.Silenced = s.rules.silenced(s.in, s.at)
		opening := store.Opening{Incident: i}
		if i.Silenced == "" {
			opening.To = s.rules.tell(s.in, fleet.Kind(i.Kind))
		}
		s.out.Opened = append(s.out.Opened, opening)
		t.Incident = &open{ID: i.ID, Kind: fleet.Kind(i.Kind), Silenced: i.Silenced}
	case t.Incident != nil && t.Incident.Silenced != "" && bad:
		if s.rules.silenced(s.in, s.at) != "" {
			return false
		}
		told := *t.Incident
		told.Silenced, t.Incident = "", &told
		s.out.Told = append(s.out.Told, store.Opening{Incident: store.Incident{ID: told.ID}, At: s.at, To: s.rules.tell(s.in, told.Kind)})
	case t.Incident != nil && t.Record.Standing == fleet.Up:
		s.out.Closed = append(s.out.Closed, store.Closing{ID: t.Incident.ID, At: s.at, Ending: endings[id]})
		t.Incident = nil
	case t.Incident != nil && o == fleet.Nothing && s.r.Good() && s.at.Sub(t.Record.Last) >= unknownAfter && s.at.Sub(s.mind.from) >= unknownAfter:
		s.out.Closed = append(s.out.Closed, store.Closing{ID: t.Incident.ID, At: s.at, Ending: "Nothing is known of it any more: the instance works, and does not say."})
		*t = track{}
	default:
		return false
	}
	return true
}

var endings = [tracks]string{ //nolint:gochecknoglobals // a constant table
	"It does its work again.", "It is not degraded any more.", "It runs a version that is not deprecated.", "It has another certificate.",
	"Its data is fresh again.", "It runs what is wanted.", "The monitor reaches the fleet again.",
}

// patience is how long a bad state lasts before it is an incident.
func (s *sight) patience(id trackID) time.Duration {
	switch id {
	case degraded:
		return s.rules.watch.DegradedAfter
	case drift:
		return s.rules.watch.DriftAfter
	default:
		return 0
	}
}

// describe says what is wrong.
func (s *sight) describe(id trackID, d fleet.Drift) store.Incident {
	r := s.r
	switch id {
	case degraded:
		i := store.Incident{Kind: string(fleet.KindDegraded), Summary: "It is degraded.", Hint: "agnesctl instance health --url " + s.in.URL}
		if why := s.why(); why != "" {
			i.Summary = "It is degraded: " + why
		}
		return i
	case deprecated:
		i := store.Incident{Kind: string(fleet.KindDeprecated), Summary: "It runs " + r.Version + ", which is deprecated.", Hint: "Take it to a newer version: docs/fleet.md, Rollouts."}
		if r.Latest != "" {
			i.Summary += " Newer is " + r.Latest + "."
		}
		return i
	case certificate:
		return store.Incident{Kind: string(fleet.KindCertificate), Summary: "Its certificate, or one of its issuers, is valid until " + r.CertNotAfter.UTC().Format(time.RFC3339) + " only.", Hint: "Renew it; where Caddy does that by itself, read its log."}
	case stale:
		return store.Incident{
			Kind: string(fleet.KindStale), Summary: fmt.Sprintf("Its oldest data is of %s, %s ago; the limit is %s.", r.LastSync.UTC().Format(time.RFC3339), s.at.Sub(r.LastSync).Round(time.Minute), s.maxAge()),
			Hint: "agnesctl instance sync --url " + s.in.URL,
		}
	case drift:
		return store.Incident{Kind: string(fleet.KindDrift), Summary: "Drift: " + d.Reason + ".", Hint: "agnesctl fleet plan -l name=" + s.in.Name}
	}
	i := store.Incident{Kind: string(fleet.KindUnreachable), Summary: "It does not answer."}
	if r.Health == fleet.Unhealthy {
		i = store.Incident{Kind: string(fleet.KindUnhealthy), Summary: "It is unhealthy."}
	}
	if r.Err != nil {
		i.Summary, i.Hint = r.Err.Message, r.Err.Hint
	}
	return i
}
