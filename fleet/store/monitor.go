package store

import (
	"context"
	"time"
)

// What a Change is about.
const (
	ChangeHealth  = "health"
	ChangeVersion = "version"
)

// Change is one that was seen of an instance, after it was judged by several
// probes: a lost packet is none.
type Change struct {
	At      time.Time `json:"at"`
	Name    string    `json:"name"`
	What    string    `json:"what"` // health or version
	From    string    `json:"from"` // a fleet.Health, or a version; empty for the first one
	To      string    `json:"to"`
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
}

// Incident is something about an instance that people should look at. The
// monitor's own trouble has no Name.
type Incident struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	Opened   time.Time `json:"opened"`
	Closed   time.Time `json:"closed,omitzero"`
	Summary  string    `json:"summary"`
	Hint     string    `json:"hint"`
	Ending   string    `json:"ending"`   // why it was closed
	Silenced string    `json:"silenced"` // why nobody was told of it
	Link     string    `json:"link"`     // of its issue, where a channel made one
}

// IncidentQuery selects incidents.
type IncidentQuery struct {
	Name     string // of one instance; all where empty
	OpenOnly bool
	Limit    int // 100 where zero
}

// Uptime is how an instance was in the time before now. What nobody watched is
// not known.
type Uptime struct {
	Window time.Duration `json:"window"`
	Known  time.Duration `json:"known"`
	Up     time.Duration `json:"up"` // of Known: healthy or degraded
}

// LatencyHour is how long an instance's probes took in an hour.
type LatencyHour struct {
	Hour  time.Time     `json:"hour"`
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P95   time.Duration `json:"p95"`
	Max   time.Duration `json:"max"`
}

// Changes returns the changes of an instance, or of all where name is empty, since
// a moment, the newest first; 100 where limit is 0.
func (s *Store) Changes(ctx context.Context, name string, since time.Time, limit int) ([]Change, error) {
	return nil, nil
}

// Incidents returns what q selects, the newest first.
func (s *Store) Incidents(ctx context.Context, q IncidentQuery) ([]Incident, error) {
	return nil, nil
}

// Uptime returns an instance's uptime in the windows before now.
func (s *Store) Uptime(ctx context.Context, name string, now time.Time, windows ...time.Duration) ([]Uptime, error) {
	return nil, nil
}

// Latency returns the hours of an instance since a moment, oldest first.
func (s *Store) Latency(ctx context.Context, name string, since time.Time) ([]LatencyHour, error) {
	return nil, nil
}
