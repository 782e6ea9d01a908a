package alert

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// issues are those of a code host. A thread is one issue, known by a hidden text in
// it: a message that is sent again finds it.
type issues struct {
	a fleet.Alert
	o Options
}

func marker(thread string) string { return "<!-- agnes-fleet:" + thread + " -->" }

// Send implements Sink.
func (s issues) Send(ctx context.Context, m Message) (string, error) {
	if m.News != "" {
		return "", nil // a list of what is wrong is no log
	}
	token, err := secretOf(s.a.Secret)
	if err != nil {
		return "", err
	}
	if s.o.Issues == nil {
		return "", &Error{Why: "this program cannot open issues"}
	}
	host, err := s.o.Issues(s.a.Repo, s.a.API, token)
	if err != nil {
		return "", issueError(err)
	}
	thread := cmp.Or(m.Thread, m.ID)
	opened, closed := m.count()
	var link string
	if opened > 0 || m.Test {
		link, err = host.Alert(ctx, release.Alert{Marker: marker(thread), Title: "Fleet: " + m.Title(), Body: s.body(m), Labels: s.a.Labels})
	}
	// A thread that several incidents share ends with the last of them.
	if err == nil && (closed > 0 && m.Open == 0 || m.Test) {
		var at string
		at, err = host.Settle(ctx, marker(thread), strings.Join(m.lines(Item.line), "\n\n"))
		link = cmp.Or(link, at)
	}
	if err != nil {
		return "", issueError(err)
	}
	return link, nil
}

func (s issues) body(m Message) string {
	escape := strings.NewReplacer("<", "&lt;", "@", "@\u200b", "\n", " ").Replace // no mark-up, and nobody is called by an instance's words
	var b strings.Builder
	for _, line := range m.lines(func(i Item) string {
		text := "- " + escape(i.line())
		if i.Link != "" {
			text += fmt.Sprintf(" [Show](%s)", i.Link)
		}
		return text
	}) {
		b.WriteString(line + "\n")
	}
	b.WriteString("\nThe fleet's monitor closes this issue when it is over.\n")
	return b.String()
}

// issueError says whether an issue may be tried again. The client behind it has
// waited for limits as long as it may, and repeated what could be repeated.
func issueError(err error) error {
	p := problem.As(err)
	e := &Error{Why: strings.TrimSpace(p.Message + " " + p.Hint), After: p.RetryAfter}
	if p.Message == "" || p.Kind == problem.Internal {
		e.Why = err.Error()
	}
	e.Final = p.Kind == problem.Unprocessable || p.Kind == problem.Invalid
	return e
}
