package deploy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/proc"
)

// Status is what a host runs, and what is going on there.
type Status struct {
	Host      string    `json:"host"`
	Dir       string    `json:"dir"`
	Project   string    `json:"project"`
	Container string    `json:"container"` // docker's word: running, exited, …; "none"
	Restarts  int       `json:"restarts"`
	Running   Image     `json:"running"`
	Pinned    Image     `json:"pinned"` // by .env
	Current   *Current  `json:"current,omitempty"`
	Underway  *Underway `json:"underway,omitempty"`
	Locked    string    `json:"locked_by,omitempty"` // whose lease is valid
	Trouble   string    `json:"trouble,omitempty"`   // why docker could not be asked
	Foreign   []string  `json:"foreign_updaters"`    // containers of other programs that update images
	History   []Record  `json:"history"`             // newest first
}

// Underway is a deploy that has not ended: it is at work, or was interrupted.
type Underway struct {
	ID      string    `json:"id"`
	Owner   string    `json:"owner"`
	Started time.Time `json:"started_at"`
	Phase   string    `json:"phase"`
	Step    string    `json:"step"`
	To      Image     `json:"to"`
}

// updaters are programs known to replace images behind a deploy's back.
var updaters = []string{"watchtower", "ouroboros", "diun", "shepherd"} //nolint:gochecknoglobals // a constant table

// Inspect returns the status of a host. It changes nothing and takes no lease.
func Inspect(ctx context.Context, shell Shell, dir string) (Status, error) {
	t := &transaction{opt: Options{Shell: shell, Dir: dir}.withDefaults(), host: host{shell: shell, dir: dir}}
	t.host.log = t.opt.Log
	s := Status{Host: shell.String(), Dir: dir, Container: "none", Foreign: []string{}, History: []Record{}}
	// What the files say matters most when docker does not answer.
	if err := t.look(ctx, &s); err != nil {
		s.Trouble = err.Error()
	}
	if current, found, err := readJSON[Current](ctx, &t.host, currentFile); err != nil {
		return s, err
	} else if found {
		s.Current = &current
	}
	if under, found, err := readJSON[journal](ctx, &t.host, journalFile); err != nil {
		return s, err
	} else if found {
		s.Underway = &Underway{ID: under.ID, Owner: under.Owner, Started: under.StartedAt, Phase: string(under.Phase), Step: under.Step, To: under.To}
	}
	out, err := t.host.script(ctx, nil, `[ -s .agnes/lease ] || exit 0; { read -r id; read -r end; read -r owner; } <.agnes/lease; [ "$end" -le "$(date +%s)" ] || printf %s "$owner"`)
	if err != nil {
		return s, err
	}
	s.Locked = proc.Owner(string(out.Stdout))
	records, err := history(ctx, &t.host)
	if err != nil {
		return s, err
	}
	slices.Reverse(records)
	s.History = append(s.History, records[:min(len(records), 10)]...)
	return s, nil
}

// look fills in what docker says.
func (t *transaction) look(ctx context.Context, s *Status) error {
	j, err := t.survey(ctx)
	if err != nil {
		return err
	}
	s.Project, s.Running = j.Project, j.From
	s.Pinned = Image{Repository: envValue(j.Env, envImage), Tag: envValue(j.Env, envTag), Digest: envValue(j.Env, envDigest)}
	list, err := t.host.app(ctx, j.Project)
	if err != nil {
		return err
	}
	for _, c := range list {
		if s.Container != "running" {
			s.Container, s.Restarts = c.State.Status, c.RestartCount
		}
	}
	out, err := t.host.docker(ctx, false, "ps", "--format", "{{.Names}} {{.Image}}")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out.Stdout)) {
		name, image, _ := strings.Cut(strings.TrimSpace(line), " ")
		if slices.ContainsFunc(updaters, func(u string) bool { return strings.Contains(image, u) }) {
			s.Foreign = append(s.Foreign, fmt.Sprintf("%s (%s)", name, image))
		}
	}
	return nil
}
