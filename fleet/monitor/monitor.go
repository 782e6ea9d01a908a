// Package monitor watches a fleet.
package monitor

import (
	"context"
	"log/slog"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// Options are what a Monitor needs; Store and Prober are required.
type Options struct {
	Inventory *fleet.Inventory
	Store     *store.Store
	Prober    *fleet.Prober
	Log       *slog.Logger

	// Silenced says why nobody is to be told of an instance at a moment: it is in
	// a rollout. Maintenance windows are the inventory's.
	Silenced func(name string, at time.Time) (reason string, ok bool)
	// Link is the page of an instance, for messages; nil for none.
	Link func(name string) string
}

// Monitor watches.
type Monitor struct{ o Options }

// Event tells that an instance's line has changed in what people look at; a
// latency or a time of its own is no change.
type Event struct {
	Seq    uint64
	Name   string
	Line   fleet.InstanceStatus
	Reload bool // events were dropped for a slow reader: read Status again; the rest is empty
}

// New returns a Monitor.
func New(o Options) (*Monitor, error) { return &Monitor{o}, nil }

// Run watches until ctx ends.
func (m *Monitor) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Status returns the fleet as it was last seen. It is made at most once a second.
func (m *Monitor) Status() fleet.Status { return fleet.Status{} }

// Subscribe returns events from now on, and how to end them. A slow reader loses
// events and is told so by one with Reload.
func (m *Monitor) Subscribe() (<-chan Event, func()) { return make(chan Event), func() {} }

// Result returns what was last seen of an instance and how it is judged.
func (m *Monitor) Result(name string) (fleet.Result, fleet.Record, bool) {
	return fleet.Result{}, fleet.Record{}, false
}
