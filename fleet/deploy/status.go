package deploy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
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
	Foreign   []string  `json:"foreign_updaters"` // containers of other programs that update images
	History   []Record  `json:"history"`          // newest first
}

// Underway is a deploy that has not ended: it is at work, or was interrupted.
type Underway struct {
	ID      string    `json:"id"`
	Owner   string    `json:"owner"`
	Started time.Time `json:"started_at"`
	Phase   string    `json:"phase"`
	Step    string    `json:"step"`
	To      Image     `json:"to"`
	Locked  bool      `json:"locked"` // its lease is valid
}

// updaters are programs known to replace images behind a deploy's back.
var updaters = []string{"watchtower", "ouroboros", "diun", "shepherd"} //nolint:gochecknoglobals // a constant table

// Inspect returns the status of a host. It changes nothing and takes no lease.
func Inspect(ctx context.Context, shell Shell, dir string) (Status, error) {
	t := &transaction{opt: Options{Shell: shell, Dir: dir}.withDefaults(), host: host{shell: shell, dir: dir}}
	t.host.log = t.opt.Log
	s := Status{Host: shell.String(), Dir: dir, Container: "none", Foreign: []string{}, History: []Record{}}
	j, err := t.survey(ctx)
	if err != nil {
		return s, err
	}
	s.Project, s.Running = j.Project, j.From
	s.Pinned = Image{Repository: envValue(j.Env, envImage), Tag: envValue(j.Env, envTag), Digest: envValue(j.Env, envDigest)}
	list, err := t.host.app(ctx, j.Project)
	if err != nil {
		return s, err
	}
	for _, c := range list {
		if s.Container != "running" {
			s.Container, s.Restarts = c.State.Status, c.RestartCount
		}
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
		out, err := t.host.script(ctx, nil, `[ -s .agnes/lease ] || exit 1; { read -r id; read -r end; } <.agnes/lease; [ "$end" -gt "$(date +%s)" ]`)
		if err != nil {
			return s, err
		}
		s.Underway.Locked = out.Code == 0
	}
	records, err := history(ctx, &t.host)
	if err != nil {
		return s, err
	}
	slices.Reverse(records)
	s.History = append(s.History, records[:min(len(records), 10)]...)
	out, err := t.host.docker(ctx, false, "ps", "--format", "{{.Names}} {{.Image}}")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(out.Stdout)) {
		name, image, _ := strings.Cut(strings.TrimSpace(line), " ")
		if slices.ContainsFunc(updaters, func(u string) bool { return strings.Contains(image, u) }) {
			s.Foreign = append(s.Foreign, fmt.Sprintf("%s (%s)", name, image))
		}
	}
	return s, nil
}

// Previous returns the image that a rollback by hand goes to: the one that ran
// before the last deploy that stayed. It is named by its version even where a
// channel was followed, so that the host's own updates do not undo the rollback.
func Previous(ctx context.Context, shell Shell, dir string) (Image, error) {
	current, found, err := readJSON[Current](ctx, &host{shell: shell, dir: dir}, currentFile)
	switch {
	case err != nil:
		return Image{}, err
	case !found || current.Previous.ID == "" && current.Previous.Digest == "":
		return Image{}, problem.New(problem.Refused, fmt.Sprintf("No deploy has left a way back on %s.", shell),
			"Name the version to go to: agnesctl host deploy --tag stable-YYYY.MM.N").WithCode("no_way_back")
	case current.Previous.Digest == "":
		return Image{}, problem.New(problem.Refused, fmt.Sprintf("What ran before on %s was built there and has no digest.", shell),
			"Name the version to go to: agnesctl host deploy --tag stable-YYYY.MM.N").WithCode("no_way_back")
	}
	previous := current.Previous
	if (previous.Tag == "stable" || previous.Tag == "dev") && previous.Version != "" {
		previous.Tag += "-" + previous.Version
	}
	return previous, nil
}
