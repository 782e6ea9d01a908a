package deploy

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// phase is how far a deploy is, as its journal on the host says.
type phase string

const (
	preparing  phase = "preparing"  // nothing that runs was touched
	switching  phase = "switching"  // files and containers are being changed
	judging    phase = "judging"    // the new image runs and is looked at
	reverting  phase = "reverting"  // on the way back
	committing phase = "committing" // the new image stays
)

const (
	journalFile = ".agnes/journal.json"
	currentFile = ".agnes/current.json"
	historyFile = ".agnes/history.jsonl"
	releasesDir = ".agnes/releases"
	// Copies of .env with other lines of ours, for a look ahead and one back. They
	// go with the journal, for they hold the customer's secrets.
	candidateEnv = ".agnes/candidate.env"
	beforeEnv    = ".agnes/before.env"
)

// journal is a deploy that is under way. It is written before each phase
// begins, and is all that is needed to finish the deploy or to go back.
type journal struct {
	ID        string        `json:"id"`
	Owner     string        `json:"owner"`
	StartedAt time.Time     `json:"started_at"`
	Phase     phase         `json:"phase"`
	Step      string        `json:"step"` // the last that began; for people
	From      Image         `json:"from"`
	To        Image         `json:"to"`
	Project   string        `json:"project"` // of compose
	WasUp     bool          `json:"was_up"`  // From ran
	Live      files         `json:"live"`    // compose files that From ran with
	Env       []byte        `json:"env"`     // .env as it was, for the lines of ours
	HadEnv    bool          `json:"had_env"`
	Schema    int           `json:"schema"` // of the data, before
	Baseline  *api.Health   `json:"baseline,omitempty"`
	Backup    string        `json:"backup,omitempty"`
	Drained   bool          `json:"drained,omitempty"`
	Ready     bool          `json:"ready,omitempty"`     // the new version was
	Stopped   bool          `json:"stopped,omitempty"`   // for a backup, before the switch
	Back      bool          `json:"back,omitempty"`      // a rollback by hand
	Left      bool          `json:"left,omitempty"`      // somebody went back from it before it ended
	Older     string        `json:"older,omitempty"`     // backup to restore on the way to an older schema
	Restored  string        `json:"restored,omitempty"`  // the backup that the state is of, Older or Backup
	Down      bool          `json:"down,omitempty"`      // the way back has stopped the new version
	Returning bool          `json:"returning,omitempty"` // files and state are as they were; what ran before is started
	Policy    SchemaPolicy  `json:"policy"`
	Verdict   smoke.Verdict `json:"verdict,omitempty"` // why it goes back
	Reason    string        `json:"reason,omitempty"`
}

// Record is one ended deploy of a host's history.
type Record struct {
	ID       string        `json:"id"`
	Owner    string        `json:"owner"`
	Started  time.Time     `json:"started_at"`
	Ended    time.Time     `json:"ended_at"`
	From     Image         `json:"from"`
	To       Image         `json:"to"`
	Verdict  smoke.Verdict `json:"verdict"`
	Reverted bool          `json:"reverted,omitempty"`
	Halted   bool          `json:"halted,omitempty"`
	Restored string        `json:"restored,omitempty"` // backup
	Backup   string        `json:"backup,omitempty"`
	Reason   string        `json:"reason,omitempty"`
	Back     bool          `json:"back,omitempty"` // a rollback by hand
	Left     bool          `json:"left,omitempty"` // somebody went back from it before it ended
}

// Current is what the last deploy that stayed has left, and where it came from.
type Current struct {
	Image    Image     `json:"image"`
	Previous Image     `json:"previous"`
	Backup   string    `json:"backup,omitempty"` // of the state before it
	Schema   int       `json:"schema_before,omitempty"`
	Since    time.Time `json:"since"`
	Back     bool      `json:"back,omitempty"` // the last deploy was a rollback by hand
}

func newID(now time.Time) string {
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	return now.UTC().Format("20060102T150405Z-") + hex.EncodeToString(random[:])
}

// fence lets a script go on only while the lease is the deploy's whose id is $2:
// the one that lost it while it was away must not touch the other's journal.
const fence = `set -eu
exec 9>.agnes/lease.lock
flock -w 10 9
read -r id <.agnes/lease || exit 76
[ "$id" = "$2" ] || exit 76
`

