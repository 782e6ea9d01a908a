package alert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

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
		at, err = host.Settle(ctx, marker(thread), strings.Join(m.lines(func(i Item) string { return plain(i.line()) }), "\n\n"))
		// Somebody may have closed it. But one that was opened a moment ago is not listed
		// at once.
		switch {
		case err != nil || at != "":
		case m.Test:
			err = &Error{Why: "the issue was opened, and is not listed yet: close it by hand: " + link}
		case m.Attempts == 0:
			err = &Error{Why: "the issue is not listed; it is looked for once more", After: unlisted}
		}
		link = cmp.Or(link, at)
	}
	if err != nil {
		return "", issueError(err)
	}
	return link, nil
}

// unlisted is how long an issue may take to be in its list.
const unlisted = 10 * time.Second

// plain takes from text what GitHub would make of an instance's words: mark-up, links
// and pictures, mentions of people and of other issues.
func plain(text string) string {
	return strings.NewReplacer("<", "&lt;", "@", "@\u200b", "#", "#\u200b", "](", "]\u200b(", "![", "!\u200b[").Replace(text)
}

func (s issues) body(m Message) string {
	var b strings.Builder
	for _, line := range m.lines(func(i Item) string {
		text := "- " + plain(i.line())
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
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	p := problem.As(err)
	e := &Error{Why: strings.TrimSpace(p.Message + " " + p.Hint), After: p.RetryAfter}
	if p.Message == "" || p.Kind == problem.Internal {
		e.Why = err.Error()
	}
	e.Final = p.Kind == problem.Unprocessable || p.Kind == problem.Invalid
	return e
}
