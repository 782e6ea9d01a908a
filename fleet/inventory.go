package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// DefaultImage is the image of an inventory that names none.
const DefaultImage = "ghcr.io/keboola/agnes-the-ai-analyst"

// What an instance has where neither it nor its file's defaults say anything.
const (
	DefaultInterval = 30 * time.Second
	DefaultTimeout  = 5 * time.Second
)

// Inventory is what the fleet should be: a fleet.yaml and all files that it
// includes, checked, with defaults applied.
type Inventory struct {
	Image     string // repository, without tag and digest
	Waves     []Wave // in the order of a rollout; DefaultWaves where the file has none
	Rollout   RolloutPolicy
	Instances []Instance

	Watch       Watch
	Maintenance []Maintenance
	Alerts      []Alert

	// Files of a working tree, and folders, whose change may be one of the
	// inventory: what was read, and where patterns were looked for.
	Files []string
}

// RolloutPolicy is what holds for a rollout as a whole.
type RolloutPolicy struct {
	Desired        string        // folder of the files that hosts read what they shall run from, relative to the first file
	MaxUnreachable Limit         // of all members; a Count of 0 is none
	ArriveWithin   time.Duration // how long a host that comes by itself may take
	ErrorBudget    int           // percent of a wave's probes that may fail while it soaks
}

// What holds for rollouts where the file says nothing.
const (
	DefaultDesired        = "desired"
	DefaultMaxUnreachable = 5 // percent
	DefaultArriveWithin   = 2 * time.Hour
	DefaultErrorBudget    = 10 // percent
)

// Instance is one member of the fleet.
type Instance struct {
	Name    string // unique; a DNS label
	URL     string // in the normal form of api.ParseURL; https, or http to this machine
	Channel string // dev or stable; empty where Pin is set
	Pin     string // version tag such as stable-2026.04.3, or empty
	Host    string // ssh://USER@HOST/DIR, or empty
	Cloud   string // gcp, aws, host, or empty where the file does not say
	Labels  map[string]string
	Token   Token

	ConfigHash string // of the settings that it should have, as GET /api/health/details tells it; empty for any

	Interval   time.Duration // between two probes
	Timeout    time.Duration // of one probe; no longer than Interval
	TLS        TLS
	MaxDataAge time.Duration // beyond it old data is an incident; 0: Watch's
	Source     Position      // where the file speaks of it
}

// TLS says how an instance's certificate is checked beyond the system's
// authorities. It can be compared, so that instances can share what is made of it.
type TLS struct {
	CAFile     string // path of a PEM file for people; empty for none
	PEM        string // what it holds: at least one certificate
	ServerName string // name that the certificate must bear, where it is not the URL's host
}

// Wave is one step of a rollout.
type Wave struct {
	Name           string
	Match          Selector      // empty: any instance
	Percent        int           // share of those that no earlier wave has and Match selects; 0: all of them
	Soak           time.Duration // how long the wave must stay well before the next begins
	MaxUnavailable Limit         // how many may be away at a time
	Source         Position
}

// DefaultWaves are those of an inventory that has none: a canary at any size of
// fleet, then the rest.
func DefaultWaves() []Wave {
	return []Wave{
		{Name: "canary", Percent: 1, Soak: 10 * time.Minute},
		{Name: "rest", MaxUnavailable: Limit{Percent: 10}},
	}
}

// Limit is a number of instances, or a share of them in percent. The zero Limit
// is one instance at a time.
type Limit struct {
	Count   int
	Percent int // counts where it is not 0
}

// Of returns how many of total instances the limit allows: never none, because
// then nothing could begin.
func (l Limit) Of(total int) int {
	if l.Percent != 0 {
		return max(1, total*l.Percent/100)
	}
	return max(1, l.Count)
}

// String returns what the file says: 3 or 10%.
func (l Limit) String() string {
	if l.Percent != 0 {
		return strconv.Itoa(l.Percent) + "%"
	}
	return strconv.Itoa(max(1, l.Count))
}

// Position is a place in a file of the inventory. Line and column count from 1;
// 0 is the file as a whole.
type Position struct {
	File         string // as people name it: fleet.yaml, or main:fleet.yaml of a git revision
	Line, Column int
}

// String returns FILE:LINE:COLUMN.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Wanted returns the tag that the instance should run: its pin, or its channel.
func (i Instance) Wanted() string { return cmp.Or(i.Pin, i.Channel, string(release.Stable)) }

// How a new version reaches an instance.
const (
	Push = "push" // over SSH
	Pull = "pull" // its host reads what is wanted, on a timer
)

// Delivery returns Push where a host is known, else Pull.
func (i Instance) Delivery() string {
	if i.Host != "" {
		return Push
	}
	return Pull
}

// Labels that every instance has by itself; a file may not set them.
const (
	labelName     = "name"
	labelCloud    = "cloud"
	labelChannel  = "channel"
	labelDelivery = "delivery"
)

// LabelSet returns what selectors see: the labels of the file and name, delivery,
// cloud (where it is known) and channel (where nothing is pinned).
func (i Instance) LabelSet() map[string]string {
	set := make(map[string]string, len(i.Labels)+4)
	maps.Copy(set, i.Labels)
	set[labelName], set[labelDelivery] = i.Name, i.Delivery()
	if i.Cloud != "" {
		set[labelCloud] = i.Cloud
	}
	if i.Pin == "" {
		set[labelChannel] = i.Wanted()
	}
	return set
}

// Select returns the instances that a selector matches, in the inventory's order.
func (v *Inventory) Select(s Selector) []Instance {
	var found []Instance
	for _, i := range v.Instances {
		if s.Matches(i.LabelSet()) {
			found = append(found, i)
		}
	}
	return found
}

// LoadOptions are what an inventory's secrets and repository need.
type LoadOptions struct {
	// Getenv resolves ${env:NAME}; without it no variable is set.
	Getenv func(string) string

	// SecretDir is the folder whose files ${file:…} may name, for the folder of
	// the root file. It defaults to that folder of a working tree; an inventory
	// from git has none, since a secret must not come from git.
	SecretDir string

	// GitToken signs in to an https repository. A user in its URL comes first.
	GitToken redact.Secret
}