// holds is the same for a command that can take long: it looks, and lets go. The
// id is $1 and shifted away; without one there is nothing to hold.
const holds = `if [ -n "$1" ]; then
  (exec 9>.agnes/lease.lock && flock -w 10 9 && read -r id <.agnes/lease && [ "$id" = "$1" ]) || exit 76
fi
shift
`

const writeFenced = fence + `umask 077
cat >"$1.new"
[ "$(wc -c <"$1.new")" -eq "$3" ]
sync "$1.new" 2>/dev/null || sync
mv "$1.new" "$1"
sync .agnes 2>/dev/null || sync`

const removeFenced = fence + `rm -f "$1" "$3" "$4"`

func (t *transaction) writeJSON(ctx context.Context, name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return t.writeOurs(ctx, name, append(text, '\n'))
}

func (t *transaction) writeOurs(ctx context.Context, name string, text []byte) error {
	out, err := t.host.script(ctx, bytes.NewReader(text), writeFenced, name, t.id, strconv.Itoa(len(text)))
	return t.fenced(out, err, "write", name)
}

// forget removes the journal: nothing is under way any more.
func (t *transaction) forget(ctx context.Context) error {
	out, err := t.host.script(ctx, nil, removeFenced, journalFile, t.id, candidateEnv, beforeEnv)
	return t.fenced(out, err, "remove", journalFile)
}

func (t *transaction) fenced(out Output, err error, verb, name string) error {
	switch {
	case err != nil:
		return err
	case out.Code == leaseLost:
		return lostLease()
	}
	return out.Failed(Command{Args: []string{verb, name, "on", t.opt.Shell.String()}})
}

// enter notes in the journal what begins now.
func (t *transaction) enter(ctx context.Context, p phase, step string) error {
	t.j.Phase, t.j.Step = p, step
	return t.writeJSON(ctx, journalFile, t.j)
}

func readJSON[T any](ctx context.Context, h *host, name string) (v T, found bool, err error) {
	text, found, err := h.read(ctx, name)
	if err != nil || !found {
		return v, false, err
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return v, false, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The file %s of %s cannot be read", name, h.shell),
			fmt.Sprintf("Look at it; a deploy writes it as a whole, so somebody else changed it. To begin anew, move it away: mv %s/%s /tmp/", h.dir, name))
	}
	return v, true, nil
}

// keepHistory is how many ended deploys are remembered.
const keepHistory = 200

// close ends the journal: the history knows the deploy before the journal
// forgets it, so a kill between the two can at worst note it twice, under one id.
func (t *transaction) close(ctx context.Context, r Record) error {
	list, err := history(ctx, &t.host)
	if err != nil {
		return err
	}
	if n := len(list); n == 0 || list[n-1].ID != r.ID {
		list = append(list, r)
	}
	var text bytes.Buffer
	for _, r := range list[max(0, len(list)-keepHistory):] {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		text.Write(append(line, '\n'))
	}
	if err := t.writeOurs(ctx, historyFile, text.Bytes()); err != nil {
		return err
	}
	return t.forget(ctx)
}

// history returns the ended deploys, oldest first.
func history(ctx context.Context, h *host) ([]Record, error) {
	text, _, err := h.read(ctx, historyFile)
	if err != nil {
		return nil, err
	}
	var list []Record
	for line := range bytes.Lines(text) {
		var r Record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("A line of %s on %s cannot be read", historyFile, h.shell),
				fmt.Sprintf("Move it away: mv %s/%s /tmp/", h.dir, historyFile))
		}
		list = append(list, r)
	}
	return list, nil
}

func (t *transaction) record(verdict smoke.Verdict, now time.Time) Record {
	return Record{
		ID: t.j.ID, Owner: t.j.Owner, Started: t.j.StartedAt, Ended: now, From: t.j.From, To: t.j.To,
		Verdict: verdict, Reverted: t.out.Reverted, Halted: t.out.Halted, Restored: t.out.Restored, Backup: t.j.Backup, Reason: t.j.Reason, Back: t.j.Back, Left: t.j.Left,
	}
}
